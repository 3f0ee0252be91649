defmodule Kith.Testing.Clock do
  @moduledoc """
  A clock that stands still until a test moves it.

  Kith measures every period with the clock of the instance: the retention of the archive and `:expires_in`, the
  rotation of prekeys and their grace periods, the lifetime of skipped keys, `:refresh_after`, the window in which reports
  are counted. A test gives the instance this one and moves it:

      clock = Kith.Testing.Clock.new()
      kith = Kith.Testing.start_kith!(clock: clock, archive: [retention: 3_600])
      # ... a message is opened ...
      Kith.Testing.Clock.advance(clock, 1, :hour)
      Kith.history!(kith, "ben", {:direct, "anna"}).messages
      #=> []

  The clock is no process. Any process may read and move it, and it lives as long as somebody has it.

  Two messages never have the same timestamp, though the clock stands still: each is a millisecond later than the one before.

      iex> clock = Kith.Testing.Clock.new(~U[2030-01-01 00:00:00Z])
      iex> Kith.Testing.Clock.advance(clock, 90, :minute)
      iex> Kith.Testing.Clock.to_datetime(clock)
      ~U[2030-01-01 01:30:00.000Z]
      iex> Kith.Testing.Clock.set(clock, ~U[2030-01-01 00:00:00.007Z])
      iex> Kith.Testing.Clock.now(clock)
      1893456000007
  """

  @enforce_keys [:time]
  defstruct [:time]

  @opaque t :: %__MODULE__{time: :atomics.atomics_ref()}

  @typedoc "A moment: a `DateTime`, or milliseconds since 1970, above 0."
  @type moment :: DateTime.t() | pos_integer

  @type unit :: :millisecond | :second | :minute | :hour | :day

  @units [millisecond: 1, second: 1_000, minute: 60_000, hour: 3_600_000, day: 86_400_000]

  @start ~U[2030-01-01 12:00:00Z]

  @doc "Returns a clock that shows a moment, by default noon of the first day of 2030 in UTC."
  @spec new(moment) :: t
  def new(moment \\ @start), do: set(%__MODULE__{time: :atomics.new(1, [])}, moment)

  @doc "Returns the time in milliseconds since 1970."
  @spec now(t) :: pos_integer
  def now(%__MODULE__{time: time}), do: :atomics.get(time, 1)

  @doc "Returns the time in UTC."
  @spec to_datetime(t) :: DateTime.t()
  def to_datetime(%__MODULE__{} = clock), do: DateTime.from_unix!(now(clock), :millisecond)

  @doc "Sets the clock, forward or back, and returns it."
  @spec set(t, moment) :: t
  def set(%__MODULE__{time: time} = clock, moment) do
    :atomics.put(time, 1, milliseconds!(moment))
    clock
  end

  @doc """
  Moves the clock forward and returns it.

  The unit is `:second`, that of Kith's options, or one of `:millisecond`, `:minute`, `:hour` and `:day`. A negative
  amount raises `ArgumentError`: `set/2` goes back.
  """
  @spec advance(t, non_neg_integer, unit) :: t
  def advance(%__MODULE__{time: time} = clock, amount, unit \\ :second) do
    if not (is_integer(amount) and amount >= 0),
      do: raise(ArgumentError, "expected an amount of 0 or more, got: #{inspect(amount)}")

    :atomics.add(time, 1, amount * factor!(unit))
    clock
  end

  @doc "Returns the function that the option `:clock` of an instance takes. `Kith.Testing.options/1` does it by itself."
  @spec to_function(t) :: (() -> pos_integer)
  def to_function(%__MODULE__{} = clock), do: fn -> now(clock) end

  defp factor!(unit) do
    case Keyword.fetch(@units, unit) do
      {:ok, factor} ->
        factor

      :error ->
        known = Enum.map_join(Keyword.keys(@units), ", ", &inspect/1)
        raise ArgumentError, "expected a unit, one of #{known}, got: #{inspect(unit)}"
    end
  end

  defp milliseconds!(%DateTime{} = moment),
    do: milliseconds!(DateTime.to_unix(moment, :millisecond))

  defp milliseconds!(moment) when is_integer(moment) and moment > 0, do: moment

  defp milliseconds!(other),
    do:
      raise(
        ArgumentError,
        "expected a DateTime or milliseconds, after 1970, got: #{inspect(other)}"
      )

  defimpl Inspect do
    def inspect(clock, _opts),
      do: "#Kith.Testing.Clock<#{Kith.Testing.Clock.to_datetime(clock)}>"
  end
end
