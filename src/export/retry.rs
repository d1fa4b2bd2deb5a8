//! Queries that are run again.

use crate::pg::guard::{boundary, boundary_nofail};
use crate::pg::query::{self, Message};
use crate::pg::sys;
use crate::worker::retry;
use std::ffi::{c_char, c_int};
use std::slice;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_may_retry: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_retrying: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_repeats: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_awaits_winner: bool = false;

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_keep_message(kind: c_int, body: *const c_char, length: c_int) {
    // SAFETY: the body of a message, of this length.
    let body = unsafe { slice::from_raw_parts(body.cast(), length as usize) };
    boundary_nofail(|| retry::keep(kind as u8, body));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_begin_query(statement: *const sys::RawStmt) {
    // SAFETY: what the parser made, or null.
    let single = unsafe { query::is_plannable(statement) };
    boundary_nofail(|| retry::begin(single));
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_retry() -> bool {
    boundary_nofail(retry::is_wanted)
}

#[unsafe(no_mangle)]
extern "C" fn pgr_repeated_type() -> c_int {
    boundary_nofail(|| retry::next_kind().into())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_repeat_message(body: *mut Message) {
    // SAFETY: the buffer into which the main loop reads.
    let body = unsafe { &mut *body };
    boundary(|| retry::read_next(body));
}
