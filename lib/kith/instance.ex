defmodule Kith.Instance do
  @moduledoc false
  # What every call needs: the open vault, the database and the limits. Found by name in a registry
  # for as long as the instance runs.

  alias Kith.{Error, Native, Options, Telemetry, Unlocked}
  alias Kith.Store.Repo

  @enforce_keys [:name, :repo, :vault, :options]
  defstruct [:name, :repo, :vault, :options, :stamps, :unlocked, timeline?: false]

  @type t :: %__MODULE__{
          name: term,
          repo: term,
          vault: reference,
          options: Options.t(),
          stamps: :atomics.atomics_ref(),
          unlocked: nil | :ets.table(),
          timeline?: boolean
        }

  @spec fetch!(term) :: t
  def fetch!(name) do
    case Registry.lookup(Kith.Registry, {__MODULE__, name}) do
      [{_pid, instance}] ->
        instance

      [] ->
        raise ArgumentError,
              "no instance of Kith is running under the name #{inspect(name)}; " <>
                "add it to the children of your supervisor"
    end
  end

  @doc "Whether an instance runs on this node under a name."
  @spec running?(term) :: boolean
  def running?(name), do: Registry.lookup(Kith.Registry, {__MODULE__, name}) != []

  @doc """
  Runs one call in one transaction, repeated while it loses the race for a session.

  `fun` gets the database and returns `{result, records}`; the records are emitted when all of it is durable.
  """
  @spec transaction(t, (Repo.repo() -> {result, [Telemetry.recorded()]})) :: result
        when result: {:ok, term} | {:error, Error.t()}
  def transaction(%__MODULE__{repo: repo, options: options} = instance, fun) do
    case Repo.transaction(repo, options.max_attempts, fn -> {:ok, fun.(repo)} end) do
      {:ok, {result, records}} ->
        Telemetry.emit(records)
        result

      {:error, %Error{reason: :panic, detail: "in the database"}} = error ->
        Telemetry.panic(instance, :sqlite)
        error

      {:error, error} ->
        {:error, error}
    end
  end

  @doc "Milliseconds since 1970. Tests give an instance another clock."
  @spec now(t) :: integer
  def now(%__MODULE__{options: %{clock: nil}}), do: System.system_time(:millisecond)
  def now(%__MODULE__{options: %{clock: clock}}), do: clock.()

  @doc """
  The time in milliseconds for a message, each later than the one before: a report names a message by it. Two nodes may
  give one twice.
  """
  @spec timestamp(t) :: pos_integer
  def timestamp(%__MODULE__{stamps: stamps} = instance),
    do: later(instance, :atomics.get(stamps, 1))

  defp later(%{stamps: stamps} = instance, last) do
    stamp = max(now(instance), last + 1)

    case :atomics.compare_exchange(stamps, 1, last, stamp) do
      :ok -> stamp
      other -> later(instance, other)
    end
  end

  @doc """
  Microseconds since 1970, so that what one device does comes one after the other.

  The clock of a test may stand still: what comes at one moment then is counted, up to a thousand.
  """
  @spec position(t) :: pos_integer
  def position(%__MODULE__{options: %{clock: nil}}), do: System.system_time(:microsecond)

  def position(%__MODULE__{stamps: stamps} = instance) do
    moment = now(instance) * 1_000
    last = :atomics.get(stamps, 2)
    position = if last in moment..(moment + 998)//1, do: last + 1, else: moment

    case :atomics.compare_exchange(stamps, 2, last, position) do
      :ok -> position
      _another -> position(instance)
    end
  end

  @doc "Calls a native function and reports a panic."
  @spec native(t, atom, [term]) :: term
  def native(instance, function, arguments),
    do: Native |> apply(function, arguments) |> Telemetry.watch(instance, function)

  @doc "Calls a native function that opens or seals: the vault comes first. Accounts that are unlocked have their keys."
  @spec sealed(t, atom, [term]) :: term
  def sealed(instance, function, arguments),
    do:
      native(instance, function, [
        instance.vault | Enum.map(arguments, &Unlocked.account(instance, &1))
      ])

  @doc false
  def register(%__MODULE__{name: name} = instance),
    do: Registry.register(Kith.Registry, {__MODULE__, name}, instance)

  defimpl Inspect do
    def inspect(instance, _opts), do: "#Kith.Instance<#{Kernel.inspect(instance.name)}>"
  end
end
