use std::fmt;

use hmac::Mac;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::identity::IdentityKey;
use crate::limits::MESSAGE_MAC_LEN;
use crate::primitives::{cbc_decrypt, cbc_encrypt, hkdf, hmac, truncated};
use crate::secret::SecretBytes;

/// HKDF info of the keys of one message.
const LABEL: &[u8] = b"WhisperMessageKeys";

/// What the keys of one message are derived from.
///
/// The key of the post-quantum ratchet enters that derivation as its salt, and is known only when the
/// message arrives. So what is kept for a skipped message is the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MessageSeed(SecretBytes);

impl MessageSeed {
    pub(crate) const fn new(seed: SecretBytes) -> Self {
        Self(seed)
    }

    pub(crate) fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SecretBytes::copy_of(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// `HKDF(salt, seed, "WhisperMessageKeys", 80)` → cipher key ‖ MAC key ‖ IV.
    ///
    /// `salt` is the key of the post-quantum ratchet, or nothing where a session has none.
    pub(crate) fn expand(&self, salt: Option<&[u8; 32]>) -> MessageKeys {
        let mut keys = MessageKeys(Box::new([0; 80]));
        hkdf(salt, self.as_bytes(), LABEL, &mut keys.0);
        keys
    }
}

/// The keys of one message: cipher key (32) ‖ MAC key (32) ‖ IV (16).
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(crate) struct MessageKeys(Box<[u8; 80]>);

impl MessageKeys {
    pub(crate) fn from_bytes(bytes: &[u8; 80]) -> Self {
        Self(Box::new(*bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 80] {
        &self.0
    }

    fn part<const N: usize>(&self, at: usize) -> &[u8; N] {
        // The three parts lie within the 80 bytes, so the first branch is always taken.
        self.0[at..].first_chunk().unwrap_or(&[0; N])
    }

    pub(crate) fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        cbc_encrypt(self.part(0), self.part(64), plaintext)
    }

    pub(crate) fn decrypt(&self, ciphertext: &[u8]) -> Option<Vec<u8>> {
        cbc_decrypt(self.part(0), self.part(64), ciphertext)
    }

    /// The first 8 bytes of `HMAC(MAC key, sender identity ‖ receiver identity ‖ version byte ‖ protobuf)`.
    pub(crate) fn mac(
        &self,
        sender: &IdentityKey,
        receiver: &IdentityKey,
        message: &[u8],
    ) -> [u8; MESSAGE_MAC_LEN] {
        let mut mac = hmac(self.part(32));
        mac.update(&sender.to_bytes());
        mac.update(&receiver.to_bytes());
        mac.update(message);
        truncated(mac)
    }
}

impl fmt::Debug for MessageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.write_str("MessageKeys([secret])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let keys = MessageKeys::from_bytes(&[7; 80]);
        assert_eq!(format!("{keys:?}"), "MessageKeys([secret])");
    }
}
