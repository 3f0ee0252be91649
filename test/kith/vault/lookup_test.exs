defmodule Kith.Vault.LookupTest do
  use Kith.Case, async: true

  import Kith.Test.Vaults, only: [hex: 1]

  alias Kith.Vault.Lookup

  @value "user@email.com"

  # A name of its own for each, as what is taken from a source is kept by it.
  defp owner, do: Module.concat(__MODULE__, "O#{System.unique_integer([:positive])}")
  defp hmac(config, value \\ @value), do: Lookup.hmac(owner(), config, value)

  defp pbkdf2(config, value \\ @value) do
    defaults = [algorithm: :sha256, iterations: 600_000, size: 32, mode: :correct]
    Lookup.pbkdf2(owner(), Keyword.merge(defaults, config), value)
  end

  test "HMAC is Cloak.Ecto's" do
    assert hmac(algorithm: :sha512, secret: "secret") ==
             hex("""
             3c012a6fe6e1f6d56091daf6ed5cf45aad5cd1e1c5479546c69c378e8c0704f3
             e8b3a17e773e892b0c3bf0ace3e2900fef1fffff18e0c74f6ae61e3cb32fef17
             """)
  end

  test "HMAC is that of Erlang with every algorithm" do
    for algorithm <- [:md5, :ripemd160, :sha, :sha224, :sha256, :sha384, :sha512],
        algorithm in :crypto.supports(:hashs),
        value <- ["", @value, String.duplicate("a", 300)],
        secret <- ["s", String.duplicate("s", 200)] do
      assert hmac([algorithm: algorithm, secret: secret], value) ==
               :crypto.mac(:hmac, algorithm, secret, value)
    end
  end

  test "SHA-256 is Cloak.Ecto's" do
    assert Lookup.sha256(@value) ==
             hex("0925f997eb0d742678f66d2da134d15d842d57722af5f7605c4785cb5358831b")
  end

  test "PBKDF2 is Cloak.Ecto's in its mode, where the size is the number of iterations" do
    assert pbkdf2(secret: "secret", mode: :cloak_1_3) ==
             hex("3115eb75be8040ebf4bbecc81e1d905551cb1beea8fe66975b4bb03034cd7e93")

    assert pbkdf2(secret: "secret", mode: :cloak_1_3, size: 64, algorithm: :sha512) ==
             :crypto.pbkdf2_hmac(:sha512, @value, "secret", 64, 64)
  end

  test "PBKDF2 is what its documentation says in the mode :correct" do
    for {iterations, size} <- [{1, 1}, {1_000, 32}, {10_001, 100}] do
      assert pbkdf2(secret: "secret", iterations: iterations, size: size) ==
               :crypto.pbkdf2_hmac(:sha256, @value, "secret", iterations, size)
    end
  end

  test "a secret comes from a file as a key does, and is then no term of the VM" do
    path = Path.join(tmp_dir!(), "lookup.key")
    secret = :crypto.strong_rand_bytes(32)
    File.write!(path, Base.encode64(secret))
    File.chmod!(path, 0o600)

    assert hmac(algorithm: :sha256, secret: {:file, path}) ==
             :crypto.mac(:hmac, :sha256, secret, @value)

    refute :erlang.term_to_binary(:persistent_term.get()) =~ secret
    File.chmod!(path, 0o644)

    assert_raise ArgumentError, ~r/got 0644/, fn ->
      hmac(algorithm: :sha256, secret: {:file, path})
    end
  end

  test "another configuration is taken at once" do
    owner = owner()
    one = Lookup.hmac(owner, [algorithm: :sha256, secret: "one"], @value)
    two = Lookup.hmac(owner, [algorithm: :sha256, secret: "two"], @value)
    assert one != two
    assert Lookup.hmac(owner, [algorithm: :sha256, secret: "one"], @value) == one
  end

  test "a wrong configuration raises, and shows no secret" do
    for {config, message} <- [
          {[], "expected :algorithm to be given"},
          {[algorithm: :sha256], "expected :secret to be given"},
          {[algorithm: :sha256, secret: ""], "expected :secret to have bytes, got none"},
          {[algorithm: :sha256, secret: :hushed], "got something else"},
          {[algorithm: :sha3, secret: "hushed"], "expected :algorithm to be one of"},
          {[algorithm: :md5, secret: {:env, "HUSHED"}],
           "expected :secret to be bytes with the algorithm :md5"},
          {[algorithm: :sha256, secret: {:env, "KITH_TEST_NOT_SET"}],
           "a variable that is not set"},
          {[algorithm: :sha256, secret: "hushed", iterations: 1], "unknown option :iterations"}
        ] do
      error = assert_raise ArgumentError, fn -> hmac(config) end
      assert error.message =~ message
      refute error.message =~ "hushed"
    end

    assert_raise ArgumentError, ~r/:mode to be one of :correct, :cloak_1_3/, fn ->
      pbkdf2(secret: "s", mode: :cloak)
    end
  end
end
