defmodule Bench.BareCommit do
  # What SQLite alone takes for the rows a fan-out writes: one upsert in one statement, committed.

  alias Kith.SQLite

  @columns 7

  def start(directory, row_size) do
    {:ok, pid} = SQLite.start_link(path: Path.join(directory, "bare.db"))
    database = SQLite.handle(pid)

    :ok =
      SQLite.execute(database, """
      CREATE TABLE rows (
        user_id TEXT, device_id INTEGER, peer_id TEXT, peer_device_id INTEGER,
        generation BIGINT, state BLOB, updated_at BIGINT,
        PRIMARY KEY (user_id, device_id, peer_id, peer_device_id)
      )
      """)

    %{database: database, row_size: row_size, generations: %{}}
  end

  def version(%{database: database}) do
    {:ok, %{rows: [[version]]}} = SQLite.query(database, "SELECT sqlite_version()")
    version
  end

  def sample(state, "established", people, samples) do
    Enum.map_reduce(1..samples, state, fn _, state -> once(state, people) end)
  end

  # SQLite skips a write that changes nothing, so every state is new.
  defp once(state, people) do
    generation = Map.get(state.generations, people, 0) + 1

    sql = """
    INSERT INTO rows
      (user_id, device_id, peer_id, peer_device_id, generation, state, updated_at)
    VALUES #{values(people - 1)}
    ON CONFLICT (user_id, device_id, peer_id, peer_device_id) DO UPDATE SET
      generation = excluded.generation, state = excluded.state, updated_at = excluded.updated_at
    WHERE rows.generation = excluded.generation - 1
    """

    params =
      Enum.flat_map(2..people, fn number ->
        blob = {:blob, :crypto.strong_rand_bytes(state.row_size)}
        ["sender", 1, "person-#{people}-#{number}", 1, generation, blob, generation]
      end)

    start = System.monotonic_time(:nanosecond)
    {:ok, %{num_rows: written}} = SQLite.query(state.database, sql, params)
    time = System.monotonic_time(:nanosecond) - start
    ^written = people - 1
    {time, put_in(state.generations[people], generation)}
  end

  defp values(rows) do
    Enum.map_join(1..rows, ", ", fn row ->
      "(#{Enum.map_join(1..@columns, ", ", &"$#{(row - 1) * @columns + &1}")})"
    end)
  end
end
