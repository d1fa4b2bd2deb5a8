//! The process that applies changesets of other members.

use crate::apply::helper;
use crate::pg::guard::boundary;
use crate::pg::sys;

/// See postgres_r.h.
#[unsafe(no_mangle)]
pub static mut pgr_is_helper: bool = false;

#[unsafe(no_mangle)]
extern "C" fn PgrHelperMain(number: sys::Datum) {
    boundary(|| helper::main(number as u32));
}
