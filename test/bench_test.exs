defmodule Kith.BenchTest do
  # What is measured still works. How fast it is, is not for a test.
  use Kith.Case, async: true

  @operations ~w(established cold decrypt decrypt_new_chain decrypt_first)

  Code.require_file("../bench/native.exs", __DIR__)
  Code.require_file("../bench/durable.exs", __DIR__)

  test "every operation of the benchmark runs, through the NIF and stored" do
    largest = 3
    native = Bench.Native.prepare(Bench.Native.start(), largest)
    durable = Bench.Durable.start(tmp_dir!(), largest)

    for {way, state} <- [{Bench.Native, native}, {Bench.Durable, durable}] do
      Enum.reduce(@operations, state, fn operation, state ->
        {times, state} = way.sample(state, operation, largest, 3)
        assert [_, _, _] = times
        assert Enum.all?(times, &(&1 > 0))
        state
      end)
    end

    assert Bench.Native.state_size(native) > 0
    assert Bench.Durable.refill(durable) == :ok

    # It writes beside its database when it ends.
    [{supervisor, _}] = Registry.lookup(Kith.Registry, {Kith.Supervisor, Bench.Durable})
    :ok = Supervisor.stop(supervisor)
  end
end
