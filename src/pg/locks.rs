//! Locks of relations: those of the current transaction, and what can be locked without a wait.

use super::guard::{self, Result};
use super::{backend, sys};
use std::ffi::c_int;

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_relation_locks(out: *mut *mut RelationLock, n: *mut c_int, e: Edata) -> c_int;
    fn pgr_shim_release_relation(database: u32, relation: u32, mode: c_int, e: Edata) -> c_int;
    fn pgr_shim_lock_if_free(
        relation: u32,
        mode: c_int,
        held: *mut bool,
        got: *mut bool,
        e: Edata,
    ) -> c_int;
    fn pgr_shim_is_lock_free(relation: u32, mode: c_int, out: *mut bool, e: Edata) -> c_int;
    fn pgr_shim_is_exclusive_awaited(out: *mut bool, e: Edata) -> c_int;
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

/// Relations of this database that were not locked in ACCESS EXCLUSIVE mode before; each is given back unless
/// all are kept.
#[derive(Debug, Default)]
pub struct Exclusive(Vec<u32>);

impl Exclusive {
    /// Locks one more, unless the transaction has it locked so; false if somebody is in the way. Never waits.
    pub fn add(&mut self, relation: u32) -> Result<bool> {
        let (mut held, mut got) = (false, false);
        let mode = sys::AccessExclusiveLock as c_int;
        // SAFETY: writes to live locals.
        guard::call0(|e| unsafe {
            pgr_shim_lock_if_free(relation, mode, &raw mut held, &raw mut got, e)
        })?;
        if got {
            self.0.push(relation);
        }
        Ok(held || got)
    }

    /// Gives all of them back. Nothing was done under them.
    pub fn give_back(self) -> Result<()> {
        for relation in self.0 {
            let lock = RelationLock {
                database: backend::database(),
                relation,
                modes: 0,
            };
            release(lock, sys::AccessExclusiveLock as c_int)?;
        }
        Ok(())
    }
}

/// Whether nobody else has a relation locked, in any mode.
pub fn is_free(relation: u32) -> Result<bool> {
    let mode = sys::AccessExclusiveLock as c_int;
    // SAFETY: writes to a live local.
    guard::call(false, |out, e| unsafe {
        pgr_shim_is_lock_free(relation, mode, out, e)
    })
}

/// Whether somebody waits for a relation that the transaction has locked in ACCESS EXCLUSIVE mode.
pub fn is_exclusive_awaited() -> Result<bool> {
    // SAFETY: writes to a live local.
    guard::call(false, |out, e| unsafe {
        pgr_shim_is_exclusive_awaited(out, e)
    })
}
