defmodule FamilyChatWeb.SessionHTML do
  use FamilyChatWeb, :component

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
      <FamilyChatWeb.ChatComponents.protection_short />
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
        <.field name="password" label="Password" type="password" autocomplete="new-password" errors={@errors} hint="At least 10 characters." />
        <.field :if={@invitation?} name="invitation" label="The word your family was given" errors={@errors} />
        <button class="primary">Sign up</button>
      </form>
      <p>You have an account? <a href={~p"/login"}>Log in</a></p>
      <FamilyChatWeb.ChatComponents.protection_short />
    </main>
    """
  end

  defp csrf(assigns) do
    ~H"""
    <input type="hidden" name="_csrf_token" value={Plug.CSRFProtection.get_csrf_token()} />
    """
  end

  attr(:name, :string, required: true)
  attr(:label, :string, required: true)
  attr(:type, :string, default: "text")
  attr(:value, :string, default: nil)
  attr(:hint, :string, default: nil)
  attr(:autocomplete, :string, default: "off")
  attr(:errors, :map, required: true)

  defp field(assigns) do
    assigns = assign(assigns, :error, assigns.errors[String.to_existing_atom(assigns.name)])

    ~H"""
    <label for={@name}><%= @label %></label>
    <input
      id={@name}
      name={@name}
      type={@type}
      value={@value}
      autocomplete={@autocomplete}
      autocapitalize="none"
      required
      aria-invalid={if @error, do: "true"}
      aria-describedby={"#{@name}-help"}
    />
    <p id={"#{@name}-help"} class={if @error, do: "problem", else: "hint"}><%= @error || @hint %></p>
    """
  end

  attr(:errors, :map, required: true)
  attr(:field, :atom, required: true)

  defp problem(assigns) do
    ~H"""
    <p :if={@errors[@field]} class="problem" role="alert"><%= @errors[@field] %></p>
    """
  end
end
