defmodule Kith.Vault.Server do
  @moduledoc false
  # Says under a supervisor that a vault is open. It holds nothing: the keys are in Rust, and vaults work without it.
  use GenServer

  alias Kith.Vault

  # The keys are taken by the caller, whose exception says what is wrong; no process has them among its arguments.
  def start_link(vault, options) do
    case Process.whereis(vault) do
      nil ->
        Vault.open!(vault, options)
        GenServer.start_link(__MODULE__, {vault, options == []}, name: vault)

      pid ->
        {:error, {:already_started, pid}}
    end
  end

  @impl true
  def init({vault, configured}) do
    if not configured, do: Process.flag(:trap_exit, true)
    {:ok, {vault, configured}, :hibernate}
  end

  # Options that were given to a process end with it.
  @impl true
  def terminate(_reason, {_vault, true}), do: :ok
  def terminate(_reason, {vault, false}), do: Vault.close(vault)
end
