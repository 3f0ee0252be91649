defmodule FamilyChatWeb.SessionController do
  use FamilyChatWeb, :controller

  alias FamilyChat.Accounts
  alias FamilyChatWeb.UserAuth

  def login(conn, _params), do: page(conn, :login, %{}, %{})

  def create(conn, %{"name" => name, "password" => password}) do
    case Accounts.authenticate(name, password) do
      {:ok, user} ->
        UserAuth.log_in(conn, user)

      {:error, :wrong} ->
        page(conn, :login, %{"name" => name}, %{form: "The name or the password is wrong."})

      {:error, :wait} ->
        page(conn, :login, %{"name" => name}, %{
          form: "Too many attempts. Wait a few minutes, please."
        })
    end
  end

  def create(conn, _params), do: login(conn, %{})

  def signup(conn, _params), do: page(conn, :signup, %{}, %{})

  def register(conn, params) do
    case Accounts.sign_up(params) do
      {:ok, user} -> UserAuth.log_in(conn, user)
      {:error, %{} = errors} when not is_struct(errors) -> page(conn, :signup, params, errors)
      {:error, _} -> page(conn, :signup, params, %{form: "That did not work. Try again, please."})
    end
  end

  def delete(conn, _params), do: UserAuth.log_out(conn)

  # A password is not sent back.
  defp page(conn, template, params, errors) do
    params =
      for {key, value} <- params,
          key in ~w(name display_name),
          is_binary(value),
          into: %{},
          do: {key, value}

    invitation? = Application.get_env(:family_chat, :invitation) != nil

    conn
    |> put_status(if(errors == %{}, do: 200, else: 422))
    |> put_view(html: FamilyChatWeb.SessionHTML)
    |> render(template, params: params, errors: errors, invitation?: invitation?)
  end
end
