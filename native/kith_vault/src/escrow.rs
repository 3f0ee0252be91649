//! Recovery keys in escrow: HPKE (RFC 9180) in base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! ```text
//! 1   version, 01
//! 32  encapsulated key
//! n   ciphertext of the recovery key (16 or 32) and a tag of 16
//! ```
//!
//! `info` is the encoded [`Context`], the associated data is empty. Whoever has the private half opens it with any
//! implementation of HPKE.

use std::fmt;

use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, aead::AesGcm256, kdf::HkdfSha256,
    kem::X25519HkdfSha256, single_shot_open, single_shot_seal_with_rng,
};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::{
    aead_key::KEY_BYTES,
    context::Context,
    error::{ConfigError, KeyDefect, VaultError},
    key_id::KeyId,
    recovery_key::RecoveryKey,
    source::Source,
};

type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;

const VERSION: u8 = 1;
const ENCAPSULATED_BYTES: usize = 32;

/// The key that recovery keys are put into escrow under: its public half, or both.
pub struct EscrowKey {
    public: PublicKey,
    // X25519's key is boxed and erased by its own type.
    private: Option<Box<PrivateKey>>,
}

impl EscrowKey {
    /// The public half alone: it puts into escrow and opens nothing.
    ///
    /// # Errors
    ///
    /// [`VaultError::CorruptedState`] for anything but 32 bytes.
    pub fn from_public(bytes: &[u8]) -> Result<Self, VaultError> {
        Ok(Self {
            public: PublicKey::from_bytes(bytes).map_err(|_| VaultError::CorruptedState)?,
            private: None,
        })
    }

    /// Takes the private half, 32 bytes, from a source. The id is for the error.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if it cannot be taken.
    pub fn load(id: &KeyId, source: &Source) -> Result<Self, ConfigError> {
        let bad_key = |defect| ConfigError::BadKey {
            id: id.clone(),
            origin: source.to_string(),
            defect,
        };
        let bytes = source.load().map_err(bad_key)?;
        let wrong_length = || bad_key(KeyDefect::Length { bytes: bytes.len() });
        if bytes.len() != KEY_BYTES {
            return Err(wrong_length());
        }
        let private = PrivateKey::from_bytes(&bytes).map_err(|_| wrong_length())?;
        Ok(Self {
            public: X25519HkdfSha256::sk_to_pk(&private),
            private: Some(Box::new(private)),
        })
    }

    /// The public half.
    #[must_use]
    pub fn public_bytes(&self) -> [u8; 32] {
        self.public.to_bytes().into()
    }

    /// Wraps a recovery key for one place.
    ///
    /// # Errors
    ///
    /// [`VaultError::CorruptedState`] for a public half that agrees with nobody.
    pub fn seal<R: CryptoRng>(
        &self,
        rng: &mut R,
        context: &Context,
        key: &RecoveryKey,
    ) -> Result<Vec<u8>, VaultError> {
        let (encapsulated, sealed) =
            single_shot_seal_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
                &OpModeS::Base,
                &self.public,
                &context.associated_data(&[VERSION]),
                key.as_bytes(),
                &[],
                rng,
            )
            .map_err(|_| VaultError::CorruptedState)?;
        Ok([&[VERSION], &encapsulated.to_bytes()[..], &sealed].concat())
    }

    /// Unwraps a recovery key that was wrapped for this place.
    ///
    /// # Errors
    ///
    /// [`VaultError::CorruptedState`] for everything else, the public half alone among it.
    pub fn open(&self, context: &Context, wrapped: &[u8]) -> Result<RecoveryKey, VaultError> {
        let opened = || {
            let (&[VERSION], rest) = wrapped.split_first_chunk::<1>()? else {
                return None;
            };
            let (encapsulated, sealed) = rest.split_at_checked(ENCAPSULATED_BYTES)?;
            let key = single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
                &OpModeR::Base,
                self.private.as_deref()?,
                &Deserializable::from_bytes(encapsulated).ok()?,
                &context.associated_data(&[VERSION]),
                sealed,
                &[],
            );
            RecoveryKey::from_bytes(&Zeroizing::new(key.ok()?))
        };
        opened().ok_or(VaultError::CorruptedState)
    }
}

impl fmt::Debug for EscrowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EscrowKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;
    use crate::recovery_key::WordCount;

    fn escrow_key(byte: u8) -> EscrowKey {
        let source = Source::Key(Zeroizing::new(vec![byte; 32]));
        EscrowKey::load(&KeyId::new("escrow").unwrap(), &source).unwrap()
    }

    #[test]
    fn what_the_public_half_wraps_only_the_private_half_opens_and_only_in_its_place() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let key = RecoveryKey::generate(&mut rng, WordCount::TwentyFour).unwrap();
        let private = escrow_key(1);
        let public = EscrowKey::from_public(&private.public_bytes()).unwrap();
        let place = Context::new("escrow").bytes("anna");
        let wrapped = public.seal(&mut rng, &place, &key).unwrap();
        assert_eq!(wrapped.len(), 1 + 32 + 32 + 16);

        assert_eq!(
            private.open(&place, &wrapped).unwrap().as_bytes(),
            key.as_bytes()
        );
        assert!(public.open(&place, &wrapped).is_err());
        assert!(escrow_key(2).open(&place, &wrapped).is_err());
        let elsewhere = Context::new("escrow").bytes("ben");
        assert!(private.open(&elsewhere, &wrapped).is_err());
        for at in 0..wrapped.len() {
            let mut edited = wrapped.clone();
            edited[at] ^= 1;
            assert!(private.open(&place, &edited).is_err());
            assert!(private.open(&place, &wrapped[..at]).is_err());
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let id = KeyId::new("escrow").unwrap();
        for bytes in [0, 31, 33] {
            let source = Source::Key(Zeroizing::new(vec![1; bytes]));
            assert!(EscrowKey::load(&id, &source).is_err());
            assert!(EscrowKey::from_public(&vec![1; bytes]).is_err());
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", escrow_key(1)), "EscrowKey { .. }");
    }
}
