use crate::curve::PublicKey;
use crate::session::StateError;

/// Stored bytes, read from the front.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], StateError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(StateError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn slice(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(StateError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn number(&mut self) -> Result<u32, StateError> {
        self.take().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn long(&mut self) -> Result<u64, StateError> {
        self.take().map(|bytes| u64::from_be_bytes(*bytes))
    }

    pub(super) fn short(&mut self) -> Result<u16, StateError> {
        self.take().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(super) fn public_key(&mut self) -> Result<PublicKey, StateError> {
        self.take().map(|u| PublicKey::from_u(*u))
    }

    /// That nothing is left.
    pub(super) fn finish(&self) -> Result<(), StateError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(StateError::Damaged)
        }
    }
}
