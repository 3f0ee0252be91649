defmodule Mix.Tasks.Kith.Gen.Migration do
  @shortdoc "Writes the migration of Kith's tables"

  @moduledoc """
  Writes an Ecto migration that brings the tables of Kith to the version of this release.

      $ mix kith.gen.migration
      $ mix kith.gen.migration --repo MyApp.Repo --prefix private

  Then `mix ecto.migrate` runs it.

    * `--repo` - the repository, default the first in `:ecto_repos` of the application. The migration goes where Ecto
      looks for those of that repository: its `:priv` in the configuration, or `priv/repo/migrations`, with the last
      part of its name for `repo`;
    * `--prefix` - the schema of PostgreSQL the tables are in. The instance takes the same as `:prefix`.

  The migration names its version, so that it means the same with every later release. One that was written before for
  the same version and prefix is left as it is; one for an older version makes the new one start where it ends.
  """

  use Mix.Task

  alias Kith.Migration

  @impl true
  def run(arguments) do
    {options, rest, wrong} =
      OptionParser.parse(arguments, strict: [repo: :string, prefix: :string])

    if rest != [] or wrong != [],
      do: Mix.raise("expected --repo and --prefix at most, see mix help kith.gen.migration")

    write(repo!(options[:repo]), options[:prefix])
  end

  @doc false
  # {:written, path} or {:found, path}.
  def write(repo, prefix) do
    with {:error, message} <- Kith.Store.Repo.prefix(prefix), do: Mix.raise(message)
    folder = folder(repo)
    version = Migration.current_version()
    given = if prefix, do: ", prefix: #{inspect(prefix)}", else: ""
    up = "Kith.Migration.up(version: #{version}#{given})"

    case written(folder, given) do
      %{^version => path} ->
        Mix.shell().info("#{path} is there already: nothing was written")
        {:found, path}

      older ->
        suffix = if prefix, do: "_in_#{prefix}", else: ""
        name = "kith_v#{version}#{suffix}"
        path = Path.join(folder, "#{timestamp()}_#{name}.exs")
        File.mkdir_p!(folder)
        File.write!(path, migration(repo, name, up, down(older, given)))
        Mix.shell().info("Wrote #{path}. Run it with mix ecto.migrate")
        {:written, path}
    end
  end

  @doc false
  def repo!(nil) do
    case Application.get_env(Mix.Project.config()[:app], :ecto_repos, []) do
      [repo | _] -> repo
      [] -> Mix.raise("expected --repo, as the application has no :ecto_repos")
    end
  end

  def repo!(name) do
    if name =~ ~r/\A[A-Z]\w*(\.[A-Z]\w*)*\z/,
      do: Module.concat([name]),
      else: Mix.raise("expected --repo to be a module, got: #{name}")
  end

  # The migrations with the same prefix, by version.
  defp written(folder, given) do
    pattern = ~r/Kith\.Migration\.up\(version: (\d+)#{Regex.escape(given)}\)/

    for path <- Path.wildcard(Path.join(folder, "*.exs")),
        [_, version] <- [Regex.run(pattern, File.read!(path))],
        into: %{},
        do: {String.to_integer(version), path}
  end

  # Back to where the migration before has ended.
  defp down(older, given) do
    below = older |> Map.keys() |> Enum.max(fn -> 0 end)
    "Kith.Migration.down(version: #{below + 1}#{given})"
  end

  defp migration(repo, name, up, down) do
    """
    defmodule #{inspect(Module.concat([repo, "Migrations", Macro.camelize(name)]))} do
      use Ecto.Migration

      def up, do: #{up}
      def down, do: #{down}
    end
    """
  end

  # As Ecto looks for them.
  defp folder(repo) do
    config = Application.get_env(Mix.Project.config()[:app], repo, [])
    last = repo |> Module.split() |> List.last() |> Macro.underscore()
    Path.join(config[:priv] || "priv/#{last}", "migrations")
  end

  # Ecto wants every migration to have its own.
  defp timestamp, do: Calendar.strftime(DateTime.utc_now(), "%Y%m%d%H%M%S")
end
