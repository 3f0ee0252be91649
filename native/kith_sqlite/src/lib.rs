//! The embedded database: SQLite, built in, behind a driver small enough to read.
//!
//! A [`Database`] is one connection. It answers [`Database::query`] with `$1` parameters, as
//! PostgreSQL has them, so that the SQL above is written once for both.
//!
//! # Durability
//!
//! The journal is a write-ahead log with `synchronous=FULL`: a commit that returned is on the disk.
//! [`Synchronous::Normal`] gives that up for speed, and only that: after a power cut the newest
//! commits may be gone, which for a ratchet means that a message key can be used twice. It is for
//! caches and tests.
//!
//! # What remains of deleted rows
//!
//! Forward secrecy asks that a deleted key is gone. SQLite by itself only marks the space of a
//! deleted row as free, so `secure_delete` is on: freed bytes are overwritten with zeros.
//!
//! That holds for the pages a commit writes. The write-ahead log keeps earlier images of these
//! pages, and the database file keeps its old page, until a checkpoint has copied the log and
//! the log has been overwritten or cut. SQLite checkpoints by itself about every 1,000 pages, which
//! bounds the delay, and leaves old frames in the log until later ones overwrite them.
//! [`Database::checkpoint`] copies the log and cuts it to nothing; call it now and then, and before
//! a copy of the file is made.
//!
//! Below that, file systems and flash keep blocks of their own. Rows are therefore sealed before
//! they come here, and what makes old ones unreadable for certain is the destruction of the key
//! that sealed them.

mod database;
mod error;
mod value;

pub use database::{Database, Interrupter, Location, Options, Rows, Synchronous};
pub use error::Error;
pub use value::Value;
