defmodule FamilyChat.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    Kith.Telemetry.attach_logger()
    FamilyChat.CrashReports.install()

    children =
      if(FamilyChat.Repo.postgres?(), do: [FamilyChat.Repo], else: []) ++
        [
          # Before the instance, which may have something to say when it starts.
          {Kith.Monitor, instance: FamilyChat.Kith},
          FamilyChat.Kith,
          FamilyChat.Schema,
          {Phoenix.PubSub, name: FamilyChat.PubSub},
          FamilyChatWeb.Presence,
          FamilyChat.Locks,
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
