//! A helper that has to wait for a lock, and those who hold it.

use super::job;
use crate::pg::guard::Result;
use crate::pg::victim::{self, Local};
use crate::pg::{shmem, sys};
use crate::worker::rule::{self, Action};
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Milliseconds after which the holders are looked at again.
const LOOK_AGAIN_MS: i32 = 100;
/// How long a transaction that was told to abort may take before its session is ended: it does not
/// serve interrupts, for it is blocked writing to a client that does not read.
const GRACE: Duration = Duration::from_secs(5);

thread_local! {
    /// Those who were told to abort, since when, while this helper waits for a lock.
    static TOLD: RefCell<Vec<(Local, Instant)>> = const { RefCell::new(Vec::new()) };
}

/// Tells those in the way to abort, and sees to it that this is done again while we wait: another
/// holder can come in our way without waking us.
pub fn look(tag: &sys::LOCKTAG, mode: i32) -> Result<()> {
    let Some(cause) = job::current() else {
        return Ok(());
    };
    let kind = u32::from(tag.locktag_type);
    // Held for moments only, never to the end of a transaction.
    if matches!(
        kind,
        sys::LOCKTAG_RELATION_EXTEND | sys::LOCKTAG_DATABASE_FROZEN_IDS | sys::LOCKTAG_PAGE
    ) {
        return Ok(());
    }
    let shared = shmem::shared();
    let blockers = victim::blockers(tag, mode)?;
    TOLD.with_borrow_mut(|told| told.retain(|(who, _)| blockers.contains(who)));
    for blocker in blockers {
        let number = blocker.process.cast_unsigned();
        if number == shmem::my_slot().0 {
            continue;
        }
        let slot = shared.slot(crate::imsg::SlotNo(number));
        if rule::action(slot, blocker.id, cause.gid) == Action::Wait {
            continue;
        }
        let pid = victim::tell(slot, blocker, cause)?;
        let since =
            TOLD.with_borrow_mut(|told| match told.iter().find(|(who, _)| *who == blocker) {
                Some((_, since)) => *since,
                None => {
                    let now = Instant::now();
                    told.push((blocker, now));
                    now
                }
            });
        if let Some(pid) = pid
            && since.elapsed() > GRACE
        {
            victim::terminate(pid);
        }
    }
    victim::look_again_in(LOOK_AGAIN_MS)
}
