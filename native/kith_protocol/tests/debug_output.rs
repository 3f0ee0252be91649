//! What `Debug` prints of every public type that holds a secret: pinned, so that a new field is noticed.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Debug;

use kith_protocol::{
    Entry, EntryGroup, EntryLookup, IdentityKeyPair, KeyPair, KyberKeyPair, KyberPreKey,
    LocalDevice, OfficialRecord, PreKey, PrivateKey, ProtocolAddress, SkippedKeyFormat, Version,
};
use support::SeededRng;
use support::ours::Device;
use support::records::Record;

/// The printed form in one line and in many. Neither holds eight bytes in a row of any secret, in any notation.
fn shown(value: &impl Debug, secrets: &[Vec<u8>]) -> String {
    let line = format!("{value:?}");
    for text in [&line, &format!("{value:#?}"), &format!("{value:x?}")] {
        assert!(!reveals(text, secrets), "{text}");
    }
    line
}

fn reveals(text: &str, secrets: &[Vec<u8>]) -> bool {
    let digits: String = text.to_lowercase().split_whitespace().collect();
    secrets
        .iter()
        .flat_map(|secret| secret.windows(8))
        .any(|window| {
            let decimal: Vec<_> = window.iter().map(ToString::to_string).collect();
            let hex: Vec<_> = window.iter().map(|byte| format!("{byte:x}")).collect();
            [hex::encode(window), decimal.join(","), hex.join(",")]
                .iter()
                .any(|form| digits.contains(form.as_str()))
                || text.as_bytes().windows(8).any(|raw| raw == window)
        })
}

#[test]
fn the_search_finds_what_is_there() {
    let secret = vec![0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80];
    for text in [
        format!("{secret:?}"),
        format!("{secret:#?}"),
        format!("{secret:x?}"),
        hex::encode(&secret).to_uppercase(),
    ] {
        assert!(reveals(&text, std::slice::from_ref(&secret)), "{text}");
    }
    assert!(!reveals("[16, 32]", &[secret]));
}

#[test]
fn keys_print_that_they_are_secret() {
    let key = PrivateKey::from_bytes(&[0x41; 32]);
    let secrets = [key.as_bytes().to_vec()];
    assert_eq!(shown(&key, &secrets), "PrivateKey([secret])");
    let pair = KeyPair::from(key.clone());
    let expected = format!(
        "KeyPair {{ public: {:?}, private: PrivateKey([secret]) }}",
        pair.public_key()
    );
    assert_eq!(shown(&pair, &secrets), expected);
    let identity = IdentityKeyPair::from_private_key(key);
    let identity_expected = format!("IdentityKeyPair({expected})");
    assert_eq!(shown(&identity, &secrets), identity_expected);
    let prekey = PreKey {
        id: 7,
        key_pair: pair,
    };
    assert_eq!(
        shown(&prekey, &secrets),
        format!("PreKey {{ id: 7, key_pair: {expected} }}")
    );
    let address = ProtocolAddress::new("alice", 1).unwrap();
    let local = LocalDevice {
        address: &address,
        identity: &identity,
        registration_id: 9,
    };
    assert_eq!(
        shown(&local, &secrets),
        format!(
            "LocalDevice {{ address: ProtocolAddress {{ name: \"alice\", device_id: 1 }}, identity: \
             {identity_expected}, registration_id: 9 }}"
        )
    );
}

#[test]
fn signed_prekeys_print_their_public_half() {
    let mut rng = SeededRng::new(1);
    let identity = IdentityKeyPair::generate(&mut rng);
    let signed = kith_protocol::SignedPreKey::generate(3, &identity, &mut rng);
    let secrets = [
        identity.private_key().as_bytes().to_vec(),
        signed.key_pair.private_key().as_bytes().to_vec(),
    ];
    let text = shown(&signed, &secrets);
    assert_eq!(
        text,
        format!(
            "SignedPreKey {{ id: 3, key_pair: {:?}, signature: {:?} }}",
            signed.key_pair, signed.signature
        )
    );
}

#[test]
fn sessions_records_and_what_decrypting_gives_print_no_secret() {
    let mut alice = Device::new("alice", Version::V3, SeededRng::new(2));
    let mut bob = Device::new("bob", Version::V3, SeededRng::new(3));
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    let text = b"a text of more than eight bytes".to_vec();
    alice.encrypt(&bob.address, &text).unwrap();
    let next = alice.encrypt(&bob.address, &text).unwrap();
    let prekeys: Vec<_> = bob
        .store
        .prekeys
        .values()
        .chain(bob.store.signed_prekeys.values())
        .cloned()
        .collect();
    let opened = bob.decrypt(&alice.address, &next).unwrap();
    let rows = bob.peer(&alice.address).clone();
    let session = rows.current().unwrap();
    let record = bob.export(&alice.address);

    let stored = session.to_bytes();
    // From the root key to the sending chain key, without the public ratchet key; and the receiving chain key.
    let mut secrets = vec![
        stored[155 - 32..155].to_vec(),
        stored[187..219].to_vec(),
        stored[219..251].to_vec(),
        stored[stored.len() - 40..stored.len() - 8].to_vec(),
        text.clone(),
        alice.store.identity.clone(),
        bob.store.identity.clone(),
    ];
    secrets.extend(prekeys);
    secrets.extend(rows.entries.values().map(|key| key[1..].to_vec()));
    let expanded = record.to_bytes(SkippedKeyFormat::Expanded);
    let expanded = OfficialRecord::from_bytes(&expanded).unwrap();

    let id = format!("{:?}", session.id());
    let session_expected = format!(
        "Session {{ id: {id}, version: V3, sent: 0, receiving_chains: 1, acknowledged: true, braid: None, .. }}"
    );
    assert_eq!(shown(&session, &secrets), session_expected);
    assert_eq!(
        shown(&rows.record(), &secrets),
        format!("SessionRecord {{ current: Some({session_expected}), archived: Loaded([]) }}")
    );
    let (position, key) = &opened.changes.entries_added[0];
    let key_expected = "Entry(Seed(MessageSeed([secret])))";
    assert_eq!(shown(key, &secrets), key_expected);
    assert_eq!(
        shown(&EntryLookup::Found(key.clone()), &secrets),
        format!("Found({key_expected})")
    );
    let memory_expected = format!(
        "MemoryEntries({{({id}, {:?}, 0): {key_expected}}})",
        position.0
    );
    assert_eq!(shown(&record.entries, &secrets), memory_expected);
    assert_eq!(
        shown(&record, &secrets),
        format!(
            "OfficialRecord {{ sessions: {:?}, entries: {memory_expected} }}",
            rows.record()
        )
    );
    assert!(shown(&expanded, &secrets).contains("Entry(Expanded(MessageKeys([secret])))"));
    let all = Entry::from_bytes(&[&[2], [0x41; 80].as_slice()].concat()).unwrap();
    assert_eq!(
        shown(&all, &[vec![0x41; 80]]),
        "Entry(Expanded(MessageKeys([secret])))"
    );

    let changes = shown(&opened.changes, &secrets);
    assert!(changes.contains(key_expected), "{changes}");
    let decrypted = shown(&opened, &secrets);
    assert_eq!(
        decrypted,
        format!(
            "Decrypted {{ plaintext_len: 31, remote_identity: {:?}, changes: {changes} }}",
            opened.remote_identity
        )
    );
    shown(&session.info(), &secrets);
}

#[test]
fn kyber_keys_print_their_public_half_and_that_in_short() {
    let mut rng = SeededRng::new(4);
    let identity = IdentityKeyPair::generate(&mut rng);
    let kyber = KyberPreKey::generate(3, &identity, &mut rng);
    let pair: &KyberKeyPair = &kyber.key_pair;
    let seed = pair.seed().unwrap().to_vec();
    let secrets = [seed];
    // After the type byte, the first four bytes.
    let public = hex::encode(&pair.public_key().to_bytes()[1..5]);
    let public_expected = format!("KyberPublicKey({public}…)");
    assert_eq!(shown(pair.public_key(), &secrets), public_expected);
    let pair_expected =
        format!("KyberKeyPair {{ public: {public_expected}, secret: \"[secret]\" }}");
    assert_eq!(shown(pair, &secrets), pair_expected);
    assert_eq!(
        shown(&kyber, &secrets),
        format!(
            "KyberPreKey {{ id: 3, key_pair: {pair_expected}, signature: {:?} }}",
            kyber.signature
        )
    );
}

#[test]
fn sessions_of_version_4_print_no_secret_in_any_state() {
    let mut devices = [("alice", 5), ("bob", 6)]
        .map(|(name, seed)| Device::new(name, Version::V4, SeededRng::new(seed)));
    let addresses = devices.each_ref().map(|device| device.address.clone());
    let bundle = devices[1].publish();
    devices[0].initiate(&addresses[1], &bundle).unwrap();
    let mut states = BTreeSet::new();
    for sent in 0..200 {
        let (from, to) = (sent % 2, 1 - sent % 2);
        let text = b"a text of more than eight bytes".to_vec();
        // Every other message is lost, so that there are keys to keep.
        devices[from].encrypt(&addresses[to], &text).unwrap();
        let message = devices[from].encrypt(&addresses[to], &text).unwrap();
        let opened = devices[to].decrypt(&addresses[from], &message).unwrap();
        let rows = devices[to].peer(&addresses[from]).clone();
        let session = rows.current().unwrap();
        let (state, _) = devices[to].braid(&addresses[from]);
        if !states.insert(state) {
            continue;
        }
        let record = devices[to].export(&addresses[from]);
        let fields = Record::of(&record, SkippedKeyFormat::Seeds)
            .session()
            .clone();
        let post_quantum = fields.post_quantum().unwrap();
        let chain = post_quantum.chain.unwrap();
        let mut secrets = vec![
            fields.root_key,
            fields.sending.as_ref().unwrap().private.clone(),
            fields.sending.unwrap().key.unwrap().key,
            // Some of it is public, and none of it is shown. The long keys are all of one kind: their beginnings will do.
            post_quantum.braid[..post_quantum.braid.len().min(400)].to_vec(),
            chain.root,
            devices[to].store.identity.clone(),
            text,
        ];
        for receiving in &fields.receiving {
            secrets.push(receiving.key.as_ref().unwrap().key.clone());
        }
        for half in chain
            .epochs
            .iter()
            .flat_map(|epoch| [&epoch.sending, &epoch.receiving])
        {
            let half = half.as_ref().unwrap();
            secrets.extend([half.chain.clone(), half.kept.clone()]);
        }
        for ((_, group, _), entry) in &rows.entries {
            if !matches!(group, EntryGroup::Chunks(_)) {
                secrets.push(entry[1..].to_vec());
            }
        }
        let printed = shown(&session, &secrets);
        assert!(
            printed.contains(&format!("braid: Some(\"{state}\")")),
            "{printed}"
        );
        shown(&rows.record(), &secrets);
        shown(&record, &secrets);
        shown(&record.entries, &secrets);
        shown(&opened, &secrets);
        shown(&session.info(), &secrets);
        for ((group, _), entry) in &opened.changes.entries_added {
            let printed = shown(entry, &secrets);
            match group {
                EntryGroup::MessageKeys(_) => {
                    assert_eq!(printed, "Entry(Seed(MessageSeed([secret])))");
                }
                EntryGroup::PostQuantumKeys(_) => {
                    assert_eq!(printed, "Entry(PostQuantumKey([secret]))");
                }
                // Parts of public keys and ciphertexts, as they travelled.
                EntryGroup::Chunks(_) => assert!(printed.starts_with("Entry(Page(["), "{printed}"),
            }
        }
    }
    assert!(states.len() >= 9, "{states:?}");
}
