use std::fmt;

use rand_core::TryCryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    aead_key::KEY_BYTES,
    error::{KeyDefect, VaultError},
    source::Source,
};

/// 32 bytes that a key of a service is made of: the seed of a [`SigningKey`](crate::SigningKey), the scalar of an
/// [`AgreementKey`](crate::AgreementKey), or the key of a [`MacKey`](crate::MacKey).
///
/// They lie behind a `Box` and are zeroized on drop. [`Vault::wrap_secret_key`](crate::Vault::wrap_secret_key) is how they
/// are stored.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SecretKey(Box<[u8; KEY_BYTES]>);

impl SecretKey {
    /// Draws a key.
    ///
    /// # Errors
    ///
    /// [`VaultError::Random`] if the generator fails.
    pub fn generate<R: TryCryptoRng + ?Sized>(rng: &mut R) -> Result<Self, VaultError> {
        let mut key = Self(Box::new([0; KEY_BYTES]));
        rng.try_fill_bytes(key.0.as_mut_slice())
            .map_err(VaultError::random::<R>)?;
        Ok(key)
    }

    /// Takes a key from its source, which is judged as that of a key-encryption key.
    ///
    /// # Errors
    ///
    /// [`KeyDefect`] says what is wrong with the source.
    pub fn load(source: &Source) -> Result<Self, KeyDefect> {
        let bytes = source.load()?;
        Self::from_slice(&bytes).ok_or(KeyDefect::Length { bytes: bytes.len() })
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != KEY_BYTES {
            return None;
        }
        let mut key = Self(Box::new([0; KEY_BYTES]));
        key.0.copy_from_slice(bytes);
        Some(key)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// A copy for what wants the bytes themselves.
    pub(crate) fn copy(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        Zeroizing::new(*self.0)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.debug_struct("SecretKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte() {
        let key = SecretKey::from_slice(&[0x42; KEY_BYTES]).unwrap();
        assert_eq!(format!("{key:?}"), "SecretKey { .. }");
    }

    #[test]
    fn a_secret_key_is_zeroized_on_drop() {
        fn assert_zeroize_on_drop<T: ZeroizeOnDrop>() {}
        assert_zeroize_on_drop::<SecretKey>();

        let mut key = SecretKey::from_slice(&[0x42; KEY_BYTES]).unwrap();
        key.zeroize();
        assert_eq!(key.as_bytes(), &[0; KEY_BYTES]);
    }

    #[test]
    fn a_key_of_another_length_is_none() {
        for length in [0, 31, 33, 64] {
            let source = Source::Key(Zeroizing::new(vec![1; length]));
            assert_eq!(
                SecretKey::load(&source).unwrap_err(),
                KeyDefect::Length { bytes: length }
            );
        }
    }
}
