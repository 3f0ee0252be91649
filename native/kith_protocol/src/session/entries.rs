//! What a session keeps beside itself, one row each: keys of messages that have not arrived, and chunks of what
//! the post-quantum ratchet is being sent.
//!
//! A step of the ratchet costs the same however many of them there are.

use std::collections::BTreeMap;

use thiserror::Error;
use zeroize::Zeroizing;

use super::state::SessionId;
use crate::curve::{KEY_TYPE, PublicKey};
use crate::ratchet::{MessageKeys, MessageSeed};
use crate::secret::SecretBytes;
use crate::spqr::decoder::{CHUNKS_PER_PAGE, Page};
use crate::spqr::erasure::CHUNK_LEN;
use crate::spqr::message::IndexedChunk;

/// What entries belong together; within a group they are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryGroup {
    /// Keys of skipped messages of the receiving chain with this ratchet key, by counter.
    MessageKeys(PublicKey),
    /// Keys of the post-quantum ratchet for skipped messages, from the chain of this epoch, by index.
    PostQuantumKeys(u64),
    /// Chunks that arrived in this epoch, three to a page, by page.
    Chunks(u64),
}

/// Where an entry is: its group, and its number there.
pub type EntryPosition = (EntryGroup, u32);

const POST_QUANTUM_KEYS: u8 = 1;
const CHUNKS: u8 = 2;

impl EntryGroup {
    /// `0x05 ‖ u (32)` for a ratchet key, `0x01 ‖ epoch (8)` for keys of the post-quantum ratchet,
    /// `0x02 ‖ epoch (8)` for chunks.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let of_epoch = |kind, epoch: &u64| [&[kind], epoch.to_be_bytes().as_slice()].concat();
        match self {
            Self::MessageKeys(ratchet_key) => ratchet_key.to_bytes().to_vec(),
            Self::PostQuantumKeys(epoch) => of_epoch(POST_QUANTUM_KEYS, epoch),
            Self::Chunks(epoch) => of_epoch(CHUNKS, epoch),
        }
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    ///
    /// [`EntryError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EntryError> {
        let (&kind, rest) = bytes.split_first().ok_or(EntryError)?;
        let epoch = || {
            rest.try_into()
                .map(u64::from_be_bytes)
                .map_err(|_| EntryError)
        };
        match kind {
            KEY_TYPE => rest
                .try_into()
                .map(|u| Self::MessageKeys(PublicKey::from_u(u)))
                .map_err(|_| EntryError),
            POST_QUANTUM_KEYS => epoch().map(Self::PostQuantumKeys),
            CHUNKS => epoch().map(Self::Chunks),
            _ => Err(EntryError),
        }
    }
}

/// One row that a session keeps beside itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(Material);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Seed(MessageSeed),
    /// Message keys as older clients store them; only found in imported records.
    Expanded(MessageKeys),
    PostQuantumKey(SecretBytes),
    Page(Box<Page>),
}

const SEED: u8 = 1;
const EXPANDED: u8 = 2;
const POST_QUANTUM_KEY: u8 = 3;
const PAGE: u8 = 4;

/// Bytes of one chunk in a page: its index (2) and its data (32).
const PAGED_CHUNK_LEN: usize = 2 + CHUNK_LEN;

/// Bytes that are not an entry.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the stored entry is damaged")]
pub struct EntryError;

impl Entry {
    pub(crate) const fn seed(seed: MessageSeed) -> Self {
        Self(Material::Seed(seed))
    }

    pub(crate) const fn expanded(keys: MessageKeys) -> Self {
        Self(Material::Expanded(keys))
    }

    pub(crate) const fn post_quantum_key(key: SecretBytes) -> Self {
        Self(Material::PostQuantumKey(key))
    }

    pub(crate) fn page(page: Page) -> Self {
        Self(Material::Page(Box::new(page)))
    }

    /// The keys of the message, with the salt of the post-quantum ratchet; `None` if this is no such entry.
    pub(crate) fn message_keys(&self, salt: Option<&[u8; 32]>) -> Option<MessageKeys> {
        match &self.0 {
            Material::Seed(seed) => Some(seed.expand(salt)),
            Material::Expanded(keys) => Some(keys.clone()),
            Material::PostQuantumKey(_) | Material::Page(_) => None,
        }
    }

    pub(crate) const fn as_seed(&self) -> Option<&MessageSeed> {
        match &self.0 {
            Material::Seed(seed) => Some(seed),
            _ => None,
        }
    }

    pub(crate) const fn as_post_quantum_key(&self) -> Option<&SecretBytes> {
        match &self.0 {
            Material::PostQuantumKey(key) => Some(key),
            _ => None,
        }
    }

    pub(crate) fn as_page(&self) -> Option<&Page> {
        match &self.0 {
            Material::Page(page) => Some(page),
            _ => None,
        }
    }

    /// One byte for the kind, then:
    ///
    /// | kind | content |
    /// | --- | --- |
    /// | 1 | seed of message keys (32) |
    /// | 2 | cipher key (32) ‖ MAC key (32) ‖ IV (16) |
    /// | 3 | key of the post-quantum ratchet (32) |
    /// | 4 | three chunks, each index (2, big-endian) ‖ data (32) |
    ///
    /// # Security
    ///
    /// These bytes open a message. Seal them before they are stored.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let of = |kind: u8, bytes: &[u8]| {
            let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
            out.push(kind);
            out.extend_from_slice(bytes);
            out
        };
        match &self.0 {
            Material::Seed(seed) => of(SEED, seed.as_bytes()),
            Material::Expanded(keys) => of(EXPANDED, keys.as_bytes()),
            Material::PostQuantumKey(key) => of(POST_QUANTUM_KEY, key.as_bytes()),
            Material::Page(page) => {
                let mut chunks = Vec::with_capacity(CHUNKS_PER_PAGE * PAGED_CHUNK_LEN);
                for chunk in page.iter() {
                    chunks.extend_from_slice(&chunk.index.to_be_bytes());
                    chunks.extend_from_slice(&chunk.data);
                }
                of(PAGE, &chunks)
            }
        }
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    ///
    /// [`EntryError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EntryError> {
        let (&kind, rest) = bytes.split_first().ok_or(EntryError)?;
        match kind {
            SEED => Ok(Self::seed(MessageSeed::from_bytes(fixed(rest)?))),
            EXPANDED => Ok(Self::expanded(MessageKeys::from_bytes(fixed(rest)?))),
            POST_QUANTUM_KEY => Ok(Self::post_quantum_key(SecretBytes::copy_of(fixed(rest)?))),
            PAGE => {
                let bytes: &[u8; CHUNKS_PER_PAGE * PAGED_CHUNK_LEN] = fixed(rest)?;
                let (chunks, _) = bytes.as_chunks::<PAGED_CHUNK_LEN>();
                let mut page = [IndexedChunk {
                    index: 0,
                    data: [0; CHUNK_LEN],
                }; CHUNKS_PER_PAGE];
                for (slot, chunk) in page.iter_mut().zip(chunks) {
                    let [high, low, data @ ..] = chunk;
                    slot.index = u16::from_be_bytes([*high, *low]);
                    slot.data = *data;
                }
                Ok(Self::page(page))
            }
            _ => Err(EntryError),
        }
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], EntryError> {
    bytes.try_into().map_err(|_| EntryError)
}

/// What looking for an entry found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryLookup {
    /// There is none.
    Absent,
    /// The entry.
    Found(Entry),
    /// It was not looked for. Decryption stops and says what it needs.
    NotLoaded,
}

/// The entries of all sessions with one peer, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryEntries(BTreeMap<(SessionId, EntryGroup, u32), Entry>);

impl MemoryEntries {
    /// Looks for one entry.
    #[must_use]
    pub fn find(&self, session: &SessionId, (group, number): &EntryPosition) -> EntryLookup {
        self.0
            .get(&(*session, *group, *number))
            .cloned()
            .map_or(EntryLookup::Absent, EntryLookup::Found)
    }

    /// Makes the changes of one decrypted message.
    pub fn apply(&mut self, changes: &super::Changes) {
        let session = changes.session_id;
        for (group, number) in &changes.entries_removed {
            self.0.remove(&(session, *group, *number));
        }
        self.forget_groups(&session, &changes.groups_dropped);
        for ((group, number), entry) in &changes.entries_added {
            self.0.insert((session, *group, *number), entry.clone());
        }
        for &(group, kept) in &changes.entries_evicted {
            let lowest: Vec<_> = self
                .of_group(&session, group)
                .rev()
                .skip(kept as usize)
                .map(|(number, _)| number)
                .collect();
            for number in lowest {
                self.0.remove(&(session, group, number));
            }
        }
        if !changes.sessions_dropped.is_empty() {
            self.forget(&changes.sessions_dropped);
        }
    }

    /// Forgets whole groups of a session, as [`Ciphertext::entries_dropped`](super::Ciphertext) names them.
    pub fn forget_groups(&mut self, session: &SessionId, groups: &[EntryGroup]) {
        if !groups.is_empty() {
            self.0
                .retain(|(of, group, _), _| !(of == session && groups.contains(group)));
        }
    }

    /// Forgets the entries of sessions that are gone.
    pub fn forget(&mut self, sessions: &[SessionId]) {
        self.0.retain(|(of, _, _), _| !sessions.contains(of));
    }

    /// How many there are, over all sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every entry of every session, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, EntryPosition, &Entry)> {
        self.0
            .iter()
            .map(|((session, group, number), entry)| (*session, (*group, *number), entry))
    }

    pub(crate) fn insert(
        &mut self,
        session: SessionId,
        (group, number): EntryPosition,
        entry: Entry,
    ) -> Option<Entry> {
        self.0.insert((session, group, number), entry)
    }

    /// The entries of one group, the lowest number first.
    pub(crate) fn of_group(
        &self,
        session: &SessionId,
        group: EntryGroup,
    ) -> impl DoubleEndedIterator<Item = (u32, &Entry)> {
        self.0
            .range((*session, group, 0)..=(*session, group, u32::MAX))
            .map(|((_, _, number), entry)| (*number, entry))
    }
}
