//! Attacks on the engine, written from the specification and the public API alone. Each test is one attempt,
//! and asserts what a sound engine does. The forger of `adversary/model.rs` has all keys of a device: it is
//! the peer who authenticates its messages and breaks every other rule.

#![allow(
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a broken fixture ends the test, and timings are printed"
)]

#[path = "adversary/model.rs"]
mod model;

use std::collections::BTreeSet;
use std::time::Instant;

use kith_protocol::limits::{
    MAX_ARCHIVED_SESSIONS, MAX_MESSAGE_LEN, MAX_PLAINTEXT_LEN, MAX_SKIPPED_KEYS_PER_CHAIN,
    MAX_SKIPPED_KEYS_PER_SESSION,
};
use kith_protocol::{
    BundleError, DecryptError, EncryptError, Entry, EntryGroup, EntryLookup, EntryPosition,
    IdentityKeyPair, InitiateError, KyberPreKeyPublic, NotLoaded, OfficialRecord, PreKeyBundle,
    PreKeySignalMessage, Session, SessionId, SessionRecord, SignalMessage, Version,
};
use libcrux_ml_kem::mlkem768::incremental::KeyPairCompressedBytes;

use model::{
    ALICE, BOB, Body, DUPLICATE, Fields, Forger, INVALID, LAST_RESORT, MALLORY, No, Party, Value,
    all_of, braid_of, bytes_of, changed, drop_field, edit, epoch_two, field, fields, hmac, pair,
    pair_of, pair_v3, parse, rng, round, session_of, set, sha3_256, state, talk, varint, write,
};

const TOO_FAR: No = No::Decrypt(DecryptError::TooFarAhead);

fn refused(result: &Result<Vec<u8>, No>) -> bool {
    matches!(
        result,
        Err(No::Parse(_)
            | No::Decrypt(
                DecryptError::Invalid | DecryptError::TooFarAhead | DecryptError::Duplicate
            ))
    )
}

/// Both still understand each other.
fn still_talk(a: &mut Party, b: &mut Party) {
    for _ in 0..3 {
        round(a, b);
        round(b, a);
    }
}

// 1. The forger is what it claims to be: without this, every refusal below would prove nothing.

#[test]
fn the_forger_speaks_the_protocol() {
    assert_eq!(
        sha3_256(b"abc").to_vec(),
        hex::decode("3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532").unwrap()
    );
    for (mut a, mut b) in [pair(), epoch_two()] {
        let mut forger = Forger::of(&a);
        let epoch = forger.epoch;
        let message = forger.say(epoch, 0, None);
        assert_eq!(b.open(&a.peer(), &message, false).unwrap(), b"forged");
        forger.skip(3);
        let message = forger.say(epoch, 0, None);
        assert_eq!(b.open(&a.peer(), &message, false).unwrap(), b"forged");
        // Of the chain that Bob has drawn and not yet used.
        let mut forger = Forger::of(&b);
        let epoch = forger.epoch;
        let message = forger.say(epoch, 0, None);
        assert_eq!(a.open(&b.peer(), &message, false).unwrap(), b"forged");
    }
    let (a, mut b) = pair_v3();
    let message = Forger::of(&a).message(None, &[0; 32]);
    assert_eq!(b.open(&a.peer(), &message, false).unwrap(), b"forged");
}

// 2. Field 5 on the wire, without keys

#[test]
fn field_five_of_one_message_in_another() {
    let (mut a, mut b) = pair();
    let messages: Vec<_> = (0..4).map(|_| a.send(&b.peer(), b"x").bytes).collect();
    for (i, message) in messages.iter().enumerate() {
        for (j, other) in messages.iter().enumerate() {
            if i != j {
                let spliced = changed(message, 8, |f| {
                    set(f, 5, Value::Bytes(bytes_of(&fields(other, 8), 5)));
                });
                assert_eq!(b.open(&a.peer(), &spliced, false), Err(INVALID));
            }
        }
    }
    for message in &messages {
        b.open(&a.peer(), message, false).unwrap();
    }
}

#[test]
fn field_five_of_another_session_and_of_the_other_direction() {
    let (mut a, mut b) = pair();
    let (mut c, mut d) = epoch_two();
    let theirs = c.send(&d.peer(), b"x").bytes;
    let back = b.send(&a.peer(), b"x").bytes;
    let also = d.send(&c.peer(), b"x").bytes;
    let message = a.send(&b.peer(), b"x").bytes;
    for other in [theirs, back, also] {
        let spliced = changed(&message, 8, |f| {
            set(f, 5, Value::Bytes(bytes_of(&fields(&other, 8), 5)));
        });
        let result = b.open(&a.peer(), &spliced, false);
        assert!(refused(&result), "{result:?}");
    }
    b.open(&a.peer(), &message, false).unwrap();
}

#[test]
fn field_five_taken_out_emptied_or_doubled() {
    let (mut a, mut b) = pair();
    let message = a.send(&b.peer(), b"x").bytes;
    let real = bytes_of(&fields(&message, 8), 5);
    let changes: [&dyn Fn(&mut Fields); 6] = [
        &|f| drop_field(f, 5),
        &|f| set(f, 5, Value::Bytes(Vec::new())),
        &|f| f.push((5, Value::Bytes(real.clone()))),
        &|f| f.push((5, Value::Bytes(Vec::new()))),
        &|f| set(f, 5, Value::Number(1)),
        &|f| set(f, 5, Value::Bytes(field(1, 0, 0, None))),
    ];
    for change in changes {
        let result = b.open(&a.peer(), &changed(&message, 8, |f| change(f)), false);
        assert!(refused(&result), "{result:?}");
    }
    b.open(&a.peer(), &message, false).unwrap();
}

#[test]
fn every_bit_of_an_ordinary_message() {
    for (mut a, mut b) in [pair(), epoch_two(), pair_v3()] {
        let message = a.send(&b.peer(), b"each bit").bytes;
        for bit in 0..message.len() * 8 {
            let mut flipped = message.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let result = b.open(&a.peer(), &flipped, false);
            assert!(result.is_err(), "bit {bit} of byte {}: opened", bit / 8);
        }
        for length in 0..message.len() {
            assert!(b.open(&a.peer(), &message[..length], false).is_err());
        }
        let longer = [&message[..], &[0]].concat();
        assert!(b.open(&a.peer(), &longer, false).is_err());
        assert_eq!(b.open(&a.peer(), &message, false).unwrap(), b"each bit");
        assert_eq!(b.open(&a.peer(), &message, false), Err(DUPLICATE));
    }
}

// 3. Field 5 by a peer who can authenticate

#[test]
fn authentic_nonsense_in_field_five_is_an_error_or_nothing() {
    let (mut a, mut b) = pair();
    let chunk = [7_u8; 32];
    let mut overflow = vec![1];
    overflow.extend([0xff; 9]);
    overflow.extend([2, 1, 0]);
    let mut eleven = vec![1];
    eleven.extend([0x80; 10]);
    eleven.extend([1, 1, 0]);
    let mut wide_index = vec![1, 1];
    wide_index.extend(varint(1 << 32 | 3));
    wide_index.push(0);
    let mut wider_index = vec![1, 1];
    wider_index.extend(varint(u64::MAX));
    wider_index.push(0);
    let mut short = field(1, 3, 1, Some((0, &chunk)));
    short.pop();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("version alone", vec![1]),
        ("version 0", [&[0], &field(1, 3, 0, None)[1..]].concat()),
        ("version 2", [&[2], &field(1, 3, 0, None)[1..]].concat()),
        ("version 255", [&[255], &field(1, 3, 0, None)[1..]].concat()),
        ("epoch 0", field(0, 3, 0, None)),
        ("epoch 0, index 0", field(0, 0, 0, None)),
        ("epoch above all", field(u64::MAX, 3, 0, None)),
        ("epoch overflows", overflow),
        ("epoch of eleven bytes", eleven),
        ("epoch without end", [vec![1], vec![0x80; 40]].concat()),
        ("next epoch", field(2, 1, 0, None)),
        ("next epoch, index 0", field(2, 0, 0, None)),
        ("index of 33 bits", wide_index),
        ("index of 64 bits", wider_index),
        ("index above all", field(1, u32::MAX, 0, None)),
        ("no type", vec![1, 1, 3]),
        ("type 7", field(1, 3, 7, Some((0, &chunk)))),
        ("type 255", field(1, 3, 255, None)),
        ("chunk index 65536", field(1, 3, 1, Some((65_536, &chunk)))),
        (
            "chunk index of 64 bits",
            field(1, 3, 1, Some((u64::MAX, &chunk))),
        ),
        ("chunk of 31 bytes", short),
        ("no chunk", field(1, 3, 1, None)),
    ];
    // All of them with the key they would have if it were valid, so that only the field is at fault.
    for (what, field) in bad {
        let mut forger = Forger::of(&a);
        let (_, key) = forger.key(1);
        for salt in [key, [0; 32]] {
            let message = forger.clone().message(Some(&field), &salt);
            let result = b.open(&a.peer(), &message, false);
            assert!(refused(&result), "{what}: {result:?}");
        }
    }
    still_talk(&mut a, &mut b);
}

#[test]
fn overlong_numbers_in_field_five_mean_what_they_say() {
    // Not canonical, but authentic: opening and refusing are both sound, misreading is not.
    let (a, b) = pair();
    for (epoch, index) in [
        (vec![0x81, 0x00], vec![0x03]),
        (vec![0x01], vec![0x83, 0x80, 0x00]),
    ] {
        let mut forger = Forger::of(&a);
        let (number, key) = forger.key(1);
        assert_eq!(number, 3);
        let field = [vec![1], epoch, index, vec![0]].concat();
        let message = forger.message(Some(&field), &key);
        let result = b.clone().open(&a.peer(), &message, false);
        println!("overlong: {result:?}");
        assert!(result.is_ok() || refused(&result));
    }
}

#[test]
fn bytes_behind_field_five_are_ignored_as_the_official_client_does() {
    let (a, mut b) = pair();
    let before = b.entries.len();
    let mut forger = Forger::of(&a);
    let (index, key) = forger.key(1);
    let mut field = field(1, index, 0, None);
    field.extend([0xaa; 500]);
    let message = forger.message(Some(&field), &key);
    assert_eq!(b.open(&a.peer(), &message, false).unwrap(), b"forged");
    assert_eq!(b.entries.len(), before);
}

/// Index 0 mixes no post-quantum key. The official client accepts it at any time (specification, 10.2). Who
/// breaks every Diffie-Hellman, but not ML-KEM, can therefore still send in the peer's name after the braid
/// has healed; what the peer sends stays closed.
#[test]
fn index_zero_needs_the_diffie_hellman_keys_and_changes_nothing_but_the_chain() {
    let (mut a, mut b) = epoch_two();
    let mut forger = Forger::of(&a);
    let before = b.info().braid;
    let message = forger.message(Some(&field(1, 0, 0, None)), &[0; 32]);
    let _ = b.clone().open(&a.peer(), &message, false);
    // With a key mixed in, or in another epoch, it is not of the protocol.
    let mut forger = Forger::of(&a);
    let (_, key) = forger.key(2);
    for (field, salt) in [
        (field(1, 0, 0, None), key),
        (field(2, 0, 0, None), [0; 32]),
        (field(2, 0, 0, None), key),
    ] {
        let message = forger.clone().message(Some(&field), &salt);
        let result = b.open(&a.peer(), &message, false);
        assert!(refused(&result), "{result:?}");
    }
    assert_eq!(b.info().braid, before);
    still_talk(&mut b, &mut a);
}

/// Whoever has the Diffie-Hellman secrets alone, by a quantum computer for instance, must not get around the third
/// ratchet by saying that no key is mixed. The official client accepts that for ever.
#[test]
fn index_zero_after_an_epoch_strips_the_post_quantum_ratchet() {
    let (a, mut b) = epoch_two();
    // The forger uses nothing of the post-quantum ratchet.
    let mut forger = Forger::of(&a);
    forger.epochs.clear();
    forger.mac_key.clear();
    let message = forger.message(Some(&field(1, 0, 0, None)), &[0; 32]);
    let result = b.open(&a.peer(), &message, false);
    assert!(
        refused(&result),
        "a message without a post-quantum key opened after a whole epoch with them: {result:?}"
    );
}

/// So do clients begin that do not insist on the third ratchet, until they have heard from the other side.
#[test]
fn index_zero_is_for_the_first_chain_of_an_initiator() {
    let mut a = Party::new(ALICE, 1);
    let mut b = Party::new(BOB, 2);
    a.initiate(&b.peer(), &b.bundle()).unwrap();
    let first = a.send(&b.peer(), b"first");
    b.take(&a.peer(), &first).unwrap();
    let without = |forger: &mut Forger| forger.message(Some(&field(1, 0, 0, None)), &[0; 32]);

    let mut of_first_chain = Forger::of(&a);
    let second = without(&mut of_first_chain);
    b.open(&a.peer(), &second, false).unwrap();
    let [late, later] = [(); 2].map(|()| without(&mut of_first_chain));

    // What the responder says, and what the initiator says after it has heard from the responder.
    let answer = without(&mut Forger::of(&b));
    assert!(refused(&a.open(&b.peer(), &answer, false)));
    round(&mut b, &mut a);
    let of_second_chain = without(&mut Forger::of(&a));
    assert!(refused(&b.open(&a.peer(), &of_second_chain, false)));
    b.open(&a.peer(), &late, false).unwrap();

    // When chains may have been dropped, nobody knows which one was the first.
    round(&mut a, &mut b);
    while b.info().receiving.len() < 5 {
        round(&mut b, &mut a);
        round(&mut a, &mut b);
    }
    assert!(refused(&b.open(&a.peer(), &later, false)));
    still_talk(&mut b, &mut a);
}

#[test]
fn a_post_quantum_key_is_used_once() {
    let (a, mut b) = pair();
    let mut forger = Forger::of(&a);
    let (index, key) = forger.key(1);
    let field = field(1, index, 0, None);
    let first = forger.message(Some(&field), &key);
    let second = forger.message(Some(&field), &key);
    b.open(&a.peer(), &first, false).unwrap();
    assert!(refused(&b.open(&a.peer(), &second, false)));
    // A skipped one as well.
    let (late, late_key) = forger.key(1);
    let message = forger.say(1, 0, None);
    b.open(&a.peer(), &message, false).unwrap();
    let late_field = model::field(1, late, 0, None);
    let one = forger.message(Some(&late_field), &late_key);
    let two = forger.message(Some(&late_field), &late_key);
    b.open(&a.peer(), &one, false).unwrap();
    assert!(refused(&b.open(&a.peer(), &two, false)));
    assert_eq!(b.census().1, 0);
}

#[test]
fn wrong_chunks_for_every_state_are_ignored_and_the_conversation_goes_on() {
    let (mut a, mut b) = pair();
    let mut seen = BTreeSet::new();
    for _ in 0..190 {
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (state, epoch) = to.braid();
            let mut forger = Forger::of(from);
            if forger.epoch != epoch {
                continue;
            }
            // Chunks this state does not wait for.
            let wanted: &[u8] = match state {
                "KeysSampled" | "HeaderSent" => &[5],
                "Ct1Received" | "EkSentCt1Received" => &[6],
                "NoHeaderReceived" => &[1],
                "Ct1Sampled" => &[2, 3],
                "EkReceivedCt1Sampled" => &[3, 4],
                "Ct1Acknowledged" => &[2, 3],
                _ => &[],
            };
            if !seen.insert(state) {
                continue;
            }
            if !forger.epochs.contains_key(&(epoch - 1)) {
                continue;
            }
            for kind in (0..=6).filter(|kind| !wanted.contains(kind)) {
                let chunk = [0xee; 32];
                let chunk = (!matches!(kind, 0 | 4)).then_some((65_535, &chunk[..]));
                let message = forger.say(epoch, kind, chunk);
                let mut victim = to.clone();
                let revision = victim.record.current().unwrap().braid_revision();
                assert_eq!(
                    victim.open(&from.peer(), &message, false).unwrap(),
                    b"forged",
                    "{state}, {kind}"
                );
                assert_eq!(victim.braid(), (state, epoch), "{kind}");
                assert_eq!(
                    victim.record.current().unwrap().braid_revision(),
                    revision,
                    "{state}, {kind}"
                );
                assert_eq!(victim.census().2, to.census().2, "{state}, {kind}");
            }
        }
        round(&mut a, &mut b);
        round(&mut b, &mut a);
    }
    println!("states attacked: {seen:?}");
    assert!(seen.len() >= 8, "{seen:?}");
}

#[test]
fn a_header_with_a_wrong_mac() {
    let (mut a, b) = epoch_two();
    let mut forger = Forger::of(&b);
    let keys = KeyPairCompressedBytes::from_seed([3; 64]);
    let mut wrong_epoch = forger.clone();
    wrong_epoch.epoch = 1;
    let mut header = forger.header(keys.pk1());
    header[95] ^= 1;
    let mut other = forger.header(keys.pk1());
    other[0] ^= 1;
    let (c, _) = pair();
    for bad in [
        header,
        other,
        wrong_epoch.header(keys.pk1()),
        Forger {
            epoch: 2,
            ..Forger::of(&c)
        }
        .header(keys.pk1()),
        vec![0; 96],
    ] {
        let mut victim = a.clone();
        let mut forger = forger.clone();
        let messages = forger.chunks(1, &bad);
        let results: Vec<_> = messages
            .iter()
            .map(|message| victim.open(&b.peer(), message, false))
            .collect();
        assert!(results[0].is_ok() && results[1].is_ok(), "{results:?}");
        assert_eq!(results[2], Err(INVALID));
        assert_eq!(victim.braid(), ("NoHeaderReceived", 2));
        // Only the braid is refused: a message that brings no chunk still opens.
        let message = forger.say(2, 0, None);
        assert!(victim.open(&b.peer(), &message, false).is_ok());
    }
    // And the right one is taken, so it was the MAC.
    let right = forger.header(keys.pk1());
    for message in forger.chunks(1, &right) {
        a.open(&b.peer(), &message, false).unwrap();
    }
    assert_eq!(a.braid(), ("HeaderReceived", 2));
}

/// Alice has taken the header of the forger, and has begun with the first part of the ciphertext.
fn header_taken(header: &[u8]) -> (Party, Party, Forger) {
    let (mut a, b) = epoch_two();
    let mut forger = Forger::of(&b);
    let header = forger.header(header);
    for message in forger.chunks(1, &header) {
        a.open(&b.peer(), &message, false).unwrap();
    }
    let _ = a.send(&b.peer(), b"ct1");
    assert_eq!(a.braid(), ("Ct1Sampled", 2));
    (a, b, forger)
}

#[test]
fn an_encapsulation_key_that_is_not_the_headers() {
    let keys = KeyPairCompressedBytes::from_seed([3; 64]);
    let other = KeyPairCompressedBytes::from_seed([4; 64]);
    let mut flipped = keys.pk2().to_vec();
    flipped[5] ^= 0x80;
    for bad in [
        other.pk2().to_vec(),
        flipped,
        vec![0; 1152],
        vec![0xff; 1152],
    ] {
        for kind in [2, 3] {
            let (mut a, b, mut forger) = header_taken(keys.pk1());
            let results: Vec<_> = forger
                .chunks(kind, &bad)
                .iter()
                .map(|message| a.open(&b.peer(), message, false))
                .collect();
            assert!(results[..35].iter().all(Result::is_ok));
            assert_eq!(results[35], Err(INVALID), "{kind}");
            // An attempt with the right last chunk, now that all else is wrong.
            let message = forger.say(2, kind, Some((35, &keys.pk2()[1120..])));
            let _ = a.open(&b.peer(), &message, false);
            assert!(!a.braid().0.starts_with("Ct2"));
        }
    }
    let (mut a, b, mut forger) = header_taken(keys.pk1());
    for message in forger.chunks(3, keys.pk2()) {
        a.open(&b.peer(), &message, false).unwrap();
    }
    assert_eq!(a.braid(), ("Ct2Sampled", 2));
}

/// The hash in the header is right, but the key has a coefficient of 3329 or more: FIPS 203 wants it refused.
#[test]
fn an_encapsulation_key_that_is_not_reduced() {
    let keys = KeyPairCompressedBytes::from_seed([3; 64]);
    let mut ek = keys.pk2().to_vec();
    let at = (0..384)
        .find(|i| u16::from(ek[3 * i]) | u16::from(ek[3 * i + 1] & 15) << 8 < 767)
        .unwrap();
    let value = (u16::from(ek[3 * at]) | u16::from(ek[3 * at + 1] & 15) << 8) + 3329;
    ek[3 * at] = value as u8;
    ek[3 * at + 1] = ek[3 * at + 1] & 0xf0 | (value >> 8) as u8;
    let rho = &keys.pk1()[..32];
    assert_eq!(
        sha3_256(&[keys.pk2(), rho].concat()),
        keys.pk1()[32..],
        "this is how the header is made"
    );
    let header = [rho, &sha3_256(&[&ek, rho].concat())].concat();
    let (mut a, b, mut forger) = header_taken(&header);
    let results: Vec<_> = forger
        .chunks(3, &ek)
        .iter()
        .map(|message| a.open(&b.peer(), message, false))
        .collect();
    assert!(results[..35].iter().all(Result::is_ok));
    println!(
        "key with a coefficient of {value}: {:?}, {:?}",
        results[35],
        a.braid()
    );
    assert_eq!(results[35], Err(INVALID));
}

/// Bob makes the ciphertext of an epoch for Alice, who has all of its first part; `Forger` is Bob's.
fn second_part_due() -> (Party, Party, Vec<u8>) {
    let (mut a, mut b) = pair();
    talk(&mut a, &mut b, |_, b| b.braid() == ("Ct1Sampled", 1));
    let ct1 = bytes_of(
        &parse(&bytes_of(&braid_of(&session_of(&b.official())).1, 1)),
        5,
    );
    assert_eq!(ct1.len(), 960);
    talk(&mut a, &mut b, |a, b| {
        a.braid().0 == "Ct1Received" && b.braid().0 == "Ct2Sampled"
            || a.braid().0 == "EkSentCt1Received"
    });
    (a, b, ct1)
}

#[test]
fn the_second_part_of_the_ciphertext_damaged() {
    let (a, b, ct1) = second_part_due();
    assert_eq!(b.braid(), ("Ct2Sampled", 1));
    let spqr = braid_of(&session_of(&b.official()));
    assert_eq!(spqr.0, 11);
    // The encoder's streams, or polynomials, are the data once they are put in order.
    let streams = all_of(&parse(&bytes_of(&spqr.1, 2)), 2);
    assert_eq!(streams.len(), 16);
    let mut second = Vec::new();
    for x in 0..5 {
        for stream in &streams {
            second.extend(&stream[2 * x..2 * x + 2]);
        }
    }
    let forger = Forger::of(&b);
    let mac = |ct1: &[u8], ct2: &[u8]| {
        hmac(
            &forger.mac_key,
            &[
                b"Signal_PQCKA_V1_MLKEM768:ciphertext",
                &1_u64.to_be_bytes(),
                ct1,
                ct2,
            ],
        )
    };
    assert_eq!(
        mac(&ct1, &second[..128])[..],
        second[128..],
        "the MAC is understood"
    );
    let mut other = second[..128].to_vec();
    other[127] ^= 1;
    let wrong_mac = [&second[..128], &[0; 32]].concat();
    let unmatched = [&other[..], &second[128..]].concat();
    let authentic = [&other[..], &mac(&ct1, &other)].concat();
    for bad in [wrong_mac, unmatched, authentic] {
        // Alice has at most some chunks, which keep their place; so only later chunks are sent.
        let mut victim = a.clone();
        let mut forger = forger.clone();
        let mut results = Vec::new();
        for (i, chunk) in bad.chunks_exact(32).enumerate() {
            let message = forger.say(1, 6, Some((i as u64, chunk)));
            results.push(victim.open(&b.peer(), &message, false));
        }
        assert_eq!(victim.braid().1, 1, "the epoch has not ended: {results:?}");
        assert!(results.contains(&Err(INVALID)) || victim.braid().0 == "EkSentCt1Received");
        let message = forger.say(1, 0, None);
        assert!(
            victim.open(&b.peer(), &message, false).is_ok(),
            "and it still opens messages"
        );
    }
}

#[test]
fn chunks_of_the_same_index_with_other_data_keep_the_first() {
    let keys = KeyPairCompressedBytes::from_seed([3; 64]);
    let (mut a, b, mut forger) = header_taken(keys.pk1());
    for (i, chunk) in keys.pk2().chunks_exact(32).enumerate() {
        let message = forger.say(2, 3, Some((i as u64, chunk)));
        a.open(&b.peer(), &message, false).unwrap();
        let pages = a.census().2;
        let revision = a.record.current().unwrap().braid_revision();
        for _ in 0..3 {
            let message = forger.say(2, 3, Some((i as u64, &[0xdd; 32])));
            a.open(&b.peer(), &message, false).unwrap();
        }
        if i != 35 {
            assert_eq!(a.census().2, pages);
            assert_eq!(a.record.current().unwrap().braid_revision(), revision);
        }
    }
    assert_eq!(a.braid(), ("Ct2Sampled", 2));
}

#[test]
fn chunk_indexes_at_the_end_of_their_range_do_not_fill_the_memory() {
    let keys = KeyPairCompressedBytes::from_seed([3; 64]);
    let (mut a, b, mut forger) = header_taken(keys.pk1());
    let mut most = 0;
    for i in 0..400_u64 {
        let message = forger.say(2, 2, Some((65_535 - i, &[i as u8; 32])));
        let _ = a.open(&b.peer(), &message, false);
        most = most.max(a.census().2);
    }
    println!("pages of chunks at most: {most}, braid {:?}", a.braid());
    assert!(most <= 12, "{most}");
    let bytes = a.record.current().unwrap().braid_bytes().unwrap().len();
    assert!(bytes <= 4_608, "{bytes}");
    // The parity was nonsense, so the key never came to be; messages still open.
    let message = forger.say(2, 0, None);
    a.open(&b.peer(), &message, false).unwrap();
}

#[test]
fn an_epoch_that_is_ahead_or_behind() {
    let (mut a, mut b) = epoch_two();
    // Ahead, in a state that does not wait for one.
    for (from, to) in [(&a, &b), (&b, &a)] {
        let mut forger = Forger::of(from);
        for epoch in [3, 4, 1 << 32, u64::MAX - 1, u64::MAX] {
            let (index, key) = forger.clone().key(2);
            let message = forger
                .clone()
                .message(Some(&field(epoch, index, 0, None)), &key);
            let result = to.clone().open(&from.peer(), &message, false);
            assert!(refused(&result), "{epoch}: {result:?}");
        }
        // Behind: the epoch's chain for sending is gone here, but what was skipped there may open.
        forger.epochs.retain(|epoch, _| *epoch == 1);
        let (index, key) = forger.key(2);
        let message = forger.message(Some(&field(1, index, 0, None)), &key);
        assert!(refused(&to.clone().open(&from.peer(), &message, false)));
    }
    still_talk(&mut b, &mut a);
}

#[test]
fn one_who_waits_for_the_next_epoch_takes_only_the_next() {
    let (mut a, mut b) = pair();
    talk(&mut a, &mut b, |a, _| a.braid() == ("NoHeaderReceived", 2));
    assert_eq!(b.braid(), ("Ct2Sampled", 1));
    let mut forger = Forger::of(&a);
    for epoch in [3, 1 << 32, u64::MAX] {
        let (index, key) = forger.clone().key(2);
        let message = forger
            .clone()
            .message(Some(&field(epoch, index, 0, None)), &key);
        assert!(
            refused(&b.clone().open(&a.peer(), &message, false)),
            "{epoch}"
        );
    }
    // Chunks of every kind in the first message of the next epoch are without effect.
    for kind in [1, 2, 3, 5, 6] {
        let mut victim = b.clone();
        let message = forger.clone().say(2, kind, Some((0, &[1; 32])));
        victim.open(&a.peer(), &message, false).unwrap();
        assert_eq!(victim.braid(), ("KeysUnsampled", 2));
    }
    let message = forger.say(2, 0, None);
    b.open(&a.peer(), &message, false).unwrap();
}

#[test]
fn a_peer_that_stalls_costs_nothing() {
    // Alice says "nothing" for ever: her own braid never hears of it, Bob's waits.
    let (mut a, mut b) = pair();
    let waiting = b.braid();
    for _ in 0..150 {
        let mut forger = Forger::of(&a);
        let message = forger.say(1, 0, None);
        b.open(&a.peer(), &message, false).unwrap();
        let chain = edit(&a.official(), &[1, 6, 3], &mut |f| {
            set(f, 1, Value::Number(forger.counter.into()));
            set(f, 2, Value::Bytes(forger.chain.to_vec()));
        });
        let both = edit(&chain, &[1, 15, 2, 3, 1], &mut |f| {
            set(f, 1, Value::Number(forger.epochs[&0].0.into()));
            set(f, 2, Value::Bytes(forger.epochs[&0].1.to_vec()));
        });
        a.import(&both);
        round(&mut b, &mut a);
    }
    assert_eq!(b.braid(), waiting);
    assert!(b.entries.is_empty(), "{:?}", b.census());
}

#[test]
fn an_epoch_is_not_ended_without_the_victims_part() {
    // However much the key side says, the epoch needs a ciphertext the victim sent.
    let keys = KeyPairCompressedBytes::from_seed([3; 64]);
    let (mut a, b, mut forger) = header_taken(keys.pk1());
    for message in forger.chunks(3, keys.pk2()) {
        a.open(&b.peer(), &message, false).unwrap();
    }
    let (index, key) = forger.key(2);
    for epoch in [3, 4, 5] {
        let message = forger
            .clone()
            .message(Some(&field(epoch, index, 0, None)), &key);
        assert!(refused(&a.open(&b.peer(), &message, false)));
    }
    assert_eq!(a.braid(), ("Ct2Sampled", 2));
    println!("state at Ct2Sampled: {} bytes", state(&a.record)[0].len());
}

// 4. Memory and work

#[test]
fn jump_bombs_by_an_authentic_peer_keep_to_the_limits() {
    let (mut a, mut b) = pair();
    let mut most = (0, 0, 0);
    // Each answer lets the peer step its ratchet, and jump again in both chains.
    for _ in 0..8 {
        let mut forger = Forger::of(&a);
        forger.skip(2_600);
        for _ in 0..2_600 {
            forger.key(1);
        }
        let message = forger.say(1, 0, None);
        b.open(&a.peer(), &message, false).unwrap();
        let (one, two, three) = b.census();
        most = (most.0.max(one), most.1.max(two), most.2.max(three));
        // Alice goes on behind the jump, so that the chains agree.
        let official = edit(&a.official(), &[1, 6, 3], &mut |f| {
            set(f, 1, Value::Number(forger.counter.into()));
            set(f, 2, Value::Bytes(forger.chain.to_vec()));
        });
        let halves = forger.epochs[&0];
        let official = edit(&official, &[1, 15, 2, 3, 1], &mut |f| {
            set(f, 1, Value::Number(halves.0.into()));
            set(f, 2, Value::Bytes(halves.1.to_vec()));
        });
        a.import(&official);
        round(&mut b, &mut a);
        round(&mut a, &mut b);
    }
    println!("entries at most: {most:?}");
    assert!(most.0 <= MAX_SKIPPED_KEYS_PER_SESSION as usize, "{most:?}");
    assert!(most.1 <= MAX_SKIPPED_KEYS_PER_CHAIN as usize, "{most:?}");
    let bytes = state(&b.record)[0].len();
    assert!(bytes < 5_600, "{bytes}");
    still_talk(&mut a, &mut b);
}

#[test]
fn a_jump_too_far_in_either_chain() {
    let (a, b) = pair();
    let base = Forger::of(&a);
    let mut results = Vec::new();
    for (counter, index) in [
        (25_001, 0),
        (25_100, 0),
        (0, 25_000),
        (0, 25_100),
        (25_001, 25_001),
        (24_990, 24_990),
        (0, 24_998),
    ] {
        let mut forger = base.clone();
        forger.skip(counter);
        for _ in 0..index {
            forger.key(1);
        }
        let message = forger.say(1, 0, None);
        let start = Instant::now();
        let result = b.clone().open(&a.peer(), &message, false);
        println!(
            "jump {counter}, {index}: {:?} in {:?}",
            result.is_ok(),
            start.elapsed()
        );
        results.push(result);
    }
    for result in &results[..5] {
        assert!(matches!(result, Err(TOO_FAR | INVALID)), "{result:?}");
    }
    for result in &results[5..] {
        assert!(result.is_ok(), "{result:?}");
    }
}

#[test]
fn a_message_with_numbers_at_the_end_of_their_range() {
    let (mut a, mut b) = pair();
    let message = a.send(&b.peer(), b"x").bytes;
    for counter in [25_010, 1 << 31, u64::from(u32::MAX)] {
        let forged = changed(&message, 8, |f| set(f, 2, Value::Number(counter)));
        let start = Instant::now();
        assert_eq!(b.open(&a.peer(), &forged, false), Err(TOO_FAR));
        assert!(start.elapsed().as_millis() < 500);
    }
    for counter in [1 << 32, u64::MAX] {
        let forged = changed(&message, 8, |f| set(f, 2, Value::Number(counter)));
        let result = b.open(&a.peer(), &forged, false);
        assert!(refused(&result), "{result:?}");
    }
    for index in [30_000, 1 << 31, u32::MAX] {
        let forged = changed(&message, 8, |f| {
            set(f, 5, Value::Bytes(field(1, index, 0, None)));
        });
        let result = b.open(&a.peer(), &forged, false);
        assert!(refused(&result), "{result:?}");
    }
    b.open(&a.peer(), &message, false).unwrap();
}

/// Two parties with a current session and forty archived ones.
fn full_archive() -> (Party, Party) {
    let mut a = Party::new(ALICE, 1);
    let mut b = Party::new(BOB, 2);
    for _ in 0..=MAX_ARCHIVED_SESSIONS {
        a.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
        let first = a.send(&b.peer(), b"first");
        b.take(&a.peer(), &first).unwrap();
    }
    assert_eq!(b.record.archived().len(), MAX_ARCHIVED_SESSIONS);
    (a, b)
}

#[test]
fn forged_messages_on_a_full_archive_cost_no_more_than_documented() {
    let (mut a, mut b) = full_archive();
    let inner = {
        let first = a.send(&b.peer(), b"next");
        bytes_of(&fields(&first.bytes, 0), 4)
    };
    let forge = |key: u8, counter: u64, index: u32| {
        changed(&inner, 8, |f| {
            let public = kith_protocol::PrivateKey::from_bytes(&[key; 32]).public_key();
            set(f, 1, Value::Bytes(public.to_bytes().to_vec()));
            set(f, 2, Value::Number(counter));
            set(f, 5, Value::Bytes(field(1, index, 0, None)));
            drop_field(f, 6);
        })
    };
    let mut longest = 0;
    for (counter, index) in [
        (0, 1),
        (609, 609),
        (610, 610),
        (24_999, 1),
        (0, 24_999),
        (24_999, 24_999),
        (25_000, 25_000),
        (u64::from(u32::MAX), u32::MAX),
    ] {
        let forged = forge(3, counter, index);
        let start = Instant::now();
        let result = b.open(&a.peer(), &forged, false);
        let took = start.elapsed();
        longest = longest.max(took.as_micros());
        println!("41 sessions, counter {counter}, index {index}: {result:?} in {took:?}");
        assert!(refused(&result));
    }
    // The honest walk of one session, for comparison.
    let (c, d) = pair();
    let mut forger = Forger::of(&c);
    forger.skip(24_990);
    (0..24_990).for_each(|_| {
        forger.key(1);
    });
    let message = forger.say(1, 0, None);
    let start = Instant::now();
    d.clone().open(&c.peer(), &message, false).unwrap();
    println!(
        "honest jump on one session: {:?}; longest forged {longest} us",
        start.elapsed()
    );
    still_talk(&mut b, &mut a);
}

#[test]
fn a_forged_message_draws_no_more_than_the_hash_budget_even_with_unknown_epochs() {
    let (a, b) = full_archive();
    let mut a = a;
    let first = a.send(&b.peer(), b"next");
    let inner = bytes_of(&fields(&first.bytes, 0), 4);
    for epoch in [2, 3, u64::MAX] {
        let forged = changed(&inner, 8, |f| {
            set(f, 1, Value::Bytes([&[5][..], &[9; 32]].concat()));
            set(f, 5, Value::Bytes(field(epoch, 24_000, 0, None)));
        });
        let start = Instant::now();
        assert!(refused(&b.clone().open(&a.peer(), &forged, false)));
        println!("unknown epoch {epoch}: {:?}", start.elapsed());
    }
}

#[test]
fn a_full_archive_does_not_keep_the_current_session_from_jumping() {
    let (mut a, mut b) = full_archive();
    round(&mut b, &mut a);
    let mut forger = Forger::of(&a);
    let newest = b.info().receiving.last().unwrap().ratchet_key.to_bytes();
    assert_ne!(forger.ratchet, newest, "the chain is new to Bob");
    forger.skip(24_990);
    (0..24_990).for_each(|_| {
        forger.key(1);
    });
    let message = forger.say(1, 0, None);
    assert_eq!(b.open(&a.peer(), &message, false).unwrap(), b"forged");
}

// 5. Downgrade

#[test]
fn a_bundle_without_its_kyber_prekey() {
    let mut a = Party::new(ALICE, 1);
    let b = Party::new(BOB, 2);
    let stripped = PreKeyBundle {
        kyber_prekey: None,
        ..b.bundle()
    };
    assert_eq!(
        a.initiate(&b.peer(), &stripped),
        Err(InitiateError::UnsupportedVersion(Version::V3))
    );
    assert!(a.record.current().is_none());
    // Also with a session of version 4 there.
    a.initiate(&b.peer(), &b.bundle()).unwrap();
    assert!(a.initiate(&b.peer(), &stripped).is_err());
    // Nor is a bundle of version 4 made version 3 where both are allowed.
    a.minimum = Version::V3;
    a.initiate(&b.peer(), &b.bundle()).unwrap();
    assert_eq!(a.info().version, Version::V4);
}

#[test]
fn bundles_with_signatures_of_another_key_or_identity() {
    let mut a = Party::new(ALICE, 1);
    let b = Party::new(BOB, 2);
    let m = Party::new(MALLORY, 3);
    let (good, other) = (b.bundle(), m.bundle());
    let kyber = |change: &dyn Fn(&mut KyberPreKeyPublic)| {
        let mut bundle = good.clone();
        change(bundle.kyber_prekey.as_mut().unwrap());
        bundle
    };
    let foreign = other.kyber_prekey.clone().unwrap();
    let signature = good.signed_prekey.signature.clone();
    let mut ec = good.clone();
    ec.signed_prekey = other.signed_prekey.clone();
    let mut ec_swapped = good.clone();
    ec_swapped.signed_prekey.public_key = *good.prekey.as_ref().map(|(_, key)| key).unwrap();
    let mut identity = good.clone();
    identity.identity_key = other.identity_key;
    for (what, bundle) in [
        ("Kyber key of another", kyber(&|k| *k = foreign.clone())),
        (
            "Kyber key alone",
            kyber(&|k| k.public_key = foreign.public_key.clone()),
        ),
        (
            "Kyber signature alone",
            kyber(&|k| k.signature.clone_from(&foreign.signature)),
        ),
        (
            "signature of the signed prekey",
            kyber(&|k| k.signature.clone_from(&signature)),
        ),
        ("empty signature", kyber(&|k| k.signature.clear())),
        ("long signature", kyber(&|k| k.signature.push(0))),
        ("signature of zeros", kyber(&|k| k.signature = vec![0; 64])),
        ("signed prekey of another", ec),
        ("one-time as signed", ec_swapped),
        ("identity of another", identity),
    ] {
        assert_eq!(
            a.initiate(&b.peer(), &bundle),
            Err(InitiateError::Bundle(BundleError::InvalidSignature)),
            "{what}"
        );
    }
    assert!(a.record.current().is_none());
}

#[test]
fn a_bundle_of_small_order_points() {
    let mut a = Party::new(ALICE, 1);
    let b = Party::new(BOB, 2);
    let zero = kith_protocol::PublicKey::from_bytes(&[&[5][..], &[0; 32]].concat()).unwrap();
    let mut bundle = b.bundle();
    bundle.prekey = Some((1, zero));
    assert_eq!(a.initiate(&b.peer(), &bundle), Err(InitiateError::Key));
    let mut bundle = b.bundle();
    bundle.signed_prekey.public_key = zero;
    bundle.signed_prekey.signature = b.identity.sign(&zero.to_bytes(), &mut rng(5)).to_vec();
    assert_eq!(a.initiate(&b.peer(), &bundle), Err(InitiateError::Key));
    assert!(a.record.current().is_none());
}

#[test]
fn a_first_message_of_version_3_to_a_peer_of_version_4_asks_for_no_prekey() {
    let mut a = Party::new(ALICE, 1);
    a.minimum = Version::V3;
    let mut b = Party::new(BOB, 2);
    let stripped = PreKeyBundle {
        kyber_prekey: None,
        ..b.bundle()
    };
    a.initiate(&b.peer(), &stripped).unwrap();
    let first = a.send(&b.peer(), b"x");
    assert_eq!(
        b.take(&a.peer(), &first),
        Err(No::Decrypt(DecryptError::UnsupportedVersion(Version::V3)))
    );
    assert!(b.store.asked.borrow().is_empty());
    assert!(b.known.is_empty());
}

#[test]
fn version_nibble_games() {
    let mut a = Party::new(ALICE, 1);
    let mut b = Party::new(BOB, 2);
    b.minimum = Version::V3;
    a.initiate(&b.peer(), &b.bundle()).unwrap();
    let first = a.send(&b.peer(), b"x").bytes;
    let inner = bytes_of(&fields(&first, 0), 4);
    for outer_byte in 0..=255_u8 {
        for inner_byte in [0x44, 0x34, 0x40, 0x4f, 0x33, 0x24, 0x54] {
            for strip in [false, true] {
                let mut inner = inner.clone();
                inner[0] = inner_byte;
                let mut message = changed(&first, 0, |f| {
                    set(f, 4, Value::Bytes(inner));
                    if strip {
                        drop_field(f, 7);
                        drop_field(f, 8);
                    }
                });
                message[0] = outer_byte;
                // The low nibble outside is not authenticated, as documented.
                let fine = outer_byte >> 4 == 4 && inner_byte == 0x44 && !strip;
                let result = b.clone().open(&a.peer(), &message, true);
                assert_eq!(
                    result.is_ok(),
                    fine,
                    "{outer_byte:x} {inner_byte:x} {strip}"
                );
            }
        }
    }
}

#[test]
fn an_ordinary_message_under_the_other_version() {
    for (mut a, mut b) in [pair(), pair_v3()] {
        b.minimum = Version::V3;
        let message = a.send(&b.peer(), b"x").bytes;
        for byte in 0..=255_u8 {
            if byte != message[0] {
                let mut other = message.clone();
                other[0] = byte;
                assert!(b.open(&a.peer(), &other, false).is_err(), "{byte:x}");
                // Without the field too.
                let without = changed(&other, 8, |f| drop_field(f, 5));
                assert!(b.open(&a.peer(), &without, false).is_err(), "{byte:x}");
            }
        }
        b.open(&a.peer(), &message, false).unwrap();
    }
}

#[test]
fn version_3_is_closed_once_the_minimum_is_4() {
    let (mut a, mut b) = pair_v3();
    let late = a.send(&b.peer(), b"late");
    let no = No::Decrypt(DecryptError::UnsupportedVersion(Version::V3));
    b.minimum = Version::V4;
    assert_eq!(b.take(&a.peer(), &late), Err(no));
    assert_eq!(
        b.try_send(&a.peer(), b"x").map(|_| ()),
        Err(EncryptError::SessionNotFound)
    );
    // Archived behind a session of version 4.
    a.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
    let first = a.send(&b.peer(), b"first");
    b.take(&a.peer(), &first).unwrap();
    assert_eq!(b.take(&a.peer(), &late), Err(no));
    assert_eq!(b.info().version, Version::V4);
    assert_eq!(b.record.archived().len(), 1);
}

#[test]
fn a_version_3_peer_with_all_keys_adds_field_five() {
    let (a, mut b) = pair_v3();
    for (field, salt) in [(field(1, 0, 0, None), [0; 32]), (Vec::new(), [0; 32])] {
        let message = Forger::of(&a).message(Some(&field), &salt);
        let result = b.open(&a.peer(), &message, false);
        assert!(refused(&result) || field.is_empty(), "{result:?}");
    }
}

// 6. First messages

fn first_message(bundle: impl Fn(&Party) -> PreKeyBundle) -> (Party, Party, Vec<u8>) {
    let mut a = Party::new(ALICE, 1);
    let b = Party::new(BOB, 2);
    a.initiate(&b.peer(), &bundle(&b)).unwrap();
    let first = a.send(&b.peer(), b"first").bytes;
    (a, b, first)
}

#[test]
fn every_byte_of_a_first_message() {
    let (a, b, first) = first_message(Party::bundle);
    let unauthenticated: BTreeSet<usize> = {
        // The version byte's low nibble, and the registration id: `28 05` after field 4.
        let at = first
            .windows(4)
            .rposition(|w| w == [0x28, 5, 0x30, 7])
            .unwrap();
        // Its tag too: as field 7 it is overruled by the real one, and the id is missing.
        [0, at, at + 1].into()
    };
    let mut opened = BTreeSet::new();
    for at in 0..first.len() {
        // All bits where it is cheap, one of each byte in the long Kyber ciphertext.
        let bits: &[u32] = if at < 400 { &[0, 3, 4, 7] } else { &[2] };
        for bit in bits {
            let mut message = first.clone();
            message[at] ^= 1 << bit;
            let mut victim = b.clone();
            if victim.open(&a.peer(), &message, true).is_ok() {
                opened.insert(at);
            }
        }
    }
    assert!(opened.is_subset(&unauthenticated), "{opened:?}");
}

#[test]
fn kyber_ciphertexts_of_another_message_key_type_or_length() {
    let (a, b, first) = first_message(Party::bundle);
    let (_, _, other) = {
        let mut c = Party::new(MALLORY, 9);
        c.initiate(&b.peer(), &b.bundle()).unwrap();
        let other = c.send(&b.peer(), b"x").bytes;
        (c, (), other)
    };
    let real = bytes_of(&fields(&first, 0), 8);
    let foreign = bytes_of(&fields(&other, 0), 8);
    let mut typed = real.clone();
    typed[0] = 0x0a;
    for bad in [
        foreign,
        typed,
        real[..1568].to_vec(),
        real[1..].to_vec(),
        [&real[..], &[0]].concat(),
        vec![],
        vec![8; 1569],
        [&[8][..], &[0xff; 1568]].concat(),
    ] {
        let message = changed(&first, 0, |f| set(f, 8, Value::Bytes(bad.clone())));
        let mut victim = b.clone();
        assert!(refused(&victim.open(&a.peer(), &message, true)));
        assert_eq!(victim.store.one_time.len(), 2);
    }
    // Another Kyber prekey of the same device: implicit rejection, no oracle.
    let message = changed(&first, 0, |f| set(f, 7, Value::Number(LAST_RESORT.into())));
    assert_eq!(b.clone().open(&a.peer(), &message, true), Err(INVALID));
    let message = changed(&first, 0, |f| set(f, 7, Value::Number(1_000)));
    assert!(matches!(
        b.clone().open(&a.peer(), &message, true),
        Err(No::Decrypt(DecryptError::UnknownPreKey(..)))
    ));
}

#[test]
fn one_time_prekey_taken_out_added_or_changed() {
    let (a, b, first) = first_message(Party::bundle);
    let (c, d, last) = first_message(Party::last_resort_bundle);
    let none = changed(&first, 0, |f| drop_field(f, 1));
    assert_eq!(b.clone().open(&a.peer(), &none, true), Err(INVALID));
    let other = changed(&first, 0, |f| set(f, 1, Value::Number(12)));
    assert_eq!(b.clone().open(&a.peer(), &other, true), Err(INVALID));
    let added = changed(&last, 0, |f| f.insert(0, (1, Value::Number(11))));
    assert_eq!(d.clone().open(&c.peer(), &added, true), Err(INVALID));
}

#[test]
fn missing_doubled_and_misplaced_fields_of_a_first_message() {
    let (a, b, first) = first_message(Party::bundle);
    for number in 1..=8 {
        let message = changed(&first, 0, |f| drop_field(f, number));
        let result = b.clone().open(&a.peer(), &message, true);
        assert_eq!(result.is_ok(), number == 5, "without {number}: {result:?}");
        // The wrong wire type.
        let message = changed(&first, 0, |f| {
            let value = match f.iter().find(|(n, _)| *n == number).unwrap().1 {
                Value::Number(_) => Value::Bytes(vec![1]),
                _ => Value::Number(1),
            };
            set(f, number, value);
        });
        assert!(
            refused(&b.clone().open(&a.peer(), &message, true)),
            "{number}"
        );
        // Twice, the later with another value: the last counts, as in every protobuf reader.
        let message = changed(&first, 0, |f| {
            let value = match &f.iter().find(|(n, _)| *n == number).unwrap().1 {
                Value::Number(value) => Value::Number(value ^ 1),
                Value::Bytes(bytes) => {
                    let mut bytes = bytes.clone();
                    *bytes.last_mut().unwrap() ^= 1;
                    Value::Bytes(bytes)
                }
                Value::Fixed(_) => panic!("no such field"),
            };
            f.push((number, value));
        });
        let result = b.clone().open(&a.peer(), &message, true);
        assert_eq!(result.is_ok(), number == 5, "twice {number}: {result:?}");
    }
    // Reversed order and unknown fields mean the same.
    let message = changed(&first, 0, |f| {
        f.reverse();
        f.push((77, Value::Bytes(vec![1; 1000])));
        f.push((78, Value::Fixed(vec![1; 8])));
        f.push((79, Value::Fixed(vec![1; 4])));
    });
    assert_eq!(b.clone().open(&a.peer(), &message, true).unwrap(), b"first");
}

#[test]
fn protobuf_that_is_hostile_in_itself() {
    let (a, mut b, first) = first_message(Party::bundle);
    let mut bad: Vec<Vec<u8>> = vec![
        vec![],
        vec![0x44],
        vec![0x44; 9],
        [vec![0x44], vec![0xff; 4000]].concat(),
        [vec![0x44, 0x0a], varint(u64::MAX)].concat(),
        [vec![0x44, 0x0a], varint(1 << 31), vec![0; 100]].concat(),
        [vec![0x44], vec![0x0b; 100_000]].concat(),
        [vec![0x44], vec![0x03], vec![0x0b; 200]].concat(),
        [vec![0x44, 0x00, 0x00], vec![0; 20]].concat(),
        [vec![0x44, 0x0f], vec![0; 20]].concat(),
    ];
    // A hundred thousand empty fields.
    bad.push([vec![0x44], [0x22, 0x00].repeat(100_000), vec![0; 8]].concat());
    for bytes in bad {
        for prekey in [false, true] {
            let start = Instant::now();
            assert!(b.open(&a.peer(), &bytes, prekey).is_err());
            assert!(start.elapsed().as_millis() < 1_000);
        }
    }
    for length in 0..first.len() {
        assert!(b.open(&a.peer(), &first[..length], true).is_err());
    }
    assert!(SignalMessage::from_bytes(&vec![0x44; MAX_MESSAGE_LEN + 1]).is_err());
    assert!(PreKeySignalMessage::from_bytes(&vec![0x44; MAX_MESSAGE_LEN + 1]).is_err());
    b.open(&a.peer(), &first, true).unwrap();
}

#[test]
fn replay_of_a_first_message_after_the_session_is_lost() {
    for bundle in [Party::bundle, Party::last_resort_bundle] {
        let (a, mut b, first) = first_message(bundle);
        b.open(&a.peer(), &first, true).unwrap();
        assert_eq!(b.open(&a.peer(), &first, true), Err(DUPLICATE));
        b.record = SessionRecord::default();
        b.entries = kith_protocol::MemoryEntries::default();
        assert_eq!(b.open(&a.peer(), &first, true), Err(DUPLICATE));
        // With the one-time keys restored, and under every other unauthenticated guise.
        let fresh = Party::new(BOB, 2);
        b.store.one_time = fresh.store.one_time;
        b.store.kyber = fresh.store.kyber;
        let guise = changed(&first, 0, |f| {
            set(f, 5, Value::Number(99));
            f.push((100, Value::Number(1)));
        });
        for message in [&first, &guise] {
            assert_eq!(b.open(&a.peer(), message, true), Err(DUPLICATE));
        }
        let mut high = first.clone();
        high[0] = 0x4f;
        assert_eq!(b.open(&a.peer(), &high, true), Err(DUPLICATE));
        let other_kyber = changed(&first, 0, |f| set(f, 7, Value::Number(21)));
        assert_eq!(b.open(&a.peer(), &other_kyber, true), Err(DUPLICATE));
    }
}

#[test]
fn base_keys_that_are_not_canonical_or_of_small_order() {
    let (a, b, first) = first_message(Party::last_resort_bundle);
    let base = bytes_of(&fields(&first, 0), 2);
    let mut high = base.clone();
    high[32] |= 0x80;
    let mut p_plus = vec![5, 0xee];
    p_plus.extend([0xff; 30]);
    p_plus.push(0x7f);
    let mut one = vec![5, 1];
    one.extend([0; 31]);
    for bad in [
        high,
        p_plus,
        one,
        [&[5][..], &[0; 32]].concat(),
        [&base[..], &[0]].concat(),
    ] {
        let mut victim = b.clone();
        let message = changed(&first, 0, |f| set(f, 2, Value::Bytes(bad.clone())));
        assert!(refused(&victim.open(&a.peer(), &message, true)));
        // With the session there as well: another encoding is not the same base key.
        victim.open(&a.peer(), &first, true).unwrap();
        assert!(refused(&victim.open(&a.peer(), &message, true)));
    }
}

#[test]
fn an_authentic_peer_with_a_ratchet_key_of_small_order() {
    let (a, mut b) = pair();
    for u in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        // The agreement is zero whatever the victim's key, so the forger knows the chain.
        let mut forger = Forger::of(&a);
        let out: [u8; 64] = model::hkdf(&forger.root, &[0; 32], b"WhisperRatchet");
        forger.chain = out[32..].try_into().unwrap();
        forger.counter = 0;
        forger.ratchet = [&[5][..], &u].concat();
        let message = forger.say(1, 0, None);
        assert_eq!(b.open(&a.peer(), &message, false), Err(INVALID));
    }
}

#[test]
fn another_identity_around_a_first_message() {
    let (a, b, first) = first_message(Party::bundle);
    let m = Party::new(MALLORY, 3);
    let theirs = changed(&first, 0, |f| {
        set(
            f,
            3,
            Value::Bytes(m.identity.identity_key().to_bytes().to_vec()),
        );
    });
    // Nothing known, then the real one known, then in a session.
    let mut victim = b.clone();
    assert_eq!(victim.open(&a.peer(), &theirs, true), Err(INVALID));
    assert_eq!(victim.open(&m.peer(), &theirs, true), Err(INVALID));
    assert!(victim.known.is_empty());
    victim.open(&a.peer(), &first, true).unwrap();
    let untrusted = Err(No::Decrypt(DecryptError::UntrustedIdentity));
    assert_eq!(victim.open(&a.peer(), &theirs, true), untrusted);
    // Even when every identity is trusted.
    victim.known.clear();
    let result = victim.open(&a.peer(), &theirs, true);
    assert!(result.is_err(), "{result:?}");
    // The victim's own identity.
    let own = changed(&first, 0, |f| {
        set(
            f,
            3,
            Value::Bytes(b.identity.identity_key().to_bytes().to_vec()),
        );
    });
    assert_eq!(b.clone().open(&a.peer(), &own, true), Err(INVALID));
}

#[test]
fn a_repeated_first_message_with_other_outer_fields() {
    let (mut a, mut b, first) = first_message(Party::bundle);
    b.open(&a.peer(), &first, true).unwrap();
    let again = a.send(&b.peer(), b"again").bytes;
    // Ids and the Kyber ciphertext are not looked at, for the session is known by its base key.
    let mut opened = Vec::new();
    for number in [1_u32, 5, 6, 7, 8] {
        let message = changed(&again, 0, |f| {
            let value = match &f.iter().find(|(n, _)| *n == number).unwrap().1 {
                Value::Number(value) => Value::Number(value + 1),
                _ => Value::Bytes([&[8][..], &[1; 1568]].concat()),
            };
            set(f, number, value);
        });
        let mut victim = b.clone();
        let result = victim.decrypt(&a.peer(), &message, true);
        if let Ok(result) = result {
            opened.push(number);
            assert_eq!(result.plaintext, b"again");
            assert!(!result.changes.established);
            assert_eq!(result.changes.prekey_used, None);
            assert_eq!(result.changes.kyber_prekey_used, None);
        }
    }
    println!("unauthenticated fields of a repeated first message: {opened:?}");
    // Ids are documented.
    assert!(opened.iter().all(|number| [1, 5, 6, 7, 8].contains(number)));
    let other_base = changed(&again, 0, |f| {
        let key = kith_protocol::PrivateKey::from_bytes(&[8; 32]).public_key();
        set(f, 2, Value::Bytes(key.to_bytes().to_vec()));
    });
    let result = b.clone().open(&a.peer(), &other_base, true);
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn the_inner_message_of_one_session_in_the_outer_of_another() {
    let (mut a, mut b, first) = first_message(Party::last_resort_bundle);
    a.initiate(&b.peer(), &b.bundle()).unwrap();
    let second = a.send(&b.peer(), b"second").bytes;
    let mixed = changed(&second, 0, |f| {
        set(f, 4, Value::Bytes(bytes_of(&fields(&first, 0), 4)))
    });
    assert_eq!(b.open(&a.peer(), &mixed, true), Err(INVALID));
    b.open(&a.peer(), &first, true).unwrap();
    // Now the session of the inner message is known, but the outer one is not.
    assert!(b.open(&a.peer(), &mixed, true).is_err());
    assert_eq!(b.store.one_time.len(), 2, "no prekey was used up");
    b.open(&a.peer(), &second, true).unwrap();
    // And the other way round, with both known.
    let reversed = changed(&first, 0, |f| {
        set(f, 4, Value::Bytes(bytes_of(&fields(&second, 0), 4)))
    });
    assert!(b.open(&a.peer(), &reversed, true).is_err());
}

#[test]
fn the_inner_message_alone() {
    let (a, mut b, first) = first_message(Party::bundle);
    let inner = bytes_of(&fields(&first, 0), 4);
    assert_eq!(
        b.open(&a.peer(), &inner, false),
        Err(No::Decrypt(DecryptError::SessionNotFound))
    );
    b.open(&a.peer(), &first, true).unwrap();
    assert_eq!(b.open(&a.peer(), &inner, false), Err(DUPLICATE));
}

// 7. Confusion of sessions, directions and people

#[test]
fn a_message_reflected_to_its_sender() {
    for (mut a, mut b) in [pair(), epoch_two(), pair_v3()] {
        let message = a.send(&b.peer(), b"x").bytes;
        assert_eq!(a.open(&b.peer(), &message, false), Err(INVALID));
        b.open(&a.peer(), &message, false).unwrap();
        let message = b.send(&a.peer(), b"x").bytes;
        assert_eq!(b.open(&a.peer(), &message, false), Err(INVALID));
    }
    let (mut a, b, first) = first_message(Party::bundle);
    let result = a.open(&b.peer(), &first, true);
    assert!(result.is_err(), "{result:?}");
    assert!(a.open(&a.peer(), &first, true).is_err());
}

#[test]
fn a_session_with_oneself_reflects_nothing() {
    let identity = IdentityKeyPair::generate(&mut rng(8));
    let mut one = Party::with_identity(ALICE, 1, identity.clone(), rng(9));
    let mut two = Party::with_identity(ALICE, 2, identity, rng(10));
    one.initiate(&two.peer(), &two.bundle()).unwrap();
    let first = one.send(&two.peer(), b"first");
    assert!(
        one.take(&two.peer(), &first).is_err(),
        "the base key is its own"
    );
    two.take(&one.peer(), &first).unwrap();
    for _ in 0..60 {
        let message = one.send(&two.peer(), b"x");
        assert!(one.take(&two.peer(), &message).is_err());
        two.take(&one.peer(), &message).unwrap();
        let message = two.send(&one.peer(), b"x");
        assert!(two.take(&one.peer(), &message).is_err());
        one.take(&two.peer(), &message).unwrap();
    }
    // Unlimited jumps with oneself are not for this engine.
    let mut forger = Forger::of(&one);
    forger.skip(25_001);
    let epoch = forger.epoch;
    let message = forger.say(epoch, 0, None);
    assert!(refused(&two.open(&one.peer(), &message, false)));
}

#[test]
fn unknown_key_share_through_a_bundle_signed_again() {
    // Mallory publishes Bob's prekeys under her identity, and passes on what comes.
    let mut a = Party::new(ALICE, 1);
    let mut b = Party::new(BOB, 2);
    let m = Party::new(MALLORY, 3);
    let mut bundle = b.bundle();
    bundle.identity_key = m.identity.identity_key();
    let kyber = bundle.kyber_prekey.as_mut().unwrap();
    kyber.signature = m
        .identity
        .sign(&kyber.public_key.to_bytes(), &mut rng(4))
        .to_vec();
    let key = bundle.signed_prekey.public_key.to_bytes();
    bundle.signed_prekey.signature = m.identity.sign(&key, &mut rng(4)).to_vec();
    a.initiate(&m.peer(), &bundle).unwrap();
    let first = a.send(&m.peer(), b"for Mallory").bytes;
    assert_eq!(b.open(&a.peer(), &first, true), Err(INVALID));
    assert_eq!(b.open(&m.peer(), &first, true), Err(INVALID));
}

#[test]
fn a_message_passed_on_under_another_name() {
    let (mut a, mut b, first) = first_message(Party::bundle);
    let m = Party::new(MALLORY, 3);
    let mut other_device = a.peer();
    other_device.address = kith_protocol::ProtocolAddress::new(ALICE, 2).unwrap();
    for from in [m.peer(), other_device, b.peer()] {
        assert_eq!(b.clone().open(&from, &first, true), Err(INVALID));
    }
    // To another device of the same keys.
    let mut elsewhere = b.clone();
    elsewhere.address = kith_protocol::ProtocolAddress::new(BOB, 2).unwrap();
    assert_eq!(elsewhere.open(&a.peer(), &first, true), Err(INVALID));
    // Upper case is the same service id.
    let mut upper = a.peer();
    upper.address = kith_protocol::ProtocolAddress::new(ALICE.to_uppercase(), 1).unwrap();
    b.clone().open(&upper, &first, true).unwrap();
    // Without them it does not authenticate.
    b.open(&a.peer(), &first, true).unwrap();
    let message = a.send(&b.peer(), b"x").bytes;
    let wrong = changed(&message, 0, |f| {
        let inner = changed(&bytes_of(f, 4), 8, |f| drop_field(f, 6));
        set(f, 4, Value::Bytes(inner));
    });
    assert_eq!(b.open(&a.peer(), &wrong, true), Err(INVALID));
}

#[test]
fn addresses_by_an_authentic_peer() {
    let (a, mut b) = pair();
    let uuid = |text: &str| hex::decode(text.replace('-', "")).unwrap();
    let right = [&[0], &uuid(ALICE)[..], &[1, 0], &uuid(BOB)[..], &[1]].concat();
    let mut pni = right.clone();
    pni[0] = 1;
    let swapped = [&right[18..], &right[..18]].concat();
    let mut device = right.clone();
    device[35] = 2;
    let mut forger = Forger::of(&a);
    for bad in [
        vec![],
        pni,
        swapped,
        device,
        right[..35].to_vec(),
        [&right[..], &[0]].concat(),
    ] {
        forger.addresses = Some(bad);
        let message = forger.clone().say(1, 0, None);
        assert_eq!(b.open(&a.peer(), &message, false), Err(INVALID));
    }
    forger.addresses = Some(right.clone());
    let message = forger.say(1, 0, None);
    b.open(&a.peer(), &message, false).unwrap();
    // Names that are no service ids bind nothing, so no addresses are right.
    let (c, mut d) = pair_of("alice", "bob");
    let mut forger = Forger::of(&c);
    forger.addresses = Some(right);
    let message = forger.say(1, 0, None);
    assert_eq!(d.open(&c.peer(), &message, false), Err(INVALID));
}

// 8. Order, eviction, replay

#[test]
fn everything_ever_said_again() {
    let (mut a, mut b) = pair();
    let mut said = Vec::new();
    for i in 0..110_u8 {
        let message = a.send(&b.peer(), &[i]);
        b.take(&a.peer(), &message).unwrap();
        said.push(message);
        if i % 3 == 0 {
            round(&mut b, &mut a);
        }
        if i == 60 {
            a.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
        }
    }
    for message in &said {
        let result = b.take(&a.peer(), message);
        assert!(refused(&result), "{result:?}");
    }
    still_talk(&mut a, &mut b);
}

#[test]
fn forgotten_keys_are_not_found_again() {
    let (mut a, mut b) = pair();
    // Lost, then a jump that evicts them.
    let lost: Vec<_> = (0..5).map(|_| a.send(&b.peer(), b"lost").bytes).collect();
    let mut forger = Forger::of(&a);
    forger.skip(MAX_SKIPPED_KEYS_PER_CHAIN + 50);
    let message = forger.say(1, 0, None);
    b.open(&a.peer(), &message, false).unwrap();
    for message in &lost {
        let result = b.open(&a.peer(), message, false);
        assert_eq!(result, Err(DUPLICATE));
    }
    assert_eq!(b.census().0, MAX_SKIPPED_KEYS_PER_CHAIN as usize);
    // The jump in the post-quantum chain alone.
    let (mut a, mut b) = pair();
    let lost: Vec<_> = (0..5).map(|_| a.send(&b.peer(), b"lost").bytes).collect();
    let mut forger = Forger::of(&a);
    for _ in 0..MAX_SKIPPED_KEYS_PER_CHAIN + 50 {
        forger.key(1);
    }
    let message = forger.say(1, 0, None);
    b.open(&a.peer(), &message, false).unwrap();
    for message in &lost {
        let result = b.open(&a.peer(), message, false);
        assert!(refused(&result), "{result:?}");
    }
    println!("kept: {:?}", b.census());
    assert!(b.census().1 <= MAX_SKIPPED_KEYS_PER_CHAIN as usize);
}

#[test]
fn chains_that_are_gone_open_nothing_twice() {
    let (mut a, mut b) = pair();
    let opened = a.send(&b.peer(), b"opened");
    let lost = a.send(&b.peer(), b"lost");
    b.take(&a.peer(), &opened).unwrap();
    for i in 0..7 {
        round(&mut b, &mut a);
        round(&mut a, &mut b);
        assert!(b.info().receiving.len() <= 5);
        let mut copy = b.clone();
        let result = copy.take(&a.peer(), &lost);
        assert_eq!(result.is_ok(), i < 4, "{i}: {result:?}");
        assert!(refused(&b.take(&a.peer(), &opened)));
    }
    assert_eq!(b.take(&a.peer(), &lost), Err(INVALID));
    assert_eq!(b.census().0, 0, "its keys are gone as well");
}

#[test]
fn a_flood_of_sessions_drops_the_oldest_and_replays_of_it_do_not_open() {
    let (mut a, mut b) = full_archive();
    let mut first = Vec::new();
    for _ in 0..=MAX_ARCHIVED_SESSIONS + 1 {
        a.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
        let message = a.send(&b.peer(), b"first");
        b.take(&a.peer(), &message).unwrap();
        first.push(message);
    }
    assert_eq!(b.record.archived().len(), MAX_ARCHIVED_SESSIONS);
    for message in &first {
        assert_eq!(b.take(&a.peer(), message), Err(DUPLICATE));
    }
}

// 9. Stored state: rolled back, mixed, damaged

fn parts(party: &Party) -> (Vec<u8>, Vec<u8>) {
    let session = party.record.current().unwrap();
    (
        session.state_bytes().to_vec(),
        session.braid_bytes().unwrap().to_vec(),
    )
}

#[test]
fn state_and_braid_of_different_moments_or_sessions() {
    let (mut a, mut b) = pair();
    let mut history = vec![parts(&a)];
    for _ in 0..100 {
        round(&mut a, &mut b);
        history.push(parts(&a));
        round(&mut b, &mut a);
        history.push(parts(&a));
    }
    let mut mixed = 0;
    for (state, own) in history.iter().step_by(11) {
        for (_, braid) in &history {
            let result = Session::from_parts(state, Some(braid));
            assert_eq!(result.is_ok(), braid == own);
            mixed += 1;
        }
    }
    println!("{mixed} mixtures");
    // Of another session with the same number of changes.
    let mut other = Party::new(ALICE, 77);
    let mut peer = Party::new(BOB, 78);
    other.initiate(&peer.peer(), &peer.bundle()).unwrap();
    let first = other.send(&peer.peer(), b"x");
    peer.take(&other.peer(), &first).unwrap();
    round(&mut peer, &mut other);
    round(&mut other, &mut peer);
    let mine = parts(&pair().0);
    assert!(Session::from_parts(&mine.0, Some(&parts(&other).1)).is_err());
    // None, and one too many.
    assert!(Session::from_parts(&mine.0, None).is_err());
    assert!(Session::from_parts(&mine.1, Some(&mine.0)).is_err());
    let (v3, _) = pair_v3();
    let old = v3.record.current().unwrap().state_bytes();
    assert!(Session::from_parts(&old, None).is_ok());
    assert!(Session::from_parts(&old, Some(&mine.1)).is_err());
    assert!(Session::from_parts(&old, Some(&[])).is_err());
    assert!(Session::from_parts(&[], None).is_err());
}

/// It has the same session id, and now and then the same number of changes.
#[test]
fn the_braid_of_the_other_side() {
    let (mut a, mut b) = pair();
    let mut same = 0;
    for _ in 0..100 {
        for (x, y) in [(&a, &b), (&b, &a)] {
            let (state, _) = parts(x);
            let (_, braid) = parts(y);
            if x.record.current().unwrap().braid_revision()
                == y.record.current().unwrap().braid_revision()
            {
                same += 1;
            }
            assert!(Session::from_parts(&state, Some(&braid)).is_err());
        }
        round(&mut a, &mut b);
        round(&mut b, &mut a);
    }
    assert!(same > 0, "the number of changes was alike at times");
}

/// One state is put back and goes another way: both ways end with the same number of changes.
#[test]
fn the_braid_of_a_fork_of_the_same_session() {
    let (c, mut d) = epoch_two();
    // Bob draws the keys of epoch 2 in both futures.
    let mut fork = d.clone();
    fork.rng = rng(1234);
    let _ = d.send(&c.peer(), b"x");
    let _ = fork.send(&c.peer(), b"x");
    let (one, two) = (parts(&d), parts(&fork));
    assert_ne!(one.1, two.1, "each drew its own keys");
    assert_eq!(
        d.record.current().unwrap().braid_revision(),
        fork.record.current().unwrap().braid_revision()
    );
    println!(
        "a fork's braid is taken: {}",
        Session::from_parts(&one.0, Some(&two.1)).is_ok()
    );
}

#[test]
fn stored_bytes_cut_lengthened_or_damaged() {
    let (mut a, mut b) = epoch_two();
    for _ in 0..10 {
        round(&mut b, &mut a);
        round(&mut a, &mut b);
    }
    let lost = b.send(&a.peer(), b"late");
    let mut outcomes = [0; 3];
    for party in [&a, &b] {
        let (state, braid) = parts(party);
        let whole = party.record.current().unwrap().to_bytes();
        for length in 0..whole.len() {
            assert!(Session::from_bytes(&whole[..length]).is_err(), "{length}");
        }
        assert!(Session::from_bytes(&[&whole[..], &[0]].concat()).is_err());
        for length in 0..state.len() {
            assert!(Session::from_parts(&state[..length], Some(&braid)).is_err());
        }
        for length in 0..braid.len() {
            assert!(Session::from_parts(&state, Some(&braid[..length])).is_err());
        }
        // Any byte changed: an error, or a session that fails in an orderly way.
        for at in 0..whole.len() {
            for value in [0x01, 0x80, 0xff] {
                let mut bytes = whole.to_vec();
                bytes[at] ^= value;
                if at > 700 && at % 5 != 0 {
                    continue;
                }
                match Session::from_bytes(&bytes) {
                    Err(_) => outcomes[0] += 1,
                    Ok(session) => {
                        outcomes[1] += 1;
                        if value == 0xff && at % 3 == 0 {
                            let mut victim = party.clone();
                            victim.record = SessionRecord::from_parts(Some(session), Some(vec![]));
                            let _ = victim.try_send(&a.peer(), b"x");
                            let _ = victim.open(&b.peer(), &lost.bytes, false);
                            let _ = victim.official();
                            outcomes[2] += 1;
                        }
                    }
                }
            }
        }
    }
    // Numbers at the end of their range, wherever one may be, in states that the next message changes.
    let (mut c, mut d) = pair();
    while d.braid().0 != "HeaderReceived" {
        if d.record.current().unwrap().info().receiving.len() > 1 {
            round(&mut d, &mut c);
        }
        round(&mut c, &mut d);
    }
    let (e, f) = epoch_two();
    for (party, peer) in [(&d, &c), (&e, &f), (&f, &e)] {
        let whole = party.record.current().unwrap().to_bytes();
        let mut peer = peer.clone();
        let next = peer.send(&party.peer(), b"x");
        for width in [4, 8] {
            for at in 0..(whole.len() - width).min(1_300) {
                let mut bytes = whole.to_vec();
                bytes[at..at + width].fill(0xff);
                if let Ok(session) = Session::from_bytes(&bytes) {
                    let mut victim = party.clone();
                    victim.record = SessionRecord::from_parts(Some(session), Some(vec![]));
                    let _ = victim.try_send(&peer.peer(), b"x");
                    let _ = victim.open(&peer.peer(), &next.bytes, false);
                    outcomes[2] += 1;
                }
            }
        }
    }
    println!(
        "damaged states: {} refused, {} read, {} used",
        outcomes[0], outcomes[1], outcomes[2]
    );
}

#[test]
fn entries_of_every_length_and_kind() {
    for kind in 0..=255_u8 {
        for length in 0..200 {
            let bytes = [vec![kind], vec![7; length]].concat();
            let expected = matches!((kind, length), (1 | 3, 32) | (2, 80));
            let result = Entry::from_bytes(&bytes);
            if kind != 4 {
                assert_eq!(result.is_ok(), expected, "{kind} {length}");
            } else if length != 102 {
                assert!(result.is_err(), "{length}");
            }
            let group = EntryGroup::from_bytes(&bytes);
            if let Ok(group) = group {
                assert_eq!(group.to_bytes(), bytes);
            }
        }
    }
    assert!(Entry::from_bytes(&[]).is_err());
    assert!(EntryGroup::from_bytes(&[]).is_err());
    // A page with the same chunk twice.
    let page = [vec![4], [&[0, 1][..], &[5; 32]].concat().repeat(3)].concat();
    println!(
        "page of one chunk three times: {}",
        Entry::from_bytes(&page).is_ok()
    );
}

// 10. The source of entries answers falsely

#[test]
fn a_source_of_entries_that_has_loaded_nothing_or_lies() {
    let (mut a, mut b) = pair();
    let lies = [
        vec![],
        [vec![1], vec![9; 32]].concat(),
        [vec![2], vec![9; 80]].concat(),
        [vec![3], vec![9; 32]].concat(),
        [vec![4], vec![9; 102]].concat(),
        [
            vec![4],
            [&[0, 0][..], &[5; 32], &[0, 1], &[6; 32], &[0, 2], &[7; 32]].concat(),
        ]
        .concat(),
    ];
    let mut asked = BTreeSet::new();
    let mut outcomes = std::collections::BTreeMap::<String, u32>::new();
    for round_number in 0..100 {
        let skipped = a.send(&b.peer(), b"skipped");
        let message = a.send(&b.peer(), b"message");
        for lie in &lies {
            let lie = Entry::from_bytes(lie).ok();
            let honest = b.entries.clone();
            for only in 0..3 {
                let find = |session: &SessionId, position: &EntryPosition| {
                    let group = match position.0 {
                        EntryGroup::MessageKeys(_) => 0,
                        EntryGroup::PostQuantumKeys(_) => 1,
                        EntryGroup::Chunks(_) => 2,
                    };
                    if group == only {
                        lie.clone()
                            .map_or(EntryLookup::NotLoaded, EntryLookup::Found)
                    } else {
                        honest.find(session, position)
                    }
                };
                let absent =
                    |session: &SessionId, position: &EntryPosition| match find(session, position) {
                        EntryLookup::NotLoaded => EntryLookup::Absent,
                        other => other,
                    };
                for message in [&message, &skipped] {
                    let mut victim = b.clone();
                    let result = victim.open_by(&a.peer(), &message.bytes, false, &find);
                    if let Ok(opened) = &result {
                        assert!(opened.plaintext == b"message" || opened.plaintext == b"skipped");
                    }
                    if let Err(no) = &result {
                        asked.insert(format!("{no:?}"));
                    }
                    let what = match &result {
                        Ok(_) => "opened".to_owned(),
                        Err(no) => format!("{no:?}"),
                    };
                    *outcomes.entry(format!("{only} {what}")).or_default() += 1;
                    if lie.is_none() {
                        let mut victim = b.clone();
                        let _ = victim.open_by(&a.peer(), &message.bytes, false, &absent);
                    }
                }
            }
        }
        b.take(&a.peer(), &message).unwrap();
        // The skipped one by a source that lies, now that there is an entry.
        for lie in lies.iter().filter_map(|lie| Entry::from_bytes(lie).ok()) {
            let find = |_: &SessionId, _: &EntryPosition| EntryLookup::Found(lie.clone());
            let result = b.clone().open_by(&a.peer(), &skipped.bytes, false, &find);
            assert!(result.is_err(), "{round_number}");
        }
        let nothing = |_: &SessionId, _: &EntryPosition| EntryLookup::NotLoaded;
        let absent = |_: &SessionId, _: &EntryPosition| EntryLookup::Absent;
        let result = b.open_by(&a.peer(), &skipped.bytes, false, &nothing);
        assert_eq!(
            result.map(|_| ()),
            Err(No::Decrypt(DecryptError::NotLoaded(NotLoaded::MessageKeys)))
        );
        let result = b.open_by(&a.peer(), &skipped.bytes, false, &absent);
        assert_eq!(result.map(|_| ()), Err(DUPLICATE));
        b.take(&a.peer(), &skipped).unwrap();
        round(&mut b, &mut a);
    }
    println!("{outcomes:#?}");
    println!("a lying source ends in {asked:?}");
    still_talk(&mut a, &mut b);
}

#[test]
fn pages_of_chunks_that_are_lost_stop_the_message_and_change_nothing() {
    let (mut a, mut b) = pair();
    let mut stopped = BTreeSet::new();
    for _ in 0..100 {
        let message = a.send(&b.peer(), b"x");
        let honest = b.entries.clone();
        let absent = |session: &SessionId, position: &EntryPosition| match position.0 {
            EntryGroup::Chunks(_) => EntryLookup::Absent,
            _ => honest.find(session, position),
        };
        let before = b.braid();
        let mut victim = b.clone();
        match victim.open_by(&a.peer(), &message.bytes, false, &absent) {
            Ok(_) => {}
            Err(no) => {
                stopped.insert(format!("{before:?} {no:?}"));
            }
        }
        b.take(&a.peer(), &message).unwrap();
        round(&mut b, &mut a);
    }
    println!("lost pages: {stopped:?}");
}

#[test]
fn a_part_that_is_not_loaded_is_asked_for_whatever_other_sessions_said() {
    let (mut a, mut b) = pair();
    let mut asked = 0;
    for _ in 0..100 {
        // The first of its chain, so that no session is known to have it.
        let message = a.send(&b.peer(), b"x");
        let mut victim = b.clone();
        let mut c = a.clone();
        c.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
        let first = c.send(&b.peer(), b"new");
        victim.take(&c.peer(), &first).unwrap();
        let honest = victim.entries.clone();
        let find = |session: &SessionId, position: &EntryPosition| match position.0 {
            EntryGroup::Chunks(_) => EntryLookup::NotLoaded,
            _ => honest.find(session, position),
        };
        if let Err(no) = victim.open_by(&a.peer(), &message.bytes, false, &find) {
            let not_loaded = No::Decrypt(DecryptError::NotLoaded(NotLoaded::Chunks));
            assert_eq!(no, not_loaded);
            victim.take(&a.peer(), &message).unwrap();
            asked += 1;
        }
        b.take(&a.peer(), &message).unwrap();
        round(&mut b, &mut a);
    }
    assert!(asked > 0);
}

#[test]
fn an_archive_that_is_not_loaded() {
    let (mut a, mut b) = pair();
    let old = a.send(&b.peer(), b"old").bytes;
    let first_again = {
        let mut c = a.clone();
        c.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
        let first = c.send(&b.peer(), b"new");
        b.take(&c.peer(), &first).unwrap();
        first
    };
    let full = b.record.clone();
    b.record = SessionRecord::from_parts(full.current().cloned(), None);
    let no = No::Decrypt(DecryptError::NotLoaded(NotLoaded::Archive));
    assert_eq!(b.open(&a.peer(), &old, false), Err(no));
    assert_eq!(b.take(&a.peer(), &first_again), Err(DUPLICATE));
    let mut other = a.clone();
    other.rng = rng(4321);
    other.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
    let unknown = other.send(&b.peer(), b"x");
    let result = b.take(&a.peer(), &unknown);
    assert!(result == Err(no) || result.is_ok(), "{result:?}");
    println!("unknown base key without archive: {result:?}");
    b.record = full;
    assert_eq!(b.open(&a.peer(), &old, false).unwrap(), b"old");
}

// 11. Ciphertext, padding, oracles, sizes

#[test]
fn padding_and_mac_fail_alike() {
    let (a, mut b) = pair();
    let forger = Forger::of(&a);
    let mut bodies = vec![
        Body::Raw(vec![]),
        Body::Raw(vec![1; 15]),
        Body::Raw(vec![1; 17]),
        Body::Blocks(vec![0; 16]),
        Body::Blocks(vec![17; 16]),
        Body::Blocks(vec![255; 32]),
    ];
    for length in 2..=16_u8 {
        let mut block = vec![length; 16];
        block[16 - usize::from(length)] ^= 1;
        bodies.push(Body::Blocks(block));
    }
    for body in bodies {
        let mut forger = forger.clone();
        forger.body = body;
        let message = forger.say(1, 0, None);
        assert_eq!(b.open(&a.peer(), &message, false), Err(INVALID));
    }
    // A whole block of padding is an empty text.
    let mut forger = forger;
    forger.body = Body::Blocks(vec![16; 16]);
    let message = forger.say(1, 0, None);
    assert_eq!(b.open(&a.peer(), &message, false).unwrap(), b"");
}

#[test]
fn what_an_error_tells_a_forger_without_keys() {
    // All that one can learn is in the numbers of the message: never anything of keys or text.
    let (mut a, mut b) = pair();
    let message = a.send(&b.peer(), b"x").bytes;
    let mut errors = BTreeSet::new();
    let cipher = bytes_of(&fields(&message, 8), 4);
    for i in 0..64_u8 {
        let forged = changed(&message, 8, |f| {
            let mut cipher = cipher.clone();
            cipher.extend([i; 16]);
            set(f, 4, Value::Bytes(cipher));
        });
        errors.insert(format!("{:?}", b.open(&a.peer(), &forged, false)));
    }
    for length in [0, 1, 15, 17, 31] {
        let forged = changed(&message, 8, |f| set(f, 4, Value::Bytes(vec![1; length])));
        errors.insert(format!("{:?}", b.open(&a.peer(), &forged, false)));
    }
    for kind in 0..=7 {
        let forged = changed(&message, 8, |f| {
            set(f, 5, Value::Bytes(field(1, 3, kind, Some((1, &[0; 32])))));
        });
        errors.insert(format!("{:?}", b.open(&a.peer(), &forged, false)));
    }
    for addresses in [vec![], vec![1; 36]] {
        let forged = changed(&message, 8, |f| f.push((6, Value::Bytes(addresses))));
        errors.insert(format!("{:?}", b.open(&a.peer(), &forged, false)));
    }
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn texts_of_every_edge() {
    let (mut a, mut b) = pair();
    for length in [
        0,
        1,
        15,
        16,
        17,
        31,
        32,
        65_535,
        MAX_PLAINTEXT_LEN - 1,
        MAX_PLAINTEXT_LEN,
    ] {
        let text = vec![0x10; length];
        let message = a.send(&b.peer(), &text);
        assert!(message.bytes.len() <= MAX_MESSAGE_LEN);
        assert_eq!(b.take(&a.peer(), &message).unwrap(), text);
    }
    let huge = vec![0; MAX_PLAINTEXT_LEN + 1];
    assert_eq!(
        a.try_send(&b.peer(), &huge).map(|_| ()),
        Err(EncryptError::TooLarge)
    );
    still_talk(&mut a, &mut b);
    // A peer who does not keep the limit, as near as the parser lets it.
    let mut forger = Forger::of(&a);
    let epoch = forger.epoch;
    forger.body = Body::Text(vec![1; MAX_PLAINTEXT_LEN + 4_096]);
    let message = forger.say(epoch, 0, None);
    println!(
        "over the limit: {:?}",
        b.open(&a.peer(), &message, false).map(|text| text.len())
    );
    // The first message of the largest text.
    let mut c = Party::new(MALLORY, 4);
    c.initiate(&b.peer(), &b.last_resort_bundle()).unwrap();
    let first = c.send(&b.peer(), &vec![1; MAX_PLAINTEXT_LEN]);
    let mut d = Party::new(BOB, 2);
    assert_eq!(d.take(&c.peer(), &first).unwrap().len(), MAX_PLAINTEXT_LEN);
}

// 12. Counters at their end

#[test]
fn counters_at_their_end_do_not_begin_anew() {
    let (a, b) = pair();
    let last = u64::from(u32::MAX);
    for (path, what) in [
        (&[1, 6, 3][..], "chain"),
        (&[1, 15, 2, 3, 1], "post-quantum chain"),
    ] {
        for value in [last - 1, last] {
            let official = edit(&a.official(), path, &mut |f| {
                set(f, 1, Value::Number(value))
            });
            let Ok(record) = OfficialRecord::from_bytes(&official) else {
                println!("{what} at {value}: refused on import");
                continue;
            };
            let mut a = a.clone();
            a.record = record.sessions;
            let mut positions = BTreeSet::new();
            let mut sent = 0;
            for _ in 0..4 {
                match a.try_send(&b.peer(), b"x") {
                    Ok(message) => {
                        sent += 1;
                        let message = SignalMessage::from_bytes(&message.bytes).unwrap();
                        assert!(
                            positions.insert((message.counter(), message.post_quantum_position())),
                            "{what}: a key was used twice"
                        );
                        assert!(
                            message.counter() >= 2 && what == "chain"
                                || message.post_quantum_position().unwrap().1 > 2,
                            "{what} wrapped: {positions:?}"
                        );
                    }
                    Err(no) => assert_eq!(no, EncryptError::SessionNotFound),
                }
            }
            println!("{what} at {value}: {sent} messages");
            assert!(sent < 4);
        }
    }
}

#[test]
fn receiving_counters_at_their_end() {
    let (a, b) = pair();
    let last = u64::from(u32::MAX);
    let mut forger = Forger::of(&a);
    let start = forger.counter;
    let message = forger.clone().say(1, 0, None);
    // The newest receiving chain is the one the message is of.
    let at_end = |value: u64| {
        edit(&b.official(), &[1], &mut |f| {
            let chain = f.iter().rposition(|(n, _)| *n == 7).unwrap();
            let Value::Bytes(bytes) = &f[chain].1 else {
                panic!("a chain")
            };
            let bytes = edit(bytes, &[3], &mut |f| set(f, 1, Value::Number(value)));
            f[chain].1 = Value::Bytes(bytes);
        })
    };
    for what in ["chain", "post-quantum chain"] {
        for value in [last - 1, last] {
            let mut victim = b.clone();
            let official = if what == "chain" {
                at_end(value)
            } else {
                edit(&b.official(), &[1, 15, 2, 3, 2], &mut |f| {
                    set(f, 1, Value::Number(value));
                })
            };
            let Ok(record) = OfficialRecord::from_bytes(&official) else {
                println!("{what} at {value}: refused on import");
                continue;
            };
            victim.record = record.sessions;
            let result = victim.open(&a.peer(), &message, false);
            assert!(refused(&result), "{what}: {result:?}");
            let numbers = changed(&message, 8, |f| {
                set(f, 2, Value::Number(last));
                set(f, 5, Value::Bytes(field(1, u32::MAX, 0, None)));
            });
            let result = victim.open(&a.peer(), &numbers, false);
            assert!(refused(&result), "{what}: {result:?}");
        }
    }
    // The last message of a chain by one who has the keys.
    forger.counter = u32::MAX;
    let official = at_end(last);
    if let Ok(record) = OfficialRecord::from_bytes(&official) {
        let mut victim = b.clone();
        victim.record = record.sessions;
        let message = forger.clone().say(1, 0, None);
        let result = victim.open(&a.peer(), &message, false);
        println!("message number 2^32 - 1: {}", result.is_ok());
        assert!(refused(&victim.open(&a.peer(), &message, false)) || result.is_err());
        let next = Forger {
            counter: start,
            ..forger
        }
        .say(1, 0, None);
        assert!(refused(&victim.open(&a.peer(), &next, false)));
    }
}

/// Only who can write records to be imported gets there; no peer does.
#[test]
fn an_epoch_at_its_end() {
    let (a, mut b) = pair();
    // The states' epoch alone, or all of them together.
    for value in [0, 2, 3, 1 << 40, u64::MAX - 1, u64::MAX] {
        let number = braid_of(&session_of(&a.official())).0;
        let alone = edit(&a.official(), &[1, 15, 3, number, 1], &mut |f| {
            set(f, 1, Value::Number(value));
        });
        let both = edit(&alone, &[1, 15, 2], &mut |f| {
            set(f, 2, Value::Number(value.wrapping_sub(1)));
            set(f, 5, Value::Number(value.wrapping_sub(1)));
        });
        for bytes in [alone, both] {
            let Ok(record) = OfficialRecord::from_bytes(&bytes) else {
                continue;
            };
            println!("epoch {value} is imported");
            let mut victim = a.clone();
            victim.record = record.sessions;
            for _ in 0..3 {
                let sent = victim.try_send(&b.peer(), b"x");
                if let Ok(sent) = sent {
                    let _ = b.clone().take(&a.peer(), &sent);
                }
            }
            let answer = b.send(&a.peer(), b"x");
            let _ = victim.take(&b.peer(), &answer);
        }
    }
}

// 13. Records of the official client with hostile values

/// Uses a record as far as it goes; nothing of it may panic.
fn use_up(bytes: &[u8], party: &Party, peer: &Party, incoming: &[Vec<u8>]) -> bool {
    let Ok(record) = OfficialRecord::from_bytes(bytes) else {
        return false;
    };
    let mut victim = party.clone();
    victim.record = record.sessions;
    victim.entries = record.entries;
    let _ = victim.official();
    for message in incoming {
        let _ = victim.open(&peer.peer(), message, false);
    }
    if victim.record.current().is_some() {
        for _ in 0..2 {
            let _ = victim.try_send(&peer.peer(), b"x");
        }
        let _ = victim.official();
        let bytes = victim.record.current().unwrap().to_bytes();
        assert_eq!(
            Session::from_bytes(&bytes).as_ref(),
            Ok(victim.record.current().unwrap()),
            "what was imported can be stored"
        );
    }
    true
}

#[test]
fn records_damaged_in_every_place() {
    let mut counts = (0, 0);
    let (mut a, mut b) = pair();
    let mut seen = BTreeSet::new();
    for _ in 0..95 {
        let state = b.braid().0;
        let skipped = a.send(&b.peer(), b"skipped").bytes;
        let next = a.send(&b.peer(), b"next").bytes;
        if seen.insert(state) {
            let mut victim = b.clone();
            victim.open(&a.peer(), &next, false).unwrap();
            let record = victim.official();
            let incoming = [skipped.clone(), a.clone().send(&b.peer(), b"x").bytes];
            let step = record.len() / 150 + 1;
            for at in (0..record.len().min(420))
                .step_by(2)
                .chain((420..record.len()).step_by(step))
            {
                for value in [1, 0x10, 0xff] {
                    let mut bytes = record.clone();
                    bytes[at] ^= value;
                    if value == 0x10 && at % 4 == 0 {
                        continue;
                    }
                    counts.0 += 1;
                    counts.1 += u32::from(use_up(&bytes, &victim, &a, &incoming));
                }
            }
            for length in (0..record.len()).step_by(step) {
                use_up(&record[..length], &victim, &a, &incoming);
            }
        }
        b.open(&a.peer(), &next, false).unwrap();
        b.open(&a.peer(), &skipped, false).unwrap();
        round(&mut b, &mut a);
    }
    println!(
        "{} damaged records in {seen:?}, {} imported",
        counts.0, counts.1
    );
}

/// Changes one of the fields of a message.
type Change<'a> = &'a dyn Fn(&mut Fields, usize);

#[test]
fn records_with_hostile_numbers_in_every_field() {
    fn paths(bytes: &[u8], at: &mut Vec<usize>, out: &mut Vec<Vec<usize>>, depth: usize) {
        // Anything that reads as protobuf is walked.
        let Ok(fields) = std::panic::catch_unwind(|| parse(bytes)) else {
            return;
        };
        for (i, (_, value)) in fields.iter().enumerate() {
            at.push(i);
            out.push(at.clone());
            if let Value::Bytes(inner) = value
                && depth < 7
                && !inner.is_empty()
                && ![32, 33, 64, 1569, 1152, 960, 2400, 2080].contains(&inner.len())
            {
                paths(inner, at, out, depth + 1);
            }
            at.pop();
        }
    }
    fn mutate(bytes: &[u8], path: &[usize], change: Change<'_>) -> Vec<u8> {
        let mut fields = parse(bytes);
        if let [only] = path {
            change(&mut fields, *only);
        } else if let Value::Bytes(inner) = &fields[path[0]].1 {
            let inner = mutate(inner, &path[1..], change);
            fields[path[0]].1 = Value::Bytes(inner);
        }
        write(&fields)
    }
    // Unreadable bytes make the reader above panic, on purpose; nothing else may.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut a, mut b) = pair();
    let mut seen = BTreeSet::new();
    let mut cases = Vec::new();
    for _ in 0..95 {
        let state = b.braid().0;
        let skipped = a.send(&b.peer(), b"skipped").bytes;
        let next = a.send(&b.peer(), b"next").bytes;
        if seen.insert(state) {
            let mut victim = b.clone();
            victim.open(&a.peer(), &next, false).unwrap();
            let record = victim.official();
            let mut all = Vec::new();
            paths(&record, &mut Vec::new(), &mut all, 0);
            cases.push((victim, a.clone(), record, all, skipped.clone()));
        }
        b.open(&a.peer(), &next, false).unwrap();
        b.open(&a.peer(), &skipped, false).unwrap();
        round(&mut b, &mut a);
    }
    std::panic::set_hook(hook);
    let mut counts = (0, 0);
    for (victim, mut peer, record, all, skipped) in cases {
        let incoming = [skipped, peer.send(&victim.peer(), b"x").bytes];
        for path in all {
            let changes: [Change<'_>; 9] = [
                &|f, i| {
                    f.remove(i);
                },
                &|f, i| f.push(f[i].clone()),
                &|f, i| f.insert(i, f[i].clone()),
                &|f, i| f[i].1 = Value::Number(0),
                &|f, i| f[i].1 = Value::Number(u64::from(u32::MAX)),
                &|f, i| f[i].1 = Value::Number(u64::MAX),
                &|f, i| f[i].1 = Value::Bytes(vec![]),
                &|f, i| {
                    if let Value::Bytes(bytes) = &mut f[i].1 {
                        bytes.push(0);
                    }
                },
                &|f, i| {
                    if let Value::Bytes(bytes) = &mut f[i].1 {
                        bytes.pop();
                    }
                },
            ];
            for change in changes {
                counts.0 += 1;
                let bytes = mutate(&record, &path, change);
                counts.1 += u32::from(use_up(&bytes, &victim, &peer, &incoming));
            }
        }
    }
    println!(
        "{} hostile records in {seen:?}, {} imported",
        counts.0, counts.1
    );
}

#[test]
fn a_record_that_lifts_the_limits() {
    let (a, b) = pair();
    for path in [&[1, 15, 2][..], &[1, 15, 1]] {
        let number = if path[2] == 2 { 6 } else { 4 };
        for (jump, kept) in [
            (u64::from(u32::MAX), u64::from(u32::MAX)),
            (1 << 24, 1 << 24),
        ] {
            let limits = write(&[(1, Value::Number(jump)), (2, Value::Number(kept))]);
            let official = edit(&b.official(), path, &mut |f| {
                set(f, number, Value::Bytes(limits.clone()));
            });
            let Ok(record) = OfficialRecord::from_bytes(&official) else {
                println!("limits {jump} in {path:?}: refused on import");
                continue;
            };
            let mut victim = b.clone();
            victim.record = record.sessions;
            victim.entries = record.entries;
            let mut forger = Forger::of(&a);
            (0..25_100).for_each(|_| {
                forger.key(1);
            });
            let message = forger.say(1, 0, None);
            assert!(refused(&victim.open(&a.peer(), &message, false)));
            let forged = changed(&message, 8, |f| {
                set(f, 5, Value::Bytes(field(1, u32::MAX, 0, None)));
            });
            let start = Instant::now();
            assert!(refused(&victim.open(&a.peer(), &forged, false)));
            assert!(start.elapsed().as_millis() < 500);
        }
    }
    // No post-quantum ratchet, or the leave to drop it.
    let without = edit(&b.official(), &[1], &mut |f| drop_field(f, 15));
    assert_eq!(
        OfficialRecord::from_bytes(&without).map(|_| ()),
        Err(kith_protocol::RecordError::WithoutPostQuantumRatchet)
    );
}

#[test]
fn a_record_that_may_still_drop_the_post_quantum_ratchet() {
    let mut a = Party::new(ALICE, 1);
    let b = Party::new(BOB, 2);
    a.initiate(&b.peer(), &b.bundle()).unwrap();
    let official = edit(&a.official(), &[1, 15, 1], &mut |f| {
        println!(
            "negotiation: {:?}",
            f.iter().map(|(n, _)| n).collect::<Vec<_>>()
        );
        drop_field(f, 3);
    });
    assert_eq!(
        OfficialRecord::from_bytes(&official).map(|_| ()),
        Err(kith_protocol::RecordError::WithoutPostQuantumRatchet)
    );
}

#[test]
fn records_with_too_much_of_everything() {
    let (mut a, mut b) = pair();
    let _ = a.send(&b.peer(), b"skipped");
    round(&mut a, &mut b);
    let record = b.official();
    let current = bytes_of(&parse(&record), 1);
    // A thousand archived sessions: forty are kept.
    let many = write(
        &std::iter::once((1, Value::Bytes(current.clone())))
            .chain((0..1_000).map(|_| (2, Value::Bytes(current.clone()))))
            .collect::<Vec<_>>(),
    );
    let result = OfficialRecord::from_bytes(&many);
    println!(
        "1000 archived: {:?}",
        result.as_ref().map(|r| r.sessions.archived().len())
    );
    assert!(result.map_or(0, |r| r.sessions.archived().len()) <= MAX_ARCHIVED_SESSIONS);
    // Many receiving chains, and the same one twice.
    let chain = all_of(&parse(&current), 7).pop().unwrap();
    for distinct in [false, true] {
        let chains = edit(&record, &[1], &mut |f| {
            for i in 0..200_u8 {
                let chain = edit(&chain, &[], &mut |f| {
                    if distinct {
                        let key = kith_protocol::PrivateKey::from_bytes(&[i; 32]).public_key();
                        set(f, 1, Value::Bytes(key.to_bytes().to_vec()));
                    }
                });
                f.push((7, Value::Bytes(chain)));
            }
        });
        let result = OfficialRecord::from_bytes(&chains);
        let chains = result
            .as_ref()
            .map_or(0, |r| r.sessions.current().unwrap().info().receiving.len());
        println!("200 receiving chains, distinct {distinct}: {chains}");
        assert!(chains <= 5);
    }
    // Twenty thousand skipped keys, and one index a thousand times, and one ahead of the chain.
    for (what, index) in [
        ("distinct", None),
        ("one index", Some(0)),
        ("ahead", Some(1 << 30)),
    ] {
        let keys = edit(&record, &[1], &mut |f| {
            let at = f.iter().rposition(|(n, _)| *n == 7).unwrap();
            let bytes = edit(&chain, &[], &mut |f| {
                set(
                    f,
                    3,
                    Value::Bytes(write(&[
                        (1, Value::Number(30_000)),
                        (2, Value::Bytes(vec![1; 32])),
                    ])),
                );
                for i in 0..20_000 {
                    let key = [
                        (1, Value::Number(index.unwrap_or(i))),
                        (5, Value::Bytes(vec![3; 32])),
                    ];
                    f.push((4, Value::Bytes(write(&key))));
                }
            });
            f[at].1 = Value::Bytes(bytes);
        });
        let result = OfficialRecord::from_bytes(&keys);
        let kept = result.as_ref().map_or(0, |r| r.entries.len());
        println!("20000 skipped keys, {what}: {kept}");
        assert!(
            kept <= MAX_SKIPPED_KEYS_PER_CHAIN as usize + 20,
            "{what}: {kept}"
        );
        use_up(&keys, &b, &a, &[]);
    }
    // Remembered post-quantum keys by the thousand.
    let keys = edit(&record, &[1, 15, 2, 3, 2], &mut |f| {
        let all: Vec<u8> = (0..20_000_u32)
            .flat_map(|i| [&i.to_be_bytes()[..], &[4; 32]].concat())
            .collect();
        set(f, 1, Value::Number(30_000));
        set(f, 3, Value::Bytes(all));
    });
    let result = OfficialRecord::from_bytes(&keys);
    let kept = result.as_ref().map_or(0, |r| r.entries.len());
    println!("20000 post-quantum keys: {kept}");
    assert!(kept <= MAX_SKIPPED_KEYS_PER_CHAIN as usize + 20, "{kept}");
    use_up(&keys, &b, &a, &[]);
    // Epochs by the thousand.
    let epoch = all_of(
        &parse(&bytes_of(&parse(&bytes_of(&parse(&current), 15)), 2)),
        3,
    )[0]
    .clone();
    let epochs = edit(&record, &[1, 15, 2], &mut |f| {
        for _ in 0..1_000 {
            f.push((3, Value::Bytes(epoch.clone())));
        }
        set(f, 2, Value::Number(1_000));
    });
    let imported = use_up(&epochs, &b, &a, &[]);
    println!("1000 epochs imported: {imported}");
    assert!(!imported);
}

#[test]
fn a_record_whose_keys_do_not_belong_together() {
    let (mut a, mut b) = pair();
    let record = b.official();
    // The public ratchet key is another's.
    let other = kith_protocol::PrivateKey::from_bytes(&[77; 32])
        .public_key()
        .to_bytes();
    let mismatched = edit(&record, &[1, 6], &mut |f| {
        set(f, 1, Value::Bytes(other.to_vec()))
    });
    println!(
        "mismatched ratchet pair is imported: {}",
        OfficialRecord::from_bytes(&mismatched).is_ok()
    );
    use_up(&mismatched, &b, &a, &[]);
    // A chunk decoder that says it is complete, or needs none or too many.
    talk(&mut a, &mut b, |_, b| b.braid().0 == "Ct1Sampled");
    for _ in 0..3 {
        round(&mut a, &mut b);
        round(&mut b, &mut a);
    }
    let record = b.official();
    let next = a.send(&b.peer(), b"x").bytes;
    for (number, value) in [
        (1, 0),
        (1, 1),
        (1, 1 << 31),
        (2, 0),
        (2, 17),
        (2, 1 << 31),
        (4, 1),
    ] {
        let bytes = edit(&record, &[1, 15, 3, 8, 3], &mut |f| {
            set(f, number, Value::Number(value))
        });
        let imported = use_up(&bytes, &b, &a, std::slice::from_ref(&next));
        println!("decoder field {number} = {value}: imported {imported}");
    }
    for value in [65_535_u64, 65_536, u64::from(u32::MAX), u64::MAX] {
        let bytes = edit(&record, &[1, 15, 3, 8, 2], &mut |f| {
            set(f, 1, Value::Number(value))
        });
        let imported = use_up(&bytes, &b, &a, std::slice::from_ref(&next));
        println!("encoder at {value}: imported {imported}");
    }
}

#[test]
fn an_encoder_at_the_end_of_its_indexes_goes_on() {
    let (mut a, mut b) = pair();
    talk(&mut a, &mut b, |_, b| b.braid().0 == "Ct1Sampled");
    let official = edit(&b.official(), &[1, 15, 3, 8, 2], &mut |f| {
        set(f, 1, Value::Number(65_530));
    });
    b.import(&official);
    for _ in 0..20 {
        round(&mut a, &mut b);
        round(&mut b, &mut a);
    }
    talk(&mut a, &mut b, |a, _| a.braid().1 == 2);
}

// 14. What stolen bytes are good for

/// Every 32-byte secret of a party at this moment, as the official record has them.
fn secrets(party: &Party) -> BTreeSet<Vec<u8>> {
    let session = session_of(&party.official());
    let mut out = BTreeSet::new();
    let sending = parse(&bytes_of(&session, 6));
    out.insert(bytes_of(&session, 4));
    out.insert(bytes_of(&sending, 2));
    for chain in [bytes_of(&session, 6)]
        .into_iter()
        .chain(all_of(&session, 7))
    {
        out.insert(bytes_of(&parse(&bytes_of(&parse(&chain), 3)), 2));
    }
    let chains = parse(&bytes_of(&parse(&bytes_of(&session, 15)), 2));
    out.insert(bytes_of(&chains, 4));
    for epoch in all_of(&chains, 3) {
        for half in [1, 2] {
            out.insert(bytes_of(&parse(&bytes_of(&parse(&epoch), half)), 2));
        }
    }
    let (_, state) = braid_of(&session);
    let inner = parse(&bytes_of(&state, 1));
    let auth = parse(&bytes_of(&inner, 2));
    out.insert(bytes_of(&auth, 1));
    out.insert(bytes_of(&auth, 2));
    for number in [3, 4] {
        let long = bytes_of(&inner, number);
        if long.len() >= 2_080 {
            out.insert(long[64..128].to_vec());
        }
    }
    out.retain(|secret| secret.len() >= 32);
    out
}

#[test]
fn used_secrets_are_in_no_stored_byte() {
    let (mut a, mut b) = pair();
    let mut old: Vec<(usize, BTreeSet<Vec<u8>>)> = Vec::new();
    for i in 0..190 {
        old.push((i, secrets(&b)));
        round(&mut a, &mut b);
        round(&mut b, &mut a);
        let current = secrets(&b);
        let stored: Vec<u8> = state(&b.record)
            .concat()
            .into_iter()
            .chain(
                b.entries
                    .iter()
                    .flat_map(|(_, _, entry)| entry.to_bytes().to_vec()),
            )
            .collect();
        let windows: std::collections::HashSet<&[u8]> = stored.windows(32).collect();
        for (at, secrets) in &old {
            for secret in secrets {
                if windows.contains(&secret[..32]) {
                    assert!(
                        current.contains(secret),
                        "a secret of {at} is still there at {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn how_long_one_secret_lives() {
    // A receiving chain that has been replaced is kept for late messages; nothing else outlives two epochs.
    let (mut a, mut b) = pair();
    let mut first_seen = std::collections::BTreeMap::<Vec<u8>, usize>::new();
    let mut longest = 0;
    for i in 0..300 {
        for secret in secrets(&b) {
            let first = *first_seen.entry(secret).or_insert(i);
            longest = longest.max(i - first);
        }
        round(&mut a, &mut b);
        round(&mut b, &mut a);
    }
    println!("longest life of a secret: {longest} round trips");
    assert!(longest <= 100, "{longest}");
}

#[test]
fn a_thief_of_the_state_opens_nothing_that_was_opened_before() {
    let (mut a, mut b) = pair();
    let mut said = Vec::new();
    for _ in 0..60 {
        let message = a.send(&b.peer(), b"x");
        b.take(&a.peer(), &message).unwrap();
        said.push(message);
        round(&mut b, &mut a);
    }
    let mut thief = b.clone();
    // Nor with its record set back in the numbers, which are not secret.
    let session = session_of(&b.official());
    let chains = all_of(&session, 7);
    assert_eq!(chains.len(), 5);
    for message in &said {
        assert!(thief.take(&a.peer(), message).is_err());
    }
    let reset = edit(&b.official(), &[1, 15, 2, 3, 2], &mut |f| {
        set(f, 1, Value::Number(0))
    });
    if let Ok(record) = OfficialRecord::from_bytes(&reset) {
        thief.record = record.sessions;
        for message in &said {
            assert!(thief.take(&a.peer(), message).is_err());
        }
    }
}

#[test]
fn a_thief_who_only_listens_is_shut_out_by_one_round_trip() {
    let (mut a, mut b) = pair();
    let mut thief = b.clone();
    let message = a.send(&b.peer(), b"x");
    assert!(
        thief.clone().take(&a.peer(), &message).is_ok(),
        "the theft is real"
    );
    b.take(&a.peer(), &message).unwrap();
    round(&mut b, &mut a);
    // This one still goes to the ratchet key that was stolen? No: Bob drew a new one when he opened.
    for _ in 0..3 {
        let message = a.send(&b.peer(), b"x");
        let _ = thief.take(&a.peer(), &message);
        b.take(&a.peer(), &message).unwrap();
        round(&mut b, &mut a);
    }
    let message = a.send(&b.peer(), b"healed");
    assert!(thief.take(&a.peer(), &message).is_err());
    // And cannot send as Bob: its ratchet is not Bob's any more.
    thief.rng = rng(666);
    let forged = thief.send(&a.peer(), b"as Bob");
    assert!(a.take(&b.peer(), &forged).is_err());
    b.take(&a.peer(), &message).unwrap();
}

/// The thief has the whole state of a moment, and from then on breaks every Diffie-Hellman: it has all of the
/// record, always, but for the post-quantum part, which it has to move on by itself.
#[test]
fn a_thief_with_a_quantum_computer_is_shut_out_by_an_epoch() {
    let (mut a, mut b) = pair();
    talk(&mut a, &mut b, |_, b| b.braid() == ("Ct1Sampled", 1));
    let stolen = bytes_of(&session_of(&b.official()), 15);
    let mut opened = Vec::new();
    let mut thief_part = stolen;
    for _ in 0..140 {
        let message = a.send(&b.peer(), b"x");
        let hybrid = edit(&b.official(), &[1], &mut |f| {
            set(f, 15, Value::Bytes(thief_part.clone()));
        });
        let mut thief = b.clone();
        let mut read = false;
        if let Ok(record) = OfficialRecord::from_bytes(&hybrid) {
            thief.record = record.sessions;
            thief.entries = record.entries;
            if thief.take(&a.peer(), &message).is_ok() {
                read = true;
                thief_part = bytes_of(&session_of(&thief.official()), 15);
            }
        }
        opened.push(read);
        b.take(&a.peer(), &message).unwrap();
        // What Bob sends, the thief's braid sends as well (with its own randomness).
        round(&mut b, &mut a);
    }
    let count = opened.iter().filter(|read| **read).count();
    println!(
        "messages the thief read: {count} of {}, then none",
        opened.len()
    );
    let last = opened.iter().rposition(|read| *read).map_or(0, |at| at + 1);
    assert!(last < 110, "still reading at {last}");
    assert!(opened[0], "the theft is real");
}

#[test]
fn debug_output_has_no_secret() {
    let (a, b) = epoch_two();
    let text = format!("{:?} {:?} {:?}", a.record, b.record, b.entries);
    for secret in secrets(&a).into_iter().chain(secrets(&b)) {
        assert!(!text.contains(&hex::encode(&secret[..16])));
        assert!(!text.contains(&format!("{:?}", &secret[..8]).replace(['[', ']'], "")));
    }
}
