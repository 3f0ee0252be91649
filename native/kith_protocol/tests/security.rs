//! What an attacker gains and does not gain: from a stolen state, from messages changed on the way, from replays and
//! forgeries.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use kith_protocol::limits::{
    MAX_MESSAGE_LEN, MAX_PLAINTEXT_LEN, MAX_UNACKNOWLEDGED_SESSION_AGE, MESSAGE_MAC_LEN,
};
use kith_protocol::{
    BundleError, DecryptError, Direction, EncryptError, EntryGroup, EntryLookup, EntryPosition,
    IdentityKey, InitiateError, KyberPreKeyPublic, KyberPublicKey, LocalDevice, OfficialRecord,
    PreKeyBundle, PreKeySignalMessage, ProtocolAddress, PublicKey, RemoteDevice, SessionId,
    SignalMessage, SkippedKeyFormat, TrustOnFirstUse, Version,
};
use support::SeededRng;
use support::network::Reason;
use support::ours::{Device, Loading};
use support::peer::{Message, MessageType};
use support::protobuf::{self, Outer, PostQuantumHeader, Value};
use support::records::{Chain, PostQuantum, Record};

const VERSIONS: [Version; 2] = [Version::V3, Version::V4];

/// Two devices that know nothing of each other.
fn strangers(version: Version, seed: u64) -> (Device, Device) {
    let mut rng = SeededRng::of_test(seed);
    (
        Device::new("alice", version, rng.fork()),
        Device::new("bob", version, rng.fork()),
    )
}

/// Two devices of which the first started a session; nothing is sent yet.
fn started(version: Version, seed: u64) -> (Device, Device) {
    let (mut alice, mut bob) = strangers(version, seed);
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    (alice, bob)
}

/// Two devices with a session both have used.
fn acquainted(version: Version, seed: u64) -> (Device, Device) {
    let (mut alice, mut bob) = started(version, seed);
    talk(&mut alice, &mut bob);
    (alice, bob)
}

/// A peer of whom at least this version is asked.
const fn remote(address: &ProtocolAddress, minimum_version: Version) -> RemoteDevice<'_> {
    RemoteDevice {
        address,
        minimum_version,
    }
}

fn send(from: &mut Device, to: &Device, text: &[u8]) -> Message {
    from.encrypt(&to.address, text).unwrap()
}

fn open(by: &mut Device, from: &Device, message: &Message) -> Result<Vec<u8>, Reason> {
    by.decrypt(&from.address, message)
        .map(|decrypted| decrypted.plaintext)
}

/// A message each way.
fn talk(alice: &mut Device, bob: &mut Device) {
    let message = send(alice, bob, b"question");
    assert_eq!(open(bob, alice, &message).unwrap(), b"question");
    let message = send(bob, alice, b"answer");
    assert_eq!(open(alice, bob, &message).unwrap(), b"answer");
}

/// A copy of a device in the hands of a thief, with randomness of the thief's own.
fn stolen(device: &Device) -> Device {
    let mut thief = device.clone();
    thief.rng = SeededRng::new(device.rng.seed() ^ 0xdead_beef);
    thief.restart();
    thief
}

#[test]
fn a_stolen_receiver_state_opens_the_message_not_yet_received_and_not_the_one_before() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 1);
        let [first, second] = [b"first", b"other"].map(|text| send(&mut alice, &bob, text));
        assert_eq!(open(&mut bob, &alice, &first).unwrap(), b"first");

        let mut thief = stolen(&bob);
        let before = thief.stored();
        assert_eq!(open(&mut thief, &alice, &first), Err(Reason::Duplicate));
        assert_eq!(thief.stored(), before);
        assert_eq!(open(&mut thief, &alice, &second).unwrap(), b"other");

        assert_eq!(open(&mut bob, &alice, &second).unwrap(), b"other");
        let mut thief = stolen(&bob);
        for gone in [&first, &second] {
            assert_eq!(open(&mut thief, &alice, gone), Err(Reason::Duplicate));
        }
    }
}

#[test]
fn the_key_of_an_opened_message_is_in_no_stored_byte_and_that_of_a_skipped_one_until_it_is_opened()
{
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 2);
        let late = send(&mut alice, &bob, b"late");
        let last = send(&mut alice, &bob, b"last");
        open(&mut bob, &alice, &last).unwrap();
        let rows = bob.peer(&alice.address);
        // In version 4 there are two: the message key, and the post-quantum key that is mixed in.
        let keys: Vec<Vec<u8>> = rows
            .entries
            .iter()
            .filter(|((_, group, _), _)| !matches!(group, EntryGroup::Chunks(_)))
            .map(|(_, entry)| entry[1..].to_vec())
            .collect();
        assert_eq!(keys.len(), if version == Version::V4 { 2 } else { 1 });
        let contains = |device: &Device, key: &[u8]| {
            device
                .stored()
                .windows(key.len())
                .any(|window| window == key)
        };
        for key in &keys {
            assert!(contains(&bob, key), "the search finds what is there");
        }

        let mut early_thief = stolen(&bob);
        assert_eq!(open(&mut early_thief, &alice, &late).unwrap(), b"late");
        assert_eq!(open(&mut bob, &alice, &late).unwrap(), b"late");
        for key in &keys {
            assert!(!contains(&bob, key));
        }
        assert_eq!(
            open(&mut stolen(&bob), &alice, &late),
            Err(Reason::Duplicate)
        );
    }
}

/// The state of the other side as far as `victim`'s stolen state gives it: the sending chain seen as a receiving one.
fn mirrored(victim: &Device, other: &Device) -> OfficialRecord {
    let mut record = Record::of(&victim.export(&other.address), SkippedKeyFormat::Expanded);
    let session = record.session();
    std::mem::swap(&mut session.local_identity, &mut session.remote_identity);
    let sending = session.sending.clone().unwrap();
    session.receiving = vec![Chain {
        private: Vec::new(),
        ..sending
    }];
    session.pending = None;
    session.pending_kyber = None;
    if let Some(state) = session.post_quantum() {
        session.set_post_quantum(&state.mirrored());
    }
    record.previous.clear();
    record.official()
}

#[test]
fn a_stolen_sender_state_opens_what_follows_in_its_chain_and_nothing_that_was_sent_before() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 3);
        let before: Vec<_> = (0..3).map(|_| send(&mut alice, &bob, b"before")).collect();
        let mut thief = stolen(&bob);
        thief.import(&alice.address, &mirrored(&alice, &bob));
        let mut as_alice = stolen(&alice);
        let after = send(&mut alice, &bob, b"after");
        for message in &before {
            assert_eq!(open(&mut thief, &alice, message), Err(Reason::Duplicate));
            // Nor does the state as it is open what its owner sent.
            assert_eq!(open(&mut as_alice, &bob, message), Err(Reason::Tampered));
        }
        assert_eq!(open(&mut thief, &alice, &after).unwrap(), b"after");
        for message in &before {
            assert_eq!(open(&mut bob, &alice, message).unwrap(), b"before");
        }
    }
}

/// After the theft of everything the victim has, the thief reads along, until:
///
/// - what the peer sends heals with the first message sent after the peer heard from a ratchet key that the victim drew
///   after the theft: one round trip after the victim's next new key;
/// - what the victim sends heals with the first message under that key, half a round trip earlier.
#[test]
fn one_round_trip_after_a_theft_the_stolen_state_opens_nothing_new() {
    for (version, initiator_is_robbed) in VERSIONS
        .into_iter()
        .flat_map(|version| [(version, true), (version, false)])
    {
        let (mut alice, mut bob) = acquainted(version, 4);
        if initiator_is_robbed {
            std::mem::swap(&mut alice, &mut bob);
        }
        // Bob is robbed. He has just drawn a key (or sent under one), which the thief has as well.
        let mut thief = stolen(&bob);
        let mut eavesdropper = stolen(&alice);
        eavesdropper.import(&bob.address, &mirrored(&bob, &alice));

        let same_chain = send(&mut alice, &bob, b"peer, old key");
        assert_eq!(
            open(&mut thief, &alice, &same_chain).unwrap(),
            b"peer, old key"
        );
        let stolen_chain = send(&mut bob, &alice, b"victim, stolen key");
        assert_eq!(
            open(&mut eavesdropper, &bob, &stolen_chain).unwrap(),
            b"victim, stolen key"
        );
        open(&mut alice, &bob, &stolen_chain).unwrap();
        open(&mut bob, &alice, &same_chain).unwrap();

        // The peer answers a key the thief has: still readable.
        let answer = send(&mut alice, &bob, b"peer, answering the stolen key");
        assert_eq!(
            open(&mut thief, &alice, &answer).unwrap(),
            b"peer, answering the stolen key"
        );
        // Bob opens it and draws a key of which the thief knows nothing. What he sends heals here.
        open(&mut bob, &alice, &answer).unwrap();
        let healed = send(&mut bob, &alice, b"victim, fresh key");
        assert_eq!(
            open(&mut eavesdropper, &bob, &healed),
            Err(Reason::Tampered)
        );
        // The peer heard of it. What the peer sends heals here, and stays so.
        open(&mut alice, &bob, &healed).unwrap();
        for round in 0..10 {
            let message = send(&mut alice, &bob, b"peer, healed");
            assert_eq!(
                open(&mut thief, &alice, &message),
                Err(Reason::Tampered),
                "round {round}"
            );
            open(&mut bob, &alice, &message).unwrap();
            let message = send(&mut bob, &alice, b"victim, healed");
            assert_eq!(
                open(&mut eavesdropper, &bob, &message),
                Err(Reason::Tampered)
            );
            open(&mut alice, &bob, &message).unwrap();
        }
        // Nor can the thief speak for the victim any more.
        let forged = send(&mut thief, &alice, b"forged");
        let before = alice.stored();
        let refused = open(&mut alice, &bob, &forged);
        assert!(
            matches!(refused, Err(Reason::Tampered | Reason::Duplicate)),
            "{refused:?}"
        );
        assert_eq!(alice.stored(), before);
    }
}

#[test]
fn a_replayed_first_message_is_refused_with_and_without_its_session_and_its_prekey() {
    for (version, one_time) in VERSIONS
        .into_iter()
        .flat_map(|version| [(version, true), (version, false)])
    {
        let (mut alice, mut bob) = strangers(version, 5);
        bob.one_time = one_time;
        bob.kyber_one_time = one_time;
        let bundle = bob.publish();
        alice.initiate(&bob.address, &bundle).unwrap();
        let first = send(&mut alice, &bob, b"first");
        let prekeys = bob.store.prekeys.clone();
        let kyber_prekeys = bob.store.kyber_prekeys.clone();
        open(&mut bob, &alice, &first).unwrap();
        assert_eq!(open(&mut bob, &alice, &first), Err(Reason::Duplicate));

        // The session is gone, and even the prekey is still there, as a store with a grace period has it.
        bob.restart();
        bob.store.peers.clear();
        bob.store.prekeys = prekeys;
        bob.store.kyber_prekeys = kyber_prekeys;
        let before = bob.stored();
        assert_eq!(open(&mut bob, &alice, &first), Err(Reason::Duplicate));
        // A later message of the same session names the same base key.
        let second = send(&mut alice, &bob, b"second");
        assert_eq!(open(&mut bob, &alice, &second), Err(Reason::Duplicate));
        assert_eq!(bob.stored(), before);

        // Without the memory it would open: the memory is what protects.
        bob.store.base_keys.clear();
        assert_eq!(open(&mut bob, &alice, &first).unwrap(), b"first");
    }
}

// ---- every change of every byte -------------------------------------------------------------------------------------

/// A message, the device that is to receive it, and where its key is.
struct Case {
    title: &'static str,
    receiver: Device,
    sender: ProtocolAddress,
    message: Message,
    /// What the untouched message gives.
    outcome: Result<Vec<u8>, Reason>,
    /// Whether the receiver knows the session already.
    known: bool,
}

fn case(
    title: &'static str,
    receiver: &Device,
    sender: &Device,
    message: Message,
    outcome: Result<&[u8], Reason>,
    known: bool,
) -> Case {
    Case {
        title,
        receiver: receiver.clone(),
        sender: sender.address.clone(),
        message,
        outcome: outcome.map(<[u8]>::to_vec),
        known,
    }
}

fn ordinary_cases(version: Version) -> Vec<Case> {
    let mut cases = Vec::new();
    let (mut alice, mut bob) = acquainted(version, 6);
    // The peer's next message makes a new chain.
    let message = send(&mut alice, &bob, b"new chain");
    cases.push(case(
        "new chain",
        &bob,
        &alice,
        message.clone(),
        Ok(b"new chain"),
        true,
    ));
    open(&mut bob, &alice, &message).unwrap();
    cases.push(case(
        "opened before",
        &bob,
        &alice,
        message,
        Err(Reason::Duplicate),
        true,
    ));
    let skipped: Vec<_> = (0..3).map(|_| send(&mut alice, &bob, b"skipped")).collect();
    let message = send(&mut alice, &bob, b"next in the chain");
    cases.push(case(
        "ahead in the chain",
        &bob,
        &alice,
        message.clone(),
        Ok(b"next in the chain"),
        true,
    ));
    open(&mut bob, &alice, &message).unwrap();
    open(&mut bob, &alice, &skipped[2]).unwrap();
    cases.push(case(
        "skipped",
        &bob,
        &alice,
        skipped[1].clone(),
        Ok(b"skipped"),
        true,
    ));
    // A session that was replaced on both sides.
    let late = send(&mut alice, &bob, b"archived");
    for _ in 0..2 {
        let bundle = bob.publish();
        alice.initiate(&bob.address, &bundle).unwrap();
        talk(&mut alice, &mut bob);
    }
    cases.push(case(
        "of an archived session",
        &bob,
        &alice,
        late,
        Ok(b"archived"),
        true,
    ));
    cases
}

fn prekey_cases(version: Version) -> Vec<Case> {
    let mut cases = Vec::new();
    for one_time in [true, false] {
        let (mut alice, mut bob) = strangers(version, 7);
        bob.one_time = one_time;
        bob.kyber_one_time = one_time;
        let bundle = bob.publish();
        // Spare prekeys, so that a changed id may name another one.
        for _ in 0..4 {
            bob.publish();
        }
        alice.initiate(&bob.address, &bundle).unwrap();
        let first = send(&mut alice, &bob, b"first");
        let title = if one_time {
            "first message"
        } else {
            "first message without a one-time prekey"
        };
        cases.push(case(
            title,
            &bob,
            &alice,
            first.clone(),
            Ok(b"first"),
            false,
        ));
        if one_time {
            open(&mut bob, &alice, &first).unwrap();
            cases.push(case(
                "first message opened before",
                &bob,
                &alice,
                first,
                Err(Reason::Duplicate),
                true,
            ));
            let repeated = send(&mut alice, &bob, b"repeated");
            cases.push(case(
                "repeated prekey message",
                &bob,
                &alice,
                repeated.clone(),
                Ok(b"repeated"),
                true,
            ));
            let last = send(&mut alice, &bob, b"last");
            open(&mut bob, &alice, &last).unwrap();
            cases.push(case(
                "skipped prekey message",
                &bob,
                &alice,
                repeated.clone(),
                Ok(b"repeated"),
                true,
            ));
            let bundle = alice.publish();
            bob.initiate(&alice.address, &bundle).unwrap();
            cases.push(case(
                "prekey message of an archived session",
                &bob,
                &alice,
                repeated,
                Ok(b"repeated"),
                true,
            ));
        }
    }
    cases
}

/// In how many ways a byte is changed.
#[derive(Clone, Copy)]
enum Masks {
    /// Every mask, where it is cheap or where the byte has a meaning of its own.
    All,
    /// Every single bit and some patterns.
    Some,
    /// One, another for each place: for the 1 568 bytes of a Kyber ciphertext, which are all alike.
    One,
}

fn masks(masks: Masks, at: usize) -> Vec<u8> {
    match masks {
        Masks::All => (1..=255).collect(),
        Masks::Some => vec![
            0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, 0x55, 0xaa, 0x03, 0x7f,
        ],
        Masks::One => vec![1 << (at % 8)],
    }
}

/// All changed forms of a message: each byte under each mask, each truncation, some extensions.
fn changed(message: &Message, kind: impl Fn(usize) -> Masks) -> Vec<(String, Message)> {
    let mut out = Vec::new();
    let with = |body: Vec<u8>| Message {
        body,
        ..message.clone()
    };
    for at in 0..message.body.len() {
        for mask in masks(kind(at), at) {
            let mut body = message.body.clone();
            body[at] ^= mask;
            out.push((format!("byte {at} ^ {mask:#04x}"), with(body)));
        }
    }
    for length in 0..message.body.len() {
        out.push((
            format!("the first {length} bytes"),
            with(message.body[..length].to_vec()),
        ));
        out.push((
            format!("without byte {length}"),
            with([&message.body[..length], &message.body[length + 1..]].concat()),
        ));
    }
    for extra in (0..=255_u8).map(|byte| vec![byte]).chain([
        vec![0x48, 0],          // field 9, a number
        vec![0x4a, 0],          // field 9, no bytes
        vec![0x4a, 1, 0],       // field 9, a byte
        vec![0x4d, 0, 0, 0, 0], // field 9, four bytes
        vec![0x4b, 0x4c],       // field 9, an empty group
        vec![0x28, 9],          // the registration id again
        vec![0x30, 9],          // the signed prekey id again
        vec![0x08, 9],          // the prekey id (again)
        vec![0x38, 9],          // the Kyber prekey id (again)
        vec![0x42, 1, 9],       // a Kyber ciphertext, too short
        vec![0; 16],
        vec![0xff; 64],
    ]) {
        let body = [message.body.as_slice(), &extra].concat();
        out.push((format!("and {}", hex::encode(&extra)), with(body)));
    }
    out
}

#[test]
fn no_change_of_an_ordinary_message_opens_and_every_refusal_is_documented_and_changes_nothing() {
    let allowed = BTreeSet::from([
        Reason::Tampered,
        Reason::Malformed,
        Reason::UnsupportedVersion,
        Reason::OutOfSync,
        Reason::Duplicate,
    ]);
    let mut total = 0;
    for mut case in VERSIONS.into_iter().flat_map(ordinary_cases) {
        let before = case.receiver.stored();
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        let version = case.receiver.minimum_version;
        let cheap = match (case.title, version) {
            ("skipped", _) | ("ahead in the chain" | "opened before", Version::V3) => Masks::All,
            _ => Masks::Some,
        };
        for (change, message) in changed(&case.message, |_| cheap) {
            let outcome = case.receiver.decrypt(&case.sender, &message);
            let Err(reason) = outcome else {
                panic!("{}, {change}: opened", case.title);
            };
            assert!(
                allowed.contains(&reason),
                "{}, {change}: {reason:?}",
                case.title
            );
            *reasons.entry(reason).or_default() += 1;
            total += 1;
        }
        assert_eq!(case.receiver.stored(), before, "{}", case.title);
        println!("{}: {reasons:?}", case.title);
        let opened = case.receiver.decrypt(&case.sender, &case.message);
        assert_eq!(
            opened.map(|decrypted| decrypted.plaintext),
            case.outcome,
            "{}",
            case.title
        );
    }
    println!("{total} changed ordinary messages, none opened");
}

/// What Signal leaves unauthenticated on the outside of a prekey message is exactly: the low nibble of the version byte,
/// the registration id, and unknown fields; and, when the session is known already, the prekey ids and the content of
/// the Kyber ciphertext.
#[test]
fn a_changed_prekey_message_opens_exactly_when_only_unauthenticated_outer_fields_differ() {
    let allowed = BTreeSet::from([
        Reason::Tampered,
        Reason::Malformed,
        Reason::UnsupportedVersion,
        Reason::OutOfSync,
        Reason::Duplicate,
        Reason::UnknownPreKey,
        Reason::UntrustedIdentity,
    ]);
    let mut total = 0;
    let mut total_opened = 0;
    for mut case in VERSIONS.into_iter().flat_map(prekey_cases) {
        let original = Outer::parse(&case.message.body).unwrap();
        let before = case.receiver.stored();
        let untouched = case.receiver.clone();
        let find = |part: &[u8]| {
            let body = &case.message.body;
            let start = body.windows(part.len()).position(|window| window == part);
            start.unwrap()..start.unwrap() + part.len()
        };
        let inner = find(&original.message);
        let identity_keys = find(&original.base_key).start..find(&original.identity_key).end;
        let ciphertext = match &original.kyber_ciphertext {
            Some(ciphertext) => find(ciphertext),
            None => 0..0,
        };
        let kind = |at: usize| {
            if ciphertext.contains(&at) {
                if at == ciphertext.start {
                    Masks::All
                } else {
                    Masks::One
                }
            } else if inner.contains(&at)
                || identity_keys.contains(&at)
                || (case.known && at > 0 && !ciphertext.is_empty())
            {
                Masks::Some
            } else {
                Masks::All
            }
        };
        let well_formed = |ciphertext: &Vec<u8>| ciphertext.len() == 1_569 && ciphertext[0] == 8;
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        let mut opening = BTreeSet::new();
        for (change, message) in changed(&case.message, kind) {
            let same = Outer::parse(&message.body).is_some_and(|outer| {
                outer.version == original.version
                    && outer.base_key == original.base_key
                    && outer.identity_key == original.identity_key
                    && outer.message == original.message
                    && outer.kyber_prekey_id.is_some() == original.kyber_prekey_id.is_some()
                    && outer.kyber_ciphertext.is_some() == original.kyber_ciphertext.is_some()
                    && outer.kyber_ciphertext.as_ref().is_none_or(well_formed)
                    && (case.known
                        || (outer.prekey_id == original.prekey_id
                            && outer.signed_prekey_id == original.signed_prekey_id
                            && outer.kyber_prekey_id == original.kyber_prekey_id
                            && outer.kyber_ciphertext == original.kyber_ciphertext))
            });
            let outcome = case
                .receiver
                .decrypt(&case.sender, &message)
                .map(|decrypted| decrypted.plaintext);
            total += 1;
            if same {
                // The change makes no difference to what comes out.
                assert_eq!(outcome, case.outcome, "{}, {change}", case.title);
                if outcome.is_ok() {
                    total_opened += 1;
                    opening.insert(change);
                    case.receiver = untouched.clone();
                }
                continue;
            }
            let Err(reason) = outcome else {
                panic!("{}, {change}: opened", case.title);
            };
            assert!(
                allowed.contains(&reason),
                "{}, {change}: {reason:?}",
                case.title
            );
            *reasons.entry(reason).or_default() += 1;
            if total % 64 == 0 {
                assert_eq!(case.receiver.stored(), before, "{}, {change}", case.title);
            }
        }
        assert_eq!(case.receiver.stored(), before, "{}", case.title);
        println!("{}: {reasons:?}, {} opened", case.title, opening.len());
        if case.outcome.is_ok() {
            // The low nibble: bits 0 to 3 of the first byte, all 15 changes of it.
            for mask in 1..16 {
                assert!(opening.contains(&format!("byte 0 ^ {mask:#04x}")));
            }
            assert!(!opening.contains("byte 0 ^ 0x10"));
            assert!(opening.contains("and 4800"), "an unknown field");
            assert!(opening.contains("and 2809"), "another registration id");
            assert_eq!(opening.contains("and 0809"), case.known);
            let with_kyber = original.kyber_prekey_id.is_some();
            assert_eq!(opening.contains("and 3809"), case.known && with_kyber);
            let inside = format!("byte {} ", ciphertext.start + 1_000);
            assert_eq!(
                opening.iter().any(|change| change.starts_with(&inside)),
                case.known && with_kyber,
                "the content of the Kyber ciphertext"
            );
        } else {
            assert!(opening.is_empty());
        }
        let opened = case.receiver.decrypt(&case.sender, &case.message);
        assert_eq!(opened.map(|decrypted| decrypted.plaintext), case.outcome);
    }
    println!(
        "{total} changed prekey messages, {total_opened} opened, all of them with the sender's text"
    );
}

#[test]
fn the_two_versions_and_the_kyber_fields_of_a_prekey_message_must_agree() {
    for version in VERSIONS {
        let (mut alice, mut bob) = started(version, 21);
        let first = send(&mut alice, &bob, b"first");
        let outer = Outer::parse(&first.body).unwrap();
        let at = first
            .body
            .windows(outer.message.len())
            .position(|window| window == outer.message)
            .unwrap();
        let kyber = |id: Option<u32>, ciphertext: Option<&Vec<u8>>| {
            let mut fields = Vec::new();
            if let Some(id) = id {
                prost::encoding::uint32::encode(7, &id, &mut fields);
            }
            if let Some(ciphertext) = ciphertext {
                prost::encoding::bytes::encode(8, ciphertext, &mut fields);
            }
            fields
        };
        // They come last.
        let own = kyber(outer.kyber_prekey_id, outer.kyber_ciphertext.as_ref());
        assert!(first.body.ends_with(&own));
        let without = &first.body[..first.body.len() - own.len()];
        let ciphertext = [&[8], [0; 1_568].as_slice()].concat();
        let ciphertext = outer.kyber_ciphertext.as_ref().unwrap_or(&ciphertext);
        let id = outer.kyber_prekey_id.unwrap_or(1);
        let complete = kyber(Some(id), Some(ciphertext));
        let before = bob.stored();
        for outer in [0x34, 0x44, 0x24, 0x54] {
            for inner in [0x34, 0x44, 0x24, 0x54] {
                for fields in [
                    &Vec::new(),
                    &complete,
                    &kyber(Some(id), None),
                    &kyber(None, Some(ciphertext)),
                    &kyber(Some(id), Some(&vec![9])),
                ] {
                    let mut message = first.clone();
                    message.body = [without, fields].concat();
                    message.body[0] = outer;
                    message.body[at] = inner;
                    if message == first {
                        continue;
                    }
                    let refusal = open(&mut bob, &alice, &message).unwrap_err();
                    let context = format!(
                        "{outer:#04x}, {inner:#04x}, {} bytes: {refusal:?}",
                        fields.len()
                    );
                    if [0x24, 0x54].contains(&outer) {
                        assert_eq!(refusal, Reason::UnsupportedVersion, "{context}");
                    } else if [0x24, 0x54].contains(&inner) {
                        assert!(
                            matches!(refusal, Reason::UnsupportedVersion | Reason::Malformed),
                            "{context}"
                        );
                    } else if outer == inner
                        && fields == [&Vec::new(), &complete][usize::from(outer == 0x44)]
                    {
                        // They agree, on a version in which the message was not made.
                        assert!(
                            matches!(
                                refusal,
                                Reason::UnsupportedVersion
                                    | Reason::Malformed
                                    | Reason::Tampered
                                    | Reason::UnknownPreKey
                            ),
                            "{context}"
                        );
                    } else {
                        assert_eq!(refusal, Reason::Malformed, "{context}");
                    }
                }
            }
        }
        assert_eq!(bob.stored(), before);
        assert_eq!(open(&mut bob, &alice, &first).unwrap(), b"first");
    }
}

#[test]
fn a_changed_registration_id_is_all_that_an_accepted_change_leaves_behind() {
    for version in VERSIONS {
        let mut cases = prekey_cases(version);
        let case = &mut cases[0];
        let honest = {
            let mut receiver = case.receiver.clone();
            receiver.decrypt(&case.sender, &case.message).unwrap();
            receiver.peer(&case.sender).current().unwrap().info()
        };
        let mut message = case.message.clone();
        message.body.extend([0x28, 9]);
        case.receiver.decrypt(&case.sender, &message).unwrap();
        let session = case.receiver.peer(&case.sender).current().unwrap();
        let mut info = session.info();
        assert_eq!(info.remote_registration_id, 9);
        info.remote_registration_id = honest.remote_registration_id;
        assert_eq!(info, honest);
    }
}

#[test]
fn another_identity_key_around_a_repeated_prekey_message_is_refused_even_where_it_is_trusted() {
    for version in VERSIONS {
        let (mut alice, mut bob) = started(version, 8);
        let first = send(&mut alice, &bob, b"first");
        open(&mut bob, &alice, &first).unwrap();
        let repeated = send(&mut alice, &bob, b"repeated");
        let mallory = Device::new("mallory", version, SeededRng::new(80)).identity_key();
        let ours = alice.identity_key().to_bytes();
        let at = repeated
            .body
            .windows(33)
            .position(|window| window == ours)
            .unwrap();
        let mut forged = repeated.clone();
        forged.body[at..at + 33].copy_from_slice(&mallory.to_bytes());
        let before = bob.stored();
        assert_eq!(
            open(&mut bob, &alice, &forged),
            Err(Reason::UntrustedIdentity)
        );
        assert_eq!(bob.stored(), before);
        let rows = bob.peer(&alice.address).clone();
        let mut record = rows.record();
        let message = PreKeySignalMessage::from_bytes(&forged.body).unwrap();
        let local = LocalDevice {
            address: &bob.address,
            identity: &bob.identity,
            registration_id: bob.store.registration_id,
        };
        let refused = record.decrypt_prekey(
            &local,
            &remote(&alice.address, version),
            &message,
            &bob.store,
            &|id: &SessionId, at: &EntryPosition| rows.find(id, at),
            &TrustOnFirstUse(None),
            &mut bob.rng,
        );
        assert_eq!(refused.map(|_| ()), Err(DecryptError::Invalid));
        assert_eq!(record, rows.record());
        assert_eq!(open(&mut bob, &alice, &repeated).unwrap(), b"repeated");
    }
}

// ---- forgeries ------------------------------------------------------------------------------------------------------

/// Points of small order on the curve and its twist, also unreduced and with bit 255 set.
fn low_order_points() -> Vec<[u8; 32]> {
    let mut points = Vec::new();
    for text in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        let point: [u8; 32] = support::unhex_array(text);
        let mut with_bit = point;
        with_bit[31] |= 0x80;
        points.extend([point, with_bit]);
    }
    points
}

fn replace_key(message: &Message, key: &PublicKey, with: &[u8; 32]) -> Message {
    let mut message = message.clone();
    let at = message
        .body
        .windows(32)
        .position(|window| window == key.u())
        .unwrap();
    message.body[at..at + 32].copy_from_slice(with);
    message
}

#[test]
fn ratchet_keys_base_keys_and_identity_keys_of_small_order_are_refused() {
    for version in VERSIONS {
        let (mut alice, mut bob) = started(version, 9);
        let first = send(&mut alice, &bob, b"first");
        let outer = PreKeySignalMessage::from_bytes(&first.body).unwrap();
        let before = bob.stored();
        let keys = [
            *outer.base_key(),
            *outer.identity_key().public_key(),
            *outer.message().ratchet_key(),
        ];
        for point in low_order_points() {
            for key in &keys {
                let forged = replace_key(&first, key, &point);
                assert_eq!(open(&mut bob, &alice, &forged), Err(Reason::Tampered));
            }
        }
        // Another encoding of the same base key agrees to the same secrets, and is refused all the same.
        let mut high_bit = *outer.base_key().u();
        high_bit[31] |= 0x80;
        let forged = replace_key(&first, outer.base_key(), &high_bit);
        assert_eq!(open(&mut bob, &alice, &forged), Err(Reason::Tampered));
        assert_eq!(bob.stored(), before);
        assert_eq!(open(&mut bob, &alice, &first).unwrap(), b"first");

        let ordinary = send(&mut bob, &alice, b"ordinary");
        let ratchet = *SignalMessage::from_bytes(&ordinary.body)
            .unwrap()
            .ratchet_key();
        let before = alice.stored();
        for point in low_order_points() {
            let forged = replace_key(&ordinary, &ratchet, &point);
            assert_eq!(open(&mut alice, &bob, &forged), Err(Reason::Tampered));
        }
        assert_eq!(alice.stored(), before);
        assert_eq!(open(&mut alice, &bob, &ordinary).unwrap(), b"ordinary");
    }
}

#[test]
fn bundles_with_keys_of_small_order_or_wrong_signatures_start_no_session() {
    for version in VERSIONS {
        let (mut alice, mut bob) = strangers(version, 10);
        let good = bob.publish();
        let before = alice.stored();
        let at_bob = bob.address.clone();
        for point in low_order_points() {
            let key = PublicKey::from_bytes(&[&[5], point.as_slice()].concat()).unwrap();
            let mut bundle = good.clone();
            bundle.prekey = Some((1, key));
            assert_eq!(
                alice.initiate(&bob.address, &bundle),
                Err(InitiateError::Key)
            );
            // Signed by the responder itself, so only the agreement can refuse it.
            let mut bundle = good.clone();
            bundle.signed_prekey.public_key = key;
            bundle.signed_prekey.signature =
                bob.identity.sign(&key.to_bytes(), &mut bob.rng).to_vec();
            assert_eq!(
                alice.initiate(&bob.address, &bundle),
                Err(InitiateError::Key)
            );
            let mut bundle = good.clone();
            bundle.identity_key = IdentityKey::from(key);
            assert!(alice.initiate(&bob.address, &bundle).is_err());
        }
        let wrong = Err(InitiateError::Bundle(BundleError::InvalidSignature));
        let mut refuse = |bundle: &PreKeyBundle, what: &str| {
            assert_eq!(alice.initiate(&at_bob, bundle), wrong, "{what}");
        };
        for bit in 0..512 {
            let mut bundle = good.clone();
            bundle.signed_prekey.signature[bit / 8] ^= 1 << (bit % 8);
            refuse(&bundle, &format!("bit {bit}"));
            if let Some(kyber) = &good.kyber_prekey {
                let mut kyber = kyber.clone();
                kyber.signature[bit / 8] ^= 1 << (bit % 8);
                let bundle = PreKeyBundle {
                    kyber_prekey: Some(kyber),
                    ..good.clone()
                };
                refuse(&bundle, &format!("bit {bit} of the Kyber prekey's"));
            }
        }
        for bit in 0..256 {
            let mut bundle = good.clone();
            let mut key = bundle.signed_prekey.public_key.to_bytes();
            key[1 + bit / 8] ^= 1 << (bit % 8);
            bundle.signed_prekey.public_key = PublicKey::from_bytes(&key).unwrap();
            refuse(&bundle, &format!("bit {bit}"));
        }
        for length in [0, 32, 63, 65] {
            let mut bundle = good.clone();
            bundle.signed_prekey.signature.resize(length, 0);
            refuse(&bundle, "another length");
            if let Some(mut kyber) = good.kyber_prekey.clone() {
                kyber.signature.resize(length, 0);
                let bundle = PreKeyBundle {
                    kyber_prekey: Some(kyber),
                    ..good.clone()
                };
                refuse(&bundle, "another length");
            }
        }
        // Another Kyber key than the signed one: another of the responder's, or this one with a bit changed in its seed.
        if let Some(kyber) = &good.kyber_prekey {
            bob.kyber_one_time = true;
            let other = bob.publish().kyber_prekey.unwrap().public_key;
            let mut bytes = kyber.public_key.to_bytes();
            *bytes.last_mut().unwrap() ^= 1;
            let damaged = KyberPublicKey::from_bytes(&bytes).unwrap();
            for public_key in [other, damaged] {
                assert_ne!(public_key, kyber.public_key);
                let bundle = PreKeyBundle {
                    kyber_prekey: Some(KyberPreKeyPublic {
                        public_key,
                        ..kyber.clone()
                    }),
                    ..good.clone()
                };
                refuse(&bundle, "another key");
            }
        }
        assert_eq!(alice.stored(), before);
        assert_eq!(alice.initiate(&bob.address, &good), Ok(()));
    }
}

#[test]
fn a_kyber_public_key_has_one_form() {
    let (_, mut bob) = strangers(Version::V4, 10);
    let key = bob.publish().kyber_prekey.unwrap().public_key;
    let bytes = key.to_bytes();
    assert_eq!((bytes.len(), bytes[0]), (1_569, 8));
    assert_eq!(KyberPublicKey::from_bytes(&bytes), Ok(key));
    for kind in (0..=255).filter(|kind| *kind != 8) {
        let mut other = bytes.clone();
        other[0] = kind;
        assert!(KyberPublicKey::from_bytes(&other).is_err(), "type {kind}");
    }
    for length in [0, 1, 33, 1_184, 1_568, 1_570] {
        let mut other = bytes.clone();
        other.resize(length, 0);
        assert!(
            KyberPublicKey::from_bytes(&other).is_err(),
            "{length} bytes"
        );
    }
    // Two coefficients of 12 bits in three bytes: each may be at most 3 328, and 3 329 would be another form of 0.
    for at in [0, 3, 300, 1_533] {
        for (low, high, fits) in [
            (3_328_u32, 0, true),
            (0, 3_328, true),
            (3_329, 0, false),
            (0, 3_329, false),
            (4_095, 4_095, false),
        ] {
            let mut other = bytes.clone();
            let packed = (low | high << 12).to_le_bytes();
            other[1 + at..4 + at].copy_from_slice(&packed[..3]);
            assert_eq!(KyberPublicKey::from_bytes(&other).is_ok(), fits, "{at}");
        }
    }
}

#[test]
fn who_asks_for_version_4_starts_nothing_lower_and_takes_nothing_lower() {
    let (mut alice, mut bob) = strangers(Version::V3, 30);
    let older = bob.publish();
    alice.minimum_version = Version::V4;
    let before = alice.stored();
    assert_eq!(
        alice.initiate(&bob.address, &older),
        Err(InitiateError::UnsupportedVersion(Version::V3))
    );
    // Asked before the signatures are: what the bundle lacks nobody has signed.
    let mut unsigned = older.clone();
    unsigned.signed_prekey.signature[0] ^= 1;
    assert_eq!(
        alice.initiate(&bob.address, &unsigned),
        Err(InitiateError::UnsupportedVersion(Version::V3))
    );
    assert_eq!(alice.stored(), before);

    // A first message and an ordinary one of version 3.
    alice.minimum_version = Version::V3;
    alice.initiate(&bob.address, &older).unwrap();
    let first = send(&mut alice, &bob, b"first");
    bob.minimum_version = Version::V4;
    let before = bob.stored();
    let refused = Err(Reason::UnsupportedVersion);
    assert_eq!(open(&mut bob, &alice, &first), refused);
    assert_eq!(bob.stored(), before);
    bob.minimum_version = Version::V3;
    assert_eq!(open(&mut bob, &alice, &first).unwrap(), b"first");
    let answer = send(&mut bob, &alice, b"answer");
    alice.minimum_version = Version::V4;
    let before = alice.stored();
    assert_eq!(open(&mut alice, &bob, &answer), refused);
    // Nor is anything sent on such a session.
    assert_eq!(
        alice.encrypt(&bob.address, b"text"),
        Err(EncryptError::SessionNotFound)
    );
    assert_eq!(alice.stored(), before);
}

/// Whoever hands out bundles or holds messages back cannot talk two devices down to version 3.
#[test]
fn a_peer_seen_with_version_4_is_not_taken_back_to_version_3() {
    let (mut alice, mut bob) = acquainted(Version::V3, 31);
    let late = send(&mut bob, &alice, b"late");
    let orphan = {
        let mut other = alice.clone();
        let bundle = bob.publish();
        other.initiate(&bob.address, &bundle).unwrap();
        send(&mut other, &bob, b"first, version 3")
    };
    let mut stripped = bob.publish();
    bob.kyber = true;
    let bundle = bob.publish();
    stripped.kyber_prekey = None;
    alice.initiate(&bob.address, &bundle).unwrap();
    talk(&mut alice, &mut bob);
    for device in [&alice, &bob] {
        let peer = device.store.peers.values().next().unwrap();
        assert_eq!(peer.current().unwrap().version(), Version::V4);
        assert_eq!(peer.version, Some(Version::V4));
    }

    let (before, before_bob) = (alice.stored(), bob.stored());
    assert_eq!(
        alice.initiate(&bob.address, &stripped),
        Err(InitiateError::UnsupportedVersion(Version::V3))
    );
    // A message of the archived session, and a first message that was held back.
    let refused = Err(Reason::UnsupportedVersion);
    assert_eq!(open(&mut alice, &bob, &late), refused);
    assert_eq!(open(&mut bob, &alice, &orphan), refused);
    assert_eq!((alice.stored(), bob.stored()), (before, before_bob));
    talk(&mut alice, &mut bob);
}

/// The message with another counter, its MAC as it was.
fn with_counter(message: &Message, counter: u32) -> Message {
    assert_eq!(message.kind, MessageType::Ordinary);
    // Version byte, ratchet key (35 bytes), then the counter.
    assert_eq!(message.body[36], 0x10);
    assert!(message.body[37] < 0x80, "a counter of one byte");
    let mut body = message.body[..37].to_vec();
    prost::encoding::encode_varint(counter.into(), &mut body);
    body.extend(&message.body[38..]);
    Message {
        body,
        ..message.clone()
    }
}

#[test]
fn a_forged_counter_beyond_the_bound_is_refused_before_anything_is_computed_and_within_it_by_the_mac()
 {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 11);
        // On a chain that is known, whose index is 1 after this.
        let first = send(&mut alice, &bob, b"first");
        let on_new_chain = (first.clone(), 0);
        let mut with_chain = bob.clone();
        open(&mut with_chain, &alice, &first).unwrap();
        let second = send(&mut alice, &bob, b"second");
        let on_known_chain = (second, 1);
        for (receiver, (message, index)) in
            [(&mut bob, on_new_chain), (&mut with_chain, on_known_chain)]
        {
            let before = receiver.stored();
            for (counter, refusal) in [
                (index + 25_000, Reason::Tampered),
                (index + 25_001, Reason::OutOfSync),
                (1 << 31, Reason::OutOfSync),
                (u32::MAX - 1, Reason::OutOfSync),
                (u32::MAX, Reason::OutOfSync),
            ] {
                let forged = with_counter(&message, counter);
                assert_eq!(
                    open(receiver, &alice, &forged),
                    Err(refusal),
                    "counter {counter}"
                );
            }
            assert_eq!(receiver.stored(), before);
            assert!(open(receiver, &alice, &message).is_ok());
        }
    }
}

#[test]
fn a_message_of_another_conversation_is_refused() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 12);
        let mut rng = SeededRng::of_test(13);
        let (mut carol, mut dave) = (
            Device::new("carol", version, rng.fork()),
            Device::new("dave", version, rng.fork()),
        );
        let bundle = dave.publish();
        carol.initiate(&dave.address, &bundle).unwrap();
        talk(&mut carol, &mut dave);
        let message = send(&mut alice, &bob, b"to bob");
        let before = dave.stored();
        // Under the name of a stranger, of an acquaintance, and to the sender itself.
        assert_eq!(
            open(
                &mut dave,
                &Device::new("eve", version, SeededRng::new(1)),
                &message
            ),
            Err(Reason::SessionNotFound)
        );
        assert_eq!(open(&mut dave, &carol, &message), Err(Reason::Tampered));
        assert_eq!(dave.stored(), before);
        let before = alice.stored();
        assert_eq!(open(&mut alice, &bob, &message), Err(Reason::Tampered));
        assert_eq!(alice.stored(), before);
        // A prekey message for another device names prekeys that are not there, or agrees to other keys.
        let bundle = bob.publish();
        carol.initiate(&bob.address, &bundle).unwrap();
        let first = send(&mut carol, &bob, b"to bob");
        let before = dave.stored();
        let refused = open(
            &mut dave,
            &Device::new("eve", version, SeededRng::new(1)),
            &first,
        );
        assert!(
            matches!(refused, Err(Reason::UnknownPreKey | Reason::Tampered)),
            "{refused:?}"
        );
        assert_eq!(dave.stored(), before);
    }
}

// ---- trust, age and size --------------------------------------------------------------------------------------------

#[test]
fn the_application_is_asked_with_the_key_and_the_direction_and_a_no_changes_nothing() {
    for version in VERSIONS {
        let (mut alice, mut bob) = strangers(version, 14);
        let bundle = bob.publish();
        let asked = std::cell::RefCell::new(Vec::new());
        let answer = |trusted: Direction| {
            let asked = &asked;
            move |key: &IdentityKey, direction: Direction| {
                asked.borrow_mut().push((*key, direction));
                direction == trusted
            }
        };
        let (sending, receiving) = (answer(Direction::Sending), answer(Direction::Receiving));
        let local = |device: &Device| (device.address.clone(), device.identity.clone());
        let (alice_at, alice_identity) = local(&alice);
        let local_alice = LocalDevice {
            address: &alice_at,
            identity: &alice_identity,
            registration_id: 1,
        };
        let (bob_at, bob_identity) = local(&bob);
        let local_bob = LocalDevice {
            address: &bob_at,
            identity: &bob_identity,
            registration_id: 2,
        };
        let none = |_: &SessionId, _: &EntryPosition| EntryLookup::Absent;
        let (from_alice, from_bob) = (remote(&alice_at, version), remote(&bob_at, version));

        let mut ours = kith_protocol::SessionRecord::default();
        let now = alice.now;
        assert_eq!(
            ours.initiate(
                &local_alice,
                &from_bob,
                &bundle,
                &receiving,
                now,
                &mut alice.rng
            ),
            Err(InitiateError::UntrustedIdentity)
        );
        assert_eq!(ours, kith_protocol::SessionRecord::default());
        ours.initiate(
            &local_alice,
            &from_bob,
            &bundle,
            &sending,
            now,
            &mut alice.rng,
        )
        .unwrap();
        let before = ours.clone();
        assert_eq!(
            ours.encrypt(
                &local_alice,
                &from_bob,
                b"x",
                &receiving,
                now,
                &mut alice.rng
            ),
            Err(EncryptError::UntrustedIdentity)
        );
        assert_eq!(ours, before);
        let first = ours
            .encrypt(
                &local_alice,
                &from_bob,
                b"first",
                &sending,
                now,
                &mut alice.rng,
            )
            .unwrap();

        let message = PreKeySignalMessage::from_bytes(&first.bytes).unwrap();
        let mut theirs = kith_protocol::SessionRecord::default();
        let refused = theirs.decrypt_prekey(
            &local_bob,
            &from_alice,
            &message,
            &bob.store,
            &none,
            &sending,
            &mut bob.rng,
        );
        assert_eq!(refused.map(|_| ()), Err(DecryptError::UntrustedIdentity));
        assert_eq!(theirs, kith_protocol::SessionRecord::default());
        theirs
            .decrypt_prekey(
                &local_bob,
                &from_alice,
                &message,
                &bob.store,
                &none,
                &receiving,
                &mut bob.rng,
            )
            .unwrap();
        let answer = theirs
            .encrypt(
                &local_bob,
                &from_alice,
                b"answer",
                &sending,
                now,
                &mut bob.rng,
            )
            .unwrap();

        let message = SignalMessage::from_bytes(&answer.bytes).unwrap();
        let before = ours.clone();
        let refused = ours.decrypt(
            &local_alice,
            &from_bob,
            &message,
            &none,
            &sending,
            &mut alice.rng,
        );
        assert_eq!(refused.map(|_| ()), Err(DecryptError::UntrustedIdentity));
        assert_eq!(ours, before);
        ours.decrypt(
            &local_alice,
            &from_bob,
            &message,
            &none,
            &receiving,
            &mut alice.rng,
        )
        .unwrap();

        let (to_bob, to_alice) = (bob.identity_key(), alice.identity_key());
        assert_eq!(
            *asked.borrow(),
            [
                (to_bob, Direction::Sending),
                (to_bob, Direction::Sending),
                (to_bob, Direction::Sending),
                (to_bob, Direction::Sending),
                (to_alice, Direction::Receiving),
                (to_alice, Direction::Receiving),
                (to_alice, Direction::Sending),
                (to_bob, Direction::Receiving),
                (to_bob, Direction::Receiving),
            ]
        );
    }
}

#[test]
fn an_ordinary_message_that_does_not_authenticate_asks_for_no_trust() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 15);
        let mut message = send(&mut alice, &bob, b"text");
        *message.body.last_mut().unwrap() ^= 1;
        let rows = bob.peer(&alice.address).clone();
        let parsed = SignalMessage::from_bytes(&message.body).unwrap();
        let never = |_: &IdentityKey, _: Direction| -> bool { panic!("trust was asked for") };
        let local = LocalDevice {
            address: &bob.address,
            identity: &bob.identity,
            registration_id: 1,
        };
        let refused = rows.record().decrypt(
            &local,
            &remote(&alice.address, version),
            &parsed,
            &|id: &SessionId, at: &EntryPosition| rows.find(id, at),
            &never,
            &mut bob.rng,
        );
        assert_eq!(refused.map(|_| ()), Err(DecryptError::Invalid));
    }
}

#[test]
fn a_session_without_an_answer_is_usable_for_exactly_thirty_days_and_one_with_an_answer_for_ever() {
    for version in VERSIONS {
        let (mut alice, mut bob) = started(version, 16);
        let start = alice.now;
        assert_eq!(MAX_UNACKNOWLEDGED_SESSION_AGE, 2_592_000);
        for (now, usable) in [
            (start - 1_000, true),
            (start + MAX_UNACKNOWLEDGED_SESSION_AGE, true),
            (start + MAX_UNACKNOWLEDGED_SESSION_AGE + 1, false),
            (u64::MAX, false),
            (0, true),
        ] {
            alice.now = now;
            let before = alice.stored();
            let session = alice.peer(&bob.address).current().unwrap();
            assert_eq!(session.is_usable_at(now), usable);
            let sent = alice.encrypt(&bob.address, b"text");
            if usable {
                sent.unwrap();
            } else {
                assert_eq!(sent, Err(EncryptError::SessionNotFound));
                assert_eq!(alice.stored(), before);
            }
        }
        alice.now = start;
        talk(&mut alice, &mut bob);
        alice.now = u64::MAX;
        bob.now = u64::MAX;
        talk(&mut alice, &mut bob);

        // A late answer revives a session that waited too long.
        let (mut alice, mut bob) = started(version, 17);
        let first = send(&mut alice, &bob, b"first");
        open(&mut bob, &alice, &first).unwrap();
        let answer = send(&mut bob, &alice, b"answer");
        alice.now += MAX_UNACKNOWLEDGED_SESSION_AGE + 1;
        assert!(alice.encrypt(&bob.address, b"text").is_err());
        open(&mut alice, &bob, &answer).unwrap();
        assert!(alice.encrypt(&bob.address, b"text").is_ok());
    }
}

#[test]
fn messages_up_to_the_size_limit_go_through_and_larger_ones_are_refused() {
    for version in VERSIONS {
        let (mut alice, mut bob) = started(version, 18);
        let text = vec![7; MAX_PLAINTEXT_LEN];
        let first = send(&mut alice, &bob, &text);
        assert!(first.body.len() <= MAX_MESSAGE_LEN);
        assert_eq!(open(&mut bob, &alice, &first).unwrap(), text);
        let before = alice.stored();
        assert_eq!(
            alice.encrypt(&bob.address, &vec![7; MAX_PLAINTEXT_LEN + 1]),
            Err(EncryptError::TooLarge)
        );
        assert_eq!(alice.stored(), before);
        let before = bob.stored();
        for kind in [MessageType::PreKey, MessageType::Ordinary] {
            for (length, refusal) in [
                (0, Reason::Malformed),
                (1, Reason::Malformed),
                (MESSAGE_MAC_LEN, Reason::Malformed),
                (MESSAGE_MAC_LEN + 1, Reason::Malformed),
                (MAX_MESSAGE_LEN, Reason::Malformed),
                (MAX_MESSAGE_LEN + 1, Reason::TooLarge),
            ] {
                let body = vec![version.byte(); length];
                assert_eq!(
                    open(&mut bob, &alice, &Message { kind, body }),
                    Err(refusal),
                    "{kind:?}, {length} bytes"
                );
            }
        }
        assert_eq!(bob.stored(), before);
    }
}

#[test]
fn the_last_counter_is_never_used_and_a_sender_at_the_end_says_so() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 19);
        // Alice sends one, so that both hold the chain; then both ends are moved to its end.
        let message = send(&mut alice, &bob, b"first");
        open(&mut bob, &alice, &message).unwrap();
        let mut ends = [&mut alice, &mut bob].map(|device| {
            let remote = device.store.peers.keys().next().unwrap().clone();
            let record = Record::of(&device.export(&remote), SkippedKeyFormat::Seeds);
            (device, remote, record)
        });
        let end = u32::MAX - 2;
        let sending = ends[0].2.session().sending.as_mut().unwrap();
        sending.key.as_mut().unwrap().index = end;
        let ratchet_key = sending.public.clone();
        let receiving = &mut ends[1].2.session().receiving;
        let chain = receiving
            .iter_mut()
            .find(|chain| chain.public == ratchet_key)
            .unwrap();
        chain.key.as_mut().unwrap().index = end;
        for (device, remote, record) in &mut ends {
            device.import(remote, &record.official());
        }

        let last = [b"-2", b"-1"].map(|text| send(&mut alice, &bob, text));
        let counter =
            |message: &Message| SignalMessage::from_bytes(&message.body).unwrap().counter();
        assert_eq!(
            [counter(&last[0]), counter(&last[1])],
            [u32::MAX - 2, u32::MAX - 1]
        );
        let before = alice.stored();
        assert_eq!(
            alice.encrypt(&bob.address, b"over"),
            Err(EncryptError::SessionNotFound)
        );
        assert_eq!(alice.stored(), before);
        for loading in [Loading::Whole, Loading::Parts] {
            let mut bob = bob.clone();
            bob.loading = loading;
            for message in last.iter().rev() {
                assert!(open(&mut bob, &alice, message).is_ok());
            }
            // A forged message with the last counter finds no key to try.
            let mut forged = last[0].clone();
            assert_eq!(forged.body[36..42], [0x10, 0xfd, 0xff, 0xff, 0xff, 0x0f]);
            forged.body[37] = 0xff;
            let before = bob.stored();
            let refusal = match version {
                Version::V3 => Reason::OutOfSync,
                // Its place in the post-quantum chain was used.
                Version::V4 => Reason::Tampered,
            };
            assert_eq!(open(&mut bob, &alice, &forged), Err(refusal));
            assert_eq!(bob.stored(), before);
        }
        // The answer of the other side starts a new chain, and the conversation goes on.
        for message in &last {
            open(&mut bob, &alice, message).unwrap();
        }
        let answer = send(&mut bob, &alice, b"answer");
        open(&mut alice, &bob, &answer).unwrap();
        talk(&mut alice, &mut bob);
    }
}

/// The message with another field 5, its MAC as it was.
fn with_field_5(message: &Message, field: Vec<u8>) -> Message {
    let (inside, mac) = message.body[1..].split_at(message.body.len() - 9);
    let mut fields = protobuf::fields(inside).unwrap();
    fields.insert(5, vec![Value::Bytes(field)]);
    let mut body = vec![message.body[0]];
    for (number, values) in fields {
        let number = u32::try_from(number).unwrap();
        for value in values {
            match value {
                Value::Number(value) => prost::encoding::uint64::encode(number, &value, &mut body),
                Value::Bytes(bytes) => prost::encoding::bytes::encode(number, &bytes, &mut body),
                Value::Other => panic!("field {number}"),
            }
        }
    }
    body.extend(mac);
    Message {
        body,
        ..message.clone()
    }
}

fn field_5(version: u8, epoch: u64, index: u64, payload: &[u8]) -> Vec<u8> {
    let mut field = vec![version];
    prost::encoding::encode_varint(epoch, &mut field);
    prost::encoding::encode_varint(index, &mut field);
    field.extend(payload);
    field
}

#[test]
fn a_forged_place_in_the_post_quantum_chain_is_refused_within_bounded_work_and_changes_nothing() {
    for loading in [Loading::Whole, Loading::Parts] {
        let (mut alice, mut bob) = acquainted(Version::V4, 40);
        bob.loading = loading;
        // Skipped, opened, and next: the third is the one that is changed.
        let _skipped = send(&mut alice, &bob, b"skipped");
        let opened = send(&mut alice, &bob, b"opened");
        open(&mut bob, &alice, &opened).unwrap();
        let message = send(&mut alice, &bob, b"text");
        let header = PostQuantumHeader::of_ordinary(&message.body).unwrap();
        assert_eq!((header.epoch, header.payload), (1, 1));
        let used = header.index - 1;
        let chunk = [[1, 5].as_slice(), &[7; 32]].concat();
        assert_eq!(
            with_field_5(
                &message,
                protobuf::fields(&message.body[1..message.body.len() - 8])
                    .unwrap()
                    .remove(&5)
                    .and_then(|values| match values.as_slice() {
                        [Value::Bytes(bytes)] => Some(bytes.clone()),
                        _ => None,
                    })
                    .unwrap()
            ),
            message,
            "the change itself changes nothing"
        );

        let tampered = [Reason::Tampered].as_slice();
        let far = [Reason::OutOfSync].as_slice();
        let gone = [Reason::Duplicate, Reason::Tampered].as_slice();
        let undecodable = [Reason::Tampered, Reason::Malformed].as_slice();
        let before = bob.stored();
        for (field, refusals) in [
            // The key of another message, and none.
            (field_5(1, 1, header.index + 1, &chunk), tampered),
            (field_5(1, 1, used - 1, &chunk), tampered),
            (field_5(1, 1, 0, &chunk), tampered),
            (field_5(1, 1, used, &chunk), gone),
            // Ahead of the chain: up to 25 000 steps, and no step beyond.
            (field_5(1, 1, used + 25_000, &chunk), tampered),
            (field_5(1, 1, used + 25_001, &chunk), far),
            (field_5(1, 1, u64::from(u32::MAX), &chunk), far),
            (field_5(1, 1, 1 << 32, &chunk), undecodable),
            (field_5(1, 1, u64::MAX, &chunk), undecodable),
            // Epochs that cannot be: the braid is in the first one.
            (field_5(1, 2, 1, &chunk), tampered),
            (field_5(1, 3, 1, &chunk), tampered),
            (field_5(1, u64::MAX, 1, &chunk), tampered),
            (field_5(1, u64::MAX, u64::from(u32::MAX), &chunk), tampered),
            (field_5(1, 0, header.index, &chunk), undecodable),
            // Another payload, well-formed and not.
            (field_5(1, 1, header.index, &[0]), tampered),
            (field_5(1, 1, header.index, &[4]), tampered),
            (field_5(1, 1, header.index, &chunk[..33]), undecodable),
            (field_5(1, 1, header.index, &[1]), undecodable),
            (field_5(1, 1, header.index, &[]), undecodable),
            (field_5(1, 1, header.index, &[7]), undecodable),
            (field_5(1, 1, header.index, &[255]), undecodable),
            // A chunk index of 65 535, and one more.
            (
                field_5(
                    1,
                    1,
                    header.index,
                    &[[1, 0xff, 0xff, 3].as_slice(), &[7; 32]].concat(),
                ),
                tampered,
            ),
            (
                field_5(
                    1,
                    1,
                    header.index,
                    &[[1, 0x80, 0x80, 4].as_slice(), &[7; 32]].concat(),
                ),
                undecodable,
            ),
            // Other versions, half a number, nothing.
            (field_5(0, 1, header.index, &chunk), undecodable),
            (field_5(2, 1, header.index, &chunk), undecodable),
            (field_5(255, 1, header.index, &chunk), undecodable),
            (vec![1, 0x80], undecodable),
            (
                [[1].as_slice(), &[0x80; 10], &[1, 1, 0]].concat(),
                undecodable,
            ),
            (vec![1], undecodable),
            (Vec::new(), undecodable),
        ] {
            let forged = with_field_5(&message, field.clone());
            let refused = open(&mut bob, &alice, &forged).unwrap_err();
            assert!(
                refusals.contains(&refused),
                "{}: {refused:?}",
                hex::encode(field)
            );
            assert_eq!(bob.stored(), before);
        }
        assert_eq!(open(&mut bob, &alice, &message).unwrap(), b"text");
    }
}

#[test]
fn the_last_place_in_a_post_quantum_chain_is_the_last_message_that_can_be_sent_in_its_epoch() {
    let (mut alice, mut bob) = acquainted(Version::V4, 41);
    // Both ends of the chain from Alice to Bob are moved to two places before its end.
    let end = u32::MAX - 2;
    for (device, sending) in [(&mut alice, true), (&mut bob, false)] {
        let remote = device.store.peers.keys().next().unwrap().clone();
        let mut record = Record::of(&device.export(&remote), SkippedKeyFormat::Seeds);
        let mut state = record.session().post_quantum().unwrap();
        let epoch = state.chain.as_mut().unwrap().epochs.last_mut().unwrap();
        let half = if sending {
            epoch.sending.as_mut()
        } else {
            epoch.receiving.as_mut()
        };
        half.unwrap().counter = end;
        record.session().set_post_quantum(&state);
        device.import(&remote, &record.official());
    }
    let last = [b"-1", b"-0"].map(|text| send(&mut alice, &bob, text));
    assert_eq!(
        PostQuantumHeader::of_ordinary(&last[1].body).unwrap().index,
        u64::from(u32::MAX)
    );
    let before = alice.stored();
    assert_eq!(
        alice.encrypt(&bob.address, b"over"),
        Err(EncryptError::SessionNotFound)
    );
    assert_eq!(alice.stored(), before);
    for message in last.iter().rev() {
        open(&mut bob, &alice, message).unwrap();
    }
    let answer = send(&mut bob, &alice, b"answer");
    open(&mut alice, &bob, &answer).unwrap();
    // A new session is the way out.
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    talk(&mut alice, &mut bob);
}

#[test]
fn what_is_not_loaded_is_asked_for_only_when_it_is_needed() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 20);
        bob.loading = Loading::Parts;
        bob.restart();
        let asked = |bob: &Device| (bob.asked_for_archive, bob.asked_for_keys);
        let late = [b"1", b"2"].map(|text| send(&mut alice, &bob, text));
        let next = send(&mut alice, &bob, b"next");
        open(&mut bob, &alice, &next).unwrap();
        assert_eq!(asked(&bob), (0, 0));
        open(&mut bob, &alice, &late[0]).unwrap();
        assert_eq!(asked(&bob), (0, 1));

        let bundle = bob.publish();
        alice.initiate(&bob.address, &bundle).unwrap();
        let first = send(&mut alice, &bob, b"first");
        open(&mut bob, &alice, &first).unwrap();
        assert_eq!(asked(&bob), (1, 1));
        let repeated = send(&mut alice, &bob, b"repeated");
        open(&mut bob, &alice, &repeated).unwrap();
        assert_eq!(asked(&bob), (1, 1));
        // Of the archived session, and skipped there.
        open(&mut bob, &alice, &late[1]).unwrap();
        assert_eq!(asked(&bob), (2, 2));
        assert_eq!(bob.asked_for_chunks, 0);
    }
}

/// The chunks received before are asked for only where a message completes a part: four times in an epoch at most.
#[test]
fn chunks_are_asked_for_only_by_the_message_that_completes_a_part() {
    let (mut alice, mut bob) = started(Version::V4, 42);
    alice.loading = Loading::Parts;
    bob.loading = Loading::Parts;
    // Which type of payload each state collects.
    let collects = |state: &str| -> &[u8] {
        match state {
            "NoHeaderReceived" => &[1],
            "Ct1Sampled" | "Ct1Acknowledged" => &[2, 3],
            "KeysSampled" | "HeaderSent" => &[5],
            "Ct1Received" | "EkSentCt1Received" => &[6],
            _ => &[],
        }
    };
    let mut rng = SeededRng::of_test(42);
    let (mut with, mut without) = (0, 0);
    while alice.store.peers.is_empty() || alice.braid(&bob.address).1 < 3 {
        let (from, to) = if rng.chance(50) || bob.store.peers.is_empty() {
            (&mut alice, &mut bob)
        } else {
            (&mut bob, &mut alice)
        };
        for _ in 0..1 + rng.below(8) {
            let message = send(from, to, b"text");
            let header = match message.kind {
                MessageType::PreKey => PostQuantumHeader::of_prekey(&message.body),
                MessageType::Ordinary => PostQuantumHeader::of_ordinary(&message.body),
            };
            let header = header.unwrap();
            let known = to.store.peers.contains_key(&from.address);
            let (state, epoch) = if known {
                to.braid(&from.address)
            } else {
                ("NoHeaderReceived", 1)
            };
            let asked = to.asked_for_chunks;
            open(to, from, &message).unwrap();
            let asked = to.asked_for_chunks > asked;
            let adds = header.epoch == epoch && collects(state).contains(&header.payload);
            if asked {
                assert!(adds, "{state}, {header:?}");
                with += 1;
            } else {
                without += 1;
            }
        }
    }
    println!("{with} messages needed the chunks before them, {without} did not");
    // Two epochs, and perhaps the header of the third. The three chunks of a header may still be at hand.
    assert!(
        (6..=9).contains(&with) && without > 100,
        "{with}, {without}"
    );
}

// ---- the quantum computer -------------------------------------------------------------------------------------------

/// Someone who computes every Diffie-Hellman secret there is, of both sides and from the start, and who once stole all
/// that one side had stored. What keeps him out from then on can only be the post-quantum ratchet.
///
/// He has every root key, chain key and private ratchet key at every moment: the sessions of both sides as they are, except
/// for the post-quantum part, which is the stolen one as far as he could move it on himself.
struct Eavesdropper {
    /// The address of the device he stole from.
    victim: ProtocolAddress,
    stolen: PostQuantum,
}

impl Eavesdropper {
    fn new(victim: &Device, other: &Device) -> Self {
        Self {
            victim: victim.address.clone(),
            stolen: post_quantum(victim, other),
        }
    }

    /// Whether he can read a message that `receiver` is about to open.
    fn reads(&mut self, receiver: &Device, sender: &Device, message: &Message) -> bool {
        let to_victim = receiver.address == self.victim;
        let mut record = Record::of(&receiver.export(&sender.address), SkippedKeyFormat::Seeds);
        record.previous.clear();
        record.session().set_post_quantum(&if to_victim {
            self.stolen.clone()
        } else {
            self.stolen.mirrored()
        });
        let mut copy = stolen(receiver);
        copy.import(&sender.address, &record.official());
        if open(&mut copy, sender, message).is_err() {
            return false;
        }
        if to_victim {
            let epoch = self.stolen.state().1;
            self.stolen = post_quantum(&copy, sender);
            // Past the epoch he stole from he has no keys of his own to offer, and only listens.
            if self.stolen.state().1 > epoch {
                self.stolen = self.stolen.deaf();
            }
        }
        true
    }
}

fn post_quantum(device: &Device, other: &Device) -> PostQuantum {
    Record::of(&device.export(&other.address), SkippedKeyFormat::Seeds)
        .session()
        .post_quantum()
        .unwrap()
}

/// A message from one to the other: its epoch, and whether he could read it.
fn overheard(from: &mut Device, to: &mut Device, eavesdropper: &mut Eavesdropper) -> (u64, bool) {
    let message = send(from, to, b"secret");
    let epoch = PostQuantumHeader::of_ordinary(&message.body).unwrap().epoch;
    let read = eavesdropper.reads(to, from, &message);
    assert_eq!(open(to, from, &message).unwrap(), b"secret");
    (epoch, read)
}

/// Two devices in a conversation, caught at the first moment the second one's braid is in each state.
fn moments(seed: u64) -> BTreeMap<&'static str, (Device, Device)> {
    let (mut alice, mut bob) = acquainted(Version::V4, seed);
    let mut rng = SeededRng::of_test(seed);
    let mut moments = BTreeMap::new();
    while moments.len() < 11 {
        assert!(bob.braid(&alice.address).1 < 30, "{:?}", moments.keys());
        for turn in 0..2 {
            for _ in 0..1 + rng.below(7) {
                let (state, _) = bob.braid(&alice.address);
                moments
                    .entry(state)
                    .or_insert_with(|| (alice.clone(), bob.clone()));
                let (from, to) = if turn == 0 {
                    (&mut alice, &mut bob)
                } else {
                    (&mut bob, &mut alice)
                };
                let message = send(from, to, b"text");
                if rng.chance(80) {
                    open(to, from, &message).unwrap();
                }
            }
        }
    }
    moments
}

/// He follows the conversation to the end of the epoch whose secrets lay in what he stole, in both directions, and not one
/// message further.
#[test]
fn one_post_quantum_epoch_shuts_out_an_eavesdropper_who_breaks_every_diffie_hellman() {
    for (state, (mut alice, mut bob)) in moments(50) {
        let mut eavesdropper = Eavesdropper::new(&bob, &alice);
        let (_, epoch) = bob.braid(&alice.address);
        let last = match state {
            // The secret of this epoch is not made yet, so the next epoch is out of his reach.
            "KeysUnsampled" | "NoHeaderReceived" | "HeaderReceived" => epoch,
            // The private key or the secret itself was there to be stolen.
            _ => epoch + 1,
        };
        match state {
            // These wait for what the other side answers to a stolen private key: he can take it in as its owner does.
            "KeysSampled" | "HeaderSent" | "Ct1Received" | "EkSentCt1Received" => {}
            _ => eavesdropper.stolen = eavesdropper.stolen.deaf(),
        }
        let (mut read, mut unread) = ([0, 0], [0, 0]);
        while unread.iter().any(|&count| count < 12) {
            for (turn, burst) in [(0, 12), (1, 12)] {
                for _ in 0..burst {
                    let (epoch, could) = if turn == 0 {
                        overheard(&mut alice, &mut bob, &mut eavesdropper)
                    } else {
                        overheard(&mut bob, &mut alice, &mut eavesdropper)
                    };
                    assert_eq!(could, epoch <= last, "{state}, epoch {epoch}");
                    let count = if could { &mut read } else { &mut unread };
                    count[turn] += 1;
                }
            }
        }
        println!("stolen in {state}: {read:?} messages read, then {unread:?} not");
        assert!(read.iter().all(|&count| count > 0), "{state}: {read:?}");
    }
}

/// The control: without the exchange of post-quantum keys the same eavesdropper reads along for ever, however many ratchet
/// keys are drawn.
#[test]
fn without_the_epoch_that_eavesdropper_reads_everything() {
    let (mut alice, mut bob) = acquainted(Version::V4, 51);
    // Bob answers no key of Alice's.
    let mut record = Record::of(&bob.export(&alice.address), SkippedKeyFormat::Seeds);
    let deaf = record.session().post_quantum().unwrap().deaf();
    record.session().set_post_quantum(&deaf);
    bob.import(&alice.address, &record.official());
    let mut eavesdropper = Eavesdropper::new(&bob, &alice);
    for _ in 0..100 {
        assert_eq!(
            overheard(&mut alice, &mut bob, &mut eavesdropper),
            (1, true)
        );
        assert_eq!(
            overheard(&mut bob, &mut alice, &mut eavesdropper),
            (1, true)
        );
    }
}

/// And without anything stolen he reads nothing at all, though he has every classical secret: the first epoch is keyed by
/// the Kyber secret of the handshake.
#[test]
fn without_a_stolen_state_that_eavesdropper_reads_nothing() {
    let (mut alice, mut bob) = acquainted(Version::V4, 52);
    let mut eavesdropper = Eavesdropper::new(&bob, &alice);
    let chain = eavesdropper.stolen.chain.as_mut().unwrap();
    chain.root = vec![0; 32];
    for epoch in &mut chain.epochs {
        for half in [&mut epoch.sending, &mut epoch.receiving] {
            half.as_mut().unwrap().chain = vec![0; 32];
        }
    }
    for _ in 0..5 {
        assert_eq!(
            overheard(&mut alice, &mut bob, &mut eavesdropper),
            (1, false)
        );
        assert_eq!(
            overheard(&mut bob, &mut alice, &mut eavesdropper),
            (1, false)
        );
    }
}
