defmodule Kith.Crash.Faults do
  @moduledoc false
  # Databases with a fault, in the shape of a repository. The harness is no good unless it finds what they break.

  alias Kith.SQLite

  @doc "Opens the database of a VM, with Kith's tables."
  def open!(path) do
    {:ok, server} = SQLite.start_link(path: path, synchronous: :normal)
    handle = SQLite.handle(server)
    :ok = Kith.Migration.run(handle)
    handle
  end

  defmodule WriteBehind do
    @moduledoc false
    # It answers before it commits: everybody sees what was written, and the disk a while later. So ciphertexts are returned
    # before their state, and plaintexts too.

    alias Kith.Crash.Faults

    @interval 150

    def start_link(path) do
      handle = Faults.open!(path)
      # The longest transaction there can be holds what is not committed yet.
      pid = spawn_link(fn -> loop(handle) end)
      Process.register(pid, __MODULE__)
      {:ok, pid}
    end

    defp loop(handle) do
      {:ok, _} =
        Kith.SQLite.transaction(handle, fn ->
          serve(handle, System.monotonic_time(:millisecond) + @interval)
        end)

      loop(handle)
    end

    defp serve(handle, until) do
      left = until - System.monotonic_time(:millisecond)
      if left > 0, do: serve(handle, until, left)
    end

    defp serve(handle, until, left) do
      receive do
        {:begin, pid, ref} ->
          monitor = Process.monitor(pid)
          send(pid, {ref, :begun})
          hold(handle, pid, ref, monitor)
          Process.demonitor(monitor, [:flush])
          serve(handle, until)
      after
        left -> :ok
      end
    end

    defp hold(handle, pid, ref, monitor) do
      receive do
        {:query, ^ref, sql, params} ->
          send(pid, {ref, Kith.Test.Repo.run(handle, sql, params)})
          hold(handle, pid, ref, monitor)

        {:end, ^ref} ->
          :ok

        {:DOWN, ^monitor, _, _, _} ->
          :ok
      end
    end

    def query(sql, params, log: false) do
      case Process.get(__MODULE__) do
        nil ->
          {:ok, result} = transaction(fn -> query(sql, params, log: false) end, log: false)
          result

        ref ->
          send(__MODULE__, {:query, ref, Kith.Test.Repo.translate(sql), params})
          receive do: ({^ref, result} -> result)
      end
    end

    def in_transaction?, do: Process.get(__MODULE__) != nil

    def transaction(fun, [{:log, false} | _timeout]) do
      if in_transaction?(), do: {:ok, fun.()}, else: {:ok, outermost(fun)}
    end

    defp outermost(fun) do
      ref = make_ref()
      send(__MODULE__, {:begin, self(), ref})
      receive do: ({^ref, :begun} -> :ok)
      Process.put(__MODULE__, ref)

      try do
        fun.()
      after
        Process.delete(__MODULE__)
        send(__MODULE__, {:end, ref})
      end
    end
  end

  defmodule Unchecked do
    @moduledoc false
    # Its transactions hold nobody off, and it writes a session whatever generation is there.

    alias Kith.Crash.Faults

    def start_link(path) do
      :persistent_term.put(__MODULE__, Faults.open!(path))
      :ignore
    end

    def query(sql, params, log: false) do
      sql =
        sql
        |> Kith.Test.Repo.translate()
        |> String.replace("WHERE signal_sessions.generation = excluded.generation - 1", "")

      Kith.Test.Repo.run(:persistent_term.get(__MODULE__), sql, params)
    end

    def transaction(fun, [{:log, false} | _timeout]), do: {:ok, fun.()}
    def in_transaction?, do: false
  end
end
