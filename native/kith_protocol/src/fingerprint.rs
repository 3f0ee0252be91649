//! Safety numbers: what two people compare to know that nobody sits between them.

use prost::Message as _;
use sha2::{Digest, Sha512};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::identity::IdentityKey;
use crate::limits::MAX_FINGERPRINT_ITERATIONS;

/// The version inside the hash, two bytes.
const HASH_VERSION: [u8; 2] = [0, 0];

/// What is wrong with the input of a safety number.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FingerprintError {
    /// Fewer than 2 or more than 1 000 000 iterations.
    #[error("{0} iterations are outside 2..=1000000")]
    Iterations(u32),
    /// Not a scannable safety number.
    #[error("the scanned bytes are not a safety number")]
    Malformed,
    /// The other side uses another version.
    #[error("the scanned safety number has version {theirs}, ours has {ours}")]
    Version {
        /// Ours.
        ours: u32,
        /// The scanned one.
        theirs: u32,
    },
}

/// The safety number of two identity keys, as one side sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    version: u32,
    local: [u8; 32],
    remote: [u8; 32],
}

#[derive(Clone, PartialEq, prost::Message)]
struct Half {
    #[prost(bytes = "vec", optional, tag = "1")]
    content: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scannable {
    #[prost(uint32, optional, tag = "1")]
    version: Option<u32>,
    #[prost(message, optional, tag = "2")]
    local: Option<Half>,
    #[prost(message, optional, tag = "3")]
    remote: Option<Half>,
}

impl Fingerprint {
    /// Computes both halves.
    ///
    /// `version` appears in the scannable form only: 1 by convention with phone numbers as identifiers, 2
    /// with service ids. `iterations` slows down the search for a key with a similar number; Signal's apps
    /// use [`FINGERPRINT_ITERATIONS`](crate::limits::FINGERPRINT_ITERATIONS).
    ///
    /// # Errors
    ///
    /// [`FingerprintError::Iterations`].
    pub fn new(
        version: u32,
        iterations: u32,
        (local_id, local_key): (&[u8], &IdentityKey),
        (remote_id, remote_key): (&[u8], &IdentityKey),
    ) -> Result<Self, FingerprintError> {
        if !(2..=MAX_FINGERPRINT_ITERATIONS).contains(&iterations) {
            return Err(FingerprintError::Iterations(iterations));
        }
        Ok(Self {
            version,
            local: hash(iterations, local_id, local_key),
            remote: hash(iterations, remote_id, remote_key),
        })
    }

    /// 60 digits, the same on both sides.
    #[must_use]
    pub fn display(&self) -> String {
        let (local, remote) = (digits(&self.local), digits(&self.remote));
        if local <= remote {
            local + &remote
        } else {
            remote + &local
        }
    }

    /// The bytes of the QR code this side shows.
    #[must_use]
    pub fn scannable(&self) -> Vec<u8> {
        let half = |hash: &[u8; 32]| {
            Some(Half {
                content: Some(hash.to_vec()),
            })
        };
        Scannable {
            version: Some(self.version),
            local: half(&self.local),
            remote: half(&self.remote),
        }
        .encode_to_vec()
    }

    /// Whether the other side's QR code shows the same two keys.
    ///
    /// # Errors
    ///
    /// [`FingerprintError::Malformed`], or [`FingerprintError::Version`] when the versions differ.
    pub fn matches(&self, scanned: &[u8]) -> Result<bool, FingerprintError> {
        let theirs = Scannable::decode(scanned).map_err(|_| FingerprintError::Malformed)?;
        let content = |half: Option<Half>| {
            half.and_then(|half| half.content)
                .ok_or(FingerprintError::Malformed)
        };
        let version = theirs.version.ok_or(FingerprintError::Malformed)?;
        let (local, remote) = (content(theirs.local)?, content(theirs.remote)?);
        if version != self.version {
            return Err(FingerprintError::Version {
                ours: self.version,
                theirs: version,
            });
        }
        let same = self.local.ct_eq(remote.as_slice()) & self.remote.ct_eq(local.as_slice());
        Ok(same.into())
    }
}

/// `h = SHA512(0x0000 ‖ key ‖ id ‖ key)`, then `n − 1` times `h = SHA512(h ‖ key)`; the first 32 bytes.
fn hash(iterations: u32, id: &[u8], key: &IdentityKey) -> [u8; 32] {
    let key = key.to_bytes();
    let first = Sha512::new().chain_update(HASH_VERSION).chain_update(key);
    let mut hash = first.chain_update(id).chain_update(key).finalize();
    for _ in 1..iterations {
        hash = Sha512::new()
            .chain_update(hash)
            .chain_update(key)
            .finalize();
    }
    let mut out = [0; 32];
    out.copy_from_slice(&hash[..32]);
    out
}

/// Six groups of five bytes, each modulo 100 000: 30 digits.
fn digits(hash: &[u8; 32]) -> String {
    hash[..30]
        .chunks_exact(5)
        .map(|group| {
            let number = group
                .iter()
                .fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
            format!("{:05}", number % 100_000)
        })
        .collect()
}
