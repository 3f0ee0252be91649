defmodule Kith.KeyChangeFailuresTest do
  # One repository module: one test at a time.
  use Kith.Case, async: false

  alias Kith.{Instance, Migration, SQLite}
  alias Kith.Store.ArchivedMessages
  alias Kith.Test.Repo

  @cheap [memory: 8_192, passes: 1, parallelism: 1]
  @password "correct horse battery"
  @other "another password"

  setup do
    # Or each login would make the lock anew, for what it costs elsewhere.
    Application.put_env(:kith, Kith.Password, @cheap)
    on_exit(fn -> Application.delete_env(:kith, Kith.Password) end)
    start_supervised!({SQLite, path: Path.join(tmp_dir!(), "keys.db"), name: __MODULE__.Database})
    Repo.connect(SQLite.handle(__MODULE__.Database))
    :ok = Migration.run(Repo)
    ahead = :atomics.new(1, [])
    clock = fn -> System.system_time(:millisecond) + :atomics.get(ahead, 1) end

    kith =
      start_kith!(
        repo: Repo,
        archive: true,
        one_time_prekeys: 2,
        one_time_kyber_prekeys: 1,
        replenish_below: 0,
        clock: clock
      )

    converse!(kith, "anna", "ben")
    assert texts(kith, "anna") == ["hello", "hi", "well"]
    %{kith: kith, ahead: ahead}
  end

  # Calls the function in a process that is killed at each of its statements in turn, until it outlives them. `prepare` is
  # called before each call, `look` after it with what that returned. Returns how many were killed.
  defp kill_at_each_statement(prepare, call, look, most \\ 2_000) do
    Enum.reduce_while(1..most, 0, fn n, killed ->
      prepared = prepare.()
      counter = :counters.new(1, [])

      {pid, monitor} =
        spawn_monitor(fn ->
          me = self()

          Repo.intercept(fn _sql, run ->
            if self() == me do
              :counters.add(counter, 1, 1)
              if :counters.get(counter, 1) == n, do: Process.exit(me, :kill)
            end

            run.()
          end)

          {:ok, _} = call.()
        end)

      assert_receive {:DOWN, ^monitor, :process, ^pid, reason}, 60_000
      Repo.intercept(fn _sql, run -> run.() end)
      assert reason in [:normal, :killed]
      look.(prepared)
      if reason == :normal, do: {:halt, killed}, else: {:cont, killed + 1}
    end)
  end

  defp texts(kith, user),
    do:
      for(message <- Kith.history!(kith, user, {:direct, "ben"}).messages, do: message.plaintext)

  # What came before it, and what is on its way. The archive does not grow with the tries.
  defp late(kith), do: {say!(kith, "ben", "anna", "late"), texts(kith, "anna")}

  defp say!(kith, from, to, text) do
    [envelope] = Kith.encrypt!(kith, from, to, text, archive: false)
    envelope
  end

  defp all_there(kith, {late, texts}) do
    assert texts(kith, "anna") == texts
    assert Kith.decrypt!(kith, "anna", late, archive: false) == "late"
    next = say!(kith, "anna", "ben", "next")
    assert Kith.decrypt!(kith, "ben", next, archive: false) == "next"
    assert %{damaged: 0, locked: 0} = Kith.verify_keys!(kith)
  end

  defp open!(kith) do
    if Kith.lock_state!(kith, "anna") != :open, do: Kith.remove_password!(kith, "anna", @password)
  end

  defp lock!(kith) do
    case Kith.lock_state!(kith, "anna") do
      :open -> Kith.lock_with_password!(kith, "anna", @password, @cheap)
      _ -> Kith.unlock!(kith, "anna", @password)
    end
  end

  test "a lock that is killed at any statement has locked the account or not, and lost nothing",
       %{
         kith: kith
       } do
    killed =
      kill_at_each_statement(
        fn ->
          open!(kith)
          late(kith)
        end,
        fn -> Kith.lock_with_password(kith, "anna", @password, @cheap) end,
        fn before ->
          if Kith.lock_state!(kith, "anna") != :open, do: Kith.unlock!(kith, "anna", @password)
          all_there(kith, before)
        end
      )

    assert killed > 30
  end

  test "so has the end of a lock", %{kith: kith} do
    killed =
      kill_at_each_statement(
        fn ->
          lock!(kith)
          late(kith)
        end,
        fn -> Kith.remove_password(kith, "anna", @password) end,
        fn before ->
          if Kith.lock_state!(kith, "anna") != :open, do: Kith.unlock!(kith, "anna", @password)
          all_there(kith, before)
        end
      )

    assert killed > 8
  end

  for {what, options, least} <- [
        {"a password is another one or it is not", [], 1},
        {"a password with another data key is there with all that is sealed under it, or not at all",
         [reseal: true], 30}
      ] do
    @tag options: options ++ @cheap, least: least
    test what, %{kith: kith, options: options, least: least} do
      killed =
        kill_at_each_statement(
          fn ->
            if match?({:ok, _}, Kith.unlock(kith, "anna", @other)),
              do: Kith.change_password!(kith, "anna", @other, @password, options),
              else: lock!(kith)

            late(kith)
          end,
          fn -> Kith.change_password(kith, "anna", @password, @other, options) end,
          fn before ->
            Kith.lock!(kith, "anna")
            opened = for word <- [@password, @other], do: elem(Kith.unlock(kith, "anna", word), 0)
            assert Enum.sort(opened) == [:error, :ok]
            all_there(kith, before)
          end
        )

      assert killed > least
    end
  end

  test "another data key of an account is there with all that is sealed under it, or not at all",
       %{kith: kith} do
    killed =
      kill_at_each_statement(
        fn -> late(kith) end,
        fn -> Kith.rotate_data_key(kith, "anna") end,
        &all_there(kith, &1)
      )

    assert killed > 30
  end

  test "a conversation that is between two data keys opens, and goes on from there", %{kith: kith} do
    keys = fn ->
      {:ok, %{rows: [keys]}} =
        Repo.query("SELECT data_key, previous_data_key FROM signal_threads", [], log: false)

      keys
    end

    between = :counters.new(1, [])

    killed =
      kill_at_each_statement(
        fn -> late(kith) end,
        fn -> Kith.rotate_thread_key(kith, {:direct, "anna", "ben"}) end,
        fn before ->
          if match?([_, <<_::binary>>], keys.()), do: :counters.add(between, 1, 1)
          all_there(kith, before)
        end
      )

    assert killed > 10
    assert :counters.get(between, 1) > 3
    assert [_, nil] = keys.()
  end

  # No message of the archive can be written, until it is said that one can.
  defp keep_archive_from_following do
    Repo.intercept(fn sql, run ->
      if sql =~ "UPDATE signal_archived_messages",
        do: {:error, %SQLite.Error{kind: :storage, message: "injected"}},
        else: run.()
    end)
  end

  defp let_archive_follow, do: Repo.intercept(fn _sql, run -> run.() end)

  # Under which keys of hers the messages of Anna lie, by their ids.
  defp owners do
    {:ok, %{rows: rows}} =
      Repo.query(
        "SELECT DISTINCT owner_key_id FROM signal_archived_messages WHERE user_id = 'anna'",
        [],
        log: false
      )

    Enum.concat(rows)
  end

  defp key_id do
    {:ok, %{rows: [[data_key]]}} =
      Repo.query("SELECT data_key FROM signal_accounts WHERE user_id = 'anna'", [], log: false)

    Kith.Store.Keys.key_id(data_key)
  end

  test "an archive that cannot follow is pending, opens meanwhile, and follows at the next login",
       %{kith: kith} do
    reseal = [reseal: true] ++ @cheap

    logins = [
      password: fn password, _token -> Kith.unlock(kith, "anna", password) end,
      token: fn _password, token -> Kith.unlock_with_token(kith, "anna", token) end
    ]

    changes = [
      {@password, fn -> Kith.lock_with_password(kith, "anna", @password, @cheap) end},
      {@other, fn -> Kith.change_password(kith, "anna", @password, @other, reseal) end}
    ]

    for {_by, login} <- logins do
      for {password, change} <- changes do
        before = late(kith)
        owned = owners()
        keep_archive_from_following()
        assert {:ok, %{archive: :pending, refused: 0, unlocked_until: _}} = change.()
        assert owners() == owned
        refute key_id() in owned
        assert {:unlocked, _} = Kith.lock_state!(kith, "anna")
        all_there(kith, before)

        # A login that fails to go on with it is one all the same.
        token = Kith.unlock_token!(kith, "anna")
        Kith.lock!(kith, "anna", keep_tokens: true)
        assert {:ok, _} = login.(password, token)
        assert owners() == owned
        assert texts(kith, "anna") == ["hello", "hi", "well"]

        let_archive_follow()
        Kith.lock!(kith, "anna", keep_tokens: true)
        assert {:ok, _} = login.(password, token)
        assert owners() == [key_id()]
        assert texts(kith, "anna") == ["hello", "hi", "well"]
      end

      # Without a password nobody logs in. It opens all the same, and follows the next lock.
      owned = owners()
      keep_archive_from_following()
      assert %{archive: :pending} = Kith.remove_password!(kith, "anna", @other)
      assert owners() == owned
      let_archive_follow()
      assert texts(kith, "anna") == ["hello", "hi", "well"]
      Kith.rotate_data_key!(kith, "anna")
      assert texts(kith, "anna") == ["hello", "hi", "well"]
      assert %{archive: :done} = lock!(kith)
      assert owners() == [key_id()]
      assert %{archive: :done} = Kith.remove_password!(kith, "anna", @password)
      assert owners() == [nil]
    end
  end

  # Each that comes further leaves another key of before to carry along: there is no last statement.
  test "a rotation of everything goes on where it was killed", %{kith: kith, ahead: ahead} do
    killed =
      kill_at_each_statement(
        fn ->
          :atomics.add(ahead, 1, 10_000)
          late(kith)
        end,
        fn -> Kith.rotate_keys(kith, older_than: 5) end,
        &all_there(kith, &1),
        120
      )

    assert killed == 120
    :atomics.add(ahead, 1, 10_000)
    assert %{rotated: 3} = Kith.rotate_keys!(kith, older_than: 5)
    assert %{rotated: 0, refused: 0} = Kith.rotate_keys!(kith, older_than: 5)
  end

  # As a node leaves it that is killed when the conversation has been given another key.
  defp between_keys!(kith) do
    instance = Instance.fetch!(kith)
    {:ok, %{rows: [[thread] | _]}} = query("SELECT thread_id FROM signal_threads")
    {:ok, data_key} = Instance.sealed(instance, :thread_create, [thread])

    {:ok, 1} =
      Instance.transaction(instance, fn repo ->
        now = Instance.now(instance)
        {{:ok, ArchivedMessages.replace_data_key(repo, thread, data_key, now)}, []}
      end)
  end

  # The keys of the server that wrap something. What a row says of it is what its key says.
  defp keks do
    for sql <- [
          "SELECT data_key, kek_id FROM signal_accounts",
          "SELECT data_key, kek_id FROM signal_threads",
          "SELECT previous_data_key, NULL FROM signal_threads WHERE previous_data_key IS NOT NULL",
          "SELECT private_key_encrypted, NULL FROM signed_service_keys"
        ],
        {:ok, %{rows: rows}} = query(sql),
        [<<1, _, _::binary-8, size, id::binary-size(size), _::binary>>, column] <- rows do
      assert column in [nil, id]
      id
    end
    |> Enum.uniq()
    |> Enum.sort()
  end

  defp query(sql), do: Repo.query(sql, [], log: false)

  test "data keys that are wrapped under another key open wherever that was killed, and none is left under the one before",
       %{kith: kith} do
    register!(kith, ["cleo"])
    Kith.lock_with_password!(kith, "cleo", @password, @cheap)
    say!(kith, "cleo", "anna", "hello")
    {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
    {:ok, _} = Kith.Signed.rotate_service_key(kith)
    between_keys!(kith)
    # Nothing that was opened is held here any more.
    options = [repo: Repo, archive: true, replenish_below: 0]
    old = defaults(options)[:keys][:current]
    new = {"new", {:key, String.duplicate("n", 32)}}
    stop_kith!(kith)
    back = start_kith!(Keyword.put(options, :keys, current: old, retired: [new]))
    kith = start_kith!(Keyword.put(options, :keys, current: new, retired: [old]))
    halfway = :counters.new(1, [])

    killed =
      kill_at_each_statement(
        fn ->
          assert %{refused: 0} = Kith.rotate_keys!(back)
          between_keys!(back)
          assert keks() == ["test"]
          late(kith)
        end,
        fn -> Kith.rotate_keys(kith) end,
        fn before ->
          if keks() == ["new", "test"], do: :counters.add(halfway, 1, 1)
          Kith.unlock!(kith, "cleo", @password)
          all_there(kith, before)
          said = say!(kith, "cleo", "anna", "and on")
          assert Kith.decrypt!(kith, "anna", said, archive: false) == "and on"
          assert {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
          Kith.lock!(kith, "cleo")
        end
      )

    assert killed > 15
    assert :counters.get(halfway, 1) > 5

    for name <- [back, kith], do: stop_kith!(name)
    assert keks() == ["new"]
    kith = start_kith!(Keyword.put(options, :keys, current: new))
    Kith.unlock!(kith, "cleo", @password)
    all_there(kith, late(kith))
    assert %{rewrapped: 0, refused: 0} = Kith.rotate_keys!(kith)
  end
end
