//! The side that encapsulates to the keys of an epoch.

use rand_core::CryptoRng;

use super::{
    Braid, BraidError, CT2_AND_MAC_LEN, EK_CHUNKS, HEADER_AND_MAC_LEN, HEADER_CHUNKS,
    KeysUnsampled, MAC_LEN, Move, Pages, Step, Turn, joined, next_chunk,
};
use crate::secret::SecretBytes;
use crate::spqr::authenticator::epoch_secret;
use crate::spqr::decoder::{Arrival, Decoder};
use crate::spqr::kem::{self, Ct1, EncapsulationKey, EncapsulationState, HEADER_LEN, Header};
use crate::spqr::message::{IndexedChunk, Payload};

/// The header arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoHeaderReceived {
    pub(crate) turn: Turn,
    pub(crate) header: Decoder,
}

/// The header is here. Sending makes the first part of the ciphertext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderReceived {
    pub(crate) turn: Turn,
    pub(crate) header: Header,
    pub(crate) ek: Decoder,
}

/// The first part of the ciphertext is being sent, the encapsulation key arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ct1Sampled {
    pub(crate) turn: Turn,
    pub(crate) header: Header,
    pub(crate) state: EncapsulationState,
    pub(crate) ct1: Ct1,
    pub(crate) next: u16,
    pub(crate) ek: Decoder,
}

/// The key is here, and the peer does not have the first part of the ciphertext yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EkReceivedCt1Sampled {
    pub(crate) turn: Turn,
    pub(crate) state: EncapsulationState,
    pub(crate) ek: EncapsulationKey,
    pub(crate) ct1: Ct1,
    pub(crate) next: u16,
}

/// The peer has the first part of the ciphertext, and the key is not complete yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ct1Acknowledged {
    pub(crate) turn: Turn,
    pub(crate) header: Header,
    pub(crate) state: EncapsulationState,
    pub(crate) ct1: Ct1,
    pub(crate) ek: Decoder,
}

/// The second part of the ciphertext is being sent, until a message of the next epoch says it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ct2Sampled {
    pub(crate) turn: Turn,
    pub(crate) ct2_and_mac: Box<[u8; CT2_AND_MAC_LEN]>,
    pub(crate) next: u16,
}

impl NoHeaderReceived {
    pub(crate) fn new(turn: Turn) -> Self {
        Self {
            turn,
            header: Decoder::default(),
        }
    }

    pub(super) fn receive(
        &self,
        chunk: &IndexedChunk,
        pages: Pages<'_>,
    ) -> Result<Step, BraidError> {
        let whole = match self.header.receive(chunk, HEADER_CHUNKS, pages)? {
            Arrival::Complete(whole) => whole,
            arrival => return Ok(arrival.into()),
        };
        let whole: &[u8; HEADER_AND_MAC_LEN] = whole
            .as_slice()
            .try_into()
            .map_err(|_| BraidError::Invalid)?;
        let (header, mac) = whole.split_at(HEADER_LEN);
        let header = Header::from_bytes(header).ok_or(BraidError::Invalid)?;
        let mac: &[u8; MAC_LEN] = mac.try_into().map_err(|_| BraidError::Invalid)?;
        let Turn {
            epoch,
            authenticator,
        } = &self.turn;
        if !authenticator.verify_header(*epoch, header.as_bytes(), mac) {
            return Err(BraidError::Invalid);
        }
        Ok(Step::past(
            &self.header,
            Braid::HeaderReceived(HeaderReceived {
                turn: self.turn.clone(),
                header,
                ek: Decoder::default(),
            }),
        ))
    }
}

impl HeaderReceived {
    /// The secret of the epoch is made here, before the key is complete: it depends on the header alone.
    pub(super) fn send<R: CryptoRng + ?Sized>(
        &self,
        rng: &mut R,
    ) -> (Payload, Ct1Sampled, SecretBytes) {
        let epoch = self.turn.epoch;
        let (state, ct1, shared_secret) = kem::encapsulate1(&self.header, rng);
        let secret = epoch_secret(epoch, &shared_secret);
        let mut next = Ct1Sampled {
            turn: Turn {
                epoch,
                authenticator: self.turn.authenticator.update(epoch, &secret),
            },
            header: self.header.clone(),
            state,
            ct1,
            next: 0,
            ek: self.ek.clone(),
        };
        (next.send(), next, secret)
    }
}

impl Ct1Sampled {
    pub(super) fn send(&mut self) -> Payload {
        Payload::Ct1(next_chunk(self.ct1.as_bytes(), &mut self.next))
    }

    pub(super) fn receive(
        &self,
        chunk: &IndexedChunk,
        acknowledged: bool,
        pages: Pages<'_>,
    ) -> Result<Step, BraidError> {
        match (self.ek.receive(chunk, EK_CHUNKS, pages)?, acknowledged) {
            (Arrival::Complete(whole), true) => {
                let ek = complete_key(&whole, &self.header)?;
                Ok(Step::past(
                    &self.ek,
                    finish(&self.turn, &self.state, &ek, &self.ct1),
                ))
            }
            (Arrival::Complete(whole), false) => {
                let ek = complete_key(&whole, &self.header)?;
                Ok(Step::past(
                    &self.ek,
                    Braid::EkReceivedCt1Sampled(EkReceivedCt1Sampled {
                        turn: self.turn.clone(),
                        state: self.state.clone(),
                        ek,
                        ct1: self.ct1.clone(),
                        next: self.next,
                    }),
                ))
            }
            (arrival, false) => Ok(arrival.into()),
            (arrival, true) => {
                let mut ek = self.ek.clone();
                let page = match arrival {
                    Arrival::Partial(chunk) => ek.add(chunk),
                    Arrival::Known | Arrival::Complete(_) => None,
                };
                Ok(Step::Move(Box::new(Move {
                    braid: Braid::Ct1Acknowledged(Ct1Acknowledged {
                        turn: self.turn.clone(),
                        header: self.header.clone(),
                        state: self.state.clone(),
                        ct1: self.ct1.clone(),
                        ek,
                    }),
                    secret: None,
                    page,
                    forgets_pages: false,
                })))
            }
        }
    }
}

impl EkReceivedCt1Sampled {
    pub(super) fn send(&mut self) -> Payload {
        Payload::Ct1(next_chunk(self.ct1.as_bytes(), &mut self.next))
    }

    /// The peer says that the first part is complete.
    pub(super) fn receive(&self) -> Step {
        Step::to(finish(&self.turn, &self.state, &self.ek, &self.ct1))
    }
}

impl Ct1Acknowledged {
    pub(super) fn receive(
        &self,
        chunk: &IndexedChunk,
        pages: Pages<'_>,
    ) -> Result<Step, BraidError> {
        let whole = match self.ek.receive(chunk, EK_CHUNKS, pages)? {
            Arrival::Complete(whole) => whole,
            arrival => return Ok(arrival.into()),
        };
        let ek = complete_key(&whole, &self.header)?;
        Ok(Step::past(
            &self.ek,
            finish(&self.turn, &self.state, &ek, &self.ct1),
        ))
    }
}

impl Ct2Sampled {
    pub(super) fn send(&mut self) -> Payload {
        Payload::Ct2(next_chunk(&*self.ct2_and_mac, &mut self.next))
    }

    /// The peer has it all: this side makes the keys of the next epoch.
    pub(super) fn next(&self, epoch: u64) -> KeysUnsampled {
        KeysUnsampled {
            turn: Turn {
                epoch,
                authenticator: self.turn.authenticator.clone(),
            },
        }
    }
}

/// The key the header announced, or nothing.
fn complete_key(whole: &[u8], header: &Header) -> Result<EncapsulationKey, BraidError> {
    EncapsulationKey::from_bytes(whole)
        .filter(|ek| kem::is_key_of(ek, header))
        .ok_or(BraidError::Invalid)
}

/// The second part of the ciphertext, and the MAC over both.
fn finish(turn: &Turn, state: &EncapsulationState, ek: &EncapsulationKey, ct1: &Ct1) -> Braid {
    let ct2 = kem::encapsulate2(state, ek);
    let mac = turn
        .authenticator
        .ciphertext_mac(turn.epoch, ct1.as_bytes(), ct2.as_bytes());
    Braid::Ct2Sampled(Ct2Sampled {
        turn: turn.clone(),
        ct2_and_mac: joined(ct2.as_bytes(), &mac),
        next: 0,
    })
}
