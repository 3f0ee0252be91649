defmodule Kith.Signed.Key do
  @moduledoc """
  A registered public key of a client.

    * `:id` - 32 characters: the first half of the SHA-256 of the public key, in lower case hexadecimal. Whoever has the public
      key computes it; nobody chooses it.
    * `:owner` - whose it is, by the application's own id.
    * `:public_key` - 32 bytes of Ed25519.
    * `:permissions` - strings of the application, sorted. Kith keeps them and does not know what they mean.
    * `:created_at`, `:expires_at`, `:revoked_at` - milliseconds since 1970; the last two are `nil` where they do not apply.
    * `:replaced_by` - the id of the key that replaced it, or `nil`.
  """

  @enforce_keys [:id, :owner, :public_key]
  defstruct [
    :id,
    :owner,
    :public_key,
    :created_at,
    :expires_at,
    :revoked_at,
    :replaced_by,
    permissions: []
  ]

  @type t :: %__MODULE__{
          id: String.t(),
          owner: String.t(),
          public_key: <<_::256>>,
          permissions: [String.t()],
          created_at: integer,
          expires_at: nil | integer,
          revoked_at: nil | integer,
          replaced_by: nil | String.t()
        }

  @doc false
  # Why it does not verify at a time, or nil.
  def refusal(%__MODULE__{revoked_at: at}, _now) when at != nil, do: :revoked
  def refusal(%__MODULE__{expires_at: at}, now) when at != nil and at <= now, do: :expired
  def refusal(_key, _now), do: nil
end
