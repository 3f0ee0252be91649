defmodule Kith.Crash.Child do
  @moduledoc false
  # The VM that is killed: one instance of Kith, workers that play traffic on it, and the deaths that happen inside a
  # VM. `main` is what `erl -run` calls, with the path of its configuration.

  alias Kith.Crash.{App, Journal, Pool, Traffic}

  def main([path]) do
    config = path |> File.read!() |> :erlang.binary_to_term()
    spawn(fn -> end_with_driver() end)
    spawn(fn -> life(config) end)
    :ok
  end

  defp end_with_driver do
    case IO.gets("") do
      # A message that another node has sent.
      "wire " <> line ->
        message = line |> String.trim() |> Base.decode64!() |> :erlang.binary_to_term()
        wait_for_pool()
        Pool.add([{1, message}])
        end_with_driver()

      "go\n" ->
        send(__MODULE__, :go)
        end_with_driver()

      "stop\n" ->
        send(__MODULE__, :stop)
        end_with_driver()

      line when is_binary(line) ->
        end_with_driver()

      _eof ->
        System.halt(1)
    end
  end

  # The other nodes may be faster.
  defp wait_for_pool do
    if Process.whereis(Pool) == nil do
      Process.sleep(5)
      wait_for_pool()
    end
  end

  defp life(config) do
    # A VM whose driver is gone ends by itself, and one that hangs too.
    Process.send_after(self(), :too_long, config.longest)
    {:ok, _} = Application.ensure_all_started(:kith)
    # The deaths of processes are meant.
    Logger.configure(level: :none)
    config = Map.put(config, :file, Journal.open!(config.journal))
    start_store(config)

    {:ok, top} =
      Supervisor.start_link([{Kith, Keyword.put(config.kith, :name, App.name())}],
        strategy: :one_for_one
      )

    config = Map.put(config, :top, top)
    recover(config)
    {:ok, _} = Pool.start_link(%{chains: config.chains, drain: config.drain})
    Pool.add(config.pending)
    write(config, [:ready])
    Process.register(self(), __MODULE__)
    IO.puts("ready")

    # Several nodes begin together: one that is late would find messages older than any session opens.
    if config.wires and not config.drain, do: receive(do: (:go -> :ok))
    if config.drain, do: drain(config), else: live(config)
  catch
    kind, reason ->
      text = Exception.format(kind, reason, __STACKTRACE__)
      IO.puts(text)
      System.halt(if expected_end?(config, reason, text), do: 3, else: 1)
  end

  # While the database server is down a VM cannot start, as any application.
  defp expected_end?(%{store: :sqlite}, _reason, _text), do: false
  defp expected_end?(_config, {:database, _}, _text), do: true
  defp expected_end?(_config, _reason, text), do: text =~ "storage"

  defp start_store(%{start_store: {module, function, arguments}}),
    do: apply(module, function, arguments)

  defp start_store(_config), do: :ok

  # As an application does: tables and users are there or made, and what its tables hold is what was sent and read.
  defp recover(%{store: store} = config) do
    if not Map.get(config, :guest, false) do
      App.create_tables!(store)
      App.query!(store, "DELETE FROM app_filler")
    end

    for address <- config.addresses, do: register(address)

    # Nobody has restored anything, so no session starts anew.
    [[renewed]] =
      App.query!(store, "SELECT COUNT(*) FROM signal_sessions WHERE renew_since IS NOT NULL")

    if renewed > 0, do: write(config, [{:raised, :life, "taken for a restored database"}])

    for [id, message, envelope] <-
          App.query!(
            store,
            "SELECT id, message, envelope FROM app_outbox WHERE id > $1 ORDER BY id",
            [config.outbox_seen]
          ),
        do: write(config, [{:in_outbox, id, :erlang.binary_to_term(message), envelope}])

    for [id, message, digest] <-
          App.query!(
            store,
            "SELECT id, message, digest FROM app_inbox WHERE id > $1 ORDER BY id",
            [config.inbox_seen]
          ),
        do: write(config, [{:in_inbox, id, :erlang.binary_to_term(message), digest}])

    write(config, [:recovered])
  end

  defp register(address, left \\ 10) do
    case Kith.register(App.name(), address) do
      {:ok, _} -> :ok
      {:error, %{reason: :stale}} when left > 1 -> register(address, left - 1)
      {:error, error} -> throw({:database, error})
    end
  end

  # Traffic, with the deaths of its plan at their times.
  defp live(config) do
    for {delay, death} <- config.plan, do: Process.send_after(self(), {:death, death}, delay)
    workers = Map.new(1..config.workers, &start_worker(config, &1, 0))
    conduct(config, workers)
  end

  defp start_worker(config, number, incarnation) do
    config = Map.delete(config, :file)
    {pid, ref} = spawn_monitor(fn -> Traffic.run(config, {number, incarnation}) end)
    {ref, {pid, number, incarnation}}
  end

  defp conduct(config, workers) when workers == %{} do
    if config.wires, do: deliver_until_all_are_through(config)

    if function_exported?(config.store, :lost_races, 0),
      do: write(config, [{:lost_races, config.store.lost_races()}])

    write(config, [:finished])
    IO.puts("finished")
    wait()
  end

  defp conduct(config, workers) do
    receive do
      {:death, death} ->
        die(death, config, workers)
        write(config, [{:death, death}])
        conduct(config, workers)

      {:DOWN, ref, :process, _pid, reason} when is_map_key(workers, ref) ->
        {{_pid, number, incarnation}, workers} = Map.pop(workers, ref)

        case reason do
          :normal ->
            conduct(config, workers)

          _ ->
            if reason != :killed, do: write(config, [{:raised, :worker, inspect(reason)}])
            {ref, worker} = start_worker(config, number, incarnation + 1)
            conduct(config, Map.put(workers, ref, worker))
        end

      :too_long ->
        write(config, [{:raised, :life, "it took too long"}])
        System.halt(1)

      _other ->
        conduct(config, workers)
    end
  end

  # The others go on, and what this one held back meanwhile would be older than any session opens.
  defp deliver_until_all_are_through(config) do
    IO.puts("through")
    :rand.seed(:exsss, {config.seed, config.life, 0})
    deliver_until_stop(Map.merge(config, %{worker: {:through, 0}, count: 0}))
  end

  defp deliver_until_stop(state) do
    receive do
      :stop -> :ok
    after
      0 ->
        case Pool.take() do
          nil -> Process.sleep(1)
          message -> Traffic.open(state, message)
        end

        deliver_until_stop(%{state | count: state.count + 1})
    end
  end

  defp wait do
    receive do
      :too_long -> System.halt(1)
      _ -> wait()
    end
  end

  # A process dies in the middle of a call, or of its own transaction.
  defp die(:caller, _config, workers) do
    {pid, _, _} = workers |> Map.values() |> Enum.random()
    Process.exit(pid, :kill)
  end

  # The supervisor of the instance is killed, and with it all that it started. The application's supervisor starts
  # another one.
  defp die(:instance, config, _workers) do
    [{_, pid, _, _}] = Supervisor.which_children(config.top)
    if is_pid(pid), do: Process.exit(pid, :kill)
  end

  # The disk is full for a while: no page more, and those that were free are used up.
  defp die(:full, %{store: :sqlite}, _workers) do
    with {:ok, %{rows: [[pages]]}} <- App.query(:sqlite, "PRAGMA page_count", []),
         {:ok, _} <- App.query(:sqlite, "PRAGMA max_page_count = #{pages}", []) do
      for size <- [1_000_000, 100_000, 10_000, 3_000], do: fill(size)
      Process.sleep(:rand.uniform(60))
      App.query(:sqlite, "PRAGMA max_page_count = 1073741823", [])
      App.query(:sqlite, "DELETE FROM app_filler", [])
    end
  rescue
    # The instance was killed just now.
    ArgumentError -> :ok
  end

  defp fill(size) do
    case App.query(:sqlite, "INSERT INTO app_filler (filler) VALUES (zeroblob(#{size}))", []) do
      {:ok, _} -> fill(size)
      {:error, _full} -> :ok
    end
  end

  # The end of a run: all that is on its way arrives, then everybody writes to everybody, twice, and all of it is
  # read. The first time may heal what was left, the second goes through the sessions in both directions.
  defp drain(config) do
    state = Map.merge(config, %{worker: {:last, 0}, count: 0})
    :rand.seed(:exsss, {config.seed, config.life, 0})
    count = deliver_all(state, 1)

    pairs =
      for {user, _} = from <- config.addresses, to <- config.users, to != user, do: {from, to}

    count =
      for _ <- 1..2, {from, to} <- pairs, reduce: count do
        count ->
          Traffic.send_one(%{state | count: count}, from, to)
          deliver_all(state, count + 1)
      end

    write(config, [{:steps, count}, {:integrity, integrity(config.store)}, :finished])
    IO.puts("finished")
    wait()
  end

  defp deliver_all(state, count) do
    case Pool.take() do
      nil ->
        count

      message ->
        Traffic.open(%{state | count: count}, message)
        deliver_all(state, count + 1)
    end
  end

  defp integrity(:sqlite), do: App.query!(:sqlite, "PRAGMA integrity_check")
  defp integrity(_repo), do: [["ok"]]

  defp write(config, entries), do: Journal.write!(config.file, entries)
end
