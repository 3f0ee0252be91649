//! Key services and the other sources of key-encryption keys, and the calls that block for a service.
//!
//! Functions that open or seal never call a service: they answer `cold`, and `Kith.Instance` calls one of these, outside of
//! the transaction, before it tries again.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use getrandom::SysRng;
use kith_kms::{Call, Config, Failure, Kms, Operation};
use kith_vault::{
    CacheLimits, KeyId, KeyService, PassphraseParameters, PasswordParameters, Secret, ServiceError,
    Source, memory_lock_refused, wrapped_key_info,
};
use rustler::{Atom, Binary, Env, NifMap, NifResult, ResourceArc, Term};
use zeroize::Zeroizing;

use crate::reason::{Invalid, Reason};
use crate::service_key::Kind;
use crate::terms::Row;
use crate::vault::{Bytes, Vault, account_context, thread_context, token_context};
use crate::{atoms, seam};

mod kinds {
    rustler::atoms! {
        account,
        thread,
        token,
        // Sources
        development,
        kms,
        passphrase,
        // Operations
        create_dek_for_thread,
        encrypt,
        decrypt,
        get_wrapped,
        // Failures
        answer,
        broken,
        connect,
        forbidden,
        key_not_found,
        paused,
        refused,
        status,
        timeout,
        tls,
    }
}

/// How many data keys are kept open, for how many milliseconds, and how many calls to services run at once.
#[derive(NifMap)]
pub(crate) struct LimitsTerm {
    keys: usize,
    lifetime: u64,
    concurrency: usize,
}

impl LimitsTerm {
    pub(crate) fn cache(&self) -> CacheLimits {
        CacheLimits {
            keys: self.keys,
            lifetime: Duration::from_millis(self.lifetime),
        }
    }
}

/// The key services of a vault.
pub(crate) struct Services {
    all: Vec<Arc<Kms>>,
    concurrency: usize,
    running: AtomicUsize,
}

impl Services {
    pub(crate) fn new(limits: &LimitsTerm) -> Self {
        Self {
            all: Vec::new(),
            concurrency: limits.concurrency,
            running: AtomicUsize::new(0),
        }
    }

    /// Runs what blocks, unless too many do: they hold schedulers on which the database works too.
    fn run<T>(&self, body: impl FnOnce() -> T) -> Result<(T, Vec<CallTerm>), Reason> {
        let _place = Place::take(self).ok_or(Reason::Busy)?;
        let (result, calls) = kith_kms::record(body);
        Ok((result, calls.iter().map(call_term).collect()))
    }
}

/// One of those that run. Given back also by a panic.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(services: &'a Services) -> Option<Self> {
        let place = Self(&services.running);
        (services.running.fetch_add(1, Ordering::Relaxed) < services.concurrency).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A source as Elixir names it, before anything is read or opened.
pub(crate) enum KeySourceTerm<'a> {
    Secret(SecretTerm<'a>),
    Key(Zeroizing<Vec<u8>>),
    Passphrase(SecretTerm<'a>, &'a str),
    Development,
    Kms(Box<KmsTerm<'a>>),
}

type SecretTerm<'a> = (Atom, Binary<'a>);

#[derive(NifMap)]
pub(crate) struct KmsTerm<'a> {
    url: &'a str,
    ca_file: Option<Binary<'a>>,
    client: Option<(Binary<'a>, Binary<'a>)>,
    cleartext: bool,
    connect_timeout: u64,
    timeout: u64,
    retries: u32,
    pause: u64,
    extended: bool,
    fallback: Option<&'a str>,
}

impl<'a> KeySourceTerm<'a> {
    pub(crate) fn decode(term: Term<'a>) -> NifResult<Self> {
        if let Ok(kind) = term.decode::<Atom>()
            && kind == kinds::development()
        {
            return Ok(Self::Development);
        }
        let (kind, value): (Atom, Term<'a>) = term.decode()?;
        if kind == atoms::key() {
            let bytes: Binary<'_> = value.decode()?;
            Ok(Self::Key(Zeroizing::new(bytes.as_slice().to_vec())))
        } else if kind == kinds::passphrase() {
            let (secret, parameters) = value.decode()?;
            Ok(Self::Passphrase(secret, parameters))
        } else if kind == kinds::kms() {
            Ok(Self::Kms(Box::new(value.decode()?)))
        } else if kind == atoms::env() || kind == atoms::file() {
            Ok(Self::Secret((kind, value.decode()?)))
        } else {
            Err(rustler::Error::BadArg)
        }
    }

    pub(crate) fn open(self, id: &KeyId, services: &mut Services) -> Result<Source, Invalid> {
        Ok(match self {
            Self::Key(bytes) => Source::Key(bytes),
            Self::Secret(secret) => match secret_of(secret)? {
                Secret::Env(name) => Source::Env(name),
                Secret::File(path) => Source::File(path),
            },
            Self::Passphrase(secret, parameters) => {
                Source::Passphrase(secret_of(secret)?, parameters.to_owned())
            }
            Self::Development => Source::Development,
            Self::Kms(term) => {
                let kms = Kms::new(term.config()).map_err(|error| {
                    Invalid(format!("key \"{id}\" from a key service: {error}"))
                })?;
                let kms = Arc::new(kms);
                services.all.push(Arc::clone(&kms));
                let fallback = term.fallback.map(KeyId::new).transpose()?;
                let service: Arc<dyn KeyService> = kms;
                Source::Service(service, fallback)
            }
        })
    }
}

/// Where a key comes from that is no key-encryption key: `{:env, name}`, `{:file, path}`, or for tests `{:key, bytes}`.
pub(crate) type SourceTerm<'a> = (Atom, Binary<'a>);

pub(crate) fn source_of((kind, value): SourceTerm<'_>) -> NifResult<Source> {
    if kind == atoms::env() {
        let name = std::str::from_utf8(value.as_slice()).map_err(|_| rustler::Error::BadArg)?;
        Ok(Source::Env(name.to_owned()))
    } else if kind == atoms::file() {
        Ok(Source::File(path_of(&value)))
    } else if kind == atoms::key() {
        Ok(Source::Key(Zeroizing::new(value.as_slice().to_vec())))
    } else {
        Err(rustler::Error::BadArg)
    }
}

impl KmsTerm<'_> {
    fn config(&self) -> Config {
        Config {
            url: self.url.to_owned(),
            ca_file: self.ca_file.as_ref().map(path_of),
            client: self
                .client
                .as_ref()
                .map(|(chain, key)| (path_of(chain), path_of(key))),
            cleartext: self.cleartext,
            connect_timeout: Duration::from_millis(self.connect_timeout),
            timeout: Duration::from_millis(self.timeout),
            retries: self.retries,
            pause: Duration::from_millis(self.pause),
            extended: self.extended,
        }
    }
}

fn path_of(path: &Binary<'_>) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path.as_slice()))
}

fn secret_of((kind, value): SecretTerm<'_>) -> Result<Secret, Invalid> {
    if kind == atoms::file() {
        return Ok(Secret::File(path_of(&value)));
    }
    match std::str::from_utf8(value.as_slice()) {
        Ok(name) if kind == atoms::env() => Ok(Secret::Env(name.to_owned())),
        _ => Err(Invalid("expected {:env, name} or {:file, path}".to_owned())),
    }
}

/// Operation, nanoseconds since it began, nanoseconds it took, and why it failed.
type CallTerm = (Atom, u64, u64, Option<Atom>);

fn call_term(call: &Call) -> CallTerm {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let operation = match call.operation {
        Operation::Create => kinds::create_dek_for_thread(),
        Operation::Encrypt => kinds::encrypt(),
        Operation::Decrypt => kinds::decrypt(),
        Operation::GetWrapped => kinds::get_wrapped(),
    };
    let failure = call.failure.map(|failure| match failure {
        Failure::Connect => kinds::connect(),
        Failure::Timeout => kinds::timeout(),
        Failure::Broken => kinds::broken(),
        Failure::Tls => kinds::tls(),
        Failure::Forbidden => kinds::forbidden(),
        Failure::Status => kinds::status(),
        Failure::Answer => kinds::answer(),
        Failure::Paused => kinds::paused(),
        Failure::KeyNotFound => kinds::key_not_found(),
        Failure::Refused => kinds::refused(),
    });
    (
        operation,
        nanoseconds(call.age),
        nanoseconds(call.duration),
        failure,
    )
}

/// Where something wrapped belongs: to an account, a thread, a token of an account, or, by its public key, to the service itself.
fn context_of(kind: Atom, owner: &Binary<'_>) -> Result<kith_vault::Context, Reason> {
    if kind == kinds::account() {
        Ok(account_context(owner))
    } else if kind == kinds::thread() {
        Ok(thread_context(owner))
    } else if kind == kinds::token() {
        Ok(token_context(owner))
    } else {
        let kind = Kind::from_atom(kind).map_err(|_| Reason::Malformed)?;
        Ok(kind.context(owner))
    }
}

/// Opens something wrapped with the help of its service and keeps it. `{:ok, {nil | reason, calls}}`
#[rustler::nif(schedule = "DirtyIo")]
fn kms_fetch<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    kind: Atom,
    key: Row<(Binary<'a>, Binary<'a>)>,
) -> Term<'a> {
    seam::call(env, "kms_fetch", || {
        let (owner, wrapped) = key.get()?;
        let context = context_of(kind, owner)?;
        let run = || vault.keys.fetch(&context, wrapped);
        let (result, calls) = vault.services.run(run)?;
        Ok::<_, Reason>((result.err().map(Reason::from), calls))
    })
}

/// Has the service make what wraps next in this place; if it is away, and `or_fallback`, the key that stands in for it does.
/// `{:ok, {nil | reason, whether the service was there, calls}}`
#[rustler::nif(schedule = "DirtyIo")]
fn kms_prepare<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    kind: Atom,
    owner: Binary<'a>,
    or_fallback: bool,
) -> Term<'a> {
    seam::call(env, "kms_prepare", || {
        let context = context_of(kind, &owner)?;
        let run = || vault.keys.prepare(&mut SysRng, &context, or_fallback);
        let (result, calls) = vault.services.run(run)?;
        Ok::<_, Reason>(match result {
            Ok(served) => (None, served, calls),
            Err(error) => (Some(Reason::from(error)), false, calls),
        })
    })
}

/// Whether all services answer. `{:ok, {nil | reason, calls}}`
#[rustler::nif(schedule = "DirtyIo")]
fn kms_probe(env: Env<'_>, vault: ResourceArc<Vault>) -> Term<'_> {
    seam::call(env, "kms_probe", || {
        let probe = || {
            let mut services = vault.services.all.iter();
            services.try_for_each(|service| service.probe())
        };
        let (result, calls) = vault.services.run(probe)?;
        let reason = match result {
            Ok(()) => None,
            Err(ServiceError::Unavailable) => Some(Reason::Unavailable),
            Err(ServiceError::KeyNotFound) => Some(Reason::KeyNotFound),
            Err(ServiceError::Refused) => Some(Reason::CorruptedState),
        };
        Ok::<_, Reason>((reason, calls))
    })
}

/// Erases open data keys whose time is over.
#[rustler::nif]
fn kms_sweep(env: Env<'_>, vault: ResourceArc<Vault>) -> Term<'_> {
    seam::call_unit(env, "kms_sweep", || {
        vault.keys.sweep();
        Ok::<_, Reason>(())
    })
}

/// Erases all open data keys.
#[rustler::nif]
fn kms_forget(env: Env<'_>, vault: ResourceArc<Vault>) -> Term<'_> {
    seam::call_unit(env, "kms_forget", || {
        vault.keys.forget();
        Ok::<_, Reason>(())
    })
}

/// `{:ok, {data keys kept open, whether the system has refused to lock memory}}`
#[rustler::nif]
fn vault_memory(env: Env<'_>, vault: ResourceArc<Vault>) -> Term<'_> {
    seam::call(env, "vault_memory", || {
        Ok::<_, Reason>((vault.keys.open_data_keys(), memory_lock_refused()))
    })
}

/// What stands in a wrapped data key for everybody to read.
#[derive(NifMap)]
#[rustler(encode)]
struct WrappedKeyTerm {
    key_id: String,
    kek_id: String,
    kek_version: u32,
    wrapped_dek: Option<Bytes<Vec<u8>>>,
}

/// The id of the key, which is the service's where one has a part in it, and what wraps it.
#[rustler::nif]
fn wrapped_key_inspect<'a>(env: Env<'a>, wrapped: Row<Binary<'a>>) -> Term<'a> {
    seam::call(env, "wrapped_key_inspect", || {
        let info = wrapped_key_info(wrapped.get()?)?;
        let kek_id = info.key_encryption_key_id.as_str().to_owned();
        Ok::<_, Reason>(match info.service {
            Some((key_id, kek_version, wrapped)) => WrappedKeyTerm {
                key_id,
                kek_id,
                kek_version,
                wrapped_dek: Some(Bytes(wrapped)),
            },
            None => WrappedKeyTerm {
                key_id: format!("{:016x}", u64::from_be_bytes(info.data_key_id.to_bytes())),
                kek_id,
                kek_version: 1,
                wrapped_dek: None,
            },
        })
    })
}

/// Draws the parameters of a passphrase, which is read here from `{:env, name}` or `{:file, path}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn passphrase_create<'a>(
    env: Env<'a>,
    secret: SecretTerm<'a>,
    (memory, passes, parallelism): (u32, u32, u32),
) -> Term<'a> {
    seam::call(env, "passphrase_create", || {
        let secret = secret_of(secret)?;
        let invalid = |error: &dyn std::fmt::Display| Invalid(error.to_string());
        let cost = PasswordParameters::new(memory, passes, parallelism)
            .map_err(|error| invalid(&error))?;
        let parameters = PassphraseParameters::create(&mut SysRng, cost, &secret)
            .map_err(|error| invalid(&error))?;
        Ok::<_, Invalid>(parameters.to_text())
    })
}
