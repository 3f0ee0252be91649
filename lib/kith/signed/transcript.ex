defmodule Kith.Signed.Transcript do
  @moduledoc """
  The bytes that are signed, of each kind of statement.

  They are the same in every language:

      label ‖ 00 ‖ field ‖ field ‖ …

  where the label is ASCII, and a field is its length as 4 bytes, big-endian, and its bytes. A number is a field of 8 bytes, big-endian.
  Text is UTF-8. A field that is absent has the length 0.

  | statement | label | fields |
  | --- | --- | --- |
  | message | `kith-signed-message-v1` | `public_key_id` (32 characters), `audience`, `timestamp` (number), `nonce` (16 bytes), `reply_to` (16 bytes, or absent in a request), `payload` |
  | registration | `kith-signed-registration-v1` | owner, challenge (32 bytes), public key (32 bytes) |
  | rotation | `kith-signed-rotation-v1` | owner, challenge (32 bytes), id of the old key (32 characters), new public key (32 bytes) |
  | endorsement | `kith-signed-endorsement-v1` | id of the old key (32 characters), new public key (32 bytes) |

  No two statements have the same bytes, as labels differ and contain no zero byte, and fields carry their lengths. A signature of one kind
  is none of another.

  Clients that are written in Elixir may use these functions; `docs/guides/signed-messages.md` has them in Python and JavaScript.
  """

  @doc "The bytes of a message. `reply_to` is the nonce of the request, `\"\"` in a request."
  @spec message(String.t(), String.t(), non_neg_integer, <<_::128>>, binary, binary) :: binary
  def message(key_id, audience, timestamp, nonce, reply_to, payload),
    do: bytes("message", [key_id, audience, <<timestamp::64>>, nonce, reply_to, payload])

  @doc "The bytes that prove possession of a key that is registered."
  @spec registration(String.t(), <<_::256>>, <<_::256>>) :: binary
  def registration(owner, challenge, public_key),
    do: bytes("registration", [owner, challenge, public_key])

  @doc "The bytes that both keys sign when one replaces another."
  @spec rotation(String.t(), <<_::256>>, String.t(), <<_::256>>) :: binary
  def rotation(owner, challenge, old_key_id, public_key),
    do: bytes("rotation", [owner, challenge, old_key_id, public_key])

  @doc "The bytes with which a key of the service vouches for the one after it."
  @spec endorsement(String.t(), <<_::256>>) :: binary
  def endorsement(old_key_id, public_key), do: bytes("endorsement", [old_key_id, public_key])

  defp bytes(kind, fields) do
    IO.iodata_to_binary([
      "kith-signed-#{kind}-v1",
      0 | for(field <- fields, do: [<<byte_size(field)::32>>, field])
    ])
  end
end
