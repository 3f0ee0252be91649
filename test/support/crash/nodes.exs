# The long run of `make nodes`: OPS, NODES and SEED are its arguments. Each store ends with one line of figures.
alias Kith.Crash.{Nodes, Run}
alias Kith.Test.Postgres

[operations, nodes, seed] = Enum.map(System.argv(), &String.to_integer/1)
dir = Path.join(System.tmp_dir!(), "kith-nodes-#{System.pid()}")
workers = 8

options = fn name ->
  [seed: seed, dir: Path.join(dir, name), operations: operations, workers: workers]
end

postgres =
  if Postgres.available?(),
    do: {"PostgreSQL", Run.nodes_on_postgres([nodes: nodes] ++ options.("postgres")), nodes}

if postgres, do: IO.puts(Nodes.line("PostgreSQL", elem(postgres, 1), nodes, nodes * workers))

sqlite =
  {"SQLite", Run.processes_on_sqlite(Keyword.put(options.("sqlite"), :workers, nodes * workers)),
   1}

IO.puts(Nodes.line("SQLite", elem(sqlite, 1), 1, nodes * workers))
runs = Enum.reject([sqlite, postgres], &is_nil/1)

if postgres == nil, do: IO.puts("NOT RUN: PostgreSQL: it is not on this machine")

bad = for {_, ledger, _} <- runs, violation <- ledger.violations, do: violation

if bad != [] do
  IO.puts("\nThe first of #{length(bad)} faults, with seed #{seed}; journals are in #{dir}:")
  IO.inspect(List.last(bad), printable_limit: 2_000)
  System.halt(1)
end

File.rm_rf!(dir)
