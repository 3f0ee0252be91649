defmodule Kith.SignedTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  import Kith.Test.SignedClient

  alias Kith.Signed
  alias Kith.Signed.Message

  doctest Kith.Signed, import: false

  setup do
    ahead = :atomics.new(1, [])
    clock = fn -> 1_800_000_000_000 + :atomics.get(ahead, 1) end
    %{kith: start_kith!(clock: clock), now: 1_800_000_000_000, ahead: ahead}
  end

  defp pass(ahead, seconds), do: :atomics.add(ahead, 1, seconds * 1_000)

  defp envelope_at(key, seed, now, options \\ []) do
    options = Keyword.merge([audience: "orders", timestamp: now], options)
    envelope(key.id, seed, Keyword.get(options, :payload, "payload"), options)
  end

  defp verify(kith, envelope, options \\ []),
    do: Signed.verify(kith, envelope, Keyword.merge([audience: "orders"], options))

  describe "a message" do
    test "that a registered key signed is verified once, with owner and permissions", context do
      %{kith: kith, now: now} = context
      {:ok, key, seed} = register(kith, "till-7", permissions: ["orders:write", "a", "a"])
      envelope = envelope_at(key, seed, now, payload: <<0, 255, "bytes">>)

      assert {:ok, %Message{} = message} = verify(kith, envelope)
      assert message.payload == <<0, 255, "bytes">>
      assert message.owner == "till-7"
      assert message.permissions == ["a", "orders:write"]
      assert message.key_id == key.id
      assert message.timestamp == now
      assert message.reply_to == nil
      refute inspect(message) =~ "bytes"

      assert reason(verify(kith, envelope)) == :duplicate
      assert reason(verify(kith, envelope, replay: fn _, _, _ -> :seen end)) == :duplicate
    end

    test "in which any field was changed is refused", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      {:ok, other, _} = register(kith, "till-8")
      envelope = envelope_at(key, seed, now)
      flip = fn base64 -> base64 |> Base.decode64!() |> corrupt(0) |> Base.encode64() end

      for changed <- [
            Map.update!(envelope, "payload", flip),
            Map.update!(envelope, "nonce", flip),
            Map.update!(envelope, "signature", flip),
            Map.update!(envelope, "timestamp", &(&1 + 1)),
            %{envelope | "public_key_id" => other.id},
            %{envelope | "audience" => "payments"},
            Map.put(envelope, "reply_to", envelope["nonce"])
          ] do
        assert reason(verify(kith, changed)) == :tampered
        assert reason(verify(kith, changed, audience: "payments")) == :tampered
      end

      # None of it has used up the message.
      assert {:ok, _} = verify(kith, envelope)
    end

    test "that is not in the one form of an envelope is refused", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      envelope = envelope_at(key, seed, now)

      for malformed <-
            [
              nil,
              "",
              [],
              %{},
              Map.put(envelope, "admin", true),
              Map.put(envelope, "reply_to", ""),
              Map.put(envelope, :payload, "x"),
              %{envelope | "payload" => String.trim_trailing(envelope["payload"], "=") <> "\n"},
              %{envelope | "signature" => binary_part(envelope["signature"], 0, 84)},
              %{envelope | "nonce" => "AA=="},
              %{envelope | "timestamp" => "1800000000000"},
              %{envelope | "timestamp" => -1},
              %{envelope | "timestamp" => 1.8e12},
              %{envelope | "timestamp" => 9_007_199_254_740_992},
              %{envelope | "public_key_id" => String.upcase(key.id) <> "0"},
              %{envelope | "public_key_id" => key.id <> "\n"},
              %{envelope | "audience" => ""},
              %{envelope | "audience" => 7},
              %{envelope | "payload" => nil},
              %{envelope | "version" => "1"}
            ] ++ for({field, _} <- envelope, do: Map.delete(envelope, field)) do
        assert reason(verify(kith, malformed)) == :malformed, inspect(malformed)
      end

      assert reason(verify(kith, %{envelope | "version" => 2})) == :unsupported_version
      assert {:ok, _} = verify(kith, envelope)
    end

    test "spelled with other base64 is refused", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      envelope = envelope_at(key, seed, now, nonce: <<0::128>>)
      assert envelope["nonce"] == "AAAAAAAAAAAAAAAAAAAAAA=="
      # The same bytes: Base.decode64/1 drops the bits.
      assert Base.decode64!("AAAAAAAAAAAAAAAAAAAAAB==") == <<0::128>>

      assert reason(verify(kith, %{envelope | "nonce" => "AAAAAAAAAAAAAAAAAAAAAB=="})) ==
               :malformed
    end

    test "of up to 1 MiB is verified, and a larger one refused", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      largest = :binary.copy("x", 1_048_576)

      assert {:ok, %{payload: ^largest}} =
               verify(kith, envelope_at(key, seed, now, payload: largest))

      assert reason(verify(kith, envelope_at(key, seed, now, payload: largest <> "xx"))) ==
               :too_large
    end

    test "is accepted for its age and the skew, and not a moment longer", context do
      %{kith: kith, now: now} = context
      {:ok, key, seed} = register(kith, "till-7")
      try_at = fn at -> reason(verify(kith, envelope_at(key, seed, at), max_age: 30, skew: 5)) end
      assert {:ok, _} = try_at.(now - 30_000)
      assert try_at.(now - 30_001) == :stale
      assert {:ok, _} = try_at.(now + 5_000)
      assert try_at.(now + 5_001) == :stale
    end

    test "is not accepted again however long it waits", context do
      %{kith: kith, now: now, ahead: ahead} = context
      {:ok, key, seed} = register(kith, "till-7")
      envelope = envelope_at(key, seed, now + 300_000)
      widest = [max_age: 3_600, skew: 300]
      assert {:ok, _} = verify(kith, envelope, widest)

      for _ <- 1..40 do
        pass(ahead, 100)
        assert reason(verify(kith, envelope, widest)) in [:duplicate, :stale]
        # Another one, so that nonces that have run out are deleted.
        later = now + :atomics.get(ahead, 1)
        assert {:ok, _} = verify(kith, envelope_at(key, seed, later), widest)
      end

      assert reason(verify(kith, envelope, widest)) == :stale
      pass(ahead, 600)
      later = now + :atomics.get(ahead, 1)
      assert {:ok, _} = verify(kith, envelope_at(key, seed, later))
      assert [[count]] = sql!(kith, "SELECT COUNT(*) FROM signed_nonces")
      # Those of the last 70 minutes.
      assert count == 38
      pass(ahead, 10_000)
      Kith.maintain!(kith)
      assert [[0]] = sql!(kith, "SELECT COUNT(*) FROM signed_nonces")
    end

    test "is accepted once, whoever else brings it at the same time", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      envelope = envelope_at(key, seed, now)

      results =
        1..16
        |> Enum.map(fn _ -> Task.async(fn -> reason(verify(kith, envelope)) end) end)
        |> Task.await_many(60_000)

      assert [{:ok, _}] = results -- List.duplicate(:duplicate, 15)
    end

    test "beyond the limit of an hour waits, and replays do not count", context do
      %{kith: kith, now: now, ahead: ahead} = context
      {:ok, key, seed} = register(kith, "till-7")
      {:ok, other, other_seed} = register(kith, "till-8")
      first = envelope_at(key, seed, now)
      assert {:ok, _} = verify(kith, first, limit: 3)
      for _ <- 1..5, do: assert(reason(verify(kith, first, limit: 3)) == :duplicate)
      for _ <- 1..2, do: assert({:ok, _} = verify(kith, envelope_at(key, seed, now), limit: 3))
      assert reason(verify(kith, envelope_at(key, seed, now), limit: 3)) == :busy
      assert {:ok, _} = verify(kith, envelope_at(other, other_seed, now), limit: 3)
      assert [[4]] = sql!(kith, "SELECT COUNT(*) FROM signed_nonces")
      pass(ahead, 3_600)
      assert {:ok, _} = verify(kith, envelope_at(key, seed, now + 3_600_000), limit: 3)
    end

    test "has its nonce kept where the application says", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      test = self()

      replay = fn key_id, nonce, until ->
        send(test, {:asked, key_id, nonce, until})
        :new
      end

      envelope = envelope_at(key, seed, now, nonce: <<7::128>>)
      assert {:ok, _} = verify(kith, envelope, replay: replay)
      id = key.id
      assert_received {:asked, ^id, <<7::128>>, until}
      assert until == now + 4_200_000
      assert [[0]] = sql!(kith, "SELECT COUNT(*) FROM signed_nonces")

      # It is not asked about what is not signed.
      assert reason(verify(kith, %{envelope | "timestamp" => now + 1}, replay: replay)) ==
               :tampered

      refute_received {:asked, _, _, _}

      assert_raise ArgumentError, ~r/:new or :seen/, fn ->
        verify(kith, envelope, replay: fn _, _, _ -> "secret" end)
      end
    end

    test "is forgotten with the transaction it was accepted in", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      envelope = envelope_at(key, seed, now)
      assert {:ok, _} = undone!(kith, fn -> verify(kith, envelope) end)
      assert {:ok, _} = verify(kith, envelope)
      assert reason(verify(kith, envelope)) == :duplicate
    end

    test "corrupted at random is never accepted", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      envelope = envelope_at(key, seed, now, payload: "pay 10 to anna")
      :rand.seed(:exsss, {1, 2, 3})

      for _ <- 1..500 do
        {field, value} = Enum.random(envelope)
        changed = Map.put(envelope, field, garbled(value))

        if changed != envelope,
          do: assert({:error, %Kith.Error{}} = verify(kith, changed), inspect(changed))
      end

      assert {:ok, %{payload: "pay 10 to anna"}} = verify(kith, envelope)
    end
  end

  defp garbled(value) when is_integer(value), do: value + Enum.random(-5..5)

  defp garbled(text) do
    at = :rand.uniform(byte_size(text)) - 1
    {before, <<_, rest::binary>>} = String.split_at(text, at)

    case :rand.uniform(3) do
      1 -> before <> rest
      2 -> before <> <<Enum.random(32..126)>> <> rest
      3 -> before <> <<Enum.random(0..255)>> <> from(text, at)
    end
  end

  describe "a key" do
    test "is registered with a proof that its private half is there", %{kith: kith, now: now} do
      {public, seed} = key_pair()
      {_, other_seed} = key_pair()
      challenge = Signed.challenge!(kith, "till-7")
      signed = fn fields, seed -> sign(statement("registration", fields), seed) end
      proof = fn signature -> %{challenge: challenge, signature: signature} end
      right = signed.(["till-7", challenge, public], seed)

      for wrong <- [
            signed.(["till-7", challenge, public], other_seed),
            signed.(["till-8", challenge, public], seed),
            signed.(["till-7", <<0::256>>, public], seed),
            sign(statement("message", ["till-7", challenge, public]), seed),
            <<0::512>>,
            ""
          ],
          do: assert(reason(Signed.register(kith, "till-7", public, proof.(wrong))) == :tampered)

      assert {:ok, key} =
               Signed.register(kith, "till-7", public, proof.(right), permissions: ["a"])

      assert key.id == Signed.key_id(public)
      assert key.created_at == now
      assert Signed.key!(kith, key.id) == key
      assert Signed.keys!(kith, "till-7") == [key]
      assert Signed.keys!(kith, "till-8") == []

      # The challenge is used up, and the key is taken.
      assert reason(Signed.register(kith, "till-7", public, proof.(right))) == :stale
      assert {:error, %{reason: :duplicate}} = register(kith, "till-8", key_pair: {public, seed})
    end

    test "is not registered with the challenge of another, or an old one", context do
      %{kith: kith, ahead: ahead} = context
      {public, seed} = key_pair()

      proof = fn owner, challenge ->
        %{
          challenge: challenge,
          signature: sign(statement("registration", [owner, challenge, public]), seed)
        }
      end

      of_another = Signed.challenge!(kith, "till-8")

      assert reason(Signed.register(kith, "till-7", public, proof.("till-7", of_another))) ==
               :stale

      replaced = Signed.challenge!(kith, "till-7")
      challenge = Signed.challenge!(kith, "till-7")
      assert reason(Signed.register(kith, "till-7", public, proof.("till-7", replaced))) == :stale
      pass(ahead, 600)

      assert reason(Signed.register(kith, "till-7", public, proof.("till-7", challenge))) ==
               :stale

      Kith.maintain!(kith)
      assert [[2]] = sql!(kith, "SELECT COUNT(*) FROM signed_challenges")
      pass(ahead, 1)
      Kith.maintain!(kith)
      assert [[0]] = sql!(kith, "SELECT COUNT(*) FROM signed_challenges")
    end

    test "that is none, or of small order, is refused", %{kith: kith} do
      for bytes <- [
            "",
            <<1::little-256>>,
            <<0::256>>,
            Base.decode16!("26E8958FC2B227B045C3F489F2EF98F0D5DFAC05D3C63339B13802886D53FC05"),
            <<2::little-256>>,
            :binary.copy(<<255>>, 32),
            :binary.copy("x", 33)
          ] do
        assert reason(Signed.register(kith, "till-7", bytes, :operator)) == :malformed
      end

      assert Signed.keys!(kith, "till-7") == []
    end

    test "that an operator brings needs no proof", %{kith: kith, now: now} do
      {public, seed} = key_pair()
      assert {:ok, key} = Signed.register(kith, "till-7", public, :operator)
      assert {:ok, _} = verify(kith, envelope_at(key, seed, now))
    end

    test "that is unknown, revoked or has expired verifies nothing", context do
      %{kith: kith, now: now, ahead: ahead} = context
      {public, seed} = key_pair()
      unknown = %{id: Signed.key_id(public)}
      assert {:error, error} = verify(kith, envelope_at(unknown, seed, now))
      assert {error.reason, error.detail} == {:key_not_found, "no such key is registered"}

      {:ok, key, seed} = register(kith, "till-7")
      assert {:ok, _} = verify(kith, envelope_at(key, seed, now))
      assert {:ok, revoked} = Signed.revoke(kith, key.id)
      assert revoked.revoked_at == now
      assert {:error, error} = verify(kith, envelope_at(key, seed, now))
      assert {error.reason, error.detail} == {:key_not_found, "the key is revoked"}
      assert [[1]] = sql!(kith, "SELECT COUNT(*) FROM signed_nonces")
      pass(ahead, 1)
      assert Signed.revoke!(kith, key.id) == revoked
      assert reason(Signed.revoke(kith, unknown.id)) == :key_not_found

      {:ok, key, seed} = register(kith, "till-7", expires_at: now + 10_000)
      assert {:ok, _} = verify(kith, envelope_at(key, seed, now))
      pass(ahead, 9)
      assert {:error, error} = verify(kith, envelope_at(key, seed, now))
      assert {error.reason, error.detail} == {:key_not_found, "the key has expired"}
    end

    test "has the permissions it was given last", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7", permissions: ["orders:write"])
      assert Signed.permit!(kith, key.id, ["ä, b", "a"]).permissions == ["a", "ä, b"]
      assert {:ok, %{permissions: ["a", "ä, b"]}} = verify(kith, envelope_at(key, seed, now))
      assert Signed.permit!(kith, key.id, []).permissions == []
      assert {:ok, %{permissions: []}} = verify(kith, envelope_at(key, seed, now))
      assert reason(Signed.permit(kith, "unknown", [])) == :key_not_found
    end

    test "is replaced when both it and the new one sign", context do
      %{kith: kith, now: now, ahead: ahead} = context
      {:ok, old, old_seed} = register(kith, "till-7", permissions: ["a"])
      {public, seed} = key_pair()
      {_, stranger} = key_pair()
      challenge = Signed.challenge!(kith, "till-7")
      bytes = statement("rotation", ["till-7", challenge, old.id, public])

      proof = %{
        challenge: challenge,
        signature: sign(bytes, seed),
        old_signature: sign(bytes, old_seed)
      }

      for wrong <- [
            %{proof | signature: sign(bytes, stranger)},
            %{proof | old_signature: sign(bytes, stranger)},
            %{proof | old_signature: proof.signature},
            %{proof | challenge: <<0::256>>}
          ],
          do: assert(reason(Signed.rotate(kith, old.id, public, wrong)) == :tampered)

      assert {:ok, new} = Signed.rotate(kith, old.id, public, proof, overlap: 60)
      assert {new.owner, new.permissions} == {"till-7", ["a"]}
      replaced = Signed.key!(kith, old.id)
      assert {replaced.replaced_by, replaced.expires_at} == {new.id, now + 60_000}
      assert {:ok, _} = verify(kith, envelope_at(old, old_seed, now))
      assert {:ok, _} = verify(kith, envelope_at(new, seed, now))
      pass(ahead, 60)
      assert reason(verify(kith, envelope_at(old, old_seed, now))) == :key_not_found
      assert {:ok, _} = verify(kith, envelope_at(new, seed, now))
      assert reason(Signed.rotate(kith, old.id, public, proof)) == :key_not_found
    end
  end

  describe "the service" do
    test "signs its answer to a message, for the client who sent it", %{kith: kith, now: now} do
      {:ok, key, seed} = register(kith, "till-7")
      {:ok, message} = verify(kith, envelope_at(key, seed, now, nonce: <<9::128>>))
      assert {:ok, response} = Signed.sign(kith, "answer", reply_to: message)
      assert [service_key] = Signed.service_keys!(kith)

      assert %{
               "version" => 1,
               "audience" => audience,
               "timestamp" => ^now,
               "payload" => "YW5zd2Vy",
               "reply_to" => "AAAAAAAAAAAAAAAAAAAACQ=="
             } = response

      assert {audience, response["public_key_id"]} == {key.id, service_key.id}

      bytes =
        statement("message", [
          service_key.id,
          key.id,
          <<now::64>>,
          Base.decode64!(response["nonce"]),
          <<9::128>>,
          "answer"
        ])

      signature = Base.decode64!(response["signature"])
      public = [service_key.public_key, :ed25519]
      assert :crypto.verify(:eddsa, :none, bytes, signature, public)
    end

    test "may be the client of another", %{kith: kith} do
      other = start_kith!(clock: fn -> 1_800_000_000_000 end)
      [mine] = Signed.service_keys!(kith)
      [theirs] = Signed.service_keys!(other)
      Signed.register!(other, "shop", mine.public_key, :operator, permissions: ["pay"])
      Signed.register!(kith, "bank", theirs.public_key, :operator, [])

      request = Signed.sign!(kith, "pay", audience: "bank")
      assert {:ok, message} = Signed.verify(other, request, audience: "bank")
      assert {message.owner, message.permissions} == {"shop", ["pay"]}
      response = Signed.sign!(other, "paid", reply_to: message)
      answer = [audience: mine.id, reply_to: request]

      assert {:error, error} = Signed.verify(kith, response, audience: mine.id)
      assert error.detail == "the message is a response to something else"
      another = Signed.sign!(kith, "pay", audience: "bank")

      assert reason(Signed.verify(kith, response, audience: mine.id, reply_to: another)) ==
               :tampered

      assert {:error, error} = Signed.verify(other, another, audience: "bank", reply_to: request)
      assert error.detail == "the message is no response"
      assert {:ok, %{payload: "paid", owner: "bank"}} = Signed.verify(kith, response, answer)
      assert reason(Signed.verify(kith, response, answer)) == :duplicate
    end

    test "has one key to sign with, whoever asks first", %{kith: kith} do
      ids =
        1..8
        |> Enum.map(fn _ -> Task.async(fn -> Signed.sign!(kith, "x", audience: "a") end) end)
        |> Task.await_many(60_000)
        |> Enum.map(& &1["public_key_id"])

      assert [id] = Enum.uniq(ids)
      assert [%{id: ^id, retired_at: nil, endorsed_by: nil}] = Signed.service_keys!(kith)
    end

    test "gets a new key that the one before vouches for", %{kith: kith, now: now} do
      [old] = Signed.service_keys!(kith)
      assert {:ok, new} = Signed.rotate_service_key(kith)
      assert [^new, %{retired_at: ^now} = retired] = Signed.service_keys!(kith)
      assert retired.id == old.id
      assert Signed.sign!(kith, "x", audience: "a")["public_key_id"] == new.id
      bytes = statement("endorsement", [old.id, new.public_key])
      public = [old.public_key, :ed25519]
      assert new.endorsed_by == old.id
      assert :crypto.verify(:eddsa, :none, bytes, new.endorsement, public)
    end

    test "takes over a key it had elsewhere, from a file that only it may read", %{kith: kith} do
      {public, seed} = key_pair()
      file = Path.join(tmp_dir!(), "seed")
      File.write!(file, Base.encode64(seed))
      File.chmod!(file, 0o644)
      assert {:error, error} = Signed.rotate_service_key(kith, from: {:file, file})
      assert error.reason == :malformed
      assert error.detail =~ "such as 0600, got 0644"
      assert [%{retired_at: nil}] = Signed.service_keys!(kith)

      File.chmod!(file, 0o600)
      assert {:ok, %{public_key: ^public}} = Signed.rotate_service_key(kith, from: {:file, file})
      assert reason(Signed.rotate_service_key(kith, from: {:file, file})) == :duplicate
      File.write!(file, Base.encode64("short"))
      assert reason(Signed.rotate_service_key(kith, from: {:file, file})) == :malformed
      assert [%{public_key: ^public, retired_at: nil}, _] = Signed.service_keys!(kith)
    end

    test "whose key was moved to another row, or changed, does not sign", %{kith: kith} do
      Signed.service_keys!(kith)
      Kith.ClientKey.service_keys!(kith)
      [[wrapped]] = private_key(kith, "signing")
      [[other]] = private_key(kith, "agreement")

      for changed <- [
            other,
            corrupt(wrapped, byte_size(wrapped) - 1),
            "",
            binary_part(wrapped, 0, 40)
          ] do
        sql!(
          kith,
          "UPDATE signed_service_keys SET private_key_encrypted = $1 WHERE purpose = 'signing'",
          [{:blob, changed}]
        )

        assert reason(Signed.sign(kith, "x", audience: "a")) == :corrupted_state
      end
    end

    test "without the key-encryption key it was wrapped under does not sign" do
      options = defaults()
      kith = start_kith!(options)
      Signed.sign!(kith, "x", audience: "a")
      stop_kith!(kith)
      kith = start_kith!(Keyword.put(options, :keys, current: {"other", {:key, <<1::256>>}}))
      assert reason(Signed.sign(kith, "x", audience: "a")) == :key_not_found
      stop_kith!(kith)

      # The same name, and not the same key.
      kith = start_kith!(Keyword.put(options, :keys, current: {"test", {:key, <<1::256>>}}))
      assert reason(Signed.sign(kith, "x", audience: "a")) == :corrupted_state
    end

    test "signs up to 1 MiB", %{kith: kith} do
      assert reason(Signed.sign(kith, :binary.copy("x", 1_048_577), audience: "a")) == :too_large
    end
  end

  defp private_key(kith, purpose) do
    sql!(
      kith,
      "SELECT private_key_encrypted FROM signed_service_keys WHERE purpose = $1",
      [purpose]
    )
  end

  describe "a caller's mistake" do
    @describetag store: :sqlite

    test "is an ArgumentError that shows nothing of what was given", %{kith: kith} do
      secret = dynamic("a secret that was given in the wrong place")
      ok = %{challenge: <<0::256>>, signature: <<0::512>>}

      for call <- [
            fn -> Signed.verify(kith, %{}, []) end,
            fn -> Signed.verify(kith, %{}, audience: {secret}) end,
            fn -> Signed.verify(kith, %{}, audience: "a", replay: {secret}) end,
            fn -> Signed.verify(kith, %{}, audience: "a", reply_to: %{"nonce" => secret}) end,
            fn -> Signed.verify(kith, %{}, secret) end,
            fn -> Signed.sign(kith, {secret}, audience: "a") end,
            fn -> Signed.sign(kith, secret, []) end,
            fn -> Signed.sign(kith, secret, reply_to: secret) end,
            fn -> Signed.challenge(kith, {secret}) end,
            fn -> Signed.challenge(kith, "two\nlines") end,
            fn -> Signed.register(kith, "a", {secret}, ok) end,
            fn -> Signed.register(kith, "a", secret, %{challenge: secret, signature: ""}) end,
            fn -> Signed.register(kith, "a", secret, %{ok | signature: {secret}}) end,
            fn -> Signed.register(kith, "a", secret, ok, permissions: [{secret}]) end,
            fn -> Signed.register(kith, "a", secret, ok, permissions: secret) end,
            fn -> Signed.register(kith, "a", secret, ok, expires_at: secret) end,
            fn -> Signed.rotate(kith, "a", secret, dynamic(:operator)) end,
            fn -> Signed.rotate(kith, "a", secret, ok) end,
            fn -> Signed.permit(kith, "a", [secret <> "\n"]) end,
            fn -> Signed.rotate_service_key(kith, from: secret) end,
            fn -> Signed.key(:no_such_instance, "a") end
          ] do
        error = assert_raise ArgumentError, call
        refute Exception.message(error) =~ "secret that"
      end
    end
  end
end
