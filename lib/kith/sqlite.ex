defmodule Kith.SQLite do
  @moduledoc """
  The embedded database: SQLite in the native library, behind the two functions Kith's store asks of
  an `Ecto.Repo`.

      {:ok, pid} = Kith.SQLite.start_link(path: "kith.db", name: MyApp.KithDatabase)
      db = Kith.SQLite.handle(MyApp.KithDatabase)

      {:ok, %{rows: [[1]]}} = Kith.SQLite.query(db, "SELECT $1", [1])

      {:ok, :done} =
        Kith.SQLite.transaction(db, fn ->
          {:ok, _} = Kith.SQLite.query(db, "DELETE FROM notes WHERE id = $1", [7])
          :done
        end)

  ## Values

  Parameters are `nil`, booleans (stored as 0 and 1), 64-bit integers, floats, UTF-8 text and
  `{:blob, binary}`. Text and bytes are different values to SQLite: a row written with one is not
  found with the other. Both come back as binaries.

  ## One writer

  A process owns the connection and lends it to one caller at a time, in the order they asked. A
  statement outside a transaction is lent the connection for itself, so nobody sees what another
  process has not committed. Statements run in the caller: the owner sees neither SQL nor values.

  A caller that dies while it has the connection is rolled back. So is one that keeps it longer than
  its `:timeout`; its next statement fails with the kind `:lease`.

  A transaction belongs to the process that began it. Waiting inside it for another process that
  uses the same database is a deadlock, which the timeouts end.

  ## Transactions are those of PostgreSQL

  After a failed statement the transaction can only be rolled back, although SQLite would go on:
  what passes here passes there. A nested transaction joins the outer one, and rolls it back with it.

  ## Durability and deleted rows

  A commit that returned is on the disk (`synchronous: :full`). `:normal` survives a crash of the VM,
  not of the machine, and then a message key may be used twice: for tests and caches only.

  Deleted rows are overwritten with zeros, but earlier images of their pages stay in the write-ahead
  log until a checkpoint. `checkpoint/2` makes one now and empties the log. The file is created with
  mode 0600.
  """

  use GenServer

  alias Kith.Native
  alias Kith.SQLite.Error

  @enforce_keys [:server]
  defstruct [:server]

  @opaque t :: %__MODULE__{server: GenServer.server()}

  @type value :: nil | boolean | integer | float | String.t() | {:blob, binary}
  @type result :: %{
          columns: [String.t()],
          rows: [[nil | integer | float | binary]] | nil,
          num_rows: non_neg_integer
        }
  @type option :: {:timeout, timeout} | {:queue_timeout, timeout}

  @timeout 15_000

  @doc """
  Starts the process that owns a database.

    * `:path` - the file, or `:memory`. Required. Its directory must exist
    * `:name` - the name of the process
    * `:synchronous` - `:full` (default) or `:normal`
    * `:busy_timeout` - how many milliseconds to wait for another program's lock. Defaults to 5,000
  """
  @spec start_link(keyword) :: GenServer.on_start()
  def start_link(opts) do
    {name, opts} = Keyword.pop(opts, :name)
    GenServer.start_link(__MODULE__, validate!(opts), if(name, do: [name: name], else: []))
  end

  @doc false
  def child_spec(opts) do
    %{id: {__MODULE__, opts[:name]}, start: {__MODULE__, :start_link, [opts]}, shutdown: 10_000}
  end

  @doc "Returns the handle that the other functions take. It outlives a restart of a named process."
  @spec handle(GenServer.server()) :: t
  def handle(server), do: %__MODULE__{server: server}

  @doc """
  Runs one statement. Parameters are written `$1`, `$2` and so on.

  `rows` is `nil` for a statement that returns none, and `num_rows` is then how many it changed.

    * `:timeout` - how many milliseconds it may run. Defaults to 15,000
    * `:queue_timeout` - how many milliseconds to wait for the connection. Defaults to 15,000

  Inside a transaction, the transaction's timeouts hold.
  """
  @spec query(t, String.t(), [value], [option]) :: {:ok, result} | {:error, Exception.t()}
  def query(%__MODULE__{} = handle, sql, params \\ [], opts \\ []) do
    run(handle, opts, fn connection, lease, scope ->
      Native.sqlite_query(connection, lease, scope, sql, params)
    end)
  end

  @doc "Runs statements without parameters, separated by semicolons. Takes the options of `query/4`."
  @spec execute(t, String.t(), [option]) :: :ok | {:error, Exception.t()}
  def execute(%__MODULE__{} = handle, sql, opts \\ []) do
    run(handle, opts, fn connection, lease, scope ->
      Native.sqlite_execute(connection, lease, scope, sql)
    end)
  end

  @doc """
  Copies the write-ahead log into the file and empties it.

  Fails with the kind `:busy` while another connection reads, for which it does not wait, and with `:transaction`
  inside a transaction. Takes the options of `query/4`.
  """
  @spec checkpoint(t, [option]) :: :ok | {:error, Exception.t()}
  def checkpoint(%__MODULE__{} = handle, opts \\ []) do
    run(handle, opts, fn
      connection, lease, :single -> Native.sqlite_checkpoint(connection, lease)
      _connection, _lease, _scope -> {:error, {:transaction, "a transaction is open"}}
    end)
  end

  @doc """
  Runs `fun` in a transaction: all of its statements are durable together, or none is.

  Returns `{:ok, result}` with what `fun` returned, `{:error, reason}` after `rollback/2`,
  `{:error, :rollback}` if a statement or a nested transaction had failed before, and
  `{:error, exception}` if the transaction could not be begun or committed. What `fun` raises,
  throws or exits with rolls back and goes on. `fun` may take the handle.

    * `:timeout` - how many milliseconds the whole transaction may take. Defaults to 15,000
    * `:queue_timeout` - how many milliseconds to wait for the connection. Defaults to 15,000
  """
  @spec transaction(t, (() -> result) | (t -> result), [option]) ::
          {:ok, result} | {:error, term}
        when result: var
  def transaction(%__MODULE__{} = handle, fun, opts \\ []) do
    with {:ok, server} <- whereis(handle) do
      case Process.get({__MODULE__, server}) do
        nil -> outer_transaction(handle, server, fun, opts)
        %{failed?: true} -> {:error, :rollback}
        _open -> nested_transaction(handle, server, fun)
      end
    end
  end

  @doc "Ends the transaction this process is in: `transaction/3` returns `{:error, reason}`."
  @spec rollback(t, term) :: no_return
  def rollback(%__MODULE__{} = handle, reason) do
    case in_transaction(handle) do
      {server, _transaction} -> throw({__MODULE__, :rollback, server, reason})
      nil -> raise ArgumentError, "rollback/2 is called inside a transaction"
    end
  end

  @doc "Whether this process is in a transaction."
  @spec in_transaction?(t) :: boolean
  def in_transaction?(%__MODULE__{} = handle), do: in_transaction(handle) != nil

  # A transaction begins with its first statement, in the same call to the native library: an empty
  # one costs nothing, and the others one hop less.
  defp run(handle, opts, statement) do
    with {:ok, server} <- whereis(handle) do
      case Process.get({__MODULE__, server}) do
        nil ->
          run_alone(server, opts, statement)

        %{failed?: true} ->
          {:error, %Error{kind: :transaction, message: "the transaction has failed before"}}

        transaction ->
          run_inside(server, transaction, statement)
      end
    end
  end

  defp run_alone(server, opts, statement) do
    with {:ok, ref, connection, lease} <- checkout(server, opts) do
      try do
        statement.(connection, lease, :single)
      else
        {:error, error} ->
          checkin(server, ref, condition(error))
          {:error, Error.from_native(error)}

        answer ->
          checkin(server, ref, :clean)
          answer
      catch
        kind, reason ->
          checkin(server, ref, :dirty)
          :erlang.raise(kind, reason, __STACKTRACE__)
      end
    end
  end

  defp run_inside(server, %{begun?: begun?} = transaction, statement) do
    if not begun?, do: Process.put({__MODULE__, server}, %{transaction | begun?: true})
    scope = if begun?, do: :join, else: :begin

    with {:error, error} <- statement.(transaction.connection, transaction.lease, scope) do
      fail(server)
      {:error, Error.from_native(error)}
    end
  end

  defp outer_transaction(handle, server, fun, opts) do
    with {:ok, ref, connection, lease} <- checkout(server, opts) do
      Process.put({__MODULE__, server}, %{
        connection: connection,
        lease: lease,
        begun?: false,
        failed?: false
      })

      Process.put({__MODULE__, :owner, handle.server}, server)

      try do
        apply_to(fun, handle)
      else
        value ->
          case whereis(handle) do
            {:ok, ^server} ->
              finish(server, ref, value)

            {:error, error} ->
              undo(server, ref)
              {:error, error}
          end
      catch
        :throw, {__MODULE__, :rollback, ^server, reason} ->
          undo(server, ref)
          {:error, reason}

        kind, reason ->
          undo(server, ref)
          :erlang.raise(kind, reason, __STACKTRACE__)
      after
        Process.delete({__MODULE__, :owner, handle.server})
      end
    end
  end

  defp nested_transaction(handle, server, fun) do
    try do
      apply_to(fun, handle)
    else
      value ->
        if Process.get({__MODULE__, server}).failed?, do: {:error, :rollback}, else: {:ok, value}
    catch
      :throw, {__MODULE__, :rollback, ^server, reason} ->
        fail(server)
        {:error, reason}

      kind, reason ->
        fail(server)
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  defp apply_to(fun, _handle) when is_function(fun, 0), do: fun.()
  defp apply_to(fun, handle) when is_function(fun, 1), do: fun.(handle)

  defp finish(server, ref, value) do
    case Process.get({__MODULE__, server}) do
      %{failed?: true} ->
        undo(server, ref)
        {:error, :rollback}

      %{begun?: false} ->
        leave(server, ref, :clean)
        {:ok, value}

      %{connection: connection, lease: lease} ->
        case Native.sqlite_commit(connection, lease) do
          :ok ->
            leave(server, ref, :clean)
            {:ok, value}

          {:error, error} ->
            leave(server, ref, :dirty)
            {:error, Error.from_native(error)}
        end
    end
  end

  defp undo(server, ref) do
    case Process.get({__MODULE__, server}) do
      %{begun?: false} ->
        leave(server, ref, :clean)

      %{connection: connection, lease: lease} ->
        rolled_back = Native.sqlite_rollback(connection, lease)
        leave(server, ref, if(rolled_back == :ok, do: :clean, else: :dirty))
    end
  end

  defp leave(server, ref, condition) do
    Process.delete({__MODULE__, server})
    checkin(server, ref, condition)
  end

  defp fail(server) do
    transaction = Process.get({__MODULE__, server})
    Process.put({__MODULE__, server}, %{transaction | failed?: true})
  end

  # After a panic nobody knows what is open.
  defp condition(:panic), do: :dirty
  defp condition(_error), do: :clean

  defp in_transaction(%__MODULE__{server: name}) do
    server = Process.get({__MODULE__, :owner, name}) || GenServer.whereis(name)

    case Process.get({__MODULE__, server}) do
      nil -> nil
      transaction -> {server, transaction}
    end
  end

  # Transactions are known by the owner's pid, so that a name and a pid mean the same one. When the owner was
  # restarted, a transaction that was begun under its name is lost: nothing more may run in it, least of
  # all on the connection of the new owner, where it would be durable by itself.
  defp whereis(%__MODULE__{server: server}) do
    case {GenServer.whereis(server), Process.get({__MODULE__, :owner, server})} do
      {pid, owner} when is_pid(pid) and owner in [nil, pid] -> {:ok, pid}
      {_, nil} -> closed()
      {_, _} -> {:error, %Error{kind: :closed, message: "the database was restarted"}}
    end
  end

  defp checkout(server, opts) do
    timeout = Keyword.get(opts, :timeout, @timeout)
    queue_timeout = Keyword.get(opts, :queue_timeout, @timeout)

    # The owner answers in time, or the caller could leave a request behind that is granted later.
    GenServer.call(server, {:checkout, timeout, queue_timeout}, :infinity)
  catch
    :exit, _reason -> closed()
  end

  defp checkin(server, ref, condition), do: GenServer.cast(server, {:checkin, ref, condition})

  defp closed, do: {:error, %Error{kind: :closed, message: "the database is not running"}}

  @impl true
  def init(opts) do
    # So that terminate/2 closes the connection when a supervisor stops us.
    Process.flag(:trap_exit, true)

    with {:ok, connection} <-
           Native.sqlite_open(opts[:path], opts[:synchronous], opts[:busy_timeout]),
         {:ok, lease} <- Native.sqlite_reset(connection) do
      {:ok, %{connection: connection, lease: lease, holder: nil, waiting: :queue.new()}}
    else
      {:error, error} -> {:stop, Error.from_native(error)}
    end
  end

  @impl true
  def handle_call({:checkout, timeout, queue_timeout}, {pid, _tag} = from, state) do
    client = %{ref: Process.monitor(pid), from: from, timeout: timeout, timer: nil}

    case state do
      %{holder: nil} ->
        {:noreply, lend(state, client)}

      %{waiting: waiting} ->
        client = start_timer(client, :waited, queue_timeout)
        {:noreply, %{state | waiting: :queue.in(client, waiting)}}
    end
  end

  @impl true
  def handle_cast({:checkin, ref, condition}, %{holder: %{ref: ref} = holder} = state) do
    forget(holder)
    state = %{state | holder: nil}
    state = if condition == :dirty, do: take_back(state), else: state
    {:noreply, lend_next(state)}
  end

  # From a caller whose time was over.
  def handle_cast({:checkin, _ref, _condition}, state), do: {:noreply, state}

  @impl true
  def handle_info({:DOWN, ref, :process, _pid, _reason}, %{holder: %{ref: ref}} = state) do
    forget(state.holder)
    {:noreply, %{state | holder: nil} |> take_back() |> lend_next()}
  end

  def handle_info({:DOWN, ref, :process, _pid, _reason}, state) do
    {_client, state} = stop_waiting(state, ref)
    {:noreply, state}
  end

  def handle_info({:timeout, _timer, {:held, ref}}, %{holder: %{ref: ref}} = state) do
    forget(state.holder)
    {:noreply, %{state | holder: nil} |> take_back() |> lend_next()}
  end

  def handle_info({:timeout, _timer, {:waited, ref}}, state) do
    {client, state} = stop_waiting(state, ref)

    if client do
      message = "waited too long for the connection"
      GenServer.reply(client.from, {:error, %Error{kind: :busy, message: message}})
    end

    {:noreply, state}
  end

  def handle_info(_late, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state), do: Native.sqlite_close(state.connection)

  defp lend(state, client) do
    client = start_timer(client, :held, client.timeout)
    GenServer.reply(client.from, {:ok, client.ref, state.connection, state.lease})
    %{state | holder: client}
  end

  defp lend_next(%{waiting: waiting} = state) do
    case :queue.out(waiting) do
      {{:value, client}, waiting} -> lend(%{state | waiting: waiting}, cancel_timer(client))
      {:empty, _waiting} -> state
    end
  end

  # Stops what runs, rolls back, and makes every call of the former holder fail: one may still be
  # in a scheduler's queue.
  defp take_back(state) do
    case Native.sqlite_reset(state.connection) do
      {:ok, lease} -> %{state | lease: lease}
      # The supervisor starts us again with a new connection.
      {:error, error} -> exit(Error.from_native(error))
    end
  end

  defp stop_waiting(state, ref) do
    case Enum.split_with(:queue.to_list(state.waiting), &(&1.ref == ref)) do
      {[client], others} ->
        forget(client)
        {client, %{state | waiting: :queue.from_list(others)}}

      {[], _others} ->
        {nil, state}
    end
  end

  defp forget(client) do
    cancel_timer(client)
    Process.demonitor(client.ref, [:flush])
  end

  defp start_timer(client, _event, :infinity), do: client

  defp start_timer(client, event, timeout) do
    %{client | timer: :erlang.start_timer(timeout, self(), {event, client.ref})}
  end

  defp cancel_timer(%{timer: nil} = client), do: client

  defp cancel_timer(client) do
    :erlang.cancel_timer(client.timer, async: true, info: false)
    %{client | timer: nil}
  end

  defp validate!(opts) do
    opts = Keyword.validate!(opts, [:path, synchronous: :full, busy_timeout: 5_000])

    path =
      case opts[:path] do
        :memory ->
          :memory

        path when is_binary(path) and path != "" ->
          {:file, Path.expand(path)}

        other ->
          raise ArgumentError, "expected :path to be a file or :memory, got: #{inspect(other)}"
      end

    if opts[:synchronous] not in [:full, :normal] do
      raise ArgumentError,
            "expected :synchronous to be :full or :normal, got: #{inspect(opts[:synchronous])}"
    end

    if not (is_integer(opts[:busy_timeout]) and opts[:busy_timeout] >= 0) do
      raise ArgumentError,
            "expected :busy_timeout to be a number of milliseconds, " <>
              "got: #{inspect(opts[:busy_timeout])}"
    end

    %{path: path, synchronous: opts[:synchronous], busy_timeout: opts[:busy_timeout]}
  end

  defimpl Inspect do
    def inspect(%{server: server}, opts) do
      Inspect.Algebra.concat(["#Kith.SQLite<", Inspect.Algebra.to_doc(server, opts), ">"])
    end
  end
end
