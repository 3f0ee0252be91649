//! The embedded database.
//!
//! A connection has one user at a time, whom Elixir chooses (`Kith.SQLite`). The lease says who:
//! `sqlite_reset` takes the connection from its user and makes every call under the old lease fail.
//! Without it, a statement that a killed process left in a scheduler's queue could run inside the
//! next user's transaction.

use std::borrow::Cow;
use std::path::Path;
use std::time::{Duration, Instant};

use kith_sqlite::{Database, Error, Interrupter, Location, Options, Rows, Synchronous, Value};
use parking_lot::{Mutex, MutexGuard};
use rustler::{
    Atom, Binary, Encoder, Env, NewBinary, NifResult, NifUnitEnum, Resource, ResourceArc, Term,
    TermType,
};

use crate::reason::Invalid;
use crate::{atoms, seam};

/// A call finds the connection busy only when its own lease has ended, so it need not wait long.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a reset keeps interrupting what runs. Beyond it the disk itself hangs.
const RESET_TIMEOUT: Duration = Duration::from_secs(30);

/// An interrupt is lost on a statement that has not begun, so it is repeated.
const INTERRUPT_EVERY: Duration = Duration::from_millis(20);

struct Connection {
    // Behind a lock that a panic does not poison.
    leased: Mutex<Option<Leased>>,
    interrupter: Interrupter,
}

struct Leased {
    database: Database,
    lease: u64,
}

#[rustler::resource_impl]
impl Resource for Connection {}

/// Whether a statement stands alone, is the first of a transaction, or belongs to the open one.
#[derive(Clone, Copy, PartialEq, Eq, NifUnitEnum)]
enum Scope {
    Single,
    Begin,
    Join,
}

#[derive(Clone, Copy, NifUnitEnum)]
enum Durability {
    Full,
    Normal,
}

enum Failure {
    Database(Error),
    Parameter(usize),
    Lease,
    Closed,
    Contended,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

mod kinds {
    rustler::atoms! {
        busy,
        cannot_open,
        closed,
        constraint,
        corrupt,
        full,
        interrupted,
        io,
        lease,
        parameter,
        read_only,
        sql,
        transaction,
    }
}

impl Failure {
    fn kind(&self) -> Atom {
        match self {
            Self::Database(error) => match error {
                Error::CannotOpen(_) => kinds::cannot_open(),
                Error::Corrupt => kinds::corrupt(),
                Error::Busy => kinds::busy(),
                Error::ReadOnly => kinds::read_only(),
                Error::Full => kinds::full(),
                Error::Io(_) => kinds::io(),
                Error::Interrupted => kinds::interrupted(),
                Error::Constraint(_) => kinds::constraint(),
                Error::Sql(_) | Error::MultipleStatements | Error::NotUtf8(_) => kinds::sql(),
                Error::ParameterName(_) | Error::ParameterCount { .. } => kinds::parameter(),
                Error::TransactionControl
                | Error::TransactionOpen
                | Error::NoTransaction
                | Error::TransactionLost => kinds::transaction(),
            },
            Self::Parameter(_) => kinds::parameter(),
            Self::Lease => kinds::lease(),
            Self::Closed => kinds::closed(),
            Self::Contended => kinds::busy(),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Database(error) => error.to_string(),
            Self::Parameter(number) => format!(
                "expected parameter ${number} to be nil, a boolean, a 64-bit integer, a float, \
                 UTF-8 text or {{:blob, binary}}"
            ),
            Self::Lease => "the connection was taken back, and the transaction rolled back".into(),
            Self::Closed => "the database is closed".into(),
            Self::Contended => "the connection is in use".into(),
        }
    }
}

impl Encoder for Failure {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        (self.kind(), self.message()).encode(env)
    }
}

/// Opens `:memory` or `{:file, path}`.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_open<'a>(
    env: Env<'a>,
    location: Term<'a>,
    synchronous: Durability,
    busy_timeout_ms: u64,
) -> NifResult<Term<'a>> {
    let path = file_of(location)?;

    Ok(seam::call(env, "sqlite_open", || {
        let location = path.map_or(Location::Memory, |path| Location::File(Path::new(path)));
        let options = Options {
            synchronous: match synchronous {
                Durability::Full => Synchronous::Full,
                Durability::Normal => Synchronous::Normal,
            },
            busy_timeout: Duration::from_millis(busy_timeout_ms),
        };
        let database =
            Database::open(location, options).map_err(|error| Invalid(error.to_string()))?;
        let interrupter = database.interrupter();

        Ok::<_, Invalid>(ResourceArc::new(Connection {
            leased: Mutex::new(Some(Leased { database, lease: 0 })),
            interrupter,
        }))
    }))
}

/// Takes the connection from whoever has it, rolls back what is open, and answers the next lease.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_reset(env: Env<'_>, connection: ResourceArc<Connection>) -> Term<'_> {
    seam::call(env, "sqlite_reset", || {
        let mut guard = connection.seize()?;
        let leased = guard.as_mut().ok_or(Failure::Closed)?;
        leased.lease += 1;
        leased.database.rollback()?;
        seam::fault_point();
        Ok::<_, Failure>(leased.lease)
    })
}

/// Runs one statement with parameters `$1`, `$2` and so on.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_query<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    lease: u64,
    scope: Scope,
    sql: &str,
    parameters: Vec<Term<'a>>,
) -> Term<'a> {
    seam::call(env, "sqlite_query", || {
        let parameters = parameters
            .iter()
            .enumerate()
            .map(|(at, term)| parameter(*term).ok_or(Failure::Parameter(at + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        let rows = connection.with(lease, |database| {
            enter(database, scope)?;
            Ok(database.query(sql, &parameters)?)
        })?;
        Ok::<_, Failure>(Answer(rows))
    })
}

/// Runs statements without parameters, separated by semicolons.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_execute<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    lease: u64,
    scope: Scope,
    sql: &str,
) -> Term<'a> {
    seam::call_unit(env, "sqlite_execute", || {
        connection.with(lease, |database| {
            enter(database, scope)?;
            Ok(database.execute_batch(sql)?)
        })
    })
}

/// Commits the open transaction.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_commit(env: Env<'_>, connection: ResourceArc<Connection>, lease: u64) -> Term<'_> {
    seam::call_unit(env, "sqlite_commit", || {
        connection.with(lease, |database| Ok(database.commit()?))
    })
}

/// Rolls back the open transaction, if there is one.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_rollback(env: Env<'_>, connection: ResourceArc<Connection>, lease: u64) -> Term<'_> {
    seam::call_unit(env, "sqlite_rollback", || {
        connection.with(lease, |database| Ok(database.rollback()?))
    })
}

/// Copies the write-ahead log into the file and cuts it.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_checkpoint(env: Env<'_>, connection: ResourceArc<Connection>, lease: u64) -> Term<'_> {
    seam::call_unit(env, "sqlite_checkpoint", || {
        connection.with(lease, |database| Ok(database.checkpoint()?))
    })
}

/// Closes the connection; what is open is rolled back. Closing twice is no error.
#[rustler::nif(schedule = "DirtyIo")]
fn sqlite_close(env: Env<'_>, connection: ResourceArc<Connection>) -> Term<'_> {
    seam::call_unit(env, "sqlite_close", || {
        let mut guard = connection.seize()?;
        seam::fault_point();
        match guard.take() {
            Some(leased) => Ok::<_, Failure>(leased.database.close()?),
            None => Ok(()),
        }
    })
}

impl Connection {
    fn with<T>(
        &self,
        lease: u64,
        work: impl FnOnce(&mut Database) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut guard = self
            .leased
            .try_lock_for(LOCK_TIMEOUT)
            .ok_or(Failure::Contended)?;
        let leased = guard.as_mut().ok_or(Failure::Closed)?;
        if leased.lease != lease {
            return Err(Failure::Lease);
        }
        let result = work(&mut leased.database);
        seam::fault_point();
        result
    }

    fn seize(&self) -> Result<MutexGuard<'_, Option<Leased>>, Failure> {
        let deadline = Instant::now() + RESET_TIMEOUT;
        loop {
            if let Some(guard) = self.leased.try_lock_for(INTERRUPT_EVERY) {
                return Ok(guard);
            }
            if Instant::now() >= deadline {
                return Err(Failure::Contended);
            }
            self.interrupter.interrupt();
        }
    }
}

fn enter(database: &mut Database, scope: Scope) -> Result<(), Failure> {
    match scope {
        Scope::Begin => Ok(database.begin()?),
        Scope::Join if database.in_transaction() => Ok(()),
        Scope::Join => Err(Error::NoTransaction.into()),
        Scope::Single if database.in_transaction() => Err(Error::TransactionOpen.into()),
        Scope::Single => Ok(()),
    }
}

fn file_of(location: Term<'_>) -> NifResult<Option<&str>> {
    if location.is_atom() && location.decode::<Atom>()? == atoms::memory() {
        return Ok(None);
    }
    let (tag, path): (Atom, &str) = location.decode()?;
    if tag == atoms::file() {
        Ok(Some(path))
    } else {
        Err(rustler::Error::BadArg)
    }
}

fn parameter(term: Term<'_>) -> Option<Value<'_>> {
    match term.get_type() {
        TermType::Integer => Some(Value::Integer(term.decode().ok()?)),
        TermType::Float => Some(Value::Real(term.decode().ok()?)),
        TermType::Binary => Some(Value::Text(Cow::Borrowed(term.decode().ok()?))),
        TermType::Atom if term.decode::<Atom>().ok()? == atoms::nil() => Some(Value::Null),
        TermType::Atom => Some(Value::Integer(term.decode::<bool>().ok()?.into())),
        TermType::Tuple => {
            let (tag, bytes): (Atom, Binary<'_>) = term.decode().ok()?;
            (tag == atoms::blob()).then(|| Value::Blob(Cow::Borrowed(bytes.as_slice())))
        }
        _ => None,
    }
}

struct Answer(Rows);

impl Encoder for Answer {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let rows = self.0.rows.as_ref().map(|rows| {
            rows.iter()
                .map(|row| row.iter().map(|value| column(env, value)).collect())
                .collect::<Vec<Vec<_>>>()
        });

        Term::map_from_pairs(
            env,
            &[
                (atoms::columns(), self.0.columns.encode(env)),
                (atoms::rows(), rows.encode(env)),
                (atoms::num_rows(), self.0.num_rows.encode(env)),
            ],
        )
        .unwrap_or_else(|_| atoms::nil().encode(env))
    }
}

fn column<'a>(env: Env<'a>, value: &Value<'_>) -> Term<'a> {
    match value {
        Value::Null => atoms::nil().encode(env),
        Value::Integer(integer) => integer.encode(env),
        Value::Real(real) => real.encode(env),
        Value::Text(text) => text.encode(env),
        Value::Blob(bytes) => {
            let mut binary = NewBinary::new(env, bytes.len());
            binary.as_mut_slice().copy_from_slice(bytes);
            binary.into()
        }
    }
}
