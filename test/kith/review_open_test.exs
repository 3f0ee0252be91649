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

  test "what has disappeared is not asked for again" do
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

defmodule Kith.ReviewTransactionTest do
  use Kith.Case, async: true

  test "keys that are none are a value in a transaction of the application" do
    kith = start_kith!()
    repo = Kith.Instance.fetch!(kith).repo

    assert {:ok, :malformed} =
             Kith.SQLite.transaction(repo, fn ->
               reason(Kith.register(kith, "zed", identity_key_pair: <<1>>))
             end)
  end

  test "one member cannot keep a message from a group" do
    kith = start_kith!(one_time_prekeys: 1, one_time_kyber_prekeys: 0, replenish_below: 0)
    members = for n <- 1..8, do: "user #{n}"
    register!(kith, ["anna" | members])

    for user <- members, device <- 2..127 do
      sql!(
        kith,
        "INSERT INTO signal_identity_keys (user_id, device_id, registration_id, public_key, next_prekey_id, next_kyber_prekey_id, created_at) " <>
          "SELECT user_id, $2, registration_id, public_key, 1, 1, created_at FROM signal_identity_keys WHERE user_id = $1 AND device_id = 1",
        [user, device]
      )
    end

    assert {:ok, _} = Kith.encrypt_group(kith, "anna", members, "hello")
  end
end
