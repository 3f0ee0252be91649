//! The state of one session.

use std::fmt;

use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::curve::{KeyError, KeyPair, PublicKey};
use crate::identity::{IdentityKey, IdentityKeyPair};
use crate::limits::MAX_UNACKNOWLEDGED_SESSION_AGE;
use crate::prekey::{PreKeyBundle, PreKeyId};
use crate::ratchet::{ChainKey, RootKey};
use crate::wire::{Envelope, NewSignalMessage, PreKeySignalMessage, Version};
use crate::x3dh;

/// What is hashed in front of a session id.
const SESSION_ID_LABEL: &[u8] = b"Kith session id";

/// Names a session, the same on both sides and without a secret: the first 16 bytes of
/// `SHA-256("Kith session id" ‖ version ‖ base key ‖ lower identity key ‖ higher identity key)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; 16]);

impl SessionId {
    pub(super) fn new(
        version: Version,
        base_key: &PublicKey,
        a: &IdentityKey,
        b: &IdentityKey,
    ) -> Self {
        let mut hash = Sha256::new();
        hash.update(SESSION_ID_LABEL);
        hash.update([version.number()]);
        hash.update(base_key.to_bytes());
        hash.update(a.min(b).to_bytes());
        hash.update(a.max(b).to_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        Self(id)
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Takes the 16 bytes back.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// Stored bytes that are not a session.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// The bytes end early, go on too long, or hold values no session has.
    #[error("the stored session is damaged")]
    Damaged,
    /// A format of a newer engine.
    #[error("session format {0} is unknown")]
    UnknownFormat(u8),
}

/// The chain this side sends on: its ratchet key pair and the chain key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SendingChain {
    pub(super) ratchet: KeyPair,
    pub(super) chain_key: ChainKey,
}

/// A chain the peer sends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReceivingChain {
    pub(super) ratchet_key: PublicKey,
    pub(super) chain_key: ChainKey,
    /// How many skipped keys of this chain are stored.
    pub(super) skipped: u32,
}

/// What an initiator repeats in every message until it hears from the responder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PendingPreKey {
    pub(super) prekey_id: Option<PreKeyId>,
    pub(super) signed_prekey_id: PreKeyId,
    /// When the session was made, in seconds since 1970.
    pub(super) created: u64,
}

/// One session with one device, as one side holds it.
///
/// Secrets are boxed and erased on drop. Skipped message keys are kept apart
/// ([`SkippedKey`](super::SkippedKey)); so will be the state of the post-quantum ratchet of version 4.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    pub(super) id: SessionId,
    pub(super) version: Version,
    pub(super) local_identity: IdentityKey,
    pub(super) remote_identity: IdentityKey,
    pub(super) local_registration_id: u32,
    pub(super) remote_registration_id: u32,
    pub(super) base_key: PublicKey,
    pub(super) root_key: RootKey,
    pub(super) sending: SendingChain,
    pub(super) previous_counter: u32,
    /// Oldest first.
    pub(super) receiving: Vec<ReceivingChain>,
    pub(super) pending: Option<PendingPreKey>,
}

impl Session {
    /// Starts a session as initiator. The base key is drawn first, then the first ratchet key.
    ///
    /// The signature in the bundle must have been verified.
    pub(super) fn initiate<R: CryptoRng + ?Sized>(
        identity: &IdentityKeyPair,
        registration_id: u32,
        bundle: &PreKeyBundle,
        now: u64,
        rng: &mut R,
    ) -> Result<Self, KeyError> {
        let base_key = KeyPair::generate(rng);
        let handshake = x3dh::initiate(
            identity,
            &base_key,
            &x3dh::RemoteKeys {
                identity_key: &bundle.identity_key,
                signed_prekey: &bundle.signed_prekey.public_key,
                prekey: bundle.prekey.as_ref().map(|(_, key)| key),
            },
        )?;
        let ratchet = KeyPair::generate(rng);
        let theirs = bundle.signed_prekey.public_key;
        let (root_key, chain_key) = handshake.root_key.step(&ratchet, &theirs)?;
        let local_identity = identity.identity_key();
        Ok(Self {
            id: SessionId::new(
                Version::V3,
                base_key.public_key(),
                &local_identity,
                &bundle.identity_key,
            ),
            version: Version::V3,
            local_identity,
            remote_identity: bundle.identity_key,
            local_registration_id: registration_id,
            remote_registration_id: bundle.registration_id,
            base_key: *base_key.public_key(),
            root_key,
            sending: SendingChain { ratchet, chain_key },
            previous_counter: 0,
            receiving: vec![ReceivingChain {
                ratchet_key: theirs,
                chain_key: handshake.chain_key,
                skipped: 0,
            }],
            pending: Some(PendingPreKey {
                prekey_id: bundle.prekey.map(|(id, _)| id),
                signed_prekey_id: bundle.signed_prekey.id,
                created: now,
            }),
        })
    }

    /// Starts a session as responder, from the outside of a prekey message. The ratchet moves when the
    /// message inside is opened.
    pub(super) fn respond(
        identity: &IdentityKeyPair,
        registration_id: u32,
        signed_prekey: KeyPair,
        prekey: Option<&KeyPair>,
        message: &PreKeySignalMessage,
    ) -> Result<Self, KeyError> {
        let handshake = x3dh::respond(
            &x3dh::LocalKeys {
                identity,
                signed_prekey: &signed_prekey,
                prekey,
            },
            message.identity_key(),
            message.base_key(),
        )?;
        let local_identity = identity.identity_key();
        Ok(Self {
            id: SessionId::new(
                message.version(),
                message.base_key(),
                &local_identity,
                message.identity_key(),
            ),
            version: message.version(),
            local_identity,
            remote_identity: *message.identity_key(),
            local_registration_id: registration_id,
            remote_registration_id: message.registration_id(),
            base_key: *message.base_key(),
            root_key: handshake.root_key,
            sending: SendingChain {
                ratchet: signed_prekey,
                chain_key: handshake.chain_key,
            },
            previous_counter: 0,
            receiving: Vec::new(),
            pending: None,
        })
    }

    /// Names the session, the same on both sides.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// The protocol version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The peer's identity key.
    #[must_use]
    pub const fn remote_identity(&self) -> &IdentityKey {
        &self.remote_identity
    }

    /// Whether this side has heard from the other on this session.
    #[must_use]
    pub const fn is_acknowledged(&self) -> bool {
        self.pending.is_none()
    }

    /// Whether the session may be used for sending at `now` (seconds since 1970): exactly 30 days
    /// without an answer are still fine.
    #[must_use]
    pub fn is_usable_at(&self, now: u64) -> bool {
        self.pending.as_ref().is_none_or(|pending| {
            now.saturating_sub(pending.created) <= MAX_UNACKNOWLEDGED_SESSION_AGE
        })
    }

    /// Encrypts one message and moves the sending chain; `None` at the end of the 32-bit counter, which
    /// leaves the session as it was.
    ///
    /// The second value says whether the message is a [`PreKeySignalMessage`].
    pub(super) fn encrypt(&mut self, plaintext: &[u8]) -> Option<(Vec<u8>, bool)> {
        let counter = self.sending.chain_key.index();
        let (seed, chain_key) = self.sending.chain_key.step()?;
        let keys = seed.expand(None);
        let message = NewSignalMessage {
            version: self.version,
            ratchet_key: self.sending.ratchet.public_key(),
            counter,
            previous_counter: self.previous_counter,
            ciphertext: keys.encrypt(plaintext),
            keys: &keys,
            sender: &self.local_identity,
            receiver: &self.remote_identity,
        }
        .to_bytes();
        self.sending.chain_key = chain_key;
        let Some(pending) = &self.pending else {
            return Some((message, false));
        };
        let envelope = Envelope {
            version: self.version,
            registration_id: self.local_registration_id,
            prekey_id: pending.prekey_id,
            signed_prekey_id: pending.signed_prekey_id,
            base_key: &self.base_key,
            identity_key: &self.local_identity,
        };
        Some((envelope.around(&message), true))
    }

    /// Puts the session away: it still opens messages, but no longer says how it began.
    pub(super) fn archive(mut self) -> Self {
        self.pending = None;
        self
    }

    /// What may be shown of the session.
    #[must_use]
    pub fn info(&self) -> SessionInfo {
        SessionInfo {
            id: self.id,
            version: self.version,
            remote_identity: self.remote_identity,
            remote_registration_id: self.remote_registration_id,
            acknowledged: self.is_acknowledged(),
            sending: ChainInfo {
                ratchet_key: *self.sending.ratchet.public_key(),
                index: self.sending.chain_key.index(),
                skipped: 0,
            },
            receiving: self
                .receiving
                .iter()
                .map(|chain| ChainInfo {
                    ratchet_key: chain.ratchet_key,
                    index: chain.chain_key.index(),
                    skipped: chain.skipped,
                })
                .collect(),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            version,
            local_identity: _,
            remote_identity: _,
            local_registration_id: _,
            remote_registration_id: _,
            base_key: _,
            root_key: _,
            sending,
            previous_counter: _,
            receiving,
            pending,
        } = self;
        f.debug_struct("Session")
            .field("id", id)
            .field("version", version)
            .field("sent", &sending.chain_key.index())
            .field("receiving_chains", &receiving.len())
            .field("acknowledged", &pending.is_none())
            .finish_non_exhaustive()
    }
}

/// What may be shown of a session: no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Names the session.
    pub id: SessionId,
    /// The protocol version.
    pub version: Version,
    /// The peer's identity key.
    pub remote_identity: IdentityKey,
    /// The peer's registration id, as it said it.
    pub remote_registration_id: u32,
    /// Whether this side has heard from the other on this session.
    pub acknowledged: bool,
    /// The sending chain.
    pub sending: ChainInfo,
    /// The receiving chains, oldest first.
    pub receiving: Vec<ChainInfo>,
}

/// What may be shown of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// The public ratchet key that names the chain.
    pub ratchet_key: PublicKey,
    /// The number of the next message.
    pub index: u32,
    /// How many skipped keys are kept.
    pub skipped: u32,
}
