defmodule FamilyChat.Mailbox do
  @moduledoc """
  Envelopes on their way: in a table until their recipient has opened them, and over PubSub to those who are here.

  Neither the table nor PubSub sees what a message says. `message_encryption`, the table of metadata that Kith brings, gets a
  row for each envelope.
  """

  alias FamilyChat.SQL
  alias Kith.Envelope

  @pubsub FamilyChat.PubSub

  @doc "Hears what arrives for a user."
  def subscribe(user_id), do: Phoenix.PubSub.subscribe(@pubsub, topic(user_id))

  @doc "Tells the pages that a user has open. Never anything readable."
  def broadcast(user_id, message),
    do: Phoenix.PubSub.broadcast(@pubsub, topic(user_id), message)

  @doc "Tells those of them that are not this process."
  def broadcast_to_others(user_id, message),
    do: Phoenix.PubSub.broadcast_from(@pubsub, self(), topic(user_id), message)

  defp topic(user_id), do: "user:" <> user_id

  @doc """
  Puts an envelope into the mailbox, in the transaction that made it. A report belongs to no message.

  Deliver it after the commit, and not before: an envelope of a transaction that is rolled back is encrypted under a key that is
  used again.
  """
  def put(%Envelope{from: {from, _}, to: {to, _}} = envelope, message_id) do
    id = SQL.new_id()

    SQL.run(
      """
      INSERT INTO envelopes (id, message_id, sender_id, recipient_id, type, body, stamp, state, reason)
      VALUES ($1, $2, $3, $4, $5, $6, $7, 'waiting', NULL)
      """,
      [
        id,
        message_id,
        from,
        to,
        to_string(envelope.type),
        SQL.bytes(envelope.body),
        envelope.timestamp || 0
      ]
    )

    metadata = Envelope.metadata(envelope)

    SQL.run(
      """
      INSERT INTO message_encryption
        (message_id, encrypted, protocol, version, session_id, sender_device_id, metadata)
      VALUES ($1, $2, $3, $4, $5, $6, $7)
      """,
      [
        id,
        metadata.encrypted,
        metadata.protocol,
        metadata.version,
        metadata.session_id,
        metadata.sender_device_id,
        Jason.encode!(metadata.metadata)
      ]
    )

    {to, id}
  end

  @doc "Tells recipients of what was put into their mailboxes."
  def deliver(put), do: Enum.each(put, fn {to, id} -> broadcast(to, {:envelope, id}) end)

  @doc "The ids of what waits for a user, the oldest first."
  def waiting(user_id) do
    sql = """
    SELECT id FROM envelopes WHERE recipient_id = $1 AND state = 'waiting' ORDER BY stamp, id
    """

    for [id] <- SQL.rows(sql, [user_id]), do: id
  end

  @doc "What could not be opened because the sender's identity is new."
  def held(user_id, sender_id) do
    sql = """
    SELECT id FROM envelopes
    WHERE recipient_id = $1 AND sender_id = $2 AND state = 'failed' AND reason = 'untrusted_identity'
    ORDER BY stamp, id
    """

    for [id] <- SQL.rows(sql, [user_id, sender_id]), do: id
  end

  @doc "An envelope in the mailbox of a user, with the message it belongs to."
  def fetch(user_id, id) do
    sql = """
    SELECT e.id, e.message_id, e.sender_id, e.type, e.body, e.stamp, e.state, m.conversation_id, m.timer
    FROM envelopes e LEFT JOIN messages m ON m.id = e.message_id
    WHERE e.recipient_id = $1 AND e.id = $2
    """

    case SQL.rows(sql, [user_id, id]) do
      [[id, message_id, sender_id, type, body, stamp, state, conversation_id, timer]] ->
        %{
          id: id,
          message_id: message_id,
          sender_id: sender_id,
          recipient_id: user_id,
          type: type,
          body: body,
          stamp: stamp,
          state: state,
          conversation_id: conversation_id,
          timer: timer
        }

      [] ->
        nil
    end
  end

  @doc "The envelope of a row; `:error` for a row that was damaged so that it is none any more."
  def envelope(row) do
    type = Enum.find([:message, :prekey, :self, :report], &(to_string(&1) == row.type))
    stamp = if row.stamp > 0, do: row.stamp
    {:ok, Envelope.new(row.sender_id, row.recipient_id, type, row.body, stamp)}
  rescue
    ArgumentError -> :error
  end

  @doc "Takes an envelope out of the mailbox."
  def delete(id), do: delete_where("id = $1", [id])

  @doc "All envelopes of a message."
  def delete_all(message_id), do: delete_where("message_id = $1", [message_id])

  defp delete_where(condition, params) do
    SQL.run(
      "DELETE FROM message_encryption WHERE message_id IN (SELECT id FROM envelopes WHERE #{condition})",
      params
    )

    SQL.run("DELETE FROM envelopes WHERE #{condition}", params)
  end

  @doc "An envelope was opened: others of the same message for this user are done with, too."
  def opened(row) do
    others = "message_id = $1 AND recipient_id = $2 AND id <> $3"
    delete_where(others, [row.message_id, row.recipient_id, row.id])

    SQL.run(
      "UPDATE envelopes SET state = 'opened', reason = NULL, body = $2 WHERE id = $1",
      [row.id, SQL.bytes("")]
    )
  end

  @doc "It was not. True for the first who says so: of two pages of a user one asks for it again."
  def failed(row, reason) do
    SQL.run(
      "UPDATE envelopes SET state = 'failed', reason = $2 WHERE id = $1 AND state = 'waiting'",
      [row.id, to_string(reason)]
    ) == 1
  end

  @doc "What of a conversation a user could not open, as placeholders."
  def unopened(user_id, conversation_id) do
    sql = """
    SELECT m.id, m.sender_id, m.sent_at, e.reason FROM envelopes e JOIN messages m ON m.id = e.message_id
    WHERE e.recipient_id = $1 AND m.conversation_id = $2 AND e.state = 'failed'
    """

    rows =
      for [id, sender_id, sent_at, reason] <- SQL.rows(sql, [user_id, conversation_id]),
          do: %{id: id, sender_id: sender_id, sent_at: sent_at, reason: reason}

    # Sent again, and again not opened.
    Enum.uniq_by(rows, & &1.id)
  end

  @doc "How each message of a sender stands: `{served, opened}` counts of its recipients."
  def progress([]), do: %{}

  def progress(message_ids) do
    places = SQL.places(message_ids)

    # Somebody may be in both: what did not open is sent again.
    sql = """
    SELECT message_id, COUNT(DISTINCT member), COUNT(DISTINCT opened) FROM (
      SELECT message_id, recipient_id AS member, CASE WHEN state = 'opened' THEN recipient_id END AS opened
      FROM envelopes WHERE message_id IN (#{places})
      UNION ALL
      SELECT message_id, user_id, NULL FROM undelivered WHERE message_id IN (#{places})
    ) AS recipients GROUP BY message_id
    """

    for [id, served, opened] <- SQL.rows(sql, message_ids), into: %{}, do: {id, {served, opened}}
  end

  @doc "What is known of the encryption of a message, for its sender: a line for each recipient."
  def encryption(message_id) do
    sql = """
    SELECT e.recipient_id, e.state, k.protocol, k.version, k.session_id, k.metadata
    FROM envelopes e JOIN message_encryption k ON k.message_id = e.id
    WHERE e.message_id = $1 ORDER BY e.recipient_id
    """

    for [recipient_id, state, protocol, version, session_id, metadata] <-
          SQL.rows(sql, [message_id]) do
      %{
        recipient_id: recipient_id,
        state: state,
        protocol: protocol,
        version: version,
        session_id: session_id,
        size: Jason.decode!(metadata)["size"]
      }
    end
  end
end
