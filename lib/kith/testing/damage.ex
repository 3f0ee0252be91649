defmodule Kith.Testing.Damage do
  @moduledoc false
  # Changes one thing in the bytes of a message: docs/protocol.md has the fields.

  @mac_size 8

  # Further than any session goes on.
  @far_ahead 50_000_000

  @doc "The body of a message of a type, changed at a place, or :error where it has no such place."
  @spec body(atom, binary, Kith.Testing.place()) :: {:ok, binary} | :error
  def body(_type, body, at) when is_integer(at) do
    position = if at < 0, do: byte_size(body) + at, else: at
    if position in 0..(byte_size(body) - 1)//1, do: {:ok, flip(body, position)}, else: :error
  end

  # No version has this number.
  def body(type, <<_::4, low::4, rest::binary>>, :version) when type in [:message, :prekey],
    do: {:ok, <<15::4, low::4, rest::binary>>}

  # A field of a kind that Protobuf does not have.
  def body(type, <<version, _tag, rest::binary>>, :frame) when type in [:message, :prekey],
    do: {:ok, <<version, 0x0F, rest::binary>>}

  def body(:message, body, place), do: message(body, place)

  # The message inside is what a session authenticates, and nothing else in a repeated first message.
  def body(:prekey, <<version, fields::binary>>, place) do
    with {:ok, fields} <- parse(fields),
         {4, inner} when is_binary(inner) <- List.keyfind(fields, 4, 0),
         {:ok, inner} <- message(inner, place) do
      {:ok, <<version, encode(List.keyreplace(fields, 4, 0, {4, inner}))::binary>>}
    else
      _ -> :error
    end
  end

  # Notes and reports have no MAC of their own: the last byte is the one that says most.
  def body(_type, body, :mac), do: body(:any, body, -1)
  def body(_type, _body, _place), do: :error

  defp message(body, :mac), do: body(:any, body, -1)

  defp message(body, place) when byte_size(body) > @mac_size + 1 do
    <<version, _::binary>> = body
    size = byte_size(body) - @mac_size

    with {:ok, fields} <- parse(binary_part(body, 1, size - 1)),
         {:ok, fields} <- change(fields, place) do
      {:ok, <<version, encode(fields)::binary, binary_part(body, size, @mac_size)::binary>>}
    end
  end

  defp message(_body, _place), do: :error

  defp change(fields, :text) do
    case List.keyfind(fields, 4, 0) do
      {4, <<_, _::binary>> = text} -> {:ok, List.keyreplace(fields, 4, 0, {4, flip(text, 0)})}
      _ -> :error
    end
  end

  defp change(fields, :counter),
    do: {:ok, List.keystore(fields, 2, 0, {2, @far_ahead})}

  defp change(_fields, _place), do: :error

  defp flip(bytes, position) do
    {before, rest} = split(bytes, position)
    <<byte, rest::binary>> = rest
    <<before::binary, Bitwise.bxor(byte, 1), rest::binary>>
  end

  # The newest Elixir wants a pin inside size(), which older ones do not know.
  defp split(bytes, size),
    do: {binary_part(bytes, 0, size), binary_part(bytes, size, byte_size(bytes) - size)}

  # The fields of a Protobuf message of numbers and bytes, in their order.
  defp parse(bytes, fields \\ [])
  defp parse("", fields), do: {:ok, Enum.reverse(fields)}

  defp parse(bytes, fields) do
    with {tag, rest} <- number(bytes), {:ok, value, rest} <- value(Bitwise.band(tag, 7), rest) do
      parse(rest, [{Bitwise.bsr(tag, 3), value} | fields])
    end
  end

  defp value(0, bytes), do: with({number, rest} <- number(bytes), do: {:ok, number, rest})

  defp value(2, bytes) do
    with {size, rest} when size <= byte_size(rest) <- number(bytes) do
      {value, rest} = split(rest, size)
      {:ok, value, rest}
    else
      _ -> :error
    end
  end

  defp value(_kind, _bytes), do: :error

  defp number(bytes, shift \\ 0)

  defp number(<<1::1, low::7, rest::binary>>, shift) do
    with {high, rest} <- number(rest, shift + 7), do: {Bitwise.bsl(low, shift) + high, rest}
  end

  defp number(<<0::1, low::7, rest::binary>>, shift), do: {Bitwise.bsl(low, shift), rest}
  defp number("", _shift), do: :error

  defp encode(fields) do
    for {field, value} <- fields, into: "" do
      if is_integer(value),
        do: varint(field * 8) <> varint(value),
        else: varint(field * 8 + 2) <> varint(byte_size(value)) <> value
    end
  end

  defp varint(number) when number < 0x80, do: <<number>>
  defp varint(number), do: <<1::1, number::7, varint(Bitwise.bsr(number, 7))::binary>>
end
