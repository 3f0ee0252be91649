defmodule Kith.Store.Repo do
  @moduledoc false
  # The one place that knows which database runs the SQL: an embedded Kith.SQLite, or a module shaped like an
  # Ecto repository with the schema its tables are in. Bytes are given as {:blob, binary} everywhere above, and
  # every table is written `kith.name`, which becomes the table of that schema.
  #
  # Inside transaction/2 a database that fails raises Kith.Error, and so does whoever wants to undo what
  # was written: both roll back and come out as {:error, error}.

  alias Kith.Error

  @enforce_keys [:module]
  defstruct [:module, prefix: nil]

  @type repo :: Kith.SQLite.t() | %__MODULE__{module: module, prefix: nil | String.t()}
  @type param :: nil | integer | String.t() | {:blob, binary}

  @transient [:serialization_failure, :deadlock_detected, :lock_not_available]
  @driver_errors [
    DBConnection.ConnectionError,
    DBConnection.EncodeError,
    Postgrex.Error,
    Kith.SQLite.Error
  ]
  # Their text may quote a value.
  @quoting [DBConnection.EncodeError, Postgrex.Error]

  defguardp is_embedded(repo) when is_struct(repo, Kith.SQLite)

  @doc "What the functions below take, of an embedded database, a repository, or one of those with its schema."
  @spec new(Kith.SQLite.t() | module | repo, nil | String.t()) :: repo
  def new(repo, prefix \\ nil)
  def new(repo, nil) when is_embedded(repo), do: repo
  def new(%__MODULE__{} = repo, nil), do: repo

  def new(module, prefix) when is_atom(module) do
    with :ok <- module(module), :ok <- prefix(prefix) do
      %__MODULE__{module: module, prefix: prefix}
    else
      {:error, message} -> raise ArgumentError, message
    end
  end

  def new(_other, _prefix),
    do: raise(ArgumentError, "expected a repository, and :prefix with one on PostgreSQL only")

  defp module(module) do
    if Code.ensure_loaded?(module) and function_exported?(module, :query, 3) and
         function_exported?(module, :transaction, 2),
       do: :ok,
       else:
         {:error,
          "expected a repository to be a module with query/3 and transaction/2, got: #{inspect(module)}"}
  end

  @doc "Whether this is a name for a schema."
  @spec prefix(term) :: :ok | {:error, String.t()}
  def prefix(nil), do: :ok

  def prefix(prefix) do
    if is_binary(prefix) and prefix =~ ~r/\A[a-z_][a-z0-9_]{0,62}\z/,
      do: :ok,
      else:
        {:error,
         "expected :prefix to be the name of a schema: lower case letters, digits and _, at most 63"}
  end

  @doc ~S"""
  Puts the schema before the names of tables.

      iex> Kith.Store.Repo.qualify("SELECT 1 FROM kith.signal_schema", "private")
      "SELECT 1 FROM \"private\".signal_schema"
  """
  @spec qualify(String.t(), nil | String.t()) :: String.t()
  def qualify(sql, nil), do: String.replace(sql, "kith.", "")
  def qualify(sql, prefix), do: String.replace(sql, "kith.", ~s("#{prefix}".))

  @spec dialect(repo) :: :sqlite | :postgres
  def dialect(repo) when is_embedded(repo), do: :sqlite
  def dialect(_repo), do: :postgres

  @doc "Words that leave out rows others have locked. SQLite, whose writer is alone anyway, does not know them."
  @spec skip_locked(repo) :: String.t()
  def skip_locked(repo) when is_embedded(repo), do: ""
  def skip_locked(_repo), do: " FOR UPDATE SKIP LOCKED"

  @doc "Words that lock the rows of one table among those that are joined, named by its alias."
  @spec lock_of(repo, String.t()) :: String.t()
  def lock_of(repo, _alias) when is_embedded(repo), do: ""
  def lock_of(_repo, alias), do: " FOR UPDATE OF #{alias}"

  @doc "Words that keep the rows of a table, named by its alias, from being deleted. Many may do so at the same time."
  @spec hold_of(repo, String.t()) :: String.t()
  def hold_of(repo, _alias) when is_embedded(repo), do: ""
  def hold_of(_repo, alias), do: " FOR KEY SHARE OF #{alias}"

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

  @doc "An expression of PostgreSQL: the timeline that is written, 8 hexadecimal digits."
  @spec timeline() :: String.t()
  def timeline, do: "SUBSTRING(pg_walfile_name(pg_current_wal_lsn()) FROM 1 FOR 8)"

  @spec rows(repo, String.t(), [param]) :: [[term]]
  def rows(repo, sql, params), do: query!(repo, sql, params).rows || []

  @doc "Returns the number of rows that were changed."
  @spec execute(repo, String.t(), [param]) :: non_neg_integer
  def execute(repo, sql, params), do: query!(repo, sql, params).num_rows

  @spec transaction(repo, (() -> result)) :: result
        when result: {:ok, term} | {:error, Error.t()}
  def transaction(repo, fun), do: once(repo, fun, [])

  @doc "As transaction/2, once, however long it takes."
  @spec long_transaction(repo, (() -> result)) :: result
        when result: {:ok, term} | {:error, Error.t()}
  def long_transaction(repo, fun), do: once(repo, fun, timeout: :infinity)

  defp once(repo, fun, options) do
    case run(repo, fun, options) do
      {:ok, result} -> result
      {:error, reason} -> {:error, failure(reason)}
    end
  rescue
    error in Error -> {:error, error}
    error -> if driver?(error), do: {:error, failure(error)}, else: reraise(error, __STACKTRACE__)
  catch
    # The pool of the repository ended while it was asked for a connection.
    :exit, {_reason, {DBConnection.Holder, :checkout, _}} -> {:error, no_pool()}
  end

  defp no_pool, do: Error.new(:storage, "the repository is not running")

  @doc """
  As transaction/2, again and again while the race for a session is lost.

  A transaction the application opened before is not ours to repeat.
  """
  @spec transaction(repo, pos_integer, (() -> result), keyword) :: result
        when result: {:ok, term} | {:error, Error.t()}
  def transaction(repo, attempts, fun, options \\ []) do
    attempts = if in_transaction?(repo), do: 1, else: attempts
    attempt(repo, attempts, fun, options)
  end

  defp attempt(repo, attempts, fun, options) do
    case once(repo, fun, options) do
      {:error, %Error{reason: :stale}} when attempts > 1 ->
        attempt(repo, attempts - 1, fun, options)

      result ->
        result
    end
  end

  defp run(repo, fun, options) when is_embedded(repo),
    do: Kith.SQLite.transaction(repo, fun, options)

  defp run(%{module: module}, fun, options), do: module.transaction(fun, [log: false] ++ options)

  @doc "Whether this process is in a transaction."
  @spec in_transaction?(repo) :: boolean
  def in_transaction?(repo) when is_embedded(repo), do: Kith.SQLite.in_transaction?(repo)

  def in_transaction?(%{module: module}) do
    function_exported?(module, :in_transaction?, 0) and module.in_transaction?()
  rescue
    # The transaction itself will tell.
    error -> if driver?(error), do: false, else: reraise(error, __STACKTRACE__)
  end

  defp query!(repo, sql, params) do
    case query(repo, sql, params) do
      {:ok, result} -> result
      {:error, error} -> raise failure(error)
    end
  end

  @doc false
  # As the database answers.
  def query(repo, sql, params)

  def query(repo, sql, params) when is_embedded(repo),
    do: Kith.SQLite.query(repo, qualify(sql, nil), params)

  # log: false, since a query log prints parameters.
  def query(%{module: module, prefix: prefix}, sql, params),
    do: module.query(qualify(sql, prefix), Enum.map(params, &plain/1), log: false)

  defp plain({:blob, bytes}), do: bytes
  defp plain(param), do: param

  # What Ecto says of a repository that was not started, or is starting again.
  defp driver?(%RuntimeError{message: "could not lookup Ecto repo " <> _}), do: true
  defp driver?(%module{}), do: module in @driver_errors

  defp failure(%{postgres: %{code: code}}) when code in @transient, do: Error.new(:stale)
  # PostgreSQL's own text may quote a row.
  defp failure(%{postgres: %{code: code}}), do: Error.new(:storage, "PostgreSQL says #{code}")

  defp failure(%{__struct__: Kith.SQLite.Error, kind: :panic}),
    do: Error.new(:panic, "in the database")

  defp failure(%RuntimeError{}), do: no_pool()

  defp failure(%module{} = error) do
    if driver?(error) and module not in @quoting,
      do: Error.new(:storage, Exception.message(error)),
      else: Error.new(:storage, inspect(module))
  end

  defp failure(reason) when is_atom(reason), do: Error.new(:storage, inspect(reason))
  defp failure(_), do: Error.new(:storage)
end
