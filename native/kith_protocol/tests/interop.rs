//! This engine with the official client 0.60.2, live: both roles, every behaviour of the network, and the cases around
//! a session. `KITH_INTEROP_MESSAGES` sets how many messages the long run exchanges.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use kith_protocol::limits::MAX_UNACKNOWLEDGED_SESSION_AGE;
use kith_protocol::{
    EncryptError, Fingerprint, IdentityKey, InitiateError, OfficialRecord, PrivateKey,
    SkippedKeyFormat, Version,
};
use serde_json::Value;
use support::SeededRng;
use support::network::{Behaviour, Network, Party, Reason, Summary, address};
use support::official::OfficialParty;
use support::ours::{Device, Loading, OurParty, from_peer, protocol_address, to_peer};
use support::pair::{OURS, Pair, Sent, THEIRS, identity_record, private_of};
use support::peer::{BundleOptions, MessageType, Peer, Release, TrustPolicy};

/// Messages of the long run unless the environment says otherwise.
const MESSAGES: usize = 8_000;

fn new_pair(seed: u64) -> Pair {
    Pair::new(Release::V0_60, seed)
}

fn run(
    peer: &Peer,
    behaviour: Behaviour,
    ours: &[bool],
    messages: usize,
    rng: &mut SeededRng,
) -> Summary {
    let parties = ours
        .iter()
        .enumerate()
        .map(|(index, is_ours)| -> Box<dyn Party> {
            if *is_ours {
                Box::new(OurParty::new(
                    index,
                    Version::V3,
                    Loading::Mixed,
                    70,
                    rng.fork(),
                ))
            } else {
                let options = *rng.pick(&[
                    BundleOptions::X3DH,
                    BundleOptions::X3DH,
                    BundleOptions::X3DH_WITHOUT_ONE_TIME,
                ]);
                Box::new(OfficialParty::new(peer, index, options).without_comparison())
            }
        })
        .collect();
    Network::new(parties, behaviour, rng.fork())
        .run(messages)
        .unwrap()
}

#[test]
fn the_official_client_and_this_engine_exchange_thousands_of_messages_in_both_roles() {
    let messages = match std::env::var("KITH_INTEROP_MESSAGES") {
        Ok(text) => text.parse().expect("KITH_INTEROP_MESSAGES is a number"),
        Err(_) => MESSAGES,
    };
    let each = messages.div_ceil(2 * Behaviour::ALL.len());
    let mut rng = SeededRng::of_test(61);
    // The party with the lower index starts the sessions.
    let summaries: Vec<Summary> = std::thread::scope(|scope| {
        let roles = [[true, false], [false, true]].map(|ours| {
            let mut rng = rng.fork();
            scope.spawn(move || {
                let peer = Peer::start(Release::V0_60);
                Behaviour::ALL.map(|behaviour| run(&peer, behaviour, &ours, each, &mut rng))
            })
        });
        roles
            .into_iter()
            .flat_map(|role| match role.join() {
                Ok(summaries) => summaries,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    let sum = |count: fn(&Summary) -> usize| summaries.iter().map(count).sum::<usize>();
    assert!(sum(|run| run.sent) >= messages);
    assert_eq!(
        sum(|run| run.opened) + sum(|run| run.dropped),
        sum(|run| run.sent)
    );
    println!(
        "official client 0.60.2 and Kith in both roles: {} messages sent ({} of them prekey), {} opened, {} lost, {} \
         overtaken, {} duplicates and {} damaged refused, {} sessions, {} restarts; none opened wrongly or twice",
        sum(|run| run.sent),
        sum(|run| run.prekey_messages),
        sum(|run| run.opened),
        sum(|run| run.dropped),
        sum(|run| run.overtaken),
        sum(|run| run.duplicates_refused),
        sum(Summary::tampered),
        sum(|run| run.sessions_started),
        sum(|run| run.restarts),
    );
}

#[test]
fn a_family_in_which_some_use_the_official_client_talks() {
    let peer = Peer::start(Release::V0_60);
    let mut rng = SeededRng::of_test(62);
    for behaviour in [
        Behaviour::CHAOS,
        Behaviour::SIMULTANEOUS,
        Behaviour::OFFLINE,
    ] {
        let ours = [true, false, true, true, false, true];
        let summary = run(&peer, behaviour, &ours, 400, &mut rng);
        assert_eq!(summary.opened + summary.dropped, summary.sent);
    }
}

#[test]
fn sessions_from_bundles_with_and_without_a_one_time_prekey_work_in_both_roles() {
    for names in [(OURS, THEIRS), ("alice", "bob"), (OURS, "bob")] {
        let mut pair = Pair::named(Release::V0_60, 63, names.0, names.1);
        for one_time in [true, false] {
            let options = BundleOptions {
                one_time,
                ..BundleOptions::X3DH
            };
            let used_before = pair.theirs.removed_prekeys().len();
            pair.we_start(options);
            let first = pair.we_encrypt();
            let seen = pair.peer.inspect(&first.1).unwrap();
            assert_eq!(seen["version_byte"], 0x34, "{seen}");
            assert_eq!(seen["prekey_id"].is_number(), one_time, "{seen}");
            assert_eq!(seen["registration_id"], pair.ours.store.registration_id);
            pair.they_open(&first);
            assert_eq!(
                pair.theirs.removed_prekeys().len() - used_before,
                usize::from(one_time)
            );
            pair.talk(3);

            pair.ours.one_time = one_time;
            let stock = pair.ours.store.prekeys.len();
            pair.they_start();
            let first = pair.they_encrypt();
            assert_eq!(first.1.kind, MessageType::PreKey);
            assert_eq!(pair.ours.store.prekeys.len(), stock + usize::from(one_time));
            pair.we_open(&first);
            assert_eq!(pair.ours.store.prekeys.len(), stock);
            pair.talk(3);
        }
        let info = pair.theirs.session_info(&pair.at_ours);
        assert_eq!(info.previous.len(), 3);
        assert_eq!(pair.ours.peer(&pair.them).archived.len(), 3);
    }
}

#[test]
fn prekey_ids_at_the_ends_of_their_range_work_in_both_roles() {
    let mut pair = new_pair(64);
    for id in [0, 1, (1 << 31) - 1, 1 << 31, u32::MAX] {
        pair.we_start(BundleOptions {
            prekey_id: Some(id),
            signed_prekey_id: Some(id),
            ..BundleOptions::X3DH
        });
        let first = pair.we_encrypt();
        pair.they_open(&first);

        let mut bundle = pair.ours.publish();
        // The same keys under the wanted ids.
        let (old, _) = bundle.prekey.unwrap();
        let private = pair.ours.store.prekeys.remove(&old).unwrap();
        pair.ours.store.prekeys.insert(id, private);
        bundle.prekey.as_mut().unwrap().0 = id;
        let private = pair.ours.store.signed_prekeys[&bundle.signed_prekey.id].clone();
        pair.ours.store.signed_prekeys.insert(id, private);
        bundle.signed_prekey.id = id;
        let bundle = to_peer(&pair.at_ours, &bundle);
        pair.theirs
            .process_bundle(&pair.at_ours, &bundle, None)
            .unwrap();
        let first = pair.they_encrypt();
        assert_eq!(pair.peer.inspect(&first.1).unwrap()["signed_prekey_id"], id);
        pair.we_open(&first);
        pair.talk(1);

        // An unacknowledged session with such an id goes through a record and back.
        pair.we_start(BundleOptions {
            signed_prekey_id: Some(id),
            ..BundleOptions::X3DH_WITHOUT_ONE_TIME
        });
        let record = pair.ours.export(&pair.them);
        let bytes = record.to_bytes(SkippedKeyFormat::Expanded);
        let again = OfficialRecord::from_bytes(&bytes).unwrap();
        assert_eq!(again, record);
        pair.ours.import(&pair.them, &again);
        let first = pair.we_encrypt();
        pair.they_open(&first);
    }
}

#[test]
fn both_sides_start_at_once_and_nothing_is_lost() {
    let mut pair = new_pair(65);
    pair.we_start(BundleOptions::X3DH);
    pair.they_start();
    let (mine, theirs) = (pair.we_encrypt(), pair.they_encrypt());
    let (mine_too, theirs_too) = (pair.we_encrypt(), pair.they_encrypt());
    pair.they_open(&mine);
    pair.we_open(&theirs);
    // Now each sends on the session of the other.
    let crossed = (pair.we_encrypt(), pair.they_encrypt());
    pair.they_open(&mine_too);
    pair.we_open(&theirs_too);
    pair.they_open(&crossed.0);
    pair.we_open(&crossed.1);
    pair.talk(2);
    let theirs = pair.theirs.session_info(&pair.at_ours);
    let ours = pair.ours.peer(&pair.them).record();
    assert_eq!((theirs.previous.len(), ours.archived().len()), (1, 1));
    assert!(ours.current().unwrap().is_acknowledged());
    let receiving = ours.current().unwrap().info().receiving;
    assert_eq!(
        theirs.current.unwrap().sender_ratchet_key.unwrap(),
        receiving.last().unwrap().ratchet_key.to_bytes(),
        "both use the same session in the end"
    );
}

#[test]
fn a_session_is_replaced_while_messages_of_the_old_one_are_under_way() {
    for we_replace in [true, false] {
        let mut pair = new_pair(66);
        pair.we_start(BundleOptions::X3DH);
        pair.talk(3);
        let to_them: Vec<_> = (0..5).map(|_| pair.we_encrypt()).collect();
        let to_us: Vec<_> = (0..5).map(|_| pair.they_encrypt()).collect();
        pair.they_open(&to_them[1]);
        pair.we_open(&to_us[1]);
        if we_replace {
            pair.we_start(BundleOptions::X3DH);
            let first = pair.we_encrypt();
            assert_eq!(first.1.kind, MessageType::PreKey);
            pair.they_open(&first);
        } else {
            pair.they_start();
            let first = pair.they_encrypt();
            assert_eq!(first.1.kind, MessageType::PreKey);
            pair.we_open(&first);
        }
        // The rest of the old session, out of order, mixed with the new one.
        for at in [4, 0, 3, 2] {
            pair.they_open(&to_them[at]);
            pair.we_open(&to_us[at]);
            if at % 2 == 0 {
                pair.talk(1);
            }
        }
        for at in 0..5 {
            let again = pair.ours.decrypt(&pair.them, &to_us[at].1);
            assert_eq!(again.map(|_| ()), Err(Reason::Duplicate));
            let again = pair.theirs.decrypt(&pair.at_ours, &to_them[at].1);
            assert_eq!(again.unwrap_err().kind, "duplicate_message");
        }
        pair.talk(3);
        assert_eq!(pair.ours.peer(&pair.them).entries.len(), 0);
    }
}

#[test]
fn a_lost_session_is_set_up_anew_by_either_side() {
    let mut pair = new_pair(67);
    pair.we_start(BundleOptions::X3DH);
    pair.talk(2);

    // They lost it: our next message is of no session they know.
    assert!(pair.theirs.delete_session(&pair.at_ours));
    let (_, orphan) = pair.we_encrypt();
    let refused = pair.theirs.decrypt(&pair.at_ours, &orphan).unwrap_err();
    assert_eq!(refused.kind, "session_not_found");
    pair.they_start();
    let first = pair.they_encrypt();
    pair.we_open(&first);
    pair.talk(2);

    // We lost it.
    let them = pair.them.clone();
    pair.ours.restart();
    let identity = pair.ours.peer(&them).identity;
    pair.ours.store.peers.remove(&them);
    let before = pair.ours.stored();
    let (_, orphan) = pair.they_encrypt();
    let refused = pair.ours.decrypt(&them, &orphan);
    assert_eq!(refused.map(|_| ()), Err(Reason::SessionNotFound));
    assert_eq!(pair.ours.stored(), before);
    let key = IdentityKey::from_bytes(&identity.unwrap()).unwrap();
    pair.ours.accept_identity(&them, &key);
    pair.we_start(BundleOptions::X3DH);
    pair.talk(2);
}

#[test]
fn when_their_identity_changes_we_refuse_until_it_is_accepted() {
    let mut pair = new_pair(68);
    pair.we_start(BundleOptions::X3DH);
    pair.talk(2);
    let late = pair.they_encrypt();

    // They reinstall: the same address, another identity.
    let reinstalled = pair.peer.create_identity(&pair.at_theirs);
    let old = std::mem::replace(&mut pair.theirs, reinstalled);
    let bundle = from_peer(&pair.theirs.publish_bundle(BundleOptions::X3DH));
    let before = pair.ours.stored();
    assert_eq!(
        pair.ours.initiate(&pair.them, &bundle),
        Err(InitiateError::UntrustedIdentity)
    );
    pair.they_start();
    let first = pair.they_encrypt();
    let published = pair.ours.stored();
    let refused = pair.ours.decrypt(&pair.them, &first.1);
    assert_eq!(refused.map(|_| ()), Err(Reason::UntrustedIdentity));
    assert_eq!(pair.ours.stored(), published);
    assert_ne!(before, published, "only the bundle was added");

    // Once accepted, the new session becomes the current one.
    pair.ours.accept_identity(&pair.them, &bundle.identity_key);
    pair.we_open(&first);
    pair.talk(2);
    assert_eq!(pair.ours.peer(&pair.them).archived.len(), 1);

    // What the old identity sent is no longer trusted, and the old device does not understand us either.
    let refused = pair.ours.decrypt(&pair.them, &late.1);
    assert_eq!(refused.map(|_| ()), Err(Reason::UntrustedIdentity));
    let (_, message) = pair.we_encrypt();
    assert!(old.decrypt(&pair.at_ours, &message).is_err());
}

#[test]
fn when_our_identity_changes_they_refuse_until_it_is_accepted() {
    let mut pair = new_pair(69);
    pair.we_start(BundleOptions::X3DH);
    pair.talk(2);

    pair.ours = Device::new(OURS, Version::V3, SeededRng::new(690));
    let bundle = to_peer(&pair.at_ours, &pair.ours.publish());
    let refused = pair
        .theirs
        .process_bundle(&pair.at_ours, &bundle, None)
        .unwrap_err();
    assert_eq!(refused.kind, "untrusted_identity");
    pair.we_start(BundleOptions::X3DH);
    let first = pair.we_encrypt();
    let refused = pair.theirs.decrypt(&pair.at_ours, &first.1).unwrap_err();
    assert_eq!(refused.kind, "untrusted_identity");

    pair.theirs.set_identity(&pair.at_ours, &pair.our_key());
    pair.they_open(&first);
    pair.talk(2);
    assert_eq!(
        pair.theirs.get_identity(&pair.at_ours),
        Some(pair.our_key())
    );
    pair.theirs.set_trust_policy(TrustPolicy::None);
    let (_, message) = pair.we_encrypt();
    assert_eq!(
        pair.theirs
            .decrypt(&pair.at_ours, &message)
            .unwrap_err()
            .kind,
        "untrusted_identity"
    );
}

#[test]
fn safety_numbers_are_the_official_ones() {
    let pair = new_pair(70);
    let mut rng = SeededRng::of_test(70);
    let ours = pair.ours.identity_key();
    let theirs = IdentityKey::from_bytes(&pair.theirs.identity_key).unwrap();
    for _ in 0..12 {
        let lengths = [rng.below(40), rng.below(40)];
        let [our_id, their_id] = lengths.map(|length| rng.bytes(length + 1));
        let mine = Fingerprint::new(2, 5_200, (&our_id, &ours), (&their_id, &theirs)).unwrap();
        let official = pair
            .peer
            .fingerprint(&their_id, &theirs.to_bytes(), &our_id, &ours.to_bytes())
            .unwrap();
        assert_eq!(mine.display(), official.digits);
        assert_eq!(mine.matches(&official.scannable), Ok(true));
        assert_eq!(
            pair.peer
                .fingerprints_match(&official.scannable, &mine.scannable()),
            Ok(true)
        );
        let as_seen_here = pair
            .peer
            .fingerprint(&our_id, &ours.to_bytes(), &their_id, &theirs.to_bytes())
            .unwrap();
        assert_eq!(mine.scannable(), as_seen_here.scannable);

        // Another key gives another number on both sides.
        let stranger = Device::new("stranger", Version::V3, rng.fork()).identity_key();
        let other = Fingerprint::new(2, 5_200, (&our_id, &stranger), (&their_id, &theirs)).unwrap();
        assert_ne!(other.display(), official.digits);
        assert_eq!(other.matches(&official.scannable), Ok(false));
        assert_eq!(
            pair.peer
                .fingerprints_match(&official.scannable, &other.scannable()),
            Ok(false)
        );
    }
}

#[test]
fn signatures_made_here_verify_there_and_the_other_way_round() {
    let pair = new_pair(71);
    let mut rng = SeededRng::of_test(71);
    let theirs = IdentityKey::from_bytes(&pair.theirs.identity_key).unwrap();
    for length in [0, 1, 32, 33, 64, 200, 1_569] {
        let message = rng.bytes(length);
        let device = Device::new("signer", Version::V3, rng.fork());
        let key = device.identity_key();
        let mut mine = device.identity.sign(&message, &mut rng).to_vec();
        assert_eq!(pair.peer.verify(&key.to_bytes(), &message, &mine), Ok(true));
        let mut signature = pair.theirs.sign(&message);
        assert!(theirs.verify(&message, &signature));

        // Both agree on what is damaged.
        for _ in 0..16 {
            let (at, bit) = (rng.below(64), 1 << rng.below(8));
            mine[at] ^= bit;
            signature[at] ^= bit;
            assert_eq!(
                pair.peer.verify(&key.to_bytes(), &message, &mine),
                Ok(key.verify(&message, &mine)),
            );
            assert!(!key.verify(&message, &mine));
            assert!(!theirs.verify(&message, &signature));
            mine[at] ^= bit;
            signature[at] ^= bit;
        }
        assert!(!theirs.verify(&rng.bytes(length + 1), &signature));
    }
}

#[test]
fn public_keys_of_random_private_keys_are_the_official_ones() {
    let peer = Peer::start(Release::V0_60);
    let mut rng = SeededRng::of_test(72);
    for _ in 0..50 {
        let bytes: [u8; 32] = rng.bytes(32).try_into().unwrap();
        let ours = PrivateKey::from_bytes(&bytes).public_key();
        assert_eq!(peer.public_key(&bytes).unwrap(), ours.to_bytes());
        let (private, public) = peer.generate_keypair();
        let ours = PrivateKey::from_bytes(&private.try_into().unwrap()).public_key();
        assert_eq!(ours.to_bytes().as_slice(), public);
    }
}

/// A conversation with losses on both sides, so that both hold skipped keys in several chains and an archived session.
fn entangled(seed: u64) -> (Pair, Vec<Sent>, Vec<Sent>) {
    let mut pair = new_pair(seed);
    let (mut to_them, mut to_us) = (Vec::new(), Vec::new());
    pair.we_start(BundleOptions::X3DH);
    pair.talk(1);
    for round in 0..6 {
        if round == 3 {
            pair.they_start();
            let first = pair.they_encrypt();
            pair.we_open(&first);
        }
        for _ in 0..3 {
            to_them.push(pair.we_encrypt());
            to_us.push(pair.they_encrypt());
        }
        // One more of the same chains, which arrives and makes the others skipped ones.
        let arriving = (pair.we_encrypt(), pair.they_encrypt());
        pair.they_open(&arriving.0);
        pair.we_open(&arriving.1);
        pair.talk(1);
    }
    (pair, to_them, to_us)
}

/// Messages of chains that are still kept: the last four rounds of the conversation.
fn still_open(late: &[Sent]) -> &[Sent] {
    &late[late.len() - 9..]
}

#[test]
fn our_record_goes_on_in_the_official_client() {
    let (mut pair, _, to_us) = entangled(73);
    let rows = pair.ours.peer(&pair.them);
    assert_eq!((rows.entries.len(), rows.archived.len()), (18, 1));
    let record = pair.ours.export(&pair.them);

    // A second official device takes over our identity and our record.
    let pair_bytes = identity_record(&pair.ours);
    let heir =
        pair.peer
            .create_identity_with(&pair.at_ours, pair.ours.store.registration_id, &pair_bytes);
    heir.set_identity(&pair.at_theirs, &pair.theirs.identity_key);
    heir.import_session(
        &pair.at_theirs,
        &record.to_bytes(SkippedKeyFormat::Expanded),
    )
    .unwrap();
    // What the heir stores is, byte for byte, what it was given.
    assert_eq!(
        heir.export_session(&pair.at_theirs).unwrap(),
        record.to_bytes(SkippedKeyFormat::Expanded).as_slice()
    );
    for (text, message) in still_open(&to_us) {
        assert_eq!(
            heir.decrypt(&pair.at_theirs, message).as_ref(),
            Ok(text),
            "a skipped key of our record"
        );
    }
    for round in 0..5_u8 {
        let message = heir.encrypt(&pair.at_theirs, &[round], None).unwrap();
        assert_eq!(
            pair.theirs.decrypt(&pair.at_ours, &message),
            Ok(vec![round])
        );
        let (text, message) = pair.they_encrypt();
        assert_eq!(heir.decrypt(&pair.at_theirs, &message), Ok(text));
    }

    // And back: we go on from the record of the heir.
    let record = heir.export_session(&pair.at_theirs).unwrap();
    let record = OfficialRecord::from_bytes(&record).unwrap();
    let them = pair.them.clone();
    pair.ours.import(&them, &record);
    pair.talk(3);
}

#[test]
fn seeds_of_our_record_are_read_by_the_current_client() {
    let (mut pair, _, to_us) = entangled(74);
    let record = pair.ours.export(&pair.them);
    let current = Peer::start(Release::V0_103);
    let heir = current.create_identity_with(
        &pair.at_ours,
        pair.ours.store.registration_id,
        &identity_record(&pair.ours),
    );
    heir.set_identity(&pair.at_theirs, &pair.theirs.identity_key);
    let bytes = record.to_bytes(SkippedKeyFormat::Seeds);
    heir.import_session(&pair.at_theirs, &bytes).unwrap();
    assert_eq!(
        heir.export_session(&pair.at_theirs).unwrap(),
        bytes.as_slice()
    );
    for (text, message) in still_open(&to_us) {
        assert_eq!(heir.decrypt(&pair.at_theirs, message).as_ref(), Ok(text));
    }
    let message = heir.encrypt(&pair.at_theirs, b"from 0.103", None).unwrap();
    assert_eq!(
        pair.theirs.decrypt(&pair.at_ours, &message).unwrap(),
        b"from 0.103"
    );
    // Its record, with seeds of its own, comes back here.
    let (text, skipped) = pair.they_encrypt();
    let (last_text, last) = pair.they_encrypt();
    assert_eq!(heir.decrypt(&pair.at_theirs, &last), Ok(last_text));
    let record =
        OfficialRecord::from_bytes(&heir.export_session(&pair.at_theirs).unwrap()).unwrap();
    let them = pair.them.clone();
    pair.ours.import(&them, &record);
    pair.we_open(&(text, skipped));
    pair.talk(2);
}

#[test]
fn their_record_goes_on_here() {
    let (mut pair, to_them, _) = entangled(75);
    let record = pair.theirs.export_session(&pair.at_ours).unwrap();
    let imported = OfficialRecord::from_bytes(&record).unwrap();
    assert_eq!(imported.sessions.archived().len(), 1);
    assert!(imported.entries.len() >= 9);
    assert_eq!(
        imported.to_bytes(SkippedKeyFormat::Expanded).as_slice(),
        record,
        "their record is written back as it was"
    );

    // A second device of ours takes over their identity, their prekeys and their record.
    let mut heir = Device::new(THEIRS, Version::V3, SeededRng::new(750));
    heir.loading = Loading::Mixed;
    let private = private_of(&pair.theirs.identity_key_pair);
    heir.store.identity = private;
    heir.store.registration_id = pair.theirs.registration_id;
    heir.restart();
    assert_eq!(
        heir.identity_key().to_bytes().as_slice(),
        pair.theirs.identity_key
    );
    let us = protocol_address(&pair.at_ours);
    heir.import(&us, &imported);
    let late = still_open(&to_them);
    for (text, message) in late.iter().take(late.len() / 2) {
        assert_eq!(heir.decrypt(&us, message).unwrap().plaintext, *text);
    }
    for round in 0..5_u8 {
        let (text, message) = pair.we_encrypt();
        assert_eq!(heir.decrypt(&us, &message).unwrap().plaintext, text);
        let message = heir.encrypt(&us, &[round]).unwrap();
        assert_eq!(
            pair.ours.decrypt(&pair.them, &message).unwrap().plaintext,
            [round]
        );
        heir.restart();
    }
    // Their original device can go on from the record of the heir.
    let back = heir.export(&us).to_bytes(SkippedKeyFormat::Expanded);
    pair.theirs.import_session(&pair.at_ours, &back).unwrap();
    pair.talk(3);
}

#[test]
fn an_unanswered_session_ends_after_thirty_days_on_both_sides() {
    let mut pair = new_pair(76);
    let start = pair.ours.now;
    let last = start + MAX_UNACKNOWLEDGED_SESSION_AGE;
    pair.we_start(BundleOptions::X3DH);
    let bundle = to_peer(&pair.at_ours, &pair.ours.publish());
    pair.theirs
        .process_bundle(&pair.at_ours, &bundle, Some(start * 1_000))
        .unwrap();
    let them = pair.them.clone();
    for (now, usable) in [(last - 1, true), (last, true), (last + 1, false)] {
        pair.ours.now = now;
        let ours = pair.ours.encrypt(&them, b"hello").map(|_| ());
        let theirs = pair
            .theirs
            .encrypt(&pair.at_ours, b"hello", Some(now * 1_000))
            .map(|_| ())
            .map_err(|error| error.kind);
        if usable {
            assert_eq!((ours, theirs), (Ok(()), Ok(())), "{}", now - start);
        } else {
            assert_eq!(ours, Err(EncryptError::SessionNotFound));
            assert_eq!(theirs, Err("session_not_found".to_owned()));
        }
    }
}

#[test]
fn the_official_client_opens_what_is_25_000_ahead_and_refuses_one_more() {
    let mut pair = new_pair(77);
    pair.ours.loading = Loading::Whole;
    pair.we_start(BundleOptions::X3DH);
    pair.talk(1);
    for _ in 0..25_000 {
        pair.ours.encrypt(&pair.them, b"lost").unwrap();
    }
    let within = pair.we_encrypt();
    let beyond = pair.we_encrypt();
    let refused = pair.theirs.decrypt(&pair.at_ours, &beyond.1).unwrap_err();
    assert_eq!(refused.kind, "invalid_message", "{refused}");
    pair.they_open(&within);
    pair.they_open(&beyond);
}

#[test]
fn what_is_empty_or_large_arrives_unchanged() {
    let mut pair = new_pair(78);
    let mut rng = SeededRng::of_test(78);
    pair.we_start(BundleOptions::X3DH);
    for length in [0, 1, 15, 16, 17, 255, 4_096, 65_536] {
        let text = rng.bytes(length);
        let message = pair.ours.encrypt(&pair.them, &text).unwrap();
        pair.they_open(&(text.clone(), message));
        let message = pair.theirs.encrypt(&pair.at_ours, &text, None).unwrap();
        pair.we_open(&(text, message));
    }
}

#[test]
fn the_official_client_reads_our_messages_as_we_mean_them() {
    let mut pair = new_pair(79);
    pair.we_start(BundleOptions::X3DH);
    let (_, first) = pair.we_encrypt();
    let seen = pair.peer.inspect(&first).unwrap();
    let session = pair.ours.peer(&pair.them).current().unwrap().info();
    assert_eq!(seen["identity_key"], hex::encode(pair.our_key()));
    let inner: &Value = &seen["message"];
    assert_eq!(inner["counter"], 0, "{seen}");
    assert_eq!(inner["previous_counter"], 0, "{seen}");
    assert_eq!(
        inner["ratchet_key"],
        hex::encode(session.sending.ratchet_key.to_bytes())
    );
    assert_eq!(address(0).device_id, 1);
}
