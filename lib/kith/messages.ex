defmodule Kith.Messages do
  @moduledoc false
  # encrypt, encrypt_group and decrypt: each one transaction, and durable before it answers.

  alias Kith.{
    Address,
    Envelope,
    Error,
    Installation,
    Instance,
    MessageArchive,
    Registration,
    Telemetry
  }

  alias Kith.Store.{Accounts, Keys, Prekeys, Repo, Sessions}

  # A cold session costs about 400 µs, so this many hold the database for less than half a second.
  @max_recipients 1_000

  # The engine may ask for the archive, then for the keys of the message, then for chunks.
  @max_needs 3

  @typedoc "Whom a message is for: a user, with all their devices, or one device."
  @type member :: Address.user() | Address.t()

  def encrypt(instance, from, to, plaintext, options) do
    target = MessageArchive.target(instance, from, to, options)
    metadata = Telemetry.pair(instance, from, to)

    Telemetry.span([:kith, :session, :encrypt], metadata, fn ->
      result = encrypt_one(instance, from, to, plaintext, target)

      {envelopes, type} =
        case result do
          {:ok, [%{type: type} | _] = envelopes} -> {Enum.map(envelopes, &{:ok, &1}), type}
          _nothing_sent -> {[], nil}
        end

      measurements = Map.put(sizes(plaintext, envelopes), :recipients, length(envelopes))
      {result, measurements, Map.put(Telemetry.outcome(result), :type, type)}
    end)
  end

  defp encrypt_one(instance, {user, _} = from, to, plaintext, target) do
    with :ok <- bounded(instance, plaintext) do
      if to in [user, from],
        do: seal_note(instance, from, plaintext, target),
        else: encrypt_to(instance, from, to, plaintext, target)
    end
  end

  # All devices of the recipient or none: whoever wants to reach some of them asks for each. The sender's own others do
  # not stand in the way of a message.
  defp encrypt_to(instance, from, to, plaintext, target) do
    with {:ok, results} <- fan_out(instance, from, [to], plaintext, {of_user(to), target}),
         do: {:ok, for({_, {:ok, envelope}} <- results, do: envelope)}
  end

  defp of_user({user, _}), do: user
  defp of_user(user), do: user

  def encrypt_group(instance, from, members, plaintext, options) do
    target = MessageArchive.target(instance, from, nil, options)

    Telemetry.span([:kith, :group, :encrypt], Telemetry.local(instance, from), fn ->
      result = encrypt_each(instance, from, members, plaintext, target)

      each =
        case result do
          {:ok, results} -> Enum.map(results, &elem(&1, 1))
          {:error, _} -> []
        end

      measurements =
        plaintext
        |> sizes(each)
        |> Map.merge(%{recipients: length(each), failed: Enum.count(each, &failed?/1)})

      {result, measurements, Telemetry.outcome(result)}
    end)
  end

  defp encrypt_each(instance, from, members, plaintext, target) do
    with :ok <- bounded(instance, plaintext),
         :ok <- bounded_recipients(members),
         do: fan_out(instance, from, members, plaintext, {nil, target})
  end

  defp seal_note(instance, {user, _} = address, plaintext, target) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- Registration.fetch_local(repo, address),
           {:ok, body} <-
             native(instance, :self_seal, [{user, device.data_key}, plaintext]) do
        timestamp = Instance.timestamp(instance)
        owner = {address, device}
        MessageArchive.put_sent(instance, repo, owner, target, [], plaintext, timestamp)
        {{:ok, [Envelope.new(address, address, :self, body, timestamp)]}, []}
      else
        error -> {error, []}
      end
    end)
  end

  defp fan_out(instance, from, members, plaintext, terms) do
    result =
      Instance.transaction(instance, &fan_out_in(instance, &1, from, members, plaintext, terms))

    with {:ok, {results, claimed}} <- result do
      Registration.replenish_low(instance, claimed)
      {:ok, results}
    end
  end

  @doc """
  A fan-out in the caller's transaction, on terms: the user of whom each device has to be reached, or nil, and where the
  sender's own copy goes.

  Returns `{:ok, {results, claimed}}` or an error, and what telemetry should say.
  """
  def fan_out_in(instance, repo, {user, _} = from, members, plaintext, terms) do
    users = Enum.uniq([user | Enum.map(members, &of_user/1)])
    question = Installation.question(instance)
    {devices, said} = Accounts.devices_for(repo, from, users, question)

    case Registration.local(devices[from]) do
      {:ok, device} ->
        news = Installation.watch(instance, repo, said)
        sender = {from, device}
        {result, records} = deliver(instance, repo, sender, members, devices, plaintext, terms)
        {result, news ++ records}

      {:error, error} ->
        {{:error, error}, []}
    end
  end

  defp deliver(instance, repo, {{user, _} = from, _} = sender, members, devices, plaintext, terms) do
    own = if Enum.any?(members, &is_binary/1), do: others(from, devices), else: []

    users =
      for member <- members, other = of_user(member), other != user or is_tuple(member), do: other

    users = Enum.uniq(if own == [], do: users, else: [user | users])
    rows = Sessions.fetch_many(repo, from, users)

    peers =
      members
      |> Enum.flat_map(&addresses(&1, user, devices, rows))
      |> Enum.concat(own)
      |> Enum.uniq()
      |> List.delete(from)

    with :ok <- bounded_recipients(peers) do
      rows = Map.new(peers, &{&1, row(rows, &1)})
      send_all(instance, repo, sender, peers, rows, plaintext, terms)
    else
      error -> {error, []}
    end
  end

  defp others({user, _} = from, devices),
    do: devices |> Map.keys() |> Enum.filter(&(elem(&1, 0) == user and &1 != from)) |> Enum.sort()

  defp addresses({_, _} = address, _sender, _devices, _rows), do: [address]
  defp addresses(sender, sender, _devices, _rows), do: []

  # A user who has no keys here may be known by sessions all the same.
  defp addresses(user, _sender, devices, rows) do
    with [] <- for({{^user, _} = address, _} <- devices, do: address),
         [] <- for({{^user, _} = address, %{state: <<_, _::binary>>}} <- rows, do: address),
         do: [{user, 1}],
         else: (addresses -> Enum.sort(addresses))
  end

  defp row(rows, peer) do
    row = Map.get_lazy(rows, peer, &Sessions.none/0)
    Map.put(row, :sibling, if(row.identity == nil, do: Sessions.sibling(rows, peer)))
  end

  # Sorted, so that two fan-outs lock the rows they share in one order.
  defp send_all(instance, repo, {from, _} = sender, peers, rows, plaintext, {whole, target}) do
    now = Instance.now(instance)
    timestamp = Instance.timestamp(instance)
    sorted = Enum.sort(peers)
    cold = Enum.filter(sorted, &cold?(instance, rows[&1], now))
    rows = read_again(repo, from, cold, rows)
    {claimed, claims} = Registration.claim(instance, repo, cold, now)

    # One that is only old goes on when there is nothing to start anew from.
    {unregistered, ready} =
      Enum.split_with(
        sorted,
        &(must_start?(rows[&1]) and not is_map_key(claimed, &1))
      )

    {rows, sent, first} =
      send_to_fresh(instance, repo, sender, ready, rows, claimed, plaintext, now)

    # A session nobody answered in for 30 days says :session_not_found: start a new one.
    unanswered = for {peer, {:error, :session_not_found}} <- sent, peer not in cold, do: peer
    {reclaimed, more_claims} = Registration.claim(instance, repo, unanswered, now)
    again = Enum.filter(unanswered, &is_map_key(reclaimed, &1))
    {resent, second} = send_to(instance, sender, again, rows, reclaimed, plaintext, now)

    claimed = Map.merge(claimed, reclaimed)

    sent =
      sent
      |> Map.new()
      |> Map.merge(Map.new(resent))
      |> Map.merge(Map.new(unregistered, &{&1, {:error, :not_registered}}))

    case failure(peers, sent, whole) do
      nil ->
        write(repo, from, rows, sent, now)
        released = release(repo, claimed, sent)
        renew_damaged(repo, from, sent, now)
        keep_copy(instance, repo, sender, target, sent, plaintext, timestamp)
        results = Enum.map(peers, &{&1, envelope(instance, from, &1, sent[&1], timestamp)})
        claims = Enum.reject(claims ++ more_claims, &(Telemetry.owner(&1) in released))
        {{:ok, {results, claimed}}, claims ++ first ++ second}

      peer ->
        Enum.each(claimed, fn {address, prekeys} ->
          Registration.release(repo, address, prekeys)
        end)

        renew_damaged(repo, from, sent, now)
        {envelope(instance, from, peer, sent[peer], timestamp), first ++ second}
    end
  end

  # Nobody may be in the group yet: what is said in it has been said. What reached none of them has not.
  defp keep_copy(instance, repo, sender, target, sent, plaintext, timestamp) do
    served = for {peer, {:ok, _}} <- sent, do: peer

    if served != [] or sent == %{},
      do: MessageArchive.put_sent(instance, repo, sender, target, served, plaintext, timestamp)
  end

  # Whoever has to be reached and is not.
  defp failure(_peers, _sent, nil), do: nil

  defp failure(peers, sent, user),
    do: Enum.find(peers, &(elem(&1, 0) == user and failed?(sent[&1])))

  # What a new session replaces is put away, unless it does not open: which a row that was waited for does not, beside a
  # braid of before, see Sessions.fetch_many/3. What is on its way in it would be lost.
  defp read_again(%Kith.SQLite{}, _from, _cold, rows), do: rows

  defp read_again(repo, from, cold, rows) do
    replaced = Enum.filter(cold, &(rows[&1].state != nil))
    read = Sessions.read_many(repo, from, replaced |> Enum.map(&of_user/1) |> Enum.uniq())
    Enum.reduce(replaced, rows, &Map.put(&2, &1, row(read, &1)))
  end

  defp must_start?(row), do: row.state == nil or row.renew_since != nil

  defp cold?(instance, row, now) do
    must_start?(row) or
      (row.established_at != nil and
         max(row.established_at, row.received_at || 0) <
           now - instance.options.refresh_after * 1_000)
  end

  # A state that does not open is not sent from: the error tells of it, and the next message starts a new session.
  defp renew_damaged(repo, from, sent, now) do
    damaged = for {peer, {:error, :corrupted_state}} <- sent, do: peer
    Sessions.renew(repo, from, damaged, now)
  end

  # What does not open may be a row that was waited for beside a braid of before, see Sessions.fetch_many/3.
  defp send_to_fresh(
         instance,
         repo,
         {from, _device} = sender,
         peers,
         rows,
         claimed,
         plaintext,
         now
       ) do
    {sent, records} = send_to(instance, sender, peers, rows, claimed, plaintext, now)
    broken = for {peer, {:error, :corrupted_state}} <- sent, do: peer
    read_again = Sessions.read_many(repo, from, broken |> Enum.map(&of_user/1) |> Enum.uniq())
    changed = for peer <- broken, row = row(read_again, peer), row != rows[peer], do: peer
    rows = Enum.reduce(changed, rows, &Map.put(&2, &1, row(read_again, &1)))
    {resent, more} = send_to(instance, sender, changed, rows, claimed, plaintext, now)
    {rows, Enum.reject(sent, &(elem(&1, 0) in changed)) ++ resent, records ++ more}
  end

  defp send_to(_instance, _sender, [], _rows, _claimed, _plaintext, _now), do: {[], []}

  defp send_to(instance, {from, _device} = sender, peers, rows, claimed, plaintext, now) do
    {account, local} = on_behalf_of(instance, sender)

    recipients =
      for {peer, peer_device} = address <- peers do
        bundle = with %{bundle: bundle} <- claimed[address], do: bundle
        Map.merge(rows[address], %{user: peer, device: peer_device, bundle: bundle})
      end

    call = fn ->
      native(instance, :session_encrypt, [account, local, recipients, plaintext, now])
    end

    # The sessions of one fan-out are established in one native call: one span with their number.
    {result, records} =
      if Enum.any?(recipients, & &1.bundle),
        do: establishing(instance, from, :initiator, call),
        else: {call.(), []}

    case result do
      {:ok, results} -> {Enum.zip(peers, results), records}
      {:error, error} -> raise error
    end
  end

  defp on_behalf_of(instance, {address, device}),
    do: Registration.on_behalf_of(instance, address, device)

  defp establishing(instance, from, role, call) do
    metadata = Map.put(Telemetry.local(instance, from), :role, role)

    {result, record} =
      Telemetry.record([:kith, :session, :establish], metadata, call, fn
        {:ok, results} when is_list(results) ->
          sessions = Enum.count(results, &match?({:ok, %{established: true}}, &1))
          {%{sessions: sessions}, established_outcome(results, sessions)}

        {:ok, %{established: established}} ->
          {%{sessions: if(established, do: 1, else: 0)}, %{result: :ok, reason: nil}}

        result ->
          {%{sessions: 0}, Telemetry.outcome(result)}
      end)

    {result, [record]}
  end

  # Nothing established is a failure of the whole; otherwise each recipient has its own result.
  defp established_outcome(results, 0) do
    case Enum.find(results, &match?({:error, _}, &1)) do
      nil -> %{result: :ok, reason: nil}
      error -> Telemetry.outcome(error)
    end
  end

  defp established_outcome(_results, _sessions), do: %{result: :ok, reason: nil}

  defp write(repo, from, rows, sent, now) do
    done = for {peer, {:ok, result}} <- Enum.sort(sent), do: {peer, result}

    sessions =
      Enum.group_by(done, fn {_, result} -> result.established end, fn {peer, result} ->
        {peer, rows[peer].generation + 1, result.state, result.identity || rows[peer].identity}
      end)

    begun = [renew_since: nil, established_at: now, received_at: nil]

    written =
      Sessions.put(repo, from, sessions[false] || [], now) +
        Sessions.put(repo, from, sessions[true] || [], now, begun)

    if written != length(done), do: raise(Error.new(:stale))

    braids = for {peer, %{braid: {_, _, _} = braid}} <- done, do: {peer, braid}
    Sessions.put_braids(repo, from, braids)
    archived = for {peer, %{archived: {_, _, _} = archived}} <- done, do: {peer, archived}
    marks = Map.new(archived, fn {peer, _} -> {peer, rows[peer].renew_since} end)
    Sessions.insert_archived(repo, from, archived, marks)

    for {peer, result} <- done,
        group <- result.entries_dropped,
        do: Sessions.delete_entries_of_group(repo, from, peer, result.session_id, group)

    :ok
  end

  # Prekeys claimed for a message that was not made go back.
  defp release(repo, claimed, sent) do
    for {address, prekeys} <- claimed, match?({:error, _}, Map.get(sent, address)) do
      Registration.release(repo, address, prekeys)
      address
    end
  end

  defp envelope(_instance, from, to, {:ok, result}, timestamp) do
    {:ok,
     %Envelope{
       from: from,
       to: to,
       type: result.type,
       body: result.body,
       version: result.version,
       timestamp: timestamp,
       session_id: result.session_id
     }}
  end

  defp envelope(instance, _from, _to, {:error, :unsupported_version}, _timestamp) do
    why =
      if instance.options.minimum_version == 4,
        do: "they have no Kyber prekey, which :minimum_version asks for",
        else: "they have no Kyber prekey, and were seen with version 4 before"

    {:error, Error.new(:unsupported_version, why)}
  end

  defp envelope(_instance, _from, to, {:error, reason}, _timestamp),
    do: {:error, Error.new(reason, unreached(to))}

  defp unreached({_, 1}), do: nil
  defp unreached({_, device}), do: "of device #{device}"

  def decrypt(instance, to, given, options) do
    parsed = parse(given)
    to = addressee(to, parsed)

    metadata =
      case parsed do
        {:ok, envelope} -> Map.put(Telemetry.peer(envelope.from), :type, envelope.type)
        {:error, _} -> Map.put(Telemetry.peer(nil), :type, nil)
      end

    Telemetry.span(
      [:kith, :session, :decrypt],
      Map.merge(Telemetry.local(instance, to), metadata),
      fn ->
        result = with {:ok, envelope} <- parsed, do: open(instance, to, envelope, options)
        plaintext = with {:ok, plaintext} <- result, do: plaintext
        {result, sizes(plaintext, [parsed]), Telemetry.outcome(result)}
      end
    )
  end

  defp parse(%Envelope{} = envelope), do: {:ok, envelope}
  defp parse(bytes) when is_binary(bytes), do: Envelope.from_binary(bytes)

  defp parse(_other),
    do:
      raise(ArgumentError, "expected a Kith.Envelope or what Kith.Envelope.to_binary/1 returned")

  @doc "An envelope or its binary form, and the device it is for when a user was asked for."
  def addressed(to, given) do
    with {:ok, envelope} <- parse(given), do: {:ok, addressee(to, {:ok, envelope}), envelope}
  end

  # Whoever asks for a user opens what any of their devices gets.
  defp addressee({_, _} = address, _parsed), do: address
  defp addressee(user, {:ok, %Envelope{to: {user, _} = to}}), do: to
  defp addressee(user, _parsed), do: {user, 1}

  defp open(_instance, _to, %Envelope{type: :report}, _options),
    do: {:error, Error.new(:malformed, "this is a report: give it to Kith.resend/3")}

  defp open(_instance, to, %Envelope{to: other}, _options) when other != to,
    do: {:error, Error.new(:malformed, "the envelope is addressed to another device")}

  defp open(instance, {user, _} = to, %Envelope{type: :self} = envelope, _options) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- Registration.fetch_local(repo, to) do
        {self_open(instance, repo, {user, device.data_key}, envelope.body), []}
      else
        error -> {error, []}
      end
    end)
  end

  defp open(instance, to, envelope, options) do
    # A stranger's bytes are looked at before the database is held.
    with {:ok, header} <- inspect_message(instance, envelope) do
      Instance.transaction(instance, fn repo ->
        case Registration.fetch_local(repo, to) do
          {:ok, device} -> receive_in(instance, repo, {to, device}, envelope, header, options)
          {:error, error} -> {{:error, error}, []}
        end
      end)
    end
  end

  # A note may be older than the data key of the account.
  defp self_open(instance, repo, {user, _} = account, note) do
    with {:error, %Error{reason: :corrupted_state}} = error <-
           native(instance, :self_open, [account, note]),
         key_id when key_id != nil <- Keys.key_id(note),
         retired when retired != nil <- Keys.retired_key(repo, user, key_id),
         {:ok, unlocked} <- native(instance, :account_retired, [account, key_id, retired]) do
      with {:error, _} <- native(instance, :self_open, [{user, unlocked}, note]), do: error
    else
      nil -> {:error, Error.new(:corrupted_state)}
      result -> result
    end
  end

  defp receive_in(instance, repo, {to, _device} = owner, envelope, header, options) do
    now = Instance.now(instance)
    {result, session, records} = look(instance, repo, owner, envelope, header, now)

    case result do
      {:ok, opened} ->
        commit(repo, to, envelope.from, session, opened, now)
        if opened.prekey_used || opened.kyber_prekey_used, do: purge(instance, repo, to, now)
        keep_received(instance, repo, owner, envelope, opened.plaintext, options, now)
        {{:ok, opened.plaintext}, if(opened.established, do: records, else: [])}

      {:error, error} ->
        MessageArchive.answer(instance, repo, owner, envelope, error)
    end
  end

  # A session that opens a message again went back to an older state: what it would send, it has sent before.
  defp keep_received(instance, repo, {to, _} = owner, envelope, plaintext, options, now) do
    with :again <-
           MessageArchive.put_received(instance, repo, owner, envelope, plaintext, options),
         do: Sessions.renew(repo, to, [envelope.from], now)
  end

  @doc "Whether an envelope would open, in the caller's transaction: nothing is written."
  @spec attempt(Instance.t(), Repo.repo(), Address.t(), Envelope.t()) :: :ok | {:error, Error.t()}
  def attempt(_instance, _repo, to, %Envelope{to: other, type: type})
      when other != to or type in [:self, :report],
      do: {:error, Error.new(:malformed)}

  def attempt(instance, repo, to, envelope) do
    with {:ok, header} <- inspect_message(instance, envelope),
         {:ok, device} <- Registration.fetch_local(repo, to),
         {{:ok, _}, _session, _records} <-
           look(instance, repo, {to, device}, envelope, header, Instance.now(instance)) do
      :ok
    else
      {{:error, error}, _session, _records} -> {:error, error}
      error -> error
    end
  end

  # A message opened and nothing written, with the session before it.
  defp look(instance, repo, {to, device}, envelope, header, now) do
    from = envelope.from
    session = with_sibling(Sessions.fetch(repo, to, from), repo, to, from)
    loaded = private_halves(instance, repo, to, header, now)
    archive = if envelope.type == :prekey, do: Sessions.archive(repo, to, from)
    parts = Sessions.peer(session, from, Map.put(loaded, :archive, archive))

    call = fn ->
      step(instance, repo, {to, device}, envelope, header, parts, @max_needs)
    end

    {result, records} =
      if envelope.type == :prekey,
        do: establishing(instance, to, :responder, call),
        else: {call.(), []}

    result =
      with {:ok, opened} <- result,
           :ok <- expected_identity(instance, repo, from, session, header),
           :ok <- unused_base_key(repo, to, from, session, opened),
           do: {:ok, opened}

    {result, session, records}
  end

  # What is remembered of another device of the sender, asked for when a device is met.
  defp with_sibling(%{identity: nil} = session, repo, to, {user, _} = from),
    do: Map.put(session, :sibling, Sessions.sibling(Sessions.read_many(repo, to, [user]), from))

  defp with_sibling(session, _repo, _to, _from), do: session

  # The first message of a peer of whom nothing is remembered: an envelope says who it is from, and nothing
  # but the keys that are registered or published here can tell whether that is so. Asked once the
  # message is authentic: damage is not a change of identity.
  defp expected_identity(instance, repo, from, %{identity: nil}, %{identity_key: key})
       when key != nil do
    case Accounts.device(repo, from) do
      %{public_key: ^key} -> :ok
      %{} -> {:error, Error.new(:untrusted_identity)}
      nil when instance.options.unknown_senders == :remember -> :ok
      nil -> {:error, Error.new(:not_registered, "the sender has no keys here")}
    end
  end

  defp expected_identity(_instance, _repo, _from, _session, _header), do: :ok

  # A session was made from this base key, and is gone. The message may be new or a replay: it is not opened,
  # and a message in the other direction starts over.
  defp unused_base_key(repo, to, from, session, %{base_key: {_, base_key}}) do
    cond do
      not Prekeys.base_key_used?(repo, to, base_key) ->
        :ok

      # Another first message of the session has made it meanwhile. There was no row to wait for.
      Sessions.fetch(repo, to, from).generation != session.generation ->
        raise Error.new(:stale)

      true ->
        {:error, Error.new(:session_not_found, "the session of this message was deleted")}
    end
  end

  defp unused_base_key(_repo, _to, _from, _session, _opened), do: :ok

  # Kith.Maintenance deletes what had a grace. Without one there is nothing to wait for.
  defp purge(%{options: %{prekey_grace_period: 0}}, repo, to, now),
    do: Prekeys.delete_used(repo, to, now)

  defp purge(_instance, _repo, _to, _now), do: :ok

  defp private_halves(_instance, _repo, _to, %{signed_prekey_id: nil}, _now), do: %{}

  defp private_halves(instance, repo, to, header, now) do
    used_after = now - instance.options.prekey_grace_period * 1_000
    {prekey, signed, kyber} = Prekeys.private_halves(repo, to, header, used_after)
    %{prekey: prekey, signed_prekey: signed, kyber_prekey: kyber}
  end

  defp step(instance, repo, {to, device}, envelope, header, parts, needs) do
    {account, local} = on_behalf_of(instance, {to, device})
    message = {envelope.type, envelope.body}

    case native(instance, :session_decrypt, [account, local, parts, message]) do
      {:need, wanted} when needs > 0 ->
        parts = Enum.reduce(wanted, parts, &load(&1, &2, repo, to, envelope.from, header))
        step(instance, repo, {to, device}, envelope, header, parts, needs - 1)

      # All that there is was given.
      {:need, _} ->
        {:error, Error.new(:corrupted_state)}

      result ->
        result
    end
  end

  defp load(:archive, parts, repo, to, from, _header),
    do: %{parts | archive: Sessions.archive(repo, to, from)}

  defp load(:message_keys, parts, repo, to, from, header),
    do: %{parts | entries: Sessions.entries_at(repo, to, from, header.message_keys)}

  defp load(:chunks, parts, repo, to, from, header),
    do: %{parts | chunks: Sessions.entries_of(repo, to, from, header.chunks)}

  defp commit(repo, to, from, session, opened, now) do
    # First, so that of two first messages of one session the later finds the session when it is tried again.
    identity = opened.identity || session.identity
    row = {from, session.generation + 1, opened.state, identity}

    begun =
      cond do
        opened.established -> [renew_since: nil, established_at: now]
        healed?(repo, from, session, opened) -> [renew_since: nil]
        true -> []
      end

    if Sessions.put(repo, to, [row], now, [{:received_at, now} | begun]) != 1,
      do: raise(Error.new(:stale))

    if opened.braid, do: Sessions.put_braids(repo, to, [{from, opened.braid}])

    with {_, _} = base_key <- opened.base_key do
      if Prekeys.insert_base_key(repo, to, base_key, now) == 0, do: raise(Error.new(:stale))
    end

    for {kind, id} <- [one_time: opened.prekey_used, kyber_one_time: opened.kyber_prekey_used],
        id != nil,
        do: Prekeys.mark_used(repo, to, kind, id, now)

    # One that must not send any more opens what comes, and the next message starts another.
    if opened.promoted && Sessions.delete_archived(repo, to, from, opened.promoted),
      do: Sessions.renew(repo, to, [from], now)

    if opened.archived do
      marks = %{from => session.renew_since}
      Sessions.insert_archived(repo, to, [{from, opened.archived}], marks)
    end

    for session_id <- opened.archive_dropped do
      Sessions.delete_archived(repo, to, from, session_id)
      Sessions.delete_entries_of_session(repo, to, from, session_id)
    end

    entries(repo, to, from, opened, now)
  end

  # With a peer who has no keys here no session can be started. But a chain that was drawn just now has sent nothing
  # before, whatever its session has: when the peer goes on in that, it may go on here.
  defp healed?(_repo, _from, %{renew_since: nil}, _opened), do: false
  defp healed?(_repo, _from, _session, %{stepped: false}), do: false
  defp healed?(repo, from, _session, _opened), do: Accounts.device(repo, from) == nil

  # What was used or is over goes first, then new entries come, and only then the oldest of all are evicted.
  defp entries(repo, to, from, %{session_id: session_id} = opened, now) do
    for position <- opened.entries_removed,
        do: Sessions.delete_entry(repo, to, from, session_id, position)

    for group <- opened.entries_dropped,
        do: Sessions.delete_entries_of_group(repo, to, from, session_id, group)

    Sessions.put_entries(repo, to, from, session_id, opened.entries_added, now)

    for evicted <- opened.entries_evicted,
        do: Sessions.evict_entries(repo, to, from, session_id, evicted)

    :ok
  end

  defp inspect_message(instance, %Envelope{type: type, body: body}) do
    Error.from_native(Instance.native(instance, :message_inspect, [type, body]))
  end

  # Reasons of the native library become errors here, and nowhere below.
  defp native(instance, function, arguments),
    do: Error.from_native(Instance.sealed(instance, function, arguments))

  defp bounded(instance, plaintext) do
    if byte_size(plaintext) <= instance.options.max_plaintext,
      do: :ok,
      else: {:error, Error.new(:too_large)}
  end

  defp bounded_recipients(recipients) do
    if length(recipients) <= @max_recipients, do: :ok, else: {:error, Error.new(:too_large)}
  end

  defp sizes(plaintext, results) do
    %{
      plaintext_size: if(is_binary(plaintext), do: byte_size(plaintext), else: 0),
      message_size:
        Enum.reduce(results, 0, fn
          {:ok, %Envelope{body: body}}, size -> size + byte_size(body)
          _, size -> size
        end)
    }
  end

  defp failed?(result), do: match?({:error, _}, result)
end
