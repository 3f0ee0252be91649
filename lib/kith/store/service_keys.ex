defmodule Kith.Store.ServiceKeys do
  @moduledoc false
  # signed_service_keys: the keys of the service itself. One of each purpose is current, the others are retired.

  alias Kith.Store.Repo

  @type key :: %{
          id: String.t(),
          public_key: binary,
          wrapped: binary,
          created_at: integer,
          retired_at: nil | integer,
          endorsed_by: nil | String.t(),
          endorsement: nil | binary
        }

  @columns "key_id, public_key, private_key_encrypted, created_at, retired_at, endorsed_by, endorsement"

  @spec current(Repo.repo(), atom) :: nil | key
  def current(repo, purpose) do
    sql =
      "SELECT #{@columns} FROM kith.signed_service_keys WHERE purpose = $1 AND retired_at IS NULL"

    for row <- Repo.rows(repo, sql, [Atom.to_string(purpose)]), reduce: nil, do: (nil -> key(row))
  end

  @spec fetch(Repo.repo(), atom, String.t()) :: nil | key
  def fetch(repo, purpose, key_id) do
    sql = "SELECT #{@columns} FROM kith.signed_service_keys WHERE purpose = $1 AND key_id = $2"

    for row <- Repo.rows(repo, sql, [Atom.to_string(purpose), key_id]),
        reduce: nil,
        do: (nil -> key(row))
  end

  @doc "All of a purpose, the newest first."
  @spec all(Repo.repo(), atom) :: [key]
  def all(repo, purpose) do
    sql = """
    SELECT #{@columns} FROM kith.signed_service_keys WHERE purpose = $1
    ORDER BY CASE WHEN retired_at IS NULL THEN 0 ELSE 1 END, retired_at DESC, key_id
    """

    for row <- Repo.rows(repo, sql, [Atom.to_string(purpose)]), do: key(row)
  end

  @doc "Whether it is the current one now; where another is, nothing is written."
  @spec insert?(Repo.repo(), atom, key) :: boolean
  def insert?(repo, purpose, key) do
    sql = """
    INSERT INTO kith.signed_service_keys
      (key_id, purpose, public_key, private_key_encrypted, created_at, endorsed_by, endorsement)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT DO NOTHING
    """

    Repo.execute(repo, sql, [
      key.id,
      Atom.to_string(purpose),
      {:blob, key.public_key},
      {:blob, key.wrapped},
      key.created_at,
      key.endorsed_by,
      key.endorsement && {:blob, key.endorsement}
    ]) == 1
  end

  @doc "Whether it was the current one."
  @spec retire?(Repo.repo(), String.t(), integer) :: boolean
  def retire?(repo, key_id, now) do
    sql = """
    UPDATE kith.signed_service_keys SET retired_at = $2 WHERE key_id = $1 AND retired_at IS NULL
    """

    Repo.execute(repo, sql, [key_id, now]) == 1
  end

  @doc "Wrapped keys of every purpose, some at a time."
  @spec wrapped(Repo.repo(), String.t(), pos_integer) ::
          [{String.t(), {:signing | :agreement, binary, binary}}]
  def wrapped(repo, after_id, limit) do
    sql = """
    SELECT key_id, purpose, public_key, private_key_encrypted FROM kith.signed_service_keys
    WHERE key_id > $1 ORDER BY key_id LIMIT $2
    """

    for [id, purpose, public_key, wrapped] <- Repo.rows(repo, sql, [after_id, limit]),
        do: {id, {purpose(purpose), public_key, wrapped}}
  end

  defp purpose("signing"), do: :signing
  defp purpose("agreement"), do: :agreement

  @doc "Wraps a key anew, unless somebody else has."
  @spec rewrap(Repo.repo(), String.t(), binary, binary) :: non_neg_integer
  def rewrap(repo, key_id, before, wrapped) do
    sql = """
    UPDATE kith.signed_service_keys SET private_key_encrypted = $3
    WHERE key_id = $1 AND private_key_encrypted = $2
    """

    Repo.execute(repo, sql, [key_id, {:blob, before}, {:blob, wrapped}])
  end

  defp key([id, public_key, wrapped, created_at, retired_at, endorsed_by, endorsement]) do
    %{
      id: id,
      public_key: public_key,
      wrapped: wrapped,
      created_at: created_at,
      retired_at: retired_at,
      endorsed_by: endorsed_by,
      endorsement: endorsement
    }
  end
end
