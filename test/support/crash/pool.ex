defmodule Kith.Crash.Pool do
  @moduledoc false
  # The network: what was sent and is not answered for yet. It delivers out of order, some of it late, and again
  # whatever a caller took that died.
  #
  # The protocol keeps five receiving chains, so a message may be late by less than that: one whose chain is
  # @depth chains old goes before all others of its pair.
  use GenServer

  @depth 2
  @soon 30
  @late 1_500

  @doc "Which ratchet keys of a pair were seen, the newest first."
  def seen(chains, pair, key) do
    known = Map.get(chains, pair, [])
    if key in known, do: chains, else: Map.put(chains, pair, Enum.take([key | known], 10))
  end

  @doc "Whether the network loses a message."
  def lost?(id), do: :erlang.phash2({:lost, id}, 33) == 0

  @doc "When a message is delivered: after so many other steps."
  def delay, do: if(:rand.uniform(14) == 1, do: :rand.uniform(@late), else: :rand.uniform(@soon))

  def start_link(state), do: GenServer.start_link(__MODULE__, state, name: __MODULE__)

  @doc "Adds `{delay, message}`s, a message being a map with `:id`, `:pair` and `:key`."
  def add(messages), do: GenServer.call(__MODULE__, {:add, messages}, :infinity)

  @doc "A message to deliver, or nil. It comes again should the caller die, or put it back."
  def take, do: GenServer.call(__MODULE__, :take, :infinity)

  @doc "Any message whose delivery was answered, to be delivered again."
  def answered, do: GenServer.call(__MODULE__, :answered, :infinity)

  def done(message), do: GenServer.call(__MODULE__, {:done, message}, :infinity)
  def put_back(message), do: GenServer.call(__MODULE__, {:put_back, message}, :infinity)
  def size, do: GenServer.call(__MODULE__, :size, :infinity)

  @impl true
  def init(state) do
    state = %{
      now: 0,
      due: :gb_trees.empty(),
      of_pair: %{},
      chains: state.chains,
      taken: %{},
      answered: [],
      drain: state.drain
    }

    {:ok, state}
  end

  @impl true
  def handle_call({:add, messages}, _from, state), do: {:reply, :ok, add(state, messages)}

  def handle_call(:take, {pid, _}, state) do
    state = %{state | now: state.now + 1}

    case next(state) do
      nil ->
        {:reply, nil, state}

      message ->
        state = state |> remove(message) |> see(message)
        taken = Map.put(state.taken, {pid, message.id}, {Process.monitor(pid), message})
        {:reply, message, %{state | taken: taken}}
    end
  end

  def handle_call({:done, message}, {pid, _}, state) do
    answered = Enum.take([message | state.answered], 50)
    {:reply, :ok, %{release(state, {pid, message.id}) | answered: answered}}
  end

  def handle_call({:put_back, message}, {pid, _}, state),
    do: {:reply, :ok, state |> release({pid, message.id}) |> add([{3, message}])}

  # One whose chain is gone would not be told from a forgery.
  def handle_call(:answered, _from, state) do
    kept = Enum.filter(state.answered, &(depth(state, &1) in 0..(@depth - 1)))
    {:reply, if(kept != [], do: Enum.random(kept)), state}
  end

  def handle_call(:size, _from, state),
    do: {:reply, :gb_trees.size(state.due) + map_size(state.taken), state}

  @impl true
  def handle_info({:DOWN, ref, :process, _pid, _reason}, state) do
    case Enum.find(state.taken, fn {_, {known, _}} -> known == ref end) do
      nil ->
        {:noreply, state}

      {key, {_ref, message}} ->
        {:noreply, %{state | taken: Map.delete(state.taken, key)} |> add([{3, message}])}
    end
  end

  defp add(state, messages) do
    Enum.reduce(messages, state, fn {delay, message}, state ->
      at = if state.drain, do: 0, else: state.now + delay
      due = {at, message.id, System.unique_integer()}
      message = Map.put(message, :due, due)
      of_pair = Map.update(state.of_pair, message.pair, [message], &[message | &1])
      %{state | due: :gb_trees.enter(due, message, state.due), of_pair: of_pair}
    end)
  end

  defp next(state) do
    if :gb_trees.is_empty(state.due) do
      nil
    else
      case :gb_trees.smallest(state.due) do
        {{at, _, _}, message} when at <= state.now -> oldest_of_pair(state, message)
        _ -> nil
      end
    end
  end

  defp oldest_of_pair(state, message) do
    state.of_pair[message.pair]
    |> Enum.map(&{depth(state, &1) || 0, &1})
    |> Enum.max_by(&elem(&1, 0))
    |> case do
      {depth, late} when depth >= @depth -> late
      _ -> message
    end
  end

  # How many chains of its pair were begun since: nil for one that was not seen, or so long ago that it is forgotten.
  defp depth(state, message) do
    known = Map.get(state.chains, message.pair, [])
    Enum.find_index(known, &(&1 == message.key))
  end

  defp remove(state, message) do
    of_pair =
      Map.update!(state.of_pair, message.pair, fn messages ->
        Enum.reject(messages, &(&1.due == message.due))
      end)

    %{state | due: :gb_trees.delete(message.due, state.due), of_pair: of_pair}
  end

  defp see(state, message),
    do: %{state | chains: seen(state.chains, message.pair, message.key)}

  defp release(state, key) do
    case Map.pop(state.taken, key) do
      {nil, _} ->
        state

      {{ref, _message}, taken} ->
        Process.demonitor(ref, [:flush])
        %{state | taken: taken}
    end
  end
end
