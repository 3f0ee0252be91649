defmodule Kith.Monitor.Prometheus do
  @moduledoc false
  # The text format of Prometheus, version 0.0.4:
  # https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format

  alias Kith.Monitor.Counts

  @marks [
    panics: "Panics of the engine.",
    restored: "Databases that were found to be restored, copied or failed over.",
    redeliveries: "Messages that were answered out of the archive.",
    maintenance_failures: "Tasks, devices and sessions of maintenance that got an error.",
    prekeys_exhausted: "Sessions that were begun without a one-time prekey, as none was left.",
    reports: "Reports of messages that did not open.",
    resends: "Messages that were sent again.",
    recipients: "Devices that were written to in groups.",
    failed_recipients: "Devices of groups that were not served."
  ]

  @stock [
    devices: {"kith_prekeys_devices", "Devices with keys."},
    low: {"kith_prekeys_low_devices", "Devices that were low on one-time prekeys."},
    one_time: {"kith_prekeys_one_time", "One-time prekeys of all devices."},
    kyber_one_time: {"kith_prekeys_kyber_one_time", "One-time Kyber prekeys of all devices."},
    signed_age: {"kith_prekeys_signed_age_seconds", "Age of the oldest signed prekey."},
    last_resort_age:
      {"kith_prekeys_last_resort_age_seconds", "Age of the oldest Kyber prekey of last resort."},
    at: {"kith_prekeys_checked_timestamp_seconds", "When maintenance counted the prekeys."}
  ]

  @spec format(map, list, [{atom, atom, 0 | 1}]) :: String.t()
  def format(snapshot, exact, alerts) do
    name =
      if is_binary(snapshot.instance), do: snapshot.instance, else: inspect(snapshot.instance)

    [durations(exact), results(snapshot), marks(snapshot), gauges(snapshot), alerts(alerts)]
    |> Enum.concat()
    |> Enum.reject(fn {_family, _type, _help, samples} -> samples == [] end)
    |> Enum.map(&family(&1, {:kith, name}))
    |> IO.iodata_to_binary()
  end

  # {name, type, help, [{suffix, labels, value}]}
  defp durations(exact) do
    samples =
      for {operation, bounds, count, sum} <- exact,
          labels = [operation: operation],
          sample <-
            for({bound, below} <- bounds, do: {"_bucket", labels ++ [le: bound(bound)], below}) ++
              [
                {"_bucket", labels ++ [le: "+Inf"], count},
                {"_sum", labels, sum},
                {"_count", labels, count}
              ],
          do: sample

    [
      {"kith_operation_duration_seconds", "histogram",
       "How long operations took, those that failed too.", samples}
    ]
  end

  # The same text on every version of Erlang: it is the name of a series.
  defp bound(seconds), do: :erlang.float_to_binary(seconds, [:compact, decimals: 6])

  # All reasons, so that the first one that happens is seen to be one more than before.
  defp results(%{operations: operations}) do
    samples =
      for {operation, %{total: total}} <- Enum.sort(operations),
          failed = total.reasons |> Map.values() |> Enum.sum(),
          {result, reason, count} <-
            [
              {:ok, "", total.count - failed}
              | for(reason <- Counts.reasons(), do: {:error, reason, total.reasons[reason] || 0})
            ],
          do: {"", [operation: operation, result: result, reason: reason], count}

    [{"kith_operations_total", "counter", "Operations by how they went.", samples}]
  end

  defp marks(%{counts: counts}) do
    for {name, help} <- @marks,
        do: {"kith_#{name}_total", "counter", help, [{"", [], counts[name].total}]}
  end

  defp gauges(%{health: health, prekeys: prekeys} = snapshot) do
    stock =
      for {key, {name, help}} <- @stock do
        samples =
          for {keys, local} <- [local: true, published: false],
              stock = prekeys[keys],
              do: {"", [local: local], value(stock[key])}

        {name, "gauge", help, samples}
      end

    left = if prekeys.local, do: [{"", [], prekeys.local.low_left}], else: []

    [
      {"kith_store_up", "gauge", "Whether the database answers.", up(health.store)},
      {"kith_vault_up", "gauge", "Whether data keys open.", up(health.vault)},
      {"kith_store_latency_seconds", "gauge",
       "How long the database took to answer when it was last asked.",
       optional(health.store_latency && health.store_latency / 1_000)},
      {"kith_health_checked_timestamp_seconds", "gauge",
       "When the instance was last asked how it is.", optional(health.checked_at)},
      {"kith_restored_timestamp_seconds", "gauge",
       "When a database was last found to be restored.", optional(snapshot.restored_at)},
      {"kith_monitor_start_timestamp_seconds", "gauge", "When the monitor started to count.",
       optional(snapshot.started_at)},
      {"kith_prekeys_low_left_devices", "gauge",
       "Devices that maintenance left low on one-time prekeys.", left}
      | stock
    ]
  end

  defp alerts(alerts) do
    samples =
      for {rule, severity, firing} <- alerts, do: {"", [rule: rule, severity: severity], firing}

    [{"kith_alert_firing", "gauge", "Whether an alert of the monitor fires.", samples}]
  end

  defp up(:unknown), do: []
  defp up(:ok), do: [{"", [], 1}]
  defp up(_reason), do: [{"", [], 0}]

  defp optional(nil), do: []
  defp optional(value), do: [{"", [], value(value)}]

  defp value(%DateTime{} = time), do: DateTime.to_unix(time)
  defp value(number), do: number

  defp family({name, type, help, samples}, label) do
    [
      ["# HELP ", name, " ", escape(help, ["\\", "\n"]), "\n# TYPE ", name, " ", type, "\n"]
      | for {suffix, labels, value} <- samples do
          labels = Enum.map_intersperse([label | labels], ",", &label/1)
          [name, suffix, "{", labels, "} ", number(value), "\n"]
        end
    ]
  end

  defp label({name, value}),
    do: [Atom.to_string(name), "=\"", escape(to_string(value), ["\\", "\n", "\""]), "\""]

  defp escape(text, special) do
    String.replace(text, special, fn
      "\n" -> "\\n"
      other -> "\\" <> other
    end)
  end

  defp number(number) when is_integer(number), do: Integer.to_string(number)
  # 1.0 is as good a number as 1, and the shortest that is read as the same.
  defp number(number), do: Float.to_string(number)
end
