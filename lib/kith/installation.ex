defmodule Kith.Installation do
  @moduledoc false
  # Tells a database that was restored, copied or failed over from the one that was here before.
  #
  # A ratchet that goes on from an older state uses message keys a second time. The state itself cannot say that it is
  # old. What can is the database around it, compared with what was remembered of it:
  #
  #   * SQLite: a random mark in the database and beside it, in a file of its own, changed at every start, at every pass
  #     of maintenance and at every orderly stop. A database that comes back without its mark, or with an older one, is
  #     another one.
  #   * PostgreSQL: the cluster, its timeline, which every promotion and every recovery to a point in time begins anew,
  #     and the object id of a table, which every load of a dump gives anew. The timeline is looked at in each fan-out.
  #
  # docs/guides/backups.md says what neither sees.

  require Logger

  alias Kith.{Error, Instance, Telemetry}
  alias Kith.Store.{Prekeys, Repo, Sessions}

  @doc """
  Looks at the database of an instance that starts. `:restored` when it is not the one that was here before, `:unknown`
  when it does not say. Returns the instance that watches it from then on.
  """
  @spec check(Instance.t()) ::
          {:ok, :new | :same | :restored | :unknown, Instance.t()} | {:error, Error.t()}
  def check(instance) do
    case Repo.dialect(instance.repo) do
      :sqlite -> with {:ok, found} <- check_file(instance), do: {:ok, found, instance}
      :postgres -> check_cluster(instance)
    end
  end

  @doc "What a fan-out asks the database beside the devices: its timeline and its mark, where it tells."
  @spec question(Instance.t()) :: String.t()
  def question(%{timeline?: false}), do: "NULL"

  def question(_instance),
    do: "#{Repo.timeline()} || '/' || (SELECT mark FROM kith.signal_installation WHERE id = 1)"

  @doc "Changes the mark of an embedded database, so that a copy made before is known to be older."
  @spec refresh(Instance.t()) :: :ok
  def refresh(%{repo: repo} = instance) do
    with :sqlite <- Repo.dialect(repo), {:ok, _} <- check_file(instance), do: :ok
    :ok
  end

  @doc """
  Makes the next message of every session start a new one, and hands out no one-time prekey that may have been handed
  out before: what an operator asks for who knows that the database is older than what was sent.
  """
  @spec restored(Instance.t()) :: {:ok, %{sessions: non_neg_integer}} | {:error, Error.t()}
  def restored(instance) do
    Instance.transaction(instance, fn repo ->
      {sessions, records} = start_over(instance, repo, Instance.now(instance))
      {{:ok, %{sessions: sessions}}, records}
    end)
  end

  @doc """
  The same look in the transaction of a fan-out, before it reads its sessions.

  `said` came with a row that was read anyway. Nothing of it is remembered here: what this transaction has marked may be
  rolled back yet, and the next database may have the number of a timeline that this one had.
  """
  @spec watch(Instance.t(), Repo.repo(), nil | String.t()) :: [Telemetry.recorded()]
  def watch(%{timeline?: false}, _repo, _said), do: []

  def watch(instance, repo, said) do
    case said && String.split(said, "/") do
      [timeline, _cluster, timeline, _table] -> []
      _another_or_none -> instance |> compare(repo, Instance.now(instance)) |> elem(1)
    end
  end

  # A role may be forbidden to ask.
  defp check_cluster(instance) do
    case Instance.transaction(instance, &{{:ok, present(&1)}, []}) do
      {:ok, _} ->
        with {:ok, found} <-
               Instance.transaction(instance, &compare(instance, &1, Instance.now(instance))),
             do: {:ok, found, %{instance | timeline?: true}}

      {:error, error} ->
        unknown(Exception.message(error))
        {:ok, :unknown, instance}
    end
  end

  defp unknown(why), do: Logger.warning("a database that was restored cannot be told: " <> why)

  # PostgreSQL. One node at a time: the others then find the new mark.
  defp compare(instance, repo, now) do
    present = present(repo)

    case recorded(repo) do
      ^present ->
        {{:ok, :same}, []}

      nil ->
        put(repo, present, now)
        {{:ok, :new}, []}

      _another ->
        put(repo, present, now)
        {_sessions, records} = start_over(instance, repo, now)
        {{:ok, :restored}, records}
    end
  end

  defp present(repo) do
    sql = """
    SELECT CAST((SELECT system_identifier FROM pg_control_system()) AS TEXT),
      #{Repo.timeline()}, CAST('kith.signal_sessions'::regclass::oid AS TEXT)
    """

    [row] = Repo.rows(repo, sql, [])
    Enum.join(row, "/")
  end

  defp recorded(repo) do
    sql = "SELECT mark FROM kith.signal_installation WHERE id = 1"
    Repo.lock_rows(repo, sql, [])
    with [[mark]] <- Repo.rows(repo, sql, []), do: mark, else: ([] -> nil)
  end

  defp put(repo, mark, now) do
    sql = """
    INSERT INTO kith.signal_installation (id, mark, seen_at) VALUES (1, $1, $2)
    ON CONFLICT (id) DO UPDATE SET mark = excluded.mark, seen_at = excluded.seen_at
    """

    Repo.execute(repo, sql, [mark, now])
  end

  # A database in memory is never another one: it ends with those who could have written from it.
  defp check_file(%{options: %{database: :memory}}), do: {:ok, :new}

  # SQLite. The file names the mark of before and the next one while the database changes from one to the other.
  defp check_file(%{options: %{database: database}} = instance) do
    path = database <> ".mark"
    next = Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)

    with {:ok, remembered} <- read(path),
         {:ok, recorded} <- Instance.transaction(instance, &{{:ok, recorded(&1)}, []}),
         :ok <- write(path, Enum.reject([recorded, next], &is_nil/1)),
         {:ok, found} <-
           Instance.transaction(instance, &change(instance, &1, recorded, remembered, next)),
         :ok <- write(path, [next]) do
      {:ok, found}
    else
      {:error, %Error{} = error} ->
        {:error, error}

      {:error, reason} ->
        unknown("#{Path.basename(path)} #{:file.format_error(reason)}")
        {:ok, :unknown}
    end
  end

  defp change(instance, repo, recorded, remembered, next) do
    now = Instance.now(instance)
    put(repo, next, now)

    cond do
      recorded == nil ->
        {{:ok, :new}, []}

      recorded in remembered ->
        {{:ok, :same}, []}

      true ->
        {_sessions, records} = start_over(instance, repo, now)
        {{:ok, :restored}, records}
    end
  end

  defp read(path) do
    case File.read(path) do
      {:ok, text} -> {:ok, String.split(text)}
      {:error, :enoent} -> {:ok, []}
      {:error, reason} -> {:error, reason}
    end
  end

  # In its place by a rename, and on the disk before the database goes on.
  defp write(path, marks) do
    with {:ok, file} <- :file.open(path <> ".new", [:write, :raw]),
         :ok <- :file.write(file, Enum.map(marks, &[&1, ?\n])),
         :ok <- :file.sync(file),
         :ok <- :file.close(file),
         do: :file.rename(path <> ".new", path)
  end

  defp start_over(instance, repo, now) do
    sessions = Sessions.renew_all(repo, now)
    Prekeys.withdraw_all(repo, now)

    Logger.warning(
      "Kith's database was restored, copied or failed over: #{sessions} sessions start anew with their next message"
    )

    event = [:kith, :installation, :restored]

    record =
      {event, %{system_time: System.system_time(), sessions: sessions},
       %{instance: instance.name}}

    {sessions, [record]}
  end
end
