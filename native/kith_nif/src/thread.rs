//! Threads and the message archive: data keys of conversations, and the messages sealed under them.

use getrandom::SysRng;
use kith_vault::Context;
use rustler::{Binary, Encoder, Env, NifMap, ResourceArc, Term};

use crate::reason::Reason;
use crate::seam;
use crate::terms::Row;
use crate::vault::{Bytes, Thread, Vault, thread_context};

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

impl PlaceTerm<'_> {
    /// What the content is bound to. A field that is absent is empty, which no number is.
    pub(crate) fn context(&self, thread: &[u8], (user, device): &OwnerTerm<'_>) -> Context {
        let context = Context::new("archived-message")
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

/// Seals one message for its place in the archive.
#[rustler::nif(schedule = "DirtyCpu")]
fn archive_seal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    thread: Row<Thread<'a>>,
    owner: OwnerTerm<'a>,
    place: PlaceTerm<'a>,
    content: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "archive_seal", || {
        let thread = thread.get()?;
        let key = vault.thread_key(thread)?;
        let context = place.context(&thread.0, &owner);
        let sealed = key.seal(&mut SysRng, &context, &content)?;
        Ok::<_, Reason>(Bytes(sealed))
    })
}

/// Opens the messages of a page, `{place, sealed}` each: `{:ok, content}` or `{:error, reason}` for each.
#[rustler::nif(schedule = "DirtyCpu")]
fn archive_open<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    thread: Row<Thread<'a>>,
    owner: OwnerTerm<'a>,
    rows: Vec<Row<(PlaceTerm<'a>, Binary<'a>)>>,
) -> Term<'a> {
    seam::call(env, "archive_open", || {
        let thread = thread.get()?;
        let key = vault.thread_key(thread)?;
        let open = |row: &Row<(PlaceTerm<'_>, Binary<'_>)>| {
            let (place, sealed) = row.get()?;
            let content = key.open(&place.context(&thread.0, &owner), sealed)?;
            // As a term at once, so that no page of plaintexts stands here beside the one in Elixir.
            Ok::<_, Reason>(Bytes(content.as_slice()).encode(env))
        };
        Ok::<_, Reason>(rows.iter().map(open).collect::<Vec<_>>())
    })
}
