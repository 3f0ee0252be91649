defmodule FamilyChat.Accounts do
  @moduledoc """
  People: sign-up, login, sessions of the browser, and their keys.

  A user gets keys with the account, and the keys are locked under the password: see `FamilyChat.Locks`. Whether a password is right
  is whether it unlocks them, so the database has no hash of it. It has one, of Argon2id (`Kith.Password`), of an account that
  is not locked yet: for a moment at sign-up, and of those that were made before accounts were locked. They are at the next login.
  """

  alias FamilyChat.{Conversations, Locks, RecoveryKit, SQL}

  # Failures of one name in as many minutes, after which it has to wait.
  @max_failures 10
  @failure_window 15 * 60_000

  @session_lifetime Locks.lifetime() * 1_000

  @min_password 10
  @max_password 200

  defmodule User do
    @moduledoc "A person, as others may see them."
    defstruct [:id, :name, :display_name, admin: false]
  end

  @doc """
  Makes an account with keys, and locks them under the password. The first one may look at the dashboard.

  `{:error, errors}` has a sentence for each field that is wrong.
  """
  def sign_up(params) do
    name = params |> text("name") |> String.downcase()
    display_name = text(params, "display_name")
    password = if is_binary(params["password"]), do: params["password"], else: ""

    errors =
      %{}
      |> check(
        :name,
        name =~ ~r/\A[a-z0-9][a-z0-9_.-]{1,29}\z/,
        "2 to 30 letters, digits, dots, dashes"
      )
      |> check(:display_name, String.length(display_name) in 1..40, "1 to 40 characters")
      |> check_password(password)
      |> check(:invitation, invited?(params), "this is not the word your family was given")

    if errors == %{}, do: insert(name, display_name, password), else: {:error, errors}
  end

  @doc "Adds to the errors of a form what is wrong with a new password."
  def check_password(errors, password) do
    fits? = String.valid?(password) and String.length(password) in @min_password..@max_password
    check(errors, :password, fits?, "at least #{@min_password} characters")
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
    with {:ok, hash} <- hash(password),
         {:ok, user} <- insert_hashed(name, display_name, hash) do
      case lock(user.id, password) do
        :ok ->
          {:ok, user}

        # Nobody has seen it yet.
        {:error, error} ->
          undo(user.id)
          if error.reason == :busy, do: busy(), else: {:error, error}
      end
    end
  end

  defp insert_hashed(name, display_name, hash) do
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

  defp undo(id) do
    SQL.transaction(fn ->
      FamilyChat.Kith.unregister(id)
      SQL.run("DELETE FROM users WHERE id = $1", [id])
    end)
  end

  defp register(id) do
    with {:error, error} <- FamilyChat.Kith.register(id), do: SQL.rollback(error)
  end

  @doc "A hash for the moment in which an account is not locked: see `lock/2`."
  def hash(password) do
    with {:error, _busy} <- Locks.patiently(fn -> Kith.Password.hash(password) end), do: busy()
  end

  defp busy, do: {:error, %{password: "too many people are signing in, try again"}}

  @doc "Notes a hash, in the transaction that makes keys which are not locked yet. Should it end there, the next login locks them."
  def put_hash(id, hash),
    do: SQL.run("UPDATE users SET password_hash = $2 WHERE id = $1", [id, hash])

  @doc "Locks the keys of an account under its password, and forgets the hash."
  def lock(id, password) do
    case Locks.lock_with_password(id, password) do
      {:ok, _} ->
        put_hash(id, "")
        :ok

      # Another login of the same user was faster. Their password was right, too.
      {:error, %{reason: reason}} when reason in [:locked, :stale] ->
        with {:ok, _} <- Locks.unlock(id, password) do
          put_hash(id, "")
          :ok
        end

      {:error, error} ->
        {:error, error}
    end
  end

  @doc """
  The user with this name and password, whose keys are unlocked then.

  `{:error, :wrong}` does not say which of the two is wrong, and takes as long for a name nobody has. `{:error, :wait}` after
  many failures of a name, `{:error, :busy}` when very many log in at once.
  """
  def authenticate(name, password) when is_binary(name) and is_binary(password) do
    name = name |> String.trim() |> String.downcase()

    # What cannot be a password is not asked about: the answer would be quicker for a name that somebody has.
    if byte_size(name) > 100 or byte_size(password) not in 1..(4 * @max_password) do
      {:error, :wrong}
    else
      found = user_with_hash(name)
      if throttled?(name), do: {:error, :wait}, else: verify(found, name, password)
    end
  end

  def authenticate(_name, _password), do: {:error, :wrong}

  @doc "The user with a name, or nil."
  def user_with_name(name) do
    with {user, _hash} <- user_with_hash(name), do: user
  end

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
    case unlock(found, password) do
      :ok ->
        SQL.run("DELETE FROM login_failures WHERE name = $1", [name])
        {:ok, elem(found, 0)}

      {:error, %{reason: :wrong_password}} ->
        failed(name)
        {:error, :wrong}

      # Too many at once: neither a right nor a wrong password.
      {:error, %{reason: :busy}} ->
        {:error, :busy}

      {:error, error} ->
        raise error
    end
  end

  # A name nobody has takes as long as one that somebody has.
  defp unlock(nil, _password) do
    with {:ok, false} <- verified(&Kith.Password.dummy_verify/0), do: wrong()
  end

  defp unlock({%User{id: id}, ""}, password) do
    case Locks.unlock(id, password) do
      {:ok, _until} -> :ok
      # It has no password, which is none that is right.
      {:error, %{reason: :key_not_found}} -> wrong()
      {:error, error} -> {:error, error}
    end
  end

  # Of before accounts were locked.
  defp unlock({%User{id: id}, hash}, password) do
    case verified(fn -> Kith.Password.verify(password, hash) end) do
      {:ok, true} -> lock(id, password)
      {:ok, false} -> wrong()
      {:error, error} -> {:error, error}
    end
  end

  defp wrong, do: {:error, Kith.Error.exception(:wrong_password)}

  defp verified(fun) do
    Locks.patiently(fn ->
      try do
        {:ok, fun.()}
      rescue
        error in Kith.Error -> {:error, error}
      end
    end)
  end

  @doc "Counts a failed attempt to be somebody."
  def failed(name) do
    if String.valid?(name) and not String.contains?(name, <<0>>),
      do: SQL.run("INSERT INTO login_failures (name, at) VALUES ($1, $2)", [name, SQL.now()])

    :ok
  end

  @doc "Whether there were too many of them."
  def throttled?(name) do
    since = SQL.now() - @failure_window
    SQL.run("DELETE FROM login_failures WHERE at < $1", [since])
    name = if String.valid?(name) and not String.contains?(name, <<0>>), do: name, else: ""
    [[count]] = SQL.rows("SELECT COUNT(*) FROM login_failures WHERE name = $1", [name])
    count >= @max_failures
  end

  @doc """
  Gives a user another password: `:ok`, or what is wrong with each field. All other browsers are logged out.
  """
  def change_password(%User{} = user, token, password, new) do
    errors = check_password(%{}, new)

    cond do
      errors != %{} -> {:error, %{new: errors.password}}
      throttled?(user.name) -> {:error, %{password: too_many()}}
      true -> changed(Locks.change_password(user.id, password, new), user, token)
    end
  end

  defp changed({:ok, _}, user, token) do
    end_sessions(user.id, token)
    :ok
  end

  defp changed({:error, %{reason: reason}}, user, _token)
       when reason in [:wrong_password, :malformed, :too_large] do
    failed(user.name)
    {:error, %{password: "this is not your password"}}
  end

  defp changed({:error, %{reason: :busy}}, _user, _token), do: busy()

  defp changed({:error, %{reason: :key_not_found}}, _user, _token),
    do: {:error, %{password: "log out and in again first"}}

  defp changed({:error, error}, _user, _token), do: raise(error)

  @doc "What is wrong with the password of somebody who is logged in, who has been asked for it again. `:ok` if nothing is."
  def confirm(%User{id: id, name: name}, password) do
    case authenticate(name, password) do
      {:ok, %User{id: ^id}} -> :ok
      {:error, :wait} -> {:error, %{password: too_many()}}
      {:error, :busy} -> busy()
      {:error, :wrong} -> {:error, %{password: "this is not your password"}}
    end
  end

  defp too_many, do: "too many attempts, wait a few minutes"

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

  @doc """
  Ends it. The last one of a user locks their keys; while another browser is logged in, what ends is the unlock token of this one.
  """
  def delete_session(token, unlock_token \\ nil) do
    with %User{id: id} <- user_of_session(token) do
      SQL.run("DELETE FROM user_tokens WHERE token_hash = $1", [hashed(token)])
      if sessions(id) == [], do: Locks.lock(id), else: Locks.revoke(id, unlock_token)
    end

    :ok
  end

  @doc "Ends the sessions of a user in all browsers, and locks the keys."
  def delete_sessions(%User{id: id}) do
    end_sessions(id, nil)
    Locks.lock(id)
  end

  @doc "Ends those in all browsers but one."
  def end_sessions(id, token) do
    kept = token && :crypto.hash(:sha256, token)

    for hash <- sessions(id), hash != kept do
      SQL.run("DELETE FROM user_tokens WHERE token_hash = $1", [SQL.bytes(hash)])
      FamilyChatWeb.Endpoint.broadcast(topic(hash), "disconnect", %{})
    end

    :ok
  end

  defp sessions(id) do
    sql = "SELECT token_hash FROM user_tokens WHERE user_id = $1 AND inserted_at > $2"
    for [hash] <- SQL.rows(sql, [id, SQL.now() - @session_lifetime]), do: hash
  end

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
  def session_topic(token), do: topic(:crypto.hash(:sha256, token))

  defp topic(hash), do: "session:" <> Base.url_encode64(hash)

  defp hashed(token), do: SQL.bytes(:crypto.hash(:sha256, token))

  @doc "Forgets sessions whose time is over, and locks the keys of those who have no other."
  def sweep do
    over = SQL.now() - @session_lifetime
    users = SQL.rows("SELECT DISTINCT user_id FROM user_tokens WHERE inserted_at < $1", [over])
    SQL.run("DELETE FROM user_tokens WHERE inserted_at < $1", [over])
    for [id] <- users, sessions(id) == [], do: Locks.lock(id)
    :ok
  end

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
  or think that somebody has their keys. The new ones are locked under the same password, and other browsers are logged out.

  Everyone they talk to is told, and has to accept the new keys before anything is sent again. `:ok`, or what is wrong
  with the password.
  """
  def renew_keys(%User{id: id} = user, token, password) do
    with :ok <- confirm(user, password),
         {:ok, hash} <- hash(password),
         :ok <- SQL.transaction(fn -> register_again(id, hash) end) do
      # Should it fail, the next login locks them.
      lock(id, password)
      end_sessions(id, token)
      Conversations.tell_identity_changed(id)
    end
  end

  defp register_again(id, hash) do
    with {:error, error} <- FamilyChat.Kith.unregister(id), do: SQL.rollback(error)
    register(id)
    put_hash(id, hash)
    # It brings back keys that are nobody's now.
    RecoveryKit.forget(id)
    Conversations.identity_changed(id)
    :ok
  end
end
