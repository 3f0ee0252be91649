if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.HMAC do
    @moduledoc """
    A type for a column to search by: the HMAC of a value under a secret.

        defmodule MyApp.Hashed.HMAC do
          use Kith.Ecto.HMAC, otp_app: :my_app
        end

        config :my_app, MyApp.Hashed.HMAC, algorithm: :sha256, secret: {:file, "/etc/my_app/lookup.key"}

        # in a schema
        field :email, MyApp.Encrypted.Binary
        field :email_hash, MyApp.Hashed.HMAC

        # in a changeset
        put_change(changeset, :email_hash, get_field(changeset, :email))

        Repo.get_by(User, email_hash: "anna@example.com")

    The bytes are those of `Cloak.Ecto.HMAC`. A field is loaded as its hash, since no hash has a way back. Equal values have equal hashes, which whoever reads
    the table can see; who has the secret too can guess values. Normalize a value (case, white space) before it is hashed.

    ## Options

      * `:algorithm` - `:sha224`, `:sha256`, `:sha384` or `:sha512`; for columns of before also `:md5`, `:ripemd160` and `:sha`. Required.
      * `:secret` - `{:env, name}` or `{:file, path}` with the Base64 of 32 bytes, which `mix kith.gen.key` makes and which is never an Elixir term; or
        bytes of any number, as with Cloak. Required.

    `init/1` may be defined to complete the options: it takes them and returns `{:ok, options}`. A wrong configuration raises `ArgumentError`, and
    a value that is no binary `Kith.Error`.
    """

    @callback init(keyword) :: {:ok, keyword}

    @doc false
    defmacro __using__(options) do
      otp_app = Keyword.fetch!(options, :otp_app)

      quote location: :keep do
        @behaviour Kith.Ecto.HMAC
        use Kith.Ecto.Hashed

        @doc false
        @impl Kith.Ecto.HMAC
        def init(config), do: {:ok, config}

        @doc false
        def __hash__(value) do
          config = Kith.Ecto.Hashed.config!(__MODULE__, unquote(otp_app))
          Kith.Vault.Lookup.hmac(__MODULE__, config, value)
        end

        defoverridable init: 1
      end
    end
  end
end
