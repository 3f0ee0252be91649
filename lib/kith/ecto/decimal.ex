if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Decimal do
    @moduledoc """
    A type for encrypted decimals, of the package `decimal`.

        defmodule MyApp.Encrypted.Decimal do
          use Kith.Ecto.Decimal, vault: MyApp.Vault
        end

    What is encrypted is `Decimal.to_string/1`, as with `Cloak.Ecto.Decimal`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :decimal)
      end
    end
  end
end
