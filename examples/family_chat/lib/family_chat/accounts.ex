defmodule FamilyChat.Accounts do
  @moduledoc """
  People: sign-up, login, sessions of the browser, and their keys.

  A user gets keys with the account, in one transaction. The password is hashed with Argon2id (`Kith.Password`).
  """

  alias FamilyChat.{Conversations, SQL}

  # Failures of one name in as many minutes, after which it has to wait.
  @max_failures 10
  @failure_window 15 * 60_000

  # Sixty days.
  @session_lifetime 60 * 86_400_000

  @min_password 10
  @max_password 200

  defmodule User do
    @moduledoc "A person, as others may see them."
    defstruct [:id, :name, :display_name, admin: false]
  end

  @doc """
  Makes an account with keys. The first one may look at the dashboard.

  `{:error, errors}` has a sentence for each field that is wrong.
  """
  def sign_up(params) do
    name = params |> text("name") |> String.downcase()
    display_name = text(params, "display_name")
    password = to_string(params["password"])

    errors =
      %{}
      |> check(
        :name,
        name =~ ~r/\A[a-z0-9][a-z0-9_.-]{1,29}\z/,
        "2 to 30 letters, digits, dots, dashes"
      )
      |> check(:display_name, String.length(display_name) in 1..40, "1 to 40 characters")
      |> check(
        :password,
        String.length(password) in @min_password..@max_password,
        "at least #{@min_password} characters"
      )
      |> check(:invitation, invited?(params), "this is not the word your family was given")

    if errors == %{}, do: insert(name, display_name, password), else: {:error, errors}
  end

  # A family that is reachable from the Internet asks for a word.
  defp invited?(params) do
    case Application.get_env(:family_chat, :invitation) do
      nil -> true
      word -> Plug.Crypto.secure_compare(word, text(params, "invitation"))
    end
  end

  defp check(errors, _field, true, _sentence), do: errors
  defp check(errors, field, false, sentence), do: Map.put(errors, field, sentence)

  defp text(params, key) do
    case params[key] do
      text when is_binary(text) -> if String.valid?(text), do: String.trim(text), else: ""
      _ -> ""
    end
  end

  defp insert(name, display_name, password) do
    with {:ok, hash} <- hash(password) do
      SQL.transaction(fn ->
        id = SQL.new_id()
        admin = if SQL.rows("SELECT 1 FROM users LIMIT 1") == [], do: 1, else: 0

        inserted =
          SQL.run(
            """
            INSERT INTO users (id, name, display_name, password_hash, admin, inserted_at)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING
            """,
            [id, name, display_name, hash, admin, SQL.now()]
          )

        if inserted == 0, do: SQL.rollback(%{name: "this name is taken"})

        # In this transaction: there is no account without keys, and no keys without an account.
        register(id)
        {:ok, %User{id: id, name: name, display_name: display_name, admin: admin == 1}}
      end)
    end
  end

  defp register(id) do
    with {:error, error} <- FamilyChat.Kith.register(id), do: SQL.rollback(error)
  end

  defp hash(password) do
    with {:error, _busy} <- Kith.Password.hash(password),
         do: {:error, %{password: "too many people are signing in, try again"}}
  end

  @doc """
  The user with this name and password.

  `{:error, :wrong}` does not say which of the two is wrong, and takes as long for a name nobody has. `{:error, :wait}` after
  many failures of a name, or when many log in at once.
  """
  def authenticate(name, password) when is_binary(name) and is_binary(password) do
    name = name |> String.trim() |> String.downcase()

    case user_with_hash(name) do
      _ when byte_size(name) > 100 or byte_size(password) > 4 * @max_password -> {:error, :wrong}
      found -> if throttled?(name), do: {:error, :wait}, else: verify(found, name, password)
    end
  end

  def authenticate(_name, _password), do: {:error, :wrong}

  defp user_with_hash(name) do
    if String.valid?(name) and not String.contains?(name, <<0>>) do
      sql = "SELECT id, name, display_name, admin, password_hash FROM users WHERE name = $1"

      case SQL.rows(sql, [name]) do
        [row] -> {user(row), List.last(row)}
        [] -> nil
      end
    end
  end

  defp verify(found, name, password) do
    if right?(found, password) do
      SQL.run("DELETE FROM login_failures WHERE name = $1", [name])
      {:ok, elem(found, 0)}
    else
      failed(name)
    end
  rescue
    # Too many at once: neither a right nor a wrong password.
    error in Kith.Error ->
      if error.reason == :busy, do: {:error, :wait}, else: reraise(error, __STACKTRACE__)
  end

  # A name nobody has takes as long as one that somebody has.
  defp right?(nil, _password), do: Kith.Password.dummy_verify()
  defp right?({_user, hash}, password), do: Kith.Password.verify(password, hash)

  defp failed(name) do
    if String.valid?(name) and not String.contains?(name, <<0>>),
      do: SQL.run("INSERT INTO login_failures (name, at) VALUES ($1, $2)", [name, SQL.now()])

    {:error, :wrong}
  end

  defp throttled?(name) do
    since = SQL.now() - @failure_window
    SQL.run("DELETE FROM login_failures WHERE at < $1", [since])
    [[count]] = SQL.rows("SELECT COUNT(*) FROM login_failures WHERE name = $1", [name])
    count >= @max_failures
  end

  @doc "Begins a session of a browser. The token goes into its cookie."
  def create_session(%User{id: id}) do
    token = :crypto.strong_rand_bytes(32)

    SQL.run("INSERT INTO user_tokens (token_hash, user_id, inserted_at) VALUES ($1, $2, $3)", [
      hashed(token),
      id,
      SQL.now()
    ])

    token
  end

  @doc "Ends it."
  def delete_session(token),
    do: SQL.run("DELETE FROM user_tokens WHERE token_hash = $1", [hashed(token)])

  @doc "Whose session this is, or nil."
  def user_of_session(token) when is_binary(token) do
    sql = """
    SELECT u.id, u.name, u.display_name, u.admin FROM user_tokens t JOIN users u ON u.id = t.user_id
    WHERE t.token_hash = $1 AND t.inserted_at > $2
    """

    case SQL.rows(sql, [hashed(token), SQL.now() - @session_lifetime]) do
      [row] -> user(row)
      [] -> nil
    end
  end

  def user_of_session(_none), do: nil

  @doc "A name for the connections of a session, by which they are ended."
  def session_topic(token), do: "session:" <> Base.url_encode64(:crypto.hash(:sha256, token))

  defp hashed(token), do: SQL.bytes(:crypto.hash(:sha256, token))

  @doc "Forgets sessions whose time is over."
  def sweep,
    do: SQL.run("DELETE FROM user_tokens WHERE inserted_at < $1", [SQL.now() - @session_lifetime])

  @doc "People by their ids, as a map."
  def users([]), do: %{}

  def users(ids) do
    sql = "SELECT id, name, display_name, admin FROM users WHERE id IN (#{SQL.places(ids)})"
    for row <- SQL.rows(sql, ids), into: %{}, do: {hd(row), user(row)}
  end

  defp user([id, name, display_name, admin | _]),
    do: %User{id: id, name: name, display_name: display_name, admin: admin == 1}

  @doc """
  Gives a user new keys, and forgets all that was encrypted with the ones before: what they would do who lost a device,
  or think that somebody has their keys.

  Everyone they talk to is told, and has to accept the new keys before anything is sent again.
  """
  def renew_keys(%User{id: id}) do
    SQL.transaction(fn ->
      with {:error, error} <- FamilyChat.Kith.unregister(id), do: SQL.rollback(error)
      register(id)
      Conversations.identity_changed(id)
      :ok
    end)
    |> case do
      :ok -> Conversations.tell_identity_changed(id)
      error -> error
    end
  end
end
