defmodule Kith.Backup.Import do
  @moduledoc false
  # The records of a backup as rows, in one transaction. Whoever made the backup may have written anything into it.

  import Kith.Backup.Engine

  alias Kith.{Error, Instance, MessageArchive, Registration}
  alias Kith.Backup.Source
  alias Kith.KMS.Client
  alias Kith.Store.{Accounts, Backups, Prekeys, Repo, Sessions}

  @doc "Restores a user from a reader and the chunks that follow."
  def run(instance, user, reader, chunks, options) do
    begun = %{
      user: user,
      now: Instance.now(instance),
      options: options,
      account: nil,
      exported_at: nil,
      public_key: nil,
      devices: [],
      threads: %{},
      records: 0,
      whole?: false,
      sessions: 0,
      messages: 0,
      skipped: 0
    }

    # In the transaction nobody waits for a key service.
    case Client.prepare(instance, :account, user) do
      :ok -> import_all(instance, reader, chunks, begun)
      {:error, reason} -> {:error, Error.new(reason)}
    end
  end

  defp import_all(instance, reader, chunks, begun) do
    Repo.long_transaction(instance.repo, fn ->
      # An error is raised, and undoes what was written.
      case Source.fold(instance, reader, chunks, begun, &import_records/3) do
        {:ok, state} -> {:ok, settle(instance, state)}
        {:error, error} -> raise error
      end
    end)
  end

  # None of the prekeys is handed out again, and new ones have other ids: those of before may be out since the backup.
  defp settle(instance, state) do
    Prekeys.skip_ids(instance.repo, state.user)
    state
  end

  defp import_records(instance, reader, {records, state}) do
    with {:ok, places, state} <- places(instance, records, state),
         {:ok, sealed} <- seal(instance, reader, state, places) do
      messages =
        for {{:message, device, thread, place}, content} <- Enum.zip(records, sealed),
            content != nil,
            do: {device, thread, kept(instance, place), content}

      for {record, sealed} <- Enum.zip(records, sealed),
          do: put(instance.repo, state, record, sealed)

      Backups.insert_messages(instance.repo, state.user, messages)
      {:ok, %{state | messages: state.messages + length(messages)}}
    end
  end

  defp seal(_instance, _reader, %{account: nil}, []), do: {:ok, []}

  defp seal(instance, reader, state, places),
    do: sealed(instance, :backup_seal, [reader, state.account, places])

  # Where each of the records goes.
  defp places(instance, records, state) do
    result =
      Enum.reduce_while(records, {[], state}, fn record, {places, state} ->
        case place(instance, record, state) do
          {:ok, place, state} ->
            {:cont, {[place | places], %{state | records: state.records + 1}}}

          {:error, error} ->
            {:halt, {:error, error}}
        end
      end)

    with {places, state} when is_list(places) <- result, do: {:ok, Enum.reverse(places), state}
  end

  defp place(instance, {:account, user, at}, %{account: nil} = state) do
    if user == state.user do
      with :ok <- room(instance, user, state.options) do
        repo = instance.repo

        case sealed(instance, :account_create, [user]) do
          {:ok, data_key} ->
            if Accounts.insert_account(repo, user, data_key, state.now) == 0,
              do: raise(Error.new(:already_registered))

            {:ok, :none, %{state | account: {user, data_key}, exported_at: at}}

          error ->
            error
        end
      end
    else
      {:error, Error.new(:malformed, "the backup is one of another user")}
    end
  end

  defp place(_instance, {:ending, count}, %{whole?: false, records: count} = state)
       when state.account != nil and state.devices != [],
       do: {:ok, :none, %{state | whole?: true, records: count - 1}}

  defp place(_instance, {:ending, _}, _state), do: malformed()
  defp place(_instance, {:account, _, _}, _state), do: malformed()

  defp place(_instance, _record, %{account: account, whole?: whole?})
       when account == nil or whole?,
       do: malformed()

  defp place(instance, {:device, device}, state) do
    number = device.device

    cond do
      number in state.devices or state.public_key not in [nil, device.public_key] ->
        malformed()

      length(state.devices) == instance.options.max_devices ->
        {:error, Error.new(:too_large, "the backup has more devices than :max_devices allows")}

      true ->
        state = %{state | devices: [number | state.devices], public_key: device.public_key}
        {:ok, {:identity, number, device.public_key}, state}
    end
  end

  defp place(instance, {:message, device, thread, place}, state) do
    place = kept(instance, place)

    cond do
      device not in state.devices ->
        malformed()

      not state.options.history or instance.options.archive == false or over?(place, state.now) ->
        {:ok, :none, %{state | skipped: state.skipped + 1}}

      true ->
        {key, state} = thread_key(instance, thread, state)
        {:ok, {:message, {thread, key}, {state.user, device}, place}, state}
    end
  end

  defp place(_instance, record, state) do
    device = if elem(record, 0) == :prekey, do: elem(record, 1).device, else: elem(record, 1)

    if device in state.devices,
      do: {:ok, place(record), if(elem(record, 0) == :session, do: one_more(state), else: state)},
      else: malformed()
  end

  defp one_more(state), do: %{state | sessions: state.sessions + 1}

  defp place({:prekey, prekey}),
    do: {:prekey, prekey.kind, prekey.device, prekey.id, prekey.public_key}

  defp place({:base_key, _, _, _}), do: :none
  defp place({:peer, device, peer}), do: {:peer, device, peer}
  defp place({:session, device, peer, _, _}), do: {:session, device, peer}
  defp place({:archived, device, peer, position}), do: {:archived, device, peer, position}

  defp place({:entry, device, peer, {id, group, number}, _}),
    do: {:entry, device, peer, id, group, number}

  defp room(instance, user, %{replace: replace?}) do
    repo = instance.repo
    Accounts.lock(repo, user)
    there = for [device | _] <- Backups.devices(repo, user), do: {user, device}

    cond do
      there == [] ->
        # A data key without devices is nobody's.
        Accounts.delete_account(repo, user)
        :ok

      replace? ->
        for address <- there do
          with {:error, error} <- Registration.unregister(instance, address), do: raise(error)
        end

        :ok

      true ->
        {:error, Error.new(:already_registered)}
    end
  end

  # Other users' copies in a thread are sealed under the key that is there, which stays: what comes in is sealed under it.
  defp thread_key(instance, thread, state) do
    case state.threads do
      %{^thread => key} ->
        {key, state}

      %{} ->
        key = MessageArchive.open_thread(instance, instance.repo, thread, state.now)
        # Messages come thread by thread.
        {key, %{state | threads: %{thread => key}}}
    end
  end

  # Nothing outlives the retention of this instance.
  defp kept(%{options: %{archive: archive}}, place) do
    case archive && archive[:retention] do
      seconds when is_integer(seconds) ->
        latest = div(place.position, 1_000) + seconds * 1_000
        %{place | expires_at: min(place.expires_at || latest, latest)}

      _for_ever ->
        place
    end
  end

  defp over?(%{expires_at: at}, now), do: at != nil and at <= now

  defp put(repo, state, {:device, device}, sealed) do
    address = {state.user, device.device}
    fields = Map.put(device, :identity, sealed)

    if Accounts.insert_device(repo, address, fields, device.created_at) == 0,
      do: raise(Error.new(:stale))

    # Of a registration of before, see Kith.Store.Accounts.clear/2.
    Accounts.clear(repo, address)
  end

  defp put(repo, state, {:prekey, prekey}, sealed),
    do: Backups.insert_prekey(repo, {state.user, prekey.device}, prekey, sealed, state.now)

  defp put(repo, state, {:base_key, device, base_key, at}, _nothing),
    do: Prekeys.insert_base_key(repo, {state.user, device}, base_key, at)

  defp put(repo, state, {:peer, device, peer}, sealed),
    do: Backups.insert_peer(repo, {state.user, device}, peer, sealed, state.now)

  defp put(repo, state, {:session, device, peer, established, received}, {sealed, braid}) do
    local = {state.user, device}
    times = {established, received}
    Backups.insert_session(repo, local, peer, sealed, times, state.now)
    if braid, do: Sessions.put_braids(repo, local, [{peer, braid}])
  end

  defp put(repo, state, {:archived, device, peer, _position}, archived) do
    # The mark: should a message bring it back, it sends no more.
    marks = %{peer => state.now}
    Sessions.insert_archived(repo, {state.user, device}, [{peer, archived}], marks)
  end

  defp put(repo, state, {:entry, device, peer, position, at}, sealed),
    do: Backups.insert_entry(repo, {state.user, device}, peer, position, sealed, at)

  defp put(_repo, _state, _record, _sealed), do: :ok
end
