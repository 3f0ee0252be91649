defmodule Bench.Report do
  # The measurements as a page of Markdown. Every number on it comes from the run.

  @budget_message 15_000_000
  @budget_six 90_000_000

  def render(run) do
    IO.iodata_to_binary([
      "# Benchmarks\n\n",
      "Written by `make bench`; do not edit. ",
      if(run.quick, do: "**A quick run: too few samples to quote.** ", else: ""),
      "The plaintext has 256 bytes. Compare columns of one table only: the machine's load moves all of a\n",
      "table alike, and no number of one run with those of another.\n\n",
      machine(run),
      budget(run),
      families(run, "established", "A message to a family, sessions established"),
      families(run, "cold", "A message to a family, sessions to be established"),
      decrypt(run),
      commit(run),
      core(run),
      method(run)
    ])
  end

  defp machine(%{machine: machine}) do
    [
      "## Machine and versions\n\n",
      for({name, value} <- machine, do: "- #{name}: #{value}\n"),
      "\n"
    ]
  end

  defp budget(run) do
    rows =
      for {name, people, operation, budget} <- [
            {"one message", 2, "established", @budget_message},
            {"one message, session to be established", 2, "cold", @budget_message},
            {"a family of six", 6, "established", @budget_six},
            {"a family of six, sessions to be established", 6, "cold", @budget_six}
          ] do
        samples = run.samples[{:durable, operation, people}]
        {p50, p99} = {percentile(samples, 50), percentile(samples, 99)}

        sum =
          case operation do
            "established" -> Bench.CoreTable.per_message(run.core)
            "cold" -> Bench.CoreTable.per_session(run.core)
          end * (people - 1)

        [
          name,
          micros(budget),
          micros(p50),
          micros(p99),
          times(budget / p50),
          times(budget / p99),
          micros(sum),
          times(p50 / sum)
        ]
      end

    [
      "## Distance to the budget\n\n",
      "The budget of the first user is 15 ms for a message and 90 ms for one to a family of six, stored durably.\n",
      "Microseconds. Where budget / p99 is below 1, one call in a hundred missed the budget.\n\n",
      table(
        [
          "durable on SQLite",
          "budget",
          "p50",
          "p99",
          "budget / p50",
          "budget / p99",
          "sum of primitives",
          "p50 / sum"
        ],
        rows
      ),
      "\n"
    ]
  end

  defp families(run, operation, title) do
    ours = for layer <- [:core, :native, :durable], do: {layer, name(run, layer)}
    officials = for layer <- run.officials, do: {layer, name(run, layer)}
    oldest = hd(run.officials)

    rows =
      for people <- run.sizes do
        cells =
          for {layer, _} <- ours ++ officials,
              samples = run.samples[{layer, operation, people}],
              do: "#{micros(percentile(samples, 50))} / #{micros(percentile(samples, 99))}"

        ratios =
          for {layer, _} <- ours, {official, _} <- officials do
            ratio(run, {layer, operation, people}, {official, operation, people})
          end

        {people, cells, ratios}
      end

    [
      "## #{title}\n\n",
      "p50 / p99 in microseconds, for the whole fan-out.\n\n",
      table(
        ["people" | Enum.map(ours ++ officials, &elem(&1, 1))],
        for({people, cells, _} <- rows, do: ["#{people}" | cells])
      ),
      "\nOurs divided by the official client's, p50. #{compared(run, oldest)}\n\n",
      table(
        [
          "people"
          | for({_, ours} <- ours, {_, official} <- officials, do: "#{ours} / #{official}")
        ],
        for({people, _, ratios} <- rows, do: ["#{people}" | ratios])
      ),
      "\n"
    ]
  end

  defp compared(run, oldest) do
    "#{String.capitalize(name(run, oldest))} speaks version 3 here and does less work; the later release speaks " <>
      "version 4, as Kith does. Neither stores anything on a disk."
  end

  defp decrypt(run) do
    layers = [:core, :native, :durable | run.officials]
    oldest = hd(run.officials)

    rows =
      for {operation, title} <- [
            {"decrypt", "same chain"},
            {"decrypt_new_chain", "new chain"},
            {"decrypt_first", "first message"}
          ] do
        cells =
          for layer <- layers, samples = run.samples[{layer, operation, 2}] do
            "#{micros(percentile(samples, 50))} / #{micros(percentile(samples, 99))}"
          end

        ratios =
          for layer <- [:core, :native, :durable],
              do: ratio(run, {layer, operation, 2}, {oldest, operation, 2})

        [title | cells ++ ratios]
      end

    header =
      Enum.map(layers, &name(run, &1)) ++
        for layer <- [:core, :native, :durable],
            do: "#{name(run, layer)} / #{name(run, oldest)}"

    [
      "## Decrypt one message\n\n",
      "p50 / p99 in microseconds, then ratios of p50.\n\n",
      table(["" | header], rows),
      "\n"
    ]
  end

  defp commit(run) do
    rows =
      for people <- run.sizes do
        bare = run.samples[{:bare, "established", people}]
        durable = run.samples[{:durable, "established", people}]
        one = run.samples[{:durable, "established", 2}]

        [
          "#{people - 1}",
          "#{micros(percentile(bare, 50))} / #{micros(percentile(bare, 99))}",
          "#{micros(percentile(durable, 50))} / #{micros(percentile(durable, 99))}",
          times(percentile(durable, 50) / percentile(bare, 50)),
          times(percentile(durable, 50) / percentile(one, 50))
        ]
      end

    [
      "## What durability costs\n\n",
      "The bare commit is one upsert of as many rows of the same size (#{run.row_size} bytes of state), through\n",
      "the same connection. p50 / p99 in microseconds, then ratios of p50.\n\n",
      table(
        [
          "rows",
          "bare commit",
          "durable fan-out",
          "durable / bare",
          "against one durable message"
        ],
        rows
      ),
      "\n"
    ]
  end

  defp core(%{core: core}) do
    operations =
      for {name, median, sum} <- core.operations do
        [name, micros(median), (sum && micros(sum)) || "", (sum && times(median / sum)) || ""]
      end

    [
      "## The core, beside its primitives\n\n",
      "Medians of criterion in microseconds. The sum counts the calls of cryptographic primitives an operation\n",
      "cannot do without, each as measured in the same run.\n\n",
      table(["operation", "median", "sum of primitives", "ratio"], operations),
      "\n",
      table(
        ["primitive", "median"],
        for({name, median} <- core.primitives, do: [name, micros(median)])
      ),
      "\n"
    ]
  end

  defp method(run) do
    """
    ## Method

    - `cargo bench --bench core` gives the core's table. The rest is #{run.rounds} rounds; in each, every way of
      doing the same takes its turn, with #{run.per_round.established} samples of a fan-out over established
      sessions, #{run.per_round.cold} over sessions to be established, #{run.per_round.decrypt} of a decryption. One caller.
    - Core: `SessionRecord::encrypt` for each recipient, sessions as values in memory. NIF: one call of
      `Kith.Native.session_encrypt` from Elixir, state sealed on both sides of it. Durable:
      `Kith.encrypt_group/4` and `Kith.decrypt/3` on SQLite, WAL, `synchronous=FULL`: returned after the commit.
      No telemetry handler is attached.
    - To establish is to check a bundle, agree on keys and encrypt. The durable way also claims the
      recipients' one-time prekeys in the same transaction; the others are handed the bundles.
    - The official client runs in Node with stores in memory that keep serialized records, since its interface
      loads and stores one in every call. Its calls for one fan-out are awaited together.
    - A sample is one call, timed by the caller's clock, so p99 includes collections of garbage and whatever else
      the machine did. Load on the machine is listed above.
    """
  end

  defp name(_run, :core), do: "core"
  defp name(_run, :native), do: "NIF"
  defp name(_run, :durable), do: "durable"
  defp name(run, official), do: "official #{run.versions[official]}"

  defp ratio(run, ours, theirs),
    do: times(percentile(run.samples[ours], 50) / percentile(run.samples[theirs], 50))

  def percentile(samples, percent) do
    sorted = Enum.sort(samples)
    Enum.at(sorted, min(div(length(sorted) * percent, 100), length(sorted) - 1))
  end

  defp table(header, rows) do
    widths =
      Enum.zip_with([header | rows], fn column ->
        column |> Enum.map(&String.length/1) |> Enum.max() |> max(3)
      end)

    line = fn cells ->
      cells
      |> Enum.zip(widths)
      |> Enum.map_join(" | ", fn {cell, width} -> String.pad_trailing(cell, width) end)
      |> then(&"| #{&1} |\n")
    end

    [line.(header), line.(Enum.map(widths, &String.duplicate("-", &1))) | Enum.map(rows, line)]
  end

  defp times(ratio), do: "#{significant(ratio)} ×"
  defp micros(nanoseconds), do: significant(nanoseconds / 1_000)

  # Three digits, no more than a measurement is worth.
  defp significant(number) when number >= 99.95 do
    digits = number |> round() |> Integer.to_string()

    digits
    |> String.reverse()
    |> String.replace(~r/(\d{3})(?=\d)/, "\\1,")
    |> String.reverse()
  end

  defp significant(number) when number >= 9.995, do: :erlang.float_to_binary(number, decimals: 1)

  defp significant(number) when number >= 0.0995,
    do: :erlang.float_to_binary(number / 1, decimals: 2)

  defp significant(number), do: :erlang.float_to_binary(number / 1, decimals: 3)
end
