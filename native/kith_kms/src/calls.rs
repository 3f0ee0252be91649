//! What was asked of the service and what became of it, for telemetry.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use kith_vault::ServiceError;

/// What was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// `/create_dek_for_thread`
    Create,
    /// `/encrypt`
    Encrypt,
    /// `/decrypt`
    Decrypt,
    /// `/get_wrapped`
    GetWrapped,
}

/// Why it failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No connection came about.
    Connect,
    /// It took too long.
    Timeout,
    /// The connection broke.
    Broken,
    /// The two do not accept each other's certificates, or do not speak TLS.
    Tls,
    /// The service does not let this client in: 401 or 403.
    Forbidden,
    /// Another status that is none of the protocol.
    Status,
    /// What came is no answer of the protocol, or too long.
    Answer,
    /// A call had failed a moment ago, so nothing was asked.
    Paused,
    /// The service has no such key.
    KeyNotFound,
    /// The service does not decrypt the bytes.
    Refused,
}

impl Failure {
    pub(crate) const fn error(self) -> ServiceError {
        match self {
            Self::KeyNotFound => ServiceError::KeyNotFound,
            Self::Refused => ServiceError::Refused,
            _ => ServiceError::Unavailable,
        }
    }

    /// Whether another attempt may help, and may be made.
    pub(crate) fn repeatable(self, operation: Operation) -> bool {
        match self {
            Self::Connect => true,
            // A key may have been made.
            Self::Timeout | Self::Broken | Self::Status => operation != Operation::Create,
            _ => false,
        }
    }
}

/// One call, its attempts together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Call {
    /// What was asked.
    pub operation: Operation,
    /// How long ago it began when [`record`] ended.
    pub age: Duration,
    /// How long it took.
    pub duration: Duration,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

type Noted = (Operation, Instant, Duration, Option<Failure>);

thread_local! {
    static CALLS: RefCell<Vec<Noted>> = const { RefCell::new(Vec::new()) };
}

/// Runs a function and returns, beside its result, the calls it made on this thread.
pub fn record<T>(body: impl FnOnce() -> T) -> (T, Vec<Call>) {
    CALLS.with_borrow_mut(Vec::clear);
    let result = body();
    let now = Instant::now();
    let calls = CALLS.with_borrow_mut(std::mem::take);
    let calls = calls
        .into_iter()
        .map(|(operation, started, duration, failure)| Call {
            operation,
            age: now.duration_since(started),
            duration,
            failure,
        })
        .collect();
    (result, calls)
}

pub(crate) fn note<T>(
    operation: Operation,
    call: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, ServiceError> {
    let started = Instant::now();
    let outcome = call();
    let failure = outcome.as_ref().err().copied();
    CALLS.with_borrow_mut(|calls| {
        // Whoever does not record does not collect.
        if calls.len() < MOST {
            calls.push((operation, started, started.elapsed(), failure));
        }
    });
    outcome.map_err(Failure::error)
}

/// The most calls that are recorded at once: to wrap a data key takes three.
const MOST: usize = 64;
