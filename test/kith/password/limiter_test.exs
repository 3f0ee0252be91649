defmodule Kith.Password.LimiterTest do
  use ExUnit.Case, async: true

  alias Kith.Password.Limiter

  test "half of the schedulers work, and one where there is one" do
    assert for(schedulers <- [1, 2, 3, 4, 16], do: Limiter.slots(schedulers)) == [1, 1, 1, 2, 8]

    schedulers = :erlang.system_info(:dirty_cpu_schedulers_online)
    assert %{slots: slots, room: room} = :sys.get_state(Limiter)
    assert slots == Limiter.slots(schedulers)
    assert room == 32 * slots
  end

  test "no more run at once than there are slots, and all of them run" do
    limiter = start!(slots: 3, room: 100)
    # How many are inside, and the most that ever were.
    inside = :counters.new(1, [])
    most = :atomics.new(1, [])

    results =
      1..60
      |> Enum.map(fn number ->
        Task.async(fn ->
          Limiter.run(limiter, fn ->
            :counters.add(inside, 1, 1)
            raise_to(most, :counters.get(inside, 1))
            for _ <- 1..100, do: :erlang.yield()
            :counters.sub(inside, 1, 1)
            number
          end)
        end)
      end)
      |> Task.await_many()

    assert for({{:done, number}, _} <- results, do: number) == Enum.to_list(1..60)
    assert for({_, waited} <- results, waited < 0, do: waited) == []
    assert :atomics.get(most, 1) == 3
    assert idle?(limiter)
  end

  test "those that wait have their turn in the order they came" do
    limiter = start!(slots: 1)
    {first, _caller} = begin!(limiter, :first)

    for {name, position} <- [second: 1, third: 2, fourth: 3] do
      ask(limiter, name)
      until(fn -> waiting(limiter) == position end)
    end

    finish(first)
    assert_receive {:answer, :first, {{:done, :first}, _}}

    for name <- [:second, :third, :fourth] do
      assert_receive {:begun, ^name, job}
      refute_received {:begun, _, _}
      finish(job)
      assert_receive {:answer, ^name, {{:done, ^name}, waited}}
      assert waited > 0
    end

    assert idle?(limiter)
  end

  test "what the queue has no room for is busy at once" do
    limiter = start!(slots: 1, room: 1)
    {first, _caller} = begin!(limiter, :first)
    ask(limiter, :second)
    until(fn -> waiting(limiter) == 1 end)

    assert {:busy, waited} = Limiter.run(limiter, fn -> send(self(), :never) end)
    assert waited >= 0

    finish(first)
    assert_receive {:begun, :second, second}
    finish(second)
    assert_receive {:answer, :second, {{:done, :second}, _}}
    assert {{:done, :again}, _} = Limiter.run(limiter, fn -> :again end)
  end

  test "who waits too long is busy, and its turn goes to the next" do
    limiter = start!(slots: 1, patience: 10)
    {first, _caller} = begin!(limiter, :first)
    assert {:busy, waited} = Limiter.run(limiter, fn -> flunk("it ran") end)
    assert waited > 0
    assert waiting(limiter) == 0

    # The one at work is not hurried.
    finish(first)
    assert_receive {:answer, :first, {{:done, :first}, _}}
    assert {{:done, :next}, _} = Limiter.run(limiter, fn -> :next end)
  end

  test "a caller that dies leaves the queue" do
    limiter = start!(slots: 1, room: 1)
    {first, _caller} = begin!(limiter, :first)
    caller = ask(limiter, :second)
    until(fn -> waiting(limiter) == 1 end)
    Process.exit(caller, :kill)
    until(fn -> waiting(limiter) == 0 end)

    ask(limiter, :third)
    until(fn -> waiting(limiter) == 1 end)
    finish(first)
    assert_receive {:begun, :third, third}
    finish(third)
    assert_receive {:answer, :third, _}
    refute_received {:begun, :second, _}
    assert idle?(limiter)
  end

  test "the slot of a caller that dies is free when its work is done, not before" do
    limiter = start!(slots: 1)
    {first, caller} = begin!(limiter, :first)
    monitor = Process.monitor(caller)
    Process.exit(caller, :kill)
    assert_receive {:DOWN, ^monitor, _, _, _}

    ask(limiter, :second)
    until(fn -> waiting(limiter) == 1 end)
    assert Process.alive?(first)
    refute_received {:begun, :second, _}

    finish(first)
    assert_receive {:begun, :second, second}
    finish(second)
    assert_receive {:answer, :second, _}
    assert idle?(limiter)
  end

  test "work that is killed frees its slot" do
    limiter = start!(slots: 1)
    {first, _caller} = begin!(limiter, :first)
    Process.exit(first, :kill)
    assert_receive {:answer, :first, {:busy, _}}
    assert {{:done, :next}, _} = Limiter.run(limiter, fn -> :next end)
  end

  test "those that wait for a limiter that ends are busy" do
    limiter = start!(slots: 1)
    {_first, _caller} = begin!(limiter, :first)
    ask(limiter, :second)
    until(fn -> waiting(limiter) == 1 end)
    stop_supervised!(limiter)
    assert_receive {:answer, :second, {:busy, _}}
  end

  test "without a limiter it says what is not started" do
    assert_raise RuntimeError, "the application :kith is not started", fn ->
      Limiter.run(:no_such_limiter, fn -> :never end)
    end
  end

  test "nobody looks into a job" do
    limiter = start!(slots: 1)
    {job, _caller} = begin!(limiter, :first)
    send(job, {:secret, "words"})
    assert Process.info(job, :dictionary) == {:dictionary, []}
    assert Process.info(job, :messages) == {:messages, []}
    finish(job)
    assert_receive {:answer, :first, {{:done, :first}, _}}
  end

  defp start!(options) do
    name = :"limiter #{System.unique_integer([:positive])}"
    start_supervised!({Limiter, Keyword.put(options, :name, name)}, id: name)
    name
  end

  # A job that says when it begins, and ends when it is told to.
  defp ask(limiter, name) do
    test = self()

    spawn(fn ->
      answer =
        Limiter.run(limiter, fn ->
          Process.put(:secret, "words")
          send(test, {:begun, name, self()})
          receive do: (:finish -> name)
        end)

      send(test, {:answer, name, answer})
    end)
  end

  defp begin!(limiter, name) do
    caller = ask(limiter, name)
    assert_receive {:begun, ^name, job}
    {job, caller}
  end

  defp finish(job), do: send(job, :finish)

  defp waiting(limiter), do: :queue.len(:sys.get_state(limiter).waiting)

  # A slot is freed by a message from the VM, which may come a moment later than the answer.
  defp idle?(limiter) do
    until(fn ->
      state = :sys.get_state(limiter)
      MapSet.size(state.running) == 0 and :queue.is_empty(state.waiting)
    end)
  end

  defp until(fun, attempts \\ 2_000) do
    cond do
      fun.() ->
        true

      attempts > 0 ->
        Process.sleep(1)
        until(fun, attempts - 1)

      true ->
        flunk("it did not come to pass")
    end
  end

  defp raise_to(atomic, value) do
    highest = :atomics.get(atomic, 1)

    if value > highest and :atomics.compare_exchange(atomic, 1, highest, value) != :ok,
      do: raise_to(atomic, value)
  end
end
