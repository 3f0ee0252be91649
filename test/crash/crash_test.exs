defmodule Kith.CrashTest do
  # The short version of `make crash` and `make nodes`: VMs that are killed in the middle of everything, and many
  # processes at once; and proof that what Kith has to prevent would be found.
  use Kith.Case, async: true

  alias Kith.Crash.{Driver, Faults, Ledger, Nodes, Run}

  # A kill -9 takes nothing that was written, with or without fsync.
  @moduletag timeout: 600_000

  setup do
    %{dir: tmp_dir!()}
  end

  defp clean(ledger, line) do
    assert ledger.violations == [], line <> "\n" <> inspect(ledger.violations, limit: 20)
    ledger
  end

  defp seed, do: ExUnit.configuration()[:seed]

  describe "nothing is lost and nothing used twice" do
    test "when VMs, processes and instances are killed and the disk is full", %{dir: dir} do
      options = [seed: seed(), dir: dir, kith: [synchronous: :normal]]
      ledger = Run.both(&Run.sqlite/1, 16, options)
      clean(ledger, Run.line("SQLite", ledger))
      assert Ledger.deaths(ledger) >= 16
      assert ledger.counts[:messages] > 100
      assert ledger.counts[:integrity] >= 2
    end

    @tag :postgres
    test "when PostgreSQL is killed, stopped, filled up or cut off", %{dir: dir} do
      Run.on_a_small_disk(dir, fn disk ->
        options = [seed: seed(), kills: 6, dir: Path.join(dir, "run"), disk: disk]
        ledger = Run.postgres(options ++ [settings: [fsync: "off"]])
        clean(ledger, Run.line("PostgreSQL", ledger))
        assert ledger.counts[:messages] > 50
      end)
    end

    test "by many processes at once", %{dir: dir} do
      options = [seed: seed(), dir: dir, workers: 16, operations: 1_000]
      ledger = Run.processes_on_sqlite(options ++ [synchronous: :normal])
      clean(ledger, Nodes.line("SQLite", ledger, 1, 16))
      assert ledger.counts[:steps] >= 1_000
    end

    @tag :postgres
    test "by two nodes at once", %{dir: dir} do
      cluster = Kith.Test.Postgres.cluster()

      options = [
        seed: seed(),
        dir: dir,
        workers: 6,
        nodes: 2,
        operations: 2_000,
        cluster: cluster
      ]

      ledger = Run.nodes_on_postgres(options)
      clean(ledger, Nodes.line("PostgreSQL", ledger, 2, 12))
      assert ledger.counts[:steps] >= 2_000
      assert ledger.counts[:stale_returned] == nil
    end
  end

  describe "the harness finds" do
    defp faulty(module, dir, options) do
      start = {module, :start_link, [Path.join(dir, "kith.db")]}

      Driver.run(
        [
          seed: seed(),
          dir: dir,
          kith: [repo: module],
          store: module,
          start_store: start,
          deaths: [],
          # However busy the machine is.
          kills: 100
        ] ++ options
      )
    end

    test "a state that is written after its ciphertext was returned, and a plaintext that is returned before the commit",
         %{dir: dir} do
      # A key used twice, a message opened twice, and rows of the application that were committed and are gone.
      found? = fn ledger ->
        Enum.all?([:reused, :twice, :lost], &(Ledger.violations(ledger, &1) > 0))
      end

      assert found?.(faulty(Faults.WriteBehind, dir, lifetime: 200..500, until: found?))
    end

    test "a generation that is not compared", %{dir: dir} do
      found? = &(Ledger.violations(&1, :reused) > 0)
      options = [lifetime: 300..600, outbox: [], inbox: [], until: found?]
      assert found?.(faulty(Faults.Unchecked, dir, options))
    end
  end
end
