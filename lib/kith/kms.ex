defmodule Kith.KMS do
  @moduledoc """
  What a key service is: a program that has a key-encryption key, gives it to nobody, and uses it for others.

  An instance of Kith uses one when it is named in `:keys`:

      keys: [current: {"kms-2026", {:kms, url: "unix:///run/kms.sock"}}]

  The native library speaks to it, because keys are never Elixir terms in the application. So a key service is a program of its
  own, also one that is written in Elixir: a module with this behaviour, served by `Kith.KMS.Server`. `Kith.KMS.Reference` is one,
  for development and tests; `mix kith.kms` runs it.

  ## The wire

  HTTP/1.1 with JSON. Bytes are base64 of the standard alphabet with padding; a nonce stands before its ciphertext.

  | callback | request | answer |
  | --- | --- | --- |
  | `c:create_dek_for_thread/2` | `POST /create_dek_for_thread {"thread_id"}` | `{"key_id", "wrapped"}` |
  | `c:encrypt_with_dek/4` | `POST /encrypt {"key_id", "plaintext"}` | `{"ciphertext"}` |
  | `c:decrypt_with_dek/5` | `POST /decrypt {"key_id", "ciphertext"}` | `{"plaintext"}` |
  | `c:wrapped_dek/2` | `GET /get_wrapped?key_id=` | `{"wrapped"}` |

  They are `CreateDEKForThread`, `EncryptWithDEK` and `DecryptWithDEK` of other designs, in Elixir's way of writing. With the option
  `aad: true` a request to encrypt or decrypt also has `"aad"`, 32 bytes in base64, and one to decrypt `"key_version"`. An answer
  to encrypt may have `"key_version"`, a number; without it the version is 1.

  | status | meaning | becomes |
  | --- | --- | --- |
  | 200 | done | |
  | 404 | there is no such key | `:key_not_found` |
  | 400, 422 | these bytes do not decrypt | `:corrupted_state` |
  | 401, 403 | this client may not | `:unavailable` |
  | any other | the service does not work | `:unavailable` |

  `thread_id` is 64 hexadecimal digits, a hash of what the key is for: an account or a thread. The service learns no names.

  ## What it is asked for

  Three calls for each new account and thread: a key, something encrypted, and that it comes back. Three as well for each data key
  that is wrapped anew, by a rotation or a lock, for each token, and for each key of `Kith.Signed`. One for each data key that is not
  open, see `:key_cache` in `Kith.Options`. None for a message whose data keys are open. The service sees neither data keys nor
  messages. What it encrypts is a key drawn for one data key, and that one seals the data key to its account or thread, so a wrapped
  key that is moved to another one does not open, whatever the service checks. `docs/decisions/0013-kms.md` says why.
  """

  @typedoc "Whatever the module needs, as it was given to `Kith.KMS.Server`."
  @type state :: term

  @typedoc "The service's name of a key: 1 to 255 visible ASCII characters without `\"` and `\\\\`."
  @type key_id :: String.t()

  @typedoc "No such key; bytes that do not decrypt; or the service cannot work now."
  @type reason :: :not_found | :refused | :unavailable

  @doc """
  Makes a key, keeps it durably, and returns its name and the key as it is kept, at most 4,096 bytes.

  It may be called twice for one thread, and makes two keys then. `kek_id` and `kek_version` say which key of the service wraps it: for the
  service's own log. The wire has no field for them, and Kith's columns of these names have its own id and the version of `c:encrypt_with_dek/4`.
  """
  @callback create_dek_for_thread(state, thread_id :: String.t()) ::
              {:ok,
               %{
                 key_id: key_id,
                 wrapped_dek: binary,
                 kek_id: String.t(),
                 kek_version: pos_integer
               }}
              | {:error, reason}

  @doc "Encrypts under a key. `aad` is empty where the client sends none."
  @callback encrypt_with_dek(state, key_id, plaintext :: binary, aad :: binary) ::
              {:ok, ciphertext :: binary, key_version :: pos_integer} | {:error, reason}

  @doc "Decrypts under a key. `key_version` is `nil` where the client sends none."
  @callback decrypt_with_dek(
              state,
              key_id,
              ciphertext :: binary,
              aad :: binary,
              key_version :: nil | pos_integer
            ) :: {:ok, plaintext :: binary} | {:error, reason}

  @doc "The key as it is kept."
  @callback wrapped_dek(state, key_id) :: {:ok, binary} | {:error, reason}
end
