defmodule Kith.MigrationTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.{Error, Migration}
  alias Kith.Store.Repo
  alias Kith.Test.Postgres

  defmodule OnPostgres do
    use Kith.Test.Postgres.Repo
  end

  defmodule WithoutRights do
    use Kith.Test.Postgres.Repo
  end

  @current Migration.current_version()

  # On PostgreSQL with a schema of its own for each test; the tests about that are below.
  setup context do
    case Map.get(context, :store, :sqlite) do
      :sqlite ->
        name = Module.concat(__MODULE__, "Database#{System.unique_integer([:positive])}")
        start_supervised!({Kith.SQLite, path: Path.join(tmp_dir!(), "x.db"), name: name})
        %{repo: Kith.SQLite.handle(name)}

      :postgres ->
        OnPostgres.intercept(fn _sql, run -> run.() end)
        address = Postgres.database!(Postgres.cluster(), "migration_test")
        start_supervised!({OnPostgres, address})
        %{repo: Repo.new(OnPostgres, "kith_#{System.unique_integer([:positive])}")}
    end
  end

  describe "a database" do
    test "is brought from nothing to the current version, once", %{repo: repo} do
      assert Migration.migrated_version(repo) == {:ok, 0}
      assert tables(repo) == %{}
      assert Migration.run(repo) == :ok
      assert Migration.migrated_version(repo) == {:ok, @current}

      tables = tables(repo)
      assert %{"signal_sessions" => _, "message_encryption" => _} = tables
      assert Migration.run(repo) == :ok
      assert tables(repo) == tables
    end

    test "has the same tables after each step and after one jump, up and down", %{repo: repo} do
      by_steps =
        for version <- 1..@current, into: %{} do
          assert Migration.run(repo, to: version) == :ok
          assert Migration.migrated_version(repo) == {:ok, version}
          {version, tables(repo)}
        end

      for version <- @current..1//-1 do
        assert tables(repo) == by_steps[version]
        assert Migration.revert(repo, version: version) == :ok
        assert Migration.migrated_version(repo) == {:ok, version - 1}
      end

      # The application's own.
      assert Map.keys(tables(repo)) == ["message_encryption"]
      assert Migration.run(repo) == :ok
      assert tables(repo) == by_steps[@current]
      assert Migration.revert(repo, version: 1) == :ok
      assert Migration.migrated_version(repo) == {:ok, 0}
      assert Migration.revert(repo, version: 1) == :ok
    end

    test "that is further is left as it is", %{repo: repo} do
      :ok = Migration.run(repo)
      tables = tables(repo)
      assert Migration.run(repo, to: 1) == :ok
      assert tables(repo) == tables
    end

    test "gets the same tables from the statements", %{repo: repo} do
      :ok = Migration.run(repo)
      tables = tables(repo)
      :ok = Migration.revert(repo, version: 1)
      options = [dialect: Repo.dialect(repo), prefix: Map.get(repo, :prefix)]

      for statement <- Migration.sql(options), do: Repo.execute(repo, statement, [])
      assert tables(repo) == tables
      assert Migration.migrated_version(repo) == {:ok, @current}

      for statement <- Migration.sql([from: @current, to: 1] ++ options),
          do: Repo.execute(repo, statement, [])

      assert Migration.migrated_version(repo) == {:ok, 1}
      assert Migration.run(repo) == :ok
      assert tables(repo) == tables
    end

    test "is migrated once, however many nodes do it at the same time", %{repo: repo} do
      results =
        1..8
        |> Enum.map(fn _ -> Task.async(fn -> Migration.run(repo) end) end)
        |> Task.await_many(60_000)

      assert Enum.uniq(results) == [:ok]
      assert Migration.migrated_version(repo) == {:ok, @current}
      assert [[@current]] = Repo.rows(repo, "SELECT COUNT(*) FROM kith.signal_schema", [])
    end

    test "keeps nothing of a step in which a statement fails", %{repo: repo} do
      :ok = Migration.run(repo, to: 1)
      Repo.execute(repo, "CREATE TABLE kith.signal_installation (x TEXT)", [])
      tables = tables(repo)
      assert {:error, %Error{reason: :storage}} = Migration.run(repo)
      assert Migration.migrated_version(repo) == {:ok, 1}
      assert tables(repo) == tables
    end

    test "of a newer release is left alone", %{repo: repo} do
      :ok = Migration.run(repo)
      Repo.execute(repo, "INSERT INTO kith.signal_schema (version) VALUES (99)", [])
      tables = tables(repo)

      for call <- [&Migration.run/1, &Migration.revert(&1, version: 1), &Migration.verify/1] do
        assert {:error, %Error{reason: :storage} = error} = call.(repo)
        assert Exception.message(error) =~ "version 99"
        assert Exception.message(error) =~ "start the newer release"
      end

      assert tables(repo) == tables
    end

    test "with a table of that name that is not Kith's is left alone", %{repo: repo} do
      :ok = Migration.run(repo)
      :ok = Migration.revert(repo, version: 1)
      Repo.execute(repo, "CREATE TABLE kith.signal_schema (name TEXT)", [])
      tables = tables(repo)

      for call <- [&Migration.run/1, &Migration.revert(&1, version: 1), &Migration.verify/1],
          do: assert({:error, %Error{reason: :storage}} = call.(repo))

      assert tables(repo) == tables
    end
  end

  describe "at the start of an instance" do
    test "what is missing is said, with the command that helps, and nothing is written", %{
      repo: repo
    } do
      assert {:error, %Error{reason: :storage} = error} = Migration.verify(repo)
      assert Exception.message(error) =~ "has no tables of Kith and this release needs version"
      assert Exception.message(error) =~ "Kith.Migration.run("
      assert tables(repo) == %{}

      :ok = Migration.run(repo, to: 1)
      assert {:error, error} = Migration.verify(repo)

      assert Exception.message(error) =~
               "version 1 of Kith's tables and this release needs version #{@current}"

      :ok = Migration.run(repo)
      assert Migration.verify(repo) == :ok
    end

    @tag store: :postgres
    test "the repository and its schema are named", %{repo: %{prefix: prefix} = repo} do
      assert {:error, error} = Migration.verify(repo)

      assert Exception.message(error) =~
               "the schema #{inspect(prefix)} of Kith.MigrationTest.OnPostgres has no tables"

      assert Exception.message(error) =~
               "`mix kith.gen.migration --repo Kith.MigrationTest.OnPostgres --prefix #{prefix}` and " <>
                 "`mix ecto.migrate`, or call Kith.Migration.run(Kith.MigrationTest.OnPostgres, " <>
                 "prefix: #{inspect(prefix)})"
    end

    @tag store: :postgres
    test "nothing is created", %{repo: repo} do
      test = self()

      OnPostgres.intercept(fn sql, run ->
        send(test, {:ran, sql})
        run.()
      end)

      Migration.verify(repo)
      :ok = Migration.run(repo)
      flush()
      :ok = Migration.verify(repo)
      assert [_ | _] = ran = flush()
      assert Enum.all?(ran, &(&1 =~ ~r/\ASELECT/))
    end

    @tag store: :postgres
    test "a user without rights is told by the code of PostgreSQL", %{repo: repo} do
      :ok = Migration.run(repo)
      address = Postgres.database!(Postgres.cluster(), "migration_test")
      {:ok, _} = OnPostgres.query("DROP ROLE IF EXISTS nobody")
      {:ok, _} = OnPostgres.query("CREATE ROLE nobody LOGIN")
      start_supervised!({WithoutRights, Keyword.put(address, :user, "nobody")})

      for call <- [
            &Migration.run(WithoutRights, prefix: &1),
            &Migration.verify(Repo.new(WithoutRights, &1))
          ],
          prefix <- [repo.prefix, "another"] do
        assert {:error, %Error{reason: :storage} = error} = call.(prefix)
        message = Exception.message(error)
        assert message =~ "insufficient_privilege" or message =~ "has no tables of Kith"
      end

      {:ok, _} = OnPostgres.query("DROP ROLE nobody")
    end
  end

  # test/ecto has real ones.
  if System.get_env("KITH_ECTO") != "1" do
    defp migration(state), do: apply(Ecto.Migration, :running, [state])

    describe "in a migration of Ecto" do
      @describetag store: :postgres

      test "up/1 and down/1 are commands on its repository", %{repo: repo} do
        migration(repo: OnPostgres)
        assert Migration.up(version: 1, prefix: repo.prefix) == :ok
        assert_received :executed
        assert Migration.migrated_version(repo) == {:ok, 1}
        assert Migration.up(prefix: repo.prefix) == :ok
        assert Migration.migrated_version(repo) == {:ok, @current}

        migration(repo: OnPostgres, direction: :down)
        assert Migration.down(version: 2, prefix: repo.prefix) == :ok
        assert Migration.migrated_version(repo) == {:ok, 1}
        assert Migration.down(version: 1, prefix: repo.prefix) == :ok
        assert Migration.migrated_version(repo) == {:ok, 0}
      end

      test "the prefix is that of the migration unless another is given", %{repo: repo} do
        migration(repo: OnPostgres, prefix: repo.prefix)
        assert Migration.up() == :ok
        assert Migration.migrated_version(repo) == {:ok, @current}
      end

      test "what fails is raised, and takes the migration along", %{repo: repo} do
        :ok = Migration.run(repo)
        Repo.execute(repo, "INSERT INTO kith.signal_schema (version) VALUES (99)", [])
        migration(repo: OnPostgres)
        assert_raise Error, ~r/version 99/, fn -> Migration.up(prefix: repo.prefix) end
      end

      test "change/0 is refused in the direction it would not mean" do
        migration(repo: OnPostgres, direction: :down)
        assert_raise ArgumentError, ~r/write up\/0/, fn -> Migration.up() end
        migration(repo: OnPostgres, direction: :up)
        assert_raise ArgumentError, ~r/write up\/0/, fn -> Migration.down(version: 1) end
      end
    end
  end

  describe "without a prefix" do
    @describetag store: :postgres

    test "the tables are in the schema the connection finds first", %{repo: repo} do
      assert Migration.run(OnPostgres) == :ok
      :ok = Migration.run(repo)
      assert tables(Repo.new(OnPostgres, "public")) == tables(repo)
      assert Migration.migrated_version(OnPostgres) == {:ok, @current}
      assert Migration.revert(OnPostgres, version: 1) == :ok
    end
  end

  describe "sql/1" do
    @describetag store: :sqlite

    test "differs between the databases in the type of bytes only" do
      postgres = Enum.join(Migration.sql())
      assert postgres =~ "BYTEA"
      refute postgres =~ "BLOB"

      assert String.replace(postgres, "BYTEA", "BLOB") ==
               Enum.join(Migration.sql(dialect: :sqlite))
    end

    test "from the current version does nothing" do
      assert [table] = Migration.sql(from: @current)
      assert table =~ "IF NOT EXISTS signal_schema"
    end

    test "with a prefix makes the schema and names it everywhere" do
      assert ["CREATE SCHEMA IF NOT EXISTS \"family\"" | statements] =
               Migration.sql(prefix: "family")

      assert Enum.all?(statements, &(&1 =~ ~s("family".)))
      refute Enum.any?(statements, &(&1 =~ "kith."))
    end
  end

  describe "a caller's mistake" do
    @describetag store: :sqlite

    test "is an ArgumentError", %{repo: repo} do
      for version <- [-1, @current + 1, nil, "1"] do
        assert_raise ArgumentError, ~r/expected a version/, fn ->
          Migration.run(repo, to: version)
        end

        assert_raise ArgumentError, ~r/expected a version/, fn -> Migration.sql(to: version) end
        assert_raise ArgumentError, fn -> Migration.revert(repo, version: version) end
      end

      assert_raise ArgumentError, fn -> Migration.revert(repo, version: 0) end

      for prefix <- [
            "",
            "a b",
            "Upper",
            "x\"; DROP TABLE y; --",
            String.duplicate("x", 64),
            :public
          ] do
        assert_raise ArgumentError, ~r/expected :prefix/, fn -> Migration.sql(prefix: prefix) end
      end

      for module <- [String, Nowhere, nil, "MyApp.Repo"],
          do: assert_raise(ArgumentError, ~r/repository/, fn -> Migration.run(module) end)

      assert_raise ArgumentError, fn -> Migration.run(repo, prefix: "x") end
      assert Migration.migrated_version(repo) == {:ok, 0}
    end
  end

  # Columns with their types, and indexes, by table.
  defp tables(%Kith.SQLite{} = repo) do
    rows =
      Repo.rows(repo, "SELECT tbl_name, type, name FROM sqlite_master ORDER BY type, name", [])

    for [table, type, name] <- rows, not String.starts_with?(name, "sqlite_"), reduce: %{} do
      tables ->
        columns =
          if type == "table" do
            for [_, column, type, not_null, _, key] <-
                  Repo.rows(repo, "PRAGMA table_info(#{table})", []),
                do: {column, type, not_null, key}
          end

        Map.update(tables, table, [{name, columns}], &[{name, columns} | &1])
    end
  end

  defp tables(%Repo{prefix: prefix} = repo) do
    columns =
      Repo.rows(
        repo,
        """
        SELECT table_name::TEXT, column_name::TEXT, data_type::TEXT, is_nullable::TEXT
        FROM information_schema.columns WHERE table_schema = $1 ORDER BY table_name, column_name
        """,
        [prefix]
      )

    indexes =
      Repo.rows(
        repo,
        "SELECT tablename::TEXT, REPLACE(indexdef, $1, '') FROM pg_indexes WHERE schemaname = $1 ORDER BY 1, 2",
        [prefix]
      )

    Enum.group_by(columns ++ indexes, &hd/1, &tl/1)
  end

  defp flush do
    receive do
      {:ran, sql} -> [sql | flush()]
    after
      0 -> []
    end
  end
end
