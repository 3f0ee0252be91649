# What a password costs, and what a burst of logins does to messages. Prints figures; run by bench/run, or alone:
#
#   MIX_ENV=prod mix run bench/password.exs

Code.require_file("durable.exs", __DIR__)

defmodule Bench.Password do
  alias Kith.{Native, Password}

  @directory Path.join([Path.dirname(__DIR__), "tmp", "bench", "password"])
  @password "correct horse battery staple"
  @costs [
    {"the default, RFC 9106's second option", []},
    {"one lane", [parallelism: 1]},
    {"OWASP's minimum", [memory: 19_456, passes: 2, parallelism: 1]},
    {"the least of hash/2", [memory: 8_192, passes: 1, parallelism: 1]},
    {"the most of verify/2", [memory: 262_144, passes: 4, parallelism: 4]}
  ]

  def main do
    {samples, messages} =
      if System.get_env("QUICK") in ["1", "true"], do: {5, 50}, else: {40, 1_000}

    File.rm_rf!(@directory)
    File.mkdir_p!(@directory)
    {:ok, _} = Application.ensure_all_started(:kith)

    IO.puts("One hash, one caller, milliseconds: least / p50 / p99")

    for {name, options} <- @costs do
      times = for _ <- 1..samples, do: time(fn -> Password.hash!(@password, options) end)
      IO.puts("  #{String.pad_trailing(name, 40)} #{figures(times)}")
    end

    durable = Bench.Durable.start(@directory, 2)
    {_, durable} = Bench.Durable.sample(durable, "established", 2, 200)
    callers = 4 * System.schedulers_online()

    IO.puts("\nA message stored durably, milliseconds: least / p50 / p99")

    # Without turns each message waits for several hashes, so there are few.
    for {name, count, login} <- [
          {"alone", messages, nil},
          {"while #{callers} log in", messages, fn -> Password.hash(@password) end},
          {"the same, were there no turns", 10,
           fn -> Native.password_hash(@password, {65_536, 3, 4}) end}
        ] do
      logins = if login, do: for(_ <- 1..callers, do: spawn(fn -> for_ever(login) end)), else: []
      Process.sleep(500)
      {times, _} = Bench.Durable.sample(durable, "established", 2, count)
      for pid <- logins, do: Process.exit(pid, :kill)
      # What was begun is finished.
      Process.sleep(5_000)
      IO.puts("  #{String.pad_trailing(name, 40)} #{figures(times)}")
    end
  end

  defp for_ever(login) do
    login.()
    for_ever(login)
  end

  defp time(fun) do
    started = System.monotonic_time(:nanosecond)
    fun.()
    System.monotonic_time(:nanosecond) - started
  end

  defp figures(times) do
    sorted = Enum.sort(times)

    at = fn percent ->
      Enum.at(sorted, min(div(length(sorted) * percent, 100), length(sorted) - 1))
    end

    "#{milliseconds(hd(sorted))} / #{milliseconds(at.(50))} / #{milliseconds(at.(99))}"
  end

  defp milliseconds(nanoseconds),
    do: :erlang.float_to_binary(nanoseconds / 1_000_000, decimals: 2)
end

Bench.Password.main()
