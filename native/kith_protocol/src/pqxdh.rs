//! PQXDH: the handshake that starts a version 4 session. X3DH's agreements and the shared secret of a KEM, so
//! that who records the handshake today and breaks Curve25519 one day still has to break Kyber too.

use zeroize::Zeroizing;

use crate::agreement::Agreements;
use crate::primitives::hkdf;
use crate::ratchet::{ChainKey, RootKey};
use crate::secret::SecretBytes;

/// HKDF info of the version 4 handshake.
const LABEL: &[u8] = b"WhisperText_X25519_SHA-256_CRYSTALS-KYBER-1024";

/// What both sides know after the handshake.
pub(crate) struct HandshakeKeys {
    pub(crate) root_key: RootKey,
    pub(crate) chain_key: ChainKey,
    /// What the post-quantum ratchet starts from.
    pub(crate) auth_key: SecretBytes,
}

/// `HKDF(no salt, agreements ‖ KEM secret, label, 96)` → root key (32) ‖ chain key (32) ‖ auth key (32).
pub(crate) fn derive(agreements: Agreements, shared_secret: &SecretBytes) -> HandshakeKeys {
    let mut output = Zeroizing::new([0; 96]);
    hkdf(
        None,
        agreements.with(shared_secret).as_bytes(),
        LABEL,
        &mut output,
    );
    let part = |at: usize| SecretBytes::filled_by(|key| key.copy_from_slice(&output[at..at + 32]));
    HandshakeKeys {
        root_key: RootKey::new(part(0)),
        chain_key: ChainKey::new(part(32), 0),
        auth_key: part(64),
    }
}
