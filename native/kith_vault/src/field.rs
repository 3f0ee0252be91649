use std::fmt;

use aes_gcm::aes::Aes256;
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit, StreamCipher},
};
use rand_core::TryCryptoRng;
use zeroize::ZeroizeOnDrop;

use crate::{
    aead_key::{KEY_BYTES, TAG_BYTES},
    context::Context,
    error::{ConfigError, FieldError, KeyDefect},
    gcm::Gcm,
    key_id::KeyId,
    memory::Locked,
    source::Source,
};

/// How a cipher lays out the fields it makes. The tables are in the documentation of the crate.
#[derive(Clone)]
pub enum FieldFormat {
    /// Kith's own. The id is stored in every field and may not change while there are fields with it.
    Kith {
        /// The id of the key.
        id: KeyId,
    },
    /// Cloak's `AES.GCM`.
    CloakGcm {
        /// The tag that stands before every field.
        tag: Vec<u8>,
        /// The bytes of the IV, which are not said in the field.
        iv: CloakIv,
    },
    /// Cloak's `AES.CTR`, which nothing authenticates: damaged, and under another key, it opens as other bytes.
    CloakCtr {
        /// The tag that stands before every field.
        tag: Vec<u8>,
        /// Whether new fields may be made.
        writes: bool,
    },
    /// `AES.GCM` of Cloak up to 0.6. It is read only.
    CloakGcm06 {
        /// What stands before the tag.
        module_tag: Vec<u8>,
        /// The tag.
        tag: Vec<u8>,
    },
    /// `AES.CTR` of Cloak up to 0.6. It is read only, and nothing authenticates it.
    CloakCtr06 {
        /// What stands before the tag.
        module_tag: Vec<u8>,
        /// The tag.
        tag: Vec<u8>,
    },
}

/// The length of the IV of Cloak's `AES.GCM`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloakIv {
    /// 12 bytes, which Cloak recommends.
    Bytes12,
    /// 16 bytes, which is Cloak's default.
    Bytes16,
}

impl FieldFormat {
    /// What every field of this format begins with. It says which cipher opens the field.
    fn prefix(&self) -> Result<Vec<u8>, ConfigError> {
        match self {
            Self::Kith { id } => {
                let id = id.as_str().as_bytes();
                let mut prefix = KITH_MAGIC.to_vec();
                // A `KeyId` has at most 64 bytes.
                prefix.extend(u8::try_from(id.len()));
                prefix.extend_from_slice(id);
                Ok(prefix)
            }
            Self::CloakGcm { tag, .. } | Self::CloakCtr { tag, .. } => tagged(&[], tag),
            Self::CloakGcm06 { module_tag, tag } => tagged(module_tag, tag),
            Self::CloakCtr06 { module_tag, tag } => {
                let prefix = [module_tag.as_slice(), tag].concat();
                if prefix.is_empty() || prefix.len() > MAX_CLOAK_TAG_BYTES {
                    return Err(ConfigError::BadCloakTag);
                }
                Ok(prefix)
            }
        }
    }

    fn writes(&self) -> bool {
        match self {
            Self::Kith { .. } | Self::CloakGcm { .. } => true,
            Self::CloakCtr { writes, .. } => *writes,
            Self::CloakGcm06 { .. } | Self::CloakCtr06 { .. } => false,
        }
    }

    fn body(&self, key: &[u8; KEY_BYTES]) -> Body {
        match self {
            Self::Kith { .. } => Body::Kith(Gcm::with_12_byte_nonces(key)),
            Self::CloakGcm { iv, .. } => Body::CloakGcm(match iv {
                CloakIv::Bytes12 => Gcm::with_12_byte_nonces(key),
                CloakIv::Bytes16 => Gcm::with_16_byte_nonces(key),
            }),
            Self::CloakGcm06 { .. } => Body::CloakGcm(Gcm::with_16_byte_nonces(key)),
            Self::CloakCtr { .. } | Self::CloakCtr06 { .. } => {
                Body::CloakCtr(Locked::new(CtrKey(*key)))
            }
        }
    }
}

/// `before ‖ 0x01 ‖ length ‖ tag`, the length as Cloak writes it.
fn tagged(before: &[u8], tag: &[u8]) -> Result<Vec<u8>, ConfigError> {
    if tag.is_empty() || before.len() + tag.len() > MAX_CLOAK_TAG_BYTES {
        return Err(ConfigError::BadCloakTag);
    }
    let mut prefix = before.to_vec();
    prefix.push(CLOAK_TYPE);
    match u8::try_from(tag.len()) {
        Ok(length) if length < CLOAK_LONG_LENGTH => prefix.push(length),
        _ => {
            let length = tag.len().to_be_bytes();
            let length: Vec<u8> = length.into_iter().skip_while(|&byte| byte == 0).collect();
            // There are at most two, as a tag has at most `MAX_CLOAK_TAG_BYTES`.
            prefix.extend(u8::try_from(length.len()).map(|count| CLOAK_LONG_LENGTH + count));
            prefix.extend(length);
        }
    }
    prefix.extend_from_slice(tag);
    Ok(prefix)
}

/// The key of a cipher, in the layout of what stands behind the prefix.
enum Body {
    /// `nonce(12) ‖ ciphertext ‖ tag(16)`; prefix and context are authenticated.
    Kith(Gcm),
    /// `iv ‖ tag(16) ‖ ciphertext`; a constant is authenticated.
    CloakGcm(Gcm),
    /// `iv(16) ‖ ciphertext`
    CloakCtr(Locked<CtrKey>),
}

#[derive(ZeroizeOnDrop)]
struct CtrKey([u8; KEY_BYTES]);

impl Body {
    /// Bytes that it is longer than its plaintext.
    fn overhead(&self) -> usize {
        match self {
            Self::Kith(gcm) | Self::CloakGcm(gcm) => gcm.nonce_len() + TAG_BYTES,
            Self::CloakCtr(_) => CTR_IV_BYTES,
        }
    }
}

impl ZeroizeOnDrop for Body {}

/// One of the ciphers of a [`FieldVault`].
pub struct FieldCipher {
    label: Box<str>,
    prefix: Box<[u8]>,
    body: Body,
    writes: bool,
}

impl FieldCipher {
    fn new(label: String, format: &FieldFormat, source: &Source) -> Result<Self, ConfigError> {
        let prefix = format.prefix()?.into();
        let bad_key = |defect| ConfigError::BadCipherKey {
            label: label.clone(),
            origin: source.to_string(),
            defect,
        };
        let bytes = source.load().map_err(bad_key)?;
        let key = bytes
            .as_slice()
            .try_into()
            .map_err(|_| bad_key(KeyDefect::Length { bytes: bytes.len() }))?;
        Ok(Self {
            prefix,
            body: format.body(key),
            writes: format.writes(),
            label: label.into(),
        })
    }

    /// The name the operator gave it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether a field that was damaged, or made under another key, is recognized.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        !matches!(self.body, Body::CloakCtr(_))
    }

    /// How long the field of a plaintext is.
    ///
    /// # Errors
    ///
    /// [`FieldError::TooLarge`] if that is more than a machine can address.
    pub fn sealed_len(&self, plaintext_len: usize) -> Result<usize, FieldError> {
        (self.prefix.len() + self.body.overhead())
            .checked_add(plaintext_len)
            .ok_or(FieldError::TooLarge)
    }

    /// Encrypts a plaintext into `field`, which has [`Self::sealed_len`] bytes. A context binds it to a place.
    ///
    /// # Errors
    ///
    /// [`FieldError::Unbound`] if there is a context and the format is Cloak's, which has no place for one;
    /// [`FieldError::ReadOnly`], [`FieldError::TooLarge`], [`FieldError::Random`].
    pub fn seal_into<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        context: Option<&Context>,
        plaintext: &[u8],
        field: &mut [u8],
    ) -> Result<(), FieldError> {
        if !self.writes {
            return Err(FieldError::ReadOnly);
        }
        if field.len() != self.sealed_len(plaintext.len())? {
            return Err(FieldError::TooLarge);
        }
        let (prefix, rest) = field.split_at_mut(self.prefix.len());
        prefix.copy_from_slice(&self.prefix);
        match &self.body {
            Body::Kith(gcm) => {
                let (nonce, rest) = rest.split_at_mut(gcm.nonce_len());
                let (text, tag) = rest.split_at_mut(plaintext.len());
                rng.try_fill_bytes(nonce).map_err(FieldError::random::<R>)?;
                text.copy_from_slice(plaintext);
                let made = gcm
                    .encrypt(nonce, &self.associated_data(context), text)
                    .map_err(|_| FieldError::TooLarge)?;
                tag.copy_from_slice(&made);
            }
            Body::CloakGcm(gcm) => {
                unbound(context)?;
                let (iv, rest) = rest.split_at_mut(gcm.nonce_len());
                let (tag, text) = rest.split_at_mut(TAG_BYTES);
                rng.try_fill_bytes(iv).map_err(FieldError::random::<R>)?;
                text.copy_from_slice(plaintext);
                let made = gcm
                    .encrypt(iv, CLOAK_ASSOCIATED_DATA, text)
                    .map_err(|_| FieldError::TooLarge)?;
                tag.copy_from_slice(&made);
            }
            Body::CloakCtr(key) => {
                unbound(context)?;
                let (iv, text) = rest.split_at_mut(CTR_IV_BYTES);
                rng.try_fill_bytes(iv).map_err(FieldError::random::<R>)?;
                text.copy_from_slice(plaintext);
                apply_ctr(key, iv, text)?;
            }
        }
        Ok(())
    }

    fn associated_data(&self, context: Option<&Context>) -> Vec<u8> {
        match context {
            Some(context) => context.associated_data(&self.prefix),
            None => Context::new(FIELD_KIND).associated_data(&self.prefix),
        }
    }
}

/// Starts the context of a field. With no more in it, it is that of a field without a context.
#[must_use]
pub fn field_context() -> Context {
    Context::new(FIELD_KIND)
}

fn unbound(context: Option<&Context>) -> Result<(), FieldError> {
    match context {
        None => Ok(()),
        Some(_) => Err(FieldError::Unbound),
    }
}

fn apply_ctr(key: &Locked<CtrKey>, iv: &[u8], text: &mut [u8]) -> Result<(), FieldError> {
    // It is there until the page is dropped.
    let CtrKey(key) = key.get().ok_or(FieldError::CorruptedState)?;
    let mut stream =
        Ctr128BE::<Aes256>::new_from_slices(key, iv).map_err(|_| FieldError::Malformed)?;
    stream
        .try_apply_keystream(text)
        .map_err(|_| FieldError::TooLarge)
}

/// Which place a field has to be bound to.
pub enum Binding<'a> {
    /// To none: a field that is bound to one does not open.
    Unbound,
    /// To this one.
    To(&'a Context),
    /// To this one or to none: fields of before there was a binding open too, wherever they were put.
    ToOrUnbound(&'a Context),
}

/// The ciphers of an application's fields: the current one, which makes new fields, and others, which open what is there.
///
/// A field says which of them it is for. Each key is erased when the vault is dropped.
pub struct FieldVault {
    ciphers: Vec<FieldCipher>,
    current: usize,
}

impl FieldVault {
    /// Takes the key of every cipher from its source. The one labelled `current` encrypts, all decrypt.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a label comes twice or `current` is none of them, if a field could be for two of the ciphers, if the
    /// current one only reads, or if a key cannot be taken from its source.
    pub fn new(
        current: &str,
        ciphers: Vec<(String, FieldFormat, Source)>,
    ) -> Result<Self, ConfigError> {
        let mut known: Vec<FieldCipher> = Vec::with_capacity(ciphers.len());
        for (label, format, source) in ciphers {
            if known.iter().any(|cipher| *cipher.label == *label) {
                return Err(ConfigError::DuplicateLabel { label });
            }
            let cipher = FieldCipher::new(label, &format, &source)?;
            // Either would be read as the other by chance at best, and always where they are equal.
            if let Some(other) = known.iter().find(|other| {
                other.prefix.starts_with(&cipher.prefix) || cipher.prefix.starts_with(&other.prefix)
            }) {
                return Err(ConfigError::AmbiguousTags {
                    label: cipher.label.into(),
                    other: other.label.clone().into(),
                });
            }
            known.push(cipher);
        }

        let at = known.iter().position(|cipher| *cipher.label == *current);
        match at.and_then(|at| known.get(at).map(|cipher| (at, cipher.writes))) {
            None => Err(ConfigError::UnknownLabel {
                label: current.into(),
            }),
            Some((_, false)) => Err(ConfigError::CurrentCannotWrite {
                label: current.into(),
            }),
            Some((current, true)) => Ok(Self {
                ciphers: known,
                current,
            }),
        }
    }

    /// The cipher that encrypts: the one with this label, or the current one.
    ///
    /// # Errors
    ///
    /// [`FieldError::KeyNotFound`] if there is none.
    pub fn cipher(&self, label: Option<&str>) -> Result<&FieldCipher, FieldError> {
        let cipher = match label {
            None => self.ciphers.get(self.current),
            Some(label) => self.ciphers.iter().find(|cipher| *cipher.label == *label),
        };
        cipher.ok_or(FieldError::KeyNotFound)
    }

    /// Finds the cipher that a field is for. Nothing of the field is authenticated until it opens.
    ///
    /// # Errors
    ///
    /// [`FieldError::KeyNotFound`] for a field under a key or tag that is not here, [`FieldError::Malformed`] for what is no
    /// field.
    pub fn field<'a>(&'a self, bytes: &'a [u8]) -> Result<Field<'a>, FieldError> {
        let Some(cipher) = self
            .ciphers
            .iter()
            .find(|cipher| bytes.starts_with(&cipher.prefix))
        else {
            return Err(if reads_as_field(bytes) {
                FieldError::KeyNotFound
            } else {
                FieldError::Malformed
            });
        };
        let rest = bytes.get(cipher.prefix.len()..);
        rest.filter(|rest| rest.len() >= cipher.body.overhead())
            .map(|rest| Field { cipher, rest })
            .ok_or(FieldError::Malformed)
    }
}

/// Whether the bytes begin as those of Kith or of Cloak do, with an id or a tag that no cipher has.
fn reads_as_field(bytes: &[u8]) -> bool {
    let named = |at: usize| {
        let length = bytes.get(at).copied().map_or(0, usize::from);
        // A tag of 128 bytes and more is nobody's.
        (1..usize::from(CLOAK_LONG_LENGTH)).contains(&length)
            && bytes.len() >= at + 1 + length + CTR_IV_BYTES
    };
    if bytes.starts_with(&KITH_MAGIC) {
        named(KITH_MAGIC.len())
    } else {
        bytes.first() == Some(&CLOAK_TYPE) && named(1)
    }
}

/// A field of a table, with the cipher it is for.
pub struct Field<'a> {
    cipher: &'a FieldCipher,
    rest: &'a [u8],
}

impl Field<'_> {
    /// The cipher it is for.
    #[must_use]
    pub fn cipher(&self) -> &FieldCipher {
        self.cipher
    }

    /// How long its plaintext is.
    #[must_use]
    pub fn plaintext_len(&self) -> usize {
        self.rest.len().saturating_sub(self.cipher.body.overhead())
    }

    /// Decrypts it into `plaintext`, which has [`Self::plaintext_len`] bytes and is erased if the field does not open.
    ///
    /// # Errors
    ///
    /// [`FieldError::CorruptedState`] if the field does not open here, [`FieldError::Unbound`] if it is bound to no place and
    /// has to be.
    pub fn open_into(&self, binding: &Binding<'_>, plaintext: &mut [u8]) -> Result<(), FieldError> {
        if plaintext.len() != self.plaintext_len() {
            return Err(FieldError::Malformed);
        }
        match &self.cipher.body {
            Body::Kith(gcm) => match binding {
                Binding::Unbound => self.open_kith(gcm, None, plaintext),
                Binding::To(context) => self.open_kith(gcm, Some(context), plaintext),
                Binding::ToOrUnbound(context) => self
                    .open_kith(gcm, Some(context), plaintext)
                    .or_else(|_| self.open_kith(gcm, None, plaintext)),
            },
            Body::CloakGcm(gcm) => {
                binding.may_be_unbound()?;
                let (iv, rest) = split(self.rest, gcm.nonce_len())?;
                let (tag, text) = rest.split_first_chunk().ok_or(FieldError::Malformed)?;
                plaintext.copy_from_slice(text);
                gcm.decrypt(iv, CLOAK_ASSOCIATED_DATA, plaintext, tag)
                    .map_err(|_| FieldError::CorruptedState)
            }
            Body::CloakCtr(key) => {
                binding.may_be_unbound()?;
                let (iv, text) = split(self.rest, CTR_IV_BYTES)?;
                plaintext.copy_from_slice(text);
                apply_ctr(key, iv, plaintext)
            }
        }
    }

    fn open_kith(
        &self,
        gcm: &Gcm,
        context: Option<&Context>,
        plaintext: &mut [u8],
    ) -> Result<(), FieldError> {
        let (nonce, rest) = split(self.rest, gcm.nonce_len())?;
        let (text, tag) = rest.split_last_chunk().ok_or(FieldError::Malformed)?;
        plaintext.copy_from_slice(text);
        gcm.decrypt(nonce, &self.cipher.associated_data(context), plaintext, tag)
            .map_err(|_| FieldError::CorruptedState)
    }
}

impl Binding<'_> {
    fn may_be_unbound(&self) -> Result<(), FieldError> {
        match self {
            Self::Unbound | Self::ToOrUnbound(_) => Ok(()),
            Self::To(_) => Err(FieldError::Unbound),
        }
    }
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), FieldError> {
    bytes.split_at_checked(at).ok_or(FieldError::Malformed)
}

impl fmt::Debug for FieldCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FieldCipher")
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for FieldVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ciphers, current } = self;
        f.debug_struct("FieldVault")
            .field("ciphers", ciphers)
            .field("current", current)
            .finish()
    }
}

/// A byte that begins no text of UTF-8 and nothing of Cloak's, the version of the layout, and the algorithm: AES-256-GCM under a
/// key of the application.
const KITH_MAGIC: [u8; 3] = [0xc1, 0x01, 0x20];

/// The kind of a field's context.
const FIELD_KIND: &str = "field";

/// The first byte of what Cloak writes. Cloak reads any; nothing authenticates it.
const CLOAK_TYPE: u8 = 0x01;

/// From this many bytes on, the length of a tag is written as the count of its bytes, with this added, and the bytes.
const CLOAK_LONG_LENGTH: u8 = 0x80;

/// The most bytes a tag may have. Real ones have about ten.
const MAX_CLOAK_TAG_BYTES: usize = 1_024;

/// What Cloak authenticates with every field.
const CLOAK_ASSOCIATED_DATA: &[u8] = b"AES256GCM";

/// The first counter block of AES-CTR.
const CTR_IV_BYTES: usize = 16;
