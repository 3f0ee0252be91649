import Config

config :family_chat, FamilyChatWeb.Endpoint,
  http: [ip: {127, 0, 0, 1}, port: 4002],
  server: false,
  secret_key_base: String.duplicate("only for tests ", 5)

# In memory, under a key that is nobody's secret.
config :family_chat, FamilyChat.Kith,
  database: :memory,
  keys: [current: {"test", {:key, String.duplicate("k", 32)}}],
  one_time_prekeys: 20,
  one_time_kyber_prekeys: 2,
  maintenance_interval: :off

# Passwords of tests may be quick to guess.
config :kith, Kith.Password, memory: 8_192, passes: 1

config :logger, level: :warning
