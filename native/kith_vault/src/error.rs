use rand_core::TryCryptoRng;
use thiserror::Error;

use crate::key_id::KeyId;

/// Why a blob could not be made or opened.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum VaultError {
    /// It takes a call to a key service to open this, which [`Vault::fetch`](crate::Vault::fetch) makes.
    #[error("it takes a call to the key service to open this")]
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
    /// The data key is locked under a password.
    #[error("the data key is locked under a password")]
    Locked,
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The plaintext is longer than AES-GCM seals.
    #[error("the plaintext is longer than AES-GCM seals, 2^36 - 32 bytes")]
    TooLarge,
    /// The key service does not answer, or not as one does.
    #[error("the key service is not available")]
    Unavailable,
    /// It takes calls to a key service to wrap something here, which [`Vault::prepare`](crate::Vault::prepare) makes.
    #[error("it takes a call to the key service to wrap something here")]
    Unmade,
}

impl VaultError {
    /// The generator's own error is dropped: callers cannot act on it.
    pub(crate) fn random<R: TryCryptoRng + ?Sized>(_: R::Error) -> Self {
        Self::Random
    }
}

/// Why a field was not encrypted or decrypted.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum FieldError {
    /// The field does not open: damaged, cut, forged, under another key, or bound to another place. Which, it does not say.
    #[error("the field does not open here")]
    CorruptedState,
    /// The field is for a key that is not here, or there is no cipher of this label.
    #[error("no cipher is for this field or label")]
    KeyNotFound,
    /// The bytes are no field.
    #[error("the bytes are no field")]
    Malformed,
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The cipher makes no new fields.
    #[error("the cipher only reads")]
    ReadOnly,
    /// The plaintext is longer than the cipher takes.
    #[error("the plaintext is longer than the cipher takes")]
    TooLarge,
    /// A field of this format is bound to no place.
    #[error("a field of this format is bound to no place")]
    Unbound,
}

impl FieldError {
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

/// Why a data key was not locked or unlocked.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum LockError {
    /// What a password needs is not there, or the password is none.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The blob does not open under the key-encryption keys, or the machine failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// It is another password.
    #[error("the password is another one")]
    WrongPassword,
}

/// Why a signature or a MAC was not accepted.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum SignatureError {
    /// The public key is none.
    #[error("not a public key")]
    Malformed,
    /// The signature is not of this message under this key.
    #[error("the signature is wrong")]
    Wrong,
}

/// Why a key of a client was not derived, or did not seal or open.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum ClientKeyError {
    /// The public key is none or of small order, or the bytes are laid out otherwise.
    #[error("not a public key, or not sealed bytes")]
    Malformed,
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The bytes do not open with this key and this data.
    #[error("the sealed bytes do not open with this key")]
    Tampered,
    /// The plaintext is longer than the cipher seals.
    #[error("the plaintext is longer than the cipher seals")]
    TooLarge,
}

/// Why a backup could not be made or read.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum BackupError {
    /// The bytes are no backup, the passphrase is too short, or a record is not laid out as one.
    #[error("not a backup, its passphrase, or its records")]
    Malformed,
    /// There is no memory for Argon2.
    #[error("there is no memory for Argon2")]
    OutOfMemory,
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The backup was cut, continued, reordered or edited.
    #[error("the backup was changed or cut")]
    Tampered,
    /// The header asks for more work than the limits, or a record or the passphrase is too long.
    #[error("a parameter, a record or the passphrase is over its limit")]
    TooLarge,
    /// A later version wrote it.
    #[error("the version of the backup is unknown")]
    UnsupportedVersion,
    /// The secret is not the one it was made with, or the header was changed.
    #[error("the secret does not open the backup")]
    WrongSecret,
}

/// Why words or shares give no recovery key. Positions count from 1.
///
/// The enum is exhaustive on purpose: the crate that turns these into reasons must not build when one is added.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum RecoveryKeyError {
    /// The words are each known, and are no recovery key together.
    #[error("the checksum of the words is wrong")]
    Checksum,
    /// The shares are each whole, and give no key together.
    #[error("the shares do not fit together")]
    Mismatch,
    /// The share belongs to another set than the first one.
    #[error("share {position} is of another set")]
    OtherSet {
        /// Which.
        position: usize,
    },
    /// The threshold and the number of shares are none that are made.
    #[error("expected a threshold from 2 up to the number of shares, at most 255")]
    Parameters,
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
    /// The share is damaged, or is none.
    #[error("share {position} is damaged")]
    Share {
        /// Which.
        position: usize,
    },
    /// Fewer shares than the threshold.
    #[error("there are fewer shares than the {threshold} that are needed")]
    TooFew {
        /// How many are needed, where a share says so.
        threshold: usize,
    },
    /// The share was given before.
    #[error("share {position} was given twice")]
    Twice {
        /// Which.
        position: usize,
    },
    /// The word is not one of the list.
    #[error("word {position} is not one of the list")]
    Word {
        /// Which.
        position: usize,
    },
    /// There are neither 12 nor 24 words.
    #[error("expected 12 or 24 words")]
    WordCount,
}

/// Why a vault could not be set up.
///
/// The texts are for the operator. They name the source and what was expected of it, and never a value.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ConfigError {
    /// Bytes could be for either of two ciphers.
    #[error(
        "expected the tags and ids of ciphers to tell them apart, got \"{label}\" and \"{other}\" that begin alike"
    )]
    AmbiguousTags {
        /// The label of one.
        label: String,
        /// The label of the other.
        other: String,
    },
    /// The key of a cipher could not be taken from its source.
    #[error("the key of cipher \"{label}\" from {origin}: {defect}")]
    BadCipherKey {
        /// The label of the cipher.
        label: String,
        /// The source in words, such as `file /etc/kith/key`.
        origin: String,
        /// What is wrong with it.
        defect: KeyDefect,
    },
    /// A tag of Cloak's has a wrong length.
    #[error("expected a tag of 1 to 1024 bytes, got one that is not")]
    BadCloakTag,
    /// The secret of a lookup could not be taken from its source.
    #[error("the secret of a lookup from {origin}: {defect}")]
    BadLookupSecret {
        /// The source in words.
        origin: String,
        /// What is wrong with it.
        defect: KeyDefect,
    },
    /// The current cipher makes no new fields.
    #[error(
        "expected the current cipher \"{label}\" to be one that encrypts, got one that only reads"
    )]
    CurrentCannotWrite {
        /// The label of the cipher.
        label: String,
    },
    /// Two ciphers have the same label.
    #[error("expected each label once, got \"{label}\" twice")]
    DuplicateLabel {
        /// The label.
        label: String,
    },
    /// The current cipher is not one of the ciphers given.
    #[error(
        "expected the current cipher \"{label}\" to be one of the ciphers, got ciphers without it"
    )]
    UnknownLabel {
        /// The label that was named as current.
        label: String,
    },
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
    /// It is a source of key-encryption keys, which other keys do not come from.
    #[error("expected a variable, a file or a passphrase, got a source of key-encryption keys")]
    NoBytes,
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
