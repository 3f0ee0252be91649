//! Session records as Signal's own library stores them: how an app moves to this engine, and back.

mod spqr;

use std::collections::BTreeSet;

use prost::Message as _;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::entries::{Entry, EntryGroup, EntryLookup, MemoryEntries};
use super::record::SessionRecord;
use super::state::{PendingKyber, PendingPreKey, ReceivingChain, SendingChain, Session, SessionId};
use crate::curve::{KeyPair, PrivateKey, PublicKey};
use crate::identity::IdentityKey;
use crate::kyber::KyberCiphertext;
use crate::limits::{MAX_ARCHIVED_SESSIONS, MAX_RECEIVING_CHAINS, MAX_SKIPPED_KEYS_PER_CHAIN};
use crate::ratchet::{ChainKey, MessageKeys, MessageSeed, RootKey};
use crate::wire::Version;

/// Bytes that are not a record this engine can take over.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// Not a record, or values no session has.
    #[error("the record is damaged")]
    Damaged,
    /// A session of a version this engine does not speak.
    #[error("session version {0} is not supported")]
    UnsupportedVersion(u32),
    /// A version 4 session without the post-quantum ratchet, as clients made it before they had that, or one
    /// that may still fall back to having none.
    #[error("the session has no post-quantum ratchet")]
    WithoutPostQuantumRatchet,
}

/// How skipped keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkippedKeyFormat {
    /// Cipher key, MAC key and IV: what clients before the post-quantum ratchet read. Of version 3
    /// sessions only; those of version 4 are written as seeds.
    Expanded,
    /// Seeds: what current clients read.
    Seeds,
}

/// A session record with its entries, which this engine keeps apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfficialRecord {
    /// The sessions.
    pub sessions: SessionRecord,
    /// What the sessions keep beside themselves.
    pub entries: MemoryEntries,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecordFields {
    #[prost(message, optional, tag = "1")]
    current: Option<SessionFields>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    previous: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionFields {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "vec", tag = "2")]
    local_identity: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    remote_identity: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    root_key: Vec<u8>,
    #[prost(uint32, tag = "5")]
    previous_counter: u32,
    #[prost(message, optional, tag = "6")]
    sending: Option<ChainFields>,
    #[prost(message, repeated, tag = "7")]
    receiving: Vec<ChainFields>,
    #[prost(message, optional, tag = "9")]
    pending: Option<PendingFields>,
    #[prost(uint32, tag = "10")]
    remote_registration_id: u32,
    #[prost(uint32, tag = "11")]
    local_registration_id: u32,
    #[prost(bytes = "vec", tag = "13")]
    base_key: Vec<u8>,
    #[prost(message, optional, tag = "14")]
    pending_kyber: Option<PendingKyberFields>,
    #[prost(bytes = "vec", tag = "15")]
    spqr: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PendingKyberFields {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(bytes = "vec", tag = "2")]
    ciphertext: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ChainFields {
    #[prost(bytes = "vec", tag = "1")]
    ratchet_public: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    ratchet_private: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    chain_key: Option<ChainKeyFields>,
    #[prost(message, repeated, tag = "4")]
    message_keys: Vec<MessageKeyFields>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ChainKeyFields {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MessageKeyFields {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(bytes = "vec", tag = "2")]
    cipher_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    mac_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    iv: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    seed: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PendingFields {
    #[prost(uint32, optional, tag = "1")]
    prekey_id: Option<u32>,
    #[prost(bytes = "vec", tag = "2")]
    base_key: Vec<u8>,
    #[prost(int32, tag = "3")]
    signed_prekey_id: i32,
    #[prost(uint64, tag = "4")]
    created: u64,
}

impl OfficialRecord {
    /// Reads a stored record.
    ///
    /// # Errors
    ///
    /// [`RecordError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = RecordFields::decode(bytes).map_err(|_| RecordError::Damaged)?;
        let result = Self::read(&fields);
        fields.erase();
        result
    }

    fn read(fields: &RecordFields) -> Result<Self, RecordError> {
        let mut entries = MemoryEntries::default();
        let current = fields
            .current
            .as_ref()
            .map(|fields| fields.read(&mut entries))
            .transpose()?;
        if fields.previous.len() > MAX_ARCHIVED_SESSIONS {
            return Err(RecordError::Damaged);
        }
        let mut archived = Vec::with_capacity(fields.previous.len());
        for previous in &fields.previous {
            let mut fields =
                SessionFields::decode(previous.as_slice()).map_err(|_| RecordError::Damaged)?;
            let session = fields.read(&mut entries);
            fields.erase();
            archived.push(session?);
        }
        let mut ids = BTreeSet::new();
        if !current
            .iter()
            .chain(&archived)
            .all(|session| ids.insert(session.id()))
        {
            return Err(RecordError::Damaged);
        }
        Ok(Self {
            sessions: SessionRecord::from_parts(current, Some(archived)),
            entries,
        })
    }

    /// Writes the record; equal states give equal bytes.
    ///
    /// # Security
    ///
    /// These bytes are the secrets of the sessions.
    #[must_use]
    pub fn to_bytes(&self, format: SkippedKeyFormat) -> Zeroizing<Vec<u8>> {
        let write = |session| SessionFields::write(session, &self.entries, format);
        let mut fields = RecordFields {
            current: self.sessions.current().map(write),
            previous: Vec::new(),
        };
        for session in self.sessions.archived() {
            let mut session = write(session);
            fields.previous.push(session.encode_to_vec());
            session.erase();
        }
        let bytes = Zeroizing::new(fields.encode_to_vec());
        fields.erase();
        bytes
    }
}

impl RecordFields {
    fn erase(&mut self) {
        self.current.iter_mut().for_each(SessionFields::erase);
        self.previous.zeroize();
    }
}

impl SessionFields {
    fn read(&self, entries: &mut MemoryEntries) -> Result<Session, RecordError> {
        let version = match self.version {
            3 => Version::V3,
            4 => Version::V4,
            other => return Err(RecordError::UnsupportedVersion(other)),
        };
        let local_identity = identity(&self.local_identity)?;
        let remote_identity = identity(&self.remote_identity)?;
        let base_key = public(&self.base_key)?;
        let id = SessionId::new(version, &base_key, &local_identity, &remote_identity);
        let sending = self.sending.as_ref().ok_or(RecordError::Damaged)?;
        if self.receiving.len() > MAX_RECEIVING_CHAINS {
            return Err(RecordError::Damaged);
        }
        let receiving = self
            .receiving
            .iter()
            .map(|chain| chain.read_receiving(id, entries))
            .collect::<Result<Vec<_>, _>>()?;
        for (at, chain) in receiving.iter().enumerate() {
            let is_same = |other: &ReceivingChain| other.ratchet_key == chain.ratchet_key;
            if receiving[..at].iter().any(is_same) {
                return Err(RecordError::Damaged);
            }
        }
        let kyber = self
            .pending_kyber
            .as_ref()
            .map(|kyber| {
                KyberCiphertext::from_bytes(&kyber.ciphertext).map(|ciphertext| PendingKyber {
                    id: kyber.id,
                    ciphertext,
                })
            })
            .transpose()
            .map_err(|_| RecordError::Damaged)?;
        // Both are there until the responder was heard, in version 4.
        if kyber.is_some() != (version == Version::V4 && self.pending.is_some()) {
            return Err(RecordError::Damaged);
        }
        let pending = self.pending.as_ref().map(|pending| PendingPreKey {
            prekey_id: pending.prekey_id,
            signed_prekey_id: pending.signed_prekey_id.cast_unsigned(),
            kyber,
            created: pending.created,
        });
        let spqr = match version {
            Version::V3 => None,
            Version::V4 => Some(Box::new(spqr::read(&self.spqr, id, entries)?)),
        };
        Ok(Session {
            id,
            local_identity,
            remote_identity,
            local_registration_id: self.local_registration_id,
            remote_registration_id: self.remote_registration_id,
            base_key,
            root_key: RootKey::from_bytes(fixed(&self.root_key)?),
            sending: SendingChain {
                ratchet: KeyPair::from_parts(
                    public(&sending.ratchet_public)?,
                    PrivateKey::from_bytes(fixed(&sending.ratchet_private)?),
                ),
                chain_key: sending.read_chain_key()?,
            },
            previous_counter: self.previous_counter,
            receiving,
            pending,
            spqr,
            braid_revision: 0,
        })
    }

    fn write(session: &Session, entries: &MemoryEntries, format: SkippedKeyFormat) -> Self {
        let format = match session.version() {
            Version::V3 => format,
            Version::V4 => SkippedKeyFormat::Seeds,
        };
        let base_key = session.base_key.to_bytes().to_vec();
        Self {
            version: session.version().number().into(),
            local_identity: session.local_identity.to_bytes().to_vec(),
            remote_identity: session.remote_identity.to_bytes().to_vec(),
            root_key: session.root_key.as_bytes().to_vec(),
            previous_counter: session.previous_counter,
            sending: Some(ChainFields {
                ratchet_public: session.sending.ratchet.public_key().to_bytes().to_vec(),
                ratchet_private: session.sending.ratchet.private_key().as_bytes().to_vec(),
                chain_key: Some(ChainKeyFields::write(&session.sending.chain_key)),
                message_keys: Vec::new(),
            }),
            receiving: session
                .receiving
                .iter()
                .map(|chain| ChainFields {
                    ratchet_public: chain.ratchet_key.to_bytes().to_vec(),
                    ratchet_private: Vec::new(),
                    chain_key: Some(ChainKeyFields::write(&chain.chain_key)),
                    message_keys: entries
                        .of_group(&session.id, EntryGroup::MessageKeys(chain.ratchet_key))
                        .rev()
                        .filter_map(|(counter, key)| MessageKeyFields::write(counter, key, format))
                        .collect(),
                })
                .collect(),
            pending: session.pending.as_ref().map(|pending| PendingFields {
                prekey_id: pending.prekey_id,
                base_key: base_key.clone(),
                signed_prekey_id: pending.signed_prekey_id.cast_signed(),
                created: pending.created,
            }),
            remote_registration_id: session.remote_registration_id,
            local_registration_id: session.local_registration_id,
            base_key,
            pending_kyber: session
                .pending
                .as_ref()
                .and_then(|pending| pending.kyber.as_ref())
                .map(|kyber| PendingKyberFields {
                    id: kyber.id,
                    ciphertext: kyber.ciphertext.to_bytes(),
                }),
            spqr: session
                .spqr
                .as_ref()
                .map_or_else(Vec::new, |spqr| spqr::write(spqr, session.id, entries)),
        }
    }

    fn erase(&mut self) {
        self.root_key.zeroize();
        self.spqr.zeroize();
        for chain in self.sending.iter_mut().chain(&mut self.receiving) {
            chain.ratchet_private.zeroize();
            if let Some(chain_key) = &mut chain.chain_key {
                chain_key.key.zeroize();
            }
            for keys in &mut chain.message_keys {
                keys.cipher_key.zeroize();
                keys.mac_key.zeroize();
                keys.iv.zeroize();
                keys.seed.zeroize();
            }
        }
    }
}

impl ChainFields {
    fn read_chain_key(&self) -> Result<ChainKey, RecordError> {
        let fields = self.chain_key.as_ref().ok_or(RecordError::Damaged)?;
        Ok(ChainKey::from_bytes(fixed(&fields.key)?, fields.index))
    }

    fn read_receiving(
        &self,
        session: SessionId,
        entries: &mut MemoryEntries,
    ) -> Result<ReceivingChain, RecordError> {
        let ratchet_key = public(&self.ratchet_public)?;
        let count = u32::try_from(self.message_keys.len()).map_err(|_| RecordError::Damaged)?;
        if count > MAX_SKIPPED_KEYS_PER_CHAIN {
            return Err(RecordError::Damaged);
        }
        for fields in &self.message_keys {
            insert(
                entries,
                session,
                (EntryGroup::MessageKeys(ratchet_key), fields.index),
                fields.read()?,
            )?;
        }
        Ok(ReceivingChain {
            ratchet_key,
            chain_key: self.read_chain_key()?,
            skipped: count,
        })
    }
}

impl ChainKeyFields {
    fn write(chain_key: &ChainKey) -> Self {
        Self {
            index: chain_key.index(),
            key: chain_key.as_bytes().to_vec(),
        }
    }
}

impl MessageKeyFields {
    fn read(&self) -> Result<Entry, RecordError> {
        if !self.seed.is_empty() {
            return Ok(Entry::seed(MessageSeed::from_bytes(fixed(&self.seed)?)));
        }
        let mut keys = Zeroizing::new([0; 80]);
        keys[..32].copy_from_slice(fixed::<32>(&self.cipher_key)?);
        keys[32..64].copy_from_slice(fixed::<32>(&self.mac_key)?);
        keys[64..].copy_from_slice(fixed::<16>(&self.iv)?);
        Ok(Entry::expanded(MessageKeys::from_bytes(&keys)))
    }

    fn write(index: u32, key: &Entry, format: SkippedKeyFormat) -> Option<Self> {
        let mut fields = Self {
            index,
            ..Self::default()
        };
        match (key.as_seed(), format) {
            (Some(seed), SkippedKeyFormat::Seeds) => fields.seed = seed.as_bytes().to_vec(),
            _ => {
                let keys = key.message_keys(None)?;
                fields.cipher_key = keys.as_bytes()[..32].to_vec();
                fields.mac_key = keys.as_bytes()[32..64].to_vec();
                fields.iv = keys.as_bytes()[64..].to_vec();
            }
        }
        Some(fields)
    }
}

/// Each entry is in a record once.
fn insert(
    entries: &mut MemoryEntries,
    session: SessionId,
    position: super::EntryPosition,
    entry: Entry,
) -> Result<(), RecordError> {
    match entries.find(&session, &position) {
        EntryLookup::Absent => {
            entries.insert(session, position, entry);
            Ok(())
        }
        EntryLookup::Found(_) | EntryLookup::NotLoaded => Err(RecordError::Damaged),
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], RecordError> {
    bytes.try_into().map_err(|_| RecordError::Damaged)
}

fn public(bytes: &[u8]) -> Result<PublicKey, RecordError> {
    PublicKey::from_bytes(bytes).map_err(|_| RecordError::Damaged)
}

fn identity(bytes: &[u8]) -> Result<IdentityKey, RecordError> {
    public(bytes).map(IdentityKey::from)
}
