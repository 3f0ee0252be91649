//! X3DH: the key agreement that starts a version 3 session.
//!
//! PQXDH, the agreement of version 4, takes the same input and appends the shared secret of a KEM.

use zeroize::Zeroizing;

use crate::curve::{KeyError, KeyPair, PublicKey};
use crate::identity::{IdentityKey, IdentityKeyPair};
use crate::primitives::hkdf;
use crate::ratchet::{ChainKey, RootKey};
use crate::secret::SecretBytes;

/// HKDF info of the version 3 handshake.
const LABEL: &[u8] = b"WhisperText";

/// The bytes in front of the agreements: `0xFF × 32`, which no encoding of a curve point equals.
const DISCONTINUITY: [u8; 32] = [0xff; 32];

/// What both sides know after the handshake.
pub(crate) struct HandshakeKeys {
    pub(crate) root_key: RootKey,
    pub(crate) chain_key: ChainKey,
}

/// The responder's public keys, as the initiator found them in a bundle.
pub(crate) struct RemoteKeys<'a> {
    pub(crate) identity_key: &'a IdentityKey,
    pub(crate) signed_prekey: &'a PublicKey,
    pub(crate) prekey: Option<&'a PublicKey>,
}

/// The responder's own keys, named by a prekey message.
pub(crate) struct LocalKeys<'a> {
    pub(crate) identity: &'a IdentityKeyPair,
    pub(crate) signed_prekey: &'a KeyPair,
    pub(crate) prekey: Option<&'a KeyPair>,
}

/// `DH(IK_A, SPK_B) ‖ DH(EK_A, IK_B) ‖ DH(EK_A, SPK_B) [‖ DH(EK_A, OPK_B)]`, the initiator's way.
pub(crate) fn initiate(
    identity: &IdentityKeyPair,
    base_key: &KeyPair,
    theirs: &RemoteKeys<'_>,
) -> Result<HandshakeKeys, KeyError> {
    Ok(derive(&[
        Some(identity.key_pair().agree(theirs.signed_prekey)?),
        Some(base_key.agree(theirs.identity_key.public_key())?),
        Some(base_key.agree(theirs.signed_prekey)?),
        theirs
            .prekey
            .map(|prekey| base_key.agree(prekey))
            .transpose()?,
    ]))
}

/// The same agreements, the responder's way.
///
/// # Errors
///
/// [`KeyError::NotCanonical`] for a base key no honest initiator makes; checked before anything else.
pub(crate) fn respond(
    ours: &LocalKeys<'_>,
    identity_key: &IdentityKey,
    base_key: &PublicKey,
) -> Result<HandshakeKeys, KeyError> {
    base_key.check_canonical()?;
    Ok(derive(&[
        Some(ours.signed_prekey.agree(identity_key.public_key())?),
        Some(ours.identity.key_pair().agree(base_key)?),
        Some(ours.signed_prekey.agree(base_key)?),
        ours.prekey
            .map(|prekey| prekey.agree(base_key))
            .transpose()?,
    ]))
}

/// `HKDF(no salt, 0xFF × 32 ‖ agreements, "WhisperText", 64)` → root key ‖ chain key.
fn derive(agreements: &[Option<SecretBytes>; 4]) -> HandshakeKeys {
    let mut input = Zeroizing::new(Vec::with_capacity(5 * 32));
    input.extend_from_slice(&DISCONTINUITY);
    for agreement in agreements.iter().flatten() {
        input.extend_from_slice(agreement.as_bytes());
    }
    let mut output = Zeroizing::new([0; 64]);
    hkdf(None, &input, LABEL, &mut output);
    let (root_key, chain_key) = RootKey::split(&output);
    HandshakeKeys {
        root_key,
        chain_key,
    }
}
