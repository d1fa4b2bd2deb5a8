//! Notifications, as async.c goes through them.

use crate::capture::notify;
use crate::pg::guard::{boundary, boundary_nofail};
use std::ffi::{CStr, c_char, c_int};

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_capture_notify(channel: *const c_char, payload: *const c_char) {
    // SAFETY: PostgreSQL passes C strings.
    let (channel, payload) = unsafe { (CStr::from_ptr(channel), CStr::from_ptr(payload)) };
    boundary(|| notify::notify(channel, payload));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_notify_queue_full(pid: c_int) {
    boundary_nofail(|| crate::pg::notify::queue_full(pid));
}
