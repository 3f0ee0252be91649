if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.NaiveDateTime do
    @moduledoc """
    A type for encrypted points in time without a zone, to the second.

        defmodule MyApp.Encrypted.NaiveDateTime do
          use Kith.Ecto.NaiveDateTime, vault: MyApp.Vault
        end

    What is encrypted is `2026-11-22 03:44:37`, as with `Cloak.Ecto.NaiveDateTime`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :naive_datetime)
      end
    end
  end
end
