//! All sessions with one peer device: the current one, and those it replaced.

use rand_core::CryptoRng;
use thiserror::Error;

use super::entries::{Entry, EntryGroup, EntryLookup, EntryPosition};
use super::open::{EntryChanges, Opened, Refusal};
use super::state::{NamedPreKeys, Session, SessionId};
use crate::address::{ProtocolAddress, address_pair};
use crate::curve::{KeyPair, PublicKey};
use crate::identity::{Direction, IdentityKey, IdentityKeyPair, Trust};
use crate::kyber::KyberKeyPair;
use crate::limits::{MAX_ARCHIVED_SESSIONS, MAX_HASHES_PER_MESSAGE, MAX_PLAINTEXT_LEN};
use crate::prekey::{BundleError, PreKeyBundle, PreKeyId};
use crate::wire::{PreKeySignalMessage, SignalMessage, Version};

/// The device on whose behalf sessions are used.
#[derive(Clone, Copy, Debug)]
pub struct LocalDevice<'a> {
    /// Its address.
    pub address: &'a ProtocolAddress,
    /// Its identity key pair.
    pub identity: &'a IdentityKeyPair,
    /// Its registration id.
    pub registration_id: u32,
}

/// The device of the peer.
#[derive(Clone, Copy, Debug)]
pub struct RemoteDevice<'a> {
    /// Its address.
    pub address: &'a ProtocolAddress,
    /// The lowest version spoken with it: the policy's, or version 4 once it was seen with that. Never lower
    /// this because a bundle lacks a Kyber prekey: that is how a downgrade looks.
    pub minimum_version: Version,
}

/// The prekeys of the local device, as a prekey message needs them.
pub trait PreKeys {
    /// The one-time prekey of this id.
    fn prekey(&self, id: PreKeyId) -> Option<KeyPair>;

    /// The signed prekey of this id.
    fn signed_prekey(&self, id: PreKeyId) -> Option<KeyPair>;

    /// The Kyber prekey of this id, one-time or last-resort.
    fn kyber_prekey(&self, id: PreKeyId) -> Option<KyberKeyPair>;

    /// Whether a session was already made from this base key and signed prekey, whichever Kyber prekey went
    /// with them.
    ///
    /// Once the record of a session is gone, only this memory keeps its first message from being opened
    /// a second time; a last-resort Kyber prekey does not prevent it. It must last as long as the signed
    /// prekey does.
    fn is_base_key_used(&self, signed_prekey_id: PreKeyId, base_key: &PublicKey) -> bool;
}

/// Which prekey is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreKeyKind {
    /// A one-time prekey.
    OneTime,
    /// A signed prekey.
    Signed,
    /// A Kyber prekey, one-time or last-resort.
    Kyber,
}

/// A part of the stored state that decryption needs and was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLoaded {
    /// The archived sessions.
    Archive,
    /// The entries at the message's ratchet key and counter, and at its
    /// [`post_quantum_position`](SignalMessage::post_quantum_position).
    MessageKeys,
    /// All pages of the chunks of the message's epoch: the group [`EntryGroup::Chunks`] of one more than the
    /// epoch in its [`post_quantum_position`](SignalMessage::post_quantum_position).
    Chunks,
}

/// Why a session could not be started.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InitiateError {
    /// The bundle must not be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A key of the bundle agrees to zero.
    #[error("a key of the bundle is unusable")]
    Key,
    /// The bundle's identity key is not trusted.
    #[error("the identity key is not trusted")]
    UntrustedIdentity,
    /// The bundle has no Kyber prekey, and version 3 is not accepted from this peer.
    #[error("a session of version {} is not accepted", .0.number())]
    UnsupportedVersion(Version),
}

/// Why a message was not encrypted. The session is as it was.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EncryptError {
    /// There is no current session, its version is not accepted, it has waited more than 30 days for an
    /// answer, or its 32-bit counter has ended.
    #[error("there is no session to send on")]
    SessionNotFound,
    /// The plaintext is larger than [`MAX_PLAINTEXT_LEN`].
    #[error("the plaintext is too large")]
    TooLarge,
    /// The session's identity key is not trusted for sending.
    #[error("the identity key is not trusted")]
    UntrustedIdentity,
}

/// Why a message was not decrypted. Nothing has changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecryptError {
    /// The message was opened before, its key was evicted, or its base key was used before.
    #[error("the message was opened before")]
    Duplicate,
    /// An entry is not what was stored, or is gone.
    #[error("a stored entry is missing or damaged")]
    Damaged,
    /// No session opens it: it was changed on the way, or belongs to a session that is gone.
    #[error("the message does not authenticate")]
    Invalid,
    /// A part of the state is needed that was not loaded.
    #[error("a part of the stored state is needed")]
    NotLoaded(NotLoaded),
    /// There is no session with this device at all.
    #[error("there is no session")]
    SessionNotFound,
    /// The counter is more than 25 000 ahead.
    #[error("the message is too far ahead")]
    TooFarAhead,
    /// The message names a prekey this device does not hold.
    #[error("the prekey {1} is not here")]
    UnknownPreKey(PreKeyKind, PreKeyId),
    /// No session has the message's version, or it is not accepted from this peer.
    #[error("message version {} is not accepted", .0.number())]
    UnsupportedVersion(Version),
    /// The identity key is not trusted.
    #[error("the identity key is not trusted")]
    UntrustedIdentity,
}

/// What became of the session that a new one replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// The session that is now the newest archived one.
    pub archived: Option<SessionId>,
    /// Sessions dropped from the end of the archive, with all their skipped keys.
    pub sessions_dropped: Vec<SessionId>,
}

/// An encrypted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ciphertext {
    /// The bytes to send.
    pub bytes: Vec<u8>,
    /// Whether they are a [`PreKeySignalMessage`] rather than a [`SignalMessage`].
    pub is_prekey_message: bool,
    /// The session they belong to.
    pub session_id: SessionId,
    /// Its version.
    pub version: Version,
    /// Entries of the session that are no longer needed.
    pub entries_dropped: Vec<EntryGroup>,
}

/// A decrypted message.
#[derive(Clone, PartialEq, Eq)]
pub struct Decrypted {
    /// What was said.
    pub plaintext: Vec<u8>,
    /// The identity key it came from: to be remembered.
    pub remote_identity: IdentityKey,
    /// What decrypting it changed, for a store that keeps the parts of the state apart.
    pub changes: Changes,
}

/// What decrypting a message changed beside the current session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The session that opened the message, now the current one.
    pub session_id: SessionId,
    /// Its version.
    pub version: Version,
    /// Whether the session is new.
    pub established: bool,
    /// The session it replaced, now the newest archived one.
    pub archived: Option<SessionId>,
    /// Set when it was an archived session: no longer in the archive.
    pub promoted: Option<SessionId>,
    /// Sessions dropped from the end of the archive, with all their skipped keys.
    pub sessions_dropped: Vec<SessionId>,
    /// Entries that were used up. To be deleted first.
    pub entries_removed: Vec<EntryPosition>,
    /// Groups that are gone with all their entries. To be deleted before adding.
    pub groups_dropped: Vec<EntryGroup>,
    /// Entries to store.
    pub entries_added: Vec<(EntryPosition, Entry)>,
    /// Groups of which only so many entries stay, those with the highest numbers. The others are to be deleted after
    /// adding. How many go is not said: a store may have deleted old ones by itself.
    pub entries_evicted: Vec<(EntryGroup, u32)>,
    /// The one-time prekey that was used up.
    pub prekey_used: Option<PreKeyId>,
    /// The Kyber prekey a new session was made from. Used up, if it is a one-time one.
    pub kyber_prekey_used: Option<PreKeyId>,
    /// The signed prekey and base key a new session was made from: to be remembered.
    pub base_key_used: Option<(PreKeyId, PublicKey)>,
}

/// The sessions with one peer device: a current one and up to 40 archived ones, newest first.
///
/// Every operation either succeeds or leaves the record exactly as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionRecord {
    pub(super) current: Option<Session>,
    pub(super) archived: Archive,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Archive {
    Loaded(Vec<Session>),
    NotLoaded,
}

impl Default for Archive {
    fn default() -> Self {
        Self::Loaded(Vec::new())
    }
}

impl Archive {
    fn sessions(&self) -> &[Session] {
        match self {
            Self::Loaded(sessions) => sessions,
            Self::NotLoaded => &[],
        }
    }

    /// Puts a session in front and drops those over the limit.
    fn push(&mut self, session: Session) -> Vec<SessionId> {
        match self {
            Self::Loaded(sessions) => {
                sessions.insert(0, session.archive());
                let keep = sessions.len().min(MAX_ARCHIVED_SESSIONS);
                sessions.drain(keep..).map(|session| session.id()).collect()
            }
            Self::NotLoaded => Vec::new(),
        }
    }
}

/// The session of a record that is to open a message.
enum Candidate {
    Current,
    Archived(usize),
    New(Box<Session>),
}

impl SessionRecord {
    /// A record of stored sessions. `archived`, newest first, may be left out; operations that turn out to
    /// need it answer [`NotLoaded::Archive`].
    #[must_use]
    pub fn from_parts(current: Option<Session>, archived: Option<Vec<Session>>) -> Self {
        Self {
            current,
            archived: archived.map_or(Archive::NotLoaded, Archive::Loaded),
        }
    }

    /// The session messages are sent on.
    #[must_use]
    pub const fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    /// The archived sessions, newest first; none when they were not loaded.
    #[must_use]
    pub fn archived(&self) -> &[Session] {
        self.archived.sessions()
    }

    /// Starts a session from a bundle and makes it the current one.
    ///
    /// `now` is in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`InitiateError`], checked in this order: trust in the identity, the version, the signatures, the
    /// keys.
    pub fn initiate<R: CryptoRng + ?Sized>(
        &mut self,
        local: &LocalDevice<'_>,
        remote: &RemoteDevice<'_>,
        bundle: &PreKeyBundle,
        trust: &dyn Trust,
        now: u64,
        rng: &mut R,
    ) -> Result<Replaced, InitiateError> {
        if !trust.is_trusted(&bundle.identity_key, Direction::Sending) {
            return Err(InitiateError::UntrustedIdentity);
        }
        if bundle.kyber_prekey.is_none() && remote.minimum_version > Version::V3 {
            return Err(InitiateError::UnsupportedVersion(Version::V3));
        }
        bundle.verify()?;
        let session = Session::initiate(local.identity, local.registration_id, bundle, now, rng)
            .map_err(|_| InitiateError::Key)?;
        let replaced = self.archive_current();
        self.current = Some(session);
        Ok(replaced)
    }

    /// Puts the current session away, so that the next message needs a new one. It still opens what is on
    /// its way. Without one, nothing happens.
    pub fn archive_current(&mut self) -> Replaced {
        self.current
            .take()
            .map_or_else(Replaced::default, |session| Replaced {
                archived: Some(session.id()),
                sessions_dropped: self.archived.push(session),
            })
    }

    /// Encrypts a message on the current session.
    ///
    /// `now` is in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`EncryptError`].
    pub fn encrypt<R: CryptoRng + ?Sized>(
        &mut self,
        local: &LocalDevice<'_>,
        remote: &RemoteDevice<'_>,
        plaintext: &[u8],
        trust: &dyn Trust,
        now: u64,
        rng: &mut R,
    ) -> Result<Ciphertext, EncryptError> {
        if plaintext.len() > MAX_PLAINTEXT_LEN {
            return Err(EncryptError::TooLarge);
        }
        let session = self
            .current
            .as_mut()
            .filter(|session| session.version() >= remote.minimum_version)
            .filter(|session| session.is_usable_at(now))
            .ok_or(EncryptError::SessionNotFound)?;
        if !trust.is_trusted(session.remote_identity(), Direction::Sending) {
            return Err(EncryptError::UntrustedIdentity);
        }
        let addresses = address_pair(local.address, remote.address);
        let sealed = session
            .encrypt(plaintext, addresses.as_ref(), rng)
            .ok_or(EncryptError::SessionNotFound)?;
        Ok(Ciphertext {
            bytes: sealed.bytes,
            is_prekey_message: sealed.is_prekey_message,
            session_id: session.id(),
            version: session.version(),
            entries_dropped: sealed.groups_dropped,
        })
    }

    /// Decrypts a message of an established session.
    ///
    /// A session that has the message's ratchet key is the only one that can open it. Without one, the
    /// current session and then the archived ones are tried, newest first. The session that opens the
    /// message becomes the current one.
    ///
    /// # Errors
    ///
    /// [`DecryptError`]; nothing has changed then.
    pub fn decrypt<R: CryptoRng + ?Sized>(
        &mut self,
        local: &LocalDevice<'_>,
        remote: &RemoteDevice<'_>,
        message: &SignalMessage,
        entries: &dyn Fn(&SessionId, &EntryPosition) -> EntryLookup,
        trust: &dyn Trust,
        rng: &mut R,
    ) -> Result<Decrypted, DecryptError> {
        acceptable(message.version(), remote)?;
        let addresses = address_pair(remote.address, local.address);
        let open = |session: &Session| session.open(message, addresses.as_ref(), entries);
        let (candidate, opened) = self.find_session(message, open)?;
        let remote_identity = *self.candidate(&candidate).remote_identity();
        if !trust.is_trusted(&remote_identity, Direction::Receiving) {
            return Err(DecryptError::UntrustedIdentity);
        }
        self.commit(candidate, opened, rng)
    }

    /// Decrypts a message that starts a session, or repeats how one was started.
    ///
    /// # Errors
    ///
    /// [`DecryptError`]; nothing has changed then, prekeys included.
    #[allow(clippy::too_many_arguments)]
    pub fn decrypt_prekey<R: CryptoRng + ?Sized>(
        &mut self,
        local: &LocalDevice<'_>,
        remote: &RemoteDevice<'_>,
        message: &PreKeySignalMessage,
        prekeys: &dyn PreKeys,
        entries: &dyn Fn(&SessionId, &EntryPosition) -> EntryLookup,
        trust: &dyn Trust,
        rng: &mut R,
    ) -> Result<Decrypted, DecryptError> {
        acceptable(message.version(), remote)?;
        if !trust.is_trusted(message.identity_key(), Direction::Receiving) {
            return Err(DecryptError::UntrustedIdentity);
        }
        let candidate = match self.session_of_base_key(message)? {
            Some(candidate) => candidate,
            None => Candidate::New(Box::new(new_session(local, message, prekeys)?)),
        };
        let established = matches!(candidate, Candidate::New(_));
        let session = self.candidate(&candidate);
        // The outer identity key is bound by the agreement in a new session, and by nothing in a known one.
        if session.remote_identity() != message.identity_key() {
            return Err(DecryptError::Invalid);
        }
        let addresses = address_pair(remote.address, local.address);
        let opened = session
            .open(message.message(), addresses.as_ref(), entries)
            .map_err(|refusal| refusal.into_error(message.version()))?;
        let mut decrypted = self.commit(candidate, opened, rng)?;
        if established {
            decrypted.changes.established = true;
            decrypted.changes.prekey_used = message.prekey_id();
            decrypted.changes.kyber_prekey_used = message.kyber_prekey_id();
            decrypted.changes.base_key_used =
                Some((message.signed_prekey_id(), *message.base_key()));
        }
        Ok(decrypted)
    }

    /// The stored session the message's base key belongs to.
    fn session_of_base_key(
        &self,
        message: &PreKeySignalMessage,
    ) -> Result<Option<Candidate>, DecryptError> {
        let same = |session: &Session| {
            session.version() == message.version() && session.base_key == *message.base_key()
        };
        if self.current.as_ref().is_some_and(same) {
            return Ok(Some(Candidate::Current));
        }
        match &self.archived {
            Archive::Loaded(sessions) => {
                Ok(sessions.iter().position(same).map(Candidate::Archived))
            }
            Archive::NotLoaded => Err(DecryptError::NotLoaded(NotLoaded::Archive)),
        }
    }

    /// Tries the sessions in order until one opens the message.
    fn find_session(
        &self,
        message: &SignalMessage,
        open: impl Fn(&Session) -> Result<Opened, Refusal>,
    ) -> Result<(Candidate, Opened), DecryptError> {
        let sessions = self
            .current
            .iter()
            .map(|session| (Candidate::Current, session))
            .chain(
                self.archived()
                    .iter()
                    .enumerate()
                    .map(|(at, session)| (Candidate::Archived(at), session)),
            );
        let mut without_chain = Vec::new();
        for (candidate, session) in sessions {
            if session.version() == message.version()
                && session.has_receiving_chain(message.ratchet_key())
            {
                return open(session)
                    .map(|opened| (candidate, opened))
                    .map_err(|refusal| refusal.into_error(message.version()));
            }
            without_chain.push((candidate, session));
        }
        let nothing_stored = without_chain.is_empty();
        let mut error = None;
        // A session that lacks a part may be the one: it is asked again, whatever the others said.
        let mut not_loaded = None;
        let mut hashes = MAX_HASHES_PER_MESSAGE;
        for (candidate, session) in without_chain {
            // What a trial costs is in the message, which nobody has authenticated yet.
            if session.version() == message.version() {
                let Some(rest) = hashes.checked_sub(session.trial_cost(message)) else {
                    // Not "tampered": there are sessions that were not asked.
                    error = Some(DecryptError::TooFarAhead);
                    break;
                };
                hashes = rest;
            }
            match open(session) {
                Ok(opened) => return Ok((candidate, opened)),
                Err(Refusal::Version) => {}
                Err(Refusal::NotLoaded(part)) => not_loaded = not_loaded.or(Some(part)),
                Err(refusal) => {
                    error = error.or_else(|| Some(refusal.into_error(message.version())));
                }
            }
        }
        Err(match (&self.archived, not_loaded, nothing_stored, error) {
            (Archive::NotLoaded, ..) => DecryptError::NotLoaded(NotLoaded::Archive),
            (Archive::Loaded(_), Some(part), ..) => DecryptError::NotLoaded(part),
            (Archive::Loaded(_), None, true, _) => DecryptError::SessionNotFound,
            (Archive::Loaded(_), None, false, Some(error)) => error,
            (Archive::Loaded(_), None, false, None) => {
                DecryptError::UnsupportedVersion(message.version())
            }
        })
    }

    fn candidate<'a>(&'a self, candidate: &'a Candidate) -> &'a Session {
        match candidate {
            Candidate::Archived(at) => &self.archived()[*at],
            Candidate::New(session) => session,
            #[allow(clippy::expect_used)]
            Candidate::Current => self
                .current
                .as_ref()
                .expect("the candidate was found in this record"),
        }
    }

    /// Makes the changes of an opened message; the session that opened it becomes the current one.
    fn commit<R: CryptoRng + ?Sized>(
        &mut self,
        mut candidate: Candidate,
        opened: Opened,
        rng: &mut R,
    ) -> Result<Decrypted, DecryptError> {
        let session = match (&mut candidate, &mut self.current, &mut self.archived) {
            (Candidate::Current, Some(session), _) => session,
            (Candidate::Archived(at), _, Archive::Loaded(sessions)) => &mut sessions[*at],
            (Candidate::New(session), _, _) => session,
            // A candidate was found in this record.
            (Candidate::Current | Candidate::Archived(_), _, _) => {
                return Err(DecryptError::Invalid);
            }
        };
        let (plaintext, entries) = session
            .commit(opened, rng)
            .map_err(|_| DecryptError::Invalid)?;
        let EntryChanges {
            added,
            removed,
            evicted,
            dropped,
        } = entries;
        let remote_identity = *session.remote_identity();
        let mut changes = Changes {
            session_id: session.id(),
            version: session.version(),
            established: false,
            archived: None,
            promoted: None,
            sessions_dropped: Vec::new(),
            entries_removed: removed,
            groups_dropped: dropped,
            entries_added: added,
            entries_evicted: evicted,
            prekey_used: None,
            kyber_prekey_used: None,
            base_key_used: None,
        };
        let promoted = match (candidate, &mut self.archived) {
            (Candidate::Archived(at), Archive::Loaded(sessions)) => {
                changes.promoted = Some(changes.session_id);
                Some(sessions.remove(at))
            }
            (Candidate::New(session), _) => Some(*session),
            (Candidate::Current | Candidate::Archived(_), _) => None,
        };
        if let Some(promoted) = promoted
            && let Some(replaced) = self.current.replace(promoted)
        {
            changes.archived = Some(replaced.id());
            changes.sessions_dropped = self.archived.push(replaced);
        }
        Ok(Decrypted {
            plaintext,
            remote_identity,
            changes,
        })
    }
}

/// Whether a message of this version is read at all, late ones of archived sessions included.
fn acceptable(version: Version, remote: &RemoteDevice<'_>) -> Result<(), DecryptError> {
    if version >= remote.minimum_version {
        Ok(())
    } else {
        Err(DecryptError::UnsupportedVersion(version))
    }
}

/// A session as responder, from the prekeys the message names.
fn new_session(
    local: &LocalDevice<'_>,
    message: &PreKeySignalMessage,
    prekeys: &dyn PreKeys,
) -> Result<Session, DecryptError> {
    let signed_prekey_id = message.signed_prekey_id();
    if prekeys.is_base_key_used(signed_prekey_id, message.base_key()) {
        return Err(DecryptError::Duplicate);
    }
    let signed_prekey =
        prekeys
            .signed_prekey(signed_prekey_id)
            .ok_or(DecryptError::UnknownPreKey(
                PreKeyKind::Signed,
                signed_prekey_id,
            ))?;
    let kyber_prekey = message
        .kyber_prekey_id()
        .map(|id| {
            prekeys
                .kyber_prekey(id)
                .ok_or(DecryptError::UnknownPreKey(PreKeyKind::Kyber, id))
        })
        .transpose()?;
    let prekey = message
        .prekey_id()
        .map(|id| {
            prekeys
                .prekey(id)
                .ok_or(DecryptError::UnknownPreKey(PreKeyKind::OneTime, id))
        })
        .transpose()?;
    let named = NamedPreKeys {
        prekey,
        signed_prekey,
        kyber_prekey,
    };
    Session::respond(local.identity, local.registration_id, named, message)
        .map_err(|_| DecryptError::Invalid)
}

impl Refusal {
    const fn into_error(self, version: Version) -> DecryptError {
        match self {
            Self::Duplicate => DecryptError::Duplicate,
            Self::Damaged => DecryptError::Damaged,
            Self::Invalid => DecryptError::Invalid,
            Self::NotLoaded(part) => DecryptError::NotLoaded(part),
            Self::TooFarAhead => DecryptError::TooFarAhead,
            Self::Version => DecryptError::UnsupportedVersion(version),
        }
    }
}

impl std::fmt::Debug for Decrypted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            plaintext,
            remote_identity,
            changes,
        } = self;
        f.debug_struct("Decrypted")
            .field("plaintext_len", &plaintext.len())
            .field("remote_identity", remote_identity)
            .field("changes", changes)
            .finish()
    }
}
