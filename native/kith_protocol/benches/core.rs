//! The operations of the core, and the primitives they are made of, in one run.
//!
//! `bench/core_table.exs` puts both side by side. Erasing what an operation leaves behind is part of its
//! time; making a copy of the state it starts from is not.

#![allow(
    clippy::expect_used,
    missing_docs,
    reason = "a broken fixture ends the benchmark, and criterion's macros make a function"
)]

mod support;

use std::cell::RefCell;
use std::hint::black_box;

use aes::Aes256;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use kith_protocol::{
    IdentityKeyPair, MemorySkippedKeys, PreKey, PrivateKey, Session, SessionRecord, SignedPreKey,
};
use sha2::Sha256;

use support::{PLAINTEXT, Person, encrypt, established, random};

/// Bytes under the MAC of a message of 256 bytes: two identity keys and the serialized message.
const MAC_INPUT: usize = 2 * 33 + 317;

/// X25519 from the library the engine chooses on this processor.
fn agreement(private: [u8; 32], theirs: [u8; 32]) -> Box<dyn Fn()> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if graviola::util::is_cpu_supported() {
        use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
        let theirs = PublicKey::from_array(&theirs);
        let private = StaticPrivateKey::from_array(&private);
        return Box::new(move || {
            black_box(private.diffie_hellman(black_box(&theirs)).is_ok());
        });
    }
    let private = x25519_dalek::StaticSecret::from(private);
    let theirs = x25519_dalek::PublicKey::from(theirs);
    Box::new(move || {
        black_box(private.diffie_hellman(black_box(&theirs)));
    })
}

fn primitives(c: &mut Criterion) {
    let mut group = c.benchmark_group("primitives");
    let mut rng = random();
    let private = PrivateKey::generate(&mut rng);
    let theirs = PrivateKey::generate(&mut rng).public_key();

    group.bench_function("x25519", |b| {
        let agree = agreement(*private.as_bytes(), *theirs.u());
        b.iter(|| black_box(&agree)());
    });
    group.bench_function("base", |b| b.iter(|| black_box(&private).public_key()));

    let identity = IdentityKeyPair::generate(&mut rng);
    let message = theirs.to_bytes();
    let signature = identity.sign(&message, &mut rng);
    let public = identity.identity_key();
    group.bench_function("sign", |b| {
        b.iter(|| identity.sign(black_box(&message), &mut rng));
    });
    group.bench_function("verify", |b| {
        b.iter(|| public.verify(black_box(&message), black_box(&signature)));
    });

    let key = [7; 32];
    for (name, length) in [("hmac_1", 1), ("hmac_body", MAC_INPUT)] {
        let input = vec![1; length];
        group.bench_function(name, |b| {
            b.iter(|| {
                Hmac::<Sha256>::new_from_slice(black_box(&key))
                    .expect("any length")
                    .chain_update(black_box(&input))
                    .finalize()
                    .into_bytes()
            });
        });
    }
    group.bench_function("hkdf_80", |b| b.iter(|| hkdf::<80>(black_box(&key))));
    group.bench_function("hkdf_64", |b| b.iter(|| hkdf::<64>(black_box(&key))));

    let iv = [8; 16];
    let ciphertext = cbc_encrypt(&key, &iv);
    group.bench_function("cbc_encrypt", |b| {
        b.iter(|| cbc_encrypt(black_box(&key), black_box(&iv)));
    });
    group.bench_function("cbc_decrypt", |b| {
        b.iter(|| {
            let mut buffer = ciphertext.clone();
            let length = cbc::Decryptor::<Aes256>::new(black_box(&key).into(), (&iv).into())
                .decrypt_padded::<Pkcs7>(&mut buffer)
                .expect("it was encrypted above")
                .len();
            (buffer, length)
        });
    });
    group.finish();
}

fn hkdf<const N: usize>(ikm: &[u8; 32]) -> [u8; N] {
    let mut output = [0; N];
    Hkdf::<Sha256>::new(Some(&[9; 32]), ikm)
        .expand(b"WhisperMessageKeys", &mut output)
        .expect("not too long");
    output
}

fn cbc_encrypt(key: &[u8; 32], iv: &[u8; 16]) -> Vec<u8> {
    cbc::Encryptor::<Aes256>::new(key.into(), iv.into()).encrypt_padded_vec::<Pkcs7>(&PLAINTEXT)
}

fn keys(c: &mut Criterion) {
    let mut group = c.benchmark_group("keys");
    let mut rng = random();
    let identity = IdentityKeyPair::generate(&mut rng);
    group.bench_function("identity", |b| {
        b.iter(|| IdentityKeyPair::generate(&mut rng))
    });
    group.bench_function("prekey", |b| b.iter(|| PreKey::generate(1, &mut rng)));
    group.bench_function("signed_prekey", |b| {
        b.iter(|| SignedPreKey::generate(1, &identity, &mut rng));
    });
    group.finish();
}

fn handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let rng = &mut random();
    let anna = Person::new("anna", rng);
    let ben = Person::new("ben", rng);
    let bundle = ben.bundle();
    let none = MemorySkippedKeys::default();

    group.bench_function("initiate", |b| {
        b.iter(|| {
            let mut record = SessionRecord::default();
            anna.initiate(&mut record, black_box(&bundle), rng);
            record
        });
    });

    let mut fresh = SessionRecord::default();
    anna.initiate(&mut fresh, &bundle, rng);
    group.bench_function("encrypt_first", |b| {
        b.iter_batched(
            || fresh.clone(),
            |mut record| {
                let message = encrypt(&mut record, ben.identity_key());
                (record, message)
            },
            BatchSize::SmallInput,
        );
    });

    let message = encrypt(&mut fresh, ben.identity_key());
    group.bench_function("decrypt_first", |b| {
        b.iter(|| {
            let mut record = SessionRecord::default();
            let decrypted = ben.decrypt(&mut record, &anna, black_box(&message), &none, rng);
            (record, decrypted)
        });
    });
    group.finish();
}

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("messages");
    let mut rng = random();
    let anna = Person::new("anna", &mut rng);
    let ben = Person::new("ben", &mut rng);
    let none = MemorySkippedKeys::default();
    let (at_anna, at_ben) = established(&anna, &ben, &mut rng);

    group.bench_function("encrypt", |b| {
        let mut record = at_anna.clone();
        b.iter(|| encrypt(black_box(&mut record), ben.identity_key()));
    });

    group.bench_function("decrypt", |b| {
        let sender = RefCell::new(at_anna.clone());
        let mut receiver = at_ben.clone();
        b.iter_batched(
            || encrypt(&mut sender.borrow_mut(), ben.identity_key()),
            |message| drop(ben.decrypt(&mut receiver, &anna, &message, &none, &mut rng)),
            BatchSize::SmallInput,
        );
    });

    // Anna has not seen the ratchet key of Ben's answer.
    let answer = encrypt(&mut at_ben.clone(), anna.identity_key());
    group.bench_function("decrypt_new_chain", |b| {
        b.iter_batched(
            || at_anna.clone(),
            |mut record| {
                drop(anna.decrypt(&mut record, &ben, &answer, &none, &mut rng));
                record
            },
            BatchSize::SmallInput,
        );
    });

    group.bench_function("ping_pong", |b| {
        let (mut at_anna, mut at_ben) = (at_anna.clone(), at_ben.clone());
        let mut to_ben = false;
        b.iter(|| {
            to_ben = !to_ben;
            if to_ben {
                let message = encrypt(&mut at_anna, ben.identity_key());
                ben.decrypt(&mut at_ben, &anna, &message, &none, &mut rng)
            } else {
                let message = encrypt(&mut at_ben, anna.identity_key());
                anna.decrypt(&mut at_anna, &ben, &message, &none, &mut rng)
            }
        });
    });

    for (name, recipients) in [("fan_out_5", 5), ("fan_out_29", 29)] {
        group.bench_function(name, |b| {
            let mut records = vec![at_anna.clone(); recipients];
            b.iter(|| {
                records
                    .iter_mut()
                    .map(|record| encrypt(record, ben.identity_key()))
                    .collect::<Vec<_>>()
            });
        });
    }
    group.finish();
}

fn skipped(c: &mut Criterion) {
    let mut group = c.benchmark_group("skipped");
    let mut rng = random();
    let anna = Person::new("anna", &mut rng);
    let ben = Person::new("ben", &mut rng);
    let none = MemorySkippedKeys::default();
    let (mut at_anna, at_ben) = established(&anna, &ben, &mut rng);
    let mut sent: Vec<_> = (0..1001)
        .map(|_| encrypt(&mut at_anna, ben.identity_key()))
        .collect();
    let last = sent.pop().expect("there are 1001");

    group.bench_function("jump_1000", |b| {
        b.iter_batched(
            || at_ben.clone(),
            |mut record| {
                drop(ben.decrypt(&mut record, &anna, &last, &none, &mut rng));
                record
            },
            BatchSize::SmallInput,
        );
    });

    let mut stored = MemorySkippedKeys::default();
    let mut behind = at_ben;
    stored.apply(
        &ben.decrypt(&mut behind, &anna, &last, &none, &mut rng)
            .changes,
    );
    assert_eq!(stored.len(), 1000);
    group.bench_function("decrypt_one_of_1000", |b| {
        b.iter_batched(
            || behind.clone(),
            |mut record| {
                drop(ben.decrypt(&mut record, &anna, &sent[500], &stored, &mut rng));
                record
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("encrypt_with_1000", |b| {
        let mut record = behind.clone();
        b.iter(|| encrypt(black_box(&mut record), anna.identity_key()));
    });
    group.finish();
}

fn state(c: &mut Criterion) {
    let mut group = c.benchmark_group("state");
    let mut rng = random();
    let anna = Person::new("anna", &mut rng);
    let ben = Person::new("ben", &mut rng);
    let (record, _) = established(&anna, &ben, &mut rng);
    let session = record.current().expect("it is established");
    let bytes = session.to_bytes();
    group.bench_function("to_bytes", |b| b.iter(|| black_box(session).to_bytes()));
    group.bench_function("from_bytes", |b| {
        b.iter(|| Session::from_bytes(black_box(&bytes)).expect("it was written above"));
    });
    group.finish();
}

criterion_group!(
    benches, primitives, keys, handshake, messages, skipped, state
);
criterion_main!(benches);
