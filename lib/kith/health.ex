defmodule Kith.Health do
  @moduledoc false
  # Whether the two things every call needs do their work: the database answers, and the vault opens.

  import Kith.Store.WrappedKey, only: [is_locked: 1]

  alias Kith.{Error, Instance, Telemetry}
  alias Kith.KMS.Client
  alias Kith.Store.{Accounts, Repo}

  # Nobody's: user ids are at most 255 bytes.
  @nobody String.duplicate("-", 256)

  def check(%{repo: repo} = instance, timeout) do
    # The question is asked by a process of its own, which would wait for this one.
    if Repo.in_transaction?(repo),
      do: raise(ArgumentError, "expected to be called outside of a transaction")

    started = System.monotonic_time()
    {store, account} = ask(instance, timeout)
    asked = System.monotonic_time()
    vault = open(instance, account)
    finished = System.monotonic_time()

    health = %{
      store: store,
      store_latency: asked - started,
      vault: vault,
      vault_latency: finished - asked
    }

    emit(instance, health, finished - started)
    {:ok, health}
  end

  defp emit(instance, health, duration) do
    reason = Enum.find([health.store, health.vault], &(&1 != :ok))

    measurements = %{
      duration: duration,
      store_duration: health.store_latency,
      vault_duration: health.vault_latency,
      store: if(health.store == :ok, do: 1, else: 0),
      vault: if(health.vault == :ok, do: 1, else: 0)
    }

    metadata = %{
      instance: instance.name,
      result: if(reason, do: :error, else: :ok),
      reason: reason,
      store_reason: if(health.store != :ok, do: health.store),
      vault_reason: if(health.vault != :ok, do: health.vault)
    }

    Telemetry.emit([{[:kith, :health, :check], measurements, metadata}])
  end

  # A database that hangs must not hang whoever asks for it. A process that is killed while it has a connection gives it
  # back.
  defp ask(instance, timeout) do
    callers = [self() | Process.get(:"$callers", [])]

    {pid, ref} =
      spawn_monitor(fn ->
        # By these a pool for tests knows on whose behalf a process asks.
        Process.put(:"$callers", callers)
        exit({__MODULE__, first_account(instance)})
      end)

    receive do
      {:DOWN, ^ref, :process, ^pid, {__MODULE__, {:ok, account}}} -> {:ok, account}
      {:DOWN, ^ref, :process, ^pid, {__MODULE__, {:error, reason}}} -> {reason, nil}
      {:DOWN, ^ref, :process, ^pid, _killed} -> {:storage, nil}
    after
      timeout ->
        Process.exit(pid, :kill)
        Process.demonitor(ref, [:flush])
        {:storage, nil}
    end
  end

  defp first_account(instance) do
    case Instance.transaction(instance, &{{:ok, Accounts.data_keys(&1, "", 1)}, []}) do
      {:ok, accounts} -> {:ok, List.first(accounts)}
      {:error, %Error{reason: reason}} -> {:error, reason}
    end
  catch
    # Whatever a repository does instead of answering. What it says may quote a row.
    _kind, _reason -> {:error, :storage}
  end

  # A data key that is made now says that the current key-encryption key works, the one of an account that what is stored
  # opens with the keys there are.
  defp open(instance, account) do
    with :ok <- if(instance.kms, do: Client.probe(instance), else: :ok),
         :ok <- fresh(instance),
         :ok <- if(account, do: round_trip(instance, account), else: :ok) do
      :ok
    else
      {:error, reason} when is_atom(reason) -> reason
      {:error, %Error{reason: reason}} -> reason
    end
  end

  # A key service would keep each of these for ever, and has answered.
  defp fresh(%{kms: :current}), do: :ok

  defp fresh(instance) do
    with {:ok, fresh} <- Instance.sealed(instance, :account_create, [@nobody]),
         do: round_trip(instance, {@nobody, fresh})
  end

  # What the keys of the server have of a locked account is its outer seal, under which it says what a try costs.
  defp round_trip(instance, {user, locked}) when is_locked(locked) do
    with {:ok, _costs} <- Instance.sealed(instance, :account_costs, [user, locked]), do: :ok
  end

  defp round_trip(instance, account) do
    with {:ok, sealed} <- Instance.sealed(instance, :self_seal, [account, "health"]) do
      case Instance.sealed(instance, :self_open, [account, sealed]) do
        {:ok, "health"} -> :ok
        {:ok, _other} -> {:error, :corrupted_state}
        {:error, reason} -> {:error, reason}
      end
    end
  end
end
