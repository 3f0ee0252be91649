defmodule Kith.MessageArchivePostgresTest do
  # What only PostgreSQL has: those who write under a key beside those who delete it.
  use Kith.Case, async: false
  @moduletag :postgres
  @moduletag store: :postgres

  alias Kith.{Instance, MessageArchive}

  @writers 8
  @rounds 60

  setup do
    kith = start_kith!(archive: true, max_attempts: 100)
    users = for n <- 1..@writers, do: "user #{n}"
    register!(kith, users)
    %{kith: kith, users: users}
  end

  # A note each: nobody waits for another's session.
  defp write(kith, users, options) do
    for user <- users do
      Task.async(fn ->
        for n <- 1..@rounds, do: Kith.encrypt!(kith, user, user, "#{n}", options)
      end)
    end
  end

  defp while_running(tasks, fun) do
    if Enum.all?(tasks, &Process.alive?(&1.pid)) do
      fun.()
      while_running(tasks, fun)
    end
  end

  # Every message there is opens, and has a key.
  defp opened(kith, users, thread) do
    for user <- users,
        message <- Kith.history!(kith, user, thread, limit: 1_000).messages do
      assert message.error == nil
      message.plaintext
    end
  end

  test "of many who begin a thread at once all use one key", %{kith: kith, users: users} do
    for round <- 1..10 do
      users
      |> Enum.map(&Task.async(fn -> Kith.encrypt!(kith, &1, &1, "x", thread: "#{round}") end))
      |> Task.await_many()

      assert length(opened(kith, users, "#{round}")) == @writers
    end

    assert [[10]] = sql!(kith, "SELECT COUNT(*) FROM signal_threads")
  end

  test "a thread that is shredded while many write in it loses what was written, and never the key of what was not",
       %{kith: kith, users: users} do
    tasks = write(kith, users, thread: "t")
    shredded = :counters.new(1, [])
    while_running(tasks, fn -> :counters.add(shredded, 1, Kith.shred!(kith, "t")) end)
    Task.await_many(tasks, 60_000)
    left = length(opened(kith, users, "t"))
    assert left + :counters.get(shredded, 1) == @writers * @rounds
    assert :counters.get(shredded, 1) > 0
  end

  test "a key goes with the last message only, while others write under it", %{
    kith: kith,
    users: users
  } do
    instance = Instance.fetch!(kith)
    tasks = write(kith, users, thread: "t")

    while_running(tasks, fn ->
      # What there was is over, and so may be the key.
      sql!(kith, "UPDATE signal_archived_messages SET expires_at = 1")

      {:ok, _} =
        Instance.transaction(instance, fn repo ->
          {{:ok, MessageArchive.purge(instance, repo, 2, 1_000)}, []}
        end)
    end)

    Task.await_many(tasks, 60_000)
    sql!(kith, "DELETE FROM signal_archived_messages WHERE expires_at IS NOT NULL")
    opened(kith, users, "t")

    assert [[0]] =
             sql!(kith, """
             SELECT COUNT(*) FROM signal_archived_messages
             WHERE thread_id NOT IN (SELECT thread_id FROM signal_threads)
             """)
  end

  test "two who purge at once delete everything once", %{kith: kith, users: [user | _]} do
    instance = Instance.fetch!(kith)
    for n <- 1..100, do: Kith.encrypt!(kith, user, user, "#{n}", thread: "#{rem(n, 7)}")
    sql!(kith, "UPDATE signal_archived_messages SET expires_at = 1")

    purged =
      1..10
      |> Enum.map(fn _ ->
        Task.async(fn ->
          {:ok, count} =
            Instance.transaction(instance, fn repo ->
              {{:ok, MessageArchive.purge(instance, repo, 2, 20)}, []}
            end)

          count
        end)
      end)
      |> Task.await_many()
      |> Enum.sum()

    assert [[left]] = sql!(kith, "SELECT COUNT(*) FROM signal_archived_messages")
    assert purged + left == 100
    assert purged >= 20
  end
end
