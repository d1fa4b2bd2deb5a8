//! Imessages to and from the coordinator, and what this process has in shared memory.

use super::consistency;
use super::fragments;
use super::phase::Phase;
use crate::capture::transaction as captured;
use crate::ids::Gid;
use crate::imsg::message::{Job, ToCoordinator, ToHelper, ToWorker};
use crate::imsg::queue::QueueFull;
use crate::imsg::{Control, ProcSlot, since, wake};
use crate::pg::guard::{Result, boundary_nofail};
use crate::pg::{commit_gid, shmem, sys, transaction};
use std::cell::Cell;
use std::ffi::c_int;
use std::sync::atomic::Ordering;

/// `ProcSlot::role` of a process that may multicast.
const ROLE_WORKER: u32 = 1;
/// `ProcSlot::role` of a helper.
const ROLE_HELPER: u32 = 2;

thread_local! {
    static ATTACHED: Cell<bool> = const { Cell::new(false) };
    static PHASE: Cell<Phase> = const { Cell::new(Phase::Open) };
}

/// The group's shared state.
pub fn control() -> &'static Control {
    shmem::shared().control()
}

/// This process's slot.
pub fn slot() -> &'static ProcSlot {
    shmem::shared().slot(shmem::my_slot())
}

/// Takes this process's slot, once: it sends and receives from here on.
pub fn attach(helper: bool) -> Result<()> {
    if ATTACHED.get() {
        return Ok(());
    }
    transaction::before_exit(on_exit)?;
    let slot = slot();
    // Answers to the process that had the slot before. What it sent stays in the queues up: their
    // cursors go on, since the coordinator may be reading.
    while slot.replies_down.pop().is_some() {}
    drop_work();
    slot.victim_ticket.store(0, Ordering::SeqCst);
    slot.maintenance.store(0, Ordering::SeqCst);
    slot.gid.store(0, Ordering::SeqCst);
    slot.phase.store(Phase::Open.shared(), Ordering::SeqCst);
    slot.role.store(
        if helper { ROLE_HELPER } else { ROLE_WORKER },
        Ordering::SeqCst,
    );
    ATTACHED.set(true);
    Ok(())
}

/// Frees changesets that were sent here to be applied, which nobody does any more.
fn drop_work() {
    while let Some(words) = slot().requests_down.pop() {
        if let Ok(
            ToHelper::Apply(Job { changeset, .. })
            | ToHelper::Fragment {
                fragment: changeset,
                ..
            }
            | ToHelper::EarlyFragment {
                fragment: changeset,
                ..
            },
        ) = ToHelper::try_from(words)
        {
            shmem::shared().pool().free(changeset);
        }
    }
}

/// Whether a slot belongs to a helper.
pub fn is_helper(slot: &ProcSlot) -> bool {
    slot.role.load(Ordering::SeqCst) == ROLE_HELPER
}

/// Where the current transaction stands.
pub fn phase() -> Phase {
    PHASE.get()
}

/// Moves the transaction on, for others to see.
pub fn set_phase(next: Phase) {
    let now = PHASE.get();
    assert!(
        now.allows(next),
        "a transaction can't go from {now:?} to {next:?}"
    );
    PHASE.set(next);
    slot().phase.store(next.shared(), Ordering::SeqCst);
}

/// Sends something that asks the coordinator for work.
pub fn request(message: ToCoordinator) -> std::result::Result<(), QueueFull> {
    slot().requests_up.push(message.into())?;
    wake::notify(shmem::shared(), shmem::my_slot());
    Ok(())
}

/// Sends a result.
pub fn reply(message: ToCoordinator) -> std::result::Result<(), QueueFull> {
    slot().replies_up.push(message.into())?;
    wake::notify(shmem::shared(), shmem::my_slot());
    Ok(())
}

/// Sends a result that is looked at when the coordinator is awake, or waits for helpers.
pub fn report(message: ToCoordinator) -> std::result::Result<(), QueueFull> {
    slot().replies_up.push(message.into())?;
    wake::note(shmem::shared(), shmem::my_slot());
    Ok(())
}

/// The next message for a worker, if there is one. What became of fragments is taken down at once, for
/// it comes whatever the worker waits for.
pub fn receive() -> Option<ToWorker> {
    loop {
        match ToWorker::try_from(slot().replies_down.pop()?) {
            Ok(ToWorker::Fragment { ticket, kept }) => fragments::ordered(ticket, kept),
            Ok(message) => return Some(message),
            // Words that are no message can only be damage; the wait goes on.
            Err(_) => {}
        }
    }
}

/// Whether there is a coordinator.
pub fn has_coordinator() -> bool {
    control().coordinator_slot.load(Ordering::SeqCst) != 0
}

/// Names the current transaction among those of this slot.
pub fn ticket() -> u64 {
    slot().ticket.load(Ordering::Relaxed)
}

/// The transaction is over, one way or the other.
pub fn release() {
    if ATTACHED.get() {
        // Others commit it, and its turn would never pass: the server begins anew, and finds it in
        // the group's log.
        assert!(
            commit_gid::get() == Gid::ZERO,
            "a certified transaction failed between its commit turn and its commit record"
        );
        let slot = slot();
        since::clear(slot);
        set_phase(Phase::Open);
        slot.gid.store(Gid::ZERO.0, Ordering::SeqCst);
        slot.victim_ticket.store(0, Ordering::SeqCst);
    }
}

/// The process ends: gives back what it has. A transaction that is with the group is the group's.
extern "C" fn on_exit(_code: c_int, _arg: sys::Datum) {
    boundary_nofail(|| {
        if !ATTACHED.get() {
            return;
        }
        let slot = slot();
        if is_helper(slot) {
            // Among its results, so that it comes before what the slot's next helper says.
            let _ = reply(ToCoordinator::HelperGone);
            drop_work();
        } else if matches!(phase(), Phase::Multicast | Phase::Certified) {
            let _ = request(ToCoordinator::Abandon { ticket: ticket() });
        }
        consistency::leave();
        // Its blocks go back one by one, before all that is left in our name does.
        captured::discard();
        release();
        slot.role.store(0, Ordering::SeqCst);
        shmem::shared().pool().reclaim(shmem::my_slot());
        ATTACHED.set(false);
    });
}
