//! The key chain: for every epoch and direction a symmetric chain, one key per message.

use hmac::Mac;
use hmac::digest::FixedOutput;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::limits::{MAX_FORWARD_JUMP, MAX_SKIPPED_KEYS_PER_CHAIN};
use crate::primitives::{HmacSha256, hkdf, hmac};
use crate::secret::SecretBytes;

/// HKDF info of the first root and chains. The two spaces are the protocol's.
const START_LABEL: &[u8] = b"Signal PQ Ratchet V1 Chain  Start";
/// HKDF info of the root and chains of a further epoch.
const ADD_EPOCH_LABEL: &[u8] = b"Signal PQ Ratchet V1 Chain Add Epoch";
/// HKDF info of a step, behind the counter.
const NEXT_LABEL: &[u8] = b"Signal PQ Ratchet V1 Chain Next";

/// Epochs there are at once at most: the one sent in, the one before, and the next one, whose secret is there
/// before anything is sent in it.
pub(crate) const MAX_EPOCHS: usize = 3;

/// The highest epoch of a state that is read. Nobody gets there, and behind it numbers would end.
const MAX_EPOCH: u64 = u64::MAX / 2;

/// Which of the two devices this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It started the session, and sends on the A→B chains.
    Initiator,
    /// It was written to, and sends on the B→A chains.
    Responder,
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum ChainError {
    /// The key was given before.
    #[error("the key was used already")]
    AlreadyUsed,
    /// The counter of the chain has no next value.
    #[error("the chain is exhausted")]
    Exhausted,
    /// Epochs are added one by one.
    #[error("the epoch is not the next one")]
    NotNext,
    /// More than [`MAX_FORWARD_JUMP`] ahead.
    #[error("the key is too far ahead")]
    TooFarAhead,
    /// More than [`MAX_SKIPPED_KEYS_PER_CHAIN`] behind.
    #[error("the key is too old")]
    TooOld,
    /// An epoch that was never added, or is forgotten, or sending is past.
    #[error("the epoch is unknown")]
    UnknownEpoch,
}

/// One direction of one epoch: the chain key, and the index of the last key it gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    pub(crate) key: SecretBytes,
    pub(crate) index: u32,
}

/// The half an epoch is sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendingHalf {
    Open(Half),
    /// A later epoch was sent in: the key is gone, the index of its last message is not.
    Closed {
        index: u32,
    },
}

impl SendingHalf {
    pub(crate) const fn open(&self) -> Option<&Half> {
        match self {
            Self::Open(half) => Some(half),
            Self::Closed { .. } => None,
        }
    }
}

/// The two chains of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) sending: SendingHalf,
    pub(crate) receiving: Half,
    /// How many keys of `receiving` were passed over and are kept beside the session.
    pub(crate) kept: u32,
}

/// The key chain: a root, and the chains of the epochs still in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyChain {
    pub(crate) side: Side,
    pub(crate) root: SecretBytes,
    /// The last epoch that was sent in.
    pub(crate) send_epoch: u64,
    /// The number of the last one of `epochs`.
    pub(crate) current_epoch: u64,
    /// Oldest first, without gaps.
    pub(crate) epochs: Vec<Epoch>,
}

/// A key to send with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) index: u32,
    pub(crate) key: SecretBytes,
    /// The epochs this made the chain forget, of those that had keys kept.
    pub(crate) forgotten: Vec<u64>,
}

/// Where the key of a received message is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Passed over earlier: if it is not kept beside the session, it was used.
    Kept { epoch: u64, index: u32 },
    /// Ahead in the chain.
    Forward {
        epoch: u64,
        key: SecretBytes,
        /// The chain behind that key.
        after: Half,
        /// The keys passed over, ascending; only those not too old to be asked for.
        skipped: Vec<(u32, SecretBytes)>,
    },
}

/// What is to change beside the session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Committed {
    /// Epoch, index and key of each key to keep.
    pub(crate) added: Vec<(u64, u32, SecretBytes)>,
    /// Epoch and index of a kept key that is used up.
    pub(crate) removed: Option<(u64, u32)>,
    /// Epoch, and how many of its kept keys stay, those with the highest indices.
    pub(crate) evicted: Option<(u64, u32)>,
}

impl KeyChain {
    /// `HKDF(0³², key of the handshake, "Signal PQ Ratchet V1 Chain  Start", 96)` → root and epoch 0.
    pub(crate) fn start(auth_key: &[u8; 32], side: Side) -> Self {
        let (root, epoch) = derive(None, auth_key, START_LABEL, side);
        Self {
            side,
            root,
            send_epoch: 0,
            current_epoch: 0,
            epochs: vec![epoch],
        }
    }

    /// `HKDF(root, epoch secret, "Signal PQ Ratchet V1 Chain Add Epoch", 96)` → root and the next epoch.
    pub(crate) fn add_epoch(&mut self, epoch: u64, secret: &SecretBytes) -> Result<(), ChainError> {
        if self.current_epoch.checked_add(1) != Some(epoch) {
            return Err(ChainError::NotNext);
        }
        let (root, chains) = derive(
            Some(self.root.as_bytes()),
            secret.as_bytes(),
            ADD_EPOCH_LABEL,
            self.side,
        );
        self.root = root;
        self.current_epoch = epoch;
        self.epochs.push(chains);
        Ok(())
    }

    /// The next key to send with in an epoch, which is not lower than the last one sent in.
    ///
    /// When it is higher, the epochs more than one below it are forgotten, and nothing can be sent in
    /// the lower ones any more.
    pub(crate) fn send(&mut self, epoch: u64) -> Result<Sent, ChainError> {
        if epoch < self.send_epoch {
            return Err(ChainError::UnknownEpoch);
        }
        let at = self.position(epoch)?;
        let SendingHalf::Open(sending) = &mut self.epochs[at].sending else {
            return Err(ChainError::UnknownEpoch);
        };
        let (key, after) = Walk::new().step(sending).ok_or(ChainError::Exhausted)?;
        let index = after.index;
        *sending = after;

        let mut forgotten = Vec::new();
        if epoch > self.send_epoch {
            self.send_epoch = epoch;
            let oldest = self.oldest();
            let dropped = self.epochs.drain(..at.saturating_sub(1));
            for (dropped, number) in dropped.zip(oldest..) {
                if dropped.kept > 0 {
                    forgotten.push(number);
                }
            }
            // What is left below it is one epoch at most.
            for lower in &mut self.epochs[..at.min(1)] {
                if let SendingHalf::Open(Half { index, .. }) = lower.sending {
                    lower.sending = SendingHalf::Closed { index };
                }
            }
        }
        Ok(Sent {
            index,
            key,
            forgotten,
        })
    }

    /// Whether [`receive`](Self::receive) would find the key or say [`Received::Kept`]; takes no hashing.
    pub(crate) fn check(&self, epoch: u64, index: u32) -> Result<(), ChainError> {
        let epoch = &self.epochs[self.position(epoch)?];
        let counter = epoch.receiving.index;
        if index == 0 || index == counter {
            return Err(ChainError::AlreadyUsed);
        }
        if index > counter {
            return if index - counter > MAX_FORWARD_JUMP {
                Err(ChainError::TooFarAhead)
            } else {
                Ok(())
            };
        }
        if counter - index > MAX_SKIPPED_KEYS_PER_CHAIN {
            Err(ChainError::TooOld)
        } else if epoch.kept == 0 {
            Err(ChainError::AlreadyUsed)
        } else {
            Ok(())
        }
    }

    /// Whether it is a chain [`send`](Self::send) and [`add_epoch`](Self::add_epoch) can have made.
    pub(crate) fn is_consistent(&self) -> bool {
        let at = self.position(self.send_epoch);
        let open = |epoch: &Epoch| epoch.sending.open().is_some();
        self.current_epoch <= MAX_EPOCH
            && self.epochs.len() <= MAX_EPOCHS
            && u64::try_from(self.epochs.len()).is_ok_and(|count| count <= self.current_epoch + 1)
            && at.is_ok_and(|at| at <= 1 && self.epochs.iter().skip(at).all(open))
    }

    /// How many steps ahead of its chain a key is, 0 if it is not ahead.
    pub(crate) fn jump(&self, epoch: u64, index: u32) -> u32 {
        self.position(epoch).map_or(0, |at| {
            index.saturating_sub(self.epochs[at].receiving.index)
        })
    }

    /// The key of a received message. Nothing changes until [`commit`](Self::commit).
    pub(crate) fn receive(&self, epoch: u64, index: u32) -> Result<Received, ChainError> {
        self.check(epoch, index)?;
        let half = &self.epochs[self.position(epoch)?].receiving;
        if index < half.index {
            return Ok(Received::Kept { epoch, index });
        }
        let walk = Walk::new();
        let first_kept = index.saturating_sub(MAX_SKIPPED_KEYS_PER_CHAIN);
        let mut half = half.clone();
        while half.index + 1 < first_kept {
            half = walk.pass_over(&half).ok_or(ChainError::Exhausted)?;
        }
        let mut skipped = Vec::new();
        loop {
            let (key, after) = walk.step(&half).ok_or(ChainError::Exhausted)?;
            if after.index == index {
                return Ok(Received::Forward {
                    epoch,
                    key,
                    after,
                    skipped,
                });
            }
            skipped.push((after.index, key));
            half = after;
        }
    }

    /// Takes over what [`receive`](Self::receive) found on this same chain, once the message proved
    /// authentic.
    pub(crate) fn commit(&mut self, received: Received) -> Committed {
        let mut committed = Committed::default();
        match received {
            Received::Kept { epoch, index } => {
                if let Ok(at) = self.position(epoch) {
                    let kept = &mut self.epochs[at].kept;
                    *kept = kept.saturating_sub(1);
                    committed.removed = Some((epoch, index));
                }
            }
            Received::Forward {
                epoch,
                key: _,
                after,
                skipped,
            } => {
                if let Ok(at) = self.position(epoch) {
                    let chains = &mut self.epochs[at];
                    chains.receiving = after;
                    for (index, key) in skipped {
                        chains.kept += 1;
                        committed.added.push((epoch, index, key));
                    }
                    let evicted = chains.kept.saturating_sub(MAX_SKIPPED_KEYS_PER_CHAIN);
                    if evicted > 0 {
                        chains.kept -= evicted;
                        committed.evicted = Some((epoch, chains.kept));
                    }
                }
            }
        }
        committed
    }

    /// The number of the first one of `epochs`.
    pub(crate) fn oldest(&self) -> u64 {
        let before = self.epochs.len().saturating_sub(1) as u64;
        self.current_epoch.saturating_sub(before)
    }

    fn position(&self, epoch: u64) -> Result<usize, ChainError> {
        epoch
            .checked_sub(self.oldest())
            .and_then(|at| usize::try_from(at).ok())
            .filter(|&at| at < self.epochs.len())
            .ok_or(ChainError::UnknownEpoch)
    }
}

/// `HKDF(salt, input, label, 96)` → root ‖ A→B chain ‖ B→A chain.
fn derive(
    salt: Option<&[u8; 32]>,
    input: &[u8; 32],
    label: &[u8],
    side: Side,
) -> (SecretBytes, Epoch) {
    let mut output = Zeroizing::new([0; 96]);
    hkdf(salt, input, label, &mut output);
    let part = |at: usize| SecretBytes::filled_by(|key| key.copy_from_slice(&output[at..at + 32]));
    let half = |at: usize| Half {
        key: part(at),
        index: 0,
    };
    let (sending, receiving) = match side {
        Side::Initiator => (half(32), half(64)),
        Side::Responder => (half(64), half(32)),
    };
    let epoch = Epoch {
        sending: SendingHalf::Open(sending),
        receiving,
        kept: 0,
    };
    (part(0), epoch)
}

/// Steps along a chain: `HKDF(0³², chain key, BE32(index) ‖ "Signal PQ Ratchet V1 Chain Next", 64)` → next
/// chain key ‖ key.
struct Walk {
    /// HMAC keyed with the salt, the same in every step.
    salted: HmacSha256,
}

impl Walk {
    fn new() -> Self {
        Self {
            salted: hmac(&[0; 32]),
        }
    }

    /// The next key and the chain behind it; `None` at the end of the 32-bit counter.
    fn step(&self, half: &Half) -> Option<(SecretBytes, Half)> {
        let (expand, after) = self.first_block(half)?;
        let mut second = expand;
        second.update(after.key.as_bytes());
        second.update(&after.index.to_be_bytes());
        second.update(NEXT_LABEL);
        second.update(&[2]);
        Some((finish(second), after))
    }

    /// The chain one key further, when that key is not wanted.
    fn pass_over(&self, half: &Half) -> Option<Half> {
        Some(self.first_block(half)?.1)
    }

    fn first_block(&self, half: &Half) -> Option<(HmacSha256, Half)> {
        let index = half.index.checked_add(1)?;
        let mut extract = self.salted.clone();
        extract.update(half.key.as_bytes());
        let mut pseudorandom = Zeroizing::new([0; 32]);
        extract.finalize_into((&mut *pseudorandom).into());
        let expand = hmac(&pseudorandom);
        let mut first = expand.clone();
        first.update(&index.to_be_bytes());
        first.update(NEXT_LABEL);
        first.update(&[1]);
        let after = Half {
            key: finish(first),
            index,
        };
        Some((expand, after))
    }
}

fn finish(mac: HmacSha256) -> SecretBytes {
    SecretBytes::filled_by(|bytes| mac.finalize_into(bytes.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const MOST_SKIPPED: u32 = MAX_SKIPPED_KEYS_PER_CHAIN;

    fn pair() -> (KeyChain, KeyChain) {
        (
            KeyChain::start(&[1; 32], Side::Initiator),
            KeyChain::start(&[1; 32], Side::Responder),
        )
    }

    fn epoch_key(epoch: u64) -> SecretBytes {
        SecretBytes::copy_of(&[u8::try_from(epoch).unwrap(); 32])
    }

    /// A chain together with what a store keeps beside it.
    struct Kept {
        chain: KeyChain,
        keys: BTreeMap<(u64, u32), SecretBytes>,
    }

    impl Kept {
        fn take(&mut self, epoch: u64, index: u32) -> Result<SecretBytes, ChainError> {
            assert_eq!(
                self.chain.check(epoch, index).err(),
                self.chain.receive(epoch, index).err()
            );
            let received = self.chain.receive(epoch, index)?;
            let key = match &received {
                Received::Kept { epoch, index } => self
                    .keys
                    .get(&(*epoch, *index))
                    .ok_or(ChainError::AlreadyUsed)?
                    .clone(),
                Received::Forward { key, .. } => key.clone(),
            };
            let committed = self.chain.commit(received);
            for (epoch, index, key) in committed.added {
                assert!(self.keys.insert((epoch, index), key).is_none());
            }
            if let Some(position) = committed.removed {
                assert!(self.keys.remove(&position).is_some());
            }
            if let Some((epoch, kept)) = committed.evicted {
                let of_epoch = self.keys.range((epoch, 0)..(epoch + 1, 0));
                let lowest: Vec<_> = of_epoch
                    .rev()
                    .skip(kept as usize)
                    .map(|(at, _)| *at)
                    .collect();
                assert!(!lowest.is_empty());
                for at in lowest {
                    self.keys.remove(&at);
                }
            }
            for (number, epoch) in (self.chain.oldest()..).zip(&self.chain.epochs) {
                let kept = self.keys.range((number, 0)..(number + 1, 0)).count();
                assert_eq!(u32::try_from(kept).unwrap(), epoch.kept);
            }
            Ok(key)
        }
    }

    #[test]
    fn keys_arrive_in_any_order_and_once_each() {
        let (mut ours, theirs) = pair();
        let mut theirs = Kept {
            chain: theirs,
            keys: BTreeMap::new(),
        };
        let sent: Vec<Sent> = (0..6).map(|_| ours.send(0).unwrap()).collect();
        assert_eq!(sent[5].index, 6);
        for index in [3, 1, 6, 2, 5, 4] {
            let key = theirs.take(0, index).unwrap();
            assert_eq!(key, sent[usize::try_from(index).unwrap() - 1].key);
            assert_eq!(theirs.take(0, index), Err(ChainError::AlreadyUsed));
        }
        assert!(theirs.keys.is_empty());
        assert_eq!(theirs.take(0, 0), Err(ChainError::AlreadyUsed));
    }

    #[test]
    fn the_directions_of_a_chain_are_apart() {
        let (mut ours, mut theirs) = pair();
        let (a2b, b2a) = (ours.send(0).unwrap(), theirs.send(0).unwrap());
        assert_ne!(a2b.key, b2a.key);
        let Ok(Received::Forward { key, .. }) = theirs.receive(0, 1) else {
            panic!()
        };
        assert_eq!(key, a2b.key);
        let Ok(Received::Forward { key, .. }) = ours.receive(0, 1) else {
            panic!()
        };
        assert_eq!(key, b2a.key);
    }

    #[test]
    fn receiving_alone_changes_nothing_and_costs_no_key() {
        let (mut ours, theirs) = pair();
        ours.send(0).unwrap();
        let second = ours.send(0).unwrap();
        let before = theirs.clone();
        assert_eq!(theirs.receive(0, 2), theirs.receive(0, 2));
        assert_eq!(theirs, before);
        let Ok(Received::Forward { key, skipped, .. }) = theirs.receive(0, 2) else {
            panic!()
        };
        assert_eq!(key, second.key);
        assert_eq!(skipped.len(), 1);
    }

    #[test]
    fn a_jump_is_bounded_and_keeps_only_what_may_still_be_asked_for() {
        let (_, theirs) = pair();
        let furthest = MAX_FORWARD_JUMP;
        assert_eq!(
            theirs.receive(0, furthest + 1),
            Err(ChainError::TooFarAhead)
        );
        assert_eq!(theirs.receive(0, u32::MAX), Err(ChainError::TooFarAhead));
        let mut theirs = Kept {
            chain: theirs,
            keys: BTreeMap::new(),
        };
        let mut steps = KeyChain::start(&[1; 32], Side::Initiator);
        let sent: Vec<Sent> = (0..furthest).map(|_| steps.send(0).unwrap()).collect();
        let sent = |index: u32| sent[usize::try_from(index).unwrap() - 1].key.clone();

        assert_eq!(theirs.take(0, furthest), Ok(sent(furthest)));
        let indices: Vec<u32> = theirs.keys.keys().map(|(_, index)| *index).collect();
        let oldest = furthest - MOST_SKIPPED;
        assert!(indices.into_iter().eq(oldest..furthest));
        assert_eq!(theirs.take(0, oldest - 1), Err(ChainError::TooOld));
        assert_eq!(theirs.take(0, oldest), Ok(sent(oldest)));
        assert_eq!(theirs.take(0, oldest), Err(ChainError::AlreadyUsed));
        assert_eq!(theirs.take(0, furthest - 1), Ok(sent(furthest - 1)));
    }

    #[test]
    fn what_a_jump_passes_over_is_computed_only_as_far_as_it_is_kept() {
        let (_, mut theirs) = pair();
        let received = theirs.receive(0, MOST_SKIPPED + 1_000).unwrap();
        let Received::Forward { skipped, .. } = &received else {
            panic!("it is ahead");
        };
        let indices = skipped.iter().map(|(index, _)| *index);
        assert!(indices.eq(1_000..MOST_SKIPPED + 1_000));
        let committed = theirs.commit(received);
        assert_eq!(committed.added.len(), MOST_SKIPPED as usize);
        assert_eq!(committed.evicted, None);
    }

    #[test]
    fn how_far_a_key_is_ahead_is_known_without_hashing() {
        let (_, mut theirs) = pair();
        let received = theirs.receive(0, 10).unwrap();
        theirs.commit(received);
        assert_eq!(theirs.jump(0, 17), 7);
        assert_eq!(theirs.jump(0, 10), 0);
        assert_eq!(theirs.jump(0, 3), 0);
        assert_eq!(theirs.jump(1, 17), 0);
    }

    #[test]
    fn only_what_sending_and_adding_can_have_made_is_consistent() {
        let (mut chain, _) = pair();
        assert!(chain.is_consistent());
        for epoch in 1..4 {
            // The secret of an epoch is made by messages that have keys of the one before.
            chain.send(epoch - 1).unwrap();
            assert!(chain.is_consistent());
            chain.add_epoch(epoch, &epoch_key(epoch)).unwrap();
            assert!(chain.is_consistent());
        }
        let with = |change: &dyn Fn(&mut KeyChain)| {
            let mut changed = chain.clone();
            change(&mut changed);
            changed.is_consistent()
        };
        assert!(!with(&|chain| chain.current_epoch = u64::MAX));
        assert!(!with(&|chain| chain.current_epoch = 0));
        assert!(!with(&|chain| chain.send_epoch = 3));
        assert!(!with(&|chain| chain.send_epoch = 0));
        assert!(!with(&|chain| chain.epochs.clear()));
        assert!(!with(&|chain| chain
            .epochs
            .insert(0, chain.epochs[0].clone())));
        assert!(!with(
            &|chain| chain.epochs[1].sending = SendingHalf::Closed { index: 1 }
        ));
        // Far from the end of the numbers, and so close that one more would be too many.
        let far = |epoch: u64| {
            with(&|chain| {
                chain.current_epoch = epoch;
                chain.send_epoch = epoch - 1;
            })
        };
        assert!(far(1 << 40));
        assert!(far(MAX_EPOCH));
        assert!(!far(MAX_EPOCH + 1));
    }

    #[test]
    fn an_epoch_keeps_2000_keys_and_the_lowest_go_first() {
        let (_, theirs) = pair();
        let mut theirs = Kept {
            chain: theirs,
            keys: BTreeMap::new(),
        };
        theirs.take(0, 1_501).unwrap();
        assert_eq!(theirs.keys.len(), 1_500);
        theirs.take(0, 2_502).unwrap();
        assert_eq!(theirs.keys.len(), 2_000);
        assert_eq!(theirs.chain.epochs[0].kept, 2_000);
        assert_eq!(*theirs.keys.first_key_value().unwrap().0, (0, 501));
        // Evicted though not too old: to the chain it looks as if it were used.
        assert!(theirs.chain.check(0, 502).is_ok());
        assert_eq!(theirs.take(0, 501), Err(ChainError::TooOld));
    }

    #[test]
    fn epochs_are_added_strictly_in_order() {
        let (mut chain, _) = pair();
        for wrong in [0, 2, u64::MAX] {
            assert_eq!(
                chain.add_epoch(wrong, &epoch_key(9)),
                Err(ChainError::NotNext)
            );
        }
        assert_eq!(chain, pair().0);
        chain.add_epoch(1, &epoch_key(1)).unwrap();
        assert_eq!(chain.add_epoch(1, &epoch_key(1)), Err(ChainError::NotNext));
        chain.add_epoch(2, &epoch_key(2)).unwrap();
        assert_eq!((chain.oldest(), chain.current_epoch), (0, 2));
    }

    #[test]
    fn every_epoch_has_its_own_keys() {
        let (mut ours, mut theirs) = pair();
        let mut seen = Vec::new();
        for epoch in 0..4 {
            if epoch > 0 {
                ours.add_epoch(epoch, &epoch_key(epoch)).unwrap();
                theirs.add_epoch(epoch, &epoch_key(epoch)).unwrap();
            }
            let sent = ours.send(epoch).unwrap();
            let Ok(Received::Forward { key, .. }) = theirs.receive(epoch, 1) else {
                panic!()
            };
            assert_eq!(key, sent.key);
            assert!(!seen.contains(&key));
            seen.push(key);
        }
    }

    #[test]
    fn sending_in_a_later_epoch_forgets_the_ones_before_the_last() {
        let (_, mut chain) = pair();
        for epoch in 1..=4 {
            chain.add_epoch(epoch, &epoch_key(epoch)).unwrap();
        }
        for (epoch, index) in [(0, 3), (1, 1), (2, 2), (3, 5)] {
            let received = chain.receive(epoch, index).unwrap();
            chain.commit(received);
        }
        assert!(chain.send(0).unwrap().forgotten.is_empty());
        assert!(chain.send(1).unwrap().forgotten.is_empty());
        assert_eq!((chain.oldest(), chain.epochs.len()), (0, 5));
        assert_eq!(chain.epochs[0].sending.open(), None);

        let sent = chain.send(4).unwrap();
        // Epoch 1 had no keys kept, and 3 is still there.
        assert_eq!(sent.forgotten, [0, 2]);
        assert_eq!((chain.oldest(), chain.epochs.len()), (3, 2));
        assert_eq!(chain.epochs[0].sending.open(), None);
        assert!(chain.epochs[1].sending.open().is_some());
        for gone in [0, 1, 2] {
            assert_eq!(chain.check(gone, 1), Err(ChainError::UnknownEpoch));
            assert_eq!(chain.receive(gone, 1), Err(ChainError::UnknownEpoch));
        }
        assert!(chain.receive(3, 4).is_ok());
        assert!(chain.receive(3, 6).is_ok());
        for lower in [0, 3] {
            assert_eq!(chain.send(lower), Err(ChainError::UnknownEpoch));
        }
        assert_eq!(chain.send(4).unwrap().index, 2);
    }

    #[test]
    fn an_unknown_epoch_has_no_keys() {
        let (mut chain, _) = pair();
        let before = chain.clone();
        for epoch in [1, u64::MAX] {
            assert_eq!(chain.send(epoch), Err(ChainError::UnknownEpoch));
            assert_eq!(chain.check(epoch, 1), Err(ChainError::UnknownEpoch));
            assert_eq!(chain.receive(epoch, 1), Err(ChainError::UnknownEpoch));
        }
        assert_eq!(chain, before);
    }

    #[test]
    fn the_counters_end_without_wrapping() {
        let (mut chain, _) = pair();
        chain.add_epoch(1, &epoch_key(1)).unwrap();
        let SendingHalf::Open(half) = &mut chain.epochs[1].sending else {
            panic!("the newest epoch is open");
        };
        half.index = u32::MAX;
        chain.epochs[1].receiving.index = u32::MAX - 1;
        let before = chain.clone();
        assert_eq!(chain.send(1), Err(ChainError::Exhausted));
        assert_eq!(chain, before);

        assert!(matches!(
            chain.receive(1, u32::MAX),
            Ok(Received::Forward {
                after: Half {
                    index: u32::MAX,
                    ..
                },
                ..
            })
        ));
        chain.epochs[1].receiving.index = u32::MAX;
        assert_eq!(chain.receive(1, u32::MAX), Err(ChainError::AlreadyUsed));
        assert_eq!(
            chain.receive(1, u32::MAX - MOST_SKIPPED - 1),
            Err(ChainError::TooOld)
        );

        chain.current_epoch = u64::MAX;
        assert_eq!(chain.add_epoch(0, &epoch_key(0)), Err(ChainError::NotNext));
    }

    #[test]
    fn debug_shows_no_key() {
        let (chain, _) = pair();
        let shown = format!("{chain:?} {:?}", chain.receive(0, 3));
        let root = chain.root.as_bytes();
        assert!(shown.contains("key: [secret]") && shown.contains("root: [secret]"));
        assert!(
            !shown.contains(&format!("{}, {}", root[0], root[1])),
            "{shown}"
        );
    }
}
