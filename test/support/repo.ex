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
    # The words SQLite does not know, and a cluster that never moves.
    sql = String.replace(sql, Kith.Store.Repo.timeline(), "'00000001'")
    sql = String.replace(sql, ~r/SELECT CAST\(\(SELECT system.*/s, "SELECT 1, '00000001', 1")
    sql = String.replace(sql, ~r/ FOR (UPDATE( SKIP LOCKED)?|KEY SHARE)/, "")
    intercept.(sql, fn -> SQLite.query(handle, sql, Enum.map(params, &param/1)) end)
  end

  def transaction(fun, log: false) do
    {handle, _} = :persistent_term.get(__MODULE__)
    SQLite.transaction(handle, fun)
  end

  def in_transaction? do
    {handle, _} = :persistent_term.get(__MODULE__)
    SQLite.in_transaction?(handle)
  end

  defp pass(_sql, run), do: run.()

  # Ecto's drivers take bytes and text alike.
  defp param(param) when is_binary(param),
    do: if(String.valid?(param), do: param, else: {:blob, param})

  defp param(param), do: param
end
