//! The Signal protocol as pure values.
//!
//! Placeholder
#![forbid(unsafe_code)]

pub mod limits;

mod address;
mod curve;
mod fingerprint;
mod identity;
mod prekey;
mod primitives;
mod ratchet;
mod secret;
mod session;
mod wire;
mod x3dh;
mod xeddsa;

pub use address::ProtocolAddress;
pub use curve::{KEY_TYPE, KeyError, KeyPair, PUBLIC_KEY_LEN, PrivateKey, PublicKey};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use identity::{Direction, IdentityKey, IdentityKeyPair, Trust, TrustOnFirstUse};
pub use prekey::{BundleError, PreKey, PreKeyBundle, PreKeyId, SignedPreKey, SignedPreKeyPublic};
pub use session::{
    ChainInfo, Changes, Ciphertext, DecryptError, Decrypted, EncryptError, InitiateError,
    LocalDevice, MemorySkippedKeys, NotLoaded, OfficialRecord, PreKeyKind, PreKeys, RecordError,
    Session, SessionId, SessionInfo, SessionRecord, SkippedKey, SkippedKeyError, SkippedKeyFormat,
    SkippedKeyLookup, SkippedKeyPosition, StateError,
};
pub use wire::{MessageError, PreKeySignalMessage, SignalMessage, Version};
pub use xeddsa::SIGNATURE_LEN;
