defmodule Kith.Vault.EncodingTest do
  use ExUnit.Case, async: true

  alias Kith.Vault.Encoding

  @values [
    {:binary, "anna", "anna"},
    {:binary, <<0, 255>>, <<0, 255>>},
    {:integer, 0, "0"},
    {:integer, -12_345_678_901_234_567_890, "-12345678901234567890"},
    {:float, 0.1, "0.1"},
    {:float, -2.5e-10, "-2.5e-10"},
    {:date, ~D[2026-11-22], "2026-11-22"},
    {:time, ~T[12:00:00], "12:00:00"},
    {:datetime, ~U[2026-11-22 03:44:37Z], "2026-11-22 03:44:37Z"},
    {:naive_datetime, ~N[2026-11-22 03:44:37], "2026-11-22 03:44:37"},
    {:map, %{"a" => 1}, ~s({"a":1})},
    {:integer_list, [1, -2, nil], "[1,-2,null]"},
    {:string_list, ["a", "ü"], ~s(["a","ü"])}
  ]

  defp json, do: Kith.Test.Json

  test "the texts are those of Cloak.Ecto, and give the values again" do
    for {kind, value, text} <- @values do
      assert Encoding.encode(kind, value, &json/0) == {:ok, text}
      if text != "[1,-2,null]", do: assert(Encoding.decode(kind, text, &json/0) == {:ok, value})
    end
  end

  test "a value of another kind is none" do
    for {kind, _, _} <- @values, other <- [:atom, {1}, self()] do
      assert Encoding.encode(kind, other, &json/0) == :error
    end

    assert Encoding.encode(:integer, 1.0, &json/0) == :error
    assert Encoding.encode(:integer_list, ["1"], &json/0) == :error
    assert Encoding.encode(:map, %{"a" => self()}, &json/0) == :error
  end

  test "a text that is not all of a value is none" do
    for {kind, text} <- [
          integer: "",
          integer: "12 ",
          integer: "1.0",
          float: "1",
          float: "0.1x",
          date: "2026-13-01",
          date: "22.11.2026",
          time: "25:00:00",
          datetime: "2026-11-22 03:44:37",
          naive_datetime: "2026-11-22",
          map: "[1]",
          map: "{",
          integer_list: ~s(["a"]),
          string_list: "[1]",
          string_list: "{}"
        ] do
      assert Encoding.decode(kind, text, &json/0) == :error, "#{kind} of #{text}"
    end
  end

  test "random bytes of sixteen, as a wrong key of AES.CTR gives, are a value of none of the kinds that parse" do
    :rand.seed(:exsss, {1, 2, 3})

    for _ <- 1..2_000, kind <- Encoding.kinds() -- [:binary, :decimal] do
      text = :rand.bytes(16)
      assert Encoding.decode(kind, text, &json/0) == :error
    end
  end
end
