//! ML-KEM-768 (FIPS 203), with the encapsulation cut in two.
//!
//! The first part of a ciphertext needs of the key only its header, the seed of its matrix and its hash. So
//! it can be on its way while the key itself is still arriving.
//!
//! | piece | bytes | in FIPS 203 |
//! | --- | --- | --- |
//! | [`Header`] | 64 | `ρ ‖ SHA3-256(ek)` |
//! | [`EncapsulationKey`] | 1152 | `t̂`, that is `ek` without `ρ` |
//! | [`DecapsulationKey`] | 2400 | `dk = ŝ ‖ t̂ ‖ ρ ‖ SHA3-256(ek) ‖ z` |
//! | [`Ct1`] | 960 | compressed `u` |
//! | [`Ct2`] | 128 | compressed `v` |

use std::fmt;

use libcrux_ml_kem::mlkem768::incremental;
use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::kyber::is_reduced;
use crate::secret::SecretBytes;

/// Bytes of a [`Header`].
pub(crate) const HEADER_LEN: usize = 64;
/// Bytes of an [`EncapsulationKey`].
pub(crate) const EK_LEN: usize = 1152;
/// Bytes of a [`DecapsulationKey`].
pub(crate) const DK_LEN: usize = 2400;
/// Bytes of a [`Ct1`].
pub(crate) const CT1_LEN: usize = 960;
/// Bytes of a [`Ct2`].
pub(crate) const CT2_LEN: usize = 128;
/// Bytes of an [`EncapsulationState`].
pub(crate) const ENCAPSULATION_STATE_LEN: usize = 2080;

/// A piece that travels in clear.
macro_rules! public_piece {
    ($(#[$doc:meta])* $name:ident, $len:ident, $accept:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub(crate) struct $name(Box<[u8; $len]>);
        piece!($name, $len, $accept, "…");
    };
}

/// A piece that must not be known, erased on drop and compared in constant time.
macro_rules! secret_piece {
    ($(#[$doc:meta])* $name:ident, $len:ident, $accept:expr) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub(crate) struct $name(Box<[u8; $len]>);
        piece!($name, $len, $accept, "[secret]");

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&*other.0).into()
            }
        }

        impl Eq for $name {}
    };
}

macro_rules! piece {
    ($name:ident, $len:ident, $accept:expr, $shown:literal) => {
        impl $name {
            /// `None` for bytes that are none.
            pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
                let accept: fn(&[u8; $len]) -> bool = $accept;
                let bytes: &[u8; $len] = bytes.try_into().ok()?;
                accept(bytes).then(|| {
                    let mut copy = Box::new([0; $len]);
                    copy.copy_from_slice(bytes);
                    Self(copy)
                })
            }

            pub(crate) fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self(_) = self;
                f.write_str(concat!(stringify!($name), "(", $shown, ")"))
            }
        }
    };
}

public_piece! {
    /// What the first step of an encapsulation needs of a key.
    Header, HEADER_LEN, |_| true
}

public_piece! {
    /// The rest of the key, with all coefficients reduced.
    EncapsulationKey, EK_LEN, |bytes| is_reduced(bytes)
}

public_piece! {
    /// The first part of a ciphertext.
    Ct1, CT1_LEN, |_| true
}

public_piece! {
    /// The second part of a ciphertext.
    Ct2, CT2_LEN, |_| true
}

secret_piece! {
    /// The private key, with both public pieces inside it.
    DecapsulationKey, DK_LEN, |bytes| is_reduced(&bytes[..2 * EK_LEN])
}

secret_piece! {
    /// What the second step of an encapsulation needs of the first.
    EncapsulationState, ENCAPSULATION_STATE_LEN, has_small_coefficients
}

/// Draws 64 bytes and makes a key pair of them.
pub(crate) fn generate<R: CryptoRng + ?Sized>(
    rng: &mut R,
) -> (Header, EncapsulationKey, DecapsulationKey) {
    let mut seed = Zeroizing::new([0; 64]);
    rng.fill_bytes(&mut *seed);
    let mut key = DecapsulationKey(Box::new([0; DK_LEN]));
    incremental::generate_key_pair_compressed(*seed, &mut key.0);
    (key.header(), key.encapsulation_key(), key)
}

impl DecapsulationKey {
    /// The public key inside.
    pub(crate) fn encapsulation_key(&self) -> EncapsulationKey {
        let mut key = Box::new([0; EK_LEN]);
        key.copy_from_slice(&self.0[EK_LEN..2 * EK_LEN]);
        EncapsulationKey(key)
    }

    /// The same, without a copy.
    pub(crate) fn encapsulation_key_bytes(&self) -> &[u8] {
        &self.0[EK_LEN..2 * EK_LEN]
    }

    /// The header inside.
    pub(crate) fn header(&self) -> Header {
        let mut header = Box::new([0; HEADER_LEN]);
        header.copy_from_slice(&self.0[2 * EK_LEN..2 * EK_LEN + HEADER_LEN]);
        Header(header)
    }
}

/// Whether the key belongs to the header: `SHA3-256(t̂ ‖ ρ)` is the hash in it.
pub(crate) fn is_key_of(key: &EncapsulationKey, header: &Header) -> bool {
    incremental::validate_pk_bytes(header.as_bytes(), key.as_bytes()).is_ok()
}

/// The first step: draws 32 bytes, and makes the shared secret and the first part of its ciphertext.
#[allow(clippy::expect_used)]
pub(crate) fn encapsulate1<R: CryptoRng + ?Sized>(
    header: &Header,
    rng: &mut R,
) -> (EncapsulationState, Ct1, SecretBytes) {
    let mut randomness = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *randomness);
    let mut state = EncapsulationState(Box::new([0; ENCAPSULATION_STATE_LEN]));
    let mut ct1 = Box::new([0; CT1_LEN]);
    let shared_secret = SecretBytes::filled_by(|secret| {
        let ciphertext = incremental::encapsulate1(
            header.as_bytes(),
            *randomness,
            state.0.as_mut_slice(),
            secret,
        )
        .expect("its only errors are wrong lengths, and the lengths are in the types");
        *ct1 = ciphertext.value;
    });
    (state, Ct1(ct1), shared_secret)
}

/// The second step: the rest of the ciphertext.
///
/// The key must be the one of the header ([`is_key_of`]); with another the receiver gets another secret.
pub(crate) fn encapsulate2(state: &EncapsulationState, key: &EncapsulationKey) -> Ct2 {
    Ct2(Box::new(
        incremental::encapsulate2(state.as_bytes(), key.as_bytes()).value,
    ))
}

/// The shared secret of a ciphertext; a pseudorandom one if it was not made for this key.
pub(crate) fn decapsulate(key: &DecapsulationKey, ct1: &Ct1, ct2: &Ct2) -> SecretBytes {
    let mut shared = incremental::decapsulate_compressed_key(
        key.as_bytes(),
        &incremental::Ciphertext1 { value: *ct1.0 },
        &incremental::Ciphertext2 { value: *ct2.0 },
    );
    let secret = SecretBytes::copy_of(&shared);
    shared.zeroize();
    secret
}

/// Whether all coefficients of a state lie within ±3328, as those of an honest one do; without a branch on
/// any of them. Larger ones would overflow the arithmetic.
fn has_small_coefficients(state: &[u8; ENCAPSULATION_STATE_LEN]) -> bool {
    const Q: i32 = 3329;
    let coefficients = &state[..ENCAPSULATION_STATE_LEN - 32];
    let mut small = -1;
    for &bytes in coefficients.as_chunks::<2>().0 {
        let coefficient = i32::from(i16::from_le_bytes(bytes));
        // Both differences are negative exactly when it is within the bounds.
        small &= (coefficient - Q) & (-coefficient - Q);
    }
    small < 0
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(1)
    }

    #[test]
    fn both_ends_have_the_same_secret_and_a_damaged_ciphertext_gives_another() {
        let mut rng = rng();
        for _ in 0..20 {
            let (header, ek, dk) = generate(&mut rng);
            let (state, ct1, shared) = encapsulate1(&header, &mut rng);
            let ct2 = encapsulate2(&state, &ek);
            assert_eq!(decapsulate(&dk, &ct1, &ct2), shared);

            let mut damaged = ct2.clone();
            damaged.0[127] ^= 1;
            assert_ne!(decapsulate(&dk, &ct1, &damaged), shared);
            let mut damaged = ct1.clone();
            damaged.0[0] ^= 1;
            assert_ne!(decapsulate(&dk, &damaged, &ct2), shared);
        }
    }

    #[test]
    fn a_key_belongs_to_its_own_header_only() {
        let mut rng = rng();
        let (header, ek, _) = generate(&mut rng);
        let (other, _, _) = generate(&mut rng);
        assert!(is_key_of(&ek, &header));
        assert!(!is_key_of(&ek, &other));
        for at in 0..HEADER_LEN {
            let mut damaged = header.clone();
            damaged.0[at] ^= 1;
            assert!(!is_key_of(&ek, &damaged));
        }
    }

    #[test]
    fn pieces_have_exactly_their_length() {
        let (header, ek, dk) = generate(&mut rng());
        let (state, ct1, _) = encapsulate1(&header, &mut rng());
        let ct2 = encapsulate2(&state, &ek);
        macro_rules! check {
            ($($piece:ident: $type:ident,)*) => {$(
                let bytes = $piece.as_bytes().as_slice();
                assert_eq!($type::from_bytes(bytes), Some($piece.clone()));
                assert_eq!($type::from_bytes(&bytes[1..]), None);
                assert_eq!($type::from_bytes(&[bytes, &[0]].concat()), None);
                assert_eq!($type::from_bytes(&[]), None);
            )*};
        }
        check! {
            header: Header,
            ek: EncapsulationKey,
            dk: DecapsulationKey,
            ct1: Ct1,
            ct2: Ct2,
            state: EncapsulationState,
        }
    }

    #[test]
    fn keys_with_unreduced_coefficients_are_refused() {
        let (_, ek, dk) = generate(&mut rng());
        for at in [0, 3, EK_LEN - 3] {
            // The coefficient 4095.
            let mut damaged = ek.clone();
            damaged.0[at] = 0xff;
            damaged.0[at + 1] |= 0x0f;
            assert_eq!(EncapsulationKey::from_bytes(damaged.as_bytes()), None);
            for vector in [0, EK_LEN] {
                let mut damaged = dk.clone();
                damaged.0[vector + at] = 0xff;
                damaged.0[vector + at + 1] |= 0x0f;
                assert_eq!(DecapsulationKey::from_bytes(damaged.as_bytes()), None);
            }
        }
        // Behind the vectors everything is a key.
        let mut other = dk;
        other.0[2 * EK_LEN..].fill(0xff);
        assert_eq!(DecapsulationKey::from_bytes(other.as_bytes()), Some(other));
    }

    #[test]
    fn states_have_coefficients_within_3328() {
        let mut state = EncapsulationState(Box::new([0; ENCAPSULATION_STATE_LEN]));
        for at in [0, 2, ENCAPSULATION_STATE_LEN - 34] {
            for coefficient in [i16::MIN, -3329, -3328, 0, 3328, 3329, i16::MAX] {
                state.0[at..at + 2].copy_from_slice(&coefficient.to_le_bytes());
                assert_eq!(
                    EncapsulationState::from_bytes(state.as_bytes()).is_some(),
                    coefficient.unsigned_abs() <= 3328,
                    "{coefficient}"
                );
            }
            state.0[at..at + 2].fill(0);
        }
        state.0[ENCAPSULATION_STATE_LEN - 32..].fill(0xff);
        assert!(EncapsulationState::from_bytes(state.as_bytes()).is_some());
    }

    #[test]
    fn the_largest_coefficients_that_are_read_do_not_overflow() {
        let largest = 3328_i16;
        for sign in [1, -1] {
            let mut state = [0; ENCAPSULATION_STATE_LEN];
            for bytes in state.as_chunks_mut::<2>().0 {
                *bytes = (sign * largest).to_le_bytes();
            }
            let state = EncapsulationState::from_bytes(&state).unwrap();
            // Two coefficients of 3328 in three bytes.
            let vectors = [0x00, 0x0d, 0xd0].repeat(2 * EK_LEN / 3);
            let ek = EncapsulationKey::from_bytes(&vectors[..EK_LEN]).unwrap();
            let _ = encapsulate2(&state, &ek);
            let dk = [vectors, vec![0xff; DK_LEN - 2 * EK_LEN]].concat();
            let dk = DecapsulationKey::from_bytes(&dk).unwrap();
            let ct1 = Ct1(Box::new([0xff; CT1_LEN]));
            let _ = decapsulate(&dk, &ct1, &Ct2(Box::new([0xff; CT2_LEN])));
        }
    }

    #[test]
    fn secret_pieces_erase_themselves_and_show_nothing() {
        fn erases<T: ZeroizeOnDrop>() {}
        erases::<DecapsulationKey>();
        erases::<EncapsulationState>();

        let (header, ek, dk) = generate(&mut rng());
        let (state, ct1, _) = encapsulate1(&header, &mut rng());
        assert_eq!(format!("{dk:?}"), "DecapsulationKey([secret])");
        assert_eq!(format!("{state:?}"), "EncapsulationState([secret])");
        assert_eq!(
            format!("{:?}", (header, ek, ct1)),
            "(Header(…), EncapsulationKey(…), Ct1(…))"
        );
    }
}
