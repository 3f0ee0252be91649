defmodule Kith.ErrorTest do
  use ExUnit.Case, async: true

  alias Kith.Error

  test "every reason has a sentence of its own, which says what to do" do
    messages = for reason <- Error.reasons(), do: Exception.message(Error.new(reason))

    assert Enum.uniq(messages) == messages
    for message <- messages, do: assert(message =~ ~r/[,;] /)
  end

  test "the reasons are those of the native library" do
    assert Kith.Native.reasons() |> elem(1) |> Enum.sort() == Enum.sort(Error.reasons())
  end

  test "the reasons are those of the documented type" do
    {:ok, types} = Code.Typespec.fetch_types(Error)
    assert [{:type, _, :union, atoms}] = for({:type, {:reason, union, []}} <- types, do: union)
    assert Enum.sort(for {:atom, _, atom} <- atoms, do: atom) == Enum.sort(Error.reasons())
  end

  test "the reasons are those of the table in the documentation" do
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Error)

    documented =
      for [_, reason] <- Regex.scan(~r/^\| `:(\w+)` \|/m, moduledoc), do: String.to_atom(reason)

    assert documented == Error.reasons()
  end

  test "can be raised by reason, and with a detail for the log" do
    assert_raise Error, ~r/has no keys here/, fn -> raise Error, :not_registered end
    error = Error.exception(reason: :storage, detail: "disk full")
    assert Exception.message(error) =~ "look at the database: disk full"
  end

  test "does not take a reason outside the set" do
    assert_raise FunctionClauseError, fn -> apply(Error, :new, [:other]) end
  end
end
