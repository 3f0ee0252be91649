//! Taking over the sessions of an app that used Signal's own library.

use kith_protocol::limits::MAX_ARCHIVED_SESSIONS;
use kith_protocol::{
    Direction, OfficialRecord, RecordError, Session, SessionId, SessionRecord, Trust,
};
use rand::rngs::StdRng;
use rustler::{Binary, Env, ResourceArc, Term};

use crate::atoms;
use crate::conversation::{Conversation, Owner, PeerTerm, Written, position};
use crate::device::LocalTerm;
use crate::reason::Reason;
use crate::seam;
use crate::session::next;
use crate::terms::{Row, map};
use crate::vault::{Account, Bytes, Vault, random};

impl From<RecordError> for Reason {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Damaged => Self::Malformed,
            RecordError::UnsupportedVersion(_) | RecordError::WithoutPostQuantumRatchet => {
                Self::UnsupportedVersion
            }
        }
    }
}

/// Opens an official session record and seals its sessions as those with a peer: `{:ok, map}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn session_import<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    local: Row<LocalTerm<'a>>,
    peer: Row<PeerTerm<'a>>,
    record: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "session_import", || {
        let (local, peer) = (local.get()?, peer.get()?);
        let owner = Owner::open(&vault, account.get()?, local.device)?;
        let conversation = owner.with(&peer.user, peer.device)?;
        let record = OfficialRecord::from_bytes(&record)?;
        import(env, &owner, &conversation, local, peer, &record)
    })
}

fn import<'a>(
    env: Env<'a>,
    owner: &Owner,
    conversation: &Conversation<'_>,
    local: &LocalTerm<'_>,
    peer: &PeerTerm<'_>,
    OfficialRecord { sessions, entries }: &OfficialRecord,
) -> Result<Term<'a>, Reason> {
    let current = sessions.current();
    let newest = current
        .or_else(|| sessions.archived().first())
        .ok_or(Reason::Malformed)?;
    let own = owner.identity(&local.identity)?.identity_key();
    if current
        .into_iter()
        .chain(sessions.archived())
        .any(|session| *session.local_identity() != own)
    {
        return Err(Reason::Malformed);
    }
    let known = conversation.known(peer.identity.as_deref(), peer.sibling.as_ref())?;
    let remote_identity = newest.remote_identity();
    if !known
        .trust()
        .is_trusted(remote_identity, Direction::Receiving)
    {
        return Err(Reason::UntrustedIdentity);
    }
    let minimum_version = conversation.remote(local, &known).minimum_version;
    if current.is_some_and(|session| session.version() < minimum_version) {
        return Err(Reason::UnsupportedVersion);
    }
    let Archive {
        replaced,
        added,
        dropped,
    } = Archive::new(conversation, peer, sessions)?;
    let mut rng = random()?;
    let rng = &mut rng;
    let version = sessions
        .archived()
        .iter()
        .fold(newest.version(), |highest, session| {
            highest.max(session.version())
        });
    let archived = replaced
        .iter()
        .chain(added)
        .rev()
        .enumerate()
        .map(|(rank, session)| {
            conversation.seal_archived(rng, position(peer.generation, rank)?, session)
        })
        .collect::<Result<Vec<_>, Reason>>()?;
    let sealed = current
        .map(|session| {
            conversation.seal_session(rng, next(peer.generation)?, (None, None), session)
        })
        .transpose()?;
    let (state, braid) = sealed.map(|sealed| (sealed.state, sealed.braid)).unzip();
    let identity = conversation.seal_news(rng, &known, remote_identity, version)?;
    let entries = current
        .into_iter()
        .chain(added)
        .map(|session| seal_entries(conversation, rng, session.id(), entries))
        .collect::<Result<Vec<_>, Reason>>()?;
    Ok(map(
        env,
        &[
            (atoms::identity_key(), &Bytes(remote_identity.to_bytes())),
            (atoms::state(), &state),
            (atoms::braid(), &braid.flatten()),
            (atoms::identity(), &identity),
            (atoms::archived(), &archived),
            (atoms::archive_dropped(), &dropped),
            (atoms::entries(), &entries),
        ],
    ))
}

/// What becomes of the archive: newest first are the session that is replaced, those of the record, and those that
/// were there.
struct Archive<'a> {
    replaced: Option<Session>,
    added: &'a [Session],
    dropped: Vec<Bytes<[u8; 16]>>,
}

impl<'a> Archive<'a> {
    fn new(
        conversation: &Conversation<'_>,
        peer: &PeerTerm<'_>,
        sessions: &'a SessionRecord,
    ) -> Result<Self, Reason> {
        let stored = conversation.open_session(
            peer.generation,
            peer.state.as_deref(),
            peer.braid.as_ref(),
        )?;
        let there = peer
            .archive
            .iter()
            .flatten()
            .map(|(id, _, _)| id.as_slice().try_into().map_err(|_| Reason::CorruptedState))
            .collect::<Result<Vec<[u8; 16]>, Reason>>()?;
        let is_there = |session: &Session| {
            let id = session.id();
            stored.as_ref().is_some_and(|stored| stored.id() == id) || there.contains(id.as_bytes())
        };
        // What goes on from an older moment of a session would use its message keys again.
        if sessions.current().is_some_and(is_there) || sessions.archived().iter().any(is_there) {
            return Err(Reason::Duplicate);
        }
        let mut record = SessionRecord::from_parts(stored, Some(Vec::new()));
        record.archive_current();
        let replaced = record.archived().first().cloned();
        let room = MAX_ARCHIVED_SESSIONS - usize::from(replaced.is_some());
        let added = &sessions.archived()[..sessions.archived().len().min(room)];
        Ok(Self {
            replaced,
            added,
            dropped: there
                .into_iter()
                .skip(room - added.len())
                .map(Bytes)
                .collect(),
        })
    }
}

/// The entries of a session to write.
fn seal_entries(
    conversation: &Conversation<'_>,
    rng: &mut StdRng,
    id: SessionId,
    entries: &kith_protocol::MemoryEntries,
) -> Result<(Bytes<[u8; 16]>, Vec<Written>), Reason> {
    let written = entries
        .iter()
        .filter(|(of, _, _)| *of == id)
        .map(|(_, position, entry)| conversation.seal_entry(rng, &id, position, entry))
        .collect::<Result<Vec<_>, Reason>>()?;
    Ok((Bytes(*id.as_bytes()), written))
}
