defmodule Kith.Crash.Wire do
  @moduledoc false
  # Reads of a Signal message what has to be unique: its ratchet key and its counter. Written anew from the
  # specification, so that a fault of the engine's own parser cannot hide one of the engine.

  import Bitwise

  @doc "`{ratchet_key, counter}` of an envelope's message, `nil` for a sealed note."
  @spec position(Kith.Envelope.t()) :: nil | {binary, non_neg_integer}
  def position(%{type: :self}), do: nil
  def position(%{type: :message, body: body}), do: of_message(body)

  # Version byte and protobuf, no MAC. The message is field 4.
  def position(%{type: :prekey, body: <<_version, fields::binary>>}),
    do: fields |> fields() |> Map.fetch!(4) |> of_message()

  # Version byte, protobuf, 8 bytes of MAC.
  defp of_message(<<_version, rest::binary>>) do
    %{1 => <<5, _::binary-32>> = ratchet_key, 2 => counter} =
      rest |> binary_part(0, byte_size(rest) - 8) |> fields()

    {ratchet_key, counter}
  end

  defp fields(bytes, found \\ %{})
  defp fields("", found), do: found

  defp fields(bytes, found) do
    {tag, rest} = varint(bytes)

    {value, rest} =
      case tag &&& 7 do
        0 ->
          varint(rest)

        2 ->
          {size, rest} = varint(rest)
          {binary_part(rest, 0, size), Kith.Case.from(rest, size)}
      end

    fields(rest, Map.put(found, tag >>> 3, value))
  end

  defp varint(<<0::1, low::7, rest::binary>>), do: {low, rest}

  defp varint(<<1::1, low::7, rest::binary>>) do
    {high, rest} = varint(rest)
    {high <<< 7 ||| low, rest}
  end
end
