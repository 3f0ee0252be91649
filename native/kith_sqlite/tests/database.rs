//! The driver against real files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::borrow::Cow;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kith_sqlite::{Database, Error, Location, Options, Rows, Synchronous, Value};

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "kith-sqlite-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("kith.db")
    }

    fn log(&self) -> PathBuf {
        self.0.join("kith.db-wal")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn memory() -> Database {
    Database::open(Location::Memory, Options::default()).unwrap()
}

fn open(path: &Path) -> Database {
    Database::open(Location::File(path), Options::default()).unwrap()
}

fn impatient(path: &Path) -> Database {
    let options = Options {
        busy_timeout: Duration::from_millis(20),
        ..Options::default()
    };
    Database::open(Location::File(path), options).unwrap()
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn blob(bytes: &[u8]) -> Value<'_> {
    Value::Blob(Cow::Borrowed(bytes))
}

fn run(database: &mut Database, sql: &str) -> Rows {
    database.query(sql, &[]).unwrap()
}

fn only(database: &mut Database, sql: &str, parameters: &[Value<'_>]) -> Value<'static> {
    let rows = database.query(sql, parameters).unwrap().rows.unwrap();
    assert_eq!((rows.len(), rows[0].len()), (1, 1));
    rows[0][0].clone()
}

fn count(database: &mut Database) -> Value<'static> {
    only(database, "SELECT count(*) FROM notes", &[])
}

fn contains(path: &Path, marker: &[u8]) -> bool {
    fs::read(path)
        .unwrap_or_default()
        .windows(marker.len())
        .any(|window| window == marker)
}

#[test]
fn every_kind_of_value_comes_back_as_it_went_in() {
    let mut database = memory();
    let values = [
        Value::Null,
        Value::Integer(0),
        Value::Integer(i64::MAX),
        Value::Integer(i64::MIN),
        Value::Real(0.1),
        text("zażółć \u{0} 👪"),
        text(""),
        blob(&[0, 255, 0]),
        blob(&[]),
    ];
    for value in values {
        assert_eq!(
            only(&mut database, "SELECT $1", std::slice::from_ref(&value)),
            value
        );
    }
}

#[test]
fn text_and_bytes_are_different_values() {
    let mut database = memory();
    run(&mut database, "CREATE TABLE notes (id BLOB)");
    database
        .query("INSERT INTO notes VALUES ($1)", &[blob(b"alice")])
        .unwrap();

    let find = "SELECT count(*) FROM notes WHERE id = $1";
    assert_eq!(
        only(&mut database, find, &[text("alice")]),
        Value::Integer(0)
    );
    assert_eq!(
        only(&mut database, find, &[blob(b"alice")]),
        Value::Integer(1)
    );
}

#[test]
fn parameters_bind_by_their_number_whatever_their_order() {
    let mut database = memory();
    let parameters: Vec<_> = (1..=12).map(Value::Integer).collect();

    let rows = database
        .query(
            "SELECT $2, $1, $12, $1, $3, $4, $5, $6, $7, $8, $9, $10, $11",
            &parameters,
        )
        .unwrap()
        .rows
        .unwrap();
    let expected: Vec<_> = [2, 1, 12, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
        .map(Value::Integer)
        .to_vec();
    assert_eq!(rows, [expected]);
}

#[test]
fn a_wrong_number_of_parameters_is_refused() {
    let mut database = memory();
    for (sql, expected, given) in [
        ("SELECT $1, $2", 2, 1),
        ("SELECT $1", 1, 2),
        ("SELECT 1", 0, 1),
        ("SELECT $3", 3, 1),
    ] {
        assert_eq!(
            database.query(sql, &vec![Value::Null; given]),
            Err(Error::ParameterCount { expected, given })
        );
    }
}

#[test]
fn parameters_in_another_style_are_refused() {
    let mut database = memory();
    for (sql, name) in [
        ("SELECT ?", "?"),
        ("SELECT ?1", "?1"),
        ("SELECT :name", ":name"),
        ("SELECT $name", "$name"),
        ("SELECT $0", "$0"),
        ("SELECT $01", "$01"),
        ("SELECT $1::bigint", "$1::bigint"),
        ("SELECT $99999999999999999999", "$99999999999999999999"),
    ] {
        assert_eq!(
            database.query(sql, &[Value::Null]),
            Err(Error::ParameterName(name.to_owned()))
        );
    }
}

#[test]
fn a_repeated_statement_does_not_see_its_earlier_parameters() {
    let mut database = memory();
    let sql = "SELECT $1, $2";
    database.query(sql, &[text("old"), text("old")]).unwrap();
    assert!(database.query(sql, &[text("new")]).is_err());
    let rows = database.query(sql, &[Value::Null, text("new")]).unwrap();
    assert_eq!(rows.rows.unwrap(), [[Value::Null, text("new")]]);
}

#[test]
fn num_rows_counts_what_was_returned_or_changed() {
    let mut database = memory();
    assert_eq!(
        run(&mut database, "CREATE TABLE notes (id INTEGER)").num_rows,
        0
    );
    let inserted = run(&mut database, "INSERT INTO notes VALUES (1), (2), (3)");
    assert_eq!((inserted.num_rows, inserted.rows), (3, None));
    assert_eq!(
        run(&mut database, "CREATE TABLE others (id INTEGER)").num_rows,
        0
    );
    assert_eq!(
        run(&mut database, "UPDATE notes SET id = 9 WHERE id > 1").num_rows,
        2
    );
    assert_eq!(
        run(&mut database, "UPDATE notes SET id = 9 WHERE id > 99").num_rows,
        0
    );

    let returned = run(&mut database, "DELETE FROM notes WHERE id = 9 RETURNING id");
    assert_eq!(returned.columns, ["id"]);
    assert_eq!((returned.num_rows, returned.rows.unwrap().len()), (2, 2));

    let none = run(
        &mut database,
        "SELECT id AS a, 1 AS b FROM notes WHERE false",
    );
    assert_eq!((none.num_rows, none.rows), (0, Some(vec![])));
    assert_eq!(none.columns, ["a", "b"]);
}

#[test]
fn a_changed_table_is_seen_by_a_cached_statement() {
    let mut database = memory();
    run(&mut database, "CREATE TABLE notes (a)");
    run(&mut database, "INSERT INTO notes VALUES (1)");
    assert_eq!(run(&mut database, "SELECT * FROM notes").columns, ["a"]);
    run(&mut database, "ALTER TABLE notes ADD COLUMN b");
    let rows = run(&mut database, "SELECT * FROM notes");
    assert_eq!(rows.columns, ["a", "b"]);
    assert_eq!(rows.rows.unwrap(), [[Value::Integer(1), Value::Null]]);
}

#[test]
fn compare_and_set_of_several_rows_counts_only_those_that_matched() {
    let mut database = memory();
    run(
        &mut database,
        "CREATE TABLE sessions (id TEXT PRIMARY KEY, generation BIGINT, state BLOB)",
    );
    let upsert = "INSERT INTO sessions (id, generation, state) VALUES ($1, $2, $3), ($4, $5, $6) \
                  ON CONFLICT (id) DO UPDATE SET state = excluded.state, \
                  generation = excluded.generation \
                  WHERE sessions.generation = excluded.generation - 1";
    let mut changed = |first, second| {
        let parameters = [
            text("a"),
            Value::Integer(first),
            blob(b"x"),
            text("b"),
            Value::Integer(second),
            blob(b"y"),
        ];
        database.query(upsert, &parameters).unwrap().num_rows
    };
    assert_eq!(changed(1, 1), 2);
    assert_eq!(changed(2, 2), 2);
    assert_eq!(changed(3, 2), 1);
    assert_eq!(changed(3, 2), 0);
}

#[test]
fn a_query_is_one_statement() {
    let mut database = memory();
    run(&mut database, "CREATE TABLE notes (id INTEGER)");
    assert_eq!(
        database.query("INSERT INTO notes VALUES (1); DROP TABLE notes", &[]),
        Err(Error::MultipleStatements)
    );
    assert_eq!(count(&mut database), Value::Integer(0));
    assert_eq!(run(&mut database, "SELECT 1;  -- the end").num_rows, 1);
    assert!(matches!(database.query("", &[]), Err(Error::Sql(_))));
}

#[test]
fn a_batch_runs_statement_after_statement() {
    let mut database = memory();
    database
        .execute_batch(
            "CREATE TABLE notes (id INTEGER); -- one\n\
             INSERT INTO notes VALUES (1);\n\
             INSERT INTO notes VALUES (2)",
        )
        .unwrap();
    assert_eq!(count(&mut database), Value::Integer(2));
}

#[test]
fn a_failed_batch_in_a_transaction_leaves_nothing() {
    let mut database = memory();
    database.begin().unwrap();
    let batch = "CREATE TABLE notes (id INTEGER); INSERT INTO elsewhere VALUES (1)";
    assert_eq!(
        database.execute_batch(batch),
        Err(Error::Sql("no such table: elsewhere".to_owned()))
    );
    database.rollback().unwrap();
    assert_eq!(
        database.query("SELECT * FROM notes", &[]),
        Err(Error::Sql("no such table: notes".to_owned()))
    );
}

#[test]
fn committed_rows_stay_and_rolled_back_rows_do_not() {
    let directory = Directory::new();
    let mut database = open(&directory.file());
    run(&mut database, "CREATE TABLE notes (id INTEGER)");

    database.begin().unwrap();
    run(&mut database, "INSERT INTO notes VALUES (1)");
    assert!(database.in_transaction());
    database.commit().unwrap();
    assert!(!database.in_transaction());

    database.begin().unwrap();
    run(&mut database, "INSERT INTO notes VALUES (2)");
    database.rollback().unwrap();
    database.rollback().unwrap();

    database.begin().unwrap();
    run(&mut database, "INSERT INTO notes VALUES (3)");
    database.close().unwrap();

    assert_eq!(count(&mut open(&directory.file())), Value::Integer(1));
}

#[test]
fn transactions_cannot_be_begun_or_ended_by_sql() {
    let mut database = memory();
    run(&mut database, "CREATE TABLE notes (id INTEGER)");
    let refused = Err(Error::TransactionControl);

    for sql in ["BEGIN", " savepoint here", "-- comment\nBEGIN IMMEDIATE"] {
        assert_eq!(database.query(sql, &[]), refused);
        assert_eq!(
            database.execute_batch(&format!("{sql}; INSERT INTO notes VALUES (1)")),
            Err(Error::TransactionControl)
        );
    }
    assert_eq!(count(&mut database), Value::Integer(0));

    database.begin().unwrap();
    for sql in ["COMMIT", "End", "\nrollback;"] {
        run(&mut database, "INSERT INTO notes VALUES (1)");
        assert_eq!(database.query(sql, &[]), refused);
    }
    database.rollback().unwrap();
    assert_eq!(count(&mut database), Value::Integer(0));

    assert_eq!(database.commit(), Err(Error::NoTransaction));
    database.begin().unwrap();
    assert_eq!(database.begin(), Err(Error::TransactionOpen));
}

#[test]
fn a_transaction_ended_by_sql_in_disguise_is_over() {
    let mut database = memory();
    run(&mut database, "CREATE TABLE notes (id INTEGER)");

    for sql in ["-- comment\nROLLBACK", "/* comment */ ROLLBACK"] {
        database.begin().unwrap();
        assert_eq!(database.query(sql, &[]), Err(Error::TransactionControl));
        assert_eq!(
            database.query("INSERT INTO notes VALUES (1)", &[]),
            Err(Error::TransactionLost)
        );
        assert_eq!(database.commit(), Err(Error::TransactionLost));
    }
    assert_eq!(count(&mut database), Value::Integer(0));
}

#[test]
fn what_follows_a_transaction_that_sqlite_ended_is_refused() {
    let mut database = memory();
    database
        .execute_batch(
            "CREATE TABLE notes (id INTEGER);\
             CREATE TRIGGER refuse BEFORE INSERT ON notes WHEN new.id = 2 \
             BEGIN SELECT RAISE(ROLLBACK, 'refused'); END",
        )
        .unwrap();

    database.begin().unwrap();
    run(&mut database, "INSERT INTO notes VALUES (1)");
    assert_eq!(
        database.query("INSERT INTO notes VALUES (2)", &[]),
        Err(Error::Constraint("refused".to_owned()))
    );
    assert_eq!(
        database.query("INSERT INTO notes VALUES (3)", &[]),
        Err(Error::TransactionLost)
    );
    assert_eq!(database.commit(), Err(Error::TransactionLost));
    assert_eq!(count(&mut database), Value::Integer(0));
}

#[test]
fn a_commit_that_fails_is_rolled_back() {
    let mut database = memory();
    database
        .execute_batch(
            "CREATE TABLE owners (id INTEGER PRIMARY KEY);\
             CREATE TABLE notes (owner INTEGER REFERENCES owners(id) DEFERRABLE INITIALLY DEFERRED)",
        )
        .unwrap();
    database.begin().unwrap();
    run(&mut database, "INSERT INTO notes VALUES (7)");
    assert_eq!(
        database.commit(),
        Err(Error::Constraint(
            "FOREIGN KEY constraint failed".to_owned()
        ))
    );
    assert!(!database.in_transaction());
    assert_eq!(count(&mut database), Value::Integer(0));
}

#[test]
fn constraints_name_columns_and_no_values() {
    let mut database = memory();
    run(
        &mut database,
        "CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT NOT NULL)",
    );
    let insert = "INSERT INTO notes VALUES ($1, $2)";
    database
        .query(insert, &[text("secret"), text("b")])
        .unwrap();

    let unique = database.query(insert, &[text("secret"), text("b")]);
    assert_eq!(
        unique,
        Err(Error::Constraint(
            "UNIQUE constraint failed: notes.id".to_owned()
        ))
    );
    let missing = database.query(insert, &[text("other"), Value::Null]);
    assert_eq!(
        missing,
        Err(Error::Constraint(
            "NOT NULL constraint failed: notes.body".to_owned()
        ))
    );
}

#[test]
fn double_quotes_name_columns_as_in_postgresql() {
    let mut database = memory();
    assert!(matches!(
        database.query("SELECT \"text\"", &[]),
        Err(Error::Sql(_))
    ));
}

#[test]
fn text_that_is_not_utf8_is_an_error_with_its_column() {
    let mut database = memory();
    assert_eq!(
        database.query("SELECT 1, CAST($1 AS TEXT)", &[blob(&[0xff])]),
        Err(Error::NotUtf8(1))
    );
}

#[test]
fn a_reader_does_not_see_what_is_not_committed() {
    let directory = Directory::new();
    let mut writer = open(&directory.file());
    let mut reader = open(&directory.file());
    run(&mut writer, "CREATE TABLE notes (id INTEGER)");

    writer.begin().unwrap();
    run(&mut writer, "INSERT INTO notes VALUES (1)");
    assert_eq!(count(&mut reader), Value::Integer(0));
    writer.commit().unwrap();
    assert_eq!(count(&mut reader), Value::Integer(1));
}

#[test]
fn a_second_writer_waits_and_then_gives_up() {
    let directory = Directory::new();
    let mut first = open(&directory.file());
    let mut second = impatient(&directory.file());
    run(&mut first, "CREATE TABLE notes (id INTEGER)");

    first.begin().unwrap();
    assert_eq!(second.begin(), Err(Error::Busy));
    assert!(!second.in_transaction());
    assert_eq!(
        second.query("INSERT INTO notes VALUES (1)", &[]),
        Err(Error::Busy)
    );
    first.rollback().unwrap();
    second.begin().unwrap();
    second.commit().unwrap();
}

#[test]
fn a_second_writer_that_waits_gets_its_turn() {
    let directory = Directory::new();
    let path = directory.file();
    run(&mut open(&path), "CREATE TABLE notes (id INTEGER)");

    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut database = open(&path);
                for _ in 0..25 {
                    database.begin().unwrap();
                    run(
                        &mut database,
                        "INSERT INTO notes SELECT coalesce(max(id), 0) + 1 FROM notes",
                    );
                    database.commit().unwrap();
                }
            });
        }
    });
    assert_eq!(
        only(&mut open(&path), "SELECT max(id) FROM notes", &[]),
        Value::Integer(100)
    );
}

#[test]
fn a_statement_is_stopped_from_another_thread() {
    let mut database = memory();
    let interrupter = database.interrupter();
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                   SELECT count(*) FROM n";
    let begun = Instant::now();

    thread::scope(|scope| {
        let query = scope.spawn(|| database.query(endless, &[]));
        while !query.is_finished() {
            interrupter.interrupt();
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(query.join().unwrap(), Err(Error::Interrupted));
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(only(&mut database, "SELECT 1", &[]), Value::Integer(1));
}

#[test]
fn the_file_and_its_companions_are_for_their_owner_only() {
    let directory = Directory::new();
    let mut database = open(&directory.file());
    run(&mut database, "CREATE TABLE notes (id INTEGER)");

    let mut seen = 0;
    for entry in fs::read_dir(&directory.0).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn an_existing_file_keeps_its_mode() {
    let directory = Directory::new();
    drop(open(&directory.file()));
    fs::set_permissions(directory.file(), fs::Permissions::from_mode(0o640)).unwrap();
    drop(open(&directory.file()));
    let mode = fs::metadata(directory.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn special_names_are_only_paths() {
    let directory = Directory::new();
    for name in [":memory:", "file:kith.db?mode=memory"] {
        let path = directory.0.join(name);
        run(&mut open(&path), "CREATE TABLE notes (id INTEGER)");
        assert!(path.exists());
    }
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let directory = Directory::new();
    let bytes = b"these are the minutes of a meeting, not a database".repeat(40);
    fs::write(directory.file(), &bytes).unwrap();

    let opened = Database::open(Location::File(&directory.file()), Options::default());
    assert_eq!(opened.unwrap_err(), Error::Corrupt);
    assert_eq!(fs::read(directory.file()).unwrap(), bytes);
}

#[test]
fn a_damaged_page_is_an_error_when_it_is_read() {
    let directory = Directory::new();
    let mut database = open(&directory.file());
    run(&mut database, "CREATE TABLE notes (body BLOB)");
    for _ in 0..64 {
        database
            .query("INSERT INTO notes VALUES ($1)", &[blob(&[7; 1000])])
            .unwrap();
    }
    database.close().unwrap();

    let mut bytes = fs::read(directory.file()).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(directory.file(), &bytes).unwrap();

    let mut database = open(&directory.file());
    assert_eq!(
        database.query("SELECT body FROM notes", &[]),
        Err(Error::Corrupt)
    );
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let directory = Directory::new();
    let opened = |path: &Path| Database::open(Location::File(path), Options::default());

    assert!(matches!(
        opened(&directory.0.join("missing/kith.db")),
        Err(Error::CannotOpen(_))
    ));
    assert!(matches!(opened(&directory.0), Err(Error::CannotOpen(_))));

    let closed = directory.0.join("closed");
    fs::create_dir(&closed).unwrap();
    drop(open(&closed.join("kith.db")));
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    // Root writes everywhere, so that only other users see the refusal.
    let may_write = fs::write(closed.join("probe"), b"").is_ok();
    if !may_write {
        assert!(matches!(
            opened(&closed.join("new.db")),
            Err(Error::CannotOpen(_))
        ));
        assert!(opened(&closed.join("kith.db")).is_err());
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn the_journal_is_a_log_and_commits_wait_for_the_disk() {
    let directory = Directory::new();
    let mut database = open(&directory.file());
    for (pragma, expected) in [
        ("PRAGMA journal_mode", text("wal")),
        ("PRAGMA synchronous", Value::Integer(2)),
        ("PRAGMA foreign_keys", Value::Integer(1)),
        ("PRAGMA secure_delete", Value::Integer(1)),
        ("PRAGMA temp_store", Value::Integer(2)),
        ("PRAGMA busy_timeout", Value::Integer(5000)),
    ] {
        assert_eq!(only(&mut database, pragma, &[]), expected, "{pragma}");
    }

    let options = Options {
        synchronous: Synchronous::Normal,
        ..Options::default()
    };
    let mut fast = Database::open(Location::File(&directory.file()), options).unwrap();
    assert_eq!(
        only(&mut fast, "PRAGMA synchronous", &[]),
        Value::Integer(1)
    );
}

#[test]
fn replaced_and_deleted_bytes_are_gone_after_a_checkpoint() {
    let directory = Directory::new();
    let mut database = open(&directory.file());
    let (replaced, deleted, kept) = (
        b"the key that was replaced".as_slice(),
        b"the key that was deleted".as_slice(),
        b"the key that is current".as_slice(),
    );
    run(
        &mut database,
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, body BLOB)",
    );
    let insert = "INSERT INTO notes VALUES ($1, $2)";
    database
        .query(insert, &[Value::Integer(1), blob(replaced)])
        .unwrap();
    database
        .query(insert, &[Value::Integer(2), blob(deleted)])
        .unwrap();
    database.checkpoint().unwrap();
    assert!(contains(&directory.file(), replaced) && contains(&directory.file(), deleted));

    database
        .query(
            "UPDATE notes SET body = $2 WHERE id = $1",
            &[Value::Integer(1), blob(kept)],
        )
        .unwrap();
    run(&mut database, "DELETE FROM notes WHERE id = 2");
    // What the documentation warns of: until the checkpoint, the file is as it was.
    assert!(contains(&directory.file(), replaced) && contains(&directory.file(), deleted));

    database.checkpoint().unwrap();
    assert!(contains(&directory.file(), kept));
    for path in [directory.file(), directory.log()] {
        assert!(!contains(&path, replaced) && !contains(&path, deleted));
    }
}

#[test]
fn a_checkpoint_says_when_a_reader_holds_the_log() {
    let directory = Directory::new();
    let mut database = impatient(&directory.file());
    run(&mut database, "CREATE TABLE notes (id INTEGER)");

    let mut reader = open(&directory.file());
    reader.begin().unwrap();
    assert_eq!(count(&mut reader), Value::Integer(0));
    reader.commit().unwrap();
    run(&mut database, "INSERT INTO notes VALUES (1)");
    database.checkpoint().unwrap();

    reader.begin().unwrap();
    assert_eq!(count(&mut reader), Value::Integer(1));
    // Without waiting, but only this once.
    assert_eq!(database.checkpoint(), Err(Error::Busy));
    assert_eq!(
        only(&mut database, "PRAGMA busy_timeout", &[]),
        Value::Integer(20)
    );
    assert_eq!(reader.checkpoint(), Err(Error::TransactionOpen));
    reader.rollback().unwrap();
    database.checkpoint().unwrap();
}
