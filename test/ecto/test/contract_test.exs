# The tests of Kith that run on PostgreSQL, on repositories of Ecto. The project above finds this file too.
if System.get_env("KITH_ECTO") == "1" do
  for file <-
        ~w(kith/postgres_repo_test.exs kith/migration_test.exs kith/store_test.exs kith/postgres_test.exs
                 kith/versions_test.exs kith/registration_test.exs kith_test.exs),
      do: Code.require_file(file, Path.expand("../..", __DIR__))
end
