defmodule FamilyChat.LocksTest do
  # The clock of the locks is everybody's.
  use ExUnit.Case, async: false

  import FamilyChat.Family
  import Kith.Testing

  alias FamilyChat.{Accounts, Chat, Conversations, Locks, Mailbox, SQL}

  @kith FamilyChat.Kith

  setup do
    [anna, ben] = people!(~w(Anna Ben))
    %{anna: anna, ben: ben, conversation: direct!(anna, ben)}
  end

  test "sign-up locks the keys under the password, and leaves them unlocked", %{anna: anna} do
    assert locked_at_rest?(anna)
    assert {:ok, {:unlocked, _until}} = @kith.lock_state(anna.id)
  end

  test "the last browser that logs out locks, and not the one before; its token is over at once",
       context do
    %{anna: anna} = context
    [first, second] = for _ <- 1..2, do: Accounts.create_session(anna)
    [one, two] = for _ <- 1..2, do: Locks.token(anna.id)

    Accounts.delete_session(first, one)
    assert Locks.open?(anna.id)
    @kith.lock!(anna.id, keep_tokens: true)
    refute Locks.resume(anna.id, one)
    assert Locks.resume(anna.id, two)

    Accounts.delete_session(second, two)
    refute Locks.open?(anna.id)
    refute Locks.resume(anna.id, two)
    refute Locks.resume(anna.id, nil)
    refute Locks.resume(anna.id, "nonsense")
    assert {:ok, ^anna} = Accounts.authenticate(anna.name, password())
    assert Locks.open?(anna.id)
  end

  test "to log out everywhere ends all sessions, and locks", %{anna: anna} do
    tokens = for _ <- 1..3, do: Accounts.create_session(anna)
    unlock = Locks.token(anna.id)
    Mailbox.subscribe(anna.id)
    Accounts.delete_sessions(anna)
    assert_receive :locked
    assert Enum.map(tokens, &Accounts.user_of_session/1) == [nil, nil, nil]
    refute Locks.resume(anna.id, unlock)
  end

  test "a token unlocks the keys of nobody else", %{anna: anna, ben: ben} do
    token = Locks.token(anna.id)
    Locks.lock(ben.id)
    refute Locks.resume(ben.id, token)
  end

  test "the end of the last session locks", %{anna: anna} do
    Accounts.create_session(anna)
    Accounts.sweep()
    assert Locks.open?(anna.id)
    old = SQL.now() - 61 * 86_400_000
    SQL.run("UPDATE user_tokens SET inserted_at = $2 WHERE user_id = $1", [anna.id, old])
    Accounts.sweep()
    refute Locks.open?(anna.id)
  end

  describe "a time without an open page" do
    setup do
      lock_after = Application.fetch_env!(:family_chat, :lock_after) * 1_000
      on_exit(fn -> Application.put_env(:family_chat, :ask_again, false) end)
      %{soon: now() + lock_after - 10_000, later: now() + lock_after + 10_000}
    end

    test "locks, and the browser's token unlocks", %{anna: anna, soon: soon, later: later} do
      token = Locks.token(anna.id)
      Locks.sweep(soon)
      assert Locks.open?(anna.id)
      Locks.sweep(later)
      refute Locks.open?(anna.id)
      assert Locks.resume(anna.id, token)
      assert Locks.open?(anna.id)
    end

    test "does not begin while a page is open", %{anna: anna, ben: ben, later: later} do
      page = open_page(anna)
      Locks.sweep(later)
      assert Locks.open?(anna.id)
      refute Locks.open?(ben.id)

      # It has been seen at that moment.
      send(page, :close)
      wait_until(fn -> anna.id not in FamilyChatWeb.Presence.online() end)
      Locks.sweep(later + 1)
      assert Locks.open?(anna.id)
    end

    test "takes the token too, where the password is asked for again", context do
      %{anna: anna, later: later} = context
      token = Locks.token(anna.id)
      Application.put_env(:family_chat, :ask_again, true)
      Locks.sweep(later)
      refute Locks.resume(anna.id, token)
    end

    defp open_page(user) do
      test = self()

      page =
        spawn_link(fn ->
          FamilyChatWeb.Presence.enter(user.id)
          send(test, :open)
          receive(do: (:close -> :ok))
        end)

      assert_receive :open
      page
    end

    defp wait_until(fun) do
      if not fun.() do
        Process.sleep(5)
        wait_until(fun)
      end
    end

    defp now, do: System.monotonic_time(:millisecond)
  end

  describe "somebody whose keys are locked" do
    test "is written to, and opens it in order after the login", context do
      %{anna: anna, ben: ben, conversation: conversation} = context
      Locks.lock(ben.id)
      texts = for n <- 1..3, do: "what was said meanwhile, #{n}"
      sent = for text <- texts, do: say!(anna, conversation, text)

      for %{id: id, reason: reason} <- sent do
        assert reason == nil
        assert Chat.progress(anna, id) == {1, 0}
      end

      # A page that was open a moment ago changes nothing.
      assert Chat.open_waiting(ben) == :later
      assert {:error, %{reason: :locked}} = Chat.timeline(ben, conversation)
      assert length(Mailbox.waiting(ben.id)) == 3
      assert Mailbox.unopened(ben.id, conversation) == []
      assert sees(anna, conversation) == texts

      {:ok, _} = Accounts.authenticate(ben.name, password())
      come(ben)
      assert sees(ben, conversation) == texts
      for %{id: id} <- sent, do: assert(Chat.progress(anna, id) == {1, 1})
    end

    test "sends nothing, and nothing of it is kept", context do
      %{anna: anna, ben: ben, conversation: conversation} = context
      Locks.lock(anna.id)
      id = message_id()
      assert {:error, %{reason: :locked}} = Chat.send(anna, conversation, id, "not yet")
      assert Mailbox.waiting(ben.id) == []

      {:ok, _} = Accounts.authenticate(anna.name, password())
      {:ok, _} = Chat.send(anna, conversation, id, "not yet")
      come(ben)
      assert sees(ben, conversation) == ["not yet"]
    end

    test "answers after the login who could not open something", context do
      %{anna: anna, ben: ben, conversation: conversation} = context
      say!(anna, conversation, "first")
      come(ben)
      say!(ben, conversation, "back")
      come(anna)
      say!(anna, conversation, "on its way")
      corrupt_session!(@kith, ben.id, anna.id)
      Locks.lock(anna.id)
      come(ben)
      assert {:unopened, _} = List.last(sees(ben, conversation))

      # The report stays.
      waiting = Mailbox.waiting(anna.id)
      assert waiting != []
      assert Chat.open_waiting(anna) == :ok
      assert Chat.flush(anna) == 0
      assert Mailbox.waiting(anna.id) == waiting

      {:ok, _} = Accounts.authenticate(anna.name, password())
      come(anna)
      come(ben)
      assert sees(ben, conversation) == ["first", "back", "on its way"]
    end

    test "is not counted as one to whom it was sent again in vain", context do
      %{anna: anna, ben: ben, conversation: conversation} = context
      %{id: id} = say!(anna, conversation, "damaged beyond recognition")
      damage!(ben, fn _ -> "garbage" end)
      come(ben)
      before = SQL.rows("SELECT attempts FROM undelivered WHERE message_id = $1", [id])
      Locks.lock(anna.id)
      for _ <- 1..5, do: Chat.flush(anna)
      assert SQL.rows("SELECT attempts FROM undelivered WHERE message_id = $1", [id]) == before

      {:ok, _} = Accounts.authenticate(anna.name, password())
      come(anna)
      come(ben)
      assert sees(ben, conversation) == ["damaged beyond recognition"]
    end

    test "has messages that disappear from the moment they are opened", context do
      %{anna: anna, ben: ben, conversation: conversation} = context
      :ok = Conversations.set_timer(anna, conversation, 300)
      Locks.lock(ben.id)
      %{id: id} = say!(anna, conversation, "for five minutes")
      SQL.run("UPDATE messages SET expires_at = 1 WHERE id = $1", [id])
      Chat.sweep()

      {:ok, _} = Accounts.authenticate(ben.name, password())
      come(ben)
      assert sees(ben, conversation) == ["for five minutes"]
    end
  end
end
