//! The braid: two parties take turns at one ML-KEM-768 exchange per epoch, a chunk with every message.
//!
//! ```text
//! key side          KeysUnsampled → KeysSampled → HeaderSent → Ct1Received → EkSentCt1Received ─┐
//! ciphertext side   NoHeaderReceived → HeaderReceived → Ct1Sampled ─┬─────────────┬→ Ct2Sampled ─┤
//!                                                                   ├ EkReceived… ┤              │
//!                                                                   └ Ct1Ackn…    ┘              │
//!                   the sides change places, the epoch counts up  ←──────────────────────────────┘
//! ```
//!
//! Each state is a type of its own. Sending never waits: every state has something to send. Receiving
//! computes the change and leaves the state as it is.

mod ciphertext_side;
mod key_side;

pub(crate) use ciphertext_side::{
    Ct1Acknowledged, Ct1Sampled, Ct2Sampled, EkReceivedCt1Sampled, HeaderReceived, NoHeaderReceived,
};
pub(crate) use key_side::{Ct1Received, EkSentCt1Received, HeaderSent, KeysSampled, KeysUnsampled};

use rand_core::CryptoRng;

use super::authenticator::Authenticator;
use super::chain::Side;
use super::decoder::{Arrival, Decoder, DecoderError, Page, PageLookup};
use super::erasure::CHUNK_LEN;
use super::kem::{CT1_LEN, CT2_LEN, EK_LEN, HEADER_LEN};
use super::message::{IndexedChunk, Payload, SpqrMessage};
use crate::secret::SecretBytes;

/// Bytes of the MACs over the header and over the ciphertext.
pub(crate) const MAC_LEN: usize = 32;
/// Header and its MAC, as they travel.
pub(crate) const HEADER_AND_MAC_LEN: usize = HEADER_LEN + MAC_LEN;
/// Second part of the ciphertext and the MAC over all of it, as they travel.
pub(crate) const CT2_AND_MAC_LEN: usize = CT2_LEN + MAC_LEN;

/// Chunks of header and MAC: 3.
pub(crate) const HEADER_CHUNKS: usize = HEADER_AND_MAC_LEN / CHUNK_LEN;
/// Chunks of the encapsulation key: 36.
pub(crate) const EK_CHUNKS: usize = EK_LEN / CHUNK_LEN;
/// Chunks of the first part of the ciphertext: 30.
pub(crate) const CT1_CHUNKS: usize = CT1_LEN / CHUNK_LEN;
/// Chunks of its second part and MAC: 5.
pub(crate) const CT2_CHUNKS: usize = CT2_AND_MAC_LEN / CHUNK_LEN;

/// What every state has: the epoch it works on, and the authenticator of the exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) epoch: u64,
    pub(crate) authenticator: Authenticator,
}

/// The state of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Braid {
    KeysUnsampled(KeysUnsampled),
    KeysSampled(KeysSampled),
    HeaderSent(HeaderSent),
    Ct1Received(Ct1Received),
    EkSentCt1Received(EkSentCt1Received),
    NoHeaderReceived(NoHeaderReceived),
    HeaderReceived(HeaderReceived),
    Ct1Sampled(Ct1Sampled),
    EkReceivedCt1Sampled(EkReceivedCt1Sampled),
    Ct1Acknowledged(Ct1Acknowledged),
    Ct2Sampled(Ct2Sampled),
}

/// What a message does to the state.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing.
    Stay,
    /// One more chunk.
    Keep(IndexedChunk),
    /// Another state.
    Move(Box<Move>),
}

/// The next state, and what comes with it.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) braid: Braid,
    /// The secret of the epoch that is complete.
    pub(crate) secret: Option<(u64, SecretBytes)>,
    /// A page the last chunk filled.
    pub(crate) page: Option<(u32, Page)>,
    /// Whether the pages that were written are no longer needed.
    pub(crate) forgets_pages: bool,
}

/// Why a message does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BraidError {
    /// Chunks are needed that were not loaded.
    ChunksNotLoaded,
    /// Of an epoch that has not begun.
    EpochAhead,
    /// A MAC is wrong, or a key is not the announced one.
    Invalid,
    /// Chunks that were stored are gone.
    Damaged,
}

impl From<DecoderError> for BraidError {
    fn from(error: DecoderError) -> Self {
        match error {
            DecoderError::NotLoaded => Self::ChunksNotLoaded,
            DecoderError::Damaged => Self::Damaged,
        }
    }
}

/// What goes out with a message.
pub(crate) struct Outgoing {
    pub(crate) payload: Payload,
    /// The secret of the epoch, in the message that makes it.
    pub(crate) secret: Option<(u64, SecretBytes)>,
    /// Whether the state is another one now.
    pub(crate) moved: bool,
}

impl Outgoing {
    const fn only(payload: Payload) -> Self {
        Self {
            payload,
            secret: None,
            moved: false,
        }
    }
}

type Pages<'a> = &'a dyn Fn(u32) -> PageLookup;

impl Braid {
    /// The state a session begins with: the initiator makes the keys of epoch 1.
    pub(crate) fn start(auth_key: &[u8; 32], side: Side) -> Self {
        let turn = Turn {
            epoch: 1,
            authenticator: Authenticator::new(auth_key),
        };
        match side {
            Side::Initiator => Self::KeysUnsampled(KeysUnsampled { turn }),
            Side::Responder => Self::NoHeaderReceived(NoHeaderReceived::new(turn)),
        }
    }

    /// What goes out with the next message.
    pub(crate) fn send<R: CryptoRng + ?Sized>(&mut self, rng: &mut R) -> Outgoing {
        let (payload, next, secret) = match self {
            Self::KeysSampled(state) => return Outgoing::only(state.send()),
            Self::HeaderSent(state) => return Outgoing::only(state.send()),
            Self::Ct1Received(state) => return Outgoing::only(state.send()),
            Self::EkSentCt1Received(_) => return Outgoing::only(Payload::Ct1Ack),
            Self::NoHeaderReceived(_) | Self::Ct1Acknowledged(_) => {
                return Outgoing::only(Payload::None);
            }
            Self::Ct1Sampled(state) => return Outgoing::only(state.send()),
            Self::EkReceivedCt1Sampled(state) => return Outgoing::only(state.send()),
            Self::Ct2Sampled(state) => return Outgoing::only(state.send()),
            Self::KeysUnsampled(state) => {
                let (payload, next) = state.send(rng);
                (payload, Self::KeysSampled(next), None)
            }
            Self::HeaderReceived(state) => {
                let (payload, next, secret) = state.send(rng);
                let epoch = state.turn.epoch;
                (payload, Self::Ct1Sampled(next), Some((epoch, secret)))
            }
        };
        *self = next;
        Outgoing {
            payload,
            secret,
            moved: true,
        }
    }

    /// What `message` does. Its place in the key chain was checked, and it is authentic.
    pub(crate) fn receive(
        &self,
        message: &SpqrMessage,
        pages: Pages<'_>,
    ) -> Result<Step, BraidError> {
        let epoch = self.turn().epoch;
        if message.epoch < epoch {
            return Ok(Step::Stay);
        }
        if message.epoch > epoch {
            return match self {
                Self::Ct2Sampled(state) if epoch.checked_add(1) == Some(message.epoch) => {
                    Ok(Step::to(Self::KeysUnsampled(state.next(message.epoch))))
                }
                _ => Err(BraidError::EpochAhead),
            };
        }
        match (self, &message.payload) {
            (Self::KeysSampled(state), Payload::Ct1(chunk)) => Ok(state.receive(chunk)),
            (Self::HeaderSent(state), Payload::Ct1(chunk)) => state.receive(chunk, pages),
            (Self::Ct1Received(state), Payload::Ct2(chunk)) => Ok(state.receive(chunk)),
            (Self::EkSentCt1Received(state), Payload::Ct2(chunk)) => state.receive(chunk, pages),
            (Self::NoHeaderReceived(state), Payload::Header(chunk)) => state.receive(chunk, pages),
            (Self::Ct1Sampled(state), Payload::EncapsulationKey(chunk)) => {
                state.receive(chunk, false, pages)
            }
            (Self::Ct1Sampled(state), Payload::EncapsulationKeyAndCt1Ack(chunk)) => {
                state.receive(chunk, true, pages)
            }
            (
                Self::EkReceivedCt1Sampled(state),
                Payload::EncapsulationKeyAndCt1Ack(_) | Payload::Ct1Ack,
            ) => Ok(state.receive()),
            (
                Self::Ct1Acknowledged(state),
                Payload::EncapsulationKey(chunk) | Payload::EncapsulationKeyAndCt1Ack(chunk),
            ) => state.receive(chunk, pages),
            _ => Ok(Step::Stay),
        }
    }

    /// Makes the change that [`receive`](Self::receive) computed of a chunk that completes nothing.
    pub(crate) fn keep(&mut self, chunk: IndexedChunk) -> Option<(u32, Page)> {
        self.decoder_mut().and_then(|decoder| decoder.add(chunk))
    }

    pub(crate) const fn turn(&self) -> &Turn {
        match self {
            Self::KeysUnsampled(state) => &state.turn,
            Self::KeysSampled(state) => &state.turn,
            Self::HeaderSent(state) => &state.turn,
            Self::Ct1Received(state) => &state.turn,
            Self::EkSentCt1Received(state) => &state.turn,
            Self::NoHeaderReceived(state) => &state.turn,
            Self::HeaderReceived(state) => &state.turn,
            Self::Ct1Sampled(state) => &state.turn,
            Self::EkReceivedCt1Sampled(state) => &state.turn,
            Self::Ct1Acknowledged(state) => &state.turn,
            Self::Ct2Sampled(state) => &state.turn,
        }
    }

    /// The epochs whose secrets are in the key chain: all before this one, and this one's as soon as it is made.
    pub(crate) const fn newest_secret(&self) -> u64 {
        let epoch = self.turn().epoch;
        match self {
            Self::Ct1Sampled(_)
            | Self::EkReceivedCt1Sampled(_)
            | Self::Ct1Acknowledged(_)
            | Self::Ct2Sampled(_) => epoch,
            _ => epoch.saturating_sub(1),
        }
    }

    /// Whether this side makes the keys of the epoch, and not the ciphertext.
    pub(crate) const fn is_key_side(&self) -> bool {
        matches!(
            self,
            Self::KeysUnsampled(_)
                | Self::KeysSampled(_)
                | Self::HeaderSent(_)
                | Self::Ct1Received(_)
                | Self::EkSentCt1Received(_)
        )
    }

    /// The name of the state in the specification.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::KeysUnsampled(_) => "KeysUnsampled",
            Self::KeysSampled(_) => "KeysSampled",
            Self::HeaderSent(_) => "HeaderSent",
            Self::Ct1Received(_) => "Ct1Received",
            Self::EkSentCt1Received(_) => "EkSentCt1Received",
            Self::NoHeaderReceived(_) => "NoHeaderReceived",
            Self::HeaderReceived(_) => "HeaderReceived",
            Self::Ct1Sampled(_) => "Ct1Sampled",
            Self::EkReceivedCt1Sampled(_) => "EkReceivedCt1Sampled",
            Self::Ct1Acknowledged(_) => "Ct1Acknowledged",
            Self::Ct2Sampled(_) => "Ct2Sampled",
        }
    }

    /// The number of the next chunk to send, where chunks are sent.
    pub(crate) fn next_chunk(&self) -> Option<u16> {
        match self {
            Self::KeysSampled(state) => Some(state.next),
            Self::HeaderSent(state) => Some(state.next),
            Self::Ct1Received(state) => Some(state.next),
            Self::Ct1Sampled(state) => Some(state.next),
            Self::EkReceivedCt1Sampled(state) => Some(state.next),
            Self::Ct2Sampled(state) => Some(state.next),
            _ => None,
        }
    }

    /// What has arrived of the thing this state waits for, and of how many chunks that is.
    pub(crate) const fn decoder(&self) -> Option<(&Decoder, usize)> {
        Some(match self {
            Self::HeaderSent(state) => (&state.ct1, CT1_CHUNKS),
            Self::EkSentCt1Received(state) => (&state.ct2, CT2_CHUNKS),
            Self::NoHeaderReceived(state) => (&state.header, HEADER_CHUNKS),
            Self::HeaderReceived(state) => (&state.ek, EK_CHUNKS),
            Self::Ct1Sampled(state) => (&state.ek, EK_CHUNKS),
            Self::Ct1Acknowledged(state) => (&state.ek, EK_CHUNKS),
            _ => return None,
        })
    }

    fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        match self {
            Self::HeaderSent(state) => Some(&mut state.ct1),
            Self::EkSentCt1Received(state) => Some(&mut state.ct2),
            Self::NoHeaderReceived(state) => Some(&mut state.header),
            Self::HeaderReceived(state) => Some(&mut state.ek),
            Self::Ct1Sampled(state) => Some(&mut state.ek),
            Self::Ct1Acknowledged(state) => Some(&mut state.ek),
            _ => None,
        }
    }
}

impl Step {
    fn to(braid: Braid) -> Self {
        Self::Move(Box::new(Move {
            braid,
            secret: None,
            page: None,
            forgets_pages: false,
        }))
    }

    /// To a state that no longer collects what `decoder` collected.
    fn past(decoder: &Decoder, braid: Braid) -> Self {
        Self::Move(Box::new(Move {
            braid,
            secret: None,
            page: None,
            forgets_pages: decoder.pages() > 0,
        }))
    }
}

impl From<Arrival> for Step {
    /// Of a chunk that does not complete the whole.
    fn from(arrival: Arrival) -> Self {
        match arrival {
            Arrival::Partial(chunk) => Self::Keep(chunk),
            Arrival::Known | Arrival::Complete(_) => Self::Stay,
        }
    }
}

/// `first ‖ second`, two parts of fixed lengths that travel as one.
fn joined<const A: usize, const B: usize, const N: usize>(
    first: &[u8; A],
    second: &[u8; B],
) -> Box<[u8; N]> {
    const { assert!(A + B == N) };
    let mut whole = Box::new([0; N]);
    whole[..A].copy_from_slice(first);
    whole[A..].copy_from_slice(second);
    whole
}

/// The chunk number `next` of `whole`, and counts up: 65 535 is followed by 0.
fn next_chunk(whole: &[u8], next: &mut u16) -> IndexedChunk {
    let index = *next;
    *next = index.wrapping_add(1);
    IndexedChunk {
        index,
        data: super::erasure::chunk(whole, index),
    }
}
