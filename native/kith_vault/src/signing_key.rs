use std::fmt;

use ed25519_dalek::{Signature, Signer, VerifyingKey};
use zeroize::ZeroizeOnDrop;

use crate::{error::SignatureError, secret_key::SecretKey};

/// A key that signs as Ed25519 (RFC 8032). Boxed, and zeroized on drop.
pub struct SigningKey(Box<ed25519_dalek::SigningKey>);

impl SigningKey {
    /// The key of a seed.
    #[must_use]
    pub fn new(seed: &SecretKey) -> Self {
        Self(Box::new(ed25519_dalek::SigningKey::from_bytes(
            seed.as_bytes(),
        )))
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs a message. What kind of message it is has to be in it: a key signs more than one kind.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

// A `Box` drops what it holds, and that zeroizes itself; a test asserts it.
impl ZeroizeOnDrop for SigningKey {}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.debug_struct("SigningKey").finish_non_exhaustive()
    }
}

/// Verifies a signature of Ed25519, strictly.
///
/// Besides what RFC 8032 asks for, the public key and the point in the signature must not be of small order, the scalar in the
/// signature and the bytes of both points must be canonical. So a signature is of one message under one key, and nobody makes a
/// second one out of it.
///
/// # Errors
///
/// [`SignatureError::Malformed`] if the public key is none, [`SignatureError::Wrong`] for everything else.
pub fn verify_signature(
    public_key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    let public_key = verifying_key(public_key)?;
    let signature = Signature::from_slice(signature).map_err(|_| SignatureError::Wrong)?;
    public_key
        .verify_strict(message, &signature)
        .map_err(|_| SignatureError::Wrong)
}

/// A public key whose bytes are the ones of its point, which is not of small order.
pub(crate) fn verifying_key(bytes: &[u8]) -> Result<VerifyingKey, SignatureError> {
    let bytes: &[u8; 32] = bytes.try_into().map_err(|_| SignatureError::Malformed)?;
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| SignatureError::Malformed)?;
    // The library reads coordinates that are not reduced, and keeps their bytes.
    let canonical = key.to_edwards().compress();
    if key.is_weak() || canonical.as_bytes() != bytes {
        return Err(SignatureError::Malformed);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::new(&SecretKey::from_slice(&[0x42; 32]).unwrap())
    }

    #[test]
    fn a_key_verifies_what_it_signed_and_nothing_else() {
        let key = key();
        let signature = key.sign(b"message");
        let verify = |public: &[u8], message: &[u8], signature: &[u8]| {
            verify_signature(public, message, signature)
        };
        assert_eq!(verify(&key.public_key(), b"message", &signature), Ok(()));
        assert_eq!(
            verify(&key.public_key(), b"massage", &signature),
            Err(SignatureError::Wrong)
        );
        assert_eq!(
            verify(&key.public_key(), b"message", &signature[..63]),
            Err(SignatureError::Wrong)
        );
        assert_eq!(
            verify(&key.public_key()[..31], b"message", &signature),
            Err(SignatureError::Malformed)
        );
        for byte in 0..64 {
            let mut changed = signature;
            changed[byte] ^= 1;
            assert_eq!(
                verify(&key.public_key(), b"message", &changed),
                Err(SignatureError::Wrong)
            );
        }
    }

    #[test]
    fn a_key_of_small_order_or_not_canonical_is_none() {
        let mut identity = [0; 32];
        identity[0] = 1;
        // y = p + 3 is y = 3, of full order, written with another number.
        let mut unreduced = [0xff; 32];
        (unreduced[0], unreduced[31]) = (0xf0, 0x7f);
        assert!(VerifyingKey::from_bytes(&unreduced).is_ok_and(|key| !key.is_weak()));
        for bytes in [[0; 32], identity, unreduced] {
            assert_eq!(
                verify_signature(&bytes, b"", &[0; 64]),
                Err(SignatureError::Malformed)
            );
        }
    }

    #[test]
    fn a_signing_key_is_zeroized_on_drop_and_shows_nothing() {
        fn assert_zeroize_on_drop<T: ZeroizeOnDrop>() {}
        assert_zeroize_on_drop::<ed25519_dalek::SigningKey>();
        assert_eq!(format!("{:?}", key()), "SigningKey { .. }");
    }
}
