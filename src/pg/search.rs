//! Searches in indexes: which values a scan looks for.

use super::guard::{self, Result};
use super::relation::{Handle, HashProc};
use super::sys;
use crate::capture::range::Image;
use std::ffi::c_int;

const COLUMNS_MAX: usize = sys::INDEX_MAX_KEYS as usize;

/// `PgrSearched` of shim_search.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct PgrSearched {
    values: *const sys::Datum,
    n: c_int,
    hash: *mut sys::FmgrInfo,
}

/// `PgrRange` of shim_search.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct PgrRange {
    low: i64,
    high: i64,
    bounded: bool,
}

unsafe extern "C" {
    fn pgr_shim_index_integer(index: Handle, column: c_int) -> c_int;
    fn pgr_shim_is_newer(
        rel: Handle,
        tid: *const sys::ItemPointerData,
        out: *mut bool,
        e: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_index_search_values(
        index: Handle,
        keys: *const sys::ScanKeyData,
        nkeys: c_int,
        out: *mut PgrSearched,
        count: *mut c_int,
        range: *mut PgrRange,
        nothing: *mut bool,
        e: *mut *mut sys::ErrorData,
    ) -> c_int;
}

/// Whether the row that an index has under this TID is newer than the transaction's snapshot, and not
/// its own.
pub fn is_newer(rel: Handle, tid: sys::ItemPointerData) -> Result<bool> {
    // SAFETY: an open table; the shim copies the TID.
    guard::call(false, |out, e| unsafe {
        pgr_shim_is_newer(rel, &raw const tid, out, e)
    })
}

/// The keys of an index scan, as its executor has them.
#[derive(Clone, Copy, Debug)]
pub struct ScanKeys {
    first: *const sys::ScanKeyData,
    n: c_int,
}

impl ScanKeys {
    /// Those that PostgreSQL has.
    ///
    /// # Safety
    /// They are `n` scan keys that stay in place as long as this is used.
    #[must_use]
    pub unsafe fn from_raw(first: *const sys::ScanKeyData, n: c_int) -> ScanKeys {
        ScanKeys { first, n }
    }
}

/// The values that a search allows in one column; in the memory context in which it was worked out.
#[derive(Clone, Copy, Debug)]
pub struct Searched<'a> {
    /// Any of these, none of them null.
    pub values: &'a [sys::Datum],
    /// How they hash, if they are of another type than the column.
    pub hash: Option<HashProc>,
}

/// What an index is searched for.
#[derive(Clone, Debug)]
pub struct Search<'a> {
    /// What the leading columns that are compared with equal values may have.
    pub columns: Vec<Searched<'a>>,
    /// The integers, both included, that the column behind them may have, if not all: see
    /// [`integers`].
    pub range: Option<(i64, i64)>,
}

/// The integers by whose order a column of an index is sorted, if it is.
#[must_use]
pub fn integers(index: Handle, column: usize) -> Option<Image> {
    // SAFETY: an open index and one of its key columns; never raises.
    Image::from_bytes(unsafe { pgr_shim_index_integer(index, column as c_int) })
}

/// What a scan of an index looks for, by way of the current memory context; `None` if it can find
/// nothing (it compares with null, or with too much).
pub fn searched<'a>(index: Handle, keys: ScanKeys) -> Result<Option<Search<'a>>> {
    let none = PgrSearched {
        values: std::ptr::null(),
        n: 0,
        hash: std::ptr::null_mut(),
    };
    let mut out = [none; COLUMNS_MAX];
    let mut range = PgrRange {
        low: 0,
        high: 0,
        bounded: false,
    };
    let (mut count, mut nothing) = (0, false);
    // SAFETY: an open index has at most INDEX_MAX_KEYS columns, for which there is room; the keys are
    // as `ScanKeys` says.
    guard::call0(|e| unsafe {
        pgr_shim_index_search_values(
            index,
            keys.first,
            keys.n,
            out.as_mut_ptr(),
            &raw mut count,
            &raw mut range,
            &raw mut nothing,
            e,
        )
    })?;
    if nothing {
        return Ok(None);
    }
    let column = |s: &PgrSearched| Searched {
        // SAFETY: the shim made an array of n values, palloc'd in the current context.
        values: unsafe { std::slice::from_raw_parts(s.values, s.n as usize) },
        hash: (!s.hash.is_null()).then_some(HashProc(s.hash)),
    };
    Ok(Some(Search {
        columns: out[..count as usize].iter().map(column).collect(),
        range: range.bounded.then_some((range.low, range.high)),
    }))
}
