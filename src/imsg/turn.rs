//! Whose turn it is: the commit gate's shared state.
//!
//! Commit records are written, and commits become visible, in GID order. Each of the two is a
//! [`Turn`]: a number that only rises, moved by the process whose turn it is; by one, or by as many as
//! that process commits together.

use super::sync::{AtomicU64, Ordering, fence};
use crate::ids::Gid;
use crate::limits::COMMIT_TURNS;

/// Bits of a place that name the waiter: its process slot + 1. PostgreSQL has at most 2^18 processes.
const SLOT_BITS: u32 = 20;

/// One baton. Everything here is atomics only, so it may be used in a critical section.
#[repr(C)]
#[derive(Debug)]
pub struct Turn<const N: usize = COMMIT_TURNS> {
    /// The last GID that went through. Written by the holder of the turn, read by all; sequentially
    /// consistent with `waiters`, so that either the waiter sees the number or the holder the waiter.
    passed: AtomicU64,
    /// The lowest GID with this remainder that somebody waits for (its quotient, shifted by
    /// `SLOT_BITS`) and who does (process slot + 1); 0 if nobody. Written by the waiter or for it,
    /// taken by the one that passes the turn.
    waiters: [AtomicU64; N],
}

/// What came of [`Turn::wait`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// It is the GID's turn.
    Over,
    /// Its process is woken when it is.
    Registered,
    /// Somebody waits in that place for a lower GID: look again after a while.
    Crowded,
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Turn<N> {
    /// Before the first GID.
    #[must_use]
    pub fn new() -> Self {
        Self {
            passed: AtomicU64::new(0),
            waiters: std::array::from_fn(|_| AtomicU64::new(0)),
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

    /// Says that `slot` waits for the turn of `gid`. If it has to, it sleeps on its latch and asks
    /// [`Turn::is`] whenever it wakes up; not for ever, since a lower GID, more than `N` below, may
    /// take its place.
    pub fn wait(&self, gid: Gid, slot: u32) -> Wait {
        let (place, entry) = (self.place(gid), Self::entry(gid, slot));
        let mut there = place.load(Ordering::SeqCst);
        loop {
            let lower = there != 0 && there >> SLOT_BITS < entry >> SLOT_BITS;
            if lower && Self::gid(there, gid) > self.passed() {
                return Wait::Crowded;
            }
            match place.compare_exchange(there, entry, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => there = now,
            }
        }
        // Between the exchange and the look, as between the store and the look in `pass`: either the
        // holder that passes now is seen here, or it sees the entry.
        fence(Ordering::SeqCst);
        if self.is(gid) {
            let _ = place.compare_exchange(entry, 0, Ordering::SeqCst, Ordering::SeqCst);
            return Wait::Over;
        }
        Wait::Registered
    }

    /// Passes the turn on from `gid`, whose turn it is; returns the slot that is to be woken.
    pub fn pass(&self, gid: Gid) -> Option<u32> {
        self.pass_all(gid, gid)
    }

    /// The same from `first`, whose turn it is, for all GIDs up to `last`, which are its holder's.
    pub fn pass_all(&self, first: Gid, last: Gid) -> Option<u32> {
        debug_assert!(self.is(first) && first <= last, "only the holder passes");
        self.passed.store(last.0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let (next, place) = (last.next(), self.place(last.next()));
        let entry = place.load(Ordering::SeqCst);
        // Another GID's waiter keeps its place; one that comes now sees what has passed.
        if entry == 0 || Self::gid(entry, next) != next {
            return None;
        }
        let taken = place.compare_exchange(entry, 0, Ordering::SeqCst, Ordering::SeqCst);
        taken.ok().map(Self::slot)
    }

    fn place(&self, gid: Gid) -> &AtomicU64 {
        &self.waiters[gid.0 as usize % N]
    }

    fn entry(gid: Gid, slot: u32) -> u64 {
        (gid.0 / N as u64) << SLOT_BITS | u64::from(slot + 1)
    }

    /// GID of an entry in the place of `like`.
    fn gid(entry: u64, like: Gid) -> Gid {
        Gid((entry >> SLOT_BITS) * N as u64 + like.0 % N as u64)
    }

    fn slot(entry: u64) -> u32 {
        (entry as u32 & ((1 << SLOT_BITS) - 1)) - 1
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_next_waiter_is_woken_and_no_other() {
        let turn = Turn::<16>::new();
        turn.start(Gid(10));
        assert_eq!(turn.wait(Gid(13), 3), Wait::Registered);
        assert_eq!(turn.wait(Gid(12), 2), Wait::Registered);
        assert_eq!(turn.wait(Gid(11), 1), Wait::Over);
        assert_eq!(turn.pass(Gid(11)), Some(2));
        assert!(turn.is(Gid(12)));
        assert_eq!(turn.pass(Gid(12)), Some(3));
        assert_eq!(turn.pass(Gid(13)), None);
        assert_eq!(turn.passed(), Gid(13));
    }

    #[test]
    fn of_two_in_one_place_the_lower_gid_stays() {
        let turn = Turn::<4>::new();
        turn.start(Gid(3));
        assert_eq!(turn.wait(Gid(5), 50), Wait::Registered);
        assert_eq!(turn.wait(Gid(5 + 4), 90), Wait::Crowded);
        assert_eq!(turn.pass(Gid(4)), Some(50), "and not the one far behind");
        assert_eq!(turn.wait(Gid(5 + 4), 90), Wait::Registered);
        // One that was woken for another reason registers again below it.
        assert_eq!(turn.wait(Gid(5), 50), Wait::Over);
        assert_eq!(turn.pass(Gid(5)), None);
    }

    #[test]
    fn who_waits_far_behind_is_not_woken_early() {
        let turn = Turn::<4>::new();
        turn.start(Gid(3));
        assert_eq!(turn.wait(Gid(9), 90), Wait::Registered);
        assert_eq!(turn.pass(Gid(4)), None);
        for gid in 5..8 {
            assert_eq!(turn.pass(Gid(gid)), None);
        }
        assert_eq!(turn.pass(Gid(8)), Some(90));
    }

    #[test]
    fn who_is_behind_those_that_pass_together_is_woken() {
        let turn = Turn::<4>::new();
        turn.start(Gid(3));
        assert_eq!(turn.wait(Gid(7), 70), Wait::Registered);
        assert_eq!(turn.pass_all(Gid(4), Gid(6)), Some(70));
        assert_eq!(turn.passed(), Gid(6));
    }

    #[test]
    fn a_helper_takes_the_place_of_the_worker_that_it_replaces() {
        let turn = Turn::<4>::new();
        turn.start(Gid(3));
        assert_eq!(turn.wait(Gid(5), 1), Wait::Registered);
        assert_eq!(turn.wait(Gid(5), 2), Wait::Registered);
        assert_eq!(turn.pass(Gid(4)), Some(2));
    }
}

#[cfg(all(test, pgr_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            // Two places, so that two of the waiters meet in one.
            let turn = Arc::new(Turn::<2>::new());
            let waiters: Vec<_> = [(Gid(2), 20), (Gid(4), 40)]
                .map(|(gid, slot)| {
                    let turn = Arc::clone(&turn);
                    loom::thread::spawn(move || turn.wait(gid, slot))
                })
                .into();
            let woken = turn.pass(Gid(1));
            let waits: Vec<_> = waiters.into_iter().map(|w| w.join().unwrap()).collect();
            assert!(
                woken == Some(20) || waits[0] == Wait::Over,
                "it sleeps and nobody wakes it"
            );
            assert_ne!(woken, Some(40));
            // The other is woken at its turn if it found the place and kept it, and looks by itself if
            // not.
            let entry = Turn::<2>::entry(Gid(4), 40);
            let kept = turn.place(Gid(4)).load(Ordering::SeqCst) == entry;
            assert!(!kept || waits[1] == Wait::Registered);
            turn.pass(Gid(2));
            assert_eq!(turn.pass(Gid(3)) == Some(40), kept);
        });
    }
}
