use std::fmt;

use crate::{error::ConfigError, source::reads_as_key};

/// The name of a key-encryption key: 1 to 64 visible ASCII characters.
///
/// The operator chooses it, for example `2026-01`. It is stored in clear in every data key that the key wraps.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(Box<str>);

impl KeyId {
    /// The most bytes that an id has, so that its length fits one byte and an id fits a log line.
    pub const MAX_BYTES: usize = 64;

    /// Takes a name.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadKeyId`] for a wrong length or character, [`ConfigError::KeyAsKeyId`] for what reads as base64
    /// of a key.
    pub fn new(id: impl AsRef<str>) -> Result<Self, ConfigError> {
        let id = id.as_ref();
        if reads_as_key(id.as_bytes()) {
            return Err(ConfigError::KeyAsKeyId);
        }

        let well_formed = (1..=Self::MAX_BYTES).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_graphic());
        well_formed
            .then(|| Self(id.into()))
            .ok_or(ConfigError::BadKeyId)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(id) = self;
        write!(f, "KeyId({id:?})")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_ascii_of_1_to_64_bytes_is_an_id() {
        for id in ["a", "2026-01", "~!key", &"k".repeat(64)] {
            assert_eq!(KeyId::new(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn anything_else_is_refused_without_being_shown() {
        for id in [
            "",
            &"k".repeat(65),
            "two words",
            "tab\t",
            "line\n",
            "nul\0",
            "schlüssel",
            "\u{7f}",
        ] {
            assert_eq!(KeyId::new(id), Err(ConfigError::BadKeyId));
        }
        assert_eq!(
            ConfigError::BadKeyId.to_string(),
            "expected a key id of 1 to 64 visible ASCII characters without spaces, got one that is not"
        );
    }

    #[test]
    fn a_key_in_place_of_an_id_is_refused() {
        let padded = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        for id in [padded, padded.trim_end_matches('=')] {
            assert_eq!(KeyId::new(id), Err(ConfigError::KeyAsKeyId));
        }
    }

    #[test]
    fn debug_shows_the_name() {
        assert_eq!(
            format!("{:?}", KeyId::new("2026-01").unwrap()),
            "KeyId(\"2026-01\")"
        );
    }
}
