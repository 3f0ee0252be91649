defmodule Kith.Monitor do
  @moduledoc """
  Watches an instance: how fast it is, what fails, whether the database answers, and when somebody should look.

      children = [
        {Kith.Monitor, instance: MyApp.Kith, on_alert: &MyApp.Pager.alert/1},
        MyApp.Kith
      ]

  Before the instance, since a database that was restored is told of when the instance starts. It takes `:telemetry`, whose
  events it counts; without that it raises `ArgumentError`.

      MyApp.Kith |> Kith.Monitor.snapshot() |> get_in([:operations, :encrypt, :window, :p99])
      Kith.Monitor.alerts(MyApp.Kith)
      Kith.Monitor.prometheus(MyApp.Kith)

  The guide to monitoring shows where to put them: in LiveDashboard, before Prometheus, in a log.

  ## Options

    * `:instance` - the name of the instance. Required. It need not run yet.
    * `:name` - any term, by which the functions below know the monitor. Default: the name of the instance.
    * `:window` - seconds of the sliding window that rules look at, 10 to 3,600. Default 300.
    * `:evaluation_interval` - seconds between two looks at the rules, 1 to 3,600. A panic, a restored database, a change of
      health and a pass of maintenance are looked at when they happen. Default 10.
    * `:health_interval` - seconds between two calls of `Kith.health/2`, 1 to 3,600, or `:off`. Default 30.
    * `:health_timeout` - how many milliseconds the database may take to answer that, 1 to 60,000. Default 5,000.
    * `:rules` - a keyword list that changes the rules below and adds others. Default `[]`.
    * `:clear_after` - seconds a rule has to be quiet until its alert is over, 0 to 3,600. Default 60.
    * `:on_alert` - a function that is given each `Kith.Monitor.Alert` that is raised or cleared. It runs in a process of its
      own, one alert after the other; that it raises is logged.
    * `:log` - whether alerts are logged: a `:critical` one as an error, a `:warning` as a warning, the end of one as an
      info. Default `true`.

  Every node watches what happens on it. Prekeys are told of by the node that looked after them.

  ## Rules

  `rules/0` returns them as they are here.

  | rule | fires when | settings | severity |
  | --- | --- | --- | --- |
  | `:encrypt_slow` | one of a hundred calls of `encrypt` took longer than `:above` milliseconds, where there were `:minimum_count` | `above: 100, minimum_count: 20` | `:warning` |
  | `:decrypt_errors` | a larger share of messages than `:above` did not open, and at least `:minimum_errors` | `above: 0.01, minimum_errors: 5` | `:warning` |
  | `:panic` | the engine panicked more than `:above` times | `above: 0` | `:critical` |
  | `:store_unhealthy` | the database does not answer, or the instance does not run any more | | `:critical` |
  | `:vault_unhealthy` | data keys do not open | | `:critical` |
  | `:prekeys_low` | more than `:above` devices are low on one-time prekeys after maintenance, or, with `published: true`, those whose own clients have to publish new ones | `above: 0, published: false` | `:warning` |
  | `:prekeys_exhausted` | more than `:above` sessions were begun without a one-time prekey, as none was left | `above: 0` | `:warning` |
  | `:restored` | a database was restored, copied or failed over | `above: 0` | `:warning` |
  | `:maintenance_failed` | more than `:above` tasks, devices or sessions of maintenance got an error | `above: 0` | `:warning` |

  What is counted is counted in the window, so an alert about what happens once ends with the window. A message that does not
  open is one for which `decrypt` answers with an error, but for two reasons that are nobody's fault: `:duplicate`, a
  second delivery, and `:locked`. They count neither as failed nor as opened. That there are `:minimum_errors` keeps one of
  one from being an alarm, on a quiet server too.

  A rule is changed by its settings, turned off with `false`, and added with `:check`, a function of a snapshot that returns a
  sentence, or `nil` where all is well:

      {Kith.Monitor,
       instance: MyApp.Kith,
       rules: [
         encrypt_slow: [above: 250],
         maintenance_failed: false,
         forged: [severity: :critical, check: &MyApp.Alerts.forged/1]
       ]}

      def forged(%{operations: %{decrypt: %{window: %{reasons: %{tampered: count}}}}}) when count > 10,
        do: "\#{count} messages were tampered with"

      def forged(_snapshot), do: nil

  A rule that raises is logged once, and its alert stays what it was.

  ## What it costs

  Counting is some additions to an array of integers, in the process that encrypts or decrypts, without waiting for
  another; the guide has the figure. The memory of a monitor is about half a megabyte for any number of users and messages,
  and is in no process. Durations are kept in buckets that are at most 1/32 as wide as what is in them: a percentile is within
  1.6 % or a microsecond of a duration that was measured. The longest is exact.
  """

  use GenServer

  require Logger

  alias Kith.{Telemetry, Validation}
  alias Kith.Monitor.{Alert, Counts, Prometheus, Rules}

  @compile {:no_warn_undefined, :telemetry}

  @defaults [
    window: 300,
    evaluation_interval: 10,
    health_interval: 30,
    health_timeout: 5_000,
    rules: [],
    clear_after: 60,
    on_alert: nil,
    log: true
  ]

  # However much happens, rules are looked at once in so many milliseconds; but for who asks.
  @breath 1_000

  # What `:on_alert` has not taken yet. Nobody waits for it, so somebody has to stop.
  @backlog 1_000

  @typedoc "The name of a monitor."
  @type name :: term

  @typedoc """
  How an operation went. Durations are milliseconds, `nil` where there were no calls. `:errors` and `:error_rate`, from 0 to 1,
  leave `:duplicate` and `:locked` out; `:reasons` has all that did not answer `:ok`, `:exception` among them for what
  raised.
  """
  @type statistics :: %{
          count: non_neg_integer,
          errors: non_neg_integer,
          error_rate: float,
          reasons: %{(Kith.Error.reason() | :exception) => pos_integer},
          p50: nil | float,
          p95: nil | float,
          p99: nil | float,
          max: nil | float
        }

  @typedoc "How often something happened, since the monitor started and in the window."
  @type count :: %{total: non_neg_integer, window: non_neg_integer}

  @typedoc """
  The stock of one-time prekeys of all devices when maintenance last looked, on this node, and the ages of the oldest signed
  prekey and Kyber prekey of last resort in seconds.
  """
  @type stock :: %{
          required(:at) => DateTime.t(),
          required(:devices) => non_neg_integer,
          required(:low) => non_neg_integer,
          required(:one_time) => non_neg_integer,
          required(:kyber_one_time) => non_neg_integer,
          required(:signed_age) => non_neg_integer,
          required(:last_resort_age) => non_neg_integer,
          optional(:low_left) => non_neg_integer
        }

  @typedoc "`:not_running` is an instance that ran before, `:unknown` one that was not asked yet."
  @type condition :: :ok | :unknown | :not_running | Kith.Error.reason()

  @type snapshot :: %{
          instance: Kith.name(),
          started_at: DateTime.t(),
          uptime: non_neg_integer,
          window: non_neg_integer,
          operations: %{
            (:encrypt | :group_encrypt | :decrypt | :establish) => %{
              total: statistics,
              window: statistics
            }
          },
          counts: %{atom => count},
          restored_at: nil | DateTime.t(),
          prekeys: %{local: nil | stock, published: nil | stock},
          health: %{
            store: condition,
            store_latency: nil | float,
            vault: condition,
            vault_latency: nil | float,
            checked_at: nil | DateTime.t()
          }
        }

  @doc "Returns the child specification of a monitor. Takes the options above."
  @spec child_spec(keyword) :: Supervisor.child_spec()
  def child_spec(options),
    do: %{id: {__MODULE__, name(options)}, start: {__MODULE__, :start_link, [options]}}

  @doc """
  Starts a monitor. Takes the options above.

  Raises `ArgumentError` for options that are wrong and where `:telemetry` is not there. Returns `{:error,
  {:already_started, pid}}` for a name that is taken, and `{:error, :telemetry_not_started}` where the application
  `:telemetry` does not run.
  """
  @spec start_link(keyword) :: GenServer.on_start()
  def start_link(options) do
    settings = settings!(options)

    if not Telemetry.available?() do
      raise ArgumentError,
            "Kith.Monitor counts events of :telemetry, which is not there: add {:telemetry, \"~> 1.0\"} to your " <>
              "dependencies"
    end

    GenServer.start_link(__MODULE__, settings)
  end

  @doc "Returns the rules there are without any option, with their settings."
  @spec rules() :: keyword(keyword)
  def rules, do: Rules.ready()

  @doc """
  Returns what was counted, as a map.

    * `:operations` - of `:encrypt`, `:group_encrypt`, `:decrypt` and `:establish`, each `:total`, since the monitor started,
      and `:window`. A group is one call however many it is for, and `:establish` one for all sessions a call begins.
    * `:counts` - `:panics` of the engine, `:restored` databases, `:redeliveries` answered out of the archive,
      `:maintenance_failures`, `:prekeys_exhausted` (sessions begun without a one-time prekey), `:reports` of messages that did
      not open and `:resends` of such, `:recipients` of groups and the `:failed_recipients` among them.
    * `:restored_at` - when a database was last found to be restored.
    * `:prekeys` - the stock when maintenance last looked, `:local` that of devices whose private keys are here with
      `:low_left`, those that it left low, `:published` that of others. `nil` until then.
    * `:health` - what `Kith.health/2` said last, the latencies in milliseconds.
    * `:started_at`, `:uptime` and `:window` - of the monitor, and how much is in the window: at the beginning less
      than was asked for, later up to a tenth more. Seconds.

  It reads the counts while others add to them: sums may differ by the calls of that moment.
  """
  @spec snapshot(name) :: snapshot
  def snapshot(monitor), do: Counts.read(fetch!(monitor).counts)

  @doc "Looks at the rules now and returns the alerts that fire, in the order of the rules."
  @spec alerts(name) :: [Alert.t()]
  def alerts(monitor), do: GenServer.call(fetch!(monitor).process, :evaluate)

  @doc """
  Returns all of it in the text format of Prometheus, version 0.0.4, whose content type is `text/plain; version=0.0.4`.

  The label `kith` is the name of the instance. There are no other labels but those of a closed set: no user is
  named. Alerts are those of the last look.
  """
  @spec prometheus(name) :: String.t()
  def prometheus(monitor) do
    %{counts: counts, rules: rules, flags: flags} = fetch!(monitor)

    alerts =
      for {{rule, severity, _check}, index} <- Enum.with_index(rules, 1),
          do: {rule, severity, :atomics.get(flags, index)}

    Prometheus.format(Counts.read(counts), Counts.exact(counts), alerts)
  end

  defp fetch!(name) do
    case Registry.lookup(Kith.Registry, {__MODULE__, name}) do
      [{_pid, handle}] ->
        handle

      [] ->
        raise ArgumentError,
              "no monitor of Kith is running under the name #{inspect(name)}; " <>
                "add it to the children of your supervisor"
    end
  end

  defp name(options), do: Keyword.get_lazy(options, :name, fn -> options[:instance] end)

  defp settings!(options) do
    with :ok <- Validation.validate(options, schema()),
         true <- Keyword.has_key?(options, :instance),
         settings = Keyword.merge(@defaults, options),
         {:ok, rules} <- Rules.resolve(settings[:rules]) do
      settings |> Map.new() |> Map.merge(%{name: name(options), rules: rules})
    else
      false -> raise ArgumentError, "expected :instance to be given, the name of an instance"
      {:error, message} -> raise ArgumentError, message
    end
  end

  defp schema do
    [
      instance: :any,
      name: :any,
      window: {:integer, 10..3_600},
      evaluation_interval: {:integer, 1..3_600},
      health_interval: {:custom, &health_interval/1},
      health_timeout: {:integer, 1..60_000},
      rules: :any,
      clear_after: {:integer, 0..3_600},
      on_alert: {:custom, &on_alert/1},
      log: {:one_of, [true, false]}
    ]
  end

  defp health_interval(:off), do: :ok
  defp health_interval(seconds) when is_integer(seconds) and seconds in 1..3_600, do: :ok

  defp health_interval(other),
    do:
      {:error,
       "expected :health_interval to be :off or an integer from 1 to 3600, got: #{inspect(other)}"}

  defp on_alert(nil), do: :ok
  defp on_alert(fun) when is_function(fun, 1), do: :ok

  defp on_alert(other),
    do: {:error, "expected :on_alert to be a function of an alert, got: #{inspect(other)}"}

  @impl true
  def init(%{name: name, rules: rules} = settings) do
    # So that terminate/2 is called, and that what :on_alert does to its process does nothing to this one.
    Process.flag(:trap_exit, true)
    counts = Counts.new(settings.instance, self())
    flags = :atomics.new(max(length(rules), 1), signed: false)
    handle = %{process: self(), counts: counts, rules: rules, flags: flags}

    with {:ok, _} <- Registry.register(Kith.Registry, {__MODULE__, name}, handle),
         :ok <- attach(counts) do
      schedule(:turn, Counts.slice(settings.window * 1_000))
      schedule(:evaluate, settings.evaluation_interval * 1_000)
      # Soon, but not while the children of a supervisor are started.
      if settings.health_interval != :off,
        do: schedule(:check, min(settings.health_interval * 1_000, 2_000))

      {:ok,
       %{
         settings: settings,
         counts: counts,
         flags: flags,
         firing: %{},
         broken: MapSet.new(),
         looked: nil,
         late?: false,
         check: nil,
         caller: start_caller(settings.on_alert)
       }}
    else
      {:error, {:already_registered, pid}} -> {:stop, {:already_started, pid}}
      {:error, reason} -> {:stop, reason}
    end
  end

  # A process that is killed cannot detach itself.
  defp attach(counts) do
    process = self()

    spawn(fn ->
      ref = Process.monitor(process)
      receive do: ({:DOWN, ^ref, :process, ^process, _} -> detach(process))
    end)

    config = Counts.config(counts)
    :telemetry.attach_many({__MODULE__, process}, Counts.events(), &Counts.handle/4, config)
  catch
    _kind, _reason -> {:error, :telemetry_not_started}
  end

  defp detach(process) do
    :telemetry.detach({__MODULE__, process})
  catch
    # The application :telemetry was stopped before.
    _kind, _reason -> :ok
  end

  @impl true
  def terminate(_reason, _state), do: detach(self())

  defp schedule(message, milliseconds),
    do: Process.send_after(self(), {:timer, message, milliseconds}, milliseconds)

  @impl true
  def handle_call(:evaluate, _from, state) do
    state = evaluate(state)

    alerts =
      for {rule, _, _} <- state.settings.rules, %{alert: alert} <- [state.firing[rule]], do: alert

    {:reply, alerts, state}
  end

  @impl true
  def handle_info({:timer, message, milliseconds}, state) do
    milliseconds =
      if message == :check, do: state.settings.health_interval * 1_000, else: milliseconds

    schedule(message, milliseconds)
    handle_info(message, state)
  end

  def handle_info(:turn, state) do
    Counts.turn(state.counts)
    {:noreply, state}
  end

  def handle_info(:evaluate, state), do: {:noreply, evaluate(state)}

  def handle_info(:nudged, state) do
    wait = if state.looked, do: state.looked + @breath - now(), else: 0

    cond do
      wait <= 0 -> {:noreply, evaluate(state)}
      state.late? -> {:noreply, state}
      true -> {:noreply, look_late(state, wait)}
    end
  end

  def handle_info(:late, state), do: {:noreply, evaluate(%{state | late?: false})}

  def handle_info(:check, %{check: nil} = state) do
    %{instance: instance, health_timeout: timeout} = state.settings
    {_pid, ref} = spawn_monitor(fn -> exit(check(instance, timeout)) end)
    {:noreply, %{state | check: ref}}
  end

  # The one before is not over yet.
  def handle_info(:check, state), do: {:noreply, state}

  def handle_info({:DOWN, ref, :process, _pid, reason}, %{check: ref} = state) do
    # What it found is in the counts, by its event.
    if reason == :not_running, do: Counts.not_running(state.counts)
    {:noreply, %{state | check: nil}}
  end

  def handle_info({:EXIT, caller, _reason}, %{caller: caller} = state),
    do: {:noreply, %{state | caller: start_caller(state.settings.on_alert)}}

  def handle_info(_other, state), do: {:noreply, state}

  defp check(instance, timeout) do
    Kith.health(instance, timeout: timeout)
    :normal
  catch
    # ArgumentError: no such instance is running. Or it was stopped while it was asked.
    _kind, _reason -> :not_running
  end

  defp look_late(state, wait) do
    Process.send_after(self(), :late, wait)
    %{state | late?: true}
  end

  defp now, do: System.monotonic_time(:millisecond)

  defp evaluate(%{counts: counts, settings: settings} = state) do
    Counts.looked(counts)
    state = %{state | looked: now()}
    snapshot = Counts.read(counts)

    settings.rules
    |> Enum.with_index(1)
    |> Enum.reduce(state, fn {{rule, severity, check}, index}, state ->
      state = follow(state, rule, severity, ask(check, snapshot))
      :atomics.put(state.flags, index, if(is_map_key(state.firing, rule), do: 1, else: 0))
      state
    end)
  end

  defp ask(check, snapshot) do
    case check.(snapshot) do
      message when is_binary(message) or message == nil -> message
      _other -> {:broken, "a value that is neither nil nor a string"}
    end
  catch
    kind, reason -> {:broken, what(kind, reason)}
  end

  # Not what an exception says: it may quote anything.
  defp what(:error, %module{}), do: inspect(module)
  defp what(kind, _reason), do: inspect(kind)

  defp follow(state, rule, _severity, {:broken, what}) do
    if rule not in state.broken,
      do: Logger.warning("#{of(state)}: the rule #{inspect(rule)} failed with #{what}")

    %{state | broken: MapSet.put(state.broken, rule)}
  end

  defp follow(state, rule, severity, message) do
    state = %{state | broken: MapSet.delete(state.broken, rule)}
    settle(state, rule, severity, message, state.firing[rule])
  end

  defp settle(state, _rule, _severity, nil, nil), do: state

  defp settle(state, rule, severity, message, nil) do
    alert = %Alert{
      instance: state.settings.instance,
      rule: rule,
      severity: severity,
      state: :raised,
      message: message,
      since: DateTime.utc_now()
    }

    now = System.monotonic_time()
    tell(state, alert, %{})
    put_in(state.firing[rule], %{alert: alert, raised: now, seen: now})
  end

  defp settle(state, rule, _severity, nil, %{alert: alert, raised: raised, seen: seen}) do
    now = System.monotonic_time()
    quiet = System.convert_time_unit(now - seen, :native, :second)

    if quiet >= state.settings.clear_after do
      tell(state, %{alert | state: :cleared}, %{duration: now - raised})
      %{state | firing: Map.delete(state.firing, rule)}
    else
      state
    end
  end

  defp settle(state, rule, _severity, message, firing) do
    firing = %{firing | alert: %{firing.alert | message: message}, seen: System.monotonic_time()}
    put_in(state.firing[rule], firing)
  end

  defp tell(%{settings: settings} = state, alert, measurements) do
    if settings.log, do: log(state, alert)
    measurements = Map.put(measurements, :system_time, System.system_time())
    metadata = Map.take(alert, [:instance, :rule, :severity])
    Telemetry.emit([{[:kith, :alert, alert.state], measurements, metadata}])
    call(state, alert)
  end

  defp log(state, %{state: :cleared} = alert),
    do: Logger.info("#{of(state)}: the alert #{inspect(alert.rule)} is over")

  defp log(state, %{severity: severity} = alert) do
    level = if severity == :critical, do: :error, else: :warning
    Logger.log(level, "#{of(state)}: #{inspect(alert.rule)}: #{alert.message}")
  end

  defp of(%{settings: %{instance: instance}}), do: "Kith #{inspect(instance)}"

  defp call(%{caller: nil}, _alert), do: :ok

  defp call(%{caller: caller} = state, alert) do
    case Process.info(caller, :message_queue_len) do
      {:message_queue_len, waiting} when waiting > @backlog ->
        Logger.warning(
          "#{of(state)}: :on_alert does not return, it was not given #{inspect(alert.rule)}"
        )

      _ ->
        send(caller, {:alert, alert})
        :ok
    end
  end

  # So that an application that takes its time with an alert does not keep the monitor from seeing the next one.
  defp start_caller(nil), do: nil
  defp start_caller(on_alert), do: spawn_link(fn -> call_each(on_alert) end)

  defp call_each(on_alert) do
    receive do
      {:alert, alert} ->
        try do
          on_alert.(alert)
        catch
          kind, reason ->
            Logger.error("Kith.Monitor: :on_alert failed with #{what(kind, reason)}")
        end
    end

    call_each(on_alert)
  end
end
