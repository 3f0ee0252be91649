defmodule Kith.Registration do
  @moduledoc false
  # Who has keys here: making them, publishing those made elsewhere, handing out bundles.

  alias Kith.{Address, Archive, Error, Instance, Maintenance, PreKeyBundle, Telemetry}
  alias Kith.Store.{Accounts, ArchivedMessages, Prekeys}

  # Ids have 24 bits in Signal's own clients.
  @max_prekey_id 0xFFFFFF
  # A client that publishes without end would fill the database. Of each kind of one-time prekeys.
  @max_stock 1_000

  @type given :: %{identity_key_pair: nil | binary, registration_id: nil | non_neg_integer}

  @type claimed :: %{
          bundle: map,
          local: boolean,
          claimed: %{Prekeys.kind() => non_neg_integer},
          remaining: Prekeys.stock()
        }

  @doc "A device whose private keys are here, with its wrapped data key, or why it cannot be used."
  @spec fetch_local(term, Address.t()) :: {:ok, Accounts.device()} | {:error, Error.t()}
  def fetch_local(repo, address), do: local(Accounts.hold_device(repo, address))

  @doc "The same of a device that was read already."
  @spec local(nil | Accounts.device()) :: {:ok, Accounts.device()} | {:error, Error.t()}
  def local(nil), do: {:error, Error.new(:not_registered)}
  def local(%{identity: nil}), do: {:error, Error.new(:key_not_found)}
  def local(%{data_key: nil}), do: {:error, Error.new(:key_not_found)}
  def local(device), do: {:ok, device}

  @doc "The account a native call is made for and the device it is made on behalf of, with what it asks of others."
  def on_behalf_of(instance, {user, number}, device) do
    {{user, device.data_key},
     %{
       device: number,
       registration_id: device.registration_id,
       identity: device.identity,
       minimum_version: instance.options.minimum_version
     }}
  end

  @spec register(Instance.t(), Address.t(), given) :: {:ok, map} | {:error, Error.t()}
  def register(instance, {user, device} = address, given) do
    Instance.transaction(instance, fn repo ->
      Accounts.lock(repo, user)

      case Accounts.device(repo, address) do
        nil -> create(instance, repo, address, given)
        %{identity: nil} -> {{:error, Error.new(:key_not_found)}, []}
        found -> {keep(instance, {user, device}, found, given), []}
      end
    end)
  end

  # The keys that are there stay, so others must not be given.
  defp keep(_instance, {user, device}, found, %{identity_key_pair: nil}),
    do: {:ok, registered(user, device, found)}

  defp keep(instance, {user, device}, %{public_key: public_key} = found, given) do
    case identity(instance, {user, found.data_key}, device, given, []) do
      {:ok, {^public_key, _sealed, _registration_id}} ->
        {:ok, registered(user, device, found)}

      {:ok, _another} ->
        {:error, Error.new(:untrusted_identity, "the device is registered with another pair")}

      {:error, reason} ->
        {:error, Error.new(reason)}
    end
  end

  defp create(instance, repo, {user, device} = address, given) do
    now = Instance.now(instance)
    account = {user, open_account(instance, repo, user, now)}
    others = others(repo, address)

    {keys, record} =
      generating(instance, address, fn ->
        with :ok <- room(instance, others),
             {:ok, {public_key, sealed, drawn}} <-
               identity(instance, account, device, given, others),
             :ok <- of_one_user(others, public_key) do
          keys = %{
            registration_id: given.registration_id || drawn,
            public_key: public_key,
            identity: sealed
          }

          first_prekeys(instance, account, device, keys)
        end
      end)

    case keys do
      {:ok, keys} ->
        # Another process registered the same device meanwhile: the next attempt finds its keys.
        if Accounts.insert_device(repo, address, keys, now) == 0, do: raise(Error.new(:stale))
        Accounts.clear(repo, address)
        Prekeys.insert(repo, address, :signed, [keys.signed], now)
        Prekeys.insert(repo, address, :kyber_last_resort, [keys.last_resort], now)
        insert_generated(repo, address, keys, now)
        {{:ok, registered(user, device, keys)}, [record]}

      {:error, reason} ->
        # Not raised, since that would undo a transaction of the application.
        Accounts.delete_account(repo, user)
        {Error.from_native({:error, reason}), []}
    end
  end

  # Whoever writes to a user writes to each of their devices.
  defp room(%{options: %{max_devices: most}}, others) do
    if length(others) < most,
      do: :ok,
      else:
        {:error, Error.new(:too_large, "the user has #{most} devices, as :max_devices allows")}
  end

  # All devices of a user have one identity: to add one changes no safety number, and a device with another identity
  # is not the user's.
  defp identity(instance, account, device, %{identity_key_pair: nil}, others) do
    case Enum.find(others, & &1.identity) do
      nil ->
        Instance.sealed(instance, :identity_create, [account, device])

      other ->
        Instance.sealed(instance, :identity_share, [
          account,
          device,
          {other.device, other.identity}
        ])
    end
  end

  defp identity(instance, account, device, %{identity_key_pair: pair}, _others),
    do: Instance.sealed(instance, :identity_import, [account, device, pair])

  defp others(repo, {user, _} = address) do
    for {{_, device} = other, found} <- Accounts.devices(repo, [user]),
        other != address,
        do: Map.put(found, :device, device)
  end

  defp of_one_user(others, public_key) do
    if Enum.all?(others, &(&1.public_key == public_key)),
      do: :ok,
      else:
        {:error,
         Error.new(
           :untrusted_identity,
           "the user's other devices have another identity; unregister them first"
         )}
  end

  defp first_prekeys(instance, account, device, %{identity: identity} = keys) do
    # Drawn, so that a message made for keys of an earlier registration names a prekey that is not there.
    {signed_id, first_id, kyber_id} = {random_id(), random_id(), random_id()}
    {count, kyber_count} = targets(instance)

    with {:ok, signed} <-
           Instance.sealed(instance, :signed_prekey_create, [
             account,
             device,
             identity,
             signed_id
           ]),
         {:ok, [last_resort]} <-
           kyber_prekeys(instance, account, device, identity, :kyber_last_resort, {kyber_id, 1}),
         {:ok, made} <-
           one_time_prekeys(instance, account, device, identity, %{
             one_time: {first_id, count},
             kyber_one_time: {kyber_id + 1, kyber_count}
           }) do
      next = %{
        signed: signed,
        last_resort: last_resort,
        next_prekey_id: first_id + count,
        next_kyber_prekey_id: kyber_id + 1 + kyber_count
      }

      {:ok, keys |> Map.merge(made) |> Map.merge(next)}
    end
  end

  defp one_time_prekeys(instance, account, device, identity, wanted) do
    {first_id, count} = wanted.one_time

    with {:ok, prekeys} <-
           Instance.sealed(instance, :prekeys_create, [account, device, first_id, count]),
         kyber = wanted.kyber_one_time,
         {:ok, kyber_prekeys} <-
           kyber_prekeys(instance, account, device, identity, :kyber_one_time, kyber),
         do: {:ok, %{prekeys: prekeys, kyber_prekeys: kyber_prekeys}}
  end

  defp kyber_prekeys(instance, account, device, identity, kind, ids) do
    arguments = [account, device, identity, kind, ids]
    Instance.sealed(instance, :kyber_prekeys_create, arguments)
  end

  defp targets(%{options: options}),
    do: {options.one_time_prekeys, options.one_time_kyber_prekeys}

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
            # The account may be that of another process, which a third could take away again.
            Accounts.lock(repo, user)
            Accounts.data_key(repo, user) || raise Error.new(:stale)

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

  def unregister(instance, {user, _} = address) do
    Instance.transaction(instance, fn repo ->
      Accounts.lock(repo, user)
      threads = ArchivedMessages.threads(repo, address)

      case Accounts.delete_device(repo, address) do
        0 ->
          {{:error, Error.new(:not_registered)}, []}

        _ ->
          ArchivedMessages.delete_unused_keys(repo, threads)
          Archive.put_away_all_with(instance, repo, address)
          {{:ok, :unregistered}, []}
      end
    end)
  end

  # The keys are made between two transactions, so that nobody waits for 100 key pairs. Ids are reserved in the
  # first and lost when the second does not happen, never used twice.
  def replenish(instance, address),
    do: replenish(instance, address, instance.options.max_attempts)

  defp replenish(instance, {user, device} = address, attempts) do
    case reserve(instance, address) do
      {:ok, %{one_time: {_, 0}, kyber_one_time: {_, 0}}} ->
        {:ok, 0}

      {:ok, %{device: %{data_key: data_key, identity: identity}} = reserved} ->
        {keys, record} =
          generating(instance, address, fn ->
            one_time_prekeys(instance, {user, data_key}, device, identity, reserved)
          end)

        with {:ok, made} <- keys,
             {:error, %Error{reason: :stale}} when attempts > 1 <-
               store_generated(instance, address, reserved.device, made, record) do
          replenish(instance, address, attempts - 1)
        else
          {:error, reason} when is_atom(reason) -> {:error, Error.new(reason)}
          stored -> stored
        end

      {:error, error} ->
        {:error, error}
    end
  end

  defp reserve(instance, {user, _} = address) do
    Instance.transaction(instance, fn repo ->
      Accounts.lock(repo, user)

      case fetch_local(repo, address) do
        {:ok, device} ->
          {{:ok, reserve_ids(instance, repo, address, device)}, []}

        {:error, error} ->
          {{:error, error}, []}
      end
    end)
  end

  defp reserve_ids(instance, repo, address, device) do
    {count, kyber_count} = missing(instance, repo, address)
    {next, kyber_next} = {device.next_prekey_id, device.next_kyber_prekey_id}
    {first, kyber_first} = {first_id(next, count), first_id(kyber_next, kyber_count)}
    moved = {first + count, kyber_first + kyber_count}

    if Accounts.reserve_prekey_ids(repo, address, {next, kyber_next}, moved) == 0,
      do: raise(Error.new(:stale))

    %{device: device, one_time: {first, count}, kyber_one_time: {kyber_first, kyber_count}}
  end

  defp store_generated(instance, {user, _} = address, before, made, record) do
    %{public_key: public_key, identity: identity} = before

    Instance.transaction(instance, fn repo ->
      Accounts.lock(repo, user)

      # Meanwhile the user may have gone or come anew, or another node may have filled the stock.
      case Accounts.device(repo, address) do
        # Under the same data key, though that may be wrapped anew.
        %{identity: ^identity} ->
          {{:ok, insert_missing(instance, repo, address, made)}, [record]}

        # Under another one, where these prekeys would not open.
        %{public_key: ^public_key, identity: <<_, _::binary>>} ->
          {{:error, Error.new(:stale)}, []}

        _other ->
          {{:error, Error.new(:not_registered)}, []}
      end
    end)
  end

  defp insert_missing(instance, repo, address, made) do
    {count, kyber_count} = missing(instance, repo, address)

    made = %{
      prekeys: Enum.take(made.prekeys, count),
      kyber_prekeys: Enum.take(made.kyber_prekeys, kyber_count)
    }

    insert_generated(repo, address, made, Instance.now(instance))
    length(made.prekeys)
  end

  @doc """
  Gives a device a new signed prekey and a new Kyber prekey of last resort, should one of those it has be older.

  Those of before are not handed out any more. Of two nodes one does it. Returns how many were replaced.
  """
  @spec rotate(Instance.t(), Address.t(), older_than :: integer) ::
          {:ok, 0 | 2} | {:error, Error.t()}
  def rotate(instance, address, older_than) do
    Instance.transaction(instance, fn repo ->
      with {:ok, device} <- fetch_local(repo, address),
           %{signed: _, kyber_last_resort: _} = current <- Prekeys.current(repo, address) do
        if Enum.any?(current, fn {_kind, {_id, created_at}} -> created_at <= older_than end),
          do: replace_signed(instance, repo, address, device, current),
          else: {{:ok, 0}, []}
      else
        {:error, error} -> {{:error, error}, []}
        # A device that lacks one of them was registered by nobody here.
        %{} -> {{:error, Error.new(:key_not_found)}, []}
      end
    end)
  end

  # Within the transaction: two key pairs and two signatures take less than a commit does.
  defp replace_signed(instance, repo, {user, number} = address, device, current) do
    now = Instance.now(instance)
    account = {user, device.data_key}
    {{signed_id, _}, {last_resort_id, _}} = {current.signed, current.kyber_last_resort}
    {next, kyber_next} = {device.next_prekey_id, device.next_kyber_prekey_id}
    kyber_id = first_id(kyber_next, 1)

    # First of all, so that another node waits here, and then finds that there is nothing to do.
    if Accounts.reserve_prekey_ids(repo, address, {next, kyber_next}, {next, kyber_id + 1}) == 0,
      do: raise(Error.new(:stale))

    metadata = %{instance: instance.name, user_id: user, device_id: number}

    {keys, record} =
      Telemetry.record(
        [:kith, :prekeys, :rotate],
        metadata,
        fn ->
          # The one before has the highest id of all, so the next one is new.
          id = first_id(signed_id + 1, 1)
          signed = [account, number, device.identity, id]

          with {:ok, signed} <- Instance.sealed(instance, :signed_prekey_create, signed),
               {:ok, [last_resort]} <-
                 kyber_prekeys(
                   instance,
                   account,
                   number,
                   device.identity,
                   :kyber_last_resort,
                   {kyber_id, 1}
                 ),
               do: {:ok, {signed, last_resort}}
        end,
        fn
          {:ok, _} = result -> {%{count: 1, kyber_count: 1}, Telemetry.outcome(result)}
          result -> {%{count: 0, kyber_count: 0}, Telemetry.outcome(result)}
        end
      )

    case keys do
      {:ok, {signed, last_resort}} ->
        changed = [
          Prekeys.supersede(repo, address, :signed, signed_id, now),
          Prekeys.supersede(repo, address, :kyber_last_resort, last_resort_id, now),
          Prekeys.insert(repo, address, :signed, [signed], now),
          Prekeys.insert(repo, address, :kyber_last_resort, [last_resort], now)
        ]

        if changed != [1, 1, 1, 1], do: raise(Error.new(:stale))
        {{:ok, 2}, [record]}

      {:error, reason} ->
        {{:error, Error.new(reason)}, [record]}
    end
  end

  defp missing(instance, repo, address) do
    %{^address => stock} = Prekeys.stock(repo, [address])
    {count, kyber_count} = targets(instance)
    {max(count - stock.one_time, 0), max(kyber_count - stock.kyber_one_time, 0)}
  end

  defp first_id(next, count) when next + count > @max_prekey_id, do: 1
  defp first_id(next, _count), do: next

  defp insert_generated(repo, address, %{prekeys: prekeys, kyber_prekeys: kyber_prekeys}, now) do
    prekeys = Enum.map(prekeys, fn {id, public_key, sealed} -> {id, public_key, nil, sealed} end)
    Prekeys.insert(repo, address, :one_time, prekeys, now)
    Prekeys.insert(repo, address, :kyber_one_time, kyber_prekeys, now)
  end

  defp generating(instance, address, fun) do
    metadata = Telemetry.local(instance, address)

    Telemetry.record([:kith, :prekeys, :generate], metadata, fun, fn
      {:ok, %{prekeys: prekeys, kyber_prekeys: kyber_prekeys}} = result ->
        made = %{count: length(prekeys), kyber_count: length(kyber_prekeys)}
        {made, Telemetry.outcome(result)}

      result ->
        {%{count: 0, kyber_count: 0}, Telemetry.outcome(result)}
    end)
  end

  @doc "How many one-time prekeys of a kind a device can still hand out."
  def prekey_count(instance, address, kind) do
    Instance.transaction(instance, fn repo ->
      case Accounts.device(repo, address) do
        nil -> {{:error, Error.new(:not_registered)}, []}
        _ -> {{:ok, stock(repo, address, kind)}, []}
      end
    end)
  end

  defp stock(repo, address, kind), do: Prekeys.stock(repo, [address])[address][kind]

  def publish(instance, address, fields) do
    with {:ok, bundle} <- PreKeyBundle.new(fields),
         :ok <- accepted(instance.options.minimum_version, bundle),
         :ok <- verify(instance, bundle) do
      Instance.transaction(instance, fn repo ->
        {insert_published(instance, repo, address, bundle), []}
      end)
    end
  end

  defp accepted(4, %{kyber_prekey: nil}) do
    {:error,
     Error.new(
       :unsupported_version,
       "the bundle has no :kyber_prekey; an instance with minimum_version: 3 takes it"
     )}
  end

  defp accepted(_minimum_version, _bundle), do: :ok

  defp verify(instance, bundle) do
    one_time = Enum.map(bundle.kyber_prekeys, &PreKeyBundle.signed_to_native/1)

    case Instance.native(instance, :bundle_verify, [PreKeyBundle.to_native(bundle), one_time]) do
      :ok -> :ok
      {:error, reason} -> {:error, Error.new(reason)}
    end
  end

  defp insert_published(instance, repo, address, bundle) do
    others = others(repo, address)

    with :ok <- of_one_user(others, bundle.identity_key),
         :ok <- room(instance, others),
         do: put_published(instance, repo, address, bundle)
  end

  defp put_published(instance, repo, address, bundle) do
    now = Instance.now(instance)

    case Accounts.device(repo, address) do
      nil ->
        published = %{
          registration_id: bundle.registration_id,
          public_key: bundle.identity_key,
          identity: nil,
          next_prekey_id: 1,
          next_kyber_prekey_id: 1
        }

        if Accounts.insert_device(repo, address, published, now) == 0,
          do: raise(Error.new(:stale))

        Accounts.clear(repo, address)
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
    %PreKeyBundle{signed_prekey: signed, kyber_prekey: last_resort} = bundle
    one_time = Enum.map(PreKeyBundle.stock(bundle), &{&1.id, &1.public_key, nil, nil})
    kyber = Enum.map(bundle.kyber_prekeys, &{&1.id, &1.public_key, &1.signature, nil})

    signed = PreKeyBundle.signed_to_native(signed)
    Prekeys.replace(repo, address, :signed, signed, now)
    Prekeys.insert(repo, address, :one_time, one_time, now)

    if last_resort do
      last_resort = PreKeyBundle.signed_to_native(last_resort)
      Prekeys.replace(repo, address, :kyber_last_resort, last_resort, now)
    else
      Prekeys.delete_kyber(repo, address)
    end

    Prekeys.insert(repo, address, :kyber_one_time, kyber, now)

    case Prekeys.stock(repo, [address])[address] do
      %{one_time: stock, kyber_one_time: kyber} when stock > @max_stock or kyber > @max_stock ->
        raise Error.new(:too_large)

      %{one_time: stock} ->
        {:ok, stock}
    end
  end

  def bundle(instance, {user, device} = address) do
    result =
      Instance.transaction(instance, fn repo ->
        {claimed, records} = claim(instance, repo, [address], Instance.now(instance))

        case claimed do
          %{^address => found} -> {{:ok, found}, records}
          %{} -> {{:error, Error.new(:not_registered)}, records}
        end
      end)

    with {:ok, found} <- result do
      replenish_low(instance, %{address => found})
      {:ok, PreKeyBundle.from_native(user, device, found.bundle)}
    end
  end

  @doc """
  Hands out a bundle of each device that has keys, in the caller's transaction.

  Returns what was claimed by address, and what telemetry should say.
  """
  @spec claim(Instance.t(), term, [Address.t()], integer) ::
          {%{Address.t() => claimed}, [Telemetry.recorded()]}
  def claim(_instance, _repo, [], _now), do: {%{}, []}

  def claim(instance, repo, addresses, now) do
    found = Accounts.bundles(repo, addresses)

    {claimed, records} =
      addresses
      |> Enum.sort()
      |> Enum.filter(&is_map_key(found, &1))
      |> Enum.map_reduce([], fn address, records ->
        metadata = Telemetry.local(instance, address)

        {prekeys, record} =
          Telemetry.record(
            [:kith, :prekeys, :claim],
            metadata,
            fn -> claim_one_time(repo, address, now) end,
            fn {prekey, kyber_prekey} ->
              handed_out = %{
                count: if(prekey, do: 1, else: 0),
                kyber_count: if(kyber_prekey, do: 1, else: 0)
              }

              {handed_out, %{result: :ok, reason: nil}}
            end
          )

        {{address, prekeys}, [{address, record} | records]}
      end)

    stock = if claimed == [], do: %{}, else: Prekeys.stock(repo, Enum.map(claimed, &elem(&1, 0)))

    claimed =
      Map.new(claimed, fn {address, prekeys} ->
        {address, claimed(found[address], prekeys, stock[address])}
      end)

    records =
      for {address, record} <- Enum.reverse(records) do
        %{remaining: remaining} = claimed[address]

        Telemetry.measure(record, %{
          remaining: remaining.one_time,
          kyber_remaining: remaining.kyber_one_time
        })
      end

    {claimed, records}
  end

  defp claim_one_time(repo, address, now) do
    {Prekeys.claim(repo, address, :one_time, now),
     Prekeys.claim(repo, address, :kyber_one_time, now)}
  end

  defp claimed(found, {prekey, kyber_prekey}, remaining) do
    {local, bundle} = Map.pop!(found, :local)

    claimed =
      for {kind, {id, _, _}} <- [one_time: prekey, kyber_one_time: kyber_prekey],
          into: %{},
          do: {kind, id}

    bundle =
      Map.merge(bundle, %{
        prekey: with({id, public_key, _no_signature} <- prekey, do: {id, public_key}),
        kyber_prekey: kyber_prekey || bundle.kyber_prekey
      })

    %{bundle: bundle, local: local, claimed: claimed, remaining: remaining}
  end

  @doc "Puts back what was claimed for a message that was not made."
  @spec release(term, Address.t(), claimed) :: :ok
  def release(repo, address, %{claimed: claimed}),
    do: Enum.each(claimed, fn {kind, id} -> Prekeys.release(repo, address, kind, id) end)

  @doc "Asks for new prekeys of the devices whose stock a claim left low."
  def replenish_low(instance, claimed) do
    low =
      for {address, %{local: true, remaining: remaining}} <- claimed,
          low?(instance, remaining),
          do: address

    Maintenance.request(instance, low)
  end

  @doc "Whether new one-time prekeys are to be made. Of the Kyber prekeys as large a share as of the others."
  @spec low?(Instance.t(), Prekeys.stock()) :: boolean
  def low?(%{options: %{replenish_below: below}} = instance, remaining) do
    {count, kyber_count} = targets(instance)
    remaining.one_time < below or remaining.kyber_one_time * count < below * kyber_count
  end
end
