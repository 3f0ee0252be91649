defmodule Kith.MessageArchiveTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.{Envelope, Error, Instance, Message, MessageArchive, Registration}

  setup context do
    options = [archive: true, one_time_prekeys: 10, replenish_below: 0]
    kith = start_kith!(Keyword.merge(options, Map.get(context, :options, [])))
    register!(kith, ~w(anna ben cleo))
    %{kith: kith}
  end

  describe "a second delivery" do
    test "answers as the first did, of a first message and of a later one, and changes nothing",
         %{
           kith: kith
         } do
      first = envelope!(kith, "anna", "ben", "hello")
      assert first.type == :prekey
      assert Kith.decrypt!(kith, "ben", first) == "hello"
      assert send!(kith, "ben", "anna", "hi") == "hi"
      later = envelope!(kith, "anna", "ben", "later")
      assert later.type == :message
      assert Kith.decrypt!(kith, "ben", later) == "later"
      before = dump(kith)

      for _ <- 1..3, {envelope, text} <- [{first, "hello"}, {later, "later"}] do
        assert Kith.decrypt(kith, "ben", envelope) == {:ok, text}
        assert Kith.decrypt(kith, "ben", Envelope.to_binary(envelope)) == {:ok, text}
      end

      assert dump(kith) == before
      assert send!(kith, "anna", "ben", "on we go") == "on we go"
    end

    test "answers after a restart" do
      options = defaults(archive: true, name: make_ref())
      kith = start_kith!(options)
      register!(kith, ["anna", "ben"])
      envelope = envelope!(kith, "anna", "ben", "hello")
      Kith.decrypt!(kith, "ben", envelope)
      stop_kith!(kith)
      kith = start_kith!(options)
      assert Kith.decrypt(kith, "ben", envelope) == {:ok, "hello"}
      assert texts(kith, "ben", {:direct, "anna"}) == ["hello"]
    end

    test "answers whatever has become of the session and of the sender", %{kith: kith} do
      converse!(kith, "anna", "ben")
      Kith.reset_session!(kith, "anna", "ben")
      first = envelope!(kith, "anna", "ben", "first")
      Kith.decrypt!(kith, "ben", first)
      send!(kith, "ben", "anna", "hi")
      later = envelope!(kith, "anna", "ben", "later")
      Kith.decrypt!(kith, "ben", later)
      opened = [{first, "first"}, {later, "later"}]

      refusals =
        for change <- [
              fn -> :ok end,
              fn -> Kith.reset_session!(kith, "ben", "anna") end,
              fn -> Kith.delete!(kith, "ben", "anna") end,
              fn -> Kith.unregister!(kith, "anna") end,
              fn -> Kith.register!(kith, "anna") end,
              fn -> send!(kith, "ben", "anna", "who are you?") end
            ],
            # Runs first, and once.
            _ = change.(),
            {envelope, text} <- opened do
          assert Kith.decrypt(kith, "ben", envelope) == {:ok, text}
          reason(without_archive(kith, fn -> Kith.decrypt(kith, "ben", envelope) end))
        end

      # That these were different cases.
      assert Enum.all?(
               [:duplicate, :session_not_found, :untrusted_identity],
               &(&1 in refusals)
             )
    end

    test "answers each member of a group", %{kith: kith} do
      envelopes = group!(kith, "anna", ["ben", "cleo", {"anna", 2}], "dinner", thread: "family")

      for {{user, _} = member, envelope} <- envelopes, _ <- 1..2 do
        if user != "anna",
          do: assert(Kith.decrypt(kith, member, envelope, thread: "family") == {:ok, "dinner"})
      end

      assert texts(kith, "ben", "family") == ["dinner"]
      assert texts(kith, "cleo", "family") == ["dinner"]
      assert texts(kith, "anna", "family") == ["dinner"]
    end

    test "in many processes at once is one message", %{kith: kith} do
      envelope = envelope!(kith, "anna", "ben", "hello")

      answers =
        1..20
        |> Enum.map(fn _ -> Task.async(fn -> Kith.decrypt(kith, "ben", envelope) end) end)
        |> Task.await_many()

      assert Enum.uniq(answers) == [{:ok, "hello"}]
      assert texts(kith, "ben", {:direct, "anna"}) == ["hello"]
    end

    test "of anything but the very same message is refused as ever", %{kith: kith} do
      converse!(kith, "anna", "ben")
      send!(kith, "cleo", "ben", "hello")
      envelope = envelope!(kith, "anna", "ben", "hello")
      Kith.decrypt!(kith, "ben", envelope)
      Kith.register!(kith, "ben", device: 2)

      for position <- 0..(byte_size(envelope.body) - 1) do
        changed = %{envelope | body: corrupt(envelope.body, position)}
        assert {:error, %Error{}} = Kith.decrypt(kith, "ben", changed)
      end

      for other <- [
            %{envelope | type: :prekey},
            %{envelope | from: {"cleo", 1}},
            %{envelope | from: {"anna", 2}},
            %{envelope | body: envelope.body <> <<0>>}
          ],
          do: assert({:error, %Error{}} = Kith.decrypt(kith, "ben", other))

      for to <- [{"ben", 2}, {"cleo", 1}],
          do: assert({:error, %Error{}} = Kith.decrypt(kith, to, %{envelope | to: to}))

      assert Kith.decrypt!(kith, "ben", envelope) == "hello"
    end

    test "of a message that was never opened here is refused as ever", %{kith: kith} do
      envelope = envelope!(kith, "anna", "ben", "hello")
      Kith.unregister!(kith, "ben")
      assert reason(Kith.decrypt(kith, "ben", envelope)) == :not_registered
      Kith.register!(kith, "ben")
      assert reason(Kith.decrypt(kith, "ben", envelope)) == :unknown_prekey
      assert texts(kith, "ben", {:direct, "anna"}) == []
    end

    test "whose copy does not open is refused as ever", %{kith: kith} do
      envelope = envelope!(kith, "anna", "ben", "hello")
      Kith.decrypt!(kith, "ben", envelope)
      damage(kith, "ben")
      assert reason(Kith.decrypt(kith, "ben", envelope)) == :duplicate
    end

    @tag options: [archive: false]
    test "without the archive is a duplicate, and nothing is kept", %{kith: kith} do
      envelope = envelope!(kith, "anna", "ben", "hello", thread: "x", expires_in: 5)
      assert Kith.decrypt!(kith, "ben", envelope, thread: "x", expires_in: 5) == "hello"
      assert reason(Kith.decrypt(kith, "ben", envelope)) == :duplicate
      group!(kith, "anna", ["ben", "cleo"], "hello", [])
      envelope!(kith, "anna", "anna", "note")
      assert rows(kith) == [] and threads(kith) == []
      assert Kith.history!(kith, "ben", "x") == %{messages: [], before: nil}
    end
  end

  describe "a copy" do
    test "is undone with the application's transaction", %{kith: kith} do
      converse!(kith, "anna", "ben")
      envelope = envelope!(kith, "anna", "ben", "hello")
      before = dump(kith)

      undone!(kith, fn ->
        assert Kith.decrypt!(kith, "ben", envelope, thread: "new") == "hello"
        assert Kith.decrypt!(kith, "ben", envelope, thread: "new") == "hello"
        envelope!(kith, "ben", "anna", "unsent", thread: "new")
        assert texts(kith, "ben", "new") == ["hello", "unsent"]
      end)

      assert dump(kith) == before
      assert texts(kith, "ben", "new") == []
      assert Kith.decrypt!(kith, "ben", envelope) == "hello"
    end

    test "is not made on the side that says so, and on the other as ever", %{kith: kith} do
      [envelope] = Kith.encrypt!(kith, "anna", "ben", "once more", archive: false)
      assert Kith.decrypt!(kith, "ben", envelope) == "once more"
      assert texts(kith, "anna", {:direct, "ben"}) == []
      assert texts(kith, "ben", {:direct, "anna"}) == ["once more"]

      # Without a copy there is no thread to name.
      results = Kith.encrypt_group!(kith, "anna", ["ben", "cleo"], "typing", archive: false)

      for {to, {:ok, envelope}} <- results do
        assert Kith.decrypt!(kith, to, envelope, archive: false) == "typing"
        assert reason(Kith.decrypt(kith, to, envelope)) == :duplicate
      end

      assert texts(kith, "ben", {:direct, "anna"}) == ["once more"]

      assert_raise ArgumentError, "expected :archive to be a boolean", fn ->
        Kith.encrypt(kith, "anna", "ben", "hello", archive: :no)
      end
    end

    test "is not made by a call that fails", %{kith: kith} do
      converse!(kith, "anna", "ben")
      envelope = envelope!(kith, "anna", "ben", "hello")
      before = dump(kith)
      assert reason(Kith.encrypt(kith, "anna", "nobody", "hello")) == :not_registered
      assert reason(Kith.encrypt(kith, "nobody", "anna", "hello")) == :not_registered
      {:ok, _} = Kith.encrypt_group(kith, "anna", ["nobody", "nobody else"], "x", thread: "x")
      changed = %{envelope | body: corrupt(envelope.body, byte_size(envelope.body) - 1)}
      assert reason(Kith.decrypt(kith, "ben", changed)) == :tampered
      assert dump(kith) == before
    end

    test "of what was sent knows who was served", %{kith: kith} do
      Kith.encrypt_group!(kith, "anna", ["ben", "nobody", "cleo"], "dinner", thread: "family")
      envelope!(kith, "anna", "ben", "to you alone")
      envelope!(kith, "anna", "anna", "a note")
      Kith.encrypt_group!(kith, "anna", ["anna"], "to nobody yet", thread: "family")

      assert Enum.sort(Enum.flat_map(sent_times(kith, "anna"), &sent(kith, "anna", &1))) == [
               {"a note", [], {:direct, "anna"}},
               {"dinner", [{"ben", 1}, {"cleo", 1}], "family"},
               {"to nobody yet", [], "family"},
               {"to you alone", [{"ben", 1}], {:direct, "ben"}}
             ]

      assert sent(kith, "anna", 1) == []
      [time | _] = sent_times(kith, "anna")
      assert sent(kith, "ben", time) == []
      damage(kith, "anna")
      assert Enum.flat_map(sent_times(kith, "anna"), &sent(kith, "anna", &1)) == []
    end

    test "of what was sent in the same millisecond is one of many, but of a few", %{kith: kith} do
      for n <- 1..20, do: put_sent(kith, "anna", "#{n}", sent_at: 7, position: n)
      assert [{"20", [], "t"} | _] = found = sent(kith, "anna", 7)
      assert length(found) == 16
    end

    test "is one of each device", %{kith: kith} do
      Kith.register!(kith, "ben", device: 2)
      first = envelope!(kith, "anna", "ben", "to the phone")
      second = envelope!(kith, "anna", {"ben", 2}, "to the laptop")
      Kith.decrypt!(kith, "ben", first)
      Kith.decrypt!(kith, {"ben", 2}, second)
      assert texts(kith, "ben", {:direct, "anna"}) == ["to the phone"]
      assert texts(kith, {"ben", 2}, {:direct, "anna"}) == ["to the laptop"]
      assert Enum.sort(texts(kith, "anna", {:direct, "ben"})) == ["to the laptop", "to the phone"]
    end

    test "is made by every device a message reaches, and says whom it reached", %{kith: kith} do
      for user <- ~w(anna ben), do: Kith.register!(kith, user, device: 2)
      envelopes = Kith.encrypt!(kith, "anna", "ben", "dinner")
      assert [{"anna", 2}, {"ben", 1}, {"ben", 2}] = Enum.sort(Enum.map(envelopes, & &1.to))

      for %{to: {user, _} = to} = envelope <- envelopes, _ <- 1..2 do
        options = if user == "anna", do: [thread: {:direct, "ben"}], else: []
        assert Kith.decrypt!(kith, to, envelope, options) == "dinner"
      end

      for {address, direction} <- [
            {{"anna", 1}, :sent},
            {{"anna", 2}, :sent},
            {{"ben", 1}, :received},
            {{"ben", 2}, :received}
          ] do
        peer = if elem(address, 0) == "anna", do: "ben", else: "anna"

        assert [
                 %{
                   direction: ^direction,
                   from: {"anna", 1},
                   plaintext: "dinner",
                   sent_at: sent_at
                 }
               ] = Kith.history!(kith, address, {:direct, peer}).messages

        # By which the devices can tell that it is one message.
        assert sent_at == hd(envelopes).timestamp
      end

      assert [{"dinner", recipients, {:direct, "ben"}}] =
               sent(kith, "anna", hd(envelopes).timestamp)

      assert Enum.sort(recipients) == Enum.sort(Enum.map(envelopes, & &1.to))
    end

    test "of what another device of the user sent is in the thread it is put in, as sent", %{
      kith: kith
    } do
      Kith.register!(kith, "anna", device: 2)
      envelope = envelope!(kith, "anna", {"anna", 2}, "I wrote to ben")
      Kith.decrypt!(kith, {"anna", 2}, envelope, thread: {:direct, "ben"})

      assert [%Message{direction: :sent, from: {"anna", 1}, plaintext: "I wrote to ben"}] =
               Kith.history!(kith, {"anna", 2}, {:direct, "ben"}).messages

      envelope = envelope!(kith, "anna", {"anna", 2}, "to myself")
      Kith.decrypt!(kith, {"anna", 2}, envelope)
      assert texts(kith, {"anna", 2}, {:direct, "anna"}) == ["to myself"]
    end

    test "goes with its device, and the key of a thread with the last copy", %{kith: kith} do
      for thread <- ["one", "two"] do
        envelope = envelope!(kith, "anna", "ben", thread, thread: thread)
        if thread == "one", do: Kith.decrypt!(kith, "ben", envelope, thread: thread)
      end

      Kith.unregister!(kith, "anna")
      assert for([user | _] <- rows(kith), do: user) == ["ben"]
      assert [["t:one", _, _]] = threads(kith)
      Kith.register!(kith, "anna")
      assert texts(kith, "anna", "one") == []
      assert texts(kith, "ben", "one") == ["one"]
      Kith.unregister!(kith, "ben")
      assert threads(kith) == []
    end

    test "made by many processes in a new thread is sealed under one key", %{kith: kith} do
      converse!(kith, "anna", "ben")

      1..20
      |> Enum.map(fn n ->
        Task.async(fn ->
          {from, to} = if rem(n, 2) == 0, do: {"anna", "ben"}, else: {"ben", "anna"}
          envelope!(kith, from, to, "#{n}", thread: "new")
        end)
      end)
      |> Task.await_many()

      assert length(texts(kith, "anna", "new") ++ texts(kith, "ben", "new")) == 20
      assert Enum.count(threads(kith), &match?(["t:new" | _], &1)) == 1
    end

    test "holds bytes of any kind and size", %{kith: kith} do
      for plaintext <- ["", <<0, 255, 254>>, :crypto.strong_rand_bytes(65_536)] do
        envelope = envelope!(kith, "anna", "ben", plaintext)
        for _ <- 1..2, do: assert(Kith.decrypt!(kith, "ben", envelope) == plaintext)
        assert List.last(texts(kith, "ben", {:direct, "anna"})) == plaintext
        assert List.last(texts(kith, "anna", {:direct, "ben"})) == plaintext
      end
    end
  end

  describe "the thread" do
    test "of two users is the same for both, and of no others", %{kith: kith} do
      users = ["a", "b", "1", "1:a", "a:b", "b:c", "c", "ab", "é", "2:a"]
      for user <- users, do: Kith.register!(kith, user)
      pairs = for a <- users, b <- users, a < b, do: {a, b}

      for {a, b} <- pairs do
        Kith.decrypt!(kith, b, envelope!(kith, a, b, "#{a} to #{b}"))
      end

      for {a, b} <- pairs do
        assert texts(kith, a, {:direct, b}) == ["#{a} to #{b}"]
        assert texts(kith, b, {:direct, a}) == ["#{a} to #{b}"]
      end

      assert length(threads(kith)) == length(pairs)
      # Nor is it one the application can name by itself.
      for [id | _] <- threads(kith), do: assert(texts(kith, "a", id) == [])
      for [id | _] <- threads(kith), do: assert(Kith.shred!(kith, id) == 0)
    end

    test "is the one that was given, for each side its own", %{kith: kith} do
      envelope = envelope!(kith, "anna", "ben", "hello", thread: "work")
      Kith.decrypt!(kith, "ben", envelope, thread: "later")
      Kith.decrypt!(kith, "ben", envelope, thread: "ignored")
      assert texts(kith, "anna", "work") == ["hello"]
      assert texts(kith, "ben", "later") == ["hello"]
      for thread <- ["work", "ignored"], do: assert(texts(kith, "ben", thread) == [])
      for user <- ~w(anna ben), do: assert(texts(kith, user, {:direct, "anna"}) == [])
    end

    test "of a group has to be said", %{kith: kith} do
      assert_raise ArgumentError, ~r/expected :thread, the conversation of the group/, fn ->
        Kith.encrypt_group(kith, "anna", ["ben"], "hello")
      end

      assert_raise ArgumentError, ~r/expected :thread/, fn ->
        Kith.encrypt_group(kith, "anna", [], "hello", expires_in: 5)
      end
    end

    test "is a string of 1 to 255 bytes or names a user", %{kith: kith} do
      longest = String.duplicate("t", 255)
      Kith.encrypt!(kith, "anna", "ben", "hello", thread: longest)
      assert texts(kith, "anna", longest) == ["hello"]

      for thread <- [
            "",
            String.duplicate("t", 256),
            <<255>>,
            "a\0b",
            :work,
            {:direct, ""},
            {:direct, 1},
            {:group, "x"},
            {"anna", 1},
            1
          ] do
        for call <- [
              fn -> Kith.encrypt(kith, "anna", "ben", "hello", thread: thread) end,
              fn -> Kith.history(kith, "anna", thread) end,
              fn -> Kith.shred(kith, thread) end
            ],
            do: assert_raise(ArgumentError, call)
      end
    end
  end

  describe "history/4" do
    test "is what was sent and received, in order, with who, when and until when", %{kith: kith} do
      sent = envelope!(kith, "anna", "ben", "one")
      Kith.decrypt!(kith, "ben", sent)
      Kith.decrypt!(kith, "anna", envelope!(kith, "ben", "anna", "two"))
      send!(kith, "anna", "cleo", "elsewhere")
      now = System.system_time(:millisecond)

      assert %{messages: [one, two], before: nil} = Kith.history!(kith, "anna", {:direct, "ben"})

      assert %Message{
               thread: {:direct, "ben"},
               from: {"anna", 1},
               direction: :sent,
               plaintext: "one",
               expires_at: nil,
               error: nil
             } = one

      assert %Message{from: {"ben", 1}, direction: :received, plaintext: "two"} = two
      for message <- [one, two], do: assert(message.at in (now - 60_000)..(now + 1_000))
      assert one.sent_at in (now - 60_000)..(now + 1_000)
      assert one.id =~ ~r/\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z/
      assert one.id != two.id
      refute inspect([one, two, %{one | plaintext: nil, error: :corrupted_state}]) =~ ~r/one|two/
    end

    test "pages through a thousand messages of one time, whatever the size of a page", %{
      kith: kith
    } do
      put_many(kith, "anna", 1..1_000, fn _ -> 1_000_000 end)
      all = MapSet.new(1..1_000, &"#{&1}")

      for limit <- [7, 50, 999, 1_000] do
        {pages, texts} = all_pages(kith, "anna", "t", limit)
        assert length(texts) == 1_000
        assert MapSet.new(texts) == all
        assert pages == div(1_000 + limit - 1, limit)
      end

      {_, by_seven} = all_pages(kith, "anna", "t", 7)
      {_, by_fifty} = all_pages(kith, "anna", "t", 50)
      assert by_seven == by_fifty
    end

    test "begins with the newest, each page in the order of a screen, and keeps its place while messages come and go",
         %{kith: kith} do
      put_many(kith, "anna", 1..30, & &1)
      page = Kith.history!(kith, "anna", "t", limit: 10)
      assert plain(page) == Enum.map(21..30, &"#{&1}")

      put_many(kith, "anna", 31..40, & &1)
      # The message the cursor is made from.
      sql!(kith, "DELETE FROM signal_archived_messages WHERE position = $1", [21_000])

      page = Kith.history!(kith, "anna", "t", limit: 10, before: page.before)
      assert plain(page) == Enum.map(11..20, &"#{&1}")
      page = Kith.history!(kith, "anna", "t", limit: 10, before: page.before)
      assert plain(page) == Enum.map(1..10, &"#{&1}")
      assert page.before == nil
      assert length(Kith.history!(kith, "anna", "t").messages) == 39
      put_many(kith, "anna", 41..60, & &1)
      # The default of a page.
      assert length(Kith.history!(kith, "anna", "t").messages) == 50
    end

    @tag options: [max_plaintext: 1_048_576]
    test "ends a page before it exceeds 8 MiB", %{kith: kith} do
      large = :binary.copy("x", 1_048_576)
      for n <- 1..10, do: put_sent(kith, "anna", large, position: n * 1_000)
      page = Kith.history!(kith, "anna", "t")
      assert length(page.messages) == 7
      page = Kith.history!(kith, "anna", "t", before: page.before)
      assert Enum.map(page.messages, & &1.at) == [1, 2, 3]
      assert page.before == nil
    end

    test "refuses what is no cursor, and takes one of another thread for a place in time", %{
      kith: kith
    } do
      put_many(kith, "anna", 1..3, & &1)
      %{before: cursor} = Kith.history!(kith, "anna", "t", limit: 1)
      assert byte_size(cursor) == 34

      for wrong <- [
            "",
            "x",
            cursor <> "A",
            "!" <> binary_part(cursor, 1, 33),
            # Another version, and a place no message has.
            Base.url_encode64(<<2, 0::192>>, padding: false),
            Base.url_encode64(<<1, 255, 0::184>>, padding: false)
          ],
          do: assert(reason(Kith.history(kith, "anna", "t", before: wrong)) == :malformed)

      assert plain(Kith.history!(kith, "anna", "t", before: cursor)) == ["1", "2"]
      assert Kith.history!(kith, "anna", "empty", before: cursor).messages == []
      assert Kith.history!(kith, "ben", "t", before: cursor).messages == []
    end

    test "raises for options that are wrong", %{kith: kith} do
      for options <- [
            [limit: 0],
            [limit: 1_001],
            [limit: nil],
            [limit: 1.5],
            [before: 1],
            [after: "x"],
            [:before]
          ],
          do: assert_raise(ArgumentError, fn -> Kith.history(kith, "anna", "t", options) end)

      for options <- [
            [expires_in: 0],
            [expires_in: -1],
            [expires_in: 1.5],
            [thraed: "x"],
            :thread
          ] do
        for call <- [
              fn -> Kith.encrypt(kith, "anna", "ben", "secret words", options) end,
              fn -> Kith.encrypt_group(kith, "anna", ["ben"], "secret words", options) end,
              fn -> Kith.decrypt(kith, "anna", "secret words", options) end
            ] do
          error = assert_raise ArgumentError, call
          refute Exception.message(error) =~ "secret"
        end
      end
    end

    test "is of devices whose keys are here", %{kith: kith} do
      assert reason(Kith.history(kith, "nobody", "t")) == :not_registered
      assert_raise ArgumentError, fn -> Kith.history(kith, "", "t") end
    end

    test "shows a note to oneself", %{kith: kith} do
      note = envelope!(kith, "anna", "anna", "remember the milk")
      for _ <- 1..2, do: assert(Kith.decrypt!(kith, "anna", note) == "remember the milk")
      assert texts(kith, "anna", {:direct, "anna"}) == ["remember the milk"]
      assert [%{direction: :sent}] = Kith.history!(kith, "anna", {:direct, "anna"}).messages
    end
  end

  describe "a row that does not open" do
    setup %{kith: kith} do
      for n <- 1..3, do: Kith.decrypt!(kith, "ben", envelope!(kith, "anna", "ben", "m#{n}"))
      :ok
    end

    test "is in its place with its error, and hides no other", %{kith: kith} do
      [[_, _, thread, position, id | _] = row | _] = rows(kith, "ben")
      content = List.last(row)

      for damaged <- [
            corrupt(content, 0),
            corrupt(content, 5),
            corrupt(content, 15),
            corrupt(content, 30),
            corrupt(content, byte_size(content) - 1),
            binary_part(content, 0, 37),
            content <> <<0>>,
            "",
            "x"
          ] do
        put_content(kith, id, damaged)
        assert [%Message{error: :corrupted_state} = message | rest] = messages(kith, "ben")

        assert %{plaintext: nil, from: nil, direction: nil, sent_at: nil, expires_at: nil} =
                 message

        assert message.id == Envelope.uuid(id) and message.at == div(position, 1_000)
        assert Enum.map(rest, & &1.plaintext) == ["m2", "m3"]
      end

      put_content(kith, id, content)
      assert thread == "d:4:annaben"
      assert Enum.map(messages(kith, "ben"), & &1.plaintext) == ["m1", "m2", "m3"]
    end

    test "is so with any column of another", %{kith: kith} do
      [[_, _, _, position, id | _] | _] = rows(kith, "ben")

      for {column, value} <- [
            position: position - 1,
            message_id: {:blob, :crypto.strong_rand_bytes(16)},
            peer_id: "cleo",
            peer_id: nil,
            peer_device_id: 2,
            peer_device_id: nil,
            peer_device_id: 300,
            sent_at: 1,
            expires_at: 4_000_000_000_000,
            sent_at: -1
          ] do
        changed(kith, column, value, position, fn ->
          assert [nil, "m2", "m3"] = Enum.map(messages(kith, "ben"), & &1.plaintext)
        end)
      end

      sql!(kith, "UPDATE signal_archived_messages SET peer_id = NULL, peer_device_id = NULL")
      assert [nil, nil, nil] = Enum.map(messages(kith, "ben"), & &1.plaintext)
      assert byte_size(id) == 16
    end

    test "is so under the name of another device or thread", %{kith: kith} do
      # Before the rows are theirs: whoever registers begins with none.
      Kith.register!(kith, "ben", device: 2)
      Kith.register!(kith, "anna", device: 3)
      envelope!(kith, "cleo", "anna", "another thread")

      sql!(kith, "UPDATE signal_archived_messages SET device_id = 2 WHERE user_id = 'ben'")
      assert [nil, nil, nil] = Enum.map(messages(kith, {"ben", 2}), & &1.plaintext)

      sql!(kith, "UPDATE signal_archived_messages SET user_id = 'anna', device_id = 3")
      found = Kith.history!(kith, {"anna", 3}, {:direct, "ben"}).messages
      assert length(found) == 6
      assert Enum.all?(found, &(&1.error == :corrupted_state))

      sql!(kith, "UPDATE signal_archived_messages SET thread_id = 'd:4:annacleo'")
      found = Kith.history!(kith, {"anna", 3}, {:direct, "cleo"}).messages
      assert length(found) == 7
      assert Enum.all?(found, &(&1.error == :corrupted_state))
    end

    test "is so with the content of another row", %{kith: kith} do
      [first, second | _] = rows(kith, "ben")
      put_content(kith, Enum.at(first, 4), List.last(second))
      put_content(kith, Enum.at(second, 4), List.last(first))
      assert [nil, nil, "m3"] = Enum.map(messages(kith, "ben"), & &1.plaintext)
    end

    test "and nobody can page past is left out", %{kith: kith} do
      [[_, _, _, position | _] | _] = rows(kith, "ben")

      for {column, value} <- [
            position: -1,
            message_id: {:blob, "short"}
          ] do
        changed(kith, column, value, position, fn ->
          assert {_, ["m2", "m3"]} = all_pages(kith, "ben", {:direct, "anna"}, 1)
        end)
      end
    end

    # Which keeps anything in any column.
    @tag store: :sqlite
    test "for the type of its columns neither fails a call nor is paged past for ever", %{
      kith: kith
    } do
      [[_, _, _, position | _] | _] = rows(kith, "ben")

      for {column, value} <- [
            position: "later",
            position: 1.5,
            message_id: "sixteen letters!",
            message_id: 1_000_000_000_000_000
          ] do
        changed(kith, column, value, position, fn ->
          assert {_, ["m2", "m3"]} = all_pages(kith, "ben", {:direct, "anna"}, 1)
        end)
      end

      for {column, value} <- [
            sent_at: "later",
            expires_at: "later",
            peer_id: {:blob, <<255>>},
            peer_device_id: "phone",
            content: "text",
            content: 5
          ] do
        changed(kith, column, value, position, fn ->
          assert {_, [nil, "m2", "m3"]} = all_pages(kith, "ben", {:direct, "anna"}, 1)
        end)
      end

      for value <- ["'text'", "5"] do
        sql!(kith, "UPDATE signal_threads SET data_key = #{value}")
        assert reason(Kith.history(kith, "ben", {:direct, "anna"})) == :corrupted_state
      end
    end

    test "for want of its thread's key is an error of all of them", %{kith: kith} do
      [[_, wrapped, _]] = threads(kith)
      sql!(kith, "UPDATE signal_threads SET data_key = $1", [{:blob, corrupt(wrapped, 40)}])
      assert reason(Kith.history(kith, "ben", {:direct, "anna"})) == :corrupted_state
      before = dump(kith)
      assert reason(Kith.encrypt(kith, "anna", "ben", "hello")) == :corrupted_state
      assert dump(kith) == before

      # Wrapped by a key-encryption key that is not here.
      other = String.replace(wrapped, "test", "tess")
      sql!(kith, "UPDATE signal_threads SET data_key = $1", [{:blob, other}])
      assert reason(Kith.history(kith, "ben", {:direct, "anna"})) == :key_not_found

      sql!(kith, "DELETE FROM signal_threads")
      assert reason(Kith.history(kith, "ben", {:direct, "anna"})) == :key_not_found
    end

    test "is so under the key of another thread", %{kith: kith} do
      envelope!(kith, "anna", "cleo", "another thread")
      [[_, one, _], [_, other, _]] = threads(kith)
      assert one != other

      for {id, key} <- [{"d:4:annaben", other}, {"d:4:annacleo", one}] do
        sql!(kith, "UPDATE signal_threads SET data_key = $1 WHERE thread_id = $2", [
          {:blob, key},
          id
        ])
      end

      assert reason(Kith.history(kith, "ben", {:direct, "anna"})) == :corrupted_state
    end
  end

  describe "what disappears" do
    @tag options: [archive: [retention: 100]]
    test "does so after the retention of the instance or what the call says, whichever is shorter",
         %{
           kith: kith
         } do
      for {seconds, options} <- [{100, []}, {10, [expires_in: 10]}, {100, [expires_in: 1_000]}] do
        envelope = envelope!(kith, "anna", "ben", "hello", [thread: "t"] ++ options)
        Kith.decrypt!(kith, "ben", envelope, [thread: "t"] ++ options)

        for user <- ~w(anna ben) do
          message = List.last(Kith.history!(kith, user, "t").messages)
          assert message.expires_at - message.at == seconds * 1_000
        end
      end
    end

    test "answers no second delivery and is in no history, from the moment its time is over" do
      ahead = :counters.new(1, [])
      clock = fn -> System.system_time(:millisecond) + :counters.get(ahead, 1) end
      kith = start_kith!(archive: true, clock: clock)
      register!(kith, ["anna", "ben"])
      envelope = envelope!(kith, "anna", "ben", "gone soon", expires_in: 600, thread: "t")
      Kith.decrypt!(kith, "ben", envelope, expires_in: 600, thread: "t")
      put_sent(kith, "ben", "stays", [])
      [time] = sent_times(kith, "anna")

      # Ten minutes, but for the time this takes.
      :counters.add(ahead, 1, 540_000)
      assert texts(kith, "anna", "t") == ["gone soon"]
      assert Enum.sort(texts(kith, "ben", "t")) == ["gone soon", "stays"]
      assert Kith.decrypt!(kith, "ben", envelope) == "gone soon"
      assert [_] = sent(kith, "anna", time)
      assert purge(kith, clock.(), 100) == 0

      :counters.add(ahead, 1, 60_000)
      assert texts(kith, "anna", "t") == []
      assert texts(kith, "ben", "t") == ["stays"]
      assert reason(Kith.decrypt(kith, "ben", envelope)) == :duplicate
      assert sent(kith, "anna", time) == []
      assert length(rows(kith)) == 3
      assert purge(kith, clock.(), 100) == 2
      assert [["ben" | _]] = rows(kith)
    end

    test "is deleted a limited number at a time, the oldest first, with the keys nothing is under",
         %{
           kith: kith
         } do
      for n <- 1..10 do
        put_sent(kith, "anna", "#{n}", thread: "a", position: n * 1_000, expires_in: 1)
        put_sent(kith, "anna", "#{n}", thread: "b", position: n * 1_000, expires_in: 1)
      end

      put_sent(kith, "anna", "later", thread: "b", position: 500, expires_in: 1_000_000)
      put_sent(kith, "anna", "for ever", thread: "c", position: 500)

      assert purge(kith, 1_000, 100) == 0
      assert purge(kith, 1_001, 100) == 2
      assert purge(kith, 10_000, 3) == 3
      assert purge(kith, 10_000, 100) == 15
      assert purge(kith, 10_000, 100) == 0
      assert for([id | _] <- threads(kith), do: id) == ["t:b", "t:c"]
      assert length(rows(kith)) == 2
    end

    test "can be said with a time only", %{kith: kith} do
      assert {:error, message} =
               Kith.Options.new(keys: [current: {"a", {:env, "X"}}], archive: [retention: 0])

      assert message =~ "expected :archive to be true, false or [retention: seconds]"

      assert_raise ArgumentError, fn ->
        Kith.encrypt(kith, "anna", "ben", "x", expires_in: "1")
      end
    end
  end

  describe "shred/2" do
    test "deletes a thread for everyone and no other", %{kith: kith} do
      for thread <- ["one", "two"], to <- ~w(ben cleo) do
        envelope = envelope!(kith, "anna", to, thread, thread: thread)
        Kith.decrypt!(kith, to, envelope, thread: thread)
      end

      assert Kith.shred!(kith, "one") == 4
      for user <- ~w(anna ben cleo), do: assert(texts(kith, user, "one") == [])
      assert texts(kith, "anna", "two") == ["two", "two"]
      assert for([id | _] <- threads(kith), do: id) == ["t:two"]
      assert Kith.shred!(kith, "one") == 0

      envelope!(kith, "anna", "ben", "anew", thread: "one")
      assert texts(kith, "anna", "one") == ["anew"]
    end

    test "takes the direct thread of two users in either order", %{kith: kith} do
      for order <- [{:direct, "anna", "ben"}, {:direct, "ben", "anna"}] do
        envelope!(kith, "anna", "ben", "hello")
        assert Kith.shred!(kith, order) == 1
      end

      for wrong <- [{:direct, "anna"}, {:direct, "anna", 1}, {:direct, "anna", "ben", "cleo"}],
          do: assert_raise(ArgumentError, fn -> Kith.shred(kith, wrong) end)
    end

    test "ends second deliveries", %{kith: kith} do
      envelope = envelope!(kith, "anna", "ben", "hello")
      Kith.decrypt!(kith, "ben", envelope)
      Kith.shred!(kith, {:direct, "anna", "ben"})
      assert reason(Kith.decrypt(kith, "ben", envelope)) == :duplicate
    end

    @tag store: :sqlite
    test "leaves nothing in the files", %{kith: kith} do
      database = Instance.fetch!(kith).options.database
      envelope!(kith, "anna", "ben", String.duplicate("a long message ", 1_000), thread: "one")
      [[_, wrapped, _]] = threads(kith)
      [row] = rows(kith)
      needles = [from(wrapped, 20), from(List.last(row), byte_size(List.last(row)) - 100)]
      for needle <- needles, do: assert(in_files?(database, needle))

      Kith.shred!(kith, "one")
      for needle <- needles, do: refute(in_files?(database, needle))
    end

    test "makes rows of a backup useless", %{kith: kith} do
      plaintext = String.duplicate("a long message ", 1_000)
      envelope!(kith, "anna", "ben", plaintext, thread: "one")
      [[_, wrapped, _]] = threads(kith)
      [row] = rows(kith)
      Kith.shred!(kith, "one")

      restore_row(kith, row)
      assert reason(Kith.history(kith, "anna", "one")) == :key_not_found
      put_sent(kith, "anna", "anew", thread: "one")

      assert [%{error: :corrupted_state}, %{plaintext: "anew"}] =
               Kith.history!(kith, "anna", "one").messages

      # What the documentation says of a backup that has the key.
      sql!(kith, "UPDATE signal_threads SET data_key = $1", [{:blob, wrapped}])

      assert [%{plaintext: ^plaintext}, %{error: :corrupted_state}] =
               Kith.history!(kith, "anna", "one").messages
    end

    @tag store: :sqlite
    test "says when another program keeps the log from being emptied, and does so when called again",
         %{
           kith: kith
         } do
      database = Instance.fetch!(kith).options.database
      reader = Kith.SQLite.handle(start_supervised!({Kith.SQLite, path: database}))

      endless = """
      WITH RECURSIVE numbers(n) AS (SELECT COUNT(*) FROM signal_threads UNION ALL SELECT n + 1 FROM numbers)
      SELECT COUNT(*) FROM numbers
      """

      reading = spawn(fn -> Kith.SQLite.query(reader, endless, [], timeout: :infinity) end)

      # Until it reads.
      error =
        Stream.repeatedly(fn ->
          envelope!(kith, "anna", "ben", "hello", thread: "one")
          Kith.shred(kith, "one")
        end)
        |> Enum.find(&match?({:error, _}, &1))

      assert {:error, %Error{reason: :storage} = error} = error
      assert Exception.message(error) =~ "call again"
      assert texts(kith, "anna", "one") == []
      assert threads(kith) == []

      Process.exit(reading, :kill)
      # Until it has stopped.
      assert {:ok, _} = Kith.SQLite.query(reader, "SELECT 1")
      assert Kith.shred!(kith, "one") == 0
      assert File.stat!(database <> "-wal").size == 0
    end

    test "is undone with the application's transaction", %{kith: kith} do
      envelope!(kith, "anna", "ben", "hello", thread: "one")

      undone!(kith, fn ->
        assert Kith.shred!(kith, "one") == 1
        assert texts(kith, "anna", "one") == []
      end)

      assert texts(kith, "anna", "one") == ["hello"]
    end
  end

  # Of all envelopes of a message the first to someone.
  defp envelope!(kith, from, to, plaintext, options \\ []) do
    envelopes = Kith.encrypt!(kith, from, to, plaintext, options)
    address = Kith.Address.new!(to)
    %Envelope{} = Enum.find(envelopes, &(&1.to == address))
  end

  # The envelopes of those who were served.
  defp group!(kith, from, members, plaintext, options) do
    for {_member, {:ok, envelope}} <-
          Kith.encrypt_group!(kith, from, members, plaintext, options),
        do: {envelope.to, envelope}
  end

  defp messages(kith, address), do: Kith.history!(kith, address, {:direct, "anna"}).messages

  defp texts(kith, address, thread), do: plain(Kith.history!(kith, address, thread))

  defp plain(page), do: Enum.map(page.messages, & &1.plaintext)

  # All texts, oldest first, and how many pages they took.
  defp all_pages(kith, address, thread, limit, before \\ nil, pages \\ 1, texts \\ []) do
    page = Kith.history!(kith, address, thread, limit: limit, before: before)
    texts = plain(page) ++ texts

    if page.before,
      do: all_pages(kith, address, thread, limit, page.before, pages + 1, texts),
      else: {pages, texts}
  end

  defp put_sent(kith, user, text, options) do
    instance = Instance.fetch!(kith)
    target = {"t:" <> Keyword.get(options, :thread, "t"), options[:expires_in]}
    position = Keyword.get_lazy(options, :position, fn -> System.system_time(:microsecond) end)
    id = :crypto.strong_rand_bytes(16)
    row = %{message_id: id, sender: nil, sent_at: options[:sent_at]}

    owner = owner(instance, user)
    :ok = MessageArchive.put(instance, instance.repo, owner, target, row, {[], text}, position)
  end

  defp put_many(kith, user, numbers, milliseconds) do
    Instance.transaction(Instance.fetch!(kith), fn _repo ->
      for n <- numbers, do: put_sent(kith, user, "#{n}", position: milliseconds.(n) * 1_000)
      {{:ok, :done}, []}
    end)
  end

  defp sent(kith, user, timestamp) do
    instance = Instance.fetch!(kith)
    MessageArchive.sent(instance, instance.repo, owner(instance, user), timestamp)
  end

  defp owner(instance, user) do
    {:ok, device} = Registration.fetch_local(instance.repo, {user, 1})
    {{user, 1}, device}
  end

  defp sent_times(kith, user) do
    sql = "SELECT DISTINCT sent_at FROM signal_archived_messages WHERE user_id = $1"
    for [time] <- sql!(kith, sql, [user]), do: time
  end

  defp purge(kith, now, limit) do
    {:ok, count} =
      Instance.transaction(Instance.fetch!(kith), fn repo ->
        {{:ok, MessageArchive.purge(Instance.fetch!(kith), repo, now, limit)}, []}
      end)

    count
  end

  # What the engine says of a message without its copy.
  defp without_archive(kith, fun) do
    undone!(kith, fn ->
      sql!(kith, "DELETE FROM signal_archived_messages")
      fun.()
    end)
  end

  defp rows(kith) do
    sql!(
      kith,
      """
      SELECT user_id, device_id, thread_id, position, message_id, peer_id, peer_device_id, sent_at, expires_at, content
      FROM signal_archived_messages ORDER BY position
      """
    )
  end

  defp rows(kith, user), do: Enum.filter(rows(kith), &(hd(&1) == user))

  defp threads(kith),
    do:
      sql!(kith, "SELECT thread_id, data_key, created_at FROM signal_threads ORDER BY thread_id")

  defp restore_row(kith, [user, device, thread, position, id, peer, peer_device | rest]) do
    [sent_at, expires_at, content] = rest

    sql!(
      kith,
      """
      INSERT INTO signal_archived_messages
        (user_id, device_id, thread_id, position, message_id, peer_id, peer_device_id, sent_at, expires_at, content)
      VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
      """,
      [user, device, thread, position, {:blob, id}, peer, peer_device, sent_at, expires_at] ++
        [{:blob, content}]
    )
  end

  defp put_content(kith, id, content) do
    sql!(kith, "UPDATE signal_archived_messages SET content = $1 WHERE message_id = $2", [
      {:blob, content},
      {:blob, id}
    ])
  end

  defp damage(kith, user) do
    for row <- rows(kith, user),
        do: put_content(kith, Enum.at(row, 4), corrupt(List.last(row), 30))
  end

  # Runs with another value in a column of the row at a position of ben's.
  defp changed(kith, column, value, position, fun) do
    undone!(kith, fn ->
      1 =
        sql!(
          kith,
          "UPDATE signal_archived_messages SET #{column} = $1 WHERE user_id = 'ben' AND position = $2",
          [value, position]
        )

      fun.()
    end)
  end

  defp in_files?(database, bytes) do
    for file <- [database, database <> "-wal"], File.exists?(file), reduce: false do
      found -> found or :binary.match(File.read!(file), bytes) != :nomatch
    end
  end
end
