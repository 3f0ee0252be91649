defmodule FamilyChatWeb.FormComponents do
  @moduledoc "The fields of forms that are sent as a whole: those with a password."

  use FamilyChatWeb, :component

  def csrf(assigns) do
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

  def field(assigns) do
    assigns = assign(assigns, :error, assigns.errors[String.to_existing_atom(assigns.name)])

    ~H"""
    <label for={@name}><%= @label %></label>
    <textarea
      :if={@type == "words"}
      id={@name}
      name={@name}
      rows="4"
      autocomplete="off"
      autocapitalize="none"
      autocorrect="off"
      spellcheck="false"
      required
      aria-invalid={if @error, do: "true"}
      aria-describedby={"#{@name}-help"}
    ></textarea>
    <input
      :if={@type != "words"}
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
    <p id={"#{@name}-help"} class={if @error, do: "problem", else: "hint"} role={if @error, do: "alert"}><%= @error || @hint %></p>
    """
  end

  attr(:errors, :map, required: true)
  attr(:field, :atom, required: true)

  def problem(assigns) do
    ~H"""
    <p :if={@errors[@field]} class="problem" role="alert"><%= @errors[@field] %></p>
    """
  end
end
