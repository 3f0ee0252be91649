# The project above finds this file too.
if System.get_env("KITH_ECTO") == "1" do
  defmodule KithOnEcto.RepoTest do
    # A repository as an application has it, and its migrations.
    use Kith.Case, async: false
    @moduletag :postgres

    alias Kith.{Error, Migration}
    alias Kith.Test.Postgres

    defmodule Repo do
      use Ecto.Repo, otp_app: :kith, adapter: Ecto.Adapters.Postgres
    end

    defmodule Message do
      use Ecto.Schema

      schema "messages" do
        field(:to, :string)
        field(:body, :binary)
      end
    end

    defmodule CreateMessages do
      use Ecto.Migration

      def change do
        create table(:messages) do
          add(:to, :text, null: false)
          add(:body, :binary, null: false)
        end
      end
    end

    defmodule KithV1 do
      use Ecto.Migration
      def up, do: Kith.Migration.up(version: 1)
      def down, do: Kith.Migration.down(version: 1)
    end

    defmodule KithV2 do
      use Ecto.Migration
      def up, do: Kith.Migration.up(version: 3)
      def down, do: Kith.Migration.down(version: 2)
    end

    defmodule KithInPrivate do
      use Ecto.Migration
      def up, do: Kith.Migration.up(version: 3, prefix: "private")
      def down, do: Kith.Migration.down(version: 1, prefix: "private")
    end

    defmodule KithWithChange do
      use Ecto.Migration
      def change, do: Kith.Migration.up(version: 3, prefix: "changed")
    end

    defmodule Failing do
      use Ecto.Migration

      def up do
        Kith.Migration.up(prefix: "failing")
        execute("SELECT nothing FROM nowhere")
      end
    end

    @migrations [{1, CreateMessages}, {2, KithV1}, {3, KithV2}, {4, KithInPrivate}]

    setup do
      cluster = Postgres.cluster()
      name = "repo_test_#{System.unique_integer([:positive])}"
      options = Postgres.Repo.ecto_options(Postgres.database!(cluster, name))
      Application.put_env(:kith, Repo, options)
      start_supervised!(Repo)
      :ok
    end

    defp migrate(migrations, direction \\ :up, options \\ [all: true]),
      do: Ecto.Migrator.run(Repo, migrations, direction, [log: false] ++ options)

    defp start!(options \\ []), do: start_kith!([repo: Repo] ++ options)

    test "is migrated by migrations, there and back" do
      assert migrate(@migrations) == [1, 2, 3, 4]
      assert Migration.migrated_version(Repo) == {:ok, 2}
      assert Migration.migrated_version(Repo, prefix: "private") == {:ok, 2}
      assert migrate(@migrations, :down, to: 3) == [4, 3]
      assert Migration.migrated_version(Repo) == {:ok, 1}
      assert Migration.migrated_version(Repo, prefix: "private") == {:ok, 0}
      assert migrate(@migrations, :down, all: true) == [2, 1]
      assert Migration.migrated_version(Repo) == {:ok, 0}
      assert migrate(@migrations) == [1, 2, 3, 4]
    end

    test "takes the prefix of a migration" do
      # Ecto keeps its own table in the schema, which has to be there.
      Repo.query!("CREATE SCHEMA tenant")
      assert migrate([{2, KithV1}, {3, KithV2}], :up, all: true, prefix: "tenant") == [2, 3]
      assert Migration.migrated_version(Repo, prefix: "tenant") == {:ok, 2}
      assert Migration.migrated_version(Repo) == {:ok, 0}
    end

    test "keeps nothing of a migration that fails, and refuses change/0 on the way back" do
      assert_raise Postgrex.Error, fn -> migrate([{1, Failing}]) end
      assert Migration.migrated_version(Repo, prefix: "failing") == {:ok, 0}

      assert migrate([{2, KithWithChange}]) == [2]
      assert_raise ArgumentError, ~r/down\/0/, fn -> migrate([{2, KithWithChange}], :down) end
      assert Migration.migrated_version(Repo, prefix: "changed") == {:ok, 2}
    end

    test "carries Kith, whose state and the application's rows are kept or undone together" do
      migrate(@migrations)

      for kith <- [start!(), start!(prefix: "private")] do
        converse!(kith, "anna", "ben")
        before = dump(kith)

        store = fn text ->
          for envelope <- Kith.encrypt!(kith, "anna", "ben", text) do
            Repo.insert!(%Message{to: "ben", body: Kith.Envelope.to_binary(envelope)})
          end
        end

        assert {:error, :no} =
                 Repo.transaction(fn ->
                   store.("lost")
                   Repo.rollback(:no)
                 end)

        assert_raise Ecto.ConstraintError, fn ->
          Repo.transaction(fn ->
            [message] = store.("lost")
            Repo.insert!(%Message{id: message.id, to: "ben", body: "x"})
          end)
        end

        assert dump(kith) == before
        assert Repo.aggregate(Message, :count) == 0

        assert {:ok, %{kith: [_]}} =
                 Ecto.Multi.new()
                 |> Ecto.Multi.run(:kith, fn _repo, _ -> {:ok, store.("kept")} end)
                 |> Repo.transaction()

        [message] = Repo.all(Message)
        assert Kith.decrypt!(kith, "ben", message.body) == "kept"
        Repo.delete_all(Message)
      end
    end

    test "that is not migrated, or not running, is an error that says so" do
      Process.flag(:trap_exit, true)
      assert {:error, reason} = Kith.start_link(defaults(repo: Repo, name: make_ref()))
      assert inspect(reason) =~ "KithOnEcto.RepoTest.Repo has no tables of Kith"
      migrate(@migrations)
      kith = start!()
      register!(kith, ["anna", "ben"])
      stop_supervised!(Repo)
      assert {:error, %Error{reason: :storage} = error} = Kith.encrypt(kith, "anna", "ben", "x")
      assert Exception.message(error) =~ "not running"
      assert {:error, reason} = Kith.start_link(defaults(repo: Repo, name: make_ref()))
      assert inspect(reason) =~ "not running"
    end

    test "of a sandbox, where every test runs in a transaction that is undone, serves Kith as well" do
      migrate(@migrations)
      config = Repo.config()
      stop_supervised!(Repo)
      start_supervised!({Repo, Keyword.put(config, :pool, Ecto.Adapters.SQL.Sandbox)})
      Ecto.Adapters.SQL.Sandbox.mode(Repo, :manual)
      owner = Ecto.Adapters.SQL.Sandbox.start_owner!(Repo, shared: true)
      kith = start!()
      converse!(kith, "anna", "ben")
      assert reason(Kith.decrypt(kith, "ben", <<1, 2, 3>>)) == :malformed
      assert send!(kith, "anna", "ben", "x") == "x"
      stop_kith!(kith)
      Ecto.Adapters.SQL.Sandbox.stop_owner(owner)
      owner = Ecto.Adapters.SQL.Sandbox.start_owner!(Repo, shared: true)
      assert {:ok, %{rows: [[0]]}} = Repo.query("SELECT COUNT(*) FROM signal_sessions")
      Ecto.Adapters.SQL.Sandbox.stop_owner(owner)
    end
  end
end
