# What Kith.Migration asks of a migration that runs, where Ecto is not installed. test/ecto asks the real one.

unless Code.ensure_loaded?(Ecto.Migration) do
  defmodule Ecto.Migration do
    @moduledoc false

    def running(state), do: Process.put(__MODULE__, Map.new(state))

    def repo, do: Process.get(__MODULE__).repo
    def prefix, do: Process.get(__MODULE__)[:prefix]
    def direction, do: Process.get(__MODULE__)[:direction] || :up

    # The real one does it when the commands before are done.
    def execute(fun) when is_function(fun, 0) do
      send(self(), :executed)
      fun.()
    end
  end
end
