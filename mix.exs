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
      extras: extras(),
      groups_for_extras: [
        Guides: ~r"^docs/guides/",
        Reference: ~r"^docs/[^/]+$",
        Decisions: ~r"^docs/decisions/"
      ],
      groups_for_modules: [
        "Where to begin": [Kith, Kith.Options],
        Values: [Kith.Address, Kith.Envelope, Kith.Error, Kith.Message, Kith.PreKeyBundle],
        "Encrypted fields": ~r"^Kith\.(Vault|Ecto)",
        Recovery: ~r"^Kith\.Backup",
        "Messages of services": ~r"^Kith\.(Signed|ClientKey)",
        Testing: ~r"^Kith\.Testing",
        Operating: ~r"^Kith\."
      ],
      before_closing_body_tag: &diagrams/1,
      # What those who work on Kith read about is hidden from those who use it.
      skip_code_autolink_to: ["Kith.Native"],
      # It names what is gone.
      skip_undefined_reference_warnings_on: ["CHANGELOG.md"]
    ]
  end

  # Guides in the order to read them, then those that are not named here.
  defp extras do
    guides =
      for guide <-
            ~w(getting-started.md a-session.livemd ecto.md testing.md healing.md monitoring.md vault.md kms.md backups.md recovery.md
               cloak.md signed-messages.md several-nodes.md),
          do: "docs/guides/" <> guide

    Enum.uniq(
      ["README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md"] ++
        Enum.filter(guides, &File.exists?/1) ++
        Path.wildcard("docs/guides/*.{md,livemd}") ++
        Path.wildcard("docs/*.md") ++ Path.wildcard("docs/decisions/*.md")
    )
  end

  # Draws the diagrams of a page that has some. Without a network they stay what they are, text.
  @mermaid "https://cdn.jsdelivr.net/npm/mermaid@11.17.2/dist/mermaid.min.js"
  @mermaid_hash "sha384-EOXBFmc3gx5mb+vn0vPvvGqACToJD24hhacX5Yx+8NUUQrHIle/Qi5Bg9o3zKwW2"

  defp diagrams(:html) do
    """
    <script>
      const draw = () => {
        const dark = document.body.classList.contains("dark");
        mermaid.initialize({startOnLoad: false, theme: dark ? "dark" : "default"});
        document.querySelectorAll("pre code.mermaid").forEach((code, number) => {
          mermaid.render("diagram-" + number, code.textContent).then(({svg}) => {
            const figure = document.createElement("div");
            figure.innerHTML = svg;
            code.parentElement.replaceWith(figure);
          });
        });
      };
      window.addEventListener("exdoc:loaded", () => {
        if (!document.querySelector("pre code.mermaid")) return;
        if (window.mermaid) return draw();
        const script = document.createElement("script");
        script.src = "#{@mermaid}";
        script.integrity = "#{@mermaid_hash}";
        script.crossOrigin = "anonymous";
        script.onload = draw;
        document.head.append(script);
      });
    </script>
    """
  end

  defp diagrams(_format), do: ""
end
