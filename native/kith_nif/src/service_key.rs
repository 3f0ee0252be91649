//! The keys of a service itself, and what is signed, sealed and authenticated with them.

use getrandom::SysRng;
use kith_vault::{
    AgreementKey, ClientKey, ClientKeyError, ClientPublicKey, Context, MacKey, Purpose, SecretKey,
    SignatureError, SigningKey, verify_signature,
};
use rustler::{Atom, Binary, Encoder, Env, NifResult, Resource, ResourceArc, Term};

use crate::kms::{SourceTerm, source_of};
use crate::reason::{Invalid, Reason};
use crate::terms::{self, Row};
use crate::vault::{Bytes, Vault};
use crate::{atoms, seam};

/// A public key of the service and its private key, wrapped.
type Stored<'a> = Row<(Binary<'a>, Binary<'a>)>;

/// Cipher, salt, info.
type PurposeTerm<'a> = (Atom, Option<Binary<'a>>, Binary<'a>);

/// A key of HMAC, for as long as Elixir holds the reference.
struct Mac(MacKey);

#[rustler::resource_impl]
impl Resource for Mac {}

impl From<SignatureError> for Reason {
    fn from(error: SignatureError) -> Self {
        match error {
            SignatureError::Malformed => Self::Malformed,
            SignatureError::Wrong => Self::Tampered,
        }
    }
}

impl From<ClientKeyError> for Reason {
    fn from(error: ClientKeyError) -> Self {
        match error {
            ClientKeyError::Malformed => Self::Malformed,
            // A machine without random numbers is broken, as a program that panics is.
            ClientKeyError::Random => Self::Panic,
            ClientKeyError::Tampered => Self::Tampered,
            ClientKeyError::TooLarge => Self::TooLarge,
        }
    }
}

/// A reason, or a sentence about the source of a key.
enum Failure {
    Reason(Reason),
    Invalid(Invalid),
}

impl<E: Into<Reason>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Reason(error.into())
    }
}

impl Encoder for Failure {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Self::Reason(reason) => reason.encode(env),
            Self::Invalid(invalid) => invalid.encode(env),
        }
    }
}

fn load(source: &kith_vault::Source) -> Result<SecretKey, Invalid> {
    SecretKey::load(source).map_err(|defect| Invalid(format!("{source}: {defect}")))
}

/// What a key of the service is for. A wrapped key opens for its own purpose and public key only.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Signing,
    Agreement,
}

impl Kind {
    pub(crate) fn from_atom(atom: Atom) -> NifResult<Self> {
        if atom == atoms::signing() {
            Ok(Self::Signing)
        } else if atom == atoms::agreement() {
            Ok(Self::Agreement)
        } else {
            Err(rustler::Error::BadArg)
        }
    }

    /// A key service is asked before there is a public key.
    pub(crate) fn context(self, public: &[u8]) -> Context {
        Context::new(match self {
            Self::Signing => "signing-key",
            Self::Agreement => "agreement-key",
        })
        .within()
        .bytes(public)
    }

    fn open(self, vault: &Vault, stored: &Stored<'_>) -> Result<SecretKey, Reason> {
        let (public, wrapped) = stored.get()?;
        vault.open_key(&self.context(public), wrapped)
    }
}

/// `{:ok, {public key, wrapped private key}}`, of a new key, or of one from a source.
///
/// On a dirty scheduler for input: a source may be a file.
#[rustler::nif(schedule = "DirtyIo")]
fn service_key_create<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    kind: Atom,
    source: Option<SourceTerm<'a>>,
) -> NifResult<Term<'a>> {
    let kind = Kind::from_atom(kind)?;
    let source = source.map(source_of).transpose()?;

    Ok(seam::call(env, "service_key_create", || {
        let secret = || match &source {
            Some(source) => load(source).map_err(Failure::Invalid),
            None => Ok(SecretKey::generate(&mut SysRng)?),
        };
        let secret = secret()?;
        let wrap = |public: &[u8]| vault.wrap_key(&kind.context(public), &secret);
        let (public, wrapped) = match kind {
            Kind::Signing => {
                let public = SigningKey::new(&secret).public_key();
                (public, wrap(&public)?)
            }
            Kind::Agreement => {
                let public = AgreementKey::public_key_of(&secret);
                (public, wrap(&public)?)
            }
        };
        Ok::<_, Failure>((Bytes(public), Bytes(wrapped)))
    }))
}

/// A private key of the service under the current key-encryption key, or nil when it is already.
#[rustler::nif(schedule = "DirtyCpu")]
fn service_key_rewrap<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    kind: Atom,
    key: Stored<'a>,
) -> NifResult<Term<'a>> {
    let kind = Kind::from_atom(kind)?;
    Ok(seam::call(env, "service_key_rewrap", || {
        let (public, wrapped) = key.get()?;
        let rewrapped = vault.rewrap(&kind.context(public), wrapped)?;
        Ok::<_, Reason>(rewrapped.map(Bytes))
    }))
}

/// `{:ok, signature}`
#[rustler::nif(schedule = "DirtyCpu")]
fn signature_create<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    key: Stored<'a>,
    message: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "signature_create", || {
        let secret = Kind::Signing.open(&vault, &key)?;
        Ok::<_, Reason>(Bytes(SigningKey::new(&secret).sign(&message)))
    })
}

/// `:ok`
#[rustler::nif(schedule = "DirtyCpu")]
fn signature_verify<'a>(
    env: Env<'a>,
    public_key: Binary<'a>,
    message: Binary<'a>,
    signature: Binary<'a>,
) -> Term<'a> {
    seam::call_unit(env, "signature_verify", || {
        verify_signature(&public_key, &message, &signature).map_err(Reason::from)
    })
}

fn client(kind: Atom, public: &[u8]) -> Result<ClientPublicKey, Reason> {
    if kind == atoms::x25519() {
        Ok(ClientPublicKey::from_x25519(public)?)
    } else if kind == atoms::ed25519() {
        Ok(ClientPublicKey::from_ed25519(public)?)
    } else {
        Err(Reason::Malformed)
    }
}

fn derive(
    vault: &Vault,
    key: &Stored<'_>,
    (kind, public): &(Atom, Binary<'_>),
    (cipher, salt, info): &PurposeTerm<'_>,
) -> Result<ClientKey, Reason> {
    let cipher = terms::cipher(*cipher).ok_or(Reason::Malformed)?;
    let client = client(*kind, public)?;
    let service = AgreementKey::new(Kind::Agreement.open(vault, key)?);
    let purpose = Purpose {
        cipher,
        salt: salt.as_ref().map(Binary::as_slice),
        info,
    };
    Ok(service.derive(&client, &purpose)?)
}

/// `{:ok, sealed}`
#[rustler::nif(schedule = "DirtyCpu")]
fn client_seal<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    key: Stored<'a>,
    client: (Atom, Binary<'a>),
    purpose: PurposeTerm<'a>,
    associated_data: Binary<'a>,
    plaintext: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "client_seal", || {
        let key = derive(&vault, &key, &client, &purpose)?;
        Ok::<_, Reason>(Bytes(key.seal(
            &mut SysRng,
            &associated_data,
            &plaintext,
        )?))
    })
}

/// `{:ok, plaintext}`
#[rustler::nif(schedule = "DirtyCpu")]
fn client_open<'a>(
    env: Env<'a>,
    vault: ResourceArc<Vault>,
    key: Stored<'a>,
    client: (Atom, Binary<'a>),
    purpose: PurposeTerm<'a>,
    associated_data: Binary<'a>,
    sealed: Binary<'a>,
) -> Term<'a> {
    seam::call(env, "client_open", || {
        let key = derive(&vault, &key, &client, &purpose)?;
        let plaintext = key.open(&associated_data, &sealed)?;
        Ok::<_, Reason>(Bytes(plaintext.as_slice()).encode(env))
    })
}

/// `{:ok, X25519 public key}`, of one that keys can be derived for.
#[rustler::nif(schedule = "DirtyCpu")]
fn client_public_key<'a>(env: Env<'a>, (kind, public): (Atom, Binary<'a>)) -> Term<'a> {
    seam::call(env, "client_public_key", || {
        Ok::<_, Reason>(Bytes(client(kind, &public)?.to_bytes()))
    })
}

/// `{:ok, key}`, or `{:error, {:invalid, sentence}}`
#[rustler::nif(schedule = "DirtyIo")]
fn mac_key_open<'a>(env: Env<'a>, source: SourceTerm<'a>) -> NifResult<Term<'a>> {
    let source = source_of(source)?;
    Ok(seam::call(env, "mac_key_open", || {
        Ok::<_, Invalid>(ResourceArc::new(Mac(MacKey::new(load(&source)?))))
    }))
}

/// `{:ok, MAC}`
#[rustler::nif(schedule = "DirtyCpu")]
fn mac_create<'a>(env: Env<'a>, key: ResourceArc<Mac>, message: Binary<'a>) -> Term<'a> {
    seam::call(env, "mac_create", || {
        Ok::<_, Reason>(Bytes(key.0.create(&message)?))
    })
}

/// `:ok`
#[rustler::nif(schedule = "DirtyCpu")]
fn mac_verify<'a>(
    env: Env<'a>,
    key: ResourceArc<Mac>,
    message: Binary<'a>,
    mac: Binary<'a>,
) -> Term<'a> {
    seam::call_unit(env, "mac_verify", || {
        key.0.verify(&message, &mac).map_err(Reason::from)
    })
}
