defmodule Kith.Store.Sessions do
  @moduledoc false
  # signal_sessions with its parts: archived states and skipped keys. The row of a pair stays for ever, so
  # that a generation is never used twice; without a session its state is NULL.

  alias Kith.Address
  alias Kith.Store.{Repo, SQL}

  @type row :: %{
          generation: non_neg_integer,
          state: nil | binary,
          identity: nil | binary
        }

  @none %{generation: 0, state: nil, identity: nil}

  @pair "user_id = $1 AND device_id = $2 AND peer_id = $3 AND peer_device_id = $4"

  @doc "The session rows of one device with many peers, by address, locked in the order of the key."
  @spec fetch_many(Repo.repo(), Address.t(), [Address.t()]) :: %{Address.t() => row}
  def fetch_many(repo, {user, device}, peers) do
    users = peers |> Enum.map(&elem(&1, 0)) |> Enum.uniq()

    sql = """
    SELECT peer_id, peer_device_id, generation, state, identity FROM signal_sessions
    WHERE user_id = $1 AND device_id = $2 AND peer_id IN (#{SQL.list(3, length(users))})
    ORDER BY peer_id, peer_device_id#{Repo.lock(repo, :rows)}
    """

    found =
      for [peer, peer_device, generation, state, identity] <-
            Repo.rows(repo, sql, [user, device | users]),
          into: %{} do
        {{peer, peer_device}, %{generation: generation, state: state, identity: identity}}
      end

    Map.new(peers, &{&1, Map.get(found, &1, @none)})
  end

  @spec fetch(Repo.repo(), Address.t(), Address.t()) :: row
  def fetch(repo, local, peer) do
    sql =
      "SELECT generation, state, identity FROM signal_sessions WHERE #{@pair}" <>
        Repo.lock(repo, :rows)

    case Repo.rows(repo, sql, pair(local, peer)) do
      [] ->
        @none

      [[generation, state, identity]] ->
        %{generation: generation, state: state, identity: identity}
    end
  end

  @doc """
  Writes `{peer, generation, state, identity}` rows, each the next generation of what is there.

  Returns how many were written: fewer than given when another writer was first.
  """
  def put(repo, {user, device}, rows, now) do
    rows
    |> SQL.chunks()
    |> Enum.reduce(0, fn chunk, written ->
      sql = """
      INSERT INTO signal_sessions
        (user_id, device_id, peer_id, peer_device_id, generation, state, identity, created_at, updated_at)
      VALUES #{SQL.values(length(chunk), 3, 5, fn own -> ["$1", "$2"] ++ own ++ ["$3", "$3"] end)}
      ON CONFLICT (user_id, device_id, peer_id, peer_device_id) DO UPDATE SET
        generation = excluded.generation, state = excluded.state, identity = excluded.identity,
        updated_at = excluded.updated_at
      WHERE signal_sessions.generation = excluded.generation - 1
      """

      own =
        Enum.flat_map(chunk, fn {{peer, peer_device}, generation, state, identity} ->
          [peer, peer_device, generation, blob(state), blob(identity)]
        end)

      written + Repo.execute(repo, sql, [user, device, now | own])
    end)
  end

  @doc """
  What is stored of a peer, as the native library takes it.

  The parts that are kept elsewhere are not loaded unless they are given.
  """
  def peer(session, {peer, device}, loaded \\ %{}) do
    %{user: peer, device: device, archive: nil, skipped: nil, prekey: nil, signed_prekey: nil}
    |> Map.merge(session)
    |> Map.merge(loaded)
  end

  @doc "Writes what is remembered of the peer and leaves the session as it is."
  def put_identity(repo, local, peer, identity, now) do
    sql = "UPDATE signal_sessions SET identity = $5, updated_at = $6 WHERE #{@pair}"
    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, identity}, now])
  end

  @doc "Ends the session of a pair at a generation. Returns 0 when there is none."
  def drop_state(repo, local, peer, generation, now) do
    sql = """
    UPDATE signal_sessions SET state = NULL, generation = generation + 1, updated_at = $5
    WHERE #{@pair} AND generation = $6 AND state IS NOT NULL
    """

    Repo.execute(repo, sql, pair(local, peer) ++ [now, generation])
  end

  @doc "Ends the session of a pair and forgets the identity of the peer."
  def forget(repo, local, peer, now) do
    sql = """
    UPDATE signal_sessions
    SET state = NULL, identity = NULL, generation = generation + 1, updated_at = $5
    WHERE #{@pair} AND (state IS NOT NULL OR identity IS NOT NULL)
    """

    Repo.execute(repo, sql, pair(local, peer) ++ [now])
  end

  @doc "The devices that have a session with a device, and their users' wrapped data keys."
  def partners(repo, {user, device}) do
    sql = """
    SELECT s.user_id, s.device_id, a.data_key
    FROM signal_sessions s LEFT JOIN signal_accounts a ON a.user_id = s.user_id
    WHERE s.peer_id = $1 AND s.peer_device_id = $2 AND s.state IS NOT NULL
    ORDER BY s.user_id, s.device_id
    """

    for [partner, partner_device, data_key] <- Repo.rows(repo, sql, [user, device]),
        do: {{partner, partner_device}, data_key}
  end

  @doc "`{session_id, position, state}` of the archived sessions, the newest first."
  def archive(repo, local, peer) do
    sql = """
    SELECT session_id, position, state FROM signal_archived_sessions WHERE #{@pair}
    ORDER BY position DESC
    """

    for [session_id, position, state] <- Repo.rows(repo, sql, pair(local, peer)),
        do: {session_id, position, state}
  end

  @doc "Inserts `{peer, {session_id, position, state}}` rows."
  def insert_archived(_repo, _local, []), do: :ok

  def insert_archived(repo, {user, device}, rows) do
    for chunk <- SQL.chunks(rows) do
      sql = """
      INSERT INTO signal_archived_sessions
        (user_id, device_id, peer_id, peer_device_id, session_id, position, state)
      VALUES #{SQL.values(length(chunk), 2, 5, fn own -> ["$1", "$2" | own] end)}
      ON CONFLICT (user_id, device_id, peer_id, peer_device_id, session_id) DO UPDATE SET
        position = excluded.position, state = excluded.state
      """

      own =
        Enum.flat_map(chunk, fn {{peer, peer_device}, {session_id, position, state}} ->
          [peer, peer_device, {:blob, session_id}, position, {:blob, state}]
        end)

      Repo.execute(repo, sql, [user, device | own])
    end

    :ok
  end

  def delete_archived(repo, local, peer, session_id) do
    sql = "DELETE FROM signal_archived_sessions WHERE #{@pair} AND session_id = $5"
    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, session_id}])
  end

  @doc "`{session_id, ratchet_key, counter, sealed}` of one message, in any session of the pair."
  def skipped(repo, local, peer, ratchet_key, counter) do
    sql = """
    SELECT session_id, ratchet_key, counter, message_key FROM signal_skipped_keys
    WHERE #{@pair} AND ratchet_key = $5 AND counter = $6
    """

    params = pair(local, peer) ++ [{:blob, ratchet_key}, counter]

    for [session_id, ratchet_key, counter, sealed] <- Repo.rows(repo, sql, params),
        do: {session_id, ratchet_key, counter, sealed}
  end

  @doc "Inserts `{ratchet_key, counter, sealed}` rows."
  def insert_skipped(repo, {user, device}, {peer, peer_device}, session_id, keys) do
    for chunk <- SQL.chunks(keys) do
      sql = """
      INSERT INTO signal_skipped_keys
        (user_id, device_id, peer_id, peer_device_id, session_id, ratchet_key, counter, message_key)
      VALUES #{SQL.values(length(chunk), 5, 3, fn own -> ["$1", "$2", "$3", "$4", "$5" | own] end)}
      """

      own =
        Enum.flat_map(chunk, fn {ratchet_key, counter, sealed} ->
          [{:blob, ratchet_key}, counter, {:blob, sealed}]
        end)

      shared = [user, device, peer, peer_device, {:blob, session_id}]
      Repo.execute(repo, sql, shared ++ own)
    end

    :ok
  end

  def delete_skipped(repo, local, peer, session_id, {ratchet_key, counter}) do
    sql = """
    DELETE FROM signal_skipped_keys
    WHERE #{@pair} AND session_id = $5 AND ratchet_key = $6 AND counter = $7
    """

    Repo.execute(
      repo,
      sql,
      pair(local, peer) ++ [{:blob, session_id}, {:blob, ratchet_key}, counter]
    )
  end

  def delete_skipped_of_chain(repo, local, peer, session_id, ratchet_key) do
    sql = """
    DELETE FROM signal_skipped_keys WHERE #{@pair} AND session_id = $5 AND ratchet_key = $6
    """

    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, session_id}, {:blob, ratchet_key}])
  end

  def delete_skipped_of_session(repo, local, peer, session_id) do
    sql = "DELETE FROM signal_skipped_keys WHERE #{@pair} AND session_id = $5"
    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, session_id}])
  end

  @doc "Deletes the `count` oldest skipped keys of a chain."
  def evict_skipped(repo, {user, device}, {peer, peer_device}, session_id, {ratchet_key, count}) do
    sql = """
    DELETE FROM signal_skipped_keys
    WHERE #{@pair} AND session_id = $5 AND ratchet_key = $6 AND counter IN (
      SELECT counter FROM signal_skipped_keys
      WHERE user_id = $7 AND device_id = $8 AND peer_id = $9 AND peer_device_id = $10
        AND session_id = $11 AND ratchet_key = $12
      ORDER BY counter LIMIT $13
    )
    """

    params = [user, device, peer, peer_device, {:blob, session_id}, {:blob, ratchet_key}]
    Repo.execute(repo, sql, params ++ params ++ [count])
  end

  @doc "Deletes the archived sessions and the skipped keys of a pair."
  def delete_parts(repo, local, peer) do
    for table <- ~w(signal_archived_sessions signal_skipped_keys),
        do: Repo.execute(repo, "DELETE FROM #{table} WHERE #{@pair}", pair(local, peer))

    :ok
  end

  defp pair({user, device}, {peer, peer_device}), do: [user, device, peer, peer_device]

  defp blob(nil), do: nil
  defp blob(bytes), do: {:blob, bytes}
end
