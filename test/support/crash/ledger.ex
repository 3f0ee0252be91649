defmodule Kith.Crash.Ledger do
  @moduledoc false
  # The judge: it reads what all VMs wrote down, life after life, and finds what must not be. It knows nothing of Kith
  # but the bytes on the wire, the answers, and the tables of the application.
  #
  #   :lost          a message that was sent opens no more, and nobody has its text: it was neither answered
  #                  nor being opened by a caller who died; or a committed row of the application is gone
  #   :reused        two messages with one ratchet key and counter, or one post-quantum position; or a counter that
  #                  goes back
  #   :twice         a message that opened twice
  #   :undecryptable any other refusal of a message that has to open, or another text
  #   :unexpected    an exception, an undocumented refusal, a damaged database

  alias Kith.Crash.{Pool, Traffic, Wire}
  alias Kith.Envelope

  defstruct archive?: false,
            store: :sqlite,
            inbox: [],
            messages: %{},
            waiting: MapSet.new(),
            positions: %{},
            post_quantum: %{},
            chains: %{},
            order: %{},
            counters: %{},
            outbox_seen: 0,
            inbox_seen: 0,
            unconfirmed_outbox: MapSet.new(),
            unconfirmed_inbox: MapSet.new(),
            # Those whose row was seen: a message that is opened again makes no other one.
            in_inbox: MapSet.new(),
            touched: MapSet.new(),
            deaths: %{},
            counts: %{},
            violations: []

  # Numbers are given out in the order of transactions, which commit in another.
  @margin 500

  @retried [:storage, :stale, :down]

  @doc "Adds the journal of a life."
  def add_life(ledger, entries) do
    # What was opened in the life before is not delivered again any more.
    forgotten =
      for id <- ledger.touched, id not in ledger.waiting, reduce: ledger.messages do
        messages -> Map.update!(messages, id, &%{&1 | bytes: nil})
      end

    ledger = %{ledger | messages: forgotten, touched: MapSet.new()}
    entries |> Enum.reduce(ledger, &entry/2) |> end_life()
  end

  defp entry({:sent, id, text, from, to, bytes, position, header, outbox?}, ledger) do
    ledger = sent(ledger, id, text, {from, to}, bytes, position)
    ledger = if header, do: post_quantum(ledger, from, header, id), else: ledger

    if outbox?,
      do: %{ledger | unconfirmed_outbox: MapSet.put(ledger.unconfirmed_outbox, id)},
      else: ledger
  end

  defp entry({:in_outbox, row, {text, _} = id, bytes}, ledger) do
    {:ok, envelope} = Envelope.from_binary(bytes)
    {key, counter} = position = Wire.position(envelope)

    ledger =
      case ledger.messages do
        %{^id => %{digest: digest}} ->
          if digest == Traffic.digest(bytes),
            do: ledger,
            else: violation(ledger, :unexpected, {:another_row_in_the_outbox, id})

        %{} ->
          # Committed, and the VM died before it could write that down.
          ledger
          |> sent(id, text, {envelope.from, envelope.to}, bytes, position)
          |> count(:found_in_outbox)
      end

    confirmed = MapSet.delete(ledger.unconfirmed_outbox, id)

    %{ledger | unconfirmed_outbox: confirmed, outbox_seen: max(ledger.outbox_seen, row)}
    |> in_order(row, key, counter, id)
  end

  defp entry({:in_inbox, row, id, digest}, ledger) do
    confirmed = MapSet.delete(ledger.unconfirmed_inbox, id)

    ledger = %{
      ledger
      | unconfirmed_inbox: confirmed,
        in_inbox: MapSet.put(ledger.in_inbox, id),
        inbox_seen: max(ledger.inbox_seen, row)
    }

    case ledger.messages[id] do
      %{opened: 0} -> ledger |> opened(id, digest) |> count(:found_in_inbox)
      %{} -> right_text(ledger, id, digest)
      nil -> violation(ledger, :unexpected, {:unknown_row_in_the_inbox, id})
    end
  end

  # All committed rows are back.
  defp entry(:recovered, ledger) do
    ledger =
      for {what, ids} <- [outbox: ledger.unconfirmed_outbox, inbox: ledger.unconfirmed_inbox],
          id <- ids,
          reduce: ledger do
        ledger -> violation(ledger, :lost, {:row_of_the_application, what, id})
      end

    ledger = %{ledger | unconfirmed_outbox: MapSet.new(), unconfirmed_inbox: MapSet.new()}

    for id <- ledger.waiting, ledger.messages[id].duplicates > 0, reduce: ledger do
      ledger -> ledger |> close(id) |> violation(:lost, {:duplicate_without_a_row, id})
    end
  end

  defp entry({:attempt, id, attempt}, ledger) do
    message = ledger.messages[id]
    chains = Pool.seen(ledger.chains, message.pair, message.key)

    %{ledger | chains: chains, touched: MapSet.put(ledger.touched, id)}
    |> update(id, &%{&1 | attempts: MapSet.put(&1.attempts, attempt)})
    |> count(:deliveries)
  end

  defp entry({:opened, id, attempt, digest, inbox?}, ledger) do
    ledger = answered(ledger, id, attempt)

    ledger =
      if inbox? and id not in ledger.in_inbox,
        do: %{ledger | unconfirmed_inbox: MapSet.put(ledger.unconfirmed_inbox, id)},
        else: ledger

    opened(ledger, id, digest)
  end

  defp entry({:refused, id, attempt, reason, detail}, ledger) when reason in @retried do
    ledger = ledger |> answered(id, attempt) |> count(reason)

    # Whoever loses the connection while committing does not know the outcome. Of a full disk, a lost race and an
    # instance that is not there, one does.
    if reason == :stale or detail =~ "full" or (reason == :down and ledger.store == :sqlite),
      do: ledger,
      else: update(ledger, id, &%{&1 | unanswered: &1.unanswered + 1})
  end

  defp entry({:refused, id, attempt, :duplicate, _detail}, ledger) do
    ledger
    |> answered(id, attempt)
    |> update(id, &%{&1 | duplicates: &1.duplicates + 1})
    |> count(:duplicates)
  end

  defp entry({:refused, id, attempt, reason, detail}, ledger) do
    ledger
    |> answered(id, attempt)
    |> close(id)
    |> violation(:undecryptable, {id, reason, detail, Map.drop(ledger.messages[id], [:bytes])})
  end

  defp entry({:failed, _what, reason, _detail}, ledger) when reason in @retried,
    do: count(ledger, reason)

  defp entry({:failed, what, reason, detail}, ledger),
    do: violation(ledger, :unexpected, {what, reason, detail})

  defp entry({:raised, what, text}, ledger), do: violation(ledger, :unexpected, {what, text})
  defp entry({:stale, true}, ledger), do: count(ledger, :stale_joined)
  defp entry({:stale, false}, ledger), do: count(ledger, :stale_returned)
  defp entry({:steps, count}, ledger), do: count(ledger, :steps, count)
  defp entry({:lost_races, count}, ledger), do: count(ledger, :lost_races, count)
  defp entry({:death, death}, ledger), do: died(ledger, death)
  defp entry({:integrity, [["ok"]]}, ledger), do: count(ledger, :integrity)
  defp entry({:integrity, rows}, ledger), do: violation(ledger, :unexpected, {:integrity, rows})
  defp entry(mark, ledger) when mark in [:ready, :finished], do: ledger

  # Whoever was being answered when the VM died never was.
  defp end_life(ledger) do
    ledger =
      for id <- ledger.touched, reduce: ledger do
        ledger ->
          update(ledger, id, fn message ->
            unanswered = message.unanswered + MapSet.size(message.attempts)
            %{message | unanswered: unanswered, attempts: MapSet.new()}
          end)
      end

    for id <- ledger.touched, reduce: ledger do
      ledger -> judge(ledger, id, ledger.messages[id])
    end
  end

  # A text that nobody was told goes with the caller; one in the application's table is found there.
  defp judge(ledger, id, %{opened: 0, duplicates: n, pair: {_, {user, _}}} = message)
       when n > 0 do
    cond do
      id not in ledger.waiting -> ledger
      user in ledger.inbox -> ledger
      ledger.archive? -> close(ledger, id) |> violation(:lost, {:duplicate, id})
      message.unanswered > 0 -> ledger |> close(id) |> count(:answers_lost)
      true -> ledger |> close(id) |> violation(:lost, {:duplicate, id})
    end
  end

  defp judge(ledger, _id, _message), do: ledger

  defp close(ledger, id), do: %{ledger | waiting: MapSet.delete(ledger.waiting, id)}

  defp sent(ledger, id, text, pair, bytes, {key, counter} = position) do
    message = %{
      text: text,
      pair: pair,
      key: key,
      counter: counter,
      bytes: bytes,
      digest: Traffic.digest(bytes),
      attempts: MapSet.new(),
      unanswered: 0,
      opened: 0,
      duplicates: 0
    }

    ledger =
      case ledger.positions do
        %{^position => other} -> violation(ledger, :reused, {:counter, counter, pair, other, id})
        %{} -> ledger
      end

    %{
      ledger
      | messages: Map.put(ledger.messages, id, message),
        waiting: if(Pool.lost?(id), do: ledger.waiting, else: MapSet.put(ledger.waiting, id)),
        positions: Map.put(ledger.positions, position, id)
    }
    |> count(:messages)
  end

  defp post_quantum(ledger, from, header, id) do
    place = {from, header}

    case ledger.post_quantum do
      %{^place => other} -> violation(ledger, :reused, {:post_quantum, from, other, id})
      %{} -> %{ledger | post_quantum: Map.put(ledger.post_quantum, place, id)}
    end
  end

  # Rows are numbered while the session is held, so counters of a ratchet key follow them: one after the other, since
  # what was rolled back was not sent.
  defp in_order(ledger, row, key, counter, id) do
    case ledger.order do
      %{^key => {last, _}} when last >= row ->
        ledger

      %{^key => {_, before}} when counter != before + 1 ->
        violation(ledger, :reused, {:order, before, counter, id}) |> ordered(key, row, counter)

      %{^key => _} ->
        ordered(ledger, key, row, counter)

      %{} when counter != 0 ->
        violation(ledger, :reused, {:order, nil, counter, id}) |> ordered(key, row, counter)

      %{} ->
        ordered(ledger, key, row, counter)
    end
  end

  defp ordered(ledger, key, row, counter),
    do: %{ledger | order: Map.put(ledger.order, key, {row, counter})}

  defp answered(ledger, id, attempt),
    do: update(ledger, id, &%{&1 | attempts: MapSet.delete(&1.attempts, attempt)})

  defp opened(ledger, id, digest) do
    ledger = right_text(ledger, id, digest)

    case ledger.messages[id] do
      %{opened: n} when n > 0 and not ledger.archive? -> violation(ledger, :twice, id)
      %{opened: n} when n > 0 -> count(ledger, :from_archive)
      _ -> ledger |> close(id) |> update(id, &%{&1 | opened: 1}) |> count(:opened)
    end
  end

  defp right_text(ledger, id, digest) do
    if digest == Traffic.digest(Traffic.text(ledger.messages[id].text)),
      do: ledger,
      else: violation(ledger, :undecryptable, {:another_text, id})
  end

  @doc "What the next life is to deliver: all that is on its way, and some of what arrived, once more."
  def pending(ledger) do
    waiting =
      for id <- ledger.waiting, message = ledger.messages[id] do
        {if(message.unanswered > 0, do: 0, else: Pool.delay()), packet(id, message)}
      end

    again =
      ledger.touched
      |> Enum.filter(&(ledger.messages[&1].opened > 0 and ledger.messages[&1].bytes != nil))
      |> Enum.take_random(10)
      |> Enum.map(&{Pool.delay(), packet(&1, ledger.messages[&1])})

    waiting ++ again
  end

  defp packet(id, message),
    do: %{id: id, pair: message.pair, key: message.key, envelope: message.bytes}

  @doc "From which rows on the next life has to tell what is in the tables of the application."
  def seen(ledger),
    do: {max(ledger.outbox_seen - @margin, 0), max(ledger.inbox_seen - @margin, 0)}

  @doc "The end: all that was not lost on the way has been opened."
  def close(ledger) do
    for id <- ledger.waiting, reduce: ledger do
      ledger ->
        violation(ledger, :lost, {:never_opened, id, Map.drop(ledger.messages[id], [:bytes])})
    end
  end

  @doc "The figures of two runs together."
  def together(a, b) do
    add = fn x, y -> Map.merge(x, y, fn _, n, m -> n + m end) end

    %__MODULE__{
      deaths: add.(a.deaths, b.deaths),
      counts: add.(a.counts, b.counts),
      violations: a.violations ++ b.violations
    }
  end

  def died(ledger, death), do: %{ledger | deaths: Map.update(ledger.deaths, death, 1, &(&1 + 1))}
  def deaths(ledger), do: ledger.deaths |> Map.values() |> Enum.sum()

  @doc "How many violations there are of a kind."
  def violations(ledger, kind), do: Enum.count(ledger.violations, &(elem(&1, 0) == kind))

  def count(ledger, what, by \\ 1),
    do: %{ledger | counts: Map.update(ledger.counts, what, by, &(&1 + by))}

  def violation(ledger, kind, what),
    do: %{ledger | violations: [{kind, what} | ledger.violations]}

  defp update(ledger, id, fun),
    do: %{ledger | messages: Map.update!(ledger.messages, id, fun)}
end
