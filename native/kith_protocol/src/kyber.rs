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

impl Zeroize for Expanded {
    fn zeroize(&mut self) {
        self.0[0..SECRET_LEN].zeroize();
    }
}

impl Drop for Expanded {
    fn drop(&mut self) {
        self.zeroize();
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
        let coefficients = [low | ((middle & 0x0f) << 8), (middle >> 4) | (high << 4)];
        for coefficient in coefficients {
            // The top bit is set exactly when the coefficient is smaller.
            borrowed &= coefficient.wrapping_sub(Q) >> 15;
        }
    }
    borrowed == 1
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use crate::spqr::vectors::{Script, bytes, derived};

    fn pair() -> KyberKeyPair {
        KyberKeyPair::generate(&mut ChaCha20Rng::seed_from_u64(1))
    }

    /// The bytes of a stored private key: it has no writer, since a seed is what is stored.
    fn expanded(pair: &KyberKeyPair) -> Vec<u8> {
        typed(pair.secret.0.as_slice())
    }

    #[test]
    fn the_known_answer_of_the_official_client_is_given() {
        let known = &derived()["kyber1024"];
        let seed: [u8; KYBER_SEED_LEN] = bytes(&known["keygen_seed"]).try_into().unwrap();
        let pair = KyberKeyPair::from_seed(&seed);
        assert_eq!(pair.public_key().to_bytes(), bytes(&known["public"]));
        assert_eq!(expanded(&pair), bytes(&known["secret"]));
        assert_eq!(pair.seed(), Some(&seed));
        assert_eq!(KyberKeyPair::generate(&mut Script(seed.to_vec())), pair);

        let read = KyberKeyPair::from_secret_key(&bytes(&known["secret"])).unwrap();
        assert_eq!(read, pair);
        assert_eq!(read.public_key(), pair.public_key());
        assert_eq!(read.seed(), None);

        let public = KyberPublicKey::from_bytes(&bytes(&known["public"])).unwrap();
        let (ciphertext, shared) =
            public.encapsulate(&mut Script(bytes(&known["encaps_randomness"])));
        assert_eq!(ciphertext.to_bytes(), bytes(&known["ciphertext"]));
        assert_eq!(shared.as_bytes()[..], bytes(&known["shared_secret"]));
        let ciphertext = KyberCiphertext::from_bytes(&bytes(&known["ciphertext"])).unwrap();
        assert_eq!(pair.decapsulate(&ciphertext), shared);
        assert_eq!(read.decapsulate(&ciphertext), shared);
    }

    #[test]
    fn only_the_exact_length_with_the_type_byte_is_read() {
        let pair = pair();
        let public = pair.public_key().to_bytes();
        let secret = expanded(&pair);
        assert_eq!(public.len(), KYBER_PUBLIC_KEY_LEN);
        type Refusal = fn(&[u8]) -> Option<KeyError>;
        let readers: [(&Vec<u8>, Refusal); 3] = [
            (&public, |bytes| KyberPublicKey::from_bytes(bytes).err()),
            (&public, |bytes| KyberCiphertext::from_bytes(bytes).err()),
            (&secret, |bytes| KyberKeyPair::from_secret_key(bytes).err()),
        ];
        for (bytes, read) in readers {
            let length = bytes.len();
            assert_eq!(read(bytes), None);
            assert_eq!(read(&[]), Some(KeyError::KyberLength(0)));
            assert_eq!(
                read(&bytes[..length - 1]),
                Some(KeyError::KyberLength(length - 1))
            );
            let longer = [bytes.as_slice(), &[0]].concat();
            assert_eq!(read(&longer), Some(KeyError::KyberLength(length + 1)));
            // Kyber-768, and the ML-KEM-1024 that came after.
            for other in [0x05, 0x07, 0x0a] {
                let mut retyped = bytes.clone();
                retyped[0] = other;
                assert_eq!(read(&retyped), Some(KeyError::Type(other)));
            }
        }
    }

    #[test]
    fn a_key_with_an_unreduced_coefficient_is_refused() {
        let pair = pair();
        let (public, secret) = (pair.public_key().to_bytes(), expanded(&pair));
        for coefficient in [0, 1, 1022, 1023] {
            // 3329 fits in 12 bits, of which each pair of coefficients shares a byte.
            let unreduced = |key: &[u8], vector_at: usize| {
                let mut key = key.to_vec();
                let at = vector_at + coefficient / 2 * 3;
                if coefficient % 2 == 0 {
                    key[at] = 0x01;
                    key[at + 1] = key[at + 1] & 0xf0 | 0x0d;
                } else {
                    key[at + 1] = key[at + 1] & 0x0f | 0x10;
                    key[at + 2] = 0xd0;
                }
                key
            };
            assert_eq!(
                KyberPublicKey::from_bytes(&unreduced(&public, 1)),
                Err(KeyError::NotReduced)
            );
            for vector_at in [1, 1 + VECTOR_LEN] {
                assert_eq!(
                    KyberKeyPair::from_secret_key(&unreduced(&secret, vector_at)),
                    Err(KeyError::NotReduced)
                );
            }
        }
    }

    #[test]
    fn reduced_means_below_3329_in_every_place() {
        let packed = |[even, odd]: [u16; 2]| {
            let bytes = (u32::from(even) | u32::from(odd) << 12).to_le_bytes();
            [bytes[0], bytes[1], bytes[2]]
        };
        for value in 0..4096 {
            for pair in [[value, 0], [0, value], [3328, value], [value, 3328]] {
                let vector = [packed([0, 0]), packed(pair), packed([1, 2])].concat();
                assert_eq!(is_reduced(&vector), value < 3329, "{pair:?}");
            }
        }
    }

    #[test]
    fn a_private_key_with_another_public_half_is_refused() {
        let secret = expanded(&pair());
        let matrix_seed = 1 + VECTOR_LEN + PUBLIC_LEN - 1;
        for at in [matrix_seed, matrix_seed + 1, matrix_seed + 32] {
            let mut damaged = secret.clone();
            damaged[at] ^= 1;
            assert_eq!(
                KyberKeyPair::from_secret_key(&damaged),
                Err(KeyError::Inconsistent)
            );
        }
    }

    #[test]
    fn a_damaged_ciphertext_gives_another_secret_and_always_the_same() {
        let pair = pair();
        let (ciphertext, shared) = pair
            .public_key()
            .encapsulate(&mut ChaCha20Rng::seed_from_u64(2));
        for at in [1, 800, KYBER_CIPHERTEXT_LEN - 1] {
            let mut damaged = ciphertext.to_bytes();
            damaged[at] ^= 1;
            let damaged = KyberCiphertext::from_bytes(&damaged).unwrap();
            assert_ne!(pair.decapsulate(&damaged), shared);
            assert_eq!(pair.decapsulate(&damaged), pair.decapsulate(&damaged));
        }
        assert_eq!(pair.decapsulate(&ciphertext), shared);
    }

    #[test]
    fn debug_of_a_pair_shows_the_beginning_of_its_public_half_only() {
        let pair = KyberKeyPair::from_seed(&[0x41; 64]);
        let public = pair.public_key().to_bytes();
        let start = hex::encode(&public[1..5]);
        assert_eq!(
            format!("{pair:?}"),
            format!("KyberKeyPair {{ public: KyberPublicKey({start}…), secret: \"[secret]\" }}")
        );
    }

    #[test]
    fn the_secret_parts_erase_themselves_on_drop() {
        fn erases<T: ZeroizeOnDrop>() {}
        erases::<Seed>();
        erases::<Expanded>();

        let mut secret = pair().secret;
        secret.zeroize();
        assert_eq!(secret.0.as_slice(), &[0; SECRET_LEN]);
    }
}
