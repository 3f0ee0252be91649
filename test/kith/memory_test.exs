defmodule Kith.MemoryTest do
  use Kith.Case, async: true

  # An instance on a database without a file.

  defp start_in_memory!(options \\ []),
    do: start_kith!(Keyword.merge([database: :memory], options))

  # What SQLite and the installation mark would leave behind, whoever expanded the atom to a path.
  defp left_behind,
    do: for(path <- Path.wildcard("*memory*", match_dot: true), do: path)

  test "does what one on a file does, and leaves no file" do
    kith = start_in_memory!(archive: true)
    converse!(kith, "anna", "ben")

    page = Kith.history!(kith, "ben", {:direct, "anna"})
    assert Enum.map(page.messages, & &1.plaintext) == ["hello", "hi", "well"]
    assert Kith.shred!(kith, {:direct, "anna", "ben"}) == 6
    assert Kith.history!(kith, "ben", {:direct, "anna"}).messages == []
    assert left_behind() == []
  end

  test "keeps what it has while only the keeper of its name is started anew" do
    kith = start_in_memory!()
    converse!(kith, "anna", "ben")
    [{keeper, _}] = Registry.lookup(Kith.Registry, {Kith.Instance, kith})
    monitor = Process.monitor(keeper)
    Process.exit(keeper, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^keeper, :killed}
    await_instance(kith, keeper)
    assert send!(kith, "anna", "ben", "still here") == "still here"
  end

  test "loses everything with the process that owns the database" do
    kith = start_in_memory!()
    register!(kith, ["anna"])
    [{database, _}] = Registry.lookup(Kith.Registry, {Kith.SQLite, kith})
    [{keeper, _}] = Registry.lookup(Kith.Registry, {Kith.Instance, kith})
    Process.exit(database, :kill)
    await_instance(kith, keeper)
    assert reason(Kith.prekey_count(kith, "anna")) == :not_registered
  end

  test "is another one after a restart" do
    kith = start_in_memory!(name: :in_memory_again)
    converse!(kith, "anna", "ben")
    stop_kith!(kith)
    start_in_memory!(name: :in_memory_again)
    assert reason(Kith.prekey_count(kith, "anna")) == :not_registered
    assert left_behind() == []
  end

  test "is maintained, and has no log to empty" do
    day = 86_400_000
    time = :atomics.new(1, [])
    :atomics.put(time, 1, 1_800_000_000_000)
    kith = start_in_memory!(clock: fn -> :atomics.get(time, 1) end)
    converse!(kith, "anna", "ben")
    :atomics.add(time, 1, 8 * day)

    # Deletes the prekeys that were used, after which the log of a file would be emptied.
    assert %{rotated: 2, prekeys: 2, failed: 0} = Kith.maintain!(kith)
    assert send!(kith, "anna", "ben", "well kept") == "well kept"
  end

  @tag :capture_log
  test "is restored when somebody says so" do
    kith = start_in_memory!()
    converse!(kith, "anna", "ben")
    assert Kith.restored!(kith) == %{sessions: 2}
    assert %{type: :prekey} = encrypt_one!(kith, "anna", "ben", "anew")
  end

  test "is a warning of the doctor" do
    assert {:database, :warning, sentence} = List.last(Kith.doctor!(start_in_memory!()))
    assert sentence =~ "lost when the instance ends"
    assert Enum.all?(Kith.doctor!(start_kith!()), fn {check, _, _} -> check != :database end)
  end

  defp await_instance(kith, before) do
    case Registry.lookup(Kith.Registry, {Kith.Instance, kith}) do
      [{keeper, _}] when keeper != before ->
        :ok

      _not_yet ->
        Process.sleep(5)
        await_instance(kith, before)
    end
  end
end
