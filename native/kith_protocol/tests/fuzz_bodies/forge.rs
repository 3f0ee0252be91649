//! Messages made from the secrets of the session they are for: what a peer that holds its keys and ignores the
//! protocol can send, and what an arbitrary stored state has to survive.
//!
//! The key schedule is written here a second time, apart from the library, and the secrets are read out of the
//! stored form.

use aes::Aes256;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use kith_protocol::{PrivateKey, Session, Version};
use sha2::Sha256;

/// A chain the session receives on.
pub(crate) struct Chain {
    pub(crate) ratchet_key: [u8; 32],
    pub(crate) key: [u8; 32],
    pub(crate) index: u32,
    pub(crate) skipped: u32,
}

/// A chain of the post-quantum ratchet the session receives on.
pub(crate) struct Epoch {
    pub(crate) number: u64,
    pub(crate) key: [u8; 32],
    pub(crate) index: u32,
    pub(crate) kept: u32,
}

/// What a session knows.
pub(crate) struct Known {
    version: Version,
    /// Who sends to this session, and who it belongs to.
    sender: [u8; 32],
    receiver: [u8; 32],
    root_key: [u8; 32],
    ratchet_private: [u8; 32],
    pub(crate) chains: Vec<Chain>,
    /// Oldest first; none in version 3.
    pub(crate) epochs: Vec<Epoch>,
}

/// The chain of a forged message.
#[derive(Clone, Copy)]
pub(crate) enum On {
    /// One the session has, by its place.
    Chain(usize),
    /// One that begins with this private ratchet key.
    New(u8),
}

/// A forged message.
pub(crate) struct Forged<'a> {
    pub(crate) on: On,
    /// How many messages of the chain it skips.
    pub(crate) ahead: u32,
    pub(crate) plaintext: &'a [u8],
    /// Field 5, if it has one.
    pub(crate) post_quantum: Option<&'a [u8]>,
    /// Where the key of the post-quantum ratchet is taken from, if one is mixed: epoch of the chain, index.
    pub(crate) position: Option<(u64, u32)>,
    /// Field 6.
    pub(crate) addresses: Option<&'a [u8]>,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_first_chunk().expect("a stored session");
        self.0 = rest;
        *taken
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }
}

impl Known {
    /// Reads the stored form (docs/state-format.md).
    pub(crate) fn of(session: &Session) -> Self {
        let state = session.state_bytes();
        let mut state = Reader(&state);
        let [_, _, flags] = state.take();
        let _: [u8; 16] = state.take();
        let braid = session.braid_bytes();
        let facts = |skip: usize, reader: &mut Reader<'_>| {
            reader.0 = &reader.0[skip..];
            let (local, remote): ([u8; 32], [u8; 32]) = (reader.take(), reader.take());
            let _: [u8; 40] = reader.take();
            (local, remote)
        };
        let (receiver, sender) = match &braid {
            None => facts(0, &mut state),
            Some(braid) => facts(21, &mut Reader(braid)),
        };
        let root_key = state.take();
        let _: [u8; 32] = state.take();
        let ratchet_private = state.take();
        let _: [u8; 40] = state.take();
        match flags {
            0 => {}
            1 => drop::<[u8; 12]>(state.take()),
            _ => drop::<[u8; 16]>(state.take()),
        }
        let [count] = state.take();
        let chains = (0..count)
            .map(|_| Chain {
                ratchet_key: state.take(),
                key: state.take(),
                index: state.number(),
                skipped: state.number(),
            })
            .collect();
        let mut epochs = Vec::new();
        if braid.is_some() {
            let _: [u8; 12] = state.take();
            let current = u64::from_be_bytes(state.take());
            let [count] = state.take();
            for at in 0..u64::from(count) {
                match state.take() {
                    [0] => drop::<[u8; 4]>(state.take()),
                    _ => drop::<[u8; 36]>(state.take()),
                }
                epochs.push(Epoch {
                    number: current - (u64::from(count) - 1 - at),
                    index: state.number(),
                    key: state.take(),
                    kept: u16::from_be_bytes(state.take()).into(),
                });
            }
        }
        Self {
            version: session.version(),
            sender,
            receiver,
            root_key,
            ratchet_private,
            chains,
            epochs,
        }
    }

    /// The bytes of a SignalMessage. A key that is not known is replaced by zeros, and the message will not
    /// authenticate.
    pub(crate) fn forge(&self, forged: &Forged<'_>) -> Vec<u8> {
        let (ratchet_key, mut key, index) = match forged.on {
            On::Chain(at) if !self.chains.is_empty() => {
                let chain = &self.chains[at % self.chains.len()];
                (chain.ratchet_key, chain.key, chain.index)
            }
            On::Chain(_) => self.new_chain(0),
            On::New(number) => self.new_chain(number),
        };
        // What is further ahead is refused whatever its key.
        for _ in 0..forged.ahead % 25_001 {
            key = hmac(&key, &[&[2]]);
        }
        let seed = hmac(&key, &[&[1]]);
        let salt = forged
            .position
            .map(|(epoch, index)| self.post_quantum_key(epoch, index));
        let mut keys = [0; 80];
        hkdf(salt.as_ref(), &seed, b"WhisperMessageKeys", &mut keys);
        let cipher_key: [u8; 32] = part(&keys, 0);
        let mac_key: [u8; 32] = part(&keys, 32);
        let iv: [u8; 16] = part(&keys, 64);
        let ciphertext = cbc::Encryptor::<Aes256>::new(&cipher_key.into(), &iv.into())
            .encrypt_padded_vec::<Pkcs7>(forged.plaintext);

        let mut bytes = vec![self.version.byte()];
        put_bytes(&mut bytes, 1, &typed(&ratchet_key));
        put_number(&mut bytes, 2, index.saturating_add(forged.ahead).into());
        put_number(&mut bytes, 3, 0);
        put_bytes(&mut bytes, 4, &ciphertext);
        if let Some(field) = forged.post_quantum {
            put_bytes(&mut bytes, 5, field);
        }
        if let Some(addresses) = forged.addresses {
            put_bytes(&mut bytes, 6, addresses);
        }
        let mac = hmac(
            &mac_key,
            &[&typed(&self.sender), &typed(&self.receiver), &bytes],
        );
        bytes.extend_from_slice(&mac[..8]);
        bytes
    }

    fn new_chain(&self, number: u8) -> ([u8; 32], [u8; 32], u32) {
        let private = PrivateKey::from_bytes(&[number; 32]);
        let public = *private.public_key().u();
        let shared = x25519_dalek::x25519(self.ratchet_private, public);
        let mut output = [0; 64];
        hkdf(
            Some(&self.root_key),
            &shared,
            b"WhisperRatchet",
            &mut output,
        );
        (public, part(&output, 32), 0)
    }

    fn post_quantum_key(&self, epoch: u64, index: u32) -> [u8; 32] {
        let Some(epoch) = self.epochs.iter().find(|it| it.number == epoch) else {
            return [0; 32];
        };
        let (mut key, mut output) = (epoch.key, [0; 64]);
        if index.saturating_sub(epoch.index) > 25_000 {
            return [0; 32];
        }
        for index in epoch.index..index {
            let mut info = index.wrapping_add(1).to_be_bytes().to_vec();
            info.extend_from_slice(b"Signal PQ Ratchet V1 Chain Next");
            hkdf(None, &key, &info, &mut output);
            key = part(&output, 0);
        }
        part(&output, 32)
    }
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn hkdf(salt: Option<&[u8; 32]>, input: &[u8], info: &[u8], output: &mut [u8]) {
    Hkdf::<Sha256>::new(salt.map(<[u8; 32]>::as_slice), input)
        .expand(info, output)
        .expect("a short output");
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("within the output")
}

fn typed(key: &[u8; 32]) -> [u8; 33] {
    let mut out = [5; 33];
    out[1..].copy_from_slice(key);
    out
}

/// LEB128, of protobuf and of the post-quantum ratchet.
pub(crate) fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn put_number(out: &mut Vec<u8>, field: u8, number: u64) {
    out.push(field << 3);
    varint(out, number);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
