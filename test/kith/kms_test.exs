defmodule Kith.KMSTest do
  # Tests give the one key service faults, and the log is read.
  use Kith.Case, async: false

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

    test "within a transaction of the application a key is got in place", %{kms: kms} do
      kith = start!(kms)
      converse!(kith, "ada", "ben")
      forget!(kith)
      %{repo: repo} = Instance.fetch!(kith)

      assert {:ok, {:ok, [_]}} =
               Kith.SQLite.transaction(repo, fn ->
                 {:ok, Kith.encrypt(kith, "ada", "ben", "inside")}
               end)
               |> elem(1)
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
      eventually(fn -> Task.yield(waiting, 100) == nil end)
      assert send!(kith, "ada", "ben", "meanwhile") == "meanwhile"
      assert Task.yield(waiting, 0) == nil
      Task.shutdown(waiting, :brutal_kill)
    end
  end

  defp eventually(fun), do: if(fun.(), do: :ok, else: eventually(fun))

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
            {:blob, key},
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
            {:blob, key},
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

  describe "over TCP" do
    test "on this machine it works as on a socket", %{folder: folder} do
      kms = KMSProcess.start!(tmp_in(folder, "tcp"), listen: [port: 0])
      kith = start!(kms)
      converse!(kith, "ada", "ben")
    end

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
