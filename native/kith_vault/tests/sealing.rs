//! What opens, what does not, and that nothing panics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kith_vault::{
    Cipher, ConfigError, Context, DataKey, KeyId, SEALED_OVERHEAD, Source, Vault, VaultError,
    sealed_by, wrapped_by,
};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng, TryCryptoRng, TryRng},
};
use zeroize::Zeroizing;

fn id(id: &str) -> KeyId {
    KeyId::new(id).unwrap()
}

fn key(byte: u8) -> Source {
    Source::Key(Zeroizing::new(vec![byte; 32]))
}

fn rng(seed: u8) -> ChaCha20Rng {
    ChaCha20Rng::from_seed([seed; 32])
}

fn vault() -> Vault {
    Vault::new(id("k1"), vec![(id("k1"), key(1))]).unwrap()
}

fn account(user: &str) -> Context {
    Context::new("data-key").bytes("account").bytes(user)
}

fn data_key(seed: u8) -> DataKey {
    data_key_of(Cipher::default(), seed)
}

fn data_key_of(cipher: Cipher, seed: u8) -> DataKey {
    let wrapped = vault()
        .with_cipher(cipher)
        .create_data_key(&mut rng(seed), &account("alice"))
        .unwrap();
    // What it was drawn for it stays, whatever is drawn now.
    let data_key = vault().open_data_key(&account("alice"), &wrapped).unwrap();
    assert_eq!(data_key.cipher(), cipher);
    data_key
}

const CIPHERS: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

/// The context of a session, with every field open to change.
#[derive(Clone)]
struct Place {
    kind: &'static str,
    owner: &'static str,
    device: u64,
    peer: &'static str,
    peer_device: u64,
    generation: u64,
}

impl Place {
    const SESSION: Self = Self {
        kind: "session",
        owner: "alice",
        device: 1,
        peer: "bob",
        peer_device: 2,
        generation: 7,
    };

    fn context(&self) -> Context {
        Context::new(self.kind)
            .bytes(self.owner)
            .number(self.device)
            .bytes(self.peer)
            .number(self.peer_device)
            .number(self.generation)
    }
}

/// Every single-bit flip, every truncation, and extensions at both ends.
fn damaged(blob: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let flips = (0..blob.len() * 8).map(|bit| {
        let mut flipped = blob.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    });
    let cuts =
        (0..blob.len()).flat_map(|at| [blob[..at].to_vec(), blob[blob.len() - at..].to_vec()]);
    let extensions = [0x00, 0x01, 0xff].into_iter().flat_map(move |byte| {
        [
            [blob, &[byte]].concat(),
            [&[byte], blob].concat(),
            [blob, &[byte; 64]].concat(),
        ]
    });
    flips.chain(cuts).chain(extensions)
}

#[test]
fn a_row_of_any_length_opens_to_what_was_sealed() {
    for data_key in CIPHERS.map(|cipher| data_key_of(cipher, 1)) {
        opens_at_any_length(&data_key);
    }
    assert_eq!(SEALED_OVERHEAD, 38);
}

fn opens_at_any_length(data_key: &DataKey) {
    let context = Place::SESSION.context();
    let mut rng = rng(2);
    for length in (0..300).chain([600, 4_096, 65_537]) {
        let mut plaintext = vec![0; length];
        rng.fill_bytes(&mut plaintext);
        let row = data_key.seal(&mut rng, &context, &plaintext).unwrap();
        assert_eq!(row.len(), length + SEALED_OVERHEAD);
        assert_eq!(row.capacity(), row.len());
        assert_eq!(sealed_by(&row), Ok(data_key.id()));
        assert_eq!(data_key.open(&context, &row).unwrap().as_slice(), plaintext);
    }
}

#[test]
fn a_row_opens_under_no_key_of_the_other_cipher() {
    // The same bytes and the same id, drawn from the same numbers.
    let [aes, chacha] = CIPHERS.map(|cipher| data_key_of(cipher, 1));
    assert_eq!(aes.id(), chacha.id());
    let context = Place::SESSION.context();
    for (one, other) in [(&aes, &chacha), (&chacha, &aes)] {
        let row = one.seal(&mut rng(2), &context, b"state").unwrap();
        let mut relabelled = row.clone();
        relabelled[1] ^= 0x03;
        for row in [&row, &relabelled] {
            assert_eq!(other.open(&context, row), Err(VaultError::CorruptedState));
        }
        assert_eq!(
            one.open(&context, &relabelled),
            Err(VaultError::CorruptedState)
        );
    }
}

#[test]
fn a_wrapped_key_of_the_other_cipher_does_not_open_as_this_one() {
    for cipher in CIPHERS {
        let mut wrapped = vault()
            .with_cipher(cipher)
            .create_data_key(&mut rng(1), &account("alice"))
            .unwrap();
        wrapped[1] ^= 0x08;
        assert_eq!(
            vault().open_data_key(&account("alice"), &wrapped).err(),
            Some(VaultError::CorruptedState)
        );
    }
}

#[test]
fn sealing_twice_gives_two_different_rows() {
    let data_key = data_key(1);
    let mut rng = rng(2);
    let mut seal = || {
        data_key
            .seal(&mut rng, &Place::SESSION.context(), b"state")
            .unwrap()
    };
    let (first, second) = (seal(), seal());
    assert_ne!(first[10..22], second[10..22]);
    assert_ne!(first[22..], second[22..]);
}

#[test]
fn a_damaged_row_does_not_open() {
    let context = Place::SESSION.context();
    let texts = [&b""[..], b"x", &[0x5a; 33]];
    let keys = CIPHERS.map(|cipher| data_key_of(cipher, 1));
    for (data_key, text) in keys.iter().flat_map(|key| texts.map(|text| (key, text))) {
        let row = data_key.seal(&mut rng(2), &context, text).unwrap();
        for damaged in damaged(&row) {
            assert_eq!(
                data_key.open(&context, &damaged),
                Err(VaultError::CorruptedState)
            );
        }
    }
}

#[test]
fn a_damaged_wrapped_data_key_does_not_open() {
    let vault = vault();
    let wrapped = vault
        .create_data_key(&mut rng(1), &account("alice"))
        .unwrap();
    let mut not_found = 0;
    for damaged in damaged(&wrapped) {
        match vault.open_data_key(&account("alice"), &damaged) {
            Err(VaultError::KeyNotFound { id }) => {
                assert_ne!(id.as_str(), "k1");
                not_found += 1;
            }
            opened => assert_eq!(opened.unwrap_err(), VaultError::CorruptedState),
        }
    }
    assert!(
        (1..=16).contains(&not_found),
        "only flips in the two bytes of the id name another key"
    );
}

#[test]
fn random_bytes_never_open_and_never_panic() {
    let (vault, data_key) = (vault(), data_key(1));
    let mut rng = rng(9);
    for round in 0..20_000_u32 {
        let mut bytes = vec![0; (rng.next_u32() % 200) as usize];
        rng.fill_bytes(&mut bytes);
        // Without a sound start most would stop at the first byte.
        let start: &[u8] = if round % 2 == 0 {
            &[0x01, 0x01]
        } else {
            &[0x01, 0x10]
        };
        let length = bytes.len().min(2);
        bytes[..length].copy_from_slice(&start[..length]);
        if let Some(length) = bytes.get_mut(10).filter(|_| round % 4 == 1) {
            *length %= 80;
        }

        assert!(data_key.open(&account("alice"), &bytes).is_err());
        assert!(vault.open_data_key(&account("alice"), &bytes).is_err());
        let _ = (sealed_by(&bytes), wrapped_by(&bytes));
    }
}

#[test]
fn a_row_opens_in_its_place_only() {
    let data_key = data_key(1);
    let place = Place::SESSION;
    let row = data_key
        .seal(&mut rng(2), &place.context(), b"state")
        .unwrap();
    assert_eq!(
        data_key.open(&place.context(), &row).unwrap().as_slice(),
        b"state"
    );

    let others = [
        Place {
            kind: "skipped",
            ..place.clone()
        },
        Place {
            kind: "sessio",
            owner: "nalice",
            ..place.clone()
        },
        Place {
            owner: "alicf",
            ..place.clone()
        },
        Place {
            owner: "alic",
            ..place.clone()
        },
        Place {
            owner: "alice ",
            ..place.clone()
        },
        Place {
            device: 2,
            ..place.clone()
        },
        Place {
            peer: "carol",
            ..place.clone()
        },
        Place {
            peer_device: 1,
            ..place.clone()
        },
        Place {
            generation: 6,
            ..place.clone()
        },
        Place {
            generation: 8,
            ..place.clone()
        },
        // The conversation seen from the other end, and each pair exchanged.
        Place {
            owner: "bob",
            device: 2,
            peer: "alice",
            peer_device: 1,
            ..place.clone()
        },
        Place {
            owner: "bob",
            peer: "alice",
            ..place.clone()
        },
        Place {
            device: 2,
            peer_device: 1,
            ..place.clone()
        },
        Place {
            peer_device: 7,
            generation: 2,
            ..place.clone()
        },
    ];
    for other in others {
        assert_eq!(
            data_key.open(&other.context(), &row),
            Err(VaultError::CorruptedState)
        );
    }

    let session = || Context::new("session");
    let regrouped = [
        session(),
        place.context().bytes(""),
        place.context().number(0),
        session().bytes("alice").number(1).bytes("bob").number(2),
        session()
            .bytes("alic")
            .bytes("e")
            .number(1)
            .bytes("bob")
            .number(2)
            .number(7),
        session()
            .number(1)
            .bytes("alice")
            .bytes("bob")
            .number(2)
            .number(7),
        session()
            .bytes("alice")
            .number(1)
            .bytes("bo")
            .bytes("b")
            .number(2)
            .number(7),
        session()
            .bytes("alice")
            .bytes(1_u64.to_le_bytes())
            .bytes("bob")
            .number(2)
            .number(7),
    ];
    for other in regrouped {
        assert_eq!(data_key.open(&other, &row), Err(VaultError::CorruptedState));
    }
}

#[test]
fn a_data_key_opens_for_its_owner_only() {
    let vault = vault();
    let wrapped = vault
        .create_data_key(&mut rng(1), &account("alice"))
        .unwrap();
    let others = [
        account("bob"),
        Context::new("data-key").bytes("thread").bytes("alice"),
        Context::new("data-key").bytes("accountalice"),
        Context::new("session").bytes("account").bytes("alice"),
    ];
    for other in others {
        assert_eq!(
            vault.open_data_key(&other, &wrapped).unwrap_err(),
            VaultError::CorruptedState
        );
    }
}

#[test]
fn a_row_does_not_open_under_another_data_key() {
    let (ours, theirs) = (data_key(1), data_key(2));
    assert_ne!(ours.id(), theirs.id());
    let context = Place::SESSION.context();
    let row = ours.seal(&mut rng(3), &context, b"state").unwrap();
    assert_eq!(theirs.open(&context, &row), Err(VaultError::CorruptedState));

    // Nor with the id of the other key written over its own.
    let renamed = [&row[..2], &theirs.id().to_bytes(), &row[10..]].concat();
    assert_eq!(
        theirs.open(&context, &renamed),
        Err(VaultError::CorruptedState)
    );
}

#[test]
fn a_row_and_a_wrapped_data_key_are_not_taken_for_one_another() {
    let (vault, data_key) = (vault(), data_key(1));
    let context = account("alice");
    let wrapped = vault.create_data_key(&mut rng(2), &context).unwrap();
    let row = data_key.seal(&mut rng(2), &context, &[0; 32]).unwrap();
    assert_eq!(
        data_key.open(&context, &wrapped),
        Err(VaultError::CorruptedState)
    );
    assert_eq!(
        vault.open_data_key(&context, &row).unwrap_err(),
        VaultError::CorruptedState
    );
    assert_eq!(sealed_by(&wrapped), Err(VaultError::CorruptedState));
    assert_eq!(wrapped_by(&row), Err(VaultError::CorruptedState));
}

#[test]
fn opening_a_data_key_again_gives_the_same_key() {
    let vault = vault();
    let wrapped = vault
        .create_data_key(&mut rng(1), &account("alice"))
        .unwrap();
    let open = || vault.open_data_key(&account("alice"), &wrapped).unwrap();
    let (first, second) = (open(), open());
    let row = first
        .seal(&mut rng(2), &Place::SESSION.context(), b"state")
        .unwrap();
    assert_eq!(first.id(), second.id());
    assert!(second.open(&Place::SESSION.context(), &row).is_ok());
}

#[test]
fn a_retired_key_still_opens_and_the_current_one_wraps() {
    let old = Vault::new(id("old"), vec![(id("old"), key(1))]).unwrap();
    let context = account("alice");
    let wrapped = old.create_data_key(&mut rng(1), &context).unwrap();
    let row = old
        .open_data_key(&context, &wrapped)
        .unwrap()
        .seal(&mut rng(2), &Place::SESSION.context(), b"state")
        .unwrap();

    // The order of the list decides nothing.
    for keys in [["old", "new"], ["new", "old"]] {
        let keys = keys
            .map(|name| (id(name), key(if name == "old" { 1 } else { 2 })))
            .into();
        let both = Vault::new(id("new"), keys).unwrap();
        let data_key = both.open_data_key(&context, &wrapped).unwrap();
        assert_eq!(
            data_key
                .open(&Place::SESSION.context(), &row)
                .unwrap()
                .as_slice(),
            b"state"
        );

        let fresh = both.create_data_key(&mut rng(3), &context).unwrap();
        assert_eq!(wrapped_by(&wrapped), Ok(id("old")));
        assert_eq!(wrapped_by(&fresh), Ok(id("new")));
        assert_eq!(both.current_key_id(), &id("new"));
        assert_eq!(both.key_ids().collect::<Vec<_>>(), [&id("new"), &id("old")]);
    }
}

#[test]
fn a_data_key_under_an_unknown_key_names_the_key() {
    let wrapped = vault()
        .create_data_key(&mut rng(1), &account("alice"))
        .unwrap();
    let other = Vault::new(id("k2"), vec![(id("k2"), key(1))]).unwrap();
    let error = other
        .open_data_key(&account("alice"), &wrapped)
        .unwrap_err();
    assert_eq!(error, VaultError::KeyNotFound { id: id("k1") });
    assert_eq!(
        error.to_string(),
        "the vault holds no key-encryption key \"k1\""
    );
}

#[test]
fn a_data_key_under_a_wrong_key_of_the_same_name_does_not_open() {
    let wrapped = vault()
        .create_data_key(&mut rng(1), &account("alice"))
        .unwrap();
    let other = Vault::new(id("k1"), vec![(id("k1"), key(2))]).unwrap();
    let opened = other.open_data_key(&account("alice"), &wrapped);
    assert_eq!(opened.unwrap_err(), VaultError::CorruptedState);
}

#[test]
fn ids_must_be_distinct_and_include_the_current_one() {
    let twice = Vault::new(
        id("a"),
        vec![(id("a"), key(1)), (id("b"), key(2)), (id("a"), key(1))],
    );
    assert_eq!(
        twice.unwrap_err(),
        ConfigError::DuplicateKeyId { id: id("a") }
    );
    let retired_twice = Vault::new(id("a"), vec![(id("b"), key(1)), (id("b"), key(2))]);
    assert_eq!(
        retired_twice.unwrap_err(),
        ConfigError::DuplicateKeyId { id: id("b") }
    );
    for keys in [vec![], vec![(id("b"), key(1))]] {
        let error = Vault::new(id("a"), keys).unwrap_err();
        assert_eq!(error, ConfigError::CurrentKeyMissing { id: id("a") });
    }
}

#[test]
fn a_failing_generator_is_an_error() {
    #[derive(Debug)]
    struct Failed;
    impl std::fmt::Display for Failed {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            Ok(())
        }
    }
    impl std::error::Error for Failed {}

    /// Gives zeros until it has been asked a number of times.
    struct Failing(u32);
    impl TryRng for Failing {
        type Error = Failed;
        fn try_next_u32(&mut self) -> Result<u32, Failed> {
            Err(Failed)
        }
        fn try_next_u64(&mut self) -> Result<u64, Failed> {
            Err(Failed)
        }
        fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Failed> {
            self.0 = self.0.checked_sub(1).ok_or(Failed)?;
            Ok(())
        }
    }
    impl TryCryptoRng for Failing {}

    let context = account("alice");
    assert_eq!(
        data_key(1).seal(&mut Failing(0), &context, b"state"),
        Err(VaultError::Random)
    );
    for calls in 0..3 {
        let created = vault().create_data_key(&mut Failing(calls), &context);
        assert_eq!(created, Err(VaultError::Random));
    }
    assert!(vault().create_data_key(&mut Failing(3), &context).is_ok());
}

#[test]
fn errors_are_sentences_without_detail() {
    let texts = [
        VaultError::CorruptedState,
        VaultError::Random,
        VaultError::TooLarge,
    ]
    .map(|error| error.to_string());
    assert_eq!(
        texts,
        [
            "the sealed bytes do not open here",
            "the random number generator failed",
            "the plaintext is longer than AES-GCM seals, 2^36 - 32 bytes",
        ]
    );
}
