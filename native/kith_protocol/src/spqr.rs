//! The sparse post-quantum ratchet: the third ratchet of version 4 (docs/protocol.md).
//!
//! The two devices take turns at one ML-KEM-768 exchange per epoch. Its keys and ciphertexts are too large
//! for a message, so they travel as 32-byte chunks of an erasure code, one per message. Each completed
//! exchange gives an epoch secret, which starts a pair of symmetric chains with one key per message.

pub(crate) mod authenticator;
pub(crate) mod chain;
pub(crate) mod erasure;
mod field;
pub(crate) mod kem;
pub(crate) mod message;

#[cfg(test)]
pub(crate) mod vectors;
