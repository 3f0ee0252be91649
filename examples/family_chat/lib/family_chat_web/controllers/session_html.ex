defmodule FamilyChatWeb.SessionHTML do
  use FamilyChatWeb, :component

  import FamilyChatWeb.FormComponents

  def login(assigns) do
    ~H"""
    <main class="card">
      <h1>Family chat</h1>
      <form action={~p"/login"} method="post">
        <.csrf />
        <.problem errors={@errors} field={:form} />
        <.field name="name" label="Name" value={@params["name"]} autocomplete="username" errors={@errors} />
        <.field name="password" label="Password" type="password" autocomplete="current-password" errors={@errors} />
        <button class="primary">Log in</button>
      </form>
      <p>New here? <a href={~p"/signup"}>Make an account</a></p>
      <p>You have forgotten the password? <a href={~p"/recover"}>Use your recovery kit</a></p>
      <FamilyChatWeb.ChatComponents.protection_short />
    </main>
    """
  end

  def unlock(assigns) do
    ~H"""
    <main class="card">
      <h1>Unlock</h1>
      <p>You are <strong><%= @user.display_name %></strong>, and your keys are locked. What you have not sent yet is still here.</p>
      <form action={~p"/unlock"} method="post">
        <.csrf />
        <input type="hidden" name="to" value={@params["to"]} />
        <input type="text" name="name" value={@user.name} autocomplete="username" aria-label="Name" readonly hidden />
        <.field name="password" label="Password" type="password" autocomplete="current-password" errors={@errors} />
        <button class="primary">Unlock</button>
      </form>
      <form action={~p"/logout"} method="post" id="logout">
        <.csrf />
        <button>Log out</button>
      </form>
    </main>
    """
  end

  def signup(assigns) do
    ~H"""
    <main class="card">
      <h1>Make an account</h1>
      <form action={~p"/signup"} method="post">
        <.csrf />
        <.problem errors={@errors} field={:form} />
        <.field name="name" label="Name to log in with" value={@params["name"]} autocomplete="username" errors={@errors} />
        <.field name="display_name" label="Name the others see" value={@params["display_name"]} autocomplete="name" errors={@errors} />
        <.field name="password" label="Password" type="password" autocomplete="new-password" errors={@errors} hint="At least 10 characters. It locks your messages: nobody can give you another one." />
        <.field :if={@invitation?} name="invitation" label="The word your family was given" errors={@errors} />
        <button class="primary">Sign up</button>
      </form>
      <p>You have an account? <a href={~p"/login"}>Log in</a></p>
      <FamilyChatWeb.ChatComponents.protection_short />
    </main>
    """
  end
end
