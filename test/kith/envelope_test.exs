defmodule Kith.EnvelopeTest do
  use Kith.Case, async: true
  doctest Kith.Envelope

  alias Kith.{Envelope, Error}

  @envelope Envelope.new({"änna", 3}, "ben", :prekey, <<0x33, 1, 2, 3>>, 1_700_000_000_123)

  describe "to_binary/1 and from_binary/1" do
    test "give back every envelope but for the session id" do
      for envelope <- envelopes() do
        bytes = Envelope.to_binary(%{envelope | session_id: <<1::128>>})
        assert Envelope.from_binary(bytes) == {:ok, envelope}
      end
    end

    test "have the documented layout" do
      assert Envelope.to_binary(Envelope.new("anna", {"ben", 2}, :message, <<0x33, 9>>)) ==
               <<1, 1, 0::64, 4, "anna", 1, 3, "ben", 2, 0, 0, 0, 2, 0x33, 9>>

      assert Envelope.to_binary(Envelope.new("anna", "ben", :report, <<0xC0>>, 0x0102030405)) ==
               <<1, 4, 0, 0, 0, 1, 2, 3, 4, 5, 4, "anna", 1, 3, "ben", 1, 0, 0, 0, 1, 0xC0>>
    end

    test "refuse every truncation and every extension" do
      bytes = Envelope.to_binary(@envelope)

      for size <- 0..(byte_size(bytes) - 1) do
        assert reason(Envelope.from_binary(binary_part(bytes, 0, size))) == :malformed
      end

      assert reason(Envelope.from_binary(bytes <> <<0>>)) == :malformed
    end

    test "answer every value of every byte with an envelope or a documented reason" do
      bytes = Envelope.to_binary(@envelope)

      for position <- 0..(byte_size(bytes) - 1), mask <- 1..255 do
        case Envelope.from_binary(corrupt(bytes, position, mask)) do
          {:ok, %Envelope{} = envelope} ->
            assert Envelope.to_binary(envelope) == corrupt(bytes, position, mask)

          {:error, %Error{reason: :unsupported_version}} ->
            assert position == 0

          {:error, %Error{reason: reason}} ->
            assert reason == :malformed
        end
      end
    end

    test "answer random bytes" do
      for size <- 0..300, do: assert({:error, _} = Envelope.from_binary(random(size)))
    end

    test "refuse a body over 1 MiB and 4 KiB and one of nothing" do
      head = <<1, 1, 7::64, 4, "anna", 1, 3, "ben", 1>>

      assert {:ok, _} =
               Envelope.from_binary(<<head::binary, 1_052_672::32, 0::size(1_052_672)-unit(8)>>)

      assert reason(
               Envelope.from_binary(<<head::binary, 1_052_673::32, 0::size(1_052_673)-unit(8)>>)
             ) ==
               :malformed

      assert reason(Envelope.from_binary(<<head::binary, 0::32>>)) == :malformed
    end

    test "refuse addresses that are none, and notes to another" do
      body = <<1::32, 0>>

      for bytes <- [
            <<1, 1, 0::64, 0, 1, 3, "ben", 1>>,
            <<1, 1, 0::64, 1, 255, 1, 3, "ben", 1>>,
            <<1, 1, 0::64, 1, 0, 1, 3, "ben", 1>>,
            <<1, 1, 0::64, 4, "anna", 0, 3, "ben", 1>>,
            <<1, 1, 0::64, 4, "anna", 128, 3, "ben", 1>>,
            <<1, 2, 0::64, 4, "anna", 1, 3, "ben", 1>>,
            <<1, 5, 0::64, 4, "anna", 1, 3, "ben", 1>>,
            <<1, 1, 0x8000_0000_0000_0000::64, 4, "anna", 1, 3, "ben", 1>>
          ] do
        assert reason(Envelope.from_binary(bytes <> body)) == :malformed
      end
    end

    test "do not keep the packet alive that the envelope came in" do
      packet = Envelope.to_binary(Envelope.new("anna", "ben", :message, random(1_000)))

      {:ok, envelope} =
        Envelope.from_binary(
          (packet <> "")
          |> then(&binary_part(&1 <> random(9_000), 0, byte_size(packet)))
        )

      assert :binary.referenced_byte_size(envelope.body) == 1_000
    end

    test "raise for what is no binary" do
      assert_raise ArgumentError, fn -> Envelope.from_binary(nil) end
    end
  end

  describe "to_map/1 and from_map/1" do
    test "give back every envelope but for the session id" do
      for envelope <- envelopes() do
        assert Envelope.from_map(Envelope.to_map(%{envelope | session_id: <<1::128>>})) ==
                 {:ok, envelope}
      end
    end

    test "hold strings and integers only" do
      for {key, value} <- Envelope.to_map(@envelope) do
        assert is_binary(key) and String.valid?(key)
        assert is_integer(value) or String.valid?(value)
      end
    end

    test "ignore other keys and refuse a missing one" do
      map = Envelope.to_map(@envelope)
      assert Envelope.from_map(Map.put(map, "message_id", 7)) == {:ok, @envelope}
      assert Envelope.from_map(Map.delete(map, "format")) |> reason() == :malformed

      for {key, _} <- map,
          do: assert(reason(Envelope.from_map(Map.delete(map, key))) == :malformed)
    end

    test "refuse values of every other kind" do
      map = Envelope.to_map(@envelope)

      for {key, _} <- map,
          value <- [nil, "", -1, 0, 128, 2.5, [], %{}, "!\0", <<255>>, true],
          value != map[key],
          # Unknown.
          not (key == "timestamp" and value in [0, 128]),
          # An unknown format is a version, any other value is no message.
          not (key == "format" and is_integer(value)) do
        assert reason(Envelope.from_map(%{map | key => value})) == :malformed,
               "#{key}: #{inspect(value)}"
      end

      assert reason(Envelope.from_map(%{map | "format" => 2})) == :unsupported_version
      assert reason(Envelope.from_map(%{map | "type" => "Elixir.Kith"})) == :malformed
    end

    test "refuse a long body before decoding it" do
      map = Envelope.to_map(@envelope)

      assert reason(Envelope.from_map(%{map | "body" => String.duplicate("A", 2_000_000)})) ==
               :malformed
    end
  end

  describe "new/4" do
    test "raises for what makes no envelope, without its bytes" do
      for arguments <- [
            ["anna", "ben", :other, "x"],
            ["anna", "ben", :message, ""],
            ["anna", "ben", :self, "x"],
            ["anna", "ben", :message, nil],
            ["", "ben", :message, "x"],
            ["anna", "ben", :message, "x", 0],
            ["anna", "ben", :message, "x", "now"]
          ] do
        assert_raise ArgumentError, fn -> apply(Envelope, :new, arguments) end
      end

      error = catch_error(Envelope.new("anna", "ben", :other, "secret"))
      refute Exception.message(error) =~ "secret"
    end
  end

  describe "metadata/2" do
    test "has the columns of message_encryption" do
      kith = start_kith!()
      register!(kith, ["anna", "ben"])
      envelope = encrypt_one!(kith, {"anna", 1}, "ben", "hello")
      metadata = Envelope.metadata(envelope, %{"conversation" => "family"})

      columns = for [_, name | _] <- sql!(kith, "PRAGMA table_info(message_encryption)"), do: name

      assert ["message_id" | Enum.sort(Enum.map(Map.keys(metadata), &to_string/1))] |> Enum.sort() ==
               Enum.sort(columns)

      assert %{encrypted: true, protocol: "signal", version: 4, sender_device_id: 1} = metadata

      assert metadata.session_id =~
               ~r/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

      assert %{"conversation" => "family", "type" => "prekey", "recipient_id" => "ben"} =
               metadata.metadata
    end

    test "tells a note from a message" do
      kith = start_kith!()
      register!(kith, ["anna"])
      metadata = Envelope.metadata(encrypt_one!(kith, "anna", "anna", "x"))
      assert %{protocol: "kith", session_id: nil} = metadata
    end
  end

  test "prints sizes and no bytes" do
    envelope = Envelope.new("anna", "ben", :message, "3secret bytes")
    assert inspect(envelope) == ~s(#Kith.Envelope<message v3 from "anna"/1 to "ben"/1, 13 bytes>)
    refute inspect({:ok, [envelope]}) =~ "secret"
  end

  defp envelopes do
    for type <- [:prekey, :message],
        from <- [{"a", 1}, {String.duplicate("x", 255), 127}, {"ünï", 2}],
        size <- [1, 2, 300, 70_000] do
      Envelope.new(from, {"to", 9}, type, random(size))
    end ++ [Envelope.new({"a", 2}, {"a", 1}, :self, <<1, 2>>)]
  end

  defp random(size), do: :crypto.strong_rand_bytes(size)
end
