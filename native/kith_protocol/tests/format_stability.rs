//! Stored bytes of every shape still load, are written back as they were, and go on working. Damaged ones are refused
//! without a panic.
//!
//! `KITH_WRITE_VECTORS=1` writes `vectors/state_v1.json` anew; doing so means that stored state has changed its form.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use std::collections::BTreeMap;

use kith_protocol::{
    OfficialRecord, RecordError, Session, SkippedKey, SkippedKeyFormat, StateError,
};
use prost::Message as _;
use serde_json::{Value, json};
use support::SeededRng;
use support::ours::{Device, Loading};
use support::peer::{Message, MessageType};
use support::records::{Record, SessionState};

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
    let mut alice = Device::new("alice", SeededRng::new(1));
    let mut bob = Device::new("bob", SeededRng::new(2));
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
        .skipped
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
        .skipped
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
                .skipped
                .iter()
                .map(|((session, chain, counter), key)| json!({
                    "session": hex::encode(session.as_bytes()),
                    "chain": hex::encode(chain.to_bytes()),
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
    if std::env::var_os("KITH_WRITE_VECTORS").is_some() {
        let path = format!("{}/tests/vectors/state_v1.json", env!("CARGO_MANIFEST_DIR"));
        let text = serde_json::to_string_pretty(&to_json(&states())).unwrap();
        std::fs::write(path, text + "\n").unwrap();
    }
    support::vectors("state_v1")
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
        let key = SkippedKey::from_bytes(&bytes).expect(name);
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
        let mut receiver = Device::new("bob", SeededRng::new(99));
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
            let chain = kith_protocol::PublicKey::from_bytes(&hex_of(&row["chain"])).unwrap();
            let counter = u32::try_from(row["counter"].as_u64().unwrap()).unwrap();
            rows.skipped.insert(
                (
                    kith_protocol::SessionId::from_bytes(session),
                    chain,
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
                        let expected = if at == 0 {
                            StateError::UnknownFormat(changed[0])
                        } else {
                            StateError::Damaged
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
    let _ = (session.info(), format!("{session:?}"));
    let mut record = kith_protocol::SessionRecord::from_parts(Some(again), Some(Vec::new()));
    let trust = kith_protocol::TrustOnFirstUse(None);
    let _ = record.encrypt(b"text", &trust, 0);
    let exported = OfficialRecord {
        sessions: record,
        skipped: kith_protocol::MemorySkippedKeys::default(),
    };
    let bytes = exported.to_bytes(SkippedKeyFormat::Seeds);
    let _ = OfficialRecord::from_bytes(&bytes);
}

#[test]
fn only_the_bytes_of_a_skipped_key_are_one() {
    for (name, value) in vectors()["skipped_keys"].as_object().unwrap() {
        let bytes = hex_of(value);
        for length in 0..bytes.len() {
            assert!(SkippedKey::from_bytes(&bytes[..length]).is_err(), "{name}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(SkippedKey::from_bytes(&longer).is_err(), "{name}");
        for kind in 0..=255 {
            let mut changed = bytes.clone();
            changed[0] = kind;
            assert_eq!(
                SkippedKey::from_bytes(&changed).is_ok(),
                kind == bytes[0],
                "{name}"
            );
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
        assert_eq!(again.skipped.len(), record.skipped.len());
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
            let session = record.previous[0].clone();
            record.previous = vec![session; count];
        }
    };
    assert_eq!(with(&archive(40)), Ok(()));
    assert_eq!(with(&archive(41)), damaged);
    assert_eq!(
        with(&|record| {
            let chain = record.session().receiving[0].clone();
            record.session().receiving.push(chain);
        }),
        damaged,
        "six chains"
    );
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
    for version in [0, 2, 4, 5, u32::MAX] {
        assert_eq!(
            with(&|record| record.session().version = version),
            Err(RecordError::UnsupportedVersion(version))
        );
    }
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
