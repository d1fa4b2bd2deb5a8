//! The server's queue of notifications (async.c).

use super::guard::{self, Result};
use super::{elog, sys, victim};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};

type Edata = *mut *mut sys::ErrorData;

unsafe extern "C" {
    fn pgr_shim_notify(channel: *const c_char, payload: *const c_char, e: Edata) -> c_int;
    fn pgr_shim_queue_notifies(ordered: bool, e: Edata) -> c_int;
}

thread_local! {
    /// Whose session was ended last because the queue was full.
    static ENDED: Cell<c_int> = const { Cell::new(0) };
}

/// Adds a notification to those of the current transaction.
pub fn notify(channel: &CStr, payload: &CStr) -> Result<()> {
    // SAFETY: C strings, which are copied.
    guard::call0(|e| unsafe { pgr_shim_notify(channel.as_ptr(), payload.as_ptr(), e) })
}

/// Queues the notifications of a transaction of the group, whose turn to commit has come; listeners
/// read them when it is visible. Fails only if the queue's files can't be written or read, and the
/// transaction must then be rolled back, which takes back what was queued.
pub fn queue_ordered() -> Result<()> {
    // SAFETY: in a transaction, at its end; it holds no locks of PostgreSQL's own structures.
    guard::call0(|e| unsafe { pgr_shim_queue_notifies(true, e) })
}

/// Queues the notifications of a transaction that commits without a group, as PostgreSQL does.
pub fn queue_alone() -> Result<()> {
    // SAFETY: as above.
    guard::call0(|e| unsafe { pgr_shim_queue_notifies(false, e) })
}

/// The queue is full, since the session `pid` (0 or less: none) has not read it for too long: it is in
/// a long transaction. All members have to take what the group has ordered, so the session gives way;
/// its client sees that it may have missed notifications.
pub fn queue_full(pid: c_int) {
    // SAFETY: a variable of this process.
    let me = unsafe { sys::MyProcPid };
    if pid <= 0 || pid == me {
        return;
    }
    victim::terminate(pid);
    if ENDED.replace(pid) != pid {
        let message = format!(
            "the NOTIFY queue is full: ended the session of process {pid}, which has not read it for too long"
        );
        elog::log(sys::LOG_SERVER_ONLY, &message);
    }
}
