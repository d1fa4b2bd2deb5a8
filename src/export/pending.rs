//! Capture, commit, victims and helpers: until the parts that do them are linked, a server takes
//! part in no group, and none of these is ever reached.

use crate::pg::sys;
use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
pub struct ReplGid {
    pub group_id: u64,
    pub gid: u64,
}

#[unsafe(no_mangle)]
pub static mut pgr_is_helper: bool = false;
#[unsafe(no_mangle)]
pub static mut pgr_victim: bool = false;
#[unsafe(no_mangle)]
pub static mut pgr_abort_pending: c_int = 0;
#[unsafe(no_mangle)]
pub static mut pgr_commit_gid: ReplGid = ReplGid { group_id: 0, gid: 0 };

#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_insert(_rel: *mut c_void, _tuple: *mut c_void) {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_multi_insert(_rel: *mut c_void, _slots: *mut c_void, _tuples: *mut c_void, _n: c_int) {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_update(_rel: *mut c_void, _old: *mut c_void, _new: *mut c_void, _key_intact: bool) {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_delete(_rel: *mut c_void, _old: *mut c_void, _moved: bool) {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_capture_lock(_rel: *mut c_void, _tuple: *mut c_void, _mode: c_int) {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_pre_commit() -> bool {
    true
}
#[unsafe(no_mangle)]
extern "C" fn pgr_replay_wait() {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_commit_logged(_end: u64) {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_commit_visible_wait() {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_commit_visible_done() {}
#[unsafe(no_mangle)]
extern "C" fn pgr_handle_abort_interrupt() {}
#[unsafe(no_mangle)]
extern "C" fn pgr_process_abort_interrupt() {}
#[unsafe(no_mangle)]
extern "C" fn pgr_victim_detail() -> *const c_char {
    c"".as_ptr()
}
#[unsafe(no_mangle)]
extern "C" fn pgr_victim_commit() {}
#[unsafe(no_mangle)]
extern "C" fn pgr_do_blocked(_tag: *const c_void, _mode: c_int) {}
#[unsafe(no_mangle)]
extern "C" fn PgrHelperMain(_argument: sys::Datum) {}
