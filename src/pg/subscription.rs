//! Which server runs the subscriptions of a replicated database.

use super::guard::{self, Result};
use super::{shmem, sys};
use std::ffi::c_int;
use std::sync::atomic::Ordering;

unsafe extern "C" {
    fn pgr_shim_wake_launcher();
    fn pgr_shim_give_up_subscriptions(database: u32, e: *mut *mut sys::ErrorData) -> c_int;
}

/// This member runs them from here on, or does not. Whether it begins to: then the launcher is to be
/// woken. The coordinator's.
pub fn run(runs: bool) -> bool {
    let word = &shmem::shared().control().runs_subscriptions;
    word.swap(runs.into(), Ordering::SeqCst) == 0 && runs
}

/// Has the launcher look which workers are missing.
pub fn wake_launcher() {
    // SAFETY: sends a signal, if there is a launcher; raises nothing.
    unsafe { pgr_shim_wake_launcher() };
}

/// Whether this server runs those of this database now.
#[must_use]
pub fn are_run_here(database: u32) -> bool {
    shmem::try_shared().is_none_or(|shared| {
        let control = shared.control();
        control.database.load(Ordering::SeqCst) != database
            || control.runs_subscriptions.load(Ordering::SeqCst) == 1
    })
}

/// This server is about to leave the group that goes on with them. In the current transaction.
pub fn give_up(database: u32) -> Result<()> {
    // SAFETY: in a transaction of a superuser.
    guard::call0(|e| unsafe { pgr_shim_give_up_subscriptions(database, e) })
}
