defmodule Mix.Tasks.Kith.Vault.MigrateTest do
  # The shell of Mix and the environment of the application are global.
  use Kith.Case, async: false

  import ExUnit.CaptureIO
  import Kith.Test.Vaults

  alias Kith.Test.PostgresRepo
  alias Mix.Tasks.Kith.Vault.Migrate

  @moduletag store: :postgres
  @moduletag :postgres

  defmodule Vault do
    use Kith.Vault, otp_app: :kith
    def init(_), do: {:ok, current: :new, ciphers: [new: kith("new"), old: gcm()]}
  end

  # What Ecto makes of a schema and a type, where there is no Ecto.
  defmodule Email do
    def __kith__, do: [vault: Vault, label: nil]
    def after_decrypt(text), do: text
  end

  defmodule User do
    def __schema__(:source), do: "vault_task_users"
    def __schema__(:prefix), do: nil
    def __schema__(:primary_key), do: [:id]
    def __schema__(:fields), do: [:id, :email]
    def __schema__(:type, :id), do: :id
    def __schema__(:type, :email), do: Email
    def __schema__(:field_source, name), do: name
  end

  setup do
    start_kith!()
    sql("CREATE TABLE vault_task_users (id INTEGER PRIMARY KEY, email BYTEA)", [])
    on_exit(fn -> sql("DROP TABLE vault_task_users", []) end)
    for id <- 1..3, do: insert(id, Vault.encrypt!("user#{id}@example.com", :old))
    :ok
  end

  defp sql(sql, params) do
    {:ok, result} = PostgresRepo.query(sql, params, log: false)
    result.rows
  end

  defp insert(id, email), do: sql("INSERT INTO vault_task_users VALUES ($1, $2)", [id, email])

  defp run(arguments),
    do:
      capture_io(fn ->
        Migrate.run(["-r", inspect(PostgresRepo), "-s", inspect(User)] ++ arguments)
      end)

  test "says what would be done, does it, and says that it is done" do
    dry = run(["--dry-run"])
    assert dry =~ "3 rows, 0 upgraded, 0 already, 3 outdated, 0 refused, 0 empty"
    assert_raise Mix.Error, ~r/not under the current cipher/, fn -> run(["--verify"]) end
    assert run(["--batch", "2"]) =~ "3 rows, 3 upgraded"
    assert run(["--verify"]) =~ "3 rows, 0 upgraded, 3 already, 0 outdated"
  end

  test "names what was refused, and fails" do
    insert(4, "plaintext")

    errors =
      capture_io(:stderr, fn ->
        assert_raise Mix.Error, ~r/fields that do not decrypt/, fn -> run([]) end
      end)

    assert errors =~ "[4] email: malformed"
    refute errors =~ "plaintext"
  end

  test "takes the repository and the schemas that are configured for Cloak" do
    Application.put_env(:kith, :cloak_repo, [PostgresRepo])
    Application.put_env(:kith, :cloak_schemas, [User])

    on_exit(fn ->
      for key <- [:cloak_repo, :cloak_schemas], do: Application.delete_env(:kith, key)
    end)

    assert capture_io(fn -> Migrate.run([]) end) =~ "3 upgraded"
  end

  test "asks for what is missing" do
    for {arguments, message} <- [
          {[], "expected -r with a repository and -s with a schema"},
          {["-r", "Nobody", "-s", "Nobody"], "there is no Nobody"},
          {["--verify", "--dry-run"], "expected either --dry-run or --verify, got both"},
          {["users"], "expected -r and -s"}
        ] do
      assert_raise Mix.Error, ~r/#{message}/, fn -> Migrate.run(arguments) end
    end
  end
end
