defmodule Kith.Telemetry.LogTest do
  # Handlers are global.
  use Kith.Case, async: false
  use Kith.Test.Optional, :telemetry

  import ExUnit.CaptureLog

  alias Kith.{Native, Telemetry}

  @compile {:no_warn_undefined, :telemetry}

  setup do
    on_exit(fn -> Telemetry.detach_logger() end)
    %{kith: start_kith!(archive: true)}
  end

  # The lines of an instance while a function runs, without its name: "[level] text".
  defp lines(kith, fun) do
    log = capture_log(fun)

    for line <- String.split(log, "\n"),
        [level, text] <- [String.split(line, "Kith #{inspect(kith)}: ", parts: 2)],
        do: String.trim(Regex.replace(~r/^.*(\[\w+\]).*$/, level, "\\1 ") <> plain(text))
  end

  defp plain(text), do: Regex.replace(~r/\e\[\d+m/, text, "")

  # Durations are what they are.
  defp without_figures(lines), do: Enum.map(lines, &Regex.replace(~r/\d+\.\d/, &1, "N"))

  test "a recovery key that is unwrapped is a warning, and so is one that is not", %{kith: kith} do
    :ok = Telemetry.attach_logger(user_ids: true)
    register!(kith, ["anna"])
    {:ok, key} = Kith.Backup.RecoveryKey.generate()
    escrow = {"escrow", {:key, <<7::256>>}}

    unwrap = fn ->
      Kith.Backup.Escrow.unwrap(kith, "anna", escrow, by: "carla", purpose: "why")
    end

    assert [
             ~s|[warning] security: a recovery key in escrow was asked for and refused (no_consent) ("anna")|
           ] = lines(kith, unwrap)

    {:ok, _} = Kith.Backup.Escrow.deposit(kith, "anna", key, escrow, by: "anna", text: "1")

    assert [~s|[warning] security: a recovery key in escrow was unwrapped ("anna")|] =
             lines(kith, unwrap)

    assert [exported, stopped, restored, refused] =
             lines(kith, fn ->
               {:ok, backup} = Kith.Backup.export(kith, "anna", key)
               backup = Enum.to_list(backup)
               {:ok, other} = Kith.Backup.export(kith, "anna", key)
               Enum.take(other, 1)
               {:ok, _} = Kith.Backup.restore(kith, "anna", backup, key, replace: true)
               {:error, _} = Kith.Backup.restore(kith, "anna", backup, key)
             end)

    assert exported =~ ~r/\[info\] an account was backed up: \d+ bytes, 0 messages \("anna"\)/
    assert stopped =~ "[info] an account was not backed up (not_read_to_its_end)"
    assert restored =~ "[info] an account was restored: "
    assert refused =~ "[info] an account was not restored (already_registered)"
  end

  test "what matters is a line, at its level, and what goes well is none", %{kith: kith} do
    :ok = Telemetry.attach_logger()
    assert [] = lines(kith, fn -> converse!(kith, "anna", "ben") end)
    envelope = encrypt_one!(kith, "anna", "ben", "hello")
    tampered = %{envelope | body: corrupt(envelope.body, 20)}

    assert ["[warning] security: decrypt answered tampered"] =
             lines(kith, fn -> Kith.decrypt(kith, "ben", tampered) end)

    Kith.decrypt!(kith, "ben", envelope)

    assert ["[info] a message was delivered again (duplicate), and answered out of the archive"] =
             lines(kith, fn -> Kith.decrypt!(kith, "ben", envelope) end)

    assert ["[error] the engine panicked in session_encrypt; nothing was changed"] =
             lines(kith, fn ->
               :ok = Native.panic_arm("session_encrypt", 1)
               {:error, _} = Kith.encrypt(kith, "anna", "ben", "hello")
             end)

    register!(kith, ["cleo"])
    sql!(kith, "DELETE FROM signal_prekeys WHERE kind = 'one_time'")

    assert ["[warning] a session begins without a one-time prekey, as there is none left"] =
             lines(kith, fn -> encrypt_one!(kith, "anna", "cleo", "hello") end)

    Kith.replenish!(kith, "ben")
    second = encrypt_one!(kith, "anna", "ben", "hello")
    Kith.delete!(kith, "ben", "anna")

    assert [
             "[info] a message that did not open (session_not_found) was reported to its sender",
             "[info] a message was reported not to open: 1 sent again, and the next message starts a new session"
           ] =
             lines(kith, fn ->
               [report] = Kith.recover!(kith, "ben", second, Kith.Error.new(:session_not_found))
               Kith.resend!(kith, "anna", report)
             end)

    sql!(kith, "ALTER TABLE signal_identity_keys RENAME TO keys_of_before")

    assert [
             "[error] encrypt failed: the database did, after N ms",
             "[error] decrypt failed: the database did, after N ms",
             "[error] encrypt_group failed: the database did, after N ms"
           ] =
             without_figures(
               lines(kith, fn ->
                 {:error, _} = Kith.encrypt(kith, "anna", "ben", "hello")
                 {:error, _} = Kith.decrypt(kith, "ben", second)
                 {:error, _} = Kith.encrypt_group(kith, "anna", ["ben"], "hello", thread: "t")
               end)
             )

    assert [] = lines(kith, fn -> Kith.health!(kith) end)
    sql!(kith, "ALTER TABLE signal_accounts RENAME TO accounts_of_before")

    assert ["[error] the database does not answer: storage, after N ms"] =
             without_figures(lines(kith, fn -> Kith.health!(kith) end))
  end

  test "a call that takes its time is slow, a group is not", %{kith: kith} do
    :ok = Telemetry.attach_logger(slow: 1)
    duration = System.convert_time_unit(1_500, :microsecond, :native)
    ok = %{instance: kith, result: :ok, reason: nil}

    assert ["[warning] slow: encrypt took 1.5 ms", "[warning] slow: decrypt took 1.5 ms"] =
             lines(kith, fn ->
               for event <- [[:session, :encrypt], [:session, :decrypt], [:group, :encrypt]],
                   do: :telemetry.execute([:kith | event] ++ [:stop], %{duration: duration}, ok)

               quick = System.convert_time_unit(999, :microsecond, :native)
               :telemetry.execute([:kith, :session, :encrypt, :stop], %{duration: quick}, ok)
             end)
  end

  test "at :debug every call is a line, and at :error only what is one", %{kith: kith} do
    register!(kith, ~w(anna ben))
    :ok = Telemetry.attach_logger(level: :debug)

    assert [
             "[debug] 1 sessions were begun, as the initiator",
             "[debug] encrypt ok in N ms",
             "[debug] 1 sessions were begun, as the responder",
             "[debug] decrypt ok in N ms"
           ] = without_figures(lines(kith, fn -> send!(kith, "anna", "ben", "hello") end))

    :ok = Telemetry.detach_logger()
    :ok = Telemetry.attach_logger(level: :error)
    envelope = encrypt_one!(kith, "anna", "ben", "hello")

    assert [] =
             lines(kith, fn ->
               {:error, _} =
                 Kith.decrypt(kith, "ben", %{envelope | body: corrupt(envelope.body, 20)})
             end)

    # Nothing is listened to that would not be logged.
    handlers =
      for %{id: {Telemetry.Log, _}, event_name: event} <- :telemetry.list_handlers([:kith]),
          do: event

    refute [:kith, :archive, :redelivery] in handlers
    assert [:kith, :nif, :panic] in handlers
  end

  test "no user is named unless asked for, and then no name ends a line", %{kith: kith} do
    name = "anna\n[error] forged"
    register!(kith, [name, "ben"])
    :ok = Telemetry.attach_logger(level: :debug)
    quiet = lines(kith, fn -> send!(kith, name, "ben", "hello") end)
    refute Enum.any?(quiet, &(&1 =~ "anna" or &1 =~ "ben"))
    assert length(quiet) == 4

    :ok = Telemetry.detach_logger()
    :ok = Telemetry.attach_logger(level: :debug, user_ids: true)
    log = capture_log(fn -> send!(kith, name, "ben", "hello") end)
    assert log =~ ~S|("anna\n[error] forged"/1, the other side "ben")|
    assert log =~ ~S|("ben"/1, the other side "anna\n[error] forged"/1)|
    refute log =~ "\n[error] forged"
  end

  test "one instance alone, attached once, detached once", %{kith: kith} do
    other = start_kith!()
    :ok = Telemetry.attach_logger(instance: kith, level: :debug)
    assert {:error, :already_exists} = Telemetry.attach_logger(instance: kith)
    assert [] = lines(other, fn -> converse!(other, "anna", "ben") end)
    assert [_ | _] = lines(kith, fn -> converse!(kith, "anna", "ben") end)
    assert {:error, :not_found} = Telemetry.detach_logger()
    assert :ok = Telemetry.detach_logger(instance: kith)
    assert {:error, :not_found} = Telemetry.detach_logger(instance: kith)
    assert [] = lines(kith, fn -> Kith.decrypt(kith, "ben", "junk") end)
  end

  test "an event with nothing in it that is expected neither raises nor detaches it", %{
    kith: kith
  } do
    :ok = Telemetry.attach_logger(level: :debug)

    attached = fn ->
      for(
        %{id: {Telemetry.Log, _}, event_name: event} <- :telemetry.list_handlers([:kith]),
        do: event
      )
    end

    before = attached.()

    for event <- before,
        metadata <- [%{}, %{instance: kith}],
        do: :telemetry.execute(event, %{}, metadata)

    assert attached.() == before
  end

  test "wrong options are refused" do
    for options <- [[level: :notice], [slow: 0], [user_ids: nil], [slowly: 1], :all],
        do: assert_raise(ArgumentError, fn -> Telemetry.attach_logger(options) end)
  end
end
