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
    IdentityKeyPair, KyberKeyPair, KyberPreKey, MemoryEntries, PreKey, PrivateKey, Session,
    SessionRecord, SignedPreKey,
};
use libcrux_ml_kem::kyber1024;
use libcrux_ml_kem::mlkem768::incremental;
use sha2::Sha256;

use support::{PLAINTEXT, Person, encrypt, established, established_by, random};

/// Bytes under the MAC of a message of 256 bytes: two identity keys and the serialized message, with a chunk
/// of the post-quantum ratchet.
const MAC_INPUT: usize = 2 * 33 + 317 + 40;

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

    // Of a Kyber prekey.
    let long = vec![8; 1569];
    let long_signature = identity.sign(&long, &mut rng);
    group.bench_function("sign_kyber", |b| {
        b.iter(|| identity.sign(black_box(&long), &mut rng));
    });
    group.bench_function("verify_kyber", |b| {
        b.iter(|| public.verify(black_box(&long), black_box(&long_signature)));
    });
    kems(&mut group);

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
    group.bench_function("hkdf_96", |b| b.iter(|| hkdf::<96>(black_box(&key))));

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

/// Kyber-1024, and ML-KEM-768 in two steps.
fn kems<M: criterion::measurement::Measurement>(group: &mut criterion::BenchmarkGroup<'_, M>) {
    let kyber = kyber1024::generate_key_pair([1; 64]);
    let (ciphertext, _) = kyber1024::encapsulate(kyber.public_key(), [2; 32]);
    group.bench_function("kyber_generate", |b| {
        b.iter(|| kyber1024::generate_key_pair(black_box([1; 64])));
    });
    group.bench_function("kyber_encapsulate", |b| {
        b.iter(|| kyber1024::encapsulate(black_box(kyber.public_key()), [2; 32]));
    });
    group.bench_function("kyber_decapsulate", |b| {
        b.iter(|| kyber1024::decapsulate(kyber.private_key(), black_box(&ciphertext)));
    });

    let mut pair = [0; incremental::key_pair_compressed_len()];
    group.bench_function("mlkem_generate", |b| {
        b.iter(|| incremental::generate_key_pair_compressed(black_box([3; 64]), &mut pair));
    });
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
    group.bench_function("kyber_prekey", |b| {
        b.iter(|| KyberPreKey::generate(1, &identity, &mut rng));
    });
    // As a stored one is read.
    let seed = *KyberKeyPair::generate(&mut rng)
        .seed()
        .expect("it was drawn");
    group.bench_function("kyber_from_seed", |b| {
        b.iter(|| KyberKeyPair::from_seed(black_box(&seed)));
    });
    group.finish();
}

fn handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let rng = &mut random();
    let anna = Person::new("anna", rng);
    let ben = Person::new("ben", rng);
    let bundle = ben.bundle();
    let none = MemoryEntries::default();

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
                let message = encrypt(&mut record, &anna, &ben, rng);
                (record, message)
            },
            BatchSize::SmallInput,
        );
    });

    let message = encrypt(&mut fresh, &anna, &ben, rng);
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
    let none = MemoryEntries::default();
    let (at_anna, at_ben) = established(&anna, &ben, &mut rng);

    group.bench_function("encrypt", |b| {
        let mut record = at_anna.clone();
        b.iter(|| encrypt(black_box(&mut record), &anna, &ben, &mut rng));
    });

    group.bench_function("decrypt", |b| {
        let sender = RefCell::new(at_anna.clone());
        let mut receiver = at_ben.clone();
        b.iter_batched(
            || encrypt(&mut sender.borrow_mut(), &anna, &ben, &mut random()),
            |message| drop(ben.decrypt(&mut receiver, &anna, &message, &none, &mut rng)),
            BatchSize::SmallInput,
        );
    });

    // Nothing arrives from the other side, so chunks of the header's erasure code go out for ever; with an
    // encapsulation key of 36 chunks to send they cost most.
    group.bench_function("encrypt_parity", |b| {
        let (mut at_anna, mut at_ben) = (at_anna.clone(), at_ben.clone());
        while braid(&at_anna) != "HeaderSent" {
            let there = encrypt(&mut at_anna, &anna, &ben, &mut rng);
            ben.decrypt(&mut at_ben, &anna, &there, &none, &mut rng);
            let back = encrypt(&mut at_ben, &ben, &anna, &mut rng);
            anna.decrypt(&mut at_anna, &ben, &back, &none, &mut rng);
        }
        for _ in 0..36 {
            encrypt(&mut at_anna, &anna, &ben, &mut rng);
        }
        b.iter(|| encrypt(black_box(&mut at_anna), &anna, &ben, &mut rng));
    });

    let (v3_anna, v3_ben) = established_by(&anna, &ben, &ben.bundle_v3(), &mut rng);
    group.bench_function("encrypt_v3", |b| {
        let mut record = v3_anna.clone();
        b.iter(|| encrypt(black_box(&mut record), &anna, &ben, &mut rng));
    });
    group.bench_function("decrypt_v3", |b| {
        let sender = RefCell::new(v3_anna.clone());
        let mut receiver = v3_ben.clone();
        b.iter_batched(
            || encrypt(&mut sender.borrow_mut(), &anna, &ben, &mut random()),
            |message| drop(ben.decrypt(&mut receiver, &anna, &message, &none, &mut rng)),
            BatchSize::SmallInput,
        );
    });

    // Anna has not seen the ratchet key of Ben's answer.
    let answer = encrypt(&mut at_ben.clone(), &ben, &anna, &mut rng);
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
        let (mut annas, mut bens) = (none.clone(), none.clone());
        let mut to_ben = false;
        b.iter(|| {
            to_ben = !to_ben;
            if to_ben {
                let message = encrypt(&mut at_anna, &anna, &ben, &mut rng);
                let decrypted = ben.decrypt(&mut at_ben, &anna, &message, &bens, &mut rng);
                bens.apply(&decrypted.changes);
            } else {
                let message = encrypt(&mut at_ben, &ben, &anna, &mut rng);
                let decrypted = anna.decrypt(&mut at_anna, &ben, &message, &annas, &mut rng);
                annas.apply(&decrypted.changes);
            }
        });
    });

    for (name, recipients) in [("fan_out_5", 5), ("fan_out_29", 29)] {
        group.bench_function(name, |b| {
            let mut records = vec![at_anna.clone(); recipients];
            b.iter(|| {
                records
                    .iter_mut()
                    .map(|record| encrypt(record, &anna, &ben, &mut rng))
                    .collect::<Vec<_>>()
            });
        });
    }
    group.finish();
}

fn braid(record: &SessionRecord) -> &'static str {
    record
        .current()
        .and_then(|session| session.info().braid)
        .map_or("none", |braid| braid.state)
}

fn skipped(c: &mut Criterion) {
    let mut group = c.benchmark_group("skipped");
    let mut rng = random();
    let anna = Person::new("anna", &mut rng);
    let ben = Person::new("ben", &mut rng);
    let none = MemoryEntries::default();
    let (mut at_anna, at_ben) = established(&anna, &ben, &mut rng);
    let mut sent: Vec<_> = (0..1001)
        .map(|_| encrypt(&mut at_anna, &anna, &ben, &mut rng))
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

    let mut stored = MemoryEntries::default();
    let mut behind = at_ben;
    stored.apply(
        &ben.decrypt(&mut behind, &anna, &last, &none, &mut rng)
            .changes,
    );
    // A message key and a key of the post-quantum ratchet for each.
    assert_eq!(stored.len(), 2000);
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
    group.bench_function("decrypt_with_1000", |b| {
        let sender = RefCell::new(at_anna.clone());
        let mut receiver = behind.clone();
        b.iter_batched(
            || encrypt(&mut sender.borrow_mut(), &anna, &ben, &mut random()),
            |message| drop(ben.decrypt(&mut receiver, &anna, &message, &stored, &mut rng)),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("encrypt_with_1000", |b| {
        let mut record = behind.clone();
        b.iter(|| encrypt(black_box(&mut record), &ben, &anna, &mut rng));
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
    let state = session.state_bytes();
    group.bench_function("state_bytes", |b| {
        b.iter(|| black_box(session).state_bytes());
    });
    group.bench_function("to_bytes", |b| b.iter(|| black_box(session).to_bytes()));
    group.bench_function("from_bytes", |b| {
        b.iter(|| Session::from_bytes(black_box(&bytes)).expect("it was written above"));
    });
    let braid = session.braid_bytes().expect("it is of version 4");
    group.bench_function("from_parts", |b| {
        b.iter(|| {
            Session::from_parts(black_box(&state), Some(black_box(&braid))).expect("as above")
        });
    });
    group.finish();
}

criterion_group!(
    benches, primitives, keys, handshake, messages, skipped, state
);
criterion_main!(benches);
