defmodule Kith.Signed do
  @moduledoc """
  Signed messages, for calls between a client and a service.

      # once, for each key of a client
      {:ok, challenge} = Kith.Signed.challenge(MyApp.Kith, "till-7")
      {:ok, key} = Kith.Signed.register(MyApp.Kith, "till-7", public_key, %{challenge: challenge, signature: signature},
        permissions: ["orders:write"])

      # each call
      {:ok, message} = Kith.Signed.verify(MyApp.Kith, envelope, audience: "orders")
      true = "orders:write" in message.permissions
      {:ok, response} = Kith.Signed.sign(MyApp.Kith, body, reply_to: message)

  A client makes an Ed25519 key (RFC 8032), whose private half never leaves it, and signs what it sends. The service looks the public key
  up by its id, verifies before it processes anything, and signs its answer with a key of its own. An
  envelope is a map that JSON can carry:

      %{
        "version" => 1,
        "public_key_id" => "21fe31dfa154a261626bf854046fd227",
        "audience" => "orders",
        "timestamp" => 1_764_284_400_000,
        "nonce" => "3q2+796tvu/erb7v3q2+7w==",
        "payload" => "eyJpdGVtIjo3fQ==",
        "signature" => "…"
      }

  with `"reply_to"` in a response. What is signed is in `Kith.Signed.Transcript`, byte for byte; `docs/guides/signed-messages.md` has
  clients in Python and JavaScript. Bytes are base64 with padding.

  The first argument is the name of an instance, whose database has the keys and whose vault the private keys of the service.

  ## What it gives, and what not

  Whoever is not the client cannot make or change a message, nor send one again, nor have it accepted by another service. The signature also proves to
  others who wrote the message. That is often wanted between services, and it is what the sessions of `Kith` avoid: between people,
  who should be able to deny what they said, use those. Nothing is encrypted: use TLS, and `Kith.ClientKey` for what is stored.

  Whoever writes to the database can register keys. Restored from a backup, it has forgotten the nonces since then: what was sent
  in the last minutes may be accepted again, and a key that was revoked since is not revoked.

  ## Errors

  | reason | of `verify/3` |
  | --- | --- |
  | `:malformed` | this is no envelope |
  | `:unsupported_version` | its version is not 1 |
  | `:too_large` | the payload has more than 1 MiB |
  | `:key_not_found` | no such key is registered, or it is revoked or has expired; `:detail` says which |
  | `:tampered` | the signature is wrong; or right, but for another audience, or as a response to something else |
  | `:stale` | the message is too old, or from the future |
  | `:duplicate` | the message was accepted before |
  | `:busy` | the key has signed more messages in an hour than `:limit` |

  and those of the machinery. What a client is told should be less: "refused" is enough.
  """

  alias Kith.{Error, Instance, Options, Telemetry, Validation}
  alias Kith.Signed.{Envelope, Key, Message, Registry, ServiceKeys, Verification}

  @type name :: term
  @type result(value) :: {:ok, value} | {:error, Error.t()}

  @typedoc "A map with string keys, as above."
  @type envelope :: %{String.t() => String.t() | integer}

  @typedoc """
  What proves that somebody has a private key: the challenge that was asked for, and the signature over the registration's bytes, both as bytes. Or
  `:operator`, when whoever calls got the public key in a way they trust.
  """
  @type proof :: %{challenge: <<_::256>>, signature: <<_::512>>} | :operator

  @typedoc "A public key of the service."
  @type service_key :: %{
          id: String.t(),
          public_key: <<_::256>>,
          created_at: integer,
          retired_at: nil | integer,
          endorsed_by: nil | String.t(),
          endorsement: nil | <<_::512>>
        }

  @twins [
    challenge: [:owner],
    register: [:owner, :public_key, :proof, :options],
    rotate: [:key_id, :public_key, :proof, :options],
    revoke: [:key_id],
    key: [:key_id],
    keys: [:owner],
    permit: [:key_id, :permissions],
    verify: [:envelope, :options],
    sign: [:payload, :options],
    service_keys: [],
    rotate_service_key: [:options]
  ]

  @doc """
  Returns 32 bytes for a client to sign, so that `register/5` or `rotate/5` knows that it has the private key now.

  An owner has one at a time, for ten minutes; another call replaces it. Who may ask for which owner is the application's to decide.
  """
  @spec challenge(name, String.t()) :: result(<<_::256>>)
  def challenge(name, owner) do
    text!(owner, "the owner")
    Registry.challenge(Instance.fetch!(name), owner)
  end

  @doc """
  Registers a public key of a client.

    * `:permissions` - a list of strings, at most 100. Default: none.
    * `:expires_at` - milliseconds since 1970. Default `nil`: never.

  Errors: `:malformed` for bytes that are no public key, or one of small order; `:tampered` when the signature is wrong; `:stale` when the
  challenge is unknown, used or too old; `:duplicate` when the key was registered before, be it revoked or of another owner.
  """
  @spec register(name, String.t(), binary, proof, keyword) :: result(Key.t())
  def register(name, owner, public_key, proof, options \\ []) do
    text!(owner, "the owner")
    bytes!(public_key, "the public key")
    proof!(proof, [:challenge, :signature])

    options =
      options!(options, [permissions: [], expires_at: nil],
        permissions: {:custom, &permissions/1},
        expires_at: {:custom, &time/1}
      )

    instance = Instance.fetch!(name)
    options = %{options | permissions: sorted(options.permissions)}

    changed(instance, :register, fn ->
      Registry.register(instance, owner, public_key, proof, options)
    end)
  end

  @doc """
  Puts a new key of a client in the place of an old one, with its owner and permissions.

  Both sign: the proof has a `:signature` of the new key and an `:old_signature` of the old one, over the bytes of a rotation, with a challenge of the
  owner. For a key that was stolen, or lost, use `revoke/2` and `register/5`: that somebody else has it is what it cannot tell.

    * `:overlap` - seconds in which the old key still verifies, 0 to 2,592,000. Default 3,600.
    * `:expires_at` - of the new key, milliseconds since 1970. Default `nil`: never.

  Errors: those of `register/5`, and `:key_not_found` when the old key is unknown, revoked or has expired.
  """
  @spec rotate(
          name,
          String.t(),
          binary,
          %{challenge: <<_::256>>, signature: <<_::512>>, old_signature: <<_::512>>},
          keyword
        ) :: result(Key.t())
  def rotate(name, key_id, public_key, proof, options \\ []) do
    bytes!(key_id, "the id of a key")
    bytes!(public_key, "the public key")
    proof == :operator && raise(ArgumentError, "expected the proof of a rotation to be a map")
    proof!(proof, [:challenge, :signature, :old_signature])

    options =
      options!(options, [overlap: 3_600, expires_at: nil],
        overlap: {:integer, 0..2_592_000},
        expires_at: {:custom, &time/1}
      )

    instance = Instance.fetch!(name)
    options = %{options | overlap: options.overlap * 1_000}

    changed(instance, :rotate, fn ->
      Registry.rotate(instance, key_id, public_key, proof, options)
    end)
  end

  @doc """
  Revokes a key for good, at once and on every node. A key that is revoked already stays as it is.

  Errors: `:key_not_found`.
  """
  @spec revoke(name, String.t()) :: result(Key.t())
  def revoke(name, key_id) do
    bytes!(key_id, "the id of a key")
    instance = Instance.fetch!(name)
    changed(instance, :revoke, fn -> Registry.revoke(instance, key_id) end)
  end

  @doc "Returns a registered key by its id, whatever its state. Errors: `:key_not_found`."
  @spec key(name, String.t()) :: result(Key.t())
  def key(name, key_id) do
    bytes!(key_id, "the id of a key")
    Registry.fetch(Instance.fetch!(name), key_id)
  end

  @doc "Returns all keys of an owner, the oldest first."
  @spec keys(name, String.t()) :: result([Key.t()])
  def keys(name, owner) do
    text!(owner, "the owner")
    Registry.of_owner(Instance.fetch!(name), owner)
  end

  @doc """
  Gives a key other permissions in the place of those it has. They are in the messages verified from then on.

  Errors: `:key_not_found`.
  """
  @spec permit(name, String.t(), [String.t()]) :: result(Key.t())
  def permit(name, key_id, permissions) do
    bytes!(key_id, "the id of a key")

    with {:error, message} <- permissions(permissions), do: raise(ArgumentError, message)
    instance = Instance.fetch!(name)
    changed(instance, :permit, fn -> Registry.permit(instance, key_id, sorted(permissions)) end)
  end

  @doc """
  Verifies a message, once. Nothing of it may be processed before.

    * `:audience` - the name of this service, which the client has signed. Required. It keeps what was signed for one service from being accepted by
      another.
    * `:max_age` - seconds for which a message is accepted, 1 to 3,600. Default 300.
    * `:skew` - seconds a client's clock may be ahead, 0 to 300. Default 60.
    * `:limit` - messages of one key in an hour, 1 to 1,000,000. Default 100,000. Their nonces are kept for 70 minutes
      from their timestamps, so this bounds the table. Later calls delete them, and maintenance (`Kith.maintain/1`).
    * `:replay` - a function, for an application that keeps nonces elsewhere, such as in Redis. It gets key id, nonce and the time in milliseconds until which
      the nonce must be kept, and returns `:new` or `:seen`, atomically. `:limit` is not applied then. Default `:store`.
    * `:reply_to` - the envelope this is a response to, for an application that is the client. Default `nil`: a response is refused.

  Inside a transaction of the same repository the nonce is kept if, and only if, that is committed: then what a message causes and that it is not accepted again
  become true together.

  Errors are in the table above.
  """
  @spec verify(name, envelope | term, keyword) :: result(Message.t())
  def verify(name, envelope, options) do
    options =
      options!(
        options,
        [
          audience: nil,
          max_age: 300,
          skew: 60,
          limit: 100_000,
          replay: :store,
          reply_to: nil
        ],
        audience: {:custom, &audience/1},
        max_age: {:integer, 1..3_600},
        skew: {:integer, 0..300},
        limit: {:integer, 1..1_000_000},
        replay: {:custom, &replay/1},
        reply_to: {:custom, &reply_to/1}
      )

    with {:error, message} <- audience(options.audience), do: raise(ArgumentError, message)
    instance = Instance.fetch!(name)

    options = %{
      options
      | max_age: options.max_age * 1_000,
        skew: options.skew * 1_000,
        reply_to: nonce(options.reply_to)
    }

    Telemetry.span([:kith, :signed, :verify], %{instance: instance.name}, fn ->
      {result, key_id} = Verification.verify(instance, envelope, options)
      size = with {:ok, message} <- result, do: byte_size(message.payload), else: (_ -> 0)
      {result, %{payload_size: size}, Map.put(Telemetry.outcome(result), :key_id, key_id)}
    end)
  end

  @doc """
  Signs bytes with the current key of the service, and returns the envelope.

    * `:reply_to` - the message this is the response to: a `t:Kith.Signed.Message.t/0`. Its audience is then the key of the client.
    * `:audience` - whom it is for, when it is no response: the name of another service.

  Errors: `:too_large` for more than 1 MiB, `:key_not_found` and `:corrupted_state` when the key of the service does not open, and those of the
  machinery.
  """
  @spec sign(name, binary, keyword) :: result(envelope)
  def sign(name, payload, options) do
    bytes!(payload, "the payload")

    options =
      options!(options, [audience: nil, reply_to: nil],
        audience: {:custom, &audience/1},
        reply_to: {:custom, &message/1}
      )

    {audience, reply_to} = addressee!(options)
    instance = Instance.fetch!(name)

    Telemetry.span([:kith, :signed, :sign], %{instance: instance.name}, fn ->
      result = signed(instance, payload, audience, reply_to)
      size = if match?({:ok, _}, result), do: byte_size(payload), else: 0
      {result, %{payload_size: size}, Telemetry.outcome(result)}
    end)
  end

  defp signed(instance, payload, audience, reply_to) do
    with :ok <- small_enough(payload),
         {:ok, key} <- ServiceKeys.current(instance, :signing),
         envelope = %Envelope{
           key_id: key.id,
           audience: audience,
           timestamp: Instance.now(instance),
           nonce: :crypto.strong_rand_bytes(16),
           reply_to: reply_to,
           payload: payload
         },
         {:ok, signature} <- ServiceKeys.sign(instance, key, Envelope.transcript(envelope)),
         do: {:ok, Envelope.to_map(%{envelope | signature: signature})}
  end

  defp small_enough(payload) do
    if byte_size(payload) <= Envelope.max_payload(),
      do: :ok,
      else: {:error, Envelope.too_large()}
  end

  @doc """
  Returns the public keys the service signs with, the current one first, then the retired ones, the last retired first.

  Clients verify responses with the current one, which they got in a way they trust. A key that replaced another has
  an `:endorsement`: a signature of the one that is `:endorsed_by`, over the bytes of an endorsement, with which a client follows a rotation.
  """
  @spec service_keys(name) :: result([service_key])
  def service_keys(name) do
    with {:ok, keys} <- ServiceKeys.all(Instance.fetch!(name), :signing),
         do: {:ok, Enum.map(keys, &public/1)}
  end

  @doc """
  Gives the service a new key to sign with. The one before vouches for it.

    * `:from` - where the seed of an existing key is, as in the option `:keys` of `Kith.Options`: `{:env, name}` or `{:file, path}`, with base64
      of 32 bytes; it is read by the native library. Default: a new key is drawn.

  Errors: `:malformed` when the source is not as it should be, `:duplicate` when the service has had this key.
  """
  @spec rotate_service_key(name, from: nil | {:env, String.t()} | {:file, Path.t()}) ::
          result(service_key)
  def rotate_service_key(name, options \\ []) do
    options = options!(options, [from: nil], from: {:custom, &source/1})
    instance = Instance.fetch!(name)

    changed(instance, :rotate_service_key, fn ->
      with {:ok, key} <- ServiceKeys.rotate(instance, :signing, Options.unveil(options.from)),
           do: {:ok, public(key)}
    end)
  end

  @doc """
  The id of a public key.

      iex> Kith.Signed.key_id(<<0::256>>)
      "66687aadf862bd776c8fc18b8e9f8e20"
  """
  @spec key_id(binary) :: String.t()
  def key_id(public_key) do
    bytes!(public_key, "the public key")
    ServiceKeys.id(public_key)
  end

  for {function, arguments} <- @twins do
    arguments = Enum.map([:name | arguments], &Macro.var(&1, __MODULE__))

    @doc "Same as `#{function}/#{length(arguments)}`, but returns the value or raises `Kith.Error`."
    def unquote(:"#{function}!")(unquote_splicing(arguments)) do
      case unquote(function)(unquote_splicing(arguments)) do
        {:ok, value} -> value
        {:error, error} -> raise error
      end
    end
  end

  defp public(key),
    do: Map.take(key, [:id, :public_key, :created_at, :retired_at, :endorsed_by, :endorsement])

  defp changed(instance, action, fun) do
    metadata = %{instance: instance.name, action: action}

    Telemetry.span([:kith, :signed, :change], metadata, fn ->
      result = fun.()
      key_id = with {:ok, %{id: id}} <- result, do: id, else: (_ -> nil)
      {result, %{}, Map.put(Telemetry.outcome(result), :key_id, key_id)}
    end)
  end

  defp addressee!(%{reply_to: %Message{} = message, audience: nil}),
    do: {message.key_id, message.nonce}

  defp addressee!(%{reply_to: nil, audience: audience}) when audience != nil, do: {audience, ""}

  defp addressee!(_),
    do: raise(ArgumentError, "expected either :reply_to, a verified message, or :audience")

  defp nonce(nil), do: ""

  defp nonce(%{"nonce" => nonce}) do
    {:ok, nonce} = Envelope.decode(nonce)
    nonce
  end

  # What was given instead may well be secret, so no message below shows it.

  defp options!(options, defaults, schema),
    do: defaults |> Keyword.merge(Validation.validate!(options, schema)) |> Map.new()

  defp text!(text, what) do
    if not Envelope.text?(text), do: raise(ArgumentError, text_message(what))
  end

  defp text_message(what),
    do:
      "expected #{what} to be a string of 1 to 255 bytes of UTF-8 without a zero byte or newline"

  defp bytes!(bytes, _what) when is_binary(bytes), do: :ok
  defp bytes!(_bytes, what), do: raise(ArgumentError, "expected #{what} to be a binary")

  defp proof!(:operator, _keys), do: :ok

  defp proof!(%{challenge: <<_::256>>} = proof, keys) do
    if not Enum.all?(keys, &is_binary(proof[&1])), do: proof!(nil, keys)
  end

  defp proof!(_other, keys) do
    raise ArgumentError,
          "expected the proof to be a map with the binaries #{Enum.map_join(keys, ", ", &inspect/1)}, " <>
            "of which the challenge has 32 bytes"
  end

  defp audience(audience) do
    if Envelope.text?(audience), do: :ok, else: {:error, text_message(":audience")}
  end

  defp permissions(permissions) do
    if is_list(permissions) and length(permissions) <= 100 and
         Enum.all?(permissions, &Envelope.text?/1),
       do: :ok,
       else:
         {:error,
          text_message(":permissions to be a list of at most 100 strings, and each of them")}
  end

  defp sorted(permissions), do: permissions |> Enum.uniq() |> Enum.sort()

  defp time(nil), do: :ok
  defp time(time) when is_integer(time) and time > 0, do: :ok

  defp time(_),
    do: {:error, "expected :expires_at to be a time in milliseconds since 1970, or nil"}

  defp replay(:store), do: :ok
  defp replay(replay) when is_function(replay, 3), do: :ok
  defp replay(_), do: {:error, "expected :replay to be :store or a function with three arguments"}

  defp reply_to(nil), do: :ok

  defp reply_to(%{"nonce" => nonce}) do
    case Envelope.decode(nonce) do
      {:ok, <<_::128>>} -> :ok
      _ -> reply_to(:other)
    end
  end

  defp reply_to(_), do: {:error, "expected :reply_to to be the envelope that was sent, or nil"}

  defp message(nil), do: :ok
  defp message(%Message{}), do: :ok
  defp message(_), do: {:error, "expected :reply_to to be a message that was verified"}

  defp source(nil), do: :ok
  defp source({:env, name}) when is_binary(name) and name != "", do: :ok
  defp source({:file, path}) when is_binary(path) and path != "", do: :ok
  defp source({:key, <<_::256>>}), do: :ok
  defp source({:key, fun}) when is_function(fun, 0), do: :ok
  defp source(_), do: {:error, "expected :from to be {:env, name} or {:file, path}"}
end
