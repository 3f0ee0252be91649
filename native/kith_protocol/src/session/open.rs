//! Opening a message with one session: compute everything beside the session, commit after the MAC.

use rand_core::CryptoRng;

use super::skipped::{SkippedKey, SkippedKeyLookup, SkippedKeyPosition};
use super::state::{ReceivingChain, SendingChain, Session, SessionId};
use crate::curve::{KeyPair, PublicKey};
use crate::limits::{
    MAX_FORWARD_JUMP, MAX_RECEIVING_CHAINS, MAX_SKIPPED_KEYS_PER_CHAIN,
    MAX_SKIPPED_KEYS_PER_SESSION,
};
use crate::ratchet::{ChainKey, MessageSeed, RootKey};
use crate::wire::SignalMessage;

/// Why one session did not open a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The key was used, or was evicted.
    Duplicate,
    /// MAC, padding, addresses or keys are wrong: the message is not of this session, or was changed.
    Invalid,
    /// A skipped key is needed and was not loaded.
    SkippedKeysNotLoaded,
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
}

#[derive(Debug)]
enum Step {
    /// The key was a skipped one.
    Skipped {
        chain: usize,
        position: SkippedKeyPosition,
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

/// What committing a message did to the skipped keys.
#[derive(Debug, Default)]
pub(super) struct SkippedChanges {
    pub(super) added: Vec<(SkippedKeyPosition, SkippedKey)>,
    pub(super) removed: Option<SkippedKeyPosition>,
    pub(super) evicted: Vec<(PublicKey, u32)>,
    pub(super) chains_dropped: Vec<PublicKey>,
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

    /// Opens `message` without changing the session.
    ///
    /// `addresses` is what the message must be bound to if it is bound to addresses at all.
    pub(super) fn open(
        &self,
        message: &SignalMessage,
        addresses: Option<&[u8; 36]>,
        skipped: &dyn Fn(&SessionId, &SkippedKeyPosition) -> SkippedKeyLookup,
    ) -> Result<Opened, Refusal> {
        if message.version() != self.version {
            return Err(Refusal::Version);
        }
        let (step, keys) = match self.receiving_chain(message.ratchet_key()) {
            Some(chain) if message.counter() < self.receiving[chain].chain_key.index() => {
                let position = (*message.ratchet_key(), message.counter());
                match skipped(&self.id, &position) {
                    SkippedKeyLookup::Absent => return Err(Refusal::Duplicate),
                    SkippedKeyLookup::NotLoaded => return Err(Refusal::SkippedKeysNotLoaded),
                    SkippedKeyLookup::Found(key) => {
                        (Step::Skipped { chain, position }, key.message_keys(None))
                    }
                }
            }
            Some(chain) => {
                let walk = Walk::new(&self.receiving[chain].chain_key, message.counter())?;
                let keys = walk.seed.expand(None);
                (Step::Forward { chain, walk }, keys)
            }
            None => {
                let (root_key, chain_key) = self
                    .root_key
                    .step(&self.sending.ratchet, message.ratchet_key())
                    .map_err(|_| Refusal::Invalid)?;
                let walk = Walk::new(&chain_key, message.counter())?;
                let keys = walk.seed.expand(None);
                let ratchet_key = *message.ratchet_key();
                (
                    Step::NewChain {
                        root_key,
                        ratchet_key,
                        walk,
                    },
                    keys,
                )
            }
        };
        if !message.verify_mac(&keys, &self.remote_identity, &self.local_identity) {
            return Err(Refusal::Invalid);
        }
        let bound = message.addresses();
        if bound.is_some() && bound != addresses.map(<[u8; 36]>::as_slice) {
            return Err(Refusal::Invalid);
        }
        let plaintext = keys.decrypt(message.ciphertext()).ok_or(Refusal::Invalid)?;
        Ok(Opened { plaintext, step })
    }

    /// Makes the changes of an opened message. Draws a new ratchet key when the peer has one.
    ///
    /// Fails only if the new ratchet key agrees with the peer's to zero, and then changes nothing.
    pub(super) fn commit<R: CryptoRng + ?Sized>(
        &mut self,
        step: Opened,
        rng: &mut R,
    ) -> Result<(Vec<u8>, SkippedChanges), Refusal> {
        let Opened { plaintext, step } = step;
        let mut changes = SkippedChanges::default();
        match step {
            Step::Skipped { chain, position } => {
                let chain = &mut self.receiving[chain];
                chain.skipped = chain.skipped.saturating_sub(1);
                changes.removed = Some(position);
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
                        changes.chains_dropped.push(dropped.ratchet_key);
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
        self.pending = None;
        Ok((plaintext, changes))
    }

    /// Stores the moved chain and its skipped keys, and evicts the oldest keys over the limits.
    fn advance(&mut self, chain: usize, walk: Walk, changes: &mut SkippedChanges) {
        let Walk {
            after,
            seed: _,
            skipped,
        } = walk;
        let receiving = &mut self.receiving[chain];
        let ratchet_key = receiving.ratchet_key;
        receiving.chain_key = after;
        // At most MAX_SKIPPED_KEYS_PER_CHAIN were remembered, so the count fits.
        let added = u32::try_from(skipped.len()).unwrap_or(u32::MAX);
        receiving.skipped = receiving.skipped.saturating_add(added);
        let over = receiving.skipped.saturating_sub(MAX_SKIPPED_KEYS_PER_CHAIN);
        if over > 0 {
            receiving.skipped -= over;
            changes.evicted.push((ratchet_key, over));
        }
        changes.added = skipped
            .into_iter()
            .map(|(counter, seed)| ((ratchet_key, counter), SkippedKey::seed(seed)))
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
                changes.evicted.push((receiving.ratchet_key, evicted));
            }
        }
    }
}
