//! A device of the official client as a party of the simulated network.

use super::network::{Party, Reason, address};
use super::peer::{Bundle, BundleOptions, Message, Peer, PeerError, PeerParty, Release};

/// A device of the official client.
pub(crate) struct OfficialParty {
    device: PeerParty,
    options: BundleOptions,
    compares: bool,
    release: Release,
}

impl OfficialParty {
    /// A new device at the address of party `index`, which publishes bundles of the given kind.
    pub(crate) fn new(peer: &Peer, index: usize, options: BundleOptions) -> Self {
        Self {
            device: peer.create_identity(&address(index)),
            options,
            compares: true,
            release: peer.release(),
        }
    }

    /// The same, without a look at its whole state around every message: for tests that are about the other side.
    pub(crate) fn without_comparison(mut self) -> Self {
        self.compares = false;
        self
    }
}

impl Party for OfficialParty {
    fn bundle(&mut self) -> Bundle {
        self.device.publish_bundle(self.options)
    }

    fn start_session(&mut self, with: usize, bundle: &Bundle) -> Result<(), Reason> {
        self.device
            .process_bundle(&address(with), bundle, None)
            .map(|_| ())
            .map_err(|error| reason(&error))
    }

    fn send(&mut self, to: usize, plaintext: &[u8]) -> Result<Message, Reason> {
        self.device
            .encrypt(&address(to), plaintext, None)
            .map_err(|error| reason(&error))
    }

    fn receive(&mut self, from: usize, message: &Message) -> Result<Vec<u8>, Reason> {
        self.device
            .decrypt(&address(from), message)
            .map_err(|error| reason(&error))
    }

    fn restart(&mut self) {
        let snapshot = self.device.snapshot();
        self.device.forget();
        self.device.restore(&snapshot);
    }

    fn stored(&mut self) -> Option<Vec<u8>> {
        self.compares.then(|| self.device.snapshot().to_bytes())
    }

    /// 0.60 remembers the identity a prekey message names even if the message turns out to be forged.
    fn survives_damaged_outer_fields(&self) -> bool {
        self.release != Release::V0_60
    }
}

/// The reason closest to an error of the official client.
fn reason(error: &PeerError) -> Reason {
    match error.kind.as_str() {
        "duplicate_message" | "reused_base_key" => Reason::Duplicate,
        "invalid_message" | "invalid_signature" => Reason::Tampered,
        "session_not_found" => Reason::SessionNotFound,
        "untrusted_identity" => Reason::UntrustedIdentity,
        "prekey_not_found" => Reason::UnknownPreKey,
        "malformed" | "invalid_key" => Reason::Malformed,
        "legacy_version" | "unknown_version" | "x3dh_unsupported" => Reason::UnsupportedVersion,
        _ => Reason::Other(error.to_string()),
    }
}
