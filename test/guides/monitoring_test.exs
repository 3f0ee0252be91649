defmodule Kith.Guides.MonitoringTest do
  # The examples of the guide, as they stand there, in modules of other names.
  use Kith.Case, async: false
  use Kith.Test.Optional, :phoenix

  alias Kith.Test.PrometheusText

  @moduletag capture_log: true

  @compile {:no_warn_undefined, [Plug.Conn, Plug.Test]}

  @guide File.read!("docs/guides/monitoring.md")

  defp block(language, beginning) do
    blocks = for [_, code] <- Regex.scan(~r/^```#{language}\n(.*?)^```$/ms, @guide), do: code
    assert [code] = Enum.filter(blocks, &String.starts_with?(&1, beginning))
    String.replace(code, "MyApp", "Kith.Guides.MonitoringTest.MyApp")
  end

  defp define(beginning, around \\ & &1),
    do: "elixir" |> block(beginning) |> around.() |> Code.eval_string()

  setup_all do
    {:ok, _} = Application.ensure_all_started(:plug)

    Code.eval_string("""
    defmodule Kith.Guides.MonitoringTest.MyApp.Pager do
      def wake(text), do: send(:pager, {:wake, text})
      def note(text), do: send(:pager, {:note, text})
    end

    defmodule Kith.Guides.MonitoringTest.MyApp.Kith do
      use Kith, otp_app: :kith
    end
    """)

    for module <- ~w(MyApp.Alerts MyAppWeb.HealthPlug MyAppWeb.MetricsPlug MyAppWeb.Telemetry),
        do: define("defmodule #{module} do")

    :ok
  end

  setup do
    Process.register(self(), :pager)
    kith = Module.concat(__MODULE__, MyApp.Kith)
    Application.put_env(:kith, kith, defaults())
    on_exit(fn -> Application.delete_env(:kith, kith) end)
    {children, _} = define("children = [")
    for child <- children, do: start_supervised!(child)
    %{kith: kith}
  end

  defp call(plug, options, path \\ "/") do
    plug = Module.concat(__MODULE__, plug)
    plug.call(Plug.Test.conn(:get, path), plug.init(options))
  end

  test "the monitor watches, and alerts and a rule of one's own go to the pager", %{kith: kith} do
    converse!(kith, "anna", "ben")

    for _ <- 1..11 do
      envelope = encrypt_one!(kith, "anna", "ben", "hello")

      {:error, %{reason: :tampered}} =
        Kith.decrypt(kith, "ben", %{
          envelope
          | body: corrupt(envelope.body, byte_size(envelope.body) - 3)
        })
    end

    assert [:decrypt_errors, :forged] = for(alert <- Kith.Monitor.alerts(kith), do: alert.rule)
    assert_receive {:note, "decrypt_errors raised: " <> _}, 5_000
    assert_receive {:wake, text}, 5_000
    assert text == "#{inspect(kith)}: 11 messages were tampered with"
  end

  test "the probe says 200 and 503", %{kith: kith} do
    assert %{status: 200, resp_body: "ok"} = call(MyAppWeb.HealthPlug, kith)
    sql!(kith, "ALTER TABLE signal_accounts RENAME TO accounts_of_before")

    assert %{status: 503, resp_body: "store: storage, vault: ok"} =
             call(MyAppWeb.HealthPlug, kith)
  end

  test "the route serves what Prometheus reads", %{kith: kith} do
    define("forward ", fn code ->
      "defmodule Kith.Guides.MonitoringTest.Metrics do\nuse Phoenix.Router\n#{code}\nend"
    end)

    conn = call(Metrics, [], "/metrics")
    assert conn.status == 200
    assert [type] = Plug.Conn.get_resp_header(conn, "content-type")
    assert type =~ "text/plain; version=0.0.4"
    families = PrometheusText.parse!(conn.resp_body)
    assert [{_, %{"kith" => name}, _}] = families["kith_panics_total"].samples
    assert name == inspect(kith)
  end

  test "the dashboard takes the page and the metrics" do
    define("live_dashboard ", fn code ->
      "defmodule Kith.Guides.MonitoringTest.Dashboard do\nuse Phoenix.Router\nimport Phoenix.LiveDashboard.Router\n" <>
        "scope \"/\" do\n#{code}\nend\nend"
    end)

    telemetry = Module.concat(__MODULE__, MyAppWeb.Telemetry)
    assert [%{tags: [:instance | _]} | _] = telemetry.metrics()
    router = Module.concat(__MODULE__, Dashboard)
    assert Enum.any?(router.__routes__(), &(&1.path =~ "/dashboard"))
  end

  test "the log is attached" do
    assert {:ok, _} = define("Kith.Telemetry.attach_logger")
    on_exit(fn -> Kith.Telemetry.detach_logger() end)
  end

  test "the alerting rules ask for series there are, and there is one for each ready rule", %{
    kith: kith
  } do
    Kith.health!(kith)
    Kith.maintain!(kith)
    ExUnit.CaptureLog.capture_log(fn -> Kith.restored!(kith) end)
    families = kith |> Kith.Monitor.prometheus() |> PrometheusText.parse!()

    series =
      for {_, %{samples: samples}} <- families, {name, _, _} <- samples, uniq: true, do: name

    yaml = block("yaml", "groups:")

    asked = for [name] <- Regex.scan(~r/\bkith_\w+/, yaml), uniq: true, do: name
    assert length(asked) > 8
    assert asked -- series == []

    labels =
      for {_, %{samples: samples}} <- families,
          {_, labels, _} <- samples,
          label <- labels,
          uniq: true,
          do: label

    for [_, label, value] <- Regex.scan(~r/(\w+)="(\w+)"/, yaml),
        do: assert({label, value} in labels)

    for {rule, _} <- Kith.Monitor.rules() do
      assert yaml =~ "alert: Kith#{Macro.camelize(Atom.to_string(rule))}\n"
      assert @guide =~ "`:#{rule}`"
    end
  end
end
