defmodule Kith.MaintenanceTest do
  # One repository module, so one test at a time.
  use Kith.Case, async: false

  import ExUnit.CaptureLog

  alias Kith.{Instance, Migration, Registration, SQLite}
  alias Kith.Store.Prekeys
  alias Kith.Test.Repo

  @day 86_400

  # A clock that is ahead of the time by as much as travel/2 has said.
  defp clock do
    ahead = :atomics.new(1, signed: true)
    {ahead, fn -> System.system_time(:millisecond) + :atomics.get(ahead, 1) end}
  end

  defp travel(ahead, seconds), do: :atomics.add(ahead, 1, seconds * 1_000)

  defp start_clocked!(options \\ []) do
    {ahead, clock} = clock()
    {start_kith!([clock: clock] ++ options), ahead}
  end

  defp start_on_repo!(options) do
    {:ok, _} = start_supervised({SQLite, path: Path.join(tmp_dir!(), "x.db"), name: __MODULE__})
    Repo.connect(SQLite.handle(__MODULE__))
    :ok = Migration.run(Repo)
    {ahead, clock} = clock()
    {start_kith!([repo: Repo, clock: clock] ++ options), ahead}
  end

  # What a pass did, without what it did not do.
  defp maintain!(kith),
    do: kith |> Kith.maintain!() |> Map.reject(fn {_, count} -> count == 0 end)

  defp rows(kith, sql, params \\ []) do
    {:ok, %{rows: rows}} =
      case Instance.fetch!(kith).repo do
        %SQLite{} = repo -> SQLite.query(repo, sql, params)
        _repo -> SQLite.query(SQLite.handle(__MODULE__), sql, params)
      end

    rows
  end

  defp current(kith, user) do
    for [kind, id] <-
          rows(
            kith,
            "SELECT kind, prekey_id FROM signal_prekeys WHERE user_id = $1 AND superseded_at IS NULL " <>
              "AND kind IN ('signed', 'kyber_last_resort')",
            [user]
          ),
        into: %{},
        do: {kind, id}
  end

  defp superseded(kith),
    do:
      List.flatten(
        rows(
          kith,
          "SELECT prekey_id FROM signal_prekeys WHERE superseded_at IS NOT NULL AND kind = 'signed' " <>
            "ORDER BY superseded_at"
        )
      )

  # A bundle of a user of one instance, in the hands of a sender of another.
  defp hand_over!(kith, user, other) do
    bundle = Kith.pre_key_bundle!(kith, user)
    fields = Map.from_struct(%{bundle | prekeys: List.wrap(bundle.prekey)})
    Kith.publish_bundle!(other, user, fields)
  end

  describe "one-time prekeys" do
    test "of both kinds are made for every local device that has few" do
      kith = start_kith!(one_time_prekeys: 10, one_time_kyber_prekeys: 5, replenish_below: 3)
      register!(kith, ~w(anna ben cleo) ++ [{"ben", 2}])
      assert maintain!(kith) == %{}

      # Used up where nobody asked for new ones.
      rows(
        kith,
        "UPDATE signal_prekeys SET claimed_at = 1 WHERE user_id = 'ben' AND device_id = 2"
      )

      rows(
        kith,
        "UPDATE signal_prekeys SET claimed_at = 1 WHERE user_id = 'anna' AND kind = 'kyber_one_time'"
      )

      assert maintain!(kith) == %{replenished: 2}
      assert Kith.prekey_count!(kith, {"ben", 2}) == 10
      assert Kith.kyber_prekey_count!(kith, {"ben", 2}) == 5
      assert Kith.kyber_prekey_count!(kith, "anna") == 5
      assert maintain!(kith) == %{}
    end

    test "are looked after on more devices than a batch has" do
      kith = start_kith!(one_time_prekeys: 2, one_time_kyber_prekeys: 0, replenish_below: 1)
      for n <- 1..120, do: Kith.register!(kith, "user #{n}")
      rows(kith, "UPDATE signal_prekeys SET claimed_at = 1 WHERE kind = 'one_time'")
      assert maintain!(kith) == %{replenished: 120}
      assert maintain!(kith) == %{}
    end

    test "of a device whose private keys live elsewhere are its own affair" do
      kith = start_kith!()
      client = start_kith!()
      register!(client, ["olga"])
      bundle = Kith.pre_key_bundle!(client, "olga")
      Kith.publish_bundle!(kith, "olga", %{bundle | prekeys: [bundle.prekey]})
      assert maintain!(kith) == %{}
      assert Kith.prekey_count!(kith, "olga") == 1
    end
  end

  describe "signed prekeys and Kyber prekeys of last resort" do
    test "are replaced when they are seven days old, not before, and once" do
      {kith, ahead} = start_clocked!()
      register!(kith, ~w(anna ben))
      before = current(kith, "ben")

      travel(ahead, 7 * @day - 60)
      assert maintain!(kith) == %{}
      assert current(kith, "ben") == before

      travel(ahead, 120)
      assert maintain!(kith) == %{rotated: 2}
      assert maintain!(kith) == %{}

      after_it = current(kith, "ben")
      assert after_it["signed"] == before["signed"] + 1
      assert after_it["kyber_last_resort"] > before["kyber_last_resort"] + 20
      assert Kith.pre_key_bundle!(kith, "ben").signed_prekey.id == after_it["signed"]
      assert superseded(kith) |> Enum.member?(before["signed"])
    end

    test "have ids that are never used twice, over a year of rotations" do
      {kith, ahead} =
        start_clocked!(one_time_kyber_prekeys: 2, one_time_prekeys: 2, replenish_below: 1)

      register!(kith, ["ben"])

      ids =
        for _ <- 1..52 do
          travel(ahead, 7 * @day + 1)
          assert %{rotated: 1} = maintain!(kith)
          Kith.pre_key_bundle!(kith, "ben")
          Kith.replenish!(kith, "ben")

          %{"signed" => signed, "kyber_last_resort" => kyber} = current(kith, "ben")
          # A message names a Kyber prekey by its id alone.
          [[0]] =
            rows(
              kith,
              "SELECT COUNT(*) FROM signal_prekeys WHERE kind = 'kyber_one_time' AND prekey_id = $1",
              [kyber]
            )

          {signed, kyber}
        end

      {signed, kyber} = Enum.unzip(ids)
      assert signed == Enum.to_list(hd(signed)..(hd(signed) + 51))
      assert kyber == Enum.sort(Enum.uniq(kyber))

      # Those replaced now and in the last 30 days.
      assert length(superseded(kith)) == 5
      assert send!(kith, "ben", "ben", "note") == "note"
      register!(kith, ["anna"])
      assert send!(kith, "anna", "ben", "still here") == "still here"
    end

    test "stay with :prekey_rotation 0" do
      {kith, ahead} = start_clocked!(prekey_rotation: 0)
      register!(kith, ["ben"])
      before = current(kith, "ben")
      travel(ahead, 300 * @day)
      assert maintain!(kith) == %{}
      assert current(kith, "ben") == before
    end

    test "of a device whose private keys live elsewhere stay" do
      {kith, ahead} = start_clocked!()
      client = start_kith!()
      register!(client, ["olga"])
      hand_over!(client, "olga", kith)
      before = current(kith, "olga")
      travel(ahead, 100 * @day)
      assert maintain!(kith) == %{}
      assert current(kith, "olga") == before
    end

    test "open messages of a bundle that was fetched before, within the grace and not after" do
      {kith, ahead} = start_clocked!(unknown_senders: :remember)
      far = start_kith!()
      register!(kith, ["ben"])
      register!(far, ~w(anna cleo))

      # Two bundles without one-time prekeys, and two with.
      rows(kith, "UPDATE signal_prekeys SET claimed_at = 1 WHERE kind LIKE '%one_time'")
      hand_over!(kith, "ben", far)
      in_time = encrypt_one!(far, "anna", "ben", "in time")
      too_late = encrypt_one!(far, "cleo", "ben", "too late")
      rows(kith, "UPDATE signal_prekeys SET claimed_at = NULL")

      travel(ahead, 7 * @day + 1)
      assert %{rotated: 1} = maintain!(kith)
      travel(ahead, 30 * @day - 60)
      assert %{rotated: 1} = maintain!(kith)
      assert Kith.decrypt!(kith, "ben", in_time) == "in time"

      travel(ahead, 120)
      assert %{signed_prekeys: 2, base_keys: 1} = maintain!(kith)
      assert reason(Kith.decrypt(kith, "ben", too_late)) == :unknown_prekey
      # The session made in time goes on.
      assert reason(Kith.decrypt(kith, "ben", in_time)) == :duplicate
    end

    test "replaced during traffic lose nothing" do
      {kith, ahead} =
        start_clocked!(one_time_prekeys: 3, one_time_kyber_prekeys: 1, replenish_below: 1)

      senders = for n <- 1..6, do: "sender #{n}"
      register!(kith, ["ben" | senders])

      traffic =
        for sender <- senders do
          Task.async(fn ->
            for n <- 1..25 do
              # Each time a new session, made from whatever bundle is handed out now.
              if n > 1, do: Kith.reset_session!(kith, sender, "ben")
              envelope = encrypt_one!(kith, sender, "ben", "#{sender}: #{n}")
              assert envelope.type == :prekey
              assert Kith.decrypt!(kith, "ben", envelope) == "#{sender}: #{n}"
            end
          end)
        end

      rotated =
        for _ <- 1..6 do
          travel(ahead, 7 * @day + 1)
          Kith.maintain!(kith).rotated
        end

      Task.await_many(traffic, 60_000)
      assert rotated == List.duplicate(7, 6)
    end

    test "make one new key when many replace them at once" do
      {ahead, clock} = clock()
      path = Path.join(tmp_dir!(), "shared.db")
      [one, two] = for _ <- 1..2, do: start_kith!(database: path, clock: clock)
      register!(one, ["ben"])
      %{"signed" => before} = current(one, "ben")
      travel(ahead, 8 * @day)
      now = clock.()

      rotated =
        for n <- 1..8 do
          instance = Instance.fetch!(if(rem(n, 2) == 0, do: one, else: two))
          Task.async(fn -> Registration.rotate(instance, {"ben", 1}, now - 7 * @day * 1_000) end)
        end
        |> Task.await_many(30_000)

      assert Enum.sort(rotated) == List.duplicate({:ok, 0}, 7) ++ [{:ok, 2}]
      assert %{"signed" => after_it} = current(one, "ben")
      assert after_it == before + 1
      assert superseded(two) == [before]
    end

    test "of a device that does not open keep no other device from new ones" do
      {kith, ahead} = start_clocked!()
      register!(kith, ~w(anna ben cleo))

      rows(
        kith,
        "UPDATE signal_identity_keys SET private_key_encrypted = $1 WHERE user_id = 'ben'",
        [
          {:blob, "junk"}
        ]
      )

      travel(ahead, 8 * @day)

      log =
        capture_log(fn ->
          assert maintain!(kith) == %{rotated: 2, failed: 1}
        end)

      assert log =~ "no new signed prekey for a device 1"
      refute log =~ "ben"
    end
  end

  describe "what is purged" do
    test "used one-time prekeys go after their grace" do
      {kith, ahead} = start_clocked!()
      register!(kith, ~w(anna ben))
      send!(kith, "anna", "ben", "hello")
      travel(ahead, 7 * @day - 60)
      assert maintain!(kith) == %{}
      travel(ahead, 60)
      assert %{prekeys: 2} = maintain!(kith)
      assert rows(kith, "SELECT 1 FROM signal_prekeys WHERE used_at IS NOT NULL") == []
    end

    test "without a grace used one-time prekeys go at once" do
      kith = start_kith!(prekey_grace_period: 0)
      register!(kith, ~w(anna ben))
      send!(kith, "anna", "ben", "hello")
      assert rows(kith, "SELECT 1 FROM signal_prekeys WHERE used_at IS NOT NULL") == []
    end

    test "one-time prekeys nobody used go with the last signed prekey they were handed out with" do
      {kith, ahead} = start_clocked!()
      register!(kith, ["ben"])
      [first] = Enum.map(1..1, fn _ -> Kith.pre_key_bundle!(kith, "ben").prekey.id end)
      travel(ahead, 7 * @day + 1)
      assert %{rotated: 1} = maintain!(kith)
      travel(ahead, 2 * @day)
      second = Kith.pre_key_bundle!(kith, "ben").prekey.id

      claimed = fn ->
        List.flatten(
          rows(
            kith,
            "SELECT prekey_id FROM signal_prekeys WHERE claimed_at IS NOT NULL AND kind = 'one_time'"
          )
        )
      end

      travel(ahead, 27 * @day)
      assert %{rotated: 1} = maintain!(kith)
      assert claimed.() == [first, second]
      travel(ahead, 2 * @day)
      assert %{signed_prekeys: 2, prekeys: 2} = maintain!(kith)
      assert claimed.() == [second]
    end

    test "a replayed first message is never opened twice, whenever its keys are purged" do
      {kith, ahead} = start_clocked!()
      register!(kith, ~w(anna ben))
      rows(kith, "UPDATE signal_prekeys SET claimed_at = 1 WHERE kind LIKE '%one_time'")
      first = encrypt_one!(kith, "anna", "ben", "hello")
      assert Kith.decrypt!(kith, "ben", first) == "hello"
      Kith.delete!(kith, "ben", "anna")

      travel(ahead, 7 * @day + 1)
      Kith.maintain!(kith)
      assert reason(Kith.decrypt(kith, "ben", first)) == :session_not_found

      travel(ahead, 30 * @day)
      assert %{base_keys: 1, signed_prekeys: 4} = maintain!(kith)
      assert rows(kith, "SELECT 1 FROM signal_base_keys") == []
      assert reason(Kith.decrypt(kith, "ben", first)) == :unknown_prekey
    end

    test "more base keys than a batch has go before their signed prekey" do
      {kith, ahead} = start_clocked!()
      register!(kith, ["ben"])
      instance = Instance.fetch!(kith)
      %{"signed" => id} = current(kith, "ben")

      for n <- 1..350,
          do: Prekeys.insert_base_key(instance.repo, {"ben", 1}, {id, "key #{n}"}, 0)

      Prekeys.insert_base_key(instance.repo, {"ben", 1}, {id + 1, "key of another"}, 0)
      travel(ahead, 8 * @day)
      Kith.maintain!(kith)
      travel(ahead, 31 * @day)
      assert %{base_keys: 350, signed_prekeys: 2} = maintain!(kith)
      assert rows(kith, "SELECT signed_prekey_id FROM signal_base_keys") == [[id + 1]]
    end

    test "old skipped keys go, and the session goes on" do
      {kith, ahead} = start_clocked!()
      converse!(kith, "anna", "ben")
      late = encrypt_one!(kith, "anna", "ben", "late")
      send!(kith, "anna", "ben", "after it")
      travel(ahead, 10 * @day)
      younger = encrypt_one!(kith, "anna", "ben", "younger")
      send!(kith, "anna", "ben", "after it")
      assert skipped_keys(kith) == 2

      travel(ahead, 21 * @day)
      assert %{skipped_keys: 1} = maintain!(kith)
      assert skipped_keys(kith) == 1

      before = dump(kith)
      assert reason(Kith.decrypt(kith, "ben", late)) == :duplicate
      assert dump(kith) == before
      assert Kith.decrypt!(kith, "ben", younger) == "younger"

      for n <- 1..5 do
        assert send!(kith, "ben", "anna", "b#{n}") == "b#{n}"
        assert send!(kith, "anna", "ben", "a#{n}") == "a#{n}"
      end
    end

    test "of the two keys of a skipped message both go, and no chunk does" do
      {kith, ahead} = start_clocked!()
      converse!(kith, "anna", "ben")

      of_kind = fn ->
        rows(
          kith,
          "SELECT hex(substr(entry_group, 1, 1)), COUNT(*) FROM signal_session_entries GROUP BY 1"
        )
        |> Map.new(fn [kind, count] -> {kind, count} end)
      end

      # In the middle of an epoch chunks wait for more of them.
      Enum.find(1..100, fn n ->
        send!(kith, "ben", "anna", "b#{n}")
        send!(kith, "anna", "ben", "a#{n}")
        of_kind.()["02"]
      end)

      for _ <- 1..150, do: encrypt_one!(kith, "anna", "ben", "lost")
      send!(kith, "anna", "ben", "after them")
      assert %{"05" => 150, "01" => 150, "02" => chunks} = of_kind.()
      assert chunks > 0
      travel(ahead, 31 * @day)
      assert %{skipped_keys: 150} = maintain!(kith)
      assert of_kind.() == %{"02" => chunks}

      for n <- 1..100 do
        assert send!(kith, "ben", "anna", "b#{n}") == "b#{n}"
        assert send!(kith, "anna", "ben", "a#{n}") == "a#{n}"
      end
    end

    test "keys skipped later have the room of those that were purged" do
      {kith, ahead} = start_clocked!()
      converse!(kith, "anna", "ben")
      for _ <- 1..1_900, do: encrypt_one!(kith, "anna", "ben", "lost")
      send!(kith, "anna", "ben", "after them")
      assert skipped_keys(kith) == 1_900
      travel(ahead, 31 * @day)
      assert %{skipped_keys: 1_900} = maintain!(kith)

      # The state counts 2,200 with those that are gone.
      [first | _] = late = for n <- 1..300, do: encrypt_one!(kith, "anna", "ben", "#{n}")
      send!(kith, "anna", "ben", "after them")
      assert skipped_keys(kith) == 300
      assert Kith.decrypt!(kith, "ben", first) == "1"
      assert Kith.decrypt!(kith, "ben", List.last(late)) == "300"

      # And no more than 2,000 of them.
      for _ <- 1..1_800, do: encrypt_one!(kith, "anna", "ben", "lost")
      send!(kith, "anna", "ben", "after them")
      assert skipped_keys(kith) == 2_000
      assert reason(Kith.decrypt(kith, "ben", Enum.at(late, 1))) == :duplicate
      assert Kith.decrypt!(kith, "ben", Enum.at(late, 298)) == "299"
    end

    test "skipped keys stay with :skipped_key_lifetime 0" do
      {kith, ahead} = start_clocked!(skipped_key_lifetime: 0)
      converse!(kith, "anna", "ben")
      late = encrypt_one!(kith, "anna", "ben", "late")
      send!(kith, "anna", "ben", "after it")
      travel(ahead, 300 * @day)
      Kith.maintain!(kith)
      assert Kith.decrypt!(kith, "ben", late) == "late"
    end

    test "old counts of recoveries go" do
      {kith, ahead} = start_clocked!()
      now = System.system_time(:millisecond)

      for {peer, at} <- [{"old", now}, {"new", now + (7 * @day + 3_600) * 1_000}] do
        rows(
          kith,
          "INSERT INTO signal_recoveries VALUES ('anna', 1, $1, 1, 'resend', $2, 1)",
          [peer, at]
        )
      end

      travel(ahead, 8 * @day)
      assert %{recoveries: 1} = maintain!(kith)
      assert rows(kith, "SELECT peer_id FROM signal_recoveries") == [["new"]]
    end

    test "messages of the archive go when their time is over" do
      {kith, ahead} = start_clocked!(archive: [retention: 86_400])
      converse!(kith, "anna", "ben")
      assert [_, _, _] = Kith.history!(kith, "ben", {:direct, "anna"}).messages
      travel(ahead, @day + 60)
      assert Kith.history!(kith, "ben", {:direct, "anna"}).messages == []
      assert %{messages: 6} = maintain!(kith)
      assert rows(kith, "SELECT 1 FROM signal_archived_messages") == []
      assert rows(kith, "SELECT 1 FROM signal_threads") == []
    end

    test "what was deleted is not in the write-ahead log any more" do
      path = Path.join(tmp_dir!(), "kith.db")
      {kith, ahead} = start_clocked!(database: path)
      converse!(kith, "anna", "ben")
      assert File.stat!(path <> "-wal").size > 0
      travel(ahead, 8 * @day)
      assert %{prekeys: 2, rotated: 2} = maintain!(kith)
      assert File.stat!(path <> "-wal").size == 0

      # Not when there is nothing that must go.
      send!(kith, "anna", "ben", "hello")
      assert maintain!(kith) == %{}
      assert File.stat!(path <> "-wal").size > 0
    end
  end

  describe "a session nobody answers in" do
    setup do
      {kith, ahead} = start_clocked!()
      register!(kith, ~w(anna ben))
      first = encrypt_one!(kith, "anna", "ben", "hello")
      %{kith: kith, ahead: ahead, first: first}
    end

    test "is ended after 30 days, and an answer still opens",
         %{kith: kith, ahead: ahead, first: first} do
      travel(ahead, 30 * @day - 60)
      refute Map.has_key?(maintain!(kith), :sessions)
      Kith.decrypt!(kith, "ben", first)
      answer = encrypt_one!(kith, "ben", "anna", "late answer")

      travel(ahead, 120)
      assert %{sessions: 1} = maintain!(kith)
      assert reason(Kith.session_info(kith, "anna", "ben")) == :session_not_found
      refute Map.has_key?(maintain!(kith), :sessions)

      assert Kith.decrypt!(kith, "anna", answer) == "late answer"
    end

    test "is followed by a new one", %{kith: kith, ahead: ahead, first: first} do
      travel(ahead, 31 * @day)
      assert %{sessions: 1} = maintain!(kith)
      second = encrypt_one!(kith, "anna", "ben", "hello?")
      assert second.type == :prekey
      assert second.session_id != first.session_id
      assert Kith.decrypt!(kith, "ben", second) == "hello?"
    end

    test "goes on when somebody has answered", %{kith: kith, ahead: ahead, first: first} do
      Kith.decrypt!(kith, "ben", first)
      assert send!(kith, "ben", "anna", "hi") == "hi"
      travel(ahead, 31 * @day)
      refute Map.has_key?(maintain!(kith), :sessions)
      assert {:ok, _} = Kith.session_info(kith, "anna", "ben")
    end
  end

  test "sessions nobody answers in stay with :unacknowledged_session_lifetime 0" do
    {kith, ahead} = start_clocked!(unacknowledged_session_lifetime: 0)
    register!(kith, ~w(anna ben))
    encrypt_one!(kith, "anna", "ben", "hello")
    rows(kith, "UPDATE signal_sessions SET established_at = 1")
    travel(ahead, 31 * @day)
    refute Map.has_key?(maintain!(kith), :sessions)
  end

  describe "of many nodes" do
    test "one does a task, whoever begins first" do
      {ahead, clock} = clock()
      path = Path.join(tmp_dir!(), "shared.db")
      nodes = for _ <- 1..3, do: start_kith!(database: path, clock: clock)
      for n <- 1..30, do: Kith.register!(hd(nodes), "user #{n}")
      travel(ahead, 8 * @day)

      done =
        nodes
        |> Enum.map(fn kith -> Task.async(fn -> Kith.maintain!(kith) end) end)
        |> Task.await_many(60_000)

      assert done |> Enum.map(& &1.rotated) |> Enum.sum() == 30
      assert length(superseded(hd(nodes))) == 30
    end

    test "one that died with a claim is replaced when the claim is over" do
      {kith, ahead} = start_clocked!()
      register!(kith, ["ben"])
      travel(ahead, 8 * @day)
      now = System.system_time(:millisecond) + 8 * @day * 1_000

      for task <- ~w(rotate purge) do
        rows(
          kith,
          "INSERT INTO signal_maintenance (task, claimed_by, claimed_until) VALUES ($1, 'dead', $2)",
          [task, now + 60_000]
        )
      end

      assert maintain!(kith) == %{}
      travel(ahead, 61)
      assert %{rotated: 1} = maintain!(kith)

      assert [[nil, nil]] =
               Enum.uniq(rows(kith, "SELECT claimed_by, claimed_until FROM signal_maintenance"))
    end

    test "one whose clock runs far ahead stops nobody for long" do
      {kith, ahead} = start_clocked!()
      register!(kith, ["ben"])
      travel(ahead, 8 * @day)
      far = System.system_time(:millisecond) + 300 * @day * 1_000

      rows(
        kith,
        "INSERT INTO signal_maintenance VALUES ('rotate', 'from the future', $1, $1)",
        [far]
      )

      assert %{rotated: 1} = maintain!(kith)
    end
  end

  describe "passes" do
    test "are made by themselves, soon after the start and again" do
      {ahead, clock} = clock()
      kith = start_kith!(maintenance_interval: 1, clock: clock)
      register!(kith, ["ben"])
      eventually(fn -> length(finished(kith)) == 4 end)
      travel(ahead, 8 * @day)
      eventually(fn -> length(superseded(kith)) == 1 end)
    end

    test "are made by one of the nodes in an interval" do
      {_, clock} = clock()
      path = Path.join(tmp_dir!(), "shared.db")
      one = start_kith!(database: path, clock: clock, maintenance_interval: 1)
      eventually(fn -> length(finished(one)) == 4 end)
      stop_kith!(one)

      # Another one comes, whose intervals are long. What was just done is not done again.
      two = start_kith!(database: path, clock: clock)
      before = finished(two)
      %{options: options} = instance = Instance.fetch!(two)
      options = %{options | maintenance_interval: 3_600}
      due = %{instance | options: options}
      assert {:ok, _} = Kith.Maintenance.pass(due, "two", false)
      assert finished(two) == before

      assert {:ok, _} = Kith.Maintenance.pass(due, "two", true)
      assert finished(two) != before
    end

    test "are made for each who asks while one runs" do
      {kith, ahead} = start_clocked!()
      for n <- 1..20, do: Kith.register!(kith, "user #{n}")
      travel(ahead, 8 * @day)

      rotated =
        1..5
        |> Enum.map(fn _ -> Task.async(fn -> Kith.maintain!(kith).rotated end) end)
        |> Task.await_many(30_000)

      # The first alone, and those who came meanwhile together.
      assert Enum.sort(rotated) == [0, 0, 0, 0, 20]
    end

    test "inside a transaction would wait for themselves" do
      kith = start_kith!()

      SQLite.transaction(Instance.fetch!(kith).repo, fn ->
        assert_raise ArgumentError, ~r/outside of a transaction/, fn -> Kith.maintain(kith) end
      end)
    end

    test "that the database fails are made again" do
      {kith, ahead} = start_on_repo!(one_time_prekeys: 2, replenish_below: 1)
      register!(kith, ~w(anna ben))
      travel(ahead, 8 * @day)

      Repo.intercept(fn sql, run ->
        if sql =~ "SET superseded_at",
          do: {:error, %SQLite.Error{kind: :io, message: "gone"}},
          else: run.()
      end)

      log = capture_log(fn -> assert reason(Kith.maintain(kith)) == :storage end)
      assert log =~ "maintenance: rotate"
      assert superseded(kith) == []

      Repo.intercept(fn _, run -> run.() end)
      assert %{rotated: 2} = maintain!(kith)
      assert send!(kith, "anna", "ben", "hello") == "hello"
    end

    test "that find a fault of their own end with it, and the other tasks are done" do
      {kith, ahead} = start_on_repo!(one_time_prekeys: 2, replenish_below: 1)
      register!(kith, ["ben"])
      travel(ahead, 8 * @day)

      Repo.intercept(fn sql, run ->
        if sql =~ "CROSS JOIN" or sql =~ "i.local", do: raise("secret words"), else: run.()
      end)

      log = capture_log(fn -> assert reason(Kith.maintain(kith)) == :panic end)
      assert log =~ "replenish failed with RuntimeError"
      refute log =~ "secret"
      assert length(superseded(kith)) == 1
    end

    test "killed at any statement lose nothing, and the next one does the rest" do
      {kith, ahead} =
        start_on_repo!(
          one_time_prekeys: 2,
          one_time_kyber_prekeys: 1,
          replenish_below: 1,
          unknown_senders: :remember
        )

      register!(kith, ~w(anna ben cleo))
      counter = :counters.new(1, [])
      [{server, _}] = Registry.lookup(Kith.Registry, {Kith.Maintenance, kith})

      # Each pass has all kinds of work, and dies one statement later than the one before.
      killed =
        Enum.reduce_while(1..500, 0, fn n, killed ->
          for user <- ~w(anna cleo) do
            Kith.reset_session(kith, user, "ben")
            send!(kith, user, "ben", "hello")
          end

          late = encrypt_one!(kith, "anna", "ben", "late")
          send!(kith, "anna", "ben", "after it")
          Kith.reset_session!(kith, "cleo", "ben")
          waiting = encrypt_one!(kith, "cleo", "ben", "waiting")
          travel(ahead, 8 * @day)

          rows(
            kith,
            "UPDATE signal_prekeys SET claimed_at = 1 WHERE user_id = 'anna' AND kind = 'one_time'"
          )

          :counters.put(counter, 1, 0)

          Repo.intercept(fn _sql, run ->
            # Not the process that waits for the pass, and makes prekeys meanwhile.
            if self() != server do
              :counters.add(counter, 1, 1)
              if :counters.get(counter, 1) == n, do: Process.exit(self(), :kill)
            end

            run.()
          end)

          result = Kith.maintain(kith)
          Repo.intercept(fn _, run -> run.() end)
          # What the dead one had claimed is free again.
          travel(ahead, 121)
          assert Kith.decrypt!(kith, "ben", waiting) == "waiting"
          assert Kith.decrypt!(kith, "ben", late) == "late"
          for user <- ~w(anna ben cleo), do: assert(map_size(current(kith, user)) == 2)

          case result do
            {:ok, _} ->
              {:halt, killed}

            {:error, error} ->
              assert error.reason == :panic
              {:cont, killed + 1}
          end
        end)

      assert killed > 50
      maintain!(kith)
      assert maintain!(kith) == %{}
      # What they left half done was done by those after them.
      assert rows(
               kith,
               "SELECT COUNT(*) FROM signal_base_keys b WHERE NOT EXISTS (SELECT 1 FROM signal_prekeys p " <>
                 "WHERE p.user_id = b.user_id AND p.prekey_id = b.signed_prekey_id AND p.kind = 'signed')"
             ) == [[0]]

      register!(kith, ["dan"])
      assert send!(kith, "dan", "ben", "new") == "new"
    end

    defp finished(kith),
      do:
        rows(
          kith,
          "SELECT task, finished_at FROM signal_maintenance WHERE finished_at IS NOT NULL ORDER BY task"
        )
  end

  defmodule Used do
    use Kith, otp_app: :kith
  end

  test "a module that says use Kith has it too" do
    start_supervised!({Used, defaults()})
    Used.register!("ben")
    assert {:ok, %{rotated: 0}} = Used.maintain()
    assert %{rotated: 0} = Used.maintain!()
  end
end
