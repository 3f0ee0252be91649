if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Binary do
    @moduledoc """
    A type for encrypted text and bytes.

        defmodule MyApp.Encrypted.Binary do
          use Kith.Ecto.Binary, vault: MyApp.Vault
        end

    What is encrypted is the bytes, as with `Cloak.Ecto.Binary`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :binary)
      end
    end
  end
end
