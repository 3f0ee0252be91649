use std::panic::{RefUnwindSafe, UnwindSafe};

use zeroize::Zeroizing;

/// A key service outside of this process, which has a key-encryption key that it gives to nobody.
///
/// It makes keys and uses them on behalf of this crate: [`create`](Self::create) is `CreateDEKForThread`,
/// [`encrypt`](Self::encrypt) `EncryptWithDEK`, [`decrypt`](Self::decrypt) `DecryptWithDEK`. It never sees a data key: what it
/// encrypts is a key drawn for one data key, which seals that data key to its place here.
///
/// Calls block for as long as the service takes.
pub trait KeyService: Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Makes a key for a place, by a name that tells nothing about it.
    ///
    /// # Errors
    ///
    /// [`ServiceError`].
    fn create(&self, place: &str) -> Result<ServiceKey, ServiceError>;

    /// Encrypts under such a key.
    ///
    /// # Errors
    ///
    /// [`ServiceError`].
    fn encrypt(
        &self,
        key_id: &str,
        plaintext: &[u8],
        associated_data: &[u8],
    ) -> Result<ServiceCiphertext, ServiceError>;

    /// Decrypts what [`Self::encrypt`] returned.
    ///
    /// # Errors
    ///
    /// [`ServiceError`].
    fn decrypt(
        &self,
        key_id: &str,
        ciphertext: &ServiceCiphertext,
        associated_data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ServiceError>;
}

/// A key of the service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceKey {
    /// Its name there: 1 to [`MAX_SERVICE_KEY_ID`](Self::MAX_ID_BYTES) visible ASCII characters.
    pub id: String,
    /// The key as the service keeps it, under its own key-encryption key. Opaque, at most
    /// [`MAX_WRAPPED`](Self::MAX_WRAPPED_BYTES) bytes.
    pub wrapped: Vec<u8>,
}

impl ServiceKey {
    /// The most bytes of a name.
    pub const MAX_ID_BYTES: usize = 255;

    /// The most bytes of a wrapped key: more than any service is known to answer.
    pub const MAX_WRAPPED_BYTES: usize = 4_096;

    pub(crate) fn is_well_formed(&self) -> bool {
        (1..=Self::MAX_ID_BYTES).contains(&self.id.len())
            && self.id.bytes().all(|byte| byte.is_ascii_graphic())
            && self.wrapped.len() <= Self::MAX_WRAPPED_BYTES
    }
}

/// What the service encrypted, and under which version of its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceCiphertext {
    /// Nonce, ciphertext and tag, opaque here.
    pub bytes: Vec<u8>,
    /// 1 of a service that has no versions.
    pub key_version: u32,
}

impl ServiceCiphertext {
    /// The most bytes. What is encrypted has 32.
    pub const MAX_BYTES: usize = 1_024;
}

/// Why the service did not do it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServiceError {
    /// The service does not answer, or not as one does.
    Unavailable,
    /// It has no such key.
    KeyNotFound,
    /// It does not decrypt these bytes.
    Refused,
}
