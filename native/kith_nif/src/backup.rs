//! Backups: rows are opened and their content written, content is read and sealed into rows. In between nothing of it is a
//! term.

use std::collections::VecDeque;

use getrandom::SysRng;
use kith_protocol::{Entry, EntryGroup, IdentityKey, KyberKeyPair, PublicKey, Session, SessionId};
use kith_vault::{BackupError, BackupReader, BackupSecret, BackupWriter, PasswordParameters};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rustler::{
    Atom, Binary, Encoder, Env, NifResult, NifTaggedEnum, NifUnitEnum, Resource, ResourceArc, Term,
};
use zeroize::Zeroizing;

use crate::conversation::{BraidTerm, Owner, Remembered};
use crate::device::{KyberKind, PreKeyContext, identity_context};
use crate::reason::Reason;
use crate::recovery_key::RecoveryKey;
use crate::seam;
use crate::terms::Row;
use crate::thread::{OwnerTerm, PlaceTerm, open_message};
use crate::vault::{Account, Bytes, Thread, Vault, random, user};

mod atoms {
    rustler::atoms! {
        passphrase,
        recovery_key,
    }
}

/// A backup that is being written. It is taken out for each call and put back when the call has succeeded: after a panic
/// there is none.
struct Writing(Mutex<Option<BackupWriter>>);

#[rustler::resource_impl]
impl Resource for Writing {}

/// A backup that is being read, and the secret parts of the records that were read, in their order.
struct Reading(Mutex<Option<Read>>);

#[rustler::resource_impl]
impl Resource for Reading {}

struct Read {
    /// Until the end was read.
    reader: Option<BackupReader>,
    secrets: VecDeque<Zeroizing<Vec<u8>>>,
}

impl From<BackupError> for Reason {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Malformed => Self::Malformed,
            BackupError::OutOfMemory => Self::Busy,
            // A machine without random numbers is broken, as a program that panics is.
            BackupError::Random => Self::Panic,
            BackupError::Tampered => Self::Tampered,
            BackupError::TooLarge => Self::TooLarge,
            BackupError::UnsupportedVersion => Self::UnsupportedVersion,
            BackupError::WrongSecret => Self::WrongSecret,
        }
    }
}

/// `{:passphrase, bytes}` or `{:recovery_key, key}`.
enum SecretTerm<'a> {
    Passphrase(Binary<'a>),
    Key(ResourceArc<RecoveryKey>),
}

impl<'a> SecretTerm<'a> {
    fn decode((kind, secret): (Atom, Term<'a>)) -> NifResult<Self> {
        if kind == atoms::passphrase() {
            Ok(Self::Passphrase(secret.decode()?))
        } else if kind == atoms::recovery_key() {
            Ok(Self::Key(secret.decode()?))
        } else {
            Err(rustler::Error::BadArg)
        }
    }

    fn secret(&self) -> BackupSecret<'_> {
        match self {
            Self::Passphrase(bytes) => BackupSecret::Passphrase(bytes),
            Self::Key(key) => BackupSecret::RecoveryKey(&key.0),
        }
    }
}

/// A user and a device.
type AddressTerm<'a> = (Binary<'a>, u8);

/// Kinds of prekeys, as the database names them.
#[derive(Clone, Copy, NifUnitEnum)]
enum PreKeyKind {
    OneTime,
    Signed,
    KyberOneTime,
    KyberLastResort,
}

impl PreKeyKind {
    const fn context(self) -> PreKeyContext {
        match self {
            Self::OneTime => PreKeyContext::OneTime,
            Self::Signed => PreKeyContext::Signed,
            Self::KyberOneTime => PreKeyContext::Kyber(KyberKind::KyberOneTime),
            Self::KyberLastResort => PreKeyContext::Kyber(KyberKind::KyberLastResort),
        }
    }
}

/// A row to write: where it is, and what is sealed in it.
#[derive(NifTaggedEnum)]
#[rustler(decode)]
enum RowTerm<'a> {
    /// A record without a secret.
    None,
    /// Device, sealed pair.
    Identity(u8, Binary<'a>),
    /// Kind, device, id, sealed key.
    Prekey(PreKeyKind, u8, u32, Binary<'a>),
    /// Device, peer, what is remembered of them.
    Peer(u8, AddressTerm<'a>, Binary<'a>),
    /// Device, peer, generation, state, braid.
    Session(u8, AddressTerm<'a>, u64, Binary<'a>, Option<BraidTerm<'a>>),
    /// Device, peer, session id, position, sealed session.
    Archived(u8, AddressTerm<'a>, Binary<'a>, u64, Binary<'a>),
    /// Device, peer, session id, group, number, sealed entry.
    Entry(u8, AddressTerm<'a>, Binary<'a>, Binary<'a>, u32, Binary<'a>),
    /// Thread, the account under whose key it may lie too, owner, place, sealed content.
    Message(
        Thread<'a>,
        Account<'a>,
        OwnerTerm<'a>,
        PlaceTerm<'a>,
        Binary<'a>,
    ),
}

impl RowTerm<'_> {
    /// Whether a key service has to be asked first.
    fn needs_a_service(&self, vault: &Vault) -> Result<(), Reason> {
        match self {
            Self::Message(thread, account, ..) => {
                only_cold(vault.thread_key(thread))?;
                only_cold(vault.account_key(account))
            }
            _ => Ok(()),
        }
    }

    fn open(&self, vault: &Vault, account: &Account<'_>) -> Result<Zeroizing<Vec<u8>>, Reason> {
        let owner = |device| Owner::open(vault, account, device);
        match self {
            Self::None => Ok(Zeroizing::new(Vec::new())),
            Self::Identity(device, sealed) => {
                let context = identity_context(user(account)?, *device);
                Ok(vault.account_key(account)?.open(&context, sealed)?)
            }
            Self::Prekey(kind, device, id, sealed) => {
                let context = kind.context().of(user(account)?, *device, *id);
                Ok(vault.account_key(account)?.open(&context, sealed)?)
            }
            Self::Peer(device, (peer, peer_device), sealed) => {
                let owner = owner(*device)?;
                let remembered = owner.with(peer, *peer_device)?.open_identity(sealed)?;
                Ok(Zeroizing::new(remembered_bytes(&remembered)))
            }
            Self::Session(device, (peer, peer_device), generation, state, braid) => {
                let owner = owner(*device)?;
                let session = owner
                    .with(peer, *peer_device)?
                    .open_session(*generation, Some(state), braid.as_ref())?
                    .ok_or(Reason::CorruptedState)?;
                Ok(session.to_bytes())
            }
            Self::Archived(device, (peer, peer_device), id, position, sealed) => {
                let owner = owner(*device)?;
                let archive = [(*id, *position, *sealed)];
                let sessions = owner.with(peer, *peer_device)?.open_archive(&archive)?;
                let session = sessions.first().ok_or(Reason::CorruptedState)?;
                Ok(session.to_bytes())
            }
            Self::Entry(device, (peer, peer_device), id, group, number, sealed) => {
                let owner = owner(*device)?;
                let entries = [(*id, *group, *number, *sealed)];
                let entries = owner.with(peer, *peer_device)?.open_entries(&entries)?;
                let entry = entries.values().next().ok_or(Reason::CorruptedState)?;
                Ok(Zeroizing::new(entry.to_bytes().to_vec()))
            }
            Self::Message(thread, account, owner, place, sealed) => {
                let key = vault.thread_key(thread)?;
                let account = vault.account_key(account)?;
                open_message(&key, Some(&account), (place, &thread.0, owner), sealed)
            }
        }
    }
}

/// What else is wrong is found again where it matters.
fn only_cold<T>(opened: Result<T, Reason>) -> Result<(), Reason> {
    match opened {
        Err(Reason::Cold) => Err(Reason::Cold),
        _ => Ok(()),
    }
}

fn remembered_bytes(remembered: &Remembered) -> Vec<u8> {
    let flags = [u8::from(remembered.verified), remembered.version];
    [remembered.key.to_bytes().as_slice(), &flags].concat()
}

/// Where a record that was read is to lie.
#[derive(NifTaggedEnum)]
enum PlaceOfRow<'a> {
    /// A record without a secret, or one that is left out.
    None,
    /// Device, public key.
    Identity(u8, Binary<'a>),
    /// Kind, device, id, public key.
    Prekey(PreKeyKind, u8, u32, Binary<'a>),
    /// Device, peer.
    Peer(u8, AddressTerm<'a>),
    /// Device, peer. It is the first generation of its row.
    Session(u8, AddressTerm<'a>),
    /// Device, peer, position.
    Archived(u8, AddressTerm<'a>, u64),
    /// Device, peer, session id, group, number.
    Entry(u8, AddressTerm<'a>, Binary<'a>, Binary<'a>, u32),
    /// Thread, owner, place.
    Message(Thread<'a>, OwnerTerm<'a>, PlaceTerm<'a>),
}

/// The generation of a session in a row that has just been made.
const FIRST_GENERATION: u64 = 1;

impl PlaceOfRow<'_> {
    /// Seals what was read. Whoever made the backup may have written anything into it.
    fn seal<'a>(
        &self,
        env: Env<'a>,
        rng: &mut StdRng,
        vault: &Vault,
        account: &Account<'_>,
        secret: &[u8],
    ) -> Result<Term<'a>, Reason> {
        let owner = |device| Owner::open(vault, account, device);
        let sealed = match self {
            Self::None => return Ok(crate::atoms::nil().encode(env)),
            Self::Identity(device, public) => {
                checked_pair(secret, public)?;
                let context = identity_context(user(account)?, *device);
                vault.account_key(account)?.seal(rng, &context, secret)?
            }
            // One whose private half was erased, and that base keys still belong to.
            Self::Prekey(..) if secret.is_empty() => return Ok(crate::atoms::nil().encode(env)),
            Self::Prekey(kind, device, id, public) => {
                match kind.context() {
                    PreKeyContext::Kyber(_) => checked_seed(secret, public)?,
                    _ => checked_pair(secret, public)?,
                }
                let context = kind.context().of(user(account)?, *device, *id);
                vault.account_key(account)?.seal(rng, &context, secret)?
            }
            Self::Peer(device, (peer, peer_device)) => {
                let owner = owner(*device)?;
                let conversation = owner.with(peer, *peer_device)?;
                let (key, &[verified, version]) =
                    secret.split_last_chunk().ok_or(Reason::Malformed)?;
                let remembered = Remembered {
                    key: IdentityKey::from_bytes(key).map_err(|_| Reason::Malformed)?,
                    verified: verified != 0,
                    version,
                };
                return Ok(conversation.seal_identity(rng, remembered)?.encode(env));
            }
            Self::Session(device, (peer, peer_device)) => {
                let owner = owner(*device)?;
                let sealed = owner.with(peer, *peer_device)?.seal_session(
                    rng,
                    FIRST_GENERATION,
                    (None, None),
                    &session(secret)?,
                )?;
                return Ok((sealed.state, sealed.braid).encode(env));
            }
            Self::Archived(device, (peer, peer_device), position) => {
                let owner = owner(*device)?;
                let conversation = owner.with(peer, *peer_device)?;
                let sealed = conversation.seal_archived(rng, *position, &session(secret)?)?;
                return Ok(sealed.encode(env));
            }
            Self::Entry(device, (peer, peer_device), id, group, number) => {
                let owner = owner(*device)?;
                let id = id.as_slice().try_into().map_err(|_| Reason::Malformed)?;
                let group = EntryGroup::from_bytes(group).map_err(|_| Reason::Malformed)?;
                let (_, _, Bytes(sealed)) = owner.with(peer, *peer_device)?.seal_entry(
                    rng,
                    &SessionId::from_bytes(id),
                    (group, *number),
                    &Entry::from_bytes(secret).map_err(|_| Reason::Malformed)?,
                )?;
                sealed
            }
            Self::Message(thread, owner, place) => {
                let context = place.context(&thread.0, owner);
                vault.thread_key(thread)?.seal(rng, &context, secret)?
            }
        };
        Ok(Bytes(sealed).encode(env))
    }
}

fn session(bytes: &[u8]) -> Result<Session, Reason> {
    Session::from_bytes(bytes).map_err(|_| Reason::Malformed)
}

/// `private (32) ‖ public (33)`, of just this public key.
fn checked_pair(pair: &[u8], public: &[u8]) -> Result<(), Reason> {
    let (_private, own) = pair.split_first_chunk::<32>().ok_or(Reason::Malformed)?;
    PublicKey::from_bytes(own).map_err(|_| Reason::Malformed)?;
    if own == public {
        Ok(())
    } else {
        Err(Reason::Malformed)
    }
}

/// The seed (64) of just this public key.
fn checked_seed(seed: &[u8], public: &[u8]) -> Result<(), Reason> {
    let pair = KyberKeyPair::from_seed(seed.try_into().map_err(|_| Reason::Malformed)?);
    if pair.public_key().to_bytes() == *public {
        Ok(())
    } else {
        Err(Reason::Malformed)
    }
}

/// Begins a backup: `{:ok, {writer, header}}`. The parameters are those of Argon2id, for a passphrase.
#[rustler::nif(schedule = "DirtyCpu")]
fn backup_create<'a>(
    env: Env<'a>,
    secret: (Atom, Term<'a>),
    (memory, passes, parallelism): (u32, u32, u32),
) -> NifResult<Term<'a>> {
    let secret = SecretTerm::decode(secret)?;
    Ok(seam::call(env, "backup_create", || {
        let parameters = PasswordParameters::new(memory, passes, parallelism)?;
        let (writer, header) = BackupWriter::create(&mut SysRng, secret.secret(), parameters)?;
        let writer = ResourceArc::new(Writing(Mutex::new(Some(writer))));
        Ok::<_, Reason>((writer, Bytes(header)))
    }))
}

/// Writes records, `{kind, public, row}` each: `{:ok, {bytes, damaged}}`, with the places in the list of those that were left
/// out because their row does not open.
#[rustler::nif(schedule = "DirtyCpu")]
fn backup_write<'a>(
    env: Env<'a>,
    writing: ResourceArc<Writing>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    records: Vec<(u8, Binary<'a>, Row<RowTerm<'a>>)>,
) -> Term<'a> {
    seam::call(env, "backup_write", || {
        let account = account.get()?;
        // Before anything is written, which cannot be taken back.
        only_cold(vault.account_key(account))?;
        for (_, _, row) in &records {
            row.get()
                .map_or(Ok(()), |row| row.needs_a_service(&vault))?;
        }
        let mut writer = writing.0.lock().take().ok_or(Reason::Malformed)?;
        let (mut output, mut damaged) = (Vec::new(), Vec::new());
        for (place, (kind, public, row)) in records.iter().enumerate() {
            match row.get().and_then(|row| row.open(&vault, account)) {
                Ok(secret) => writer.write(*kind, public, &secret, &mut output)?,
                Err(Reason::CorruptedState) => damaged.push(place),
                Err(reason) => return Err(reason),
            }
        }
        *writing.0.lock() = Some(writer);
        Ok((Bytes(output), damaged))
    })
}

/// Ends a backup: `{:ok, bytes}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn backup_finish(env: Env<'_>, writing: ResourceArc<Writing>) -> Term<'_> {
    seam::call(env, "backup_finish", || {
        let writer = writing.0.lock().take().ok_or(Reason::Malformed)?;
        Ok::<_, Reason>(Bytes(writer.finish()?))
    })
}

/// Begins to read a backup: `{:ok, reader}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn backup_open<'a>(
    env: Env<'a>,
    header: Binary<'a>,
    secret: (Atom, Term<'a>),
) -> NifResult<Term<'a>> {
    let secret = SecretTerm::decode(secret)?;
    Ok(seam::call(env, "backup_open", || {
        let reader = BackupReader::open(&header, secret.secret())?;
        let read = Read {
            reader: Some(reader),
            secrets: VecDeque::new(),
        };
        Ok::<_, Reason>(ResourceArc::new(Reading(Mutex::new(Some(read)))))
    }))
}

/// `{:ok, [{kind, public}]}` of the records that are complete with these bytes, and with nil, at the end, of the rest. Their
/// secret parts wait for `backup_seal`.
#[rustler::nif(schedule = "DirtyCpu")]
fn backup_read<'a>(
    env: Env<'a>,
    reading: ResourceArc<Reading>,
    bytes: Option<Binary<'a>>,
) -> Term<'a> {
    seam::call(env, "backup_read", || {
        let mut read = reading.0.lock().take().ok_or(Reason::Malformed)?;
        let records = match &bytes {
            Some(bytes) => read.reader.as_mut().ok_or(Reason::Malformed)?.read(bytes)?,
            None => read.reader.take().ok_or(Reason::Malformed)?.finish()?,
        };
        let mut found = Vec::with_capacity(records.len());
        for record in records {
            found.push((record.kind, Bytes(record.public)));
            read.secrets.push_back(record.secret);
        }
        *reading.0.lock() = Some(read);
        Ok::<_, Reason>(found)
    })
}

/// Seals the records that were read first for their places: `{:ok, [sealed]}`, one for each place.
#[rustler::nif(schedule = "DirtyCpu")]
fn backup_seal<'a>(
    env: Env<'a>,
    reading: ResourceArc<Reading>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    places: Vec<PlaceOfRow<'a>>,
) -> Term<'a> {
    seam::call(env, "backup_seal", || {
        let account = account.get()?;
        // Before anything is taken.
        only_cold(vault.account_key(account))?;
        for place in &places {
            if let PlaceOfRow::Message(thread, ..) = place {
                only_cold(vault.thread_key(thread))?;
            }
        }
        let mut read = reading.0.lock().take().ok_or(Reason::Malformed)?;
        let mut rng = random()?;
        let sealed = places
            .iter()
            .map(|place| {
                let secret = read.secrets.pop_front().ok_or(Reason::Malformed)?;
                place.seal(env, &mut rng, &vault, account, &secret)
            })
            .collect::<Result<Vec<_>, Reason>>()?;
        *reading.0.lock() = Some(read);
        Ok::<_, Reason>(sealed)
    })
}

/// Forgets the secret parts that wait: of a backup that is only looked at.
#[rustler::nif]
fn backup_drop(env: Env<'_>, reading: ResourceArc<Reading>) -> Term<'_> {
    seam::call_unit(env, "backup_drop", || {
        let mut reading = reading.0.lock();
        let read = reading.as_mut().ok_or(Reason::Malformed)?;
        read.secrets.clear();
        Ok::<_, Reason>(())
    })
}
