defmodule Kith.Store.Sessions do
  @moduledoc false
  # signal_sessions with its parts: the braid of the current session, archived sessions, and the entries a session
  # keeps beside itself. The row of a pair stays for ever, so that a generation is never used twice; without
  # a session its state is NULL and there is no braid.

  alias Kith.Address
  alias Kith.Store.{Repo, SQL}

  @type row :: %{
          generation: non_neg_integer,
          state: nil | binary,
          identity: nil | binary,
          braid: nil | braid,
          renew_since: nil | integer,
          established_at: nil | integer,
          received_at: nil | integer
        }

  @typedoc "Session id, revision and the sealed braid."
  @type braid :: {binary, non_neg_integer, binary}

  @typedoc "Where an entry lies in its session."
  @type position :: {group :: binary, number :: non_neg_integer}

  @none %{
    generation: 0,
    state: nil,
    identity: nil,
    braid: nil,
    renew_since: nil,
    established_at: nil,
    received_at: nil
  }

  @columns "generation, state, identity, session_id, revision, braid, renew_since, established_at, received_at"

  # As many as the engine keeps.
  @max_archived 40

  @pair "user_id = $1 AND device_id = $2 AND peer_id = $3 AND peer_device_id = $4"

  # The version of a session is known to its sealed state only: one of version 3 has no braid.
  @with_braid """
  kith.signal_sessions s
  LEFT JOIN kith.signal_braids b USING (user_id, device_id, peer_id, peer_device_id)
  """

  @doc "No row."
  def none, do: @none

  @doc """
  The session rows of one device with all devices of some users, by address, locked in the order of the key, in one statement.

  PostgreSQL shows a row it had to wait for as it is then, and the braid beside it as it was when the statement began: such
  a pair does not open. Read again with `read_many/3`, under the lock that is held now, they fit.
  """
  @spec fetch_many(Repo.repo(), Address.t(), [Address.user()]) :: %{Address.t() => row}
  def fetch_many(repo, local, users), do: many(repo, local, users, Repo.lock_of(repo, "s"))

  @doc "The same without a lock: it would be one on rows that were made meanwhile too, out of the order."
  @spec read_many(Repo.repo(), Address.t(), [Address.user()]) :: %{Address.t() => row}
  def read_many(repo, local, users), do: many(repo, local, users, "")

  defp many(_repo, _local, [], _lock), do: %{}

  defp many(repo, {user, device}, users, lock) do
    sql = """
    SELECT peer_id, peer_device_id, #{@columns} FROM #{@with_braid}
    WHERE user_id = $1 AND device_id = $2 AND peer_id IN (#{SQL.list(3, length(users))})
    ORDER BY peer_id, peer_device_id#{lock}
    """

    for [peer, peer_device | row] <- Repo.rows(repo, sql, [user, device | users]),
        into: %{},
        do: {{peer, peer_device}, row(row)}
  end

  @spec fetch(Repo.repo(), Address.t(), Address.t()) :: row
  def fetch(repo, local, peer) do
    params = pair(local, peer)
    Repo.lock_rows(repo, "SELECT generation FROM kith.signal_sessions WHERE #{@pair}", params)

    case Repo.rows(repo, "SELECT #{@columns} FROM #{@with_braid} WHERE #{@pair}", params) do
      [] -> @none
      [row] -> row(row)
    end
  end

  defp row([generation, state, identity, session_id, revision, braid | times]) do
    braid = if session_id, do: {session_id, revision, braid}
    [renew_since, established_at, received_at] = times

    %{
      generation: generation,
      state: state,
      identity: identity,
      braid: braid,
      renew_since: renew_since,
      established_at: established_at,
      received_at: received_at
    }
  end

  @doc """
  What a device remembers of another device of the same user than this one, sealed: `{device, identity}` or nil. Those
  of one user share an identity.
  """
  @spec sibling(%{Address.t() => row}, Address.t()) :: nil | {Address.device(), binary}
  def sibling(rows, {peer, peer_device}) do
    rows
    |> Enum.filter(
      &match?({{^peer, device}, %{identity: <<_, _::binary>>}} when device != peer_device, &1)
    )
    |> Enum.map(fn {{_, device}, %{identity: identity}} -> {device, identity} end)
    |> Enum.min(fn -> nil end)
  end

  @doc """
  Writes `{peer, generation, state, identity}` rows, each the next generation of what is there.

  The further columns, `:renew_since`, `:established_at` and `:received_at`, are the same in all rows, and stay as they
  are when they are not named. Returns how many were written: fewer than given when another writer was first.
  """
  @spec put(Repo.repo(), Address.t(), [tuple], integer, [{atom, nil | integer}]) ::
          non_neg_integer
  def put(repo, local, rows, now, further \\ []) do
    {new, known} = Enum.split_with(rows, fn {_, generation, _, _} -> generation == 1 end)
    put(repo, local, known, now, further, :known) + put(repo, local, new, now, further, :new)
  end

  defp put(repo, {user, device}, rows, now, further, kind) do
    {names, values} = Enum.unzip(further)
    shared = Enum.map(3..(3 + length(names))//1, &"$#{&1}")

    rows
    |> SQL.chunks()
    |> Enum.reduce(0, fn chunk, written ->
      values_of_rows =
        SQL.values(length(chunk), length(shared) + 2, 5, fn own ->
          ["$1", "$2"] ++ own ++ ["$3" | shared]
        end)

      sql = """
      INSERT INTO kith.signal_sessions
        (user_id, device_id, peer_id, peer_device_id, generation, state, identity, created_at,
         #{Enum.join([:updated_at | names], ", ")})
      VALUES #{values_of_rows}
      ON CONFLICT (user_id, device_id, peer_id, peer_device_id) #{on_conflict(kind, names)}
      """

      own =
        Enum.flat_map(chunk, fn {{peer, peer_device}, generation, state, identity} ->
          [peer, peer_device, generation, blob(state), blob(identity)]
        end)

      written + Repo.execute(repo, sql, [user, device, now | values] ++ own)
    end)
  end

  # A row that was not there was not locked either. To wait for one that somebody has made meanwhile, with others held
  # already, is how two writers wait for each other.
  defp on_conflict(:new, _names), do: "DO NOTHING"

  defp on_conflict(:known, names) do
    """
    DO UPDATE SET
      generation = excluded.generation, state = excluded.state, identity = excluded.identity,
      updated_at = excluded.updated_at#{Enum.map_join(names, &", #{&1} = excluded.#{&1}")}
    WHERE signal_sessions.generation = excluded.generation - 1
    """
  end

  @doc """
  Marks sessions: the next message to each of the peers starts a new one.

  The archived ones too, since a late message makes one of them the current session again.
  """
  def renew(repo, {user, device}, peers, now) do
    for {peer, peer_device} <- Enum.sort(peers),
        {table, current} <- [
          signal_sessions: "AND state IS NOT NULL",
          signal_archived_sessions: ""
        ] do
      sql = """
      UPDATE kith.#{table} SET renew_since = $5 WHERE #{@pair} #{current} AND renew_since IS NULL
      """

      Repo.execute(repo, sql, [user, device, peer, peer_device, now])
    end

    :ok
  end

  @doc "Marks all sessions there are, and those that may come back. Returns how many of the former."
  def renew_all(repo, now) do
    sql = "UPDATE kith.signal_sessions SET renew_since = $1 WHERE state IS NOT NULL"
    current = Repo.execute(repo, sql, [now])
    Repo.execute(repo, "UPDATE kith.signal_archived_sessions SET renew_since = $1", [now])
    current
  end

  @doc "Writes `{peer, braid}` rows, each in place of the one of before."
  def put_braids(_repo, _local, []), do: :ok

  def put_braids(repo, {user, device}, rows) do
    for chunk <- SQL.chunks(rows) do
      sql = """
      INSERT INTO kith.signal_braids
        (user_id, device_id, peer_id, peer_device_id, session_id, revision, braid)
      VALUES #{SQL.values(length(chunk), 2, 5, fn own -> ["$1", "$2" | own] end)}
      ON CONFLICT (user_id, device_id, peer_id, peer_device_id) DO UPDATE SET
        session_id = excluded.session_id, revision = excluded.revision, braid = excluded.braid
      """

      own =
        Enum.flat_map(chunk, fn {{peer, peer_device}, {session_id, revision, braid}} ->
          [peer, peer_device, {:blob, session_id}, revision, {:blob, braid}]
        end)

      Repo.execute(repo, sql, [user, device | own])
    end

    :ok
  end

  @doc "Deletes the braid of a session that is not the current one any more."
  def delete_braid(repo, local, peer),
    do: Repo.execute(repo, "DELETE FROM kith.signal_braids WHERE #{@pair}", pair(local, peer))

  @doc """
  What is stored of a peer, as the native library takes it.

  The parts that are kept elsewhere are not loaded unless they are given.
  """
  def peer(session, {peer, device}, loaded \\ %{}) do
    %{
      user: peer,
      device: device,
      sibling: nil,
      archive: nil,
      entries: nil,
      chunks: nil,
      prekey: nil,
      signed_prekey: nil,
      kyber_prekey: nil
    }
    |> Map.merge(session)
    |> Map.merge(loaded)
  end

  @doc "Writes what is remembered of the peer and leaves the session as it is."
  def put_identity(repo, local, peer, identity, now) do
    sql = "UPDATE kith.signal_sessions SET identity = $5, updated_at = $6 WHERE #{@pair}"
    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, identity}, now])
  end

  @doc "Ends the session of a pair at a generation. Returns 0 when there is none."
  def drop_state(repo, local, peer, generation, now) do
    sql = """
    UPDATE kith.signal_sessions SET state = NULL, renew_since = NULL, generation = generation + 1, updated_at = $5
    WHERE #{@pair} AND generation = $6 AND state IS NOT NULL
    """

    ended = Repo.execute(repo, sql, pair(local, peer) ++ [now, generation])
    if ended > 0, do: delete_braid(repo, local, peer)
    ended
  end

  @doc "Ends the session of a pair and forgets the identity of the peer."
  def forget(repo, local, peer, now) do
    sql = """
    UPDATE kith.signal_sessions
    SET state = NULL, identity = NULL, generation = generation + 1, updated_at = $5
    WHERE #{@pair} AND (state IS NOT NULL OR identity IS NOT NULL)
    """

    Repo.execute(repo, sql, pair(local, peer) ++ [now])
  end

  @doc "The devices that have a session with a device."
  def partners(repo, {user, device}) do
    sql = """
    SELECT user_id, device_id FROM kith.signal_sessions
    WHERE peer_id = $1 AND peer_device_id = $2 AND state IS NOT NULL ORDER BY user_id, device_id
    """

    for [partner, partner_device] <- Repo.rows(repo, sql, [user, device]),
        do: {partner, partner_device}
  end

  @doc "`{session_id, position, state}` of the archived sessions, the newest first."
  def archive(repo, local, peer) do
    sql = """
    SELECT session_id, position, state FROM kith.signal_archived_sessions WHERE #{@pair}
    ORDER BY position DESC
    """

    for [session_id, position, state] <- Repo.rows(repo, sql, pair(local, peer)),
        do: {session_id, position, state}
  end

  @doc """
  Inserts `{peer, {session_id, position, state}}` rows, and deletes those of each peer that are more than the newest 40.

  `marks` are since when the sessions had to be renewed, by peer: such a session sends no more when it comes back.
  """
  @spec insert_archived(Repo.repo(), Address.t(), [tuple], %{Address.t() => nil | integer}) :: :ok
  def insert_archived(_repo, _local, [], _marks), do: :ok

  def insert_archived(repo, {user, device} = local, rows, marks) do
    for chunk <- SQL.chunks(rows) do
      sql = """
      INSERT INTO kith.signal_archived_sessions
        (user_id, device_id, peer_id, peer_device_id, session_id, position, state, renew_since)
      VALUES #{SQL.values(length(chunk), 2, 6, fn own -> ["$1", "$2" | own] end)}
      ON CONFLICT (user_id, device_id, peer_id, peer_device_id, session_id) DO UPDATE SET
        position = excluded.position, state = excluded.state, renew_since = excluded.renew_since
      """

      own =
        Enum.flat_map(chunk, fn {{peer, peer_device} = address, {session_id, position, state}} ->
          [peer, peer_device, {:blob, session_id}, position, {:blob, state}, marks[address]]
        end)

      Repo.execute(repo, sql, [user, device | own])
    end

    evict_archived(repo, local, Enum.map(rows, &elem(&1, 0)))
  end

  # The engine counts those it is given, and who only writes gives it none.
  defp evict_archived(repo, {user, device} = local, peers) do
    for users <- peers |> Enum.map(&elem(&1, 0)) |> Enum.uniq() |> SQL.chunks() do
      sql = """
      SELECT peer_id, peer_device_id, session_id FROM (
        SELECT peer_id, peer_device_id, session_id,
          ROW_NUMBER() OVER (PARTITION BY peer_id, peer_device_id ORDER BY position DESC) AS place
        FROM kith.signal_archived_sessions
        WHERE user_id = $1 AND device_id = $2 AND peer_id IN (#{SQL.list(3, length(users))})
      ) ranked WHERE place > #{@max_archived}
      """

      for [peer, peer_device, session_id] <- Repo.rows(repo, sql, [user, device | users]),
          {peer, peer_device} in peers do
        delete_archived(repo, local, {peer, peer_device}, session_id)
        delete_entries_of_session(repo, local, {peer, peer_device}, session_id)
      end
    end

    :ok
  end

  @doc "Deletes an archived session. Returns since when it must not send, or nil."
  @spec delete_archived(Repo.repo(), Address.t(), Address.t(), binary) :: nil | integer
  def delete_archived(repo, local, peer, session_id) do
    sql = """
    DELETE FROM kith.signal_archived_sessions WHERE #{@pair} AND session_id = $5
    RETURNING renew_since
    """

    case Repo.rows(repo, sql, pair(local, peer) ++ [{:blob, session_id}]) do
      [[renew_since]] -> renew_since
      [] -> nil
    end
  end

  @doc "`{session_id, group, number, sealed}` of the entries at some positions, in any session of the pair."
  @spec entries_at(Repo.repo(), Address.t(), Address.t(), [position]) :: [tuple]
  def entries_at(repo, local, peer, positions) do
    # Not OR, for which SQLite reads all entries of the pair.
    sql =
      positions
      |> Enum.with_index()
      |> Enum.map_join(" UNION ALL ", fn {_position, at} ->
        """
        SELECT session_id, entry_group, number, entry FROM kith.signal_session_entries
        WHERE #{@pair} AND entry_group = $#{5 + 2 * at} AND number = $#{6 + 2 * at}
        """
      end)

    params = Enum.flat_map(positions, fn {group, number} -> [{:blob, group}, number] end)
    entries(repo, sql, pair(local, peer) ++ params)
  end

  @doc "`{session_id, group, number, sealed}` of all entries of a group, in any session of the pair."
  @spec entries_of(Repo.repo(), Address.t(), Address.t(), group :: binary) :: [tuple]
  def entries_of(repo, local, peer, group) do
    sql = """
    SELECT session_id, entry_group, number, entry FROM kith.signal_session_entries
    WHERE #{@pair} AND entry_group = $5
    """

    entries(repo, sql, pair(local, peer) ++ [{:blob, group}])
  end

  defp entries(repo, sql, params), do: Enum.map(Repo.rows(repo, sql, params), &List.to_tuple/1)

  @doc """
  Writes `{group, number, sealed}` rows, each in place of the one of before.

  Keys of skipped messages have an age. Chunks have none: their session needs them however old they are.
  """
  def put_entries(repo, {user, device}, {peer, peer_device}, session_id, entries, now) do
    for chunk <- SQL.chunks(entries) do
      sql = """
      INSERT INTO kith.signal_session_entries
        (user_id, device_id, peer_id, peer_device_id, session_id, entry_group, number, entry,
         created_at)
      VALUES #{SQL.values(length(chunk), 5, 4, fn own -> ["$1", "$2", "$3", "$4", "$5" | own] end)}
      ON CONFLICT (user_id, device_id, peer_id, peer_device_id, entry_group, number, session_id)
      DO UPDATE SET entry = excluded.entry
      """

      own =
        Enum.flat_map(chunk, fn {group, number, sealed} ->
          [{:blob, group}, number, {:blob, sealed}, if(chunks?(group), do: nil, else: now)]
        end)

      shared = [user, device, peer, peer_device, {:blob, session_id}]
      Repo.execute(repo, sql, shared ++ own)
    end

    :ok
  end

  # As docs/state-format.md says.
  defp chunks?(<<2, _epoch::binary>>), do: true
  defp chunks?(_keys), do: false

  @doc "Deletes the entry of a session at a position."
  def delete_entry(repo, local, peer, session_id, {group, number}) do
    sql = """
    DELETE FROM kith.signal_session_entries
    WHERE #{@pair} AND session_id = $5 AND entry_group = $6 AND number = $7
    """

    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, session_id}, {:blob, group}, number])
  end

  def delete_entries_of_group(repo, local, peer, session_id, group) do
    sql = """
    DELETE FROM kith.signal_session_entries WHERE #{@pair} AND session_id = $5 AND entry_group = $6
    """

    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, session_id}, {:blob, group}])
  end

  def delete_entries_of_session(repo, local, peer, session_id) do
    sql = "DELETE FROM kith.signal_session_entries WHERE #{@pair} AND session_id = $5"
    Repo.execute(repo, sql, pair(local, peer) ++ [{:blob, session_id}])
  end

  @doc """
  Deletes the entries of a group but the `kept` with the highest numbers.

  The state counts entries that were deleted for their age too, so how many must go is known here only.
  """
  def evict_entries(repo, {user, device}, {peer, peer_device}, session_id, {group, kept}) do
    sql = """
    DELETE FROM kith.signal_session_entries
    WHERE #{@pair} AND session_id = $5 AND entry_group = $6 AND number <= (
      SELECT number FROM kith.signal_session_entries
      WHERE user_id = $7 AND device_id = $8 AND peer_id = $9 AND peer_device_id = $10
        AND session_id = $11 AND entry_group = $12
      ORDER BY number DESC LIMIT 1 OFFSET $13
    )
    """

    params = [user, device, peer, peer_device, {:blob, session_id}, {:blob, group}]
    Repo.execute(repo, sql, params ++ params ++ [kept])
  end

  @doc "Deletes what is kept of a pair beside its row."
  def delete_parts(repo, local, peer) do
    for table <- ~w(signal_braids signal_archived_sessions signal_session_entries),
        do: Repo.execute(repo, "DELETE FROM kith.#{table} WHERE #{@pair}", pair(local, peer))

    :ok
  end

  defp pair({user, device}, {peer, peer_device}), do: [user, device, peer, peer_device]

  defp blob(nil), do: nil
  defp blob(bytes), do: {:blob, bytes}
end
