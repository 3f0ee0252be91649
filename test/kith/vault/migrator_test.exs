defmodule Kith.Vault.MigratorTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  import Kith.Test.Vaults

  alias Kith.Store.Repo
  alias Kith.Vault
  alias Kith.Vault.Migrator

  @moduletag timeout: 120_000

  # A vault whose current cipher is Kith's, and that reads what the others wrote.
  defp vault(options \\ []) do
    vault!(
      current: :new,
      ciphers: [
        new: kith("new"),
        old: gcm(),
        ctr: ctr(Keyword.merge([unsafe_write: true], options))
      ],
      json_library: Kith.Test.Json
    )
  end

  # A table of users in a database of its own.
  defp table!(vault, options \\ []) do
    kith = start_kith!()
    repo = Kith.Instance.fetch!(kith).repo
    bytes = if store() == :sqlite, do: "BLOB", else: "BYTEA"
    keys = Keyword.get(options, :keys, "id INTEGER PRIMARY KEY")
    table = if store() == :sqlite, do: "users", else: "#{inspect(repo.prefix)}.users"

    sql(
      repo,
      "CREATE TABLE #{table} (#{keys}, email #{bytes}, age #{bytes}, name TEXT#{options[:constraint]})"
    )

    what = [
      table: "users",
      prefix: if(store() == :postgres, do: repo.prefix),
      primary_key: Keyword.get(options, :primary_key, ["id"]),
      fields: [email: {vault, :binary}, age: {vault, :integer}]
    ]

    handle = if store() == :sqlite, do: repo, else: repo.module
    %{repo: repo, handle: handle, table: table, what: what}
  end

  defp sql(repo, sql, params \\ []) do
    case Repo.query(repo, sql, params) do
      {:ok, result} -> result.rows
      {:error, error} -> raise error
    end
  end

  defp insert(%{repo: repo, table: table}, id, email, age) do
    sql(repo, "INSERT INTO #{table} (id, email, age, name) VALUES ($1, $2, $3, 'x')", [
      id,
      blob(email),
      blob(age)
    ])
  end

  defp blob(nil), do: nil
  defp blob(bytes), do: {:blob, bytes}

  defp rows(%{repo: repo, table: table}),
    do: sql(repo, "SELECT id, email, age FROM #{table} ORDER BY id")

  defp fill(db, vault, label, ids) do
    for id <- ids do
      insert(
        db,
        id,
        vault.encrypt!("user#{id}@example.com", label),
        vault.encrypt!("#{id}", label)
      )
    end
  end

  test "upgrades every field, leaves what is empty and what is done, and needs nothing the second time" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :old, 1..120)
    fill(db, vault, :new, 121..130)
    insert(db, 131, nil, nil)
    before = rows(db)

    assert {:ok, report} = Migrator.run(db.handle, db.what, batch: 50)

    assert %{
             rows: 131,
             upgraded: 240,
             already: 20,
             empty: 2,
             refused: 0,
             outdated: 0,
             cursor: [131]
           } = report

    for [id, email, age] <- rows(db), id < 131 do
      assert {:ok, %{current: true}} = Vault.inspect_field(vault, email)
      assert vault.decrypt!(email) == "user#{id}@example.com"
      assert vault.decrypt!(age) == "#{id}"
    end

    after_it = rows(db)
    assert Enum.drop(after_it, 120) == Enum.drop(before, 120)
    assert {:ok, %{upgraded: 0, already: 260}} = Migrator.run(db.handle, db.what)
    assert rows(db) == after_it
    assert {:ok, %{already: 260, outdated: 0, refused: 0}} = Migrator.verify(db.handle, db.what)
  end

  test "a dry run and a verify write nothing, and say what is outdated" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :old, 1..5)
    insert(db, 6, vault.encrypt!("text"), corrupt(vault.encrypt!("6"), 20))
    before = rows(db)

    # Of fields under the current cipher only a verify looks inside.
    assert {:ok, %{upgraded: 0, outdated: 10, already: 1, refused: 1}} =
             Migrator.run(db.handle, db.what, dry_run: true)

    assert {:ok, %{upgraded: 0, outdated: 10, already: 1, refused: 1, refusals: [refusal]}} =
             Migrator.verify(db.handle, db.what)

    assert refusal == %{key: [6], column: "age", reason: :corrupted_state}
    assert rows(db) == before
  end

  test "what does not decrypt or does not parse stays as it is, is reported, and the rest goes on" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :old, 1..3)
    other = vault!(ciphers: [a: gcm(key: <<9::256>>)])
    unknown = vault!(ciphers: [a: gcm(tag: "OTHER")])

    bad = [
      {10, other.encrypt!("wrong key"), vault.encrypt!("not a number", :old),
       [:corrupted_state, :malformed]},
      {11, unknown.encrypt!("unknown tag"), "plain", [:key_not_found, :malformed]},
      {12, corrupt(vault.encrypt!("damaged", :old), 30), <<>>, [:corrupted_state, :malformed]}
    ]

    for {id, email, age, _} <- bad, do: insert(db, id, email, age)
    # One good field in a row with a bad one.
    insert(db, 13, vault.encrypt!("good@example.com", :old), "bad")
    test = self()

    assert {:ok, %{upgraded: 7, refused: 7} = report} =
             Migrator.run(db.handle, db.what, on_refused: &send(test, {:refused, &1}))

    expected =
      for(
        {id, _, _, reasons} <- bad,
        {column, reason} <- Enum.zip(["email", "age"], reasons),
        do: %{key: [id], column: column, reason: reason}
      ) ++
        [%{key: [13], column: "age", reason: :malformed}]

    assert report.refusals == expected
    for refusal <- expected, do: assert_received({:refused, ^refusal})
    stored = Map.new(rows(db), fn [id, email, age] -> {id, {email, age}} end)
    for {id, email, age, _} <- bad, do: assert(stored[id] == {email, age})
    assert {email, "bad"} = stored[13]
    assert vault.decrypt!(email) == "good@example.com"
  end

  test "fields of AES.CTR are upgraded when all of a column parse" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :ctr, 1..30)
    assert {:ok, %{upgraded: 60, refused: 0}} = Migrator.run(db.handle, db.what)
    assert [[1, email, _] | _] = rows(db)
    assert vault.decrypt!(email) == "user1@example.com"
  end

  test "with a wrong key of AES.CTR nothing is rewritten, not even what parses by chance" do
    # Of ten numbers with one digit, some are digits under another key too.
    right = vault()
    wrong = vault(key: <<9::256>>)
    db = table!(wrong)
    for id <- 1..400, do: insert(db, id, nil, right.encrypt!("#{rem(id, 10)}", :ctr))
    by_chance = Enum.count(rows(db), fn [_, _, age] -> wrong.decrypt!(age) =~ ~r/\A\d\z/ end)
    assert by_chance > 0
    before = rows(db)

    assert {:ok, %{upgraded: 0, refused: 400}} = Migrator.run(db.handle, db.what)
    assert rows(db) == before

    assert {:ok, %{outdated: ^by_chance}} =
             Migrator.run(db.handle, db.what, trust_unauthenticated: true, dry_run: true)
  end

  test "text of AES.CTR counts as parsed when it is UTF-8 and passes the check that was given" do
    vault = vault()
    db = table!(vault)
    insert(db, 1, vault.encrypt!(<<0xFF>>, :ctr), nil)
    insert(db, 2, vault.encrypt!("anna@example.com", :ctr), nil)
    insert(db, 3, vault.encrypt!("no address", :ctr), nil)
    assert {:ok, %{upgraded: 0, refused: 3}} = Migrator.run(db.handle, db.what)
    options = [trust_unauthenticated: true, check: fn "email", text -> text =~ "@" end]
    assert {:ok, %{upgraded: 1, refusals: refusals}} = Migrator.run(db.handle, db.what, options)
    assert Enum.map(refusals, & &1.key) == [[1], [3]]
  end

  test "primary keys of several columns, of text and of bytes" do
    vault = vault()
    id = if store() == :sqlite, do: "BLOB", else: "BYTEA"

    db =
      table!(vault,
        keys: "tenant TEXT, id #{id}",
        primary_key: [:tenant, :id],
        constraint: ", PRIMARY KEY (tenant, id)"
      )

    for tenant <- ~w(a b c), n <- 1..7 do
      field = blob(vault.encrypt!("#{tenant}#{n}", :old))

      sql(db.repo, "INSERT INTO #{db.table} VALUES ($1, $2, $3, NULL, 'x')", [
        tenant,
        {:blob, <<n, 255>>},
        field
      ])
    end

    test = self()
    options = [batch: 2, on_progress: &send(test, {:cursor, &1.cursor})]

    cursor = fn tenant, n ->
      [tenant, if(store() == :sqlite, do: {:blob, <<n, 255>>}, else: <<n, 255>>)]
    end

    last = cursor.("c", 7)

    assert {:ok, %{rows: 21, upgraded: 21, cursor: ^last}} =
             Migrator.run(db.handle, db.what, options)

    second = cursor.("a", 2)
    assert_received {:cursor, ^second}
    assert {:ok, %{rows: 19, already: 19}} = Migrator.run(db.handle, db.what, after: second)

    for [tenant, <<n, 255>>, email] <- sql(db.repo, "SELECT tenant, id, email FROM #{db.table}"),
        do: assert(vault.decrypt!(email) == "#{tenant}#{n}")
  end

  test "goes on where it was, from a cursor or from the start, after it was killed" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :old, 1..20)
    stop = fn %{cursor: [id]} -> if id >= 10, do: throw(:killed) end
    assert catch_throw(Migrator.run(db.handle, db.what, batch: 5, on_progress: stop)) == :killed
    assert {:ok, %{already: 20, outdated: 20}} = Migrator.verify(db.handle, db.what)
    assert {:ok, %{rows: 5, upgraded: 10}} = Migrator.run(db.handle, db.what, after: [15])
    assert {:ok, %{rows: 20, upgraded: 10, already: 30}} = Migrator.run(db.handle, db.what)
  end

  test "a row that changes between the page and its turn is upgraded as it is then" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :old, 1..3)

    # Another writer, while the first row of the page is worked on.
    write = fn "email", "user1@example.com" ->
      if Process.put(:written, true) == nil do
        Task.async(fn ->
          # SQLite's writer waits until the row is done; PostgreSQL's rows are apart.
          for id <- [2, 3] do
            new =
              if id == 2,
                do: vault.encrypt!("changed@example.com", :old),
                else: vault.encrypt!("done@example.com")

            sql(db.repo, "UPDATE #{db.table} SET email = $1 WHERE id = $2", [{:blob, new}, id])
          end
        end)
        |> then(fn task ->
          if store() == :postgres, do: Task.await(task), else: Process.put(:task, task)
        end)
      end

      true
    end

    check = fn
      "email", "user1@example.com" = text -> write.("email", text)
      _, _ -> true
    end

    assert {:ok, %{upgraded: upgraded, refused: 0}} =
             Migrator.run(db.handle, db.what, check: check)

    if task = Process.get(:task), do: Task.await(task)
    assert upgraded in 5..6
    assert {:ok, %{refused: 0}} = Migrator.verify(db.handle, db.what)
    emails = for [_, email, _] <- rows(db), do: vault.decrypt!(email)
    assert emails == ["user1@example.com", "changed@example.com", "done@example.com"]
  end

  test "traffic that goes on meanwhile loses nothing" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :old, 1..60)

    writers =
      for writer <- 1..3 do
        Task.async(fn ->
          for round <- 1..15 do
            id = rem(round * 7 + writer * 13, 60) + 1
            email = "writer#{writer}-#{round}@example.com"
            label = if rem(round, 2) == 0, do: :old, else: :new

            sql(db.repo, "UPDATE #{db.table} SET email = $1, name = $2 WHERE id = $3", [
              {:blob, vault.encrypt!(email, label)},
              email,
              id
            ])
          end
        end)
      end

    assert {:ok, %{refused: 0}} = Migrator.run(db.handle, db.what, batch: 7)
    Task.await_many(writers, 60_000)
    assert {:ok, %{refused: 0}} = Migrator.run(db.handle, db.what)
    assert {:ok, %{outdated: 0, refused: 0, already: 120}} = Migrator.verify(db.handle, db.what)

    for [name, email] <- sql(db.repo, "SELECT name, email FROM #{db.table}"),
        name != "x",
        do: assert(vault.decrypt!(email) == name)
  end

  test "binds fields to their rows, those under the current cipher too" do
    vault = vault()
    db = table!(vault)
    fill(db, vault, :old, 1..2)
    fill(db, vault, :new, 3..4)
    context = fn column, [id] -> ["users", column, id] end
    assert {:ok, %{upgraded: 8}} = Migrator.run(db.handle, db.what, context: context)
    assert {:ok, %{already: 8, upgraded: 0}} = Migrator.run(db.handle, db.what, context: context)
    assert [[1, anna, _], [2, ben, _] | _] = rows(db)
    assert vault.decrypt!(anna, context: ["users", "email", 1]) == "user1@example.com"
    assert {:error, _} = vault.decrypt(ben, context: ["users", "email", 1])
    assert {:error, _} = vault.decrypt(anna)
  end

  test "a database that fails is an error, and a table that is not there too" do
    vault = vault()
    db = table!(vault)
    what = Keyword.put(db.what, :table, "nobody")
    assert reason(Migrator.run(db.handle, what)) == :storage
  end

  @tag store: :sqlite
  test "tables and options are checked" do
    vault = vault()
    db = table!(vault)

    for {what, message} <- [
          {String, "expected an Ecto schema, or a table with its fields"},
          {[table: "users"], "expected a table with a primary key and encrypted fields"},
          {Keyword.put(db.what, :table, "users; DROP"),
           "expected names of letters, digits and _"},
          {Keyword.put(db.what, :fields, email: {vault, :text}),
           "expected the kind of :email to be one of"},
          {Keyword.put(db.what, :columns, []), "expected an Ecto schema, or :table"}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(message)}/, fn ->
        Migrator.run(db.handle, what)
      end
    end

    for {options, message} <- [
          {[batch: 0], "expected :batch to be an integer from 1 to 1000, got: 0"},
          {[dryrun: true], "unknown option :dryrun, did you mean :dry_run?"},
          {[after: 7], "expected :after to be a list of the values of a primary key"},
          {[check: fn _ -> true end], "expected :check to be a function of 2 arguments"}
        ] do
      assert_raise ArgumentError, message, fn -> Migrator.run(db.handle, db.what, options) end
    end

    assert_raise ArgumentError, ~r/a value for each column/, fn ->
      Migrator.run(db.handle, db.what, after: [1, 2])
    end
  end
end
