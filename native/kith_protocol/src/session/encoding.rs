//! The stored form of a session: fixed positions, no tags (docs/state-format.md).
//!
//! In two parts, because a step of the ratchet is to rewrite little. The *state* moves with every message
//! and stays below 1 KB. The *braid*, of version 4, holds what moves a few times in an epoch: facts of the
//! handshake, the roots of the post-quantum ratchet, its keys and ciphertexts. Both name the session and the
//! revision of the braid, so that a braid of another session or time is noticed.

mod braid;
mod input;

use zeroize::Zeroizing;

use super::state::{PendingPreKey, ReceivingChain, SendingChain, Session, SessionId, StateError};
use crate::curve::{KeyPair, PrivateKey};
use crate::identity::IdentityKey;
use crate::limits::MAX_RECEIVING_CHAINS;
use crate::ratchet::{ChainKey, RootKey};
use input::Input;

/// The format of a version 3 session: one part.
const WHOLE: u8 = 1;
/// The format of the state of a version 4 session.
const STATE: u8 = 2;
/// State and braid in one, for a session that is put away: length of the state (4), state, braid.
const BOTH: u8 = 3;

/// Bits of the flags byte.
const PENDING: u8 = 1;
const PENDING_WITH_PREKEY: u8 = 2;

/// Bytes of the largest state, so that writing it never moves it: 5 receiving chains, a pending prekey, and
/// the moving part of the post-quantum ratchet.
const MAX_LEN: usize = 3
    + 16
    + 3 * 32
    + 2 * 4
    + 32
    + 4
    + 100
    + 1
    + MAX_RECEIVING_CHAINS * 72
    + 16
    + braid::MAX_MOVING_LEN;

impl Session {
    /// What moves with every message; of version 3 all there is. At most 636 bytes in version 3 and, once
    /// acknowledged, 1 000 in version 4.
    ///
    /// # Security
    ///
    /// These bytes are the session's secrets. Seal them before they are stored.
    #[must_use]
    pub fn state_bytes(&self) -> Zeroizing<Vec<u8>> {
        let Self {
            id,
            local_identity,
            remote_identity,
            local_registration_id,
            remote_registration_id,
            base_key,
            root_key,
            sending,
            previous_counter,
            receiving,
            pending,
            spqr,
            braid_revision,
        } = self;
        let flags = match pending {
            None => 0,
            Some(PendingPreKey {
                prekey_id: None, ..
            }) => PENDING,
            Some(PendingPreKey {
                prekey_id: Some(_), ..
            }) => PENDING | PENDING_WITH_PREKEY,
        };
        let format = if spqr.is_some() { STATE } else { WHOLE };
        // Never grows, so no second copy of the secrets is left behind.
        let mut out = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        out.extend_from_slice(&[format, self.version().number(), flags]);
        out.extend_from_slice(id.as_bytes());
        if spqr.is_none() {
            put_facts(
                &mut out,
                &Facts {
                    local_identity: *local_identity,
                    remote_identity: *remote_identity,
                    local_registration_id: *local_registration_id,
                    remote_registration_id: *remote_registration_id,
                    base_key: *base_key,
                },
            );
        }
        out.extend_from_slice(root_key.as_bytes());
        out.extend_from_slice(sending.ratchet.public_key().u());
        out.extend_from_slice(sending.ratchet.private_key().as_bytes());
        put_chain_key(&mut out, &sending.chain_key);
        out.extend_from_slice(&previous_counter.to_be_bytes());
        if let Some(PendingPreKey {
            prekey_id,
            signed_prekey_id,
            // In the braid.
            kyber: _,
            created,
        }) = pending
        {
            out.extend_from_slice(&signed_prekey_id.to_be_bytes());
            out.extend_from_slice(&created.to_be_bytes());
            if let Some(id) = prekey_id {
                out.extend_from_slice(&id.to_be_bytes());
            }
        }
        // At most MAX_RECEIVING_CHAINS.
        out.push(u8::try_from(receiving.len()).unwrap_or(u8::MAX));
        for ReceivingChain {
            ratchet_key,
            chain_key,
            skipped,
        } in receiving
        {
            out.extend_from_slice(ratchet_key.u());
            put_chain_key(&mut out, chain_key);
            out.extend_from_slice(&skipped.to_be_bytes());
        }
        if let Some(spqr) = spqr {
            out.extend_from_slice(&braid_revision.to_be_bytes());
            braid::put_moving(&mut out, spqr);
        }
        out
    }

    /// What moves only when the braid of version 4 changes its state, at most 4.5 KB; nothing in version 3.
    /// The same bytes as long as [`braid_revision`](Self::braid_revision) is the same.
    ///
    /// # Security
    ///
    /// As of [`state_bytes`](Self::state_bytes).
    #[must_use]
    pub fn braid_bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        let spqr = self.spqr.as_deref()?;
        let mut out = Zeroizing::new(Vec::with_capacity(braid::MAX_LEN));
        out.push(braid::FORMAT);
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(&self.braid_revision.to_be_bytes());
        put_facts(
            &mut out,
            &Facts {
                local_identity: self.local_identity,
                remote_identity: self.remote_identity,
                local_registration_id: self.local_registration_id,
                remote_registration_id: self.remote_registration_id,
                base_key: self.base_key,
            },
        );
        let kyber = self.pending.as_ref().and_then(|it| it.kyber.as_ref());
        braid::put_resting(&mut out, spqr, kyber);
        Some(out)
    }

    /// The inverse of [`state_bytes`](Self::state_bytes) and [`braid_bytes`](Self::braid_bytes).
    ///
    /// # Errors
    ///
    /// [`StateError`] for anything else, a braid of another session or revision included.
    pub fn from_parts(state: &[u8], braid: Option<&[u8]>) -> Result<Self, StateError> {
        let mut input = Input(state);
        let [format, version, flags] = *input.take()?;
        match (format, version, braid.is_some()) {
            (WHOLE, 3, false) | (STATE, 4, true) => {}
            (WHOLE | STATE, ..) => return Err(StateError::Damaged),
            _ => return Err(StateError::UnknownFormat(format)),
        }
        let id = SessionId::from_bytes(*input.take()?);
        let own_facts = match braid {
            None => Some(take_facts(&mut input)?),
            Some(_) => None,
        };
        let root_key = RootKey::from_bytes(input.take()?);
        let ratchet_public = input.public_key()?;
        let ratchet_private = PrivateKey::from_bytes(input.take()?);
        let sending = SendingChain {
            ratchet: KeyPair::from_parts(ratchet_public, ratchet_private),
            chain_key: take_chain_key(&mut input)?,
        };
        let previous_counter = input.number()?;
        let mut pending = match flags {
            0 => None,
            PENDING | 3 => Some(PendingPreKey {
                signed_prekey_id: input.number()?,
                created: u64::from_be_bytes(*input.take()?),
                prekey_id: if flags == PENDING {
                    None
                } else {
                    Some(input.number()?)
                },
                kyber: None,
            }),
            _ => return Err(StateError::Damaged),
        };
        let [chains] = *input.take()?;
        if usize::from(chains) > MAX_RECEIVING_CHAINS {
            return Err(StateError::Damaged);
        }
        let receiving = (0..chains)
            .map(|_| {
                Ok(ReceivingChain {
                    ratchet_key: input.public_key()?,
                    chain_key: take_chain_key(&mut input)?,
                    skipped: input.number()?,
                })
            })
            .collect::<Result<_, StateError>>()?;
        let braid_revision = match braid {
            None => 0,
            Some(_) => input.number()?,
        };
        let (facts, spqr) = match (own_facts, braid) {
            (Some(facts), _) => (facts, None),
            (None, None) => return Err(StateError::Damaged),
            (None, Some(braid)) => {
                let mut resting = Input(braid);
                let [format] = *resting.take()?;
                if format != braid::FORMAT {
                    return Err(StateError::UnknownFormat(format));
                }
                if resting.take::<16>()? != id.as_bytes() || resting.number()? != braid_revision {
                    return Err(StateError::Damaged);
                }
                let facts = take_facts(&mut resting)?;
                let (spqr, kyber) = braid::take(&mut input, &mut resting)?;
                resting.finish()?;
                match (&mut pending, kyber) {
                    (Some(pending), Some(kyber)) => pending.kyber = Some(kyber),
                    (None, None) => {}
                    _ => return Err(StateError::Damaged),
                }
                (facts, Some(Box::new(spqr)))
            }
        };
        input.finish()?;
        Ok(Self {
            id,
            local_identity: facts.local_identity,
            remote_identity: facts.remote_identity,
            local_registration_id: facts.local_registration_id,
            remote_registration_id: facts.remote_registration_id,
            base_key: facts.base_key,
            root_key,
            sending,
            previous_counter,
            receiving,
            pending,
            spqr,
            braid_revision,
        })
    }

    /// Both parts in one, for a session that is put away. Of version 3 the state alone.
    ///
    /// # Security
    ///
    /// As of [`state_bytes`](Self::state_bytes).
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let state = self.state_bytes();
        let Some(braid) = self.braid_bytes() else {
            return state;
        };
        let mut out = Zeroizing::new(Vec::with_capacity(5 + state.len() + braid.len()));
        out.push(BOTH);
        // At most MAX_LEN.
        out.extend_from_slice(&u32::try_from(state.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&state);
        out.extend_from_slice(&braid);
        out
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    ///
    /// [`StateError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        match bytes.split_first() {
            Some((&BOTH, rest)) => {
                let mut input = Input(rest);
                let len = usize::try_from(input.number()?).map_err(|_| StateError::Damaged)?;
                let (state, braid) = input.0.split_at_checked(len).ok_or(StateError::Damaged)?;
                Self::from_parts(state, Some(braid))
            }
            _ => Self::from_parts(bytes, None),
        }
    }
}

/// What was settled by the handshake.
struct Facts {
    local_identity: IdentityKey,
    remote_identity: IdentityKey,
    local_registration_id: u32,
    remote_registration_id: u32,
    base_key: crate::curve::PublicKey,
}

fn put_facts(out: &mut Vec<u8>, facts: &Facts) {
    out.extend_from_slice(facts.local_identity.public_key().u());
    out.extend_from_slice(facts.remote_identity.public_key().u());
    out.extend_from_slice(&facts.local_registration_id.to_be_bytes());
    out.extend_from_slice(&facts.remote_registration_id.to_be_bytes());
    out.extend_from_slice(facts.base_key.u());
}

fn take_facts(input: &mut Input<'_>) -> Result<Facts, StateError> {
    Ok(Facts {
        local_identity: IdentityKey::from(input.public_key()?),
        remote_identity: IdentityKey::from(input.public_key()?),
        local_registration_id: input.number()?,
        remote_registration_id: input.number()?,
        base_key: input.public_key()?,
    })
}

/// Key (32) ‖ index (4, big-endian).
fn put_chain_key(out: &mut Vec<u8>, chain_key: &ChainKey) {
    out.extend_from_slice(chain_key.as_bytes());
    out.extend_from_slice(&chain_key.index().to_be_bytes());
}

fn take_chain_key(input: &mut Input<'_>) -> Result<ChainKey, StateError> {
    let key = input.take()?;
    Ok(ChainKey::from_bytes(key, input.number()?))
}
