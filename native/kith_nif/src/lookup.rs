//! Values that a table is searched by. The secret is in Rust; the value is borrowed from Erlang and never copied here.

use kith_vault::LookupHash;
use rustler::{Atom, Binary, Env, NifResult, Resource, ResourceArc, Term};

use crate::kms::{SourceTerm, source_of};
use crate::reason::{Invalid, Reason};
use crate::vault::Bytes;
use crate::{atoms, seam};

/// The secret of a lookup, for as long as Elixir holds the reference.
pub(crate) struct LookupKey(kith_vault::LookupKey);

#[rustler::resource_impl]
impl Resource for LookupKey {}

/// Takes the secret from its source.
#[rustler::nif(schedule = "DirtyIo")]
fn lookup_open<'a>(env: Env<'a>, source: SourceTerm<'a>) -> NifResult<Term<'a>> {
    let source = source_of(source)?;
    Ok(seam::call(env, "lookup_open", || {
        let key = kith_vault::LookupKey::new(&source)?;
        Ok::<_, Invalid>(ResourceArc::new(LookupKey(key)))
    }))
}

/// `{:ok, HMAC}`
#[rustler::nif(schedule = "DirtyCpu")]
fn lookup_hmac<'a>(
    env: Env<'a>,
    key: ResourceArc<LookupKey>,
    hash: Atom,
    value: Binary<'a>,
) -> NifResult<Term<'a>> {
    let hash = hash_of(hash)?;
    Ok(seam::call(env, "lookup_hmac", || {
        Ok::<_, Reason>(Bytes(key.0.hmac(hash, &value)))
    }))
}

/// `{:ok, key}`, of `size` bytes or, for nil, of as many as the hash has.
#[rustler::nif(schedule = "DirtyCpu")]
fn lookup_pbkdf2<'a>(
    env: Env<'a>,
    key: ResourceArc<LookupKey>,
    hash: Atom,
    value: Binary<'a>,
    iterations: u32,
    size: Option<u16>,
) -> NifResult<Term<'a>> {
    let hash = hash_of(hash)?;
    Ok(seam::call(env, "lookup_pbkdf2", || {
        let size = size.map_or_else(|| hash.output_len(), usize::from);
        Ok::<_, Reason>(Bytes(key.0.pbkdf2(hash, &value, iterations, size)))
    }))
}

fn hash_of(atom: Atom) -> NifResult<LookupHash> {
    if atom == atoms::sha224() {
        Ok(LookupHash::Sha224)
    } else if atom == atoms::sha256() {
        Ok(LookupHash::Sha256)
    } else if atom == atoms::sha384() {
        Ok(LookupHash::Sha384)
    } else if atom == atoms::sha512() {
        Ok(LookupHash::Sha512)
    } else {
        Err(rustler::Error::BadArg)
    }
}
