//! Two devices whose messages are delivered, lost, reordered, repeated and damaged as the input says.

use std::collections::BTreeSet;

use kith_protocol::{PreKeySignalMessage, PublicKey, Session, SessionId, SignalMessage, Version};

use super::device::{Device, NotOpened};
use super::tape::Tape;

/// Most messages of one run, and most sessions: below every limit at which something may be lost.
const MOST_MESSAGES: usize = 400;
const MOST_SESSIONS: u32 = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waiting,
    Lost,
    Opened,
}

/// A message as it was sent.
struct Sent {
    from: usize,
    bytes: Vec<u8>,
    is_prekey_message: bool,
    /// The SignalMessage: itself, or the one inside.
    inner: Vec<u8>,
    text: Vec<u8>,
    session: SessionId,
    ratchet_key: PublicKey,
    /// The epoch of the chain its post-quantum key is from.
    epoch: Option<u64>,
    fate: Fate,
}

struct Run {
    devices: [Device; 2],
    ledger: Vec<Sent>,
    /// The chains a device has opened a message of.
    seen: BTreeSet<(usize, SessionId, PublicKey)>,
    sessions: u32,
}

/// The input: a byte of settings, then operations of one byte and their arguments.
pub(crate) fn run(data: &[u8]) {
    let mut tape = Tape(data);
    let settings = tape.byte_or_zero();
    let mut run = Run {
        devices: Device::pair(u64::from(settings >> 2), settings & 1 != 0),
        ledger: Vec::new(),
        seen: BTreeSet::new(),
        sessions: 0,
    };
    run.start(0, version(settings >> 1), true);
    while let Some(operation) = tape.byte() {
        run.step(operation, &mut tape);
    }
    run.finish(settings & 0x80 != 0);
}

const fn version(bit: u8) -> Version {
    if bit & 1 == 0 {
        Version::V4
    } else {
        Version::V3
    }
}

impl Run {
    fn step(&mut self, operation: u8, tape: &mut Tape<'_>) {
        let side = usize::from(operation >> 4 & 1);
        let flag = operation & 0x80 != 0;
        match operation & 15 {
            0 | 1 => {
                let length = usize::from(tape.byte_or_zero());
                let text: Vec<u8> = (0..length).map(|at| at as u8 ^ operation).collect();
                self.send(side, &text);
            }
            2 => {
                for _ in 0..tape.byte_or_zero() % 32 {
                    self.send(side, b"burst");
                }
            }
            // A talk in turns, each message opened at once.
            3 => {
                for turn in 0..usize::from(tape.byte_or_zero() % 64) {
                    let from = (side + turn) % 2;
                    if let Some(at) = self.send(from, b"turn") {
                        self.deliver(at, flag);
                    }
                }
            }
            4 | 5 => {
                if let Some(&at) = self.waiting(side).first() {
                    self.deliver(at, flag);
                }
            }
            6 | 7 => {
                let waiting = self.waiting(side);
                if let Some(at) = tape.place(waiting.len()) {
                    self.deliver(waiting[at], flag);
                }
            }
            8 => {
                for at in self.waiting(side) {
                    self.deliver(at, flag);
                }
            }
            9 => {
                let opened = self.of(side, Fate::Opened);
                if let Some(at) = tape.place(opened.len()) {
                    self.repeat(opened[at]);
                }
            }
            10 => {
                let waiting = self.waiting(side);
                if let Some(at) = tape.place(waiting.len()) {
                    self.ledger[waiting[at]].fate = Fate::Lost;
                }
            }
            11 | 12 => {
                if let Some(at) = tape.place(self.ledger.len()) {
                    self.damage(at, operation, tape);
                }
            }
            13 => {
                self.devices[side].restart();
                self.devices[side].check();
            }
            14 => self.start(side, version(operation >> 5), operation & 0x40 != 0),
            _ => self.devices[side].archive_current(),
        }
    }

    fn start(&mut self, side: usize, version: Version, one_time: bool) {
        if self.sessions < MOST_SESSIONS {
            self.sessions += 1;
            let id = one_time.then_some(self.sessions);
            let bundle = self.devices[1 - side].bundle(version, id);
            self.devices[side].start(&bundle);
        }
    }

    /// Messages to this side.
    fn of(&self, side: usize, fate: Fate) -> Vec<usize> {
        (0..self.ledger.len())
            .filter(|&at| self.ledger[at].from != side && self.ledger[at].fate == fate)
            .collect()
    }

    fn waiting(&self, side: usize) -> Vec<usize> {
        self.of(side, Fate::Waiting)
    }

    fn send(&mut self, from: usize, text: &[u8]) -> Option<usize> {
        if self.ledger.len() >= MOST_MESSAGES {
            return None;
        }
        let device = &mut self.devices[from];
        let has_session = device.record.current().is_some();
        let sent = device.send(text);
        assert_eq!(sent.is_ok(), has_session, "a session sends");
        let sent = sent.ok()?;
        let inner = if sent.is_prekey_message {
            let message = PreKeySignalMessage::from_bytes(&sent.bytes).expect("its own message");
            message.message().clone()
        } else {
            SignalMessage::from_bytes(&sent.bytes).expect("its own message")
        };
        let position = inner.post_quantum_position();
        assert_eq!(position.is_some(), sent.version == Version::V4);
        self.ledger.push(Sent {
            from,
            is_prekey_message: sent.is_prekey_message,
            inner: inner.as_bytes().to_vec(),
            text: text.to_vec(),
            session: sent.session_id,
            ratchet_key: *inner.ratchet_key(),
            epoch: position.map(|(epoch, _)| epoch),
            bytes: sent.bytes,
            fate: Fate::Waiting,
        });
        Some(self.ledger.len() - 1)
    }

    /// Whether the receiver must still be able to open an untouched message. It may not when five newer
    /// chains pushed out the message's, or when the post-quantum ratchet is two epochs further.
    fn must_open(&self, sent: &Sent) -> bool {
        let to = 1 - sent.from;
        let record = &self.devices[to].record;
        let session = record
            .current()
            .into_iter()
            .chain(record.archived())
            .find(|session| session.id() == sent.session);
        let Some(info) = session.map(Session::info) else {
            return sent.is_prekey_message;
        };
        let chain = (to, sent.session, sent.ratchet_key);
        let has_chain = (info.receiving.iter()).any(|it| it.ratchet_key == sent.ratchet_key);
        (has_chain || !self.seen.contains(&chain))
            && info
                .braid
                .zip(sent.epoch)
                .is_none_or(|(braid, epoch)| epoch + 2 >= braid.epoch)
    }

    /// An untouched message opens to its text.
    fn deliver(&mut self, at: usize, with_parts: bool) {
        let must_open = self.must_open(&self.ledger[at]);
        let sent = &mut self.ledger[at];
        let to = &mut self.devices[1 - sent.from];
        if with_parts {
            to.open_with_parts(&sent.bytes, sent.is_prekey_message);
        }
        match to.receive(&sent.bytes, sent.is_prekey_message) {
            Ok(opened) => {
                assert!(opened.plaintext == sent.text, "another text");
                assert_eq!(opened.changes.session_id, sent.session);
                sent.fate = Fate::Opened;
                self.seen
                    .insert((1 - sent.from, sent.session, sent.ratchet_key));
            }
            Err(error) => {
                assert!(!must_open, "message {at} did not open: {error:?}");
                sent.fate = Fate::Lost;
            }
        }
    }

    /// A message that was opened is refused.
    fn repeat(&mut self, at: usize) {
        let sent = &self.ledger[at];
        let opened = self.devices[1 - sent.from].receive(&sent.bytes, sent.is_prekey_message);
        let refused = matches!(opened, Err(NotOpened::Decrypt(_)));
        assert!(refused, "message {at} opened twice: {opened:?}");
    }

    /// Damages a copy of a message and delivers that. It is refused, unless the damage is in what Signal leaves
    /// unauthenticated around the message inside.
    fn damage(&mut self, at: usize, operation: u8, tape: &mut Tape<'_>) {
        let original = &self.ledger[at];
        let to = 1 - original.from;
        let mut bytes = original.bytes.clone();
        let mut is_prekey_message = original.is_prekey_message;
        match operation >> 5 {
            // Flipped bits.
            0..=3 => {
                for _ in 0..=operation >> 5 {
                    if let Some(place) = tape.place(bytes.len()) {
                        bytes[place] ^= tape.byte_or_zero();
                    }
                }
            }
            // Cut short.
            4 => bytes.truncate(tape.place(bytes.len()).unwrap_or(0)),
            // Something in the middle.
            5 => {
                let place = tape.place(bytes.len()).unwrap_or(0);
                let length = usize::from(tape.byte_or_zero() & 31);
                let inserted = tape.bytes(length);
                bytes.splice(place..place, inserted.iter().copied());
            }
            // The front of one and the back of another.
            6 => {
                let other = tape.place(self.ledger.len()).unwrap_or(0);
                let place = tape.place(bytes.len()).unwrap_or(0);
                let other = &self.ledger[other].bytes;
                bytes.truncate(place);
                bytes.extend_from_slice(&other[place.min(other.len())..]);
            }
            // The message inside alone, another inside, or taken for the other kind.
            _ if is_prekey_message => {
                let place = tape.place(self.ledger.len()).unwrap_or(0);
                let other = &self.ledger[place].inner;
                let field = |bytes: &[u8]| {
                    let mut out = Vec::new();
                    super::forge::put_bytes(&mut out, 4, bytes);
                    out
                };
                let (old, new) = (field(&original.inner), field(other));
                let found = bytes.windows(old.len()).position(|window| window == old);
                let found = found.expect("the message inside");
                bytes.splice(found..found + old.len(), new);
            }
            _ => is_prekey_message = true,
        }
        if (self.ledger.iter()).any(|sent| sent.from != to && sent.bytes == bytes) {
            return;
        }
        let Ok(opened) = self.devices[to].receive(&bytes, is_prekey_message) else {
            return;
        };
        assert!(is_prekey_message, "a damaged message opened");
        let message = PreKeySignalMessage::from_bytes(&bytes).expect("it was opened");
        let inner = message.message().as_bytes();
        let original = self
            .ledger
            .iter_mut()
            .find(|sent| sent.from != to && sent.inner == inner)
            .expect("a message that nobody sent opened");
        assert!(
            original.fate != Fate::Opened,
            "a damaged copy of an opened message opened"
        );
        assert!(opened.plaintext == original.text, "another text");
        original.fate = Fate::Opened;
        self.seen
            .insert((to, original.session, original.ratchet_key));
    }

    /// What is still under way arrives, in or against the order; nothing opens again, nothing is left behind.
    fn finish(mut self, reversed: bool) {
        for side in [0, 1] {
            let mut waiting = self.waiting(side);
            if reversed {
                waiting.reverse();
            }
            for at in waiting {
                self.deliver(at, false);
            }
            for at in self.of(side, Fate::Opened).into_iter().take(8) {
                self.repeat(at);
            }
            self.devices[side].restart();
            self.devices[side].check();
        }
    }
}
