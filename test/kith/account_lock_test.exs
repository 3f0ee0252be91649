defmodule Kith.AccountLockTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.{Envelope, Instance, Native, Unlocked}
  alias Kith.Store.{Accounts, ArchivedMessages, Keys, Repo}

  @cheap [memory: 8_192, passes: 1, parallelism: 1]
  @password "correct horse battery"

  setup context do
    options = [
      archive: true,
      one_time_prekeys: 5,
      one_time_kyber_prekeys: 2,
      replenish_below: 0,
      name: make_ref()
    ]

    options = defaults(Keyword.merge(options, Map.get(context, :options, [])))
    kith = start_kith!(options)
    converse!(kith, "anna", "ben")
    %{kith: kith, options: options}
  end

  defp lock!(kith, user, password \\ @password),
    do: Kith.lock_with_password!(kith, user, password, @cheap)

  defp texts(kith, user, thread),
    do: for(message <- Kith.history!(kith, user, thread).messages, do: message.plaintext)

  defp archived(kith, user) do
    sql = """
    SELECT message_id, content, owner_key_id FROM kith.signal_archived_messages WHERE user_id = $1
    ORDER BY position, message_id
    """

    Repo.rows(Instance.fetch!(kith).repo, sql, [user])
  end

  defp put_archived(kith, user, rows) do
    repo = Instance.fetch!(kith).repo
    now = for [id, content, _] <- archived(kith, user), into: %{}, do: {id, content}

    for [id, content, owner_key_id] <- rows do
      device = {user, 1}
      assert ArchivedMessages.put_content(repo, device, id, now[id], content, owner_key_id) == 1
    end
  end

  defp data_key(kith, user),
    do: hd(hd(sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = $1", [user])))

  defp lock_state(kith, user) do
    with {:unlocked, _until} <- Kith.lock_state!(kith, user), do: :unlocked
  end

  # A session and one that was put away, each with the keys of a message that was skipped.
  defp skip_and_reset!(kith) do
    skip = fn ->
      [_skipped, [envelope]] =
        for _ <- 1..2, do: Kith.encrypt!(kith, "ben", "anna", "x", archive: false)

      Kith.decrypt!(kith, "anna", envelope, archive: false)
    end

    skip.()
    Kith.reset_session!(kith, "ben", "anna")
    skip.()
  end

  @kinds ~w(identity one-time-prekey signed-prekey kyber-one-time-prekey kyber-last-resort-prekey peer-identity braid
            archived-session session-entry retired-key session)

  # All that is sealed under the key of an account. Of each kind there is something.
  defp sealed_rows(kith, user, kinds \\ @kinds) do
    repo = Instance.fetch!(kith).repo

    sessions =
      for {key, generation, state, braid} <- Keys.sessions(repo, user) do
        tag = if braid, do: binary_part(braid, byte_size(braid), -16), else: ""
        {"session", Keyword.values(key) ++ [generation, tag], state}
      end

    rows = for(row <- Keys.rows(repo, user), do: {row.kind, row.fields, row.bytes}) ++ sessions
    assert kinds -- for({kind, _, _} <- rows, do: kind) == []
    rows
  end

  # What the rows come to with a key, each result once.
  defp opened(kith, account, rows) do
    rows = for {kind, fields, bytes} <- rows, do: {kind, fields, fields, bytes}
    vault = Instance.fetch!(kith).vault

    with {:ok, results} <- Native.rows_reseal(vault, account, account, rows) do
      assert length(results) == length(rows)
      Enum.uniq(for result <- results, do: with({:ok, _} <- result, do: :ok))
    end
  end

  describe "an account that is locked under a password" do
    test "goes on while it is unlocked, with the sessions, the keys and the history it had", %{
      kith: kith
    } do
      late = encrypt_one!(kith, "ben", "anna", "on its way")
      note = encrypt_one!(kith, "anna", "anna", "note")
      before = Kith.safety_number!(kith, "anna", "ben")
      assert %{refused: 0, resealed: resealed} = lock!(kith, "anna")
      assert resealed > 10
      assert {:ok, {:unlocked, _}} = Kith.lock_state(kith, "anna")

      assert Kith.safety_number!(kith, "anna", "ben") == before
      assert Kith.decrypt!(kith, "anna", late) == "on its way"
      assert send!(kith, "anna", "ben", "still here") == "still here"
      assert Kith.session_info!(kith, "anna", "ben").current.version == 4
      assert Kith.decrypt!(kith, "anna", note) == "note"

      assert texts(kith, "anna", {:direct, "ben"}) ==
               ["hello", "hi", "well", "on its way", "still here"]
    end

    test "does nothing while it is locked, loses nothing, and is written to by others", %{
      kith: kith
    } do
      lock!(kith, "anna")
      lost = encrypt_one!(kith, "anna", "ben", "does not arrive")
      damaged = Kith.Testing.corrupt(lost)
      {:error, error} = Kith.decrypt(kith, "ben", damaged)
      {:ok, [report]} = Kith.recover(kith, "ben", damaged, error)

      assert Kith.lock!(kith, "anna") == :locked
      assert Kith.lock_state!(kith, "anna") == :locked
      envelope = encrypt_one!(kith, "ben", "anna", "for later")
      before = dump(kith)

      for result <- [
            Kith.encrypt(kith, "anna", "ben", "x"),
            Kith.encrypt(kith, "anna", "anna", "x"),
            Kith.encrypt_group(kith, "anna", ["ben"], "x", thread: "t"),
            Kith.decrypt(kith, "anna", envelope),
            Kith.history(kith, "anna", {:direct, "ben"}),
            # With nothing in it that would have to be opened.
            Kith.history(kith, "anna", "another thread"),
            Kith.resend(kith, "anna", report),
            Kith.safety_number(kith, "anna", "ben"),
            Kith.session_info(kith, "anna", "ben"),
            Kith.trust(kith, "anna", "ben"),
            Kith.unlock_token(kith, "anna"),
            Kith.rotate_data_key(kith, "anna"),
            Kith.lock_with_password(kith, "anna", "another password", @cheap)
          ] do
        assert reason(result) == :locked
      end

      assert dump(kith) == before
      assert {:ok, _} = Kith.unlock(kith, "anna", @password)
      assert Kith.decrypt!(kith, "anna", envelope) == "for later"
      assert {:ok, %{envelopes: [again]}} = Kith.resend(kith, "anna", report)
      assert Kith.decrypt!(kith, "ben", again) == "does not arrive"
      assert send!(kith, "anna", "ben", "back") == "back"
      assert List.last(texts(kith, "anna", {:direct, "ben"})) == "back"
    end

    test "is opened by its password and by nothing else", %{kith: kith} do
      lock!(kith, "anna")
      Kith.lock!(kith, "anna")

      for wrong <- ["correct horse batter", "x"],
          do: assert(reason(Kith.unlock(kith, "anna", wrong)) == :wrong_password)

      assert reason(Kith.unlock(kith, "anna", "")) == :malformed
      assert reason(Kith.unlock(kith, "anna", String.duplicate("x", 1_025))) == :too_large
      # No success, or a login that asks nothing else would need no password.
      assert reason(Kith.unlock(kith, "ben", @password)) == :key_not_found
      assert reason(Kith.lock(kith, "ben")) == :key_not_found
      assert reason(Kith.unlock(kith, "nobody", @password)) == :not_registered
      assert Kith.lock_state!(kith, "ben") == :open
      assert Kith.lock_state!(kith, "anna") == :locked
    end

    test "opens nothing for a thief of the database and of every key of the server", %{
      kith: kith,
      options: options
    } do
      skip_and_reset!(kith)
      Kith.rotate_data_key!(kith, "anna")
      stolen = data_key(kith, "anna")
      stolen_rows = sealed_rows(kith, "anna")
      lock!(kith, "anna")
      send!(kith, "ben", "anna", "a secret")
      Kith.lock!(kith, "anna")

      # The thief has the vault, as it is opened, and every row; also the data key of a backup of before, and those of others.
      instance = Instance.fetch!(kith)
      locked = data_key(kith, "anna")
      of_ben = data_key(kith, "ben")
      rows = sealed_rows(kith, "anna")
      <<version, _locked, rest::binary>> = locked

      assert opened(kith, {"anna", locked}, rows) == {:error, :locked}
      assert opened(kith, {"anna", stolen}, rows) == [error: :corrupted_state]
      assert opened(kith, {"ben", of_ben}, rows) == [error: :corrupted_state]
      assert opened(kith, {"anna", of_ben}, rows) == {:error, :corrupted_state}
      # Said to be under no password.
      assert opened(kith, {"anna", <<version, 0x10, rest::binary>>}, rows) ==
               {:error, :corrupted_state}

      # Each of them opens what it is for, and the password opens it all.
      assert opened(kith, {"anna", stolen}, stolen_rows) == [:ok]
      assert opened(kith, {"ben", of_ben}, sealed_rows(kith, "ben", ["session"])) == [:ok]
      {:ok, unlocked} = Native.account_unlock(instance.vault, "anna", locked, @password)
      assert opened(kith, {"anna", unlocked}, rows) == [:ok]

      # A thread's key opens with the server's keys; what lies below it does not.
      [[thread, data_key]] = sql!(kith, "SELECT thread_id, data_key FROM signal_threads")

      rows =
        sql!(kith, """
        SELECT position, message_id, peer_id, peer_device_id, sent_at, expires_at, content, owner_key_id
        FROM signal_archived_messages WHERE user_id = 'anna'
        """)

      assert length(rows) == 4

      for [position, id, peer, peer_device, sent_at, expires_at, content, owner] <- rows do
        assert owner != nil

        place = %{
          position: position,
          message_id: id,
          sender: peer && {peer, peer_device},
          sent_at: sent_at,
          expires_at: expires_at
        }

        arguments = [{thread, data_key}, nil, {"anna", 1}, [{place, content}]]

        assert {:ok, [{:error, :corrupted_state}]} =
                 apply(Native, :archive_open, [instance.vault | arguments])

        arguments = [{thread, data_key}, {"anna", stolen}, {"anna", 1}, [{place, content}]]

        assert {:ok, [{:error, :corrupted_state}]} =
                 apply(Native, :archive_open, [instance.vault | arguments])
      end

      # Another node, or this one after a restart, is as locked.
      stop_kith!(kith)
      kith = start_kith!(options)
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :locked
      assert {:ok, _} = Kith.unlock(kith, "anna", @password)
      assert "a secret" in texts(kith, "anna", {:direct, "ben"})
    end

    test "is locked on every node at once, and by the end of its time" do
      ahead = :atomics.new(1, [])
      clock = fn -> System.system_time(:millisecond) + :atomics.get(ahead, 1) end
      kith = start_kith!(clock: clock, unlocked_for: 60)
      register!(kith, ["anna"])
      lock!(kith, "anna")
      assert {:ok, {:unlocked, _}} = Kith.lock_state(kith, "anna")
      :atomics.add(ahead, 1, 61_000)
      assert Kith.lock_state!(kith, "anna") == :locked

      until = Kith.unlock!(kith, "anna", @password, for: 10)
      assert_in_delta until, clock.() + 10_000, 5_000
      # To unlock it again does not shorten the time.
      assert Kith.unlock!(kith, "anna", @password, for: 5) == until
      :atomics.add(ahead, 1, 11_000)
      assert reason(Kith.encrypt(kith, "anna", "anna", "x")) == :locked

      # What another node does is to write the row.
      Kith.unlock!(kith, "anna", @password)
      [[locked]] = sql!(kith, "SELECT data_key FROM signal_accounts")
      instance = Instance.fetch!(kith)
      {:ok, anew} = Native.account_lock_anew(instance.vault, "anna", locked)
      blob = if store() == :postgres, do: anew, else: {:blob, anew}
      sql!(kith, "UPDATE signal_accounts SET data_key = $1", [blob])
      assert Kith.lock_state!(kith, "anna") == :locked
    end

    # As after a node that was killed while the archive followed.
    test "opens a history that follows its key but in part, and unlocking it goes on", %{
      kith: kith
    } do
      history = texts(kith, "anna", {:direct, "ben"})
      before = archived(kith, "anna")
      assert Enum.uniq(for [_, _, owner_key_id] <- before, do: owner_key_id) == [nil]

      lock!(kith, "anna")
      put_archived(kith, "anna", tl(before))
      assert texts(kith, "anna", {:direct, "ben"}) == history

      Kith.lock!(kith, "anna")
      Kith.unlock!(kith, "anna", @password)
      locked = archived(kith, "anna")
      assert [<<_::binary-8>>] = Enum.uniq(for [_, _, owner_key_id] <- locked, do: owner_key_id)
      assert texts(kith, "anna", {:direct, "ben"}) == history

      Kith.remove_password!(kith, "anna", @password)
      put_archived(kith, "anna", tl(locked))
      assert texts(kith, "anna", {:direct, "ben"}) == history
      Kith.rotate_data_key!(kith, "anna")
      assert texts(kith, "anna", {:direct, "ben"}) == history
    end

    # The column says which key to try, and is as little trusted as all others.
    test "shows a message that is said to lie under no account as damaged, and the others", %{
      kith: kith
    } do
      lock!(kith, "anna")
      [[first, one, key_id], [second, two, key_id], _third] = archived(kith, "anna")

      for state <- [:unlocked, :open] do
        if state == :open, do: Kith.remove_password!(kith, "anna", @password)
        put_archived(kith, "anna", [[first, one, nil], [second, two, "unknown!"]])

        assert [%{error: :corrupted_state}, %{plaintext: "hi"}, %{plaintext: "well"}] =
                 Kith.history!(kith, "anna", {:direct, "ben"}).messages
      end

      put_archived(kith, "anna", [[first, one, key_id]])
      assert texts(kith, "anna", {:direct, "ben"}) == ["hello", "hi", "well"]
    end

    test "gets the prekeys it could not be given when it is unlocked", %{kith: kith} do
      lock!(kith, "anna")
      Kith.lock!(kith, "anna")
      for _ <- 1..5, do: Kith.pre_key_bundle!(kith, "anna")
      assert Kith.prekey_count!(kith, "anna") == 0
      # Nobody else can make them, and nothing failed.
      assert {:ok, %{failed: 0}} = Kith.maintain(kith)
      Kith.unlock!(kith, "anna", @password)
      Kith.Maintenance.await(kith)
      assert Kith.prekey_count!(kith, "anna") == 5
    end

    test "can be unregistered, and so can those it talks to", %{kith: kith} do
      lock!(kith, "anna")
      Kith.lock!(kith, "anna")
      assert Kith.unregister!(kith, "ben") == :unregistered
      Kith.register!(kith, "ben")
      Kith.unlock!(kith, "anna", @password)
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :untrusted_identity
      Kith.trust!(kith, "anna", "ben")
      assert send!(kith, "anna", "ben", "hello again") == "hello again"
      Kith.lock!(kith, "anna")
      assert Kith.unregister!(kith, "anna") == :unregistered
      assert sql!(kith, "SELECT 1 FROM signal_retired_keys") == []
      assert %{} = Kith.register!(kith, "anna")
      assert Kith.lock_state!(kith, "anna") == :open
    end
  end

  describe "another password" do
    test "opens what the one before did, and that one nothing", %{kith: kith} do
      skip_and_reset!(kith)
      lock!(kith, "anna")

      sealed = fn ->
        for table <-
              ~w(signal_identity_keys signal_prekeys signal_sessions signal_braids signal_archived_sessions
                 signal_session_entries signal_retired_keys signal_archived_messages) do
          rows = sql!(kith, "SELECT * FROM #{table} WHERE user_id = 'anna'")
          assert rows != [], table
          {table, Enum.sort(rows)}
        end
      end

      before = sealed.()

      assert reason(Kith.change_password(kith, "anna", "wrong one", "new password", @cheap)) ==
               :wrong_password

      assert {:ok, _} = Kith.change_password(kith, "anna", @password, "new password", @cheap)
      # Nothing was sealed anew.
      assert sealed.() == before
      assert send!(kith, "anna", "ben", "x") == "x"
      Kith.lock!(kith, "anna")
      assert reason(Kith.unlock(kith, "anna", @password)) == :wrong_password
      assert {:ok, _} = Kith.unlock(kith, "anna", "new password")
    end

    test "may come with another data key, and what opened the one before opens nothing any more",
         %{kith: kith} do
      skip_and_reset!(kith)
      lock!(kith, "anna")
      note = encrypt_one!(kith, "anna", "anna", "a note")
      late = encrypt_one!(kith, "ben", "anna", "late")
      before = texts(kith, "anna", {:direct, "ben"})
      token = Kith.unlock_token!(kith, "anna")
      stolen = data_key(kith, "anna")
      stolen_rows = sealed_rows(kith, "anna")

      sealed = fn ->
        sql!(kith, "SELECT private_key_encrypted FROM signal_prekeys WHERE user_id = 'anna'") ++
          sql!(
            kith,
            "SELECT private_key_encrypted FROM signal_identity_keys WHERE user_id = 'anna'"
          ) ++
          sql!(kith, "SELECT content FROM signal_archived_messages WHERE user_id = 'anna'")
      end

      rows = sealed.()
      refute Enum.empty?(rows)
      reseal = [reseal: true] ++ @cheap

      assert reason(Kith.change_password(kith, "anna", "wrong one", "new password", reseal)) ==
               :wrong_password

      assert sealed.() == rows

      assert %{refused: 0, resealed: resealed, archive: :done} =
               Kith.change_password!(kith, "anna", @password, "new password", reseal)

      # The archive's rows are told apart from those of before by the account's key below the thread's.
      assert resealed >= length(rows)
      assert rows -- sealed.() == rows

      assert {:unlocked, _} = Kith.lock_state!(kith, "anna")
      assert Kith.decrypt!(kith, "anna", late) == "late"
      assert Kith.decrypt!(kith, "anna", note) == "a note"
      assert send!(kith, "anna", "ben", "x") == "x"
      assert texts(kith, "anna", {:direct, "ben"}) == before ++ ["late", "x"]
      assert reason(Kith.unlock_with_token(kith, "anna", token)) == :wrong_password

      Kith.lock!(kith, "anna")
      assert reason(Kith.unlock(kith, "anna", @password)) == :wrong_password
      assert {:ok, _} = Kith.unlock(kith, "anna", "new password")
      assert %{damaged: 0, locked: 0} = Kith.verify_keys!(kith)

      # The thief of before: the key as a backup had it, its password, and all keys of the server.
      %{vault: vault} = Instance.fetch!(kith)
      {:ok, unlocked} = Native.account_unlock(vault, "anna", stolen, @password)
      rows = sealed_rows(kith, "anna")
      assert opened(kith, {"anna", unlocked}, stolen_rows) == [:ok]
      assert opened(kith, {"anna", unlocked}, rows) == [error: :corrupted_state]

      {:ok, unlocked} =
        Native.account_unlock(vault, "anna", data_key(kith, "anna"), "new password")

      assert opened(kith, {"anna", unlocked}, rows) == [:ok]
    end

    test "leaves the account unlocked for a call that has read it before, and a lock does not", %{
      kith: kith
    } do
      lock!(kith, "anna")
      instance = Instance.fetch!(kith)
      read = {"anna", Accounts.data_key(instance.repo, "anna")}
      Kith.change_password!(kith, "anna", @password, "new password", @cheap)

      assert {"anna", unlocked} = Unlocked.account(instance, read)
      assert is_reference(unlocked)
      assert {:unlocked, _} = Kith.lock_state!(kith, "anna")

      Kith.lock!(kith, "anna")
      assert Unlocked.account(instance, read) == read
    end

    test "or none: the account opens with the keys of the server again", %{kith: kith} do
      lock!(kith, "anna")
      Kith.lock!(kith, "anna")
      assert reason(Kith.remove_password(kith, "anna", "wrong one")) == :wrong_password
      assert %{refused: 0, resealed: 3} = Kith.remove_password!(kith, "anna", @password)
      assert Kith.lock_state!(kith, "anna") == :open
      assert send!(kith, "anna", "ben", "x") == "x"
      assert texts(kith, "anna", {:direct, "ben"}) == ["hello", "hi", "well", "x"]
    end
  end

  describe "a token" do
    test "unlocks until it is over, revoked, or the account is locked", %{kith: kith} do
      lock!(kith, "anna")
      token = Kith.unlock_token!(kith, "anna")
      Kith.lock!(kith, "anna", keep_tokens: true)
      assert {:ok, _} = Kith.unlock_with_token(kith, "anna", token)
      assert send!(kith, "anna", "ben", "x") == "x"

      # Of another user it is worth nothing, and neither is a changed one.
      Kith.lock_with_password!(kith, "ben", @password, @cheap)
      Kith.lock!(kith, "ben")
      assert reason(Kith.unlock_with_token(kith, "ben", token)) == :wrong_password

      for at <- 0..(byte_size(token) - 2) do
        changed = replace_at(token, at)

        assert reason(Kith.unlock_with_token(kith, "anna", changed)) in [
                 :wrong_password,
                 :malformed
               ]
      end

      assert Kith.revoke_token!(kith, "anna", token) == 1
      assert reason(Kith.unlock_with_token(kith, "anna", token)) == :wrong_password

      other = Kith.unlock_token!(kith, "anna")
      Kith.lock!(kith, "anna")
      assert reason(Kith.unlock_with_token(kith, "anna", other)) == :wrong_password
      assert reason(Kith.unlock_with_token(kith, "anna", "junk!")) == :malformed
      assert reason(Kith.unlock_token(kith, "anna")) == :locked
    end

    test "unlocks until its time is over, and for no longer than that" do
      now = :atomics.new(1, [])
      start = System.system_time(:millisecond)
      :atomics.put(now, 1, start)
      kith = start_kith!(clock: fn -> :atomics.get(now, 1) end, unlocked_for: 3_600)
      register!(kith, ["anna"])
      lock!(kith, "anna")
      token = Kith.unlock_token!(kith, "anna", for: 60)
      long = Kith.unlock_token!(kith, "anna", for: 7_200)
      relock = fn -> Kith.lock!(kith, "anna", keep_tokens: true) end

      # By the token, by what is asked for, or by the instance: whatever is over first.
      for {token, options, seconds} <- [
            {token, [], 60},
            {token, [for: 600], 60},
            {token, [for: 5], 5},
            {long, [], 3_600},
            {long, [for: 600], 600}
          ] do
        relock.()
        assert Kith.unlock_with_token!(kith, "anna", token, options) == start + seconds * 1_000
        assert Kith.lock_state!(kith, "anna") == {:unlocked, start + seconds * 1_000}
      end

      relock.()
      :atomics.put(now, 1, start + 59_999)
      assert Kith.unlock_with_token!(kith, "anna", token, for: 600) == start + 60_000
      assert {:ok, [_]} = Kith.encrypt(kith, "anna", "anna", "x")
      :atomics.put(now, 1, start + 60_000)
      assert Kith.lock_state!(kith, "anna") == :locked
      assert reason(Kith.encrypt(kith, "anna", "anna", "x")) == :locked
      assert reason(Kith.unlock_with_token(kith, "anna", token)) == :wrong_password

      # Its time is in the token. What the database says of it lengthens nothing.
      sql!(kith, "UPDATE signal_unlock_tokens SET expires_at = $1", [start + 7_200_000])
      assert reason(Kith.unlock_with_token(kith, "anna", token)) == :wrong_password
      assert Kith.lock_state!(kith, "anna") == :locked
      assert Kith.unlock_with_token!(kith, "anna", long, for: 60) == start + 120_000
    end

    test "ends with the password it was made under", %{kith: kith} do
      lock!(kith, "anna")
      token = Kith.unlock_token!(kith, "anna", for: 60)
      Kith.change_password!(kith, "anna", @password, "new password", @cheap)
      assert reason(Kith.unlock_with_token(kith, "anna", token)) == :wrong_password
    end
  end

  # The bound is one of the node, whatever the store.
  @tag store: :sqlite
  test "of more accounts than are kept unlocked, the one that would be locked next is locked", %{
    kith: kith
  } do
    register!(kith, ["cleo", "dora"])
    lock = &Kith.lock_with_password!(kith, &1, @password, [for: &2] ++ @cheap)
    for {user, seconds} <- [{"anna", 60}, {"ben", 30}, {"cleo", 90}], do: lock.(user, seconds)

    %{unlocked: table, vault: vault} = instance = Instance.fetch!(kith)

    keys =
      for user <- ~w(anna ben cleo), do: Unlocked.account(instance, {user, data_key(kith, user)})

    states = fn -> for user <- ~w(anna ben cleo), do: lock_state(kith, user) end

    wrapped = fn ->
      for {user, key} <- keys, do: elem(Native.account_wrap(vault, user, key), 0)
    end

    assert wrapped.() == [:ok, :ok, :ok]

    [of_ben, of_cleo] = for user <- ~w(ben cleo), do: Kith.unlock_token!(kith, user)

    # Others, up to the bound.
    later = Instance.now(instance) + 3_600_000
    others = for n <- 1..(10_000 - 3), do: {"other #{n}", "locked", make_ref(), later}
    :ets.insert(table, others)
    # One that is there is not one more.
    Kith.unlock_with_token!(kith, "cleo", of_cleo, for: 120)
    assert states.() == [:unlocked, :unlocked, :unlocked]

    lock.("dora", 3_600)
    assert :ets.info(table, :size) == 10_000
    assert states.() == [:unlocked, :locked, :unlocked]
    assert {:unlocked, _} = Kith.lock_state!(kith, "dora")
    # Its key is forgotten, and not only not found.
    assert wrapped.() == [:ok, :error, :ok]
    assert Native.account_wrap(vault, "ben", elem(Enum.at(keys, 1), 1)) == {:error, :locked}

    Kith.unlock_with_token!(kith, "ben", of_ben)
    assert states.() == [:locked, :unlocked, :unlocked]
    assert wrapped.() == [:error, :error, :ok]
  end

  describe "rotate_data_key/2" do
    test "seals everything anew, and what is on its way opens", %{kith: kith} do
      late = for n <- 1..3, do: encrypt_one!(kith, "ben", "anna", "late #{n}")
      last = encrypt_one!(kith, "ben", "anna", "last")
      # Its keys are skipped ones then.
      assert Kith.decrypt!(kith, "anna", last) == "last"
      Kith.reset_session!(kith, "anna", "ben")
      note = encrypt_one!(kith, "anna", "anna", "a note")

      [[before]] = sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'anna'")
      assert %{refused: 0} = Kith.rotate_data_key!(kith, "anna")
      assert %{refused: 0} = Kith.rotate_data_key!(kith, "anna")
      [[now]] = sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'anna'")
      assert binary_part(before, 2, 8) != binary_part(now, 2, 8)

      for {envelope, n} <- Enum.with_index(late, 1),
          do: assert(Kith.decrypt!(kith, "anna", envelope) == "late #{n}")

      assert send!(kith, "anna", "ben", "on") == "on"
      assert send!(kith, "ben", "anna", "and on") == "and on"
      assert Kith.decrypt!(kith, "anna", note) == "a note"
      assert {:ok, checks} = Kith.doctor(kith)
      assert Enum.all?(checks, fn {_, state, _} -> state != :error end)
    end

    test "seals the sessions with all peers anew", %{kith: kith} do
      peers = for n <- 1..6, do: "peer#{n}"
      register!(kith, peers)
      for peer <- peers, do: send!(kith, "anna", peer, "hello")
      for peer <- Enum.reverse(peers), do: send!(kith, peer, "anna", "hi")

      for _ <- 1..3 do
        assert %{refused: 0} = Kith.rotate_data_key!(kith, "anna")
        for peer <- Enum.shuffle(peers), do: assert(send!(kith, "anna", peer, "x") == "x")
      end
    end

    test "leaves what does not open as it is, and counts it", %{kith: kith} do
      sql!(
        kith,
        "UPDATE signal_prekeys SET private_key_encrypted = $1 WHERE user_id = 'anna' AND prekey_id = 1 AND kind = 'signed'",
        [
          if(store() == :postgres, do: "junk", else: {:blob, "junk"})
        ]
      )

      [[rows]] =
        sql!(
          kith,
          "SELECT COUNT(*) FROM signal_prekeys WHERE user_id = 'anna' AND private_key_encrypted IS NOT NULL"
        )

      assert %{refused: refused, resealed: resealed} = Kith.rotate_data_key!(kith, "anna")
      assert refused in 0..1
      assert resealed > rows - 2
      assert send!(kith, "anna", "ben", "x") == "x"
    end

    test "while messages go to and fro loses none and tells nobody of damage", %{kith: kith} do
      parent = self()

      traffic =
        for {from, to} <- [{"anna", "ben"}, {"ben", "anna"}] do
          Task.async(fn ->
            for n <- 1..30 do
              {:ok, [envelope]} = Kith.encrypt(kith, from, to, "#{from} #{n}")
              assert {:ok, _} = Kith.decrypt(kith, to, Envelope.to_binary(envelope))
              if rem(n, 5) == 0, do: send(parent, :more)
            end
          end)
        end

      for _ <- 1..6, user <- ["anna", "ben"] do
        receive do: (:more -> :ok)
        assert {:ok, %{refused: 0}} = Kith.rotate_data_key(kith, user)
      end

      Task.await_many(traffic, 60_000)
    end

    test "is undone with the application's transaction", %{kith: kith} do
      before = dump(kith)
      assert {:ok, _} = undone!(kith, fn -> Kith.rotate_data_key(kith, "anna") end)
      assert dump(kith) == before
      assert send!(kith, "anna", "ben", "x") == "x"
    end
  end

  defp replace_at(text, at) do
    other = if :binary.at(text, at) == ?A, do: "B", else: "A"
    binary_part(text, 0, at) <> other <> from(text, at + 1)
  end
end
