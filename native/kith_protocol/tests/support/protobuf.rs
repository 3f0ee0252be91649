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
    pub(crate) kyber_prekey_id: Option<u32>,
    pub(crate) kyber_ciphertext: Option<Vec<u8>>,
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
        Some(Self {
            version: version >> 4,
            low_nibble: version & 15,
            prekey_id: number(1)?,
            base_key: bytes(2)??,
            identity_key: bytes(3)??,
            message: bytes(4)??,
            registration_id: number(5)?.unwrap_or(0),
            signed_prekey_id: number(6)??,
            kyber_prekey_id: number(7)?,
            kyber_ciphertext: bytes(8)?,
        })
    }

    /// Whether either Kyber field is there.
    pub(crate) fn has_kyber(&self) -> bool {
        self.kyber_prekey_id.is_some() || self.kyber_ciphertext.is_some()
    }
}

/// What field 5 of a message of version 4 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PostQuantumHeader {
    /// The epoch the sender's braid is in.
    pub(crate) epoch: u64,
    /// The place of the key in the chain of the epoch before.
    pub(crate) index: u64,
    /// The type of the payload.
    pub(crate) payload: u8,
    /// The number of the chunk, in the types that carry one.
    pub(crate) chunk: Option<u64>,
}

impl PostQuantumHeader {
    /// The payload of the last step of an epoch: a part of the second half of the ciphertext.
    pub(crate) const CT2: u8 = 6;

    /// Reads the header of an ordinary message; `None` where there is none.
    pub(crate) fn of_ordinary(body: &[u8]) -> Option<Self> {
        let inside = body.get(1..body.len().checked_sub(8)?)?;
        let Some(Value::Bytes(field)) = fields(inside)?.remove(&5)?.pop() else {
            return None;
        };
        let mut at = 1;
        let epoch = varint(&field, &mut at)?;
        let index = varint(&field, &mut at)?;
        let payload = *field.get(at)?;
        at += 1;
        let chunk = match payload {
            1 | 2 | 3 | 5 | 6 => Some(varint(&field, &mut at)?),
            _ => None,
        };
        Some(Self {
            epoch,
            index,
            payload,
            chunk,
        })
    }

    /// Reads the header of the message inside a prekey message.
    pub(crate) fn of_prekey(body: &[u8]) -> Option<Self> {
        Self::of_ordinary(&Outer::parse(body)?.message)
    }
}
