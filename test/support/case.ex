defmodule Kith.Case do
  @moduledoc false
  # Instances with a name and a database of their own, so that every test runs beside the others.
  use ExUnit.CaseTemplate

  alias Kith.Test.{Postgres, PostgresRepo}

  using do
    quote do
      import Kith.Case
    end
  end

  # Where the rows of a test are, see Kith.Test.Stores. Instances are started by the process of the test.
  setup context do
    Process.put(__MODULE__, Map.get(context, :store, :sqlite))
    :ok
  end

  # An application that depends on it starts it. Here nobody does.
  setup_all do
    if Code.ensure_loaded?(:telemetry), do: {:ok, _} = Application.ensure_all_started(:telemetry)
    :ok
  end

  @key Base.decode64!("a2l0aCB0ZXN0IGtleS1lbmNyeXB0aW9uIGtleSAwMSE=")

  @doc "Starts an instance and returns its name. Takes the options of Kith."
  def start_kith!(options \\ []) do
    name = Keyword.get_lazy(options, :name, &make_ref/0)
    start_supervised!({Kith, options |> defaults() |> Keyword.put(:name, name)}, id: name)
    name
  end

  @doc "Stops an instance as an operator does."
  def stop_kith!(name), do: :ok = stop_supervised(name)

  @doc "Options with a fresh database and a key for tests."
  def defaults(options \\ []) do
    options =
      options
      |> Keyword.put_new(:keys, current: {"test", {:key, @key}})
      # A pass in the middle of a test would be in its way.
      |> Keyword.put_new(:maintenance_interval, :off)

    cond do
      options[:repo] -> options
      store() == :postgres -> postgres(options)
      true -> sqlite(options)
    end
  end

  @doc "What the test at hand runs on, `:sqlite` or `:postgres`."
  def store, do: Process.get(__MODULE__, :sqlite)

  defp sqlite(options) do
    options
    |> Keyword.put_new_lazy(:database, fn -> Path.join(tmp_dir!(), "kith.db") end)
    |> Keyword.put_new(:synchronous, :normal)
  end

  # Each database is a schema, named after what would be its file.
  defp postgres(options) do
    {database, options} = Keyword.pop_lazy(options, :database, &tmp_dir!/0)
    prefix = "kith_" <> Base.encode16(:erlang.md5(database), case: :lower)
    start_postgres!()
    :ok = Kith.Migration.run(PostgresRepo, prefix: prefix)
    Keyword.merge(options, repo: PostgresRepo, prefix: prefix)
  end

  # One pool for all tests of the run.
  defp start_postgres! do
    patience = [pool_size: 20, timeout: 60_000, queue_timeout: 60_000]

    # A name is taken before the pool behind it is ready.
    :global.trans({__MODULE__, self()}, fn ->
      case PostgresRepo.start_link(Postgres.address(Postgres.cluster()) ++ patience) do
        {:ok, pid} -> Process.unlink(pid)
        {:error, {:already_started, _pid}} -> :ok
      end
    end)
  end

  @doc "A folder of its own that goes with the test."
  def tmp_dir! do
    path =
      Path.join(
        System.tmp_dir!(),
        "kith-test-#{System.unique_integer([:positive])}-#{System.pid()}"
      )

    File.mkdir_p!(path)
    on_exit(fn -> remove(path, 100) end)
    path
  end

  # An instance nobody waits for writes its mark while it ends.
  defp remove(path, attempts) do
    with {:error, _, _} when attempts > 0 <- File.rm_rf(path) do
      Process.sleep(10)
      remove(path, attempts - 1)
    end
  end

  @doc "Registers each user."
  def register!(name, users), do: Enum.each(users, &Kith.register!(name, &1))

  @doc "Two registered users with a session in which both have spoken."
  def converse!(name, a, b) do
    register!(name, [a, b])
    "hello" = send!(name, a, b, "hello")
    "hi" = send!(name, b, a, "hi")
    "well" = send!(name, a, b, "well")
    :ok
  end

  @doc "Encrypts and decrypts one message."
  def send!(name, from, to, plaintext),
    do: Kith.decrypt!(name, to, encrypt_one!(name, from, to, plaintext))

  @doc "Waits until it is so, and fails when it does not come to that in half a minute."
  def eventually(fun, tries \\ 1_500) do
    cond do
      fun.() -> :ok
      tries == 0 -> ExUnit.Assertions.flunk("it did not come to that")
      true -> Process.sleep(20) && eventually(fun, tries - 1)
    end
  end

  @doc "Encrypts a message for the one device its recipient has."
  def encrypt_one!(name, from, to, plaintext) do
    [envelope] = Kith.encrypt!(name, from, to, plaintext)
    envelope
  end

  @doc "What of a message must not be seen twice: its ratchet key and its counter."
  def header(%{type: type, body: body}) do
    {:ok, header} = Kith.Native.message_inspect(type, body)
    {header.ratchet_key, header.counter}
  end

  @doc "The reason of an error."
  def reason({:error, %Kith.Error{reason: reason}}), do: reason
  def reason(other), do: other

  @doc "Runs SQL on the database of an instance."
  def sql!(name, sql, params \\ []) do
    repo = Kith.Instance.fetch!(name).repo
    sql = String.replace(sql, ~r/\b(?<!\.)(signal_|signed_|message_encryption)/, "kith.\\1")

    case Kith.Store.Repo.query(repo, sql, params) do
      {:ok, result} -> result.rows || result.num_rows
      {:error, error} -> raise error
    end
  end

  @doc "Runs a function in a transaction of an instance's database that is rolled back, and returns what it returned."
  def undone!(name, fun) do
    result =
      case Kith.Instance.fetch!(name).repo do
        %Kith.SQLite{} = repo ->
          Kith.SQLite.transaction(repo, fn -> Kith.SQLite.rollback(repo, fun.()) end)

        %{module: repo} ->
          repo.transaction(fn -> repo.rollback(fun.()) end)
      end

    {:error, result} = result
    result
  end

  @doc "Every row of every table of Kith, to compare before and after."
  def dump(name) do
    for table <-
          ~w(signal_accounts signal_identity_keys signal_prekeys signal_sessions
                    signal_braids signal_archived_sessions signal_session_entries signal_base_keys
                    signal_threads signal_archived_messages),
        into: %{} do
      {table, Enum.sort(sql!(name, "SELECT * FROM #{table}"))}
    end
  end

  @session_tables ~w(signal_sessions signal_braids signal_archived_sessions signal_session_entries)

  @doc "The sessions of a user with all that belongs to them, as rows to put back."
  def rows_of(kith, user) do
    for table <- @session_tables do
      columns =
        for [_, name, type | _] <- sql!(kith, "PRAGMA table_info(#{table})"), do: {name, type}

      {table, columns, sql!(kith, "SELECT * FROM #{table} WHERE user_id = $1", [user])}
    end
  end

  @doc "Puts the sessions of a user back to what they were."
  def put_back(kith, user, tables) do
    for {table, columns, rows} <- tables do
      sql!(kith, "DELETE FROM #{table} WHERE user_id = $1", [user])

      for row <- rows do
        values = for {value, {_, type}} <- Enum.zip(row, columns), do: param(value, type)
        places = Enum.map_join(1..length(values), ", ", &"$#{&1}")
        sql!(kith, "INSERT INTO #{table} VALUES (#{places})", values)
      end
    end
  end

  defp param(nil, _type), do: nil
  defp param(value, "BLOB"), do: {:blob, value}
  defp param(value, _type), do: value

  @doc "How many keys of skipped messages are stored."
  def skipped_keys(name) do
    [[count]] =
      sql!(name, "SELECT COUNT(*) FROM signal_session_entries WHERE length(entry_group) = 33")

    count
  end

  @doc "An identity key pair as Signal's own library serializes it, and its public half."
  def identity_key_pair do
    {public, private} = :crypto.generate_key(:ecdh, :x25519)
    {<<0x0A, 33, 5, public::binary, 0x12, 32, private::binary>>, <<5, public::binary>>}
  end

  @doc "Changes one byte of a binary."
  def corrupt(binary, position, mask \\ 1) do
    before = binary_part(binary, 0, position)
    <<byte, rest::binary>> = from(binary, position)
    <<before::binary, Bitwise.bxor(byte, mask), rest::binary>>
  end

  @doc "A value whose type the compiler does not see, for a call that has a wrong one."
  def dynamic(value), do: :persistent_term.get({__MODULE__, :none}, value)

  # Elixir's newest versions want a pin inside size(), which its older ones do not know.
  @doc "What is behind the first bytes of a binary."
  def from(binary, position), do: binary_part(binary, position, byte_size(binary) - position)
end
