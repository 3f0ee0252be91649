//! Sessions: sealed state in, one step of the protocol, sealed state out.

use kith_protocol::{
    Changes, Ciphertext, DecryptError, DecryptionErrorMessage, EncryptError, EntryGroup,
    EntryLookup, EntryPosition, IdentityKey, IdentityKeyPair, InitiateError, KeyPair, KyberKeyPair,
    MessageError, NotLoaded, PreKeyId, PreKeySignalMessage, PreKeys, PublicKey, Session, SessionId,
    SessionRecord, SignalMessage,
};
use rand::rngs::StdRng;
use rustler::{Binary, Encoder, Env, NifMap, NifUnitEnum, ResourceArc, Term};
use zeroize::Zeroizing;

use crate::atoms;
use crate::conversation::{
    Archived, BraidTerm, Conversation, Entries, Known, Owner, PeerTerm, Remembered, SealedSession,
    SiblingTerm, revision,
};
use crate::device::{
    BundleTerm, LocalTerm, PreKeyContext, open_kyber_prekey, open_prekey, public_key,
};
use crate::reason::Reason;
use crate::seam;
use crate::terms::{Row, map};
use crate::vault::{Account, Bytes, Vault, random};

/// One device of a fan-out, with what is stored about it.
#[derive(NifMap)]
struct RecipientTerm<'a> {
    user: Binary<'a>,
    device: u8,
    /// Of the stored row; 0 when there is none.
    generation: u64,
    state: Option<Binary<'a>>,
    braid: Option<BraidTerm<'a>>,
    identity: Option<Binary<'a>>,
    sibling: Option<SiblingTerm<'a>>,
    bundle: Option<BundleTerm<'a>>,
}

#[derive(Clone, Copy, NifUnitEnum)]
pub(crate) enum MessageType {
    Prekey,
    Message,
}

impl From<EncryptError> for Reason {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::SessionNotFound => Self::SessionNotFound,
            EncryptError::TooLarge => Self::TooLarge,
            EncryptError::UntrustedIdentity => Self::UntrustedIdentity,
        }
    }
}

impl From<InitiateError> for Reason {
    fn from(error: InitiateError) -> Self {
        match error {
            InitiateError::Bundle(_) => Self::Tampered,
            InitiateError::Key => Self::Malformed,
            InitiateError::UntrustedIdentity => Self::UntrustedIdentity,
            InitiateError::UnsupportedVersion(_) => Self::UnsupportedVersion,
        }
    }
}

impl From<MessageError> for Reason {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Key(_) | MessageError::Malformed => Self::Malformed,
            MessageError::TooLarge => Self::TooLarge,
            MessageError::UnknownVersion(_) | MessageError::VersionTooOld(_) => {
                Self::UnsupportedVersion
            }
        }
    }
}

/// A call that failed, or that needs more of the stored state.
enum Unopened {
    Failed(Reason),
    Needs(NotLoaded),
}

impl From<Reason> for Unopened {
    fn from(reason: Reason) -> Self {
        Self::Failed(reason)
    }
}

impl From<MessageError> for Unopened {
    fn from(error: MessageError) -> Self {
        Self::Failed(error.into())
    }
}

impl Unopened {
    const fn new(error: DecryptError) -> Self {
        Self::Failed(match error {
            DecryptError::NotLoaded(part) => return Self::Needs(part),
            DecryptError::Damaged => Reason::CorruptedState,
            DecryptError::Duplicate => Reason::Duplicate,
            DecryptError::Invalid => Reason::Tampered,
            DecryptError::SessionNotFound => Reason::SessionNotFound,
            DecryptError::TooFarAhead => Reason::OutOfSync,
            DecryptError::UnknownPreKey(..) => Reason::UnknownPrekey,
            DecryptError::UnsupportedVersion(_) => Reason::UnsupportedVersion,
            DecryptError::UntrustedIdentity => Reason::UntrustedIdentity,
        })
    }

    fn encode(self, env: Env<'_>) -> Term<'_> {
        match self {
            Self::Failed(reason) => (atoms::error(), reason).encode(env),
            Self::Needs(part) => {
                let part = match part {
                    NotLoaded::Archive => atoms::archive(),
                    NotLoaded::MessageKeys => atoms::message_keys(),
                    NotLoaded::Chunks => atoms::chunks(),
                };
                (atoms::need(), vec![part]).encode(env)
            }
        }
    }
}

/// One encrypted message of a fan-out and the state behind it.
struct Encrypted {
    message: Ciphertext,
    session: SealedSession,
    identity: Option<Bytes<Vec<u8>>>,
    archived: Option<Archived>,
    established: bool,
}

impl Encoder for Encrypted {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let Self {
            message,
            session: SealedSession { state, braid },
            identity,
            archived,
            established,
        } = self;
        let kind = if message.is_prekey_message {
            atoms::prekey()
        } else {
            atoms::message()
        };
        map(
            env,
            &[
                (atoms::type_(), &kind),
                (atoms::body(), &Bytes(&message.bytes)),
                (atoms::session_id(), &Bytes(message.session_id.as_bytes())),
                (atoms::version(), &message.version.number()),
                (atoms::established(), established),
                (atoms::state(), state),
                (atoms::braid(), braid),
                (atoms::identity(), identity),
                (atoms::archived(), archived),
                (atoms::entries_dropped(), &groups(&message.entries_dropped)),
            ],
        )
    }
}

fn groups(groups: &[EntryGroup]) -> Vec<Bytes<Vec<u8>>> {
    groups.iter().map(|group| Bytes(group.to_bytes())).collect()
}

/// Encrypts one plaintext for many devices: `{:ok, [{:ok, map} | {:error, reason}]}`, in order.
#[rustler::nif(schedule = "DirtyCpu")]
fn session_encrypt<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    local: Row<LocalTerm<'a>>,
    recipients: Vec<Row<RecipientTerm<'a>>>,
    plaintext: Binary<'a>,
    now_ms: u64,
) -> Term<'a> {
    seam::call(env, "session_encrypt", || {
        let local = local.get()?;
        let owner = Owner::open(&vault, account.get()?, local.device)?;
        let identity = owner.identity(&local.identity)?;
        let mut rng = random()?;
        let results = recipients
            .iter()
            .map(|recipient| {
                let result = recipient.get().and_then(|recipient| {
                    encrypt_for(
                        &owner,
                        (local, &identity),
                        recipient,
                        &plaintext,
                        now_ms / 1000,
                        &mut rng,
                    )
                });
                match result {
                    Ok(encrypted) => (atoms::ok(), encrypted).encode(env),
                    Err(reason) => (atoms::error(), reason).encode(env),
                }
            })
            .collect::<Vec<_>>();
        Ok::<_, Reason>(results)
    })
}

fn encrypt_for(
    owner: &Owner,
    (local, identity): (&LocalTerm<'_>, &IdentityKeyPair),
    recipient: &RecipientTerm<'_>,
    plaintext: &[u8],
    now: u64,
    rng: &mut StdRng,
) -> Result<Encrypted, Reason> {
    let conversation = owner.with(&recipient.user, recipient.device)?;
    let generation = recipient.generation;
    let known = conversation.known(recipient.identity.as_deref(), recipient.sibling.as_ref())?;
    let (device, remote) = (
        owner.device(local, identity),
        conversation.remote(local, &known),
    );
    let trust = known.trust();
    let current = match conversation.open_session(
        generation,
        recipient.state.as_deref(),
        recipient.braid.as_ref(),
    ) {
        // What does not open is not kept beside the session that takes its place.
        Err(Reason::CorruptedState) if recipient.bundle.is_some() => None,
        opened => opened?,
    };
    let stored = (recipient.braid.as_ref(), current.as_ref().map(revision));
    // The stored archive stays where it is; what is archived here is one more row of it.
    let mut record = SessionRecord::from_parts(current, Some(Vec::new()));
    if let Some(bundle) = &recipient.bundle {
        record.initiate(&device, &remote, &bundle.decode()?, &trust, now, rng)?;
    }
    let message = record.encrypt(&device, &remote, plaintext, &trust, now, rng)?;
    let session = record.current().ok_or(Reason::SessionNotFound)?;
    Ok(Encrypted {
        session: conversation.seal_session(rng, next(generation)?, stored, session)?,
        identity: conversation.seal_news(
            rng,
            &known,
            session.remote_identity(),
            message.version,
        )?,
        archived: conversation.seal_replaced(rng, generation, &record)?,
        message,
        established: recipient.bundle.is_some(),
    })
}

pub(crate) fn next(generation: u64) -> Result<u64, Reason> {
    generation.checked_add(1).ok_or(Reason::CorruptedState)
}

/// The prekeys a message names, as far as they are stored.
#[derive(Default)]
struct NamedPreKeys {
    prekey: Option<KeyPair>,
    signed_prekey: Option<KeyPair>,
    kyber_prekey: Option<KyberKeyPair>,
}

impl PreKeys for NamedPreKeys {
    fn prekey(&self, _id: PreKeyId) -> Option<KeyPair> {
        self.prekey.clone()
    }

    fn signed_prekey(&self, _id: PreKeyId) -> Option<KeyPair> {
        self.signed_prekey.clone()
    }

    fn kyber_prekey(&self, _id: PreKeyId) -> Option<KyberKeyPair> {
        self.kyber_prekey.clone()
    }

    /// The store remembers base keys: it inserts each in the transaction that stores the session, and
    /// a second insert fails.
    fn is_base_key_used(&self, _signed_prekey_id: PreKeyId, _base_key: &PublicKey) -> bool {
        false
    }
}

/// Decrypts a message: `{:ok, map}`, `{:need, [:archive | :message_keys | :chunks]}` or `{:error, reason}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn session_decrypt<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    local: Row<LocalTerm<'a>>,
    peer: Row<PeerTerm<'a>>,
    message: (MessageType, Binary<'a>),
) -> Term<'a> {
    seam::answer(env, "session_decrypt", || {
        let opened = (|| {
            decrypt(
                env,
                &vault,
                account.get()?,
                local.get()?,
                peer.get()?,
                &message,
            )
        })();
        match opened {
            Ok(opened) => (atoms::ok(), opened).encode(env),
            Err(unopened) => unopened.encode(env),
        }
    })
}

fn decrypt<'a>(
    env: Env<'a>,
    vault: &Vault,
    account: &Account<'_>,
    local: &LocalTerm<'_>,
    peer: &PeerTerm<'_>,
    (kind, body): &(MessageType, Binary<'_>),
) -> Result<Term<'a>, Unopened> {
    let owner = Owner::open(vault, account, local.device)?;
    let identity = owner.identity(&local.identity)?;
    let device = owner.device(local, &identity);
    let conversation = owner.with(&peer.user, peer.device)?;
    let Stored { known, mut record } = Stored::open(&conversation, peer)?;
    let remote = conversation.remote(local, &known);
    let trust = known.trust();
    let open = |entries: &Option<Vec<_>>| {
        entries
            .as_ref()
            .map(|entries| conversation.open_entries(entries))
            .transpose()
    };
    let (keys, chunks) = (open(&peer.entries)?, open(&peer.chunks)?);
    let find = |session: &SessionId, position: &EntryPosition| {
        look_up(keys.as_ref(), chunks.as_ref(), session, position)
    };
    let mut rng = random()?;
    let stored = (peer.braid.as_ref(), record.current().map(revision));
    let before = record
        .current()
        .map(|session| (session.id(), *session.sending_ratchet_key()));
    let decrypted = match kind {
        MessageType::Message => {
            let message = SignalMessage::from_bytes(body)?;
            record.decrypt(&device, &remote, &message, &find, &trust, &mut rng)
        }
        MessageType::Prekey => {
            let message = PreKeySignalMessage::from_bytes(body)?;
            let prekeys = named_prekeys(&owner, peer, &message)?;
            record.decrypt_prekey(
                &device, &remote, &message, &prekeys, &find, &trust, &mut rng,
            )
        }
    }
    .map_err(Unopened::new)?;
    let plaintext = Zeroizing::new(decrypted.plaintext);

    let session = record.current().ok_or(Reason::SessionNotFound)?;
    let changes = &decrypted.changes;
    let stepped =
        before.is_some_and(|(id, key)| session.id() == id && *session.sending_ratchet_key() != key);
    let sealed = Sealed {
        session: conversation.seal_session(&mut rng, next(peer.generation)?, stored, session)?,
        identity: conversation.seal_news(
            &mut rng,
            &known,
            &decrypted.remote_identity,
            changes.version,
        )?,
        stepped,
        // A session is replaced only when the archive was loaded, and is then its first.
        archived: match changes.archived {
            Some(_) => conversation.seal_replaced(&mut rng, peer.generation, &record)?,
            None => None,
        },
    };
    encode_decrypted(env, &conversation, &mut rng, changes, &plaintext, &sealed)
        .map_err(Unopened::Failed)
}

fn look_up(
    keys: Option<&Entries>,
    chunks: Option<&Entries>,
    session: &SessionId,
    position: &EntryPosition,
) -> EntryLookup {
    let loaded = match position.0 {
        EntryGroup::MessageKeys(_) | EntryGroup::PostQuantumKeys(_) => keys,
        EntryGroup::Chunks(_) => chunks,
    };
    loaded.map_or(EntryLookup::NotLoaded, |entries| {
        entries
            .get(&(*session, *position))
            .cloned()
            .map_or(EntryLookup::Absent, EntryLookup::Found)
    })
}

/// The parts of the state a decrypted message rewrites.
struct Sealed {
    session: SealedSession,
    /// Whether this side sends with a ratchet key from now on that it has just drawn.
    stepped: bool,
    identity: Option<Bytes<Vec<u8>>>,
    archived: Option<Archived>,
}

fn encode_decrypted<'a>(
    env: Env<'a>,
    conversation: &Conversation<'_>,
    rng: &mut StdRng,
    changes: &Changes,
    plaintext: &[u8],
    sealed: &Sealed,
) -> Result<Term<'a>, Reason> {
    let Changes {
        session_id,
        version,
        established,
        archived: _,
        promoted,
        sessions_dropped,
        entries_removed,
        groups_dropped,
        entries_added,
        entries_evicted,
        prekey_used,
        kyber_prekey_used,
        base_key_used,
    } = changes;
    let id = |id: &SessionId| Bytes(*id.as_bytes());
    let numbered = |(group, number): &(EntryGroup, u32)| (Bytes(group.to_bytes()), *number);
    let added = entries_added
        .iter()
        .map(|(position, entry)| conversation.seal_entry(rng, session_id, *position, entry))
        .collect::<Result<Vec<_>, Reason>>()?;
    let base_key = base_key_used
        .as_ref()
        .map(|(signed_prekey_id, base_key)| (*signed_prekey_id, Bytes(base_key.to_bytes())));
    Ok(map(
        env,
        &[
            (atoms::plaintext(), &Bytes(plaintext)),
            (atoms::session_id(), &id(session_id)),
            (atoms::version(), &version.number()),
            (atoms::established(), established),
            (atoms::stepped(), &sealed.stepped),
            (atoms::state(), &sealed.session.state),
            (atoms::braid(), &sealed.session.braid),
            (atoms::identity(), &sealed.identity),
            (atoms::archived(), &sealed.archived),
            (atoms::promoted(), &promoted.as_ref().map(id)),
            (
                atoms::archive_dropped(),
                &sessions_dropped.iter().map(id).collect::<Vec<_>>(),
            ),
            (
                atoms::entries_removed(),
                &entries_removed.iter().map(numbered).collect::<Vec<_>>(),
            ),
            (atoms::entries_dropped(), &groups(groups_dropped)),
            (atoms::entries_added(), &added),
            (
                atoms::entries_evicted(),
                &entries_evicted.iter().map(numbered).collect::<Vec<_>>(),
            ),
            (atoms::prekey_used(), prekey_used),
            (atoms::kyber_prekey_used(), kyber_prekey_used),
            (atoms::base_key(), &base_key),
        ],
    ))
}

/// What is stored about a peer, opened.
struct Stored {
    known: Known,
    record: SessionRecord,
}

impl Stored {
    fn open(conversation: &Conversation<'_>, peer: &PeerTerm<'_>) -> Result<Self, Reason> {
        let current = conversation.open_session(
            peer.generation,
            peer.state.as_deref(),
            peer.braid.as_ref(),
        )?;
        let archive = peer
            .archive
            .as_ref()
            .map(|archive| conversation.open_archive(archive))
            .transpose()?;
        Ok(Self {
            known: conversation.known(peer.identity.as_deref(), peer.sibling.as_ref())?,
            record: SessionRecord::from_parts(current, archive),
        })
    }
}

fn named_prekeys(
    owner: &Owner,
    peer: &PeerTerm<'_>,
    message: &PreKeySignalMessage,
) -> Result<NamedPreKeys, Reason> {
    let data_key = owner.data_key();
    let (user, device) = (owner.address.name(), owner.address.device_id());
    let open = |kind, id, sealed: Option<&Binary<'_>>| {
        sealed
            .map(|sealed| open_prekey(data_key, kind, user, device, id, sealed))
            .transpose()
    };
    Ok(NamedPreKeys {
        prekey: match message.prekey_id() {
            Some(id) => open(PreKeyContext::OneTime, id, peer.prekey.as_ref())?,
            None => None,
        },
        signed_prekey: open(
            PreKeyContext::Signed,
            message.signed_prekey_id(),
            peer.signed_prekey.as_ref(),
        )?,
        kyber_prekey: match (message.kyber_prekey_id(), &peer.kyber_prekey) {
            (Some(id), Some((kind, sealed))) => Some(open_kyber_prekey(
                data_key, *kind, user, device, id, sealed,
            )?),
            _ => None,
        },
    })
}

/// What a message says before it is opened: `{:ok, map}`. `message_keys` and `chunks` are the positions and the group
/// of the entries it may need.
#[rustler::nif(schedule = "DirtyCpu")]
fn message_inspect<'a>(env: Env<'a>, kind: MessageType, body: Binary<'a>) -> Term<'a> {
    seam::call(env, "message_inspect", || match kind {
        MessageType::Message => {
            let message = SignalMessage::from_bytes(&body)?;
            Ok::<_, Reason>(describe(env, None, &message))
        }
        MessageType::Prekey => {
            let outer = PreKeySignalMessage::from_bytes(&body)?;
            Ok(describe(env, Some(&outer), outer.message()))
        }
    })
}

fn describe<'a>(
    env: Env<'a>,
    outer: Option<&PreKeySignalMessage>,
    message: &SignalMessage,
) -> Term<'a> {
    let post_quantum = message.post_quantum_position();
    let message_keys: Vec<_> = [
        Some((
            EntryGroup::MessageKeys(*message.ratchet_key()),
            message.counter(),
        )),
        post_quantum.map(|(epoch, index)| (EntryGroup::PostQuantumKeys(epoch), index)),
    ]
    .into_iter()
    .flatten()
    .map(|(group, number)| (Bytes(group.to_bytes()), number))
    .collect();
    // A message is of the epoch after that of its key.
    let chunks = post_quantum
        .and_then(|(epoch, _)| epoch.checked_add(1))
        .map(|epoch| Bytes(EntryGroup::Chunks(epoch).to_bytes()));
    map(
        env,
        &[
            (atoms::version(), &message.version().number()),
            (
                atoms::ratchet_key(),
                &Bytes(message.ratchet_key().to_bytes()),
            ),
            (atoms::counter(), &message.counter()),
            (atoms::message_keys(), &message_keys),
            (atoms::chunks(), &chunks),
            (
                atoms::prekey_id(),
                &outer.and_then(PreKeySignalMessage::prekey_id),
            ),
            (
                atoms::kyber_prekey_id(),
                &outer.and_then(PreKeySignalMessage::kyber_prekey_id),
            ),
            (
                atoms::signed_prekey_id(),
                &outer.map(PreKeySignalMessage::signed_prekey_id),
            ),
            (
                atoms::base_key(),
                &outer.map(|outer| Bytes(outer.base_key().to_bytes())),
            ),
            (
                atoms::identity_key(),
                &outer.map(|outer| Bytes(outer.identity_key().to_bytes())),
            ),
            (
                atoms::registration_id(),
                &outer.map(PreKeySignalMessage::registration_id),
            ),
        ],
    )
}

/// Reports a message that did not open, by its timestamp and the device that sent it: `{:ok, content}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn report_create<'a>(
    env: Env<'a>,
    (kind, body): (MessageType, Binary<'a>),
    timestamp: u64,
    device: u8,
) -> Term<'a> {
    seam::call(env, "report_create", || {
        let device = device.into();
        let report = match kind {
            MessageType::Message => {
                let message = SignalMessage::from_bytes(&body)?;
                DecryptionErrorMessage::of_message(&message, timestamp, device)
            }
            MessageType::Prekey => {
                let message = PreKeySignalMessage::from_bytes(&body)?;
                DecryptionErrorMessage::of_prekey_message(&message, timestamp, device)
            }
        };
        Ok::<_, Reason>(Bytes(report.to_plaintext_content()))
    })
}

/// Reads a report: `{:ok, {ratchet_key | nil, timestamp, device}}`.
#[rustler::nif]
fn report_parse<'a>(env: Env<'a>, content: Binary<'a>) -> Term<'a> {
    seam::call(env, "report_parse", || {
        let report = DecryptionErrorMessage::from_plaintext_content(&content)?;
        let ratchet_key = report.ratchet_key().map(|key| Bytes(key.to_bytes()));
        Ok::<_, Reason>((ratchet_key, report.timestamp(), report.device_id()))
    })
}

/// What may be shown of the sessions with a peer: `{:ok, map}`, without secrets.
#[rustler::nif(schedule = "DirtyCpu")]
fn session_info<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    (_user, local_device): AddressTerm<'a>,
    peer: Row<PeerTerm<'a>>,
    now_ms: u64,
) -> Term<'a> {
    seam::call(env, "session_info", || {
        let peer = peer.get()?;
        let owner = Owner::open(&vault, account.get()?, local_device)?;
        let conversation = owner.with(&peer.user, peer.device)?;
        let Stored { known, record } = Stored::open(&conversation, peer)?;
        let remembered = known.device();
        let now = now_ms / 1000;
        let current = record
            .current()
            .map(|session| describe_session(env, session, now));
        let archived: Vec<_> = record
            .archived()
            .iter()
            .map(|session| describe_session(env, session, now))
            .collect();
        Ok::<_, Reason>(map(
            env,
            &[
                (
                    atoms::identity_key(),
                    &remembered.map(|remembered| Bytes(remembered.key.to_bytes())),
                ),
                (
                    atoms::verified(),
                    &remembered.is_some_and(|remembered| remembered.verified),
                ),
                (
                    atoms::highest_version(),
                    &remembered.map(|remembered| remembered.version),
                ),
                (atoms::current(), &current),
                (atoms::archived(), &archived),
            ],
        ))
    })
}

/// Puts the current session away: `{:ok, {session_id, position, sealed}}`, a row of the archive.
#[rustler::nif(schedule = "DirtyCpu")]
fn session_archive<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    (_user, local_device): AddressTerm<'a>,
    peer: Row<PeerTerm<'a>>,
) -> Term<'a> {
    seam::call(env, "session_archive", || {
        let peer = peer.get()?;
        let owner = Owner::open(&vault, account.get()?, local_device)?;
        let conversation = owner.with(&peer.user, peer.device)?;
        let current = conversation.open_session(
            peer.generation,
            peer.state.as_deref(),
            peer.braid.as_ref(),
        )?;
        let mut record = SessionRecord::from_parts(current, Some(Vec::new()));
        record.archive_current();
        conversation
            .seal_replaced(&mut random()?, peer.generation, &record)?
            .ok_or(Reason::SessionNotFound)
    })
}

fn describe_session<'a>(env: Env<'a>, session: &Session, now: u64) -> Term<'a> {
    let info = session.info();
    let chain = |chain: &kith_protocol::ChainInfo| {
        map(
            env,
            &[
                (atoms::ratchet_key(), &Bytes(chain.ratchet_key.to_bytes())),
                (atoms::index(), &chain.index),
                (atoms::skipped(), &chain.skipped),
            ],
        )
    };
    let braid = info.braid.map(|braid| {
        map(
            env,
            &[
                (atoms::state(), &braid.state),
                (atoms::epoch(), &braid.epoch),
            ],
        )
    });
    map(
        env,
        &[
            (atoms::session_id(), &Bytes(*info.id.as_bytes())),
            (atoms::version(), &info.version.number()),
            (atoms::braid(), &braid),
            (atoms::acknowledged(), &info.acknowledged),
            (atoms::usable(), &session.is_usable_at(now)),
            (atoms::sending(), &chain(&info.sending)),
            (
                atoms::receiving(),
                &info.receiving.iter().map(chain).collect::<Vec<_>>(),
            ),
            (atoms::registration_id(), &info.remote_registration_id),
        ],
    )
}

type AddressTerm<'a> = (Binary<'a>, u8);

/// Seals what is remembered of a peer's identity: `{:ok, sealed}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn identity_seal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    (_user, local_device): AddressTerm<'a>,
    (peer, peer_device): AddressTerm<'a>,
    (public, verified, version): (Binary<'a>, bool, u8),
) -> Term<'a> {
    seam::call(env, "identity_seal", || {
        let owner = Owner::open(&vault, account.get()?, local_device)?;
        let conversation = owner.with(&peer, peer_device)?;
        let remembered = Remembered {
            key: IdentityKey::from(public_key(&public)?),
            verified,
            version,
        };
        conversation.seal_identity(&mut random()?, remembered)
    })
}

/// Opens what is remembered of a peer's identity: `{:ok, {public, verified, highest version}}`.
#[rustler::nif(schedule = "DirtyCpu")]
fn identity_open<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    (_user, local_device): AddressTerm<'a>,
    (peer, peer_device): AddressTerm<'a>,
    sealed: Row<Binary<'a>>,
) -> Term<'a> {
    seam::call(env, "identity_open", || {
        let owner = Owner::open(&vault, account.get()?, local_device)?;
        let conversation = owner.with(&peer, peer_device)?;
        let Remembered {
            key,
            verified,
            version,
        } = conversation.open_identity(sealed.get()?)?;
        Ok::<_, Reason>((Bytes(key.to_bytes()), verified, version))
    })
}
