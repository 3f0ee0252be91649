//! Protobuf read field by field, apart from the library: what the outside of a prekey message says.

use std::collections::BTreeMap;

/// A value of a field: varints and bytes are told apart, the rest is only skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    Other,
}

/// The fields, each with its last value and its wire types in order; `None` where the bytes are no protobuf.
pub(crate) fn fields(bytes: &[u8]) -> Option<BTreeMap<u64, Vec<Value>>> {
    let mut at = 0;
    let mut out: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    while at < bytes.len() {
        let (field, value) = field(bytes, &mut at)?;
        out.entry(field).or_default().push(value);
    }
    Some(out)
}

fn field(bytes: &[u8], at: &mut usize) -> Option<(u64, Value)> {
    let tag = varint(bytes, at)?;
    let number = tag >> 3;
    if tag > u64::from(u32::MAX) || number == 0 {
        return None;
    }
    let value = match tag & 7 {
        0 => Value::Number(varint(bytes, at)?),
        1 => skip(bytes, at, 8)?,
        2 => {
            let length = usize::try_from(varint(bytes, at)?).ok()?;
            let start = *at;
            skip(bytes, at, length)?;
            Value::Bytes(bytes[start..*at].to_vec())
        }
        3 => {
            // A group ends with the tag of wire type 4 and the same number.
            loop {
                let mut ahead = *at;
                let tag = varint(bytes, &mut ahead)?;
                if tag & 7 == 4 {
                    *at = ahead;
                    if tag >> 3 != number {
                        return None;
                    }
                    break;
                }
                field(bytes, at)?;
            }
            Value::Other
        }
        5 => skip(bytes, at, 4)?,
        _ => return None,
    };
    Some((number, value))
}

fn skip(bytes: &[u8], at: &mut usize, length: usize) -> Option<Value> {
    *at = at.checked_add(length).filter(|&end| end <= bytes.len())?;
    Some(Value::Other)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in 0..10 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if shift == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The outside of a prekey message, as the interop notes define it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outer {
    pub(crate) version: u8,
    pub(crate) low_nibble: u8,
    pub(crate) prekey_id: Option<u32>,
    pub(crate) base_key: Vec<u8>,
    pub(crate) identity_key: Vec<u8>,
    pub(crate) message: Vec<u8>,
    pub(crate) registration_id: u32,
    pub(crate) signed_prekey_id: u32,
    /// Fields 7 and 8, of version 4.
    pub(crate) has_kyber: bool,
}

impl Outer {
    /// `None` where the bytes are no prekey message.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let (&version, rest) = body.split_first()?;
        let fields = fields(rest)?;
        // A known field of another wire type is an error, whichever of its values counts.
        let number = |field: u64| match fields.get(&field) {
            None => Some(None),
            Some(values) => values
                .iter()
                .map(|value| match value {
                    #[allow(
                        clippy::cast_possible_truncation,
                        reason = "uint32 keeps the low 32 bits"
                    )]
                    Value::Number(number) => Some(*number as u32),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .map(|values| values.last().copied()),
        };
        let bytes = |field: u64| match fields.get(&field) {
            None => Some(None),
            Some(values) => values
                .iter()
                .map(|value| match value {
                    Value::Bytes(bytes) => Some(bytes.clone()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .map(|values| values.last().cloned()),
        };
        let kyber = (number(7)?, bytes(8)?);
        Some(Self {
            version: version >> 4,
            low_nibble: version & 15,
            prekey_id: number(1)?,
            base_key: bytes(2)??,
            identity_key: bytes(3)??,
            message: bytes(4)??,
            registration_id: number(5)?.unwrap_or(0),
            signed_prekey_id: number(6)??,
            has_kyber: kyber.0.is_some() || kyber.1.is_some(),
        })
    }
}
