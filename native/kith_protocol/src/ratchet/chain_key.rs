use hmac::Mac;

use super::MessageSeed;
use crate::primitives::hmac;
use crate::secret::SecretBytes;

/// What is hashed for the seed of a message's keys.
const MESSAGE_SEED: [u8; 1] = [0x01];
/// What is hashed for the next chain key.
const NEXT_CHAIN_KEY: [u8; 1] = [0x02];

/// The key `CK` of a symmetric chain and its index: the number of the message it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainKey {
    key: SecretBytes,
    index: u32,
}

impl ChainKey {
    pub(crate) const fn new(key: SecretBytes, index: u32) -> Self {
        Self { key, index }
    }

    pub(crate) fn from_bytes(key: &[u8; 32], index: u32) -> Self {
        Self::new(SecretBytes::copy_of(key), index)
    }

    pub(crate) const fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// The seed of message `index`, and the chain behind it; `None` at the end of the 32-bit counter.
    ///
    /// ```text
    /// seed = HMAC(CK, 0x01)      CK' = HMAC(CK, 0x02)
    /// ```
    pub(crate) fn step(&self) -> Option<(MessageSeed, Self)> {
        let index = self.index.checked_add(1)?;
        let keyed = hmac(self.as_bytes());
        let seed = hash(keyed.clone(), MESSAGE_SEED);
        Some((
            MessageSeed::new(seed),
            Self {
                key: hash(keyed, NEXT_CHAIN_KEY),
                index,
            },
        ))
    }

    /// The chain one message further, for a message whose key is not wanted: half the work of
    /// [`step`](Self::step).
    pub(crate) fn pass_over(&self) -> Option<Self> {
        let index = self.index.checked_add(1)?;
        Some(Self {
            key: hash(hmac(self.as_bytes()), NEXT_CHAIN_KEY),
            index,
        })
    }
}

fn hash(mut keyed: crate::primitives::HmacSha256, input: [u8; 1]) -> SecretBytes {
    keyed.update(&input);
    SecretBytes::filled_by(|key| key.copy_from_slice(&keyed.finalize().into_bytes()))
}
