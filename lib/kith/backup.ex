defmodule Kith.Backup do
  @moduledoc """
  A user's account in one encrypted file, and back: the recovery kit.

      {:ok, key} = Kith.Backup.RecoveryKey.generate()
      {:ok, words} = Kith.Backup.RecoveryKey.words(key)
      # shown to anna, once

      {:ok, backup} = Kith.Backup.export(MyApp.Kith, "anna", key)
      backup |> Stream.into(File.stream!("anna.kith")) |> Stream.run()

      # another day, on another server
      {:ok, key} = Kith.Backup.RecoveryKey.parse(words)
      {:ok, restored} = Kith.Backup.restore(MyApp.Kith, "anna", File.stream!("anna.kith"), key)

  A backup has the identity key of the user, the devices with their registration ids and prekeys, what was remembered of other
  people's identities and whether it was verified, the sessions, and the message archive. It is for one user; what saves a whole database is
  in `docs/guides/backups.md`. `docs/guides/recovery.md` is about offering it to people.

  ## The secret

  A backup opens with one of

    * `{:passphrase, passphrase}` - 8 to 1,024 bytes, stretched with Argon2id. Whoever finds the file can try passphrases as
      long as they like;
    * a `Kith.Backup.RecoveryKey` - 128 or 256 random bits, which a person keeps as words, or several people as shares. There is nothing to
      try.

  Neither the server nor anyone else opens it without. No key of the user becomes an Elixir term: rows are opened and
  written, and read and sealed again, inside the native library.

  ## What a restore does with keys

  A backup is older than the account it restores, and may be restored while the account goes on elsewhere. So

    * no session goes on: those of the backup open what is on its way in them, and the next message to each peer starts a new
      one. No message key is used twice, and no prekey of the backup is handed out again; late first messages open with them;
    * the account gets a new data key, wrapped under the key of the instance it is restored to; histories are sealed under the thread keys
      that are there, or new ones;
    * the identity stays, and with it every safety number.

  A note to oneself (`Kith.encrypt/5` to oneself) is sealed under the data key of the account and lies with the application: one of
  before does not open after a restore. With `:archive` its text is in the history.

  What is remembered of first messages that were opened since the backup was made is not in it: such a message, sent again,
  opens again.

  ## Whose backup

  A backup says what its maker wrote into it, and everybody can make one under a passphrase of their own. `restore/5` takes the user
  it is for and refuses another's; all rows it writes are that user's. A history that somebody restored from a file is what they say
  they have read, no evidence.

  ## Errors

    * `:wrong_secret` - the secret is not the one it was made with, or the first 86 bytes were changed;
    * `:tampered` - it was cut, continued, reordered or edited. Nothing of it is used then, and nothing was changed;
    * `:malformed` - it is no backup, or not one of the user; Argon2id would do less work than is accepted;
    * `:too_large` - Argon2id would do more work than is accepted, or there are more devices than `:max_devices`;
    * `:unsupported_version` - a later release wrote it;
    * `:busy` - see `Kith.Password`, whose queue a passphrase stands in.
  """

  alias Kith.{
    Address,
    Error,
    Instance,
    Maintenance,
    MessageArchive,
    Native,
    Registration,
    Telemetry,
    Validation
  }

  alias Kith.Backup.{Record, RecoveryKey}
  alias Kith.Password.Limiter
  alias Kith.Store.{Accounts, Backups, Prekeys, Repo, Sessions}

  @header_bytes 86

  # What is read of a given binary in one native call.
  @slice 262_144
  @gathered 65_536

  @peers_per_page 50
  @messages_per_page 200
  @page_bytes 1_048_576

  # 256 MiB and three passes: a file is tried offline.
  @parameters [memory: 262_144, passes: 3, parallelism: 4]
  @schema [
    history: {:one_of, [true, false]},
    memory: {:integer, 19_456..262_144},
    passes: {:integer, 1..53},
    parallelism: {:integer, 1..64}
  ]

  @typedoc "What opens a backup."
  @type secret :: {:passphrase, binary} | RecoveryKey.t()

  @typedoc "What was restored."
  @type restored :: %{
          user: Address.user(),
          devices: [Address.device()],
          exported_at: integer,
          sessions: non_neg_integer,
          messages: non_neg_integer,
          skipped: non_neg_integer
        }

  @doc """
  Returns the backup of a user as a stream of binaries, to be written wherever it is kept.

  Rows are read while the stream is, some at a time, so memory does not grow with the history. It is read once. It raises
  `Kith.Error` when the database fails in the middle; what was written until then is no backup. What changes meanwhile
  may be in it or not; each session is in it as it was at one moment. A row that does not open is left out and counted in the event
  `[:kith, :backup, :export, :stop]`; without the identity there is no backup.

    * `:history` - whether the message archive of the user is in it, what has not expired. Default `true`.
    * `:memory`, `:passes`, `:parallelism` - of Argon2id, as in `Kith.Password`: at least 19,456 KiB, and twice that times
      the passes. Defaults 262,144 (256 MiB), 3 and 4.

  Errors: `:not_registered`, `:key_not_found` when the private keys live elsewhere, `:malformed` for a passphrase that is too short,
  `:too_large` for one that is too long, `:busy`, and those of the machinery.
  """
  @spec export(Kith.name(), Address.user(), secret, keyword) ::
          {:ok, Enumerable.t()} | {:error, Error.t()}
  def export(name, user, secret, options \\ []) do
    instance = Instance.fetch!(name)
    {user, 1} = Address.new!(user)
    secret = secret!(secret)
    options = options!(options, @schema)
    parameters = parameters!(options)

    with {:ok, account} <- account(instance, user),
         {:ok, {writer, header}} <- derive(instance, :backup_create, [secret, parameters], secret) do
      {:ok, stream(instance, account, {writer, header}, Keyword.get(options, :history, true))}
    end
  end

  defp account(instance, user) do
    Instance.transaction(instance, fn repo ->
      devices = Backups.devices(repo, user)
      data_key = Accounts.data_key(repo, user)

      cond do
        devices == [] -> {{:error, Error.new(:not_registered)}, []}
        data_key == nil -> {{:error, Error.new(:key_not_found)}, []}
        Enum.all?(devices, &(List.last(&1) == nil)) -> {{:error, Error.new(:key_not_found)}, []}
        true -> {{:ok, {user, data_key}}, []}
      end
    end)
  end

  # A passphrase waits its turn with the passwords of logins.
  defp derive(instance, function, arguments, {:passphrase, _}) do
    case Limiter.run(fn -> apply(Native, function, arguments) end) do
      {{:done, result}, _waited} -> watched(instance, function, result)
      {:busy, _waited} -> {:error, Error.new(:busy)}
    end
  end

  defp derive(instance, function, arguments, _key),
    do: watched(instance, function, apply(Native, function, arguments))

  defp watched(instance, function, result),
    do: result |> Telemetry.watch(instance, function) |> Error.from_native()

  defp stream(instance, {user, _} = account, {writer, header}, history?) do
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
  defp batches(instance, {user, _}, history?) do
    devices = Stream.flat_map([nil], fn _ -> [owned(instance, user)] end)

    rest =
      Stream.flat_map(devices, fn {numbers, records} ->
        peers = Enum.map(numbers, &peers(instance, {user, &1}))
        messages = if history?, do: [messages(instance, user)], else: []
        Stream.concat([records] ++ peers ++ messages)
      end)

    rest
  end

  # The devices with all that is theirs alone: at most some thousand prekeys.
  defp owned(instance, user) do
    read!(instance, fn repo ->
      account = {{:account, user, Instance.now(instance)}, :none}

      devices =
        for [device | row] <- Backups.devices(repo, user), List.last(row) != nil do
          {fields, [sealed]} = Enum.split(row, -1)
          record = {{:device, [device | fields]}, {:identity, device, sealed}}

          {device, [record] ++ prekeys(repo, {user, device}) ++ base_keys(repo, {user, device})}
        end

      {numbers, records} = Enum.unzip(devices)
      {numbers, Enum.chunk_every([account | Enum.concat(records)], @messages_per_page)}
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

  defp peers(instance, local) do
    {"", 0}
    |> Stream.unfold(fn last ->
      with [_ | _] = page <-
             read!(instance, &Backups.peers(&1, local, last, @peers_per_page)),
           do: {page, List.last(page)},
           else: ([] -> nil)
    end)
    |> Stream.flat_map(& &1)
    |> Stream.flat_map(fn peer ->
      instance |> read!(&known(&1, local, peer)) |> Enum.chunk_every(@messages_per_page)
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

  defp messages(instance, user) do
    Stream.unfold([0, "", 0, ""], fn last ->
      read!(instance, fn repo ->
        now = Instance.now(instance)

        case repo |> Backups.message_sizes(user, last, now, @messages_per_page) |> fitting(0) do
          [] ->
            nil

          keys ->
            upto = List.last(keys)
            rows = Backups.messages(repo, user, last, upto, now)
            {Enum.map(rows, &message(user, &1)), upto}
        end
      end)
    end)
    |> Stream.reject(&(&1 == []))
  end

  # At least one, however large it is.
  defp fitting([], _bytes), do: []

  defp fitting([[device, thread, position, id, size] | rows], bytes) do
    if bytes == 0 or bytes + size <= @page_bytes,
      do: [[device, thread, position, id] | fitting(rows, bytes + size)],
      else: []
  end

  defp message(user, [device, thread, data_key, position, id, peer, peer_device | rest]) do
    [sent_at, expires_at, sealed] = rest
    public = [device, thread, position, id, peer, peer_device, sent_at, expires_at]

    place = %{
      position: position,
      message_id: id,
      sender: if(peer || peer_device, do: {peer, peer_device}),
      sent_at: sent_at,
      expires_at: expires_at
    }

    {{:message, public}, {:message, {thread, data_key}, {user, device}, place, sealed}}
  end

  defp read!(instance, fun) do
    case Instance.transaction(instance, &{{:ok, fun.(&1)}, []}) do
      {:ok, value} -> value
      {:error, error} -> raise error
    end
  end

  @doc """
  Reads a backup to its end and says what is in it. Nothing is written.

  For whoever has written down words and wants to know that they are the right ones, and that the file is whole. Takes what
  `restore/5` takes.
  """
  @spec verify(Kith.name(), Enumerable.t() | binary, secret) ::
          {:ok, %{user: Address.user(), exported_at: integer, records: non_neg_integer}}
          | {:error, Error.t()}
  def verify(name, backup, secret) do
    instance = Instance.fetch!(name)
    secret = secret!(secret)

    Telemetry.span([:kith, :backup, :verify], %{instance: instance.name}, fn ->
      result =
        reading(instance, backup, secret, fn reader, chunks ->
          fold(instance, reader, chunks, %{user: nil, records: 0, whole?: false}, &look/3)
        end)

      case result do
        {:ok, %{size: size} = seen} ->
          {{:ok, Map.take(seen, [:user, :exported_at, :records])}, %{size: size}, outcome(result)}

        error ->
          {error, %{size: 0}, outcome(error)}
      end
    end)
  end

  defp outcome(result), do: Telemetry.outcome(result)

  defp look(instance, reader, {records, seen}) do
    case native(instance, :backup_drop, [reader]) do
      :ok -> Enum.reduce_while(records, {:ok, seen}, &look_at/2)
      error -> error
    end
  end

  defp look_at({:account, user, at}, {:ok, %{user: nil} = seen}),
    do: {:cont, {:ok, Map.merge(seen, %{user: user, exported_at: at, records: 1})}}

  defp look_at({:ending, count}, {:ok, %{records: count, whole?: false, user: user} = seen})
       when user != nil,
       do: {:cont, {:ok, %{seen | whole?: true}}}

  defp look_at(record, {:ok, %{user: user, whole?: false} = seen})
       when user != nil and elem(record, 0) not in [:account, :ending],
       do: {:cont, {:ok, %{seen | records: seen.records + 1}}}

  defp look_at(_record, _seen), do: {:halt, malformed()}

  @doc """
  Restores a user from a backup: an enumerable of binaries, such as `File.stream!(path)`, or a binary.
  A file that is streamed through something else has to be read by bytes, since reading by lines changes line endings.

  All of it happens in one transaction, which ends with the last byte of the backup: give it a file and no slow connection, since with the embedded
  database nobody else writes meanwhile. Inside a transaction of the application it joins that one. A backup that is not whole
  leaves nothing behind.

  A user who has keys here is `:already_registered`, also on a device whose keys live elsewhere.

    * `:replace` - `true` unregisters them first, with all that `Kith.unregister/2` deletes. Default `false`.
    * `:history` - whether messages are restored. Default `true`. They are not where `:archive` is off, and do not outlive its
      retention.

  Stop the account where it was before, if it is still there: two servers with one identity confuse its peers, though no key
  is used twice.

  `:sessions` and `:messages` are how many were restored, `:skipped` how many messages were not.

  Errors: see above.
  """
  @spec restore(Kith.name(), Address.user(), Enumerable.t() | binary, secret, keyword) ::
          {:ok, restored} | {:error, Error.t()}
  def restore(name, user, backup, secret, options \\ []) do
    instance = Instance.fetch!(name)
    {user, 1} = Address.new!(user)
    secret = secret!(secret)
    schema = [replace: {:one_of, [true, false]}, history: {:one_of, [true, false]}]
    options = Keyword.merge([replace: false, history: true], options!(options, schema))
    metadata = %{instance: instance.name, user_id: user}

    Telemetry.span([:kith, :backup, :restore], metadata, fn ->
      result =
        reading(instance, backup, secret, fn reader, chunks ->
          import_all(instance, user, reader, chunks, Map.new(options))
        end)

      case result do
        {:ok, state} ->
          Maintenance.request(instance, for(device <- state.devices, do: {user, device}))
          counts = %{size: state.size, sessions: state.sessions, messages: state.messages}
          {{:ok, restored(state)}, counts, outcome(result)}

        error ->
          {error, %{size: 0, sessions: 0, messages: 0}, outcome(error)}
      end
    end)
  end

  defp restored(state) do
    state
    |> Map.take([:user, :exported_at, :sessions, :messages, :skipped])
    |> Map.put(:devices, Enum.sort(state.devices))
  end

  defp import_all(instance, user, reader, chunks, options) do
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

    Repo.long_transaction(instance.repo, fn ->
      # An error is raised, and undoes what was written.
      case fold(instance, reader, chunks, begun, &import_records/3) do
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

  defp place(_instance, {kind, _}, _state) when kind in [:ending], do: malformed()
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
        for address <- there, do: {:ok, _} = Registration.unregister(instance, address)
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

  # Reads the header, and gives `fun` the reader and the chunks that follow: a function that returns {chunk, next} or :done.
  defp reading(instance, backup, secret, fun) do
    chunks = chunks(backup)

    try do
      case header(chunks, "") do
        {:ok, header, next} ->
          with {:ok, reader} <- derive(instance, :backup_open, [header, secret], secret),
               do: fun.(reader, next)

        :error ->
          malformed()
      end
    after
      close(backup_reader())
    end
  end

  # The enumerable is suspended between two chunks, so that the work of the secret is done before the transaction.
  defp chunks(backup) when is_binary(backup), do: chunks([backup])

  # Reading by lines turns CR LF into LF.
  defp chunks(%File.Stream{line_or_bytes: :line} = file),
    do: chunks(%{file | line_or_bytes: @gathered})

  defp chunks(backup) do
    if Enumerable.impl_for(backup) == nil, do: no_backup()
    reduce = &Enumerable.reduce(backup, &1, fn chunk, _ -> {:suspend, chunk} end)
    fn -> step(reduce.({:cont, nil})) end
  end

  defp step({:suspended, chunk, continue}) when is_binary(chunk) do
    Process.put(__MODULE__, continue)
    {chunk, fn -> step(continue.({:cont, nil})) end}
  end

  defp step({:suspended, _other, continue}) do
    continue.({:halt, nil})
    no_backup()
  end

  defp step(_done) do
    Process.delete(__MODULE__)
    :done
  end

  # What is given in its place may well be a secret.
  defp no_backup,
    do: raise(ArgumentError, "expected a backup to be an enumerable of binaries, or a binary")

  # What was not read to its end is closed.
  defp backup_reader, do: Process.delete(__MODULE__)
  defp close(nil), do: :ok
  defp close(continue), do: continue.({:halt, nil})

  defp header(next, read) when byte_size(read) >= @header_bytes do
    <<header::binary-size(@header_bytes), rest::binary>> = read
    {:ok, header, fn -> {rest, next} end}
  end

  defp header(next, read) do
    case next.() do
      {chunk, next} -> header(next, read <> chunk)
      :done -> :error
    end
  end

  # Feeds all chunks to the reader, and what is complete to `fun`. Says {:ok, state} only when the last chunk was the last one.
  defp fold(instance, reader, next, state, fun, size \\ @header_bytes) do
    {bytes, next} = gather(next, [], 0)

    with {:ok, state} <- feed(instance, reader, bytes, state, fun) do
      size = size + byte_size(bytes)

      if next == :done,
        do: ended(records(instance, reader, nil, state, fun), size),
        else: fold(instance, reader, next, state, fun, size)
    end
  end

  defp ended({:ok, %{whole?: true} = state}, size), do: {:ok, Map.put(state, :size, size)}
  defp ended({:ok, _state}, _size), do: malformed()
  defp ended(error, _size), do: error

  # Small pieces, and a native call for each, would take longer than the work.
  defp gather(next, gathered, size) when size >= @gathered,
    do: {IO.iodata_to_binary(gathered), next}

  defp gather(next, gathered, size) do
    case next.() do
      {chunk, next} -> gather(next, [gathered | chunk], size + byte_size(chunk))
      :done -> {IO.iodata_to_binary(gathered), :done}
    end
  end

  defp feed(_instance, _reader, <<>>, state, _fun), do: {:ok, state}

  defp feed(instance, reader, chunk, state, fun) do
    {slice, rest} = split(chunk)

    with {:ok, state} <- records(instance, reader, slice, state, fun),
         do: feed(instance, reader, rest, state, fun)
  end

  defp split(<<slice::binary-size(@slice), rest::binary>>), do: {slice, rest}
  defp split(chunk), do: {chunk, <<>>}

  defp records(instance, reader, bytes, state, fun) do
    with {:ok, read} <- native(instance, :backup_read, [reader, bytes]),
         {:ok, records} <- decode(read),
         do: fun.(instance, reader, {records, state})
  end

  defp decode(read) do
    Enum.reduce_while(read, {:ok, []}, fn record, {:ok, records} ->
      case Record.decode(record) do
        {:ok, record} -> {:cont, {:ok, [record | records]}}
        :error -> {:halt, malformed()}
      end
    end)
    |> case do
      {:ok, records} -> {:ok, Enum.reverse(records)}
      error -> error
    end
  end

  defp malformed, do: {:error, Error.new(:malformed, "the backup is not laid out as one")}

  defp native(instance, function, arguments),
    do: Error.from_native(Instance.native(instance, function, arguments))

  # What a vault is needed for: it comes after what is written or read.
  defp sealed(instance, :account_create, arguments),
    do: Error.from_native(Instance.sealed(instance, :account_create, arguments))

  defp sealed(instance, function, [first | rest]),
    do: native(instance, function, [first, instance.vault | rest])

  # What is given in its place may well be a secret.
  defp secret!({:passphrase, passphrase} = secret) when is_binary(passphrase), do: secret
  defp secret!(%RecoveryKey{reference: reference}), do: {:recovery_key, reference}

  defp secret!(_other),
    do: raise(ArgumentError, "expected {:passphrase, binary} or a Kith.Backup.RecoveryKey")

  defp parameters!(options) do
    options = Keyword.merge(@parameters, Keyword.delete(options, :history))
    {memory, passes} = {options[:memory], options[:passes]}

    if (memory * passes) not in 38_912..1_048_576,
      do:
        raise(
          ArgumentError,
          "expected :memory times :passes to be from 38912 to 1048576, got: #{memory} times #{passes}"
        )

    {memory, passes, options[:parallelism]}
  end

  defp options!(options, schema) do
    case Validation.validate(options, schema) do
      :ok -> options
      {:error, message} -> raise ArgumentError, message
    end
  end
end
