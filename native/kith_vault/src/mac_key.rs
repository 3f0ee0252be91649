use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{error::SignatureError, secret_key::SecretKey};

/// A key of HMAC-SHA256 (RFC 2104), shared by those who write and those who read. Boxed by [`SecretKey`], and zeroized on drop.
pub struct MacKey(SecretKey);

impl MacKey {
    /// The key of 32 bytes.
    #[must_use]
    pub fn new(secret: SecretKey) -> Self {
        Self(secret)
    }

    /// The MAC of a message.
    ///
    /// # Errors
    ///
    /// None: a key of any length is one of HMAC.
    pub fn create(&self, message: &[u8]) -> Result<[u8; 32], SignatureError> {
        Ok(self.mac(message)?.finalize().into_bytes().into())
    }

    /// Compares the MAC of a message in constant time.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Wrong`] if it is another.
    pub fn verify(&self, message: &[u8], mac: &[u8]) -> Result<(), SignatureError> {
        self.mac(message)?
            .verify_slice(mac)
            .map_err(|_| SignatureError::Wrong)
    }

    fn mac(&self, message: &[u8]) -> Result<Hmac<Sha256>, SignatureError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes())
            .map_err(|_| SignatureError::Malformed)?;
        mac.update(message);
        Ok(mac)
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.debug_struct("MacKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_of_one_message_and_all_of_it() {
        let key = MacKey::new(SecretKey::from_slice(&[0x42; 32]).unwrap());
        let mac = key.create(b"message").unwrap();
        assert_eq!(key.verify(b"message", &mac), Ok(()));
        assert_eq!(key.verify(b"massage", &mac), Err(SignatureError::Wrong));
        // A prefix of a MAC is none.
        assert_eq!(
            key.verify(b"message", &mac[..16]),
            Err(SignatureError::Wrong)
        );
        assert_eq!(key.verify(b"message", &[]), Err(SignatureError::Wrong));
    }

    #[test]
    fn debug_shows_no_byte() {
        let key = MacKey::new(SecretKey::from_slice(&[0x42; 32]).unwrap());
        assert_eq!(format!("{key:?}"), "MacKey { .. }");
    }
}
