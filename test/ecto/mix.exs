# Kith's repositories of the tests are Ecto's here.
System.put_env("KITH_ECTO", "1")

defmodule KithOnEcto.MixProject do
  use Mix.Project

  def project, do: [app: :kith_on_ecto, version: "0.0.0", elixir: "~> 1.15", deps: deps()]

  def application, do: [extra_applications: [:logger]]

  defp deps,
    do: [{:kith, path: "../..", env: :test}, {:ecto_sql, "~> 3.10"}, {:postgrex, "~> 0.17"}]
end
