//! Building and reading terms.

use rustler::{Atom, Encoder, Env, Term};

/// A map with atom keys.
pub(crate) fn map<'a>(env: Env<'a>, pairs: &[(Atom, &dyn Encoder)]) -> Term<'a> {
    pairs.iter().fold(Term::map_new(env), |map, (key, value)| {
        // Putting into a map fails only when it is none.
        map.map_put(key, value.encode(env)).unwrap_or(map)
    })
}
