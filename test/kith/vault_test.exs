defmodule Kith.VaultTest do
  use Kith.Case, async: true

  import Kith.Test.Vaults

  alias Kith.{ChildVM, Error, Vault}

  @hello "Hello, World!"
  @iv12 """
  010a4145532e47434d2e5631 101112131415161718191a1b
  541a79e80dc413f9dd33121473923193 359bf47a26e51ae4a50764792e
  """
  @iv16 """
  010a4145532e47434d2e5631 101112131415161718191a1b1c1d1e1f
  de4b0b06257452b36096cf5cb5e3de2a c23f560c885d1bf80479f20d96
  """
  @ctr """
  010a4145532e4354522e5631 101112131415161718191a1b1c1d1e1f a1a683e6dd1873b19f06f0b217
  """

  describe "the formats" do
    test "Cloak's fields decrypt: AES.GCM with both lengths of the IV, AES.CTR" do
      for {cipher, field} <- [
            {gcm(), @iv12},
            {gcm(iv_length: 16), @iv16},
            {gcm() |> put_elem(1, tag: "AES.GCM.V1", key: key()), @iv16},
            {ctr(unsafe_write: true), @ctr}
          ] do
        assert vault!(ciphers: [a: cipher]).decrypt(hex(field)) == {:ok, @hello}
      end
    end

    test "a field that Cloak 1.0.3 wrote decrypts" do
      key = hex("b9bf80c77c528c4be1f30e36e7cb4e8d832d8d35f1ea061e94661f9d4bf92a77")

      field = """
      010a4145532e47434d2e5631 2df3ba67736cee49fb4b7d0e 3de5050381b8bca6667708c84d2cf8a4
      9333a2dc2a7f81944fa4412b7e1f33f0841cd8dfebf343f027f1
      """

      vault = vault!(ciphers: [a: gcm(key: key)])
      assert vault.decrypt!(hex(field)) == "Lorem ipsum dolor sit amet"
    end

    test "fields of Cloak up to 0.6 decrypt, and none is written" do
      gcm06 = {Cloak.Ciphers.Deprecated.AES.GCM, module_tag: "AES.GCM", tag: "V1", key: key()}
      ctr06 = {Cloak.Ciphers.Deprecated.AES.CTR, module_tag: "AES", tag: <<1>>, key: key()}
      vault = vault!(ciphers: [new: gcm(), gcm06: gcm06, ctr06: ctr06])
      [_, iv, tag, text] = String.split(@iv16)
      gcm = "AES.GCM" <> <<1, 2>> <> "V1" <> hex(iv <> tag <> text)
      ctr = "AES" <> <<1>> <> hex(iv <> "a1a683e6dd1873b19f06f0b217")

      for {field, label} <- [{gcm, :gcm06}, {ctr, :ctr06}] do
        assert vault.decrypt(field) == {:ok, @hello}
        assert_raise ArgumentError, ~r/only reads/, fn -> vault.encrypt("text", label) end
      end
    end

    test "fields that Cloak 1.1.4 wrote decrypt" do
      for {options, fields} <- Kith.Test.CloakFields.all() do
        vault = vault!(ciphers: [a: options])

        for {field, plaintext} <- fields,
            do: assert(vault.decrypt(Base.decode64!(field)) == {:ok, plaintext})
      end
    end

    test "a field is written as Cloak would read it: tag, IV, GCM's tag, ciphertext" do
      for length <- [12, 16] do
        field = vault!(ciphers: [a: gcm(iv_length: length)]).encrypt!(@hello)

        assert <<1, 10, "AES.GCM.V1", rest::binary>> = field
        iv = binary_part(rest, 0, length)
        <<tag::binary-16, text::binary>> = from(rest, length)

        assert :crypto.crypto_one_time_aead(
                 :aes_256_gcm,
                 key(),
                 iv,
                 text,
                 "AES256GCM",
                 tag,
                 false
               ) ==
                 @hello
      end
    end

    test "Kith's own field has the id of its key and authenticates it together with the context" do
      vault = vault!(ciphers: [a: kith("2026-11")])
      field = vault.encrypt!(@hello, context: ["users", :email, 7])

      assert <<0xC1, 1, 0x20, 7, "2026-11", nonce::binary-12, text::binary-13, tag::binary-16>> =
               field

      header = binary_part(field, 0, 11)

      parts =
        for part <- ["field", "users", "email", "7"],
            into: "",
            do: <<byte_size(part)::64, part::binary>>

      assert :crypto.crypto_one_time_aead(
               :aes_256_gcm,
               key(),
               nonce,
               text,
               header <> "kith" <> <<1>> <> parts,
               tag,
               false
             ) ==
               @hello
    end

    test "what is encrypted decrypts, of every length, on both kinds of schedulers" do
      for cipher <- [kith("a"), gcm(), gcm(iv_length: 16), ctr(unsafe_write: true)] do
        vault = vault!(ciphers: [a: cipher])

        for length <- [0, 1, 16, 17, 8_100, 8_192, 8_193, 1_048_576] do
          plaintext = :binary.copy("x", length)
          field = vault.encrypt!(plaintext)
          assert field != vault.encrypt!(plaintext)
          assert vault.decrypt!(field) == plaintext
        end
      end
    end
  end

  describe "the cipher" do
    test "that encrypts is the first of Cloak's, as with Cloak" do
      vault = vault!(ciphers: [retired: gcm(tag: "NEW"), default: gcm(tag: "OLD")])

      assert {:ok, %{label: "retired", current: true}} =
               Vault.inspect_field(vault, vault.encrypt!("a"))
    end

    test "that encrypts is the one of :current, wherever it stands" do
      vault = vault!(current: :b, ciphers: [a: gcm(), b: kith("b")])
      assert {:ok, %{label: "b", current: true}} = Vault.inspect_field(vault, vault.encrypt!("a"))
    end

    test "of a label encrypts when it is asked for, by itself or among options" do
      vault = vault!(current: "b", ciphers: [a: gcm(), b: kith("b")])

      for asked <- [:a, "a", [label: :a]] do
        field = vault.encrypt!("text", asked)
        assert {:ok, %{label: "a", current: false}} = Vault.inspect_field(vault, field)
        assert vault.decrypt!(field) == "text"
      end

      assert_raise ArgumentError, "expected the label of a cipher, one of: a, b", fn ->
        vault.encrypt("text", :c)
      end
    end

    test "that decrypts is found by what the field begins with" do
      vault = vault!(current: :new, ciphers: [new: kith("new"), cloak: gcm(), ctr: ctr()])
      assert vault.decrypt!(hex(@iv12)) == @hello
      assert vault.decrypt!(hex(@ctr)) == @hello
      assert {:ok, %{authenticated: false}} = Vault.inspect_field(vault, hex(@ctr))
      assert {:ok, %{authenticated: true}} = Vault.inspect_field(vault, hex(@iv12))
    end
  end

  describe "what does not decrypt" do
    test "is an error with its reason: a wrong key, a wrong IV length, an unknown tag, no field" do
      vault = vault!(ciphers: [a: gcm(key: <<9::256>>)])
      assert reason(vault.decrypt(hex(@iv12))) == :corrupted_state

      assert reason(vault!(ciphers: [a: gcm(iv_length: 16)]).decrypt(hex(@iv12))) ==
               :corrupted_state

      assert reason(vault.decrypt(hex(@ctr))) == :key_not_found

      assert reason(vault.decrypt(vault!(ciphers: [a: kith("a")]).encrypt!("a"))) ==
               :key_not_found

      for bytes <- ["", <<1>>, <<1, 10>>, <<1, 10, "AES.GCM.V1">>, "anna@example.com", "error"] do
        assert {:error, %Error{reason: :malformed}} = vault.decrypt(bytes)
      end

      assert_raise Error, ~r/another key than the one/, fn -> vault.decrypt!(hex(@iv12)) end
    end

    test "is never other bytes, whatever was changed: a thousand random damages of each format" do
      :rand.seed(:exsss, {2026, 11, 28})

      for cipher <- [kith("2026-11"), gcm(), gcm(iv_length: 16)] do
        vault = vault!(ciphers: [a: cipher])

        for _ <- 1..1_000 do
          plaintext = :crypto.strong_rand_bytes(:rand.uniform(80) - 1)
          field = vault.encrypt!(plaintext)
          damaged = damage(field)

          if damaged != field do
            assert {:error, %Error{reason: reason}} = vault.decrypt(damaged)
            assert reason in [:corrupted_state, :key_not_found, :malformed]
          end
        end
      end
    end

    test "is damaged in any of its bits, or cut anywhere" do
      for cipher <- [kith("2026-11"), gcm(), gcm(iv_length: 16)] do
        vault = vault!(ciphers: [a: cipher])
        field = vault.encrypt!(@hello)

        for position <- 0..(byte_size(field) - 1), bit <- 0..7 do
          assert {:error, _} = vault.decrypt(corrupt(field, position, Bitwise.bsl(1, bit)))
        end

        for length <- 0..(byte_size(field) - 1),
            do: assert({:error, _} = vault.decrypt(binary_part(field, 0, length)))
      end
    end
  end

  describe "a context" do
    setup do
      %{
        vault:
          vault!(current: :a, ciphers: [a: kith("a"), cloak: gcm(), ctr: ctr(unsafe_write: true)])
      }
    end

    test "keeps a field from being put into another row", %{vault: vault} do
      anna = vault.encrypt!("anna@example.com", context: ["users", "email", 1])
      ben = vault.encrypt!("ben@example.com", context: ["users", "email", 2])
      assert vault.decrypt!(anna, context: ["users", "email", 1]) == "anna@example.com"

      for {field, context} <- [
            {ben, ["users", "email", 1]},
            {anna, ["users", "email", 2]},
            {anna, ["users", "email1"]}
          ] do
        assert reason(vault.decrypt(field, context: context)) == :corrupted_state

        assert reason(vault.decrypt(field, context: context, allow_unbound: true)) ==
                 :corrupted_state
      end

      assert reason(vault.decrypt(anna)) == :corrupted_state
      assert reason(vault.decrypt(vault.encrypt!("c"), context: "users")) == :corrupted_state
    end

    test "is the same for a number and its digits, and its parts are kept apart", %{vault: vault} do
      field = vault.encrypt!("text", context: ["users", 12])
      assert vault.decrypt!(field, context: [:users, "12"]) == "text"
      assert {:error, _} = vault.decrypt(field, context: ["users1", 2])
      assert vault.decrypt!(vault.encrypt!("text", context: 7), context: "7") == "text"
    end

    test "is none of a field without one, unless that is allowed", %{vault: vault} do
      for field <- [
            vault.encrypt!("text"),
            vault.encrypt!("text", :cloak),
            vault.encrypt!("text", :ctr)
          ] do
        assert reason(vault.decrypt(field, context: "place")) == :corrupted_state
        assert vault.decrypt!(field, context: "place", allow_unbound: true) == "text"
      end
    end

    test "is refused by Cloak's formats, and so is one that names no place", %{vault: vault} do
      assert_raise ArgumentError, ~r/no place for one/, fn ->
        vault.encrypt("text", label: :cloak, context: "place")
      end

      for context <- [[], "users" |> List.wrap() |> Kernel.++([nil]), [true], %{}, 1.0] do
        assert_raise ArgumentError, ~r/:context to be/, fn ->
          vault.encrypt("text", context: context)
        end
      end

      assert_raise ArgumentError, "expected :context to have at most 4096 bytes", fn ->
        vault.encrypt("text", context: [String.duplicate("x", 4_000), String.duplicate("x", 97)])
      end

      assert_raise ArgumentError, ~r/expected :context with :allow_unbound/, fn ->
        vault.decrypt("field", allow_unbound: true)
      end
    end
  end

  describe "keys" do
    test "come from the environment and from files" do
      path = Path.join(tmp_dir!(), "vault.key")
      File.write!(path, Base.encode64(key()))
      File.chmod!(path, 0o600)

      for source <- [{:file, path}, {:key, key()}, {:key, &key/0}] do
        assert vault!(ciphers: [a: gcm(key: source)]).decrypt!(hex(@iv12)) == @hello
      end

      child = """
      defmodule Vault do
        use Kith.Vault, otp_app: :none
        def init(_), do: {:ok, ciphers: [a: {Kith.Vault, id: "a", key: {:env, "VAULT_KEY"}}]}
      end
      IO.puts(Base.encode64(Vault.encrypt!("from the environment")))
      """

      assert {output, 0} = ChildVM.run(child, env: [{"VAULT_KEY", Base.encode64(key())}])
      field = output |> String.trim() |> Base.decode64!()
      assert vault!(ciphers: [a: kith("a")]).decrypt!(field) == "from the environment"
    end

    test "are refused from a file that others may read, short, or not there, and are not shown" do
      path = Path.join(tmp_dir!(), "vault.key")
      File.write!(path, Base.encode64(key()))
      File.chmod!(path, 0o640)
      short = Path.join(tmp_dir!(), "short.key")
      File.write!(short, Base.encode64("sixteen bytes!!!"))
      File.chmod!(short, 0o600)

      for {source, message} <- [
            {{:file, path},
             "a file mode that gives group and others nothing, such as 0600, got 0640"},
            {{:file, short}, "expected a key of 32 bytes, got 16"},
            {{:file, path <> "?"}, "expected a readable file"},
            {{:env, "KITH_TEST_NOT_SET"}, "got a variable that is not set"},
            {"sixteen bytes!!!", "expected :key to have 32 bytes, got 16"},
            {Base.encode64(key()), "got 44, which are Base64 of 32"},
            {nil, "expected :key to be given"},
            {:key,
             "expected :key to be {:env, name}, {:file, path} or 32 bytes, got something else"}
          ] do
        vault = vault!(ciphers: [a: kith("a", source)])
        error = assert_raise ArgumentError, fn -> vault.encrypt("text") end
        assert error.message =~ message
        refute error.message =~ "sixteen"
        refute error.message =~ Base.encode64(key())
      end
    end

    test "are none of the terms of the VM, given in a file" do
      path = Path.join(tmp_dir!(), "vault.key")
      key = :crypto.strong_rand_bytes(32)
      File.write!(path, Base.encode64(key))
      File.chmod!(path, 0o600)
      vault = vault!(ciphers: [a: kith("a", {:file, path})])
      start_supervised!({vault, []})
      field = vault.encrypt!("text")

      terms = [
        :persistent_term.get(),
        Application.get_all_env(:kith),
        :sys.get_state(vault),
        field
      ]

      dumped = :erlang.term_to_binary(terms)
      refute dumped =~ key
      refute dumped =~ Base.encode64(key)
    end
  end

  describe "starting" do
    test "is not needed, and one of many first calls opens the vault" do
      vault = vault!(ciphers: [a: kith("a")])

      fields =
        1..20 |> Task.async_stream(fn _ -> vault.encrypt!("text") end) |> Enum.map(&elem(&1, 1))

      assert Enum.all?(fields, &(vault.decrypt!(&1) == "text"))
      refute Process.whereis(vault)
    end

    test "says under a supervisor what is wrong with the configuration" do
      vault = vault!(ciphers: [a: kith("a", "short")])
      Process.flag(:trap_exit, true)
      assert {:error, reason} = Supervisor.start_link([{vault, []}], strategy: :one_for_one)
      assert inspect(reason) =~ "expected :key to have 32 bytes, got 5"
      refute inspect(reason) =~ "short"
    end

    test "takes options in place of those of the configuration, which end with the process" do
      vault = vault!(ciphers: [a: kith("a")])
      field = vault.encrypt!("text")
      start_supervised!({vault, ciphers: [a: kith("a", <<9::256>>)]})
      assert {:error, {:already_started, _}} = vault.start_link([])
      assert reason(vault.decrypt(field)) == :corrupted_state
      :ok = stop_supervised(vault)
      assert vault.decrypt!(field) == "text"
    end

    test "shows no key in the child specification" do
      vault = vault!([])
      spec = vault.child_spec(ciphers: [a: kith("a", "a key of thirty-two bytes, of text")])
      refute inspect(spec) =~ "thirty-two"
    end

    test "a vault is read anew by open!/2, and a wrong configuration leaves it as it was" do
      vault = vault!(ciphers: [a: gcm()])
      field = vault.encrypt!("text")
      Application.put_env(:kith, vault, ciphers: [a: kith("new"), a: gcm()], current: :a)
      assert_raise ArgumentError, ~r/expected each label once/, fn -> Vault.open!(vault) end
      assert vault.decrypt!(field) == "text"
      Application.put_env(:kith, vault, ciphers: [b: kith("new"), a: gcm()], current: :b)
      assert Vault.open!(vault) == :ok
      assert vault.decrypt!(field) == "text"
      assert {:ok, %{label: "b"}} = Vault.inspect_field(vault, vault.encrypt!("text"))
    end

    defmodule WithInit do
      use Kith.Vault, otp_app: :kith

      # As a vault written for Cloak has it.
      @impl GenServer
      def init(config), do: {:ok, Keyword.put(config, :ciphers, default: Kith.Test.Vaults.gcm())}
    end

    test "completes the configuration with init/1" do
      assert WithInit.decrypt!(hex(@iv12)) == @hello
    end

    test "works where the application :kith is not started" do
      child = """
      defmodule Vault do
        use Kith.Vault, otp_app: :none
        def init(_), do: {:ok, ciphers: [a: {Kith.Vault, id: "a", key: <<7::256>>}]}
      end
      Application.stop(:kith)
      IO.puts(Vault.decrypt!(Vault.encrypt!("without it")))
      """

      assert {output, 0} = ChildVM.run(child)
      assert output =~ "without it"
    end
  end

  test "arguments of the wrong kind raise, and are not shown" do
    vault = vault!(ciphers: [a: kith("a")])

    for call <- [
          fn -> vault.encrypt({:secret, "text"}) end,
          fn -> vault.encrypt(nil) end,
          fn -> vault.decrypt(:secret) end,
          fn -> vault.encrypt("text", secret: "text") end,
          fn -> vault.encrypt("text", {"text"}) end,
          fn -> vault.decrypt("text", :a) end
        ] do
      error = assert_raise ArgumentError, call
      assert error.message =~ ~r/expected|unknown options \[:secret\]/
      refute error.message =~ "text\""
    end
  end

  test "JSON is made by the library that was given" do
    assert vault!(ciphers: [a: kith("a")], json_library: Kith.Test.Json).json_library() ==
             Kith.Test.Json
  end

  defp damage(field) do
    size = byte_size(field)
    at = :rand.uniform(size) - 1

    case :rand.uniform(5) do
      1 -> corrupt(field, at, :rand.uniform(255))
      2 -> binary_part(field, 0, at)
      3 -> field <> :crypto.strong_rand_bytes(:rand.uniform(20))
      4 -> binary_part(field, 0, at) <> from(field, at + 1)
      5 -> binary_part(field, 0, at) <> :crypto.strong_rand_bytes(size - at)
    end
  end
end
