//! The messages of a conversation between two devices, as bytes (docs/protocol.md).

mod decryption_error;
mod prekey_message;
mod signal_message;

pub use decryption_error::DecryptionErrorMessage;
pub(crate) use prekey_message::Envelope;
pub use prekey_message::PreKeySignalMessage;
pub(crate) use signal_message::NewSignalMessage;
pub use signal_message::SignalMessage;

use thiserror::Error;

use crate::curve::KeyError;

/// The protocol version of a message, its high nibble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// X3DH and the Double Ratchet.
    V3,
    /// PQXDH and the Triple Ratchet.
    V4,
}

/// The low nibble of every version byte sent: the newest version the sender knows.
const NEWEST_VERSION: u8 = 4;

impl Version {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }

    /// The version byte of a message: `0x34` or `0x44`.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self.number() << 4 | NEWEST_VERSION
    }

    /// Receivers look at the high nibble alone. The low one is covered by the MAC of a SignalMessage and
    /// by nothing in a PreKeySignalMessage.
    const fn from_byte(byte: u8) -> Result<Self, MessageError> {
        match byte >> 4 {
            version @ 0..=2 => Err(MessageError::VersionTooOld(version)),
            3 => Ok(Self::V3),
            4 => Ok(Self::V4),
            version => Err(MessageError::UnknownVersion(version)),
        }
    }
}

/// Bytes that are not a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// A key in the message is not one.
    #[error("a key in the message is not one: {0}")]
    Key(#[from] KeyError),
    /// Not protobuf, or a required field is missing, or two fields contradict one another.
    #[error("the message is malformed")]
    Malformed,
    /// More than [`MAX_MESSAGE_LEN`](crate::limits::MAX_MESSAGE_LEN) bytes.
    #[error("the message is too large")]
    TooLarge,
    /// A version above 4.
    #[error("message version {0} is unknown")]
    UnknownVersion(u8),
    /// A version below 3.
    #[error("message version {0} is too old")]
    VersionTooOld(u8),
}
