//! Heap tuples as bytes, and bytes as heap tuples.

use super::relation::Tuple;
use super::sys;
use crate::capture::layout::Attr;
use std::mem::offset_of;

/// What of a heap tuple travels: borrowed from wherever the tuple lies.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Attributes stored; a row that is older than its table's newest column has fewer.
    pub natts: usize,
    /// Null bitmap, `None` if nothing is null.
    pub bitmap: Option<&'a [u8]>,
    /// Attributes' bytes, from `t_hoff` on.
    pub data: &'a [u8],
    /// Some attribute is a pointer to a value that is stored out of line.
    pub external: bool,
}

/// A tuple's parts, which stay in place as long as the tuple (see [`Tuple::from_raw`]).
#[must_use]
pub fn row<'a>(tuple: Tuple) -> Row<'a> {
    // SAFETY: t_data points at t_len bytes that begin with a tuple header; t_hoff lies in them.
    unsafe {
        let header = (*tuple.0).t_data;
        let base = header.cast::<u8>();
        let hoff = usize::from((*header).t_hoff);
        let natts = usize::from((*header).t_infomask2 & sys::HEAP_NATTS_MASK as u16);
        let infomask = u32::from((*header).t_infomask);
        let bitmap = (infomask & sys::HEAP_HASNULL != 0).then(|| {
            let bits = base.add(offset_of!(sys::HeapTupleHeaderData, t_bits));
            std::slice::from_raw_parts(bits.cast_const(), natts.div_ceil(8))
        });
        let len = (*tuple.0).t_len as usize;
        debug_assert!(hoff <= len);
        let data = std::slice::from_raw_parts(base.add(hoff).cast_const(), len - hoff);
        Row {
            natts,
            bitmap,
            data,
            external: infomask & sys::HEAP_HASEXTERNAL != 0,
        }
    }
}

/// Memory for one heap tuple at a time, used again for the next.
pub struct TupleBuffer {
    /// Eight-byte units, so that it is aligned as palloc would.
    memory: Vec<u64>,
    tuple: sys::HeapTupleData,
}

impl TupleBuffer {
    /// Empty.
    #[must_use]
    pub fn new() -> TupleBuffer {
        // SAFETY: a plain C structure of integers and one pointer.
        let tuple = unsafe { std::mem::zeroed() };
        TupleBuffer {
            memory: Vec::new(),
            tuple,
        }
    }

    /// Puts a row into the form that the heap functions take. The tuple is valid until the next
    /// call; the heap functions write its header.
    pub fn form(
        &mut self,
        relation: u32,
        natts: u16,
        bitmap: Option<&[u8]>,
        data: &[u8],
        has_varwidth: bool,
    ) -> Tuple {
        let bits_at = offset_of!(sys::HeapTupleHeaderData, t_bits);
        let hoff = (bits_at + bitmap.map_or(0, <[u8]>::len)).next_multiple_of(8);
        let len = hoff + data.len();
        self.memory.clear();
        self.memory.resize(len.div_ceil(8), 0);
        let base = self.memory.as_mut_ptr().cast::<u8>();
        let header = base.cast::<sys::HeapTupleHeaderData>();
        let mut infomask = 0;
        if bitmap.is_some() {
            infomask |= sys::HEAP_HASNULL;
        }
        if has_varwidth {
            infomask |= sys::HEAP_HASVARWIDTH;
        }
        // SAFETY: `memory` has `len` bytes, zeroed and aligned; hoff and bits lie within.
        unsafe {
            (*header).t_infomask = infomask as u16;
            (*header).t_infomask2 = natts;
            (*header).t_hoff = hoff as u8;
            if let Some(bits) = bitmap {
                std::ptr::copy_nonoverlapping(bits.as_ptr(), base.add(bits_at), bits.len());
            }
            std::ptr::copy_nonoverlapping(data.as_ptr(), base.add(hoff), data.len());
        }
        self.tuple.t_len = len as u32;
        self.tuple.t_tableOid = relation;
        self.tuple.t_data = header;
        invalidate(&mut self.tuple.t_self);
        Tuple(&raw mut self.tuple)
    }

    /// A copy of a row of a table, as a new version of it. Valid as that of [`TupleBuffer::form`].
    pub fn copy(&mut self, old: Tuple) -> Tuple {
        // SAFETY: a live tuple, whose header is as long as its t_hoff says.
        let (len, old) = unsafe { ((*old.0).t_len as usize, &*old.0) };
        self.memory.clear();
        self.memory.resize(len.div_ceil(8), 0);
        let base = self.memory.as_mut_ptr().cast::<u8>();
        let header = base.cast::<sys::HeapTupleHeaderData>();
        let kept = sys::HEAP_HASNULL | sys::HEAP_HASVARWIDTH | sys::HEAP_HASEXTERNAL;
        // SAFETY: `memory` has `len` bytes, aligned; t_data points at as many, which begin with a header.
        unsafe {
            std::ptr::copy_nonoverlapping(old.t_data.cast::<u8>().cast_const(), base, len);
            (*header).t_infomask &= kept as u16;
            (*header).t_infomask2 &= sys::HEAP_NATTS_MASK as u16;
        }
        self.tuple = *old;
        self.tuple.t_data = header;
        Tuple(&raw mut self.tuple)
    }

    /// Bytes of the attributes of the tuple that it holds.
    pub fn data_mut(&mut self) -> &mut [u8] {
        let base = self.memory.as_mut_ptr().cast::<u8>();
        // SAFETY: `memory` holds the t_len bytes of the tuple, of which the header has t_hoff.
        unsafe {
            let hoff = usize::from((*self.tuple.t_data).t_hoff);
            std::slice::from_raw_parts_mut(base.add(hoff), self.tuple.t_len as usize - hoff)
        }
    }
}

impl Default for TupleBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// ItemPointerSetInvalid.
fn invalidate(tid: &mut sys::ItemPointerData) {
    tid.ip_blkid.bi_hi = u16::MAX;
    tid.ip_blkid.bi_lo = u16::MAX;
    tid.ip_posid = 0;
}

/// An attribute's bytes as a Datum (`fetch_att`); one by reference points into `bytes`.
#[must_use]
pub fn datum(attr: Attr, bytes: &[u8]) -> sys::Datum {
    if !attr.by_value {
        return bytes.as_ptr() as sys::Datum;
    }
    // Sign extended, as the *GetDatum functions do.
    let value = match bytes.len() {
        1 => i64::from(bytes[0] as i8),
        2 => i64::from(i16::from_le_bytes([bytes[0], bytes[1]])),
        4 => i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        8 => i64::from_le_bytes(bytes.try_into().unwrap_or([0; 8])),
        other => unreachable!("no type of {other} bytes is passed by value"),
    };
    value as sys::Datum
}
