defmodule Kith.Store.Backups do
  @moduledoc false
  # All rows of one user, page by page, and rows that come out of a backup.

  alias Kith.Address
  alias Kith.Store.{ArchivedMessages, Repo, SQL}

  @pair "user_id = $1 AND device_id = $2 AND peer_id = $3 AND peer_device_id = $4"

  @doc "`{device, row}` of the devices of a user, the first one first."
  def devices(repo, user) do
    sql = """
    SELECT device_id, registration_id, public_key, next_prekey_id, next_kyber_prekey_id, created_at,
      private_key_encrypted
    FROM kith.signal_identity_keys WHERE user_id = $1 ORDER BY device_id
    """

    Repo.rows(repo, sql, [user])
  end

  def prekeys(repo, {user, device}) do
    sql = """
    SELECT kind, prekey_id, public_key, signature, claimed_at, used_at, superseded_at, created_at,
      private_key_encrypted
    FROM kith.signal_prekeys WHERE user_id = $1 AND device_id = $2
    ORDER BY kind, prekey_id
    """

    Repo.rows(repo, sql, [user, device])
  end

  def base_keys(repo, {user, device}) do
    sql = """
    SELECT base_key, signed_prekey_id, created_at FROM kith.signal_base_keys
    WHERE user_id = $1 AND device_id = $2 ORDER BY base_key
    """

    Repo.rows(repo, sql, [user, device])
  end

  @doc "The next peers of a device after one, in the order of the key."
  @spec peers(Repo.repo(), Address.t(), Address.t(), pos_integer) :: [Address.t()]
  def peers(repo, {user, device}, {peer, peer_device}, limit) do
    sql = """
    SELECT peer_id, peer_device_id FROM kith.signal_sessions
    WHERE user_id = $1 AND device_id = $2 AND (peer_id, peer_device_id) > ($3, $4)
    ORDER BY peer_id, peer_device_id LIMIT $5
    """

    for [peer, peer_device] <- Repo.rows(repo, sql, [user, device, peer, peer_device, limit]),
        do: {peer, peer_device}
  end

  @doc "`{session_id, group, number, sealed, created_at}` of all entries of a pair."
  def entries(repo, {user, device}, {peer, peer_device}) do
    sql = """
    SELECT session_id, entry_group, number, entry, created_at FROM kith.signal_session_entries
    WHERE #{@pair} ORDER BY entry_group, number, session_id
    """

    repo |> Repo.rows(sql, [user, device, peer, peer_device]) |> Enum.map(&List.to_tuple/1)
  end

  @typedoc "Device, thread, position, message id."
  @type message_key :: [term]

  @doc "Keys and sizes of the next messages of a user after a key, in the order of the key."
  @spec message_sizes(Repo.repo(), Address.user(), message_key, integer, pos_integer) :: [list]
  def message_sizes(repo, user, [device, thread, position, id], now, limit) do
    sql = """
    SELECT device_id, thread_id, position, message_id, length(content)
    FROM kith.signal_archived_messages
    WHERE user_id = $1 AND (device_id, thread_id, position, message_id) > ($2, $3, $4, $5)
      AND (expires_at IS NULL OR expires_at > $6)
    ORDER BY device_id, thread_id, position, message_id LIMIT $7
    """

    Repo.rows(repo, sql, [user, device, thread, position, {:blob, id}, now, limit])
  end

  @doc "Those messages with their devices, from after a key up to another."
  def messages(repo, user, [device, thread, position, id], last, now) do
    [last_device, last_thread, last_position, last_id] = last

    sql = """
    SELECT m.device_id, #{ArchivedMessages.columns()}
    FROM kith.signal_archived_messages m
      JOIN kith.signal_threads t ON t.thread_id = m.thread_id
    WHERE m.user_id = $1
      AND (m.device_id, m.thread_id, m.position, m.message_id) > ($2, $3, $4, $5)
      AND (m.device_id, m.thread_id, m.position, m.message_id) <= ($6, $7, $8, $9)
      AND (m.expires_at IS NULL OR m.expires_at > $10)
    ORDER BY m.device_id, m.thread_id, m.position, m.message_id
    """

    params = [user, device, thread, position, {:blob, id}]
    params = params ++ [last_device, last_thread, last_position, {:blob, last_id}, now]

    for [device | row] <- Repo.rows(repo, sql, params),
        do: {device, ArchivedMessages.message(row)}
  end

  @doc "Inserts a prekey with what has become of it. It is handed out no more."
  def insert_prekey(repo, {user, device}, prekey, sealed, now) do
    claimed_at =
      if prekey.kind in [:one_time, :kyber_one_time],
        do: prekey.claimed_at || now,
        else: prekey.claimed_at

    sql = """
    INSERT INTO kith.signal_prekeys
      (user_id, device_id, kind, prekey_id, public_key, signature, private_key_encrypted, claimed_at,
       used_at, superseded_at, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (user_id, device_id, kind, prekey_id) DO NOTHING
    """

    Repo.execute(repo, sql, [
      user,
      device,
      Atom.to_string(prekey.kind),
      prekey.id,
      {:blob, prekey.public_key},
      blob(prekey.signature),
      blob(sealed),
      claimed_at,
      prekey.used_at,
      prekey.superseded_at,
      prekey.created_at
    ])
  end

  @doc "The row of a pair, with what is remembered of the peer. It is of the first generation."
  def insert_peer(repo, {user, device}, {peer, peer_device}, identity, now) do
    sql = """
    INSERT INTO kith.signal_sessions
      (user_id, device_id, peer_id, peer_device_id, generation, identity, created_at, updated_at)
    VALUES ($1, $2, $3, $4, 1, $5, $6, $6)
    ON CONFLICT (user_id, device_id, peer_id, peer_device_id) DO NOTHING
    """

    Repo.execute(repo, sql, [user, device, peer, peer_device, {:blob, identity}, now])
  end

  @doc "The session of a pair. The next message to the peer starts another one."
  def insert_session(
        repo,
        {user, device},
        {peer, peer_device},
        state,
        {established, received},
        now
      ) do
    sql = """
    INSERT INTO kith.signal_sessions
      (user_id, device_id, peer_id, peer_device_id, generation, state, renew_since, established_at,
       received_at, created_at, updated_at)
    VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $6, $6)
    ON CONFLICT (user_id, device_id, peer_id, peer_device_id) DO UPDATE SET
      state = excluded.state, renew_since = excluded.renew_since,
      established_at = excluded.established_at, received_at = excluded.received_at
    """

    params = [user, device, peer, peer_device, {:blob, state}, now, established, received]
    Repo.execute(repo, sql, params)
  end

  @doc "An entry of a session, as old as it is."
  def insert_entry(repo, {user, device}, {peer, peer_device}, {id, group, number}, sealed, at) do
    sql = """
    INSERT INTO kith.signal_session_entries
      (user_id, device_id, peer_id, peer_device_id, session_id, entry_group, number, entry, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (user_id, device_id, peer_id, peer_device_id, entry_group, number, session_id)
    DO NOTHING
    """

    params = [user, device, peer, peer_device, {:blob, id}, {:blob, group}, number]
    Repo.execute(repo, sql, params ++ [{:blob, sealed}, at])
  end

  @doc "Inserts `{device, thread, place, content}` messages of a user."
  def insert_messages(repo, user, messages) do
    for chunk <- SQL.chunks(messages) do
      sql = """
      INSERT INTO kith.signal_archived_messages
        (user_id, device_id, thread_id, position, message_id, peer_id, peer_device_id, sent_at,
         expires_at, content)
      VALUES #{SQL.values(length(chunk), 1, 9, fn own -> ["$1" | own] end)}
      ON CONFLICT (user_id, device_id, message_id) DO NOTHING
      """

      own =
        Enum.flat_map(chunk, fn {device, thread, place, content} ->
          {peer, peer_device} = place.sender || {nil, nil}
          of_place = [place.position, {:blob, place.message_id}, peer, peer_device]
          [device, thread] ++ of_place ++ [place.sent_at, place.expires_at, {:blob, content}]
        end)

      Repo.execute(repo, sql, [user | own])
    end

    :ok
  end

  defp blob(nil), do: nil
  defp blob(bytes), do: {:blob, bytes}
end
