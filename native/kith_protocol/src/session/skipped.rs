//! Keys of messages that were sent but have not arrived.

use std::collections::BTreeMap;

use thiserror::Error;
use zeroize::Zeroizing;

use super::state::SessionId;
use crate::curve::PublicKey;
use crate::ratchet::{MessageKeys, MessageSeed};

/// Which message a skipped key is for: the chain's ratchet key, and the counter in that chain.
pub type SkippedKeyPosition = (PublicKey, u32);

/// The key of one message that was skipped.
///
/// Keys live apart from the session, one row each, so that a step of the ratchet costs the same
/// however many of them are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedKey(Material);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Seed(MessageSeed),
    /// Keys as older clients store them; only found in imported records.
    Expanded(MessageKeys),
}

const SEED: u8 = 1;
const EXPANDED: u8 = 2;

/// Bytes that are not a skipped key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the stored message key is damaged")]
pub struct SkippedKeyError;

impl SkippedKey {
    pub(crate) const fn seed(seed: MessageSeed) -> Self {
        Self(Material::Seed(seed))
    }

    pub(crate) const fn expanded(keys: MessageKeys) -> Self {
        Self(Material::Expanded(keys))
    }

    /// The keys of the message, with the salt of the post-quantum ratchet.
    pub(crate) fn message_keys(&self, salt: Option<&[u8; 32]>) -> MessageKeys {
        match &self.0 {
            Material::Seed(seed) => seed.expand(salt),
            Material::Expanded(keys) => keys.clone(),
        }
    }

    pub(crate) const fn as_seed(&self) -> Option<&MessageSeed> {
        match &self.0 {
            Material::Seed(seed) => Some(seed),
            Material::Expanded(_) => None,
        }
    }

    /// `1 ‖ seed (32)`, or `2 ‖ cipher key (32) ‖ MAC key (32) ‖ IV (16)`.
    ///
    /// # Security
    ///
    /// These bytes open a message. Seal them before they are stored.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let (kind, bytes): (u8, &[u8]) = match &self.0 {
            Material::Seed(seed) => (SEED, seed.as_bytes()),
            Material::Expanded(keys) => (EXPANDED, keys.as_bytes()),
        };
        let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
        out.push(kind);
        out.extend_from_slice(bytes);
        out
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    ///
    /// [`SkippedKeyError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SkippedKeyError> {
        match bytes.split_first() {
            Some((&SEED, seed)) => seed
                .try_into()
                .map(|seed| Self::seed(MessageSeed::from_bytes(seed)))
                .map_err(|_| SkippedKeyError),
            Some((&EXPANDED, keys)) => keys
                .try_into()
                .map(|keys| Self::expanded(MessageKeys::from_bytes(keys)))
                .map_err(|_| SkippedKeyError),
            _ => Err(SkippedKeyError),
        }
    }
}

/// What looking for a skipped key found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkippedKeyLookup {
    /// There is none: the message was opened before, or its key was evicted.
    Absent,
    /// The key.
    Found(SkippedKey),
    /// It was not looked for. Decryption stops and says what it needs.
    NotLoaded,
}

/// The skipped keys of all sessions with one peer, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemorySkippedKeys(BTreeMap<(SessionId, PublicKey, u32), SkippedKey>);

impl MemorySkippedKeys {
    /// Looks for one key.
    #[must_use]
    pub fn find(
        &self,
        session: &SessionId,
        (chain, counter): &SkippedKeyPosition,
    ) -> SkippedKeyLookup {
        self.0
            .get(&(*session, *chain, *counter))
            .cloned()
            .map_or(SkippedKeyLookup::Absent, SkippedKeyLookup::Found)
    }

    /// Makes the changes of one decrypted message.
    pub fn apply(&mut self, changes: &super::Changes) {
        let session = changes.session_id;
        for ((chain, counter), key) in &changes.skipped_added {
            self.0.insert((session, *chain, *counter), key.clone());
        }
        if let Some((chain, counter)) = changes.skipped_removed {
            self.0.remove(&(session, chain, counter));
        }
        for &(chain, count) in &changes.skipped_evicted {
            let oldest: Vec<_> = self
                .of_chain(&session, &chain)
                .take(count as usize)
                .collect();
            for counter in oldest {
                self.0.remove(&(session, chain, counter));
            }
        }
        for chain in &changes.chains_dropped {
            self.0
                .retain(|(of, ratchet_key, _), _| !(of == &session && ratchet_key == chain));
        }
        if !changes.sessions_dropped.is_empty() {
            self.forget(&changes.sessions_dropped);
        }
    }

    /// Forgets the keys of sessions that are gone.
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

    pub(crate) fn insert(
        &mut self,
        session: SessionId,
        (chain, counter): SkippedKeyPosition,
        key: SkippedKey,
    ) {
        self.0.insert((session, chain, counter), key);
    }

    /// The counters of one chain, ascending.
    pub(crate) fn of_chain(
        &self,
        session: &SessionId,
        chain: &PublicKey,
    ) -> impl DoubleEndedIterator<Item = u32> {
        self.0
            .range((*session, *chain, 0)..=(*session, *chain, u32::MAX))
            .map(|((_, _, counter), _)| *counter)
    }
}
