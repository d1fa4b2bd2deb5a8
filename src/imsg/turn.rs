//! Whose turn it is: the commit gate's shared state.
//!
//! Commit records are written, and commits become visible, in GID order. Each of the two is a
//! [`Turn`]: a number that only rises by one, moved by the process whose turn it is.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::ids::Gid;
use crate::limits::COMMIT_TURNS;

/// One baton. Everything here is atomics only, so it may be used in a critical section.
#[repr(C)]
#[derive(Debug)]
pub struct Turn {
    /// The last GID that went through. Written by the holder of the turn, read by all; sequentially
    /// consistent with `waiters`, so that either the waiter sees the number or the holder the waiter.
    passed: AtomicU64,
    /// Who waits for the GID with this remainder: its process slot + 1, or 0. Written by the waiter,
    /// taken by the one that passes the turn.
    waiters: [AtomicU32; COMMIT_TURNS],
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

impl Turn {
    /// Before the first GID.
    #[must_use]
    pub fn new() -> Self {
        Self {
            passed: AtomicU64::new(0),
            waiters: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Starts behind a GID, when nobody waits: recovery is over, or a group was formed.
    pub fn start(&self, gid: Gid) {
        self.passed.store(gid.0, Ordering::SeqCst);
    }

    /// The last GID that went through.
    pub fn passed(&self) -> Gid {
        Gid(self.passed.load(Ordering::SeqCst))
    }

    /// Whether it is this GID's turn.
    pub fn is(&self, gid: Gid) -> bool {
        self.passed.load(Ordering::SeqCst) + 1 == gid.0
    }

    /// Says that `slot` waits for the turn of `gid`; true if it need not, for it is its turn. Else
    /// it sleeps on its latch and asks [`Turn::is`] whenever it wakes up.
    pub fn wait(&self, gid: Gid, slot: u32) -> bool {
        let place = self.place(gid);
        place.store(slot + 1, Ordering::SeqCst);
        // Ordered behind the store: a holder that passes now either is seen here or sees the store.
        if self.is(gid) {
            place.store(0, Ordering::SeqCst);
            return true;
        }
        false
    }

    /// Passes the turn on from `gid`, whose turn it is; returns the slot that is to be woken.
    pub fn pass(&self, gid: Gid) -> Option<u32> {
        debug_assert!(self.is(gid), "only the holder passes");
        self.passed.store(gid.0, Ordering::SeqCst);
        self.place(gid.next())
            .swap(0, Ordering::SeqCst)
            .checked_sub(1)
    }

    fn place(&self, gid: Gid) -> &AtomicU32 {
        &self.waiters[gid.0 as usize % COMMIT_TURNS]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_next_waiter_is_woken_and_no_other() {
        let turn = Turn::new();
        turn.start(Gid(10));
        assert!(!turn.wait(Gid(13), 3));
        assert!(!turn.wait(Gid(12), 2));
        assert!(turn.wait(Gid(11), 1));
        assert_eq!(turn.pass(Gid(11)), Some(2));
        assert!(turn.is(Gid(12)));
        assert_eq!(turn.pass(Gid(12)), Some(3));
        assert_eq!(turn.pass(Gid(13)), None);
        assert_eq!(turn.passed(), Gid(13));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            // A table as large as the real one is too much for loom: two places show the race.
            struct Small {
                passed: AtomicU64,
                waiter: AtomicU32,
            }
            let small = Arc::new(Small {
                passed: AtomicU64::new(0),
                waiter: AtomicU32::new(0),
            });
            let other = Arc::clone(&small);
            let waiter = loom::thread::spawn(move || {
                other.waiter.store(8, Ordering::SeqCst);
                other.passed.load(Ordering::SeqCst) + 1 == 2
            });
            small.passed.store(1, Ordering::SeqCst);
            let woken = small.waiter.swap(0, Ordering::SeqCst) != 0;
            let went_on = waiter.join().unwrap();
            assert!(woken || went_on, "it sleeps and nobody wakes it");
        });
    }
}
