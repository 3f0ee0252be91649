use std::{fmt, sync::Arc};

use rand_core::TryCryptoRng;
use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::{
    aead_key::{AeadKey, KEY_BYTES},
    blob::Wrapped,
    context::Context,
    error::{ConfigError, KeyDefect, VaultError},
    key_id::KeyId,
    service::{KeyService, ServiceCiphertext, ServiceError, ServiceKey},
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

/// What wraps next in a place, of a key service.
pub(crate) enum Made {
    Served {
        key: ServiceKey,
        ciphertext: ServiceCiphertext,
        wrapping: AeadKey,
    },
    /// The service was away, and the key that stands in for it does it.
    Fallback,
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
        let provider = match source.open(&id).map_err(bad_key)? {
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

    /// Has the service make and encrypt a key for one place, which seals what is wrapped there. It blocks.
    pub(crate) fn make<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        service: &dyn KeyService,
        context: &Context,
    ) -> Result<Made, VaultError> {
        // A key that is drawn for one wrapping: it binds what it seals to its place and its header, which the service does not
        // know to do.
        let mut wrapping = Zeroizing::new([0; KEY_BYTES]);
        rng.try_fill_bytes(wrapping.as_mut_slice())
            .map_err(VaultError::random::<R>)?;
        let failed = |error| self.service_error(error);
        let associated_data = context.fingerprint();
        let key = service.create(&context.place()).map_err(failed)?;
        if !key.is_well_formed() {
            return Err(VaultError::Unavailable);
        }
        let ciphertext = service
            .encrypt(&key.id, wrapping.as_slice(), &associated_data)
            .map_err(failed)?;
        if ciphertext.bytes.len() > ServiceCiphertext::MAX_BYTES {
            return Err(VaultError::Unavailable);
        }
        // What does not come back would be lost, and is noticed now.
        let back = service
            .decrypt(&key.id, &ciphertext, &associated_data)
            .map_err(|_| VaultError::Unavailable)?;
        if !bool::from(back.as_slice().ct_eq(wrapping.as_slice())) {
            return Err(VaultError::Unavailable);
        }
        Ok(Made::Served {
            key,
            ciphertext,
            wrapping: AeadKey::held(&wrapping),
        })
    }

    /// What was wrapped for this place with the help of this service. It blocks.
    pub(crate) fn unwrap(
        &self,
        service: &dyn KeyService,
        context: &Context,
        wrapped: &Wrapped<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let Some(part) = &wrapped.service else {
            return Err(VaultError::CorruptedState);
        };
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
        let associated_data = context.associated_data(wrapped.header);
        AeadKey::new(wrapping).open(&associated_data, &wrapped.sealed)
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
