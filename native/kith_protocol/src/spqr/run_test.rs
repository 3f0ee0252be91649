//! A whole run of two parties, recorded, step by step.

use std::collections::{BTreeMap, BTreeSet};

use super::decoder::PageLookup;
use super::message::SpqrMessage;
use super::vectors::{Script, bytes, derived};
use super::{Received, Side, Spqr};
use crate::secret::SecretBytes;
use crate::session::{EntryGroup, EntryPosition};

struct Party {
    spqr: Spqr,
    keys: BTreeMap<EntryPosition, SecretBytes>,
    pages: BTreeMap<(u64, u32), super::Page>,
}

impl Party {
    fn new(auth_key: &SecretBytes, side: Side) -> Self {
        Self {
            spqr: Spqr::start(auth_key, side),
            keys: BTreeMap::new(),
            pages: BTreeMap::new(),
        }
    }

    fn receive(&mut self, message: &[u8]) -> Option<SecretBytes> {
        let message = SpqrMessage::from_bytes(message).unwrap();
        self.spqr.check(&message).unwrap();
        let received = self.spqr.receive_key(&message).unwrap();
        let key = match &received {
            None => None,
            Some(Received::Forward { key, .. }) => Some(key.clone()),
            Some(Received::Kept { epoch, index }) => {
                Some(self.keys[&(EntryGroup::PostQuantumKeys(*epoch), *index)].clone())
            }
        };
        let pages = |number| match self.pages.get(&(message.epoch, number)) {
            Some(page) => PageLookup::Found(*page),
            None => PageLookup::Absent,
        };
        let receipt = self.spqr.receive(&message, received, &pages).unwrap();
        let commit = self.spqr.commit(receipt);
        if let Some((epoch, index)) = commit.keys.removed {
            assert!(
                self.keys
                    .remove(&(EntryGroup::PostQuantumKeys(epoch), index))
                    .is_some()
            );
        }
        if let Some(epoch) = commit.pages_forgotten {
            self.pages.retain(|(of, _), _| *of != epoch);
        }
        for (epoch, index, key) in commit.keys.added {
            self.keys
                .insert((EntryGroup::PostQuantumKeys(epoch), index), key);
        }
        if let Some((epoch, number, page)) = commit.page {
            assert!(self.pages.insert((epoch, number), page).is_none());
        }
        assert!(self.spqr.is_consistent());
        key
    }
}

#[test]
fn a_recorded_run_is_reproduced_byte_for_byte() {
    let vectors = derived();
    let run = &vectors["spqr_run"];
    let auth_key: [u8; 32] = bytes(&run["auth_key"]).try_into().unwrap();
    let auth_key = SecretBytes::copy_of(&auth_key);
    let mut a = Party::new(&auth_key, Side::Initiator);
    let mut b = Party::new(&auth_key, Side::Responder);
    assert!(!a.spqr.is_responder_in_first_epoch());
    assert!(b.spqr.is_responder_in_first_epoch());
    let mut sent: Vec<(Vec<u8>, SecretBytes)> = Vec::new();
    let mut states = BTreeSet::new();
    let steps = run["steps"].as_array().unwrap();
    for (number, step) in steps.iter().enumerate() {
        let party = match step["by"].as_str().unwrap() {
            "A" => &mut a,
            _ => &mut b,
        };
        match step["op"].as_str().unwrap() {
            "send" => {
                let randomness = step.get("randomness").map_or_else(Vec::new, bytes);
                let mut script = Script(randomness);
                let out = party.spqr.send(&mut script).unwrap();
                assert!(
                    script.0.is_empty(),
                    "step {number} draws less than recorded"
                );
                assert_eq!(
                    out.message,
                    bytes(&step["message"]),
                    "message of step {number}"
                );
                assert_eq!(
                    out.key.as_bytes().as_slice(),
                    bytes(&step["key"]),
                    "key of step {number}"
                );
                sent.push((out.message, out.key));
            }
            "recv" => {
                let of = usize::try_from(step["of"].as_u64().unwrap()).unwrap();
                let (message, key) = sent[of].clone();
                assert_eq!(party.receive(&message), Some(key), "key of step {number}");
                let state = step["state"].as_str().unwrap();
                states.insert(state);
                assert_eq!(party.spqr.braid.name(), state, "state of step {number}");
                assert_eq!(
                    party.spqr.braid.turn().epoch,
                    step["epoch"].as_u64().unwrap(),
                    "epoch of step {number}"
                );
            }
            other => panic!("unknown step {other}"),
        }
    }
    assert!(!a.spqr.is_responder_in_first_epoch());
    assert!(!b.spqr.is_responder_in_first_epoch());
    assert!(steps.len() > 600);
    assert!(states.len() >= 9, "{states:?}");
}

#[test]
fn only_parts_of_one_side_and_one_epoch_are_consistent() {
    let auth_key = SecretBytes::copy_of(&[7; 32]);
    let [initiator, responder] =
        [Side::Initiator, Side::Responder].map(|side| Spqr::start(&auth_key, side));
    assert!(initiator.is_consistent());
    assert!(responder.is_consistent());
    let crossed = Spqr {
        braid: responder.braid,
        ..initiator.clone()
    };
    assert!(!crossed.is_consistent());
    let mut ahead = initiator;
    ahead.chain.add_epoch(1, &auth_key).unwrap();
    assert!(!ahead.is_consistent());
}

#[test]
fn how_far_a_message_is_ahead_counts_in_its_own_chain() {
    let auth_key = SecretBytes::copy_of(&[7; 32]);
    let spqr = Spqr::start(&auth_key, Side::Responder);
    let jump = |epoch, index| {
        spqr.jump(&SpqrMessage {
            epoch,
            index,
            payload: super::message::Payload::None,
        })
    };
    assert_eq!(jump(1, 9), 9);
    assert_eq!(jump(1, 0), 0);
    assert_eq!(jump(2, 9), 0);
}
