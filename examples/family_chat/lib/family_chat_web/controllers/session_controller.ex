defmodule FamilyChatWeb.SessionController do
  use FamilyChatWeb, :controller

  alias FamilyChat.{Accounts, Locks}
  alias FamilyChatWeb.UserAuth

  def login(conn, _params), do: page(conn, :login, %{}, %{})

  def create(conn, %{"name" => name, "password" => password}) do
    case Accounts.authenticate(name, password) do
      {:ok, user} ->
        UserAuth.log_in(conn, user)

      {:error, :wrong} ->
        page(conn, :login, %{"name" => name}, %{form: "The name or the password is wrong."})

      {:error, reason} ->
        page(conn, :login, %{"name" => name}, %{form: later(reason)}, later_status(reason))
    end
  end

  def create(conn, _params), do: login(conn, %{})

  # With a session, and keys that are locked: of a browser that has no token for them any more.
  def locked(conn, params) do
    if Locks.open?(conn.assigns.user.id),
      do: redirect(conn, to: UserAuth.way_back(params["to"])),
      else: page(conn, :unlock, params, %{})
  end

  def unlock(conn, params) do
    user = conn.assigns.user

    case Accounts.authenticate(user.name, params["password"]) do
      {:ok, _user} ->
        conn
        |> UserAuth.put_unlock_token(user)
        |> redirect(to: UserAuth.way_back(params["to"]))

      {:error, :wrong} ->
        page(conn, :unlock, params, %{password: "this is not your password"})

      {:error, reason} ->
        page(conn, :unlock, params, %{password: later(reason)}, later_status(reason))
    end
  end

  defp later(:wait), do: "Too many attempts. Wait a few minutes, please."
  defp later(:busy), do: "Many people are logging in just now. Try again, please."

  defp later_status(:wait), do: 422
  defp later_status(:busy), do: 503

  def signup(conn, _params), do: page(conn, :signup, %{}, %{})

  def register(conn, params) do
    case Accounts.sign_up(params) do
      {:ok, user} -> UserAuth.log_in(conn, user)
      {:error, %{} = errors} when not is_struct(errors) -> page(conn, :signup, params, errors)
      {:error, _} -> page(conn, :signup, params, %{form: "That did not work. Try again, please."})
    end
  end

  def delete(conn, _params), do: UserAuth.log_out(conn)

  def delete_all(conn, _params), do: UserAuth.log_out_everywhere(conn)

  # A password is not sent back.
  defp page(conn, template, params, errors, status \\ 422) do
    params =
      for {key, value} <- params,
          key in ~w(name display_name to),
          is_binary(value),
          into: %{},
          do: {key, value}

    invitation? = Application.get_env(:family_chat, :invitation) != nil

    conn
    |> put_status(if(errors == %{}, do: 200, else: status))
    |> put_view(html: FamilyChatWeb.SessionHTML)
    |> render(template, params: params, errors: errors, invitation?: invitation?)
  end
end
