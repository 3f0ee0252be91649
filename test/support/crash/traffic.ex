defmodule Kith.Crash.Traffic do
  @moduledoc false
  # What the workers of a VM do: one random step after the other, each step's outcome written to the journal once
  # Kith has answered.
  #
  #     {:sent, id, text, from, to, envelope, position, session, outbox?}   encrypt has returned, or its transaction committed
  #     {:attempt, id, attempt}                  decrypt is about to be called
  #     {:opened, id, attempt, digest, inbox?}   and has returned a plaintext, or its transaction committed
  #     {:refused, id, attempt, reason, detail}  and has returned an error
  #     {:failed, what, reason, detail}          another call has returned an error
  #     {:stale, joined?}                        :stale was returned, to a transaction of the application or not
  #     {:raised, what, text}                    a call has raised, which none may
  #     {:steps, count}                          so many steps were made since the last such entry
  #
  # A text says which message it is, so that whoever opens it knows whether it is the right one.

  alias Kith.Crash.{App, Journal, Pool, Wire}
  alias Kith.Envelope

  @attempts 20

  # With the archive a message that is delivered again is read again.
  @into_inbox "INSERT INTO app_inbox (message, digest) VALUES ($1, $2) ON CONFLICT (message) DO NOTHING"

  @doc "The text of a message: mostly short, now and then long enough for pages of its own."
  def text(id) do
    size = if :erlang.phash2({:long, id}, 40) == 0, do: 6_000, else: 300
    padding = String.duplicate("kith ", div(:erlang.phash2({:size, id}, size), 5))
    "#{inspect(id)} #{padding}"
  end

  @doc "What of a plaintext is written down."
  def digest(text), do: :crypto.hash(:sha256, text)

  @doc """
  Makes steps for ever, or `:steps` of them.

  `:weights` are those of the steps; `:outbox` the users who send and `:inbox` those who receive inside a
  transaction of the application; `:busy` how many messages may be on their way.
  """
  def run(config, worker) do
    :rand.seed(:exsss, {config.seed, config.life, :erlang.phash2(worker)})
    state = Map.merge(config, %{worker: worker, file: Journal.open!(config.journal), count: 0})
    steps(state, Map.get(config, :steps, :infinity))
  end

  defp steps(_state, 0), do: :ok

  defp steps(state, left) do
    state = %{state | count: state.count + 1}
    step(choose(state), state)
    if rem(state.count, 10) == 0, do: write(state, [{:steps, 10}])
    steps(state, if(left == :infinity, do: left, else: left - 1))
  end

  defp choose(%{weights: weights} = state) do
    case Pool.size() do
      size when size > state.busy -> :deliver
      _ -> draw(weights, :rand.uniform(weights |> Keyword.values() |> Enum.sum()))
    end
  end

  defp draw([{step, weight} | _], n) when n <= weight, do: step
  defp draw([{_, weight} | rest], n), do: draw(rest, n - weight)

  # To a user with all their devices, and the sender's others; or to one device.
  defp step(:send, state) do
    {from, to} = pair(state)
    send_one(state, from, if(:rand.uniform(4) == 1, do: to, else: elem(to, 0)))
  end

  defp step(:group, state) do
    from = Enum.random(state.addresses)
    others = Enum.reject(state.users, &(&1 == elem(from, 0)))
    # In any order: Kith locks in its own.
    members = Enum.take_random(others, max(2, :rand.uniform(length(others))))

    deliver(state, from, fn ->
      options = if state.archive?, do: [thread: "family"], else: []

      with {:ok, results} <-
             Kith.encrypt_group(App.name(), from, members, text(id(state)), options) do
        Enum.reduce_while(results, {:ok, []}, fn
          {_member, {:ok, envelopes}}, {:ok, all} -> {:cont, {:ok, all ++ List.wrap(envelopes)}}
          {_member, {:error, error}}, _ -> {:halt, {:error, error}}
        end)
      end
    end)
  end

  defp step(:note, state) do
    {user, _} = from = Enum.random(state.addresses)
    text = text(id(state))

    with {:ok, envelopes} <-
           call(state, :note, fn -> Kith.encrypt(App.name(), from, user, text) end) do
      for %{type: :self} = note <- List.wrap(envelopes), _ <- 1..2 do
        case call(state, :open_note, fn -> Kith.decrypt(App.name(), from, note) end) do
          {:ok, ^text} -> :ok
          {:ok, _} -> write(state, [{:raised, :open_note, "another text"}])
          :failed -> :ok
        end
      end
    end
  end

  defp step(:deliver, state) do
    case Pool.take() do
      nil -> Process.sleep(1)
      message -> open(state, message)
    end
  end

  defp step(:again, state) do
    case Pool.answered() do
      nil -> :ok
      message -> open(state, message)
    end
  end

  # The network delivers a message twice at once.
  defp step(:twice, state) do
    case Pool.take() do
      nil ->
        :ok

      message ->
        config = Map.drop(state, [:file])

        {pid, ref} =
          spawn_monitor(fn ->
            state = Map.put(config, :file, Journal.open!(config.journal))
            open(%{state | worker: {state.worker, :twin}}, Map.put(message, :twin, true))
          end)

        open(state, message)

        receive do
          {:DOWN, ^ref, :process, ^pid, :normal} -> :ok
          {:DOWN, ^ref, :process, ^pid, reason} -> exit(reason)
        end
    end
  end

  defp step(:reset, state) do
    {from, to} = pair(state)
    reset(state, from, to)
  end

  defp step(:replenish, state),
    do:
      call(state, :replenish, fn -> Kith.replenish(App.name(), Enum.random(state.addresses)) end)

  # One who comes and goes, with whom everything may fail for want of keys and nothing else.
  defp step(:visitor, state) do
    visitor = "visitor #{:rand.uniform(3)}"
    # Not one whose other devices would hear of it too, outside of all books.
    host = state.addresses |> Enum.reject(&(elem(&1, 0) in state.outbox)) |> Enum.random()

    expected =
      [:not_registered, :session_not_found, :untrusted_identity, :unknown_prekey] ++
        [:key_not_found, :duplicate, :tampered]

    answer =
      case :rand.uniform(6) do
        1 -> Kith.unregister(App.name(), visitor)
        2 -> Kith.register(App.name(), visitor)
        3 -> Kith.replenish(App.name(), visitor)
        4 -> Kith.trust(App.name(), host, visitor)
        5 -> converse(host, visitor)
        6 -> converse(visitor, host)
      end

    case answer do
      {:ok, _} ->
        :ok

      {:error, %Kith.Error{reason: reason} = error} ->
        if reason not in expected,
          do: write(state, [{:failed, :visitor, reason, Exception.message(error)}])
    end
  rescue
    error -> unavailable!(state, :visitor, error, __STACKTRACE__)
  end

  # Two nodes start a session of the same pair at once, from either side: the sessions there are go first.
  defp step(:cold, state) do
    {from, to} = pair(state)
    reset(state, from, to)
    if :rand.uniform(2) == 1, do: reset(state, to, from)
    send_one(state, from, to)
  end

  defp pair(state) do
    from = Enum.random(state.addresses)
    {from, state.addresses |> Enum.reject(&(elem(&1, 0) == elem(from, 0))) |> Enum.random()}
  end

  defp reset(state, from, to) do
    call(state, :reset, fn ->
      case Kith.reset_session(App.name(), from, to) do
        {:error, %Kith.Error{reason: :session_not_found}} -> {:ok, :none}
        result -> result
      end
    end)
  end

  defp converse(from, to) do
    with {:ok, envelopes} <- Kith.encrypt(App.name(), from, to, "visit") do
      Enum.reduce(List.wrap(envelopes), {:ok, :none}, fn envelope, answer ->
        with {:ok, _} <- answer, do: Kith.decrypt(App.name(), envelope.to, envelope)
      end)
    end
  end

  @doc "Sends one message, for the last words of a run too."
  def send_one(state, from, to) do
    deliver(state, from, fn ->
      with {:ok, envelopes} <- Kith.encrypt(App.name(), from, to, text(id(state))),
           do: {:ok, List.wrap(envelopes)}
    end)
  end

  defp deliver(state, {user, _}, encrypt) do
    outbox? = user in state.outbox

    run =
      if outbox? do
        fn ->
          App.transaction(state.store, fn ->
            with({:ok, all} <- encrypt.(), do: keep(state, all))
          end)
        end
      else
        encrypt
      end

    with {:ok, envelopes} <- call(state, :encrypt, outbox?, run) do
      sent =
        for {envelope, n} <- Enum.with_index(envelopes) do
          position = Wire.position(envelope)
          header = header(envelope)

          {:sent, {id(state), n}, id(state), envelope.from, envelope.to,
           Envelope.to_binary(envelope), position, header, outbox?}
        end

      write(state, sent)

      messages =
        for {:sent, id, _, from, to, bytes, {key, _}, _, _} <- sent,
            not Pool.lost?(id),
            do: %{id: id, pair: {from, to}, key: key, envelope: bytes}

      Enum.each(messages, &route(state, &1))
    end
  end

  # With other nodes there, a message is delivered on this one, on another, or on both at once.
  defp route(%{wires: true, drain: false}, message) do
    at = :rand.uniform(20)
    if at <= 12, do: Pool.add([{:rand.uniform(4), message}])
    wire = fn -> message |> :erlang.term_to_binary() |> Base.encode64() end
    if at >= 12, do: IO.write(["wire ", wire.(), "\n"])
  end

  defp route(_state, message), do: Pool.add([{Pool.delay(), message}])

  # In the transaction: the application's own row goes with Kith's.
  defp keep(state, envelopes) do
    for {envelope, n} <- Enum.with_index(envelopes) do
      message = :erlang.term_to_binary({id(state), n})

      App.query!(state.store, "INSERT INTO app_outbox (message, envelope) VALUES ($1, $2)", [
        {:blob, message},
        {:blob, Envelope.to_binary(envelope)}
      ])
    end

    {:ok, envelopes}
  end

  # Where in its post-quantum chain a message lies, and of which session.
  defp header(envelope) do
    case Kith.Native.message_inspect(envelope.type, envelope.body) do
      {:ok, %{message_keys: [_, {group, number}]}} -> {envelope.session_id, group, number}
      {:ok, _} -> nil
    end
  end

  @doc "Opens a message and writes down what came of it."
  def open(state, %{id: id, envelope: bytes} = message) do
    {:ok, envelope} = Envelope.from_binary(bytes)
    {user, _} = envelope.to
    attempt = {state.life, state.worker, state.count}
    inbox? = user in state.inbox
    write(state, [{:attempt, id, attempt}])
    decrypt = fn -> Kith.decrypt(App.name(), envelope.to, envelope) end

    run =
      if inbox? do
        fn ->
          App.transaction(state.store, fn ->
            with {:ok, text} <- decrypt.() do
              App.query!(state.store, @into_inbox, [
                {:blob, :erlang.term_to_binary(id)},
                {:blob, digest(text)}
              ])

              {:ok, text}
            end
          end)
        end
      else
        decrypt
      end

    case attempt(state, inbox?, run) do
      {:ok, text} ->
        write(state, [{:opened, id, attempt, digest(text), inbox?}])
        finish(message)

      {:error, reason, detail} when reason in [:storage, :stale, :down] ->
        write(state, [{:refused, id, attempt, reason, detail}])
        if not is_map_key(message, :twin), do: Pool.put_back(message)
        Process.sleep(5)

      {:error, reason, detail} ->
        write(state, [{:refused, id, attempt, reason, detail}])
        finish(message)

      {:raised, text} ->
        write(state, [{:raised, :decrypt, text}])
        finish(message)
    end
  end

  defp finish(%{twin: true}), do: :ok
  defp finish(message), do: Pool.done(message)

  defp call(state, what, joined? \\ false, run) do
    case attempt(state, joined?, run) do
      {:ok, value} ->
        {:ok, value}

      {:error, reason, detail} ->
        write(state, [{:failed, what, reason, detail}])
        Process.sleep(5)
        :failed

      {:raised, text} ->
        write(state, [{:raised, what, text}])
        :failed
    end
  end

  # An application repeats its own transaction when Kith says :stale; outside of one Kith does.
  defp attempt(state, joined?, run, left \\ @attempts) do
    case run.() do
      {:ok, value} ->
        {:ok, value}

      {:error, %Kith.Error{reason: :stale} = error} ->
        write(state, [{:stale, joined?}])

        if left > 1,
          do: attempt(state, joined?, run, left - 1),
          else: {:error, :stale, Exception.message(error)}

      {:error, %Kith.Error{reason: reason} = error} ->
        {:error, reason, Exception.message(error)}

      {:error, {:database, error}} ->
        {:error, :storage, inspect(error)}
    end
  rescue
    error -> unavailable(error, __STACKTRACE__)
  catch
    :exit, reason ->
      # A repository of the application may exit. Kith itself never does.
      if state.store == :sqlite,
        do: {:raised, "exit: " <> inspect(reason)},
        else: {:error, :down, inspect(reason)}
  end

  defp unavailable(%ArgumentError{message: "no instance of Kith" <> _ = text}, _),
    do: {:error, :down, text}

  defp unavailable(error, stack), do: {:raised, Exception.format(:error, error, stack)}

  defp unavailable!(state, what, error, stack) do
    case unavailable(error, stack) do
      {:error, reason, detail} -> write(state, [{:failed, what, reason, detail}])
      {:raised, text} -> write(state, [{:raised, what, text}])
    end
  end

  defp id(state), do: {state.life, state.worker, state.count}

  defp write(state, entries), do: Journal.write!(state.file, entries)
end
