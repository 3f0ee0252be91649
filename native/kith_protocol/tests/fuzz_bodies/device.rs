//! A device as an application keeps it: sessions, entries and prekeys, and the rows of its store.

use std::collections::{BTreeMap, BTreeSet};

use kith_protocol::{
    Changes, Ciphertext, DecryptError, Decrypted, EncryptError, Entry, EntryGroup, EntryLookup,
    IdentityKeyPair, KeyPair, KyberKeyPair, KyberPreKey, KyberPreKeyPublic, LocalDevice,
    MemoryEntries, MessageError, NotLoaded, PreKey, PreKeyBundle, PreKeyId, PreKeySignalMessage,
    PreKeys, ProtocolAddress, PublicKey, RemoteDevice, Replaced, Session, SessionId, SessionRecord,
    SignalMessage, SignedPreKey, SignedPreKeyPublic, TrustOnFirstUse, Version,
};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

use super::forge::Known;

/// When everything happens, in seconds since 1970.
pub(crate) const NOW: u64 = 1_790_000_000;

/// The largest stored parts (docs/state-format.md), with room for a pending prekey.
const MAX_STATE: usize = 1_024;
const MAX_BRAID: usize = 6_400;

/// Why a message was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOpened {
    Parse(MessageError),
    Decrypt(DecryptError),
}

/// The rows of one peer, each written only when the library says that it changed.
#[derive(Clone, Default)]
struct Rows {
    state: Option<Vec<u8>>,
    /// With the session and the revision it is of.
    braid: Option<(SessionId, u32, Vec<u8>)>,
    /// Newest first.
    archived: Vec<(SessionId, Vec<u8>)>,
}

#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) signed: SignedPreKey,
    pub(crate) one_time: BTreeMap<PreKeyId, KeyPair>,
    pub(crate) kyber: KyberPreKey,
    pub(crate) used: BTreeSet<(PreKeyId, PublicKey)>,
}

impl PreKeys for Keys {
    fn prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        self.one_time.get(&id).cloned()
    }

    fn signed_prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        (id == self.signed.id).then(|| self.signed.key_pair.clone())
    }

    fn kyber_prekey(&self, id: PreKeyId) -> Option<KyberKeyPair> {
        (id == self.kyber.id).then(|| self.kyber.key_pair.clone())
    }

    fn is_base_key_used(&self, signed_prekey_id: PreKeyId, base_key: &PublicKey) -> bool {
        self.used.contains(&(signed_prekey_id, *base_key))
    }
}

/// One of two devices that know one another.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) address: ProtocolAddress,
    pub(crate) peer: ProtocolAddress,
    pub(crate) identity: IdentityKeyPair,
    pub(crate) keys: Keys,
    pub(crate) record: SessionRecord,
    pub(crate) entries: MemoryEntries,
    rows: Rows,
    rng: ChaCha12Rng,
}

impl Device {
    /// Two devices; `bound` gives them addresses that are bound into messages.
    pub(crate) fn pair(seed: u64, bound: bool) -> [Self; 2] {
        let address = |number: u8| {
            let name = if bound {
                format!("00000000-0000-4000-8000-{number:012x}")
            } else {
                format!("device {number}")
            };
            ProtocolAddress::new(name, 1).expect("a device id")
        };
        [
            Self::new(address(1), address(2), seed),
            Self::new(address(2), address(1), !seed),
        ]
    }

    fn new(address: ProtocolAddress, peer: ProtocolAddress, seed: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let identity = IdentityKeyPair::generate(&mut rng);
        Self {
            keys: Keys {
                signed: SignedPreKey::generate(7, &identity, &mut rng),
                one_time: BTreeMap::new(),
                kyber: KyberPreKey::generate(9, &identity, &mut rng),
                used: BTreeSet::new(),
            },
            address,
            peer,
            identity,
            record: SessionRecord::default(),
            entries: MemoryEntries::default(),
            rows: Rows::default(),
            rng,
        }
    }

    /// A bundle for a session of this version, with a one-time prekey if `one_time` gives its id.
    pub(crate) fn bundle(&mut self, version: Version, one_time: Option<PreKeyId>) -> PreKeyBundle {
        let prekey = one_time.map(|id| {
            let prekey = PreKey::generate(id, &mut self.rng);
            let public = *prekey.key_pair.public_key();
            self.keys.one_time.insert(id, prekey.key_pair);
            (id, public)
        });
        let (signed, kyber) = (&self.keys.signed, &self.keys.kyber);
        PreKeyBundle {
            registration_id: 1,
            identity_key: self.identity.identity_key(),
            signed_prekey: SignedPreKeyPublic {
                id: signed.id,
                public_key: *signed.key_pair.public_key(),
                signature: signed.signature.to_vec(),
            },
            prekey,
            kyber_prekey: (version == Version::V4).then(|| KyberPreKeyPublic {
                id: kyber.id,
                public_key: kyber.key_pair.public_key().clone(),
                signature: kyber.signature.to_vec(),
            }),
        }
    }

    pub(crate) fn start(&mut self, bundle: &PreKeyBundle) {
        let replaced = self
            .record
            .initiate(
                &LocalDevice {
                    address: &self.address,
                    identity: &self.identity,
                    registration_id: 1,
                },
                &remote(&self.peer),
                bundle,
                &TrustOnFirstUse::default(),
                NOW,
                &mut self.rng,
            )
            .expect("an honest bundle starts a session");
        self.replaced(&replaced);
        self.write_current();
    }

    pub(crate) fn archive_current(&mut self) {
        let replaced = self.record.archive_current();
        self.replaced(&replaced);
        self.write_current();
    }

    pub(crate) fn send(&mut self, plaintext: &[u8]) -> Result<Ciphertext, EncryptError> {
        let before = self.record.clone();
        let sent = self.record.encrypt(
            &LocalDevice {
                address: &self.address,
                identity: &self.identity,
                registration_id: 1,
            },
            &remote(&self.peer),
            plaintext,
            &TrustOnFirstUse::default(),
            NOW,
            &mut self.rng,
        );
        match &sent {
            Ok(sent) => {
                self.entries
                    .forget_groups(&sent.session_id, &sent.entries_dropped);
                self.write_current();
            }
            Err(_) => assert!(
                self.record == before,
                "a message that was not made changed the session"
            ),
        }
        sent
    }

    /// Opens a message. What is refused changes nothing.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        is_prekey_message: bool,
    ) -> Result<Decrypted, NotOpened> {
        // Entries and prekeys are only lent, and changed by what an opened message says.
        let before = self.record.clone();
        let opened = self.open(bytes, is_prekey_message);
        match &opened {
            Ok(opened) => {
                let changes = &opened.changes;
                let used = (
                    changes.prekey_used,
                    changes.kyber_prekey_used,
                    changes.base_key_used,
                );
                let names = PreKeySignalMessage::from_bytes(bytes)
                    .ok()
                    .filter(|_| is_prekey_message && changes.established)
                    .map_or((None, None, None), |it| {
                        let base_key = (it.signed_prekey_id(), *it.base_key());
                        (it.prekey_id(), it.kyber_prekey_id(), Some(base_key))
                    });
                assert_eq!(used, names, "what a new session was made from");
                self.changed(changes);
            }
            Err(_) => assert!(
                before == self.record,
                "a message that was refused changed the state"
            ),
        }
        opened
    }

    fn open(&mut self, bytes: &[u8], is_prekey_message: bool) -> Result<Decrypted, NotOpened> {
        let entries = &self.entries;
        open(
            &mut self.record,
            &Receiver {
                address: &self.address,
                peer: &self.peer,
                identity: &self.identity,
                keys: &self.keys,
            },
            bytes,
            is_prekey_message,
            &|session, position| entries.find(session, position),
            &mut self.rng,
        )
    }

    /// The same message with parts of the state left out: either the library asks for one, or it answers as
    /// it does with everything at hand.
    pub(crate) fn open_with_parts(&self, bytes: &[u8], is_prekey_message: bool) {
        let mut whole = self.clone();
        let expected = whole.open(bytes, is_prekey_message);
        for without in [0, 1, 2] {
            let mut record = if without == 0 {
                SessionRecord::from_parts(self.record.current().cloned(), None)
            } else {
                self.record.clone()
            };
            let before = record.clone();
            let got = open(
                &mut record,
                &Receiver {
                    address: &self.address,
                    peer: &self.peer,
                    identity: &self.identity,
                    keys: &self.keys,
                },
                bytes,
                is_prekey_message,
                &|session, position| match (without, position.0) {
                    (1, EntryGroup::MessageKeys(_) | EntryGroup::PostQuantumKeys(_))
                    | (2, EntryGroup::Chunks(_)) => EntryLookup::NotLoaded,
                    _ => self.entries.find(session, position),
                },
                &mut self.rng.clone(),
            );
            let asked = match without {
                0 => NotLoaded::Archive,
                1 => NotLoaded::MessageKeys,
                _ => NotLoaded::Chunks,
            };
            if got == Err(NotOpened::Decrypt(DecryptError::NotLoaded(asked))) {
                assert!(before == record, "asking changed the state");
            } else {
                let got = got.map(|it| it.plaintext);
                let expected = expected.as_ref().map(|it| it.plaintext.clone());
                assert_eq!(got, expected.map_err(|error| *error), "without {asked:?}");
            }
        }
    }

    /// Makes the changes of an opened message beside the record.
    fn changed(&mut self, changes: &Changes) {
        self.entries.apply(changes);
        if let Some(id) = changes.prekey_used {
            assert!(
                self.keys.one_time.remove(&id).is_some(),
                "a prekey is used once"
            );
        }
        if let Some(base_key) = changes.base_key_used {
            assert!(
                self.keys.used.insert(base_key),
                "a base key starts one session"
            );
        }
        if let Some(promoted) = changes.promoted {
            self.rows.archived.retain(|(id, _)| *id != promoted);
        }
        self.replaced(&Replaced {
            archived: changes.archived,
            sessions_dropped: changes.sessions_dropped.clone(),
        });
        self.write_current();
    }

    fn replaced(&mut self, replaced: &Replaced) {
        if let Some(archived) = replaced.archived {
            let newest = self.record.archived().first().expect("it was archived");
            assert_eq!(newest.id(), archived);
            self.rows
                .archived
                .insert(0, (archived, newest.to_bytes().to_vec()));
        }
        let dropped = &replaced.sessions_dropped;
        self.rows.archived.retain(|(id, _)| !dropped.contains(id));
        self.entries.forget(dropped);
    }

    fn write_current(&mut self) {
        let Some(session) = self.record.current() else {
            self.rows.state = None;
            return;
        };
        self.rows.state = Some(session.state_bytes().to_vec());
        let revision = (session.id(), session.braid_revision());
        let written = self.rows.braid.as_ref().map(|(id, at, _)| (*id, *at));
        if let Some(braid) = session.braid_bytes()
            && written != Some(revision)
        {
            self.rows.braid = Some((revision.0, revision.1, braid.to_vec()));
        }
    }

    /// Forgets what is not in the rows, and reads those; nothing is lost.
    pub(crate) fn restart(&mut self) {
        let current = self.rows.state.as_deref().map(|state| {
            let id = self.record.current().map(Session::id);
            let braid = self
                .rows
                .braid
                .as_ref()
                .filter(|(of, _, _)| Some(*of) == id && state[0] == 2)
                .map(|(_, _, bytes)| bytes.as_slice());
            Session::from_parts(state, braid).expect("its own rows")
        });
        let archived = self
            .rows
            .archived
            .iter()
            .map(|(_, bytes)| Session::from_bytes(bytes).expect("its own row"))
            .collect();
        let stored = SessionRecord::from_parts(current, Some(archived));
        assert!(
            stored == self.record,
            "a restart changed the sessions: {stored:?} for {:?}",
            self.record
        );
        self.record = stored;
        for (_, (group, _), entry) in self.entries.iter() {
            assert_eq!(EntryGroup::from_bytes(&group.to_bytes()), Ok(group));
            assert_eq!(Entry::from_bytes(&entry.to_bytes()).as_ref(), Ok(entry));
        }
    }

    /// Holds the entries to the counts inside the sessions, and the stored parts to their sizes.
    pub(crate) fn check(&self) {
        let mut total = 0;
        for session in self
            .record
            .current()
            .into_iter()
            .chain(self.record.archived())
        {
            check_session(session);
            let known = Known::of(session);
            let mut count = |group| {
                let count = (self.entries.iter())
                    .filter(|(id, (of, _), _)| *id == session.id() && *of == group)
                    .count();
                total += count;
                count as u32
            };
            for chain in &known.chains {
                let mut key = [5; 33];
                key[1..].copy_from_slice(&chain.ratchet_key);
                let key = PublicKey::from_bytes(&key).expect("33 bytes");
                let rows = count(EntryGroup::MessageKeys(key));
                assert_eq!(rows, chain.skipped, "skipped keys of a chain");
            }
            for epoch in &known.epochs {
                let rows = count(EntryGroup::PostQuantumKeys(epoch.number));
                assert_eq!(rows, epoch.kept, "kept keys of epoch {}", epoch.number);
            }
            if let Some(braid) = session.info().braid {
                assert!(count(EntryGroup::Chunks(braid.epoch)) <= 11, "pages");
            }
        }
        assert_eq!(total, self.entries.len(), "entries nobody counts");
    }
}

/// Whose sessions open a message.
pub(crate) struct Receiver<'a> {
    pub(crate) address: &'a ProtocolAddress,
    pub(crate) peer: &'a ProtocolAddress,
    pub(crate) identity: &'a IdentityKeyPair,
    pub(crate) keys: &'a Keys,
}

pub(crate) fn open(
    record: &mut SessionRecord,
    receiver: &Receiver<'_>,
    bytes: &[u8],
    is_prekey_message: bool,
    entries: &dyn Fn(&SessionId, &kith_protocol::EntryPosition) -> EntryLookup,
    rng: &mut ChaCha12Rng,
) -> Result<Decrypted, NotOpened> {
    let local = LocalDevice {
        address: receiver.address,
        identity: receiver.identity,
        registration_id: 1,
    };
    let remote = remote(receiver.peer);
    let trust = TrustOnFirstUse::default();
    if is_prekey_message {
        let message = PreKeySignalMessage::from_bytes(bytes).map_err(NotOpened::Parse)?;
        record.decrypt_prekey(
            &local,
            &remote,
            &message,
            receiver.keys,
            entries,
            &trust,
            rng,
        )
    } else {
        let message = SignalMessage::from_bytes(bytes).map_err(NotOpened::Parse)?;
        record.decrypt(&local, &remote, &message, entries, &trust, rng)
    }
    .map_err(NotOpened::Decrypt)
}

pub(crate) const fn remote(address: &ProtocolAddress) -> RemoteDevice<'_> {
    RemoteDevice {
        address,
        minimum_version: Version::V3,
    }
}

/// The stored form of a session gives the session, is what it says and stays within its bounds.
pub(crate) fn check_session(session: &Session) {
    let (state, braid) = (session.state_bytes(), session.braid_bytes());
    assert!(state.len() <= MAX_STATE, "a state of {}", state.len());
    assert_eq!(braid.is_some(), session.version() == Version::V4);
    if let Some(braid) = &braid {
        assert!(braid.len() <= MAX_BRAID, "a braid of {}", braid.len());
    }
    let parts = Session::from_parts(&state, braid.as_ref().map(|braid| braid.as_slice()));
    assert_eq!(parts.as_ref(), Ok(session), "from its parts");
    let whole = Session::from_bytes(&session.to_bytes());
    assert_eq!(whole.as_ref(), Ok(session), "from one blob");
}
