use std::fmt;

use rand_core::TryCryptoRng;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::{
    aead_key::KEY_BYTES,
    blob::SealedRow,
    cipher::{Cipher, CipherKey},
    context::Context,
    error::VaultError,
};

/// A data key, opened: seals and opens the rows of one owner.
///
/// It lies behind a `Box`, or on a page of its own when it is held beyond a call, and is zeroized on drop. It has no form that could be stored; what is stored is the wrapped
/// data key that [`Vault::open_data_key`](crate::Vault::open_data_key) takes.
#[derive(ZeroizeOnDrop)]
pub struct DataKey {
    #[zeroize(skip)]
    id: DataKeyId,
    key: CipherKey,
}

impl DataKey {
    pub(crate) fn new(name: DataKeyName, key: &[u8; KEY_BYTES]) -> Self {
        Self {
            id: name.id,
            key: CipherKey::new(name.cipher, key),
        }
    }

    /// One that is kept open beyond the call.
    pub(crate) fn held(name: DataKeyName, key: &[u8; KEY_BYTES]) -> Self {
        Self {
            id: name.id,
            key: CipherKey::held(name.cipher, key),
        }
    }

    /// The id that rows sealed under this key carry.
    #[must_use]
    pub fn id(&self) -> DataKeyId {
        self.id
    }

    /// What it seals with, for its life.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.key.cipher()
    }

    pub(crate) fn name(&self) -> DataKeyName {
        DataKeyName {
            id: self.id,
            cipher: self.cipher(),
        }
    }

    /// Seals a row for one place. The result is [`SEALED_OVERHEAD`](crate::SEALED_OVERHEAD) bytes longer than the
    /// plaintext and different every time.
    ///
    /// # Errors
    ///
    /// [`VaultError::Random`] if the generator fails, [`VaultError::TooLarge`] beyond the limit of its cipher.
    pub fn seal<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: &Context,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let header = SealedRow::header(self.name());
        let mut row = Vec::with_capacity(SealedRow::OVERHEAD.saturating_add(plaintext.len()));
        row.extend_from_slice(&header);
        self.key
            .seal(rng, &context.associated_data(&header), plaintext, &mut row)?;
        Ok(row)
    }

    /// Opens a row that was sealed under this key for this place.
    ///
    /// # Errors
    ///
    /// [`VaultError::CorruptedState`] for everything else.
    pub fn open(&self, context: &Context, row: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let row = SealedRow::from_bytes(row)?;
        if row.data_key != self.name() {
            return Err(VaultError::CorruptedState);
        }
        self.key
            .open(&context.associated_data(row.header), &row.sealed)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, key: _ } = self;
        f.debug_struct("DataKey")
            .field("id", id)
            .finish_non_exhaustive()
    }
}

/// What the headers of its rows and of its wrapped form say of a data key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct DataKeyName {
    pub(crate) id: DataKeyId,
    pub(crate) cipher: Cipher,
}

/// The id of a data key: 8 random bytes, drawn with the key and kept through every rewrapping. Not secret.
///
/// It tells rows under an old data key from rows under its successor. Two data keys of one owner share an id with a
/// chance of 2^-64; a row then fails to open, and is not opened wrongly.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct DataKeyId([u8; Self::BYTES]);

impl DataKeyId {
    /// The length of an id.
    pub const BYTES: usize = 8;

    pub(crate) fn generate<R: TryCryptoRng + ?Sized>(rng: &mut R) -> Result<Self, VaultError> {
        let mut id = [0; Self::BYTES];
        rng.try_fill_bytes(&mut id)
            .map_err(VaultError::random::<R>)?;
        Ok(Self(id))
    }

    /// Takes an id from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id, as rows carry them.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }
}

impl fmt::Debug for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = self;
        write!(f, "DataKeyId({:016x})", u64::from_be_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_key(cipher: Cipher) -> DataKey {
        let id = DataKeyId::from_bytes([0, 1, 2, 3, 4, 5, 6, 0xff]);
        DataKey::new(DataKeyName { id, cipher }, &[0x42; KEY_BYTES])
    }

    #[test]
    fn a_data_key_stays_in_its_place_when_moved() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let data_key = data_key(cipher);
            let address = data_key.key.address();
            let moved = Box::new(data_key);
            assert_eq!(moved.key.address(), address);
        }
    }

    #[test]
    fn a_data_key_is_zeroized_on_drop() {
        fn assert_zeroize_on_drop<T: ZeroizeOnDrop>() {}
        assert_zeroize_on_drop::<DataKey>();
    }

    #[test]
    fn debug_shows_the_id_and_no_key() {
        assert_eq!(
            format!("{:?}", data_key(Cipher::default())),
            "DataKey { id: DataKeyId(00010203040506ff), .. }"
        );
    }
}
