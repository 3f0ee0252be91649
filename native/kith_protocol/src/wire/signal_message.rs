use prost::Message as _;
use subtle::ConstantTimeEq;

use super::{MessageError, Version};
use crate::curve::PublicKey;
use crate::identity::IdentityKey;
use crate::limits::{MAX_MESSAGE_LEN, MESSAGE_MAC_LEN};
use crate::ratchet::MessageKeys;
use crate::spqr::message::{SpqrMessage, SpqrMessageError};

#[derive(Clone, PartialEq, prost::Message)]
struct Fields {
    #[prost(bytes = "vec", optional, tag = "1")]
    ratchet_key: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "2")]
    counter: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    previous_counter: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "4")]
    ciphertext: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pq_ratchet: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "6")]
    addresses: Option<Vec<u8>>,
}

/// A message of an established session: `version byte ‖ protobuf ‖ MAC (8)`.
///
/// | field | type | content |
/// | --- | --- | --- |
/// | 1 | bytes | the sender's ratchet key, 33 bytes |
/// | 2 | uint32 | counter: index in the sending chain, from 0 |
/// | 3 | uint32 | previous counter; receivers do not use it |
/// | 4 | bytes | AES-256-CBC ciphertext |
/// | 5 | bytes | message of the post-quantum ratchet; version 4 only |
/// | 6 | bytes | addresses, 36 bytes |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalMessage {
    serialized: Vec<u8>,
    version: Version,
    ratchet_key: PublicKey,
    counter: u32,
    ciphertext: Vec<u8>,
    /// Empty when there is none.
    post_quantum: Vec<u8>,
    addresses: Option<Vec<u8>>,
}

/// What a new message is made of.
pub(crate) struct NewSignalMessage<'a> {
    pub(crate) version: Version,
    pub(crate) ratchet_key: &'a PublicKey,
    pub(crate) counter: u32,
    pub(crate) previous_counter: u32,
    pub(crate) ciphertext: Vec<u8>,
    /// The message of the post-quantum ratchet; left out when empty.
    pub(crate) post_quantum: &'a [u8],
    pub(crate) addresses: Option<&'a [u8; 36]>,
    pub(crate) keys: &'a MessageKeys,
    pub(crate) sender: &'a IdentityKey,
    pub(crate) receiver: &'a IdentityKey,
}

impl NewSignalMessage<'_> {
    /// Encodes the fields and appends the MAC.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(self.ciphertext.len() + self.post_quantum.len() + 64 + 40);
        bytes.push(self.version.byte());
        put_bytes(&mut bytes, 1, &self.ratchet_key.to_bytes());
        put_number(&mut bytes, 2, self.counter);
        put_number(&mut bytes, 3, self.previous_counter);
        put_bytes(&mut bytes, 4, &self.ciphertext);
        if !self.post_quantum.is_empty() {
            put_bytes(&mut bytes, 5, self.post_quantum);
        }
        if let Some(addresses) = self.addresses {
            put_bytes(&mut bytes, 6, addresses);
        }
        let mac = self.keys.mac(self.sender, self.receiver, &bytes);
        bytes.extend_from_slice(&mac);
        bytes
    }
}

pub(super) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn put_number(out: &mut Vec<u8>, field: u32, number: u32) {
    prost::encoding::uint32::encode(field, &number, out);
}

impl SignalMessage {
    /// Parses a message. Nothing about it is authenticated yet.
    ///
    /// # Errors
    ///
    /// [`MessageError`], for each of its reasons.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MAX_MESSAGE_LEN {
            return Err(MessageError::TooLarge);
        }
        let (&version, _) = bytes.split_first().ok_or(MessageError::Malformed)?;
        if bytes.len() <= MESSAGE_MAC_LEN {
            return Err(MessageError::Malformed);
        }
        let version = Version::from_byte(version)?;
        let fields = Fields::decode(&bytes[1..bytes.len() - MESSAGE_MAC_LEN])
            .map_err(|_| MessageError::Malformed)?;
        let ratchet_key = fields.ratchet_key.ok_or(MessageError::Malformed)?;
        if version == Version::V3 && fields.pq_ratchet.is_some() {
            return Err(MessageError::Malformed);
        }
        Ok(Self {
            serialized: bytes.to_vec(),
            version,
            ratchet_key: PublicKey::from_bytes(&ratchet_key)?,
            counter: fields.counter.ok_or(MessageError::Malformed)?,
            ciphertext: fields.ciphertext.ok_or(MessageError::Malformed)?,
            post_quantum: fields.pq_ratchet.unwrap_or_default(),
            addresses: fields.addresses,
        })
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.serialized
    }

    /// The version in the high nibble.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The sender's ratchet key: names the chain.
    #[must_use]
    pub const fn ratchet_key(&self) -> &PublicKey {
        &self.ratchet_key
    }

    /// The index in that chain.
    #[must_use]
    pub const fn counter(&self) -> u32 {
        self.counter
    }

    /// Where the key of the post-quantum ratchet comes from: the epoch of its chain, and the index in it.
    ///
    /// Nothing in version 3, in a message that mixes no key, and in one whose part of that ratchet cannot be
    /// read.
    #[must_use]
    pub fn post_quantum_position(&self) -> Option<(u64, u32)> {
        self.post_quantum().ok()?.position()
    }

    pub(crate) fn post_quantum(&self) -> Result<SpqrMessage, SpqrMessageError> {
        SpqrMessage::from_bytes(&self.post_quantum)
    }

    pub(crate) fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }

    pub(crate) fn addresses(&self) -> Option<&[u8]> {
        self.addresses.as_deref()
    }

    /// Whether the MAC is right; compared in constant time.
    pub(crate) fn verify_mac(
        &self,
        keys: &MessageKeys,
        sender: &IdentityKey,
        receiver: &IdentityKey,
    ) -> bool {
        let (message, mac) = self
            .serialized
            .split_at(self.serialized.len() - MESSAGE_MAC_LEN);
        keys.mac(sender, receiver, message)
            .as_slice()
            .ct_eq(mac)
            .into()
    }
}
