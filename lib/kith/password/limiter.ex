defmodule Kith.Password.Limiter do
  @moduledoc false
  # How many hashes are computed at once. A burst of logins would otherwise hold every dirty CPU scheduler, on which messages
  # are encrypted too, and the memory of a hash for each of them.
  #
  # Work runs in a process of its own, a job, which nobody else knows and nobody kills. The work of a NIF does not end with the
  # process that called it: monitors fire at once, the scheduler and the memory are free when it is done. So whoever gives
  # up (a request whose connection was closed) leaves the job to its end, and its slot with it.
  use GenServer

  # Jobs that wait for each slot, and the milliseconds one waits: about as long as a full queue takes at Kith.Password's
  # own parameters. Who waits longer has given up.
  @room 32
  @patience 5_000

  @doc """
  Runs `fun` when there is room for it: `{{:done, its result}, waited}` or `{:busy, waited}`, in native units of time.

  What `fun` holds is copied to the job, which tracing and `Process.info/2` leave out. It must not raise: that would be logged.
  """
  def run(limiter \\ __MODULE__, fun) do
    caller = self()
    asked = System.monotonic_time()
    {job, monitor} = spawn_monitor(fn -> job(limiter, caller, fun) end)

    receive do
      {:DOWN, ^monitor, :process, ^job, {__MODULE__, outcome, granted}} ->
        {outcome, granted - asked}

      {:DOWN, ^monitor, :process, ^job, {:noproc, _}} ->
        raise "the application :kith is not started"

      # The limiter ended while the job waited for it.
      {:DOWN, ^monitor, :process, ^job, _} ->
        {:busy, System.monotonic_time() - asked}
    end
  end

  @doc "How many run at once, on a VM with as many dirty CPU schedulers: half of them."
  def slots(schedulers), do: max(1, div(schedulers, 2))

  def start_link(options) do
    name = Keyword.get(options, :name, __MODULE__)
    GenServer.start_link(__MODULE__, options, name: name)
  end

  # Answers by the reason of its exit, so that a slot is free when its answer is there.
  defp job(limiter, caller, fun) do
    Process.flag(:sensitive, true)

    case GenServer.call(limiter, {:enter, caller}, :infinity) do
      :granted ->
        granted = System.monotonic_time()
        exit({__MODULE__, {:done, fun.()}, granted})

      :busy ->
        exit({__MODULE__, :busy, System.monotonic_time()})

      :abandoned ->
        :ok
    end
  end

  @impl true
  def init(options) do
    slots =
      Keyword.get_lazy(options, :slots, fn ->
        slots(:erlang.system_info(:dirty_cpu_schedulers_online))
      end)

    {:ok,
     %{
       slots: slots,
       room: Keyword.get(options, :room, @room * slots),
       patience: Keyword.get(options, :patience, @patience),
       # The monitors of jobs at work.
       running: MapSet.new(),
       # {caller's monitor, timer, job} of each that waits, the oldest first.
       waiting: :queue.new()
     }}
  end

  @impl true
  def handle_call({:enter, caller}, from, state) do
    cond do
      MapSet.size(state.running) < state.slots ->
        {:noreply, grant(state, from)}

      :queue.len(state.waiting) < state.room ->
        timer = :erlang.start_timer(state.patience, self(), :patience)
        waiter = {Process.monitor(caller), timer, from}
        {:noreply, %{state | waiting: :queue.in(waiter, state.waiting)}}

      true ->
        {:reply, :busy, state}
    end
  end

  @impl true
  def handle_info({:DOWN, monitor, :process, _pid, _reason}, state) do
    if MapSet.member?(state.running, monitor) do
      {:noreply, next(%{state | running: MapSet.delete(state.running, monitor)})}
    else
      {:noreply, dismiss(state, &match?({^monitor, _, _}, &1), :abandoned)}
    end
  end

  def handle_info({:timeout, timer, :patience}, state),
    do: {:noreply, dismiss(state, &match?({_, ^timer, _}, &1), :busy)}

  defp next(state) do
    case :queue.out(state.waiting) do
      {{:value, {caller, timer, from}}, waiting} ->
        forget(caller, timer)
        grant(%{state | waiting: waiting}, from)

      {:empty, _} ->
        state
    end
  end

  defp grant(state, {job, _} = from) do
    running = MapSet.put(state.running, Process.monitor(job))
    GenServer.reply(from, :granted)
    %{state | running: running}
  end

  # None, when it was granted in the meantime.
  defp dismiss(state, which, answer) do
    waiting =
      :queue.filter(
        fn {caller, timer, from} = waiter ->
          if which.(waiter) do
            forget(caller, timer)
            GenServer.reply(from, answer)
            false
          else
            true
          end
        end,
        state.waiting
      )

    %{state | waiting: waiting}
  end

  defp forget(caller, timer) do
    Process.demonitor(caller, [:flush])
    :erlang.cancel_timer(timer)
  end
end
