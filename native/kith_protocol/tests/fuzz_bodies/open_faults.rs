//! Faults that are known and not fixed yet. Inputs that show them end early, so that they do not hide others;
//! with `KITH_FUZZ_STRICT` set they do not. Their reproducers lie in `fuzz/open_faults`.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use kith_protocol::{OfficialRecord, Session};

use super::forge::Known;
use super::tape::Tape;

static TOLERATED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("KITH_FUZZ_STRICT").is_none());

/// Epochs at the end of 64 bits: numbers of the key chain overflow.
const END: u64 = u64::MAX - 1;

/// A stored state of version 4, in one blob, whose key chain is at the end of 64 bits.
pub(crate) fn in_state(blob: &[u8]) -> bool {
    let mut tape = Tape(blob);
    if !*TOLERATED || tape.byte() != Some(3) {
        return false;
    }
    tape.bytes(4 + 2);
    let pending = match tape.byte_or_zero() {
        0 => 0,
        1 => 12,
        _ => 16,
    };
    tape.bytes(16 + 3 * 32 + 36 + 4 + pending);
    let chains = usize::from(tape.byte_or_zero());
    tape.bytes(chains * 72 + 4 + 8);
    let current = u64::from(tape.number()) << 32 | u64::from(tape.number());
    current >= END - 1
}

/// A session that is.
fn at_the_end(session: &Session) -> bool {
    session.info().braid.is_some_and(|it| it.epoch >= END)
}

/// A record that is read, and cannot be written, stored or used.
pub(crate) fn in_record(record: &OfficialRecord) -> bool {
    let sessions = (record.sessions.current().into_iter()).chain(record.sessions.archived());
    let mut ids = BTreeSet::new();
    *TOLERATED
        && sessions.into_iter().any(|session| {
            let known = Known::of(session);
            let chains: BTreeSet<_> = known.chains.iter().map(|it| it.ratchet_key).collect();
            // One session or one chain twice: their entries are one.
            !ids.insert(session.id())
                || chains.len() < known.chains.len()
                // More epochs than the stored form has room for.
                || known.epochs.len() > 3
                // A key chain that is left out when it is written, and then begins at epoch 0.
                || known.epochs.last().is_some_and(|it| it.number > 0)
                    && known.epochs.iter().all(|it| it.index == 0)
                || at_the_end(session)
        })
}
