//! The state of one session.

use std::fmt;

use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::entries::EntryGroup;
use crate::agreement::{Agreements, LocalKeys, RemoteKeys};
use crate::curve::{KeyError, KeyPair, PublicKey};
use crate::identity::{IdentityKey, IdentityKeyPair};
use crate::kyber::{KyberCiphertext, KyberKeyPair};
use crate::limits::MAX_UNACKNOWLEDGED_SESSION_AGE;
use crate::pqxdh;
use crate::prekey::{PreKeyBundle, PreKeyId};
use crate::ratchet::{ChainKey, RootKey};
use crate::spqr::Spqr;
use crate::spqr::chain::Side;
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
    /// In version 4.
    pub(super) kyber: Option<PendingKyber>,
    /// When the session was made, in seconds since 1970.
    pub(super) created: u64,
}

/// The Kyber prekey and what was encapsulated to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PendingKyber {
    pub(super) id: PreKeyId,
    pub(super) ciphertext: KyberCiphertext,
}

/// One session with one device, as one side holds it.
///
/// Secrets are boxed and erased on drop. Keys of skipped messages and chunks are kept apart
/// ([`Entry`](super::Entry)).
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    pub(super) id: SessionId,
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
    /// The post-quantum ratchet: there in version 4, and only there.
    pub(super) spqr: Option<Box<Spqr>>,
    /// Counts the changes of [`braid_bytes`](Self::braid_bytes).
    pub(super) braid_revision: u32,
}

/// An encrypted message of a session, and what making it changed beside the session.
pub(super) struct Sealed {
    pub(super) bytes: Vec<u8>,
    pub(super) is_prekey_message: bool,
    pub(super) groups_dropped: Vec<EntryGroup>,
}

impl Session {
    /// Starts a session as initiator. Drawn in this order: the base key, what is encapsulated to the Kyber
    /// prekey, the first ratchet key.
    ///
    /// The signatures in the bundle must have been verified.
    pub(super) fn initiate<R: CryptoRng + ?Sized>(
        identity: &IdentityKeyPair,
        registration_id: u32,
        bundle: &PreKeyBundle,
        now: u64,
        rng: &mut R,
    ) -> Result<Self, KeyError> {
        let base_key = KeyPair::generate(rng);
        let theirs = bundle.signed_prekey.public_key;
        let agreements = Agreements::initiate(
            identity,
            &base_key,
            &RemoteKeys {
                identity_key: &bundle.identity_key,
                signed_prekey: &theirs,
                prekey: bundle.prekey.as_ref().map(|(_, key)| key),
            },
        )?;
        let encapsulated = bundle
            .kyber_prekey
            .as_ref()
            .map(|prekey| (prekey.id, prekey.public_key.encapsulate(rng)));
        let (kyber, shared_secret) = match encapsulated {
            None => (None, None),
            Some((id, (ciphertext, secret))) => {
                (Some(PendingKyber { id, ciphertext }), Some(secret))
            }
        };
        let handshake = Handshake::derive(agreements, shared_secret.as_ref(), Side::Initiator);
        let ratchet = KeyPair::generate(rng);
        let (root_key, chain_key) = handshake.root_key.step(&ratchet, &theirs)?;
        let local_identity = identity.identity_key();
        Ok(Self {
            id: SessionId::new(
                handshake.version(),
                base_key.public_key(),
                &local_identity,
                &bundle.identity_key,
            ),
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
                kyber,
                created: now,
            }),
            spqr: handshake.spqr,
            braid_revision: 0,
        })
    }

    /// Starts a session as responder, from the outside of a prekey message. The ratchet moves when the
    /// message inside is opened.
    pub(super) fn respond(
        identity: &IdentityKeyPair,
        registration_id: u32,
        prekeys: NamedPreKeys,
        message: &PreKeySignalMessage,
    ) -> Result<Self, KeyError> {
        let NamedPreKeys {
            prekey,
            signed_prekey,
            kyber_prekey,
        } = prekeys;
        let agreements = Agreements::respond(
            &LocalKeys {
                identity,
                signed_prekey: &signed_prekey,
                prekey: prekey.as_ref(),
            },
            message.identity_key(),
            message.base_key(),
        )?;
        let shared_secret = kyber_prekey
            .as_ref()
            .zip(message.kyber.as_ref())
            .map(|(pair, (_, ciphertext))| pair.decapsulate(ciphertext));
        let handshake = Handshake::derive(agreements, shared_secret.as_ref(), Side::Responder);
        let local_identity = identity.identity_key();
        Ok(Self {
            id: SessionId::new(
                handshake.version(),
                message.base_key(),
                &local_identity,
                message.identity_key(),
            ),
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
            spqr: handshake.spqr,
            braid_revision: 0,
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
        if self.spqr.is_some() {
            Version::V4
        } else {
            Version::V3
        }
    }

    /// Counts the changes of [`braid_bytes`](Self::braid_bytes): with the same number, of the same
    /// session, they are the same bytes.
    #[must_use]
    pub const fn braid_revision(&self) -> u32 {
        self.braid_revision
    }

    /// The own identity key.
    #[must_use]
    pub const fn local_identity(&self) -> &IdentityKey {
        &self.local_identity
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

    /// Encrypts one message and moves the sending chain; `None` at the end of a 32-bit counter, which
    /// leaves the session as it was.
    ///
    /// `addresses` bind a message that starts a session of version 4 to sender and recipient.
    pub(super) fn encrypt<R: CryptoRng + ?Sized>(
        &mut self,
        plaintext: &[u8],
        addresses: Option<&[u8; 36]>,
        rng: &mut R,
    ) -> Option<Sealed> {
        let version = self.version();
        let counter = self.sending.chain_key.index();
        let (seed, chain_key) = self.sending.chain_key.step()?;
        let sent = match &mut self.spqr {
            None => None,
            Some(spqr) => Some(spqr.send(rng)?),
        };
        let keys = seed.expand(sent.as_ref().map(|sent| sent.key.as_bytes()));
        let bound = sent.is_some() && self.pending.is_some();
        let message = NewSignalMessage {
            version,
            ratchet_key: self.sending.ratchet.public_key(),
            counter,
            previous_counter: self.previous_counter,
            ciphertext: keys.encrypt(plaintext),
            post_quantum: sent.as_ref().map_or(&[], |sent| &sent.message),
            addresses: addresses.filter(|_| bound),
            keys: &keys,
            sender: &self.local_identity,
            receiver: &self.remote_identity,
        }
        .to_bytes();
        self.sending.chain_key = chain_key;
        let mut groups_dropped = Vec::new();
        if let Some(sent) = sent {
            if sent.moved {
                self.braid_changed();
            }
            groups_dropped.extend(sent.forgotten.into_iter().map(EntryGroup::PostQuantumKeys));
        }
        let envelope = self.pending.as_ref().map(|pending| {
            Envelope {
                version,
                registration_id: self.local_registration_id,
                prekey_id: pending.prekey_id,
                signed_prekey_id: pending.signed_prekey_id,
                base_key: &self.base_key,
                identity_key: &self.local_identity,
                kyber: pending
                    .kyber
                    .as_ref()
                    .map(|kyber| (kyber.id, &kyber.ciphertext)),
            }
            .around(&message)
        });
        Some(Sealed {
            is_prekey_message: envelope.is_some(),
            bytes: envelope.unwrap_or(message),
            groups_dropped,
        })
    }

    /// Counts a change of what [`braid_bytes`](Self::braid_bytes) gives.
    pub(super) const fn braid_changed(&mut self) {
        self.braid_revision = self.braid_revision.wrapping_add(1);
    }

    /// Puts the session away: it still opens messages, but no longer says how it began.
    pub(super) fn archive(mut self) -> Self {
        self.acknowledge();
        self
    }

    /// Nothing of how the session began is needed any longer.
    pub(super) fn acknowledge(&mut self) {
        let kyber = self.pending.take().and_then(|pending| pending.kyber);
        if kyber.is_some() {
            self.braid_changed();
        }
    }

    /// The ratchet key this side sends with: another one after each step of the Diffie-Hellman ratchet.
    #[must_use]
    pub const fn sending_ratchet_key(&self) -> &PublicKey {
        self.sending.ratchet.public_key()
    }

    /// What may be shown of the session.
    #[must_use]
    pub fn info(&self) -> SessionInfo {
        SessionInfo {
            id: self.id,
            version: self.version(),
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
            braid: self.spqr.as_ref().map(|spqr| BraidInfo {
                state: spqr.braid.name(),
                epoch: spqr.braid.turn().epoch,
            }),
        }
    }
}

/// The responder's prekeys that a message names.
pub(super) struct NamedPreKeys {
    pub(super) prekey: Option<KeyPair>,
    pub(super) signed_prekey: KeyPair,
    /// There for a message of version 4.
    pub(super) kyber_prekey: Option<KyberKeyPair>,
}

/// What both sides have after the handshake.
struct Handshake {
    root_key: RootKey,
    chain_key: ChainKey,
    spqr: Option<Box<Spqr>>,
}

impl Handshake {
    /// PQXDH with the shared secret of a KEM, X3DH without.
    fn derive(
        agreements: Agreements,
        shared_secret: Option<&crate::secret::SecretBytes>,
        side: Side,
    ) -> Self {
        match shared_secret {
            None => {
                let (root_key, chain_key) = x3dh::derive(&agreements);
                Self {
                    root_key,
                    chain_key,
                    spqr: None,
                }
            }
            Some(shared_secret) => {
                let keys = pqxdh::derive(agreements, shared_secret);
                Self {
                    root_key: keys.root_key,
                    chain_key: keys.chain_key,
                    spqr: Some(Box::new(Spqr::start(&keys.auth_key, side))),
                }
            }
        }
    }

    const fn version(&self) -> Version {
        if self.spqr.is_some() {
            Version::V4
        } else {
            Version::V3
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
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
            spqr,
            braid_revision: _,
        } = self;
        f.debug_struct("Session")
            .field("id", id)
            .field("version", &self.version())
            .field("sent", &sending.chain_key.index())
            .field("receiving_chains", &receiving.len())
            .field("acknowledged", &pending.is_none())
            .field("braid", &spqr.as_ref().map(|spqr| spqr.braid.name()))
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
    /// The post-quantum ratchet; in version 4 only.
    pub braid: Option<BraidInfo>,
}

/// What may be shown of the post-quantum ratchet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BraidInfo {
    /// The state, as the specification names it, for example `KeysSampled`.
    pub state: &'static str,
    /// The epoch it works on, from 1: all earlier ones are complete.
    pub epoch: u64,
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
