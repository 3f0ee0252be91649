defmodule Kith.Backup.Engine do
  @moduledoc false
  # The native calls of a backup.

  alias Kith.{Error, Instance, Native, Telemetry, Unlocked}
  alias Kith.Password.Limiter

  @doc "A call that derives the key of a backup. A passphrase waits its turn with the passwords of logins."
  def derive(instance, function, arguments, {:passphrase, _}) do
    case Limiter.run(fn -> apply(Native, function, arguments) end) do
      {{:done, result}, _waited} -> watched(instance, function, result)
      {:busy, _waited} -> {:error, Error.new(:busy)}
    end
  end

  def derive(instance, function, arguments, _key),
    do: watched(instance, function, apply(Native, function, arguments))

  defp watched(instance, function, result),
    do: result |> Telemetry.watch(instance, function) |> Error.from_native()

  @doc "Calls a native function."
  def native(instance, function, arguments),
    do: Error.from_native(Instance.native(instance, function, arguments))

  @doc "Calls one that opens or seals: the vault comes after what is written or read, and then the account."
  def sealed(instance, :account_create, arguments),
    do: Error.from_native(Instance.sealed(instance, :account_create, arguments))

  def sealed(instance, function, [first, account | rest]) do
    account = Unlocked.account(instance, account)
    call = fn -> Instance.native(instance, function, [first, instance.vault, account | rest]) end
    Error.from_native(Instance.with_keys(instance, function, [account | rest], call))
  end

  @doc "What is no backup, or none that was made here."
  def malformed, do: {:error, Error.new(:malformed, "the backup is not laid out as one")}
end
