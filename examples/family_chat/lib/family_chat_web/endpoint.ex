defmodule FamilyChatWeb.Endpoint do
  use Phoenix.Endpoint, otp_app: :family_chat

  # Encrypted as well: what is in it is nobody's business but the server's.
  @session_options [
    store: :cookie,
    key: "_family_chat",
    signing_salt: "family-chat",
    encryption_salt: "family-chat session",
    same_site: "Lax",
    http_only: true,
    max_age: 60 * 86_400
  ]

  socket("/live", Phoenix.LiveView.Socket,
    websocket: [connect_info: [session: @session_options]],
    longpoll: [connect_info: [session: @session_options]]
  )

  plug(Plug.Static, at: "/", from: :family_chat, only: ~w(app.css app.js vendor))

  # The browser's half of Phoenix, as the packages bring it: there is nothing to bundle.
  plug(Plug.Static,
    at: "/packages/phoenix",
    from: {:phoenix, "priv/static"},
    only: ~w(phoenix.min.js)
  )

  plug(Plug.Static,
    at: "/packages/live_view",
    from: {:phoenix_live_view, "priv/static"},
    only: ~w(phoenix_live_view.min.js)
  )

  plug(Plug.RequestId)
  plug(Plug.Telemetry, event_prefix: [:phoenix, :endpoint])

  plug(:parse)

  plug(Plug.Head)
  plug(Plug.Session, @session_options)
  plug(:route)

  defp route(conn, _options) do
    FamilyChatWeb.Router.call(conn, FamilyChatWeb.Router.init([]))
  catch
    kind, reason -> FamilyChat.CrashReports.reraise(conn, kind, reason, __STACKTRACE__)
  end

  # A recovery file has somebody's whole history in it. Everything else is short.
  defp parse(%{path_info: [path | _]} = conn, _options) when path in ["recovery", "recover"],
    do: parse_with(conn, [:urlencoded, {:multipart, length: 64_000_000}])

  defp parse(conn, _options), do: parse_with(conn, [:urlencoded])

  defp parse_with(conn, parsers) do
    Plug.Parsers.call(
      conn,
      Plug.Parsers.init(parsers: parsers, pass: ["*/*"], length: 100_000)
    )
  end
end
