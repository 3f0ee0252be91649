use std::{fmt, sync::Arc, time::Instant};

use rand_core::TryCryptoRng;
use zeroize::Zeroizing;

use crate::{
    aead_key::AeadKey,
    blob::{Wrapped, Wrapping},
    cipher::Cipher,
    context::Context,
    data_key::{DataKey, DataKeyId, DataKeyName},
    error::{ConfigError, VaultError},
    key_encryption_key::{KeyEncryptionKey, Made, Provider},
    key_id::KeyId,
    memory::LockedBytes,
    open_keys::{CacheLimits, OpenKeys},
    secret_key::SecretKey,
    service::{ServiceCiphertext, ServiceKey},
    source::Source,
};

/// The key-encryption keys of a server: the current one, which wraps, and retired ones, which still open.
///
/// Each key is zeroized when the vault is dropped.
pub struct Vault {
    current: KeyEncryptionKey,
    retired: Vec<KeyEncryptionKey>,
    open: OpenKeys,
    cipher: Cipher,
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
            cipher: Cipher::default(),
        };
        vault.check_fallbacks()?;
        Ok(vault)
    }

    fn check_fallbacks(&self) -> Result<(), ConfigError> {
        for key in self.keys() {
            if let Provider::Service(_, Some(fallback)) = &key.provider
                && self.local(fallback).is_none()
            {
                return Err(ConfigError::BadFallback {
                    id: key.id.clone(),
                    fallback: fallback.clone(),
                });
            }
        }
        Ok(())
    }

    /// Bounds what is kept open of what a key service has a part in.
    #[must_use]
    pub fn with_cache(self, limits: CacheLimits) -> Self {
        Self {
            open: OpenKeys::new(limits),
            ..self
        }
    }

    /// What data keys seal with that are drawn from now on. Those that are there keep their cipher and open as before.
    #[must_use]
    pub fn with_cipher(self, cipher: Cipher) -> Self {
        Self { cipher, ..self }
    }

    /// Draws the id of a new data key.
    pub(crate) fn draw_name<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
    ) -> Result<DataKeyName, VaultError> {
        Ok(DataKeyName {
            id: DataKeyId::generate(rng)?,
            cipher: self.cipher,
        })
    }

    /// Draws a new data key and returns it wrapped under the current key, for one place. The result is for storing;
    /// [`Self::open_data_key`] gives the key to work with.
    ///
    /// # Errors
    ///
    /// [`VaultError::Random`] if the generator fails. [`VaultError::Unmade`] if the current key is that of a key service, which
    /// [`Self::prepare`] has not asked for this place.
    pub fn create_data_key<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
    ) -> Result<Vec<u8>, VaultError> {
        let name = self.draw_name(rng)?;
        let key = SecretKey::generate(rng)?;
        let content = key.as_bytes();
        self.wrap(rng, context, Wrapping::KeyEncryptionKey, name, content)
    }

    /// Wraps a key under the current key, for one place, as a data key is wrapped. [`Self::open_secret_key`] gives it back.
    ///
    /// # Errors
    ///
    /// Those of [`Self::create_data_key`].
    pub fn wrap_secret_key<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        key: &SecretKey,
    ) -> Result<Vec<u8>, VaultError> {
        let name = DataKeyName {
            id: DataKeyId::generate(rng)?,
            cipher: Cipher::default(),
        };
        let content = key.as_bytes();
        self.wrap(rng, context, Wrapping::KeyEncryptionKey, name, content)
    }

    pub(crate) fn wrap<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        wrapping: Wrapping,
        data_key: DataKeyName,
        content: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let wrapper = self.wrapper(context)?;
        self.wrap_by(&wrapper, rng, context, (wrapping, data_key), content)
    }

    /// What wraps in a place. Asked for first where the rest costs more.
    pub(crate) fn wrapper(&self, context: &Context) -> Result<Wrapper<'_>, VaultError> {
        let fallback = match &self.current.provider {
            Provider::Local(key) => return Ok(Wrapper::Local(&self.current.id, key)),
            Provider::Service(_, fallback) => fallback,
        };
        let made = self.open.take_made(context.named(), Instant::now());
        match made.ok_or(VaultError::Unmade)? {
            Made::Served {
                key,
                ciphertext,
                wrapping,
            } => Ok(Wrapper::Service(key, ciphertext, wrapping)),
            Made::Fallback => fallback
                .as_ref()
                .and_then(|id| self.local(id))
                .map(|(id, key)| Wrapper::Local(id, key))
                .ok_or(VaultError::Unavailable),
        }
    }

    pub(crate) fn wrap_by<R: TryCryptoRng + ?Sized>(
        &self,
        wrapper: &Wrapper<'_>,
        rng: &mut R,
        context: &Context,
        (wrapping, data_key): (Wrapping, DataKeyName),
        content: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        match wrapper {
            Wrapper::Local(key_id, key) => {
                let mut wrapped = Wrapped::header(wrapping, data_key, key_id, content.len());
                let associated_data = context.associated_data(&wrapped);
                key.seal(rng, &associated_data, content, &mut wrapped)?;
                Ok(wrapped)
            }
            Wrapper::Service(key, ciphertext, sealing) => {
                let parts = (key, ciphertext);
                let current = &self.current.id;
                let mut wrapped =
                    Wrapped::service_header(wrapping, data_key, current, parts, content.len());
                let associated_data = context.associated_data(&wrapped);
                sealing.seal(rng, &associated_data, content, &mut wrapped)?;
                if wrapping == Wrapping::KeyEncryptionKey {
                    // So that a new account is usable at once.
                    self.keep(name(context, &wrapped), content)?;
                }
                Ok(wrapped)
            }
        }
    }

    /// Opens a data key that was wrapped for this place, under whichever of the keys it names.
    ///
    /// # Errors
    ///
    /// [`VaultError::KeyNotFound`] if the vault does not hold the key it names, [`VaultError::Locked`] for one that is
    /// locked under a password, [`VaultError::CorruptedState`] if it does not open, [`VaultError::Cold`] if it takes a call to a
    /// key service, which [`Self::fetch`] makes.
    pub fn open_data_key(&self, context: &Context, wrapped: &[u8]) -> Result<DataKey, VaultError> {
        let (data_key, key) = self.open_wrapped(context, wrapped)?;
        Ok(DataKey::new(data_key, key.as_bytes()))
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
    ) -> Result<(DataKeyName, SecretKey), VaultError> {
        let (data_key, key) = self.unwrap(context, Wrapping::KeyEncryptionKey, wrapped)?;
        let key = SecretKey::from_slice(&key).ok_or(VaultError::CorruptedState)?;
        Ok((data_key, key))
    }

    pub(crate) fn unwrap(
        &self,
        context: &Context,
        wrapping: Wrapping,
        blob: &[u8],
    ) -> Result<(DataKeyName, Zeroizing<Vec<u8>>), VaultError> {
        let wrapped = Wrapped::from_bytes(blob)?;
        let key = self.key_of(&wrapped)?;
        let content = match (&key.provider, &wrapped.service) {
            (Provider::Local(key), None) => {
                key.open(&context.associated_data(wrapped.header), &wrapped.sealed)?
            }
            (Provider::Service(..), Some(_)) => {
                if wrapped.wrapping != wrapping {
                    // Not worth a call to the service: it opens as nothing else than what it says it is.
                    return Err(wrapped.wrapping.not_wanted());
                }
                let name = name(context, blob);
                let content = self.open.get(&name, Instant::now());
                if wrapping == Wrapping::Token {
                    self.open.remove(&name);
                }
                content.ok_or(VaultError::Cold)?
            }
            _ => return Err(VaultError::CorruptedState),
        };
        // What it says it is, it is only now.
        if wrapped.wrapping == wrapping {
            Ok((wrapped.data_key, content))
        } else {
            Err(wrapped.wrapping.not_wanted())
        }
    }

    fn key_of(&self, wrapped: &Wrapped<'_>) -> Result<&KeyEncryptionKey, VaultError> {
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

    /// Opens what was wrapped for a place with the help of a key service, and keeps it: the functions that open find it. For
    /// as long as the key service takes, it blocks. It does nothing for what no service has a part in.
    ///
    /// # Errors
    ///
    /// As [`Self::open_data_key`], and [`VaultError::Unavailable`] in place of [`VaultError::Cold`].
    pub fn fetch(&self, context: &Context, blob: &[u8]) -> Result<(), VaultError> {
        let wrapped = Wrapped::from_bytes(blob)?;
        let key = self.key_of(&wrapped)?;
        let Provider::Service(service, _) = &key.provider else {
            return Ok(());
        };
        let name = name(context, blob);
        if self.open.contains(&name, Instant::now()) {
            return Ok(());
        }
        let content = key.unwrap(service.as_ref(), context, &wrapped)?;
        self.keep(name, &content)
    }

    fn keep(&self, name: Box<[u8]>, content: &[u8]) -> Result<(), VaultError> {
        let content = LockedBytes::new(content).ok_or(VaultError::CorruptedState)?;
        self.open.put(name, Arc::new(content), Instant::now());
        Ok(())
    }

    /// Has a key service make what the next function needs that wraps something for a place. For as long as the key service
    /// takes, it blocks. It does nothing where the current key is none of a service.
    ///
    /// Returns whether the key service was there: if not, the key that stands in for it wraps next, where one does and
    /// `or_fallback` allows it.
    ///
    /// # Errors
    ///
    /// [`VaultError::Unavailable`] if the key service is away and no key stands in for it; [`VaultError::Random`].
    pub fn prepare<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        or_fallback: bool,
    ) -> Result<bool, VaultError> {
        let Provider::Service(service, fallback) = &self.current.provider else {
            return Ok(true);
        };
        let (made, served) = match self.current.make(rng, service.as_ref(), context) {
            Err(VaultError::Unavailable) if or_fallback && fallback.is_some() => {
                (Made::Fallback, false)
            }
            made => (made?, true),
        };
        self.open
            .keep_made(context.named().into(), made, Instant::now());
        Ok(served)
    }

    fn local(&self, id: &KeyId) -> Option<(&KeyId, &AeadKey)> {
        self.keys().find_map(|key| match &key.provider {
            Provider::Local(local) if key.id == *id => Some((&key.id, local)),
            _ => None,
        })
    }

    /// Erases what is kept open and whose time is over. The rest is erased when it is next asked for.
    pub fn sweep(&self) {
        self.open.sweep(Instant::now());
    }

    /// Erases all that is kept open.
    pub fn forget(&self) {
        self.open.clear();
    }

    /// How many data keys are kept open.
    #[must_use]
    pub fn open_data_keys(&self) -> usize {
        self.open.len()
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

/// What wraps in a place.
pub(crate) enum Wrapper<'a> {
    Local(&'a KeyId, &'a AeadKey),
    Service(ServiceKey, ServiceCiphertext, AeadKey),
}

/// Everything that decides whether something wrapped opens: its place and all of its bytes.
fn name(context: &Context, wrapped: &[u8]) -> Box<[u8]> {
    context.associated_data(wrapped).into()
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            current,
            retired,
            open: _,
            cipher,
        } = self;
        f.debug_struct("Vault")
            .field("current", current)
            .field("retired", retired)
            .field("cipher", cipher)
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
             retired: [KeyEncryptionKey { id: KeyId(\"old\"), .. }], cipher: Aes256Gcm }"
        );
    }

    #[test]
    fn a_vault_is_shared_between_threads_and_survives_a_caught_panic() {
        fn assert_shareable<T: Send + Sync + UnwindSafe + RefUnwindSafe>() {}
        assert_shareable::<Vault>();
        assert_shareable::<DataKey>();
    }
}
