//! This engine with itself on the simulated network: every behaviour, two to six parties, many seeds.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod support;

use support::SeededRng;
use support::network::{Behaviour, Network, Party, Summary};
use support::ours::{Loading, OurParty};

/// Messages of one network.
const MESSAGES: usize = 300;

/// Networks of each size for a behaviour.
const SEEDS: usize = 12;

fn network(behaviour: Behaviour, parties: usize, seed: u64) -> Network {
    let mut rng = SeededRng::new(seed);
    let parties = (0..parties)
        .map(|index| -> Box<dyn Party> {
            let loading = *rng.pick(&[Loading::Whole, Loading::Parts, Loading::Mixed]);
            Box::new(OurParty::new(index, loading, 70, rng.fork()))
        })
        .collect();
    Network::new(parties, behaviour, rng)
}

/// Two to six parties, each with several seeds.
fn simulate(behaviour: Behaviour) -> Summary {
    let mut rng = SeededRng::of_test(2);
    let mut total = Summary::default();
    for parties in 2..=6 {
        for _ in 0..SEEDS {
            let summary = network(behaviour, parties, rng.next_seed())
                .run(MESSAGES)
                .unwrap();
            assert!(summary.sent >= MESSAGES);
            total.sent += summary.sent;
            total.opened += summary.opened;
            total.dropped += summary.dropped;
            total.duplicates_refused += summary.duplicates_refused;
            total.prekey_messages += summary.prekey_messages;
            total.sessions_started += summary.sessions_started;
            total.turns += summary.turns;
            total.overtaken += summary.overtaken;
            total.offline_periods += summary.offline_periods;
            total.restarts += summary.restarts;
            total.tampered_opened += summary.tampered_opened;
            total.longest_queue = total.longest_queue.max(summary.longest_queue);
            for (reason, count) in summary.tampered_refused {
                *total.tampered_refused.entry(reason).or_default() += count;
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
    for behaviour in [Behaviour::CHAOS, Behaviour::PING_PONG] {
        let summary = network(behaviour, 2, rng.next_seed()).run(3_000).unwrap();
        println!("{}: {summary}", behaviour.name);
    }
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    let run = |seed| network(Behaviour::CHAOS, 3, seed).run(MESSAGES).unwrap();
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).digest, run(8).digest);
}
