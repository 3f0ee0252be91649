defmodule Kith.Crash.CountingRepo do
  @moduledoc false
  # The repository of the harness on PostgreSQL. It counts the races that were lost, which Kith repeats in silence.

  alias Kith.Test.Postgres.Repo

  def start_link(options) do
    :persistent_term.put(__MODULE__, :counters.new(1, []))
    Repo.start_link(__MODULE__, options)
  end

  @doc "How many transactions ended with :stale."
  def lost_races, do: :counters.get(:persistent_term.get(__MODULE__), 1)

  def query(sql, params, _options), do: Repo.query(__MODULE__, sql, params)
  def in_transaction?, do: Repo.in_transaction?(__MODULE__)
  def rollback(value), do: Repo.rollback(__MODULE__, value)

  def transaction(fun, _options) do
    Repo.transaction(__MODULE__, fun)
  rescue
    error in Kith.Error ->
      if error.reason == :stale and not in_transaction?(),
        do: :counters.add(:persistent_term.get(__MODULE__), 1, 1)

      reraise error, __STACKTRACE__
  end
end
