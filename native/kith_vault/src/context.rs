use std::fmt;

use blake2::{Blake2b, Digest, digest::consts::U32};

/// What a blob is and where it belongs: a kind and an ordered list of fields.
///
/// The context is authenticated with the blob and stored nowhere. Opening succeeds only with the context of sealing, so
/// a blob moved to another row, or replayed at another generation, does not open.
///
/// A kind fixes the fields that follow it, their order and their meaning. The encoding keeps fields apart by their
/// lengths; it does not record their types.
#[derive(Clone, Eq, PartialEq)]
pub struct Context {
    encoded: Vec<u8>,
    /// How much of it names the place to a key service; `None` for all of it.
    place: Option<usize>,
}

impl Context {
    /// Starts the context of one kind of blob, such as `session` or `data-key`.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        let mut encoded = Vec::with_capacity(USUAL_BYTES);
        encoded.extend_from_slice(DOMAIN);
        encoded.push(VERSION);
        Self {
            encoded,
            place: None,
        }
        .bytes(kind)
    }

    /// Adds a field of bytes, such as a user id.
    #[must_use]
    pub fn bytes(mut self, field: impl AsRef<[u8]>) -> Self {
        let field = field.as_ref();
        self.encoded
            .extend_from_slice(&(field.len() as u64).to_be_bytes());
        self.encoded.extend_from_slice(field);
        self
    }

    /// Adds a number, such as a device id or a generation.
    #[must_use]
    pub fn number(self, field: u64) -> Self {
        self.bytes(field.to_be_bytes())
    }

    /// Ends what names the place to a key service. The fields that follow are bound as all others are, here alone: they are
    /// not known yet when the service is asked.
    #[must_use]
    pub fn within(self) -> Self {
        Self {
            place: Some(self.encoded.len()),
            ..self
        }
    }

    /// The part of the context that names the place to a key service.
    pub(crate) fn named(&self) -> &[u8] {
        let length = self.place.unwrap_or(self.encoded.len());
        self.encoded.get(..length).unwrap_or(&self.encoded)
    }

    /// BLAKE2b-256 of that part: the name to a key service, which it tells nothing that cannot be guessed.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        Blake2b::<U32>::digest(self.named()).into()
    }

    /// The same as text, 64 hexadecimal digits.
    pub(crate) fn place(&self) -> String {
        let digits = self.fingerprint().into_iter();
        digits.map(|byte| format!("{byte:02x}")).collect()
    }

    /// `header ‖ context`, the associated data of the AEAD. Every header tells its own length, which keeps the two apart.
    pub(crate) fn associated_data(&self, header: &[u8]) -> Vec<u8> {
        let mut associated_data = Vec::with_capacity(header.len() + self.encoded.len());
        associated_data.extend_from_slice(header);
        associated_data.extend_from_slice(&self.encoded);
        associated_data
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            encoded: _,
            place: _,
        } = self;
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// Keeps blobs of Kith apart from those of any other program that were sealed under the same key.
const DOMAIN: &[u8; 4] = b"kith";

/// The version of this encoding.
const VERSION: u8 = 1;

/// Holds a session's context with two user ids of the length of a UUID without growing.
const USUAL_BYTES: usize = 192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_is_domain_version_and_fields_with_their_lengths() {
        let context = Context::new("kind").bytes("ab").bytes("").number(0x0102);
        assert_eq!(
            hex::encode(context.associated_data(&[0xaa, 0xbb])),
            concat!(
                "aabb",
                "6b697468",
                "01",
                "00000000000000046b696e64",
                "00000000000000026162",
                "0000000000000000",
                "00000000000000080000000000000102",
            )
        );
    }

    #[test]
    fn moving_bytes_between_fields_changes_the_encoding() {
        let contexts = [
            Context::new("kind"),
            Context::new("kind").bytes(""),
            Context::new("kind").bytes("").bytes(""),
            Context::new("kinda").bytes("b"),
            Context::new("kind").bytes("ab"),
            Context::new("kind").bytes("a").bytes("b"),
            Context::new("kind").bytes("b").bytes("a"),
            Context::new("kind").bytes("").bytes("ab"),
            Context::new("kind").bytes("ab").bytes(""),
            Context::new("kind").bytes([0, 0, 0, 0, 0, 0, 0, 0]),
            Context::new("kind")
                .bytes("a")
                .bytes([0, 0, 0, 0, 0, 0, 0, 1, b'b']),
        ];
        for (index, context) in contexts.iter().enumerate() {
            for other in contexts.iter().skip(index + 1) {
                assert_ne!(context.associated_data(&[]), other.associated_data(&[]));
            }
        }
    }

    #[test]
    fn the_context_of_a_session_between_uuids_fits_without_growing() {
        let user = "123e4567-e89b-12d3-a456-426614174000";
        let context = Context::new("session")
            .bytes(user)
            .number(1)
            .bytes(user)
            .number(1)
            .number(9);
        assert_eq!(context.encoded.capacity(), USUAL_BYTES);
    }

    #[test]
    fn what_is_within_a_place_is_bound_and_not_named() {
        let (place, key) = (Context::new("kind").within(), |byte| {
            Context::new("kind").within().bytes([byte])
        });
        assert_eq!(place.place(), key(1).place());
        assert_eq!(key(1).named(), key(2).named());
        assert_ne!(key(1).associated_data(&[]), key(2).associated_data(&[]));
        assert_ne!(place.place(), Context::new("kinds").place());
    }

    #[test]
    fn debug_shows_no_field() {
        assert_eq!(
            format!("{:?}", Context::new("session").bytes("alice")),
            "Context { .. }"
        );
    }
}
