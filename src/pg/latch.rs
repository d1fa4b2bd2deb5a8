//! Sleeping on this process's latch, and waking others.

use super::guard::{self, Result};
use super::sys;
use crate::imsg::SlotNo;
use std::ffi::{CStr, c_char, c_int, c_long};
use std::time::Duration;

unsafe extern "C" {
    fn pgr_shim_sleep(timeout_ms: c_long, wait_event: u32);
    fn pgr_shim_serve_barriers(edata: *mut *mut sys::ErrorData) -> c_int;
    fn pgr_shim_set_latch(slot: u32);
    fn pgr_shim_is_attached(
        name: *const c_char,
        out: *mut bool,
        edata: *mut *mut sys::ErrorData,
    ) -> c_int;
    fn pgr_shim_stop_point(name: *const c_char, edata: *mut *mut sys::ErrorData) -> c_int;
}

/// Sleeps until somebody sets the latch or the time is over, and resets the latch: look for what
/// you wait for after it, and in a loop, for a latch is also set for other reasons. Serves no
/// interrupts but barriers, for which others wait. Not in a critical section. `wait_event` is one of
/// `sys::WAIT_EVENT_*`.
pub fn sleep(timeout: Option<Duration>, wait_event: u32) {
    let ms = timeout.map_or(-1, |t| {
        c_long::try_from(t.as_millis()).unwrap_or(c_long::MAX)
    });
    // SAFETY: the process has a latch; the call raises nothing.
    unsafe { pgr_shim_sleep(ms, wait_event) };
    // One that fails stays pending and is tried again: the wait can bear no error.
    // SAFETY: no critical section, so files may be closed.
    let _ = guard::call0(|e| unsafe { pgr_shim_serve_barriers(e) });
}

/// The same, and serves interrupts: a cancel or termination comes back as the error.
pub fn sleep_interruptible(timeout: Option<Duration>, wait_event: u32) -> Result<()> {
    guard::check_interrupts()?;
    sleep(timeout, wait_event);
    guard::check_interrupts()
}

/// Wakes the process in a slot, whether it sleeps or not. May be called in a critical section.
pub fn wake(slot: SlotNo) {
    // SAFETY: the number is a slot's, so below the number of PGPROCs.
    unsafe { pgr_shim_set_latch(slot.0) };
}

/// A place where a test can hold this process (an injection point; nothing in a production build).
/// Not in a critical section.
pub fn stop_point(name: &CStr) {
    // Tests attach only waits here; what follows can bear no error.
    fail_point(name).expect("a stop point raises nothing");
}

/// Whether a test has attached anything to an injection point, which says that something is the case.
#[must_use]
pub fn is_attached(name: &CStr) -> bool {
    // SAFETY: a C string.
    let attached = guard::call(false, |out, e| unsafe {
        pgr_shim_is_attached(name.as_ptr(), out, e)
    });
    attached.unwrap_or(false)
}

/// A place where a test can raise an error.
pub fn fail_point(name: &CStr) -> Result<()> {
    // SAFETY: a C string.
    guard::call0(|e| unsafe { pgr_shim_stop_point(name.as_ptr(), e) })
}
