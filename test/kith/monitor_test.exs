defmodule Kith.MonitorTest do
  # Handlers are global, and panics are armed.
  use Kith.Case, async: false
  use Kith.Test.Optional, :telemetry

  import ExUnit.CaptureLog

  alias Kith.{Monitor, Native, Telemetry}
  alias Kith.Monitor.{Alert, Counts}

  @compile {:no_warn_undefined, :telemetry}

  # Nothing happens by itself, and what is over is over at once.
  @quiet [health_interval: :off, evaluation_interval: 3_600, clear_after: 0, log: false]

  setup do
    %{kith: start_kith!(archive: true)}
  end

  defp start_monitor!(options) do
    options = Keyword.merge(@quiet, options)
    name = Keyword.get(options, :name, options[:instance])
    {start_supervised!({Monitor, options}, id: {Monitor, name}), name}
  end

  defp handlers,
    do: for(%{id: {Monitor, pid}} <- :telemetry.list_handlers([:kith]), uniq: true, do: pid)

  # A rule that fires while a switch is on.
  defp switched(name, settings \\ []) do
    switch = :atomics.new(1, [])
    check = fn _snapshot -> if :atomics.get(switch, 1) == 1, do: "#{name} is on" end
    {switch, {name, [check: check] ++ settings}}
  end

  defp on(switch), do: :atomics.put(switch, 1, 1)
  defp off(switch), do: :atomics.put(switch, 1, 0)

  test "a conversation is counted, of this instance and no other", %{kith: kith} do
    start_monitor!(instance: kith)
    other = start_kith!(archive: false)
    start_monitor!(instance: other)
    converse!(kith, "anna", "ben")
    register!(kith, ["cleo"])
    envelope = encrypt_one!(kith, "anna", "ben", "again")
    Kith.decrypt!(kith, "ben", envelope)
    {:error, _} = Kith.decrypt(kith, "anna", envelope)
    Kith.decrypt!(kith, "ben", envelope)

    [{_, {:ok, _}}, {_, {:error, _}}] =
      Kith.encrypt_group!(kith, "anna", ~w(cleo nobody), "hello", thread: "t")

    snapshot = Monitor.snapshot(kith)
    operations = Map.new(snapshot.operations, fn {name, %{window: window}} -> {name, window} end)
    assert %{count: 4, errors: 0} = operations.encrypt
    assert %{count: 6, errors: 1, reasons: %{malformed: 1}} = operations.decrypt
    assert %{count: 1, errors: 0} = operations.group_encrypt
    assert %{count: 3, errors: 0} = operations.establish

    for {_, window} <- operations,
        do: assert(0 < window.p50 and window.p50 <= window.p99 and window.p99 <= window.max)

    assert %{total: 1} = snapshot.counts.redeliveries
    assert %{recipients: %{total: 2}, failed_recipients: %{total: 1}} = snapshot.counts
    assert snapshot.instance == kith

    assert %{operations: %{encrypt: %{total: %{count: 0}}}} = Monitor.snapshot(other)
    assert [] = Monitor.alerts(kith)
  end

  test "a pass of maintenance tells of the stock", %{kith: kith} do
    start_monitor!(instance: kith)
    register!(kith, ~w(anna ben))
    Kith.maintain!(kith)

    assert %{local: %{devices: 2, low: 0, one_time: 200, low_left: 0}} =
             Monitor.snapshot(kith).prekeys

    assert %{published: %{devices: 0}} = Monitor.snapshot(kith).prekeys
  end

  test "a session begun without a one-time prekey is an alert", %{kith: kith} do
    start_monitor!(instance: kith)
    register!(kith, ~w(anna ben))
    sql!(kith, "DELETE FROM signal_prekeys WHERE kind = 'one_time'")
    encrypt_one!(kith, "anna", "ben", "hello")
    assert [%Alert{rule: :prekeys_exhausted, severity: :warning}] = Monitor.alerts(kith)
  end

  test "a panic, a database that was restored and one that fails are alerts at once", %{
    kith: kith
  } do
    test = self()
    start_monitor!(instance: kith, on_alert: &send(test, &1), evaluation_interval: 3_600)
    converse!(kith, "anna", "ben")

    :ok = Native.panic_arm("session_encrypt", 1)
    {:error, %{reason: :panic}} = Kith.encrypt(kith, "anna", "ben", "hello")

    assert_receive %Alert{rule: :panic, severity: :critical, state: :raised, instance: ^kith},
                   5_000

    Kith.restored!(kith)
    assert_receive %Alert{rule: :restored, severity: :warning, state: :raised}, 5_000

    sql!(kith, "ALTER TABLE signal_accounts RENAME TO accounts_of_before")
    Kith.health!(kith)
    assert_receive %Alert{rule: :store_unhealthy, severity: :critical, state: :raised}, 5_000
    sql!(kith, "ALTER TABLE accounts_of_before RENAME TO signal_accounts")
    Kith.health!(kith)
    assert_receive %Alert{rule: :store_unhealthy, state: :cleared}, 5_000
    assert [:panic, :restored] = for(alert <- Monitor.alerts(kith), do: alert.rule)
  end

  test "an alert is raised once, has the figures of now, and is cleared once", %{kith: kith} do
    test = self()
    events = [[:kith, :alert, :raised], [:kith, :alert, :cleared]]
    :ok = :telemetry.attach_many(test, events, &__MODULE__.forward/4, test)
    on_exit(fn -> :telemetry.detach(test) end)
    figure = :atomics.new(1, [])

    check = fn _ ->
      with figure when figure > 0 <- :atomics.get(figure, 1),
           do: "it is #{figure}",
           else: (_ -> nil)
    end

    start_monitor!(
      instance: kith,
      rules: [own: [check: check]],
      on_alert: &send(test, {:given, &1}),
      log: true
    )

    raised =
      capture_log(fn ->
        assert [] = Monitor.alerts(kith)
        :atomics.put(figure, 1, 1)

        assert [%Alert{rule: :own, message: "it is 1", state: :raised, since: since}] =
                 Monitor.alerts(kith)

        :atomics.put(figure, 1, 2)
        assert [%Alert{message: "it is 2", since: ^since}] = Monitor.alerts(kith)
        assert_receive {:given, %Alert{state: :raised, message: "it is 1", since: ^since}}
      end)

    assert raised =~ "[warning] Kith #{inspect(kith)}: :own: it is 1"
    refute raised =~ "it is 2"
    assert_received {:event, [:kith, :alert, :raised], %{system_time: _}, metadata}
    assert metadata == %{instance: kith, rule: :own, severity: :warning}

    :atomics.put(figure, 1, 0)
    assert capture_log(fn -> assert [] = Monitor.alerts(kith) end) =~ "the alert :own is over"
    assert_receive {:given, %Alert{state: :cleared, message: "it is 2"}}
    assert_received {:event, [:kith, :alert, :cleared], %{duration: duration}, ^metadata}
    assert duration > 0

    assert [] = Monitor.alerts(kith)
    refute_received {:event, _, _, %{instance: ^kith}}
    refute_received {:given, _}
  end

  def forward(event, measurements, metadata, pid),
    do: send(pid, {:event, event, measurements, metadata})

  test "an alert goes on until its rule was quiet for :clear_after", %{kith: kith} do
    {switch, rule} = switched(:own)
    start_monitor!(instance: kith, rules: [rule], clear_after: 3_600)
    on(switch)
    assert [%{rule: :own}] = Monitor.alerts(kith)
    off(switch)
    assert [%{rule: :own}] = Monitor.alerts(kith)
  end

  test "a rule that raises is logged once, leaves its alert as it was, and the others are looked at",
       %{kith: kith} do
    mood = :atomics.new(1, [])

    check = fn _ ->
      case :atomics.get(mood, 1) do
        0 -> "it fires"
        1 -> raise "secret words"
        2 -> :not_a_message
      end
    end

    {switch, other} = switched(:other, severity: :critical)
    start_monitor!(instance: kith, rules: [{:moody, [check: check]}, other])
    assert [%{rule: :moody}] = Monitor.alerts(kith)
    :atomics.put(mood, 1, 1)
    on(switch)

    log =
      capture_log(fn ->
        assert [%{rule: :moody}, %{rule: :other}] = Monitor.alerts(kith)
        :atomics.put(mood, 1, 2)
        assert [%{rule: :moody}, %{rule: :other}] = Monitor.alerts(kith)
      end)

    assert [_, _] = String.split(log, "the rule :moody failed with RuntimeError")
    refute log =~ "secret words"
  end

  test "a function for alerts that raises, or kills its process, is logged or forgotten, and gets the next alert",
       %{
         kith: kith
       } do
    test = self()
    {first, rule} = switched(:first)
    {second, other} = switched(:second)
    {third, last} = switched(:third)

    on_alert = fn
      %{rule: :first} -> raise "secret words"
      %{rule: :second} -> Process.exit(self(), :kill)
      alert -> send(test, alert)
    end

    {pid, _} = start_monitor!(instance: kith, rules: [rule, other, last], on_alert: on_alert)

    log =
      capture_log(fn ->
        on(first)
        assert [_] = Monitor.alerts(kith)
        %{caller: caller} = :sys.get_state(pid)
        ref = Process.monitor(caller)
        on(second)
        assert [_, _] = Monitor.alerts(kith)
        assert_receive {:DOWN, ^ref, :process, _, :killed}, 5_000
        eventually(fn -> :sys.get_state(pid).caller != caller end)
      end)

    assert log =~ ":on_alert failed with RuntimeError"
    refute log =~ "secret words"
    on(third)
    assert [_, _, _] = Monitor.alerts(kith)
    assert_receive %Alert{rule: :third}, 5_000
    assert Process.alive?(pid)
  end

  test "a function for alerts that does not return keeps nobody waiting", %{kith: kith} do
    {switch, rule} = switched(:own)
    start_monitor!(instance: kith, rules: [rule], on_alert: fn _ -> Process.sleep(:infinity) end)
    on(switch)
    assert [_] = Monitor.alerts(kith)
    off(switch)
    assert [] = Monitor.alerts(kith)
  end

  test "the instance is asked how it is by itself, before it started and after it stopped" do
    name = make_ref()
    {pid, _} = start_monitor!(instance: name, health_interval: 3_600)
    send(pid, :check)
    eventually(fn -> :sys.get_state(pid).check == nil end)
    assert %{store: :unknown} = Monitor.snapshot(name).health
    assert [] = Monitor.alerts(name)

    start_kith!(name: name)
    send(pid, :check)
    eventually(fn -> Monitor.snapshot(name).health.store == :ok end)
    assert %{vault: :ok, store_latency: latency} = Monitor.snapshot(name).health
    assert latency > 0

    stop_kith!(name)
    send(pid, :check)
    eventually(fn -> Monitor.snapshot(name).health.store == :not_running end)

    assert [%{rule: :store_unhealthy, message: "the instance is not running"}] =
             Monitor.alerts(name)
  end

  test "a database found to be restored when the instance starts is told, where the monitor is before it" do
    database = Path.join(tmp_dir!(), "kith.db")
    kith = start_kith!(database: database)
    converse!(kith, "anna", "ben")
    stop_kith!(kith)
    File.write!(database <> ".mark", "of another time")

    start_monitor!(instance: kith)
    capture_log(fn -> start_kith!(name: kith, database: database) end)
    assert [%{rule: :restored}] = Monitor.alerts(kith)
  end

  test "it is detached when it stops, when it crashes and when it is killed", %{kith: kith} do
    {:ok, pid} = Monitor.start_link([instance: kith] ++ @quiet)
    assert pid in handlers()
    :ok = GenServer.stop(pid)
    refute pid in handlers()

    Process.flag(:trap_exit, true)

    for end_it <- [
          &Process.exit(&1, :kill),
          &Process.exit(&1, :crash),
          &:sys.terminate(&1, :shutdown)
        ] do
      {:ok, pid} = Monitor.start_link([instance: kith, on_alert: fn _ -> :ok end] ++ @quiet)
      assert pid in handlers()
      %{caller: caller} = :sys.get_state(pid)

      capture_log(fn ->
        end_it.(pid)
        assert_receive {:EXIT, ^pid, _}, 5_000
      end)

      eventually(fn -> pid not in handlers() and not Process.alive?(caller) end)
    end

    assert_raise ArgumentError, ~r/no monitor of Kith is running under the name/, fn ->
      Monitor.snapshot(kith)
    end
  end

  test "an event with nothing in it that is expected does not detach it", %{kith: kith} do
    {pid, _} = start_monitor!(instance: kith)
    for event <- Counts.events(), do: :telemetry.execute(event, %{}, %{instance: kith})

    assert length(for(%{id: {Monitor, ^pid}} <- :telemetry.list_handlers([:kith]), do: 1)) ==
             length(Counts.events())

    converse!(kith, "anna", "ben")
    assert %{operations: %{encrypt: %{total: %{count: 3}}}} = Monitor.snapshot(kith)
  end

  test "several watch one instance under names of their own, and each once", %{kith: kith} do
    start_monitor!(instance: kith)
    start_monitor!(instance: kith, name: {:second, kith})
    Process.flag(:trap_exit, true)
    assert {:error, {:already_started, pid}} = Monitor.start_link([instance: kith] ++ @quiet)
    assert Process.alive?(pid)
    register!(kith, ~w(anna ben))
    encrypt_one!(kith, "anna", "ben", "hello")

    for name <- [kith, {:second, kith}],
        do: assert(Monitor.snapshot(name).operations.encrypt.total.count == 1)

    assert length(handlers()) == 2
  end

  test "what happens all the time is looked at once in a while, and what happened last is not missed",
       %{kith: kith} do
    looks = :counters.new(1, [])
    test = self()

    check = fn %{counts: %{panics: %{total: total}}} ->
      :counters.add(looks, 1, 1)
      if total == 500, do: "all of them"
    end

    quiet = for {rule, _} <- Monitor.rules(), do: {rule, false}

    start_monitor!(
      instance: kith,
      rules: quiet ++ [own: [check: check]],
      on_alert: &send(test, &1)
    )

    for _ <- 1..500, do: :telemetry.execute([:kith, :nif, :panic], %{count: 1}, %{instance: kith})
    assert_receive %Alert{rule: :own}, 10_000
    assert :counters.get(looks, 1) < 50
  end

  test "the window is turned by itself", %{kith: kith} do
    {pid, _} = start_monitor!(instance: kith)
    :telemetry.execute([:kith, :nif, :panic], %{count: 1}, %{instance: kith})
    for _ <- 1..11, do: send(pid, :turn)
    assert [] = Monitor.alerts(kith)
    assert %{panics: %{total: 1, window: 0}} = Monitor.snapshot(kith).counts
  end

  test "the text for Prometheus has all of it, with the alerts of the last look", %{kith: kith} do
    start_monitor!(instance: kith)
    converse!(kith, "anna", "ben")
    :telemetry.execute([:kith, :nif, :panic], %{count: 1}, %{instance: kith})
    assert [%{rule: :panic}] = Monitor.alerts(kith)
    families = kith |> Monitor.prometheus() |> Kith.Test.PrometheusText.parse!()
    name = inspect(kith)

    assert {_, _, 3.0} =
             List.keyfind(encrypts(families), %{"kith" => name, "operation" => "encrypt"}, 1)

    firing =
      for {_, %{"rule" => rule, "kith" => ^name}, 1.0} <- families["kith_alert_firing"].samples,
          do: rule

    assert firing == ["panic"]
    assert length(families["kith_alert_firing"].samples) == length(Monitor.rules())
  end

  defp encrypts(families),
    do:
      for(
        {"kith_operation_duration_seconds_count", _, _} = sample <-
          families["kith_operation_duration_seconds"].samples,
        do: sample
      )

  test "options are checked, and without :telemetry it says what is missing", %{kith: kith} do
    for {options, message} <- [
          {[], "expected :instance to be given"},
          {[instance: kith, windoww: 1], "did you mean :window?"},
          {[instance: kith, window: 9], "expected :window to be an integer from 10 to 3600"},
          {[instance: kith, health_interval: 0],
           "expected :health_interval to be :off or an integer"},
          {[instance: kith, on_alert: fn -> :ok end],
           "expected :on_alert to be a function of an alert"},
          {[instance: kith, rules: [panic: [over: 1]]],
           "in :rules, :panic: unknown option :over"},
          {:family, "expected options to be a keyword list"}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(message)}/, fn ->
        Monitor.start_link(options)
      end
    end

    :persistent_term.put(Telemetry, false)
    on_exit(fn -> Telemetry.detect() end)

    assert_raise ArgumentError, ~r/:telemetry, which is not there/, fn ->
      Monitor.start_link(instance: kith)
    end
  end

  test "where the application :telemetry does not run it says so", %{kith: kith} do
    Process.flag(:trap_exit, true)
    capture_log(fn -> :ok = Application.stop(:telemetry) end)
    on_exit(fn -> {:ok, _} = Application.ensure_all_started(:telemetry) end)
    assert {:error, :telemetry_not_started} = Monitor.start_link([instance: kith] ++ @quiet)
  end
end
