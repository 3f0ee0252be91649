defmodule Kith.Migration.V3 do
  @moduledoc false
  # Times are milliseconds since 1970. private_key_encrypted is a key wrapped by the vault.

  def up(bytes) do
    [
      # Public keys of clients. permissions is a line each.
      """
      CREATE TABLE kith.signed_keys (
        key_id TEXT NOT NULL PRIMARY KEY,
        owner TEXT NOT NULL,
        public_key #{bytes} NOT NULL,
        permissions TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        expires_at BIGINT,
        revoked_at BIGINT,
        replaced_by TEXT,
        window_started_at BIGINT NOT NULL,
        window_count BIGINT NOT NULL
      )
      """,
      "CREATE INDEX signed_keys_owner ON kith.signed_keys (owner, created_at)",
      # What the next key of an owner has to be registered with: one at a time.
      """
      CREATE TABLE kith.signed_challenges (
        owner TEXT NOT NULL PRIMARY KEY,
        challenge #{bytes} NOT NULL,
        expires_at BIGINT NOT NULL
      )
      """,
      # Messages that were accepted, for as long as they would be accepted again.
      """
      CREATE TABLE kith.signed_nonces (
        key_id TEXT NOT NULL,
        nonce #{bytes} NOT NULL,
        expires_at BIGINT NOT NULL,
        PRIMARY KEY (key_id, nonce)
      )
      """,
      "CREATE INDEX signed_nonces_expiry ON kith.signed_nonces (expires_at)",
      # Keys of the service itself. purpose is 'signing' or 'agreement'; endorsement is a signature of the key before.
      """
      CREATE TABLE kith.signed_service_keys (
        key_id TEXT NOT NULL PRIMARY KEY,
        purpose TEXT NOT NULL,
        public_key #{bytes} NOT NULL,
        private_key_encrypted #{bytes} NOT NULL,
        created_at BIGINT NOT NULL,
        retired_at BIGINT,
        endorsed_by TEXT,
        endorsement #{bytes}
      )
      """,
      """
      CREATE UNIQUE INDEX signed_service_keys_current
        ON kith.signed_service_keys (purpose) WHERE retired_at IS NULL
      """
    ]
  end

  def down do
    for table <- ~w(signed_service_keys signed_nonces signed_challenges signed_keys),
        do: "DROP TABLE kith.#{table}"
  end
end
