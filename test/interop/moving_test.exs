defmodule Kith.Interop.MovingTest do
  # An application that used Signal's own library moves to Kith, with its keys and its sessions.
  use Kith.Case, async: true

  for file <- ~w(failure json official),
      do: Code.require_file("../../examples/family_transcript/lib/#{file}.ex", __DIR__)

  import Kith.SecretSearch

  alias FamilyTranscript.Official
  alias Kith.ChildVM

  @moduletag timeout: 120_000

  # Anna and olga have talked, and two of olga's messages are still on their way.
  setup context do
    release = context[:release] || "0.103"
    [anna, olga] = for name <- ~w(anna olga), do: Official.start(name, release)
    talk!(anna, olga, release)
    on_the_way = for n <- 1..3, do: write(olga, anna, "on the way #{n}")
    {late, [last]} = Enum.split(on_the_way, 2)
    assert Official.decrypt(anna, last) == "on the way 3"
    next = write(olga, anna, "next")

    %{
      anna: anna,
      olga: olga,
      record: record(anna, "olga"),
      late: [{Enum.at(late, 1), "on the way 2"}, {hd(late), "on the way 1"}, {next, "next"}],
      opened: last
    }
  end

  defp talk!(a, b, release) do
    fetch = fn -> Official.call(b, "publish_bundle", %{kyber: release != "0.60"})["bundle"] end
    bundle = fetch.()
    Official.call(a, "process_bundle", %{remote: %{name: b.name}, bundle: bundle})

    for n <- 1..10, {from, to} <- [{a, b}, {b, a}] do
      text = "#{from.name} #{n}"
      assert Official.decrypt(to, write(from, to, text)) == text
    end
  end

  defp write(from, to, text), do: Official.encrypt(from, to.name, text, fn -> nil end)

  defp record(official, remote) do
    %{"record" => record} = Official.call(official, "export_session", %{remote: %{name: remote}})
    Official.bytes(record)
  end

  defp move!(official, options \\ []) do
    kith = start_kith!(options)
    party = Official.call(official, "describe_party", %{})

    assert %{registration_id: id, identity_key: key} =
             Kith.register!(kith, official.name,
               identity_key_pair: Official.bytes(party["identity_key_pair"]),
               registration_id: party["registration_id"]
             )

    assert {id, key} == {party["registration_id"], Official.bytes(party["identity_key"])}
    kith
  end

  test "goes on where the record is: what is on its way opens, once, and the ratchet goes round",
       context do
    %{anna: anna, olga: olga} = context
    kith = move!(anna)
    assert Kith.import_record(kith, "anna", "olga", context.record) == {:ok, :imported}

    assert %{current: %{version: 4, acknowledged: true}, archived: [], highest_version: 4} =
             Kith.session_info!(kith, "anna", "olga")

    for {envelope, text} <- context.late do
      assert Kith.decrypt!(kith, "anna", envelope) == text
      assert reason(Kith.decrypt(kith, "anna", envelope)) == :duplicate
    end

    assert reason(Kith.decrypt(kith, "anna", context.opened)) == :duplicate

    for n <- 1..60 do
      assert Official.decrypt(olga, encrypt_one!(kith, "anna", "olga", "a#{n}")) == "a#{n}"
      assert Kith.decrypt!(kith, "anna", write(olga, anna, "o#{n}")) == "o#{n}"
    end

    assert %{current: %{braid: %{epoch: epoch}}} = Kith.session_info!(kith, "anna", "olga")
    assert epoch >= 2
  end

  test "takes the archived sessions too, in their order", context do
    %{anna: anna, olga: olga} = context
    # Three sessions of olga's, of which anna's record keeps two archived ones.
    before = write(olga, anna, "before")
    Official.call(olga, "archive_session", %{remote: %{name: "anna"}})
    talk!(olga, anna, "0.103")
    between = write(olga, anna, "between")
    Official.call(olga, "archive_session", %{remote: %{name: "anna"}})
    talk!(olga, anna, "0.103")

    kith = move!(anna)
    assert Kith.import_record!(kith, "anna", "olga", record(anna, "olga")) == :imported
    assert length(Kith.session_info!(kith, "anna", "olga").archived) == 2
    assert Official.decrypt(olga, encrypt_one!(kith, "anna", "olga", "x")) == "x"
    assert Kith.decrypt!(kith, "anna", between) == "between"
    assert Kith.decrypt!(kith, "anna", before) == "before"

    for {envelope, text} <- context.late,
        do: assert(Kith.decrypt!(kith, "anna", envelope) == text)

    assert length(Kith.session_info!(kith, "anna", "olga").archived) == 2
  end

  test "puts the session away that is there, which still opens what is on its way", context do
    %{anna: anna, olga: olga} = context
    kith = move!(anna)
    Kith.publish_bundle!(kith, "olga", Official.bundle(olga, 1))
    before = encrypt_one!(kith, "anna", "olga", "a session of its own")
    assert Official.decrypt(olga, before) == "a session of its own"
    answer = write(olga, anna, "an answer in it")

    assert Kith.import_record!(kith, "anna", "olga", context.record) == :imported
    assert %{archived: [%{session_id: id}]} = Kith.session_info!(kith, "anna", "olga")
    assert id == before.session_id
    assert Kith.decrypt!(kith, "anna", answer) == "an answer in it"

    for {envelope, text} <- context.late,
        do: assert(Kith.decrypt!(kith, "anna", envelope) == text)
  end

  test "takes a record once, since whoever goes on from it again uses keys again", context do
    kith = move!(context.anna)
    assert Kith.import_record!(kith, "anna", "olga", context.record) == :imported
    encrypt_one!(kith, "anna", "olga", "x")
    before = dump(kith)
    assert reason(Kith.import_record(kith, "anna", "olga", context.record)) == :duplicate
    assert dump(kith) == before
    Kith.reset_session!(kith, "anna", "olga")
    assert reason(Kith.import_record(kith, "anna", "olga", context.record)) == :duplicate
  end

  test "refuses what is no record, or another's, and then changes nothing", context do
    kith = move!(context.anna)
    register!(kith, ["cleo"])
    eve = Kith.register!(kith, "eve").identity_key
    Kith.trust!(kith, "anna", "eve")
    Kith.trust!(kith, "anna", "mallory", identity_key: eve)
    before = dump(kith)
    import_as = &reason(Kith.import_record(kith, &1, &2, &3))

    for bytes <- [
          "",
          "record",
          :crypto.strong_rand_bytes(3_000),
          binary_part(context.record, 0, byte_size(context.record) - 1),
          binary_part(context.record, 0, 100)
        ],
        do: assert(import_as.("anna", "olga", bytes) == :malformed)

    # Another's record, a name with another key here, and one under which another key is remembered.
    assert import_as.("cleo", "olga", context.record) == :malformed
    assert import_as.("anna", "eve", context.record) == :untrusted_identity
    assert import_as.("anna", "cleo", context.record) == :untrusted_identity
    assert import_as.("anna", "mallory", context.record) == :untrusted_identity
    assert import_as.("nobody", "olga", context.record) == :not_registered
    assert dump(kith) == before

    error =
      assert_raise ArgumentError, fn ->
        apply(Kith, :import_record, [kith, "anna", "olga", [context.record]])
      end

    assert Exception.message(error) == "expected the record to be a binary"
  end

  test "answers every changed byte of a record with a reason of the set, or imports it",
       context do
    kith = move!(context.anna)
    before = dump(kith)
    repo = Kith.Instance.fetch!(kith).repo

    for position <- 0..(byte_size(context.record) - 1)//7 do
      record = corrupt(context.record, position, 0xFF)

      {:error, result} =
        Kith.SQLite.transaction(repo, fn ->
          Kith.SQLite.rollback(repo, Kith.import_record(kith, "anna", "olga", record))
        end)

      case result do
        {:ok, :imported} ->
          :ok

        {:error, %Kith.Error{reason: reason}} ->
          assert reason in [:malformed, :unsupported_version]
      end
    end

    assert dump(kith) == before
  end

  @tag release: "0.60"
  test "takes sessions of version 3 where that is spoken, and nowhere else", context do
    %{anna: anna, olga: olga, record: record} = context
    kith = move!(anna)
    before = dump(kith)
    assert reason(Kith.import_record(kith, "anna", "olga", record)) == :unsupported_version
    assert dump(kith) == before

    kith = move!(anna, minimum_version: 3)
    assert Kith.import_record!(kith, "anna", "olga", record) == :imported

    for {envelope, text} <- context.late,
        do: assert(Kith.decrypt!(kith, "anna", envelope) == text)

    assert %{version: 3} = envelope = encrypt_one!(kith, "anna", "olga", "x")
    assert Official.decrypt(olga, envelope) == "x"

    assert %{highest_version: 3, current: %{braid: nil}} =
             Kith.session_info!(kith, "anna", "olga")
  end

  # Design invariant 2 has these two exceptions: the private key and the record are terms. They are not printed.
  test "prints neither the key pair nor what is in the record, whatever goes wrong", context do
    folder = tmp_dir!()
    kek = :crypto.strong_rand_bytes(32)
    pair = Official.bytes(Official.call(context.anna, "describe_party", %{})["identity_key_pair"])

    for {name, bytes} <- [key: Base.encode64(kek), pair: pair, record: context.record] do
      File.write!(Path.join(folder, "#{name}"), bytes)
      File.chmod!(Path.join(folder, "#{name}"), 0o600)
    end

    assert {printed, 0} = ChildVM.run(moving(folder))

    for expected <- [
          "{:ok, :imported}",
          ":malformed",
          "ArgumentError",
          "[:kith, :prekeys, :generate, :stop]"
        ],
        do: assert(printed =~ expected, "the child printed no #{expected}:\n#{printed}")

    secrets = read_secrets(Path.join(folder, "kith.db"), kek)
    kinds = for {kind, _} <- secrets, uniq: true, do: kind
    assert [] == [:identity_key, :root_key, :chain_key, :skipped_key, :braid_root] -- kinds

    printed = unbroken(printed)
    assert found?(printed, from(pair, 37) |> control())
    for {kind, secret} <- secrets, do: refute(found?(printed, secret), "a #{kind} was printed")
  end

  defp control(private), do: for(<<byte <- private>>, into: <<>>, do: <<Bitwise.bxor(byte, 1)>>)

  defp moving(folder) do
    """
    {:ok, _} = Application.ensure_all_started(:kith)
    Logger.configure(level: :debug)

    defmodule :telemetry do
      def execute(event, measurements, metadata), do: IO.inspect({event, measurements, metadata}, limit: :infinity, printable_limit: :infinity)
    end
    :persistent_term.put(Kith.Telemetry, true)

    show = fn term -> IO.inspect(term, limit: :infinity, printable_limit: :infinity) end
    path = &Path.join(#{inspect(folder)}, &1)
    {:ok, _} = Kith.start_link(name: :family, database: path.("kith.db"), keys: [current: {"k1", {:file, path.("key")}}])
    [pair, record] = for name <- ["pair", "record"], do: File.read!(path.(name))

    for options <- [
          [identity_key_pair: binary_part(pair, 1, 68)],
          [identity_key_pair: pair],
          [identity_key_pair: pair],
          [identity_key_pair: [pair]],
          [identity_keypair: pair],
          [identity_key_pair: pair, device: 2],
          pair
        ],
        do: (try do
          show.(Kith.register(:family, {"anna", 1}, options))
        rescue
          error -> IO.puts(Exception.format(:error, error, __STACKTRACE__))
        end)

    for {peer, record} <- [
          {"olga", binary_part(record, 0, 500)},
          {"olga", record},
          {"olga", record},
          {"anna", record},
          {"olga", {:record, record}},
          {:olga, record}
        ],
        do: (try do
          show.(Kith.import_record(:family, "anna", peer, record))
          Kith.import_record!(:family, "anna", peer, record)
        rescue
          error -> IO.puts(Exception.format(:error, error, __STACKTRACE__))
        end)

    show.(Kith.session_info(:family, "anna", "olga"))
    show.(for <<byte <- binary_part(pair, 37, 32)>>, into: <<>>, do: <<Bitwise.bxor(byte, 1)>>)
    """
  end
end
