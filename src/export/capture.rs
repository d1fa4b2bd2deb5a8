//! Changes and locks of rows, as heapam.c reports them.

use crate::capture::{change, large_object, table_lock, truncate};
use crate::changeset::LockMode;
use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::heap::{self, Slot};
use crate::pg::relation::{self, Handle, Tuple};
use crate::pg::sys;
use std::ffi::c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_insert(
    rel: sys::Relation,
    stored: sys::HeapTuple,
    original: sys::HeapTuple,
) {
    // SAFETY: open, and in place, as long as this call lasts.
    let (rel, stored, original) = unsafe {
        (
            Handle::from_raw(rel),
            Tuple::from_raw(stored),
            Tuple::from_raw(original),
        )
    };
    boundary(|| change::insert(rel, stored, original));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_multi_insert(
    rel: sys::Relation,
    slots: *mut *mut sys::TupleTableSlot,
    tuples: *mut sys::HeapTuple,
    ntuples: c_int,
) {
    let n = ntuples as usize;
    boundary(|| {
        // SAFETY: open as long as this call lasts.
        let rel = unsafe { Handle::from_raw(rel) };
        // SAFETY: heap_multi_insert passes as many tuples as it says, in place during this call.
        let tuple = |i: usize| unsafe { Tuple::from_raw(*tuples.add(i)) };
        // SAFETY: and as many slots.
        let slot = |i: usize| unsafe { Slot::from_raw(*slots.add(i)) };
        change::insert_many(rel, n, tuple, |i| heap::slot_tuple(slot(i)))
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_update(
    rel: sys::Relation,
    old: sys::HeapTuple,
    new: sys::HeapTuple,
    original: sys::HeapTuple,
    key_intact: bool,
) {
    // SAFETY: open, and in place, as long as this call lasts.
    let (rel, old, new, original) = unsafe {
        (
            Handle::from_raw(rel),
            Tuple::from_raw(old),
            Tuple::from_raw(new),
            Tuple::from_raw(original),
        )
    };
    boundary(|| change::update(rel, old, new, original, key_intact));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_delete(rel: sys::Relation, old: sys::HeapTuple, moved: bool) {
    // SAFETY: open, and in place, as long as this call lasts.
    let (rel, old) = unsafe { (Handle::from_raw(rel), Tuple::from_raw(old)) };
    boundary(|| change::delete(rel, old, moved));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_lock(
    rel: sys::Relation,
    tuple: sys::HeapTuple,
    mode: sys::LockTupleMode,
) {
    // SAFETY: open, and in place, as long as this call lasts.
    let (rel, tuple) = unsafe { (Handle::from_raw(rel), Tuple::from_raw(tuple)) };
    let mode = match mode {
        sys::LockTupleKeyShare => LockMode::KeyShare,
        sys::LockTupleShare => LockMode::Share,
        sys::LockTupleNoKeyExclusive => LockMode::NoKeyUpdate,
        _ => LockMode::Update,
    };
    boundary(|| change::lock(rel, tuple, mode));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_may_choose(oid: u32) -> bool {
    boundary_nofail(|| large_object::may_choose(oid))
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_table_locked(relation: u32, mode: c_int, children: bool) {
    boundary(|| table_lock::locked(relation, mode, children));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_relation_locked(relation: u32, mode: c_int) {
    boundary(|| table_lock::granted(relation, mode));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_truncates(rel: sys::Relation) {
    // SAFETY: open as long as this call lasts.
    let rel = unsafe { Handle::from_raw(rel) };
    boundary(|| truncate::begins(rel));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_truncate(rels: *const sys::List) {
    boundary(|| {
        // SAFETY: a list of relations, open as long as this call lasts.
        let rels = unsafe { relation::list(rels) };
        truncate::truncated(rels.into_iter())
    });
}
