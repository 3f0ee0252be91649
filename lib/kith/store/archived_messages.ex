defmodule Kith.Store.ArchivedMessages do
  @moduledoc false
  # signal_threads and signal_archived_messages: the data keys of conversations and what is sealed under them.

  alias Kith.Address
  alias Kith.Store.{Keys, Repo, SQL, WrappedKey}

  # SQLite keeps anything in any column. What cannot have been written here is left out: it has no place in the order
  # of the others, and nobody could page past it. Its blobs come after all else, so $6 is an empty one.
  @well_formed "CAST(position AS BIGINT) = position AND position >= 0 AND length(message_id) = 16 AND message_id >= $6"
  @alive "(expires_at IS NULL OR expires_at > $3)"

  @columns """
  m.thread_id, t.data_key, t.previous_data_key, m.owner_key_id, m.position, m.message_id, m.peer_id, m.peer_device_id, m.sent_at,
  m.expires_at, m.content
  """

  @type key :: {position :: non_neg_integer, message_id :: binary}

  @typedoc "Everything of a row but the content, whose it is and in which thread."
  @type place :: %{
          position: non_neg_integer,
          message_id: binary,
          sender: nil | Address.t(),
          sent_at: nil | integer,
          expires_at: nil | integer
        }

  @typedoc """
  Thread and the wrapped data key of it under which the content lies, the id of the data key of the owner's account under which the content lies too (of an
  account that is or was locked, else nil), place, and content as it is sealed.
  """
  @type message :: {String.t(), nil | binary, nil | binary, place, binary}

  @doc """
  The wrapped data key of a thread, which nobody can delete before the transaction is over.
  """
  @spec data_key(Repo.repo(), String.t()) :: nil | binary
  def data_key(repo, thread) do
    # Not FOR UPDATE: those who write into one thread do not wait for each other.
    lock = if Repo.dialect(repo) == :postgres, do: " FOR KEY SHARE", else: ""
    sql = "SELECT data_key FROM kith.signal_threads WHERE thread_id = $1" <> lock

    case Repo.rows(repo, sql, [thread]) do
      [] -> nil
      [[data_key]] -> data_key
    end
  end

  @doc """
  The wrapped data key of a thread and the one it had before, while messages are still sealed under that. They are the same until
  the transaction is over.
  """
  @spec keys(Repo.repo(), String.t()) :: nil | {binary, nil | binary}
  def keys(repo, thread),
    do: keys(repo, thread, if(Repo.dialect(repo) == :postgres, do: " FOR KEY SHARE", else: ""))

  @doc "The same. Waits for those who write into the thread, and nobody else begins to before the transaction is over."
  @spec lock(Repo.repo(), String.t()) :: nil | {binary, nil | binary}
  def lock(repo, thread),
    do: keys(repo, thread, if(Repo.dialect(repo) == :postgres, do: " FOR UPDATE", else: ""))

  defp keys(repo, thread, lock) do
    sql =
      "SELECT data_key, previous_data_key FROM kith.signal_threads WHERE thread_id = $1" <> lock

    case Repo.rows(repo, sql, [thread]) do
      [] -> nil
      [[data_key, previous]] -> {data_key, previous}
    end
  end

  @typedoc "Which of the two keys of a thread."
  @type which :: :data_key | :previous_data_key

  @doc "Threads and one of their wrapped data keys, some at a time, in the order of the threads."
  @spec data_keys(Repo.repo(), which, String.t(), pos_integer) :: [{String.t(), binary}]
  def data_keys(repo, which, after_thread, limit) do
    sql = """
    SELECT thread_id, #{which} FROM kith.signal_threads
    WHERE thread_id > $1 AND #{which} IS NOT NULL ORDER BY thread_id LIMIT $2
    """

    for [thread, data_key] <- Repo.rows(repo, sql, [after_thread, limit]), do: {thread, data_key}
  end

  @doc "Gives a thread one of its data keys wrapped anew. Returns 0 when it was not the one that is there."
  @spec put_data_key(Repo.repo(), which, String.t(), binary, binary) :: non_neg_integer
  def put_data_key(repo, :data_key, thread, before, data_key) do
    sql = """
    UPDATE kith.signal_threads
    SET data_key = $3, key_id = $4, wrapped_dek = $5, kek_id = $6, kek_version = $7
    WHERE thread_id = $1 AND data_key = $2
    """

    params = [thread, {:blob, before}, {:blob, data_key} | WrappedKey.columns(data_key)]
    Repo.execute(repo, sql, params)
  end

  def put_data_key(repo, :previous_data_key, thread, before, data_key) do
    sql = """
    UPDATE kith.signal_threads SET previous_data_key = $3
    WHERE thread_id = $1 AND previous_data_key = $2
    """

    Repo.execute(repo, sql, [thread, {:blob, before}, {:blob, data_key}])
  end

  @doc "Gives a thread another data key, beside the one it had."
  @spec replace_data_key(Repo.repo(), String.t(), binary, integer) :: non_neg_integer
  def replace_data_key(repo, thread, data_key, now) do
    sql = """
    UPDATE kith.signal_threads SET previous_data_key = data_key, data_key = $2, key_changed_at = $3,
      key_id = $4, wrapped_dek = $5, kek_id = $6, kek_version = $7
    WHERE thread_id = $1 AND previous_data_key IS NULL
    """

    Repo.execute(repo, sql, [thread, {:blob, data_key}, now | WrappedKey.columns(data_key)])
  end

  @doc "Forgets the data key a thread had."
  @spec forget_previous(Repo.repo(), String.t()) :: non_neg_integer
  def forget_previous(repo, thread) do
    sql = "UPDATE kith.signal_threads SET previous_data_key = NULL WHERE thread_id = $1"
    Repo.execute(repo, sql, [thread])
  end

  @doc """
  Threads whose data key was drawn before a time or for another cipher, or whose messages have not all followed to theirs, with the key and when it was
  drawn; some at a time.
  """
  @spec old(Repo.repo(), String.t(), {nil | integer, atom}, pos_integer) :: [
          {String.t(), binary, integer}
        ]
  def old(repo, after_thread, {before, cipher}, limit) do
    {other_cipher, params} = WrappedKey.other_cipher(cipher, {4, 5})

    sql = """
    SELECT thread_id, data_key, COALESCE(key_changed_at, created_at) FROM kith.signal_threads
    WHERE thread_id > $1
      AND (previous_data_key IS NOT NULL OR COALESCE(key_changed_at, created_at) < $2 OR #{other_cipher})
    ORDER BY thread_id LIMIT $3
    """

    for row <- Repo.rows(repo, sql, [after_thread, before, limit | params]),
        do: List.to_tuple(row)
  end

  @typedoc "User, device, position and message id: where a message stands among all of its thread."
  @type cursor :: [term]

  @doc """
  Messages of a thread with their devices behind a cursor, some at a time: those that do not say they are sealed under the data key
  with an id, or all of them.
  """
  @spec in_thread(Repo.repo(), String.t(), nil | binary, cursor, pos_integer) :: [
          {Address.device(), message}
        ]
  def in_thread(repo, thread, key_id, [user, device, position, message_id], limit) do
    {condition, params} =
      if key_id, do: {"AND substr(m.content, 3, 8) <> $7", [{:blob, key_id}]}, else: {"", []}

    sql = """
    SELECT m.user_id, m.device_id, #{@columns}
    FROM kith.signal_archived_messages m JOIN kith.signal_threads t ON t.thread_id = m.thread_id
    WHERE m.thread_id = $1 AND (m.user_id, m.device_id, m.position, m.message_id) > ($3, $4, $5, $6)
      #{condition}
    ORDER BY m.user_id, m.device_id, m.position, m.message_id LIMIT $2
    """

    params = [thread, limit, user, device, position, {:blob, message_id} | params]

    rows =
      for [user, device | row] <- Repo.rows(repo, sql, params),
          do: {{user, device}, message(row)}

    # SQLite has bytes behind all texts, also behind themselves.
    if rows != [] and cursor(List.last(rows)) == [user, device, position, message_id],
      do: [],
      else: rows
  end

  @doc "The cursor before all messages, or that of one of them."
  @spec cursor(nil | {Address.t(), message}) :: cursor
  def cursor(nil), do: ["", 0, 0, ""]

  def cursor({{user, device}, {_, _, _, place, _}}),
    do: [user, device, place.position, place.message_id]

  @doc "Keeps the data key that is there, should another process have been faster."
  def insert_thread(repo, thread, data_key, now) do
    sql = """
    INSERT INTO kith.signal_threads
      (thread_id, data_key, created_at, key_id, wrapped_dek, kek_id, kek_version)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (thread_id) DO NOTHING
    """

    Repo.execute(repo, sql, [thread, {:blob, data_key}, now | WrappedKey.columns(data_key)])
  end

  @doc "A message that is there already stays as it is."
  @spec insert(Repo.repo(), Address.t(), String.t(), place, binary, nil | binary) ::
          non_neg_integer
  def insert(repo, {user, device}, thread, place, content, owner_key_id) do
    {peer, peer_device} = place.sender || {nil, nil}

    sql = """
    INSERT INTO kith.signal_archived_messages
      (user_id, device_id, thread_id, position, message_id, peer_id, peer_device_id, sent_at,
       expires_at, content, owner_key_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (user_id, device_id, message_id) DO NOTHING
    """

    Repo.execute(repo, sql, [
      user,
      device,
      thread,
      place.position,
      {:blob, place.message_id},
      peer,
      peer_device,
      place.sent_at,
      place.expires_at,
      {:blob, content},
      owner_key_id && {:blob, owner_key_id}
    ])
  end

  @doc "The message of a device with an id: none, or one."
  def find(repo, {user, device}, message_id, now) do
    sql = """
    #{select()} WHERE user_id = $1 AND device_id = $2 AND #{@alive} AND message_id = $4
    """

    messages(repo, sql, [user, device, now, {:blob, message_id}])
  end

  @doc "The same of what a device itself sent at a time, the newest first, at most `limit`."
  def sent(repo, {user, device}, sent_at, now, limit) do
    sql = """
    #{select()}
    WHERE user_id = $1 AND device_id = $2 AND #{@alive} AND peer_id IS NULL AND sent_at = $4
    ORDER BY position DESC, message_id DESC LIMIT $5
    """

    messages(repo, sql, [user, device, now, sent_at, limit])
  end

  @doc """
  `{position, message id, size of the content}` of the newest messages of a device in a thread, or of those before a
  key, the newest first.
  """
  @spec sizes(Repo.repo(), Address.t(), String.t(), nil | key, integer, pos_integer) :: [list]
  def sizes(repo, {user, device}, thread, before, now, limit) do
    {range, params} = before("$7", "$8", before)

    sql = """
    SELECT position, message_id, length(content) FROM kith.signal_archived_messages
    WHERE user_id = $1 AND device_id = $2 AND thread_id = $4 AND #{@well_formed} AND #{@alive} #{range}
    ORDER BY position DESC, message_id DESC LIMIT $5
    """

    Repo.rows(repo, sql, [user, device, now, thread, limit, {:blob, ""} | params])
  end

  @doc "As find/4: the messages of a device in a thread from one key on, those before another key, the newest first."
  def page(repo, {user, device}, thread, {position, message_id}, before, now, limit) do
    {range, params} = before("$9", "$10", before)

    sql = """
    #{select()}
    WHERE user_id = $1 AND device_id = $2 AND m.thread_id = $4 AND #{@well_formed} AND #{@alive}
      AND (position, message_id) >= ($7, $8) #{range}
    ORDER BY position DESC, message_id DESC LIMIT $5
    """

    from = [position, {:blob, message_id}]
    params = [user, device, now, thread, limit, {:blob, ""}] ++ from ++ params
    messages(repo, sql, params)
  end

  defp messages(repo, sql, params), do: repo |> Repo.rows(sql, params) |> Enum.map(&message/1)

  defp before(_position, _message_id, nil), do: {"", []}

  defp before(position, message_id, {at, id}),
    do: {"AND (position, message_id) < (#{position}, #{message_id})", [at, {:blob, id}]}

  @doc "What `message/1` reads, where the messages are `m` and their threads `t`."
  def columns, do: @columns

  # The key comes with the rows: a thread that is shredded and begun anew between two statements has another one.
  defp select do
    """
    SELECT #{@columns}
    FROM kith.signal_archived_messages m LEFT JOIN kith.signal_threads t ON t.thread_id = m.thread_id
    """
  end

  @doc "A row of `columns/0`."
  @spec message([term]) :: message
  def message([
        thread,
        data_key,
        previous,
        owner_key_id,
        position,
        message_id,
        peer,
        peer_device,
        sent_at,
        expires_at,
        content
      ]) do
    place = %{
      position: position,
      message_id: message_id,
      sender: if(peer == nil and peer_device == nil, do: nil, else: {peer, peer_device}),
      sent_at: sent_at,
      expires_at: expires_at
    }

    {thread, key_of(content, data_key, previous), owner_key_id, place, content}
  end

  # The content says under which of the two it is sealed; what says neither opens under neither.
  defp key_of(content, data_key, previous) when previous != nil,
    do: if(Keys.key_id(content) == Keys.key_id(previous), do: previous, else: data_key)

  defp key_of(_content, data_key, nil), do: data_key

  @doc """
  Messages of a user that do not lie under the data key of the account that they should: `wanted` is its id, or nil for none. A
  number of them with their devices, behind the device and the message id of another, in the order of the index of these.
  """
  @spec misowned(
          Repo.repo(),
          Address.user(),
          nil | binary,
          {Address.device(), binary},
          pos_integer
        ) :: [{Address.device(), message}]
  def misowned(repo, user, wanted, {device, message_id}, limit) do
    {condition, params} =
      if wanted,
        do: {"(owner_key_id IS NULL OR owner_key_id <> $5)", [{:blob, wanted}]},
        else: {"owner_key_id IS NOT NULL", []}

    sql = """
    SELECT m.device_id, #{@columns}
    FROM kith.signal_archived_messages m JOIN kith.signal_threads t ON t.thread_id = m.thread_id
    WHERE m.user_id = $1 AND (m.device_id, m.message_id) > ($3, $4) AND #{condition}
    ORDER BY m.device_id, m.message_id LIMIT $2
    """

    params = [user, limit, device, {:blob, message_id} | params]
    for [device | row] <- Repo.rows(repo, sql, params), do: {device, message(row)}
  end

  @doc """
  Writes messages as they are sealed anew, `{owner, place, content of before, id of the owner's key, result}` each. Returns how many
  were written, and how many have an error for a result. The others were not what is there any more.
  """
  @spec put_contents(Repo.repo(), [
          {Address.t(), place, binary, nil | binary, {:ok, binary} | {:error, term}}
        ]) :: {written :: non_neg_integer, refused :: non_neg_integer}
  def put_contents(repo, rows) do
    Enum.reduce(rows, {0, 0}, fn
      {owner, place, before, owner_key_id, {:ok, content}}, {written, refused} ->
        changed = put_content(repo, owner, place.message_id, before, content, owner_key_id)
        {written + changed, refused}

      {_owner, _place, _before, _owner_key_id, {:error, _}}, {written, refused} ->
        {written, refused + 1}
    end)
  end

  @doc "Writes one of them. Returns 0 when it was not what is there."
  def put_content(repo, {user, device}, message_id, before, content, owner_key_id) do
    sql = """
    UPDATE kith.signal_archived_messages SET content = $5, owner_key_id = $6
    WHERE user_id = $1 AND device_id = $2 AND message_id = $3 AND content = $4
    """

    Repo.execute(repo, sql, [
      user,
      device,
      {:blob, message_id},
      {:blob, before},
      {:blob, content},
      owner_key_id && {:blob, owner_key_id}
    ])
  end

  @doc "The threads a device has messages in."
  @spec threads(Repo.repo(), Address.t()) :: [String.t()]
  def threads(repo, {user, device}) do
    sql = """
    SELECT DISTINCT thread_id FROM kith.signal_archived_messages
    WHERE user_id = $1 AND device_id = $2
    """

    for [thread] <- Repo.rows(repo, sql, [user, device]), do: thread
  end

  @doc "Deletes at most `limit` messages whose time is over and returns the thread of each."
  @spec delete_expired(Repo.repo(), integer, pos_integer) :: [String.t()]
  def delete_expired(repo, now, limit) do
    sql = """
    DELETE FROM kith.signal_archived_messages WHERE (user_id, device_id, message_id) IN (
      SELECT user_id, device_id, message_id FROM kith.signal_archived_messages
      WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2#{Repo.skip_locked(repo)}
    )
    RETURNING thread_id
    """

    for [thread] <- Repo.rows(repo, sql, [now, limit]), do: thread
  end

  @doc "Deletes those of the data keys under which nothing is left."
  @spec delete_unused_keys(Repo.repo(), [String.t()]) :: :ok
  def delete_unused_keys(repo, threads) do
    for chunk <- SQL.chunks(threads |> Enum.uniq() |> Enum.sort()) do
      list = SQL.list(1, length(chunk))

      # Who has read a key is about to write under it: its message is seen by the statement after this one.
      Repo.lock_rows(
        repo,
        "SELECT 1 FROM kith.signal_threads WHERE thread_id IN (#{list}) ORDER BY thread_id",
        chunk
      )

      sql = """
      DELETE FROM kith.signal_threads WHERE thread_id IN (#{list}) AND NOT EXISTS (
        SELECT 1 FROM kith.signal_archived_messages m
        WHERE m.thread_id = kith.signal_threads.thread_id
      )
      """

      Repo.execute(repo, sql, chunk)
    end

    :ok
  end

  @doc "Deletes the data key of a thread, then its messages, and returns how many there were."
  @spec delete_thread(Repo.repo(), String.t()) :: non_neg_integer
  def delete_thread(repo, thread) do
    # In this order: it waits for those who are writing under the key, and then sees what they wrote.
    Repo.execute(repo, "DELETE FROM kith.signal_threads WHERE thread_id = $1", [thread])

    Repo.execute(repo, "DELETE FROM kith.signal_archived_messages WHERE thread_id = $1", [thread])
  end
end
