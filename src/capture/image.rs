//! Rows that nothing names but what they hold: their images.
//!
//! Two rows are the same if each value is, byte for byte, as it was before it was compressed or stored
//! elsewhere: members differ in that, and in the length of headers. A dropped column counts as null.

use super::hash::Digest;
use super::layout::{Attr, Span};

const POINTER: u8 = 0x01;
/// Tag of a pointer to a value in a TOAST table (`VARTAG_ONDISK`).
const ON_DISK: u8 = 18;

/// A row's values: where they lie in which bytes.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// An element for each column.
    pub spans: &'a [Span],
    /// The row's data.
    pub data: &'a [u8],
}

impl<'a> Values<'a> {
    fn of(self, i: usize, attr: Attr) -> Option<&'a [u8]> {
        if attr.dropped {
            return None;
        }
        self.spans[i].of(self.data)
    }
}

/// What a value holds, without its header; `None` if it is compressed or stored elsewhere.
#[must_use]
pub fn plain(attr: Attr, value: &[u8]) -> Option<&[u8]> {
    if attr.len != -1 {
        return Some(value);
    }
    let header = match *value.first()? {
        POINTER => return None,
        short if short & 1 == 1 => 1,
        long if long & 3 == 0 => 4,
        _ => return None,
    };
    value.get(header..)
}

/// Bytes that a value holds, however it is stored; `None` if only the value itself can tell.
fn plain_len(attr: Attr, value: &[u8]) -> Option<usize> {
    let number = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
    match plain(attr, value) {
        Some(plain) => Some(plain.len()),
        None if value.first() == Some(&POINTER) => {
            // varatt_external: the length with a header.
            let whole = (value.get(1) == Some(&ON_DISK)).then(|| number(2))??;
            (whole as usize).checked_sub(4)
        }
        // varattrib_4b.va_compressed: the length and two bits for the method.
        None => Some((number(4)? & 0x3fff_ffff) as usize),
    }
}

/// Digest of a row's image. Of values that hold more than `whole_max` bytes only the length counts.
/// `flat` gives what a value holds that is compressed or stored elsewhere.
pub fn digest<'a, E>(
    start: Digest,
    attrs: &[Attr],
    row: Values<'a>,
    whole_max: usize,
    mut flat: impl FnMut(&'a [u8]) -> Result<&'a [u8], E>,
) -> Result<u64, E> {
    let mut digest = start;
    for (i, attr) in attrs.iter().enumerate() {
        let Some(value) = row.of(i, *attr) else {
            digest = digest.number(0);
            continue;
        };
        digest = match plain_len(*attr, value) {
            Some(len) if len > whole_max => digest.number(1).number(len as u64),
            _ => match plain(*attr, value) {
                Some(bytes) => digest.number(2).bytes(bytes),
                None => digest.number(2).bytes(flat(value)?),
            },
        };
    }
    Ok(digest.finish())
}

/// Whether two rows are the same.
pub fn same<'a, E>(
    attrs: &[Attr],
    one: Values<'a>,
    other: Values<'a>,
    mut flat: impl FnMut(&'a [u8]) -> Result<&'a [u8], E>,
) -> Result<bool, E> {
    // What needs no reading elsewhere comes first.
    let mut left = Vec::new();
    for (i, attr) in attrs.iter().enumerate() {
        let (a, b) = match (one.of(i, *attr), other.of(i, *attr)) {
            (None, None) => continue,
            (Some(a), Some(b)) => (a, b),
            _ => return Ok(false),
        };
        match (plain(*attr, a), plain(*attr, b)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) => return Ok(false),
            _ => match (plain_len(*attr, a), plain_len(*attr, b)) {
                (Some(a), Some(b)) if a != b => return Ok(false),
                _ => left.push((*attr, a, b)),
            },
        }
    }
    for (attr, a, b) in left {
        let a = plain(attr, a).map_or_else(|| flat(a), Ok)?;
        let b = plain(attr, b).map_or_else(|| flat(b), Ok)?;
        if a != b {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::layout::{self, Writer};
    use super::*;
    use std::convert::Infallible;

    const TEXT: Attr = Attr {
        len: -1,
        align: 4,
        by_value: false,
        dropped: false,
    };
    const INT4: Attr = Attr {
        len: 4,
        align: 4,
        by_value: true,
        dropped: false,
    };
    const GONE: Attr = Attr {
        dropped: true,
        ..INT4
    };

    fn short(text: &[u8]) -> Vec<u8> {
        [&[((text.len() as u8 + 1) << 1) | 1][..], text].concat()
    }

    fn long(text: &[u8]) -> Vec<u8> {
        let header = ((text.len() as u32 + 4) << 2).to_le_bytes();
        [&header[..], text].concat()
    }

    /// Compressed by leaving out all but the first byte, which is repeated so often.
    fn compressed(byte: u8, times: u32) -> Vec<u8> {
        let header = (9u32 << 2 | 2).to_le_bytes();
        [&header[..], &times.to_le_bytes()[..], &[byte][..]].concat()
    }

    /// Stored elsewhere: the byte, so often, as the OIDs of value and table.
    fn elsewhere(byte: u8, times: u32) -> Vec<u8> {
        let size = (times + 4).to_le_bytes();
        [
            &[POINTER, ON_DISK][..],
            &size[..],
            &[0; 4],
            &[byte, 0, 0, 0],
            &[0; 4],
        ]
        .concat()
    }

    fn flat(value: &[u8]) -> Result<&[u8], Infallible> {
        let (byte, times) = if value[0] == POINTER {
            (value[10], plain_len(TEXT, value))
        } else {
            (value[8], plain_len(TEXT, value))
        };
        Ok(vec![byte; times.expect("known")].leak())
    }

    struct Row(Vec<Attr>, Vec<Span>, Vec<u8>);

    impl Row {
        fn new(columns: &[(Attr, Option<Vec<u8>>)]) -> Row {
            let attrs: Vec<Attr> = columns.iter().map(|c| c.0).collect();
            let mut writer = Writer::new();
            for (attr, value) in columns {
                writer.push(*attr, value.as_deref());
            }
            let mut spans = Vec::new();
            let (bitmap, data) = (writer.bitmap(), writer.data());
            layout::walk(&attrs, attrs.len(), bitmap, data, &mut spans).expect("a row");
            Row(attrs, spans, data.to_vec())
        }

        fn values(&self) -> Values<'_> {
            Values {
                spans: &self.1,
                data: &self.2,
            }
        }

        fn digest(&self, whole_max: usize) -> u64 {
            let Ok(digest) = digest(Digest::new(), &self.0, self.values(), whole_max, flat);
            digest
        }

        fn is(&self, other: &Row) -> bool {
            let Ok(same) = same(&self.0, self.values(), other.values(), flat);
            let Ok(back) = super::same(&self.0, other.values(), self.values(), flat);
            assert_eq!(same, back);
            same
        }
    }

    fn text(value: Vec<u8>) -> Row {
        Row::new(&[(INT4, Some(vec![1, 2, 3, 4])), (TEXT, Some(value))])
    }

    #[test]
    fn a_row_is_the_same_however_its_values_are_stored() {
        let forms = [
            text(short(&[b'x'; 40])),
            text(long(&[b'x'; 40])),
            text(compressed(b'x', 40)),
            text(elsewhere(b'x', 40)),
        ];
        for one in &forms {
            for other in &forms {
                assert!(one.is(other));
                for whole_max in [0, 39, 40, usize::MAX] {
                    assert_eq!(one.digest(whole_max), other.digest(whole_max));
                }
            }
        }
    }

    #[test]
    fn a_row_differs_in_one_byte_a_length_or_a_null() {
        let rows = [
            text(short(&[b'x'; 40])),
            text(compressed(b'y', 40)),
            text(elsewhere(b'x', 41)),
            text(short(b"")),
            Row::new(&[(INT4, Some(vec![1, 2, 3, 4])), (TEXT, None)]),
            Row::new(&[(INT4, None), (TEXT, Some(short(&[b'x'; 40])))]),
            Row::new(&[(INT4, Some(vec![1, 2, 3, 5])), (TEXT, None)]),
        ];
        for (i, one) in rows.iter().enumerate() {
            for (j, other) in rows.iter().enumerate() {
                assert_eq!(one.is(other), i == j, "{i} {j}");
                let equal = one.digest(usize::MAX) == other.digest(usize::MAX);
                assert_eq!(equal, i == j, "{i} {j}");
            }
        }
        assert_eq!(rows[0].digest(39), rows[1].digest(39));
    }

    #[test]
    fn what_is_left_of_a_dropped_column_does_not_count() {
        let row = |left: Option<Vec<u8>>| Row::new(&[(GONE, left), (TEXT, Some(short(b"a")))]);
        let (old, new) = (row(Some(vec![7, 7, 7, 7])), row(None));
        assert!(old.is(&new));
        assert_eq!(old.digest(usize::MAX), new.digest(usize::MAX));
    }
}
