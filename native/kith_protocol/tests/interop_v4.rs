//! This engine with the official client 0.103.0, live, in version 4: both roles, every behaviour of the network, the
//! post-quantum ratchet through all its states and many epochs, and the cases around a session. `KITH_INTEROP_MESSAGES`
//! sets how many messages the long run exchanges; `make interop` runs it with many.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kith_protocol::limits::MAX_UNACKNOWLEDGED_SESSION_AGE;
use kith_protocol::{
    EncryptError, IdentityKey, InitiateError, OfficialRecord, ProtocolAddress, SkippedKeyFormat,
    Version,
};
use serde_json::Value;
use support::SeededRng;
use support::network::{Behaviour, Network, Party, Reason, Summary};
use support::official::OfficialParty;
use support::ours::{Device, Loading, Observed, OurParty, from_peer, protocol_address, to_peer};
use support::pair::{OURS, Pair, Sent, THEIRS, identity_record, private_of};
use support::peer::{
    BundleOptions, Message, MessageType, Peer, PeerAddress, PeerParty, Release, TrustPolicy,
};
use support::protobuf::PostQuantumHeader;
use support::records::Record;

/// Messages of the long run unless the environment says otherwise.
const MESSAGES: usize = 6_000;

/// From here on a run is long enough for 20 epochs in one session.
const LONG_RUN: usize = 20_000;

/// Messages of the longest conversation in one session.
const LONG_CONVERSATION: usize = 8_000;

/// Messages of any other network.
const MESSAGES_OF_A_NETWORK: usize = 150;

fn new_pair(seed: u64) -> Pair {
    Pair::new(Release::V0_103, seed)
}

fn run(
    peer: &Peer,
    behaviour: Behaviour,
    ours: &[bool],
    messages: usize,
    rng: &mut SeededRng,
) -> (Summary, Vec<Observed>) {
    let mut observed = Vec::new();
    let parties = ours
        .iter()
        .enumerate()
        .map(|(index, is_ours)| -> Box<dyn Party> {
            if *is_ours {
                let loading = *rng.pick(&[Loading::Parts, Loading::Mixed]);
                let party = OurParty::new(index, Version::V4, loading, 70, rng.fork());
                observed.push(Arc::clone(&party.device.observed));
                Box::new(party)
            } else {
                let options = *rng.pick(&[
                    BundleOptions::PQXDH,
                    BundleOptions::PQXDH,
                    BundleOptions::PQXDH_LAST_RESORT,
                ]);
                Box::new(OfficialParty::new(peer, index, options).without_comparison())
            }
        })
        .collect();
    let summary = Network::new(parties, behaviour, rng.fork())
        .run(messages)
        .unwrap();
    let observed = observed
        .iter()
        .map(|observed| observed.lock().unwrap().clone())
        .collect();
    (summary, observed)
}

/// One role: a long conversation in one session, then every behaviour in turn, each with a seed of its own, and again.
fn run_role(ours: [bool; 2], messages: usize, rng: &mut SeededRng) -> (Summary, Observed) {
    let peer = Peer::start(Release::V0_103);
    let mut total = Summary::default();
    let mut seen = Observed::default();
    let conversation = (messages / 4 * 3).min(LONG_CONVERSATION);
    let networks = [(Behaviour::CONVERSATION, conversation)]
        .into_iter()
        .chain(Behaviour::ALL.map(|behaviour| (behaviour, MESSAGES_OF_A_NETWORK)))
        .chain(Behaviour::ALL.map(|behaviour| (behaviour, MESSAGES_OF_A_NETWORK)))
        .cycle();
    for (behaviour, count) in networks {
        if total.sent >= messages {
            break;
        }
        let (summary, observed) = run(&peer, behaviour, &ours, count, rng);
        total.add(&summary);
        for observed in observed {
            seen.states.extend(observed.states);
            seen.epochs.extend(observed.epochs);
        }
    }
    (total, seen)
}

#[test]
fn the_official_client_and_this_engine_exchange_thousands_of_messages_in_both_roles() {
    let messages = match std::env::var("KITH_INTEROP_MESSAGES") {
        Ok(text) => text.parse().expect("KITH_INTEROP_MESSAGES is a number"),
        Err(_) => MESSAGES,
    };
    let mut rng = SeededRng::of_test(81);
    // The party with the lower index starts the sessions.
    let roles: Vec<(Summary, Observed)> = std::thread::scope(|scope| {
        let roles = [[true, false], [false, true]].map(|ours| {
            let mut rng = rng.fork();
            scope.spawn(move || run_role(ours, messages.div_ceil(2), &mut rng))
        });
        roles
            .into_iter()
            .map(|role| match role.join() {
                Ok(run) => run,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    let mut total = Summary::default();
    for (summary, observed) in &roles {
        total.add(summary);
        // One of the states is rare: the whole key has to arrive before half of the ciphertext.
        let (states, epochs) = if messages < LONG_RUN {
            (10, 2)
        } else {
            (11, 20)
        };
        assert!(observed.states.len() >= states, "{:?}", observed.states);
        assert!(summary.most_epochs >= epochs, "{summary}");
        // What our side says of its epochs is what the messages say.
        assert!(observed.most_epochs() >= summary.most_epochs);
        assert!(observed.all_epochs() >= summary.all_epochs);
    }
    assert!(total.sent >= messages);
    let undecryptable = total.sent - total.opened - total.dropped;
    assert_eq!(undecryptable, 0);
    println!(
        "official client 0.103.0 and Kith in both roles: {} messages, {} sessions, {} epochs ({} in one session), {} \
         restarts, {} lost by the network, {} overtaken, {} duplicates refused, {} damaged refused, {undecryptable} \
         undecryptable",
        total.sent,
        total.sessions_started,
        total.all_epochs,
        total.most_epochs,
        total.restarts,
        total.dropped,
        total.overtaken,
        total.duplicates_refused,
        total.tampered(),
    );
}

#[test]
fn a_family_in_which_some_use_the_official_client_talks() {
    let peer = Peer::start(Release::V0_103);
    let mut rng = SeededRng::of_test(82);
    for behaviour in [
        Behaviour::CHAOS,
        Behaviour::SIMULTANEOUS,
        Behaviour::OFFLINE,
    ] {
        let ours = [true, false, true, true, false, true];
        let (summary, _) = run(&peer, behaviour, &ours, 400, &mut rng);
        assert_eq!(summary.opened + summary.dropped, summary.sent);
    }
}

#[test]
fn sessions_from_bundles_with_and_without_one_time_prekeys_work_in_both_roles() {
    for names in [(OURS, THEIRS), ("alice", "bob"), (OURS, "bob")] {
        let mut pair = Pair::named(Release::V0_103, 83, names.0, names.1);
        for (one_time, kyber_one_time) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let options = BundleOptions {
                one_time,
                kyber_one_time,
                ..BundleOptions::PQXDH
            };
            let used_before = pair.theirs.removed_prekeys().len();
            let kyber_before = pair.theirs.used_kyber_prekeys().len();
            pair.we_start(options);
            let first = pair.we_encrypt();
            let seen = pair.peer.inspect(&first.1).unwrap();
            assert_eq!(seen["version_byte"], 0x44, "{seen}");
            assert_eq!(seen["message"]["version_byte"], 0x44, "{seen}");
            assert_eq!(seen["prekey_id"].is_number(), one_time, "{seen}");
            assert!(seen["kyber_prekey_id"].is_number(), "{seen}");
            assert_eq!(seen["registration_id"], pair.ours.store.registration_id);
            // Bound to the addresses where both are service ids.
            assert_eq!(
                seen["message"]["addresses"].is_string(),
                names == (OURS, THEIRS),
                "{seen}"
            );
            pair.they_open(&first);
            assert_eq!(
                pair.theirs.removed_prekeys().len() - used_before,
                usize::from(one_time)
            );
            assert_eq!(pair.theirs.used_kyber_prekeys().len(), kyber_before + 1);
            pair.talk(3);

            pair.ours.one_time = one_time;
            pair.ours.kyber_one_time = kyber_one_time;
            pair.they_start();
            let stock = (
                pair.ours.store.prekeys.len(),
                pair.ours.store.kyber_prekeys.len(),
            );
            let first = pair.they_encrypt();
            assert_eq!(first.1.kind, MessageType::PreKey);
            pair.we_open(&first);
            assert_eq!(
                (
                    pair.ours.store.prekeys.len() + usize::from(one_time),
                    pair.ours.store.kyber_prekeys.len() + usize::from(kyber_one_time),
                ),
                stock
            );
            pair.talk(3);
        }
        let info = pair.theirs.session_info(&pair.at_ours);
        assert_eq!(info.previous.len(), 7);
        assert_eq!(pair.ours.peer(&pair.them).archived.len(), 7);
    }
}

#[test]
fn prekey_ids_at_the_ends_of_their_range_work_in_both_roles() {
    let mut pair = new_pair(84);
    for id in [0, 1, (1 << 31) - 1, 1 << 31, u32::MAX] {
        pair.we_start(BundleOptions {
            prekey_id: Some(id),
            signed_prekey_id: Some(id),
            kyber_prekey_id: Some(id),
            ..BundleOptions::PQXDH
        });
        let first = pair.we_encrypt();
        pair.they_open(&first);

        let mut bundle = pair.ours.publish();
        // The same keys under the wanted ids.
        let store = &mut pair.ours.store;
        let (old, _) = bundle.prekey.unwrap();
        let private = store.prekeys.remove(&old).unwrap();
        store.prekeys.insert(id, private);
        bundle.prekey.as_mut().unwrap().0 = id;
        let private = store.signed_prekeys[&bundle.signed_prekey.id].clone();
        store.signed_prekeys.insert(id, private);
        bundle.signed_prekey.id = id;
        let kyber = bundle.kyber_prekey.as_mut().unwrap();
        let private = store.kyber_prekeys[&kyber.id].clone();
        store.kyber_prekeys.insert(id, private);
        kyber.id = id;
        let bundle = to_peer(&pair.at_ours, &bundle);
        pair.theirs
            .process_bundle(&pair.at_ours, &bundle, None)
            .unwrap();
        let first = pair.they_encrypt();
        let seen = pair.peer.inspect(&first.1).unwrap();
        assert_eq!(seen["signed_prekey_id"], id);
        assert_eq!(seen["kyber_prekey_id"], id);
        pair.we_open(&first);
        pair.talk(1);

        // An unacknowledged session with such an id goes through a record and back.
        pair.we_start(BundleOptions {
            signed_prekey_id: Some(id),
            kyber_prekey_id: Some(id),
            ..BundleOptions::PQXDH_LAST_RESORT
        });
        let record = pair.ours.export(&pair.them);
        let bytes = record.to_bytes(SkippedKeyFormat::Seeds);
        let again = OfficialRecord::from_bytes(&bytes).unwrap();
        assert_eq!(again.to_bytes(SkippedKeyFormat::Seeds), bytes);
        pair.ours.import(&pair.them, &again);
        let first = pair.we_encrypt();
        pair.they_open(&first);
    }
}

#[test]
fn both_sides_start_at_once_and_nothing_is_lost() {
    let mut pair = new_pair(85);
    pair.we_start(BundleOptions::PQXDH);
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
        let mut pair = new_pair(86);
        pair.we_start(BundleOptions::PQXDH);
        // Into the second epoch, so that the sessions differ in that as well.
        pair.talk(50);
        let to_them: Vec<_> = (0..5).map(|_| pair.we_encrypt()).collect();
        let to_us: Vec<_> = (0..5).map(|_| pair.they_encrypt()).collect();
        pair.they_open(&to_them[1]);
        pair.we_open(&to_us[1]);
        if we_replace {
            pair.we_start(BundleOptions::PQXDH);
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
        assert_eq!(pair.ours.peer(&pair.them).message_keys(), 0);
        assert_eq!(pair.ours.peer(&pair.them).post_quantum_keys(), 0);
    }
}

#[test]
fn a_lost_session_is_set_up_anew_by_either_side() {
    let mut pair = new_pair(87);
    pair.we_start(BundleOptions::PQXDH);
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
    pair.we_start(BundleOptions::PQXDH);
    pair.talk(2);
}

#[test]
fn when_their_identity_changes_we_refuse_until_it_is_accepted() {
    let mut pair = new_pair(88);
    pair.we_start(BundleOptions::PQXDH);
    pair.talk(2);
    let late = pair.they_encrypt();

    // They reinstall: the same address, another identity.
    let reinstalled = pair.peer.create_identity(&pair.at_theirs);
    let old = std::mem::replace(&mut pair.theirs, reinstalled);
    let bundle = from_peer(&pair.theirs.publish_bundle(BundleOptions::PQXDH));
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
    let mut pair = new_pair(89);
    pair.we_start(BundleOptions::PQXDH);
    pair.talk(2);

    pair.ours = Device::new(OURS, Version::V4, SeededRng::new(890));
    let bundle = to_peer(&pair.at_ours, &pair.ours.publish());
    let refused = pair
        .theirs
        .process_bundle(&pair.at_ours, &bundle, None)
        .unwrap_err();
    assert_eq!(refused.kind, "untrusted_identity");
    pair.we_start(BundleOptions::PQXDH);
    let first = pair.we_encrypt();
    let refused = pair.theirs.decrypt(&pair.at_ours, &first.1).unwrap_err();
    assert_eq!(refused.kind, "untrusted_identity");

    pair.theirs.set_identity(&pair.at_ours, &pair.our_key());
    pair.they_open(&first);
    pair.talk(2);
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
fn a_first_message_replayed_after_its_session_was_lost_is_refused_on_both_sides() {
    for kyber_one_time in [true, false] {
        let mut pair = new_pair(90);
        pair.we_start(BundleOptions {
            one_time: false,
            kyber_one_time,
            ..BundleOptions::PQXDH
        });
        let first = pair.we_encrypt();
        pair.they_open(&first);
        assert!(pair.theirs.delete_session(&pair.at_ours));
        let refused = pair.theirs.decrypt(&pair.at_ours, &first.1).unwrap_err();
        let expected = if kyber_one_time {
            "prekey_not_found"
        } else {
            "reused_base_key"
        };
        assert_eq!(refused.kind, expected);

        pair.ours.one_time = false;
        pair.ours.kyber_one_time = kyber_one_time;
        pair.they_start();
        let first = pair.they_encrypt();
        pair.we_open(&first);
        pair.ours.restart();
        pair.ours.store.peers.clear();
        let before = pair.ours.stored();
        // Here the memory of base keys comes first, whatever the Kyber prekey was.
        let refused = pair.ours.decrypt(&pair.them, &first.1);
        assert_eq!(refused.map(|_| ()), Err(Reason::Duplicate));
        assert_eq!(pair.ours.stored(), before);
    }
}

// ---- records --------------------------------------------------------------------------------------------------------

/// A device of the official client that takes over what ours has with them.
fn their_heir_of(ours: &Device, peer: &Peer, theirs: &PeerParty) -> PeerParty {
    let address = PeerAddress::new(ours.address.name(), 1);
    let them = protocol_address(&theirs.address);
    let registration_id = ours.store.registration_id;
    let heir = peer.create_identity_with(&address, registration_id, &identity_record(ours));
    heir.set_identity(&theirs.address, &theirs.identity_key);
    let record = ours.export(&them).to_bytes(SkippedKeyFormat::Seeds);
    heir.import_session(&theirs.address, &record).unwrap();
    // What it stores is what it was given.
    assert_eq!(
        heir.export_session(&theirs.address).unwrap(),
        record.as_slice()
    );
    heir
}

/// A device of ours that takes over what theirs has with us.
fn our_heir_of(theirs: &PeerParty, with: &PeerAddress, seed: u64) -> Device {
    let mut heir = Device::new(&theirs.address.name, Version::V4, SeededRng::new(seed));
    heir.loading = Loading::Mixed;
    heir.store.identity = private_of(&theirs.identity_key_pair);
    heir.store.registration_id = theirs.registration_id;
    heir.restart();
    let record = theirs.export_session(with).unwrap();
    let imported = OfficialRecord::from_bytes(&record).unwrap();
    heir.import(&protocol_address(with), &imported);
    assert_eq!(
        Record::of(
            &heir.export(&protocol_address(with)),
            SkippedKeyFormat::Seeds
        )
        .normalized(),
        Record::read(&record).normalized()
    );
    heir
}

/// Two ends of a conversation, whatever engine is behind them.
trait End {
    fn say(&mut self, text: &[u8]) -> Message;
    fn hear(&mut self, message: &Message) -> Vec<u8>;
    fn epoch(&mut self) -> u64;
}

struct Ours(Device, ProtocolAddress);

impl End for Ours {
    fn say(&mut self, text: &[u8]) -> Message {
        self.0.encrypt(&self.1, text).unwrap()
    }

    fn hear(&mut self, message: &Message) -> Vec<u8> {
        self.0.decrypt(&self.1, message).unwrap().plaintext
    }

    fn epoch(&mut self) -> u64 {
        self.0.braid(&self.1).1
    }
}

struct Theirs(PeerParty, PeerAddress);

impl End for Theirs {
    fn say(&mut self, text: &[u8]) -> Message {
        self.0.encrypt(&self.1, text, None).unwrap()
    }

    fn hear(&mut self, message: &Message) -> Vec<u8> {
        self.0.decrypt(&self.1, message).unwrap()
    }

    fn epoch(&mut self) -> u64 {
        let info = self.0.session_info(&self.1);
        info.current.unwrap().spqr.unwrap().1
    }
}

/// They go on until both are an epoch further, and nothing is lost.
fn an_epoch_further(left: &mut dyn End, right: &mut dyn End) {
    let before = (left.epoch(), right.epoch());
    for round in 0..12_u8 {
        for left_speaks in [true, false] {
            for at in 0..12_u8 {
                let text = [round, at];
                if left_speaks {
                    let message = left.say(&text);
                    assert_eq!(right.hear(&message), text);
                } else {
                    let message = right.say(&text);
                    assert_eq!(left.hear(&message), text);
                }
            }
        }
        if left.epoch() > before.0 && right.epoch() > before.1 {
            return;
        }
    }
    panic!("no epoch in 288 messages");
}

/// In every state that either side's post-quantum ratchet comes to: our record goes on in the official client, and theirs
/// goes on here, with what is still under way.
#[test]
fn a_session_moves_in_either_direction_in_every_state_of_its_post_quantum_ratchet() {
    for we_start in [true, false] {
        let mut pair = new_pair(91 + u64::from(we_start));
        if we_start {
            pair.we_start(BundleOptions::PQXDH);
        } else {
            pair.they_start();
            let first = pair.they_encrypt();
            pair.we_open(&first);
        }
        pair.talk(1);
        let mut rng = SeededRng::of_test(91);
        let (mut moved_there, mut moved_here) = (BTreeMap::new(), BTreeMap::new());
        while moved_there.len() < 11 || moved_here.len() < 11 {
            assert!(pair.sent < 6_000, "{moved_there:?} {moved_here:?}");
            for from_us in [true, false] {
                // Of each burst some are lost or late.
                let mut late: Vec<Sent> = Vec::new();
                for _ in 0..1 + rng.below(8) {
                    let sent = if from_us {
                        pair.we_encrypt()
                    } else {
                        pair.they_encrypt()
                    };
                    if rng.chance(20) {
                        late.push(sent);
                    } else if from_us {
                        pair.they_open(&sent);
                    } else {
                        pair.we_open(&sent);
                    }

                    let (state, _) = pair.ours.braid(&pair.them);
                    if !moved_there.contains_key(state) {
                        moved_there.insert(state, pair.sent);
                        let heir = their_heir_of(&pair.ours, &pair.peer, &pair.theirs);
                        let mut heir = Theirs(heir, pair.at_theirs.clone());
                        let mut twin = Theirs(pair.theirs.twin(), pair.at_ours.clone());
                        for (text, message) in &late {
                            let to: &mut dyn End = if from_us { &mut twin } else { &mut heir };
                            assert_eq!(to.hear(message), *text, "{state}");
                        }
                        an_epoch_further(&mut heir, &mut twin);
                        heir.0.forget();
                        twin.0.forget();
                    }
                    let info = pair.theirs.session_info(&pair.at_ours);
                    let (state, _) = info.current.unwrap().spqr.unwrap();
                    if !moved_here.contains_key(&state) {
                        moved_here.insert(state.clone(), pair.sent);
                        let heir = our_heir_of(&pair.theirs, &pair.at_ours, rng.next_seed());
                        let mut heir = Ours(heir, protocol_address(&pair.at_ours));
                        let mut twin = Ours(pair.ours.clone(), pair.them.clone());
                        for (text, message) in &late {
                            let to: &mut dyn End = if from_us { &mut heir } else { &mut twin };
                            assert_eq!(to.hear(message), *text, "{state}");
                        }
                        an_epoch_further(&mut heir, &mut twin);
                        // And back, an epoch later.
                        let back = heir.0.export(&heir.1).to_bytes(SkippedKeyFormat::Seeds);
                        let third = pair.theirs.twin();
                        third.import_session(&pair.at_ours, &back).unwrap();
                        let mut third = Theirs(third, pair.at_ours.clone());
                        for text in [b"back", b"home"] {
                            let message = third.say(text);
                            assert_eq!(twin.hear(&message), text);
                            let message = twin.say(text);
                            assert_eq!(third.hear(&message), text);
                        }
                        third.0.forget();
                    }
                }
                // The rest of the burst arrives in the end.
                for sent in late.iter().rev() {
                    if from_us {
                        pair.they_open(sent);
                    } else {
                        pair.we_open(sent);
                    }
                }
            }
        }
        println!("moved there: {moved_there:?}, moved here: {moved_here:?}");
    }
}

// ---- limits and edges -----------------------------------------------------------------------------------------------

#[test]
fn an_unanswered_session_ends_after_thirty_days_on_both_sides() {
    let mut pair = new_pair(93);
    let start = pair.ours.now;
    let last = start + MAX_UNACKNOWLEDGED_SESSION_AGE;
    pair.we_start(BundleOptions::PQXDH);
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
fn the_official_client_opens_what_is_24_999_ahead_and_refuses_one_more() {
    let mut pair = new_pair(94);
    pair.ours.loading = Loading::Whole;
    pair.we_start(BundleOptions::PQXDH);
    pair.talk(1);
    for _ in 0..24_999 {
        pair.ours.encrypt(&pair.them, b"lost").unwrap();
    }
    let within = pair.we_encrypt();
    let beyond = pair.we_encrypt();
    let refused = pair.theirs.decrypt(&pair.at_ours, &beyond.1).unwrap_err();
    assert_eq!(refused.kind, "invalid_message", "{refused}");
    pair.they_open(&within);
    pair.they_open(&beyond);
}

/// The keys of an epoch go when its receiver has sent two epochs further on: there as here.
#[test]
fn both_forget_the_keys_of_an_epoch_at_the_same_moment() {
    for we_receive in [true, false] {
        let mut pair = new_pair(95);
        // The initiator is the one whose messages come late.
        let burst = |pair: &mut Pair, from_initiator: bool, count: usize| {
            for _ in 0..count {
                if from_initiator != we_receive {
                    let message = pair.we_encrypt();
                    pair.they_open(&message);
                } else {
                    let message = pair.they_encrypt();
                    pair.we_open(&message);
                }
            }
        };
        let late = |pair: &mut Pair| {
            if we_receive {
                pair.they_encrypt()
            } else {
                pair.we_encrypt()
            }
        };
        if we_receive {
            pair.they_start();
        } else {
            pair.we_start(BundleOptions::PQXDH);
        }
        let late: Vec<_> = (0..3).map(|_| late(&mut pair)).collect();
        for (from_initiator, count) in [
            (true, 3),
            (false, 31),
            (true, 37),
            (false, 6),
            (true, 1),
            (false, 4),
            (true, 31),
            (false, 37),
            (true, 6),
        ] {
            burst(&mut pair, from_initiator, count);
        }
        let open = |pair: &mut Pair, (_, message): &Sent| {
            if we_receive {
                pair.ours
                    .decrypt(&pair.them, message)
                    .map(|_| ())
                    .map_err(|reason| assert_eq!(reason, Reason::Tampered))
            } else {
                pair.theirs
                    .decrypt(&pair.at_ours, message)
                    .map(|_| ())
                    .map_err(|error| assert_eq!(error.kind, "invalid_message"))
            }
        };
        assert_eq!(open(&mut pair, &late[0]), Ok(()), "ours: {we_receive}");
        burst(&mut pair, false, 1);
        assert_eq!(open(&mut pair, &late[1]), Err(()), "ours: {we_receive}");
        pair.talk(2);
    }
}

#[test]
fn what_is_empty_or_large_arrives_unchanged() {
    let mut pair = new_pair(96);
    let mut rng = SeededRng::of_test(96);
    pair.we_start(BundleOptions::PQXDH);
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
    let mut pair = new_pair(97);
    pair.we_start(BundleOptions::PQXDH);
    let (_, first) = pair.we_encrypt();
    let seen = pair.peer.inspect(&first).unwrap();
    let session = pair.ours.peer(&pair.them).current().unwrap().info();
    assert_eq!(seen["identity_key"], hex::encode(pair.our_key()));
    assert_eq!(seen["kyber_ciphertext"].as_str().unwrap().len(), 2 * 1_569);
    let inner: &Value = &seen["message"];
    assert_eq!(inner["counter"], 0, "{seen}");
    assert_eq!(inner["previous_counter"], 0, "{seen}");
    assert_eq!(
        inner["ratchet_key"],
        hex::encode(session.sending.ratchet_key.to_bytes())
    );
    let header = &inner["pq"];
    for (name, expected) in [
        ("version", 1.into()),
        ("epoch", 1.into()),
        ("index", 1.into()),
        ("payload", Value::from("hdr")),
        ("chunk_index", 0.into()),
    ] {
        assert_eq!(header[name], expected, "{name} in {seen}");
    }
    // And later ones, whatever they carry.
    pair.they_open(&(b"message 1".to_vec(), first));
    let mut payloads = BTreeSet::new();
    for _ in 0..300 {
        let sent = pair.we_encrypt();
        let seen = pair.peer.inspect(&sent.1).unwrap();
        let header = PostQuantumHeader::of_ordinary(&sent.1.body);
        if let Some(header) = header {
            assert_eq!(seen["pq"]["epoch"], header.epoch, "{seen}");
            assert_eq!(seen["pq"]["index"], header.index, "{seen}");
            assert_eq!(seen["pq"]["chunk_index"].as_u64(), header.chunk, "{seen}");
            payloads.insert(header.payload);
        }
        pair.they_open(&sent);
        let answer = pair.they_encrypt();
        pair.we_open(&answer);
    }
    assert!(payloads.len() >= 6, "{payloads:?}");
}

/// The current client starts nothing in version 3, and neither client finds the other's version 4 where one of them has no
/// post-quantum ratchet.
#[test]
fn clients_of_different_times_are_told_apart_and_nothing_opens() {
    let mut pair = new_pair(98);
    let mut older = Device::new(OURS, Version::V3, SeededRng::new(980));
    let bundle = to_peer(&pair.at_ours, &older.publish());
    let refused = pair
        .theirs
        .process_bundle(&pair.at_ours, &bundle, None)
        .unwrap_err();
    assert_eq!(refused.kind, "bad_params");
    let mut bundle = from_peer(&pair.theirs.publish_bundle(BundleOptions::PQXDH));
    bundle.kyber_prekey = None;
    assert_eq!(
        pair.ours.initiate(&pair.them, &bundle),
        Err(InitiateError::UnsupportedVersion(Version::V3))
    );
    older.initiate(&pair.them, &bundle).unwrap();
    let first = older.encrypt(&pair.them, b"version 3").unwrap();
    let refused = pair.theirs.decrypt(&pair.at_ours, &first).unwrap_err();
    assert_eq!(refused.kind, "x3dh_unsupported");

    // 0.60 makes version 4 without the ratchet from a bundle with a Kyber prekey.
    let mut pair = Pair::new(Release::V0_60, 99);
    pair.ours = Device::new(OURS, Version::V4, SeededRng::new(990));
    pair.they_start();
    let (_, first) = pair.they_encrypt();
    assert_eq!(pair.peer.inspect(&first).unwrap()["version_byte"], 0x44);
    let before = pair.ours.stored();
    let refused = pair.ours.decrypt(&pair.them, &first);
    assert_eq!(refused.map(|_| ()), Err(Reason::Tampered));
    assert_eq!(pair.ours.stored(), before);
    pair.we_start(BundleOptions::PQXDH);
    let (_, first) = pair.we_encrypt();
    let refused = pair.theirs.decrypt(&pair.at_ours, &first).unwrap_err();
    assert_eq!(refused.kind, "invalid_message");
}
