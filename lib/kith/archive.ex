defmodule Kith.Archive do
  @moduledoc false
  # Putting sessions away: they send no more, and still open what is on its way.

  alias Kith.{Error, Instance}
  alias Kith.Store.{Accounts, Sessions}

  @doc """
  Archives the session of a device with a peer, in the caller's transaction: it still opens what is on its way,
  and sends no more. Returns how many there were.
  """
  def put_away(instance, repo, {user, _} = local, data_key, peer) do
    session = Sessions.fetch(repo, local, peer)
    put_away(instance, repo, {user, data_key}, local, peer, session)
  end

  defp put_away(_instance, _repo, _account, _local, _peer, %{state: nil}), do: 0

  defp put_away(instance, repo, account, local, peer, session) do
    archived = rows(instance, account, local, peer, session)
    now = Instance.now(instance)

    if Sessions.drop_state(repo, local, peer, session.generation, now) != 1,
      do: raise(Error.new(:stale))

    Sessions.insert_archived(repo, local, archived, %{peer => session.renew_since})
    1
  end

  @doc "Archives every session others have with a device whose keys are not the same any more."
  def put_away_all_with(instance, repo, address) do
    for local <- Sessions.partners(repo, address),
        do: put_away_or_renew(instance, repo, local, address)

    :ok
  end

  # The session of an account that is locked cannot be put away, and of those many a key service is not asked. It sends no more
  # either way.
  defp put_away_or_renew(instance, repo, {user, _} = local, peer) do
    session = Sessions.fetch(repo, local, peer)

    # Whoever changes the key of that account holds its sessions: the key is read when this one is ours.
    if data_key = Accounts.data_key(repo, user) do
      account = {user, data_key}
      Instance.unwaited(fn -> put_away(instance, repo, account, local, peer, session) end)
    end
  rescue
    error in Error ->
      if error.reason not in [:locked, :unavailable], do: reraise(error, __STACKTRACE__)
      Sessions.renew(repo, local, [peer], Instance.now(instance))
  end

  @doc "The session of a pair as rows of the archive: none, or one."
  def rows(_instance, _account, _local, _peer, %{state: nil}), do: []

  def rows(instance, account, local, peer, session) do
    parts = Sessions.peer(session, peer)

    case Instance.sealed(instance, :session_archive, [account, local, parts]) do
      {:ok, archived} ->
        [{peer, archived}]

      # What does not open could not open a message either.
      {:error, :corrupted_state} ->
        []

      {:error, reason} ->
        raise Error.new(reason)
    end
  end
end
