//! Opening a message with one session: compute everything beside the session, commit after the MAC.

use rand_core::CryptoRng;

use super::entries::{Entry, EntryGroup, EntryLookup, EntryPosition};
use super::record::NotLoaded;
use super::state::{ReceivingChain, SendingChain, Session, SessionId};
use crate::curve::{KeyPair, PublicKey};
use crate::limits::{
    MAX_FORWARD_JUMP, MAX_RECEIVING_CHAINS, MAX_SKIPPED_KEYS_PER_CHAIN,
    MAX_SKIPPED_KEYS_PER_SESSION,
};
use crate::ratchet::{ChainKey, MessageSeed, RootKey};
use crate::secret::SecretBytes;
use crate::spqr::braid::BraidError;
use crate::spqr::chain::{ChainError, Received};
use crate::spqr::decoder::PageLookup;
use crate::spqr::message::SpqrMessage;
use crate::spqr::{Receipt, Spqr};
use crate::wire::SignalMessage;

/// Hashes one step of the post-quantum key chain costs: an HKDF of two blocks.
const HASHES_PER_POST_QUANTUM_STEP: u32 = 3;

/// Looks for what a session keeps beside itself.
pub(super) type Entries<'a> = &'a dyn Fn(&SessionId, &EntryPosition) -> EntryLookup;

/// Why one session did not open a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The key was used, or was evicted.
    Duplicate,
    /// Something the session keeps beside itself is not what was stored.
    Damaged,
    /// MAC, padding, addresses or keys are wrong: the message is not of this session, or was changed.
    Invalid,
    /// Something the session keeps beside itself is needed.
    NotLoaded(NotLoaded),
    /// Further ahead than [`MAX_FORWARD_JUMP`].
    TooFarAhead,
    /// The session has another version.
    Version,
}

/// A message that authenticated, and what it changes.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) plaintext: Vec<u8>,
    step: Step,
    post_quantum: Option<Receipt>,
}

#[derive(Debug)]
enum Step {
    /// The key was a skipped one.
    Skipped {
        chain: usize,
        position: EntryPosition,
    },
    /// The chain moved forward.
    Forward { chain: usize, walk: Walk },
    /// The peer has a new ratchet key.
    NewChain {
        root_key: RootKey,
        ratchet_key: PublicKey,
        walk: Walk,
    },
}

/// A chain moved up to and over one message.
#[derive(Debug)]
struct Walk {
    after: ChainKey,
    seed: MessageSeed,
    /// Ascending; at most [`MAX_SKIPPED_KEYS_PER_CHAIN`].
    skipped: Vec<(u32, MessageSeed)>,
}

/// What committing a message did to what the session keeps beside itself.
#[derive(Debug, Default)]
pub(super) struct EntryChanges {
    pub(super) added: Vec<(EntryPosition, Entry)>,
    pub(super) removed: Vec<EntryPosition>,
    pub(super) evicted: Vec<(EntryGroup, u32)>,
    pub(super) dropped: Vec<EntryGroup>,
}

impl Walk {
    /// Steps from `from` over message `counter`, remembering the seeds passed over: only the newest
    /// ones, so that a jump of 25 000 costs one hash for each of the rest.
    fn new(from: &ChainKey, counter: u32) -> Result<Self, Refusal> {
        let jump = counter.checked_sub(from.index()).ok_or(Refusal::Invalid)?;
        if jump > MAX_FORWARD_JUMP {
            return Err(Refusal::TooFarAhead);
        }
        let remember_from = counter.saturating_sub(MAX_SKIPPED_KEYS_PER_CHAIN);
        let mut skipped = Vec::new();
        let mut chain = from.clone();
        while chain.index() < counter {
            let at = chain.index();
            if at < remember_from {
                chain = chain.pass_over().ok_or(Refusal::TooFarAhead)?;
            } else {
                let (seed, next) = chain.step().ok_or(Refusal::TooFarAhead)?;
                skipped.push((at, seed));
                chain = next;
            }
        }
        let (seed, after) = chain.step().ok_or(Refusal::TooFarAhead)?;
        Ok(Self {
            after,
            seed,
            skipped,
        })
    }
}

impl Session {
    pub(super) fn has_receiving_chain(&self, ratchet_key: &PublicKey) -> bool {
        self.receiving_chain(ratchet_key).is_some()
    }

    fn receiving_chain(&self, ratchet_key: &PublicKey) -> Option<usize> {
        self.receiving
            .iter()
            .position(|chain| chain.ratchet_key == *ratchet_key)
    }

    /// The hashes that trying `message` costs if its ratchet key is new here.
    pub(super) fn trial_cost(&self, message: &SignalMessage) -> u32 {
        let Some(spqr) = &self.spqr else {
            return message.counter();
        };
        // What cannot have a key here is refused before anything is hashed.
        message
            .post_quantum()
            .ok()
            .filter(|message| spqr.check(message).is_ok())
            .map_or(0, |post_quantum| {
                spqr.jump(&post_quantum)
                    .saturating_mul(HASHES_PER_POST_QUANTUM_STEP)
                    .saturating_add(message.counter())
            })
    }

    /// Opens `message` without changing the session.
    ///
    /// `addresses` is what the message must be bound to if it is bound to addresses at all. Everything
    /// that costs next to nothing is checked before anything that costs work, and the braid sees the message
    /// only when it is authentic.
    pub(super) fn open(
        &self,
        message: &SignalMessage,
        addresses: Option<&[u8; 36]>,
        entries: Entries<'_>,
    ) -> Result<Opened, Refusal> {
        if message.version() != self.version() {
            return Err(Refusal::Version);
        }
        let chain = self.receiving_chain(message.ratchet_key());
        let kept = chain
            .filter(|chain| message.counter() < self.receiving[*chain].chain_key.index())
            .map(|chain| self.kept_key(chain, message, entries))
            .transpose()?;
        let post_quantum = self
            .spqr
            .as_deref()
            .map(|spqr| PostQuantum::new(spqr, message, self.may_lack_key(spqr, message)))
            .transpose()?;

        let (step, seed) = match (kept, chain) {
            (Some((step, entry)), _) => (step, Keys::Entry(entry)),
            (None, Some(chain)) => {
                let walk = Walk::new(&self.receiving[chain].chain_key, message.counter())?;
                let seed = walk.seed.clone();
                (Step::Forward { chain, walk }, Keys::Seed(seed))
            }
            (None, None) => {
                if message.counter() > MAX_FORWARD_JUMP {
                    return Err(Refusal::TooFarAhead);
                }
                let (root_key, chain_key) = self
                    .root_key
                    .step(&self.sending.ratchet, message.ratchet_key())
                    .map_err(|_| Refusal::Invalid)?;
                let walk = Walk::new(&chain_key, message.counter())?;
                let seed = walk.seed.clone();
                let ratchet_key = *message.ratchet_key();
                let step = Step::NewChain {
                    root_key,
                    ratchet_key,
                    walk,
                };
                (step, Keys::Seed(seed))
            }
        };
        let received = match &post_quantum {
            None => None,
            Some(post_quantum) => post_quantum.receive(&self.id, entries)?,
        };
        let salt = received.as_ref().map(|(_, key)| key.as_bytes());
        let keys = match &seed {
            Keys::Seed(seed) => seed.expand(salt),
            Keys::Entry(entry) => entry.message_keys(salt).ok_or(Refusal::Damaged)?,
        };
        if !message.verify_mac(&keys, &self.remote_identity, &self.local_identity) {
            return Err(Refusal::Invalid);
        }
        let bound = message.addresses();
        if bound.is_some() && bound != addresses.map(<[u8; 36]>::as_slice) {
            return Err(Refusal::Invalid);
        }
        let plaintext = keys.decrypt(message.ciphertext()).ok_or(Refusal::Invalid)?;
        let post_quantum = match post_quantum {
            None => None,
            Some(post_quantum) => Some(post_quantum.commitment(
                received.map(|(received, _)| received),
                &self.id,
                entries,
            )?),
        };
        Ok(Opened {
            plaintext,
            step,
            post_quantum,
        })
    }

    /// Whether a message may be without a key of the post-quantum ratchet.
    ///
    /// Clients that do not insist on that ratchet mix no key until they have heard from the responder, so only
    /// in the first chain of an initiator. Later it would be a way around the ratchet.
    fn may_lack_key(&self, spqr: &Spqr, message: &SignalMessage) -> bool {
        let first_chain = match self.receiving.as_slice() {
            [] => true,
            // As long as none was dropped, the oldest chain is the first.
            [first, ..] if self.receiving.len() < MAX_RECEIVING_CHAINS => {
                first.ratchet_key == *message.ratchet_key()
            }
            _ => false,
        };
        first_chain && spqr.is_responder_in_first_epoch()
    }

    /// The key of a message the chain has passed.
    fn kept_key(
        &self,
        chain: usize,
        message: &SignalMessage,
        entries: Entries<'_>,
    ) -> Result<(Step, Entry), Refusal> {
        let group = EntryGroup::MessageKeys(*message.ratchet_key());
        let position = (group, message.counter());
        match entries(&self.id, &position) {
            EntryLookup::Absent => Err(Refusal::Duplicate),
            EntryLookup::NotLoaded => Err(Refusal::NotLoaded(NotLoaded::MessageKeys)),
            EntryLookup::Found(entry) => Ok((Step::Skipped { chain, position }, entry)),
        }
    }

    /// Makes the changes of an opened message. Draws a new ratchet key when the peer has one.
    ///
    /// Fails only if the new ratchet key agrees with the peer's to zero, and then changes nothing.
    pub(super) fn commit<R: CryptoRng + ?Sized>(
        &mut self,
        opened: Opened,
        rng: &mut R,
    ) -> Result<(Vec<u8>, EntryChanges), Refusal> {
        let Opened {
            plaintext,
            step,
            post_quantum,
        } = opened;
        let mut changes = EntryChanges::default();
        match step {
            Step::Skipped { chain, position } => {
                let chain = &mut self.receiving[chain];
                chain.skipped = chain.skipped.saturating_sub(1);
                changes.removed.push(position);
            }
            Step::Forward { chain, walk } => self.advance(chain, walk, &mut changes),
            Step::NewChain {
                root_key,
                ratchet_key,
                walk,
            } => {
                let ratchet = KeyPair::generate(rng);
                let (root_key, chain_key) = root_key
                    .step(&ratchet, &ratchet_key)
                    .map_err(|_| Refusal::Invalid)?;
                self.root_key = root_key;
                self.previous_counter = self.sending.chain_key.index().saturating_sub(1);
                self.sending = SendingChain { ratchet, chain_key };
                while self.receiving.len() >= MAX_RECEIVING_CHAINS {
                    let dropped = self.receiving.remove(0);
                    if dropped.skipped > 0 {
                        let group = EntryGroup::MessageKeys(dropped.ratchet_key);
                        changes.dropped.push(group);
                    }
                }
                self.receiving.push(ReceivingChain {
                    ratchet_key,
                    chain_key: walk.after.clone(),
                    skipped: 0,
                });
                self.advance(self.receiving.len() - 1, walk, &mut changes);
            }
        }
        if let (Some(spqr), Some(receipt)) = (&mut self.spqr, post_quantum) {
            let committed = spqr.commit(receipt);
            if committed.moved {
                self.braid_changed();
            }
            changes.post_quantum(committed);
        }
        self.acknowledge();
        Ok((plaintext, changes))
    }

    /// Stores the moved chain and its skipped keys, and evicts the oldest keys over the limits.
    fn advance(&mut self, chain: usize, walk: Walk, changes: &mut EntryChanges) {
        let Walk {
            after,
            seed: _,
            skipped,
        } = walk;
        let receiving = &mut self.receiving[chain];
        let group = EntryGroup::MessageKeys(receiving.ratchet_key);
        receiving.chain_key = after;
        // At most MAX_SKIPPED_KEYS_PER_CHAIN were remembered, so the count fits.
        let added = u32::try_from(skipped.len()).unwrap_or(u32::MAX);
        receiving.skipped = receiving.skipped.saturating_add(added);
        let over = receiving.skipped.saturating_sub(MAX_SKIPPED_KEYS_PER_CHAIN);
        if over > 0 {
            receiving.skipped -= over;
            changes.evicted.push((group, receiving.skipped));
        }
        changes.added = skipped
            .into_iter()
            .map(|(counter, seed)| ((group, counter), Entry::seed(seed)))
            .collect();

        let mut over = self
            .receiving
            .iter()
            .fold(0_u32, |sum, chain| sum.saturating_add(chain.skipped))
            .saturating_sub(MAX_SKIPPED_KEYS_PER_SESSION);
        for receiving in &mut self.receiving {
            let evicted = over.min(receiving.skipped);
            if evicted > 0 {
                receiving.skipped -= evicted;
                over -= evicted;
                let group = EntryGroup::MessageKeys(receiving.ratchet_key);
                changes.evicted.push((group, receiving.skipped));
            }
        }
    }
}

/// What the keys of a message are derived from.
enum Keys {
    Seed(MessageSeed),
    Entry(Entry),
}

/// The post-quantum part of a message that is being opened.
struct PostQuantum<'a> {
    spqr: &'a Spqr,
    message: SpqrMessage,
}

impl<'a> PostQuantum<'a> {
    /// Whether the session can have a key for the message; nothing is computed yet.
    fn new(spqr: &'a Spqr, message: &SignalMessage, may_lack_key: bool) -> Result<Self, Refusal> {
        let message = message.post_quantum().map_err(|_| Refusal::Invalid)?;
        if message.position().is_none() && !may_lack_key {
            return Err(Refusal::Invalid);
        }
        spqr.check(&message)?;
        Ok(Self { spqr, message })
    }

    /// The key of the message and where it comes from; nothing for a message that mixes none.
    fn receive(
        &self,
        session: &SessionId,
        entries: Entries<'_>,
    ) -> Result<Option<(Received, SecretBytes)>, Refusal> {
        let Some(received) = self.spqr.receive_key(&self.message)? else {
            return Ok(None);
        };
        let key = match &received {
            Received::Forward { key, .. } => key.clone(),
            Received::Kept { epoch, index } => {
                let position = (EntryGroup::PostQuantumKeys(*epoch), *index);
                match entries(session, &position) {
                    EntryLookup::Absent => return Err(Refusal::Invalid),
                    EntryLookup::NotLoaded => {
                        return Err(Refusal::NotLoaded(NotLoaded::MessageKeys));
                    }
                    EntryLookup::Found(entry) => {
                        entry.as_post_quantum_key().ok_or(Refusal::Damaged)?.clone()
                    }
                }
            }
        };
        Ok(Some((received, key)))
    }

    /// What the authentic message changes.
    fn commitment(
        self,
        received: Option<Received>,
        session: &SessionId,
        entries: Entries<'_>,
    ) -> Result<Receipt, Refusal> {
        let group = EntryGroup::Chunks(self.message.epoch);
        let pages = |number| match entries(session, &(group, number)) {
            EntryLookup::Absent => PageLookup::Absent,
            EntryLookup::NotLoaded => PageLookup::NotLoaded,
            EntryLookup::Found(entry) => entry
                .as_page()
                .map_or(PageLookup::Absent, |page| PageLookup::Found(*page)),
        };
        self.spqr
            .receive(&self.message, received, &pages)
            .map_err(Refusal::from)
    }
}

impl EntryChanges {
    /// Adds what the post-quantum ratchet changed.
    fn post_quantum(&mut self, commit: crate::spqr::Commit) {
        let crate::spqr::Commit {
            keys,
            page,
            pages_forgotten,
            moved: _,
        } = commit;
        let group = EntryGroup::PostQuantumKeys;
        self.added.extend(
            keys.added
                .into_iter()
                .map(|(epoch, index, key)| ((group(epoch), index), Entry::post_quantum_key(key))),
        );
        self.removed
            .extend(keys.removed.map(|(epoch, index)| (group(epoch), index)));
        self.evicted
            .extend(keys.evicted.map(|(epoch, kept)| (group(epoch), kept)));
        self.added.extend(
            page.map(|(epoch, number, page)| {
                ((EntryGroup::Chunks(epoch), number), Entry::page(page))
            }),
        );
        self.dropped.extend(pages_forgotten.map(EntryGroup::Chunks));
    }
}

impl From<ChainError> for Refusal {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::TooFarAhead => Self::TooFarAhead,
            ChainError::UnknownEpoch
            | ChainError::NotNext
            | ChainError::TooOld
            | ChainError::AlreadyUsed
            | ChainError::Exhausted => Self::Invalid,
        }
    }
}

impl From<BraidError> for Refusal {
    fn from(error: BraidError) -> Self {
        match error {
            BraidError::ChunksNotLoaded => Self::NotLoaded(NotLoaded::Chunks),
            BraidError::Damaged => Self::Damaged,
            BraidError::EpochAhead | BraidError::Invalid => Self::Invalid,
        }
    }
}
