defmodule Kith.Message do
  @moduledoc """
  One message of the archive, as `Kith.history/4` returns it.

  | field | |
  | --- | --- |
  | `id` | of this copy, as a UUID in text. No two devices have one in common |
  | `thread` | the thread it is in, as it was asked for |
  | `from` | `{user, device}` who sent it |
  | `direction` | `:sent` by the user whose history it is, from this or another device, or `:received` |
  | `plaintext` | what was encrypted |
  | `at` | when it was encrypted or opened here, in milliseconds since 1970. Messages are in this order |
  | `sent_at` | when it was sent, as the sender says: the timestamp of the envelope, or `nil` |
  | `expires_at` | when it disappears, in milliseconds since 1970, or `nil` |
  | `error` | `nil`, or `:corrupted_state` for a row that does not open: damaged, or moved from another place |

  Of a row that does not open only `id`, `thread`, `at` and `error` are set, and the first and the last but one are what
  the row says.

  `inspect/2` does not print the plaintext.
  """

  alias Kith.Address

  @enforce_keys [:id, :thread, :at]
  defstruct [
    :id,
    :thread,
    :from,
    :direction,
    :plaintext,
    :at,
    :sent_at,
    :expires_at,
    :error
  ]

  @type t :: %__MODULE__{
          id: String.t(),
          thread: Kith.thread(),
          from: nil | Address.t(),
          direction: nil | :sent | :received,
          plaintext: nil | binary,
          at: non_neg_integer,
          sent_at: nil | non_neg_integer,
          expires_at: nil | non_neg_integer,
          error: nil | :corrupted_state
        }

  defimpl Inspect do
    def inspect(%{error: error} = message, _opts) when error != nil,
      do: "#Kith.Message<#{message.id}, #{error}>"

    def inspect(message, _opts) do
      {user, device} = message.from

      "#Kith.Message<#{message.id} #{message.direction} from #{Kernel.inspect(user)}/#{device}, " <>
        "#{Kith.Envelope.size(message.plaintext)}>"
    end
  end
end
