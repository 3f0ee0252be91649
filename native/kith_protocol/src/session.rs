//! Sessions: the Double and the Triple Ratchet between two devices, and the record of all of them.

mod encoding;
mod entries;
mod official;
mod open;
mod record;
mod state;

pub use entries::{Entry, EntryError, EntryGroup, EntryLookup, EntryPosition, MemoryEntries};
pub use official::{OfficialRecord, RecordError, SkippedKeyFormat};
pub use record::{
    Changes, Ciphertext, DecryptError, Decrypted, EncryptError, InitiateError, LocalDevice,
    NotLoaded, PreKeyKind, PreKeys, RemoteDevice, Replaced, SessionRecord,
};
pub use state::{BraidInfo, ChainInfo, Session, SessionId, SessionInfo, StateError};
