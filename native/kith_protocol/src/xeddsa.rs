//! XEdDSA signatures with Curve25519 keys, in the variant Signal deploys.
//!
//! The published XEdDSA normalises the sign of the public key to zero. Here the sign travels in the
//! top bit of the last signature byte, as Signal's clients have it.

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::scalar::Scalar;
use rand_core::CryptoRng;
use sha2::{Digest, Sha512};
use zeroize::{Zeroize, Zeroizing};

use crate::curve::{PrivateKey, PublicKey};

/// Bytes of a signature: `R (32) ‖ s (32)`.
pub const SIGNATURE_LEN: usize = 64;

/// The prefix that separates the nonce hash from every other use of SHA-512: 2²⁵⁶ − 2, little-endian.
const NONCE_PREFIX: [u8; 32] = {
    let mut prefix = [0xff; 32];
    prefix[0] = 0xfe;
    prefix
};

/// `sign(k, M, Z)` with `Z` = 64 fresh random bytes.
///
/// ```text
/// a = k mod L            A = compress(a·B)
/// r = SHA512(2^256 − 2 ‖ k ‖ M ‖ Z) mod L
/// R = compress(r·B)      h = SHA512(R ‖ A ‖ M) mod L
/// signature = R ‖ (r + h·a mod L), top bit of the last byte = sign of A
/// ```
pub(crate) fn sign<R: CryptoRng + ?Sized>(
    key: &PrivateKey,
    message: &[u8],
    rng: &mut R,
) -> [u8; SIGNATURE_LEN] {
    let mut random = Zeroizing::new([0; 64]);
    rng.fill_bytes(&mut *random);

    let mut a = Scalar::from_bytes_mod_order(*key.as_bytes());
    let public = EdwardsPoint::mul_base(&a).compress();

    let mut nonce_hash = Sha512::new();
    nonce_hash.update(NONCE_PREFIX);
    nonce_hash.update(key.as_bytes());
    nonce_hash.update(message);
    nonce_hash.update(&random[..]);
    let mut r = wide(nonce_hash);
    let commitment = EdwardsPoint::mul_base(&r).compress();
    let s = r + challenge(&commitment, &public, message) * a;
    a.zeroize();
    r.zeroize();

    let mut signature = [0; SIGNATURE_LEN];
    signature[..32].copy_from_slice(commitment.as_bytes());
    signature[32..].copy_from_slice(s.as_bytes());
    signature[63] = (signature[63] & 0x7f) | (public.as_bytes()[31] & 0x80);
    signature
}

/// Whether `signature` is one of `message` under `key`. Nothing here is secret.
pub(crate) fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    let Ok(signature): Result<&[u8; SIGNATURE_LEN], _> = signature.try_into() else {
        return false;
    };
    let sign = signature[63] >> 7;
    let Some(point) = MontgomeryPoint(*key.u()).to_edwards(sign) else {
        return false;
    };
    let mut commitment = [0; 32];
    commitment.copy_from_slice(&signature[..32]);
    let mut s = [0; 32];
    s.copy_from_slice(&signature[32..]);
    s[31] &= 0x7f;
    if s[31] & 0xe0 != 0 {
        return false;
    }
    let s = Scalar::from_bytes_mod_order(s);
    let commitment = CompressedEdwardsY(commitment);
    let h = challenge(&commitment, &point.compress(), message);
    EdwardsPoint::vartime_double_scalar_mul_basepoint(&-h, &point, &s).compress() == commitment
}

fn challenge(
    commitment: &CompressedEdwardsY,
    public: &CompressedEdwardsY,
    message: &[u8],
) -> Scalar {
    let mut hash = Sha512::new();
    hash.update(commitment.as_bytes());
    hash.update(public.as_bytes());
    hash.update(message);
    wide(hash)
}

fn wide(hash: Sha512) -> Scalar {
    let mut bytes = Zeroizing::new([0; 64]);
    bytes.copy_from_slice(&hash.finalize());
    Scalar::from_bytes_mod_order_wide(&bytes)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn signatures_verify_and_no_changed_bit_does() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for _ in 0..8 {
            let key = PrivateKey::generate(&mut rng);
            let public = key.public_key();
            let signature = sign(&key, b"message", &mut rng);
            assert!(verify(&public, b"message", &signature));
            assert!(!verify(&public, b"massage", &signature));
            for bit in 0..512 {
                let mut changed = signature;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!verify(&public, b"message", &changed), "bit {bit}");
            }
        }
    }

    #[test]
    fn two_signatures_of_one_message_differ() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let key = PrivateKey::generate(&mut rng);
        assert_ne!(
            sign(&key, b"message", &mut rng),
            sign(&key, b"message", &mut rng)
        );
    }

    #[test]
    fn only_64_bytes_are_a_signature() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let key = PrivateKey::generate(&mut rng);
        let signature = sign(&key, b"message", &mut rng);
        assert!(!verify(&key.public_key(), b"message", &signature[..63]));
        assert!(!verify(&key.public_key(), b"message", &[]));
        assert!(!verify(
            &key.public_key(),
            b"message",
            &[signature.as_slice(), &[0]].concat()
        ));
    }
}
