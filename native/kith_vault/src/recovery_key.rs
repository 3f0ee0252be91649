//! The recovery key: random bytes that a person keeps as words, or several people as shares.
//!
//! A share, whose text is the caller's:
//!
//! ```text
//! 1   version, 01
//! 4   id of the set, random
//! 1   threshold: how many are needed
//! 1   index of the share
//! n   a point of each polynomial over GF(2^8) whose value at 0 is a byte of: key (16 or 32) ‖ digest (4)
//! 4   checksum: the first bytes of SHA-256("kith-share" ‖ all before)
//! ```
//!
//! The digest is the first bytes of SHA-256("kith-shares" ‖ id of the set ‖ key). It is shared with the key, so that shares
//! tell nothing, and says whether the key that comes out is the one that went in.

use std::{fmt, str};

use bip39::{Language, Mnemonic};
use rand_core::{CryptoRng, TryCryptoRng};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use vsss_rs::Gf256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::RecoveryKeyError;

/// How many words a recovery key has, and so how many bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WordCount {
    /// 128 bits.
    Twelve,
    /// 256 bits.
    TwentyFour,
}

impl WordCount {
    const fn bytes(self) -> usize {
        match self {
            Self::Twelve => 16,
            Self::TwentyFour => 32,
        }
    }
}

/// A key of 128 or 256 random bits. Boxed, and zeroized on drop.
pub struct RecoveryKey(Box<[u8]>);

impl RecoveryKey {
    /// The longest text that is read as words: 24 of 8 letters, with room for how people write.
    pub const MAX_WORDS_BYTES: usize = 1_024;

    /// Draws one.
    ///
    /// # Errors
    ///
    /// [`RecoveryKeyError::Random`].
    pub fn generate<R: TryCryptoRng + ?Sized>(
        rng: &mut R,
        words: WordCount,
    ) -> Result<Self, RecoveryKeyError> {
        let mut key = Self(vec![0; words.bytes()].into());
        rng.try_fill_bytes(&mut key.0)
            .map_err(|_| RecoveryKeyError::Random)?;
        Ok(key)
    }

    /// Takes 16 or 32 bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        matches!(bytes.len(), 16 | 32).then(|| Self(bytes.into()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The words, in English, with a space between them.
    ///
    /// # Errors
    ///
    /// None: a key has as many bits as there are words for.
    pub fn to_words(&self) -> Result<Zeroizing<String>, RecoveryKeyError> {
        let mnemonic = Mnemonic::from_entropy_in(Language::English, &self.0)
            .map_err(|_| RecoveryKeyError::WordCount)?;
        // Long enough for any, so that it does not grow.
        let mut words = Zeroizing::new(String::with_capacity(24 * 9));
        for word in mnemonic.words() {
            if !words.is_empty() {
                words.push(' ');
            }
            words.push_str(word);
        }
        Ok(words)
    }

    /// Reads words, whatever case they are in and whatever white space is between them.
    ///
    /// # Errors
    ///
    /// [`RecoveryKeyError::Word`] for the first that is not one of the list, [`RecoveryKeyError::WordCount`],
    /// [`RecoveryKeyError::Checksum`].
    pub fn from_words(text: &[u8]) -> Result<Self, RecoveryKeyError> {
        if text.len() > Self::MAX_WORDS_BYTES {
            return Err(RecoveryKeyError::WordCount);
        }
        // Any letter beside ASCII is in no word, and is found there.
        let mut lower = Zeroizing::new(text.to_ascii_lowercase());
        if str::from_utf8(&lower).is_err() {
            for byte in lower.iter_mut().filter(|byte| !byte.is_ascii()) {
                *byte = b'?';
            }
        }
        let lower = str::from_utf8(&lower).map_err(|_| RecoveryKeyError::WordCount)?;
        let unknown = lower
            .split_whitespace()
            .position(|word| Language::English.find_word(word).is_none());
        if let Some(before) = unknown {
            return Err(RecoveryKeyError::Word {
                position: before + 1,
            });
        }
        if !matches!(lower.split_whitespace().count(), 12 | 24) {
            return Err(RecoveryKeyError::WordCount);
        }
        let mnemonic = Mnemonic::parse_in_normalized(Language::English, lower)
            .map_err(|_| RecoveryKeyError::Checksum)?;
        let (mut entropy, length) = mnemonic.to_entropy_array();
        let key = entropy.get(..length).and_then(Self::from_bytes);
        entropy.zeroize();
        key.ok_or(RecoveryKeyError::WordCount)
    }

    /// Splits the key into `count` shares of which `threshold` give it back, and fewer nothing.
    ///
    /// # Errors
    ///
    /// [`RecoveryKeyError::Parameters`] unless 2 <= threshold <= count <= 255.
    pub fn split<R: CryptoRng>(
        &self,
        rng: &mut R,
        threshold: u8,
        count: u8,
    ) -> Result<Vec<Zeroizing<Vec<u8>>>, RecoveryKeyError> {
        if threshold < 2 || threshold > count {
            return Err(RecoveryKeyError::Parameters);
        }
        let mut set = [0; SET_BYTES];
        rng.fill_bytes(&mut set);

        let mut secret = Zeroizing::new(Vec::with_capacity(self.0.len() + DIGEST_BYTES));
        secret.extend_from_slice(&self.0);
        secret.extend_from_slice(&digest(&[KEY_LABEL, &set, &self.0]));
        let points =
            Gf256::split_bytes(threshold.into(), count.into(), secret.as_slice(), &mut *rng)
                .map_err(|_| RecoveryKeyError::Parameters)?;

        Ok(points
            .into_iter()
            .map(Zeroizing::new)
            .map(|point| {
                let mut share = Zeroizing::new(Vec::with_capacity(SHARE_OVERHEAD + secret.len()));
                share.push(VERSION);
                share.extend_from_slice(&set);
                share.push(threshold);
                // The point begins with its index.
                share.extend_from_slice(&point);
                let checksum = digest(&[SHARE_LABEL, &share]);
                share.extend_from_slice(&checksum);
                share
            })
            .collect())
    }

    /// Gives the key back from shares of one set, as many as are needed or more, in any order.
    ///
    /// # Errors
    ///
    /// Which share is damaged, of another set or there twice, or that there are too few: [`RecoveryKeyError`].
    pub fn combine(shares: &[&[u8]]) -> Result<Self, RecoveryKeyError> {
        let shares = shares
            .iter()
            .enumerate()
            .map(|(before, share)| {
                Share::parse(share).ok_or(RecoveryKeyError::Share {
                    position: before + 1,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let Some(first) = shares.first() else {
            return Err(RecoveryKeyError::TooFew { threshold: 2 });
        };
        for (before, share) in shares.iter().enumerate() {
            let position = before + 1;
            if !share.is_of_set(first) {
                return Err(RecoveryKeyError::OtherSet { position });
            }
            if shares
                .iter()
                .take(before)
                .any(|other| other.index() == share.index())
            {
                return Err(RecoveryKeyError::Twice { position });
            }
        }
        let threshold = usize::from(first.threshold);
        if shares.len() < threshold {
            return Err(RecoveryKeyError::TooFew { threshold });
        }

        let mut points: Vec<Vec<u8>> = shares.iter().map(|share| share.point.to_vec()).collect();
        let combined = Gf256::combine_bytes(&points).map(Zeroizing::new);
        points.iter_mut().for_each(Zeroize::zeroize);
        let combined = combined.map_err(|_| RecoveryKeyError::Mismatch)?;
        let (key, expected) = combined
            .split_last_chunk::<DIGEST_BYTES>()
            .ok_or(RecoveryKeyError::Mismatch)?;
        let digest = digest(&[KEY_LABEL, first.set, key]);
        if !bool::from(digest.ct_eq(expected)) {
            return Err(RecoveryKeyError::Mismatch);
        }
        Self::from_bytes(key).ok_or(RecoveryKeyError::Mismatch)
    }
}

impl Drop for RecoveryKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for RecoveryKey {}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoveryKey").finish_non_exhaustive()
    }
}

const VERSION: u8 = 1;
const SET_BYTES: usize = 4;
const DIGEST_BYTES: usize = 4;
const SHARE_LABEL: &[u8] = b"kith-share";
const KEY_LABEL: &[u8] = b"kith-shares";

/// Version, set, threshold, index, checksum.
const SHARE_OVERHEAD: usize = 1 + SET_BYTES + 1 + 1 + DIGEST_BYTES;

fn digest(parts: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let mut digest = [0; DIGEST_BYTES];
    for (to, from) in digest.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    digest
}

/// A share, taken apart.
struct Share<'a> {
    set: &'a [u8; SET_BYTES],
    threshold: u8,
    /// Index ‖ values.
    point: &'a [u8],
}

impl<'a> Share<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_last_chunk::<DIGEST_BYTES>()?;
        if digest(&[SHARE_LABEL, content]) != *checksum {
            return None;
        }
        let (&[VERSION], rest) = content.split_first_chunk::<1>()? else {
            return None;
        };
        let (set, rest) = rest.split_first_chunk()?;
        let (&[threshold], point) = rest.split_first_chunk::<1>()?;
        let whole = matches!(point.len(), 21 | 37) && threshold >= 2 && *point.first()? > 0;
        whole.then_some(Self {
            set,
            threshold,
            point,
        })
    }

    fn index(&self) -> Option<&u8> {
        self.point.first()
    }

    fn is_of_set(&self, other: &Self) -> bool {
        self.set == other.set
            && self.threshold == other.threshold
            && self.point.len() == other.point.len()
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    fn rng(seed: u8) -> ChaCha20Rng {
        ChaCha20Rng::from_seed([seed; 32])
    }

    fn error(text: &str) -> RecoveryKeyError {
        RecoveryKey::from_words(text.as_bytes()).unwrap_err()
    }

    // Vectors of the standard: github.com/trezor/python-mnemonic, vectors.json.
    #[test]
    fn words_are_those_of_bip_39() {
        for (entropy, words) in [
            (
                "00000000000000000000000000000000",
                "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about",
            ),
            (
                "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f",
                "legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth title",
            ),
            (
                "f585c11aec520db57dd353c69554b21a89b20fb0650966fa0a9d6f74fd989d8f",
                "void come effort suffer camp survey warrior heavy shoot primary clutch crush open amazing screen patrol group space point ten exist slush involve unfold",
            ),
        ] {
            let key = RecoveryKey::from_bytes(&hex::decode(entropy).unwrap()).unwrap();
            assert_eq!(key.to_words().unwrap().as_str(), words);
            let read = RecoveryKey::from_words(words.as_bytes()).unwrap();
            assert_eq!(read.as_bytes(), key.as_bytes());
            let written = format!(" {}\r\n", words.to_uppercase().replace(' ', " \n\t"));
            assert!(RecoveryKey::from_words(written.as_bytes()).is_ok());
        }
    }

    #[test]
    fn a_wrong_word_is_named_and_a_wrong_order_noticed() {
        let words = "legal winner thank year wave sausage worth useful legal winner thank yellow";
        assert!(RecoveryKey::from_words(words.as_bytes()).is_ok());
        assert_eq!(
            error(&words.replace("sausage", "sausages")),
            RecoveryKeyError::Word { position: 6 }
        );
        assert_eq!(
            error(&words.replace("yellow", "gelb")),
            RecoveryKeyError::Word { position: 12 }
        );
        assert_eq!(
            error(&words.replace("legal winner thank", "winner legal thank")),
            RecoveryKeyError::Checksum
        );
        assert_eq!(
            error(&words.replace("yellow", "zoo")),
            RecoveryKeyError::Checksum
        );
        assert_eq!(error("legal winner"), RecoveryKeyError::WordCount);
        assert_eq!(error(""), RecoveryKeyError::WordCount);
        assert_eq!(error(&"legal ".repeat(15)), RecoveryKeyError::WordCount);
        assert_eq!(error(&"legal ".repeat(500)), RecoveryKeyError::WordCount);
        assert_eq!(
            error(&words.replace("year", "jähr")),
            RecoveryKeyError::Word { position: 4 }
        );
        assert_eq!(
            RecoveryKey::from_words(b"legal \xff\xfe").unwrap_err(),
            RecoveryKeyError::Word { position: 2 }
        );
    }

    #[test]
    fn any_three_of_five_shares_give_the_key_and_two_do_not() {
        for words in [WordCount::Twelve, WordCount::TwentyFour] {
            let key = RecoveryKey::generate(&mut rng(1), words).unwrap();
            let shares = key.split(&mut rng(2), 3, 5).unwrap();
            let pick = |picked: &[usize]| {
                let picked: Vec<&[u8]> = picked.iter().map(|at| shares[*at].as_slice()).collect();
                RecoveryKey::combine(&picked)
            };
            for first in 0..5 {
                for second in 0..5 {
                    for third in 0..5 {
                        let combined = pick(&[first, second, third]);
                        if first == second || second == third || first == third {
                            assert!(matches!(combined, Err(RecoveryKeyError::Twice { .. })));
                        } else {
                            assert_eq!(combined.unwrap().as_bytes(), key.as_bytes());
                        }
                    }
                }
                assert_eq!(
                    pick(&[first]).unwrap_err(),
                    RecoveryKeyError::TooFew { threshold: 3 }
                );
            }
            assert_eq!(pick(&[0, 1, 2, 3, 4]).unwrap().as_bytes(), key.as_bytes());
        }
    }

    #[test]
    fn a_share_that_is_damaged_or_of_another_set_is_named() {
        let key = RecoveryKey::generate(&mut rng(1), WordCount::Twelve).unwrap();
        let shares = key.split(&mut rng(2), 3, 5).unwrap();
        let others = key.split(&mut rng(3), 3, 5).unwrap();
        let third = |share: &[u8]| RecoveryKey::combine(&[&shares[0], &shares[1], share]);
        assert!(third(&shares[4]).is_ok());
        assert_eq!(
            third(&others[2]).unwrap_err(),
            RecoveryKeyError::OtherSet { position: 3 }
        );
        for at in 0..shares[2].len() {
            for bit in 0..8 {
                let mut damaged = shares[2].to_vec();
                damaged[at] ^= 1 << bit;
                assert_eq!(
                    third(&damaged).unwrap_err(),
                    RecoveryKeyError::Share { position: 3 }
                );
            }
            assert_eq!(
                third(&shares[2][..at]).unwrap_err(),
                RecoveryKeyError::Share { position: 3 }
            );
        }
        assert!(matches!(
            RecoveryKey::combine(&[]).unwrap_err(),
            RecoveryKeyError::TooFew { .. }
        ));
    }

    #[test]
    fn a_forged_share_gives_no_key() {
        let key = RecoveryKey::generate(&mut rng(1), WordCount::Twelve).unwrap();
        let shares = key.split(&mut rng(2), 3, 5).unwrap();
        let mut forged = shares[2].to_vec();
        forged[9] ^= 1;
        let end = forged.len() - DIGEST_BYTES;
        let checksum = digest(&[SHARE_LABEL, &forged[..end]]);
        forged[end..].copy_from_slice(&checksum);
        assert_eq!(
            RecoveryKey::combine(&[&shares[0], &shares[1], &forged]).unwrap_err(),
            RecoveryKeyError::Mismatch
        );
    }

    #[test]
    fn the_threshold_is_two_at_least_and_no_more_than_the_shares() {
        let key = RecoveryKey::generate(&mut rng(1), WordCount::Twelve).unwrap();
        for (threshold, count) in [(0, 5), (1, 5), (6, 5), (2, 1)] {
            assert_eq!(
                key.split(&mut rng(2), threshold, count).unwrap_err(),
                RecoveryKeyError::Parameters
            );
        }
        assert_eq!(key.split(&mut rng(2), 2, 255).unwrap().len(), 255);
    }

    #[test]
    fn debug_shows_nothing() {
        let key = RecoveryKey::from_bytes(&[0x42; 16]).unwrap();
        assert_eq!(format!("{key:?}"), "RecoveryKey { .. }");
    }
}
