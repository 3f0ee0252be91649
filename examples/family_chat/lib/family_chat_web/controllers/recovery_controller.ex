defmodule FamilyChatWeb.RecoveryController do
  @moduledoc """
  The recovery kit: made, tried, and used.

  The server keeps no words between two requests. The page that shows them sends them back for the file, in the body of a form.
  """

  use FamilyChatWeb, :controller

  alias FamilyChat.RecoveryKit
  alias FamilyChatWeb.UserAuth

  def show(conn, _params), do: kit_page(conn, %{})

  def words(conn, params) do
    password = if is_binary(params["password"]), do: params["password"], else: ""

    case RecoveryKit.words(conn.assigns.user, password) do
      {:ok, words} -> page(conn, :words, %{}, words: words)
      {:error, errors} -> kit_page(conn, errors)
    end
  end

  def file(conn, params) do
    user = conn.assigns.user

    case RecoveryKit.file(user, params["words"]) do
      {:ok, stream} -> send_file_of(conn, user, stream)
      {:error, sentence} -> kit_page(conn, %{form: sentence})
    end
  end

  # Memory does not grow with the history.
  defp send_file_of(conn, user, stream) do
    conn =
      conn
      |> put_resp_content_type("application/octet-stream")
      |> put_resp_header(
        "content-disposition",
        ~s(attachment; filename="family-chat-#{user.name}.kith")
      )
      |> send_chunked(200)

    sent =
      Enum.reduce_while(stream, {:ok, conn}, fn bytes, {:ok, conn} ->
        case chunk(conn, bytes) do
          {:ok, conn} -> {:cont, {:ok, conn}}
          {:error, _closed} -> {:halt, {:closed, conn}}
        end
      end)

    with {:ok, conn} <- sent do
      RecoveryKit.saved(user)
      conn
    else
      {:closed, conn} -> conn
    end
  end

  def try(conn, _params), do: page(conn, :try, %{}, tried: nil)

  def tried(conn, params) do
    user = conn.assigns.user

    case RecoveryKit.try(user, params["words"], path(params["file"])) do
      :ok -> page(conn, :try, %{}, tried: RecoveryKit.state(user).tried_at)
      {:error, errors} -> page(conn, :try, errors, tried: nil)
    end
  end

  def restore(conn, _params), do: page(conn, :restore, %{}, name: nil)

  def restored(conn, params) do
    case RecoveryKit.restore(
           params["name"],
           params["words"],
           path(params["file"]),
           params["password"]
         ) do
      {:ok, user} -> UserAuth.log_in(conn, user)
      {:error, errors} -> page(conn, :restore, errors, name: name(params["name"]))
    end
  end

  defp name(name), do: if(is_binary(name), do: name)

  defp path(%Plug.Upload{path: path}), do: path
  defp path(_none), do: nil

  defp kit_page(conn, errors),
    do: page(conn, :show, errors, kit: RecoveryKit.state(conn.assigns.user))

  # Neither words nor a password are sent back.
  defp page(conn, template, errors, assigns) do
    conn
    |> put_status(if(errors == %{}, do: 200, else: 422))
    |> put_view(html: FamilyChatWeb.RecoveryHTML)
    |> render(template, [errors: errors] ++ assigns)
  end
end
