defmodule FamilyChatWeb do
  @moduledoc false

  def router do
    quote do
      use Phoenix.Router, helpers: false
      import Plug.Conn
      import Phoenix.Controller
      import Phoenix.LiveView.Router
    end
  end

  def controller do
    quote do
      use Phoenix.Controller, formats: [], layouts: []
      import Plug.Conn
      unquote(verified_routes())
    end
  end

  def live_view do
    quote do
      # What LiveView logs of a page that is opened has the token of the session in it.
      use Phoenix.LiveView, layout: {FamilyChatWeb.Layouts, :app}, log: false
      unquote(html())
    end
  end

  def component do
    quote do
      use Phoenix.Component
      unquote(html())
    end
  end

  defp html do
    quote do
      alias Phoenix.LiveView.JS
      unquote(verified_routes())
    end
  end

  defp verified_routes do
    quote do
      use Phoenix.VerifiedRoutes,
        endpoint: FamilyChatWeb.Endpoint,
        router: FamilyChatWeb.Router,
        statics: ~w(app.css app.js vendor packages)
    end
  end

  defmacro __using__(which) when is_atom(which), do: apply(__MODULE__, which, [])
end
