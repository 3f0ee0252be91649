if Code.ensure_loaded?(Ecto.Type) do
  defmodule Kith.Ecto.Time do
    @moduledoc """
    A type for encrypted times of day, to the second.

        defmodule MyApp.Encrypted.Time do
          use Kith.Ecto.Time, vault: MyApp.Vault
        end

    What is encrypted is `12:00:00`, as with `Cloak.Ecto.Time`. Options, errors and more: `Kith.Ecto.Type`.
    """

    @doc false
    defmacro __using__(options) do
      quote location: :keep do
        use Kith.Ecto.Type, Keyword.put(unquote(options), :kind, :time)
      end
    end
  end
end
