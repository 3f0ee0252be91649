defmodule Kith.Store.SQL do
  @moduledoc false
  # Parameter lists of statements whose length depends on the call.

  # SQLite looks up the name of a parameter among all of them: a statement costs the square of their number.
  @rows_per_statement 200

  @doc ~S"""
      iex> Kith.Store.SQL.list(2, 3)
      "$2, $3, $4"
  """
  def list(first, count), do: Enum.map_join(first..(first + count - 1)//1, ", ", &"$#{&1}")

  @doc ~S"""
  The rows of VALUES: some parameters are the same in each, the others follow row by row.

      iex> Kith.Store.SQL.values(2, 1, 2, fn [id, key] -> ["$1", id, key] end)
      "($1, $2, $3), ($1, $4, $5)"
  """
  def values(rows, shared, own, shape) do
    Enum.map_join(0..(rows - 1)//1, ", ", fn row ->
      first = shared + row * own + 1
      "(" <> Enum.join(shape.(Enum.map(first..(first + own - 1)//1, &"$#{&1}")), ", ") <> ")"
    end)
  end

  @doc "Rows in as many statements as they need."
  def chunks(rows), do: Enum.chunk_every(rows, @rows_per_statement)
end
