use std::fmt;

use zeroize::ZeroizeOnDrop;

use crate::{
    aead_key::AeadKey,
    error::{ConfigError, KeyDefect},
    key_id::KeyId,
    source::Source,
};

/// A key-encryption key: wraps data keys and nothing else. Boxed, and zeroized on drop.
#[derive(ZeroizeOnDrop)]
pub(crate) struct KeyEncryptionKey {
    #[zeroize(skip)]
    pub(crate) id: KeyId,
    pub(crate) key: AeadKey,
}

impl KeyEncryptionKey {
    pub(crate) fn load(id: KeyId, source: &Source) -> Result<Self, ConfigError> {
        let bad_key = |defect| ConfigError::BadKey {
            id: id.clone(),
            origin: source.to_string(),
            defect,
        };
        let bytes = source.load().map_err(bad_key)?;
        let key = bytes
            .as_slice()
            .try_into()
            .map_err(|_| bad_key(KeyDefect::Length { bytes: bytes.len() }))?;
        Ok(Self {
            key: AeadKey::new(key),
            id,
        })
    }
}

impl fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, key: _ } = self;
        f.debug_struct("KeyEncryptionKey")
            .field("id", id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn load(bytes: usize) -> Result<KeyEncryptionKey, ConfigError> {
        KeyEncryptionKey::load(
            KeyId::new("k1").unwrap(),
            &Source::Key(Zeroizing::new(vec![0x42; bytes])),
        )
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        for bytes in [0, 16, 31, 33, 64] {
            let error = load(bytes).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "key \"k1\" from bytes given directly: expected a key of 32 bytes, got {bytes}"
                )
            );
        }
    }

    #[test]
    fn a_key_encryption_key_stays_in_its_place_when_moved() {
        let key = load(32).unwrap();
        let address = key.key.address();
        let moved = Box::new(key);
        assert_eq!(moved.key.address(), address);
    }

    #[test]
    fn a_key_encryption_key_is_zeroized_on_drop() {
        fn assert_zeroize_on_drop<T: ZeroizeOnDrop>() {}
        assert_zeroize_on_drop::<KeyEncryptionKey>();
    }

    #[test]
    fn debug_shows_the_id_and_no_key() {
        assert_eq!(
            format!("{:?}", load(32).unwrap()),
            "KeyEncryptionKey { id: KeyId(\"k1\"), .. }"
        );
    }
}
