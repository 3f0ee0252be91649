//! The Diffie-Hellman agreements both handshakes begin with.

use zeroize::Zeroizing;

use crate::curve::{KeyError, KeyPair, PublicKey};
use crate::identity::{IdentityKey, IdentityKeyPair};
use crate::secret::SecretBytes;

/// The bytes in front of the agreements: `0xFF × 32`, which no encoding of a curve point equals.
const DISCONTINUITY: [u8; 32] = [0xff; 32];

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

/// `0xFF × 32 ‖ DH(IK_A, SPK_B) ‖ DH(EK_A, IK_B) ‖ DH(EK_A, SPK_B) [‖ DH(EK_A, OPK_B)]`
pub(crate) struct Agreements(Zeroizing<Vec<u8>>);

impl Agreements {
    /// The initiator's way.
    pub(crate) fn initiate(
        identity: &IdentityKeyPair,
        base_key: &KeyPair,
        theirs: &RemoteKeys<'_>,
    ) -> Result<Self, KeyError> {
        Ok(Self::new(&[
            Some(identity.key_pair().agree(theirs.signed_prekey)?),
            Some(base_key.agree(theirs.identity_key.public_key())?),
            Some(base_key.agree(theirs.signed_prekey)?),
            theirs
                .prekey
                .map(|prekey| base_key.agree(prekey))
                .transpose()?,
        ]))
    }

    /// The responder's way.
    ///
    /// # Errors
    ///
    /// [`KeyError::NotCanonical`] for a base key no honest initiator makes; checked before anything else.
    pub(crate) fn respond(
        ours: &LocalKeys<'_>,
        identity_key: &IdentityKey,
        base_key: &PublicKey,
    ) -> Result<Self, KeyError> {
        base_key.check_canonical()?;
        Ok(Self::new(&[
            Some(ours.signed_prekey.agree(identity_key.public_key())?),
            Some(ours.identity.key_pair().agree(base_key)?),
            Some(ours.signed_prekey.agree(base_key)?),
            ours.prekey
                .map(|prekey| prekey.agree(base_key))
                .transpose()?,
        ]))
    }

    fn new(agreements: &[Option<SecretBytes>; 4]) -> Self {
        // Room for the secret of the KEM as well, so that no second copy is left behind.
        let mut input = Zeroizing::new(Vec::with_capacity(6 * 32));
        input.extend_from_slice(&DISCONTINUITY);
        for agreement in agreements.iter().flatten() {
            input.extend_from_slice(agreement.as_bytes());
        }
        Self(input)
    }

    /// With the shared secret of a KEM behind them.
    pub(crate) fn with(mut self, shared_secret: &SecretBytes) -> Self {
        self.0.extend_from_slice(shared_secret.as_bytes());
        self
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
