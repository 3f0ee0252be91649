use rusqlite::ErrorCode;
use rusqlite::ffi;

/// Why the database refused.
///
/// Messages name tables, columns and SQL, never a value: values travel as parameters, which SQLite
/// does not repeat.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file could not be created or opened.
    #[error("the database file cannot be opened: {0}")]
    CannotOpen(String),
    /// The file is not a SQLite database, or is damaged.
    #[error("the file is not a database, or is damaged")]
    Corrupt,
    /// Another connection held the lock for longer than the busy timeout.
    #[error("the database is locked by another connection")]
    Busy,
    /// The file or its directory cannot be written.
    #[error("the database is read-only")]
    ReadOnly,
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The operating system failed to read or write; the number is SQLite's extended code.
    #[error("reading or writing the database failed (SQLite code {0})")]
    Io(i32),
    /// A statement was stopped from outside.
    #[error("the statement was interrupted")]
    Interrupted,
    /// A constraint refused the change.
    #[error("{0}")]
    Constraint(String),
    /// The SQL is wrong, or asks for something that does not exist.
    #[error("{0}")]
    Sql(String),
    /// A query holds more than one statement.
    #[error("a query is one statement")]
    MultipleStatements,
    /// A parameter of the SQL is not written `$1`, `$2` and so on.
    #[error("parameters are written $1, $2 and so on, got: {0}")]
    ParameterName(String),
    /// The SQL asks for another number of parameters than it was given.
    #[error("expected {expected} parameters, got: {given}")]
    ParameterCount {
        /// The highest number in the SQL.
        expected: usize,
        /// How many came with it.
        given: usize,
    },
    /// A column holds text that is not UTF-8.
    #[error("column {0} holds text that is not UTF-8")]
    NotUtf8(usize),
    /// `BEGIN`, `COMMIT` and their like were sent as SQL.
    #[error("transactions are begun and ended by the driver, not by SQL")]
    TransactionControl,
    /// A transaction was begun inside a transaction.
    #[error("a transaction is open already")]
    TransactionOpen,
    /// A commit without a transaction.
    #[error("no transaction is open")]
    NoTransaction,
    /// SQLite rolled the transaction back by itself after an earlier failure.
    #[error("the transaction was rolled back after an earlier failure")]
    TransactionLost,
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as Driver;

        match error {
            Driver::SqliteFailure(code, message) => from_code(code, message),
            Driver::SqlInputError { error, msg, .. } => from_code(error, Some(msg)),
            Driver::MultipleStatement => Self::MultipleStatements,
            other => Self::Sql(other.to_string()),
        }
    }
}

fn from_code(error: ffi::Error, message: Option<String>) -> Error {
    let message = message.unwrap_or_else(|| error.to_string());

    match error.code {
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Error::CannotOpen(message),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Error::Corrupt,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Error::Busy,
        ErrorCode::ReadOnly => Error::ReadOnly,
        ErrorCode::DiskFull => Error::Full,
        ErrorCode::SystemIoFailure => Error::Io(error.extended_code),
        ErrorCode::OperationInterrupted => Error::Interrupted,
        ErrorCode::ConstraintViolation => Error::Constraint(message),
        _ => Error::Sql(message),
    }
}
