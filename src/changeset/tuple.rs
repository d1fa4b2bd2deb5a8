//! Rows as heap data.

/// A row, or the part of one that travels: null bitmap and attribute bytes exactly as they stand in
/// a heap tuple behind its header (`t_bits`, and from `t_hoff` on), with nothing out of line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TupleBytes<'a> {
    /// Attributes stored, as `HeapTupleHeaderGetNatts`.
    pub natts: u16,
    /// A bit an attribute, set if it is not null (`t_bits`); none if no attribute is null.
    pub bitmap: Option<&'a [u8]>,
    /// Attribute bytes. Offsets in it are those of a heap tuple, whose data begin maximally aligned;
    /// the slice itself is not aligned when it comes out of a changeset: copy it to where it is.
    pub data: &'a [u8],
}

/// Bytes of a bitmap with a bit for each of so many attributes (`BITMAPLEN`).
#[must_use]
pub const fn bitmap_bytes(natts: u16) -> usize {
    (natts as usize).div_ceil(8)
}

/// Columns that an update changed: bit `i` of byte `i / 8` for the attribute with number `i + 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bitmap<'a>(pub &'a [u8]);

impl Bitmap<'_> {
    /// Whether the attribute at this place (from 0) is set.
    #[must_use]
    pub fn has(self, i: usize) -> bool {
        self.0.get(i / 8).is_some_and(|b| b & (1 << (i % 8)) != 0)
    }
}
