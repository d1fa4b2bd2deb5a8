//! Transactions that are in the way of one that the group has ordered.

use crate::apply::blocked;
use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::sys;
use crate::worker::victim;
use std::ffi::{c_char, c_int};

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_victim: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_in_batch: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_victim_untold: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_abort_pending: c_int = 0;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_between_messages: bool = false;

#[unsafe(no_mangle)]
extern "C" fn pgr_do_copy_read_interrupt(blocked: bool) {
    boundary(|| victim::serve_in_copy(blocked));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_handle_abort_interrupt() {
    boundary_nofail(victim::requested);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_process_abort_interrupt() {
    boundary(victim::serve);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_victim_detail() -> *const c_char {
    boundary_nofail(victim::detail)
}

#[unsafe(no_mangle)]
extern "C" fn pgr_victim_raise() {
    boundary::<()>(|| Err(victim::lost()));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_tell_victim(message: c_int) {
    boundary(|| victim::tell(message));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_blocked(tag: *const sys::LOCKTAG, mode: c_int) {
    // SAFETY: the tag of the lock that this process waits for.
    let tag = unsafe { &*tag };
    boundary(|| blocked::look(tag, mode));
}
