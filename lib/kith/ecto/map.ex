if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Map do
    @moduledoc """
    A type for encrypted maps. They are loaded with strings for keys.

        defmodule MyApp.Encrypted.Map do
          use Kith.Ecto.Map, vault: MyApp.Vault
        end

    What is encrypted is JSON, as with `Cloak.Ecto.Map`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :map)
      end
    end
  end
end
