//! Keys, signatures, safety numbers and reports recorded from the official client.
//!
//! The agreement is not part of the public interface. It is tested where it shows: the low-order points by what a
//! bundle with them gives, the rest by the handshakes of `vectors_v3.rs`.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use kith_protocol::{
    DecryptionErrorMessage, Fingerprint, FingerprintError, IdentityKey, IdentityKeyPair,
    InitiateError, KeyError, KeyPair, KyberKeyPair, KyberPublicKey, LocalDevice, PreKeyBundle,
    PreKeySignalMessage, PrivateKey, ProtocolAddress, PublicKey, RemoteDevice, SessionRecord,
    SignalMessage, SignedPreKey, SignedPreKeyPublic, TrustOnFirstUse, Version,
};
use serde_json::Value;
use support::{SeededRng, field, vectors};

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap()
}

fn private(value: &Value, name: &str) -> PrivateKey {
    PrivateKey::from_bytes(&field(value, name).try_into().unwrap())
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

#[test]
fn private_keys_are_clamped_and_give_the_official_public_keys() {
    let keys = vectors("keys");
    for case in list(&keys, "key_pairs") {
        let key = private(case, "input");
        assert_eq!(key.as_bytes().as_slice(), field(case, "private"));
        let pair = KeyPair::from(key);
        assert_eq!(
            pair.public_key().to_bytes().as_slice(),
            field(case, "public")
        );
    }
    assert_eq!(list(&keys, "key_pairs").len(), 7);
}

#[test]
fn the_keys_of_the_recorded_agreements_are_read_as_they_are() {
    let keys = vectors("keys");
    for case in list(&keys, "agreements") {
        let theirs = PublicKey::from_bytes(&field(case, "public")).unwrap();
        assert_eq!(theirs.to_bytes().as_slice(), field(case, "public"));
        assert_eq!(
            private(case, "private").as_bytes().as_slice(),
            field(case, "private")
        );
        assert_eq!(field(case, "shared").len(), 32);
    }
    assert_eq!(list(&keys, "agreements").len(), 6);
}

#[test]
fn a_bundle_with_a_low_order_point_in_any_place_agrees_to_nothing() {
    let keys = vectors("keys");
    let mut rng = SeededRng::of_test(1);
    let (alice, bob) = (
        IdentityKeyPair::generate(&mut rng),
        IdentityKeyPair::generate(&mut rng),
    );
    let address = ProtocolAddress::new("alice", 1).unwrap();
    let local = LocalDevice {
        address: &address,
        identity: &alice,
        registration_id: 1,
    };
    let remote = RemoteDevice {
        address: &ProtocolAddress::new("bob", 1).unwrap(),
        minimum_version: Version::V3,
    };
    for case in list(&keys, "low_order_agreements") {
        assert_eq!(case["result"], "invalid_key");
        let point = PublicKey::from_bytes(&field(case, "public")).unwrap();
        assert_eq!(point.check_canonical(), Err(KeyError::NotCanonical));
        let signed = SignedPreKey::generate(1, &bob, &mut rng);
        let good = PreKeyBundle {
            registration_id: 1,
            identity_key: bob.identity_key(),
            signed_prekey: SignedPreKeyPublic {
                id: 1,
                public_key: *signed.key_pair.public_key(),
                signature: signed.signature.to_vec(),
            },
            prekey: None,
            kyber_prekey: None,
        };
        let as_one_time = PreKeyBundle {
            prekey: Some((1, point)),
            ..good.clone()
        };
        let as_signed = PreKeyBundle {
            signed_prekey: SignedPreKeyPublic {
                id: 1,
                public_key: point,
                signature: bob.sign(&point.to_bytes(), &mut rng).to_vec(),
            },
            ..good.clone()
        };
        let mut start = |bundle: &PreKeyBundle| {
            let trust = TrustOnFirstUse(None);
            SessionRecord::default().initiate(&local, &remote, bundle, &trust, 0, &mut rng)
        };
        assert_eq!(start(&good), Ok(kith_protocol::Replaced::default()));
        assert_eq!(start(&as_one_time), Err(InitiateError::Key));
        assert_eq!(start(&as_signed), Err(InitiateError::Key));
    }
    assert_eq!(list(&keys, "low_order_agreements").len(), 7);
}

#[test]
fn public_keys_parse_as_in_the_official_client_except_that_longer_ones_are_refused() {
    let keys = vectors("keys");
    let mut stricter = 0;
    for case in list(&keys, "public_key_parsing") {
        let input = field(case, "input");
        let parsed = PublicKey::from_bytes(&input);
        assert_eq!(
            IdentityKey::from_bytes(&input).map(|key| *key.public_key()),
            parsed
        );
        if case["ok"] == true && input.len() > 33 {
            // The official parser drops what follows the first 33 bytes.
            assert_eq!(parsed, Err(KeyError::Length(input.len())));
            stricter += 1;
        } else if case["ok"] == true {
            assert_eq!(parsed.unwrap().to_bytes().as_slice(), input);
        } else {
            let error = parsed.unwrap_err();
            match input.first() {
                None => assert_eq!(error, KeyError::Length(0)),
                Some(5) => assert_eq!(error, KeyError::Length(input.len())),
                Some(&kind) => assert_eq!(error, KeyError::Type(kind)),
            }
        }
    }
    assert_eq!(list(&keys, "public_key_parsing").len(), 8);
    assert!(stricter > 0);
}

#[test]
fn signatures_are_valid_exactly_where_the_official_client_says_so() {
    let keys = vectors("keys");
    let mut rng = SeededRng::of_test(2);
    let mut valid = 0;
    for case in list(&keys, "signatures") {
        let key = IdentityKey::from_bytes(&field(case, "public")).unwrap();
        let (message, signature) = (field(case, "message"), field(case, "signature"));
        assert_eq!(
            Value::from(key.verify(&message, &signature)),
            case["valid"],
            "{case}"
        );
        if case["valid"] == true {
            valid += 1;
            // Ours under the same key verifies, and is another one.
            let pair = IdentityKeyPair::from_private_key(private(case, "private"));
            assert_eq!(pair.identity_key(), key);
            let ours = pair.sign(&message, &mut rng);
            assert!(key.verify(&message, &ours));
            assert_ne!(ours.as_slice(), signature);
        }
    }
    assert_eq!(list(&keys, "signatures").len(), 37);
    assert!(valid > 5 && valid < 37, "{valid}");
}

#[test]
fn identity_key_pairs_are_read_from_their_private_key() {
    let keys = vectors("keys");
    for case in list(&keys, "identity_key_pairs") {
        let serialized = field(case, "serialized");
        let pair = IdentityKeyPair::from_private_key(private(case, "private"));
        let public = pair.identity_key().to_bytes();
        assert_eq!(public.as_slice(), field(case, "public"));
        // 1 public, 2 private, as Signal stores them.
        let stored = [
            &[0x0a, 33],
            public.as_slice(),
            &[0x12, 32],
            pair.private_key().as_bytes(),
        ]
        .concat();
        assert_eq!(stored, serialized);
        let again = IdentityKeyPair::from_parts(
            pair.identity_key(),
            PrivateKey::from_bytes(pair.private_key().as_bytes()),
        );
        assert_eq!(again, pair);
    }
    assert_eq!(list(&keys, "identity_key_pairs").len(), 2);
}

#[test]
fn safety_numbers_are_the_official_ones_in_both_forms() {
    let vectors = vectors("fingerprints");
    for case in list(&vectors, "cases") {
        let key = |name| IdentityKey::from_bytes(&field(case, name)).unwrap();
        let (local_id, local_key) = (field(case, "local_id"), key("local_key"));
        let (remote_id, remote_key) = (field(case, "remote_id"), key("remote_key"));
        let (version, iterations) = (number(&case["version"]), number(&case["iterations"]));
        let (local, remote) = ((&*local_id, &local_key), (&*remote_id, &remote_key));
        let ours = Fingerprint::new(version, iterations, local, remote).unwrap();
        let theirs = Fingerprint::new(version, iterations, remote, local).unwrap();
        assert_eq!(ours.display(), case["display"]);
        assert_eq!(theirs.display(), case["display"]);
        assert_eq!(ours.scannable(), field(case, "scannable"));
        assert_eq!(theirs.scannable(), field(case, "scannable_of_remote"));
        assert_eq!(ours.matches(&theirs.scannable()), Ok(true));
        // The own code is not the other side's.
        let same_sides = (&*local_id, &local_key) == (&*remote_id, &remote_key);
        assert_eq!(ours.matches(&ours.scannable()), Ok(same_sides));

        let other = Fingerprint::new(version + 1, iterations, remote, local).unwrap();
        assert_eq!(other.display(), case["display"]);
        assert_eq!(
            ours.matches(&other.scannable()),
            Err(FingerprintError::Version {
                ours: version,
                theirs: version + 1
            })
        );
        let scannable = theirs.scannable();
        for length in 0..scannable.len() {
            let cut = ours.matches(&scannable[..length]);
            assert_ne!(cut, Ok(true), "{length} bytes");
        }
        for at in 0..scannable.len() {
            let mut changed = scannable.clone();
            changed[at] ^= 1;
            assert_ne!(ours.matches(&changed), Ok(true), "byte {at}");
        }
    }
    assert_eq!(list(&vectors, "cases").len(), 5);
}

#[test]
fn safety_numbers_take_2_to_1_000_000_iterations() {
    let vectors = vectors("fingerprints");
    let mut rng = SeededRng::of_test(3);
    let key = IdentityKeyPair::generate(&mut rng).identity_key();
    let new = |iterations| Fingerprint::new(2, iterations, (b"a", &key), (b"b", &key)).map(|_| ());
    for case in list(&vectors, "iteration_limits") {
        let iterations = number(&case["iterations"]);
        assert_eq!(new(iterations).is_ok(), case["ok"] == true, "{iterations}");
    }
    for iterations in [0, 1, 1_000_001, u32::MAX] {
        assert_eq!(
            new(iterations),
            Err(FingerprintError::Iterations(iterations))
        );
    }
    assert_eq!(new(2), Ok(()));
}

#[test]
fn the_official_kyber_key_pair_is_read_and_kyber_keys_parse_as_they_do_there() {
    let keys = vectors("keys");
    let (public, secret) = (
        field(&keys["kem_key_pair"], "public"),
        field(&keys["kem_key_pair"], "secret"),
    );
    let pair = KyberKeyPair::from_secret_key(&secret).unwrap();
    assert_eq!(pair.public_key().to_bytes(), public);
    assert_eq!(pair.seed(), None);
    assert_eq!(
        KyberPublicKey::from_bytes(&public).as_ref(),
        Ok(pair.public_key())
    );
    for length in [0, 1, 3_168, 3_170] {
        let mut other = secret.clone();
        other.resize(length, 0);
        assert!(KyberKeyPair::from_secret_key(&other).is_err(), "{length}");
    }
    // The public half lies inside, and so does its hash.
    for at in [0, 1 + 1_536, 1 + 1_536 + 1_568] {
        let mut other = secret.clone();
        other[at] ^= 1;
        assert!(KyberKeyPair::from_secret_key(&other).is_err(), "{at}");
    }
    for case in list(&keys, "kem_public_key_parsing") {
        let mut bytes = public.clone();
        bytes.resize(number(&case["length"]) as usize, 0);
        if let Some(first) = bytes.first_mut() {
            *first = u8::try_from(number(&case["type"])).unwrap();
        }
        assert_eq!(
            KyberPublicKey::from_bytes(&bytes).is_ok(),
            case["ok"] == true,
            "{case}"
        );
    }
    assert!(list(&keys, "kem_public_key_parsing").len() >= 4);
}

#[test]
fn reports_of_messages_that_did_not_open_are_those_of_the_official_client() {
    let reports = vectors("decryption_error");
    for case in list(&reports, "cases") {
        let body = field(&case["original"], "body");
        let timestamp = case["timestamp"].as_u64().unwrap();
        let device = number(&case["device_id"]);
        let report = if case["original"]["type"] == 3 {
            let message = PreKeySignalMessage::from_bytes(&body).unwrap();
            DecryptionErrorMessage::of_prekey_message(&message, timestamp, device)
        } else {
            let message = SignalMessage::from_bytes(&body).unwrap();
            DecryptionErrorMessage::of_message(&message, timestamp, device)
        };
        assert_eq!(report.to_bytes(), field(case, "serialized"));
        let content = field(case, "plaintext_content");
        assert_eq!(report.to_plaintext_content(), content);
        let parsed = DecryptionErrorMessage::from_plaintext_content(&content).unwrap();
        assert_eq!(parsed, report);
        assert_eq!(
            parsed.ratchet_key().unwrap().to_bytes().as_slice(),
            field(case, "ratchet_key")
        );
        assert_eq!(
            (parsed.timestamp(), parsed.device_id()),
            (timestamp, device)
        );
    }
    assert_eq!(list(&reports, "cases").len(), 2);
}
