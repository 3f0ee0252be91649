# A message to a family of 2 to 30, in every way there is of doing it, in turn. Ends with the page of
# all measurements. Run by bench/run.

for file <- ~w(line_server native durable bare_commit core_table report),
    do: Code.require_file("#{file}.exs", __DIR__)

defmodule Bench.Family do
  alias Bench.{BareCommit, CoreTable, Durable, LineServer, Native, Report}

  @root Path.dirname(__DIR__)
  @sizes [2, 4, 6, 20, 30]
  @decryptions ~w(decrypt decrypt_new_chain decrypt_first)
  @official ["0.60", "0.103"]

  def main([criterion, page]) do
    quick = System.get_env("QUICK") in ["1", "true"]

    # Many short turns, since the machine is not the same for a whole minute. In one round a member hands
    # out a prekey for each cold sample of each size, at most 100.
    {rounds, per_round} =
      if quick,
        do: {4, %{established: 10, cold: 2, decrypt: 5, warm_up: 20}},
        else: {60, %{established: 25, cold: 4, decrypt: 12, warm_up: 200}}

    {:ok, _} = Application.ensure_all_started(:kith)
    load_before = load()
    directory = fresh_directory()
    layers = start(directory)
    layers = warm_up(layers, per_round.warm_up)

    {samples, layers} =
      Enum.reduce(1..rounds, {%{}, layers}, fn round, collected ->
        IO.write(:stderr, "\rround #{round} of #{rounds}")
        collected = Enum.reduce(plan(per_round), collected, &turn/2)
        Durable.refill(elem(collected, 1).durable)
        collected
      end)

    IO.puts(:stderr, "")

    report =
      Report.render(%{
        quick: quick,
        rounds: rounds,
        per_round: per_round,
        sizes: @sizes,
        samples: samples,
        officials: @official,
        versions: Map.new(@official, &{&1, hd(versions(layers[&1]))}),
        row_size: Native.state_size(layers.native),
        core: CoreTable.read(criterion),
        machine: machine(layers, directory, load_before)
      })

    File.mkdir_p!(Path.dirname(page))
    File.write!(page, report)
    IO.puts(report)
    IO.puts("Written to #{Path.relative_to(page, @root)}.")
  end

  defp start(directory) do
    native = Enum.reduce(@sizes, Native.start(), &Native.prepare(&2, &1))

    officials =
      for release <- @official, into: %{} do
        script = Path.join(__DIR__, "official.mjs")
        {release, LineServer.start("node", [script, "--client", release], @root)}
      end

    Map.merge(officials, %{
      core:
        LineServer.start(
          "cargo",
          ~w(bench --quiet --locked --package kith_protocol --bench family),
          @root
        ),
      native: native,
      durable: Durable.start(directory, Enum.max(@sizes)),
      bare: BareCommit.start(directory, Native.state_size(native))
    })
  end

  # Every line of the plan is one operation, done in turn by each way that knows it.
  defp plan(per_round) do
    fan_outs =
      for people <- @sizes,
          {operation, samples} <- [
            {"established", per_round.established},
            {"cold", per_round.cold}
          ],
          do: {operation, people, samples}

    fan_outs ++ for operation <- @decryptions, do: {operation, 2, per_round.decrypt}
  end

  defp turn({operation, people, samples}, collected) do
    ways = [:core, :native, :durable | @official]
    ways = if operation == "established", do: ways ++ [:bare], else: ways

    Enum.reduce(ways, collected, fn way, {all, layers} ->
      # What one way leaves behind is not collected on the time of the next.
      :erlang.garbage_collect()
      {times, layers} = sample(layers, way, operation, people, samples)
      {Map.update(all, {way, operation, people}, times, &(times ++ &1)), layers}
    end)
  end

  defp sample(layers, way, operation, people, samples) do
    case {way, layers[way]} do
      {_, %LineServer{} = server} ->
        {LineServer.sample(server, operation, people, samples), layers}

      {:native, state} ->
        keep(layers, way, Native.sample(state, operation, people, samples))

      {:durable, state} ->
        keep(layers, way, Durable.sample(state, operation, people, samples))

      {:bare, state} ->
        keep(layers, way, BareCommit.sample(state, operation, people, samples))
    end
  end

  defp keep(layers, way, {times, state}), do: {times, Map.put(layers, way, state)}

  # Node compiles what runs often, and every family is made on its first use.
  defp warm_up(layers, samples) do
    plan = for people <- @sizes, do: {"established", people, samples}
    plan = plan ++ for people <- @sizes, do: {"cold", people, 2}
    plan = plan ++ for operation <- @decryptions, do: {operation, 2, div(samples, 4)}
    {_, layers} = Enum.reduce(plan, {%{}, layers}, &turn/2)
    Durable.refill(layers.durable)
    layers
  end

  # Below the project: /tmp is memory on many machines, and memory makes every commit free.
  defp fresh_directory do
    directory = Path.join([@root, "tmp", "bench", "database"])
    File.rm_rf!(directory)
    File.mkdir_p!(directory)
    directory
  end

  defp machine(layers, directory, load_before) do
    [
      {"CPU", "#{cpu_model()}, #{System.schedulers_online()} cores"},
      {"Memory", memory()},
      {"System", "#{system()}, database on #{file_system(directory)}"},
      {"Load average before / after", "#{load_before} / #{load()}"},
      {"Date", Date.to_iso8601(Date.utc_today())},
      {"Kith", "#{Application.spec(:kith, :vsn)}, #{revision()}"},
      {"Rust", output("rustc", ["--version"])},
      {"Elixir / OTP", "#{System.version()} / #{System.otp_release()}"},
      {"SQLite", BareCommit.version(layers.bare)},
      {"Node", layers["0.60"] |> versions() |> List.last()},
      {"Official client", Enum.map_join(@official, " and ", &hd(versions(layers[&1])))}
    ]
  end

  defp versions(server), do: LineServer.ask(server, "info")

  defp cpu_model do
    with {:ok, text} <- File.read("/proc/cpuinfo"),
         [_, model] <- Regex.run(~r/^model name\s*:\s*(.+)$/m, text) do
      model
    else
      _ -> output("uname", ["-m"])
    end
  end

  defp memory do
    with {:ok, text} <- File.read("/proc/meminfo"),
         [_, kilobytes] <- Regex.run(~r/^MemTotal:\s*(\d+)/m, text) do
      "#{round(String.to_integer(kilobytes) / 1_048_576)} GiB"
    else
      _ -> "unknown"
    end
  end

  defp system do
    with {:ok, text} <- File.read("/etc/os-release"),
         [_, name] <- Regex.run(~r/^PRETTY_NAME="?([^"\n]+)/m, text) do
      "#{name}, Linux #{output("uname", ["-r"])}"
    else
      _ -> output("uname", ["-s"])
    end
  end

  defp file_system(directory) do
    "df" |> output(["--output=fstype", directory]) |> String.split("\n") |> List.last()
  end

  defp revision do
    changed =
      if output("git", ["status", "--porcelain", "--", "lib", "native"]) == "",
        do: "",
        else: " and changes"

    "revision #{output("git", ["rev-parse", "--short", "HEAD"])}#{changed}"
  end

  defp load do
    case File.read("/proc/loadavg") do
      {:ok, text} -> text |> String.split() |> hd()
      _ -> "unknown"
    end
  end

  defp output(program, arguments) do
    case System.cmd(program, arguments, cd: @root, stderr_to_stdout: true) do
      {text, 0} -> String.trim(text)
      _ -> "unknown"
    end
  rescue
    ErlangError -> "unknown"
  end
end

Bench.Family.main(System.argv())
