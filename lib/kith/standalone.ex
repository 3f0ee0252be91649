defmodule Kith.Standalone do
  @moduledoc false
  # An instance without its application: in a Mix task, and in `bin/my_app eval` of a release, where nothing runs.

  alias Kith.Instance

  @doc """
  Calls a function with an instance that runs, and stops what was started for it: the instance, and with `:repo` the repository,
  but nothing else of the application.
  """
  @spec run(module, (() -> result)) :: {:ok, result} | {:error, String.t()} when result: term
  def run(module, fun) do
    with {:ok, started} <- start(module) do
      try do
        {:ok, fun.()}
      after
        for pid <- started do
          Process.unlink(pid)
          Supervisor.stop(pid)
        end
      end
    end
  end

  @doc """
  Starts what does not run, and returns it, the latest first. Keys are left to the application: nothing is made or deleted
  by itself. Without `create: true` an embedded database has to be there.
  """
  @spec start(module, keyword) :: {:ok, [pid]} | {:error, String.t()}
  def start(module, options \\ []) do
    {:ok, _} = Application.ensure_all_started(:kith)
    given = module.__kith__(:options)

    with false <- Instance.running?(module),
         {:ok, before} <- start_database(module, given[:repo], given[:database], options) do
      case module.start_link(maintenance_interval: :off) do
        {:ok, pid} ->
          {:ok, [pid | before]}

        {:error, {:already_started, _}} ->
          {:ok, before}

        {:error, reason} ->
          {:error, "#{inspect(module)} does not start: #{reason(reason)}"}
      end
    else
      true -> {:ok, []}
      {:error, message} -> {:error, message}
    end
  end

  defp start_database(module, nil, database, options) do
    path = database || %Kith.Options{}.database

    cond do
      path == :memory ->
        {:error,
         "the database of #{inspect(module)} is in the memory of the process that runs it: do this there"}

      # A start would make one.
      options[:create] || File.exists?(path) ->
        {:ok, []}

      true ->
        {:error, "there is no database #{path}"}
    end
  end

  defp start_database(_module, repo, _database, _options) do
    for app <- [:ecto_sql, :postgrex], do: Application.ensure_all_started(app)

    with true <- Code.ensure_loaded?(repo) and function_exported?(repo, :start_link, 1),
         {:ok, pid} <- repo.start_link(pool_size: 2) do
      {:ok, [pid]}
    else
      # Not the application's to start, running already, or failing: the instance will tell.
      _ -> {:ok, []}
    end
  end

  defp reason({:shutdown, {:failed_to_start_child, _child, %{__exception__: true} = error}}),
    do: Exception.message(error)

  defp reason(%{__exception__: true} = error), do: Exception.message(error)
  defp reason(other), do: inspect(other)
end
