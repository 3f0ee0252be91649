//! What is fuzzed: one function per target, which takes any bytes and panics on a fault.
//!
//! `fuzz/` runs them under libFuzzer, `tests/fuzz_corpus.rs` over the committed corpus and its mutations.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a panic is how a fault is reported, and each user of this module uses a part of it"
)]

mod conversation;
mod device;
mod forge;
mod hostile;
pub(crate) mod seeds;
mod stages;
mod tape;

use kith_protocol::{
    BundleError, Entry, EntryGroup, EntryLookup, Fingerprint, IdentityKey, IdentityKeyPair,
    InitiateError, KyberKeyPair, KyberPreKeyPublic, KyberPublicKey, LocalDevice, OfficialRecord,
    PreKeyBundle, PreKeySignalMessage, PrivateKey, PublicKey, Session, SessionRecord,
    SignalMessage, SkippedKeyFormat, TrustOnFirstUse, Version,
};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

use device::{Device, NOW, Receiver, check_session, open, remote};
use forge::{Forged, Known, On, put_bytes, put_number};
use stages::STAGES;
use tape::Tape;

/// A target: its name, which is that of its corpus and of its file in `fuzz/fuzz_targets`, its body, and how many
/// mutations of the corpus the ordinary tests run.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) body: fn(&[u8]),
    pub(crate) mutations: usize,
}

const fn target(name: &'static str, body: fn(&[u8]), mutations: usize) -> Target {
    Target {
        name,
        body,
        mutations,
    }
}

/// Every target.
pub(crate) const TARGETS: [Target; 12] = [
    target("bundle", bundle, 200),
    target("decrypt", decrypt, 30),
    target("entries", entries, 1_000),
    target("fingerprint", fingerprint, 2_000),
    target("hostile_peer", hostile_peer, 60),
    target("kyber_key", kyber_key, 2_000),
    target("official_record", official_record, 1_000),
    target("post_quantum", post_quantum, 500),
    target("prekey_message", prekey_message, 2_000),
    target("public_key", public_key, 300),
    target("signal_message", signal_message, 2_000),
    target("stored_state", stored_state, 1_000),
];

/// A SignalMessage: what parses keeps its bytes, and is opened or refused without a trace by sessions of either
/// version.
pub(crate) fn signal_message(data: &[u8]) {
    let Ok(message) = SignalMessage::from_bytes(data) else {
        return;
    };
    assert_eq!(message.as_bytes(), data);
    assert_eq!(message.version().number(), data[0] >> 4);
    if message.version() == Version::V3 {
        assert_eq!(message.post_quantum_position(), None);
    }
    let _ = (message.ratchet_key().to_bytes(), message.counter());
    for stage in [
        STAGES.get(if message.version() == Version::V3 {
            11
        } else {
            data.len() as u8 % 11
        }),
        &STAGES.version_3,
    ] {
        let mut device = stage.device.clone();
        let was_sent = stage.waiting.iter().any(|sent| sent == data);
        let opened = device.receive(data, false);
        assert!(!was_sent || opened.is_ok(), "{opened:?}");
        if opened.is_ok() {
            assert!(device.receive(data, false).is_err(), "it opened twice");
            device.check();
        }
    }
}

/// A PreKeySignalMessage: as for a SignalMessage, on a device without sessions and on one that has them.
pub(crate) fn prekey_message(data: &[u8]) {
    let Ok(message) = PreKeySignalMessage::from_bytes(data) else {
        return;
    };
    assert_eq!(message.version().number(), data[0] >> 4);
    assert_eq!(message.message().version(), message.version());
    assert_eq!(
        message.kyber_prekey_id().is_some(),
        message.version() == Version::V4
    );
    let inner = message.message();
    assert_eq!(
        SignalMessage::from_bytes(inner.as_bytes()).as_ref(),
        Ok(inner)
    );
    let _ = (message.prekey_id(), message.signed_prekey_id());
    let _ = (
        message.base_key().to_bytes(),
        message.identity_key().to_bytes(),
    );
    let _ = message.registration_id();

    let was_sent = STAGES.first.iter().any(|sent| sent == data);
    let mut fresh = STAGES.fresh.clone();
    let opened = fresh.receive(data, true);
    assert!(!was_sent || opened.is_ok(), "{opened:?}");
    if let Ok(opened) = opened {
        assert_eq!(opened.plaintext, b"first");
        assert!(opened.changes.established);
        assert!(fresh.receive(data, true).is_err(), "it opened twice");
        fresh.check();
    }
    let opened = STAGES.met.clone().receive(data, true);
    assert!(opened.is_err(), "all first messages were opened");
}

/// The part of the post-quantum ratchet, field 5 of a SignalMessage: read as a second reader reads it, and received
/// by a session in one of the eleven states.
pub(crate) fn post_quantum(data: &[u8]) {
    let mut bytes = vec![0x44];
    put_bytes(&mut bytes, 1, &[5; 33]);
    put_number(&mut bytes, 2, 0);
    put_bytes(&mut bytes, 4, &[0; 16]);
    put_bytes(&mut bytes, 5, data);
    bytes.extend_from_slice(&[0; 8]);
    let message = SignalMessage::from_bytes(&bytes).expect("a message around any field 5");
    let position = hostile::position(data);
    assert_eq!(message.post_quantum_position(), position.flatten());

    let sum = data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let mut device = STAGES.states[usize::from(sum % 11)].device.clone();
    let known = Known::of(device.record.current().expect("a session"));
    let message = known.forge(&Forged {
        on: On::Chain(known.chains.len().saturating_sub(1)),
        ahead: 0,
        plaintext: b"forged",
        post_quantum: Some(data),
        position: position.flatten(),
        addresses: None,
    });
    match device.receive(&message, false) {
        Ok(opened) => {
            assert_eq!(opened.plaintext, b"forged");
            assert!(position.is_some(), "opened without a post-quantum part");
        }
        Err(error) => assert!(
            matches!(error, device::NotOpened::Decrypt(_)),
            "a forged message is none: {error:?}"
        ),
    }
    device.check();
}

/// A stored session: what is read is written again byte for byte, and survives use.
pub(crate) fn stored_state(data: &[u8]) {
    let Ok(session) = Session::from_bytes(data) else {
        return;
    };
    // A private key is clamped when it is read; nobody writes another.
    let private = match session.version() {
        Version::V3 => 187,
        Version::V4 => 88,
    };
    let mut clamped = data.to_vec();
    clamped[private] &= 0xf8;
    clamped[private + 31] = clamped[private + 31] & 0x7f | 0x40;
    let written = session.to_bytes();
    assert!(written.as_slice() == clamped, "it is written otherwise");
    assert_eq!(session.info().version, session.version());
    check_session(&session);
    hostile::exercise(&session, &kith_protocol::MemoryEntries::default());
}

/// What is stored beside a session: what is read is written again, and in the place of any other entry it opens
/// nothing and changes nothing.
pub(crate) fn entries(data: &[u8]) {
    if let Ok(group) = EntryGroup::from_bytes(data) {
        assert_eq!(group.to_bytes(), data);
    }
    let Ok(entry) = Entry::from_bytes(data) else {
        return;
    };
    assert_eq!(entry.to_bytes().as_slice(), data);
    let stage = STAGES.get(data.last().copied().unwrap_or(0));
    let device = &stage.device;
    let receiver = Receiver {
        address: &device.address,
        peer: &device.peer,
        identity: &device.identity,
        keys: &device.keys,
    };
    let next = stage.peer.clone().send(b"next").expect("a session");
    let next = (!next.is_prekey_message).then_some(next.bytes);
    for message in stage.waiting.iter().chain(&next) {
        for everywhere in [false, true] {
            let mut record = device.record.clone();
            let opened = open(
                &mut record,
                &receiver,
                message,
                false,
                &|session, position| match device.entries.find(session, position) {
                    EntryLookup::Found(found)
                        if everywhere
                            || std::mem::discriminant(&position.0)
                                == std::mem::discriminant(&EntryGroup::Chunks(0)) =>
                    {
                        if found == entry {
                            EntryLookup::Found(found)
                        } else {
                            EntryLookup::Found(entry.clone())
                        }
                    }
                    found => found,
                },
                &mut ChaCha12Rng::seed_from_u64(1),
            );
            match opened {
                Ok(_) => check_session(record.current().expect("it opened")),
                Err(_) => assert!(record == device.record, "a refusal changed it"),
            }
        }
    }
}

/// A record of Signal's own library: what is read can be written and read again, stored, and used.
pub(crate) fn official_record(data: &[u8]) {
    let Ok(record) = OfficialRecord::from_bytes(data) else {
        return;
    };
    for format in [SkippedKeyFormat::Seeds, SkippedKeyFormat::Expanded] {
        let written = record.to_bytes(format);
        let again = OfficialRecord::from_bytes(&written).expect("what was written is read");
        assert_eq!(
            again.to_bytes(format).as_slice(),
            written.as_slice(),
            "written once more"
        );
        let ids = |record: &SessionRecord| -> Vec<_> {
            (record.current().into_iter().chain(record.archived()))
                .map(Session::id)
                .collect()
        };
        assert_eq!(ids(&again.sessions), ids(&record.sessions));
        assert_eq!(again.entries.len(), record.entries.len());
    }
    let sessions = record.sessions.current().into_iter();
    for session in sessions.chain(record.sessions.archived()).take(3) {
        check_session(session);
        hostile::exercise(session, &record.entries);
    }
}

/// Kyber keys: what is read is written again; any public key can be encapsulated to, any private key used.
pub(crate) fn kyber_key(data: &[u8]) {
    if let Ok(seed) = data.try_into() {
        let pair = KyberKeyPair::from_seed(seed);
        assert_eq!(pair.seed(), Some(seed));
        let public = pair.public_key();
        assert_eq!(
            KyberPublicKey::from_bytes(&public.to_bytes()).as_ref(),
            Ok(public)
        );
    }
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let mut device = STAGES.fresh.clone();
    if let Ok(public_key) = KyberPublicKey::from_bytes(data) {
        assert_eq!(public_key.to_bytes(), data);
        let mut bundle = device.bundle(Version::V4, None);
        bundle.kyber_prekey = Some(KyberPreKeyPublic {
            id: 1,
            signature: device.identity.sign(data, &mut rng).to_vec(),
            public_key,
        });
        let [mut alice, _] = Device::pair(8, false);
        alice.start(&bundle);
        let sent = alice.send(b"to any key").expect("a session");
        assert!(PreKeySignalMessage::from_bytes(&sent.bytes).is_ok());
    }
    if let Ok(pair) = KyberKeyPair::from_secret_key(data) {
        let public = pair.public_key().to_bytes();
        assert_eq!(&data[1 + 1536..1 + 1536 + 1568], &public[1..]);
        let is_ours = pair == device.keys.kyber.key_pair;
        device.keys.kyber.key_pair = pair;
        for message in STAGES.first.iter().filter(|message| message[0] >> 4 == 4) {
            let opened = device.receive(message, true);
            // Another may open it too: what a refused ciphertext gives (`z`) is a part of the key.
            assert!(opened.is_ok() || !is_ours, "{opened:?}");
        }
    }
}

/// Curve25519 keys, pairs and signatures: what is read is written again; whatever the key, agreeing and verifying end.
pub(crate) fn public_key(data: &[u8]) {
    if let Some(pair) = IdentityKeyPair::from_official(data) {
        assert_eq!(data[2..35], pair.identity_key().to_bytes());
        let again = IdentityKeyPair::from_private_key(pair.private_key().clone());
        assert_eq!(again, pair);
    }
    let (key, rest) = data.split_at(data.len().min(33));
    let Ok(public) = PublicKey::from_bytes(key) else {
        assert!(IdentityKey::from_bytes(key).is_err());
        return;
    };
    assert_eq!(public.to_bytes(), key);
    assert_eq!(public.u().as_slice(), &key[1..]);
    let identity = IdentityKey::from_bytes(key).expect("the same bytes");
    assert!(!identity.verify(b"nothing it signed", rest) || rest.len() == 64);
    let is_canonical = public.check_canonical().is_ok();

    // In a bundle: signed, and used up.
    let [mut alice, mut bob] = Device::pair(8, false);
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let mut bundle = bob.bundle(Version::V3, Some(1));
    if rest.len() % 2 == 0 {
        bundle.prekey = Some((1, public));
    } else {
        bundle.signed_prekey.public_key = public;
        bundle.signed_prekey.signature = bob.identity.sign(key, &mut rng).to_vec();
    }
    let local = LocalDevice {
        address: &alice.address,
        identity: &alice.identity,
        registration_id: 1,
    };
    let trust = TrustOnFirstUse::default();
    let started =
        alice
            .record
            .initiate(&local, &remote(&alice.peer), &bundle, &trust, NOW, &mut rng);
    assert!(matches!(started, Ok(_) | Err(InitiateError::Key)));

    // As the ratchet key and base key of a first message.
    let mut fresh = STAGES.fresh.clone();
    for message in STAGES.first.iter().step_by(2) {
        let message_inside = PreKeySignalMessage::from_bytes(message).expect("a first message");
        let base_key = message_inside.base_key().to_bytes();
        let mut changed = message.clone();
        let at = changed.windows(33).position(|window| window == base_key);
        let at = at.expect("the base key");
        changed[at..at + 33].copy_from_slice(key);
        let opened = fresh.receive(&changed, true);
        assert!(opened.is_err() || (is_canonical && base_key == key));
    }
}

/// A bundle changed in some of its fields: it is used only if all that is signed is as it was.
pub(crate) fn bundle(data: &[u8]) {
    let mut tape = Tape(data);
    let [mut alice, mut bob] = Device::pair(1, true);
    let [_, mut carol] = Device::pair(2, true);
    let version = if tape.byte_or_zero() & 1 == 0 {
        Version::V4
    } else {
        Version::V3
    };
    let honest = bob.bundle(version, Some(1));
    let other = carol.bundle(Version::V4, Some(1));
    let mut bundle = honest.clone();
    for _ in 0..8 {
        let Some(operation) = tape.byte() else { break };
        change(&mut bundle, &other, operation, &mut tape);
    }
    let signed = |bundle: &PreKeyBundle, by: &PreKeyBundle| {
        let kyber = |bundle: &PreKeyBundle| {
            let kyber = bundle.kyber_prekey.as_ref();
            kyber.map(|it| (it.public_key.clone(), it.signature.clone()))
        };
        let (ours, theirs) = (&bundle.signed_prekey, &by.signed_prekey);
        bundle.identity_key == by.identity_key
            && (ours.public_key, &ours.signature) == (theirs.public_key, &theirs.signature)
            && (bundle.kyber_prekey.is_none() || kyber(bundle) == kyber(by))
    };
    let is_signed = signed(&bundle, &honest) || signed(&bundle, &other);
    assert_eq!(bundle.verify().is_ok(), is_signed, "{bundle:?}");

    let before = alice.record.clone();
    let started = alice.record.initiate(
        &LocalDevice {
            address: &alice.address,
            identity: &alice.identity,
            registration_id: 1,
        },
        &remote(&alice.peer),
        &bundle,
        &TrustOnFirstUse::default(),
        NOW,
        &mut ChaCha12Rng::seed_from_u64(1),
    );
    if started.is_err() {
        assert!(
            before == alice.record,
            "a refused bundle changed the record"
        );
    }
    if !is_signed {
        let error = InitiateError::Bundle(BundleError::InvalidSignature);
        assert_eq!(started, Err(error));
        return;
    }
    if started.is_err() {
        return;
    }
    let sent = alice.send(b"first").expect("a session was started");
    let opened = bob.receive(&sent.bytes, true);
    let names = |bundle: &PreKeyBundle| {
        let kyber = bundle.kyber_prekey.as_ref().map(|it| it.id);
        (bundle.signed_prekey.id, bundle.prekey, kyber)
    };
    let (bobs, changed) = (names(&honest), names(&bundle));
    // Without a one-time prekey, or without a Kyber prekey, it is a bundle of his as well.
    let is_his = bundle.identity_key == honest.identity_key
        && bobs.0 == changed.0
        && (changed.1.is_none() || changed.1 == bobs.1)
        && (changed.2.is_none() || changed.2 == bobs.2);
    assert_eq!(opened.is_ok(), is_his, "{opened:?}");
}

fn change(bundle: &mut PreKeyBundle, other: &PreKeyBundle, operation: u8, tape: &mut Tape<'_>) {
    let key = |key: &PublicKey, tape: &mut Tape<'_>| {
        let mut bytes = key.to_bytes();
        let at = 1 + tape.place(32).unwrap_or(0);
        bytes[at] ^= tape.byte_or_zero();
        PublicKey::from_bytes(&bytes).expect("33 bytes of the type")
    };
    let signature = |signature: &mut Vec<u8>, tape: &mut Tape<'_>| match tape.byte_or_zero() {
        0 => signature.clear(),
        1 => signature.push(0),
        2 => drop(signature.pop()),
        3 => signature.resize(64, 0),
        _ => {
            if let Some(at) = tape.place(signature.len()) {
                signature[at] ^= tape.byte_or_zero();
            }
        }
    };
    match operation % 16 {
        0 => bundle.registration_id = tape.number(),
        1 => bundle.identity_key = key(bundle.identity_key.public_key(), tape).into(),
        2 => bundle.identity_key = other.identity_key,
        3 => bundle.signed_prekey.id = tape.number(),
        4 => bundle.signed_prekey.public_key = key(&bundle.signed_prekey.public_key, tape),
        5 => signature(&mut bundle.signed_prekey.signature, tape),
        6 => bundle.signed_prekey = other.signed_prekey.clone(),
        7 => bundle.prekey = None,
        8 => {
            if let Some((id, prekey)) = &mut bundle.prekey {
                *id ^= u32::from(tape.byte_or_zero());
                *prekey = key(prekey, tape);
            }
        }
        9 => bundle.prekey = other.prekey,
        10 => bundle.kyber_prekey = None,
        11 => bundle.kyber_prekey.clone_from(&other.kyber_prekey),
        _ => {
            let Some(kyber) = &mut bundle.kyber_prekey else {
                return;
            };
            match operation % 16 {
                12 => kyber.id = tape.number(),
                13 => signature(&mut kyber.signature, tape),
                14 => {
                    let mut bytes = kyber.public_key.to_bytes();
                    if let Some(at) = tape.place(bytes.len()) {
                        bytes[at] ^= tape.byte_or_zero();
                    }
                    if let Ok(changed) = KyberPublicKey::from_bytes(&bytes) {
                        kyber.public_key = changed;
                    }
                }
                _ => bundle.signed_prekey.signature.clone_from(&kyber.signature),
            }
        }
    }
}

/// A scanned safety number: it matches only if both halves are in it.
pub(crate) fn fingerprint(data: &[u8]) {
    let ids: [&[u8]; 2] = [b"+14152222222", b"+14153333333"];
    let keys =
        [1, 2].map(|number| IdentityKey::from(PrivateKey::from_bytes(&[number; 32]).public_key()));
    let of = |ours: usize| {
        Fingerprint::new(
            1,
            2,
            (ids[ours], &keys[ours]),
            (ids[1 - ours], &keys[1 - ours]),
        )
        .expect("two iterations")
    };
    let (ours, theirs) = (of(0).scannable(), of(1).scannable());
    if data == theirs {
        assert_eq!(of(0).matches(data), Ok(true));
    }
    if of(0).matches(data) == Ok(true) {
        // Each half is the last 32 bytes of a side.
        for half in [&ours[6..38], &ours[42..]] {
            let found = data.windows(32).any(|window| window == half);
            assert!(found, "a number without {half:02x?} matched");
        }
    }
    let any = Fingerprint::new(2, 2, (data, &keys[0]), (ids[1], &keys[1])).expect("two iterations");
    assert_eq!(any.display().len(), 60);
    assert!(any.display().bytes().all(|digit| digit.is_ascii_digit()));
    assert_eq!(any.matches(data), any.clone().matches(data));
}

/// Two devices, see [`conversation`].
pub(crate) fn decrypt(data: &[u8]) {
    conversation::run(data);
}

/// A device and a peer that keeps no rule, see [`hostile`].
pub(crate) fn hostile_peer(data: &[u8]) {
    hostile::run(data);
}
