//! The stored form of a session: fixed positions, no tags (docs/state-format.md).
//!
//! A step of the ratchet rewrites all of it, a few hundred bytes. What is large or seldom changes lives
//! elsewhere: skipped keys and archived sessions in rows of their own, and, with version 4, the braid of
//! the post-quantum ratchet.

use zeroize::Zeroizing;

use super::state::{PendingPreKey, ReceivingChain, SendingChain, Session, SessionId, StateError};
use crate::curve::{KeyPair, PrivateKey, PublicKey};
use crate::identity::IdentityKey;
use crate::limits::MAX_RECEIVING_CHAINS;
use crate::ratchet::{ChainKey, RootKey};
use crate::wire::Version;

/// The format this engine writes.
const FORMAT: u8 = 1;

/// Bits of the flags byte.
const PENDING: u8 = 1;
const PENDING_WITH_PREKEY: u8 = 2;

/// Bytes of the largest version 3 session: 5 receiving chains and a pending prekey.
const MAX_LEN: usize = 3 + 16 + 3 * 32 + 2 * 4 + 32 + 4 + 100 + 1 + MAX_RECEIVING_CHAINS * 72 + 16;

impl Session {
    /// The stored form, at most 636 bytes.
    ///
    /// # Security
    ///
    /// These bytes are the session's secrets. Seal them before they are stored.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let Self {
            id,
            version,
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
        // Never grows, so no second copy of the secrets is left behind.
        let mut out = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        out.extend_from_slice(&[FORMAT, version.number(), flags]);
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(local_identity.public_key().u());
        out.extend_from_slice(remote_identity.public_key().u());
        out.extend_from_slice(&local_registration_id.to_be_bytes());
        out.extend_from_slice(&remote_registration_id.to_be_bytes());
        out.extend_from_slice(base_key.u());
        out.extend_from_slice(root_key.as_bytes());
        out.extend_from_slice(sending.ratchet.public_key().u());
        out.extend_from_slice(sending.ratchet.private_key().as_bytes());
        put_chain_key(&mut out, &sending.chain_key);
        out.extend_from_slice(&previous_counter.to_be_bytes());
        if let Some(PendingPreKey {
            prekey_id,
            signed_prekey_id,
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
        out
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    ///
    /// [`StateError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Input(bytes);
        let [format, version, flags] = *input.take()?;
        if format != FORMAT {
            return Err(StateError::UnknownFormat(format));
        }
        let version = match version {
            3 => Version::V3,
            _ => return Err(StateError::Damaged),
        };
        let id = SessionId::from_bytes(*input.take()?);
        let local_identity = IdentityKey::from(input.public_key()?);
        let remote_identity = IdentityKey::from(input.public_key()?);
        let local_registration_id = input.number()?;
        let remote_registration_id = input.number()?;
        let base_key = input.public_key()?;
        let root_key = RootKey::from_bytes(input.take()?);
        let ratchet_public = input.public_key()?;
        let ratchet_private = PrivateKey::from_bytes(input.take()?);
        let sending = SendingChain {
            ratchet: KeyPair::from_parts(ratchet_public, ratchet_private),
            chain_key: input.chain_key()?,
        };
        let previous_counter = input.number()?;
        let pending = match flags {
            0 => None,
            PENDING | 3 => Some(PendingPreKey {
                signed_prekey_id: input.number()?,
                created: u64::from_be_bytes(*input.take()?),
                prekey_id: if flags == PENDING {
                    None
                } else {
                    Some(input.number()?)
                },
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
                    chain_key: input.chain_key()?,
                    skipped: input.number()?,
                })
            })
            .collect::<Result<_, StateError>>()?;
        if !input.0.is_empty() {
            return Err(StateError::Damaged);
        }
        Ok(Self {
            id,
            version,
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
        })
    }
}

/// Key (32) ‖ index (4, big-endian).
fn put_chain_key(out: &mut Vec<u8>, chain_key: &ChainKey) {
    out.extend_from_slice(chain_key.as_bytes());
    out.extend_from_slice(&chain_key.index().to_be_bytes());
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], StateError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(StateError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, StateError> {
        self.take().map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn public_key(&mut self) -> Result<PublicKey, StateError> {
        self.take().map(|u| PublicKey::from_u(*u))
    }

    fn chain_key(&mut self) -> Result<ChainKey, StateError> {
        let key = self.take()?;
        Ok(ChainKey::from_bytes(key, self.number()?))
    }
}
