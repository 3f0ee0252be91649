defmodule Kith.KMS.Client do
  @moduledoc false
  # Calls to key services. They block, so they are made outside of transactions: Kith.Instance says when. Keys never come
  # here; the native library makes the calls and keeps what they open.

  require Logger

  alias Kith.{Instance, KeySource, Native, Telemetry}

  # Milliseconds that a call waits for others, of which only some run at once.
  @patience 5_000

  @typedoc "What a native function lacks: an open data key, or one that is made."
  @type need ::
          {:fetch, :account | :thread, {String.t(), binary}}
          | {:prepare, :account | :thread, String.t()}

  @doc "What it takes for a native function that answered `:cold`."
  @spec need(atom, [term]) :: need
  def need(:account_create, [user]), do: {:prepare, :account, user}
  def need(:thread_create, [thread]), do: {:prepare, :thread, thread}

  def need(function, [key | _]) when function in [:archive_seal, :archive_open],
    do: {:fetch, :thread, key}

  def need(_function, [account | _]), do: {:fetch, :account, account}

  @doc "Gets it from the key service."
  @spec warm(Instance.t(), need) :: :ok | {:error, Kith.Error.reason()}
  def warm(instance, {:fetch, kind, key}) do
    case patiently(instance, :kms_fetch, [kind, key]) do
      {:ok, {reason, calls}} -> finish(instance, reason, calls)
      {:error, reason} -> {:error, reason}
    end
  end

  def warm(instance, {:prepare, kind, owner}) do
    case patiently(instance, :kms_prepare, [kind, owner]) do
      {:ok, {reason, served?, calls}} ->
        if reason == nil and not served?, do: fell_back(instance)
        finish(instance, reason, calls)

      {:error, reason} ->
        {:error, reason}
    end
  end

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
