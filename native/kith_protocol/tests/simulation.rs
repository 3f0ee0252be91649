//! This engine with itself on the simulated network: every behaviour, two to six parties, many seeds, both versions.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod support;

use std::sync::Arc;

use kith_protocol::Version;
use support::SeededRng;
use support::network::{Behaviour, Network, Party, Summary};
use support::ours::{Device, Loading, Observed, OurParty};

/// Messages of one network.
const MESSAGES: usize = 300;

/// Networks of each size for a behaviour, in version 3 and in version 4.
const SEEDS: [(Version, usize); 2] = [(Version::V3, 6), (Version::V4, 3)];

fn network(version: Version, behaviour: Behaviour, parties: usize, seed: u64) -> Network {
    let mut rng = SeededRng::new(seed);
    let parties = (0..parties)
        .map(|index| -> Box<dyn Party> {
            let loading = *rng.pick(&[Loading::Whole, Loading::Parts, Loading::Mixed]);
            Box::new(OurParty::new(index, version, loading, 70, rng.fork()))
        })
        .collect();
    Network::new(parties, behaviour, rng)
}

/// Two to six parties, each with several seeds.
fn simulate(behaviour: Behaviour) -> Summary {
    let mut rng = SeededRng::of_test(2);
    let mut total = Summary::default();
    for (version, seeds) in SEEDS {
        for parties in 2..=6 {
            for _ in 0..seeds {
                let summary = network(version, behaviour, parties, rng.next_seed())
                    .run(MESSAGES)
                    .unwrap();
                assert!(summary.sent >= MESSAGES);
                assert!(version == Version::V4 || summary.all_epochs == 0);
                total.add(&summary);
            }
        }
    }
    println!("{}: {total}", behaviour.name);
    total
}

#[test]
fn parties_that_answer_every_message_understand_each_other() {
    let total = simulate(Behaviour::PING_PONG);
    assert!(total.turns > total.sent / 2);
}

#[test]
fn bursts_arrive() {
    let total = simulate(Behaviour::BURSTS);
    assert_eq!(total.opened, total.sent);
}

#[test]
fn parties_that_were_offline_catch_up() {
    assert!(simulate(Behaviour::OFFLINE).offline_periods > 50);
}

#[test]
fn messages_that_overtake_one_another_open() {
    assert!(simulate(Behaviour::REORDER).overtaken > 1_000);
}

#[test]
fn lost_messages_do_not_keep_later_ones_from_opening() {
    assert!(simulate(Behaviour::DROP).dropped > 1_000);
}

#[test]
fn repeated_messages_are_refused_as_duplicates() {
    assert!(simulate(Behaviour::DUPLICATE).duplicates_refused > 1_000);
}

#[test]
fn damaged_messages_are_refused_and_the_untouched_ones_still_open() {
    let total = simulate(Behaviour::TAMPER);
    assert!(total.tampered() > 1_000);
    println!("reasons: {:?}", total.tampered_refused);
}

#[test]
fn parties_go_on_from_the_stored_bytes() {
    assert!(simulate(Behaviour::RESTART).restarts > 500);
}

#[test]
fn both_sides_may_start_and_start_again() {
    assert!(simulate(Behaviour::SIMULTANEOUS).sessions_started > 200);
}

#[test]
fn everything_at_once_loses_nothing_and_opens_nothing_twice() {
    let total = simulate(Behaviour::CHAOS);
    assert!(total.dropped > 200 && total.duplicates_refused > 200 && total.tampered() > 200);
}

#[test]
fn a_long_conversation_of_two_goes_on() {
    let mut rng = SeededRng::of_test(3);
    for version in [Version::V3, Version::V4] {
        for behaviour in [Behaviour::CHAOS, Behaviour::PING_PONG] {
            let summary = network(version, behaviour, 2, rng.next_seed())
                .run(3_000)
                .unwrap();
            println!("{}: {summary}", behaviour.name);
        }
    }
}

/// Long enough for many epochs in one session, on a network that loses, repeats, damages and reorders, with restarts in
/// between: both sides go through every state of the braid.
#[test]
fn the_post_quantum_ratchet_goes_through_all_its_states_and_many_epochs() {
    let mut rng = SeededRng::of_test(4);
    let parties: Vec<OurParty> = [Loading::Mixed, Loading::Parts]
        .into_iter()
        .enumerate()
        .map(|(index, loading)| OurParty::new(index, Version::V4, loading, 70, rng.fork()))
        .collect();
    let observed: Vec<_> = parties
        .iter()
        .map(|party| Arc::clone(&party.device.observed))
        .collect();
    let parties = parties
        .into_iter()
        .map(|party| -> Box<dyn Party> { Box::new(party) })
        .collect();
    let summary = Network::new(parties, Behaviour::CONVERSATION, rng)
        .run(8_000)
        .unwrap();
    println!("{summary}");
    assert!(summary.most_epochs >= 20, "{summary}");
    assert_eq!(summary.sessions_started, 1);
    for observed in observed {
        let observed: Observed = observed.lock().unwrap().clone();
        assert_eq!(observed.states.len(), 11, "{:?}", observed.states);
        assert!(observed.most_epochs() >= 20);
    }
}

/// In strict alternation an epoch takes 87 messages.
#[test]
fn an_epoch_takes_87_messages_of_strict_alternation() {
    let mut rng = SeededRng::of_test(5);
    let mut devices = ["alice", "bob"].map(|name| Device::new(name, Version::V4, rng.fork()));
    let addresses = devices.each_ref().map(|device| device.address.clone());
    let bundle = devices[1].publish();
    devices[0].initiate(&addresses[1], &bundle).unwrap();
    let mut begins = vec![0];
    for sent in 0.. {
        let (from, to) = (sent % 2, 1 - sent % 2);
        let message = devices[from].encrypt(&addresses[to], b"text").unwrap();
        devices[to].decrypt(&addresses[from], &message).unwrap();
        let (_, epoch) = devices[to].braid(&addresses[from]);
        if usize::try_from(epoch).unwrap() > begins.len() {
            begins.push(sent + 1);
        }
        if begins.len() == 13 {
            break;
        }
    }
    let lengths: Vec<_> = begins.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("{lengths:?}");
    assert!(lengths.iter().all(|length| (86..=88).contains(length)));
    assert_eq!(lengths[1..11].iter().sum::<usize>(), 870);
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    for version in [Version::V3, Version::V4] {
        let run = |seed| {
            network(version, Behaviour::CHAOS, 3, seed)
                .run(MESSAGES)
                .unwrap()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7).digest, run(8).digest);
    }
}
