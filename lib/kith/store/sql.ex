defmodule Kith.Store.SQL do
  @moduledoc false
  # Parameter lists of statements whose length depends on the call.

  # SQLite takes 32,766 parameters in one statement; the widest row has 9.
  @rows_per_statement 1_000

  @doc ~S"""
      iex> Kith.Store.SQL.list(2, 3)
      "$2, $3, $4"
  """
  def list(first, count), do: Enum.map_join(first..(first + count - 1)//1, ", ", &"$#{&1}")

  @doc ~S"""
      iex> Kith.Store.SQL.values(2, 3)
      "($1, $2, $3), ($4, $5, $6)"
  """
  def values(rows, columns),
    do: Enum.map_join(1..rows//1, ", ", &"(#{list((&1 - 1) * columns + 1, columns)})")

  @doc "Rows in as many statements as they need."
  def chunks(rows), do: Enum.chunk_every(rows, @rows_per_statement)
end
