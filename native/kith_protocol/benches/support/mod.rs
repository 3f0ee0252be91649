//! Two people and what lies between them, for both benchmarks.

#![allow(
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a broken fixture ends the benchmark, and each benchmark uses a part of this module"
)]

use kith_protocol::{
    Ciphertext, Decrypted, IdentityKey, IdentityKeyPair, KeyPair, KyberKeyPair, KyberPreKey,
    KyberPreKeyPublic, LocalDevice, MemoryEntries, PreKey, PreKeyBundle, PreKeyId,
    PreKeySignalMessage, PreKeys, ProtocolAddress, PublicKey, RemoteDevice, SessionRecord,
    SignalMessage, SignedPreKey, SignedPreKeyPublic, TrustOnFirstUse, Version,
};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

/// The length of every plaintext.
pub(crate) const PLAINTEXT: [u8; 256] = [0x61; 256];

/// When everything happens, in seconds since 1970.
pub(crate) const NOW: u64 = 1_790_000_000;

/// The generator of the native library: ChaCha with twelve rounds.
pub(crate) fn random() -> ChaCha12Rng {
    ChaCha12Rng::seed_from_u64(1)
}

/// A device with its prekeys.
pub(crate) struct Person {
    pub(crate) address: ProtocolAddress,
    pub(crate) identity: IdentityKeyPair,
    signed_prekey: SignedPreKey,
    prekey: PreKey,
    kyber_prekey: KyberPreKey,
}

impl PreKeys for Person {
    fn prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        (id == self.prekey.id).then(|| self.prekey.key_pair.clone())
    }

    fn signed_prekey(&self, id: PreKeyId) -> Option<KeyPair> {
        (id == self.signed_prekey.id).then(|| self.signed_prekey.key_pair.clone())
    }

    fn kyber_prekey(&self, id: PreKeyId) -> Option<KyberKeyPair> {
        (id == self.kyber_prekey.id).then(|| self.kyber_prekey.key_pair.clone())
    }

    fn is_base_key_used(&self, _signed_prekey_id: PreKeyId, _base_key: &PublicKey) -> bool {
        false
    }
}

impl Person {
    pub(crate) fn new(name: &str, rng: &mut ChaCha12Rng) -> Self {
        let identity = IdentityKeyPair::generate(rng);
        Self {
            address: ProtocolAddress::new(name, 1).expect("1 is a device id"),
            signed_prekey: SignedPreKey::generate(1, &identity, rng),
            prekey: PreKey::generate(1, rng),
            kyber_prekey: KyberPreKey::generate(1, &identity, rng),
            identity,
        }
    }

    pub(crate) fn bundle(&self) -> PreKeyBundle {
        PreKeyBundle {
            registration_id: 1,
            identity_key: self.identity.identity_key(),
            signed_prekey: SignedPreKeyPublic {
                id: self.signed_prekey.id,
                public_key: *self.signed_prekey.key_pair.public_key(),
                signature: self.signed_prekey.signature.to_vec(),
            },
            prekey: Some((self.prekey.id, *self.prekey.key_pair.public_key())),
            kyber_prekey: Some(KyberPreKeyPublic {
                id: self.kyber_prekey.id,
                public_key: self.kyber_prekey.key_pair.public_key().clone(),
                signature: self.kyber_prekey.signature.to_vec(),
            }),
        }
    }

    /// The same for a session of version 3.
    pub(crate) fn bundle_v3(&self) -> PreKeyBundle {
        PreKeyBundle {
            kyber_prekey: None,
            ..self.bundle()
        }
    }

    pub(crate) fn device(&self) -> LocalDevice<'_> {
        LocalDevice {
            address: &self.address,
            identity: &self.identity,
            registration_id: 1,
        }
    }

    pub(crate) fn identity_key(&self) -> IdentityKey {
        self.identity.identity_key()
    }

    /// Starts a session from a bundle.
    pub(crate) fn initiate(
        &self,
        record: &mut SessionRecord,
        bundle: &PreKeyBundle,
        rng: &mut ChaCha12Rng,
    ) {
        let trust = TrustOnFirstUse(None);
        record
            .initiate(
                &self.device(),
                &remote(&self.address),
                bundle,
                &trust,
                NOW,
                rng,
            )
            .expect("the bundle is good");
    }

    /// From the bytes that arrived to the plaintext.
    pub(crate) fn decrypt(
        &self,
        record: &mut SessionRecord,
        from: &Self,
        message: &Ciphertext,
        entries: &MemoryEntries,
        rng: &mut ChaCha12Rng,
    ) -> Decrypted {
        let find = |session: &_, position: &_| entries.find(session, position);
        let remote = remote(&from.address);
        let trust = TrustOnFirstUse(Some(from.identity_key()));
        if message.is_prekey_message {
            let message = PreKeySignalMessage::from_bytes(&message.bytes).expect("a message");
            record.decrypt_prekey(&self.device(), &remote, &message, self, &find, &trust, rng)
        } else {
            let message = SignalMessage::from_bytes(&message.bytes).expect("a message");
            record.decrypt(&self.device(), &remote, &message, &find, &trust, rng)
        }
        .expect("the message opens")
    }
}

/// A peer of whom nothing is asked.
const fn remote(address: &ProtocolAddress) -> RemoteDevice<'_> {
    RemoteDevice {
        address,
        minimum_version: Version::V3,
    }
}

/// Encrypts [`PLAINTEXT`] from one person to another, whose identity key is remembered.
pub(crate) fn encrypt(
    record: &mut SessionRecord,
    from: &Person,
    to: &Person,
    rng: &mut ChaCha12Rng,
) -> Ciphertext {
    let trust = TrustOnFirstUse(Some(to.identity_key()));
    record
        .encrypt(
            &from.device(),
            &remote(&to.address),
            &PLAINTEXT,
            &trust,
            NOW,
            rng,
        )
        .expect("there is a session")
}

/// The records of two people who have heard from each other: the next message of either is one more
/// of a chain the other knows.
pub(crate) fn established(
    a: &Person,
    b: &Person,
    rng: &mut ChaCha12Rng,
) -> (SessionRecord, SessionRecord) {
    established_by(a, b, &b.bundle(), rng)
}

/// The same, from a bundle.
pub(crate) fn established_by(
    a: &Person,
    b: &Person,
    bundle: &PreKeyBundle,
    rng: &mut ChaCha12Rng,
) -> (SessionRecord, SessionRecord) {
    let none = MemoryEntries::default();
    let mut at_a = SessionRecord::default();
    let mut at_b = SessionRecord::default();
    a.initiate(&mut at_a, bundle, rng);
    let first = encrypt(&mut at_a, a, b, rng);
    b.decrypt(&mut at_b, a, &first, &none, rng);
    let answer = encrypt(&mut at_b, b, a, rng);
    a.decrypt(&mut at_a, b, &answer, &none, rng);
    let next = encrypt(&mut at_a, a, b, rng);
    b.decrypt(&mut at_b, a, &next, &none, rng);
    (at_a, at_b)
}
