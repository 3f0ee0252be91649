defmodule FamilyChat.Family do
  @moduledoc "People and conversations for tests. All share one database, and keep out of each other's way by their names."

  alias FamilyChat.{Accounts, Chat, Conversations, Mailbox}

  def password, do: "correct horse battery"

  def person!(name) do
    unique = "#{name}#{System.unique_integer([:positive])}"
    params = %{"name" => unique, "display_name" => name, "password" => password()}
    {:ok, user} = Accounts.sign_up(params)
    user
  end

  def people!(names), do: Enum.map(names, &person!/1)

  @doc "Whether the key that opens what a user has is sealed under their password in the database."
  def locked_at_rest?(user) do
    [[data_key]] =
      FamilyChat.SQL.rows("SELECT data_key FROM signal_accounts WHERE user_id = $1", [user.id])

    match?(<<1, 0x11, _::binary>>, data_key)
  end

  @doc "A conversation of the first with all others."
  def family!([first | others]) do
    for other <- others, do: {:ok, _} = Conversations.add_contact(first, other.name)
    {:ok, id} = Conversations.create_family(first, "Home", Enum.map(others, & &1.id))
    id
  end

  def direct!(a, b) do
    {:ok, id} = Conversations.add_contact(a, b.name)
    id
  end

  def message_id do
    <<a::binary-8, b::binary-4, c::binary-4, d::binary-4, e::binary-12>> =
      Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)

    Enum.join([a, b, c, d, e], "-")
  end

  def say!(user, conversation, text) do
    {:ok, item} = Chat.send(user, conversation, message_id(), text)
    item
  end

  @doc "What a page does when it is opened."
  def come(user) do
    Chat.open_waiting(user)
    Chat.flush(user)
    :ok
  end

  @doc "What somebody sees: who said what, with placeholders as their reasons."
  def sees(user, conversation) do
    {:ok, {items, _before}} = Chat.timeline(user, conversation)

    for item <- items, item.kind != :notice do
      case item.kind do
        :message -> item.text
        :unopened -> {:unopened, item.reason}
      end
    end
  end

  @doc "Changes the body of all that waits for a user."
  def damage!(user, change) do
    for id <- Mailbox.waiting(user.id) do
      body = change.(Mailbox.fetch(user.id, id).body)

      FamilyChat.SQL.run("UPDATE envelopes SET body = $2 WHERE id = $1", [
        id,
        FamilyChat.SQL.bytes(body)
      ])
    end
  end
end
