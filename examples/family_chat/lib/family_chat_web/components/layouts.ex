defmodule FamilyChatWeb.Layouts do
  @moduledoc false
  use FamilyChatWeb, :component

  def root(assigns) do
    ~H"""
    <!DOCTYPE html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover" />
        <meta name="csrf-token" content={Plug.CSRFProtection.get_csrf_token()} />
        <meta name="color-scheme" content="light dark" />
        <title><%= assigns[:page_title] || "Family chat" %></title>
        <link rel="icon" href="data:," />
        <link rel="stylesheet" href={~p"/app.css"} />
        <script defer src={~p"/packages/phoenix/phoenix.min.js"}></script>
        <script defer src={~p"/packages/live_view/phoenix_live_view.min.js"}></script>
        <script type="module" src={~p"/app.js"}></script>
      </head>
      <body>
        <%= @inner_content %>
      </body>
    </html>
    """
  end

  def app(assigns) do
    ~H"""
    <%= @inner_content %>
    """
  end
end
