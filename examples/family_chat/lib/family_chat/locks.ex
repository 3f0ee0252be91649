defmodule FamilyChat.Locks do
  @moduledoc """
  Whose keys are open, and for how long.

  The keys of an account are locked under its password (`Kith.lock_with_password/4`). They are unlocked by a login, or by
  the token that the browser has in its encrypted cookie, and locked when

    * the user logs out of the last browser, or of all;
    * the session of the last browser is over;
    * no page of the user has been open for `:lock_after` seconds. The browser comes back with its token, and nobody has to type a
      password, unless `:ask_again` is set;
    * the server stops, since an unlocked key is in its memory only.

  Two servers know from each other who has a page open. A key is unlocked on the server that answers, and locked on all.
  """

  use GenServer

  alias FamilyChat.Mailbox
  alias FamilyChatWeb.Presence

  # As long as a session of the browser.
  @lifetime 60 * 86_400

  # Milliseconds for which a password waits for its turn: as many as a family log in at once.
  @patience 25_000

  def start_link(_options), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  # Users who were unlocked here, and when they were last seen. The process only owns the table.
  @impl true
  def init(nil) do
    :ets.new(__MODULE__, [:named_table, :public, :set])
    {:ok, nil}
  end

  @doc "Seconds that a session of the browser lives, and the token in it."
  def lifetime, do: @lifetime

  @doc "Whether the keys of a user can be used. Not when they are locked; so do those of an account that never was."
  def open?(user_id), do: FamilyChat.Kith.lock_state(user_id) != {:ok, :locked}

  @doc "Puts the keys of an account under a password."
  def lock_with_password(user_id, password) do
    patiently(fn -> FamilyChat.Kith.lock_with_password(user_id, password, for: @lifetime) end)
    |> seen(user_id)
  end

  @doc "Unlocks them: this is what a login asks."
  def unlock(user_id, password) do
    patiently(fn -> FamilyChat.Kith.unlock(user_id, password, for: @lifetime) end)
    |> seen(user_id)
  end

  @doc "Puts them under another password. Tokens end."
  def change_password(user_id, password, new) do
    patiently(fn ->
      FamilyChat.Kith.change_password(user_id, password, new, for: @lifetime)
    end)
    |> seen(user_id)
  end

  @doc "Unlocks them with the token of a browser, where they are locked. Whether they are open then."
  def resume(user_id, token) do
    open? = open?(user_id) or unlocked_with?(user_id, token)
    if open?, do: seen({:ok, open?}, user_id)
    open?
  end

  defp unlocked_with?(user_id, token) when is_binary(token) do
    case FamilyChat.Kith.unlock_with_token(user_id, token, for: @lifetime) do
      {:ok, _until} -> true
      {:error, %{reason: reason}} when reason in [:wrong_password, :malformed] -> false
      # The account has no password, or no keys.
      {:error, %{reason: reason}} when reason in [:key_not_found, :not_registered] -> false
      # The machinery failed. That is no reason to ask for a password.
      {:error, error} -> raise error
    end
  end

  defp unlocked_with?(_user_id, _none), do: false

  @doc "A token for the encrypted cookie of a browser, or nil where nothing is unlocked."
  def token(user_id) do
    case FamilyChat.Kith.unlock_token(user_id, for: @lifetime) do
      {:ok, token} -> token
      {:error, _} -> nil
    end
  end

  @doc "Makes the token of one browser unlock nothing any more."
  def revoke(_user_id, nil), do: :ok

  def revoke(user_id, token) do
    FamilyChat.Kith.revoke_token(user_id, token)
    :ok
  end

  @doc "Locks the keys of a user, and tells the pages that are open. Tokens end, unless they are kept."
  def lock(user_id, options \\ []) do
    :ets.delete(__MODULE__, user_id)

    # An account of before has no password yet.
    with {:ok, :locked} <- FamilyChat.Kith.lock(user_id, options),
         do: Mailbox.broadcast(user_id, :locked)

    :ok
  end

  @doc "Locks those of whom no page has been open for a while. `now` is in milliseconds, of the monotonic clock."
  def sweep(now \\ now()) do
    online = Presence.online()
    limit = Application.fetch_env!(:family_chat, :lock_after) * 1_000
    keep? = not Application.get_env(:family_chat, :ask_again, false)

    for {user_id, at} <- :ets.tab2list(__MODULE__) do
      cond do
        user_id in online -> :ets.insert(__MODULE__, {user_id, now})
        now - at >= limit -> lock(user_id, keep_tokens: keep?)
        true -> :ok
      end
    end

    :ok
  end

  defp seen({:ok, _} = result, user_id) do
    :ets.insert(__MODULE__, {user_id, now()})
    result
  end

  defp seen(error, _user_id), do: error

  @doc "Calls again what is told `:busy`: few passwords are tried at once, so that messages go on meanwhile."
  def patiently(fun), do: patiently(fun, now() + @patience)

  defp patiently(fun, until) do
    with {:error, %Kith.Error{reason: :busy}} = busy <- fun.() do
      if now() < until do
        Process.sleep(100 + :rand.uniform(400))
        patiently(fun, until)
      else
        busy
      end
    end
  end

  defp now, do: System.monotonic_time(:millisecond)
end
