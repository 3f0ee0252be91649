defmodule Kith.Migration.V2 do
  @moduledoc false
  # Times are milliseconds since 1970 unless a name says otherwise. data_key and content are sealed by the vault.

  def up(bytes) do
    [
      # Since when the next message to the peer has to start a new session.
      "ALTER TABLE kith.signal_sessions ADD COLUMN renew_since BIGINT",
      # Of an archived session: since when it must not send, should a message of the peer bring it back.
      "ALTER TABLE kith.signal_archived_sessions ADD COLUMN renew_since BIGINT",
      # Of the current session: when it was made here, and when a message of it was last opened.
      "ALTER TABLE kith.signal_sessions ADD COLUMN established_at BIGINT",
      "ALTER TABLE kith.signal_sessions ADD COLUMN received_at BIGINT",
      # Since when the key of a skipped message is kept. NULL for chunks, whose session needs them.
      "ALTER TABLE kith.signal_session_entries ADD COLUMN created_at BIGINT",
      # Of keys from before nobody knows better than when their session last moved. Chunks are 141 bytes long.
      """
      UPDATE kith.signal_session_entries SET created_at = (
        SELECT s.updated_at FROM kith.signal_sessions s
        WHERE s.user_id = signal_session_entries.user_id
          AND s.device_id = signal_session_entries.device_id
          AND s.peer_id = signal_session_entries.peer_id
          AND s.peer_device_id = signal_session_entries.peer_device_id
      )
      WHERE length(entry) < 141
      """,
      """
      CREATE INDEX signal_session_entries_age ON kith.signal_session_entries (created_at)
        WHERE created_at IS NOT NULL
      """,
      # Since when a signed prekey or a Kyber prekey of last resort is not handed out any more.
      "ALTER TABLE kith.signal_prekeys ADD COLUMN superseded_at BIGINT",
      """
      CREATE INDEX signal_prekeys_superseded ON kith.signal_prekeys (superseded_at)
        WHERE superseded_at IS NOT NULL
      """,
      "CREATE INDEX signal_prekeys_used ON kith.signal_prekeys (used_at) WHERE used_at IS NOT NULL",
      # The signed prekeys that are to be replaced next.
      """
      CREATE INDEX signal_prekeys_age ON kith.signal_prekeys (created_at, user_id, device_id)
        WHERE kind = 'signed' AND superseded_at IS NULL AND private_key_encrypted IS NOT NULL
      """,
      # What goes with a signed prekey.
      """
      CREATE INDEX signal_base_keys_signed_prekey
        ON kith.signal_base_keys (user_id, device_id, signed_prekey_id)
      """,
      # How often one device had to heal what another sent, in a window of time.
      """
      CREATE TABLE kith.signal_recoveries (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        peer_id TEXT NOT NULL,
        peer_device_id BIGINT NOT NULL,
        kind TEXT NOT NULL,
        window_started_at BIGINT NOT NULL,
        count BIGINT NOT NULL,
        PRIMARY KEY (user_id, device_id, peer_id, peer_device_id, kind)
      )
      """,
      """
      CREATE TABLE kith.signal_threads (
        thread_id TEXT NOT NULL PRIMARY KEY,
        data_key #{bytes} NOT NULL,
        created_at BIGINT NOT NULL
      )
      """,
      # position is in microseconds, sent_at the timestamp of the envelope. The peer is who sent it; nobody for what the
      # device itself has sent.
      """
      CREATE TABLE kith.signal_archived_messages (
        user_id TEXT NOT NULL,
        device_id BIGINT NOT NULL,
        thread_id TEXT NOT NULL,
        position BIGINT NOT NULL,
        message_id #{bytes} NOT NULL,
        peer_id TEXT,
        peer_device_id BIGINT,
        sent_at BIGINT,
        expires_at BIGINT,
        content #{bytes} NOT NULL,
        PRIMARY KEY (user_id, device_id, thread_id, position, message_id)
      )
      """,
      # A second delivery is found by its bytes.
      """
      CREATE UNIQUE INDEX signal_archived_messages_id
        ON kith.signal_archived_messages (user_id, device_id, message_id)
      """,
      # What a peer could not open is found by its timestamp.
      """
      CREATE INDEX signal_archived_messages_sent
        ON kith.signal_archived_messages (user_id, device_id, sent_at) WHERE peer_id IS NULL
      """,
      "CREATE INDEX signal_archived_messages_thread ON kith.signal_archived_messages (thread_id)",
      """
      CREATE INDEX signal_archived_messages_expiry
        ON kith.signal_archived_messages (expires_at) WHERE expires_at IS NOT NULL
      """,
      # One node at a time does the work of maintenance.
      """
      CREATE TABLE kith.signal_maintenance (
        task TEXT NOT NULL PRIMARY KEY,
        claimed_by TEXT,
        claimed_until BIGINT,
        finished_at BIGINT
      )
      """,
      # What the database said of itself when it was last seen: another answer is that of a restored one.
      """
      CREATE TABLE kith.signal_installation (
        id BIGINT NOT NULL PRIMARY KEY,
        mark TEXT NOT NULL,
        seen_at BIGINT NOT NULL
      )
      """
    ]
  end

  def down do
    tables =
      for table <- ~w(signal_recoveries signal_threads signal_archived_messages signal_maintenance
                      signal_installation),
          do: "DROP TABLE kith.#{table}"

    columns =
      for {table, column} <- [
            signal_sessions: "renew_since",
            signal_archived_sessions: "renew_since",
            signal_sessions: "established_at",
            signal_sessions: "received_at",
            signal_session_entries: "created_at",
            signal_prekeys: "superseded_at"
          ],
          do: "ALTER TABLE kith.#{table} DROP COLUMN #{column}"

    # PostgreSQL drops them with their columns, SQLite does not drop the columns before.
    indexes =
      for index <- ~w(signal_session_entries_age signal_prekeys_superseded signal_prekeys_used
                      signal_prekeys_age signal_base_keys_signed_prekey),
          do: "DROP INDEX kith.#{index}"

    tables ++ indexes ++ columns
  end
end
