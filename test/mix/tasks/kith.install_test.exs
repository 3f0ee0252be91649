defmodule Mix.Tasks.Kith.InstallTest do
  # In a project of its own; the project of Mix and the working directory are one for all.
  use Kith.Case, async: false

  alias Kith.Migration
  alias Mix.Tasks.Kith.{Gen, Install}

  @version Migration.current_version()

  defmodule Project do
    def project, do: [app: :my_app, version: "1.0.0"]
  end

  setup do
    shell = Mix.shell()
    Mix.shell(Mix.Shell.Process)
    directory = tmp_dir!()
    back = File.cwd!()
    Mix.Project.push(Project)
    File.cd!(directory)

    on_exit(fn ->
      File.cd!(back)
      Mix.Project.pop()
      Mix.shell(shell)
      for key <- [:ecto_repos, MyApp.Repo], do: Application.delete_env(:my_app, key)
    end)

    :ok
  end

  defp with_repo(config \\ []) do
    Application.put_env(:my_app, :ecto_repos, [MyApp.Repo])
    Application.put_env(:my_app, MyApp.Repo, config)
  end

  # Every file with what is in it.
  defp files do
    for path <- Path.wildcard("**/*", match_dot: true), File.regular?(path), into: %{} do
      {path, File.read!(path)}
    end
  end

  defp said do
    receive do
      {:mix_shell, :info, [text]} -> text <> "\n" <> said()
    after
      0 -> ""
    end
  end

  defp migrations(folder \\ "priv/repo/migrations"), do: Path.wildcard("#{folder}/*.exs")

  describe "mix kith.gen.migration" do
    test "writes a migration that names its version, once" do
      with_repo()
      Gen.Migration.run([])
      assert [path] = migrations()
      assert Path.basename(path) =~ ~r/\A\d{14}_kith_v#{@version}\.exs\z/

      assert File.read!(path) == """
             defmodule MyApp.Repo.Migrations.KithV#{@version} do
               use Ecto.Migration

               def up, do: Kith.Migration.up(version: #{@version})
               def down, do: Kith.Migration.down(version: 1)
             end
             """

      before = files()
      assert said() =~ "Wrote #{path}"
      Gen.Migration.run([])
      assert files() == before
      assert said() =~ "#{path} is there already"
    end

    test "writes one for each prefix, with names and classes that differ" do
      with_repo()
      Gen.Migration.run([])
      Gen.Migration.run(["--prefix", "private"])
      Gen.Migration.run(["--prefix", "private"])
      assert [_, path] = Enum.sort_by(migrations(), &byte_size/1)
      assert Path.basename(path) =~ "_kith_v#{@version}_in_private.exs"
      assert File.read!(path) =~ "MyApp.Repo.Migrations.KithV#{@version}InPrivate do"
      assert File.read!(path) =~ ~s{Kith.Migration.up(version: #{@version}, prefix: "private")}
      assert File.read!(path) =~ ~s{Kith.Migration.down(version: 1, prefix: "private")}
    end

    test "goes on where the migration of an older release has ended" do
      with_repo()
      File.mkdir_p!("priv/repo/migrations")

      File.write!("priv/repo/migrations/20260101000000_kith.exs", """
      defmodule MyApp.Repo.Migrations.Kith do
        use Ecto.Migration

        def up, do: Kith.Migration.up(version: 1)
        def down, do: Kith.Migration.down(version: 1)
      end
      """)

      Gen.Migration.run([])
      assert [_, path] = migrations()
      assert File.read!(path) =~ "up(version: #{@version})"
      assert File.read!(path) =~ "down(version: 2)"
    end

    test "follows the repository to where Ecto looks for its migrations" do
      with_repo()
      Gen.Migration.run(["--repo", "MyApp.Accounts.AuditRepo"])
      assert [path] = migrations("priv/audit_repo/migrations")
      assert File.read!(path) =~ "defmodule MyApp.Accounts.AuditRepo.Migrations.KithV"

      with_repo(priv: "priv/elsewhere")
      Gen.Migration.run([])
      assert [_] = migrations("priv/elsewhere/migrations")
    end

    test "is code that compiles" do
      with_repo()
      Gen.Migration.run(["--prefix", "private"])
      [path] = migrations()
      assert {:defmodule, _, _} = Code.string_to_quoted!(File.read!(path))

      assert IO.iodata_to_binary([Code.format_string!(File.read!(path)), "\n"]) ==
               File.read!(path)
    end

    test "refuses what it does not know, and writes nothing" do
      assert_raise Mix.Error, ~r/no :ecto_repos/, fn -> Gen.Migration.run([]) end
      with_repo()

      for arguments <- [["x"], ["--prefx", "x"], ["--prefix", "a\"b"], ["--repo", "repo; x"]],
          do: assert_raise(Mix.Error, fn -> Gen.Migration.run(arguments) end)

      assert files() == %{}
    end
  end

  describe "mix kith.install" do
    test "with a repository writes the module, the configuration and the migration" do
      with_repo()
      Install.run([])

      assert File.read!("lib/my_app/kith.ex") =~ "defmodule MyApp.Kith do"
      assert File.read!("lib/my_app/kith.ex") =~ "use Kith, otp_app: :my_app"
      assert [_] = migrations()

      assert [my_app: [{MyApp.Kith, [repo: MyApp.Repo]}]] =
               Config.Reader.read!("config/config.exs")

      assert [my_app: [{MyApp.Kith, [keys: [current: {_, {:env, "KITH_KEY"}}]]}]] =
               Config.Reader.read!("config/runtime.exs")

      said = said()
      assert said =~ "mix kith.gen.key"
      assert said =~ "mix ecto.migrate"
      assert said =~ "add MyApp.Kith to the children of your supervisor, after MyApp.Repo"
    end

    test "gives options that an instance takes" do
      with_repo()
      Install.run(["--prefix", "private"])

      config =
        Config.Reader.merge(
          Config.Reader.read!("config/config.exs"),
          Config.Reader.read!("config/runtime.exs")
        )

      options = config[:my_app][MyApp.Kith]
      assert options[:prefix] == "private"
      # The repository of the application is not here.
      assert {:ok, _} = Kith.Options.new(Keyword.put(options, :repo, Kith.Test.Repo))
    end

    test "without a repository sets up the embedded database" do
      Install.run([])
      assert migrations() == []

      assert [my_app: [{MyApp.Kith, [database: "kith.db"]}]] =
               Config.Reader.read!("config/config.exs")

      said = said()
      refute said =~ "ecto"
      assert said =~ ".gitignore"

      with_repo()
      File.rm_rf!("config")
      Install.run(["--sqlite"])
      assert migrations() == []
      assert File.read!("config/config.exs") =~ "database:"
    end

    test "gives tests a key of their own, and asks for none in their environment" do
      for {arguments, database} <- [{[], []}, {["--sqlite"], [database: :memory]}] do
        with_repo()
        File.rm_rf!("config")
        File.mkdir_p!("config")
        File.write!("config/config.exs", ~S|import Config
import_config "#{config_env()}.exs"
|)
        File.write!("config/test.exs", "import Config\n")
        File.write!("config/prod.exs", "import Config\n")
        Install.run(arguments)

        assert [] = Config.Reader.read!("config/runtime.exs", env: :test)

        assert [my_app: [{MyApp.Kith, [keys: [current: {_, {:env, "KITH_KEY"}}]]}]] =
                 Config.Reader.read!("config/runtime.exs", env: :prod)

        options = Config.Reader.read!("config/config.exs", env: :test)[:my_app][MyApp.Kith]
        assert Keyword.take(options, [:database]) == database
        assert options[:maintenance_interval] == :off

        assert {:ok, _} = options |> Keyword.replace(:repo, Kith.Test.Repo) |> Kith.Options.new()

        refute Config.Reader.read!("config/config.exs", env: :prod)[:my_app][MyApp.Kith][:keys]

        for {_path, text} <- files(),
            text =~ "MyApp.Kith",
            do: assert(text == IO.iodata_to_binary([Code.format_string!(text), "\n"]))
      end
    end

    test "again changes nothing" do
      with_repo()
      Install.run([])
      before = files()
      Install.run([])
      assert files() == before
    end

    test "leaves what is there as it is, and lets the configuration of an environment win" do
      with_repo()
      File.mkdir_p!("config")
      File.mkdir_p!("lib/my_app")
      File.write!("lib/my_app/kith.ex", "# mine\n")

      File.write!("config/config.exs", """
      import Config

      config :my_app, ecto_repos: [MyApp.Repo]

      # Übersteuert, last of all.
      import_config "\#{config_env()}.exs"
      """)

      File.write!(
        "config/dev.exs",
        "import Config\nconfig :my_app, MyApp.Kith, max_attempts: 9\n"
      )

      Install.run([])
      assert File.read!("lib/my_app/kith.ex") == "# mine\n"

      assert String.ends_with?(
               File.read!("config/config.exs"),
               ~s|import_config "\#{config_env()}.exs"\n|
             )

      read = Config.Reader.read!("config/config.exs", env: :dev)[:my_app]
      assert read[:ecto_repos] == [MyApp.Repo]
      assert read[MyApp.Kith] == [repo: MyApp.Repo, max_attempts: 9]
    end

    test "refuses what it does not know, and writes nothing" do
      for arguments <- [["x"], ["--sqlit"], ["--sqlite", "--prefix", "x"], ["--prefix", "x"]],
          do: assert_raise(Mix.Error, fn -> Install.run(arguments) end)

      assert files() == %{}
    end
  end
end
