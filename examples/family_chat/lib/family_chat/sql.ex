defmodule FamilyChat.SQL do
  @moduledoc """
  SQL as both databases understand it, through `FamilyChat.Repo`.

  An application on PostgreSQL alone would have Ecto schemas here. This one also runs without a database
  server, so its statements are written once, in what the two have in common.
  """

  require Logger

  alias FamilyChat.Repo

  defmodule Failed do
    @moduledoc "The database failed. Its own words may quote a row."
    defexception [:message]
  end

  @attempts 5

  @doc "The rows of a statement, each a list."
  def rows(sql, params \\ []), do: query!(sql, params).rows || []

  @doc "How many rows a statement has changed."
  def run(sql, params \\ []), do: query!(sql, params).num_rows

  @doc """
  Runs a function in a transaction and returns what it returned.

  After `rollback/1` it is `{:error, reason}`; when the database fails, the reason is a `Kith.Error` of `:storage`, as if Kith had been the one
  to notice. When others changed the same session at the same time (`:stale`), all of it is done again: Kith cannot do that inside a
  transaction that is not its own.
  """
  def transaction(fun), do: transaction(fun, @attempts)

  defp transaction(fun, attempts) do
    case Repo.transaction(fun) do
      {:ok, result} ->
        result

      {:error, %Kith.Error{reason: :stale}} when attempts > 1 ->
        transaction(fun, attempts - 1)

      {:error, reason} when is_exception(reason, Kith.Error) or not is_exception(reason) ->
        {:error, reason}

      {:error, error} ->
        {:error, failed(error)}
    end
  rescue
    error in Failed -> {:error, failed(error)}
  end

  # The words of the database may quote a row.
  defp failed(error) do
    Logger.error("the database failed: #{inspect(error.__struct__)}")
    Kith.Error.exception(:storage)
  end

  @doc """
  What Kith answered inside a transaction, if it can go on.

  After these errors it cannot: the database has undone part of it, all of it has to be done again, or the keys of the user were
  locked, and it is done after the next login.
  """
  def settled!({:error, %Kith.Error{reason: reason} = error})
      when reason in [:stale, :storage, :panic, :locked, :unavailable],
      do: rollback(error)

  def settled!(result), do: result

  @doc "Undoes the transaction."
  def rollback(reason), do: Repo.rollback(reason)

  @doc "Bytes as a parameter."
  defdelegate bytes(binary), to: Repo

  @doc "Milliseconds since 1970, as all times in the tables."
  def now, do: System.system_time(:millisecond)

  @doc "An id nobody can guess."
  def new_id, do: Base.url_encode64(:crypto.strong_rand_bytes(16), padding: false)

  @doc "`$2, $3, $4` for a list of parameters."
  def places(list, from \\ 1),
    do: Enum.map_join(from..(from + length(list) - 1)//1, ", ", &"$#{&1}")

  defp query!(sql, params) do
    case Repo.query(sql, params) do
      {:ok, result} -> result
      {:error, error} -> raise Failed, inspect(error.__struct__)
    end
  end
end
