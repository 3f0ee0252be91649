//! Secret bytes: boxed, erased on drop, compared in constant time, never printed.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 32 secret bytes.
///
/// They live behind a `Box`, so that moving the value copies a pointer and leaves no second copy of
/// the bytes on the stack, and are erased when the value is dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SecretBytes(Box<[u8; 32]>);

impl SecretBytes {
    /// Takes a copy; the caller's bytes are the caller's to erase.
    pub(crate) fn copy_of(bytes: &[u8; 32]) -> Self {
        Self(Box::new(*bytes))
    }

    /// Makes the bytes in place, so that they never lie anywhere else.
    pub(crate) fn filled_by(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut bytes = Box::new([0; 32]);
        fill(&mut bytes);
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl ConstantTimeEq for SecretBytes {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&*other.0)
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for SecretBytes {}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", SecretBytes::copy_of(&[7; 32])), "[secret]");
    }

    #[test]
    fn a_move_leaves_the_bytes_where_they_are() {
        let secret = SecretBytes::copy_of(&[7; 32]);
        let before = secret.as_bytes().as_ptr();
        let moved = Box::new(secret);
        assert_eq!(moved.as_bytes().as_ptr(), before);
    }

    #[test]
    fn the_type_erases_itself_on_drop() {
        fn erases<T: ZeroizeOnDrop>() {}
        erases::<SecretBytes>();
    }
}
