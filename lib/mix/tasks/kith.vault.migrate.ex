defmodule Mix.Tasks.Kith.Vault.Migrate do
  @shortdoc "Brings encrypted fields under the current cipher of their vault"

  @moduledoc """
  Brings encrypted fields under the current cipher of their vault.

      $ mix kith.vault.migrate -r MyApp.Repo -s MyApp.User -s MyApp.Order
      $ mix kith.vault.migrate -r MyApp.Repo -s MyApp.User --dry-run
      $ mix kith.vault.migrate -r MyApp.Repo -s MyApp.User --verify

  `Kith.Vault.Migrator` says what it does and how it goes on beside traffic. In a release, where there is no Mix, call that.

    * `-r`, `--repo` - the repository
    * `-s`, `--schema` - an Ecto schema with encrypted fields; may be given several times
    * `--dry-run` - writes nothing and says what would be upgraded
    * `--verify` - writes nothing and decrypts everything
    * `--batch` - rows of one page, default 100
    * `--trust-unauthenticated` - refuses only the fields of AES.CTR that do not parse, not all of their column

  Without `-r` and `-s` they are those of `:cloak_repo` and `:cloak_schemas` in the configuration of the application, as with
  `mix cloak.migrate.ecto`. Ends with status 1 when a field was refused, or a `--verify` found one that is outdated.
  """

  use Mix.Task

  alias Kith.Vault.Migrator

  @switches [
    repo: :string,
    schema: :keep,
    dry_run: :boolean,
    verify: :boolean,
    batch: :integer,
    trust_unauthenticated: :boolean
  ]

  @impl true
  def run(arguments) do
    {options, rest, wrong} =
      OptionParser.parse(arguments, strict: @switches, aliases: [r: :repo, s: :schema])

    if rest != [] or wrong != [],
      do: Mix.raise("expected -r and -s, see mix help kith.vault.migrate")

    if options[:dry_run] && options[:verify],
      do: Mix.raise("expected either --dry-run or --verify, got both")

    Mix.Task.run("app.config")
    {repo, schemas} = targets(options)
    start(repo)

    found = Enum.map(schemas, &schema(repo, &1, options))

    if Enum.any?(found, & &1),
      do: Mix.raise("there are fields that do not decrypt, or are not under the current cipher")
  end

  defp targets(options) do
    app = Mix.Project.config()[:app]
    repo = options[:repo] || first(Application.get_env(app, :cloak_repo))
    schemas = Keyword.get_values(options, :schema)

    schemas =
      if schemas == [], do: List.wrap(Application.get_env(app, :cloak_schemas)), else: schemas

    if repo == nil or schemas == [],
      do: Mix.raise("expected -r with a repository and -s with a schema")

    {module(repo), Enum.map(schemas, &module/1)}
  end

  defp first(list) when is_list(list), do: List.first(list)
  defp first(repo), do: repo

  defp module(name) when is_binary(name), do: module(Module.concat([name]))

  defp module(module) do
    if Code.ensure_loaded?(module), do: module, else: Mix.raise("there is no #{inspect(module)}")
  end

  defp start(repo) do
    {:ok, _} = Application.ensure_all_started(:kith)
    for app <- [:ecto_sql, :postgrex], do: Application.ensure_all_started(app)
    if function_exported?(repo, :start_link, 1), do: repo.start_link(pool_size: 2)
  end

  defp schema(repo, schema, options) do
    verify = options[:verify] || false
    given = Keyword.take(options, [:dry_run, :batch, :trust_unauthenticated])
    given = [on_progress: &progress(schema, &1)] ++ given

    result =
      if verify,
        do: Migrator.verify(repo, schema, Keyword.delete(given, :dry_run)),
        else: Migrator.run(repo, schema, given)

    case result do
      {:ok, report} ->
        Mix.shell().info("#{inspect(schema)}: #{words(report)}")
        for refusal <- report.refusals, do: Mix.shell().error("  " <> refused(refusal))
        report.refused > 0 or (verify and report.outdated > 0)

      {:error, error} ->
        Mix.raise("#{inspect(schema)}: #{Exception.message(error)}")
    end
  end

  defp progress(schema, report) do
    if rem(report.rows, 10_000) == 0,
      do: Mix.shell().info("#{inspect(schema)}: #{report.rows} rows…")
  end

  defp words(report) do
    Enum.map_join([:rows, :upgraded, :already, :outdated, :refused, :empty], ", ", fn count ->
      "#{report[count]} #{count}"
    end)
  end

  defp refused(refusal),
    do: "#{inspect(refusal.key)} #{refusal.column}: #{refusal.reason}"
end
