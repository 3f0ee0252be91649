use std::{fmt, sync::Arc};

use rand_core::TryCryptoRng;
use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::{
    aead_key::{AeadKey, KEY_BYTES},
    blob::WrappedDataKey,
    context::Context,
    data_key::DataKeyId,
    error::{ConfigError, KeyDefect, VaultError},
    key_id::KeyId,
    service::{KeyService, ServiceCiphertext, ServiceError},
    source::{Loaded, Source},
};

/// A key-encryption key: wraps data keys and nothing else.
pub(crate) struct KeyEncryptionKey {
    pub(crate) id: KeyId,
    pub(crate) provider: Provider,
}

/// Who has the key.
pub(crate) enum Provider {
    /// This process: boxed, and zeroized on drop.
    Local(AeadKey),
    /// A key service. The id is that of the key that stands in for it.
    Service(Arc<dyn KeyService>, Option<KeyId>),
}

// A local key zeroizes itself; of a service there is nothing to erase.
impl ZeroizeOnDrop for KeyEncryptionKey {}

impl KeyEncryptionKey {
    pub(crate) fn load(id: KeyId, source: &Source) -> Result<Self, ConfigError> {
        let bad_key = |defect| ConfigError::BadKey {
            id: id.clone(),
            origin: source.to_string(),
            defect,
        };
        let provider = match source.load(&id).map_err(bad_key)? {
            Loaded::Service(service, fallback) => Provider::Service(service, fallback),
            Loaded::Key(bytes) => {
                let key = bytes
                    .as_slice()
                    .try_into()
                    .map_err(|_| bad_key(KeyDefect::Length { bytes: bytes.len() }))?;
                Provider::Local(AeadKey::held(key))
            }
        };
        Ok(Self { id, provider })
    }

    pub(crate) fn is_local(&self) -> bool {
        matches!(self.provider, Provider::Local(_))
    }

    /// Wraps a data key for one place. With a key service it blocks.
    pub(crate) fn wrap<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        id: DataKeyId,
        key: &[u8; KEY_BYTES],
    ) -> Result<Vec<u8>, VaultError> {
        match &self.provider {
            Provider::Local(wrapping) => {
                let mut wrapped = WrappedDataKey::header(id, &self.id);
                let associated_data = context.associated_data(&wrapped);
                wrapping.seal(rng, &associated_data, key, &mut wrapped)?;
                Ok(wrapped)
            }
            Provider::Service(service, _) => {
                // The service encrypts a key that is drawn for this one wrapping, and that key seals the data key: to its
                // place and its header, which the service does not know to do.
                let mut wrapping = Zeroizing::new([0; KEY_BYTES]);
                rng.try_fill_bytes(wrapping.as_mut_slice())
                    .map_err(VaultError::random::<R>)?;
                let (service_key, ciphertext) =
                    self.encrypt(service.as_ref(), context, &wrapping)?;

                let mut wrapped =
                    WrappedDataKey::service_header(id, &self.id, &service_key, &ciphertext);
                let associated_data = context.associated_data(&wrapped);
                AeadKey::new(&wrapping).seal(rng, &associated_data, key, &mut wrapped)?;
                Ok(wrapped)
            }
        }
    }

    fn encrypt(
        &self,
        service: &dyn KeyService,
        context: &Context,
        wrapping: &[u8; KEY_BYTES],
    ) -> Result<(crate::ServiceKey, ServiceCiphertext), VaultError> {
        let failed = |error| self.service_error(error);
        let associated_data = context.fingerprint();
        let key = service.create(&context.place()).map_err(failed)?;
        if !key.is_well_formed() {
            return Err(VaultError::Unavailable);
        }
        let ciphertext = service
            .encrypt(&key.id, wrapping, &associated_data)
            .map_err(failed)?;
        if ciphertext.bytes.len() > ServiceCiphertext::MAX_BYTES {
            return Err(VaultError::Unavailable);
        }
        // What does not come back would be lost, and is noticed now.
        let back = service
            .decrypt(&key.id, &ciphertext, &associated_data)
            .map_err(|_| VaultError::Unavailable)?;
        if !bool::from(back.as_slice().ct_eq(wrapping)) {
            return Err(VaultError::Unavailable);
        }
        Ok((key, ciphertext))
    }

    /// Opens a data key that this key wrapped for this place. With a key service it blocks.
    pub(crate) fn unwrap(
        &self,
        context: &Context,
        wrapped: &WrappedDataKey<'_>,
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, VaultError> {
        let associated_data = context.associated_data(wrapped.header);
        let opened = match (&self.provider, &wrapped.service) {
            (Provider::Local(wrapping), None) => {
                wrapping.open(&associated_data, &wrapped.sealed)?
            }
            (Provider::Service(service, _), Some(part)) => {
                let key_id = str::from_utf8(part.key_id).map_err(|_| VaultError::CorruptedState)?;
                let ciphertext = ServiceCiphertext {
                    bytes: part.ciphertext.to_vec(),
                    key_version: part.key_version,
                };
                let wrapping = service
                    .decrypt(key_id, &ciphertext, &context.fingerprint())
                    .map_err(|error| self.service_error(error))?;
                let wrapping = wrapping
                    .as_slice()
                    .try_into()
                    .map_err(|_| VaultError::CorruptedState)?;
                AeadKey::new(wrapping).open(&associated_data, &wrapped.sealed)?
            }
            _ => return Err(VaultError::CorruptedState),
        };
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if opened.len() != KEY_BYTES {
            return Err(VaultError::CorruptedState);
        }
        key.copy_from_slice(&opened);
        Ok(key)
    }

    fn service_error(&self, error: ServiceError) -> VaultError {
        match error {
            ServiceError::Unavailable => VaultError::Unavailable,
            ServiceError::KeyNotFound => VaultError::KeyNotFound {
                id: self.id.clone(),
            },
            ServiceError::Refused => VaultError::CorruptedState,
        }
    }
}

impl fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, provider: _ } = self;
        f.debug_struct("KeyEncryptionKey")
            .field("id", id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn load(bytes: usize) -> Result<KeyEncryptionKey, ConfigError> {
        KeyEncryptionKey::load(
            KeyId::new("k1").unwrap(),
            &Source::Key(Zeroizing::new(vec![0x42; bytes])),
        )
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        for bytes in [0, 16, 31, 33, 64] {
            let error = load(bytes).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "key \"k1\" from bytes given directly: expected a key of 32 bytes, got {bytes}"
                )
            );
        }
    }

    #[test]
    fn a_key_encryption_key_stays_in_its_place_when_moved() {
        let address = |key: &KeyEncryptionKey| match &key.provider {
            Provider::Local(key) => key.address(),
            Provider::Service(..) => panic!("it is local"),
        };
        let key = load(32).unwrap();
        let before = address(&key);
        let moved = Box::new(key);
        assert_eq!(address(&moved), before);
    }

    #[test]
    fn a_key_encryption_key_is_zeroized_on_drop() {
        fn assert_zeroize_on_drop<T: ZeroizeOnDrop>() {}
        assert_zeroize_on_drop::<KeyEncryptionKey>();
    }

    #[test]
    fn debug_shows_the_id_and_no_key() {
        assert_eq!(
            format!("{:?}", load(32).unwrap()),
            "KeyEncryptionKey { id: KeyId(\"k1\"), .. }"
        );
    }
}
