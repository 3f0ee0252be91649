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
        let malformed = SpqrMessageError::Malformed;
        let epoch = take_number(&mut rest)
            .filter(|&epoch| epoch > 0)
            .ok_or(malformed)?;
        let index = take_number(&mut rest)
            .and_then(|index| index.try_into().ok())
            .ok_or(malformed)?;
        let kind = take_byte(&mut rest).ok_or(malformed)?;
        let mut chunk = || take_chunk(&mut rest).ok_or(malformed);
        let payload = match kind {
            0 => Payload::None,
            1 => Payload::Header(chunk()?),
            2 => Payload::EncapsulationKey(chunk()?),
            3 => Payload::EncapsulationKeyAndCt1Ack(chunk()?),
            4 => Payload::Ct1Ack,
            5 => Payload::Ct1(chunk()?),
            6 => Payload::Ct2(chunk()?),
            unknown => return Err(SpqrMessageError::UnknownType(unknown)),
        };
        Ok(Self {
            epoch,
            index,
            payload,
        })
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

/// LEB128 of at most ten bytes and 64 bits. That it is the shortest encoding is not asked for: the MAC of
/// the message around it covers the bytes as they are.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: Payload) -> SpqrMessage {
        SpqrMessage {
            epoch: u64::MAX,
            index: u32::MAX,
            payload,
        }
    }

    fn chunk() -> IndexedChunk {
        IndexedChunk {
            index: u16::MAX,
            data: [7; CHUNK_LEN],
        }
    }

    fn all() -> [SpqrMessage; 7] {
        [
            message(Payload::None),
            message(Payload::Header(chunk())),
            message(Payload::EncapsulationKey(chunk())),
            message(Payload::EncapsulationKeyAndCt1Ack(chunk())),
            message(Payload::Ct1Ack),
            message(Payload::Ct1(chunk())),
            message(Payload::Ct2(chunk())),
        ]
    }

    #[test]
    fn the_largest_numbers_survive() {
        for message in all() {
            assert_eq!(SpqrMessage::from_bytes(&message.to_bytes()), Ok(message));
        }
    }

    #[test]
    fn every_message_cut_short_is_refused() {
        for message in all() {
            let bytes = message.to_bytes();
            for length in 0..bytes.len() {
                let expected = match length {
                    0 => SpqrMessageError::Empty,
                    _ => SpqrMessageError::Malformed,
                };
                assert_eq!(SpqrMessage::from_bytes(&bytes[..length]), Err(expected));
            }
        }
    }

    #[test]
    fn bytes_behind_the_end_are_ignored() {
        for message in all() {
            let longer = [message.to_bytes(), vec![0xff; 50]].concat();
            assert_eq!(SpqrMessage::from_bytes(&longer), Ok(message));
        }
    }

    #[test]
    fn only_version_1_is_read() {
        assert_eq!(
            SpqrMessage::from_bytes(&[0, 1, 1, 0]),
            Err(SpqrMessageError::VersionZero)
        );
        for version in 2..=u8::MAX {
            assert_eq!(
                SpqrMessage::from_bytes(&[version, 1, 1, 0]),
                Err(SpqrMessageError::UnknownVersion(version))
            );
        }
    }

    #[test]
    fn unknown_types_are_refused() {
        for kind in 7..=u8::MAX {
            assert_eq!(
                SpqrMessage::from_bytes(&[&[1, 1, 1, kind, 0][..], &[0; 32]].concat()),
                Err(SpqrMessageError::UnknownType(kind))
            );
        }
    }

    #[test]
    fn numbers_out_of_bounds_are_refused() {
        let read = |numbers: &[&[u8]], rest: &[u8]| {
            SpqrMessage::from_bytes(&[&[1], &numbers.concat()[..], rest].concat())
                .map(|message| (message.epoch, message.index))
        };
        let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        let too_long = [
            0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00,
        ];
        let malformed = Err(SpqrMessageError::Malformed);
        assert_eq!(read(&[&longest, &[0]], &[0]), Ok((u64::MAX, 0)));
        assert_eq!(read(&[&too_large, &[0]], &[0]), malformed);
        assert_eq!(read(&[&too_long, &[0]], &[0]), malformed);
        assert_eq!(read(&[&[0x81, 0x00], &[0x82, 0x00]], &[0]), Ok((1, 2)));
        assert_eq!(read(&[&[0], &[1]], &[0]), malformed);
        assert_eq!(read(&[&[0x80, 0x00], &[1]], &[0]), malformed);

        let index_of_32_bits = [0xff, 0xff, 0xff, 0xff, 0x0f];
        let index_of_33_bits = [0x80, 0x80, 0x80, 0x80, 0x10];
        assert_eq!(read(&[&[1], &index_of_32_bits], &[0]), Ok((1, u32::MAX)));
        assert_eq!(read(&[&[1], &index_of_33_bits], &[0]), malformed);

        let chunk = |index: &[u8]| [&[1], index, &[0; 32]].concat();
        assert_eq!(read(&[&[1], &[1]], &chunk(&[0xff, 0xff, 0x03])), Ok((1, 1)));
        assert_eq!(read(&[&[1], &[1]], &chunk(&[0x80, 0x80, 0x04])), malformed);
    }
}
