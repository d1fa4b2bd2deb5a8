//! Locks of relations that the current transaction has.

use super::guard::{self, Result};
use super::sys;
use std::ffi::c_int;

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_relation_locks(out: *mut *mut RelationLock, n: *mut c_int, e: Edata) -> c_int;
    fn pgr_shim_release_relation(database: u32, relation: u32, mode: c_int, e: Edata) -> c_int;
}

/// A relation that is locked. `PgrRelationLock` in `shim_locks.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RelationLock {
    /// Its database, 0 for a shared relation.
    pub database: u32,
    /// Its OID.
    pub relation: u32,
    modes: c_int,
}

impl RelationLock {
    /// The modes in which it is locked, as PostgreSQL numbers them.
    pub fn modes(self) -> impl Iterator<Item = i32> {
        (1..c_int::BITS.cast_signed()).filter(move |mode| self.modes & (1 << mode) != 0)
    }
}

/// All that the transaction holds; a relation may be there twice.
pub fn of_relations() -> Result<Vec<RelationLock>> {
    let (mut list, mut n) = (std::ptr::null_mut(), 0);
    // SAFETY: the answer is palloc'd.
    guard::call0(|e| unsafe { pgr_shim_relation_locks(&raw mut list, &raw mut n, e) })?;
    // SAFETY: n entries, as the shim says.
    let locks = unsafe { std::slice::from_raw_parts(list, n as usize) }.to_vec();
    // SAFETY: palloc'd for us.
    unsafe { sys::pfree(list.cast()) };
    Ok(locks)
}

/// Gives a lock in this mode back, however often it was taken: at the end of the transaction, when it
/// does nothing more.
pub fn release(lock: RelationLock, mode: i32) -> Result<()> {
    let RelationLock {
        database, relation, ..
    } = lock;
    // SAFETY: nothing that is open needs the lock any more.
    guard::call0(|e| unsafe { pgr_shim_release_relation(database, relation, mode, e) })
}
