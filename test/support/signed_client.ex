defmodule Kith.Test.SignedClient do
  @moduledoc false
  # A client of Kith.Signed that has its private key, and writes what it signs by hand: the bytes are a contract.

  @doc "A key pair, `{public, seed}`."
  def key_pair, do: :crypto.generate_key(:eddsa, :ed25519)

  @doc "Signs with OTP's own Ed25519."
  def sign(bytes, seed), do: :crypto.sign(:eddsa, :none, bytes, [seed, :ed25519])

  @doc "Registers a new key of an owner; returns it and its seed."
  def register(kith, owner, options \\ []) do
    {public, seed} = Keyword.get_lazy(options, :key_pair, &key_pair/0)
    challenge = Kith.Signed.challenge!(kith, owner)
    bytes = statement("registration", [owner, challenge, public])
    proof = %{challenge: challenge, signature: sign(bytes, seed)}
    options = Keyword.take(options, [:permissions, :expires_at])

    with {:ok, key} <- Kith.Signed.register(kith, owner, public, proof, options),
         do: {:ok, key, seed}
  end

  @doc "A signed envelope."
  def envelope(key_id, seed, payload, options) do
    audience = Keyword.fetch!(options, :audience)
    timestamp = Keyword.get_lazy(options, :timestamp, fn -> System.system_time(:millisecond) end)
    nonce = Keyword.get_lazy(options, :nonce, fn -> :crypto.strong_rand_bytes(16) end)
    reply_to = Keyword.get(options, :reply_to, "")

    bytes = statement("message", [key_id, audience, <<timestamp::64>>, nonce, reply_to, payload])

    envelope = %{
      "version" => 1,
      "public_key_id" => key_id,
      "audience" => audience,
      "timestamp" => timestamp,
      "nonce" => Base.encode64(nonce),
      "payload" => Base.encode64(payload),
      "signature" => Base.encode64(sign(bytes, seed))
    }

    if reply_to == "", do: envelope, else: Map.put(envelope, "reply_to", Base.encode64(reply_to))
  end

  @doc "The bytes of a statement."
  def statement(kind, fields) do
    for field <- fields, into: "kith-signed-" <> kind <> "-v1" <> <<0>> do
      <<byte_size(field)::unsigned-big-32, field::binary>>
    end
  end
end
