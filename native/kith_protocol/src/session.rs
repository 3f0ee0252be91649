//! Sessions: the Double Ratchet between two devices, and the record of all of them.

mod encoding;
mod official;
mod open;
mod record;
mod skipped;
mod state;

pub use official::{OfficialRecord, RecordError, SkippedKeyFormat};
pub use record::{
    Changes, Ciphertext, DecryptError, Decrypted, EncryptError, InitiateError, LocalDevice,
    NotLoaded, PreKeyKind, PreKeys, Replaced, SessionRecord,
};
pub use skipped::{
    MemorySkippedKeys, SkippedKey, SkippedKeyError, SkippedKeyLookup, SkippedKeyPosition,
};
pub use state::{ChainInfo, Session, SessionId, SessionInfo, StateError};
