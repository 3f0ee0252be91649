defmodule FamilyTranscript.JSON do
  @moduledoc false
  # As much of JSON as the live peer speaks; Elixir 1.14 and OTP 25 have none.

  def encode(map) when is_map(map),
    do:
      "{" <>
        Enum.map_join(map, ",", fn {key, value} -> "#{encode("#{key}")}:#{encode(value)}" end) <>
        "}"

  def encode(integer) when is_integer(integer), do: Integer.to_string(integer)

  def encode(atom) when atom in [nil, true, false],
    do: if(atom == nil, do: "null", else: "#{atom}")

  def encode(text) when is_binary(text),
    do: "\"" <> for(<<c::utf8 <- text>>, into: "", do: escape(c)) <> "\""

  defp escape(c) when c in [?", ?\\], do: <<?\\, c>>
  defp escape(c) when c < 0x20, do: "\\u" <> String.pad_leading(Integer.to_string(c, 16), 4, "0")
  defp escape(c), do: <<c::utf8>>

  def decode(text) do
    {value, ""} = value(skip(text))
    value
  end

  defp value("{" <> rest), do: rest |> skip() |> object(%{})
  defp value("[" <> rest), do: rest |> skip() |> array([])
  defp value("\"" <> rest), do: string(rest, [])
  defp value("true" <> rest), do: {true, skip(rest)}
  defp value("false" <> rest), do: {false, skip(rest)}
  defp value("null" <> rest), do: {nil, skip(rest)}

  defp value(number) do
    case Integer.parse(number) do
      {_, <<c, _::binary>>} when c in ~c".eE" -> float(number)
      {integer, rest} -> {integer, skip(rest)}
    end
  end

  defp float(number) do
    {float, rest} = Float.parse(number)
    {float, skip(rest)}
  end

  defp object("}" <> rest, map), do: {map, skip(rest)}
  defp object("," <> rest, map), do: rest |> skip() |> object(map)

  defp object("\"" <> rest, map) do
    {key, ":" <> rest} = string(rest, [])
    {value, rest} = rest |> skip() |> value()
    object(rest, Map.put(map, key, value))
  end

  defp array("]" <> rest, list), do: {Enum.reverse(list), skip(rest)}
  defp array("," <> rest, list), do: rest |> skip() |> array(list)

  defp array(rest, list) do
    {value, rest} = value(rest)
    array(rest, [value | list])
  end

  defp string("\"" <> rest, done),
    do: {done |> Enum.reverse() |> IO.iodata_to_binary(), skip(rest)}

  defp string(<<"\\u", hex::binary-4, "\\u", low::binary-4, rest::binary>>, done)
       when hex >= "d800" and hex < "dc00" do
    point = 0x10000 + rem(hex(hex), 0x400) * 0x400 + rem(hex(low), 0x400)
    string(rest, [<<point::utf8>> | done])
  end

  defp string(<<"\\u", hex::binary-4, rest::binary>>, done),
    do: string(rest, [<<hex(hex)::utf8>> | done])

  defp string(<<"\\", c, rest::binary>>, done), do: string(rest, [unescape(c) | done])
  defp string(<<c::utf8, rest::binary>>, done), do: string(rest, [<<c::utf8>> | done])

  defp unescape(?n), do: "\n"
  defp unescape(?r), do: "\r"
  defp unescape(?t), do: "\t"
  defp unescape(?b), do: "\b"
  defp unescape(?f), do: "\f"
  defp unescape(c), do: <<c>>

  defp hex(digits), do: String.to_integer(digits, 16)

  defp skip(<<c, rest::binary>>) when c in ~c" \t\r\n", do: skip(rest)
  defp skip(rest), do: rest
end
