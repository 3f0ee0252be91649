defmodule Kith.Telemetry.Metrics do
  @moduledoc false
  # The metrics of Kith.Telemetry.metrics/1. Their functions are called when an application asks: the package need not be
  # there when Kith is compiled.

  alias Kith.Validation

  @compile {:no_warn_undefined, Telemetry.Metrics}

  @buckets [0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000]

  def list(options) do
    with {:error, message} <- Validation.validate(options, schema()),
         do: raise(ArgumentError, message)

    if not Code.ensure_loaded?(Telemetry.Metrics) do
      raise ArgumentError,
            "Kith.Telemetry.metrics/1 makes metrics of the package telemetry_metrics, which is not there: add " <>
              "{:telemetry_metrics, \"~> 1.0\"} to your dependencies"
    end

    Enum.concat([durations(options), counters(options), sums(options), gauges(options)])
  end

  defp schema do
    [
      durations: {:one_of, [:summary, :distribution]},
      buckets: {:custom, &buckets/1},
      instance: :any
    ]
  end

  defp buckets([_ | _] = bounds) do
    if Enum.all?(bounds, &is_number/1) and Enum.sort(bounds) == bounds,
      do: :ok,
      else: buckets(nil)
  end

  defp buckets(_other), do: {:error, "expected :buckets to be a list of numbers in their order"}

  defp durations(options) do
    for {event, tags} <- [
          {[:session, :encrypt], [:result, :type]},
          {[:group, :encrypt], [:result]},
          {[:session, :decrypt], [:result, :type]},
          {[:session, :establish], [:role, :result]},
          {[:maintenance, :run], [:task, :result]}
        ] do
      duration(name(event ++ [:duration]), [:kith | event] ++ [:stop], tags, options)
    end
  end

  defp duration(name, event, tags, options) do
    options =
      options(event, tags, options) ++ [measurement: :duration, unit: {:native, :millisecond}]

    case options[:durations] do
      :distribution ->
        buckets = options[:buckets] || @buckets

        Telemetry.Metrics.distribution(
          name,
          given(options) ++ [reporter_options: [buckets: buckets]]
        )

      _summary ->
        Telemetry.Metrics.summary(name, given(options))
    end
  end

  defp counters(options) do
    for {event, last, tags} <- [
          {[:session, :encrypt], :stop, [:result, :reason]},
          {[:session, :encrypt], :exception, []},
          {[:group, :encrypt], :stop, [:result, :reason]},
          {[:group, :encrypt], :exception, []},
          {[:session, :decrypt], :stop, [:result, :reason]},
          {[:session, :decrypt], :exception, []},
          {[:session, :establish], :stop, [:role, :result, :reason]},
          {[:session, :recover], :stop, [:result, :reason]},
          {[:session, :resend], :stop, [:result, :reason]},
          {[:maintenance, :run], :stop, [:task, :result, :reason]},
          {[:maintenance, :run], :exception, [:task]}
        ] do
      kind = if last == :stop, do: :count, else: :exceptions
      event_name = [:kith | event] ++ [last]
      options = options(event_name, tags, options) ++ [measurement: :duration]
      Telemetry.Metrics.counter(name(event ++ [kind]), given(options))
    end
  end

  defp sums(options) do
    for {name, event, measurement, tags} <- [
          {[:nif, :panics], [:nif, :panic], :count, []},
          {[:installation, :restored], [:installation, :restored], &__MODULE__.one/1, []},
          {[:archive, :redeliveries], [:archive, :redelivery], :count, [:reason]},
          {[:group, :encrypt, :recipients], [:group, :encrypt, :stop], :recipients, []},
          {[:group, :encrypt, :failed], [:group, :encrypt, :stop], :failed, []},
          {[:prekeys, :exhausted], [:prekeys, :claim, :stop], &__MODULE__.exhausted/1, []},
          {[:maintenance, :run, :failed], [:maintenance, :run, :stop], :failed, [:task]}
        ] do
      options = options([:kith | event], tags, options) ++ [measurement: measurement]
      Telemetry.Metrics.sum(name(name), given(options))
    end
  end

  @doc false
  def one(_measurements), do: 1

  @doc false
  # A claim that found no one-time prekey. What failed altogether is not told as a claim.
  def exhausted(%{count: count}), do: if(count == 0, do: 1, else: 0)

  defp gauges(options) do
    health =
      for name <- [:store, :vault] do
        options = options([:kith, :health, :check], [], options) ++ [measurement: name]
        Telemetry.Metrics.last_value(name([:health, name]), given(options))
      end

    latency =
      options([:kith, :health, :check], [], options) ++
        [measurement: :store_duration, unit: {:native, :millisecond}]

    # Whether the private keys are here is no tag, but two metrics.
    stock =
      for {keys, local} <- [local: true, published: false],
          measurement <- [
            :devices,
            :low,
            :one_time,
            :kyber_one_time,
            :signed_age,
            :last_resort_age
          ] do
        options =
          options([:kith, :prekeys, :total], [], options, &(&1.local == local)) ++
            [measurement: measurement]

        Telemetry.Metrics.last_value(name([:prekeys, keys, measurement]), given(options))
      end

    health ++
      [Telemetry.Metrics.last_value(name([:health, :store_latency]), given(latency))] ++ stock
  end

  defp name(parts), do: Enum.join([:kith | parts], ".")

  # The options of ours come along, for given/1 to take away.
  defp options(event, tags, options, keep \\ fn _metadata -> true end) do
    of_instance =
      case Keyword.fetch(options, :instance) do
        {:ok, instance} -> &(&1.instance == instance and keep.(&1))
        :error -> keep
      end

    [
      event_name: event,
      tags: [:instance | tags],
      tag_values: &__MODULE__.tags/1,
      keep: of_instance
    ] ++
      Keyword.take(options, [:durations, :buckets])
  end

  defp given(options), do: Keyword.drop(options, [:durations, :buckets])

  @doc false
  # Any term is a name. Reporters make text of a tag.
  def tags(%{instance: instance} = metadata) when is_binary(instance), do: metadata
  def tags(metadata), do: Map.update!(metadata, :instance, &inspect/1)
end
