//! Who a message is from and to.

use crate::limits::MAX_DEVICE_ID;

/// A device of a user: a name, and a device id from 1 to 127.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProtocolAddress {
    name: String,
    device_id: u8,
}

impl ProtocolAddress {
    /// `None` unless the device id is between 1 and 127.
    #[must_use]
    pub fn new(name: impl Into<String>, device_id: u8) -> Option<Self> {
        (1..=MAX_DEVICE_ID).contains(&device_id).then(|| Self {
            name: name.into(),
            device_id,
        })
    }

    /// The name; any text.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device id, 1 to 127.
    #[must_use]
    pub const fn device_id(&self) -> u8 {
        self.device_id
    }

    /// `kind (1) ‖ UUID (16) ‖ device id (1)` when the name is a service id: a UUID with hyphens (kind 0)
    /// or `PNI:` and such a UUID (kind 1).
    fn service_address(&self) -> Option<[u8; 18]> {
        let (kind, uuid) = match self.name.strip_prefix("PNI:") {
            Some(uuid) => (1, uuid),
            None => (0, self.name.as_str()),
        };
        let mut out = [0; 18];
        out[0] = kind;
        out[1..17].copy_from_slice(&parse_uuid(uuid)?);
        out[17] = self.device_id;
        Some(out)
    }
}

/// The addresses bound into a message (field 6 of a SignalMessage), 36 bytes; `None` unless both names
/// are service ids.
pub(crate) fn address_pair(
    sender: &ProtocolAddress,
    recipient: &ProtocolAddress,
) -> Option<[u8; 36]> {
    let mut out = [0; 36];
    out[..18].copy_from_slice(&sender.service_address()?);
    out[18..].copy_from_slice(&recipient.service_address()?);
    Some(out)
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|&at| text[at] != b'-') {
        return None;
    }
    let mut digits = text.iter().filter(|&&byte| byte != b'-');
    let mut out = [0; 16];
    for byte in &mut out {
        *byte = hex_digit(*digits.next()?)? << 4 | hex_digit(*digits.next()?)?;
    }
    digits.next().is_none().then_some(out)
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACI: &str = "9d0652a3-dcc3-4d11-975f-74d61598733f";

    #[test]
    fn device_ids_run_from_1_to_127() {
        assert!(ProtocolAddress::new("a", 0).is_none());
        assert!(ProtocolAddress::new("a", 1).is_some());
        assert!(ProtocolAddress::new("a", 127).is_some());
        assert!(ProtocolAddress::new("a", 128).is_none());
    }

    #[test]
    fn only_service_ids_are_bound_into_messages() {
        let aci = ProtocolAddress::new(ACI, 1).unwrap();
        let pni = ProtocolAddress::new(format!("PNI:{}", ACI.to_uppercase()), 2).unwrap();
        let pair = address_pair(&aci, &pni).unwrap();
        assert_eq!(
            hex::encode(pair),
            "009d0652a3dcc34d11975f74d61598733f01019d0652a3dcc34d11975f74d61598733f02"
        );
        for name in [
            "alice",
            "",
            "9d0652a3dcc34d11975f74d61598733f",
            &format!("{ACI} "),
            "pni:x",
        ] {
            let other = ProtocolAddress::new(name, 1).unwrap();
            assert_eq!(address_pair(&aci, &other), None, "{name:?}");
            assert_eq!(address_pair(&other, &aci), None, "{name:?}");
        }
        let misplaced = ProtocolAddress::new("9d0652a-3dcc3-4d11-975f-74d61598733f", 1).unwrap();
        assert_eq!(address_pair(&aci, &misplaced), None);
        let too_few = ProtocolAddress::new("9d0652a3-dcc3-4d11-975f-74d6159873--", 1).unwrap();
        assert_eq!(address_pair(&aci, &too_few), None);
    }
}
