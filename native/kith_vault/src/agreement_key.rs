use std::fmt;

use hkdf::Hkdf;
use rand_core::TryCryptoRng;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::{
    aead_key::{KEY_BYTES, Sealed},
    cipher::{Cipher, CipherKey},
    error::{ClientKeyError, VaultError},
    secret_key::SecretKey,
    signing_key::verifying_key,
};

/// The X25519 key (RFC 7748) a service has in common with no client, and derives a key for each of them with.
///
/// Boxed by [`SecretKey`], and zeroized on drop.
pub struct AgreementKey {
    secret: SecretKey,
    public: [u8; 32],
}

impl AgreementKey {
    /// The key of a scalar.
    #[must_use]
    pub fn new(secret: SecretKey) -> Self {
        let public = Self::public_key_of(&secret);
        Self { secret, public }
    }

    /// The public key of a scalar.
    #[must_use]
    pub fn public_key_of(secret: &SecretKey) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(*secret.copy())).to_bytes()
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// Derives the key of a client for a purpose. The same arguments give the same key; nothing of it is stored.
    ///
    /// # Errors
    ///
    /// [`ClientKeyError::Malformed`] if the client's key is of small order: the result would be known to everybody.
    pub fn derive(
        &self,
        client: &ClientPublicKey,
        purpose: &Purpose<'_>,
    ) -> Result<ClientKey, ClientKeyError> {
        let shared = StaticSecret::from(*self.secret.copy())
            .diffie_hellman(&PublicKey::from(client.to_bytes()));
        if !shared.was_contributory() {
            return Err(ClientKeyError::Malformed);
        }

        let algorithm = [algorithm(purpose.cipher)];
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        Hkdf::<Sha256>::new(purpose.salt, shared.as_bytes())
            .expand_multi_info(
                &[
                    LABEL,
                    &algorithm,
                    &client.to_bytes(),
                    &self.public,
                    purpose.info,
                ],
                key.as_mut_slice(),
            )
            // HKDF gives up to 8,160 bytes.
            .map_err(|_| ClientKeyError::TooLarge)?;

        Ok(ClientKey {
            header: header(purpose.cipher, &self.public),
            key: CipherKey::new(purpose.cipher, &key),
        })
    }
}

impl fmt::Debug for AgreementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            secret: _,
            public: _,
        } = self;
        f.debug_struct("AgreementKey").finish_non_exhaustive()
    }
}

/// The public key of a client, as a point of X25519.
pub struct ClientPublicKey([u8; 32]);

impl ClientPublicKey {
    /// Takes a key of X25519. One of small order is found when a key is derived.
    ///
    /// # Errors
    ///
    /// [`ClientKeyError::Malformed`] if it is not 32 bytes.
    pub fn from_x25519(bytes: &[u8]) -> Result<Self, ClientKeyError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| ClientKeyError::Malformed)
    }

    /// Takes a key of Ed25519, as the X25519 key that libsodium's `crypto_sign_ed25519_pk_to_curve25519` makes of it.
    ///
    /// # Errors
    ///
    /// [`ClientKeyError::Malformed`] if it is none, of small order, not canonical, or outside the subgroup of the base point.
    pub fn from_ed25519(bytes: &[u8]) -> Result<Self, ClientKeyError> {
        let key = verifying_key(bytes).map_err(|_| ClientKeyError::Malformed)?;
        if !key.to_edwards().is_torsion_free() {
            return Err(ClientKeyError::Malformed);
        }
        Ok(Self(key.to_montgomery().to_bytes()))
    }

    /// The bytes of the X25519 key.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }
}

/// What a derived key is for. Another purpose is another key.
pub struct Purpose<'a> {
    /// What it seals with.
    pub cipher: Cipher,
    /// The salt of HKDF, or none.
    pub salt: Option<&'a [u8]>,
    /// The namespace, such as `data-at-rest-key`.
    pub info: &'a [u8],
}

const fn algorithm(cipher: Cipher) -> u8 {
    match cipher {
        Cipher::Aes256Gcm => 0x20,
        Cipher::ChaCha20Poly1305 => 0x21,
    }
}

/// A key derived for one client and one purpose.
pub struct ClientKey {
    header: [u8; HEADER_BYTES],
    key: CipherKey,
}

impl ClientKey {
    /// Seals bytes, together with data that is not stored.
    ///
    /// # Errors
    ///
    /// [`ClientKeyError::Random`] if the generator fails, [`ClientKeyError::TooLarge`] beyond the limit of the cipher.
    pub fn seal<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        associated_data: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, ClientKeyError> {
        let overhead = HEADER_BYTES + Sealed::OVERHEAD;
        let mut sealed = Vec::with_capacity(overhead.saturating_add(plaintext.len()));
        sealed.extend_from_slice(&self.header);
        let associated_data = [self.header.as_slice(), associated_data].concat();
        self.key
            .seal(rng, &associated_data, plaintext, &mut sealed)?;
        Ok(sealed)
    }

    /// Opens what [`Self::seal`] sealed.
    ///
    /// # Errors
    ///
    /// [`ClientKeyError::Malformed`] if the bytes are none, [`ClientKeyError::Tampered`] if they do not open with this key and
    /// this data.
    pub fn open(
        &self,
        associated_data: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ClientKeyError> {
        let (header, rest) = sealed
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(ClientKeyError::Malformed)?;
        let sealed = Sealed::from_bytes(rest).ok_or(ClientKeyError::Malformed)?;
        if header.first() != Some(&VERSION) {
            return Err(ClientKeyError::Malformed);
        }
        if *header != self.header {
            return Err(ClientKeyError::Tampered);
        }
        let associated_data = [header.as_slice(), associated_data].concat();
        self.key
            .open(&associated_data, &sealed)
            .map_err(|_| ClientKeyError::Tampered)
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header: _, key: _ } = self;
        f.debug_struct("ClientKey").finish_non_exhaustive()
    }
}

impl From<VaultError> for ClientKeyError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Random => Self::Random,
            VaultError::TooLarge => Self::TooLarge,
            // Nothing here is asked of a key service.
            VaultError::Cold
            | VaultError::CorruptedState
            | VaultError::KeyNotFound { .. }
            | VaultError::Locked
            | VaultError::Unavailable
            | VaultError::Unmade => Self::Tampered,
        }
    }
}

/// The name of a public key of a service: the first half of its SHA-256.
#[must_use]
pub fn public_key_id(public_key: &[u8]) -> [u8; PUBLIC_KEY_ID_BYTES] {
    let mut id = [0; PUBLIC_KEY_ID_BYTES];
    for (byte, hashed) in id.iter_mut().zip(Sha256::digest(public_key)) {
        *byte = hashed;
    }
    id
}

fn header(cipher: Cipher, public_key: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let [version, algorithm, id @ ..] = &mut header;
    *version = VERSION;
    *algorithm = self::algorithm(cipher);
    id.copy_from_slice(&public_key_id(public_key));
    header
}

/// Keeps these keys apart from whatever else is derived from the same agreement.
const LABEL: &[u8] = b"kith-client-key-v1\0";

/// The length of the name of a public key.
const PUBLIC_KEY_ID_BYTES: usize = 16;

/// The version of the layout of sealed bytes.
const VERSION: u8 = 1;

/// Version, algorithm, name of the service's key.
const HEADER_BYTES: usize = 2 + PUBLIC_KEY_ID_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_key() {
        let key = AgreementKey::new(SecretKey::from_slice(&[1; 32]).unwrap());
        assert_eq!(format!("{key:?}"), "AgreementKey { .. }");
        let purpose = Purpose {
            cipher: Cipher::Aes256Gcm,
            salt: None,
            info: b"",
        };
        let client = ClientPublicKey::from_x25519(&key.public_key()).unwrap();
        let derived = key.derive(&client, &purpose).unwrap();
        assert_eq!(format!("{derived:?}"), "ClientKey { .. }");
    }
}
