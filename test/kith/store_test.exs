defmodule Kith.StoreTest do
  # Repositories without a prefix: one of Ecto's shape over the embedded database, and one on PostgreSQL. Each is one
  # module, so one test at a time.
  use Kith.Case, async: false
  use Kith.Test.Stores
  doctest Kith.Store.SQL

  alias Kith.{Error, Migration, SQLite}
  alias Kith.Store.{Prekeys, Sessions}
  alias Kith.Test.Postgres

  defmodule OnPostgres do
    use Kith.Test.Postgres.Repo
  end

  setup context do
    store = Map.get(context, :store, :sqlite)
    OnPostgres.intercept(fn _sql, run -> run.() end)
    repo = start_repo!(store)

    # The bare store is tested on what an instance has: the handle of the embedded database, or the repository.
    handle =
      if store == :sqlite, do: SQLite.handle(__MODULE__.Database), else: Kith.Store.Repo.new(repo)

    Process.put(__MODULE__, repo)
    %{handle: handle, repo: repo}
  end

  defp start_repo!(:sqlite) do
    start_supervised!(
      {SQLite, path: Path.join(tmp_dir!(), "store.db"), name: __MODULE__.Database}
    )

    Kith.Test.Repo.connect(SQLite.handle(__MODULE__.Database))
    Kith.Test.Repo
  end

  defp start_repo!(:postgres) do
    address = Postgres.database!(Postgres.cluster(), "store_test")
    start_supervised!({OnPostgres, address})
    {:ok, _} = OnPostgres.query("DROP SCHEMA public CASCADE")
    {:ok, _} = OnPostgres.query("CREATE SCHEMA public")
    OnPostgres
  end

  # The repository of the test at hand.
  defp repo, do: Process.get(__MODULE__)

  defp start_on_repo!(options \\ []) do
    :ok = Migration.run(repo())
    start_kith!([repo: repo()] ++ options)
  end

  describe "a repository" do
    test "carries the whole of Kith" do
      kith = start_on_repo!()
      converse!(kith, "anna", "ben")
      register!(kith, ~w(cleo dan))

      for {member, {:ok, envelope}} <-
            Kith.encrypt_group!(kith, "anna", ~w(ben cleo dan), "hello"),
          do: assert(Kith.decrypt!(kith, member, envelope) == "hello")

      Kith.reset_session!(kith, "anna", "ben")
      assert send!(kith, "anna", "ben", "again") == "again"
    end

    test "that is not migrated stops the instance with what to do" do
      Process.flag(:trap_exit, true)
      assert {:error, reason} = Kith.start_link(defaults(repo: repo(), name: make_ref()))
      assert inspect(reason) =~ "call Kith.Migration.run(#{inspect(repo())})"
    end
  end

  describe "a lost race" do
    test "is tried again up to :max_attempts, then it is :stale, and nothing is written" do
      kith = start_on_repo!(max_attempts: 4)
      register!(kith, ["anna", "ben"])
      lose_races(:always)

      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :stale
      assert attempts() == 4
      repo().intercept(fn _, run -> run.() end)
      assert Kith.prekey_count!(kith, "ben") == 100
      assert send!(kith, "anna", "ben", "x") == "x"
    end

    test "once does not show" do
      kith = start_on_repo!()
      register!(kith, ["anna", "ben"])
      lose_races(1)
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      assert attempts() == 2
      lose_races(1)
      assert Kith.decrypt!(kith, "ben", envelope) == "x"
      assert attempts() == 2
    end

    test "is not tried again inside a transaction of the application" do
      kith = start_on_repo!()
      register!(kith, ["anna", "ben"])
      lose_races(:always)

      repo().transaction(
        fn -> send(self(), {:reason, reason(Kith.encrypt(kith, "anna", "ben", "x"))}) end,
        log: false
      )

      assert_received {:reason, :stale}
      assert attempts() == 1
    end
  end

  describe "a device that is registered anew while prekeys are made for it" do
    test "gets none that are sealed under the key of before" do
      kith = start_on_repo!(one_time_prekeys: 3, replenish_below: 0)
      register!(kith, ["ben"])
      Kith.pre_key_bundle!(kith, "ben")
      reads = :counters.new(1, [])

      repo().intercept(fn sql, run ->
        # The second time the device is read: when the keys are made and to be stored.
        if sql =~ "FROM signal_identity_keys i LEFT JOIN" and :counters.get(reads, 1) > 0 do
          repo().intercept(fn _, run -> run.() end)
          Kith.unregister!(kith, "ben")
          Kith.register!(kith, "ben")
          Kith.pre_key_bundle!(kith, "ben")
        end

        if sql =~ "FROM signal_identity_keys i LEFT JOIN", do: :counters.add(reads, 1, 1)
        run.()
      end)

      assert reason(Kith.replenish(kith, "ben")) == :not_registered
      assert Kith.prekey_count!(kith, "ben") == 2
    end
  end

  describe "a database that fails" do
    test "is :storage wherever it fails, and nothing is written" do
      kith = start_on_repo!()
      converse!(kith, "anna", "ben")
      envelope = encrypt_one!(kith, "ben", "anna", "x")
      before = rows()

      for call <- [
            fn -> Kith.encrypt(kith, "anna", "ben", "x") end,
            fn -> Kith.encrypt_group(kith, "anna", ["ben"], "x") end,
            fn -> Kith.decrypt(kith, "anna", envelope) end,
            fn -> Kith.register(kith, "cleo") end,
            fn -> Kith.unregister(kith, "ben") end,
            fn -> Kith.reset_session(kith, "anna", "ben") end,
            fn -> Kith.trust(kith, "anna", "ben", verified: true) end
          ] do
        statements = count_statements(call)
        assert statements > 1

        for nth <- 1..statements do
          fail_at(nth)
          assert {:error, %Error{reason: :storage}} = call.()
          repo().intercept(fn _, run -> run.() end)
          assert rows() == before
        end
      end

      assert Kith.decrypt!(kith, "anna", envelope) == "x"
    end

    @tag store: :sqlite
    test "that stopped is :storage", %{handle: handle} do
      kith = start_on_repo!()
      register!(kith, ["anna", "ben"])
      stop_supervised!({SQLite, __MODULE__.Database})
      assert {:error, %Error{reason: :storage} = error} = Kith.encrypt(kith, "anna", "ben", "x")
      assert Exception.message(error) =~ "not running"
      refute SQLite.in_transaction?(handle)
    end

    test "in PostgreSQL is told by its code, since its text may quote a row" do
      kith = start_on_repo!()

      error = %{
        __struct__: Postgrex.Error,
        postgres: %{code: :not_null_violation, detail: "secret"}
      }

      repo().intercept(fn _, _ -> {:error, error} end)
      assert {:error, %Error{reason: :storage, detail: detail}} = Kith.register(kith, "anna")
      assert detail == "PostgreSQL says not_null_violation"

      deadlock = %{error | postgres: %{code: :deadlock_detected}}
      repo().intercept(fn _, _ -> {:error, deadlock} end)
      assert reason(Kith.register(kith, "anna")) == :stale
    end
  end

  describe "Sessions" do
    setup %{handle: handle} do
      :ok = Migration.run(handle)
      %{me: {"anna", 1}, peer: {"ben", 2}}
    end

    test "are written when each is the next generation", %{handle: db, me: me, peer: peer} do
      other = {"cleo", 1}
      assert Sessions.put(db, me, [{peer, 1, "s1", "i"}, {other, 1, "t1", nil}], 5) == 2
      assert Sessions.put(db, me, [{peer, 2, "s2", "i"}, {other, 3, "t3", nil}], 6) == 1
      assert Sessions.put(db, me, [{peer, 2, "lost", "i"}], 7) == 0
      assert Sessions.put(db, me, [{peer, 4, "lost", "i"}], 7) == 0

      assert Sessions.fetch(db, me, peer) == row(2, "s2", "i")

      assert Sessions.fetch_many(db, me, [elem(peer, 0), "nobody", elem(other, 0)]) == %{
               peer => row(2, "s2", "i"),
               other => row(1, "t1", nil)
             }
    end

    test "come with their braids, which are written apart and go with the state",
         %{handle: db, me: me, peer: peer} do
      other = {"cleo", 1}
      Sessions.put(db, me, [{peer, 1, "s", "i"}, {other, 1, "t", "j"}], 0)
      Sessions.put_braids(db, me, [{peer, {"id", 1, "b1"}}, {other, {"ie", 7, "b7"}}])
      Sessions.put_braids(db, me, [{peer, {"id", 2, "b2"}}])

      assert Sessions.fetch(db, me, peer) == row(1, "s", "i", {"id", 2, "b2"})

      assert Sessions.fetch_many(db, me, [elem(peer, 0), elem(other, 0)]) == %{
               peer => row(1, "s", "i", {"id", 2, "b2"}),
               other => row(1, "t", "j", {"ie", 7, "b7"})
             }

      assert Sessions.fetch(db, {"anna", 2}, peer) == row(0, nil, nil)
      assert Sessions.drop_state(db, me, peer, 7, 0) == 0
      assert %{braid: {"id", 2, "b2"}} = Sessions.fetch(db, me, peer)
      assert Sessions.drop_state(db, me, peer, 1, 0) == 1
      assert Sessions.fetch(db, me, peer) == row(2, nil, "i")
      Sessions.delete_parts(db, me, other)
      assert Sessions.fetch(db, me, other) == row(1, "t", "j")
    end

    test "are written by the thousand", %{handle: db, me: me} do
      rows = for n <- 1..2_500, do: {{"peer #{n}", 1}, 1, "state", nil}
      assert Sessions.put(db, me, rows, 0) == 2_500
      assert map_size(Sessions.fetch_many(db, me, Enum.map(rows, &elem(elem(&1, 0), 0)))) == 2_500
    end

    test "keep their row and count on when they end", %{handle: db, me: me, peer: peer} do
      Sessions.put(db, me, [{peer, 1, "s", "i"}], 0)
      assert Sessions.drop_state(db, me, peer, 2, 0) == 0
      assert Sessions.drop_state(db, me, peer, 1, 0) == 1
      assert Sessions.drop_state(db, me, peer, 2, 0) == 0
      assert Sessions.fetch(db, me, peer) == row(2, nil, "i")
      assert Sessions.forget(db, me, peer, 0) == 1
      assert Sessions.fetch(db, me, peer) == row(3, nil, nil)
    end

    test "lose their lowest entries first, of the group that is named", %{
      handle: db,
      me: me,
      peer: peer
    } do
      keys = for n <- 5..1//-1, do: {"group", n, "key #{n}"}
      Sessions.put_entries(db, me, peer, "id", keys ++ [{"other", 1, "key"}], 0)
      Sessions.put_entries(db, {"anna", 2}, peer, "id", keys, 0)
      assert Sessions.evict_entries(db, me, peer, "id", {"group", 5}) == 0
      assert Sessions.evict_entries(db, me, peer, "id", {"group", 2}) == 3

      numbers = fn me, group ->
        Enum.sort(for {"id", ^group, n, _} <- Sessions.entries_of(db, me, peer, group), do: n)
      end

      assert numbers.(me, "group") == [4, 5]
      assert numbers.(me, "other") == [1]
      assert numbers.({"anna", 2}, "group") == [1, 2, 3, 4, 5]
      assert Sessions.delete_entry(db, me, peer, "id", {"group", 4}) == 1
      assert Sessions.delete_entry(db, me, peer, "id", {"other", 4}) == 0
      assert Sessions.delete_entries_of_group(db, me, peer, "id", "group") == 1
      assert Sessions.delete_entries_of_session(db, me, peer, "id") == 1
    end

    test "have entries that are found by position in any session, and written again in place", %{
      handle: db,
      me: me,
      peer: peer
    } do
      for id <- ["one", "two"],
          do:
            Sessions.put_entries(db, me, peer, id, [{"g", 1, id}, {"g", 2, id}, {"h", 1, id}], 0)

      Sessions.put_entries(db, me, peer, "two", [{"h", 1, "new"}], 0)

      assert Enum.sort(Sessions.entries_at(db, me, peer, [{"g", 2}, {"h", 1}])) == [
               {"one", "g", 2, "one"},
               {"one", "h", 1, "one"},
               {"two", "g", 2, "two"},
               {"two", "h", 1, "new"}
             ]

      assert length(Sessions.entries_of(db, me, peer, "g")) == 4
      assert Sessions.entries_at(db, me, {"ben", 1}, [{"g", 2}]) == []
    end

    test "are archived in order", %{handle: db, me: me, peer: peer} do
      Sessions.insert_archived(
        db,
        me,
        [
          {peer, {"a", 3, "s"}},
          {peer, {"b", 9, "s"}},
          {peer, {"c", 6, "s"}}
        ],
        %{}
      )

      Sessions.insert_archived(db, me, [{peer, {"a", 7, "t"}}], %{})
      assert Sessions.archive(db, me, peer) == [{"b", 9, "s"}, {"a", 7, "t"}, {"c", 6, "s"}]
      Sessions.delete_archived(db, me, peer, "b")
      assert length(Sessions.archive(db, me, peer)) == 2

      # As many as the engine keeps, and their entries.
      Sessions.put_entries(db, me, peer, "c", [{"g", 1, "e"}], 0)
      rows = for n <- 1..45, do: {peer, {"session #{n}", 100 + n, "s"}}
      Sessions.insert_archived(db, me, rows, %{peer => 7})
      assert [{"session 45", 145, "s"} | _] = kept = Sessions.archive(db, me, peer)
      assert length(kept) == 40
      assert Sessions.entries_of(db, me, peer, "g") == []
      assert Sessions.delete_archived(db, me, peer, "session 45") == 7
      assert Sessions.delete_archived(db, me, peer, "session 45") == nil
    end
  end

  describe "Prekeys" do
    setup %{handle: handle} do
      :ok = Migration.run(handle)
      keys = for id <- 1..3, do: {id, "public #{id}", nil, "sealed #{id}"}
      Prekeys.insert(handle, {"ben", 1}, :one_time, keys, 0)
      %{me: {"ben", 1}}
    end

    test "are handed out from the oldest on, once, and put back by id", %{handle: db, me: me} do
      assert Prekeys.claim(db, me, :one_time, 1) == {1, "public 1", nil}
      assert Prekeys.claim(db, me, :one_time, 1) == {2, "public 2", nil}
      Prekeys.release(db, me, :one_time, 1)
      assert Prekeys.stock(db, [me]) == %{me => %{one_time: 2, kyber_one_time: 0}}
      assert Prekeys.claim(db, me, :one_time, 1) == {1, "public 1", nil}
      assert Prekeys.claim(db, me, :one_time, 1) == {3, "public 3", nil}
      assert Prekeys.claim(db, me, :one_time, 1) == nil
      assert Prekeys.stock(db, [me]) == %{me => %{one_time: 0, kyber_one_time: 0}}
    end

    test "of one kind are none of another, whatever their ids", %{handle: db, me: me} do
      kyber = for id <- 2..4, do: {id, "kyber #{id}", "signature #{id}", "sealed kyber #{id}"}
      Prekeys.insert(db, me, :kyber_one_time, tl(kyber), 0)
      Prekeys.insert(db, me, :kyber_last_resort, [hd(kyber)], 0)
      assert Prekeys.stock(db, [me]) == %{me => %{one_time: 3, kyber_one_time: 2}}

      assert Prekeys.claim(db, me, :kyber_one_time, 1) == {3, "kyber 3", "signature 3"}
      assert Prekeys.claim(db, me, :one_time, 1) == {1, "public 1", nil}
      Prekeys.release(db, me, :one_time, 3)
      assert Prekeys.claim(db, me, :kyber_one_time, 1) == {4, "kyber 4", "signature 4"}
      assert Prekeys.claim(db, me, :kyber_one_time, 1) == nil

      assert Prekeys.mark_used(db, me, :kyber_one_time, 2, 5) == 0
      assert Prekeys.mark_used(db, me, :kyber_one_time, 3, 5) == 1
      assert Prekeys.delete_used(db, me, 5) == 1
      assert Prekeys.delete_kyber(db, me) == 2
      assert Prekeys.stock(db, [me]) == %{me => %{one_time: 2, kyber_one_time: 0}}
    end

    test "that a message has used are not handed out", %{handle: db, me: me} do
      Prekeys.mark_used(db, me, :one_time, 1, 5)
      assert Prekeys.claim(db, me, :one_time, 1) == {2, "public 2", nil}
    end

    test "are found by their ids, one-time ones within the grace", %{handle: db, me: me} do
      Prekeys.insert(db, me, :signed, [{1, "public", "signature", "signed 1"}], 0)
      Prekeys.insert(db, me, :kyber_one_time, [{1, "public", "signature", "kyber 1"}], 0)
      Prekeys.insert(db, me, :kyber_last_resort, [{2, "public", "signature", "kyber 2"}], 0)

      found = fn {prekey, signed, kyber}, used_after ->
        ids = %{prekey_id: prekey, signed_prekey_id: signed, kyber_prekey_id: kyber}
        Prekeys.private_halves(db, me, ids, used_after)
      end

      assert found.({3, 1, nil}, 0) == {"sealed 3", "signed 1", nil}
      assert found.({nil, 1, 1}, 0) == {nil, "signed 1", {:kyber_one_time, "kyber 1"}}
      assert found.({nil, 1, 2}, 0) == {nil, "signed 1", {:kyber_last_resort, "kyber 2"}}
      assert found.({9, 9, 9}, 0) == {nil, nil, nil}

      for kind <- [:one_time, :kyber_one_time],
          at <- [100, 900],
          id <- [1, 3],
          do: Prekeys.mark_used(db, me, kind, id, at)

      assert found.({3, 1, 1}, 99) == {"sealed 3", "signed 1", {:kyber_one_time, "kyber 1"}}
      assert found.({3, 1, 1}, 100) == {nil, "signed 1", nil}
      assert found.({3, 1, 2}, 100) == {nil, "signed 1", {:kyber_last_resort, "kyber 2"}}
      assert Prekeys.delete_used(db, me, 99) == 0
      assert Prekeys.delete_used(db, me, 100) == 3
    end

    test "of a device elsewhere are one signed and one of last resort", %{handle: db, me: me} do
      for kind <- [:signed, :kyber_last_resort],
          id <- [1, 2, 2],
          do: Prekeys.replace(db, me, kind, {id, "public #{id}", "signature"}, id)

      sql = "SELECT kind, prekey_id, public_key FROM kith.signal_prekeys WHERE kind <> 'one_time'"
      rows = Kith.Store.Repo.rows(db, sql, [])

      assert Enum.sort(rows) == [["kyber_last_resort", 2, "public 2"], ["signed", 2, "public 2"]]
    end

    test "remember a base key once per device", %{handle: db, me: me} do
      assert Prekeys.insert_base_key(db, me, {1, "base"}, 0) == 1
      assert Prekeys.insert_base_key(db, me, {1, "base"}, 1) == 0
      assert Prekeys.insert_base_key(db, {"ben", 2}, {1, "base"}, 1) == 1
    end
  end

  defp row(generation, state, identity, braid \\ nil),
    do: %{
      Sessions.none()
      | generation: generation,
        state: state,
        identity: identity,
        braid: braid
    }

  defp rows do
    for table <-
          ~w(signal_accounts signal_identity_keys signal_prekeys signal_sessions signal_braids
             signal_session_entries signal_base_keys) do
      {:ok, %{rows: rows}} = repo().query("SELECT * FROM #{table}", [], log: false)
      Enum.sort(rows)
    end
  end

  # Every write of a session finds another writer's generation, `times` times.
  defp lose_races(times) do
    counter = :counters.new(1, [])
    :persistent_term.put({__MODULE__, :attempts}, counter)

    repo().intercept(fn sql, run ->
      if sql =~ "INSERT INTO signal_sessions" do
        :counters.add(counter, 1, 1)

        if times == :always or :counters.get(counter, 1) <= times,
          do: {:ok, %{rows: nil, num_rows: 0}},
          else: run.()
      else
        run.()
      end
    end)
  end

  defp attempts, do: :counters.get(:persistent_term.get({__MODULE__, :attempts}), 1)

  # How many statements a call makes, in a transaction that is rolled back.
  defp count_statements(call) do
    counter = :counters.new(1, [])

    repo().intercept(fn _, run ->
      :counters.add(counter, 1, 1)
      run.()
    end)

    {:error, :undo} =
      repo().transaction(
        fn ->
          {:ok, _} = call.()
          repo().rollback(:undo)
        end,
        log: false
      )

    :counters.get(counter, 1)
  end

  defp fail_at(nth) do
    counter = :counters.new(1, [])

    repo().intercept(fn _, run ->
      :counters.add(counter, 1, 1)

      if :counters.get(counter, 1) == nth,
        do: {:error, %SQLite.Error{kind: :full, message: "the disk is full"}},
        else: run.()
    end)
  end
end
