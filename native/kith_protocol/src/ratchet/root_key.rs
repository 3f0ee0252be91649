use zeroize::Zeroizing;

use super::ChainKey;
use crate::curve::{KeyError, KeyPair, PublicKey};
use crate::primitives::hkdf;
use crate::secret::SecretBytes;

/// HKDF info of a root step.
const LABEL: &[u8] = b"WhisperRatchet";

/// The root key `RK`: moves with every Diffie-Hellman step, and gives each chain its first key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootKey(SecretBytes);

impl RootKey {
    pub(crate) const fn new(key: SecretBytes) -> Self {
        Self(key)
    }

    pub(crate) fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SecretBytes::copy_of(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// `HKDF(RK, DH(ours, theirs), "WhisperRatchet", 64)` → root key ‖ chain key.
    pub(crate) fn step(
        &self,
        ours: &KeyPair,
        theirs: &PublicKey,
    ) -> Result<(Self, ChainKey), KeyError> {
        let shared = ours.agree(theirs)?;
        let mut output = Zeroizing::new([0; 64]);
        hkdf(Some(self.as_bytes()), shared.as_bytes(), LABEL, &mut output);
        Ok(Self::split(&output))
    }

    /// Root key (32) ‖ key of a new chain (32).
    pub(crate) fn split(output: &[u8; 64]) -> (Self, ChainKey) {
        let half =
            |at: usize| SecretBytes::filled_by(|key| key.copy_from_slice(&output[at..at + 32]));
        (Self(half(0)), ChainKey::new(half(32), 0))
    }
}
