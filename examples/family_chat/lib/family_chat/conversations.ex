defmodule FamilyChat.Conversations do
  @moduledoc """
  Who talks to whom: contacts, direct and family conversations, what was read, and how long messages stay.

  Every function that is called on behalf of a user asks whether they are a member: Kith does not know who may read what.
  """

  alias FamilyChat.{Accounts, Mailbox, SQL}

  # The pairwise fan-out costs one message for each of them.
  @max_members 30

  # Seconds after which messages disappear, unless the configuration has others.
  @timers [nil, 30, 300, 3_600, 86_400, 604_800]

  defmodule Conversation do
    @moduledoc "A conversation as one of its members sees it."
    defstruct [:id, :kind, :title, :timer, :active_at, :read_at, members: [], unread: 0]
  end

  def max_members, do: @max_members
  def timers, do: Application.get_env(:family_chat, :timers, @timers)

  @doc """
  Finds a user by name and makes both contacts of each other, with a conversation. Returns its id.
  """
  def add_contact(user, name) do
    name = name |> to_string() |> String.trim() |> String.downcase()

    with true <- String.valid?(name) and not String.contains?(name, <<0>>),
         [[other]] when other != user.id <-
           SQL.rows("SELECT id FROM users WHERE name = $1", [name]) do
      id =
        SQL.transaction(fn ->
          for {a, b} <- [{user.id, other}, {other, user.id}] do
            SQL.run(
              "INSERT INTO contacts (user_id, contact_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
              [a, b]
            )
          end

          direct(user.id, other)
        end)

      tell(id)
      {:ok, id}
    else
      [[_self]] -> {:error, "that is you"}
      _ -> {:error, "nobody here has this name"}
    end
  end

  defp direct(a, b) do
    pair = Enum.join(Enum.sort([a, b]), " ")
    insert(%{kind: "direct", pair: pair, title: nil}, [a, b])

    [[id]] = SQL.rows("SELECT id FROM conversations WHERE pair = $1", [pair])
    id
  end

  defp insert(%{kind: kind, pair: pair, title: title}, members) do
    id = SQL.new_id()
    now = SQL.now()

    inserted =
      SQL.run(
        """
        INSERT INTO conversations (id, kind, title, pair, timer, active_at) VALUES ($1, $2, $3, $4, NULL, $5)
        ON CONFLICT (pair) DO NOTHING
        """,
        [id, kind, title, pair, now]
      )

    if inserted == 1, do: Enum.each(members, &insert_member(id, &1, now))
    id
  end

  defp insert_member(id, user_id, now) do
    SQL.run(
      "INSERT INTO members (conversation_id, user_id, read_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
      [id, user_id, now]
    )
  end

  @doc "Begins a conversation of several contacts."
  def create_family(user, title, contact_ids) do
    title = title |> to_string() |> String.trim()
    known = MapSet.new(contacts(user), & &1.id)
    others = contact_ids |> Enum.uniq() |> Enum.filter(&(&1 in known))

    cond do
      not String.valid?(title) or String.contains?(title, <<0>>) or
          String.length(title) not in 1..60 ->
        {:error, "a name of 1 to 60 characters, please"}

      others == [] ->
        {:error, "choose at least one person"}

      length(others) >= @max_members ->
        {:error, "at most #{@max_members} people"}

      true ->
        id =
          SQL.transaction(fn ->
            id = insert(%{kind: "family", pair: nil, title: title}, [user.id | others])
            notice(id, user.id, "created", title)
            id
          end)

        tell(id)
        {:ok, id}
    end
  end

  @doc "Adds a contact to a family conversation. They see what is written from now on."
  def add_member(user, id, contact_id) do
    with {:ok, %{kind: "family"} = conversation} <- fetch(user, id),
         true <- contact_id in Enum.map(contacts(user), & &1.id) do
      if length(conversation.members) >= @max_members do
        {:error, "at most #{@max_members} people"}
      else
        SQL.transaction(fn ->
          if insert_member(id, contact_id, SQL.now()) == 1,
            do: notice(id, contact_id, "joined", nil)
        end)

        tell(id)
        :ok
      end
    else
      _ -> {:error, "this cannot be done"}
    end
  end

  @doc "The contacts of a user, by name."
  def contacts(user) do
    sql = """
    SELECT u.id FROM contacts c JOIN users u ON u.id = c.contact_id
    WHERE c.user_id = $1 ORDER BY u.display_name, u.id
    """

    ids = for [id] <- SQL.rows(sql, [user.id]), do: id
    users = Accounts.users(ids)
    Enum.map(ids, &users[&1])
  end

  @doc "The conversations of a user, the one with the newest message first."
  def list(user), do: load(user, "", [])

  @doc "One of them, if the user is a member."
  def fetch(user, id) do
    # It comes out of an address.
    case is_binary(id) and id =~ ~r/\A[\w-]{22}\z/ and load(user, "AND c.id = $2", [id]) do
      [conversation] -> {:ok, conversation}
      _ -> {:error, :not_found}
    end
  end

  defp load(user, condition, params) do
    sql = """
    SELECT c.id, c.kind, c.title, c.timer, c.active_at, m.read_at,
      (SELECT COUNT(*) FROM messages s
       WHERE s.conversation_id = c.id AND s.sent_at > m.read_at AND s.sender_id <> $1)
    FROM conversations c JOIN members m ON m.conversation_id = c.id
    WHERE m.user_id = $1 #{condition} ORDER BY c.active_at DESC, c.id
    """

    rows = SQL.rows(sql, [user.id | params])
    members = members(Enum.map(rows, &hd/1))
    users = members |> Map.values() |> Enum.concat() |> Enum.uniq() |> Accounts.users()

    for [id, kind, title, timer, active_at, read_at, unread] <- rows do
      people = Enum.map(members[id], &users[&1])

      %Conversation{
        id: id,
        kind: kind,
        title: title || other_name(people, user),
        timer: timer,
        active_at: active_at,
        read_at: read_at,
        unread: unread,
        members: Enum.sort_by(people, &{&1.display_name, &1.id})
      }
    end
  end

  defp other_name(people, user),
    do: Enum.find_value(people, "?", &(&1.id != user.id && &1.display_name))

  defp members([]), do: %{}

  defp members(ids) do
    sql =
      "SELECT conversation_id, user_id FROM members WHERE conversation_id IN (#{SQL.places(ids)})"

    Enum.group_by(SQL.rows(sql, ids), &hd/1, &List.last/1)
  end

  @doc "The ids of the members of a conversation."
  def member_ids(id), do: Map.get(members([id]), id, [])

  @doc "Notes that a user has seen what there is."
  def mark_read(user, id) do
    SQL.run(
      """
      UPDATE members SET read_at = $3 WHERE conversation_id = $1 AND user_id = $2 AND read_at < $3
      """,
      [id, user.id, SQL.now()]
    )
  end

  @doc "Sets after how many seconds new messages disappear; nil for never."
  def set_timer(user, id, timer) do
    with true <- timer in timers() || {:error, :not_found},
         {:ok, conversation} <- fetch(user, id) do
      if conversation.timer != timer do
        SQL.transaction(fn ->
          SQL.run("UPDATE conversations SET timer = $2 WHERE id = $1", [id, timer])
          notice(id, user.id, "timer", timer && to_string(timer))
        end)

        tell(id)
      end

      :ok
    end
  end

  @doc "What happened in a conversation besides messages, between two times."
  def notices(id, from, to) do
    sql = """
    SELECT id, kind, user_id, value, at FROM notices
    WHERE conversation_id = $1 AND at >= $2 AND at < $3 ORDER BY at
    """

    for [id, kind, user_id, value, at] <- SQL.rows(sql, [id, from, to]),
        do: %{id: id, kind: kind, user_id: user_id, value: value, at: at}
  end

  defp notice(id, user_id, kind, value) do
    SQL.run(
      "INSERT INTO notices (id, conversation_id, user_id, kind, value, at) VALUES ($1, $2, $3, $4, $5, $6)",
      [SQL.new_id(), id, user_id, kind, value, SQL.now()]
    )
  end

  @doc "A line in every conversation of a user whose keys are new. In the transaction that changes them."
  def identity_changed(user_id) do
    for [id] <- SQL.rows("SELECT conversation_id FROM members WHERE user_id = $1", [user_id]),
        do: notice(id, user_id, "identity", nil)

    :ok
  end

  @doc "Tells all who share a conversation with that user, once it is committed."
  def tell_identity_changed(user_id) do
    sql = """
    SELECT DISTINCT b.user_id FROM members a JOIN members b ON b.conversation_id = a.conversation_id
    WHERE a.user_id = $1
    """

    for [other] <- SQL.rows(sql, [user_id]),
        do: Mailbox.broadcast(other, {:identity_changed, user_id})

    :ok
  end

  defp tell(id) do
    Enum.each(member_ids(id), &Mailbox.broadcast(&1, {:conversation, id}))
  end
end
