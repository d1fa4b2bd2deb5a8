//! Helpers that wait for what their changeset depends on.
//!
//! Unlike a turn, which one process waits for, any number of helpers can wait for the same GID to
//! become visible, and a GID that nobody waits for is the rule: whoever makes one visible pays
//! one load then.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::turn::Turn;
use crate::ids::Gid;
use crate::limits::HELPERS_MAX;

/// Helpers are numbered from 0 to `HELPERS_MAX`.
const PLACES: usize = HELPERS_MAX + 1;
const WORDS: usize = PLACES.div_ceil(64);

/// Who waits for what.
#[repr(C)]
#[derive(Debug)]
pub struct Dependents {
    /// A bit a helper that waits. Set by the helper after the two below, cleared by it; sequentially
    /// consistent with the turn, so that either the helper sees the GID or the committer the bit.
    waiting: [AtomicU64; WORDS],
    /// The GID that must be visible. Written by the helper.
    wants: [AtomicU64; PLACES],
    /// The helper's process slot. Written by the helper.
    slots: [AtomicU32; PLACES],
}

impl Default for Dependents {
    fn default() -> Self {
        Self::new()
    }
}

impl Dependents {
    /// Nobody waits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            waiting: std::array::from_fn(|_| AtomicU64::new(0)),
            wants: std::array::from_fn(|_| AtomicU64::new(0)),
            slots: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Says that a helper waits until `gid` has passed; true if it has. Else the helper sleeps on
    /// its latch and asks [`Turn::passed`] whenever it wakes up.
    pub fn wait(&self, helper: u32, slot: u32, gid: Gid, visible: &Turn) -> bool {
        let helper = helper as usize;
        self.slots[helper].store(slot, Ordering::Relaxed);
        self.wants[helper].store(gid.0, Ordering::Relaxed);
        self.waiting[helper / 64].fetch_or(1 << (helper % 64), Ordering::SeqCst);
        // Ordered behind the bit: a committer that passes now is seen here or sees the bit.
        visible.passed() >= gid
    }

    /// The helper waits no more.
    pub fn done(&self, helper: u32) {
        let helper = helper as usize;
        self.waiting[helper / 64].fetch_and(!(1 << (helper % 64)), Ordering::SeqCst);
    }

    /// `gid` has just passed: calls `wake` with the slot of each helper that waited for it.
    pub fn passed(&self, gid: Gid, mut wake: impl FnMut(u32)) {
        for (word, waiting) in self.waiting.iter().enumerate() {
            let mut bits = waiting.load(Ordering::SeqCst);
            while bits != 0 {
                let helper = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if self.wants[helper].load(Ordering::Relaxed) <= gid.0 {
                    wake(self.slots[helper].load(Ordering::Relaxed));
                }
            }
        }
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_for_what_passed_are_woken_and_no_others() {
        let (dependents, visible) = (Dependents::new(), Turn::new());
        visible.start(Gid(4));
        assert!(dependents.wait(0, 10, Gid(4), &visible));
        dependents.done(0);
        assert!(!dependents.wait(1, 11, Gid(5), &visible));
        assert!(!dependents.wait(2, 12, Gid(6), &visible));
        assert!(!dependents.wait(64, 13, Gid(5), &visible));
        let passed = |gid| {
            visible.pass(gid);
            let mut woken = Vec::new();
            dependents.passed(gid, |slot| woken.push(slot));
            woken
        };
        assert_eq!(passed(Gid(5)), [11, 13]);
        dependents.done(1);
        dependents.done(64);
        assert_eq!(passed(Gid(6)), [12]);
    }
}
