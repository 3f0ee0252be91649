defmodule Kith.Migration do
  @moduledoc """
  The tables of Kith as versioned SQL.

  The embedded database is migrated when its instance starts. With `:repo` the application owns its database, and an
  instance does not start on one that is not migrated. `mix kith.gen.migration` writes the migration for Ecto:

      defmodule MyApp.Repo.Migrations.KithV3 do
        use Ecto.Migration

        def up, do: Kith.Migration.up(version: 3)
        def down, do: Kith.Migration.down(version: 1)
      end

  Without Ecto, call `run/2` once per release, or feed `sql/1` to what migrates the database.

  Each version is applied in one transaction and recorded in the table `signal_schema`, so running again, or from two
  nodes at once, does what is missing and nothing else. The SQL is the same for both databases; only the name of the
  type for bytes differs.
  """

  alias Kith.Error
  alias Kith.Store.Repo

  @compile {:no_warn_undefined, Ecto.Migration}

  @versions %{1 => Kith.Migration.V1, 2 => Kith.Migration.V2, 3 => Kith.Migration.V3}
  @current Enum.max(Map.keys(@versions))

  # Any number that is the same on all nodes: "kith" in ASCII.
  @lock 0x6B697468

  @doc "The version this release needs."
  @spec current_version() :: pos_integer
  def current_version, do: @current

  @doc """
  The statements that lead from one version to another, up or down.

    * `:from` - the version the database has, default 0;
    * `:to` - the version it should get, default the current one;
    * `:dialect` - `:postgres` (default) or `:sqlite`;
    * `:prefix` - the schema of PostgreSQL the tables are in, made when it is missing. Default: the one the connection
      finds first.

  The last statement of each version records it.
  """
  @spec sql(keyword) :: [String.t()]
  def sql(options \\ []) do
    options = Keyword.validate!(options, from: 0, to: @current, dialect: :postgres, prefix: nil)
    {from, to, dialect} = {options[:from], options[:to], options[:dialect]}
    Enum.each([from, to], &version!/1)
    with {:error, message} <- Repo.prefix(options[:prefix]), do: raise(ArgumentError, message)
    repo = %Repo{module: nil, prefix: options[:prefix]}

    schema = if repo.prefix, do: [create_schema(repo)], else: []
    steps = if from <= to, do: ups(from, to, dialect), else: downs(from, to, dialect)
    first = if from <= to, do: schema ++ [create_versions()], else: []
    Enum.map(first ++ Enum.concat(steps), &Repo.qualify(&1, repo.prefix))
  end

  @typedoc "An embedded database, or a repository on PostgreSQL; Kith itself also gives the latter with its schema."
  @type database :: Kith.SQLite.t() | module | struct

  @doc """
  The version a database has, 0 for none.

  Takes `:prefix`, as `sql/1` does. Nothing is written.
  """
  @spec migrated_version(database, keyword) ::
          {:ok, non_neg_integer} | {:error, Error.t()}
  def migrated_version(repo, options \\ []) do
    repo = repo(repo, options)
    Repo.transaction(repo, fn -> {:ok, recorded(repo)} end)
  end

  @doc """
  Brings a database to a version, from whatever version it has.

  Takes `:prefix`, as `sql/1` does, and `:to`, default the current version. A database that is already there, or
  further, is left as it is.
  """
  @spec run(database, keyword) :: :ok | {:error, Error.t()}
  def run(repo, options \\ []) do
    options = Keyword.validate!(options, prefix: nil, to: @current)
    to = version!(options[:to])
    repo = repo(repo, options)

    step(repo, fn
      version when version < to -> version + 1
      _version -> nil
    end)
  end

  @doc """
  Undoes a version and those after it, so that the database has the version before.

  `revert(MyApp.Repo, version: 1)` removes all tables of Kith with what is in them. `message_encryption`, which is the
  application's, stays. Takes `:prefix`, as `sql/1` does.
  """
  @spec revert(database, keyword) :: :ok | {:error, Error.t()}
  def revert(repo, options) do
    options = Keyword.validate!(options, [:version, prefix: nil])
    below = version!(options[:version], 1)
    repo = repo(repo, options)

    step(repo, fn
      version when version >= below -> version - 1
      _version -> nil
    end)
  end

  @doc """
  In an Ecto migration, `run/2` on its repository.

    * `:version` - the version to migrate to, default the current one. A migration says it, so that it means the same
      with a later release;
    * `:prefix` - the schema, default that of the migration (`mix ecto.migrate --prefix`).
  """
  @spec up(keyword) :: :ok
  def up(options \\ []) do
    options = Keyword.validate!(options, version: @current, prefix: nil)
    in_migration(:up, options, &run(&1, to: options[:version], prefix: &2))
  end

  @doc """
  In an Ecto migration, `revert/2` on its repository.

  `down(version: 2)` undoes version 2 and those after it, `down(version: 1)` all. Takes `:prefix`, as `up/1` does.
  """
  @spec down(keyword) :: :ok
  def down(options) do
    options = Keyword.validate!(options, [:version, prefix: nil])
    in_migration(:down, options, &revert(&1, version: options[:version], prefix: &2))
  end

  # A command of the migration among its others, in its transaction.
  defp in_migration(direction, options, fun) do
    if Ecto.Migration.direction() != direction do
      raise ArgumentError,
            "a migration with change/0 cannot undo this; write up/0 with Kith.Migration.up/1 and " <>
              "down/0 with Kith.Migration.down/1"
    end

    {repo, prefix} = {Ecto.Migration.repo(), options[:prefix] || Ecto.Migration.prefix()}

    Ecto.Migration.execute(fn ->
      with {:error, error} <- fun.(repo, prefix), do: raise(error)
    end)

    :ok
  end

  @doc false
  # At the start of an instance on a repository.
  def verify(repo) do
    case migrated_version(repo) do
      {:ok, @current} -> :ok
      {:ok, version} -> {:error, Error.new(:storage, outdated(repo, version))}
      {:error, error} -> {:error, error}
    end
  end

  defp outdated(repo, version) do
    "#{place(repo)} has #{found(version)} and this release needs version #{@current}; run " <>
      "`mix kith.gen.migration#{flags(repo)}` and `mix ecto.migrate`, or call " <>
      "Kith.Migration.run(#{arguments(repo)})"
  end

  defp found(0), do: "no tables of Kith"
  defp found(version), do: "version #{version} of Kith's tables"

  defp place(%Repo{module: module, prefix: nil}), do: inspect(module)

  defp place(%Repo{module: module, prefix: prefix}),
    do: "the schema #{inspect(prefix)} of #{inspect(module)}"

  defp place(database), do: inspect(database)

  defp flags(%Repo{module: module, prefix: nil}), do: " --repo #{inspect(module)}"

  defp flags(%Repo{prefix: prefix} = repo),
    do: "#{flags(%{repo | prefix: nil})} --prefix #{prefix}"

  defp flags(_database), do: ""

  defp arguments(%Repo{module: module, prefix: nil}), do: inspect(module)

  defp arguments(%Repo{module: module, prefix: prefix}),
    do: "#{inspect(module)}, prefix: #{inspect(prefix)}"

  defp arguments(database), do: inspect(database)

  defp repo(repo, options), do: Repo.new(repo, options[:prefix])

  defp version!(version, lowest \\ 0) do
    if is_integer(version) and version in lowest..@current,
      do: version,
      else:
        raise(
          ArgumentError,
          "expected a version of Kith's tables from #{lowest} to #{@current}, got: #{inspect(version)}"
        )
  end

  # One version after the other, each in one transaction, until `next` has none any more.
  defp step(repo, next) do
    result =
      Repo.transaction(repo, fn ->
        # Another node may be at it: it is waited for.
        if Repo.dialect(repo) == :postgres,
          do: Repo.rows(repo, "SELECT pg_advisory_xact_lock(#{@lock})", [])

        version = recorded(repo)

        with to when to != nil <- next.(version) do
          for statement <- statements(repo, version, to), do: Repo.execute(repo, statement, [])
          {:ok, to}
        else
          nil -> {:ok, nil}
        end
      end)

    case result do
      {:ok, nil} -> :ok
      {:ok, _version} -> step(repo, next)
      {:error, error} -> {:error, error}
    end
  end

  # To make a schema that is there already takes a right of its own, too.
  defp statements(repo, 0, 1) do
    schema = if schema_exists?(repo), do: [], else: [create_schema(repo)]
    schema ++ [create_versions() | up_to(1, Repo.dialect(repo))]
  end

  defp statements(repo, from, to) when from < to, do: up_to(to, Repo.dialect(repo))
  defp statements(repo, from, _to), do: down_from(from, Repo.dialect(repo))

  defp ups(from, to, dialect), do: for(version <- (from + 1)..to//1, do: up_to(version, dialect))

  defp downs(from, to, dialect),
    do: for(version <- from..(to + 1)//-1, do: down_from(version, dialect))

  defp up_to(version, dialect) do
    Map.fetch!(@versions, version).up(bytes(dialect)) ++
      ["INSERT INTO kith.signal_schema (version) VALUES (#{version})"]
  end

  defp down_from(1, _dialect),
    do: Map.fetch!(@versions, 1).down() ++ ["DROP TABLE kith.signal_schema"]

  defp down_from(version, _dialect),
    do:
      Map.fetch!(@versions, version).down() ++
        ["DELETE FROM kith.signal_schema WHERE version = #{version}"]

  defp create_schema(%Repo{prefix: prefix}), do: ~s(CREATE SCHEMA IF NOT EXISTS "#{prefix}")

  defp create_versions,
    do: "CREATE TABLE IF NOT EXISTS kith.signal_schema (version BIGINT NOT NULL PRIMARY KEY)"

  defp schema_exists?(%Repo{prefix: prefix} = repo) when prefix != nil do
    sql = "SELECT 1 FROM pg_namespace WHERE nspname = $1"
    Repo.rows(repo, sql, [prefix]) != []
  end

  defp schema_exists?(_repo), do: true

  defp recorded(repo) do
    if versions_exist?(repo) do
      [[version]] =
        Repo.rows(repo, "SELECT COALESCE(MAX(version), 0) FROM kith.signal_schema", [])

      if version > @current, do: raise(Error.new(:storage, newer(repo, version)))
      version
    else
      0
    end
  end

  defp newer(repo, version),
    do:
      "#{place(repo)} has version #{version} of Kith's tables and this release knows #{@current}; " <>
        "start the newer release"

  defp versions_exist?(repo) do
    {sql, name} =
      case Repo.dialect(repo) do
        :postgres ->
          {"SELECT 1 WHERE to_regclass($1) IS NOT NULL",
           Repo.qualify("kith.signal_schema", repo.prefix)}

        :sqlite ->
          {"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1", "signal_schema"}
      end

    Repo.rows(repo, sql, [name]) != []
  end

  defp bytes(:sqlite), do: "BLOB"
  defp bytes(:postgres), do: "BYTEA"
end
