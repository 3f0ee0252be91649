//! The two blob layouts. The tables are in the documentation of the crate.

use crate::{
    aead_key::{KEY_BYTES, Sealed},
    cipher::Cipher,
    data_key::{DataKeyId, DataKeyName},
    error::VaultError,
    key_id::KeyId,
    service::{ServiceCiphertext, ServiceKey},
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
    SealedRow::from_bytes(row).map(|row| row.data_key.id)
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
    pub(crate) data_key: DataKeyName,
    pub(crate) sealed: Sealed<'a>,
}

impl<'a> SealedRow<'a> {
    pub(crate) const OVERHEAD: usize = ROW_HEADER_BYTES + Sealed::OVERHEAD;

    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Result<Self, VaultError> {
        Self::parse(bytes).ok_or(VaultError::CorruptedState)
    }

    pub(crate) fn header(data_key: DataKeyName) -> [u8; ROW_HEADER_BYTES] {
        let [a, b, c, d, e, f, g, h] = data_key.id.to_bytes();
        let algorithm = match data_key.cipher {
            Cipher::Aes256Gcm => ROW_AES_256_GCM,
            Cipher::ChaCha20Poly1305 => ROW_CHACHA20_POLY1305,
        };
        [VERSION, algorithm, a, b, c, d, e, f, g, h]
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<ROW_HEADER_BYTES>()?;
        let [VERSION, algorithm, id @ ..] = *header else {
            return None;
        };
        let cipher = match algorithm {
            ROW_AES_256_GCM => Cipher::Aes256Gcm,
            ROW_CHACHA20_POLY1305 => Cipher::ChaCha20Poly1305,
            _ => return None,
        };
        Some(Self {
            header,
            data_key: DataKeyName {
                id: DataKeyId::from_bytes(id),
                cipher,
            },
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
    const fn algorithm(self, with_service: bool, cipher: Cipher) -> u8 {
        let wrapping = match (self, with_service) {
            (Self::KeyEncryptionKey, false) => WRAP_AES_256_GCM,
            (Self::Locked, false) => LOCK_ARGON2ID_AES_256_GCM,
            (Self::Token, false) => TOKEN_AES_256_GCM,
            (Self::KeyEncryptionKey, true) => SERVICE_WRAP,
            (Self::Locked, true) => SERVICE_LOCK,
            (Self::Token, true) => SERVICE_TOKEN,
        };
        match cipher {
            Cipher::Aes256Gcm => wrapping,
            Cipher::ChaCha20Poly1305 => wrapping | OF_CHACHA20_POLY1305,
        }
    }

    /// The error where something else is wanted.
    pub(crate) const fn not_wanted(self) -> VaultError {
        match self {
            Self::Locked => VaultError::Locked,
            Self::KeyEncryptionKey | Self::Token => VaultError::CorruptedState,
        }
    }

    /// And whether a key service has a part in it, and what the data key seals with.
    const fn from_algorithm(algorithm: u8) -> Option<(Self, bool, Cipher)> {
        let (wrapping, with_service) = match algorithm & !OF_CHACHA20_POLY1305 {
            WRAP_AES_256_GCM => (Self::KeyEncryptionKey, false),
            LOCK_ARGON2ID_AES_256_GCM => (Self::Locked, false),
            TOKEN_AES_256_GCM => (Self::Token, false),
            SERVICE_WRAP => (Self::KeyEncryptionKey, true),
            SERVICE_LOCK => (Self::Locked, true),
            SERVICE_TOKEN => (Self::Token, true),
            _ => return None,
        };
        let cipher = match algorithm & OF_CHACHA20_POLY1305 {
            0 => Cipher::Aes256Gcm,
            _ => Cipher::ChaCha20Poly1305,
        };
        Some((wrapping, with_service, cipher))
    }
}

/// What a key-encryption key wraps, taken apart.
pub(crate) struct Wrapped<'a> {
    pub(crate) wrapping: Wrapping,
    pub(crate) header: &'a [u8],
    pub(crate) data_key: DataKeyName,
    /// The bytes of the id as they stand there. Most are compared with known ids and need no checking.
    pub(crate) key_encryption_key_id: &'a [u8],
    /// Of one that was wrapped with the help of a key service.
    pub(crate) service: Option<ServicePart<'a>>,
    pub(crate) sealed: Sealed<'a>,
}

/// What a key service contributed.
pub(crate) struct ServicePart<'a> {
    pub(crate) key_version: u32,
    pub(crate) key_id: &'a [u8],
    pub(crate) wrapped: &'a [u8],
    /// Of the key that seals what is wrapped.
    pub(crate) ciphertext: &'a [u8],
}

impl<'a> Wrapped<'a> {
    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Result<Self, VaultError> {
        Self::parse(bytes).ok_or(VaultError::CorruptedState)
    }

    /// The header alone, with room for what is wrapped.
    pub(crate) fn header(
        wrapping: Wrapping,
        data_key: DataKeyName,
        key_encryption_key_id: &KeyId,
        content: usize,
    ) -> Vec<u8> {
        let id = key_encryption_key_id.as_str().as_bytes();
        let mut blob =
            Vec::with_capacity(WRAP_FIXED_HEADER_BYTES + id.len() + Sealed::OVERHEAD + content);
        blob.extend_from_slice(&[VERSION, wrapping.algorithm(false, data_key.cipher)]);
        blob.extend_from_slice(&data_key.id.to_bytes());
        // A `KeyId` has at most 64 bytes.
        blob.extend(u8::try_from(id.len()));
        blob.extend_from_slice(id);
        blob
    }

    /// The header of what a key service helps to wrap, with room for it. The parts have at most as many bytes as
    /// [`ServiceKey`] and [`ServiceCiphertext`] allow, which their lengths have room for.
    pub(crate) fn service_header(
        wrapping: Wrapping,
        data_key: DataKeyName,
        key_encryption_key_id: &KeyId,
        (key, ciphertext): (&ServiceKey, &ServiceCiphertext),
        content: usize,
    ) -> Vec<u8> {
        let id = key_encryption_key_id.as_str().as_bytes();
        // A token is for a cookie. Whoever brings a service back has the key as it keeps it from the account.
        let kept = match wrapping {
            Wrapping::Token => &[],
            Wrapping::KeyEncryptionKey | Wrapping::Locked => key.wrapped.as_slice(),
        };
        let parts = [key.id.as_bytes(), kept, ciphertext.bytes.as_slice()];
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let mut blob = Vec::with_capacity(
            WRAP_FIXED_HEADER_BYTES
                + id.len()
                + SERVICE_FIXED_BYTES
                + length
                + Sealed::OVERHEAD
                + content,
        );
        blob.extend_from_slice(&[VERSION, wrapping.algorithm(true, data_key.cipher)]);
        blob.extend_from_slice(&data_key.id.to_bytes());
        blob.extend(u8::try_from(id.len()));
        blob.extend_from_slice(id);
        blob.extend_from_slice(&ciphertext.key_version.to_be_bytes());
        for part in parts {
            blob.extend(u16::try_from(part.len()).unwrap_or_default().to_be_bytes());
            blob.extend_from_slice(part);
        }
        blob
    }

    pub(crate) fn key_encryption_key_id(&self) -> Result<KeyId, VaultError> {
        let id =
            str::from_utf8(self.key_encryption_key_id).map_err(|_| VaultError::CorruptedState)?;
        KeyId::new(id).map_err(|_| VaultError::CorruptedState)
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, _) = bytes.split_first_chunk::<WRAP_FIXED_HEADER_BYTES>()?;
        let [VERSION, algorithm, id @ .., id_length] = *fixed else {
            return None;
        };
        let (wrapping, with_service, cipher) = Wrapping::from_algorithm(algorithm)?;
        let (head, mut rest) = bytes.split_at_checked(fixed.len() + usize::from(id_length))?;
        let (_, key_encryption_key_id) = head.split_at_checked(fixed.len())?;
        let service = match with_service {
            true => Some(ServicePart::split(&mut rest)?),
            false => None,
        };
        let (header, rest) = bytes.split_at_checked(bytes.len() - rest.len())?;
        let sealed = Sealed::from_bytes(rest).filter(|sealed| {
            wrapping != Wrapping::KeyEncryptionKey || sealed.ciphertext_len() == KEY_BYTES
        })?;
        Some(Self {
            wrapping,
            header,
            data_key: DataKeyName {
                id: DataKeyId::from_bytes(id),
                cipher,
            },
            key_encryption_key_id,
            service,
            sealed,
        })
    }
}

impl<'a> ServicePart<'a> {
    fn split(rest: &mut &'a [u8]) -> Option<Self> {
        let (version, after) = rest.split_first_chunk()?;
        *rest = after;
        let mut part = || {
            let (length, after) = rest.split_first_chunk()?;
            let (part, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
            *rest = after;
            Some(part)
        };
        Some(Self {
            key_version: u32::from_be_bytes(*version),
            key_id: part()?,
            wrapped: part()?,
            ciphertext: part()?,
        })
    }
}

/// What stands in a wrapped data key for everybody to read. None of it is authenticated until the data key opens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WrappedKeyInfo {
    /// The key-encryption key.
    pub key_encryption_key_id: KeyId,
    /// The data key's own id.
    pub data_key_id: DataKeyId,
    /// What the data key seals with.
    pub cipher: Cipher,
    /// The key of a key service, its version and the key as the service keeps it; `None` of a data key wrapped here.
    pub service: Option<(String, u32, Vec<u8>)>,
}

/// What stands in a wrapped data key, locked or not.
///
/// # Errors
///
/// [`VaultError::CorruptedState`] if the bytes are not laid out as a wrapped data key.
pub fn wrapped_key_info(wrapped: &[u8]) -> Result<WrappedKeyInfo, VaultError> {
    let wrapped = Wrapped::from_bytes(wrapped)?;
    let service = match &wrapped.service {
        None => None,
        Some(part) => {
            let id = str::from_utf8(part.key_id).map_err(|_| VaultError::CorruptedState)?;
            Some((id.to_owned(), part.key_version, part.wrapped.to_vec()))
        }
    };
    Ok(WrappedKeyInfo {
        key_encryption_key_id: wrapped.key_encryption_key_id()?,
        data_key_id: wrapped.data_key.id,
        cipher: wrapped.data_key.cipher,
        service,
    })
}

/// The version of both layouts.
const VERSION: u8 = 0x01;

/// A row under a data key. Rows use `0x01` to `0x0f`, wrapped data keys `0x10` to `0x1f`, so that neither is read as the
/// other.
const ROW_AES_256_GCM: u8 = 0x01;
const ROW_CHACHA20_POLY1305: u8 = 0x02;

/// A data key under a key-encryption key.
const WRAP_AES_256_GCM: u8 = 0x10;

/// A data key under a password, and that under a key-encryption key.
const LOCK_ARGON2ID_AES_256_GCM: u8 = 0x11;

/// A data key in a token.
const TOKEN_AES_256_GCM: u8 = 0x12;

/// The three with the help of a key service: under a key of their own, which the service encrypted.
const SERVICE_WRAP: u8 = 0x13;
const SERVICE_LOCK: u8 = 0x14;
const SERVICE_TOKEN: u8 = 0x15;

/// Set in each of the six for a data key that seals with ChaCha20-Poly1305. It is wrapped by AES-256-GCM all the same.
const OF_CHACHA20_POLY1305: u8 = 0x08;

/// The version of the service's key, and three lengths.
const SERVICE_FIXED_BYTES: usize = 4 + 3 * 2;

/// Version, algorithm and data key id.
const ROW_HEADER_BYTES: usize = 2 + DataKeyId::BYTES;

/// Version, algorithm, data key id and the length of the key-encryption key's id.
const WRAP_FIXED_HEADER_BYTES: usize = 2 + DataKeyId::BYTES + 1;
