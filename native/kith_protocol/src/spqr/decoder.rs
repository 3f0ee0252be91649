//! What has arrived of something that was cut into erasure-coded chunks.

use super::erasure::{self, Chunk};
use super::message::IndexedChunk;

/// Chunks of one page: a row of its own beside the session, written once.
///
/// Chunks arrive one per message. Kept in the session until there are three, they cost a message at most 64
/// bytes more, and one message in three a row of 103 bytes.
pub(crate) const CHUNKS_PER_PAGE: usize = 3;

/// Three chunks and where they belong.
pub(crate) type Page = [IndexedChunk; CHUNKS_PER_PAGE];

/// What looking for a page found.
pub(crate) enum PageLookup {
    Absent,
    Found(Page),
    NotLoaded,
}

/// A chunk could not be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecoderError {
    /// The chunk completes the whole, and the others were not loaded.
    NotLoaded,
    /// A page that was written is gone or is another one's.
    Damaged,
}

/// The chunks that are here: the numbers of all, and those that fill no page yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoder {
    /// In the order of arrival.
    pub(crate) held: Vec<u16>,
    /// The last of them, fewer than [`CHUNKS_PER_PAGE`].
    pub(crate) loose: Vec<IndexedChunk>,
}

/// What a chunk does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is here already.
    Known,
    /// More are needed.
    Partial(IndexedChunk),
    /// The whole.
    Complete(Vec<u8>),
}

impl Decoder {
    /// What `chunk` does to a whole of `needed` chunks. Changes nothing; [`add`](Self::add) does.
    pub(crate) fn receive(
        &self,
        chunk: &IndexedChunk,
        needed: usize,
        pages: &dyn Fn(u32) -> PageLookup,
    ) -> Result<Arrival, DecoderError> {
        if self.held.contains(&chunk.index) {
            return Ok(Arrival::Known);
        }
        if self.held.len() + 1 < needed {
            return Ok(Arrival::Partial(*chunk));
        }
        let mut chunks = self.chunks(pages)?;
        chunks.push((chunk.index, chunk.data));
        erasure::restore(&chunks, needed)
            .map(Arrival::Complete)
            .ok_or(DecoderError::Damaged)
    }

    /// Keeps a chunk; gives the page it fills, with its number.
    pub(crate) fn add(&mut self, chunk: IndexedChunk) -> Option<(u32, Page)> {
        self.held.push(chunk.index);
        self.loose.push(chunk);
        let page = Page::try_from(self.loose.as_slice()).ok()?;
        self.loose.clear();
        Some((self.pages() - 1, page))
    }

    /// How many pages were written.
    pub(crate) fn pages(&self) -> u32 {
        let paged = self.held.len().saturating_sub(self.loose.len());
        u32::try_from(paged / CHUNKS_PER_PAGE).unwrap_or(u32::MAX)
    }

    /// All chunks that are here.
    pub(crate) fn chunks(
        &self,
        pages: &dyn Fn(u32) -> PageLookup,
    ) -> Result<Vec<(u16, Chunk)>, DecoderError> {
        let mut chunks = Vec::with_capacity(self.held.len() + 1);
        for number in 0..self.pages() {
            match pages(number) {
                PageLookup::Found(page) => {
                    chunks.extend(page.iter().map(|chunk| (chunk.index, chunk.data)));
                }
                PageLookup::NotLoaded => return Err(DecoderError::NotLoaded),
                PageLookup::Absent => return Err(DecoderError::Damaged),
            }
        }
        chunks.extend(self.loose.iter().map(|chunk| (chunk.index, chunk.data)));
        if chunks.iter().map(|(index, _)| index).eq(&self.held) {
            Ok(chunks)
        } else {
            Err(DecoderError::Damaged)
        }
    }
}
