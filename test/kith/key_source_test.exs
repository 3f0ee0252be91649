defmodule Kith.KeySourceTest do
  # The environment of the VM and the log are everybody's.
  use Kith.Case, async: false
  use Kith.Test.Stores

  import ExUnit.CaptureLog

  alias Kith.{ChildVM, Native, Options}

  @passphrase "correct horse battery staple"

  defp passphrase!(text \\ @passphrase, mode \\ 0o600) do
    path = Path.join(tmp_dir!(), "passphrase")
    File.write!(path, text <> "\n")
    File.chmod!(path, mode)
    {:file, path}
  end

  defp refused(source) do
    options = defaults(keys: [current: {"k1", source}])
    assert_raise(ArgumentError, fn -> Kith.start_link(options) end) |> Exception.message()
  end

  describe "a passphrase" do
    setup do
      secret = passphrase!()
      {:ok, parameters} = Native.passphrase_create(secret, {65_536, 3, 4})
      %{secret: secret, parameters: parameters}
    end

    test "opens what it wrapped, from a file and from a variable", c do
      database = Path.join(tmp_dir!(), "kith.db")
      start = &start_kith!(database: database, keys: [current: {"k1", &1}])
      kith = start.({:passphrase, c.secret, c.parameters})
      converse!(kith, "ada", "ben")
      stop_kith!(kith)

      kith = start.({:passphrase, c.secret, c.parameters})
      assert send!(kith, "ada", "ben", "again") == "again"

      # A variable that every process has; those that are set here are seen by Erlang alone.
      {:ok, parameters} = Native.passphrase_create({:env, "PATH"}, {65_536, 3, 4})
      kith = start_kith!(keys: [current: {"k1", {:passphrase, {:env, "PATH"}, parameters}}])
      register!(kith, ["ada"])
    end

    test "that is another one, or has other parameters, is refused before anything is wrapped",
         c do
      assert refused({:passphrase, passphrase!("incorrect horse battery"), c.parameters}) =~
               "not the one that its parameters were made for"

      {:ok, others} =
        Native.passphrase_create(passphrase!("another long passphrase"), {65_536, 3, 4})

      assert refused({:passphrase, c.secret, others}) =~ "not the one"
    end

    test "that is short, or in a file that others read, is refused", c do
      assert {:error, {:invalid, sentence}} =
               Native.passphrase_create(passphrase!("correct horse"), {65_536, 3, 4})

      assert sentence =~ "at least 16 bytes, got 13"
      assert refused({:passphrase, passphrase!("short"), c.parameters}) =~ "at least 16 bytes"
      assert refused({:passphrase, passphrase!(@passphrase, 0o640), c.parameters}) =~ "0640"
    end

    test "with weak or damaged parameters is refused", c do
      for cost <- [{65_535, 3, 4}, {65_536, 2, 4}, {8, 1, 1}] do
        assert {:error, {:invalid, sentence}} = Native.passphrase_create(c.secret, cost)
        assert sentence =~ "weaker"
      end

      [_, name, version, cost, salt, check] = String.split(c.parameters, "$")
      text = &("$" <> Enum.join(&1, "$"))

      for {parts, expected} <- [
            {[name, version, "m=1024,t=3,p=4", salt, check], "weaker"},
            {[name, version, cost, binary_part(salt, 0, 20), check], "weaker"},
            {[name, version, cost, salt, binary_part(check, 0, 40)],
             "parameters of a passphrase"},
            {["argon2id", "v=19", cost, salt, check], "parameters of a passphrase"},
            {[name, version, cost, salt], "parameters of a passphrase"},
            {[""], "parameters of a passphrase"}
          ] do
        sentence = refused({:passphrase, c.secret, text.(parts)})
        assert sentence =~ expected
        refute sentence =~ salt
      end
    end

    test "has its parameters made by a task, which prints no passphrase", c do
      {:file, path} = c.secret
      Mix.shell(Mix.Shell.Process)
      on_exit(fn -> Mix.shell(Mix.Shell.IO) end)
      Mix.Tasks.Kith.Gen.Passphrase.run(["--file", path, "--memory", "65536"])
      assert_received {:mix_shell, :info, [text]}
      assert [parameters] = Regex.run(~r/\$kith-passphrase[^"]+/, text)
      refute text =~ @passphrase
      start_kith!(keys: [current: {"k1", {:passphrase, c.secret, parameters}}])
      assert_raise Mix.Error, fn -> Mix.Tasks.Kith.Gen.Passphrase.run([]) end
    end
  end

  describe "a key for development" do
    test "lives as long as the VM, and the log says so at each start" do
      database = Path.join(tmp_dir!(), "kith.db")
      id = "development #{System.unique_integer([:positive])}" |> String.replace(" ", "-")

      start = fn ->
        start_kith!(name: :dev, database: database, keys: [current: {id, :development}])
      end

      assert capture_log(fn -> register!(start.(), ~w(ada ben)) end) =~ "FOR DEVELOPMENT"
      stop_kith!(:dev)
      assert capture_log(start) =~ "FOR DEVELOPMENT"
      assert send!(:dev, "ada", "ben", "hello") == "hello"
    end

    @tag store: :sqlite
    test "is refused in a release" do
      System.put_env("RELEASE_NAME", "my_app")
      on_exit(fn -> System.delete_env("RELEASE_NAME") end)
      assert refused(:development) =~ "refused in a release"
    end
  end

  @tag store: :sqlite
  test "that the memory of keys could not be locked is said once for each VM" do
    told = {Kith.KeySource, :unlocked}
    before = :persistent_term.get(told, false)
    on_exit(fn -> :persistent_term.put(told, before) end)
    :persistent_term.put(told, false)
    assert capture_log(&Kith.KeySource.unlocked/0) =~ "could not lock the memory of its keys"
    assert capture_log(&Kith.KeySource.unlocked/0) == ""
  end

  @tag store: :sqlite
  test "an instance that starts where memory cannot be locked says so, and the next one does not" do
    code = """
    {:ok, _} = Application.ensure_all_started(:kith)

    for name <- [:one, :two] do
      database = Path.join(#{inspect(tmp_dir!())}, "\#{name}.db")
      {:ok, _} = Kith.start_link(name: name, database: database, keys: [current: {"k1", :development}])
      Kith.register!(name, "anna")
    end

    Logger.flush()
    """

    assert {printed, 0} = ChildVM.run(code, under: without_locked_memory())
    assert length(String.split(printed, "could not lock the memory of its keys")) == 2, printed
  end

  # The limit is nothing to who has the capability, as root does.
  defp without_locked_memory do
    limit = ["sh", "-c", "ulimit -l 0 && exec \"$@\"", "sh"]
    if exempt?(), do: limit ++ ~w(setpriv --bounding-set -ipc_lock), else: limit
  end

  defp exempt? do
    with {:ok, status} <- File.read("/proc/self/status"),
         [_, capabilities] <- Regex.run(~r/^CapEff:\s*([[:xdigit:]]+)/m, status),
         do: Bitwise.band(String.to_integer(capabilities, 16), 0x4000) != 0,
         else: (_ -> false)
  end

  describe "the options of a key service" do
    @describetag store: :sqlite

    test "are checked, and no value is printed" do
      for {options, expected} <- [
            {[], "expected :url"},
            {[url: ""], "expected :url"},
            {[url: "unix:///x", timeout: 0], "expected :timeout"},
            {[url: "unix:///x", certificate: "x"], "together"},
            {[url: "unix:///x", urll: "x"], "unknown option :urll"},
            {:secret, "keyword list"}
          ] do
        assert {:error, message} = Options.new(keys: [current: {"k1", {:kms, options}}])
        assert message =~ expected
      end

      assert {:error, "in :key_cache, expected :keys" <> _} =
               Options.new(keys: [current: {"k1", :development}], key_cache: [keys: 1])
    end

    test "that cannot work are refused at the start" do
      for {options, expected} <- [
            {[url: "ftp://x"], "expected a url like"},
            {[url: "http://kms.example"], "expected https"},
            {[url: "https://kms.example"], "expected the certificates"},
            {[url: "https://kms.example", ca_file: "/nowhere"], "/nowhere cannot be used"},
            {[url: "unix:///x", ca_file: "/nowhere"], "with https only"},
            {[url: "unix:///x", fallback: "other"], "expected the fallback of"},
            {[url: "unix:///x", fallback: "k1"], "expected the fallback of"}
          ],
          do: assert(refused({:kms, options}) =~ expected)
    end
  end
end
