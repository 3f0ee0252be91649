defmodule FamilyChatWeb.Router do
  use FamilyChatWeb, :router

  import FamilyChatWeb.UserAuth
  import Phoenix.LiveDashboard.Router

  @content_security_policy "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; " <>
                             "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

  pipeline :browser do
    plug(:accepts, ["html"])
    plug(:fetch_session)
    plug(:fetch_live_flash)
    plug(:put_root_layout, html: {FamilyChatWeb.Layouts, :root})
    plug(:protect_from_forgery)

    plug(:put_secure_browser_headers, %{
      "content-security-policy" => @content_security_policy,
      "referrer-policy" => "same-origin"
    })

    plug(:fetch_user)
  end

  # A page with words or a password on it is not kept by the browser.
  pipeline :secret do
    plug(:put_no_store)
  end

  # What the dashboard brings with it has styles and scripts in its pages.
  pipeline :dashboard do
    plug(:put_root_layout, false)
    plug(:delete_policy)
    plug(:require_admin)
  end

  scope "/", FamilyChatWeb do
    pipe_through([:browser, :redirect_if_user])

    get("/login", SessionController, :login)
    post("/login", SessionController, :create)
    get("/signup", SessionController, :signup)
    post("/signup", SessionController, :register)
  end

  scope "/", FamilyChatWeb do
    pipe_through([:browser, :redirect_if_user, :secret])

    get("/recover", RecoveryController, :restore)
    post("/recover", RecoveryController, :restored)
  end

  # Somebody whose keys are locked.
  scope "/", FamilyChatWeb do
    pipe_through([:browser, :require_session])

    get("/unlock", SessionController, :locked)
    post("/unlock", SessionController, :unlock)
    post("/logout", SessionController, :delete)
    post("/logout/everywhere", SessionController, :delete_all)
  end

  scope "/", FamilyChatWeb do
    pipe_through([:browser, :require_user, :secret])

    get("/account", AccountController, :show)
    post("/account/password", AccountController, :password)
    post("/account/keys", AccountController, :keys)
    get("/recovery", RecoveryController, :show)
    post("/recovery", RecoveryController, :words)
    post("/recovery/file", RecoveryController, :file)
    get("/recovery/try", RecoveryController, :try)
    post("/recovery/try", RecoveryController, :tried)
  end

  scope "/", FamilyChatWeb do
    pipe_through([:browser, :require_user])

    live_session :people, on_mount: {FamilyChatWeb.UserAuth, :require_user} do
      live("/", ChatLive, :index)
      live("/new", ChatLive, :new)
      live("/settings", ChatLive, :settings)
      live("/protection", ChatLive, :protection)
      live("/c/:id", ChatLive, :show)
      live("/c/:id/details", ChatLive, :details)
      live("/c/:id/safety/:user", ChatLive, :safety)
      live("/c/:id/message/:message", ChatLive, :message)
    end
  end

  scope "/" do
    pipe_through([:browser, :dashboard])

    live_dashboard("/dashboard",
      metrics: FamilyChatWeb.Telemetry,
      additional_pages: [kith: {Kith.LiveDashboard.Page, monitor: FamilyChat.Kith}],
      on_mount: [{FamilyChatWeb.UserAuth, :require_admin}]
    )
  end

  # For the machines of whoever runs this: from the machine itself.
  scope "/", FamilyChatWeb do
    pipe_through(:loopback_only)

    get("/health", OperationsController, :health)
    get("/metrics", OperationsController, :metrics)
  end

  defp put_no_store(conn, _options), do: put_resp_header(conn, "cache-control", "no-store")

  defp delete_policy(conn, _options), do: delete_resp_header(conn, "content-security-policy")

  # A proxy on the same machine says whom it speaks for.
  defp loopback_only(conn, _options) do
    if conn.remote_ip in [{127, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 1}] and
         get_req_header(conn, "x-forwarded-for") == [],
       do: conn,
       else: conn |> send_resp(404, "Not found") |> halt()
  end
end
