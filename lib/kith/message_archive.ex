defmodule Kith.MessageArchive do
  @moduledoc false
  # Plaintexts, sealed under the data key of their thread in the transaction that made or opened the message. What
  # is sealed is bound to every column of its row.

  import Kith.Store.WrappedKey, only: [is_locked: 1]

  alias Kith.{
    Address,
    Envelope,
    Error,
    Instance,
    KeyChange,
    Message,
    Registration,
    Telemetry,
    ThreadKeys,
    Unlocked
  }

  alias Kith.Store.{Accounts, ArchivedMessages, Keys, Repo}

  # The engine refuses a message it has opened before with one of these, by what has become of the session since. The
  # others are about the call or the machinery.
  @refusals [
    :duplicate,
    :session_not_found,
    :unknown_prekey,
    :tampered,
    :out_of_sync,
    :untrusted_identity,
    :not_registered,
    :unsupported_version
  ]

  # One page is opened in one native call, and is all in memory.
  @page_bytes 8 * 1_048_576

  # Of messages that one device sent in the same millisecond.
  @max_sent 16

  # BIGINT.
  @max_integer 0x7FFFFFFFFFFFFFFF

  @cursor_version 1
  @content_version 1

  @typedoc "A device of an account, with the data key of the account, as the transaction holds it."
  @type owner :: {Address.t(), Accounts.device()}

  @typedoc "Where copies of a call go: nowhere, or into a thread until some seconds from then."
  @type target :: nil | {thread_id :: String.t(), expires_in :: nil | pos_integer}

  @doc "Where the copies of a call go. `to` is nil for a group, which is its thread."
  @spec target(Instance.t(), Address.t(), nil | Address.given(), keyword) :: target
  def target(%{options: %{archive: false}}, _from, _to, _options), do: nil

  def target(_instance, from, to, options) do
    if Keyword.get(options, :archive, true),
      do: {thread_id(options[:thread], from, to), options[:expires_in]}
  end

  defp thread_id(nil, _from, nil) do
    raise ArgumentError,
          "expected :thread, the conversation of the group: with :archive, encrypt_group/5 stores the sender's copy in it"
  end

  defp thread_id(nil, {user, _}, {peer, _}), do: direct(user, peer)
  defp thread_id(nil, {user, _}, peer), do: direct(user, peer)
  defp thread_id(thread, {user, _}, _to), do: thread_id(thread, user)

  # "t:" and the application's own id, or "d:" and both users in order: no two threads have one id in common.
  @doc "The id of a thread as its row has it."
  def thread_id({:direct, peer}, user), do: direct(user, peer)
  def thread_id(thread, _user) when is_binary(thread), do: "t:" <> thread

  defp direct(user, peer) do
    [first, second] = Enum.sort([user, peer])
    "d:#{byte_size(first)}:#{first}#{second}"
  end

  # The thread as the application names it to one of its users.
  defp name("t:" <> thread, _user), do: thread

  defp name("d:" <> users, user) do
    {size, ":" <> users} = Integer.parse(users)

    case {binary_part(users, 0, size), binary_part(users, size, byte_size(users) - size)} do
      {^user, peer} -> {:direct, peer}
      {peer, _user} -> {:direct, peer}
    end
  end

  @doc "Stores the sender's own copy of a message, with those who were served, in the caller's transaction."
  @spec put_sent(Instance.t(), Repo.repo(), owner, target, [Address.t()], binary, integer) :: :ok
  def put_sent(_instance, _repo, _from, nil, _recipients, _plaintext, _sent_at), do: :ok

  def put_sent(instance, repo, from, target, recipients, plaintext, sent_at) do
    row = %{message_id: :crypto.strong_rand_bytes(16), sender: nil, sent_at: sent_at}
    put(instance, repo, from, target, row, {recipients, plaintext})
  end

  @doc """
  Stores an opened message in the transaction that opened it. `:again` when it is there: a session that opens a message a
  second time is older than the archive.
  """
  @spec put_received(Instance.t(), Repo.repo(), owner, Envelope.t(), binary, keyword) ::
          :ok | :again
  def put_received(instance, repo, {to, _} = owner, envelope, plaintext, options) do
    row = %{message_id: message_id(envelope), sender: envelope.from, sent_at: sent_at(envelope)}
    put(instance, repo, owner, target(instance, to, envelope.from, options), row, {[], plaintext})
  end

  # What a stranger wrote.
  defp sent_at(envelope) do
    case Map.get(envelope, :timestamp) do
      timestamp when timestamp in 0..@max_integer//1 -> timestamp
      _none -> nil
    end
  end

  @doc false
  def put(instance, repo, owner, target, row, content, position \\ nil)
  def put(_instance, _repo, _owner, nil, _row, _content, _position), do: :ok

  def put(instance, repo, {address, _} = owner, {thread, expires_in}, row, content, position) do
    position = position || Instance.position(instance)

    expires_at =
      expires_at(instance.options.archive[:retention], expires_in, div(position, 1_000))

    place = Map.merge(row, %{position: position, expires_at: expires_at})
    key = {thread, open_thread(instance, repo, thread, div(position, 1_000))}
    {account, owner_key_id} = locked(owner)
    sealed = native!(instance, :archive_seal, [key, account, address, place, encode(content)])

    if ArchivedMessages.insert(repo, address, thread, place, sealed, owner_key_id) == 0,
      do: :again,
      else: :ok
  end

  # What a locked account keeps is sealed under its own key too: that of the thread opens with the keys of the server.
  defp locked({{user, _}, %{data_key: data_key}}) when is_locked(data_key),
    do: {{user, data_key}, Keys.key_id(data_key)}

  defp locked(_owner), do: {nil, nil}

  # Nothing outlives the retention.
  defp expires_at(retention, expires_in, now) do
    case Enum.reject([retention, expires_in], &is_nil/1) do
      [] -> nil
      seconds -> now + Enum.min(seconds) * 1_000
    end
  end

  @doc "The wrapped data key of a thread, which is drawn if there is none, in the caller's transaction."
  @spec open_thread(Instance.t(), Repo.repo(), String.t(), integer) :: binary
  def open_thread(instance, repo, thread, now) do
    case ArchivedMessages.data_key(repo, thread) do
      nil ->
        data_key = native!(instance, :thread_create, [thread])
        ArchivedMessages.insert_thread(repo, thread, data_key, now)

        # Should another process have been faster, its key is the one; should it be gone again, all of it is repeated.
        ArchivedMessages.data_key(repo, thread) || raise Error.new(:stale)

      data_key ->
        data_key
    end
  end

  @doc """
  What is answered for a message that the engine refused: the plaintext, if just this message was opened before and its
  copy is there, or else the error.
  """
  @spec answer(Instance.t(), Repo.repo(), owner, Envelope.t(), Error.t()) ::
          {{:ok, binary} | {:error, Error.t()}, [Telemetry.recorded()]}
  def answer(%{options: %{archive: archive}} = instance, repo, {to, _} = owner, envelope, error)
      when archive != false and error.reason in @refusals do
    with [row] <- ArchivedMessages.find(repo, to, message_id(envelope), Instance.now(instance)),
         [{:ok, {_recipients, plaintext}}] <- open(instance, repo, owner, [row]) do
      {{:ok, plaintext}, [redelivery(instance, to, envelope, error)]}
    else
      _no_copy_that_opens -> {{:error, error}, []}
    end
  end

  def answer(_instance, _repo, _owner, _envelope, error), do: {{:error, error}, []}

  defp redelivery(instance, to, %{from: from}, error) do
    metadata = Map.put(Telemetry.pair(instance, to, from), :reason, error.reason)
    {[:kith, :archive, :redelivery], %{system_time: System.system_time(), count: 1}, metadata}
  end

  # All of the message, and between whom: a change of any byte names another one.
  defp message_id(%Envelope{type: type, from: {from, device}, to: {to, to_device}, body: body}) do
    header =
      <<"kith-message", 1, type(type), byte_size(from), from::binary, device, byte_size(to),
        to::binary, to_device>>

    <<id::binary-16, _::binary>> = :crypto.hash(:sha256, [header, body])
    id
  end

  defp type(:message), do: 1
  defp type(:prekey), do: 3

  def history(instance, owner, thread, options) do
    metadata = Telemetry.local(instance, owner)

    Telemetry.span([:kith, :archive, :history], metadata, fn ->
      result =
        with {:ok, before} <- parse_cursor(options[:before]),
             do: page(instance, owner, thread, before, options[:limit])

      messages = with {:ok, page} <- result, do: page.messages
      {result, measurements(messages), Telemetry.outcome(result)}
    end)
  end

  defp measurements({:error, _}), do: measurements([])

  defp measurements(messages) do
    %{
      messages: length(messages),
      damaged: Enum.count(messages, & &1.error),
      plaintext_size: messages |> Enum.map(&byte_size(&1.plaintext || "")) |> Enum.sum()
    }
  end

  defp page(instance, {user, _} = owner, thread, before, limit) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- Registration.fetch_local(repo, owner),
           :ok <- Unlocked.check(instance, {user, device.data_key}),
           {rows, cursor} =
             fetch_page(
               repo,
               owner,
               thread_id(thread, user),
               before,
               limit,
               Instance.now(instance)
             ),
           :ok <- keys_known(rows),
           opened when is_list(opened) <- open(instance, repo, {owner, device}, rows) do
        # The newest come first out of the database, and last onto a screen.
        messages =
          rows
          |> Enum.zip(opened)
          |> Enum.reduce([], fn {{_, _, _, place, _}, content}, messages ->
            [message(owner, thread, place, content) | messages]
          end)

        {{:ok, %{messages: messages, before: cursor}}, []}
      else
        {:error, error} -> {{:error, error}, []}
      end
    end)
  end

  defp fetch_page(repo, owner, thread, before, limit, now) do
    sizes = ArchivedMessages.sizes(repo, owner, thread, before, now, limit + 1)
    fitting = fitting(Enum.take(sizes, limit), 0)

    case List.last(fitting) do
      nil ->
        {[], nil}

      [position, message_id, _size] ->
        from = {position, message_id}
        rows = ArchivedMessages.page(repo, owner, thread, from, before, now, length(fitting))
        more? = length(sizes) > length(fitting)
        {rows, if(more?, do: cursor(from))}
    end
  end

  # At least one, however large it is.
  defp fitting([], _bytes), do: []

  defp fitting([[_, _, size] = row | rows], bytes) do
    if bytes == 0 or bytes + size <= @page_bytes,
      do: [row | fitting(rows, bytes + size)],
      else: []
  end

  # Rows without the key of their thread: whoever restored them has not restored the key.
  defp keys_known(rows) do
    if Enum.any?(rows, fn {_, data_key, _, _, _} -> data_key == nil end),
      do: {:error, Error.new(:key_not_found, "the data key of the thread")},
      else: :ok
  end

  # Rows of one thread in one native call, or in more where they are not all sealed alike: the content of each, or its
  # error.
  defp open(_instance, _repo, _owner, []), do: []

  defp open(instance, repo, owner, rows) do
    rows
    |> Enum.chunk_by(fn {_, data_key, owner_key_id, _, _} -> {data_key, owner_key_id} end)
    |> Enum.reduce_while([], fn rows, opened ->
      case open_alike(instance, repo, owner, rows) do
        {:error, error} -> {:halt, {:error, error}}
        results -> {:cont, opened ++ results}
      end
    end)
  end

  defp open_alike(instance, repo, owner, [{thread, data_key, owner_key_id, _, _} | _] = rows) do
    {{user, _} = address, device} = owner
    sealed = for {_, _, _, place, content} <- rows, do: {place, content}

    # Not as the account is now: it may have been locked, or its key changed, and not all of the archive followed yet.
    account =
      owner_key_id && KeyChange.owner(instance, repo, {user, device.data_key}, owner_key_id)

    case Instance.sealed(instance, :archive_open, [{thread, data_key}, account, address, sealed]) do
      {:ok, opened} -> Enum.map(opened, &decode/1)
      {:error, reason} -> {:error, Error.new(reason)}
    end
  end

  defp message(owner, thread, place, {:ok, {_recipients, plaintext}}) do
    from = place.sender || owner

    %Message{
      id: id(place.message_id),
      thread: thread,
      from: from,
      direction: if(elem(from, 0) == elem(owner, 0), do: :sent, else: :received),
      plaintext: plaintext,
      at: div(place.position, 1_000),
      sent_at: place.sent_at,
      expires_at: place.expires_at
    }
  end

  # Nothing else of such a row is known to be true.
  defp message(_owner, thread, place, {:error, reason}) do
    %Message{
      id: id(place.message_id),
      thread: thread,
      at: div(place.position, 1_000),
      error: reason
    }
  end

  defp id(message_id), do: Envelope.uuid(message_id)

  defp cursor({position, message_id}),
    do: Base.url_encode64(<<@cursor_version, position::64, message_id::binary>>, padding: false)

  defp parse_cursor(nil), do: {:ok, nil}

  defp parse_cursor(cursor) do
    with true <- byte_size(cursor) == 34,
         {:ok, <<@cursor_version, position::64, message_id::binary-16>>}
         when position <= @max_integer <- Base.url_decode64(cursor, padding: false) do
      {:ok, {position, message_id}}
    else
      _ -> {:error, Error.new(:malformed, "the cursor is not one that history/4 returned")}
    end
  end

  @doc """
  What a device itself sent at a time: `{plaintext, recipients, thread}` of each, with those who were served and the
  thread as the option `:thread` takes it. For whoever sends it again, to one of its recipients.
  """
  @spec sent(Instance.t(), Repo.repo(), owner, integer) ::
          [{binary, [Address.t()], Kith.thread()}]
  def sent(instance, repo, {{user, _} = address, _} = owner, timestamp) do
    for {thread, _, _, _, _} = row <-
          ArchivedMessages.sent(repo, address, timestamp, Instance.now(instance), @max_sent),
        # A damaged copy is as good as none.
        opened = open(instance, repo, owner, [row]),
        is_list(opened),
        {:ok, {recipients, plaintext}} <- opened,
        do: {plaintext, recipients, name(thread, user)}
  end

  def shred(instance, thread) do
    Telemetry.span([:kith, :archive, :shred], %{instance: instance.name}, fn ->
      deleted = delete_thread(instance, thread)
      result = with {:ok, count} <- deleted, do: emptied(instance, count)

      count =
        case deleted do
          {:ok, count} -> count
          {:error, _} -> 0
        end

      {result, %{messages: count}, Telemetry.outcome(result)}
    end)
  end

  @doc "Another data key for a thread, as nobody's: see Kith.ThreadKeys."
  def rotate_key(instance, thread), do: ThreadKeys.rotate(instance, shared_id(thread))

  defp shared_id({:direct, user, peer}), do: direct(user, peer)
  defp shared_id(thread), do: thread_id(thread, nil)

  defp delete_thread(instance, thread) do
    thread = shared_id(thread)

    Instance.transaction(instance, fn repo ->
      {{:ok, ArchivedMessages.delete_thread(repo, thread)}, []}
    end)
  end

  defp emptied(instance, count) do
    detail = "the thread is shredded, but its bytes are still in the write-ahead log: call again"

    if Instance.empty_log(instance) == :failed,
      do: {:error, Error.new(:storage, detail)},
      else: {:ok, count}
  end

  @doc """
  Deletes at most `limit` messages whose time is over, and the keys under which nothing is left. Returns how many
  messages there were.
  """
  @spec purge(Instance.t(), Repo.repo(), integer, pos_integer) :: non_neg_integer
  def purge(_instance, repo, now, limit) do
    threads = ArchivedMessages.delete_expired(repo, now, limit)
    ArchivedMessages.delete_unused_keys(repo, threads)
    length(threads)
  end

  # Format (1) ‖ number of recipients (4) ‖ each: length of the user (1), user, device (1) ‖ plaintext
  defp encode({recipients, plaintext}) do
    addresses = for {user, device} <- recipients, do: [byte_size(user), user, device]
    header = <<@content_version, length(recipients)::32>>
    IO.iodata_to_binary([header, addresses, plaintext])
  end

  defp decode({:ok, <<@content_version, count::32, rest::binary>>}),
    do: decode_recipients(count, rest, [])

  defp decode({:ok, _other}), do: {:error, :corrupted_state}
  defp decode({:error, reason}), do: {:error, reason}

  # Copied: a part of the content would keep all of it alive.
  defp decode_recipients(0, plaintext, recipients),
    do: {:ok, {Enum.reverse(recipients), :binary.copy(plaintext)}}

  defp decode_recipients(count, <<size, user::binary-size(size), device, rest::binary>>, read),
    do: decode_recipients(count - 1, rest, [{:binary.copy(user), device} | read])

  defp decode_recipients(_count, _rest, _read), do: {:error, :corrupted_state}

  defp native!(instance, function, arguments) do
    case Instance.sealed(instance, function, arguments) do
      {:ok, value} -> value
      {:error, reason} -> raise Error.new(reason)
    end
  end
end
