defmodule Kith.KeyChange do
  @moduledoc false
  # Another data key for an account: everything that is sealed under the one before is sealed anew, in one transaction.
  # What does not open stays as it is: nothing is written that was not authenticated.
  #
  # Messages of the archive are sealed under the data keys of their threads, and of a locked account under its own too. There
  # may be very many, so they follow in transactions of their own: see own_archive/3.

  import Kith.Store.WrappedKey, only: [is_locked: 1]

  alias Kith.{Error, Instance, Unlocked}
  alias Kith.Store.{Accounts, ArchivedMessages, Keys}

  # Rows that are sealed anew in one native call.
  @batch 500
  @batch_with_service 12

  @type account :: {Kith.Address.user(), binary | reference}

  @doc """
  Seals what an account has under another data key of it, in the caller's transaction, which has locked the keys of the user
  with `Kith.Store.Keys.lock/2`. Returns how many rows were written and how many did not open.
  """
  @spec reseal(Instance.t(), term, account, account) ::
          {:ok, %{resealed: non_neg_integer, refused: non_neg_integer}} | {:error, Error.t()}
  def reseal(instance, repo, {user, _} = before, changed) do
    with {:ok, {key_id, retired}} <- native(instance, :account_retire, [before, changed]) do
      sessions = Keys.sessions(repo, user)
      rows = write(instance, repo, before, changed, Keys.rows(repo, user))
      # As they are now. PostgreSQL returns rows that were written in another order.
      braids = Map.new(Keys.sessions(repo, user), fn {key, _, _, braid} -> {key, braid} end)

      {written, refused} =
        write_sessions(instance, repo, before, changed, {sessions, braids}, rows)

      # The key of before joins those that were retired earlier.
      Keys.insert_retired(repo, user, key_id, retired)
      {:ok, %{resealed: written, refused: refused}}
    end
  end

  defp write(instance, repo, before, changed, rows) do
    rows
    |> Enum.chunk_every(@batch)
    |> Enum.reduce({0, 0}, fn rows, counts ->
      placed = for row <- rows, do: {row.kind, row.fields, row.fields, row.bytes}
      results = resealed(instance, before, changed, placed)

      Enum.zip(rows, results)
      |> Enum.reduce(counts, fn
        {row, {:ok, bytes}}, {written, refused} ->
          {written + Keys.put(repo, row, bytes), refused}

        {_row, {:error, _}}, {written, refused} ->
          {written, refused + 1}
      end)
    end)
  end

  # After their braids, to whose tags they are bound. At another generation, so that whoever has read one before does not
  # write on.
  defp write_sessions(instance, repo, before, changed, {sessions, braids}, counts) do
    Enum.reduce(sessions, counts, fn {key, generation, state, braid}, {written, refused} ->
      pair = for {_, value} <- key, do: value
      was = pair ++ [generation, tag(braid)]
      row = {"session", was, pair ++ [generation + 1, tag(braids[key])], state}

      case resealed(instance, before, changed, [row]) do
        [{:ok, bytes}] ->
          changes = [{"state", {:blob, bytes}}, {"generation", generation + 1}]
          Keys.put(repo, "signal_sessions", key, changes)
          {written + 1, refused}

        [{:error, _}] ->
          {written, refused + 1}
      end
    end)
  end

  @doc """
  Opens what an account has and writes nothing: how many rows opened and how many did not. `:locked` for an account that is.

  Calls of that account wait meanwhile: a session and its braid are read as they belong together.
  """
  @spec check(Instance.t(), term, Kith.Address.user()) ::
          {:ok, %{opened: non_neg_integer, damaged: non_neg_integer}} | {:error, Error.t()}
  def check(instance, repo, user) do
    Keys.lock(repo, user)

    case Accounts.data_key(repo, user) do
      nil ->
        {:ok, %{opened: 0, damaged: 0}}

      data_key ->
        account = Unlocked.account(instance, {user, data_key})

        rows =
          for(row <- Keys.rows(repo, user), do: {row.kind, row.fields, row.fields, row.bytes}) ++
            for {key, generation, state, braid} <- Keys.sessions(repo, user) do
              fields = Keyword.values(key) ++ [generation, tag(braid)]
              {"session", fields, fields, state}
            end

        results =
          rows
          |> Enum.chunk_every(@batch)
          |> Enum.flat_map(&resealed(instance, account, account, &1))

        opened = Enum.count(results, &match?({:ok, _}, &1))
        {:ok, %{opened: opened, damaged: length(rows) - opened}}
    end
  end

  # As the native library reads it: the end of the sealed braid, or nothing.
  defp tag(braid) when is_binary(braid) and byte_size(braid) >= 16,
    do: binary_part(braid, byte_size(braid), -16)

  defp tag(_none), do: ""

  defp resealed(instance, before, changed, rows) do
    case Instance.sealed(instance, :rows_reseal, [before, changed, rows]) do
      {:ok, results} -> results
      {:error, reason} -> raise Error.new(reason)
    end
  end

  @doc """
  Sees to it that the messages a user has in the archive are sealed under the data key their account has now, if it is locked,
  and under that of their thread alone if it is not. Goes on where it was interrupted. Returns how many were written and
  how many did not open.
  """
  @spec own_archive(Instance.t(), Kith.Address.user(), nil | {key_id :: binary, reference}) ::
          {:ok, %{resealed: non_neg_integer, refused: non_neg_integer}} | {:error, Error.t()}
  def own_archive(instance, user, key \\ nil), do: rounds(instance, user, key, 0, 5)

  # What somebody else has sealed anew in the moment between reading and writing is done in another round.
  defp rounds(_instance, _user, _key, _written, 0), do: {:error, Error.new(:stale)}

  defp rounds(instance, user, key, written, left) do
    case own_pages(instance, user, key, {0, ""}, %{written: 0, refused: 0, missed: 0}) do
      {:ok, %{missed: 0} = round} ->
        {:ok, %{resealed: written + round.written, refused: round.refused}}

      {:ok, round} ->
        rounds(instance, user, key, written + round.written, left - 1)

      {:error, error} ->
        {:error, error}
    end
  end

  defp own_pages(instance, user, key, after_place, counts) do
    result =
      Instance.transaction(instance, fn repo ->
        Accounts.lock(repo, user)
        {own_page(instance, repo, user, key, after_place), []}
      end)

    case result do
      {:ok, {place, {written, refused}, rows}} ->
        counts = %{
          written: counts.written + written,
          refused: counts.refused + refused,
          missed: counts.missed + rows - written - refused
        }

        own_pages(instance, user, key, place, counts)

      {:ok, :done} ->
        {:ok, counts}

      {:error, error} ->
        {:error, error}
    end
  end

  defp own_page(instance, repo, user, key, after_place) do
    case Accounts.data_key(repo, user) do
      nil ->
        {:ok, :done}

      data_key ->
        wanted = if is_locked(data_key), do: Keys.key_id(data_key)

        # Each thread may take a call to a key service, before which the transaction begins anew.
        batch = if instance.kms, do: @batch_with_service, else: @batch

        case ArchivedMessages.misowned(repo, user, wanted, after_place, batch) do
          [] ->
            {:ok, :done}

          rows ->
            account = {user, data_key}
            counts = own_rows(instance, repo, account, {wanted, key}, rows)
            {device, {_, _, _, place, _}} = List.last(rows)
            {:ok, {{device, place.message_id}, counts, length(rows)}}
        end
    end
  end

  # Those of one thread, that are sealed alike, in one native call.
  defp own_rows(instance, repo, {user, _} = account, {wanted, at_hand}, rows) do
    rows
    |> Enum.group_by(fn {_device, {thread, key, owner_key_id, _, _}} ->
      {thread, key, owner_key_id}
    end)
    |> Enum.reduce({0, 0}, fn {{thread, key, owner_key_id}, rows}, {written, refused} ->
      # In a tuple, where Instance.sealed/3 does not look for those that are unlocked.
      accounts =
        {owner_key_id && owner(instance, repo, account, owner_key_id),
         wanted && owned_by(instance, account, wanted, at_hand)}

      owned =
        for {device, {_, _, _, place, content}} <- rows, do: {{user, device}, place, content}

      case Instance.sealed(instance, :archive_reseal, [{thread, key}, accounts, owned]) do
        {:ok, results} ->
          resealed =
            for {{owner, place, content}, result} <- Enum.zip(owned, results),
                do: {owner, place, content, wanted, result}

          {more, still_refused} = ArchivedMessages.put_contents(repo, resealed)
          {written + more, refused + still_refused}

        {:error, reason} when reason in [:locked, :unavailable, :panic] ->
          raise Error.new(reason)

        {:error, _} ->
          {written, refused + length(rows)}
      end
    end)
  end

  # Of whoever locks the account the key is at hand, also when its time here is over.
  defp owned_by(_instance, {user, _}, wanted, {wanted, unlocked}), do: {user, unlocked}
  defp owned_by(instance, account, _wanted, _key), do: Unlocked.account(instance, account)

  @doc """
  The account under whose key a message lies, as native calls take it: with the key it has now, or with one it had before.
  """
  @spec owner(Instance.t(), term, account, nil | binary) :: account
  def owner(instance, repo, {user, data_key} = account, key_id) do
    with true <- is_binary(key_id) and key_id != Keys.key_id(data_key),
         retired when retired != nil <- Keys.retired_key(repo, user, key_id),
         {:ok, unlocked} <-
           Instance.sealed(instance, :account_retired, [account, key_id, retired]) do
      {user, unlocked}
    else
      {:error, reason} when reason in [:locked, :unavailable] -> raise Error.new(reason)
      _the_present_one_or_none_that_is_known -> Unlocked.account(instance, account)
    end
  end

  defp native(instance, function, arguments),
    do: Error.from_native(Instance.sealed(instance, function, arguments))
end
