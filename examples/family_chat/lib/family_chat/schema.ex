defmodule FamilyChat.Schema do
  @moduledoc """
  The tables of the application. Nothing in them is secret but hashes of passwords, of accounts that were made before keys were
  locked: messages are envelopes, and who
  writes to whom and when is what a server has to know.

  Kith brings `message_encryption` and its own tables. Times are milliseconds since 1970.
  """

  alias FamilyChat.{Repo, SQL}

  @doc "The statements, in order. Each may run again."
  def statements(bytes) do
    [
      """
      CREATE TABLE IF NOT EXISTS users (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        display_name TEXT NOT NULL,
        password_hash TEXT NOT NULL,
        admin BIGINT NOT NULL,
        inserted_at BIGINT NOT NULL
      )
      """,
      # A session of the browser. What the cookie has is hashed, so that a copy of the table logs nobody in.
      """
      CREATE TABLE IF NOT EXISTS user_tokens (
        token_hash #{bytes} PRIMARY KEY,
        user_id TEXT NOT NULL,
        inserted_at BIGINT NOT NULL
      )
      """,
      # That somebody has saved a file, and has tried it with its words. The words are nowhere here.
      """
      CREATE TABLE IF NOT EXISTS recovery_kits (
        user_id TEXT PRIMARY KEY,
        since BIGINT NOT NULL,
        saved_at BIGINT NOT NULL,
        tried_at BIGINT
      )
      """,
      "CREATE TABLE IF NOT EXISTS login_failures (name TEXT NOT NULL, at BIGINT NOT NULL)",
      """
      CREATE TABLE IF NOT EXISTS contacts (
        user_id TEXT NOT NULL,
        contact_id TEXT NOT NULL,
        PRIMARY KEY (user_id, contact_id)
      )
      """,
      # pair names the two people of a direct conversation, so that they have one.
      """
      CREATE TABLE IF NOT EXISTS conversations (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        title TEXT,
        pair TEXT UNIQUE,
        timer BIGINT,
        active_at BIGINT NOT NULL
      )
      """,
      """
      CREATE TABLE IF NOT EXISTS members (
        conversation_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        read_at BIGINT NOT NULL,
        PRIMARY KEY (conversation_id, user_id)
      )
      """,
      "CREATE INDEX IF NOT EXISTS members_user ON members (user_id)",
      # That a message exists. What it says is in the envelopes, and then in the archive of each member.
      """
      CREATE TABLE IF NOT EXISTS messages (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL,
        sender_id TEXT NOT NULL,
        sent_at BIGINT NOT NULL,
        timer BIGINT,
        expires_at BIGINT
      )
      """,
      "CREATE INDEX IF NOT EXISTS messages_conversation ON messages (conversation_id, sent_at)",
      "CREATE INDEX IF NOT EXISTS messages_sender ON messages (sender_id, sent_at)",
      # The mailbox: one row for each recipient of a message. Its body goes when it was opened.
      """
      CREATE TABLE IF NOT EXISTS envelopes (
        id TEXT PRIMARY KEY,
        message_id TEXT,
        sender_id TEXT NOT NULL,
        recipient_id TEXT NOT NULL,
        type TEXT NOT NULL,
        body #{bytes} NOT NULL,
        stamp BIGINT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT
      )
      """,
      "CREATE INDEX IF NOT EXISTS envelopes_recipient ON envelopes (recipient_id, state)",
      "CREATE INDEX IF NOT EXISTS envelopes_message ON envelopes (message_id)",
      # Whom a message has not reached yet, and why.
      """
      CREATE TABLE IF NOT EXISTS undelivered (
        message_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        reason TEXT NOT NULL,
        attempts BIGINT NOT NULL,
        PRIMARY KEY (message_id, user_id)
      )
      """,
      """
      CREATE TABLE IF NOT EXISTS notices (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        value TEXT,
        at BIGINT NOT NULL
      )
      """,
      "CREATE INDEX IF NOT EXISTS notices_conversation ON notices (conversation_id, at)"
    ]
  end

  @doc "Makes the tables in the embedded database. With PostgreSQL a migration does it."
  def child_spec(_options),
    do: %{id: __MODULE__, start: {__MODULE__, :start_link, []}, restart: :temporary}

  @doc false
  def start_link do
    if not Repo.postgres?(),
      do: SQL.transaction(fn -> Enum.each(statements("BLOB"), &SQL.run/1) end)

    :ignore
  end
end
