defmodule Kith.Migration.V3 do
  @moduledoc false
  # Times are milliseconds since 1970. What data_key holds is sealed by the vault, under another data key in
  # signal_retired_keys.

  def up(bytes) do
    [
      # When the data key was drawn, if it is not the first one.
      "ALTER TABLE kith.signal_accounts ADD COLUMN key_changed_at BIGINT",
      "ALTER TABLE kith.signal_threads ADD COLUMN key_changed_at BIGINT",
      # The one before, for as long as messages are sealed under it.
      "ALTER TABLE kith.signal_threads ADD COLUMN previous_data_key #{bytes}",
      # The id of the data key of the owner's account under which the content is sealed too: that account is locked.
      "ALTER TABLE kith.signal_archived_messages ADD COLUMN owner_key_id #{bytes}",
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

  def down do
    [
      "DROP TABLE kith.signal_retired_keys",
      "DROP TABLE kith.signal_unlock_tokens",
      "ALTER TABLE kith.signal_accounts DROP COLUMN key_changed_at",
      "ALTER TABLE kith.signal_threads DROP COLUMN key_changed_at",
      "ALTER TABLE kith.signal_threads DROP COLUMN previous_data_key",
      "ALTER TABLE kith.signal_archived_messages DROP COLUMN owner_key_id"
    ]
  end
end
