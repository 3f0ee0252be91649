defmodule Kith.Error do
  @moduledoc """
  The one error of Kith: returned in `{:error, error}`, raised by the functions that end in `!`.

  `:reason` is public, and `:position` where a function of `Kith.Backup.RecoveryKey` says which word or share it is about.
  `Exception.message/1` says what happened and what to do next.

  | reason | what happened | what to do |
  | --- | --- | --- |
  | `:session_not_found` | no session with this peer opens or can carry a message | `Kith.recover/4`: it asks them to send again, in a new session |
  | `:duplicate` | the message was opened before, or the record was imported before; a signed message was accepted, or a key registered, before | ignore it; `Kith.recover/4` knows when not to |
  | `:tampered` | a MAC, a padding or a signature is wrong, a backup or an export was changed or cut, or one side went back to an older state | do not show it; log a security event; `Kith.recover/4` |
  | `:out_of_sync` | the message is more than 25,000 ahead, or says so: anyone can forge one | drop it; `Kith.recover/4` |
  | `:key_not_found` | a key that is needed is gone or was never here, or a client's key is revoked or has expired | put the retired key back into `:keys` (of a `Kith.Vault`, the retired cipher into `:ciphers`), or use the place that holds the private keys |
  | `:untrusted_identity` | the identity key is not the remembered one | compare safety numbers, then `Kith.trust/4` |
  | `:unknown_prekey` | the message was made from a prekey that is not held | `Kith.recover/4`: the peer starts anew from a fresh bundle |
  | `:malformed` | the bytes are no message, envelope, bundle, key, key pair, record, export, backup, password hash or field, or a field no value of its type | drop them |
  | `:unsupported_version` | the version is unknown, refused by `:minimum_version`, or lower than the peer was seen with; or the peer has no Kyber prekey | have the older side upgraded |
  | `:too_large` | a plaintext, a payload, a group, a bundle or a password is over its limit | send less at once |
  | `:locked` | the account is locked | unlock it |
  | `:corrupted_state` | a sealed row or an encrypted field does not open: damaged, copied, restored, or under another key of the same name | write again: a session that does not open is replaced; `Kith.recover/4` after a failed decrypt. Of a field, look at the keys first: nothing is lost yet |
  | `:stale` | others kept changing the same session or account; or a signed message or a challenge is too old, or from the future | call again; have it signed anew |
  | `:not_registered` | the user has no keys here | `Kith.register/3` or `Kith.publish_bundle/3` |
  | `:storage` | the database failed | look at the database; nothing was changed, unless it was lost while committing |
  | `:busy` | more passwords are to be hashed than `Kith.Password` works on, or a key has signed too many messages | answer "try again in a moment"; count it as no failed attempt |
  | `:wrong_password` | the password, or the token in its place, is not the one the account is locked with | ask again; it costs as much as the right one |
  | `:wrong_secret` | the passphrase, the words or the shares are not those a backup was made with, or belong to nothing | ask for them again |
  | `:too_few` | fewer shares than their threshold | ask others for theirs |
  | `:no_consent` | nobody has consented to this key being unwrapped, or the consent was withdrawn | ask the user |
  | `:already_registered` | a user who is to be restored has keys here | `replace: true`, if those are to be lost |
  | `:unavailable` | the key service does not answer, and the data key this needs is not open; or it is not open within a transaction of the application, in which nobody waits for a service | bring the key service back; call again; nothing was changed |
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
    :wrong_password,
    :wrong_secret,
    :too_few,
    :no_consent,
    :already_registered,
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
          | :wrong_password
          | :wrong_secret
          | :too_few
          | :no_consent
          | :already_registered
          | :unavailable
          | :panic

  @typedoc "`:detail` is for people who read logs: never match on it."
  @type t :: %__MODULE__{
          reason: reason,
          detail: nil | String.t(),
          position: nil | pos_integer
        }

  defexception [:reason, :detail, :position]

  @doc "All reasons, in the order of the table above."
  @spec reasons() :: [reason]
  def reasons, do: @reasons

  @doc false
  def new(reason, detail \\ nil, position \\ nil) when reason in @reasons,
    do: %__MODULE__{reason: reason, detail: detail, position: position}

  @impl true
  def exception(reason) when is_atom(reason), do: new(reason)
  def exception(fields), do: new(Keyword.fetch!(fields, :reason), fields[:detail])

  @doc false
  # A result of the native library, its reason as an error. What a key service has to do first is Kith.Instance's.
  def from_native({:error, reason}) when reason in [:cold, :unmade], do: {:error, reason}
  def from_native({:error, reason}) when is_atom(reason), do: {:error, new(reason)}
  def from_native(result), do: result

  @impl true
  def message(%__MODULE__{reason: reason, detail: nil}), do: describe(reason)
  def message(%__MODULE__{reason: reason, detail: detail}), do: describe(reason) <> ": " <> detail

  defp describe(:session_not_found),
    do:
      "no session with this peer opens or can carry a message; Kith.recover/4 asks them to send it again in a new one"

  defp describe(:duplicate),
    do: "this was opened, accepted, registered or imported before; ignore it"

  defp describe(:tampered),
    do:
      "the message or the keys were changed on the way, or one side went back to an older state; do not show it, log a security event, and let Kith.recover/4 ask for it again"

  defp describe(:out_of_sync),
    do:
      "the message says it is too far ahead of the session; drop it, and let Kith.recover/4 ask for it again"

  defp describe(:key_not_found),
    do:
      "a key this needs is not here; put the retired key back into the configuration, or call where the private keys are"

  defp describe(:untrusted_identity),
    do:
      "the identity key of the peer is not the one remembered; compare safety numbers, then trust the new one"

  defp describe(:unknown_prekey),
    do:
      "the message was made from a prekey that is not held; Kith.recover/4 asks the peer to send it again from a fresh bundle"

  defp describe(:malformed),
    do:
      "these bytes are not what they should be, such as a message, an envelope, a bundle, a key or a field; drop them"

  defp describe(:unsupported_version),
    do: "this version of the protocol is unknown or refused; have the older side upgraded"

  defp describe(:too_large),
    do: "this is over the limit of what one call takes; send less at once"

  defp describe(:locked), do: "the account is locked; unlock it first"

  defp describe(:corrupted_state),
    do:
      "what is sealed does not open: it was damaged, copied, restored or sealed under another key; of a session, the next message starts a new one, and Kith.recover/4 puts a damaged one away; of a field, compare its key first"

  defp describe(:stale),
    do:
      "others kept changing the same session, or what was signed is too old or from the future; call again, or have it signed anew"

  defp describe(:not_registered),
    do: "the user has no keys here; register them or publish their bundle first"

  defp describe(:storage), do: "the database failed and nothing was changed; look at the database"

  defp describe(:busy),
    do: "more passwords wait to be hashed than there is room for; try again in a moment"

  defp describe(:wrong_password),
    do: "the password is not the one the account is locked with; ask for it again"

  defp describe(:wrong_secret),
    do: "the passphrase, the words or the shares are not those that were used; ask for them again"

  defp describe(:too_few), do: "there are fewer shares than are needed; ask others for theirs"

  defp describe(:no_consent),
    do: "nobody has consented to this, or the consent was withdrawn; ask the user"

  defp describe(:already_registered),
    do: "the user has keys here, which a restore would replace; say so if it shall"

  defp describe(:unavailable),
    do:
      "a key service has to open or make a key first, and does not, or was not asked within a transaction of the application; look at the service, then call again"

  defp describe(:panic),
    do:
      "the engine failed on this call and nothing was changed; report a bug with the type and sizes of the message"
end
