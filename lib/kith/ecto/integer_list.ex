if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.IntegerList do
    @moduledoc """
    A type for encrypted lists of integers.

        defmodule MyApp.Encrypted.IntegerList do
          use Kith.Ecto.IntegerList, vault: MyApp.Vault
        end

    What is encrypted is JSON, as with `Cloak.Ecto.IntegerList`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :integer_list)
      end
    end
  end
end
