//! The disk of the group log, as any process of the server sees it.

use super::{coordinator, latch, shmem};
use nix::sys::statvfs::statvfs;
use std::path::Path;

/// Bytes that are free for the server there; `None` if that can't be learned.
#[must_use]
pub fn free_bytes() -> Option<u64> {
    // Tests that have no disk to fill attach something to it.
    if latch::is_attached(c"replication-log-full") {
        return Some(0);
    }
    let dir = Path::new(shmem::DATA_DIR).join(coordinator::DIR);
    let of = statvfs(&dir).ok()?;
    Some(of.blocks_available() * of.fragment_size())
}
