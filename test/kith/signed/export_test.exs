defmodule Kith.Signed.ExportTest do
  use Kith.Case, async: true

  alias Kith.Error
  alias Kith.Signed.Export

  @secret :binary.copy(<<7>>, 32)

  setup do
    %{key: Export.key!({"2026-11", {:key, @secret}})}
  end

  defp export(rows, key), do: rows |> Export.stream(key, purpose: "orders") |> Enum.into(<<>>)

  defp verify(export, keys, purpose \\ "orders"),
    do: reason(Export.verify(List.wrap(export), keys, purpose: purpose))

  defp rows(export, key),
    do: Enum.to_list(Export.rows!(List.wrap(export), key, purpose: "orders"))

  # What rows came, and the reason why no more did.
  defp rows_until(export, key) do
    test = self()

    reason =
      try do
        for row <- Export.rows!(export, key, purpose: "orders"), do: send(test, {:row, row})
        :ended
      rescue
        error in Error -> error.reason
      end

    {received(), reason}
  end

  defp received do
    receive do
      {:row, row} -> [row | received()]
    after
      0 -> []
    end
  end

  # Header, chunks, end.
  defp frames(<<>>), do: []

  defp frames(<<_, length::32, _::binary>> = export) do
    size = length + 37
    [binary_part(export, 0, size) | frames(from(export, size))]
  end

  test "rows come back as they were, however the bytes are cut", %{key: key} do
    for rows <- [
          [],
          ["one"],
          ["", <<0, 255>>, "\n", "three"],
          for(n <- 1..3_000, do: :binary.copy("#{n}", 20)),
          [:binary.copy("x", 300_000), "", :binary.copy("y", 65_532), "z"]
        ] do
      export = export(rows, key)
      assert rows(export, key) == rows
      assert {:ok, summary} = verify(export, key)
      assert summary.rows == length(rows)
      assert {summary.key_id, summary.purpose} == {"2026-11", "orders"}

      for size <- [1, 7, 4_096], byte_size(export) < 100_000 or size > 7 do
        parts =
          for at <- 0..(byte_size(export) - 1)//size,
              do: binary_part(export, at, min(size, byte_size(export) - at))

        assert Enum.to_list(Export.rows!(parts, key, purpose: "orders")) == rows
        assert {:ok, ^summary} = Export.verify(parts, key, purpose: "orders")
      end
    end
  end

  test "the bytes are those of the description", %{key: key} do
    [header, chunk, last] = frames(export(["a", "bc"], key))
    mac = fn before, frame -> :crypto.mac(:hmac, :sha256, @secret, before <> frame) end

    <<0, length::32, body::binary-size(length), header_mac::binary>> = header

    assert <<"kith-signed-export-v1", 0, _id::binary-16, at::64, 7, "2026-11", 6, "orders">> =
             body

    assert abs(at - System.system_time(:millisecond)) < 600_000
    assert header_mac == mac.(<<0::256>>, <<0, length::32, body::binary>>)
    body = <<1, 11::32, 1::32, "a", 2::32, "bc">>
    assert chunk == body <> mac.(header_mac, body)
    <<_::binary-16, chunk_mac::binary>> = chunk
    assert last == <<2, 8::32, 2::64>> <> mac.(chunk_mac, <<2, 8::32, 2::64>>)
  end

  test "a bit that was changed anywhere is found", %{key: key} do
    export = export(["one", "two"], key)

    for at <- 0..(byte_size(export) - 1), bit <- 0..7 do
      changed = corrupt(export, at, Bitwise.bsl(1, bit))
      assert verify(changed, key) in [:tampered, :malformed, :key_not_found], "#{at}"
    end
  end

  test "an export that was cut, extended, reordered or put together is refused", %{key: key} do
    large = for n <- 1..5, do: :binary.copy("#{n}", 65_536)
    export = export(large, key)
    [header | rest] = frames(export)
    {chunks, [last]} = Enum.split(rest, 5)
    [_ | other] = frames(export(Enum.reverse(large), key))
    [first | more] = chunks

    for {name, frames} <- [
          cut: [header | chunks],
          cut_early: [header],
          without_a_chunk: [header | more] ++ [last],
          without_the_last_chunk: [header | Enum.drop(chunks, -1)] ++ [last],
          reordered: [header | Enum.reverse(chunks)] ++ [last],
          repeated: [header, first, first | more] ++ [last],
          of_two: [header | other],
          extended: [header | chunks] ++ [last, last],
          with_more: [header | chunks] ++ [last, "x"],
          twice: [export, export],
          twice_begun: [header, header | chunks] ++ [last]
        ],
        do: assert(verify(Enum.join(frames), key) == :tampered, "#{name}")

    for length <- Enum.take_every(0..(byte_size(export) - 1), 1_013) do
      assert verify(binary_part(export, 0, length), key) in [:tampered, :malformed]
    end

    assert {:ok, %{rows: 5}} = verify(export, key)
  end

  test "what comes before a fault is authentic, and the fault is raised", %{key: key} do
    large = for n <- 1..3, do: :binary.copy("#{n}", 65_536)
    export = export(large, key)
    [header, first, second | _] = frames(export)

    assert rows_until([header, first], key) == {Enum.take(large, 1), :tampered}
    changed = corrupt(second, 100)
    assert rows_until([header, first, changed], key) == {Enum.take(large, 1), :tampered}
    assert rows_until([header, first, second], key) == {Enum.take(large, 2), :tampered}
    assert rows_until([export], key) == {large, :ended}
  end

  test "bytes that are none are refused without being kept", %{key: key} do
    for bytes <- [
          "",
          "x",
          "not an export at all",
          <<0, 255, 255, 255, 255>>,
          <<1, 0::32, 0::256>>
        ],
        do: assert(verify(bytes, key) == :malformed)

    # A length that nobody authenticated asks for 4 GiB: it is refused before they come.
    [header | _] = frames(export(["a"], key))
    endless = Stream.repeatedly(fn -> :binary.copy("x", 65_536) end)

    assert reason(
             Export.verify(Stream.concat([header, <<1, 255, 255, 255, 255>>], endless), key,
               purpose: "orders"
             )
           ) == :tampered

    assert reason(Export.verify(endless, key, purpose: "orders")) == :malformed
  end

  test "the key, its id and the purpose have to be the same", %{key: key} do
    export = export(["a"], key)
    old = Export.key!({"2025", {:key, :binary.copy(<<8>>, 32)}})
    assert {:ok, _} = verify(export, [old, key])
    assert verify(export, old) == :key_not_found
    assert verify(export, Export.key!({"2026-11", {:key, :binary.copy(<<8>>, 32)}})) == :tampered
    assert verify(export, key, "payments") == :tampered
  end

  test "a key comes from a file that only its user may read, and is never shown" do
    file = Path.join(tmp_dir!(), "export.key")
    File.write!(file, Base.encode64(@secret))
    File.chmod!(file, 0o640)
    assert {:error, %Error{reason: :malformed} = error} = Export.key({"k", {:file, file}})
    assert Exception.message(error) =~ "got 0640"
    File.chmod!(file, 0o600)
    assert {:ok, key} = Export.key({"k", {:file, file}})
    assert inspect(key) == ~s(#Kith.Signed.Export<"k">)
    refute inspect(key, structs: false, limit: :infinity) =~ "7, 7, 7"
    assert {:ok, %{rows: 1}} = verify(export(["a"], key), Export.key!({"k", {:key, @secret}}))

    assert {:error, %Error{reason: :malformed}} =
             Export.key({"k", {:env, "KITH_NO_SUCH_VARIABLE"}})

    assert {:error, error} = Export.key({"k", {:key, "a short secret"}})
    refute Exception.message(error) =~ "secret"
  end

  test "a caller's mistake is an ArgumentError that shows nothing of what was given", %{key: key} do
    secret = dynamic("a secret in the wrong place")

    for call <- [
          fn -> Export.key({"two words", {:key, @secret}}) end,
          fn -> Export.key({"k", {:url, secret}}) end,
          fn -> Export.key(secret) end,
          fn -> Export.stream([], key, []) end,
          fn -> Export.stream([], key, purpose: {secret}) end,
          fn -> Enum.to_list(Export.stream([{secret}], key, purpose: "a")) end,
          fn -> Enum.to_list(Export.stream([:end], key, purpose: "a")) end,
          fn ->
            Enum.to_list(Export.stream([:binary.copy("x", 8_388_609)], key, purpose: "a"))
          end,
          fn -> Export.verify([secret], dynamic({secret}), purpose: "a") end,
          fn -> Export.verify([secret], dynamic([]), purpose: "a") end,
          fn -> Export.verify([{secret}], key, purpose: "a") end
        ] do
      error = assert_raise ArgumentError, call
      refute Exception.message(error) =~ "secret in"
    end
  end
end
