//! The one rule for every wait of a process that has a GID.

use crate::ids::Gid;
use crate::imsg::ProcSlot;
use crate::imsg::layout::phase;
use std::sync::atomic::Ordering;

/// What to do about a blocker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It has a lower GID, or its verdict is under way.
    Wait,
    /// It is told to abort.
    Abort,
}

/// A blocker with a lower GID is waited for, one that is with the group is left to its verdict, any
/// other gives way. `transaction` says which of the slot's transactions is in the way: what the slot
/// says may still be about the one before, which captured something when this one did not.
#[must_use]
pub fn action(slot: &ProcSlot, transaction: u32, mine: Gid) -> Action {
    // In the opposite order of that in which the process writes them.
    let stage = slot.phase.load(Ordering::SeqCst);
    let gid = slot.gid.load(Ordering::SeqCst);
    let current = slot.ticket.load(Ordering::SeqCst) == u64::from(transaction);
    let lower = match stage {
        phase::SENT => passed(slot, transaction) < mine,
        phase::CERTIFIED => gid < mine.0,
        _ => false,
    };
    if current && lower {
        Action::Wait
    } else {
        Action::Abort
    }
}

/// GID of a transaction that is with the group, 0 without a verdict. It may not know of it yet, for
/// its process sleeps until its turn.
fn passed(slot: &ProcSlot, transaction: u32) -> Gid {
    if slot.passed_ticket.load(Ordering::SeqCst) != u64::from(transaction) {
        return Gid::ZERO;
    }
    Gid(slot.passed_gid.load(Ordering::SeqCst))
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;
    use crate::imsg::SlotNo;
    use crate::imsg::layout::tests::Region;

    fn decide(stage: u32, gid: u64, ticket: u64) -> Action {
        passed_decide((0, 0), stage, gid, ticket)
    }

    fn passed_decide(passed: (u64, u64), stage: u32, gid: u64, ticket: u64) -> Action {
        let region = Region::new(1, 16);
        let slot = region.shared().slot(SlotNo(0));
        slot.passed_gid.store(passed.0, Ordering::SeqCst);
        slot.passed_ticket.store(passed.1, Ordering::SeqCst);
        slot.ticket.store(ticket, Ordering::SeqCst);
        slot.gid.store(gid, Ordering::SeqCst);
        slot.phase.store(stage, Ordering::SeqCst);
        action(slot, 7, Gid(10))
    }

    #[test]
    fn lower_gids_are_waited_for_and_higher_ones_give_way() {
        assert_eq!(decide(phase::CERTIFIED, 9, 7), Action::Wait);
        assert_eq!(decide(phase::CERTIFIED, 11, 7), Action::Abort);
    }

    #[test]
    fn what_is_with_the_group_is_left_to_its_verdict() {
        assert_eq!(decide(phase::SENT, 0, 7), Action::Wait);
        assert_eq!(passed_decide((9, 7), phase::SENT, 0, 7), Action::Wait);
        assert_eq!(passed_decide((11, 7), phase::SENT, 0, 7), Action::Abort);
        let another = passed_decide((11, 6), phase::SENT, 0, 7);
        assert_eq!(another, Action::Wait, "a verdict on an earlier one");
        assert_eq!(decide(phase::OPEN, 0, 7), Action::Abort);
    }

    #[test]
    fn what_the_slot_says_of_another_transaction_does_not_count() {
        assert_eq!(decide(phase::SENT, 0, 6), Action::Abort);
        assert_eq!(decide(phase::CERTIFIED, 9, 6), Action::Abort);
    }
}
