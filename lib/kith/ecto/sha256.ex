if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.SHA256 do
    @moduledoc """
    A type for a column to search by: SHA-256 of a value, without a secret.

        field :email, MyApp.Encrypted.Binary
        field :email_hash, Kith.Ecto.SHA256

    The bytes are those of `Cloak.Ecto.SHA256`. Whoever reads the table can guess values as fast as they can hash: of an e-mail address, a phone number or
    a name it hides nothing. It is here for columns of before; take `Kith.Ecto.HMAC`.
    """

    use Kith.Ecto.Hashed

    @doc false
    @impl Ecto.Type
    def cast(nil), do: {:ok, nil}
    def cast(value) when is_binary(value), do: {:ok, value}
    def cast(value) when is_atom(value) or is_number(value), do: {:ok, to_string(value)}
    def cast(_), do: :error

    # As Cloak compares: a value with a loaded hash too.
    @doc false
    @impl Ecto.Type
    def equal?(nil, nil), do: true
    def equal?(a, b) when is_binary(a) and is_binary(b), do: hash_of(a) == hash_of(b)
    def equal?(_, _), do: false

    defp hash_of(value), do: if(String.valid?(value), do: __hash__(value), else: value)

    @doc false
    @impl Kith.Ecto.Hashed
    def __hash__(value), do: Kith.Vault.Lookup.sha256(value)
  end
end
