//! The vault and the accounts whose data keys it wraps.

use std::sync::Arc;

use getrandom::SysRng;
use kith_vault::{ConfigError, Context, DataKey, KeyId, VaultError};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustler::{Binary, Encoder, Env, NewBinary, NifResult, Resource, ResourceArc, Term};

use crate::kms::{LimitsTerm, Services, SourceTerm};
use crate::reason::{Invalid, Reason};
use crate::seam;
use crate::terms::Row;

/// The key-encryption keys, for as long as Elixir holds the reference.
pub(crate) struct Vault {
    pub(crate) keys: kith_vault::Vault,
    pub(crate) services: Services,
}

#[rustler::resource_impl]
impl Resource for Vault {}

/// A user and the user's wrapped data key, as every call about an account brings them.
pub(crate) type Account<'a> = (Binary<'a>, Binary<'a>);

/// A thread and its wrapped data key.
pub(crate) type Thread<'a> = (Binary<'a>, Binary<'a>);

impl Vault {
    /// Opens the data key of an account.
    pub(crate) fn account_key(
        &self,
        (user, wrapped): &Account<'_>,
    ) -> Result<Arc<DataKey>, Reason> {
        Ok(self.keys.open_data_key(&account_context(user), wrapped)?)
    }

    /// Opens the data key of a thread.
    pub(crate) fn thread_key(
        &self,
        (thread, wrapped): &Thread<'_>,
    ) -> Result<Arc<DataKey>, Reason> {
        Ok(self.keys.open_data_key(&thread_context(thread), wrapped)?)
    }

    /// Draws a data key and wraps it for a place.
    pub(crate) fn create_key(&self, context: &Context) -> Result<Vec<u8>, Reason> {
        Ok(self.keys.create_data_key(&mut SysRng, context)?)
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

pub(crate) fn account_context(user: &Binary<'_>) -> Context {
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
            VaultError::Cold => Self::Cold,
            VaultError::Unavailable => Self::Unavailable,
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
/// term; `{:key, bytes}` is for tests. See [`crate::kms`] for the others.
#[rustler::nif(schedule = "DirtyIo")]
fn vault_open<'a>(
    env: Env<'a>,
    current: &str,
    keys: Vec<(&str, Term<'a>)>,
    limits: LimitsTerm,
) -> NifResult<Term<'a>> {
    let keys = keys
        .into_iter()
        .map(|(id, source)| Ok((id, SourceTerm::decode(source)?)))
        .collect::<NifResult<Vec<_>>>()?;

    Ok(seam::call(env, "vault_open", || {
        let mut services = Services::new(&limits);
        let keys = keys
            .into_iter()
            .map(|(id, source)| {
                let id = KeyId::new(id)?;
                let source = source.open(&id, &mut services)?;
                Ok((id, source))
            })
            .collect::<Result<Vec<_>, Invalid>>()?;
        let keys = kith_vault::Vault::new(KeyId::new(current)?, keys)?.with_cache(limits.cache());
        Ok::<_, Invalid>(ResourceArc::new(Vault { keys, services }))
    }))
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
