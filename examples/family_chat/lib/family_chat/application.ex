defmodule FamilyChat.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    FamilyChat.CrashReports.install()

    children =
      if(FamilyChat.Repo.postgres?(), do: [FamilyChat.Repo], else: []) ++
        [
          FamilyChat.Kith,
          FamilyChat.Schema,
          {Kith.Monitor, instance: FamilyChat.Kith, name: FamilyChat.Monitor},
          {Phoenix.PubSub, name: FamilyChat.PubSub},
          FamilyChatWeb.Presence,
          FamilyChat.Sweeper,
          FamilyChatWeb.Endpoint
        ]

    Supervisor.start_link(children, strategy: :rest_for_one, name: FamilyChat.Supervisor)
  end

  @impl true
  def config_change(changed, _new, removed) do
    FamilyChatWeb.Endpoint.config_change(changed, removed)
    :ok
  end
end
