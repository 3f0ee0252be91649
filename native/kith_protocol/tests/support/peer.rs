//! The official client as a live peer: a process of its own, driven by JSON-RPC, one object per line.
//!
//! Its commands are described in `test/interop/peer/README.md`. Its randomness is not seeded, so a seed reproduces
//! what a test asks of it, not the bytes of its keys.

use std::cell::RefCell;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{field, optional_field};

/// Longer than any command takes on a busy machine.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// A release of the official client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// 0.60.2: version 3 (X3DH), and version 4 without SPQR.
    V0_60,
    /// 0.103.0: version 4 (PQXDH with SPQR).
    V0_103,
}

impl Release {
    fn argument(self) -> &'static str {
        match self {
            Self::V0_60 => "0.60",
            Self::V0_103 => "0.103",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::V0_60 => "libsignal-client-0.60",
            Self::V0_103 => "@signalapp/libsignal-client",
        }
    }
}

/// An error reply. `kind` is stable and meant for assertions, `detail` is what the client logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerError {
    pub(crate) kind: String,
    pub(crate) detail: Option<String>,
    pub(crate) message: String,
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.kind, self.message)?;
        match &self.detail {
            Some(detail) => write!(f, "; {detail})"),
            None => write!(f, ")"),
        }
    }
}

/// The name and device of a party.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PeerAddress {
    pub(crate) name: String,
    pub(crate) device_id: u32,
}

impl PeerAddress {
    pub(crate) fn new(name: &str, device_id: u32) -> Self {
        Self {
            name: name.to_owned(),
            device_id,
        }
    }

    fn json(&self) -> Value {
        json!({"name": self.name, "device_id": self.device_id})
    }
}

/// A public prekey of a bundle. One-time prekeys of the curve have no signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicPreKey {
    pub(crate) id: u32,
    pub(crate) public: Vec<u8>,
    pub(crate) signature: Option<Vec<u8>>,
}

impl PublicPreKey {
    fn read(value: &Value) -> Option<Self> {
        value.is_object().then(|| Self {
            id: number(value, "id"),
            public: field(value, "public"),
            signature: optional_field(value, "signature"),
        })
    }

    fn json(&self) -> Value {
        let mut value = json!({"id": self.id, "public": hex::encode(&self.public)});
        if let Some(signature) = &self.signature {
            value["signature"] = json!(hex::encode(signature));
        }
        value
    }
}

/// What a device publishes for others to start a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    pub(crate) address: PeerAddress,
    pub(crate) registration_id: u32,
    pub(crate) identity_key: Vec<u8>,
    pub(crate) signed_prekey: PublicPreKey,
    pub(crate) prekey: Option<PublicPreKey>,
    pub(crate) kyber_prekey: Option<PublicPreKey>,
}

impl Bundle {
    /// Reads the shape that the peer and the vectors share; the vectors leave the name out.
    pub(crate) fn read(value: &Value) -> Self {
        Self {
            address: PeerAddress::new(
                value["name"].as_str().unwrap_or_default(),
                number(value, "device_id"),
            ),
            registration_id: number(value, "registration_id"),
            identity_key: field(value, "identity_key"),
            signed_prekey: PublicPreKey::read(&value["signed_prekey"]).expect("a signed prekey"),
            prekey: PublicPreKey::read(&value["prekey"]),
            kyber_prekey: PublicPreKey::read(&value["kyber_prekey"]),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.address.name,
            "device_id": self.address.device_id,
            "registration_id": self.registration_id,
            "identity_key": hex::encode(&self.identity_key),
            "signed_prekey": self.signed_prekey.json(),
            "prekey": self.prekey.as_ref().map(PublicPreKey::json),
            "kyber_prekey": self.kyber_prekey.as_ref().map(PublicPreKey::json),
        })
    }
}

/// Which keys a bundle carries. Ids count up unless given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BundleOptions {
    pub(crate) one_time: bool,
    pub(crate) kyber: bool,
    /// Whether the Kyber prekey is used once, or is one of last resort.
    pub(crate) kyber_one_time: bool,
    pub(crate) prekey_id: Option<u32>,
    pub(crate) signed_prekey_id: Option<u32>,
    pub(crate) kyber_prekey_id: Option<u32>,
}

impl BundleOptions {
    /// A bundle of version 3, with a one-time prekey.
    pub(crate) const X3DH: Self = Self {
        one_time: true,
        kyber: false,
        kyber_one_time: false,
        prekey_id: None,
        signed_prekey_id: None,
        kyber_prekey_id: None,
    };

    /// A bundle of version 3 after the one-time prekeys ran out.
    pub(crate) const X3DH_WITHOUT_ONE_TIME: Self = Self {
        one_time: false,
        ..Self::X3DH
    };

    /// A bundle of version 4, with one-time prekeys of both kinds.
    pub(crate) const PQXDH: Self = Self {
        kyber: true,
        kyber_one_time: true,
        ..Self::X3DH
    };

    /// A bundle of version 4 after the one-time prekeys ran out.
    pub(crate) const PQXDH_LAST_RESORT: Self = Self {
        one_time: false,
        kyber_one_time: false,
        ..Self::PQXDH
    };
}

/// The two types of messages between two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MessageType {
    PreKey,
    Ordinary,
}

impl MessageType {
    /// The number in the peer's replies and in the vectors.
    pub(crate) fn from_number(number: u64) -> Self {
        match number {
            2 => Self::Ordinary,
            3 => Self::PreKey,
            other => panic!("unknown message type {other}"),
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Ordinary => 2,
            Self::PreKey => 3,
        }
    }
}

/// An encrypted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: MessageType,
    pub(crate) body: Vec<u8>,
}

/// A description of a session; `raw` is all that the peer says.
#[derive(Clone, Debug)]
pub(crate) struct SessionInfo {
    pub(crate) exists: bool,
    pub(crate) usable: bool,
    pub(crate) current: Option<SessionStateInfo>,
    pub(crate) previous: Vec<SessionStateInfo>,
    pub(crate) raw: Value,
}

impl SessionInfo {
    fn read(value: &Value) -> Self {
        let state = |value: &Value| value.is_object().then(|| SessionStateInfo::read(value));
        Self {
            exists: value["exists"] == true,
            usable: value["usable"] == true,
            current: state(&value["current"]),
            previous: elements(&value["previous"])
                .iter()
                .filter_map(state)
                .collect(),
            raw: value.clone(),
        }
    }
}

/// One state of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionStateInfo {
    pub(crate) version: u32,
    pub(crate) base_key: Vec<u8>,
    pub(crate) local_identity: Vec<u8>,
    pub(crate) remote_identity: Vec<u8>,
    pub(crate) unacknowledged: bool,
    pub(crate) previous_counter: u32,
    pub(crate) sender_ratchet_key: Option<Vec<u8>>,
    pub(crate) sender_index: Option<u32>,
    pub(crate) receiver_chains: Vec<ReceiverChainInfo>,
    pub(crate) local_registration_id: u32,
    pub(crate) remote_registration_id: u32,
    /// The state and epoch of the post-quantum ratchet.
    pub(crate) spqr: Option<(String, u64)>,
}

impl SessionStateInfo {
    fn read(value: &Value) -> Self {
        Self {
            version: number(value, "version"),
            base_key: field(value, "alice_base_key"),
            local_identity: field(value, "local_identity"),
            remote_identity: field(value, "remote_identity"),
            unacknowledged: value["unacknowledged"] == true,
            previous_counter: number(value, "previous_counter"),
            sender_ratchet_key: optional_field(value, "sender_ratchet_key"),
            sender_index: value["sender_index"]
                .is_number()
                .then(|| number(value, "sender_index")),
            receiver_chains: elements(&value["receiver_chains"])
                .iter()
                .map(|chain| ReceiverChainInfo {
                    ratchet_key: field(chain, "ratchet_key"),
                    index: number(chain, "index"),
                    skipped: number(chain, "skipped"),
                })
                .collect(),
            local_registration_id: number(value, "local_registration_id"),
            remote_registration_id: number(value, "remote_registration_id"),
            spqr: value["spqr"]["state"].as_str().map(|state| {
                let epoch = value["spqr"]["epoch"].as_u64().expect("an epoch");
                (state.to_owned(), epoch)
            }),
        }
    }
}

/// One receiving chain of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceiverChainInfo {
    pub(crate) ratchet_key: Vec<u8>,
    pub(crate) index: u32,
    pub(crate) skipped: u32,
}

/// Which identities a party accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrustPolicy {
    TrustOnFirstUse,
    All,
    None,
}

/// A safety number: the digits, and the form that is scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(crate) digits: String,
    pub(crate) scannable: Vec<u8>,
}

/// Everything a party holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(Value);

impl Snapshot {
    /// The snapshot as bytes, for comparison.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }
}

struct Process {
    release: Release,
    child: Child,
    input: ChildStdin,
    replies: Receiver<String>,
    next_id: u64,
    next_party: u64,
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process ends by itself once its input closes; this only keeps a stuck one from outliving the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running peer process. Clones share it.
#[derive(Clone)]
pub(crate) struct Peer(Rc<RefCell<Process>>);

impl Peer {
    /// Starts a process. Fails the test in one line if Node or its packages are missing.
    pub(crate) fn start(release: Release) -> Self {
        Self::start_in(&peer_directory(), "node", release)
            .unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Starts a process of the given Node in the given directory, or says what to install.
    pub(crate) fn start_in(directory: &Path, node: &str, release: Release) -> Result<Self, String> {
        if !directory.join("peer.mjs").is_file() {
            return Err(format!(
                "no interop peer in {}: set KITH_PEER_DIR to the directory of peer.mjs",
                directory.display()
            ));
        }
        if !directory
            .join("node_modules")
            .join(release.package())
            .join("package.json")
            .is_file()
        {
            return Err(format!(
                "the official client is not installed: run `make test`, or `npm ci` in {}",
                directory.display()
            ));
        }
        let mut child = Command::new(node)
            .args(["peer.mjs", "--client", release.argument()])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                format!(
                    "Node does not start ({error}): run `make test`, or install Node 20 or newer"
                )
            })?;
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        // A thread reads, so that a silent peer fails the test instead of blocking it.
        let (lines, replies) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self(Rc::new(RefCell::new(Process {
            release,
            child,
            input,
            replies,
            next_id: 1,
            next_party: 1,
        }))))
    }

    /// Calls a method.
    pub(crate) fn call(&self, method: &str, params: Value) -> Result<Value, PeerError> {
        let mut process = self.0.borrow_mut();
        let id = process.next_id;
        process.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        writeln!(process.input, "{request}")
            .and_then(|()| process.input.flush())
            .unwrap_or_else(|error| panic!("the peer ended before {method}: {error}"));
        let line = match process.replies.recv_timeout(REPLY_TIMEOUT) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("the peer did not answer {method}"),
            Err(RecvTimeoutError::Disconnected) => panic!("the peer ended during {method}"),
        };
        let mut reply: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the peer answered {method} with {line}: {error}"));
        assert_eq!(reply["id"], id, "the answer to another request: {line}");
        if reply["error"].is_null() {
            return Ok(reply["result"].take());
        }
        let error = &reply["error"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Err(PeerError {
            kind: text(&error["data"]["kind"]).expect("an error kind"),
            detail: text(&error["data"]["detail"]),
            message: text(&error["message"]).unwrap_or_default(),
        })
    }

    /// Calls a method that cannot fail on good arguments.
    fn expect(&self, method: &str, params: Value) -> Value {
        self.call(method, params)
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The release the process runs.
    pub(crate) fn release(&self) -> Release {
        self.0.borrow().release
    }

    /// The version of the official client's package.
    pub(crate) fn version(&self) -> String {
        self.expect("info", json!({}))["version"]
            .as_str()
            .expect("a version")
            .to_owned()
    }

    /// A new device with keys of its own and empty stores.
    pub(crate) fn create_identity(&self, address: &PeerAddress) -> PeerParty {
        self.create(address, json!({}))
    }

    /// A new device with given keys (`identity_key_pair` of the vectors).
    pub(crate) fn create_identity_with(
        &self,
        address: &PeerAddress,
        registration_id: u32,
        identity_key_pair: &[u8],
    ) -> PeerParty {
        self.create(
            address,
            json!({
                "registration_id": registration_id,
                "identity_key_pair": hex::encode(identity_key_pair),
            }),
        )
    }

    fn next_party(&self) -> String {
        let mut process = self.0.borrow_mut();
        let party = format!("party-{}", process.next_party);
        process.next_party += 1;
        party
    }

    fn create(&self, address: &PeerAddress, mut params: Value) -> PeerParty {
        let party = self.next_party();
        params["party"] = json!(party);
        params["name"] = json!(address.name);
        params["device_id"] = json!(address.device_id);
        let result = self.expect("create_identity", params);
        PeerParty {
            peer: self.clone(),
            party,
            address: address.clone(),
            registration_id: number(&result, "registration_id"),
            identity_key: field(&result, "identity_key"),
            identity_key_pair: field(&result, "identity_key_pair"),
        }
    }

    /// A key pair: private (32 bytes) and public (33 bytes).
    pub(crate) fn generate_keypair(&self) -> (Vec<u8>, Vec<u8>) {
        let result = self.expect("generate_keypair", json!({}));
        (field(&result, "private_key"), field(&result, "public_key"))
    }

    /// The public key of a private one.
    pub(crate) fn public_key(&self, private_key: &[u8]) -> Result<Vec<u8>, PeerError> {
        self.call(
            "public_key",
            json!({"private_key": hex::encode(private_key)}),
        )
        .map(|result| field(&result, "public_key"))
    }

    /// A Diffie-Hellman agreement.
    pub(crate) fn agree(
        &self,
        private_key: &[u8],
        public_key: &[u8],
    ) -> Result<Vec<u8>, PeerError> {
        let params = json!({
            "private_key": hex::encode(private_key),
            "public_key": hex::encode(public_key),
        });
        self.call("agree", params)
            .map(|result| field(&result, "shared_secret"))
    }

    /// An XEdDSA signature.
    pub(crate) fn sign(&self, private_key: &[u8], message: &[u8]) -> Result<Vec<u8>, PeerError> {
        let params = json!({
            "private_key": hex::encode(private_key),
            "message": hex::encode(message),
        });
        self.call("sign", params)
            .map(|result| field(&result, "signature"))
    }

    /// Whether an XEdDSA signature is valid.
    pub(crate) fn verify(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, PeerError> {
        let params = json!({
            "public_key": hex::encode(public_key),
            "message": hex::encode(message),
            "signature": hex::encode(signature),
        });
        self.call("verify", params)
            .map(|result| result["valid"] == true)
    }

    /// HKDF-SHA256.
    pub(crate) fn hkdf(
        &self,
        length: usize,
        key_material: &[u8],
        info: &[u8],
        salt: Option<&[u8]>,
    ) -> Result<Vec<u8>, PeerError> {
        let params = json!({
            "length": length,
            "key_material": hex::encode(key_material),
            "info": hex::encode(info),
            "salt": salt.map(hex::encode),
        });
        self.call("hkdf", params)
            .map(|result| field(&result, "output"))
    }

    /// The safety number of two identities, with the defaults of the application.
    pub(crate) fn fingerprint(
        &self,
        local_id: &[u8],
        local_key: &[u8],
        remote_id: &[u8],
        remote_key: &[u8],
    ) -> Result<Fingerprint, PeerError> {
        let params = json!({
            "local_id": hex::encode(local_id),
            "local_key": hex::encode(local_key),
            "remote_id": hex::encode(remote_id),
            "remote_key": hex::encode(remote_key),
        });
        self.call("fingerprint", params).map(|result| Fingerprint {
            digits: result["display"].as_str().expect("digits").to_owned(),
            scannable: field(&result, "scannable"),
        })
    }

    /// Whether two scannable safety numbers match.
    pub(crate) fn fingerprints_match(&self, mine: &[u8], theirs: &[u8]) -> Result<bool, PeerError> {
        let params = json!({"mine": hex::encode(mine), "theirs": hex::encode(theirs)});
        self.call("fingerprint_compare", params)
            .map(|result| result["match"] == true)
    }

    /// The decoded fields of a message, without any cryptography.
    pub(crate) fn inspect(&self, message: &Message) -> Result<Value, PeerError> {
        let params = json!({"type": message.kind.number(), "body": hex::encode(&message.body)});
        self.call("inspect", params)
    }
}

/// One device of the official client.
#[derive(Clone)]
pub(crate) struct PeerParty {
    peer: Peer,
    party: String,
    pub(crate) address: PeerAddress,
    pub(crate) registration_id: u32,
    pub(crate) identity_key: Vec<u8>,
    pub(crate) identity_key_pair: Vec<u8>,
}

impl PeerParty {
    /// Calls a method for this device.
    pub(crate) fn call(&self, method: &str, mut params: Value) -> Result<Value, PeerError> {
        params["party"] = json!(self.party);
        self.peer.call(method, params)
    }

    fn expect(&self, method: &str, params: Value) -> Value {
        self.call(method, params)
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Makes keys and publishes them.
    pub(crate) fn publish_bundle(&self, options: BundleOptions) -> Bundle {
        let mut params = json!({
            "one_time": options.one_time,
            "kyber": options.kyber,
            "kyber_one_time": options.kyber_one_time,
        });
        if let Some(id) = options.prekey_id {
            params["prekey_id"] = json!(id);
        }
        if let Some(id) = options.signed_prekey_id {
            params["signed_prekey_id"] = json!(id);
        }
        if let Some(id) = options.kyber_prekey_id {
            params["kyber_prekey_id"] = json!(id);
        }
        Bundle::read(&self.expect("publish_bundle", params)["bundle"])
    }

    /// Adds private prekeys from records (`id`, `record` of the vectors).
    pub(crate) fn import_prekeys(
        &self,
        prekeys: &Value,
        signed_prekeys: &Value,
        kyber_prekeys: &Value,
    ) {
        self.expect(
            "import_prekeys",
            json!({
                "prekeys": prekeys,
                "signed_prekeys": signed_prekeys,
                "kyber_prekeys": kyber_prekeys,
            }),
        );
    }

    /// The ids of the one-time prekeys that were used up.
    pub(crate) fn removed_prekeys(&self) -> Vec<u32> {
        elements(&self.expect("export_prekeys", json!({}))["removed_prekeys"])
            .iter()
            .map(|id| {
                id.as_u64()
                    .and_then(|id| id.try_into().ok())
                    .expect("an id")
            })
            .collect()
    }

    /// The ids of the Kyber prekeys that sessions were made from, in order.
    pub(crate) fn used_kyber_prekeys(&self) -> Vec<u32> {
        elements(&self.expect("export_prekeys", json!({}))["used_kyber_prekeys"])
            .iter()
            .map(|row| number(row, "kyber_prekey_id"))
            .collect()
    }

    /// Starts a session.
    pub(crate) fn process_bundle(
        &self,
        remote: &PeerAddress,
        bundle: &Bundle,
        now_ms: Option<u64>,
    ) -> Result<SessionInfo, PeerError> {
        let mut params = json!({"remote": remote.json(), "bundle": bundle.json()});
        if let Some(now_ms) = now_ms {
            params["now_ms"] = json!(now_ms);
        }
        self.call("process_bundle", params)
            .map(|result| SessionInfo::read(&result["session"]))
    }

    /// Encrypts a message.
    pub(crate) fn encrypt(
        &self,
        remote: &PeerAddress,
        plaintext: &[u8],
        now_ms: Option<u64>,
    ) -> Result<Message, PeerError> {
        let mut params = json!({"remote": remote.json(), "plaintext": hex::encode(plaintext)});
        if let Some(now_ms) = now_ms {
            params["now_ms"] = json!(now_ms);
        }
        self.call("encrypt", params).map(|result| Message {
            kind: MessageType::from_number(result["type"].as_u64().expect("a message type")),
            body: field(&result, "body"),
        })
    }

    /// Decrypts a message.
    pub(crate) fn decrypt(
        &self,
        remote: &PeerAddress,
        message: &Message,
    ) -> Result<Vec<u8>, PeerError> {
        let params = json!({
            "remote": remote.json(),
            "type": message.kind.number(),
            "body": hex::encode(&message.body),
        });
        self.call("decrypt", params)
            .map(|result| field(&result, "plaintext"))
    }

    /// Describes the session with a remote device.
    pub(crate) fn session_info(&self, remote: &PeerAddress) -> SessionInfo {
        SessionInfo::read(&self.expect("session_info", json!({"remote": remote.json()}))["session"])
    }

    /// The session record, in Signal's storage format.
    pub(crate) fn export_session(&self, remote: &PeerAddress) -> Option<Vec<u8>> {
        let result = self.expect("export_session", json!({"remote": remote.json()}));
        optional_field(&result, "record")
    }

    /// Replaces the session record.
    pub(crate) fn import_session(
        &self,
        remote: &PeerAddress,
        record: &[u8],
    ) -> Result<(), PeerError> {
        let params = json!({"remote": remote.json(), "record": hex::encode(record)});
        self.call("import_session", params).map(|_| ())
    }

    /// Archives the current state of a session.
    pub(crate) fn archive_session(&self, remote: &PeerAddress) -> Result<SessionInfo, PeerError> {
        self.call("archive_session", json!({"remote": remote.json()}))
            .map(|result| SessionInfo::read(&result["session"]))
    }

    /// Forgets a session. Says whether there was one.
    pub(crate) fn delete_session(&self, remote: &PeerAddress) -> bool {
        self.expect("delete_session", json!({"remote": remote.json()}))["deleted"] == true
    }

    /// Sets which identities are accepted.
    pub(crate) fn set_trust_policy(&self, policy: TrustPolicy) {
        let policy = match policy {
            TrustPolicy::TrustOnFirstUse => "tofu",
            TrustPolicy::All => "all",
            TrustPolicy::None => "none",
        };
        self.expect("set_trust_policy", json!({"policy": policy}));
    }

    /// Remembers an identity.
    pub(crate) fn set_identity(&self, remote: &PeerAddress, identity_key: &[u8]) {
        let params = json!({"remote": remote.json(), "identity_key": hex::encode(identity_key)});
        self.expect("set_identity", params);
    }

    /// The remembered identity.
    pub(crate) fn get_identity(&self, remote: &PeerAddress) -> Option<Vec<u8>> {
        let result = self.expect("get_identity", json!({"remote": remote.json()}));
        optional_field(&result, "identity_key")
    }

    /// Forgets an identity. Says whether there was one.
    pub(crate) fn forget_identity(&self, remote: &PeerAddress) -> bool {
        self.expect("forget_identity", json!({"remote": remote.json()}))["forgotten"] == true
    }

    /// An XEdDSA signature by this device's identity.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let result = self.expect("sign", json!({"message": hex::encode(message)}));
        field(&result, "signature")
    }

    /// All that this device holds.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot(self.expect("snapshot", json!({}))["state"].take())
    }

    /// Removes this device from the process.
    pub(crate) fn forget(&self) {
        self.expect("drop_party", json!({}));
    }

    /// A device that goes on from where this one is, beside it.
    pub(crate) fn twin(&self) -> Self {
        let twin = Self {
            party: self.peer.next_party(),
            ..self.clone()
        };
        twin.restore(&self.snapshot());
        twin
    }

    /// Puts this device back to a snapshot.
    pub(crate) fn restore(&self, snapshot: &Snapshot) {
        self.expect("restore", json!({"state": snapshot.0}));
    }
}

fn peer_directory() -> PathBuf {
    match std::env::var_os("KITH_PEER_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/interop/peer"),
    }
}

fn number(value: &Value, name: &str) -> u32 {
    value[name]
        .as_u64()
        .and_then(|number| number.try_into().ok())
        .unwrap_or_else(|| panic!("no number {name} in {value}"))
}

fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
