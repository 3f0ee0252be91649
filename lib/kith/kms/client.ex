defmodule Kith.KMS.Client do
  @moduledoc false
  # Calls to key services. They block, so they are made outside of transactions: Kith.Instance says when. Keys never come
  # here; the native library makes the calls and keeps what they open.

  import Kith.Store.WrappedKey, only: [is_served: 1]
  require Logger

  alias Kith.{Error, Instance, KeySource, Native, Telemetry}
  alias Kith.Store.{Accounts, ArchivedMessages, Repo}

  # Milliseconds that a call waits for others, of which only some run at once.
  @patience 5_000

  @type kind :: :account | :thread | :token | :signing | :agreement

  @typedoc "What a native function lacks: something that is opened, or what wraps next in a place."
  @type need :: {:fetch, kind, {binary, binary}} | {:prepare, kind, binary}

  @doc "What it takes for a native function that answered `:cold`, as it opens, or `:unmade`, as it wraps."
  @spec needs(:cold | :unmade, atom, [term]) :: [need]
  def needs(:unmade, :account_token, [user | _]), do: [{:prepare, :token, user}]

  def needs(:unmade, function, [thread | _]) when function in [:thread_create, :thread_rewrap],
    do: [{:prepare, :thread, thread}]

  def needs(:unmade, function, [purpose | _])
      when function in [:service_key_create, :service_key_rewrap],
      do: [{:prepare, purpose, ""}]

  def needs(:unmade, _account, [user | _]), do: [{:prepare, :account, user}]

  def needs(:cold, function, [user, locked | _])
      when function in [:account_unlock, :account_costs, :account_rewrap, :account_lock_anew],
      do: [{:fetch, :account, {user, locked}}]

  def needs(:cold, :account_open_token, [user, token]), do: [{:fetch, :token, {user, token}}]

  def needs(:cold, :thread_rewrap, [thread, wrapped]), do: [{:fetch, :thread, {thread, wrapped}}]

  def needs(:cold, :service_key_rewrap, [purpose, key]), do: [{:fetch, purpose, key}]

  def needs(:cold, :signature_create, [key | _]), do: [{:fetch, :signing, key}]

  def needs(:cold, function, [key | _]) when function in [:client_seal, :client_open],
    do: [{:fetch, :agreement, key}]

  def needs(:cold, function, [account, records]) when function in [:backup_write, :backup_seal] do
    rows = for record <- records, do: with({_kind, _public, row} <- record, do: row)

    in_rows =
      for row <- rows, is_tuple(row) and elem(row, 0) == :message do
        thread = elem(row, 1)
        owner = elem(row, 2)

        fetched(:thread, thread) ++
          if(function == :backup_write, do: fetched(:account, owner), else: [])
      end

    Enum.uniq(fetched(:account, account) ++ Enum.concat(in_rows))
  end

  def needs(:cold, function, [thread | rest])
      when function in [:archive_seal, :archive_open, :archive_reseal],
      do: fetched(:thread, thread) ++ accounts(rest)

  def needs(:cold, :thread_reseal, [before, changed | _]),
    do: Enum.uniq(fetched(:thread, before) ++ fetched(:thread, changed))

  def needs(:cold, _function, arguments), do: accounts(arguments)

  defp accounts(arguments) do
    Enum.flat_map(arguments, fn
      {{_, _} = one, other} -> fetched(:account, one) ++ fetched(:account, other)
      {nil, {_, _} = other} -> fetched(:account, other)
      account -> fetched(:account, account)
    end)
  end

  defp fetched(kind, {owner, wrapped} = key) when is_binary(owner) and is_served(wrapped),
    do: [{:fetch, kind, key}]

  defp fetched(_kind, _other), do: []

  @doc "Gets it from the key service. Not within a transaction."
  @spec warm(Instance.t(), [need]) :: :ok | {:error, Kith.Error.reason()}
  def warm(instance, needs) do
    Enum.reduce_while(needs, :ok, fn need, :ok ->
      case get(instance, need) do
        :ok -> {:cont, :ok}
        error -> {:halt, error}
      end
    end)
  end

  defp get(instance, {:fetch, kind, key}) do
    case patiently(instance, :kms_fetch, [kind, key]) do
      {:ok, {reason, calls}} -> finish(instance, reason, calls)
      {:error, reason} -> {:error, reason}
    end
  end

  defp get(instance, {:prepare, kind, owner}) do
    arguments = [kind, owner, instance.fallback]

    case patiently(instance, :kms_prepare, arguments) do
      {:ok, {reason, served?, calls}} ->
        if reason == nil and not served?, do: fell_back(instance)
        finish(instance, reason, calls)

      {:error, reason} ->
        {:error, reason}
    end
  end

  @doc "Whether a data key that was made is not under what stands in for a key service, where that is not wanted."
  @spec check_wrapped(Instance.t(), binary) :: :ok | {:error, Error.t()}
  def check_wrapped(%{fallback: false, kms: :current}, data_key) do
    case Native.wrapped_key_inspect(data_key) do
      {:ok, %{wrapped_dek: <<_::binary>>}} -> :ok
      # No service has a part in it: another call had that made while it was away.
      _fallen_back -> {:error, Error.new(:unavailable)}
    end
  end

  def check_wrapped(_instance, _data_key), do: :ok

  @doc "Has made what wraps next in a place, where the current key is that of a key service."
  @spec prepare(Instance.t(), kind, binary) :: :ok | {:error, Error.reason()}
  def prepare(%{kms: :current, repo: repo} = instance, kind, owner) do
    if Repo.in_transaction?(repo),
      do: {:error, :unavailable},
      else: warm(instance, [{:prepare, kind, owner}])
  end

  def prepare(_instance, _kind, _owner), do: :ok

  @doc "Opens the data keys of users and threads, and has those made that are not there, see `Kith.open_keys/3`."
  @spec open(Instance.t(), [String.t()], [String.t()]) ::
          {:ok, non_neg_integer} | {:error, Error.t()}
  def open(%{kms: nil}, _users, _threads), do: {:ok, 0}

  def open(instance, users, threads) do
    if Repo.in_transaction?(instance.repo) do
      {:error, Error.new(:unavailable, "within a transaction nobody waits for a key service")}
    else
      read = fn repo ->
        {{:ok,
          for(user <- users, do: needed(instance, :account, user, Accounts.data_key(repo, user))) ++
            for thread <- threads do
              needed(instance, :thread, thread, ArchivedMessages.data_key(repo, thread))
            end}, []}
      end

      with {:ok, needs} <- Instance.transaction(instance, read),
           needs = Enum.concat(needs),
           :ok <- warm(instance, needs) do
        {:ok, length(needs)}
      else
        {:error, reason} when is_atom(reason) -> {:error, Error.new(reason)}
        error -> error
      end
    end
  end

  defp needed(%{kms: :current}, kind, owner, nil), do: [{:prepare, kind, owner}]
  defp needed(_instance, kind, owner, wrapped), do: fetched(kind, {owner, wrapped})

  @doc "Whether the key services answer."
  @spec probe(Instance.t()) :: :ok | {:error, Kith.Error.reason()}
  def probe(instance) do
    case patiently(instance, :kms_probe, []) do
      {:ok, {reason, calls}} -> finish(instance, reason, calls)
      {:error, reason} -> {:error, reason}
    end
  end

  defp finish(instance, reason, calls) do
    report(instance, calls)
    with {:ok, {_open, true}} <- Native.vault_memory(instance.vault), do: KeySource.unlocked()
    if reason, do: {:error, reason}, else: :ok
  end

  defp patiently(instance, function, arguments, deadline \\ nil) do
    deadline = deadline || System.monotonic_time(:millisecond) + @patience

    case Instance.native(instance, function, [instance.vault | arguments]) do
      {:error, :busy} ->
        if System.monotonic_time(:millisecond) < deadline do
          # Apart from each other, so that those who wait do not come together.
          Process.sleep(2 + :rand.uniform(15))
          patiently(instance, function, arguments, deadline)
        else
          {:error, :unavailable}
        end

      result ->
        result
    end
  end

  defp fell_back(instance) do
    Logger.warning(
      "the key service of Kith #{inspect(instance.name)} is away: a new data key was wrapped under its :fallback"
    )

    event = [:kith, :kms, :fallback]
    measurements = %{system_time: System.system_time(), count: 1}
    Telemetry.emit([{event, measurements, %{instance: instance.name}}])
  end

  defp report(_instance, []), do: :ok

  defp report(instance, calls) do
    {now, system_now} = {System.monotonic_time(), System.system_time()}

    Telemetry.emit(
      for {operation, age, duration, failure} <- calls do
        [age, duration] =
          for time <- [age, duration], do: System.convert_time_unit(time, :nanosecond, :native)

        metadata = %{instance: instance.name, operation: operation}
        {now, system_now} = {now - age, system_now - age}
        outcome = Map.put(outcome(failure), :failure, failure)
        {[:kith, :kms, :call], {now, system_now}, now + duration, %{}, metadata, outcome}
      end
    )
  end

  # That there is no such key is a good answer to a service that is asked whether it is there.
  defp outcome(nil), do: %{result: :ok, reason: nil}
  defp outcome(:key_not_found), do: %{result: :error, reason: :key_not_found}
  defp outcome(:refused), do: %{result: :error, reason: :corrupted_state}
  defp outcome(_failure), do: %{result: :error, reason: :unavailable}
end
