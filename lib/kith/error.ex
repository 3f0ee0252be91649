defmodule Kith.Error do
  @moduledoc """
  The one error of Kith: returned in `{:error, error}`, raised by the functions that end in `!`.

  Only `:reason` is public. `Exception.message/1` says what happened and what to do next.

  | reason | what happened | what to do |
  | --- | --- | --- |
  | `:session_not_found` | no session with this peer opens or can carry a message | `Kith.recover/4`: it asks them to send again, in a new session |
  | `:duplicate` | the message was opened before, or the record was imported before | ignore it; `Kith.recover/4` knows when not to |
  | `:tampered` | a MAC, a padding or a signature is wrong, or one side went back to an older state | do not show it; log a security event; `Kith.recover/4` |
  | `:out_of_sync` | the message is more than 25,000 ahead, or says so: anyone can forge one | drop it; `Kith.recover/4` |
  | `:key_not_found` | a key that is needed is gone or was never here | put the retired key back into `:keys`, or use the place that holds the private keys |
  | `:untrusted_identity` | the identity key is not the remembered one | compare safety numbers, then `Kith.trust/4` |
  | `:unknown_prekey` | the message was made from a prekey that is not held | `Kith.recover/4`: the peer starts anew from a fresh bundle |
  | `:malformed` | the bytes are no message, envelope, bundle, key pair, record or password hash | drop them |
  | `:unsupported_version` | the version is unknown, refused by `:minimum_version`, or lower than the peer was seen with; or the peer has no Kyber prekey | have the older side upgraded |
  | `:too_large` | a plaintext, a group, a bundle or a password is over its limit | send less at once |
  | `:locked` | the account is locked | unlock it |
  | `:corrupted_state` | a sealed row does not open: damaged, copied or restored | write again: a session that does not open is replaced; `Kith.recover/4` after a failed decrypt |
  | `:stale` | others kept changing the same session | call again |
  | `:not_registered` | the user has no keys here | `Kith.register/3` or `Kith.publish_bundle/3` |
  | `:storage` | the database failed | look at the database; nothing was changed, unless it was lost while committing |
  | `:busy` | more passwords are to be hashed than `Kith.Password` works on | answer "try again in a moment"; count it as no failed attempt |
  | `:unavailable` | the key service does not answer, and the data key this needs is not open | bring the key service back; call again; nothing was changed |
  | `:panic` | the engine failed on this call; nothing was changed | report a bug with the message's type and sizes |
  """

  @reasons [
    :session_not_found,
    :duplicate,
    :tampered,
    :out_of_sync,
    :key_not_found,
    :untrusted_identity,
    :unknown_prekey,
    :malformed,
    :unsupported_version,
    :too_large,
    :locked,
    :corrupted_state,
    :stale,
    :not_registered,
    :storage,
    :busy,
    :unavailable,
    :panic
  ]

  @typedoc "Why a call failed. The set is closed."
  @type reason ::
          :session_not_found
          | :duplicate
          | :tampered
          | :out_of_sync
          | :key_not_found
          | :untrusted_identity
          | :unknown_prekey
          | :malformed
          | :unsupported_version
          | :too_large
          | :locked
          | :corrupted_state
          | :stale
          | :not_registered
          | :storage
          | :busy
          | :unavailable
          | :panic

  @typedoc "`:detail` is for people who read logs: never match on it."
  @type t :: %__MODULE__{reason: reason, detail: nil | String.t()}

  defexception [:reason, :detail]

  @doc "All reasons, in the order of the table above."
  @spec reasons() :: [reason]
  def reasons, do: @reasons

  @doc false
  def new(reason, detail \\ nil) when reason in @reasons,
    do: %__MODULE__{reason: reason, detail: detail}

  @impl true
  def exception(reason) when is_atom(reason), do: new(reason)
  def exception(fields), do: new(Keyword.fetch!(fields, :reason), fields[:detail])

  @doc false
  # A result of the native library, its reason as an error.
  def from_native({:error, reason}) when is_atom(reason), do: {:error, new(reason)}
  def from_native(result), do: result

  @impl true
  def message(%__MODULE__{reason: reason, detail: nil}), do: describe(reason)
  def message(%__MODULE__{reason: reason, detail: detail}), do: describe(reason) <> ": " <> detail

  defp describe(:session_not_found),
    do:
      "no session with this peer opens or can carry a message; Kith.recover/4 asks them to send it again in a new one"

  defp describe(:duplicate),
    do: "this was opened or imported before; ignore it"

  defp describe(:tampered),
    do:
      "the message or the keys were changed on the way, or one side went back to an older state; do not show it, log a security event, and let Kith.recover/4 ask for it again"

  defp describe(:out_of_sync),
    do:
      "the message says it is too far ahead of the session; drop it, and let Kith.recover/4 ask for it again"

  defp describe(:key_not_found),
    do:
      "a key this needs is not here; put the retired key back into :keys, or call where the private keys are"

  defp describe(:untrusted_identity),
    do:
      "the identity key of the peer is not the one remembered; compare safety numbers, then trust the new one"

  defp describe(:unknown_prekey),
    do:
      "the message was made from a prekey that is not held; Kith.recover/4 asks the peer to send it again from a fresh bundle"

  defp describe(:malformed),
    do: "these bytes are not what they should be: a message, an envelope or a bundle; drop them"

  defp describe(:unsupported_version),
    do: "this version of the protocol is unknown or refused; have the older side upgraded"

  defp describe(:too_large),
    do: "this is over the limit of what one call takes; send less at once"

  defp describe(:locked), do: "the account is locked; unlock it first"

  defp describe(:corrupted_state),
    do:
      "a sealed row does not open: it was damaged, copied or restored; the next message to the peer starts a new session, and Kith.recover/4 puts a damaged one away"

  defp describe(:stale), do: "others kept changing the same session; call again"

  defp describe(:not_registered),
    do: "the user has no keys here; register them or publish their bundle first"

  defp describe(:storage), do: "the database failed and nothing was changed; look at the database"

  defp describe(:busy),
    do: "more passwords wait to be hashed than there is room for; try again in a moment"

  defp describe(:unavailable),
    do:
      "the key service does not answer and nothing was changed; look at the service, then call again"

  defp describe(:panic),
    do:
      "the engine failed on this call and nothing was changed; report a bug with the type and sizes of the message"
end
