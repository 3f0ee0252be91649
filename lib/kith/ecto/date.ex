if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Date do
    @moduledoc """
    A type for encrypted dates.

        defmodule MyApp.Encrypted.Date do
          use Kith.Ecto.Date, vault: MyApp.Vault
        end

    What is encrypted is `2026-11-22`, as with `Cloak.Ecto.Date`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :date)
      end
    end
  end
end
