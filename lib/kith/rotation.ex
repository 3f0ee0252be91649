defmodule Kith.Rotation do
  @moduledoc false
  # Data keys under the current key-encryption key, and old data keys replaced. Where it was interrupted is in the rows
  # themselves: each names the key it is under.

  alias Kith.{AccountLock, Error, Instance, KeyChange, Telemetry, ThreadKeys}
  alias Kith.KMS.Client
  alias Kith.Store.{Accounts, ArchivedMessages, Keys, Repo, ServiceKeys, WrappedKey}

  @batch 100

  def run(instance, options) do
    # What is to be moved to a key service is not moved to what stands in for it.
    instance = %{instance | fallback: false}

    Telemetry.span([:kith, :keys, :rotate], %{instance: instance.name}, fn ->
      counts = %{rewrapped: 0, current: 0, refused: 0, rotated: 0, remaining: %{}}

      result =
        with {:ok, counts} <- rewrap_all(instance, counts, options),
             {:ok, counts} <- replace_old(instance, :account, counts, options),
             do: replace_old(instance, :thread, counts, options)

      counts = with {:ok, counts} <- result, do: counts, else: (_ -> counts)

      {result, Map.take(counts, [:rewrapped, :current, :refused, :rotated]),
       Telemetry.outcome(result)}
    end)
  end

  @kinds [:account, :thread, :previous, :service]

  defp rewrap_all(instance, counts, options) do
    in_turn(@kinds, counts, fn kind, counts ->
      pages("", counts, options, &page(instance, kind, &1, &2, options))
    end)
  end

  # Each of a list, until one fails.
  defp in_turn(list, counts, fun) do
    Enum.reduce_while(list, {:ok, counts}, fn item, {:ok, counts} ->
      case fun.(item, counts) do
        {:ok, counts} -> {:cont, {:ok, counts}}
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
  end

  # Page by page, each from behind the last row of the one before. `fun` returns the rows of a page with what is counted after it.
  defp pages(place, counts, options, fun) do
    case fun.(place, counts) do
      {:ok, {[], counts}} ->
        {:ok, counts}

      {:ok, {rows, counts}} ->
        if progress = options[:progress], do: progress.(counts)
        {last, _} = List.last(rows)
        pages(last, counts, options, fun)

      {:error, error} ->
        {:error, error}
    end
  end

  # A page of accounts, threads or keys of the service in a transaction.
  defp page(%{kms: nil} = instance, kind, place, counts, options) do
    Instance.transaction(instance, fn repo ->
      rows = keys(repo, kind, place)

      {{:ok, {rows, Enum.reduce(rows, counts, &rewrap(instance, repo, kind, &1, &2, options))}},
       []}
    end)
  end

  # With a key service, one by one: it is asked between transactions, and what was wrapped before it failed stays so.
  defp page(instance, kind, place, counts, options) do
    if Repo.in_transaction?(instance.repo) do
      {:error, Error.new(:unavailable, "within a transaction nobody waits for a key service")}
    else
      with {:ok, rows} <- listed(instance, kind, place),
           {:ok, counts} <- in_turn(rows, counts, &served(instance, kind, &1, &2, options)),
           do: {:ok, {rows, counts}}
    end
  end

  defp listed(instance, kind, place),
    do: Instance.transaction(instance, &{{:ok, keys(&1, kind, place)}, []})

  defp served(instance, kind, {_id, key} = row, counts, options) do
    case answered(instance, kind, row, options, 4) do
      {:ok, {:refused, _reason}} -> {:ok, refused(counts, key)}
      {:ok, counted} -> {:ok, count(counts, counted)}
      {:error, error} -> {:error, error}
    end
  end

  # What is to be counted: :current, :rewrapped, or {:refused, reason}.
  defp answered(instance, kind, {id, key} = row, options, attempts) do
    dry_run? = Keyword.get(options, :dry_run, false)

    case native(instance, kind, id, key) do
      {:ok, nil} ->
        {:ok, :current}

      # It has opened, and a key of the service would be made for it.
      {:error, :unmade} when dry_run? ->
        {:ok, :rewrapped}

      {:error, lack} when lack in [:cold, :unmade] and attempts > 0 ->
        needs = needs(lack, kind, id, key)

        case Client.warm(instance, needs) do
          :ok -> answered(instance, kind, row, options, attempts - 1)
          {:error, :unavailable} -> {:error, Error.new(:unavailable)}
          {:error, reason} -> {:ok, {:refused, reason}}
        end

      {:ok, rewrapped} ->
        put = fn repo -> {{:ok, put(repo, kind, id, wrapped(key), rewrapped)}, []} end

        cond do
          dry_run? ->
            {:ok, :rewrapped}

          Client.check_wrapped(instance, rewrapped) == :ok ->
            with {:ok, _} <- Instance.transaction(instance, put), do: {:ok, :rewrapped}

          # What another call had made for this place while the service was away: it is used up now.
          attempts > 0 ->
            answered(instance, kind, row, options, attempts - 1)

          true ->
            {:error, Error.new(:unavailable)}
        end

      {:error, reason} when reason in [:cold, :unmade] ->
        {:error, Error.new(:unavailable)}

      {:error, :panic} ->
        {:error, Error.new(:panic)}

      {:error, reason} ->
        {:ok, {:refused, reason}}
    end
  end

  defp needs(lack, :account, user, key), do: Client.needs(lack, :account_rewrap, [user, key])

  defp needs(lack, :service, _id, {purpose, public_key, wrapped}),
    do: Client.needs(lack, :service_key_rewrap, [purpose, {public_key, wrapped}])

  defp needs(lack, _thread, thread, key), do: Client.needs(lack, :thread_rewrap, [thread, key])

  defp keys(repo, kind, place), do: repo |> rows(kind, place) |> behind(place)

  # SQLite has bytes behind all texts, also behind themselves: a damaged row would come again and again.
  defp behind(rows, place), do: if(match?({^place, _}, List.last(rows)), do: [], else: rows)

  defp rows(repo, :account, place), do: Accounts.data_keys(repo, place, @batch)
  defp rows(repo, :thread, place), do: ArchivedMessages.data_keys(repo, :data_key, place, @batch)

  defp rows(repo, :previous, place),
    do: ArchivedMessages.data_keys(repo, :previous_data_key, place, @batch)

  defp rows(repo, :service, place), do: ServiceKeys.wrapped(repo, place, @batch)

  defp rewrap(instance, repo, kind, {id, key}, counts, options) do
    data_key = wrapped(key)

    case native(instance, kind, id, key) do
      {:ok, nil} ->
        count(counts, :current)

      {:ok, rewrapped} ->
        # Somebody who changed it meanwhile has wrapped it under the current key.
        if not Keyword.get(options, :dry_run, false), do: put(repo, kind, id, data_key, rewrapped)
        count(counts, :rewrapped)

      {:error, :panic} ->
        raise Error.new(:panic)

      {:error, _} ->
        refused(counts, key)
    end
  end

  defp refused(counts, key) do
    counts = count(counts, :refused)
    by = key |> wrapped() |> wrapped_by()
    %{counts | remaining: Map.update(counts.remaining, by, 1, &(&1 + 1))}
  end

  defp native(instance, :account, user, data_key),
    do: Instance.native(instance, :account_rewrap, [instance.vault, user, data_key])

  defp native(instance, kind, thread, data_key) when kind in [:thread, :previous],
    do: Instance.native(instance, :thread_rewrap, [instance.vault, thread, data_key])

  defp native(instance, :service, _id, {purpose, public_key, wrapped}) do
    arguments = [instance.vault, purpose, {public_key, wrapped}]
    Instance.native(instance, :service_key_rewrap, arguments)
  end

  defp wrapped({_purpose, _public_key, wrapped}), do: wrapped
  defp wrapped(data_key), do: data_key

  defp put(repo, :account, user, before, data_key),
    do: Keys.put_data_key(repo, user, before, data_key, nil)

  defp put(repo, :thread, thread, before, data_key),
    do: ArchivedMessages.put_data_key(repo, :data_key, thread, before, data_key)

  defp put(repo, :previous, thread, before, data_key),
    do: ArchivedMessages.put_data_key(repo, :previous_data_key, thread, before, data_key)

  defp put(repo, :service, key_id, before, wrapped),
    do: ServiceKeys.rewrap(repo, key_id, before, wrapped)

  # Not authenticated: it is what a damaged row says.
  defp wrapped_by(<<1, _, _::binary-8, size, id::binary-size(size), _::binary>>),
    do: if(String.printable?(id), do: id, else: "?")

  defp wrapped_by(_other), do: "?"

  defp count(counts, key), do: Map.update!(counts, key, &(&1 + 1))

  # Data keys that are older than asked, or of another cipher than is configured, an account or a thread at a time. A thread whose
  # messages have not all followed to a key of theirs is finished, however old it is.
  defp replace_old(instance, kind, counts, options) do
    before = if seconds = options[:older_than], do: Instance.now(instance) - seconds * 1_000
    outdated = {before, instance.options.cipher}
    dry_run? = Keyword.get(options, :dry_run, false)

    pages("", counts, options, fn place, counts ->
      old = &{{:ok, &1 |> old_rows(kind, place, outdated) |> behind(place)}, []}

      with {:ok, found} <- Instance.transaction(instance, old),
           {:ok, counts} <- in_turn(found, counts, &replace(instance, kind, &1, dry_run?, &2)),
           do: {:ok, {found, counts}}
    end)
  end

  defp old_rows(repo, :account, place, outdated) do
    for {user, data_key} <- Keys.old(repo, place, outdated, @batch),
        do: {user, {data_key, :replace}}
  end

  defp old_rows(repo, :thread, place, {before, cipher} = outdated) do
    for {thread, data_key, drawn_at} <- ArchivedMessages.old(repo, place, outdated, @batch) do
      old? = (before != nil and drawn_at < before) or WrappedKey.of_another?(data_key, cipher)
      {thread, {data_key, if(old?, do: :replace, else: :finish)}}
    end
  end

  defp replace(instance, kind, {id, {data_key, what}}, dry_run?, counts) do
    case native(instance, kind, id, data_key) do
      # It does not open, which was counted before.
      {:error, lack} when lack not in [:cold, :unmade] -> {:ok, counts}
      _opens when dry_run? -> {:ok, count(counts, :rotated)}
      _opens -> give_successor(instance, {kind, what}, id, data_key, counts)
    end
  end

  defp give_successor(instance, step, id, data_key, counts) do
    case successor(instance, step, id, data_key) do
      {:ok, %{refused: 0}} ->
        {:ok, count(counts, :rotated)}

      # Some of it does not open.
      {:ok, _} ->
        {:ok, count(counts, :refused)}

      {:error, %Error{reason: reason}} when reason in [:corrupted_state, :malformed] ->
        {:ok, count(counts, :refused)}

      # Locked: nobody but its user can. Changed or gone meanwhile.
      {:error, %Error{reason: reason}}
      when reason in [:locked, :stale, :not_registered, :key_not_found] ->
        {:ok, counts}

      {:error, error} ->
        {:error, error}
    end
  end

  # Not what another node has replaced since it was read.
  defp successor(instance, {:account, :replace}, user, data_key),
    do: AccountLock.rotate(instance, user, Keys.key_id(data_key))

  defp successor(instance, {:thread, :replace}, thread, data_key),
    do: ThreadKeys.rotate(instance, thread, Keys.key_id(data_key))

  defp successor(instance, {:thread, :finish}, thread, _data_key),
    do: ThreadKeys.finish(instance, thread)

  ## What opens

  @doc "Opens all that there is, and writes nothing."
  def verify(instance, options) do
    Telemetry.span([:kith, :keys, :verify], %{instance: instance.name}, fn ->
      counts = %{opened: 0, damaged: 0, locked: 0, outdated: 0}

      # Each in transactions of its own: traffic goes on.
      result =
        in_turn(@kinds, counts, fn kind, counts ->
          pages("", counts, options, fn place, counts ->
            with {:ok, rows} <- listed(instance, kind, place),
                 {:ok, counts} <- in_turn(rows, counts, &verify_key(instance, kind, &1, &2)),
                 do: {:ok, {rows, counts}}
          end)
        end)

      measured = with {:ok, counts} <- result, do: counts, else: (_ -> counts)
      {result, measured, Telemetry.outcome(result)}
    end)
  end

  # A key opens as it does for whoever would wrap it anew.
  defp verify_key(instance, kind, {id, _key} = row, counts) do
    with {:ok, found} when is_atom(found) <-
           answered(instance, kind, row, [dry_run: true], 4),
         {:ok, below} <- below(instance, kind, id) do
      outdated = if found == :rewrapped or of_another?(instance, kind, row), do: 1, else: 0
      {:ok, counts |> add(%{opened: 1, outdated: outdated}) |> add(below)}
    else
      {:ok, {:refused, _reason}} -> {:ok, add(counts, %{damaged: 1})}
      {:error, error} -> {:error, error}
    end
  end

  defp of_another?(instance, kind, {_id, key}) when kind in [:account, :thread, :previous],
    do: WrappedKey.of_another?(key, instance.options.cipher)

  defp of_another?(_instance, _kind, _row), do: false

  defp add(counts, more), do: Map.merge(counts, more, fn _, a, b -> a + b end)

  defp below(instance, :account, user) do
    check = &{KeyChange.check(instance, &1, user), []}

    with {:error, %Error{reason: :locked}} <-
           Instance.transaction(instance, check, timeout: :infinity),
         do: {:ok, %{locked: 1}}
  end

  defp below(instance, :thread, thread), do: ThreadKeys.check(instance, thread)
  defp below(_instance, _kind, _id), do: {:ok, %{}}
end
