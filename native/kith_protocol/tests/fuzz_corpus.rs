//! The fuzz targets on stable: the committed corpus is replayed, and every target runs over mutations of it.
//!
//! `KITH_FUZZ_RUNS=100` runs a hundred times as many mutations, others each time with `KITH_SEED`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails is a failed test"
)]

mod fuzz_bodies;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz_bodies::{TARGETS, Target, seeds};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Most files and most bytes of the corpus of a target.
const MOST_FILES: usize = 50;
const MOST_BYTES: usize = 100_000;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
    })
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    files(&directory().join("corpus").join(target))
}

/// Name and content of each file, in the order of the names.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| {
            let entry = entry.expect("a directory entry");
            let content = fs::read(entry.path()).expect("a file");
            (entry.file_name().to_string_lossy().into_owned(), content)
        })
        .collect();
    files.sort();
    files
}

/// Runs the body; a fault is reported with the input.
fn run(target: &Target, origin: &str, input: &[u8]) {
    if let Err(fault) = catch_unwind(AssertUnwindSafe(|| (target.body)(input))) {
        let fault = (fault.downcast_ref::<String>().map(String::as_str))
            .or_else(|| fault.downcast_ref::<&str>().copied())
            .unwrap_or("a panic");
        panic!(
            "{} of {origin}: {fault}\n{}",
            target.name,
            hex::encode(input)
        );
    }
}

fn replay(name: &str) {
    let target = TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("no target {name}"));
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "the corpus of {name} is empty");
    for (file, input) in &corpus {
        run(target, file, input);
    }
    let seed = number("KITH_SEED", 1);
    let runs = number("KITH_FUZZ_RUNS", 1);
    let runs = target.mutations * usize::try_from(runs).expect("a 64-bit platform");
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    for _ in 0..runs {
        let (file, input) = mutation(&corpus, &mut rng);
        run(target, &format!("{file}, changed with seed {seed}"), &input);
    }
}

fn below(rng: &mut ChaCha12Rng, bound: usize) -> usize {
    (rng.next_u64() % bound.max(1) as u64) as usize
}

/// One to four changes of a file.
fn mutation<'a>(corpus: &'a [(String, Vec<u8>)], rng: &mut ChaCha12Rng) -> (&'a str, Vec<u8>) {
    let (file, content) = &corpus[below(rng, corpus.len())];
    let mut input = content.clone();
    for _ in 0..=below(rng, 4) {
        let at = below(rng, input.len());
        let length = below(rng, input.len() - at).min(1 << below(rng, 8));
        match below(rng, 9) {
            0 | 1 if !input.is_empty() => input[at] ^= 1 << below(rng, 8),
            2 if !input.is_empty() => {
                input[at] = [0, 1, 0x7f, 0x80, 0xff][below(rng, 5)];
            }
            3 if !input.is_empty() => {
                input[at] = input[at].wrapping_add(below(rng, 9) as u8).wrapping_sub(4)
            }
            4 => {
                let byte = rng.next_u32() as u8;
                input.splice(at..at, std::iter::repeat_n(byte, 1 + below(rng, 4)));
            }
            5 => drop(input.drain(at..at + length)),
            6 => {
                let copy = input[at..at + length].to_vec();
                input.splice(at..at, copy);
            }
            7 => {
                let (_, other) = &corpus[below(rng, corpus.len())];
                let from = below(rng, other.len());
                let length = below(rng, other.len() - from);
                let end = (at + length).min(input.len());
                input.splice(at..end, other[from..from + length].iter().copied());
            }
            _ => input.truncate(at),
        }
    }
    (file, input)
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

targets!(
    bundle,
    decrypt,
    entries,
    fingerprint,
    hostile_peer,
    kyber_key,
    official_record,
    post_quantum,
    prekey_message,
    public_key,
    signal_message,
    stored_state,
);

/// The names in a directory of `fuzz/`.
fn names(of: &str) -> BTreeSet<String> {
    fs::read_dir(directory().join(of))
        .unwrap_or_else(|error| panic!("fuzz/{of}: {error}"))
        .map(|entry| {
            let path = entry.expect("a directory entry").path();
            let name = path.file_stem().expect("a name");
            name.to_string_lossy().into_owned()
        })
        .collect()
}

#[test]
fn every_target_is_tested_and_has_a_corpus_and_a_fuzzer() {
    let names_of_targets: BTreeSet<String> = TARGETS.iter().map(|it| it.name.to_string()).collect();
    let tested = TESTED.iter().map(ToString::to_string).collect();
    assert_eq!(names_of_targets, tested);
    assert_eq!(names_of_targets, names("corpus"));
    assert_eq!(names_of_targets, names("fuzz_targets"));
}

#[test]
fn the_corpus_stays_small() {
    for target in &TARGETS {
        let corpus = corpus(target.name);
        let bytes: usize = corpus.iter().map(|(_, content)| content.len()).sum();
        assert!(corpus.len() <= MOST_FILES, "{}", target.name);
        assert!(bytes <= MOST_BYTES, "{}: {bytes} bytes", target.name);
    }
}

/// Writes the seeds into the corpus: `cargo test --test fuzz_corpus -- --ignored write_the_seeds`.
#[test]
#[ignore = "writes files"]
fn write_the_seeds() {
    for target in &TARGETS {
        let directory = directory().join("corpus").join(target.name);
        fs::create_dir_all(&directory).expect("a directory");
        for (name, content) in seeds::of(target.name) {
            fs::write(directory.join(name), content).expect("a file");
        }
    }
}
