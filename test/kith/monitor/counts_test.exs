defmodule Kith.Monitor.CountsTest do
  use ExUnit.Case, async: true

  import Kith.Test.MonitorEvents

  alias Kith.Monitor.Counts

  @stock %{
    devices: 3,
    low: 2,
    one_time: 40,
    kyber_one_time: 8,
    signed_age: 60,
    last_resort_age: 90
  }

  setup do
    %{counts: Counts.new(:family, self())}
  end

  defp operation(counts, name), do: Counts.read(counts).operations[name]

  test "before anything happened all of it is nothing, and says so", %{counts: counts} do
    snapshot = Counts.read(counts)

    for {_, %{total: total, window: window}} <- snapshot.operations do
      assert total == window

      assert total == %{
               count: 0,
               errors: 0,
               error_rate: 0.0,
               reasons: %{},
               p50: nil,
               p95: nil,
               p99: nil,
               max: nil
             }
    end

    for {_, count} <- snapshot.counts, do: assert(count == %{total: 0, window: 0})
    assert %{local: nil, published: nil} = snapshot.prekeys

    assert %{store: :unknown, vault: :unknown, store_latency: nil, checked_at: nil} =
             snapshot.health

    assert snapshot.restored_at == nil
  end

  test "each operation has its own durations, of what failed too", %{counts: counts} do
    for ms <- 1..100, do: operation(counts, :encrypt, ms * 1_000)
    operation(counts, :decrypt, 5_000, :storage)
    operation(counts, :establish, 20)
    operation(counts, :group_encrypt, 30)

    assert %{total: total, window: window} = operation(counts, :encrypt)
    assert total == window
    assert %{count: 100, errors: 0, max: 100.0} = total

    for {quantile, ms} <- [p50: 50, p95: 95, p99: 99],
        do: assert_in_delta(total[quantile], ms, ms / 64)

    assert %{count: 1, errors: 1, error_rate: 1.0, max: 5.0, p50: 5.0} =
             operation(counts, :decrypt).total

    assert %{count: 1, p99: 0.02} = operation(counts, :establish).total
    assert %{count: 1, p99: 0.03} = operation(counts, :group_encrypt).total
  end

  test "a percentile is never above the longest that was measured", %{counts: counts} do
    operation(counts, :encrypt, 1_048_577)
    assert %{p50: 1048.577, p99: 1048.577, max: 1048.577} = operation(counts, :encrypt).total
  end

  test "reasons are told one by one; a second delivery and a locked account neither fail nor thin the rate",
       %{
         counts: counts
       } do
    operation(counts, :decrypt, 10, nil, 6)
    operation(counts, :decrypt, 10, :tampered, 2)
    operation(counts, :decrypt, 10, :duplicate, 100)
    operation(counts, :decrypt, 10, :locked, 100)

    assert %{count: 208, errors: 2, error_rate: 0.25, reasons: reasons} =
             operation(counts, :decrypt).window

    assert reasons == %{tampered: 2, duplicate: 100, locked: 100}
  end

  test "every reason there is, what raised, and a reason nobody knows are counted", %{
    counts: counts
  } do
    for reason <- Kith.Error.reasons(), do: operation(counts, :decrypt, 10, reason)
    exception(counts, :decrypt)
    operation(counts, :decrypt, 10, :of_tomorrow)
    total = length(Kith.Error.reasons()) + 2
    assert %{count: ^total, reasons: reasons} = operation(counts, :decrypt).total
    assert reasons == Kith.Error.reasons() |> Map.new(&{&1, 1}) |> Map.put(:exception, 2)
  end

  test "the window forgets what is older than its slices, and the total does not", %{
    counts: counts
  } do
    operation(counts, :encrypt, 9_000, :stale)
    event(counts, [:nif, :panic], %{count: 1})

    for turn <- 1..10 do
      Counts.turn(counts)
      operation(counts, :encrypt, 1_000)
      window = operation(counts, :encrypt).window
      assert {turn, window.count} == {turn, 1 + turn}
      assert window.max == 9.0
      assert Counts.read(counts).counts.panics == %{total: 1, window: 1}
    end

    Counts.turn(counts)
    assert %{window: window, total: total} = operation(counts, :encrypt)
    assert %{count: 10, errors: 0, max: 1.0} = window
    assert window.error_rate == 0.0
    assert window.reasons == %{}
    assert_in_delta window.p99, 1.0, 1 / 64
    assert %{count: 11, errors: 1, reasons: %{stale: 1}, max: 9.0} = total
    assert Counts.read(counts).counts.panics == %{total: 1, window: 0}

    for _ <- 1..11, do: Counts.turn(counts)
    assert %{window: %{count: 0, max: nil}, total: %{count: 11}} = operation(counts, :encrypt)
  end

  test "nothing is lost however many processes count at once", %{counts: counts} do
    1..8
    |> Enum.map(fn process ->
      Task.async(fn ->
        for index <- 1..2_000 do
          operation(counts, :encrypt, process * 1_000 + index)
          if process == 1 and rem(index, 500) == 0, do: Counts.turn(counts)
        end
      end)
    end)
    |> Task.await_many()

    assert %{total: total, window: window} = operation(counts, :encrypt)
    assert total.count == 16_000
    assert total.max == 10.0
    # A page that is current in one moment is not emptied in the next.
    assert window.count == 16_000

    assert [{:encrypt, bounds, 16_000, sum} | _] = Counts.exact(counts)

    assert_in_delta sum,
                    Enum.sum(for(p <- 1..8, i <- 1..2_000, do: p * 1_000 + i)) / 1_000_000,
                    1.0e-6

    assert {0.01, 16_000} in bounds
  end

  test "counts of what happened", %{counts: counts} do
    event(counts, [:nif, :panic], %{count: 2})
    event(counts, [:installation, :restored], %{sessions: 5})
    event(counts, [:archive, :redelivery], %{count: 1})
    event(counts, [:session, :recover, :stop], %{reports: 1})
    event(counts, [:session, :resend, :stop], %{messages: 3})
    event(counts, [:prekeys, :claim, :stop], %{count: 0}, %{result: :ok})
    event(counts, [:prekeys, :claim, :stop], %{count: 1}, %{result: :ok})
    event(counts, [:prekeys, :claim, :stop], %{count: 0}, %{result: :error})
    operation(counts, :group_encrypt, 10)
    maintenance(counts, :purge, %{failed: 2})
    maintenance(counts, :expire, %{}, %{result: :error})
    event(counts, [:maintenance, :run, :exception], %{duration: 1})

    counted = Counts.read(counts).counts

    assert Map.new(counted, fn {name, count} -> {name, count.total} end) == %{
             panics: 2,
             restored: 1,
             redeliveries: 1,
             reports: 1,
             resends: 3,
             prekeys_exhausted: 1,
             recipients: 3,
             failed_recipients: 1,
             maintenance_failures: 4
           }

    for {_, count} <- counted, do: assert(count.total == count.window)
    assert %DateTime{} = Counts.read(counts).restored_at
  end

  test "the stock is that of the last pass, and what a pass filled up is not low any more", %{
    counts: counts
  } do
    total(counts, @stock, true)
    total(counts, %{@stock | devices: 7}, false)
    assert %{local: local, published: published} = Counts.read(counts).prekeys
    assert local == Map.merge(@stock, %{at: local.at, low_left: 0})
    assert published == %{@stock | devices: 7} |> Map.put(:at, published.at)

    maintenance(counts, :replenish, %{count: 2})
    assert Counts.read(counts).prekeys.local.low_left == 0
    maintenance(counts, :replenish, %{count: 1, failed: 1})
    assert Counts.read(counts).prekeys.local.low_left == 1
    # What another node did, and other tasks, say nothing of it.
    maintenance(counts, :replenish, %{count: 2}, %{claimed: false})
    maintenance(counts, :purge, %{count: 2})
    assert Counts.read(counts).prekeys.local.low_left == 1
  end

  test "health is that of the last check; an instance that never ran has not begun", %{
    counts: counts
  } do
    Counts.not_running(counts)
    assert %{store: :unknown, vault: :unknown} = Counts.read(counts).health

    health(counts, :ok, :key_not_found)
    assert %{store: :ok, vault: :key_not_found, store_latency: 1.5} = Counts.read(counts).health
    health(counts, :storage, :ok, 2_000)
    assert %{store: :storage, vault: :ok, vault_latency: 2.0} = Counts.read(counts).health
    Counts.not_running(counts)
    assert %{store: :not_running, vault: :not_running} = Counts.read(counts).health
  end

  test "what cannot wait sends one message until the process has looked", %{counts: counts} do
    operation(counts, :encrypt, 10, :storage)
    health(counts, :ok, :ok)
    assert_received :nudged
    Counts.looked(counts)
    # As before.
    health(counts, :ok, :ok)
    refute_received :nudged

    for _ <- 1..100, do: event(counts, [:nif, :panic], %{count: 1})
    assert_received :nudged
    refute_received :nudged
    Counts.looked(counts)
    event(counts, [:installation, :restored], %{sessions: 1})
    assert_received :nudged
  end

  test "events of another instance, and events with anything missing, count nothing and do not raise",
       %{counts: counts} do
    measurements = %{duration: 1, count: 1, failed: 0}
    config = Counts.config(counts)

    for event <- Counts.events(), metadata <- [%{instance: :other}, %{instance: :family}, %{}] do
      assert :ok = Counts.handle(event, %{}, metadata, config)

      if metadata != %{instance: :family},
        do: assert(:ok = Counts.handle(event, measurements, metadata, config))
    end

    assert :ok = Counts.handle([:kith, :not, :known], measurements, %{instance: :family}, config)
    for {_, count} <- Counts.read(counts).counts, do: assert(count.total in [0, 1])
    assert Counts.read(counts).counts.panics.total == 0
    for {_, %{total: total}} <- Counts.read(counts).operations, do: assert(total.count == 0)
  end

  test "no count takes room that grows with what is counted", %{counts: counts} do
    before = Counts.memory(counts)

    for index <- 1..5_000,
        do: operation(counts, :encrypt, index * 1_000_003, Enum.random(Kith.Error.reasons()))

    assert Counts.memory(counts) == before
    assert before < 500_000
  end
end
