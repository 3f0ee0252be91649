//! One device of this engine and one of the official client, for tests that go step by step.

use kith_protocol::{ProtocolAddress, Version};

use super::SeededRng;
use super::ours::{Device, Loading, from_peer, protocol_address, to_peer};
use super::peer::{BundleOptions, Message, Peer, PeerAddress, PeerParty, Release};

pub(crate) const OURS: &str = "9d0652a3-dcc3-4d11-975f-74d61598733f";
pub(crate) const THEIRS: &str = "796abedb-ca4e-4f18-8803-1fde5b921f9f";

/// A text and its message.
pub(crate) type Sent = (Vec<u8>, Message);

/// Two devices that know nothing of each other.
pub(crate) struct Pair {
    pub(crate) peer: Peer,
    pub(crate) ours: Device,
    pub(crate) theirs: PeerParty,
    pub(crate) at_ours: PeerAddress,
    pub(crate) at_theirs: PeerAddress,
    /// Their address, in the library's form.
    pub(crate) them: ProtocolAddress,
    pub(crate) sent: usize,
}

impl Pair {
    pub(crate) fn new(release: Release, seed: u64) -> Self {
        Self::named(release, seed, OURS, THEIRS)
    }

    /// Our device speaks the version that the release speaks with it: 3 with 0.60, 4 with 0.103.
    pub(crate) fn named(release: Release, seed: u64, our_name: &str, their_name: &str) -> Self {
        let peer = Peer::start(release);
        let (at_ours, at_theirs) = (
            PeerAddress::new(our_name, 1),
            PeerAddress::new(their_name, 1),
        );
        let version = match release {
            Release::V0_60 => Version::V3,
            Release::V0_103 => Version::V4,
        };
        let mut ours = Device::new(our_name, version, SeededRng::of_test(seed).fork());
        ours.loading = Loading::Mixed;
        Self {
            theirs: peer.create_identity(&at_theirs),
            peer,
            ours,
            them: protocol_address(&at_theirs),
            at_ours,
            at_theirs,
            sent: 0,
        }
    }

    pub(crate) fn we_start(&mut self, options: BundleOptions) {
        let bundle = self.theirs.publish_bundle(options);
        self.ours.initiate(&self.them, &from_peer(&bundle)).unwrap();
    }

    pub(crate) fn they_start(&mut self) {
        let bundle = to_peer(&self.at_ours, &self.ours.publish());
        self.theirs
            .process_bundle(&self.at_ours, &bundle, None)
            .unwrap();
    }

    pub(crate) fn text(&mut self) -> Vec<u8> {
        self.sent += 1;
        format!("message {}", self.sent).into_bytes()
    }

    pub(crate) fn we_encrypt(&mut self) -> Sent {
        let text = self.text();
        let message = self.ours.encrypt(&self.them, &text).unwrap();
        (text, message)
    }

    pub(crate) fn they_encrypt(&mut self) -> Sent {
        let text = self.text();
        let message = self.theirs.encrypt(&self.at_ours, &text, None).unwrap();
        (text, message)
    }

    pub(crate) fn they_open(&self, (text, message): &Sent) {
        assert_eq!(
            self.theirs.decrypt(&self.at_ours, message).as_ref(),
            Ok(text)
        );
    }

    pub(crate) fn we_open(&mut self, (text, message): &Sent) {
        let opened = self.ours.decrypt(&self.them, message);
        assert_eq!(
            opened.map(|decrypted| decrypted.plaintext).as_ref(),
            Ok(text)
        );
    }

    /// A message each way, `rounds` times.
    pub(crate) fn talk(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let message = self.we_encrypt();
            self.they_open(&message);
            let message = self.they_encrypt();
            self.we_open(&message);
        }
    }

    pub(crate) fn our_key(&self) -> Vec<u8> {
        self.ours.identity_key().to_bytes().to_vec()
    }
}

/// The identity key pair of a device in Signal's storage format.
pub(crate) fn identity_record(device: &Device) -> Vec<u8> {
    let mut record = vec![0x0a, 33];
    record.extend(device.identity_key().to_bytes());
    record.extend([0x12, 32]);
    record.extend(&device.store.identity);
    record
}

/// The private key of such a record.
pub(crate) fn private_of(record: &[u8]) -> Vec<u8> {
    assert_eq!((record.len(), record[35], record[36]), (69, 0x12, 32));
    record[37..].to_vec()
}
