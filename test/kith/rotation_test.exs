defmodule Kith.RotationTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.Store.ArchivedMessages

  @keys for n <- 1..3, do: {"k#{n}", {:key, String.duplicate("#{n}", 32)}}

  setup do
    options =
      defaults(
        archive: true,
        one_time_prekeys: 2,
        one_time_kyber_prekeys: 1,
        replenish_below: 0,
        name: make_ref(),
        keys: [current: Enum.at(@keys, 0)]
      )

    kith = start_kith!(options)
    converse!(kith, "anna", "ben")
    register!(kith, ["cleo"])
    Kith.lock_with_password!(kith, "cleo", "correct horse battery", memory: 8_192, passes: 1)
    %{kith: kith, options: options}
  end

  # The instance under other keys.
  defp restart!(kith, options, current, retired) do
    stop_kith!(kith)

    keys = [
      current: Enum.at(@keys, current - 1),
      retired: Enum.map(retired, &Enum.at(@keys, &1 - 1))
    ]

    start_kith!(Keyword.put(options, :keys, keys))
  end

  defp rows(kith) do
    for table <- ~w(signal_identity_keys signal_sessions signal_archived_messages),
        do: Enum.sort(sql!(kith, "SELECT * FROM #{table}"))
  end

  defp texts(kith, user, thread \\ "all"),
    do: Enum.map(Kith.history!(kith, user, thread).messages, & &1.plaintext)

  test "wraps data keys anew and touches nothing else, and the retired key is needed no more", %{
    kith: kith,
    options: options
  } do
    kith = restart!(kith, options, 2, [1])
    before = rows(kith)
    assert %{rewrapped: 4, refused: 0} = Kith.rotate_keys!(kith, dry_run: true)
    assert %{rewrapped: 4, current: 0, refused: 0, remaining: left} = Kith.rotate_keys!(kith)
    assert left == %{}
    assert rows(kith) == before
    assert %{rewrapped: 0, current: 4} = Kith.rotate_keys!(kith)

    kith = restart!(kith, options, 2, [])
    assert send!(kith, "anna", "ben", "x") == "x"
    assert length(Kith.history!(kith, "ben", {:direct, "anna"}).messages) == 4
    assert {:ok, _} = Kith.unlock(kith, "cleo", "correct horse battery")
  end

  test "leaves accounts unlocked that are, on nodes that know both keys, and a lock is one for all of them",
       %{kith: kith, options: options} do
    password = "correct horse battery"
    stop_kith!(kith)
    [first, second] = Enum.take(@keys, 2)
    # A node that was not started anew, and one that was.
    old = start_kith!(Keyword.put(options, :keys, current: first, retired: [second]))
    keys = [current: second, retired: [first]]
    new = start_kith!(Keyword.merge(options, keys: keys, name: make_ref()))
    until = for kith <- [old, new], do: Kith.unlock!(kith, "cleo", password)
    token = Kith.unlock_token!(old, "cleo")

    assert %{rewrapped: 4, rotated: 0} = Kith.rotate_keys!(new)

    for {kith, until} <- Enum.zip([old, new], until), _ <- 1..2 do
      assert {:ok, {:unlocked, ^until}} = Kith.lock_state(kith, "cleo")
      assert send!(kith, "cleo", "anna", "x") == "x"
    end

    assert Kith.lock!(new, "cleo") == :locked
    for kith <- [old, new], do: assert(Kith.lock_state!(kith, "cleo") == :locked)
    assert {:error, %{reason: :wrong_password}} = Kith.unlock_with_token(old, "cleo", token)

    # A lock between two rotations is one.
    for kith <- [old, new], do: Kith.unlock!(kith, "cleo", password)
    assert %{refused: 0} = Kith.rotate_keys!(old)
    assert Kith.lock!(old, "cleo") == :locked
    assert %{refused: 0} = Kith.rotate_keys!(new)
    assert Kith.lock_state!(new, "cleo") == :locked
    assert {:error, %{reason: :locked}} = Kith.encrypt(new, "cleo", "anna", "x")
    assert {:ok, _} = Kith.unlock(new, "cleo", password)
  end

  test "loses nothing that is written meanwhile, though two nodes rotate, each to a key and a cipher of its own",
       %{kith: kith, options: options} do
    stop_kith!(kith)
    [first, second] = Enum.take(@keys, 2)
    one = start_kith!(Keyword.put(options, :keys, current: first, retired: [second]))
    keys = [current: second, retired: [first]]
    another = [keys: keys, cipher: :chacha20_poly1305, name: make_ref()]
    other = start_kith!(Keyword.merge(options, another))
    nodes = [one, other]
    for node <- nodes, do: Kith.unlock!(node, "cleo", "correct horse battery")
    pairs = [{"anna", "ben"}, {"ben", "anna"}, {"cleo", "anna"}, {"anna", "cleo"}]

    traffic =
      Task.async(fn ->
        for {{from, to}, at} <- Enum.with_index(pairs) do
          Task.async(fn ->
            for n <- 1..15 do
              [here, there] = if rem(n + at, 2) == 0, do: nodes, else: Enum.reverse(nodes)
              # Some in a thread that was not there before.
              thread = if rem(n, 3) == 0, do: [thread: "#{from} #{n}"], else: []
              [envelope] = Kith.encrypt!(here, from, to, "#{from} #{n}", thread)
              assert Kith.decrypt!(there, to, envelope, thread) == "#{from} #{n}"
              if rem(n, 5) == 0, do: register!(here, ["#{from} and #{to} #{n}"])
            end
          end)
        end
        |> Task.await_many(60_000)
      end)

    rotated =
      nodes
      |> Enum.map(&Task.async(fn -> rotations(&1, traffic, 1) end))
      |> Task.await_many(60_000)

    Task.await(traffic, 60_000)
    # Each has taken over what the other had.
    for rewrapped <- rotated, do: assert(rewrapped > 0)

    stop_kith!(other)
    kith = restart!(one, options, 2, [1])
    assert %{refused: 0} = Kith.rotate_keys!(kith)
    kith = restart!(kith, options, 2, [])
    Kith.unlock!(kith, "cleo", "correct horse battery")
    assert %{damaged: 0, locked: 0, outdated: 0} = Kith.verify_keys!(kith)
    assert [["k2"]] = sql!(kith, "SELECT DISTINCT kek_id FROM signal_accounts")
    assert [["k2"]] = sql!(kith, "SELECT DISTINCT kek_id FROM signal_threads")
    # Two that were there before, cleo, and three of each pair.
    assert [[15]] = sql!(kith, "SELECT COUNT(*) FROM signal_accounts")

    for {a, b, before} <- [{"anna", "ben", ~w(hello hi well)}, {"cleo", "anna", []}],
        {user, peer} <- [{a, b}, {b, a}] do
      written = for from <- [a, b], n <- 1..15, rem(n, 3) != 0, do: "#{from} #{n}"
      found = Kith.history!(kith, user, {:direct, peer}, limit: 1_000).messages
      assert found |> Enum.map(& &1.plaintext) |> Enum.sort() == Enum.sort(before ++ written)
    end

    for {from, to} <- pairs do
      for user <- [from, to],
          n <- [3, 6, 9, 12, 15],
          do: assert("#{from} #{n}" in texts(kith, user, "#{from} #{n}"))

      assert send!(kith, from, to, "x") == "x"
      assert send!(kith, from, "#{from} and #{to} 15", "x") == "x"
    end
  end

  # While there is traffic, but a few times at least and not for ever. Returns how many keys it has wrapped anew.
  defp rotations(kith, traffic, times) do
    assert %{refused: 0, rewrapped: rewrapped} = Kith.rotate_keys!(kith)

    if times < 5 or (times < 300 and Process.alive?(traffic.pid)),
      do: rewrapped + rotations(kith, traffic, times + 1),
      else: rewrapped
  end

  test "wraps the keys of the service itself anew, those that are retired too", %{
    kith: kith,
    options: options
  } do
    {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
    {:ok, _} = Kith.Signed.rotate_service_key(kith)
    info = [info: "a record"]
    {public_key, _} = :crypto.generate_key(:eddh, :x25519)
    {:ok, sealed} = Kith.ClientKey.seal(kith, {:x25519, public_key}, "text", info)

    kith = restart!(kith, options, 2, [1])
    assert %{rewrapped: 7, refused: 0} = Kith.rotate_keys!(kith)

    kith = restart!(kith, options, 2, [])
    assert {:ok, "text"} = Kith.ClientKey.open(kith, {:x25519, public_key}, sealed, info)
    assert {:ok, _} = Kith.Signed.sign(kith, "a payload", audience: "billing")
  end

  test "goes on where it was interrupted", %{kith: kith, options: options} do
    kith = restart!(kith, options, 2, [1])

    assert_raise RuntimeError, "killed", fn ->
      Kith.rotate_keys(kith, progress: fn _ -> raise "killed" end)
    end

    assert %{refused: 0, current: current, rewrapped: rewrapped} = Kith.rotate_keys!(kith)
    assert current == 3
    assert rewrapped == 1
  end

  test "writes nothing that does not open, and says under which key it is", %{
    kith: kith,
    options: options
  } do
    # Under a key nobody has any more.
    kith = restart!(kith, options, 3, [])
    before = sql!(kith, "SELECT * FROM signal_accounts ORDER BY user_id")
    assert %{rewrapped: 0, refused: 4, remaining: %{"k1" => 4}} = Kith.rotate_keys!(kith)
    assert sql!(kith, "SELECT * FROM signal_accounts ORDER BY user_id") == before

    kith = restart!(kith, options, 3, [1])
    junk = if store() == :postgres, do: "junk", else: {:blob, "junk"}
    sql!(kith, "UPDATE signal_accounts SET data_key = $1 WHERE user_id = 'ben'", [junk])
    assert %{rewrapped: 3, refused: 1, remaining: %{"?" => 1}} = Kith.rotate_keys!(kith)
    assert sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'ben'") == [["junk"]]
  end

  test "replaces data keys that are older than asked, but for those only their user can", %{
    kith: kith,
    options: options
  } do
    stop_kith!(kith)
    clock = fn -> System.system_time(:millisecond) + 100_000 end
    kith = start_kith!(Keyword.put(options, :clock, clock))
    Kith.unlock!(kith, "cleo", "correct horse battery")
    Kith.lock!(kith, "cleo")
    assert %{rotated: 0} = Kith.rotate_keys!(kith, older_than: 1_000)
    assert %{rotated: 4} = Kith.rotate_keys!(kith, older_than: 50, dry_run: true)
    # Two accounts and a thread.
    assert %{rotated: 3, refused: 0} = Kith.rotate_keys!(kith, older_than: 50)
    assert %{rotated: 0} = Kith.rotate_keys!(kith, older_than: 50)
    assert send!(kith, "anna", "ben", "x") == "x"
  end

  test "prekeys are made beside it, and those of a data key that was replaced meanwhile are made anew",
       %{kith: kith, options: options} do
    # Another node, under another key: each wraps anew what the other has wrapped.
    keys = [current: Enum.at(@keys, 1), retired: [Enum.at(@keys, 0)]]
    stop_kith!(kith)
    many = Keyword.merge(options, one_time_prekeys: 400, one_time_kyber_prekeys: 100)
    one = [keys: [current: Enum.at(@keys, 0), retired: [Enum.at(@keys, 1)]]]
    kith = start_kith!(Keyword.merge(many, one))
    other = start_kith!(Keyword.merge(many, keys: keys, name: make_ref()))

    # Each time it finds another data key it begins anew, and not for ever.
    for {change, times} <- [
          {fn -> Enum.each([other, kith], &Kith.rotate_keys!/1) end, 1_000},
          {fn -> Kith.rotate_data_key!(other, "anna") end, 3}
        ] do
      sql!(kith, "DELETE FROM signal_prekeys WHERE kind = 'one_time'")
      task = Task.async(fn -> Kith.replenish(kith, "anna") end)
      beside(task, change, times)
      assert {:ok, 400} = Task.await(task)
      assert %{damaged: 0} = Kith.verify_keys!(kith)
      assert send!(kith, "ben", "anna", "x") == "x"
    end
  end

  defp beside(_task, _change, 0), do: :ok

  defp beside(task, change, times) do
    change.()
    if Process.alive?(task.pid), do: beside(task, change, times - 1)
  end

  describe "another cipher" do
    @sealed [
      signal_identity_keys: "private_key_encrypted",
      signal_prekeys: "private_key_encrypted",
      signal_sessions: "state",
      signal_braids: "braid",
      signal_archived_messages: "content"
    ]

    # What the rows of accounts without a password are sealed with: their second byte says it.
    defp algorithms(kith) do
      for {table, column} <- @sealed,
          [<<1, algorithm, _::binary>>] <-
            sql!(kith, "SELECT #{column} FROM #{table} WHERE user_id <> 'cleo'"),
          uniq: true,
          do: algorithm
    end

    defp first_bytes(kith, user) do
      sql = "SELECT data_key FROM signal_accounts WHERE user_id = '#{user}'"
      [[<<first::binary-2, _::binary>>]] = sql!(kith, sql)
      first
    end

    defp with_cipher!(kith, options, cipher) do
      stop_kith!(kith)
      start_kith!(Keyword.put(options, :cipher, cipher))
    end

    test "is for data keys that are drawn, and those that are there get a successor", %{
      kith: kith,
      options: options
    } do
      [note] = Kith.encrypt!(kith, "anna", "anna", "a note")
      before = texts(kith, "ben", {:direct, "anna"})
      assert algorithms(kith) == [1]

      kith = with_cipher!(kith, options, :chacha20_poly1305)

      # Two accounts and two threads. Cleo's is under a password, and not for the server to change.
      assert %{outdated: 4, damaged: 0} = Kith.verify_keys!(kith)
      assert %{rotated: 4} = Kith.rotate_keys!(kith, dry_run: true)
      assert send!(kith, "anna", "ben", "x") == "x"
      assert algorithms(kith) == [1]
      register!(kith, ["dora"])
      assert first_bytes(kith, "dora") == <<1, 0x18>>
      assert send!(kith, "anna", "dora", "y") == "y"

      assert %{rotated: 4, refused: 0, rewrapped: 0} = Kith.rotate_keys!(kith)
      assert algorithms(kith) == [2]
      assert %{outdated: 0, damaged: 0} = Kith.verify_keys!(kith)
      assert %{rotated: 0} = Kith.rotate_keys!(kith)
      # OpenSSL's ChaCha20-Poly1305 opens it too, as it is documented.
      {_, {:key, kek}} = Enum.at(@keys, 0)
      archived = Kith.StateReader.archived_messages(&sql!(kith, &1), kek)
      assert Enum.count(archived, fn {_, _, _, text} -> text == "x" end) == 2
      assert texts(kith, "ben", {:direct, "anna"}) == before ++ ["x"]
      assert Kith.decrypt!(kith, "anna", note) == "a note"

      for {from, to} <- [{"ben", "anna"}, {"anna", "ben"}, {"dora", "anna"}],
          do: assert(send!(kith, from, to, "z") == "z")

      # And back, while the key-encryption key changes too.
      kith = restart!(kith, options, 2, [1])
      assert %{rotated: 6, refused: 0, rewrapped: 7} = Kith.rotate_keys!(kith)
      assert algorithms(kith) == [1]
      kith = restart!(kith, options, 2, [])
      assert %{outdated: 0, damaged: 0} = Kith.verify_keys!(kith)
      assert texts(kith, "ben", {:direct, "anna"}) == before ++ ["x", "z", "z"]
      assert send!(kith, "dora", "anna", "z") == "z"
    end

    test "comes to a locked account when its user gives it another lock", %{
      kith: kith,
      options: options
    } do
      assert first_bytes(kith, "cleo") == <<1, 0x11>>
      kith = with_cipher!(kith, options, :chacha20_poly1305)
      password = "correct horse battery"
      Kith.unlock!(kith, "cleo", password)
      assert send!(kith, "cleo", "anna", "x") == "x"
      costs = [memory: 8_192, passes: 1]
      Kith.change_password!(kith, "cleo", password, password, costs)
      assert first_bytes(kith, "cleo") == <<1, 0x11>>
      Kith.change_password!(kith, "cleo", password, password, [reseal: true] ++ costs)
      assert first_bytes(kith, "cleo") == <<1, 0x19>>
      token = Kith.unlock_token!(kith, "cleo")
      assert send!(kith, "anna", "cleo", "x") == "x"

      # As it is locked at rest.
      kith = with_cipher!(kith, options, :aes_256_gcm)
      assert Kith.lock_state!(kith, "cleo") == :locked
      assert {:error, %{reason: :locked}} = Kith.encrypt(kith, "cleo", "anna", "x")
      Kith.unlock_with_token!(kith, "cleo", token)
      assert send!(kith, "cleo", "anna", "x") == "x"
      assert ["x", "x", "x"] = texts(kith, "cleo", {:direct, "anna"})
    end

    test "is what messages lie under that have not all followed, and verify_keys/2 says so", %{
      kith: kith,
      options: options
    } do
      kith = with_cipher!(kith, options, :chacha20_poly1305)
      for user <- ~w(anna ben), do: Kith.rotate_data_key!(kith, user)
      instance = Kith.Instance.fetch!(kith)
      [[thread]] = sql!(kith, "SELECT thread_id FROM signal_threads")
      {:ok, data_key} = Kith.Instance.sealed(instance, :thread_create, [thread])

      # As after a node that was killed then.
      {:ok, 1} =
        Kith.Instance.transaction(instance, fn repo ->
          now = Kith.Instance.now(instance)
          {{:ok, ArchivedMessages.replace_data_key(repo, thread, data_key, now)}, []}
        end)

      assert send!(kith, "anna", "ben", "x") == "x"
      assert Enum.sort(algorithms(kith)) == [1, 2]
      assert %{outdated: 1, damaged: 0} = Kith.verify_keys!(kith)
      assert %{rotated: 1} = Kith.rotate_keys!(kith, dry_run: true)
      assert %{rotated: 1} = Kith.rotate_keys!(kith)
      assert algorithms(kith) == [2]
      assert %{outdated: 0} = Kith.verify_keys!(kith)
    end

    test "is given once, however many nodes do it", %{kith: kith, options: options} do
      users = for n <- 1..12, do: "user #{n}"
      register!(kith, users)
      kith = with_cipher!(kith, options, :chacha20_poly1305)
      chacha = [cipher: :chacha20_poly1305, name: make_ref()]
      other = start_kith!(Keyword.merge(options, chacha))

      counts =
        [kith, other]
        |> Enum.map(fn kith -> Task.async(fn -> Kith.rotate_keys!(kith) end) end)
        |> Task.await_many(60_000)

      assert Enum.all?(counts, &(&1.refused == 0))
      # One may finish the thread that the other has begun.
      assert (counts |> Enum.map(& &1.rotated) |> Enum.sum()) in [15, 16]
      # Each has left the one key of before.
      sql = "SELECT user_id FROM signal_retired_keys WHERE user_id <> 'cleo'"

      assert sql!(kith, sql) |> Enum.sort() ==
               Enum.sort(for user <- ["anna", "ben" | users], do: [user])

      assert %{outdated: 0, damaged: 0} = Kith.verify_keys!(kith)
    end

    test "is not for a data key that does not open, which is counted once", %{
      kith: kith,
      options: options
    } do
      kith = with_cipher!(kith, options, :chacha20_poly1305)
      [[key]] = sql!(kith, "SELECT data_key FROM signal_accounts WHERE user_id = 'ben'")
      damaged = corrupt(key, byte_size(key) - 1)
      value = if store() == :postgres, do: damaged, else: {:blob, damaged}
      sql!(kith, "UPDATE signal_accounts SET data_key = $1 WHERE user_id = 'ben'", [value])

      for options <- [[dry_run: true], []] do
        assert %{refused: 1, rotated: 2, remaining: %{"k1" => 1}} =
                 Kith.rotate_keys!(kith, options)
      end
    end

    test "goes on where it was interrupted, in a thread too", %{kith: kith, options: options} do
      kith = with_cipher!(kith, options, :chacha20_poly1305)

      assert_raise RuntimeError, "killed", fn ->
        Kith.rotate_keys(kith, progress: &if(&1.rotated > 0, do: raise("killed")))
      end

      assert Enum.sort(algorithms(kith)) == [1, 2]
      assert send!(kith, "anna", "ben", "x") == "x"
      assert %{refused: 0} = Kith.rotate_keys!(kith)
      assert algorithms(kith) == [2]
      assert send!(kith, "ben", "anna", "x") == "x"
    end
  end

  test "takes options of the right kind", %{kith: kith} do
    assert_raise ArgumentError, fn -> Kith.verify_keys(kith, dry_run: true) end

    for options <- [
          [progress: 1],
          [older: 1],
          [older_than: 0],
          [older_than: "1"],
          [dry_run: 1],
          :all
        ],
        do: assert_raise(ArgumentError, fn -> Kith.rotate_keys(kith, options) end)
  end

  describe "rotate_thread_key/2" do
    setup %{kith: kith} do
      register!(kith, ["dora"])

      for n <- 1..4, from <- ~w(anna dora cleo) do
        others = ~w(anna dora cleo) -- [from]

        for {to, {:ok, envelope}} <-
              Kith.encrypt_group!(kith, from, others, "#{from} #{n}", thread: "all"),
            do: Kith.decrypt!(kith, to, envelope, thread: "all")
      end

      :ok
    end

    defp contents(kith),
      do:
        sql!(
          kith,
          "SELECT user_id, message_id, content, owner_key_id FROM signal_archived_messages WHERE thread_id = 't:all' ORDER BY 1, 2"
        )

    defp keys(kith),
      do:
        hd(
          sql!(
            kith,
            "SELECT data_key, previous_data_key FROM signal_threads WHERE thread_id = 't:all'"
          )
        )

    defp say!(kith, from, to, text) do
      [envelope] = Kith.encrypt!(kith, from, to, text, thread: "all")
      Kith.decrypt!(kith, to, envelope, thread: "all")
    end

    defp key_id(<<_, _, id::binary-8, _::binary>>), do: id

    test "seals all messages of a thread anew, those of locked accounts too, and forgets the key of before",
         %{kith: kith} do
      texts = texts(kith, "anna")
      assert length(texts) == 12
      Kith.lock!(kith, "cleo")
      before = contents(kith)
      [old, nil] = keys(kith)

      assert %{resealed: 36, refused: 0} = Kith.rotate_thread_key!(kith, "all")
      assert [new, nil] = keys(kith)
      assert key_id(new) != key_id(old)

      for {[user, id, was, owner], [user, id, is, owner]} <- Enum.zip(before, contents(kith)) do
        assert was != is
        assert key_id(is) == key_id(new)
      end

      assert texts(kith, "anna") == texts
      Kith.unlock!(kith, "cleo", "correct horse battery")
      assert Enum.sort(texts(kith, "cleo")) == Enum.sort(texts)

      # The other thread is as it was.
      assert length(Kith.history!(kith, "anna", {:direct, "ben"}).messages) == 3
      assert %{resealed: 6} = Kith.rotate_thread_key!(kith, {:direct, "ben", "anna"})
      assert length(Kith.history!(kith, "anna", {:direct, "ben"}).messages) == 3
    end

    test "goes on where it was interrupted, and until then both keys open", %{
      kith: kith,
      options: options
    } do
      texts = texts(kith, "anna")
      before = contents(kith)
      [old, nil] = keys(kith)
      Kith.rotate_thread_key!(kith, "all")
      [new, nil] = keys(kith)

      # As it was after half of it.
      blob = &if(store() == :postgres, do: &1, else: {:blob, &1})

      sql!(kith, "UPDATE signal_threads SET previous_data_key = $1 WHERE thread_id = 't:all'", [
        blob.(old)
      ])

      for [user, id, content, _] <- Enum.take_every(before, 2) do
        sql!(
          kith,
          "UPDATE signal_archived_messages SET content = $1 WHERE user_id = $2 AND message_id = $3",
          [blob.(content), user, blob.(id)]
        )
      end

      assert texts(kith, "anna") == texts
      assert %{damaged: 0, outdated: 0} = Kith.verify_keys!(kith)

      # Another key-encryption key takes both along.
      kith = restart!(kith, options, 2, [1])
      assert %{refused: 0, rewrapped: 7, rotated: 1} = Kith.rotate_keys!(kith, dry_run: true)
      assert %{refused: 0, rewrapped: 7, rotated: 1} = Kith.rotate_keys!(kith)
      kith = restart!(kith, options, 2, [])
      assert texts(kith, "anna") == texts
      assert [finished, nil] = keys(kith)
      assert key_id(finished) == key_id(new)
      assert %{damaged: 0, outdated: 0, locked: 1, opened: opened} = Kith.verify_keys!(kith)
      assert opened > 36
    end

    test "writes nothing that does not open, and keeps the key of before for it", %{kith: kith} do
      [[user, id, content, _] | _] = contents(kith)
      junk = corrupt(content, 40)
      value = &if(store() == :postgres, do: &1, else: {:blob, &1})

      put =
        &sql!(
          kith,
          "UPDATE signal_archived_messages SET content = $1 WHERE user_id = $2 AND message_id = $3",
          [value.(&1), user, value.(id)]
        )

      put.(junk)
      assert %{damaged: 1} = Kith.verify_keys!(kith)
      [old, nil] = keys(kith)
      # Nothing has to follow yet, so nothing is known of it.
      assert %{resealed: 35, refused: 1} = Kith.rotate_thread_key!(kith, "all")
      assert [new, ^old] = keys(kith)
      assert [_, _, ^junk, _] = Enum.find(contents(kith), &match?([^user, ^id | _], &1))

      # No third key, or it would be lost.
      assert %{resealed: 0, refused: 1} = Kith.rotate_thread_key!(kith, "all")
      assert [^new, ^old] = keys(kith)
      assert %{refused: 1} = Kith.rotate_keys!(kith)

      # Mended, it follows.
      put.(content)
      assert %{resealed: 37, refused: 0} = Kith.rotate_thread_key!(kith, "all")
      assert [_, nil] = keys(kith)
      assert length(texts(kith, user)) == 12
    end

    test "goes on while people write", %{kith: kith} do
      people = ~w(anna dora)

      writers =
        for {from, to} <- Enum.zip(people, Enum.reverse(people)) do
          Task.async(fn ->
            for n <- 1..15, do: say!(kith, from, to, "later #{n}")
          end)
        end

      # As from several nodes.
      rotations =
        for _ <- 1..3 do
          Task.async(fn ->
            for _ <- 1..3, do: assert(%{refused: 0} = Kith.rotate_thread_key!(kith, "all"))
          end)
        end

      Task.await_many(rotations, 60_000)
      Task.await_many(writers, 60_000)
      assert %{refused: 0} = Kith.rotate_thread_key!(kith, "all")
      assert [_, nil] = keys(kith)
      assert %{damaged: 0} = Kith.verify_keys!(kith)
      assert length(texts(kith, "anna")) == 12 + 30
      assert nil not in texts(kith, "dora")
    end

    test "knows no thread that is not there", %{kith: kith} do
      assert {:error, %{reason: :key_not_found}} = Kith.rotate_thread_key(kith, "none")
      assert_raise ArgumentError, fn -> Kith.rotate_thread_key(kith, {:direct, "anna"}) end
    end
  end

  test "verify_keys/2 counts what does not open, and changes nothing", %{
    kith: kith,
    options: options
  } do
    Kith.lock!(kith, "cleo")
    before = rows(kith)
    assert %{damaged: 0, locked: 1, outdated: 0, opened: opened} = Kith.verify_keys!(kith)
    Kith.unlock!(kith, "cleo", "correct horse battery")
    assert %{damaged: 0, locked: 0, opened: more} = Kith.verify_keys!(kith)
    assert more > opened
    assert rows(kith) == before

    kith = restart!(kith, options, 2, [1])
    assert %{outdated: 4, damaged: 0} = Kith.verify_keys!(kith)
    kith = restart!(kith, options, 3, [])
    assert %{damaged: 4, opened: 0} = Kith.verify_keys!(kith)
    kith = restart!(kith, options, 1, [])

    [[private_key]] =
      sql!(kith, "SELECT private_key_encrypted FROM signal_identity_keys WHERE user_id = 'anna'")

    value =
      if store() == :postgres,
        do: corrupt(private_key, 40),
        else: {:blob, corrupt(private_key, 40)}

    sql!(
      kith,
      "UPDATE signal_identity_keys SET private_key_encrypted = $1 WHERE user_id = 'anna'",
      [value]
    )

    assert %{damaged: 1} = Kith.verify_keys!(kith)
  end
end
