//! Blobs that were written once must open for ever.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kith_vault::{Cipher, Context, KeyId, Source, Vault, sealed_by, wrapped_by};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use zeroize::Zeroizing;

/// A data key, wrapped by format version 1 under the bytes 0 to 31 with the id `2026-01`.
const WRAPPED_V1: &str = concat!(
    "01102595d7b926e395b507323032362d3031f0325531321647fe0f7dc987c8c8",
    "3e7758f7178b38be7443fe8d003644a055a07c9e6ab60e94f4e328fab55a6e60",
    "b9260350e154bb60053b73fc5a64",
);

/// A row, sealed by format version 1 under that data key.
const ROW_V1: &str = concat!(
    "01012595d7b926e395b5f1a5fae616a70cd103462fac24e825f2443d504ed671",
    "4ba8562ab908fbbf0ddb5407c05e72febb1f3a67243fac6bcb626d22b0ed85",
);

/// A data key of ChaCha20-Poly1305, wrapped under the same key.
const WRAPPED_CHACHA: &str = concat!(
    "01182595d7b926e395b507323032362d3031f0325531321647fe0f7dc987c8c8",
    "3e7758f7178b38be7443fe8d003644a055a07c9e6ab60e94f4e328fab55a1b28",
    "a46f40f31ed0f188c726e92fadcb",
);

/// A row, sealed under that one.
const ROW_CHACHA: &str = concat!(
    "01022595d7b926e395b5f1a5fae616a70cd103462fac66c6939855cfdc58997b",
    "97b06a39a217e1093059a845d801273209ff7c03a7619803d258009e675de1",
);

const PLAINTEXT: &[u8] = b"what was sealed must open";

fn vault() -> Vault {
    let id = KeyId::new("2026-01").unwrap();
    Vault::new(
        id.clone(),
        vec![(id, Source::Key(Zeroizing::new((0..32).collect())))],
    )
    .unwrap()
}

fn account() -> Context {
    Context::new("data-key").bytes("account").bytes("alice")
}

fn place() -> Context {
    Context::new("session")
        .bytes("alice")
        .number(1)
        .bytes("bob")
        .number(2)
        .number(7)
}

#[test]
fn blobs_of_version_1_open() {
    for blobs in [[WRAPPED_V1, ROW_V1], [WRAPPED_CHACHA, ROW_CHACHA]] {
        let [wrapped, row] = blobs.map(|blob| hex::decode(blob).unwrap());
        assert_eq!(wrapped_by(&wrapped).unwrap().as_str(), "2026-01");

        let data_key = vault().open_data_key(&account(), &wrapped).unwrap();
        assert_eq!(sealed_by(&row).unwrap(), data_key.id());
        assert_eq!(data_key.open(&place(), &row).unwrap().as_slice(), PLAINTEXT);
    }
}

#[test]
fn blobs_of_version_1_are_what_is_written() {
    for (cipher, wrapped_before, row_before) in [
        (Cipher::Aes256Gcm, WRAPPED_V1, ROW_V1),
        (Cipher::ChaCha20Poly1305, WRAPPED_CHACHA, ROW_CHACHA),
    ] {
        let mut rng = ChaCha20Rng::from_seed([0x4b; 32]);
        let vault = vault().with_cipher(cipher);
        let wrapped = vault.create_data_key(&mut rng, &account()).unwrap();
        let data_key = vault.open_data_key(&account(), &wrapped).unwrap();
        let row = data_key.seal(&mut rng, &place(), PLAINTEXT).unwrap();
        assert_eq!(hex::encode(wrapped), wrapped_before);
        assert_eq!(hex::encode(row), row_before);
    }
}
