# The page in a dashboard of a real endpoint. The modules below take macros of Phoenix.
if Code.ensure_loaded?(Phoenix.LiveDashboard.Router) do
  defmodule Kith.LiveDashboardTest.Router do
    use Phoenix.Router
    import Phoenix.LiveDashboard.Router

    pipeline :browser do
      plug(:fetch_session)
    end

    scope "/" do
      pipe_through(:browser)

      live_dashboard("/dashboard",
        additional_pages: [kith: {Kith.LiveDashboard.Page, monitor: :family, title: "The family"}]
      )
    end
  end

  defmodule Kith.LiveDashboardTest.Endpoint do
    use Phoenix.Endpoint, otp_app: :kith

    @session [store: :cookie, key: "_kith_test", signing_salt: "for tests"]

    socket("/live", Phoenix.LiveView.Socket, websocket: [connect_info: [session: @session]])
    plug(Plug.Session, @session)
    plug(Kith.LiveDashboardTest.Router)
  end
end

defmodule Kith.LiveDashboardTest do
  # Handlers are global, and so is the endpoint.
  use Kith.Case, async: false
  use Kith.Test.Optional, :phoenix

  alias Kith.{LiveDashboardTest, Monitor}
  alias Kith.Test.Dashboard

  # Phoenix logs each request.
  @moduletag capture_log: true

  # Built only where Phoenix is.
  @compile {:no_warn_undefined,
            [
              Kith.LiveDashboard.Page,
              Kith.LiveDashboardTest.Endpoint,
              Plug.Test
            ]}

  setup_all do
    {:ok, _} = Application.ensure_all_started(:phoenix_live_dashboard)

    Application.put_env(:kith, LiveDashboardTest.Endpoint,
      secret_key_base: String.duplicate("secret", 12),
      live_view: [signing_salt: "for tests too"],
      pubsub_server: Kith.LiveDashboardTest.PubSub,
      server: false
    )

    on_exit(fn -> Application.delete_env(:kith, LiveDashboardTest.Endpoint) end)
    :ok
  end

  setup do
    start_supervised!({Phoenix.PubSub, name: Kith.LiveDashboardTest.PubSub})
    start_supervised!(LiveDashboardTest.Endpoint)
    kith = start_kith!(archive: true)
    start_supervised!({Monitor, name: :family, instance: kith, health_interval: :off, log: false})
    %{kith: kith}
  end

  defp get(path) do
    conn = Plug.Test.conn(:get, path)
    LiveDashboardTest.Endpoint.call(conn, LiveDashboardTest.Endpoint.init([]))
  end

  # The cells of the rows of all tables, as text.
  defp rows(html) do
    for [row] <- Regex.scan(~r/<tr[ >].*?<\/tr>/s, html),
        cells =
          for([_, cell] <- Regex.scan(~r/<td[^>]*>(.*?)<\/td>/s, row), do: String.trim(cell)),
        cells != [],
        do: cells
  end

  defp row(html, name), do: Enum.find(rows(html), &(hd(&1) == name))

  test "the page is in the menu and shows what was counted", %{kith: kith} do
    converse!(kith, "anna", "ben")
    {:error, _} = Kith.decrypt(kith, "ben", <<1, "junk">>)
    Kith.health!(kith)
    Kith.maintain!(kith)

    conn = get("/dashboard/kith")
    assert conn.status == 200
    html = conn.resp_body
    assert html =~ "The family"
    assert ["encrypt", "3", p50, _, _, longest, "0.00 %", ""] = row(html, "encrypt")
    assert p50 =~ ~r/^\d+\.\d\d ms$/
    assert longest =~ " ms"
    assert ["decrypt", "4", _, _, _, _, "25.00 %", "1 malformed"] = row(html, "decrypt")
    assert ["Devices", "2", "0"] = row(html, "Devices")
    assert ["Panics", "0", "0"] = row(html, "Panics")
    assert html =~ "well"
    assert html =~ "0 firing"
    refute row(html, "critical")
  end

  test "alerts are on it, with what they say in the letters of HTML", %{kith: kith} do
    stop_supervised!({Monitor, :family})

    start_supervised!(
      {Monitor,
       name: :family,
       instance: kith,
       health_interval: :off,
       log: false,
       rules: [own: [severity: :critical, check: fn _ -> "<script>alert(1)</script>" end]]}
    )

    html = get("/dashboard/kith").resp_body

    assert ["critical", "own", "&lt;script&gt;alert(1)&lt;/script&gt;", _since] =
             row(html, "critical")

    refute html =~ "<script>alert(1)"
    assert html =~ "1 firing"
  end

  test "a refresh shows what happened since", %{kith: kith} do
    converse!(kith, "anna", "ben")
    socket = Dashboard.mount(:family)
    assert ["encrypt", "3" | _] = row(Dashboard.render(socket), "encrypt")
    encrypt_one!(kith, "anna", "ben", "again")
    {:noreply, socket} = Kith.LiveDashboard.Page.handle_refresh(socket)
    assert ["encrypt", "4" | _] = row(Dashboard.render(socket), "encrypt")
  end

  test "without a monitor, or with a node that is gone, it says so" do
    stop_supervised!({Monitor, :family})
    assert get("/dashboard/kith").resp_body =~ "No monitor is running under the name :family"

    assert Dashboard.render(Dashboard.mount(:family, :nobody@nowhere)) =~
             "No monitor is running under the name :family"
  end

  test "what it is given is checked" do
    alias Kith.LiveDashboard.Page
    assert {:ok, %{monitor: :family, title: "Kith"}} = Page.init(monitor: :family)
    assert_raise ArgumentError, ~r/expected :monitor to be given/, fn -> Page.init([]) end
    assert_raise ArgumentError, fn -> Page.init(monitors: :family) end
  end
end
