//! Waking the coordinator, which sleeps in its event loop and not on a latch.

use super::layout::{Control, Shared, SlotNo};
use super::sync::Ordering;
use std::os::fd::BorrowedFd;

/// Tells the coordinator that `slot` has put something in a queue. May be called in a critical
/// section: two atomics and at most one write to an eventfd.
pub fn notify(shared: Shared, slot: SlotNo) {
    mark(shared, slot);
    wake(shared.control());
}

/// The same for what can wait, unless the coordinator sleeps with work for which it has no helper.
pub fn note(shared: Shared, slot: SlotNo) {
    mark(shared, slot);
    // Ordered behind the mark: either the coordinator, before it sleeps, sees that, or this sees
    // that work waits.
    if shared.control().work_waits.load(Ordering::SeqCst) == 1 {
        wake(shared.control());
    }
}

fn mark(shared: Shared, slot: SlotNo) {
    let word = &shared.dirty()[slot.0 as usize / 64];
    word.fetch_or(1 << (slot.0 % 64), Ordering::SeqCst);
}

/// Wakes the coordinator if it sleeps.
pub fn wake(control: &Control) {
    // Ordered behind what the caller did before: either the coordinator, before it sleeps, sees
    // that, or this sees that it sleeps.
    if control.coordinator_sleeping.load(Ordering::SeqCst) == 1
        && control.coordinator_sleeping.swap(0, Ordering::SeqCst) == 1
    {
        let fd = control.wake_fd.load(Ordering::Relaxed).cast_signed();
        if fd >= 0 {
            // SAFETY: the postmaster opened it before any fork and never closes it.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            // It can only fail when the counter is full, and then the coordinator is awake.
            let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
        }
    }
}

/// The coordinator's side, before it sleeps: false if something has arrived and it must look first.
/// `work_waits`: there are changesets for which it had no helper.
pub fn prepare_sleep(shared: Shared, work_waits: bool) -> bool {
    let control = shared.control();
    control
        .work_waits
        .store(work_waits.into(), Ordering::SeqCst);
    control.coordinator_sleeping.store(1, Ordering::SeqCst);
    if shared.dirty().iter().any(|w| w.load(Ordering::SeqCst) != 0) {
        control.coordinator_sleeping.store(0, Ordering::SeqCst);
        return false;
    }
    true
}

/// The coordinator's side, when it is awake again for whatever reason.
pub fn end_sleep(control: &Control) {
    control.coordinator_sleeping.store(0, Ordering::SeqCst);
}

/// The slots that have said something since the last call.
pub fn take_dirty(shared: Shared, mut visit: impl FnMut(SlotNo)) {
    for (i, word) in shared.dirty().iter().enumerate() {
        if word.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let mut bits = word.swap(0, Ordering::SeqCst);
        while bits != 0 {
            visit(SlotNo(i as u32 * 64 + bits.trailing_zeros()));
            bits &= bits - 1;
        }
    }
}
