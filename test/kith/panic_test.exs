defmodule Kith.PanicTest do
  # Arms panics by the name of the NIF, which others call too.
  use ExUnit.Case, async: false

  alias Kith.{ChildVM, Native}

  @panics 1_000
  @cheap {64, 1, 1}
  @limits %{keys: 16, lifetime: 1_000, concurrency: 4}
  @place %{position: 1, message_id: <<0::128>>, sender: {"bob", 1}, sent_at: 1, expires_at: nil}
  @password_hash "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"
  @ciphers [{"a", {:kith, "2026", "", 0}, {:key, <<7::256>>}}]
  @unknown %{generation: 0, state: nil, braid: nil, identity: nil, sibling: nil}

  setup do
    {:ok, vault} =
      Native.vault_open(
        "test",
        [{"test", {:key, :crypto.strong_rand_bytes(32)}}],
        @limits,
        :aes_256_gcm
      )

    {:ok, database} = Native.sqlite_open(:memory, :full, 0)
    {:ok, lease} = Native.sqlite_reset(database)
    {:ok, field_vault} = Native.field_vault_open("a", @ciphers)
    {:ok, lookup_key} = Native.lookup_open({:key, "secret"})
    {:ok, thread_key} = Native.thread_create(vault, "thread")
    {:ok, signing_key} = Native.service_key_create(vault, :signing, nil)
    {:ok, agreement_key} = Native.service_key_create(vault, :agreement, nil)
    {:ok, mac_key} = Native.mac_key_open({:key, <<7::256>>})
    {alice, bob} = {device(vault, "alice"), device(vault, "bob")}
    {:ok, recovery_key} = Native.recovery_key_generate(:twelve)
    secret = {:recovery_key, recovery_key}
    {:ok, {writer, backup_header}} = Native.backup_create(secret, {19_456, 2, 1})
    {:ok, reader} = Native.backup_open(backup_header, secret)
    {:ok, {locked, unlocked}} = Native.account_lock(vault, "alice", "password", @cheap)
    {:ok, {_, other}} = Native.account_lock(vault, "alice", "password", @cheap)
    {:ok, {token, _}} = Native.account_token(vault, "alice", unlocked, 1)
    {:ok, retired} = Native.account_retire(vault, alice.account, {"alice", unlocked})

    on_exit(fn -> for {nif, _arity} <- nifs(), do: :ok = Native.panic_arm("#{nif}", 0) end)

    %{
      vault: vault,
      database: database,
      lease: lease,
      account: alice.account,
      recovery_key: recovery_key,
      writer: writer,
      backup_header: backup_header,
      reader: reader,
      locked: locked,
      unlocked: unlocked,
      other_unlocked: other,
      token: token,
      retired: retired,
      thread: {"thread", thread_key},
      field_vault: field_vault,
      lookup_key: lookup_key,
      signing_key: signing_key,
      agreement_key: agreement_key,
      mac_key: mac_key,
      alice: alice,
      bob: bob,
      identity_key_pair: elem(Kith.Case.identity_key_pair(), 0),
      first_message: first_message(vault, alice, bob)
    }
  end

  # One call for each NIF, so that the panic comes after real work.
  defp call(:reasons, _), do: Native.reasons()
  defp call(:panic_location, _), do: Native.panic_location()

  defp call(:vault_open, _),
    do: Native.vault_open("test", [{"test", {:key, <<7::256>>}}], @limits, :aes_256_gcm)

  defp call(:account_create, c), do: Native.account_create(c.vault, "alice")
  defp call(:self_seal, c), do: Native.self_seal(c.vault, c.account, "plaintext")
  defp call(:self_open, c), do: Native.self_open(c.vault, c.account, "sealed")
  defp call(:thread_create, c), do: Native.thread_create(c.vault, "thread")

  defp call(:account_lock, c), do: Native.account_lock(c.vault, "alice", "password", @cheap)

  defp call(:account_relock, c),
    do: Native.account_relock(c.vault, "alice", c.unlocked, "password", @cheap)

  defp call(:account_unlock, c), do: Native.account_unlock(c.vault, "alice", c.locked, "password")
  defp call(:account_costs, c), do: Native.account_costs(c.vault, "alice", c.locked)
  defp call(:account_close, c), do: Native.account_close(c.other_unlocked)
  defp call(:account_wrap, c), do: Native.account_wrap(c.vault, "alice", c.unlocked)
  defp call(:account_token, c), do: Native.account_token(c.vault, "alice", c.unlocked, 1)
  defp call(:account_open_token, c), do: Native.account_open_token(c.vault, "alice", c.token)

  defp call(:account_rewrap, c),
    do: Native.account_rewrap(c.vault, "alice", elem(c.account, 1))

  defp call(:account_lock_anew, c),
    do: Native.account_lock_anew(c.vault, "alice", c.locked)

  defp call(:account_same_lock, c),
    do: Native.account_same_lock(c.vault, "alice", c.locked, c.locked)

  defp call(:account_retire, c),
    do: Native.account_retire(c.vault, c.account, {"alice", c.unlocked})

  defp call(:account_retired, %{retired: {id, sealed}} = c),
    do: Native.account_retired(c.vault, {"alice", c.unlocked}, id, sealed)

  defp call(:thread_rewrap, c), do: Native.thread_rewrap(c.vault, "thread", elem(c.thread, 1))

  defp call(:rows_reseal, c) do
    rows = [{"kind", ["alice", 1], ["alice", 2], "not sealed"}, :no_row]
    Native.rows_reseal(c.vault, c.account, {"alice", c.unlocked}, rows)
  end

  defp call(:kms_fetch, c), do: Native.kms_fetch(c.vault, :account, c.account)
  defp call(:kms_prepare, c), do: Native.kms_prepare(c.vault, :account, "alice", true)
  defp call(:kms_probe, c), do: Native.kms_probe(c.vault)
  defp call(:kms_sweep, c), do: Native.kms_sweep(c.vault)
  defp call(:kms_forget, c), do: Native.kms_forget(c.vault)
  defp call(:vault_memory, c), do: Native.vault_memory(c.vault)
  defp call(:wrapped_key_inspect, c), do: Native.wrapped_key_inspect(elem(c.account, 1))
  # With the cost of a real one a thousand would take minutes.
  defp call(:passphrase_create, _), do: Native.passphrase_create({:env, "HOME"}, {8, 1, 1})

  defp call(:archive_seal, c),
    do: Native.archive_seal(c.vault, c.thread, c.account, {"alice", 1}, @place, "content")

  defp call(:archive_open, c) do
    rows = [{@place, "not sealed"}, :no_row]
    Native.archive_open(c.vault, c.thread, nil, {"alice", 1}, rows)
  end

  defp call(:archive_reseal, c) do
    rows = [{{"alice", 1}, @place, "not sealed"}, :no_row]
    accounts = {nil, {"alice", c.unlocked}}
    Native.archive_reseal(c.vault, c.thread, accounts, rows)
  end

  defp call(:thread_reseal, c) do
    rows = [{{"alice", 1}, @place, "not sealed"}, :no_row]
    Native.thread_reseal(c.vault, c.thread, c.thread, rows)
  end

  defp call(:field_vault_open, _), do: Native.field_vault_open("a", @ciphers)
  defp call(:field_encrypt, c), do: Native.field_encrypt(c.field_vault, nil, ["a"], "text")

  defp call(:field_encrypt_long, c),
    do: Native.field_encrypt_long(c.field_vault, nil, nil, "text")

  defp call(:field_decrypt, c), do: Native.field_decrypt(c.field_vault, nil, false, "field")

  defp call(:field_decrypt_long, c),
    do: Native.field_decrypt_long(c.field_vault, nil, true, "field")

  defp call(:field_inspect, c), do: Native.field_inspect(c.field_vault, "field")
  defp call(:lookup_open, _), do: Native.lookup_open({:key, "secret"})
  defp call(:lookup_hmac, c), do: Native.lookup_hmac(c.lookup_key, :sha256, "value")
  defp call(:lookup_pbkdf2, c), do: Native.lookup_pbkdf2(c.lookup_key, :sha256, "value", 1, nil)

  defp call(:password_hash, _), do: Native.password_hash("password", {8, 1, 1})
  defp call(:password_verify, _), do: Native.password_verify("password", @password_hash)
  defp call(:password_inspect, _), do: Native.password_inspect(@password_hash)
  defp call(:service_key_create, c), do: Native.service_key_create(c.vault, :signing, nil)

  defp call(:service_key_rewrap, c),
    do: Native.service_key_rewrap(c.vault, :signing, c.signing_key)

  defp call(:signature_create, c), do: Native.signature_create(c.vault, c.signing_key, "message")

  defp call(:signature_verify, %{signing_key: {public_key, _}}),
    do: Native.signature_verify(public_key, "message", <<0::512>>)

  defp call(:client_seal, c) do
    Native.client_seal(c.vault, c.agreement_key, client(c), {:aes_256_gcm, nil, "info"}, "", "x")
  end

  defp call(:client_open, c) do
    purpose = {:chacha20_poly1305, "salt", "info"}
    Native.client_open(c.vault, c.agreement_key, client(c), purpose, "", "sealed")
  end

  defp call(:client_public_key, %{signing_key: {public_key, _}}),
    do: Native.client_public_key({:ed25519, public_key})

  defp call(:mac_key_open, _), do: Native.mac_key_open({:key, <<7::256>>})
  defp call(:mac_create, c), do: Native.mac_create(c.mac_key, "message")
  defp call(:mac_verify, c), do: Native.mac_verify(c.mac_key, "message", <<0::256>>)
  defp call(:recovery_key_generate, _), do: Native.recovery_key_generate(:twelve)
  defp call(:recovery_key_words, c), do: Native.recovery_key_words(c.recovery_key)
  defp call(:recovery_key_parse, _), do: Native.recovery_key_parse("legal winner")
  defp call(:recovery_key_split, c), do: Native.recovery_key_split(c.recovery_key, 2, 2)
  defp call(:recovery_key_combine, _), do: Native.recovery_key_combine(["share"])
  defp call(:escrow_public, _), do: Native.escrow_public("key", {:key, <<7::256>>})
  defp call(:escrow_seal, c), do: Native.escrow_seal(<<9::256>>, ["alice"], c.recovery_key)

  defp call(:escrow_open, _),
    do: Native.escrow_open("key", {:key, <<7::256>>}, ["alice"], "wrapped")

  defp call(:backup_create, c),
    do: Native.backup_create({:recovery_key, c.recovery_key}, {19_456, 2, 1})

  # Of one that has ended, as after a panic in the middle.
  defp call(:backup_write, c), do: Native.backup_write(c.writer, c.vault, c.account, [])
  defp call(:backup_finish, c), do: Native.backup_finish(c.writer)

  defp call(:backup_open, c),
    do: Native.backup_open(c.backup_header, {:recovery_key, c.recovery_key})

  defp call(:backup_read, c), do: Native.backup_read(c.reader, "bytes")
  defp call(:backup_seal, c), do: Native.backup_seal(c.reader, c.vault, c.account, [])
  defp call(:backup_drop, c), do: Native.backup_drop(c.reader)

  defp call(:sqlite_open, _), do: Native.sqlite_open(:memory, :full, 0)
  defp call(:sqlite_reset, c), do: Native.sqlite_reset(c.database)
  defp call(:sqlite_commit, c), do: Native.sqlite_commit(c.database, c.lease)
  defp call(:sqlite_rollback, c), do: Native.sqlite_rollback(c.database, c.lease)
  defp call(:sqlite_checkpoint, c), do: Native.sqlite_checkpoint(c.database, c.lease)
  defp call(:sqlite_close, c), do: Native.sqlite_close(c.database)

  defp call(:sqlite_query, c),
    do: Native.sqlite_query(c.database, c.lease, :single, "SELECT $1", [1])

  defp call(:sqlite_execute, c),
    do: Native.sqlite_execute(c.database, c.lease, :single, "SELECT 1; SELECT 2")

  defp call(:identity_create, c), do: Native.identity_create(c.vault, c.account, 1)

  defp call(:identity_import, c),
    do: Native.identity_import(c.vault, c.account, 1, c.identity_key_pair)

  defp call(:identity_share, %{alice: alice} = c),
    do: Native.identity_share(c.vault, c.account, 2, {1, alice.local.identity})

  defp call(:signed_prekey_create, %{alice: alice} = c),
    do: Native.signed_prekey_create(c.vault, c.account, 1, alice.local.identity, 1)

  defp call(:prekeys_create, c), do: Native.prekeys_create(c.vault, c.account, 1, 1, 1)

  defp call(:kyber_prekeys_create, %{alice: %{local: local}} = c) do
    Native.kyber_prekeys_create(c.vault, c.account, 1, local.identity, :kyber_one_time, {1, 1})
  end

  defp call(:bundle_verify, c), do: Native.bundle_verify(c.bob.bundle, [])

  defp call(:session_encrypt, %{alice: alice, bob: bob} = c),
    do: Native.session_encrypt(c.vault, c.account, alice.local, [recipient(bob)], "hello", 0)

  defp call(:session_decrypt, %{bob: bob} = c),
    do: Native.session_decrypt(c.vault, bob.account, bob.local, peer(bob), c.first_message)

  defp call(:session_info, %{bob: bob} = c),
    do: Native.session_info(c.vault, bob.account, {"bob", 1}, peer(bob), 0)

  defp call(:session_archive, %{bob: bob} = c),
    do: Native.session_archive(c.vault, bob.account, {"bob", 1}, peer(bob))

  defp call(:session_import, %{bob: bob} = c),
    do: Native.session_import(c.vault, bob.account, bob.local, peer(bob), "record")

  defp call(:message_inspect, %{first_message: {type, body}}),
    do: Native.message_inspect(type, body)

  defp call(:report_create, c), do: Native.report_create(c.first_message, 1, 1)
  defp call(:report_parse, _), do: Native.report_parse("content")

  defp call(:identity_seal, %{bob: bob} = c),
    do: Native.identity_seal(c.vault, c.account, {"alice", 1}, {"bob", 1}, {bob.public, true, 4})

  defp call(:identity_open, c),
    do: Native.identity_open(c.vault, c.account, {"alice", 1}, {"bob", 1}, "sealed")

  defp call(:safety_number, %{alice: alice, bob: bob}),
    do: Native.safety_number("alice", alice.public, "bob", bob.public)

  defp call(:safety_number_matches, %{alice: alice, bob: bob}),
    do: Native.safety_number_matches("alice", alice.public, "bob", bob.public, "scanned")

  defp call(nif, _context) do
    flunk("""
    Kith.Native.#{nif} has no call in #{Path.relative_to_cwd(__ENV__.file)}. Add one above, with any \
    arguments of the right types, so that its panics are tested.\
    """)
  end

  defp client(%{agreement_key: {public_key, _}}), do: {:x25519, public_key}

  # What arms the others does not run inside what it tests.
  defp nifs, do: Native.module_info(:nifs) -- [panic_arm: 2]

  test "#{@panics} panics in every kind of call are errors, and the call then works", context do
    for {nif, _arity} <- nifs() do
      assert Native.panic_arm("#{nif}", @panics) == :ok

      for _ <- 1..@panics do
        assert call(nif, context) == {:error, :panic}
      end

      assert call(nif, context) != {:error, :panic}, "#{nif} panics by itself"
    end
  end

  test "panics in several processes at once are errors", context do
    nifs = nifs() -- [sqlite_close: 1, panic_location: 0]
    for {nif, _arity} <- nifs, do: :ok = Native.panic_arm("#{nif}", 200)

    panics =
      1..4
      |> Task.async_stream(
        fn _ -> for _ <- 1..50, {nif, _arity} <- nifs, do: call(nif, context) end,
        timeout: :infinity
      )
      |> Enum.flat_map(fn {:ok, answers} -> answers end)
      |> Enum.count(&(&1 == {:error, :panic}))

    assert panics == 200 * length(nifs)
  end

  test "a vault, a session and a database are as good as before", context do
    %{vault: vault, account: account, database: database} = context
    {:ok, sealed} = Native.self_seal(vault, account, "diary")
    query = &Native.sqlite_query(database, &1, :single, &2, [])
    {:ok, _} = query.(context.lease, "CREATE TABLE notes (id INTEGER)")

    for {nif, _arity} <- nifs() -- [sqlite_close: 1] do
      :ok = Native.panic_arm("#{nif}", 3)
      for _ <- 1..3, do: {:error, :panic} = call(nif, context)
    end

    assert {:ok, %{plaintext: "hello"}} = call(:session_decrypt, context)
    assert {:ok, "diary"} = Native.self_open(vault, account, sealed)
    {:ok, lease} = Native.sqlite_reset(database)
    assert {:ok, %{num_rows: 1}} = query.(lease, "INSERT INTO notes VALUES (1)")
  end

  test "a panic inside a transaction rolls it back and frees the database" do
    db = start_database()

    assert {:error, :rollback} =
             Kith.SQLite.transaction(db, fn ->
               {:ok, _} = Kith.SQLite.query(db, "INSERT INTO notes VALUES (1)")
               :ok = Native.panic_arm("sqlite_query", 1)

               assert {:error, %Kith.SQLite.Error{kind: :panic}} =
                        Kith.SQLite.query(db, "INSERT INTO notes VALUES (2)")
             end)

    assert {:ok, %{rows: []}} = Kith.SQLite.query(db, "SELECT * FROM notes")
  end

  test "a panic in a commit or a rollback leaves no transaction behind" do
    db = start_database()

    for {nif, expected} <- [{"sqlite_commit", :error}, {"sqlite_rollback", :error}] do
      :ok = Native.panic_arm(nif, 1)

      assert {^expected, _} =
               Kith.SQLite.transaction(db, fn ->
                 {:ok, _} = Kith.SQLite.query(db, "INSERT INTO notes VALUES (1)")
                 if nif == "sqlite_rollback", do: Kith.SQLite.rollback(db, :no)
               end)

      assert {:ok, :ok} =
               Kith.SQLite.transaction(db, fn ->
                 {:ok, _} = Kith.SQLite.query(db, "DELETE FROM notes")
                 :ok
               end)
    end
  end

  test "a panic prints nothing, keeps nothing of its text and says where it was" do
    child = """
    :ok = Kith.Native.panic_arm("reasons", 2)
    {:error, :panic} = Kith.Native.reasons()
    {:error, :panic} = Kith.Native.reasons()
    {:ok, [_ | _]} = Kith.Native.reasons()
    {:ok, place} = Kith.Native.panic_location()
    IO.puts("alive after a panic at " <> place)
    """

    assert {output, 0} = ChildVM.run(child)
    assert output =~ ~r{\Aalive after a panic at kith_nif/src/seam\.rs:\d+\n\z}
  end

  @tag timeout: 600_000
  test "a library that aborts on panic refuses to be loaded" do
    child = """
    IO.puts(Exception.message(try do
      Kith.Native.reasons()
    rescue
      error in Kith.NifNotLoadedError -> error
    end))
    """

    assert {output, 0} = ChildVM.run(child, library: aborting_library())
    assert output =~ ~s(it must be built with panic = "unwind")

    # The same VM with the library of the tests, so that it is the library that made the difference.
    assert {output, 0} = ChildVM.run("{:ok, [_ | _]} = Kith.Native.reasons(); IO.puts(:loaded)")
    assert output == "loaded\n"
  end

  # Only the last crate is built to abort: rustler itself does not compile so. The result is kept
  # until the library changes, because cargo keeps one build of the two.
  defp aborting_library do
    installed = File.read!(ChildVM.installed_library())
    name = Base.encode16(:crypto.hash(:sha256, installed), case: :lower)
    kept = Path.join([Mix.Project.build_path(), "panic_abort", name <> ".so"])

    if not File.exists?(kept) do
      target = System.get_env("CARGO_TARGET_DIR") || Path.expand("target")

      arguments =
        ~w(rustc --locked --quiet --package kith_nif --lib --profile inject) ++
          ~w(--features panic_injection --target-dir #{target} -- -C panic=abort)

      assert {"", 0} = System.cmd("cargo", arguments, stderr_to_stdout: true)
      built = File.read!(Path.join(target, "inject/libkith_nif.so"))
      assert built != installed

      File.rm_rf!(Path.dirname(kept))
      File.mkdir_p!(Path.dirname(kept))
      File.write!(kept, built)
    end

    kept
  end

  defp start_database do
    pid = start_supervised!({Kith.SQLite, path: :memory})
    db = Kith.SQLite.handle(pid)
    :ok = Kith.SQLite.execute(db, "CREATE TABLE notes (id INTEGER)")
    db
  end

  defp device(vault, user) do
    {:ok, data_key} = Native.account_create(vault, user)
    account = {user, data_key}
    {:ok, {public, identity, registration_id}} = Native.identity_create(vault, account, 1)
    {:ok, signed} = Native.signed_prekey_create(vault, account, 1, identity, 1)
    {:ok, [{2, prekey, sealed_prekey}]} = Native.prekeys_create(vault, account, 1, 2, 1)
    {1, signed_prekey, signature, sealed_signed_prekey} = signed

    {:ok, [{3, kyber_prekey, kyber_signature, sealed_kyber_prekey}]} =
      Native.kyber_prekeys_create(vault, account, 1, identity, :kyber_one_time, {3, 1})

    %{
      user: user,
      account: account,
      public: public,
      local: %{
        device: 1,
        registration_id: registration_id,
        identity: identity,
        minimum_version: 4
      },
      sealed: %{
        prekey: sealed_prekey,
        signed_prekey: sealed_signed_prekey,
        kyber_prekey: {:kyber_one_time, sealed_kyber_prekey}
      },
      bundle: %{
        registration_id: registration_id,
        identity_key: public,
        signed_prekey: {1, signed_prekey, signature},
        prekey: {2, prekey},
        kyber_prekey: {3, kyber_prekey, kyber_signature}
      }
    }
  end

  defp recipient(%{user: user, bundle: bundle}),
    do: Map.merge(@unknown, %{user: user, device: 1, bundle: bundle})

  # What bob has stored about alice, of whom he has not heard.
  defp peer(bob) do
    @unknown
    |> Map.merge(%{user: "alice", device: 1, archive: [], entries: [], chunks: []})
    |> Map.merge(bob.sealed)
  end

  defp first_message(vault, alice, bob) do
    {:ok, [{:ok, %{type: type, body: body}}]} =
      Native.session_encrypt(vault, alice.account, alice.local, [recipient(bob)], "hello", 0)

    {type, body}
  end
end
