defmodule FamilyChat.ChatTest do
  # One of them makes the database fail, for all.
  use ExUnit.Case, async: false

  import FamilyChat.Family
  import Kith.Testing

  alias FamilyChat.{Accounts, Chat, Conversations, Mailbox, SQL}

  @kith FamilyChat.Kith

  setup do
    [anna, ben, cleo] = people!(~w(Anna Ben Cleo))
    %{anna: anna, ben: ben, cleo: cleo, family: family!([anna, ben, cleo])}
  end

  describe "a message" do
    test "is seen by everybody in the conversation and readable nowhere on its way", context do
      %{anna: anna, ben: ben, cleo: cleo, family: family} = context
      text = "Dinner at seven, and bring the good chairs"
      Mailbox.subscribe(ben.id)
      %{id: message_id} = say!(anna, family, text)

      assert_receive {:envelope, id}

      for table <- ~w(envelopes messages conversations notices undelivered message_encryption),
          do: refute_readable(SQL.rows("SELECT * FROM #{table}"), text)

      row = Mailbox.fetch(ben.id, id)
      {:ok, envelope} = Mailbox.envelope(row)
      payload = FamilyChat.Payload.encode(message_id, text, nil)
      assert_encrypted(@kith, envelope, payload, to: ben.id, hidden: text)

      for user <- [anna, ben, cleo] do
        come(user)
        assert sees(user, family) == [text]
      end
    end

    test "is stored with its session, or neither is", %{anna: anna, ben: ben, family: family} do
      text = "this one is typed again"
      id = message_id()

      {:error, %{reason: :storage}} =
        while_storage_fails(@kith, fn -> Chat.send(anna, family, id, text) end)

      assert sees(anna, family) == []
      assert Mailbox.waiting(ben.id) == []

      {:ok, _} = Chat.send(anna, family, id, text)
      come(ben)
      assert sees(ben, family) == [text]
    end

    test "that is sent again for want of an answer is one message", context do
      %{anna: anna, ben: ben, family: family} = context
      id = message_id()
      {:ok, _} = Chat.send(anna, family, id, "once")
      assert Chat.send(anna, family, id, "once") == {:error, :sent_before}
      # Somebody else's id is not theirs to use.
      assert Chat.send(ben, family, id, "mine") == {:error, :id}
      come(ben)
      assert sees(ben, family) == ["once"]
      assert sees(anna, family) == ["once"]
    end

    test "is opened by one of two pages of a user, and shown by both", context do
      %{anna: anna, ben: ben, family: family} = context
      say!(anna, family, "for both")
      [id] = Mailbox.waiting(ben.id)

      results =
        1..2
        |> Enum.map(fn _ -> Task.async(fn -> Chat.open(ben, id) end) end)
        |> Task.await_many()

      assert Enum.any?(results, &match?({:message, ^family, %{text: "for both"}}, &1))
      refute Enum.any?(results, &match?({:unopened, _, _}, &1))
      assert sees(ben, family) == ["for both"]
    end

    test "knows whom it has reached", %{anna: anna, ben: ben, cleo: cleo, family: family} do
      %{id: id} = say!(anna, family, "hello")
      assert Chat.progress(anna, id) == {2, 0}
      come(ben)
      assert Chat.progress(anna, id) == {2, 1}
      come(cleo)
      assert Chat.progress(anna, id) == {2, 2}
      assert Chat.progress(ben, id) == nil

      assert [%{protocol: "signal", version: 4, state: "opened"}, _] = Chat.encryption(anna, id)
      assert Chat.encryption(ben, id) == []
      assert Chat.encryption(anna, "../../etc") == []
    end

    test "of nobody, of a stranger, or of too many letters is refused", context do
      %{anna: anna, family: family} = context
      stranger = person!("Stranger")
      assert Chat.send(stranger, family, message_id(), "hello") == {:error, :not_found}
      assert Chat.timeline(stranger, family) == {:error, :not_found}

      for {id, text, reason} <- [
            {message_id(), "  ", :length},
            {message_id(), String.duplicate("x", 4_001), :length},
            {message_id(), <<255>>, :length},
            {message_id(), nil, :length},
            {"1", "x", :id},
            {nil, "x", :id}
          ],
          do: assert(Chat.send(anna, family, id, text) == {:error, reason})

      for id <- ["", "x", nil, <<0>>, String.duplicate("a", 22)],
          do: assert(Chat.send(anna, id, message_id(), "hello") == {:error, :not_found})

      assert sees(anna, family) == []
    end
  end

  describe "a message that does not open" do
    test "is a placeholder, and heals when the sender's page is there", context do
      %{anna: anna, ben: ben, family: family} = context
      say!(anna, family, "the one that is damaged")
      damage!(ben, &change_last_byte/1)
      come(ben)
      assert sees(ben, family) == [{:unopened, "tampered"}]

      come(anna)
      come(ben)
      assert sees(ben, family) == ["the one that is damaged"]
      assert sees(anna, family) == ["the one that is damaged"]
      assert say!(anna, family, "and on") && come(ben) == :ok
      assert sees(ben, family) == ["the one that is damaged", "and on"]
    end

    test "heals also when nothing of it can be recognized", context do
      %{anna: anna, ben: ben, family: family} = context

      for {change, index} <-
            Enum.with_index([fn _ -> "garbage" end, fn _ -> "" end, fn _ -> <<0x99, 1>> end]) do
        text = "damaged beyond recognition #{index}"
        say!(anna, family, text)
        damage!(ben, change)
        come(ben)
        assert {:unopened, _} = List.last(sees(ben, family))
        come(anna)
        come(ben)
        assert List.last(sees(ben, family)) == text
      end
    end

    test "for want of the session heals", %{anna: anna, ben: ben, family: family} do
      say!(anna, family, "first")
      come(ben)
      say!(ben, family, "back")
      come(anna)
      say!(anna, family, "on its way")
      corrupt_session!(@kith, ben.id, anna.id)
      come(ben)
      come(anna)
      come(ben)
      assert "on its way" in sees(ben, family)
    end

    test "is encrypted anew a few times and not for ever", context do
      %{anna: anna, ben: ben, family: family} = context
      say!(anna, family, "never arrives")

      sent =
        for _ <- 1..10 do
          damage!(ben, fn _ -> "garbage" end)
          come(ben)
          Chat.flush(anna)
        end

      assert Enum.sum(sent) == 3
      assert sees(ben, family) == [{:unopened, "unsupported_version"}]
    end
  end

  describe "an identity that changed" do
    test "holds messages back in both directions until it is accepted", context do
      %{anna: anna, ben: ben, cleo: cleo, family: family} = context
      say!(anna, family, "before")
      for user <- [ben, cleo], do: come(user)
      conversation = fn user -> elem(Conversations.fetch(user, family), 1) end

      :ok = Accounts.renew_keys(ben, nil, password())
      assert [%{id: changed}] = Chat.changed(anna, conversation.(anna))
      assert changed == ben.id
      say!(anna, family, "to whoever it is")
      say!(ben, family, "from whoever it is")

      for user <- [anna, ben, cleo], do: come(user)

      assert sees(anna, family) == [
               "before",
               "to whoever it is",
               {:unopened, "untrusted_identity"}
             ]

      assert "to whoever it is" in sees(cleo, family)
      refute "to whoever it is" in sees(ben, family)

      {:ok, %{digits: digits, identity: :changed}} = Chat.safety(anna, ben.id)
      assert {:ok, %{digits: ^digits, scannable: code}} = Chat.safety(ben, anna.id)
      {:ok, %{scannable: other}} = Chat.safety(cleo, ben.id)
      assert Chat.scanned(anna, ben.id, other) == :different
      assert Chat.scanned(anna, ben.id, "a shopping list") == :unreadable
      refute "from whoever it is" in sees(anna, family)

      assert Chat.scanned(anna, ben.id, code) == :same
      assert Chat.verified?(anna, ben)
      assert Chat.changed(anna, conversation.(anna)) == []
      come(ben)
      assert sees(anna, family) == ["before", "to whoever it is", "from whoever it is"]
      assert "to whoever it is" in sees(ben, family)
    end
  end

  describe "messages that disappear" do
    test "are gone for both, and leave nothing in the tables", %{anna: anna, ben: ben} do
      conversation = direct!(anna, ben)
      :ok = Conversations.set_timer(anna, conversation, 30)
      %{id: id, expires_at: at} = say!(anna, conversation, "for half a minute")
      assert at > SQL.now()

      # Nobody has to have read it: what waits is not swept away.
      SQL.run("UPDATE messages SET expires_at = 1 WHERE id = $1", [id])
      Chat.sweep()
      come(ben)
      assert sees(ben, conversation) == ["for half a minute"]

      SQL.run("UPDATE messages SET expires_at = 1 WHERE id = $1", [id])
      Chat.sweep()

      for {table, column} <- [{"messages", "id"}, {"envelopes", "message_id"}],
          do: assert(SQL.rows("SELECT 1 FROM #{table} WHERE #{column} = $1", [id]) == [])
    end
  end

  describe "a family" do
    test "is of 30 people at most" do
      [first | others] = for n <- 1..31, do: person!("P#{n}")
      for other <- others, do: {:ok, _} = Conversations.add_contact(first, other.name)
      ids = Enum.map(others, & &1.id)
      assert {:error, "at most 30 people"} = Conversations.create_family(first, "All", ids)
      {:ok, family} = Conversations.create_family(first, "Most", Enum.take(ids, 29))

      assert {:error, "at most 30 people"} =
               Conversations.add_member(first, family, List.last(ids))

      say!(first, family, "hello all")

      for other <- Enum.take(others, 29) do
        come(other)
        assert sees(other, family) == ["hello all"]
      end
    end

    test "is of contacts, and only members add to it", %{anna: anna, ben: ben, family: family} do
      stranger = person!("Stranger")
      assert {:error, _} = Conversations.create_family(anna, "x", [stranger.id])
      assert {:error, _} = Conversations.add_member(anna, family, stranger.id)
      assert {:error, _} = Conversations.add_member(stranger, family, ben.id)
      assert {:error, :not_found} = Conversations.set_timer(stranger, family, 30)
      assert {:error, _} = Conversations.add_contact(anna, anna.name)
      assert {:error, _} = Conversations.add_contact(anna, <<0>>)
      assert length(Conversations.member_ids(family)) == 3
    end

    test "counts what was not read", %{anna: anna, ben: ben, family: family} do
      unread = fn -> Enum.find(Conversations.list(ben), &(&1.id == family)).unread end
      assert unread.() == 0
      # Times are of milliseconds.
      Process.sleep(2)
      say!(anna, family, "one")
      say!(anna, family, "two")
      assert unread.() == 2
      Process.sleep(2)
      Conversations.mark_read(ben, family)
      assert unread.() == 0
    end
  end

  defp change_last_byte(body) do
    [last | start] = body |> :binary.bin_to_list() |> Enum.reverse()
    [Bitwise.bxor(last, 1) | start] |> Enum.reverse() |> :binary.list_to_bin()
  end
end
