defmodule FamilyChat.Payload do
  @moduledoc """
  What is encrypted: JSON with the id of the message, its text, and after how many seconds it disappears.

  The id is inside, where nobody can change it: a message that is delivered a second time is the same message.
  """

  @max_text 4_000

  @doc "Checks what somebody wants to send."
  def text(text) when is_binary(text) do
    text = if String.valid?(text), do: String.trim(text), else: ""
    if String.length(text) in 1..@max_text, do: {:ok, text}, else: {:error, :length}
  end

  def text(_), do: {:error, :length}

  def max_text, do: @max_text

  @doc "Ids are made by the browser, so that a message that is sent twice for want of an answer is one."
  def id(id) when is_binary(id) do
    if id =~ ~r/\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z/, do: {:ok, id}, else: {:error, :id}
  end

  def id(_), do: {:error, :id}

  def encode(id, text, timer), do: Jason.encode!(%{v: 1, id: id, text: text, timer: timer})

  def decode(plaintext) do
    with {:ok, %{"v" => 1, "id" => id, "text" => text}} <- Jason.decode(plaintext),
         {:ok, id} <- id(id),
         {:ok, text} <- text(text) do
      {:ok, %{id: id, text: text}}
    else
      _ -> :error
    end
  end
end
