//! Two devices, and what is stored at the first one about the second: every part sealed and bound to its place.

use std::collections::HashMap;

use std::sync::Arc;

use kith_protocol::{
    Entry, EntryGroup, EntryPosition, IdentityKey, IdentityKeyPair, LocalDevice, ProtocolAddress,
    RemoteDevice, Session, SessionId, SessionRecord, TrustOnFirstUse, Version,
};
use kith_vault::{Context, DataKey};
use rand::rngs::StdRng;
use rustler::{Binary, NifMap};

use crate::device::{KyberKind, LocalTerm, open_identity};
use crate::reason::Reason;
use crate::vault::{Account, Bytes, Vault, user};

/// A peer device, with what is stored about it.
#[derive(NifMap)]
pub(crate) struct PeerTerm<'a> {
    pub(crate) user: Binary<'a>,
    pub(crate) device: u8,
    /// Of the stored row; 0 when there is none.
    pub(crate) generation: u64,
    pub(crate) state: Option<Binary<'a>>,
    pub(crate) braid: Option<BraidTerm<'a>>,
    pub(crate) identity: Option<Binary<'a>>,
    pub(crate) sibling: Option<SiblingTerm<'a>>,
    pub(crate) archive: Option<Vec<ArchivedTerm<'a>>>,
    /// The keys a message names.
    pub(crate) entries: Option<Vec<EntryTerm<'a>>>,
    pub(crate) chunks: Option<Vec<EntryTerm<'a>>>,
    pub(crate) prekey: Option<Binary<'a>>,
    pub(crate) signed_prekey: Option<Binary<'a>>,
    pub(crate) kyber_prekey: Option<(KyberKind, Binary<'a>)>,
}

/// Session id, revision, sealed braid.
pub(crate) type BraidTerm<'a> = (Binary<'a>, u32, Binary<'a>);

/// Another device of the same user, and what is remembered of it.
pub(crate) type SiblingTerm<'a> = (u8, Binary<'a>);

/// Session id, position, sealed session.
pub(crate) type ArchivedTerm<'a> = (Binary<'a>, u64, Binary<'a>);

/// Session id, group, number, sealed entry.
pub(crate) type EntryTerm<'a> = (Binary<'a>, Binary<'a>, u32, Binary<'a>);

fn sealed_braid<'a>((_, _, sealed): &'a BraidTerm<'_>) -> &'a [u8] {
    sealed
}

/// The parts of a session to write.
pub(crate) struct SealedSession {
    pub(crate) state: Bytes<Vec<u8>>,
    pub(crate) braid: Option<Braid>,
}

/// A braid to write.
pub(crate) type Braid = (Bytes<[u8; 16]>, u32, Bytes<Vec<u8>>);

/// An archived session to insert.
pub(crate) type Archived = (Bytes<[u8; 16]>, u64, Bytes<Vec<u8>>);

/// An entry to write: group, number, sealed entry.
pub(crate) type Written = (Bytes<Vec<u8>>, u32, Bytes<Vec<u8>>);

/// Entries that were read, by session and position.
pub(crate) type Entries = HashMap<(SessionId, EntryPosition), Entry>;

/// Which braid belongs to a session: what [`Session::from_parts`] compares.
pub(crate) type Revision = (SessionId, u32);

pub(crate) fn revision(session: &Session) -> Revision {
    (session.id(), session.braid_revision())
}

/// What is remembered of a peer.
#[derive(Clone, Copy)]
pub(crate) struct Remembered {
    pub(crate) key: IdentityKey,
    pub(crate) verified: bool,
    /// The highest version of the protocol that was seen of the peer, 0 before the first session.
    pub(crate) version: u8,
}

/// Whose identity is remembered when a device is met.
pub(crate) enum Known {
    Device(Remembered),
    Sibling(Remembered),
    Nothing,
}

/// A device with the opened data key of its user.
pub(crate) struct Owner {
    data_key: Arc<DataKey>,
    pub(crate) address: ProtocolAddress,
}

impl Owner {
    pub(crate) fn open(vault: &Vault, account: &Account<'_>, device: u8) -> Result<Self, Reason> {
        Ok(Self {
            data_key: vault.account_key(account)?,
            address: address(user(account)?, device)?,
        })
    }

    pub(crate) fn data_key(&self) -> &DataKey {
        &self.data_key
    }

    pub(crate) fn identity(&self, sealed: &[u8]) -> Result<IdentityKeyPair, Reason> {
        open_identity(
            &self.data_key,
            self.address.name(),
            self.address.device_id(),
            sealed,
        )
    }

    pub(crate) const fn device<'a>(
        &'a self,
        local: &LocalTerm<'_>,
        identity: &'a IdentityKeyPair,
    ) -> LocalDevice<'a> {
        LocalDevice {
            address: &self.address,
            identity,
            registration_id: local.registration_id,
        }
    }

    pub(crate) fn with(&self, peer: &Binary<'_>, device: u8) -> Result<Conversation<'_>, Reason> {
        Ok(Conversation {
            data_key: &self.data_key,
            local: &self.address,
            remote: remote_address(peer, device)?,
        })
    }
}

fn address(name: &str, device: u8) -> Result<ProtocolAddress, Reason> {
    ProtocolAddress::new(name, device).ok_or(Reason::Malformed)
}

fn remote_address(user: &Binary<'_>, device: u8) -> Result<ProtocolAddress, Reason> {
    address(
        std::str::from_utf8(user).map_err(|_| Reason::Malformed)?,
        device,
    )
}

/// Bytes of the tag a sealed part ends with.
const TAG: usize = 16;

/// Most sessions archived at one generation: an imported record has 40, and the one it replaces is another.
const POSITIONS_PER_GENERATION: u64 = 64;

/// Where a session stands that was archived at a generation, beside others archived with it: a newer one stands higher.
pub(crate) fn position(generation: u64, rank: usize) -> Result<u64, Reason> {
    let rank = u64::try_from(rank).map_err(|_| Reason::CorruptedState)?;
    generation
        .checked_mul(POSITIONS_PER_GENERATION)
        .and_then(|first| first.checked_add(rank))
        .ok_or(Reason::CorruptedState)
}

/// Two devices and the key that seals what the first one knows of the second.
pub(crate) struct Conversation<'a> {
    data_key: &'a DataKey,
    local: &'a ProtocolAddress,
    remote: ProtocolAddress,
}

impl Conversation<'_> {
    /// What every blob of this conversation is bound to.
    fn context(&self, kind: &str) -> Context {
        [self.local, &self.remote]
            .into_iter()
            .fold(Context::new(kind), |context, address| {
                context
                    .bytes(address.name())
                    .number(address.device_id().into())
            })
    }

    /// Bound to the content of the braid beside it too, by its tag: a state goes on with no other one.
    fn session_context(&self, generation: u64, braid: Option<&[u8]>) -> Context {
        self.context("session").number(generation).bytes(
            braid
                .and_then(<[u8]>::last_chunk::<TAG>)
                .map_or(&[][..], |tag| tag),
        )
    }

    fn braid_context(&self, id: &[u8], revision: u32) -> Context {
        self.context("braid").bytes(id).number(revision.into())
    }

    fn archived_context(&self, id: &[u8], position: u64) -> Context {
        self.context("archived-session").bytes(id).number(position)
    }

    fn entry_context(&self, id: &[u8], group: &[u8], number: u32) -> Context {
        self.context("session-entry")
            .bytes(id)
            .bytes(group)
            .number(number.into())
    }

    /// The peer, held to the version that is asked of everyone or to the highest it was seen with.
    pub(crate) fn remote(&self, local: &LocalTerm<'_>, known: &Known) -> RemoteDevice<'_> {
        let seen = known.device().map_or(0, |remembered| remembered.version);
        let minimum_version = if local.minimum_version.max(seen) < Version::V4.number() {
            Version::V3
        } else {
            Version::V4
        };
        RemoteDevice {
            address: &self.remote,
            minimum_version,
        }
    }

    pub(crate) fn open_session(
        &self,
        generation: u64,
        sealed: Option<&[u8]>,
        braid: Option<&BraidTerm<'_>>,
    ) -> Result<Option<Session>, Reason> {
        let Some(sealed) = sealed else {
            return Ok(None);
        };
        let context = self.session_context(generation, braid.map(sealed_braid));
        let state = self.data_key.open(&context, sealed)?;
        let braid = braid
            .map(|(id, revision, sealed)| {
                self.data_key
                    .open(&self.braid_context(id, *revision), sealed)
            })
            .transpose()?;
        Session::from_parts(&state, braid.as_ref().map(|braid| braid.as_slice()))
            .map(Some)
            .map_err(|_| Reason::CorruptedState)
    }

    /// A session, with its braid unless that is the one of the `revision` that is stored.
    pub(crate) fn seal_session(
        &self,
        rng: &mut StdRng,
        generation: u64,
        (stored, stored_revision): (Option<&BraidTerm<'_>>, Option<Revision>),
        session: &Session,
    ) -> Result<SealedSession, Reason> {
        let braid = self.seal_braid(rng, stored_revision, session)?;
        let beside = match &braid {
            Some((_, _, Bytes(sealed))) => Some(sealed.as_slice()),
            None => stored.map(sealed_braid),
        };
        let context = self.session_context(generation, beside);
        let state = Bytes(self.data_key.seal(rng, &context, &session.state_bytes())?);
        Ok(SealedSession { state, braid })
    }

    fn seal_braid(
        &self,
        rng: &mut StdRng,
        stored: Option<Revision>,
        session: &Session,
    ) -> Result<Option<Braid>, Reason> {
        let (id, revision) = revision(session);
        if stored == Some((id, revision)) {
            return Ok(None);
        }
        session
            .braid_bytes()
            .map(|braid| {
                let context = self.braid_context(id.as_bytes(), revision);
                let sealed = self.data_key.seal(rng, &context, &braid)?;
                Ok((Bytes(*id.as_bytes()), revision, Bytes(sealed)))
            })
            .transpose()
    }

    pub(crate) fn open_archive(
        &self,
        archive: &[ArchivedTerm<'_>],
    ) -> Result<Vec<Session>, Reason> {
        archive
            .iter()
            .map(|(id, position, sealed)| {
                let context = self.archived_context(id, *position);
                let state = self.data_key.open(&context, sealed)?;
                Session::from_bytes(&state).map_err(|_| Reason::CorruptedState)
            })
            .collect()
    }

    pub(crate) fn seal_archived(
        &self,
        rng: &mut StdRng,
        position: u64,
        session: &Session,
    ) -> Result<Archived, Reason> {
        let id = session.id();
        let context = self.archived_context(id.as_bytes(), position);
        let sealed = self.data_key.seal(rng, &context, &session.to_bytes())?;
        Ok((Bytes(*id.as_bytes()), position, Bytes(sealed)))
    }

    /// What a record has archived since it was made with an empty archive: one session, or none.
    pub(crate) fn seal_replaced(
        &self,
        rng: &mut StdRng,
        generation: u64,
        record: &SessionRecord,
    ) -> Result<Option<Archived>, Reason> {
        record
            .archived()
            .first()
            .map(|replaced| self.seal_archived(rng, position(generation, 0)?, replaced))
            .transpose()
    }

    pub(crate) fn open_entries(&self, entries: &[EntryTerm<'_>]) -> Result<Entries, Reason> {
        entries
            .iter()
            .map(|(id, group, number, sealed)| {
                let context = self.entry_context(id, group, *number);
                let entry = self.data_key.open(&context, sealed)?;
                let entry = Entry::from_bytes(&entry).map_err(|_| Reason::CorruptedState)?;
                let group = EntryGroup::from_bytes(group).map_err(|_| Reason::CorruptedState)?;
                let id = id
                    .as_slice()
                    .try_into()
                    .map_err(|_| Reason::CorruptedState)?;
                Ok(((SessionId::from_bytes(id), (group, *number)), entry))
            })
            .collect()
    }

    pub(crate) fn seal_entry(
        &self,
        rng: &mut StdRng,
        session: &SessionId,
        (group, number): EntryPosition,
        entry: &Entry,
    ) -> Result<Written, Reason> {
        let group = group.to_bytes();
        let context = self.entry_context(session.as_bytes(), &group, number);
        let sealed = self.data_key.seal(rng, &context, &entry.to_bytes())?;
        Ok((Bytes(group), number, Bytes(sealed)))
    }

    /// Reads `identity key (33) ‖ verified (1) ‖ highest version seen (1)`.
    pub(crate) fn open_identity(&self, sealed: &[u8]) -> Result<Remembered, Reason> {
        let record = self.data_key.open(&self.context("peer-identity"), sealed)?;
        let (key, &[verified, version]) =
            record.split_last_chunk().ok_or(Reason::CorruptedState)?;
        Ok(Remembered {
            key: IdentityKey::from_bytes(key).map_err(|_| Reason::CorruptedState)?,
            verified: verified != 0,
            version,
        })
    }

    pub(crate) fn seal_identity(
        &self,
        rng: &mut StdRng,
        Remembered {
            key,
            verified,
            version,
        }: Remembered,
    ) -> Result<Bytes<Vec<u8>>, Reason> {
        let record = [key.to_bytes().as_slice(), &[u8::from(verified), version]].concat();
        let sealed = self
            .data_key
            .seal(rng, &self.context("peer-identity"), &record)?;
        Ok(Bytes(sealed))
    }

    /// What is remembered of the peer, or of another of their devices: those of one user share an identity.
    pub(crate) fn known(
        &self,
        sealed: Option<&[u8]>,
        sibling: Option<&SiblingTerm<'_>>,
    ) -> Result<Known, Reason> {
        Ok(match (sealed, sibling) {
            (Some(sealed), _) => Known::Device(self.open_identity(sealed)?),
            (None, Some((device, sealed))) => {
                let conversation = Conversation {
                    remote: address(self.remote.name(), *device)?,
                    ..*self
                };
                Known::Sibling(conversation.open_identity(sealed)?)
            }
            (None, None) => Known::Nothing,
        })
    }

    /// What is to be remembered after a session was made or used, if that is news.
    pub(crate) fn seal_news(
        &self,
        rng: &mut StdRng,
        known: &Known,
        key: &IdentityKey,
        version: Version,
    ) -> Result<Option<Bytes<Vec<u8>>>, Reason> {
        let version = version.number();
        let news = match known {
            Known::Device(remembered) if remembered.version >= version => return Ok(None),
            Known::Device(remembered) | Known::Sibling(remembered) => Remembered {
                version,
                ..*remembered
            },
            Known::Nothing => Remembered {
                key: *key,
                verified: false,
                version,
            },
        };
        self.seal_identity(rng, news).map(Some)
    }
}

impl Known {
    /// Of the device itself.
    pub(crate) const fn device(&self) -> Option<&Remembered> {
        match self {
            Self::Device(remembered) => Some(remembered),
            Self::Sibling(_) | Self::Nothing => None,
        }
    }

    /// The remembered identity as a policy.
    pub(crate) fn trust(&self) -> TrustOnFirstUse {
        TrustOnFirstUse(match self {
            Self::Device(remembered) | Self::Sibling(remembered) => Some(remembered.key),
            Self::Nothing => None,
        })
    }
}
