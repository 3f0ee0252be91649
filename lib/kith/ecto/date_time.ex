if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.DateTime do
    @moduledoc """
    A type for encrypted points in time, in UTC and to the second.

        defmodule MyApp.Encrypted.DateTime do
          use Kith.Ecto.DateTime, vault: MyApp.Vault
        end

    What is encrypted is `2026-11-22 03:44:37Z`, as with `Cloak.Ecto.DateTime`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :datetime)
      end
    end
  end
end
