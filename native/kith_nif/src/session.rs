//! Sessions: sealed state in, one step of the protocol, sealed state out.

use std::collections::HashMap;

use kith_protocol::{
    Changes, Ciphertext, DecryptError, EncryptError, IdentityKey, IdentityKeyPair, InitiateError,
    KeyPair, LocalDevice, MessageError, NotLoaded, PreKeyId, PreKeySignalMessage, PreKeys,
    ProtocolAddress, PublicKey, Session, SessionId, SessionRecord, SignalMessage, SkippedKey,
    SkippedKeyLookup, SkippedKeyPosition, TrustOnFirstUse,
};
use kith_vault::{Context, DataKey};
use rand::rngs::StdRng;
use rustler::{Binary, Encoder, Env, NifMap, NifUnitEnum, ResourceArc, Term};
use zeroize::Zeroizing;

use crate::atoms;
use crate::device::{BundleTerm, LocalTerm, PreKeyContext, open_identity, open_prekey, public_key};
use crate::reason::Reason;
use crate::seam;
use crate::terms::{Row, map};
use crate::vault::{Account, Bytes, Vault, random, user};

/// One device of a fan-out, with what is stored about it.
#[derive(NifMap)]
struct RecipientTerm<'a> {
    user: Binary<'a>,
    device: u8,
    /// Of the stored row; 0 when there is none.
    generation: u64,
    state: Option<Binary<'a>>,
    identity: Option<Binary<'a>>,
    bundle: Option<BundleTerm<'a>>,
}

/// The sender of a message, with what is stored about it.
#[derive(NifMap)]
struct PeerTerm<'a> {
    user: Binary<'a>,
    device: u8,
    generation: u64,
    state: Option<Binary<'a>>,
    identity: Option<Binary<'a>>,
    archive: Option<Vec<ArchivedTerm<'a>>>,
    skipped: Option<Vec<SkippedTerm<'a>>>,
    prekey: Option<Binary<'a>>,
    signed_prekey: Option<Binary<'a>>,
}

/// Session id, position, sealed session.
type ArchivedTerm<'a> = (Binary<'a>, u64, Binary<'a>);

/// Session id, ratchet key, counter, sealed key.
type SkippedTerm<'a> = (Binary<'a>, Binary<'a>, u32, Binary<'a>);

#[derive(Clone, Copy, NifUnitEnum)]
pub(crate) enum MessageType {
    Prekey,
    Message,
}

/// A device with the opened data key of its user.
struct Owner {
    data_key: DataKey,
    address: ProtocolAddress,
}

impl Owner {
    fn open(vault: &Vault, account: &Account<'_>, device: u8) -> Result<Self, Reason> {
        Ok(Self {
            data_key: vault.account_key(account)?,
            address: address(user(account)?, device)?,
        })
    }

    fn identity(&self, sealed: &[u8]) -> Result<IdentityKeyPair, Reason> {
        open_identity(
            &self.data_key,
            self.address.name(),
            self.address.device_id(),
            sealed,
        )
    }

    fn with(&self, peer: &Binary<'_>, device: u8) -> Result<Conversation<'_>, Reason> {
        Ok(Conversation {
            data_key: &self.data_key,
            local: &self.address,
            remote: remote_address(peer, device)?,
        })
    }
}

/// Two devices and the key that seals what the first one knows of the second.
struct Conversation<'a> {
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

    fn session_context(&self, generation: u64) -> Context {
        self.context("session").number(generation)
    }

    fn archived_context(&self, id: &[u8], position: u64) -> Context {
        self.context("archived-session").bytes(id).number(position)
    }

    fn skipped_context(&self, id: &[u8], (ratchet_key, counter): &SkippedKeyPosition) -> Context {
        self.context("skipped-key")
            .bytes(id)
            .bytes(ratchet_key.to_bytes())
            .number((*counter).into())
    }

    fn open_session(
        &self,
        generation: u64,
        sealed: Option<&[u8]>,
    ) -> Result<Option<Session>, Reason> {
        sealed
            .map(|sealed| self.read_session(&self.session_context(generation), sealed))
            .transpose()
    }

    fn read_session(&self, context: &Context, sealed: &[u8]) -> Result<Session, Reason> {
        let state = self.data_key.open(context, sealed)?;
        Session::from_bytes(&state).map_err(|_| Reason::CorruptedState)
    }

    fn seal_session(
        &self,
        rng: &mut StdRng,
        generation: u64,
        session: &Session,
    ) -> Result<Vec<u8>, Reason> {
        let context = self.session_context(generation);
        Ok(self.data_key.seal(rng, &context, &session.to_bytes())?)
    }

    fn seal_archived(
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

    /// Reads `identity key (33) ‖ verified (1)`.
    fn open_peer_identity(&self, sealed: &[u8]) -> Result<(IdentityKey, bool), Reason> {
        let record = self.data_key.open(&self.context("peer-identity"), sealed)?;
        let (&verified, key) = record.split_last().ok_or(Reason::CorruptedState)?;
        let key = IdentityKey::from_bytes(key).map_err(|_| Reason::CorruptedState)?;
        Ok((key, verified != 0))
    }

    fn seal_peer_identity(
        &self,
        rng: &mut StdRng,
        key: &IdentityKey,
        verified: bool,
    ) -> Result<Bytes<Vec<u8>>, Reason> {
        let record = [key.to_bytes().as_slice(), &[u8::from(verified)]].concat();
        Ok(Bytes(self.data_key.seal(
            rng,
            &self.context("peer-identity"),
            &record,
        )?))
    }

    /// The remembered identity as a policy.
    fn trust(&self, sealed: Option<&[u8]>) -> Result<TrustOnFirstUse, Reason> {
        let known = sealed
            .map(|sealed| self.open_peer_identity(sealed))
            .transpose()?;
        Ok(TrustOnFirstUse(known.map(|(key, _)| key)))
    }
}

/// Session id, position, sealed session: a row to insert.
type Archived = (Bytes<[u8; 16]>, u64, Bytes<Vec<u8>>);

fn address(name: &str, device: u8) -> Result<ProtocolAddress, Reason> {
    ProtocolAddress::new(name, device).ok_or(Reason::Malformed)
}

fn remote_address(user: &Binary<'_>, device: u8) -> Result<ProtocolAddress, Reason> {
    address(
        std::str::from_utf8(user).map_err(|_| Reason::Malformed)?,
        device,
    )
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
            Self::Needs(NotLoaded::Archive) => (atoms::need(), vec![atoms::archive()]).encode(env),
            Self::Needs(NotLoaded::SkippedKeys) => {
                (atoms::need(), vec![atoms::skipped()]).encode(env)
            }
        }
    }
}

/// One encrypted message of a fan-out and the state behind it.
struct Encrypted {
    message: Ciphertext,
    state: Bytes<Vec<u8>>,
    identity: Option<Bytes<Vec<u8>>>,
    archived: Option<Archived>,
    established: bool,
}

impl Encoder for Encrypted {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let Self {
            message,
            state,
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
                (atoms::identity(), identity),
                (atoms::archived(), archived),
            ],
        )
    }
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
        let device = LocalDevice {
            address: &owner.address,
            identity: &identity,
            registration_id: local.registration_id,
        };
        let mut rng = random()?;
        let results = recipients
            .iter()
            .map(|recipient| {
                let result = recipient.get().and_then(|recipient| {
                    encrypt_for(
                        &owner,
                        &device,
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
    local: &LocalDevice<'_>,
    recipient: &RecipientTerm<'_>,
    plaintext: &[u8],
    now: u64,
    rng: &mut StdRng,
) -> Result<Encrypted, Reason> {
    let conversation = owner.with(&recipient.user, recipient.device)?;
    let generation = recipient.generation;
    let trust = conversation.trust(recipient.identity.as_deref())?;
    let current = conversation.open_session(generation, recipient.state.as_deref())?;
    // The stored archive stays where it is; what is archived here is one more row of it.
    let mut record = SessionRecord::from_parts(current, Some(Vec::new()));
    if let Some(bundle) = &recipient.bundle {
        record.initiate(local, &bundle.decode()?, &trust, now, rng)?;
    }
    let message = record.encrypt(plaintext, &trust, now)?;
    let session = record.current().ok_or(Reason::SessionNotFound)?;
    let identity = match recipient.identity {
        Some(_) => None,
        None => Some(conversation.seal_peer_identity(rng, session.remote_identity(), false)?),
    };
    let archived = record
        .archived()
        .first()
        .map(|replaced| conversation.seal_archived(rng, generation, replaced))
        .transpose()?;
    Ok(Encrypted {
        state: Bytes(conversation.seal_session(rng, next(generation)?, session)?),
        message,
        identity,
        archived,
        established: recipient.bundle.is_some(),
    })
}

fn next(generation: u64) -> Result<u64, Reason> {
    generation.checked_add(1).ok_or(Reason::CorruptedState)
}

/// The prekeys a message names, as far as they are stored.
#[derive(Default)]
struct NamedPreKeys {
    prekey: Option<KeyPair>,
    signed_prekey: Option<KeyPair>,
}

impl PreKeys for NamedPreKeys {
    fn prekey(&self, _id: PreKeyId) -> Option<KeyPair> {
        self.prekey.clone()
    }

    fn signed_prekey(&self, _id: PreKeyId) -> Option<KeyPair> {
        self.signed_prekey.clone()
    }

    /// The store remembers base keys: it inserts each in the transaction that stores the session, and
    /// a second insert fails.
    fn is_base_key_used(&self, _signed_prekey_id: PreKeyId, _base_key: &PublicKey) -> bool {
        false
    }
}

/// Decrypts a message: `{:ok, map}`, `{:need, [:archive | :skipped]}` or `{:error, reason}`.
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
    let device = LocalDevice {
        address: &owner.address,
        identity: &identity,
        registration_id: local.registration_id,
    };
    let conversation = owner.with(&peer.user, peer.device)?;
    let Stored {
        trust,
        mut record,
        skipped,
    } = Stored::open(&conversation, peer)?;
    let find = |session: &SessionId, position: &SkippedKeyPosition| match &skipped {
        None => SkippedKeyLookup::NotLoaded,
        Some(keys) => keys
            .get(&(*session, *position))
            .cloned()
            .map_or(SkippedKeyLookup::Absent, SkippedKeyLookup::Found),
    };
    let mut rng = random()?;
    let remote = &conversation.remote;
    let decrypted = match kind {
        MessageType::Message => {
            let message = SignalMessage::from_bytes(body)?;
            record.decrypt(&device, remote, &message, &find, &trust, &mut rng)
        }
        MessageType::Prekey => {
            let message = PreKeySignalMessage::from_bytes(body)?;
            let prekeys = named_prekeys(&owner, peer, &message)?;
            record.decrypt_prekey(&device, remote, &message, &prekeys, &find, &trust, &mut rng)
        }
    }
    .map_err(Unopened::new)?;
    let plaintext = Zeroizing::new(decrypted.plaintext);

    let session = record.current().ok_or(Reason::SessionNotFound)?;
    let state = conversation.seal_session(&mut rng, next(peer.generation)?, session)?;
    let remembered = match peer.identity {
        Some(_) => None,
        None => {
            Some(conversation.seal_peer_identity(&mut rng, &decrypted.remote_identity, false)?)
        }
    };
    // A session is replaced only when the archive was loaded, and is then its first.
    let archived = match (decrypted.changes.archived, record.archived().first()) {
        (Some(_), Some(replaced)) => {
            Some(conversation.seal_archived(&mut rng, peer.generation, replaced)?)
        }
        _ => None,
    };
    encode_decrypted(
        env,
        &conversation,
        &mut rng,
        &decrypted.changes,
        &plaintext,
        &Sealed {
            state: Bytes(state),
            identity: remembered,
            archived,
        },
    )
    .map_err(Unopened::Failed)
}

/// The parts of the state a decrypted message rewrites.
struct Sealed {
    state: Bytes<Vec<u8>>,
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
        skipped_added,
        skipped_removed,
        skipped_evicted,
        chains_dropped,
        prekey_used,
        base_key_used,
    } = changes;
    let id = |id: &SessionId| Bytes(*id.as_bytes());
    let key = |key: &PublicKey| Bytes(key.to_bytes());
    let added = skipped_added
        .iter()
        .map(|(position, message_key)| {
            let context = conversation.skipped_context(session_id.as_bytes(), position);
            let blob = conversation
                .data_key
                .seal(rng, &context, &message_key.to_bytes())?;
            Ok((key(&position.0), position.1, Bytes(blob)))
        })
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
            (atoms::state(), &sealed.state),
            (atoms::identity(), &sealed.identity),
            (atoms::archived(), &sealed.archived),
            (atoms::promoted(), &promoted.as_ref().map(id)),
            (
                atoms::archive_dropped(),
                &sessions_dropped.iter().map(id).collect::<Vec<_>>(),
            ),
            (atoms::skipped_added(), &added),
            (
                atoms::skipped_removed(),
                &skipped_removed
                    .as_ref()
                    .map(|(chain, counter)| (key(chain), *counter)),
            ),
            (
                atoms::skipped_evicted(),
                &skipped_evicted
                    .iter()
                    .map(|(chain, count)| (key(chain), *count))
                    .collect::<Vec<_>>(),
            ),
            (
                atoms::chains_dropped(),
                &chains_dropped.iter().map(key).collect::<Vec<_>>(),
            ),
            (atoms::prekey_used(), prekey_used),
            (atoms::base_key(), &base_key),
        ],
    ))
}

/// What is stored about a peer, opened.
struct Stored {
    trust: TrustOnFirstUse,
    record: SessionRecord,
    skipped: Option<HashMap<(SessionId, SkippedKeyPosition), SkippedKey>>,
}

impl Stored {
    fn open(conversation: &Conversation<'_>, peer: &PeerTerm<'_>) -> Result<Self, Reason> {
        let current = conversation.open_session(peer.generation, peer.state.as_deref())?;
        Ok(Self {
            trust: conversation.trust(peer.identity.as_deref())?,
            record: SessionRecord::from_parts(
                current,
                peer.archive
                    .as_ref()
                    .map(|archive| open_archive(conversation, archive))
                    .transpose()?,
            ),
            skipped: peer
                .skipped
                .as_ref()
                .map(|keys| {
                    keys.iter()
                        .map(|key| open_skipped(conversation, key))
                        .collect()
                })
                .transpose()?,
        })
    }
}

fn open_archive(
    conversation: &Conversation<'_>,
    archive: &[ArchivedTerm<'_>],
) -> Result<Vec<Session>, Reason> {
    archive
        .iter()
        .map(|(id, position, sealed)| {
            conversation.read_session(&conversation.archived_context(id, *position), sealed)
        })
        .collect()
}

fn open_skipped(
    conversation: &Conversation<'_>,
    (id, ratchet_key, counter, sealed): &SkippedTerm<'_>,
) -> Result<((SessionId, SkippedKeyPosition), SkippedKey), Reason> {
    let position = (
        public_key(ratchet_key).map_err(|_| Reason::CorruptedState)?,
        *counter,
    );
    let context = conversation.skipped_context(id, &position);
    let key = conversation.data_key.open(&context, sealed)?;
    let key = SkippedKey::from_bytes(&key).map_err(|_| Reason::CorruptedState)?;
    let id = id
        .as_slice()
        .try_into()
        .map_err(|_| Reason::CorruptedState)?;
    Ok(((SessionId::from_bytes(id), position), key))
}

fn named_prekeys(
    Owner { data_key, address }: &Owner,
    peer: &PeerTerm<'_>,
    message: &PreKeySignalMessage,
) -> Result<NamedPreKeys, Reason> {
    let open = |kind, id, sealed: Option<&Binary<'_>>| {
        sealed
            .map(|sealed| {
                open_prekey(
                    data_key,
                    kind,
                    address.name(),
                    address.device_id(),
                    id,
                    sealed,
                )
            })
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
    })
}

/// What a message says before it is opened: `{:ok, map}`.
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
    map(
        env,
        &[
            (atoms::version(), &message.version().number()),
            (
                atoms::ratchet_key(),
                &Bytes(message.ratchet_key().to_bytes()),
            ),
            (atoms::counter(), &message.counter()),
            (
                atoms::prekey_id(),
                &outer.and_then(PreKeySignalMessage::prekey_id),
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
        let identity = peer
            .identity
            .as_ref()
            .map(|sealed| conversation.open_peer_identity(sealed))
            .transpose()?;
        let record = Stored::open(&conversation, peer)?.record;
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
                    &identity.map(|(key, _)| Bytes(key.to_bytes())),
                ),
                (
                    atoms::verified(),
                    &identity.is_some_and(|(_, verified)| verified),
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
        let current = conversation.open_session(peer.generation, peer.state.as_deref())?;
        let mut record = SessionRecord::from_parts(current, Some(Vec::new()));
        record.archive_current();
        let session = record.archived().first().ok_or(Reason::SessionNotFound)?;
        conversation.seal_archived(&mut random()?, peer.generation, session)
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
    map(
        env,
        &[
            (atoms::session_id(), &Bytes(*info.id.as_bytes())),
            (atoms::version(), &info.version.number()),
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
    public: Binary<'a>,
    verified: bool,
) -> Term<'a> {
    seam::call(env, "identity_seal", || {
        let owner = Owner::open(&vault, account.get()?, local_device)?;
        let conversation = owner.with(&peer, peer_device)?;
        let key = IdentityKey::from(public_key(&public)?);
        conversation.seal_peer_identity(&mut random()?, &key, verified)
    })
}

/// Opens what is remembered of a peer's identity: `{:ok, {public, verified}}`.
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
        let (key, verified) = conversation.open_peer_identity(sealed.get()?)?;
        Ok::<_, Reason>((Bytes(key.to_bytes()), verified))
    })
}
