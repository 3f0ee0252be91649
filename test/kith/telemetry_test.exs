defmodule Kith.TelemetryTest do
  # Handlers and the flag of the library's presence are global.
  use Kith.Case, async: false

  @compile {:no_warn_undefined, :telemetry}

  alias Kith.{Native, Telemetry}

  # The contract is tested against the real library. Where there is none, somebody has to say so.
  use Kith.Test.Optional, :telemetry

  setup do
    ahead = :atomics.new(1, [])
    clock = fn -> System.system_time(:millisecond) + :atomics.get(ahead, 1) end

    kith =
      start_kith!(
        one_time_prekeys: 5,
        one_time_kyber_prekeys: 2,
        replenish_below: 5,
        archive: true,
        clock: clock
      )

    attach(Map.keys(contract()))
    %{kith: kith, ahead: ahead}
  end

  test "every event of the table is emitted, with the keys of the table and no others", %{
    kith: kith,
    ahead: ahead
  } do
    # First, as it takes what is of no instance with it.
    served = with_a_key_service()
    register!(kith, ~w(anna ben cleo))
    first = encrypt_one!(kith, "anna", "ben", "hello")
    Kith.decrypt!(kith, "ben", first)
    {:ok, _} = Kith.decrypt(kith, "ben", first)
    {:error, _} = Kith.decrypt(kith, "ben", <<1, "junk">>)
    {:error, _} = Kith.encrypt(kith, "anna", "nobody", "hello")
    Kith.encrypt_group!(kith, "anna", ~w(ben cleo nobody), "hello", thread: "family")
    Kith.history!(kith, "ben", {:direct, "anna"})
    {:error, _} = Kith.history(kith, "nobody", "family")
    Kith.shred!(kith, "family")
    second = encrypt_one!(kith, "anna", "ben", "hello")
    Kith.delete!(kith, "ben", "anna")
    [report] = Kith.recover!(kith, "ben", second, Kith.Error.new(:session_not_found))
    Kith.resend!(kith, "anna", report)
    {:error, _} = Kith.recover(kith, "ben", second, Kith.Error.new(:locked))
    {:error, _} = Kith.resend(kith, "anna", second)
    Kith.restored!(kith)
    Kith.replenish!(kith, "ben")
    Kith.health!(kith)
    Kith.lock_with_password!(kith, "cleo", "correct horse", memory: 8_192, passes: 1)
    {:error, _} = Kith.unlock(kith, "cleo", "wrong horse")
    Kith.unlock_with_token!(kith, "cleo", Kith.unlock_token!(kith, "cleo"))
    Kith.rotate_keys!(kith)
    Kith.verify_keys!(kith)
    Kith.rotate_thread_key!(kith, {:direct, "anna", "ben"})
    raise_and_clear_an_alert(kith)
    :ok = Native.panic_arm("session_encrypt", 1)
    {:error, %{reason: :panic}} = Kith.encrypt(kith, "anna", "ben", "hello")
    {:ok, hash} = Kith.Password.hash("correct horse", memory: 8_192, passes: 1)
    true = Kith.Password.verify("correct horse", hash)
    upgrade_a_table()

    use_keys_of_services(kith)
    back_up_and_restore(kith)

    :atomics.add(ahead, 1, 31 * 86_400_000)
    Kith.maintain!(kith)

    for name <- [
          [:session, :encrypt],
          [:session, :decrypt],
          [:session, :recover],
          [:session, :resend],
          [:group, :encrypt],
          [:maintenance, :run],
          [:archive, :history],
          [:archive, :shred],
          [:account, :unlock],
          [:account, :reseal],
          [:archive, :reseal],
          [:keys, :rotate],
          [:keys, :verify],
          [:password, :hash],
          [:password, :verify],
          [:vault, :migrate],
          [:signed, :verify],
          [:signed, :sign],
          [:signed, :change],
          [:client_key, :seal],
          [:client_key, :open],
          [:export, :verify],
          [:backup, :verify],
          [:backup, :restore],
          [:backup, :escrow],
          [:backup, :unwrap]
        ] do
      # Nothing in Kith raises inside a span; a bug would.
      metadata = start_metadata(kith, [:kith | name])
      assert catch_error(Telemetry.span([:kith | name], metadata, fn -> raise "a bug" end))
    end

    events = received(kith) ++ served
    contract = contract()

    assert Enum.sort(Enum.uniq(for {event, _, _} <- events, do: event)) ==
             Enum.sort(Map.keys(contract))

    for {event, measurements, metadata} <- events do
      {wanted_measurements, wanted_metadata} = contract[event]
      assert Enum.sort(Map.keys(measurements)) == wanted_measurements, inspect(event)
      metadata = Map.delete(metadata, :telemetry_span_context)
      assert Enum.sort(Map.keys(metadata)) == wanted_metadata, inspect(event)

      for {name, value} <- measurements,
          name != :monotonic_time,
          do: assert(is_integer(value) and value >= 0)
    end
  end

  test "the spans of a message say who, how much and how it went", %{kith: kith} do
    register!(kith, ~w(anna ben))
    received(kith)
    envelope = encrypt_one!(kith, "anna", "ben", "hello")
    size = byte_size(envelope.body)
    events = received(kith)

    assert [{_, %{plaintext_size: 5, message_size: ^size, duration: duration}, metadata}] =
             events(events, [:session, :encrypt, :stop])

    assert duration > 0

    assert %{
             instance: ^kith,
             user_id: "anna",
             device_id: 1,
             peer_id: "ben",
             peer_device_id: nil,
             result: :ok,
             reason: nil,
             type: :prekey
           } = metadata

    assert [{_, %{sessions: 1}, %{role: :initiator, user_id: "anna", result: :ok}}] =
             events(events, [:session, :establish, :stop])

    assert [
             {_, %{count: 1, remaining: 4, kyber_count: 1, kyber_remaining: 1}, %{user_id: "ben"}}
           ] = events(events, [:prekeys, :claim, :stop])

    {:error, _} = Kith.decrypt(kith, "ben", %{envelope | body: corrupt(envelope.body, 10)})
    assert "hello" = Kith.decrypt!(kith, "ben", envelope)
    Kith.shred!(kith, {:direct, "anna", "ben"})
    {:error, _} = Kith.decrypt(kith, "ben", envelope)
    {:error, _} = Kith.decrypt(kith, "ben", <<1, "junk">>)
    events = received(kith)

    assert [:tampered, nil, :duplicate, :malformed] =
             for(
               {_, _, metadata} <- events(events, [:session, :decrypt, :stop]),
               do: metadata.reason
             )

    assert [0, 5, 0, 0] =
             for({_, m, _} <- events(events, [:session, :decrypt, :stop]), do: m.plaintext_size)

    assert [{_, %{sessions: 1}, %{role: :responder, user_id: "ben"}}] =
             events(events, [:session, :establish, :stop])
  end

  test "a fan-out is one span with its counts", %{kith: kith} do
    register!(kith, ~w(anna ben cleo))
    received(kith)
    members = ~w(anna ben cleo nobody)
    results = Kith.encrypt_group!(kith, "anna", members, "hello", thread: "family")
    size = for({_, {:ok, envelope}} <- results, do: byte_size(envelope.body)) |> Enum.sum()
    events = received(kith)

    assert [
             {_, %{recipients: 3, failed: 1, message_size: ^size, plaintext_size: 5},
              %{result: :ok}}
           ] = events(events, [:group, :encrypt, :stop])

    assert [{_, %{sessions: 2}, _}] = events(events, [:session, :establish, :stop])
    assert [] = events(events, [:session, :encrypt, :stop])
  end

  test "a pass tells of each task, and what it did", %{kith: kith, ahead: ahead} do
    register!(kith, ~w(anna ben cleo))
    first = encrypt_one!(kith, "anna", "ben", "hello")
    Kith.decrypt!(kith, "ben", first)
    encrypt_one!(kith, "anna", "cleo", "hello?")
    Kith.Maintenance.await(kith)
    Kith.pre_key_bundle!(kith, "ben")
    Kith.Maintenance.await(kith)
    sql!(kith, "UPDATE signal_prekeys SET claimed_at = 1 WHERE user_id = 'cleo'")
    received(kith)

    :atomics.add(ahead, 1, 31 * 86_400_000)
    Kith.maintain!(kith)
    events = received(kith)

    assert [replenish: 1, rotate: 3, purge: 2, expire: 2, checkpoint: 1] =
             for(
               {_, %{count: count, failed: 0}, %{task: task, claimed: true, result: :ok}} <-
                 events(events, [:maintenance, :run, :stop]),
               do: {task, count}
             )

    age = 31 * 86_400

    # Nothing is left of hers, and the age of all is a month.
    assert [
             {"anna", 5},
             {"ben", 5},
             {"cleo", 0}
           ] =
             for(
               {_, %{one_time: stock, signed_age: ^age, last_resort_age: ^age},
                %{user_id: user, device_id: 1, local: true}} <-
                 events(events, [:prekeys, :stock]),
               do: {user, stock}
             )

    assert [
             %{local: false, devices: 0},
             %{local: true, devices: 3, low: 1, one_time: 10, signed_age: ^age}
           ] =
             for(
               {_, measurements, metadata} <- events(events, [:prekeys, :total]),
               do: Map.merge(measurements, metadata)
             )

    assert ["anna", "ben", "cleo"] =
             for(
               {_, %{count: 1, kyber_count: 1}, %{user_id: user, result: :ok}} <-
                 events(events, [:prekeys, :rotate, :stop]),
               do: user
             )

    assert [{_, %{count: 2, signed_count: 0, base_keys: 0}, _}] =
             events(events, [:prekeys, :purge])

    assert [{_, %{skipped_keys: 0, recoveries: 0, messages: 0}, _}] =
             events(events, [:sessions, :purge])

    assert [
             {_, %{count: 1, age: ^age}, %{user_id: "anna", peer_id: "ben"}},
             {_, %{count: 1, age: ^age}, %{user_id: "anna", peer_id: "cleo"}}
           ] = events(events, [:sessions, :expire])

    assert [{_, %{size: size}, %{result: :ok, emptied: true}}] =
             events(events, [:sqlite, :checkpoint])

    assert size > 0

    Kith.maintain!(kith)
    events = received(kith)
    assert [] = events(events, [:prekeys, :stock])
    assert [] = events(events, [:prekeys, :rotate, :stop])
    assert [] = events(events, [:sqlite, :checkpoint])
  end

  test "what another node does is told as not claimed", %{kith: kith} do
    sql!(
      kith,
      "INSERT INTO signal_maintenance (task, claimed_by, claimed_until) VALUES ('purge', 'other', $1)",
      [
        System.system_time(:millisecond) + 60_000
      ]
    )

    Kith.maintain!(kith)

    assert [:purge] =
             for(
               {_, _, %{task: task, claimed: false}} <-
                 events(received(kith), [:maintenance, :run, :stop]),
               do: task
             )
  end

  test "the archive says how much it showed, what it answered a second time and what it shredded",
       %{kith: kith} do
    register!(kith, ~w(anna ben))
    [envelope] = Kith.encrypt!(kith, "anna", "ben", "hello")
    "hello" = Kith.decrypt!(kith, "ben", envelope)
    received(kith)

    "hello" = Kith.decrypt!(kith, "ben", envelope)
    events = received(kith)

    assert [
             {_, %{count: 1},
              %{
                user_id: "ben",
                device_id: 1,
                peer_id: "anna",
                peer_device_id: 1,
                reason: :duplicate
              }}
           ] = events(events, [:archive, :redelivery])

    # To whoever called it is as the first.
    assert [{_, %{plaintext_size: 5}, %{result: :ok, reason: nil}}] =
             events(events, [:session, :decrypt, :stop])

    sql!(kith, "UPDATE signal_archived_messages SET sent_at = 1 WHERE user_id = 'ben'")
    send!(kith, "anna", "ben", "hello again")
    received(kith)
    Kith.history!(kith, "ben", {:direct, "anna"})

    assert [
             {_, %{messages: 2, damaged: 1, plaintext_size: 11},
              %{user_id: "ben", device_id: 1, result: :ok, reason: nil}}
           ] = events(received(kith), [:archive, :history, :stop])

    Kith.history(kith, "ben", {:direct, "anna"}, before: "x")

    assert [{_, %{messages: 0}, %{result: :error, reason: :malformed}}] =
             events(received(kith), [:archive, :history, :stop])

    Kith.shred!(kith, {:direct, "anna", "ben"})

    assert [{_, %{messages: 4}, %{result: :ok, reason: nil}}] =
             events(received(kith), [:archive, :shred, :stop])
  end

  test "a password's spans say how long it waited, and nothing of whose it is", %{kith: kith} do
    quick = [memory: 8_192, passes: 1]
    {:ok, hash} = Kith.Password.hash("correct horse", quick)
    true = Kith.Password.verify("correct horse", hash)
    false = Kith.Password.verify("another horse", hash)
    false = Kith.Password.dummy_verify(quick)
    {:error, _} = Kith.Password.hash("", quick)
    %{reason: :malformed} = catch_error(Kith.Password.verify("correct horse", "no hash"))
    :ok = Native.panic_arm("password_verify", 1)
    %{reason: :panic} = catch_error(Kith.Password.verify("correct horse", hash))
    events = received(kith)

    assert [{:ok, nil}, {:error, :malformed}] =
             for(
               {_, _, metadata} <- events(events, [:password, :hash, :stop]),
               do: {metadata.result, metadata.reason}
             )

    assert [
             {:ok, nil, true},
             {:ok, nil, false},
             {:ok, nil, false},
             {:error, :malformed, false},
             {:error, :panic, false}
           ] =
             for(
               {_, _, metadata} <- events(events, [:password, :verify, :stop]),
               do: {metadata.result, metadata.reason, metadata.matched}
             )

    for {_, measurements, _} <- events(events, [:password, :verify, :stop]),
        do: assert(measurements.waited in 0..measurements.duration)

    assert [{_, %{count: 1}, %{instance: nil, function: :password_verify}}] =
             events(events, [:nif, :panic])

    for {_, measurements, metadata} <- events,
        map <- [measurements, metadata],
        {_, value} <- map do
      assert is_integer(value) or is_atom(value) or is_reference(value)
    end
  end

  test "what was rolled back is not reported", %{kith: kith} do
    register!(kith, ~w(anna ben))
    received(kith)
    :ok = Native.panic_arm("session_encrypt", 1)
    {:error, %{reason: :panic}} = Kith.encrypt(kith, "anna", "ben", "hello")
    events = received(kith)
    assert [] = events(events, [:prekeys, :claim, :stop])

    assert [{_, %{count: 1}, %{instance: ^kith, function: :session_encrypt}}] =
             events(events, [:nif, :panic])

    assert [{_, _, %{result: :error, reason: :panic}}] =
             events(events, [:session, :encrypt, :stop])

    assert Kith.prekey_count!(kith, "ben") == 5
  end

  test "a prekey that was given back was not claimed", %{kith: kith} do
    register!(kith, ~w(anna ben eve))
    Kith.trust!(kith, "anna", "ben", identity_key: Kith.pre_key_bundle!(kith, "eve").identity_key)
    received(kith)
    {:error, %{reason: :untrusted_identity}} = Kith.encrypt(kith, "anna", "ben", "hello")
    events = received(kith)
    assert [] = events(events, [:prekeys, :claim, :stop])

    assert [{_, %{sessions: 0}, %{result: :error, reason: :untrusted_identity}}] =
             events(events, [:session, :establish, :stop])
  end

  test "start and stop share a context, and an exception hides what the function was called with",
       %{kith: kith} do
    metadata = start_metadata(kith, [:kith, :session, :encrypt])

    error =
      catch_error(
        Telemetry.span([:kith, :session, :encrypt], metadata, fn ->
          String.to_integer("secret words")
        end)
      )

    assert error == :badarg
    assert [{_, _, start}, {_, %{duration: _}, exception}] = received(kith)
    assert start.telemetry_span_context == exception.telemetry_span_context
    assert exception.kind == :error
    assert exception.reason == :badarg
    refute inspect(exception) =~ "secret"
  end

  test "nothing but ids, numbers and atoms is in any event", %{kith: kith} do
    register!(kith, ~w(anna ben))
    received(kith)
    for _ <- 1..3, do: send!(kith, "anna", "ben", "secret words")
    send!(kith, "ben", "anna", "secret words")
    encrypt_one!(kith, "anna", "anna", "secret words")
    Kith.history!(kith, "anna", {:direct, "ben"})

    for {_, measurements, metadata} <- received(kith),
        map <- [measurements, metadata],
        {_, value} <- map do
      assert is_integer(value) or is_atom(value) or is_reference(value) or
               value in ["anna", "ben"]
    end
  end

  test "without the library everything works and nothing is emitted", %{kith: kith} do
    :persistent_term.put(Telemetry, false)
    on_exit(fn -> Telemetry.detect() end)
    register!(kith, ~w(anna ben))
    assert send!(kith, "anna", "ben", "hello") == "hello"

    assert [{{"ben", 1}, {:ok, _}}] =
             Kith.encrypt_group!(kith, "anna", ["ben"], "hello", thread: "t")

    assert received(kith) == []
  end

  test "a handler that uses the instance does not wait for itself", %{kith: kith} do
    register!(kith, ~w(anna ben))
    test = self()

    :ok =
      :telemetry.attach(
        "counting",
        [:kith, :prekeys, :claim, :stop],
        &__MODULE__.count/4,
        test
      )

    on_exit(fn -> :telemetry.detach("counting") end)
    encrypt_one!(kith, "anna", "ben", "x")
    assert_received {:counted, count} when count in 4..5
  end

  # It is called when the transaction is over, which nothing begins anew then.
  test "a handler may open what a key service has to open first" do
    kms = Kith.Test.KMSProcess.start!(tmp_dir!())
    source = {:kms, url: Kith.Test.KMSProcess.url(kms), timeout: 20_000}
    kith = start_kith!(keys: [current: {"kms", source}])
    register!(kith, ~w(anna ben cleo))
    instance = Kith.Instance.fetch!(kith)
    cleo = {"cleo", Kith.Store.Accounts.data_key(instance.repo, "cleo")}
    claim = [:kith, :prekeys, :claim, :stop]
    :ok = :telemetry.attach("sealing", claim, &__MODULE__.seal/4, {self(), instance, cleo})
    on_exit(fn -> :telemetry.detach("sealing") end)

    :ok = Native.kms_forget(instance.vault)
    assert send!(kith, "anna", "ben", "x") == "x"
    assert_received {:sealed, {:ok, _}}
    refute_received {:sealed, _}
    assert "sealing" in for(%{id: id} <- :telemetry.list_handlers(claim), do: id)
  end

  defp use_keys_of_services(kith) do
    {:ok, key, seed} = Kith.Test.SignedClient.register(kith, "till")
    {:ok, message} = Kith.Signed.verify(kith, request(key, seed), audience: "orders")
    {:error, _} = Kith.Signed.verify(kith, %{}, audience: "orders")
    {:ok, _} = Kith.Signed.sign(kith, "answer", reply_to: message)
    {:ok, sealed} = Kith.ClientKey.seal(kith, message, "x", info: "file")
    {:ok, "x"} = Kith.ClientKey.open(kith, message, sealed, info: "file")
    export_key = Kith.Signed.Export.key!({"k", {:key, <<7::256>>}})
    export = Enum.to_list(Kith.Signed.Export.stream(["row"], export_key, purpose: "orders"))
    {:ok, %{rows: 1}} = Kith.Signed.Export.verify(export, export_key, purpose: "orders")
  end

  defp request(key, seed),
    do: Kith.Test.SignedClient.envelope(key.id, seed, "payload", audience: "orders")

  test "a verified message's span says its size and the key, a refused one's why", %{kith: kith} do
    {:ok, key, seed} = Kith.Test.SignedClient.register(kith, "till")
    envelope = request(key, seed)
    {:ok, _} = Kith.Signed.verify(kith, envelope, audience: "orders")
    {:error, _} = Kith.Signed.verify(kith, envelope, audience: "orders")

    {:error, _} =
      Kith.Signed.verify(kith, %{envelope | "public_key_id" => String.duplicate("0", 32)},
        audience: "orders"
      )

    id = key.id

    assert [{7, ^id, nil}, {0, ^id, :duplicate}, {0, nil, :key_not_found}] =
             for(
               {_, measurements, metadata} <-
                 events(received(kith), [:signed, :verify, :stop]),
               do: {measurements.payload_size, metadata.key_id, metadata.reason}
             )
  end

  defp back_up_and_restore(kith) do
    {:ok, key} = Kith.Backup.RecoveryKey.generate()
    {:ok, backup} = Kith.Backup.export(kith, "ben", key)
    backup = Enum.to_list(backup)
    {:ok, _} = Kith.Backup.verify(kith, backup, key)
    {:error, _} = Kith.Backup.restore(kith, "ben", backup, key)
    {:ok, _} = Kith.Backup.restore(kith, "ben", backup, key, replace: true)
    service_key = {"escrow", {:key, <<7::256>>}}
    {:ok, _} = Kith.Backup.Escrow.deposit(kith, "ben", key, service_key, by: "ben", text: "1")

    {:ok, _} = Kith.Backup.Escrow.unwrap(kith, "ben", service_key, by: "admin", purpose: "a test")
  end

  defp raise_and_clear_an_alert(kith) do
    wrong = :atomics.new(1, [])
    :atomics.put(wrong, 1, 1)
    check = fn _snapshot -> if :atomics.get(wrong, 1) == 1, do: "all is wrong" end
    rules = for({rule, _} <- Kith.Monitor.rules(), do: {rule, false}) ++ [own: [check: check]]
    quiet = [health_interval: :off, clear_after: 0, log: false]
    start_supervised!({Kith.Monitor, [instance: kith, rules: rules] ++ quiet})
    assert [%{rule: :own}] = Kith.Monitor.alerts(kith)
    :atomics.put(wrong, 1, 0)
    assert [] = Kith.Monitor.alerts(kith)
  end

  test "a check of health says what is wrong with what, and how long each took", %{kith: kith} do
    Kith.health!(kith)
    register!(kith, ["anna"])
    :ok = Native.panic_arm("self_open", 1)
    Kith.health!(kith)
    sql!(kith, "ALTER TABLE signal_accounts RENAME TO accounts_of_before")
    Kith.health!(kith)
    checks = events(received(kith), [:health, :check])

    assert [
             {%{store: 1, vault: 1}, %{result: :ok, reason: nil}},
             {%{store: 1, vault: 0}, %{result: :error, reason: :panic, store_reason: nil}},
             {%{store: 0, vault: 1}, %{store_reason: :storage, vault_reason: nil}}
           ] = for({_, measurements, metadata} <- checks, do: {measurements, metadata})

    for {_, m, _} <- checks, do: assert(m.duration == m.store_duration + m.vault_duration)
  end

  defp attach(events) do
    id = make_ref()
    :ok = :telemetry.attach_many(id, events, &__MODULE__.forward/4, self())
    on_exit(fn -> :telemetry.detach(id) end)
  end

  def forward(event, measurements, metadata, pid),
    do: send(pid, {:event, event, measurements, metadata})

  def seal(_event, _measurements, _metadata, {pid, instance, account}),
    do: send(pid, {:sealed, Kith.Instance.sealed(instance, :self_seal, [account, "x"])})

  def count(_event, _measurements, %{instance: instance, user_id: user}, pid),
    do: send(pid, {:counted, Kith.prekey_count!(instance, user)})

  defp upgrade_a_table do
    vault = Kith.Test.Vaults.vault!(ciphers: [a: {Kith.Vault, id: "a", key: <<7::256>>}])
    {:error, _} = vault.decrypt("no field")
    start_supervised!({Kith.SQLite, path: :memory, name: __MODULE__})
    database = Kith.SQLite.handle(__MODULE__)

    {:ok, _} =
      Kith.SQLite.query(database, "CREATE TABLE users (id INTEGER PRIMARY KEY, email BLOB)")

    {:ok, _} = Kith.SQLite.query(database, "INSERT INTO users VALUES (1, NULL)")
    table = [table: "users", primary_key: ["id"], fields: [email: {vault, :binary}]]
    {:ok, %{empty: 1}} = Kith.Vault.Migrator.run(database, table)
  end

  # An instance of its own, whose service ends so that the fallback is used.
  defp with_a_key_service do
    folder = tmp_dir!()
    {:ok, state} = Kith.KMS.Reference.open(Path.join(folder, "keys"))
    socket = Path.join(folder, "kms.sock")
    service = [service: {Kith.KMS.Reference, state}, socket: socket]
    start_supervised!({Kith.KMS.Server, service}, id: :kms)
    local = {"local", {:key, <<1::256>>}}
    source = {:kms, url: "unix://" <> socket, fallback: "local", timeout: 60_000}
    kith = start_kith!(keys: [current: {"kms", source}, retired: [local]])
    Kith.health!(kith)
    register!(kith, ["anna"])
    stop_supervised!(:kms)
    ExUnit.CaptureLog.capture_log(fn -> register!(kith, ["ben"]) end)

    for {[:kith, :kms | _], _, _} = event <- received(kith), do: event
  end

  defp received(kith) do
    receive do
      {:event, event, measurements, %{instance: ^kith} = metadata} ->
        [{event, measurements, metadata} | received(kith)]

      # They are of no instance.
      {:event, [:kith, part | _] = event, measurements, metadata}
      when part in [:password, :vault, :export] ->
        [{event, measurements, metadata} | received(kith)]

      {:event, event, measurements, %{instance: nil} = metadata} ->
        [{event, measurements, metadata} | received(kith)]
    after
      0 -> []
    end
  end

  defp events(events, name), do: Enum.filter(events, &(elem(&1, 0) == [:kith | name]))

  defp start_metadata(kith, event) do
    {_, keys} = contract()[event ++ [:start]]
    for key <- keys, into: %{}, do: {key, if(key == :instance, do: kith)}
  end

  # The table of the moduledoc: %{event => {measurements, metadata}}, where "the same" is that of :start.
  defp contract do
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Telemetry)

    for [_, event, measurements, metadata] <-
          Regex.scan(~r/^\| `\[([^\]]+)\]` \| ([^|]+) \| ([^|]+) \|$/m, moduledoc),
        reduce: %{} do
      contract ->
        event = for ":" <> name <- String.split(event, ", "), do: String.to_atom(name)
        own = names(metadata)

        inherited =
          if metadata =~ "the same",
            do: contract |> Map.fetch!(List.replace_at(event, -1, :start)) |> elem(1),
            else: []

        Map.put(contract, event, {Enum.sort(names(measurements)), Enum.sort(own ++ inherited)})
    end
  end

  defp names(cell), do: for([_, name] <- Regex.scan(~r/`(\w+)`/, cell), do: String.to_atom(name))
end
