//! Maintenance commands, which may hold up helpers for a time (`replication_max_apply_delay`).

use crate::pg::guard::{Result, boundary_nofail};
use crate::pg::{sys, transaction};
use crate::worker::channel;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::Ordering::Relaxed;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// A command begins that holds strong locks for as long as it takes. It may run in several
/// transactions.
pub fn begin() -> Result<()> {
    channel::attach(false)?;
    if !WATCHED.get() {
        transaction::on_end(Some(on_xact), None)?;
        WATCHED.set(true);
    }
    channel::slot().maintenance.store(1, Relaxed);
    Ok(())
}

/// It has come to its end.
pub fn end() {
    channel::slot().maintenance.store(0, Relaxed);
}

extern "C" fn on_xact(event: sys::XactEvent, _arg: *mut c_void) {
    if event == sys::XACT_EVENT_ABORT {
        boundary_nofail(end);
    }
}
