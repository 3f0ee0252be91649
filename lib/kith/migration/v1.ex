defmodule Kith.Migration.V1 do
  @moduledoc false
  # Times are milliseconds since 1970. What ends in _encrypted, and every data_key, state, identity, braid and
  # entry, is sealed by the vault.

  def up(bytes) do
    [
      """
      CREATE TABLE kith.signal_accounts (
        user_id TEXT NOT NULL PRIMARY KEY,
        data_key #{bytes} NOT NULL,
        created_at BIGINT NOT NULL
      )
      """,
      """
      CREATE TABLE kith.signal_identity_keys (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        registration_id BIGINT NOT NULL,
        public_key #{bytes} NOT NULL,
        private_key_encrypted #{bytes},
        next_prekey_id BIGINT NOT NULL,
        next_kyber_prekey_id BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        PRIMARY KEY (user_id, device_id)
      )
      """,
      """
      CREATE TABLE kith.signal_prekeys (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        kind TEXT NOT NULL,
        prekey_id BIGINT NOT NULL,
        public_key #{bytes} NOT NULL,
        signature #{bytes},
        private_key_encrypted #{bytes},
        claimed_at BIGINT,
        used_at BIGINT,
        created_at BIGINT NOT NULL,
        PRIMARY KEY (user_id, device_id, kind, prekey_id)
      )
      """,
      # The next key to hand out is found without walking over those that were.
      """
      CREATE INDEX signal_prekeys_stock ON kith.signal_prekeys (user_id, device_id, kind, prekey_id)
        WHERE claimed_at IS NULL AND used_at IS NULL
      """,
      """
      CREATE TABLE kith.signal_sessions (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        peer_id TEXT NOT NULL,
        peer_device_id BIGINT NOT NULL,
        generation BIGINT NOT NULL,
        state #{bytes},
        identity #{bytes},
        created_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        PRIMARY KEY (user_id, device_id, peer_id, peer_device_id)
      )
      """,
      "CREATE INDEX signal_sessions_peer ON kith.signal_sessions (peer_id, peer_device_id)",
      # The part of a session of version 4 that most messages leave as it is.
      """
      CREATE TABLE kith.signal_braids (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        peer_id TEXT NOT NULL,
        peer_device_id BIGINT NOT NULL,
        session_id #{bytes} NOT NULL,
        revision BIGINT NOT NULL,
        braid #{bytes} NOT NULL,
        PRIMARY KEY (user_id, device_id, peer_id, peer_device_id)
      )
      """,
      """
      CREATE TABLE kith.signal_archived_sessions (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        peer_id TEXT NOT NULL,
        peer_device_id BIGINT NOT NULL,
        session_id #{bytes} NOT NULL,
        position BIGINT NOT NULL,
        state #{bytes} NOT NULL,
        PRIMARY KEY (user_id, device_id, peer_id, peer_device_id, session_id)
      )
      """,
      # A message names the place of its keys, and not the session, which is therefore last in the key.
      """
      CREATE TABLE kith.signal_session_entries (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        peer_id TEXT NOT NULL,
        peer_device_id BIGINT NOT NULL,
        session_id #{bytes} NOT NULL,
        entry_group #{bytes} NOT NULL,
        number BIGINT NOT NULL,
        entry #{bytes} NOT NULL,
        PRIMARY KEY (user_id, device_id, peer_id, peer_device_id, entry_group, number, session_id)
      )
      """,
      """
      CREATE TABLE kith.signal_base_keys (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        base_key #{bytes} NOT NULL,
        signed_prekey_id BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        PRIMARY KEY (user_id, device_id, base_key)
      )
      """,
      # The application's own: it writes a row per message from Kith.Envelope.metadata/2.
      """
      CREATE TABLE IF NOT EXISTS kith.message_encryption (
        message_id TEXT NOT NULL PRIMARY KEY,
        encrypted BOOLEAN NOT NULL,
        protocol TEXT NOT NULL DEFAULT 'signal',
        version BIGINT NOT NULL,
        session_id TEXT,
        sender_device_id BIGINT NOT NULL,
        metadata TEXT NOT NULL DEFAULT '{}'
      )
      """,
      "CREATE INDEX IF NOT EXISTS message_encryption_session_id ON kith.message_encryption (session_id)",
      "CREATE INDEX IF NOT EXISTS message_encryption_protocol ON kith.message_encryption (protocol)"
    ]
  end

  # message_encryption is the application's.
  def down do
    for table <-
          ~w(signal_accounts signal_identity_keys signal_prekeys signal_sessions signal_braids
                    signal_archived_sessions signal_session_entries signal_base_keys),
        do: "DROP TABLE kith.#{table}"
  end
end
