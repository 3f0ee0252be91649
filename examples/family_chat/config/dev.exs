import Config

config :family_chat, FamilyChatWeb.Endpoint,
  http: [ip: {127, 0, 0, 1}, port: 4000],
  debug_errors: true,
  check_origin: false,
  secret_key_base: String.duplicate("only for development ", 4)

if config_env() == :dev and System.get_env("FAMILY_CHAT_DATABASE") == "postgres" do
  config :family_chat, FamilyChat.Repo,
    username: "postgres",
    password: "postgres",
    hostname: "localhost",
    port: String.to_integer(System.get_env("PGPORT", "5432")),
    database: "family_chat_dev",
    pool_size: 10
end
