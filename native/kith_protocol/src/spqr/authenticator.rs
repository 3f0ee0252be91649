//! What authenticates the keys and ciphertexts of the exchange, which no message's MAC covers as a whole.

use hmac::Mac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::kem::{CT1_LEN, CT2_LEN, HEADER_LEN};
use crate::primitives::{hkdf, hmac, truncated};
use crate::secret::SecretBytes;

/// HKDF info of an epoch secret, before the epoch.
const SECRET_LABEL: &[u8] = b"Signal_PQCKA_V1_MLKEM768:SCKA Key";
/// HKDF info of an update, before the epoch.
const UPDATE_LABEL: &[u8] = b"Signal_PQCKA_V1_MLKEM768:Authenticator Update";
/// What is authenticated of a header, before the epoch.
const HEADER_LABEL: &[u8] = b"Signal_PQCKA_V1_MLKEM768:ekheader";
/// What is authenticated of a ciphertext, before the epoch.
const CIPHERTEXT_LABEL: &[u8] = b"Signal_PQCKA_V1_MLKEM768:ciphertext";

/// `K = HKDF(0³², shared secret, "…:SCKA Key" ‖ BE64(epoch), 32)`.
pub(crate) fn epoch_secret(epoch: u64, shared_secret: &SecretBytes) -> SecretBytes {
    let info = [SECRET_LABEL, &epoch.to_be_bytes()].concat();
    SecretBytes::filled_by(|key| hkdf(None, shared_secret.as_bytes(), &info, key))
}

/// The authenticator: a root that takes in every epoch's secret, and the MAC key it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authenticator {
    root: SecretBytes,
    mac_key: SecretBytes,
}

impl Authenticator {
    /// The authenticator of a new session: zeros, updated with epoch 1 and the key of the handshake.
    pub(crate) fn new(auth_key: &[u8; 32]) -> Self {
        let zero = SecretBytes::copy_of(&[0; 32]);
        Self::from_parts(zero.clone(), zero).update(1, &SecretBytes::copy_of(auth_key))
    }

    pub(crate) const fn from_parts(root: SecretBytes, mac_key: SecretBytes) -> Self {
        Self { root, mac_key }
    }

    pub(crate) const fn root(&self) -> &SecretBytes {
        &self.root
    }

    pub(crate) const fn mac_key(&self) -> &SecretBytes {
        &self.mac_key
    }

    /// `HKDF(0³², root ‖ key, "…:Authenticator Update" ‖ BE64(epoch), 64)` → root ‖ MAC key.
    #[must_use]
    pub(crate) fn update(&self, epoch: u64, key: &SecretBytes) -> Self {
        let mut input = Zeroizing::new([0; 64]);
        input[..32].copy_from_slice(self.root.as_bytes());
        input[32..].copy_from_slice(key.as_bytes());
        let info = [UPDATE_LABEL, &epoch.to_be_bytes()].concat();
        let mut output = Zeroizing::new([0; 64]);
        hkdf(None, &*input, &info, &mut output);
        let half =
            |at: usize| SecretBytes::filled_by(|key| key.copy_from_slice(&output[at..at + 32]));
        Self::from_parts(half(0), half(32))
    }

    /// `HMAC(MAC key, "…:ekheader" ‖ BE64(epoch) ‖ header)`.
    pub(crate) fn header_mac(&self, epoch: u64, header: &[u8; HEADER_LEN]) -> [u8; 32] {
        self.mac(HEADER_LABEL, epoch, &[header])
    }

    /// `HMAC(MAC key, "…:ciphertext" ‖ BE64(epoch) ‖ ct1 ‖ ct2)`.
    pub(crate) fn ciphertext_mac(
        &self,
        epoch: u64,
        ct1: &[u8; CT1_LEN],
        ct2: &[u8; CT2_LEN],
    ) -> [u8; 32] {
        self.mac(CIPHERTEXT_LABEL, epoch, &[ct1, ct2])
    }

    fn mac(&self, label: &[u8], epoch: u64, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = hmac(self.mac_key.as_bytes());
        mac.update(label);
        mac.update(&epoch.to_be_bytes());
        for part in parts {
            mac.update(part);
        }
        truncated(mac)
    }

    /// Whether the MAC of a header is right; compared in constant time.
    pub(crate) fn verify_header(
        &self,
        epoch: u64,
        header: &[u8; HEADER_LEN],
        mac: &[u8; 32],
    ) -> bool {
        self.header_mac(epoch, header).ct_eq(mac).into()
    }

    /// Whether the MAC of a ciphertext is right; compared in constant time.
    pub(crate) fn verify_ciphertext(
        &self,
        epoch: u64,
        ct1: &[u8; CT1_LEN],
        ct2: &[u8; CT2_LEN],
        mac: &[u8; 32],
    ) -> bool {
        self.ciphertext_mac(epoch, ct1, ct2).ct_eq(mac).into()
    }
}
