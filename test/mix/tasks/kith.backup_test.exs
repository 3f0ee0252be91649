defmodule Mix.Tasks.Kith.BackupTest do
  # The shell of Mix, the environment of the application and that of the system are global.
  use Kith.Case, async: false

  alias Mix.Tasks.Kith.{Backup, Restore}

  defmodule Home do
    use Kith, otp_app: :kith
  end

  defmodule New do
    use Kith, otp_app: :kith
  end

  @quick [archive: true, one_time_prekeys: 2, one_time_kyber_prekeys: 1, replenish_below: 0]

  setup do
    Mix.shell(Mix.Shell.Process)
    folder = tmp_dir!()

    for module <- [Home, New] do
      Application.put_env(
        :kith,
        module,
        defaults([database: Path.join(folder, "#{module}.db")] ++ @quick)
      )

      on_exit(fn -> Application.delete_env(:kith, module) end)
    end

    on_exit(fn -> Mix.shell(Mix.Shell.IO) end)
    start_supervised!(Home)
    for user <- ~w(anna ben), do: Home.register!(user)
    [envelope] = Home.encrypt!("anna", "ben", "dinner?")
    "dinner?" = Home.decrypt!("ben", envelope)
    %{path: Path.join(folder, "anna.kith"), folder: folder}
  end

  defp said do
    receive do
      {:mix_shell, :info, [text]} -> text <> said()
    after
      0 -> ""
    end
  end

  defp secret!(folder, text, mode \\ 0o600) do
    path = Path.join(folder, "secret-#{System.unique_integer([:positive])}")
    File.write!(path, text <> "\n")
    File.chmod!(path, mode)
    path
  end

  test "a backup is written under words that are printed once, tried, and restored", %{path: path} do
    Backup.run([inspect(Home), "anna", path])
    assert [_, words] = Regex.run(~r/\n    ([a-z ]+)\n/, said())
    assert %{mode: mode, size: size} = File.stat!(path)
    assert Bitwise.band(mode, 0o777) == 0o600 and size > 1_000

    assert_raise Mix.Error, ~r/never overwritten/, fn ->
      Backup.run([inspect(Home), "anna", path])
    end

    send(self(), {:mix_shell_input, :prompt, words <> "\n"})
    Restore.run([inspect(New), "anna", path, "--verify"])
    assert_received {:mix_shell, :prompt, ["Words of the recovery key" <> _]}
    assert said() =~ ~r/A whole backup of anna, made .*, with \d+ records/
    assert reason(New.prekey_count("anna")) == :not_registered

    send(self(), {:mix_shell_input, :prompt, words <> "\n"})
    Restore.run([inspect(New), "anna", path])
    assert said() =~ "Restored anna: devices 1, 1 sessions that start anew, 1 messages."
    assert New.prekey_count!("anna") == 2
    assert [%{plaintext: "dinner?"}] = New.history!("anna", {:direct, "ben"}).messages

    send(self(), {:mix_shell_input, :prompt, words <> "\n"})
    assert_raise Mix.Error, ~r/has keys here/, fn -> Restore.run([inspect(New), "anna", path]) end
    send(self(), {:mix_shell_input, :prompt, words <> "\n"})
    Restore.run([inspect(New), "anna", path, "--replace", "--no-history"])
    assert said() =~ "0 messages"

    send(self(), {:mix_shell_input, :prompt, String.replace(words, ~r/^\S+/, "qwerty")})

    assert_raise Mix.Error, ~r/word 1 is not in the list/, fn ->
      Restore.run([inspect(New), "anna", path])
    end
  end

  test "secrets come from the environment or a strict file, and not from arguments", context do
    %{path: path, folder: folder} = context
    file = secret!(folder, "correct horse battery")
    Backup.run([inspect(Home), "anna", path, "--passphrase-file", file, "--no-history"])
    refute said() =~ "words"

    System.put_env("KITH_TEST_PASSPHRASE", "correct horse battery")
    on_exit(fn -> System.delete_env("KITH_TEST_PASSPHRASE") end)
    Restore.run([inspect(New), "anna", path, "--passphrase-env", "KITH_TEST_PASSPHRASE"])
    assert said() =~ "0 messages"

    loose = secret!(folder, "correct horse battery", 0o644)

    for {arguments, message} <- [
          {["--passphrase-file", loose], ~r/only its owner may read/},
          {["--passphrase-file", folder <> "/none"], ~r/cannot be read/},
          {["--passphrase-env", "KITH_NO_SUCH"], ~r/has no KITH_NO_SUCH/},
          {["--passphrase-env", "KITH_TEST_PASSPHRASE", "--words"], ~r/one of the switches/},
          {["--passphrase", "correct horse battery"], ~r/expected the module/},
          {["--passphrase-file", secret!(folder, "wrong horse")], ~r/not those that were used/}
        ] do
      assert_raise Mix.Error, message, fn ->
        Restore.run([inspect(New), "anna", path, "--replace" | arguments])
      end
    end
  end

  test "what fails leaves no file behind", %{path: path, folder: folder} do
    short = secret!(folder, "short")

    assert_raise Mix.Error, fn ->
      Backup.run([inspect(Home), "anna", path, "--passphrase-file", short])
    end

    assert_raise Mix.Error, ~r/has no keys here/, fn ->
      Backup.run([inspect(Home), "cleo", path])
    end

    assert_raise Mix.Error, ~r/no backup/, fn -> Restore.run([inspect(New), "anna", path]) end
    refute File.exists?(path)
  end
end
