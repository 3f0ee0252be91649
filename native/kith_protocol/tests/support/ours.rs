//! A device of this engine, kept the way a store keeps it: every part as bytes, changed only as the library says.

use std::collections::{BTreeMap, BTreeSet};

use kith_protocol::{
    Changes, DecryptError, Decrypted, EncryptError, IdentityKey, IdentityKeyPair, InitiateError,
    KeyPair, LocalDevice, MemorySkippedKeys, MessageError, NotLoaded, OfficialRecord, PreKey,
    PreKeyBundle, PreKeyId, PreKeySignalMessage, PreKeys, PrivateKey, ProtocolAddress, PublicKey,
    Session, SessionId, SessionRecord, SignalMessage, SignedPreKey, SignedPreKeyPublic, SkippedKey,
    SkippedKeyFormat, SkippedKeyLookup, SkippedKeyPosition, TrustOnFirstUse,
};

use super::SeededRng;
use super::network::{Party, Reason, address};
use super::peer::{Bundle, Message, MessageType, PeerAddress, PublicPreKey};
use super::records::Record;

/// The time of a device unless a test sets another, in seconds since 1970.
pub(crate) const NOW: u64 = 1_700_000_000;

/// How much of a peer's state is loaded before a message is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loading {
    /// Everything, and it stays in memory until a restart.
    Whole,
    /// The current session; the rest when the library asks for it.
    Parts,
    /// Either, by chance.
    Mixed,
}

/// The rows of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredPeer {
    pub(crate) identity: Option<[u8; 33]>,
    pub(crate) current: Option<Vec<u8>>,
    /// Newest first.
    pub(crate) archived: Vec<(SessionId, Vec<u8>)>,
    pub(crate) skipped: BTreeMap<(SessionId, PublicKey, u32), Vec<u8>>,
}

impl StoredPeer {
    pub(crate) fn current(&self) -> Option<Session> {
        self.current.as_deref().map(session)
    }

    pub(crate) fn archive(&self) -> Vec<Session> {
        self.archived
            .iter()
            .map(|(_, bytes)| session(bytes))
            .collect()
    }

    /// Everything, as the library takes it.
    pub(crate) fn record(&self) -> SessionRecord {
        SessionRecord::from_parts(self.current(), Some(self.archive()))
    }

    pub(crate) fn find(
        &self,
        id: &SessionId,
        (chain, counter): &SkippedKeyPosition,
    ) -> SkippedKeyLookup {
        match self.skipped.get(&(*id, *chain, *counter)) {
            Some(bytes) => SkippedKeyLookup::Found(SkippedKey::from_bytes(bytes).unwrap()),
            None => SkippedKeyLookup::Absent,
        }
    }

    /// The keys, as the library holds them in memory.
    pub(crate) fn memory(&self, version: kith_protocol::Version) -> MemorySkippedKeys {
        let mut memory = MemorySkippedKeys::default();
        for ((id, chain, counter), bytes) in &self.skipped {
            let key = SkippedKey::from_bytes(bytes).unwrap();
            assert_eq!(key.to_bytes().as_slice(), bytes.as_slice());
            memory.apply(&Changes {
                session_id: *id,
                version,
                established: false,
                archived: None,
                promoted: None,
                sessions_dropped: Vec::new(),
                skipped_added: vec![((*chain, *counter), key)],
                skipped_removed: None,
                skipped_evicted: Vec::new(),
                chains_dropped: Vec::new(),
                prekey_used: None,
                base_key_used: None,
            });
        }
        memory
    }

    /// Makes the changes of an opened message. Each must be possible.
    fn apply(&mut self, record: &SessionRecord, decrypted: &Decrypted) {
        let changes = &decrypted.changes;
        let current = record.current().expect("what opened the message");
        let had_current = self.current.is_some();
        assert_eq!(current.id(), changes.session_id);
        assert_eq!(*current.remote_identity(), decrypted.remote_identity);
        self.identity = Some(decrypted.remote_identity.to_bytes());
        self.current = Some(current.to_bytes().to_vec());

        if let Some(promoted) = changes.promoted {
            let at = self
                .archived
                .iter()
                .position(|(id, _)| *id == promoted)
                .expect("the promoted session was archived");
            self.archived.remove(at);
        }
        assert_eq!(
            changes.archived.is_some(),
            had_current && (changes.promoted.is_some() || changes.established),
            "what replaces the current session archives it"
        );
        if let Some(archived) = changes.archived {
            let newest = record.archived().first().expect("the archived session");
            assert_eq!(newest.id(), archived);
            self.archived
                .insert(0, (archived, newest.to_bytes().to_vec()));
        }
        self.drop_sessions(&changes.sessions_dropped);

        let id = changes.session_id;
        for ((chain, counter), key) in &changes.skipped_added {
            let replaced = self
                .skipped
                .insert((id, *chain, *counter), key.to_bytes().to_vec());
            assert!(replaced.is_none(), "a skipped key is added once");
        }
        if let Some((chain, counter)) = changes.skipped_removed {
            let removed = self.skipped.remove(&(id, chain, counter));
            assert!(removed.is_some(), "the used key was stored");
        }
        for &(chain, count) in &changes.skipped_evicted {
            let lowest: Vec<_> = self
                .skipped
                .range((id, chain, 0)..=(id, chain, u32::MAX))
                .take(count as usize)
                .map(|(row, _)| *row)
                .collect();
            assert_eq!(lowest.len(), count as usize, "what is evicted was stored");
            for row in lowest {
                self.skipped.remove(&row);
            }
        }
        for chain in &changes.chains_dropped {
            let before = self.skipped.len();
            self.skipped
                .retain(|(of, key, _), _| !(*of == id && key == chain));
            assert!(self.skipped.len() < before, "a dropped chain had keys");
        }
    }

    pub(crate) fn drop_sessions(&mut self, dropped: &[SessionId]) {
        for dropped in dropped {
            let before = self.archived.len();
            self.archived.retain(|(id, _)| id != dropped);
            assert_eq!(
                self.archived.len() + 1,
                before,
                "a dropped session was archived"
            );
            self.skipped.retain(|(id, _, _), _| id != dropped);
        }
    }

    /// Holds the rows to the counts inside the sessions.
    pub(crate) fn check(&self) {
        let record = self.record();
        let mut total = 0;
        for session in record.current().into_iter().chain(record.archived()) {
            let mut of_session = 0;
            for chain in session.info().receiving {
                let stored = self
                    .skipped
                    .range(
                        (session.id(), chain.ratchet_key, 0)
                            ..=(session.id(), chain.ratchet_key, u32::MAX),
                    )
                    .count();
                assert_eq!(stored, chain.skipped as usize, "skipped keys of a chain");
                of_session += stored;
            }
            assert!(of_session <= 4_000, "{of_session} skipped keys");
            total += of_session;
        }
        assert_eq!(total, self.skipped.len(), "keys of chains that are gone");
        assert!(self.archived.len() <= 40);
        for (row, session) in self.archived.iter().zip(record.archived()) {
            assert_eq!(row.0, session.id());
            assert!(session.is_acknowledged(), "an archived session is not sent");
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(out, self.identity.as_ref().map_or(&[], |key| key));
        put(out, self.current.as_deref().unwrap_or_default());
        for (id, bytes) in &self.archived {
            put(out, id.as_bytes());
            put(out, bytes);
        }
        for ((id, chain, counter), bytes) in &self.skipped {
            put(out, id.as_bytes());
            put(out, chain.u());
            put(out, &counter.to_be_bytes());
            put(out, bytes);
        }
    }
}

/// The rows of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) identity: Vec<u8>,
    pub(crate) registration_id: u32,
    pub(crate) prekeys: BTreeMap<PreKeyId, Vec<u8>>,
    pub(crate) signed_prekeys: BTreeMap<PreKeyId, Vec<u8>>,
    pub(crate) base_keys: BTreeSet<(PreKeyId, PublicKey)>,
    pub(crate) peers: BTreeMap<ProtocolAddress, StoredPeer>,
}

impl Store {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &self.identity);
        put(&mut out, &self.registration_id.to_be_bytes());
        for (id, private) in self.prekeys.iter().chain(&self.signed_prekeys) {
            put(&mut out, &id.to_be_bytes());
            put(&mut out, private);
        }
        for (id, key) in &self.base_keys {
            put(&mut out, &id.to_be_bytes());
            put(&mut out, key.u());
        }
        for (peer, rows) in &self.peers {
            put(&mut out, peer.name().as_bytes());
            rows.put(&mut out);
        }
        out
    }
}

impl PreKeys for Store {
    fn prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        self.prekeys.get(&id).map(|private| pair(private))
    }

    fn signed_prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        self.signed_prekeys.get(&id).map(|private| pair(private))
    }

    fn is_base_key_used(&self, signed_prekey_id: PreKeyId, base_key: &PublicKey) -> bool {
        self.base_keys.contains(&(signed_prekey_id, *base_key))
    }
}

#[derive(Clone)]
struct Loaded {
    record: SessionRecord,
    skipped: MemorySkippedKeys,
}

/// A device.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) address: ProtocolAddress,
    pub(crate) identity: IdentityKeyPair,
    pub(crate) store: Store,
    pub(crate) loading: Loading,
    pub(crate) now: u64,
    pub(crate) rng: SeededRng,
    /// Whether the next bundle holds a one-time prekey.
    pub(crate) one_time: bool,
    in_memory: BTreeMap<ProtocolAddress, Loaded>,
    /// How often the library asked for a part that was not loaded.
    pub(crate) asked_for_archive: usize,
    pub(crate) asked_for_skipped: usize,
}

impl Device {
    pub(crate) fn new(name: &str, mut rng: SeededRng) -> Self {
        let identity = IdentityKeyPair::generate(&mut rng);
        let registration_id = 1 + u32::try_from(rng.below(0x3fff)).unwrap();
        Self {
            address: ProtocolAddress::new(name, 1).unwrap(),
            store: Store {
                identity: identity.private_key().as_bytes().to_vec(),
                registration_id,
                ..Store::default()
            },
            identity,
            loading: Loading::Whole,
            now: NOW,
            rng,
            one_time: true,
            in_memory: BTreeMap::new(),
            asked_for_archive: 0,
            asked_for_skipped: 0,
        }
    }

    pub(crate) fn identity_key(&self) -> IdentityKey {
        self.identity.identity_key()
    }

    /// An unused id, now and then one at an end of the range.
    fn new_id(&mut self, used: fn(&Store) -> &BTreeMap<PreKeyId, Vec<u8>>) -> PreKeyId {
        loop {
            let id = match self.rng.below(8) {
                0 => 0,
                1 => u32::MAX,
                2 => 1 << 31,
                _ => u32::try_from(self.rng.below(1 << 24)).unwrap(),
            };
            if !used(&self.store).contains_key(&id) {
                return id;
            }
        }
    }

    /// Makes keys and publishes them. The signed prekey is the last one, or now and then a new one.
    pub(crate) fn publish(&mut self) -> PreKeyBundle {
        let id = match self.store.signed_prekeys.keys().next() {
            Some(&id) if !self.rng.chance(20) => id,
            _ => self.new_id(|store| &store.signed_prekeys),
        };
        let signed = match self.store.signed_prekeys.get(&id) {
            Some(private) => {
                let key_pair = pair(private);
                let signature = self
                    .identity
                    .sign(&key_pair.public_key().to_bytes(), &mut self.rng);
                SignedPreKey {
                    id,
                    key_pair,
                    signature,
                }
            }
            None => SignedPreKey::generate(id, &self.identity, &mut self.rng),
        };
        let private = signed.key_pair.private_key().as_bytes().to_vec();
        self.store.signed_prekeys.insert(id, private);
        let prekey = self.one_time.then(|| {
            let id = self.new_id(|store| &store.prekeys);
            let prekey = PreKey::generate(id, &mut self.rng);
            let private = prekey.key_pair.private_key().as_bytes().to_vec();
            self.store.prekeys.insert(id, private);
            (id, *prekey.key_pair.public_key())
        });
        PreKeyBundle {
            registration_id: self.store.registration_id,
            identity_key: self.identity.identity_key(),
            signed_prekey: SignedPreKeyPublic {
                id,
                public_key: *signed.key_pair.public_key(),
                signature: signed.signature.to_vec(),
            },
            prekey,
        }
    }

    pub(crate) fn peer(&self, remote: &ProtocolAddress) -> &StoredPeer {
        self.store.peers.get(remote).expect("a known peer")
    }

    fn trust(&self, remote: &ProtocolAddress) -> TrustOnFirstUse {
        let known = self
            .store
            .peers
            .get(remote)
            .and_then(|peer| peer.identity.as_ref());
        TrustOnFirstUse(known.map(|key| IdentityKey::from_bytes(key).unwrap()))
    }

    fn whole(&mut self) -> bool {
        match self.loading {
            Loading::Whole => true,
            Loading::Parts => false,
            Loading::Mixed => self.rng.chance(50),
        }
    }

    fn load(&mut self, remote: &ProtocolAddress) -> Loaded {
        self.in_memory.remove(remote).unwrap_or_else(|| {
            let rows = self.store.peers.entry(remote.clone()).or_default();
            Loaded {
                record: rows.record(),
                skipped: rows.memory(kith_protocol::Version::V3),
            }
        })
    }

    /// Starts a session.
    pub(crate) fn initiate(
        &mut self,
        remote: &ProtocolAddress,
        bundle: &PreKeyBundle,
    ) -> Result<(), InitiateError> {
        let trust = self.trust(remote);
        let before = self.store.to_bytes();
        self.in_memory.remove(remote);
        let rows = self.store.peers.entry(remote.clone()).or_default();
        let mut record = rows.record();
        let ids: Vec<_> = record.archived().iter().map(Session::id).collect();
        let local = LocalDevice {
            address: &self.address,
            identity: &self.identity,
            registration_id: self.store.registration_id,
        };
        let had_one = record.current().map(Session::id);
        let replaced = match record.initiate(&local, bundle, &trust, self.now, &mut self.rng) {
            Ok(replaced) => replaced,
            Err(error) => {
                assert_eq!(record, rows.record(), "a refused bundle changed the record");
                if *rows == StoredPeer::default() {
                    self.store.peers.remove(remote);
                }
                assert_eq!(self.store.to_bytes(), before);
                return Err(error);
            }
        };
        assert_eq!(replaced.archived, had_one);
        rows.identity = Some(bundle.identity_key.to_bytes());
        let current = record.current().expect("the new session");
        rows.current = Some(current.to_bytes().to_vec());
        if let Some(replaced) = replaced.archived {
            let newest = &record.archived()[0];
            assert_eq!(newest.id(), replaced);
            rows.archived
                .insert(0, (replaced, newest.to_bytes().to_vec()));
        }
        let kept: Vec<_> = record.archived().iter().map(Session::id).collect();
        let gone: Vec<_> = ids.into_iter().filter(|id| !kept.contains(id)).collect();
        assert_eq!(replaced.sessions_dropped, gone);
        rows.drop_sessions(&gone);
        assert_eq!(rows.record(), record);
        rows.check();
        Ok(())
    }

    /// Encrypts a message.
    pub(crate) fn encrypt(
        &mut self,
        remote: &ProtocolAddress,
        plaintext: &[u8],
    ) -> Result<Message, EncryptError> {
        let trust = self.trust(remote);
        let now = self.now;
        let whole = self.whole();
        let mut loaded = if whole {
            self.load(remote)
        } else {
            self.in_memory.remove(remote);
            let rows = self.store.peers.entry(remote.clone()).or_default();
            Loaded {
                record: SessionRecord::from_parts(rows.current(), None),
                skipped: MemorySkippedKeys::default(),
            }
        };
        let result = loaded.record.encrypt(plaintext, &trust, now);
        let rows = self.store.peers.entry(remote.clone()).or_default();
        match &result {
            Ok(ciphertext) => {
                let current = loaded.record.current().expect("what was sent on");
                assert_eq!(ciphertext.session_id, current.id());
                rows.current = Some(current.to_bytes().to_vec());
            }
            Err(_) => assert_eq!(
                rows.current(),
                loaded.record.current().cloned(),
                "a refusal changed the session"
            ),
        }
        if whole {
            self.in_memory.insert(remote.clone(), loaded);
        }
        result.map(|ciphertext| Message {
            kind: if ciphertext.is_prekey_message {
                MessageType::PreKey
            } else {
                MessageType::Ordinary
            },
            body: ciphertext.bytes,
        })
    }

    /// Opens a message.
    pub(crate) fn decrypt(
        &mut self,
        remote: &ProtocolAddress,
        message: &Message,
    ) -> Result<Decrypted, Reason> {
        let parsed = Parsed::new(message).map_err(|error| message_reason(&error))?;
        let decrypted = if self.whole() {
            self.decrypt_whole(remote, &parsed)
        } else {
            self.decrypt_in_parts(remote, &parsed)
        }
        .map_err(|error| decrypt_reason(&error))?;
        let changes = &decrypted.changes;
        assert_eq!(changes.established, changes.base_key_used.is_some());
        if let Some((id, base_key)) = changes.base_key_used {
            assert!(self.store.base_keys.insert((id, base_key)));
        }
        if let Some(id) = changes.prekey_used {
            assert!(changes.established);
            assert!(self.store.prekeys.remove(&id).is_some());
        }
        Ok(decrypted)
    }

    fn decrypt_whole(
        &mut self,
        remote: &ProtocolAddress,
        parsed: &Parsed,
    ) -> Result<Decrypted, DecryptError> {
        let trust = self.trust(remote);
        let known = self.store.peers.contains_key(remote);
        let mut loaded = self.load(remote);
        let result = {
            let skipped = &loaded.skipped;
            let find = |id: &SessionId, position: &SkippedKeyPosition| skipped.find(id, position);
            parsed.open(
                &mut loaded.record,
                &self.address,
                &self.identity,
                &self.store,
                remote,
                &find,
                &trust,
                &mut self.rng,
            )
        };
        let rows = self.store.peers.get_mut(remote).expect("loaded above");
        match &result {
            Ok(decrypted) => {
                loaded.skipped.apply(&decrypted.changes);
                rows.apply(&loaded.record, decrypted);
                assert_eq!(loaded.skipped.len(), rows.skipped.len());
                rows.check();
            }
            Err(_) if !known => {
                assert_eq!(loaded.record, SessionRecord::default());
                self.store.peers.remove(remote);
                return result;
            }
            Err(_) => {}
        }
        assert_eq!(rows.record(), loaded.record, "the stored bytes lag behind");
        self.in_memory.insert(remote.clone(), loaded);
        result
    }

    fn decrypt_in_parts(
        &mut self,
        remote: &ProtocolAddress,
        parsed: &Parsed,
    ) -> Result<Decrypted, DecryptError> {
        self.in_memory.remove(remote);
        let trust = self.trust(remote);
        let rows = self.store.peers.get(remote).cloned().unwrap_or_default();
        let (mut archive, mut skipped) = (false, false);
        loop {
            let before = SessionRecord::from_parts(rows.current(), archive.then(|| rows.archive()));
            let mut record = before.clone();
            let find = |id: &SessionId, position: &SkippedKeyPosition| {
                if skipped {
                    rows.find(id, position)
                } else {
                    SkippedKeyLookup::NotLoaded
                }
            };
            let result = parsed.open(
                &mut record,
                &self.address,
                &self.identity,
                &self.store,
                remote,
                &find,
                &trust,
                &mut self.rng,
            );
            match result {
                Err(DecryptError::NotLoaded(NotLoaded::Archive)) if !archive => {
                    archive = true;
                    self.asked_for_archive += 1;
                }
                Err(DecryptError::NotLoaded(NotLoaded::SkippedKeys)) if !skipped => {
                    skipped = true;
                    self.asked_for_skipped += 1;
                }
                Err(DecryptError::NotLoaded(part)) => panic!("{part:?} was asked for twice"),
                Ok(decrypted) => {
                    let rows = self.store.peers.entry(remote.clone()).or_default();
                    rows.apply(&record, &decrypted);
                    rows.check();
                    return Ok(decrypted);
                }
                Err(error) => {
                    assert_eq!(record, before, "a refusal changed the record");
                    return Err(error);
                }
            }
            assert_eq!(record, before, "a request for more changed the record");
        }
    }

    /// Forgets what is not stored.
    pub(crate) fn restart(&mut self) {
        self.in_memory.clear();
        let private = self.store.identity.as_slice().try_into().unwrap();
        self.identity = IdentityKeyPair::from_private_key(PrivateKey::from_bytes(private));
    }

    /// Everything that is stored.
    pub(crate) fn stored(&self) -> Vec<u8> {
        self.store.to_bytes()
    }

    /// The sessions and skipped keys with a peer, as a record of Signal's own library.
    pub(crate) fn export(&self, remote: &ProtocolAddress) -> OfficialRecord {
        let rows = self.peer(remote);
        OfficialRecord {
            sessions: rows.record(),
            skipped: rows.memory(kith_protocol::Version::V3),
        }
    }

    /// Takes over sessions and skipped keys.
    pub(crate) fn import(&mut self, remote: &ProtocolAddress, record: &OfficialRecord) {
        self.in_memory.remove(remote);
        let sessions = &record.sessions;
        let mut rows = StoredPeer {
            identity: sessions
                .current()
                .map(|session| session.remote_identity().to_bytes()),
            current: sessions
                .current()
                .map(|session| session.to_bytes().to_vec()),
            ..StoredPeer::default()
        };
        for session in sessions.archived() {
            rows.archived
                .push((session.id(), session.to_bytes().to_vec()));
        }
        let positions = Record::of(record, SkippedKeyFormat::Seeds).skipped_positions();
        for (at, session) in sessions
            .current()
            .into_iter()
            .chain(sessions.archived())
            .enumerate()
        {
            for (chain, counter) in &positions[at] {
                let position = (PublicKey::from_bytes(chain).unwrap(), *counter);
                let SkippedKeyLookup::Found(key) = record.skipped.find(&session.id(), &position)
                else {
                    panic!("a key of the record is not found");
                };
                rows.skipped.insert(
                    (session.id(), position.0, *counter),
                    key.to_bytes().to_vec(),
                );
            }
        }
        assert_eq!(rows.skipped.len(), record.skipped.len());
        self.store.peers.insert(remote.clone(), rows);
    }

    /// Remembers an identity as accepted by the user.
    pub(crate) fn accept_identity(&mut self, remote: &ProtocolAddress, key: &IdentityKey) {
        let rows = self.store.peers.entry(remote.clone()).or_default();
        rows.identity = Some(key.to_bytes());
    }
}

/// A parsed message of either type.
pub(crate) enum Parsed {
    PreKey(Box<PreKeySignalMessage>),
    Ordinary(SignalMessage),
}

impl Parsed {
    pub(crate) fn new(message: &Message) -> Result<Self, MessageError> {
        match message.kind {
            MessageType::PreKey => PreKeySignalMessage::from_bytes(&message.body)
                .map(|message| Self::PreKey(Box::new(message))),
            MessageType::Ordinary => SignalMessage::from_bytes(&message.body).map(Self::Ordinary),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn open(
        &self,
        record: &mut SessionRecord,
        address: &ProtocolAddress,
        identity: &IdentityKeyPair,
        store: &Store,
        remote: &ProtocolAddress,
        skipped: &dyn Fn(&SessionId, &SkippedKeyPosition) -> SkippedKeyLookup,
        trust: &TrustOnFirstUse,
        rng: &mut SeededRng,
    ) -> Result<Decrypted, DecryptError> {
        let local = LocalDevice {
            address,
            identity,
            registration_id: store.registration_id,
        };
        match self {
            Self::PreKey(message) => {
                record.decrypt_prekey(&local, remote, message, store, skipped, trust, rng)
            }
            Self::Ordinary(message) => record.decrypt(&local, remote, message, skipped, trust, rng),
        }
    }
}

pub(crate) fn message_reason(error: &MessageError) -> Reason {
    match error {
        MessageError::Key(_) | MessageError::Malformed => Reason::Malformed,
        MessageError::TooLarge => Reason::TooLarge,
        MessageError::UnknownVersion(_) | MessageError::VersionTooOld(_) => {
            Reason::UnsupportedVersion
        }
    }
}

pub(crate) fn decrypt_reason(error: &DecryptError) -> Reason {
    match error {
        DecryptError::Duplicate => Reason::Duplicate,
        DecryptError::Invalid => Reason::Tampered,
        DecryptError::SessionNotFound => Reason::SessionNotFound,
        DecryptError::TooFarAhead => Reason::OutOfSync,
        DecryptError::UnknownPreKey(_, _) => Reason::UnknownPreKey,
        DecryptError::UnsupportedVersion(_) => Reason::UnsupportedVersion,
        DecryptError::UntrustedIdentity => Reason::UntrustedIdentity,
        DecryptError::NotLoaded(part) => panic!("{part:?} was loaded"),
    }
}

/// A bundle in the shape of the peer.
pub(crate) fn to_peer(at: &PeerAddress, bundle: &PreKeyBundle) -> Bundle {
    Bundle {
        address: at.clone(),
        registration_id: bundle.registration_id,
        identity_key: bundle.identity_key.to_bytes().to_vec(),
        signed_prekey: PublicPreKey {
            id: bundle.signed_prekey.id,
            public: bundle.signed_prekey.public_key.to_bytes().to_vec(),
            signature: Some(bundle.signed_prekey.signature.clone()),
        },
        prekey: bundle.prekey.map(|(id, key)| PublicPreKey {
            id,
            public: key.to_bytes().to_vec(),
            signature: None,
        }),
        kyber_prekey: None,
    }
}

/// The peer's bundle in the shape of the library.
pub(crate) fn from_peer(bundle: &Bundle) -> PreKeyBundle {
    PreKeyBundle {
        registration_id: bundle.registration_id,
        identity_key: IdentityKey::from_bytes(&bundle.identity_key).unwrap(),
        signed_prekey: SignedPreKeyPublic {
            id: bundle.signed_prekey.id,
            public_key: PublicKey::from_bytes(&bundle.signed_prekey.public).unwrap(),
            signature: bundle.signed_prekey.signature.clone().unwrap(),
        },
        prekey: bundle
            .prekey
            .as_ref()
            .map(|prekey| (prekey.id, PublicKey::from_bytes(&prekey.public).unwrap())),
    }
}

/// The library's form of a peer address.
pub(crate) fn protocol_address(at: &PeerAddress) -> ProtocolAddress {
    ProtocolAddress::new(at.name.clone(), u8::try_from(at.device_id).unwrap()).unwrap()
}

/// A device on the simulated network.
pub(crate) struct OurParty {
    pub(crate) device: Device,
    index: usize,
    one_time: u8,
}

impl OurParty {
    /// The device at the address of party `index`; `one_time` percent of its bundles have a one-time prekey.
    pub(crate) fn new(index: usize, loading: Loading, one_time: u8, rng: SeededRng) -> Self {
        let mut device = Device::new(&address(index).name, rng);
        device.loading = loading;
        Self {
            device,
            index,
            one_time,
        }
    }
}

impl Party for OurParty {
    fn bundle(&mut self) -> Bundle {
        self.device.one_time = self.device.rng.chance(self.one_time);
        to_peer(&address(self.index), &self.device.publish())
    }

    fn start_session(&mut self, with: usize, bundle: &Bundle) -> Result<(), Reason> {
        assert_eq!(bundle.address, address(with));
        self.device
            .initiate(&protocol_address(&address(with)), &from_peer(bundle))
            .map_err(|error| match error {
                InitiateError::Bundle(_) => Reason::Tampered,
                InitiateError::Key => Reason::Malformed,
                InitiateError::UntrustedIdentity => Reason::UntrustedIdentity,
            })
    }

    fn send(&mut self, to: usize, plaintext: &[u8]) -> Result<Message, Reason> {
        self.device
            .encrypt(&protocol_address(&address(to)), plaintext)
            .map_err(|error| match error {
                EncryptError::SessionNotFound => Reason::SessionNotFound,
                EncryptError::TooLarge => Reason::TooLarge,
                EncryptError::UntrustedIdentity => Reason::UntrustedIdentity,
            })
    }

    fn receive(&mut self, from: usize, message: &Message) -> Result<Vec<u8>, Reason> {
        self.device
            .decrypt(&protocol_address(&address(from)), message)
            .map(|decrypted| decrypted.plaintext)
    }

    fn restart(&mut self) {
        self.device.restart();
    }

    fn stored(&mut self) -> Option<Vec<u8>> {
        Some(self.device.stored())
    }
}

fn session(bytes: &[u8]) -> Session {
    let session = Session::from_bytes(bytes).expect("a stored session loads");
    assert_eq!(session.to_bytes().as_slice(), bytes);
    session
}

fn pair(private: &[u8]) -> KeyPair {
    KeyPair::from(PrivateKey::from_bytes(private.try_into().unwrap()))
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend_from_slice(bytes);
}
