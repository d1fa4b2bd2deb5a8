//! How far this member is: committed, flushed, and what its open transactions hold back.

use super::shmem;
use crate::coordinator::Event;
use crate::ids::Gid;
use crate::imsg::{Shared, since};
use std::sync::atomic::Ordering;

unsafe extern "C" {
    fn pgr_shim_wal_flushed() -> u64;
}

/// Positions as the coordinator's core is told of them.
#[derive(Debug)]
pub struct Positions {
    /// Every GID up to it has its commit record in flushed WAL.
    flushed: Gid,
    /// A later such GID, once WAL is flushed up to the second.
    flushing: Option<(Gid, u64)>,
    /// As of the last tick, so that not every turn of the loop looks at every process. What it is
    /// good for it stays good for: windows only begin later.
    low: Gid,
    /// What the core knows.
    told: Now,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Now {
    committed: Gid,
    flushed: Gid,
    low: Gid,
}

impl Positions {
    /// Of a member whose flushed WAL has every GID up to `recovered`.
    #[must_use]
    pub fn new(recovered: Gid) -> Positions {
        let told = Now {
            committed: recovered,
            flushed: Gid::ZERO,
            low: recovered,
        };
        Positions {
            flushed: recovered,
            flushing: None,
            low: recovered,
            told,
        }
    }

    /// Looks how far back the windows of open transactions reach.
    pub fn tick(&mut self, shared: Shared) {
        self.low = since::low(shared.control(), shared.slots().iter());
    }

    /// Every GID up to the answer has its commit record in flushed WAL.
    #[must_use]
    pub fn flushed(&self) -> Gid {
        self.flushed
    }

    /// Whether the core knows less than there is to know.
    pub fn have_moved(&mut self, shared: Shared) -> bool {
        self.now(shared) != self.told
    }

    /// Where this member is, for the core.
    pub fn report(&mut self, shared: Shared) -> Event {
        let now = self.now(shared);
        self.told = now;
        Event::Progress {
            last_committed: now.committed,
            flushed: now.flushed,
            low: now.low,
        }
    }

    fn now(&mut self, shared: Shared) -> Now {
        let control = shared.control();
        // SAFETY: reads the state of the server.
        let wal = unsafe { pgr_shim_wal_flushed() };
        if let Some((gid, _)) = self.flushing.filter(|(_, lsn)| *lsn <= wal) {
            self.flushed = gid;
            self.flushing = None;
        }
        if self.flushing.is_none() {
            // The GID first: the position in WAL, read later, covers it.
            let gid = control.logged.passed();
            let lsn = shmem::server().logged_lsn.load(Ordering::Relaxed);
            if gid > self.flushed {
                self.flushing = Some((gid, lsn));
            }
        }
        Now {
            committed: control.visible.passed(),
            flushed: self.flushed,
            low: self.low,
        }
    }
}
