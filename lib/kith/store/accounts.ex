defmodule Kith.Store.Accounts do
  @moduledoc false
  # signal_accounts and signal_identity_keys: who has keys here.

  alias Kith.Address
  alias Kith.Store.{Keys, Repo, SQL, WrappedKey}

  @type device :: %{
          data_key: nil | binary,
          registration_id: non_neg_integer,
          public_key: binary,
          identity: nil | binary,
          next_prekey_id: pos_integer,
          next_kyber_prekey_id: pos_integer
        }

  @columns """
  i.user_id, i.device_id, a.data_key, i.registration_id, i.public_key, i.private_key_encrypted,
  i.next_prekey_id, i.next_kyber_prekey_id
  """

  @from """
  FROM kith.signal_identity_keys i LEFT JOIN kith.signal_accounts a ON a.user_id = i.user_id
  """

  @doc "The keys of a device. `:identity`, its sealed private key, is nil when it lives elsewhere."
  @spec device(Repo.repo(), Address.t()) :: nil | device
  def device(repo, {user, device}) do
    sql = "SELECT #{@columns} #{@from} WHERE i.user_id = $1 AND i.device_id = $2"
    for [_, _ | row] <- Repo.rows(repo, sql, [user, device]), reduce: nil, do: (nil -> row(row))
  end

  @doc """
  The same, and the device stays registered until the transaction ends: what is sealed for it is sealed with these keys
  then, and not beside those of a registration that another node has made meanwhile.
  """
  @spec hold_device(Repo.repo(), Address.t()) :: nil | device
  def hold_device(repo, {user, device}) do
    sql =
      "SELECT #{@columns} #{@from} WHERE i.user_id = $1 AND i.device_id = $2#{Repo.hold_of(repo, "i")}"

    found =
      for [_, _ | row] <- Repo.rows(repo, sql, [user, device]), reduce: nil, do: (nil -> row(row))

    fresh(repo, user, found)
  end

  # The row that is held may have been waited for; the others are as they were before, that of the same device too.
  defp read_again(repo, sender, [[_, identity | _] | _], found) do
    case found[sender] do
      %{identity: ^identity} -> found
      nil -> found
      _before -> Map.put(found, sender, hold_device(repo, sender))
    end
  end

  defp read_again(_repo, _sender, [], found), do: found

  # A row that was waited for is as it is now, and what is joined to it as it was before: of an account whose data key was
  # changed meanwhile, that is the one of before.
  defp fresh(repo, user, %{identity: <<_, _, id::binary-8, _::binary>>} = device) do
    case device.data_key do
      <<_, _, ^id::binary-8, _::binary>> -> device
      nil -> device
      _another -> %{device | data_key: data_key(repo, user)}
    end
  end

  defp fresh(_repo, _user, device), do: device

  @doc "The keys of all devices of some users, by address."
  @spec devices(Repo.repo(), [Address.user()]) :: %{Address.t() => device}
  def devices(repo, users) do
    sql = "SELECT #{@columns} #{@from} WHERE i.user_id IN (#{SQL.list(1, length(users))})"

    for [user, device | row] <- Repo.rows(repo, sql, users),
        into: %{},
        do: {{user, device}, row(row)}
  end

  @doc """
  The same, with what an expression of SQL says at that moment, and the one device that sends held as by
  `hold_device/2`. Nothing of it where that is not registered.
  """
  @spec devices_for(Repo.repo(), Address.t(), [Address.user()], String.t()) ::
          {%{Address.t() => device}, term}
  def devices_for(repo, {user, device}, users, expression) do
    sql = """
    SELECT #{expression}, me.private_key_encrypted, #{@columns}
    FROM kith.signal_identity_keys me
      JOIN kith.signal_identity_keys i ON i.user_id IN (#{SQL.list(3, length(users))})
      LEFT JOIN kith.signal_accounts a ON a.user_id = i.user_id
    WHERE me.user_id = $1 AND me.device_id = $2#{Repo.hold_of(repo, "me")}
    """

    rows = Repo.rows(repo, sql, [user, device | users])
    said = with [[said | _] | _] <- rows, do: said, else: ([] -> nil)
    found = for [_, _, user, device | row] <- rows, into: %{}, do: {{user, device}, row(row)}
    {read_again(repo, {user, device}, rows, found), said}
  end

  defp row([data_key, registration_id, public_key, identity, next_prekey_id, next_kyber_prekey_id]) do
    %{
      data_key: data_key,
      registration_id: registration_id,
      public_key: public_key,
      identity: identity,
      next_prekey_id: next_prekey_id,
      next_kyber_prekey_id: next_kyber_prekey_id
    }
  end

  @doc "Makes whoever registers or unregisters devices of a user, or makes prekeys for them, wait for each other."
  def lock(repo, user),
    do: Repo.lock_rows(repo, "SELECT 1 FROM kith.signal_accounts WHERE user_id = $1", [user])

  @doc "The wrapped data key of a user."
  @spec data_key(Repo.repo(), Address.user()) :: nil | binary
  def data_key(repo, user) do
    case Repo.rows(repo, "SELECT data_key FROM kith.signal_accounts WHERE user_id = $1", [user]) do
      [] -> nil
      [[data_key]] -> data_key
    end
  end

  @doc "Users and their wrapped data keys, some at a time, in the order of the users."
  @spec data_keys(Repo.repo(), Address.user(), pos_integer) :: [{Address.user(), binary}]
  def data_keys(repo, after_user, limit) do
    sql = """
    SELECT user_id, data_key FROM kith.signal_accounts WHERE user_id > $1
    ORDER BY user_id LIMIT $2
    """

    for [user, data_key] <- Repo.rows(repo, sql, [after_user, limit]), do: {user, data_key}
  end

  @doc "Keeps the data key that is there, should another process have been faster."
  def insert_account(repo, user, data_key, now) do
    sql = """
    INSERT INTO kith.signal_accounts
      (user_id, data_key, created_at, key_id, wrapped_dek, kek_id, kek_version)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (user_id) DO NOTHING
    """

    Repo.execute(repo, sql, [user, {:blob, data_key}, now | WrappedKey.columns(data_key)])
  end

  @doc "Returns how many rows were inserted: 0 when the device is there already."
  def insert_device(repo, {user, device}, fields, now) do
    sql = """
    INSERT INTO kith.signal_identity_keys
      (user_id, device_id, registration_id, public_key, private_key_encrypted, next_prekey_id,
       next_kyber_prekey_id, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (user_id, device_id) DO NOTHING
    """

    Repo.execute(repo, sql, [
      user,
      device,
      fields.registration_id,
      {:blob, fields.public_key},
      fields.identity && {:blob, fields.identity},
      fields.next_prekey_id,
      fields.next_kyber_prekey_id,
      now
    ])
  end

  def update_published(repo, {user, device}, registration_id, public_key) do
    sql = """
    UPDATE kith.signal_identity_keys SET registration_id = $3, public_key = $4
    WHERE user_id = $1 AND device_id = $2 AND private_key_encrypted IS NULL
    """

    Repo.execute(repo, sql, [user, device, registration_id, {:blob, public_key}])
  end

  @doc """
  Moves the next prekey id and the next Kyber prekey id on. Returns 0 when another process moved them first.
  """
  def reserve_prekey_ids(repo, {user, device}, {from, kyber_from}, {to, kyber_to}) do
    sql = """
    UPDATE kith.signal_identity_keys SET next_prekey_id = $3, next_kyber_prekey_id = $4
    WHERE user_id = $1 AND device_id = $2 AND next_prekey_id = $5 AND next_kyber_prekey_id = $6
    """

    Repo.execute(repo, sql, [user, device, to, kyber_to, from, kyber_from])
  end

  @doc "Deletes a device with all that belongs to it, and the user's data key with the last one."
  def delete_device(repo, {user, device}) do
    deleted =
      Repo.execute(
        repo,
        "DELETE FROM kith.signal_identity_keys WHERE user_id = $1 AND device_id = $2",
        [user, device]
      )

    # Two devices that go at once each have a session with the other.
    sql = """
    SELECT 1 FROM kith.signal_sessions
    WHERE (user_id = $1 AND device_id = $2) OR (peer_id = $1 AND peer_device_id = $2)
    ORDER BY user_id, device_id, peer_id, peer_device_id
    """

    Repo.lock_rows(repo, sql, [user, device])
    clear(repo, {user, device})
    delete_account(repo, user)
    deleted
  end

  @doc "Deletes the data key of a user who has no device."
  def delete_account(repo, user) do
    sql = """
    DELETE FROM kith.signal_accounts WHERE user_id = $1
      AND NOT EXISTS (SELECT 1 FROM kith.signal_identity_keys WHERE user_id = $2)
    """

    deleted = Repo.execute(repo, sql, [user, user])
    if deleted > 0, do: Keys.delete_unowned(repo, user)
    deleted
  end

  @doc """
  Deletes what belongs to a device.

  On PostgreSQL a call that was under way while the device went may have left a row behind.
  """
  def clear(repo, {user, device}) do
    for table <- ~w(signal_prekeys signal_sessions signal_braids signal_archived_sessions
                    signal_session_entries signal_base_keys signal_archived_messages
                    signal_recoveries) do
      Repo.execute(repo, "DELETE FROM kith.#{table} WHERE user_id = $1 AND device_id = $2", [
        user,
        device
      ])
    end

    :ok
  end

  @doc """
  Registration ids, identity keys, signed prekeys and Kyber prekeys of last resort of many devices, by address: those
  prekeys that are not superseded.
  """
  @spec bundles(Repo.repo(), [Address.t()]) :: %{Address.t() => map}
  def bundles(repo, addresses) do
    users = addresses |> Enum.map(&elem(&1, 0)) |> Enum.uniq()

    # CROSS JOIN keeps SQLite from walking over every prekey of a user; PostgreSQL makes nothing of it.
    sql = """
    SELECT i.user_id, i.device_id, i.registration_id, i.public_key,
      CASE WHEN i.private_key_encrypted IS NULL THEN 0 ELSE 1 END,
      p.kind, p.prekey_id, p.public_key, p.signature
    FROM kith.signal_identity_keys i CROSS JOIN kith.signal_prekeys p
    WHERE i.user_id IN (#{SQL.list(1, length(users))})
      AND p.user_id = i.user_id AND p.device_id = i.device_id
      AND p.kind IN ('signed', 'kyber_last_resort') AND p.superseded_at IS NULL
    """

    for [user, device, registration_id, identity_key, local, kind | prekey] <-
          Repo.rows(repo, sql, users),
        reduce: %{} do
      bundles ->
        bundle = %{
          local: local == 1,
          registration_id: registration_id,
          identity_key: identity_key,
          signed_prekey: nil,
          kyber_prekey: nil
        }

        field = if kind == "signed", do: :signed_prekey, else: :kyber_prekey

        bundles
        |> Map.put_new({user, device}, bundle)
        |> put_in([{user, device}, field], List.to_tuple(prekey))
    end
  end
end
