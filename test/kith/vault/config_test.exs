defmodule Kith.Vault.ConfigTest do
  use ExUnit.Case, async: true

  import Kith.Test.Vaults

  alias Kith.Vault.Config

  test "the first of Cloak's ciphers is the current one, and with one of Kith's it has to be named" do
    assert {:ok, %{current: "b"}} = Config.new(ciphers: [b: gcm(), a: ctr()])
    assert {:ok, %{current: "a"}} = Config.new(ciphers: [a: kith("1")])
    assert {:ok, %{current: "a"}} = Config.new(current: :a, ciphers: [b: gcm(), a: kith("1")])
    assert {:error, message} = Config.new(ciphers: [a: kith("1"), b: gcm()])
    assert message =~ "expected :current to be given"
  end

  test "what Cloak has by default, it has here" do
    cipher = {Cloak.Ciphers.AES.GCM, tag: "AES.GCM.V1", key: key()}

    assert {:ok, %{ciphers: [{"a", {:cloak_gcm, "AES.GCM.V1", "", 16}, {:key, _}}]}} =
             Config.new(ciphers: [a: cipher])
  end

  test "says what was expected" do
    for {config, message} <- [
          {[], "expected :ciphers to be given, label: {module, options}"},
          {[ciphers: []],
           "expected :ciphers to be a list of label: {module, options} that is not empty"},
          {[ciphers: [a: :b]], "expected each of :ciphers to be label: {module, options}"},
          {[cipher: []], "unknown option :cipher, did you mean :ciphers?"},
          {[ciphers: [a: gcm()], current: :b],
           "expected :current to be the label of one of :ciphers"},
          {[ciphers: [a: gcm()], current: 1], "expected :current to be the label of a cipher"},
          {[ciphers: [a: gcm()], json_library: Nothing],
           "expected :json_library to be a module with encode!/1 and decode!/1, got: Nothing"},
          {[ciphers: [a: {MyApp.Cipher, []}]],
           ~r/^cipher "a": expected its module to be one of .*Kith.Vault, got: MyApp.Cipher$/},
          {[ciphers: [a: gcm(iv_length: 13)]],
           ~s(cipher "a": expected :iv_length to be 12 or 16)},
          {[ciphers: [a: gcm(iv_size: 12)]],
           ~s(cipher "a": unknown option :iv_size, known ones are :tag, :key, :iv_length)},
          {[ciphers: [a: gcm(tag: nil)]], ~s(cipher "a": expected :tag to be given)},
          {[ciphers: [a: gcm(tag: 1)]], ~s(cipher "a": expected :tag to be a string)},
          {[ciphers: [a: kith(:a)]], ~s(cipher "a": expected :id to be a string)},
          {[ciphers: [a: ctr(unsafe_write: :yes)]],
           ~s(cipher "a": expected :unsafe_write to be a boolean)}
        ] do
      assert {:error, got} = Config.new(config)
      if is_binary(message), do: assert(got == message), else: assert(got =~ message)
    end
  end

  test "what the native library expects of ciphers is said with the name of the vault" do
    for {ciphers, message} <- [
          {[a: gcm(), b: gcm(key: <<1::256>>)],
           ~s(expected the tags and ids of ciphers to tell them apart, got "b" and "a" that begin alike)},
          {[a: ctr()],
           ~s(expected the current cipher "a" to be one that encrypts, got one that only reads)},
          {[a: kith("two words")],
           "expected a key id of 1 to 64 visible ASCII characters without spaces, got one that is not"},
          {[a: kith(Base.encode64(key()))],
           "expected a key id, got what reads as a key; swap the id and the key"},
          {[a: gcm(tag: "")], "expected a tag of 1 to 1024 bytes, got one that is not"},
          {[{"a", gcm()}, {:a, kith("a")}], ~s(expected each label once, got "a" twice)}
        ] do
      vault = vault!(current: :a, ciphers: ciphers)
      expected = "the configuration of #{inspect(vault)} is wrong: " <> message
      assert_raise ArgumentError, expected, fn -> Kith.Vault.open!(vault) end
    end
  end

  test "veiled options print without keys and are the same when unveiled" do
    options = [current: :a, ciphers: [a: kith("a", "a key of thirty-two bytes, of text")]]
    refute inspect(Config.veil(options)) =~ "thirty"
    assert Enum.sort(Config.unveil(Config.veil(options))) == Enum.sort(options)
    assert Config.unveil(Config.veil([])) == []
  end
end
