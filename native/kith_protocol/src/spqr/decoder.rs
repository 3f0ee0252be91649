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

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(index: u16) -> IndexedChunk {
        let [_, low] = index.to_be_bytes();
        IndexedChunk {
            index,
            data: [low; 32],
        }
    }

    /// A message of `needed` chunks arrives; pages lie beside the decoder.
    fn arrive(indices: &[u16], needed: usize) -> (Decoder, Vec<Page>, Option<Vec<u8>>) {
        let mut decoder = Decoder::default();
        let mut pages: Vec<Page> = Vec::new();
        for &index in indices {
            let load = |number: u32| {
                pages
                    .get(number as usize)
                    .map_or(PageLookup::Absent, |page| PageLookup::Found(*page))
            };
            match decoder.receive(&chunk(index), needed, &load).unwrap() {
                Arrival::Known => {}
                Arrival::Partial(chunk) => {
                    if let Some((number, page)) = decoder.add(chunk) {
                        assert_eq!(number as usize, pages.len());
                        pages.push(page);
                    }
                }
                Arrival::Complete(whole) => return (decoder, pages, Some(whole)),
            }
        }
        (decoder, pages, None)
    }

    #[test]
    fn chunks_fill_pages_and_the_last_one_completes_the_whole() {
        let (decoder, pages, whole) = arrive(&[4, 1, 1, 0, 4, 3, 2], 5);
        assert_eq!(decoder.held, [4, 1, 0, 3]);
        assert_eq!(decoder.loose, [chunk(3)]);
        assert_eq!(decoder.pages(), 1);
        assert_eq!(pages, [[chunk(4), chunk(1), chunk(0)]]);
        let expected: Vec<u8> = (0..5).flat_map(|index| [index; 32]).collect();
        assert_eq!(whole, Some(expected));
    }

    #[test]
    fn a_chunk_that_is_here_counts_once() {
        let (decoder, _, whole) = arrive(&[0, 1, 0, 1, 0, 1], 3);
        assert_eq!(decoder.held, [0, 1]);
        assert_eq!(whole, None);
    }

    #[test]
    fn pages_that_are_not_loaded_are_asked_for_and_others_than_those_written_are_damage() {
        let (decoder, pages, _) = arrive(&[0, 1, 2, 3], 5);
        let last = chunk(4);
        let receive = |load: &dyn Fn(u32) -> PageLookup| decoder.receive(&last, 5, load);
        let damaged = Err(DecoderError::Damaged);
        assert_eq!(
            receive(&|_| PageLookup::NotLoaded),
            Err(DecoderError::NotLoaded)
        );
        assert_eq!(receive(&|_| PageLookup::Absent), damaged);
        let other = [pages[0][0], pages[0][1], chunk(9)];
        assert_eq!(receive(&|_| PageLookup::Found(other)), damaged);
        assert!(receive(&|_| PageLookup::Found(pages[0])).is_ok());
        // A chunk that does not complete the whole needs none of them.
        let (decoder, ..) = arrive(&[0, 1, 2], 5);
        assert!(
            decoder
                .receive(&last, 5, &|_| PageLookup::NotLoaded)
                .is_ok()
        );
    }
}
