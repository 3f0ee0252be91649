//! A simulated network between any engines, driven by a seed.
//!
//! It decides who speaks, what arrives when, what is lost, repeated or damaged, and who restarts. It holds every
//! party to this: a delivered message opens once, with the right text; a repeated one is refused as a duplicate; a
//! damaged one is refused; a refusal changes nothing; nothing delivered is lost.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;

use super::SeededRng;
use super::peer::{Bundle, Message, MessageType, PeerAddress};
use super::protobuf::PostQuantumHeader;

/// Receiving chains an engine keeps per session; Signal keeps five. A message from an older one can no longer be
/// opened, so the network delivers it before a newer chain would push its own out.
const CHAINS_KEPT: usize = 5;

/// Events kept for the report of a violation.
const TRACE_LENGTH: usize = 40;

/// Why a party refused. The names are those of the library's error reasons.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    SessionNotFound,
    Duplicate,
    Tampered,
    OutOfSync,
    KeyNotFound,
    UntrustedIdentity,
    UnknownPreKey,
    Malformed,
    UnsupportedVersion,
    TooLarge,
    CorruptedState,
    Other(String),
}

/// One device on the network. Other devices are named by their index, see [`address`].
pub(crate) trait Party {
    /// What others need to start a session with this device.
    fn bundle(&mut self) -> Bundle;

    /// Starts a session, beside any that exists.
    fn start_session(&mut self, with: usize, bundle: &Bundle) -> Result<(), Reason>;

    /// Encrypts a message.
    fn send(&mut self, to: usize, plaintext: &[u8]) -> Result<Message, Reason>;

    /// Opens a message.
    fn receive(&mut self, from: usize, message: &Message) -> Result<Vec<u8>, Reason>;

    /// Forgets all that is not stored, and loads what is.
    fn restart(&mut self);

    /// The stored bytes, if they can be compared.
    fn stored(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Whether a prekey message may be damaged outside the ordinary message it contains.
    fn survives_damaged_outer_fields(&self) -> bool {
        true
    }
}

/// The address of the party at `index`.
pub(crate) fn address(index: usize) -> PeerAddress {
    PeerAddress::new(&format!("00000000-0000-4000-8000-{index:012x}"), 1)
}

/// How a network treats its messages. Chances are percentages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    pub(crate) name: &'static str,
    /// Both sides start a session before they hear from each other, instead of the one with the lower index.
    pub(crate) both_start: bool,
    /// Most messages sent in a row.
    pub(crate) burst: usize,
    /// Most messages under way from one party to another.
    pub(crate) under_way: usize,
    /// The receiver of a message is the next to send.
    pub(crate) reply: u8,
    /// A delivery takes any message instead of the oldest.
    pub(crate) reorder: u8,
    /// A message is lost.
    pub(crate) drop: u8,
    /// A message arrives two or three times.
    pub(crate) duplicate: u8,
    /// A damaged copy arrives first.
    pub(crate) tamper: u8,
    /// At a step, a party goes offline for a while.
    pub(crate) offline: u8,
    /// At a step, a party restarts.
    pub(crate) restart: u8,
    /// At a step, a party starts another session.
    pub(crate) renew: u8,
}

impl Behaviour {
    /// One message, one answer.
    pub(crate) const PING_PONG: Self = Self {
        name: "ping-pong",
        both_start: false,
        burst: 1,
        under_way: 1,
        reply: 100,
        reorder: 0,
        drop: 0,
        duplicate: 0,
        tamper: 0,
        offline: 0,
        restart: 0,
        renew: 0,
    };

    /// Many messages in a row.
    pub(crate) const BURSTS: Self = Self {
        name: "bursts",
        burst: 20,
        under_way: 100,
        reply: 30,
        ..Self::PING_PONG
    };

    /// Parties that are away and catch up.
    pub(crate) const OFFLINE: Self = Self {
        name: "offline",
        offline: 5,
        ..Self::BURSTS
    };

    /// Messages that overtake one another.
    pub(crate) const REORDER: Self = Self {
        name: "reorder",
        reorder: 80,
        ..Self::BURSTS
    };

    /// Lost messages.
    pub(crate) const DROP: Self = Self {
        name: "drop",
        drop: 30,
        ..Self::BURSTS
    };

    /// Repeated messages.
    pub(crate) const DUPLICATE: Self = Self {
        name: "duplicate",
        duplicate: 30,
        ..Self::BURSTS
    };

    /// Damaged messages.
    pub(crate) const TAMPER: Self = Self {
        name: "tamper",
        tamper: 30,
        ..Self::BURSTS
    };

    /// Restarts from the stored bytes.
    pub(crate) const RESTART: Self = Self {
        name: "restart",
        restart: 20,
        ..Self::BURSTS
    };

    /// Both sides start, and start again now and then.
    pub(crate) const SIMULTANEOUS: Self = Self {
        name: "simultaneous",
        both_start: true,
        renew: 3,
        ..Self::BURSTS
    };

    /// All at once.
    pub(crate) const CHAOS: Self = Self {
        name: "chaos",
        both_start: true,
        burst: 12,
        under_way: 60,
        reply: 40,
        reorder: 50,
        drop: 10,
        duplicate: 10,
        tamper: 10,
        offline: 2,
        restart: 5,
        renew: 1,
    };

    /// Two people who talk, over a network that is not kind to them, and stay in one session.
    pub(crate) const CONVERSATION: Self = Self {
        name: "conversation",
        burst: 8,
        under_way: 24,
        reply: 80,
        reorder: 25,
        drop: 8,
        duplicate: 5,
        tamper: 5,
        offline: 1,
        restart: 3,
        ..Self::PING_PONG
    };

    /// Every behaviour.
    pub(crate) const ALL: [Self; 10] = [
        Self::PING_PONG,
        Self::BURSTS,
        Self::OFFLINE,
        Self::REORDER,
        Self::DROP,
        Self::DUPLICATE,
        Self::TAMPER,
        Self::RESTART,
        Self::SIMULTANEOUS,
        Self::CHAOS,
    ];
}

/// What a party did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No session could be started.
    CannotStart(Reason),
    /// A message could not be sent.
    CannotSend(Reason),
    /// An untouched message did not open.
    NotOpened(Reason),
    /// A message opened with another text.
    WrongText,
    /// A message opened a second time.
    OpenedTwice,
    /// A repeated message was refused for another reason.
    DuplicateRefusedAs(Reason),
    /// A damaged message opened.
    DamageOpened,
    /// A refused message changed the stored bytes.
    RefusalChangedState(Reason),
    /// At the end, messages were neither opened nor dropped.
    Lost(usize),
}

/// The report of a fault, with all that is needed to see it again.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) fault: Fault,
    behaviour: &'static str,
    seed: u64,
    step: usize,
    trace: Vec<String>,
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:?} at step {} of {}, network seed {}. Before it:",
            self.fault, self.step, self.behaviour, self.seed
        )?;
        self.trace
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// What happened in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) sent: usize,
    pub(crate) opened: usize,
    pub(crate) dropped: usize,
    pub(crate) duplicates_refused: usize,
    pub(crate) tampered_refused: BTreeMap<Reason, usize>,
    /// Damaged in a field that Signal leaves unauthenticated, and opened.
    pub(crate) tampered_opened: usize,
    pub(crate) prekey_messages: usize,
    pub(crate) sessions_started: usize,
    pub(crate) turns: usize,
    pub(crate) overtaken: usize,
    pub(crate) offline_periods: usize,
    pub(crate) restarts: usize,
    pub(crate) longest_queue: usize,
    /// Epochs of the post-quantum ratchet completed in the session that got furthest, and in all of them.
    pub(crate) most_epochs: u64,
    pub(crate) all_epochs: u64,
    /// A digest of every event: equal runs have equal digests.
    pub(crate) digest: u64,
}

impl Summary {
    /// The sum of two runs.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.opened += other.opened;
        self.dropped += other.dropped;
        self.duplicates_refused += other.duplicates_refused;
        for (reason, count) in &other.tampered_refused {
            *self.tampered_refused.entry(reason.clone()).or_default() += count;
        }
        self.tampered_opened += other.tampered_opened;
        self.prekey_messages += other.prekey_messages;
        self.sessions_started += other.sessions_started;
        self.turns += other.turns;
        self.overtaken += other.overtaken;
        self.offline_periods += other.offline_periods;
        self.restarts += other.restarts;
        self.longest_queue = self.longest_queue.max(other.longest_queue);
        self.most_epochs = self.most_epochs.max(other.most_epochs);
        self.all_epochs += other.all_epochs;
        self.digest ^= other.digest;
    }

    /// How many damaged messages were refused.
    pub(crate) fn tampered(&self) -> usize {
        self.tampered_refused.values().sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent ({} prekey), {} opened, {} dropped, {} duplicates and {} damaged refused, {} overtaken, \
             {} turns, {} sessions, {} offline periods, {} restarts, {} waiting at most, {} epochs ({} in one session)",
            self.sent,
            self.prekey_messages,
            self.opened,
            self.dropped,
            self.duplicates_refused,
            self.tampered(),
            self.overtaken,
            self.turns,
            self.sessions_started,
            self.offline_periods,
            self.restarts,
            self.longest_queue,
            self.all_epochs,
            self.most_epochs,
        )
    }
}

/// A message as it was sent.
struct Sent {
    from: usize,
    to: usize,
    text: Vec<u8>,
    message: Message,
    /// Counts the sender's turns, and so bounds its ratchet steps from above.
    turn: usize,
    /// Which session it belongs to, by the number of its start.
    session: usize,
    /// Field 5 of a message of version 4.
    header: Option<PostQuantumHeader>,
    opened: bool,
}

/// One direction between two parties.
#[derive(Clone, Copy, Default)]
struct Link {
    has_session: bool,
    /// Something was opened since the last message was sent, so the next one may use another ratchet key.
    turned: bool,
    turn: usize,
    newest_delivered: usize,
    /// The session the sender sends on: the one it started or opened a message of last.
    session: usize,
}

/// The network: parties, what is under way, and the ledger.
pub(crate) struct Network {
    parties: Vec<Box<dyn Party>>,
    behaviour: Behaviour,
    rng: SeededRng,
    links: Vec<Vec<Link>>,
    ledger: Vec<Sent>,
    /// Positions in the ledger, one per copy under way.
    under_way: Vec<usize>,
    offline_until: Vec<usize>,
    next_sender: Option<(usize, usize)>,
    /// For each party and session, the highest epoch its post-quantum ratchet may be in.
    reached: BTreeMap<(usize, usize), u64>,
    step: usize,
    trace: VecDeque<String>,
    summary: Summary,
}

impl Network {
    /// A network of parties that have no sessions yet.
    pub(crate) fn new(parties: Vec<Box<dyn Party>>, behaviour: Behaviour, rng: SeededRng) -> Self {
        let count = parties.len();
        assert!(count >= 2, "a network has at least two parties");
        Self {
            parties,
            behaviour,
            rng,
            links: vec![vec![Link::default(); count]; count],
            ledger: Vec::new(),
            under_way: Vec::new(),
            offline_until: vec![0; count],
            next_sender: None,
            reached: BTreeMap::new(),
            step: 0,
            trace: VecDeque::new(),
            summary: Summary {
                digest: 0xcbf2_9ce4_8422_2325,
                ..Summary::default()
            },
        }
    }

    /// Runs until `messages` were sent, delivers the rest, and has everyone talk once more undisturbed.
    pub(crate) fn run(mut self, messages: usize) -> Result<Summary, Violation> {
        if self.behaviour.both_start {
            for (from, to) in pairs(self.parties.len()) {
                self.send(from, to)?;
            }
        }
        while self.summary.sent < messages {
            self.step += 1;
            self.disturb()?;
            match self.deliverable() {
                Some(copy) if self.rng.chance(50) => self.deliver(copy)?,
                found => {
                    let spoke = self.speak(messages)?;
                    if let (false, Some(copy)) = (spoke, found) {
                        self.deliver(copy)?;
                    }
                }
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Result<Summary, Violation> {
        self.offline_until.fill(0);
        self.behaviour.drop = 0;
        self.drain()?;

        self.behaviour = Behaviour {
            name: self.behaviour.name,
            ..Behaviour::PING_PONG
        };
        let count = self.parties.len();
        for party in 0..count {
            self.restart(party);
        }
        for round in 0..2 {
            for (from, to) in pairs(count) {
                // Someone who never heard of the other may still have to begin.
                if self.links[from][to].has_session || round == 1 {
                    self.send(from, to)?;
                    self.drain()?;
                }
            }
        }

        let lost = self.ledger.iter().filter(|sent| !sent.opened).count();
        let lost = lost - self.summary.dropped;
        if lost > 0 || self.summary.opened + self.summary.dropped != self.summary.sent {
            return Err(self.violation(Fault::Lost(lost)));
        }
        let mut epochs: BTreeMap<usize, u64> = BTreeMap::new();
        for sent in &self.ledger {
            if let Some(header) = sent.header {
                let epoch = epochs.entry(sent.session).or_insert(1);
                *epoch = header.epoch.max(*epoch);
            }
        }
        self.summary.most_epochs = epochs.values().max().map_or(0, |epoch| epoch - 1);
        self.summary.all_epochs = epochs.values().map(|epoch| epoch - 1).sum();
        Ok(self.summary)
    }

    fn drain(&mut self) -> Result<(), Violation> {
        while let Some(copy) = self.deliverable() {
            self.step += 1;
            self.deliver(copy)?;
        }
        Ok(())
    }

    /// Lets a party go offline, restart or start another session.
    fn disturb(&mut self) -> Result<(), Violation> {
        let count = self.parties.len();
        if self.rng.chance(self.behaviour.offline) {
            let party = self.rng.below(count);
            if self.is_online(party) {
                self.offline_until[party] = self.step + 10 + self.rng.below(60);
                self.summary.offline_periods += 1;
                self.event(format!("{party} goes offline"));
            }
        }
        if self.rng.chance(self.behaviour.restart) {
            let party = self.rng.below(count);
            self.restart(party);
        }
        if self.rng.chance(self.behaviour.renew) {
            let (from, to) = self.any_pair();
            if self.is_online(from) && self.links[from][to].has_session {
                self.start_session(from, to)?;
            }
        }
        Ok(())
    }

    fn restart(&mut self, party: usize) {
        self.parties[party].restart();
        self.summary.restarts += 1;
        self.event(format!("{party} restarts"));
    }

    fn start_session(&mut self, from: usize, to: usize) -> Result<(), Violation> {
        self.event(format!("{from} starts a session with {to}"));
        let bundle = self.parties[to].bundle();
        self.parties[from]
            .start_session(to, &bundle)
            .map_err(|reason| self.violation(Fault::CannotStart(reason)))?;
        self.summary.sessions_started += 1;
        let link = &mut self.links[from][to];
        link.has_session = true;
        link.turned = true;
        link.session = self.summary.sessions_started;
        Ok(())
    }

    /// Sends a burst. Says whether anyone could speak.
    fn speak(&mut self, messages: usize) -> Result<bool, Violation> {
        let (from, to) = match self.next_sender.take() {
            Some(pair) if self.rng.chance(self.behaviour.reply) => pair,
            _ => self.any_pair(),
        };
        if !self.is_online(from) || !(self.links[from][to].has_session || from < to) {
            return Ok(false);
        }
        let burst = 1 + self.rng.below(self.behaviour.burst);
        let mut spoke = false;
        for _ in 0..burst {
            let waiting = self.waiting(from, to);
            if waiting >= self.behaviour.under_way || self.summary.sent == messages {
                break;
            }
            self.send(from, to)?;
            spoke = true;
        }
        Ok(spoke)
    }

    fn send(&mut self, from: usize, to: usize) -> Result<(), Violation> {
        if !self.links[from][to].has_session {
            self.start_session(from, to)?;
        }
        while let Some(copy) = self.about_to_expire(from, to) {
            self.deliver(copy)?;
        }
        let number = self.ledger.len();
        let padding = self.rng.below(200);
        let mut text = format!("message {number} from {from} to {to} ").into_bytes();
        text.extend(self.rng.bytes(padding));
        let message = self.parties[from]
            .send(to, &text)
            .map_err(|reason| self.violation(Fault::CannotSend(reason)))?;

        let link = &mut self.links[from][to];
        if link.turned {
            link.turned = false;
            link.turn += 1;
            self.summary.turns += 1;
        }
        let (turn, session) = (link.turn, link.session);
        let header = match message.kind {
            MessageType::PreKey => PostQuantumHeader::of_prekey(&message.body),
            MessageType::Ordinary => PostQuantumHeader::of_ordinary(&message.body),
        };
        self.summary.sent += 1;
        if message.kind == MessageType::PreKey {
            self.summary.prekey_messages += 1;
        }
        self.ledger.push(Sent {
            from,
            to,
            text,
            message,
            turn,
            session,
            header,
            opened: false,
        });
        if self.rng.chance(self.behaviour.drop) {
            self.summary.dropped += 1;
            self.event(format!("{from} sends {number} to {to}, which is lost"));
            return Ok(());
        }
        let copies = if self.rng.chance(self.behaviour.duplicate) {
            2 + self.rng.below(2)
        } else {
            1
        };
        self.under_way.extend(std::iter::repeat_n(number, copies));
        let waiting = self.waiting(from, to);
        self.summary.longest_queue = self.summary.longest_queue.max(waiting);
        self.event(format!("{from} sends {number} to {to}, {copies} copies"));
        Ok(())
    }

    /// The next copy to deliver, as a position in `under_way`.
    fn deliverable(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.under_way.len())
            .filter(|&copy| self.is_online(self.ledger[self.under_way[copy]].to))
            .collect();
        if open.is_empty() {
            return None;
        }
        let chosen = if self.rng.chance(self.behaviour.reorder) {
            *self.rng.pick(&open)
        } else {
            open[0]
        };
        let sent = &self.ledger[self.under_way[chosen]];
        let (from, to, turn) = (sent.from, sent.to, sent.turn);
        let due = open
            .into_iter()
            .filter(|&copy| {
                let other = &self.ledger[self.under_way[copy]];
                other.from == from && other.to == to && other.turn + CHAINS_KEPT <= turn + 1
            })
            .min_by_key(|&copy| self.ledger[self.under_way[copy]].turn);
        Some(due.unwrap_or(chosen))
    }

    /// A copy under way to `by` that will no longer open once `by` has sent its next message to `from`: sending in an epoch
    /// of the post-quantum ratchet ends what was sent two epochs before. Only what `by` has heard can have moved it on.
    fn about_to_expire(&self, by: usize, from: usize) -> Option<usize> {
        let session = self.links[by][from].session;
        let reached = *self.reached.get(&(by, session))?;
        self.under_way.iter().position(|&number| {
            let sent = &self.ledger[number];
            (sent.from, sent.to, sent.session) == (from, by, session)
                && sent.header.is_some_and(|header| header.epoch + 1 < reached)
        })
    }

    fn deliver(&mut self, copy: usize) -> Result<(), Violation> {
        let number = self.under_way[copy];
        if self.rng.chance(self.behaviour.tamper) {
            self.deliver_damaged(number)?;
        }
        self.under_way.remove(copy);
        let (from, to) = (self.ledger[number].from, self.ledger[number].to);
        if number < self.links[from][to].newest_delivered {
            self.summary.overtaken += 1;
        }
        let newest = &mut self.links[from][to].newest_delivered;
        *newest = (*newest).max(number);

        let before = self.parties[to].stored();
        let outcome = self.parties[to].receive(from, &self.ledger[number].message);
        self.event(format!("{to} receives {number}: {}", verdict(&outcome)));
        match outcome {
            Ok(_) if self.ledger[number].opened => Err(self.violation(Fault::OpenedTwice)),
            Ok(text) => self.opened(number, &text),
            Err(Reason::Duplicate) if self.ledger[number].opened => {
                self.summary.duplicates_refused += 1;
                self.unchanged(to, before, Reason::Duplicate)
            }
            Err(reason) if self.ledger[number].opened => {
                Err(self.violation(Fault::DuplicateRefusedAs(reason)))
            }
            Err(reason) => Err(self.violation(Fault::NotOpened(reason))),
        }
    }

    fn deliver_damaged(&mut self, number: usize) -> Result<(), Violation> {
        let Sent {
            from,
            to,
            ref message,
            ..
        } = self.ledger[number];
        let outer_too = self.parties[to].survives_damaged_outer_fields();
        let (damaged, authenticated) = damage(&mut self.rng, message, outer_too);
        let before = self.parties[to].stored();
        let outcome = self.parties[to].receive(from, &damaged);
        self.event(format!(
            "{to} receives {number} damaged: {}",
            verdict(&outcome)
        ));
        match outcome {
            Err(reason) => {
                *self
                    .summary
                    .tampered_refused
                    .entry(reason.clone())
                    .or_default() += 1;
                self.unchanged(to, before, reason)
            }
            Ok(_) if authenticated => Err(self.violation(Fault::DamageOpened)),
            Ok(_) if self.ledger[number].opened => Err(self.violation(Fault::OpenedTwice)),
            Ok(text) => {
                self.summary.tampered_opened += 1;
                self.opened(number, &text)
            }
        }
    }

    fn opened(&mut self, number: usize, text: &[u8]) -> Result<(), Violation> {
        let sent = &mut self.ledger[number];
        if sent.text != text {
            return Err(self.violation(Fault::WrongText));
        }
        sent.opened = true;
        let answer = (sent.to, sent.from);
        let session = sent.session;
        if let Some(header) = sent.header {
            let ends = u64::from(header.payload == PostQuantumHeader::CT2);
            let reached = self.reached.entry((answer.0, session)).or_insert(1);
            *reached = (header.epoch + ends).max(*reached);
        }
        self.summary.opened += 1;
        let link = &mut self.links[answer.0][answer.1];
        link.has_session = true;
        link.turned = true;
        link.session = session;
        self.next_sender = Some(answer);
        Ok(())
    }

    fn unchanged(
        &mut self,
        party: usize,
        before: Option<Vec<u8>>,
        reason: Reason,
    ) -> Result<(), Violation> {
        if self.parties[party].stored() == before {
            Ok(())
        } else {
            Err(self.violation(Fault::RefusalChangedState(reason)))
        }
    }

    fn any_pair(&mut self) -> (usize, usize) {
        let count = self.parties.len();
        let from = self.rng.below(count);
        let to = (from + 1 + self.rng.below(count - 1)) % count;
        (from, to)
    }

    fn is_online(&self, party: usize) -> bool {
        self.offline_until[party] <= self.step
    }

    fn waiting(&self, from: usize, to: usize) -> usize {
        self.under_way
            .iter()
            .map(|&number| &self.ledger[number])
            .filter(|sent| sent.from == from && sent.to == to)
            .count()
    }

    fn event(&mut self, line: String) {
        for byte in line.bytes() {
            self.summary.digest =
                (self.summary.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.trace.len() == TRACE_LENGTH {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{}: {line}", self.step));
    }

    fn violation(&self, fault: Fault) -> Violation {
        Violation {
            fault,
            behaviour: self.behaviour.name,
            seed: self.rng.seed(),
            step: self.step,
            trace: self.trace.iter().cloned().collect(),
        }
    }
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count)
        .flat_map(move |from| (0..count).map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
}

fn verdict(outcome: &Result<Vec<u8>, Reason>) -> String {
    match outcome {
        Ok(_) => "opened".to_owned(),
        Err(reason) => format!("refused as {reason:?}"),
    }
}

/// A copy that differs, and whether the difference lies where a MAC covers it.
fn damage(rng: &mut SeededRng, message: &Message, outer_too: bool) -> (Message, bool) {
    let mut damaged = message.clone();
    let whole = 0..message.body.len();
    let inner = match message.kind {
        MessageType::Ordinary => whole.clone(),
        MessageType::PreKey => inner_message(&message.body).unwrap_or_else(|| whole.clone()),
    };
    let range = if outer_too {
        whole.clone()
    } else {
        inner.clone()
    };
    let at = range.start + rng.below(range.len());
    match rng.below(4) {
        0 if inner == whole => damaged.body.truncate(at),
        1 if inner == whole => {
            let extra = 1 + rng.below(20);
            damaged.body.extend(rng.bytes(extra));
        }
        2 => {
            let end = range.end.min(at + 8);
            for byte in &mut damaged.body[at..end] {
                *byte ^= 0x55;
            }
            // A run that begins outside may be all that is damaged inside.
            return (damaged, inner.contains(&at) || inner.contains(&(end - 1)));
        }
        _ => damaged.body[at] ^= 1 << rng.below(8),
    }
    (damaged, inner.contains(&at))
}

/// Where a prekey message holds the ordinary one: field 4, after the version byte.
fn inner_message(body: &[u8]) -> Option<Range<usize>> {
    let mut at = 1;
    loop {
        let tag = varint(body, &mut at)?;
        match tag & 7 {
            0 => {
                varint(body, &mut at)?;
            }
            2 => {
                let length = varint(body, &mut at)?;
                let end = at.checked_add(length).filter(|&end| end <= body.len())?;
                if tag >> 3 == 4 {
                    return Some(at..end);
                }
                at = end;
            }
            _ => return None,
        }
    }
}

fn varint(body: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = *body.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
