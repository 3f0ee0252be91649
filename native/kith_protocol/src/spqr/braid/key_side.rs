//! The side that makes the keys of an epoch.

use rand_core::CryptoRng;

use super::{
    Braid, BraidError, CT1_CHUNKS, CT2_AND_MAC_LEN, CT2_CHUNKS, HEADER_AND_MAC_LEN, MAC_LEN, Move,
    NoHeaderReceived, Pages, Step, Turn, joined, next_chunk,
};
use crate::spqr::authenticator::epoch_secret;
use crate::spqr::decoder::{Arrival, Decoder};
use crate::spqr::kem::{self, CT2_LEN, Ct1, Ct2, DecapsulationKey};
use crate::spqr::message::{IndexedChunk, Payload};

/// Nothing was made yet. Sending makes the key pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeysUnsampled {
    pub(crate) turn: Turn,
}

/// The header is being sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeysSampled {
    pub(crate) turn: Turn,
    pub(crate) header_and_mac: Box<[u8; HEADER_AND_MAC_LEN]>,
    pub(crate) next: u16,
    pub(crate) dk: DecapsulationKey,
}

/// The peer has the header: the encapsulation key is being sent, the first part of the ciphertext arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderSent {
    pub(crate) turn: Turn,
    pub(crate) next: u16,
    pub(crate) ct1: Decoder,
    pub(crate) dk: DecapsulationKey,
}

/// The first part of the ciphertext is here: the key goes on being sent, and says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ct1Received {
    pub(crate) turn: Turn,
    pub(crate) next: u16,
    pub(crate) ct1: Ct1,
    pub(crate) dk: DecapsulationKey,
}

/// The peer has the key: the second part of the ciphertext arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EkSentCt1Received {
    pub(crate) turn: Turn,
    pub(crate) ct1: Ct1,
    pub(crate) ct2: Decoder,
    pub(crate) dk: DecapsulationKey,
}

impl KeysUnsampled {
    pub(super) fn send<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> (Payload, KeysSampled) {
        let (header, _, dk) = kem::generate(rng);
        let mac = self
            .turn
            .authenticator
            .header_mac(self.turn.epoch, header.as_bytes());
        let mut state = KeysSampled {
            turn: self.turn.clone(),
            header_and_mac: joined(header.as_bytes(), &mac),
            next: 0,
            dk,
        };
        (state.send(), state)
    }
}

impl KeysSampled {
    pub(super) fn send(&mut self) -> Payload {
        Payload::Header(next_chunk(&*self.header_and_mac, &mut self.next))
    }

    pub(super) fn receive(&self, chunk: &IndexedChunk) -> Step {
        let mut ct1 = Decoder::default();
        let page = ct1.add(*chunk);
        Step::Move(Box::new(Move {
            braid: Braid::HeaderSent(HeaderSent {
                turn: self.turn.clone(),
                next: 0,
                ct1,
                dk: self.dk.clone(),
            }),
            secret: None,
            page,
            forgets_pages: false,
        }))
    }
}

impl HeaderSent {
    pub(super) fn send(&mut self) -> Payload {
        Payload::EncapsulationKey(next_chunk(
            self.dk.encapsulation_key_bytes(),
            &mut self.next,
        ))
    }

    pub(super) fn receive(
        &self,
        chunk: &IndexedChunk,
        pages: Pages<'_>,
    ) -> Result<Step, BraidError> {
        let whole = match self.ct1.receive(chunk, CT1_CHUNKS, pages)? {
            Arrival::Complete(whole) => whole,
            arrival => return Ok(arrival.into()),
        };
        let ct1 = Ct1::from_bytes(&whole).ok_or(BraidError::Invalid)?;
        Ok(Step::past(
            &self.ct1,
            Braid::Ct1Received(Ct1Received {
                turn: self.turn.clone(),
                next: self.next,
                ct1,
                dk: self.dk.clone(),
            }),
        ))
    }
}

impl Ct1Received {
    pub(super) fn send(&mut self) -> Payload {
        Payload::EncapsulationKeyAndCt1Ack(next_chunk(
            self.dk.encapsulation_key_bytes(),
            &mut self.next,
        ))
    }

    pub(super) fn receive(&self, chunk: &IndexedChunk) -> Step {
        let mut ct2 = Decoder::default();
        let page = ct2.add(*chunk);
        Step::Move(Box::new(Move {
            braid: Braid::EkSentCt1Received(EkSentCt1Received {
                turn: self.turn.clone(),
                ct1: self.ct1.clone(),
                ct2,
                dk: self.dk.clone(),
            }),
            secret: None,
            page,
            forgets_pages: false,
        }))
    }
}

impl EkSentCt1Received {
    /// The last chunk ends the epoch: the shared secret, the check of the MAC over the whole ciphertext, and
    /// the other side of the next epoch.
    pub(super) fn receive(
        &self,
        chunk: &IndexedChunk,
        pages: Pages<'_>,
    ) -> Result<Step, BraidError> {
        let whole = match self.ct2.receive(chunk, CT2_CHUNKS, pages)? {
            Arrival::Complete(whole) => whole,
            arrival => return Ok(arrival.into()),
        };
        let whole: &[u8; CT2_AND_MAC_LEN] = whole
            .as_slice()
            .try_into()
            .map_err(|_| BraidError::Invalid)?;
        let (ct2, mac) = whole.split_at(CT2_LEN);
        let ct2 = Ct2::from_bytes(ct2).ok_or(BraidError::Invalid)?;
        let mac: &[u8; MAC_LEN] = mac.try_into().map_err(|_| BraidError::Invalid)?;

        let epoch = self.turn.epoch;
        let secret = epoch_secret(epoch, &kem::decapsulate(&self.dk, &self.ct1, &ct2));
        let authenticator = self.turn.authenticator.update(epoch, &secret);
        if !authenticator.verify_ciphertext(epoch, self.ct1.as_bytes(), ct2.as_bytes(), mac) {
            return Err(BraidError::Invalid);
        }
        let turn = Turn {
            epoch: epoch.checked_add(1).ok_or(BraidError::Invalid)?,
            authenticator,
        };
        Ok(Step::Move(Box::new(Move {
            braid: Braid::NoHeaderReceived(NoHeaderReceived::new(turn)),
            secret: Some((epoch, secret)),
            page: None,
            forgets_pages: self.ct2.pages() > 0,
        })))
    }
}
