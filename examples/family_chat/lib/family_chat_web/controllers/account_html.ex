defmodule FamilyChatWeb.AccountHTML do
  use FamilyChatWeb, :component

  import FamilyChatWeb.FormComponents

  def show(assigns) do
    ~H"""
    <main class="card">
      <h1>Password and keys</h1>
      <p :if={@done == :password} class="good" role="status">You have a new password. All other browsers are logged out.</p>
      <p :if={@done == :keys} class="good" role="status">You have new keys. All other browsers are logged out.</p>

      <h2>Another password</h2>
      <form action={~p"/account/password"} method="post" id="change-password">
        <.csrf />
        <.field name="password" label="The password you have" type="password" autocomplete="current-password" errors={@errors} />
        <.field name="new" label="The new one" type="password" autocomplete="new-password" errors={@errors} hint="At least 10 characters." />
        <button class="primary">Change it</button>
      </form>

      <h2>Everywhere</h2>
      <p>
        Your keys are locked when you log out of the last browser. Here you log out of all of them, and lock your keys.
      </p>
      <form action={~p"/logout/everywhere"} method="post" id="logout-everywhere">
        <.csrf />
        <button>Log out everywhere</button>
      </form>

      <h2>New keys</h2>
      <p>
        If you think that somebody has a copy of your keys: get new ones. Your history on this server is deleted with the old ones,
        your recovery kit opens nothing any more, and everyone you write with is warned and has to accept the new ones.
      </p>
      <form action={~p"/account/keys"} method="post" id="renew-keys">
        <.csrf />
        <.field name="keys_password" label="Your password" type="password" autocomplete="current-password" errors={@errors} />
        <button class="danger">Delete my history and set up my keys anew</button>
      </form>
      <p><a href={~p"/settings"}>Back to the chat</a></p>
    </main>
    """
  end
end
