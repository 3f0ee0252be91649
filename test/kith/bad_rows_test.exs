defmodule Kith.BadRowsTest do
  # Ids and rows that no application should have, on both databases: an answer of the closed set, and nothing changed.
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.Error

  # The longest there are, and those that SQL, LIKE, a shell or a careless join would read as something else.
  @ids [
    String.duplicate("a", 255),
    String.duplicate("é", 127),
    String.duplicate("🦊", 63),
    "'; DROP TABLE signal_sessions; --",
    "\"quoted\"",
    "100%_\\",
    "\\x00",
    "$1",
    "kith.signal_sessions",
    "line\nbreak\ttab",
    " ",
    "NULL",
    "null",
    "e\u0301",
    "\u00E9",
    "ANNA",
    "anna"
  ]

  # Each with bytes of every sealed and every public column.
  @blobs [
    {"signal_accounts", "data_key"},
    {"signal_identity_keys", "private_key_encrypted"},
    {"signal_sessions", "state"},
    {"signal_sessions", "identity"},
    {"signal_braids", "braid"},
    {"signal_braids", "session_id"}
  ]

  test "ids of every kind are those of users of their own" do
    kith = start_kith!(one_time_prekeys: 5, one_time_kyber_prekeys: 1, replenish_below: 0)
    register!(kith, @ids)
    register!(kith, ["me"])

    for id <- @ids do
      assert send!(kith, id, "me", id) == id
      assert send!(kith, "me", id, id) == id
    end

    assert {:ok, results} = Kith.encrypt_group(kith, "me", @ids, "to all")
    assert length(results) == length(@ids)

    for {{id, 1}, {:ok, envelope}} <- results,
        do: assert(Kith.decrypt!(kith, id, Kith.Envelope.to_binary(envelope)) == "to all")

    for id <- @ids, do: assert(Kith.unregister!(kith, id) == :unregistered)
    assert sql!(kith, "SELECT user_id FROM signal_accounts") == [["me"]]
  end

  test "ids that cannot be stored are the caller's mistake, and nothing is written" do
    kith = start_kith!()
    converse!(kith, "anna", "ben")
    before = dump(kith)

    for id <- ["", "a\0b", <<255>>, String.duplicate("a", 256), String.duplicate("é", 128)],
        call <- [
          &Kith.register(kith, &1),
          &Kith.encrypt(kith, "anna", &1, "x"),
          &Kith.encrypt(kith, &1, "anna", "x"),
          &Kith.encrypt_group(kith, "anna", ["ben", &1], "x"),
          &Kith.decrypt(kith, &1, <<>>),
          &Kith.unregister(kith, &1)
        ] do
      assert_raise ArgumentError, fn -> call.(id) end
    end

    assert dump(kith) == before
  end

  describe "a stored row" do
    setup do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      converse!(kith, "anna", "cleo")
      # Two for each test of a direction, as a message that fails is told once.
      %{kith: kith, envelope: encrypt_one!(kith, "ben", "anna", "still here")}
    end

    test "that was cut off, emptied, extended, filled with other bytes or damaged does not open, and nothing goes out",
         %{
           kith: kith,
           envelope: envelope
         } do
      for {table, column} <- @blobs do
        where = where(table)
        [[whole]] = sql!(kith, "SELECT #{column} FROM #{table} #{where}")

        for bad <- [
              "",
              binary_part(whole, 0, 1),
              binary_part(whole, 0, div(byte_size(whole), 2)),
              binary_part(whole, 0, byte_size(whole) - 1),
              whole <> <<0>>,
              :crypto.strong_rand_bytes(byte_size(whole)),
              corrupt(whole, div(byte_size(whole), 2))
            ] do
          sql!(kith, "UPDATE #{table} SET #{column} = $1 #{where}", [{:blob, bad}])
          before = dump(kith)

          assert {:error, %Error{reason: reason}} = Kith.decrypt(kith, "anna", envelope),
                 "#{table}.#{column} of #{byte_size(bad)} bytes"

          assert reason in [
                   :corrupted_state,
                   :key_not_found,
                   :untrusted_identity,
                   :session_not_found
                 ]

          assert {:error, _} = undone!(kith, fn -> Kith.encrypt(kith, "anna", "ben", "x") end)
          # That a session is to be renewed is written; what was there is not touched.
          assert without_marks(dump(kith)) == without_marks(before)
          sql!(kith, "UPDATE #{table} SET #{column} = $1 #{where}", [{:blob, whole}])
          sql!(kith, "UPDATE signal_sessions SET renew_since = NULL")
        end
      end

      assert Kith.decrypt!(kith, "anna", envelope) == "still here"
      assert send!(kith, "anna", "ben", "on we go") == "on we go"
    end

    test "with numbers beyond their limits is an error, not an exception", %{
      kith: kith,
      envelope: envelope
    } do
      most = 9_223_372_036_854_775_807

      for {table, column} <- [
            {"signal_sessions", "generation"},
            {"signal_braids", "revision"},
            {"signal_identity_keys", "registration_id"}
          ],
          bad <- [-1, 4_294_967_296, most, -most - 1] do
        where = where(table)
        [[good]] = sql!(kith, "SELECT #{column} FROM #{table} #{where}")
        sql!(kith, "UPDATE #{table} SET #{column} = $1 #{where}", [bad])
        before = dump(kith)

        for call <- [
              fn -> Kith.decrypt(kith, "anna", envelope) end,
              fn -> Kith.encrypt(kith, "anna", "ben", "x") end
            ] do
          result = undone!(kith, call)
          assert match?({:error, %Error{}}, result) or match?({:ok, _}, result)
        end

        assert dump(kith) == before
        sql!(kith, "UPDATE #{table} SET #{column} = $1 #{where}", [good])
      end

      assert Kith.decrypt!(kith, "anna", envelope) == "still here"
    end

    test "of another instance, of another key, does not open", %{kith: kith, envelope: envelope} do
      other = start_kith!(keys: [current: {"test", {:key, :crypto.strong_rand_bytes(32)}}])
      converse!(other, "anna", "ben")

      for {table, column} <- @blobs do
        where = where(table)
        [[own]] = sql!(kith, "SELECT #{column} FROM #{table} #{where}")
        [[foreign]] = sql!(other, "SELECT #{column} FROM #{table} #{where}")
        sql!(kith, "UPDATE #{table} SET #{column} = $1 #{where}", [{:blob, foreign}])
        before = dump(kith)
        assert {:error, %Error{}} = Kith.decrypt(kith, "anna", envelope)
        assert without_marks(dump(kith)) == without_marks(before)
        sql!(kith, "UPDATE #{table} SET #{column} = $1 #{where}", [{:blob, own}])
        sql!(kith, "UPDATE signal_sessions SET renew_since = NULL")
      end

      assert Kith.decrypt!(kith, "anna", envelope) == "still here"
    end
  end

  test "a table that is missing is :storage, and the others are as they were" do
    for table <-
          ~w(signal_sessions signal_identity_keys signal_prekeys signal_accounts signal_braids) do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      envelope = encrypt_one!(kith, "ben", "anna", "x")
      sql!(kith, "ALTER TABLE #{table} RENAME TO hidden")

      for call <- [
            fn -> Kith.encrypt(kith, "anna", "ben", "x") end,
            fn -> Kith.decrypt(kith, "anna", envelope) end,
            fn -> Kith.register(kith, "cleo") end
          ] do
        case call.() do
          {:error, %Error{reason: reason}} -> assert reason == :storage
          # What a call does not need may be gone.
          {:ok, _} -> assert table in ["signal_prekeys", "signal_braids"]
        end
      end
    end
  end

  defp where("signal_sessions"), do: "WHERE user_id = 'anna' AND peer_id = 'ben'"
  defp where("signal_braids"), do: "WHERE user_id = 'anna' AND peer_id = 'ben'"
  defp where(_table), do: "WHERE user_id = 'anna'"

  # Without the times of signal_sessions.
  defp without_marks(dump),
    do: Map.update!(dump, "signal_sessions", fn rows -> Enum.map(rows, &Enum.take(&1, 7)) end)
end
