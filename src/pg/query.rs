//! The query that a session runs, and its answer.

use super::sys;
use std::ffi::c_int;

pub use sys::PqMark as Mark;

unsafe extern "C" {
    fn pgr_shim_is_serialization_failure() -> bool;
    fn pgr_shim_in_block() -> bool;
    fn pgr_shim_list_length(list: *const sys::List) -> c_int;
    fn pgr_shim_list_nth(list: *const sys::List, n: c_int) -> *mut sys::Node;
}

/// Whether raw parse trees are a single SELECT, INSERT, UPDATE, DELETE or MERGE: what they do is their
/// transaction's, and none of them can end it.
///
/// # Safety
/// `parsetrees` is what the parser made.
pub unsafe fn is_single(parsetrees: *const sys::List) -> bool {
    // SAFETY: a list of RawStmts.
    unsafe {
        if pgr_shim_list_length(parsetrees) != 1 {
            return false;
        }
        let raw = pgr_shim_list_nth(parsetrees, 0).cast::<sys::RawStmt>();
        matches!(
            (*(*raw).stmt).type_,
            sys::T_SelectStmt
                | sys::T_InsertStmt
                | sys::T_UpdateStmt
                | sys::T_DeleteStmt
                | sys::T_MergeStmt
        )
    }
}

/// Whether the session is in a transaction block.
#[must_use]
pub fn in_block() -> bool {
    // SAFETY: reads the state of this process.
    unsafe { pgr_shim_in_block() }
}

/// Where output to the client stands.
#[must_use]
pub fn mark() -> Mark {
    // SAFETY: reads the state of this process.
    unsafe { sys::pq_mark() }
}

/// Drops what was put out since; false if something of it has been sent.
#[must_use]
pub fn take_back(mark: Mark) -> bool {
    // SAFETY: a mark of this process's output.
    unsafe { sys::pq_take_back(mark) }
}

/// Whether the error that is being handled is a 40001.
#[must_use]
pub fn is_serialization_failure() -> bool {
    // SAFETY: only where an error was caught.
    unsafe { pgr_shim_is_serialization_failure() }
}

/// The main loop is to ask [`crate::worker::retry::is_wanted`] if the query fails.
pub fn set_may_retry(may: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_may_retry = may };
}

/// The query failed and is to be run again.
pub fn set_retrying(retrying: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_retrying = retrying };
}
