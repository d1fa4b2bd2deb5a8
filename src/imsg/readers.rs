//! Sessions that wait until a GID is visible on this server, whatever process commits it.
//!
//! Seldom any, so whoever makes a GID visible pays one load then; if there are some, it looks at all
//! process slots.

use super::sync::{AtomicU32, AtomicU64, Ordering, fence};
use super::turn::Turn;
use crate::ids::Gid;

/// How many wait. What each waits for is in its slot.
#[repr(C)]
#[derive(Debug)]
pub struct Readers(AtomicU32);

impl Default for Readers {
    fn default() -> Self {
        Self::new()
    }
}

impl Readers {
    /// Nobody waits.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Says in `wants` that a process waits until `gid` has passed; true if it has. Else it sleeps
    /// on its latch and asks [`Turn::passed`] whenever it wakes up, and then is [`Readers::done`].
    pub fn wait<const N: usize>(&self, wants: &AtomicU64, gid: Gid, visible: &Turn<N>) -> bool {
        wants.store(gid.0, Ordering::Relaxed);
        self.0.fetch_add(1, Ordering::SeqCst);
        // As in `Turn::wait`: a committer that passes now is seen here, or sees that somebody waits.
        fence(Ordering::SeqCst);
        visible.passed() >= gid
    }

    /// The process waits no more.
    pub fn done(&self, wants: &AtomicU64) {
        wants.store(0, Ordering::Relaxed);
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// `gid` has just passed its turn: calls `wake` with the slot of each that waited for it, of all
    /// slots' `wants`.
    pub fn passed<'a>(
        &self,
        gid: Gid,
        wants: impl Iterator<Item = &'a AtomicU64>,
        mut wake: impl FnMut(u32),
    ) {
        // `Turn::pass` has a fence before this look.
        if self.0.load(Ordering::SeqCst) == 0 {
            return;
        }
        for (slot, wants) in (0..).zip(wants) {
            if (1..=gid.0).contains(&wants.load(Ordering::Relaxed)) {
                wake(slot);
            }
        }
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_for_what_passed_are_woken_and_no_others() {
        let (readers, visible) = (Readers::new(), Turn::<16>::new());
        let wants: [AtomicU64; 4] = std::array::from_fn(|_| AtomicU64::new(0));
        visible.start(Gid(4));
        assert!(readers.wait(&wants[0], Gid(4), &visible));
        readers.done(&wants[0]);
        assert!(!readers.wait(&wants[1], Gid(6), &visible));
        assert!(!readers.wait(&wants[3], Gid(5), &visible));
        let passed = |gid| {
            visible.pass(gid);
            let mut woken = Vec::new();
            readers.passed(gid, wants.iter(), |slot| woken.push(slot));
            woken
        };
        assert_eq!(passed(Gid(5)), [3]);
        readers.done(&wants[3]);
        assert_eq!(passed(Gid(6)), [1]);
        readers.done(&wants[1]);
        assert!(passed(Gid(7)).is_empty());
    }
}

#[cfg(all(test, pgr_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let shared = Arc::new((Readers::new(), AtomicU64::new(0), Turn::<2>::new()));
            let reader = {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || {
                    let (readers, wants, visible) = &*shared;
                    readers.wait(wants, Gid(1), visible)
                })
            };
            let (readers, wants, visible) = &*shared;
            visible.pass(Gid(1));
            let mut woken = false;
            readers.passed(Gid(1), std::iter::once(wants), |_| woken = true);
            assert!(
                reader.join().unwrap() || woken,
                "it sleeps and nobody wakes it"
            );
        });
    }
}
