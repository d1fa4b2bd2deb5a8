//! Transactions that wait for the rest of their group.

use crate::pg::guard::{boundary, boundary_nofail};
use crate::worker::consistency;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_awaits_shown: bool = false;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_reserves: bool = false;

#[unsafe(no_mangle)]
extern "C" fn pgr_do_before_snapshot() {
    boundary(consistency::before_snapshot);
}

#[unsafe(no_mangle)]
extern "C" fn pgr_do_committed() {
    boundary_nofail(consistency::after_commit);
}
