//! X3DH: the handshake that starts a version 3 session.

use zeroize::Zeroizing;

use crate::agreement::Agreements;
use crate::primitives::hkdf;
use crate::ratchet::{ChainKey, RootKey};

/// HKDF info of the version 3 handshake.
const LABEL: &[u8] = b"WhisperText";

/// `HKDF(no salt, agreements, "WhisperText", 64)` → root key (32) ‖ chain key (32).
pub(crate) fn derive(agreements: &Agreements) -> (RootKey, ChainKey) {
    let mut output = Zeroizing::new([0; 64]);
    hkdf(None, agreements.as_bytes(), LABEL, &mut output);
    RootKey::split(&output)
}
