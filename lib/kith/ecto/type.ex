if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Type do
    @moduledoc """
    What the types of encrypted fields have in common, and the base for your own.

        defmodule MyApp.Encrypted.Binary do
          use Kith.Ecto.Binary, vault: MyApp.Vault
        end

        # in a migration
        add :email, :binary

        # in a schema
        field :email, MyApp.Encrypted.Binary

    There are `Kith.Ecto.Binary`, `Kith.Ecto.Integer`, `Kith.Ecto.Float`, `Kith.Ecto.Decimal`, `Kith.Ecto.Date`, `Kith.Ecto.Time`,
    `Kith.Ecto.DateTime`, `Kith.Ecto.NaiveDateTime`, `Kith.Ecto.Map`, `Kith.Ecto.IntegerList` and `Kith.Ecto.StringList`. They write the same plaintexts as
    the types of `Cloak.Ecto` with these names, before they encrypt. `nil` is stored as `NULL`: that a field is empty, and about how long
    it is, can be seen.

    ## Options

      * `:vault` - the module of a `Kith.Vault`. Required.
      * `:label` - the cipher new fields are encrypted under. Default: the current one.
      * `:closure` - `true` loads a field as a function without arguments that returns the value, so that `inspect` does not show it. A function
        is taken by `cast` too.
      * `:embed` - see below

    ## Errors

    What cannot be decrypted, or is not what the type writes, raises `Kith.Error`: `:corrupted_state`, `:key_not_found` or `:malformed`. It
    does not return `:error`, because Ecto would print the value in its own exception. `cast` returns `:error`, as Ecto expects.

    ## Embedded schemas

    Ecto keeps the fields of an embedded schema in the JSON of their parent, and JSON has no place for bytes. Cloak's types write them
    there **in clear**. These types raise `ArgumentError`. Encrypt the whole as a `Kith.Ecto.Map`, or say `embed: :clear` to have what
    Cloak does.

    ## Your own type

        defmodule MyApp.Encrypted.Atom do
          use Kith.Ecto.Type, vault: MyApp.Vault

          def cast(value) when is_atom(value), do: {:ok, value}
          def cast(value) when is_function(value, 0), do: cast(value.())
          def cast(_), do: :error

          def before_encrypt(value), do: Atom.to_string(value)
          def after_decrypt(text), do: String.to_existing_atom(text)
        end

    An exception of theirs becomes a `Kith.Error` that shows no value.
    """

    alias Kith.Error
    alias Kith.Vault.Encoding

    @doc "The options of a type: `:vault`, `:label`, `:closure`, `:kind`."
    @callback __kith__() :: keyword
    @callback before_encrypt(term) :: binary
    @callback after_decrypt(binary) :: term

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        @behaviour Ecto.Type
        @behaviour Kith.Ecto.Type
        @kith Kith.Ecto.Type.options!(unquote(options))

        @doc false
        @impl Kith.Ecto.Type
        def __kith__, do: @kith

        @doc false
        @impl Ecto.Type
        def type, do: :binary

        @doc false
        @impl Ecto.Type
        def cast(value), do: Kith.Ecto.Type.cast(__MODULE__, value)

        @doc false
        @impl Ecto.Type
        def dump(value), do: Kith.Ecto.Type.dump(__MODULE__, value)

        @doc false
        @impl Ecto.Type
        def load(value), do: Kith.Ecto.Type.load(__MODULE__, value)

        @doc false
        @impl Ecto.Type
        def equal?(a, b), do: Kith.Ecto.Type.equal?(a, b)

        @doc false
        @impl Ecto.Type
        def embed_as(_format), do: Kith.Ecto.Type.embed_as(__MODULE__)

        @doc false
        @impl Kith.Ecto.Type
        def before_encrypt(value), do: Kith.Ecto.Type.encode!(__MODULE__, value)

        @doc false
        @impl Kith.Ecto.Type
        def after_decrypt(text), do: Kith.Ecto.Type.decode!(__MODULE__, text)

        defoverridable cast: 1,
                       dump: 1,
                       load: 1,
                       equal?: 2,
                       embed_as: 1,
                       type: 0,
                       before_encrypt: 1,
                       after_decrypt: 1
      end
    end

    @casts [
      binary: :string,
      integer: :integer,
      float: :float,
      decimal: :decimal,
      date: :date,
      time: :time,
      datetime: :utc_datetime,
      naive_datetime: :naive_datetime,
      map: :map,
      integer_list: {:array, :integer},
      string_list: {:array, :string}
    ]

    @doc false
    def options!(options) do
      known = [:vault, label: nil, closure: false, embed: nil, kind: :binary]
      options = Keyword.validate!(options, known)
      vault = options[:vault]

      if vault == nil or not is_atom(vault),
        do: raise(ArgumentError, "expected :vault to be a module that says `use Kith.Vault`")

      if not is_boolean(options[:closure]),
        do: raise(ArgumentError, "expected :closure to be a boolean")

      if options[:embed] not in [nil, :clear],
        do: raise(ArgumentError, "expected :embed to be :clear, or to be left out")

      options
    end

    @doc false
    def cast(_type, nil), do: {:ok, nil}
    def cast(type, value) when is_function(value, 0), do: type.cast(value.())
    def cast(type, value), do: Ecto.Type.cast(@casts[type.__kith__()[:kind]], value)

    @doc false
    def dump(_type, nil), do: {:ok, nil}

    def dump(type, value) do
      options = type.__kith__()

      case type.cast(value) do
        {:ok, nil} ->
          {:ok, nil}

        {:ok, value} ->
          text = guarded(type, fn -> type.before_encrypt(value) end)
          if not is_binary(text), do: raise(not_of(type))
          {:ok, done!(type, encrypt(options, text))}

        _ ->
          raise not_of(type)
      end
    end

    defp encrypt(options, text) do
      case options[:label] do
        nil -> options[:vault].encrypt(text)
        label -> options[:vault].encrypt(text, label)
      end
    end

    @doc false
    def load(_type, nil), do: {:ok, nil}

    def load(type, ciphertext) do
      options = type.__kith__()
      text = done!(type, options[:vault].decrypt(ciphertext))
      value = guarded(type, fn -> type.after_decrypt(text) end)
      if options[:closure], do: {:ok, fn -> value end}, else: {:ok, value}
    end

    @doc false
    def equal?(a, b), do: unwrap(a) == unwrap(b)

    defp unwrap(value) when is_function(value, 0), do: value.()
    defp unwrap(value), do: value

    @doc false
    def embed_as(type) do
      if type.__kith__()[:embed] == :clear do
        :self
      else
        raise ArgumentError,
              "#{inspect(type)} is in an embedded schema, where it would be stored in clear; " <>
                "encrypt the whole as a Kith.Ecto.Map, or give the type embed: :clear"
      end
    end

    @doc false
    def encode!(type, value) do
      options = type.__kith__()

      case Encoding.encode(options[:kind], value, fn -> options[:vault].json_library() end) do
        {:ok, text} -> text
        :error -> raise not_of(type)
      end
    end

    @doc false
    def decode!(type, text) do
      options = type.__kith__()

      case Encoding.decode(options[:kind], text, fn -> options[:vault].json_library() end) do
        {:ok, value} -> value
        :error -> raise not_of(type)
      end
    end

    # An exception of its own may quote the value.
    defp guarded(type, fun) do
      fun.()
    rescue
      error in Error -> reraise error, __STACKTRACE__
      error -> raise not_of(type, inspect(error.__struct__))
    end

    defp done!(_type, {:ok, value}), do: value

    defp done!(type, {:error, %Error{} = error}) do
      raise %{error | detail: Enum.join([inspect(type) | List.wrap(error.detail)], ": ")}
    end

    defp not_of(type, why \\ nil) do
      detail = "#{inspect(type)}: the value is not one of this type"
      Error.new(:malformed, if(why, do: "#{detail} (#{why})", else: detail))
    end
  end
end
