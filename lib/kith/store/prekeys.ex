defmodule Kith.Store.Prekeys do
  @moduledoc false
  # signal_prekeys and signal_base_keys. A one-time prekey is claimed when it is handed out, used when a
  # message made from it was opened, and deleted when its grace is over.

  alias Kith.Address
  alias Kith.Store.{Repo, SQL}

  @in_stock "kind = 'one_time' AND claimed_at IS NULL AND used_at IS NULL"

  @doc "Inserts `{id, public_key, signature | nil, sealed | nil}` rows that are not there yet."
  def insert(repo, {user, device}, kind, prekeys, now) do
    prekeys
    |> SQL.chunks()
    |> Enum.reduce(0, fn chunk, inserted ->
      sql = """
      INSERT INTO signal_prekeys
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

  @doc "Writes the one signed prekey of a device whose private keys live elsewhere."
  def replace_signed(repo, {user, device}, {id, public_key, signature}, now) do
    sql = """
    INSERT INTO signal_prekeys
      (user_id, device_id, kind, prekey_id, public_key, signature, created_at)
    VALUES ($1, $2, 'signed', $3, $4, $5, $6)
    ON CONFLICT (user_id, device_id, kind, prekey_id) DO UPDATE SET
      public_key = excluded.public_key, signature = excluded.signature,
      created_at = excluded.created_at
    """

    params = [user, device, id, {:blob, public_key}, {:blob, signature}, now]
    Repo.execute(repo, sql, params)

    sql = """
    DELETE FROM signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind = 'signed' AND prekey_id <> $3
    """

    Repo.execute(repo, sql, [user, device, id])
  end

  @doc "Hands out the oldest one-time prekey, once: nil when none is left."
  @spec claim(Repo.repo(), Address.t(), integer) :: nil | {non_neg_integer, binary}
  def claim(repo, {user, device}, now) do
    sql = """
    UPDATE signal_prekeys SET claimed_at = $1
    WHERE user_id = $2 AND device_id = $3 AND #{@in_stock}
      AND prekey_id = (
        SELECT prekey_id FROM signal_prekeys
        WHERE user_id = $4 AND device_id = $5 AND #{@in_stock}
        ORDER BY prekey_id LIMIT 1#{Repo.lock(repo, :free_rows)}
      )
    RETURNING prekey_id, public_key
    """

    case Repo.rows(repo, sql, [now, user, device, user, device]) do
      [] -> nil
      [[id, public_key]] -> {id, public_key}
    end
  end

  @doc "Puts back what was claimed in the same transaction and never left it."
  def release(repo, {user, device}, id) do
    sql = """
    UPDATE signal_prekeys SET claimed_at = NULL
    WHERE user_id = $1 AND device_id = $2 AND kind = 'one_time' AND prekey_id = $3
    """

    Repo.execute(repo, sql, [user, device, id])
  end

  @doc "How many one-time prekeys each device can still hand out. Those with none are missing."
  @spec stock(Repo.repo(), [Address.t()]) :: %{Address.t() => pos_integer}
  def stock(repo, addresses) do
    users = addresses |> Enum.map(&elem(&1, 0)) |> Enum.uniq()

    sql = """
    SELECT user_id, device_id, COUNT(*) FROM signal_prekeys
    WHERE user_id IN (#{SQL.list(1, length(users))}) AND #{@in_stock}
    GROUP BY user_id, device_id
    """

    for [user, device, count] <- Repo.rows(repo, sql, users),
        into: %{},
        do: {{user, device}, count}
  end

  @doc "The sealed private halves a message names, as `{one_time | nil, signed | nil}`."
  def private_halves(repo, {user, device}, prekey_id, signed_prekey_id, used_after) do
    sql = """
    SELECT kind, private_key_encrypted FROM signal_prekeys
    WHERE user_id = $1 AND device_id = $2
      AND (kind = 'one_time' AND prekey_id = $3 AND (used_at IS NULL OR used_at > $4)
        OR kind = 'signed' AND prekey_id = $5)
    """

    # -1 is no id: a message without a one-time prekey asks for none.
    params = [user, device, prekey_id || -1, used_after, signed_prekey_id || -1]
    found = Map.new(Repo.rows(repo, sql, params), fn [kind, sealed] -> {kind, sealed} end)
    {found["one_time"], found["signed"]}
  end

  def mark_used(repo, {user, device}, id, now) do
    sql = """
    UPDATE signal_prekeys SET used_at = $4
    WHERE user_id = $1 AND device_id = $2 AND kind = 'one_time' AND prekey_id = $3
      AND used_at IS NULL
    """

    Repo.execute(repo, sql, [user, device, id, now])
  end

  @doc "Deletes one-time prekeys that were used before then."
  def delete_used(repo, {user, device}, before) do
    sql = """
    DELETE FROM signal_prekeys
    WHERE user_id = $1 AND device_id = $2 AND kind = 'one_time' AND used_at <= $3
    """

    Repo.execute(repo, sql, [user, device, before])
  end

  def delete_all(repo, {user, device}) do
    Repo.execute(repo, "DELETE FROM signal_prekeys WHERE user_id = $1 AND device_id = $2", [
      user,
      device
    ])
  end

  @doc "Whether a session was started from this base key before."
  def base_key_used?(repo, {user, device}, base_key) do
    sql = "SELECT 1 FROM signal_base_keys WHERE user_id = $1 AND device_id = $2 AND base_key = $3"
    Repo.rows(repo, sql, [user, device, {:blob, base_key}]) != []
  end

  @doc "Returns 0 when a session was started from this base key before."
  def insert_base_key(repo, {user, device}, {signed_prekey_id, base_key}, now) do
    sql = """
    INSERT INTO signal_base_keys (user_id, device_id, base_key, signed_prekey_id, created_at)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (user_id, device_id, base_key) DO NOTHING
    """

    Repo.execute(repo, sql, [user, device, {:blob, base_key}, signed_prekey_id, now])
  end

  defp blob(nil), do: nil
  defp blob(bytes), do: {:blob, bytes}
end
