defmodule Kith.RotationPagesTest do
  # What is read some at a time: 100 accounts, threads or keys of the service, 500 rows.
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.Instance
  alias Kith.Store.ArchivedMessages

  @first {"k1", {:key, String.duplicate("1", 32)}}
  @second {"k2", {:key, String.duplicate("2", 32)}}
  @cheap [memory: 8_192, passes: 1, parallelism: 1]
  @password "correct horse battery"

  defp restart!(kith, options, changed) do
    stop_kith!(kith)
    start_kith!(Keyword.merge(options, changed))
  end

  defp count(kith, sql) do
    [[count]] = sql!(kith, "SELECT COUNT(*) FROM " <> sql)
    count
  end

  # All wrapped keys there are, read at once.
  defp wrapped(kith) do
    for sql <- [
          "SELECT data_key FROM signal_accounts",
          "SELECT data_key FROM signal_threads",
          "SELECT previous_data_key FROM signal_threads WHERE previous_data_key IS NOT NULL",
          "SELECT private_key_encrypted FROM signed_service_keys"
        ],
        [key] <- sql!(kith, sql),
        do: key
  end

  defp kek_id(<<1, _, _::binary-8, size, id::binary-size(size), _::binary>>), do: id

  # It opens whatever there is, and each once.
  defp verified(kith) do
    there =
      Enum.sum(
        for sql <- [
              "signal_identity_keys",
              "signal_prekeys WHERE private_key_encrypted IS NOT NULL",
              "signal_archived_messages",
              "signal_retired_keys"
            ],
            do: count(kith, sql)
      )

    opened = there + length(wrapped(kith))
    assert %{damaged: 0, locked: 0, outdated: 0, opened: ^opened} = Kith.verify_keys!(kith)
  end

  defp texts(kith, address, thread) do
    for message <- Kith.history!(kith, address, thread, limit: 1_000).messages,
        do: message.plaintext
  end

  describe "rotate_keys/2" do
    @accounts 205
    @service_keys 105

    # In an order that is not that of their numbers, nor of their bytes in every database.
    @users for n <- 1..@accounts, do: Enum.at(~w(a Z é _ 7), rem(n, 5)) <> " #{n}"

    defp all_open(kith) do
      for user <- @users, do: assert(texts(kith, user, "of #{user}") == ["by #{user}"])

      verified(kith)
    end

    # As after a node that was killed when each thread had been given another key.
    defp begin_threads!(kith) do
      instance = Instance.fetch!(kith)

      {:ok, _} =
        Instance.transaction(instance, fn repo ->
          for user <- @users, thread = "t:of #{user}" do
            {:ok, data_key} = Instance.sealed(instance, :thread_create, [thread])
            now = Instance.now(instance)
            assert ArchivedMessages.replace_data_key(repo, thread, data_key, now) == 1
          end

          {{:ok, nil}, []}
        end)
    end

    @tag timeout: 120_000
    test "takes the keys of all along when they are more than a page of each kind" do
      options =
        defaults(
          archive: true,
          one_time_prekeys: 1,
          one_time_kyber_prekeys: 0,
          replenish_below: 0,
          name: make_ref(),
          keys: [current: @first]
        )

      kith = start_kith!(options)

      for user <- @users do
        Kith.register!(kith, user)
        Kith.encrypt!(kith, user, user, "by #{user}", thread: "of #{user}")
      end

      {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
      for _ <- 2..@service_keys, do: {:ok, _} = Kith.Signed.rotate_service_key(kith)
      begin_threads!(kith)
      before = wrapped(kith)
      assert length(before) == 3 * @accounts + @service_keys
      assert before |> Enum.map(&kek_id/1) |> Enum.uniq() == ["k1"]

      kith = restart!(kith, options, keys: [current: @second, retired: [@first]])
      all = length(before)

      expected = %{
        rewrapped: all,
        current: 0,
        refused: 0,
        rotated: @accounts,
        remaining: %{}
      }

      assert Kith.rotate_keys!(kith, dry_run: true) == expected
      assert wrapped(kith) == before
      pages = :counters.new(1, [])
      progress = fn _ -> :counters.add(pages, 1, 1) end
      assert Kith.rotate_keys!(kith, progress: progress) == expected

      # Two at least of each kind, and of the threads that are finished. Otherwise there are too few rows here.
      assert :counters.get(pages, 1) >= 10
      now = wrapped(kith)
      assert length(now) == all - @accounts
      assert now |> Enum.map(&kek_id/1) |> Enum.uniq() == ["k2"]

      kith = restart!(kith, options, keys: [current: @second])
      all_open(kith)

      chacha = [keys: [current: @second], cipher: :chacha20_poly1305]
      kith = restart!(kith, options, chacha)
      twice = 2 * @accounts
      assert %{rotated: ^twice, rewrapped: 0} = Kith.rotate_keys!(kith, dry_run: true)
      assert wrapped(kith) == now
      assert %{rotated: ^twice, refused: 0, rewrapped: 0} = Kith.rotate_keys!(kith)

      for table <- ~w(signal_accounts signal_threads) do
        keys = sql!(kith, "SELECT data_key FROM #{table}")
        assert length(keys) == @accounts
        assert Enum.all?(keys, &match?([<<1, 0x18, _::binary>>], &1))
      end

      all_open(kith)

      for user <- Enum.take_every(@users, 20),
          do: Kith.encrypt!(kith, user, user, "later", archive: false)
    end
  end

  describe "messages that are more than a page" do
    @each 350
    @owners [{"anna", 1}, {"anna", 2}, {"ben", 1}]

    setup do
      kith =
        start_kith!(
          archive: true,
          # More rows of an account than are sealed anew in one call, too.
          one_time_prekeys: 300,
          one_time_kyber_prekeys: 0,
          replenish_below: 0
        )

      for owner <- @owners, do: Kith.register!(kith, owner)

      @owners
      |> Enum.map(fn owner ->
        Task.async(fn ->
          for n <- 1..@each,
              do: Kith.encrypt!(kith, owner, owner, "#{n}", thread: "all")
        end)
      end)
      |> Task.await_many(60_000)

      %{kith: kith}
    end

    defp key_id(<<_, _, id::binary-8, _::binary>>), do: id

    defp key_of(kith, row) do
      [[key]] = sql!(kith, "SELECT data_key FROM " <> row)
      key_id(key)
    end

    # The keys that the messages of a user are under: that of their thread, and that of their account.
    defp keys_of(kith, user) do
      sql = "SELECT content, owner_key_id FROM signal_archived_messages WHERE user_id = '#{user}'"

      for [content, owner_key_id] <- sql!(kith, sql),
          uniq: true,
          do: {key_id(content), owner_key_id}
    end

    defp complete(kith) do
      for owner <- @owners,
          do: assert(texts(kith, owner, "all") == for(n <- 1..@each, do: "#{n}"))
    end

    defp thread_key(kith), do: key_of(kith, "signal_threads")
    defp account_key(kith), do: key_of(kith, "signal_accounts WHERE user_id = 'anna'")

    @tag timeout: 120_000
    test "all follow to the keys of their thread and of their account", %{kith: kith} do
      thread = thread_key(kith)
      of_ben = [{thread, nil}]
      assert keys_of(kith, "anna") == of_ben
      own = 2 * @each
      prekeys = count(kith, "signal_prekeys WHERE user_id = 'anna'")
      assert own > 500 and prekeys > 500

      assert %{refused: 0, archive: :done, resealed: resealed} =
               Kith.lock_with_password!(kith, "anna", @password, @cheap)

      assert resealed >= own + prekeys
      locked = account_key(kith)
      assert keys_of(kith, "anna") == [{thread, locked}]
      assert keys_of(kith, "ben") == of_ben
      complete(kith)

      all = 3 * @each
      assert all > 1_000
      Kith.lock!(kith, "anna")
      assert %{resealed: ^all, refused: 0} = Kith.rotate_thread_key!(kith, "all")
      now = thread_key(kith)
      assert now != thread
      assert keys_of(kith, "anna") == [{now, locked}]
      assert keys_of(kith, "ben") == [{now, nil}]
      assert [[nil]] = sql!(kith, "SELECT previous_data_key FROM signal_threads")
      Kith.unlock!(kith, "anna", @password)
      complete(kith)

      # And the key that was retired.
      one_more = resealed + 1

      assert %{refused: 0, archive: :done, resealed: ^one_more} =
               Kith.change_password!(kith, "anna", @password, "new password", [
                 {:reseal, true} | @cheap
               ])

      another = account_key(kith)
      assert another != locked
      assert keys_of(kith, "anna") == [{now, another}]
      complete(kith)
      verified(kith)

      assert %{resealed: ^own, refused: 0, archive: :done} =
               Kith.remove_password!(kith, "anna", "new password")

      assert keys_of(kith, "anna") == [{now, nil}]
      complete(kith)
    end
  end
end
