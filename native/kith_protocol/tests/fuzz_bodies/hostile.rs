//! A peer that holds the keys of the session and says what it likes: every message authenticates.

use super::device::{Device, NotOpened, Receiver, check_session, open};
use super::forge::{Forged, Known, On, varint};
use super::stages::STAGES;
use super::tape::Tape;
use kith_protocol::{EntryLookup, MemoryEntries, Session, SessionRecord, Version};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

/// How far ahead messages are.
const JUMPS: [u32; 8] = [0, 1, 2, 5, 40, 1_999, 2_001, 25_001];

const MOST_STEPS: usize = 48;

/// The steps that only authentic keys and ciphertexts lead to.
const NEEDS_AUTHENTIC: [(&str, &str); 5] = [
    ("NoHeaderReceived", "HeaderReceived"),
    ("Ct1Sampled", "EkReceivedCt1Sampled"),
    ("Ct1Sampled", "Ct2Sampled"),
    ("Ct1Acknowledged", "Ct2Sampled"),
    ("EkSentCt1Received", "NoHeaderReceived"),
];

fn braid_state(device: &Device) -> &'static str {
    let braid = device.record.current().and_then(|it| it.info().braid);
    braid.map_or("", |it| it.state)
}

/// The input: a byte for the stage, then operations of one byte and their arguments.
pub(crate) fn run(data: &[u8]) {
    let mut tape = Tape(data);
    let stage = STAGES.get(tape.byte_or_zero());
    let (mut victim, mut peer) = (stage.device.clone(), stage.peer.clone());
    let mut forged: Vec<Vec<u8>> = Vec::new();
    for _ in 0..MOST_STEPS {
        let Some(operation) = tape.byte() else { break };
        match operation % 8 {
            0..=2 => {
                let message = forge(&victim, operation, &mut tape, None);
                let before = braid_state(&victim);
                receive(&mut victim, message, &mut forged);
                // Its chunks are none of anything the honest peer made.
                let after = braid_state(&victim);
                assert!(
                    !NEEDS_AUTHENTIC.contains(&(before, after)),
                    "a wrong chunk led from {before} to {after}"
                );
            }
            // What the honest peer would send, with other bytes in it.
            3 | 4 => {
                let Ok(sent) = peer.send(b"honest") else {
                    continue;
                };
                let field = post_quantum_field(&sent.bytes);
                let message = forge(&victim, operation, &mut tape, field);
                receive(&mut victim, message, &mut forged);
            }
            5 => {
                let Ok(sent) = peer.send(b"honest") else {
                    continue;
                };
                let _ = victim.receive(&sent.bytes, sent.is_prekey_message);
            }
            6 => {
                if let Ok(sent) = victim.send(b"unaware")
                    && operation & 8 == 0
                {
                    let _ = peer.receive(&sent.bytes, sent.is_prekey_message);
                }
            }
            _ => {
                victim.restart();
                if let Some(at) = tape.place(forged.len()) {
                    let opened = victim.receive(&forged[at], false);
                    assert!(opened.is_err(), "a message opened twice");
                }
            }
        }
    }
    victim.restart();
    victim.check();
}

fn receive(victim: &mut Device, message: Vec<u8>, forged: &mut Vec<Vec<u8>>) {
    if let Ok(opened) = victim.receive(&message, false) {
        assert_eq!(opened.plaintext, b"forged");
        forged.push(message);
    }
}

/// A message to the current session: to one of its chains or on a new one, with a post-quantum part of any
/// content whose key is the right one.
fn forge(victim: &Device, operation: u8, tape: &mut Tape<'_>, honest: Option<Vec<u8>>) -> Vec<u8> {
    let session = victim.record.current().expect("a stage has a session");
    let known = Known::of(session);
    let shape = tape.byte_or_zero();
    let on = if shape & 3 == 3 {
        On::New(shape)
    } else {
        On::Chain(
            known
                .chains
                .len()
                .saturating_sub(1 + usize::from(shape & 3)),
        )
    };
    let ahead = JUMPS[usize::from(shape >> 2 & 7)];
    let field = match honest {
        _ if session.version() == Version::V3 => None,
        Some(mut field) => {
            for _ in 0..operation >> 6 {
                if let Some(at) = tape.place(field.len()) {
                    field[at] ^= tape.byte_or_zero();
                }
            }
            Some(field)
        }
        None => Some(any_field(session, &known, shape, tape)),
    };
    known.forge(&Forged {
        on,
        ahead,
        plaintext: b"forged",
        post_quantum: field.as_deref(),
        position: field.as_deref().and_then(position).flatten(),
        addresses: None,
    })
}

/// A post-quantum part near what the session expects.
fn any_field(session: &Session, known: &Known, shape: u8, tape: &mut Tape<'_>) -> Vec<u8> {
    let kind = tape.byte_or_zero();
    let epoch = session.info().braid.map_or(1, |braid| braid.epoch);
    let epoch = match kind >> 4 & 7 {
        0 => epoch.wrapping_sub(1),
        1 => epoch.wrapping_add(1),
        2 => epoch.wrapping_sub(2),
        3 => u64::from(tape.number()) << 31,
        _ => epoch,
    };
    let next = known
        .epochs
        .iter()
        .find(|it| Some(it.number) == epoch.checked_sub(1))
        .map_or(0, |it| it.index);
    let jump = JUMPS[usize::from(shape >> 5)];
    let index = if kind & 0x80 == 0 {
        next.saturating_add(1 + jump)
    } else {
        next.saturating_sub(jump)
    };
    let mut field = vec![1];
    varint(&mut field, epoch);
    varint(&mut field, index.into());
    field.push(kind & 7);
    let chunk = u64::from(tape.byte_or_zero());
    varint(
        &mut field,
        if chunk & 0x80 == 0 { chunk } else { chunk << 8 },
    );
    let data = tape.bytes(4);
    field.extend((0..32).map(|at| data.get(at & 3).copied().unwrap_or(0)));
    field
}

/// Field 5 of a SignalMessage, or of the one inside a PreKeySignalMessage, as the engine writes it.
pub(crate) fn post_quantum_field(message: &[u8]) -> Option<Vec<u8>> {
    let mut rest = Tape(message.get(1..)?);
    loop {
        let tag = rest.byte()?;
        let number = take_varint(&mut rest)?;
        if tag & 7 == 2 {
            let content = rest.bytes(usize::try_from(number).ok()?);
            match tag >> 3 {
                4 if content.first() == Some(&0x44) && content.len() > 80 => {
                    return post_quantum_field(content);
                }
                5 => return Some(content.to_vec()),
                _ => {}
            }
        }
    }
}

fn take_varint(rest: &mut Tape<'_>) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let byte = rest.byte()?;
        if place == 9 && byte & 0x7e != 0 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The place of the key of a post-quantum part, read apart from the library: nothing for bytes that are none,
/// and no place for one that mixes no key.
pub(crate) fn position(field: &[u8]) -> Option<Option<(u64, u32)>> {
    let mut rest = Tape(field);
    if rest.byte()? != 1 {
        return None;
    }
    let epoch = take_varint(&mut rest).filter(|&epoch| epoch > 0)?;
    let index = u32::try_from(take_varint(&mut rest)?).ok()?;
    match rest.byte()? {
        0 | 4 => {}
        1 | 2 | 3 | 5 | 6 => {
            u16::try_from(take_varint(&mut rest)?).ok()?;
            if rest.bytes(32).len() < 32 {
                return None;
            }
        }
        _ => return None,
    }
    Some(((epoch, index) != (1, 0)).then_some((epoch - 1, index)))
}

/// Sends and opens on any session, one with keys nobody agreed on included. `check` holds it to its stored form.
pub(crate) fn exercise(session: &Session, entries: &MemoryEntries) {
    let stage = &STAGES.version_3.device;
    let receiver = Receiver {
        address: &stage.address,
        peer: &stage.peer,
        identity: &stage.identity,
        keys: &stage.keys,
    };
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let mut device = stage.clone();
    device.record = SessionRecord::from_parts(Some(session.clone()), Some(Vec::new()));
    device.entries = entries.clone();
    for kind in 0..9_u8 {
        if kind % 3 == 0 {
            let _ = device.send(b"from any state");
            check_session(device.record.current().expect("it is still there"));
        }
        let session = device.record.current().expect("it is still there");
        let known = Known::of(session);
        let script = [
            // Two in the newest chain, one in a new one, one skipping.
            [0, 0x20, 3, 4][usize::from(kind & 3)],
            // The epoch it is in, twice the next one.
            if kind < 7 { 0x70 | kind } else { 0x10 },
            kind,
            kind,
        ];
        let mut tape = Tape(&script);
        let shape = tape.byte_or_zero();
        let field = (session.version() == Version::V4)
            .then(|| any_field(session, &known, shape & 0x1f, &mut tape));
        let message = known.forge(&Forged {
            on: if shape & 3 == 3 {
                On::New(9)
            } else {
                On::Chain(known.chains.len().saturating_sub(1))
            },
            ahead: u32::from(shape >> 2 & 1),
            plaintext: b"forged",
            post_quantum: field.as_deref(),
            position: field.as_deref().and_then(position).flatten(),
            addresses: None,
        });
        let before = device.record.clone();
        let opened = open(
            &mut device.record,
            &receiver,
            &message,
            false,
            &|session, position| match device.entries.find(session, position) {
                EntryLookup::Absent if kind & 1 == 1 => EntryLookup::NotLoaded,
                found => found,
            },
            &mut rng,
        );
        match opened {
            Ok(opened) => {
                assert_eq!(opened.plaintext, b"forged");
                device.entries.apply(&opened.changes);
            }
            Err(NotOpened::Parse(error)) => panic!("a forged message is none: {error}"),
            Err(NotOpened::Decrypt(_)) => assert!(before == device.record, "a refusal changed it"),
        }
        check_session(device.record.current().expect("it is still there"));
    }
}
