defmodule FamilyChat.MixProject do
  use Mix.Project

  def project do
    [
      app: :family_chat,
      version: "0.1.0",
      elixir: "~> 1.14",
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      aliases: aliases(),
      deps: deps(hex?())
    ] ++ without_hex(hex?())
  end

  def application do
    [
      mod: {FamilyChat.Application, []},
      extra_applications: [:logger, :runtime_tools] ++ packages(hex?())
    ]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  defp deps(true) do
    [
      {:kith, path: "../.."},
      {:phoenix, "~> 1.7"},
      {:phoenix_live_view, "~> 0.20 or ~> 1.0"},
      {:phoenix_live_dashboard, "~> 0.8"},
      {:telemetry_metrics, "~> 0.6 or ~> 1.0"},
      {:telemetry_poller, "~> 1.0"},
      {:jason, "~> 1.2"},
      {:bandit, "~> 1.5"},
      # For PostgreSQL, which the application uses where FAMILY_CHAT_DATABASE says so.
      {:ecto_sql, "~> 3.10"},
      {:postgrex, "~> 0.17"}
    ]
  end

  defp deps(false), do: [{:kith, path: "../.."}]

  # Without Hex the same packages are found compiled in ERL_LIBS: see `make chat`. Mix then must not look for them
  # among its dependencies, nor consolidate protocols whose sources it does not have.
  defp hex?, do: System.get_env("KITH_NO_DEPS") not in ["1", "true"]

  defp without_hex(true), do: []
  defp without_hex(false), do: [prune_code_paths: false, consolidate_protocols: false]

  defp packages(true), do: []

  defp packages(false),
    do: [
      :phoenix,
      :phoenix_live_view,
      :phoenix_live_dashboard,
      :telemetry_poller,
      :plug_cowboy,
      :jason
    ]

  defp aliases do
    [setup: ["deps.get", "compile", &key/1, &database/1]]
  end

  # What opens everything: made once, and never again.
  defp key(_arguments) do
    if not File.exists?("priv/kith.key"),
      do: Mix.Task.run("kith.gen.key", ["--file", "priv/kith.key"])
  end

  defp database(_arguments) do
    if System.get_env("FAMILY_CHAT_DATABASE") == "postgres" do
      Mix.Task.run("ecto.create")
      Mix.Task.run("ecto.migrate")
    end
  end
end
