defmodule Kith.Signed.Message do
  @moduledoc """
  A signed message that was verified.

    * `:payload` - the bytes that were signed. `inspect/1` does not show them.
    * `:key_id`, `:owner`, `:permissions`, `:public_key` - of the key that signed, as they were registered.
    * `:audience`, `:timestamp` (milliseconds since 1970), `:nonce` (16 bytes) - as they were signed.
    * `:reply_to` - in a response, the nonce of its request; `nil` in a request.
  """

  @derive {Inspect, except: [:payload]}
  @enforce_keys [:payload, :key_id, :owner, :permissions, :public_key]
  defstruct [
    :payload,
    :key_id,
    :owner,
    :permissions,
    :public_key,
    :audience,
    :timestamp,
    :nonce,
    :reply_to
  ]

  @type t :: %__MODULE__{
          payload: binary,
          key_id: String.t(),
          owner: String.t(),
          permissions: [String.t()],
          public_key: <<_::256>>,
          audience: String.t(),
          timestamp: non_neg_integer,
          nonce: <<_::128>>,
          reply_to: nil | <<_::128>>
        }
end
