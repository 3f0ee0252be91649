defmodule FamilyChat.RecoveryKitTest do
  use ExUnit.Case, async: true

  import FamilyChat.Family
  import Kith.Testing

  alias FamilyChat.{Accounts, Chat, Locks, RecoveryKit, SQL}
  alias Kith.Backup.RecoveryKey

  setup do
    folder = Path.join(System.tmp_dir!(), "family-chat-kit-#{System.unique_integer([:positive])}")
    File.mkdir_p!(folder)
    on_exit(fn -> File.rm_rf!(folder) end)
    [anna, ben] = people!(~w(Anna Ben))
    conversation = direct!(anna, ben)
    say!(anna, conversation, "before the kit")
    come(ben)
    say!(ben, conversation, "an answer")
    come(anna)
    %{anna: anna, ben: ben, conversation: conversation, folder: folder}
  end

  defp kit!(user, folder) do
    {:ok, words} = RecoveryKit.words(user, password())
    words = Enum.join(words, " ")
    {words, file!(user, words, folder)}
  end

  defp file!(user, words, folder) do
    path = Path.join(folder, "#{System.unique_integer([:positive])}.kith")
    {:ok, stream} = RecoveryKit.file(user, words)
    stream |> Stream.into(File.stream!(path)) |> Stream.run()
    RecoveryKit.saved(user)
    path
  end

  test "words are shown to whoever knows the password, and are nowhere in the database",
       context do
    %{anna: anna, folder: folder} = context
    assert {:error, %{password: _}} = RecoveryKit.words(anna, "another password")
    {words, path} = kit!(anna, folder)
    assert length(String.split(words)) == 12
    refute File.read!(path) =~ "before the kit"
    assert :ok = RecoveryKit.try(anna, words, path)

    for [table] <- SQL.rows("SELECT name FROM sqlite_master WHERE type = 'table'", []),
        not String.starts_with?(table, "sqlite_"),
        do: refute_readable(SQL.rows("SELECT * FROM #{table}"), words)
  end

  test "a kit counts as tried when the words open the file", %{anna: anna, folder: folder} do
    assert RecoveryKit.state(anna) == nil
    {words, path} = kit!(anna, folder)
    assert %{tried_at: nil} = RecoveryKit.state(anna)

    written =
      words
      |> String.split()
      |> Enum.with_index(1)
      |> Enum.map_join("\n", fn {word, n} -> "#{n}. #{String.upcase(word)}" end)

    assert :ok = RecoveryKit.try(anna, written, path)
    assert %{tried_at: at} = RecoveryKit.state(anna)
    assert_in_delta at, SQL.now(), 600_000
  end

  test "what is wrong with words and file is said, with the place of the word", context do
    %{anna: anna, ben: ben, folder: folder} = context
    {words, path} = kit!(anna, folder)
    list = String.split(words)

    misspelt = list |> List.replace_at(6, "sumer") |> Enum.join(" ")
    assert {:error, %{words: "Word 7 is none" <> _}} = RecoveryKit.try(anna, misspelt, path)

    assert {:error, %{words: "These are 11 words" <> _}} =
             RecoveryKit.try(anna, Enum.join(tl(list), " "), path)

    assert {:error, %{words: _}} = RecoveryKit.try(anna, nil, path)
    assert {:error, %{words: _}} = RecoveryKit.try(anna, <<255>>, path)
    assert {:error, %{file: "Choose" <> _}} = RecoveryKit.try(anna, words, nil)

    {:ok, key} = RecoveryKey.generate()
    {:ok, others} = RecoveryKey.words(key)
    assert {:error, %{file: "These words do not open" <> _}} = RecoveryKit.try(anna, others, path)

    half = Path.join(folder, "half")
    File.write!(half, binary_part(File.read!(path), 0, 400))
    assert {:error, %{file: "This is no recovery file" <> _}} = RecoveryKit.try(anna, words, half)

    {bens_words, bens_path} = kit!(ben, folder)

    assert {:error, %{file: "This is the file of another account."}} =
             RecoveryKit.try(anna, bens_words, bens_path)

    assert %{tried_at: nil} = RecoveryKit.state(anna)
  end

  test "an account comes back under a new password, with its safety numbers, its history, and the conversation",
       context do
    %{anna: anna, ben: ben, conversation: conversation, folder: folder} = context
    {:ok, %{digits: digits}} = Chat.safety(ben, anna.id)
    {words, path} = kit!(anna, folder)
    say!(ben, conversation, "after the kit")
    come(anna)
    session = Accounts.create_session(anna)
    Locks.lock(anna.id)
    say!(ben, conversation, "while it was locked")

    assert {:ok, ^anna} =
             RecoveryKit.restore(String.upcase(anna.name), words, path, "a new password")

    assert locked_at_rest?(anna)
    assert Accounts.user_of_session(session) == nil
    assert Accounts.authenticate(anna.name, password()) == {:error, :wrong}
    assert Accounts.authenticate(anna.name, "a new password") == {:ok, anna}

    for _ <- 1..2, user <- [anna, ben], do: come(user)
    # What was opened after the kit was made is not in it.
    assert sees(anna, conversation) == ["before the kit", "an answer", "while it was locked"]

    assert {:ok, %{digits: ^digits, identity: :remembered}} = Chat.safety(ben, anna.id)
    say!(anna, conversation, "here again")
    come(ben)
    say!(ben, conversation, "welcome")
    come(anna)

    assert List.last(sees(ben, conversation)) == "welcome"
    assert ["here again", "welcome"] = Enum.take(sees(anna, conversation), -2)
  end

  test "what is wrong with a restore changes nothing, and does not say whether there is such a name",
       context do
    %{anna: anna, ben: ben, conversation: conversation, folder: folder} = context
    {words, path} = kit!(anna, folder)
    restore = &RecoveryKit.restore(&1, words, path, "a new password")

    assert {:error, %{password: _}} = RecoveryKit.restore(anna.name, words, path, "short")
    assert {:error, %{file: answer}} = restore.(ben.name)
    assert {:error, %{file: ^answer}} = restore.("nobody at all")
    assert {:error, %{file: ^answer}} = restore.(<<0>>)
    assert {:error, _} = RecoveryKit.restore(nil, words, path, "a new password")

    edited = Path.join(folder, "edited")
    bytes = File.read!(path)
    <<start::binary-size(500), byte, rest::binary>> = bytes
    File.write!(edited, [start, Bitwise.bxor(byte, 1), rest])
    assert {:error, %{file: _}} = RecoveryKit.restore(anna.name, words, edited, "a new password")

    assert Accounts.authenticate(anna.name, password()) == {:ok, anna}
    assert sees(anna, conversation) == ["before the kit", "an answer"]
  end

  test "who tries to be somebody with files of their own has to wait, and so does nobody else",
       context do
    %{anna: anna, ben: ben, folder: folder} = context
    {words, path} = kit!(ben, folder)

    for _ <- 1..10,
        do: {:error, %{file: _}} = RecoveryKit.restore(anna.name, words, path, "a new password")

    assert {:error, %{form: "Too many" <> _}} =
             RecoveryKit.restore(anna.name, words, path, "a new password")

    assert {:ok, ^ben} = RecoveryKit.restore(ben.name, words, path, "a new password")
  end

  test "a file with other keys brings nothing back: neither one of before nor one that somebody made up",
       context do
    %{anna: anna, folder: folder} = context
    {words, path} = kit!(anna, folder)
    :ok = Accounts.renew_keys(anna, nil, password())
    assert RecoveryKit.state(anna) == nil
    identity = FamilyChat.Kith.pre_key_bundle!(anna.id).identity_key

    assert {:error, %{file: "This file is of keys" <> _}} = RecoveryKit.try(anna, words, path)

    assert {:error, %{file: "This file is of keys" <> _}} =
             RecoveryKit.restore(anna.name, words, path, "a new password")

    # On a server of their own anybody can have a user with this id.
    other = start_kith!(archive: true)
    Kith.register!(other, anna.id)
    {:ok, key} = RecoveryKey.generate()
    {:ok, made_up} = RecoveryKey.words(key)
    {:ok, stream} = Kith.Backup.export(other, anna.id, key)
    forged = Path.join(folder, "forged")
    stream |> Stream.into(File.stream!(forged)) |> Stream.run()

    assert {:error, %{file: "This file is of keys" <> _}} =
             RecoveryKit.restore(anna.name, made_up, forged, "a new password")

    assert FamilyChat.Kith.pre_key_bundle!(anna.id).identity_key == identity
    assert locked_at_rest?(anna)
    assert Accounts.authenticate(anna.name, password()) == {:ok, anna}
  end
end
