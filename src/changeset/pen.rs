//! Writes entries, field by field.

use super::entry::{TUPLE_BITMAP, TUPLE_CHANGED, TUPLE_SHIFT, TUPLE_SHORT};
use super::sink::{Full, Sink};
use super::tuple::{Bitmap, TupleBytes, bitmap_bytes};
use super::varint::{self, VARINT_BYTES_MAX};

/// Writes straight into the sink: nothing of a row is copied on the way, and no memory is held that
/// an error of PostgreSQL could leak.
pub(super) struct Pen<'a, S: Sink> {
    pub(super) sink: &'a mut S,
}

impl<S: Sink> Pen<'_, S> {
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sink.append(bytes)
    }

    pub(super) fn varints<const N: usize>(&mut self, values: [u64; N]) -> Result<(), Full> {
        const { assert!(N <= 2) };
        let mut bytes = [0; 2 * VARINT_BYTES_MAX];
        let mut at = 0;
        for value in values {
            at += varint::write(value, &mut bytes[at..]);
        }
        self.put(&bytes[..at])
    }

    /// A row of a relation with so many attributes. A number: bytes of data, shifted left by 2; plus
    /// [`TUPLE_SHORT`] if it has fewer attributes, plus [`TUPLE_BITMAP`] if it has a bitmap; then how many
    /// attributes, if they are fewer; bitmap; data.
    pub(super) fn tuple(&mut self, row: &TupleBytes<'_>, natts: u16) -> Result<(), Full> {
        assert!(row.natts <= natts, "a row of its relation");
        let length = (row.data.len() as u64) << TUPLE_SHIFT;
        let bitmap = if row.bitmap.is_some() {
            TUPLE_BITMAP
        } else {
            0
        };
        if row.natts < natts {
            self.varints([length | bitmap | TUPLE_SHORT, row.natts.into()])?;
        } else {
            self.varints([length | bitmap])?;
        }
        if let Some(bitmap) = row.bitmap {
            self.put(&bitmap[..bitmap_bytes(row.natts)])?;
        }
        self.put(row.data)
    }

    /// The new row of an update, of all attributes. A number: bytes of data, shifted left by 2; plus
    /// [`TUPLE_CHANGED`] if its bitmap is that of the changed columns, since none of them is null, else plus
    /// [`TUPLE_BITMAP`] if it has one; that; data.
    pub(super) fn changed_tuple(
        &mut self,
        row: &TupleBytes<'_>,
        changed: Bitmap<'_>,
    ) -> Result<(), Full> {
        let length = (row.data.len() as u64) << TUPLE_SHIFT;
        match row.bitmap.map(|b| &b[..changed.0.len()]) {
            None => self.varints([length])?,
            Some(bitmap) if bitmap == changed.0 => self.varints([length | TUPLE_CHANGED])?,
            Some(bitmap) => {
                self.varints([length | TUPLE_BITMAP])?;
                self.put(bitmap)?;
            }
        }
        self.put(row.data)
    }
}
