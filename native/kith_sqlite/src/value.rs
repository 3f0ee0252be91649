use std::borrow::Cow;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

/// A value of SQL. Parameters borrow, results own.
///
/// Text and bytes are different values to SQLite: a row written with one is not found with the
/// other.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `NULL`.
    Null,
    /// An integer of up to 64 bits.
    Integer(i64),
    /// A floating-point number. SQLite stores a NaN as `NULL`.
    Real(f64),
    /// UTF-8 text.
    Text(Cow<'a, str>),
    /// Bytes.
    Blob(Cow<'a, [u8]>),
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(integer) => ValueRef::Integer(*integer),
            Self::Real(real) => ValueRef::Real(*real),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Value<'static> {
    /// `None` if the column holds text that is not UTF-8.
    pub(crate) fn from_column(column: ValueRef<'_>) -> Option<Self> {
        Some(match column {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(integer) => Self::Integer(integer),
            ValueRef::Real(real) => Self::Real(real),
            ValueRef::Text(text) => {
                Self::Text(Cow::Owned(std::str::from_utf8(text).ok()?.to_owned()))
            }
            ValueRef::Blob(bytes) => Self::Blob(Cow::Owned(bytes.to_vec())),
        })
    }
}
