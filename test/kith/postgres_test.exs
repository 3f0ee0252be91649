defmodule Kith.PostgresTest do
  # What only PostgreSQL has: many writers, locks, and the transactions of an application.
  use Kith.Case, async: false
  @moduletag :postgres
  @moduletag store: :postgres

  alias Kith.{Error, Migration}
  alias Kith.Store.{Repo, Sessions}
  alias Kith.Test.Postgres

  defmodule OnPostgres do
    use Kith.Test.Postgres.Repo
  end

  setup do
    address = Postgres.database!(Postgres.cluster(), "postgres_test")
    start_supervised!({OnPostgres, address ++ [pool_size: 20]})
    OnPostgres.intercept(fn _sql, run -> run.() end)
    prefix = "kith_#{System.unique_integer([:positive])}"
    :ok = Migration.run(OnPostgres, prefix: prefix)
    kith = start_kith!(repo: OnPostgres, prefix: prefix)
    %{kith: kith, repo: Repo.new(OnPostgres, prefix)}
  end

  defp users(count), do: for(n <- 1..count, do: "user #{String.pad_leading("#{n}", 3, "0")}")

  defp statements(fun) do
    test = self()

    OnPostgres.intercept(fn sql, run ->
      if self() == test, do: send(test, {:statement, sql})
      run.()
    end)

    result = fun.()
    OnPostgres.intercept(fn _sql, run -> run.() end)
    {result, flush()}
  end

  defp flush do
    receive do
      {:statement, sql} -> [sql | flush()]
    after
      0 -> []
    end
  end

  # The verb and the first table.
  defp kind(sql) do
    # What is asked beside the rows is no statement of its own.
    sql = Regex.replace(~r/\(SELECT [^)]*\)/, sql, "")
    [verb | _] = String.split(sql)
    [_, table] = Regex.run(~r/(?:FROM|INTO|UPDATE) "[a-z0-9_]+"\.(\w+)/, sql)
    {verb, table}
  end

  describe "a fan-out to thirty in sessions that exist" do
    test "is a read of the device, a read that locks the sessions, and a write of them", %{
      kith: kith
    } do
      members = users(30)
      register!(kith, ["anna" | members])

      for {{member, 1}, {:ok, envelope}} <- Kith.encrypt_group!(kith, "anna", members, "hello") do
        Kith.decrypt!(kith, member, envelope)
        Kith.decrypt!(kith, "anna", encrypt_one!(kith, member, "anna", "hi"))
      end

      always = [
        {"SELECT", "signal_identity_keys"},
        {"SELECT", "signal_sessions"},
        {"INSERT", "signal_sessions"}
      ]

      # The first message of a turn has new braids. The second has none.
      {_, first} = statements(fn -> Kith.encrypt_group!(kith, "anna", members, "one") end)
      assert Enum.map(first, &kind/1) -- [{"INSERT", "signal_braids"}] == always
      {results, second} = statements(fn -> Kith.encrypt_group!(kith, "anna", members, "two") end)
      assert Enum.map(second, &kind/1) == always
      assert Enum.at(second, 1) =~ ~r/ORDER BY peer_id, peer_device_id FOR UPDATE OF s\s*\z/

      for {{member, 1}, {:ok, envelope}} <- results,
          do: assert(Kith.decrypt!(kith, member, envelope) == "two")
    end
  end

  describe "a transaction of the application" do
    setup %{kith: kith} do
      converse!(kith, "anna", "ben")
      register!(kith, ["cleo"])
    end

    test "is joined, and what it rolls back never was", %{kith: kith} do
      envelope = encrypt_one!(kith, "ben", "anna", "keep")
      before = dump(kith)

      assert {:error, :changed_my_mind} =
               OnPostgres.transaction(fn ->
                 assert {:ok, _} = Kith.encrypt(kith, "anna", "ben", "lost")
                 assert {:ok, _} = Kith.encrypt_group(kith, "anna", ["ben", "cleo"], "lost")
                 assert {:ok, "keep"} = Kith.decrypt(kith, "anna", envelope)
                 assert {:ok, _} = Kith.register(kith, "dan")
                 assert dump(kith) != before
                 OnPostgres.rollback(:changed_my_mind)
               end)

      assert dump(kith) == before
      assert Kith.decrypt!(kith, "anna", envelope) == "keep"
      assert send!(kith, "anna", "ben", "next") == "next"
      assert send!(kith, "anna", "cleo", "next") == "next"
    end

    test "keeps its own rows and Kith's together", %{kith: kith} do
      {:ok, _} = OnPostgres.query("CREATE TABLE IF NOT EXISTS outbox (body BYTEA)")

      {:ok, :stored} =
        OnPostgres.transaction(fn ->
          envelope = encrypt_one!(kith, "anna", "ben", "x")
          body = Kith.Envelope.to_binary(envelope)
          {:ok, _} = OnPostgres.query("INSERT INTO outbox (body) VALUES ($1)", [body])
          :stored
        end)

      {:ok, %{rows: [[body]]}} = OnPostgres.query("DELETE FROM outbox RETURNING body")
      assert Kith.decrypt!(kith, "ben", body) == "x"
    end

    test "goes on when a member of a fan-out, or a message, fails", %{kith: kith, repo: repo} do
      Repo.execute(
        repo,
        "UPDATE kith.signal_sessions SET state = '\\x00' WHERE user_id = 'anna'",
        []
      )

      assert {:ok, {envelope, "goes on"}} =
               OnPostgres.transaction(fn ->
                 assert {:ok, results} =
                          Kith.encrypt_group(kith, "anna", ["ben", "cleo", "nobody"], "x")

                 assert reason(results_of(results, "ben")) == :corrupted_state
                 assert reason(results_of(results, "nobody")) == :not_registered
                 assert {:ok, envelope} = results_of(results, "cleo")
                 assert reason(Kith.decrypt(kith, "cleo", <<1, 2, 3>>)) == :malformed
                 {:ok, %{rows: [[text]]}} = OnPostgres.query("SELECT 'goes on'::TEXT")
                 {envelope, text}
               end)

      assert Kith.decrypt!(kith, "cleo", envelope) == "x"
    end

    test "with a failed statement of its own makes Kith answer, and keeps nothing", %{kith: kith} do
      before = dump(kith)

      assert {:error, :rollback} =
               OnPostgres.transaction(fn ->
                 {:ok, _} = Kith.encrypt(kith, "anna", "ben", "lost")
                 {:error, _} = OnPostgres.query("SELECT nothing FROM nowhere")
                 assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :storage
               end)

      assert dump(kith) == before
    end
  end

  defp results_of(results, user), do: results |> Map.new() |> Map.fetch!({user, 1})

  describe "a session row that is waited for" do
    test "is read again with its braid", %{kith: kith, repo: repo} do
      converse!(kith, "anna", "ben")
      test = self()

      # The other writer holds the row until this one waits for it, and writes a new braid before it lets go.
      writer =
        Task.async(fn ->
          OnPostgres.transaction(fn ->
            talk_until_braid!(kith, repo)
            send(test, :holds)

            receive do
              :let_go -> :ok
            end
          end)
        end)

      assert_receive :holds, 60_000
      waiter = Task.async(fn -> Kith.encrypt(kith, "anna", "ben", "after") end)
      wait_for_lock()
      send(writer.pid, :let_go)
      assert {:ok, :ok} = Task.await(writer, 60_000)
      assert {:ok, [envelope]} = Task.await(waiter, 60_000)
      assert Kith.decrypt!(kith, "ben", envelope) == "after"
    end

    test "and still does not open is :corrupted_state, after one more read", %{
      kith: kith,
      repo: repo
    } do
      converse!(kith, "anna", "ben")
      Repo.execute(repo, "UPDATE kith.signal_braids SET revision = revision + 1", [])
      {result, ran} = statements(fn -> Kith.encrypt(kith, "anna", "ben", "x") end)
      assert reason(result) == :corrupted_state
      assert Enum.count(ran, &(kind(&1) == {"SELECT", "signal_sessions"})) == 2
    end
  end

  # It changes every few turns.
  defp talk_until_braid!(kith, repo) do
    before = braid(repo)

    assert Enum.find(1..100, fn _ ->
             send!(kith, "ben", "anna", "ping")
             send!(kith, "anna", "ben", "pong")
             braid(repo) != before
           end)
  end

  defp braid(repo),
    do: Repo.rows(repo, "SELECT braid FROM kith.signal_braids WHERE user_id = 'anna'", [])

  defp wait_for_lock do
    sql =
      "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'postgres_test'"

    # On a connection of its own: a transaction does not see others move on.
    case Postgres.once(Postgres.address(Postgres.cluster()), sql) do
      {:ok, %{rows: [[0]]}} ->
        Process.sleep(5)
        wait_for_lock()

      {:ok, _} ->
        :ok
    end
  end

  describe "many at once" do
    test "on one session and on many, in any order, make no deadlock and lose nothing", %{
      kith: kith
    } do
      members = users(6)
      register!(kith, ["anna" | members])

      envelopes =
        1..20
        |> Enum.map(fn n ->
          Task.async(fn ->
            {n, Kith.encrypt_group!(kith, "anna", Enum.shuffle(members), "#{n}")}
          end)
        end)
        |> Task.await_many(120_000)

      for {n, results} <- Enum.shuffle(envelopes), {{member, 1}, {:ok, envelope}} <- results do
        assert Kith.decrypt!(kith, member, envelope) == "#{n}"
      end
    end

    test "register and unregister the devices of one user, which keeps its key as long as it has one",
         %{
           kith: kith,
           repo: repo
         } do
      for _ <- 1..10 do
        Kith.register!(kith, {"anna", 1})

        [{:ok, :unregistered}, {:ok, %{device: 2}}] =
          Task.await_many(
            [
              Task.async(fn -> Kith.unregister(kith, {"anna", 1}) end),
              Task.async(fn -> Kith.register(kith, {"anna", 2}) end)
            ],
            60_000
          )

        assert [[1]] = Repo.rows(repo, "SELECT COUNT(*) FROM kith.signal_accounts", [])
        register!(kith, ["ben"])
        assert send!(kith, {"anna", 2}, "ben", "x") == "x"
        Kith.unregister!(kith, {"anna", 2})
        Kith.unregister!(kith, "ben")
        assert [[0]] = Repo.rows(repo, "SELECT COUNT(*) FROM kith.signal_accounts", [])
      end
    end
  end

  describe "what a call leaves behind of a device that went meanwhile" do
    test "is cleared when the device comes anew", %{kith: kith, repo: repo} do
      converse!(kith, "anna", "ben")
      [row] = Repo.rows(repo, "SELECT state FROM kith.signal_sessions WHERE user_id = 'anna'", [])
      Kith.unregister!(kith, "anna")
      1 = Sessions.put(repo, {"anna", 1}, [{{"ben", 1}, 1, hd(row), nil}], 0)
      Sessions.put_braids(repo, {"anna", 1}, [{{"ben", 1}, {"id", 1, "braid"}}])

      Kith.register!(kith, "anna")
      assert reason(Kith.encrypt(kith, "ben", "anna", "x")) == :untrusted_identity
      Kith.trust!(kith, "ben", "anna", [])
      assert send!(kith, "anna", "ben", "anew") == "anew"
    end
  end

  describe "errors of the server" do
    setup %{kith: kith} do
      converse!(kith, "anna", "ben")
    end

    test "that another attempt may mend are tried again", %{kith: kith} do
      for code <- ~w(40001 40P01 55P03) do
        once = :counters.new(1, [])

        OnPostgres.intercept(fn sql, run ->
          if sql =~ "INSERT INTO" and :counters.get(once, 1) == 0 do
            :counters.add(once, 1, 1)
            {:instead, "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '#{code}'; END $$"}
          else
            run.()
          end
        end)

        assert send!(kith, "anna", "ben", code) == code
      end
    end

    test "of a real deadlock are tried again", %{kith: kith, repo: repo} do
      register!(kith, ["cleo"])
      send!(kith, "anna", "cleo", "x")
      test = self()

      # Locks what the fan-out locks, in the other order.
      other =
        Task.async(fn ->
          OnPostgres.transaction(fn ->
            lock!(repo, "cleo")
            send(test, :locked)
            wait_for_lock()
            lock!(repo, "ben")
          end)
        end)

      assert_receive :locked
      assert {:ok, results} = Kith.encrypt_group(kith, "anna", ["ben", "cleo"], "through")
      Task.await(other, 60_000)

      for {{member, 1}, {:ok, envelope}} <- results,
          do: assert(Kith.decrypt!(kith, member, envelope) == "through")
    end

    test "that end the connection are :storage, and the next call goes on", %{kith: kith} do
      before = dump(kith)

      OnPostgres.intercept(fn sql, run ->
        if sql =~ "INSERT INTO" do
          OnPostgres.intercept(fn _, run -> run.() end)
          Postgres.once(Postgres.address(Postgres.cluster()), terminate())
        end

        run.()
      end)

      assert {:error, %Error{reason: :storage}} = Kith.encrypt(kith, "anna", "ben", "x")
      # The other connections of the pool are lost too, and each says so once.
      for _ <- 1..100, do: OnPostgres.query("SELECT 1")
      assert dump(kith) == before
      assert send!(kith, "anna", "ben", "on we go") == "on we go"
    end
  end

  defp terminate do
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity " <>
      "WHERE datname = 'postgres_test' AND pid <> pg_backend_pid()"
  end

  defp lock!(repo, peer) do
    sql = "SELECT 1 FROM kith.signal_sessions WHERE user_id = 'anna' AND peer_id = $1 FOR UPDATE"
    Repo.rows(repo, sql, [peer])
  end
end
