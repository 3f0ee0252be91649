defmodule Kith.Backup.SecretsTest do
  # As Kith.SecretsTest: a VM of its own backs an account up, restores it, and dies. What opens anything is then looked
  # for in everything it left.
  use Kith.Case, async: true

  import Kith.SecretSearch

  alias Kith.ChildVM

  @tag timeout: 120_000
  test "no key, no passphrase and no words are in a crash dump, a log, an inspection, an exception, telemetry or the backup" do
    folder = tmp_dir!()
    kek = :crypto.strong_rand_bytes(32)
    key_file = Path.join(folder, "kith.key")
    File.write!(key_file, Base.encode64(kek))
    File.chmod!(key_file, 0o600)
    dump = Path.join(folder, "erl_crash.dump")
    planted = :crypto.strong_rand_bytes(24)
    passphrase = Base.encode16(:crypto.strong_rand_bytes(12))
    words_file = Path.join(folder, "words")

    arguments = %{
      key_file: key_file,
      folder: folder,
      planted: :binary.bin_to_list(planted),
      passphrase: :binary.bin_to_list(passphrase)
    }

    {printed, _status} = ChildVM.run(child(arguments), env: [{"ERL_CRASH_DUMP", dump}])
    assert printed =~ "all is restored", printed
    dumped = File.read!(dump)
    unbroken = unbroken(printed)
    assert dumped =~ "planted crash"

    for expected <- [
          "[:kith,:backup,:export,:stop]",
          "[:kith,:backup,:restore,:stop]",
          "[:kith,:backup,:unwrap,:stop]",
          "Kith.Error",
          "#Kith.Backup.RecoveryKey<>",
          "ArgumentError"
        ],
        do: assert(unbroken =~ expected, "the child printed no #{expected}:\n#{printed}")

    assert found?(dumped, planted), "the search misses what a process held"

    # The words, their shares and the passphrase are the person's: the child wrote them down here, and nowhere else.
    [words | shares] = words_file |> File.read!() |> String.split("\n", trim: true)
    assert length(shares) == 5
    {:ok, key} = Kith.Backup.RecoveryKey.parse(words)
    assert {:ok, ^words} = Kith.Backup.RecoveryKey.words(key)

    backups = for name <- ~w(one.kith two.kith), do: File.read!(Path.join(folder, name))
    assert Enum.all?(backups, &(byte_size(&1) > 10_000))

    of_people = [{:words, words}, {:passphrase, passphrase}] ++ for(s <- shares, do: {:share, s})

    of_databases =
      for name <- ~w(home.db new.db),
          secret <- read_secrets(Path.join(folder, name), kek),
          do: secret

    for kind <- [
          :identity_key,
          :prekey,
          :kyber_seed,
          :root_key,
          :chain_key,
          :thread_key,
          :data_key
        ],
        do: assert(List.keymember?(of_databases, kind, 0), "no #{kind} to look for")

    places = [crash_dump: dumped, output: unbroken] ++ Enum.map(backups, &{:backup, &1})

    for {kind, secret} <- of_people ++ of_databases, {place, text} <- places do
      secret = if place == :output, do: String.replace(secret, " ", ""), else: secret
      refute found?(text, secret), "a #{kind} is in the #{place}"
    end
  end

  defp child(%{key_file: key_file, folder: folder, planted: planted, passphrase: passphrase}) do
    """
    {:ok, _} = Application.ensure_all_started(:kith)
    Logger.configure(level: :debug)

    defmodule :telemetry do
      def execute(event, measurements, metadata), do: IO.inspect({event, measurements, metadata}, limit: :infinity)
    end
    :persistent_term.put(Kith.Telemetry, true)
    show = fn term -> IO.inspect(term, limit: :infinity, printable_limit: :infinity) end
    folder = #{inspect(folder)}

    start = fn name, file ->
      options = [name: name, archive: true, one_time_prekeys: 3, one_time_kyber_prekeys: 2, replenish_below: 0, database: Path.join(folder, file), keys: [current: {"k1", {:file, #{inspect(key_file)}}}]]
      {:ok, _} = Kith.start_link(options)
    end

    start.(:home, "home.db")
    start.(:new, "new.db")
    for user <- ~w(ada ben), do: Kith.register!(:home, user)

    for _ <- 1..3, {from, to} <- [{"ada", "ben"}, {"ben", "ada"}] do
      [envelope] = Kith.encrypt!(:home, from, to, "a text")
      Kith.decrypt!(:home, to, envelope)
    end

    alias Kith.Backup
    alias Kith.Backup.{Escrow, RecoveryKey}
    quick = [memory: 19_456, passes: 2, parallelism: 1]
    one = Path.join(folder, "one.kith")
    two = Path.join(folder, "two.kith")

    # A process as a request is, which ends. It has the passphrase and the words, as its application had.
    request = fn fun ->
      {_, monitor} = spawn_monitor(fn -> Process.flag(:sensitive, true); fun.() end)
      receive do: ({:DOWN, ^monitor, _, _, reason} -> show.(reason))
    end

    attempt = fn fun ->
      try do
        show.(fun.())
      rescue
        error ->
          IO.puts(Exception.format(:error, error, __STACKTRACE__))
          {error, stacktrace} = Exception.blame(:error, error, __STACKTRACE__)
          IO.puts(Exception.format(:error, error, stacktrace))
      end
    end

    request.(fn ->
      passphrase = :erlang.list_to_binary(#{inspect(passphrase, limit: :infinity, charlists: :as_lists)})
      secret = {:passphrase, passphrase}
      {:ok, stream} = Backup.export(:home, "ada", secret, quick)
      show.(stream |> Stream.into(File.stream!(one)) |> Stream.run())
      attempt.(fn -> Backup.export(:home, "ada", passphrase, quick) end)
      attempt.(fn -> Backup.export(:home, "ada", {:passphrase, {passphrase}}, quick) end)
      attempt.(fn -> Backup.export(:home, secret, secret, quick) end)
      attempt.(fn -> Backup.export(:home, "ada", secret, [passphrase | quick]) end)
      attempt.(fn -> Backup.export(:nowhere, "ada", secret, quick) end)
      attempt.(fn -> Backup.restore(:new, "ada", {passphrase}, secret) end)
      attempt.(fn -> Backup.restore(:new, "ada", [passphrase], secret) end)
      attempt.(fn -> Backup.restore(:new, "ada", Stream.map([1], fn _ -> raise "a broken upload" end), secret) end)
      attempt.(fn -> Backup.verify(:new, File.stream!(one, [], 1_000), {:passphrase, passphrase <> "!"}) end)
      attempt.(fn -> Backup.restore(:new, "ada", File.stream!(one, [], 1_000), secret) end)
      :ok = Kith.Native.panic_arm("backup_open", 1)
      attempt.(fn -> Backup.verify(:new, File.stream!(one, [], 1_000), secret) end)
      # The stack trace of what dies has no arguments, in the log neither.
      Backup.export(:home, "ada", {:passphrase, {:not, passphrase}}, quick)
    end)

    {:ok, key} = RecoveryKey.generate()
    show.(key)

    request.(fn ->
      {:ok, words} = RecoveryKey.words(key)
      {:ok, shares} = RecoveryKey.split(key)
      File.write!(Path.join(folder, "words"), Enum.join([words | shares], "\\n"))
      {:ok, again} = RecoveryKey.parse(words)
      show.(again)
      show.(RecoveryKey.parse(words <> " more"))
      show.(RecoveryKey.combine(shares))
      show.(RecoveryKey.combine(Enum.take(shares, 2)))
      show.(RecoveryKey.combine([hd(shares) | shares]))
      attempt.(fn -> RecoveryKey.parse({words}) end)
      attempt.(fn -> RecoveryKey.combine({shares}) end)
      attempt.(fn -> Backup.export(:home, "ada", words, quick) end)
    end)

    {:ok, stream} = Backup.export(:home, "ada", key)
    show.(stream)
    show.(stream |> Stream.into(File.stream!(two)) |> Stream.run())
    show.(Backup.verify(:new, File.stream!(two, [], 1_000), key))
    show.(Backup.restore(:new, "ada", File.stream!(two, [], 1_000), key))
    show.(Backup.restore(:new, "ada", File.stream!(two, [], 1_000), key, replace: true))
    show.(Escrow.deposit(:home, "ada", key, {"k1", {:file, #{inspect(key_file)}}}, by: "ada", text: "1"))
    show.(Escrow.unwrap(:home, "ada", {"k1", {:file, #{inspect(key_file)}}}, by: "carla", purpose: "a test"))
    attempt.(fn -> Escrow.unwrap(:home, "ada", {"k1", {:file, "/nowhere"}}, by: "carla", purpose: "a test") end)

    planted = :erlang.list_to_binary(#{inspect(planted, limit: :infinity, charlists: :as_lists)})
    holder = spawn(fn -> receive do: (:stop -> show.({planted, key})) end)
    true = Process.alive?(holder)
    IO.puts("all is restored")
    Process.sleep(200)
    :erlang.halt(~c"planted crash")
    """
  end
end
