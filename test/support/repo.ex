defmodule Kith.Test.Repo do
  @moduledoc false
  # A repository of Ecto's shape over the embedded database. Statements go through a function that a test may
  # put in their way.
  alias Kith.SQLite

  def connect(handle), do: :persistent_term.put(__MODULE__, {handle, &pass/2})

  def intercept(fun) do
    {handle, _} = :persistent_term.get(__MODULE__)
    :persistent_term.put(__MODULE__, {handle, fun})
  end

  def query(sql, params, log: false) do
    {handle, intercept} = :persistent_term.get(__MODULE__)
    sql = translate(sql)
    intercept.(sql, fn -> run(handle, sql, params) end)
  end

  @doc "Runs a statement with parameters as Ecto's drivers take them."
  def run(handle, sql, params), do: SQLite.query(handle, sql, Enum.map(params, &param/1))

  @doc "The statement without the words SQLite does not know, and with a cluster that never moves."
  def translate(sql) do
    sql
    |> String.replace(Kith.Store.Repo.timeline(), "'00000001'")
    |> String.replace(~r/SELECT CAST\(\(SELECT system.*/s, "SELECT 1, '00000001', 1")
    |> String.replace(~r/ FOR (UPDATE( OF s)?( SKIP LOCKED)?|KEY SHARE( OF [a-z]+)?)/, "")
    |> String.replace(~r/SELECT pg_advisory_xact_lock\(\d+\)/, "SELECT NULL")
    |> String.replace(
      "to_regclass($1) IS NOT NULL",
      "EXISTS (SELECT 1 FROM sqlite_master WHERE name = $1)"
    )
  end

  def transaction(fun, [{:log, false} | _timeout]) do
    {handle, _} = :persistent_term.get(__MODULE__)
    SQLite.transaction(handle, fun)
  end

  def in_transaction? do
    {handle, _} = :persistent_term.get(__MODULE__)
    SQLite.in_transaction?(handle)
  end

  def rollback(value) do
    {handle, _} = :persistent_term.get(__MODULE__)
    SQLite.rollback(handle, value)
  end

  defp pass(_sql, run), do: run.()

  # Ecto's drivers take bytes and text alike. Bytes that look like text are rare, but for the eight of a key's id.
  defp param(param) when is_binary(param), do: if(text?(param), do: param, else: {:blob, param})
  defp param(param), do: param

  defp text?(<<_::binary-8>> = param), do: param =~ ~r/\A[0-9A-Za-z_:-]*\z/
  defp text?(param), do: String.printable?(param)
end
