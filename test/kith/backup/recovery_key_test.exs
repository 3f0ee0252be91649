defmodule Kith.Backup.RecoveryKeyTest do
  use ExUnit.Case, async: true

  alias Kith.Backup.RecoveryKey
  alias Kith.Error

  @words "legal winner thank year wave sausage worth useful legal winner thank yellow"

  defp key!(options \\ []) do
    {:ok, key} = RecoveryKey.generate(options)
    key
  end

  defp words!(key) do
    {:ok, words} = RecoveryKey.words(key)
    words
  end

  defp split!(key, options \\ []) do
    {:ok, shares} = RecoveryKey.split(key, options)
    shares
  end

  test "a key is 12 or 24 words, which give it back in any case and spacing" do
    for count <- [12, 24] do
      words = words!(key!(words: count))
      assert length(String.split(words)) == count
      assert {:ok, again} = RecoveryKey.parse(words)
      assert words!(again) == words
      written = "\n  " <> (words |> String.upcase() |> String.replace(" ", "\t\r\n "))
      assert {:ok, again} = RecoveryKey.parse(written)
      assert words!(again) == words
    end

    assert length(String.split(words!(key!()))) == 12
    refute words!(key!()) == words!(key!())
  end

  test "a word that is none is named by its place" do
    for {changed, at} <- [
          {String.replace(@words, "legal winner thank year", "legall winner thank year"), 1},
          {String.replace(@words, "year", "jahr"), 4},
          {String.replace(@words, "year", "jähr"), 4},
          {String.replace(@words, "yellow", "yelow"), 12},
          {"legal " <> <<0xFF, 0xFE>> <> " thank", 2},
          {@words <> ", please", 12}
        ] do
      assert {:error, %Error{reason: :malformed, position: ^at}} = RecoveryKey.parse(changed)
    end
  end

  test "words that are each known and no key together are told from a wrong number of them" do
    assert {:ok, _} = RecoveryKey.parse(@words)
    swapped = String.replace(@words, "legal winner thank year", "winner legal thank year")

    for wrong <- [swapped, String.replace(@words, "yellow", "zoo")],
        do:
          assert(
            {:error, %Error{reason: :wrong_secret, position: nil}} = RecoveryKey.parse(wrong)
          )

    for wrong <- [
          "",
          "legal",
          @words <> " legal",
          String.duplicate("legal ", 15),
          String.duplicate("legal ", 5_000)
        ],
        do: assert({:error, %Error{reason: :malformed, position: nil}} = RecoveryKey.parse(wrong))
  end

  test "a key is not shown" do
    key = key!()
    assert inspect(key) == "#Kith.Backup.RecoveryKey<>"
    assert inspect(%{key: key}, limit: :infinity) == "%{key: #Kith.Backup.RecoveryKey<>}"
  end

  test "three of five shares give the key back, in any order and as people write them" do
    for count <- [12, 24] do
      key = key!(words: count)
      shares = split!(key)
      assert length(Enum.uniq(shares)) == 5
      for share <- shares, do: assert(share =~ ~r/\AKITH1(-[A-Z2-7]{1,5})+\z/)

      for picked <- [[0, 1, 2], [4, 2, 0], [3, 1, 4], [0, 1, 2, 3, 4]] do
        {:ok, again} = RecoveryKey.combine(for at <- picked, do: Enum.at(shares, at))
        assert words!(again) == words!(key)
      end

      written =
        for share <- Enum.take(shares, 3),
            do:
              " " <>
                (share
                 |> String.downcase()
                 |> String.replace("-", " ")
                 |> String.replace("o", "0")) <> "\n"

      assert {:ok, again} = RecoveryKey.combine(written)
      assert words!(again) == words!(key)
    end
  end

  test "the threshold and the number of shares are the caller's" do
    key = key!()
    [a, b] = split!(key, threshold: 2, shares: 2)
    {:ok, again} = RecoveryKey.combine([b, a])
    assert words!(again) == words!(key)

    for wrong <- [[threshold: 1], [threshold: 6], [shares: 256], [shares: 2], [share: 3]],
        do: assert_raise(ArgumentError, fn -> RecoveryKey.split(key, wrong) end)
  end

  test "which share is wrong is said" do
    key = key!()
    [a, b, c, d, _] = split!(key)
    [x, _, _, _, _] = split!(key)

    for {shares, reason, at} <- [
          {[a, b], :too_few, nil},
          {[], :too_few, nil},
          {[a, b, x], :wrong_secret, 3},
          {[x, b, a], :wrong_secret, 2},
          {[a, b, a], :duplicate, 3},
          {[a, a, b, c], :duplicate, 2},
          {[a, b, ""], :malformed, 3},
          {[a, "share", c], :malformed, 2},
          {[a, String.slice(b, 0..-2//1), c], :malformed, 2},
          {[a, b, c <> "A"], :malformed, 3},
          {[words!(key), b, c], :malformed, 1},
          {[a, b, String.duplicate(c, 1_000)], :malformed, 3}
        ] do
      assert {:error, %Error{reason: ^reason, position: ^at}} = RecoveryKey.combine(shares)
    end

    # Each letter of a share.
    for place <- 6..(byte_size(d) - 1), binary_part(d, place, 1) != "-" do
      other = if binary_part(d, place, 1) == "A", do: "B", else: "A"
      damaged = binary_part(d, 0, place) <> other <> Kith.Case.from(d, place + 1)
      assert {:error, error} = RecoveryKey.combine([a, b, damaged])
      assert %Error{reason: :malformed, position: 3} = error
    end
  end

  test "an argument of another kind is a mistake that is not shown" do
    for call <- [
          fn -> apply(RecoveryKey, :parse, [{:words, @words}]) end,
          fn -> apply(RecoveryKey, :combine, [@words]) end,
          fn -> apply(RecoveryKey, :combine, [[{:share, @words}]]) end
        ] do
      error = assert_raise ArgumentError, call
      refute Exception.message(error) =~ "legal"
    end

    assert_raise ArgumentError, fn -> RecoveryKey.generate(words: 15) end
  end
end
