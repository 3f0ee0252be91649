//! Threads and the message archive: data keys of conversations, and the messages sealed under them.

use kith_vault::{Context, DataKey};
use rand::rngs::StdRng;
use rustler::{Binary, Encoder, Env, NifMap, ResourceArc, Term};
use zeroize::Zeroizing;

use crate::reason::Reason;
use crate::seam;
use crate::terms::Row;
use crate::vault::{Account, AccountKey, Bytes, Thread, Vault, random, thread_context};

/// Whose archive it is: a user and a device.
pub(crate) type OwnerTerm<'a> = (Binary<'a>, u8);

/// Where an archived message stands: every column of its row but the content.
#[derive(NifMap)]
pub(crate) struct PlaceTerm<'a> {
    position: u64,
    message_id: Binary<'a>,
    /// The user and the device it is from; nobody for what the owner sent.
    sender: Option<(Binary<'a>, u8)>,
    sent_at: Option<u64>,
    expires_at: Option<u64>,
}

/// The first byte of a content that is sealed under the key of its owner's account too: it opens while that is unlocked.
/// What Elixir writes begins with another one, see `Kith.MessageArchive`.
const OWNED: u8 = 0x80;

impl PlaceTerm<'_> {
    pub(crate) fn context(&self, thread: &[u8], owner: &OwnerTerm<'_>) -> Context {
        self.bound("archived-message", thread, owner)
    }

    fn owned_context(&self, thread: &[u8], owner: &OwnerTerm<'_>) -> Context {
        self.bound("owned-message", thread, owner)
    }

    /// What the content is bound to. A field that is absent is empty, which no number is.
    fn bound(&self, kind: &str, thread: &[u8], (user, device): &OwnerTerm<'_>) -> Context {
        let context = Context::new(kind)
            .bytes(user.as_slice())
            .number((*device).into())
            .bytes(thread)
            .number(self.position)
            .bytes(self.message_id.as_slice());
        let context = match &self.sender {
            Some((user, device)) => context.bytes(user.as_slice()).number((*device).into()),
            None => context.bytes("").bytes(""),
        };
        [self.sent_at, self.expires_at]
            .into_iter()
            .fold(context, |context, time| match time {
                Some(time) => context.number(time),
                None => context.bytes(""),
            })
    }
}

/// Draws the data key of a new thread and wraps it.
#[rustler::nif(schedule = "DirtyCpu")]
fn thread_create<'a>(env: Env<'a>, vault: ResourceArc<Vault>, thread: Binary<'a>) -> Term<'a> {
    seam::call(env, "thread_create", || {
        vault.create_key(&thread_context(&thread)).map(Bytes)
    })
}

/// A message as its row has it: under the key of the thread, and below that under the key of an account that is locked.
fn seal_message(
    rng: &mut StdRng,
    key: &DataKey,
    account: Option<&AccountKey>,
    (place, thread, owner): (&PlaceTerm<'_>, &[u8], &OwnerTerm<'_>),
    content: &[u8],
) -> Result<Vec<u8>, Reason> {
    let context = place.context(thread, owner);
    let Some(account) = account else {
        return Ok(key.seal(rng, &context, content)?);
    };
    let mut owned = account.seal(rng, &place.owned_context(thread, owner), content)?;
    owned.insert(0, OWNED);
    Ok(key.seal(rng, &context, &owned)?)
}

pub(crate) fn open_message(
    key: &DataKey,
    account: Option<&AccountKey>,
    (place, thread, owner): (&PlaceTerm<'_>, &[u8], &OwnerTerm<'_>),
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Reason> {
    let content = key.open(&place.context(thread, owner), sealed)?;
    match content.split_first() {
        Some((&OWNED, owned)) => {
            // Whoever calls has read of the row that it is under no account.
            let account = account.ok_or(Reason::CorruptedState)?;
            Ok(account.open(&place.owned_context(thread, owner), owned)?)
        }
        _ => Ok(content),
    }
}

fn account_key(
    vault: &Vault,
    account: &Row<Option<Account<'_>>>,
) -> Result<Option<AccountKey>, Reason> {
    account
        .get()?
        .as_ref()
        .map(|account| vault.account_key(account))
        .transpose()
}

/// Seals one message for its place in the archive, under the key of its owner's account too where one is given.
#[rustler::nif(schedule = "DirtyCpu")]
fn archive_seal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    thread: Row<Thread<'a>>,
    account: Row<Option<Account<'a>>>,
    owner: OwnerTerm<'a>,
    place: PlaceTerm<'a>,
    content: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "archive_seal", || {
        let thread = thread.get()?;
        let key = vault.thread_key(thread)?;
        let account = account_key(&vault, &account)?;
        let at = (&place, thread.0.as_slice(), &owner);
        seal_message(&mut random()?, &key, account.as_ref(), at, &content).map(Bytes)
    })
}

/// Opens the messages of a page, `{place, sealed}` each: `{:ok, content}` or `{:error, reason}` for each.
#[rustler::nif(schedule = "DirtyCpu")]
fn archive_open<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    thread: Row<Thread<'a>>,
    account: Row<Option<Account<'a>>>,
    owner: OwnerTerm<'a>,
    rows: Vec<Row<(PlaceTerm<'a>, Binary<'a>)>>,
) -> Term<'a> {
    seam::call(env, "archive_open", || {
        let thread = thread.get()?;
        let key = vault.thread_key(thread)?;
        let account = account_key(&vault, &account)?;
        let open = |row: &Row<(PlaceTerm<'_>, Binary<'_>)>| {
            let (place, sealed) = row.get()?;
            let at = (place, thread.0.as_slice(), &owner);
            let content = open_message(&key, account.as_ref(), at, sealed)?;
            // As a term at once, so that no page of plaintexts stands here beside the one in Elixir.
            Ok::<_, Reason>(Bytes(content.as_slice()).encode(env))
        };
        Ok::<_, Reason>(rows.iter().map(open).collect::<Vec<_>>())
    })
}

/// Whose row it is, where it stands, and how it is sealed.
type OwnedRow<'a> = (OwnerTerm<'a>, PlaceTerm<'a>, Binary<'a>);

/// Seals messages of a thread anew under another data key of it: the new content of each, or why it does not open. What
/// is under the key of an account below stays so, whether that is locked or not.
#[rustler::nif(schedule = "DirtyCpu")]
fn thread_reseal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    before: Row<Thread<'a>>,
    after: Row<Thread<'a>>,
    rows: Vec<Row<OwnedRow<'a>>>,
) -> Term<'a> {
    seam::call(env, "thread_reseal", || {
        let (before, after) = (before.get()?, after.get()?);
        let (from, to) = (vault.thread_key(before)?, vault.thread_key(after)?);
        let mut rng = random()?;
        let mut reseal = |row: &Row<OwnedRow<'_>>| {
            let (owner, place, sealed) = row.get()?;
            let context = place.context(before.0.as_slice(), owner);
            let content = from.open(&context, sealed)?;
            let context = place.context(after.0.as_slice(), owner);
            Ok::<_, Reason>(Bytes(to.seal(&mut rng, &context, &content)?))
        };
        Ok::<_, Reason>(rows.iter().map(&mut reseal).collect::<Vec<_>>())
    })
}

/// Seals messages of a thread anew, under another data key of their owner's account, or none.
/// The new content of each, or why it does not open.
#[rustler::nif(schedule = "DirtyCpu")]
fn archive_reseal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    thread: Row<Thread<'a>>,
    (locked, relocked): (Row<Option<Account<'a>>>, Row<Option<Account<'a>>>),
    rows: Vec<Row<OwnedRow<'a>>>,
) -> Term<'a> {
    seam::call(env, "archive_reseal", || {
        let thread = thread.get()?;
        let key = vault.thread_key(thread)?;
        let locked = account_key(&vault, &locked)?;
        let relocked = account_key(&vault, &relocked)?;
        let mut rng = random()?;
        let mut reseal = |row: &Row<OwnedRow<'_>>| {
            let (owner, place, sealed) = row.get()?;
            let at = (place, thread.0.as_slice(), owner);
            let content = open_message(&key, locked.as_ref(), at, sealed)?;
            seal_message(&mut rng, &key, relocked.as_ref(), at, &content).map(Bytes)
        };
        Ok::<_, Reason>(rows.iter().map(&mut reseal).collect::<Vec<_>>())
    })
}
