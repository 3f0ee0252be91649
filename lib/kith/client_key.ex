defmodule Kith.ClientKey do
  @moduledoc """
  A key for each client, to seal what is stored for them.

      {:ok, message} = Kith.Signed.verify(MyApp.Kith, envelope, audience: "files")
      {:ok, sealed} = Kith.ClientKey.seal(MyApp.Kith, message, message.payload, info: "user-42-file-3")

      # later
      {:ok, bytes} = Kith.ClientKey.open(MyApp.Kith, message, sealed, info: "user-42-file-3")

  The key is derived from the client's public key and a private X25519 key of the service, which is in the vault: X25519 (RFC 7748), then
  HKDF-SHA256 (RFC 5869). It is the same each time and stored nowhere. It is never an Elixir term. The client derives the same key from
  their private key and the service's public one, so they may open what the service sealed, and seal for it.

  Verify first, then derive: a public key that somebody merely names is one they may have made up. A `Kith.Signed.Message` or a
  `Kith.Signed.Key` is of a client who has shown to have the private key.

  ## The client

    * a `Kith.Signed.Message` or `Kith.Signed.Key`: its Ed25519 key, converted to X25519 as libsodium's
      `crypto_sign_ed25519_pk_to_curve25519` does;
    * `{:ed25519, public_key}`: the same, of 32 bytes;
    * `{:x25519, public_key}`: 32 bytes of a key the client has for this alone. It is the better choice: one key for each use.

  ## Options

    * `:info` - the namespace: a binary of 1 to 255 bytes, such as `"data-at-rest-key"` or `"user-42-file-3"`. Required. Another
      namespace is another key, so a new one is how the key of one file is rotated.
    * `:salt` - the salt of HKDF, a binary of 1 to 255 bytes, or `nil` (default). It is not stored: the same is needed to open.
    * `:cipher` - of `seal/4`, `:aes_256_gcm` (default) or `:chacha20_poly1305`.
    * `:aad` - a binary that is authenticated and not stored, such as the id of the row. Default `""`.

  What is sealed has at most 16 MiB at once and grows by 46 bytes. `docs/state-format.md` has its layout and how the key is derived.

  ## What it protects, and what not

  The database alone opens nothing. The vault opens everything: the service's private key derives the keys of all clients. There is no forward secrecy: whoever has
  either private key one day opens all that was sealed. A key in the sense of RFC 7748 that is of low order is refused.
  One key seals 2³² times at most; use more namespaces before that.
  """

  alias Kith.{Error, Instance, Telemetry, Validation}
  alias Kith.Signed
  alias Kith.Signed.ServiceKeys

  @max_plaintext 16_777_216
  @overhead 46

  @type name :: term
  @type result(value) :: {:ok, value} | {:error, Error.t()}
  @type client ::
          Signed.Message.t()
          | Signed.Key.t()
          | {:ed25519, <<_::256>>}
          | {:x25519, <<_::256>>}

  @doc """
  Seals bytes for a client.

  Errors: `:malformed` when the client's key is none, or of low order; `:too_large`; `:key_not_found` and `:corrupted_state` when the key of the
  service does not open, and those of the machinery.
  """
  @spec seal(name, client, binary, keyword) :: result(binary)
  def seal(name, client, plaintext, options) do
    binary!(plaintext, "the plaintext")
    client = client!(client)
    options = options!(options)
    instance = Instance.fetch!(name)
    metadata = %{instance: instance.name, cipher: options.cipher}

    Telemetry.span([:kith, :client_key, :seal], metadata, fn ->
      result = sealed(instance, client, plaintext, options)
      size = if match?({:ok, _}, result), do: byte_size(plaintext), else: 0
      {result, %{plaintext_size: size}, Telemetry.outcome(result)}
    end)
  end

  defp sealed(_instance, _client, plaintext, _options) when byte_size(plaintext) > @max_plaintext,
    do: {:error, too_large()}

  defp sealed(instance, client, plaintext, options) do
    with {:ok, key} <- ServiceKeys.current(instance, :agreement),
         do: native(instance, :client_seal, key, client, options, plaintext)
  end

  @doc """
  Opens what `seal/4` or the client has sealed, with the key of the service it names, be it retired or not.

  Errors: `:malformed` when the bytes are not sealed ones, or the client's key is none; `:tampered` when they are of another client, namespace, salt or `:aad`, or
  changed; `:key_not_found` when they name a key the service never had; and those of `seal/4`.
  """
  @spec open(name, client, binary, keyword) :: result(binary)
  def open(name, client, sealed, options) do
    binary!(sealed, "the sealed bytes")
    client = client!(client)
    options = options!(options)
    instance = Instance.fetch!(name)
    {cipher, key_id} = header(sealed)

    Telemetry.span([:kith, :client_key, :open], %{instance: instance.name, cipher: cipher}, fn ->
      result = opened(instance, client, sealed, key_id, %{options | cipher: cipher})
      size = with {:ok, plaintext} <- result, do: byte_size(plaintext), else: (_ -> 0)
      {result, %{plaintext_size: size}, Telemetry.outcome(result)}
    end)
  end

  defp opened(_instance, _client, _sealed, nil, _options), do: {:error, Error.new(:malformed)}

  defp opened(_instance, _client, sealed, _key_id, _options)
       when byte_size(sealed) > @max_plaintext + @overhead,
       do: {:error, too_large()}

  defp opened(instance, client, sealed, key_id, options) do
    with {:ok, key} <- ServiceKeys.fetch(instance, :agreement, key_id),
         do: native(instance, :client_open, key, client, options, sealed)
  end

  # The library checks it again; here it says which key to fetch.
  defp header(<<1, 0x20, id::binary-16, _::binary>>), do: {:aes_256_gcm, hex(id)}
  defp header(<<1, 0x21, id::binary-16, _::binary>>), do: {:chacha20_poly1305, hex(id)}
  defp header(_), do: {nil, nil}

  defp hex(id), do: Base.encode16(id, case: :lower)

  defp native(instance, function, key, client, options, bytes) do
    purpose = {options.cipher, options.salt, options.info}

    instance
    |> Instance.sealed(function, [
      {key.public_key, key.wrapped},
      client,
      purpose,
      options.aad,
      bytes
    ])
    |> Error.from_native()
  end

  @doc """
  Returns the service's X25519 keys, the current one first, for clients that derive their key themselves.

  Each is a map of `:id`, `:public_key`, `:created_at` and `:retired_at`. A client should get it in an answer that is signed.
  """
  @spec service_keys(name) ::
          result([
            %{
              id: String.t(),
              public_key: <<_::256>>,
              created_at: integer,
              retired_at: nil | integer
            }
          ])
  def service_keys(name) do
    with {:ok, keys} <- ServiceKeys.all(Instance.fetch!(name), :agreement),
         do: {:ok, Enum.map(keys, &public/1)}
  end

  @doc """
  Gives the service a new X25519 key to seal with. What was sealed before opens as before: retired keys are kept.

  Errors: those of the machinery.
  """
  @spec rotate_service_key(name) :: result(map)
  def rotate_service_key(name) do
    instance = Instance.fetch!(name)

    with {:ok, key} <- ServiceKeys.rotate(instance, :agreement, nil), do: {:ok, public(key)}
  end

  @doc """
  The X25519 key that libsodium's `crypto_sign_ed25519_pk_to_curve25519` makes of an Ed25519 key.

  Errors: `:malformed` for bytes that are no point, not in their one spelling, of small order, or outside the subgroup of the base point.
  """
  @spec convert(binary) :: result(<<_::256>>)
  def convert(public_key) do
    binary!(public_key, "the public key")

    {:ed25519, public_key}
    |> Kith.Native.client_public_key()
    |> Telemetry.watch(nil, :client_public_key)
    |> Error.from_native()
  end

  for {function, arguments} <- [
        seal: [:client, :plaintext, :options],
        open: [:client, :sealed, :options],
        service_keys: [],
        rotate_service_key: []
      ] do
    arguments = Enum.map([:name | arguments], &Macro.var(&1, __MODULE__))

    @doc "Same as `#{function}/#{length(arguments)}`, but returns the value or raises `Kith.Error`."
    def unquote(:"#{function}!")(unquote_splicing(arguments)) do
      case unquote(function)(unquote_splicing(arguments)) do
        {:ok, value} -> value
        {:error, error} -> raise error
      end
    end
  end

  defp public(key), do: Map.take(key, [:id, :public_key, :created_at, :retired_at])

  defp too_large, do: Error.new(:too_large, "at most #{@max_plaintext} bytes are sealed at once")

  # No message below shows what was given.

  defp client!(%Signed.Message{public_key: public_key}), do: {:ed25519, public_key}
  defp client!(%Signed.Key{public_key: public_key}), do: {:ed25519, public_key}
  defp client!({kind, key}) when kind in [:ed25519, :x25519] and is_binary(key), do: {kind, key}

  defp client!(_other) do
    raise ArgumentError,
          "expected a client to be a Kith.Signed.Message, a Kith.Signed.Key, {:ed25519, public_key} or {:x25519, public_key}"
  end

  defp binary!(binary, _what) when is_binary(binary), do: :ok
  defp binary!(_other, what), do: raise(ArgumentError, "expected #{what} to be a binary")

  defp options!(options) do
    schema = [
      info: {:custom, &short(:info, &1)},
      salt: {:custom, &salt/1},
      cipher: {:one_of, [:aes_256_gcm, :chacha20_poly1305]},
      aad: {:custom, &aad/1}
    ]

    options = Validation.validate!(options, schema)
    # The one that has to be given.
    Validation.validate!([info: options[:info]], schema)
    Map.merge(%{salt: nil, cipher: :aes_256_gcm, aad: ""}, Map.new(options))
  end

  defp short(_key, value) when is_binary(value) and byte_size(value) in 1..255, do: :ok
  defp short(key, _), do: {:error, "expected #{inspect(key)} to be a binary of 1 to 255 bytes"}

  defp salt(nil), do: :ok
  defp salt(salt), do: short(:salt, salt)

  defp aad(aad) when is_binary(aad), do: :ok
  defp aad(_), do: {:error, "expected :aad to be a binary"}
end
