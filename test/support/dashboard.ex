defmodule Kith.Test.Dashboard do
  @moduledoc false
  # The page of LiveDashboard without a dashboard around it.

  alias Kith.LiveDashboard.Page

  # Built only where Phoenix is.
  @compile {:no_warn_undefined, [Page, Phoenix.HTML.Safe, Phoenix.LiveView.Socket]}

  @doc "The socket of a page that was just opened."
  def mount(monitor, node \\ node()) do
    socket = struct!(Phoenix.LiveView.Socket, [])
    socket = %{socket | assigns: Map.put(socket.assigns, :page, %{node: node})}
    {:ok, session} = Page.init(monitor: monitor)
    {:ok, socket} = Page.mount(%{}, session, socket)
    socket
  end

  @doc "Its HTML."
  def render(socket) do
    socket.assigns |> Page.render() |> Phoenix.HTML.Safe.to_iodata() |> IO.iodata_to_binary()
  end
end
