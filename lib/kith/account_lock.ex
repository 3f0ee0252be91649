defmodule Kith.AccountLock do
  @moduledoc false
  # Accounts that are locked under a password: at rest, neither the database nor the keys of the server open them.
  #
  # What locks is the data key of the account. A new one is drawn and everything sealed under it, since the one before
  # could be read with the server's keys, and may be in a backup.

  import Kith.Store.WrappedKey, only: [is_locked: 1]

  alias Kith.{Error, Instance, KeyChange, Native, Password, Telemetry, Unlocked}
  alias Kith.{Maintenance, Registration}
  alias Kith.KMS.Client
  alias Kith.Store.{Accounts, Keys}

  # With what a key service may have put into it.
  @max_token 2_048

  @none %{resealed: 0, refused: 0}

  @doc "Locks an account that is not."
  def lock_with_password(instance, user, password, options) do
    costs = Password.costs!(options)

    changing(instance, user, fn ->
      with {:ok, before} <- data_key(instance, user),
           :ok <- open?(before),
           {:ok, {locked, unlocked}} <-
             in_turn(instance, :account_lock, [user, password, costs]),
           {:ok, counts} <-
             change(instance, user, before, {user, before}, {user, unlocked}, locked),
           do: locked_anew(instance, {user, locked}, unlocked, options, counts)
    end)
  end

  defp locked_anew(instance, {user, locked} = account, unlocked, options, counts) do
    expires_at = keep(instance, account, unlocked, options)
    key = {Keys.key_id(locked), unlocked}
    {:ok, expires_at, followed(counts, KeyChange.own_archive(instance, user, key))}
  end

  @doc "Gives up the password. The account opens with the keys of the server again."
  def remove_password(instance, user, password) do
    changing(instance, user, fn ->
      with {:ok, unlocked, locked} <- opened(instance, user, password),
           {:ok, data_key} <- sealed(instance, :account_wrap, [user, unlocked]),
           :ok <- replace(instance, user, locked, data_key) do
        Native.account_close(unlocked)
        Unlocked.close(instance, user)
        {:ok, nil, followed(@none, KeyChange.own_archive(instance, user))}
      end
    end)
  end

  @doc "Another password: for the same data key, where nothing is sealed anew, or for another one."
  def change_password(instance, user, password, new, options) do
    {reseal?, options} = Keyword.pop(options, :reseal, false)
    costs = Password.costs!(options)
    change = if reseal?, do: &another_key/6, else: &same_key/6

    changing(instance, user, fn ->
      with {:ok, unlocked, locked} <- opened(instance, user, password),
           do: change.(instance, {user, locked}, unlocked, new, costs, options)
    end)
  end

  defp same_key(instance, {user, locked}, unlocked, new, costs, options) do
    with {:ok, relocked} <- in_turn(instance, :account_relock, [user, unlocked, new, costs]),
         :ok <- replace(instance, user, locked, relocked),
         do: {:ok, keep(instance, {user, relocked}, unlocked, options), @none}
  end

  defp another_key(instance, {user, locked}, before, new, costs, options) do
    result =
      with {:ok, {relocked, unlocked}} <- in_turn(instance, :account_lock, [user, new, costs]),
           {:ok, counts} <-
             change(instance, user, locked, {user, before}, {user, unlocked}, relocked),
           do: locked_anew(instance, {user, relocked}, unlocked, options, counts)

    Native.account_close(before)
    result
  end

  @doc "Opens an account until a time. Returns that time."
  def unlock(instance, user, password, options) do
    unlocking(instance, user, :password, fn ->
      with {:ok, unlocked, locked} <- opened(instance, user, password),
           {:ok, locked} <- as_configured(instance, user, password, unlocked, locked) do
        expires_at = keep(instance, {user, locked}, unlocked, options)
        after_unlocking(instance, user)
        {:ok, expires_at}
      end
    end)
  end

  # A lock that costs less than is configured now is made anew, while the password is there.
  defp as_configured(instance, user, password, unlocked, locked) do
    costs = Password.costs!([])

    with {:ok, found} <- sealed(instance, :account_costs, [user, locked]),
         true <- cheaper?(found, costs),
         {:ok, relocked} <-
           in_turn(instance, :account_relock, [user, unlocked, password, costs]),
         :ok <- replace(instance, user, locked, relocked, keep_tokens: true) do
      {:ok, relocked}
    else
      false ->
        {:ok, locked}

      # It is open all the same. Next time.
      {:error, %Error{reason: reason}} when reason in [:busy, :stale, :unavailable] ->
        {:ok, locked}

      {:error, error} ->
        {:error, error}
    end
  end

  # Not one that costs more in another way, or two nodes with different ones would make it anew in turns.
  defp cheaper?({memory, passes, _}, {wanted_memory, wanted_passes, _}) do
    memory <= wanted_memory and passes <= wanted_passes and
      {memory, passes} != {wanted_memory, wanted_passes}
  end

  @doc "Forgets the key, on every node: the locked one is written anew. Tokens do not unlock any more, unless they are kept."
  def lock(instance, user, options) do
    Unlocked.close(instance, user)

    Instance.transaction(instance, fn repo ->
      Accounts.lock(repo, user)

      case Accounts.data_key(repo, user) do
        nil ->
          {{:error, Error.new(:not_registered)}, []}

        locked when is_locked(locked) ->
          if not Keyword.get(options, :keep_tokens, false), do: Keys.delete_tokens(repo, user)
          {relock(instance, repo, user, locked), []}

        _open ->
          {not_locked(), []}
      end
    end)
  end

  defp relock(instance, repo, user, locked) do
    with {:ok, anew} <- sealed(instance, :account_lock_anew, [user, locked]) do
      Keys.put_data_key(repo, user, locked, anew, nil)
      {:ok, :locked}
    end
  end

  @doc "`:open` for an account without a password, or `:locked`, or `{:unlocked, until}` on this node."
  def state(instance, user) do
    with {:ok, data_key} <- data_key(instance, user) do
      cond do
        not is_locked(data_key) -> {:ok, :open}
        at = Unlocked.expires_at(instance, {user, data_key}) -> {:ok, {:unlocked, at}}
        true -> {:ok, :locked}
      end
    end
  end

  @doc "A token that unlocks the account again, for an encrypted cookie."
  def token(instance, user, seconds) do
    expires_at = Instance.now(instance) + seconds * 1_000

    with {:ok, data_key} <- data_key(instance, user),
         :ok <- locked?(data_key),
         {^user, unlocked} when is_reference(unlocked) <-
           Unlocked.account(instance, {user, data_key}),
         {:ok, {token, token_id}} <-
           sealed(instance, :account_token, [user, unlocked, expires_at]) do
      Instance.transaction(instance, fn repo ->
        Accounts.lock(repo, user)

        # Or it would outlive a lock, or another password, that came in between.
        if Accounts.data_key(repo, user) == data_key do
          Keys.delete_expired_tokens(repo, Instance.now(instance))
          Keys.insert_token(repo, user, token_id, expires_at)
          {{:ok, Base.url_encode64(token, padding: false)}, []}
        else
          {{:error, Error.new(:locked)}, []}
        end
      end)
    else
      {^user, _data_key} -> {:error, Error.new(:locked)}
      {:error, error} -> {:error, error}
    end
  end

  @doc "Opens an account with a token, until its time or that of the token is over."
  def unlock_with_token(instance, user, token, options) do
    unlocking(instance, user, :token, fn ->
      with {:ok, bytes} <- decode(token),
           {:ok, data_key} <- data_key(instance, user),
           :ok <- locked?(data_key),
           {:ok, {unlocked, token_id, expires_at}} <- open_token(instance, user, bytes),
           :ok <- good?(instance, user, {data_key, bytes}, token_id),
           :ok <- in_time?(instance, expires_at) do
        until = keep(instance, {user, data_key}, unlocked, options, expires_at)
        after_unlocking(instance, user)
        {:ok, until}
      end
    end)
  end

  # Which of these it is, is nothing a browser needs to know.
  defp open_token(instance, user, bytes) do
    with {:error, %Error{reason: reason}} when reason in [:corrupted_state, :key_not_found] <-
           sealed(instance, :account_open_token, [user, bytes]),
         do: {:error, Error.new(:wrong_password, "the token unlocks nothing here")}
  end

  defp decode(token) do
    case Base.url_decode64(token, padding: false) do
      {:ok, bytes} when byte_size(bytes) <= @max_token -> {:ok, bytes}
      _ -> {:error, Error.new(:malformed, "the token is none")}
    end
  end

  # The key must be the one the account has, and the token among those that were not revoked.
  defp good?(instance, user, {data_key, bytes}, token_id) do
    found =
      Instance.transaction(instance, fn repo ->
        {{:ok, Keys.token?(repo, user, token_id, Instance.now(instance))}, []}
      end)

    case found do
      {:ok, true} ->
        if Keys.key_id(data_key) == Keys.key_id(bytes), do: :ok, else: revoked()

      {:ok, false} ->
        revoked()

      {:error, error} ->
        {:error, error}
    end
  end

  # As the token itself says: the row may have been written by others.
  defp in_time?(instance, expires_at),
    do: if(expires_at > Instance.now(instance), do: :ok, else: revoked())

  defp revoked, do: {:error, Error.new(:wrong_password, "the token is over or was revoked")}

  @doc "Makes one token, or all of a user, unlock nothing any more."
  def revoke(instance, user, :all) do
    Instance.transaction(instance, fn repo -> {{:ok, Keys.delete_tokens(repo, user)}, []} end)
  end

  def revoke(instance, user, token) do
    with {:ok, bytes} <- decode(token),
         {:ok, {unlocked, token_id, _}} <- open_token(instance, user, bytes) do
      Native.account_close(unlocked)

      Instance.transaction(instance, fn repo ->
        {{:ok, Keys.delete_token(repo, user, token_id)}, []}
      end)
    end
  end

  @doc """
  Another data key for an account: everything is sealed anew under it. Of a locked account only with the password, since nobody
  else can. With the id of a data key, only if it is that one still.
  """
  def rotate(instance, user, key_id \\ nil) do
    changing(instance, user, fn ->
      with {:ok, before} <- data_key(instance, user),
           :ok <- open?(before),
           :ok <- still?(before, key_id),
           {:ok, data_key} <- sealed(instance, :account_create, [user]),
           :ok <- Client.check_wrapped(instance, data_key),
           {:ok, counts} <-
             change(instance, user, before, {user, before}, {user, data_key}, data_key),
           do: {:ok, nil, counts}
    end)
  end

  ## What they share

  defp changing(instance, user, fun) do
    metadata = %{instance: instance.name, user_id: user}

    Telemetry.span([:kith, :account, :reseal], metadata, fn ->
      result = fun.()
      counts = with {:ok, _, counts} <- result, do: counts, else: (_ -> @none)
      # Nothing of before stays beside it, as far as the database is ours.
      if match?({:ok, _, _}, result), do: Instance.empty_log(instance)
      result = with {:ok, expires_at, counts} <- result, do: {:ok, answer(expires_at, counts)}
      {result, Map.take(counts, [:resealed, :refused]), Telemetry.outcome(result)}
    end)
  end

  # The account has been changed, whatever came of its archive: an error would say it has not. The next unlocking goes on.
  defp followed(counts, {:ok, more}),
    do: counts |> Map.merge(more, fn _, a, b -> a + b end) |> Map.put(:archive, :done)

  defp followed(counts, {:error, _}), do: Map.put(counts, :archive, :pending)

  defp answer(expires_at, counts), do: Map.put(counts, :unlocked_until, expires_at)

  defp unlocking(instance, user, by, fun) do
    metadata = %{instance: instance.name, user_id: user, by: by}

    Telemetry.span([:kith, :account, :unlock], metadata, fn ->
      result = fun.()
      {result, %{}, Telemetry.outcome(result)}
    end)
  end

  # All that is sealed under the key of an account, and the key itself, in one transaction, if the one that is stored has not changed.
  defp change(instance, user, stored, before, changed, new_stored) do
    Instance.transaction(
      instance,
      fn repo ->
        Keys.lock(repo, user)

        case Accounts.data_key(repo, user) do
          ^stored ->
            {put(instance, repo, {user, stored}, before, changed, new_stored), []}

          nil ->
            {{:error, Error.new(:not_registered)}, []}

          # Somebody else changed it meanwhile.
          _another ->
            {{:error, Error.new(:stale)}, []}
        end
      end,
      timeout: :infinity
    )
  end

  defp put(instance, repo, {user, stored}, before, changed, new_stored) do
    with {:ok, counts} <- KeyChange.reseal(instance, repo, before, changed) do
      Keys.put_data_key(repo, user, stored, new_stored, Instance.now(instance))
      Keys.delete_tokens(repo, user)
      {:ok, counts}
    end
  end

  # The same key, stored in another way.
  defp replace(instance, user, before, data_key, options \\ []) do
    keep? = Keyword.get(options, :keep_tokens, false)

    result =
      Instance.transaction(instance, fn repo ->
        case Keys.put_data_key(repo, user, before, data_key, nil) do
          1 -> {{:ok, if(not keep?, do: Keys.delete_tokens(repo, user))}, []}
          0 -> {{:error, Error.new(:stale)}, []}
        end
      end)

    with {:ok, _} <- result, do: :ok
  end

  defp opened(instance, user, password) do
    with {:ok, locked} <- data_key(instance, user),
         :ok <- locked?(locked),
         {:ok, unlocked} <- in_turn(instance, :account_unlock, [user, locked, password]),
         do: {:ok, unlocked, locked}
  end

  defp data_key(instance, user) do
    Instance.transaction(instance, fn repo ->
      case Accounts.data_key(repo, user) do
        nil -> {{:error, Error.new(:not_registered)}, []}
        data_key -> {{:ok, data_key}, []}
      end
    end)
  end

  defp open?(data_key) when is_locked(data_key),
    do: {:error, Error.new(:locked, "it has a password already")}

  defp open?(_data_key), do: :ok

  defp still?(data_key, key_id),
    do: if(key_id in [nil, Keys.key_id(data_key)], do: :ok, else: {:error, Error.new(:stale)})

  defp locked?(data_key) when is_locked(data_key), do: :ok
  defp locked?(_data_key), do: not_locked()

  # Not a success: whoever logs in by it would need no password.
  defp not_locked, do: {:error, Error.new(:key_not_found, "the account has no password")}

  defp keep(instance, account, unlocked, options, latest \\ nil) do
    seconds = Keyword.get(options, :for, instance.options.unlocked_for)
    until = Instance.now(instance) + seconds * 1_000
    Unlocked.put(instance, account, unlocked, min(until, latest || until))
  end

  # What did not follow when the account was locked, see `followed/2`, and what could not be made while it was.
  defp after_unlocking(instance, user) do
    KeyChange.own_archive(instance, user)

    devices =
      Instance.transaction(instance, fn repo ->
        {{:ok,
          for(
            {address, %{identity: <<_, _::binary>>}} <- Accounts.devices(repo, [user]),
            do: address
          )}, []}
      end)

    with {:ok, addresses} <- devices do
      Enum.each(addresses, &rotate_prekeys(instance, &1))
      Maintenance.request(instance, addresses)
    end

    :ok
  end

  defp rotate_prekeys(%{options: %{prekey_rotation: 0}}, _address), do: :ok

  defp rotate_prekeys(%{options: options} = instance, address) do
    older_than = Instance.now(instance) - options.prekey_rotation * 1_000
    # What fails now is tried by the next pass of maintenance.
    Registration.rotate(instance, address, older_than)
  end

  # Argon2 waits for its turn, as that of other passwords does.
  defp in_turn(instance, function, arguments) do
    call = fn -> Password.in_turn(function, [instance.vault | arguments]) end
    Error.from_native(Instance.with_keys(instance, function, arguments, call))
  end

  defp sealed(instance, function, arguments),
    do: Error.from_native(Instance.sealed(instance, function, arguments))
end
