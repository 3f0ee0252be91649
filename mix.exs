Code.require_file("native/compile.kith_nif.exs", __DIR__)

defmodule Kith.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :kith,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: elixirc_paths(Mix.env()),
      # A project of its own, for machines with Hex.
      test_ignore_filters: [~r"^test/ecto/"],
      start_permanent: Mix.env() == :prod,
      compilers: [:kith_nif] ++ Mix.compilers(),
      # Mix knows no dependencies here, and newer ones take what it does not know off the code path: optional packages.
      prune_code_paths: false,
      # .ci/newest has libraries without debug information, whose protocols cannot be consolidated.
      consolidate_protocols: System.get_env("KITH_CONSOLIDATE_PROTOCOLS") != "0",
      description: "Signal-grade message encryption for Elixir and Phoenix",
      deps: deps(),
      package: package(),
      docs: &docs/0
    ]
  end

  def application do
    [mod: {Kith.Application, []}, extra_applications: [:logger, :crypto, telemetry: :optional]]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # The library runs on Elixir and OTP alone; every Hex package is optional. Without Hex (an
  # air-gapped machine) Mix cannot even read a list that names Hex packages, so it gets none.
  defp deps do
    if Code.ensure_loaded?(Hex) and System.get_env("KITH_NO_DEPS") not in ["1", "true"],
      do: hex_deps(),
      else: []
  end

  defp hex_deps do
    [
      {:telemetry, "~> 1.0", optional: true},
      {:telemetry_metrics, "~> 0.6 or ~> 1.0", optional: true},
      {:phoenix_live_dashboard, "~> 0.8", optional: true},
      {:ecto_sql, "~> 3.10", optional: true},
      {:postgrex, "~> 0.17", optional: true},
      {:ex_doc, "~> 0.34", only: :dev, runtime: false}
    ]
  end

  # Cargo.lock is part of the package: the build is `--locked`. Built files are not.
  defp package do
    [
      licenses: ["MIT", "Apache-2.0"],
      links: %{},
      files: ~w(lib native Cargo.toml Cargo.lock mix.exs .formatter.exs
                README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE)
    ]
  end

  defp docs do
    [
      main: "readme",
      source_ref: "v#{@version}",
      formatters: ["html"],
      api_reference: false,
      extras:
        ["README.md", "CHANGELOG.md", "SECURITY.md"] ++
          Path.wildcard("docs/guides/*.md") ++ Path.wildcard("docs/*.md"),
      groups_for_extras: [Guides: ~r"docs/guides/"],
      skip_undefined_reference_warnings_on: ["CHANGELOG.md"]
    ]
  end
end
