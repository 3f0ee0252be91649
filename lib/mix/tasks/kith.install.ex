defmodule Mix.Tasks.Kith.Install do
  @shortdoc "Sets up Kith in an application"

  @moduledoc """
  Sets up Kith in an application, with its Ecto repository or, where there is none, with a database of its own.

      $ mix kith.install
      $ mix kith.install --repo MyApp.Repo --prefix private
      $ mix kith.install --sqlite

  It writes

    * `lib/my_app/kith.ex`, the module the application calls;
    * to `config/config.exs`, where the rows are, and to `config/runtime.exs`, where the key is. Where there is a
      `config/test.exs`, tests get a key of their own there. A file that names the module already is left as it is;
    * the migration, as `mix kith.gen.migration` does,

  and says what is left to do. Run again, it writes what is missing and nothing else.

    * `--repo` - the Ecto repository, default the first in `:ecto_repos` of the application;
    * `--prefix` - the schema of PostgreSQL the tables are in;
    * `--sqlite` - the embedded database although there is a repository.
  """

  use Mix.Task

  alias Mix.Tasks.Kith.Gen

  @impl true
  def run(arguments) do
    strict = [repo: :string, prefix: :string, sqlite: :boolean]
    {options, rest, wrong} = OptionParser.parse(arguments, strict: strict)

    if rest != [] or wrong != [],
      do: Mix.raise("expected --repo, --prefix and --sqlite at most, see mix help kith.install")

    if options[:sqlite] && (options[:repo] || options[:prefix]),
      do: Mix.raise("expected either --sqlite or --repo with --prefix, got both")

    app = Mix.Project.config()[:app]
    module = Module.concat([Macro.camelize("#{app}"), "Kith"])
    repo = repo(app, options)

    if repo == nil and options[:prefix],
      do: Mix.raise("expected --repo with --prefix, as the application has no :ecto_repos")

    write_module(app, module)
    write_config(app, module, repo, options[:prefix])
    write_runtime(app, module)
    write_test(app, module, repo)
    if repo, do: Gen.Migration.write(repo, options[:prefix])
    left_to_do(module, repo)
  end

  defp repo(app, options) do
    cond do
      options[:sqlite] -> nil
      options[:repo] -> Gen.Migration.repo!(options[:repo])
      true -> List.first(Application.get_env(app, :ecto_repos, []))
    end
  end

  defp write_module(app, module) do
    path = "lib/#{app}/kith.ex"

    write_new(path, """
    defmodule #{inspect(module)} do
      @moduledoc "The encrypted messages of the application."

      use Kith, otp_app: #{inspect(app)}
    end
    """)
  end

  defp write_new(path, content) do
    if File.exists?(path) do
      Mix.shell().info("#{path} is there already: nothing was written")
    else
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, content)
      Mix.shell().info("Wrote #{path}")
    end
  end

  defp write_config(app, module, nil, _prefix) do
    append("config/config.exs", module, """

    # Kith keeps its rows in a database of its own. In a release, name a file that outlives it in config/runtime.exs.
    config #{inspect(app)}, #{inspect(module)}, database: "kith.db"
    """)
  end

  defp write_config(app, module, repo, prefix) do
    given = if prefix, do: ", prefix: #{inspect(prefix)}", else: ""

    append("config/config.exs", module, """

    config #{inspect(app)}, #{inspect(module)}, repo: #{inspect(repo)}#{given}
    """)
  end

  # The name of a key stands beside what it wraps: it never changes its meaning.
  defp write_runtime(app, module) do
    id = Calendar.strftime(Date.utc_today(), "%Y-%m")

    line =
      ~s|config #{inspect(app)}, #{inspect(module)}, keys: [current: {"#{id}", {:env, "KITH_KEY"}}]|

    lines = if test?(), do: "if config_env() != :test do\n  #{line}\nend", else: line

    append("config/runtime.exs", module, """

    # The key that opens what Kith keeps, as mix kith.gen.key makes it.
    #{lines}
    """)
  end

  defp test?, do: File.exists?("config/test.exs")

  defp write_test(app, module, repo) do
    database = if repo, do: "", else: "\n  database: :memory,"

    if test?() do
      append("config/test.exs", module, """

      # What tests encrypt is nobody's secret.
      config #{inspect(app)}, #{inspect(module)},#{database}
        keys: [current: {"test", {:key, String.duplicate("k", 32)}}],
        maintenance_interval: :off
      """)
    end
  end

  defp append(path, module, lines) do
    content = if File.exists?(path), do: File.read!(path), else: "import Config\n"

    if content =~ ~r/#{Regex.escape(inspect(module))}\b/ do
      Mix.shell().info("#{path} names #{inspect(module)} already: nothing was written")
    else
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, before_imports(content, lines))
      Mix.shell().info("Wrote to #{path}")
    end
  end

  # What config/config.exs imports last overrides what stands before.
  defp before_imports(content, lines) do
    case Regex.run(~r/\n((#[^\n]*\n)*import_config [^\n]*\n?)\s*\z/, content, return: :index) do
      [_, {at, _} | _] ->
        {before, imports} = String.split_at(content, String.length(binary_part(content, 0, at)))
        String.trim_trailing(before) <> "\n" <> lines <> "\n" <> imports

      nil ->
        String.trim_trailing(content) <> "\n" <> lines
    end
  end

  defp left_to_do(module, repo) do
    steps =
      [
        "make a key with mix kith.gen.key and give it to the application as KITH_KEY",
        if(repo, do: "run mix ecto.migrate"),
        if(repo,
          do: "add #{inspect(module)} to the children of your supervisor, after #{inspect(repo)}",
          else: "add #{inspect(module)} to the children of your supervisor"
        ),
        unless(repo, do: "add kith.db* to .gitignore")
      ]
      |> Enum.reject(&is_nil/1)
      |> Enum.with_index(1)
      |> Enum.map_join("\n", fn {step, number} -> "  #{number}. #{step}" end)

    Mix.shell().info("""

    What is left to do:

    #{steps}

    Then #{inspect(module)}.register("anna") gives a user keys, and #{inspect(module)}.encrypt("anna", "ben", "hello")
    encrypts a message.
    """)
  end
end
