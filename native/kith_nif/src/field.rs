//! Fields of the application's own tables. They are encrypted and decrypted in the binary that Erlang gets.

use getrandom::SysRng;
use kith_vault::{
    Binding, CloakIv, ConfigError, Context, FieldError, FieldFormat, KeyId, field_context,
};
use rustler::schedule::consume_timeslice;
use rustler::{Atom, Binary, Encoder, Env, NewBinary, NifResult, Resource, ResourceArc, Term};

use crate::kms::{SourceTerm, source_of};
use crate::reason::{Invalid, Reason};
use crate::{atoms, seam};

/// The ciphers of an application, for as long as Elixir holds the reference.
pub(crate) struct FieldVault(kith_vault::FieldVault);

#[rustler::resource_impl]
impl Resource for FieldVault {}

/// Format, id or tag, module tag, and a number: the bytes of the IV, or whether the cipher writes.
type FormatTerm<'a> = (Atom, Binary<'a>, Binary<'a>, u8);

/// The names of a place, or nil.
type ContextTerm<'a> = Option<Vec<Binary<'a>>>;

impl From<FieldError> for Reason {
    fn from(error: FieldError) -> Self {
        match error {
            // Elixir asks for neither to be written; a field that is bound to no place is none of this place.
            FieldError::CorruptedState | FieldError::Unbound => Self::CorruptedState,
            FieldError::KeyNotFound | FieldError::ReadOnly => Self::KeyNotFound,
            FieldError::Malformed => Self::Malformed,
            FieldError::TooLarge => Self::TooLarge,
            // A machine without random numbers is broken, as a program that panics is.
            FieldError::Random => Self::Panic,
        }
    }
}

/// Takes the keys of all ciphers from their sources, so that none becomes a term.
#[rustler::nif(schedule = "DirtyIo")]
fn field_vault_open<'a>(
    env: Env<'a>,
    current: &str,
    ciphers: Vec<(&str, FormatTerm<'a>, SourceTerm<'a>)>,
) -> NifResult<Term<'a>> {
    let ciphers = ciphers
        .into_iter()
        .map(|(label, format, source)| Ok((label, format, source_of(source)?)))
        .collect::<NifResult<Vec<_>>>()?;

    Ok(seam::call(env, "field_vault_open", || {
        let ciphers = ciphers
            .into_iter()
            .map(|(label, format, source)| Ok((label.to_owned(), format_of(&format)?, source)))
            .collect::<Result<Vec<_>, Invalid>>()?;
        let vault = kith_vault::FieldVault::new(current, ciphers)?;
        Ok::<_, Invalid>(ResourceArc::new(FieldVault(vault)))
    }))
}

fn format_of((kind, name, module_tag, number): &FormatTerm<'_>) -> Result<FieldFormat, Invalid> {
    let tag = name.as_slice().to_vec();
    let module_tag = module_tag.as_slice().to_vec();
    if *kind == atoms::kith() {
        let id = std::str::from_utf8(name).map_err(|_| ConfigError::BadKeyId)?;
        Ok(FieldFormat::Kith {
            id: KeyId::new(id)?,
        })
    } else if *kind == atoms::cloak_gcm() {
        let iv = match number {
            12 => CloakIv::Bytes12,
            16 => CloakIv::Bytes16,
            _ => return Err(Invalid("expected an IV of 12 or 16 bytes".into())),
        };
        Ok(FieldFormat::CloakGcm { tag, iv })
    } else if *kind == atoms::cloak_ctr() {
        let writes = *number == 1;
        Ok(FieldFormat::CloakCtr { tag, writes })
    } else if *kind == atoms::cloak_gcm_0_6() {
        Ok(FieldFormat::CloakGcm06 { module_tag, tag })
    } else if *kind == atoms::cloak_ctr_0_6() {
        Ok(FieldFormat::CloakCtr06 { module_tag, tag })
    } else {
        Err(Invalid("expected a format of fields".into()))
    }
}

/// `{:ok, field}` under the cipher of this label, or under the current one. For what is short: it runs on a normal scheduler.
#[rustler::nif]
fn field_encrypt<'a>(
    env: Env<'a>,
    vault: ResourceArc<FieldVault>,
    label: Option<&str>,
    context: ContextTerm<'a>,
    plaintext: Binary<'a>,
) -> Term<'a> {
    report(env);
    encrypt(env, "field_encrypt", &vault, label, &context, &plaintext)
}

/// As `field_encrypt`, for what takes longer.
#[rustler::nif(schedule = "DirtyCpu")]
fn field_encrypt_long<'a>(
    env: Env<'a>,
    vault: ResourceArc<FieldVault>,
    label: Option<&str>,
    context: ContextTerm<'a>,
    plaintext: Binary<'a>,
) -> Term<'a> {
    encrypt(
        env,
        "field_encrypt_long",
        &vault,
        label,
        &context,
        &plaintext,
    )
}

/// `{:ok, plaintext}`. With a context, `unbound` says whether a field that has none opens too. For what is short: it runs
/// on a normal scheduler.
#[rustler::nif]
fn field_decrypt<'a>(
    env: Env<'a>,
    vault: ResourceArc<FieldVault>,
    context: ContextTerm<'a>,
    unbound: bool,
    field: Binary<'a>,
) -> Term<'a> {
    report(env);
    decrypt(env, "field_decrypt", &vault, &context, unbound, &field)
}

/// As `field_decrypt`, for what takes longer.
#[rustler::nif(schedule = "DirtyCpu")]
fn field_decrypt_long<'a>(
    env: Env<'a>,
    vault: ResourceArc<FieldVault>,
    context: ContextTerm<'a>,
    unbound: bool,
    field: Binary<'a>,
) -> Term<'a> {
    decrypt(env, "field_decrypt_long", &vault, &context, unbound, &field)
}

/// `{:ok, {label, whether it is authenticated}}` of the cipher a field is for. It looks at the first bytes only.
#[rustler::nif]
fn field_inspect<'a>(env: Env<'a>, vault: ResourceArc<FieldVault>, field: Binary<'a>) -> Term<'a> {
    seam::call(env, "field_inspect", || {
        let field = vault.0.field(&field)?;
        let cipher = field.cipher();
        Ok::<_, Reason>((cipher.label(), cipher.is_authenticated()).encode(env))
    })
}

/// Up to the 8 KiB that Elixir gives to a normal scheduler, the slowest cipher takes about a hundredth of a time slice, which is
/// a millisecond.
fn report(env: Env<'_>) {
    consume_timeslice(env, 1);
}

fn encrypt<'a>(
    env: Env<'a>,
    name: &'static str,
    vault: &FieldVault,
    label: Option<&str>,
    context: &ContextTerm<'a>,
    plaintext: &Binary<'a>,
) -> Term<'a> {
    seam::call(env, name, || {
        let cipher = vault.0.cipher(label)?;
        let context = context_of(context);
        let mut field = NewBinary::new(env, cipher.sealed_len(plaintext.len())?);
        cipher.seal_into(&mut SysRng, context.as_ref(), plaintext, &mut field)?;
        Ok::<_, Reason>(Term::from(field))
    })
}

fn decrypt<'a>(
    env: Env<'a>,
    name: &'static str,
    vault: &FieldVault,
    context: &ContextTerm<'a>,
    unbound: bool,
    field: &Binary<'a>,
) -> Term<'a> {
    seam::call(env, name, || {
        let field = vault.0.field(field)?;
        let context = context_of(context);
        let binding = match &context {
            None => Binding::Unbound,
            Some(context) if unbound => Binding::ToOrUnbound(context),
            Some(context) => Binding::To(context),
        };
        let mut plaintext = NewBinary::new(env, field.plaintext_len());
        field.open_into(&binding, &mut plaintext)?;
        Ok::<_, Reason>(Term::from(plaintext))
    })
}

fn context_of(names: &ContextTerm<'_>) -> Option<Context> {
    names.as_ref().map(|names| {
        names.iter().fold(field_context(), |context, name| {
            context.bytes(name.as_slice())
        })
    })
}
