defmodule Kith.DevicesTest do
  use Kith.Case, async: true

  alias Kith.Error

  setup do
    kith = start_kith!()
    Kith.register!(kith, "anna")
    for device <- 1..2, do: Kith.register!(kith, "ben", device: device)
    %{kith: kith}
  end

  describe "a message to a user" do
    test "reaches each of their devices, and the sender's others", %{kith: kith} do
      Kith.register!(kith, {"anna", 3})

      for {from, text} <- [{"anna", "first"}, {"anna", "second"}] do
        envelopes = Kith.encrypt!(kith, from, "ben", text)
        assert Enum.map(envelopes, & &1.to) == [{"ben", 1}, {"ben", 2}, {"anna", 3}]
        assert Enum.all?(envelopes, &(&1.from == {"anna", 1}))
        for envelope <- envelopes, do: assert(Kith.decrypt!(kith, envelope.to, envelope) == text)
      end

      # Each device answers for itself.
      envelopes = Kith.encrypt!(kith, {"ben", 2}, "anna", "from the phone")
      assert Enum.map(envelopes, & &1.to) == [{"anna", 1}, {"anna", 3}, {"ben", 1}]

      for envelope <- envelopes,
          do: assert(Kith.decrypt!(kith, envelope.to, envelope) == "from the phone")
    end

    test "is opened for the user, whichever device it is for", %{kith: kith} do
      for envelope <- Kith.encrypt!(kith, "anna", "ben", "hello"),
          do: assert(Kith.decrypt!(kith, "ben", envelope) == "hello")

      [first, second] = Kith.encrypt!(kith, "anna", "ben", "again")
      assert reason(Kith.decrypt(kith, {"ben", 1}, second)) == :malformed
      assert reason(Kith.decrypt(kith, "anna", first)) == :malformed
      bytes = Kith.Envelope.to_binary(second)
      assert Kith.decrypt!(kith, "ben", bytes) == "again"
    end

    test "is for all of their devices or for none", %{kith: kith} do
      Kith.encrypt!(kith, "anna", "ben", "hello")
      damage(kith, "ben", 2)
      before = dump(kith)

      assert {:error, %Error{reason: :corrupted_state} = error} =
               Kith.encrypt(kith, "anna", "ben", "x")

      assert error.detail == "of device 2"
      # The first device's ratchet has not moved; the damaged session is to be replaced.
      assert before["signal_prekeys"] == dump(kith)["signal_prekeys"]
      assert session(before, "ben", 1) == session(dump(kith), "ben", 1)

      assert [%{type: :prekey}, %{type: :prekey}] =
               envelopes = Kith.encrypt!(kith, "anna", "ben", "again")

      for envelope <- envelopes, do: assert(Kith.decrypt!(kith, "ben", envelope) == "again")
    end

    test "does not wait for a device of the sender that cannot be served", %{kith: kith} do
      Kith.register!(kith, {"anna", 2})
      Kith.encrypt!(kith, "anna", "ben", "hello")
      damage(kith, "anna", 2)
      envelopes = Kith.encrypt!(kith, "anna", "ben", "x")
      assert Enum.map(envelopes, & &1.to) == [{"ben", 1}, {"ben", 2}]
      assert length(Kith.encrypt!(kith, "anna", "ben", "x")) == 3
    end

    test "reaches a device that was added, and not one that was removed", %{kith: kith} do
      Kith.encrypt!(kith, "anna", "ben", "one")
      Kith.register!(kith, {"ben", 3})
      envelopes = Kith.encrypt!(kith, "anna", "ben", "two")
      assert [{"ben", 1}, {"ben", 2}, {"ben", 3}] = Enum.map(envelopes, & &1.to)
      for envelope <- envelopes, do: assert(Kith.decrypt!(kith, envelope.to, envelope) == "two")

      late = List.last(Kith.encrypt!(kith, "anna", "ben", "late"))
      Kith.unregister!(kith, {"ben", 3})
      assert [_, _] = Kith.encrypt!(kith, "anna", "ben", "three")
      assert reason(Kith.decrypt(kith, {"ben", 3}, late)) == :not_registered
      assert reason(Kith.encrypt(kith, "anna", {"ben", 3}, "x")) == :not_registered

      # The same number again is another device: what was for the one of before does not open.
      Kith.register!(kith, {"ben", 3})
      assert {:error, _} = Kith.decrypt(kith, {"ben", 3}, late)
      envelope = List.last(Kith.encrypt!(kith, "anna", "ben", "four"))
      assert envelope.type == :prekey
      assert Kith.decrypt!(kith, {"ben", 3}, envelope) == "four"
    end

    test "to one device reaches that one alone", %{kith: kith} do
      Kith.register!(kith, {"anna", 2})
      assert [%{to: {"ben", 2}} = envelope] = Kith.encrypt!(kith, "anna", {"ben", 2}, "you only")
      assert Kith.decrypt!(kith, "ben", envelope) == "you only"

      assert [%{to: {"anna", 2}, type: :prekey} = envelope] =
               Kith.encrypt!(kith, "anna", {"anna", 2}, "to my phone")

      assert Kith.decrypt!(kith, {"anna", 2}, envelope) == "to my phone"
    end

    test "to oneself is one note that opens on every device", %{kith: kith} do
      assert [%{type: :self} = note] = Kith.encrypt!(kith, {"ben", 2}, "ben", "milk")
      assert Kith.decrypt!(kith, "ben", note) == "milk"
      assert Kith.decrypt!(kith, {"ben", 1}, %{note | to: {"ben", 1}}) == "milk"
    end

    test "whose keys are elsewhere goes where there are sessions" do
      kith = start_kith!(unknown_senders: :remember)
      other = start_kith!()
      Kith.register!(kith, "anna")
      Kith.publish_bundle!(other, "anna", Kith.pre_key_bundle!(kith, "anna"))

      for device <- 1..2 do
        Kith.register!(other, {"olga", device})
        [envelope] = Kith.encrypt!(other, {"olga", device}, {"anna", 1}, "hello")
        assert Kith.decrypt!(kith, "anna", envelope) == "hello"
      end

      envelopes = Kith.encrypt!(kith, "anna", "olga", "hi")
      assert Enum.map(envelopes, & &1.to) == [{"olga", 1}, {"olga", 2}]
      for envelope <- envelopes, do: assert(Kith.decrypt!(other, "olga", envelope) == "hi")
    end
  end

  describe "a message to a group" do
    test "answers for each device", %{kith: kith} do
      Kith.register!(kith, {"anna", 2})
      Kith.register!(kith, "cleo")
      members = ["cleo", "anna", "nobody", "ben", {"ben", 2}]
      results = Kith.encrypt_group!(kith, "anna", members, "all")

      assert [
               {{"cleo", 1}, {:ok, _}},
               {{"nobody", 1}, {:error, %Error{reason: :not_registered}}},
               {{"ben", 1}, {:ok, _}},
               {{"ben", 2}, {:ok, _}},
               {{"anna", 2}, {:ok, _}}
             ] = results

      for {address, {:ok, envelope}} <- results,
          do: assert(Kith.decrypt!(kith, address, envelope) == "all")

      # One device that cannot be served fails alone.
      damage(kith, "ben", 2)
      results = Map.new(Kith.encrypt_group!(kith, "anna", ["cleo", "ben"], "x"))
      assert {:error, %Error{reason: :corrupted_state}} = results[{"ben", 2}]
      assert {:ok, _} = results[{"ben", 1}]
      assert map_size(results) == 4
    end

    test "counts devices, not members", %{kith: kith} do
      members = for n <- 1..999, do: {"nobody #{n}", 1}
      assert {:ok, results} = Kith.encrypt_group(kith, "anna", members, "x")
      assert length(results) == 999
      assert reason(Kith.encrypt_group(kith, "anna", ["ben" | members], "x")) == :too_large
    end
  end

  test "a user has no more devices than are allowed", %{kith: kith} do
    for device <- 3..10, do: Kith.register!(kith, {"ben", device})
    before = dump(kith)
    assert reason(Kith.register(kith, {"ben", 11})) == :too_large
    # Those there are may come back as often as they like.
    assert Kith.register!(kith, {"ben", 10}).device == 10
    assert dump(kith) == before

    other = start_kith!()
    client = start_kith!(max_devices: 2)
    for device <- 1..2, do: Kith.register!(client, {"olga", device})
    assert reason(Kith.register(client, {"olga", 3})) == :too_large

    small = start_kith!(max_devices: 1)
    Kith.register!(other, "olga")
    bundle = Kith.pre_key_bundle!(other, "olga")
    Kith.publish_bundle!(small, "olga", bundle)
    assert reason(Kith.publish_bundle(small, {"olga", 2}, bundle)) == :too_large
  end

  test "keys that are none are a value in a transaction of the application", %{kith: kith} do
    repo = Kith.Instance.fetch!(kith).repo
    before = dump(kith)

    assert {:ok, :malformed} =
             Kith.SQLite.transaction(repo, fn ->
               reason(Kith.register(kith, "zed", identity_key_pair: <<1>>))
             end)

    assert dump(kith) == before
  end

  describe "an identity" do
    test "is the same on all devices of a user, so that a new one alarms nobody", %{kith: kith} do
      number = Kith.safety_number!(kith, "anna", "ben").digits
      assert Kith.safety_number!(kith, "anna", {"ben", 2}).digits == number
      Kith.trust!(kith, "anna", "ben", verified: true)
      Kith.register!(kith, {"ben", 3})
      assert Kith.safety_number!(kith, "anna", {"ben", 3}).digits == number

      [_, _, envelope] = Kith.encrypt!(kith, "anna", "ben", "hello")
      assert Kith.decrypt!(kith, {"ben", 3}, envelope) == "hello"
      # Whoever was compared is so with each device.
      assert Kith.session_info!(kith, "anna", {"ben", 3}).verified
    end

    test "is found on whichever device a user has", %{kith: kith} do
      Kith.encrypt!(kith, "anna", "ben", "hello")
      %{digits: digits, scannable: scannable} = Kith.safety_number!(kith, "ben", "anna")
      Kith.unregister!(kith, {"ben", 1})
      assert %{digits: ^digits, identity: :remembered} = Kith.safety_number!(kith, "anna", "ben")
      assert Kith.safety_number_matches!(kith, "anna", "ben", scannable)
      Kith.unregister!(kith, {"ben", 2})
      assert reason(Kith.safety_number(kith, "anna", "ben")) == :not_registered
    end

    test "of another device is not the user's", %{kith: kith} do
      {pair, _} = identity_key_pair()

      assert reason(Kith.register(kith, {"ben", 3}, identity_key_pair: pair)) ==
               :untrusted_identity

      other = start_kith!()
      Kith.register!(other, "mallory")
      bundle = Kith.pre_key_bundle!(other, "mallory")
      assert reason(Kith.publish_bundle(kith, {"ben", 3}, bundle)) == :untrusted_identity
      assert [_, _] = Kith.encrypt!(kith, "anna", "ben", "x")
    end

    test "put into the directory by who can write to the database is not trusted", %{kith: kith} do
      Kith.encrypt!(kith, "anna", "ben", "hello")
      smuggle(kith, {"ben", 3})

      assert {:error, %Error{reason: :untrusted_identity, detail: "of device 3"}} =
               Kith.encrypt(kith, "anna", "ben", "x")

      results = Map.new(Kith.encrypt_group!(kith, "anna", ["ben"], "x"))
      assert {:error, %Error{reason: :untrusted_identity}} = results[{"ben", 3}]
      assert {:ok, _} = results[{"ben", 1}]
    end

    test "that changed is refused on every device and trusted on every device", %{kith: kith} do
      for envelope <- Kith.encrypt!(kith, "anna", "ben", "hello"),
          do: Kith.decrypt!(kith, "ben", envelope)

      for device <- 1..2, do: Kith.unregister!(kith, {"ben", device})
      for device <- 1..2, do: Kith.register!(kith, {"ben", device})
      assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :untrusted_identity
      assert reason(Kith.encrypt(kith, "anna", {"ben", 2}, "x")) == :untrusted_identity

      [toward] = Kith.encrypt!(kith, {"ben", 2}, {"anna", 1}, "it is me")
      assert reason(Kith.decrypt(kith, "anna", toward)) == :untrusted_identity

      Kith.trust!(kith, "anna", "ben", verified: true)
      assert Kith.decrypt!(kith, "anna", toward) == "it is me"

      for envelope <- Kith.encrypt!(kith, "anna", "ben", "welcome back"),
          do: assert(Kith.decrypt!(kith, "ben", envelope) == "welcome back")
    end

    test "of a first message from a new device is that of the user's others", %{kith: kith} do
      for envelope <- Kith.encrypt!(kith, "anna", "ben", "hello"),
          do: Kith.decrypt!(kith, "ben", envelope)

      other = start_kith!()
      Kith.register!(other, {"ben", 3})
      Kith.publish_bundle!(other, "anna", Kith.pre_key_bundle!(kith, "anna"))
      [forged] = Kith.encrypt!(other, {"ben", 3}, {"anna", 1}, "give me the door code")
      assert reason(Kith.decrypt(kith, "anna", forged)) == :untrusted_identity

      remembering = start_kith!(unknown_senders: :remember)
      assert reason(Kith.decrypt(remembering, "anna", forged)) == :not_registered
    end
  end

  test "sessions of all devices of a peer are reset and deleted together", %{kith: kith} do
    Kith.encrypt!(kith, "anna", "ben", "hello")
    assert Kith.reset_session!(kith, "anna", "ben") == :reset

    for device <- 1..2,
        do: refute(Kith.session_info(kith, "anna", {"ben", device}) |> elem(0) == :ok)

    assert [%{type: :prekey}, %{type: :prekey}] = Kith.encrypt!(kith, "anna", "ben", "hello")
    assert Kith.delete!(kith, "anna", {"ben", 2}) == :deleted
    assert Kith.session_info!(kith, "anna", "ben").current
    assert Kith.delete!(kith, "anna", "ben") == :deleted
    assert reason(Kith.delete(kith, "anna", "ben")) == :session_not_found
  end

  describe "a session nobody answers in" do
    test "is replaced after a while", %{kith: kith} do
      [first, _] = Kith.encrypt!(kith, "anna", "ben", "hello")
      Kith.decrypt!(kith, "ben", first)
      [reply] = Kith.encrypt!(kith, {"ben", 1}, {"anna", 1}, "hi")
      Kith.decrypt!(kith, "anna", reply)
      assert %{type: :message} = hd(Kith.encrypt!(kith, "anna", "ben", "one"))
      days_pass(kith, 29)
      assert %{type: :message} = hd(Kith.encrypt!(kith, "anna", "ben", "two"))
      days_pass(kith, 2)
      assert %{type: :prekey} = envelope = hd(Kith.encrypt!(kith, "anna", "ben", "three"))
      assert Kith.decrypt!(kith, "ben", envelope) == "three"
      # What was on its way in the one of before still opens.
      assert %{type: :prekey} = hd(Kith.encrypt!(kith, "anna", "ben", "four"))
    end

    test "goes on while there is nothing to start anew from", %{kith: kith} do
      Kith.encrypt!(kith, "anna", {"ben", 1}, "hello")
      days_pass(kith, 31)
      sql!(kith, "DELETE FROM signal_identity_keys WHERE user_id = 'ben'")
      assert [_] = Kith.encrypt!(kith, "anna", {"ben", 1}, "two")
    end
  end

  defp days_pass(kith, days) do
    sql!(
      kith,
      "UPDATE signal_sessions SET established_at = established_at - $1, received_at = received_at - $1",
      [days * 86_400_000]
    )
  end

  defp damage(kith, peer, device) do
    sql!(
      kith,
      "UPDATE signal_sessions SET state = $1 WHERE user_id = 'anna' AND peer_id = $2 AND peer_device_id = $3",
      [{:blob, :crypto.strong_rand_bytes(300)}, peer, device]
    )
  end

  defp session(dump, peer, device),
    do: Enum.find(dump["signal_sessions"], &match?(["anna", 1, ^peer, ^device | _], &1))

  # A device with keys of its own, as Kith itself would not let in.
  defp smuggle(kith, {user, device}) do
    sql!(
      kith,
      "UPDATE signal_identity_keys SET user_id = 'hidden' WHERE user_id = $1",
      [user]
    )

    Kith.register!(kith, {user, device})
    sql!(kith, "UPDATE signal_identity_keys SET user_id = $1 WHERE user_id = 'hidden'", [user])
  end
end
