if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Float do
    @moduledoc """
    A type for encrypted floats.

        defmodule MyApp.Encrypted.Float do
          use Kith.Ecto.Float, vault: MyApp.Vault
        end

    What is encrypted is the shortest text that gives the float again, as with `Cloak.Ecto.Float`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :float)
      end
    end
  end
end
