//! Where Erlang ends and Rust begins: no panic passes.
//!
//! A panic's text may hold data, so it is neither printed nor kept; the place in the source is kept
//! for the operator.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};

use parking_lot::Mutex;
use rustler::{Encoder, Env, Term};

use crate::atoms;
use crate::reason::Reason;

static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the body of a NIF: `{:ok, value}`, `{:error, reason}`, or `{:error, :panic}`.
pub(crate) fn call<'a, T: Encoder, E: Encoder>(
    env: Env<'a>,
    name: &'static str,
    body: impl FnOnce() -> Result<T, E>,
) -> Term<'a> {
    answer(env, name, || match body() {
        Ok(value) => (atoms::ok(), value).encode(env),
        Err(error) => (atoms::error(), error).encode(env),
    })
}

/// As [`call`], for a NIF that answers a plain `:ok`.
pub(crate) fn call_unit<'a, E: Encoder>(
    env: Env<'a>,
    name: &'static str,
    body: impl FnOnce() -> Result<(), E>,
) -> Term<'a> {
    answer(env, name, || match body() {
        Ok(()) => atoms::ok().encode(env),
        Err(error) => (atoms::error(), error).encode(env),
    })
}

/// As [`call`], for a NIF whose body makes the whole answer.
pub(crate) fn answer<'a>(
    env: Env<'a>,
    name: &'static str,
    body: impl FnOnce() -> Term<'a>,
) -> Term<'a> {
    // Unwind-safe, because nothing half-done outlives a call: state goes in and out as values, and
    // the database rolls back what a panic interrupted.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        injection::enter(name);
        let answer = body();
        fault_point();
        answer
    }));

    outcome.unwrap_or_else(|payload| {
        discard(payload);
        (atoms::error(), Reason::Panic).encode(env)
    })
}

/// Dropping a payload can panic in its turn.
fn discard(payload: Box<dyn Any + Send>) {
    let _ = catch_unwind(AssertUnwindSafe(move || drop(payload)));
}

/// Replaces the hook that prints a panic's text to standard error.
pub(crate) fn quiet_panics() {
    set_hook(Box::new(|info| {
        let place = info
            .location()
            .map(|location| format!("{}:{}", within_crate(location.file()), location.line()));
        *LAST_PANIC.lock() = place;
    }));
}

/// The last three parts of a path: what is before them belongs to the machine that built it.
fn within_crate(path: &str) -> &str {
    path.rmatch_indices(['/', '\\'])
        .nth(2)
        .and_then(|(at, _)| path.get(at + 1..))
        .unwrap_or(path)
}

/// Where the last panic of this library was, as `file:line`, or nil.
#[rustler::nif]
fn panic_location(env: Env<'_>) -> Term<'_> {
    call(env, "panic_location", || {
        Ok::<_, Reason>(LAST_PANIC.lock().clone())
    })
}

/// Makes the next `count` calls of the NIF `name` panic; only in a library built for it.
#[rustler::nif]
fn panic_arm<'a>(env: Env<'a>, name: &str, count: u32) -> Term<'a> {
    answer(env, "panic_arm", || {
        if injection::arm(name, count) {
            atoms::ok().encode(env)
        } else {
            (atoms::error(), atoms::not_compiled()).encode(env)
        }
    })
}

pub(crate) use injection::fault_point;

/// Panics on request: every second one before the work, the others at a [`fault_point`], where they
/// hurt most. That is after the work and before the answer, and for the database under its lock.
#[cfg(feature = "panic_injection")]
mod injection {
    use std::cell::Cell;

    use parking_lot::Mutex;

    static ARMED: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());

    thread_local! {
        static RUNNING: Cell<&'static str> = const { Cell::new("") };
    }

    pub(super) fn arm(name: &str, count: u32) -> bool {
        let mut armed = ARMED.lock();
        armed.retain(|(other, _)| other != name);
        armed.push((name.to_owned(), count));
        true
    }

    pub(super) fn enter(name: &'static str) {
        RUNNING.set(name);
        panic_if(|left| left % 2 == 0);
    }

    pub(crate) fn fault_point() {
        panic_if(|_left| true);
    }

    #[expect(clippy::panic, reason = "it is what the feature is for")]
    fn panic_if(due: impl Fn(u32) -> bool) {
        let name = RUNNING.get();
        let fires = ARMED
            .lock()
            .iter_mut()
            .find(|(other, left)| other == name && *left > 0 && due(*left))
            .map(|(_, left)| *left -= 1)
            .is_some();
        if fires {
            panic!("injected into {name}");
        }
    }
}

#[cfg(not(feature = "panic_injection"))]
mod injection {
    pub(super) fn arm(_name: &str, _count: u32) -> bool {
        false
    }

    pub(super) fn enter(_name: &'static str) {}

    pub(crate) fn fault_point() {}
}
