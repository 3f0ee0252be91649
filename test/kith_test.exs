defmodule KithTest do
  use Kith.Case, async: true
  use Kith.Test.Stores
  doctest Kith, only: [requires_encryption?: 1]

  alias Kith.{Envelope, Error, SQLite}

  describe "register/3" do
    test "gives a user an identity, a signed prekey, a Kyber prekey of last resort and one-time prekeys" do
      kith = start_kith!()

      assert {:ok, %{user: "anna", device: 1, registration_id: id, identity_key: <<5, _::256>>}} =
               Kith.register(kith, "anna")

      assert id in 1..0x3FFF
      assert Kith.prekey_count!(kith, "anna") == 100
      assert Kith.kyber_prekey_count!(kith, "anna") == 20

      assert Enum.sort(sql!(kith, "SELECT kind, COUNT(*) FROM signal_prekeys GROUP BY kind")) ==
               [
                 ["kyber_last_resort", 1],
                 ["kyber_one_time", 20],
                 ["one_time", 100],
                 ["signed", 1]
               ]

      # A message names a Kyber prekey by its id alone.
      ids = sql!(kith, "SELECT prekey_id FROM signal_prekeys WHERE kind LIKE 'kyber%'")
      assert Enum.uniq(ids) == ids
    end

    test "called again changes nothing and returns the same" do
      kith = start_kith!()
      first = Kith.register!(kith, "anna")
      before = dump(kith)

      assert Kith.register!(kith, "anna") == first
      assert dump(kith) == before
    end

    test "called by many at once makes one identity" do
      kith = start_kith!(one_time_prekeys: 5, replenish_below: 0)

      assert [_] =
               1..10
               |> Enum.map(fn _ -> Task.async(fn -> Kith.register!(kith, "anna") end) end)
               |> Task.await_many()
               |> Enum.uniq()

      assert Kith.prekey_count!(kith, "anna") == 5
    end

    test "gives each device of a user prekeys of its own, and the user's identity" do
      kith = start_kith!()
      first = Kith.register!(kith, "anna")
      second = Kith.register!(kith, "anna", device: 2)

      assert second.device == 2
      assert first.identity_key == second.identity_key
      signed = &Kith.pre_key_bundle!(kith, &1).signed_prekey.public_key
      assert signed.("anna") != signed.({"anna", 2})
      assert [[1]] = sql!(kith, "SELECT COUNT(*) FROM signal_accounts")
      assert send!(kith, "anna", {"anna", 2}, "note from the phone") == "note from the phone"
    end

    test "raises for a user that cannot be one" do
      kith = start_kith!()

      for user <- [
            "",
            String.duplicate("a", 256),
            <<255>>,
            "a\0b",
            :anna,
            {"anna", 0},
            {"anna", 128}
          ] do
        assert_raise ArgumentError, ~r/expected a user/, fn -> Kith.register(kith, user) end
      end

      assert_raise ArgumentError, ~r/either an address or :device/, fn ->
        Kith.register(kith, {"anna", 1}, device: 2)
      end
    end
  end

  describe "encrypt/4 and decrypt/3" do
    setup do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      %{kith: kith}
    end

    test "carry messages both ways, the first one establishing the session", %{kith: kith} do
      first = encrypt_one!(kith, "anna", "ben", "hello")
      assert %Envelope{type: :prekey, version: 4, from: {"anna", 1}, to: {"ben", 1}} = first
      assert Kith.decrypt!(kith, "ben", first) == "hello"

      answer = encrypt_one!(kith, "ben", "anna", "hi")
      assert answer.type == :message
      assert answer.session_id == first.session_id
      assert Kith.decrypt!(kith, "anna", answer) == "hi"

      third = encrypt_one!(kith, "anna", "ben", "how are you?")
      assert third.type == :message
      assert Kith.decrypt!(kith, "ben", third) == "how are you?"
    end

    test "take any bytes from none to 64 KiB", %{kith: kith} do
      for plaintext <- ["", <<0>>, <<255, 0, 254>>, :crypto.strong_rand_bytes(65_536)] do
        assert send!(kith, "anna", "ben", plaintext) == plaintext
      end

      before = dump(kith)
      assert reason(Kith.encrypt(kith, "anna", "ben", :binary.copy("a", 65_537))) == :too_large
      assert dump(kith) == before
    end

    test "open messages in any order", %{kith: kith} do
      envelopes = for n <- 1..30, do: {encrypt_one!(kith, "anna", "ben", "#{n}"), "#{n}"}

      for {envelope, plaintext} <- Enum.shuffle(envelopes),
          do: assert(Kith.decrypt!(kith, "ben", envelope) == plaintext)

      assert skipped_keys(kith) == 0
    end

    test "open messages in any order across turns", %{kith: kith} do
      converse!(kith, "anna", "ben")
      late = for n <- 1..5, do: {encrypt_one!(kith, "anna", "ben", "late #{n}"), "late #{n}"}

      for _ <- 1..3 do
        send!(kith, "anna", "ben", "ping")
        send!(kith, "ben", "anna", "pong")
      end

      for {envelope, plaintext} <- Enum.reverse(late),
          do: assert(Kith.decrypt!(kith, "ben", envelope) == plaintext)
    end

    test "jump over 2,100 messages and still open the last 2,000 of them", %{kith: kith} do
      converse!(kith, "anna", "ben")
      skipped = for n <- 1..2_100, do: {encrypt_one!(kith, "anna", "ben", "#{n}"), "#{n}"}
      assert send!(kith, "anna", "ben", "last") == "last"
      assert skipped_keys(kith) == 2_000

      {evicted, kept} = Enum.split(skipped, 100)

      for {envelope, text} <- Enum.take_random(kept, 50),
          do: assert(Kith.decrypt!(kith, "ben", envelope) == text)

      assert skipped_keys(kith) == 1_950
      {envelope, _} = Enum.random(evicted)
      assert reason(Kith.decrypt(kith, "ben", envelope)) == :duplicate
      assert send!(kith, "anna", "ben", "on we go") == "on we go"
    end

    test "evict the oldest skipped keys of a chain as new ones come", %{kith: kith} do
      converse!(kith, "anna", "ben")

      [first, second] =
        for _ <- 1..2 do
          skipped = for n <- 1..1_100, do: {encrypt_one!(kith, "anna", "ben", "#{n}"), "#{n}"}
          send!(kith, "anna", "ben", "after them")
          skipped
        end

      assert skipped_keys(kith) == 2_000

      # Behind the evicted is one more that is too old for the post-quantum chain, in which the message that
      # came through counts too.
      {evicted, [_ | kept]} = Enum.split(first, 200)

      for {envelope, text} <- [hd(kept), List.last(kept), hd(second), List.last(second)],
          do: assert(Kith.decrypt!(kith, "ben", envelope) == text)

      for {envelope, _} <- [hd(evicted), List.last(evicted)],
          do: assert(reason(Kith.decrypt(kith, "ben", envelope)) == :duplicate)
    end

    test "forget the skipped keys of a chain that is over", %{kith: kith} do
      converse!(kith, "anna", "ben")
      skipped = encrypt_one!(kith, "anna", "ben", "skipped")
      send!(kith, "anna", "ben", "after it")
      assert skipped_keys(kith) == 1

      for _ <- 1..6 do
        send!(kith, "ben", "anna", "ping")
        send!(kith, "anna", "ben", "pong")
      end

      assert skipped_keys(kith) == 0
      assert {:error, _} = Kith.decrypt(kith, "ben", skipped)
    end

    test "survive both sides writing first", %{kith: kith} do
      a = encrypt_one!(kith, "anna", "ben", "from anna")
      b = encrypt_one!(kith, "ben", "anna", "from ben")
      assert Kith.decrypt!(kith, "ben", a) == "from anna"
      assert Kith.decrypt!(kith, "anna", b) == "from ben"

      for n <- 1..4 do
        assert send!(kith, "anna", "ben", "a#{n}") == "a#{n}"
        assert send!(kith, "ben", "anna", "b#{n}") == "b#{n}"
      end
    end

    test "accept the binary form", %{kith: kith} do
      bytes = kith |> encrypt_one!("anna", "ben", "hello") |> Envelope.to_binary()
      assert Kith.decrypt!(kith, "ben", bytes) == "hello"
    end

    test "tell a message opened before", %{kith: kith} do
      first = encrypt_one!(kith, "anna", "ben", "hello")
      second = encrypt_one!(kith, "anna", "ben", "again")
      Kith.decrypt!(kith, "ben", first)
      Kith.decrypt!(kith, "ben", second)
      before = dump(kith)

      assert reason(Kith.decrypt(kith, "ben", first)) == :duplicate
      assert reason(Kith.decrypt(kith, "ben", second)) == :duplicate
      assert dump(kith) == before
    end

    test "tell a changed tenth byte, of a first message and of a later one, and write nothing",
         %{kith: kith} do
      first = encrypt_one!(kith, "anna", "ben", "hello")
      before = dump(kith)
      assert reason(Kith.decrypt(kith, "ben", damaged(first, 10))) == :tampered
      assert dump(kith) == before
      assert Kith.decrypt!(kith, "ben", first) == "hello"

      send!(kith, "ben", "anna", "hi")
      later = encrypt_one!(kith, "anna", "ben", "later")
      assert later.type == :message
      before = dump(kith)
      assert reason(Kith.decrypt(kith, "ben", damaged(later, 10))) == :tampered
      assert dump(kith) == before
      assert Kith.decrypt!(kith, "ben", later) == "later"
    end

    @tag store: :sqlite
    test "answer every changed byte of a later message with a reason of the set", %{kith: kith} do
      converse!(kith, "anna", "ben")
      envelope = encrypt_one!(kith, "anna", "ben", "hello")

      for position <- 0..(byte_size(envelope.body) - 1), mask <- [0x01, 0x80, 0xFF] do
        assert {:error, %Error{reason: reason}} =
                 Kith.decrypt(kith, "ben", damaged(envelope, position, mask))

        # A smaller counter names a key that is gone.
        assert reason in [:tampered, :malformed, :unsupported_version, :out_of_sync, :duplicate],
               "byte #{position} with #{mask}: #{reason}"
      end

      assert Kith.decrypt!(kith, "ben", envelope) == "hello"
    end

    @tag store: :sqlite
    test "answer every truncation with a reason of the set", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "hello")

      for size <- 1..(byte_size(envelope.body) - 1) do
        cut = %{envelope | body: binary_part(envelope.body, 0, size)}
        assert {:error, %Error{}} = Kith.decrypt(kith, "ben", cut)
      end

      assert Kith.decrypt!(kith, "ben", envelope) == "hello"
    end

    test "need both sides to be registered", %{kith: kith} do
      assert reason(Kith.encrypt(kith, "anna", "nobody", "x")) == :not_registered
      assert reason(Kith.encrypt(kith, "nobody", "anna", "x")) == :not_registered
      envelope = %{encrypt_one!(kith, "anna", "ben", "x") | to: {"nobody", 1}}
      assert reason(Kith.decrypt(kith, "nobody", envelope)) == :not_registered
    end

    test "refuse an envelope that is addressed to another", %{kith: kith} do
      register!(kith, ["cleo"])
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      assert reason(Kith.decrypt(kith, "cleo", envelope)) == :malformed
      assert reason(Kith.decrypt(kith, "cleo", %{envelope | to: {"cleo", 1}})) != "x"
      assert Kith.decrypt!(kith, "ben", envelope) == "x"
    end

    test "refuse a message under the name of another sender", %{kith: kith} do
      converse!(kith, "anna", "ben")
      converse!(kith, "cleo", "ben")
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      assert reason(Kith.decrypt(kith, "ben", %{envelope | from: {"cleo", 1}})) == :tampered
    end

    test "raise for arguments of the wrong type, without showing the plaintext", %{kith: kith} do
      error =
        assert_raise ArgumentError, fn -> Kith.encrypt(kith, "anna", "ben", ["secret words"]) end

      refute Exception.message(error) =~ "secret"
      assert_raise ArgumentError, fn -> Kith.decrypt(kith, "ben", :envelope) end

      assert_raise ArgumentError, fn ->
        apply(Kith, :encrypt_group, [kith, "anna", "ben", "x"])
      end
    end

    # Thousands of calls, of which the database decides nothing.
    @tag store: :sqlite
    test "answer every changed byte of a first message with a reason of the set, or with its plaintext",
         %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "hello")
      before = dump(kith)

      opened =
        for position <- 0..(byte_size(envelope.body) - 1), mask <- [0x01, 0x80, 0xFF] do
          case undone!(kith, fn ->
                 Kith.decrypt(kith, "ben", damaged(envelope, position, mask))
               end) do
            {:ok, "hello"} ->
              position

            {:error, %Error{reason: reason}} ->
              assert reason in [
                       :tampered,
                       :malformed,
                       :unsupported_version,
                       :unknown_prekey,
                       :out_of_sync
                     ],
                     "byte #{position} with #{mask}: #{reason}"

              nil
          end
        end

      # Signal leaves the registration id (two bytes) and the low half of the version unauthenticated.
      assert length(opened |> Enum.reject(&is_nil/1) |> Enum.uniq()) <= 3
      assert dump(kith) == before
      assert Kith.decrypt!(kith, "ben", envelope) == "hello"
    end

    test "start anew with a peer whose session went unanswered for 30 days", %{kith: kith} do
      first = encrypt_one!(kith, "anna", "ben", "hello")
      # The same session, had it been started 31 days ago.
      put_session_of_days_ago(kith, "anna", "ben", 31)

      envelope = encrypt_one!(kith, "anna", "ben", "are you there?")
      assert envelope.type == :prekey
      assert envelope.session_id != first.session_id
      assert [[2]] = sql!(kith, "SELECT generation FROM signal_sessions WHERE user_id = 'anna'")
      assert length(Kith.session_info!(kith, "anna", "ben").archived) == 1
      assert Kith.decrypt!(kith, "ben", envelope) == "are you there?"
    end

    test "join a transaction of the application: nothing happened when it is rolled back", %{
      kith: kith
    } do
      converse!(kith, "anna", "ben")
      envelope = encrypt_one!(kith, "ben", "anna", "x")
      before = dump(kith)

      undone!(kith, fn ->
        assert send!(kith, "anna", "ben", "inside") == "inside"
        assert Kith.decrypt!(kith, "anna", envelope) == "x"
        assert reason(Kith.decrypt(kith, "anna", envelope)) == :duplicate
        assert reason(Kith.encrypt(kith, "anna", "nobody", "x")) == :not_registered
      end)

      assert dump(kith) == before
      assert Kith.decrypt!(kith, "anna", envelope) == "x"
    end
  end

  describe "database/1" do
    @describetag store: :sqlite

    test "has room for the application, whose transaction is joined" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      database = Kith.database(kith)
      :ok = SQLite.execute(database, "CREATE TABLE outgoing (body BLOB)")

      send = fn text ->
        [envelope] = Kith.encrypt!(kith, "anna", "ben", text)
        body = Kith.Envelope.to_binary(envelope)

        {:ok, _} =
          SQLite.query(database, "INSERT INTO outgoing (body) VALUES ($1)", [{:blob, body}])

        body
      end

      before = dump(kith)

      assert SQLite.transaction(database, fn -> SQLite.rollback(database, send.("lost")) end)
             |> elem(0) == :error

      assert dump(kith) == before
      assert {:ok, %{rows: []}} = SQLite.query(database, "SELECT body FROM outgoing")

      {:ok, body} = SQLite.transaction(database, fn -> send.("kept") end)
      assert {:ok, %{rows: [[^body]]}} = SQLite.query(database, "SELECT body FROM outgoing")
      assert Kith.decrypt!(kith, "ben", body) == "kept"
    end

    test "is the repository where there is one" do
      defmodule Elsewhere do
        def query(_, _, _), do: {:error, %RuntimeError{}}
        def transaction(_, _), do: {:error, :rollback}
      end

      name = make_ref()
      repo = Kith.Store.Repo.new(Elsewhere)
      instance = %Kith.Instance{name: name, repo: repo, vault: nil, options: nil}
      {:ok, _} = Kith.Instance.register(instance)
      assert_raise ArgumentError, ~r/which is its database/, fn -> Kith.database(name) end
    end
  end

  describe "notes to oneself" do
    test "open any number of times, for their owner only" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      note = encrypt_one!(kith, "anna", "anna", "buy milk")

      assert note.type == :self
      assert Kith.decrypt!(kith, "anna", note) == "buy milk"
      assert Kith.decrypt!(kith, "anna", Envelope.to_binary(note)) == "buy milk"

      stolen = %{note | from: {"ben", 1}, to: {"ben", 1}}
      assert {:error, %Error{reason: reason}} = Kith.decrypt(kith, "ben", stolen)
      assert reason in [:tampered, :key_not_found, :corrupted_state]
    end

    test "answer every changed byte with a reason of the set" do
      kith = start_kith!()
      register!(kith, ["anna"])
      note = encrypt_one!(kith, "anna", "anna", "buy milk")

      for position <- 0..(byte_size(note.body) - 1) do
        assert {:error, %Error{}} = Kith.decrypt(kith, "anna", damaged(note, position))
      end
    end

    test "need a registered user" do
      kith = start_kith!()
      assert reason(Kith.encrypt(kith, "anna", "anna", "x")) == :not_registered
    end
  end

  describe "encrypt_group/4" do
    test "reaches every member, and one without keys fails alone" do
      kith = start_kith!()
      family = ~w(anna ben cleo dan eva finn)
      register!(kith, family -- ["finn"])

      results = Kith.encrypt_group!(kith, "anna", family, "dinner!")
      assert Enum.map(results, &elem(&1, 0)) == for(member <- family -- ["anna"], do: {member, 1})

      for {member, {:ok, envelope}} <- results,
          do: assert(Kith.decrypt!(kith, member, envelope) == "dinner!")

      assert [{{"finn", 1}, {:error, %Error{reason: :not_registered}}}] =
               Enum.reject(results, &match?({_, {:ok, _}}, &1))

      Kith.register!(kith, "finn")
      results = Kith.encrypt_group!(kith, "anna", family, "again")

      for {member, result} <- results do
        assert {:ok, envelope} = result
        assert Kith.decrypt!(kith, member, envelope) == "again"
      end
    end

    test "answers from each of the six" do
      kith = start_kith!()
      family = ~w(anna ben cleo dan eva finn)
      register!(kith, family)

      for round <- 1..3, sender <- family do
        text = "#{sender} #{round}"
        results = Kith.encrypt_group!(kith, sender, family, text)
        assert length(results) == 5

        for {member, {:ok, envelope}} <- results,
            do: assert(Kith.decrypt!(kith, member, envelope) == text)
      end
    end

    test "serves a member named twice once, under the first name" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])

      assert [{{"ben", 1}, {:ok, _}}] =
               Kith.encrypt_group!(kith, "anna", [{"ben", 1}, "ben", "anna"], "x")
    end

    test "reaches the sender's other devices" do
      kith = start_kith!()
      register!(kith, ["anna", {"anna", 2}])

      assert [{{"anna", 2}, {:ok, envelope}}] =
               Kith.encrypt_group!(kith, "anna", ["anna", {"anna", 2}], "x")

      assert Kith.decrypt!(kith, {"anna", 2}, envelope) == "x"
    end

    test "of nobody is empty, of an unknown sender an error, of over 1,000 too large" do
      kith = start_kith!()
      register!(kith, ["anna"])
      assert Kith.encrypt_group!(kith, "anna", [], "x") == []
      assert Kith.encrypt_group!(kith, "anna", ["anna"], "x") == []
      assert reason(Kith.encrypt_group(kith, "nobody", ["anna"], "x")) == :not_registered

      crowd = for n <- 1..1001, do: "member #{n}"
      assert reason(Kith.encrypt_group(kith, "anna", crowd, "x")) == :too_large
    end

    test "gives back the prekey of a member whose identity is refused" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      Kith.unregister!(kith, "ben")
      Kith.register!(kith, "ben")

      assert [{{"ben", 1}, {:error, %Error{reason: :untrusted_identity}}}] =
               Kith.encrypt_group!(kith, "anna", ["ben"], "x")

      assert Kith.prekey_count!(kith, "ben") == 100
      assert Kith.kyber_prekey_count!(kith, "ben") == 20
    end
  end

  describe "a restart from disk" do
    test "in the middle of a conversation loses nothing" do
      options = defaults()
      kith = start_kith!(options)
      converse!(kith, "anna", "ben")
      on_the_way = encrypt_one!(kith, "anna", "ben", "on the way")
      skipped = encrypt_one!(kith, "anna", "ben", "skipped")
      overtaking = encrypt_one!(kith, "anna", "ben", "overtaking")
      assert Kith.decrypt!(kith, "ben", overtaking) == "overtaking"
      stop_kith!(kith)

      kith = start_kith!(options)
      assert Kith.decrypt!(kith, "ben", on_the_way) == "on the way"
      assert Kith.decrypt!(kith, "ben", skipped) == "skipped"
      assert reason(Kith.decrypt(kith, "ben", overtaking)) == :duplicate
      assert send!(kith, "ben", "anna", "still here") == "still here"
      assert send!(kith, "anna", "ben", "me too") == "me too"
    end

    test "under another key-encryption key opens nothing and changes nothing" do
      options = defaults()
      kith = start_kith!(options)
      converse!(kith, "anna", "ben")
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      stop_kith!(kith)

      other =
        start_kith!(
          Keyword.put(options, :keys, current: {"other", {:key, :crypto.strong_rand_bytes(32)}})
        )

      before = dump(other)
      assert reason(Kith.encrypt(other, "anna", "ben", "x")) == :key_not_found
      assert reason(Kith.decrypt(other, "ben", envelope)) == :key_not_found
      assert dump(other) == before
      stop_kith!(other)

      rotated =
        start_kith!(
          Keyword.put(options, :keys,
            current: {"other", {:key, :crypto.strong_rand_bytes(32)}},
            retired: [options[:keys][:current]]
          )
        )

      assert Kith.decrypt!(rotated, "ben", envelope) == "x"
    end
  end

  describe "one-time prekeys" do
    test "are made again by themselves when fewer than 20 remain" do
      kith = start_kith!(one_time_kyber_prekeys: 100)
      register!(kith, ["ben"])
      for _ <- 1..80, do: assert(Kith.pre_key_bundle!(kith, "ben").prekey)
      assert Kith.prekey_count!(kith, "ben") == 20

      Kith.pre_key_bundle!(kith, "ben")
      Kith.Maintenance.await(kith)
      assert Kith.prekey_count!(kith, "ben") == 100
    end

    test "are made again of the kind of which as large a share is gone" do
      kith = start_kith!(one_time_kyber_prekeys: 10)
      register!(kith, ["ben"])
      for _ <- 1..8, do: Kith.pre_key_bundle!(kith, "ben")
      Kith.Maintenance.await(kith)
      assert Kith.kyber_prekey_count!(kith, "ben") == 2

      Kith.pre_key_bundle!(kith, "ben")
      Kith.Maintenance.await(kith)
      assert Kith.kyber_prekey_count!(kith, "ben") == 10
      assert Kith.prekey_count!(kith, "ben") == 100
    end

    test "are made again after the claims of a fan-out" do
      kith = start_kith!(one_time_prekeys: 3, replenish_below: 3)
      register!(kith, ~w(anna ben cleo))
      Kith.encrypt_group!(kith, "anna", ["ben", "cleo"], "x")
      Kith.Maintenance.await(kith)
      assert Kith.prekey_count!(kith, "ben") == 3
      assert Kith.prekey_count!(kith, "cleo") == 3
    end

    test "have ids that are never used twice" do
      kith = start_kith!(one_time_prekeys: 4, replenish_below: 0)
      register!(kith, ["ben"])

      ids =
        for _ <- 1..5, _ <- [Kith.replenish!(kith, "ben")], _ <- 1..4 do
          Kith.pre_key_bundle!(kith, "ben").prekey.id
        end

      assert ids == Enum.to_list(hd(ids)..(hd(ids) + 19))
    end

    test "of Kyber have ids that are never used twice either, by whichever kind" do
      kith = start_kith!(one_time_kyber_prekeys: 3, replenish_below: 0)
      register!(kith, ["ben"])

      ids =
        for _ <- 1..4, _ <- [Kith.replenish!(kith, "ben")], _ <- 1..3 do
          Kith.pre_key_bundle!(kith, "ben").kyber_prekey.id
        end

      last_resort = Kith.pre_key_bundle!(kith, "ben").kyber_prekey.id
      assert [last_resort | ids] == Enum.to_list(last_resort..(last_resort + 12))
      assert Kith.kyber_prekey_count!(kith, "ben") == 0
    end

    test "are each handed out once under 50 concurrent claims" do
      kith = start_kith!(one_time_prekeys: 200, one_time_kyber_prekeys: 160, replenish_below: 0)

      register!(kith, ["ben"])

      ids =
        1..50
        |> Enum.map(fn _ ->
          Task.async(fn ->
            for _ <- 1..3 do
              bundle = Kith.pre_key_bundle!(kith, "ben")
              {bundle.prekey.id, bundle.kyber_prekey.id}
            end
          end)
        end)
        |> Task.await_many(30_000)
        |> List.flatten()

      {ids, kyber_ids} = Enum.unzip(ids)
      assert length(ids) == 150
      assert Enum.uniq(ids) == ids
      assert Enum.uniq(kyber_ids) == kyber_ids
      assert Kith.prekey_count!(kith, "ben") == 50
      assert Kith.kyber_prekey_count!(kith, "ben") == 10
    end

    test "are never made beyond the stock, however many ask" do
      kith = start_kith!(one_time_prekeys: 60, replenish_below: 0)
      register!(kith, ["ben"])
      for _ <- 1..60, do: Kith.pre_key_bundle!(kith, "ben")

      made =
        1..8
        |> Enum.map(fn _ -> Task.async(fn -> Kith.replenish!(kith, "ben") end) end)
        |> Task.await_many()

      assert Enum.sum(made) == 60
      assert Kith.prekey_count!(kith, "ben") == 60
      assert Kith.kyber_prekey_count!(kith, "ben") == 20
    end

    test "that run out leave sessions without one, but for the Kyber prekey of last resort" do
      kith = start_kith!(one_time_prekeys: 1, one_time_kyber_prekeys: 1, replenish_below: 0)
      register!(kith, ["anna", "ben", "cleo", "dan"])
      assert send!(kith, "anna", "ben", "with") == "with"
      assert Kith.prekey_count!(kith, "ben") == 0
      assert Kith.kyber_prekey_count!(kith, "ben") == 0

      assert %{prekey: nil, kyber_prekey: last_resort} = Kith.pre_key_bundle!(kith, "ben")
      assert %{prekey: nil, kyber_prekey: ^last_resort} = Kith.pre_key_bundle!(kith, "ben")
      assert send!(kith, "cleo", "ben", "without") == "without"
      assert send!(kith, "dan", "ben", "without") == "without"
    end

    test "may be none of Kyber but the one of last resort" do
      kith = start_kith!(one_time_kyber_prekeys: 0)
      register!(kith, ["anna", "ben", "cleo"])
      assert Kith.kyber_prekey_count!(kith, "ben") == 0
      assert send!(kith, "anna", "ben", "one") == "one"
      assert send!(kith, "cleo", "ben", "two") == "two"
      Kith.Maintenance.await(kith)
      assert Kith.kyber_prekey_count!(kith, "ben") == 0
    end

    test "that were used still open a second first message of the same bundle, until their grace is over" do
      kith = start_kith!(prekey_grace_period: 3_600, unknown_senders: :remember)
      other = start_kith!()
      register!(kith, ["ben"])
      register!(other, ["anna", "cleo"])
      bundle = Kith.pre_key_bundle!(kith, "ben")

      # The same bundle in the hands of two senders stands for one sender who started twice.
      Kith.publish_bundle!(other, "ben", %{bundle | prekeys: []})
      from_anna = encrypt_one!(other, "anna", "ben", "first")
      sql!(other, "UPDATE signal_prekeys SET claimed_at = NULL")
      from_cleo = encrypt_one!(other, "cleo", "ben", "second")
      sql!(other, "UPDATE signal_prekeys SET claimed_at = NULL")
      Kith.reset_session!(other, "anna", "ben")
      too_late = encrypt_one!(other, "anna", "ben", "third")

      assert Kith.decrypt!(kith, "ben", from_anna) == "first"

      assert sql!(kith, "SELECT kind FROM signal_prekeys WHERE used_at IS NOT NULL ORDER BY kind") ==
               [["kyber_one_time"], ["one_time"]]

      assert Kith.decrypt!(kith, "ben", from_cleo) == "second"

      sql!(
        kith,
        "UPDATE signal_prekeys SET used_at = used_at - 3600001 WHERE used_at IS NOT NULL"
      )

      assert reason(Kith.decrypt(kith, "ben", too_late)) == :unknown_prekey
      assert %{prekeys: 2} = Kith.maintain!(kith)
      assert [[0]] = sql!(kith, "SELECT COUNT(*) FROM signal_prekeys WHERE used_at IS NOT NULL")
    end

    test "do not open a first message again once its session is forgotten" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      first = encrypt_one!(kith, "anna", "ben", "hello")
      assert Kith.decrypt!(kith, "ben", first) == "hello"
      Kith.reset_session!(kith, "ben", "anna")
      assert reason(Kith.decrypt(kith, "ben", first)) == :duplicate
      Kith.delete!(kith, "ben", "anna")
      before = dump(kith)
      assert reason(Kith.decrypt(kith, "ben", first)) == :session_not_found
      assert dump(kith) == before
    end
  end

  describe "two processes on one session" do
    test "never advance from the same state: every message opens, no key is used twice" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")

      envelopes =
        1..8
        |> Enum.map(fn task ->
          Task.async(fn ->
            for n <- 1..15,
                do: {encrypt_one!(kith, "anna", "ben", "#{task}/#{n}"), "#{task}/#{n}"}
          end)
        end)
        |> Task.await_many(60_000)
        |> List.flatten()

      positions = Enum.map(envelopes, &position/1)
      assert Enum.uniq(positions) == positions

      envelopes
      |> Enum.shuffle()
      |> Task.async_stream(
        fn {envelope, plaintext} -> assert Kith.decrypt!(kith, "ben", envelope) == plaintext end,
        timeout: 60_000
      )
      |> Enum.each(fn {:ok, _} -> :ok end)
    end

    test "both ways at once lose nothing" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")

      [to_ben, to_anna] =
        for {from, to} <- [{"anna", "ben"}, {"ben", "anna"}] do
          Task.async(fn ->
            for n <- 1..25, do: {to, encrypt_one!(kith, from, to, "#{n}"), "#{n}"}
          end)
        end
        |> Task.await_many(60_000)

      for {to, envelope, plaintext} <- Enum.shuffle(to_ben ++ to_anna),
          do: assert(Kith.decrypt!(kith, to, envelope) == plaintext)
    end

    test "deliver one message once" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      envelope = encrypt_one!(kith, "anna", "ben", "once")

      results =
        1..6
        |> Enum.map(fn _ -> Task.async(fn -> reason(Kith.decrypt(kith, "ben", envelope)) end) end)
        |> Task.await_many()

      assert Enum.sort(results) == Enum.sort([{:ok, "once"} | List.duplicate(:duplicate, 5)])
    end
  end

  describe "a process that is killed" do
    test "in the middle of a call loses no message and repeats no key" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      test = self()

      killed = fn ->
        {pid, monitor} =
          spawn_monitor(fn ->
            for n <- Stream.iterate(1, &(&1 + 1)),
                do: send(test, {:sent, encrypt_one!(kith, "anna", "ben", "#{n}"), "#{n}"})
          end)

        # PostgreSQL gives each of them a new connection, which takes its time.
        Process.sleep(:rand.uniform(if store() == :postgres, do: 60, else: 6))
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^monitor, :process, _, :killed}
        all_sent()
      end

      # However slow the machine is: at least 40 deaths and 60 messages.
      sent =
        Enum.reduce_while(Stream.iterate(1, &(&1 + 1)), [], fn round, sent ->
          sent = sent ++ killed.()
          if round >= 40 and length(sent) >= 60, do: {:halt, sent}, else: {:cont, sent}
        end)

      assert sent |> Enum.map(&position/1) |> Enum.uniq() |> length() == length(sent)

      # The receiver is killed too, and what it did not tell us of is still there to be opened or was opened.
      {told, rest} = Enum.split(sent, 20)
      for {envelope, text} <- told, do: assert(Kith.decrypt!(kith, "ben", envelope) == text)

      opener =
        spawn(fn -> for {envelope, _} <- rest, do: Kith.decrypt!(kith, "ben", envelope) end)

      Process.sleep(5)
      Process.exit(opener, :kill)

      for {envelope, text} <- rest,
          do: assert(reason(Kith.decrypt(kith, "ben", envelope)) in [{:ok, text}, :duplicate])

      assert send!(kith, "ben", "anna", "still here") == "still here"
    end
  end

  describe "a changed identity" do
    setup do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      old = Kith.safety_number!(kith, "anna", "ben")
      Kith.unregister!(kith, "ben")
      Kith.register!(kith, "ben")
      %{kith: kith, old: old}
    end

    test "is refused in both directions until it is trusted", %{kith: kith, old: old} do
      assert %{identity: :remembered} = old
      assert Kith.identity!(kith, "anna", "ben") == %{identity: :changed, verified: false}
      assert Kith.identity!(kith, "ben", "anna") == %{identity: :unknown, verified: false}

      assert %{identity: :changed, verified: false, digits: digits} =
               Kith.safety_number!(kith, "anna", "ben")

      assert digits != old.digits
      assert digits == Kith.safety_number!(kith, "ben", "anna").digits
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :untrusted_identity
      envelope = encrypt_one!(kith, "ben", "anna", "it is me")
      assert reason(Kith.decrypt(kith, "anna", envelope)) == :untrusted_identity

      assert Kith.trust!(kith, "anna", "ben", verified: true) == :trusted
      # Before there is a session in which it could be asked for.
      assert %{identity: :remembered, verified: true} = Kith.safety_number!(kith, "anna", "ben")
      assert Kith.identity!(kith, "anna", "ben") == %{identity: :remembered, verified: true}
      refute Kith.safety_number!(kith, "ben", "anna").verified
      assert Kith.decrypt!(kith, "anna", envelope) == "it is me"
      assert Kith.session_info!(kith, "anna", "ben").verified
      assert send!(kith, "anna", "ben", "welcome back") == "welcome back"
    end

    test "is accepted after the peer was deleted", %{kith: kith} do
      assert Kith.delete!(kith, "anna", "ben") == :deleted
      assert send!(kith, "anna", "ben", "who are you?") == "who are you?"
    end

    test "can be trusted by its key only", %{kith: kith} do
      key = Kith.pre_key_bundle!(kith, "ben").identity_key
      wrong = Kith.pre_key_bundle!(kith, "anna").identity_key

      Kith.trust!(kith, "anna", "ben", identity_key: wrong)
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :untrusted_identity
      Kith.trust!(kith, "anna", "ben", identity_key: key)
      assert send!(kith, "anna", "ben", "x") == "x"
      assert_raise ArgumentError, fn -> Kith.trust(kith, "anna", "ben", identity_key: "short") end
    end
  end

  describe "the first message of a peer" do
    test "under the name of a registered user but with another identity key is refused" do
      kith = start_kith!()
      elsewhere = start_kith!()
      register!(kith, ~w(anna ben))
      register!(elsewhere, ["ben"])
      Kith.publish_bundle!(elsewhere, "anna", Kith.pre_key_bundle!(kith, "anna"))
      forged = encrypt_one!(elsewhere, "ben", "anna", "it is me, ben")
      before = dump(kith)
      assert reason(Kith.decrypt(kith, "anna", forged)) == :untrusted_identity
      assert dump(kith) == before
    end
  end

  describe "trust/4" do
    test "of the key that is remembered keeps the session" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      on_the_way = encrypt_one!(kith, "ben", "anna", "on the way")
      refute Kith.session_info!(kith, "anna", "ben").verified

      Kith.trust!(kith, "anna", "ben", verified: true)
      assert Kith.session_info!(kith, "anna", "ben").verified
      assert Kith.decrypt!(kith, "anna", on_the_way) == "on the way"
    end

    test "of another key ends the session" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      other = Kith.register!(kith, "cleo").identity_key
      Kith.trust!(kith, "anna", "ben", identity_key: other)
      assert reason(Kith.session_info(kith, "anna", "ben")) == :session_not_found
    end

    test "before the first message decides whom it may go to" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      wrong = Kith.register!(kith, "eve").identity_key
      Kith.trust!(kith, "anna", "ben", identity_key: wrong)
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :untrusted_identity
    end

    test "needs a peer with keys" do
      kith = start_kith!()
      register!(kith, ["anna"])
      assert reason(Kith.trust(kith, "anna", "nobody")) == :not_registered
    end
  end

  describe "reset_session/3" do
    test "on one side lets the next message establish anew" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      old = Kith.session_info!(kith, "anna", "ben").current.session_id
      assert Kith.reset_session!(kith, "anna", "ben") == :reset
      assert reason(Kith.session_info(kith, "anna", "ben")) == :session_not_found
      assert reason(Kith.reset_session(kith, "anna", "ben")) == :session_not_found

      envelope = encrypt_one!(kith, "anna", "ben", "fresh")
      assert envelope.type == :prekey
      assert envelope.session_id != old
      assert Kith.decrypt!(kith, "ben", envelope) == "fresh"
      assert send!(kith, "ben", "anna", "good") == "good"
    end

    test "on both sides too" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      Kith.reset_session!(kith, "anna", "ben")
      Kith.reset_session!(kith, "ben", "anna")
      assert send!(kith, "ben", "anna", "one") == "one"
      assert send!(kith, "anna", "ben", "two") == "two"
    end

    test "keeps what is on its way readable, and delete/3 does not" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      skipped = encrypt_one!(kith, "anna", "ben", "skipped")
      send!(kith, "anna", "ben", "after it")
      late = encrypt_one!(kith, "anna", "ben", "late")

      assert Kith.reset_session!(kith, "ben", "anna") == :reset
      assert reason(Kith.reset_session(kith, "ben", "anna")) == :session_not_found
      assert Kith.decrypt!(kith, "ben", skipped) == "skipped"
      assert reason(Kith.decrypt(kith, "ben", skipped)) == :duplicate
      assert Kith.decrypt!(kith, "ben", late) == "late"

      late = encrypt_one!(kith, "anna", "ben", "too late")
      assert Kith.delete!(kith, "ben", "anna") == :deleted
      assert skipped_keys(kith) == 0

      assert [[0]] =
               sql!(kith, "SELECT COUNT(*) FROM signal_archived_sessions WHERE user_id = 'ben'")

      assert reason(Kith.decrypt(kith, "ben", late)) == :session_not_found
    end

    test "by the receiver of an unanswered session loses no message" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      messages = for n <- 1..3, do: encrypt_one!(kith, "anna", "ben", "message #{n}")
      assert Kith.decrypt!(kith, "ben", hd(messages)) == "message 1"
      Kith.reset_session!(kith, "ben", "anna")
      assert Enum.map(tl(messages), &Kith.decrypt!(kith, "ben", &1)) == ["message 2", "message 3"]
    end

    test "never lets a sealed state of before come back" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      [[state]] = sql!(kith, "SELECT state FROM signal_sessions WHERE user_id = 'anna'")
      Kith.reset_session!(kith, "anna", "ben")
      sql!(kith, "UPDATE signal_sessions SET state = $1 WHERE user_id = 'anna'", [{:blob, state}])
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state
    end
  end

  describe "an envelope with another sender on it" do
    setup do
      kith = start_kith!()
      register!(kith, ["anna", "ben", "cleo"])
      %{kith: kith, envelope: encrypt_one!(kith, "anna", "ben", "from anna")}
    end

    test "is refused, remembered nowhere, and opens under its own", %{kith: kith} = context do
      before = dump(kith)

      for {from, refusal} <- [{{"cleo", 1}, :untrusted_identity}, {{"zoe", 1}, :not_registered}] do
        envelope = %{context.envelope | from: from}
        assert reason(Kith.decrypt(kith, "ben", envelope)) == refusal
        assert dump(kith) == before
      end

      assert Kith.decrypt!(kith, "ben", context.envelope) == "from anna"
    end

    test "is the key of whom an application vouches for, when it says so" do
      [server, client] = [start_kith!(), start_kith!(unknown_senders: :remember)]
      register!(server, ["anna"])
      register!(client, ["ben"])
      Kith.publish_bundle!(server, "ben", Kith.pre_key_bundle!(client, "ben"))

      assert Kith.decrypt!(client, "ben", encrypt_one!(server, "anna", "ben", "hello")) ==
               "hello"
    end
  end

  describe "a session of before" do
    test "still opens what is on the way after the peer has started another" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      on_the_way = encrypt_one!(kith, "anna", "ben", "old session")
      Kith.reset_session!(kith, "anna", "ben")
      assert send!(kith, "anna", "ben", "new session") == "new session"
      assert [%{session_id: old}] = Kith.session_info!(kith, "ben", "anna").archived
      assert Kith.decrypt!(kith, "ben", on_the_way) == "old session"

      # It is the current one now, and the other waits in its place.
      assert %{current: %{session_id: ^old}, archived: [_]} =
               Kith.session_info!(kith, "ben", "anna")
    end

    test "is kept with 39 others, and the oldest goes with its skipped keys" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      skipped = encrypt_one!(kith, "anna", "ben", "skipped")
      send!(kith, "anna", "ben", "after it")

      for n <- 1..42 do
        Kith.reset_session!(kith, "anna", "ben")
        assert send!(kith, "anna", "ben", "#{n}") == "#{n}"
      end

      assert length(Kith.session_info!(kith, "ben", "anna").archived) == 40
      assert skipped_keys(kith) == 0
      assert {:error, _} = Kith.decrypt(kith, "ben", skipped)
    end
  end

  describe "session_info/3" do
    test "shows no secrets and no sealed bytes" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      info = Kith.session_info!(kith, "anna", "ben")

      assert %{current: %{version: 4, acknowledged: true}, verified: false, generation: 3} = info
      assert %{highest_version: 4, current: %{braid: %{state: <<_, _::binary>>, epoch: 1}}} = info
      assert info.identity_key == Kith.pre_key_bundle!(kith, "ben").identity_key
      [[state]] = sql!(kith, "SELECT state FROM signal_sessions WHERE user_id = 'anna'")
      refute :erlang.term_to_binary(info) =~ state
    end

    test "of strangers is :session_not_found" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      assert reason(Kith.session_info(kith, "anna", "ben")) == :session_not_found
      assert reason(Kith.session_info(kith, "nobody", "ben")) == :not_registered
    end
  end

  describe "safety_number/3" do
    test "is the same sixty digits for both, and other ones for others" do
      kith = start_kith!()
      register!(kith, ~w(anna ben cleo))
      assert %{digits: digits, scannable: scannable} = Kith.safety_number!(kith, "anna", "ben")
      assert digits =~ ~r/^\d{60}$/
      assert Kith.safety_number!(kith, "ben", "anna").digits == digits
      assert Kith.safety_number!(kith, "anna", "cleo").digits != digits

      assert Kith.safety_number_matches!(kith, "ben", "anna", scannable)

      refute Kith.safety_number_matches!(
               kith,
               "anna",
               "cleo",
               Kith.safety_number!(kith, "cleo", "ben").scannable
             )

      assert reason(Kith.safety_number_matches(kith, "anna", "ben", "junk")) == :malformed
      assert reason(Kith.safety_number(kith, "anna", "nobody")) == :not_registered
      assert Kith.identity!(kith, "anna", "cleo") == %{identity: :unknown, verified: false}
      assert reason(Kith.identity(kith, "anna", "nobody")) == :not_registered
      assert reason(Kith.identity(kith, "nobody", "anna")) == :not_registered
    end
  end

  describe "publish_bundle/3" do
    # A second instance plays the client that holds the private keys.
    setup do
      server = start_kith!()
      client = start_kith!(unknown_senders: :remember)
      register!(server, ["anna"])
      register!(client, ["olga"])
      %{server: server, client: client, bundle: stock(client, "olga", 3)}
    end

    test "relays to a user whose private keys live elsewhere, and back",
         %{server: server, client: client, bundle: bundle} do
      assert Kith.publish_bundle!(server, "olga", bundle) == 3
      # The client knows the sender by what the server hands out.
      Kith.publish_bundle!(client, "anna", Kith.pre_key_bundle!(server, "anna"))

      envelope = encrypt_one!(server, "anna", "olga", "hello out there")
      assert Kith.decrypt!(client, "olga", envelope) == "hello out there"
      answer = encrypt_one!(client, "olga", "anna", "hello in there")
      assert Kith.decrypt!(server, "anna", answer) == "hello in there"
      assert Kith.prekey_count!(server, "olga") == 2

      assert [[nil]] =
               sql!(
                 server,
                 "SELECT private_key_encrypted FROM signal_identity_keys WHERE user_id = 'olga'"
               )

      assert reason(Kith.encrypt(server, "olga", "anna", "x")) == :key_not_found
      assert reason(Kith.decrypt(server, "olga", envelope)) == :key_not_found
      assert reason(Kith.register(server, "olga")) == :key_not_found
      assert reason(Kith.replenish(server, "olga")) == :key_not_found
    end

    test "adds prekeys and keeps sessions when the same identity publishes again",
         %{server: server, client: client, bundle: bundle} do
      Kith.publish_bundle!(server, "olga", bundle)
      assert Kith.kyber_prekey_count!(server, "olga") == 2
      encrypt_one!(server, "anna", "olga", "x")
      assert Kith.publish_bundle!(server, "olga", bundle) == 2
      assert Kith.kyber_prekey_count!(server, "olga") == 1
      assert Kith.publish_bundle!(server, "olga", stock(client, "olga", 2)) == 4
      assert Kith.kyber_prekey_count!(server, "olga") == 2
      assert encrypt_one!(server, "anna", "olga", "x").type == :prekey
      assert Kith.prekey_count!(server, "olga") == 4
    end

    test "leaves a low stock to the client", %{server: server, bundle: bundle} do
      Kith.publish_bundle!(server, "olga", bundle)

      log =
        ExUnit.CaptureLog.capture_log(fn ->
          encrypt_one!(server, "anna", "olga", "x")
          Kith.Maintenance.await(server)
        end)

      refute log =~ "no new prekeys"
      assert Kith.prekey_count!(server, "olga") == 2
    end

    test "of another identity ends sessions and is refused until it is trusted",
         %{server: server, client: client, bundle: bundle} do
      Kith.publish_bundle!(server, "olga", bundle)
      encrypt_one!(server, "anna", "olga", "x")
      Kith.unregister!(client, "olga")
      Kith.register!(client, "olga")
      assert Kith.publish_bundle!(server, "olga", stock(client, "olga", 1)) == 1
      assert reason(Kith.encrypt(server, "anna", "olga", "x")) == :untrusted_identity
      Kith.trust!(server, "anna", "olga")
      assert Kith.decrypt!(client, "olga", encrypt_one!(server, "anna", "olga", "x")) == "x"
    end

    test "refuses a wrong signature, wrong shapes, too many keys and a user of this server",
         %{server: server, bundle: bundle} do
      signed = bundle.signed_prekey
      forged = %{signed | signature: corrupt(signed.signature, 10)}

      assert reason(Kith.publish_bundle(server, "olga", %{bundle | signed_prekey: forged})) ==
               :tampered

      kyber = bundle.kyber_prekey
      forged = %{kyber | signature: corrupt(kyber.signature, 10)}

      for forgery <- [%{kyber_prekey: forged}, %{kyber_prekeys: [kyber, forged]}] do
        assert reason(Kith.publish_bundle(server, "olga", Map.merge(bundle, forgery))) ==
                 :tampered
      end

      # Coefficients of a key are below 3329.
      <<8, _, _, rest::binary>> = kyber.public_key
      unreduced = %{kyber | public_key: <<8, 255, 255, rest::binary>>}

      for forgery <- [%{kyber_prekey: unreduced}, %{kyber_prekeys: [unreduced]}] do
        assert reason(Kith.publish_bundle(server, "olga", Map.merge(bundle, forgery))) ==
                 :malformed
      end

      assert reason(Kith.publish_bundle(server, "olga", %{})) == :malformed

      assert reason(Kith.publish_bundle(server, "olga", %{bundle | identity_key: "x"})) ==
               :malformed

      many = for id <- 1..1001, do: %{id: id, public_key: signed.public_key}
      assert reason(Kith.publish_bundle(server, "olga", %{bundle | prekeys: many})) == :too_large

      many = List.duplicate(kyber, 1001)

      assert reason(Kith.publish_bundle(server, "olga", %{bundle | kyber_prekeys: many})) ==
               :too_large

      assert reason(Kith.publish_bundle(server, "anna", bundle)) == :untrusted_identity

      assert reason(Kith.prekey_count(server, "olga")) == :not_registered
      assert_raise ArgumentError, fn -> Kith.publish_bundle(server, "olga", "bundle") end
    end

    test "does not let a stock grow without end", %{server: server, bundle: bundle} do
      key = bundle.signed_prekey.public_key
      batch = fn ids -> %{bundle | prekeys: for(id <- ids, do: %{id: id, public_key: key})} end
      Kith.publish_bundle!(server, "olga", batch.(1..900))
      assert reason(Kith.publish_bundle(server, "olga", batch.(901..1800))) == :too_large
      assert Kith.prekey_count!(server, "olga") == 900
    end
  end

  describe "unregister/2" do
    test "deletes all of a device, ends the sessions of others and takes the notes with the last device" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      note = encrypt_one!(kith, "anna", "anna", "note")
      register!(kith, [{"anna", 2}])
      assert Kith.unregister!(kith, "anna") == :unregistered
      assert [[1]] = sql!(kith, "SELECT COUNT(*) FROM signal_accounts WHERE user_id = 'anna'")
      Kith.unregister!(kith, {"anna", 2})

      for {_table, rows} <- dump(kith), [user | _] <- rows, do: assert(user == "ben")
      assert reason(Kith.encrypt(kith, "ben", "anna", "x")) == :not_registered
      assert reason(Kith.unregister(kith, "anna")) == :not_registered

      Kith.register!(kith, "anna")
      assert {:error, _} = Kith.decrypt(kith, "anna", note)
    end
  end

  describe "rows of another" do
    setup do
      kith = start_kith!()
      register!(kith, ~w(anna ben cleo))
      for peer <- ~w(ben cleo), do: converse!(kith, "anna", peer)
      %{kith: kith}
    end

    # PostgreSQL has no such values.
    @tag store: :sqlite
    test "with values outside their types are errors, not exceptions with the arguments in them",
         %{kith: kith} do
      for {table, assignment} <- [
            {"signal_sessions", "generation = -1"},
            {"signal_sessions", "state = 'text'"},
            {"signal_sessions", "identity = 7"},
            {"signal_braids", "revision = -1"},
            {"signal_braids", "session_id = 'text'"},
            {"signal_braids", "braid = 7"},
            {"signal_accounts", "data_key = 7"},
            {"signal_identity_keys", "private_key_encrypted = 7"},
            {"signal_identity_keys", "registration_id = -1"}
          ] do
        columns = hd(String.split(assignment))

        key =
          if table in ["signal_sessions", "signal_braids"], do: " AND peer_id = 'ben'", else: ""

        where = "WHERE user_id = 'anna'" <> key
        [[before]] = sql!(kith, "SELECT #{columns} FROM #{table} #{where}")
        sql!(kith, "UPDATE #{table} SET #{assignment} #{where}")
        assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state, assignment
        before = if is_binary(before), do: {:blob, before}, else: before
        sql!(kith, "UPDATE #{table} SET #{columns} = $1 #{where}", [before])
        assert send!(kith, "anna", "ben", "again") == "again"
      end
    end

    test "swapped between two peers do not open", %{kith: kith} do
      swap(
        kith,
        "signal_sessions",
        "state",
        "user_id = 'anna' AND peer_id = 'ben'",
        "user_id = 'anna' AND peer_id = 'cleo'"
      )

      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state
      assert reason(Kith.encrypt(kith, "anna", "cleo", "x")) == :corrupted_state
    end

    test "swapped between two peers do not open, braids neither", %{kith: kith} do
      swap(
        kith,
        "signal_braids",
        "braid",
        "user_id = 'anna' AND peer_id = 'ben'",
        "user_id = 'anna' AND peer_id = 'cleo'"
      )

      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state
      assert reason(Kith.encrypt(kith, "anna", "cleo", "x")) == :corrupted_state
    end

    test "of an older revision do not open, and without its braid no session does", %{kith: kith} do
      [before] = sql!(kith, "SELECT session_id, revision, braid FROM signal_braids
        WHERE user_id = 'anna' AND peer_id = 'ben'")

      later =
        Enum.find(1..50, fn _ ->
          send!(kith, "ben", "anna", "ping")
          send!(kith, "anna", "ben", "pong")

          [before] !=
            sql!(kith, "SELECT session_id, revision, braid FROM signal_braids
              WHERE user_id = 'anna' AND peer_id = 'ben'")
        end)

      assert later
      [session_id, revision, braid] = before

      sql!(
        kith,
        "UPDATE signal_braids SET session_id = $1, revision = $2, braid = $3
         WHERE user_id = 'anna' AND peer_id = 'ben'",
        [{:blob, session_id}, revision, {:blob, braid}]
      )

      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state
      # Told once, and then there is a new session.
      assert %{type: :prekey} = envelope = encrypt_one!(kith, "anna", "ben", "again")
      assert Kith.decrypt!(kith, "ben", envelope) == "again"

      sql!(kith, "DELETE FROM signal_braids WHERE user_id = 'anna' AND peer_id = 'ben'")
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state

      # The cure of Kith.Error.
      Kith.reset_session!(kith, "anna", "ben")
      assert send!(kith, "anna", "ben", "again") == "again"
    end

    test "swapped between two users do not open", %{kith: kith} do
      swap(
        kith,
        "signal_identity_keys",
        "private_key_encrypted",
        "user_id = 'anna'",
        "user_id = 'ben'"
      )

      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state
      assert {:error, _} = Kith.encrypt(kith, "ben", "anna", "x")
    end

    test "fail alone in a fan-out", %{kith: kith} do
      sql!(
        kith,
        "UPDATE signal_sessions SET state = $1 WHERE user_id = 'anna' AND peer_id = 'ben'",
        [
          {:blob, :crypto.strong_rand_bytes(300)}
        ]
      )

      assert [
               {{"ben", 1}, {:error, %Error{reason: :corrupted_state}}},
               {{"cleo", 1}, {:ok, envelope}}
             ] = Kith.encrypt_group!(kith, "anna", ["ben", "cleo"], "x")

      assert Kith.decrypt!(kith, "cleo", envelope) == "x"
    end

    test "of an older generation do not open", %{kith: kith} do
      [[state]] =
        sql!(kith, "SELECT state FROM signal_sessions WHERE user_id = 'anna' AND peer_id = 'ben'")

      encrypt_one!(kith, "anna", "ben", "x")

      sql!(
        kith,
        "UPDATE signal_sessions SET state = $1 WHERE user_id = 'anna' AND peer_id = 'ben'",
        [
          {:blob, state}
        ]
      )

      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state
    end
  end

  describe "instances" do
    test "know nothing of one another" do
      one = start_kith!()
      two = start_kith!()
      register!(one, ["anna"])
      assert reason(Kith.prekey_count(two, "anna")) == :not_registered
    end

    test "are asked for by name, and a name nobody has raises" do
      assert_raise ArgumentError, ~r/no instance of Kith is running under the name :nobody/, fn ->
        Kith.register(:nobody, "anna")
      end
    end

    test "have a name once" do
      kith = start_kith!()
      assert {:error, {:already_started, _}} = Kith.start_link(defaults(name: kith))
    end

    @tag store: :sqlite
    test "come back after their database died" do
      kith = start_kith!(synchronous: :full)
      converse!(kith, "anna", "ben")
      %{repo: repo} = Kith.Instance.fetch!(kith)
      pid = GenServer.whereis(repo.server)
      Process.exit(pid, :kill)

      # There is no instance for a while, which raises.
      eventually(fn ->
        try do
          match?({:ok, _}, Kith.register(kith, "anna"))
        rescue
          ArgumentError -> false
        end
      end)

      assert send!(kith, "anna", "ben", "back") == "back"
    end

    test "do not start with a key that cannot be read" do
      assert_raise ArgumentError, ~r/KITH_TEST_NO_SUCH_VARIABLE/, fn ->
        Kith.start_link(defaults(keys: [current: {"2026", {:env, "KITH_TEST_NO_SUCH_VARIABLE"}}]))
      end
    end

    test "print neither keys nor handles" do
      kith = start_kith!()
      assert inspect(Kith.Instance.fetch!(kith)) == "#Kith.Instance<#{inspect(kith)}>"
    end
  end

  defmodule Family do
    use Kith, otp_app: :kith, one_time_prekeys: 7, replenish_below: 2
  end

  describe "use Kith" do
    test "gives a module the functions without the name, its options and its place under a supervisor" do
      Application.put_env(:kith, Family, defaults(one_time_prekeys: 5))
      on_exit(fn -> Application.delete_env(:kith, Family) end)
      start_supervised!({Family, replenish_below: 3})

      Family.register!("anna")
      assert {:ok, %{device: 2}} = Family.register("anna", device: 2)
      # use says 7, the environment 5.
      assert Family.prekey_count!("anna") == 5
      assert Kith.Instance.fetch!(Family).options.replenish_below == 3

      [envelope] = Family.encrypt!("anna", {"anna", 2}, "hello")
      assert Family.decrypt!({"anna", 2}, envelope) == "hello"
      assert Kith.prekey_count!(Family, "anna") == 5
      assert Family.requires_encryption?(:family)
      assert_raise Kith.Error, fn -> Family.encrypt!("anna", "nobody", "x") end
    end

    test "has every function of the facade" do
      facade = for {name, arity} <- Kith.__info__(:functions), do: {name, arity - 1}
      module = Family.__info__(:functions)

      assert Enum.sort(facade -- [child_spec: 0, start_link: 0, requires_encryption?: 0]) ==
               Enum.sort(
                 module --
                   [
                     child_spec: 1,
                     start_link: 0,
                     start_link: 1,
                     __kith__: 1,
                     requires_encryption?: 1
                   ]
               )
    end
  end

  defp damaged(envelope, position, mask \\ 1),
    do: %{envelope | body: corrupt(envelope.body, position, mask)}

  # Which message key was used.
  defp position({envelope, _plaintext}) do
    {:ok, header} = Kith.Native.message_inspect(:message, envelope.body)
    {header.ratchet_key, header.counter}
  end

  defp all_sent do
    receive do
      {:sent, envelope, text} -> [{envelope, text} | all_sent()]
    after
      0 -> []
    end
  end

  # The first state of a session, sealed for generation 1, as an engine with another clock makes it.
  defp put_session_of_days_ago(kith, from, to, days) do
    instance = Kith.Instance.fetch!(kith)
    device = Kith.Store.Accounts.device(instance.repo, {from, 1})
    {found, _} = Kith.Registration.claim(instance, instance.repo, [{to, 1}], 0)

    recipient = %{
      user: to,
      device: 1,
      generation: 0,
      state: nil,
      braid: nil,
      identity: nil,
      sibling: nil,
      bundle: found[{to, 1}].bundle
    }

    {account, local} = Kith.Registration.on_behalf_of(instance, {from, 1}, device)
    then = System.system_time(:millisecond) - days * 86_400_000

    {:ok, [{:ok, %{state: state, braid: braid}}]} =
      Kith.Native.session_encrypt(instance.vault, account, local, [recipient], "hello", then)

    sql!(kith, "UPDATE signal_sessions SET state = $1 WHERE user_id = $2", [{:blob, state}, from])
    Kith.Store.Sessions.put_braids(instance.repo, {from, 1}, [{{to, 1}, braid}])
  end

  # What a client publishes: some bundles of its own, put together.
  defp stock(client, user, count) do
    [first | others] = bundles = for _ <- 1..count, do: Kith.pre_key_bundle!(client, user)

    %{
      first
      | prekey: nil,
        prekeys: Enum.map(bundles, & &1.prekey),
        kyber_prekeys: Enum.map(others, & &1.kyber_prekey)
    }
  end

  defp swap(kith, table, column, one, other) do
    [[a]] = sql!(kith, "SELECT #{column} FROM #{table} WHERE #{one}")
    [[b]] = sql!(kith, "SELECT #{column} FROM #{table} WHERE #{other}")
    sql!(kith, "UPDATE #{table} SET #{column} = $1 WHERE #{one}", [{:blob, b}])
    sql!(kith, "UPDATE #{table} SET #{column} = $1 WHERE #{other}", [{:blob, a}])
  end
end
