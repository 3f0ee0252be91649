defmodule Kith.Migration.V3 do
  @moduledoc false
  # Times are milliseconds since 1970. What data_key holds is sealed by the vault, under another data key in
  # signal_retired_keys; private_key_encrypted of a key of the service is wrapped by the vault.

  # What stands in data_key for everybody to read, as columns: the key's own id, which is the key service's where one has a part
  # in it, the key as that service keeps it, and which key-encryption key wraps it, in which version. NULL in rows from before.
  # Nothing is decided by them.
  @wrapped [key_id: "TEXT", wrapped_dek: nil, kek_id: "TEXT", kek_version: "BIGINT"]
  @wrapped_in ~w(signal_accounts signal_threads)

  def up(bytes), do: accounts(bytes) ++ signed(bytes) ++ escrow(bytes) ++ wrapped(bytes)

  defp wrapped(bytes) do
    for table <- @wrapped_in,
        {column, type} <- @wrapped,
        do: "ALTER TABLE kith.#{table} ADD COLUMN #{column} #{type || bytes}"
  end

  # Locked accounts and the rotation of keys.
  defp accounts(bytes) do
    [
      # When the data key was drawn, if it is not the first one.
      "ALTER TABLE kith.signal_accounts ADD COLUMN key_changed_at BIGINT",
      "ALTER TABLE kith.signal_threads ADD COLUMN key_changed_at BIGINT",
      # The one before, for as long as messages are sealed under it.
      "ALTER TABLE kith.signal_threads ADD COLUMN previous_data_key #{bytes}",
      # The id of the data key of the owner's account under which the content is sealed too: that account is locked.
      "ALTER TABLE kith.signal_archived_messages ADD COLUMN owner_key_id #{bytes}",
      # All of a thread, in the order in which they are sealed anew.
      "DROP INDEX kith.signal_archived_messages_thread",
      """
      CREATE INDEX signal_archived_messages_thread
        ON kith.signal_archived_messages (thread_id, user_id, device_id, position, message_id)
      """,
      # Data keys an account had before: notes to oneself lie with the application, and are sealed under them.
      """
      CREATE TABLE kith.signal_retired_keys (
        user_id TEXT NOT NULL,
        key_id #{bytes} NOT NULL,
        data_key #{bytes} NOT NULL,
        PRIMARY KEY (user_id, key_id)
      )
      """,
      # Which tokens still unlock.
      """
      CREATE TABLE kith.signal_unlock_tokens (
        user_id TEXT NOT NULL,
        token_id #{bytes} NOT NULL,
        expires_at BIGINT NOT NULL,
        PRIMARY KEY (user_id, token_id)
      )
      """,
      "CREATE INDEX signal_unlock_tokens_expiry ON kith.signal_unlock_tokens (expires_at)"
    ]
  end

  # Signed messages of services.
  defp signed(bytes) do
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

  # A recovery key under a service key, with the consent it is bound to. The row stays when the consent is withdrawn, and the
  # key goes.
  defp escrow(bytes) do
    [
      """
      CREATE TABLE kith.signal_escrows (
        escrow_id TEXT NOT NULL PRIMARY KEY,
        user_id TEXT NOT NULL,
        service_key TEXT NOT NULL,
        wrapped #{bytes},
        consented_by TEXT NOT NULL,
        consent_text TEXT NOT NULL,
        consented_at BIGINT NOT NULL,
        withdrawn_by TEXT,
        withdrawn_at BIGINT
      )
      """,
      "CREATE INDEX signal_escrows_user ON kith.signal_escrows (user_id, consented_at)",
      # Who has unwrapped a key, or tried to. Rows are added and never changed.
      """
      CREATE TABLE kith.signal_escrow_unwraps (
        unwrap_id TEXT NOT NULL PRIMARY KEY,
        escrow_id TEXT,
        user_id TEXT NOT NULL,
        unwrapped_by TEXT NOT NULL,
        purpose TEXT NOT NULL,
        unwrapped_at BIGINT NOT NULL,
        result TEXT NOT NULL
      )
      """,
      "CREATE INDEX signal_escrow_unwraps_user ON kith.signal_escrow_unwraps (user_id, unwrapped_at)"
    ]
  end

  def down do
    [
      "DROP TABLE kith.signal_retired_keys",
      "DROP TABLE kith.signal_unlock_tokens",
      "ALTER TABLE kith.signal_accounts DROP COLUMN key_changed_at",
      "ALTER TABLE kith.signal_threads DROP COLUMN key_changed_at",
      "ALTER TABLE kith.signal_threads DROP COLUMN previous_data_key",
      "ALTER TABLE kith.signal_archived_messages DROP COLUMN owner_key_id",
      "DROP INDEX kith.signal_archived_messages_thread",
      "CREATE INDEX signal_archived_messages_thread ON kith.signal_archived_messages (thread_id)",
      "DROP TABLE kith.signed_service_keys",
      "DROP TABLE kith.signed_nonces",
      "DROP TABLE kith.signed_challenges",
      "DROP TABLE kith.signed_keys",
      "DROP TABLE kith.signal_escrows",
      "DROP TABLE kith.signal_escrow_unwraps"
    ] ++
      for table <- @wrapped_in,
          {column, _} <- @wrapped,
          do: "ALTER TABLE kith.#{table} DROP COLUMN #{column}"
  end
end
