defmodule Kith.Maintenance do
  @moduledoc false
  # Keeps the keys of an instance fresh: makes one-time prekeys for devices that run low, at once when a claim says so;
  # and in passes, replaces signed prekeys, deletes what nothing needs any more and ends sessions nobody answers in.
  # docs/decisions/0009-key-lifecycle.md says why.
  #
  # A pass is a process of its own beside this one, so that a claim need not wait for it. Of many nodes one does a
  # task: it claims a row of signal_maintenance for a while, longer as it goes on, and when it dies the claim runs out.
  # That saves work and no more. Each step is a short transaction that is right when two nodes make it at
  # once, and whatever is lost between two steps is found again by the next pass.
  use GenServer

  require Logger

  alias Kith.{
    Address,
    Archive,
    Error,
    Installation,
    Instance,
    MessageArchive,
    Registration,
    Telemetry
  }

  alias Kith.Store.{Prekeys, Repo}
  alias Kith.Store.Maintenance, as: Store

  @tasks [:replenish, :rotate, :purge, :expire, :checkpoint]

  # How long a claim holds, and how much of that may pass before it is renewed. Milliseconds.
  @lease 120_000
  @renew_after 30_000

  # A first pass so soon after the start, at most. Not at once: nodes are often started together.
  @first_pass 10_000

  # Sessions wait for 30 days, and to look for them is to read all of them.
  @expiry_interval 86_400

  # A pass is due a little before an interval is over, as its timer may be early.
  @due 0.75

  # Rows of a batch: what SQLite reads or deletes in a few milliseconds. A Kyber prekey takes 2 KB.
  @devices 50
  @rows 25
  @sessions 200

  # The clocks of nodes may differ by less than this.
  @skew 86_400_000

  # Counts of recoveries are about the last hour.
  @recoveries 86_400_000

  # SQLite empties its log by itself at 4 MB, unless somebody reads all the time.
  @large_log 16_777_216

  @counts %{
    replenished: 0,
    rotated: 0,
    prekeys: 0,
    signed_prekeys: 0,
    base_keys: 0,
    skipped_keys: 0,
    recoveries: 0,
    messages: 0,
    sessions: 0,
    failed: 0
  }

  def start_link(name), do: GenServer.start_link(__MODULE__, name, name: via(name))

  @doc "Asks for new prekeys of each address. Returns at once."
  @spec request(Instance.t(), [Address.t()]) :: :ok
  def request(_instance, []), do: :ok

  def request(instance, addresses),
    do: GenServer.cast(via(instance.name), {:replenish, addresses})

  @doc "Waits until what was asked for before is done."
  def await(name), do: GenServer.call(via(name), :await, :infinity)

  @doc "Makes a pass and returns what it did."
  @spec run(Instance.t()) :: {:ok, map} | {:error, Error.t()}
  def run(instance) do
    # The pass would wait for the transaction, and the transaction for the pass.
    if Repo.in_transaction?(instance.repo),
      do: raise(ArgumentError, "expected to be called outside of a transaction")

    GenServer.call(via(instance.name), :run, :infinity)
  end

  defp via(name), do: {:via, Registry, {Kith.Registry, {__MODULE__, name}}}

  @impl true
  def init(name) do
    # A pass that is killed must not take this process along.
    Process.flag(:trap_exit, true)
    %{options: options} = Instance.fetch!(name)
    owner = Base.encode16(:crypto.strong_rand_bytes(8), case: :lower)
    interval = if options.maintenance_interval == :off, do: 0, else: options.maintenance_interval
    state = %{name: name, owner: owner, interval: interval, pass: nil, callers: [], next: []}
    if interval > 0, do: schedule(:rand.uniform(min(interval * 1_000, @first_pass)))
    {:ok, state}
  end

  @impl true
  def handle_cast({:replenish, addresses}, %{name: name} = state) do
    instance = Instance.fetch!(name)
    for address <- addresses, do: replenish_device(instance, address)
    {:noreply, state}
  catch
    kind, reason ->
      Logger.warning("maintenance: replenish failed with #{what(kind, reason)}")
      {:noreply, state}
  end

  @impl true
  def handle_call(:await, _from, state), do: {:reply, :ok, state}

  # Who asks while a pass runs wants one that begins now.
  def handle_call(:run, from, %{pass: nil} = state),
    do: {:noreply, start_pass(%{state | callers: [from]})}

  def handle_call(:run, from, state), do: {:noreply, %{state | next: [from | state.next]}}

  @impl true
  def handle_info(:pass, state) do
    # So that many nodes do not march in step.
    schedule(state.interval * 900 + :rand.uniform(state.interval * 200))
    {:noreply, if(state.pass, do: state, else: start_pass(state))}
  end

  def handle_info({ref, result}, %{pass: %Task{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, finish_pass(state, result)}
  end

  def handle_info({:DOWN, ref, :process, _pid, _reason}, %{pass: %Task{ref: ref}} = state),
    do: {:noreply, finish_pass(state, {:error, Error.new(:panic, "the pass was stopped")})}

  # Of a pass: its end is told by what comes above.
  def handle_info({:EXIT, _pid, _reason}, state), do: {:noreply, state}
  def handle_info(_other, state), do: {:noreply, state}

  defp schedule(milliseconds), do: Process.send_after(self(), :pass, milliseconds)

  defp start_pass(%{name: name, owner: owner, callers: callers} = state) do
    instance = Instance.fetch!(name)
    %{state | pass: Task.async(fn -> pass(instance, owner, callers != []) end)}
  end

  defp finish_pass(%{callers: callers, next: next} = state, result) do
    for caller <- callers, do: GenServer.reply(caller, result)
    state = %{state | pass: nil, callers: next, next: []}
    if next == [], do: state, else: start_pass(state)
  end

  @doc "A pass, in the process that calls it. One that somebody asked for does not mind when the last one was."
  @spec pass(Instance.t(), String.t(), boolean) :: {:ok, map} | {:error, Error.t()}
  def pass(instance, owner, asked?) do
    job = %{instance: instance, owner: owner, asked?: asked?, task: nil, now: nil}

    results =
      for task <- @tasks, reduce: [], do: (results -> [attempt(job, task, results) | results])

    case Enum.find(results, &match?({:error, _}, &1)) do
      nil -> {:ok, Enum.reduce(results, @counts, &total/2)}
      error -> error
    end
  end

  defp total(:elsewhere, counts), do: counts

  defp total({:ok, done}, counts),
    do: Map.merge(counts, Map.take(done, Map.keys(@counts)), fn _, a, b -> a + b end)

  # Whatever happens to one task, the others are done, and the instance lives.
  defp attempt(job, task, before) do
    job = %{job | task: task, now: Instance.now(job.instance)}

    result =
      Telemetry.span(
        [:kith, :maintenance, :run],
        %{instance: job.instance.name, task: task},
        fn ->
          result = claimed(job, before)
          {measurements, claimed} = measured(result)
          {result, measurements, Map.put(outcome(result), :claimed, claimed)}
        end
      )

    with {:error, error} <- result, do: log(task, error)
    result
  catch
    kind, reason ->
      Logger.warning("maintenance: #{task} failed with #{what(kind, reason)}")
      {:error, Error.new(:panic, "in #{task}")}
  end

  defp measured({:ok, done}) do
    {failed, done} = Map.pop(done, :failed, 0)
    {%{count: done |> Map.values() |> Enum.sum(), failed: failed}, true}
  end

  defp measured(:elsewhere), do: {%{count: 0, failed: 0}, false}
  defp measured({:error, _}), do: {%{count: 0, failed: 0}, false}

  defp outcome(:elsewhere), do: %{result: :ok, reason: nil}
  defp outcome(result), do: Telemetry.outcome(result)

  # Never what an exception says: it may quote a row.
  defp what(:error, %module{}), do: inspect(module)
  defp what(kind, _reason), do: inspect(kind)

  # Files are of this node.
  defp claimed(%{task: :checkpoint} = job, before), do: guarded(fn -> checkpoint(job, before) end)

  defp claimed(%{instance: instance, task: task, owner: owner, now: now} = job, _before) do
    claim = %{
      owner: owner,
      now: now,
      until: now + @lease,
      finished_before: if(job.asked?, do: now + @lease, else: now - round(period(job) * @due))
    }

    case in_transaction(instance, &Store.claim(&1, task, claim)) do
      {:ok, 1} ->
        claimed_now()
        result = guarded(fn -> perform(task, job) end)
        finished_at = with({:ok, _} <- result, do: now, else: (_ -> nil))
        given_back = in_transaction(instance, &Store.give_back(&1, task, owner, finished_at))
        with {:ok, _} <- given_back, do: result

      {:ok, 0} ->
        :elsewhere

      {:error, error} ->
        {:error, error}
    end
  end

  defp guarded(fun) do
    {:ok, fun.()}
  rescue
    error in Error -> {:error, error}
  end

  defp period(%{task: :expire, instance: %{options: options}}),
    do: max(options.maintenance_interval, @expiry_interval) * 1_000

  defp period(%{instance: %{options: options}}), do: options.maintenance_interval * 1_000

  # The process of a pass has one claim at a time.
  defp claimed_now,
    do: Process.put({__MODULE__, :claimed}, System.monotonic_time(:millisecond))

  # Between two batches. Another node has taken the task over if this one stood still for too long.
  defp still_claimed!(%{instance: instance, task: task, owner: owner}) do
    held = System.monotonic_time(:millisecond) - Process.get({__MODULE__, :claimed})

    if held > @renew_after do
      until = Instance.now(instance) + @lease

      if step!(instance, &Store.renew(&1, task, owner, until)) == 0,
        do: raise(Error.new(:stale, "another node does it"))

      claimed_now()
    end
  end

  defp perform(:replenish, job), do: replenish(job)
  defp perform(:rotate, job), do: rotate(job)
  defp perform(:purge, job), do: purge(job)
  defp perform(:expire, job), do: expire(job)

  # Every device is looked at: how many prekeys one has left is known only by counting.
  defp replenish(%{instance: instance} = job) do
    empty = %{
      devices: 0,
      low: 0,
      one_time: 0,
      kyber_one_time: 0,
      signed_age: 0,
      last_resort_age: 0
    }

    walked =
      walk_devices(job, nil, {%{true => empty, false => empty}, %{replenished: 0, failed: 0}})

    {totals, done} = walked

    for {local, total} <- totals do
      metadata = %{instance: instance.name, local: local}
      event([:kith, :prekeys, :total], total, metadata)
    end

    done
  end

  defp walk_devices(%{instance: instance} = job, behind, walked) do
    {devices, stock} =
      step!(instance, fn repo ->
        devices = Store.devices(repo, behind, @devices)
        addresses = Enum.map(devices, & &1.address)
        {devices, if(devices == [], do: %{}, else: Prekeys.stock(repo, addresses))}
      end)

    walked = Enum.reduce(devices, walked, &look_after(job, &1, stock[&1.address], &2))

    if length(devices) < @devices do
      walked
    else
      still_claimed!(job)
      walk_devices(job, List.last(devices).address, walked)
    end
  end

  defp look_after(%{instance: instance, now: now}, device, stock, {totals, done}) do
    %{address: {user, number} = address, local: local} = device
    low? = Registration.low?(instance, stock)
    ages = %{signed_age: age(device.signed, now), last_resort_age: age(device.last_resort, now)}

    if low? or overdue?(instance, ages) do
      metadata = %{instance: instance.name, user_id: user, device_id: number, local: local}
      event([:kith, :prekeys, :stock], Map.merge(stock, ages), metadata)
    end

    totals =
      Map.update!(totals, local, fn total ->
        %{
          devices: total.devices + 1,
          low: total.low + if(low?, do: 1, else: 0),
          one_time: total.one_time + stock.one_time,
          kyber_one_time: total.kyber_one_time + stock.kyber_one_time,
          signed_age: max(total.signed_age, ages.signed_age),
          last_resort_age: max(total.last_resort_age, ages.last_resort_age)
        }
      end)

    if low? and local,
      do: {totals, count(done, :replenished, replenish_device(instance, address))},
      else: {totals, done}
  end

  defp age(nil, _now), do: 0
  defp age(made, now), do: max(div(now - made, 1_000), 0)

  # Nobody but its own client can replace the signed prekey of a device whose private keys are elsewhere.
  defp overdue?(%{options: %{prekey_rotation: 0}}, _ages), do: false

  defp overdue?(%{options: %{prekey_rotation: rotation}}, ages),
    do: max(ages.signed_age, ages.last_resort_age) > 2 * rotation

  defp replenish_device(instance, {_, device} = address) do
    case Registration.replenish(instance, address) do
      {:ok, _} ->
        {:ok, 1}

      # It is gone, and needs none; or only its user can, who gets them with the next unlock.
      {:error, %Error{reason: reason}} when reason in [:not_registered, :locked] ->
        {:ok, 0}

      {:error, error} ->
        # The stock is still low, so the next claim asks again.
        Logger.warning("no new prekeys for a device #{device}: #{Exception.message(error)}")
        {:error, error}
    end
  end

  defp rotate(%{instance: %{options: %{prekey_rotation: 0}}}), do: %{rotated: 0}

  defp rotate(%{instance: %{options: options}, now: now} = job),
    do: rotate(job, now - options.prekey_rotation * 1_000, nil, %{rotated: 0, failed: 0})

  defp rotate(%{instance: instance} = job, older_than, behind, done) do
    due = step!(instance, &Store.due_for_rotation(&1, older_than, behind, @devices))

    done =
      Enum.reduce(due, done, fn {_made, user, device}, done ->
        result = rotate_device(instance, {user, device}, older_than)
        still_claimed!(job)
        count(done, :rotated, result)
      end)

    if length(due) < @devices,
      do: done,
      else: rotate(job, older_than, List.last(due), done)
  end

  defp rotate_device(instance, {_, device} = address, older_than) do
    case Registration.rotate(instance, address, older_than) do
      {:ok, 0} ->
        {:ok, 0}

      {:ok, _} ->
        {:ok, 1}

      {:error, %Error{reason: reason}} when reason in [:not_registered, :locked] ->
        {:ok, 0}

      {:error, error} ->
        Logger.warning("no new signed prekey for a device #{device}: #{Exception.message(error)}")
        {:error, error}
    end
  end

  defp purge(%{instance: %{options: options} = instance, now: now} = job) do
    used_before = now - options.prekey_grace_period * 1_000
    superseded_before = now - options.signed_prekey_grace_period * 1_000
    used = batches(job, &Store.delete_used(&1, used_before, @rows))
    signed = purge_superseded(job, superseded_before)
    prekeys = used + signed.prekeys

    event(
      [:kith, :prekeys, :purge],
      %{count: prekeys, signed_count: signed.signed_prekeys, base_keys: signed.base_keys},
      %{instance: instance.name}
    )

    skipped = purge_skipped_keys(job)
    recoveries = batches(job, &Store.delete_recoveries(&1, now - @recoveries, @rows))
    messages = batches(job, &MessageArchive.purge(instance, &1, now, @rows))
    batches(job, &Store.delete_nonces(&1, now, @rows))
    batches(job, &Store.delete_challenges(&1, now, @rows))

    event(
      [:kith, :sessions, :purge],
      %{skipped_keys: skipped, recoveries: recoveries, messages: messages},
      %{instance: instance.name}
    )

    # So that a copy of the file made before is known to be older. Under the claim, as nodes would confuse each other.
    Installation.refresh(instance)

    Map.merge(signed, %{
      prekeys: prekeys,
      skipped_keys: skipped,
      recoveries: recoveries,
      messages: messages
    })
  end

  defp purge_superseded(%{instance: instance} = job, before, done \\ nil) do
    done = done || %{signed_prekeys: 0, base_keys: 0, prekeys: 0}
    superseded = step!(instance, &Store.superseded(&1, before, @devices))
    after_them = Enum.reduce(superseded, done, &purge_prekey(job, &1, &2))

    # What a decryption has locked stays for the next pass.
    if length(superseded) < @devices or after_them.signed_prekeys == done.signed_prekeys,
      do: after_them,
      else: purge_superseded(job, before, after_them)
  end

  # First the private half, so that nothing opens with it while what is remembered of it goes.
  defp purge_prekey(%{instance: instance} = job, {address, kind, id}, done) do
    {base_keys, unused} =
      if kind == :signed do
        step!(instance, &Prekeys.erase(&1, address, kind, id))
        base_keys = batches(job, &Store.delete_base_keys(&1, address, id, @rows))
        {base_keys, purge_unused(job, address)}
      else
        {0, 0}
      end

    deleted = step!(instance, &Prekeys.delete_superseded(&1, address, kind, id))

    %{
      signed_prekeys: done.signed_prekeys + deleted,
      base_keys: done.base_keys + base_keys,
      prekeys: done.prekeys + unused
    }
  end

  # One-time prekeys in bundles with none but signed prekeys that are gone.
  defp purge_unused(%{instance: instance} = job, address) do
    case step!(instance, &Prekeys.oldest_signed(&1, address)) do
      nil -> 0
      oldest -> batches(job, &Store.delete_unused(&1, address, oldest - @skew, @rows))
    end
  end

  defp purge_skipped_keys(%{instance: %{options: %{skipped_key_lifetime: 0}}}), do: 0

  defp purge_skipped_keys(%{instance: %{options: options}, now: now} = job) do
    before = now - options.skipped_key_lifetime * 1_000

    # Of a message of version 4 there are two keys; the first of them is the message.
    keys = batches(job, &Store.delete_skipped_keys(&1, :ratchet, before, @rows))
    batches(job, &Store.delete_skipped_keys(&1, :post_quantum, before, @rows))
    keys
  end

  defp expire(%{instance: %{options: %{unacknowledged_session_lifetime: 0}}}), do: %{sessions: 0}

  defp expire(%{instance: %{options: options}, now: now} = job) do
    before = now - options.unacknowledged_session_lifetime * 1_000
    expire(job, before, nil, %{sessions: 0, failed: 0})
  end

  defp expire(%{instance: instance} = job, before, behind, done) do
    sessions = step!(instance, &Store.sessions(&1, before, behind, @sessions))

    done =
      for {local, peer, true} <- sessions, reduce: done do
        done ->
          result = expire_session(job, local, peer, before)
          still_claimed!(job)
          count(done, :sessions, result)
      end

    if length(sessions) < @sessions do
      done
    else
      still_claimed!(job)
      {local, peer, _due} = List.last(sessions)
      expire(job, before, {local, peer}, done)
    end
  end

  defp expire_session(%{instance: instance, now: now}, local, peer, before) do
    ended =
      Instance.transaction(instance, fn repo ->
        # The device before its session, as everywhere. It may have been answered since.
        with {:ok, device} <- Registration.fetch_local(repo, local),
             established_at when established_at != nil <-
               Store.unanswered(repo, local, peer, before) do
          {{:ok,
            {Archive.put_away(instance, repo, local, device.data_key, peer), established_at}}, []}
        else
          nil -> {{:ok, {0, nil}}, []}
          {:error, error} -> {{:error, error}, []}
        end
      end)

    case ended do
      {:ok, {0, _}} ->
        {:ok, 0}

      {:ok, {1, established_at}} ->
        measurements = %{count: 1, age: age(established_at, now)}
        event([:kith, :sessions, :expire], measurements, Telemetry.pair(instance, local, peer))
        {:ok, 1}

      # It sends no more in it once its user is back.
      {:error, %Error{reason: :locked}} ->
        {:ok, 0}

      {:error, error} ->
        log(:expire, error)
        {:error, error}
    end
  end

  # Deleted rows are in the log until it is emptied.
  defp checkpoint(%{instance: %{repo: repo} = instance}, before) do
    deleted? =
      Enum.any?(before, fn
        {:ok, done} -> done |> Map.drop([:failed, :replenished]) |> Enum.any?(&(elem(&1, 1) > 0))
        _other -> false
      end)

    with :sqlite <- Repo.dialect(repo),
         size = log_size(instance),
         true <- size > 0 and (deleted? or size > @large_log) do
      result = Kith.SQLite.checkpoint(repo)

      {done, outcome} =
        case result do
          :ok -> {1, %{result: :ok, reason: nil, emptied: true}}
          # Another program reads. The next pass tries again.
          {:error, %{kind: :busy}} -> {0, %{result: :ok, reason: nil, emptied: false}}
          {:error, _} -> {0, %{result: :error, reason: :storage, emptied: false}}
        end

      metadata = Map.put(outcome, :instance, instance.name)
      event([:kith, :sqlite, :checkpoint], %{size: size}, metadata)

      if outcome.reason == :storage,
        do: raise(Error.new(:storage, "the write-ahead log was not emptied"))

      %{checkpoints: done}
    else
      _ -> %{}
    end
  end

  # In memory there is no log, and deleted rows are overwritten at once.
  defp log_size(%{options: %{database: :memory}}), do: 0

  defp log_size(%{options: %{database: path}}) do
    case File.stat(path <> "-wal") do
      {:ok, %{size: size}} -> size
      {:error, _} -> 0
    end
  end

  # Deletes one batch after the other, each in a transaction, and returns how many rows there were.
  defp batches(%{instance: instance} = job, delete, deleted \\ 0) do
    rows = step!(instance, delete)
    still_claimed!(job)
    if rows < @rows, do: deleted + rows, else: batches(job, delete, deleted + rows)
  end

  defp count(done, key, {:ok, number}), do: Map.update!(done, key, &(&1 + number))
  # A database that does not answer does not answer for the next device either.
  defp count(_done, _key, {:error, %Error{reason: :storage} = error}), do: raise(error)
  defp count(done, _key, {:error, _error}), do: Map.update!(done, :failed, &(&1 + 1))

  defp step!(instance, fun) do
    case in_transaction(instance, fun) do
      {:ok, result} -> result
      {:error, error} -> raise error
    end
  end

  defp in_transaction(instance, fun),
    do: Instance.transaction(instance, fn repo -> {{:ok, fun.(repo)}, []} end)

  defp event(event, measurements, metadata),
    do: Telemetry.emit([{event, measurements, metadata}])

  defp log(task, error), do: Logger.warning("maintenance: #{task}: #{Exception.message(error)}")
end
