//! The vault and the accounts whose data keys it wraps.

use std::ops::Deref;
use std::sync::Arc;

use getrandom::SysRng;
use kith_vault::{
    ConfigError, Context, DataKey, DataKeyId, KeyId, LockError, PasswordParameters, SecretKey,
    UnlockedKey, VaultError,
};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustler::{
    Atom, Binary, Decoder, Encoder, Env, NewBinary, NifResult, Resource, ResourceArc, Term,
};

use crate::kms::{KeySourceTerm, LimitsTerm, Services};
use crate::password::ParametersTerm;
use crate::reason::{Invalid, Reason};
use crate::seam;
use crate::terms::{self, Row};

/// The key-encryption keys, for as long as Elixir holds the reference.
pub(crate) struct Vault {
    pub(crate) keys: kith_vault::Vault,
    pub(crate) services: Services,
}

#[rustler::resource_impl]
impl Resource for Vault {}

/// The data key of an account that is locked under a password, while it is unlocked.
///
/// Elixir holds the reference, and [`account_close`] empties it whoever else does.
pub(crate) struct Unlocked {
    user: Vec<u8>,
    key: Mutex<Option<Arc<UnlockedKey>>>,
}

#[rustler::resource_impl]
impl Resource for Unlocked {}

impl Unlocked {
    fn new(user: &[u8], key: UnlockedKey) -> ResourceArc<Self> {
        ResourceArc::new(Self {
            user: user.to_vec(),
            key: Mutex::new(Some(Arc::new(key))),
        })
    }

    /// The key, if it is this user's and has not been locked again.
    fn key(&self, user: &[u8]) -> Result<Arc<UnlockedKey>, Reason> {
        if self.user != user {
            return Err(Reason::CorruptedState);
        }
        self.key.lock().clone().ok_or(Reason::Locked)
    }
}

/// A user and the user's data key, as every call about an account brings them.
pub(crate) struct Account<'a> {
    pub(crate) user: Binary<'a>,
    key: KeyTerm<'a>,
}

/// As the database has it, or unlocked before.
enum KeyTerm<'a> {
    Wrapped(Binary<'a>),
    Unlocked(ResourceArc<Unlocked>),
}

impl<'a> Decoder<'a> for Account<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let (user, key): (Binary<'a>, Term<'a>) = term.decode()?;
        let key = match key.decode() {
            Ok(wrapped) => KeyTerm::Wrapped(wrapped),
            Err(_) => KeyTerm::Unlocked(key.decode()?),
        };
        Ok(Self { user, key })
    }
}

/// An opened data key of an account: for one call, or for as long as the account is unlocked.
pub(crate) enum AccountKey {
    Own(DataKey),
    Unlocked(Arc<UnlockedKey>),
}

impl Deref for AccountKey {
    type Target = DataKey;

    fn deref(&self) -> &DataKey {
        match self {
            Self::Own(key) => key,
            Self::Unlocked(key) => key,
        }
    }
}

/// A thread and its wrapped data key.
pub(crate) type Thread<'a> = (Binary<'a>, Binary<'a>);

impl Vault {
    /// Opens the data key of an account.
    pub(crate) fn account_key(&self, account: &Account<'_>) -> Result<AccountKey, Reason> {
        match &account.key {
            KeyTerm::Wrapped(wrapped) => self
                .keys
                .open_data_key(&account_context(&account.user), wrapped)
                .map(AccountKey::Own)
                .map_err(Reason::from),
            KeyTerm::Unlocked(unlocked) => unlocked.key(&account.user).map(AccountKey::Unlocked),
        }
    }

    /// Opens the data key of a thread.
    pub(crate) fn thread_key(&self, (thread, wrapped): &Thread<'_>) -> Result<DataKey, Reason> {
        Ok(self.keys.open_data_key(&thread_context(thread), wrapped)?)
    }

    /// Opens a key of the service itself.
    pub(crate) fn open_key(&self, context: &Context, wrapped: &[u8]) -> Result<SecretKey, Reason> {
        Ok(self.keys.open_secret_key(context, wrapped)?)
    }

    /// Wraps a key of the service itself.
    pub(crate) fn wrap_key(&self, context: &Context, key: &SecretKey) -> Result<Vec<u8>, Reason> {
        Ok(self.keys.wrap_secret_key(&mut SysRng, context, key)?)
    }

    /// What was wrapped for a place under the current key-encryption key, or nothing when it is already.
    pub(crate) fn rewrap(
        &self,
        context: &Context,
        wrapped: &[u8],
    ) -> Result<Option<Vec<u8>>, Reason> {
        Ok(self.keys.rewrap(&mut SysRng, context, wrapped)?)
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
pub(crate) fn user<'a>(account: &'a Account<'_>) -> Result<&'a str, Reason> {
    std::str::from_utf8(&account.user).map_err(|_| Reason::Malformed)
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
            VaultError::Locked => Self::Locked,
            VaultError::TooLarge => Self::TooLarge,
            // A machine without random numbers is broken, as a program that panics is.
            VaultError::Random => Self::Panic,
            VaultError::Cold => Self::Cold,
            VaultError::Unmade => Self::Unmade,
            VaultError::Unavailable => Self::Unavailable,
        }
    }
}

impl From<LockError> for Reason {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Password(error) => error.into(),
            LockError::Vault(error) => error.into(),
            LockError::WrongPassword => Self::WrongPassword,
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
/// term; `{:key, bytes}` is for tests. See [`crate::kms`] for the others. Data keys that are drawn seal with `cipher`.
#[rustler::nif(schedule = "DirtyIo")]
fn vault_open<'a>(
    env: Env<'a>,
    current: &str,
    keys: Vec<(&str, Term<'a>)>,
    limits: LimitsTerm,
    cipher: Atom,
) -> NifResult<Term<'a>> {
    let cipher = terms::cipher(cipher).ok_or(rustler::Error::BadArg)?;
    let keys = keys
        .into_iter()
        .map(|(id, source)| Ok((id, KeySourceTerm::decode(source)?)))
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
        let keys = kith_vault::Vault::new(KeyId::new(current)?, keys)?
            .with_cache(limits.cache())
            .with_cipher(cipher);
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
        let sealed = key.seal(
            &mut SysRng,
            &self_context(&account.user),
            plaintext.as_slice(),
        )?;
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
        let plaintext = key.open(&self_context(&account.user), sealed.as_slice())?;
        Ok::<_, Reason>(Bytes(plaintext.as_slice()).encode(env))
    })
}

pub(crate) fn token_context(user: &Binary<'_>) -> Context {
    Context::new("unlock-token").bytes(user.as_slice())
}

/// Draws a new data key for an account and locks it under a password: `{:ok, {blob, unlocked}}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_lock<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    password: Binary<'a>,
    parameters: ParametersTerm,
) -> Term<'a> {
    seam::call(env, "account_lock", || {
        let (blob, key) = vault.keys.create_locked_data_key(
            &mut SysRng,
            &account_context(&user),
            costs(parameters)?,
            &password,
        )?;
        Ok::<_, Reason>((Bytes(blob), Unlocked::new(&user, key)))
    })
}

/// Locks an unlocked data key under another password.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_relock<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    unlocked: ResourceArc<Unlocked>,
    password: Binary<'a>,
    parameters: ParametersTerm,
) -> Term<'a> {
    seam::call(env, "account_relock", || {
        let key = unlocked.key(&user)?;
        let context = account_context(&user);
        let blob = vault
            .keys
            .lock(&mut SysRng, &context, costs(parameters)?, &password, &key)?;
        Ok::<_, Reason>(Bytes(blob))
    })
}

/// Opens a locked data key with its password.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_unlock<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    blob: Binary<'a>,
    password: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "account_unlock", || {
        let key = vault
            .keys
            .unlock(&account_context(&user), &blob, &password)?;
        Ok::<_, Reason>(Unlocked::new(&user, key))
    })
}

/// What a locked data key costs to open: `{memory, passes, parallelism}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_costs<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    blob: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "account_costs", || {
        let parameters = vault.keys.lock_parameters(&account_context(&user), &blob)?;
        let costs: ParametersTerm = (
            parameters.memory(),
            parameters.passes(),
            parameters.parallelism(),
        );
        Ok::<_, Reason>(costs)
    })
}

/// Forgets an unlocked data key, whoever else holds the reference. A call that works with it ends first.
#[rustler::nif]
fn account_close<'a>(env: Env<'a>, unlocked: ResourceArc<Unlocked>) -> Term<'a> {
    seam::call_unit(env, "account_close", || {
        *unlocked.key.lock() = None;
        Ok::<_, Reason>(())
    })
}

/// An unlocked data key as an account has it that is not locked.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_wrap<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    unlocked: ResourceArc<Unlocked>,
) -> Term<'a> {
    seam::call(env, "account_wrap", || {
        let key = unlocked.key(&user)?;
        let blob = vault
            .keys
            .wrap_unlocked(&mut SysRng, &account_context(&user), &key)?;
        Ok::<_, Reason>(Bytes(blob))
    })
}

/// `{:ok, {token, id}}`
#[rustler::nif(schedule = "DirtyCpu")]
fn account_token<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    unlocked: ResourceArc<Unlocked>,
    expires_at: u64,
) -> Term<'a> {
    seam::call(env, "account_token", || {
        let key = unlocked.key(&user)?;
        let (token, id) = vault
            .keys
            .token(&mut SysRng, &token_context(&user), &key, expires_at)?;
        Ok::<_, Reason>((Bytes(token), Bytes(id)))
    })
}

/// `{:ok, {unlocked, id, expires_at}}`
#[rustler::nif(schedule = "DirtyCpu")]
fn account_open_token<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    token: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "account_open_token", || {
        let token = vault.keys.open_token(&token_context(&user), &token)?;
        let unlocked = Unlocked::new(&user, token.key);
        Ok::<_, Reason>((unlocked, Bytes(token.id), token.expires_at))
    })
}

/// The data key of an account under the current key-encryption key, or nil when it is already.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_rewrap<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    blob: Row<Binary<'a>>,
) -> Term<'a> {
    seam::call(env, "account_rewrap", || {
        let rewrapped = vault.rewrap(&account_context(&user), blob.get()?)?;
        Ok::<_, Reason>(rewrapped.map(Bytes))
    })
}

/// A locked data key as another lock with the same password, which ends what `account_same_lock` lets go on.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_lock_anew<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    blob: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "account_lock_anew", || {
        let context = account_context(&user);
        let locked = vault.keys.lock_anew(&mut SysRng, &context, &blob)?;
        Ok::<_, Reason>(Bytes(locked))
    })
}

/// Whether two locked data keys of an account are one lock, under two key-encryption keys.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_same_lock<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    user: Binary<'a>,
    one: Binary<'a>,
    other: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "account_same_lock", || {
        let context = account_context(&user);
        Ok::<_, Reason>(vault.keys.is_same_lock(&context, &one, &other)?)
    })
}

/// The data key of a thread under the current key-encryption key, or nil when it is already.
#[rustler::nif(schedule = "DirtyCpu")]
fn thread_rewrap<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    thread: Binary<'a>,
    blob: Row<Binary<'a>>,
) -> Term<'a> {
    seam::call(env, "thread_rewrap", || {
        let rewrapped = vault.rewrap(&thread_context(&thread), blob.get()?)?;
        Ok::<_, Reason>(rewrapped.map(Bytes))
    })
}

fn costs((memory, passes, parallelism): ParametersTerm) -> Result<PasswordParameters, Reason> {
    Ok(PasswordParameters::new(memory, passes, parallelism)?)
}

/// A field of a context.
enum Field<'a> {
    Bytes(Binary<'a>),
    Number(u64),
}

impl<'a> Decoder<'a> for Field<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        term.decode()
            .map(Self::Number)
            .or_else(|_| term.decode().map(Self::Bytes))
    }
}

/// What a sealed row is and where it stands, before and after.
type PlacedRow<'a> = (&'a str, Vec<Field<'a>>, Vec<Field<'a>>, Binary<'a>);

fn placed(kind: &str, fields: &[Field<'_>]) -> Context {
    fields
        .iter()
        .fold(Context::new(kind), |context, field| match field {
            Field::Bytes(bytes) => context.bytes(bytes.as_slice()),
            Field::Number(number) => context.number(*number),
        })
}

/// Seals rows of an account under another data key of it: `{kind, fields before, fields after, sealed}` each. The new row of
/// each, or why it does not open.
#[rustler::nif(schedule = "DirtyCpu")]
fn rows_reseal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    before: Row<Account<'a>>,
    after: Row<Account<'a>>,
    rows: Vec<Row<PlacedRow<'a>>>,
) -> Term<'a> {
    seam::call(env, "rows_reseal", || {
        let before = vault.account_key(before.get()?)?;
        let after = vault.account_key(after.get()?)?;
        let mut rng = random()?;
        let mut reseal = |row: &Row<PlacedRow<'_>>| {
            let (kind, from, to, sealed) = row.get()?;
            let text = before.open(&placed(kind, from), sealed)?;
            let resealed = after.seal(&mut rng, &placed(kind, to), &text)?;
            Ok::<_, Reason>(Bytes(resealed))
        };
        Ok::<_, Reason>(rows.iter().map(&mut reseal).collect::<Vec<_>>())
    })
}

fn retired_context(user: &Binary<'_>) -> Context {
    Context::new("retired-key").bytes(user.as_slice())
}

/// The data key an account had, sealed under the one it gets: `{:ok, {id, sealed}}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_retire<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    before: Row<Account<'a>>,
    after: Row<Account<'a>>,
) -> Term<'a> {
    seam::call(env, "account_retire", || {
        let before = before.get()?;
        let key = match &before.key {
            KeyTerm::Wrapped(wrapped) => Arc::new(
                vault
                    .keys
                    .open_unlocked(&account_context(&before.user), wrapped)?,
            ),
            KeyTerm::Unlocked(unlocked) => unlocked.key(&before.user)?,
        };
        let after = vault.account_key(after.get()?)?;
        let sealed = key.retire(&mut SysRng, &retired_context(&before.user), &after)?;
        Ok::<_, Reason>((Bytes(key.id().to_bytes()), Bytes(sealed)))
    })
}

/// A data key an account had before, by its id: `{:ok, unlocked}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn account_retired<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    id: Row<Binary<'a>>,
    sealed: Row<Binary<'a>>,
) -> Term<'a> {
    seam::call(env, "account_retired", || {
        let account = account.get()?;
        let id = id
            .get()?
            .as_slice()
            .try_into()
            .map_err(|_| Reason::CorruptedState)?;
        let key = vault.account_key(account)?;
        let context = retired_context(&account.user);
        let id = DataKeyId::from_bytes(id);
        let retired = UnlockedKey::from_retired(id, &context, &key, sealed.get()?)?;
        Ok::<_, Reason>(Unlocked::new(&account.user, retired))
    })
}
