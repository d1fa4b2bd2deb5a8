//! How far back a transaction's windows reach, as the other members need to know it.

use super::layout::{Control, ProcSlot};
use super::sync::Ordering;
use crate::ids::Gid;

/// A process has no key with a `since`.
pub const NONE: u64 = u64::MAX;

/// Publishes that keys of the transaction that begins now may have this GID, or a later one, as
/// their `since`.
///
/// The loop makes [`low`] right: if the coordinator read `last_committed` = c and then did not see
/// the store below, then the load that follows the store sees c or more, so what is published at
/// the end is not below c.
pub fn publish(control: &Control, slot: &ProcSlot) -> Gid {
    loop {
        let gid = control.visible.passed();
        slot.since_low.store(gid.0, Ordering::SeqCst);
        if control.visible.passed() == gid {
            return gid;
        }
    }
}

/// The transaction is over, or its changeset is with the coordinator.
pub fn clear(slot: &ProcSlot) {
    slot.since_low.store(NONE, Ordering::SeqCst);
}

/// No changeset that this member multicasts from now on has a snapshot GID or a `since` below.
pub fn low<'a>(control: &Control, slots: impl Iterator<Item = &'a ProcSlot>) -> Gid {
    let committed = control.visible.passed().0;
    let active = slots
        .map(|s| s.since_low.load(Ordering::SeqCst))
        .min()
        .unwrap_or(NONE);
    Gid(committed.min(active))
}
