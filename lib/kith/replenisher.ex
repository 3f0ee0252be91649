defmodule Kith.Replenisher do
  @moduledoc false
  # Makes new one-time prekeys for devices that run low, one after the other and never in the way of the
  # call that took the last of them.
  use GenServer

  require Logger

  alias Kith.{Address, Instance, Registration}

  def start_link(name), do: GenServer.start_link(__MODULE__, name, name: via(name))

  @doc "Asks for new prekeys of each address. Returns at once."
  @spec request(Instance.t(), [Address.t()]) :: :ok
  def request(_instance, []), do: :ok

  def request(instance, addresses),
    do: GenServer.cast(via(instance.name), {:replenish, addresses})

  @doc "Waits until what was asked for before is done."
  def await(name), do: GenServer.call(via(name), :await, :infinity)

  defp via(name), do: {:via, Registry, {Kith.Registry, {__MODULE__, name}}}

  @impl true
  def init(name), do: {:ok, name}

  @impl true
  def handle_cast({:replenish, addresses}, name) do
    instance = Instance.fetch!(name)

    for {_, device} = address <- addresses do
      case Registration.replenish(instance, address) do
        {:ok, _} ->
          :ok

        {:error, error} ->
          # The stock is still low, so the next claim asks again.
          Logger.warning("no new prekeys for a device #{device}: #{Exception.message(error)}")
      end
    end

    {:noreply, name}
  end

  @impl true
  def handle_call(:await, _from, name), do: {:reply, :ok, name}
end
