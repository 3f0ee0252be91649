use std::fmt;

use hmac::{
    Hmac, KeyInit, Mac,
    digest::{Digest, Output},
};
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use crate::{
    error::{ConfigError, KeyDefect},
    source::Source,
};

/// The hash functions of lookups.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LookupHash {
    /// SHA-224
    Sha224,
    /// SHA-256
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

/// The secret with which values are hashed that a table is searched by. It is erased on drop.
pub struct LookupKey(Box<Zeroizing<Vec<u8>>>);

impl LookupKey {
    /// Takes the secret from its source. One that is given directly may have any length but none.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadLookupSecret`] if it cannot be taken.
    pub fn new(source: &Source) -> Result<Self, ConfigError> {
        let bad = |defect| ConfigError::BadLookupSecret {
            origin: source.to_string(),
            defect,
        };
        let bytes = source.load().map_err(bad)?;
        if bytes.is_empty() {
            return Err(bad(KeyDefect::Length { bytes: 0 }));
        }
        Ok(Self(Box::new(bytes)))
    }

    /// `HMAC[hash](secret, value)`
    #[must_use]
    pub fn hmac(&self, hash: LookupHash, value: &[u8]) -> Vec<u8> {
        match hash {
            LookupHash::Sha224 => self.hmac_of::<Hmac<Sha224>>(value),
            LookupHash::Sha256 => self.hmac_of::<Hmac<Sha256>>(value),
            LookupHash::Sha384 => self.hmac_of::<Hmac<Sha384>>(value),
            LookupHash::Sha512 => self.hmac_of::<Hmac<Sha512>>(value),
        }
    }

    fn hmac_of<M: Mac + KeyInit>(&self, value: &[u8]) -> Vec<u8> {
        // HMAC takes keys of every length.
        <M as KeyInit>::new_from_slice(&self.0)
            .map(|mac| mac.chain_update(value).finalize().into_bytes().to_vec())
            .unwrap_or_default()
    }

    /// PBKDF2 (RFC 8018) over HMAC of the hash, with the value as the password and the secret as the salt.
    #[must_use]
    pub fn pbkdf2(&self, hash: LookupHash, value: &[u8], iterations: u32, size: usize) -> Vec<u8> {
        let mut key = vec![0; size];
        let salt = self.0.as_slice();
        match hash {
            LookupHash::Sha224 => pbkdf2::pbkdf2_hmac::<Sha224>(value, salt, iterations, &mut key),
            LookupHash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(value, salt, iterations, &mut key),
            LookupHash::Sha384 => pbkdf2::pbkdf2_hmac::<Sha384>(value, salt, iterations, &mut key),
            LookupHash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(value, salt, iterations, &mut key),
        }
        key
    }
}

impl LookupHash {
    /// Bytes of its hashes.
    #[must_use]
    pub fn output_len(self) -> usize {
        fn of<D: Digest>() -> usize {
            Output::<D>::default().len()
        }
        match self {
            Self::Sha224 => of::<Sha224>(),
            Self::Sha256 => of::<Sha256>(),
            Self::Sha384 => of::<Sha384>(),
            Self::Sha512 => of::<Sha512>(),
        }
    }
}

impl fmt::Debug for LookupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LookupKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &[u8]) -> LookupKey {
        LookupKey::new(&Source::Key(Zeroizing::new(secret.to_vec()))).unwrap()
    }

    #[test]
    fn hmac_is_that_of_rfc_4231_with_every_hash() {
        let made = |hash| hex::encode(key(b"Jefe").hmac(hash, b"what do ya want for nothing?"));
        assert_eq!(
            made(LookupHash::Sha224),
            "a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44"
        );
        assert_eq!(
            made(LookupHash::Sha256),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            made(LookupHash::Sha384),
            concat!(
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e",
                "8e2240ca5e69e2c78b3239ecfab21649"
            )
        );
        assert_eq!(
            made(LookupHash::Sha512),
            concat!(
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554",
                "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
            )
        );
    }

    #[test]
    fn pbkdf2_is_that_of_rfc_7914() {
        assert_eq!(
            hex::encode(key(b"salt").pbkdf2(LookupHash::Sha256, b"passwd", 1, 64)),
            concat!(
                "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc",
                "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"
            )
        );
    }

    #[test]
    fn a_secret_of_no_bytes_is_refused_and_none_is_shown() {
        let empty = LookupKey::new(&Source::Key(Zeroizing::new(Vec::new())));
        assert_eq!(
            empty.unwrap_err().to_string(),
            "the secret of a lookup from bytes given directly: expected a key of 32 bytes, got 0"
        );
        assert_eq!(format!("{:?}", key(b"secret")), "LookupKey(..)");
    }
}
