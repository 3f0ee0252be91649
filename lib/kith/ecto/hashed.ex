if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Hashed do
    @moduledoc false
    # What the types of columns to search by have in common. `nil` is NULL, and a hash is loaded as it is.

    @callback __hash__(binary) :: binary

    defmacro __using__(_options) do
      quote location: :keep do
        @behaviour Ecto.Type
        @behaviour Kith.Ecto.Hashed

        @doc false
        @impl Ecto.Type
        def type, do: :binary

        @doc false
        @impl Ecto.Type
        def cast(value) when is_binary(value) or is_nil(value), do: {:ok, value}
        def cast(_), do: :error

        @doc false
        @impl Ecto.Type
        def dump(value), do: Kith.Ecto.Hashed.dump(__MODULE__, value)

        @doc false
        @impl Ecto.Type
        def load(value), do: {:ok, value}

        @doc false
        @impl Ecto.Type
        def equal?(a, b), do: a == b

        @doc false
        @impl Ecto.Type
        def embed_as(_format), do: Kith.Ecto.Hashed.embed_as(__MODULE__)

        defoverridable cast: 1, dump: 1, load: 1, equal?: 2, embed_as: 1, type: 0
      end
    end

    @doc false
    def dump(_type, nil), do: {:ok, nil}
    def dump(type, value) when is_binary(value), do: {:ok, type.__hash__(value)}

    # Ecto would print the value.
    def dump(type, _value),
      do: raise(Kith.Error.new(:malformed, "#{inspect(type)}: expected a binary to hash"))

    @doc false
    @spec embed_as(module) :: no_return
    def embed_as(type) do
      raise ArgumentError,
            "#{inspect(type)} is in an embedded schema, where the value itself would be stored, in clear"
    end

    @doc false
    def config!(type, otp_app) do
      case type.init(Application.get_env(otp_app, type, [])) do
        {:ok, config} ->
          config

        # What it returned may hold a secret.
        _ ->
          raise ArgumentError, "expected #{inspect(type)}.init/1 to return {:ok, options}"
      end
    end
  end
end
