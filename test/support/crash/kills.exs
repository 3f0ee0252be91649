# The long run of `make crash`: KILLS, PG_KILLS and SEED are its arguments. Each store ends with one line of figures.
alias Kith.Crash.{Ledger, Run}
alias Kith.Test.Postgres

[kills, postgres_kills, seed] = Enum.map(System.argv(), &String.to_integer/1)
dir = Path.join(System.tmp_dir!(), "kith-crash-#{System.pid()}")
File.mkdir_p!(dir)

progress = fn ledger, life ->
  if rem(life, 50) == 0,
    do: IO.puts(:stderr, "#{Ledger.deaths(ledger)} kills, #{ledger.counts[:messages]} messages")
end

options = fn name -> [seed: seed, dir: Path.join(dir, name), report: progress] end

sqlite = if kills > 0, do: {"SQLite", Run.both(&Run.sqlite/1, kills, options.("sqlite"))}

{postgres, not_run} =
  cond do
    postgres_kills == 0 ->
      {nil, []}

    not Postgres.available?() ->
      {nil, ["PostgreSQL: it is not on this machine"]}

    true ->
      Run.on_a_small_disk(dir, fn disk ->
        run = fn options -> Run.postgres(Keyword.put(options, :disk, disk)) end
        ledger = Run.both(run, postgres_kills, options.("postgres"))

        without =
          if disk, do: [], else: ["a full disk on PostgreSQL: nothing may be mounted here"]

        {{"PostgreSQL", ledger}, without}
      end)
  end

runs = Enum.reject([sqlite, postgres], &is_nil/1)
for {store, ledger} <- runs, do: IO.puts(Run.line(store, ledger))
for what <- not_run, do: IO.puts("NOT RUN: " <> what)

bad = for {_, ledger} <- runs, violation <- ledger.violations, do: violation

if bad != [] do
  IO.puts(
    "\nThe first of #{length(bad)} faults, with seed #{seed}; journals and databases are in #{dir}:"
  )

  IO.inspect(List.last(bad), printable_limit: 2_000)
  System.halt(1)
end

File.rm_rf!(dir)
