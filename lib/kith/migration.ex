defmodule Kith.Migration do
  @moduledoc """
  The tables of Kith as versioned SQL.

  The embedded database is migrated when its instance starts. With `:repo` the application owns its
  database: run `run/1` once per release, or paste `sql/1` into a migration of your own. An instance does not
  start on a database that is not migrated.

  Each version is applied in one transaction and recorded in the table `signal_schema`, so running again, or
  from two nodes, does what is missing and nothing else. The SQL is the same for both databases; only
  the name of the type for bytes differs.
  """

  alias Kith.Error
  alias Kith.Store.Repo

  @versions %{1 => Kith.Migration.V1, 2 => Kith.Migration.V2}
  @current Enum.max(Map.keys(@versions))

  @doc "The version this release needs."
  @spec current_version() :: pos_integer
  def current_version, do: @current

  @doc """
  The statements that lead from one version to another.

    * `:from` - the version the database has, default 0;
    * `:to` - the version it should get, default the current one;
    * `:dialect` - `:postgres` (default) or `:sqlite`;
    * `:prefix` - the schema of PostgreSQL the tables are in, default the one the connection finds first.

  The first statement creates `signal_schema`, the last of each version records it.
  """
  @spec sql(keyword) :: [String.t()]
  def sql(options \\ []) do
    options = Keyword.validate!(options, from: 0, to: @current, dialect: :postgres, prefix: nil)

    [
      schema_table()
      | Enum.flat_map(steps(options[:from], options[:to]), &step(&1, options[:dialect]))
    ]
    |> Enum.map(&Repo.qualify(&1, options[:prefix]))
  end

  @doc "The version a database has, 0 for none."
  @spec migrated_version(Repo.repo() | module, keyword) ::
          {:ok, non_neg_integer} | {:error, Error.t()}
  def migrated_version(repo, options \\ []) do
    repo = Repo.new(repo, options[:prefix])

    Repo.transaction(repo, fn ->
      Repo.execute(repo, schema_table(), [])
      {:ok, recorded(repo)}
    end)
  end

  @doc "Brings a database to the current version."
  @spec run(Repo.repo() | module, keyword) :: :ok | {:error, Error.t()}
  def run(repo, options \\ []) do
    repo = Repo.new(repo, options[:prefix])

    with {:ok, version} <- migrated_version(repo), :ok <- known(version) do
      Enum.reduce_while(steps(version, @current), :ok, fn step, :ok ->
        case apply_step(repo, step) do
          {:ok, _} -> {:cont, :ok}
          {:error, error} -> {:halt, {:error, error}}
        end
      end)
    end
  end

  @doc false
  # At the start of an instance on a repository.
  def verify(repo) do
    with {:ok, version} <- migrated_version(repo), :ok <- known(version) do
      if version == @current,
        do: :ok,
        else:
          {:error,
           Error.new(
             :storage,
             "#{named(repo)} has version #{version} of Kith's tables and this release needs #{@current}; " <>
               "run Kith.Migration.run(#{named(repo)}) in a migration"
           )}
    end
  end

  defp named(%Repo{module: module}), do: inspect(module)
  defp named(database), do: inspect(database)

  defp known(version) when version <= @current, do: :ok

  defp known(version),
    do:
      {:error,
       Error.new(
         :storage,
         "the database has version #{version} of Kith's tables and this release knows #{@current}; " <>
           "start the newer release"
       )}

  defp apply_step(repo, version) do
    Repo.transaction(repo, fn ->
      # Another node may have been faster.
      if recorded(repo) < version,
        do: Enum.each(step(version, Repo.dialect(repo)), &Repo.execute(repo, &1, []))

      {:ok, version}
    end)
  end

  defp recorded(repo) do
    [[version]] = Repo.rows(repo, "SELECT COALESCE(MAX(version), 0) FROM kith.signal_schema", [])
    version
  end

  defp steps(from, to), do: Enum.to_list((from + 1)..to//1)

  defp step(version, dialect) do
    Map.fetch!(@versions, version).up(bytes(dialect)) ++
      ["INSERT INTO kith.signal_schema (version) VALUES (#{version})"]
  end

  defp schema_table,
    do: "CREATE TABLE IF NOT EXISTS kith.signal_schema (version BIGINT NOT NULL PRIMARY KEY)"

  defp bytes(:sqlite), do: "BLOB"
  defp bytes(:postgres), do: "BYTEA"
end
