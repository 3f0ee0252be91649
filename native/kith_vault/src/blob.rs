//! The two blob layouts. The tables are in the documentation of the crate.

use crate::{
    aead_key::{KEY_BYTES, Sealed},
    data_key::DataKeyId,
    error::VaultError,
    key_id::KeyId,
};

/// Whether a stored data key is locked under a password. Not authenticated until it opens.
#[must_use]
pub fn is_locked(wrapped: &[u8]) -> bool {
    Wrapped::from_bytes(wrapped).is_ok_and(|wrapped| wrapped.wrapping == Wrapping::Locked)
}

/// The id of the data key that sealed a row. The id is not authenticated until the row opens.
///
/// # Errors
///
/// [`VaultError::CorruptedState`] if the bytes are not laid out as a sealed row.
pub fn sealed_by(row: &[u8]) -> Result<DataKeyId, VaultError> {
    SealedRow::from_bytes(row).map(|row| row.data_key_id)
}

/// The id of the key-encryption key that wraps a data key. The id is not authenticated until the data key opens.
///
/// # Errors
///
/// [`VaultError::CorruptedState`] if the bytes are not laid out as a wrapped data key.
pub fn wrapped_by(wrapped: &[u8]) -> Result<KeyId, VaultError> {
    Wrapped::from_bytes(wrapped)?.key_encryption_key_id()
}

/// A sealed row, taken apart.
pub(crate) struct SealedRow<'a> {
    pub(crate) header: &'a [u8],
    pub(crate) data_key_id: DataKeyId,
    pub(crate) sealed: Sealed<'a>,
}

impl<'a> SealedRow<'a> {
    pub(crate) const OVERHEAD: usize = ROW_HEADER_BYTES + Sealed::OVERHEAD;

    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Result<Self, VaultError> {
        Self::parse(bytes).ok_or(VaultError::CorruptedState)
    }

    pub(crate) fn header(data_key_id: DataKeyId) -> [u8; ROW_HEADER_BYTES] {
        let [a, b, c, d, e, f, g, h] = data_key_id.to_bytes();
        [VERSION, ROW_AES_256_GCM, a, b, c, d, e, f, g, h]
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<ROW_HEADER_BYTES>()?;
        let [VERSION, ROW_AES_256_GCM, data_key_id @ ..] = *header else {
            return None;
        };
        Some(Self {
            header,
            data_key_id: DataKeyId::from_bytes(data_key_id),
            sealed: Sealed::from_bytes(rest)?,
        })
    }
}

/// What lies under a key-encryption key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wrapping {
    /// A data key.
    KeyEncryptionKey,
    /// A data key that is locked under a password.
    Locked,
    /// A data key on its way to where the server does not keep it.
    Token,
}

impl Wrapping {
    const fn algorithm(self) -> u8 {
        match self {
            Self::KeyEncryptionKey => WRAP_AES_256_GCM,
            Self::Locked => LOCK_ARGON2ID_AES_256_GCM,
            Self::Token => TOKEN_AES_256_GCM,
        }
    }

    const fn from_algorithm(algorithm: u8) -> Option<Self> {
        match algorithm {
            WRAP_AES_256_GCM => Some(Self::KeyEncryptionKey),
            LOCK_ARGON2ID_AES_256_GCM => Some(Self::Locked),
            TOKEN_AES_256_GCM => Some(Self::Token),
            _ => None,
        }
    }
}

/// What a key-encryption key wraps, taken apart.
pub(crate) struct Wrapped<'a> {
    pub(crate) wrapping: Wrapping,
    pub(crate) header: &'a [u8],
    pub(crate) data_key_id: DataKeyId,
    /// The bytes of the id as they stand there. Most are compared with known ids and need no checking.
    pub(crate) key_encryption_key_id: &'a [u8],
    pub(crate) sealed: Sealed<'a>,
}

impl<'a> Wrapped<'a> {
    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Result<Self, VaultError> {
        Self::parse(bytes).ok_or(VaultError::CorruptedState)
    }

    /// The header alone, with room for what is wrapped.
    pub(crate) fn header(
        wrapping: Wrapping,
        data_key_id: DataKeyId,
        key_encryption_key_id: &KeyId,
        content: usize,
    ) -> Vec<u8> {
        let id = key_encryption_key_id.as_str().as_bytes();
        let mut blob =
            Vec::with_capacity(WRAP_FIXED_HEADER_BYTES + id.len() + Sealed::OVERHEAD + content);
        blob.extend_from_slice(&[VERSION, wrapping.algorithm()]);
        blob.extend_from_slice(&data_key_id.to_bytes());
        // A `KeyId` has at most 64 bytes.
        blob.extend(u8::try_from(id.len()));
        blob.extend_from_slice(id);
        blob
    }

    pub(crate) fn key_encryption_key_id(&self) -> Result<KeyId, VaultError> {
        let id =
            str::from_utf8(self.key_encryption_key_id).map_err(|_| VaultError::CorruptedState)?;
        KeyId::new(id).map_err(|_| VaultError::CorruptedState)
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, _) = bytes.split_first_chunk::<WRAP_FIXED_HEADER_BYTES>()?;
        let [VERSION, algorithm, data_key_id @ .., id_length] = *fixed else {
            return None;
        };
        let wrapping = Wrapping::from_algorithm(algorithm)?;
        let (header, rest) = bytes.split_at_checked(fixed.len() + usize::from(id_length))?;
        let (_, key_encryption_key_id) = header.split_at_checked(fixed.len())?;
        let sealed = Sealed::from_bytes(rest).filter(|sealed| {
            wrapping != Wrapping::KeyEncryptionKey || sealed.ciphertext_len() == KEY_BYTES
        })?;
        Some(Self {
            wrapping,
            header,
            data_key_id: DataKeyId::from_bytes(data_key_id),
            key_encryption_key_id,
            sealed,
        })
    }
}

/// The version of both layouts.
const VERSION: u8 = 0x01;

/// A row under a data key. Rows use `0x01` to `0x0f`, wrapped data keys `0x10` to `0x1f`, so that neither is read as the
/// other.
const ROW_AES_256_GCM: u8 = 0x01;

/// A data key under a key-encryption key.
const WRAP_AES_256_GCM: u8 = 0x10;

/// A data key under a password, and that under a key-encryption key.
const LOCK_ARGON2ID_AES_256_GCM: u8 = 0x11;

/// A data key in a token.
const TOKEN_AES_256_GCM: u8 = 0x12;

/// Version, algorithm and data key id.
const ROW_HEADER_BYTES: usize = 2 + DataKeyId::BYTES;

/// Version, algorithm, data key id and the length of the key-encryption key's id.
const WRAP_FIXED_HEADER_BYTES: usize = 2 + DataKeyId::BYTES + 1;
