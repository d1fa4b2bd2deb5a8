//! The place in the order under which this process commits: what its commit record carries.

use super::sys;
use crate::ids::Gid;

/// The commit record that comes carries it.
pub fn set(group_id: u64, gid: Gid) {
    // SAFETY: a variable of this process, read by the commit code of this process.
    unsafe {
        sys::pgr_commit_gid.group_id = group_id;
        sys::pgr_commit_gid.gid = gid.0;
    }
}

/// The GID that is being committed, 0 outside.
#[must_use]
pub fn get() -> Gid {
    // SAFETY: a variable of this process.
    Gid(unsafe { sys::pgr_commit_gid.gid })
}

/// The commit is over.
pub fn clear() {
    // SAFETY: a variable of this process.
    unsafe { sys::pgr_commit_gid.gid = 0 };
}
