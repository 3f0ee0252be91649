use prost::Message as _;

use super::{MessageError, PreKeySignalMessage, SignalMessage};
use crate::curve::PublicKey;

/// Most bytes of a report: the fields below with an unusual encoding, and room for unknown ones.
const MAX_REPORT_LEN: usize = 1024;

/// Begins content that is not encrypted, where a message has its version.
const PLAINTEXT_CONTENT: u8 = 0xc0;

/// Ends the content, before its padding of zeros.
const PADDING: u8 = 0x80;

#[derive(Clone, PartialEq, prost::Message)]
struct Fields {
    #[prost(bytes = "vec", optional, tag = "1")]
    ratchet_key: Option<Vec<u8>>,
    #[prost(uint64, optional, tag = "2")]
    timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "3")]
    device_id: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Content {
    #[prost(bytes = "vec", optional, tag = "8")]
    decryption_error: Option<Vec<u8>>,
}

/// What a recipient tells the sender of a message that did not open (Signal's DecryptionErrorMessage).
///
/// It travels in the clear, as a PlaintextContent: `0xC0 ‖ protobuf with this message in field 8 ‖ 0x80`. Nothing in it
/// is secret, and nothing in it is authenticated: whoever can deliver a message can make one.
///
/// | field | type | content |
/// | --- | --- | --- |
/// | 1 | bytes | ratchet key of the message, 33 bytes; missing for a message of a group's sender key |
/// | 2 | uint64 | timestamp of the message |
/// | 3 | uint32 | device that sent the message |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecryptionErrorMessage {
    ratchet_key: Option<PublicKey>,
    timestamp: u64,
    device_id: u32,
}

impl DecryptionErrorMessage {
    /// Reports an ordinary message.
    #[must_use]
    pub const fn of_message(message: &SignalMessage, timestamp: u64, device_id: u32) -> Self {
        Self {
            ratchet_key: Some(*message.ratchet_key()),
            timestamp,
            device_id,
        }
    }

    /// Reports a message that starts a session.
    #[must_use]
    pub const fn of_prekey_message(
        message: &PreKeySignalMessage,
        timestamp: u64,
        device_id: u32,
    ) -> Self {
        Self::of_message(message.message(), timestamp, device_id)
    }

    /// Parses the content a report travels in.
    ///
    /// # Errors
    ///
    /// [`MessageError::TooLarge`] over 1 KiB, [`MessageError::Key`] for a ratchet key that is none, and
    /// [`MessageError::Malformed`] for anything else that is no report.
    pub fn from_plaintext_content(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MAX_REPORT_LEN {
            return Err(MessageError::TooLarge);
        }
        let padded = bytes
            .strip_prefix(&[PLAINTEXT_CONTENT])
            .ok_or(MessageError::Malformed)?;
        let end = padded
            .iter()
            .rposition(|byte| *byte != 0)
            .ok_or(MessageError::Malformed)?;
        let (content, _zeros) = padded.split_at(end + 1);
        let content = content
            .strip_suffix(&[PADDING])
            .ok_or(MessageError::Malformed)?;
        let content = Content::decode(content).map_err(|_| MessageError::Malformed)?;
        let report = content.decryption_error.ok_or(MessageError::Malformed)?;
        let Fields {
            ratchet_key,
            timestamp,
            device_id,
        } = Fields::decode(report.as_slice()).map_err(|_| MessageError::Malformed)?;
        Ok(Self {
            ratchet_key: ratchet_key
                .map(|key| PublicKey::from_bytes(&key))
                .transpose()?,
            timestamp: timestamp.ok_or(MessageError::Malformed)?,
            device_id: device_id.unwrap_or(0),
        })
    }

    /// The content it travels in.
    #[must_use]
    pub fn to_plaintext_content(&self) -> Vec<u8> {
        let content = Content {
            decryption_error: Some(self.to_bytes()),
        };
        let mut bytes = vec![PLAINTEXT_CONTENT];
        bytes.extend(content.encode_to_vec());
        bytes.push(PADDING);
        bytes
    }

    /// The message by itself.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        Fields {
            ratchet_key: self.ratchet_key.map(|key| key.to_bytes().to_vec()),
            timestamp: Some(self.timestamp),
            device_id: Some(self.device_id),
        }
        .encode_to_vec()
    }

    /// Ratchet key of the message that did not open: whoever still sends with it has to start a new session.
    #[must_use]
    pub const fn ratchet_key(&self) -> Option<&PublicKey> {
        self.ratchet_key.as_ref()
    }

    /// Timestamp of the message, in milliseconds since 1970.
    #[must_use]
    pub const fn timestamp(&self) -> u64 {
        self.timestamp
    }

    /// The device that sent the message; 0 when missing.
    #[must_use]
    pub const fn device_id(&self) -> u32 {
        self.device_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8]) -> MessageError {
        DecryptionErrorMessage::from_plaintext_content(bytes).expect_err("it is no report")
    }

    #[test]
    fn content_that_is_no_report_is_refused() {
        let report = DecryptionErrorMessage {
            ratchet_key: None,
            timestamp: 7,
            device_id: 1,
        };
        let bytes = report.to_plaintext_content();
        assert_eq!(
            DecryptionErrorMessage::from_plaintext_content(&bytes),
            Ok(report)
        );
        for end in 0..bytes.len() {
            assert_eq!(refused(&bytes[..end]), MessageError::Malformed);
        }
        // Another kind of content, no timestamp, a key that is none, no content at all.
        assert_eq!(refused(&[0xc0, 0x0a, 0, 0x80]), MessageError::Malformed);
        assert_eq!(refused(&[0xc0, 0x42, 0, 0x80]), MessageError::Malformed);
        assert_eq!(refused(&[0xc0, 0x80]), MessageError::Malformed);
        assert_eq!(refused(&[0x44; 40]), MessageError::Malformed);
        assert!(matches!(
            refused(&[0xc0, 0x42, 5, 0x0a, 1, 5, 0x10, 7, 0x80]),
            MessageError::Key(_)
        ));
    }

    #[test]
    fn padding_is_taken_off_and_its_length_is_bounded() {
        let report = DecryptionErrorMessage {
            ratchet_key: None,
            timestamp: u64::MAX,
            device_id: u32::MAX,
        };
        let mut bytes = report.to_plaintext_content();
        bytes.resize(MAX_REPORT_LEN, 0);
        assert_eq!(
            DecryptionErrorMessage::from_plaintext_content(&bytes),
            Ok(report)
        );
        bytes.push(0);
        assert_eq!(refused(&bytes), MessageError::TooLarge);
    }
}
