defmodule Kith.SecretsTest do
  # Design invariant 2: no secret is ever a term of the BEAM. A VM of its own holds a conversation, prints all
  # it can print, and dies with a crash dump. Its keys are then read from its database, which takes the
  # key-encryption key, and looked for in everything it left.
  use Kith.Case, async: true

  import Kith.SecretSearch

  alias Kith.ChildVM

  @plaintext "the plaintext of a message, which is a term but never logged"

  @tag timeout: 120_000
  test "no secret is in a crash dump, a log, an inspection, an exception or telemetry, and the search finds what is" do
    folder = tmp_dir!()
    kek = :crypto.strong_rand_bytes(32)
    key_file = Path.join(folder, "kith.key")
    File.write!(key_file, Base.encode64(kek))
    File.chmod!(key_file, 0o600)
    {export_file, export_key} = export_file(folder)
    database = Path.join(folder, "kith.db")
    dump = Path.join(folder, "erl_crash.dump")
    planted = :crypto.strong_rand_bytes(32)

    {printed, _status} =
      ChildVM.run(conversation({{:file, key_file}, export_file}, database, planted),
        env: [{"ERL_CRASH_DUMP", dump}]
      )

    assert printed =~ "the conversation is over", printed
    dumped = File.read!(dump)
    printed = unbroken(printed)
    assert dumped =~ "planted crash"

    # What is searched is what should be there.
    for expected <- ["Kith.Error", "Kith.Envelope", "[:kith,:session,:encrypt,:stop]"],
        do: assert(printed =~ expected, "the child printed no #{expected}:\n#{printed}")

    assert found?(dumped, planted), "the search misses a planted key in the crash dump"
    assert found?(dumped, @plaintext), "the search misses the plaintext, which the child holds"
    <<inspected::binary-32>> = for <<byte <- planted>>, into: <<>>, do: <<Bitwise.bxor(byte, 1)>>
    assert found?(printed, inspected), "the search misses an inspected key"
    <<hexed::binary-32>> = for <<byte <- planted>>, into: <<>>, do: <<Bitwise.bxor(byte, 2)>>
    assert found?(printed, hexed), "the search misses a key in hexadecimal"

    stored = for file <- [database, database <> "-wal"], File.exists?(file), do: File.read!(file)
    secrets = read_secrets(database, kek)
    client_key = client_key(secrets[:agreement_key])
    secrets = secrets ++ [export_key: export_key, client_key: client_key]
    archived = read_archive(database, kek)
    assert length(archived) > 50
    for {_, _, _, plaintext} <- archived, do: assert(plaintext == @plaintext)

    for kind <- [
          :key_encryption_key,
          :data_key,
          :thread_key,
          :identity_key,
          :prekey,
          :kyber_seed,
          :root_key,
          :ratchet_key,
          :chain_key,
          :skipped_key,
          :post_quantum_key,
          :post_quantum_chain_key,
          :braid_root,
          :braid_authenticator,
          :braid_mac_key,
          :decapsulation_key,
          :encapsulation_state,
          :signing_key,
          :agreement_key
        ],
        do: assert(List.keymember?(secrets, kind, 0), "no #{kind} to look for")

    places = [crash_dump: dumped, output: printed] ++ Enum.map(stored, &{:database, &1})

    for {kind, secret} <- secrets, {place, text} <- places do
      refute found?(text, secret), "a #{kind} is in the #{place}"
    end

    refute found?(printed, String.replace(@plaintext, " ", "")), "the plaintext was printed"
    assert stored != []
    for bytes <- stored, do: refute(found?(bytes, @plaintext), "the plaintext is in the database")
  end

  # As a client derives it whose public key is the base point: what it agrees on is the public key of the service.
  defp client_key(private) do
    {service, _} = :crypto.generate_key(:ecdh, :x25519, private)
    extracted = :crypto.mac(:hmac, :sha256, <<0::256>>, service)
    info = "kith-client-key-v1" <> <<0, 0x20, 9::little-256>> <> service <> "file"
    :crypto.mac(:hmac, :sha256, extracted, info <> <<1>>)
  end

  @tag timeout: 120_000
  test "nothing of that shows keys that a key service has wrapped, nor those it is sent" do
    folder = tmp_dir!()
    kms = Kith.Test.KMSProcess.start!(folder)
    database = Path.join(folder, "kith.db")
    dump = Path.join(folder, "erl_crash.dump")
    {export_file, _key} = export_file(folder)
    planted = :crypto.strong_rand_bytes(32)
    source = {:kms, url: Kith.Test.KMSProcess.url(kms), timeout: 60_000}

    {printed, _status} =
      ChildVM.run(conversation({source, export_file}, database, planted),
        env: [{"ERL_CRASH_DUMP", dump}]
      )

    assert printed =~ "the conversation is over", printed
    dumped = File.read!(dump)
    printed = unbroken(printed)
    assert found?(dumped, planted)

    {:ok, state} = Kith.KMS.Reference.open(Path.join(folder, "keys"))
    secrets = read_secrets(database, state)

    for kind <- [:key_encryption_key, :wrapping_key, :data_key, :thread_key, :identity_key],
        do: assert(List.keymember?(secrets, kind, 0), "no #{kind} to look for")

    places = [crash_dump: dumped, output: printed, database: File.read!(database)]

    for {kind, secret} <- secrets,
        {place, text} <- places,
        do: refute(found?(text, secret), "a #{kind} is in the #{place}")
  end

  defp export_file(folder) do
    key = :crypto.strong_rand_bytes(32)
    path = Path.join(folder, "export.key")
    File.write!(path, Base.encode64(key))
    File.chmod!(path, 0o600)
    {path, key}
  end

  defp conversation({source, export_file}, database, planted) do
    """
    {:ok, _} = Application.ensure_all_started(:kith)
    Logger.configure(level: :debug)

    # Kith speaks to :telemetry when it is there; here a stand-in prints what is said.
    defmodule :telemetry do
      def execute(event, measurements, metadata), do: IO.inspect({event, measurements, metadata}, limit: :infinity, printable_limit: :infinity)
      def span(prefix, metadata, fun) do
        execute(prefix ++ [:start], %{}, metadata)
        {result, stop} = fun.()
        execute(prefix ++ [:stop], %{}, stop)
        result
      end
    end
    :persistent_term.put(Kith.Telemetry, true)

    show = fn term -> IO.inspect(term, limit: :infinity, printable_limit: :infinity) end
    options = [name: :family, archive: true, database: #{inspect(database)}, keys: [current: {"k1", #{inspect(source)}}]]
    {:ok, supervisor} = Kith.start_link(options)
    show.(options)
    for user <- ~w(ada ben cleo), do: show.(Kith.register(:family, user))
    text = Enum.join(["the plaintext of a message,", "which is a term but never logged"], " ")

    envelopes =
      for round <- 1..8, from <- ~w(ada ben cleo), {to, {:ok, envelope}} <- Kith.encrypt_group!(:family, from, ~w(ada ben cleo), text, thread: "family") do
        show.(envelope)
        # One round is late, so that keys of skipped messages are stored.
        if round == 6, do: :late, else: ^text = Kith.decrypt!(:family, to, envelope, thread: "family")
        {to, envelope}
      end

    {to, envelope} = hd(envelopes)
    # Answered out of the archive.
    show.(Kith.decrypt(:family, to, envelope) == {:ok, text})
    show.(Kith.history(:family, "ada", "family", limit: 5))
    show.(Kith.history(:family, "ada", "family", before: "no cursor"))
    Kith.encrypt!(:family, "ada", "ben", text, thread: "shredded")
    show.(Kith.shred(:family, "shredded"))
    show.(Kith.decrypt(:family, to, %{envelope | body: "damaged"}))
    show.(Kith.encrypt(:family, "ada", "nobody", text))
    show.(Kith.encrypt(:family, "ada", "ada", text))
    show.(Kith.session_info(:family, "ada", "ben"))
    show.(Kith.safety_number(:family, "ada", "ben"))
    show.(Kith.reset_session(:family, "cleo", "ada"))
    {:ok, [again]} = Kith.encrypt(:family, "cleo", "ada", text)
    show.(Kith.decrypt(:family, "ada", again) == {:ok, text})

    # The keys of the service itself. The client's public key is the base point.
    signed = Kith.Signed.sign!(:family, text, audience: "elsewhere")
    show.(signed["signature"])
    show.(Kith.Signed.rotate_service_key(:family, from: {:file, "/no/such/file"}))
    sealed = Kith.ClientKey.seal!(:family, {:x25519, <<9::little-256>>}, text, info: "file")
    show.(Kith.ClientKey.open(:family, {:x25519, <<9::little-256>>}, sealed, info: "file") == {:ok, text})
    show.(Kith.ClientKey.open(:family, {:x25519, <<9::little-256>>}, sealed, info: "another file"))
    export_key = Kith.Signed.Export.key!({"k", {:file, #{inspect(export_file)}}})
    show.(export_key)
    export = Enum.to_list(Kith.Signed.Export.stream([text], export_key, purpose: "secrets"))
    show.(Kith.Signed.Export.verify(export, export_key, purpose: "secrets"))
    show.(Kith.Signed.Export.verify(["x"], export_key, purpose: "secrets"))

    instance = Kith.Instance.fetch!(:family)
    show.(instance)
    show.(:persistent_term.get() |> Enum.filter(&match?({_, %Kith.Instance{}}, &1)))

    # Everything the processes of the instance would say of themselves.
    for {_, pid, _, _} <- Supervisor.which_children(supervisor), is_pid(pid) do
      try do
        show.(:sys.get_status(pid))
      catch
        kind, reason -> show.({kind, reason})
      end
    end

    # Exceptions and the crash of a process, logged.
    for call <- [
          fn -> Kith.decrypt!(:family, to, %{envelope | body: "damaged"}) end,
          fn -> Kith.encrypt(:family, "ada", "ben", text, thread: {:not, text}) end,
          fn -> Kith.encrypt(:family, "ada", "ben", text, expires_in: text) end,
          fn -> Kith.encrypt_group(:family, "ada", ["ben"], text) end,
          fn -> Kith.history(:family, {:not, text}, "family") end,
          fn -> hd(Kith.encrypt!(:family, "nobody", "ada", text)) end,
          fn -> Kith.encrypt(:family, :ada, "ben", text) end,
          fn -> Kith.encrypt(:family, "ada", "ben", {:not, text}) end,
          fn -> Kith.decrypt(:family, "ada", 1) end,
          fn -> Kith.start_link(Keyword.put(options, :keyz, 1)) end
        ] do
      try do
        call.()
      rescue
        error -> IO.puts(Exception.format(:error, error, __STACKTRACE__))
      end
    end

    # The controls: a small binary on a heap, a large one beside it, an inspected and a printed one.
    planted = :erlang.list_to_binary(#{inspect(:binary.bin_to_list(planted), limit: :infinity, charlists: :as_lists)})
    kept = {planted, String.duplicate("x", 100) <> planted <> "y", text, envelopes, instance, signed, sealed, export_key}
    show.(for <<byte <- planted>>, into: <<>>, do: <<Bitwise.bxor(byte, 1)>>)
    IO.puts(Base.encode16(for(<<byte <- planted>>, into: <<>>, do: <<Bitwise.bxor(byte, 2)>>), case: :lower))
    holder = spawn(fn -> receive do: (:stop -> show.(kept)) end)
    true = Process.alive?(holder)
    IO.puts("the conversation is over")
    Process.sleep(200)
    :erlang.halt(~c"planted crash")
    """
  end
end
