//! The input of a target that is a script: read from the front, and over when it is used up.

pub(crate) struct Tape<'a>(pub(crate) &'a [u8]);

impl<'a> Tape<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The next byte, 0 behind the end.
    pub(crate) fn byte_or_zero(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    /// A place in something of this length; `None` in nothing.
    pub(crate) fn place(&mut self, length: usize) -> Option<usize> {
        let at = usize::from(self.byte_or_zero()) << 8 | usize::from(self.byte_or_zero());
        at.checked_rem(length)
    }

    pub(crate) fn number(&mut self) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|_| self.byte_or_zero()))
    }

    /// At most `length` bytes, fewer at the end.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
