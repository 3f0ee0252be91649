use prost::Message as _;

use super::signal_message::{put_bytes, put_number};
use super::{MessageError, SignalMessage, Version};
use crate::curve::PublicKey;
use crate::identity::IdentityKey;
use crate::kyber::KyberCiphertext;
use crate::limits::MAX_MESSAGE_LEN;
use crate::prekey::PreKeyId;

#[derive(Clone, PartialEq, prost::Message)]
struct Fields {
    #[prost(uint32, optional, tag = "1")]
    prekey_id: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "2")]
    base_key: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    identity_key: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "4")]
    message: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "5")]
    registration_id: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    signed_prekey_id: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    kyber_prekey_id: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "8")]
    kyber_ciphertext: Option<Vec<u8>>,
}

/// A message that starts a session: `version byte ‖ protobuf`, around a [`SignalMessage`].
///
/// It has no MAC of its own. The base key, the identity key and the prekeys are bound through the key
/// agreement; the registration id, the low nibble of the version byte and anything in unknown fields
/// are not authenticated at all.
///
/// | field | type | content |
/// | --- | --- | --- |
/// | 1 | uint32 | one-time prekey id, if the bundle had one |
/// | 2 | bytes | base key `EK_A`, 33 bytes |
/// | 3 | bytes | the initiator's identity key, 33 bytes |
/// | 4 | bytes | a whole SignalMessage |
/// | 5 | uint32 | the initiator's registration id; 0 when missing |
/// | 6 | uint32 | signed prekey id |
/// | 7 | uint32 | Kyber prekey id; version 4 only |
/// | 8 | bytes | Kyber ciphertext, 1569 bytes; version 4 only |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreKeySignalMessage {
    pub(crate) version: Version,
    pub(crate) registration_id: u32,
    pub(crate) prekey_id: Option<PreKeyId>,
    pub(crate) signed_prekey_id: PreKeyId,
    pub(crate) base_key: PublicKey,
    pub(crate) identity_key: IdentityKey,
    pub(crate) kyber: Option<(PreKeyId, KyberCiphertext)>,
    pub(crate) message: SignalMessage,
}

impl PreKeySignalMessage {
    /// Parses a message. Nothing about it is authenticated yet.
    ///
    /// The outer version, the inner version and the presence of the Kyber fields must agree. Signal's
    /// older clients let them differ, but never send them so.
    ///
    /// # Errors
    ///
    /// [`MessageError`], for each of its reasons.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MAX_MESSAGE_LEN {
            return Err(MessageError::TooLarge);
        }
        let (&version, fields) = bytes.split_first().ok_or(MessageError::Malformed)?;
        let version = Version::from_byte(version)?;
        let fields = Fields::decode(fields).map_err(|_| MessageError::Malformed)?;
        let base_key = fields.base_key.ok_or(MessageError::Malformed)?;
        let identity_key = fields.identity_key.ok_or(MessageError::Malformed)?;
        let message = fields.message.ok_or(MessageError::Malformed)?;
        let signed_prekey_id = fields.signed_prekey_id.ok_or(MessageError::Malformed)?;
        let kyber = match (version, fields.kyber_prekey_id, fields.kyber_ciphertext) {
            (Version::V3, None, None) => None,
            (Version::V4, Some(id), Some(ciphertext)) => {
                Some((id, KyberCiphertext::from_bytes(&ciphertext)?))
            }
            _ => return Err(MessageError::Malformed),
        };
        let message = SignalMessage::from_bytes(&message)?;
        if message.version() != version {
            return Err(MessageError::Malformed);
        }
        Ok(Self {
            version,
            registration_id: fields.registration_id.unwrap_or(0),
            prekey_id: fields.prekey_id,
            signed_prekey_id,
            base_key: PublicKey::from_bytes(&base_key)?,
            identity_key: IdentityKey::from_bytes(&identity_key)?,
            kyber,
            message,
        })
    }

    /// The version in the high nibble.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The initiator's registration id. Not authenticated.
    #[must_use]
    pub const fn registration_id(&self) -> u32 {
        self.registration_id
    }

    /// The responder's one-time prekey, if one was used.
    #[must_use]
    pub const fn prekey_id(&self) -> Option<PreKeyId> {
        self.prekey_id
    }

    /// The responder's signed prekey.
    #[must_use]
    pub const fn signed_prekey_id(&self) -> PreKeyId {
        self.signed_prekey_id
    }

    /// The responder's Kyber prekey; in version 4 only.
    #[must_use]
    pub fn kyber_prekey_id(&self) -> Option<PreKeyId> {
        self.kyber.as_ref().map(|(id, _)| *id)
    }

    /// The initiator's ephemeral key; all first messages of one session carry the same.
    #[must_use]
    pub const fn base_key(&self) -> &PublicKey {
        &self.base_key
    }

    /// The initiator's identity key.
    #[must_use]
    pub const fn identity_key(&self) -> &IdentityKey {
        &self.identity_key
    }

    /// The message inside.
    #[must_use]
    pub const fn message(&self) -> &SignalMessage {
        &self.message
    }
}

/// What a new prekey message says around the message inside.
pub(crate) struct Envelope<'a> {
    pub(crate) version: Version,
    pub(crate) registration_id: u32,
    pub(crate) prekey_id: Option<PreKeyId>,
    pub(crate) signed_prekey_id: PreKeyId,
    pub(crate) base_key: &'a PublicKey,
    pub(crate) identity_key: &'a IdentityKey,
    pub(crate) kyber: Option<(PreKeyId, &'a KyberCiphertext)>,
}

impl Envelope<'_> {
    pub(crate) fn around(&self, message: &[u8]) -> Vec<u8> {
        let around = if self.kyber.is_some() { 1_720 } else { 128 };
        let mut bytes = Vec::with_capacity(message.len() + around);
        bytes.push(self.version.byte());
        if let Some(id) = self.prekey_id {
            put_number(&mut bytes, 1, id);
        }
        put_bytes(&mut bytes, 2, &self.base_key.to_bytes());
        put_bytes(&mut bytes, 3, &self.identity_key.to_bytes());
        put_bytes(&mut bytes, 4, message);
        put_number(&mut bytes, 5, self.registration_id);
        put_number(&mut bytes, 6, self.signed_prekey_id);
        if let Some((id, ciphertext)) = self.kyber {
            put_number(&mut bytes, 7, id);
            put_bytes(&mut bytes, 8, &ciphertext.to_bytes());
        }
        bytes
    }
}
