defmodule Kith.Test.Json do
  @moduledoc false
  # What a JSON library looks like, for lists and maps of strings and integers. The real ones are tried where they are there.

  def encode!(term), do: term |> encode() |> IO.iodata_to_binary()

  defp encode(nil), do: "null"
  defp encode(number) when is_integer(number), do: Integer.to_string(number)
  defp encode(text) when is_binary(text) or is_atom(text), do: [?", to_string(text), ?"]

  defp encode(list) when is_list(list),
    do: [?[, Enum.intersperse(Enum.map(list, &encode/1), ?,), ?]]

  defp encode(%{} = map) when not is_struct(map) do
    pairs = for {key, value} <- map, do: [encode(to_string(key)), ?:, encode(value)]
    [?{, Enum.intersperse(pairs, ?,), ?}]
  end

  # Elixir's own syntax is close enough for what encode!/1 makes.
  def decode!(text) do
    text = String.replace(text, ~r/"\s*:/, "\" =>")
    text = if String.starts_with?(text, "{"), do: "%" <> text, else: text
    {:ok, quoted} = Code.string_to_quoted(text, existing_atoms_only: true)
    true = Macro.quoted_literal?(quoted)
    {value, _} = Code.eval_quoted(quoted)
    true = is_list(value) or is_map(value)
    value
  end
end
