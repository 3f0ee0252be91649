//! Recovery keys: drawn and kept here, and shown as words or shares when somebody asks for them.

use getrandom::SysRng;
use kith_vault::{Context, EscrowKey, KeyId, RecoveryKeyError, WordCount};
use rustler::{Atom, Binary, Encoder, Env, NifResult, NifUnitEnum, Resource, ResourceArc, Term};

use crate::atoms;
use crate::kms::source_of;
use crate::reason::{Invalid, Reason};
use crate::seam;
use crate::vault::{Bytes, random};

/// A recovery key, for as long as Elixir holds the reference.
pub(crate) struct RecoveryKey(pub(crate) kith_vault::RecoveryKey);

#[rustler::resource_impl]
impl Resource for RecoveryKey {}

/// 12 or 24 words.
#[derive(Clone, Copy, NifUnitEnum)]
enum WordCountTerm {
    Twelve,
    TwentyFour,
}

/// A reason, and the place of the word or share it is about, counted from 1: `reason | {reason, position}`.
struct Unread(Reason, Option<usize>);

impl From<RecoveryKeyError> for Unread {
    fn from(error: RecoveryKeyError) -> Self {
        match error {
            RecoveryKeyError::Checksum | RecoveryKeyError::Mismatch => {
                Self(Reason::WrongSecret, None)
            }
            RecoveryKeyError::OtherSet { position } => Self(Reason::WrongSecret, Some(position)),
            RecoveryKeyError::Parameters | RecoveryKeyError::WordCount => {
                Self(Reason::Malformed, None)
            }
            RecoveryKeyError::Share { position } | RecoveryKeyError::Word { position } => {
                Self(Reason::Malformed, Some(position))
            }
            RecoveryKeyError::TooFew { threshold } => Self(Reason::TooFew, Some(threshold)),
            RecoveryKeyError::Twice { position } => Self(Reason::Duplicate, Some(position)),
            // A machine without random numbers is broken, as a program that panics is.
            RecoveryKeyError::Random => Self(Reason::Panic, None),
        }
    }
}

impl Encoder for Unread {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Self(reason, None) => reason.encode(env),
            Self(reason, Some(position)) => (reason, position).encode(env),
        }
    }
}

impl From<Reason> for Unread {
    fn from(reason: Reason) -> Self {
        Self(reason, None)
    }
}

fn resource(key: kith_vault::RecoveryKey) -> ResourceArc<RecoveryKey> {
    ResourceArc::new(RecoveryKey(key))
}

/// Draws a key: `{:ok, key}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn recovery_key_generate(env: Env<'_>, words: WordCountTerm) -> Term<'_> {
    seam::call(env, "recovery_key_generate", || {
        let words = match words {
            WordCountTerm::Twelve => WordCount::Twelve,
            WordCountTerm::TwentyFour => WordCount::TwentyFour,
        };
        let key = kith_vault::RecoveryKey::generate(&mut SysRng, words)?;
        Ok::<_, Unread>(resource(key))
    })
}

/// The words, for the person who keeps them: `{:ok, text}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn recovery_key_words(env: Env<'_>, key: ResourceArc<RecoveryKey>) -> Term<'_> {
    seam::call(env, "recovery_key_words", || {
        let words = key.0.to_words()?;
        Ok::<_, Unread>(Bytes(words.as_bytes()).encode(env))
    })
}

/// `{:ok, key}`, or the reason and the first word that is not one.
#[rustler::nif(schedule = "DirtyCpu")]
fn recovery_key_parse<'a>(env: Env<'a>, words: Binary<'a>) -> Term<'a> {
    seam::call(env, "recovery_key_parse", || {
        let key = kith_vault::RecoveryKey::from_words(&words)?;
        Ok::<_, Unread>(resource(key))
    })
}

/// `{:ok, shares}`, one for each of those who keep them.
#[rustler::nif(schedule = "DirtyCpu")]
fn recovery_key_split(
    env: Env<'_>,
    key: ResourceArc<RecoveryKey>,
    threshold: u8,
    count: u8,
) -> Term<'_> {
    seam::call(env, "recovery_key_split", || {
        let shares = key.0.split(&mut random()?, threshold, count)?;
        let shares: Vec<_> = shares
            .iter()
            .map(|share| Bytes(share.as_slice()).encode(env))
            .collect();
        Ok::<_, Unread>(shares)
    })
}

/// `{:ok, key}`, or the reason and the share it is about.
#[rustler::nif(schedule = "DirtyCpu")]
fn recovery_key_combine<'a>(env: Env<'a>, shares: Vec<Binary<'a>>) -> Term<'a> {
    seam::call(env, "recovery_key_combine", || {
        let shares: Vec<&[u8]> = shares.iter().map(Binary::as_slice).collect();
        let key = kith_vault::RecoveryKey::combine(&shares)?;
        Ok::<_, Unread>(resource(key))
    })
}

/// What a key in escrow is bound to: the fields of its row.
fn escrow_context(fields: &[Binary<'_>]) -> Context {
    fields
        .iter()
        .fold(Context::new("escrow"), |context, field| {
            context.bytes(field.as_slice())
        })
}

fn load(id: &str, source: kith_vault::Source) -> Result<EscrowKey, Invalid> {
    Ok(EscrowKey::load(&KeyId::new(id)?, &source)?)
}

/// The public half of the key of a source: `{:ok, public}`.
#[rustler::nif(schedule = "DirtyIo")]
fn escrow_public<'a>(env: Env<'a>, id: &str, source: (Atom, Binary<'a>)) -> NifResult<Term<'a>> {
    let source = source_of(source)?;
    Ok(seam::call(env, "escrow_public", || {
        Ok::<_, Invalid>(Bytes(load(id, source)?.public_bytes()))
    }))
}

/// Wraps a recovery key: `{:ok, wrapped}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn escrow_seal<'a>(
    env: Env<'a>,
    public: Binary<'a>,
    fields: Vec<Binary<'a>>,
    key: ResourceArc<RecoveryKey>,
) -> Term<'a> {
    seam::call(env, "escrow_seal", || {
        let escrow = EscrowKey::from_public(&public).map_err(|_| Reason::Malformed)?;
        let wrapped = escrow
            .seal(&mut random()?, &escrow_context(&fields), &key.0)
            .map_err(|_| Reason::Malformed)?;
        Ok::<_, Reason>(Bytes(wrapped))
    })
}

/// Unwraps one: `{:ok, key}`, or `{:ok, nil}` for what does not open.
#[rustler::nif(schedule = "DirtyIo")]
fn escrow_open<'a>(
    env: Env<'a>,
    id: &str,
    source: (Atom, Binary<'a>),
    fields: Vec<Binary<'a>>,
    wrapped: Binary<'a>,
) -> NifResult<Term<'a>> {
    let source = source_of(source)?;
    Ok(seam::call(env, "escrow_open", || {
        let opened = load(id, source)?.open(&escrow_context(&fields), &wrapped);
        Ok::<_, Invalid>(match opened {
            Ok(key) => resource(key).encode(env),
            Err(_) => atoms::nil().encode(env),
        })
    }))
}
