defmodule Kith.BackupTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.{Backup, Error}
  alias Kith.Backup.RecoveryKey

  @quick [memory: 19_456, passes: 2, parallelism: 1]
  @passphrase {:passphrase, "correct horse battery"}

  @few [archive: true, one_time_prekeys: 3, one_time_kyber_prekeys: 2, replenish_below: 0]

  defp start!(options \\ []), do: start_kith!(Keyword.merge(@few, options))

  defp key! do
    {:ok, key} = RecoveryKey.generate()
    key
  end

  defp export!(kith, user, secret, options \\ []) do
    {:ok, stream} = Backup.export(kith, user, secret, Keyword.merge(@quick, options))
    stream |> Enum.to_list() |> IO.iodata_to_binary()
  end

  # Where others are who have their keys elsewhere, too.
  defp elsewhere!(kith, options \\ []) do
    key = Base.encode64(:crypto.hash(:sha256, inspect(kith)))
    path = Path.join(tmp_dir!(), "other.key")
    File.write!(path, key)
    File.chmod!(path, 0o600)
    start!(Keyword.merge([keys: [current: {"other", {:file, path}}]], options))
  end

  # Ben lives on another server than anna does: each knows the public keys of the other.
  defp apart! do
    {home, away} = {start!(), start!()}
    register!(home, ["anna"])
    register!(away, ["ben"])
    acquaint!(home, away)
    {home, away}
  end

  defp acquaint!(home, away) do
    Kith.publish_bundle!(home, "ben", Kith.pre_key_bundle!(away, "ben"))
    Kith.publish_bundle!(away, "anna", Kith.pre_key_bundle!(home, "anna"))
  end

  defp pass!(from_kith, from, to_kith, to, text) do
    [envelope] = Kith.encrypt!(from_kith, from, to, text)
    assert Kith.decrypt!(to_kith, to, envelope) == text
    envelope
  end

  defp texts(kith, user, thread),
    do: for(message <- Kith.history!(kith, user, thread).messages, do: message.plaintext)

  describe "a restored account" do
    test "goes on with a peer who noticed nothing, in new sessions, with messages both ways" do
      {home, away} = apart!()
      pass!(home, "anna", away, "ben", "hello")
      pass!(away, "ben", home, "anna", "hi")
      first = for n <- 1..3, do: pass!(home, "anna", away, "ben", "before #{n}")
      pass!(away, "ben", home, "anna", "of a chain anna knows")
      skipped = hd(Kith.encrypt!(away, "ben", "anna", "skipped before the backup"))
      pass!(away, "ben", home, "anna", "after it")

      key = key!()
      backup = export!(home, "anna", key)

      # What the backup does not know of.
      lost = for n <- 1..3, do: pass!(home, "anna", away, "ben", "since #{n}")
      late = hd(Kith.encrypt!(away, "ben", "anna", "late"))
      stop_kith!(home)

      new = elsewhere!(home)
      assert {:ok, restored} = Backup.restore(new, "anna", backup, key)
      assert %{user: "anna", devices: [1], sessions: 1, messages: 7, skipped: 0} = restored
      Kith.publish_bundle!(new, "ben", Kith.pre_key_bundle!(away, "ben"))

      assert Kith.decrypt!(new, "anna", skipped) == "skipped before the backup"
      assert Kith.decrypt!(new, "anna", late) == "late"
      envelope = pass!(new, "anna", away, "ben", "I am back")
      assert envelope.type == :prekey
      used = Enum.map(first ++ lost, &header/1)
      sent = [envelope | for(n <- 1..3, do: pass!(new, "anna", away, "ben", "on #{n}"))]
      for envelope <- sent, do: refute(header(envelope) in used)
      pass!(away, "ben", new, "anna", "welcome")
      pass!(new, "anna", away, "ben", "thanks")
    end

    test "has the identity, the verified peers and the history, sealed under other keys" do
      {home, away} = apart!()
      pass!(home, "anna", away, "ben", "hello")
      pass!(away, "ben", home, "anna", "hi")
      Kith.trust!(home, "anna", "ben", verified: true)
      Kith.encrypt_group!(home, "anna", ["ben"], "to all", thread: "family")
      number = Kith.safety_number!(home, "anna", "ben")
      assert %{identity: :remembered, verified: true} = number
      backup = export!(home, "anna", @passphrase)

      new = elsewhere!(home)
      assert {:ok, %{messages: 3}} = Backup.restore(new, "anna", backup, @passphrase)
      assert Kith.register!(new, "anna") == Kith.register!(home, "anna")
      Kith.publish_bundle!(new, "ben", Kith.pre_key_bundle!(away, "ben"))
      assert Kith.safety_number!(new, "anna", "ben") == number
      assert texts(new, "anna", {:direct, "ben"}) == ["hello", "hi"]
      assert texts(new, "anna", "family") == ["to all"]

      for table <- ~w(signal_accounts signal_threads) do
        [sealed, resealed] =
          for kith <- [home, new], do: sql!(kith, "SELECT data_key FROM #{table}")

        assert sealed -- resealed == sealed
      end
    end

    test "is one with several devices, each with sessions of its own" do
      {home, away} = apart!()
      Kith.register!(home, "anna", device: 2)
      [to_ben, to_two] = Kith.encrypt!(home, {"anna", 1}, "ben", "hello")
      assert Kith.decrypt!(away, "ben", to_ben) == "hello"
      assert Kith.decrypt!(home, {"anna", 2}, to_two, thread: {:direct, "ben"}) == "hello"
      [back] = Kith.encrypt!(home, {"anna", 2}, {"anna", 1}, "and back")
      backup = export!(home, "anna", @passphrase)
      new = elsewhere!(home)

      assert {:ok, %{devices: [1, 2], sessions: 3}} =
               Backup.restore(new, "anna", backup, @passphrase)

      assert Kith.decrypt!(new, {"anna", 1}, back) == "and back"
      assert texts(new, {"anna", 2}, {:direct, "ben"}) == ["hello"]
      [again] = Kith.encrypt!(new, {"anna", 1}, {"anna", 2}, "again")
      assert again.type == :prekey
      assert Kith.decrypt!(new, {"anna", 2}, again) == "again"
    end

    test "hands out none of the prekeys of the backup, and opens what was made from them" do
      {home, away} = {start!(one_time_prekeys: 5), start!()}
      register!(home, ["anna"])
      register!(away, ["ben"])
      bundle = Kith.pre_key_bundle!(home, "anna")
      backup = export!(home, "anna", @passphrase)
      # Handed out after the backup was made.
      since = for _ <- 1..2, do: Kith.pre_key_bundle!(home, "anna")
      ids = Enum.map([bundle | since], & &1.prekey.id)

      new = elsewhere!(home)
      {:ok, _} = Backup.restore(new, "anna", backup, @passphrase)
      Kith.Maintenance.await(new)
      assert Kith.prekey_count!(new, "anna") == 3
      handed_out = for _ <- 1..3, do: Kith.pre_key_bundle!(new, "anna").prekey.id
      assert handed_out -- ids == handed_out

      Kith.publish_bundle!(away, "anna", List.last(since))
      [first] = Kith.encrypt!(away, "ben", "anna", "a late first message")
      Kith.publish_bundle!(new, "ben", Kith.pre_key_bundle!(away, "ben"))
      assert Kith.decrypt!(new, "anna", first) == "a late first message"
      # Out of the archive.
      assert Kith.decrypt!(new, "anna", first) == "a late first message"
    end

    test "opens no first message a second time that was opened before the backup" do
      {home, away} = apart!()
      first = pass!(away, "ben", home, "anna", "hello")
      backup = export!(home, "anna", @passphrase, history: false)
      new = elsewhere!(home, prekey_grace_period: 604_800)
      {:ok, %{messages: 0}} = Backup.restore(new, "anna", backup, @passphrase)
      Kith.publish_bundle!(new, "ben", Kith.pre_key_bundle!(away, "ben"))
      assert reason(Kith.decrypt(new, "anna", first)) == :duplicate
    end

    test "has messages in threads where others have theirs, which still open" do
      kith = start!()
      register!(kith, ~w(anna ben))
      send!(kith, "anna", "ben", "hello")
      send!(kith, "ben", "anna", "hi")
      backup = export!(kith, "anna", @passphrase)
      Kith.unregister!(kith, "anna")
      keys = sql!(kith, "SELECT data_key FROM signal_threads")

      assert {:ok, %{messages: 2}} = Backup.restore(kith, "anna", backup, @passphrase)
      assert sql!(kith, "SELECT data_key FROM signal_threads") == keys
      assert texts(kith, "ben", {:direct, "anna"}) == ["hello", "hi"]
      assert texts(kith, "anna", {:direct, "ben"}) == ["hello", "hi"]
      assert send!(kith, "anna", "ben", "on we go") == "on we go"
      assert send!(kith, "ben", "anna", "so we do") == "so we do"
    end

    test "keeps the retention of where it is restored to" do
      home = start!()
      register!(home, ~w(anna ben))
      send!(home, "anna", "ben", "hello")
      encrypted = Kith.encrypt!(home, "anna", "ben", "soon gone", expires_in: 3_600)
      assert [_] = encrypted
      backup = export!(home, "anna", @passphrase)

      hour = fn -> System.system_time(:millisecond) + 3_700_000 end
      new = elsewhere!(home, archive: [retention: 7_200], clock: hour)
      assert {:ok, %{messages: 1, skipped: 1}} = Backup.restore(new, "anna", backup, @passphrase)

      [[position, expires_at]] =
        sql!(new, "SELECT position, expires_at FROM signal_archived_messages")

      assert expires_at == div(position, 1_000) + 7_200_000

      off = elsewhere!(home, archive: false)
      assert {:ok, %{messages: 0, skipped: 2}} = Backup.restore(off, "anna", backup, @passphrase)
      assert sql!(off, "SELECT * FROM signal_threads") == []
    end
  end

  describe "a user who is there" do
    setup do
      kith = start!()
      converse!(kith, "anna", "ben")
      %{kith: kith}
    end

    test "is replaced when it is asked for, and else stays as it is", %{kith: kith} do
      backup = export!(kith, "anna", @passphrase)
      used = [header(encrypt_one!(kith, "anna", "ben", "since"))]
      before = dump(kith)
      assert reason(Backup.restore(kith, "anna", backup, @passphrase)) == :already_registered
      assert dump(kith) == before

      assert {:ok, _} = Backup.restore(kith, "anna", backup, @passphrase, replace: true)
      envelope = encrypt_one!(kith, "anna", "ben", "anew")
      refute header(envelope) in used
      assert Kith.decrypt!(kith, "ben", envelope) == "anew"
      assert send!(kith, "ben", "anna", "back") == "back"
    end

    test "is not another one", %{kith: kith} do
      backup = export!(kith, "anna", @passphrase)
      new = elsewhere!(kith)
      before = dump(new)
      assert reason(Backup.restore(new, "ben", backup, @passphrase)) == :malformed
      assert dump(new) == before
    end

    test "is not replaced by a backup that is not whole", %{kith: kith} do
      backup = export!(kith, "anna", @passphrase)
      before = dump(kith)
      cut = binary_part(backup, 0, byte_size(backup) - 1)

      assert reason(Backup.restore(kith, "anna", cut, @passphrase, replace: true)) == :tampered
      assert dump(kith) == before
      assert send!(kith, "anna", "ben", "still here") == "still here"
    end

    test "has no backup when the keys are elsewhere, or there are none", %{kith: kith} do
      other = start!()
      register!(other, ["cleo"])
      Kith.publish_bundle!(kith, "cleo", Kith.pre_key_bundle!(other, "cleo"))
      assert reason(Backup.export(kith, "cleo", @passphrase, @quick)) == :key_not_found
      assert reason(Backup.export(kith, "dora", @passphrase, @quick)) == :not_registered
    end
  end

  describe "a backup" do
    setup do
      kith = start!(one_time_prekeys: 1, one_time_kyber_prekeys: 0)
      register!(kith, ~w(anna ben))
      send!(kith, "anna", "ben", "hello")
      send!(kith, "ben", "anna", "hi")
      key = key!()
      %{kith: kith, key: key, backup: export!(kith, "anna", key)}
    end

    test "is refused wherever it is cut, and nothing of it is used", context do
      %{kith: kith, key: key, backup: backup} = context
      new = elsewhere!(kith)
      before = dump(new)
      size = byte_size(backup)

      for length <- Enum.to_list(0..200) ++ Enum.to_list(201..(size - 1)//97) ++ [size - 1] do
        cut = binary_part(backup, 0, length)
        assert reason(Backup.restore(new, "anna", cut, key)) in [:malformed, :tampered]
      end

      assert dump(new) == before
      assert {:ok, _} = Backup.restore(new, "anna", backup, key)
    end

    test "is refused whatever was edited in it, never partially restored", context do
      %{kith: kith, key: key, backup: backup} = context
      new = elsewhere!(kith)
      before = dump(new)
      reasons = [:malformed, :tampered, :unsupported_version, :wrong_secret]

      edited =
        for _ <- 1..150 do
          at = :rand.uniform(byte_size(backup)) - 1

          case :rand.uniform(4) do
            1 -> corrupt(backup, at, :rand.uniform(255))
            2 -> backup <> :crypto.strong_rand_bytes(:rand.uniform(100))
            3 -> binary_part(backup, 0, at) <> from(backup, min(at + 1, byte_size(backup)))
            4 -> binary_part(backup, 0, at) <> "x" <> from(backup, at)
          end
        end

      header = for at <- 0..90, do: corrupt(backup, at, 1)

      for edited <- edited ++ header do
        assert reason(Backup.restore(new, "anna", edited, key)) in reasons
        assert reason(Backup.verify(new, edited, key)) in reasons
      end

      assert dump(new) == before
    end

    test "of several chunks does not open reordered, spliced or without one of them", context do
      %{kith: kith, key: key} = context
      # More than one chunk of 65,536.
      for n <- 1..4, do: Kith.encrypt!(kith, "anna", "ben", String.duplicate("#{n}", 60_000))
      backup = export!(kith, "anna", key)
      other = export!(kith, "anna", key)
      <<header::binary-86, chunks::binary>> = backup
      <<other_header::binary-86, other_chunks::binary>> = other
      assert [a, b, c | rest] = for(<<chunk::binary-65_552 <- chunks>>, do: chunk)
      last = from(chunks, 65_552 * (3 + length(rest)))
      rest = IO.iodata_to_binary([rest, last])
      new = elsewhere!(kith)
      before = dump(new)

      for parts <- [
            [header, b, a, c, rest],
            [header, a, c, rest],
            [header, a, a, b, c, rest],
            [header, a, b, c],
            [header, a, b, c, rest, rest],
            [header, binary_part(other_chunks, 0, 65_552), b, c, rest],
            [other_header, chunks],
            [header, other_chunks]
          ] do
        assert reason(Backup.restore(new, "anna", IO.iodata_to_binary(parts), key)) == :tampered
      end

      assert dump(new) == before
      assert {:ok, _} = Backup.restore(new, "anna", [header, a, b <> c, rest], key)
    end

    test "opens with its secret only", %{kith: kith, key: key, backup: backup} do
      new = elsewhere!(kith)
      with_passphrase = export!(kith, "anna", @passphrase)

      for {backup, wrong} <- [
            {backup, key!()},
            {backup, @passphrase},
            {with_passphrase, key},
            {with_passphrase, {:passphrase, "correct horse batter"}},
            {with_passphrase, {:passphrase, ""}}
          ] do
        assert reason(Backup.restore(new, "anna", backup, wrong)) == :wrong_secret
        assert reason(Backup.verify(new, backup, wrong)) == :wrong_secret
      end

      assert {:ok, _} = Backup.verify(new, with_passphrase, @passphrase)
    end

    test "can be tried without being restored", %{kith: kith, key: key, backup: backup} do
      before = dump(kith)

      assert {:ok, %{user: "anna", exported_at: at, records: records}} =
               Backup.verify(kith, backup, key)

      assert at > 1_700_000_000_000 and records > 5
      assert dump(kith) == before
    end

    test "of a later version, or whose Argon2id is too weak or too much, is refused", context do
      %{kith: kith} = context

      <<magic::binary-8, 1, 1, parameters::binary-12, rest::binary>> =
        export!(kith, "anna", @passphrase)

      restore = &reason(Backup.verify(kith, &1, @passphrase))
      assert restore.(magic <> <<2, 1>> <> parameters <> rest) == :unsupported_version
      assert restore.(magic <> <<1, 1, 8::32, 1::32, 1::32>> <> rest) == :malformed
      assert restore.(magic <> <<1, 1, 19_456::32, 1::32, 1::32>> <> rest) == :malformed
      assert restore.(magic <> <<1, 1, 4_194_304::32, 1::32, 1::32>> <> rest) == :too_large
      assert restore.("something else" <> rest) == :malformed
      assert restore.("") == :malformed
    end

    test "is read once, and by whoever stops in the middle without harm", %{kith: kith, key: key} do
      {:ok, stream} = Backup.export(kith, "anna", key)
      assert [<<_::binary-86>>] = Enum.take(stream, 1)
      assert_raise ArgumentError, ~r/read once/, fn -> Enum.to_list(stream) end
    end

    test "is written to a file and read from it, in whatever pieces", context do
      %{kith: kith, key: key, backup: backup} = context
      path = Path.join(tmp_dir!(), "anna.kith")
      {:ok, stream} = Backup.export(kith, "anna", key)
      stream |> Stream.into(File.stream!(path)) |> Stream.run()
      assert {:ok, _} = Backup.verify(kith, File.stream!(path), key)
      assert {:ok, _} = Backup.verify(kith, %{File.stream!(path) | line_or_bytes: 7}, key)
      assert {:ok, _} = Backup.verify(kith, for(<<byte <- backup>>, do: <<byte>>), key)
      new = elsewhere!(kith)
      assert {:ok, %{messages: 2}} = Backup.restore(new, "anna", File.stream!(path), key)
    end

    test "in a file has every byte it had, line endings too", %{kith: kith, key: key} do
      for n <- 1..3, do: Kith.encrypt!(kith, "anna", "ben", String.duplicate("#{n}", 60_000))
      path = Path.join(tmp_dir!(), "anna.kith")

      # Of 180,000 random bytes two in succession are CR and LF in 19 of 20 cases.
      for _ <- 1..5 do
        File.rm(path)
        {:ok, stream} = Backup.export(kith, "anna", key)
        stream |> Stream.into(File.stream!(path)) |> Stream.run()
        assert {:ok, _} = Backup.verify(kith, File.stream!(path), key)
      end
    end

    test "leaves out a row that does not open, but not the identity", %{kith: kith, key: key} do
      [[content]] =
        sql!(
          kith,
          "SELECT content FROM signal_archived_messages WHERE user_id = 'anna' LIMIT 1 OFFSET 1"
        )

      damaged = corrupt(content, 30)

      sql!(kith, "UPDATE signal_archived_messages SET content = $1 WHERE content = $2", [
        {:blob, damaged},
        {:blob, content}
      ])

      new = elsewhere!(kith)
      backup = export!(kith, "anna", key)
      assert {:ok, %{messages: 1}} = Backup.restore(new, "anna", backup, key)

      sql!(
        kith,
        "UPDATE signal_identity_keys SET private_key_encrypted = $1 WHERE user_id = 'anna'",
        [
          {:blob, "damaged"}
        ]
      )

      assert %Error{reason: :corrupted_state} = catch_error(export!(kith, "anna", key))
    end
  end

  describe "an account under a password" do
    @password "correct horse battery"

    setup do
      kith = start!()
      register!(kith, ["anna", "ben"])
      pass!(kith, "anna", kith, "ben", "hello")
      pass!(kith, "ben", kith, "anna", "hi")
      Kith.lock_with_password!(kith, "anna", @password, memory: 8_192, passes: 1)
      %{kith: kith, key: key!()}
    end

    test "has a backup while it is unlocked, with all of its history, and none while it is locked",
         %{
           kith: kith,
           key: key
         } do
      pass!(kith, "ben", kith, "anna", "under the password")
      backup = export!(kith, "anna", key)

      Kith.lock!(kith, "anna")
      assert {:error, %Error{reason: :locked}} = Backup.export(kith, "anna", key, @quick)
      assert {:ok, %{user: "anna"}} = Backup.verify(kith, backup, key)

      new = elsewhere!(kith)
      assert {:ok, %{sessions: 1, messages: 3}} = Backup.restore(new, "anna", backup, key)
      assert Kith.lock_state!(new, "anna") == :open
      assert texts(new, "anna", {:direct, "ben"}) == ["hello", "hi", "under the password"]

      assert sql!(
               new,
               "SELECT COUNT(*) FROM signal_archived_messages WHERE owner_key_id IS NOT NULL"
             ) == [[0]]

      Kith.lock_with_password!(new, "anna", @password, memory: 8_192, passes: 1)
      assert texts(new, "anna", {:direct, "ben"}) == ["hello", "hi", "under the password"]
    end

    test "is replaced by its backup, and its password and tokens are gone", %{
      kith: kith,
      key: key
    } do
      backup = export!(kith, "anna", key)
      token = Kith.unlock_token!(kith, "anna")
      assert {:ok, _} = Backup.restore(kith, "anna", backup, key, replace: true)
      assert Kith.lock_state!(kith, "anna") == :open
      assert {:error, _} = Kith.unlock(kith, "anna", @password)
      assert {:error, _} = Kith.unlock_with_token(kith, "anna", token)
      assert texts(kith, "anna", {:direct, "ben"}) == ["hello", "hi"]

      for table <- ~w(signal_retired_keys signal_unlock_tokens),
          do: assert(sql!(kith, "SELECT * FROM #{table} WHERE user_id = 'anna'") == [])
    end

    test "has a backup of its messages under whichever key they lie", %{kith: kith, key: key} do
      [[owner_key_id]] =
        sql!(
          kith,
          "SELECT DISTINCT owner_key_id FROM signal_archived_messages WHERE user_id = 'anna'"
        )

      assert is_binary(owner_key_id)
      Kith.remove_password!(kith, "anna", @password)
      Kith.rotate_data_key!(kith, "anna")
      backup = export!(kith, "anna", key)
      new = elsewhere!(kith)
      assert {:ok, %{sessions: 1, messages: 2}} = Backup.restore(new, "anna", backup, key)
      assert texts(new, "anna", {:direct, "ben"}) == ["hello", "hi"]
    end

    test "whose data key changes while it is read has no backup rather than half of one", %{
      kith: kith,
      key: key
    } do
      {:ok, stream} = Backup.export(kith, "ben", key, @quick)

      error =
        assert_raise Error, fn ->
          Enum.reduce(stream, false, fn _bytes, rotated? ->
            rotated? || match?(%{}, Kith.rotate_data_key!(kith, "ben"))
          end)
        end

      assert error.reason == :stale

      {:ok, stream} = Backup.export(kith, "anna", key, @quick)

      error =
        assert_raise Error, fn ->
          Enum.reduce(stream, false, fn _bytes, locked? ->
            locked? || Kith.lock!(kith, "anna") == :locked
          end)
        end

      assert error.reason == :locked
    end
  end

  test "a passphrase is 8 to 1,024 bytes, and the options are checked" do
    kith = start!()
    register!(kith, ["anna"])
    export = &Backup.export(kith, "anna", &1, @quick)
    assert reason(export.({:passphrase, "seven b"})) == :malformed
    assert reason(export.({:passphrase, String.duplicate("a", 1_025)})) == :too_large
    assert {:ok, _} = export.({:passphrase, "eight by"})

    for {options, message} <- [
          {[memory: 8_192], ~r/expected :memory/},
          {[memory: 19_456, passes: 1], ~r/:memory times :passes/},
          {[histori: true], ~r/did you mean :history/}
        ] do
      assert_raise ArgumentError, message, fn ->
        Backup.export(kith, "anna", @passphrase, options)
      end
    end

    for wrong <- ["correct horse", nil, {:passphrase, nil}, {:words, "legal"}] do
      error = assert_raise ArgumentError, fn -> Backup.export(kith, "anna", wrong) end
      assert Exception.message(error) =~ "expected {:passphrase, binary} or a"
    end
  end

  test "a restore joins the transaction of the application" do
    kith = start!()
    register!(kith, ~w(anna ben))
    backup = export!(kith, "anna", @passphrase)
    new = elsewhere!(kith)
    before = dump(new)
    assert {:ok, _} = undone!(new, fn -> Backup.restore(new, "anna", backup, @passphrase) end)
    assert dump(new) == before
  end

  test "a process that dies in the middle of a restore leaves nothing behind" do
    kith = start!(one_time_prekeys: 100)
    register!(kith, ~w(anna ben))
    for n <- 1..5, do: Kith.encrypt!(kith, "anna", "ben", String.duplicate("#{n}", 60_000))
    backup = export!(kith, "anna", @passphrase)
    new = elsewhere!(kith)
    before = dump(new)
    test = self()

    # Most of it has been written when the process is killed.
    pieces = Stream.map(for(<<piece::binary-10_000 <- backup>>, do: piece), & &1)

    waits =
      Stream.map(["x"], fn _ ->
        send(test, :nearly_done)
        Process.sleep(:infinity)
      end)

    {dies, monitor} =
      spawn_monitor(fn ->
        Backup.restore(new, "anna", Stream.concat(pieces, waits), @passphrase)
      end)

    assert_receive :nearly_done, 60_000
    Process.exit(dies, :kill)
    assert_receive {:DOWN, ^monitor, _, _, :killed}
    assert dump(new) == before
    assert {:ok, %{messages: 5}} = Backup.restore(new, "anna", backup, @passphrase)
  end

  test "what the source of a backup raises is raised, and what was written is undone" do
    kith = start!()
    register!(kith, ["anna"])
    backup = export!(kith, "anna", @passphrase)
    new = elsewhere!(kith)
    before = dump(new)
    <<head::binary-86, rest::binary>> = backup
    ends = self()

    source =
      Stream.resource(
        fn -> [head, rest] end,
        fn
          [piece | pieces] -> {[piece], pieces}
          [] -> raise "the upload ended"
        end,
        fn _ -> send(ends, :closed) end
      )

    assert_raise RuntimeError, "the upload ended", fn ->
      Backup.restore(new, "anna", source, @passphrase)
    end

    assert_received :closed
    refute_received :closed
    assert dump(new) == before

    # One that is not read to its end is closed too.
    assert reason(Backup.restore(new, "anna", source, {:passphrase, "another"})) == :wrong_secret
    assert_received :closed
    refute_received :closed
  end

  test "what a stranger could write into a backup of their own is refused" do
    kith = start!()
    register!(kith, ["anna"])
    key = key!()

    instance = Kith.Instance.fetch!(kith)
    [[data_key]] = sql!(kith, "SELECT data_key FROM signal_accounts")

    forge = fn records ->
      {:ok, {writer, header}} =
        Kith.Native.backup_create({:recovery_key, key.reference}, {19_456, 2, 1})

      records =
        for record <- records,
            {kind, public} = Backup.Record.encode(record),
            do: {kind, public, :none}

      {:ok, {bytes, []}} =
        Kith.Native.backup_write(writer, instance.vault, {"anna", data_key}, records)

      {:ok, last} = Kith.Native.backup_finish(writer)
      header <> bytes <> last
    end

    new = elsewhere!(kith)
    before = dump(new)
    account = {:account, "anna", 1}
    device = {:device, [1, 1, <<5, 1::256>>, 1, 1, 1]}

    for records <- [
          [],
          [account],
          [account, {:ending, 1}],
          [{:ending, 0}],
          [device, account, {:ending, 2}],
          [account, account, device, {:ending, 3}],
          [account, device, {:ending, 2}],
          [account, {:peer, [1, "ben", 1]}, {:ending, 2}],
          [account, {:device, [0, 1, <<5, 1::256>>, 1, 1, 1]}, {:ending, 2}],
          [account, {:message, [1, "family", 1, <<0::128>>, nil, nil, nil, nil]}, {:ending, 2}],
          [account, {:message, [1, "t:\0", 1, <<0::128>>, nil, nil, nil, nil]}, {:ending, 2}]
        ] do
      assert reason(Backup.restore(new, "anna", forge.(records), key)) == :malformed
    end

    assert dump(new) == before
  end

  @tag timeout: 300_000
  @tag store: :sqlite
  test "of ten thousand messages a backup takes no more memory than of few" do
    kith = start!()
    register!(kith, ~w(anna ben))
    send!(kith, "anna", "ben", "hello")
    [[data_key]] = sql!(kith, "SELECT data_key FROM signal_threads")
    instance = Kith.Instance.fetch!(kith)
    text = <<1, 0::32>> <> String.duplicate("a word of many ", 60)

    Kith.Store.Repo.transaction(instance.repo, fn ->
      for n <- 1..10_000 do
        place = %{
          position: n,
          message_id: <<n::128>>,
          sender: {"ben", 1},
          sent_at: n,
          expires_at: nil
        }

        thread = {"d:4:annaben", data_key}

        {:ok, sealed} =
          Kith.Native.archive_seal(instance.vault, thread, nil, {"anna", 1}, place, text)

        Kith.Store.ArchivedMessages.insert(
          instance.repo,
          {"anna", 1},
          "d:4:annaben",
          place,
          sealed,
          nil
        )
      end

      {:ok, :done}
    end)

    key = key!()
    path = Path.join(tmp_dir!(), "anna.kith")
    highest = :atomics.new(1, [])

    watch = fn chunk ->
      :erlang.garbage_collect()
      {:memory, memory} = Process.info(self(), :memory)
      {:binary, binaries} = Process.info(self(), :binary)
      held = memory + Enum.sum(for {_, size, _} <- binaries, do: size)
      :atomics.put(highest, 1, max(:atomics.get(highest, 1), held))
      chunk
    end

    {:ok, stream} = Backup.export(kith, "anna", key)
    stream |> Stream.map(watch) |> Stream.into(File.stream!(path)) |> Stream.run()
    assert File.stat!(path).size > 9_000_000
    assert :atomics.get(highest, 1) < 6_000_000

    new = elsewhere!(kith)
    :atomics.put(highest, 1, 0)
    chunks = Stream.map(%{File.stream!(path) | line_or_bytes: 65_536}, watch)
    assert {:ok, %{messages: 10_001}} = Backup.restore(new, "anna", chunks, key)
    assert :atomics.get(highest, 1) < 6_000_000
  end
end
