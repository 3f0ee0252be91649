defmodule FamilyChat.RecoveryKit do
  @moduledoc """
  What helps somebody who has forgotten the password: twelve words on paper, and a file that opens with them.

  The words are on the page that shows them, and in what the browser sends with them. They are in no table, no log and no address, and the
  process that reads them ends with the request. A table knows when a file was saved, and of what time the one is that was tried.

  Who may restore an account is not asked of a password, which is forgotten. A file counts that has the identity key of
  the account as it is now: Kith checks that its private half is in it, and nobody else has that. So a file of before
  `FamilyChat.Accounts.renew_keys/3` brings nothing back.
  """

  alias FamilyChat.{Accounts, SQL}
  alias FamilyChat.Accounts.User
  alias Kith.Backup
  alias Kith.Backup.RecoveryKey

  @kith FamilyChat.Kith

  @doc "New words for somebody who has given the password again, as a list."
  def words(%User{} = user, password) do
    with :ok <- Accounts.confirm(user, password) do
      {:ok, key} = RecoveryKey.generate()
      {:ok, words} = RecoveryKey.words(key)
      {:ok, String.split(words)}
    end
  end

  @doc "The file that opens with the words, as a stream of bytes, or a sentence. `saved/1` follows when it has been read."
  def file(%User{id: id}, words) do
    with {:ok, key} <- key(words) do
      case Backup.export(@kith, id, key) do
        {:ok, stream} -> {:ok, stream}
        {:error, _} -> {:error, "That did not work. Try again, please."}
      end
    end
  end

  @doc "Notes that a file was saved."
  def saved(%User{id: id}) do
    SQL.run(
      """
      INSERT INTO recovery_kits (user_id, since, saved_at, tried_at) VALUES ($1, $2, $2, NULL)
      ON CONFLICT (user_id) DO UPDATE SET saved_at = excluded.saved_at
      """,
      [id, SQL.now()]
    )

    :ok
  end

  @doc "Forgets the kit of a user whose keys are new."
  def forget(user_id), do: SQL.run("DELETE FROM recovery_kits WHERE user_id = $1", [user_id])

  @doc "When a file was saved, and of what time the one is that was tried, in milliseconds since 1970; nil without one."
  def state(%User{id: id}) do
    case SQL.rows("SELECT since, saved_at, tried_at FROM recovery_kits WHERE user_id = $1", [id]) do
      [[since, saved_at, tried_at]] -> %{since: since, saved_at: saved_at, tried_at: tried_at}
      [] -> nil
    end
  end

  @doc """
  Reads a file to its end with the words, and changes nothing but the note that they were tried: `:ok`, or what is wrong with each field.
  """
  def try(%User{id: id} = user, words, path) do
    with {:ok, key} <- field(:words, key(words)),
         {:ok, path} <- field(:file, file?(path)),
         {:ok, found} <- verify(path, key) do
      kit = state(user)

      cond do
        found.user != id -> {:error, %{file: "This is the file of another account."}}
        # It was saved a moment before that was noted.
        kit == nil or found.exported_at < kit.since - 600_000 -> {:error, %{file: older()}}
        true -> tried(id, found.exported_at)
      end
    end
  end

  defp tried(id, at) do
    SQL.run("UPDATE recovery_kits SET tried_at = $2 WHERE user_id = $1", [id, at])
    :ok
  end

  @doc """
  Brings an account back, under a new password: keys and history as they were when the file was saved. All browsers
  are logged out.

  `{:ok, user}`, or what is wrong with each field. A name nobody has, and the file of somebody else, get one answer.
  """
  def restore(name, words, path, password) when is_binary(name) do
    name = name |> String.trim() |> String.downcase()
    password = if is_binary(password), do: password, else: ""
    errors = Accounts.check_password(%{}, password)

    with :ok <- if(errors == %{}, do: :ok, else: {:error, errors}),
         {:ok, key} <- field(:words, key(words)),
         {:ok, path} <- field(:file, file?(path)),
         :ok <- not_throttled(name),
         {:ok, user} <- name |> owner(path, key) |> counted(name),
         {:ok, hash} <- Accounts.hash(password),
         {:ok, _} <- user |> replace(path, key, hash) |> counted(name) do
      # Should it fail, the next login locks them.
      Accounts.lock(user.id, password)
      Accounts.end_sessions(user.id, nil)
      {:ok, user}
    end
  end

  def restore(_name, _words, _path, _password), do: {:error, %{name: "whose account is it?"}}

  defp not_throttled(name) do
    if Accounts.throttled?(name),
      do: {:error, %{form: "Too many attempts. Wait a few minutes, please."}},
      else: :ok
  end

  # What somebody tries who is not the one.
  defp counted({:error, errors} = error, name) do
    if Map.has_key?(errors, :file), do: Accounts.failed(name)
    error
  end

  defp counted(result, _name), do: result

  defp owner(name, path, key) do
    with {:ok, found} <- verify(path, key) do
      case Accounts.user_with_name(name) do
        %User{id: id} = user when id == found.user -> {:ok, user}
        _ -> {:error, %{file: "This is not the file of that account."}}
      end
    end
  end

  # The keys that are there and those of the file must be of one identity, or anybody could be anybody.
  defp replace(%User{id: id}, path, key, hash) do
    SQL.transaction(fn ->
      with {:ok, before} <- @kith.pre_key_bundle(id),
           {:ok, restored} <- Backup.restore(@kith, id, File.stream!(path), key, replace: true),
           # Others may begin a conversation at once.
           {:ok, _} <- @kith.replenish(id),
           {:ok, now} <- @kith.pre_key_bundle(id) do
        if before.identity_key != now.identity_key, do: SQL.rollback(%{file: older()})
        Accounts.put_hash(id, hash)
        {:ok, restored}
      else
        {:error, error} -> SQL.rollback(error)
      end
    end)
    |> case do
      {:error, %Kith.Error{} = error} -> {:error, sentence(error)}
      result -> result
    end
  end

  defp older, do: "This file is of keys that the account does not have any more."

  defp verify(path, key) do
    with {:error, error} <- Backup.verify(@kith, File.stream!(path), key),
         do: {:error, sentence(error)}
  end

  defp sentence(%{reason: :wrong_secret}),
    do: %{file: "These words do not open this file. Is it the one that was saved with them?"}

  defp sentence(%{reason: reason}) when reason in [:tampered, :malformed],
    do: %{file: "This is no recovery file, or a part of it is missing."}

  defp sentence(%{reason: :unsupported_version}),
    do: %{file: "This file is of a newer version of the chat."}

  defp sentence(_error), do: %{form: "That did not work. Try again, please."}

  defp field(_field, {:ok, _} = result), do: result
  defp field(field, {:error, sentence}), do: {:error, %{field => sentence}}

  defp file?(path) when is_binary(path), do: {:ok, path}
  defp file?(_none), do: {:error, "Choose the file that you have saved."}

  # As people write them down: with numbers, in lines.
  defp key(words) when is_binary(words) do
    words = if String.valid?(words), do: String.replace(words, ~r/[\d.,;:]+/u, " "), else: ""
    count = length(String.split(words))

    case RecoveryKey.parse(words) do
      {:ok, key} ->
        {:ok, key}

      {:error, %{reason: :malformed, position: at}} when is_integer(at) ->
        {:error, not_a_word(at)}

      {:error, %{reason: :malformed}} ->
        {:error, "These are #{count} words, and not twelve."}

      {:error, _} ->
        {:error, "One of the words is another one, or two have changed places."}
    end
  end

  defp key(_none), do: {:error, "Type the twelve words."}

  defp not_a_word(at), do: "Word #{at} is none of those that are used. Look at it again."
end
