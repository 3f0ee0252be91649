defmodule Kith.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    Kith.Telemetry.detect()

    Supervisor.start_link(
      [{Registry, keys: :unique, name: Kith.Registry}, {Kith.Password.Limiter, []}],
      strategy: :one_for_one,
      name: __MODULE__
    )
  end
end
