defmodule Kith.Test.MonitorEvents do
  @moduledoc false
  # Events as Kith emits them, given to the counts of a monitor without :telemetry.

  alias Kith.Monitor.Counts

  @paths %{
    encrypt: [:session, :encrypt],
    group_encrypt: [:group, :encrypt],
    decrypt: [:session, :decrypt],
    establish: [:session, :establish]
  }

  @doc "An operation that took so many microseconds, some times over."
  def operation(counts, name, microseconds, reason \\ nil, times \\ 1) do
    measurements = %{
      duration: System.convert_time_unit(microseconds, :microsecond, :native),
      recipients: 3,
      failed: 1
    }

    metadata = %{result: if(reason, do: :error, else: :ok), reason: reason}
    for _ <- 1..times, do: event(counts, @paths[name] ++ [:stop], measurements, metadata)
    counts
  end

  @doc "One that raised."
  def exception(counts, name) do
    event(counts, @paths[name] ++ [:exception], %{duration: 1}, %{kind: :error, reason: KeyError})
  end

  def total(counts, stock, local), do: event(counts, [:prekeys, :total], stock, %{local: local})

  def maintenance(counts, task, measurements, metadata \\ %{}) do
    metadata = Map.merge(%{task: task, result: :ok, claimed: true}, metadata)

    event(
      counts,
      [:maintenance, :run, :stop],
      Map.merge(%{count: 0, failed: 0}, measurements),
      metadata
    )
  end

  def health(counts, store, vault, microseconds \\ 1_500) do
    duration = System.convert_time_unit(microseconds, :microsecond, :native)

    reasons = %{
      store_reason: unless(store == :ok, do: store),
      vault_reason: unless(vault == :ok, do: vault)
    }

    event(
      counts,
      [:health, :check],
      %{store_duration: duration, vault_duration: duration},
      reasons
    )
  end

  def event(counts, name, measurements, metadata \\ %{}) do
    metadata = Map.put(metadata, :instance, counts.instance)
    Counts.handle([:kith | name], measurements, metadata, Counts.config(counts))
    counts
  end
end
