defmodule Kith.ThreadKeys do
  @moduledoc false
  # Another data key for a thread. From then on messages are sealed under it, and those that are there follow, some in a
  # transaction, since there may be very many. Until all have, the thread keeps the key of before beside it, and each message
  # says which of the two it is under.

  alias Kith.{Error, Instance, Telemetry}
  alias Kith.KMS.Client
  alias Kith.Store.{ArchivedMessages, Keys}

  # Rows that are sealed anew in one native call and transaction.
  @batch 500

  @none %{resealed: 0, refused: 0}

  @doc """
  Gives a thread another data key. One that was interrupted is finished first. With the id of a data key, only if that is the present one
  still.
  """
  @spec rotate(Instance.t(), String.t(), nil | binary) ::
          {:ok, %{resealed: non_neg_integer, refused: non_neg_integer}} | {:error, Error.t()}
  def rotate(instance, thread, key_id \\ nil) do
    Telemetry.span([:kith, :archive, :reseal], %{instance: instance.name}, fn ->
      result =
        with {:ok, %{refused: 0} = counts} <- follow(instance, thread),
             :ok <- opens(instance, thread),
             {:ok, data_key} <- native(instance, :thread_create, [thread]),
             :ok <- Client.check_wrapped(instance, data_key),
             :ok <- replace(instance, thread, data_key, key_id),
             do: follow(instance, thread, counts)

      told(instance, result)
    end)
  end

  @doc "Finishes what was interrupted, and begins nothing."
  @spec finish(Instance.t(), String.t()) ::
          {:ok, %{resealed: non_neg_integer, refused: non_neg_integer}} | {:error, Error.t()}
  def finish(instance, thread) do
    Telemetry.span([:kith, :archive, :reseal], %{instance: instance.name}, fn ->
      told(instance, follow(instance, thread))
    end)
  end

  defp told(instance, result) do
    # Nothing of before stays beside it, as far as the database is ours.
    if match?({:ok, _}, result), do: Instance.empty_log(instance)
    counts = with {:ok, counts} <- result, do: counts, else: (_ -> @none)
    {result, counts, Telemetry.outcome(result)}
  end

  # A key that does not open now may open later, when its row or the key of the server is mended. It is not put aside for another
  # one.
  defp opens(instance, thread) do
    case Instance.transaction(instance, &{{:ok, ArchivedMessages.keys(&1, thread)}, []}) do
      {:ok, nil} ->
        no_such_thread()

      {:ok, {data_key, _previous}} ->
        key = {thread, data_key}
        with {:ok, []} <- native(instance, :thread_reseal, [key, key, []]), do: :ok

      {:error, error} ->
        {:error, error}
    end
  end

  defp no_such_thread,
    do: {:error, Error.new(:key_not_found, "there is no such thread")}

  defp replace(instance, thread, data_key, key_id) do
    result =
      Instance.transaction(instance, fn repo ->
        case ArchivedMessages.lock(repo, thread) do
          nil ->
            {no_such_thread(), []}

          {present, _previous} ->
            if key_id in [nil, Keys.key_id(present)] do
              now = Instance.now(instance)
              # Nothing where another node has begun meanwhile: that is as good.
              {{:ok, ArchivedMessages.replace_data_key(repo, thread, data_key, now)}, []}
            else
              {{:error, Error.new(:stale)}, []}
            end
        end
      end)

    with {:ok, _} <- result, do: :ok
  end

  # All messages that are not under the present key, page by page, and the key of before is forgotten. It stays where one does not
  # open: which key a message says it is under is not authenticated, and may be what is damaged.
  defp follow(instance, thread, counts \\ @none, before \\ nil) do
    with {:ok, %{refused: 0} = counts} <- pages(instance, thread, nil, counts),
         {:ok, left} <- forget(instance, thread) do
      case left do
        nil -> {:ok, counts}
        # Nobody has changed it, and this round could not.
        ^before -> {:ok, %{counts | refused: 1}}
        # Somebody had read the key before there was another one, and has written under it.
        row -> follow(instance, thread, counts, row)
      end
    end
  end

  defp pages(instance, thread, last, counts) do
    case Instance.transaction(instance, &{page(instance, &1, thread, last), []}) do
      {:ok, :done} ->
        {:ok, counts}

      {:ok, {last, written, refused}} ->
        counts = %{
          resealed: counts.resealed + written,
          refused: counts.refused + refused
        }

        pages(instance, thread, last, counts)

      {:error, error} ->
        {:error, error}
    end
  end

  defp page(instance, repo, thread, last) do
    with {data_key, previous} when previous != nil <- ArchivedMessages.keys(repo, thread),
         [_ | _] = rows <- others(repo, thread, data_key, ArchivedMessages.cursor(last), @batch),
         keys = [{thread, previous}, {thread, data_key}],
         {:ok, results} <- native(instance, :thread_reseal, keys ++ [sealed(rows)]) do
      # Nothing where it was deleted or sealed anew meanwhile; the next round finds it if it has to be done still.
      resealed =
        for {{owner, {_, _, owner_key_id, place, content}}, result} <- Enum.zip(rows, results),
            do: {owner, place, content, owner_key_id, result}

      {written, refused} = ArchivedMessages.put_contents(repo, resealed)
      {:ok, {List.last(rows), written, refused}}
    else
      {:error, error} -> {:error, error}
      _no_thread_or_no_key_or_no_row -> {:ok, :done}
    end
  end

  defp others(repo, thread, data_key, cursor, limit),
    do: ArchivedMessages.in_thread(repo, thread, Keys.key_id(data_key), cursor, limit)

  defp sealed(rows),
    do: for({owner, {_, _, _, place, content}} <- rows, do: {owner, place, content})

  # Nothing when the thread has one key now, or a message that is not under it.
  defp forget(instance, thread) do
    Instance.transaction(instance, fn repo ->
      with {data_key, previous} when previous != nil <- ArchivedMessages.lock(repo, thread),
           [] <- others(repo, thread, data_key, ArchivedMessages.cursor(nil), 1) do
        ArchivedMessages.forget_previous(repo, thread)
        {{:ok, nil}, []}
      else
        [row] -> {{:ok, row}, []}
        _no_thread_or_one_key -> {{:ok, nil}, []}
      end
    end)
  end

  @doc "Opens the messages of a thread and writes nothing: how many opened and how many did not."
  @spec check(Instance.t(), String.t()) ::
          {:ok, %{opened: non_neg_integer, damaged: non_neg_integer}} | {:error, Error.t()}
  def check(instance, thread), do: check(instance, thread, nil, %{opened: 0, damaged: 0})

  defp check(instance, thread, last, counts) do
    case Instance.transaction(instance, &{{:ok, check_page(instance, &1, thread, last)}, []}) do
      {:ok, {_, _, nil}} ->
        {:ok, counts}

      {:ok, {opened, damaged, last}} ->
        counts = %{opened: counts.opened + opened, damaged: counts.damaged + damaged}
        check(instance, thread, last, counts)

      {:error, error} ->
        {:error, error}
    end
  end

  defp check_page(instance, repo, thread, last) do
    rows = ArchivedMessages.in_thread(repo, thread, nil, ArchivedMessages.cursor(last), @batch)

    opened =
      rows
      |> Enum.group_by(fn {_owner, {_, data_key, _, _, _}} -> data_key end)
      |> Enum.map(fn {data_key, rows} -> opened(instance, {thread, data_key}, rows) end)
      |> Enum.sum()

    {opened, length(rows) - opened, List.last(rows)}
  end

  defp opened(instance, key, rows) do
    case Instance.sealed(instance, :thread_reseal, [key, key, sealed(rows)]) do
      {:ok, results} -> Enum.count(results, &match?({:ok, _}, &1))
      {:error, reason} when reason in [:panic, :unavailable] -> raise Error.new(reason)
      {:error, _} -> 0
    end
  end

  defp native(instance, function, arguments),
    do: Error.from_native(Instance.sealed(instance, function, arguments))
end
