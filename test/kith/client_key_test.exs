defmodule Kith.ClientKeyTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.{ClientKey, Signed}
  alias Kith.Test.SignedClient

  setup do
    %{kith: start_kith!()}
  end

  defp x25519, do: :crypto.generate_key(:ecdh, :x25519)

  # As a client derives it, with OTP's own cryptography.
  defp derive({private, public}, service, algorithm, salt, info) do
    shared = :crypto.compute_key(:ecdh, service, private, :x25519)
    extracted = :crypto.mac(:hmac, :sha256, salt, shared)
    label = "kith-client-key-v1" <> <<0, algorithm>>
    :crypto.mac(:hmac, :sha256, extracted, label <> public <> service <> info <> <<1>>)
  end

  test "what is sealed opens for the same client, namespace, salt and data only", %{kith: kith} do
    {mine, _} = x25519()
    {other, _} = x25519()
    client = {:x25519, mine}
    options = [info: "user-42-file-3", salt: "salt", aad: "row 7"]

    for cipher <- [:aes_256_gcm, :chacha20_poly1305],
        plaintext <- ["", "hello", :binary.copy("x", 70_000)] do
      {:ok, sealed} = ClientKey.seal(kith, client, plaintext, [cipher: cipher] ++ options)
      assert byte_size(sealed) == byte_size(plaintext) + 46
      assert ClientKey.open(kith, client, sealed, options) == {:ok, plaintext}
      assert {:ok, again} = ClientKey.seal(kith, client, plaintext, [cipher: cipher] ++ options)
      assert again != sealed

      for {client, options} <- [
            {{:x25519, other}, options},
            {client, [info: "user-42-file-4", salt: "salt", aad: "row 7"]},
            {client, [info: "user-42-file-3", aad: "row 7"]},
            {client, [info: "user-42-file-3", salt: "salt", aad: "row 8"]},
            {client, [info: "user-42-file-3", salt: "salt"]}
          ],
          do: assert(reason(ClientKey.open(kith, client, sealed, options)) == :tampered)
    end
  end

  test "a client who has the private key opens it, and seals for the service", %{kith: kith} do
    {public, private} = x25519()
    [%{public_key: service, id: id}] = ClientKey.service_keys!(kith)
    assert id == Base.encode16(binary_part(:crypto.hash(:sha256, service), 0, 16), case: :lower)
    header = fn algorithm -> <<1, algorithm>> <> Base.decode16!(id, case: :lower) end

    for {algorithm, name, otp} <- [
          {0x20, :aes_256_gcm, :aes_256_gcm},
          {0x21, :chacha20_poly1305, :chacha20_poly1305}
        ] do
      sealed =
        ClientKey.seal!(kith, {:x25519, public}, "hello",
          info: "files",
          salt: "salt",
          aad: "row",
          cipher: name
        )

      key = derive({private, public}, service, algorithm, "salt", "files")
      aad = header.(algorithm) <> "row"
      <<head::binary-18, nonce::binary-12, text::binary-5, tag::binary-16>> = sealed
      assert head == header.(algorithm)
      assert :crypto.crypto_one_time_aead(otp, key, nonce, text, aad, tag, false) == "hello"

      nonce = :crypto.strong_rand_bytes(12)
      {text, tag} = :crypto.crypto_one_time_aead(otp, key, nonce, "hi", aad, true)
      mine = header.(algorithm) <> nonce <> text <> tag
      options = [info: "files", salt: "salt", aad: "row"]
      assert ClientKey.open(kith, {:x25519, public}, mine, options) == {:ok, "hi"}
    end
  end

  test "a key that was registered or has signed is a client", %{kith: kith} do
    {:ok, key, seed} = SignedClient.register(kith, "till-7")
    envelope = SignedClient.envelope(key.id, seed, "payload", audience: "files")
    {:ok, message} = Signed.verify(kith, envelope, audience: "files")
    sealed = ClientKey.seal!(kith, message, "x", info: "a")
    assert ClientKey.open!(kith, key, sealed, info: "a") == "x"
    assert ClientKey.open!(kith, {:ed25519, key.public_key}, sealed, info: "a") == "x"
    {:ok, converted} = ClientKey.convert(key.public_key)
    assert ClientKey.open!(kith, {:x25519, converted}, sealed, info: "a") == "x"
  end

  test "keys of Ed25519 are converted as libsodium does" do
    vectors =
      for line <- File.stream!("native/kith_vault/tests/data/ed25519_to_x25519.txt"),
          not String.starts_with?(line, "#"),
          do: String.split(line)

    assert length(vectors) == 20

    for [public, expected] <- vectors do
      result = ClientKey.convert(Base.decode16!(public, case: :lower))

      if expected == "refused",
        do: assert(reason(result) == :malformed),
        else: assert(result == {:ok, Base.decode16!(expected, case: :lower)})
    end
  end

  test "a client's key of low order, or none, is refused", %{kith: kith} do
    for {kind, key} <- [
          x25519: <<0::256>>,
          x25519: <<1::little-256>>,
          x25519:
            Base.decode16!("E0EB7A7C3B41B8AE1656E3FAF19FC46ADA098DEB9C32B1FD866205165F49B800"),
          x25519:
            Base.decode16!("5F9C95BCA3508C24B1D0B1559C83EF5B04445CC4581C8E86D8224EDDD09F1157"),
          # p - 1, p and p + 1
          x25519: <<2 ** 255 - 20::little-256>>,
          x25519: <<2 ** 255 - 19::little-256>>,
          x25519: <<2 ** 255 - 18::little-256>>,
          x25519: "short",
          ed25519: <<1::little-256>>,
          ed25519: <<2::little-256>>
        ] do
      assert reason(ClientKey.seal(kith, {kind, key}, "x", info: "a")) == :malformed
    end
  end

  test "bytes corrupted at random never open", %{kith: kith} do
    {public, _} = x25519()
    client = {:x25519, public}
    sealed = ClientKey.seal!(kith, client, "plaintext", info: "a")

    for at <- 0..(byte_size(sealed) - 1) do
      changed = corrupt(sealed, at, Bitwise.bsl(1, rem(at, 8)))

      expected =
        if at in 0..1, do: :malformed, else: if(at < 18, do: :key_not_found, else: :tampered)

      # A bit of the algorithm may give the other one.
      assert reason(ClientKey.open(kith, client, changed, info: "a")) in [expected, :tampered]
    end

    for length <- 0..(byte_size(sealed) - 1) do
      result = ClientKey.open(kith, client, binary_part(sealed, 0, length), info: "a")
      assert reason(result) in [:malformed, :tampered]
    end

    assert reason(ClientKey.open(kith, client, sealed <> "x", info: "a")) == :tampered
    assert ClientKey.open(kith, client, sealed, info: "a") == {:ok, "plaintext"}
  end

  test "a new key of the service seals, and the ones before still open", %{kith: kith} do
    {public, _} = x25519()
    client = {:x25519, public}
    before = ClientKey.seal!(kith, client, "x", info: "a")
    [old] = ClientKey.service_keys!(kith)
    new = ClientKey.rotate_service_key!(kith)
    assert [^new, %{retired_at: retired_at}] = ClientKey.service_keys!(kith)
    assert is_integer(retired_at) and new.id != old.id
    sealed = ClientKey.seal!(kith, client, "x", info: "a")
    assert binary_part(sealed, 2, 16) == Base.decode16!(new.id, case: :lower)

    for bytes <- [before, sealed],
        do: assert(ClientKey.open!(kith, client, bytes, info: "a") == "x")

    other = start_kith!()
    assert reason(ClientKey.open(other, client, sealed, info: "a")) == :key_not_found
  end

  test "nothing that opens is stored", %{kith: kith} do
    {public, private} = x25519()
    ClientKey.seal!(kith, {:x25519, public}, "x", info: "a")
    [%{public_key: service}] = ClientKey.service_keys!(kith)
    key = derive({private, public}, service, 0x20, <<0::256>>, "a")
    rows = inspect(sql!(kith, "SELECT * FROM signed_service_keys"), limit: :infinity)
    refute rows =~ inspect(key, limit: :infinity)
    assert [[columns]] = sql!(kith, "SELECT COUNT(*) FROM signed_service_keys")
    assert columns == 1
  end

  test "more than 16 MiB are refused", %{kith: kith} do
    {public, _} = x25519()
    large = :binary.copy(<<0>>, 16_777_217)
    assert reason(ClientKey.seal(kith, {:x25519, public}, large, info: "a")) == :too_large
    sealed = <<1, 0x20>> <> large <> <<0::352>>
    assert reason(ClientKey.open(kith, {:x25519, public}, sealed, info: "a")) == :too_large
  end

  describe "a caller's mistake" do
    @describetag store: :sqlite

    test "is an ArgumentError that shows nothing of what was given", %{kith: kith} do
      secret = dynamic("a secret in the wrong place")
      client = {:x25519, <<9::256>>}

      for call <- [
            fn -> ClientKey.seal(kith, client, "x", []) end,
            fn -> ClientKey.seal(kith, client, {secret}, info: "a") end,
            fn -> ClientKey.seal(kith, secret, "x", info: "a") end,
            fn -> ClientKey.seal(kith, {:rsa, secret}, "x", info: "a") end,
            fn -> ClientKey.seal(kith, client, "x", info: {secret}) end,
            fn -> ClientKey.seal(kith, client, "x", info: "") end,
            fn -> ClientKey.seal(kith, client, "x", info: "a", salt: {secret}) end,
            fn -> ClientKey.seal(kith, client, "x", info: "a", aad: {secret}) end,
            fn -> ClientKey.open(kith, client, {secret}, info: "a") end,
            fn -> ClientKey.open(kith, client, "x", secret) end,
            fn -> ClientKey.convert({secret}) end
          ] do
        error = assert_raise ArgumentError, call
        refute Exception.message(error) =~ "secret in"
      end

      assert_raise ArgumentError, ~r/:aes_256_gcm, :chacha20_poly1305/, fn ->
        ClientKey.seal(kith, client, "x", info: "a", cipher: :rot13)
      end
    end
  end
end
