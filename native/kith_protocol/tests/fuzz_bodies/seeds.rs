//! The seeds of the corpus: real messages, states, records and keys, and scripts that lead far.

use kith_protocol::{
    EntryGroup, Fingerprint, IdentityKey, KeyPair, OfficialRecord, PreKeySignalMessage, PrivateKey,
    SkippedKeyFormat,
};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

use super::forge::{put_bytes, put_number};
use super::hostile::post_quantum_field;
use super::stages::{STAGES, STATES};

/// Name and content of each seed of a target.
pub(crate) fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "bundle" => bundles(),
        "decrypt" => conversations(),
        "entries" => entries(),
        "fingerprint" => fingerprints(),
        "hostile_peer" => hostile_peers(),
        "kyber_key" => kyber_keys(),
        "official_record" => official_records(),
        "post_quantum" => post_quantum_parts(),
        "prekey_message" => prekey_messages(),
        "public_key" => public_keys(),
        "signal_message" => signal_messages(),
        "stored_state" => stored_states(),
        _ => Vec::new(),
    }
}

fn named(name: &str, contents: Vec<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    (0..)
        .zip(contents)
        .map(|(number, content): (usize, _)| (format!("{name}_{number}"), content))
        .collect()
}

fn bundles() -> Vec<(String, Vec<u8>)> {
    let mut scripts: Vec<Vec<u8>> = (0..16)
        .map(|operation| vec![0, operation, 4, 5, 6, 7, 8, 9])
        .collect();
    scripts.extend([
        vec![],
        vec![1],
        vec![0, 7, 10],
        // Everything of another device.
        vec![0, 2, 6, 9, 11],
    ]);
    named("change", scripts)
}

fn conversations() -> Vec<(String, Vec<u8>)> {
    let mut scripts = Vec::new();
    for settings in [0_u8, 1, 2, 3] {
        scripts.extend([
            // A talk through several epochs.
            vec![settings, 3, 63, 3, 63, 0x83, 63, 13, 0x1d, 3, 63, 0x83, 63],
            // Bursts that arrive against the order.
            vec![
                settings | 0x80,
                3,
                5,
                2,
                30,
                0x12,
                30,
                6,
                0,
                3,
                0x17,
                0,
                9,
                13,
                0x1d,
                2,
                10,
            ],
            // Loss, repetition, damage.
            vec![
                settings, 2, 6, 0x0b, 0, 0, 0, 40, 1, 0x18, 0x19, 0, 2, 0, 9, 0x10, 20, 8, 0x4b, 0,
                3, 0, 9, 64, 0x8b, 0, 1, 0, 30, 0xab, 0, 4, 0, 60, 3, 1, 2, 3, 0xcb, 0, 1, 0, 2, 0,
                50, 0xeb, 0, 0, 0, 1, 10, 0, 1, 13,
            ],
            // Both start, sessions are replaced and archived.
            vec![
                settings, 0, 9, 0x1e, 0x10, 9, 0x18, 8, 3, 9, 0x4e, 2, 4, 0x5e, 0x12, 4, 0x18, 8,
                13, 0x1d, 15, 0x0e, 3, 20, 0x6e, 3, 20, 0x7e, 3, 9, 0x1f, 13,
            ],
        ]);
    }
    // One side sends much more than the other, so that parts arrive in another order.
    scripts.push([[2, 3, 0x18, 0x12, 1, 8].as_slice(); 20].concat());
    scripts.push([[2, 1, 0x18, 0x12, 3, 8].as_slice(); 20].concat());
    scripts.push([[2, 6, 0x18, 0x12, 5, 8].as_slice(); 16].concat());
    // Much is lost, so that what is sent goes on behind its end.
    scripts.push([[2, 31, 0x1a, 0, 1, 0x18, 0, 9, 8, 0x10, 3, 8].as_slice(); 8].concat());
    named("script", scripts)
}

fn hostile_peers() -> Vec<(String, Vec<u8>)> {
    let mut scripts = Vec::new();
    for (stage, name) in (0_u8..).zip(STATES) {
        let mut script = vec![stage];
        for kind in 0..7 {
            script.extend([0, 0, 0x70 | kind, kind, 1, 2, 3, 4]);
        }
        script.extend([3, 0, 0x43, 0, 0, 9, 1, 5, 5, 6, 7, 0, 0]);
        scripts.push((format!("state_{name}"), script));
        // The header, or the rest, in full and wrong: what is complete is checked.
        let mut script = vec![stage];
        let (kind, first) = match name {
            // The encapsulation key begins to arrive when this side has sent.
            "HeaderReceived" => {
                script.push(6);
                (2, 0)
            }
            "Ct1Sampled" => (2, 80),
            "Ct1Acknowledged" => (3, 80),
            "NoHeaderReceived" => (1, 80),
            "HeaderSent" => (5, 80),
            _ => (6, 80),
        };
        for chunk in first..first + 38 {
            script.extend([0, 0, 0x70 | kind, chunk, 1, 1, 1, 1]);
        }
        script.extend([6, 0, 3, 0x40, 0, 1, 1, 1, 1]);
        scripts.push((format!("whole_{name}"), script));
    }
    // Far ahead, further than is accepted, and behind.
    for stage in [5, 7, 11] {
        let mut script = vec![stage];
        for shape in [0xbc_u8, 0xd4, 0xd8, 0x14, 0x18, 0x1c, 0x00, 0xe0] {
            script.extend([
                0,
                shape,
                0x70,
                0,
                0,
                0,
                0,
                0,
                0,
                shape & 0xe0,
                0xf0,
                0,
                0,
                0,
                0,
                0,
            ]);
        }
        scripts.push((format!("far_{stage}"), script));
    }
    scripts.push((
        "version_3".into(),
        vec![11, 0, 0, 0, 0x0c, 0, 0x14, 0, 3, 0, 7, 5, 6, 7, 0, 0],
    ));
    scripts
}

fn entries() -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    for stage in STAGES.states.iter().chain([&STAGES.version_3]) {
        for (_, (group, _), entry) in stage.device.entries.iter() {
            let (kind, group) = match group {
                EntryGroup::MessageKeys(_) => ("message_key", group),
                EntryGroup::PostQuantumKeys(_) => ("post_quantum_key", group),
                EntryGroup::Chunks(_) => ("page", group),
            };
            let count = seeds
                .iter()
                .filter(|(name, _)| name.starts_with(kind))
                .count();
            if count < 4 {
                seeds.push((format!("{kind}_{count}"), entry.to_bytes().to_vec()));
                seeds.push((format!("group_of_{kind}_{count}"), group.to_bytes()));
            }
        }
    }
    let mut expanded = vec![2];
    expanded.extend([7; 80]);
    seeds.push(("expanded".into(), expanded));
    seeds
}

fn fingerprints() -> Vec<(String, Vec<u8>)> {
    let ids: [&[u8]; 2] = [b"+14152222222", b"+14153333333"];
    let keys =
        [1, 2].map(|number| IdentityKey::from(PrivateKey::from_bytes(&[number; 32]).public_key()));
    let mut seeds = Vec::new();
    for (version, ours) in [(1, 1), (1, 0), (2, 1)] {
        let side = |at: usize| (ids[at], &keys[at]);
        let fingerprint =
            Fingerprint::new(version, 2, side(ours), side(1 - ours)).expect("two iterations");
        seeds.push(fingerprint.scannable());
    }
    named("scanned", seeds)
}

fn prekey_messages() -> Vec<(String, Vec<u8>)> {
    let mut seeds = named("first", STAGES.first.clone());
    // Version 3 around version 4.
    let parsed = |at: usize| PreKeySignalMessage::from_bytes(&STAGES.first[at]).expect("a message");
    let (outer, inner) = (parsed(0), parsed(2));
    let mut mixed = vec![0x34];
    put_bytes(&mut mixed, 2, &outer.base_key().to_bytes());
    put_bytes(&mut mixed, 3, &outer.identity_key().to_bytes());
    put_bytes(&mut mixed, 4, inner.message().as_bytes());
    put_number(&mut mixed, 6, outer.signed_prekey_id().into());
    seeds.push(("mixed".into(), mixed));
    seeds
}

fn kyber_keys() -> Vec<(String, Vec<u8>)> {
    let pair = &STAGES.fresh.keys.kyber.key_pair;
    vec![
        ("public".into(), pair.public_key().to_bytes()),
        ("seed".into(), pair.seed().expect("generated").to_vec()),
        ("secret".into(), expanded_kyber_key()),
        ("unreduced".into(), [&[8][..], &[0xff; 1568]].concat()),
    ]
}

/// The private Kyber prekey of the fresh device, expanded.
fn expanded_kyber_key() -> Vec<u8> {
    let seed = STAGES.fresh.keys.kyber.key_pair.seed().expect("generated");
    let (secret, _) = libcrux_ml_kem::kyber1024::generate_key_pair(*seed).into_parts();
    let mut bytes = vec![8];
    bytes.extend_from_slice(secret.as_slice());
    bytes
}

fn public_keys() -> Vec<(String, Vec<u8>)> {
    let mut rng = ChaCha12Rng::seed_from_u64(4);
    let honest = KeyPair::generate(&mut rng).public_key().to_bytes().to_vec();
    let u = |low: u8, rest: u8, high: u8| {
        let mut key = vec![5, low];
        key.extend([rest; 30]);
        key.push(high);
        key
    };
    let base = |at: usize| {
        let message = &STAGES.first[at];
        let message = PreKeySignalMessage::from_bytes(message).expect("a message");
        message.base_key().to_bytes().to_vec()
    };
    let signature = STAGES.fresh.identity.sign(b"nothing it signed", &mut rng);
    let identity = STAGES.fresh.identity.identity_key().to_bytes();
    named(
        "key",
        vec![
            [honest.as_slice(), &[0]].concat(),
            honest,
            u(0, 0, 0),
            u(1, 0, 0),
            // The prime and what is next to it, 2²⁵⁵ − 1, and with the top bit.
            u(0xec, 0xff, 0x7f),
            u(0xed, 0xff, 0x7f),
            u(0xee, 0xff, 0x7f),
            u(0xff, 0xff, 0x7f),
            u(0xff, 0xff, 0xff),
            [u(9, 0, 0x80), vec![1]].concat(),
            base(0),
            base(2),
            base(4),
            [identity.as_slice(), &signature].concat(),
            vec![6; 33],
            vec![5; 32],
            // A pair as Signal's own library stores it.
            [
                &[0x0a, 33],
                identity.as_slice(),
                &[0x12, 32],
                STAGES.fresh.identity.private_key().as_bytes(),
            ]
            .concat(),
        ],
    )
}

fn signal_messages() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (at, stage) in (0_usize..).zip(STAGES.states.iter().chain([&STAGES.version_3])) {
        for message in stage.waiting.iter().take(2) {
            // Version 4 messages go to the stage their length names.
            if at == STATES.len() || message.len() % STATES.len() == at {
                seeds.push(message.clone());
            }
        }
        let next = stage.peer.clone().send(&[b'n'; 20]).expect("a session");
        if !next.is_prekey_message {
            seeds.push(next.bytes);
        }
    }
    named("message", seeds)
}

fn post_quantum_parts() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (stage, name) in STAGES.states.iter().zip(STATES) {
        let next = stage.peer.clone().send(b"next").expect("a session");
        let part = post_quantum_field(&next.bytes).expect("version 4");
        seeds.push((format!("to_{name}"), part));
    }
    seeds.extend([
        ("no_key".into(), vec![1, 1, 0, 0]),
        ("empty".into(), vec![]),
        ("version_0".into(), vec![0]),
        (
            "largest".into(),
            [
                vec![1],
                vec![0xff; 9],
                vec![1, 0xff, 0xff, 0xff, 0xff, 0x0f, 6, 0xff, 0xff, 3],
                vec![0; 32],
            ]
            .concat(),
        ),
    ]);
    seeds
}

fn stored_states() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (stage, name) in STAGES.states.iter().zip(STATES) {
        let session = stage.device.record.current().expect("a session");
        let mut bytes = session.to_bytes().to_vec();
        seeds.push((name.to_string(), bytes.clone()));
        if name == "EkReceivedCt1Sampled" {
            // The state of the encapsulation comes before key and ciphertext; its coefficients are too large.
            let at = bytes.len() - 2080 - 1152 - 960;
            bytes[at..at + 2048].fill(0x7f);
            seeds.push(("large_coefficients".into(), bytes));
        }
    }
    let sessions = [
        ("version_3", &STAGES.version_3.device),
        ("version_4_new", &STAGES.met),
    ];
    for (name, device) in sessions {
        let session = device.record.current().expect("a session");
        seeds.push((name.to_string(), session.to_bytes().to_vec()));
    }
    for (name, version) in [
        ("version_3_pending", kith_protocol::Version::V3),
        ("version_4_pending", kith_protocol::Version::V4),
    ] {
        let [mut alice, mut bob] = super::device::Device::pair(6, false);
        let bundle = bob.bundle(version, Some(1));
        alice.start(&bundle);
        let session = alice.record.current().expect("a session");
        seeds.push((name.to_string(), session.to_bytes().to_vec()));
    }
    seeds
}

fn official_records() -> Vec<(String, Vec<u8>)> {
    let record = |device: &super::device::Device, format| {
        OfficialRecord {
            sessions: device.record.clone(),
            entries: device.entries.clone(),
        }
        .to_bytes(format)
        .to_vec()
    };
    let mut seeds: Vec<(String, Vec<u8>)> = STAGES
        .states
        .iter()
        .zip(STATES)
        .map(|(stage, name)| {
            (
                name.to_string(),
                record(&stage.device, SkippedKeyFormat::Seeds),
            )
        })
        .collect();
    let version_3 = &STAGES.version_3.device;
    seeds.push((
        "version_3".into(),
        record(version_3, SkippedKeyFormat::Seeds),
    ));
    seeds.push((
        "version_3_expanded".into(),
        record(version_3, SkippedKeyFormat::Expanded),
    ));
    seeds.push((
        "several_sessions".into(),
        record(&STAGES.met, SkippedKeyFormat::Seeds),
    ));
    seeds.push((
        "parity".into(),
        record(&STAGES.parity.device, SkippedKeyFormat::Seeds),
    ));
    let [mut alice, mut bob] = super::device::Device::pair(6, false);
    let bundle = bob.bundle(kith_protocol::Version::V4, Some(1));
    alice.start(&bundle);
    seeds.push(("pending".into(), record(&alice, SkippedKeyFormat::Seeds)));
    seeds
}
