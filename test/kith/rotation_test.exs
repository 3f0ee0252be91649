defmodule Kith.RotationTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

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
    assert %{rotated: 3} = Kith.rotate_keys!(kith, older_than: 50, dry_run: true)
    assert %{rotated: 2, refused: 0} = Kith.rotate_keys!(kith, older_than: 50)
    assert %{rotated: 0} = Kith.rotate_keys!(kith, older_than: 50)
    assert send!(kith, "anna", "ben", "x") == "x"
  end

  test "takes options of the right kind", %{kith: kith} do
    for options <- [[older: 1], [older_than: 0], [older_than: "1"], [dry_run: 1], :all],
        do: assert_raise(ArgumentError, fn -> Kith.rotate_keys(kith, options) end)
  end
end
