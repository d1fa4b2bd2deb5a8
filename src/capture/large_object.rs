//! Which OIDs a member chooses for large objects.

use crate::worker::channel::control;
use std::sync::atomic::Ordering;

/// Into so many shares the OIDs are divided.
const SHARES: u32 = 16;

/// Whether this member may choose an OID by itself. All have begun with the same counter; of members
/// that have a share in common, which are few, two may choose the same, and one of them fails.
pub fn may_choose(oid: u32) -> bool {
    oid % SHARES == control().member.load(Ordering::Relaxed) % SHARES
}
