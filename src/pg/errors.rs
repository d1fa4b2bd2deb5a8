//! Errors of PostgreSQL itself that end a transaction because another was faster.
//!
//! Under REPEATABLE READ a row that was changed after the transaction's snapshot raises 40001 in the
//! executor, in many places. `emit_log_hook` sees those that end a statement, where the server logs
//! errors (`log_min_messages`); what it misses costs fairness only.

use super::guard::{boundary_nofail, pack_sqlstate};
use super::sys;
use crate::export;
use crate::worker::fairness;

const SERIALIZATION_FAILURE: i32 = pack_sqlstate("40001") as i32;

/// Sets `emit_log_hook`. In the postmaster, before any library can.
pub fn install() {
    // SAFETY: the process has one thread, and nobody has set the hook yet; libraries that are
    // loaded later call on to it.
    unsafe { sys::emit_log_hook = Some(emitted) };
}

unsafe extern "C" fn emitted(error: *mut sys::ErrorData) {
    // SAFETY: PostgreSQL passes the error that it is about to report.
    let code = unsafe { (*error).sqlerrcode };
    if code == SERIALIZATION_FAILURE && export::enabled() {
        boundary_nofail(fairness::overtaken);
    }
}
