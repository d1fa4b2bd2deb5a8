//! Entries as an LZ4 block, where that is much shorter than they are.

use super::decode::{DecodeError, Entries};
use crate::limits::CHANGESET_BYTES_MAX;
use lz4_flex::block;
use std::borrow::Cow;
use std::ops::Range;

/// Most bytes that one of a block can stand for.
const RATIO_MAX: usize = 255;

/// Entries as a block, if that is at least an eighth shorter.
#[must_use]
pub fn compress(entries: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; block::get_maximum_output_size(entries.len())];
    let bytes = block::compress_into(entries, &mut out).ok()?;
    out.truncate(bytes);
    can_be_block(bytes, entries.len()).then_some(out)
}

/// Whether a block of so many bytes can be that of so many bytes of entries: before memory is taken for these.
#[must_use]
pub(super) fn can_be_block(bytes: usize, entries: usize) -> bool {
    let saves = bytes + entries.div_ceil(8) <= entries;
    saves && entries <= CHANGESET_BYTES_MAX && entries.div_ceil(RATIO_MAX) <= bytes
}

/// What a block says, which are so many bytes.
pub(super) fn decompress(block: &[u8], entries: usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = vec![0; entries];
    match block::decompress_into(block, &mut out) {
        Ok(bytes) if bytes == entries => Ok(out),
        _ => Err(DecodeError::Block),
    }
}

/// Entries that can be read: the bytes that came, or what they said as a block.
#[derive(Clone, Debug)]
pub struct Opened<'a> {
    bytes: Cow<'a, [u8]>,
    entries: Range<usize>,
}

impl<'a> Opened<'a> {
    /// Those that lie there in `bytes`.
    pub(super) fn new(bytes: Cow<'a, [u8]>, entries: Range<usize>) -> Opened<'a> {
        Opened { bytes, entries }
    }

    /// One after the other.
    #[must_use]
    pub fn entries(&self) -> Entries<'_> {
        Entries::new(self.bytes())
    }

    /// All of them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.entries.clone()]
    }
}
