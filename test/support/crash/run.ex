defmodule Kith.Crash.Run do
  @moduledoc false
  # Runs of the harness on each store, and the line that closes each.

  alias Kith.Crash.{App, CountingRepo, Driver, Ledger, Nodes}
  alias Kith.Test.Postgres

  @clients """
  FROM pg_stat_activity
  WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()
  """

  @doc "Kills on SQLite. Options are those of the driver."
  def sqlite(options) do
    database = [database: Path.join(options[:dir], "kith.db")]
    File.mkdir_p!(options[:dir])
    Driver.run(Keyword.update(options, :kith, database, &Keyword.merge(database, &1)))
  end

  @doc """
  Kills on PostgreSQL, of the VM and of the server. `:disk` is a small file system for the cluster, which is then filled up too,
  `:settings` are more of the server.
  """
  def postgres(options) do
    {disk, options} = Keyword.pop(options, :disk)
    {settings, options} = Keyword.pop(options, :settings, [])
    File.mkdir_p!(options[:dir])
    cluster = Postgres.start!([settings: settings] ++ if(disk, do: [directory: disk], else: []))

    try do
      address = postgres_database!(cluster, "crash")

      Driver.run(
        Keyword.merge(
          [
            store: CountingRepo,
            start_store: {CountingRepo, :start_link, [address ++ [pool_size: 6]]},
            kith: [repo: CountingRepo],
            deaths: [nil: 6, caller: 3, instance: 1],
            lifetime: 100..600,
            outside: outside(cluster, address, disk)
          ],
          options
        )
      )
    after
      Postgres.remove!(cluster)
    end
  end

  @doc "Many processes on one instance on SQLite. Options are those of `Kith.Crash.Nodes`, without `:nodes`."
  def processes_on_sqlite(options) do
    {synchronous, options} = Keyword.pop(options, :synchronous, :full)
    kith = [database: Path.join(options[:dir], "kith.db"), synchronous: synchronous]
    File.mkdir_p!(options[:dir])
    Nodes.run([nodes: 1, guest: false, kith: kith] ++ options)
  end

  @doc "Many processes on several nodes on PostgreSQL. Options are those of `Kith.Crash.Nodes`."
  def nodes_on_postgres(options) do
    {cluster, options} = Keyword.pop_lazy(options, :cluster, &Postgres.start!/0)
    address = postgres_database!(cluster, "nodes_#{System.unique_integer([:positive])}")

    ledger =
      Nodes.run(
        [
          store: CountingRepo,
          start_store:
            {CountingRepo, :start_link, [address ++ [pool_size: options[:workers] + 2]]},
          kith: [repo: CountingRepo]
        ] ++ options
      )

    {:ok, %{rows: [[deadlocks]]}} =
      Postgres.once(
        address,
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
      )

    if deadlocks > 0 do
      log = File.read!(Path.join(cluster.directory, "log"))
      File.write!(Path.join(options[:dir], "postgres.log"), log)
    end

    if deadlocks == 0,
      do: ledger,
      else:
        ledger
        |> Ledger.count(:deadlocks, deadlocks)
        |> Ledger.violation(:unexpected, {:deadlocks, deadlocks})
  end

  @doc "Makes a database with the tables of Kith."
  def postgres_database!(cluster, name) do
    address = Postgres.database!(cluster, name)
    {:ok, pool} = CountingRepo.start_link(address)
    :ok = Kith.Migration.run(Kith.Store.Repo.new(CountingRepo))
    App.create_tables!(CountingRepo)
    GenServer.stop(pool)
    address
  end

  # Deaths of the server, weighted. Each ends with a server that takes connections.
  defp outside(cluster, address, disk) do
    [
      {nil, 2, fn -> :ok end},
      {:backend, 3, fn -> kill_backend(cluster, address) end},
      {:postmaster, 3,
       fn ->
         Postgres.kill_server!(cluster)
         Postgres.start_server!(cluster)
       end},
      {:immediate, 2, fn -> stop_at_once(cluster) end},
      {:connection, 3,
       fn -> Postgres.once(address, "SELECT pg_terminate_backend(pid) #{@clients}") end},
      {:full, if(disk, do: 2, else: 0), fn -> fill(cluster, disk) end}
    ]
  end

  # The postmaster then ends all others and recovers, since nobody knows what a killed one has done to the memory
  # they share.
  defp kill_backend(cluster, address) do
    case Postgres.once(address, "SELECT pid #{@clients} ORDER BY random() LIMIT 1") do
      {:ok, %{rows: [[pid]]}} ->
        signal(pid, "KILL")
        Process.sleep(20)
        up!(cluster)

      _nobody ->
        :ok
    end
  end

  # What `pg_ctl stop -m immediate` sends, and waits for.
  defp stop_at_once(cluster) do
    pid = postmaster(cluster)
    signal(pid, "QUIT")
    wait_until(fn -> postmaster(cluster) != pid end)
    Postgres.start_server!(cluster)
  end

  defp fill(cluster, disk) do
    filler = Path.join(disk, "filler")
    System.cmd("sh", ["-c", "cat /dev/zero > #{filler}"], stderr_to_stdout: true)
    Process.sleep(200 + :rand.uniform(300))
    File.rm!(filler)
    up!(cluster)
  end

  # Without room for its log the server gives up.
  defp up!(cluster) do
    if postmaster(cluster),
      do: wait_until(fn -> answers?(cluster) or postmaster(cluster) == nil end)

    if not answers?(cluster), do: Postgres.start_server!(cluster)
  end

  defp answers?(cluster),
    do: match?({:ok, _}, Postgres.once(Postgres.address(cluster), "SELECT 1"))

  defp postmaster(cluster) do
    case File.read(Path.join(cluster.directory, "data/postmaster.pid")) do
      {:ok, content} -> content |> String.split("\n") |> hd()
      {:error, _} -> nil
    end
  end

  defp signal(pid, signal),
    do: System.cmd("kill", ["-s", signal, to_string(pid)], stderr_to_stdout: true)

  defp wait_until(fun, left \\ 1_500) do
    cond do
      fun.() -> :ok
      left == 0 -> raise "PostgreSQL does not end, or does not come up"
      true -> Process.sleep(20) && wait_until(fun, left - 1)
    end
  end

  @doc """
  Half of the kills without the archive of messages and half with it, each on a database of its own. `run` is one of the
  functions above. The folders of what went wrong stay.
  """
  def both(run, kills, options) do
    half = div(kills, 2)

    for {archive?, kills} <- [{false, half}, {true, kills - half}], kills > 0 do
      dir = Path.join(options[:dir], if(archive?, do: "with-archive", else: "without-archive"))
      ledger = run.(Keyword.merge(options, kills: kills, archive?: archive?, dir: dir))
      if ledger.violations == [], do: File.rm_rf!(dir)
      ledger
    end
    |> Enum.reduce(&Ledger.together(&2, &1))
  end

  @doc "Runs a function with the path of a small file system, or with nil where none may be mounted."
  def on_a_small_disk(parent, fun) do
    path = Path.join(parent, "disk")
    File.mkdir_p!(path)
    options = ["-t", "tmpfs", "-o", "size=250m,mode=755", "tmpfs", path]

    if match?({_, 0}, System.cmd("mount", options, stderr_to_stdout: true)) do
      try do
        fun.(path)
      after
        System.cmd("umount", [path], stderr_to_stdout: true)
      end
    else
      fun.(nil)
    end
  end

  @doc "The line that closes a run."
  def line(store, ledger) do
    deaths =
      ledger.deaths
      |> Enum.sort_by(&(-elem(&1, 1)))
      |> Enum.map_join(", ", fn {death, count} -> "#{name(death)} #{count}" end)

    bad =
      for kind <- [:lost, :reused, :twice, :undecryptable, :unexpected],
          do: "#{name(kind)} #{Ledger.violations(ledger, kind)}"

    counts = fn kind -> Map.get(ledger.counts, kind, 0) end

    "#{store}: #{Ledger.deaths(ledger)} kills (#{deaths}), #{counts.(:messages)} messages, " <>
      "redelivered #{counts.(:duplicates) + counts.(:from_archive)}, #{Enum.join(bad, ", ")}; " <>
      "texts that went with their caller #{counts.(:answers_lost)}"
  end

  defp name(:vm), do: "BEAM"
  defp name(:caller), do: "process"
  defp name(:full), do: "full disk"
  defp name(:instance), do: "supervisor"
  defp name(:backend), do: "backend"
  defp name(:postmaster), do: "postmaster"
  defp name(:immediate), do: "immediate stop"
  defp name(:connection), do: "connections"
  defp name(:twice), do: "opened twice"
  defp name(other), do: Atom.to_string(other)
end
