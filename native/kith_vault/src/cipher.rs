use aes_gcm::{Aes256Gcm, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use rand_core::TryCryptoRng;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::{
    aead_key::{AeadKey, KEY_BYTES, Sealed},
    error::VaultError,
};

/// What a key seals with. A key has one for its life: it is part of what a client's key is derived from, and stands in the
/// header of a wrapped data key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Cipher {
    /// AES-256-GCM (NIST SP 800-38D).
    #[default]
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439), which is the faster one on processors without AES instructions.
    ChaCha20Poly1305,
}

/// A key with its cipher.
pub(crate) enum CipherKey {
    Aes256Gcm(AeadKey<Aes256Gcm>),
    ChaCha20Poly1305(AeadKey<ChaCha20Poly1305>),
}

impl CipherKey {
    /// For the time of a call.
    pub(crate) fn new(cipher: Cipher, key: &[u8; KEY_BYTES]) -> Self {
        let key = key.into();
        match cipher {
            Cipher::Aes256Gcm => Self::Aes256Gcm(AeadKey::of(Aes256Gcm::new(key))),
            Cipher::ChaCha20Poly1305 => {
                Self::ChaCha20Poly1305(AeadKey::of(ChaCha20Poly1305::new(key)))
            }
        }
    }

    /// For longer, in memory that is locked where the system allows it.
    pub(crate) fn held(cipher: Cipher, key: &[u8; KEY_BYTES]) -> Self {
        let key = key.into();
        match cipher {
            Cipher::Aes256Gcm => Self::Aes256Gcm(AeadKey::held_of(Aes256Gcm::new(key))),
            Cipher::ChaCha20Poly1305 => {
                Self::ChaCha20Poly1305(AeadKey::held_of(ChaCha20Poly1305::new(key)))
            }
        }
    }

    pub(crate) fn cipher(&self) -> Cipher {
        match self {
            Self::Aes256Gcm(_) => Cipher::Aes256Gcm,
            Self::ChaCha20Poly1305(_) => Cipher::ChaCha20Poly1305,
        }
    }

    /// As [`AeadKey::seal`].
    pub(crate) fn seal<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        associated_data: &[u8],
        plaintext: &[u8],
        blob: &mut Vec<u8>,
    ) -> Result<(), VaultError> {
        match self {
            Self::Aes256Gcm(key) => key.seal(rng, associated_data, plaintext, blob),
            Self::ChaCha20Poly1305(key) => key.seal(rng, associated_data, plaintext, blob),
        }
    }

    /// As [`AeadKey::open`].
    pub(crate) fn open(
        &self,
        associated_data: &[u8],
        sealed: &Sealed<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        match self {
            Self::Aes256Gcm(key) => key.open(associated_data, sealed),
            Self::ChaCha20Poly1305(key) => key.open(associated_data, sealed),
        }
    }

    #[cfg(test)]
    pub(crate) fn address(&self) -> *const u8 {
        match self {
            Self::Aes256Gcm(key) => key.address(),
            Self::ChaCha20Poly1305(key) => key.address(),
        }
    }
}

// Both erase themselves.
impl ZeroizeOnDrop for CipherKey {}
