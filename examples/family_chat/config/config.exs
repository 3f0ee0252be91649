import Config

# Where the rows are: in an embedded database, or in PostgreSQL through Ecto. A choice of the build, as
# FamilyChat.Repo is another module with each.
database =
  case System.get_env("FAMILY_CHAT_DATABASE", "sqlite") do
    "sqlite" -> :sqlite
    "postgres" -> :postgres
  end

config :family_chat, database: database

if database == :postgres do
  config :family_chat, ecto_repos: [FamilyChat.Repo]
  config :family_chat, FamilyChat.Kith, repo: FamilyChat.Repo
end

# The archive is what people scroll back through. Without it a reload of the page would be empty.
config :family_chat, FamilyChat.Kith, archive: true

# Debian's packages have Cowboy, and Hex has Bandit. Both serve Phoenix.
adapter =
  if System.get_env("KITH_NO_DEPS") in ["1", "true"],
    do: Phoenix.Endpoint.Cowboy2Adapter,
    else: Bandit.PhoenixAdapter

config :family_chat, FamilyChatWeb.Endpoint,
  adapter: adapter,
  render_errors: [formats: [html: FamilyChatWeb.ErrorHTML], layout: false],
  pubsub_server: FamilyChat.PubSub,
  live_view: [signing_salt: "family-chat"]

# What people write comes in parameters of forms and events. They are not logged.
config :phoenix, :filter_parameters, {:keep, []}
config :phoenix, :json_library, Jason
config :logger, :console, format: "$time [$level] $message\n"

import_config "#{config_env()}.exs"
