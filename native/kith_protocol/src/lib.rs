//! The Signal protocol as pure values: no I/O, no clock, no global randomness, no storage.
//!
//! Version 4 is PQXDH and the Triple Ratchet, version 3 X3DH and the Double Ratchet, both byte for byte as
//! Signal's clients speak them (docs/protocol.md). Its parts are values, and each operation either succeeds
//! or changes nothing.
//!
//! - A device has an [`IdentityKeyPair`], a [`SignedPreKey`], a last-resort [`KyberPreKey`], and one-time
//!   [`PreKey`]s and Kyber prekeys, and publishes their public halves as a [`PreKeyBundle`].
//! - A [`SessionRecord`] holds all sessions with one device of a peer. [`initiate`] starts one from a
//!   bundle, [`encrypt`] and [`decrypt`] move it, [`decrypt_prekey`] opens what starts one.
//! - The stored state has parts that move at different speeds: [`Session::state_bytes`] is rewritten with
//!   every message, [`Session::braid_bytes`] a few times in an epoch of the post-quantum ratchet, archived
//!   sessions hardly ever, and [`Entry`] rows are written once. [`Changes`] says what decrypting changed.
//! - A [`Fingerprint`] is the safety number of two identity keys.
//! - An [`OfficialRecord`] reads and writes records of Signal's own library.
//!
//! [`initiate`]: SessionRecord::initiate
//! [`encrypt`]: SessionRecord::encrypt
//! [`decrypt`]: SessionRecord::decrypt
//! [`decrypt_prekey`]: SessionRecord::decrypt_prekey
//!
//! # What the caller must do
//!
//! - Store the new state **before** a ciphertext leaves: a message key must never be used twice.
//! - Seal what is stored. `to_bytes` gives secrets.
//! - Remember base keys ([`PreKeys::is_base_key_used`]) and identity keys ([`Decrypted::remote_identity`]).
//! - Delete a one-time prekey when [`Changes::prekey_used`] or [`Changes::kyber_prekey_used`] names it.
//! - Remember with whom version 4 was spoken ([`RemoteDevice::minimum_version`]).
//!
//! # Errors
//!
//! The error types are exhaustive on purpose: a new one must be given a meaning by every caller.
//!
//! # Security
//!
//! Secrets are boxed, so that a move leaves no copy, erased when dropped, compared in constant time, and
//! print nothing. The failures of the KEMs are implicit. Limits ([`limits`]) bound the work a forged message can cause.
#![forbid(unsafe_code)]

pub mod limits;

mod address;
mod agreement;
mod curve;
mod dh;
mod fingerprint;
mod identity;
mod kyber;
mod pqxdh;
mod prekey;
mod primitives;
mod ratchet;
mod secret;
mod session;
mod spqr;
mod wire;
mod x3dh;
mod xeddsa;

pub use address::ProtocolAddress;
pub use curve::{KEY_TYPE, KeyError, KeyPair, PUBLIC_KEY_LEN, PrivateKey, PublicKey};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use identity::{Direction, IdentityKey, IdentityKeyPair, Trust, TrustOnFirstUse};
pub use kyber::{
    KYBER_CIPHERTEXT_LEN, KYBER_PUBLIC_KEY_LEN, KYBER_SEED_LEN, KyberKeyPair, KyberPublicKey,
};
pub use prekey::{
    BundleError, KyberPreKey, KyberPreKeyPublic, PreKey, PreKeyBundle, PreKeyId, SignedPreKey,
    SignedPreKeyPublic,
};
pub use session::{
    BraidInfo, ChainInfo, Changes, Ciphertext, DecryptError, Decrypted, EncryptError, Entry,
    EntryError, EntryGroup, EntryLookup, EntryPosition, InitiateError, LocalDevice, MemoryEntries,
    NotLoaded, OfficialRecord, PreKeyKind, PreKeys, RecordError, RemoteDevice, Replaced, Session,
    SessionId, SessionInfo, SessionRecord, SkippedKeyFormat, StateError,
};
pub use wire::{DecryptionErrorMessage, MessageError, PreKeySignalMessage, SignalMessage, Version};
pub use xeddsa::SIGNATURE_LEN;
