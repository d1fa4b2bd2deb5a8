//! The commit gate: commit records, and then visibility, in GID order.

use super::channel::{control, set_phase};
use super::phase::Phase;
use crate::ids::Gid;
use crate::imsg::SlotNo;
use crate::imsg::turn::{Turn, Wait};
use crate::pg::{commit_gid, latch, shmem, sys};
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

thread_local! {
    /// The first of the GIDs that this process commits; the last is that of its commit record.
    static FIRST: Cell<Gid> = const { Cell::new(Gid::ZERO) };
}

/// How long a wait goes on before conditions are looked at that set no latch: the state of the
/// group, the life of the coordinator, a turn whose place another had.
pub const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Whether it is the turn of `gid`; if not, this process's latch is set when it is.
pub fn is_turn(turn: &Turn, gid: Gid) -> bool {
    turn.is(gid) || turn.wait(gid, shmem::my_slot().0) == Wait::Over
}

/// The turn of `first` to write the commit record of all up to `last` has come: nothing may fail from
/// here on.
pub fn enter(first: Gid, last: Gid) {
    set_phase(Phase::Committing);
    let group_id = control().group_id.load(Ordering::Relaxed);
    FIRST.set(first);
    commit_gid::set(group_id, last);
}

/// The commit record is in WAL up to `end`. In a critical section: atomics and a latch only.
pub fn logged(end: u64) {
    let gid = commit_gid::get();
    shmem::server().logged_lsn.store(end, Ordering::Relaxed);
    if let Some(next) = control().logged.pass_all(FIRST.get(), gid) {
        latch::wake(SlotNo(next));
    }
}

/// Waits until all commits before this one are visible. They can't fail, so neither does this.
pub fn wait_visible() {
    latch::stop_point(c"replication-commit-visible");
    while !is_turn(&control().visible, FIRST.get()) {
        latch::sleep(Some(LOOK_AROUND), sys::WAIT_EVENT_REPLICATION_COMMIT_TURN);
    }
}

/// The commit is visible: `last_committed_gid` moves, and who waits for that goes on.
pub fn visible() {
    let gid = commit_gid::get();
    let control = control();
    if let Some(next) = control.visible.pass_all(FIRST.get(), gid) {
        latch::wake(SlotNo(next));
    }
    control
        .dependents
        .passed(gid, |slot| latch::wake(SlotNo(slot)));
    let wants = shmem::shared().slots().iter().map(|s| &s.wants_gid);
    control
        .readers
        .passed(gid, wants, |slot| latch::wake(SlotNo(slot)));
    commit_gid::clear();
}
