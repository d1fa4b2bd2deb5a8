//! The bytes of a heap tuple, taken apart and put together without PostgreSQL's help.
//!
//! A row's attributes lie one after the other, each aligned for its type, null ones left out; what
//! is here follows `att_align_pointer` and `heap_fill_tuple` (access/tupmacs.h, heaptuple.c), so
//! that the bytes can be put back into a heap tuple as they are.

#[cfg(not(target_endian = "little"))]
compile_error!("varlena headers are read as little endian");

/// How one attribute is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// `attlen`: bytes, -1 for a varlena, -2 for a C string.
    pub len: i16,
    /// Alignment in bytes: 1, 2, 4 or 8.
    pub align: u8,
    /// `attbyval`.
    pub by_value: bool,
    /// The column was dropped: null in every row that is written from then on.
    pub dropped: bool,
}

/// Where one attribute's bytes lie in the data area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First byte; [`Span::NULL`] has `u32::MAX`.
    pub start: u32,
    /// One past the last.
    pub end: u32,
}

impl Span {
    /// A null attribute.
    pub const NULL: Span = Span {
        start: u32::MAX,
        end: u32::MAX,
    };

    /// Whether the attribute is null.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.start == u32::MAX
    }

    /// The attribute's bytes in the data area, `None` for null.
    #[must_use]
    pub fn of(self, data: &[u8]) -> Option<&[u8]> {
        if self.is_null() {
            None
        } else {
            data.get(self.start as usize..self.end as usize)
        }
    }

    /// The same, to be written.
    #[must_use]
    pub fn of_mut(self, data: &mut [u8]) -> Option<&mut [u8]> {
        if self.is_null() {
            None
        } else {
            data.get_mut(self.start as usize..self.end as usize)
        }
    }
}

/// The bytes are no row of this layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// Which attribute (from 1) runs over the end.
    pub attribute: u16,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "attribute {} does not fit into the row", self.attribute)
    }
}

/// Finds every attribute of a row. `spans` gets one for each of the first `natts` attributes.
pub fn walk(
    attrs: &[Attr],
    natts: usize,
    bitmap: Option<&[u8]>,
    data: &[u8],
    spans: &mut Vec<Span>,
) -> Result<(), Malformed> {
    spans.clear();
    let mut at = 0usize;
    for (i, attr) in attrs.iter().take(natts).enumerate() {
        if bitmap.is_some_and(|b| !not_null(b, i)) {
            spans.push(Span::NULL);
            continue;
        }
        let malformed = Malformed {
            attribute: u16::try_from(i + 1).unwrap_or(u16::MAX),
        };
        let (start, len) = match attr.len {
            -1 => {
                // Padding is zero and a short header never is.
                let start = match data.get(at) {
                    Some(0) => align_up(at, attr.align),
                    Some(_) => at,
                    None => return Err(malformed),
                };
                (
                    start,
                    varlena_len(data.get(start..).unwrap_or(&[])).ok_or(malformed)?,
                )
            }
            -2 => {
                let start = align_up(at, attr.align);
                let rest = data.get(start..).ok_or(malformed)?;
                let end = rest.iter().position(|b| *b == 0).ok_or(malformed)?;
                (start, end + 1)
            }
            fixed => (
                align_up(at, attr.align),
                usize::try_from(fixed).map_err(|_| malformed)?,
            ),
        };
        let end = start + len;
        if end > data.len() {
            return Err(malformed);
        }
        // A tuple is far below 4 GiB (MaxAllocSize is 1 GiB).
        spans.push(Span {
            start: start as u32,
            end: end as u32,
        });
        at = end;
    }
    Ok(())
}

/// Whether attribute `i` (from 0) has a value.
#[must_use]
pub fn not_null(bitmap: &[u8], i: usize) -> bool {
    bitmap.get(i / 8).is_some_and(|b| b & (1 << (i % 8)) != 0)
}

/// Whole length of the varlena at the start of `bytes`, header included; `None` if there is none.
#[must_use]
pub fn varlena_len(bytes: &[u8]) -> Option<usize> {
    let first = *bytes.first()?;
    let len = if first == 0x01 {
        // varattrib_1b_e: a tag follows that says what kind of pointer it is.
        2 + match *bytes.get(1)? {
            1..=3 => 8,
            18 => 16,
            _ => return None,
        }
    } else if first & 1 == 1 {
        usize::from(first >> 1)
    } else {
        let header = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        (header >> 2) as usize
    };
    let least = if first & 1 == 1 { 1 } else { 4 };
    (len >= least).then_some(len)
}

/// Whether a varlena's bytes are a pointer to a value that is stored elsewhere.
#[must_use]
pub fn is_external(attr: Attr, value: &[u8]) -> bool {
    attr.len == -1 && value.first() == Some(&0x01)
}

/// Whether a varlena is compressed, be it stored here or elsewhere (`varatt_external` of varatt.h: raw
/// size with a header, then the size stored in the lower 30 bits).
#[must_use]
pub fn is_compressed(value: &[u8]) -> bool {
    match value {
        [0x01, 18, a, b, c, d, e, f, g, h, ..] => {
            let raw = u32::from_le_bytes([*a, *b, *c, *d]);
            let stored = u32::from_le_bytes([*e, *f, *g, *h]) & 0x3fff_ffff;
            stored < raw.saturating_sub(4)
        }
        [first, ..] => first & 3 == 2,
        [] => false,
    }
}

/// Whether a value can stand where another does, with everything else of the row as it is. Long varlenas
/// can't: they are aligned, where short ones of the same length need not be.
#[must_use]
pub fn fits(attr: Attr, old: &[u8], new: &[u8]) -> bool {
    let is_short = |value: &[u8]| value.first().is_some_and(|b| b & 1 == 1 && *b != 0x01);
    old.len() == new.len() && (attr.len > 0 || attr.len == -1 && is_short(old) && is_short(new))
}

/// Next offset at or after `at` with this alignment.
#[must_use]
pub const fn align_up(at: usize, align: u8) -> usize {
    let mask = align as usize - 1;
    (at + mask) & !mask
}

/// Builds the data area and null bitmap of a row; the buffers are used again for the next one.
#[derive(Default, Debug)]
pub struct Writer {
    bitmap: Vec<u8>,
    data: Vec<u8>,
    natts: usize,
    nulls: bool,
}

impl Writer {
    /// Nothing allocated yet.
    #[must_use]
    pub const fn new() -> Writer {
        Writer {
            bitmap: Vec::new(),
            data: Vec::new(),
            natts: 0,
            nulls: false,
        }
    }

    /// Starts a row.
    pub fn clear(&mut self) {
        self.bitmap.clear();
        self.data.clear();
        self.natts = 0;
        self.nulls = false;
    }

    /// Appends the next attribute's bytes as they lie in a tuple; `None` for null.
    pub fn push(&mut self, attr: Attr, value: Option<&[u8]>) {
        if self.natts.is_multiple_of(8) {
            self.bitmap.push(0);
        }
        if let Some(value) = value {
            self.bitmap[self.natts / 8] |= 1 << (self.natts % 8);
            let packed = attr.len == -1 && value.first().is_some_and(|b| b & 1 == 1);
            if !packed {
                self.data.resize(align_up(self.data.len(), attr.align), 0);
            }
            self.data.extend_from_slice(value);
        } else {
            self.nulls = true;
        }
        self.natts += 1;
    }

    /// Attributes so far.
    #[must_use]
    pub fn natts(&self) -> usize {
        self.natts
    }

    /// The null bitmap; `None` if no attribute is null.
    #[must_use]
    pub fn bitmap(&self) -> Option<&[u8]> {
        self.nulls.then_some(&self.bitmap[..])
    }

    /// The data area.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INT4: Attr = Attr {
        len: 4,
        align: 4,
        by_value: true,
        dropped: false,
    };
    const INT8: Attr = Attr {
        len: 8,
        align: 8,
        by_value: true,
        dropped: false,
    };
    const BOOL: Attr = Attr {
        len: 1,
        align: 1,
        by_value: true,
        dropped: false,
    };
    const TEXT: Attr = Attr {
        len: -1,
        align: 4,
        by_value: false,
        dropped: false,
    };
    const CSTRING: Attr = Attr {
        len: -2,
        align: 1,
        by_value: false,
        dropped: false,
    };

    fn short(text: &[u8]) -> Vec<u8> {
        let mut v = vec![((text.len() as u8 + 1) << 1) | 1];
        v.extend_from_slice(text);
        v
    }

    fn long(text: &[u8]) -> Vec<u8> {
        let mut v = ((text.len() as u32 + 4) << 2).to_le_bytes().to_vec();
        v.extend_from_slice(text);
        v
    }

    fn value(attr: Attr) -> BoxedStrategy<Option<Vec<u8>>> {
        let bytes = prop::collection::vec(1u8..255, 0..40);
        let some = match attr.len {
            -1 => prop_oneof![
                bytes.clone().prop_map(|b| short(&b)),
                bytes.prop_map(|b| long(&b)),
                Just([&[1u8, 18][..], &[7; 16][..]].concat()),
            ]
            .boxed(),
            -2 => bytes.prop_map(|b| [&b[..], &[0][..]].concat()).boxed(),
            n => prop::collection::vec(any::<u8>(), n as usize).boxed(),
        };
        prop_oneof![1 => Just(None), 4 => some.prop_map(Some)].boxed()
    }

    fn rows() -> impl Strategy<Value = Vec<(Attr, Option<Vec<u8>>)>> {
        let attr = prop::sample::select(vec![INT4, INT8, BOOL, TEXT, CSTRING]);
        prop::collection::vec(
            attr.prop_flat_map(|a| value(a).prop_map(move |v| (a, v))),
            0..20,
        )
    }

    proptest! {
        #[test]
        fn what_was_written_is_found_again(row in rows()) {
            let attrs: Vec<Attr> = row.iter().map(|r| r.0).collect();
            let mut w = Writer::new();
            for (attr, value) in &row {
                w.push(*attr, value.as_deref());
            }
            let mut spans = Vec::new();
            walk(&attrs, attrs.len(), w.bitmap(), w.data(), &mut spans).unwrap();
            let found: Vec<_> = spans.iter().map(|s| s.of(w.data()).map(<[u8]>::to_vec)).collect();
            let written: Vec<_> = row.into_iter().map(|r| r.1).collect();
            prop_assert_eq!(found, written);
        }

        #[test]
        fn what_fits_stands_as_if_it_were_written_there(row in rows(), others in rows()) {
            let written = |values: &[Option<Vec<u8>>]| {
                let mut w = Writer::new();
                for ((attr, _), value) in row.iter().zip(values) {
                    w.push(*attr, value.as_deref());
                }
                w
            };
            let attrs: Vec<Attr> = row.iter().map(|r| r.0).collect();
            let mut values: Vec<_> = row.iter().map(|r| r.1.clone()).collect();
            let before = written(&values);
            let (mut data, mut spans) = (before.data().to_vec(), Vec::new());
            walk(&attrs, attrs.len(), before.bitmap(), before.data(), &mut spans).unwrap();
            for (i, value) in values.iter_mut().enumerate() {
                let of_this = others.iter().filter(|o| o.0 == attrs[i]).filter_map(|o| o.1.as_ref());
                let mut fitting = of_this.filter(|new| value.as_ref().is_some_and(|old| fits(attrs[i], old, new)));
                if let Some(new) = fitting.next() {
                    spans[i].of_mut(&mut data).unwrap().copy_from_slice(new);
                    *value = Some(new.clone());
                }
            }
            let after = written(&values);
            prop_assert_eq!(&data[..], after.data());
        }

        #[test]
        fn garbage_is_refused_and_never_read_beyond_its_end(
            attrs in prop::collection::vec(prop::sample::select(vec![INT4, INT8, BOOL, TEXT, CSTRING]), 0..12),
            bitmap in prop::option::of(prop::collection::vec(any::<u8>(), 0..3)),
            data in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut spans = Vec::new();
            if walk(&attrs, attrs.len(), bitmap.as_deref(), &data, &mut spans).is_ok() {
                for s in spans {
                    prop_assert!(s.is_null() || s.of(&data).is_some());
                }
            }
        }
    }

    #[test]
    fn lays_a_row_out_as_postgresql_does() {
        // (true, 7::int4, 'ab', 1::int8): padding before the int4 and the int8, none before the short text.
        let mut w = Writer::new();
        w.push(BOOL, Some(&[1]));
        w.push(INT4, Some(&7u32.to_le_bytes()));
        w.push(TEXT, Some(&short(b"ab")));
        w.push(INT8, Some(&1u64.to_le_bytes()));
        assert_eq!(w.bitmap(), None);
        assert_eq!(
            w.data(),
            [
                1, 0, 0, 0, 7, 0, 0, 0, 7, b'a', b'b', 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn tells_what_is_compressed() {
        let pointer = |raw: u32, info: u32| {
            let mut v = vec![0x01, 18];
            v.extend(raw.to_le_bytes());
            v.extend(info.to_le_bytes());
            v.extend([7; 8]);
            v
        };
        assert!(!is_compressed(&short(b"ab")));
        assert!(!is_compressed(&long(b"ab")));
        assert!(is_compressed(&(40u32 << 2 | 2).to_le_bytes()));
        assert!(!is_compressed(&pointer(104, 100)));
        assert!(is_compressed(&pointer(104, 99)));
        // By the method whose bits lie above the size.
        assert!(is_compressed(&pointer(104, 1 << 30 | 99)));
        assert!(!is_compressed(&[]));
    }

    #[test]
    fn what_has_another_length_or_alignment_does_not_fit() {
        let (text, same) = (short(b"abcd"), short(b"efgh"));
        assert!(fits(TEXT, &text, &same));
        assert!(fits(INT4, &[1, 2, 3, 4], &[0, 0, 0, 0]));
        assert!(!fits(TEXT, &text, &short(b"abc")));
        assert!(!fits(TEXT, &text, &long(b"a")));
        assert!(!fits(TEXT, &long(b"a"), &text));
        assert!(!fits(TEXT, &long(b"a"), &long(b"b")));
        let pointer = [&[1u8, 18][..], &[7; 16][..]].concat();
        assert!(!fits(TEXT, &pointer, &pointer));
        assert!(!fits(CSTRING, b"a\0", b"b\0"));
    }

    #[test]
    fn a_length_beyond_the_row_is_malformed() {
        let mut spans = Vec::new();
        let claims_1000 = (1000u32 << 2).to_le_bytes();
        assert_eq!(
            walk(&[TEXT], 1, None, &claims_1000, &mut spans),
            Err(Malformed { attribute: 1 })
        );
    }
}
