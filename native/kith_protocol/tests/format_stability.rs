//! Stored bytes of every shape still load, are written back as they were, and go on working. Damaged ones are refused
//! without a panic.
//!
//! `KITH_WRITE_VECTORS=1` writes `vectors/state_v1.json` (version 3) and `vectors/state_v2.json` (version 4) anew; doing so
//! means that stored state has changed its form.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use std::collections::BTreeMap;

use kith_protocol::{
    Entry, EntryGroup, LocalDevice, OfficialRecord, ProtocolAddress, PublicKey, RecordError,
    RemoteDevice, Session, SessionId, SessionRecord, SkippedKeyFormat, StateError, TrustOnFirstUse,
    Version,
};
use prost::Message as _;
use serde_json::{Value, json};
use support::SeededRng;
use support::ours::{Device, Loading, StoredBraid};
use support::peer::{Message, MessageType};
use support::records::{BRAID_STATES, Record, SessionState};

/// Devices whose every byte follows from the seed, in the states a session can be in.
struct States {
    sessions: BTreeMap<&'static str, Vec<u8>>,
    skipped: BTreeMap<&'static str, Vec<u8>>,
    /// A receiver with skipped keys, five chains and an archived session, and what it still has to open.
    receiver: Device,
    sender: Device,
    late: Vec<Message>,
}

fn send(from: &mut Device, to: &Device, text: &[u8]) -> Message {
    from.encrypt(&to.address, text).unwrap()
}

fn talk(alice: &mut Device, bob: &mut Device) {
    let message = send(alice, bob, b"question");
    bob.decrypt(&alice.address, &message).unwrap();
    let message = send(bob, alice, b"answer");
    alice.decrypt(&bob.address, &message).unwrap();
}

fn current(of: &Device, with: &Device) -> Vec<u8> {
    of.peer(&with.address).current.clone().unwrap()
}

fn states() -> States {
    let mut alice = Device::new("alice", Version::V3, SeededRng::new(1));
    let mut bob = Device::new("bob", Version::V3, SeededRng::new(2));
    let mut sessions = BTreeMap::new();

    bob.one_time = false;
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    sessions.insert("unanswered", current(&alice, &bob));
    bob.one_time = true;
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    sessions.insert("unanswered, with a one-time prekey", current(&alice, &bob));
    sessions.insert(
        "archived before an answer",
        alice.peer(&bob.address).archived[0].1.clone(),
    );
    let first = send(&mut alice, &bob, b"first");
    bob.decrypt(&alice.address, &first).unwrap();
    sessions.insert("responder", current(&bob, &alice));
    let answer = send(&mut bob, &alice, b"answer");
    alice.decrypt(&bob.address, &answer).unwrap();
    sessions.insert("answered", current(&alice, &bob));

    let bundle = alice.publish();
    bob.initiate(&alice.address, &bundle).unwrap();
    talk(&mut bob, &mut alice);
    let mut late = Vec::new();
    for round in 0..5_u8 {
        late.push(send(&mut alice, &bob, &[round]));
        talk(&mut alice, &mut bob);
    }
    sessions.insert("five chains", current(&bob, &alice));
    let seed = bob
        .peer(&alice.address)
        .entries
        .values()
        .next()
        .unwrap()
        .clone();
    // The same key as older clients store it.
    let expanded = bob
        .export(&alice.address)
        .to_bytes(SkippedKeyFormat::Expanded);
    let mut heir = bob.clone();
    heir.import(
        &alice.address,
        &OfficialRecord::from_bytes(&expanded).unwrap(),
    );
    let expanded = heir
        .peer(&alice.address)
        .entries
        .values()
        .next()
        .unwrap()
        .clone();
    States {
        sessions,
        skipped: BTreeMap::from([("seed", seed), ("expanded", expanded)]),
        receiver: bob,
        sender: alice,
        late,
    }
}

fn to_json(states: &States) -> Value {
    let hex = |map: &BTreeMap<&str, Vec<u8>>| -> Value {
        map.iter()
            .map(|(name, bytes)| ((*name).to_owned(), json!(hex::encode(bytes))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let rows = states.receiver.peer(&states.sender.address);
    json!({
        "description": "Stored state of format 1: sessions and skipped keys, and a receiver with messages that have not arrived.",
        "sessions": hex(&states.sessions),
        "skipped_keys": hex(&states.skipped),
        "conversation": {
            "receiver_identity": hex::encode(&states.receiver.store.identity),
            "current": hex::encode(rows.current.as_ref().unwrap()),
            "archived": rows.archived.iter().map(|(_, bytes)| hex::encode(bytes)).collect::<Vec<_>>(),
            "skipped": rows
                .entries
                .iter()
                .map(|((session, group, counter), key)| json!({
                    "session": hex::encode(session.as_bytes()),
                    // The group of a skipped key is the ratchet key of its chain.
                    "chain": hex::encode(group.to_bytes()),
                    "counter": counter,
                    "key": hex::encode(key),
                }))
                .collect::<Vec<_>>(),
            "late": states.late.iter().map(|message| hex::encode(&message.body)).collect::<Vec<_>>(),
        },
    })
}

fn hex_of(value: &Value) -> Vec<u8> {
    support::unhex(value.as_str().unwrap())
}

fn vectors() -> Value {
    frozen("state_v1", || to_json(&states()))
}

/// A file of frozen states, made anew where the environment says so.
fn frozen(name: &str, make: impl Fn() -> Value) -> Value {
    if std::env::var_os("KITH_WRITE_VECTORS").is_some() {
        let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = serde_json::to_string_pretty(&make()).unwrap();
        std::fs::write(path, text + "\n").unwrap();
    }
    support::vectors(name)
}

fn sessions() -> Vec<(String, Vec<u8>)> {
    vectors()["sessions"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.clone(), hex_of(value)))
        .collect()
}

#[test]
fn stored_sessions_and_keys_load_and_are_written_back_as_they_were() {
    for (name, bytes) in sessions() {
        let session = Session::from_bytes(&bytes).expect(&name);
        assert_eq!(session.to_bytes().as_slice(), bytes, "{name}");
        assert_eq!(bytes[..2], [1, 3], "{name}: format and version");
        assert_eq!(
            session.is_acknowledged(),
            !name.starts_with("unanswered"),
            "{name}"
        );
    }
    assert_eq!(sessions().len(), 6);
    let longest = sessions().iter().map(|(_, bytes)| bytes.len()).max();
    assert_eq!(longest, Some(620), "five chains, and nothing pending");
    for (name, value) in vectors()["skipped_keys"].as_object().unwrap() {
        let bytes = hex_of(value);
        let key = Entry::from_bytes(&bytes).expect(name);
        assert_eq!(key.to_bytes().as_slice(), bytes, "{name}");
        assert_eq!(bytes.len(), if name == "seed" { 33 } else { 81 });
    }
}

#[test]
fn the_same_randomness_gives_the_same_bytes() {
    assert_eq!(to_json(&states()), vectors());
}

#[test]
fn stored_state_of_an_earlier_build_goes_on() {
    let vectors = vectors();
    let conversation = &vectors["conversation"];
    let States { sender, .. } = states();
    for loading in [Loading::Whole, Loading::Parts] {
        let mut receiver = Device::new("bob", Version::V3, SeededRng::new(99));
        receiver.loading = loading;
        receiver.store.identity = hex_of(&conversation["receiver_identity"]);
        receiver.restart();
        let rows = receiver
            .store
            .peers
            .entry(sender.address.clone())
            .or_default();
        rows.current = Some(hex_of(&conversation["current"]));
        for archived in conversation["archived"].as_array().unwrap() {
            let bytes = hex_of(archived);
            let id = Session::from_bytes(&bytes).unwrap().id();
            rows.archived.push((id, bytes));
        }
        for row in conversation["skipped"].as_array().unwrap() {
            let session: [u8; 16] = hex_of(&row["session"]).try_into().unwrap();
            let chain = PublicKey::from_bytes(&hex_of(&row["chain"])).unwrap();
            let counter = u32::try_from(row["counter"].as_u64().unwrap()).unwrap();
            rows.entries.insert(
                (
                    SessionId::from_bytes(session),
                    EntryGroup::MessageKeys(chain),
                    counter,
                ),
                hex_of(&row["key"]),
            );
        }
        rows.check();
        for (round, body) in conversation["late"].as_array().unwrap().iter().enumerate() {
            let message = Message {
                kind: MessageType::Ordinary,
                body: hex_of(body),
            };
            let opened = receiver.decrypt(&sender.address, &message).unwrap();
            assert_eq!(opened.plaintext, [u8::try_from(round).unwrap()]);
        }
        let mut sender = sender.clone();
        talk(&mut sender, &mut receiver);
    }
}

#[test]
fn no_truncation_extension_or_change_of_a_stored_session_panics() {
    let mut rng = SeededRng::of_test(1);
    let (mut loaded, mut refused) = (0, 0);
    for (name, bytes) in sessions() {
        for length in 0..bytes.len() {
            assert!(
                Session::from_bytes(&bytes[..length]).is_err(),
                "{name}, {length} bytes"
            );
        }
        for extra in [1, 4, 16, 72, 1_000] {
            let longer = [bytes.as_slice(), &rng.bytes(extra)].concat();
            assert_eq!(
                Session::from_bytes(&longer).err(),
                Some(StateError::Damaged),
                "{name}"
            );
        }
        for at in 0..bytes.len() {
            for mask in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, 0x7f] {
                let mut changed = bytes.clone();
                changed[at] ^= mask;
                match Session::from_bytes(&changed) {
                    Err(error) => {
                        refused += 1;
                        let expected = match (at, changed[0]) {
                            // The formats of version 4.
                            (0, 2 | 3) => StateError::Damaged,
                            (0, format) => StateError::UnknownFormat(format),
                            _ => StateError::Damaged,
                        };
                        assert_eq!(error, expected, "{name}, byte {at}");
                    }
                    Ok(session) => {
                        loaded += 1;
                        use_up(&session);
                    }
                }
            }
        }
        for _ in 0..500 {
            let length = rng.below(700);
            let mut random = rng.bytes(length);
            if length > 3 && rng.chance(80) {
                random[..2].copy_from_slice(&[1, 3]);
                random[2] &= 3;
            }
            if let Ok(session) = Session::from_bytes(&random) {
                use_up(&session);
            }
        }
    }
    println!("{loaded} changed sessions load, {refused} are refused");
    assert!(refused > 100);
}

#[test]
fn a_stored_session_holds_at_most_five_chains_whatever_its_count_says() {
    let (_, five) = sessions()
        .into_iter()
        .find(|(name, _)| name == "five chains")
        .unwrap();
    // Nothing is pending, so the count lies before five chains of 72 bytes.
    let count = five.len() - 5 * 72 - 1;
    assert_eq!(five[count], 5);
    for chains in (0..=255_u8).filter(|chains| *chains != 5) {
        let mut changed = five[..count].to_vec();
        changed.push(chains);
        for _ in 0..chains {
            changed.extend(&five[count + 1..count + 73]);
        }
        let loaded = Session::from_bytes(&changed);
        assert_eq!(loaded.is_ok(), chains < 5, "{chains} chains");
        changed.truncate(five.len());
        assert!(chains < 5 || Session::from_bytes(&changed).is_err());
    }
}

/// What a session that should not exist must survive: everything.
fn use_up(session: &Session) {
    let again = Session::from_bytes(&session.to_bytes()).unwrap();
    assert_eq!(&again, session);
    let braid = session.braid_bytes();
    let braid = braid.as_deref().map(Vec::as_slice);
    let again = Session::from_parts(&session.state_bytes(), braid).unwrap();
    assert_eq!(&again, session);
    let _ = (session.info(), format!("{session:?}"));
    let mut record = SessionRecord::from_parts(Some(again), Some(Vec::new()));
    let mut rng = SeededRng::new(1);
    let device = Device::new("local", Version::V4, rng.fork());
    let local = LocalDevice {
        address: &device.address,
        identity: &device.identity,
        registration_id: 1,
    };
    let remote = RemoteDevice {
        address: &ProtocolAddress::new("remote", 1).unwrap(),
        minimum_version: Version::V3,
    };
    let trust = TrustOnFirstUse(None);
    let _ = record.encrypt(&local, &remote, b"text", &trust, 0, &mut rng);
    if let Some(session) = record.current() {
        let braid = session.braid_bytes();
        let braid = braid.as_deref().map(Vec::as_slice);
        let again = Session::from_parts(&session.state_bytes(), braid).unwrap();
        assert_eq!(&again, session);
    }
    let exported = OfficialRecord {
        sessions: record,
        entries: kith_protocol::MemoryEntries::default(),
    };
    let bytes = exported.to_bytes(SkippedKeyFormat::Seeds);
    let _ = OfficialRecord::from_bytes(&bytes);
}

#[test]
fn only_the_bytes_of_an_entry_are_one() {
    let mut entries: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for value in vectors()["skipped_keys"].as_object().unwrap().values() {
        entries.insert(hex_of(value)[0], hex_of(value));
    }
    for moment in vectors_v4()["states"].as_object().unwrap().values() {
        for row in moment["entries"].as_array().unwrap() {
            let bytes = hex_of(&row["entry"]);
            entries.entry(bytes[0]).or_insert(bytes);
        }
    }
    // A seed, expanded keys, a post-quantum key, a page of chunks.
    assert_eq!(
        entries.keys().copied().collect::<Vec<_>>(),
        [1, 2, 3, 4],
        "the kinds of entries"
    );
    for (own, bytes) in &entries {
        let entry = Entry::from_bytes(bytes).unwrap();
        assert_eq!(entry.to_bytes().as_slice(), bytes);
        for kind in 0..=255 {
            let mut changed = bytes.clone();
            changed[0] = kind;
            // A seed and a post-quantum key are both 32 bytes.
            let fits = kind == *own || [*own, kind] == [1, 3] || [*own, kind] == [3, 1];
            assert_eq!(Entry::from_bytes(&changed).is_ok(), fits, "{own} as {kind}");
        }
        for length in 0..bytes.len() {
            if let Ok(shorter) = Entry::from_bytes(&bytes[..length]) {
                // A page that is not full.
                assert_eq!((*own, length % 34), (4, 1), "{length}");
                assert_eq!(shorter.to_bytes().as_slice(), &bytes[..length]);
            }
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(Entry::from_bytes(&longer).is_err(), "{own}");
    }
}

#[test]
fn only_the_bytes_of_a_group_are_one() {
    let key = *Device::new("bob", Version::V4, SeededRng::new(3))
        .identity_key()
        .public_key();
    for group in [
        EntryGroup::MessageKeys(key),
        EntryGroup::PostQuantumKeys(0),
        EntryGroup::PostQuantumKeys(u64::MAX),
        EntryGroup::Chunks(1),
        EntryGroup::Chunks(0x0102_0304_0506_0708),
    ] {
        let bytes = group.to_bytes();
        assert_eq!(EntryGroup::from_bytes(&bytes), Ok(group));
        assert_eq!(
            (bytes.len(), bytes[0]),
            match group {
                EntryGroup::MessageKeys(_) => (33, 5),
                EntryGroup::PostQuantumKeys(_) => (9, 1),
                EntryGroup::Chunks(_) => (9, 2),
            }
        );
        if let EntryGroup::PostQuantumKeys(epoch) | EntryGroup::Chunks(epoch) = group {
            assert_eq!(bytes[1..], epoch.to_be_bytes());
        }
        for length in 0..bytes.len() {
            assert!(EntryGroup::from_bytes(&bytes[..length]).is_err());
        }
        assert!(EntryGroup::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
        for kind in (0..=255).filter(|kind| ![1, 2, 5].contains(kind)) {
            let mut changed = bytes.clone();
            changed[0] = kind;
            assert!(EntryGroup::from_bytes(&changed).is_err(), "{kind}");
        }
    }
}

#[test]
fn an_official_record_is_written_as_it_was_read_in_either_form() {
    let States {
        receiver, sender, ..
    } = states();
    let record = receiver.export(&sender.address);
    for format in [SkippedKeyFormat::Seeds, SkippedKeyFormat::Expanded] {
        let bytes = record.to_bytes(format);
        let again = OfficialRecord::from_bytes(&bytes).unwrap();
        assert_eq!(again.to_bytes(format), bytes);
        assert_eq!(again.sessions, record.sessions);
        assert_eq!(again.entries.len(), record.entries.len());
        if format == SkippedKeyFormat::Seeds {
            assert_eq!(again, record);
        }
    }
    // Seeds cannot be made from expanded keys: they stay what they are.
    let expanded =
        OfficialRecord::from_bytes(&record.to_bytes(SkippedKeyFormat::Expanded)).unwrap();
    assert_eq!(
        expanded.to_bytes(SkippedKeyFormat::Seeds),
        record.to_bytes(SkippedKeyFormat::Expanded)
    );
    let empty = OfficialRecord::default();
    assert!(empty.to_bytes(SkippedKeyFormat::Seeds).is_empty());
    assert_eq!(OfficialRecord::from_bytes(&[]), Ok(empty));
}

#[test]
fn no_damaged_official_record_panics_and_what_loads_is_within_the_limits() {
    let States {
        receiver, sender, ..
    } = states();
    let record = receiver.export(&sender.address);
    let mut rng = SeededRng::of_test(2);
    let (mut loaded, mut refused) = (0, 0);
    let mut take = |bytes: &[u8]| match OfficialRecord::from_bytes(bytes) {
        Ok(record) => {
            loaded += 1;
            let sessions = &record.sessions;
            assert!(sessions.archived().len() <= 40);
            for session in sessions.current().into_iter().chain(sessions.archived()) {
                assert!(session.info().receiving.len() <= 5);
                let again = Session::from_bytes(&session.to_bytes()).unwrap();
                assert_eq!(&again, session);
            }
            let again = record.to_bytes(SkippedKeyFormat::Seeds);
            assert_eq!(OfficialRecord::from_bytes(&again), Ok(record));
        }
        Err(_) => refused += 1,
    };
    // Records of version 4 are long, and each is one session: fewer changes of each.
    for moment in moments().iter().step_by(2) {
        let record = moment.receiver.export(&moment.sender.address);
        let mut bytes = record.to_bytes(SkippedKeyFormat::Seeds).to_vec();
        for at in 0..bytes.len() {
            let mask = 1 << rng.below(8);
            bytes[at] ^= mask;
            if at % 3 == 0 {
                take(&bytes);
            }
            bytes[at] ^= mask;
        }
        for length in (0..bytes.len()).step_by(7) {
            take(&bytes[..length]);
        }
    }
    for format in [SkippedKeyFormat::Seeds, SkippedKeyFormat::Expanded] {
        let bytes = record.to_bytes(format);
        for length in 0..bytes.len() {
            take(&bytes[..length]);
        }
        for at in 0..bytes.len() {
            for mask in [0x01, 0x08, 0x40, 0x80, 0xff] {
                let mut changed = bytes.to_vec();
                changed[at] ^= mask;
                take(&changed);
            }
        }
        for _ in 0..2_000 {
            let mut changed = bytes.to_vec();
            for _ in 0..1 + rng.below(6) {
                let at = rng.below(changed.len());
                changed[at] = rng.bytes(1)[0];
            }
            changed.truncate(1 + rng.below(changed.len()));
            take(&changed);
            let length = rng.below(300);
            take(&rng.bytes(length));
        }
    }
    println!("{loaded} changed records load, {refused} are refused");
    assert!(loaded > 100 && refused > 1_000);
}

#[test]
fn an_official_record_beyond_the_limits_is_refused() {
    let States {
        receiver, sender, ..
    } = states();
    let good = Record::of(
        &receiver.export(&sender.address),
        SkippedKeyFormat::Expanded,
    );
    let with = |change: &dyn Fn(&mut Record)| {
        let mut record = good.clone();
        change(&mut record);
        OfficialRecord::from_bytes(&record.encode_to_vec()).map(|_| ())
    };
    let damaged = Err(RecordError::Damaged);
    assert_eq!(with(&|_| {}), Ok(()));
    let archive = |count: usize| {
        move |record: &mut Record| {
            let session = SessionState::decode(record.previous[0].as_slice()).unwrap();
            record.previous = (0..count)
                .map(|number| {
                    let mut session = session.clone();
                    session.base_key[1] = u8::try_from(number).unwrap();
                    session.encode_to_vec()
                })
                .collect();
        }
    };
    assert_eq!(with(&archive(40)), Ok(()));
    assert_eq!(with(&archive(41)), damaged);
    assert_eq!(
        with(&|record| record.previous = vec![record.previous[0].clone(); 2]),
        damaged,
        "one session twice"
    );
    let chains = |count: usize, change: u8| {
        with(&|record| {
            let receiving = &mut record.session().receiving;
            while receiving.len() < count {
                let mut chain = receiving[0].clone();
                chain.public[1] ^= change * u8::try_from(receiving.len()).unwrap();
                chain.message_keys.clear();
                receiving.push(chain);
            }
            receiving.truncate(count);
        })
    };
    assert_eq!(chains(5, 1), Ok(()));
    assert_eq!(chains(6, 1), damaged, "six chains");
    assert_eq!(chains(2, 1), Ok(()));
    assert_eq!(chains(6, 0), damaged, "one chain twice");
    for count in [2_000, 2_001] {
        let result = with(&|record| {
            let chain = record
                .session()
                .receiving
                .iter_mut()
                .find(|chain| !chain.message_keys.is_empty())
                .unwrap();
            let keys = chain.message_keys[0].clone();
            chain.message_keys = (0..count)
                .rev()
                .map(|index| support::records::MessageKey {
                    index,
                    ..keys.clone()
                })
                .collect();
        });
        assert_eq!(result, if count == 2_000 { Ok(()) } else { damaged });
    }
    assert_eq!(
        with(&|record| {
            let chain = record
                .session()
                .receiving
                .iter_mut()
                .find(|chain| !chain.message_keys.is_empty())
                .unwrap();
            let keys = chain.message_keys[0].clone();
            chain.message_keys.push(keys);
        }),
        damaged,
        "a key twice"
    );
    for version in [0, 2, 5, u32::MAX] {
        assert_eq!(
            with(&|record| record.session().version = version),
            Err(RecordError::UnsupportedVersion(version))
        );
    }
    assert_eq!(
        with(&|record| record.session().version = 4),
        Err(RecordError::WithoutPostQuantumRatchet)
    );
    let fields: [fn(&mut SessionState) -> &mut Vec<u8>; 6] = [
        |session| &mut session.local_identity,
        |session| &mut session.remote_identity,
        |session| &mut session.root_key,
        |session| &mut session.base_key,
        |session| &mut session.sending.as_mut().unwrap().private,
        |session| &mut session.sending.as_mut().unwrap().public,
    ];
    for (at, field) in fields.iter().enumerate() {
        let shorter = with(&|record| {
            field(record.session()).pop();
        });
        let longer = with(&|record| field(record.session()).push(5));
        let empty = with(&|record| field(record.session()).clear());
        assert_eq!([shorter, longer, empty], [damaged; 3], "field {at}");
    }
    assert_eq!(with(&|record| record.session().sending = None), damaged);
    assert_eq!(with(&|record| record.previous[0].truncate(40)), damaged);
}

// ---- version 4 ------------------------------------------------------------------------------------------------------

/// A receiver whose braid is in a certain state, with what its sender has under way to it.
struct Moment {
    receiver: Device,
    sender: Device,
    /// Lost so far, and still to be opened.
    late: Vec<Message>,
    /// The next three.
    next: Vec<Message>,
}

/// Devices whose every byte follows from the seed, at the first moment the receiver is in each state of the braid.
fn moments() -> Vec<Moment> {
    let mut alice = Device::new("alice", Version::V4, SeededRng::new(11));
    let mut bob = Device::new("bob", Version::V4, SeededRng::new(12));
    let mut rng = SeededRng::new(13);
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    talk(&mut alice, &mut bob);
    let mut moments: BTreeMap<&str, Moment> = BTreeMap::new();
    let mut lost = Vec::new();
    while moments.len() < BRAID_STATES.len() {
        for turn in 0..2 {
            for _ in 0..1 + rng.below(7) {
                let (state, _) = bob.braid(&alice.address);
                moments.entry(state).or_insert_with(|| {
                    let (receiver, mut sender) = (bob.clone(), alice.clone());
                    // What is too old by now, or was on a ratchet key that is gone, is lost for good.
                    let mut trial = receiver.clone();
                    let late = lost
                        .iter()
                        .filter(|message| trial.decrypt(&alice.address, message).is_ok())
                        .cloned()
                        .collect();
                    let next = (0..3).map(|_| send(&mut sender, &bob, b"next")).collect();
                    Moment {
                        receiver,
                        sender,
                        late,
                        next,
                    }
                });
                if turn == 0 {
                    let message = send(&mut alice, &bob, b"late");
                    if rng.chance(20) {
                        lost.push(message);
                    } else {
                        bob.decrypt(&alice.address, &message).unwrap();
                    }
                } else {
                    let message = send(&mut bob, &alice, b"answer");
                    if rng.chance(80) {
                        alice.decrypt(&bob.address, &message).unwrap();
                    }
                }
            }
        }
    }
    let mut in_order = Vec::new();
    for state in BRAID_STATES {
        in_order.push(moments.remove(state).expect("every state was seen"));
    }
    in_order
}

/// A session in parts, and whole.
fn parts(session: &Session) -> Value {
    json!({
        "state": hex::encode(&*session.state_bytes()),
        "braid": hex::encode(&*session.braid_bytes().unwrap()),
        "revision": session.braid_revision(),
        "whole": hex::encode(&*session.to_bytes()),
    })
}

fn to_json_v4() -> Value {
    let hex_of_all = |messages: &[Message]| -> Vec<String> {
        messages
            .iter()
            .map(|message| hex::encode(&message.body))
            .collect()
    };
    let moments = moments();
    let states: serde_json::Map<_, _> = moments
        .iter()
        .map(|moment| {
            let rows = moment.receiver.peer(&moment.sender.address);
            let session = rows.current().unwrap();
            let braid = session.info().braid.unwrap();
            let mut value = parts(&session);
            value["epoch"] = json!(braid.epoch);
            value["entries"] = rows
                .entries
                .iter()
                .map(|((id, group, number), entry)| {
                    assert_eq!(*id, session.id());
                    json!({
                        "group": hex::encode(group.to_bytes()),
                        "number": number,
                        "entry": hex::encode(entry),
                    })
                })
                .collect();
            value["late"] = json!(hex_of_all(&moment.late));
            value["next"] = json!(hex_of_all(&moment.next));
            (braid.state.to_owned(), value)
        })
        .collect();

    // Before the first answer: what the initiator repeats lies in the braid.
    let mut alice = Device::new("alice", Version::V4, SeededRng::new(21));
    let mut bob = Device::new("bob", Version::V4, SeededRng::new(22));
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    let rows = |device: &Device, other: &Device| device.peer(&other.address).current().unwrap();
    let unsent = parts(&rows(&alice, &bob));
    send(&mut alice, &bob, b"first");
    let unanswered = parts(&rows(&alice, &bob));
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    let archived = alice.peer(&bob.address).archived[0].1.clone();
    let first = send(&mut alice, &bob, b"first");
    bob.decrypt(&alice.address, &first).unwrap();
    let responder = parts(&rows(&bob, &alice));
    json!({
        "description": "Stored state of version 4 in parts: the session with its braid in each state, its entries, and messages that have to open.",
        "receiver_identity": hex::encode(&moments[0].receiver.store.identity),
        "states": states,
        "beginnings": {
            "unsent": unsent,
            "unanswered": unanswered,
            "responder": responder,
        },
        "archived before an answer": hex::encode(archived),
    })
}

fn vectors_v4() -> Value {
    frozen("state_v2", to_json_v4)
}

/// Every frozen session of version 4: name, state, braid.
fn sessions_v4() -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let vectors = vectors_v4();
    ["states", "beginnings"]
        .iter()
        .flat_map(|kind| vectors[kind].as_object().unwrap())
        .map(|(name, value)| {
            (
                name.clone(),
                hex_of(&value["state"]),
                hex_of(&value["braid"]),
            )
        })
        .collect()
}

#[test]
fn the_same_randomness_gives_the_same_bytes_in_version_4() {
    // Not assert_eq: the two would fill the screen.
    assert!(to_json_v4() == vectors_v4(), "the stored form has changed");
}

#[test]
fn stored_sessions_of_version_4_load_from_their_parts_and_are_written_back_as_they_were() {
    let vectors = vectors_v4();
    let mut all = 0;
    for kind in ["states", "beginnings"] {
        for (name, value) in vectors[kind].as_object().unwrap() {
            let (state, braid) = (hex_of(&value["state"]), hex_of(&value["braid"]));
            let session = Session::from_parts(&state, Some(&braid)).expect(name);
            assert_eq!(session.version(), Version::V4);
            assert_eq!(session.state_bytes().as_slice(), state, "{name}");
            assert_eq!(session.braid_bytes().unwrap().as_slice(), braid, "{name}");
            assert_eq!(value["revision"], session.braid_revision(), "{name}");
            let whole = hex_of(&value["whole"]);
            assert_eq!(session.to_bytes().as_slice(), whole, "{name}");
            assert_eq!(Session::from_bytes(&whole).as_ref(), Ok(&session));
            let info = session.info().braid.unwrap();
            if kind == "states" {
                assert_eq!(
                    (info.state, value["epoch"].as_u64()),
                    (name.as_str(), Some(info.epoch))
                );
                assert!(state.len() <= 1_000, "{name}: {} bytes", state.len());
            }
            assert!(braid.len() < 5_120 + 1_600, "{name}: {} bytes", braid.len());
            // The format, and the version in the state.
            assert_eq!((&state[..2], braid[0], whole[0]), ([2, 4].as_slice(), 1, 3));
            all += 1;
        }
    }
    assert_eq!(all, 14);
    let archived = hex_of(&vectors["archived before an answer"]);
    let session = Session::from_bytes(&archived).unwrap();
    assert!(session.is_acknowledged());
    assert_eq!(session.to_bytes().as_slice(), archived);
}

#[test]
fn stored_state_of_version_4_goes_on_from_every_state() {
    let vectors = vectors_v4();
    for (moment, state) in moments().into_iter().zip(BRAID_STATES) {
        let value = &vectors["states"][state];
        for loading in [Loading::Whole, Loading::Parts] {
            let mut receiver = Device::new("bob", Version::V4, SeededRng::new(99));
            receiver.loading = loading;
            receiver.store.identity = hex_of(&vectors["receiver_identity"]);
            receiver.restart();
            let mut sender = moment.sender.clone();
            let rows = receiver
                .store
                .peers
                .entry(sender.address.clone())
                .or_default();
            let session =
                Session::from_parts(&hex_of(&value["state"]), Some(&hex_of(&value["braid"])))
                    .unwrap();
            rows.current = Some(hex_of(&value["state"]));
            rows.braid = Some(StoredBraid {
                session_id: session.id(),
                revision: session.braid_revision(),
                bytes: hex_of(&value["braid"]),
            });
            for row in value["entries"].as_array().unwrap() {
                let group = EntryGroup::from_bytes(&hex_of(&row["group"])).unwrap();
                let number = u32::try_from(row["number"].as_u64().unwrap()).unwrap();
                rows.entries
                    .insert((session.id(), group, number), hex_of(&row["entry"]));
            }
            rows.check();
            let of = |name: &str| -> Vec<Message> {
                let bodies = value[name].as_array().unwrap();
                bodies
                    .iter()
                    .map(|body| Message {
                        kind: MessageType::Ordinary,
                        body: hex_of(body),
                    })
                    .collect()
            };
            let next = of("next");
            assert_eq!(next.len(), 3);
            for (messages, text) in [(&next, "next"), (&of("late"), "late")] {
                for message in messages.iter().rev() {
                    let opened = receiver.decrypt(&sender.address, message);
                    assert_eq!(
                        opened.unwrap().plaintext,
                        text.as_bytes(),
                        "{state}, {text}"
                    );
                }
            }
            // On to the end of the epoch after, so that all that was stored is used.
            let (_, epoch) = receiver.braid(&sender.address);
            while receiver.braid(&sender.address).1 < epoch + 2 {
                talk(&mut sender, &mut receiver);
            }
        }
    }
}

#[test]
fn a_state_opens_with_its_own_braid_only() {
    let sessions = sessions_v4();
    let mut refused = 0;
    for (name, state, _) in &sessions {
        assert_eq!(
            Session::from_parts(state, None).err(),
            Some(StateError::Damaged),
            "{name}"
        );
        for (other, _, braid) in &sessions {
            let loaded = Session::from_parts(state, Some(braid)).is_ok();
            assert_eq!(loaded, name == other, "{name} with the braid of {other}");
            refused += usize::from(!loaded);
        }
    }
    assert_eq!(refused, 14 * 13);
    // A session of version 3 has none.
    for (name, bytes) in self::sessions() {
        assert!(Session::from_parts(&bytes, None).is_ok(), "{name}");
        assert_eq!(
            Session::from_parts(&bytes, Some(&sessions[0].2)).err(),
            Some(StateError::Damaged),
            "{name}"
        );
    }
}

#[test]
fn no_truncation_extension_or_change_of_a_state_or_a_braid_panics() {
    let mut rng = SeededRng::of_test(3);
    let (mut loaded, mut refused) = (0_usize, 0_usize);
    let mut take = |state: &[u8], braid: &[u8]| match Session::from_parts(state, Some(braid)) {
        Ok(session) => {
            loaded += 1;
            // Using a session costs much more than loading it.
            if loaded % 23 == 0 {
                use_up(&session);
            } else {
                // Private keys are clamped when they are read, all else is written as it was.
                let again = session.state_bytes();
                let differing = again.iter().zip(state).filter(|(a, b)| a != b).count();
                assert!(again.len() == state.len() && differing <= 2);
                assert_eq!(session.braid_bytes().unwrap().as_slice(), braid);
            }
        }
        Err(_) => refused += 1,
    };
    for (name, state, braid) in sessions_v4() {
        for length in 0..state.len() {
            let shorter = Session::from_parts(&state[..length], Some(&braid));
            assert!(shorter.is_err(), "{name}, state of {length} bytes");
        }
        for length in 0..braid.len() {
            let shorter = Session::from_parts(&state, Some(&braid[..length]));
            assert!(shorter.is_err(), "{name}, braid of {length} bytes");
        }
        for extra in [1, 2, 32, 1_000] {
            let more = rng.bytes(extra);
            let state_and_more = [state.as_slice(), &more].concat();
            let braid_and_more = [braid.as_slice(), &more].concat();
            assert!(Session::from_parts(&state_and_more, Some(&braid)).is_err());
            assert!(Session::from_parts(&state, Some(&braid_and_more)).is_err());
        }
        for at in 0..state.len() {
            for mask in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, 0x7f] {
                let mut changed = state.clone();
                changed[at] ^= mask;
                take(&changed, &braid);
            }
        }
        for at in 0..braid.len() {
            // The small fields lie in front, keys of thousands of bytes behind.
            let masks: &[u8] = if at < 400 {
                &[0x01, 0x02, 0x04, 0x80, 0xff]
            } else {
                &[0x40]
            };
            for mask in masks {
                let mut changed = braid.clone();
                changed[at] ^= mask;
                take(&state, &changed);
            }
        }
        for _ in 0..300 {
            let (mut state, mut braid) = (state.clone(), braid.clone());
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(state.len());
                state[at] = rng.bytes(1)[0];
                let at = rng.below(braid.len());
                braid[at] = rng.bytes(1)[0];
            }
            take(&state, &braid);
        }
    }
    println!("{loaded} changed sessions of version 4 load, {refused} are refused");
    assert!(loaded > 1_000 && refused > 1_000);

    let whole = hex_of(&vectors_v4()["archived before an answer"]);
    for length in 0..whole.len() {
        assert!(
            Session::from_bytes(&whole[..length]).is_err(),
            "{length} bytes"
        );
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        if let Ok(session) = Session::from_bytes(&changed) {
            assert_eq!(session.to_bytes().as_slice(), changed);
        }
    }
}

/// What a record may say that no session says: it is refused when it is taken over, not when its session is loaded later.
#[test]
fn an_official_record_of_version_4_beyond_the_limits_is_refused() {
    let moment = &moments()[7];
    let good = Record::of(
        &moment.receiver.export(&moment.sender.address),
        SkippedKeyFormat::Seeds,
    );
    let with = |change: &dyn Fn(&mut support::records::PostQuantum)| {
        let mut record = good.clone();
        let mut state = record.session().post_quantum().unwrap();
        change(&mut state);
        record.session().set_post_quantum(&state);
        OfficialRecord::from_bytes(&record.encode_to_vec()).map(|record| {
            let session = record.sessions.current().unwrap();
            let braid = session.braid_bytes();
            let braid = braid.as_deref().map(Vec::as_slice);
            let again = Session::from_parts(&session.state_bytes(), braid);
            assert_eq!(
                again.as_ref(),
                Ok(session),
                "what is taken over can be stored"
            );
        })
    };
    let damaged = Err(RecordError::Damaged);
    assert_eq!(with(&|_| {}), Ok(()));
    assert_eq!(with(&|state| state.chain = None), damaged);
    assert_eq!(
        with(&|state| state.braid.clear()),
        Err(RecordError::WithoutPostQuantumRatchet)
    );
    assert_eq!(with(&|state| state.braid[0] = 12 << 3 | 2), damaged);
    assert_eq!(with(&|state| state.braid.truncate(100)), damaged);
    type Change = fn(&mut support::records::KeyChain);
    let changes: [(&str, Change); 13] = [
        ("no direction", |chain| chain.direction = 2),
        ("a root of another length", |chain| chain.root.push(0)),
        ("no root", |chain| chain.root.clear()),
        ("no epochs", |chain| chain.epochs.clear()),
        ("a send epoch to come", |chain| {
            chain.send_epoch = chain.current_epoch + 1;
        }),
        ("a current epoch far away", |chain| {
            chain.current_epoch = u64::MAX;
        }),
        ("more epochs than are kept", |chain| {
            let epoch = chain.epochs.last().unwrap().clone();
            chain.epochs = vec![epoch; 4];
            chain.current_epoch = 3;
            chain.send_epoch = 0;
        }),
        ("a receiving chain without a key", |chain| {
            chain.epochs[0].receiving.as_mut().unwrap().chain.clear();
        }),
        ("a receiving chain with half a key", |chain| {
            chain.epochs[0].receiving.as_mut().unwrap().chain.pop();
        }),
        ("no receiving chain", |chain| {
            chain.epochs[0].receiving = None;
        }),
        ("half a remembered key", |chain| {
            chain.epochs[0]
                .receiving
                .as_mut()
                .unwrap()
                .kept
                .extend([0; 35]);
        }),
        ("a remembered key twice", |chain| {
            let half = chain.epochs[0].receiving.as_mut().unwrap();
            let key = [[0, 0, 0, 1].as_slice(), &[7; 32]].concat();
            half.kept = key.repeat(2);
        }),
        ("2 001 remembered keys", |chain| {
            let half = chain.epochs[0].receiving.as_mut().unwrap();
            half.counter = 3_000;
            half.kept = (1..=2_001_u32)
                .flat_map(|index| [index.to_be_bytes().as_slice(), &[7; 32]].concat())
                .collect();
        }),
    ];
    for (what, change) in changes {
        let result = with(&|state| change(state.chain.as_mut().unwrap()));
        assert_eq!(result, damaged, "{what}");
    }
}
