defmodule FamilyChatWeb.ChatLive do
  @moduledoc """
  The chat. Every page a user has open is one process, in which the messages for them are opened.

  When the keys of the user are locked, the page is loaded anew: the browser's token unlocks them, or it is asked for the password. What
  is typed, or not sent yet, is kept by the browser.
  """

  use FamilyChatWeb, :live_view

  import FamilyChatWeb.ChatComponents

  alias FamilyChat.{Chat, Conversations, Locks, Mailbox, RecoveryKit}
  alias FamilyChatWeb.Presence

  @pubsub FamilyChat.PubSub

  # Milliseconds after which somebody is not typing any more.
  @typing 4_000

  # And after which what could not be opened is tried again.
  @later 5_000

  @impl true
  def mount(_params, _session, socket) do
    user = socket.assigns.user

    online =
      if connected?(socket) do
        Mailbox.subscribe(user.id)
        Presence.enter(user.id)
        send(self(), :catch_up)
        Presence.online()
      else
        MapSet.new()
      end

    socket =
      socket
      |> stream_configure(:items, dom_id: &"m-#{&1.id}")
      |> stream(:items, [])
      |> assign(
        conversation: nil,
        people: %{},
        before: nil,
        changed: [],
        verified: false,
        typing: %{},
        online: online,
        visible: true,
        problem: nil,
        path: ~p"/",
        kit: RecoveryKit.state(user),
        contacts: [],
        safety: nil,
        scan: nil,
        encryption: [],
        max_text: FamilyChat.Payload.max_text()
      )
      |> refresh_conversations()

    {:ok, socket}
  end

  @impl true
  def handle_params(params, uri, socket) do
    socket = assign(socket, problem: nil, scan: nil, path: URI.parse(uri).path || ~p"/")

    case params do
      %{"id" => id} ->
        case enter(socket, id) do
          {:ok, socket} -> {:noreply, prepare(socket, socket.assigns.live_action, params)}
          :error -> {:noreply, if_unlocked(socket, &push_patch(&1, to: ~p"/"))}
        end

      _ when socket.assigns.live_action == :index ->
        {:noreply, leave(socket)}

      # A dialog over the conversation that is open.
      _ ->
        {:noreply, prepare(socket, socket.assigns.live_action, params)}
    end
  end

  defp back(nil), do: ~p"/"
  defp back(conversation), do: ~p"/c/#{conversation.id}"

  # The conversation of the page.
  defp enter(%{assigns: %{conversation: %{id: id}}} = socket, id), do: {:ok, socket}

  defp enter(socket, id) do
    user = socket.assigns.user

    with {:ok, conversation} <- Conversations.fetch(user, id),
         {:ok, {items, before}} <- Chat.timeline(user, id) do
      socket = leave(socket)
      if connected?(socket), do: Phoenix.PubSub.subscribe(@pubsub, "conversation:" <> id)
      Enum.each(items, &expire_later/1)

      socket =
        socket
        |> assign(conversation: conversation, before: before)
        |> assign(people: Map.new(conversation.members, &{&1.id, &1}))
        |> stream(:items, items, reset: true)
        |> look_at_identities()
        |> read()

      {:ok, socket}
    else
      _ -> :error
    end
  end

  defp leave(%{assigns: %{conversation: nil}} = socket), do: socket

  defp leave(%{assigns: %{conversation: conversation}} = socket) do
    Phoenix.PubSub.unsubscribe(@pubsub, "conversation:" <> conversation.id)

    socket
    |> assign(
      conversation: nil,
      people: %{},
      before: nil,
      changed: [],
      verified: false,
      typing: %{}
    )
    |> stream(:items, [], reset: true)
  end

  defp prepare(socket, action, params) do
    user = socket.assigns.user

    case {action, params} do
      {:safety, %{"user" => other}} when is_map_key(socket.assigns.people, other) ->
        show_safety(socket, other)

      {:message, %{"message" => id}} ->
        assign(socket, encryption: Chat.encryption(user, id))

      {action, _} when action in [:new, :details] ->
        assign(socket, contacts: Conversations.contacts(user))

      _ ->
        socket
    end
  end

  defp show_safety(socket, other) do
    case Chat.safety(socket.assigns.user, other) do
      {:ok, safety} ->
        assign(socket, safety: Map.put(safety, :user, socket.assigns.people[other]))

      {:error, _} ->
        assign(socket, safety: nil)
    end
  end

  defp look_at_identities(%{assigns: %{conversation: nil}} = socket), do: socket

  defp look_at_identities(%{assigns: %{conversation: conversation, user: user}} = socket) do
    verified =
      case {conversation.kind, Enum.reject(conversation.members, &(&1.id == user.id))} do
        {"direct", [other]} -> Chat.verified?(user, other)
        _ -> false
      end

    assign(socket, changed: Chat.changed(user, conversation), verified: verified)
  end

  defp read(%{assigns: %{conversation: %{id: id}, user: user, visible: true}} = socket) do
    if connected?(socket), do: Conversations.mark_read(user, id)
    refresh_conversations(socket)
  end

  defp read(socket), do: refresh_conversations(socket)

  defp refresh_conversations(socket) do
    conversations = Conversations.list(socket.assigns.user)
    unread = conversations |> Enum.map(& &1.unread) |> Enum.sum()
    title = if unread > 0, do: "(#{unread}) Family chat", else: "Family chat"
    current = socket.assigns[:conversation]
    current = current && (Enum.find(conversations, &(&1.id == current.id)) || current)
    people = if current, do: Map.new(current.members, &{&1.id, &1}), else: %{}

    assign(socket,
      conversations: conversations,
      conversation: current,
      people: people,
      page_title: title
    )
  end

  # The newest page again: what is there already is drawn in its place.
  defp refresh_timeline(%{assigns: %{conversation: nil}} = socket), do: socket

  defp refresh_timeline(%{assigns: %{conversation: conversation, user: user}} = socket) do
    case Chat.timeline(user, conversation.id) do
      {:ok, {items, _before}} -> Enum.reduce(items, socket, &insert(&2, &1))
      {:error, _} -> socket
    end
  end

  defp insert(socket, item) do
    expire_later(item)
    stream_insert(socket, :items, item)
  end

  defp expire_later(%{expires_at: nil}), do: :ok

  defp expire_later(%{id: id, expires_at: at}) do
    # Timers are of 32 bits.
    left = at - System.system_time(:millisecond)
    if left < 0x7FFFFFFF, do: Process.send_after(self(), {:expired, id}, max(left, 0))
    :ok
  end

  @impl true
  def handle_event("send", %{"conversation" => id, "id" => message_id, "text" => text}, socket) do
    case Chat.send(socket.assigns.user, id, message_id, text) do
      {:ok, item} ->
        socket = if current?(socket, id), do: insert(socket, item), else: socket
        # Most likely for want of trust. It takes some milliseconds for each member.
        socket = if item.reason, do: look_at_identities(socket), else: socket
        {:reply, %{ok: true}, refresh_conversations(socket)}

      # The answer to the first time was lost.
      {:error, :sent_before} ->
        {:reply, %{ok: true}, refresh_timeline(socket)}

      {:error, reason} when reason in [:length, :id, :not_found] ->
        {:reply, %{ok: false, again: false}, socket}

      # When the page is here again.
      {:error, %{reason: :locked}} ->
        send(self(), :locked)
        {:reply, %{ok: false, again: true}, socket}

      {:error, _} ->
        {:reply, %{ok: false, again: true}, socket}
    end
  end

  def handle_event("typing", _params, %{assigns: %{conversation: %{id: id}}} = socket) do
    Phoenix.PubSub.broadcast_from(
      @pubsub,
      self(),
      "conversation:" <> id,
      {:typing, socket.assigns.user.id}
    )

    {:noreply, socket}
  end

  def handle_event(
        "earlier",
        _params,
        %{assigns: %{conversation: %{id: id}, before: before}} = socket
      )
      when before != nil do
    case Chat.timeline(socket.assigns.user, id, before) do
      {:ok, {items, before}} ->
        Enum.each(items, &expire_later/1)

        {:noreply, socket |> assign(before: before) |> stream(:items, Enum.reverse(items), at: 0)}

      {:error, _} ->
        {:noreply, socket}
    end
  end

  def handle_event("visible", %{"visible" => visible}, socket) when is_boolean(visible),
    do: {:noreply, socket |> assign(visible: visible) |> read()}

  def handle_event("add_contact", %{"name" => name}, socket) do
    case Conversations.add_contact(socket.assigns.user, name) do
      {:ok, id} -> {:noreply, push_patch(socket, to: ~p"/c/#{id}")}
      {:error, problem} -> {:noreply, assign(socket, problem: problem)}
    end
  end

  def handle_event("create_family", params, socket) do
    members = for {id, "true"} <- Map.get(params, "members", %{}), do: id

    case Conversations.create_family(socket.assigns.user, params["title"], members) do
      {:ok, id} -> {:noreply, push_patch(socket, to: ~p"/c/#{id}")}
      {:error, problem} -> {:noreply, assign(socket, problem: problem)}
    end
  end

  def handle_event(
        "add_member",
        %{"user" => contact},
        %{assigns: %{conversation: %{id: id}}} = socket
      ) do
    case Conversations.add_member(socket.assigns.user, id, contact) do
      :ok -> {:noreply, refresh_conversations(socket)}
      {:error, problem} -> {:noreply, assign(socket, problem: problem)}
    end
  end

  def handle_event(
        "set_timer",
        %{"timer" => timer},
        %{assigns: %{conversation: %{id: id}}} = socket
      ) do
    timer = Enum.find(Conversations.timers(), &(to_string(&1) == timer))
    Conversations.set_timer(socket.assigns.user, id, timer)
    {:noreply, refresh_conversations(socket)}
  end

  def handle_event("accept", %{"user" => other} = params, socket)
      when is_map_key(socket.assigns.people, other) do
    accepted =
      Chat.accept(socket.assigns.user, other, params["verified"] == "true", params["digits"])

    scan = if accepted == {:error, :changed}, do: :changed
    {:noreply, socket |> assign(scan: scan) |> after_accepting() |> show_again(other)}
  end

  def handle_event("scanned", %{"user" => other, "bytes" => bytes}, socket)
      when is_map_key(socket.assigns.people, other) do
    scan =
      case Base.decode64(to_string(bytes)) do
        {:ok, bytes} -> Chat.scanned(socket.assigns.user, other, bytes)
        :error -> :unreadable
      end

    socket = if scan == :same, do: after_accepting(socket), else: socket
    {:noreply, socket |> assign(scan: scan) |> show_again(other)}
  end

  # From a page that was open while the conversation was left, or from nobody who uses the page.
  def handle_event(_event, _params, socket), do: {:noreply, socket}

  defp after_accepting(socket),
    do: socket |> look_at_identities() |> refresh_timeline() |> refresh_conversations()

  defp show_again(%{assigns: %{live_action: :safety}} = socket, other),
    do: show_safety(socket, other)

  defp show_again(socket, _other), do: socket

  defp current?(%{assigns: %{conversation: %{id: id}}}, id), do: true
  defp current?(_socket, _id), do: false

  @impl true
  def handle_info(:catch_up, socket) do
    opened = Chat.open_waiting(socket.assigns.user)
    Chat.flush(socket.assigns.user)
    socket = socket |> refresh_timeline() |> read()
    {:noreply, if(opened == :later, do: catch_up_later(socket), else: socket)}
  end

  def handle_info({:envelope, id}, socket) do
    case Chat.open(socket.assigns.user, id) do
      :nothing ->
        {:noreply, socket}

      {:later, _conversation_id, nil} ->
        {:noreply, catch_up_later(socket)}

      {what, conversation_id, item} ->
        {:noreply, arrived(socket, what, conversation_id, item)}
    end
  end

  # By a logout elsewhere, or for want of open pages a moment ago.
  def handle_info(:locked, socket), do: {:noreply, if_unlocked(socket, & &1)}

  # From another page of this user.
  def handle_info({:changed, id}, socket) do
    socket = if current?(socket, id), do: refresh_timeline(socket), else: socket
    {:noreply, refresh_conversations(socket)}
  end

  def handle_info({:opened, id, message_id}, socket) do
    with true <- current?(socket, id),
         {served, opened} <- Chat.progress(socket.assigns.user, message_id) do
      {:noreply,
       push_event(socket, "progress", %{id: "m-" <> message_id, served: served, opened: opened})}
    else
      _ -> {:noreply, socket}
    end
  end

  def handle_info({:conversation, id}, socket) do
    socket = refresh_conversations(socket)
    {:noreply, if(current?(socket, id), do: refresh_timeline(socket), else: socket)}
  end

  def handle_info({:identity_changed, user_id}, socket) do
    socket = socket |> look_at_identities() |> refresh_timeline() |> refresh_conversations()

    case socket.assigns.safety do
      %{user: %{id: ^user_id}} -> {:noreply, show_again(socket, user_id)}
      _ -> {:noreply, socket}
    end
  end

  def handle_info(:flush, socket) do
    Chat.flush(socket.assigns.user)
    {:noreply, socket}
  end

  def handle_info({:typing, user_id}, socket) do
    socket = typed(socket, user_id)
    timer = Process.send_after(self(), {:typing_over, user_id}, @typing)
    {:noreply, assign(socket, typing: Map.put(socket.assigns.typing, user_id, timer))}
  end

  def handle_info({:typing_over, user_id}, socket),
    do: {:noreply, assign(socket, typing: Map.delete(socket.assigns.typing, user_id))}

  def handle_info({:expired, id}, socket),
    do: {:noreply, stream_delete_by_dom_id(socket, :items, "m-" <> id)}

  def handle_info(%{event: "presence_diff", payload: diff}, socket),
    do: {:noreply, assign(socket, online: Presence.apply_diff(socket.assigns.online, diff))}

  def handle_info(_other, socket), do: {:noreply, socket}

  defp catch_up_later(socket) do
    if_unlocked(socket, fn socket ->
      Process.send_after(self(), :catch_up, @later)
      socket
    end)
  end

  # The request for the page has the cookie, and with it the token: see FamilyChatWeb.UserAuth.
  defp if_unlocked(socket, fun) do
    if Locks.open?(socket.assigns.user.id),
      do: fun.(socket),
      else: redirect(socket, to: socket.assigns.path)
  end

  defp arrived(socket, what, id, item) do
    socket =
      cond do
        not current?(socket, id) -> socket
        what == :again -> refresh_timeline(socket)
        true -> socket |> typed(item.sender_id) |> insert(item)
      end

    socket = if what == :unopened, do: look_at_identities(socket), else: socket
    if current?(socket, id), do: read(socket), else: refresh_conversations(socket)
  end

  defp typed(socket, user_id) do
    {timer, typing} = Map.pop(socket.assigns.typing, user_id)
    if timer, do: Process.cancel_timer(timer)
    assign(socket, typing: typing)
  end

  @impl true
  def render(assigns) do
    ~H"""
    <div class={["chat", @conversation && "in-conversation"]} id="chat" phx-hook="Page" data-user={@user.id}>
      <.sidebar user={@user} conversations={@conversations} conversation={@conversation} online={@online} kit={@kit} />

      <main class="main" id="main">
        <%= if @conversation do %>
          <.conversation_header conversation={@conversation} user={@user} online={@online} changed={@changed} verified={@verified} />
          <div id="warnings">
            <.identity_warning :for={person <- @changed} person={person} conversation={@conversation} />
          </div>

          <div class="timeline" id={"timeline-#{@conversation.id}"} phx-hook="Timeline" tabindex="0" aria-label="Messages">
            <button :if={@before} class="earlier" phx-click="earlier">Earlier messages</button>
            <ol id="items" phx-update="stream" aria-live="polite">
              <li :for={{dom_id, item} <- @streams.items} id={dom_id} data-at={item.at} class={["item", to_string(item.kind), item.sender_id == @user.id && "mine"]}>
                <.item item={item} user={@user} people={@people} conversation={@conversation} />
              </li>
            </ol>
          </div>

          <.typing typing={@typing} people={@people} user={@user} />
          <.composer conversation={@conversation} user={@user} max_text={@max_text} />
        <% else %>
          <div class="empty">
            <p :if={@conversations == []}>You have no conversations yet. <.link patch={~p"/new"}>Find somebody by name</.link>.</p>
            <p :if={@conversations != []}>Choose a conversation.</p>
          </div>
        <% end %>
      </main>

      <.dialog :if={@live_action == :new} id="new" title="New conversation" back={back(@conversation)}>
        <.new_conversation contacts={@contacts} problem={@problem} />
      </.dialog>
      <.dialog :if={@live_action == :settings} id="settings" title="Settings" back={back(@conversation)}>
        <.settings user={@user} problem={@problem} kit={@kit} />
      </.dialog>
      <.dialog :if={@live_action == :protection} id="protection" title="What is protected" back={back(@conversation)}>
        <.protection />
      </.dialog>
      <.dialog :if={@live_action == :details and @conversation != nil} id="details" title={@conversation.title} back={back(@conversation)}>
        <.details conversation={@conversation} user={@user} contacts={@contacts} online={@online} problem={@problem} />
      </.dialog>
      <.dialog :if={@live_action == :safety and @safety != nil} id="safety" title={"Safety number with #{@safety.user.display_name}"} back={back(@conversation)}>
        <.safety_number safety={@safety} scan={@scan} />
      </.dialog>
      <.dialog :if={@live_action == :message and @conversation != nil} id="message" title="How this message was encrypted" back={back(@conversation)}>
        <.encryption encryption={@encryption} people={@people} />
      </.dialog>
    </div>
    """
  end
end
