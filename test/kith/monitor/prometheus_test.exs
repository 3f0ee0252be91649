defmodule Kith.Monitor.PrometheusTest do
  use ExUnit.Case, async: true

  import Kith.Test.MonitorEvents

  alias Kith.Monitor.{Counts, Prometheus}
  alias Kith.Test.PrometheusText

  @stock %{
    devices: 3,
    low: 2,
    one_time: 40,
    kyber_one_time: 8,
    signed_age: 60,
    last_resort_age: 90
  }

  defp parsed(counts, alerts \\ []),
    do:
      Counts.read(counts)
      |> Prometheus.format(Counts.exact(counts), alerts)
      |> PrometheusText.parse!()

  # The value of the one sample with these labels, beside the instance.
  defp value(families, name, labels \\ %{}, suffix \\ "") do
    labels = Map.put(labels, "kith", ":family")

    values =
      for {sample, ^labels, value} <- families[name].samples, sample == name <> suffix, do: value

    assert [value] = values
    value
  end

  test "what was counted is in the text, durations up to each bound and no further" do
    counts = Counts.new(:family, self())
    operation(counts, :encrypt, 900, nil, 3)
    operation(counts, :encrypt, 100_000, :stale)
    operation(counts, :encrypt, 100_001)
    operation(counts, :encrypt, 60_000_000)
    operation(counts, :decrypt, 10, :tampered, 2)
    exception(counts, :decrypt)
    event(counts, [:nif, :panic], %{count: 3})
    families = parsed(counts)

    duration = "kith_operation_duration_seconds"
    bucket = &value(families, duration, %{"operation" => "encrypt", "le" => &1}, "_bucket")
    assert families[duration].type == "histogram"
    assert bucket.("0.0005") == 0
    assert bucket.("0.001") == 3
    # Exact at the bound.
    assert bucket.("0.05") == 3
    assert bucket.("0.1") == 4
    assert bucket.("0.25") == 5
    assert bucket.("10.0") == 5
    assert bucket.("+Inf") == 6
    assert value(families, duration, %{"operation" => "encrypt"}, "_count") == 6

    assert_in_delta value(families, duration, %{"operation" => "encrypt"}, "_sum"),
                    60.202701,
                    1.0e-6

    assert value(families, duration, %{"operation" => "establish"}, "_count") == 0

    total = fn operation, result, reason ->
      value(families, "kith_operations_total", %{
        "operation" => operation,
        "result" => result,
        "reason" => reason
      })
    end

    assert total.("encrypt", "ok", "") == 5
    assert total.("encrypt", "error", "stale") == 1
    assert total.("encrypt", "error", "tampered") == 0
    assert total.("decrypt", "ok", "") == 0
    assert total.("decrypt", "error", "tampered") == 2
    assert total.("decrypt", "error", "exception") == 1
    assert value(families, "kith_panics_total") == 3
    assert value(families, "kith_restored_total") == 0
  end

  test "gauges are there once something is known, and alerts as 0 and 1" do
    counts = Counts.new(:family, self())
    unknown = parsed(counts)

    for name <-
          ~w(kith_store_up kith_vault_up kith_restored_timestamp_seconds kith_prekeys_devices),
        do: refute(is_map_key(unknown, name))

    health(counts, :ok, :key_not_found, 2_500)
    total(counts, @stock, true)
    total(counts, %{@stock | devices: 9}, false)
    maintenance(counts, :replenish, %{count: 1})
    event(counts, [:installation, :restored], %{sessions: 1})
    families = parsed(counts, [{:panic, :critical, 1}, {:restored, :warning, 0}])

    assert value(families, "kith_store_up") == 1
    assert value(families, "kith_vault_up") == 0
    assert value(families, "kith_store_latency_seconds") == 0.0025
    assert value(families, "kith_prekeys_devices", %{"local" => "true"}) == 3
    assert value(families, "kith_prekeys_devices", %{"local" => "false"}) == 9
    assert value(families, "kith_prekeys_signed_age_seconds", %{"local" => "true"}) == 60
    assert value(families, "kith_prekeys_low_left_devices") == 1

    assert_in_delta value(families, "kith_restored_timestamp_seconds"),
                    System.system_time(:second),
                    3_600

    assert value(families, "kith_alert_firing", %{"rule" => "panic", "severity" => "critical"}) ==
             1

    assert value(families, "kith_alert_firing", %{"rule" => "restored", "severity" => "warning"}) ==
             0

    Counts.not_running(counts)
    assert value(parsed(counts), "kith_store_up") == 0
  end

  test "any name of an instance is one label, whatever is in it" do
    for {name, label} <- [
          {MyApp.Kith, "MyApp.Kith"},
          {"family", "family"},
          {"a\"b\\c\nd} 1\n# HELP x", "a\"b\\c\nd} 1\n# HELP x"},
          {{:shard, 7}, "{:shard, 7}"},
          {"Familie Müller", "Familie Müller"}
        ] do
      families = name |> Counts.new(self()) |> parsed()
      assert [{_, labels, _}] = families["kith_panics_total"].samples
      assert labels == %{"kith" => label}
    end
  end

  test "the reader of these tests refuses what is not the format" do
    good = "# HELP a_total b\n# TYPE a_total counter\na_total{x=\"y\"} 1\n"

    assert %{"a_total" => %{type: "counter", samples: [{"a_total", %{"x" => "y"}, 1.0}]}} =
             PrometheusText.parse!(good)

    for bad <- [
          String.trim_trailing(good),
          String.replace(good, "counter", "number"),
          String.replace(good, "a_total", "a"),
          String.replace(good, "\"y\"", "y"),
          String.replace(good, "\"y\"", "\"y\\\""),
          String.replace(good, "} 1", "}1"),
          String.replace(good, " 1\n", " one\n"),
          good <> good,
          good <> "a_total{x=\"y\"} 2\n",
          good <> "b_total 2\n"
        ] do
      assert catch_error(PrometheusText.parse!(bad)), bad
    end
  end
end
