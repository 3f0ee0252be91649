defmodule Kith.Store.Maintenance do
  @moduledoc false
  # signal_maintenance, and what maintenance finds and deletes over all users.
  #
  # Every statement is about a batch, since SQLite's one writer is not to be kept waiting. Rows that others have
  # locked are left for the next pass, so that nothing here waits while it holds a lock.

  alias Kith.Address
  alias Kith.Store.Repo

  @typedoc "A device of the walk over all of them, with the times at which its newest prekeys were made."
  @type device :: %{
          address: Address.t(),
          local: boolean,
          signed: nil | integer,
          last_resort: nil | integer
        }

  @type claim :: %{owner: String.t(), now: integer, until: integer, finished_before: integer}

  # By what the rows of a batch are told apart.
  @keys %{
    "signal_base_keys" => "user_id, device_id, base_key",
    "signal_prekeys" => "user_id, device_id, kind, prekey_id",
    "signal_recoveries" => "user_id, device_id, peer_id, peer_device_id, kind",
    "signal_session_entries" =>
      "user_id, device_id, peer_id, peer_device_id, entry_group, number, session_id",
    "signed_challenges" => "owner",
    "signed_nonces" => "key_id, nonce"
  }

  # Before all users and devices.
  @start {"", 0}

  @doc """
  Claims a task, unless another node has it, or has finished it later than `:finished_before`.

  Returns 1 or 0. A time that is still to come was written by a clock that went wrong, and does not hold.
  """
  @spec claim(Repo.repo(), atom, claim) :: 0 | 1
  def claim(repo, task, %{now: now, until: until} = claim) do
    sql = """
    INSERT INTO kith.signal_maintenance (task, claimed_by, claimed_until) VALUES ($1, $2, $3)
    ON CONFLICT (task) DO UPDATE SET
      claimed_by = excluded.claimed_by, claimed_until = excluded.claimed_until
    WHERE (signal_maintenance.claimed_until IS NULL OR signal_maintenance.claimed_until <= $4
        OR signal_maintenance.claimed_until > $5)
      AND (signal_maintenance.finished_at IS NULL OR signal_maintenance.finished_at <= $6
        OR signal_maintenance.finished_at > $7)
    """

    far = until + 10 * (until - now)
    far_finished = now + 10 * (until - now)

    Repo.execute(repo, sql, [
      Atom.to_string(task),
      claim.owner,
      until,
      now,
      far,
      claim.finished_before,
      far_finished
    ])
  end

  @doc "Claims for longer what is claimed. Returns 0 when another node has taken it over."
  def renew(repo, task, owner, until) do
    sql =
      "UPDATE kith.signal_maintenance SET claimed_until = $3 WHERE task = $1 AND claimed_by = $2"

    Repo.execute(repo, sql, [Atom.to_string(task), owner, until])
  end

  @doc "Gives a claim back, finished at a time or, with nil, for somebody else to try."
  def give_back(repo, task, owner, finished_at) do
    sql = """
    UPDATE kith.signal_maintenance
    SET claimed_by = NULL, claimed_until = NULL, finished_at = COALESCE($3, finished_at)
    WHERE task = $1 AND claimed_by = $2
    """

    Repo.execute(repo, sql, [Atom.to_string(task), owner, finished_at])
  end

  @doc "The next devices in the order of their addresses, behind one or from the start."
  @spec devices(Repo.repo(), nil | Address.t(), pos_integer) :: [device]
  def devices(repo, behind, limit) do
    {user, device} = behind || @start

    sql = """
    SELECT i.user_id, i.device_id, i.local, p.kind, p.created_at
    FROM (
      SELECT user_id, device_id, CASE WHEN private_key_encrypted IS NULL THEN 0 ELSE 1 END AS local
      FROM kith.signal_identity_keys WHERE (user_id, device_id) > ($1, $2)
      ORDER BY user_id, device_id LIMIT $3
    ) i
    LEFT JOIN kith.signal_prekeys p ON p.user_id = i.user_id AND p.device_id = i.device_id
      AND p.kind IN ('signed', 'kyber_last_resort') AND p.superseded_at IS NULL
    ORDER BY i.user_id, i.device_id
    """

    repo
    |> Repo.rows(sql, [user, device, limit])
    |> Enum.chunk_by(fn [user, device | _] -> {user, device} end)
    |> Enum.map(fn [[user, device, local | _] | _] = rows ->
      made = Map.new(rows, fn [_, _, _, kind, created_at] -> {kind, created_at} end)

      %{
        address: {user, device},
        local: local == 1,
        signed: made["signed"],
        last_resort: made["kyber_last_resort"]
      }
    end)
  end

  @doc "Local devices with a signed prekey made before then, the oldest first: `{made, user, device}` behind one."
  def due_for_rotation(repo, older_than, behind, limit) do
    {made, user, device} = behind || {0, "", 0}

    sql = """
    SELECT created_at, user_id, device_id FROM kith.signal_prekeys
    WHERE kind = 'signed' AND superseded_at IS NULL AND private_key_encrypted IS NOT NULL
      AND created_at <= $1 AND (created_at, user_id, device_id) > ($2, $3, $4)
    ORDER BY created_at, user_id, device_id LIMIT $5
    """

    for row <- Repo.rows(repo, sql, [older_than, made, user, device, limit]),
        do: List.to_tuple(row)
  end

  @doc "`{address, kind, id}` of signed prekeys and Kyber prekeys of last resort superseded before then."
  def superseded(repo, before, limit) do
    sql = """
    SELECT user_id, device_id, kind, prekey_id FROM kith.signal_prekeys
    WHERE superseded_at <= $1 ORDER BY superseded_at LIMIT $2
    """

    for [user, device, kind, id] <- Repo.rows(repo, sql, [before, limit]),
        do: {{user, device}, if(kind == "signed", do: :signed, else: :kyber_last_resort), id}
  end

  @doc "Deletes the base keys that belong to a signed prekey."
  def delete_base_keys(repo, {user, device}, signed_prekey_id, limit) do
    where = "user_id = $1 AND device_id = $2 AND signed_prekey_id = $3"
    delete(repo, "signal_base_keys", limit, where, [user, device, signed_prekey_id])
  end

  @doc "Deletes one-time prekeys of a device that were handed out before then, and never used."
  def delete_unused(repo, {user, device}, before, limit) do
    where =
      "user_id = $1 AND device_id = $2 AND kind IN ('one_time', 'kyber_one_time') AND claimed_at < $3 AND used_at IS NULL"

    delete(repo, "signal_prekeys", limit, where, [user, device, before])
  end

  @doc "Deletes one-time prekeys that were used before then."
  def delete_used(repo, before, limit) do
    where = "used_at <= $1"
    delete(repo, "signal_prekeys", limit, where, [before])
  end

  @doc """
  Deletes keys of skipped messages that were stored before then.

  Of the two keys of a message that of the ratchet goes first: without it the message is a duplicate, without the
  post-quantum one it would look tampered with.
  """
  def delete_skipped_keys(repo, kind, before, limit) when kind in [:ratchet, :post_quantum] do
    comparison = if kind == :ratchet, do: "=", else: "<>"

    where = "created_at <= $1 AND length(entry_group) #{comparison} 33"
    delete(repo, "signal_session_entries", limit, where, [before])
  end

  @doc "Deletes counts of recoveries in a window that began before then."
  def delete_recoveries(repo, before, limit) do
    where = "window_started_at <= $1"
    delete(repo, "signal_recoveries", limit, where, [before])
  end

  @doc "Deletes nonces of signed messages that are not accepted any more anyway."
  def delete_nonces(repo, now, limit),
    do: delete(repo, "signed_nonces", limit, "expires_at < $1", [now])

  @doc "Deletes challenges that have run out."
  def delete_challenges(repo, now, limit),
    do: delete(repo, "signed_challenges", limit, "expires_at < $1", [now])

  # MATERIALIZED, or PostgreSQL might find the rows more than once, and others each time.
  defp delete(repo, table, limit, where, params) do
    key = @keys[table]

    sql = """
    WITH doomed AS MATERIALIZED (
      SELECT #{key} FROM kith.#{table} WHERE #{where} LIMIT #{limit}#{Repo.skip_locked(repo)}
    )
    DELETE FROM kith.#{table} WHERE (#{key}) IN (SELECT #{key} FROM doomed)
    """

    Repo.execute(repo, sql, params)
  end

  @doc """
  The next session rows in the order of their keys: `{local, peer, due?}`.

  Due are sessions made here before then, of which no message was ever opened. They are not searched by an index: it
  would have to be written with every message.
  """
  @spec sessions(Repo.repo(), integer, nil | {Address.t(), Address.t()}, pos_integer) ::
          [{Address.t(), Address.t(), boolean}]
  def sessions(repo, established_before, behind, limit) do
    {{user, device}, {peer, peer_device}} = behind || {@start, @start}

    sql = """
    SELECT user_id, device_id, peer_id, peer_device_id, #{due("$1")} FROM kith.signal_sessions
    WHERE (user_id, device_id, peer_id, peer_device_id) > ($2, $3, $4, $5)
    ORDER BY user_id, device_id, peer_id, peer_device_id LIMIT $6
    """

    params = [established_before, user, device, peer, peer_device, limit]

    for [user, device, peer, peer_device, due] <- Repo.rows(repo, sql, params),
        do: {{user, device}, {peer, peer_device}, due == 1}
  end

  @doc "Since when the session of a pair waits for an answer, if that was before then. Locks the row."
  @spec unanswered(Repo.repo(), Address.t(), Address.t(), integer) :: nil | integer
  def unanswered(repo, {user, device}, {peer, peer_device}, established_before) do
    pair = "user_id = $1 AND device_id = $2 AND peer_id = $3 AND peer_device_id = $4"
    params = [user, device, peer, peer_device]
    Repo.lock_rows(repo, "SELECT generation FROM kith.signal_sessions WHERE #{pair}", params)

    sql = """
    SELECT established_at FROM kith.signal_sessions WHERE #{pair} AND 1 = #{due("$5")}
    """

    case Repo.rows(repo, sql, params ++ [established_before]) do
      [] -> nil
      [[established_at]] -> established_at
    end
  end

  defp due(before) do
    "CASE WHEN state IS NOT NULL AND received_at IS NULL AND established_at <= #{before} THEN 1 ELSE 0 END"
  end
end
