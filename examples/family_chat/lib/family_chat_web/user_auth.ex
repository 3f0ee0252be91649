defmodule FamilyChatWeb.UserAuth do
  @moduledoc """
  Who is there: the session of the browser, for pages and for live views.

  Here is where accounts whose keys are locked under the password would be unlocked, and locked again.
  """

  use FamilyChatWeb, :controller

  alias FamilyChat.Accounts

  @doc "Logs a user in, with a new session."
  def log_in(conn, user) do
    token = Accounts.create_session(user)

    conn
    |> configure_session(renew: true)
    |> clear_session()
    |> put_session(:token, token)
    |> put_session(:live_socket_id, Accounts.session_topic(token))
    |> redirect(to: ~p"/")
  end

  @doc "Ends the session, in all the pages it has open."
  def log_out(conn) do
    if token = get_session(conn, :token) do
      Accounts.delete_session(token)
      FamilyChatWeb.Endpoint.broadcast(Accounts.session_topic(token), "disconnect", %{})
    end

    conn |> configure_session(renew: true) |> clear_session() |> redirect(to: ~p"/login")
  end

  @doc false
  def fetch_user(conn, _options),
    do: assign(conn, :user, Accounts.user_of_session(get_session(conn, :token)))

  @doc false
  def require_user(conn, _options) do
    if conn.assigns.user, do: conn, else: conn |> redirect(to: ~p"/login") |> halt()
  end

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

  @doc false
  def on_mount(:require_user, _params, session, socket) do
    case Accounts.user_of_session(session["token"]) do
      nil -> {:halt, Phoenix.LiveView.redirect(socket, to: ~p"/login")}
      user -> {:cont, Phoenix.Component.assign(socket, :user, user)}
    end
  end

  def on_mount(:require_admin, _params, session, socket) do
    case Accounts.user_of_session(session["token"]) do
      %{admin: true} -> {:cont, socket}
      _ -> {:halt, Phoenix.LiveView.redirect(socket, to: ~p"/login")}
    end
  end
end
