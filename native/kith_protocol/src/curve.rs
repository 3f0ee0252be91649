//! Curve25519 keys with Signal's type byte.

use std::fmt;
use std::hash::{Hash, Hasher};

use curve25519_dalek::montgomery::MontgomeryPoint;
use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::dh;
use crate::secret::SecretBytes;

/// The byte in front of every Curve25519 public key on the wire: `0x05`.
pub const KEY_TYPE: u8 = 0x05;

/// Bytes of a public key on the wire: the type byte and the u-coordinate.
pub const PUBLIC_KEY_LEN: usize = 33;

/// A key that cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// A private Kyber key whose public half is not the one it was made with.
    #[error("the Kyber key contradicts itself")]
    Inconsistent,
    /// The bytes of a Kyber key or ciphertext are not as many as its kind has.
    #[error("{0} bytes are not a Kyber key or ciphertext")]
    KyberLength(usize),
    /// The bytes are not exactly 33 long.
    #[error("a public key has 33 bytes, not {0}")]
    Length(usize),
    /// The agreement gave zero, so the other key is a point of small order.
    #[error("the key agreement gave zero")]
    NonContributory,
    /// A base key that is not canonical, or not on the prime-order subgroup.
    #[error("the base key is not canonical")]
    NotCanonical,
    /// A coefficient of a Kyber key is 3329 or more.
    #[error("the Kyber key is not reduced")]
    NotReduced,
    /// The first byte is not `0x05`, or not `0x08` for a Kyber key.
    #[error("unknown key type {0:#04x}")]
    Type(u8),
}

/// A Curve25519 public key: `0x05 ‖ u` on the wire, 33 bytes.
#[derive(Clone, Copy, Eq, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads `0x05 ‖ u`.
    ///
    /// Signal's parser drops bytes behind the first 33; this one refuses them, since no client sends
    /// any.
    ///
    /// # Errors
    ///
    /// [`KeyError::Length`] unless there are exactly 33 bytes, [`KeyError::Type`] unless the first is
    /// `0x05`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if let Some(&first) = bytes.first()
            && first != KEY_TYPE
        {
            return Err(KeyError::Type(first));
        }
        match bytes.split_first() {
            Some((_, u)) => u
                .try_into()
                .map(Self)
                .map_err(|_| KeyError::Length(bytes.len())),
            None => Err(KeyError::Length(0)),
        }
    }

    /// The 33 bytes `0x05 ‖ u`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; PUBLIC_KEY_LEN] {
        let mut bytes = [KEY_TYPE; PUBLIC_KEY_LEN];
        bytes[1..].copy_from_slice(&self.0);
        bytes
    }

    pub(crate) const fn from_u(u: [u8; 32]) -> Self {
        Self(u)
    }

    /// The u-coordinate alone, 32 bytes little-endian.
    #[must_use]
    pub const fn u(&self) -> &[u8; 32] {
        &self.0
    }

    /// Refuses a key with bit 255 set, a value of 2²⁵⁵ − 19 or more, and a point with torsion.
    ///
    /// The responder applies this to the initiator's base key. An honest key always passes; without the
    /// check one session could be opened with several encodings of the same base key.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotCanonical`].
    pub fn check_canonical(&self) -> Result<(), KeyError> {
        let point = MontgomeryPoint(self.0)
            .to_edwards(0)
            .ok_or(KeyError::NotCanonical)?;
        if point.to_montgomery().to_bytes() == self.0 && point.is_torsion_free() {
            Ok(())
        } else {
            Err(KeyError::NotCanonical)
        }
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(u) = self;
        write!(
            f,
            "PublicKey({:02x}{:02x}{:02x}{:02x}…)",
            u[0], u[1], u[2], u[3]
        )
    }
}

/// A Curve25519 private key: 32 bytes, clamped (RFC 7748, section 5).
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(SecretBytes);

impl PrivateKey {
    /// Clamps a copy of the bytes; erasing the original is the caller's business.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SecretBytes::filled_by(|key| {
            *key = *bytes;
            clamp(key);
        }))
    }

    /// Draws 32 bytes and clamps them.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self(SecretBytes::filled_by(|key| {
            rng.fill_bytes(key);
            clamp(key);
        }))
    }

    /// The clamped key.
    ///
    /// # Security
    ///
    /// These bytes are the secret itself. Seal them before they are stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// One multiplication of the base point.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(dh::public_key(self.as_bytes()))
    }

    /// `X25519(self, theirs)` (RFC 7748).
    ///
    /// # Errors
    ///
    /// [`KeyError::NonContributory`] when the result is zero.
    pub(crate) fn agree(&self, theirs: &PublicKey) -> Result<SecretBytes, KeyError> {
        dh::agree(self.as_bytes(), &theirs.0).ok_or(KeyError::NonContributory)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.write_str("PrivateKey([secret])")
    }
}

const fn clamp(key: &mut [u8; 32]) {
    key[0] &= 0b1111_1000;
    key[31] = (key[31] & 0b0111_1111) | 0b0100_0000;
}

/// A private key with its public key beside it, so that the latter is computed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    public: PublicKey,
    private: PrivateKey,
}

impl KeyPair {
    /// Draws a private key and computes the public one.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        PrivateKey::generate(rng).into()
    }

    /// The pair of a stored private key whose public key is stored beside it; the two are not compared.
    #[must_use]
    pub const fn from_parts(public: PublicKey, private: PrivateKey) -> Self {
        Self { public, private }
    }

    /// The public half.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// The private half.
    #[must_use]
    pub const fn private_key(&self) -> &PrivateKey {
        &self.private
    }

    pub(crate) fn agree(&self, theirs: &PublicKey) -> Result<SecretBytes, KeyError> {
        self.private.agree(theirs)
    }
}

impl From<PrivateKey> for KeyPair {
    fn from(private: PrivateKey) -> Self {
        Self {
            public: private.public_key(),
            private,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_33_bytes_with_the_type_byte_are_a_public_key() {
        assert_eq!(PublicKey::from_bytes(&[]), Err(KeyError::Length(0)));
        assert_eq!(PublicKey::from_bytes(&[5; 32]), Err(KeyError::Length(32)));
        assert_eq!(PublicKey::from_bytes(&[5; 34]), Err(KeyError::Length(34)));
        assert_eq!(PublicKey::from_bytes(&[4; 33]), Err(KeyError::Type(4)));
        assert_eq!(PublicKey::from_bytes(&[5; 33]).unwrap().to_bytes(), [5; 33]);
    }

    #[test]
    fn debug_of_a_private_key_shows_nothing() {
        let pair = KeyPair::from(PrivateKey::from_bytes(&[0x41; 32]));
        let shown = format!("{pair:?}");
        assert!(shown.contains("PrivateKey([secret])"), "{shown}");
        assert!(
            !shown.contains("41, 41") && !shown.contains("4141"),
            "{shown}"
        );
    }

    #[test]
    fn base_keys_must_be_canonical_and_free_of_torsion() {
        let honest = PrivateKey::from_bytes(&[9; 32]).public_key();
        assert_eq!(honest.check_canonical(), Ok(()));

        let mut high_bit = *honest.u();
        high_bit[31] |= 0x80;
        assert_eq!(
            PublicKey(high_bit).check_canonical(),
            Err(KeyError::NotCanonical)
        );

        // 2^255 - 19 + 9, another encoding of the base point.
        let mut unreduced = [0xff; 32];
        unreduced[0] = 0xf6;
        unreduced[31] = 0x7f;
        assert_eq!(
            PublicKey(unreduced).check_canonical(),
            Err(KeyError::NotCanonical)
        );

        for low_order in [0, 1] {
            let mut u = [0; 32];
            u[0] = low_order;
            assert_eq!(PublicKey(u).check_canonical(), Err(KeyError::NotCanonical));
        }
    }
}
