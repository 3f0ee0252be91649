defmodule Kith.Monitor.HistogramTest do
  use ExUnit.Case, async: true

  alias Kith.Monitor.Histogram

  # Each power of two with its neighbours, and numbers between.
  @values for(power <- 0..35, near <- [-1, 0, 1], do: Integer.pow(2, power) + near)
          |> Kernel.++(for(step <- 1..4_000, do: step * step * step))
          |> Enum.filter(&(&1 < Integer.pow(2, 36)))

  test "the middle of a bucket is within 1/64 of what is in it, and exact below 64" do
    for value <- @values do
      middle = Histogram.middle(Histogram.bucket(value))
      assert abs(middle - value) <= value / 64, "#{value} is told as #{middle}"
      if value < 64, do: assert(middle == value)
    end
  end

  test "a longer duration is never in an earlier bucket, and there are as many buckets as said" do
    buckets = @values |> Enum.sort() |> Enum.map(&Histogram.bucket/1)
    assert buckets == Enum.sort(buckets)
    assert Enum.min(buckets) == 0
    assert Histogram.bucket(Integer.pow(2, 36) - 1) == Histogram.size() - 1
  end

  test "what is longer than the longest is in the last bucket, and what is less than nothing in the first" do
    assert Histogram.bucket(Integer.pow(2, 60)) == Histogram.size() - 1
    assert Histogram.bucket(-1) == 0
  end

  test "a percentile is the least value that so many are not above" do
    counts = fn values ->
      found = Enum.frequencies_by(values, &Histogram.bucket/1)
      for bucket <- 0..(Histogram.size() - 1), do: Map.get(found, bucket, 0)
    end

    assert Histogram.quantiles(counts.([]), [0.5, 0.99]) == [nil, nil]
    assert Histogram.quantiles(counts.([7]), [0.0, 0.5, 0.99, 1.0]) == [7.0, 7.0, 7.0, 7.0]

    assert Histogram.quantiles(counts.(Enum.to_list(1..4)), [0.25, 0.5, 0.51, 1.0]) == [
             1.0,
             2.0,
             3.0,
             4.0
           ]

    # One of a hundred is not above its own percentile, two are.
    assert [10.0] = Histogram.quantiles(counts.(List.duplicate(10, 99) ++ [50]), [0.99])
    assert [50.0] = Histogram.quantiles(counts.(List.duplicate(10, 98) ++ [50, 50]), [0.99])

    for quantile <- [0.5, 0.95, 0.99] do
      values = Enum.map(1..10_000, &(&1 * 7))
      exact = Enum.at(values, ceil(quantile * 10_000) - 1)
      [told] = Histogram.quantiles(counts.(values), [quantile])
      assert abs(told - exact) <= exact / 64
    end
  end
end
