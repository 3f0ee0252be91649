defmodule FamilyChatWeb.UserAuth do
  @moduledoc """
  Who is there, and whether their keys are unlocked: the session of the browser, for pages and for live views.

  The cookie has two secrets. `:token` says whose session it is. `:unlock` unlocks the keys of that user where the server has
  forgotten them, after a restart or a time without an open page: half of what is needed is in the browser, half on the server. The
  cookie is encrypted, as the documentation of `Kith.unlock_token/3` asks for.
  """

  use FamilyChatWeb, :controller

  alias FamilyChat.{Accounts, Locks}

  @doc "Logs a user in whose keys are unlocked, with a new session."
  def log_in(conn, user) do
    token = Accounts.create_session(user)

    conn
    |> configure_session(renew: true)
    |> clear_session()
    |> put_session(:token, token)
    |> put_session(:live_socket_id, Accounts.session_topic(token))
    |> put_session(:unlock, Locks.token(user.id))
    |> redirect(to: ~p"/")
  end

  @doc "Gives the session another token that unlocks, in the place of one that does not any more."
  def put_unlock_token(conn, user) do
    Locks.revoke(user.id, get_session(conn, :unlock))
    put_session(conn, :unlock, Locks.token(user.id))
  end

  @doc "Ends the session, in all the pages it has open."
  def log_out(conn) do
    if token = get_session(conn, :token) do
      Accounts.delete_session(token, get_session(conn, :unlock))
      FamilyChatWeb.Endpoint.broadcast(Accounts.session_topic(token), "disconnect", %{})
    end

    leave(conn)
  end

  @doc "Ends the sessions of the user in all browsers."
  def log_out_everywhere(conn) do
    Accounts.delete_sessions(conn.assigns.user)
    leave(conn)
  end

  defp leave(conn),
    do: conn |> configure_session(renew: true) |> clear_session() |> redirect(to: ~p"/login")

  @doc false
  def fetch_user(conn, _options),
    do: assign(conn, :user, Accounts.user_of_session(get_session(conn, :token)))

  @doc false
  def require_session(conn, _options) do
    if conn.assigns.user, do: conn, else: conn |> redirect(to: ~p"/login") |> halt()
  end

  @doc false
  def require_user(conn, options) do
    case require_session(conn, options) do
      %{halted: true} = conn ->
        conn

      conn ->
        if Locks.resume(conn.assigns.user.id, get_session(conn, :unlock)),
          do: conn,
          else: conn |> redirect(to: ~p"/unlock?#{[to: conn.request_path]}") |> halt()
    end
  end

  @doc "Where somebody may go on who was asked for the password in between."
  def way_back(path) when is_binary(path) do
    if path =~ ~r/\A\/(account|recovery|settings|new|protection|c\/[\w-]{22}(\/details)?)?\z/,
      do: path,
      else: ~p"/"
  end

  def way_back(_none), do: ~p"/"

  @doc false
  def redirect_if_user(conn, _options) do
    if conn.assigns.user, do: conn |> redirect(to: ~p"/") |> halt(), else: conn
  end

  @doc false
  def require_admin(conn, _options) do
    case conn.assigns.user do
      %{admin: true} -> conn
      _ -> conn |> send_resp(404, "Not found") |> halt()
    end
  end

  # After a restart of the server the page is here first, and unlocks.
  @doc false
  def on_mount(:require_user, params, session, socket) do
    case Accounts.user_of_session(session["token"]) do
      nil ->
        {:halt, Phoenix.LiveView.redirect(socket, to: ~p"/login")}

      user ->
        if Locks.resume(user.id, session["unlock"]),
          do: {:cont, Phoenix.Component.assign(socket, :user, user)},
          else: {:halt, Phoenix.LiveView.redirect(socket, to: ~p"/unlock?#{[to: path(params)]}")}
    end
  end

  def on_mount(:require_admin, _params, session, socket) do
    case Accounts.user_of_session(session["token"]) do
      %{admin: true} -> {:cont, socket}
      _ -> {:halt, Phoenix.LiveView.redirect(socket, to: ~p"/login")}
    end
  end

  defp path(%{"id" => id}) when is_binary(id), do: "/c/" <> id
  defp path(_params), do: "/"
end
