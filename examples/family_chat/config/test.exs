import Config

config :family_chat, FamilyChatWeb.Endpoint,
  http: [ip: {127, 0, 0, 1}, port: 4002],
  server: false,
  secret_key_base: String.duplicate("only for tests ", 5)

config :logger, level: :warning
