defmodule Kith.Crash.Driver do
  @moduledoc false
  # Starts VMs on one database, kills them at random times, and has the ledger judge what they leave.

  alias Kith.Crash.{Child, Journal, Ledger}

  @key Base.decode64!("a2l0aCBjcmFzaCBrZXktZW5jcnlwdGlvbiBrZXkgMSE=")

  @weights [
    send: 40,
    group: 10,
    deliver: 60,
    again: 4,
    twice: 3,
    reset: 1,
    replenish: 1,
    note: 1,
    visitor: 2
  ]

  # Anna and Ben have two devices.
  @addresses [
    {"anna", 1},
    {"anna", 2},
    {"ben", 1},
    {"ben", 2},
    {"cleo", 1},
    {"dora", 1},
    {"emil", 1}
  ]

  @doc """
  Plays traffic until `:kills` deaths have happened, and then the end. Returns the ledger.

    * `:store` - `:sqlite` or a repository, `:kith` - options of the instance, `:start_store` - `{module, function,
      arguments}` that connect the repository in a VM
    * `:deaths` - those inside a VM: `{death, weight}`, or `nil` for none; and `:outside`, `{death, weight, fun}`, which the driver
      calls while the VM lives. Each life ends with a kill -9
    * `:archive?` - whether plaintexts are archived: then no text goes with its caller
    * `:until` - a function of the ledger that says when enough was found. Default: at the first violation
  """
  def run(options) do
    config = config(options)
    lives(config, ledger(config), 1)
  end

  @doc "The options with the defaults of the others."
  def config(options) do
    config = Map.merge(defaults(), Map.new(options))
    :rand.seed(:exsss, {config.seed, 0, 0})
    File.mkdir_p!(config.dir)
    config
  end

  @doc "An empty ledger."
  def ledger(config),
    do: %Ledger{archive?: config.archive?, store: config.store, inbox: config.inbox}

  defp defaults do
    %{
      seed: 1,
      kills: 10,
      store: :sqlite,
      kith: [],
      archive?: false,
      longest: 300_000,
      addresses: @addresses,
      outbox: ~w(anna ben),
      inbox: ~w(anna cleo),
      workers: 4,
      busy: 120,
      weights: @weights,
      lifetime: 50..450,
      deaths: [nil: 4, caller: 3, full: 2, instance: 1],
      outside: [],
      until: &(&1.violations != []),
      report: fn _ledger, _life -> :ok end
    }
  end

  defp lives(config, ledger, life) do
    cond do
      config.until.(ledger) ->
        ledger

      Ledger.deaths(ledger) >= config.kills ->
        if ledger.violations == [], do: drain(config, ledger, life), else: ledger

      true ->
        ledger = live(config, ledger, life)
        config.report.(ledger, life)
        lives(config, ledger, life + 1)
    end
  end

  @doc """
  The last lives: all arrives, and everybody writes to everybody. The second has what the first has found in the tables of the
  application, and was the last act of those before.
  """
  def drain(config, ledger, life, left \\ 2) do
    child = start(config, ledger, life, true)
    wait_for(child, "finished")
    ledger = finish(config, ledger, child)

    cond do
      ledger.violations != [] -> ledger
      left > 1 and MapSet.size(ledger.waiting) > 0 -> drain(config, ledger, life + 1, left - 1)
      true -> Ledger.close(ledger)
    end
  end

  defp live(config, ledger, life) do
    child = start(config, ledger, life, false)

    # Now and then it does not even come up.
    ledger =
      if :rand.uniform(20) == 1 do
        Process.sleep(:rand.uniform(350))
        ledger
      else
        case wait_for(child, "ready") do
          :ok -> until_the_end(config, ledger)
          :ended -> ledger
        end
      end

    finish(config, Ledger.died(ledger, :vm), child)
  end

  defp until_the_end(config, ledger) do
    Process.sleep(Enum.random(config.lifetime))

    case draw(config.outside) do
      nil ->
        ledger

      {death, fun} ->
        fun.()
        Process.sleep(Enum.random(config.lifetime))
        Ledger.died(ledger, death)
    end
  end

  defp draw([]), do: nil

  defp draw(outside) do
    total = outside |> Enum.map(&elem(&1, 1)) |> Enum.sum()

    Enum.reduce_while(outside, :rand.uniform(total), fn {death, weight, fun}, left ->
      if left <= weight, do: {:halt, death && {death, fun}}, else: {:cont, left - weight}
    end)
  end

  defp plan(config) do
    outside = Enum.map(config.deaths, fn {death, weight} -> {death, weight, nil} end)

    case draw(outside) do
      nil -> []
      {death, _} -> [{:rand.uniform(config.lifetime.last), death}]
    end
  end

  @doc "Starts a VM with the traffic of a life."
  def start(config, ledger, life, drain?) do
    {outbox_seen, inbox_seen} = Ledger.seen(ledger)
    journal = Path.join(config.dir, "journal-#{life}")

    given = %{
      seed: config.seed,
      life: life,
      journal: journal,
      kith: instance(config),
      store: config.store,
      users: config.addresses |> Enum.map(&elem(&1, 0)) |> Enum.uniq(),
      addresses: config.addresses,
      outbox: config.outbox,
      inbox: config.inbox,
      workers: config.workers,
      busy: config.busy,
      weights: config.weights,
      plan: if(drain?, do: [], else: plan(config)),
      drain: drain?,
      chains: ledger.chains,
      pending: Ledger.pending(ledger),
      outbox_seen: outbox_seen,
      inbox_seen: inbox_seen,
      archive?: config.archive?,
      longest: config.longest,
      wires: false
    }

    given = Map.merge(given, Map.take(config, [:start_store, :steps, :guest, :wires]))
    path = Path.join(config.dir, "life-#{life}")
    File.write!(path, :erlang.term_to_binary(given))
    {port, pid} = spawn_vm(path)
    %{life: life, port: port, pid: pid, journal: journal, config: path, output: ""}
  end

  defp instance(config) do
    [
      keys: [current: {"crash", {:key, @key}}],
      one_time_prekeys: 8,
      one_time_kyber_prekeys: 4,
      replenish_below: 3,
      # Keys are rotated and thrown away all the time, with the grace that lets a late message open.
      maintenance_interval: 1,
      prekey_rotation: 2,
      archive: config.archive?
    ]
    |> Keyword.merge(config.kith)
  end

  defp spawn_vm(path) do
    # The driver of PostgreSQL may lie outside of what this Erlang looks through.
    paths =
      for module <- [Kith, Kernel, Logger, :pgsql_proto],
          path = :code.which(module),
          is_list(path),
          do: Path.dirname(path)

    arguments =
      ~w(-noshell +S 2:2 +sbwt none) ++
        Enum.flat_map(paths, &["-pa", &1]) ++
        ["-run", Atom.to_string(Child), "main", path]

    port =
      Port.open({:spawn_executable, System.find_executable("erl")}, [
        :binary,
        :exit_status,
        :stderr_to_stdout,
        env: [{~c"ERL_CRASH_DUMP_SECONDS", ~c"0"}],
        args: arguments
      ])

    {:os_pid, pid} = Port.info(port, :os_pid)
    {port, pid}
  end

  @doc "Waits until a VM says a word, or ends."
  def wait_for(%{port: port}, word) do
    receive do
      {^port, {:data, data}} ->
        if data =~ word, do: :ok, else: keep(port, data, word)

      {^port, {:exit_status, status}} ->
        # Again, for finish.
        send(self(), {port, {:exit_status, status}})
        :ended
    after
      120_000 -> raise "a VM says nothing"
    end
  end

  defp keep(port, data, word) do
    Process.put({__MODULE__, port}, Process.get({__MODULE__, port}, "") <> data)
    wait_for(%{port: port}, word)
  end

  @doc "Kills a VM, and adds what it wrote down."
  def finish(config, ledger, child) do
    System.cmd("kill", ["-9", Integer.to_string(child.pid)], stderr_to_stdout: true)
    {status, output} = drain(child.port, Process.delete({__MODULE__, child.port}) || "")
    after_life = Ledger.add_life(ledger, Journal.read(child.journal))

    # 137 is the kill, 3 a database server that is down.
    after_life =
      if status == 137 or (status == 3 and config.store != :sqlite),
        do: after_life,
        else: Ledger.violation(after_life, :unexpected, {:ended_by_itself, status, output})

    if after_life.violations == [] do
      File.rm!(child.config)
      # What led to a violation may lie some lives back.
      File.rm(Path.join(config.dir, "journal-#{child.life - 20}"))
    else
      File.write!(Path.join(config.dir, "output"), output)
    end

    after_life
  end

  defp drain(port, output) do
    receive do
      {^port, {:data, data}} -> drain(port, output <> data)
      {^port, {:exit_status, status}} -> {status, output}
    after
      30_000 -> raise "a VM does not die"
    end
  end
end
