//! Entries as LZ4 blocks, where these are much shorter.

use super::decode::DecodeError;
use super::entry::Entries;
use super::sink::Sink;
use super::varint::{self, VARINT_BYTES_MAX};
use crate::limits::CHANGESET_BYTES_MAX;
use lz4_flex::block;
use std::borrow::Cow;
use std::ops::Range;

/// Bytes of entries in each block but the last; part of the format. No more are in memory twice, and within 64 kB LZ4
/// finds all that it can, with its smaller table.
pub(super) const BLOCK_BYTES: usize = 60 << 10;
/// Most bytes for which one of a block can stand.
const RATIO_MAX: usize = 255;

/// The entries that lie there in a sink as blocks, if these are at least an eighth shorter: appended to `to`. If the
/// first block is not, the rest is not tried.
pub fn compress<S: Sink>(entries: &S, range: Range<usize>, to: Vec<u8>) -> Option<Vec<u8>> {
    let (bytes, most) = (range.len(), range.len().min(BLOCK_BYTES));
    let mut blocks = Blocks {
        entries: Vec::with_capacity(most),
        block: vec![0; block::get_maximum_output_size(most)],
        start: to.len(),
        to,
    };
    let mut done = Some(());
    entries.each_of(range, &mut |piece| {
        done = done.and_then(|()| blocks.push(piece));
    });
    done.and_then(|()| blocks.end())?;
    can_be_blocks(blocks.bytes(), bytes).then_some(blocks.to)
}

/// Blocks that are being made.
struct Blocks {
    /// Of the next one.
    entries: Vec<u8>,
    /// Room for it.
    block: Vec<u8>,
    to: Vec<u8>,
    /// Where they begin there.
    start: usize,
}

impl Blocks {
    fn bytes(&self) -> usize {
        self.to.len() - self.start
    }

    fn push(&mut self, mut piece: &[u8]) -> Option<()> {
        while self.entries.len() + piece.len() >= BLOCK_BYTES {
            let (whole, rest) = piece.split_at(BLOCK_BYTES - self.entries.len());
            self.entries.extend_from_slice(whole);
            self.end()?;
            piece = rest;
        }
        self.entries.extend_from_slice(piece);
        Some(())
    }

    /// Ends a block, if it has something.
    fn end(&mut self) -> Option<()> {
        if self.entries.is_empty() {
            return Some(());
        }
        let bytes = block::compress_into(&self.entries, &mut self.block).ok()?;
        if self.bytes() == 0 && !can_be_blocks(bytes, self.entries.len()) {
            return None;
        }
        let mut number = [0; VARINT_BYTES_MAX];
        let len = varint::write(bytes as u64, &mut number);
        self.to.extend_from_slice(&number[..len]);
        self.to.extend_from_slice(&self.block[..bytes]);
        self.entries.clear();
        Some(())
    }
}

/// Whether so many bytes of blocks can be for so many of entries: before memory is taken for these.
#[must_use]
pub(super) fn can_be_blocks(bytes: usize, entries: usize) -> bool {
    let saves = entries > 0 && bytes + entries.div_ceil(8) <= entries;
    saves && entries <= CHANGESET_BYTES_MAX && entries.div_ceil(RATIO_MAX) <= bytes
}

/// What blocks say, which are so many bytes.
pub(super) fn decompress(blocks: &[u8], entries: usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = vec![0; entries];
    let mut rest = blocks;
    for part in out.chunks_mut(BLOCK_BYTES) {
        rest = decompress_first(rest, part).ok_or(DecodeError::Block)?;
    }
    if rest.is_empty() {
        Ok(out)
    } else {
        Err(DecodeError::Block)
    }
}

/// Fills this from the first block; what follows that.
fn decompress_first<'a>(blocks: &'a [u8], part: &mut [u8]) -> Option<&'a [u8]> {
    let (bytes, rest) = varint::read(blocks)?;
    let (block, rest) = rest.split_at_checked(usize::try_from(bytes).ok()?)?;
    let filled = block::decompress_into(block, part).ok()?;
    (filled == part.len()).then_some(rest)
}

/// Entries that can be read: the bytes that came, or what they said as blocks.
#[derive(Debug)]
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
