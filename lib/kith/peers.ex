defmodule Kith.Peers do
  @moduledoc false
  # What one device knows of another: whose identity it remembers, and the session they have.

  alias Kith.{Archive, Error, Instance, Registration}
  alias Kith.Store.{Accounts, Sessions}

  def safety_number(instance, {user, _} = a, other) do
    Instance.transaction(instance, fn repo ->
      {other, _} = b = one_device(repo, a, other)

      with {:ok, key} <- public_key(repo, a),
           {:ok, other_key} <- public_key(repo, b),
           {:ok, {identity, verified}} <- identity(instance, repo, a, b, other_key),
           {:ok, {digits, scannable}} <-
             native(instance, :safety_number, [user, key, other, other_key]) do
        number = %{digits: digits, scannable: scannable, identity: identity, verified: verified}
        {{:ok, number}, []}
      else
        error -> {error, []}
      end
    end)
  end

  def identity(instance, a, other) do
    Instance.transaction(instance, fn repo ->
      b = one_device(repo, a, other)

      with {:ok, _own} <- public_key(repo, a),
           {:ok, key} <- public_key(repo, b),
           {:ok, {identity, verified}} <- identity(instance, repo, a, b, key) do
        {{:ok, %{identity: identity, verified: verified}}, []}
      else
        error -> {error, []}
      end
    end)
  end

  def safety_number_matches(instance, {user, _} = a, other, scanned) do
    Instance.transaction(instance, fn repo ->
      {other, _} = b = one_device(repo, a, other)

      with {:ok, key} <- public_key(repo, a),
           {:ok, other_key} <- public_key(repo, b) do
        {native(instance, :safety_number_matches, [user, key, other, other_key, scanned]), []}
      else
        error -> {error, []}
      end
    end)
  end

  # Of a user any device will do, as they share an identity: best one that was met.
  defp one_device(_repo, _local, {_, _} = address), do: address

  defp one_device(repo, local, user) do
    met =
      for {peer, %{identity: <<_, _::binary>>}} <- Sessions.fetch_many(repo, local, [user]),
          do: peer

    registered = Map.keys(Accounts.devices(repo, [user]))
    Enum.min_by(registered, &{&1 not in met, &1}, fn -> {user, 1} end)
  end

  # What a device makes of the key another has here, and whether people have compared it. One whose private keys are
  # elsewhere remembers nothing here.
  defp identity(instance, repo, {user, _} = a, b, key) do
    with %{data_key: data_key, identity: own} when data_key != nil and own != nil <-
           Accounts.device(repo, a),
         %{identity: sealed} when sealed != nil <- Sessions.fetch(repo, a, b),
         {:ok, {remembered, verified, _version}} <-
           sealed(instance, :identity_open, [{user, data_key}, a, b, sealed]) do
      {:ok, if(remembered == key, do: {:remembered, verified}, else: {:changed, false})}
    else
      {:error, error} -> {:error, error}
      _nothing_remembered -> {:ok, {:unknown, false}}
    end
  end

  def trust(instance, {user, _} = local, peer, options) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- Registration.fetch_local(repo, local),
           peers = devices(repo, local, peer),
           {:ok, key} <- trusted_key(repo, hd(peers), options[:identity_key]) do
        account = {user, device.data_key}
        given = {key, options[:verified]}
        {trust_each(instance, repo, account, local, peers, given), []}
      else
        error -> {error, []}
      end
    end)
  end

  defp trust_each(instance, repo, account, local, peers, given) do
    Enum.reduce_while(peers, {:ok, :trusted}, fn peer, trusted ->
      case trust_one(instance, repo, account, local, peer, given) do
        :ok -> {:cont, trusted}
        error -> {:halt, error}
      end
    end)
  end

  defp trust_one(instance, repo, account, local, peer, {key, verified}) do
    session = Sessions.fetch(repo, local, peer)

    with {:ok, {remembered, version}} <-
           remembered(instance, account, local, peer, session.identity),
         # What was seen of a peer stays: another key is no way back to an older version.
         {:ok, sealed} <-
           sealed(instance, :identity_seal, [account, local, peer, {key, verified, version}]) do
      now = Instance.now(instance)

      # A session with the identity of before must not go on under the name of the new one.
      if session.state != nil and remembered == key do
        Sessions.put_identity(repo, local, peer, sealed, now)
      else
        archived = Archive.rows(instance, account, local, peer, session)
        row = {peer, session.generation + 1, nil, sealed}

        if Sessions.put(repo, local, [row], now, renew_since: nil) != 1,
          do: raise(Error.new(:stale))

        Sessions.delete_braid(repo, local, peer)
        Sessions.insert_archived(repo, local, archived, %{peer => session.renew_since})
      end

      :ok
    end
  end

  # The devices a user is known by here: those with keys, and those something is remembered of.
  defp devices(_repo, _local, {_, _} = address), do: [address]

  defp devices(repo, local, user) do
    registered = Map.keys(Accounts.devices(repo, [user]))
    met = Map.keys(Sessions.fetch_many(repo, local, [user]))

    case Enum.sort(Enum.uniq(registered ++ met)) do
      [] -> [{user, 1}]
      # One with keys first: the key to trust is theirs.
      all -> Enum.sort_by(all, &(&1 not in registered))
    end
  end

  defp trusted_key(repo, peer, nil), do: public_key(repo, peer)
  defp trusted_key(_repo, _peer, key), do: {:ok, key}

  # The identity key of a peer and the highest version seen of them.
  defp remembered(_instance, _account, _local, _peer, nil), do: {:ok, {nil, 0}}

  defp remembered(instance, account, local, peer, identity) do
    with {:ok, {key, _verified, version}} <-
           sealed(instance, :identity_open, [account, local, peer, identity]),
         do: {:ok, {key, version}}
  end

  def import_record(instance, local, peer, record) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- Registration.fetch_local(repo, local),
           session = Sessions.fetch(repo, local, peer),
           archive = Sessions.archive(repo, local, peer),
           parts = Sessions.peer(session, peer, %{archive: archive}),
           {account, behalf} = Registration.on_behalf_of(instance, local, device),
           {:ok, imported} <-
             sealed(instance, :session_import, [account, behalf, parts, record]),
           :ok <- known_key(repo, peer, session, imported.identity_key) do
        put_imported(repo, local, peer, session, imported, Instance.now(instance))
        {{:ok, :imported}, []}
      else
        error -> {error, []}
      end
    end)
  end

  # The application vouches for its records, unless the peer has other keys here.
  defp known_key(repo, peer, %{identity: nil}, key) do
    case Accounts.device(repo, peer) do
      %{public_key: other} when other != key -> {:error, Error.new(:untrusted_identity)}
      _the_same_or_none -> :ok
    end
  end

  defp known_key(_repo, _peer, _remembered, _key), do: :ok

  defp put_imported(repo, local, peer, session, imported, now) do
    row = {peer, session.generation + 1, imported.state, imported.identity || session.identity}
    begun = [renew_since: nil, established_at: now, received_at: now]
    if Sessions.put(repo, local, [row], now, begun) != 1, do: raise(Error.new(:stale))

    if imported.braid,
      do: Sessions.put_braids(repo, local, [{peer, imported.braid}]),
      else: Sessions.delete_braid(repo, local, peer)

    archived = Enum.map(imported.archived, &{peer, &1})
    Sessions.insert_archived(repo, local, archived, %{peer => session.renew_since})

    for session_id <- imported.archive_dropped do
      Sessions.delete_archived(repo, local, peer, session_id)
      Sessions.delete_entries_of_session(repo, local, peer, session_id)
    end

    for {session_id, entries} <- imported.entries,
        do: Sessions.put_entries(repo, local, peer, session_id, entries, now)
  end

  def reset(instance, local, peer) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- Registration.fetch_local(repo, local) do
        peers = devices(repo, local, peer)
        data_key = device.data_key

        case Enum.sum(
               for peer <- peers, do: Archive.put_away(instance, repo, local, data_key, peer)
             ) do
          0 -> {none(), []}
          _ -> {{:ok, :reset}, []}
        end
      else
        error -> {error, []}
      end
    end)
  end

  def delete(instance, local, peer) do
    Instance.transaction(instance, fn repo ->
      with {:ok, _} <- Registration.fetch_local(repo, local) do
        deleted =
          Enum.sum(
            for peer <- devices(repo, local, peer), do: forget(instance, repo, local, peer)
          )

        {if(deleted == 0, do: none(), else: {:ok, :deleted}), []}
      else
        error -> {error, []}
      end
    end)
  end

  defp forget(instance, repo, local, peer) do
    deleted = Sessions.forget(repo, local, peer, Instance.now(instance))
    Sessions.delete_parts(repo, local, peer)
    deleted
  end

  def session_info(instance, {user, _} = local, address) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- Registration.fetch_local(repo, local),
           %{state: state} = session when state != nil <- Sessions.fetch(repo, local, address),
           archive = Sessions.archive(repo, local, address),
           parts = Sessions.peer(session, address, %{archive: archive}),
           account = {user, device.data_key},
           {:ok, info} <-
             sealed(instance, :session_info, [account, local, parts, Instance.now(instance)]) do
        {{:ok, Map.put(info, :generation, session.generation)}, []}
      else
        %{state: nil} -> {none(), []}
        error -> {error, []}
      end
    end)
  end

  defp public_key(repo, address) do
    case Accounts.device(repo, address) do
      nil -> {:error, Error.new(:not_registered)}
      device -> {:ok, device.public_key}
    end
  end

  defp none, do: {:error, Error.new(:session_not_found)}

  defp native(instance, function, arguments),
    do: Error.from_native(Instance.native(instance, function, arguments))

  defp sealed(instance, function, arguments),
    do: Error.from_native(Instance.sealed(instance, function, arguments))
end
