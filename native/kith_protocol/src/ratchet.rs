//! The keys of the Double Ratchet, one file each.

mod chain_key;
mod message_keys;
mod root_key;

pub(crate) use chain_key::ChainKey;
pub(crate) use message_keys::{MessageKeys, MessageSeed};
pub(crate) use root_key::RootKey;
