defmodule Kith.Test.Optional do
  @moduledoc false
  # Tests that need a package Kith does not:
  #
  #     use Kith.Test.Optional, :telemetry
  #     use Kith.Test.Optional, :phoenix
  #     use Kith.Test.Optional, :ecto
  #
  # Where it is missing, somebody has to say that they shall be left out: KITH_WITHOUT_TELEMETRY=1, which leaves out all, or
  # KITH_WITHOUT_PHOENIX=1, or KITH_WITHOUT_ECTO=1.

  @probes %{
    telemetry: :telemetry,
    phoenix: Phoenix.LiveDashboard.PageBuilder,
    ecto: Ecto.Type
  }

  defmacro __using__(package) do
    quote do
      @moduletag skip: Kith.Test.Optional.left_out(unquote(package))

      setup_all do
        Kith.Test.Optional.start!(unquote(package))
      end
    end
  end

  @doc "The variable that leaves the tests out, or false."
  def left_out(package) do
    Enum.find_value(variables(package), false, fn variable ->
      if System.get_env(variable) == "1", do: variable <> "=1"
    end)
  end

  defp variables(:telemetry), do: ["KITH_WITHOUT_TELEMETRY"]
  defp variables(:phoenix), do: ["KITH_WITHOUT_TELEMETRY", "KITH_WITHOUT_PHOENIX"]
  defp variables(:ecto), do: ["KITH_WITHOUT_TELEMETRY", "KITH_WITHOUT_ECTO"]

  @doc "Whether a package is there."
  def there?(package), do: Code.ensure_loaded?(@probes[package])

  @doc "Sees to it that a package is there and tells Kith."
  def start!(package) do
    if not there?(package) do
      raise "the library #{package} is not on the code path: put it into ERL_LIBS, or set " <>
              "#{List.last(variables(package))}=1 to leave what takes it untested"
    end

    {:ok, _} = Application.ensure_all_started(:telemetry)
    Kith.Telemetry.detect()
    true = Kith.Telemetry.available?()
    :ok
  end
end
