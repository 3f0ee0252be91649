defmodule Kith.Registration do
  @moduledoc false
  # Who has keys here: making them, publishing those made elsewhere, handing out bundles.

  alias Kith.{Address, Archive, Error, Instance, PreKeyBundle, Replenisher, Telemetry}
  alias Kith.Store.{Accounts, Prekeys}

  # Ids have 24 bits in Signal's own clients.
  @max_prekey_id 0xFFFFFF
  # A client that publishes without end would fill the database.
  @max_stock 1_000

  @doc "A device whose private keys are here, with its wrapped data key, or why it cannot be used."
  @spec fetch_local(term, Address.t()) :: {:ok, Accounts.device()} | {:error, Error.t()}
  def fetch_local(repo, address) do
    case Accounts.device(repo, address) do
      nil -> {:error, Error.new(:not_registered)}
      %{identity: nil} -> {:error, Error.new(:key_not_found)}
      %{data_key: nil} -> {:error, Error.new(:key_not_found)}
      device -> {:ok, device}
    end
  end

  def register(instance, {user, device} = address) do
    Instance.transaction(instance, fn repo ->
      case Accounts.device(repo, address) do
        nil -> create(instance, repo, address)
        %{identity: nil} -> {{:error, Error.new(:key_not_found)}, []}
        found -> {{:ok, registered(user, device, found)}, []}
      end
    end)
  end

  defp create(instance, repo, {user, device} = address) do
    now = now()
    count = instance.options.one_time_prekeys
    account = {user, open_account(instance, repo, user, now)}

    # Drawn, so that a message made for keys of an earlier registration names a prekey that is not there.
    {signed_id, first_id} = {random_id(), random_id()}

    {keys, record} =
      generating(instance, address, fn ->
        with {:ok, {public_key, sealed, registration_id}} <-
               Instance.sealed(instance, :identity_create, [account, device]),
             {:ok, signed} <-
               Instance.sealed(instance, :signed_prekey_create, [
                 account,
                 device,
                 sealed,
                 signed_id
               ]),
             {:ok, prekeys} <-
               Instance.sealed(instance, :prekeys_create, [account, device, first_id, count]) do
          {:ok,
           %{
             registration_id: registration_id,
             public_key: public_key,
             identity: sealed,
             next_prekey_id: first_id + count,
             signed: signed,
             prekeys: prekeys
           }}
        end
      end)

    case keys do
      {:ok, keys} ->
        # Another process registered the same device meanwhile: the next attempt finds its keys.
        if Accounts.insert_device(repo, address, keys, now) == 0, do: raise(Error.new(:stale))
        {id, public_key, signature, sealed} = keys.signed
        Prekeys.insert(repo, address, :signed, [{id, public_key, signature, sealed}], now)
        insert_generated(repo, address, keys.prekeys, now)
        {{:ok, registered(user, device, keys)}, [record]}

      {:error, reason} ->
        raise Error.new(reason)
    end
  end

  # Not :rand, whose seed is the caller's.
  defp random_id,
    do:
      rem(:binary.decode_unsigned(:crypto.strong_rand_bytes(8)), @max_prekey_id - @max_stock) + 1

  defp open_account(instance, repo, user, now) do
    case Accounts.data_key(repo, user) do
      nil ->
        case Instance.sealed(instance, :account_create, [user]) do
          {:ok, data_key} ->
            Accounts.insert_account(repo, user, data_key, now)
            Accounts.data_key(repo, user)

          {:error, reason} ->
            raise Error.new(reason)
        end

      data_key ->
        data_key
    end
  end

  defp registered(user, device, keys) do
    %{
      user: user,
      device: device,
      registration_id: keys.registration_id,
      identity_key: keys.public_key
    }
  end

  def unregister(instance, address) do
    Instance.transaction(instance, fn repo ->
      case Accounts.delete_device(repo, address) do
        0 ->
          {{:error, Error.new(:not_registered)}, []}

        _ ->
          Archive.put_away_all_with(instance, repo, address)
          {{:ok, :unregistered}, []}
      end
    end)
  end

  # The keys are made between two transactions, so that nobody waits for 100 key pairs. Ids are reserved in the
  # first and lost when the second does not happen, never used twice.
  def replenish(instance, address) do
    case reserve(instance, address) do
      {:ok, %{count: 0}} ->
        {:ok, 0}

      {:ok, reserved} ->
        {keys, record} =
          generating(instance, address, fn ->
            {_, device} = address

            Instance.sealed(instance, :prekeys_create, [
              reserved.account,
              device,
              reserved.first_id,
              reserved.count
            ])
          end)

        with {:ok, prekeys} <- keys do
          store_generated(instance, address, reserved, prekeys, record)
        else
          {:error, reason} -> {:error, Error.new(reason)}
        end

      {:error, error} ->
        {:error, error}
    end
  end

  defp reserve(instance, {user, _} = address) do
    Instance.transaction(instance, fn repo ->
      case fetch_local(repo, address) do
        {:ok, device} ->
          grace = instance.options.prekey_grace_period * 1_000
          Prekeys.delete_used(repo, address, now() - grace)

          count = missing(instance, repo, address)
          first_id = first_id(device.next_prekey_id, count)

          if Accounts.reserve_prekey_ids(repo, address, device.next_prekey_id, first_id + count) ==
               0,
             do: raise(Error.new(:stale))

          {{:ok, %{account: {user, device.data_key}, count: count, first_id: first_id}}, []}

        {:error, error} ->
          {{:error, error}, []}
      end
    end)
  end

  defp store_generated(
         instance,
         {user, _} = address,
         %{account: {user, data_key}},
         prekeys,
         record
       ) do
    Instance.transaction(instance, fn repo ->
      # Meanwhile the user may have gone, or another node may have filled the stock.
      if Accounts.data_key(repo, user) == data_key and Accounts.device(repo, address) != nil do
        prekeys = Enum.take(prekeys, missing(instance, repo, address))
        insert_generated(repo, address, prekeys, now())
        {{:ok, length(prekeys)}, [record]}
      else
        {{:error, Error.new(:not_registered)}, []}
      end
    end)
  end

  defp missing(instance, repo, address) do
    stock = Map.get(Prekeys.stock(repo, [address]), address, 0)
    max(instance.options.one_time_prekeys - stock, 0)
  end

  defp first_id(next, count) when next + count > @max_prekey_id, do: 1
  defp first_id(next, _count), do: next

  defp insert_generated(repo, address, prekeys, now) do
    rows = Enum.map(prekeys, fn {id, public_key, sealed} -> {id, public_key, nil, sealed} end)
    Prekeys.insert(repo, address, :one_time, rows, now)
  end

  defp generating(instance, {user, device}, fun) do
    metadata = %{instance: instance.name, user_id: user, device_id: device}

    Telemetry.record([:kith, :prekeys, :generate], metadata, fun, fn
      {:ok, %{prekeys: prekeys}} = result ->
        {%{count: length(prekeys)}, Telemetry.outcome(result)}

      {:ok, prekeys} = result ->
        {%{count: length(prekeys)}, Telemetry.outcome(result)}

      result ->
        {%{count: 0}, Telemetry.outcome(result)}
    end)
  end

  def prekey_count(instance, address) do
    Instance.transaction(instance, fn repo ->
      case Accounts.device(repo, address) do
        nil -> {{:error, Error.new(:not_registered)}, []}
        _ -> {{:ok, Map.get(Prekeys.stock(repo, [address]), address, 0)}, []}
      end
    end)
  end

  def publish(instance, address, fields) do
    with {:ok, bundle} <- PreKeyBundle.new(fields),
         :ok <- verify(instance, bundle) do
      Instance.transaction(instance, fn repo ->
        {insert_published(instance, repo, address, bundle), []}
      end)
    end
  end

  defp verify(instance, bundle) do
    case Instance.native(instance, :bundle_verify, [PreKeyBundle.to_native(bundle)]) do
      :ok -> :ok
      {:error, reason} -> {:error, Error.new(reason)}
    end
  end

  defp insert_published(instance, repo, address, bundle) do
    now = now()

    case Accounts.device(repo, address) do
      nil ->
        published = %{
          registration_id: bundle.registration_id,
          public_key: bundle.identity_key,
          identity: nil,
          next_prekey_id: 1
        }

        if Accounts.insert_device(repo, address, published, now) == 0,
          do: raise(Error.new(:stale))

        insert_stock(repo, address, bundle, now)

      %{identity: nil} = device ->
        changed? = device.public_key != bundle.identity_key
        # The old signature says nothing about prekeys of the new identity.
        if changed?, do: Prekeys.delete_all(repo, address)
        if changed?, do: Archive.put_away_all_with(instance, repo, address)

        Accounts.update_published(repo, address, bundle.registration_id, bundle.identity_key)
        insert_stock(repo, address, bundle, now)

      _local ->
        {:error, Error.new(:untrusted_identity, "the private keys of this device are held here")}
    end
  end

  defp insert_stock(repo, address, bundle, now) do
    signed = bundle.signed_prekey
    one_time = Enum.map(PreKeyBundle.stock(bundle), &{&1.id, &1.public_key, nil, nil})

    Prekeys.replace_signed(repo, address, {signed.id, signed.public_key, signed.signature}, now)
    Prekeys.insert(repo, address, :one_time, one_time, now)

    case Map.get(Prekeys.stock(repo, [address]), address, 0) do
      stock when stock > @max_stock -> raise Error.new(:too_large)
      stock -> {:ok, stock}
    end
  end

  def bundle(instance, {user, device} = address) do
    result =
      Instance.transaction(instance, fn repo ->
        {claimed, records} = claim(instance, repo, [address], now())

        case claimed do
          %{^address => found} -> {{:ok, found}, records}
          %{} -> {{:error, Error.new(:not_registered)}, records}
        end
      end)

    with {:ok, found} <- result do
      replenish_low(instance, %{address => found})
      {id, public_key, signature} = found.bundle.signed_prekey

      {:ok,
       %PreKeyBundle{
         user: user,
         device: device,
         registration_id: found.bundle.registration_id,
         identity_key: found.bundle.identity_key,
         signed_prekey: %{id: id, public_key: public_key, signature: signature},
         prekey:
           with({id, public_key} <- found.bundle.prekey, do: %{id: id, public_key: public_key})
       }}
    end
  end

  @doc """
  Hands out a bundle of each device that has keys, in the caller's transaction.

  Returns `%{address => %{bundle: bundle, local: boolean, remaining: stock}}` and what telemetry should say.
  """
  def claim(_instance, _repo, [], _now), do: {%{}, []}

  def claim(instance, repo, addresses, now) do
    found = Accounts.bundles(repo, addresses)

    {claimed, records} =
      addresses
      |> Enum.sort()
      |> Enum.filter(&is_map_key(found, &1))
      |> Enum.map_reduce([], fn {user, device} = address, records ->
        metadata = %{instance: instance.name, user_id: user, device_id: device}

        {prekey, record} =
          Telemetry.record(
            [:kith, :prekeys, :claim],
            metadata,
            fn -> Prekeys.claim(repo, address, now) end,
            fn prekey -> {%{count: if(prekey, do: 1, else: 0)}, %{result: :ok, reason: nil}} end
          )

        {{address, prekey}, [{address, record} | records]}
      end)

    stock = if claimed == [], do: %{}, else: Prekeys.stock(repo, Enum.map(claimed, &elem(&1, 0)))

    claimed =
      Map.new(claimed, fn {address, prekey} ->
        {local, bundle} = Map.pop!(found[address], :local)
        bundle = Map.put(bundle, :prekey, prekey)
        {address, %{bundle: bundle, local: local, remaining: Map.get(stock, address, 0)}}
      end)

    records =
      for {address, record} <- Enum.reverse(records),
          do: Telemetry.measure(record, %{remaining: claimed[address].remaining})

    {claimed, records}
  end

  @doc "Asks for new prekeys of the devices whose stock a claim left low."
  def replenish_low(instance, claimed) do
    below = instance.options.replenish_below

    low =
      for {address, %{local: true, remaining: remaining}} <- claimed,
          remaining < below,
          do: address

    Replenisher.request(instance, low)
  end

  defp now, do: System.system_time(:millisecond)
end
