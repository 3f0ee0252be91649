//! Safety numbers.

use kith_protocol::{Fingerprint, FingerprintError, IdentityKey, limits::FINGERPRINT_ITERATIONS};
use rustler::{Binary, Env, Term};

use crate::device::public_key;
use crate::reason::Reason;
use crate::seam;
use crate::vault::Bytes;

/// The version of scannable safety numbers over identifiers that are not phone numbers.
const VERSION: u32 = 2;

fn fingerprint(
    (user, key): (&[u8], &[u8]),
    (peer, peer_key): (&[u8], &[u8]),
) -> Result<Fingerprint, Reason> {
    let key = IdentityKey::from(public_key(key)?);
    let peer_key = IdentityKey::from(public_key(peer_key)?);
    Fingerprint::new(
        VERSION,
        FINGERPRINT_ITERATIONS,
        (user, &key),
        (peer, &peer_key),
    )
    .map_err(|_| Reason::Malformed)
}

/// `{:ok, {60 digits, scannable bytes}}`
#[rustler::nif(schedule = "DirtyCpu")]
fn safety_number<'a>(
    env: Env<'a>,
    user: Binary<'a>,
    key: Binary<'a>,
    peer: Binary<'a>,
    peer_key: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "safety_number", || {
        let fingerprint = fingerprint((&user, &key), (&peer, &peer_key))?;
        Ok::<_, Reason>((fingerprint.display(), Bytes(fingerprint.scannable())))
    })
}

/// Whether the scanned bytes show the same two keys: `{:ok, boolean}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn safety_number_matches<'a>(
    env: Env<'a>,
    user: Binary<'a>,
    key: Binary<'a>,
    peer: Binary<'a>,
    peer_key: Binary<'a>,
    scanned: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "safety_number_matches", || {
        match fingerprint((&user, &key), (&peer, &peer_key))?.matches(&scanned) {
            Ok(same) => Ok(same),
            Err(FingerprintError::Version { .. }) => Err(Reason::UnsupportedVersion),
            Err(_) => Err(Reason::Malformed),
        }
    })
}
