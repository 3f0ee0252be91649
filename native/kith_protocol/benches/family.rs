//! One person's message to a family, in the core alone. Answers `bench/family.exs`, which asks in turn with
//! the other ways of doing the same.
//!
//! A request is a line `operation people samples`, an answer one line of nanoseconds.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a broken request ends the benchmark"
)]

mod support;

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufRead, stdin};
use std::time::Instant;

use kith_protocol::{MemoryEntries, PreKeyBundle, SessionRecord};
use rand_chacha::ChaCha12Rng;

use support::{Person, encrypt, established, random};

/// The first person and what she knows of the others.
struct Family {
    people: Vec<Person>,
    bundles: Vec<PreKeyBundle>,
    records: Vec<SessionRecord>,
}

impl Family {
    fn new(size: usize, rng: &mut ChaCha12Rng) -> Self {
        let people: Vec<_> = (0..size)
            .map(|number| Person::new(&format!("person-{number}"), rng))
            .collect();
        Self {
            bundles: people[1..].iter().map(Person::bundle).collect(),
            records: people[1..]
                .iter()
                .map(|other| established(&people[0], other, rng).0)
                .collect(),
            people,
        }
    }

    fn established(&mut self, rng: &mut ChaCha12Rng) -> u128 {
        let (sender, recipients) = (&self.people[0], &self.people[1..]);
        time(|| {
            recipients
                .iter()
                .zip(&mut self.records)
                .map(|(to, record)| encrypt(record, sender, to, rng))
                .collect::<Vec<_>>()
        })
    }

    fn cold(&self, rng: &mut ChaCha12Rng) -> u128 {
        let (sender, recipients) = (&self.people[0], &self.people[1..]);
        time(|| {
            recipients
                .iter()
                .zip(&self.bundles)
                .map(|(to, bundle)| {
                    let mut record = SessionRecord::default();
                    sender.initiate(&mut record, bundle, rng);
                    let message = encrypt(&mut record, sender, to, rng);
                    (record, message)
                })
                .collect::<Vec<_>>()
        })
    }
}

/// Two people of whom the second opens what the first sends.
struct Pair {
    anna: Person,
    ben: Person,
    at_anna: SessionRecord,
    at_ben: SessionRecord,
    /// What their sessions keep beside themselves.
    annas: MemoryEntries,
    bens: MemoryEntries,
}

impl Pair {
    fn new(rng: &mut ChaCha12Rng) -> Self {
        let (anna, ben) = (Person::new("anna", rng), Person::new("ben", rng));
        let (at_anna, at_ben) = established(&anna, &ben, rng);
        Self {
            anna,
            ben,
            at_anna,
            at_ben,
            annas: MemoryEntries::default(),
            bens: MemoryEntries::default(),
        }
    }

    fn decrypt(&mut self, rng: &mut ChaCha12Rng) -> u128 {
        let message = encrypt(&mut self.at_anna, &self.anna, &self.ben, rng);
        let (anna, ben) = (&self.anna, &self.ben);
        let mut decrypted = None;
        let taken = time(|| {
            decrypted = Some(ben.decrypt(&mut self.at_ben, anna, &message, &self.bens, rng));
        });
        if let Some(decrypted) = decrypted {
            self.bens.apply(&decrypted.changes);
        }
        taken
    }

    fn decrypt_new_chain(&mut self, rng: &mut ChaCha12Rng) -> u128 {
        let answer = encrypt(&mut self.at_ben, &self.ben, &self.anna, rng);
        let decrypted = self
            .anna
            .decrypt(&mut self.at_anna, &self.ben, &answer, &self.annas, rng);
        self.annas.apply(&decrypted.changes);
        self.decrypt(rng)
    }

    fn decrypt_first(&self, rng: &mut ChaCha12Rng) -> u128 {
        let none = MemoryEntries::default();
        let mut at_anna = SessionRecord::default();
        self.anna.initiate(&mut at_anna, &self.ben.bundle(), rng);
        let message = encrypt(&mut at_anna, &self.anna, &self.ben, rng);
        let mut record = SessionRecord::default();
        let (anna, ben) = (&self.anna, &self.ben);
        time(|| ben.decrypt(&mut record, anna, &message, &none, rng))
    }
}

fn time<T>(work: impl FnOnce() -> T) -> u128 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_nanos()
}

fn main() {
    let mut rng = random();
    let mut families = HashMap::new();
    let mut pair = Pair::new(&mut rng);
    for line in stdin().lock().lines() {
        let line = line.expect("standard input is text");
        let words: Vec<_> = line.split(' ').collect();
        let &[operation, people, samples] = words.as_slice() else {
            panic!("expected an operation, people and samples, got {line:?}");
        };
        let people = people.parse().expect("a number of people");
        let samples: usize = samples.parse().expect("a number of samples");
        let family = families
            .entry(people)
            .or_insert_with(|| Family::new(people, &mut rng));
        let answer: Vec<_> = (0..samples)
            .map(|_| {
                match operation {
                    "established" => family.established(&mut rng),
                    "cold" => family.cold(&mut rng),
                    "decrypt" => pair.decrypt(&mut rng),
                    "decrypt_new_chain" => pair.decrypt_new_chain(&mut rng),
                    "decrypt_first" => pair.decrypt_first(&mut rng),
                    _ => panic!("there is no operation {operation:?}"),
                }
                .to_string()
            })
            .collect();
        println!("{}", answer.join(" "));
    }
}
