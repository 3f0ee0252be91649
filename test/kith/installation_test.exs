defmodule Kith.InstallationTest do
  use Kith.Case, async: true

  import ExUnit.CaptureLog

  # One side of every conversation here is in a database that is restored, the other in one that is not.
  setup do
    options = defaults()
    kith = start_kith!(options)
    other = start_kith!()
    Kith.register!(kith, "anna")
    Kith.register!(other, "ben")
    publish(kith, "anna", other)
    publish(other, "ben", kith)
    state = %{kith: kith, other: other, options: options}
    write(state, "hello")
    answer(state, "hi")
    assert %{type: :message} = write(state, "well")
    state
  end

  describe "an embedded database" do
    test "that is started again goes on", %{kith: kith} = state do
      for _ <- 1..3 do
        restart(state)
        # No session starts anew. The log is everybody's.
        assert %{type: :message} = write(state, "again")
      end

      assert Kith.prekey_count!(kith, "anna") == 99
    end

    test "that was killed goes on", state do
      [{keeper, _}] = Registry.lookup(Kith.Registry, {Kith.Instance, state.kith})
      Process.exit(keeper, :kill)
      wait_for(state.kith, keeper)
      assert %{type: :message} = write(state, "again")
    end

    test "restored from a backup of before the last start uses no key twice", state do
      stop_kith!(state.kith)
      backup(state)
      start(state)
      used = for n <- 1..5, do: header(write(state, "lost #{n}"))
      stop_kith!(state.kith)
      restore(state)

      assert capture_log(fn -> start(state) end) =~ "1 sessions start anew"
      envelope = write(state, "after the disaster")
      assert envelope.type == :prekey
      refute header(envelope) in used
      # And from then on all is as ever.
      answer(state, "good to hear")
      assert %{type: :message} = write(state, "yes")
    end

    test "restored from a backup made while it ran is known too", state do
      sql!(state.kith, "VACUUM INTO $1", [copy(state)])
      write(state, "lost")
      stop_kith!(state.kith)
      restore(state)
      assert capture_log(fn -> start(state) end) =~ "start anew"
      assert %{type: :prekey} = write(state, "after")
    end

    test "moved to another place without its mark is taken for a copy", state do
      stop_kith!(state.kith)
      File.rm!(state.options[:database] <> ".mark")
      assert capture_log(fn -> start(state) end) =~ "start anew"
      assert %{type: :prekey} = write(state, "after")
    end

    test "sends nothing more in a session that a message on its way brings back", state do
      stop_kith!(state.kith)
      backup(state)
      start(state)
      used = for n <- 1..3, do: header(write(state, "lost #{n}"))
      late = for n <- 1..2, do: encrypt_one!(state.other, "ben", "anna", "late #{n}")
      stop_kith!(state.kith)
      restore(state)
      capture_log(fn -> start(state) end)

      # The old session is put away for a new one, and comes back with what ben wrote in it.
      first = write(state, "after")
      assert Kith.decrypt!(state.kith, "anna", hd(late)) == "late 1"
      assert %{type: :prekey} = second = write(state, "and after that")
      assert Kith.decrypt!(state.kith, "anna", List.last(late)) == "late 2"
      third = write(state, "and that")
      later = Enum.map([first, second, third], &header/1)
      assert Enum.uniq(used ++ later) == used ++ later
      answer(state, "enough")
      assert %{type: :message} = write(state, "enough")
    end

    test "hands out no prekey again that it may have handed out", %{kith: kith} = state do
      stop_kith!(kith)
      backup(state)
      start(state)
      handed_out = Kith.pre_key_bundle!(kith, "anna")
      stop_kith!(kith)
      restore(state)
      capture_log(fn -> start(state) end)
      assert Kith.prekey_count!(kith, "anna") == 0
      Kith.replenish!(kith, "anna")
      assert Kith.prekey_count!(kith, "anna") == 100
      bundle = Kith.pre_key_bundle!(kith, "anna")
      assert abs(bundle.prekey.id - handed_out.prekey.id) > 1_000
      # What was made from the one of before still opens.
      Kith.publish_bundle!(state.other, "anna", %{handed_out | prekeys: [handed_out.prekey]})
      Kith.reset_session!(state.other, "ben", "anna")
      assert %{type: :prekey} = answer(state, "still here")
    end

    test "between two marks is the same", state do
      path = state.options[:database] <> ".mark"
      stop_kith!(state.kith)
      mark = File.read!(path)
      # It was killed before the database changed to the next one.
      File.write!(path, mark <> "0123456789abcdef0123456789abcdef\n")
      start(state)
      assert %{type: :message} = write(state, "again")
    end

    test "without a place for its mark says so and goes on", state do
      path = state.options[:database] <> ".mark"
      stop_kith!(state.kith)
      File.rm!(path)
      File.mkdir!(path)
      assert capture_log(fn -> start(state) end) =~ "cannot be told"
      assert %{type: :message} = write(state, "again")
    end
  end

  test "an operator says that the database is older", %{kith: kith} = state do
    assert capture_log(fn -> assert Kith.restored!(kith) == %{sessions: 1} end) =~ "start anew"
    assert %{type: :prekey} = write(state, "after")
    assert Kith.restored!(kith) == %{sessions: 1}
  end

  test "the state of one session put back alone is told by its braid", %{kith: kith} = state do
    columns = "generation, state, identity"
    where = "WHERE user_id = 'anna' AND peer_id = 'ben'"

    [[generation, sealed, identity]] =
      sql!(kith, "SELECT #{columns} FROM signal_sessions #{where}")

    [[braid]] = sql!(kith, "SELECT braid FROM signal_braids #{where}")

    Enum.find(1..50, fn _ ->
      answer(state, "ping")
      write(state, "pong")
      [[braid]] != sql!(kith, "SELECT braid FROM signal_braids #{where}")
    end)

    sql!(
      kith,
      "UPDATE signal_sessions SET generation = $1, state = $2, identity = $3 #{where}",
      [generation, {:blob, sealed}, {:blob, identity}]
    )

    assert reason(Kith.encrypt(kith, "anna", "ben", "x")) == :corrupted_state
    assert %{type: :prekey} = write(state, "anew")
  end

  defp publish(from, user, to),
    do: Kith.publish_bundle!(to, user, Kith.pre_key_bundle!(from, user))

  defp write(%{kith: kith, other: other}, text) do
    # The other side has its keys there, and here is the relay of them.
    publish(other, "ben", kith)
    envelope = encrypt_one!(kith, "anna", "ben", text)
    assert Kith.decrypt!(other, "ben", envelope) == text
    envelope
  end

  defp answer(%{kith: kith, other: other}, text) do
    envelope = encrypt_one!(other, "ben", "anna", text)
    assert Kith.decrypt!(kith, "anna", envelope) == text
    envelope
  end

  defp start(state), do: start_kith!(Keyword.put(state.options, :name, state.kith))

  defp restart(state) do
    stop_kith!(state.kith)
    start(state)
  end

  defp wait_for(name, before) do
    case Registry.lookup(Kith.Registry, {Kith.Instance, name}) do
      [{keeper, _}] when keeper != before -> :ok
      _ -> wait_for(name, before)
    end
  end

  defp copy(state), do: state.options[:database] <> ".backup"
  defp backup(state), do: File.cp!(state.options[:database], copy(state))

  # The database, and not what lies beside it.
  defp restore(state) do
    for suffix <- ["-wal", "-shm"], do: File.rm(state.options[:database] <> suffix)
    File.cp!(copy(state), state.options[:database])
  end
end
