defmodule Kith.PostgresRepoTest do
  # What the tests on PostgreSQL stand on: a repository that behaves as Ecto's do.
  use ExUnit.Case, async: false
  @moduletag :postgres

  alias Kith.Test.Postgres

  defmodule Repo do
    use Kith.Test.Postgres.Repo
  end

  setup_all do
    {:ok, address: Postgres.database!(Postgres.cluster(), "postgres_repo_test")}
  end

  setup %{address: address} do
    start_supervised!({Repo, address ++ [pool_size: 2, queue_timeout: 500]})
    {:ok, _} = Repo.query("DROP TABLE IF EXISTS t")
    {:ok, _} = Repo.query("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, b BYTEA, c BOOLEAN)")
    :ok
  end

  defp count, do: elem(Repo.query("SELECT COUNT(*) FROM t"), 1).rows

  # A pool may hold connections to the server of before.
  defp eventually_count do
    with {:error, _} <- Repo.query("SELECT 1"), do: Process.sleep(20)

    case Repo.query("SELECT COUNT(*) FROM t") do
      {:ok, %{rows: rows}} -> rows
      {:error, _} -> eventually_count()
    end
  end

  test "values come back as they were given" do
    rows = [
      [1, "Zoë 🦊 '\"\\%", <<0, 255, 0>>, true],
      [-9_223_372_036_854_775_808, "", "", false],
      [9_223_372_036_854_775_807, nil, nil, nil]
    ]

    for row <- rows do
      assert {:ok, %{rows: nil, num_rows: 1}} =
               Repo.query("INSERT INTO t (id, a, b, c) VALUES ($1, $2, $3, $4)", row)

      assert {:ok, %{rows: [^row], num_rows: 1}} =
               Repo.query("SELECT id, a, b, c FROM t WHERE id = $1", [hd(row)])
    end

    assert {:ok, %{rows: [], num_rows: 0}} = Repo.query("SELECT id FROM t WHERE id = $1", [7])
    assert {:ok, %{num_rows: 3}} = Repo.query("UPDATE t SET a = $1", ["x"])
    assert {:ok, %{rows: [[nil]]}} = Repo.query("SELECT NULL::BIGINT")

    assert {:ok, %{num_rows: 2, rows: [_, _]}} =
             Repo.query("DELETE FROM t WHERE id <> $1 RETURNING id", [1])

    assert_raise DBConnection.EncodeError, fn ->
      Repo.query("SELECT id FROM t WHERE id = $1", ["1"])
    end

    assert_raise DBConnection.EncodeError, fn ->
      Repo.query("SELECT id FROM t WHERE a = $1", [1])
    end
  end

  test "hundreds of different statements go over one connection" do
    Repo.transaction(fn ->
      for n <- 1..700 do
        sql = "SELECT $1::BIGINT + #{rem(n, 350)}"
        assert {:ok, %{rows: [[sum]]}} = Repo.query(sql, [1])
        assert sum == 1 + rem(n, 350)
      end
    end)
  end

  test "a refused statement is an error with the name of its code, and the connection goes on" do
    {:ok, _} = Repo.query("INSERT INTO t (id) VALUES ($1)", [1])

    for {code, sql, params} <- [
          {:unique_violation, "INSERT INTO t (id) VALUES ($1)", [1]},
          {:undefined_table, "SELECT 1 FROM nowhere WHERE id = $1", [1]},
          {:syntax_error, "SELEC", []},
          {:character_not_in_repertoire, "INSERT INTO t (id, a) VALUES (2, $1)", ["a\0b"]}
        ],
        _ <- 1..2 do
      assert {:error, %Postgrex.Error{postgres: %{code: ^code}}} = Repo.query(sql, params)
    end

    assert count() == [[1]]
  end

  test "a transaction is kept, rolled back, or undone by what was raised in it" do
    assert {:ok, :done} =
             Repo.transaction(fn ->
               assert Repo.in_transaction?()
               Repo.query("INSERT INTO t (id) VALUES (1)")
               :done
             end)

    refute Repo.in_transaction?()

    assert {:error, :no} =
             Repo.transaction(fn ->
               Repo.query("INSERT INTO t (id) VALUES (2)")
               Repo.rollback(:no)
             end)

    assert_raise RuntimeError, fn ->
      Repo.transaction(fn ->
        Repo.query("INSERT INTO t (id) VALUES (3)")
        raise "x"
      end)
    end

    assert count() == [[1]]
  end

  test "a transaction in which a statement failed cannot be kept" do
    assert {:error, :rollback} =
             Repo.transaction(fn ->
               {:ok, _} = Repo.query("INSERT INTO t (id) VALUES (1)")
               {:error, _} = Repo.query("INSERT INTO t (id) VALUES (1)")

               assert {:error, %Postgrex.Error{postgres: %{code: :in_failed_sql_transaction}}} =
                        Repo.query("SELECT 1")
             end)

    assert count() == [[0]]
  end

  test "a transaction inside another joins it, and takes it along when it is rolled back" do
    assert {:ok, {:ok, :inner}} =
             Repo.transaction(fn ->
               Repo.transaction(fn ->
                 Repo.query("INSERT INTO t (id) VALUES (1)")
                 :inner
               end)
             end)

    assert {:error, :rollback} =
             Repo.transaction(fn ->
               Repo.query("INSERT INTO t (id) VALUES (2)")
               assert {:error, :inner} = Repo.transaction(fn -> Repo.rollback(:inner) end)
               assert {:error, %DBConnection.ConnectionError{}} = Repo.query("SELECT 1")
             end)

    assert count() == [[1]]
  end

  test "a connection goes back when its process dies, and nothing of it is kept" do
    test = self()

    pid =
      spawn(fn ->
        Repo.transaction(fn ->
          Repo.query("INSERT INTO t (id) VALUES (1)")
          send(test, :inserted)
          Process.sleep(:infinity)
        end)
      end)

    assert_receive :inserted
    Process.exit(pid, :kill)
    # Waits for the lock on the key that the other connection gives up.
    assert {:ok, %{num_rows: 1}} = Repo.query("INSERT INTO t (id) VALUES (1)")
  end

  test "a pool that is empty is an error after a while" do
    assert {:ok, {:ok, {:error, %DBConnection.ConnectionError{message: message}}}} =
             Repo.transaction(fn ->
               task =
                 Task.async(fn ->
                   Repo.transaction(fn ->
                     Task.await(Task.async(fn -> Repo.query("SELECT 1") end))
                   end)
                 end)

               Task.await(task)
             end)

    assert message =~ "not available"
  end

  test "a connection that is lost is an error, and the next statement has another" do
    kill = "SELECT pg_terminate_backend(pg_backend_pid())"
    assert {:error, %Postgrex.Error{postgres: %{code: :admin_shutdown}}} = Repo.query(kill)
    assert count() == [[0]]

    assert {:error, :rollback} =
             Repo.transaction(fn ->
               {:error, _} = Repo.query(kill)
               assert {:error, %DBConnection.ConnectionError{}} = Repo.query("SELECT 1")
             end)

    assert count() == [[0]]
  end

  test "a server that is killed takes no commit with it, and its folder goes with it" do
    cluster = Postgres.start!()
    stop_supervised!(Repo)
    start_supervised!({Repo, Postgres.address(cluster)})
    {:ok, _} = Repo.query("CREATE TABLE t (id BIGINT PRIMARY KEY)")
    {:ok, _} = Repo.query("INSERT INTO t (id) VALUES (1)")
    Postgres.kill_server!(cluster)
    # In the words of the server or of the socket.
    assert {:error, _} = Repo.query("SELECT 1")
    Postgres.start_server!(cluster)
    assert eventually_count() == [[1]]
    Postgres.stop_server!(cluster)
    Postgres.start_server!(cluster)
    assert eventually_count() == [[1]]
    Postgres.remove!(cluster)
    refute File.exists?(cluster.directory)
  end
end
