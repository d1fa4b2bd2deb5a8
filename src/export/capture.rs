//! Changes and locks of rows, as heapam.c reports them.

use crate::capture::change;
use crate::changeset::LockMode;
use crate::pg::guard::boundary;
use crate::pg::{heap, sys};
use std::ffi::c_int;

#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_insert(rel: sys::Relation, tuple: sys::HeapTuple) {
    boundary(|| change::insert(rel, tuple));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_multi_insert(
    rel: sys::Relation,
    slots: *mut *mut sys::TupleTableSlot,
    tuples: *mut sys::HeapTuple,
    ntuples: c_int,
) {
    boundary(|| {
        let n = ntuples as usize;
        // SAFETY: heap_multi_insert passes as many of both as it says.
        let (slots, tuples) = unsafe {
            (
                std::slice::from_raw_parts(slots, n),
                std::slice::from_raw_parts(tuples, n),
            )
        };
        change::insert_many(rel, tuples, |i| heap::slot_tuple(slots[i]))
    });
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_update(
    rel: sys::Relation,
    old: sys::HeapTuple,
    new: sys::HeapTuple,
    key_intact: bool,
) {
    boundary(|| change::update(rel, old, new, key_intact));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_delete(rel: sys::Relation, old: sys::HeapTuple, _moved: bool) {
    // A row that goes to another partition is a delete here and an insert there.
    boundary(|| change::delete(rel, old));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_lock(
    rel: sys::Relation,
    tuple: sys::HeapTuple,
    mode: sys::LockTupleMode,
) {
    boundary(|| {
        let mode = match mode {
            sys::LockTupleKeyShare => LockMode::KeyShare,
            sys::LockTupleShare => LockMode::Share,
            sys::LockTupleNoKeyExclusive => LockMode::NoKeyUpdate,
            _ => LockMode::Update,
        };
        change::lock(rel, tuple, mode)
    });
}
