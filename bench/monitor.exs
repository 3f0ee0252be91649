# What a Kith.Monitor costs: an event with it, beside one without a handler and one with a handler that does nothing, and a
# message with it and without. In turns, the fastest of many rounds, so that what else the machine does is left out. It takes
# :telemetry:
#
#   MIX_ENV=prod .ci/newest mix run --no-start bench/monitor.exs

defmodule Bench.Monitor do
  @compile {:no_warn_undefined, :telemetry}

  @rounds 60
  @events 20_000
  @messages 100

  @event [:kith, :session, :encrypt, :stop]

  def run do
    {:ok, _} = Application.ensure_all_started(:telemetry)
    {:ok, _} = Application.ensure_all_started(:kith)
    folder = Path.join(System.tmp_dir!(), "kith-bench-#{System.pid()}")
    File.mkdir_p!(folder)

    try do
      events()
      messages(folder)
      looks()
    after
      File.rm_rf!(folder)
    end
  end

  defp events do
    samples =
      for _ <- 1..@rounds,
          {kind, attach} <- kinds(),
          processes <- [1, System.schedulers_online()] do
        detach = attach.(:bench)
        time = parallel(processes, fn -> emit(:bench, @events) end)
        detach.()
        {{kind, processes}, time / @events}
      end

    figures = fastest(samples)

    for processes <- Enum.uniq([1, System.schedulers_online()]) do
      of = &figures[{&1, processes}]

      IO.puts(
        "an event, #{processes} processes: #{ns(of.(:none))} without a handler, #{ns(of.(:empty))} with one that does " <>
          "nothing, #{ns(of.(:monitor))} with a monitor, #{ns(of.(:other))} with a monitor of another instance"
      )
    end
  end

  defp kinds do
    [
      none: fn _ -> fn -> :ok end end,
      empty: fn _ ->
        :ok = :telemetry.attach(:empty, @event, &__MODULE__.nothing/4, nil)
        fn -> :telemetry.detach(:empty) end
      end,
      monitor: &monitor/1,
      other: fn _ -> monitor(:another) end
    ]
  end

  def nothing(_event, _measurements, _metadata, _config), do: :ok

  defp monitor(instance) do
    {:ok, pid} = Kith.Monitor.start_link(instance: instance, health_interval: :off, log: false)
    fn -> GenServer.stop(pid) end
  end

  defp emit(_instance, 0), do: :ok

  defp emit(instance, left) do
    :telemetry.execute(@event, %{duration: 150_000 + left * 37, monotonic_time: left}, %{
      instance: instance,
      user_id: "anna",
      device_id: 1,
      peer_id: "ben",
      peer_device_id: nil,
      result: :ok,
      reason: nil,
      type: :message
    })

    emit(instance, left - 1)
  end

  defp messages(folder) do
    options = [
      name: :bench,
      database: Path.join(folder, "kith.db"),
      synchronous: :normal,
      maintenance_interval: :off,
      keys: [current: {"bench", {:key, :crypto.strong_rand_bytes(32)}}]
    ]

    {:ok, _} = Kith.start_link(options)
    for user <- ~w(anna ben), do: Kith.register!(:bench, user)
    talk(:bench, 200)

    samples =
      for _ <- 1..@rounds, {kind, attach} <- kinds(), kind in [:none, :monitor] do
        detach = attach.(:bench)
        {time, :ok} = :timer.tc(fn -> talk(:bench, @messages) end)
        detach.()
        {kind, time * 1_000 / @messages}
      end

    %{none: without, monitor: with_it} = fastest(samples)

    IO.puts(
      "a message, encrypted and opened: #{ns(without)} without, #{ns(with_it)} with a monitor, " <>
        "#{Float.round(with_it / without, 3)} times as long"
    )
  end

  defp talk(_name, 0), do: :ok

  defp talk(name, left) do
    [envelope] = Kith.encrypt!(name, "anna", "ben", "dinner at seven?")
    Kith.decrypt!(name, "ben", envelope)
    talk(name, left - 1)
  end

  defp looks do
    detach = monitor(:bench)
    emit(:bench, @events)

    for {what, fun} <- [
          {"a snapshot", fn -> Kith.Monitor.snapshot(:bench) end},
          {"a look at the rules", fn -> Kith.Monitor.alerts(:bench) end},
          {"the text for Prometheus", fn -> Kith.Monitor.prometheus(:bench) end}
        ] do
      times = for _ <- 1..50, do: fun |> :timer.tc() |> elem(0)
      IO.puts("#{what}: #{ns(Enum.min(times) * 1_000)}")
    end

    [{_, %{counts: counts}}] = Registry.lookup(Kith.Registry, {Kith.Monitor, :bench})
    IO.puts("memory: #{div(Kith.Monitor.Counts.memory(counts), 1_024)} KiB")
    detach.()
  end

  # The time of the slowest, in nanoseconds.
  defp parallel(processes, fun) do
    for(_ <- 1..processes, do: Task.async(fn -> :timer.tc(fun) |> elem(0) end))
    |> Task.await_many(:infinity)
    |> Enum.max()
    |> Kernel.*(1_000)
  end

  defp fastest(samples) do
    samples
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    |> Map.new(fn {kind, times} -> {kind, Enum.min(times)} end)
  end

  defp ns(time) when time < 10_000, do: "#{round(time)} ns"
  defp ns(time), do: "#{Float.round(time / 1_000, 1)} µs"
end

Bench.Monitor.run()
