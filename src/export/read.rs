//! What SERIALIZABLE transactions read, as predicate.c and the access methods report it.

use crate::capture::read;
use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::relation::{Handle, Tuple, index_form};
use crate::pg::search::ScanKeys;
use crate::pg::sys;
use std::ffi::c_int;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_reads: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_unread: sys::Oid = 0;

#[unsafe(no_mangle)]
extern "C" fn pgr_do_serializable(imported: bool) -> bool {
    boundary(|| read::begin(imported))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_read_table(rel: sys::Relation) {
    // SAFETY: open as long as this call lasts.
    let rel = unsafe { Handle::from_raw(rel) };
    boundary(|| read::table(rel));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_read_row(rel: sys::Relation, tuple: sys::HeapTuple) {
    // SAFETY: open, and in a pinned buffer, as long as this call lasts.
    let (rel, tuple) = unsafe { (Handle::from_raw(rel), Tuple::from_raw(tuple)) };
    boundary(|| read::row(rel, tuple));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_reads_rows(rel: sys::Relation) -> bool {
    // SAFETY: open as long as this call lasts.
    let rel = unsafe { Handle::from_raw(rel) };
    boundary_nofail(|| read::counts_rows(rel))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_read_index(
    index: sys::Relation,
    keys: *const sys::ScanKeyData,
    nkeys: c_int,
) {
    // SAFETY: open, and in place, as long as this call lasts.
    let (index, keys) = unsafe { (Handle::from_raw(index), ScanKeys::from_raw(keys, nkeys)) };
    boundary(|| read::index(index, keys));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_read_duplicate(
    rel: sys::Relation,
    index: sys::Relation,
    tid: *const sys::ItemPointerData,
    values: *const sys::Datum,
    nulls: *const bool,
) {
    boundary(|| {
        // SAFETY: open as long as this call lasts.
        let (rel, index) = unsafe { (Handle::from_raw(rel), Handle::from_raw(index)) };
        let n = index_form(index).indnkeyatts as usize;
        // SAFETY: an entry of the index has a value, or a null, for each of its columns.
        let (values, nulls) = unsafe {
            (
                std::slice::from_raw_parts(values, n),
                std::slice::from_raw_parts(nulls, n),
            )
        };
        // SAFETY: null, or where a row lies that is in the way.
        let tid = unsafe { tid.as_ref() }.copied();
        read::duplicate(rel, index, tid, values, nulls)
    });
}
