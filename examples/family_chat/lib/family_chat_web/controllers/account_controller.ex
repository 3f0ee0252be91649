defmodule FamilyChatWeb.AccountController do
  @moduledoc "What takes the password once more. No page of LiveView ever has one: it comes with a form and goes with the request."

  use FamilyChatWeb, :controller

  alias FamilyChat.Accounts
  alias FamilyChatWeb.UserAuth

  def show(conn, _params), do: page(conn, %{}, nil)

  def password(conn, params) do
    {user, token} = {conn.assigns.user, get_session(conn, :token)}

    case Accounts.change_password(user, token, text(params["password"]), text(params["new"])) do
      :ok -> conn |> UserAuth.put_unlock_token(user) |> page(%{}, :password)
      {:error, errors} -> page(conn, errors, nil)
    end
  end

  def keys(conn, params) do
    {user, token} = {conn.assigns.user, get_session(conn, :token)}

    case Accounts.renew_keys(user, token, text(params["keys_password"])) do
      :ok ->
        conn |> UserAuth.put_unlock_token(user) |> page(%{}, :keys)

      {:error, %Kith.Error{}} ->
        page(conn, %{keys_password: "That did not work. Try again, please."}, nil)

      {:error, %{password: sentence}} ->
        page(conn, %{keys_password: sentence}, nil)
    end
  end

  defp text(text) when is_binary(text), do: text
  defp text(_), do: ""

  defp page(conn, errors, done) do
    conn
    |> put_status(if(errors == %{}, do: 200, else: 422))
    |> put_view(html: FamilyChatWeb.AccountHTML)
    |> render(:show, errors: errors, done: done)
  end
end
