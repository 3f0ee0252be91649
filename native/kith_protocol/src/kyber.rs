//! Kyber-1024, round 3, with Signal's type byte.
//!
//! It is what came before ML-KEM-1024 (FIPS 203) and differs from it in hashing only, so a shared secret
//! of one is not one of the other. The arithmetic is libcrux's.

use std::fmt;

use libcrux_ml_kem::kyber1024;
use libcrux_ml_kem::mlkem1024::{MlKem1024Ciphertext, MlKem1024PrivateKey, MlKem1024PublicKey};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::curve::KeyError;
use crate::secret::SecretBytes;

/// The byte in front of every Kyber-1024 key and ciphertext: `0x08`.
const KYBER_TYPE: u8 = 0x08;

/// Bytes of a Kyber public key on the wire: the type byte and 1 568 bytes.
pub const KYBER_PUBLIC_KEY_LEN: usize = 1 + PUBLIC_LEN;

/// Bytes of a Kyber ciphertext on the wire: the type byte and 1 568 bytes.
pub const KYBER_CIPHERTEXT_LEN: usize = 1 + CIPHERTEXT_LEN;

/// Bytes a [`KyberKeyPair`] is made from: 64.
pub const KYBER_SEED_LEN: usize = 64;

const PUBLIC_LEN: usize = 1568;
const CIPHERTEXT_LEN: usize = 1568;
const SECRET_LEN: usize = 3168;
/// The encoded vector at the beginning of either half: 4 polynomials of 256 coefficients of 12 bits.
const VECTOR_LEN: usize = 1536;

/// A Kyber-1024 public key: `0x08 ‖ t̂ ‖ ρ` on the wire, 1 569 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct KyberPublicKey(Box<[u8; PUBLIC_LEN]>);

impl KyberPublicKey {
    /// Reads `0x08 ‖ t̂ ‖ ρ`.
    ///
    /// A key with a coefficient of 3329 or more is refused. No honest key has one, and with it one key
    /// would have several encodings.
    ///
    /// # Errors
    ///
    /// [`KeyError::Type`] unless the first byte is `0x08`, [`KeyError::KyberLength`] unless there are
    /// exactly 1 569, [`KeyError::NotReduced`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        Self::from_untyped(untyped(bytes)?)
    }

    fn from_untyped(key: &[u8; PUBLIC_LEN]) -> Result<Self, KeyError> {
        if kyber1024::validate_public_key(&key.into()) {
            Ok(Self(Box::new(*key)))
        } else {
            Err(KeyError::NotReduced)
        }
    }

    /// The 1 569 bytes `0x08 ‖ t̂ ‖ ρ`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        typed(self.0.as_slice())
    }

    /// A fresh shared secret, and the ciphertext that tells it to the owner of the key.
    ///
    /// Draws 32 bytes.
    pub(crate) fn encapsulate<R: CryptoRng + ?Sized>(
        &self,
        rng: &mut R,
    ) -> (KyberCiphertext, SecretBytes) {
        let mut randomness = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *randomness);
        let (ciphertext, mut shared) =
            kyber1024::encapsulate(&MlKem1024PublicKey::from(&*self.0), *randomness);
        let secret = SecretBytes::copy_of(&shared);
        shared.zeroize();
        (KyberCiphertext(Box::new(ciphertext)), secret)
    }
}

impl fmt::Debug for KyberPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key) = self;
        write!(
            f,
            "KyberPublicKey({:02x}{:02x}{:02x}{:02x}…)",
            key[0], key[1], key[2], key[3]
        )
    }
}

/// A Kyber-1024 key pair, expanded, with the seed it was made from if that is known.
///
/// Two pairs are equal when their private keys are, compared in constant time.
#[derive(Clone)]
pub struct KyberKeyPair {
    public: KyberPublicKey,
    secret: Expanded,
    seed: Option<Seed>,
}

impl KyberKeyPair {
    /// Draws a seed of 64 bytes and expands it.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut seed = Seed(Box::new([0; KYBER_SEED_LEN]));
        rng.fill_bytes(&mut *seed.0);
        Self::expand(seed)
    }

    /// The pair of a stored seed; erasing the original is the caller's business.
    #[must_use]
    pub fn from_seed(seed: &[u8; KYBER_SEED_LEN]) -> Self {
        Self::expand(Seed(Box::new(*seed)))
    }

    fn expand(seed: Seed) -> Self {
        let (mut secret, public) = kyber1024::generate_key_pair(*seed.0).into_parts();
        let pair = Self {
            public: KyberPublicKey(Box::new(*public.as_slice())),
            secret: Expanded(Box::new(secret.clone())),
            seed: Some(seed),
        };
        secret[0..SECRET_LEN].zeroize();
        pair
    }

    /// Reads `0x08 ‖ ŝ ‖ public key ‖ SHA3-256(public key) ‖ z`, as Signal's own library stores it.
    ///
    /// The seed cannot be had from it, so [`seed`](Self::seed) of this pair is `None`.
    ///
    /// # Errors
    ///
    /// [`KeyError::Type`] unless the first byte is `0x08`, [`KeyError::KyberLength`] unless there are
    /// exactly 3 169, [`KeyError::NotReduced`], [`KeyError::Inconsistent`] when the hash inside is not
    /// that of the public key inside.
    pub fn from_secret_key(bytes: &[u8]) -> Result<Self, KeyError> {
        let secret: &[u8; SECRET_LEN] = untyped(bytes)?;
        let (vector, rest) = secret.split_at(VECTOR_LEN);
        let public = rest.first_chunk().ok_or(KeyError::Inconsistent)?;
        if !is_reduced(vector) {
            return Err(KeyError::NotReduced);
        }
        let public = KyberPublicKey::from_untyped(public)?;
        let secret = Expanded(Box::new(MlKem1024PrivateKey::from(secret)));
        // The ciphertext is an argument of the library's that it does not look at.
        if !kyber1024::validate_private_key(&secret.0, &MlKem1024Ciphertext::default()) {
            return Err(KeyError::Inconsistent);
        }
        Ok(Self {
            public,
            secret,
            seed: None,
        })
    }

    /// The public half.
    #[must_use]
    pub const fn public_key(&self) -> &KyberPublicKey {
        &self.public
    }

    /// The seed, unless the pair was read in expanded form.
    ///
    /// # Security
    ///
    /// These bytes are the secret itself. Seal them before they are stored.
    #[must_use]
    pub fn seed(&self) -> Option<&[u8; KYBER_SEED_LEN]> {
        self.seed.as_ref().map(|Seed(seed)| &**seed)
    }

    /// The shared secret of a ciphertext.
    ///
    /// Every ciphertext has one: that of a ciphertext not made for this key is pseudorandom (implicit
    /// rejection), and what is derived from it will not authenticate.
    pub(crate) fn decapsulate(&self, ciphertext: &KyberCiphertext) -> SecretBytes {
        let mut shared = kyber1024::decapsulate(&self.secret.0, &ciphertext.0);
        let secret = SecretBytes::copy_of(&shared);
        shared.zeroize();
        secret
    }
}

impl PartialEq for KyberKeyPair {
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.secret.0, &other.secret.0);
        ours.as_slice().ct_eq(theirs.as_slice()).into()
    }
}

impl Eq for KyberKeyPair {}

impl fmt::Debug for KyberKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            public,
            secret: _,
            seed: _,
        } = self;
        f.debug_struct("KyberKeyPair")
            .field("public", public)
            .field("secret", &"[secret]")
            .finish()
    }
}

/// 64 secret bytes: what is hashed for the key, and `z`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Seed(Box<[u8; KYBER_SEED_LEN]>);

/// An expanded private key, in the library's own type so that it is used without a copy.
#[derive(Clone)]
struct Expanded(Box<MlKem1024PrivateKey>);

impl Drop for Expanded {
    fn drop(&mut self) {
        self.0[0..SECRET_LEN].zeroize();
    }
}

impl ZeroizeOnDrop for Expanded {}

/// A Kyber-1024 ciphertext: `0x08 ‖ u ‖ v` on the wire, 1 569 bytes.
#[derive(Clone)]
pub(crate) struct KyberCiphertext(Box<MlKem1024Ciphertext>);

impl KyberCiphertext {
    /// Reads `0x08 ‖ u ‖ v`; [`KeyError::Type`] or [`KeyError::KyberLength`] for anything else.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let ciphertext: &[u8; CIPHERTEXT_LEN] = untyped(bytes)?;
        Ok(Self(Box::new(ciphertext.into())))
    }

    /// The 1 569 bytes `0x08 ‖ u ‖ v`.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        typed(self.0.as_slice())
    }
}

impl PartialEq for KyberCiphertext {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice() == other.0.as_slice()
    }
}

impl Eq for KyberCiphertext {}

impl fmt::Debug for KyberCiphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.write_str("KyberCiphertext(…)")
    }
}

fn typed(bytes: &[u8]) -> Vec<u8> {
    let mut typed = Vec::with_capacity(1 + bytes.len());
    typed.push(KYBER_TYPE);
    typed.extend_from_slice(bytes);
    typed
}

fn untyped<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], KeyError> {
    match bytes.split_first() {
        Some((&KYBER_TYPE, rest)) => rest
            .try_into()
            .map_err(|_| KeyError::KyberLength(bytes.len())),
        Some((&other, _)) => Err(KeyError::Type(other)),
        None => Err(KeyError::KyberLength(0)),
    }
}

/// Whether every coefficient of 12 bits is below 3329, without a branch on any of them.
pub(crate) fn is_reduced(vector: &[u8]) -> bool {
    const Q: u16 = 3329;
    let mut borrowed = 1;
    for packed in vector.as_chunks::<3>().0 {
        let [low, middle, high] = packed.map(u16::from);
        let coefficients = [low | (middle & 0x0f) << 8, middle >> 4 | high << 4];
        for coefficient in coefficients {
            // The top bit is set exactly when the coefficient is smaller.
            borrowed &= coefficient.wrapping_sub(Q) >> 15;
        }
    }
    borrowed == 1
}
