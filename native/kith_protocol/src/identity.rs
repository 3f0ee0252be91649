//! Identity keys: the long-term key of a device, and the trust others put in it.

use rand_core::CryptoRng;

use crate::curve::{KeyError, KeyPair, PUBLIC_KEY_LEN, PrivateKey, PublicKey};
use crate::xeddsa::{self, SIGNATURE_LEN};

/// The long-term public key of a device, `IK` in the specifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdentityKey(PublicKey);

impl IdentityKey {
    /// Reads `0x05 ‖ u`, 33 bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError::Length`] or [`KeyError::Type`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        PublicKey::from_bytes(bytes).map(Self)
    }

    /// The 33 bytes `0x05 ‖ u`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; PUBLIC_KEY_LEN] {
        self.0.to_bytes()
    }

    /// The key as a plain public key.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.0
    }

    /// Whether `signature` (XEdDSA, 64 bytes) is one of `message` under this key.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        xeddsa::verify(&self.0, message, signature)
    }
}

impl From<PublicKey> for IdentityKey {
    fn from(key: PublicKey) -> Self {
        Self(key)
    }
}

/// The long-term key pair of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityKeyPair(KeyPair);

impl IdentityKeyPair {
    /// Draws a new pair.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        Self(KeyPair::generate(rng))
    }

    /// The pair of a stored private key (32 bytes; clamped).
    #[must_use]
    pub fn from_private_key(private: PrivateKey) -> Self {
        Self(private.into())
    }

    /// The pair of a stored private key whose public key is stored beside it; the two are not compared.
    #[must_use]
    pub fn from_parts(public: IdentityKey, private: PrivateKey) -> Self {
        Self(KeyPair::from_parts(public.0, private))
    }

    /// Reads a pair as Signal's own library stores it: a protobuf of the public key (1, 33 bytes) and the private key
    /// (2, 32 bytes), in the one form that has. `None` for other bytes, and for halves that do not belong together.
    #[must_use]
    pub fn from_official(bytes: &[u8]) -> Option<Self> {
        let (public, private) = bytes
            .strip_prefix(&[0x0a, 33])?
            .split_first_chunk::<PUBLIC_KEY_LEN>()?;
        let private = private.strip_prefix(&[0x12, 32])?.try_into().ok()?;
        let pair = Self::from_private_key(PrivateKey::from_bytes(private));
        (pair.identity_key().to_bytes() == *public).then_some(pair)
    }

    /// The public half.
    #[must_use]
    pub const fn identity_key(&self) -> IdentityKey {
        IdentityKey(*self.0.public_key())
    }

    /// The private half.
    #[must_use]
    pub const fn private_key(&self) -> &PrivateKey {
        self.0.private_key()
    }

    /// An XEdDSA signature, 64 bytes, different each time.
    pub fn sign<R: CryptoRng + ?Sized>(&self, message: &[u8], rng: &mut R) -> [u8; SIGNATURE_LEN] {
        xeddsa::sign(self.0.private_key(), message, rng)
    }

    pub(crate) const fn key_pair(&self) -> &KeyPair {
        &self.0
    }
}

/// Which way a message goes when the trust in an identity is asked for. Sending may be stricter than
/// receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A message from the peer is about to be accepted.
    Receiving,
    /// A message to the peer is about to be made.
    Sending,
}

/// Decides whether the identity key a peer presents is trusted.
///
/// The decision belongs to the application. [`TrustOnFirstUse`] is the usual one.
pub trait Trust {
    /// Whether `presented` may be used in this direction.
    fn is_trusted(&self, presented: &IdentityKey, direction: Direction) -> bool;
}

/// Trusts the remembered identity, and any identity when none is remembered; in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrustOnFirstUse(pub Option<IdentityKey>);

impl Trust for TrustOnFirstUse {
    fn is_trusted(&self, presented: &IdentityKey, _direction: Direction) -> bool {
        self.0.is_none_or(|known| known == *presented)
    }
}

impl<F: Fn(&IdentityKey, Direction) -> bool> Trust for F {
    fn is_trusted(&self, presented: &IdentityKey, direction: Direction) -> bool {
        self(presented, direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_read_in_the_one_form_it_has() {
        let pair = IdentityKeyPair::from_private_key(PrivateKey::from_bytes(&[7; 32]));
        let public = pair.identity_key().to_bytes();
        let official = [
            &[0x0a, 33],
            public.as_slice(),
            &[0x12, 32],
            pair.private_key().as_bytes(),
        ]
        .concat();
        assert_eq!(IdentityKeyPair::from_official(&official), Some(pair));

        for len in 0..official.len() {
            assert_eq!(IdentityKeyPair::from_official(&official[..len]), None);
        }
        let longer = [&official, [0].as_slice()].concat();
        assert_eq!(IdentityKeyPair::from_official(&longer), None);
        // The halves of a pair belong together, and what is around them is fixed.
        for at in [0, 1, 2, 3, 35, 36, 45] {
            let mut changed = official.clone();
            changed[at] ^= 1;
            assert_eq!(IdentityKeyPair::from_official(&changed), None, "byte {at}");
        }
    }
}
