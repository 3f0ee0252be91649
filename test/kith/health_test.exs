defmodule Kith.HealthTest do
  # Arms a panic by the name of a NIF, which others call too.
  use Kith.Case, async: false
  use Kith.Test.Stores

  alias Kith.{Instance, Native}

  test "an instance whose database answers and whose keys open is well, with accounts and without" do
    kith = start_kith!()
    assert {:ok, %{store: :ok, vault: :ok} = health} = Kith.health(kith)
    assert health.store_latency > 0 and health.vault_latency > 0
    before = dump(kith)
    assert %{store: :ok, vault: :ok} = Kith.health!(kith)
    assert dump(kith) == before

    register!(kith, ~w(anna ben))
    assert {:ok, %{store: :ok, vault: :ok}} = Kith.health(kith, timeout: 60_000)
  end

  @tag store: :sqlite
  test "an account that is locked opens as far as the keys of the server go, and no further is asked" do
    database = Path.join(tmp_dir!(), "kith.db")
    kith = start_kith!(database: database)
    register!(kith, ["anna"])
    Kith.lock_with_password!(kith, "anna", "correct horse", memory: 8_192, passes: 1)
    assert {:ok, %{store: :ok, vault: :ok}} = Kith.health(kith)
    Kith.lock!(kith, "anna")
    before = dump(kith)
    assert {:ok, %{store: :ok, vault: :ok}} = Kith.health(kith)
    assert dump(kith) == before
    stop_kith!(kith)
    needs_its_key(database)
  end

  @tag store: :sqlite
  test "a key-encryption key that is gone is a vault that does not open, while the store is well" do
    database = Path.join(tmp_dir!(), "kith.db")
    kith = start_kith!(database: database)
    register!(kith, ["anna"])
    stop_kith!(kith)
    needs_its_key(database)
  end

  defp needs_its_key(database) do
    other = start_kith!(database: database, keys: [current: {"other", {:key, <<7::256>>}}])
    assert {:ok, %{store: :ok, vault: :key_not_found}} = Kith.health(other)
    stop_kith!(other)
    wrong = start_kith!(database: database, keys: [current: {"test", {:key, <<7::256>>}}])
    assert {:ok, %{store: :ok, vault: :corrupted_state}} = Kith.health(wrong)
  end

  test "a data key that was damaged is a vault that does not open" do
    kith = start_kith!()
    register!(kith, ["anna"])
    [[data_key]] = sql!(kith, "SELECT data_key FROM signal_accounts")
    damaged = corrupt(data_key, byte_size(data_key) - 1)
    sql!(kith, "UPDATE signal_accounts SET data_key = $1", [{:blob, damaged}])
    assert {:ok, %{store: :ok, vault: :corrupted_state}} = Kith.health(kith)
  end

  test "tables that are gone are a store that is not well, while the vault is" do
    kith = start_kith!()

    sql!(kith, "ALTER TABLE signal_accounts RENAME TO accounts_of_before")
    assert {:ok, %{store: :storage, vault: :ok}} = Kith.health(kith)
  end

  @tag store: :sqlite
  test "a database somebody else keeps is not waited for longer than :timeout" do
    kith = start_kith!()
    %{repo: repo} = Instance.fetch!(kith)
    test = self()

    holder =
      spawn_link(fn ->
        Kith.SQLite.transaction(repo, fn ->
          Kith.SQLite.query(repo, "SELECT 1")
          send(test, :held)
          receive do: (:let_go -> :ok)
        end)
      end)

    assert_receive :held, 5_000
    assert {:ok, %{store: :storage, vault: :ok}} = Kith.health(kith, timeout: 20)
    send(holder, :let_go)
    assert {:ok, %{store: :ok}} = Kith.health(kith, timeout: 60_000)
  end

  test "a panic of the engine is what is wrong with the vault" do
    kith = start_kith!()
    :ok = Native.panic_arm("self_open", 1)
    assert {:ok, %{store: :ok, vault: :panic}} = Kith.health(kith)
    assert {:ok, %{store: :ok, vault: :ok}} = Kith.health(kith)
  end

  test "inside a transaction it raises, as it would wait for it" do
    kith = start_kith!()

    assert_raise ArgumentError, "expected to be called outside of a transaction", fn ->
      undone!(kith, fn -> Kith.health(kith) end)
    end
  end

  @tag store: :sqlite
  test "callers' mistakes raise" do
    kith = start_kith!()
    assert_raise ArgumentError, fn -> Kith.health(make_ref()) end
    assert_raise ArgumentError, fn -> Kith.health(kith, timeout: 0) end
    assert_raise ArgumentError, fn -> Kith.health(kith, patience: 1) end
  end

  defmodule Named do
    use Kith, otp_app: :kith
  end

  @tag store: :sqlite
  test "a module that is an instance has it" do
    start_supervised!({Named, defaults()})
    assert {:ok, %{store: :ok}} = Named.health()
    assert %{vault: :ok} = Named.health!(timeout: 60_000)
  end
end
