defmodule Kith.Test.Postgres.Connection do
  @moduledoc false
  # One connection to PostgreSQL as a value. Messages are framed and read by Debian's erlang-p1-pgsql. Its own process is
  # not used: it knows no unix sockets, dies of a NULL number, and waits for ever for a statement that is refused.

  @compile {:no_warn_undefined, :pgsql_proto}

  defstruct [:socket, :timeout, status: :idle, statements: %{}, count: 0]

  # Prepared statements that are kept. Their texts differ in the number of rows.
  @max_statements 300

  @codes %{
    "22001" => :string_data_right_truncation,
    "22003" => :numeric_value_out_of_range,
    "22021" => :character_not_in_repertoire,
    "23502" => :not_null_violation,
    "23505" => :unique_violation,
    "23514" => :check_violation,
    "25006" => :read_only_sql_transaction,
    "25P02" => :in_failed_sql_transaction,
    "3D000" => :invalid_catalog_name,
    "3F000" => :invalid_schema_name,
    "40001" => :serialization_failure,
    "40P01" => :deadlock_detected,
    "42501" => :insufficient_privilege,
    "42601" => :syntax_error,
    "42703" => :undefined_column,
    "42804" => :datatype_mismatch,
    "42883" => :undefined_function,
    "42P01" => :undefined_table,
    "42P04" => :duplicate_database,
    "42P07" => :duplicate_table,
    "53100" => :disk_full,
    "53300" => :too_many_connections,
    "54000" => :program_limit_exceeded,
    "55P03" => :lock_not_available,
    "57014" => :query_canceled,
    "57P01" => :admin_shutdown,
    "57P02" => :crash_shutdown,
    "57P03" => :cannot_connect_now
  }

  # The types Kith's tables and the tests have, by their numbers in pg_type.
  @types %{
    16 => :boolean,
    17 => :bytes,
    18 => :bytes,
    19 => :bytes,
    20 => 64,
    21 => 16,
    23 => 32,
    25 => :bytes,
    26 => 32,
    28 => 32,
    1042 => :bytes,
    1043 => :bytes,
    2278 => :void
  }

  @driver [:pgsql_proto, :pgsql_util]

  @doc "Whether this machine has the driver."
  def driver?, do: Enum.all?(@driver, &(:code.is_loaded(&1) != false or load(&1)))

  # A newer Erlang than Debian's neither looks where Debian's packages are nor loads what they have compiled.
  defp load(module) do
    with [file | _] <- Path.wildcard("/usr/lib/erlang/lib/p1_pgsql-*/ebin/#{module}.beam"),
         {:ok, {_, abstract_code: {_, forms}}} <-
           :beam_lib.chunks(String.to_charlist(file), [:abstract_code]),
         {:ok, ^module, code} <- :compile.forms(forms),
         {:module, ^module} <- :code.load_binary(module, ~c"pgsql", code),
         do: true,
         else: (_ -> false)
  end

  def connect(options) do
    true = driver?()
    file = Path.join(options[:socket], ".s.PGSQL.#{options[:port]}")

    with {:ok, socket} <-
           :gen_tcp.connect({:local, file}, 0, [:binary, active: false, packet: :raw], 5_000) do
      connection = %__MODULE__{
        socket: socket,
        timeout: Keyword.get(options, :timeout, 15_000)
      }

      startup(connection, options)
    else
      {:error, reason} -> {:error, lost(reason)}
    end
  end

  defp startup(connection, options) do
    parameters =
      for {name, value} <- [user: options[:user], database: options[:database]],
          into: <<3::16, 0::16>>,
          do: "#{name}\0#{value}\0"

    message = parameters <> <<0>>

    with :ok <- send_all(connection, <<byte_size(message) + 4::32, message::binary>>),
         {:ok, %{error: nil}, connection} <- answers(connection) do
      {:ok, connection}
    else
      {:ok, %{error: error}, connection} -> close(connection) && {:error, error}
      {:error, error} -> close(connection) && {:error, error}
    end
  end

  def close(%{socket: socket}) do
    :gen_tcp.send(socket, message(:terminate, []))
    :gen_tcp.close(socket)
  end

  @doc "Whether the server is still there, as far as this side was told."
  def alive?(%{socket: socket}), do: :gen_tcp.recv(socket, 0, 0) == {:error, :timeout}

  @doc "Returns `{result, connection}`. The status of a connection that is lost is `:lost`."
  def query(connection, sql, params) do
    with {:ok, statement, connection} <- prepare(connection, sql, params),
         {:ok, connection, result} <- execute(connection, statement, params) do
      {{:ok, result}, connection}
    else
      {:error, error, connection} ->
        {{:error, error}, %{connection | statements: Map.delete(connection.statements, sql)}}
    end
  end

  defp prepare(%{statements: statements} = connection, sql, params) do
    case statements do
      %{^sql => statement} ->
        {:ok, statement, connection}

      %{} ->
        connection =
          if map_size(statements) < @max_statements, do: connection, else: forget(connection)

        # One without parameters is seldom asked again.
        name = if params == [], do: "", else: "s#{connection.count}"

        messages = [
          message(:parse, {name, sql, []}),
          message(:describe, {:prepared_statement, name})
        ]

        with {:ok, answer, connection} <- exchange(connection, messages) do
          statement = {name, answer.parameters, answer.columns}
          {:ok, statement, remember(connection, sql, statement)}
        end
    end
  end

  defp forget(connection) do
    case exchange(connection, [message(:squery, "DEALLOCATE ALL")], []) do
      {:ok, _, connection} -> %{connection | statements: %{}}
      {:error, _, connection} -> connection
    end
  end

  defp remember(connection, _sql, {"", _, _}), do: connection

  defp remember(connection, sql, statement) do
    statements = Map.put(connection.statements, sql, statement)
    %{connection | statements: statements, count: connection.count + 1}
  end

  defp execute(connection, {name, types, columns}, params) do
    params = encode(types, params)

    messages = [message(:bind, {"", name, params, [:binary]}), message(:execute, {"", 0})]

    with {:ok, answer, connection} <- exchange(connection, messages) do
      rows =
        if columns,
          do: for(row <- Enum.reverse(answer.rows), do: Enum.zip_with(columns, row, &decode/2))

      {:ok, connection, %{rows: rows, num_rows: num_rows(answer.command)}}
    end
  end

  # As strict as Postgrex: a parameter has the type PostgreSQL has found for it.
  defp encode(types, params) do
    if length(types) != length(params),
      do: raise(ArgumentError, "expected #{length(types)} parameters, got #{length(params)}")

    Enum.zip_with(types, params, fn type, param ->
      case {Map.get(@types, type, type), param} do
        {_, nil} ->
          :null

        {:bytes, bytes} when is_binary(bytes) ->
          bytes

        {bits, number} when is_integer(bits) and is_integer(number) ->
          if number in -Integer.pow(2, bits - 1)..(Integer.pow(2, bits - 1) - 1),
            do: number,
            else:
              raise(DBConnection.EncodeError, message: "#{number} does not fit into #{bits} bits")

        {:boolean, boolean} when is_boolean(boolean) ->
          Atom.to_charlist(boolean)

        {type, param} ->
          raise DBConnection.EncodeError,
            message: "#{inspect(param)} is no parameter of type #{inspect(type)}"
      end
    end)
  end

  defp decode(_type, :null), do: nil

  defp decode(type, bytes) do
    case Map.fetch!(@types, type) do
      :bytes -> bytes
      :boolean -> bytes == <<1>>
      :void -> ""
      _bits -> number(bytes)
    end
  end

  defp number(<<number::16-signed>>), do: number
  defp number(<<number::32-signed>>), do: number
  defp number(<<number::64-signed>>), do: number

  defp num_rows(nil), do: 0

  defp num_rows(command) do
    case command |> String.split(" ") |> List.last() |> Integer.parse() do
      {number, ""} -> number
      _ -> 0
    end
  end

  defp exchange(connection, messages, last \\ [:sync]) do
    with :ok <- send_all(connection, messages ++ Enum.map(last, &message(&1, []))),
         {:ok, %{error: nil} = answer, connection} <- answers(connection) do
      {:ok, answer, connection}
    else
      {:ok, %{error: error}, connection} -> {:error, error, connection}
      {:error, error} -> {:error, error, %{connection | status: :lost}}
    end
  end

  defp send_all(%{socket: socket}, messages) do
    with {:error, reason} <- :gen_tcp.send(socket, messages), do: {:error, lost(reason)}
  end

  defp answers(connection) do
    answers(connection, %{rows: [], columns: nil, parameters: [], command: nil, error: nil}, "")
  end

  # Up to the word that the server is ready.
  defp answers(connection, answer, buffer) do
    case next(connection, buffer) do
      {:ok, code, packet, buffer} ->
        {:ok, decoded} = codec().decode_packet(code, packet, true)

        case decoded do
          {:ready_for_query, status} ->
            {:ok, answer, %{connection | status: status}}

          {:data_row, row} ->
            answers(connection, %{answer | rows: [row | answer.rows]}, buffer)

          {:row_description, columns} ->
            answers(connection, %{answer | columns: Enum.map(columns, &elem(&1, 3))}, buffer)

          {:parameter_description, types} ->
            answers(connection, %{answer | parameters: types}, buffer)

          {:command_complete, command} ->
            answers(connection, %{answer | command: command}, buffer)

          {:error_message, fields} ->
            error = error(fields)

            if fields[:severity] in [:FATAL, :PANIC],
              do: {:error, error},
              else: answers(connection, %{answer | error: error}, buffer)

          _other ->
            answers(connection, answer, buffer)
        end

      {:error, reason} ->
        {:error, lost(reason)}
    end
  end

  defp next(_connection, <<code, size::32, rest::binary>>) when byte_size(rest) >= size - 4 do
    length = size - 4
    {:ok, code, binary_part(rest, 0, length), Kith.Case.from(rest, length)}
  end

  defp next(%{socket: socket, timeout: timeout} = connection, buffer) do
    with {:ok, bytes} <- :gen_tcp.recv(socket, 0, timeout), do: next(connection, buffer <> bytes)
  end

  defp message(kind, content), do: codec().encode_message(kind, content)

  # Not named where it is called: Kith does not depend on it.
  defp codec, do: :pgsql_proto

  defp error(fields) do
    code = Map.get(@codes, fields[:code], fields[:code])

    %Postgrex.Error{
      message: nil,
      postgres: %{code: code, message: fields[:message], severity: "#{fields[:severity]}"}
    }
  end

  defp lost(reason),
    do: %DBConnection.ConnectionError{message: "the connection is lost: #{inspect(reason)}"}
end
