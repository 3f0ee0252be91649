for application <- [:ecto_sql, :postgrex, :telemetry],
    do: {:ok, _} = Application.ensure_all_started(application)

# Of the shared tests, those on PostgreSQL.
ExUnit.start(exclude: [:test], include: [:postgres])
