//! Transactions, as a helper runs them and as workers are told of them.

use super::guard::{self, Result};
use super::heap::Snapshot;
use super::sys;
use crate::changeset::header::ISOLATION_SERIALIZABLE;
use std::ffi::c_int;

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_begin(snapshot: *mut Snapshot, e: Edata) -> c_int;
    fn pgr_shim_renew_snapshot(snapshot: *mut Snapshot, e: Edata) -> c_int;
    fn pgr_shim_commit(e: Edata) -> c_int;
    fn pgr_shim_abort(e: Edata) -> c_int;
    fn pgr_shim_command_id(out: *mut u32, e: Edata) -> c_int;
    fn pgr_shim_next_command(e: Edata) -> c_int;
    fn pgr_shim_is_awaited(out: *mut bool, e: Edata) -> c_int;
    fn pgr_shim_xid(out: *mut u64, e: Edata) -> c_int;
    fn pgr_shim_on_xact(xact: sys::XactCallback, subxact: sys::SubXactCallback, e: Edata) -> c_int;
    fn pgr_shim_local_xid() -> u32;
    fn pgr_shim_has_xid() -> bool;
    fn pgr_shim_in_vacuum() -> bool;
    fn pgr_shim_before_exit(callback: Option<extern "C" fn(c_int, sys::Datum)>, e: Edata) -> c_int;
    fn pgr_shim_report_statistics(e: Edata) -> c_int;
}

/// Begins a transaction, with a snapshot that shows all that is committed.
pub fn begin() -> Result<Snapshot> {
    let mut snapshot = Snapshot(std::ptr::null_mut());
    // SAFETY: writes to a live local.
    guard::call0(|e| unsafe { pgr_shim_begin(&raw mut snapshot, e) })?;
    Ok(snapshot)
}

/// Replaces the transaction's snapshot by one that shows what has been committed since.
pub fn renew_snapshot() -> Result<Snapshot> {
    let mut snapshot = Snapshot(std::ptr::null_mut());
    // SAFETY: writes to a live local.
    guard::call0(|e| unsafe { pgr_shim_renew_snapshot(&raw mut snapshot, e) })?;
    Ok(snapshot)
}

/// Commits what begin() began, through the commit gate.
pub fn commit() -> Result<()> {
    // SAFETY: no arguments.
    guard::call0(|e| unsafe { pgr_shim_commit(e) })
}

/// Rolls the transaction back.
pub fn abort() -> Result<()> {
    // SAFETY: no arguments.
    guard::call0(|e| unsafe { pgr_shim_abort(e) })
}

/// The command number under which to write now.
pub fn command_id() -> Result<u32> {
    let mut cid = 0;
    // SAFETY: writes to a live local.
    guard::call0(|e| unsafe { pgr_shim_command_id(&raw mut cid, e) })?;
    Ok(cid)
}

/// Lets the transaction's snapshot show what it wrote so far.
pub fn next_command() -> Result<()> {
    // SAFETY: no arguments.
    guard::call0(|e| unsafe { pgr_shim_next_command(e) })
}

/// The transaction's full 64-bit id; assigns one if it has none.
pub fn xid() -> Result<u64> {
    let mut xid = 0;
    // SAFETY: writes to a live local.
    guard::call0(|e| unsafe { pgr_shim_xid(&raw mut xid, e) })?;
    Ok(xid)
}

/// Whether somebody waits for the end of this transaction, which has an id: for a row, or an index
/// entry. Not, who waits for a lock of a whole table: see [`super::locks::is_exclusive_awaited`].
pub fn is_awaited() -> Result<bool> {
    // SAFETY: writes to a live local.
    guard::call(false, |out, e| unsafe { pgr_shim_is_awaited(out, e) })
}

/// Has `xact` and `subxact` told of ends of (sub)transactions, for the life of the process.
pub fn on_end(xact: sys::XactCallback, subxact: sys::SubXactCallback) -> Result<()> {
    // SAFETY: registers function pointers.
    guard::call0(|e| unsafe { pgr_shim_on_xact(xact, subxact, e) })
}

/// Reports what the statistics system should know. Outside transactions.
pub fn report_statistics() -> Result<()> {
    // SAFETY: no arguments.
    guard::call0(|e| unsafe { pgr_shim_report_statistics(e) })
}

/// Number of the current transaction among those of this process slot, 0 between transactions.
#[must_use]
pub fn local_id() -> u32 {
    // SAFETY: a variable of this process's PGPROC.
    unsafe { pgr_shim_local_xid() }
}

/// Whether this process runs VACUUM, in a transaction of its own.
#[must_use]
pub fn in_vacuum() -> bool {
    // SAFETY: a flag of this process's PGPROC, which only the process sets.
    unsafe { pgr_shim_in_vacuum() }
}

/// Has `callback` called when the process ends in an orderly way, while it still has its slot.
pub fn before_exit(callback: extern "C" fn(c_int, sys::Datum)) -> Result<()> {
    // SAFETY: registers a function pointer.
    guard::call0(|e| unsafe { pgr_shim_before_exit(Some(callback), e) })
}

/// The current subtransaction's number; the top level's is 1.
#[must_use]
pub fn current_subtransaction() -> u32 {
    // SAFETY: reads a variable of the transaction manager.
    unsafe { sys::GetCurrentSubTransactionId() }
}

/// The isolation level, as PostgreSQL numbers it (xact.h, `XACT_READ_UNCOMMITTED` = 0 and up).
#[must_use]
pub fn isolation() -> u8 {
    // SAFETY: a variable of this process; levels are 0 to 3.
    unsafe { sys::XactIsoLevel as u8 }
}

/// Whether each statement sees what was committed before it.
#[must_use]
pub fn is_read_committed() -> bool {
    u32::from(isolation()) < sys::XACT_REPEATABLE_READ
}

const _: () = assert!(sys::XACT_SERIALIZABLE == ISOLATION_SERIALIZABLE as u32);

/// Whether the transaction is SERIALIZABLE.
#[must_use]
pub fn is_serializable() -> bool {
    u32::from(isolation()) >= sys::XACT_SERIALIZABLE
}

/// Whether all its statements see the same: REPEATABLE READ or SERIALIZABLE.
#[must_use]
pub fn has_one_snapshot() -> bool {
    u32::from(isolation()) >= sys::XACT_REPEATABLE_READ
}

/// Whether the transaction was declared READ ONLY.
#[must_use]
pub fn is_read_only() -> bool {
    // SAFETY: a variable of this process.
    unsafe { sys::XactReadOnly }
}

/// Whether the transaction has an XID, so that it has changed something.
#[must_use]
pub fn has_xid() -> bool {
    // SAFETY: reads the state of this process.
    unsafe { pgr_shim_has_xid() }
}

/// Whether it used temporary objects, which die with the session.
#[must_use]
pub fn used_temporary_objects() -> bool {
    // SAFETY: a variable of this process.
    unsafe { sys::MyXactFlags as u32 & sys::XACT_FLAGS_ACCESSEDTEMPNAMESPACE != 0 }
}
