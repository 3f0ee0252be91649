defmodule FamilyChatWeb.OperationsController do
  @moduledoc "For whoever runs the server: whether it is well, and figures for Prometheus."

  use FamilyChatWeb, :controller

  def health(conn, _params) do
    case FamilyChat.Kith.health() do
      {:ok, %{store: :ok, vault: :ok}} -> text(conn, "ok\n")
      _ -> conn |> put_status(503) |> text("not well\n")
    end
  end

  def metrics(conn, _params) do
    conn
    |> put_resp_content_type("text/plain; version=0.0.4")
    |> send_resp(200, Kith.Monitor.prometheus(FamilyChat.Kith))
  end
end
