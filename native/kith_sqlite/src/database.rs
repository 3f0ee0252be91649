use std::fmt;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, absolute};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection, InterruptHandle, OpenFlags};

use crate::{Error, Value};

/// The store uses some sixty statements; a fan-out adds one for each number of recipients.
const CACHED_STATEMENTS: usize = 256;

/// Where a database lives.
#[derive(Clone, Copy, Debug)]
pub enum Location<'a> {
    /// In memory, gone with the connection.
    Memory,
    /// In a file, created with mode 0600 when it does not exist. SQLite gives its companions
    /// (`-wal`, `-shm`) the same mode.
    File(&'a Path),
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// The disk. A commit that returned survives a power cut.
    #[default]
    Full,
    /// The operating system. Survives a crash of the program, not of the machine.
    Normal,
}

/// How a database is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What a commit waits for.
    pub synchronous: Synchronous,
    /// How long to wait for another connection's lock.
    pub busy_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The names of the columns; empty for a statement that returns none.
    pub columns: Vec<String>,
    /// The rows, or `None` for a statement that returns none.
    pub rows: Option<Vec<Vec<Value<'static>>>>,
    /// How many rows were returned, or changed when none are returned.
    pub num_rows: u64,
}

/// Stops the statement that runs, from any thread.
pub struct Interrupter(InterruptHandle);

impl Interrupter {
    /// Stops the running statement with [`Error::Interrupted`]; does nothing when none runs.
    pub fn interrupt(&self) {
        self.0.interrupt();
    }
}

impl fmt::Debug for Interrupter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupter")
    }
}

/// One connection to a database.
///
/// It knows whether a transaction was begun. SQLite may end one by itself (a full disk, an
/// interrupt), and later statements would then commit one by one; here they are refused with
/// [`Error::TransactionLost`] until [`Database::rollback`].
pub struct Database {
    connection: Connection,
    transaction: bool,
}

impl Database {
    /// Opens a database, creating the file if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::CannotOpen`] if the file cannot be created, opened or journaled with a write-ahead
    /// log, [`Error::Corrupt`] if it is not a database, [`Error::ReadOnly`], [`Error::Busy`].
    pub fn open(location: Location<'_>, options: Options) -> Result<Self, Error> {
        // Neither URI names nor SQLite's other special names: the path is a path.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_EXRESCODE;

        let connection = match location {
            Location::Memory => Connection::open_in_memory_with_flags(flags)?,
            Location::File(path) => {
                let path = absolute(path).map_err(|error| Error::CannotOpen(error.to_string()))?;
                create_private(&path)?;
                Connection::open_with_flags(path, flags)?
            }
        };

        configure(&connection, location, options)?;

        Ok(Self {
            connection,
            transaction: false,
        })
    }

    /// Runs one statement.
    ///
    /// # Errors
    ///
    /// Any of [`Error`]. A failed statement changes nothing.
    pub fn query(&mut self, sql: &str, parameters: &[Value<'_>]) -> Result<Rows, Error> {
        if is_transaction_control(sql) {
            return Err(Error::TransactionControl);
        }
        self.guarded(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            bind(&mut statement, parameters)?;
            if statement.column_count() == 0 {
                change(connection, &mut statement)
            } else {
                select(&mut statement)
            }
        })
    }

    /// Runs statements that take no parameters, separated by semicolons: a migration.
    ///
    /// # Errors
    ///
    /// Any of [`Error`]. Statements before the failed one have been run; begin a transaction first
    /// if they should not.
    pub fn execute_batch(&mut self, sql: &str) -> Result<(), Error> {
        self.guarded(|connection| Ok(connection.execute_batch(sql)?))
    }

    /// Begins a transaction that may write.
    ///
    /// It takes the write lock now. A transaction that took it with its first write could find
    /// that what it has read is stale, and fail half-way.
    ///
    /// # Errors
    ///
    /// [`Error::TransactionOpen`] inside a transaction, [`Error::Busy`] if another connection holds
    /// the lock for too long.
    pub fn begin(&mut self) -> Result<(), Error> {
        if self.transaction {
            return Err(Error::TransactionOpen);
        }
        self.run("BEGIN IMMEDIATE")?;
        self.transaction = true;
        Ok(())
    }

    /// Commits. A transaction that cannot be committed is rolled back.
    ///
    /// # Errors
    ///
    /// [`Error::NoTransaction`], [`Error::TransactionLost`], or what the disk said.
    pub fn commit(&mut self) -> Result<(), Error> {
        if !self.transaction {
            return Err(Error::NoTransaction);
        }
        if self.connection.is_autocommit() {
            self.transaction = false;
            return Err(Error::TransactionLost);
        }
        match self.run("COMMIT") {
            Ok(()) => {
                self.transaction = false;
                Ok(())
            }
            Err(error) => {
                self.rollback()?;
                Err(error)
            }
        }
    }

    /// Rolls back what is open; does nothing when nothing is.
    ///
    /// # Errors
    ///
    /// What the disk said.
    pub fn rollback(&mut self) -> Result<(), Error> {
        if !self.connection.is_autocommit() {
            self.run("ROLLBACK")?;
        }
        self.transaction = false;
        Ok(())
    }

    /// Whether a transaction was begun and not yet ended.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.transaction
    }

    /// Copies the write-ahead log into the database file and cuts the log to nothing, so that no
    /// earlier image of a page remains in either.
    ///
    /// It does not wait for readers: whoever holds the database would wait along.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if another connection still reads from the log, [`Error::TransactionOpen`]
    /// inside a transaction.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        if self.transaction {
            return Err(Error::TransactionOpen);
        }
        let patience: u32 = self
            .connection
            .query_row("PRAGMA busy_timeout", [], |row| row.get(0))?;
        self.connection.busy_timeout(Duration::ZERO)?;
        let busy: rusqlite::Result<i64> =
            self.connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
        self.connection
            .busy_timeout(Duration::from_millis(patience.into()))?;
        if busy? == 0 { Ok(()) } else { Err(Error::Busy) }
    }

    /// A handle that stops a running statement from another thread.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        Interrupter(self.connection.get_interrupt_handle())
    }

    /// Closes the connection. The last one to a file copies the log and removes it.
    ///
    /// # Errors
    ///
    /// What SQLite said. The connection is gone in any case.
    pub fn close(self) -> Result<(), Error> {
        self.connection.close().map_err(|(_, error)| error.into())
    }

    fn run(&self, sql: &str) -> Result<(), Error> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    fn guarded<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.transaction && self.connection.is_autocommit() {
            return Err(Error::TransactionLost);
        }
        let result = work(&self.connection);
        let open = !self.connection.is_autocommit();

        if !self.transaction && open {
            self.run("ROLLBACK")?;
            return Err(Error::TransactionControl);
        }
        if self.transaction && !open && result.is_ok() {
            return Err(Error::TransactionControl);
        }
        result
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("transaction", &self.transaction)
            .finish_non_exhaustive()
    }
}

/// SQLite would create the file with the process's umask, readable to others on most machines.
fn create_private(path: &Path) -> Result<(), Error> {
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);

    match created {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::CannotOpen(error.to_string())),
    }
}

fn configure(
    connection: &Connection,
    location: Location<'_>,
    options: Options,
) -> Result<(), Error> {
    connection.busy_timeout(options.busy_timeout)?;

    // The first statement that reads the file, so the one that finds out whether it is a database.
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if matches!(location, Location::File(_)) && mode != "wal" {
        return Err(Error::CannotOpen(
            "its file system does not support a write-ahead log".to_owned(),
        ));
    }

    let synchronous = match options.synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Deleted keys must not linger in free space; see the crate's documentation. This pragma
    // answers with its new value.
    let _: i64 = connection.query_row("PRAGMA secure_delete = ON", [], |row| row.get(0))?;
    // Sorting and statement journals stay in memory, not in a file of their own.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // "text" in double quotes is an identifier, as in PostgreSQL, never a string.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    Ok(())
}

/// Whether a statement would begin or end a transaction. Refused before it runs, because a commit
/// cannot be taken back; what hides behind a comment or in a batch is found afterwards.
fn is_transaction_control(sql: &str) -> bool {
    let word = sql
        .trim_start()
        .split(|character: char| !character.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();

    ["BEGIN", "COMMIT", "END", "RELEASE", "ROLLBACK", "SAVEPOINT"]
        .iter()
        .any(|control| word.eq_ignore_ascii_case(control))
}

/// Binds `$n` to the n-th parameter. SQLite numbers parameters by their first appearance and takes
/// `$1` for a name, so `$2, $1` bound by position would be swapped.
fn bind(statement: &mut CachedStatement<'_>, parameters: &[Value<'_>]) -> Result<(), Error> {
    let mut highest = 0;

    for index in 1..=statement.parameter_count() {
        let name = statement.parameter_name(index).unwrap_or("?");
        let number = parameter_number(name).ok_or_else(|| Error::ParameterName(name.to_owned()))?;
        highest = highest.max(number);
        if let Some(value) = parameters.get(number - 1) {
            statement.raw_bind_parameter(index, value)?;
        }
    }

    if highest == parameters.len() {
        Ok(())
    } else {
        Err(Error::ParameterCount {
            expected: highest,
            given: parameters.len(),
        })
    }
}

fn parameter_number(name: &str) -> Option<usize> {
    let digits = name.strip_prefix('$')?;
    if digits.starts_with(|first: char| first.is_ascii_digit() && first != '0') {
        digits.parse().ok()
    } else {
        None
    }
}

fn change(connection: &Connection, statement: &mut CachedStatement<'_>) -> Result<Rows, Error> {
    let before = connection.total_changes();
    statement.raw_execute()?;
    // SQLite leaves the count of an earlier statement in place after one that changes no rows by
    // nature, such as CREATE TABLE.
    let changed = connection.total_changes() != before;

    Ok(Rows {
        columns: Vec::new(),
        rows: None,
        num_rows: if changed { connection.changes() } else { 0 },
    })
}

fn select(statement: &mut CachedStatement<'_>) -> Result<Rows, Error> {
    let mut rows = Vec::new();
    let mut num_rows = 0;
    let mut width = None;

    let mut cursor = statement.raw_query();
    while let Some(row) = cursor.next()? {
        // Asked after the first step: SQLite may have prepared the statement anew for a changed
        // schema.
        let width = *width.get_or_insert_with(|| row.as_ref().column_count());
        let mut values = Vec::with_capacity(width);
        for column in 0..width {
            values.push(Value::from_column(row.get_ref(column)?).ok_or(Error::NotUtf8(column))?);
        }
        rows.push(values);
        num_rows += 1;
    }
    drop(cursor);

    Ok(Rows {
        columns: statement.column_names().map(str::to_owned).collect(),
        rows: Some(rows),
        num_rows,
    })
}
