if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.PBKDF2 do
    @moduledoc """
    A type for a column to search by: a hash of a value that takes long to compute, so that it takes long to guess.

        defmodule MyApp.Hashed.PBKDF2 do
          use Kith.Ecto.PBKDF2, otp_app: :my_app
        end

        config :my_app, MyApp.Hashed.PBKDF2, secret: {:file, "/etc/my_app/lookup.key"}

    It is used as `Kith.Ecto.HMAC` is, where the rest is said. It is no way to keep passwords, as all hashes have one salt: see `Kith.Password`.

    ## Options

      * `:secret` - the salt, as for `Kith.Ecto.HMAC`. Required.
      * `:algorithm` - `:sha224`, `:sha256`, `:sha384` or `:sha512`. Default `:sha256`.
      * `:iterations` - 1 to 10,000,000. Default 600,000, which takes a tenth of a second and more, for each value that is written or searched for.
      * `:size` - bytes of the hash, 1 to 1,024. Default 32.
      * `:mode` - `:correct` (default), or `:cloak_1_3`.

    `Cloak.Ecto.PBKDF2` up to 1.3 takes `:size` for the number of iterations, 32 by default, and ignores `:iterations`: its hashes are guessed nearly as fast as those of
    an HMAC. With `mode: :cloak_1_3` and the same `:size` the hashes are the same, and columns of before are found. Fill a new column in the mode
    `:correct` from the encrypted one beside it, and drop the old one.

    From 10,000 iterations on, hashes wait for their turn among those of `Kith.Password`; then too many at once raise `Kith.Error` with `:busy`, and the application
    `:kith` must be started.
    """

    @callback init(keyword) :: {:ok, keyword}

    @doc false
    defmacro __using__(options) do
      otp_app = Keyword.fetch!(options, :otp_app)

      quote location: :keep do
        @behaviour Kith.Ecto.PBKDF2
        use Kith.Ecto.Hashed

        @doc false
        @impl Kith.Ecto.PBKDF2
        def init(config), do: {:ok, config}

        @doc false
        def __hash__(value) do
          config = Kith.Ecto.Hashed.config!(__MODULE__, unquote(otp_app))
          config = Keyword.merge(Kith.Ecto.PBKDF2.defaults(), config)
          Kith.Vault.Lookup.pbkdf2(__MODULE__, config, value)
        end

        defoverridable init: 1
      end
    end

    @doc false
    def defaults, do: [algorithm: :sha256, iterations: 600_000, size: 32, mode: :correct]
  end
end
