defmodule Kith.Monitor.Counts do
  @moduledoc false
  # What a monitor has counted, in arrays of integers that every process adds to without waiting for another. Its size is
  # fixed when it is made.
  #
  # There is one page of counts for all time and a ring of pages for the window, each a slice of it. The process of the
  # monitor empties the next page and then makes it the current one; a handler only asks which one that is. So a slice that
  # is too long because the process was late is too long, and never has counts of another time in it.

  alias Kith.Error
  alias Kith.Monitor.Histogram

  # Slices of a window. The current one is not over yet: the window is up to one slice longer.
  @slices 10
  @ring @slices + 1

  @operations [:encrypt, :group_encrypt, :decrypt, :establish]

  # A message that comes twice was opened before, and what a locked account gets waits for its user: that is no failure.
  # Left out of the error rate altogether, so that they do not thin it either.
  @expected [:duplicate, :locked]

  # The last one is for a span that raised.
  @outcomes [:ok | Error.reasons()] ++ [:exception]

  @marks [
    :panics,
    :restored,
    :redeliveries,
    :maintenance_failures,
    :prekeys_exhausted,
    :reports,
    :resends,
    :recipients,
    :failed_recipients
  ]

  @stock [:devices, :low, :one_time, :kyber_one_time, :signed_age, :last_resort_age]
  @gauges [
            :current,
            :nudged,
            :store,
            :store_duration,
            :vault,
            :vault_duration,
            :checked_at,
            :restored_at,
            :prekeys_low_left
          ] ++
            for(keys <- [:local, :published], name <- [:at | @stock], do: {keys, name})

  # How what an atomic says of health is spelled.
  @conditions [:unknown, :ok, :not_running | Error.reasons()]

  # Upper bounds, in microseconds, of what Prometheus gets. Counted apart, so that each is exact.
  @bounds [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000] ++
            [500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000]

  @buckets Histogram.size()
  @operation_size @buckets + length(@outcomes)
  @page_size @operation_size * length(@operations) + length(@marks)

  # Those below each bound, those above all, and the sum of microseconds.
  @exact_size length(@bounds) + 2

  @events [
    [:kith, :session, :encrypt, :stop],
    [:kith, :session, :encrypt, :exception],
    [:kith, :group, :encrypt, :stop],
    [:kith, :group, :encrypt, :exception],
    [:kith, :session, :decrypt, :stop],
    [:kith, :session, :decrypt, :exception],
    [:kith, :session, :establish, :stop],
    [:kith, :session, :recover, :stop],
    [:kith, :session, :resend, :stop],
    [:kith, :prekeys, :claim, :stop],
    [:kith, :prekeys, :total],
    [:kith, :maintenance, :run, :stop],
    [:kith, :maintenance, :run, :exception],
    [:kith, :installation, :restored],
    [:kith, :archive, :redelivery],
    [:kith, :nif, :panic],
    [:kith, :health, :check]
  ]

  @enforce_keys [:instance, :process, :started, :started_at, :total, :exact, :pages, :most] ++
                  [:begun, :gauges]
  defstruct @enforce_keys

  @type t :: %__MODULE__{}

  @doc "The events that are counted."
  def events, do: @events

  @doc "The operations whose duration is counted."
  def operations, do: @operations

  @doc "What an operation that does not answer `:ok` may end with."
  def reasons, do: tl(@outcomes)

  @doc "How long a slice of a window is."
  def slice(window_ms), do: div(window_ms, @slices)

  @doc "Room for the counts of an instance. `process` gets `:nudged` when something happened that cannot wait."
  @spec new(term, pid) :: t
  def new(instance, process) do
    operations = length(@operations)

    counts = %__MODULE__{
      instance: instance,
      process: process,
      started: now(),
      started_at: DateTime.utc_now(),
      total: :counters.new(@page_size, []),
      exact: :counters.new(@exact_size * operations, []),
      pages: List.to_tuple(for _ <- 1..@ring, do: :counters.new(@page_size, [])),
      # The longest duration of each operation: of all time, then of each page.
      most: :atomics.new((@ring + 1) * operations, signed: false),
      # When each page was begun, in milliseconds from the start. 0 for one that was not.
      begun: :atomics.new(@ring, signed: false),
      gauges: :atomics.new(length(@gauges), signed: true)
    }

    :atomics.put(counts.begun, 1, 1)
    counts
  end

  defp now, do: System.monotonic_time(:millisecond)

  @doc "Begins the next slice of the window. Called by one process alone."
  @spec turn(t) :: :ok
  def turn(%{pages: pages, most: most, begun: begun} = counts) do
    next = rem(get(counts, :current) + 1, @ring)
    page = elem(pages, next)
    for index <- 1..@page_size, do: :counters.put(page, index, 0)

    for operation <- 0..(length(@operations) - 1),
        do: :atomics.put(most, most(next + 1, operation), 0)

    :atomics.put(begun, next + 1, max(now() - counts.started, 1))
    put(counts, :current, next)
  end

  # A handler that raises is detached. None of this does, and should it, the event is lost and no other.
  @doc "The handler of the events."
  def handle(
        event,
        measurements,
        %{instance: instance} = metadata,
        %{instance: instance} = counts
      ) do
    count(event, measurements, metadata, counts)
  catch
    _kind, _reason -> :ok
  end

  def handle(_event, _measurements, _metadata, _counts), do: :ok

  for {name, index} <- Enum.with_index(@operations) do
    path = %{
      encrypt: [:session, :encrypt],
      group_encrypt: [:group, :encrypt],
      decrypt: [:session, :decrypt],
      establish: [:session, :establish]
    }

    defp count([:kith, unquote_splicing(path[name]), :stop], measurements, metadata, counts) do
      add(counts, unquote(index), measurements.duration, outcome(metadata.reason))
      if unquote(name == :group_encrypt), do: recipients(counts, measurements)
    end

    defp count(
           [:kith, unquote_splicing(path[name]), :exception],
           measurements,
           _metadata,
           counts
         ),
         do: add(counts, unquote(index), measurements.duration, outcome(:exception))
  end

  defp count([:kith, :nif, :panic], %{count: count}, _metadata, counts) do
    mark(counts, :panics, count)
    nudge(counts)
  end

  defp count([:kith, :installation, :restored], _measurements, _metadata, counts) do
    mark(counts, :restored, 1)
    put(counts, :restored_at, System.system_time(:second))
    nudge(counts)
  end

  defp count([:kith, :archive, :redelivery], %{count: count}, _metadata, counts),
    do: mark(counts, :redeliveries, count)

  defp count([:kith, :session, :recover, :stop], %{reports: reports}, _metadata, counts),
    do: mark(counts, :reports, reports)

  defp count([:kith, :session, :resend, :stop], %{messages: messages}, _metadata, counts),
    do: mark(counts, :resends, messages)

  # A bundle without a one-time prekey.
  defp count([:kith, :prekeys, :claim, :stop], %{count: 0}, %{result: :ok}, counts),
    do: mark(counts, :prekeys_exhausted, 1)

  defp count([:kith, :prekeys, :claim, :stop], _measurements, _metadata, _counts), do: :ok

  defp count([:kith, :prekeys, :total], measurements, %{local: local}, counts) do
    keys = if local, do: :local, else: :published
    for name <- @stock, do: put(counts, {keys, name}, Map.fetch!(measurements, name))
    put(counts, {keys, :at}, System.system_time(:second))
  end

  defp count([:kith, :maintenance, :run, :stop], measurements, metadata, counts) do
    %{count: count, failed: failed} = measurements
    %{task: task, result: result, claimed: claimed} = metadata
    failures = failed + if(result == :error, do: 1, else: 0)
    if failures > 0, do: mark(counts, :maintenance_failures, failures)

    # Those that were low when the pass found them, and were not filled up by it.
    if task == :replenish and result == :ok and claimed do
      put(counts, :prekeys_low_left, max(get(counts, {:local, :low}) - count, 0))
      nudge(counts)
    end
  end

  defp count([:kith, :maintenance, :run, :exception], _measurements, _metadata, counts),
    do: mark(counts, :maintenance_failures, 1)

  defp count([:kith, :health, :check], measurements, metadata, counts) do
    before = {get(counts, :store), get(counts, :vault)}
    put(counts, :store, condition(metadata.store_reason || :ok))
    put(counts, :vault, condition(metadata.vault_reason || :ok))
    put(counts, :store_duration, us(measurements.store_duration))
    put(counts, :vault_duration, us(measurements.vault_duration))
    put(counts, :checked_at, System.system_time(:second))
    if {get(counts, :store), get(counts, :vault)} != before, do: nudge(counts)
  end

  defp recipients(counts, %{recipients: recipients, failed: failed}) do
    mark(counts, :recipients, recipients)
    mark(counts, :failed_recipients, failed)
  end

  @doc "What is known of an instance that does not answer because it does not run. One that never ran has not begun."
  def not_running(counts) do
    if get(counts, :store) != condition(:unknown) do
      put(counts, :store, condition(:not_running))
      put(counts, :vault, condition(:not_running))
      nudge(counts)
    end

    :ok
  end

  # At most one message waits for the process, however much happens.
  defp nudge(%{gauges: gauges, process: process}) do
    if :atomics.exchange(gauges, gauge(:nudged), 1) == 0, do: send(process, :nudged)
    :ok
  end

  @doc "Says that the process looks: what happens from now on sends it another `:nudged`."
  def looked(counts), do: put(counts, :nudged, 0)

  defp add(%{total: total, exact: exact, pages: pages} = counts, operation, duration, outcome) do
    us = us(duration)
    current = get(counts, :current)
    page = elem(pages, current)
    bucket = operation * @operation_size + Histogram.bucket(us) + 1
    outcome = operation * @operation_size + @buckets + outcome + 1
    :counters.add(total, bucket, 1)
    :counters.add(total, outcome, 1)
    :counters.add(page, bucket, 1)
    :counters.add(page, outcome, 1)
    :counters.add(exact, operation * @exact_size + bound(us) + 1, 1)
    :counters.add(exact, (operation + 1) * @exact_size, us)
    raise_to(counts.most, most(0, operation), us)
    raise_to(counts.most, most(current + 1, operation), us)
  end

  defp mark(%{total: total, pages: pages} = counts, name, count) do
    :counters.add(total, mark(name), count)
    :counters.add(elem(pages, get(counts, :current)), mark(name), count)
  end

  defp raise_to(atomics, index, value) do
    case :atomics.get(atomics, index) do
      less when less < value -> raise_from(atomics, index, less, value)
      _ -> :ok
    end
  end

  defp raise_from(atomics, index, less, value) do
    case :atomics.compare_exchange(atomics, index, less, value) do
      :ok -> :ok
      other when other < value -> raise_from(atomics, index, other, value)
      _ -> :ok
    end
  end

  defp us(duration), do: max(System.convert_time_unit(duration, :native, :microsecond), 0)

  defp most(page, operation), do: page * length(@operations) + operation + 1

  defp get(%{gauges: gauges}, name), do: :atomics.get(gauges, gauge(name))
  defp put(%{gauges: gauges}, name, value), do: :atomics.put(gauges, gauge(name), value)

  for {name, index} <- Enum.with_index(@marks, @operation_size * length(@operations) + 1),
      do: defp(mark(unquote(name)), do: unquote(index))

  for {name, index} <- Enum.with_index(@gauges, 1),
      do: defp(gauge(unquote(name)), do: unquote(index))

  defp outcome(nil), do: 0

  for {name, index} <- Enum.with_index(@outcomes),
      do: defp(outcome(unquote(name)), do: unquote(index))

  defp outcome(_unknown), do: outcome(:exception)

  for {name, index} <- Enum.with_index(@conditions),
      do: defp(condition(unquote(name)), do: unquote(index))

  for {bound, index} <- Enum.with_index(@bounds),
      do: defp(bound(us) when us <= unquote(bound), do: unquote(index))

  defp bound(_us), do: unquote(length(@bounds))

  @doc "All of it, as `Kith.Monitor.snapshot/1` returns it."
  @spec read(t) :: map
  def read(counts) do
    age = now() - counts.started
    begun = for page <- 1..@ring, at = :atomics.get(counts.begun, page), at > 0, do: at

    %{
      instance: counts.instance,
      started_at: counts.started_at,
      uptime: div(age, 1_000),
      window: max(div(age - Enum.min(begun), 1_000), 0),
      operations:
        for(
          {name, index} <- Enum.with_index(@operations),
          into: %{},
          do: {name, operation(counts, index)}
        ),
      counts: Map.new(@marks, &{&1, marked(counts, mark(&1))}),
      restored_at: time(get(counts, :restored_at)),
      prekeys: %{
        local: stock(counts, :local, %{low_left: get(counts, :prekeys_low_left)}),
        published: stock(counts, :published, %{})
      },
      health: %{
        store: Enum.at(@conditions, get(counts, :store)),
        store_latency: latency(counts, :store_duration),
        vault: Enum.at(@conditions, get(counts, :vault)),
        vault_latency: latency(counts, :vault_duration),
        checked_at: time(get(counts, :checked_at))
      }
    }
  end

  @doc "What Prometheus gets of each operation: counts up to each bound in seconds, of all, and the sum of seconds."
  @spec exact(t) :: [{atom, [{float, non_neg_integer}], non_neg_integer, float}]
  def exact(%{exact: exact}) do
    for {name, operation} <- Enum.with_index(@operations) do
      [sum | counts] =
        Enum.reverse(
          for index <- 1..@exact_size, do: :counters.get(exact, operation * @exact_size + index)
        )

      {each, [all]} = counts |> Enum.reverse() |> Enum.scan(&+/2) |> Enum.split(-1)
      {name, Enum.zip(Enum.map(@bounds, &(&1 / 1_000_000)), each), all, sum / 1_000_000}
    end
  end

  defp operation(%{total: total, pages: pages, most: most}, index) do
    longest = for page <- 1..@ring, do: :atomics.get(most, most(page, index))

    %{
      total: statistics([total], index, :atomics.get(most, most(0, index))),
      window: statistics(Tuple.to_list(pages), index, Enum.max(longest))
    }
  end

  defp statistics(pages, operation, longest) do
    first = operation * @operation_size

    pages =
      for page <- pages,
          outcomes = read(page, first + @buckets, length(@outcomes)),
          Enum.any?(outcomes, &(&1 > 0)),
          do: {outcomes, read(page, first, @buckets)}

    outcomes = pages |> Enum.map(&elem(&1, 0)) |> add_up(length(@outcomes))
    buckets = pages |> Enum.map(&elem(&1, 1)) |> add_up(@buckets)
    [p50, p95, p99] = Histogram.quantiles(buckets, [0.5, 0.95, 0.99])
    [{:ok, good} | reasons] = Enum.zip(@outcomes, outcomes)
    reasons = for {reason, count} <- reasons, count > 0, into: %{}, do: {reason, count}
    errors = reasons |> Map.drop(@expected) |> Map.values() |> Enum.sum()

    %{
      count: Enum.sum(outcomes),
      errors: errors,
      error_rate: if(errors == 0, do: 0.0, else: errors / (good + errors)),
      reasons: reasons,
      p50: within(p50, longest),
      p95: within(p95, longest),
      p99: within(p99, longest),
      max: p50 && longest / 1_000
    }
  end

  defp read(page, first, size),
    do: for(index <- (first + 1)..(first + size), do: :counters.get(page, index))

  defp add_up([], size), do: List.duplicate(0, size)
  defp add_up([page], _size), do: page
  defp add_up(pages, _size), do: Enum.zip_with(pages, &Enum.sum/1)

  # The middle of a bucket may be above all that is in it.
  defp within(nil, _longest), do: nil
  defp within(us, longest), do: min(us, longest) / 1_000

  defp marked(%{total: total, pages: pages}, index) do
    window = for page <- Tuple.to_list(pages), do: :counters.get(page, index)
    %{total: :counters.get(total, index), window: Enum.sum(window)}
  end

  defp stock(counts, keys, more) do
    with %DateTime{} = at <- time(get(counts, {keys, :at})) do
      @stock |> Map.new(&{&1, get(counts, {keys, &1})}) |> Map.put(:at, at) |> Map.merge(more)
    end
  end

  defp time(0), do: nil
  defp time(seconds), do: DateTime.from_unix!(seconds)

  defp latency(counts, name), do: if(get(counts, :checked_at) > 0, do: get(counts, name) / 1_000)
end
