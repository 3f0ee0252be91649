defmodule FamilyChatWeb.RecoveryHTML do
  use FamilyChatWeb, :component

  import FamilyChatWeb.FormComponents
  import FamilyChatWeb.ChatComponents, only: [date: 1]

  def show(assigns) do
    ~H"""
    <main class="card">
      <h1>Recovery kit</h1>
      <p :if={@kit == nil} id="kit">You have none. If you forget your password without one, your messages are lost: nobody can give you another password.</p>
      <p :if={@kit && @kit.tried_at} class="good" id="kit">Yours is of <.date at={@kit.tried_at} />, and you have tried it.</p>
      <p :if={@kit && @kit.tried_at == nil} class="problem" id="kit">You have saved one, and not tried it.</p>
      <.problem errors={@errors} field={:form} />

      <p>It is twelve words, to write down on paper, and a file, to keep somewhere else. Who has both has your account as it was on
        that day: identity, contacts and history. Who has one of them has nothing.</p>
      <p>The file does not know what is written later. Make a new kit now and then, and delete the old one.</p>

      <form action={~p"/recovery"} method="post" id="make-kit">
        <.csrf />
        <.field name="password" label="Your password" type="password" autocomplete="current-password" errors={@errors} />
        <button class="primary">Show me twelve words</button>
      </form>
      <p :if={@kit}><a href={~p"/recovery/try"} class="button">Try the one I have</a></p>
      <p><a href={~p"/settings"}>Back to the chat</a></p>
    </main>
    """
  end

  attr(:words, :list, required: true)

  # The words are in the page, and nowhere on the server: the form brings them back for the file.
  def words(assigns) do
    ~H"""
    <main class="card">
      <h1>Your twelve words</h1>
      <p>Write them down now, in this order. They are shown once.</p>
      <ol class="words" id="words" translate="no"><li :for={word <- @words}><%= word %></li></ol>
      <form action={~p"/recovery/file"} method="post" id="save-kit">
        <.csrf />
        <input type="hidden" name="words" value={Enum.join(@words, " ")} autocomplete="off" />
        <button class="primary">Save the file</button>
      </form>
      <p>A kit that nobody has tried is none. When you have both:</p>
      <p><a href={~p"/recovery/try"} class="button">Try it</a></p>
      <p><a href={~p"/settings"}>Back to the chat</a></p>
    </main>
    """
  end

  def try(assigns) do
    ~H"""
    <main class="card">
      <h1>Try the kit</h1>
      <p :if={@tried} class="good" role="status" id="tried">The words open the file, and the file is whole. It is of <.date at={@tried} />.</p>
      <div :if={@tried == nil}>
        <p>Type the words from your paper, and choose the file where you have put it. Nothing is changed.</p>
        <.problem errors={@errors} field={:form} />
        <form action={~p"/recovery/try"} method="post" enctype="multipart/form-data" id="try-kit">
          <.csrf />
          <.field name="words" label="The twelve words" type="words" errors={@errors} />
          <.field name="file" label="The file" type="file" errors={@errors} />
          <button class="primary">Try them</button>
        </form>
      </div>
      <p><a href={~p"/recovery"}>The recovery kit</a></p>
      <p><a href={~p"/settings"}>Back to the chat</a></p>
    </main>
    """
  end

  def restore(assigns) do
    ~H"""
    <main class="card">
      <h1>Use the recovery kit</h1>
      <p>With the words and the file you get your account as it was when you saved the file, under a new password. What you
        have read and written since then is not in it. All your browsers are logged out.</p>
      <.problem errors={@errors} field={:form} />
      <form action={~p"/recover"} method="post" enctype="multipart/form-data" id="use-kit">
        <.csrf />
        <.field name="name" label="Name" value={@name} autocomplete="username" errors={@errors} />
        <.field name="words" label="The twelve words" type="words" errors={@errors} />
        <.field name="file" label="The file" type="file" errors={@errors} />
        <.field name="password" label="A new password" type="password" autocomplete="new-password" errors={@errors} hint="At least 10 characters." />
        <button class="primary">Bring my account back</button>
      </form>
      <p><a href={~p"/login"}>Log in with the password</a></p>
    </main>
    """
  end
end
