defmodule Kith.Store.Escrows do
  @moduledoc false
  # signal_escrows and signal_escrow_unwraps: recovery keys under a service key, and who has unwrapped one.

  alias Kith.Address
  alias Kith.Store.Repo

  @type escrow :: %{
          id: String.t(),
          service_key: String.t(),
          wrapped: nil | binary,
          by: String.t(),
          text: String.t(),
          at: integer,
          withdrawn_by: nil | String.t(),
          withdrawn_at: nil | integer
        }

  def insert(repo, user, escrow) do
    sql = """
    INSERT INTO kith.signal_escrows
      (escrow_id, user_id, service_key, wrapped, consented_by, consent_text, consented_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    """

    %{id: id, service_key: key, wrapped: wrapped, by: by, text: text, at: at} = escrow
    Repo.execute(repo, sql, [id, user, key, {:blob, wrapped}, by, text, at])
  end

  @doc "All of a user, the newest first."
  @spec list(Repo.repo(), Address.user()) :: [escrow]
  def list(repo, user) do
    sql = """
    SELECT escrow_id, service_key, wrapped, consented_by, consent_text, consented_at, withdrawn_by,
      withdrawn_at
    FROM kith.signal_escrows WHERE user_id = $1 ORDER BY consented_at DESC, escrow_id
    """

    for [id, key, wrapped, by, text, at, withdrawn_by, withdrawn_at] <-
          Repo.rows(repo, sql, [user]) do
      %{
        id: id,
        service_key: key,
        wrapped: wrapped,
        by: by,
        text: text,
        at: at,
        withdrawn_by: withdrawn_by,
        withdrawn_at: withdrawn_at
      }
    end
  end

  @doc "Deletes the keys of a user and keeps who consented to what. Returns how many there were."
  def withdraw(repo, user, by, now) do
    sql = """
    UPDATE kith.signal_escrows SET wrapped = NULL, withdrawn_by = $2, withdrawn_at = $3
    WHERE user_id = $1 AND withdrawn_at IS NULL
    """

    Repo.execute(repo, sql, [user, by, now])
  end

  def insert_unwrap(repo, user, unwrap) do
    sql = """
    INSERT INTO kith.signal_escrow_unwraps
      (unwrap_id, escrow_id, user_id, unwrapped_by, purpose, unwrapped_at, result)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    """

    %{id: id, escrow: escrow, by: by, purpose: purpose, at: at, result: result} = unwrap
    Repo.execute(repo, sql, [id, escrow, user, by, purpose, at, Atom.to_string(result)])
  end

  @doc "Who has unwrapped a key of a user, or tried to, the newest first."
  def unwraps(repo, user) do
    sql = """
    SELECT unwrap_id, escrow_id, unwrapped_by, purpose, unwrapped_at, result
    FROM kith.signal_escrow_unwraps WHERE user_id = $1 ORDER BY unwrapped_at DESC, unwrap_id
    """

    for [id, escrow, by, purpose, at, result] <- Repo.rows(repo, sql, [user]) do
      %{id: id, escrow: escrow, by: by, purpose: purpose, at: at, result: result(result)}
    end
  end

  @results [:ok | Kith.Error.reasons()]

  defp result(text), do: Enum.find(@results, &(Atom.to_string(&1) == text))
end
