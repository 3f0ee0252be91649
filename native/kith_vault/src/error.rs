use rand_core::TryCryptoRng;
use thiserror::Error;

use crate::key_id::KeyId;

/// Why a blob could not be made or opened.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum VaultError {
    /// It takes a call to a key service, which this function does not make:
    /// [`Vault::fetch_data_key`](crate::Vault::fetch_data_key) or
    /// [`Vault::prepare_data_key`](crate::Vault::prepare_data_key) does.
    #[error("it takes a call to the key service")]
    Cold,
    /// The blob is not what was sealed in this place: damaged, cut, forged, moved from another place, sealed under
    /// another data key, or written by a later format. Which of these, it does not say.
    #[error("the sealed bytes do not open here")]
    CorruptedState,
    /// The vault does not hold the key-encryption key that the blob names. The name is not authenticated.
    #[error("the vault holds no key-encryption key \"{id}\"")]
    KeyNotFound {
        /// The key id in the blob.
        id: KeyId,
    },
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The plaintext is longer than AES-GCM seals.
    #[error("the plaintext is longer than AES-GCM seals, 2^36 - 32 bytes")]
    TooLarge,
    /// The key service does not answer, or not as one does.
    #[error("the key service is not available")]
    Unavailable,
}

impl VaultError {
    /// The generator's own error is dropped: callers cannot act on it.
    pub(crate) fn random<R: TryCryptoRng + ?Sized>(_: R::Error) -> Self {
        Self::Random
    }
}

/// Why a password was not hashed or verified.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum PasswordError {
    /// The text is no hash that is read here, the parameters are none of Argon2's, or the password is empty.
    #[error("not a hash of Argon2id, its parameters, or a password")]
    Malformed,
    /// There is no memory for the hash.
    #[error("there is no memory for the hash")]
    OutOfMemory,
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The parameters ask for more than the limits, or the password is too long.
    #[error("the parameters or the password are over their limits")]
    TooLarge,
}

/// Why a vault could not be set up.
///
/// The texts are for the operator. They name the source and what was expected of it, and never a value.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ConfigError {
    /// A key could not be taken from its source.
    #[error("key \"{id}\" from {origin}: {defect}")]
    BadKey {
        /// The id of the key.
        id: KeyId,
        /// The source in words, such as `file /etc/kith/key`.
        origin: String,
        /// What is wrong with it.
        defect: KeyDefect,
    },
    /// A key id has a wrong length or character. The id is not shown: it may be a key in the wrong place.
    #[error(
        "expected a key id of 1 to {} visible ASCII characters without spaces, got one that is not",
        KeyId::MAX_BYTES
    )]
    BadKeyId,
    /// The key that is to stand in for a key service is not one of the keys, or is a key service too.
    #[error(
        "expected the fallback of \"{id}\" to be one of the keys that is no key service, got \"{fallback}\""
    )]
    BadFallback {
        /// The key service's.
        id: KeyId,
        /// The id that was named.
        fallback: KeyId,
    },
    /// The current key is not one of the keys given.
    #[error("expected the current key \"{id}\" to be one of the keys, got keys without it")]
    CurrentKeyMissing {
        /// The id that was named as current.
        id: KeyId,
    },
    /// Two keys have the same id.
    #[error("expected each key id once, got \"{id}\" twice")]
    DuplicateKeyId {
        /// The id.
        id: KeyId,
    },
    /// A key id reads as base64 of 32 bytes, so it is likely the key itself. Ids are stored in clear.
    #[error("expected a key id, got what reads as a key; swap the id and the key")]
    KeyAsKeyId,
}

/// What is wrong with a source of a key.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum KeyDefect {
    /// The text is not base64.
    #[error("expected base64 of 32 bytes, got text that is not base64")]
    Base64,
    /// The path leads to a directory, a pipe or a device.
    #[error("expected a regular file, got something else")]
    FileKind,
    /// Others than the owner may use the file.
    #[error(
        "expected a file mode that gives group and others nothing, such as 0600, got {mode:04o}"
    )]
    FileMode {
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file belongs to somebody else.
    #[error(
        "expected a file owned by root or by user {user}, who runs this process, got one owned by user {owner}"
    )]
    FileOwner {
        /// The owner of the file.
        owner: u32,
        /// The effective user of this process.
        user: u32,
    },
    /// The key has a wrong length.
    #[error("expected a key of 32 bytes, got {bytes}")]
    Length {
        /// The length of the decoded key.
        bytes: usize,
    },
    /// The environment variable does not exist.
    #[error("expected base64 of 32 bytes, got a variable that is not set")]
    NotSet,
    /// There is no memory for Argon2id.
    #[error("there is no memory to derive the key in")]
    OutOfMemory,
    /// The text that belongs to a passphrase is not one.
    #[error(
        "expected the parameters of a passphrase, as mix kith.gen.passphrase prints them, got something else"
    )]
    PassphraseParameters,
    /// The passphrase is too short.
    #[error("expected a passphrase of at least {least} bytes, got {bytes}")]
    PassphraseShort {
        /// Its length.
        bytes: usize,
        /// The least.
        least: usize,
    },
    /// Argon2id would cost too little.
    #[error(
        "expected parameters of a passphrase with m=65536, t=3 and a salt of 16 bytes at least, got weaker ones"
    )]
    PassphraseWeak,
    /// The passphrase is another one than the parameters were made for.
    #[error("the passphrase is not the one that its parameters were made for")]
    PassphraseWrong,
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The text is far longer than a key.
    #[error("expected base64 of 32 bytes, got more than {limit} bytes of text")]
    TooLong {
        /// The most that is read.
        limit: usize,
    },
    /// The file could not be opened or read.
    #[error("expected a readable file, got: {error}")]
    Unreadable {
        /// What the operating system says.
        error: String,
    },
}
