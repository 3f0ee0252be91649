defmodule FamilyChatWeb.Telemetry do
  @moduledoc "What the dashboard draws."

  import Telemetry.Metrics

  def metrics do
    Kith.Telemetry.metrics() ++
      [
        summary("phoenix.endpoint.stop.duration", unit: {:native, :millisecond}),
        summary("phoenix.live_view.handle_event.stop.duration", unit: {:native, :millisecond}),
        last_value("vm.memory.total", unit: {:byte, :megabyte}),
        last_value("vm.total_run_queue_lengths.total")
      ]
  end
end
