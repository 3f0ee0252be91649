defmodule Kith.ReviewOpenTest do
  # Found and not fixed.
  use Kith.Case, async: true

  alias Kith.Envelope

  test "a forged message is no end of a session with a peer who has no keys here" do
    kith = start_kith!(unknown_senders: :remember)
    other = start_kith!()
    register!(kith, ["anna"])
    register!(other, ["ben"])
    Kith.publish_bundle!(other, "anna", Kith.pre_key_bundle!(kith, "anna"))
    assert Kith.decrypt!(kith, "anna", encrypt_one!(other, "ben", "anna", "hi")) == "hi"
    envelope = encrypt_one!(kith, "anna", "ben", "hello")
    assert Kith.decrypt!(other, "ben", envelope) == "hello"
    envelope = encrypt_one!(other, "ben", "anna", "x")

    forged = %{envelope | body: corrupt(envelope.body, byte_size(envelope.body) - 1)}
    {:error, error} = Kith.decrypt(kith, "anna", forged)
    Kith.recover!(kith, "anna", forged, error)
    assert {:ok, [_]} = Kith.encrypt(kith, "anna", "ben", "still here")

    # Whoever sees a message knows its ratchet key.
    seen = encrypt_one!(kith, "anna", "ben", "seen")
    {:ok, content} = Kith.Native.report_create({seen.type, seen.body}, seen.timestamp, 1)
    Kith.resend!(kith, "anna", Envelope.new("ben", "anna", :report, content))
    assert {:ok, [_]} = Kith.encrypt(kith, "anna", "ben", "still here")
  end

  test "what has disappeared is not asked for again", %{kith: _} do
    clock = :atomics.new(1, [])
    :atomics.put(clock, 1, System.system_time(:millisecond))
    kith = start_kith!(archive: true, clock: fn -> :atomics.get(clock, 1) end)
    converse!(kith, "anna", "ben")
    envelope = encrypt_one!(kith, "anna", "ben", "disappears")
    assert Kith.decrypt!(kith, "ben", envelope, expires_in: 60) == "disappears"
    :atomics.add(clock, 1, 61_000)
    {:error, error} = Kith.decrypt(kith, "ben", envelope)
    assert error.reason == :duplicate
    assert [] = Kith.recover!(kith, "ben", envelope, error)
  end
end
