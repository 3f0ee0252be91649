defmodule Kith.Test.Postgres.Repo do
  @moduledoc false
  # Repositories of Ecto's shape over PostgreSQL:
  #
  #     defmodule MyRepo do
  #       use Kith.Test.Postgres.Repo
  #     end
  #
  #     MyRepo.start_link(Kith.Test.Postgres.address(cluster))
  #
  # They behave as Ecto's do, down to what becomes of a transaction in which something failed. In test/ecto they are Ecto's,
  # and the same tests say so. A test may put a function in the way of statements with intercept/1.

  use GenServer

  alias Kith.Test.Postgres.Connection

  defmacro __using__(_), do: if(System.get_env("KITH_ECTO") == "1", do: of_ecto(), else: own())

  defp of_ecto do
    quote do
      alias Kith.Test.Postgres.Repo

      defmodule Real do
        use Ecto.Repo, otp_app: :kith, adapter: Ecto.Adapters.Postgres
      end

      def child_spec(options), do: %{id: __MODULE__, start: {__MODULE__, :start_link, [options]}}
      def start_link(options), do: Real.start_link(Repo.ecto_options(options))

      def query(sql, params \\ [], options \\ []),
        do: Repo.intercepted(__MODULE__, sql, params, &Real.query(&1, &2, options))

      def transaction(fun, options \\ []), do: Real.transaction(fun, options)
      def in_transaction?, do: Real.in_transaction?()
      def rollback(value), do: Real.rollback(value)
      def intercept(fun), do: Repo.intercept(__MODULE__, fun)
    end
  end

  defp own do
    quote do
      alias Kith.Test.Postgres.Repo

      def child_spec(options), do: %{id: __MODULE__, start: {__MODULE__, :start_link, [options]}}
      def start_link(options), do: Repo.start_link(__MODULE__, options)
      def query(sql, params \\ [], _options \\ []), do: Repo.query(__MODULE__, sql, params)
      def transaction(fun, _options \\ []), do: Repo.transaction(__MODULE__, fun)
      def in_transaction?, do: Repo.in_transaction?(__MODULE__)
      def rollback(value), do: Repo.rollback(__MODULE__, value)
      def intercept(fun), do: Repo.intercept(__MODULE__, fun)
    end
  end

  @doc """
  Starts the pool of a repository.

  Options are those of `Kith.Test.Postgres.address/2`, `:pool_size` (10), `:queue_timeout` in milliseconds (15,000), and
  `:timeout` of a statement (15,000).
  """
  def start_link(repo, options), do: GenServer.start_link(__MODULE__, options, name: repo)

  # The connection of a process is in its dictionary, for as long as a transaction or a statement runs.
  def query(repo, sql, params) do
    cond do
      failed_before?(repo) ->
        {:error, %DBConnection.ConnectionError{message: "transaction rolling back"}}

      Process.get({repo, :connection}) ->
        run(repo, sql, params)

      true ->
        with {:ok, connection} <- checkout(repo) do
          Process.put({repo, :connection}, connection)

          try do
            run(repo, sql, params)
          after
            checkin(repo, Process.delete({repo, :connection}))
          end
        end
    end
  end

  @doc "A function of the statement and of another that runs it, which returns a result or `{:instead, sql}`."
  def intercept(repo, fun), do: :persistent_term.put({repo, :intercept}, fun)

  defp run(repo, sql, params), do: intercepted(repo, sql, params, &on_connection(repo, &1, &2))

  @doc false
  def intercepted(repo, sql, params, run) do
    intercept = :persistent_term.get({repo, :intercept}, fn _sql, run -> run.() end)
    with {:instead, other} <- intercept.(sql, fn -> run.(sql, params) end), do: run.(other, [])
  end

  @doc "The options of start_link/2 as Ecto's PostgreSQL adapter has them."
  def ecto_options(options) do
    [
      socket_dir: options[:socket],
      port: options[:port],
      username: options[:user],
      database: options[:database],
      pool_size: Keyword.get(options, :pool_size, 10),
      timeout: Keyword.get(options, :timeout, 15_000),
      queue_target: Keyword.get(options, :queue_timeout, 15_000),
      queue_interval: Keyword.get(options, :queue_timeout, 15_000),
      log: false
    ]
  end

  defp on_connection(repo, sql, params) do
    {result, connection} = Connection.query(Process.get({repo, :connection}), sql, params)
    Process.put({repo, :connection}, connection)
    result
  end

  def transaction(repo, fun) do
    if in_transaction?(repo), do: nested(repo, fun), else: outermost(repo, fun)
  end

  def in_transaction?(repo), do: Process.get({repo, :transaction}) != nil

  def rollback(repo, value) do
    if in_transaction?(repo),
      do: throw({__MODULE__, repo, value}),
      else: raise("cannot call rollback outside of transaction")
  end

  defp outermost(repo, fun) do
    with {:ok, connection} <- checkout(repo),
         {{:ok, _}, connection} <- begin(repo, connection) do
      Process.put({repo, :connection}, connection)
      Process.put({repo, :transaction}, :open)

      try do
        fun.()
      catch
        :throw, {__MODULE__, ^repo, value} ->
          finish(repo, "ROLLBACK")
          {:error, value}

        kind, reason ->
          finish(repo, "ROLLBACK")
          :erlang.raise(kind, reason, __STACKTRACE__)
      else
        result ->
          if failed?(repo) do
            finish(repo, "ROLLBACK")
            {:error, :rollback}
          else
            with {:error, error} <- finish(repo, "COMMIT"), do: raise(error)
            {:ok, result}
          end
      end
    else
      {:error, error} -> raise error
      {{:error, error}, _connection} -> raise error
    end
  end

  defp begin(repo, connection) do
    with {{:error, _}, connection} = error <- Connection.query(connection, "BEGIN", []) do
      checkin(repo, connection)
      error
    end
  end

  defp nested(repo, fun) do
    fun.()
  catch
    :throw, {__MODULE__, ^repo, value} ->
      fail(repo)
      {:error, value}

    kind, reason ->
      fail(repo)
      :erlang.raise(kind, reason, __STACKTRACE__)
  else
    result -> if failed?(repo), do: {:error, :rollback}, else: {:ok, result}
  end

  defp fail(repo), do: Process.put({repo, :transaction}, :failed)
  defp failed_before?(repo), do: Process.get({repo, :transaction}) == :failed

  defp failed?(repo),
    do: failed_before?(repo) or Process.get({repo, :connection}).status != :transaction

  defp finish(repo, sql) do
    Process.delete({repo, :transaction})
    connection = Process.delete({repo, :connection})

    {result, connection} =
      if connection.status == :lost,
        do:
          {{:error, %DBConnection.ConnectionError{message: "the connection is lost"}}, connection},
        else: Connection.query(connection, sql, [])

    checkin(repo, connection)
    result
  end

  defp checkout(repo) do
    GenServer.call(repo, :checkout, :infinity)
  catch
    :exit, reason ->
      message = "the pool is gone: #{inspect(elem(reason, 0))}"
      {:error, %DBConnection.ConnectionError{message: message}}
  end

  defp checkin(repo, connection), do: GenServer.cast(repo, {:checkin, self(), connection})

  @impl true
  def init(options) do
    {:ok,
     %{
       options: options,
       free: Keyword.get(options, :pool_size, 10),
       idle: [],
       lent: %{},
       waiting: :queue.new()
     }}
  end

  @impl true
  def handle_call(:checkout, from, %{free: 0} = state) do
    timeout = Keyword.get(state.options, :queue_timeout, 15_000)
    timer = Process.send_after(self(), {:waited, from}, timeout)
    {:noreply, %{state | waiting: :queue.in({from, timer}, state.waiting)}}
  end

  def handle_call(:checkout, from, state), do: {:noreply, lend(state, from)}

  @impl true
  def handle_cast({:checkin, pid, connection}, state) do
    case Map.pop(state.lent, pid) do
      {nil, _} ->
        {:noreply, state}

      {{monitor, _}, lent} ->
        Process.demonitor(monitor, [:flush])
        {:noreply, take_back(%{state | lent: lent}, connection)}
    end
  end

  @impl true
  def handle_info({:DOWN, _, :process, pid, _}, state) do
    case Map.pop(state.lent, pid) do
      {nil, _} -> {:noreply, state}
      # In the middle of a statement perhaps: the server rolls back when the connection ends.
      {{_, lost}, lent} -> {:noreply, take_back(%{state | lent: lent}, %{lost | status: :lost})}
    end
  end

  def handle_info({:waited, from}, state) do
    waiting =
      :queue.filter(
        fn {waiting, _} ->
          late? = waiting == from
          message = "connection not available and request was dropped from queue"

          if late?,
            do: GenServer.reply(from, {:error, %DBConnection.ConnectionError{message: message}})

          not late?
        end,
        state.waiting
      )

    {:noreply, %{state | waiting: waiting}}
  end

  defp take_back(state, %{status: :idle} = connection),
    do: lend_next(%{state | free: state.free + 1, idle: [connection | state.idle]})

  defp take_back(state, connection) do
    Connection.close(connection)
    lend_next(%{state | free: state.free + 1})
  end

  defp lend_next(state) do
    case :queue.out(state.waiting) do
      {{:value, {from, timer}}, waiting} ->
        Process.cancel_timer(timer)
        lend(%{state | waiting: waiting}, from)

      {:empty, _} ->
        state
    end
  end

  # The server may have been restarted meanwhile.
  defp lend(%{idle: [connection | idle]} = state, from) do
    if Connection.alive?(connection) do
      lend(%{state | idle: idle}, from, connection)
    else
      Connection.close(connection)
      lend(%{state | idle: idle}, from)
    end
  end

  defp lend(state, from) do
    case Connection.connect(state.options) do
      {:ok, connection} ->
        lend(state, from, connection)

      {:error, error} ->
        GenServer.reply(from, {:error, error})
        lend_next(state)
    end
  end

  defp lend(state, {pid, _} = from, connection) do
    GenServer.reply(from, {:ok, connection})
    lent = Map.put(state.lent, pid, {Process.monitor(pid), connection})
    %{state | free: state.free - 1, lent: lent}
  end
end

defmodule Kith.Test.PostgresRepo do
  @moduledoc false
  use Kith.Test.Postgres.Repo
end
