use std::fmt;

use rand_core::TryCryptoRng;
use zeroize::Zeroizing;

use crate::{
    blob::{Wrapped, Wrapping},
    context::Context,
    data_key::{DataKey, DataKeyId},
    error::{ConfigError, VaultError},
    key_encryption_key::KeyEncryptionKey,
    key_id::KeyId,
    secret_key::SecretKey,
    source::Source,
};

/// The key-encryption keys of a server: the current one, which wraps, and retired ones, which still open.
///
/// Each key is zeroized when the vault is dropped.
pub struct Vault {
    current: KeyEncryptionKey,
    retired: Vec<KeyEncryptionKey>,
}

impl Vault {
    /// Takes every key from its source. The one named `current` wraps, the others only open.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if an id comes twice, `current` is not among the keys, or a key cannot be taken from its source.
    pub fn new(current: KeyId, keys: Vec<(KeyId, Source)>) -> Result<Self, ConfigError> {
        let mut wrapping = None;
        let mut retired: Vec<KeyEncryptionKey> = Vec::with_capacity(keys.len());

        for (id, source) in keys {
            if wrapping
                .iter()
                .chain(&retired)
                .any(|known: &KeyEncryptionKey| known.id == id)
            {
                return Err(ConfigError::DuplicateKeyId { id });
            }
            let key = KeyEncryptionKey::load(id, &source)?;
            if key.id == current {
                wrapping = Some(key);
            } else {
                retired.push(key);
            }
        }

        match wrapping {
            Some(wrapping) => Ok(Self {
                current: wrapping,
                retired,
            }),
            None => Err(ConfigError::CurrentKeyMissing { id: current }),
        }
    }

    /// Draws a new data key and returns it wrapped under the current key, for one place. The result is for storing;
    /// [`Self::open_data_key`] gives the key to work with.
    ///
    /// # Errors
    ///
    /// [`VaultError::Random`] if the generator fails.
    pub fn create_data_key<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
    ) -> Result<Vec<u8>, VaultError> {
        let id = DataKeyId::generate(rng)?;
        let key = SecretKey::generate(rng)?;
        let content = key.as_bytes();
        self.wrap(rng, context, Wrapping::KeyEncryptionKey, id, content)
    }

    /// Wraps a key under the current key, for one place, as a data key is wrapped. [`Self::open_secret_key`] gives it back.
    ///
    /// # Errors
    ///
    /// [`VaultError::Random`] if the generator fails.
    pub fn wrap_secret_key<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        key: &SecretKey,
    ) -> Result<Vec<u8>, VaultError> {
        let id = DataKeyId::generate(rng)?;
        let content = key.as_bytes();
        self.wrap(rng, context, Wrapping::KeyEncryptionKey, id, content)
    }

    pub(crate) fn wrap<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        wrapping: Wrapping,
        id: DataKeyId,
        content: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let mut wrapped = Wrapped::header(wrapping, id, &self.current.id, content.len());
        let associated_data = context.associated_data(&wrapped);
        self.current
            .key
            .seal(rng, &associated_data, content, &mut wrapped)?;
        Ok(wrapped)
    }

    /// Opens a data key that was wrapped for this place, under whichever of the keys it names.
    ///
    /// # Errors
    ///
    /// [`VaultError::KeyNotFound`] if the vault does not hold the key it names, [`VaultError::Locked`] for one that is
    /// locked under a password, [`VaultError::CorruptedState`] if it does not open.
    pub fn open_data_key(&self, context: &Context, wrapped: &[u8]) -> Result<DataKey, VaultError> {
        let (id, key) = self.open_wrapped(context, wrapped)?;
        Ok(DataKey::new(id, key.as_bytes()))
    }

    /// Opens a key that [`Self::wrap_secret_key`] wrapped for this place.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open_data_key`].
    pub fn open_secret_key(
        &self,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<SecretKey, VaultError> {
        self.open_wrapped(context, wrapped).map(|(_, key)| key)
    }

    fn open_wrapped(
        &self,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<(DataKeyId, SecretKey), VaultError> {
        let (id, key) = self.unwrap(context, Wrapping::KeyEncryptionKey, wrapped)?;
        let key = SecretKey::from_slice(&key).ok_or(VaultError::CorruptedState)?;
        Ok((id, key))
    }

    pub(crate) fn unwrap(
        &self,
        context: &Context,
        wrapping: Wrapping,
        blob: &[u8],
    ) -> Result<(DataKeyId, Zeroizing<Vec<u8>>), VaultError> {
        let wrapped = Wrapped::from_bytes(blob)?;
        let Some(key) = self
            .keys()
            .find(|key| key.id.as_str().as_bytes() == wrapped.key_encryption_key_id)
        else {
            return Err(VaultError::KeyNotFound {
                id: wrapped.key_encryption_key_id()?,
            });
        };
        let content = key
            .key
            .open(&context.associated_data(wrapped.header), &wrapped.sealed)?;
        // What it says it is, it is only now.
        match wrapped.wrapping {
            found if found == wrapping => Ok((wrapped.data_key_id, content)),
            Wrapping::Locked => Err(VaultError::Locked),
            Wrapping::KeyEncryptionKey | Wrapping::Token => Err(VaultError::CorruptedState),
        }
    }

    /// The id of the key that wraps new data keys. A data key [`wrapped_by`](crate::wrapped_by) another one is due for
    /// rewrapping.
    #[must_use]
    pub fn current_key_id(&self) -> &KeyId {
        &self.current.id
    }

    /// The ids of all keys, the current one first.
    pub fn key_ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys().map(|key| &key.id)
    }

    fn keys(&self) -> impl Iterator<Item = &KeyEncryptionKey> {
        std::iter::once(&self.current).chain(&self.retired)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { current, retired } = self;
        f.debug_struct("Vault")
            .field("current", current)
            .field("retired", retired)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{RefUnwindSafe, UnwindSafe};

    use zeroize::Zeroizing;

    use super::*;
    use crate::aead_key::KEY_BYTES;

    #[test]
    fn debug_shows_ids_and_no_key() {
        let source = |byte| Source::Key(Zeroizing::new(vec![byte; KEY_BYTES]));
        let (new, old) = (KeyId::new("new").unwrap(), KeyId::new("old").unwrap());
        let vault = Vault::new(new.clone(), vec![(old, source(1)), (new, source(2))]).unwrap();
        assert_eq!(
            format!("{vault:?}"),
            "Vault { current: KeyEncryptionKey { id: KeyId(\"new\"), .. }, \
             retired: [KeyEncryptionKey { id: KeyId(\"old\"), .. }] }"
        );
    }

    #[test]
    fn a_vault_is_shared_between_threads_and_survives_a_caught_panic() {
        fn assert_shareable<T: Send + Sync + UnwindSafe + RefUnwindSafe>() {}
        assert_shareable::<Vault>();
        assert_shareable::<DataKey>();
    }
}
