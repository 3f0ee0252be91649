if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Integer do
    @moduledoc """
    A type for encrypted integers.

        defmodule MyApp.Encrypted.Integer do
          use Kith.Ecto.Integer, vault: MyApp.Vault
        end

    What is encrypted is decimal digits, as with `Cloak.Ecto.Integer`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :integer)
      end
    end
  end
end
