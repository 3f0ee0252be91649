defmodule Kith.RecoveryTest do
  use Kith.Case, async: true

  alias Kith.{Envelope, Error}

  setup context do
    kith = start_kith!(Keyword.merge([archive: true], context[:options] || []))
    converse!(kith, "anna", "ben")
    %{kith: kith}
  end

  describe "a message to someone who lost the session" do
    test "is reported, sent again in a new session and opened", %{kith: kith} do
      [envelope] = Kith.encrypt!(kith, "anna", "ben", "dinner at seven?")
      Kith.delete!(kith, "ben", "anna")
      {:error, error} = Kith.decrypt(kith, "ben", envelope)
      assert error.reason == :session_not_found

      assert [report] = Kith.recover!(kith, "ben", envelope, error)
      assert %{type: :report, from: {"ben", 1}, to: {"anna", 1}, version: 0} = report
      {:ok, report} = report |> Envelope.to_binary() |> Envelope.from_binary()

      assert %{renewed: true, envelopes: [again], timestamp: timestamp} =
               Kith.resend!(kith, "anna", report)

      assert timestamp == envelope.timestamp
      assert %{type: :prekey, timestamp: ^timestamp} = again
      assert Kith.decrypt!(kith, "ben", again) == "dinner at seven?"
      # The old one does not open any more, and the conversation goes on.
      assert {:error, _} = Kith.decrypt(kith, "ben", envelope)
      assert send!(kith, "ben", "anna", "yes") == "yes"
      assert %{type: :message} = encrypt_one!(kith, "anna", "ben", "good")
      # The sender has one copy of it.
      texts =
        for message <- Kith.history!(kith, "anna", {:direct, "ben"}).messages,
            do: message.plaintext

      assert Enum.count(texts, &(&1 == "dinner at seven?")) == 1
    end

    test "is reported by binary forms too, for a user", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      Kith.delete!(kith, "ben", "anna")
      packet = Envelope.to_binary(envelope)
      {:error, error} = Kith.decrypt(kith, "ben", packet)
      [report] = Kith.recover!(kith, "ben", packet, error)
      assert %{envelopes: [_]} = Kith.resend!(kith, "anna", Envelope.to_binary(report))
    end

    @tag options: [archive: false]
    test "is the application's to send again without an archive", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      {:error, error} = lose_and_open(kith, envelope)
      [report] = Kith.recover!(kith, "ben", envelope, error)

      assert Kith.resend!(kith, "anna", report) ==
               %{renewed: true, envelopes: [], timestamp: envelope.timestamp}

      assert %{type: :prekey} = again = encrypt_one!(kith, "anna", "ben", "x")
      assert Kith.decrypt!(kith, "ben", again) == "x"
    end

    @tag options: [resend_window: 0]
    test "is not sent again after its time", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      {:error, error} = lose_and_open(kith, envelope)
      [report] = Kith.recover!(kith, "ben", envelope, error)
      Process.sleep(2)
      assert %{renewed: true, envelopes: []} = Kith.resend!(kith, "anna", report)
    end
  end

  describe "a message that is damaged" do
    test "is reported, and the own next message starts a new session", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "dinner")
      damaged = %{envelope | body: corrupt(envelope.body, byte_size(envelope.body) - 1)}
      {:error, error} = Kith.decrypt(kith, "ben", damaged)
      assert error.reason == :tampered
      [report] = Kith.recover!(kith, "ben", damaged, error)
      assert %{type: :prekey} = toward = encrypt_one!(kith, "ben", "anna", "x")
      assert %{renewed: true, envelopes: [again]} = Kith.resend!(kith, "anna", report)
      assert Kith.decrypt!(kith, "ben", again) == "dinner"
      # Both have started anew at once, and agree.
      assert Kith.decrypt!(kith, "anna", toward) == "x"

      for n <- 1..3,
          {a, b} <- [{"anna", "ben"}, {"ben", "anna"}],
          do: assert(send!(kith, a, b, "#{n}") == "#{n}")
    end

    test "finds a damaged session put away", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "dinner")

      sql!(kith, "UPDATE signal_sessions SET state = $1 WHERE user_id = 'ben'", [
        {:blob, :crypto.strong_rand_bytes(300)}
      ])

      {:error, error} = Kith.decrypt(kith, "ben", envelope)
      assert error.reason == :corrupted_state
      [report] = Kith.recover!(kith, "ben", envelope, error)
      assert %{renewed: true, envelopes: [again]} = Kith.resend!(kith, "anna", report)
      assert Kith.decrypt!(kith, "ben", again) == "dinner"
      assert send!(kith, "ben", "anna", "yes") == "yes"
    end
  end

  test "a sender whose sessions were rolled back is told, and uses no key twice after it", %{
    kith: kith
  } do
    before = rows_of(kith, "anna")
    used = for n <- 1..3, do: deliver(kith, "anna", "ben", "lost to anna #{n}")
    put_back(kith, "anna", before)

    # Nothing says that the state is old: this one meets its twin.
    [envelope] = Kith.encrypt!(kith, "anna", "ben", "first after the restore")
    assert header(envelope) == header(hd(used))
    {:error, error} = Kith.decrypt(kith, "ben", envelope)
    assert error.reason == :duplicate

    [report] = Kith.recover!(kith, "ben", envelope, error)
    assert %{renewed: true, envelopes: [again]} = Kith.resend!(kith, "anna", report)
    assert Kith.decrypt!(kith, "ben", again) == "first after the restore"

    later = for n <- 1..3, do: deliver(kith, "anna", "ben", "later #{n}")
    headers = Enum.map(used ++ [again | later], &header/1)
    assert Enum.uniq(headers) == headers
  end

  test "a recipient whose sessions were rolled back finds it out by what it opens again", %{
    kith: kith
  } do
    before = rows_of(kith, "ben")
    envelope = deliver(kith, "anna", "ben", "hello")
    used = deliver(kith, "ben", "anna", "sent before")
    put_back(kith, "ben", before)

    assert Kith.decrypt!(kith, "ben", envelope) == "hello"
    assert %{type: :prekey} = next = encrypt_one!(kith, "ben", "anna", "sent after")
    refute header(next) == header(used)
    assert Kith.decrypt!(kith, "anna", next) == "sent after"
  end

  test "a session with a peer who has no keys here outlives a forged message" do
    kith = start_kith!(unknown_senders: :remember)
    other = start_kith!()
    Kith.register!(kith, "anna")
    Kith.register!(other, "olga")
    Kith.publish_bundle!(other, "anna", Kith.pre_key_bundle!(kith, "anna"))
    [first] = Kith.encrypt!(other, "olga", "anna", "hello")
    Kith.decrypt!(kith, "anna", first)
    [answer] = Kith.encrypt!(kith, "anna", "olga", "hi")
    assert Kith.decrypt!(other, "olga", answer) == "hi"

    [next] = Kith.encrypt!(other, "olga", "anna", "how are you?")
    forged = %{next | body: corrupt(next.body, byte_size(next.body) - 1)}
    {:error, error} = Kith.decrypt(kith, "anna", forged)
    assert [_] = Kith.recover!(kith, "anna", forged, error)
    # What may have been used is not used again, and there is nothing to start anew from.
    assert reason(Kith.encrypt(kith, "anna", "olga", "x")) == :not_registered

    assert Kith.decrypt!(kith, "anna", next) == "how are you?"
    assert [%{type: :message} = again] = Kith.encrypt!(kith, "anna", "olga", "well")
    assert Kith.decrypt!(other, "olga", again) == "well"
  end

  test "a second delivery is no reason to report", %{kith: kith} do
    plain = start_kith!()
    converse!(plain, "anna", "ben")
    envelope = deliver(plain, "anna", "ben", "x")
    {:error, error} = Kith.decrypt(plain, "ben", envelope)
    assert error.reason == :duplicate
    assert Kith.recover!(plain, "ben", envelope, error) == []
    # With an archive it is no error at all.
    envelope = deliver(kith, "anna", "ben", "x")
    assert Kith.decrypt!(kith, "ben", envelope) == "x"
  end

  describe "what people or operators have to do" do
    test "is not done for them", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "x")

      for reason <- [:untrusted_identity, :unsupported_version, :storage, :panic, :locked] do
        assert {:error, %Error{reason: ^reason}} =
                 Kith.recover(kith, "ben", envelope, Error.new(reason))
      end

      assert reason(
               Kith.recover(kith, "cleo", %{envelope | to: {"cleo", 1}}, Error.new(:tampered))
             ) ==
               :not_registered
    end
  end

  describe "a report" do
    test "of someone the message was not for gets nothing", %{kith: kith} do
      Kith.register!(kith, "mallory")
      envelope = encrypt_one!(kith, "anna", "ben", "the door code")
      {:ok, content} = Kith.Native.report_create({:message, envelope.body}, envelope.timestamp, 1)
      report = Envelope.new("mallory", "anna", :report, content)

      assert %{renewed: false, envelopes: []} = Kith.resend!(kith, "anna", report)
      # In ben's name it causes a message to ben.
      assert %{envelopes: [%{to: {"ben", 1}}]} =
               Kith.resend!(kith, "anna", %{report | from: {"ben", 1}})
    end

    test "of one device is answered to that device", %{kith: kith} do
      Kith.register!(kith, {"ben", 2})
      [first, second] = Kith.encrypt!(kith, "anna", "ben", "both")
      assert Kith.decrypt!(kith, "ben", first) == "both"
      damaged = %{second | body: corrupt(second.body, byte_size(second.body) - 1)}
      {:error, error} = Kith.decrypt(kith, "ben", damaged)
      [report] = Kith.recover!(kith, "ben", damaged, error)
      assert %{envelopes: [%{to: {"ben", 2}} = again]} = Kith.resend!(kith, "anna", report)
      assert Kith.decrypt!(kith, "ben", again) == "both"
      assert %{type: :message} = hd(Kith.encrypt!(kith, "anna", "ben", "next"))
    end

    test "of a chain that is over leaves the session alone", %{kith: kith} do
      old = encrypt_one!(kith, "anna", "ben", "old")
      assert send!(kith, "ben", "anna", "turn") == "turn"
      encrypt_one!(kith, "anna", "ben", "new chain")
      {:ok, content} = Kith.Native.report_create({:message, old.body}, old.timestamp, 1)
      report = Envelope.new("ben", "anna", :report, content)
      assert %{renewed: false, envelopes: [again]} = Kith.resend!(kith, "anna", report)
      assert again.type == :message
      assert Kith.decrypt!(kith, "ben", again) == "old"
    end

    test "that is none, or another device's, is malformed", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "x")
      {:ok, content} = Kith.Native.report_create({:message, envelope.body}, 7, 2)
      before = dump(kith)

      for report <- [
            envelope,
            Envelope.new("ben", "anna", :report, content),
            Envelope.new("ben", "anna", :report, "junk"),
            Envelope.new("ben", {"anna", 2}, :report, content)
          ] do
        assert reason(Kith.resend(kith, {"anna", 1}, report)) == :malformed
      end

      long = Envelope.new("ben", "anna", :report, :binary.copy(<<0xC0>>, 100_000))
      assert reason(Kith.resend(kith, "anna", long)) == :too_large
      report = Envelope.new("ben", "anna", :report, content)
      assert reason(Kith.decrypt(kith, "anna", report)) == :malformed
      assert reason(Kith.recover(kith, "anna", report, Error.new(:tampered))) == :tampered
      assert dump(kith) == before
    end

    @tag options: [recovery_limit: 2]
    test "is made and answered a few times an hour for each peer", %{kith: kith} do
      Kith.register!(kith, "cleo")
      converse!(kith, "cleo", "ben")
      envelopes = for n <- 1..3, do: encrypt_one!(kith, "anna", "ben", "#{n}")
      Kith.delete!(kith, "ben", "anna")
      error = Error.new(:session_not_found)

      assert [[report], [_], []] = for(e <- envelopes, do: Kith.recover!(kith, "ben", e, error))
      answered = for _ <- 1..3, do: Kith.resend!(kith, "anna", report)
      assert [[_], [_], []] = Enum.map(answered, & &1.envelopes)
      # It is another peer's turn all the same.
      other = encrypt_one!(kith, "cleo", "ben", "x")
      assert [_] = Kith.recover!(kith, "ben", other, error)
      # An hour later.
      sql!(kith, "UPDATE signal_recoveries SET window_started_at = window_started_at - 3600001")
      assert [_] = Kith.recover!(kith, "ben", hd(envelopes), error)
    end
  end

  defp lose_and_open(kith, envelope) do
    Kith.delete!(kith, "ben", "anna")
    Kith.decrypt(kith, "ben", envelope)
  end

  defp deliver(kith, from, to, text) do
    envelope = encrypt_one!(kith, from, to, text)
    assert Kith.decrypt!(kith, to, envelope) == text
    envelope
  end
end
