//! The harness against itself: two devices of the official client talk through it.

mod support;

use std::path::Path;

use support::SeededRng;
use support::network::{Behaviour, Network, Party};
use support::official::OfficialParty;
use support::peer::{BundleOptions, MessageType, Peer, PeerAddress, Release, TrustPolicy};

fn addresses() -> (PeerAddress, PeerAddress) {
    (PeerAddress::new("alice", 1), PeerAddress::new("bob", 2))
}

#[test]
fn two_devices_of_the_official_client_talk_through_the_harness() {
    let peer = Peer::start(Release::V0_60);
    assert_eq!(peer.version(), "0.60.2");
    let (at_alice, at_bob) = addresses();
    let (alice, bob) = (
        peer.create_identity(&at_alice),
        peer.create_identity(&at_bob),
    );

    let bundle = bob.publish_bundle(BundleOptions::X3DH);
    assert_eq!(bundle.identity_key, bob.identity_key);
    assert_eq!(bundle.address, at_bob);
    assert!(bundle.kyber_prekey.is_none());
    let prekey_id = bundle.prekey.as_ref().unwrap().id;
    let session = alice.process_bundle(&at_bob, &bundle, None).unwrap();
    let state = session.current.unwrap();
    assert!(session.usable && state.unacknowledged);
    assert_eq!(state.version, 3);

    let first = alice.encrypt(&at_bob, b"hello", None).unwrap();
    assert_eq!(first.kind, MessageType::PreKey);
    assert_eq!(peer.inspect(&first).unwrap()["prekey_id"], prekey_id);
    let before = bob.snapshot();
    assert_eq!(bob.decrypt(&at_alice, &first).unwrap(), b"hello");
    assert_eq!(bob.removed_prekeys(), [prekey_id]);
    assert_eq!(
        bob.decrypt(&at_alice, &first).unwrap_err().kind,
        "duplicate_message"
    );
    bob.restore(&before);
    assert_eq!(bob.decrypt(&at_alice, &first).unwrap(), b"hello");

    let answer = bob.encrypt(&at_alice, b"hi", None).unwrap();
    assert_eq!(answer.kind, MessageType::Ordinary);
    let mut damaged = answer.clone();
    *damaged.body.last_mut().unwrap() ^= 1;
    let error = alice.decrypt(&at_bob, &damaged).unwrap_err();
    assert_eq!(error.kind, "invalid_message");
    assert!(
        error
            .detail
            .as_deref()
            .is_some_and(|detail| detail.contains("MAC verification failed")),
        "{error}"
    );
    assert_eq!(alice.decrypt(&at_bob, &answer).unwrap(), b"hi");

    let info = alice.session_info(&at_bob).current.unwrap();
    assert!(!info.unacknowledged);
    assert_eq!(info.remote_identity, bob.identity_key);
    let record = alice.export_session(&at_bob).unwrap();
    assert!(alice.delete_session(&at_bob));
    assert_eq!(
        alice.encrypt(&at_bob, b"gone", None).unwrap_err().kind,
        "session_not_found"
    );
    alice.import_session(&at_bob, &record).unwrap();
    let after = alice.encrypt(&at_bob, b"back", None).unwrap();
    assert_eq!(bob.decrypt(&at_alice, &after).unwrap(), b"back");
}

#[test]
fn identities_signatures_and_safety_numbers_go_through_the_harness() {
    let peer = Peer::start(Release::V0_60);
    let (at_alice, at_bob) = addresses();
    let (alice, bob) = (
        peer.create_identity(&at_alice),
        peer.create_identity(&at_bob),
    );
    let impostor = peer.create_identity(&at_bob);

    alice.set_identity(&at_bob, &bob.identity_key);
    assert_eq!(alice.get_identity(&at_bob), Some(bob.identity_key.clone()));
    let forged = impostor.publish_bundle(BundleOptions::X3DH_WITHOUT_ONE_TIME);
    assert!(forged.prekey.is_none());
    let refused = alice.process_bundle(&at_bob, &forged, None).unwrap_err();
    assert_eq!(refused.kind, "untrusted_identity");
    alice.set_trust_policy(TrustPolicy::All);
    alice.process_bundle(&at_bob, &forged, None).unwrap();
    assert!(alice.forget_identity(&at_bob));
    assert_eq!(alice.get_identity(&at_bob), None);

    let signature = bob.sign(b"message");
    assert!(
        peer.verify(&bob.identity_key, b"message", &signature)
            .unwrap()
    );
    assert!(
        !peer
            .verify(&bob.identity_key, b"massage", &signature)
            .unwrap()
    );

    let (private, public) = peer.generate_keypair();
    assert_eq!(peer.public_key(&private).unwrap(), public);
    let (other_private, other_public) = peer.generate_keypair();
    assert_eq!(
        peer.agree(&private, &other_public).unwrap(),
        peer.agree(&other_private, &public).unwrap()
    );

    let print = |me: (&str, &[u8]), them: (&str, &[u8])| {
        peer.fingerprint(me.0.as_bytes(), me.1, them.0.as_bytes(), them.1)
            .unwrap()
    };
    let a = ("alice", alice.identity_key.as_slice());
    let b = ("bob", bob.identity_key.as_slice());
    let (mine, theirs) = (print(a, b), print(b, a));
    assert_eq!(mine.digits, theirs.digits);
    assert_eq!(mine.digits.len(), 60);
    assert!(
        peer.fingerprints_match(&mine.scannable, &theirs.scannable)
            .unwrap()
    );
}

#[test]
fn the_official_client_keeps_the_rules_of_the_simulated_network() {
    for (release, messages, kinds) in [
        (
            Release::V0_60,
            150,
            [BundleOptions::X3DH, BundleOptions::X3DH_WITHOUT_ONE_TIME],
        ),
        (
            Release::V0_103,
            70,
            [BundleOptions::PQXDH, BundleOptions::PQXDH_LAST_RESORT],
        ),
    ] {
        let peer = Peer::start(release);
        let mut rng = SeededRng::of_test(60);
        for behaviour in Behaviour::ALL {
            let parties = (0..3)
                .map(|index| -> Box<dyn Party> {
                    let options = *rng.pick(&kinds);
                    Box::new(OfficialParty::new(&peer, index, options))
                })
                .collect();
            let summary = Network::new(parties, behaviour, rng.fork())
                .run(messages)
                .unwrap();
            println!("{release:?}, {}: {summary}", behaviour.name);
        }
    }
}

/// A conversation of the official client with itself, as far as the rules of the network depend on the post-quantum
/// ratchet: what it delivers in time opens, epoch after epoch.
#[test]
fn two_current_official_clients_go_through_epochs_on_the_simulated_network() {
    let peer = Peer::start(Release::V0_103);
    assert_eq!(peer.version(), "0.103.0");
    let parties = (0..2)
        .map(|index| -> Box<dyn Party> {
            let party = OfficialParty::new(&peer, index, BundleOptions::PQXDH);
            Box::new(party.without_comparison())
        })
        .collect();
    let summary = Network::new(parties, Behaviour::CONVERSATION, SeededRng::of_test(61))
        .run(1_500)
        .unwrap();
    println!("{summary}");
    assert!(summary.most_epochs >= 3, "{summary}");
}

#[test]
fn what_is_missing_is_named_in_one_line() {
    let nowhere = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reason = Peer::start_in(nowhere, "node", Release::V0_60)
        .err()
        .unwrap();
    assert!(reason.contains("KITH_PEER_DIR"), "{reason}");

    let kit = nowhere.join("../../test/interop/peer");
    let reason = Peer::start_in(&kit, "no-such-node", Release::V0_60)
        .err()
        .unwrap();
    assert!(reason.contains("run `make test`"), "{reason}");
    assert_eq!(reason.lines().count(), 1);
}
