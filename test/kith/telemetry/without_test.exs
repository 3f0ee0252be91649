defmodule Kith.Telemetry.WithoutTest do
  # What is said where an optional package is missing. Where all of them are there, a VM without them says it.
  use ExUnit.Case, async: true

  alias Kith.ChildVM

  test "whatever needs a package that is missing says which one" do
    calls = [
      {"Kith.Telemetry.metrics()", "telemetry_metrics, which is not there"},
      {"Kith.Telemetry.attach_logger()", ":telemetry, which is not there"},
      {"Kith.Monitor.start_link(instance: :family)", ":telemetry, which is not there"},
      {"Kith.Telemetry.detach_logger()", "{:error, :not_found}"}
    ]

    code =
      for {call, _} <- calls, into: "{:ok, _} = Application.ensure_all_started(:kith)\n" do
        "try do\n  IO.inspect(#{call})\nrescue\n  error in ArgumentError -> IO.puts(error.message)\nend\n"
      end

    {printed, 0} = ChildVM.run(code, env: [{"ERL_LIBS", nil}])
    for {_, message} <- calls, do: assert(printed =~ message)
  end
end
