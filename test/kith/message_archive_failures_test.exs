defmodule Kith.MessageArchiveFailuresTest do
  # One repository module, and panics armed by the name of a NIF: one test at a time.
  use Kith.Case, async: false

  alias Kith.{Error, Instance, Migration, Native, SQLite}
  alias Kith.Test.Repo

  setup do
    start_supervised!(
      {SQLite, path: Path.join(tmp_dir!(), "archive.db"), name: __MODULE__.Database}
    )

    handle = SQLite.handle(__MODULE__.Database)
    Repo.connect(handle)
    :ok = Migration.run(Repo)
    kith = start_kith!(repo: Repo, archive: true, one_time_prekeys: 5, replenish_below: 0)
    converse!(kith, "anna", "ben")
    register!(kith, ["cleo"])

    on_exit(fn ->
      for nif <- ~w(thread_create archive_seal archive_open), do: :ok = Native.panic_arm(nif, 0)
    end)

    %{kith: kith, handle: handle}
  end

  test "a repository carries the archive", %{kith: kith} do
    [envelope] = Kith.encrypt!(kith, "anna", "ben", "hello", thread: "t")
    for _ <- 1..2, do: assert(Kith.decrypt!(kith, "ben", envelope, thread: "t") == "hello")
    for n <- 1..5, do: Kith.encrypt!(kith, "anna", "ben", "#{n}", thread: "t", expires_in: 10)
    assert %{messages: [_, _], before: cursor} = Kith.history!(kith, "anna", "t", limit: 2)
    assert length(Kith.history!(kith, "anna", "t", before: cursor).messages) == 4
    instance = Instance.fetch!(kith)
    soon = System.system_time(:millisecond) + 11_000

    assert {:ok, 5} =
             Instance.transaction(instance, fn repo ->
               {{:ok, Kith.MessageArchive.purge(instance, repo, soon, 10)}, []}
             end)

    assert Kith.shred!(kith, "t") == 2
    Kith.unregister!(kith, "anna")
    Kith.unregister!(kith, "ben")
    assert rows("signal_threads") == []
  end

  test "a database that fails at any statement changes nothing", %{kith: kith} do
    [envelope] = Kith.encrypt!(kith, "ben", "anna", "x")
    [opened] = Kith.encrypt!(kith, "ben", "anna", "y")
    Kith.decrypt!(kith, "anna", opened)
    before = rows()

    for call <- [
          fn -> Kith.encrypt(kith, "anna", "ben", "x", thread: "new") end,
          fn -> Kith.encrypt(kith, "anna", "anna", "x", thread: "new") end,
          fn -> Kith.encrypt_group(kith, "anna", ["ben", "cleo"], "x", thread: "new") end,
          fn -> Kith.decrypt(kith, "anna", envelope, thread: "new") end,
          fn -> Kith.decrypt(kith, "anna", opened) end,
          fn -> Kith.history(kith, "anna", {:direct, "ben"}) end,
          fn -> Kith.shred(kith, {:direct, "ben", "anna"}) end,
          fn -> Kith.unregister(kith, "anna") end
        ] do
      statements = count_statements(call)
      assert statements > 1

      for nth <- 1..statements do
        fail_at(nth)
        assert {:error, %Error{reason: :storage}} = call.()
        Repo.intercept(fn _, run -> run.() end)
        assert rows() == before
      end
    end

    assert Kith.decrypt!(kith, "anna", envelope) == "x"
  end

  test "an exception, a throw and an exit between the step of the session and its copy leave neither",
       %{
         kith: kith
       } do
    [envelope] = Kith.encrypt!(kith, "ben", "anna", "x")
    before = rows()

    for call <- [
          fn -> Kith.encrypt(kith, "anna", "ben", "x") end,
          fn -> Kith.decrypt(kith, "anna", envelope) end
        ],
        failure <- [
          fn -> raise "injected" end,
          fn -> throw(:injected) end,
          fn -> exit(:injected) end,
          fn -> Process.exit(self(), :kill) end
        ] do
      {process, monitor} =
        spawn_monitor(fn ->
          Repo.intercept(fn sql, run ->
            if sql =~ "INSERT INTO signal_archived_messages", do: failure.(), else: run.()
          end)

          # Nothing of it is logged.
          try do
            call.()
          catch
            _, _ -> exit(:shutdown)
          end
        end)

      assert_receive {:DOWN, ^monitor, :process, ^process, reason}, 5_000
      assert reason != :normal
      Repo.intercept(fn _, run -> run.() end)
      assert rows() == before
    end

    assert Kith.decrypt!(kith, "anna", envelope) == "x"
    assert Kith.decrypt!(kith, "anna", envelope) == "x"
  end

  test "a panic while a copy is sealed is :panic, and nothing is changed", %{kith: kith} do
    [envelope] = Kith.encrypt!(kith, "ben", "anna", "x")
    before = rows()

    for nif <- ~w(thread_create archive_seal),
        call <- [
          fn -> Kith.encrypt(kith, "anna", "ben", "x", thread: "new") end,
          fn -> Kith.decrypt(kith, "anna", envelope, thread: "new") end
        ] do
      :ok = Native.panic_arm(nif, 1)
      assert reason(call.()) == :panic
      assert rows() == before
    end

    assert Kith.decrypt!(kith, "anna", envelope, thread: "new") == "x"
    :ok = Native.panic_arm("archive_open", 2)
    assert reason(Kith.history(kith, "anna", "new")) == :panic
    # The message was opened before: that is what is known of it.
    assert reason(Kith.decrypt(kith, "anna", envelope)) == :duplicate
    assert Kith.decrypt!(kith, "anna", envelope) == "x"
  end

  test "of two keys drawn for a thread at once, one wins and both use it", %{
    kith: kith,
    handle: handle
  } do
    vault = Instance.fetch!(kith).vault

    Repo.intercept(fn sql, run ->
      if sql =~ "INSERT INTO signal_threads" do
        Repo.intercept(fn _, run -> run.() end)
        {:ok, faster} = Native.thread_create(vault, "t:new")
        params = ["t:new", {:blob, faster}]
        sql = "INSERT INTO signal_threads (thread_id, data_key, created_at) VALUES ($1, $2, 0)"
        {:ok, _} = SQLite.query(handle, sql, params)
      end

      run.()
    end)

    Kith.encrypt!(kith, "anna", "ben", "hello", thread: "new")
    assert [[_, _, 0 | _]] = rows("signal_threads WHERE thread_id = 't:new'")
    assert [%{plaintext: "hello"}] = Kith.history!(kith, "anna", "new").messages
  end

  test "a thread that is gone again the moment it was made is tried again", %{
    kith: kith,
    handle: handle
  } do
    Repo.intercept(fn sql, run ->
      result = run.()

      if sql =~ "INSERT INTO signal_threads" do
        Repo.intercept(fn _, run -> run.() end)
        {:ok, _} = SQLite.query(handle, "DELETE FROM signal_threads WHERE thread_id = 't:new'")
      end

      result
    end)

    Kith.encrypt!(kith, "anna", "ben", "hello", thread: "new")
    assert [%{plaintext: "hello"}] = Kith.history!(kith, "anna", "new").messages
  end

  defp rows do
    for table <-
          ~w(signal_identity_keys signal_prekeys signal_sessions signal_braids
                    signal_session_entries signal_base_keys signal_threads signal_archived_messages),
        into: %{},
        do: {table, Enum.sort(rows(table))}
  end

  defp rows(table) do
    {:ok, %{rows: rows}} =
      SQLite.query(SQLite.handle(__MODULE__.Database), "SELECT * FROM #{table}")

    rows
  end

  # How many statements a call makes. It is undone.
  defp count_statements(call) do
    count = :counters.new(1, [])

    Repo.intercept(fn _sql, run ->
      :counters.add(count, 1, 1)
      run.()
    end)

    handle = SQLite.handle(__MODULE__.Database)

    {:error, :undone} =
      SQLite.transaction(handle, fn ->
        call.()
        SQLite.rollback(handle, :undone)
      end)

    Repo.intercept(fn _, run -> run.() end)
    :counters.get(count, 1)
  end

  defp fail_at(nth) do
    count = :counters.new(1, [])

    Repo.intercept(fn _sql, run ->
      :counters.add(count, 1, 1)

      if :counters.get(count, 1) == nth,
        do: {:error, %SQLite.Error{kind: :storage, message: "injected"}},
        else: run.()
    end)
  end
end
