defmodule Kith.VersionsTest do
  # Which versions of the protocol are spoken with whom. A second instance plays the client that holds the private
  # keys, and decides what it publishes of them.
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.{Envelope, Error, PreKeyBundle}

  defp server_and_client(server_options, client_options \\ []) do
    server = start_kith!(server_options)
    client = start_kith!([unknown_senders: :remember] ++ client_options)
    register!(server, ["anna"])
    register!(client, ["olga"])
    {server, client}
  end

  defp publish!(server, client, changes \\ %{}) do
    bundle = Kith.pre_key_bundle!(client, "olga")
    Kith.publish_bundle!(server, "olga", Map.merge(bundle, changes))
  end

  @without_kyber %{kyber_prekey: nil}

  describe "version 4" do
    test "is what two users of an instance speak" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      assert %Envelope{version: 4} = encrypt_one!(kith, "anna", "ben", "x")

      assert %{current: %{version: 4}, highest_version: 4} =
               Kith.session_info!(kith, "ben", "anna")
    end

    test "goes through its epochs, whoever writes how much, and writes few braids" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      :rand.seed(:exsss, 4)

      {_waiting, braids} =
        Enum.reduce(1..400, {[], MapSet.new()}, fn n, {waiting, braids} ->
          [from, to] = Enum.shuffle(["anna", "ben"])
          envelope = encrypt_one!(kith, from, to, "#{n}")
          braids = MapSet.union(braids, MapSet.new(sql!(kith, "SELECT braid FROM signal_braids")))

          # A fifth of the messages comes after some of those that follow.
          due = if :rand.uniform(5) == 1, do: n + :rand.uniform(6), else: n

          {now, waiting} =
            Enum.split_with([{due, to, envelope, "#{n}"} | waiting], &(elem(&1, 0) <= n))

          for {_due, to, envelope, text} <- now,
              do: assert(Kith.decrypt!(kith, to, envelope) == text)

          {waiting, braids}
        end)

      %{current: %{braid: %{epoch: epoch}}} = Kith.session_info!(kith, "anna", "ben")
      assert epoch >= 3
      # Far from one to a message.
      assert MapSet.size(braids) < 100
    end

    test "leaves no braid behind when a session ends, and opens what is on its way" do
      kith = start_kith!()
      converse!(kith, "anna", "ben")
      count = fn -> sql!(kith, "SELECT COUNT(*) FROM signal_braids WHERE user_id = 'ben'") end
      assert count.() == [[1]]

      late = encrypt_one!(kith, "anna", "ben", "late")
      Kith.reset_session!(kith, "ben", "anna")
      assert count.() == [[0]]
      assert Kith.decrypt!(kith, "ben", late) == "late"
      assert count.() == [[1]]

      other = Kith.register!(kith, "cleo").identity_key
      Kith.trust!(kith, "ben", "anna", identity_key: other)
      assert count.() == [[0]]
      Kith.delete!(kith, "ben", "anna")
      assert send!(kith, "ben", "anna", "again") == "again"
      assert count.() == [[1]]
      Kith.delete!(kith, "ben", "anna")
      assert count.() == [[0]]
    end
  end

  describe "a peer without a Kyber prekey" do
    test "is refused by default, with what could be done" do
      {server, client} = server_and_client([])
      assert {:error, error} = Kith.publish_bundle(server, "olga", bundle(client, @without_kyber))
      assert %Error{reason: :unsupported_version} = error
      assert Exception.message(error) =~ ":kyber_prekey"
      assert Exception.message(error) =~ "minimum_version: 3"
      assert reason(Kith.prekey_count(server, "olga")) == :not_registered
    end

    test "is refused when it was published under a more lenient policy, and its prekey is given back" do
      options = defaults(minimum_version: 3)
      {server, client} = server_and_client(options)
      publish!(server, client, @without_kyber)
      stop_kith!(server)

      server = start_kith!(Keyword.put(options, :minimum_version, 4))
      before = dump(server)
      assert {:error, error} = Kith.encrypt(server, "anna", "olga", "x")
      assert %Error{reason: :unsupported_version} = error
      assert Exception.message(error) =~ ":minimum_version"
      assert dump(server) == before
    end

    test "is spoken with in version 3 where that is allowed, both ways, and stays remembered so" do
      {server, client} = server_and_client([minimum_version: 3], minimum_version: 3)
      publish!(server, client, @without_kyber)
      Kith.publish_bundle!(client, "anna", Kith.pre_key_bundle!(server, "anna"))

      first = encrypt_one!(server, "anna", "olga", "hello")
      assert %Envelope{type: :prekey, version: 3} = first
      assert Kith.decrypt!(client, "olga", first) == "hello"
      answer = encrypt_one!(client, "olga", "anna", "hi")
      assert answer.version == 3
      assert Kith.decrypt!(server, "anna", answer) == "hi"
      assert Kith.decrypt!(client, "olga", encrypt_one!(server, "anna", "olga", "x")) == "x"

      for {kith, from, to} <- [{server, "anna", "olga"}, {client, "olga", "anna"}] do
        assert %{current: %{version: 3, braid: nil}, highest_version: 3} =
                 Kith.session_info!(kith, from, to)
      end

      assert sql!(server, "SELECT COUNT(*) FROM signal_braids") == [[0]]

      # Nobody lost a Kyber prekey to it, on the side that has some.
      assert sql!(client, "SELECT kind FROM signal_prekeys WHERE used_at IS NOT NULL") ==
               [["one_time"]]
    end

    test "that is given one starts a session of version 4 with the next reset, and is held to it" do
      {server, client} = server_and_client([minimum_version: 3], minimum_version: 3)
      publish!(server, client, @without_kyber)
      assert Kith.decrypt!(client, "olga", encrypt_one!(server, "anna", "olga", "x")) == "x"

      publish!(server, client)
      Kith.reset_session!(server, "anna", "olga")
      envelope = encrypt_one!(server, "anna", "olga", "y")
      assert envelope.version == 4
      assert Kith.decrypt!(client, "olga", envelope) == "y"
      assert %{highest_version: 4} = Kith.session_info!(client, "olga", "anna")
    end

    test "writes to nobody who asks for version 4" do
      {server, client} = server_and_client(minimum_version: 3)
      publish!(server, client, @without_kyber)
      envelope = encrypt_one!(server, "anna", "olga", "x")
      assert envelope.version == 3
      before = dump(client)
      assert reason(Kith.decrypt(client, "olga", envelope)) == :unsupported_version
      assert dump(client) == before
    end

    test "fails alone in a group" do
      {server, client} = server_and_client(minimum_version: 3)
      register!(server, ["ben"])
      publish!(server, client)
      encrypt_one!(server, "anna", "olga", "x")
      publish!(server, client, @without_kyber)
      Kith.reset_session!(server, "anna", "olga")

      assert [
               {{"ben", 1}, {:ok, envelope}},
               {{"olga", 1}, {:error, %Error{reason: :unsupported_version}}}
             ] = Kith.encrypt_group!(server, "anna", ["ben", "olga"], "hello")

      assert Kith.decrypt!(server, "ben", envelope) == "hello"
    end
  end

  describe "a peer that was seen with version 4" do
    setup do
      {server, client} = server_and_client([minimum_version: 3], minimum_version: 3)
      publish!(server, client)
      envelope = encrypt_one!(server, "anna", "olga", "hello")
      assert Kith.decrypt!(client, "olga", envelope) == "hello"
      %{server: server, client: client}
    end

    test "is not written to with less when its bundle loses the Kyber prekey",
         %{server: server, client: client} do
      publish!(server, client, @without_kyber)
      assert Kith.kyber_prekey_count!(server, "olga") == 0
      assert Kith.pre_key_bundle!(server, "olga").kyber_prekey == nil

      # The session there is goes on.
      assert Kith.decrypt!(client, "olga", encrypt_one!(server, "anna", "olga", "x")) == "x"

      Kith.reset_session!(server, "anna", "olga")
      stock = Kith.prekey_count!(server, "olga")
      assert {:error, error} = Kith.encrypt(server, "anna", "olga", "y")
      assert error.reason == :unsupported_version
      assert Exception.message(error) =~ "seen with version 4"
      assert Kith.prekey_count!(server, "olga") == stock

      # Not by way of a new identity either.
      other = Kith.register!(client, "eve").identity_key
      Kith.trust!(server, "anna", "olga", identity_key: other)
      Kith.trust!(server, "anna", "olga")
      assert reason(Kith.encrypt(server, "anna", "olga", "y")) == :unsupported_version

      # But by forgetting them.
      Kith.delete!(server, "anna", "olga")
      assert encrypt_one!(server, "anna", "olga", "y").version == 3
    end

    test "is not read with less", %{client: client} do
      {pair, _} = identity_key_pair()
      [before, after_] = for _ <- 1..2, do: start_kith!(minimum_version: 3)
      for kith <- [before, after_], do: Kith.register!(kith, "dora", identity_key_pair: pair)

      publish!(before, client)
      first = encrypt_one!(before, "dora", "olga", "version 4")
      assert Kith.decrypt!(client, "olga", first) == "version 4"

      publish!(after_, client, @without_kyber)
      downgraded = encrypt_one!(after_, "dora", "olga", "version 3")
      assert downgraded.version == 3
      rows = dump(client)
      assert reason(Kith.decrypt(client, "olga", downgraded)) == :unsupported_version
      assert dump(client) == rows

      # The same message of somebody not seen before is opened.
      assert Kith.delete!(client, "olga", "dora") == :deleted
      assert Kith.decrypt!(client, "olga", downgraded) == "version 3"
    end
  end

  defp bundle(client, changes) do
    %PreKeyBundle{} = bundle = Kith.pre_key_bundle!(client, "olga")
    Map.merge(bundle, changes)
  end
end
