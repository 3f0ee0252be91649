defmodule Kith.Crash.App do
  @moduledoc false
  # The application of the harness: an instance, and the tables in which it keeps what it sends and reads in the
  # transaction of Kith. `store` is `:sqlite` or a module shaped like an Ecto repository.

  alias Kith.{Instance, SQLite}

  @name __MODULE__

  @doc "The name of the instance."
  def name, do: @name

  @doc "Creates the tables of the application."
  def create_tables!(Kith.Crash.CountingRepo = repo),
    do: create!(repo, "BIGSERIAL PRIMARY KEY", "BYTEA")

  def create_tables!(store), do: create!(store, "INTEGER PRIMARY KEY AUTOINCREMENT", "BLOB")

  defp create!(store, serial, bytes) do
    for sql <- [
          "CREATE TABLE IF NOT EXISTS app_outbox (id #{serial}, message #{bytes} NOT NULL UNIQUE, envelope #{bytes} NOT NULL)",
          "CREATE TABLE IF NOT EXISTS app_inbox (id #{serial}, message #{bytes} NOT NULL UNIQUE, digest #{bytes} NOT NULL)",
          "CREATE TABLE IF NOT EXISTS app_filler (filler #{bytes} NOT NULL)"
        ],
        do: query!(store, sql)

    :ok
  end

  def query!(store, sql, params \\ []) do
    case query(store, sql, params) do
      {:ok, result} -> result.rows || []
      {:error, error} -> throw({:database, error})
    end
  end

  def query(:sqlite, sql, params), do: SQLite.query(handle(), sql, params)

  def query(repo, sql, params),
    do: repo.query(sql, Enum.map(params, &with({:blob, bytes} <- &1, do: bytes)), log: false)

  @doc """
  Runs `fun` in a transaction of the application, which rolls back unless `fun` returns `{:ok, _}`.

  Returns what `fun` returned, `{:error, error}` of Kith or `{:error, {:database, error}}`.
  """
  def transaction(store, fun) do
    inside = fn ->
      case fun.() do
        {:ok, _} = ok -> ok
        {:error, error} -> throw({:undo, error})
      end
    end

    result =
      if store == :sqlite,
        do: SQLite.transaction(handle(), inside),
        else: store.transaction(inside, log: false)

    case result do
      {:ok, {:ok, value}} -> {:ok, value}
      {:error, error} -> {:error, {:database, error}}
    end
  rescue
    # A repository raises when the connection or the commit fails.
    error in [DBConnection.ConnectionError, Postgrex.Error] -> {:error, {:database, error}}
  catch
    :throw, {:undo, error} -> {:error, error}
    :throw, {:database, error} -> {:error, {:database, error}}
  end

  defp handle, do: Instance.fetch!(@name).repo
end
