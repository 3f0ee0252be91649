defmodule Kith.Crash.Nodes do
  @moduledoc false
  # Several VMs at once on one database, with many processes each, on the same sessions. Nobody dies: what is looked for
  # are two who go on from one state, and two who wait for each other.

  alias Kith.Crash.{Driver, Journal, Ledger}

  # More of what two nodes can do to each other: groups in any order, sessions that start on both at once, and from
  # both sides, and users who come and go.
  @weights [
    send: 40,
    group: 14,
    deliver: 70,
    again: 3,
    twice: 3,
    cold: 2,
    reset: 1,
    replenish: 1,
    note: 1,
    visitor: 3
  ]

  # Milliseconds for all of it.
  @longest 7_200_000

  @doc """
  Plays `:operations` steps on `:nodes` VMs of `:workers` processes each, then delivers the rest and lets everybody write
  to everybody. Options beside those are the driver's. Returns the ledger.
  """
  def run(options) do
    {nodes, options} = Keyword.pop!(options, :nodes)
    {operations, options} = Keyword.pop!(options, :operations)
    workers = Keyword.fetch!(options, :workers)

    config =
      Driver.config(
        Keyword.merge(
          [
            weights: @weights,
            deaths: [],
            wires: nodes > 1,
            guest: true,
            longest: @longest,
            # Two networks deliver without knowing of each other, so neither may be late.
            busy: 20 * workers,
            steps: div(operations, nodes * workers)
          ],
          options
        )
      )

    ledger = Driver.ledger(config)
    vms = for node <- 1..nodes, do: Driver.start(config, ledger, node, false)
    progress = %{ready: 0, through: 0, finished: MapSet.new()}
    relay(Map.new(vms, &{&1.port, &1}), Map.new(vms, &{&1.port, ""}), progress)
    ledger = together(ledger, Enum.map(vms, &Journal.read(&1.journal)))
    ledger = Enum.reduce(vms, ledger, &Driver.finish(config, &2, %{&1 | journal: "none"}))

    if ledger.violations == [],
      do: Driver.drain(config, ledger, nodes + 1),
      else: ledger
  end

  # A message that one node opens may be another's.
  defp together(ledger, journals) do
    {sent, rest} =
      journals
      |> Enum.concat()
      # What one found at its start is what others had done by then. The last life looks again.
      |> Enum.reject(&(kind(&1) in [:recovered, :in_outbox, :in_inbox]))
      |> Enum.split_with(&(kind(&1) == :sent))

    Ledger.add_life(ledger, sent ++ rest)
  end

  defp kind(entry), do: if(is_tuple(entry), do: elem(entry, 0), else: entry)

  # Passes on what the nodes write to each other, until all have finished.
  defp relay(vms, buffers, progress) do
    if MapSet.size(progress.finished) == map_size(vms) do
      :ok
    else
      receive do
        {port, {:data, data}} when is_map_key(vms, port) ->
          [rest | lines] = (buffers[port] <> data) |> String.split("\n") |> Enum.reverse()
          others = Map.keys(vms) -- [port]

          progress =
            Enum.reduce(lines, progress, fn
              "ready", progress -> all(Map.keys(vms), progress, :ready, "go\n")
              "through", progress -> all(Map.keys(vms), progress, :through, "stop\n")
              "finished", progress -> update_in(progress.finished, &MapSet.put(&1, port))
              "wire " <> _ = line, progress -> pass(line, others, progress)
              line, progress -> said(port, line, progress)
            end)

          relay(vms, %{buffers | port => rest}, progress)

        {port, {:exit_status, status}} when is_map_key(vms, port) ->
          send(self(), {port, {:exit_status, status}})
          relay(vms, buffers, %{progress | finished: MapSet.new(Map.keys(vms))})
      after
        # A node ends by itself when it takes too long.
        2 * @longest -> raise "the nodes say nothing"
      end
    end
  end

  # They begin when all of them can, and end when all have done what they had to.
  defp all(ports, progress, step, word) do
    count = Map.fetch!(progress, step) + 1
    if count == length(ports), do: Enum.each(ports, &Port.command(&1, word))
    %{progress | step => count}
  end

  # For the report of a node that ends by itself.
  defp said(port, line, progress) do
    Process.put({Driver, port}, Process.get({Driver, port}, "") <> line <> "\n")
    progress
  end

  defp pass(line, others, progress) do
    Port.command(Enum.random(others), [line, "\n"])
    progress
  end

  @doc "The line that closes a run."
  def line(store, ledger, nodes, processes) do
    counts = fn kind -> Map.get(ledger.counts, kind, 0) end

    bad =
      for kind <- [:lost, :reused, :twice, :undecryptable, :unexpected],
          do:
            "#{if kind == :twice, do: "opened twice", else: kind} #{Ledger.violations(ledger, kind)}"

    "#{store}: #{nodes} #{if nodes == 1, do: "node", else: "nodes"}, #{processes} processes, " <>
      "#{counts.(:steps)} operations, #{counts.(:messages)} messages, " <>
      "races lost and repeated #{counts.(:lost_races)}, stale returned #{counts.(:stale_returned)} " <>
      "(in a transaction of the application #{counts.(:stale_joined)}), " <>
      "deadlocks #{counts.(:deadlocks)}, #{Enum.join(bad, ", ")}"
  end
end
