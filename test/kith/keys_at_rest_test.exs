defmodule Kith.KeysAtRestTest do
  # What changes of keys leave behind, and what damaged rows make of them. The costs of passwords are everybody's.
  use Kith.Case, async: false
  use Kith.Test.Stores

  alias Kith.{Instance, Password}
  alias Kith.Store.{ArchivedMessages, Repo}

  @cheap [memory: 8_192, passes: 1, parallelism: 1]
  @password "correct horse battery"

  setup do
    options = [
      archive: true,
      one_time_prekeys: 2,
      one_time_kyber_prekeys: 1,
      replenish_below: 0,
      name: make_ref()
    ]

    options =
      if store() == :sqlite,
        do: [{:database, Path.join(tmp_dir!(), "kith.db")} | options],
        else: options

    options = defaults(options)
    kith = start_kith!(options)
    converse!(kith, "anna", "ben")
    on_exit(fn -> Application.delete_env(:kith, Password) end)
    %{kith: kith, options: options}
  end

  defp blob(bytes), do: if(store() == :postgres, do: bytes, else: {:blob, bytes})

  defp texts(kith),
    do:
      for(
        message <- Kith.history!(kith, "anna", {:direct, "ben"}).messages,
        do: message.plaintext
      )

  @tag store: :sqlite
  test "the file alone, without its log, opens nothing of an account that is locked", %{
    kith: kith,
    options: options
  } do
    :ok = Kith.SQLite.checkpoint(Instance.fetch!(kith).repo)
    Kith.lock_with_password!(kith, "anna", @password, @cheap)
    Kith.lock!(kith, "anna")
    stolen = Path.join(tmp_dir!(), "stolen.db")
    File.cp!(options[:database], stolen)
    other = start_kith!(Keyword.merge(options, database: stolen, name: make_ref()))
    assert {:error, %{reason: :locked}} = Kith.history(other, "anna", {:direct, "ben"})
  end

  test "a thread key that does not open is not replaced, and is not lost", %{kith: kith} do
    [[whole]] = sql!(kith, "SELECT data_key FROM signal_threads")

    for at <- [5, byte_size(whole) - 1] do
      sql!(kith, "UPDATE signal_threads SET data_key = $1", [blob(corrupt(whole, at))])
      assert {:error, _} = Kith.rotate_thread_key(kith, {:direct, "anna", "ben"})

      assert [[damaged, nil]] =
               sql!(kith, "SELECT data_key, previous_data_key FROM signal_threads")

      assert damaged == corrupt(whole, at)
    end

    sql!(kith, "UPDATE signal_threads SET data_key = $1", [blob(whole)])
    assert texts(kith) == ["hello", "hi", "well"]
  end

  test "a message whose key id is damaged keeps the key it is under", %{kith: kith} do
    [[id, content] | _] =
      sql!(kith, """
      SELECT message_id, content FROM signal_archived_messages WHERE user_id = 'anna' ORDER BY position
      """)

    put =
      &sql!(kith, "UPDATE signal_archived_messages SET content = $1 WHERE message_id = $2", [
        blob(&1),
        blob(id)
      ])

    put.(corrupt(content, 4))
    thread = {:direct, "anna", "ben"}
    assert %{resealed: 5, refused: 1} = Kith.rotate_thread_key!(kith, thread)
    put.(content)
    assert texts(kith) == ["hello", "hi", "well"]
    assert %{refused: 0} = Kith.rotate_thread_key!(kith, thread)
    assert texts(kith) == ["hello", "hi", "well"]
  end

  test "an account whose time is over before its archive has followed is locked with it", %{
    kith: kith,
    options: options
  } do
    stop_kith!(kith)
    step = :atomics.new(1, [])
    clock = fn -> System.system_time(:millisecond) + :atomics.add_get(step, 1, 5_000) end
    kith = start_kith!(Keyword.put(options, :clock, clock))

    assert %{archive: :done} =
             Kith.lock_with_password!(kith, "anna", @password, [for: 1] ++ @cheap)

    assert Kith.lock_state!(kith, "anna") == :locked

    assert [] =
             sql!(kith, """
             SELECT 1 FROM signal_archived_messages WHERE user_id = 'anna' AND owner_key_id IS NULL
             """)
  end

  test "what did not follow is told, follows with a token too, and an error is none", %{
    kith: kith
  } do
    Kith.lock_with_password!(kith, "anna", @password, @cheap)
    token = Kith.unlock_token!(kith, "anna")
    instance = Instance.fetch!(kith)

    # As it lay before.
    {:ok, rows} =
      Instance.transaction(instance, fn repo ->
        {{:ok,
          ArchivedMessages.in_thread(repo, "d:4:annaben", nil, ArchivedMessages.cursor(nil), 9)},
         []}
      end)

    account =
      {"anna", hd(hd(sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'anna'")))}

    unlocked = Kith.Unlocked.account(instance, account)

    for {{"anna", 1} = owner, {thread, key, _, place, content}} <- rows do
      {:ok, [{:ok, open}]} =
        Instance.sealed(instance, :archive_reseal, [
          {thread, key},
          {unlocked, nil},
          [{owner, place, content}]
        ])

      assert ArchivedMessages.put_content(
               instance.repo,
               owner,
               place.message_id,
               content,
               open,
               nil
             ) == 1
    end

    Kith.lock!(kith, "anna", keep_tokens: true)
    Kith.unlock_with_token!(kith, "anna", token)

    assert [] =
             sql!(kith, """
             SELECT 1 FROM signal_archived_messages WHERE user_id = 'anna' AND owner_key_id IS NULL
             """)

    assert texts(kith) == ["hello", "hi", "well"]
  end

  test "an unlock makes no lock cheaper than it was asked to be, and ends no token", %{kith: kith} do
    costs = fn ->
      [[data_key]] = sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'anna'")
      {:ok, costs} = Instance.sealed(Instance.fetch!(kith), :account_costs, ["anna", data_key])
      costs
    end

    Application.put_env(:kith, Password, @cheap)
    Kith.lock_with_password!(kith, "anna", @password, memory: 19_456, passes: 2, parallelism: 1)
    token = Kith.unlock_token!(kith, "anna")
    Kith.unlock!(kith, "anna", @password)
    assert costs.() == {19_456, 2, 1}

    Application.put_env(:kith, Password, memory: 19_456, passes: 3, parallelism: 1)
    Kith.unlock!(kith, "anna", @password)
    assert costs.() == {19_456, 3, 1}
    assert {:ok, _} = Kith.unlock_with_token(kith, "anna", token)
  end

  @tag store: :sqlite
  test "rows whose ids are of another type end no call, and no other row is lost by them", %{
    kith: kith
  } do
    register!(kith, ["cleo", "dora"])
    for name <- ~w(cleo dora), do: send!(kith, "anna", name, "x")
    thread = {:direct, "anna", "ben"}

    for change <- [
          "UPDATE signal_archived_messages SET user_id = CAST(user_id AS BLOB) WHERE user_id = 'ben'",
          "UPDATE signal_threads SET thread_id = CAST(thread_id AS BLOB) WHERE thread_id LIKE '%cleo' OR thread_id LIKE '%dora'",
          "UPDATE signal_accounts SET user_id = CAST(user_id AS BLOB) WHERE user_id IN ('cleo', 'dora')"
        ] do
      sql!(kith, change)
      assert {:ok, _} = Kith.verify_keys(kith)
      assert {:ok, _} = Kith.rotate_thread_key(kith, thread)
      assert {:ok, _} = Kith.rotate_keys(kith, older_than: 31_536_000)
      assert texts(kith) == ["hello", "hi", "well"]
    end
  end

  # There the two are at work at once.
  @tag store: :postgres
  test "a session that is put away while its account gets another key is not lost", %{kith: kith} do
    elsewhere = start_kith!(one_time_prekeys: 2, one_time_kyber_prekeys: 1, replenish_below: 0)
    repo = Instance.fetch!(kith).repo

    publish = fn ->
      Kith.register!(elsewhere, "rob")
      Kith.publish_bundle!(kith, "rob", Kith.pre_key_bundle!(elsewhere, "rob"))
    end

    publish.()
    Kith.publish_bundle!(elsewhere, "anna", Kith.pre_key_bundle!(kith, "anna"))
    assert Kith.decrypt!(elsewhere, "rob", encrypt_one!(kith, "anna", "rob", "hello")) == "hello"
    assert Kith.decrypt!(kith, "anna", encrypt_one!(elsewhere, "rob", "anna", "hi")) == "hi"
    late = encrypt_one!(elsewhere, "rob", "anna", "on its way")
    Kith.unregister!(elsewhere, "rob")

    publishing =
      Task.async(fn ->
        receive do: (:go -> publish.())
      end)

    {:ok, _} =
      Repo.transaction(repo, fn ->
        Kith.rotate_data_key!(kith, "anna")
        send(publishing.pid, :go)
        Process.sleep(500)
        {:ok, :done}
      end)

    Task.await(publishing, 30_000)
    assert Kith.decrypt!(kith, "anna", late) == "on its way"
  end
end
