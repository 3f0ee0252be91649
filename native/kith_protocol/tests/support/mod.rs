//! What the integration tests share: hex, seeded randomness, the official client and the network simulator.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "each test binary uses a part of this module, and a broken fixture is a failed test"
)]

pub(crate) mod network;
pub(crate) mod official;
pub(crate) mod ours;
pub(crate) mod pair;
pub(crate) mod peer;
pub(crate) mod protobuf;
pub(crate) mod records;

use std::convert::Infallible;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng, TryCryptoRng, TryRng};
use serde_json::Value;

/// The bytes of a hex string.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap_or_else(|error| panic!("not hex ({error}): {text}"))
}

/// The bytes of a hex string of known length.
pub(crate) fn unhex_array<const N: usize>(text: &str) -> [u8; N] {
    let bytes = unhex(text);
    let length = bytes.len();
    bytes
        .try_into()
        .unwrap_or_else(|_| panic!("{length} bytes instead of {N}: {text}"))
}

/// The bytes of a hex field of a vector.
pub(crate) fn field(value: &Value, name: &str) -> Vec<u8> {
    unhex(
        value[name]
            .as_str()
            .unwrap_or_else(|| panic!("no hex field {name} in {value}")),
    )
}

/// The bytes of a hex field that may be null or absent.
pub(crate) fn optional_field(value: &Value, name: &str) -> Option<Vec<u8>> {
    value[name].as_str().map(unhex)
}

/// A file of `tests/vectors`.
pub(crate) fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// ChaCha20 from a 64-bit seed. A panic while it lives prints the seed; `KITH_SEED` replaces it.
pub(crate) struct SeededRng {
    seed: u64,
    rng: ChaCha20Rng,
    announced: bool,
}

impl SeededRng {
    /// The generator of a test: `default` unless `KITH_SEED` says otherwise.
    pub(crate) fn of_test(default: u64) -> Self {
        let seed = match std::env::var("KITH_SEED") {
            Ok(text) => text
                .parse()
                .unwrap_or_else(|_| panic!("KITH_SEED is not a number: {text}")),
            Err(_) => default,
        };
        let mut rng = Self::new(seed);
        rng.announced = true;
        rng
    }

    /// A generator that ignores the environment and prints nothing.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: ChaCha20Rng::seed_from_u64(seed),
            announced: false,
        }
    }

    /// The seed, for messages.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// A seed for another generator.
    pub(crate) fn next_seed(&mut self) -> u64 {
        self.next_u64()
    }

    /// An independent generator drawn from this one.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.next_seed())
    }

    /// A number below `bound`, which is not zero. The bias is irrelevant to a schedule.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("a 64-bit platform");
        usize::try_from(self.next_u64() % bound).expect("below a usize")
    }

    /// True in `percent` of the cases.
    pub(crate) fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < usize::from(percent)
    }

    /// An element of a slice that is not empty.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Random bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill_bytes(&mut bytes);
        bytes
    }
}

impl TryRng for SeededRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.rng.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.rng.try_next_u64()
    }

    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Infallible> {
        self.rng.try_fill_bytes(destination)
    }
}

impl TryCryptoRng for SeededRng {}

impl Clone for SeededRng {
    /// Goes on as the original does, and prints nothing.
    fn clone(&self) -> Self {
        Self {
            seed: self.seed,
            rng: self.rng.clone(),
            announced: false,
        }
    }
}

impl Drop for SeededRng {
    fn drop(&mut self) {
        if self.announced && std::thread::panicking() {
            eprintln!("reproduce with KITH_SEED={}", self.seed);
        }
    }
}
