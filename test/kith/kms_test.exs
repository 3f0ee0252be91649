defmodule Kith.KMSTest do
  # Tests give the one key service faults, and the log is read.
  use Kith.Case, async: false
  use Kith.Test.Stores

  import ExUnit.CaptureLog

  alias Kith.{Instance, Native}
  alias Kith.KMS.Reference
  alias Kith.Test.KMSProcess

  @local "a2l0aCB0ZXN0IGtleS1lbmNyeXB0aW9uIGtleSAwMSE="

  setup do
    folder = tmp_dir!()
    %{folder: folder, kms: KMSProcess.start!(folder)}
  end

  defp start!(kms, options \\ []) do
    {source, options} = Keyword.split(options, [:timeout, :retries, :pause, :aad, :fallback])
    start_kith!(keys(kms, source) ++ Keyword.put_new(options, :archive, true))
  end

  # Attempts end soon enough for a test, and late enough for a machine that has much to do.
  defp keys(kms, source) do
    source = Keyword.merge([url: KMSProcess.url(kms), timeout: 20_000, pause: 0], source)
    local = {"local", {:key, Base.decode64!(@local)}}
    [keys: [current: {"kms", {:kms, source}}, retired: [local]]]
  end

  defp forget!(kith), do: :ok = Native.kms_forget(Instance.fetch!(kith).vault)

  defp open_keys(kith) do
    {:ok, {count, _}} = Native.vault_memory(Instance.fetch!(kith).vault)
    count
  end

  describe "with a key service" do
    test "people converse, and their rows say which key wraps what", %{kms: kms, folder: folder} do
      kith = start!(kms)
      converse!(kith, "ada", "ben")
      assert {:ok, %{messages: [_ | _]}} = Kith.history(kith, "ada", {:direct, "ben"})
      {:ok, state} = Reference.open(Path.join(folder, "keys"))

      for table <- ~w(signal_accounts signal_threads) do
        rows = sql!(kith, "SELECT key_id, wrapped_dek, kek_id, kek_version FROM #{table}")
        assert rows != []

        for [key_id, wrapped, kek_id, kek_version] <- rows do
          assert Reference.wrapped_dek(state, key_id) == {:ok, wrapped}
          assert {kek_id, kek_version} == {"kms", 1}
        end
      end
    end

    test "a local key says so in the same columns", %{} do
      kith = start_kith!()
      register!(kith, ["ada"])

      assert [[key_id, nil, "test", 1]] =
               sql!(kith, "SELECT key_id, wrapped_dek, kek_id, kek_version FROM signal_accounts")

      assert key_id =~ ~r/\A[0-9a-f]{16}\z/
    end

    test "what it stored opens after a restart of either", %{kms: kms, folder: folder} do
      database = Path.join(folder, "kith.db")
      kith = start!(kms, database: database)
      converse!(kith, "ada", "ben")
      stop_kith!(kith)
      KMSProcess.kill!(kms)
      kith = start!(KMSProcess.start!(folder), database: database)
      assert send!(kith, "ada", "ben", "again") == "again"
    end

    test "the extended wire carries what binds a key to its place", %{kms: kms} do
      kith = start!(kms, aad: true)
      converse!(kith, "ada", "ben")
      forget!(kith)
      assert send!(kith, "ada", "ben", "again") == "again"
    end

    test "many who need keys at once all get them, a few at a time", %{kms: kms} do
      kith = start!(kms, key_cache: [concurrency: 2])
      users = for number <- 1..12, do: "user #{number}"

      users
      |> Task.async_stream(&register!(kith, [&1]), max_concurrency: 12, timeout: 60_000)
      |> Stream.run()

      forget!(kith)

      assert users
             |> Task.async_stream(&Kith.session_info(kith, &1, "nobody"), max_concurrency: 12)
             |> Enum.all?(&match?({:ok, _}, &1))

      results =
        users
        |> Task.async_stream(&Kith.encrypt(kith, &1, "user 1", "hello"),
          max_concurrency: 12,
          timeout: 60_000
        )
        |> Enum.map(fn {:ok, result} -> reason(result) end)

      assert Enum.all?(results, &match?({:ok, _}, &1))
    end

    test "within a transaction of the application nobody waits for it: what is not open is :unavailable",
         %{kms: kms} do
      kith = start!(kms)
      converse!(kith, "ada", "ben")
      forget!(kith)
      before = dump(kith)
      within = fn fun -> undone!(kith, fun) end
      asked = asked(kms)

      for call <- [
            fn -> Kith.encrypt(kith, "ada", "ben", "inside") end,
            fn -> Kith.register(kith, "cleo") end,
            fn -> Kith.rotate_keys(kith) end,
            fn -> Kith.open_keys(kith, ["ada"]) end
          ],
          do: assert(reason(within.(call)) == :unavailable)

      assert asked(kms) == asked
      assert dump(kith) == before

      assert {:ok, 3} = Kith.open_keys(kith, ["ada", "cleo"], [{"ada", "ben"}])
      assert {:ok, [_]} = within.(fn -> Kith.encrypt(kith, "ada", "ben", "inside") end)
      assert {:ok, _} = within.(fn -> Kith.register(kith, "cleo") end)
      assert {:ok, 0} = Kith.open_keys(start_kith!(), ["ada"])
      assert_raise ArgumentError, fn -> Kith.open_keys(kith, ["ada"], [:no_thread]) end
    end

    test "the database is free while a key is got", %{kms: kms} do
      kith = start!(kms, timeout: 60_000, retries: 0)
      converse!(kith, "ada", "ben")
      register!(kith, ["cleo"])
      forget!(kith)
      "warm" = send!(kith, "ada", "ben", "warm")
      KMSProcess.fault(kms, "slow 60000")
      waiting = Task.async(fn -> Kith.encrypt(kith, "cleo", "ada", "hello") end)
      # It has been asked when its connection is there.
      assert Task.yield(waiting, 100) == nil
      assert send!(kith, "ada", "ben", "meanwhile") == "meanwhile"
      assert Task.yield(waiting, 0) == nil
      Task.shutdown(waiting, :brutal_kill)
    end
  end

  # How many keys the service has made.
  defp asked(kms), do: length(Path.wildcard(Path.join(kms.folder, "keys/*.dek")))

  describe "while the key service is away" do
    test "messages go on with the keys that are open; then it is :unavailable, until it is back",
         %{
           kms: kms,
           folder: folder
         } do
      kith = start!(kms)
      converse!(kith, "ada", "ben")
      late = encrypt_one!(kith, "ada", "ben", "late")
      KMSProcess.kill!(kms)

      for text <- ["one", "two"], do: assert(send!(kith, "ada", "ben", text) == text)
      assert {:ok, %{messages: [_ | _]}} = Kith.history(kith, "ben", {:direct, "ada"})
      assert reason(Kith.register(kith, "cleo")) == :unavailable

      forget!(kith)
      before = dump(kith)
      assert reason(Kith.encrypt(kith, "ada", "ben", "three")) == :unavailable
      assert reason(Kith.decrypt(kith, "ben", late)) == :unavailable
      assert reason(Kith.history(kith, "ben", {:direct, "ada"})) == :unavailable
      assert reason(Kith.register(kith, "cleo")) == :unavailable
      assert dump(kith) == before

      assert {:ok, %{store: :ok, vault: :unavailable}} = Kith.health(kith)
      {:ok, checks} = Kith.doctor(kith)
      assert {:kms, :error, sentence} = List.keyfind(checks, :kms, 0)
      assert sentence =~ "does not answer"

      KMSProcess.start!(folder)
      assert Kith.decrypt!(kith, "ben", late) == "late"
      assert send!(kith, "ada", "ben", "three") == "three"
      assert {:ok, %{store: :ok, vault: :ok}} = Kith.health(kith)
      {:ok, checks} = Kith.doctor(kith)
      assert {:kms, :ok, _} = List.keyfind(checks, :kms, 0)
    end

    test "an instance starts", %{kms: kms} do
      KMSProcess.kill!(kms)
      kith = start!(kms)
      assert reason(Kith.register(kith, "ada")) == :unavailable
    end

    test "keys close when their time is over", %{kms: kms} do
      kith = start!(kms, key_cache: [lifetime: 1])
      register!(kith, ~w(ada ben))
      KMSProcess.kill!(kms)
      eventually(fn -> open_keys(kith) == 0 end)
      assert reason(Kith.encrypt(kith, "ada", "ben", "hello")) == :unavailable
    end

    test "new keys are wrapped by the fallback, if there is one, and the log says so", %{kms: kms} do
      kith = start!(kms, fallback: "local")
      register!(kith, ["ada"])
      KMSProcess.kill!(kms)

      assert capture_log(fn -> register!(kith, ["ben"]) end) =~ ":fallback"

      assert [["ada", "kms"], ["ben", "local"]] =
               sql!(kith, "SELECT user_id, kek_id FROM signal_accounts ORDER BY user_id")

      forget!(kith)
      # What the service wrapped takes the service.
      assert reason(Kith.encrypt(kith, "ada", "ben", "hello")) == :unavailable
      assert {:ok, [_]} = Kith.encrypt(kith, "ben", "ada", "hello")
    end
  end

  describe "a key service that" do
    @describetag timeout: 120_000

    for fault <- ["drop", "status 500", "status 403", "garbage", "huge", "slow 60000"] do
      test "answers #{fault} is unavailable, and nothing changes", %{kms: kms} do
        kith = start!(kms, timeout: 1_000, retries: 1)
        converse!(kith, "ada", "ben")
        late = encrypt_one!(kith, "ada", "ben", "late")
        forget!(kith)
        before = dump(kith)
        KMSProcess.fault(kms, unquote(fault))
        assert reason(Kith.decrypt(kith, "ben", late)) == :unavailable
        assert reason(Kith.register(kith, "cleo")) == :unavailable
        assert dump(kith) == before
        KMSProcess.fault(kms)
        assert Kith.decrypt!(kith, "ben", late) == "late"
      end
    end

    test "decrypts to something else opens nothing, and no key is made with it", %{kms: kms} do
      kith = start!(kms)
      converse!(kith, "ada", "ben")
      forget!(kith)
      KMSProcess.fault(kms, "wrong_tag")
      assert reason(Kith.encrypt(kith, "ada", "ben", "hello")) == :corrupted_state
      assert reason(Kith.register(kith, "cleo")) == :unavailable
      KMSProcess.fault(kms)
      assert send!(kith, "ada", "ben", "hello") == "hello"
    end

    test "lost its keys is :key_not_found, and one with another master key :corrupted_state", %{
      kms: kms,
      folder: folder
    } do
      kith = start!(kms)
      converse!(kith, "ada", "ben")
      [keys, elsewhere] = for name <- ["keys", "elsewhere"], do: Path.join(folder, name)
      forget!(kith)

      File.rename!(keys, elsewhere)
      KMSProcess.kill!(kms)
      other = KMSProcess.start!(folder)
      assert reason(Kith.encrypt(kith, "ada", "ben", "hello")) == :key_not_found

      for path <- Path.wildcard(Path.join(elsewhere, "*.dek")),
          do: File.cp!(path, Path.join(keys, Path.basename(path)))

      assert reason(Kith.encrypt(kith, "ada", "ben", "hello")) == :corrupted_state

      File.rm_rf!(keys)
      File.rename!(elsewhere, keys)
      KMSProcess.kill!(other)
      KMSProcess.start!(folder)
      assert send!(kith, "ada", "ben", "hello") == "hello"
    end
  end

  describe "a wrapped data key" do
    test "that is put in another's place does not open, though the service decrypts it", %{
      kms: kms
    } do
      kith = start!(kms)
      converse!(kith, "ada", "ben")
      converse!(kith, "cleo", "dan")

      for {table, owner} <- [{"signal_accounts", "user_id"}, {"signal_threads", "thread_id"}] do
        [[first, first_key], [second, second_key] | _] =
          sql!(kith, "SELECT #{owner}, data_key FROM #{table} ORDER BY #{owner}")

        for {owner_id, key} <- [{first, second_key}, {second, first_key}] do
          sql!(kith, "UPDATE #{table} SET data_key = $1 WHERE #{owner} = $2", [
            blob(key),
            owner_id
          ])
        end

        # Also while the key is open for whom it belongs to.
        for forget? <- [false, true] do
          if forget?, do: forget!(kith)

          result =
            if table == "signal_accounts",
              do: Kith.encrypt(kith, "ada", "ben", "hello"),
              else: Kith.history(kith, "ada", {:direct, "ben"})

          assert reason(result) == :corrupted_state
        end

        for {owner_id, key} <- [{first, first_key}, {second, second_key}] do
          sql!(kith, "UPDATE #{table} SET data_key = $1 WHERE #{owner} = $2", [
            blob(key),
            owner_id
          ])
        end
      end

      assert send!(kith, "ada", "ben", "hello") == "hello"
    end

    test "that is damaged anywhere never opens, and never with a crash", %{kms: kms} do
      kith = start!(kms, retries: 0)
      register!(kith, ~w(ada ben))
      [[key]] = sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'ada'")
      vault = Instance.fetch!(kith).vault

      for position <- 0..(byte_size(key) - 1)//5 do
        damaged = corrupt(key, position, 0x80)
        result = Native.kms_fetch(vault, :account, {"ada", damaged})
        assert {:ok, {reason, _calls}} = result
        assert reason in [:corrupted_state, :key_not_found, :unavailable]
      end

      for size <- [0, 1, 11, 20, 60, byte_size(key) - 1] do
        cut = binary_part(key, 0, size)
        assert {:ok, {:corrupted_state, []}} = Native.kms_fetch(vault, :account, {"ada", cut})
      end
    end
  end

  @cheap [memory: 8_192, passes: 1, parallelism: 1]
  @password "correct horse battery"

  describe "an account under a password, with a key service" do
    # The bytes that say that a data key is wrapped, locked, or in a token.
    for {cipher, bytes} <- [
          aes_256_gcm: {0x13, 0x14, 0x15},
          chacha20_poly1305: {0x1B, 0x1C, 0x1D}
        ] do
      @tag cipher: cipher, bytes: bytes
      test "is locked, unlocked by password and by token, and given back, with #{cipher}",
           %{kms: kms} = context do
        {wrapped, locked, in_token} = context.bytes
        kith = start!(kms, cipher: context.cipher)
        converse!(kith, "ada", "ben")
        note = encrypt_one!(kith, "ada", "ada", "note")
        assert %{refused: 0} = Kith.lock_with_password!(kith, "ada", @password, @cheap)
        assert [[<<1, ^locked, _::binary>>, "kms"]] = key_of(kith, "ada")
        assert send!(kith, "ada", "ben", "unlocked") == "unlocked"

        token = Kith.unlock_token!(kith, "ada")
        assert <<1, ^in_token, _::binary>> = Base.url_decode64!(token, padding: false)
        assert byte_size(token) < 1_024
        assert Kith.lock!(kith, "ada", keep_tokens: true) == :locked
        forget!(kith)
        assert reason(Kith.encrypt(kith, "ada", "ben", "no")) == :locked
        assert reason(Kith.unlock(kith, "ada", "another password")) == :wrong_password

        assert reason(Kith.unlock_with_token(kith, "ben", token)) in [
                 :key_not_found,
                 :wrong_password
               ]

        assert {:ok, _} = Kith.unlock_with_token(kith, "ada", token)
        assert send!(kith, "ada", "ben", "by token") == "by token"

        assert Kith.lock!(kith, "ada") == :locked
        assert reason(Kith.unlock_with_token(kith, "ada", token)) == :wrong_password
        forget!(kith)
        Kith.change_password!(kith, "ada", @password, "another password", @cheap)
        Kith.lock!(kith, "ada")
        forget!(kith)
        assert reason(Kith.unlock(kith, "ada", @password)) == :wrong_password
        assert {:ok, _} = Kith.unlock(kith, "ada", "another password")
        assert Kith.decrypt!(kith, "ada", note) == "note"

        forget!(kith)
        Kith.remove_password!(kith, "ada", "another password")
        assert [[<<1, ^wrapped, _::binary>>, "kms"]] = key_of(kith, "ada")
        forget!(kith)
        assert %{refused: 0} = Kith.rotate_data_key!(kith, "ada")
        assert send!(kith, "ada", "ben", "open") == "open"

        assert for(m <- Kith.history!(kith, "ada", {:direct, "ben"}).messages, do: m.plaintext) ==
                 ["hello", "hi", "well", "unlocked", "by token", "open"]
      end
    end

    test "needs the service to be unlocked, and not while it is", %{kms: kms, folder: folder} do
      kith = start!(kms, archive: false)
      converse!(kith, "ada", "ben")
      Kith.lock_with_password!(kith, "ada", @password, @cheap)
      token = Kith.unlock_token!(kith, "ada")
      KMSProcess.kill!(kms)
      forget!(kith)
      assert {:ok, [_]} = Kith.encrypt(kith, "ada", "ben", "unlocked")
      assert reason(Kith.encrypt(kith, "ben", "ada", "not")) == :unavailable

      assert reason(Kith.change_password(kith, "ada", @password, "another", @cheap)) ==
               :unavailable

      # Here it is locked at once. The others are told by the database, which takes a key of the service.
      before = dump(kith)
      assert reason(Kith.lock(kith, "ada")) == :unavailable
      assert Kith.lock_state!(kith, "ada") == :locked
      assert reason(Kith.encrypt(kith, "ada", "ben", "no")) == :locked
      # Never a wrong password: it may be the right one.
      assert reason(Kith.unlock(kith, "ada", @password)) == :unavailable
      assert reason(Kith.unlock_with_token(kith, "ada", token)) == :unavailable
      assert dump(kith) == before

      KMSProcess.start!(folder)
      assert {:ok, _} = Kith.unlock(kith, "ada", @password)
      assert send!(kith, "ada", "ben", "again") == "again"
    end
  end

  defp key_of(kith, user),
    do: sql!(kith, "SELECT data_key, kek_id FROM signal_accounts WHERE user_id = $1", [user])

  describe "rotation" do
    test "from a local key to a service and back, locked accounts and keys of the service itself among them",
         %{kms: kms} do
      local = {"local", {:key, Base.decode64!(@local)}}
      served = {"kms", {:kms, url: KMSProcess.url(kms), timeout: 20_000, pause: 0}}
      options = defaults(name: make_ref(), archive: true, database: tmp_dir!())

      options =
        if options[:repo],
          do: options,
          else: Keyword.put(options, :database, Path.join(tmp_dir!(), "kith.db"))

      start = &start_kith!(Keyword.put(options, :keys, &1))

      kith = start.(current: local)
      converse!(kith, "ada", "ben")
      register!(kith, ["cleo"])
      Kith.lock_with_password!(kith, "cleo", @password, @cheap)
      {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
      stop_kith!(kith)

      kith = start.(current: served, retired: [local])
      before = sessions(kith)
      made = asked(kms)
      assert %{rewrapped: 5, refused: 0} = Kith.rotate_keys!(kith, dry_run: true)
      # Nothing is made for a look.
      assert asked(kms) == made
      assert %{rewrapped: 5, current: 0, refused: 0, remaining: left} = Kith.rotate_keys!(kith)
      assert left == %{}
      assert %{rewrapped: 0, current: 5} = Kith.rotate_keys!(kith)
      assert sessions(kith) == before
      assert columns(kith) == [{"kms", true, 1}]
      stop_kith!(kith)

      kith = start.(current: served)
      assert send!(kith, "ada", "ben", "served") == "served"
      assert length(Kith.history!(kith, "ben", {:direct, "ada"}).messages) == 4
      assert {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
      assert {:ok, _} = Kith.Signed.rotate_service_key(kith)
      assert {:ok, _} = Kith.unlock(kith, "cleo", @password)
      stop_kith!(kith)

      kith = start.(current: local, retired: [served])
      assert %{rewrapped: 6, refused: 0, remaining: left} = Kith.rotate_keys!(kith)
      assert left == %{}
      assert columns(kith) == [{"local", false, 1}]
      KMSProcess.kill!(kms)
      stop_kith!(kith)

      kith = start.(current: local)
      assert send!(kith, "ada", "ben", "local") == "local"
      assert {:ok, _} = Kith.unlock(kith, "cleo", @password)
      assert {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
    end

    test "stops where the service goes away, keeps what is done, and goes on", %{
      kms: kms,
      folder: folder
    } do
      kith = start!(kms, fallback: "local", retries: 0)
      KMSProcess.kill!(kms)
      capture_log(fn -> converse!(kith, "ada", "ben") end)
      assert [{"local", false, 1}] = columns(kith)
      assert reason(Kith.rotate_keys(kith)) == :unavailable
      assert [{"local", false, 1}] = columns(kith)

      # Away after the accounts, before the threads.
      kms = KMSProcess.start!(folder)
      kill = fn _counts -> KMSProcess.kill!(kms) end
      assert reason(Kith.rotate_keys(kith, progress: kill)) == :unavailable
      assert [{"kms", true, 1}, {"local", false, 1}] = columns(kith)

      KMSProcess.start!(folder)
      assert %{rewrapped: 1, current: 2, refused: 0} = Kith.rotate_keys!(kith)
      assert [{"kms", true, 1}] = columns(kith)
      forget!(kith)
      assert send!(kith, "ada", "ben", "on") == "on"
    end

    test "of data keys that are old stops where the service goes away, and goes on", %{
      kms: kms,
      folder: folder
    } do
      name = make_ref()
      clock = fn -> System.system_time(:millisecond) + :persistent_term.get(name, 0) end
      kith = start!(kms, clock: clock, name: name, fallback: "local", retries: 0)
      converse!(kith, "ada", "ben")
      :persistent_term.put(name, 100_000)
      KMSProcess.kill!(kms)
      # Not to what stands in for it, though all that has to be opened is open.
      assert %{damaged: 0} = Kith.verify_keys!(kith)
      assert reason(Kith.rotate_keys(kith, older_than: 50)) == :unavailable
      assert [{"kms", true, 1}] = columns(kith)

      # Nor with what another call has had made for it.
      capture_log(fn ->
        assert {:ok, {nil, false, _}} =
                 Native.kms_prepare(Instance.fetch!(kith).vault, :account, "ada", true)
      end)

      assert reason(Kith.rotate_keys(kith, older_than: 50)) == :unavailable
      assert [{"kms", true, 1}] = columns(kith)
      KMSProcess.start!(folder)
      # Two accounts and a conversation.
      assert %{rotated: 3, refused: 0} = Kith.rotate_keys!(kith, older_than: 50)
      forget!(kith)
      assert send!(kith, "ada", "ben", "on") == "on"
      :persistent_term.erase(name)
    end

    test "of a conversation, and opening all there is, ask between transactions", %{
      kms: kms,
      folder: folder
    } do
      kith = start!(kms, retries: 0)
      converse!(kith, "ada", "ben")
      thread = {:direct, "ada", "ben"}
      keys = fn -> sql!(kith, "SELECT data_key, previous_data_key FROM signal_threads") end

      forget!(kith)
      assert %{damaged: 0, outdated: 0, opened: opened} = Kith.verify_keys!(kith)
      forget!(kith)
      assert %{resealed: 6, refused: 0} = Kith.rotate_thread_key!(kith, thread)

      KMSProcess.kill!(kms)
      forget!(kith)
      assert reason(Kith.verify_keys(kith)) == :unavailable
      before = keys.()
      assert reason(Kith.rotate_thread_key(kith, thread)) == :unavailable
      assert keys.() == before

      KMSProcess.start!(folder)
      assert %{resealed: 6, refused: 0} = Kith.rotate_thread_key!(kith, thread)
      assert [[_, nil]] = keys.()
      assert keys.() != before
      forget!(kith)
      assert %{damaged: 0, opened: ^opened} = Kith.verify_keys!(kith)
      assert length(Kith.history!(kith, "ada", {:direct, "ben"}).messages) == 3
    end

    test "holds no transaction while it waits", %{kms: kms} do
      kith = start!(kms, timeout: 60_000, retries: 0, fallback: "local")
      converse!(kith, "ada", "ben")
      KMSProcess.fault(kms, "slow 60000")
      forget!(kith)
      rotating = Task.async(fn -> Kith.rotate_keys(kith) end)
      assert Task.yield(rotating, 100) == nil
      # A writer is not kept waiting.
      assert sql!(kith, "UPDATE signal_accounts SET kek_id = kek_id") == 2
      assert Task.yield(rotating, 0) == nil
      Task.shutdown(rotating, :brutal_kill)
    end

    test "counts what the service does not decrypt as refused, and leaves it", %{kms: kms} do
      kith = start!(kms)
      register!(kith, ["ada", "ben"])
      [[key, _]] = key_of(kith, "ada")
      damaged = corrupt(key, byte_size(key) - 1)

      sql!(kith, "UPDATE signal_accounts SET data_key = $1 WHERE user_id = 'ada'", [blob(damaged)])

      forget!(kith)
      assert %{current: 1, refused: 1, remaining: %{"kms" => 1}} = Kith.rotate_keys!(kith)
      assert [[^damaged, _]] = key_of(kith, "ada")
    end
  end

  # Key, whether a service keeps one for it, and version, of accounts and threads.
  defp columns(kith) do
    for(
      table <- ~w(signal_accounts signal_threads),
      [kek_id, wrapped, version] <-
        sql!(kith, "SELECT kek_id, wrapped_dek, kek_version FROM #{table}"),
      do: {kek_id, wrapped != nil, version}
    )
    |> Enum.uniq()
    |> Enum.sort()
  end

  defp sessions(kith),
    do: Enum.sort(sql!(kith, "SELECT * FROM signal_sessions"))

  test "who goes is unregistered without the keys of those they wrote with, who begin anew", %{
    kms: kms
  } do
    kith = start!(kms)
    for user <- ~w(ben cleo), do: register!(kith, [user])
    register!(kith, ["ada"])
    for user <- ~w(ben cleo), do: send!(kith, user, "ada", "hello")
    forget!(kith)
    KMSProcess.fault(kms, "drop")
    Kith.unregister!(kith, "ada")
    KMSProcess.fault(kms)
    register!(kith, ["ada"])

    for user <- ~w(ben cleo) do
      # It is another identity.
      Kith.trust!(kith, user, "ada")
      assert send!(kith, user, "ada", "again") == "again"
    end
  end

  test "a backup is written and restored with closed keys; with a history only into threads that are open",
       %{
         kms: kms
       } do
    kith = start!(kms)
    converse!(kith, "ada", "ben")
    secret = {:passphrase, "a passphrase of a test"}
    forget!(kith)
    {:ok, backup} = Kith.Backup.export(kith, "ada", secret)
    backup = IO.iodata_to_binary(Enum.to_list(backup))
    Kith.unregister!(kith, "ada")
    forget!(kith)
    assert reason(Kith.Backup.restore(kith, "ada", backup, secret)) == :unavailable
    {:ok, _} = Kith.open_keys(kith, [], [{"ada", "ben"}])
    assert {:ok, %{messages: 3}} = Kith.Backup.restore(kith, "ada", backup, secret)
    assert send!(kith, "ada", "ben", "restored") == "restored"
    forget!(kith)

    assert {:ok, %{messages: 0}} =
             Kith.Backup.restore(kith, "ada", backup, secret, replace: true, history: false)
  end

  @refusals [:corrupted_state, :key_not_found, :unavailable, :wrong_password, :locked]

  test "whatever is damaged of what a service wrapped, nothing opens to something else", %{
    kms: kms
  } do
    kith = start!(kms, retries: 0)
    converse!(kith, "ada", "ben")
    register!(kith, ["cleo"])
    Kith.lock_with_password!(kith, "cleo", @password, @cheap)
    Kith.lock!(kith, "cleo")
    :rand.seed(:exsss, {1, 2, 3})
    messages = for m <- Kith.history!(kith, "ada", {:direct, "ben"}).messages, do: m.plaintext

    for {table, where, call, right} <- [
          {"signal_accounts", "user_id = 'ada'", &history/1, messages},
          {"signal_threads", "thread_id LIKE 'd:%'", &history/1, messages},
          {"signal_accounts", "user_id = 'cleo'", &unlock/1, :unlocked}
        ] do
      [[key]] = sql!(kith, "SELECT data_key FROM #{table} WHERE #{where}")
      put = &sql!(kith, "UPDATE #{table} SET data_key = $1 WHERE #{where}", [blob(&1)])

      for _ <- 1..15 do
        damaged = damage(key)
        put.(damaged)
        forget!(kith)

        for result <- call.(kith) do
          refute damaged != key and result == right
          assert result == right or reason(result) in @refusals
        end
      end

      put.(key)
      forget!(kith)
      assert Enum.all?(call.(kith), &(&1 == right))
    end

    token = Kith.unlock_token!(kith, "cleo")

    for _ <- 1..15 do
      damaged = damage(Base.url_decode64!(token, padding: false))
      forget!(kith)
      result = Kith.unlock_with_token(kith, "cleo", Base.url_encode64(damaged, padding: false))
      assert reason(result) in @refusals
    end

    assert {:ok, _} = Kith.unlock_with_token(kith, "cleo", token)
  end

  # A history takes the key of its thread alone; to encrypt, that of the account.
  defp history(kith) do
    with {:ok, _} <- Kith.session_info(kith, "ada", "ben"),
         {:ok, %{messages: messages}} <- Kith.history(kith, "ada", {:direct, "ben"}) do
      case Enum.reject(messages, &is_binary(&1.plaintext)) do
        [] -> [for(m <- messages, do: m.plaintext)]
        [%{error: error} | _] -> [{:error, error}]
      end
    else
      error -> [error]
    end
  end

  defp unlock(kith),
    do: [with({:ok, _} <- Kith.unlock(kith, "cleo", @password), do: :unlocked)]

  defp damage(key) do
    size = byte_size(key)

    case :rand.uniform(3) do
      1 ->
        corrupt(key, :rand.uniform(size) - 1, :rand.uniform(255))

      2 ->
        binary_part(key, 0, :rand.uniform(size) - 1)

      3 ->
        Enum.reduce(1..4, key, fn _, key ->
          corrupt(key, :rand.uniform(size) - 1, :rand.uniform(255))
        end)
    end
  end

  describe "over TCP" do
    @tag store: :sqlite
    test "on this machine it works as on a socket", %{folder: folder} do
      kms = KMSProcess.start!(tmp_in(folder, "tcp"), listen: [port: 0])
      kith = start!(kms)
      converse!(kith, "ada", "ben")
    end

    @tag store: :sqlite
    test "with TLS both sides show certificates, and one that is not known is not spoken to", %{
      folder: folder
    } do
      ours = certificates(folder, "ours")
      theirs = certificates(folder, "theirs")

      tls = [
        certfile: ours.server,
        keyfile: ours.server_key,
        cacertfile: ours.ca,
        verify: :verify_peer,
        fail_if_no_peer_cert: true
      ]

      kms = KMSProcess.start!(tmp_in(folder, "tls"), listen: [port: 0, tls: tls])

      source = [
        url: "https://localhost:#{kms.listens}",
        ca_file: ours.ca,
        certificate: ours.client,
        private_key: ours.client_key,
        timeout: 20_000,
        connect_timeout: 20_000,
        retries: 0,
        pause: 0
      ]

      start = fn source -> start_kith!(keys: [current: {"kms", {:kms, source}}]) end
      kith = start.(source)
      converse!(kith, "ada", "ben")

      for wrong <- [
            Keyword.put(source, :ca_file, theirs.ca),
            Keyword.merge(source, certificate: theirs.client, private_key: theirs.client_key),
            Keyword.drop(source, [:certificate, :private_key])
          ],
          do: assert(reason(Kith.register(start.(wrong), "ada")) == :unavailable)

      File.chmod!(ours.client_key, 0o644)
      assert refused(source) =~ "0644"
      assert refused(Keyword.put(source, :ca_file, ours.client_key)) =~ "expected certificates"
      assert refused(Keyword.delete(source, :ca_file)) =~ "expected the certificates of https"
    end
  end

  defp refused(source) do
    options = defaults(keys: [current: {"kms", {:kms, source}}])

    assert_raise(ArgumentError, fn -> Kith.start_link(options) end)
    |> Exception.message()
  end

  defp blob(bytes), do: if(store() == :postgres, do: bytes, else: {:blob, bytes})

  defp tmp_in(folder, name) do
    path = Path.join(folder, name)
    File.mkdir_p!(path)
    path
  end

  # What an authority has signed, as files that only their owner reads.
  defp certificates(folder, authority) do
    for {part, name} <- [
          ca: "ca",
          server: "server",
          server_key: "server.key",
          client: "client",
          client_key: "client.key"
        ],
        into: %{} do
      path = Path.join(folder, "#{authority}.#{name}.pem")
      File.cp!(Path.join("test/support/certificates", Path.basename(path)), path)
      File.chmod!(path, 0o600)
      {part, path}
    end
  end
end
