//! A device of this engine, kept the way a store keeps it: every part as bytes, changed only as the library says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use kith_protocol::{
    Changes, DecryptError, Decrypted, EncryptError, Entry, EntryGroup, EntryLookup, EntryPosition,
    IdentityKey, IdentityKeyPair, InitiateError, KeyPair, KyberKeyPair, KyberPreKey,
    KyberPreKeyPublic, KyberPublicKey, LocalDevice, MemoryEntries, MessageError, NotLoaded,
    OfficialRecord, PreKey, PreKeyBundle, PreKeyId, PreKeySignalMessage, PreKeys, PrivateKey,
    ProtocolAddress, PublicKey, RemoteDevice, Session, SessionId, SessionRecord, SignalMessage,
    SignedPreKey, SignedPreKeyPublic, SkippedKeyFormat, TrustOnFirstUse, Version,
};

use super::SeededRng;
use super::network::{Party, Reason, address};
use super::peer::{Bundle, Message, MessageType, PeerAddress, PublicPreKey};
use super::records::Record;

/// The time of a device unless a test sets another, in seconds since 1970.
pub(crate) const NOW: u64 = 1_700_000_000;

/// What a session of version 4 rewrites with every message stays below this.
const MAX_STATE_LEN: usize = 1_024;

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

/// The post-quantum part of the current session, in a row of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredBraid {
    pub(crate) session_id: SessionId,
    pub(crate) revision: u32,
    pub(crate) bytes: Vec<u8>,
}

/// The rows of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredPeer {
    pub(crate) identity: Option<[u8; 33]>,
    /// The highest version seen of the peer: nothing lower is taken from then on.
    pub(crate) version: Option<Version>,
    pub(crate) current: Option<Vec<u8>>,
    pub(crate) braid: Option<StoredBraid>,
    /// Newest first.
    pub(crate) archived: Vec<(SessionId, Vec<u8>)>,
    pub(crate) entries: BTreeMap<(SessionId, EntryGroup, u32), Vec<u8>>,
}

/// How many bytes a device has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Messages sent and opened.
    pub(crate) messages: usize,
    pub(crate) state: usize,
    pub(crate) braid: usize,
    /// How often a braid was written.
    pub(crate) braids: usize,
    pub(crate) entries: usize,
}

impl StoredPeer {
    pub(crate) fn current(&self) -> Option<Session> {
        let state = self.current.as_deref()?;
        let braid = self.braid.as_ref().map(|braid| braid.bytes.as_slice());
        let session = Session::from_parts(state, braid).expect("a stored session loads");
        assert_eq!(session.state_bytes().as_slice(), state);
        assert_eq!(session.braid_bytes().as_deref().map(Vec::as_slice), braid);
        if let Some(braid) = &self.braid {
            assert_eq!(session.id(), braid.session_id);
            assert_eq!(session.braid_revision(), braid.revision);
        }
        Some(session)
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

    pub(crate) fn find(&self, id: &SessionId, (group, number): &EntryPosition) -> EntryLookup {
        match self.entries.get(&(*id, *group, *number)) {
            Some(bytes) => EntryLookup::Found(entry(bytes)),
            None => EntryLookup::Absent,
        }
    }

    /// The entries, as the library holds them in memory.
    pub(crate) fn memory(&self) -> MemoryEntries {
        let mut memory = MemoryEntries::default();
        for ((id, group, number), bytes) in &self.entries {
            memory.apply(&Changes {
                session_id: *id,
                version: Version::V4,
                established: false,
                archived: None,
                promoted: None,
                sessions_dropped: Vec::new(),
                entries_added: vec![((*group, *number), entry(bytes))],
                entries_removed: Vec::new(),
                entries_evicted: Vec::new(),
                groups_dropped: Vec::new(),
                prekey_used: None,
                kyber_prekey_used: None,
                base_key_used: None,
            });
        }
        memory
    }

    /// The entries of one kind, whatever their sessions.
    pub(crate) fn count(&self, kind: fn(&EntryGroup) -> bool) -> usize {
        self.entries
            .keys()
            .filter(|(_, group, _)| kind(group))
            .count()
    }

    /// How many skipped message keys are stored.
    pub(crate) fn message_keys(&self) -> usize {
        self.count(|group| matches!(group, EntryGroup::MessageKeys(_)))
    }

    /// How many post-quantum keys are stored.
    pub(crate) fn post_quantum_keys(&self) -> usize {
        self.count(|group| matches!(group, EntryGroup::PostQuantumKeys(_)))
    }

    /// Writes the current session: its state always, its braid only when it is another one.
    fn put_current(&mut self, session: &Session, written: &mut Written) {
        let state = session.state_bytes().to_vec();
        written.state += state.len();
        match session.version() {
            Version::V3 => {
                assert_eq!(state, session.to_bytes().as_slice());
                assert_eq!(session.braid_bytes(), None);
            }
            Version::V4 => assert!(state.len() < MAX_STATE_LEN, "{} bytes", state.len()),
        }
        self.current = Some(state);
        let Some(bytes) = session.braid_bytes() else {
            self.braid = None;
            return;
        };
        let next = StoredBraid {
            session_id: session.id(),
            revision: session.braid_revision(),
            bytes: bytes.to_vec(),
        };
        if let Some(stored) = &self.braid
            && stored.session_id == next.session_id
        {
            assert_eq!(
                stored.revision == next.revision,
                stored.bytes == next.bytes,
                "a braid changes exactly with its revision"
            );
            if *stored == next {
                return;
            }
        }
        written.braid += next.bytes.len();
        written.braids += 1;
        self.braid = Some(next);
    }

    fn note_version(&mut self, version: Version) {
        self.version = self.version.max(Some(version));
    }

    /// Makes the changes of an opened message. Each must be possible.
    fn apply(&mut self, record: &SessionRecord, decrypted: &Decrypted, written: &mut Written) {
        let changes = &decrypted.changes;
        let current = record.current().expect("what opened the message");
        let had_current = self.current.is_some();
        assert_eq!(current.id(), changes.session_id);
        assert_eq!(current.version(), changes.version);
        assert_eq!(*current.remote_identity(), decrypted.remote_identity);
        self.identity = Some(decrypted.remote_identity.to_bytes());
        self.note_version(changes.version);
        self.put_current(current, written);

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

        // In the order a store is asked for: removed, dropped, added, evicted.
        let id = changes.session_id;
        for (group, number) in &changes.entries_removed {
            let removed = self.entries.remove(&(id, *group, *number));
            assert!(removed.is_some(), "what is removed was stored: {group:?}");
        }
        self.drop_groups(&id, &changes.groups_dropped);
        for ((group, number), entry) in &changes.entries_added {
            let bytes = entry.to_bytes().to_vec();
            written.entries += bytes.len();
            let replaced = self.entries.insert((id, *group, *number), bytes);
            // Only a page of chunks is written more than once, until it is full.
            assert!(
                replaced.is_none() || matches!(group, EntryGroup::Chunks(_)),
                "a key is added once: {group:?}"
            );
        }
        for &(group, kept) in &changes.entries_evicted {
            let lowest: Vec<_> = self
                .entries
                .range((id, group, 0)..=(id, group, u32::MAX))
                .rev()
                .skip(kept as usize)
                .map(|(row, _)| *row)
                .collect();
            assert!(!lowest.is_empty(), "what is evicted was stored");
            for row in lowest {
                self.entries.remove(&row);
            }
        }
    }

    fn drop_groups(&mut self, id: &SessionId, groups: &[EntryGroup]) {
        for group in groups {
            let before = self.entries.len();
            self.entries
                .retain(|(of, other, _), _| !(of == id && other == group));
            assert!(
                self.entries.len() < before,
                "a dropped group had entries: {group:?}"
            );
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
            self.entries.retain(|(id, _, _), _| id != dropped);
        }
    }

    /// Holds the rows to what the sessions say of themselves.
    pub(crate) fn check(&self) {
        let record = self.record();
        let mut total = 0;
        for session in record.current().into_iter().chain(record.archived()) {
            let info = session.info();
            let rows = |group| {
                self.entries
                    .range((session.id(), group, 0)..=(session.id(), group, u32::MAX))
                    .count()
            };
            let mut of_session = 0;
            for chain in &info.receiving {
                let stored = rows(EntryGroup::MessageKeys(chain.ratchet_key));
                assert_eq!(stored, chain.skipped as usize, "skipped keys of a chain");
                of_session += stored;
            }
            assert!(of_session <= 4_000, "{of_session} skipped keys");
            total += of_session;
            let Some(braid) = info.braid else {
                assert_eq!(session.version(), Version::V3);
                continue;
            };
            assert_eq!(session.version(), Version::V4);
            // The chain of its own epoch is there as soon as the secret is; two more are kept before those in use.
            for epoch in braid.epoch.saturating_sub(4)..=braid.epoch {
                let kept = rows(EntryGroup::PostQuantumKeys(epoch));
                assert!(kept <= 2_000, "{kept} post-quantum keys");
                total += kept;
            }
            // At most 35 chunks wait for the 36th.
            let pages = rows(EntryGroup::Chunks(braid.epoch));
            assert!(pages <= 35, "{pages} pages of chunks");
            total += pages;
        }
        assert_eq!(total, self.entries.len(), "entries of what is gone");
        assert!(self.archived.len() <= 40);
        for (row, session) in self.archived.iter().zip(record.archived()) {
            assert_eq!(row.0, session.id());
            assert!(session.is_acknowledged(), "an archived session is not sent");
        }
    }

    /// The same, against the storage format of Signal's library, which shows every remembered key.
    pub(crate) fn check_against_official_form(&self) {
        let record = self.official();
        let positions = Record::of(&record, SkippedKeyFormat::Seeds).entry_positions();
        let sessions = &record.sessions;
        for (session, positions) in sessions
            .current()
            .into_iter()
            .chain(sessions.archived())
            .zip(positions)
        {
            let stored: BTreeSet<EntryPosition> = self
                .entries
                .keys()
                .filter(|(id, group, _)| {
                    *id == session.id() && !matches!(group, EntryGroup::Chunks(_))
                })
                .map(|(_, group, number)| (*group, *number))
                .collect();
            assert_eq!(stored, positions);
        }
    }

    pub(crate) fn official(&self) -> OfficialRecord {
        OfficialRecord {
            sessions: self.record(),
            entries: self.memory(),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(out, self.identity.as_ref().map_or(&[], |key| key));
        put(out, &[self.version.map_or(0, Version::number)]);
        put(out, self.current.as_deref().unwrap_or_default());
        if let Some(braid) = &self.braid {
            put(out, braid.session_id.as_bytes());
            put(out, &braid.revision.to_be_bytes());
            put(out, &braid.bytes);
        }
        for (id, bytes) in &self.archived {
            put(out, id.as_bytes());
            put(out, bytes);
        }
        for ((id, group, number), bytes) in &self.entries {
            put(out, id.as_bytes());
            put(out, &group.to_bytes());
            put(out, &number.to_be_bytes());
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
    /// Seeds, or whole secret keys where another library made them.
    pub(crate) kyber_prekeys: BTreeMap<PreKeyId, Vec<u8>>,
    /// Which of them are used once.
    pub(crate) kyber_one_time: BTreeSet<PreKeyId>,
    pub(crate) base_keys: BTreeSet<(PreKeyId, PublicKey)>,
    pub(crate) peers: BTreeMap<ProtocolAddress, StoredPeer>,
}

impl Store {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &self.identity);
        put(&mut out, &self.registration_id.to_be_bytes());
        for (id, private) in self
            .prekeys
            .iter()
            .chain(&self.signed_prekeys)
            .chain(&self.kyber_prekeys)
        {
            put(&mut out, &id.to_be_bytes());
            put(&mut out, private);
        }
        for id in &self.kyber_one_time {
            put(&mut out, &id.to_be_bytes());
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

    fn kyber_prekey(&self, id: PreKeyId) -> Option<KyberKeyPair> {
        self.kyber_prekeys.get(&id).map(|secret| kyber_pair(secret))
    }

    fn is_base_key_used(&self, signed_prekey_id: PreKeyId, base_key: &PublicKey) -> bool {
        self.base_keys.contains(&(signed_prekey_id, *base_key))
    }
}

#[derive(Clone)]
struct Loaded {
    record: SessionRecord,
    entries: MemoryEntries,
}

/// What was seen of the post-quantum ratchets of a device, over all its sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// The states its braids were in.
    pub(crate) states: BTreeSet<&'static str>,
    /// The highest epoch of each session.
    pub(crate) epochs: BTreeMap<SessionId, u64>,
}

impl Observed {
    fn note(&mut self, session: &Session) {
        if let Some(braid) = session.info().braid {
            self.states.insert(braid.state);
            let epoch = self.epochs.entry(session.id()).or_default();
            *epoch = braid.epoch.max(*epoch);
        }
    }

    /// The epochs completed in the session that got furthest.
    pub(crate) fn most_epochs(&self) -> u64 {
        self.epochs.values().max().map_or(0, |epoch| epoch - 1)
    }

    /// The epochs completed in all sessions.
    pub(crate) fn all_epochs(&self) -> u64 {
        self.epochs.values().map(|epoch| epoch - 1).sum()
    }
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
    /// The lowest version accepted of a peer.
    pub(crate) minimum_version: Version,
    /// Whether the next bundle holds a one-time prekey.
    pub(crate) one_time: bool,
    /// Whether the next bundle holds a Kyber prekey, and so starts a session of version 4.
    pub(crate) kyber: bool,
    /// Whether that is a one-time prekey.
    pub(crate) kyber_one_time: bool,
    in_memory: BTreeMap<ProtocolAddress, Loaded>,
    /// How often the library asked for a part that was not loaded.
    pub(crate) asked_for_archive: usize,
    pub(crate) asked_for_keys: usize,
    pub(crate) asked_for_chunks: usize,
    pub(crate) written: Written,
    pub(crate) observed: Arc<Mutex<Observed>>,
}

impl Device {
    /// A new device that publishes bundles of the version and accepts nothing lower.
    pub(crate) fn new(name: &str, version: Version, mut rng: SeededRng) -> Self {
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
            minimum_version: version,
            one_time: true,
            kyber: version == Version::V4,
            kyber_one_time: false,
            in_memory: BTreeMap::new(),
            asked_for_archive: 0,
            asked_for_keys: 0,
            asked_for_chunks: 0,
            written: Written::default(),
            observed: Arc::default(),
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

    /// Makes keys and publishes them. The signed prekey is the last one, or now and then a new one; so is a Kyber prekey
    /// of last resort.
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
        let kyber_prekey = self.kyber.then(|| self.publish_kyber());
        PreKeyBundle {
            registration_id: self.store.registration_id,
            identity_key: self.identity.identity_key(),
            signed_prekey: SignedPreKeyPublic {
                id,
                public_key: *signed.key_pair.public_key(),
                signature: signed.signature.to_vec(),
            },
            prekey,
            kyber_prekey,
        }
    }

    fn publish_kyber(&mut self) -> KyberPreKeyPublic {
        let kept = self
            .store
            .kyber_prekeys
            .keys()
            .find(|id| !self.store.kyber_one_time.contains(id))
            .copied();
        let kyber = match kept {
            Some(id) if !self.kyber_one_time && !self.rng.chance(20) => {
                let key_pair = kyber_pair(&self.store.kyber_prekeys[&id]);
                let signature = self
                    .identity
                    .sign(&key_pair.public_key().to_bytes(), &mut self.rng);
                KyberPreKey {
                    id,
                    key_pair,
                    signature,
                }
            }
            _ => {
                let id = self.new_id(|store| &store.kyber_prekeys);
                let kyber = KyberPreKey::generate(id, &self.identity, &mut self.rng);
                let seed = kyber.key_pair.seed().expect("made here").to_vec();
                self.store.kyber_prekeys.insert(id, seed);
                if self.kyber_one_time {
                    self.store.kyber_one_time.insert(id);
                }
                kyber
            }
        };
        KyberPreKeyPublic {
            id: kyber.id,
            public_key: kyber.key_pair.public_key().clone(),
            signature: kyber.signature.to_vec(),
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

    /// What is asked of a peer: the device's own minimum, or the highest version the peer was seen with.
    pub(crate) fn minimum_of(&self, remote: &ProtocolAddress) -> Version {
        let seen = self.store.peers.get(remote).and_then(|peer| peer.version);
        seen.map_or(self.minimum_version, |seen| seen.max(self.minimum_version))
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
                entries: rows.memory(),
            }
        })
    }

    fn observe(&self, session: &Session) {
        self.observed.lock().unwrap().note(session);
    }

    /// Starts a session.
    pub(crate) fn initiate(
        &mut self,
        remote: &ProtocolAddress,
        bundle: &PreKeyBundle,
    ) -> Result<(), InitiateError> {
        let trust = self.trust(remote);
        let minimum_version = self.minimum_of(remote);
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
        let to = RemoteDevice {
            address: remote,
            minimum_version,
        };
        let had_one = record.current().map(Session::id);
        let result = record.initiate(&local, &to, bundle, &trust, self.now, &mut self.rng);
        let replaced = match result {
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
        assert_eq!(
            current.version() == Version::V4,
            bundle.kyber_prekey.is_some()
        );
        rows.note_version(current.version());
        rows.put_current(current, &mut self.written);
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
        self.observe(record.current().expect("the new session"));
        Ok(())
    }

    /// Encrypts a message.
    pub(crate) fn encrypt(
        &mut self,
        remote: &ProtocolAddress,
        plaintext: &[u8],
    ) -> Result<Message, EncryptError> {
        let trust = self.trust(remote);
        let minimum_version = self.minimum_of(remote);
        let now = self.now;
        let whole = self.whole();
        let mut loaded = if whole {
            self.load(remote)
        } else {
            self.in_memory.remove(remote);
            let rows = self.store.peers.entry(remote.clone()).or_default();
            Loaded {
                record: SessionRecord::from_parts(rows.current(), None),
                entries: MemoryEntries::default(),
            }
        };
        let local = LocalDevice {
            address: &self.address,
            identity: &self.identity,
            registration_id: self.store.registration_id,
        };
        let to = RemoteDevice {
            address: remote,
            minimum_version,
        };
        let rng = &mut self.rng;
        let result = loaded
            .record
            .encrypt(&local, &to, plaintext, &trust, now, rng);
        let rows = self.store.peers.entry(remote.clone()).or_default();
        match &result {
            Ok(ciphertext) => {
                let current = loaded.record.current().expect("what was sent on");
                assert_eq!(ciphertext.session_id, current.id());
                assert_eq!(ciphertext.version, current.version());
                rows.put_current(current, &mut self.written);
                rows.drop_groups(&current.id(), &ciphertext.entries_dropped);
                self.written.messages += 1;
                if whole {
                    loaded
                        .entries
                        .forget_groups(&current.id(), &ciphertext.entries_dropped);
                    assert_eq!(loaded.entries.len(), rows.entries.len());
                }
            }
            Err(_) => assert_eq!(
                rows.current(),
                loaded.record.current().cloned(),
                "a refusal changed the session"
            ),
        }
        if let Some(current) = loaded.record.current() {
            self.observe(current);
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
        assert_eq!(
            changes.kyber_prekey_used,
            parsed.kyber_prekey_id().filter(|_| changes.established)
        );
        if let Some(id) = changes.kyber_prekey_used
            && self.store.kyber_one_time.remove(&id)
        {
            assert!(self.store.kyber_prekeys.remove(&id).is_some());
        }
        self.written.messages += 1;
        Ok(decrypted)
    }

    fn decrypt_whole(
        &mut self,
        remote: &ProtocolAddress,
        parsed: &Parsed,
    ) -> Result<Decrypted, DecryptError> {
        let trust = self.trust(remote);
        let minimum_version = self.minimum_of(remote);
        let known = self.store.peers.contains_key(remote);
        let mut loaded = self.load(remote);
        let result = {
            let entries = &loaded.entries;
            let find = |id: &SessionId, position: &EntryPosition| entries.find(id, position);
            parsed.open(
                &mut loaded.record,
                &self.address,
                &self.identity,
                &self.store,
                &RemoteDevice {
                    address: remote,
                    minimum_version,
                },
                &find,
                &trust,
                &mut self.rng,
            )
        };
        let rows = self.store.peers.get_mut(remote).expect("loaded above");
        match &result {
            Ok(decrypted) => {
                loaded.entries.apply(&decrypted.changes);
                rows.apply(&loaded.record, decrypted, &mut self.written);
                assert_eq!(loaded.entries.len(), rows.entries.len());
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
        if let Some(current) = loaded.record.current() {
            self.observe(current);
        }
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
        let minimum_version = self.minimum_of(remote);
        let rows = self.store.peers.get(remote).cloned().unwrap_or_default();
        let (keys_of_message, chunks_of_message) = parsed.positions();
        let (mut archive, mut keys, mut chunks) = (false, false, false);
        loop {
            let before = SessionRecord::from_parts(rows.current(), archive.then(|| rows.archive()));
            let mut record = before.clone();
            // A store loads what the message names, and nothing else can be found.
            let find = |id: &SessionId, position: &EntryPosition| {
                let loaded = match position.0 {
                    EntryGroup::Chunks(epoch) => {
                        assert_eq!(Some(epoch), chunks_of_message, "chunks of another epoch");
                        chunks
                    }
                    EntryGroup::MessageKeys(_) | EntryGroup::PostQuantumKeys(_) => {
                        assert!(
                            keys_of_message.contains(position),
                            "a key the message does not name"
                        );
                        keys
                    }
                };
                if loaded {
                    rows.find(id, position)
                } else {
                    EntryLookup::NotLoaded
                }
            };
            let result = parsed.open(
                &mut record,
                &self.address,
                &self.identity,
                &self.store,
                &RemoteDevice {
                    address: remote,
                    minimum_version,
                },
                &find,
                &trust,
                &mut self.rng,
            );
            match result {
                Err(DecryptError::NotLoaded(NotLoaded::Archive)) if !archive => {
                    archive = true;
                    self.asked_for_archive += 1;
                }
                Err(DecryptError::NotLoaded(NotLoaded::MessageKeys)) if !keys => {
                    keys = true;
                    self.asked_for_keys += 1;
                }
                Err(DecryptError::NotLoaded(NotLoaded::Chunks)) if !chunks => {
                    chunks = true;
                    self.asked_for_chunks += 1;
                }
                Err(DecryptError::NotLoaded(part)) => panic!("{part:?} was asked for twice"),
                Ok(decrypted) => {
                    self.observe(record.current().expect("what opened the message"));
                    let rows = self.store.peers.entry(remote.clone()).or_default();
                    rows.apply(&record, &decrypted, &mut self.written);
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

    /// The sessions and their entries with a peer, as a record of Signal's own library.
    pub(crate) fn export(&self, remote: &ProtocolAddress) -> OfficialRecord {
        self.peer(remote).official()
    }

    /// Takes over sessions and their entries.
    pub(crate) fn import(&mut self, remote: &ProtocolAddress, record: &OfficialRecord) {
        self.in_memory.remove(remote);
        let sessions = &record.sessions;
        let mut rows = StoredPeer {
            identity: sessions
                .current()
                .map(|session| session.remote_identity().to_bytes()),
            ..StoredPeer::default()
        };
        if let Some(current) = sessions.current() {
            rows.put_current(current, &mut self.written);
            rows.note_version(current.version());
        }
        for session in sessions.archived() {
            rows.note_version(session.version());
            rows.archived
                .push((session.id(), session.to_bytes().to_vec()));
        }
        for (id, (group, number), entry) in record.entries.iter() {
            let row = (id, group, number);
            rows.entries.insert(row, entry.to_bytes().to_vec());
        }
        assert_eq!(rows.entries.len(), record.entries.len());
        rows.check_against_official_form();
        self.store.peers.insert(remote.clone(), rows);
    }

    /// Remembers an identity as accepted by the user.
    pub(crate) fn accept_identity(&mut self, remote: &ProtocolAddress, key: &IdentityKey) {
        let rows = self.store.peers.entry(remote.clone()).or_default();
        rows.identity = Some(key.to_bytes());
    }

    /// The state and epoch of the post-quantum braid of the current session.
    pub(crate) fn braid(&self, remote: &ProtocolAddress) -> (&'static str, u64) {
        let braid = self.peer(remote).current().unwrap().info().braid.unwrap();
        (braid.state, braid.epoch)
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

    fn kyber_prekey_id(&self) -> Option<PreKeyId> {
        match self {
            Self::PreKey(message) => message.kyber_prekey_id(),
            Self::Ordinary(_) => None,
        }
    }

    /// The keys a store can load from what the message names, and the epoch whose chunks it may need.
    fn positions(&self) -> (Vec<EntryPosition>, Option<u64>) {
        let message = match self {
            Self::PreKey(message) => message.message(),
            Self::Ordinary(message) => message,
        };
        let group = EntryGroup::MessageKeys(*message.ratchet_key());
        let mut keys = vec![(group, message.counter())];
        let post_quantum = message.post_quantum_position();
        if let Some((epoch, index)) = post_quantum {
            keys.push((EntryGroup::PostQuantumKeys(epoch), index));
        }
        (keys, post_quantum.map(|(epoch, _)| epoch + 1))
    }

    #[allow(clippy::too_many_arguments)]
    fn open(
        &self,
        record: &mut SessionRecord,
        address: &ProtocolAddress,
        identity: &IdentityKeyPair,
        store: &Store,
        remote: &RemoteDevice<'_>,
        entries: &dyn Fn(&SessionId, &EntryPosition) -> EntryLookup,
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
                record.decrypt_prekey(&local, remote, message, store, entries, trust, rng)
            }
            Self::Ordinary(message) => record.decrypt(&local, remote, message, entries, trust, rng),
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
        DecryptError::Damaged => Reason::CorruptedState,
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
        kyber_prekey: bundle.kyber_prekey.as_ref().map(|kyber| PublicPreKey {
            id: kyber.id,
            public: kyber.public_key.to_bytes(),
            signature: Some(kyber.signature.clone()),
        }),
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
        kyber_prekey: bundle.kyber_prekey.as_ref().map(|kyber| KyberPreKeyPublic {
            id: kyber.id,
            public_key: KyberPublicKey::from_bytes(&kyber.public).unwrap(),
            signature: kyber.signature.clone().unwrap(),
        }),
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
    /// The device at the address of party `index`; `one_time` percent of its bundles have a one-time prekey, of either
    /// kind.
    pub(crate) fn new(
        index: usize,
        version: Version,
        loading: Loading,
        one_time: u8,
        rng: SeededRng,
    ) -> Self {
        let mut device = Device::new(&address(index).name, version, rng);
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
        if self.device.kyber {
            self.device.kyber_one_time = self.device.rng.chance(self.one_time);
        }
        to_peer(&address(self.index), &self.device.publish())
    }

    fn start_session(&mut self, with: usize, bundle: &Bundle) -> Result<(), Reason> {
        assert_eq!(bundle.address, address(with));
        self.device
            .initiate(&protocol_address(&address(with)), &from_peer(bundle))
            .map_err(|error| match error {
                InitiateError::Bundle(_) => Reason::Tampered,
                InitiateError::Key => Reason::Malformed,
                InitiateError::UnsupportedVersion(_) => Reason::UnsupportedVersion,
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
        for rows in self.device.store.peers.values() {
            rows.check_against_official_form();
        }
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

fn entry(bytes: &[u8]) -> Entry {
    let entry = Entry::from_bytes(bytes).expect("a stored entry loads");
    assert_eq!(entry.to_bytes().as_slice(), bytes);
    entry
}

fn pair(private: &[u8]) -> KeyPair {
    KeyPair::from(PrivateKey::from_bytes(private.try_into().unwrap()))
}

/// A Kyber key pair from its seed, or from the whole secret key.
pub(crate) fn kyber_pair(secret: &[u8]) -> KyberKeyPair {
    match secret.try_into() {
        Ok(seed) => KyberKeyPair::from_seed(seed),
        Err(_) => KyberKeyPair::from_secret_key(secret).unwrap(),
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend_from_slice(bytes);
}
