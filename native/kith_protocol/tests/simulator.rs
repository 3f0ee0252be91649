//! The network simulator itself: it accepts a party that behaves, and names the fault of each that does not.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::SeededRng;
use support::network::{Behaviour, Fault, Network, Party, Reason, Summary, address};
use support::peer::{Bundle, Message, MessageType, PublicPreKey};

const MESSAGES: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    CannotStart,
    CannotSend,
    LosesSome,
    SwapsText,
    OpensTwice,
    BlamesDuplicatesOnTampering,
    AcceptsDamage,
    ForgetsAfterDamage,
    WritesOnRefusal,
    ForgetsOnRestart,
}

/// What a fake party knows of one other.
#[derive(Clone, Default)]
struct Conversation {
    /// Own turn; every new turn of the other side moves it on, as a ratchet key does.
    turn: u32,
    counter: u32,
    /// The turns of the other side from which messages still open.
    chains: BTreeSet<u32>,
    /// The newest turn from which messages no longer open.
    retired: Option<u32>,
    seen: BTreeSet<u32>,
}

/// An engine without cryptography: a turn, a counter, the text, and a checksum in place of a MAC.
#[derive(Clone)]
struct FakeParty {
    index: usize,
    defect: Defect,
    conversations: BTreeMap<usize, Conversation>,
    stored: BTreeMap<usize, Conversation>,
    writes: u8,
}

impl FakeParty {
    fn new(index: usize, defect: Defect) -> Self {
        Self {
            index,
            defect,
            conversations: BTreeMap::new(),
            stored: BTreeMap::new(),
            writes: 0,
        }
    }

    fn store(&mut self) {
        if self.defect != Defect::ForgetsOnRestart || self.stored.is_empty() {
            self.stored = self.conversations.clone();
        }
        self.writes = self.writes.wrapping_add(1);
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    sum.to_be_bytes()
}

impl Party for FakeParty {
    fn bundle(&mut self) -> Bundle {
        Bundle {
            address: address(self.index),
            registration_id: 1,
            identity_key: Vec::new(),
            signed_prekey: PublicPreKey {
                id: 1,
                public: Vec::new(),
                signature: None,
            },
            prekey: None,
            kyber_prekey: None,
        }
    }

    fn start_session(&mut self, with: usize, bundle: &Bundle) -> Result<(), Reason> {
        assert_eq!(bundle.address, address(with));
        if self.defect == Defect::CannotStart {
            return Err(Reason::Malformed);
        }
        self.conversations.entry(with).or_default();
        self.store();
        Ok(())
    }

    fn send(&mut self, to: usize, plaintext: &[u8]) -> Result<Message, Reason> {
        let conversation = self
            .conversations
            .get_mut(&to)
            .ok_or(Reason::SessionNotFound)?;
        if self.defect == Defect::CannotSend && conversation.counter == 9 {
            return Err(Reason::SessionNotFound);
        }
        conversation.counter += 1;
        let mut body = conversation.turn.to_be_bytes().to_vec();
        body.extend(conversation.counter.to_be_bytes());
        body.extend(plaintext);
        body.extend(checksum(&body));
        self.store();
        Ok(Message {
            kind: MessageType::Ordinary,
            body,
        })
    }

    fn receive(&mut self, from: usize, message: &Message) -> Result<Vec<u8>, Reason> {
        if self.defect == Defect::WritesOnRefusal {
            self.store();
        }
        let parts = message
            .body
            .split_last_chunk::<8>()
            .and_then(|(body, sum)| {
                let (header, text) = body.split_first_chunk::<8>()?;
                Some((body, *sum, u64::from_be_bytes(*header), text))
            });
        let Some((body, sum, header, text)) = parts else {
            return Err(Reason::Malformed);
        };
        let [turn, counter] = [header >> 32, header & u64::from(u32::MAX)]
            .map(|half| u32::try_from(half).expect("half of the header"));
        if sum != checksum(body) {
            match self.defect {
                Defect::AcceptsDamage => return Ok(text.to_vec()),
                Defect::ForgetsAfterDamage => {
                    self.conversations.entry(from).or_default().seen.clear();
                }
                _ => {}
            }
            return Err(Reason::Tampered);
        }
        let mut conversation = self.conversations.get(&from).cloned().unwrap_or_default();
        if conversation.retired.is_some_and(|retired| turn <= retired) {
            return Err(Reason::Tampered);
        }
        if conversation.chains.insert(turn) {
            conversation.turn += 1;
        }
        if conversation.chains.len() > 5 {
            conversation.retired = conversation.chains.pop_first();
        }
        if !conversation.seen.insert(counter) {
            return match self.defect {
                Defect::OpensTwice => Ok(text.to_vec()),
                Defect::BlamesDuplicatesOnTampering => Err(Reason::Tampered),
                _ => Err(Reason::Duplicate),
            };
        }
        if self.defect == Defect::LosesSome && counter % 16 == 0 {
            return Err(Reason::KeyNotFound);
        }
        self.conversations.insert(from, conversation);
        self.store();
        Ok(if self.defect == Defect::SwapsText && counter == 20 {
            b"something else".to_vec()
        } else {
            text.to_vec()
        })
    }

    fn restart(&mut self) {
        self.conversations = self.stored.clone();
    }

    fn stored(&mut self) -> Option<Vec<u8>> {
        Some(vec![self.writes])
    }
}

fn network(behaviour: Behaviour, parties: usize, defect: Defect, seed: u64) -> Network {
    let parties = (0..parties)
        .map(|index| -> Box<dyn Party> {
            let defect = if index == 1 { defect } else { Defect::None };
            Box::new(FakeParty::new(index, defect))
        })
        .collect();
    Network::new(parties, behaviour, SeededRng::new(seed))
}

fn run(behaviour: Behaviour, parties: usize, seed: u64) -> Summary {
    network(behaviour, parties, Defect::None, seed)
        .run(MESSAGES)
        .unwrap()
}

fn fault(behaviour: Behaviour, defect: Defect) -> Fault {
    network(behaviour, 2, defect, 1)
        .run(MESSAGES)
        .expect_err("the defect goes unnoticed")
        .fault
}

#[test]
fn a_party_that_behaves_passes_every_behaviour() {
    for behaviour in Behaviour::ALL {
        for parties in 2..=4 {
            for seed in 0..20 {
                let summary = run(behaviour, parties, seed);
                assert!(summary.sent >= MESSAGES, "{}", behaviour.name);
                assert_eq!(
                    summary.opened + summary.dropped,
                    summary.sent,
                    "{}",
                    behaviour.name
                );
            }
        }
    }
}

#[test]
fn each_behaviour_does_what_its_name_says() {
    let quiet = run(Behaviour::PING_PONG, 2, 1);
    assert_eq!(quiet.longest_queue, 1);
    assert_eq!(
        (
            quiet.dropped,
            quiet.duplicates_refused,
            quiet.tampered(),
            quiet.overtaken
        ),
        (0, 0, 0, 0)
    );
    assert!(quiet.turns > MESSAGES / 2, "{quiet}");

    assert!(run(Behaviour::BURSTS, 2, 1).longest_queue > 20);
    assert!(run(Behaviour::OFFLINE, 2, 1).offline_periods > 2);
    assert!(run(Behaviour::REORDER, 2, 1).overtaken > 100);
    assert!(run(Behaviour::DROP, 2, 1).dropped > 80);
    assert!(run(Behaviour::DUPLICATE, 2, 1).duplicates_refused > 80);
    assert!(run(Behaviour::TAMPER, 2, 1).tampered() > 80);
    assert!(run(Behaviour::RESTART, 2, 1).restarts > 20);
    assert!(run(Behaviour::SIMULTANEOUS, 3, 1).sessions_started > 6);

    let chaos = network(Behaviour::CHAOS, 3, Defect::None, 1)
        .run(4 * MESSAGES)
        .unwrap();
    for (what, count) in [
        ("dropped", chaos.dropped),
        ("duplicates", chaos.duplicates_refused),
        ("damaged", chaos.tampered()),
        ("overtaken", chaos.overtaken),
        ("offline", chaos.offline_periods),
        ("restarts", chaos.restarts),
        ("sessions", chaos.sessions_started),
    ] {
        assert!(count > 3, "{what}: {chaos}");
    }
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    assert_eq!(run(Behaviour::CHAOS, 3, 7), run(Behaviour::CHAOS, 3, 7));
    assert_ne!(
        run(Behaviour::CHAOS, 3, 7).digest,
        run(Behaviour::CHAOS, 3, 8).digest
    );
}

#[test]
fn every_defect_is_named() {
    let none = Reason::SessionNotFound;
    let cases = [
        (
            Behaviour::PING_PONG,
            Defect::CannotSend,
            Fault::CannotSend(none),
        ),
        (
            Behaviour::SIMULTANEOUS,
            Defect::CannotStart,
            Fault::CannotStart(Reason::Malformed),
        ),
        (
            Behaviour::PING_PONG,
            Defect::LosesSome,
            Fault::NotOpened(Reason::KeyNotFound),
        ),
        (Behaviour::PING_PONG, Defect::SwapsText, Fault::WrongText),
        (Behaviour::DUPLICATE, Defect::OpensTwice, Fault::OpenedTwice),
        (
            Behaviour::DUPLICATE,
            Defect::BlamesDuplicatesOnTampering,
            Fault::DuplicateRefusedAs(Reason::Tampered),
        ),
        (
            Behaviour::TAMPER,
            Defect::AcceptsDamage,
            Fault::DamageOpened,
        ),
        (
            Behaviour {
                duplicate: 30,
                ..Behaviour::TAMPER
            },
            Defect::ForgetsAfterDamage,
            Fault::OpenedTwice,
        ),
        (
            Behaviour::TAMPER,
            Defect::WritesOnRefusal,
            Fault::RefusalChangedState(Reason::Tampered),
        ),
        (
            Behaviour::RESTART,
            Defect::ForgetsOnRestart,
            // It counts from an old state again, so its next message looks like one seen before.
            Fault::NotOpened(Reason::Duplicate),
        ),
    ];
    for (behaviour, defect, expected) in cases {
        assert_eq!(fault(behaviour, defect), expected, "{defect:?}");
    }
}

#[test]
fn a_violation_says_how_to_see_it_again() {
    let violation = network(Behaviour::DUPLICATE, 2, Defect::OpensTwice, 5)
        .run(MESSAGES)
        .expect_err("the defect goes unnoticed");
    let report = format!("{violation:?}");
    assert!(report.contains("OpenedTwice"), "{report}");
    assert!(report.contains("of duplicate, network seed 5"), "{report}");
    assert!(report.lines().count() > 3, "{report}");
}
