defmodule FamilyChat.Chat do
  @moduledoc """
  Messages: sent, opened, shown again, and healed.

  These functions run in the process of the page of the user they are for. What they return is the only place besides
  the archive where a text is readable on this server.

  What the errors of Kith mean here:

  | reason | what is done |
  | --- | --- |
  | `:tampered` | a line in the log for whoever watches over the server, and as below |
  | `:session_not_found`, `:unknown_prekey`, `:out_of_sync`, `:corrupted_state` | a placeholder; `Kith.recover/4` asks the sender, whose page sends it again |
  | `:malformed`, `:unsupported_version`, `:key_not_found` | a placeholder; the sender's page encrypts it anew |
  | `:untrusted_identity` | held back until the user has accepted the new identity |
  | `:duplicate` | another page of the user was faster |
  | `:locked` | the keys of the user are locked: it stays in the mailbox, and is opened when they are unlocked |
  | `:storage`, `:stale`, `:panic`, and `:unavailable` with a key service | nothing was changed: it stays in the mailbox and is tried again |
  """

  require Logger

  alias FamilyChat.{Conversations, Mailbox, Payload, SQL}

  defmodule Item do
    @moduledoc "A line of the timeline. `kind` is `:message`, `:unopened` or `:notice`."
    defstruct [
      :id,
      :kind,
      :sender_id,
      :text,
      :at,
      :expires_at,
      :reason,
      :value,
      served: 0,
      opened: 0
    ]
  end

  @page 50

  # How often a message is encrypted anew for somebody who cannot open it.
  @max_attempts 3

  # Where a page looks for a message of its own that is to be sent again.
  @search_pages 20

  ## Sending

  @doc """
  Sends a message to a conversation. An id that is known is a message that was sent before: nothing is sent again. The item
  has a `reason` when somebody could not be served yet.

  The message, the state of each session and the mailboxes are one transaction.
  """
  def send(user, conversation_id, id, text) do
    with {:ok, id} <- Payload.id(id),
         {:ok, text} <- Payload.text(text),
         {:ok, conversation} <- Conversations.fetch(user, conversation_id),
         {:ok, {put, item}} <- SQL.transaction(fn -> write(user, conversation, id, text) end) do
      Mailbox.deliver(put)
      Mailbox.broadcast_to_others(user.id, {:changed, conversation_id})
      {:ok, item}
    end
  end

  defp write(user, conversation, id, text) do
    timer = conversation.timer

    inserted =
      SQL.run(
        """
        INSERT INTO messages (id, conversation_id, sender_id, sent_at, timer, expires_at)
        VALUES ($1, $2, $3, $4, $5, NULL) ON CONFLICT (id) DO NOTHING
        """,
        [id, conversation.id, user.id, SQL.now(), timer]
      )

    if inserted == 0, do: SQL.rollback(known(user, conversation, id))

    {put, sent_at} = encrypt(user, conversation, id, Payload.encode(id, text, timer))
    expires_at = timer && sent_at + timer * 1_000
    others = length(conversation.members) - 1

    SQL.run("UPDATE messages SET sent_at = $2, expires_at = $3 WHERE id = $1", [
      id,
      sent_at,
      expires_at
    ])

    SQL.run("UPDATE conversations SET active_at = $2 WHERE id = $1", [conversation.id, sent_at])
    Conversations.mark_read(user, conversation.id)

    {:ok,
     {put,
      %Item{
        id: id,
        kind: :message,
        sender_id: user.id,
        text: text,
        at: sent_at,
        expires_at: expires_at,
        reason: if(length(put) < others, do: "put_off"),
        served: others
      }}}
  end

  defp known(user, conversation, id) do
    sql = "SELECT 1 FROM messages WHERE id = $1 AND sender_id = $2 AND conversation_id = $3"
    if SQL.rows(sql, [id, user.id, conversation.id]) == [], do: :id, else: :sent_before
  end

  # Conversations of a kind that does not require encryption are none of this application's: all of them do.
  defp encrypt(user, conversation, id, payload) do
    true = FamilyChat.Kith.requires_encryption?(String.to_existing_atom(conversation.kind))
    members = for member <- conversation.members, member.id != user.id, do: member.id
    options = [thread: conversation.id, expires_in: conversation.timer]

    case FamilyChat.Kith.encrypt_group(user.id, members, payload, options) do
      {:ok, results} ->
        keep(user, results, payload, options)

        put =
          for {{member, _device}, result} <- results,
              {:ok, envelope} <- [served(user, member, id, payload, result)],
              do: {Mailbox.put(envelope, id), envelope.timestamp}

        sent_at = with [{_, timestamp} | _] <- put, do: timestamp, else: (_ -> SQL.now())
        {Enum.map(put, &elem(&1, 0)), sent_at}

      {:error, error} ->
        SQL.rollback(error)
    end
  end

  # Kith keeps no copy of what it could encrypt for nobody. Here it is sent later, and until then it stands in the history.
  defp keep(user, results, payload, options) do
    if results != [] and Enum.all?(results, &match?({_device, {:error, _}}, &1)),
      do: {:ok, []} = FamilyChat.Kith.encrypt_group(user.id, [], payload, options)
  end

  defp served(_user, _member, _id, _payload, {:ok, envelope}), do: {:ok, envelope}

  # The state of this session was damaged: the next message starts a new one. That is this message.
  defp served(user, member, id, payload, {:error, %{reason: :corrupted_state}}) do
    case encrypt_again(user, member, payload) do
      {:ok, [envelope]} -> {:ok, envelope}
      {:error, error} -> put_off(id, member, error.reason)
    end
  end

  defp served(_user, member, id, _payload, {:error, error}),
    do: put_off(id, member, error.reason)

  # The sender's archive has it already.
  defp encrypt_again(user, member, payload) do
    user.id
    |> FamilyChat.Kith.encrypt({member, 1}, payload, archive: false)
    |> SQL.settled!()
  end

  # It is sent when what stands in its way is gone: see flush/1. The attempts of before count.
  defp put_off(id, member, reason) do
    SQL.run(
      """
      INSERT INTO undelivered (message_id, user_id, reason, attempts) VALUES ($1, $2, $3, 0)
      ON CONFLICT (message_id, user_id) DO UPDATE SET reason = excluded.reason
      """,
      [id, member, to_string(reason)]
    )

    :put_off
  end

  @doc """
  Sends what did not reach somebody: whose identity has been accepted meanwhile, or who could not open it.

  The texts come from the user's own archive. Returns how many envelopes went out.
  """
  def flush(user) do
    sql = """
    SELECT u.message_id, u.user_id, u.attempts, m.conversation_id, m.timer
    FROM undelivered u JOIN messages m ON m.id = u.message_id
    WHERE m.sender_id = $1 AND u.attempts < $2 AND u.reason <> 'sent' ORDER BY m.sent_at
    """

    SQL.rows(sql, [user.id, @max_attempts])
    |> Enum.reject(fn [_, member | _] -> changed?(user, member) end)
    |> Enum.map(fn [id, member, attempts, conversation_id, timer] ->
      with {:ok, text} <- find_sent(user, conversation_id, id),
           payload = Payload.encode(id, text, timer),
           {:ok, put} <-
             SQL.transaction(fn -> send_again(user, member, id, attempts, payload) end) do
        Mailbox.deliver([put])
        1
      else
        _ -> 0
      end
    end)
    |> Enum.sum()
  end

  defp send_again(user, member, id, attempts, payload) do
    # Of several pages of the user one does it.
    claimed =
      SQL.run(
        """
        UPDATE undelivered SET attempts = attempts + 1, reason = 'sent'
        WHERE message_id = $1 AND user_id = $2 AND attempts = $3 AND reason <> 'sent'
        """,
        [id, member, attempts]
      )

    if claimed == 0, do: SQL.rollback(:taken)

    case encrypt_again(user, member, payload) do
      {:ok, [envelope]} ->
        {:ok, Mailbox.put(envelope, id)}

      {:error, error} ->
        put_off(id, member, error.reason)
        {:error, error}
    end
  end

  # A message of this user as their archive has it.
  defp find_sent(user, conversation_id, id, before \\ nil, pages \\ @search_pages)
  defp find_sent(_user, _conversation_id, _id, _before, 0), do: :error

  defp find_sent(user, conversation_id, id, before, pages) do
    case FamilyChat.Kith.history(user.id, conversation_id, limit: 200, before: before) do
      {:ok, page} ->
        found =
          Enum.find_value(page.messages, fn message ->
            with :sent <- message.direction,
                 {:ok, %{id: ^id, text: text}} <- Payload.decode(message.plaintext),
                 do: {:ok, text},
                 else: (_ -> nil)
          end)

        cond do
          found -> found
          page.before == nil -> :error
          true -> find_sent(user, conversation_id, id, page.before, pages - 1)
        end

      {:error, _} ->
        :error
    end
  end

  ## Opening

  @doc "Opens all that waits for a user. `:later` when some of it waits on, as the machinery failed or the keys are locked, else `:ok`."
  def open_waiting(user), do: open_all(user, Mailbox.waiting(user.id))

  # Nobody has told the other pages of the user.
  defp open_all(user, envelope_ids) do
    opened = Enum.map(envelope_ids, &open(user, &1))
    conversations = for {_what, conversation_id, _item} <- opened, uniq: true, do: conversation_id
    Enum.each(conversations, &Mailbox.broadcast_to_others(user.id, {:changed, &1}))
    if Enum.any?(opened, &match?({:later, _, _}, &1)), do: :later, else: :ok
  end

  @doc """
  Opens one envelope of the mailbox.

  `{:message, conversation_id, item}`, `{:unopened, conversation_id, item}` with a placeholder, `{:again, conversation_id, nil}` when another
  page of the same user has opened it, `{:later, conversation_id, nil}` when the machinery failed, or the keys were locked, and it waits on, or `:nothing`:
  it was a report.
  """
  def open(user, envelope_id) do
    case Mailbox.fetch(user.id, envelope_id) do
      nil -> :nothing
      %{type: "report"} = row -> answer(user, row)
      # Another page opened it, and the archive has it: see timeline/3.
      %{state: "opened", conversation_id: id} -> {:again, id, nil}
      # The message is gone, and with it whatever it said.
      %{conversation_id: nil} = row -> drop(row)
      row -> open_message(user, row)
    end
  end

  defp drop(row) do
    Mailbox.delete(row.id)
    :nothing
  end

  defp open_message(user, row) do
    with {:ok, envelope} <- Mailbox.envelope(row) do
      SQL.transaction(fn -> decrypt(user, row, envelope) end)
      |> case do
        {:ok, payload, expires_at} -> opened(user, row, payload, expires_at)
        {:error, %Kith.Error{} = error} -> unopened(user, row, envelope, error)
      end
    else
      :error -> unopened(user, row, nil, Kith.Error.exception(:malformed))
    end
  end

  # The text in the archive of this user, the state of the session and the mailbox: all of it, or nothing.
  defp decrypt(user, row, envelope) do
    options = [thread: row.conversation_id, expires_in: row.timer]

    with {:ok, plaintext} <- SQL.settled!(FamilyChat.Kith.decrypt(user.id, envelope, options)) do
      expires_at = row.timer && SQL.now() + row.timer * 1_000
      Mailbox.opened(row)

      if expires_at,
        do:
          SQL.run("UPDATE messages SET expires_at = $2 WHERE id = $1", [
            row.message_id,
            expires_at
          ])

      {:ok, Payload.decode(plaintext), expires_at}
    end
  end

  defp opened(_user, row, payload, expires_at) do
    Mailbox.broadcast(row.sender_id, {:opened, row.conversation_id, row.message_id})
    sent_at = sent_at(row)

    case payload do
      {:ok, %{id: id, text: text}} ->
        {:message, row.conversation_id,
         %Item{
           id: id,
           kind: :message,
           sender_id: row.sender_id,
           text: text,
           at: sent_at,
           expires_at: expires_at
         }}

      # It opened, and says nothing that this application knows.
      :error ->
        {:unopened, row.conversation_id, placeholder(row, sent_at, "unknown")}
    end
  end

  defp sent_at(row) do
    case SQL.rows("SELECT sent_at FROM messages WHERE id = $1", [row.message_id]) do
      [[sent_at]] -> sent_at
      [] -> row.stamp
    end
  end

  defp placeholder(row, sent_at, reason) do
    %Item{
      id: row.message_id,
      kind: :unopened,
      sender_id: row.sender_id,
      at: sent_at,
      reason: reason
    }
  end

  # Nobody is there to open it: see FamilyChat.Locks.
  defp unopened(_user, row, _envelope, %{reason: :locked}),
    do: {:later, row.conversation_id, nil}

  # The machinery failed, and the envelope is where it was.
  defp unopened(_user, row, _envelope, %{reason: reason} = error)
       when reason in [:storage, :stale, :panic, :unavailable] do
    Logger.error("a message was not opened: #{Exception.message(error)}")
    {:later, row.conversation_id, nil}
  end

  defp unopened(user, row, envelope, error) do
    if error.reason == :tampered, do: log_security_event(:message_tampered, row)

    cond do
      opened_meanwhile?(user, row) ->
        {:again, row.conversation_id, nil}

      Mailbox.failed(row, error.reason) ->
        ask_again(user, row, envelope, error)
        {:unopened, row.conversation_id, placeholder(row, sent_at(row), to_string(error.reason))}

      true ->
        {:unopened, row.conversation_id, placeholder(row, sent_at(row), to_string(error.reason))}
    end
  end

  defp opened_meanwhile?(user, row) do
    case Mailbox.fetch(user.id, row.id) do
      nil -> true
      %{state: state} -> state == "opened"
    end
  end

  # Only people can say whether a new identity is right.
  defp ask_again(_user, _row, _envelope, %{reason: :untrusted_identity}), do: :ok

  defp ask_again(user, row, envelope, error) do
    with %Kith.Envelope{} <- envelope,
         {:ok, [_ | _] = put} <-
           SQL.transaction(fn ->
             with {:ok, reports} <-
                    SQL.settled!(FamilyChat.Kith.recover(user.id, envelope, error)),
                  do: {:ok, Enum.map(reports, &Mailbox.put(&1, nil))}
           end) do
      Mailbox.deliver(put)
    else
      # It is damaged beyond what a report can name, or reported too often: the sender's page knows it by its id.
      _ ->
        SQL.transaction(fn -> put_off(row.message_id, user.id, error.reason) end)
        Mailbox.broadcast(row.sender_id, :flush)
    end
  end

  # Somebody could not open what this user has sent.
  defp answer(user, row) do
    with {:ok, envelope} <- Mailbox.envelope(row),
         {:ok, put} <- SQL.transaction(fn -> resend(user, row, envelope) end) do
      Mailbox.deliver(put)
      flush(user)
    else
      # The machinery failed, or the keys are locked: the report stays, and is answered when the user comes again.
      {:error, %{reason: reason}}
      when reason in [:stale, :storage, :panic, :locked, :unavailable] ->
        :ok

      _ ->
        Mailbox.delete(row.id)
    end

    :nothing
  end

  defp resend(user, row, envelope) do
    result = SQL.settled!(FamilyChat.Kith.resend(user.id, envelope))
    Mailbox.delete(row.id)

    case result do
      # Kith knows a message by the time of the envelope everyone got. One that was encrypted for this person alone has another.
      {:ok, %{envelopes: []}} ->
        for id <- unopened_by(user, row.sender_id), do: put_off(id, row.sender_id, :out_of_sync)
        {:ok, []}

      {:ok, %{timestamp: timestamp, envelopes: envelopes}} ->
        {:ok, Enum.map(envelopes, &Mailbox.put(&1, message_of(user, timestamp)))}

      # What they could not open is sent when that is over.
      {:error, %{reason: reason}} when reason in [:untrusted_identity, :not_registered] ->
        for id <- unopened_by(user, row.sender_id), do: put_off(id, row.sender_id, reason)
        {:ok, []}

      {:error, error} ->
        {:error, error}
    end
  end

  defp message_of(user, timestamp) do
    sql = "SELECT id FROM messages WHERE sender_id = $1 AND sent_at = $2"
    with [[id] | _] <- SQL.rows(sql, [user.id, timestamp]), do: id, else: (_ -> nil)
  end

  defp unopened_by(user, other) do
    sql = """
    SELECT DISTINCT message_id FROM envelopes e
    WHERE sender_id = $1 AND recipient_id = $2 AND state = 'failed' AND message_id IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM envelopes w
        WHERE w.message_id = e.message_id AND w.recipient_id = e.recipient_id AND w.state = 'waiting')
    """

    for [id] <- SQL.rows(sql, [user.id, other]), do: id
  end

  defp log_security_event(event, row),
    do: Logger.warning("security: #{event} in envelope #{row.id} from #{row.sender_id}")

  ## The timeline

  @doc """
  A page of what a user has of a conversation: messages out of their archive, placeholders and notices, in order.

  `before` is the cursor of an earlier page. Returns `{items, before}`.
  """
  def timeline(user, conversation_id, before \\ nil) do
    with {:ok, conversation} <- Conversations.fetch(user, conversation_id),
         {:ok, page} <-
           FamilyChat.Kith.history(user.id, conversation.id, limit: @page, before: before) do
      messages =
        page.messages |> Enum.map(&item(user, &1)) |> Enum.uniq_by(& &1.id) |> first_sent()

      last? = before == nil
      from = if page.before, do: page.messages |> hd() |> Map.fetch!(:at), else: 0
      to = if last?, do: 9_000_000_000_000_000, else: page.messages |> newest()

      unopened = if last?, do: Mailbox.unopened(user.id, conversation.id), else: []
      have = MapSet.new(messages, & &1.id)

      placeholders =
        for row <- unopened, row.id not in have do
          placeholder(%{message_id: row.id, sender_id: row.sender_id}, row.sent_at, row.reason)
        end

      notices =
        for notice <- Conversations.notices(conversation.id, from, to) do
          %Item{
            id: notice.id,
            kind: :notice,
            sender_id: notice.user_id,
            reason: notice.kind,
            value: notice.value,
            at: notice.at
          }
        end

      items = messages |> with_progress(user) |> Enum.concat(placeholders ++ notices)
      {:ok, {Enum.sort_by(items, &{&1.at, &1.id}), page.before}}
    end
  end

  # What was sent again has the time of that in the archive.
  defp first_sent([]), do: []

  defp first_sent(items) do
    ids = Enum.map(items, & &1.id)
    sql = "SELECT id, sent_at FROM messages WHERE id IN (#{SQL.places(ids)})"
    times = for [id, sent_at] <- SQL.rows(sql, ids), into: %{}, do: {id, sent_at}
    Enum.map(items, &%{&1 | at: Map.get(times, &1.id, &1.at)})
  end

  defp newest([]), do: 0
  defp newest(messages), do: messages |> List.last() |> Map.fetch!(:at) |> Kernel.+(1)

  # A row of the archive that does not open: damaged in the database.
  defp item(_user, %{error: error} = message) when error != nil,
    do: %Item{id: "row-" <> message.id, kind: :unopened, at: message.at, reason: "damaged"}

  defp item(_user, message) do
    {sender_id, _device} = message.from

    case Payload.decode(message.plaintext) do
      {:ok, %{id: id, text: text}} ->
        %Item{
          id: id,
          kind: :message,
          sender_id: sender_id,
          text: text,
          at: message.sent_at || message.at,
          expires_at: message.expires_at
        }

      :error ->
        %Item{
          id: "row-" <> message.id,
          kind: :unopened,
          sender_id: sender_id,
          at: message.at,
          reason: "unknown"
        }
    end
  end

  defp with_progress(items, user) do
    progress = Mailbox.progress(for item <- items, item.sender_id == user.id, do: item.id)

    Enum.map(items, fn item ->
      case progress[item.id] do
        {served, opened} -> %{item | served: served, opened: opened}
        nil -> item
      end
    end)
  end

  @doc "How a message of this user stands now: `{served, opened}`."
  def progress(user, message_id) do
    sql = "SELECT 1 FROM messages WHERE id = $1 AND sender_id = $2"

    if SQL.rows(sql, [message_id, user.id]) != [],
      do: Map.get(Mailbox.progress([message_id]), message_id)
  end

  @doc "How a message of this user was encrypted, for each recipient."
  def encryption(user, message_id) do
    sql = "SELECT 1 FROM messages WHERE id = $1 AND sender_id = $2"

    with {:ok, id} <- Payload.id(message_id),
         [_] <- SQL.rows(sql, [id, user.id]),
         do: Mailbox.encryption(id),
         else: (_ -> [])
  end

  ## Identities

  @doc "The members of a conversation whose identity is not the one this user remembers."
  def changed(user, conversation) do
    for member <- conversation.members,
        member.id != user.id,
        changed?(user, member.id),
        do: member
  end

  defp changed?(user, other),
    do: match?({:ok, %{identity: :changed}}, FamilyChat.Kith.identity(user.id, other))

  @doc "Whether the number of these two was compared."
  def verified?(user, other),
    do: match?({:ok, %{verified: true}}, FamilyChat.Kith.identity(user.id, other.id))

  @doc "The number two people compare, whether they have, and whether it has changed."
  def safety(user, other_id), do: FamilyChat.Kith.safety_number(user.id, other_id)

  @doc "Whether what was scanned from the other screen is the number of these two. It is remembered if it is."
  def scanned(user, other_id, bytes) do
    case FamilyChat.Kith.safety_number_matches(user.id, other_id, bytes) do
      {:ok, true} ->
        accept(user, other_id, true)
        :same

      {:ok, false} ->
        :different

      {:error, _} ->
        :unreadable
    end
  end

  @doc """
  Accepts the identity another user has now, and sends and opens what waited for it.

  `digits` are those that were compared: `{:error, :changed}` when they are not those of that identity any more.
  """
  def accept(user, other_id, verified?, digits \\ nil) do
    accepted =
      SQL.transaction(fn ->
        with {:ok, number} <- FamilyChat.Kith.safety_number(user.id, other_id) do
          if digits not in [nil, number.digits], do: SQL.rollback(:changed)
          FamilyChat.Kith.trust(user.id, other_id, verified: verified?)
        end
      end)

    with {:ok, _} <- accepted do
      # What failed for want of it starts to count anew.
      SQL.run(
        """
        UPDATE undelivered SET attempts = 0
        WHERE user_id = $1 AND message_id IN (SELECT id FROM messages WHERE sender_id = $2)
        """,
        [other_id, user.id]
      )

      open_all(user, Mailbox.held(user.id, other_id))
      flush(user)
      :ok
    end
  end

  ## Disappearing messages

  @doc "Deletes what the tables still know of messages that have disappeared everywhere, and old reports."
  def sweep do
    now = SQL.now()

    gone = """
    SELECT m.id FROM messages m WHERE m.expires_at < $1
      AND NOT EXISTS (SELECT 1 FROM envelopes e WHERE e.message_id = m.id AND e.state <> 'opened')
      AND NOT EXISTS (SELECT 1 FROM undelivered u WHERE u.message_id = m.id AND u.reason <> 'sent')
    LIMIT 1000
    """

    for [id] <- SQL.rows(gone, [now]) do
      SQL.transaction(fn ->
        Mailbox.delete_all(id)
        SQL.run("DELETE FROM undelivered WHERE message_id = $1", [id])
        SQL.run("DELETE FROM messages WHERE id = $1", [id])
      end)
    end

    :ok
  end
end
