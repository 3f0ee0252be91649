//! Key-encryption keys out of a passphrase.

use rand_core::TryCryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{
    aead_key::KEY_BYTES,
    error::{KeyDefect, PasswordError},
    password::{PasswordParameters, argon2id, parse_fields},
    source::Secret,
};

/// The text that belongs to a passphrase: what Argon2id costs, the salt, and a check, by which a mistyped passphrase is noticed
/// before anything is wrapped under the key of the wrong one.
///
/// ```text
/// $kith-passphrase$v=1$m=262144,t=3,p=4$<salt>$<check>   numbers in decimal, the others in base64 without padding
/// ```
///
/// Argon2id gives 64 bytes: the key-encryption key, then the check. Both come out of one BLAKE2b, so neither says anything about the
/// other; but whoever has this text can try passphrases, as whoever has the hash of a password can.
#[derive(Clone)]
pub struct PassphraseParameters {
    cost: PasswordParameters,
    salt: Box<[u8]>,
    check: Box<[u8]>,
}

impl PassphraseParameters {
    /// The least memory, in KiB, and the least passes: the second recommended option of RFC 9106, section 4. It is computed
    /// once for each start.
    pub const MIN_MEMORY: u32 = 64 * 1_024;
    /// See [`Self::MIN_MEMORY`].
    pub const MIN_PASSES: u32 = 3;

    /// The least bytes of a passphrase. The database is attacked without a limit of attempts.
    pub const MIN_PASSPHRASE_BYTES: usize = 16;

    /// Bytes of a salt, and the least that are accepted.
    pub const SALT_BYTES: usize = 16;

    /// Draws a salt for the passphrase of a source.
    ///
    /// # Errors
    ///
    /// [`KeyDefect`].
    pub fn create<R: TryCryptoRng + ?Sized>(
        rng: &mut R,
        cost: PasswordParameters,
        passphrase: &Secret,
    ) -> Result<Self, KeyDefect> {
        let mut salt = [0; Self::SALT_BYTES];
        rng.try_fill_bytes(&mut salt)
            .map_err(|_| KeyDefect::Random)?;
        let mut parameters = Self {
            cost,
            salt: salt.into(),
            check: Box::default(),
        };
        parameters.strong_enough()?;
        let derived = parameters.derive(passphrase)?;
        let (_, check) = derived.split_at(KEY_BYTES);
        parameters.check = check.into();
        Ok(parameters)
    }

    /// Reads the text.
    ///
    /// # Errors
    ///
    /// [`KeyDefect::PassphraseParameters`] for anything else, [`KeyDefect::PassphraseWeak`] for what costs too little.
    pub fn from_text(text: &str) -> Result<Self, KeyDefect> {
        let (cost, salt, check) =
            parse_fields(text.as_bytes(), PREFIX).map_err(|_| KeyDefect::PassphraseParameters)?;
        let parameters = Self { cost, salt, check };
        if parameters.check.len() != KEY_BYTES {
            return Err(KeyDefect::PassphraseParameters);
        }
        parameters.strong_enough()?;
        Ok(parameters)
    }

    /// The text to keep in the configuration. It is not secret, and the key is lost with it.
    #[must_use]
    pub fn to_text(&self) -> String {
        crate::password::print_fields(PREFIX, self.cost, &self.salt, &self.check)
    }

    /// The key-encryption key.
    pub(crate) fn key(&self, passphrase: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
        let mut derived = self.derive(passphrase)?;
        let (_, check) = derived.split_at(KEY_BYTES);
        if !bool::from(check.ct_eq(&self.check)) {
            return Err(KeyDefect::PassphraseWrong);
        }
        derived.truncate(KEY_BYTES);
        Ok(derived)
    }

    fn strong_enough(&self) -> Result<(), KeyDefect> {
        if self.cost.memory() < Self::MIN_MEMORY
            || self.cost.passes() < Self::MIN_PASSES
            || self.salt.len() < Self::SALT_BYTES
        {
            return Err(KeyDefect::PassphraseWeak);
        }
        Ok(())
    }

    fn derive(&self, passphrase: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
        let text = passphrase.read()?;
        let text = text.trim_ascii();
        if text.len() < Self::MIN_PASSPHRASE_BYTES {
            return Err(KeyDefect::PassphraseShort {
                bytes: text.len(),
                least: Self::MIN_PASSPHRASE_BYTES,
            });
        }
        let mut derived = Zeroizing::new(vec![0; 2 * KEY_BYTES]);
        let context = self
            .cost
            .context()
            .map_err(|_| KeyDefect::PassphraseParameters)?;
        argon2id(&context, text, &self.salt, &mut derived).map_err(|error| match error {
            PasswordError::OutOfMemory => KeyDefect::OutOfMemory,
            _ => KeyDefect::PassphraseParameters,
        })?;
        Ok(derived)
    }
}

const PREFIX: &str = "$kith-passphrase$v=1$";
