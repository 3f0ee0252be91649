//! The symmetric primitives, each a thin call into its library.

use aes::Aes256;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// HMAC-SHA-256 (RFC 2104), as a state to which the message is added.
pub(crate) type HmacSha256 = Hmac<Sha256>;

/// `HMAC(key, …)` with nothing added yet.
#[allow(clippy::expect_used)]
pub(crate) fn hmac(key: &[u8; 32]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// `output = HKDF(salt, ikm, info)` with SHA-256 (RFC 5869), as long as `output`.
///
/// `salt: None` equals 32 zero bytes.
#[allow(clippy::expect_used)]
pub(crate) fn hkdf<const N: usize>(
    salt: Option<&[u8; 32]>,
    ikm: &[u8],
    info: &[u8],
    output: &mut [u8; N],
) {
    const { assert!(N <= 255 * 32) };
    Hkdf::<Sha256>::new(salt.map(<[u8; 32]>::as_slice), ikm)
        .expand(info, output)
        .expect("N was checked to be within what HKDF can give");
}

/// AES-256-CBC (NIST SP 800-38A) with PKCS#7 padding.
pub(crate) fn cbc_encrypt(key: &[u8; 32], iv: &[u8; 16], plaintext: &[u8]) -> Vec<u8> {
    cbc::Encryptor::<Aes256>::new(key.into(), iv.into()).encrypt_padded_vec::<Pkcs7>(plaintext)
}

/// The inverse of [`cbc_encrypt`]; `None` when the length is not a positive multiple of 16 or the
/// padding is wrong.
///
/// Only called after the MAC over the ciphertext was verified, so the answer is no padding oracle.
pub(crate) fn cbc_decrypt(key: &[u8; 32], iv: &[u8; 16], ciphertext: &[u8]) -> Option<Vec<u8>> {
    if ciphertext.is_empty() || !ciphertext.len().is_multiple_of(16) {
        return None;
    }
    cbc::Decryptor::<Aes256>::new(key.into(), iv.into())
        .decrypt_padded_vec::<Pkcs7>(ciphertext)
        .ok()
}

/// The first `N` bytes of the HMAC.
pub(crate) fn truncated<const N: usize>(mac: HmacSha256) -> [u8; N] {
    let full = mac.finalize().into_bytes();
    let mut out = [0; N];
    out.copy_from_slice(&full[..N]);
    out
}
