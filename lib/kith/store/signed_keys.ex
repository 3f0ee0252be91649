defmodule Kith.Store.SignedKeys do
  @moduledoc false
  # signed_keys, signed_challenges and signed_nonces: public keys of clients, what they prove to have, and which of
  # their messages were accepted.

  alias Kith.Signed.Key
  alias Kith.Store.Repo

  @columns "key_id, owner, public_key, permissions, created_at, expires_at, revoked_at, replaced_by"

  @spec fetch(Repo.repo(), String.t()) :: nil | Key.t()
  def fetch(repo, key_id) do
    sql = "SELECT #{@columns} FROM kith.signed_keys WHERE key_id = $1"
    for row <- Repo.rows(repo, sql, [key_id]), reduce: nil, do: (nil -> key(row))
  end

  @doc "The same, and nobody changes it until the transaction ends."
  @spec hold(Repo.repo(), String.t()) :: nil | Key.t()
  def hold(repo, key_id) do
    Repo.lock_rows(repo, "SELECT 1 FROM kith.signed_keys WHERE key_id = $1", [key_id])
    fetch(repo, key_id)
  end

  @spec of_owner(Repo.repo(), String.t()) :: [Key.t()]
  def of_owner(repo, owner) do
    sql = "SELECT #{@columns} FROM kith.signed_keys WHERE owner = $1 ORDER BY created_at, key_id"
    for row <- Repo.rows(repo, sql, [owner]), do: key(row)
  end

  @doc "Whether it was not there."
  @spec insert?(Repo.repo(), Key.t()) :: boolean
  def insert?(repo, %Key{} = key) do
    sql = """
    INSERT INTO kith.signed_keys
      (key_id, owner, public_key, permissions, created_at, expires_at, window_started_at, window_count)
    VALUES ($1, $2, $3, $4, $5, $6, $5, 0)
    ON CONFLICT (key_id) DO NOTHING
    """

    Repo.execute(repo, sql, [
      key.id,
      key.owner,
      {:blob, key.public_key},
      Enum.join(key.permissions, "\n"),
      key.created_at,
      key.expires_at
    ]) == 1
  end

  def permit(repo, key_id, permissions) do
    sql = "UPDATE kith.signed_keys SET permissions = $2 WHERE key_id = $1"
    Repo.execute(repo, sql, [key_id, Enum.join(permissions, "\n")])
  end

  @doc "The first revocation counts."
  def revoke(repo, key_id, now) do
    sql = "UPDATE kith.signed_keys SET revoked_at = $2 WHERE key_id = $1 AND revoked_at IS NULL"

    Repo.execute(repo, sql, [key_id, now])
  end

  def replace(repo, key_id, by, expires_at) do
    sql = "UPDATE kith.signed_keys SET replaced_by = $2, expires_at = $3 WHERE key_id = $1"
    Repo.execute(repo, sql, [key_id, by, expires_at])
  end

  @doc "The one challenge of an owner; it replaces the one before."
  def put_challenge(repo, owner, challenge, expires_at) do
    sql = """
    INSERT INTO kith.signed_challenges (owner, challenge, expires_at) VALUES ($1, $2, $3)
    ON CONFLICT (owner) DO UPDATE SET challenge = excluded.challenge, expires_at = excluded.expires_at
    """

    Repo.execute(repo, sql, [owner, {:blob, challenge}, expires_at])
  end

  @doc "Whether the challenge is the owner's. It is not any more afterwards."
  @spec take_challenge?(Repo.repo(), String.t(), binary, integer) :: boolean
  def take_challenge?(repo, owner, challenge, now) do
    sql = """
    DELETE FROM kith.signed_challenges WHERE owner = $1 AND challenge = $2 AND expires_at > $3
    """

    Repo.execute(repo, sql, [owner, {:blob, challenge}, now]) == 1
  end

  @spec seen?(Repo.repo(), String.t(), binary) :: boolean
  def seen?(repo, key_id, nonce) do
    sql = "SELECT 1 FROM kith.signed_nonces WHERE key_id = $1 AND nonce = $2"
    Repo.rows(repo, sql, [key_id, {:blob, nonce}]) != []
  end

  @doc """
  Counts one more message of a key, unless it has been revoked, has expired, or the limit of the window is reached. A window that
  is over begins anew. Until the transaction ends no other message of the key is counted.
  """
  @spec count?(Repo.repo(), String.t(), %{now: integer, window: integer, limit: integer}) ::
          boolean
  def count?(repo, key_id, %{now: now, window: window, limit: limit}) do
    sql = """
    UPDATE kith.signed_keys SET
      window_count = CASE WHEN window_started_at <= $3 THEN 1 ELSE window_count + 1 END,
      window_started_at = CASE WHEN window_started_at <= $3 THEN $2 ELSE window_started_at END
    WHERE key_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
      AND (window_started_at <= $3 OR window_count < $4)
    """

    Repo.execute(repo, sql, [key_id, now, now - window, limit]) == 1
  end

  @doc "Whether the nonce is new."
  @spec insert_nonce?(Repo.repo(), String.t(), binary, integer) :: boolean
  def insert_nonce?(repo, key_id, nonce, expires_at) do
    sql = """
    INSERT INTO kith.signed_nonces (key_id, nonce, expires_at) VALUES ($1, $2, $3)
    ON CONFLICT (key_id, nonce) DO NOTHING
    """

    Repo.execute(repo, sql, [key_id, {:blob, nonce}, expires_at]) == 1
  end

  @doc "Of one key: two verifications that delete the same rows would wait for each other. Maintenance does the rest."
  def forget_nonces(repo, key_id, now) do
    sql = "DELETE FROM kith.signed_nonces WHERE key_id = $1 AND expires_at < $2"
    Repo.execute(repo, sql, [key_id, now])
  end

  defp key([id, owner, public_key, permissions, created_at, expires_at, revoked_at, replaced_by]) do
    %Key{
      id: id,
      owner: owner,
      public_key: public_key,
      permissions: String.split(permissions, "\n", trim: true),
      created_at: created_at,
      expires_at: expires_at,
      revoked_at: revoked_at,
      replaced_by: replaced_by
    }
  end
end
