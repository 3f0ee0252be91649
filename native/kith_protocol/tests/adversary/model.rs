//! What an attacker brings along: parties that watch over their state, a protobuf reader and writer, and a
//! sender of version 4 of its own, made from the specification, that forges with the keys of a stolen or
//! malicious device.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use aes::Aes256;
use cbc::cipher::block_padding::{NoPadding, Pkcs7};
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use kith_protocol::{
    Ciphertext, DecryptError, Decrypted, Direction, EncryptError, EntryGroup, EntryLookup,
    EntryPosition, IdentityKey, IdentityKeyPair, InitiateError, KeyPair, KyberKeyPair, KyberPreKey,
    KyberPreKeyPublic, LocalDevice, MemoryEntries, MessageError, OfficialRecord, PreKey,
    PreKeyBundle, PreKeyId, PreKeySignalMessage, PreKeys, ProtocolAddress, PublicKey, RemoteDevice,
    Replaced, Session, SessionId, SessionInfo, SessionRecord, SignalMessage, SignedPreKey,
    SignedPreKeyPublic, SkippedKeyFormat, Version,
};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::Sha256;

pub(crate) const NOW: u64 = 1_790_000_000;
pub(crate) const ALICE: &str = "9d0652a3-dcc3-4d11-975f-74d61598733f";
pub(crate) const BOB: &str = "796abedb-ca4e-4f18-8803-1fde5b921f9f";
pub(crate) const MALLORY: &str = "11111111-2222-4333-8444-555555555555";
/// The Kyber prekey that is never used up.
pub(crate) const LAST_RESORT: PreKeyId = 99;

/// Why something did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum No {
    Parse(MessageError),
    Decrypt(DecryptError),
}

pub(crate) const INVALID: No = No::Decrypt(DecryptError::Invalid);
pub(crate) const DUPLICATE: No = No::Decrypt(DecryptError::Duplicate);

/// The public side of a party.
pub(crate) struct Peer {
    pub(crate) address: ProtocolAddress,
}

#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) signed: BTreeMap<PreKeyId, SignedPreKey>,
    pub(crate) one_time: BTreeMap<PreKeyId, PreKey>,
    pub(crate) kyber: BTreeMap<PreKeyId, KyberPreKey>,
    pub(crate) used: BTreeSet<(PreKeyId, [u8; 33])>,
    /// What was asked for.
    pub(crate) asked: RefCell<Vec<String>>,
}

impl PreKeys for Store {
    fn prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        self.asked.borrow_mut().push(format!("one-time {id}"));
        self.one_time.get(&id).map(|key| key.key_pair.clone())
    }

    fn signed_prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        self.asked.borrow_mut().push(format!("signed {id}"));
        self.signed.get(&id).map(|key| key.key_pair.clone())
    }

    fn kyber_prekey(&self, id: PreKeyId) -> Option<KyberKeyPair> {
        self.asked.borrow_mut().push(format!("kyber {id}"));
        self.kyber.get(&id).map(|key| key.key_pair.clone())
    }

    fn is_base_key_used(&self, signed_prekey_id: PreKeyId, base_key: &PublicKey) -> bool {
        self.used.contains(&(signed_prekey_id, base_key.to_bytes()))
    }
}

/// A device that keeps its state as the documentation says.
#[derive(Clone)]
pub(crate) struct Party {
    pub(crate) address: ProtocolAddress,
    pub(crate) identity: IdentityKeyPair,
    pub(crate) store: Store,
    pub(crate) record: SessionRecord,
    pub(crate) entries: MemoryEntries,
    pub(crate) minimum: Version,
    /// The identity keys remembered, by name.
    pub(crate) known: BTreeMap<String, IdentityKey>,
    pub(crate) rng: ChaCha12Rng,
}

pub(crate) fn rng(seed: u64) -> ChaCha12Rng {
    ChaCha12Rng::seed_from_u64(seed)
}

impl Party {
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let mut rng = rng(seed);
        let identity = IdentityKeyPair::generate(&mut rng);
        Self::with_identity(name, 1, identity, rng)
    }

    pub(crate) fn with_identity(
        name: &str,
        device: u8,
        identity: IdentityKeyPair,
        mut rng: ChaCha12Rng,
    ) -> Self {
        let signed = SignedPreKey::generate(7, &identity, &mut rng);
        let one_time = [11, 12].map(|id| (id, PreKey::generate(id, &mut rng)));
        let kyber =
            [21, LAST_RESORT].map(|id| (id, KyberPreKey::generate(id, &identity, &mut rng)));
        Self {
            address: ProtocolAddress::new(name, device).unwrap(),
            store: Store {
                signed: [(7, signed)].into(),
                one_time: one_time.into(),
                kyber: kyber.into(),
                used: BTreeSet::new(),
                asked: RefCell::default(),
            },
            identity,
            record: SessionRecord::default(),
            entries: MemoryEntries::default(),
            minimum: Version::V4,
            known: BTreeMap::new(),
            rng,
        }
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer {
            address: self.address.clone(),
        }
    }

    /// A bundle of a one-time Kyber and one-time EC prekey.
    pub(crate) fn bundle(&self) -> PreKeyBundle {
        self.bundle_of(Some(11), 21)
    }

    /// A bundle that only has what is never used up.
    pub(crate) fn last_resort_bundle(&self) -> PreKeyBundle {
        self.bundle_of(None, LAST_RESORT)
    }

    pub(crate) fn bundle_of(&self, one_time: Option<PreKeyId>, kyber: PreKeyId) -> PreKeyBundle {
        let signed = &self.store.signed[&7];
        let kyber = &self.store.kyber[&kyber];
        PreKeyBundle {
            registration_id: 5,
            identity_key: self.identity.identity_key(),
            signed_prekey: SignedPreKeyPublic {
                id: signed.id,
                public_key: *signed.key_pair.public_key(),
                signature: signed.signature.to_vec(),
            },
            prekey: one_time.map(|id| (id, *self.store.one_time[&id].key_pair.public_key())),
            kyber_prekey: Some(KyberPreKeyPublic {
                id: kyber.id,
                public_key: kyber.key_pair.public_key().clone(),
                signature: kyber.signature.to_vec(),
            }),
        }
    }

    pub(crate) fn initiate(
        &mut self,
        with: &Peer,
        bundle: &PreKeyBundle,
    ) -> Result<Replaced, InitiateError> {
        let before = self.record.clone();
        let known = self.known.get(with.address.name()).copied();
        let trust = |key: &IdentityKey, _: Direction| known.is_none_or(|known| known == *key);
        let local = LocalDevice {
            address: &self.address,
            identity: &self.identity,
            registration_id: 5,
        };
        let remote = RemoteDevice {
            address: &with.address,
            minimum_version: self.minimum,
        };
        let done = self
            .record
            .initiate(&local, &remote, bundle, &trust, NOW, &mut self.rng);
        match &done {
            Ok(replaced) => {
                self.known
                    .insert(with.address.name().to_owned(), bundle.identity_key);
                self.entries.forget(&replaced.sessions_dropped);
            }
            Err(_) => assert_eq!(self.record, before, "a refused bundle changed the record"),
        }
        done
    }

    pub(crate) fn try_send(&mut self, to: &Peer, text: &[u8]) -> Result<Ciphertext, EncryptError> {
        let before = self.record.clone();
        let trust = |_: &IdentityKey, _: Direction| true;
        let local = LocalDevice {
            address: &self.address,
            identity: &self.identity,
            registration_id: 5,
        };
        let remote = RemoteDevice {
            address: &to.address,
            minimum_version: self.minimum,
        };
        let sent = self
            .record
            .encrypt(&local, &remote, text, &trust, NOW, &mut self.rng);
        match &sent {
            Ok(sent) => self
                .entries
                .forget_groups(&sent.session_id, &sent.entries_dropped),
            Err(_) => assert_eq!(
                self.record, before,
                "a refused encryption changed the record"
            ),
        }
        sent
    }

    pub(crate) fn send(&mut self, to: &Peer, text: &[u8]) -> Ciphertext {
        self.try_send(to, text).expect("there is a session")
    }

    /// Opens with what the entry source answers; on failure the state must be as before, to the byte.
    pub(crate) fn open_by(
        &mut self,
        from: &Peer,
        bytes: &[u8],
        is_prekey_message: bool,
        find: &dyn Fn(&SessionId, &EntryPosition) -> EntryLookup,
    ) -> Result<Decrypted, No> {
        let before = self.record.clone();
        let stored = state(&before);
        let known = self.known.get(from.address.name()).copied();
        let trust = |key: &IdentityKey, _: Direction| known.is_none_or(|known| known == *key);
        let local = LocalDevice {
            address: &self.address,
            identity: &self.identity,
            registration_id: 5,
        };
        let remote = RemoteDevice {
            address: &from.address,
            minimum_version: self.minimum,
        };
        let opened = if is_prekey_message {
            PreKeySignalMessage::from_bytes(bytes)
                .map_err(No::Parse)
                .and_then(|message| {
                    self.record
                        .decrypt_prekey(
                            &local,
                            &remote,
                            &message,
                            &self.store,
                            find,
                            &trust,
                            &mut self.rng,
                        )
                        .map_err(No::Decrypt)
                })
        } else {
            SignalMessage::from_bytes(bytes)
                .map_err(No::Parse)
                .and_then(|message| {
                    self.record
                        .decrypt(&local, &remote, &message, find, &trust, &mut self.rng)
                        .map_err(No::Decrypt)
                })
        };
        if opened.is_err() {
            assert_eq!(
                self.record, before,
                "a message that failed changed the record"
            );
            assert_eq!(state(&self.record), stored, "or its bytes");
        }
        opened
    }

    /// Opens and stores what changed.
    pub(crate) fn decrypt(
        &mut self,
        from: &Peer,
        bytes: &[u8],
        is_prekey_message: bool,
    ) -> Result<Decrypted, No> {
        let entries = self.entries.clone();
        let find = |session: &SessionId, position: &EntryPosition| entries.find(session, position);
        let opened = self.open_by(from, bytes, is_prekey_message, &find)?;
        let changes = &opened.changes;
        self.entries.apply(changes);
        self.known
            .insert(from.address.name().to_owned(), opened.remote_identity);
        if let Some(id) = changes.prekey_used {
            self.store.one_time.remove(&id);
        }
        if let Some(id) = changes.kyber_prekey_used
            && id != LAST_RESORT
        {
            self.store.kyber.remove(&id);
        }
        if let Some((id, key)) = changes.base_key_used {
            self.store.used.insert((id, key.to_bytes()));
        }
        let current = self.record.current().unwrap();
        let again = Session::from_parts(
            &current.state_bytes(),
            current.braid_bytes().as_ref().map(|bytes| &bytes[..]),
        );
        assert_eq!(again.as_ref(), Ok(current), "what was stored comes back");
        Ok(opened)
    }

    pub(crate) fn open(
        &mut self,
        from: &Peer,
        bytes: &[u8],
        is_prekey_message: bool,
    ) -> Result<Vec<u8>, No> {
        self.decrypt(from, bytes, is_prekey_message)
            .map(|opened| opened.plaintext)
    }

    pub(crate) fn take(&mut self, from: &Peer, message: &Ciphertext) -> Result<Vec<u8>, No> {
        self.open(from, &message.bytes, message.is_prekey_message)
    }

    pub(crate) fn info(&self) -> SessionInfo {
        self.record.current().unwrap().info()
    }

    pub(crate) fn braid(&self) -> (&'static str, u64) {
        let braid = self.info().braid.unwrap();
        (braid.state, braid.epoch)
    }

    pub(crate) fn official(&self) -> Vec<u8> {
        OfficialRecord {
            sessions: self.record.clone(),
            entries: self.entries.clone(),
        }
        .to_bytes(SkippedKeyFormat::Seeds)
        .to_vec()
    }

    /// Takes over a record of the official format.
    pub(crate) fn import(&mut self, bytes: &[u8]) {
        let official = OfficialRecord::from_bytes(bytes).expect("a record");
        self.record = official.sessions;
        self.entries = official.entries;
    }

    /// Entries of the current session: message keys, post-quantum keys, pages of chunks.
    pub(crate) fn census(&self) -> (usize, usize, usize) {
        let mut count = (0, 0, 0);
        for (_, (group, _), _) in self.entries.iter() {
            match group {
                EntryGroup::MessageKeys(_) => count.0 += 1,
                EntryGroup::PostQuantumKeys(_) => count.1 += 1,
                EntryGroup::Chunks(_) => count.2 += 1,
            }
        }
        count
    }
}

/// Every byte a record is stored as.
pub(crate) fn state(record: &SessionRecord) -> Vec<Vec<u8>> {
    record
        .current()
        .into_iter()
        .chain(record.archived())
        .map(|session| session.to_bytes().to_vec())
        .collect()
}

/// Two parties who have heard from each other.
pub(crate) fn pair() -> (Party, Party) {
    pair_of(ALICE, BOB)
}

pub(crate) fn pair_of(one: &str, other: &str) -> (Party, Party) {
    let mut a = Party::new(one, 1);
    let mut b = Party::new(other, 2);
    a.initiate(&b.peer(), &b.bundle()).unwrap();
    let first = a.send(&b.peer(), b"first");
    assert!(first.is_prekey_message);
    b.take(&a.peer(), &first).unwrap();
    round(&mut b, &mut a);
    round(&mut a, &mut b);
    (a, b)
}

/// The same without the post-quantum ratchet.
pub(crate) fn pair_v3() -> (Party, Party) {
    let mut a = Party::new(ALICE, 1);
    let mut b = Party::new(BOB, 2);
    a.minimum = Version::V3;
    b.minimum = Version::V3;
    let bundle = PreKeyBundle {
        kyber_prekey: None,
        ..b.bundle()
    };
    a.initiate(&b.peer(), &bundle).unwrap();
    let first = a.send(&b.peer(), b"first");
    b.take(&a.peer(), &first).unwrap();
    round(&mut b, &mut a);
    round(&mut a, &mut b);
    (a, b)
}

/// One message.
pub(crate) fn round(from: &mut Party, to: &mut Party) {
    let message = from.send(&to.peer(), b"a round");
    assert_eq!(
        to.take(&from.peer(), &message).as_deref(),
        Ok(&b"a round"[..])
    );
}

/// Talks in turns, `a` first, until it is as wished after a message of `b`.
pub(crate) fn talk(a: &mut Party, b: &mut Party, until: impl Fn(&Party, &Party) -> bool) {
    for _ in 0..1_000 {
        if until(a, b) {
            return;
        }
        round(a, b);
        round(b, a);
    }
    panic!("never so: {:?} {:?}", a.braid(), b.braid());
}

/// The side of Bob makes the keys of epoch 2, and has not begun; Alice waits for the header.
pub(crate) fn epoch_two() -> (Party, Party) {
    let (mut a, mut b) = pair();
    talk(&mut a, &mut b, |a, _| a.braid() == ("NoHeaderReceived", 2));
    round(&mut a, &mut b);
    assert_eq!(b.braid(), ("KeysUnsampled", 2));
    (a, b)
}

// Protobuf

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    Fixed(Vec<u8>),
}

pub(crate) type Fields = Vec<(u32, Value)>;

pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn read_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

pub(crate) fn parse(mut bytes: &[u8]) -> Fields {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes);
        let value = match key & 7 {
            0 => Value::Number(read_varint(&mut bytes)),
            1 | 5 => {
                let (value, rest) = bytes.split_at(if key & 7 == 1 { 8 } else { 4 });
                bytes = rest;
                Value::Fixed(value.to_vec())
            }
            2 => {
                let length = read_varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Value::Bytes(value.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        fields.push(((key >> 3) as u32, value));
    }
    fields
}

pub(crate) fn write(fields: &[(u32, Value)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in fields {
        let number = u64::from(*number) << 3;
        match value {
            Value::Number(value) => {
                out.extend(varint(number));
                out.extend(varint(*value));
            }
            Value::Bytes(value) => {
                out.extend(varint(number | 2));
                out.extend(varint(value.len() as u64));
                out.extend(value);
            }
            Value::Fixed(value) => {
                out.extend(varint(number | if value.len() == 8 { 1 } else { 5 }));
                out.extend(value);
            }
        }
    }
    out
}

pub(crate) fn bytes_of(fields: &Fields, number: u32) -> Vec<u8> {
    fields
        .iter()
        .find_map(|(n, value)| match value {
            Value::Bytes(bytes) if *n == number => Some(bytes.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

pub(crate) fn all_of(fields: &Fields, number: u32) -> Vec<Vec<u8>> {
    fields
        .iter()
        .filter_map(|(n, value)| match value {
            Value::Bytes(bytes) if *n == number => Some(bytes.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn number_of(fields: &Fields, number: u32) -> u64 {
    fields
        .iter()
        .find_map(|(n, value)| match value {
            Value::Number(value) if *n == number => Some(*value),
            _ => None,
        })
        .unwrap_or_default()
}

/// Sets the first field of the number, or adds one.
pub(crate) fn set(fields: &mut Fields, number: u32, value: Value) {
    match fields.iter_mut().find(|(n, _)| *n == number) {
        Some(field) => field.1 = value,
        None => fields.push((number, value)),
    }
}

pub(crate) fn drop_field(fields: &mut Fields, number: u32) {
    fields.retain(|(n, _)| *n != number);
}

/// Changes the message at a path of fields inside an encoded message.
pub(crate) fn edit(bytes: &[u8], path: &[u32], change: &mut dyn FnMut(&mut Fields)) -> Vec<u8> {
    let mut fields = parse(bytes);
    match path {
        [] => change(&mut fields),
        [first, rest @ ..] => {
            let inner = edit(&bytes_of(&fields, *first), rest, change);
            set(&mut fields, *first, Value::Bytes(inner));
        }
    }
    write(&fields)
}

/// The fields of a message: version byte ‖ protobuf ‖ `tail` bytes.
pub(crate) fn fields(message: &[u8], tail: usize) -> Fields {
    parse(&message[1..message.len() - tail])
}

/// A message whose protobuf is changed; version byte and MAC stay.
pub(crate) fn changed(message: &[u8], tail: usize, change: impl FnOnce(&mut Fields)) -> Vec<u8> {
    let mut fields = fields(message, tail);
    change(&mut fields);
    [
        &message[..1],
        &write(&fields),
        &message[message.len() - tail..],
    ]
    .concat()
}

// Primitives

pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

pub(crate) fn hkdf<const N: usize>(salt: &[u8], ikm: &[u8], info: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    Hkdf::<Sha256>::new(Some(salt), ikm)
        .expand(info, &mut out)
        .unwrap();
    out
}

fn keccak(state: &mut [u64; 25]) {
    let mut lfsr = 1_u8;
    for _ in 0..24 {
        let mut parity = [0; 5];
        for (i, lane) in state.iter().enumerate() {
            parity[i % 5] ^= lane;
        }
        for (i, lane) in state.iter_mut().enumerate() {
            *lane ^= parity[(i + 4) % 5] ^ parity[(i + 1) % 5].rotate_left(1);
        }
        let (mut x, mut y, mut lane) = (1, 0, state[1]);
        for t in 0..24_u32 {
            (x, y) = (y, (2 * x + 3 * y) % 5);
            let rotated = lane.rotate_left((t + 1) * (t + 2) / 2 % 64);
            lane = std::mem::replace(&mut state[x + 5 * y], rotated);
        }
        for row in state.chunks_exact_mut(5) {
            let old: [u64; 5] = (&*row).try_into().unwrap();
            for (i, lane) in row.iter_mut().enumerate() {
                *lane = old[i] ^ (!old[(i + 1) % 5] & old[(i + 2) % 5]);
            }
        }
        for j in 0..7 {
            if lfsr & 1 == 1 {
                state[0] ^= 1 << ((1_u32 << j) - 1);
            }
            lfsr = (lfsr << 1) ^ if lfsr & 0x80 == 0 { 0 } else { 0x71 };
        }
    }
}

pub(crate) fn sha3_256(input: &[u8]) -> [u8; 32] {
    let mut padded = input.to_vec();
    padded.push(6);
    padded.resize(padded.len().next_multiple_of(136), 0);
    *padded.last_mut().unwrap() |= 0x80;
    let mut state = [0; 25];
    for block in padded.chunks_exact(136) {
        for (lane, bytes) in state.iter_mut().zip(block.chunks_exact(8)) {
            *lane ^= u64::from_le_bytes(bytes.try_into().unwrap());
        }
        keccak(&mut state);
    }
    let mut out = [0; 32];
    for (bytes, lane) in out.chunks_exact_mut(8).zip(state) {
        bytes.copy_from_slice(&lane.to_le_bytes());
    }
    out
}

// The malicious sender

/// What a forged message says inside.
#[derive(Clone)]
pub(crate) enum Body {
    Text(Vec<u8>),
    /// Whole blocks, encrypted without padding.
    Blocks(Vec<u8>),
    /// The ciphertext itself.
    Raw(Vec<u8>),
}

/// A sender that has all keys of a party and keeps no rule.
#[derive(Clone)]
pub(crate) struct Forger {
    pub(crate) local: Vec<u8>,
    pub(crate) remote: Vec<u8>,
    pub(crate) version_byte: u8,
    pub(crate) root: Vec<u8>,
    pub(crate) ratchet: Vec<u8>,
    pub(crate) chain: [u8; 32],
    pub(crate) counter: u32,
    /// Of each epoch the counter and the chain for sending.
    pub(crate) epochs: BTreeMap<u64, (u32, [u8; 32])>,
    pub(crate) epoch: u64,
    pub(crate) mac_key: Vec<u8>,
    pub(crate) addresses: Option<Vec<u8>>,
    pub(crate) body: Body,
}

/// The fields of the current session of an official record.
pub(crate) fn session_of(official: &[u8]) -> Fields {
    parse(&bytes_of(&parse(official), 1))
}

/// The fields of the state of the braid, and its number.
pub(crate) fn braid_of(session: &Fields) -> (u32, Fields) {
    let spqr = parse(&bytes_of(session, 15));
    let inner = parse(&bytes_of(&spqr, 3));
    let (number, Value::Bytes(bytes)) = &inner[0] else {
        panic!("a state");
    };
    (*number, parse(bytes))
}

impl Forger {
    pub(crate) fn of(party: &Party) -> Self {
        let session = session_of(&party.official());
        let sending = parse(&bytes_of(&session, 6));
        let chain = parse(&bytes_of(&sending, 3));
        let spqr = parse(&bytes_of(&session, 15));
        let mut epochs = BTreeMap::new();
        let (mut epoch, mut mac_key) = (0, Vec::new());
        if number_of(&session, 1) == 4 {
            let chains = parse(&bytes_of(&spqr, 2));
            let all = all_of(&chains, 3);
            let newest = number_of(&chains, 2);
            for (i, bytes) in all.iter().enumerate() {
                let half = parse(&bytes_of(&parse(bytes), 1));
                if let Ok(key) = bytes_of(&half, 2).try_into() {
                    epochs.insert(
                        newest - (all.len() - 1 - i) as u64,
                        (number_of(&half, 1) as u32, key),
                    );
                }
            }
            let inner = parse(&bytes_of(&braid_of(&session).1, 1));
            epoch = number_of(&inner, 1);
            mac_key = bytes_of(&parse(&bytes_of(&inner, 2)), 2);
        }
        Self {
            local: bytes_of(&session, 2),
            remote: bytes_of(&session, 3),
            version_byte: (number_of(&session, 1) as u8) << 4 | 4,
            root: bytes_of(&session, 4),
            ratchet: bytes_of(&sending, 1),
            chain: bytes_of(&chain, 2).try_into().unwrap(),
            counter: number_of(&chain, 1) as u32,
            epochs,
            epoch,
            mac_key,
            addresses: None,
            body: Body::Text(b"forged".to_vec()),
        }
    }

    /// Goes on in the sending chain without a message.
    pub(crate) fn skip(&mut self, count: u32) {
        for _ in 0..count {
            self.chain = hmac(&self.chain, &[&[2]]);
            self.counter = self.counter.wrapping_add(1);
        }
    }

    /// The next key for messages of an epoch, which is of the chain of the epoch before.
    pub(crate) fn key(&mut self, epoch: u64) -> (u32, [u8; 32]) {
        let (counter, chain) = self.epochs.get_mut(&(epoch - 1)).expect("a chain");
        *counter += 1;
        let info = [
            &counter.to_be_bytes()[..],
            b"Signal PQ Ratchet V1 Chain Next",
        ]
        .concat();
        let out: [u8; 64] = hkdf(&[0; 32], &*chain, &info);
        chain.copy_from_slice(&out[..32]);
        (*counter, out[32..].try_into().unwrap())
    }

    /// A whole message, authentic, with any field 5 and the key that belongs to it.
    pub(crate) fn message(&mut self, field: Option<&[u8]>, salt: &[u8; 32]) -> Vec<u8> {
        let seed = hmac(&self.chain, &[&[1]]);
        let counter = self.counter;
        self.skip(1);
        let keys: [u8; 80] = hkdf(salt, &seed, b"WhisperMessageKeys");
        let (key, rest) = keys.split_at(32);
        let (mac_key, iv) = rest.split_at(32);
        let cipher = cbc::Encryptor::<Aes256>::new_from_slices(key, iv).unwrap();
        let ciphertext = match &self.body {
            Body::Text(text) => cipher.encrypt_padded_vec::<Pkcs7>(text),
            Body::Blocks(blocks) => cipher.encrypt_padded_vec::<NoPadding>(blocks),
            Body::Raw(bytes) => bytes.clone(),
        };
        let mut fields = vec![
            (1, Value::Bytes(self.ratchet.clone())),
            (2, Value::Number(counter.into())),
            (3, Value::Number(0)),
            (4, Value::Bytes(ciphertext)),
        ];
        if let Some(field) = field {
            fields.push((5, Value::Bytes(field.to_vec())));
        }
        if let Some(addresses) = &self.addresses {
            fields.push((6, Value::Bytes(addresses.clone())));
        }
        let mut message = vec![self.version_byte];
        message.extend(write(&fields));
        let mac = hmac(mac_key, &[&self.local, &self.remote, &message]);
        message.extend(&mac[..8]);
        message
    }

    /// An authentic message of the post-quantum ratchet's next key with a payload.
    pub(crate) fn say(&mut self, epoch: u64, kind: u8, chunk: Option<(u64, &[u8])>) -> Vec<u8> {
        let (index, key) = self.key(epoch);
        self.message(Some(&field(epoch, index, kind, chunk)), &key)
    }

    /// All chunks of data in order, each in a message.
    pub(crate) fn chunks(&mut self, kind: u8, data: &[u8]) -> Vec<Vec<u8>> {
        let epoch = self.epoch;
        data.chunks_exact(32)
            .enumerate()
            .map(|(i, chunk)| self.say(epoch, kind, Some((i as u64, chunk))))
            .collect()
    }

    /// Header and its MAC under the key of the epoch.
    pub(crate) fn header(&self, header: &[u8]) -> Vec<u8> {
        let mac = hmac(
            &self.mac_key,
            &[
                b"Signal_PQCKA_V1_MLKEM768:ekheader",
                &self.epoch.to_be_bytes(),
                header,
            ],
        );
        [header, &mac].concat()
    }
}

/// Field 5.
pub(crate) fn field(epoch: u64, index: u32, kind: u8, chunk: Option<(u64, &[u8])>) -> Vec<u8> {
    let mut out = vec![1];
    out.extend(varint(epoch));
    out.extend(varint(index.into()));
    out.push(kind);
    if let Some((i, data)) = chunk {
        out.extend(varint(i));
        out.extend(data);
    }
    out
}
