//! A device's own keys: its identity and its prekeys, made and sealed.

use kith_protocol::{
    IdentityKey, IdentityKeyPair, KeyPair, PreKey, PreKeyBundle, PrivateKey, PublicKey,
    SignedPreKey, SignedPreKeyPublic,
};
use kith_vault::{Context, DataKey};
use rand::RngExt;
use rand::rngs::StdRng;
use rustler::{Binary, Env, NifMap, ResourceArc, Term};
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
}

#[derive(NifMap)]
pub(crate) struct BundleTerm<'a> {
    registration_id: u32,
    identity_key: Binary<'a>,
    signed_prekey: (u32, Binary<'a>, Binary<'a>),
    prekey: Option<(u32, Binary<'a>)>,
}

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
        })
    }
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
}

impl PreKeyContext {
    fn of(self, user: &str, device: u8, id: u32) -> Context {
        let kind = match self {
            Self::OneTime => "one-time-prekey",
            Self::Signed => "signed-prekey",
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

/// `{:ok, {public, sealed, registration_id}}`
#[rustler::nif(schedule = "DirtyCpu")]
fn identity_create<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    account: Row<Account<'a>>,
    device: u8,
) -> Term<'a> {
    seam::call(env, "identity_create", || {
        let account = account.get()?;
        let data_key = vault.account_key(account)?;
        let mut rng = random()?;
        let identity = IdentityKeyPair::generate(&mut rng);
        let public = identity.identity_key();
        let sealed = seal_pair(
            &data_key,
            &mut rng,
            &identity_context(user(account)?, device),
            public.public_key(),
            identity.private_key(),
        )?;
        let registration_id = rng.random_range(1..=MAX_REGISTRATION_ID);
        Ok::<_, Reason>((Bytes(public.to_bytes()), Bytes(sealed), registration_id))
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

/// `{:ok, [{id, public, sealed}]}`, ids counted up from `first_id` and wrapping to 1.
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
        if count > MAX_PREKEYS {
            return Err(Reason::TooLarge);
        }
        let account = account.get()?;
        let data_key = vault.account_key(account)?;
        let user = user(account)?;
        let mut rng = random()?;
        let mut id = first_id.clamp(1, MAX_PREKEY_ID);
        let mut prekeys = Vec::new();
        for _ in 0..count {
            let prekey = PreKey::generate(id, &mut rng);
            let public = prekey.key_pair.public_key();
            let sealed = seal_pair(
                &data_key,
                &mut rng,
                &PreKeyContext::OneTime.of(user, device, id),
                public,
                prekey.key_pair.private_key(),
            )?;
            prekeys.push((id, Bytes(public.to_bytes()), Bytes(sealed)));
            id = if id == MAX_PREKEY_ID { 1 } else { id + 1 };
        }
        Ok(prekeys)
    })
}

/// `:ok` when the keys are well-formed and the signature is right.
#[rustler::nif(schedule = "DirtyCpu")]
fn bundle_verify<'a>(env: Env<'a>, bundle: BundleTerm<'a>) -> Term<'a> {
    seam::call_unit(env, "bundle_verify", || {
        bundle.decode()?.verify().map_err(|_| Reason::Tampered)
    })
}
