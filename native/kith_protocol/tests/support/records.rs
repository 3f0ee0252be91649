//! Session records in Signal's storage format, to be read and changed by tests: the shape is that of the interop
//! notes, written a second time and apart from the library.

use std::collections::BTreeSet;

use kith_protocol::{EntryGroup, EntryPosition, OfficialRecord, PublicKey, SkippedKeyFormat};
use prost::Message as _;

/// The states of the post-quantum braid, each at its number in the storage format less one.
pub(crate) const BRAID_STATES: [&str; 11] = [
    "KeysUnsampled",
    "KeysSampled",
    "HeaderSent",
    "Ct1Received",
    "EkSentCt1Received",
    "NoHeaderReceived",
    "HeaderReceived",
    "Ct1Sampled",
    "EkReceivedCt1Sampled",
    "Ct1Acknowledged",
    "Ct2Sampled",
];

/// A remembered post-quantum key: the index, and 32 bytes.
const KEPT_LEN: usize = 36;

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
    #[prost(message, optional, tag = "14")]
    pub(crate) pending_kyber: Option<PendingKyber>,
    #[prost(bytes = "vec", tag = "15")]
    pub(crate) post_quantum: Vec<u8>,
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

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PendingKyber {
    #[prost(uint32, tag = "1")]
    pub(crate) id: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) ciphertext: Vec<u8>,
}

/// The state of the post-quantum ratchet, field 15 of a session.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PostQuantum {
    #[prost(message, optional, tag = "1")]
    pub(crate) negotiation: Option<Negotiation>,
    /// Made when the first message is sent or opened.
    #[prost(message, optional, tag = "2")]
    pub(crate) chain: Option<KeyChain>,
    /// One field, whose number is that of the state.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) braid: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Negotiation {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) auth_key: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(crate) direction: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) minimum_version: u32,
    #[prost(message, optional, tag = "4")]
    pub(crate) limits: Option<Limits>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Limits {
    #[prost(uint32, tag = "1")]
    pub(crate) jump: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) kept: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KeyChain {
    #[prost(uint32, tag = "1")]
    pub(crate) direction: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) current_epoch: u64,
    /// The last one is the current epoch.
    #[prost(message, repeated, tag = "3")]
    pub(crate) epochs: Vec<Epoch>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) root: Vec<u8>,
    #[prost(uint64, tag = "5")]
    pub(crate) send_epoch: u64,
    #[prost(message, optional, tag = "6")]
    pub(crate) limits: Option<Limits>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Epoch {
    #[prost(message, optional, tag = "1")]
    pub(crate) sending: Option<Half>,
    #[prost(message, optional, tag = "2")]
    pub(crate) receiving: Option<Half>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Half {
    #[prost(uint32, tag = "1")]
    pub(crate) counter: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) chain: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) kept: Vec<u8>,
}

/// What every state of the braid begins with.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BraidInner {
    #[prost(uint64, tag = "1")]
    pub(crate) epoch: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) authenticator: Vec<u8>,
}

/// Any state of the braid, as far as all are alike.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyState {
    #[prost(message, optional, tag = "1")]
    inner: Option<BraidInner>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ct2Sampled {
    #[prost(message, optional, tag = "1")]
    inner: Option<BraidInner>,
    #[prost(message, optional, tag = "2")]
    encoder: Option<Encoder>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NoHeaderReceived {
    #[prost(message, optional, tag = "1")]
    inner: Option<BraidInner>,
    #[prost(message, optional, tag = "2")]
    decoder: Option<Decoder>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Decoder {
    #[prost(uint32, tag = "1")]
    needed: u32,
    #[prost(uint32, tag = "2")]
    streams: u32,
    #[prost(bytes = "vec", repeated, tag = "3")]
    points: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Encoder {
    #[prost(uint32, tag = "1")]
    next: u32,
    #[prost(bytes = "vec", repeated, tag = "2")]
    streams: Vec<Vec<u8>>,
}

impl KeyChain {
    /// The number of the epoch at `at` in the list.
    fn epoch(&self, at: usize) -> u64 {
        let after = u64::try_from(self.epochs.len() - 1 - at).unwrap();
        self.current_epoch - after
    }
}

impl Half {
    /// The indices of the remembered keys.
    pub(crate) fn kept_indices(&self) -> Vec<u32> {
        let (keys, rest) = self.kept.as_chunks::<KEPT_LEN>();
        assert!(rest.is_empty(), "{} bytes of kept keys", self.kept.len());
        keys.iter()
            .map(|key| u32::from_be_bytes(*key.first_chunk().unwrap()))
            .collect()
    }

    fn sort(&mut self) {
        let mut keys: Vec<_> = self.kept.chunks(KEPT_LEN).map(<[u8]>::to_vec).collect();
        keys.sort();
        self.kept = keys.concat();
    }
}

impl PostQuantum {
    /// The name of the braid's state, and its epoch.
    pub(crate) fn state(&self) -> (&'static str, u64) {
        let (number, inner) = self.head();
        (BRAID_STATES[number - 1], inner.epoch)
    }

    fn head(&self) -> (usize, BraidInner) {
        let mut input = self.braid.as_slice();
        let tag = prost::encoding::decode_varint(&mut input).unwrap();
        let length = prost::encoding::decode_varint(&mut input).unwrap();
        assert_eq!(input.len(), usize::try_from(length).unwrap());
        let inner = AnyState::decode(input).unwrap().inner.unwrap();
        (usize::try_from(tag >> 3).unwrap(), inner)
    }

    /// Whether this side makes the key pair of its epoch: the initiator does in the first one, and they take turns.
    fn is_key_side(&self) -> bool {
        let responder = self.chain.as_ref().unwrap().direction == 1;
        (self.head().1.epoch % 2 == 1) != responder
    }

    /// The same ratchet with a braid that takes nothing in and has nothing to offer: as if it had done its part of the
    /// epoch and waited for the next. Where the secret of the epoch is not known, a guess stands in the chain.
    pub(crate) fn deaf(&self) -> Self {
        let (_, mut inner) = self.head();
        let mut deaf = self.clone();
        let chain = deaf.chain.as_mut().unwrap();
        if chain.current_epoch < inner.epoch {
            let guess = || {
                Some(Half {
                    counter: 0,
                    chain: vec![1; 32],
                    kept: Vec::new(),
                })
            };
            chain.current_epoch += 1;
            chain.root = vec![1; 32];
            chain.epochs.push(Epoch {
                sending: guess(),
                receiving: guess(),
            });
        }
        // It has sent in the epoch before, and kept what is kept then.
        let sends_on = chain.send_epoch.max(inner.epoch - 1);
        chain.send_epoch = sends_on;
        let oldest = sends_on.saturating_sub(1);
        while chain.epoch(0) < oldest {
            chain.epochs.remove(0);
        }
        for at in 0..chain.epochs.len() {
            if chain.epoch(at) < sends_on {
                chain.epochs[at].sending.as_mut().unwrap().chain.clear();
            }
        }
        deaf.braid.clear();
        if self.is_key_side() {
            inner.epoch += 1;
            let waiting = NoHeaderReceived {
                inner: Some(inner),
                decoder: Some(Decoder {
                    needed: 48,
                    streams: 16,
                    points: vec![Vec::new(); 16],
                }),
            };
            prost::encoding::message::encode(6, &waiting, &mut deaf.braid);
        } else {
            let waiting = Ct2Sampled {
                inner: Some(inner),
                encoder: Some(Encoder {
                    next: 0,
                    streams: vec![vec![7; 10]; 16],
                }),
            };
            prost::encoding::message::encode(11, &waiting, &mut deaf.braid);
        }
        deaf
    }

    /// What the other side would hold, as far as this side's secrets give it: the chains with their halves exchanged, and
    /// a braid that takes nothing in.
    pub(crate) fn mirrored(&self) -> Self {
        let mut mirrored = self.clone();
        if let Some(negotiation) = &mut mirrored.negotiation {
            negotiation.direction ^= 1;
        }
        let chain = mirrored.chain.as_mut().unwrap();
        chain.direction ^= 1;
        for epoch in &mut chain.epochs {
            std::mem::swap(&mut epoch.sending, &mut epoch.receiving);
            epoch.sending.as_mut().unwrap().kept.clear();
            // What this side has forgotten of its own sending is not to be had.
            let receiving = epoch.receiving.as_mut().unwrap();
            if receiving.chain.is_empty() {
                receiving.chain = vec![0; 32];
            }
        }
        mirrored.deaf()
    }
}

impl SessionState {
    /// The post-quantum ratchet; `None` in version 3.
    pub(crate) fn post_quantum(&self) -> Option<PostQuantum> {
        (!self.post_quantum.is_empty())
            .then(|| PostQuantum::decode(self.post_quantum.as_slice()).unwrap())
    }

    pub(crate) fn set_post_quantum(&mut self, state: &PostQuantum) {
        self.post_quantum = state.encode_to_vec();
    }

    /// Where the entries of the session are: its skipped message keys and remembered post-quantum keys.
    fn entry_positions(&self) -> Vec<EntryPosition> {
        let mut positions = Vec::new();
        for chain in &self.receiving {
            let ratchet_key = PublicKey::from_bytes(&chain.public).unwrap();
            for keys in &chain.message_keys {
                positions.push((EntryGroup::MessageKeys(ratchet_key), keys.index));
            }
        }
        if let Some(chain) = self.post_quantum().and_then(|state| state.chain) {
            for (at, epoch) in chain.epochs.iter().enumerate() {
                let group = EntryGroup::PostQuantumKeys(chain.epoch(at));
                let kept = epoch.receiving.iter().flat_map(Half::kept_indices);
                positions.extend(kept.map(|index| (group, index)));
            }
        }
        positions
    }

    /// The session with remembered post-quantum keys in the order of their indices, which is the only thing that may
    /// differ between two stored forms of the same state.
    fn normalized(&self) -> Self {
        let mut session = self.clone();
        if let Some(mut state) = self.post_quantum() {
            for epoch in state.chain.iter_mut().flat_map(|chain| &mut chain.epochs) {
                epoch.receiving.iter_mut().for_each(Half::sort);
                epoch.sending.iter_mut().for_each(Half::sort);
            }
            session.set_post_quantum(&state);
        }
        session
    }
}

impl Record {
    pub(crate) fn of(record: &OfficialRecord, format: SkippedKeyFormat) -> Self {
        Self::read(&record.to_bytes(format))
    }

    /// Reads a record. Writing it gives the same bytes, so nothing of it is left out here.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let record = Self::decode(bytes).unwrap();
        assert!(
            record.encode_to_vec() == bytes,
            "a record in another form: {}",
            hex::encode(bytes)
        );
        for session in record.sessions() {
            if let Some(state) = session.post_quantum() {
                assert_eq!(state.encode_to_vec(), session.post_quantum);
            }
        }
        record
    }

    pub(crate) fn official(&self) -> OfficialRecord {
        OfficialRecord::from_bytes(&self.encode_to_vec()).unwrap()
    }

    /// Every session, the current one first.
    pub(crate) fn sessions(&self) -> Vec<SessionState> {
        let previous = self
            .previous
            .iter()
            .map(|bytes| SessionState::decode(bytes.as_slice()).unwrap());
        self.current.iter().cloned().chain(previous).collect()
    }

    /// The positions of the entries that the format shows, session by session, the current one first.
    pub(crate) fn entry_positions(&self) -> Vec<BTreeSet<EntryPosition>> {
        self.sessions()
            .iter()
            .map(|session| {
                let positions = session.entry_positions();
                let different: BTreeSet<_> = positions.iter().copied().collect();
                assert_eq!(different.len(), positions.len(), "an entry twice");
                different
            })
            .collect()
    }

    /// The record in a form in which equal states are equal.
    pub(crate) fn normalized(&self) -> Vec<SessionState> {
        self.sessions()
            .iter()
            .map(SessionState::normalized)
            .collect()
    }

    pub(crate) fn session(&mut self) -> &mut SessionState {
        self.current.as_mut().unwrap()
    }
}
