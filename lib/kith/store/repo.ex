defmodule Kith.Store.Repo do
  @moduledoc false
  # The one place that knows which database runs the SQL: an embedded Kith.SQLite or a module shaped like an
  # Ecto repository. Bytes are given as {:blob, binary} everywhere above.
  #
  # Inside transaction/2 a database that fails raises Kith.Error, and so does whoever wants to undo what
  # was written: both roll back and come out as {:error, error}.

  alias Kith.Error

  @type repo :: struct | module
  @type param :: nil | integer | String.t() | {:blob, binary}

  @transient [:serialization_failure, :deadlock_detected, :lock_not_available]
  @driver_errors [DBConnection.ConnectionError, Postgrex.Error, Kith.SQLite.Error]

  defguardp is_embedded(repo) when is_struct(repo, Kith.SQLite)

  @spec dialect(repo) :: :sqlite | :postgres
  def dialect(repo) when is_embedded(repo), do: :sqlite
  def dialect(_repo), do: :postgres

  @doc "Words that leave out rows others have locked. SQLite, whose writer is alone anyway, does not know them."
  @spec skip_locked(repo) :: String.t()
  def skip_locked(repo) when is_embedded(repo), do: ""
  def skip_locked(_repo), do: " FOR UPDATE SKIP LOCKED"

  @doc """
  Locks the rows of a statement that reads them alone.

  It comes before the one that reads them with others: PostgreSQL shows a row it had to wait for as it is then, and
  what is joined to it as it was when the statement began. SQLite's writer is alone.
  """
  @spec lock_rows(repo, String.t(), [param]) :: :ok
  def lock_rows(repo, _sql, _params) when is_embedded(repo), do: :ok

  def lock_rows(repo, sql, params) do
    rows(repo, sql <> " FOR UPDATE", params)
    :ok
  end

  @spec rows(repo, String.t(), [param]) :: [[term]]
  def rows(repo, sql, params), do: query!(repo, sql, params).rows || []

  @doc "Returns the number of rows that were changed."
  @spec execute(repo, String.t(), [param]) :: non_neg_integer
  def execute(repo, sql, params), do: query!(repo, sql, params).num_rows

  @spec transaction(repo, (() -> result)) :: result
        when result: {:ok, term} | {:error, Error.t()}
  def transaction(repo, fun) do
    case run(repo, fun) do
      {:ok, result} -> result
      {:error, reason} -> {:error, failure(reason)}
    end
  rescue
    error in Error -> {:error, error}
    error -> if driver?(error), do: {:error, failure(error)}, else: reraise(error, __STACKTRACE__)
  end

  @doc """
  As transaction/2, again and again while the race for a session is lost.

  A transaction the application opened before is not ours to repeat.
  """
  @spec transaction(repo, pos_integer, (() -> result)) :: result
        when result: {:ok, term} | {:error, Error.t()}
  def transaction(repo, attempts, fun) do
    attempts = if in_transaction?(repo), do: 1, else: attempts
    attempt(repo, attempts, fun)
  end

  defp attempt(repo, attempts, fun) do
    case transaction(repo, fun) do
      {:error, %Error{reason: :stale}} when attempts > 1 -> attempt(repo, attempts - 1, fun)
      result -> result
    end
  end

  defp run(repo, fun) when is_embedded(repo), do: Kith.SQLite.transaction(repo, fun)
  defp run(repo, fun), do: repo.transaction(fun, log: false)

  defp in_transaction?(repo) when is_embedded(repo), do: Kith.SQLite.in_transaction?(repo)

  defp in_transaction?(repo),
    do: function_exported?(repo, :in_transaction?, 0) and repo.in_transaction?()

  defp query!(repo, sql, params) do
    case query(repo, sql, params) do
      {:ok, result} -> result
      {:error, error} -> raise failure(error)
    end
  end

  defp query(repo, sql, params) when is_embedded(repo), do: Kith.SQLite.query(repo, sql, params)

  # log: false, since a query log prints parameters.
  defp query(repo, sql, params), do: repo.query(sql, Enum.map(params, &plain/1), log: false)

  defp plain({:blob, bytes}), do: bytes
  defp plain(param), do: param

  defp driver?(%module{}), do: module in @driver_errors

  defp failure(%{postgres: %{code: code}}) when code in @transient, do: Error.new(:stale)
  # PostgreSQL's own text may quote a row.
  defp failure(%{postgres: %{code: code}}), do: Error.new(:storage, "PostgreSQL says #{code}")

  defp failure(%{__struct__: Kith.SQLite.Error, kind: :panic}),
    do: Error.new(:panic, "in the database")

  defp failure(%module{} = error) do
    if driver?(error) and module != Postgrex.Error,
      do: Error.new(:storage, Exception.message(error)),
      else: Error.new(:storage, inspect(module))
  end

  defp failure(reason) when is_atom(reason), do: Error.new(:storage, inspect(reason))
  defp failure(_), do: Error.new(:storage)
end
