defmodule FamilyChat.Sweeper do
  @moduledoc """
  Deletes, every minute, what is left in the tables of messages that have disappeared, and locks the keys of those who have not
  been here for a while.

  The copies in people's archives are deleted by Kith, in its maintenance, as often.
  """

  use GenServer
  require Logger

  def start_link(_options), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @impl true
  def init(nil) do
    sweep_later()
    {:ok, nil}
  end

  @impl true
  def handle_info(:sweep, state) do
    try do
      FamilyChat.Chat.sweep()
      FamilyChat.Accounts.sweep()
      FamilyChat.Locks.sweep()
    rescue
      # The database is away: next time.
      error -> Logger.warning("nothing was swept: #{inspect(error.__struct__)}")
    end

    sweep_later()
    {:noreply, state}
  end

  defp sweep_later,
    do:
      Process.send_after(
        self(),
        :sweep,
        Application.fetch_env!(:family_chat, :sweep_every) * 1_000
      )
end
