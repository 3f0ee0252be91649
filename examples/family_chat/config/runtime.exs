import Config

if config_env() != :test do
  # The key that opens what Kith keeps. `mix setup` made the file; a server gets it in its environment.
  key =
    if System.get_env("KITH_KEY"),
      do: {:env, "KITH_KEY"},
      else: {:file, System.get_env("KITH_KEY_FILE", Path.expand("../priv/kith.key", __DIR__))}

  # The name of a key stands beside what it wraps, and never changes its meaning.
  config :family_chat, FamilyChat.Kith,
    keys: [current: {System.get_env("KITH_KEY_NAME", "family"), key}]

  if Application.get_env(:family_chat, :database) == :sqlite or
       System.get_env("FAMILY_CHAT_DATABASE", "sqlite") == "sqlite" do
    config :family_chat, FamilyChat.Kith,
      database: System.get_env("FAMILY_CHAT_FILE", Path.expand("../family_chat.db", __DIR__))
  end
end

# Seconds between two deletions of messages that have disappeared, and after how many they may. Tests have no minute to wait.
sweep_every = "FAMILY_CHAT_SWEEP_EVERY" |> System.get_env("60") |> String.to_integer()
config :family_chat, sweep_every: sweep_every
config :family_chat, FamilyChat.Kith, maintenance_interval: sweep_every

# Seconds without an open page after which the keys of a user are locked, and whether the browser that comes back is asked for the password.
config :family_chat,
  lock_after: "FAMILY_CHAT_LOCK_AFTER" |> System.get_env("1800") |> String.to_integer(),
  ask_again: System.get_env("FAMILY_CHAT_ASK_AGAIN") in ["1", "true"]

if timers = System.get_env("FAMILY_CHAT_TIMERS") do
  config :family_chat,
    timers: [nil | timers |> String.split(",") |> Enum.map(&String.to_integer/1)]
end

if word = System.get_env("FAMILY_CHAT_INVITATION"), do: config(:family_chat, invitation: word)

if port = System.get_env("PORT") do
  config :family_chat, FamilyChatWeb.Endpoint,
    http: [ip: {127, 0, 0, 1}, port: String.to_integer(port)]
end

if config_env() == :prod do
  config :family_chat, FamilyChatWeb.Endpoint,
    server: true,
    url: [host: System.fetch_env!("PHX_HOST"), port: 443, scheme: "https"],
    secret_key_base: System.fetch_env!("SECRET_KEY_BASE")

  if url = System.get_env("DATABASE_URL"), do: config(:family_chat, FamilyChat.Repo, url: url)
end
