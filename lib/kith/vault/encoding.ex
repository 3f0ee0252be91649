defmodule Kith.Vault.Encoding do
  @moduledoc false
  # What of a value is encrypted: the texts of Cloak.Ecto, so that either reads what the other wrote. What does not parse is an
  # error and never a value: under a cipher that is not authenticated, nothing else tells a wrong key.

  @type kind ::
          :binary
          | :integer
          | :float
          | :decimal
          | :date
          | :time
          | :datetime
          | :naive_datetime
          | :map
          | :integer_list
          | :string_list

  @kinds [
    :binary,
    :integer,
    :float,
    :decimal,
    :date,
    :time,
    :datetime,
    :naive_datetime,
    :map,
    :integer_list,
    :string_list
  ]

  def kinds, do: @kinds

  @doc "The text of a value; `json` is called for the module that makes JSON."
  @spec encode(kind, term, (() -> module)) :: {:ok, binary} | :error
  def encode(:binary, value, _json) when is_binary(value), do: {:ok, value}

  def encode(:integer, value, _json) when is_integer(value), do: {:ok, Integer.to_string(value)}
  def encode(:float, value, _json) when is_float(value), do: {:ok, Float.to_string(value)}

  # Optional, so no call that a compiler would look for.
  def encode(:decimal, %{__struct__: Decimal} = value, _json),
    do: {:ok, apply(Decimal, :to_string, [value])}

  def encode(:date, %Date{} = value, _json), do: {:ok, Date.to_string(value)}
  def encode(:time, %Time{} = value, _json), do: {:ok, Time.to_string(value)}
  def encode(:datetime, %DateTime{} = value, _json), do: {:ok, DateTime.to_string(value)}

  def encode(:naive_datetime, %NaiveDateTime{} = value, _json),
    do: {:ok, NaiveDateTime.to_string(value)}

  def encode(kind, value, json) when kind in [:map, :integer_list, :string_list] do
    if shape?(kind, value), do: to_json(value, json.()), else: :error
  end

  def encode(_kind, _value, _json), do: :error

  @doc "The value of a text, or `:error` where it is no text of this kind."
  @spec decode(kind, binary, (() -> module)) :: {:ok, term} | :error
  def decode(:binary, text, _json), do: {:ok, text}
  def decode(:integer, text, _json), do: whole(Integer.parse(text))

  # Stricter than Float.parse/1: what Float.to_string/1 writes has a point.
  def decode(:float, text, _json) do
    {:ok, String.to_float(text)}
  rescue
    ArgumentError -> :error
  end

  def decode(:decimal, text, _json) do
    if Code.ensure_loaded?(Decimal), do: whole(apply(Decimal, :parse, [text])), else: :error
  end

  def decode(:date, text, _json), do: parsed(Date.from_iso8601(text))
  def decode(:time, text, _json), do: parsed(Time.from_iso8601(text))
  def decode(:naive_datetime, text, _json), do: parsed(NaiveDateTime.from_iso8601(text))

  def decode(:datetime, text, _json) do
    case DateTime.from_iso8601(text) do
      {:ok, value, _offset} -> {:ok, value}
      {:error, _} -> :error
    end
  end

  def decode(kind, text, json) when kind in [:map, :integer_list, :string_list] do
    with {:ok, value} <- from_json(text, json.()) do
      if shape?(kind, value), do: {:ok, value}, else: :error
    end
  end

  defp shape?(:map, value), do: is_map(value)
  defp shape?(:integer_list, value), do: is_list(value) and Enum.all?(value, &integer_or_nil?/1)
  defp shape?(:string_list, value), do: is_list(value) and Enum.all?(value, &string_or_nil?/1)

  # Ecto takes nil for an element of any array.
  defp integer_or_nil?(value), do: is_integer(value) or value == nil
  defp string_or_nil?(value), do: is_binary(value) or value == nil

  # The errors of JSON libraries quote what they were given.
  defp to_json(value, module) do
    {:ok, module |> apply(:encode!, [value]) |> IO.iodata_to_binary()}
  rescue
    _ -> :error
  end

  defp from_json(text, module) do
    {:ok, apply(module, :decode!, [text])}
  rescue
    _ -> :error
  end

  defp whole({value, ""}), do: {:ok, value}
  defp whole(_), do: :error

  defp parsed({:ok, value}), do: {:ok, value}
  defp parsed({:error, _}), do: :error
end
