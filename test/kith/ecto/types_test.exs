if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.TypesTest do
    # Against the real Ecto.
    use Kith.Case, async: true

    import Kith.Test.Vaults

    alias Kith.Error
    alias Kith.Vault.Migrator

    defmodule V do
      use Kith.Vault, otp_app: :kith

      def init(_) do
        {:ok,
         current: :new,
         json_library: Jason,
         ciphers: [new: kith("new"), old: gcm(), ctr: ctr(unsafe_write: true)]}
      end
    end

    for type <- [
          :Binary,
          :Integer,
          :Float,
          :Decimal,
          :Date,
          :Time,
          :DateTime,
          :NaiveDateTime,
          :Map,
          :IntegerList,
          :StringList
        ] do
      for {name, options} <- [{type, [vault: V]}, {:"Closed.#{type}", [vault: V, closure: true]}] do
        Module.create(
          Module.concat(__MODULE__, name),
          quote do
            use unquote(Module.concat(Kith.Ecto, type)), unquote(options)
          end,
          __ENV__
        )
      end
    end

    defmodule Old do
      use Kith.Ecto.Binary, vault: V, label: :old
    end

    defmodule InClear do
      use Kith.Ecto.Binary, vault: V, embed: :clear
    end

    defmodule Own do
      use Kith.Ecto.Type, vault: V
      def cast(value) when is_atom(value), do: {:ok, value}
      def cast(_), do: :error
      def before_encrypt(value), do: Atom.to_string(value)
      def after_decrypt(text), do: String.to_existing_atom(text)
    end

    defmodule HMAC do
      use Kith.Ecto.HMAC, otp_app: :kith
      @impl Kith.Ecto.HMAC
      def init(config), do: {:ok, Keyword.merge([algorithm: :sha512, secret: "secret"], config)}
    end

    defmodule PBKDF2 do
      use Kith.Ecto.PBKDF2, otp_app: :kith
      def init(_), do: {:ok, secret: "secret", iterations: 1_000}
    end

    defmodule OldPBKDF2 do
      use Kith.Ecto.PBKDF2, otp_app: :kith
      def init(_), do: {:ok, secret: "secret", mode: :cloak_1_3}
    end

    defmodule User do
      use Ecto.Schema

      schema "users" do
        field(:email, Kith.Ecto.TypesTest.Binary)
        field(:email_hash, HMAC)
        field(:born, Kith.Ecto.TypesTest.Date, source: :age)
        field(:name, :string)
      end
    end

    defmodule Embedded do
      use Ecto.Schema

      embedded_schema do
        field(:email, Kith.Ecto.TypesTest.Binary)
      end
    end

    defp type(name), do: Module.concat(__MODULE__, name)
    defp closed(name), do: Module.concat([__MODULE__, Closed, name])

    @values [
      Binary: {"anna", "anna", "anna"},
      Integer: {"42", 42, "42"},
      Float: {"0.5", 0.5, "0.5"},
      Date: {"2026-11-22", ~D[2026-11-22], "2026-11-22"},
      Time: {"12:00:00", ~T[12:00:00], "12:00:00"},
      DateTime: {"2026-11-22T03:44:37Z", ~U[2026-11-22 03:44:37Z], "2026-11-22 03:44:37Z"},
      NaiveDateTime: {"2026-11-22T03:44:37", ~N[2026-11-22 03:44:37], "2026-11-22 03:44:37"},
      Map: {%{a: 1}, %{a: 1}, ~s({"a":1})},
      IntegerList: {["1", 2], [1, 2], "[1,2]"},
      StringList: {["a"], ["a"], ~s(["a"])}
    ]

    test "every type casts as Ecto does, encrypts Cloak's text, and loads the value" do
      decimal = {"1.50", Decimal.new("1.50"), "1.50"}

      for {name, {given, value, text}} <- [{:Decimal, decimal} | @values] do
        type = type(name)
        assert Ecto.Type.type(type) == :binary
        assert {:ok, ^value} = Ecto.Type.cast(type, given)
        assert {:ok, field} = Ecto.Type.dump(type, value)
        assert V.decrypt!(field) == text
        loaded = if name == :Map, do: %{"a" => 1}, else: value
        assert Ecto.Type.load(type, field) == {:ok, loaded}
        assert Ecto.Type.dump(type, nil) == {:ok, nil}
        assert Ecto.Type.load(type, nil) == {:ok, nil}
        assert Ecto.Type.cast(type, self()) == :error
      end
    end

    test "with closure: true a field is loaded as a function, and a function is taken" do
      for {name, {_, value, _}} <- @values, name != :Map do
        type = closed(name)
        assert {:ok, ^value} = Ecto.Type.cast(type, fn -> value end)
        {:ok, field} = Ecto.Type.dump(type, fn -> value end)
        assert {:ok, loaded} = Ecto.Type.load(type, field)
        assert loaded.() == value
        assert type.equal?(loaded, value)
        refute type.equal?(loaded, fn -> nil end)
        refute inspect(loaded) =~ "anna"
      end
    end

    test "a changeset sees what changed" do
      user = %User{email: "anna@example.com"}
      assert Ecto.Changeset.cast(user, %{email: "anna@example.com"}, [:email]).changes == %{}

      changeset =
        Ecto.Changeset.cast(user, %{email: "ben@example.com", born: "no date"}, [:email, :born])

      assert changeset.changes == %{email: "ben@example.com"}
      assert [born: {"is invalid", _}] = changeset.errors
    end

    test "a label encrypts under its cipher" do
      {:ok, field} = Ecto.Type.dump(Old, "text")
      assert {:ok, %{label: "old"}} = Kith.Vault.inspect_field(V, field)
      assert Ecto.Type.load(Old, field) == {:ok, "text"}
    end

    test "what does not decrypt raises with the type and the reason, and shows nothing of it" do
      {:ok, field} = Ecto.Type.dump(type(:Binary), "a secret text")

      for {bytes, reason} <- [
            {corrupt(field, byte_size(field) - 1), :corrupted_state},
            {"plaintext in the column", :malformed},
            {<<1, 5, "OTHER", 0::400>>, :key_not_found}
          ] do
        error = assert_raise Error, fn -> Ecto.Type.load(type(:Binary), bytes) end
        assert error.reason == reason
        assert Exception.message(error) =~ inspect(type(:Binary))
        refute Exception.message(error) =~ "plaintext in"
      end
    end

    test "what is not of the type raises: of AES.CTR under another key, too" do
      for {name, _} <- @values, name != :Binary do
        field = V.encrypt!("what a wrong key gives", :ctr)
        error = assert_raise Error, fn -> Ecto.Type.load(type(name), field) end
        assert error.reason == :malformed
        refute Exception.message(error) =~ "wrong key gives"
      end

      for {name, value} <- [
            Integer: "a secret",
            Date: "a secret",
            Map: "a secret",
            StringList: [:a]
          ] do
        error = assert_raise Error, fn -> Ecto.Type.dump(type(name), value) end
        assert error.reason == :malformed
        refute Exception.message(error) =~ "secret"
      end
    end

    test "what JSON cannot say raises without the value" do
      error = assert_raise Error, fn -> Ecto.Type.dump(type(:Map), %{"secret" => <<255>>}) end
      assert error.reason == :malformed
      refute Exception.message(error) =~ "secret"
    end

    test "a type of one's own says what is encrypted, and its exceptions show no value" do
      {:ok, field} = Ecto.Type.dump(Own, :ok)
      assert V.decrypt!(field) == "ok"
      assert Ecto.Type.load(Own, field) == {:ok, :ok}
      unknown = V.encrypt!("an atom that nobody knows")
      error = assert_raise Error, fn -> Ecto.Type.load(Own, unknown) end
      assert Exception.message(error) =~ "ArgumentError"
      refute Exception.message(error) =~ "nobody"
    end

    test "an embedded schema raises, where Cloak stores the value in clear, unless that is asked for" do
      for value <- ["anna@example.com", nil] do
        assert_raise ArgumentError, ~r/stored in clear/, fn ->
          Ecto.embedded_dump(%Embedded{email: value}, :json)
        end
      end

      assert Ecto.Type.embedded_dump(InClear, "text", :json) == {:ok, "text"}

      assert_raise ArgumentError, ~r/in clear/, fn ->
        Ecto.Type.embedded_dump(HMAC, "text", :json)
      end
    end

    test "options of a type are checked where it is compiled" do
      for {options, message} <- [
            {[], "expected :vault to be a module"},
            {[vault: V, closure: 1], "expected :closure to be a boolean"},
            {[vault: V, embed: true], "expected :embed to be :clear"},
            {[vault: V, lable: :a], "unknown keys [:lable]"}
          ] do
        error =
          assert_raise ArgumentError, fn ->
            Code.eval_quoted(
              quote do
                defmodule unquote(
                            Module.concat(__MODULE__, "T#{System.unique_integer([:positive])}")
                          ) do
                  use Kith.Ecto.Binary, unquote(options)
                end
              end
            )
          end

        assert error.message =~ message
      end
    end

    test "lookups are Cloak.Ecto's, cast binaries only, and load the hash" do
      value = "user@email.com"

      for {type, hash} <- [
            {HMAC, :crypto.mac(:hmac, :sha512, "secret", value)},
            {Kith.Ecto.SHA256, :crypto.hash(:sha256, value)},
            {PBKDF2, :crypto.pbkdf2_hmac(:sha256, value, "secret", 1_000, 32)},
            {OldPBKDF2, hex("3115eb75be8040ebf4bbecc81e1d905551cb1beea8fe66975b4bb03034cd7e93")}
          ] do
        assert Ecto.Type.type(type) == :binary
        assert Ecto.Type.cast(type, value) == {:ok, value}
        assert Ecto.Type.cast(type, self()) == :error
        assert Ecto.Type.dump(type, value) == {:ok, hash}
        assert Ecto.Type.dump(type, nil) == {:ok, nil}
        assert Ecto.Type.load(type, hash) == {:ok, hash}
        assert_raise Error, fn -> Ecto.Type.dump(type, {:secret}) end
      end

      assert Kith.Ecto.SHA256.equal?(value, :crypto.hash(:sha256, value))
    end

    test "the rows of a schema are upgraded, with the columns and labels of its fields" do
      kith = start_kith!()
      repo = Kith.Instance.fetch!(kith).repo

      query = fn sql, params ->
        {:ok, result} = Kith.SQLite.query(repo, sql, params)
        result.rows
      end

      query.(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, email BLOB, email_hash BLOB, age BLOB, name TEXT)",
        []
      )

      {:ok, hash} = HMAC.dump("anna@example.com")

      row = [
        1,
        {:blob, V.encrypt!("anna@example.com", :old)},
        {:blob, hash},
        {:blob, V.encrypt!("1980-02-30", :old)},
        "Anna"
      ]

      query.("INSERT INTO users VALUES ($1, $2, $3, $4, $5)", row)
      assert {:ok, %{upgraded: 1, refused: 1, refusals: [refusal]}} = Migrator.run(repo, User)
      # There is no such day.
      assert refusal == %{key: [1], column: "age", reason: :malformed}
      assert [[email, ^hash]] = query.("SELECT email, email_hash FROM users", [])
      assert Ecto.Type.load(type(:Binary), email) == {:ok, "anna@example.com"}
      assert {:ok, %{current: true}} = Kith.Vault.inspect_field(V, email)
    end

    test "a schema without encrypted fields, and one with lists of them, are not upgraded" do
      [{plain, _}] =
        Code.compile_string("""
        defmodule Kith.Ecto.TypesTest.Plain do
          use Ecto.Schema
          schema "plain", do: field(:name, :string)
        end
        """)

      [{lists, _}] =
        Code.compile_string("""
        defmodule Kith.Ecto.TypesTest.Lists do
          use Ecto.Schema
          schema "lists", do: field(:names, {:array, Kith.Ecto.TypesTest.Binary})
        end
        """)

      repo = Kith.Instance.fetch!(start_kith!()).repo

      assert_raise ArgumentError, ~r/fields with types of Kith.Ecto/, fn ->
        Migrator.run(repo, plain)
      end

      assert_raise ArgumentError, ~r/no list or map of encrypted fields/, fn ->
        Migrator.run(repo, lists)
      end
    end
  end
else
  defmodule Kith.Ecto.TypesTest do
    use ExUnit.Case, async: true
    use Kith.Test.Optional, :ecto

    test "the types of Ecto" do
    end
  end
end
