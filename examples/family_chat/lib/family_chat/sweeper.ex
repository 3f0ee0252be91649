defmodule FamilyChat.Sweeper do
  @moduledoc "Deletes, every minute, what is left in the tables of messages that have disappeared."

  use GenServer
  require Logger

  @interval 60_000

  def start_link(_options), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @impl true
  def init(nil) do
    Process.send_after(self(), :sweep, @interval)
    {:ok, nil}
  end

  @impl true
  def handle_info(:sweep, state) do
    try do
      FamilyChat.Chat.sweep()
      FamilyChat.Accounts.sweep()
    rescue
      # The database is away: next time.
      error -> Logger.warning("nothing was swept: #{inspect(error.__struct__)}")
    end

    Process.send_after(self(), :sweep, @interval)
    {:noreply, state}
  end
end
