//! The JSON of the protocol.

use std::borrow::Cow;

use base64ct::{Base64, Encoding};
use kith_vault::{ServiceCiphertext, ServiceKey};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use crate::exchange::Answer;

// Every text below is hexadecimal, base64, or the name of a key, which `is_plain` has judged: none needs escaping.

pub(crate) fn create(place: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{{\"thread_id\":\"{place}\"}}"))
}

pub(crate) fn encrypt(key_id: &str, plaintext: &[u8], aad: Option<&[u8]>) -> Zeroizing<String> {
    let mut body = object(key_id, "plaintext", plaintext);
    finish(&mut body, aad, None);
    body
}

pub(crate) fn decrypt(
    key_id: &str,
    ciphertext: &ServiceCiphertext,
    aad: Option<&[u8]>,
) -> Zeroizing<String> {
    let mut body = object(key_id, "ciphertext", &ciphertext.bytes);
    finish(&mut body, aad, aad.map(|_| ciphertext.key_version));
    body
}

/// With room for all that follows, so that it is nowhere twice.
fn object(key_id: &str, field: &str, bytes: &[u8]) -> Zeroizing<String> {
    let mut body = Zeroizing::new(String::with_capacity(
        key_id.len() + Base64::encoded_len(bytes) + 256,
    ));
    body.push_str("{\"key_id\":\"");
    body.push_str(key_id);
    body.push_str("\",\"");
    body.push_str(field);
    body.push_str("\":\"");
    body.push_str(&Zeroizing::new(Base64::encode_string(bytes)));
    body.push('"');
    body
}

fn finish(body: &mut Zeroizing<String>, aad: Option<&[u8]>, key_version: Option<u32>) {
    if let Some(aad) = aad {
        body.push_str(",\"aad\":\"");
        body.push_str(&Base64::encode_string(aad));
        body.push('"');
    }
    if let Some(version) = key_version {
        body.push_str(",\"key_version\":");
        body.push_str(&version.to_string());
    }
    body.push('}');
}

/// Percent-encoded, but for what never needs it.
pub(crate) fn query(key_id: &str) -> String {
    let mut query = String::from("key_id=");
    for byte in key_id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            query.push(char::from(byte));
        } else {
            query.push_str(&format!("%{byte:02X}"));
        }
    }
    query
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    key_id: Option<Text<'a>>,
    #[serde(borrow)]
    wrapped: Option<Text<'a>>,
    #[serde(borrow)]
    ciphertext: Option<Text<'a>>,
    #[serde(borrow)]
    plaintext: Option<Text<'a>>,
    key_version: Option<u32>,
}

/// Borrowed from the answer, or, where the service has escaped a character, a copy that is erased.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Drop for Text<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(text) = &mut self.0 {
            text.zeroize();
        }
    }
}

impl Text<'_> {
    fn bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        Base64::decode_vec(&self.0).ok().map(Zeroizing::new)
    }
}

fn fields(answer: &Answer) -> Option<Fields<'_>> {
    serde_json::from_slice(&answer.body).ok()
}

pub(crate) fn created(answer: &Answer) -> Option<ServiceKey> {
    let fields = fields(answer)?;
    let id = fields.key_id.as_ref()?.0.to_string();
    is_plain(&id).then_some(())?;
    Some(ServiceKey {
        id,
        wrapped: fields.wrapped.as_ref()?.bytes()?.to_vec(),
    })
}

pub(crate) fn encrypted(answer: &Answer) -> Option<ServiceCiphertext> {
    let fields = fields(answer)?;
    Some(ServiceCiphertext {
        bytes: fields.ciphertext.as_ref()?.bytes()?.to_vec(),
        key_version: fields.key_version.unwrap_or(1),
    })
}

pub(crate) fn decrypted(answer: &Answer) -> Option<Zeroizing<Vec<u8>>> {
    fields(answer)?.plaintext.as_ref()?.bytes()
}

pub(crate) fn wrapped(answer: &Answer) -> Option<Vec<u8>> {
    Some(fields(answer)?.wrapped.as_ref()?.bytes()?.to_vec())
}

/// Visible ASCII without what JSON escapes.
fn is_plain(id: &str) -> bool {
    (1..=ServiceKey::MAX_ID_BYTES).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Answer {
        Answer {
            status: 200,
            body: Zeroizing::new(body.into()),
        }
    }

    #[test]
    fn requests_have_the_fields_of_the_protocol_and_no_others() {
        let ciphertext = ServiceCiphertext {
            bytes: vec![1, 2],
            key_version: 3,
        };
        assert_eq!(create("ab").as_str(), r#"{"thread_id":"ab"}"#);
        assert_eq!(
            encrypt("k1", &[0xff], None).as_str(),
            r#"{"key_id":"k1","plaintext":"/w=="}"#
        );
        assert_eq!(
            decrypt("k1", &ciphertext, None).as_str(),
            r#"{"key_id":"k1","ciphertext":"AQI="}"#
        );
        assert_eq!(query("a/b c"), "key_id=a%2Fb%20c");
    }

    #[test]
    fn the_extension_adds_associated_data_and_the_version() {
        let ciphertext = ServiceCiphertext {
            bytes: vec![1, 2],
            key_version: 3,
        };
        assert_eq!(
            encrypt("k1", &[0xff], Some(&[1])).as_str(),
            r#"{"key_id":"k1","plaintext":"/w==","aad":"AQ=="}"#
        );
        assert_eq!(
            decrypt("k1", &ciphertext, Some(&[1])).as_str(),
            r#"{"key_id":"k1","ciphertext":"AQI=","aad":"AQ==","key_version":3}"#
        );
    }

    #[test]
    fn answers_may_have_more_fields_and_escaped_slashes() {
        let created = created(&answer(r#"{"key_id":"k1","wrapped":"\/w==","more":[1]}"#)).unwrap();
        assert_eq!(
            (created.id.as_str(), created.wrapped.as_slice()),
            ("k1", &[0xff][..])
        );
        let encrypted = encrypted(&answer(r#"{"ciphertext":"AQI=","key_version":7}"#)).unwrap();
        assert_eq!((encrypted.bytes, encrypted.key_version), (vec![1, 2], 7));
        assert_eq!(
            decrypted(&answer(r#"{"plaintext":"AQI="}"#))
                .unwrap()
                .as_slice(),
            [1, 2]
        );
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for body in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"plaintext":1}"#,
            r#"{"plaintext":"A"}"#,
            r#"{"plaintext":"AQI"}"#,
            r#"{"plaintext":"AQI=="}"#,
            r#"{"plaintext":"AQI="} x"#,
            r#"{"plaintext":"AQI=","plaintext":"AQI="}"#,
            &"[".repeat(10_000),
        ] {
            assert!(decrypted(&answer(body)).is_none(), "{body}");
        }
        for id in [
            "",
            "a\\\"b",
            "a\\\\b",
            "a b",
            "schl\u{fc}ssel",
            &"k".repeat(256),
        ] {
            let body = format!(r#"{{"key_id":"{id}","wrapped":""}}"#);
            assert!(created(&answer(&body)).is_none(), "{id}");
        }
    }
}
