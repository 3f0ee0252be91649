defmodule Kith.Telemetry.MetricsTest do
  # Handlers are global.
  use Kith.Case, async: false
  use Kith.Test.Optional, :phoenix

  @compile {:no_warn_undefined, [:telemetry, Telemetry.Metrics]}

  # By their names: the structs are those of a package.
  defp kind(%module{}), do: module |> Module.split() |> List.last()

  # What a reporter does with an event: {name, tags, value} of each metric that takes it.
  defp report(metrics, event, measurements, metadata) do
    for metric <- metrics,
        metric.event_name == event,
        metric.keep.(metadata) do
      value =
        case metric.measurement do
          fun when is_function(fun, 1) -> fun.(measurements)
          key -> measurements[key]
        end

      values = metric.tag_values.(metadata)
      {Enum.join(metric.name, "."), Map.take(values, metric.tags), value}
    end
  end

  # All that is emitted while a function runs, reported.
  defp reported(metrics, fun) do
    events = metrics |> Enum.map(& &1.event_name) |> Enum.uniq()
    :ok = :telemetry.attach_many({__MODULE__, self()}, events, &__MODULE__.forward/4, self())
    fun.()
    :telemetry.detach({__MODULE__, self()})

    for {event, measurements, metadata} <- drain(),
        value <- report(metrics, event, measurements, metadata),
        do: value
  end

  def forward(event, measurements, metadata, pid),
    do: send(pid, {:event, {event, measurements, metadata}})

  defp drain do
    receive do
      {:event, event} -> [event | drain()]
    after
      0 -> []
    end
  end

  test "each metric is of an event and a measurement there is, with tags of the closed set" do
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Kith.Telemetry)

    for metric <- Kith.Telemetry.metrics() do
      event = Enum.map_join(metric.event_name, ", ", &inspect/1)
      assert [row] = Regex.run(~r/^\| `\[#{event}\]` \|.*$/m, moduledoc)
      if is_atom(metric.measurement), do: assert(row =~ "`#{metric.measurement}`")
      assert :instance in metric.tags
      assert metric.tags -- [:instance, :result, :reason, :type, :role, :task] == []
      assert metric.description == nil or is_binary(metric.description)
    end

    names = Enum.map(Kith.Telemetry.metrics(), &{kind(&1), &1.name})
    assert names == Enum.uniq(names)
  end

  test "durations are milliseconds, as summaries or as distributions with bounds" do
    durations = fn metrics -> Enum.filter(metrics, &(kind(&1) in ~w(Summary Distribution))) end
    names = ~w(session.encrypt group.encrypt session.decrypt session.establish maintenance.run)

    summaries = durations.(Kith.Telemetry.metrics())

    assert Enum.map(summaries, &Enum.join(&1.name, ".")) ==
             for(name <- names, do: "kith.#{name}.duration")

    assert Enum.uniq(Enum.map(summaries, &kind/1)) == ["Summary"]
    assert Enum.uniq(Enum.map(summaries, & &1.unit)) == [:millisecond]

    # The package makes a function that converts.
    native = System.convert_time_unit(7, :millisecond, :native)
    for metric <- summaries, do: assert(metric.measurement.(%{duration: native}) == 7.0)

    distributions = durations.(Kith.Telemetry.metrics(durations: :distribution, buckets: [1, 10]))
    assert Enum.uniq(Enum.map(distributions, &kind/1)) == ["Distribution"]
    for metric <- distributions, do: assert(metric.reporter_options == [buckets: [1, 10]])

    assert [%{reporter_options: [buckets: [0.25 | _]]} | _] =
             durations.(Kith.Telemetry.metrics(durations: :distribution))
  end

  test "a conversation is reported by how it went, without a user in it" do
    kith = start_kith!(archive: true)
    other = start_kith!()
    metrics = Kith.Telemetry.metrics(instance: kith)

    values =
      reported(metrics, fn ->
        converse!(other, "anna", "ben")
        converse!(kith, "anna", "ben")
        envelope = encrypt_one!(kith, "anna", "ben", "hello")
        Kith.decrypt!(kith, "ben", envelope)
        {:error, _} = Kith.decrypt(kith, "anna", envelope)
        Kith.decrypt!(kith, "ben", envelope)
        sql!(kith, "DELETE FROM signal_prekeys WHERE kind = 'one_time'")
        register!(kith, ["cleo"])
        sql!(kith, "DELETE FROM signal_prekeys WHERE kind = 'one_time'")
        Kith.encrypt_group!(kith, "anna", ~w(cleo nobody), "hello", thread: "t")
        Kith.health!(kith)
        Kith.maintain!(kith)
        ExUnit.CaptureLog.capture_log(fn -> Kith.restored!(kith) end)
      end)

    total = fn name, tags ->
      Enum.sum(
        for {^name, has, value} <- values, Map.take(has, Map.keys(tags)) == tags, do: value
      )
    end

    counted = fn name, tags ->
      length(for {^name, has, _} <- values, Map.take(has, Map.keys(tags)) == tags, do: 1)
    end

    assert counted.("kith.session.encrypt.count", %{result: :ok, reason: nil}) == 4
    assert counted.("kith.session.decrypt.count", %{result: :ok}) == 5
    assert counted.("kith.session.decrypt.count", %{result: :error, reason: :malformed}) == 1
    assert counted.("kith.session.encrypt.duration", %{type: :prekey}) == 1
    assert total.("kith.archive.redeliveries", %{reason: :duplicate}) == 1
    assert total.("kith.group.encrypt.failed", %{}) == 1
    assert total.("kith.prekeys.exhausted", %{}) == 1
    assert total.("kith.installation.restored", %{}) == 1
    assert total.("kith.health.store", %{}) == 1
    assert total.("kith.health.vault", %{}) == 1
    assert total.("kith.prekeys.local.devices", %{}) == 3
    assert total.("kith.prekeys.published.devices", %{}) == 0
    assert counted.("kith.maintenance.run.count", %{task: :purge, result: :ok}) == 1

    for {_, tags, _} <- values do
      assert tags.instance == inspect(kith)
      for {tag, value} <- tags, tag != :instance, do: assert(is_atom(value))
    end
  end

  test "names of instances are text, whatever they are" do
    [metric | _] = Kith.Telemetry.metrics()

    for {name, text} <- [
          {MyApp.Kith, "MyApp.Kith"},
          {"family", "family"},
          {{:shard, 7}, "{:shard, 7}"}
        ],
        do: assert(metric.tag_values.(%{instance: name}).instance == text)
  end

  test "wrong options are refused" do
    for options <- [
          [durations: :histogram],
          [buckets: [2, 1]],
          [buckets: []],
          [instances: 1],
          :all
        ],
        do: assert_raise(ArgumentError, fn -> Kith.Telemetry.metrics(options) end)
  end
end
