defmodule Kith.MigrationTest do
  use Kith.Case, async: true

  alias Kith.Migration

  setup do
    start_supervised!(
      {Kith.SQLite, path: Path.join(tmp_dir!(), "x.db"), name: __MODULE__.Database}
    )

    %{repo: Kith.SQLite.handle(__MODULE__.Database)}
  end

  test "brings an empty database to the current version, once", %{repo: repo} do
    assert Migration.migrated_version(repo) == {:ok, 0}
    assert Migration.run(repo) == :ok
    assert Migration.migrated_version(repo) == {:ok, Migration.current_version()}

    tables = tables(repo)
    assert "signal_sessions" in tables and "message_encryption" in tables
    assert Migration.run(repo) == :ok
    assert tables(repo) == tables
  end

  test "as statements leads to the same tables", %{repo: repo} do
    for statement <- Migration.sql(dialect: :sqlite),
        do: {:ok, _} = Kith.SQLite.query(repo, statement)

    assert Migration.migrated_version(repo) == {:ok, Migration.current_version()}
    assert Migration.run(repo) == :ok
  end

  test "differs between the databases in the type of bytes only" do
    postgres = Enum.join(Migration.sql())
    assert postgres =~ "BYTEA"
    refute postgres =~ "BLOB"
    assert String.replace(postgres, "BYTEA", "BLOB") == Enum.join(Migration.sql(dialect: :sqlite))
  end

  test "from the current version does nothing" do
    assert [table] = Migration.sql(from: Migration.current_version())
    assert table =~ "IF NOT EXISTS signal_schema"
  end

  test "stops at a database of a newer release", %{repo: repo} do
    :ok = Migration.run(repo)
    {:ok, _} = Kith.SQLite.query(repo, "INSERT INTO signal_schema (version) VALUES (99)")
    assert {:error, %Kith.Error{reason: :storage} = error} = Migration.run(repo)
    assert Exception.message(error) =~ "version 99"
  end

  test "of a repository is only looked at when an instance starts", %{repo: repo} do
    assert {:error, error} = Migration.verify(repo)
    assert Exception.message(error) =~ "Kith.Migration.run("
    :ok = Migration.run(repo)
    assert Migration.verify(repo) == :ok
  end

  test "leaves nothing behind when a statement fails", %{repo: repo} do
    {:ok, _} = Kith.SQLite.query(repo, "CREATE TABLE signal_base_keys (x TEXT)")
    assert {:error, %Kith.Error{reason: :storage}} = Migration.run(repo)
    assert Migration.migrated_version(repo) == {:ok, 0}
    assert Enum.sort(tables(repo)) == ["signal_base_keys", "signal_schema"]
  end

  defp tables(repo) do
    {:ok, %{rows: rows}} =
      Kith.SQLite.query(repo, "SELECT name FROM sqlite_master WHERE type = 'table'")

    List.flatten(rows)
  end
end
