if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.StringList do
    @moduledoc """
    A type for encrypted lists of strings.

        defmodule MyApp.Encrypted.StringList do
          use Kith.Ecto.StringList, vault: MyApp.Vault
        end

    What is encrypted is JSON, as with `Cloak.Ecto.StringList`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :string_list)
      end
    end
  end
end
