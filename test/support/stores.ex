defmodule Kith.Test.Stores do
  @moduledoc false
  # Each test of a module on SQLite and on PostgreSQL:
  #
  #     use Kith.Case, async: true
  #     use Kith.Test.Stores
  #
  # A test that is about one of them says `@tag store: :sqlite` or `@tag store: :postgres`.

  defmacro __using__(_) do
    quote do
      import ExUnit.Case, except: [test: 2, test: 3]
      import Kith.Test.Stores, only: [test: 2, test: 3]
    end
  end

  defmacro test(message, context \\ quote(do: _), contents) do
    quote do
      tags = @tag

      stores =
        Enum.find_value(tags ++ @describetag, [:sqlite, :postgres], &Kith.Test.Stores.only/1)

      if :sqlite in stores do
        @tag store: :sqlite
        ExUnit.Case.test(unquote(message), unquote(context), unquote(contents))
      end

      if :postgres in stores do
        # The first test has taken them.
        Module.delete_attribute(__MODULE__, :tag)
        for tag <- Enum.reverse(tags), do: @tag(tag)
        @tag store: :postgres, postgres: true
        ExUnit.Case.test(
          unquote(message) <> ", on PostgreSQL",
          unquote(context),
          unquote(contents)
        )
      end
    end
  end

  @doc false
  def only(tags) when is_list(tags), do: tags[:store] && [tags[:store]]
  def only(_tag), do: nil
end
