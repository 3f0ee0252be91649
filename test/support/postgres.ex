defmodule Kith.Test.Postgres do
  @moduledoc false
  # PostgreSQL clusters for tests: made in a folder of their own, reached by a socket in it and by nothing else, gone with
  # the VM that made them. Commits reach the disk as in production.
  #
  # A shell keeps each cluster and takes orders on its standard input. The end of that input, which is the end of the VM
  # however it ends, stops the cluster and removes the folder.

  alias Kith.Test.Postgres.Connection

  @enforce_keys [:directory, :keeper]
  defstruct [:directory, :keeper]

  @type t :: %__MODULE__{directory: Path.t(), keeper: pid}

  @user "kith"
  # No TCP, so any number does. It is a part of the name of the socket.
  @port 5432

  @keeper """
  directory=$1 as=$2 bin=$3
  shift 3

  stop() {
    [ -z "$pid" ] || { kill -s INT "$pid" && wait "$pid"; } 2>/dev/null
    pid=
  }

  # The postmaster first, which would start over otherwise.
  murder() {
    children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
    kill -s KILL $pid $children 2>/dev/null
    wait "$pid" 2>/dev/null
    pid=
  }

  # What has lost its postmaster to SIGKILL goes by itself, a moment later, and no new one starts before.
  start() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
      $as "$bin/postgres" -D "$directory/data" -k "$directory" "$@" >>"$directory/log" 2>&1 &
      pid=$!
      for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "$pid" 2>/dev/null || break
        "$bin/pg_isready" -q -h "$directory" -p 5432 && return 0
        sleep 0.1
      done
      # Still recovering: the caller finds out when it connects.
      kill -0 "$pid" 2>/dev/null && return 0
    done
    return 1
  }

  trap 'stop; rm -rf "$directory"' EXIT
  trap 'exit 1' HUP INT TERM

  pid=
  while read -r order; do
    case $order in
      start) start "$@" && echo "$pid" || echo failed ;;
      stop) stop; echo stopped ;;
      kill) murder; echo stopped ;;
    esac
  done
  """

  @settings [
    listen_addresses: "",
    port: @port,
    max_connections: 100,
    shared_buffers: "16MB",
    max_wal_size: "64MB",
    min_wal_size: "32MB",
    wal_level: "minimal",
    max_wal_senders: 0
  ]

  @doc "Whether this machine has PostgreSQL and Debian's driver for it."
  def available?, do: binaries() != nil and Connection.driver?()

  @doc "The cluster of this run, made when it is first asked for."
  def cluster do
    :global.trans({__MODULE__, self()}, fn ->
      case :persistent_term.get(__MODULE__, nil) do
        nil ->
          cluster = start!()
          :persistent_term.put(__MODULE__, cluster)
          cluster

        cluster ->
          cluster
      end
    end)
  end

  @doc """
  Makes a cluster and starts it.

    * `:directory` - where its folder is made, default the temporary directory of the system;
    * `:settings` - settings of the server, as a keyword list.
  """
  def start!(options \\ []) do
    unless binaries(),
      do: raise("PostgreSQL is missing: .ci/setup postgres installs it")

    unless Connection.driver?(),
      do: raise("erlang-p1-pgsql is missing: .ci/setup postgres installs it")

    parent = Keyword.get_lazy(options, :directory, &System.tmp_dir!/0)
    remove_stale(parent)

    directory =
      Path.join(parent, "kith-postgres-#{System.pid()}-#{System.unique_integer([:positive])}")

    init!(directory)
    settings = Keyword.merge(@settings, Keyword.get(options, :settings, []))
    cluster = %__MODULE__{directory: directory, keeper: keep(directory, settings)}
    # A run that ends in order waits until the folder is gone.
    System.at_exit(fn _ -> remove!(cluster) end)
    start_server!(cluster)
    cluster
  end

  @doc "Starts the server of a cluster again, and waits until it takes connections."
  def start_server!(cluster) do
    case order(cluster, "start") do
      "failed" -> raise "PostgreSQL does not start:\n" <> log(cluster)
      pid -> wait_until_ready(cluster, 600) && String.to_integer(pid)
    end
  end

  @doc "Stops the server as an operator does."
  def stop_server!(cluster), do: "stopped" = order(cluster, "stop")

  @doc "Kills the server with all its processes, as a crash of the machine does."
  def kill_server!(cluster), do: "stopped" = order(cluster, "kill")

  @doc "Stops the server and removes its folder."
  def remove!(%__MODULE__{keeper: keeper, directory: directory}) do
    reference = Process.monitor(keeper)
    send(keeper, :remove)

    receive do
      {:DOWN, ^reference, :process, _, _} -> :ok
    after
      10_000 -> :ok
    end

    File.rm_rf(directory)
    :ok
  end

  @doc "How a repository, here or in another VM, reaches a database of a cluster."
  def address(%__MODULE__{directory: directory}, database \\ "postgres"),
    do: [socket: directory, port: @port, user: @user, database: database]

  @doc "Makes a database, unless it is there, and returns how it is reached."
  def database!(cluster, name) do
    case once(address(cluster), ~s(CREATE DATABASE "#{name}")) do
      {:ok, _} -> :ok
      {:error, %{postgres: %{code: :duplicate_database}}} -> :ok
    end

    address(cluster, name)
  end

  @doc "Runs one statement on a connection of its own."
  def once(address, sql) do
    with {:ok, connection} <- Connection.connect(address) do
      {result, connection} = Connection.query(connection, sql, [])
      Connection.close(connection)
      result
    end
  end

  @doc "What the server wrote last."
  def log(%__MODULE__{directory: directory}) do
    case File.read(Path.join(directory, "log")) do
      {:ok, log} -> log |> String.split("\n") |> Enum.take(-20) |> Enum.join("\n")
      {:error, _} -> ""
    end
  end

  defp init!(directory) do
    File.mkdir_p!(directory)
    owner(directory)

    arguments =
      ~w(-D #{directory}/data -U #{@user} -E UTF8 --no-locale --auth=trust --no-sync --wal-segsize=1)

    {program, arguments} = as_owner(Path.join(binaries(), "initdb"), arguments)
    # Initdb wants a working directory that its user can read.
    {output, status} = System.cmd(program, arguments, stderr_to_stdout: true, cd: directory)

    if status != 0 do
      File.rm_rf!(directory)
      raise "initdb failed: " <> output
    end
  end

  # PostgreSQL refuses to run as root. Its package has a user for it.
  defp owner(directory) do
    if root?(), do: {_, 0} = System.cmd("chown", ["postgres", directory])
  end

  defp as_owner(program, arguments) do
    case as() do
      [] -> {program, arguments}
      [first | rest] -> {first, rest ++ [program | arguments]}
    end
  end

  defp as do
    if root?(),
      do: ~w(setpriv --reuid=postgres --regid=postgres --clear-groups),
      else: []
  end

  defp root?, do: match?({"0\n", 0}, System.cmd("id", ["-u"]))

  defp keep(directory, settings) do
    settings = Enum.flat_map(settings, fn {name, value} -> ["-c", "#{name}=#{value}"] end)
    arguments = ["-c", @keeper, "sh", directory, Enum.join(as(), " "), binaries() | settings]
    # Not linked to the test that happens to be the first.
    parent = self()

    keeper =
      spawn(fn ->
        port =
          Port.open({:spawn_executable, System.find_executable("sh")}, [
            :binary,
            :exit_status,
            line: 1_000,
            args: arguments,
            cd: directory
          ])

        send(parent, {:kept, self()})
        keeper(port, nil)
      end)

    receive do
      {:kept, ^keeper} -> keeper
    end
  end

  defp keeper(port, caller) do
    receive do
      {:order, from, order} ->
        Port.command(port, order <> "\n")
        keeper(port, from)

      {^port, {:data, {:eol, answer}}} ->
        send(caller, {:answer, self(), answer})
        keeper(port, nil)

      {^port, {:exit_status, _}} ->
        :ok

      :remove ->
        {:os_pid, pid} = Port.info(port, :os_pid)
        Port.close(port)
        wait_for_end(pid, 100)
    end
  end

  defp wait_for_end(_pid, 0), do: :ok

  defp wait_for_end(pid, times) do
    if alive?(pid) do
      Process.sleep(50)
      wait_for_end(pid, times - 1)
    end
  end

  defp order(%__MODULE__{keeper: keeper}, order) do
    send(keeper, {:order, self(), order})

    receive do
      {:answer, ^keeper, answer} -> answer
    after
      60_000 -> raise "the keeper of the cluster does not answer"
    end
  end

  defp wait_until_ready(cluster, 0),
    do: raise("PostgreSQL does not take connections:\n" <> log(cluster))

  defp wait_until_ready(cluster, times) do
    case Connection.connect(address(cluster)) do
      {:ok, connection} ->
        Connection.close(connection)
        true

      {:error, _} ->
        Process.sleep(50)
        wait_until_ready(cluster, times - 1)
    end
  end

  # Of runs that were killed together with the shell that kept their cluster.
  defp remove_stale(parent) do
    for directory <- Path.wildcard(Path.join(parent, "kith-postgres-*-*")),
        [_, pid] = Regex.run(~r/kith-postgres-(\d+)-/, Path.basename(directory)),
        not alive?(pid) do
      with {:ok, content} <- File.read(Path.join(directory, "data/postmaster.pid")),
           [server | _] <- String.split(content, "\n"),
           true <- alive?(server),
           {:ok, command} <- File.read("/proc/#{server}/cmdline"),
           true <- String.contains?(command, directory),
           do: System.cmd("sh", ["-c", "kill -s KILL #{server}"], stderr_to_stdout: true)

      File.rm_rf(directory)
    end
  end

  defp alive?(pid),
    do: match?({_, 0}, System.cmd("sh", ["-c", "kill -0 #{pid}"], stderr_to_stdout: true))

  defp binaries do
    path = System.find_executable("initdb")

    "/usr/lib/postgresql/*/bin/initdb"
    |> Path.wildcard()
    |> Enum.sort_by(&version/1, :desc)
    |> Enum.concat(List.wrap(path))
    |> List.first()
    |> then(&(&1 && Path.dirname(&1)))
  end

  defp version(path) do
    case Integer.parse(path |> Path.split() |> Enum.at(-3)) do
      {version, _} -> version
      :error -> 0
    end
  end
end
