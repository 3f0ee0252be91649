//! Building and reading terms.

use kith_vault::Cipher;
use rustler::{Atom, Decoder, Encoder, Env, NifResult, Term};

use crate::atoms;
use crate::reason::Reason;

/// A map with atom keys.
pub(crate) fn map<'a>(env: Env<'a>, pairs: &[(Atom, &dyn Encoder)]) -> Term<'a> {
    pairs.iter().fold(Term::map_new(env), |map, (key, value)| {
        // Putting into a map fails only when it is none.
        map.map_put(key, value.encode(env)).unwrap_or(map)
    })
}

/// What a key seals with, by its name.
pub(crate) fn cipher(name: Atom) -> Option<Cipher> {
    if name == atoms::aes_256_gcm() {
        Some(Cipher::Aes256Gcm)
    } else if name == atoms::chacha20_poly1305() {
        Some(Cipher::ChaCha20Poly1305)
    } else {
        None
    }
}

/// An argument that was read from the database. What is not of its type is a damaged row and not a
/// caller's mistake, which would raise with all arguments in the stack trace.
pub(crate) struct Row<T>(Option<T>);

impl<'a, T: Decoder<'a>> Decoder<'a> for Row<T> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        Ok(Self(term.decode().ok()))
    }
}

impl<T> Row<T> {
    pub(crate) fn get(&self) -> Result<&T, Reason> {
        self.0.as_ref().ok_or(Reason::CorruptedState)
    }
}
