//! A new member's copy has the prepared transactions of its provider. Those of the replicated database
//! have changed nothing but unlogged tables, which came without rows; who prepared them ends them there,
//! and here nobody would. So they are rolled back.

use super::guard::{self, Result};
use super::{shmem, sys, transaction};
use std::ffi::c_int;
use std::sync::atomic::Ordering;

unsafe extern "C" {
    fn pgr_shim_next_xid() -> u64;
    fn pgr_shim_roll_back_prepared(before: u64, e: *mut *mut sys::ErrorData) -> c_int;
}

/// The copy has joined, and is not open yet: what is prepared by now came with it.
pub fn copied() {
    // SAFETY: reads a counter, under its lock.
    let next = unsafe { pgr_shim_next_xid() };
    shmem::server().copied_before.store(next, Ordering::SeqCst);
}

/// Rolls back what came with the copy, once. In a helper, which is in the database; outside of
/// transactions.
pub fn roll_back_copied() -> Result<()> {
    let pending = &shmem::server().copied_before;
    let before = pending.swap(0, Ordering::SeqCst);
    if before == 0 {
        return Ok(());
    }
    let done = roll_back(before);
    if done.is_err() {
        pending.store(before, Ordering::SeqCst);
    }
    done
}

fn roll_back(before: u64) -> Result<()> {
    transaction::begin()?;
    // SAFETY: in a transaction, as a superuser.
    guard::call0(|e| unsafe { pgr_shim_roll_back_prepared(before, e) })?;
    transaction::commit()
}
