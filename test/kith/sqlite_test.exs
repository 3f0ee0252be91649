defmodule Kith.SQLiteTest do
  use ExUnit.Case, async: true

  alias Kith.SQLite
  alias Kith.SQLite.Error

  # A query that would run for hours.
  @endless "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

  setup context do
    if context[:stopped] do
      :ok
    else
      path = if context[:tmp_dir], do: Path.join(context.tmp_dir, "kith.db"), else: :memory
      pid = start_supervised!({SQLite, path: path})
      db = SQLite.handle(pid)
      :ok = SQLite.execute(db, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body BLOB)")
      %{db: db, pid: pid, path: path}
    end
  end

  defp insert(db, id), do: SQLite.query(db, "INSERT INTO notes (id) VALUES ($1)", [id])

  defp ids(db) do
    {:ok, %{rows: rows}} = SQLite.query(db, "SELECT id FROM notes ORDER BY id")
    List.flatten(rows)
  end

  # A process that is in a transaction and waits there until told to go on.
  defp hold(db, opts \\ []) do
    test = self()

    pid =
      spawn(fn ->
        result =
          SQLite.transaction(
            db,
            fn ->
              {:ok, _} = insert(db, 1)
              send(test, :holding)

              receive do
                :go_on -> insert(db, 2)
              end
            end,
            opts
          )

        send(test, {:held, result})
      end)

    assert_receive :holding
    pid
  end

  defp restart(name, pid) do
    Process.exit(pid, :kill)
    await_other(name, pid)
  end

  defp await_other(name, pid) do
    if GenServer.whereis(name) in [nil, pid] do
      Process.sleep(1)
      await_other(name, pid)
    end
  end

  defp wait_for_queue(pid, length) do
    if :queue.len(:sys.get_state(pid).waiting) != length do
      Process.sleep(1)
      wait_for_queue(pid, length)
    end
  end

  describe "start_link/1" do
    @describetag :stopped

    test "options are validated with what was expected" do
      for {opts, message} <- [
            {[], "expected :path to be a file or :memory, got: nil"},
            {[path: 7], "expected :path to be a file or :memory, got: 7"},
            {[path: :memory, synchronous: :off],
             "expected :synchronous to be :full or :normal, got: :off"},
            {[path: :memory, busy_timeout: -1],
             "expected :busy_timeout to be a number of milliseconds, got: -1"}
          ] do
        assert_raise ArgumentError, message, fn -> SQLite.start_link(opts) end
      end

      assert_raise ArgumentError, ~r/unknown keys \[:paht\]/, fn ->
        SQLite.start_link(paht: "x", path: :memory)
      end
    end

    @tag :tmp_dir
    test "a file that cannot be opened is an error", %{tmp_dir: directory} do
      Process.flag(:trap_exit, true)
      missing = Path.join(directory, "missing/kith.db")
      assert {:error, %Error{kind: :invalid, message: message}} = SQLite.start_link(path: missing)
      assert message =~ "the database file cannot be opened"

      text = Path.join(directory, "text.db")
      File.write!(text, String.duplicate("not a database", 200))
      assert {:error, %Error{kind: :invalid, message: message}} = SQLite.start_link(path: text)
      assert message == "the file is not a database, or is damaged"
    end

    @tag :tmp_dir
    test "rows outlive the process", %{tmp_dir: directory} do
      path = Path.join(directory, "kith.db")
      pid = start_supervised!({SQLite, path: path}, id: :first)
      :ok = SQLite.execute(SQLite.handle(pid), "CREATE TABLE t (a); INSERT INTO t VALUES (7)")
      :ok = stop_supervised(:first)
      assert File.ls!(directory) == ["kith.db"]

      pid = start_supervised!({SQLite, path: path}, id: :second)
      assert {:ok, %{rows: [[7]]}} = SQLite.query(SQLite.handle(pid), "SELECT a FROM t")
    end

    @tag :tmp_dir
    test "a handle by name outlives a restart", %{tmp_dir: directory} do
      name = :"#{__MODULE__}.Restarted"
      pid = start_supervised!({SQLite, path: Path.join(directory, "kith.db"), name: name})
      db = SQLite.handle(name)
      :ok = SQLite.execute(db, "CREATE TABLE t (a)")

      Process.exit(pid, :kill)
      wait_until(fn -> GenServer.whereis(name) not in [nil, pid] end)
      assert {:ok, %{rows: []}} = SQLite.query(db, "SELECT a FROM t")
    end

    test "several databases run beside one another" do
      one = SQLite.handle(start_supervised!({SQLite, path: :memory, name: :"#{__MODULE__}.One"}))
      two = SQLite.handle(start_supervised!({SQLite, path: :memory, name: :"#{__MODULE__}.Two"}))
      :ok = SQLite.execute(one, "CREATE TABLE t (a)")
      assert {:error, %Error{kind: :sql}} = SQLite.query(two, "SELECT * FROM t")
    end

    test "a stopped database is an error" do
      pid = start_supervised!({SQLite, path: :memory})
      :ok = stop_supervised({SQLite, nil})

      for server <- [pid, :"#{__MODULE__}.NeverStarted"], db = SQLite.handle(server) do
        assert {:error, %Error{kind: :closed}} = SQLite.query(db, "SELECT 1")
        assert {:error, %Error{kind: :closed}} = SQLite.transaction(db, fn -> flunk("ran") end)
        refute SQLite.in_transaction?(db)
      end
    end
  end

  describe "query/4" do
    test "values come back as they went in", %{db: db} do
      values = [nil, 0, 9_223_372_036_854_775_807, -9_223_372_036_854_775_808, 1.5, "zażółć", ""]

      for value <- values do
        assert {:ok, %{rows: [[^value]], num_rows: 1}} = SQLite.query(db, "SELECT $1", [value])
      end

      assert {:ok, %{rows: [[<<0, 255>>, 1, 0]]}} =
               SQLite.query(db, "SELECT $1, $2, $3", [{:blob, <<0, 255>>}, true, false])
    end

    test "parameters bind by number", %{db: db} do
      assert {:ok, %{rows: [["b", "a", "b"]], columns: ["x", "y", "z"]}} =
               SQLite.query(db, "SELECT $2 AS x, $1 AS y, $2 AS z", ["a", "b"])
    end

    test "values that SQL has no place for are errors that name the parameter", %{db: db} do
      for value <- [9_223_372_036_854_775_808, <<255>>, :atom, [1], %{}, {:blob, 1}, <<1::1>>] do
        assert {:error, %Error{kind: :parameter, message: message}} =
                 SQLite.query(db, "SELECT $1, $2", [1, value])

        assert message =~ "expected parameter $2 to be nil, a boolean"
      end

      assert {:error, %Error{kind: :parameter, message: "expected 2 parameters, got: 1"}} =
               SQLite.query(db, "SELECT $1, $2", [1])
    end

    test "changes are counted", %{db: db} do
      assert {:ok, %{rows: nil, num_rows: 1, columns: []}} = insert(db, 1)
      assert {:ok, %{num_rows: 1}} = insert(db, 2)
      assert {:ok, %{num_rows: 2}} = SQLite.query(db, "DELETE FROM notes")
      assert {:ok, %{num_rows: 0}} = SQLite.query(db, "DELETE FROM notes")
    end

    test "what is wrong is named without values", %{db: db} do
      {:ok, _} = insert(db, 4711)

      assert {:error, %Error{kind: :constraint} = error} = insert(db, 4711)
      assert Exception.message(error) == "UNIQUE constraint failed: notes.id"

      assert {:error, %Error{kind: :sql, message: "no such table: missing"}} =
               SQLite.query(db, "SELECT * FROM missing")

      assert {:error, %Error{kind: :transaction}} = SQLite.query(db, "BEGIN")
      assert {:ok, %{num_rows: 1}} = insert(db, 1)
    end

    test "a statement that runs too long is stopped", %{db: db} do
      {microseconds, answer} = :timer.tc(fn -> SQLite.query(db, @endless, [], timeout: 50) end)

      assert {:error, %Error{kind: :interrupted}} = answer
      assert microseconds < 5_000_000
      assert {:ok, %{rows: [[1]]}} = SQLite.query(db, "SELECT 1")
    end

    test "arguments of the wrong kind raise and leave the database free", %{db: db} do
      assert_raise ArgumentError, fn -> SQLite.query(db, :select, []) end
      assert_raise ArgumentError, fn -> SQLite.query(db, "SELECT 1", %{}) end
      assert {:ok, _} = SQLite.query(db, "SELECT 1")
    end
  end

  describe "transaction/3" do
    test "what the function returns is the result, and its rows stay", %{db: db} do
      assert {:ok, :done} =
               SQLite.transaction(db, fn ->
                 assert SQLite.in_transaction?(db)
                 {:ok, _} = insert(db, 1)
                 {:ok, _} = insert(db, 2)
                 :done
               end)

      refute SQLite.in_transaction?(db)
      assert ids(db) == [1, 2]
    end

    test "the function may take the handle", %{db: db} do
      assert {:ok, {:ok, %{num_rows: 1}}} = SQLite.transaction(db, &insert(&1, 1))
    end

    test "an empty transaction never reaches the database", %{db: db, pid: pid} do
      state = :sys.get_state(pid)
      assert {:ok, 7} = SQLite.transaction(db, fn -> 7 end)
      assert {:error, :no} = SQLite.transaction(db, fn -> SQLite.rollback(db, :no) end)
      assert %{state | holder: nil} == %{:sys.get_state(pid) | holder: nil}
      assert :sys.get_state(pid).holder == nil
    end

    test "rollback/2 gives its reason and leaves nothing", %{db: db} do
      assert {:error, :changed_my_mind} =
               SQLite.transaction(db, fn ->
                 {:ok, _} = insert(db, 1)
                 SQLite.rollback(db, :changed_my_mind)
               end)

      assert ids(db) == []
    end

    test "rollback/2 outside a transaction is the caller's mistake", %{db: db} do
      assert_raise ArgumentError, fn -> SQLite.rollback(db, :reason) end
    end

    test "what is raised, thrown or exited with rolls back and goes on", %{db: db} do
      for {leave, kind, value} <- [
            {fn -> raise "stop" end, :error, %RuntimeError{message: "stop"}},
            {fn -> throw(:ball) end, :throw, :ball},
            {fn -> exit(:gone) end, :exit, :gone}
          ] do
        caught =
          try do
            SQLite.transaction(db, fn ->
              {:ok, _} = insert(db, 1)
              leave.()
            end)
          catch
            kind, value -> {kind, value}
          end

        assert caught == {kind, value}
        assert ids(db) == []
        refute SQLite.in_transaction?(db)
      end
    end

    test "the stacktrace is that of the function", %{db: db} do
      try do
        SQLite.transaction(db, fn -> raise "stop" end)
      rescue
        RuntimeError -> assert [{__MODULE__, _, _, _} | _] = __STACKTRACE__
      end
    end

    test "after a failed statement it can only be rolled back", %{db: db} do
      assert {:error, :rollback} =
               SQLite.transaction(db, fn ->
                 {:ok, _} = insert(db, 1)
                 {:error, %Error{kind: :constraint}} = insert(db, 1)
                 assert {:error, %Error{kind: :transaction}} = insert(db, 2)
                 :done
               end)

      assert ids(db) == []
    end

    test "a nested transaction joins", %{db: db} do
      assert {:ok, {:ok, :inner}} =
               SQLite.transaction(db, fn ->
                 {:ok, _} = insert(db, 1)

                 SQLite.transaction(db, fn ->
                   {:ok, _} = insert(db, 2)
                   :inner
                 end)
               end)

      assert ids(db) == [1, 2]
    end

    test "a nested rollback rolls back the whole", %{db: db} do
      assert {:error, :rollback} =
               SQLite.transaction(db, fn ->
                 {:ok, _} = insert(db, 1)
                 assert {:error, :inner} = SQLite.transaction(db, &SQLite.rollback(&1, :inner))
                 assert {:error, :rollback} = SQLite.transaction(db, fn -> flunk("ran") end)
                 :outer
               end)

      assert ids(db) == []
    end

    test "a nested exception that is rescued rolls back the whole", %{db: db} do
      assert {:error, :rollback} =
               SQLite.transaction(db, fn ->
                 {:ok, _} = insert(db, 1)

                 try do
                   SQLite.transaction(db, fn -> raise "inner" end)
                 rescue
                   RuntimeError -> :rescued
                 end
               end)

      assert ids(db) == []
    end

    test "a name and a pid are the same database" do
      name = :"#{__MODULE__}.Joined"
      pid = start_supervised!({SQLite, path: :memory, name: name}, id: :joined)

      assert {:ok, {:ok, true}} =
               SQLite.transaction(SQLite.handle(name), fn ->
                 SQLite.transaction(SQLite.handle(pid), fn ->
                   SQLite.in_transaction?(SQLite.handle(name))
                 end)
               end)
    end

    test "transactions of two databases are apart", %{db: db} do
      other = SQLite.handle(start_supervised!({SQLite, path: :memory}, id: :other))
      :ok = SQLite.execute(other, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body BLOB)")

      assert {:error, :one} =
               SQLite.transaction(db, fn ->
                 {:ok, _} = insert(db, 1)
                 assert {:ok, {:ok, _}} = SQLite.transaction(other, &insert(&1, 2))
                 SQLite.rollback(db, :one)
               end)

      assert {ids(db), ids(other)} == {[], [2]}
    end

    test "SQL does not end it", %{db: db} do
      assert {:error, :rollback} =
               SQLite.transaction(db, fn ->
                 {:ok, _} = insert(db, 1)
                 assert {:error, %Error{kind: :transaction}} = SQLite.query(db, "COMMIT")
               end)

      assert ids(db) == []
    end

    test "execute/3 belongs to it, checkpoint/2 does not", %{db: db} do
      assert {:error, :no} =
               SQLite.transaction(db, fn ->
                 :ok = SQLite.execute(db, "CREATE TABLE t (a); INSERT INTO t VALUES (1)")
                 SQLite.rollback(db, :no)
               end)

      assert {:error, %Error{kind: :sql}} = SQLite.query(db, "SELECT * FROM t")

      assert {:error, :rollback} =
               SQLite.transaction(db, fn ->
                 assert {:error, %Error{kind: :transaction}} = SQLite.checkpoint(db)
               end)
    end
  end

  describe "several processes" do
    @describetag :tmp_dir

    test "take turns, and no increment is lost", %{db: db} do
      {:ok, _} = insert(db, 0)

      1..8
      |> Task.async_stream(fn _ ->
        for _ <- 1..25 do
          {:ok, _} =
            SQLite.transaction(db, fn ->
              {:ok, %{rows: [[id]]}} = SQLite.query(db, "SELECT max(id) FROM notes")
              {:ok, %{num_rows: 1}} = insert(db, id + 1)
            end)
        end
      end)
      |> Stream.run()

      assert ids(db) == Enum.to_list(0..200)
    end

    test "see nothing that is not committed", %{db: db} do
      holder = hold(db)
      reader = Task.async(fn -> ids(db) end)
      refute Task.yield(reader, 50)
      send(holder, :go_on)
      assert Task.await(reader) == [1, 2]
      assert_receive {:held, {:ok, {:ok, _}}}
    end

    test "are served in the order they asked", %{db: db, pid: pid} do
      holder = hold(db)

      tasks =
        for id <- 3..6 do
          task =
            Task.async(fn -> SQLite.query(db, "INSERT INTO notes (body) VALUES ($1)", [id]) end)

          wait_for_queue(pid, id - 2)
          task
        end

      send(holder, :go_on)
      Task.await_many(tasks)
      {:ok, %{rows: rows}} = SQLite.query(db, "SELECT body FROM notes WHERE id > 2 ORDER BY id")
      assert rows == [[3], [4], [5], [6]]
    end

    test "a killed caller is rolled back", %{db: db} do
      holder = hold(db)
      Process.exit(holder, :kill)
      assert ids(db) == []
      assert {:ok, _} = insert(db, 7)
    end

    test "a caller killed inside a statement is rolled back", %{db: db} do
      test = self()

      holder =
        spawn(fn ->
          SQLite.transaction(db, fn ->
            {:ok, _} = insert(db, 1)
            send(test, :holding)
            SQLite.query(db, @endless)
          end)
        end)

      assert_receive :holding
      Process.sleep(20)
      Process.exit(holder, :kill)
      assert ids(db) == []
    end

    test "a hundred callers killed at any moment leave whole transactions only", %{db: db} do
      for round <- 1..100 do
        victim =
          spawn(fn ->
            SQLite.transaction(db, fn ->
              for id <- 1..5, do: {:ok, _} = insert(db, round * 10 + id)
            end)
          end)

        Process.sleep(rem(round, 3))
        Process.exit(victim, :kill)
      end

      for {_round, ids} <- Enum.group_by(ids(db), &div(&1, 10)), do: assert(length(ids) == 5)
      assert {:ok, _} = insert(db, 1)
    end

    test "a caller that is killed while it waits is forgotten", %{db: db, pid: pid} do
      holder = hold(db)
      waiting = spawn(fn -> insert(db, 9) end)
      wait_for_queue(pid, 1)
      Process.exit(waiting, :kill)
      wait_for_queue(pid, 0)
      send(holder, :go_on)
      assert_receive {:held, {:ok, _}}
      assert ids(db) == [1, 2]
    end

    test "waiting ends after :queue_timeout, and leaves no request behind", %{db: db, pid: pid} do
      holder = hold(db)

      assert {:error, %Error{kind: :busy}} = SQLite.query(db, "SELECT 1", [], queue_timeout: 20)

      assert {:error, %Error{kind: :busy}} =
               SQLite.transaction(db, fn -> flunk("ran") end, queue_timeout: 20)

      assert :queue.is_empty(:sys.get_state(pid).waiting)
      send(holder, :go_on)
      assert_receive {:held, {:ok, _}}
      assert ids(db) == [1, 2]
    end

    test "a transaction that takes longer than :timeout is rolled back", %{db: db} do
      holder = hold(db, timeout: 30)
      assert ids(db) == []

      send(holder, :go_on)
      assert_receive {:held, {:error, :rollback}}
      assert ids(db) == []
    end

    test "a statement of a caller whose time was over does not join the next one", %{db: db} do
      test = self()
      late = hold(db, timeout: 30)

      next =
        Task.async(fn ->
          SQLite.transaction(db, fn ->
            {:ok, _} = insert(db, 10)
            send(test, :next)

            receive do
              :go_on -> :done
            end
          end)
        end)

      assert_receive :next
      send(late, :go_on)
      assert_receive {:held, {:error, :rollback}}
      send(next.pid, :go_on)
      assert {:ok, :done} = Task.await(next)
      assert ids(db) == [10]
    end

    test "another connection to the file waits for the writer", %{db: db, path: path} do
      other = SQLite.handle(start_supervised!({SQLite, path: path, busy_timeout: 20}, id: :other))
      holder = hold(db)
      assert {:ok, %{rows: []}} = SQLite.query(other, "SELECT id FROM notes")
      assert {:error, %Error{kind: :busy}} = insert(other, 9)
      assert {:error, :rollback} = SQLite.transaction(other, fn -> insert(other, 9) end)
      send(holder, :go_on)
      assert_receive {:held, {:ok, _}}
      assert {:ok, _} = insert(other, 9)
      assert ids(db) == [1, 2, 9]
    end

    test "stopping the database rolls back who is inside", %{db: db, path: path} do
      holder = hold(db)
      :ok = stop_supervised({SQLite, nil})
      send(holder, :go_on)
      assert_receive {:held, {:error, :rollback}}

      pid = start_supervised!({SQLite, path: path}, id: :again)
      assert ids(SQLite.handle(pid)) == []
    end

    test "a transaction does not go on under the name of a restarted database", %{tmp_dir: folder} do
      name = :"restarted #{System.unique_integer()}"
      owner = start_supervised!({SQLite, name: name, path: Path.join(folder, "named.db")})
      db = SQLite.handle(name)
      :ok = SQLite.execute(db, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body BLOB)")

      for before <- [fn -> :nothing end, fn -> {:ok, _} = insert(db, 1) end] do
        result =
          SQLite.transaction(db, fn ->
            before.()
            restart(name, GenServer.whereis(name))
            assert SQLite.in_transaction?(db)
            assert {:error, %Error{kind: :closed}} = insert(db, 2)

            assert {:error, %Error{kind: :closed}} =
                     SQLite.transaction(db, fn -> insert(db, 3) end)

            :done
          end)

        assert {:error, %Error{kind: :closed}} = result
        assert ids(db) == []
        assert {:ok, _} = SQLite.transaction(db, fn -> insert(db, 4) end)
        {:ok, _} = SQLite.query(db, "DELETE FROM notes")
      end

      assert GenServer.whereis(name) != owner
    end
  end

  describe "the file" do
    @describetag :tmp_dir

    test "is for its owner only", %{path: path} do
      for file <- [path, path <> "-wal", path <> "-shm"] do
        assert Bitwise.band(File.stat!(file).mode, 0o777) == 0o600
      end
    end

    test "holds no deleted bytes after a checkpoint", %{db: db, path: path} do
      secret = "a key that was used"
      insert = "INSERT INTO notes (id, body) VALUES ($1, $2)"
      {:ok, _} = SQLite.query(db, insert, [1, {:blob, secret}])
      :ok = SQLite.checkpoint(db)
      assert File.read!(path) =~ secret

      {:ok, _} = SQLite.query(db, "DELETE FROM notes")
      :ok = SQLite.checkpoint(db)
      refute File.read!(path) =~ secret
      assert File.stat!(path <> "-wal").size == 0
    end
  end

  test "inspect shows the server and nothing else", %{pid: pid} do
    assert inspect(SQLite.handle(MyApp.Database)) == "#Kith.SQLite<MyApp.Database>"
    assert inspect(SQLite.handle(pid)) == "#Kith.SQLite<#{inspect(pid)}>"
  end

  defp wait_until(condition) do
    if not condition.() do
      Process.sleep(1)
      wait_until(condition)
    end
  end
end
