defmodule Kith.Vault.Migrator do
  @moduledoc ~S"""
  Brings the encrypted fields of a table under the current cipher, row by row, while the application goes on.

      Kith.Vault.Migrator.verify(MyApp.Repo, MyApp.User)
      Kith.Vault.Migrator.run(MyApp.Repo, MyApp.User, dry_run: true)
      Kith.Vault.Migrator.run(MyApp.Repo, MyApp.User)
      #=> {:ok, %{rows: 1_200, upgraded: 2_396, already: 0, outdated: 0, refused: 4, empty: 0, cursor: [1_200], refusals: [...]}}

  After a new cipher was made the current one, and after a move from Cloak. It takes a release: no Mix is needed,
  `mix kith.vault.migrate` is only around it.

      bin/my_app eval 'Ecto.Migrator.with_repo(MyApp.Repo, &Kith.Vault.Migrator.run(&1, MyApp.User))'

  The repository is an `Ecto.Repo` on PostgreSQL, or the handle of a `Kith.SQLite`.

  ## What is upgraded

  Of an Ecto schema, every field whose type is one of `Kith.Ecto`, under the label of the type. Without a schema, what is said:

      Kith.Vault.Migrator.run(repo, [
        table: "users",
        primary_key: ["id"],
        fields: [email: {MyApp.Vault, :binary}, birthday: {MyApp.Vault, :date}]
      ])

  with `:prefix` for a schema of PostgreSQL, and for each column the vault and the kind of its plaintext: `:binary`, `:integer`, `:float`,
  `:decimal`, `:date`, `:time`, `:datetime`, `:naive_datetime`, `:map`, `:integer_list` or `:string_list`. The primary key may have
  several columns. The names of tables and columns are letters, digits and `_`.

  ## What is refused

  A field is rewritten only if it was decrypted and its plaintext is one of its type; what was written is decrypted again before the
  transaction ends. Everything else stays as it is, is counted as `:refused`, and the rest goes on. Why, is in the refusal: the
  `:reason` of `t:Kith.Error.t/0`.

  AES.CTR is not authenticated: under a wrong key its fields become other bytes, and of short ones some parse by chance. So such fields are
  read once before anything is written, and where **one** of a column and label does not parse, all of them are refused. Text must be UTF-8
  to count as parsed. If you know the key is right and single fields are damaged, `trust_unauthenticated: true` refuses only these. A `:check` says
  more of what your plaintexts are.

  ## How it goes on beside traffic

  Pages of rows are read in the order of the primary key. Each row that needs it is locked and read again in a transaction of its own,
  and written only if it is still what was read. The time stamps of the row stay. Nodes that run with the configuration of before must be able to decrypt with
  the new cipher: configure it everywhere first, make it `:current` then, upgrade last, and `verify/3` before the old cipher is taken away.

  What is done needs no doing again, so after a crash call it again; `:after` with the `:cursor` of the last progress saves reading from the
  start. It can run on several nodes; they would do the same work.

  ## Options

    * `:dry_run` - `true` writes nothing. What would be upgraded is counted as `:outdated`.
    * `:batch` - rows of one page, 1 to 1,000. Default 100.
    * `:after` - a cursor, as a report has it: start behind this primary key.
    * `:on_progress` - a function that takes the report so far, after each page.
    * `:on_refused` - a function that takes each refusal, `%{key: [id], column: "email", reason: :corrupted_state}`.
    * `:check` - a function of the column and the plaintext, `true` if it is plausible.
    * `:trust_unauthenticated` - see above.
    * `:context` - a function of the column and the list of the primary key's values, that returns the context a field is to be bound to (see
      `Kith.Vault`). Fields without a context are bound; from then on the application must give it. Not for fields of the types of `Kith.Ecto`, which
      cannot give one.

  Telemetry: `[:kith, :vault, :migrate]`, see `Kith.Telemetry`.
  """

  alias Kith.{Error, Telemetry, Validation, Vault}
  alias Kith.Store.Repo
  alias Kith.Vault.Encoding

  @attempts 5
  # Of a whole table that does not decrypt, the first ones are enough to see why.
  @kept 100

  @typedoc """
  What was done. Fields are counted: `:upgraded` by this run, `:already` under the current cipher, `:outdated` under another one and left so
  (dry run and verify), `:refused`, and `:empty` ones that are NULL. `:refusals` are the first 100 of the refused.
  """
  @type report :: %{
          rows: non_neg_integer,
          upgraded: non_neg_integer,
          already: non_neg_integer,
          outdated: non_neg_integer,
          refused: non_neg_integer,
          empty: non_neg_integer,
          cursor: nil | [term],
          refusals: [refusal]
        }

  @type refusal :: %{key: [term], column: String.t(), reason: Error.reason()}

  @doc """
  Upgrades the rows of a table, see above.

  Errors: `:storage`, when the database fails; what was upgraded stays. Raises `ArgumentError` for a schema without encrypted fields and
  for wrong options.
  """
  @spec run(module | Kith.SQLite.t(), module | keyword, keyword) ::
          {:ok, report} | {:error, Error.t()}
  def run(repo, table, options \\ []) do
    mode = if options!(options)[:dry_run], do: :dry_run, else: :upgrade
    start(repo, table, options, mode)
  end

  @doc """
  Decrypts every field of a table and writes nothing.

  `:already` counts those that are well and under the current cipher, `:outdated` those that are well and under another. When both `:outdated` and
  `:refused` are 0, no other cipher is needed for this table. Takes the options of `run/3`, and has its errors.
  """
  @spec verify(module | Kith.SQLite.t(), module | keyword, keyword) ::
          {:ok, report} | {:error, Error.t()}
  def verify(repo, table, options \\ []), do: start(repo, table, options, :verify)

  defp start(repo, table, options, mode) do
    options = options!(options)
    table = table!(table)

    run = %{
      repo: Repo.new(repo, table.prefix),
      table: table,
      mode: mode,
      options: options,
      suspect: MapSet.new()
    }

    metadata = %{table: table.name, mode: mode}

    Telemetry.span([:kith, :vault, :migrate], metadata, fn ->
      result =
        with {:ok, suspect} <- suspect(run),
             do: pages(%{run | suspect: suspect}, options[:after], report(), &row/3)

      counts = with {:ok, report} <- result, do: counts(report), else: (_ -> counts(report()))
      {result, counts, Telemetry.outcome(result)}
    end)
  end

  defp report,
    do: %{
      rows: 0,
      upgraded: 0,
      already: 0,
      outdated: 0,
      refused: 0,
      empty: 0,
      cursor: nil,
      refusals: []
    }

  defp counts(report), do: Map.drop(report, [:cursor, :refusals])

  ## Pages

  defp pages(run, cursor, report, fun) do
    with {:ok, rows} <- page(run, cursor),
         {:ok, report} <- rows(run, rows, report, fun) do
      if rows != [], do: progress(run, report)

      if length(rows) < run.options[:batch],
        do: {:ok, report},
        else: pages(run, report.cursor, report, fun)
    end
  end

  defp rows(run, rows, report, fun) do
    Enum.reduce_while(rows, {:ok, report}, fn {key, _values} = row, {:ok, report} ->
      case fun.(run, row, report) do
        {:ok, report} -> {:cont, {:ok, %{report | rows: report.rows + 1, cursor: key}}}
        error -> {:halt, error}
      end
    end)
  end

  defp progress(run, report) do
    metadata = %{table: run.table.name, mode: run.mode}
    Telemetry.vault_migration(:progress, counts(report), metadata)
    if run.options[:on_progress], do: run.options[:on_progress].(report)
  end

  defp page(run, cursor) do
    {where, params} = behind(run.table, cursor)

    sql =
      "SELECT #{columns(run)} FROM #{name(run.table)}#{where} " <>
        "ORDER BY #{keys(run.table)} LIMIT #{run.options[:batch]}"

    Repo.transaction(run.repo, fn ->
      {:ok, run.repo |> Repo.rows(sql, params) |> Enum.map(&split(run, &1))}
    end)
  end

  defp behind(_table, nil), do: {"", []}

  defp behind(table, cursor) do
    if length(cursor) != length(table.keys),
      do:
        raise(ArgumentError, "expected :after to have a value for each column of the primary key")

    {" WHERE (#{keys(table)}) > (#{places(1, cursor)})", cursor}
  end

  # SQLite says bytes and text alike, and compares them as different.
  defp columns(run) do
    types =
      if Repo.dialect(run.repo) == :sqlite,
        do: Enum.map(run.table.keys, &"typeof(#{quoted(&1)})"),
        else: []

    Enum.join(types ++ [keys(run.table), fields(run.table)], ", ")
  end

  defp split(run, row) do
    size = length(run.table.keys)

    if Repo.dialect(run.repo) == :sqlite do
      {types, row} = Enum.split(row, size)
      {key, values} = Enum.split(row, size)

      {Enum.zip_with(key, types, fn key, type ->
         if type == "blob", do: {:blob, key}, else: key
       end), values}
    else
      Enum.split(row, size)
    end
  end

  ## Rows

  # Fields that are well enough to be left alone need no lock.
  defp row(run, {key, values}, report) do
    outcomes = outcomes(run, key, values, &glance/4)

    if Enum.any?(outcomes, &match?({_, {:upgrade, _}}, &1)) and run.mode == :upgrade,
      do: upgrade(run, key, report),
      else: {:ok, count(run, key, outcomes, report)}
  end

  defp upgrade(run, key, report) do
    changed =
      Repo.transaction(run.repo, @attempts, fn ->
        case locked(run, key) do
          nil -> {:ok, []}
          values -> {:ok, write(run, key, values)}
        end
      end)

    case changed do
      {:ok, outcomes} ->
        {:ok, count(run, key, outcomes, report)}

      {:error, %Error{reason: :stale}} ->
        outcomes = for field <- run.table.fields, do: {field, {:refused, :stale}}
        {:ok, count(run, key, outcomes, report)}

      error ->
        error
    end
  end

  defp locked(run, key) do
    lock = if Repo.dialect(run.repo) == :postgres, do: " FOR UPDATE", else: ""

    sql =
      "SELECT #{fields(run.table)} FROM #{name(run.table)} " <>
        "WHERE #{equal(run.table.keys, 1)}#{lock}"

    List.first(Repo.rows(run.repo, sql, key))
  end

  defp write(run, key, values) do
    outcomes = outcomes(run, key, values, &examine/4)

    changes =
      for {{field, {:upgrade, new}}, old} <- Enum.zip(outcomes, values),
          do: {field.column, old, new}

    if changes != [], do: update(run, key, changes)
    for {field, outcome} <- outcomes, do: {field, with({:upgrade, _} <- outcome, do: :upgraded)}
  end

  defp update(run, key, changes) do
    columns = Enum.map(changes, &elem(&1, 0))
    {key_size, size} = {length(key), length(changes)}

    set =
      columns
      |> Enum.with_index(1)
      |> Enum.map_join(", ", fn {c, i} -> "#{quoted(c)} = $#{i}" end)

    sql =
      "UPDATE #{name(run.table)} SET #{set} WHERE #{equal(run.table.keys, size + 1)} " <>
        "AND #{equal(columns, size + key_size + 1)}"

    new = for {_, _, bytes} <- changes, do: {:blob, bytes}
    old = for {_, bytes, _} <- changes, do: {:blob, bytes}
    if Repo.execute(run.repo, sql, new ++ key ++ old) != 1, do: raise(Error.new(:stale))
  end

  defp outcomes(run, key, values, fun) do
    for {field, value} <- Enum.zip(run.table.fields, values),
        do: {field, fun.(run, field, key, value)}
  end

  ## Fields

  defp glance(%{mode: :upgrade, options: %{context: nil}}, field, _key, value) do
    case inspected(field, value) do
      :empty -> :empty
      {:ok, %{label: label}} -> if label == target(field), do: :already, else: {:upgrade, nil}
      {:error, error} -> {:refused, error.reason}
    end
  end

  defp glance(run, field, key, value), do: examine(run, field, key, value)

  # What becomes of a field: nothing of it is taken for granted.
  defp examine(run, field, key, value) do
    context = run.options.context && run.options.context.(field.column, plain(key))

    with {:ok, found} <- inspected(field, value),
         {:ok, text, bound} <- opened(field, value, context),
         :ok <- plausible(run, field, found, text) do
      if found.label == target(field) and bound,
        do: :already,
        else: sealed(run, field, context, text)
    else
      :empty -> :empty
      {:error, error} -> {:refused, error.reason}
    end
  end

  defp inspected(_field, nil), do: :empty
  defp inspected(field, value) when is_binary(value), do: Vault.inspect_field(field.vault, value)
  defp inspected(_field, _), do: {:error, Error.new(:malformed)}

  defp opened(field, value, nil) do
    with {:ok, text} <- Vault.attempt(field.vault, value, []), do: {:ok, text, true}
  end

  defp opened(field, value, context) do
    with {:error, _} <- Vault.attempt(field.vault, value, context: context),
         {:ok, text} <- Vault.attempt(field.vault, value, []) do
      {:ok, text, false}
    else
      {:ok, text} -> {:ok, text, true}
      error -> error
    end
  end

  defp plausible(run, field, found, text) do
    cond do
      not field.parses.(text) ->
        {:error, Error.new(:malformed)}

      not found.authenticated and not String.valid?(text) ->
        {:error, Error.new(:malformed)}

      not checked?(run.options.check, field, text) ->
        {:error, Error.new(:malformed)}

      MapSet.member?(run.suspect, {field.column, found.label}) ->
        {:error, Error.new(:corrupted_state)}

      true ->
        :ok
    end
  end

  defp checked?(nil, _field, _text), do: true
  defp checked?(check, field, text), do: check.(field.column, text) == true

  defp sealed(%{mode: :upgrade}, field, context, text) do
    reading = if context == nil, do: [], else: [context: context]
    writing = if field.label == nil, do: reading, else: [label: field.label] ++ reading

    with {:ok, new} <- field.vault.encrypt(text, writing),
         {:ok, ^text} <- Vault.attempt(field.vault, new, reading) do
      {:upgrade, new}
    else
      # A vault that does not read what it writes.
      {:ok, _other} -> {:refused, :corrupted_state}
      {:error, error} -> {:refused, error.reason}
    end
  end

  defp sealed(_run, _field, _context, _text), do: :outdated

  defp target(%{label: nil, vault: vault}), do: Vault.current_label(vault)
  defp target(%{label: label}), do: to_string(label)

  defp count(run, key, outcomes, report) do
    Enum.reduce(outcomes, report, fn
      {field, {:refused, reason}}, report ->
        refusal = %{key: plain(key), column: field.column, reason: reason}
        if run.options.on_refused, do: run.options.on_refused.(refusal)
        kept = if report.refused < @kept, do: report.refusals ++ [refusal], else: report.refusals
        %{report | refused: report.refused + 1, refusals: kept}

      {_field, outcome}, report ->
        Map.update!(report, outcome, &(&1 + 1))
    end)
  end

  defp plain(key), do: Enum.map(key, fn part -> with({:blob, bytes} <- part, do: bytes) end)

  ## What cannot be authenticated

  # {column, label} of which some fields do not parse: then their key is in doubt, and what does parse may do so by chance.
  defp suspect(%{options: %{trust_unauthenticated: true}}), do: {:ok, MapSet.new()}
  defp suspect(%{mode: :verify}), do: {:ok, MapSet.new()}

  defp suspect(run) do
    fields = Enum.filter(run.table.fields, &Vault.unauthenticated?(&1.vault))

    if fields == [] do
      {:ok, MapSet.new()}
    else
      quiet = %{run.options | on_progress: nil, on_refused: nil}
      survey = %{run | table: %{run.table | fields: fields}, options: quiet, mode: :survey}

      with {:ok, report} <-
             pages(survey, nil, Map.put(report(), :suspect, MapSet.new()), &survey/3),
           do: {:ok, report.suspect}
    end
  end

  defp survey(run, {_key, values}, report) do
    found =
      for {field, value} <- Enum.zip(run.table.fields, values),
          is_binary(value),
          {:ok, %{authenticated: false} = found} <- [inspected(field, value)],
          not parsed?(run, field, found, value),
          do: {field.column, found.label}

    {:ok, %{report | suspect: MapSet.union(report.suspect, MapSet.new(found))}}
  end

  defp parsed?(run, field, found, value) do
    with {:ok, text} <- Vault.attempt(field.vault, value, []),
         :ok <- plausible(run, field, found, text) do
      true
    else
      _ -> false
    end
  end

  ## SQL

  defp name(table), do: "kith.#{quoted(table.name)}"
  defp keys(table), do: Enum.map_join(table.keys, ", ", &quoted/1)
  defp fields(table), do: Enum.map_join(table.fields, ", ", &quoted(&1.column))
  defp quoted(name), do: ~s("#{name}")

  defp places(first, list),
    do: list |> Enum.with_index(first) |> Enum.map_join(", ", fn {_, i} -> "$#{i}" end)

  defp equal(columns, first) do
    columns
    |> Enum.with_index(first)
    |> Enum.map_join(" AND ", fn {c, i} -> "#{quoted(c)} = $#{i}" end)
  end

  ## Tables

  defp table!(schema) when is_atom(schema) do
    if not (Code.ensure_loaded?(schema) and function_exported?(schema, :__schema__, 2)),
      do: raise(ArgumentError, "expected an Ecto schema, or a table with its fields")

    fields =
      for name <- schema.__schema__(:fields),
          type = encrypted!(schema, name, schema.__schema__(:type, name)) do
        options = type.__kith__()

        %{
          column: to_string(schema.__schema__(:field_source, name)),
          vault: options[:vault],
          label: options[:label],
          parses: &loads?(type, &1)
        }
      end

    if fields == [],
      do:
        raise(ArgumentError, "expected #{inspect(schema)} to have fields with types of Kith.Ecto")

    keys = for key <- schema.__schema__(:primary_key), do: schema.__schema__(:field_source, key)

    checked!(%{
      name: schema.__schema__(:source),
      prefix: schema.__schema__(:prefix),
      keys: Enum.map(keys, &to_string/1),
      fields: fields
    })
  end

  defp table!(table) do
    table = if Keyword.keyword?(table), do: table, else: []

    case Keyword.validate(table, [:table, :primary_key, :fields, prefix: nil]) do
      {:ok, [_ | _] = table} ->
        fields = if Keyword.keyword?(table[:fields]), do: table[:fields], else: []

        checked!(%{
          name: table[:table],
          prefix: table[:prefix],
          keys: Enum.map(List.wrap(table[:primary_key]), &to_string/1),
          fields: Enum.map(fields, &field!/1)
        })

      _ ->
        raise ArgumentError,
              "expected an Ecto schema, or :table, :primary_key, :fields and :prefix"
    end
  end

  defp field!({column, {vault, kind}}) do
    if kind not in Encoding.kinds(),
      do:
        raise(
          ArgumentError,
          "expected the kind of #{inspect(column)} to be one of #{inspect(Encoding.kinds())}"
        )

    parses = &match?({:ok, _}, Encoding.decode(kind, &1, fn -> vault.json_library() end))
    %{column: to_string(column), vault: vault, label: nil, parses: parses}
  end

  defp field!({column, _}),
    do: raise(ArgumentError, "expected #{inspect(column)} of :fields to be {vault, kind}")

  defp loads?(type, text) do
    type.after_decrypt(text)
    true
  rescue
    _ -> false
  end

  defp encrypted!(_schema, _name, type) when is_atom(type),
    do: Code.ensure_loaded?(type) and function_exported?(type, :__kith__, 0) and type

  defp encrypted!(schema, name, {kind, inner}) when kind in [:array, :map] do
    if encrypted!(schema, name, inner),
      do:
        raise(
          ArgumentError,
          "expected #{inspect(name)} of #{inspect(schema)} to be no list or map of encrypted fields, which is not upgraded here"
        )
  end

  defp encrypted!(_schema, _name, _type), do: false

  # They stand in SQL.
  defp checked!(table) do
    names = [table.name | table.keys] ++ Enum.map(table.fields, & &1.column)

    if table.keys == [] or table.fields == [],
      do: raise(ArgumentError, "expected a table with a primary key and encrypted fields")

    case Enum.find(names, &(not (is_binary(&1) and &1 =~ ~r/\A[A-Za-z_][A-Za-z0-9_]{0,62}\z/))) do
      nil ->
        table

      name ->
        raise ArgumentError, "expected names of letters, digits and _, got: #{inspect(name)}"
    end
  end

  defp options!(options) do
    schema = [
      dry_run: {:one_of, [true, false]},
      batch: {:integer, 1..1_000},
      after: {:custom, &cursor/1},
      on_progress: {:custom, &function(:on_progress, &1, 1)},
      on_refused: {:custom, &function(:on_refused, &1, 1)},
      check: {:custom, &function(:check, &1, 2)},
      context: {:custom, &function(:context, &1, 2)},
      trust_unauthenticated: {:one_of, [true, false]}
    ]

    defaults = %{
      dry_run: false,
      batch: 100,
      after: nil,
      on_progress: nil,
      on_refused: nil,
      check: nil,
      context: nil,
      trust_unauthenticated: false
    }

    case Validation.validate(options, schema) do
      :ok -> Map.merge(defaults, Map.new(options))
      {:error, message} -> raise ArgumentError, message
    end
  end

  defp cursor(cursor) when cursor == nil or (is_list(cursor) and cursor != []), do: :ok
  defp cursor(_), do: {:error, "expected :after to be a list of the values of a primary key"}

  defp function(_name, fun, arity) when is_nil(fun) or is_function(fun, arity), do: :ok

  defp function(name, _, arity),
    do: {:error, "expected #{inspect(name)} to be a function of #{arity} arguments"}
end
