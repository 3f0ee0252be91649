defmodule Kith.Monitor.Histogram do
  @moduledoc false
  # Which bucket a duration belongs to. Log-linear: every doubling is cut into 32 buckets of one width, so a bucket is at
  # most 1/32 as wide as what is in it, and its middle is at most 1/64, 1.6 %, away. Below 64 µs there is a bucket for each
  # microsecond.

  import Bitwise

  @bits 5
  @cut 1 <<< @bits

  # 19 hours. What takes longer is in the last bucket.
  @octaves 36
  @longest (1 <<< @octaves) - 1
  @size @cut * (@octaves - @bits + 1)

  @doc "How many buckets there are."
  @spec size() :: pos_integer
  def size, do: @size

  @doc "The bucket of a number of microseconds, from 0."
  @spec bucket(integer) :: non_neg_integer
  def bucket(us) when us < @cut, do: max(us, 0)
  def bucket(us) when us > @longest, do: @size - 1

  def bucket(us) do
    # Of integers of 36 bits a logarithm in floating point is on the right side of each power of two.
    octave = trunc(:math.log2(us))
    (octave - @bits) * @cut + (us >>> (octave - @bits))
  end

  @doc "The middle of a bucket, in microseconds."
  @spec middle(non_neg_integer) :: float
  def middle(bucket) when bucket < @cut, do: bucket * 1.0

  def middle(bucket) do
    shift = div(bucket, @cut) - 1
    lowest = (rem(bucket, @cut) + @cut) <<< shift
    lowest + ((1 <<< shift) - 1) / 2
  end

  @doc """
  The values below which these shares of all are, in microseconds, of counts in the order of the buckets. `nil` where
  there are none.
  """
  @spec quantiles([non_neg_integer], [float]) :: [nil | float]
  def quantiles(counts, shares) do
    case Enum.sum(counts) do
      0 -> Enum.map(shares, fn _ -> nil end)
      all -> Enum.map(shares, &quantile(counts, max(ceil(&1 * all), 1), 0))
    end
  end

  defp quantile([count | _], rank, bucket) when count >= rank, do: middle(bucket)
  defp quantile([count | rest], rank, bucket), do: quantile(rest, rank - count, bucket + 1)
end
