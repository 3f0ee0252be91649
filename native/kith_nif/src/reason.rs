//! The closed set of reasons, and what of the crates below becomes which.

use rustler::{Atom, Encoder, Env, Term};

/// Why an operation failed: the same set as `Kith.Error`, in the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    SessionNotFound,
    Duplicate,
    Tampered,
    OutOfSync,
    KeyNotFound,
    UntrustedIdentity,
    UnknownPrekey,
    Malformed,
    UnsupportedVersion,
    TooLarge,
    Locked,
    CorruptedState,
    Stale,
    NotRegistered,
    Storage,
    Busy,
    WrongPassword,
    WrongSecret,
    TooFew,
    NoConsent,
    AlreadyRegistered,
    Unavailable,
    Panic,
    /// A key has to be opened by a key service first. It never leaves `Kith.Instance`, and so is none of the set.
    Cold,
    /// A key service has to make a key first. The same.
    Unmade,
}

mod atoms {
    rustler::atoms! {
        session_not_found,
        duplicate,
        tampered,
        out_of_sync,
        key_not_found,
        untrusted_identity,
        unknown_prekey,
        malformed,
        unsupported_version,
        too_large,
        locked,
        corrupted_state,
        stale,
        not_registered,
        storage,
        busy,
        wrong_password,
        wrong_secret,
        too_few,
        no_consent,
        already_registered,
        unavailable,
        panic,
        cold,
        unmade,
        invalid,
    }
}

impl Reason {
    /// The whole set, for the test that compares it with Elixir's.
    pub(crate) const ALL: [Self; 23] = [
        Self::SessionNotFound,
        Self::Duplicate,
        Self::Tampered,
        Self::OutOfSync,
        Self::KeyNotFound,
        Self::UntrustedIdentity,
        Self::UnknownPrekey,
        Self::Malformed,
        Self::UnsupportedVersion,
        Self::TooLarge,
        Self::Locked,
        Self::CorruptedState,
        Self::Stale,
        Self::NotRegistered,
        Self::Storage,
        Self::Busy,
        Self::WrongPassword,
        Self::WrongSecret,
        Self::TooFew,
        Self::NoConsent,
        Self::AlreadyRegistered,
        Self::Unavailable,
        Self::Panic,
    ];

    fn atom(self) -> Atom {
        match self {
            Self::SessionNotFound => atoms::session_not_found(),
            Self::Duplicate => atoms::duplicate(),
            Self::Tampered => atoms::tampered(),
            Self::OutOfSync => atoms::out_of_sync(),
            Self::KeyNotFound => atoms::key_not_found(),
            Self::UntrustedIdentity => atoms::untrusted_identity(),
            Self::UnknownPrekey => atoms::unknown_prekey(),
            Self::Malformed => atoms::malformed(),
            Self::UnsupportedVersion => atoms::unsupported_version(),
            Self::TooLarge => atoms::too_large(),
            Self::Locked => atoms::locked(),
            Self::CorruptedState => atoms::corrupted_state(),
            Self::Stale => atoms::stale(),
            Self::NotRegistered => atoms::not_registered(),
            Self::Storage => atoms::storage(),
            Self::Busy => atoms::busy(),
            Self::WrongPassword => atoms::wrong_password(),
            Self::WrongSecret => atoms::wrong_secret(),
            Self::TooFew => atoms::too_few(),
            Self::NoConsent => atoms::no_consent(),
            Self::AlreadyRegistered => atoms::already_registered(),
            Self::Unavailable => atoms::unavailable(),
            Self::Panic => atoms::panic(),
            Self::Cold => atoms::cold(),
            Self::Unmade => atoms::unmade(),
        }
    }
}

impl Encoder for Reason {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        self.atom().encode(env)
    }
}

/// What the configuration asks for cannot be had: a sentence for the operator, without the value
/// of any key.
#[derive(Clone, Debug)]
pub(crate) struct Invalid(pub(crate) String);

impl Encoder for Invalid {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        (atoms::invalid(), self.0.as_str()).encode(env)
    }
}

/// Every reason, so that a test can compare the sets.
#[rustler::nif]
fn reasons(env: Env<'_>) -> Term<'_> {
    crate::seam::call(env, "reasons", || Ok::<_, Reason>(Reason::ALL.to_vec()))
}
