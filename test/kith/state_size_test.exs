defmodule Kith.StateSizeTest do
  # The figures of docs/state-format.md.
  use Kith.Case, async: true

  @documented Path.expand("../../docs/state-format.md", __DIR__)

  # The sealed state of a session, as it lies in the database.
  defp sealed(name, user \\ "ada") do
    [[state]] = sql!(name, "SELECT state FROM signal_sessions WHERE user_id = $1", [user])
    byte_size(state)
  end

  defp documented(row) do
    [_, state, sealed] = Regex.run(~r/^\| #{row} \| (\d+) \| (\d+) \|/m, File.read!(@documented))
    assert String.to_integer(sealed) - String.to_integer(state) == 38
    String.to_integer(sealed)
  end

  defp entries(name) do
    sql!(name, """
    SELECT length(entry_group), length(entry), COUNT(*) FROM signal_session_entries
    GROUP BY 1, 2 ORDER BY 1 DESC, 2
    """)
  end

  test "a message of version 4 rewrites at most the documented bytes, however many keys are skipped" do
    name = start_kith!()
    register!(name, ~w(ada ben))

    first = encrypt_one!(name, "ada", "ben", "hello")
    assert sealed(name) == documented("version 4, first message, unacknowledged")
    Kith.decrypt!(name, "ben", first)

    # More than two epochs of the post-quantum ratchet.
    sizes =
      for _ <- 1..150, {a, b} <- [{"ben", "ada"}, {"ada", "ben"}] do
        send!(name, a, b, "hello")
        [sealed(name, "ada"), sealed(name, "ben")]
      end

    steady = documented("version 4, steady state, at most")
    assert sizes |> List.flatten() |> Enum.max() == steady

    late = for _ <- 1..1_001, do: encrypt_one!(name, "ben", "ada", "late")
    "late" = Kith.decrypt!(name, "ada", List.last(late))
    assert documented("version 4, with 1 000 skipped keys, at most") == steady
    assert sealed(name) <= steady

    assert [[33, 71, 1_000] | of_epochs] = entries(name)
    assert [[9, 71, 1_000], [9, 141, _pages]] = of_epochs
    "late" = Kith.decrypt!(name, "ada", hd(late))
    assert [[33, 71, 999], [9, 71, 999] | _] = entries(name)
  end

  test "a message of version 3 rewrites the documented bytes, however many keys are skipped" do
    [name, client] = for _ <- 1..2, do: start_kith!(minimum_version: 3)
    register!(name, ["ada"])
    register!(client, ["ben"])
    bundle = Kith.pre_key_bundle!(client, "ben")
    Kith.publish_bundle!(name, "ben", %{bundle | kyber_prekey: nil})
    Kith.publish_bundle!(client, "ada", Kith.pre_key_bundle!(name, "ada"))
    to_ben = &Kith.decrypt!(client, "ben", encrypt_one!(name, "ada", "ben", &1))
    to_ada = &Kith.decrypt!(name, "ada", encrypt_one!(client, "ben", "ada", &1))

    first = encrypt_one!(name, "ada", "ben", "hello")
    assert sealed(name) == documented("version 3, first message, unacknowledged")

    Kith.decrypt!(client, "ben", first)
    for _ <- 1..6, send <- [to_ada, to_ben], do: send.("hello")
    assert sealed(name) == documented("version 3, steady state, five receiving chains")

    late = for _ <- 1..1_001, do: encrypt_one!(client, "ben", "ada", "late")
    "late" = Kith.decrypt!(name, "ada", List.last(late))
    assert entries(name) == [[33, 71, 1_000]]
    assert sealed(name) == documented("version 3, with 1 000 skipped keys")

    "late" = Kith.decrypt!(name, "ada", hd(late))
    assert entries(name) == [[33, 71, 999]]
  end
end
