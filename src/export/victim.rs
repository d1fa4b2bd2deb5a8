//! Transactions that are in the way of one that the group has ordered.

use crate::apply::blocked;
use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::{query, sys};
use crate::worker::{retry, victim};
use std::ffi::{CStr, c_char, c_int};

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

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_may_retry: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_retrying: bool = false;

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_begin_query(text: *const c_char, parsetrees: *mut sys::List) {
    // SAFETY: a C string, and what the parser made of it.
    let (text, single) = unsafe { (CStr::from_ptr(text), query::is_single(parsetrees)) };
    boundary_nofail(|| retry::begin(text, single));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_retry() -> bool {
    boundary_nofail(retry::is_wanted)
}

#[unsafe(no_mangle)]
extern "C" fn pgr_retried_query() -> *const c_char {
    boundary(retry::again)
}
