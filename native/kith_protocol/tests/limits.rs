//! The documented limits: what is exactly within works, what is beyond is refused or evicted, and no loss of messages
//! ever bricks a session.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper that fails is a failed test"
)]

mod support;

use kith_protocol::limits::{
    MAX_ARCHIVED_SESSIONS, MAX_FORWARD_JUMP, MAX_HASHES_PER_MESSAGE, MAX_RECEIVING_CHAINS,
    MAX_SKIPPED_KEYS_PER_CHAIN, MAX_SKIPPED_KEYS_PER_SESSION,
};
use kith_protocol::{
    EncryptError, LocalDevice, MemorySkippedKeys, PreKeySignalMessage, Session, SessionId,
    SessionRecord, SignalMessage, SkippedKeyFormat, SkippedKeyLookup, SkippedKeyPosition,
    TrustOnFirstUse,
};
use support::SeededRng;
use support::network::Reason;
use support::ours::{Device, Loading, NOW, Parsed};
use support::peer::Message;
use support::records::Record;

fn acquainted(seed: u64) -> (Device, Device) {
    let mut rng = SeededRng::of_test(seed);
    let mut alice = Device::new("alice", rng.fork());
    let mut bob = Device::new("bob", rng.fork());
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    talk(&mut alice, &mut bob);
    (alice, bob)
}

fn send(from: &mut Device, to: &Device) -> Message {
    from.encrypt(&to.address, b"text").unwrap()
}

fn lose(from: &mut Device, to: &Device, count: usize) -> Vec<Message> {
    (0..count).map(|_| send(from, to)).collect()
}

fn open(by: &mut Device, from: &Device, message: &Message) -> Result<(), Reason> {
    by.decrypt(&from.address, message)
        .map(|decrypted| assert_eq!(decrypted.plaintext, b"text"))
}

fn talk(alice: &mut Device, bob: &mut Device) {
    let message = send(alice, bob);
    assert_eq!(open(bob, alice, &message), Ok(()));
    let message = send(bob, alice);
    assert_eq!(open(alice, bob, &message), Ok(()));
}

/// The skipped keys of each chain, oldest chain first, of the current session.
fn skipped(device: &Device, of: &Device) -> Vec<u32> {
    device
        .peer(&of.address)
        .current()
        .unwrap()
        .info()
        .receiving
        .iter()
        .map(|chain| chain.skipped)
        .collect()
}

#[test]
fn the_limits_are_those_of_the_signal_clients() {
    assert_eq!(MAX_FORWARD_JUMP, 25_000);
    assert_eq!(MAX_SKIPPED_KEYS_PER_CHAIN, 2_000);
    assert_eq!(MAX_SKIPPED_KEYS_PER_SESSION, 4_000);
    assert_eq!(MAX_RECEIVING_CHAINS, 5);
    assert_eq!(MAX_ARCHIVED_SESSIONS, 40);
}

#[test]
fn exactly_25_000_messages_may_be_skipped_on_a_known_chain_and_on_a_new_one() {
    for known_chain in [true, false] {
        let (mut alice, mut bob) = acquainted(1);
        if known_chain {
            let first = send(&mut alice, &bob);
            open(&mut bob, &alice, &first).unwrap();
        }
        let lost = lose(&mut alice, &bob, 25_000);
        let within = send(&mut alice, &bob);
        let beyond = send(&mut alice, &bob);
        let before = bob.stored();
        assert_eq!(open(&mut bob, &alice, &beyond), Err(Reason::OutOfSync));
        assert_eq!(bob.stored(), before);
        assert_eq!(open(&mut bob, &alice, &within), Ok(()));
        assert_eq!(open(&mut bob, &alice, &beyond), Ok(()));
        // The newest 2 000 of the lost ones still open, and no others.
        assert_eq!(bob.peer(&alice.address).skipped.len(), 2_000);
        assert_eq!(
            open(&mut bob, &alice, &lost[25_000 - 2_001]),
            Err(Reason::Duplicate)
        );
        assert_eq!(open(&mut bob, &alice, &lost[25_000 - 2_000]), Ok(()));
        assert_eq!(open(&mut bob, &alice, &lost[24_999]), Ok(()));
        talk(&mut alice, &mut bob);
    }
}

/// More than 25 000 messages lost in a row end what the peer can say on that chain, as in every Signal client: it turns
/// to a new chain only when it hears a new ratchet key. A new session is the way out, and it works from either side.
#[test]
fn a_peer_that_is_too_far_ahead_is_heard_again_on_a_new_session() {
    for ahead_starts in [true, false] {
        let (mut alice, mut bob) = acquainted(2);
        lose(&mut alice, &bob, 25_001);
        for _ in 0..3 {
            let before = bob.stored();
            let message = send(&mut alice, &bob);
            assert_eq!(open(&mut bob, &alice, &message), Err(Reason::OutOfSync));
            assert_eq!(bob.stored(), before);
        }
        // The other direction is not touched by it.
        let message = send(&mut bob, &alice);
        assert_eq!(open(&mut alice, &bob, &message), Ok(()));
        if ahead_starts {
            let first = renew(&mut alice, &mut bob);
            assert_eq!(open(&mut bob, &alice, &first), Ok(()));
        } else {
            let first = renew(&mut bob, &mut alice);
            assert_eq!(open(&mut alice, &bob, &first), Ok(()));
        }
        talk(&mut alice, &mut bob);
    }
}

#[test]
fn a_chain_keeps_its_newest_2_000_keys_and_the_session_goes_on_whatever_is_lost() {
    let (mut alice, mut bob) = acquainted(3);
    // Peers have bricked after 33 lost messages, or after a few thousand.
    for lost in [33, 1, 1_966, 1, 2_000, 2_001, 9_000, 15_000] {
        let messages = lose(&mut alice, &bob, lost);
        let next = send(&mut alice, &bob);
        assert_eq!(open(&mut bob, &alice, &next), Ok(()), "after {lost}");
        let kept = *skipped(&bob, &alice).last().unwrap();
        assert!(kept <= 2_000, "{kept}");
        assert_eq!(bob.peer(&alice.address).skipped.len(), kept as usize);
        assert_eq!(open(&mut bob, &alice, messages.last().unwrap()), Ok(()));
        if lost > 2_000 {
            assert_eq!(kept, 2_000);
            let evicted = &messages[lost - 2_001];
            assert_eq!(open(&mut bob, &alice, evicted), Err(Reason::Duplicate));
        }
    }
    talk(&mut alice, &mut bob);
}

#[test]
fn the_oldest_keys_of_a_chain_are_evicted_first() {
    let (mut alice, mut bob) = acquainted(4);
    let old = lose(&mut alice, &bob, 1_500);
    let next = send(&mut alice, &bob);
    open(&mut bob, &alice, &next).unwrap();
    assert_eq!(skipped(&bob, &alice).last(), Some(&1_500));
    // One of the old ones arrives, then 501 more are lost: two over the limit, so 2 old ones go.
    open(&mut bob, &alice, &old[700]).unwrap();
    lose(&mut alice, &bob, 503);
    let next = send(&mut alice, &bob);
    open(&mut bob, &alice, &next).unwrap();
    assert_eq!(skipped(&bob, &alice).last(), Some(&2_000));
    assert_eq!(open(&mut bob, &alice, &old[0]), Err(Reason::Duplicate));
    assert_eq!(open(&mut bob, &alice, &old[1]), Err(Reason::Duplicate));
    assert_eq!(open(&mut bob, &alice, &old[2]), Ok(()));
    assert_eq!(open(&mut bob, &alice, &old[1_499]), Ok(()));
}

#[test]
fn a_session_keeps_4_000_keys_and_evicts_those_of_its_oldest_chain() {
    let (mut alice, mut bob) = acquainted(5);
    let mut lost = Vec::new();
    for count in [1_500, 1_500, 1_500] {
        lost.push(lose(&mut alice, &bob, count));
        let next = send(&mut alice, &bob);
        open(&mut bob, &alice, &next).unwrap();
        let answer = send(&mut bob, &alice);
        open(&mut alice, &bob, &answer).unwrap();
    }
    assert_eq!(skipped(&bob, &alice), [0, 1_000, 1_500, 1_500]);
    assert_eq!(
        open(&mut bob, &alice, &lost[0][499]),
        Err(Reason::Duplicate)
    );
    assert_eq!(open(&mut bob, &alice, &lost[0][500]), Ok(()));
    assert_eq!(open(&mut bob, &alice, &lost[1][0]), Ok(()));
    // A jump in the newest chain evicts over several chains.
    lose(&mut alice, &bob, 20_000);
    let next = send(&mut alice, &bob);
    open(&mut bob, &alice, &next).unwrap();
    assert_eq!(skipped(&bob, &alice), [0, 0, 500, 1_500, 2_000]);
    assert_eq!(
        open(&mut bob, &alice, &lost[1][998]),
        Err(Reason::Duplicate)
    );
    assert_eq!(open(&mut bob, &alice, &lost[1][1_499]), Ok(()));
    talk(&mut alice, &mut bob);
}

#[test]
fn the_sixth_receiving_chain_drops_the_oldest_with_its_keys() {
    for loading in [Loading::Whole, Loading::Parts] {
        let (mut alice, mut bob) = acquainted(6);
        bob.loading = loading;
        let mut rounds = Vec::new();
        for _ in 0..6 {
            let lost = lose(&mut alice, &bob, 3);
            let next = send(&mut alice, &bob);
            open(&mut bob, &alice, &next).unwrap();
            let answer = send(&mut bob, &alice);
            open(&mut alice, &bob, &answer).unwrap();
            rounds.push(lost);
        }
        assert_eq!(skipped(&bob, &alice), [3; 5]);
        assert_eq!(bob.peer(&alice.address).skipped.len(), 15);
        let before = bob.stored();
        for gone in &rounds[0] {
            assert_eq!(open(&mut bob, &alice, gone), Err(Reason::Tampered));
        }
        assert_eq!(bob.stored(), before);
        for late in rounds[1..].iter().flatten() {
            assert_eq!(open(&mut bob, &alice, late), Ok(()));
        }
        assert!(bob.peer(&alice.address).skipped.is_empty());
    }
}

/// A new session, started by Alice; the message that tells Bob of it.
fn renew(alice: &mut Device, bob: &mut Device) -> Message {
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    send(alice, bob)
}

#[test]
fn forty_archived_sessions_are_kept_and_the_41st_goes_with_its_keys() {
    for loading in [Loading::Whole, Loading::Parts] {
        let (mut alice, mut bob) = acquainted(7);
        bob.loading = loading;
        let mut late = Vec::new();
        for session in 0..41 {
            late.push(send(&mut alice, &bob));
            let next = send(&mut alice, &bob);
            open(&mut bob, &alice, &next).unwrap();
            assert_eq!(bob.peer(&alice.address).archived.len(), session);
            assert_eq!(bob.peer(&alice.address).skipped.len(), session + 1);
            if session < 40 {
                let first = renew(&mut alice, &mut bob);
                open(&mut bob, &alice, &first).unwrap();
            }
        }
        // One current session and 40 archived ones, a skipped key in each.
        assert_eq!(bob.peer(&alice.address).archived.len(), 40);
        assert_eq!(bob.peer(&alice.address).skipped.len(), 41);
        let oldest = bob.peer(&alice.address).archived[39].0;
        let first = renew(&mut alice, &mut bob);
        let changes = bob.decrypt(&alice.address, &first).unwrap().changes;
        assert_eq!(changes.sessions_dropped, [oldest]);
        assert_eq!(bob.peer(&alice.address).archived.len(), 40);
        assert_eq!(bob.peer(&alice.address).skipped.len(), 40);

        assert_eq!(open(&mut bob, &alice, &late[0]), Err(Reason::Tampered));
        // Each of the others is promoted in turn, and nothing more is lost.
        for message in &late[1..] {
            assert_eq!(open(&mut bob, &alice, message), Ok(()));
            assert_eq!(bob.peer(&alice.address).archived.len(), 40);
        }
        assert!(bob.peer(&alice.address).skipped.is_empty());
    }
}

/// Bob with one current session and `archived` others; a message of the oldest, on a chain he does not know, with this
/// counter; and the first message of that chain.
fn far_behind(archived: usize, counter: usize) -> (Device, Device, Message, Message) {
    let (mut alice, mut bob) = acquainted(13);
    let first = send(&mut alice, &bob);
    lose(&mut alice, &bob, counter - 1);
    let message = send(&mut alice, &bob);
    for _ in 0..archived {
        let other = renew(&mut alice, &mut bob);
        open(&mut bob, &alice, &other).unwrap();
    }
    (alice, bob, first, message)
}

#[test]
fn a_message_of_unknown_origin_costs_at_most_50_000_hashes_over_all_sessions() {
    assert_eq!(MAX_HASHES_PER_MESSAGE, 50_000);
    for (archived, within) in [(1, 25_000), (2, 16_666), (9, 5_000), (40, 1_219)] {
        let (alice, mut bob, _, message) = far_behind(archived, within);
        assert_eq!(open(&mut bob, &alice, &message), Ok(()), "{archived}");

        if archived > 1 {
            let (mut alice, mut bob, first, message) = far_behind(archived, within + 1);
            let before = bob.stored();
            // Not :tampered: nobody touched it.
            assert_eq!(
                open(&mut bob, &alice, &message),
                Err(Reason::OutOfSync),
                "{archived}"
            );
            assert_eq!(bob.stored(), before);
            // Once the chain is known, no other session is tried, and the message opens after all.
            assert_eq!(open(&mut bob, &alice, &first), Ok(()));
            assert_eq!(open(&mut bob, &alice, &message), Ok(()));
            talk(&mut alice, &mut bob);
        }
    }
}

#[test]
fn an_archived_session_that_opens_a_message_becomes_the_current_one() {
    let (mut alice, mut bob) = acquainted(8);
    let old = bob.peer(&alice.address).current().unwrap().id();
    let late = [send(&mut alice, &bob), send(&mut alice, &bob)];
    let first = renew(&mut alice, &mut bob);
    open(&mut bob, &alice, &first).unwrap();
    let new = bob.peer(&alice.address).current().unwrap().id();
    assert_ne!(old, new);

    let changes = bob.decrypt(&alice.address, &late[0]).unwrap().changes;
    assert_eq!(
        (changes.session_id, changes.promoted, changes.archived),
        (old, Some(old), Some(new))
    );
    let rows = bob.peer(&alice.address);
    assert_eq!(rows.current().unwrap().id(), old);
    assert_eq!(
        rows.archived.iter().map(|row| row.0).collect::<Vec<_>>(),
        [new]
    );
    // Now Bob answers on the old session, and both are there again.
    let answer = send(&mut bob, &alice);
    open(&mut alice, &bob, &answer).unwrap();
    assert_eq!(alice.peer(&bob.address).current().unwrap().id(), old);
    talk(&mut alice, &mut bob);
    assert_eq!(open(&mut bob, &alice, &late[1]), Ok(()));
}

/// The library's own bookkeeping, without a store beside it.
struct InMemory {
    device: Device,
    record: SessionRecord,
    skipped: MemorySkippedKeys,
}

impl InMemory {
    fn new(name: &str, rng: SeededRng) -> Self {
        Self {
            device: Device::new(name, rng),
            record: SessionRecord::default(),
            skipped: MemorySkippedKeys::default(),
        }
    }

    fn initiate(&mut self, other: &mut Self) {
        let bundle = other.device.publish();
        let local = LocalDevice {
            address: &self.device.address,
            identity: &self.device.identity,
            registration_id: 1,
        };
        let trust = TrustOnFirstUse(None);
        let replaced = self
            .record
            .initiate(&local, &bundle, &trust, NOW, &mut self.device.rng)
            .unwrap();
        self.skipped.forget(&replaced.sessions_dropped);
    }

    fn send(&mut self) -> (bool, Vec<u8>) {
        let sent = self
            .record
            .encrypt(b"text", &TrustOnFirstUse(None), NOW)
            .unwrap();
        (sent.is_prekey_message, sent.bytes)
    }

    fn receive(&mut self, from: &Device, (is_prekey, body): &(bool, Vec<u8>)) {
        let local = LocalDevice {
            address: &self.device.address,
            identity: &self.device.identity,
            registration_id: 1,
        };
        let skipped = &self.skipped;
        let find = |id: &SessionId, at: &SkippedKeyPosition| skipped.find(id, at);
        let (trust, rng) = (TrustOnFirstUse(None), &mut self.device.rng);
        let opened = if *is_prekey {
            let message = PreKeySignalMessage::from_bytes(body).unwrap();
            self.record.decrypt_prekey(
                &local,
                &from.address,
                &message,
                &self.device.store,
                &find,
                &trust,
                rng,
            )
        } else {
            let message = SignalMessage::from_bytes(body).unwrap();
            self.record
                .decrypt(&local, &from.address, &message, &find, &trust, rng)
        };
        if let Ok(opened) = opened {
            self.skipped.apply(&opened.changes);
        }
    }

    fn counted(&self) -> usize {
        self.record
            .current()
            .into_iter()
            .chain(self.record.archived())
            .flat_map(|session| session.info().receiving)
            .map(|chain| chain.skipped as usize)
            .sum()
    }

    fn check(&self, context: &str) {
        assert_eq!(self.skipped.len(), self.counted(), "{context}");
        assert_eq!(self.skipped.is_empty(), self.counted() == 0);
    }
}

#[test]
fn the_keys_in_memory_are_those_the_sessions_count_under_random_traffic() {
    let mut rng = SeededRng::of_test(9);
    for run in 0..20 {
        let mut sides = [
            InMemory::new("alice", rng.fork()),
            InMemory::new("bob", rng.fork()),
        ];
        let mut under_way: Vec<(usize, (bool, Vec<u8>))> = Vec::new();
        for step in 0..400 {
            let by = rng.below(2);
            let (left, right) = sides.split_at_mut(1);
            let (me, other) = if by == 0 {
                (&mut left[0], &mut right[0])
            } else {
                (&mut right[0], &mut left[0])
            };
            // Few enough sessions that none leaves the archive.
            if me.record.current().is_none() && by == 0
                || (me.record.archived().len() < 30 && rng.chance(2))
            {
                me.initiate(other);
            }
            if me.record.current().is_some() {
                let jump = if rng.chance(2) { 900 } else { 1 + rng.below(4) };
                for _ in 0..jump {
                    let message = me.send();
                    if jump < 10 || rng.chance(1) {
                        under_way.push((1 - by, message));
                    }
                }
            }
            while under_way.len() > 20 || (!under_way.is_empty() && rng.chance(60)) {
                let (to, message) = under_way.swap_remove(rng.below(under_way.len()));
                let (left, right) = sides.split_at_mut(1);
                if to == 0 {
                    left[0].receive(&right[0].device, &message);
                } else {
                    right[0].receive(&left[0].device, &message);
                }
                sides[to].check(&format!("run {run}, step {step}"));
            }
        }
    }
}

/// A session that a new one pushes out of the archive leaves no keys behind: who starts sessions has to learn which
/// one went.
#[test]
fn the_keys_in_memory_are_those_the_sessions_count_when_starting_a_session_drops_the_oldest() {
    let mut rng = SeededRng::of_test(10);
    let mut alice = InMemory::new("alice", rng.fork());
    let mut bob = InMemory::new("bob", rng.fork());
    alice.initiate(&mut bob);
    let first = alice.send();
    bob.receive(&alice.device, &first);
    let late = bob.send();
    let next = bob.send();
    alice.receive(&bob.device, &next);
    assert_eq!(alice.skipped.len(), 1);
    for session in 0..40 {
        alice.initiate(&mut bob);
        alice.check(&format!("{session} archived"));
    }
    assert_eq!(alice.record.archived().len(), 40);
    alice.receive(&bob.device, &late);
    assert!(alice.skipped.is_empty(), "the oldest is still there");

    // Again, and this time one more.
    let (mut alice, mut bob) = (
        InMemory::new("alice", rng.fork()),
        InMemory::new("bob", rng.fork()),
    );
    alice.initiate(&mut bob);
    let first = alice.send();
    bob.receive(&alice.device, &first);
    bob.send();
    let next = bob.send();
    alice.receive(&bob.device, &next);
    for session in 0..41 {
        alice.initiate(&mut bob);
        alice.check(&format!("{session} archived"));
    }
    assert!(alice.skipped.is_empty());
}

#[test]
fn a_session_put_away_sends_nothing_more_and_still_opens_what_is_on_its_way() {
    let mut rng = SeededRng::of_test(14);
    let mut alice = InMemory::new("alice", rng.fork());
    let mut bob = InMemory::new("bob", rng.fork());
    assert_eq!(alice.record.archive_current(), Default::default());
    alice.initiate(&mut bob);
    let first = alice.send();
    bob.receive(&alice.device, &first);
    let late = bob.send();
    let next = bob.send();
    alice.receive(&bob.device, &next);
    let id = alice.record.current().unwrap().id();

    let replaced = alice.record.archive_current();
    assert_eq!(replaced.archived, Some(id));
    assert!(replaced.sessions_dropped.is_empty());
    let before = alice.record.clone();
    assert_eq!(
        alice.record.encrypt(b"text", &TrustOnFirstUse(None), NOW),
        Err(EncryptError::SessionNotFound)
    );
    assert_eq!(alice.record.archive_current(), Default::default());
    assert_eq!(alice.record, before);
    alice.check("put away");
    // What opens on it makes it the current one again.
    alice.receive(&bob.device, &late);
    assert_eq!(alice.record.current().map(Session::id), Some(id));
    assert!(alice.record.archived().is_empty() && alice.skipped.is_empty());

    // One put away over the limit drops the oldest with its keys.
    bob.send();
    let next = bob.send();
    alice.receive(&bob.device, &next);
    assert_eq!(alice.skipped.len(), 1);
    for _ in 0..40 {
        alice.initiate(&mut bob);
    }
    assert_eq!(alice.record.archived().len(), 40);
    let replaced = alice.record.archive_current();
    assert_eq!(replaced.sessions_dropped, [id]);
    alice.skipped.forget(&replaced.sessions_dropped);
    alice.check("the oldest is gone");
}

#[test]
fn an_imported_record_with_more_keys_than_a_session_keeps_goes_on_within_the_limit() {
    let (mut alice, mut bob) = acquainted(11);
    // Three chains of 1 300 keys; then each is filled up to what Signal's clients keep.
    for _ in 0..3 {
        lose(&mut alice, &bob, 1_300);
        let next = send(&mut alice, &bob);
        open(&mut bob, &alice, &next).unwrap();
        let answer = send(&mut bob, &alice);
        open(&mut alice, &bob, &answer).unwrap();
    }
    let mut record = Record::of(&bob.export(&alice.address), SkippedKeyFormat::Seeds);
    for chain in &mut record.session().receiving {
        let spare = chain.message_keys.first().cloned();
        for index in 1_000_000_u32.. {
            let Some(mut keys) = spare.clone().filter(|_| chain.message_keys.len() < 2_000) else {
                break;
            };
            keys.index = index;
            chain.message_keys.insert(0, keys);
        }
    }
    let imported = record.official();
    assert_eq!(imported.skipped.len(), 6_000);
    bob.import(&alice.address, &imported);
    // The first message that moves a chain brings the session within its limit.
    lose(&mut alice, &bob, 1);
    let next = send(&mut alice, &bob);
    open(&mut bob, &alice, &next).unwrap();
    assert_eq!(bob.peer(&alice.address).skipped.len(), 4_000);
    talk(&mut alice, &mut bob);
}

#[test]
fn the_key_of_a_skipped_message_is_not_used_up_by_a_forgery_at_its_place() {
    let (mut alice, mut bob) = acquainted(12);
    let late = send(&mut alice, &bob);
    let next = send(&mut alice, &bob);
    open(&mut bob, &alice, &next).unwrap();
    let before = bob.stored();
    for at in late.body.len() - 8..late.body.len() {
        let mut forged = late.clone();
        forged.body[at] ^= 1;
        assert_eq!(open(&mut bob, &alice, &forged), Err(Reason::Tampered));
    }
    assert_eq!(bob.stored(), before);
    assert!(matches!(Parsed::new(&late), Ok(Parsed::Ordinary(_))));
    assert_eq!(open(&mut bob, &alice, &late), Ok(()));
    let absent = bob.peer(&alice.address).skipped.is_empty();
    assert!(absent);
    let gone = SkippedKeyLookup::Absent;
    let session = bob.peer(&alice.address).current().unwrap();
    let position = (session.info().receiving[0].ratchet_key, 0);
    assert_eq!(
        bob.peer(&alice.address).find(&session.id(), &position),
        gone
    );
}
