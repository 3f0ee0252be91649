defmodule Kith.PasswordTest do
  # Panics are armed by the name of the NIF, and the configuration is everybody's.
  use Kith.Case, async: false

  import Kith.SecretSearch

  alias Kith.{ChildVM, Error, Native, Password}
  alias Kith.Password.Limiter

  doctest Kith.Password

  # The least there is.
  @quick [memory: 8_192, passes: 1, parallelism: 1]

  setup do
    on_exit(fn ->
      Application.delete_env(:kith, Password)
      for nif <- ~w(hash verify inspect), do: :ok = Native.panic_arm("password_#{nif}", 0)
    end)
  end

  test "a hash verifies with its password and no other" do
    assert {:ok, hash} = Password.hash("correct horse", @quick)
    assert Password.verify("correct horse", hash)
    refute Password.verify("correct horses", hash)
    refute Password.verify("Correct horse", hash)
    refute Password.verify("", hash)
    assert Password.hash!("correct horse", @quick) != hash
  end

  test "a hash is the PHC string with the parameters of RFC 9106" do
    assert {:ok, hash} = Password.hash("correct horse")

    assert hash =~
             ~r|\A\$argon2id\$v=19\$m=65536,t=3,p=4\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}\z|

    assert Password.verify("correct horse", hash)
  end

  test "a hash of the reference implementation verifies" do
    # Debian's program argon2, as argon2_elixir would write it.
    hash =
      "$argon2id$v=19$m=65536,t=3,p=4$MDEyMzQ1Njc4OWFiY2RlZg$77UfmnZYT23WpPeUKhovauWm5OxRQv9nTf1dJ+tF5EY"

    assert Password.verify("correct horse battery staple", hash)
    refute Password.verify("correct horse battery stable", hash)
    refute Password.needs_rehash?(hash)
  end

  test "a password is 1 to 1,024 bytes of any kind and is not cut" do
    assert {:error, %Error{reason: :malformed}} = Password.hash("", @quick)
    long = String.duplicate("a", 1_025)
    assert {:error, %Error{reason: :too_large}} = Password.hash(long, @quick)
    assert_raise Error, ~r/more than 1,024 bytes/, fn -> Password.hash!(long, @quick) end

    longest = binary_part(long, 0, 1_024)
    hash = Password.hash!(longest, @quick)
    assert Password.verify(longest, hash)
    refute Password.verify(long, hash)
    refute Password.verify(binary_part(long, 0, 1_023), hash)

    for password <- [<<0, 255, 128>>, "a\0b", "pässwört"] do
      assert Password.verify(password, Password.hash!(password, @quick))
    end

    refute Password.verify("a", Password.hash!("a\0b", @quick))
  end

  test "a hash that is none, or of another algorithm, is raised and not answered" do
    hash = Password.hash!("correct horse", @quick)

    for other <- [
          "",
          "correct horse",
          "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
          "$argon2i$v=19$m=64,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$cU447LNgRjvTfQ/tbDqqEpUTj7uAYQxuqod/2Y609YE",
          "$argon2id$v=16$m=64,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$etxqqwHvK9SV07ikrh1NTjX8hncS53ayidax56962pg",
          hash <> "=",
          hash <> "\n",
          # Without two letters it is no base64. Without one it is, now and then.
          String.slice(hash, 0..-3//1),
          String.replace(hash, "t=1", "t=0"),
          String.duplicate(hash, 1_000)
        ] do
      error = assert_raise Error, fn -> Password.verify("correct horse", other) end
      assert error.reason == :malformed
      assert Password.needs_rehash?(other, @quick)
    end
  end

  test "a hash that asks for too much is refused before any work" do
    hash = Password.hash!("correct horse", @quick)

    for parameters <- [
          "m=262145,t=1,p=1",
          "m=262144,t=5,p=1",
          "m=4294967295,t=4294967295,p=1",
          "m=8192,t=99999999999999999999,p=1",
          "m=8192,t=1,p=65"
        ] do
      hostile = String.replace(hash, "m=8192,t=1,p=1", parameters)
      error = assert_raise Error, fn -> Password.verify("correct horse", hostile) end
      assert error.reason == :too_large
      assert Password.needs_rehash?(hostile, @quick)
    end
  end

  test "the most that options allow is the most that a hash may say" do
    for {memory, passes, parallelism} <- [{262_144, 4, 64}, {8_192, 128, 1}] do
      options = [memory: memory, passes: passes, parallelism: parallelism]

      hash =
        String.replace(small_hash(), "m=8,t=1,p=1", "m=#{memory},t=#{passes},p=#{parallelism}")

      assert {:ok, {{^memory, ^passes, ^parallelism}, true}} = Native.password_inspect(hash)
      refute Password.needs_rehash?(hash, options)
    end
  end

  test "options outside of their ranges are the caller's mistake" do
    for {options, message} <- [
          {[memory: 8_191], ~r/expected :memory to be an integer from 8192 to 262144/},
          {[memory: 262_145], ~r/expected :memory/},
          {[passes: 0], ~r/expected :passes to be an integer from 1 to 128/},
          {[parallelism: 65], ~r/expected :parallelism to be an integer from 1 to 64/},
          {[memory: 65_536, passes: 17], ~r/:memory times :passes to be at most 1048576/},
          {[memori: 8_192], ~r/unknown option :memori, did you mean :memory\?/},
          {%{memory: 8_192}, ~r/expected options to be a keyword list/}
        ] do
      assert_raise ArgumentError, message, fn -> Password.hash("correct horse", options) end
      assert_raise ArgumentError, message, fn -> Password.needs_rehash?("", options) end
      assert_raise ArgumentError, message, fn -> Password.dummy_verify(options) end
    end

    for wrong <- [nil, ~c"correct horse", :horse, {"correct horse", 1}] do
      for call <- [
            fn -> Password.hash(wrong, @quick) end,
            fn -> Password.verify(wrong, small_hash()) end,
            fn -> Password.verify("correct horse", wrong) end,
            fn -> Password.needs_rehash?(wrong) end
          ] do
        error = assert_raise ArgumentError, call
        assert Exception.message(error) =~ ~r/\Aexpected the (password|hash) to be a string\z/
      end
    end
  end

  test "a hash needs another one when it is not as a new one would be" do
    hash = Password.hash!("correct horse", @quick)
    refute Password.needs_rehash?(hash, @quick)
    assert Password.needs_rehash?(hash)

    for changed <- [[memory: 8_193], [passes: 2], [parallelism: 2]],
        do: assert(Password.needs_rehash?(hash, Keyword.merge(@quick, changed)))

    # A tag of 24 bytes, a salt of 8.
    [_, _, _, _, salt, tag] = String.split(hash, "$")
    assert Password.needs_rehash?(String.replace(hash, tag, binary_part(tag, 0, 32)), @quick)
    assert Password.needs_rehash?(String.replace(hash, salt, "c29tZXNhbHQ"), @quick)
  end

  test "a hash of less than options allow still verifies" do
    assert Password.verify("password", small_hash())
    assert Password.needs_rehash?(small_hash(), @quick)
  end

  test "the configuration changes the parameters of all that say none" do
    Application.put_env(:kith, Password, memory: 8_192, passes: 1)
    hash = Password.hash!("correct horse")
    assert hash =~ "$m=8192,t=1,p=4$"
    refute Password.needs_rehash?(hash)
    assert Password.hash!("correct horse", passes: 2) =~ "$m=8192,t=2,p=4$"

    Application.put_env(:kith, Password, memory: 1)
    assert_raise ArgumentError, ~r/expected :memory/, fn -> Password.hash("correct horse") end
  end

  test "a dummy is false, and does the work of the configured parameters" do
    assert Password.dummy_verify(@quick) == false
    Application.put_env(:kith, Password, @quick)
    :ok = Native.panic_arm("password_verify", 1)
    assert_raise Error, ~r/the engine failed/, fn -> Password.dummy_verify() end
    assert Password.dummy_verify() == false
  end

  test "a panic is an error, and the next call works" do
    for count <- [2, 1] do
      :ok = Native.panic_arm("password_hash", count)
      assert {:error, %Error{reason: :panic}} = Password.hash("correct horse", @quick)
    end

    assert {:ok, hash} = Password.hash("correct horse", @quick)
    :ok = Native.panic_arm("password_verify", 1)
    assert %Error{reason: :panic} = catch_error(Password.verify("correct horse", hash))
    :ok = Native.panic_arm("password_inspect", 1)
    assert %Error{reason: :panic} = catch_error(Password.verify("correct horse", hash))
    assert Password.verify("correct horse", hash)
  end

  test "what there is no room for is busy, and neither true nor false" do
    occupied(fn ->
      assert {:error, %Error{reason: :busy}} = Password.hash("correct horse", @quick)
      assert_raise Error, ~r/try again/, fn -> Password.hash!("correct horse", @quick) end
      assert %Error{reason: :busy} = catch_error(Password.verify("password", small_hash()))
      assert %Error{reason: :busy} = catch_error(Password.dummy_verify(@quick))
      # It waits for nothing, so it is not refused.
      assert %Error{reason: :malformed} = catch_error(Password.verify("password", "no hash"))
      assert Password.needs_rehash?(small_hash())
    end)

    assert Password.verify("password", small_hash())
  end

  test "messages are encrypted while passwords are hashed" do
    kith = start_kith!()
    converse!(kith, "anna", "ben")
    slots = Limiter.slots(:erlang.system_info(:dirty_cpu_schedulers_online))
    # As many as wait for fifteen hashes, where one is done at a time.
    logins = for _ <- 1..(slots + 15), do: Task.async(fn -> Password.hash("correct horse") end)
    until(fn -> working() > 0 end)

    for _ <- 1..10 do
      assert send!(kith, "anna", "ben", "dinner?") == "dinner?"
      assert working() in 0..slots
    end

    assert waiting() > 0, "no password was waiting"
    for {:ok, _} <- Task.await_many(logins, 60_000), do: :ok
  end

  @tag timeout: 120_000
  test "a password is in no log, exception, event or inspection, and not in the memory that a crash dump shows" do
    password = "the " <> Base.encode16(:crypto.strong_rand_bytes(8)) <> " horse"
    planted = Base.encode16(:crypto.strong_rand_bytes(8))
    dump = Path.join(tmp_dir!(), "erl_crash.dump")

    {printed, _status} = ChildVM.run(login(password, planted), env: [{"ERL_CRASH_DUMP", dump}])
    dumped = File.read!(dump)
    assert printed =~ "all is said", printed
    assert dumped =~ "planted crash"

    # What is searched is what should be there.
    for expected <- [
          "[:kith, :password, :verify, :stop]",
          "Kith.Error",
          "Limiter",
          "RuntimeError"
        ],
        do: assert(printed =~ expected, "the child printed no #{expected}:\n#{printed}")

    assert found?(dumped, planted), "the search misses what a process held"
    assert found?(printed, planted), "the search misses what was printed"
    refute found?(unbroken(printed), String.replace(password, " ", "")), printed
    refute found?(dumped, password)
  end

  defp login(password, planted) do
    """
    {:ok, _} = Application.ensure_all_started(:kith)
    Logger.configure(level: :debug)
    # Nothing here is a literal of the code, which a crash dump would show.
    password = :erlang.list_to_binary(#{inspect(:binary.bin_to_list(password), limit: :infinity, charlists: :as_lists)})
    planted = :erlang.list_to_binary(#{inspect(:binary.bin_to_list(planted), limit: :infinity, charlists: :as_lists)})

    defmodule :telemetry do
      def execute(event, measurements, metadata), do: IO.inspect({event, measurements, metadata}, limit: :infinity)
    end
    :persistent_term.put(Kith.Telemetry, true)
    show = fn term -> IO.inspect(term, limit: :infinity, printable_limit: :infinity) end
    quick = [memory: 8_192, passes: 1]
    {:ok, hash} = Kith.Password.hash(password, quick)
    show.(Kith.Password.verify(password, hash))
    show.(Kith.Password.verify(String.duplicate(password, 100), hash))
    show.(Kith.Password.hash(String.duplicate(password, 100), quick))

    for call <- [
          fn -> Kith.Password.verify(password, password) end,
          fn -> Kith.Password.verify(hash, password) end,
          fn -> Kith.Password.verify({:not, password}, hash) end,
          fn -> Kith.Password.verify(password, {:not, password}) end,
          fn -> Kith.Password.hash({:not, password}) end,
          fn -> Kith.Password.hash(password, password) end,
          fn -> Kith.Password.hash(password, [{:memory, 1}]) end,
          fn -> Kith.Password.hash!(String.duplicate(password, 100)) end,
          fn -> Kith.Password.needs_rehash?({:not, password}) end,
          fn -> :ok = Kith.Native.panic_arm("password_verify", 2); Kith.Password.verify(password, hash) end,
          fn -> Kith.Password.verify(password, hash) end,
          fn ->
            Application.stop(:kith)
            Kith.Password.verify(password, hash)
          end
        ] do
      try do
        call.()
      rescue
        error ->
          IO.puts(Exception.format(:error, error, __STACKTRACE__))
          {error, stacktrace} = Exception.blame(:error, error, __STACKTRACE__)
          IO.puts(Exception.format(:error, error, stacktrace))
      end
    end

    {:ok, _} = Application.ensure_all_started(:kith)
    # The control, printed and held.
    show.(planted)
    defmodule Holder do
      def hold(term), do: receive(do: (:stop -> term))
    end
    holder = spawn(Holder, :hold, [planted])

    # Its work is killed.
    owner = self()
    killed = spawn(fn -> send(owner, {:killed, Kith.Password.hash(password)}) end)
    kill = fn kill ->
      case Process.info(Process.whereis(Kith.Password.Limiter), :monitors) do
        {:monitors, [{:process, job} | _]} -> Process.exit(job, :kill)
        {:monitors, []} -> kill.(kill)
      end
    end
    kill.(kill)
    receive do: ({:killed, answer} -> show.({killed, answer}))

    # One that is hashed and one that waits, on behalf of processes that do not show what they have.
    costly = [memory: 262_144, passes: 4]
    slots = :sys.get_state(Kith.Password.Limiter).slots

    for _ <- 1..(slots + 1) do
      spawn(fn ->
        Process.flag(:sensitive, true)
        Kith.Password.hash(password, costly)
      end)
    end

    wait = fn wait ->
      state = :sys.get_state(Kith.Password.Limiter)
      if MapSet.size(state.running) == slots and :queue.len(state.waiting) == 1, do: show.(state), else: wait.(wait)
    end

    wait.(wait)
    show.(:sys.get_status(Kith.Password.Limiter))
    for pid <- Process.list(), pid not in [self(), holder], do: show.(Process.info(pid))
    true = Process.alive?(holder)
    IO.puts("all is said")
    Process.sleep(100)
    # This process has the password as its application had.
    Process.flag(:sensitive, true)
    :erlang.halt(~c"planted crash")
    """
  end

  # Made with Debian's program argon2.
  defp small_hash do
    "$argon2id$v=19$m=8,t=1,p=1$MDEyMzQ1Njc4OWFiY2RlZg$dxM42BlXPGcRaznheIro4EsOsM+d+7/i5tdGzz5GT8c"
  end

  # Fills all slots and the queue with work that does not end.
  defp occupied(fun) do
    %{slots: slots, room: room} = :sys.get_state(Limiter)
    block = fn -> Limiter.run(fn -> receive do: (:never -> :ok) end) end
    callers = for _ <- 1..(slots + room), do: spawn(block)

    until(fn -> working() == slots and waiting() == room end)
    {:monitors, monitors} = Process.info(Process.whereis(Limiter), :monitors)
    jobs = for {:process, pid} <- monitors, pid not in callers, do: pid

    try do
      fun.()
    after
      # First those that wait, or they would have their turn.
      for pid <- callers, do: Process.exit(pid, :kill)
      until(fn -> waiting() == 0 end)
      for pid <- jobs, do: Process.exit(pid, :kill)
      until(fn -> working() == 0 end)
    end
  end

  defp waiting, do: :queue.len(:sys.get_state(Limiter).waiting)

  defp working, do: MapSet.size(:sys.get_state(Limiter).running)

  defp until(fun) do
    if not fun.() do
      Process.sleep(1)
      until(fun)
    end
  end

  describe "calibrate/1" do
    test "returns costs that hash/2 takes, between the least that is sound and the most that is allowed" do
      for milliseconds <- [10, 60], memory <- [19_456, 40_000] do
        {costs, took} = Password.calibrate(milliseconds: milliseconds, memory: memory)
        assert costs[:memory] in 19_456..memory
        assert costs[:passes] in 2..div(1_048_576, costs[:memory])
        assert took >= 0
        {:ok, hash} = Password.hash("correct horse", costs)
        refute Password.needs_rehash?(hash, costs)
      end
    end

    test "takes more passes where there is more time" do
      {few, _} = Password.calibrate(milliseconds: 10, memory: 19_456)
      {many, _} = Password.calibrate(milliseconds: 1_000, memory: 19_456)
      assert many[:passes] > few[:passes]
    end

    test "takes options of the right kind" do
      for options <- [[milliseconds: 1], [memory: 8_192], [passes: 3], :slow],
          do: assert_raise(ArgumentError, fn -> Password.calibrate(options) end)
    end
  end
end
