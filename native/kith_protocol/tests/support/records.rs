//! Session records in Signal's storage format, to be read and changed by tests: the shape is that of the interop
//! notes, written a second time and apart from the library.

use kith_protocol::{OfficialRecord, SkippedKeyFormat};
use prost::Message as _;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    #[prost(message, optional, tag = "1")]
    pub(crate) current: Option<SessionState>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) previous: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SessionState {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) local_identity: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) remote_identity: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) root_key: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub(crate) previous_counter: u32,
    #[prost(message, optional, tag = "6")]
    pub(crate) sending: Option<Chain>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) receiving: Vec<Chain>,
    #[prost(message, optional, tag = "9")]
    pub(crate) pending: Option<Pending>,
    #[prost(uint32, tag = "10")]
    pub(crate) remote_registration_id: u32,
    #[prost(uint32, tag = "11")]
    pub(crate) local_registration_id: u32,
    #[prost(bytes = "vec", tag = "13")]
    pub(crate) base_key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Chain {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) public: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) private: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub(crate) key: Option<ChainKey>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) message_keys: Vec<MessageKey>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ChainKey {
    #[prost(uint32, tag = "1")]
    pub(crate) index: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MessageKey {
    #[prost(uint32, tag = "1")]
    pub(crate) index: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) cipher_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) mac_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) iv: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) seed: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pending {
    #[prost(uint32, optional, tag = "1")]
    pub(crate) prekey_id: Option<u32>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) base_key: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(crate) signed_prekey_id: i32,
    #[prost(uint64, tag = "4")]
    pub(crate) created: u64,
}

impl Record {
    pub(crate) fn of(record: &OfficialRecord, format: SkippedKeyFormat) -> Self {
        Self::decode(record.to_bytes(format).as_slice()).unwrap()
    }

    pub(crate) fn official(&self) -> OfficialRecord {
        OfficialRecord::from_bytes(&self.encode_to_vec()).unwrap()
    }

    /// Ratchet key and counter of every skipped key, session by session, the current one first.
    pub(crate) fn skipped_positions(&self) -> Vec<Vec<(Vec<u8>, u32)>> {
        let previous = self
            .previous
            .iter()
            .map(|bytes| SessionState::decode(bytes.as_slice()).unwrap());
        self.current
            .iter()
            .cloned()
            .chain(previous)
            .map(|session| {
                session
                    .receiving
                    .iter()
                    .flat_map(|chain| {
                        chain
                            .message_keys
                            .iter()
                            .map(|keys| (chain.public.clone(), keys.index))
                    })
                    .collect()
            })
            .collect()
    }

    pub(crate) fn session(&mut self) -> &mut SessionState {
        self.current.as_mut().unwrap()
    }
}
