//! A device's own keys: its identity and its prekeys, made and sealed.

use kith_protocol::{
    IdentityKey, IdentityKeyPair, KeyPair, KyberKeyPair, KyberPreKey, KyberPreKeyPublic,
    KyberPublicKey, PreKey, PreKeyBundle, PreKeyId, PrivateKey, PublicKey, SignedPreKey,
    SignedPreKeyPublic,
};
use kith_vault::{Context, DataKey};
use rand::RngExt;
use rand::rngs::StdRng;
use rustler::{Binary, Env, NifMap, NifUnitEnum, ResourceArc, Term};
use zeroize::Zeroizing;

use crate::reason::Reason;
use crate::seam;
use crate::terms::Row;
use crate::vault::{Account, Bytes, Vault, random, user};

/// Most one-time prekeys made in one call.
const MAX_PREKEYS: u32 = 1000;

/// Registration ids have 14 bits and are not zero, as in Signal's service.
const MAX_REGISTRATION_ID: u32 = 0x3fff;

/// Prekey ids have 24 bits and are not zero, as Signal's clients draw them.
const MAX_PREKEY_ID: u32 = 0x00ff_ffff;

/// The device on whose behalf a call is made.
#[derive(NifMap)]
pub(crate) struct LocalTerm<'a> {
    pub(crate) device: u8,
    pub(crate) registration_id: u32,
    pub(crate) identity: Binary<'a>,
    /// The lowest version of the protocol it speaks.
    pub(crate) minimum_version: u8,
}

#[derive(NifMap)]
pub(crate) struct BundleTerm<'a> {
    registration_id: u32,
    identity_key: Binary<'a>,
    signed_prekey: SignedTerm<'a>,
    prekey: Option<(PreKeyId, Binary<'a>)>,
    kyber_prekey: Option<SignedTerm<'a>>,
}

/// Id, public key, signature.
type SignedTerm<'a> = (PreKeyId, Binary<'a>, Binary<'a>);

impl BundleTerm<'_> {
    pub(crate) fn decode(&self) -> Result<PreKeyBundle, Reason> {
        let (signed_id, signed_key, signature) = &self.signed_prekey;
        let prekey = match &self.prekey {
            Some((id, key)) => Some((*id, public_key(key)?)),
            None => None,
        };
        Ok(PreKeyBundle {
            registration_id: self.registration_id,
            identity_key: public_key(&self.identity_key)?.into(),
            signed_prekey: SignedPreKeyPublic {
                id: *signed_id,
                public_key: public_key(signed_key)?,
                signature: signature.to_vec(),
            },
            prekey,
            kyber_prekey: self.kyber_prekey.as_ref().map(kyber_prekey).transpose()?,
        })
    }
}

fn kyber_prekey((id, key, signature): &SignedTerm<'_>) -> Result<KyberPreKeyPublic, Reason> {
    Ok(KyberPreKeyPublic {
        id: *id,
        public_key: KyberPublicKey::from_bytes(key).map_err(|_| Reason::Malformed)?,
        signature: signature.to_vec(),
    })
}

pub(crate) fn public_key(bytes: &[u8]) -> Result<PublicKey, Reason> {
    PublicKey::from_bytes(bytes).map_err(|_| Reason::Malformed)
}

fn identity_context(user: &str, device: u8) -> Context {
    Context::new("identity").bytes(user).number(device.into())
}

/// What binds a prekey to its place.
pub(crate) enum PreKeyContext {
    OneTime,
    Signed,
    Kyber(KyberKind),
}

/// How often a Kyber prekey is handed out: once, or when no other is left.
#[derive(Clone, Copy, NifUnitEnum)]
pub(crate) enum KyberKind {
    KyberOneTime,
    KyberLastResort,
}

impl PreKeyContext {
    fn of(self, user: &str, device: u8, id: u32) -> Context {
        let kind = match self {
            Self::OneTime => "one-time-prekey",
            Self::Signed => "signed-prekey",
            Self::Kyber(KyberKind::KyberOneTime) => "kyber-one-time-prekey",
            Self::Kyber(KyberKind::KyberLastResort) => "kyber-last-resort-prekey",
        };
        Context::new(kind)
            .bytes(user)
            .number(device.into())
            .number(id.into())
    }
}

/// Seals `private (32) ‖ public (33)`.
fn seal_pair(
    data_key: &DataKey,
    rng: &mut StdRng,
    context: &Context,
    public: &PublicKey,
    private: &PrivateKey,
) -> Result<Vec<u8>, Reason> {
    let mut pair = Zeroizing::new([0; 65]);
    pair[..32].copy_from_slice(private.as_bytes());
    pair[32..].copy_from_slice(&public.to_bytes());
    Ok(data_key.seal(rng, context, &pair[..])?)
}

fn open_pair(
    data_key: &DataKey,
    context: &Context,
    sealed: &[u8],
) -> Result<(PublicKey, PrivateKey), Reason> {
    let pair = data_key.open(context, sealed)?;
    let (private, public) = pair
        .split_first_chunk::<32>()
        .ok_or(Reason::CorruptedState)?;
    let public = PublicKey::from_bytes(public).map_err(|_| Reason::CorruptedState)?;
    Ok((public, PrivateKey::from_bytes(private)))
}

pub(crate) fn open_identity(
    data_key: &DataKey,
    user: &str,
    device: u8,
    sealed: &[u8],
) -> Result<IdentityKeyPair, Reason> {
    let (public, private) = open_pair(data_key, &identity_context(user, device), sealed)?;
    Ok(IdentityKeyPair::from_parts(
        IdentityKey::from(public),
        private,
    ))
}

pub(crate) fn open_prekey(
    data_key: &DataKey,
    kind: PreKeyContext,
    user: &str,
    device: u8,
    id: u32,
    sealed: &[u8],
) -> Result<KeyPair, Reason> {
    let (public, private) = open_pair(data_key, &kind.of(user, device, id), sealed)?;
    Ok(KeyPair::from_parts(public, private))
}

/// A Kyber prekey is stored as its seed (64).
pub(crate) fn open_kyber_prekey(
    data_key: &DataKey,
    kind: KyberKind,
    user: &str,
    device: u8,
    id: PreKeyId,
    sealed: &[u8],
) -> Result<KyberKeyPair, Reason> {
    let context = PreKeyContext::Kyber(kind).of(user, device, id);
    let seed = data_key.open(&context, sealed)?;
    let seed = seed
        .as_slice()
        .try_into()
        .map_err(|_| Reason::CorruptedState)?;
    Ok(KyberKeyPair::from_seed(seed))
}

/// Public key, sealed pair, registration id.
type Identity = (Bytes<[u8; 33]>, Bytes<Vec<u8>>, u32);

fn seal_identity(
    vault: &Vault,
    account: &Account<'_>,
    device: u8,
    rng: &mut StdRng,
    identity: &IdentityKeyPair,
) -> Result<Identity, Reason> {
    let public = identity.identity_key();
    let sealed = seal_pair(
        &*vault.account_key(account)?,
        rng,
        &identity_context(user(account)?, device),
        public.public_key(),
        identity.private_key(),
    )?;
    let registration_id = rng.random_range(1..=MAX_REGISTRATION_ID);
    Ok((Bytes(public.to_bytes()), Bytes(sealed), registration_id))
}

/// Draws an identity: `{:ok, {public, sealed, registration_id}}`
#[rustler::nif(schedule = "DirtyCpu")]
fn identity_create<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    device: u8,
) -> Term<'a> {
    seam::call(env, "identity_create", || {
        let mut rng = random()?;
        let identity = IdentityKeyPair::generate(&mut rng);
        seal_identity(&vault, account.get()?, device, &mut rng, &identity)
    })
}

/// Takes over an identity from the pair as Signal's own library serializes it: `{:ok, {public, sealed,
/// registration_id}}`, the registration id drawn.
#[rustler::nif(schedule = "DirtyCpu")]
fn identity_import<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    device: u8,
    pair: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "identity_import", || {
        let identity = IdentityKeyPair::from_official(&pair).ok_or(Reason::Malformed)?;
        seal_identity(&vault, account.get()?, device, &mut random()?, &identity)
    })
}

/// Gives a device the identity another device of its user has: `{:ok, {public, sealed, registration_id}}`, the
/// registration id drawn.
#[rustler::nif(schedule = "DirtyCpu")]
fn identity_share<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    device: u8,
    (other, sealed): (u8, Binary<'a>),
) -> Term<'a> {
    seam::call(env, "identity_share", || {
        let account = account.get()?;
        let identity = open_identity(
            &*vault.account_key(account)?,
            user(account)?,
            other,
            &sealed,
        )?;
        seal_identity(&vault, account, device, &mut random()?, &identity)
    })
}

/// `{:ok, {id, public, signature, sealed}}`
#[rustler::nif(schedule = "DirtyCpu")]
fn signed_prekey_create<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    device: u8,
    identity: Row<Binary<'a>>,
    id: u32,
) -> Term<'a> {
    seam::call(env, "signed_prekey_create", || {
        let account = account.get()?;
        let data_key = vault.account_key(account)?;
        let user = user(account)?;
        let identity = open_identity(&data_key, user, device, identity.get()?)?;
        let mut rng = random()?;
        let prekey = SignedPreKey::generate(id, &identity, &mut rng);
        let public = prekey.key_pair.public_key();
        let sealed = seal_pair(
            &data_key,
            &mut rng,
            &PreKeyContext::Signed.of(user, device, id),
            public,
            prekey.key_pair.private_key(),
        )?;
        Ok::<_, Reason>((
            id,
            Bytes(public.to_bytes()),
            Bytes(prekey.signature),
            Bytes(sealed),
        ))
    })
}

/// So many ids, counted up from the first and wrapping to 1.
fn ids(first_id: PreKeyId, count: u32) -> Result<impl Iterator<Item = PreKeyId>, Reason> {
    if count > MAX_PREKEYS {
        return Err(Reason::TooLarge);
    }
    let mut next = first_id.clamp(1, MAX_PREKEY_ID);
    Ok((0..count).map(move |_| {
        let id = next;
        next = if id == MAX_PREKEY_ID { 1 } else { id + 1 };
        id
    }))
}

/// `{:ok, [{id, public, sealed}]}`
#[rustler::nif(schedule = "DirtyCpu")]
fn prekeys_create<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    device: u8,
    first_id: u32,
    count: u32,
) -> Term<'a> {
    seam::call(env, "prekeys_create", || {
        let account = account.get()?;
        let data_key = vault.account_key(account)?;
        let user = user(account)?;
        let mut rng = random()?;
        ids(first_id, count)?
            .map(|id| {
                let prekey = PreKey::generate(id, &mut rng);
                let public = prekey.key_pair.public_key();
                let sealed = seal_pair(
                    &data_key,
                    &mut rng,
                    &PreKeyContext::OneTime.of(user, device, id),
                    public,
                    prekey.key_pair.private_key(),
                )?;
                Ok((id, Bytes(public.to_bytes()), Bytes(sealed)))
            })
            .collect::<Result<Vec<_>, Reason>>()
    })
}

/// `{:ok, [{id, public, signature, sealed}]}`
#[rustler::nif(schedule = "DirtyCpu")]
fn kyber_prekeys_create<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    device: u8,
    identity: Row<Binary<'a>>,
    kind: KyberKind,
    (first_id, count): (u32, u32),
) -> Term<'a> {
    seam::call(env, "kyber_prekeys_create", || {
        let account = account.get()?;
        let data_key = vault.account_key(account)?;
        let user = user(account)?;
        let identity = open_identity(&data_key, user, device, identity.get()?)?;
        let mut rng = random()?;
        ids(first_id, count)?
            .map(|id| {
                let prekey = KyberPreKey::generate(id, &identity, &mut rng);
                let public = prekey.key_pair.public_key().to_bytes();
                // Only what was read from an expanded key has no seed.
                let seed = prekey.key_pair.seed().ok_or(Reason::CorruptedState)?;
                let context = PreKeyContext::Kyber(kind).of(user, device, id);
                let sealed = data_key.seal(&mut rng, &context, seed)?;
                Ok((id, Bytes(public), Bytes(prekey.signature), Bytes(sealed)))
            })
            .collect::<Result<Vec<_>, Reason>>()
    })
}

/// `:ok` when the keys are well-formed and the signatures are right: those of the bundle, and those of Kyber prekeys
/// that are published with it.
#[rustler::nif(schedule = "DirtyCpu")]
fn bundle_verify<'a>(
    env: Env<'a>,
    bundle: BundleTerm<'a>,
    kyber_prekeys: Vec<SignedTerm<'a>>,
) -> Term<'a> {
    seam::call_unit(env, "bundle_verify", || {
        let bundle = bundle.decode()?;
        bundle.verify().map_err(|_| Reason::Tampered)?;
        for prekey in &kyber_prekeys {
            let KyberPreKeyPublic {
                id: _,
                public_key,
                signature,
            } = kyber_prekey(prekey)?;
            if !bundle
                .identity_key
                .verify(&public_key.to_bytes(), &signature)
            {
                return Err(Reason::Tampered);
            }
        }
        Ok(())
    })
}
