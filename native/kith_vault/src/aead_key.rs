use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{
        AeadCore, AeadInOut, Nonce, Tag,
        consts::{U12, U16},
    },
};
use rand_core::TryCryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{error::VaultError, memory::Locked};

pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const NONCE_BYTES: usize = 12;
pub(crate) const TAG_BYTES: usize = 16;

/// A key of an AEAD, expanded once: of AES-256-GCM (NIST SP 800-38D), unless another is named.
///
/// The round keys and the key of GHASH lie behind a `Box` and are zeroized on drop; the 32 bytes themselves are not
/// kept.
pub(crate) struct AeadKey<C: ZeroizeOnDrop = Aes256Gcm>(Place<C>);

enum Place<C: ZeroizeOnDrop> {
    /// For the time of a call.
    Heap(Box<C>),
    /// For longer.
    Page(Locked<C>),
}

impl AeadKey {
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self::of(Aes256Gcm::new(key.into()))
    }

    /// A key that is held beyond the call, in memory that is locked where the system allows it.
    pub(crate) fn held(key: &[u8; KEY_BYTES]) -> Self {
        Self::held_of(Aes256Gcm::new(key.into()))
    }
}

impl<C> AeadKey<C>
where
    C: AeadCore<NonceSize = U12, TagSize = U16> + AeadInOut + ZeroizeOnDrop,
{
    pub(crate) fn of(cipher: C) -> Self {
        Self(Place::Heap(Box::new(cipher)))
    }

    pub(crate) fn held_of(cipher: C) -> Self {
        Self(Place::Page(Locked::new(cipher)))
    }

    fn cipher(&self) -> Result<&C, VaultError> {
        match &self.0 {
            Place::Heap(cipher) => Ok(cipher),
            // It is there until the page is dropped.
            Place::Page(page) => page.get().ok_or(VaultError::CorruptedState),
        }
    }

    /// Appends `nonce ‖ AEAD[key](nonce, associated data, plaintext) ‖ tag` to `blob`, with a random nonce.
    ///
    /// Room for all of it must be there before, or growing the vector would leave plaintext behind in freed memory.
    pub(crate) fn seal<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
        associated_data: &[u8],
        plaintext: &[u8],
        blob: &mut Vec<u8>,
    ) -> Result<(), VaultError> {
        let cipher = self.cipher()?;
        debug_assert!(blob.capacity() - blob.len() >= NONCE_BYTES + plaintext.len() + TAG_BYTES);

        let mut nonce = Nonce::<C>::default();
        rng.try_fill_bytes(&mut nonce)
            .map_err(VaultError::random::<R>)?;

        blob.extend_from_slice(&nonce);
        let start = blob.len();
        blob.extend_from_slice(plaintext);
        let (_, text) = blob.split_at_mut(start);
        let sealed = cipher.encrypt_inout_detached(&nonce, associated_data, text.into());
        let Ok(tag) = sealed else {
            text.zeroize();
            return Err(VaultError::TooLarge);
        };
        blob.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens what [`Self::seal`] appended. The tag is checked before anything is decrypted, in constant time.
    pub(crate) fn open(
        &self,
        associated_data: &[u8],
        sealed: &Sealed<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let mut text = Zeroizing::new(sealed.ciphertext.to_vec());
        self.cipher()?
            .decrypt_inout_detached(
                <&Nonce<C>>::from(sealed.nonce),
                associated_data,
                text.as_mut_slice().into(),
                <&Tag<C>>::from(sealed.tag),
            )
            .map_err(|_| VaultError::CorruptedState)?;
        Ok(text)
    }

    #[cfg(test)]
    pub(crate) fn address(&self) -> *const u8 {
        std::ptr::from_ref(self.cipher().unwrap()).cast()
    }
}

// A `Box` drops what it holds, and that zeroizes itself; a test asserts it of the cipher and looks at the memory.
impl<C: ZeroizeOnDrop> ZeroizeOnDrop for AeadKey<C> {}

/// `nonce ‖ ciphertext ‖ tag`, taken apart.
pub(crate) struct Sealed<'a> {
    nonce: &'a [u8; NONCE_BYTES],
    ciphertext: &'a [u8],
    tag: &'a [u8; TAG_BYTES],
}

impl<'a> Sealed<'a> {
    /// Bytes that it is longer than its ciphertext.
    pub(crate) const OVERHEAD: usize = NONCE_BYTES + TAG_BYTES;

    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let (nonce, rest) = bytes.split_first_chunk()?;
        let (ciphertext, tag) = rest.split_last_chunk()?;
        Some(Self {
            nonce,
            ciphertext,
            tag,
        })
    }

    pub(crate) fn ciphertext_len(&self) -> usize {
        self.ciphertext.len()
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_dropped_key_is_erased_where_it_lay() {
        use std::{fs::File, os::unix::fs::FileExt};

        // The kernel reads this process's memory, so that looking at freed memory needs no unsafe code.
        let memory = |address: *const u8| {
            let mut bytes = [0; size_of::<Aes256Gcm>()];
            let file = File::open("/proc/self/mem").unwrap();
            let read = file.read_exact_at(&mut bytes, address as u64);
            read.is_ok().then_some(bytes)
        };

        for key in [
            AeadKey::new(&[0x5a; KEY_BYTES]),
            AeadKey::held(&[0x5a; KEY_BYTES]),
        ] {
            erased(key, &memory);
        }
    }

    #[cfg(target_os = "linux")]
    fn erased(key: AeadKey, memory: &dyn Fn(*const u8) -> Option<[u8; size_of::<Aes256Gcm>()]>) {
        let address = key.address();
        let alive = memory(address).unwrap();
        // The round keys of AES-256 alone are 240 bytes.
        assert!(alive.iter().filter(|&&byte| byte != 0).count() > 200);

        let moved = Box::new(key);
        assert_eq!(moved.address(), address);
        drop(moved);

        // The allocator keeps two words of its own at the start of freed memory.
        // A page may have been given back.
        let Some(dropped) = memory(address) else {
            return;
        };
        let left = alive
            .iter()
            .zip(&dropped)
            .skip(16)
            .filter(|(was, is)| was == is && **is != 0);
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_key_is_zeroized_on_drop() {
        fn assert_zeroize_on_drop<T: ZeroizeOnDrop>() {}
        assert_zeroize_on_drop::<Aes256Gcm>();
        assert_zeroize_on_drop::<AeadKey>();
    }

    #[test]
    fn a_blob_has_no_spare_room_and_never_grows() {
        let mut blob = Vec::with_capacity(Sealed::OVERHEAD + 5);
        let address = blob.as_ptr();
        AeadKey::new(&[1; KEY_BYTES])
            .seal(
                &mut ChaCha20Rng::from_seed([2; 32]),
                b"",
                b"hello",
                &mut blob,
            )
            .unwrap();
        assert_eq!((blob.len(), blob.as_ptr()), (Sealed::OVERHEAD + 5, address));
    }
}
