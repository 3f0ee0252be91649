defmodule Kith.Backup.Export do
  @moduledoc false
  # All of a user as records, page by page, and these as the bytes of a backup.

  import Kith.Backup.Engine

  alias Kith.{Error, Instance, KeyChange, Telemetry}
  alias Kith.Backup.Record
  alias Kith.Store.{Accounts, Backups, Keys, Sessions}

  @peers_per_page 50
  @messages_per_page 200
  @page_bytes 1_048_576

  @doc "The bytes of a backup, read from the database while they are read."
  def stream(instance, {user, _} = account, {writer, header}, history?) do
    metadata = %{instance: instance.name, user_id: user}
    once = :atomics.new(1, [])

    begin = fn ->
      # The chunks of one writer follow each other: a second reader would get half of them.
      if :atomics.add_get(once, 1, 1) > 1,
        do: raise(ArgumentError, "a stream of Kith.Backup.export/4 is read once")

      %{
        started: {System.monotonic_time(), System.system_time()},
        size: 0,
        records: 0,
        counts: %{session: 0, message: 0, damaged: 0},
        outcome: %{result: :error, reason: nil}
      }
    end

    header = Stream.map([header], &{:bytes, &1})
    batches = Stream.concat(header, batches(instance, account, history?))

    Stream.transform(
      batches,
      begin,
      fn batch, state ->
        noticing(state, metadata, &write(instance, account, writer, batch, &1))
      end,
      fn state -> noticing(state, metadata, &finish(instance, account, writer, &1)) end,
      fn state -> report(metadata, state) end
    )
  end

  # Whoever reads is told by the exception, and whoever watches by the event.
  defp noticing(state, metadata, fun) do
    fun.(state)
  rescue
    error in Error ->
      report(metadata, %{state | outcome: Telemetry.outcome({:error, error})})
      Process.put({__MODULE__, state.started}, :reported)
      reraise error, __STACKTRACE__
  end

  defp report(metadata, %{counts: counts} = state) do
    if Process.delete({__MODULE__, state.started}) != :reported do
      measured = %{
        size: state.size,
        sessions: counts.session,
        messages: counts.message,
        damaged: counts.damaged
      }

      event = [:kith, :backup, :export]

      Telemetry.emit([Telemetry.recorded(event, metadata, state.started, measured, state.outcome)])
    end
  end

  defp write(_instance, _account, _writer, {:bytes, bytes}, state),
    do: {[bytes], %{state | size: state.size + byte_size(bytes)}}

  defp write(instance, account, writer, batch, state) do
    records =
      for {record, row} <- batch do
        {kind, public} = Record.encode(record)
        {kind, public, row}
      end

    case sealed(instance, :backup_write, [writer, account, records]) do
      {:ok, {bytes, damaged}} ->
        {identity?, counts} = count(batch, damaged, state.counts)
        if not identity?, do: raise(Error.new(:corrupted_state, "the identity does not open"))

        written = length(batch) - length(damaged)
        size = state.size + byte_size(bytes)
        state = %{state | size: size, counts: counts, records: state.records + written}
        {if(bytes == "", do: [], else: [bytes]), state}

      {:error, error} ->
        raise error
    end
  end

  # Whether all identities are there, and how many of each kind.
  defp count(batch, damaged, counts) do
    batch
    |> Enum.with_index()
    |> Enum.reduce({true, counts}, fn {{record, _row}, place}, {identity?, counts} ->
      kind = elem(record, 0)

      cond do
        place not in damaged -> {identity?, Map.replace(counts, kind, (counts[kind] || 0) + 1)}
        kind == :device -> {false, counts}
        true -> {identity?, Map.update!(counts, :damaged, &(&1 + 1))}
      end
    end)
  end

  defp finish(instance, account, writer, state) do
    # Says that nothing is missing, beside the seal that says so.
    {bytes, state} = write(instance, account, writer, [{{:ending, state.records}, :none}], state)

    case native(instance, :backup_finish, [writer]) do
      {:ok, last} ->
        size = state.size + byte_size(last)
        {bytes ++ [last], %{state | size: size, outcome: %{result: :ok, reason: nil}}}

      {:error, error} ->
        raise error
    end
  end

  # Lists of {record, row}, each read in a transaction of its own while the stream is.
  defp batches(instance, {user, _} = account, history?) do
    devices = Stream.flat_map([nil], fn _ -> [owned(instance, account)] end)

    rest =
      Stream.flat_map(devices, fn {numbers, records} ->
        peers = Enum.map(numbers, &peers(instance, account, {user, &1}))
        messages = if history?, do: [messages(instance, account)], else: []
        Stream.concat([records] ++ peers ++ messages)
      end)

    rest
  end

  # The devices with all that is theirs alone: at most some thousand prekeys.
  defp owned(instance, {user, _} = account) do
    read!(instance, account, fn repo ->
      begin = {{:account, user, Instance.now(instance)}, :none}

      devices =
        for [device | row] <- Backups.devices(repo, user), List.last(row) != nil do
          {fields, [sealed]} = Enum.split(row, -1)
          record = {{:device, [device | fields]}, {:identity, device, sealed}}

          {device, [record] ++ prekeys(repo, {user, device}) ++ base_keys(repo, {user, device})}
        end

      {numbers, records} = Enum.unzip(devices)
      {numbers, Enum.chunk_every([begin | Enum.concat(records)], @messages_per_page)}
    end)
  end

  defp prekeys(repo, {_, device} = address) do
    for [kind, id | row] <- Backups.prekeys(repo, address) do
      {fields, [sealed]} = Enum.split(row, -1)
      # One that was erased stays as long as base keys belong to it.
      row = if sealed, do: {:prekey, prekey_kind(kind), device, id, sealed}, else: :none
      {{:prekey, [device, kind, id | fields]}, row}
    end
  end

  for kind <- [:one_time, :signed, :kyber_one_time, :kyber_last_resort],
      do: defp(prekey_kind(unquote(Atom.to_string(kind))), do: unquote(kind))

  defp base_keys(repo, {_, device} = address),
    do: for(row <- Backups.base_keys(repo, address), do: {{:base_key, [device | row]}, :none})

  defp peers(instance, account, local) do
    {"", 0}
    |> Stream.unfold(fn last ->
      with [_ | _] = page <-
             read!(instance, account, &Backups.peers(&1, local, last, @peers_per_page)),
           do: {page, List.last(page)},
           else: ([] -> nil)
    end)
    |> Stream.flat_map(& &1)
    |> Stream.flat_map(fn peer ->
      instance
      |> read!(account, &known(&1, local, peer))
      |> Enum.chunk_every(@messages_per_page)
    end)
  end

  # All of a pair at one moment.
  defp known(repo, {_, device} = local, {peer, peer_device} = address) do
    session = Sessions.fetch(repo, local, address)
    fields = [device, peer, peer_device]

    identity =
      if session.identity, do: [{{:peer, fields}, {:peer, device, address, session.identity}}]

    current =
      if session.state do
        row = {:session, device, address, session.generation, session.state, session.braid}
        [{{:session, fields ++ [session.established_at, session.received_at]}, row}]
      end

    archived =
      for {id, position, state} <- Sessions.archive(repo, local, address),
          do:
            {{:archived, fields ++ [position]}, {:archived, device, address, id, position, state}}

    entries =
      for {id, group, number, sealed, created_at} <- Backups.entries(repo, local, address) do
        row = {:entry, device, address, id, group, number, sealed}
        {{:entry, fields ++ [id, group, number, created_at]}, row}
      end

    Enum.concat([identity || [], current || [], archived, entries])
  end

  defp messages(instance, {user, _} = account) do
    Stream.unfold([0, "", 0, ""], fn last ->
      read!(instance, account, fn repo ->
        now = Instance.now(instance)

        case repo |> Backups.message_sizes(user, last, now, page(instance)) |> fitting(0) do
          [] ->
            nil

          keys ->
            upto = List.last(keys)
            rows = Backups.messages(repo, user, last, upto, now)
            owners = owners(instance, repo, account, rows)
            {Enum.map(rows, &message(user, owners, &1)), upto}
        end
      end)
    end)
    |> Stream.reject(&(&1 == []))
  end

  # Each message may be of another thread, whose key a key service opens: those of a page are open together.
  defp page(%{kms: nil}), do: @messages_per_page
  defp page(_instance), do: 12

  # At least one, however large it is.
  defp fitting([], _bytes), do: []

  defp fitting([[device, thread, position, id, size] | rows], bytes) do
    if bytes == 0 or bytes + size <= @page_bytes,
      do: [[device, thread, position, id] | fitting(rows, bytes + size)],
      else: []
  end

  # Of a locked account, messages lie under its key too: the one it has, or one it had a moment ago.
  defp owners(instance, repo, account, rows) do
    for key_id <- Enum.uniq(for {_device, {_, _, key_id, _, _}} <- rows, do: key_id),
        into: %{},
        do: {key_id, KeyChange.owner(instance, repo, account, key_id)}
  end

  defp message(user, owners, {device, {thread, data_key, owner_key_id, place, sealed}}) do
    {peer, peer_device} = place.sender || {nil, nil}
    where = [device, thread, place.position, place.message_id]
    public = where ++ [peer, peer_device, place.sent_at, place.expires_at]

    {{:message, public},
     {:message, {thread, data_key}, owners[owner_key_id], {user, device}, place, sealed}}
  end

  defp read!(instance, {user, data_key}, fun) do
    result =
      Instance.transaction(instance, fn repo ->
        value = fun.(repo)

        # After the rows: of those that somebody sealed under another key meanwhile, none opens.
        if Keys.key_id(Accounts.data_key(repo, user)) == Keys.key_id(data_key),
          do: {{:ok, value}, []},
          else: {{:error, Error.new(:stale, "the data key of the account was changed")}, []}
      end)

    case result do
      {:ok, value} -> value
      {:error, error} -> raise error
    end
  end
end
