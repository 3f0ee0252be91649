defmodule Kith.Store.Prekeys do
  @moduledoc false
  # signal_prekeys and signal_base_keys. A one-time prekey is claimed when it is handed out, used when a
  # message made from it was opened, and deleted when its grace is over. Signed prekeys and Kyber prekeys of last
  # resort are superseded by newer ones, and deleted when their grace is over.

  alias Kith.Address
  alias Kith.Store.{Repo, SQL}

  @type kind :: :one_time | :signed | :kyber_one_time | :kyber_last_resort

  @typedoc "How many one-time prekeys of each kind can still be handed out."
  @type stock :: %{one_time: non_neg_integer, kyber_one_time: non_neg_integer}

  # The kinds of which each is handed out once.
  @stocked %{"one_time" => :one_time, "kyber_one_time" => :kyber_one_time}
  @none %{one_time: 0, kyber_one_time: 0}

  @in_stock "claimed_at IS NULL AND used_at IS NULL"

  @moved_on """
  next_prekey_id = CASE WHEN next_prekey_id > 15000000 THEN 1 ELSE next_prekey_id + 1000000 END,
  next_kyber_prekey_id =
    CASE WHEN next_kyber_prekey_id > 15000000 THEN 1 ELSE next_kyber_prekey_id + 1000000 END
  """

  @doc "Inserts `{id, public_key, signature | nil, sealed | nil}` rows that are not there yet."
  def insert(repo, {user, device}, kind, prekeys, now) do
    prekeys
    |> SQL.chunks()
    |> Enum.reduce(0, fn chunk, inserted ->
      sql = """
      INSERT INTO kith.signal_prekeys
        (user_id, device_id, kind, prekey_id, public_key, signature, private_key_encrypted, created_at)
      VALUES #{SQL.values(length(chunk), 4, 4, fn own -> ["$1", "$2", "$3"] ++ own ++ ["$4"] end)}
      ON CONFLICT (user_id, device_id, kind, prekey_id) DO NOTHING
      """

      own =
        Enum.flat_map(chunk, fn {id, public_key, signature, sealed} ->
          [id, {:blob, public_key}, blob(signature), blob(sealed)]
        end)

      shared = [user, device, Atom.to_string(kind), now]
      inserted + Repo.execute(repo, sql, shared ++ own)
    end)
  end

  @doc "Writes the one prekey of a kind that a device has whose private keys live elsewhere."
  def replace(repo, {user, device}, kind, {id, public_key, signature}, now) do
    kind = Atom.to_string(kind)

    sql = """
    INSERT INTO kith.signal_prekeys
      (user_id, device_id, kind, prekey_id, public_key, signature, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (user_id, device_id, kind, prekey_id) DO UPDATE SET
      public_key = excluded.public_key, signature = excluded.signature,
      created_at = excluded.created_at
    """

    params = [user, device, kind, id, {:blob, public_key}, {:blob, signature}, now]
    Repo.execute(repo, sql, params)

    sql = """
    DELETE FROM kith.signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind = $3 AND prekey_id <> $4
    """

    Repo.execute(repo, sql, [user, device, kind, id])
  end

  @doc "Hands out the oldest one-time prekey of a kind, once: nil when none is left."
  @spec claim(Repo.repo(), Address.t(), kind, integer) ::
          nil | {non_neg_integer, public_key :: binary, signature :: nil | binary}
  def claim(repo, {user, device}, kind, now) when kind in [:one_time, :kyber_one_time] do
    in_stock = "kind = '#{kind}' AND #{@in_stock}"

    sql = """
    UPDATE kith.signal_prekeys SET claimed_at = $1
    WHERE user_id = $2 AND device_id = $3 AND #{in_stock}
      AND prekey_id = (
        SELECT prekey_id FROM kith.signal_prekeys
        WHERE user_id = $4 AND device_id = $5 AND #{in_stock}
        ORDER BY prekey_id LIMIT 1#{Repo.skip_locked(repo)}
      )
    RETURNING prekey_id, public_key, signature
    """

    case Repo.rows(repo, sql, [now, user, device, user, device]) do
      [] -> nil
      [[id, public_key, signature]] -> {id, public_key, signature}
    end
  end

  @doc "Puts back what was claimed in the same transaction and never left it."
  def release(repo, {user, device}, kind, id) do
    sql = """
    UPDATE kith.signal_prekeys SET claimed_at = NULL
    WHERE user_id = $1 AND device_id = $2 AND kind = $3 AND prekey_id = $4
    """

    Repo.execute(repo, sql, [user, device, Atom.to_string(kind), id])
  end

  @doc "What each device can still hand out."
  @spec stock(Repo.repo(), [Address.t()]) :: %{Address.t() => stock}
  def stock(repo, addresses) do
    users = addresses |> Enum.map(&elem(&1, 0)) |> Enum.uniq()

    sql = """
    SELECT user_id, device_id, kind, COUNT(*) FROM kith.signal_prekeys
    WHERE user_id IN (#{SQL.list(1, length(users))})
      AND kind IN ('one_time', 'kyber_one_time') AND #{@in_stock}
    GROUP BY user_id, device_id, kind
    """

    for [user, device, kind, count] <- Repo.rows(repo, sql, users),
        kind = @stocked[kind],
        reduce: Map.new(addresses, &{&1, @none}) do
      stock ->
        Map.update(stock, {user, device}, %{@none | kind => count}, &%{&1 | kind => count})
    end
  end

  @doc "What has become of a prekey: `:held`, `:used`, `:absent`, or `:none` for no id."
  def condition(_repo, _address, _kinds, nil), do: :none

  def condition(repo, {user, device}, kinds, id) do
    kinds = Enum.map_join(kinds, ", ", &"'#{&1}'")

    sql = """
    SELECT used_at FROM kith.signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind IN (#{kinds}) AND prekey_id = $3
      AND private_key_encrypted IS NOT NULL
    """

    case Repo.rows(repo, sql, [user, device, id]) do
      [] -> :absent
      [[nil]] -> :held
      [[_used_at]] -> :used
    end
  end

  @doc "Some of the devices with keys here that have fewer one-time prekeys than that, with how many."
  @spec low(Repo.repo(), non_neg_integer, pos_integer) :: [{Address.t(), non_neg_integer}]
  def low(repo, below, limit) do
    sql = """
    SELECT i.user_id, i.device_id, COUNT(p.prekey_id)
    FROM kith.signal_identity_keys i
    LEFT JOIN kith.signal_prekeys p ON p.user_id = i.user_id AND p.device_id = i.device_id
      AND p.kind = 'one_time' AND p.claimed_at IS NULL AND p.used_at IS NULL
    WHERE i.private_key_encrypted IS NOT NULL
    GROUP BY i.user_id, i.device_id HAVING COUNT(p.prekey_id) < $1
    ORDER BY i.user_id, i.device_id LIMIT $2
    """

    for [user, device, count] <- Repo.rows(repo, sql, [below, limit]), do: {{user, device}, count}
  end

  @doc """
  The sealed private halves a message names: `{one_time | nil, signed | nil, {kind, sealed} | nil}`, the last of a
  Kyber prekey.
  """
  def private_halves(repo, {user, device}, ids, used_after) do
    # Not OR, for which SQLite reads all prekeys of the device. -1 is no id: a message without a one-time prekey
    # asks for none.
    sql =
      Enum.map_join(
        [one_time: "$4", signed: "$5", kyber_one_time: "$6", kyber_last_resort: "$6"],
        " UNION ALL ",
        fn {kind, id} ->
          """
          SELECT kind, private_key_encrypted FROM kith.signal_prekeys
          WHERE user_id = $1 AND device_id = $2 AND kind = '#{kind}' AND prekey_id = #{id}
            AND (used_at IS NULL OR used_at > $3)
          """
        end
      )

    params = [
      user,
      device,
      used_after,
      ids.prekey_id || -1,
      ids.signed_prekey_id || -1,
      ids.kyber_prekey_id || -1
    ]

    found = Map.new(Repo.rows(repo, sql, params), fn [kind, sealed] -> {kind, sealed} end)

    kyber =
      case found do
        %{"kyber_one_time" => sealed} -> {:kyber_one_time, sealed}
        %{"kyber_last_resort" => sealed} -> {:kyber_last_resort, sealed}
        %{} -> nil
      end

    {found["one_time"], found["signed"], kyber}
  end

  @doc "Marks a one-time prekey. One of last resort stays as it is."
  def mark_used(repo, {user, device}, kind, id, now) when kind in [:one_time, :kyber_one_time] do
    sql = """
    UPDATE kith.signal_prekeys SET used_at = $5
    WHERE user_id = $1 AND device_id = $2 AND kind = $3 AND prekey_id = $4 AND used_at IS NULL
    """

    Repo.execute(repo, sql, [user, device, Atom.to_string(kind), id, now])
  end

  @doc "Ids and ages of the signed prekey and the Kyber prekey of last resort that are handed out now, by kind."
  @spec current(Repo.repo(), Address.t()) :: %{
          kind => {id :: non_neg_integer, created_at :: integer}
        }
  def current(repo, {user, device}) do
    sql = """
    SELECT kind, prekey_id, created_at FROM kith.signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind IN ('signed', 'kyber_last_resort')
      AND superseded_at IS NULL
    """

    for [kind, id, created_at] <- Repo.rows(repo, sql, [user, device]), into: %{} do
      {if(kind == "signed", do: :signed, else: :kyber_last_resort), {id, created_at}}
    end
  end

  @doc "Hands a prekey out no more. Returns 0 when another process was first."
  def supersede(repo, {user, device}, kind, id, now)
      when kind in [:signed, :kyber_last_resort] do
    sql = """
    UPDATE kith.signal_prekeys SET superseded_at = $5
    WHERE user_id = $1 AND device_id = $2 AND kind = $3 AND prekey_id = $4
      AND superseded_at IS NULL
    """

    Repo.execute(repo, sql, [user, device, Atom.to_string(kind), id, now])
  end

  @doc "Deletes the private half of a superseded prekey: from now on it opens nothing."
  def erase(repo, {user, device}, kind, id) do
    sql = """
    UPDATE kith.signal_prekeys SET private_key_encrypted = NULL
    WHERE user_id = $1 AND device_id = $2 AND kind = $3 AND prekey_id = $4
      AND superseded_at IS NOT NULL
    """

    Repo.execute(repo, sql, [user, device, Atom.to_string(kind), id])
  end

  @doc "Deletes a superseded prekey, unless a base key still belongs to it."
  def delete_superseded(repo, {user, device}, kind, id) do
    sql = """
    DELETE FROM kith.signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind = $3 AND prekey_id = $4
      AND superseded_at IS NOT NULL
      AND (kind <> 'signed' OR NOT EXISTS (
        SELECT 1 FROM kith.signal_base_keys WHERE user_id = $5 AND device_id = $6 AND signed_prekey_id = $7
      ))
    """

    Repo.execute(repo, sql, [user, device, Atom.to_string(kind), id, user, device, id])
  end

  @doc "Since when a device has had the oldest of the signed prekeys that still open messages."
  @spec oldest_signed(Repo.repo(), Address.t()) :: nil | integer
  def oldest_signed(repo, {user, device}) do
    sql = """
    SELECT MIN(created_at) FROM kith.signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind = 'signed' AND private_key_encrypted IS NOT NULL
    """

    [[created_at]] = Repo.rows(repo, sql, [user, device])
    created_at
  end

  @doc "Deletes one-time prekeys that were used before then."
  def delete_used(repo, {user, device}, before) do
    sql = """
    DELETE FROM kith.signal_prekeys WHERE user_id = $1 AND device_id = $2 AND used_at <= $3
    """

    Repo.execute(repo, sql, [user, device, before])
  end

  @doc """
  Hands out none of the one-time prekeys there are any more, and gives new ones other ids than those of before.

  They still open what was made from them.
  """
  def withdraw_all(repo, now) do
    sql = """
    UPDATE kith.signal_prekeys SET claimed_at = $1
    WHERE kind IN ('one_time', 'kyber_one_time') AND #{@in_stock}
    """

    Repo.execute(repo, sql, [now])

    # As far as anyone can have come since; ids have 24 bits.
    Repo.execute(repo, "UPDATE kith.signal_identity_keys SET #{@moved_on}", [])
  end

  @doc "Gives new prekeys of a user other ids than those of before."
  def skip_ids(repo, user),
    do:
      Repo.execute(
        repo,
        "UPDATE kith.signal_identity_keys SET #{@moved_on} WHERE user_id = $1",
        [user]
      )

  @doc "Deletes the Kyber prekeys of a device that has none any more."
  def delete_kyber(repo, {user, device}) do
    sql = """
    DELETE FROM kith.signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind IN ('kyber_one_time', 'kyber_last_resort')
    """

    Repo.execute(repo, sql, [user, device])
  end

  def delete_all(repo, {user, device}) do
    Repo.execute(repo, "DELETE FROM kith.signal_prekeys WHERE user_id = $1 AND device_id = $2", [
      user,
      device
    ])
  end

  @doc "Whether a session was started from this base key before."
  def base_key_used?(repo, {user, device}, base_key) do
    sql =
      "SELECT 1 FROM kith.signal_base_keys WHERE user_id = $1 AND device_id = $2 AND base_key = $3"

    Repo.rows(repo, sql, [user, device, {:blob, base_key}]) != []
  end

  @doc "Returns 0 when a session was started from this base key before."
  def insert_base_key(repo, {user, device}, {signed_prekey_id, base_key}, now) do
    sql = """
    INSERT INTO kith.signal_base_keys (user_id, device_id, base_key, signed_prekey_id, created_at)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (user_id, device_id, base_key) DO NOTHING
    """

    Repo.execute(repo, sql, [user, device, {:blob, base_key}, signed_prekey_id, now])
  end

  defp blob(nil), do: nil
  defp blob(bytes), do: {:blob, bytes}
end
