defmodule FamilyChatWeb.ChatComponents do
  @moduledoc "The pieces of the page."

  use FamilyChatWeb, :component

  alias FamilyChat.Conversations

  attr(:user, :map, required: true)
  attr(:conversations, :list, required: true)
  attr(:conversation, :map, default: nil)
  attr(:online, :map, required: true)
  attr(:kit, :map, default: nil)

  def sidebar(assigns) do
    ~H"""
    <nav class="sidebar" aria-label="Conversations">
      <header>
        <h1>Family chat</h1>
        <.link patch={~p"/new"} class="button" aria-label="New conversation"><.icon name="plus" /></.link>
        <.link patch={~p"/settings"} class="button" aria-label="Settings"><.icon name="gear" /></.link>
      </header>
      <ul>
        <li :for={conversation <- @conversations}>
          <.link
            patch={~p"/c/#{conversation.id}"}
            class={["conversation", @conversation && @conversation.id == conversation.id && "current"]}
            aria-current={if @conversation && @conversation.id == conversation.id, do: "page"}
          >
            <.avatar name={conversation.title} online={online?(conversation, @user, @online)} />
            <span class="name"><%= conversation.title %></span>
            <span :if={conversation.unread > 0} class="unread" aria-label={"#{conversation.unread} unread"}>
              <%= conversation.unread %>
            </span>
          </.link>
        </li>
      </ul>
      <footer>
        <.link :if={@kit == nil or @kit.tried_at == nil} href={~p"/recovery"} class="offer" id="offer">
          <.icon name="warning" /> If you forget your password: <%= if @kit, do: "try your recovery kit", else: "save a recovery kit" %>
        </.link>
        <span class="me"><%= @user.display_name %></span>
        <.link patch={~p"/protection"} class="lock"><.icon name="lock" /> What is protected</.link>
      </footer>
    </nav>
    """
  end

  defp online?(%{kind: "direct"} = conversation, user, online),
    do: Enum.any?(conversation.members, &(&1.id != user.id and &1.id in online))

  defp online?(_family, _user, _online), do: false

  attr(:name, :string, required: true)
  attr(:online, :boolean, default: false)

  def avatar(assigns) do
    assigns = assign(assigns, :hue, :erlang.phash2(assigns.name, 12))

    ~H"""
    <span class={["avatar", "hue-#{@hue}"]} aria-hidden="true"><%= String.first(@name) %><span :if={@online} class="dot"></span></span>
    <span :if={@online} class="hidden">online</span>
    """
  end

  attr(:conversation, :map, required: true)
  attr(:user, :map, required: true)
  attr(:online, :map, required: true)
  attr(:changed, :list, required: true)
  attr(:verified, :boolean, required: true)

  def conversation_header(assigns) do
    ~H"""
    <header class="conversation-header">
      <.link patch={~p"/"} class="button back" aria-label="All conversations"><.icon name="back" /></.link>
      <.link patch={~p"/c/#{@conversation.id}/details"} class="title">
        <h2><%= @conversation.title %></h2>
        <p class="hint" id="who"><%= who(@conversation, @user, @online) %></p>
      </.link>
      <span :if={@conversation.timer} class="timer" id="timer"><.icon name="clock" /> <%= duration(@conversation.timer) %></span>
      <.link patch={~p"/protection"} class={["lock", @changed != [] && "warning"]} id="lock">
        <.icon name={if @changed == [], do: "lock", else: "warning"} />
        <span><%= lock(@changed, @verified) %></span>
      </.link>
    </header>
    """
  end

  defp lock([], true), do: "Encrypted, verified"
  defp lock([], false), do: "Encrypted"
  defp lock(_changed, _verified), do: "Identity changed"

  defp who(%{kind: "direct"} = conversation, user, online),
    do: if(online?(conversation, user, online), do: "online", else: "not here")

  defp who(conversation, _user, online) do
    here = Enum.count(conversation.members, &(&1.id in online))
    "#{length(conversation.members)} people, #{here} online"
  end

  attr(:person, :map, required: true)
  attr(:conversation, :map, required: true)

  def identity_warning(assigns) do
    ~H"""
    <section class="identity-warning" role="alert" id={"changed-#{@person.id}"}>
      <p>
        <strong>The safety number with <%= @person.display_name %> has changed.</strong>
        They have set up their keys anew, or somebody else is in their place. Nothing is sent to them, and nothing of theirs is
        shown, until you accept. Ask them, best in person.
      </p>
      <p>
        <.link patch={~p"/c/#{@conversation.id}/safety/#{@person.id}"} class="button">Compare</.link>
        <button phx-click="accept" phx-value-user={@person.id}>Accept without comparing</button>
      </p>
    </section>
    """
  end

  attr(:item, :map, required: true)
  attr(:user, :map, required: true)
  attr(:people, :map, required: true)
  attr(:conversation, :map, required: true)

  def item(%{item: %{kind: :message}} = assigns) do
    ~H"""
    <p :if={@item.sender_id != @user.id and @conversation.kind != "direct"} class="sender"><%= name(@people, @item.sender_id) %></p>
    <p class="text" dir="auto"><%= @item.text %></p>
    <p class="meta">
      <.icon :if={@item.expires_at} name="clock" />
      <.time at={@item.at} />
      <.link
        :if={@item.sender_id == @user.id}
        patch={~p"/c/#{@conversation.id}/message/#{@item.id}"}
        class="ticks"
        data-served={@item.served}
        data-opened={@item.opened}
        aria-label={"Delivered to #{@item.opened} of #{@item.served}"}
      ><%= ticks(@item) %></.link>
    </p>
    """
  end

  def item(%{item: %{kind: :unopened}} = assigns) do
    ~H"""
    <p :if={@item.sender_id} class="sender"><%= name(@people, @item.sender_id) %></p>
    <p class="text"><.icon name="warning" /> <%= unopened(@item.reason, name(@people, @item.sender_id)) %></p>
    <p class="meta"><.time at={@item.at} /></p>
    """
  end

  def item(assigns) do
    ~H"""
    <p class="text"><%= notice(@item, name(@people, @item.sender_id), @item.sender_id == @user.id) %></p>
    """
  end

  defp ticks(%{served: served, opened: opened}) when served > 0 and opened >= served, do: "✓✓"
  defp ticks(_), do: "✓"

  defp unopened("untrusted_identity", name),
    do: "A message is held back: the identity of #{name} has changed."

  defp unopened("damaged", _name),
    do: "This message is damaged in the database and cannot be shown."

  defp unopened("unknown", _name),
    do: "This message is of a kind that this version does not know."

  defp unopened(_reason, name),
    do: "This message could not be decrypted. #{name} is asked to send it again."

  defp notice(%{reason: "created", value: title}, name, mine),
    do: "#{if mine, do: "You", else: name} began “#{title}”."

  defp notice(%{reason: "joined"}, name, _mine), do: "#{name} is here from now on."

  defp notice(%{reason: "timer", value: nil}, name, mine),
    do: "#{if mine, do: "You", else: name} let messages stay."

  defp notice(%{reason: "timer", value: timer}, name, mine),
    do:
      "#{if mine, do: "You", else: name} let new messages disappear after #{duration(String.to_integer(timer))}."

  defp notice(%{reason: "identity"}, _name, true), do: "You have set up your keys anew."

  defp notice(%{reason: "identity"}, name, false),
    do: "#{name} has set up their keys anew: the safety number has changed."

  defp notice(_, _, _), do: ""

  defp name(people, id), do: Map.get(people, id, %{display_name: "Somebody"}).display_name

  attr(:at, :integer, required: true)

  # The browser knows the time zone.
  def time(assigns) do
    assigns =
      assign(assigns, :iso, DateTime.to_iso8601(DateTime.from_unix!(assigns.at, :millisecond)))

    ~H"""
    <time datetime={@iso}><%= String.slice(@iso, 11, 5) %></time>
    """
  end

  attr(:at, :integer, required: true)

  def date(assigns) do
    assigns =
      assign(assigns, :iso, DateTime.to_iso8601(DateTime.from_unix!(assigns.at, :millisecond)))

    ~H"""
    <time datetime={@iso}><%= String.slice(@iso, 0, 10) %></time>
    """
  end

  @doc "A number of seconds in words."
  def duration(seconds) when seconds < 60, do: "#{seconds} seconds"
  def duration(60), do: "a minute"
  def duration(seconds) when seconds < 3_600, do: "#{div(seconds, 60)} minutes"
  def duration(3_600), do: "an hour"
  def duration(seconds) when seconds < 86_400, do: "#{div(seconds, 3_600)} hours"
  def duration(86_400), do: "a day"
  def duration(604_800), do: "a week"
  def duration(seconds), do: "#{div(seconds, 86_400)} days"

  attr(:typing, :map, required: true)
  attr(:people, :map, required: true)
  attr(:user, :map, required: true)

  def typing(assigns) do
    names = for {id, _} <- assigns.typing, id != assigns.user.id, do: name(assigns.people, id)
    assigns = assign(assigns, :names, Enum.sort(names))

    ~H"""
    <p class="typing" id="typing" aria-live="polite"><%= typing_text(@names) %></p>
    """
  end

  defp typing_text([]), do: ""
  defp typing_text([name]), do: "#{name} is typing…"
  defp typing_text([a, b]), do: "#{a} and #{b} are typing…"
  defp typing_text(_), do: "Several people are typing…"

  attr(:conversation, :map, required: true)
  attr(:user, :map, required: true)
  attr(:max_text, :integer, required: true)

  # The browser keeps what it has not seen answered: a message that is written while the server restarts is not lost. All ids
  # are of this conversation, or the text field of one would be taken over by the next, together with what listens to it.
  # The browser enables it: without its part a form would put the message into the address of the next page.
  def composer(assigns) do
    ~H"""
    <form
      id={"composer-#{@conversation.id}"}
      class="composer"
      phx-hook="Composer"
      phx-update="ignore"
      data-conversation={@conversation.id}
      data-user={@user.id}
    >
      <ol class="outbox" aria-label="Not sent yet"></ol>
      <p class="problem" role="alert" hidden></p>
      <label for={"text-#{@conversation.id}"} class="hidden">Message</label>
      <textarea id={"text-#{@conversation.id}"} name="text" rows="1" maxlength={@max_text} placeholder="Message" autocomplete="off" enterkeyhint="send" disabled></textarea>
      <button class="primary" aria-label="Send" disabled><.icon name="send" /></button>
    </form>
    """
  end

  attr(:id, :string, required: true)
  attr(:title, :string, required: true)
  attr(:back, :string, required: true)
  slot(:inner_block, required: true)

  def dialog(assigns) do
    ~H"""
    <div class="backdrop" id={"#{@id}-backdrop"} phx-hook="Dialog" phx-window-keydown={JS.patch(@back)} phx-key="Escape">
      <.focus_wrap id={"#{@id}-dialog"} class="dialog" role="dialog" aria-modal="true" aria-labelledby={"#{@id}-title"}>
        <header>
          <h2 id={"#{@id}-title"}><%= @title %></h2>
          <.link patch={@back} class="button" aria-label="Close" id={"#{@id}-close"}><.icon name="close" /></.link>
        </header>
        <%= render_slot(@inner_block) %>
      </.focus_wrap>
    </div>
    """
  end

  attr(:contacts, :list, required: true)
  attr(:problem, :string, default: nil)

  def new_conversation(assigns) do
    ~H"""
    <p :if={@problem} class="problem" role="alert"><%= @problem %></p>
    <form id="add-contact" phx-submit="add_contact">
      <label for="contact-name">The name somebody logs in with</label>
      <input id="contact-name" name="name" autocomplete="off" autocapitalize="none" required />
      <button class="primary">Write to them</button>
    </form>

    <form :if={@contacts != []} id="create-family" phx-submit="create_family">
      <h3>A conversation of several</h3>
      <label for="title">Its name</label>
      <input id="title" name="title" maxlength="60" required autocomplete="off" />
      <fieldset>
        <legend>Who is in it</legend>
        <label :for={contact <- @contacts} class="check">
          <input type="checkbox" name={"members[#{contact.id}]"} value="true" /> <%= contact.display_name %>
        </label>
      </fieldset>
      <button class="primary">Begin</button>
    </form>
    """
  end

  attr(:user, :map, required: true)
  attr(:kit, :map, default: nil)
  attr(:problem, :string, default: nil)

  def settings(assigns) do
    ~H"""
    <p :if={@problem} class="problem" role="alert"><%= @problem %></p>
    <p>You are <strong><%= @user.display_name %></strong>. Others find you as <strong><%= @user.name %></strong>.</p>

    <fieldset id="theme" phx-hook="Theme" phx-update="ignore">
      <legend>Colours</legend>
      <label class="check"><input type="radio" name="theme" value="auto" /> as the device</label>
      <label class="check"><input type="radio" name="theme" value="light" /> light</label>
      <label class="check"><input type="radio" name="theme" value="dark" /> dark</label>
    </fieldset>

    <form action={~p"/logout"} method="post" id="logout">
      <input type="hidden" name="_csrf_token" value={Plug.CSRFProtection.get_csrf_token()} />
      <button>Log out</button>
    </form>

    <h3>If you forget your password</h3>
    <p :if={@kit == nil}>You have no recovery kit. Without one your messages are lost with the password.</p>
    <p :if={@kit && @kit.tried_at}>Your recovery kit is of <.date at={@kit.tried_at} />.</p>
    <p :if={@kit && @kit.tried_at == nil}>You have saved a recovery kit, and not tried it.</p>
    <p><.link href={~p"/recovery"} class="button">Recovery kit</.link></p>

    <h3>Your account</h3>
    <p><.link href={~p"/account"} class="button">Password and keys</.link></p>
    <p :if={@user.admin}><.link href={~p"/dashboard"}>The dashboard of this server</.link></p>
    """
  end

  attr(:conversation, :map, required: true)
  attr(:user, :map, required: true)
  attr(:contacts, :list, required: true)
  attr(:online, :map, required: true)
  attr(:problem, :string, default: nil)

  def details(assigns) do
    in_it = MapSet.new(assigns.conversation.members, & &1.id)

    others =
      if assigns.conversation.kind == "family",
        do: Enum.reject(assigns.contacts, &(&1.id in in_it)),
        else: []

    assigns = assign(assigns, timers: Conversations.timers(), others: others)

    ~H"""
    <p :if={@problem} class="problem" role="alert"><%= @problem %></p>
    <form id="set-timer" phx-change="set_timer">
      <label for="timer-choice">New messages disappear</label>
      <select id="timer-choice" name="timer">
        <option :for={timer <- @timers} value={to_string(timer)} selected={timer == @conversation.timer}>
          <%= if timer, do: "after " <> duration(timer), else: "never" %>
        </option>
      </select>
    </form>

    <h3>People</h3>
    <ul class="people">
      <li :for={person <- @conversation.members}>
        <.avatar name={person.display_name} online={person.id in @online} />
        <span class="name"><%= person.display_name %><%= if person.id == @user.id, do: " (you)" %></span>
        <.link :if={person.id != @user.id} patch={~p"/c/#{@conversation.id}/safety/#{person.id}"}>Safety number</.link>
      </li>
    </ul>

    <ul :if={@others != []} class="people">
      <li :for={person <- @others}>
        <span class="name"><%= person.display_name %></span>
        <button phx-click="add_member" phx-value-user={person.id}>Add</button>
      </li>
    </ul>
    """
  end

  attr(:safety, :map, required: true)
  attr(:scan, :atom, default: nil)

  def safety_number(assigns) do
    groups = for <<group::binary-5 <- assigns.safety.digits>>, do: group
    assigns = assign(assigns, groups: groups, code: Base.encode64(assigns.safety.scannable))

    ~H"""
    <p :if={@safety.identity == :changed} class="problem" role="alert">
      This number is another one than before. Accept it only if it is the same on both screens.
    </p>
    <p :if={@safety.verified} class="good" id="verified"><.icon name="lock" /> You have compared this number.</p>
    <p :if={@scan == :same} class="good" role="status">It is the same code: nobody is between you.</p>
    <p :if={@scan == :different} class="problem" role="alert">
      This is another code. Do not trust this conversation before you have spoken.
    </p>
    <p :if={@scan == :unreadable} class="problem" role="alert">This is not a safety number.</p>
    <p :if={@scan == :changed} class="problem" role="alert">The number has changed meanwhile. Compare again, please.</p>

    <p>If <%= @safety.user.display_name %> sees the same digits, nobody sits between the two of you and gives out keys of their own.</p>
    <ol class="digits" id="digits"><li :for={group <- @groups}><%= group %></li></ol>
    <div class="qr" id={"qr-#{@safety.user.id}"} phx-hook="QR" phx-update="ignore" data-code={@code} role="img" aria-label="The safety number as a QR code"></div>

    <div class="scanner" id="scanner" phx-hook="Scanner" phx-update="ignore" data-user={@safety.user.id}>
      <video playsinline muted hidden></video>
      <button type="button" data-camera>Scan their code</button>
      <label class="button">From a picture <input type="file" accept="image/*" class="hidden" /></label>
      <p class="hint" role="status"></p>
    </div>

    <button :if={not @safety.verified} class="primary" phx-click="accept" phx-value-user={@safety.user.id} phx-value-verified="true" phx-value-digits={@safety.digits}>
      The digits are the same
    </button>
    """
  end

  attr(:encryption, :list, required: true)
  attr(:people, :map, required: true)

  def encryption(assigns) do
    ~H"""
    <p :if={@encryption == []}>Nothing is known of it any more.</p>
    <table :if={@encryption != []}>
      <thead><tr><th>For</th><th>Protocol</th><th>Session</th><th>Bytes</th><th></th></tr></thead>
      <tbody>
        <tr :for={row <- @encryption}>
          <td><%= name(@people, row.recipient_id) %></td>
          <td><%= row.protocol %> <%= row.version %></td>
          <td><code><%= String.slice(row.session_id || "", 0, 8) %></code></td>
          <td><%= row.size %></td>
          <td><%= state(row.state) %></td>
        </tr>
      </tbody>
    </table>
    <p class="hint">Each person gets the message encrypted for them alone, with a key that is used once.</p>
    """
  end

  defp state("opened"), do: "opened"
  defp state("waiting"), do: "on its way"
  defp state("failed"), do: "not opened"

  def protection(assigns) do
    ~H"""
    <h3>Protected</h3>
    <ul>
      <li>Whoever steals the database, a backup of it, or listens to the network reads no messages.</li>
      <li>Each message has a key of its own. A key that is stolen today opens neither what was said before nor, once both sides have written, what is said later.</li>
      <li>What is recorded today cannot be read with a quantum computer later.</li>
      <li>Your keys are locked under your password while you are not here: not even this server opens your messages then. They are unlocked by your login, and locked when you log out of the last browser, or have had no page open for a while.</li>
      <li>Messages that disappear are deleted here, for everyone.</li>
    </ul>
    <h3>Not protected</h3>
    <ul>
      <li><strong>Whoever runs this server, or breaks into it while it runs, can read messages.</strong> While you are here, your keys are used on it; while you are not, they can wait for you, or guess at a weak password. Know who runs it.</li>
      <li>Who writes to whom, when, and how much is visible to the server.</li>
      <li>Your history is kept here so that you can scroll back. It opens with the database, the server's key and your password together.</li>
      <li>A password that is forgotten. Only your own recovery kit helps then, and nobody who runs the server.</li>
      <li>Whoever has your unlocked phone, or a photograph of it.</li>
    </ul>
    <p>Compare safety numbers with the people you write to: it shows that nobody has put keys of their own between you.</p>
    """
  end

  def protection_short(assigns) do
    ~H"""
    <p class="hint">
      <.icon name="lock" /> Messages are encrypted with Signal's protocol, on the server: a stolen database or backup reveals none.
      Whoever runs this server can read them.
    </p>
    """
  end

  attr(:name, :string, required: true)

  def icon(assigns) do
    ~H"""
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d={path(@name)} /></svg>
    """
  end

  defp path("lock"), do: "M6 10V8a6 6 0 0 1 12 0v2h1v11H5V10zm2 0h8V8a4 4 0 0 0-8 0z"
  defp path("warning"), do: "M12 2 1 21h22zm1 15h-2v2h2zm0-7h-2v5h2z"
  defp path("plus"), do: "M11 4h2v7h7v2h-7v7h-2v-7H4v-2h7z"
  defp path("back"), do: "M14 4 6 12l8 8 2-2-6-6 6-6z"
  defp path("close"), do: "m5 7 2-2 5 5 5-5 2 2-5 5 5 5-2 2-5-5-5 5-2-2 5-5z"
  defp path("send"), do: "M3 3 22 12 3 21l3-8 8-1-8-1z"

  defp path("clock"),
    do:
      "M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18zm0 2a7 7 0 1 0 0 14 7 7 0 0 0 0-14zm1 2v5l3 3-1.500 1.500L11 13V7z"

  defp path("gear"),
    do:
      "M10 2h4l.5 2.500 1.800.8 2.200-1.400 2.800 2.800L20 9l.7 1.500L23 11v3l-2.300.5L20 16l1.300 2.200-2.800 2.800-2.200-1.400-1.800.8L14 23h-4l-.5-2.600-1.800-.8L5.500 21l-2.800-2.800L4 16l-.7-1.500L1 14v-3l2.300-.5L4 9 2.700 6.800l2.800-2.800 2.200 1.400 1.800-.8zm2 7a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7z"
end
