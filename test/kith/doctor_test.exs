defmodule Kith.DoctorTest do
  use Kith.Case, async: true

  alias Kith.Envelope

  setup do
    kith = start_kith!()
    converse!(kith, "anna", "ben")
    %{kith: kith}
  end

  describe "a message" do
    test "that opens is not opened", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "secret words")
      before = dump(kith)

      assert %{opens: true, reason: nil, explanation: "The message opens.", facts: facts} =
               Kith.doctor!(kith, "ben", envelope)

      assert %{chain: :current, key_stored: false, session: %{state: :opens}} = facts
      assert dump(kith) == before
      assert Kith.decrypt!(kith, "ben", envelope) == "secret words"
    end

    test "that starts a session is explained with its prekeys", %{kith: kith} do
      Kith.register!(kith, "cleo")
      envelope = encrypt_one!(kith, "cleo", "ben", "hello")
      before = dump(kith)

      assert %{opens: true, facts: facts} =
               Kith.doctor!(kith, "ben", Envelope.to_binary(envelope))

      assert facts.prekeys == %{signed: :held, one_time: :held, kyber: :held}
      assert facts.identity == %{remembered: false, message: :same, published: :unknown}
      assert facts.session == :none
      assert dump(kith) == before

      sql!(kith, "DELETE FROM signal_prekeys WHERE user_id = 'ben' AND kind = 'one_time'")
      assert %{reason: :unknown_prekey} = found = Kith.doctor!(kith, "ben", envelope)
      assert found.facts.prekeys.one_time == :absent
      assert found.explanation =~ "(one-time)"
    end

    test "is explained in each of the ways it fails", %{kith: kith} do
      opened = encrypt_one!(kith, "anna", "ben", "x")
      Kith.decrypt!(kith, "ben", opened)
      assert reason?(kith, opened, :duplicate) =~ "used before"

      envelope = encrypt_one!(kith, "anna", "ben", "x")
      damaged = %{envelope | body: corrupt(envelope.body, byte_size(envelope.body) - 1)}
      assert reason?(kith, damaged, :tampered) =~ "current session"

      # The ratchet key of the session of another pair.
      Kith.register!(kith, "cleo")
      converse!(kith, "cleo", "anna")
      other = encrypt_one!(kith, "cleo", "anna", "x")
      foreign = %{envelope | body: other.body}
      assert reason?(kith, foreign, :tampered) =~ "No session here knows"

      reflected = %{encrypt_one!(kith, "ben", "anna", "x") | from: {"anna", 1}, to: {"ben", 1}}
      assert reason?(kith, reflected, :tampered) =~ "came back"

      sql!(kith, "UPDATE signal_sessions SET state = $1 WHERE user_id = 'ben'", [{:blob, "junk"}])
      assert reason?(kith, envelope, :corrupted_state) =~ "stored session"

      Kith.delete!(kith, "ben", "anna")
      assert reason?(kith, envelope, :session_not_found) =~ "asks the sender"

      Kith.unregister!(kith, "anna")
      Kith.register!(kith, "anna")
      again = encrypt_one!(kith, "anna", "ben", "x")

      sql!(kith, "UPDATE signal_identity_keys SET public_key = $1 WHERE user_id = 'anna'", [
        {:blob, <<5, 9::256>>}
      ])

      assert reason?(kith, again, :untrusted_identity) =~ "not the one registered"
      assert reason?(kith, Envelope.new("anna", "ben", :message, "junk"), :malformed)
      assert reason?(kith, Envelope.new("anna", "cleo", :report, "junk"), :malformed, "cleo")

      assert reason?(
               kith,
               Envelope.new("anna", "nobody", :message, other.body),
               :not_registered,
               "nobody"
             )

      assert reason(Kith.doctor(kith, "ben", <<1, "junk">>)) == :malformed
    end

    test "is explained without anything secret", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "secret words")

      shown =
        inspect(Kith.doctor!(kith, "ben", envelope), limit: :infinity, printable_limit: :infinity)

      refute shown =~ "secret"
      refute shown =~ Base.encode16(envelope.body)
      refute shown =~ inspect(envelope.body, limit: :infinity)
    end
  end

  describe "an instance" do
    test "that is well", %{kith: kith} do
      assert [
               {:tables, :ok, _},
               {:keys, :ok, keys},
               {:sessions, :ok, sessions},
               {:prekeys, :ok, _}
             ] = Kith.doctor!(kith)

      assert keys =~ "2 accounts"
      assert sessions =~ "2 sessions"
    end

    test "that is well though an account is locked", %{kith: kith} do
      Kith.lock_with_password!(kith, "anna", "correct horse", memory: 8_192, passes: 1)
      Kith.lock!(kith, "anna")
      assert [_, {:keys, :ok, keys}, _, _] = Kith.doctor!(kith)
      assert keys =~ "2 accounts"
    end

    test "that is not", %{kith: kith} do
      for n <- 1..120,
          do:
            sql!(
              kith,
              "INSERT INTO signal_accounts (user_id, data_key, created_at) VALUES ($1, $2, 0)",
              ["u#{n}", {:blob, "junk"}]
            )

      sql!(kith, "DELETE FROM signal_prekeys WHERE user_id = 'ben' AND kind = 'one_time'")
      sql!(kith, "UPDATE signal_sessions SET renew_since = 1 WHERE user_id = 'ben'")

      found =
        Map.new(Kith.doctor!(kith), fn {check, condition, text} -> {check, {condition, text}} end)

      assert {:error, text} = found.keys
      assert text =~ "2 accounts open" and text =~ "120 with corrupted_state"
      assert {:warning, text} = found.sessions
      assert text =~ "1 start anew"
      assert {:warning, text} = found.prekeys
      assert text =~ "ben/1 has 0"
    end
  end

  defp reason?(kith, envelope, reason, to \\ "ben") do
    before = dump(kith)
    assert %{opens: false, reason: ^reason, explanation: text} = Kith.doctor!(kith, to, envelope)
    assert dump(kith) == before
    text
  end
end
