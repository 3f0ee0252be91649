import Config

config :family_chat, FamilyChatWeb.Endpoint,
  force_ssl: [rewrite_on: [:x_forwarded_proto], exclude: ["localhost"]]

config :logger, level: :info
