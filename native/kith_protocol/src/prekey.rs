//! Prekeys: the keys a device publishes so that others can start a session while it is offline.

use rand_core::CryptoRng;
use thiserror::Error;

use crate::curve::{KeyPair, PublicKey};
use crate::identity::{IdentityKey, IdentityKeyPair};
use crate::kyber::{KyberKeyPair, KyberPublicKey};
use crate::xeddsa::SIGNATURE_LEN;

/// The number by which a prekey message names a prekey. Any 32-bit number, 0 included.
pub type PreKeyId = u32;

/// A one-time prekey, `OPK` in the specifications: handed out once, used once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreKey {
    /// The number it is known by.
    pub id: PreKeyId,
    /// The pair itself.
    pub key_pair: KeyPair,
}

impl PreKey {
    /// Draws a new pair.
    pub fn generate<R: CryptoRng + ?Sized>(id: PreKeyId, rng: &mut R) -> Self {
        Self {
            id,
            key_pair: KeyPair::generate(rng),
        }
    }
}

/// A signed prekey, `SPK` in the specifications: used by every initiator until it is rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPreKey {
    /// The number it is known by.
    pub id: PreKeyId,
    /// The pair itself.
    pub key_pair: KeyPair,
    /// XEdDSA by the identity key over the 33 bytes of the public key.
    pub signature: [u8; SIGNATURE_LEN],
}

impl SignedPreKey {
    /// Draws a new pair and signs its public key.
    pub fn generate<R: CryptoRng + ?Sized>(
        id: PreKeyId,
        identity: &IdentityKeyPair,
        rng: &mut R,
    ) -> Self {
        let key_pair = KeyPair::generate(rng);
        let signature = identity.sign(&key_pair.public_key().to_bytes(), rng);
        Self {
            id,
            key_pair,
            signature,
        }
    }
}

/// A Kyber prekey, `PQPK` in the specifications: one-time, or the last resort when no one-time one is left.
///
/// Both kinds are signed in the same way, and nothing in a message tells them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KyberPreKey {
    /// The number it is known by.
    pub id: PreKeyId,
    /// The pair itself.
    pub key_pair: KyberKeyPair,
    /// XEdDSA by the identity key over the 1569 bytes of the public key.
    pub signature: [u8; SIGNATURE_LEN],
}

impl KyberPreKey {
    /// Draws a new pair and signs its public key.
    pub fn generate<R: CryptoRng + ?Sized>(
        id: PreKeyId,
        identity: &IdentityKeyPair,
        rng: &mut R,
    ) -> Self {
        let key_pair = KyberKeyPair::generate(rng);
        let signature = identity.sign(&key_pair.public_key().to_bytes(), rng);
        Self {
            id,
            key_pair,
            signature,
        }
    }
}

/// A Kyber prekey as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KyberPreKeyPublic {
    /// The number it is known by.
    pub id: PreKeyId,
    /// The public key.
    pub public_key: KyberPublicKey,
    /// The signature over its 1569 bytes; 64 bytes unless someone damaged it.
    pub signature: Vec<u8>,
}

/// A signed prekey as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPreKeyPublic {
    /// The number it is known by.
    pub id: PreKeyId,
    /// The public key.
    pub public_key: PublicKey,
    /// The signature over its 33 bytes; 64 bytes unless someone damaged it.
    pub signature: Vec<u8>,
}

/// What an initiator needs to start a session with a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreKeyBundle {
    /// The responder's registration id.
    pub registration_id: u32,
    /// The responder's identity key.
    pub identity_key: IdentityKey,
    /// The signed prekey.
    pub signed_prekey: SignedPreKeyPublic,
    /// A one-time prekey, if one was left.
    pub prekey: Option<(PreKeyId, PublicKey)>,
    /// A Kyber prekey. Without one the session is version 3, where that is accepted: nothing signed says
    /// that a device has one, so whoever hands out bundles can take it away.
    pub kyber_prekey: Option<KyberPreKeyPublic>,
}

/// A bundle that must not be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BundleError {
    /// The signature of a prekey is not the identity key's.
    #[error("the signature of a prekey is wrong")]
    InvalidSignature,
}

impl PreKeyBundle {
    /// Checks the signatures of the signed prekey and of the Kyber prekey.
    ///
    /// # Errors
    ///
    /// [`BundleError::InvalidSignature`].
    pub fn verify(&self) -> Result<(), BundleError> {
        let signed = &self.signed_prekey;
        let signed = self
            .identity_key
            .verify(&signed.public_key.to_bytes(), &signed.signature);
        let kyber = |prekey: &KyberPreKeyPublic| {
            self.identity_key
                .verify(&prekey.public_key.to_bytes(), &prekey.signature)
        };
        if signed && self.kyber_prekey.as_ref().is_none_or(kyber) {
            Ok(())
        } else {
            Err(BundleError::InvalidSignature)
        }
    }
}
