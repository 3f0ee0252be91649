//! The vault and the accounts whose data keys it wraps.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use getrandom::SysRng;
use kith_vault::{ConfigError, Context, DataKey, KeyId, Source, VaultError};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustler::{Atom, Binary, Encoder, Env, NewBinary, NifResult, Resource, ResourceArc, Term};
use zeroize::Zeroizing;

use crate::reason::{Invalid, Reason};
use crate::terms::Row;
use crate::{atoms, seam};

/// The key-encryption keys, for as long as Elixir holds the reference.
pub(crate) struct Vault(kith_vault::Vault);

#[rustler::resource_impl]
impl Resource for Vault {}

/// A user and the user's wrapped data key, as every call about an account brings them.
pub(crate) type Account<'a> = (Binary<'a>, Binary<'a>);

/// A thread and its wrapped data key.
pub(crate) type Thread<'a> = (Binary<'a>, Binary<'a>);

impl Vault {
    /// Opens the data key of an account.
    pub(crate) fn account_key(&self, (user, wrapped): &Account<'_>) -> Result<DataKey, Reason> {
        Ok(self.0.open_data_key(&account_context(user), wrapped)?)
    }

    /// Opens the data key of a thread.
    pub(crate) fn thread_key(&self, (thread, wrapped): &Thread<'_>) -> Result<DataKey, Reason> {
        Ok(self.0.open_data_key(&thread_context(thread), wrapped)?)
    }

    /// Draws a data key and wraps it for a place.
    pub(crate) fn create_key(&self, context: &Context) -> Result<Vec<u8>, Reason> {
        Ok(self.0.create_data_key(&mut SysRng, context)?)
    }
}

/// A generator for one call, seeded by the operating system.
pub(crate) fn random() -> Result<StdRng, Reason> {
    StdRng::try_from_rng(&mut SysRng).map_err(|_| Reason::from(VaultError::Random))
}

/// The user of an account as text.
pub(crate) fn user<'a>((user, _): &'a Account<'_>) -> Result<&'a str, Reason> {
    std::str::from_utf8(user).map_err(|_| Reason::Malformed)
}

fn account_context(user: &Binary<'_>) -> Context {
    Context::new("data-key").bytes(user.as_slice())
}

pub(crate) fn thread_context(thread: &Binary<'_>) -> Context {
    Context::new("thread-key").bytes(thread.as_slice())
}

fn self_context(user: &Binary<'_>) -> Context {
    Context::new("self").bytes(user.as_slice())
}

impl From<VaultError> for Reason {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::CorruptedState => Self::CorruptedState,
            VaultError::KeyNotFound { .. } => Self::KeyNotFound,
            VaultError::TooLarge => Self::TooLarge,
            // A machine without random numbers is broken, as a program that panics is.
            VaultError::Random => Self::Panic,
        }
    }
}

impl From<ConfigError> for Invalid {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

/// Bytes that leave as a binary rather than as a list of numbers.
pub(crate) struct Bytes<T>(pub(crate) T);

impl<T: AsRef<[u8]>> Encoder for Bytes<T> {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        NewBinary::from_slice(env, self.0.as_ref()).into()
    }
}

/// Opens a vault. Keys are read here, from `{:env, name}` or `{:file, path}`, so that none becomes a
/// term; `{:key, bytes}` is for tests.
#[rustler::nif(schedule = "DirtyIo")]
fn vault_open<'a>(
    env: Env<'a>,
    current: &str,
    keys: Vec<(&str, (Atom, Binary<'a>))>,
) -> NifResult<Term<'a>> {
    let keys = keys
        .into_iter()
        .map(|(id, source)| Ok((id, source_of(source)?)))
        .collect::<NifResult<Vec<_>>>()?;

    Ok(seam::call(env, "vault_open", || {
        let keys = keys
            .into_iter()
            .map(|(id, source)| Ok((KeyId::new(id)?, source)))
            .collect::<Result<Vec<_>, ConfigError>>()?;
        let vault = kith_vault::Vault::new(KeyId::new(current)?, keys)?;
        Ok::<_, Invalid>(ResourceArc::new(Vault(vault)))
    }))
}

pub(crate) fn source_of((kind, value): (Atom, Binary<'_>)) -> NifResult<Source> {
    if kind == atoms::env() {
        let name = std::str::from_utf8(value.as_slice()).map_err(|_| rustler::Error::BadArg)?;
        Ok(Source::Env(name.to_owned()))
    } else if kind == atoms::file() {
        Ok(Source::File(PathBuf::from(OsStr::from_bytes(
            value.as_slice(),
        ))))
    } else if kind == atoms::key() {
        Ok(Source::Key(Zeroizing::new(value.as_slice().to_vec())))
    } else {
        Err(rustler::Error::BadArg)
    }
}

/// Draws the data key of a new account and wraps it.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_create<'a>(env: Env<'a>, vault: ResourceArc<Vault>, user: Binary<'a>) -> Term<'a> {
    seam::call(env, "account_create", || {
        vault.create_key(&account_context(&user)).map(Bytes)
    })
}

/// Seals bytes that only this account opens.
#[rustler::nif(schedule = "DirtyCpu")]
fn self_seal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    plaintext: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "self_seal", || {
        let account = account.get()?;
        let key = vault.account_key(account)?;
        let sealed = key.seal(&mut SysRng, &self_context(&account.0), plaintext.as_slice())?;
        Ok::<_, Reason>(Bytes(sealed))
    })
}

/// Opens what `self_seal` sealed.
#[rustler::nif(schedule = "DirtyCpu")]
fn self_open<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    sealed: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "self_open", || {
        let account = account.get()?;
        let key = vault.account_key(account)?;
        let plaintext = key.open(&self_context(&account.0), sealed.as_slice())?;
        Ok::<_, Reason>(Bytes(plaintext.as_slice()).encode(env))
    })
}
