defmodule Kith.Instance do
  @moduledoc false
  # What every call needs: the open vault, the database and the limits. Found by name in a registry
  # for as long as the instance runs.

  alias Kith.{Error, Native, Options, Telemetry, Unlocked}
  alias Kith.KMS.Client
  alias Kith.Store.Repo

  # In a process whose transaction can begin anew: what a native function lacks is thrown, and got when the transaction is
  # undone. A call is about an account and a thread, or a few; whoever lacks more than this has too small a :key_cache.
  @cold {__MODULE__, :cold}
  @restarts 64

  @enforce_keys [:name, :repo, :vault, :options]
  defstruct [
    :name,
    :repo,
    :vault,
    :options,
    :stamps,
    :unlocked,
    kms: nil,
    # Whether what stands in for a key service may wrap.
    fallback: true,
    timeline?: false
  ]

  @type t :: %__MODULE__{
          name: term,
          repo: term,
          vault: reference,
          options: Options.t(),
          stamps: :atomics.atomics_ref(),
          unlocked: nil | :ets.table(),
          kms: nil | :current | :retired,
          fallback: boolean,
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

  @doc """
  Empties the write-ahead log of SQLite. What was deleted or written over stands there, and in the file, until then. `:later` inside a transaction
  of the application, where it is not deleted yet; `:failed` mostly because another program reads. PostgreSQL's log is the server's.
  """
  @spec empty_log(t) :: :ok | :later | :failed
  def empty_log(%__MODULE__{repo: %Kith.SQLite{} = repo}) do
    cond do
      Kith.SQLite.in_transaction?(repo) -> :later
      match?({:error, _}, Kith.SQLite.checkpoint(repo)) -> :failed
      true -> :ok
    end
  end

  def empty_log(_instance), do: :ok

  @doc "Whether an instance runs on this node under a name."
  @spec running?(term) :: boolean
  def running?(name), do: Registry.lookup(Kith.Registry, {__MODULE__, name}) != []

  @doc """
  Runs one call in one transaction, repeated while it loses the race for a session.

  `fun` gets the database and returns `{result, records}`; the records are emitted when all of it is durable. `timeout: :infinity` is for
  what has many rows to write.
  """
  @spec transaction(t, (Repo.repo() -> {result, [Telemetry.recorded()]}), keyword) :: result
        when result: {:ok, term} | {:error, Error.t()}
  def transaction(%__MODULE__{kms: kms, repo: repo} = instance, fun, options \\ []) do
    # A transaction of the application's is not ours to begin anew. What is not open then is :unavailable.
    {result, records} =
      if kms == nil or Repo.in_transaction?(repo),
        do: attempt(instance, fun, options),
        else: warming(instance, fun, options, @restarts)

    # When nothing is begun anew any more: whoever listens may call Kith.
    Telemetry.emit(records)
    result
  end

  defp warming(_instance, _fun, _options, 0), do: {{:error, Error.new(:unavailable)}, []}

  defp warming(instance, fun, options, restarts) do
    Process.put(@cold, instance.name)

    outcome =
      try do
        attempt(instance, fun, options)
      catch
        :throw, {@cold, needs} -> {@cold, needs}
      after
        Process.delete(@cold)
      end

    with {@cold, needs} <- outcome do
      case Client.warm(instance, needs) do
        :ok -> warming(instance, fun, options, restarts - 1)
        {:error, reason} -> {{:error, Error.new(reason)}, []}
      end
    end
  end

  defp attempt(%__MODULE__{repo: repo} = instance, fun, options) do
    attempts = instance.options.max_attempts

    case Repo.transaction(repo, attempts, fn -> {:ok, fun.(repo)} end, options) do
      {:ok, {result, records}} ->
        {result, records}

      {:error, %Error{reason: :panic, detail: "in the database"}} = error ->
        Telemetry.panic(instance, :sqlite)
        {error, []}

      {:error, error} ->
        {{:error, error}, []}
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
  def sealed(instance, function, arguments) do
    # First, as an account that is unlocked needs no key service.
    arguments = Enum.map(arguments, &Unlocked.account(instance, &1))
    call = fn -> native(instance, function, [instance.vault | arguments]) end
    with_keys(instance, function, arguments, call)
  end

  @doc """
  Calls `fun`, which calls that native function, until nothing is missing that a key service has to open or make first.
  """
  @spec with_keys(t, atom, [term], (() -> term), non_neg_integer) :: term
  def with_keys(instance, function, arguments, fun, attempts \\ 4) do
    case fun.() do
      {:error, lack} when lack in [:cold, :unmade] ->
        needs = Client.needs(lack, function, arguments)

        with :ok <- get(instance, needs, attempts),
             do: with_keys(instance, function, arguments, fun, attempts - 1)

      result ->
        result
    end
  end

  @doc "Runs what does without keys that are not open: they are `:unavailable` in it. Within a transaction."
  @spec unwaited((() -> result)) :: result when result: term
  def unwaited(fun) do
    before = Process.delete(@cold)

    try do
      fun.()
    after
      if before, do: Process.put(@cold, before)
    end
  end

  # A call to a key service while the database waits would make all others wait too.
  defp get(_instance, _needs, 0), do: {:error, :unavailable}

  defp get(instance, needs, _attempts) do
    cond do
      Process.get(@cold) == instance.name -> throw({@cold, needs})
      Repo.in_transaction?(instance.repo) -> {:error, :unavailable}
      true -> Client.warm(instance, needs)
    end
  end

  @doc false
  def register(%__MODULE__{name: name} = instance),
    do: Registry.register(Kith.Registry, {__MODULE__, name}, instance)

  defimpl Inspect do
    def inspect(instance, _opts), do: "#Kith.Instance<#{Kernel.inspect(instance.name)}>"
  end
end
