//! The message of the post-quantum ratchet that travels in every message of version 4.

use thiserror::Error;

use super::erasure::{CHUNK_LEN, Chunk};

/// The only version of it there is.
const VERSION: u8 = 1;

/// Bytes a number takes at most.
const MOST_NUMBER_BYTES: usize = 10;

/// `version byte ‖ epoch ‖ index ‖ type byte ‖ [chunk index ‖ chunk]`, numbers as LEB128.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpqrMessage {
    /// The epoch the sender's exchange is in, from 1.
    pub(crate) epoch: u64,
    /// The index of the key in the sender's chain of the epoch before, from 1.
    pub(crate) index: u32,
    pub(crate) payload: Payload,
}

/// What a message carries of the exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Nothing.
    None,
    /// Of the header and its MAC.
    Header(IndexedChunk),
    /// Of the encapsulation key.
    EncapsulationKey(IndexedChunk),
    /// Of the encapsulation key; the first part of the ciphertext is complete.
    EncapsulationKeyAndCt1Ack(IndexedChunk),
    /// The first part of the ciphertext is complete.
    Ct1Ack,
    /// Of the first part of the ciphertext.
    Ct1(IndexedChunk),
    /// Of the second part of the ciphertext and the MAC.
    Ct2(IndexedChunk),
}

/// A chunk and its index in the erasure code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexedChunk {
    pub(crate) index: u16,
    pub(crate) data: Chunk,
}

/// Bytes that are not such a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum SpqrMessageError {
    /// No bytes at all: a sender without the post-quantum ratchet.
    #[error("the message is empty")]
    Empty,
    /// Cut short, or a number is out of bounds.
    #[error("the message is malformed")]
    Malformed,
    /// A type above 6.
    #[error("message type {0} is unknown")]
    UnknownType(u8),
    /// A version above 1.
    #[error("message version {0} is unknown")]
    UnknownVersion(u8),
    /// Version 0, which is the absence of a message and has no encoding.
    #[error("message version 0 has no messages")]
    VersionZero,
}

impl SpqrMessage {
    /// Where the key of the message comes from: the epoch of the chain, one below that of the exchange, and
    /// the index in it. Epoch 1 with index 0 is how a sender says that it mixes no key.
    pub(crate) const fn position(&self) -> Option<(u64, u32)> {
        match (self.epoch, self.index) {
            (1, 0) => None,
            (epoch, index) => Some((epoch.saturating_sub(1), index)),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + 2 * MOST_NUMBER_BYTES + CHUNK_LEN);
        bytes.push(VERSION);
        put_number(&mut bytes, self.epoch);
        put_number(&mut bytes, self.index.into());
        let (kind, chunk) = match &self.payload {
            Payload::None => (0, None),
            Payload::Header(chunk) => (1, Some(chunk)),
            Payload::EncapsulationKey(chunk) => (2, Some(chunk)),
            Payload::EncapsulationKeyAndCt1Ack(chunk) => (3, Some(chunk)),
            Payload::Ct1Ack => (4, None),
            Payload::Ct1(chunk) => (5, Some(chunk)),
            Payload::Ct2(chunk) => (6, Some(chunk)),
        };
        bytes.push(kind);
        if let Some(IndexedChunk { index, data }) = chunk {
            put_number(&mut bytes, (*index).into());
            bytes.extend_from_slice(data);
        }
        bytes
    }

    /// Reads a message; bytes behind its end are ignored, as Signal's parser does.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, SpqrMessageError> {
        let mut rest = bytes;
        match take_byte(&mut rest).ok_or(SpqrMessageError::Empty)? {
            0 => return Err(SpqrMessageError::VersionZero),
            VERSION => {}
            version => return Err(SpqrMessageError::UnknownVersion(version)),
        }
        Self::body(&mut rest)?.map_err(SpqrMessageError::UnknownType)
    }

    fn body(rest: &mut &[u8]) -> Result<Result<Self, u8>, SpqrMessageError> {
        let malformed = SpqrMessageError::Malformed;
        let epoch = take_number(rest)
            .filter(|&epoch| epoch > 0)
            .ok_or(malformed)?;
        let index = take_number(rest)
            .and_then(|index| index.try_into().ok())
            .ok_or(malformed)?;
        let kind = take_byte(rest).ok_or(malformed)?;
        let mut chunk = || take_chunk(rest).ok_or(malformed);
        let payload = match kind {
            0 => Payload::None,
            1 => Payload::Header(chunk()?),
            2 => Payload::EncapsulationKey(chunk()?),
            3 => Payload::EncapsulationKeyAndCt1Ack(chunk()?),
            4 => Payload::Ct1Ack,
            5 => Payload::Ct1(chunk()?),
            6 => Payload::Ct2(chunk()?),
            unknown => return Ok(Err(unknown)),
        };
        Ok(Ok(Self {
            epoch,
            index,
            payload,
        }))
    }
}

#[allow(clippy::cast_possible_truncation)]
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_byte(rest: &mut &[u8]) -> Option<u8> {
    let (&first, behind) = rest.split_first()?;
    *rest = behind;
    Some(first)
}

/// LEB128 of at most ten bytes and 64 bits; zeros in front are accepted, as Signal's parser does.
fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..MOST_NUMBER_BYTES {
        let byte = take_byte(rest)?;
        let bits = u64::from(byte & 0x7f);
        if place == MOST_NUMBER_BYTES - 1 && bits > 1 {
            return None;
        }
        number |= bits << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_chunk(rest: &mut &[u8]) -> Option<IndexedChunk> {
    let index = take_number(rest)?.try_into().ok()?;
    let (&data, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(IndexedChunk { index, data })
}
