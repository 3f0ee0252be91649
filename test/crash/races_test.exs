defmodule Kith.RacesTest do
  # Races that `make nodes` has found, each step at its place.
  use Kith.Case, async: false
  @moduletag :postgres
  @moduletag store: :postgres

  alias Kith.Migration
  alias Kith.Test.Postgres

  defmodule OnPostgres do
    use Kith.Test.Postgres.Repo
  end

  setup do
    address = Postgres.database!(Postgres.cluster(), "races_test")
    start_supervised!({OnPostgres, address ++ [pool_size: 5]})
    pass()
    prefix = "kith_#{System.unique_integer([:positive])}"
    :ok = Migration.run(OnPostgres, prefix: prefix)
    kith = start_kith!(repo: OnPostgres, prefix: prefix)
    register!(kith, ["anna", "ben"])
    %{kith: kith, address: address}
  end

  defp pass, do: OnPostgres.intercept(fn _sql, run -> run.() end)

  # Calls a function before the first statement of this process that begins so.
  defp before(beginning, fun) do
    test = self()

    OnPostgres.intercept(fn sql, run ->
      if self() == test and String.starts_with?(sql, beginning) and
           Process.put({:met, beginning}, true) == nil,
         do: fun.()

      run.()
    end)
  end

  test "two first messages of a session that are opened at once both open", %{kith: kith} do
    first = encrypt_one!(kith, "anna", "ben", "one")
    second = encrypt_one!(kith, "anna", "ben", "two")
    assert {first.type, second.type} == {:prekey, :prekey}

    before("SELECT 1 FROM", fn ->
      task = Task.async(fn -> Kith.decrypt(kith, "ben", second) end)
      assert Task.await(task) == {:ok, "two"}
    end)

    assert Kith.decrypt(kith, "ben", first) == {:ok, "one"}
    assert Process.get({:met, "SELECT 1 FROM"})
    pass()
    assert send!(kith, "ben", "anna", "three") == "three"
  end

  test "a user who goes and comes anew waits for what is made with their keys", %{
    kith: kith,
    address: address
  } do
    test = self()

    before("INSERT INTO", fn ->
      spawn_link(fn ->
        send(test, {:gone, Kith.unregister(kith, "anna")})
        send(test, {:back, Kith.register(kith, "anna")})
      end)

      wait_for_lock(address)
    end)

    assert {:ok, [envelope]} = Kith.encrypt(kith, "anna", "ben", "last words")
    assert_receive {:gone, {:ok, :unregistered}}, 60_000
    assert_receive {:back, {:ok, _}}, 60_000
    pass()
    # Nothing was left of the session that the new keys do not open.
    assert [] = sql!(kith, "SELECT * FROM kith.signal_sessions WHERE user_id = 'anna'")
    assert reason(Kith.decrypt(kith, "ben", envelope)) == :untrusted_identity
    assert {:ok, :trusted} = Kith.trust(kith, "ben", "anna")
    assert send!(kith, "anna", "ben", "hello again") == "hello again"
  end

  defp wait_for_lock(address) do
    case Postgres.once(address, "SELECT COUNT(*) FROM pg_locks WHERE NOT granted") do
      {:ok, %{rows: [[0]]}} ->
        Process.sleep(10)
        wait_for_lock(address)

      {:ok, _} ->
        :ok
    end
  end
end
