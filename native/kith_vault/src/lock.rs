//! Data keys under a password: what an account is locked with.

use std::{fmt, ops::Deref};

use rand_core::TryCryptoRng;
use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::{
    Vault,
    aead_key::{AeadKey, KEY_BYTES, NONCE_BYTES, Sealed, TAG_BYTES},
    blob::{Wrapped, Wrapping},
    cipher::Cipher,
    context::Context,
    data_key::{DataKey, DataKeyId, DataKeyName},
    error::{LockError, VaultError},
    memory::LockedBytes,
    password::{PasswordHash, PasswordParameters, derive},
    secret_key::SecretKey,
};

/// A data key that was opened with its password, and can be locked again or put into a token.
///
/// On pages of its own, which are locked where the system allows it, and zeroized on drop.
#[derive(ZeroizeOnDrop)]
pub struct UnlockedKey {
    key: DataKey,
    bytes: LockedBytes,
}

impl UnlockedKey {
    fn from_slice(name: DataKeyName, bytes: &[u8]) -> Result<Self, VaultError> {
        let key = bytes.try_into().map_err(|_| VaultError::CorruptedState)?;
        Ok(Self {
            key: DataKey::held(name, key),
            bytes: LockedBytes::new(bytes).ok_or(VaultError::CorruptedState)?,
        })
    }
}

impl UnlockedKey {
    /// Seals the key as a row under its successor: what is still under it opens for as long as that does.
    ///
    /// # Errors
    ///
    /// [`VaultError::Random`] if the generator fails.
    pub fn retire<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        successor: &DataKey,
    ) -> Result<Vec<u8>, VaultError> {
        let context = context.clone().bytes(self.key.id().to_bytes());
        // Room for all of it, or growing would leave the key behind in freed memory.
        let mut content = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
        content.extend_from_slice(&self.bytes.get());
        match self.key.cipher() {
            Cipher::Aes256Gcm => {}
            Cipher::ChaCha20Poly1305 => content.push(RETIRED_CHACHA20_POLY1305),
        }
        successor.seal(rng, &context, &content)
    }

    /// Opens what [`Self::retire`] sealed.
    ///
    /// # Errors
    ///
    /// [`VaultError::CorruptedState`] if it is not that key in that place.
    pub fn from_retired(
        id: DataKeyId,
        context: &Context,
        successor: &DataKey,
        sealed: &[u8],
    ) -> Result<Self, VaultError> {
        let context = context.clone().bytes(id.to_bytes());
        let content = successor.open(&context, sealed)?;
        let (key, cipher) = match content.split_at_checked(KEY_BYTES) {
            Some((key, [])) => (key, Cipher::Aes256Gcm),
            Some((key, [RETIRED_CHACHA20_POLY1305])) => (key, Cipher::ChaCha20Poly1305),
            _ => return Err(VaultError::CorruptedState),
        };
        Self::from_slice(DataKeyName { id, cipher }, key)
    }
}

impl Deref for UnlockedKey {
    type Target = DataKey;

    fn deref(&self) -> &DataKey {
        &self.key
    }
}

impl fmt::Debug for UnlockedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, bytes: _ } = self;
        f.debug_struct("UnlockedKey")
            .field("id", &key.id())
            .finish_non_exhaustive()
    }
}

/// What a token opens to: the key, which token it is, and until when it is good.
#[derive(Debug)]
pub struct Token {
    /// The key of the account.
    pub key: UnlockedKey,
    /// Which token this is, so that it can be revoked.
    pub id: [u8; Self::ID_BYTES],
    /// The time the caller gave when it was made.
    pub expires_at: u64,
}

impl Token {
    /// Bytes of the id of a token.
    pub const ID_BYTES: usize = 16;
}

impl Vault {
    /// Draws a new data key and locks it under a password. The blob is for storing in place of a wrapped data key; the
    /// key is open until it is dropped.
    ///
    /// # Errors
    ///
    /// [`LockError::Password`] for a password that is empty or of more than [`PasswordHash::MAX_PASSWORD_BYTES`] bytes, and
    /// where there is no memory for it; [`LockError::Vault`] if the generator fails.
    pub fn create_locked_data_key<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        parameters: PasswordParameters,
        password: &[u8],
    ) -> Result<(Vec<u8>, UnlockedKey), LockError> {
        let name = self.draw_name(rng)?;
        let bytes = SecretKey::generate(rng)?;
        let key = UnlockedKey::from_slice(name, bytes.as_bytes())?;
        let blob = self.lock(rng, context, parameters, password, &key)?;
        Ok((blob, key))
    }

    /// Locks an open data key under a password.
    ///
    /// # Errors
    ///
    /// As [`Self::create_locked_data_key`].
    pub fn lock<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        parameters: PasswordParameters,
        password: &[u8],
        key: &UnlockedKey,
    ) -> Result<Vec<u8>, LockError> {
        // Before the password is worked on: it may not be there.
        let wrapper = self.wrapper(context)?;
        let mut salt = [0; PasswordHash::SALT_BYTES];
        rng.try_fill_bytes(&mut salt)
            .map_err(VaultError::random::<R>)?;
        let (wrapping, commitment) = derived(parameters, password, &salt)?;

        let mut content = Zeroizing::new(Vec::with_capacity(CONTENT_BYTES));
        for number in [
            parameters.memory(),
            parameters.passes(),
            parameters.parallelism(),
        ] {
            content.extend_from_slice(&number.to_be_bytes());
        }
        content.extend_from_slice(&salt);
        content.extend_from_slice(commitment.as_slice());
        let name = key.name();
        let bound = context.associated_data(&name.id.to_bytes());
        wrapping.seal(rng, &bound, &key.bytes.get(), &mut content)?;
        Ok(self.wrap_by(&wrapper, rng, context, (Wrapping::Locked, name), &content)?)
    }

    /// Opens a locked data key with its password.
    ///
    /// # Errors
    ///
    /// [`LockError::WrongPassword`], which costs as much as the right one; those of [`Vault::open_data_key`] for a blob
    /// that does not open under the key-encryption keys, or is not locked.
    pub fn unlock(
        &self,
        context: &Context,
        blob: &[u8],
        password: &[u8],
    ) -> Result<UnlockedKey, LockError> {
        let (name, content) = self.unwrap(context, Wrapping::Locked, blob)?;
        let content = Content::parse(&content).ok_or(VaultError::CorruptedState)?;
        let (wrapping, commitment) = derived(content.parameters, password, content.salt)?;
        if !bool::from(commitment.as_slice().ct_eq(content.commitment)) {
            return Err(LockError::WrongPassword);
        }
        let bound = context.associated_data(&name.id.to_bytes());
        let bytes = wrapping.open(&bound, &content.sealed)?;
        Ok(UnlockedKey::from_slice(name, &bytes)?)
    }

    /// Opens a data key that is not locked as one that can be sealed elsewhere.
    ///
    /// # Errors
    ///
    /// Those of [`Vault::open_data_key`].
    pub fn open_unlocked(
        &self,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<UnlockedKey, VaultError> {
        let (name, bytes) = self.unwrap(context, Wrapping::KeyEncryptionKey, wrapped)?;
        UnlockedKey::from_slice(name, &bytes)
    }

    /// What a locked data key costs to open.
    ///
    /// # Errors
    ///
    /// Those of [`Vault::open_data_key`].
    pub fn lock_parameters(
        &self,
        context: &Context,
        blob: &[u8],
    ) -> Result<PasswordParameters, VaultError> {
        let (_, content) = self.unwrap(context, Wrapping::Locked, blob)?;
        Content::parse(&content)
            .map(|content| content.parameters)
            .ok_or(VaultError::CorruptedState)
    }

    /// Wraps an open data key under the current key-encryption key alone: it is locked no more.
    ///
    /// # Errors
    ///
    /// Those of [`Self::create_data_key`].
    pub fn wrap_unlocked<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        key: &UnlockedKey,
    ) -> Result<Vec<u8>, VaultError> {
        self.wrap(
            rng,
            context,
            Wrapping::KeyEncryptionKey,
            key.name(),
            &key.bytes.get(),
        )
    }

    /// Puts an open data key into a token, with its id and until when it is good. A token opens with the
    /// key-encryption keys of the server alone: it belongs where the server does not keep it, in a cookie.
    ///
    /// # Errors
    ///
    /// Those of [`Self::create_data_key`].
    pub fn token<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        key: &UnlockedKey,
        expires_at: u64,
    ) -> Result<(Vec<u8>, [u8; Token::ID_BYTES]), VaultError> {
        let mut id = [0; Token::ID_BYTES];
        rng.try_fill_bytes(&mut id)
            .map_err(VaultError::random::<R>)?;
        let mut content = Zeroizing::new(Vec::with_capacity(Token::ID_BYTES + 8 + KEY_BYTES));
        content.extend_from_slice(&id);
        content.extend_from_slice(&expires_at.to_be_bytes());
        content.extend_from_slice(&key.bytes.get());
        let token = self.wrap(rng, context, Wrapping::Token, key.name(), &content)?;
        Ok((token, id))
    }

    /// Opens a token. Whether it is still good is the caller's to say: nothing here knows the time.
    ///
    /// # Errors
    ///
    /// Those of [`Vault::open_data_key`].
    pub fn open_token(&self, context: &Context, token: &[u8]) -> Result<Token, VaultError> {
        let (name, content) = self.unwrap(context, Wrapping::Token, token)?;
        let parsed = content
            .split_first_chunk()
            .and_then(|(id, rest)| Some((id, rest.split_first_chunk::<8>()?)));
        let Some((id, (expires_at, bytes))) = parsed else {
            return Err(VaultError::CorruptedState);
        };
        Ok(Token {
            key: UnlockedKey::from_slice(name, bytes)?,
            id: *id,
            expires_at: u64::from_be_bytes(*expires_at),
        })
    }
}

/// The key a password gives, and what shows that it is the one without opening anything: AES-GCM does not commit to its
/// key, so that without it one could make a blob that opens under two passwords.
fn derived(
    parameters: PasswordParameters,
    password: &[u8],
    salt: &[u8],
) -> Result<(AeadKey, Zeroizing<[u8; COMMITMENT_BYTES]>), LockError> {
    let mut output = Zeroizing::new([0; KEY_BYTES + COMMITMENT_BYTES]);
    derive(parameters, password, salt, output.as_mut_slice())?;
    let mut commitment = Zeroizing::new([0; COMMITMENT_BYTES]);
    commitment.copy_from_slice(&output[KEY_BYTES..]);
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    key.copy_from_slice(&output[..KEY_BYTES]);
    Ok((AeadKey::new(&key), commitment))
}

/// What is sealed under the key-encryption key of a locked data key, taken apart.
struct Content<'a> {
    parameters: PasswordParameters,
    salt: &'a [u8],
    commitment: &'a [u8],
    sealed: Sealed<'a>,
}

impl<'a> Content<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (memory, rest) = bytes.split_first_chunk()?;
        let (passes, rest) = rest.split_first_chunk()?;
        let (parallelism, rest) = rest.split_first_chunk()?;
        let [memory, passes, parallelism] =
            [memory, passes, parallelism].map(|n| u32::from_be_bytes(*n));
        let (salt, rest) = rest.split_first_chunk::<{ PasswordHash::SALT_BYTES }>()?;
        let (commitment, rest) = rest.split_first_chunk::<COMMITMENT_BYTES>()?;
        let (sealed, stamp) = rest.split_first_chunk::<SEALED_KEY_BYTES>()?;
        if !matches!(stamp.len(), 0 | STAMP_BYTES) {
            return None;
        }
        Some(Self {
            parameters: PasswordParameters::new(memory, passes, parallelism).ok()?,
            salt,
            commitment,
            sealed: Sealed::from_bytes(sealed)?,
        })
    }
}

/// The content of a locked data key with another stamp: it opens as before, and is not the same lock.
fn stamped<R: TryCryptoRng + ?Sized>(
    rng: &mut R,
    content: &[u8],
) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let mut stamp = [0; STAMP_BYTES];
    rng.try_fill_bytes(&mut stamp)
        .map_err(VaultError::random::<R>)?;
    let unstamped = content
        .get(..CONTENT_BYTES)
        .ok_or(VaultError::CorruptedState)?;
    let mut stamped = Zeroizing::new(Vec::with_capacity(CONTENT_BYTES + STAMP_BYTES));
    stamped.extend_from_slice(unstamped);
    stamped.extend_from_slice(&stamp);
    Ok(stamped)
}

const COMMITMENT_BYTES: usize = 32;

/// Behind a retired key that seals with ChaCha20-Poly1305. Behind one of AES-256-GCM stands nothing.
const RETIRED_CHACHA20_POLY1305: u8 = 0x02;

const SEALED_KEY_BYTES: usize = NONCE_BYTES + KEY_BYTES + TAG_BYTES;

/// Three numbers, salt, commitment, and the data key under the key of the password.
const CONTENT_BYTES: usize = 12 + PasswordHash::SALT_BYTES + COMMITMENT_BYTES + SEALED_KEY_BYTES;

/// Random bytes behind that, once the account was locked: see [`Vault::is_same_lock`].
const STAMP_BYTES: usize = 8;

impl Vault {
    /// Whether two locked data keys of a place are one lock that was only wrapped anew: under another key-encryption key. Not
    /// if the password has changed in between, and not if [`Self::lock_anew`] was there.
    ///
    /// # Errors
    ///
    /// Those of [`Vault::open_data_key`], of either.
    pub fn is_same_lock(
        &self,
        context: &Context,
        one: &[u8],
        other: &[u8],
    ) -> Result<bool, VaultError> {
        let (name, content) = self.unwrap(context, Wrapping::Locked, one)?;
        let (other_name, other) = self.unwrap(context, Wrapping::Locked, other)?;
        Ok(name == other_name && content.ct_eq(&other).into())
    }

    /// Stores a locked data key anew, under the current key-encryption key, so that it is not the same lock any more. The
    /// password stays.
    ///
    /// # Errors
    ///
    /// Those of [`Self::rewrap`].
    pub fn lock_anew<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        blob: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let (name, content) = self.unwrap(context, Wrapping::Locked, blob)?;
        let content = stamped(rng, &content)?;
        self.wrap(rng, context, Wrapping::Locked, name, &content)
    }

    /// Wraps a data key anew under the current key-encryption key, whether it is locked or not. `None` where it is
    /// under that key already.
    ///
    /// # Errors
    ///
    /// Those of [`Vault::open_data_key`]: what does not open is not written anew. [`VaultError::Unmade`] says that it has opened,
    /// and that [`Self::prepare`] comes next.
    pub fn rewrap<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        blob: &[u8],
    ) -> Result<Option<Vec<u8>>, VaultError> {
        let wrapped = Wrapped::from_bytes(blob)?;
        let wrapping = wrapped.wrapping;
        // Opened also when there is nothing to do: what is said to be under the current key is.
        let (name, content) = self.unwrap(context, wrapping, blob)?;
        let current = self.current_key_id().as_str().as_bytes();
        if wrapped.key_encryption_key_id == current {
            return Ok(None);
        }
        self.wrap(rng, context, wrapping, name, &content).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;
    use crate::{KeyId, PasswordError, Source, blob::is_locked, wrapped_by, wrapped_key_info};

    const PASSWORD: &[u8] = b"correct horse battery";

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::from_seed([7; 32])
    }

    fn vault(current: &str) -> Vault {
        let keys = [("old", 1), ("new", 2)]
            .map(|(id, byte)| {
                let source = Source::Key(Zeroizing::new(vec![byte; KEY_BYTES]));
                (KeyId::new(id).unwrap(), source)
            })
            .into();
        Vault::new(KeyId::new(current).unwrap(), keys).unwrap()
    }

    fn cheap() -> PasswordParameters {
        PasswordParameters::new(64, 1, 1).unwrap()
    }

    fn place() -> Context {
        Context::new("data-key").bytes("anna")
    }

    fn locked(vault: &Vault) -> (Vec<u8>, UnlockedKey) {
        vault
            .create_locked_data_key(&mut rng(), &place(), cheap(), PASSWORD)
            .unwrap()
    }

    fn opens(key: &DataKey, row: &[u8]) -> bool {
        key.open(&Context::new("row"), row)
            .is_ok_and(|text| text.as_slice() == b"text")
    }

    fn row(key: &DataKey) -> Vec<u8> {
        key.seal(&mut rng(), &Context::new("row"), b"text").unwrap()
    }

    #[test]
    fn a_locked_key_opens_with_its_password_and_with_nothing_else() {
        let vault = vault("new");
        let (blob, key) = locked(&vault);
        let row = row(&key);
        assert!(is_locked(&blob));
        assert!(opens(
            &vault.unlock(&place(), &blob, PASSWORD).unwrap(),
            &row
        ));
        assert_eq!(
            vault.open_data_key(&place(), &blob).unwrap_err(),
            VaultError::Locked
        );
        for password in [&b"correct horse batterz"[..], b"x"] {
            assert_eq!(
                vault.unlock(&place(), &blob, password).unwrap_err(),
                LockError::WrongPassword
            );
        }
        assert_eq!(
            vault.unlock(&place(), &blob, b"").unwrap_err(),
            LockError::Password(PasswordError::Malformed)
        );
        assert_eq!(
            vault
                .unlock(&Context::new("data-key").bytes("ben"), &blob, PASSWORD)
                .unwrap_err(),
            LockError::Vault(VaultError::CorruptedState)
        );
    }

    #[test]
    fn every_changed_or_missing_byte_of_a_locked_key_is_noticed() {
        let vault = vault("new");
        let (blob, key) = locked(&vault);
        let row = row(&key);
        for at in 0..blob.len() {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            let opened = vault.unlock(&place(), &changed, PASSWORD);
            assert!(!opened.is_ok_and(|key| opens(&key, &row)), "byte {at}");
            assert!(vault.unlock(&place(), &blob[..at], PASSWORD).is_err());
        }
    }

    #[test]
    fn without_the_key_encryption_key_the_password_opens_nothing() {
        let (blob, _) = locked(&vault("new"));
        let id = KeyId::new("new").unwrap();
        let other = Source::Key(Zeroizing::new(vec![9; KEY_BYTES]));
        let other = Vault::new(id.clone(), vec![(id, other)]).unwrap();
        assert_eq!(
            other.unlock(&place(), &blob, PASSWORD).unwrap_err(),
            LockError::Vault(VaultError::CorruptedState)
        );
    }

    #[test]
    fn another_password_keeps_the_data_key() {
        let vault = vault("new");
        let (blob, key) = locked(&vault);
        let row = row(&key);
        let key = vault.unlock(&place(), &blob, PASSWORD).unwrap();
        let again = vault
            .lock(&mut rng(), &place(), cheap(), b"another one", &key)
            .unwrap();
        assert!(opens(
            &vault.unlock(&place(), &again, b"another one").unwrap(),
            &row
        ));
        assert_eq!(
            vault.unlock(&place(), &again, PASSWORD).unwrap_err(),
            LockError::WrongPassword
        );
        let unlocked = vault.wrap_unlocked(&mut rng(), &place(), &key).unwrap();
        assert!(!is_locked(&unlocked));
        assert!(opens(
            &vault.open_data_key(&place(), &unlocked).unwrap(),
            &row
        ));
    }

    #[test]
    fn a_key_is_rewrapped_under_the_current_key_without_its_password() {
        let (blob, key) = locked(&vault("old"));
        let row = row(&key);
        let vault = vault("new");
        let plain = vault.wrap_unlocked(&mut rng(), &place(), &key).unwrap();
        assert_eq!(vault.rewrap(&mut rng(), &place(), &plain), Ok(None));

        let rewrapped = vault.rewrap(&mut rng(), &place(), &blob).unwrap().unwrap();
        assert_eq!(wrapped_by(&rewrapped).unwrap().as_str(), "new");
        assert!(is_locked(&rewrapped));
        assert!(opens(
            &vault.unlock(&place(), &rewrapped, PASSWORD).unwrap(),
            &row
        ));
        assert_eq!(vault.rewrap(&mut rng(), &place(), &rewrapped), Ok(None));

        let mut damaged = blob;
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(
            vault.rewrap(&mut rng(), &place(), &damaged),
            Err(VaultError::CorruptedState)
        );
    }

    #[test]
    fn a_lock_that_is_wrapped_anew_is_the_same_and_one_that_is_made_anew_is_not() {
        let vault = vault("new");
        let (blob, key) = locked(&self::vault("old"));
        let row = row(&key);
        let same = |one: &[u8], other: &[u8]| vault.is_same_lock(&place(), one, other);
        let rewrapped = vault.rewrap(&mut rng(), &place(), &blob).unwrap().unwrap();
        assert_eq!(same(&blob, &rewrapped), Ok(true));
        assert_eq!(same(&rewrapped, &blob), Ok(true));

        let mut rng = ChaCha20Rng::from_seed([9; 32]);
        let once = vault.lock_anew(&mut rng, &place(), &blob).unwrap();
        let twice = vault.lock_anew(&mut rng, &place(), &once).unwrap();
        // Nothing grows.
        assert_eq!(once.len(), twice.len());
        let back = self::vault("old");
        let moved = back.rewrap(&mut rng, &place(), &twice).unwrap().unwrap();
        let parameters = cheap();
        let other = vault.lock(&mut rng, &place(), parameters, PASSWORD, &key);
        let other = other.unwrap();
        for (one, other, is_same) in [
            (&rewrapped, &once, false),
            (&once, &twice, false),
            (&twice, &moved, true),
            (&twice, &other, false),
        ] {
            assert_eq!(same(one, other), Ok(is_same));
        }
        for blob in [&once, &twice, &moved, &other] {
            assert!(is_locked(blob));
            assert!(opens(
                &vault.unlock(&place(), blob, PASSWORD).unwrap(),
                &row
            ));
            assert_eq!(vault.lock_parameters(&place(), blob), Ok(parameters));
        }

        let plain = vault.wrap_unlocked(&mut rng, &place(), &key).unwrap();
        assert!(same(&blob, &plain).is_err());
        assert!(vault.lock_anew(&mut rng, &place(), &plain).is_err());
        assert!(
            vault
                .lock_anew(&mut rng, &Context::new("other"), &blob)
                .is_err()
        );
    }

    #[test]
    fn a_token_opens_to_the_key_in_its_place_and_is_no_data_key() {
        let vault = vault("new");
        let (_, key) = locked(&vault);
        let row = row(&key);
        let context = Context::new("unlock-token").bytes("anna");
        let (token, id) = vault.token(&mut rng(), &context, &key, 1_000).unwrap();
        let opened = vault.open_token(&context, &token).unwrap();
        assert!(opens(&opened.key, &row));
        assert_eq!((opened.id, opened.expires_at), (id, 1_000));
        assert_eq!(
            vault.open_data_key(&context, &token).unwrap_err(),
            VaultError::CorruptedState
        );
        let other = Context::new("unlock-token").bytes("ben");
        for at in 0..token.len() {
            let mut changed = token.clone();
            changed[at] ^= 1;
            assert!(vault.open_token(&context, &changed).is_err());
            assert!(vault.open_token(&context, &token[..at]).is_err());
        }
        assert!(vault.open_token(&other, &token).is_err());
    }

    #[test]
    fn a_data_key_keeps_its_cipher_however_it_is_stored() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let old = vault("old").with_cipher(cipher);
            // Here others are drawn, and another key wraps.
            let new = vault("new");
            let (locked, key) = locked(&old);
            let row = row(&key);
            let is_it = |key: &UnlockedKey| key.cipher() == cipher && opens(key, &row);

            let unlocked = new.unlock(&place(), &locked, PASSWORD).unwrap();
            let relocked = new.rewrap(&mut rng(), &place(), &locked);
            let relocked = relocked.unwrap().unwrap();
            let wrapped = new.wrap_unlocked(&mut rng(), &place(), &unlocked).unwrap();
            let rewrapped = old.rewrap(&mut rng(), &place(), &wrapped);
            let rewrapped = rewrapped.unwrap().unwrap();
            let (token, _) = new.token(&mut rng(), &place(), &unlocked, 1).unwrap();

            assert!(is_it(&unlocked));
            assert!(is_locked(&relocked) && !is_locked(&wrapped));
            assert!(is_it(&old.unlock(&place(), &relocked, PASSWORD).unwrap()));
            assert!(is_it(&old.open_unlocked(&place(), &rewrapped).unwrap()));
            assert!(is_it(&old.open_token(&place(), &token).unwrap().key));
            for blob in [&locked, &relocked, &wrapped, &rewrapped] {
                assert_eq!(wrapped_key_info(blob).unwrap().cipher, cipher);
            }

            let other = match cipher {
                Cipher::Aes256Gcm => Cipher::ChaCha20Poly1305,
                Cipher::ChaCha20Poly1305 => Cipher::Aes256Gcm,
            };
            for successor in [cipher, other] {
                let vault = vault("new").with_cipher(successor);
                let mut another = ChaCha20Rng::from_seed([8; 32]);
                let wrapped = vault.create_data_key(&mut another, &place()).unwrap();
                let successor = vault.open_data_key(&place(), &wrapped).unwrap();
                let retired = key.retire(&mut rng(), &place(), &successor).unwrap();
                let opened = UnlockedKey::from_retired(key.id(), &place(), &successor, &retired);
                assert!(is_it(&opened.unwrap()));
            }
        }
    }

    #[test]
    fn a_retired_key_opens_under_its_successor_in_its_place_alone() {
        let vault = vault("new");
        let (_, old) = locked(&vault);
        let mut other_rng = ChaCha20Rng::from_seed([8; 32]);
        let wrapped = vault.create_data_key(&mut other_rng, &place()).unwrap();
        let new = vault.open_unlocked(&place(), &wrapped).unwrap();
        let row = row(&old);
        let context = Context::new("retired-key").bytes("anna");
        let sealed = old.retire(&mut rng(), &context, &new).unwrap();
        let opened = UnlockedKey::from_retired(old.id(), &context, &new, &sealed).unwrap();
        assert!(opens(&opened, &row));
        assert!(UnlockedKey::from_retired(new.id(), &context, &new, &sealed).is_err());
        let other = Context::new("retired-key").bytes("ben");
        assert!(UnlockedKey::from_retired(old.id(), &other, &new, &sealed).is_err());
    }

    #[test]
    fn an_unlocked_key_is_zeroized_on_drop_and_prints_its_id_alone() {
        fn assert_zeroize_on_drop<T: ZeroizeOnDrop>() {}
        assert_zeroize_on_drop::<UnlockedKey>();
        let name = DataKeyName {
            id: DataKeyId::from_bytes([1; 8]),
            cipher: Cipher::default(),
        };
        let key = UnlockedKey::from_slice(name, &[0x42; KEY_BYTES]).unwrap();
        assert_eq!(
            format!("{key:?}"),
            "UnlockedKey { id: DataKeyId(0101010101010101), .. }"
        );
    }
}
