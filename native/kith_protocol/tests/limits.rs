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
    EncryptError, EntryGroup, EntryLookup, EntryPosition, LocalDevice, MemoryEntries,
    OfficialRecord, PreKeySignalMessage, ProtocolAddress, RemoteDevice, Session, SessionId,
    SessionRecord, SignalMessage, SkippedKeyFormat, TrustOnFirstUse, Version,
};
use support::SeededRng;
use support::network::Reason;
use support::ours::{Device, Loading, NOW, Parsed};
use support::peer::{Message, MessageType};
use support::protobuf::PostQuantumHeader;
use support::records::Record;

const VERSIONS: [Version; 2] = [Version::V3, Version::V4];

/// How many messages of a chain may be lost before one that still opens. The post-quantum chain counts from 1 and keeps the
/// same bound, so it is one less in version 4.
const fn largest_gap(version: Version) -> usize {
    match version {
        Version::V3 => 25_000,
        Version::V4 => 24_999,
    }
}

fn strangers(version: Version, seed: u64) -> (Device, Device) {
    let mut rng = SeededRng::of_test(seed);
    (
        Device::new("alice", version, rng.fork()),
        Device::new("bob", version, rng.fork()),
    )
}

fn acquainted(version: Version, seed: u64) -> (Device, Device) {
    let (mut alice, mut bob) = strangers(version, seed);
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

fn header(message: &Message) -> PostQuantumHeader {
    match message.kind {
        MessageType::PreKey => PostQuantumHeader::of_prekey(&message.body),
        MessageType::Ordinary => PostQuantumHeader::of_ordinary(&message.body),
    }
    .expect("a message of version 4")
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
fn exactly_so_many_messages_may_be_skipped_on_a_known_chain_and_on_a_new_one() {
    for (version, known_chain) in VERSIONS
        .into_iter()
        .flat_map(|version| [(version, true), (version, false)])
    {
        let (mut alice, mut bob) = acquainted(version, 1);
        if known_chain {
            let first = send(&mut alice, &bob);
            open(&mut bob, &alice, &first).unwrap();
        }
        let gap = largest_gap(version);
        let lost = lose(&mut alice, &bob, gap);
        let within = send(&mut alice, &bob);
        let beyond = send(&mut alice, &bob);
        let before = bob.stored();
        assert_eq!(open(&mut bob, &alice, &beyond), Err(Reason::OutOfSync));
        assert_eq!(bob.stored(), before);
        assert_eq!(open(&mut bob, &alice, &within), Ok(()));
        assert_eq!(open(&mut bob, &alice, &beyond), Ok(()));
        // The newest 2 000 of the lost ones still open, and no others.
        let rows = bob.peer(&alice.address);
        assert_eq!(rows.message_keys(), 2_000);
        if version == Version::V4 {
            assert_eq!(rows.post_quantum_keys(), 2_000);
        }
        assert_eq!(
            open(&mut bob, &alice, &lost[gap - 2_001]),
            Err(Reason::Duplicate)
        );
        // In version 4 the next message already pushed the oldest one too far behind.
        let oldest = gap - 2_000 + usize::from(version == Version::V4);
        assert_eq!(open(&mut bob, &alice, &lost[oldest]), Ok(()));
        assert_eq!(open(&mut bob, &alice, &lost[gap - 1]), Ok(()));
        talk(&mut alice, &mut bob);
    }
}

/// More messages lost in a row than may be skipped end what the peer can say on that chain, as in every Signal client: it turns
/// to a new chain only when it hears a new ratchet key. A new session is the way out, and it works from either side.
#[test]
fn a_peer_that_is_too_far_ahead_is_heard_again_on_a_new_session() {
    for (version, ahead_starts) in VERSIONS
        .into_iter()
        .flat_map(|version| [(version, true), (version, false)])
    {
        let (mut alice, mut bob) = acquainted(version, 2);
        lose(&mut alice, &bob, largest_gap(version) + 1);
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
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 3);
        // Peers have bricked after 33 lost messages, or after a few thousand.
        for lost in [33, 1, 1_966, 1, 2_000, 2_001, 9_000, 15_000] {
            let messages = lose(&mut alice, &bob, lost);
            let next = send(&mut alice, &bob);
            assert_eq!(open(&mut bob, &alice, &next), Ok(()), "after {lost}");
            let kept = *skipped(&bob, &alice).last().unwrap();
            assert!(kept <= 2_000, "{kept}");
            let rows = bob.peer(&alice.address);
            assert_eq!(rows.message_keys(), kept as usize);
            if version == Version::V4 {
                // The two chains run side by side here, so they keep the keys of the same messages.
                assert_eq!(rows.post_quantum_keys(), kept as usize);
            }
            assert_eq!(open(&mut bob, &alice, messages.last().unwrap()), Ok(()));
            if lost > 2_000 {
                assert_eq!(kept, 2_000);
                let evicted = &messages[lost - 2_001];
                assert_eq!(open(&mut bob, &alice, evicted), Err(Reason::Duplicate));
            }
        }
        talk(&mut alice, &mut bob);
    }
}

#[test]
fn the_oldest_keys_of_a_chain_are_evicted_first() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 4);
        let old = lose(&mut alice, &bob, 1_500);
        let next = send(&mut alice, &bob);
        open(&mut bob, &alice, &next).unwrap();
        assert_eq!(skipped(&bob, &alice).last(), Some(&1_500));
        // One of the old ones arrives, then 503 more are lost: two over the limit, so 2 old ones go.
        open(&mut bob, &alice, &old[700]).unwrap();
        lose(&mut alice, &bob, 503);
        let next = send(&mut alice, &bob);
        open(&mut bob, &alice, &next).unwrap();
        assert_eq!(skipped(&bob, &alice).last(), Some(&2_000));
        assert_eq!(open(&mut bob, &alice, &old[0]), Err(Reason::Duplicate));
        assert_eq!(open(&mut bob, &alice, &old[1]), Err(Reason::Duplicate));
        let oldest = match version {
            Version::V3 => 2,
            Version::V4 => {
                // Message keys are counted, post-quantum keys must not lie more than 2 000 behind: 2 005 were sent.
                let before = bob.stored();
                for behind in &old[2..4] {
                    assert_eq!(open(&mut bob, &alice, behind), Err(Reason::Tampered));
                }
                assert_eq!(bob.stored(), before);
                4
            }
        };
        assert_eq!(open(&mut bob, &alice, &old[oldest]), Ok(()));
        assert_eq!(open(&mut bob, &alice, &old[1_499]), Ok(()));
    }
}

#[test]
fn a_session_keeps_4_000_keys_and_evicts_those_of_its_oldest_chain() {
    let (mut alice, mut bob) = acquainted(Version::V3, 5);
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

/// The post-quantum chain goes on over the ratchet keys of an epoch, so it keeps 2 000 keys for all of them together, and
/// what is lost on one ratchet key counts on the next as well.
#[test]
fn the_post_quantum_chain_of_an_epoch_counts_over_all_ratchet_keys() {
    let (mut alice, mut bob) = acquainted(Version::V4, 5);
    deafen(&mut bob, &alice);
    let mut lost = Vec::new();
    for count in [1_500, 1_500, 1_500] {
        lost.push(lose(&mut alice, &bob, count));
        talk(&mut alice, &mut bob);
    }
    assert_eq!(skipped(&bob, &alice), [0, 1_000, 1_500, 1_500]);
    let rows = bob.peer(&alice.address);
    assert_eq!(
        (rows.message_keys(), rows.post_quantum_keys()),
        (4_000, 2_000)
    );
    // Behind by two chains, by one chain and too many, and by just as many as may be.
    let before = bob.stored();
    for gone in [&lost[0][1_499], &lost[1][0], &lost[1][1_000]] {
        assert_eq!(open(&mut bob, &alice, gone), Err(Reason::Tampered));
    }
    assert_eq!(bob.stored(), before);
    assert_eq!(open(&mut bob, &alice, &lost[1][1_001]), Ok(()));
    assert_eq!(open(&mut bob, &alice, &lost[2][1_499]), Ok(()));

    // 13 000 lost on each of two ratchet keys: each chain could be walked, the post-quantum one not.
    let (mut alice, mut bob) = acquainted(Version::V4, 15);
    deafen(&mut bob, &alice);
    let first = send(&mut alice, &bob);
    open(&mut bob, &alice, &first).unwrap();
    lose(&mut alice, &bob, 13_000);
    let answer = send(&mut bob, &alice);
    open(&mut alice, &bob, &answer).unwrap();
    lose(&mut alice, &bob, 13_000);
    let message = send(&mut alice, &bob);
    assert!(header(&message).index > 26_000);
    let before = bob.stored();
    assert_eq!(open(&mut bob, &alice, &message), Err(Reason::OutOfSync));
    assert_eq!(bob.stored(), before);
}

/// Has the side that should answer the other's keys do nothing of the kind, so that the epoch stays what it is.
fn deafen(device: &mut Device, other: &Device) {
    let mut record = Record::of(&device.export(&other.address), SkippedKeyFormat::Seeds);
    let deaf = record.session().post_quantum().unwrap().deaf();
    record.session().set_post_quantum(&deaf);
    device.import(&other.address, &record.official());
}

/// Sends `count` messages that arrive.
fn burst(from: &mut Device, to: &mut Device, count: usize) {
    for _ in 0..count {
        let message = send(from, to);
        assert_eq!(open(to, from, &message), Ok(()));
    }
}

/// The keys of an epoch go when its receiver has sent two epochs further on. In the same moment the oldest of five ratchet
/// keys may still be there, so it is the post-quantum key that decides.
#[test]
fn the_keys_of_an_epoch_are_kept_until_two_epochs_further_on() {
    for loading in [Loading::Whole, Loading::Parts] {
        let (mut alice, mut bob) = strangers(Version::V4, 16);
        alice.loading = loading;
        bob.loading = loading;
        let bundle = bob.publish();
        alice.initiate(&bob.address, &bundle).unwrap();
        // In the fewest turns an epoch takes: the header, the first part, the key, the second part.
        let mut late: Vec<_> = (0..4).map(|_| send(&mut alice, &bob)).collect();
        burst(&mut alice, &mut bob, 3);
        burst(&mut bob, &mut alice, 31);
        late.extend((0..2).map(|_| send(&mut alice, &bob)));
        burst(&mut alice, &mut bob, 37);
        burst(&mut bob, &mut alice, 6);
        assert_eq!(alice.braid(&bob.address), ("NoHeaderReceived", 2));
        burst(&mut alice, &mut bob, 1);
        assert_eq!(bob.braid(&alice.address), ("KeysUnsampled", 2));
        burst(&mut bob, &mut alice, 4);
        burst(&mut alice, &mut bob, 31);
        burst(&mut bob, &mut alice, 37);
        burst(&mut alice, &mut bob, 6);
        assert_eq!(bob.braid(&alice.address), ("NoHeaderReceived", 3));
        assert!(late.iter().all(|message| header(message).epoch == 1));
        let rows = bob.peer(&alice.address);
        assert_eq!(rows.current().unwrap().info().receiving.len(), 5);
        assert_eq!((rows.message_keys(), rows.post_quantum_keys()), (6, 6));

        // Bob last sent in epoch 2, so everything is still there.
        assert_eq!(open(&mut bob, &alice, &late[0]), Ok(()));
        assert_eq!(open(&mut bob, &alice, &late[4]), Ok(()));
        let message = send(&mut bob, &alice);
        assert_eq!(header(&message).epoch, 3);
        // Now he sent in epoch 3, with the chain of epoch 2: that of epoch 0 is gone, and nobody knows the rest by heart.
        let rows = bob.peer(&alice.address);
        assert_eq!((rows.message_keys(), rows.post_quantum_keys()), (4, 0));
        let before = bob.stored();
        for gone in [&late[1], &late[3], &late[5]] {
            assert_eq!(open(&mut bob, &alice, gone), Err(Reason::Tampered));
        }
        // What was opened stays a duplicate.
        assert_eq!(open(&mut bob, &alice, &late[0]), Err(Reason::Duplicate));
        assert_eq!(bob.stored(), before);
        assert_eq!(open(&mut alice, &bob, &message), Ok(()));
        talk(&mut alice, &mut bob);
    }
}

/// A message rewrites less than a kilobyte; the keys of the braid are written a few times in an epoch of 87 messages, and a
/// chunk that arrives rewrites one page.
#[test]
fn what_a_message_rewrites_is_small() {
    let (mut alice, mut bob) = acquainted(Version::V4, 17);
    while alice.braid(&bob.address).1 < 5 {
        talk(&mut alice, &mut bob);
    }
    for device in [&alice, &bob] {
        let written = device.written;
        let messages = written.messages;
        println!(
            "{messages} messages: {} bytes of state each, {} of braid, {} of entries, {} braids written",
            written.state / messages,
            written.braid / messages,
            written.entries / messages,
            written.braids,
        );
        assert!(messages > 300);
        assert!(written.state / messages < 1_000);
        // Four epochs, and up to six states in each.
        assert!(written.braids < 4 * 6 + 6, "{} braids", written.braids);
        assert!(written.entries / messages < 200);
    }
}

#[test]
fn the_sixth_receiving_chain_drops_the_oldest_with_its_keys() {
    for (version, loading) in with_loading() {
        let (mut alice, mut bob) = acquainted(version, 6);
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
        assert_eq!(bob.peer(&alice.address).message_keys(), 15);
        let before = bob.stored();
        for gone in &rounds[0] {
            assert_eq!(open(&mut bob, &alice, gone), Err(Reason::Tampered));
        }
        assert_eq!(bob.stored(), before);
        for late in rounds[1..].iter().flatten() {
            assert_eq!(open(&mut bob, &alice, late), Ok(()));
        }
        assert_eq!(bob.peer(&alice.address).message_keys(), 0);
        if version == Version::V4 {
            // The post-quantum keys of the lost chain stay until their epoch goes.
            assert_eq!(bob.peer(&alice.address).post_quantum_keys(), 3);
        }
    }
}

fn with_loading() -> Vec<(Version, Loading)> {
    VERSIONS
        .into_iter()
        .flat_map(|version| [(version, Loading::Whole), (version, Loading::Parts)])
        .collect()
}

/// A new session, started by Alice; the message that tells Bob of it.
fn renew(alice: &mut Device, bob: &mut Device) -> Message {
    let bundle = bob.publish();
    alice.initiate(&bob.address, &bundle).unwrap();
    send(alice, bob)
}

#[test]
fn forty_archived_sessions_are_kept_and_the_41st_goes_with_its_keys() {
    for (version, loading) in with_loading() {
        let (mut alice, mut bob) = acquainted(version, 7);
        bob.loading = loading;
        let mut late = Vec::new();
        for session in 0..41 {
            late.push(send(&mut alice, &bob));
            let next = send(&mut alice, &bob);
            open(&mut bob, &alice, &next).unwrap();
            assert_eq!(bob.peer(&alice.address).archived.len(), session);
            assert_eq!(bob.peer(&alice.address).message_keys(), session + 1);
            if session < 40 {
                let first = renew(&mut alice, &mut bob);
                open(&mut bob, &alice, &first).unwrap();
            }
        }
        // One current session and 40 archived ones, a skipped key in each.
        assert_eq!(bob.peer(&alice.address).archived.len(), 40);
        assert_eq!(bob.peer(&alice.address).message_keys(), 41);
        let oldest = bob.peer(&alice.address).archived[39].0;
        let first = renew(&mut alice, &mut bob);
        let changes = bob.decrypt(&alice.address, &first).unwrap().changes;
        assert_eq!(changes.sessions_dropped, [oldest]);
        assert_eq!(bob.peer(&alice.address).archived.len(), 40);
        assert_eq!(bob.peer(&alice.address).message_keys(), 40);

        assert_eq!(open(&mut bob, &alice, &late[0]), Err(Reason::Tampered));
        assert_eq!(
            bob.peer(&alice.address).post_quantum_keys(),
            if version == Version::V4 { 40 } else { 0 }
        );
        // Each of the others is promoted in turn, and nothing more is lost.
        for message in &late[1..] {
            assert_eq!(open(&mut bob, &alice, message), Ok(()));
            assert_eq!(bob.peer(&alice.address).archived.len(), 40);
        }
        let rows = bob.peer(&alice.address);
        assert_eq!((rows.message_keys(), rows.post_quantum_keys()), (0, 0));
    }
}

/// Bob with one current session and `archived` others; a message of the oldest, on a chain he does not know, with this
/// counter; and the first message of that chain.
fn far_behind(
    version: Version,
    archived: usize,
    counter: usize,
) -> (Device, Device, Message, Message) {
    let (mut alice, mut bob) = acquainted(version, 13);
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
fn a_message_of_unknown_origin_costs_at_most_100_000_hashes_over_all_sessions() {
    assert_eq!(MAX_HASHES_PER_MESSAGE, 100_000);
    for (version, archived, within, beyond) in [
        // One hash for a step.
        (Version::V3, 1, 25_000, None),
        (Version::V3, 3, 25_000, None),
        (Version::V3, 4, 20_000, Some(20_001)),
        (Version::V3, 9, 10_000, Some(10_001)),
        (Version::V3, 40, 2_439, Some(2_440)),
        // And three for one of the post-quantum chain, whose steps are counted from the place of each session.
        (Version::V4, 1, 12_490, Some(12_510)),
        (Version::V4, 9, 2_490, Some(2_510)),
        (Version::V4, 40, 600, Some(620)),
    ] {
        let (alice, mut bob, _, message) = far_behind(version, archived, within);
        assert_eq!(open(&mut bob, &alice, &message), Ok(()), "{archived}");

        if let Some(beyond) = beyond {
            let (mut alice, mut bob, first, message) = far_behind(version, archived, beyond);
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
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 8);
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
}

/// The library's own bookkeeping, without a store beside it.
struct InMemory {
    device: Device,
    record: SessionRecord,
    entries: MemoryEntries,
}

impl InMemory {
    fn new(name: &str, version: Version, rng: SeededRng) -> Self {
        Self {
            device: Device::new(name, version, rng),
            record: SessionRecord::default(),
            entries: MemoryEntries::default(),
        }
    }

    fn initiate(&mut self, other: &mut Self) {
        let bundle = other.device.publish();
        let local = LocalDevice {
            address: &self.device.address,
            identity: &self.device.identity,
            registration_id: 1,
        };
        let remote = RemoteDevice {
            address: &other.device.address,
            minimum_version: self.device.minimum_version,
        };
        let trust = TrustOnFirstUse(None);
        let replaced = self
            .record
            .initiate(&local, &remote, &bundle, &trust, NOW, &mut self.device.rng)
            .unwrap();
        self.entries.forget(&replaced.sessions_dropped);
    }

    fn try_send(&mut self) -> Result<(bool, Vec<u8>), EncryptError> {
        let local = LocalDevice {
            address: &self.device.address,
            identity: &self.device.identity,
            registration_id: 1,
        };
        // Nothing of the peer is bound into what is sent but its address, if it is a service id.
        let address = ProtocolAddress::new("the other", 1).unwrap();
        let remote = RemoteDevice {
            address: &address,
            minimum_version: self.device.minimum_version,
        };
        let trust = TrustOnFirstUse(None);
        let sent =
            self.record
                .encrypt(&local, &remote, b"text", &trust, NOW, &mut self.device.rng)?;
        self.entries
            .forget_groups(&sent.session_id, &sent.entries_dropped);
        Ok((sent.is_prekey_message, sent.bytes))
    }

    fn send(&mut self) -> (bool, Vec<u8>) {
        self.try_send().unwrap()
    }

    fn receive(&mut self, from: &Device, (is_prekey, body): &(bool, Vec<u8>)) {
        let local = LocalDevice {
            address: &self.device.address,
            identity: &self.device.identity,
            registration_id: 1,
        };
        let remote = RemoteDevice {
            address: &from.address,
            minimum_version: self.device.minimum_version,
        };
        let entries = &self.entries;
        let find = |id: &SessionId, at: &EntryPosition| entries.find(id, at);
        let (trust, rng) = (TrustOnFirstUse(None), &mut self.device.rng);
        let opened = if *is_prekey {
            let message = PreKeySignalMessage::from_bytes(body).unwrap();
            self.record.decrypt_prekey(
                &local,
                &remote,
                &message,
                &self.device.store,
                &find,
                &trust,
                rng,
            )
        } else {
            let message = SignalMessage::from_bytes(body).unwrap();
            self.record
                .decrypt(&local, &remote, &message, &find, &trust, rng)
        };
        if let Ok(opened) = opened {
            self.entries.apply(&opened.changes);
        }
    }

    /// The keys in memory are those of the sessions: message keys as they count them, post-quantum keys as the storage
    /// format of Signal's library shows them.
    fn check(&self, context: &str) {
        let sessions = || {
            self.record
                .current()
                .into_iter()
                .chain(self.record.archived())
        };
        let counted: usize = sessions()
            .flat_map(|session| session.info().receiving)
            .map(|chain| chain.skipped as usize)
            .sum();
        if self.device.minimum_version == Version::V3 {
            assert_eq!(self.entries.len(), counted, "{context}");
            assert_eq!(self.entries.is_empty(), counted == 0);
            return;
        }
        let record = OfficialRecord {
            sessions: self.record.clone(),
            entries: self.entries.clone(),
        };
        let positions = Record::of(&record, SkippedKeyFormat::Seeds).entry_positions();
        let all: Vec<_> = positions.iter().flatten().collect();
        let keys = all
            .iter()
            .filter(|(group, _)| matches!(group, EntryGroup::MessageKeys(_)))
            .count();
        assert_eq!(keys, counted, "{context}");
        // The rest are chunks.
        let pages = self
            .entries
            .iter()
            .filter(|(_, (group, _), _)| matches!(group, EntryGroup::Chunks(_)))
            .count();
        assert_eq!(self.entries.len(), all.len() + pages, "{context}");
    }
}

#[test]
fn the_keys_in_memory_are_those_the_sessions_count_under_random_traffic() {
    let mut rng = SeededRng::of_test(9);
    for (run, version) in [Version::V3; 20]
        .into_iter()
        .chain([Version::V4; 3])
        .enumerate()
    {
        let mut sides = [
            InMemory::new("alice", version, rng.fork()),
            InMemory::new("bob", version, rng.fork()),
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
                if version == Version::V3 || rng.chance(10) {
                    sides[to].check(&format!("run {run}, step {step}"));
                }
            }
        }
    }
}

/// A session that a new one pushes out of the archive leaves no keys behind: who starts sessions has to learn which
/// one went.
#[test]
fn the_keys_in_memory_are_those_the_sessions_count_when_starting_a_session_drops_the_oldest() {
    for version in VERSIONS {
        let mut rng = SeededRng::of_test(10);
        let mut alice = InMemory::new("alice", version, rng.fork());
        let mut bob = InMemory::new("bob", version, rng.fork());
        alice.initiate(&mut bob);
        let first = alice.send();
        bob.receive(&alice.device, &first);
        let late = bob.send();
        let next = bob.send();
        alice.receive(&bob.device, &next);
        assert!(!alice.entries.is_empty());
        for session in 0..40 {
            alice.initiate(&mut bob);
            alice.check(&format!("{session} archived"));
        }
        assert_eq!(alice.record.archived().len(), 40);
        alice.receive(&bob.device, &late);
        assert_eq!(
            alice.record.archived().len(),
            40,
            "the oldest was still there, and is now the current one"
        );
        assert_eq!(
            alice.record.current().unwrap().info().receiving[0].skipped,
            0
        );

        // Again, and this time one more.
        let (mut alice, mut bob) = (
            InMemory::new("alice", version, rng.fork()),
            InMemory::new("bob", version, rng.fork()),
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
        assert!(alice.entries.is_empty());
    }
}

#[test]
fn a_session_put_away_sends_nothing_more_and_still_opens_what_is_on_its_way() {
    for version in VERSIONS {
        let mut rng = SeededRng::of_test(14);
        let mut alice = InMemory::new("alice", version, rng.fork());
        let mut bob = InMemory::new("bob", version, rng.fork());
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
        assert_eq!(alice.try_send(), Err(EncryptError::SessionNotFound));
        assert_eq!(alice.record.archive_current(), Default::default());
        assert_eq!(alice.record, before);
        alice.check("put away");
        // What opens on it makes it the current one again.
        alice.receive(&bob.device, &late);
        assert_eq!(alice.record.current().map(Session::id), Some(id));
        assert!(alice.record.archived().is_empty());
        alice.check("current again");

        // One put away over the limit drops the oldest with its keys.
        bob.send();
        let next = bob.send();
        alice.receive(&bob.device, &next);
        let kept = alice.entries.len();
        assert!(kept > 0);
        for _ in 0..40 {
            alice.initiate(&mut bob);
        }
        assert_eq!(alice.record.archived().len(), 40);
        let replaced = alice.record.archive_current();
        assert_eq!(replaced.sessions_dropped, [id]);
        alice.entries.forget(&replaced.sessions_dropped);
        alice.check("the oldest is gone");
    }
}

#[test]
fn an_imported_record_with_more_keys_than_a_session_keeps_goes_on_within_the_limit() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 11);
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
                let Some(mut keys) = spare.clone().filter(|_| chain.message_keys.len() < 2_000)
                else {
                    break;
                };
                keys.index = index;
                chain.message_keys.insert(0, keys);
            }
        }
        let imported = record.official();
        bob.import(&alice.address, &imported);
        assert_eq!(bob.peer(&alice.address).message_keys(), 6_000);
        // The first message that moves a chain brings the session within its limit.
        lose(&mut alice, &bob, 1);
        let next = send(&mut alice, &bob);
        open(&mut bob, &alice, &next).unwrap();
        assert_eq!(bob.peer(&alice.address).message_keys(), 4_000);
        talk(&mut alice, &mut bob);
    }
}

#[test]
fn the_key_of_a_skipped_message_is_not_used_up_by_a_forgery_at_its_place() {
    for version in VERSIONS {
        let (mut alice, mut bob) = acquainted(version, 12);
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
        let rows = bob.peer(&alice.address);
        assert_eq!((rows.message_keys(), rows.post_quantum_keys()), (0, 0));
        let session = rows.current().unwrap();
        let ratchet_key = session.info().receiving[0].ratchet_key;
        let position = (EntryGroup::MessageKeys(ratchet_key), 0);
        assert_eq!(rows.find(&session.id(), &position), EntryLookup::Absent);
    }
}
