//! Devices in the middle of something, made once per process: what single messages, keys and entries are tried on.

use std::sync::LazyLock;

use kith_protocol::Version;

use super::device::Device;

/// The eleven states of the braid, as the specification names them.
pub(crate) const STATES: [&str; 11] = [
    "KeysUnsampled",
    "KeysSampled",
    "HeaderSent",
    "Ct1Received",
    "EkSentCt1Received",
    "NoHeaderReceived",
    "HeaderReceived",
    "Ct1Sampled",
    "EkReceivedCt1Sampled",
    "Ct1Acknowledged",
    "Ct2Sampled",
];

/// A device, its peer, and messages of the peer that it has not opened.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) device: Device,
    pub(crate) peer: Device,
    pub(crate) waiting: Vec<Vec<u8>>,
}

impl Stage {
    fn without_what_is_too_late(mut self) -> Self {
        let device = &self.device;
        self.waiting
            .retain(|bytes| device.clone().receive(bytes, false).is_ok());
        self
    }
}

pub(crate) struct Stages {
    /// One for each of [`STATES`], in their order, of version 4.
    pub(crate) states: Vec<Stage>,
    /// One that sends chunks beyond those of the whole.
    pub(crate) parity: Stage,
    /// Of version 3.
    pub(crate) version_3: Stage,
    /// A device that published keys and has no session, and the first messages of either version to it.
    pub(crate) fresh: Device,
    pub(crate) first: Vec<Vec<u8>>,
    /// A device that opened those.
    pub(crate) met: Device,
}

pub(crate) static STAGES: LazyLock<Stages> = LazyLock::new(Stages::new);

impl Stages {
    /// The stage of this number: the eleven states, then version 3.
    pub(crate) fn get(&self, number: u8) -> &Stage {
        match usize::from(number) % (STATES.len() + 1) {
            11 => &self.version_3,
            at => &self.states[at],
        }
    }

    fn new() -> Self {
        let mut found: [Option<Stage>; 11] = Default::default();
        // Who sends how many in a turn decides which of two things arrives first.
        for burst in [[1, 1], [3, 1], [1, 3], [6, 5]] {
            converse(Version::V4, burst, 90, |stage| {
                let braid = stage.device.record.current().and_then(|it| it.info().braid);
                let Some(braid) = braid else { return };
                let at = STATES.iter().position(|name| *name == braid.state);
                let at = at.expect("one of eleven");
                // With something kept for it, and from the second epoch on, if there is such a moment.
                let worth = |stage: &Stage| {
                    let info = stage.device.record.current().map(|it| it.info());
                    let epoch = info.and_then(|it| it.braid).map_or(0, |it| it.epoch);
                    (epoch > 1, stage.device.entries.len().min(12))
                };
                if found[at]
                    .as_ref()
                    .is_none_or(|known| worth(stage) > worth(known))
                {
                    found[at] = Some(stage.clone());
                }
            });
        }
        let states = found
            .into_iter()
            .zip(STATES)
            .map(|(stage, name)| stage.unwrap_or_else(|| panic!("{name} was never reached")))
            .map(Stage::without_what_is_too_late)
            .collect();
        let mut parity = None;
        converse(Version::V4, [44, 1], 2, |stage| {
            let state = stage.device.record.current().and_then(|it| it.info().braid);
            if state.is_some_and(|it| it.state == "HeaderSent") {
                parity = Some(stage.clone());
            }
        });
        let mut version_3 = None;
        converse(Version::V3, [2, 1], 6, |stage| {
            version_3 = Some(stage.clone());
        });

        let [mut alice, mut fresh] = Device::pair(5, true);
        let mut met = fresh.clone();
        let mut first = Vec::new();
        for (version, one_time) in [
            (Version::V3, Some(1)),
            (Version::V4, None),
            (Version::V4, Some(2)),
        ] {
            let bundle = fresh.bundle(version, one_time);
            met.keys = fresh.keys.clone();
            alice.start(&bundle);
            for _ in 0..2 {
                let sent = alice.send(b"first").expect("a new session");
                first.push(sent.bytes);
            }
        }
        for message in &first {
            met.receive(message, true).expect("a first message opens");
        }
        Self {
            states,
            parity: parity.expect("a header was sent"),
            version_3: version_3
                .expect("a conversation")
                .without_what_is_too_late(),
            fresh,
            first,
            met,
        }
    }
}

/// Two devices talk, and one message in seven is late by a few; `seen` sees both from either side.
fn converse(version: Version, burst: [usize; 2], turns: usize, mut seen: impl FnMut(&Stage)) {
    let mut devices = Device::pair(3, true);
    let bundle = devices[1].bundle(version, Some(1));
    devices[0].start(&bundle);
    let mut late: [Vec<(Vec<u8>, bool)>; 2] = Default::default();
    let mut number = 0_usize;
    for turn in 0..turns {
        for from in [0, 1] {
            for _ in 0..burst[from] {
                let text = [b'a' + (number % 26) as u8; 3];
                let sent = devices[from].send(&text).expect("a session");
                let message = (sent.bytes, sent.is_prekey_message);
                number += 1;
                if number % 7 == 3 && turn > 1 {
                    late[1 - from].push(message);
                    if late[1 - from].len() > 3 {
                        let (bytes, kind) = late[1 - from].remove(0);
                        // After five newer chains it is too late.
                        let _ = devices[1 - from].receive(&bytes, kind);
                    }
                } else {
                    let (bytes, kind) = message;
                    let opened = devices[1 - from].receive(&bytes, kind).expect("in time");
                    assert_eq!(opened.plaintext, text);
                }
                for at in [0, 1] {
                    seen(&Stage {
                        device: devices[at].clone(),
                        peer: devices[1 - at].clone(),
                        waiting: late[at]
                            .iter()
                            .filter(|(_, is_prekey_message)| !is_prekey_message)
                            .map(|(bytes, _)| bytes.clone())
                            .collect(),
                    });
                }
            }
        }
    }
}
