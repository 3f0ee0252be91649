defmodule FamilyChatWeb.Presence do
  @moduledoc "Who has the chat open."

  use Phoenix.Presence, otp_app: :family_chat, pubsub_server: FamilyChat.PubSub

  @topic "people"

  def enter(user_id) do
    {:ok, _} = track(self(), @topic, user_id, %{})
    Phoenix.PubSub.subscribe(FamilyChat.PubSub, @topic)
  end

  def online, do: @topic |> list() |> Map.keys() |> MapSet.new()

  @doc "The set after what a `presence_diff` says."
  def apply_diff(online, %{joins: joins, leaves: _leaves}) do
    # Somebody who closes one of two pages leaves and is still here.
    if map_size(joins) > 0, do: MapSet.union(online, MapSet.new(Map.keys(joins))), else: online()
  end
end
