defmodule Kith.StateSizeTest do
  # The figures of docs/state-format.md.
  use Kith.Case, async: true

  @documented Path.expand("../../docs/state-format.md", __DIR__)

  # The sealed session of ada with ben, as it lies in the database.
  defp sealed(name) do
    [[state]] =
      sql!(name, "SELECT state FROM signal_sessions WHERE user_id = 'ada' AND peer_id = 'ben'")

    byte_size(state)
  end

  defp documented(row) do
    [_, session, sealed] =
      Regex.run(~r/^\| #{row} \| (\d+) \| (\d+) \|/m, File.read!(@documented))

    assert String.to_integer(sealed) - String.to_integer(session) == 38
    String.to_integer(sealed)
  end

  test "a message rewrites the documented number of bytes, however many keys are skipped" do
    name = start_kith!()
    register!(name, ~w(ada ben))

    {:ok, first} = Kith.encrypt(name, "ada", "ben", "hello")
    assert sealed(name) == documented("first message, unacknowledged")

    Kith.decrypt!(name, "ben", first)
    for _ <- 1..6, {a, b} <- [{"ben", "ada"}, {"ada", "ben"}], do: send!(name, a, b, "hello")
    assert sealed(name) == documented("steady state, five receiving chains")

    late = for _ <- 1..1_001, do: Kith.encrypt!(name, "ben", "ada", "late")
    "late" = Kith.decrypt!(name, "ada", List.last(late))
    assert [[1_000]] = sql!(name, "SELECT count(*) FROM signal_skipped_keys")
    assert sealed(name) == documented("with 1 000 skipped keys")

    assert [[71]] = sql!(name, "SELECT max(length(message_key)) FROM signal_skipped_keys")
    "late" = Kith.decrypt!(name, "ada", hd(late))
    assert [[999]] = sql!(name, "SELECT count(*) FROM signal_skipped_keys")
  end
end
