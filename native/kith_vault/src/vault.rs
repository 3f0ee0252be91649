use std::{fmt, sync::Arc, time::Instant};

use rand_core::TryCryptoRng;
use zeroize::Zeroizing;

use crate::{
    aead_key::KEY_BYTES,
    blob::WrappedDataKey,
    context::Context,
    data_key::{DataKey, DataKeyId},
    error::{ConfigError, VaultError},
    key_encryption_key::{KeyEncryptionKey, Provider},
    key_id::KeyId,
    open_keys::{CacheLimits, OpenKeys},
    source::Source,
};

/// The key-encryption keys of a server: the current one, which wraps, and retired ones, which still open.
///
/// Each key is zeroized when the vault is dropped.
pub struct Vault {
    current: KeyEncryptionKey,
    retired: Vec<KeyEncryptionKey>,
    open: OpenKeys,
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

        let Some(wrapping) = wrapping else {
            return Err(ConfigError::CurrentKeyMissing { id: current });
        };
        let vault = Self {
            current: wrapping,
            retired,
            open: OpenKeys::default(),
        };
        vault.check_fallbacks()?;
        Ok(vault)
    }

    fn check_fallbacks(&self) -> Result<(), ConfigError> {
        for key in self.keys() {
            if let Provider::Service(_, Some(fallback)) = &key.provider
                && !self.keys().any(|key| key.id == *fallback && key.is_local())
            {
                return Err(ConfigError::BadFallback {
                    id: key.id.clone(),
                    fallback: fallback.clone(),
                });
            }
        }
        Ok(())
    }

    /// Bounds what is kept open of the data keys that a key service has a part in.
    #[must_use]
    pub fn with_cache(self, limits: CacheLimits) -> Self {
        Self {
            open: OpenKeys::new(limits),
            ..self
        }
    }

    /// Draws a new data key and returns it wrapped under the current key, for one place. The result is for storing;
    /// [`Self::open_data_key`] gives the key to work with.
    ///
    /// # Errors
    ///
    /// [`VaultError::Random`] if the generator fails. [`VaultError::Cold`] if the current key is that of a key service and
    /// [`Self::prepare_data_key`] has not made one for this place before.
    pub fn create_data_key<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
    ) -> Result<Vec<u8>, VaultError> {
        match &self.current.provider {
            Provider::Local(_) => {
                let (id, key) = draw(rng)?;
                self.current.wrap(rng, context, id, &key)
            }
            Provider::Service(..) => self
                .open
                .take_made(context.encoded(), Instant::now())
                .ok_or(VaultError::Cold),
        }
    }

    /// Makes the data key that [`Self::create_data_key`] returns next for this place. For as long as the key service
    /// takes, it blocks.
    ///
    /// Returns whether the key service was there: if not, the key that stands in for it has wrapped the data key.
    ///
    /// # Errors
    ///
    /// [`VaultError::Unavailable`] if the key service is away and no key stands in for it; [`VaultError::Random`].
    pub fn prepare_data_key<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
    ) -> Result<bool, VaultError> {
        let (id, key) = draw(rng)?;
        let (wrapped, served) = match self.current.wrap(rng, context, id, &key) {
            Err(VaultError::Unavailable) => {
                let fallback = self.fallback().ok_or(VaultError::Unavailable)?;
                (fallback.wrap(rng, context, id, &key)?, false)
            }
            wrapped => (wrapped?, true),
        };
        let now = Instant::now();
        if served {
            let name = name(context, &wrapped);
            self.open.put(name, Arc::new(DataKey::held(id, &key)), now);
        }
        self.open.keep_made(context.encoded().into(), wrapped, now);
        Ok(served)
    }

    fn fallback(&self) -> Option<&KeyEncryptionKey> {
        let Provider::Service(_, Some(fallback)) = &self.current.provider else {
            return None;
        };
        self.keys()
            .find(|key| key.id == *fallback && key.is_local())
    }

    /// Opens a data key that was wrapped for this place, under whichever of the keys it names.
    ///
    /// One that a key service has a part in is only found here when [`Self::fetch_data_key`] has opened it before.
    ///
    /// # Errors
    ///
    /// [`VaultError::KeyNotFound`] if the vault does not hold the key it names, [`VaultError::CorruptedState`] if it does
    /// not open, [`VaultError::Cold`] if it takes a call to the key service.
    pub fn open_data_key(
        &self,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<Arc<DataKey>, VaultError> {
        let parsed = WrappedDataKey::from_bytes(wrapped)?;
        let wrapping = self.wrapping(&parsed)?;
        if wrapping.is_local() {
            let key = wrapping.unwrap(context, &parsed)?;
            return Ok(Arc::new(DataKey::new(parsed.data_key_id, &key)));
        }
        self.open
            .get(&name(context, wrapped), Instant::now())
            .ok_or(VaultError::Cold)
    }

    /// Opens a data key that a key service has a part in, and keeps it for [`Self::open_data_key`]. For as long as the
    /// key service takes, it blocks.
    ///
    /// # Errors
    ///
    /// As [`Self::open_data_key`], and [`VaultError::Unavailable`] in place of [`VaultError::Cold`].
    pub fn fetch_data_key(&self, context: &Context, wrapped: &[u8]) -> Result<(), VaultError> {
        let parsed = WrappedDataKey::from_bytes(wrapped)?;
        let wrapping = self.wrapping(&parsed)?;
        let name = name(context, wrapped);
        if wrapping.is_local() || self.open.get(&name, Instant::now()).is_some() {
            return Ok(());
        }
        let key = wrapping.unwrap(context, &parsed)?;
        let key = Arc::new(DataKey::held(parsed.data_key_id, &key));
        self.open.put(name, key, Instant::now());
        Ok(())
    }

    /// Erases the open data keys whose time is over. Others are erased when they are next asked for.
    pub fn sweep(&self) {
        self.open.sweep(Instant::now());
    }

    /// Erases all open data keys.
    pub fn forget(&self) {
        self.open.clear();
    }

    /// How many data keys are kept open.
    #[must_use]
    pub fn open_data_keys(&self) -> usize {
        self.open.len()
    }

    fn wrapping(&self, wrapped: &WrappedDataKey<'_>) -> Result<&KeyEncryptionKey, VaultError> {
        match self
            .keys()
            .find(|key| key.id.as_str().as_bytes() == wrapped.key_encryption_key_id)
        {
            Some(key) => Ok(key),
            None => Err(VaultError::KeyNotFound {
                id: wrapped.key_encryption_key_id()?,
            }),
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

/// A data key and its id.
fn draw<R: TryCryptoRng + ?Sized>(
    rng: &mut R,
) -> Result<(DataKeyId, Zeroizing<[u8; KEY_BYTES]>), VaultError> {
    let mut id = [0; DataKeyId::BYTES];
    rng.try_fill_bytes(&mut id)
        .map_err(VaultError::random::<R>)?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rng.try_fill_bytes(key.as_mut_slice())
        .map_err(VaultError::random::<R>)?;
    Ok((DataKeyId::from_bytes(id), key))
}

/// Everything that decides whether a wrapped data key opens: its place and all of its bytes.
fn name(context: &Context, wrapped: &[u8]) -> Box<[u8]> {
    context.associated_data(wrapped).into()
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            current,
            retired,
            open: _,
        } = self;
        f.debug_struct("Vault")
            .field("current", current)
            .field("retired", retired)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{RefUnwindSafe, UnwindSafe};

    use super::*;

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
