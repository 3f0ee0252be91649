defmodule Kith.Monitor.Counts do
  @moduledoc false
  # What a monitor has counted, in an array of integers that every process adds to without waiting for another. Its size is
  # fixed when it is made. It is one array because :telemetry copies what it gives to a handler with each event.
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

  # Where in the array each part begins. First the page of all time, then the ring.
  @exact @page_size * (@ring + 1)
  # The longest duration of each operation, in the order of the pages.
  @most @exact + @exact_size * length(@operations)
  # When each page of the ring was begun, in milliseconds from the start. 0 for one that was not.
  @begun @most + (@ring + 1) * length(@operations)
  @gauge @begun + @ring
  @size @gauge + length(@gauges)

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

  @enforce_keys [:instance, :process, :cells, :started, :started_at]
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
    counts = %__MODULE__{
      instance: instance,
      process: process,
      cells: :atomics.new(@size, signed: true),
      started: now(),
      started_at: DateTime.utc_now()
    }

    :atomics.put(counts.cells, begun(0), 1)
    counts
  end

  defp now, do: System.monotonic_time(:millisecond)

  @doc "What the handler of the events is given with each."
  def config(%__MODULE__{instance: instance, process: process, cells: cells}),
    do: {instance, cells, process}

  @doc "How many bytes it takes, for as long as there is a monitor."
  def memory(%{cells: cells}), do: :atomics.info(cells).memory

  @doc "Begins the next slice of the window. Called by one process alone."
  @spec turn(t) :: :ok
  def turn(%{cells: cells} = counts) do
    next = rem(get(cells, :current) + 1, @ring)
    first = page(next) + 1
    for index <- first..(first + @page_size - 1), do: :atomics.put(cells, index, 0)

    for operation <- 0..(length(@operations) - 1),
        do: :atomics.put(cells, most(next + 1, operation), 0)

    :atomics.put(cells, begun(next), max(now() - counts.started, 1))
    put(cells, :current, next)
  end

  # A handler that raises is detached. None of this does, and should it, the event is lost and no other.
  @doc "The handler of the events."
  def handle(event, measurements, %{instance: instance} = metadata, {instance, cells, process}) do
    if count(event, measurements, metadata, cells) == :nudge, do: nudge(cells, process)
    :ok
  catch
    _kind, _reason -> :ok
  end

  def handle(_event, _measurements, _metadata, _config), do: :ok

  # What cannot wait for the next look is :nudge.
  for {name, index} <- Enum.with_index(@operations) do
    path = %{
      encrypt: [:session, :encrypt],
      group_encrypt: [:group, :encrypt],
      decrypt: [:session, :decrypt],
      establish: [:session, :establish]
    }

    defp count([:kith, unquote_splicing(path[name]), :stop], measurements, metadata, cells) do
      add(cells, unquote(index), measurements.duration, outcome(metadata.reason))
      if unquote(name == :group_encrypt), do: recipients(cells, measurements)
    end

    defp count(
           [:kith, unquote_splicing(path[name]), :exception],
           measurements,
           _metadata,
           cells
         ),
         do: add(cells, unquote(index), measurements.duration, outcome(:exception))
  end

  defp count([:kith, :nif, :panic], %{count: count}, _metadata, cells) do
    mark(cells, :panics, count)
    :nudge
  end

  defp count([:kith, :installation, :restored], _measurements, _metadata, cells) do
    mark(cells, :restored, 1)
    put(cells, :restored_at, System.system_time(:second))
    :nudge
  end

  defp count([:kith, :archive, :redelivery], %{count: count}, _metadata, cells),
    do: mark(cells, :redeliveries, count)

  defp count([:kith, :session, :recover, :stop], %{reports: reports}, _metadata, cells),
    do: mark(cells, :reports, reports)

  defp count([:kith, :session, :resend, :stop], %{messages: messages}, _metadata, cells),
    do: mark(cells, :resends, messages)

  # A bundle without a one-time prekey.
  defp count([:kith, :prekeys, :claim, :stop], %{count: 0}, %{result: :ok}, cells),
    do: mark(cells, :prekeys_exhausted, 1)

  defp count([:kith, :prekeys, :claim, :stop], _measurements, _metadata, _cells), do: :ok

  defp count([:kith, :prekeys, :total], measurements, %{local: local}, cells) do
    keys = if local, do: :local, else: :published
    for name <- @stock, do: put(cells, {keys, name}, Map.fetch!(measurements, name))
    put(cells, {keys, :at}, System.system_time(:second))
  end

  defp count([:kith, :maintenance, :run, :stop], measurements, metadata, cells) do
    %{count: count, failed: failed} = measurements
    %{task: task, result: result, claimed: claimed} = metadata
    failures = failed + if(result == :error, do: 1, else: 0)
    if failures > 0, do: mark(cells, :maintenance_failures, failures)

    # Those that were low when the pass found them, and were not filled up by it.
    if task == :replenish and result == :ok and claimed do
      put(cells, :prekeys_low_left, max(get(cells, {:local, :low}) - count, 0))
      :nudge
    end
  end

  defp count([:kith, :maintenance, :run, :exception], _measurements, _metadata, cells),
    do: mark(cells, :maintenance_failures, 1)

  defp count([:kith, :health, :check], measurements, metadata, cells) do
    before = {get(cells, :store), get(cells, :vault)}
    put(cells, :store, condition(metadata.store_reason || :ok))
    put(cells, :vault, condition(metadata.vault_reason || :ok))
    put(cells, :store_duration, us(measurements.store_duration))
    put(cells, :vault_duration, us(measurements.vault_duration))
    put(cells, :checked_at, System.system_time(:second))
    if {get(cells, :store), get(cells, :vault)} != before, do: :nudge
  end

  defp recipients(cells, %{recipients: recipients, failed: failed}) do
    mark(cells, :recipients, recipients)
    mark(cells, :failed_recipients, failed)
  end

  @doc "What is known of an instance that does not answer because it does not run. One that never ran has not begun."
  def not_running(%{cells: cells, process: process}) do
    if get(cells, :store) != condition(:unknown) do
      put(cells, :store, condition(:not_running))
      put(cells, :vault, condition(:not_running))
      nudge(cells, process)
    end

    :ok
  end

  # At most one message waits for the process, however much happens.
  defp nudge(cells, process) do
    if :atomics.exchange(cells, gauge(:nudged), 1) == 0, do: send(process, :nudged)
  end

  @doc "Says that the process looks: what happens from now on sends it another `:nudged`."
  def looked(%{cells: cells}), do: put(cells, :nudged, 0)

  defp add(cells, operation, duration, outcome) do
    us = us(duration)
    current = get(cells, :current)
    bucket = operation * @operation_size + Histogram.bucket(us) + 1
    outcome = operation * @operation_size + @buckets + outcome + 1
    page = page(current)
    :atomics.add(cells, bucket, 1)
    :atomics.add(cells, outcome, 1)
    :atomics.add(cells, page + bucket, 1)
    :atomics.add(cells, page + outcome, 1)
    :atomics.add(cells, bounds(operation) + bound(us) + 1, 1)
    :atomics.add(cells, bounds(operation + 1), us)
    raise_to(cells, most(0, operation), us)
    raise_to(cells, most(current + 1, operation), us)
  end

  defp mark(cells, name, count) do
    :atomics.add(cells, mark(name), count)
    :atomics.add(cells, page(get(cells, :current)) + mark(name), count)
  end

  defp raise_to(cells, index, value) do
    case :atomics.get(cells, index) do
      less when less < value -> raise_from(cells, index, less, value)
      _ -> :ok
    end
  end

  defp raise_from(cells, index, less, value) do
    case :atomics.compare_exchange(cells, index, less, value) do
      :ok -> :ok
      other when other < value -> raise_from(cells, index, other, value)
      _ -> :ok
    end
  end

  defp us(duration), do: max(System.convert_time_unit(duration, :native, :microsecond), 0)

  # What comes before a page of the ring, and before the exact counts of an operation, whose last one is the sum.
  defp page(current), do: (current + 1) * @page_size
  defp bounds(operation), do: @exact + operation * @exact_size
  defp most(page, operation), do: @most + page * length(@operations) + operation + 1
  defp begun(page), do: @begun + page + 1

  defp get(cells, name), do: :atomics.get(cells, gauge(name))
  defp put(cells, name, value), do: :atomics.put(cells, gauge(name), value)

  for {name, index} <- Enum.with_index(@marks, @operation_size * length(@operations) + 1),
      do: defp(mark(unquote(name)), do: unquote(index))

  for {name, index} <- Enum.with_index(@gauges, @gauge + 1),
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
  def read(%{cells: cells} = counts) do
    age = now() - counts.started
    begun = for page <- 0..(@ring - 1), at = :atomics.get(cells, begun(page)), at > 0, do: at

    %{
      instance: counts.instance,
      started_at: counts.started_at,
      uptime: div(age, 1_000),
      window: max(div(age - Enum.min(begun), 1_000), 0),
      operations:
        for(
          {name, index} <- Enum.with_index(@operations),
          into: %{},
          do: {name, operation(cells, index)}
        ),
      counts: Map.new(@marks, &{&1, marked(cells, mark(&1))}),
      restored_at: time(get(cells, :restored_at)),
      prekeys: %{
        local: stock(cells, :local, %{low_left: get(cells, :prekeys_low_left)}),
        published: stock(cells, :published, %{})
      },
      health: %{
        store: Enum.at(@conditions, get(cells, :store)),
        store_latency: latency(cells, :store_duration),
        vault: Enum.at(@conditions, get(cells, :vault)),
        vault_latency: latency(cells, :vault_duration),
        checked_at: time(get(cells, :checked_at))
      }
    }
  end

  @doc "What Prometheus gets of each operation: counts up to each bound in seconds, of all, and the sum of seconds."
  @spec exact(t) :: [{atom, [{float, non_neg_integer}], non_neg_integer, float}]
  def exact(%{cells: cells}) do
    for {name, operation} <- Enum.with_index(@operations) do
      {each, [sum]} = cells |> read(bounds(operation), @exact_size) |> Enum.split(-1)
      {each, [all]} = each |> Enum.scan(&+/2) |> Enum.split(-1)
      {name, Enum.zip(Enum.map(@bounds, &(&1 / 1_000_000)), each), all, sum / 1_000_000}
    end
  end

  defp operation(cells, index) do
    ring = for page <- 0..(@ring - 1), do: page(page)
    longest = for page <- 1..@ring, do: :atomics.get(cells, most(page, index))

    %{
      total: statistics(cells, [0], index, :atomics.get(cells, most(0, index))),
      window: statistics(cells, ring, index, Enum.max(longest))
    }
  end

  defp statistics(cells, pages, operation, longest) do
    first = operation * @operation_size

    pages =
      for page <- pages,
          outcomes = read(cells, page + first + @buckets, length(@outcomes)),
          Enum.any?(outcomes, &(&1 > 0)),
          do: {outcomes, read(cells, page + first, @buckets)}

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

  defp read(cells, before, size),
    do: for(index <- (before + 1)..(before + size), do: :atomics.get(cells, index))

  defp add_up([], size), do: List.duplicate(0, size)
  defp add_up([page], _size), do: page
  defp add_up(pages, _size), do: Enum.zip_with(pages, &Enum.sum/1)

  # The middle of a bucket may be above all that is in it.
  defp within(nil, _longest), do: nil
  defp within(us, longest), do: min(us, longest) / 1_000

  defp marked(cells, index) do
    window = for page <- 0..(@ring - 1), do: :atomics.get(cells, page(page) + index)
    %{total: :atomics.get(cells, index), window: Enum.sum(window)}
  end

  defp stock(cells, keys, more) do
    with %DateTime{} = at <- time(get(cells, {keys, :at})) do
      @stock |> Map.new(&{&1, get(cells, {keys, &1})}) |> Map.put(:at, at) |> Map.merge(more)
    end
  end

  defp time(0), do: nil
  defp time(seconds), do: DateTime.from_unix!(seconds)

  defp latency(cells, name),
    do: if(get(cells, :checked_at) > 0, do: get(cells, name) / 1_000)
end
