//! SPQR, the sparse post-quantum ratchet: the third ratchet of the Triple Ratchet.
//!
//! It gives one key per message, which enters the derivation of the message's keys as their salt. The
//! [braid](Braid) makes a new secret once per epoch, the [key chain](KeyChain) turns secrets into keys.
//!
//! Section numbers in these files are those of docs/protocol.md.

pub(crate) mod authenticator;
pub(crate) mod braid;
pub(crate) mod chain;
pub(crate) mod decoder;
pub(crate) mod erasure;
mod field;
pub(crate) mod kem;
pub(crate) mod message;
#[cfg(test)]
mod run_test;
#[cfg(test)]
pub(crate) mod vectors;

use rand_core::CryptoRng;

use braid::{Braid, BraidError, Step};
use chain::{ChainError, Committed, KeyChain, Received, Side};
use decoder::{Page, PageLookup};
use message::SpqrMessage;

use crate::secret::SecretBytes;

/// The post-quantum ratchet of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spqr {
    pub(crate) chain: KeyChain,
    pub(crate) braid: Braid,
    /// What it was started from, until the peer was heard: what Signal's own library stores as the
    /// negotiation.
    pub(crate) auth_key: Option<SecretBytes>,
}

/// What goes into a message, and what making it changed.
pub(crate) struct Sent {
    pub(crate) message: Vec<u8>,
    pub(crate) key: SecretBytes,
    /// Epochs whose kept keys are no longer needed.
    pub(crate) forgotten: Vec<u64>,
    /// Whether the braid is in another state.
    pub(crate) moved: bool,
}

/// What an authentic message changes.
#[derive(Debug)]
pub(crate) struct Receipt {
    received: Option<Received>,
    step: Step,
}

/// What [`Spqr::commit`] changed beside the state itself.
#[derive(Debug, Default)]
pub(crate) struct Commit {
    pub(crate) keys: Committed,
    /// A page of chunks to store, by epoch and number.
    pub(crate) page: Option<(u64, u32, Page)>,
    /// The epoch whose pages are no longer needed.
    pub(crate) pages_forgotten: Option<u64>,
    pub(crate) moved: bool,
}

impl Spqr {
    pub(crate) fn start(auth_key: &SecretBytes, side: Side) -> Self {
        Self {
            chain: KeyChain::start(auth_key.as_bytes(), side),
            braid: Braid::start(auth_key.as_bytes(), side),
            auth_key: Some(auth_key.clone()),
        }
    }

    /// Whether the parts fit one another: the chain has the secrets the braid has made, and the initiator
    /// makes the keys of the odd epochs.
    pub(crate) fn is_consistent(&self) -> bool {
        let is_odd = !self.braid.turn().epoch.is_multiple_of(2);
        let is_initiator = self.chain.side == Side::Initiator;
        self.chain.current_epoch == self.braid.newest_secret()
            && self.braid.is_key_side() == (is_odd == is_initiator)
    }

    /// Whether this is the side that was written to, and no secret but that of the handshake was used yet.
    pub(crate) fn is_responder_in_first_epoch(&self) -> bool {
        self.chain.side == Side::Responder && self.chain.send_epoch == 0
    }

    /// Takes the next key and the next part of the exchange; `None` at the end of the 32-bit counter, which
    /// leaves the state as it was.
    pub(crate) fn send<R: CryptoRng + ?Sized>(&mut self, rng: &mut R) -> Option<Sent> {
        let epoch = self.braid.turn().epoch;
        let chain::Sent {
            index,
            key,
            forgotten,
        } = self.chain.send(epoch.checked_sub(1)?).ok()?;
        let outgoing = self.braid.send(rng);
        self.add(outgoing.secret);
        let message = SpqrMessage {
            epoch,
            index,
            payload: outgoing.payload,
        };
        Some(Sent {
            message: message.to_bytes(),
            key,
            forgotten,
            moved: outgoing.moved,
        })
    }

    /// The chain takes the secret of an epoch. A consistent state takes each in its turn.
    fn add(&mut self, secret: Option<(u64, SecretBytes)>) {
        if let Some((epoch, secret)) = secret {
            let added = self.chain.add_epoch(epoch, &secret);
            debug_assert!(added.is_ok(), "a consistent state takes its own secrets");
        }
    }

    /// Whether the key of `message` can be there at all, at no cost.
    pub(crate) fn check(&self, message: &SpqrMessage) -> Result<(), ChainError> {
        match message.position() {
            None => Ok(()),
            Some((epoch, index)) => self.chain.check(epoch, index),
        }
    }

    /// How far `message` is ahead of its chain.
    pub(crate) fn jump(&self, message: &SpqrMessage) -> u32 {
        message
            .position()
            .map_or(0, |(epoch, index)| self.chain.jump(epoch, index))
    }

    /// Where the key of `message` comes from; nothing for a message that mixes none.
    pub(crate) fn receive_key(
        &self,
        message: &SpqrMessage,
    ) -> Result<Option<Received>, ChainError> {
        message
            .position()
            .map(|(epoch, index)| self.chain.receive(epoch, index))
            .transpose()
    }

    /// What an authentic message does to the braid.
    pub(crate) fn receive(
        &self,
        message: &SpqrMessage,
        received: Option<Received>,
        pages: &dyn Fn(u32) -> PageLookup,
    ) -> Result<Receipt, BraidError> {
        let step = self.braid.receive(message, pages)?;
        Ok(Receipt { received, step })
    }

    /// Makes the changes.
    pub(crate) fn commit(&mut self, receipt: Receipt) -> Commit {
        let Receipt { received, step } = receipt;
        let epoch = self.braid.turn().epoch;
        let mut changes = Commit {
            keys: received.map_or_else(Committed::default, |received| self.chain.commit(received)),
            moved: self.auth_key.take().is_some(),
            ..Commit::default()
        };
        match step {
            Step::Stay => {}
            Step::Keep(chunk) => {
                changes.page = self
                    .braid
                    .keep(chunk)
                    .map(|(number, page)| (epoch, number, page));
            }
            Step::Move(next) => {
                let braid::Move {
                    braid,
                    secret,
                    page,
                    forgets_pages,
                } = *next;
                self.braid = braid;
                self.add(secret);
                changes.moved = true;
                changes.page = page.map(|(number, page)| (epoch, number, page));
                changes.pages_forgotten = forgets_pages.then_some(epoch);
            }
        }
        changes
    }
}
