//! The query that a session runs, its messages, and its answer.

use super::guard::{self, Result};
use super::sys;
use std::ffi::{c_char, c_int};

pub use sys::PqMark as Mark;
pub use sys::StringInfoData as Message;

unsafe extern "C" {
    fn pgr_shim_is_serialization_failure() -> bool;
    fn pgr_shim_in_block() -> bool;
    fn pgr_shim_append(
        to: *mut Message,
        bytes: *const c_char,
        length: c_int,
        e: *mut *mut sys::ErrorData,
    ) -> c_int;
}

/// Whether a raw statement is a SELECT, INSERT, UPDATE, DELETE or MERGE: what these do is their
/// transaction's, and none of them can end it.
///
/// # Safety
/// `statement` is what the parser made, or null.
pub unsafe fn is_plannable(statement: *const sys::RawStmt) -> bool {
    if statement.is_null() {
        return false;
    }
    // SAFETY: a RawStmt has a statement.
    let kind = unsafe { (*(*statement).stmt).type_ };
    matches!(
        kind,
        sys::T_SelectStmt
            | sys::T_InsertStmt
            | sys::T_UpdateStmt
            | sys::T_DeleteStmt
            | sys::T_MergeStmt
    )
}

/// Whether the session is in a transaction block.
#[must_use]
pub fn in_block() -> bool {
    // SAFETY: reads the state of this process.
    unsafe { pgr_shim_in_block() }
}

/// Appends to a message.
pub fn append(to: &mut Message, bytes: &[u8]) -> Result<()> {
    // SAFETY: a live StringInfo, which grows in its own memory context.
    guard::call0(|e| unsafe { pgr_shim_append(to, bytes.as_ptr().cast(), bytes.len() as c_int, e) })
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

/// Messages are to be read again, before any other.
pub fn set_repeats(repeats: bool) {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_repeats = repeats };
}
