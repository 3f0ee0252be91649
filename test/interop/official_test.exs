defmodule Kith.Interop.OfficialTest do
  # The official client as the other side of Kith and its database. What it does to the protocol itself is tested in
  # native/kith_protocol/tests/interop.rs.
  use Kith.Case, async: true

  for file <- ~w(failure json official),
      do: Code.require_file("../../examples/family_transcript/lib/#{file}.ex", __DIR__)

  alias FamilyTranscript.Official

  @moduletag timeout: 120_000

  # Olga uses the official client, anna is here.
  defp meet(release, options \\ []) do
    kith = start_kith!(options)
    register!(kith, ["anna"])
    olga = Official.start("olga", release)
    %{kith: kith, olga: olga, bundle: Official.bundle(olga, 1)}
  end

  defp to_olga(%{kith: kith, olga: olga}, text) do
    envelope = encrypt_one!(kith, "anna", "olga", text)
    assert Official.decrypt(olga, envelope) == text
    envelope
  end

  defp to_anna(%{kith: kith, olga: olga}, text) do
    envelope = Official.encrypt(olga, "anna", text, fn -> Kith.pre_key_bundle!(kith, "anna") end)

    assert Kith.decrypt!(kith, "anna", envelope) == text
    envelope
  end

  describe "the current client" do
    test "is written to first, and the post-quantum ratchet goes round" do
      %{kith: kith, olga: olga} = context = meet("0.103")
      Kith.publish_bundle!(kith, "olga", context.bundle)
      assert %{type: :prekey, version: 4} = to_olga(context, "hello")
      to_anna(context, "hi")

      # Out of order now and then, so that keys and chunks of all kinds go through the database.
      for round <- 1..60 do
        [first, second] = for n <- 1..2, do: encrypt_one!(kith, "anna", "olga", "#{round}/#{n}")
        assert Official.decrypt(olga, second) == "#{round}/2"
        assert Official.decrypt(olga, first) == "#{round}/1"

        [first, second] =
          for n <- 1..2, do: Official.encrypt(olga, "anna", "#{round}/#{n}", fn -> nil end)

        assert Kith.decrypt!(kith, "anna", second) == "#{round}/2"
        assert Kith.decrypt!(kith, "anna", first) == "#{round}/1"
      end

      assert %{current: %{version: 4, braid: %{epoch: epoch}}, highest_version: 4} =
               Kith.session_info!(kith, "anna", "olga")

      assert epoch >= 3
    end

    test "writes first, with each one-time prekey used once" do
      %{kith: kith} = context = meet("0.103", unknown_senders: :remember)
      assert %{type: :prekey, version: 4} = to_anna(context, "hello")
      to_olga(context, "hi")
      to_anna(context, "how are you?")

      assert sql!(kith, "SELECT kind FROM signal_prekeys WHERE used_at IS NOT NULL ORDER BY kind") ==
               [["kyber_one_time"], ["one_time"]]
    end

    test "is written to with the Kyber prekey of last resort when no other is left" do
      %{kith: kith} = context = meet("0.103")
      Kith.publish_bundle!(kith, "olga", %{context.bundle | prekeys: [], kyber_prekeys: []})
      to_olga(context, "hello")
      to_anna(context, "hi")
    end
  end

  describe "a client of before" do
    test "is spoken with in version 3, both ways, where that is allowed" do
      context = meet("0.60", minimum_version: 3)

      Kith.publish_bundle!(context.kith, "olga", %{
        context.bundle
        | kyber_prekey: nil,
          kyber_prekeys: []
      })

      assert %{type: :prekey, version: 3} = to_olga(context, "hello")
      assert %{type: :message, version: 3} = to_anna(context, "hi")
      to_olga(context, "how are you?")
    end

    test "and its version 4, which has no post-quantum ratchet, is refused" do
      %{kith: kith, olga: olga} = meet("0.60", unknown_senders: :remember, minimum_version: 3)

      envelope =
        Official.encrypt(olga, "anna", "hello", fn -> Kith.pre_key_bundle!(kith, "anna") end)

      assert envelope.version == 4
      before = dump(kith)
      assert {:error, %Kith.Error{}} = Kith.decrypt(kith, "anna", envelope)
      assert dump(kith) == before
    end
  end

  describe "a message that did not open" do
    test "is reported to the official client and by it" do
      %{kith: kith, olga: olga} = context = meet("0.103", archive: true)
      Kith.publish_bundle!(kith, "olga", context.bundle)
      to_olga(context, "hello")
      to_anna(context, "hi")

      # What anna reports, the official client reads, and finds its session in it.
      envelope = Official.encrypt(olga, "anna", "lost", fn -> nil end)
      envelope = %{envelope | timestamp: 1_700_000_000_123}
      damaged = %{envelope | body: corrupt(envelope.body, byte_size(envelope.body) - 1)}
      {:error, error} = Kith.decrypt(kith, "anna", damaged)
      [report] = Kith.recover!(kith, "anna", damaged, error)

      assert %{"timestamp" => 1_700_000_000_123, "device_id" => 1, "ratchet_key" => key} =
               Official.call(olga, "parse_decryption_error", %{
                 plaintext_content: Official.hex(report.body)
               })

      assert %{"matches" => true} =
               Official.call(olga, "ratchet_key_matches", %{
                 remote: %{name: "anna", device_id: 1},
                 ratchet_key: key
               })

      # What the official client reports is answered with the message, in a new session.
      Kith.publish_bundle!(kith, "olga", Official.bundle(olga, 1))
      envelope = encrypt_one!(kith, "anna", "olga", "dinner at seven?")

      %{"plaintext_content" => content} =
        Official.call(olga, "decryption_error", %{
          type: if(envelope.type == :prekey, do: 3, else: 2),
          body: Official.hex(envelope.body),
          timestamp: envelope.timestamp
        })

      report = Kith.Envelope.new("olga", "anna", :report, Official.bytes(content))
      assert %{renewed: true, envelopes: [again]} = Kith.resend!(kith, "anna", report)
      assert again.type == :prekey
      assert Official.decrypt(olga, again) == "dinner at seven?"
      to_anna(context, "yes")
      to_olga(context, "good")
    end
  end
end
