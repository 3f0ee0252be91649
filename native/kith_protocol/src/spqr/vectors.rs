//! Every part of the post-quantum ratchet against what the official client made (tests/vectors).

use std::convert::Infallible;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_core::{TryCryptoRng, TryRng};
use serde_json::Value;

use super::authenticator::{Authenticator, epoch_secret};
use super::chain::{KeyChain, Received, Side};
use super::erasure::{self, Chunk};
use super::kem::{
    self, Ct1, Ct2, DecapsulationKey, EncapsulationKey, EncapsulationState, Header, encapsulate1,
    encapsulate2, is_key_of,
};
use super::message::{IndexedChunk, Payload, SpqrMessage};
use crate::secret::SecretBytes;

/// Gives bytes written down beforehand, and panics when asked for others than all of them at once.
pub(crate) struct Script(pub(crate) Vec<u8>);

impl TryRng for Script {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        panic!("only bytes are drawn")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        panic!("only bytes are drawn")
    }

    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Infallible> {
        destination.copy_from_slice(&std::mem::take(&mut self.0));
        Ok(())
    }
}

impl TryCryptoRng for Script {}

pub(crate) fn parts() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors/spqr.json")).unwrap()
}

pub(crate) fn derived() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors/derived.json")).unwrap()
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn secret(value: &Value) -> SecretBytes {
    SecretBytes::copy_of(&array(value))
}

/// The cases of a list, of which there are to be so many.
fn cases(value: &Value, count: usize) -> &[Value] {
    let cases = value.as_array().unwrap();
    assert_eq!(cases.len(), count);
    cases
}

fn number<T: TryFrom<u64, Error: std::fmt::Debug>>(value: &Value) -> T {
    value.as_u64().unwrap().try_into().unwrap()
}

#[test]
fn messages_are_read_and_written_as_by_the_official_client() {
    let parts = parts();
    let kinds = parts["messages"].as_object().unwrap();
    assert_eq!(kinds.len(), 7);
    for (kind, list) in kinds {
        for case in cases(list, 3) {
            let chunk = || IndexedChunk {
                index: number(&case["chunk_index"]),
                data: array(&case["chunk"]),
            };
            assert_eq!(case["payload"], kind.as_str());
            assert_eq!(case["version"], 1);
            let message = SpqrMessage {
                epoch: number(&case["epoch"]),
                index: number(&case["index"]),
                payload: match kind.as_str() {
                    "none" => Payload::None,
                    "hdr" => Payload::Header(chunk()),
                    "ek" => Payload::EncapsulationKey(chunk()),
                    "ek_ct1_ack" => Payload::EncapsulationKeyAndCt1Ack(chunk()),
                    "ct1_ack" => Payload::Ct1Ack,
                    "ct1" => Payload::Ct1(chunk()),
                    "ct2" => Payload::Ct2(chunk()),
                    _ => panic!("unknown payload {kind}"),
                },
            };
            let serialized = bytes(&case["serialized"]);
            assert_eq!(
                SpqrMessage::from_bytes(&serialized).as_ref(),
                Ok(&message),
                "{kind}"
            );
            assert_eq!(message.to_bytes(), serialized, "{kind}");
        }
    }
}

#[test]
fn chunks_and_parity_are_those_of_the_official_client() {
    let parts = parts();
    let mut parity = 0;
    for case in cases(&parts["erasure"], 8) {
        let message = bytes(&case["message"]);
        let n: usize = number(&case["chunk_count"]);
        assert_eq!(message.len(), n * 32);
        for chunk in case["chunks"].as_array().unwrap() {
            let index: u16 = number(&chunk["index"]);
            let expected: Chunk = array(&chunk["data"]);
            parity += usize::from(usize::from(index) >= n);
            assert_eq!(
                erasure::chunk(&message, index),
                expected,
                "{} chunk {index}",
                case["kind"]
            );
        }
    }
    assert_eq!(parity, 25);
}

#[test]
fn any_sufficient_subset_of_the_official_chunks_restores_the_message() {
    let parts = parts();
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    for case in cases(&parts["erasure"], 8) {
        let message = bytes(&case["message"]);
        let n: usize = number(&case["chunk_count"]);
        let mut chunks: Vec<(u16, Chunk)> = case["chunks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|chunk| (number(&chunk["index"]), array(&chunk["data"])))
            .collect();
        for _ in 0..20 {
            for last in (1..chunks.len()).rev() {
                let other = usize::try_from(rng.next_u64() % (last as u64 + 1)).unwrap();
                chunks.swap(last, other);
            }
            assert_eq!(erasure::restore(&chunks[..n], n).as_ref(), Some(&message));
            assert_eq!(erasure::restore(&chunks, n).as_ref(), Some(&message));
            assert_eq!(erasure::restore(&chunks[..n - 1], n), None);
        }
    }
}

#[test]
fn products_are_those_of_the_official_client() {
    let derived = derived();
    for case in cases(&derived["gf16_products"], 44) {
        let [a, b, product] = [0, 1, 2].map(|at| number(&case[at]));
        assert_eq!(super::field::multiply(a, b), product, "{a} · {b}");
        assert_eq!(super::field::multiply(b, a), product, "{b} · {a}");
    }
}

#[test]
fn the_authenticator_follows_that_of_the_official_client() {
    let (parts, derived) = (parts(), derived());
    let states = cases(&parts["authenticator"], 4);
    let secrets = cases(&derived["encapsulation"], 3);
    let mut authenticator = Authenticator::new(&array(&states[0]["auth_key"]));
    for (epoch, state) in (1..).zip(states) {
        assert_eq!(state["epoch"], epoch);
        assert_eq!(authenticator.root(), &secret(&state["root_key"]));
        assert_eq!(authenticator.mac_key(), &secret(&state["mac_key"]));

        let (header, mac) = (array(&state["header"]), array(&state["header_mac"]));
        assert_eq!(authenticator.header_mac(epoch, &header), mac);
        assert!(authenticator.verify_header(epoch, &header, &mac));
        assert!(!authenticator.verify_header(epoch + 1, &header, &mac));
        for at in 0..32 {
            let mut forged = mac;
            forged[at] ^= 1;
            assert!(!authenticator.verify_header(epoch, &header, &forged));
        }

        if let Some(step) = secrets.get(usize::try_from(epoch).unwrap() - 1) {
            assert_eq!(step["epoch"], epoch);
            let key = epoch_secret(epoch, &secret(&step["kem_shared_secret"]));
            assert_eq!(key, secret(&step["epoch_secret"]));
            authenticator = authenticator.update(epoch, &key);
        }
    }

    let finish = &cases(&parts["encapsulation_finish"], 1)[0];
    let key = secret(&finish["mac_key"]);
    let authenticator = Authenticator::from_parts(key.clone(), key);
    let (ct1, ct2) = (array(&finish["ct1"]), array(&finish["ct2"]));
    let (epoch, mac) = (number(&finish["epoch"]), array(&finish["mac"]));
    assert_eq!(authenticator.ciphertext_mac(epoch, &ct1, &ct2), mac);
    assert!(authenticator.verify_ciphertext(epoch, &ct1, &ct2, &mac));
    let mut forged = ct2;
    forged[127] ^= 1;
    assert!(!authenticator.verify_ciphertext(epoch, &ct1, &forged, &mac));
}

#[test]
fn both_sides_of_the_key_chain_are_those_of_the_official_client() {
    let parts = parts();
    for case in cases(&parts["chain"], 2) {
        let auth_key = array(&case["auth_key"]);
        for (side, sent, received) in [
            (Side::Initiator, "a2b", "b2a"),
            (Side::Responder, "b2a", "a2b"),
        ] {
            let mut chain = KeyChain::start(&auth_key, side);
            assert_eq!(chain.root, secret(&case["next_root"]));
            let start = |direction: &str| secret(&case[format!("{direction}_start")]);
            assert_eq!(chain.epochs[0].sending.open().unwrap().key, start(sent));
            assert_eq!(chain.epochs[0].receiving.key, start(received));

            for step in cases(&case[format!("{sent}_keys")], 4) {
                let sent = chain.send(0).unwrap();
                assert_eq!(sent.index, number::<u32>(&step["index"]));
                assert_eq!(sent.key, secret(&step["message_key"]));
                let after = chain.epochs[0].sending.open().unwrap();
                assert_eq!(after.key, secret(&step["next"]));
            }
            for step in cases(&case[format!("{received}_keys")], 4) {
                let index = number(&step["index"]);
                let received = chain.receive(0, index).unwrap();
                let Received::Forward {
                    key,
                    after,
                    skipped,
                    ..
                } = &received
                else {
                    panic!("{received:?}")
                };
                assert_eq!(key, &secret(&step["message_key"]));
                assert_eq!(after.key, secret(&step["next"]));
                assert!(skipped.is_empty());
                chain.commit(received);
            }
        }
    }
}

#[test]
fn epochs_start_the_chains_of_the_official_client() {
    let (parts, derived) = (parts(), derived());
    let steps = cases(&parts["encapsulation"], 3);
    let auth_key = array(&parts["authenticator"][0]["auth_key"]);
    let mut initiator = KeyChain::start(&auth_key, Side::Initiator);
    let mut responder = KeyChain::start(&auth_key, Side::Responder);
    for (step, values) in steps.iter().zip(cases(&derived["encapsulation"], 3)) {
        let epoch = number(&step["epoch"]);
        for chain in [&mut initiator, &mut responder] {
            assert_eq!(chain.root, secret(&step["chain_next_root_before"]));
            chain
                .add_epoch(epoch, &secret(&values["epoch_secret"]))
                .unwrap();
            assert_eq!(chain.root, secret(&step["chain_next_root_after"]));
        }
        let (a2b, b2a) = (
            secret(&values["chain_a2b_start"]),
            secret(&values["chain_b2a_start"]),
        );
        let of_initiator = initiator.epochs.last().unwrap();
        assert_eq!(of_initiator.sending.open().unwrap().key, a2b);
        assert_eq!(of_initiator.receiving.key, b2a);
        let of_responder = responder.epochs.last().unwrap();
        assert_eq!(of_responder.sending.open().unwrap().key, b2a);
        assert_eq!(of_responder.receiving.key, a2b);
    }
}

#[test]
fn both_steps_of_the_official_clients_encapsulations_are_repeated() {
    let (parts, derived) = (parts(), derived());
    let steps = cases(&parts["encapsulation"], 3);
    let keys = cases(&parts["authenticator"], 4);
    for ((step, values), key) in steps
        .iter()
        .zip(cases(&derived["encapsulation"], 3))
        .zip(keys)
    {
        let header = Header::from_bytes(&bytes(&step["header"])).unwrap();
        let randomness = bytes(&values["encapsulation_randomness"]);
        let (state, ct1, shared) = encapsulate1(&header, &mut Script(randomness));
        let recorded = bytes(&step["encapsulation_state"]);
        assert_eq!(state.as_bytes()[..], recorded);
        assert_eq!(
            EncapsulationState::from_bytes(&recorded),
            Some(state.clone())
        );
        assert_eq!(ct1.as_bytes()[..], bytes(&step["ct1"]));
        assert_eq!(shared, secret(&values["kem_shared_secret"]));

        // The owner's side, with the same epoch's key.
        assert_eq!(step["epoch"], key["epoch"]);
        let dk = DecapsulationKey::from_bytes(&bytes(&key["dk"])).unwrap();
        let ek = EncapsulationKey::from_bytes(&bytes(&key["ek"])).unwrap();
        assert_eq!(dk.header(), header);
        assert_eq!(dk.encapsulation_key(), ek);
        assert!(is_key_of(&ek, &header));
        let ct2 = encapsulate2(&state, &ek);
        assert_eq!(kem::decapsulate(&dk, &ct1, &ct2), shared);
    }

    let finish = &cases(&parts["encapsulation_finish"], 1)[0];
    let state = EncapsulationState::from_bytes(&bytes(&finish["encapsulation_state"])).unwrap();
    let ek = EncapsulationKey::from_bytes(&bytes(&finish["ek"])).unwrap();
    assert_eq!(
        encapsulate2(&state, &ek).as_bytes()[..],
        bytes(&finish["ct2"])
    );
}

#[test]
fn the_known_answer_of_ml_kem_768_is_given() {
    let known = &derived()["mlkem768_incremental"];
    let (header, ek, dk) = kem::generate(&mut Script(bytes(&known["keygen_seed"])));
    assert_eq!(header.as_bytes()[..], bytes(&known["header"]));
    assert_eq!(ek.as_bytes()[..], bytes(&known["ek"]));
    assert_eq!(dk.as_bytes()[..], bytes(&known["dk"]));
    assert!(is_key_of(&ek, &header));

    let (state, ct1, shared) =
        encapsulate1(&header, &mut Script(bytes(&known["encaps_randomness"])));
    let ct2 = encapsulate2(&state, &ek);
    assert_eq!(Ct1::from_bytes(&bytes(&known["ct1"])), Some(ct1.clone()));
    assert_eq!(Ct2::from_bytes(&bytes(&known["ct2"])), Some(ct2.clone()));
    assert_eq!(shared, secret(&known["shared_secret"]));
    assert_eq!(kem::decapsulate(&dk, &ct1, &ct2), shared);
}
