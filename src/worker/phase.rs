//! Where a worker's transaction stands between its first change and its end.

use crate::imsg::layout::phase;

/// The phases, in the order in which a transaction goes through them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Not yet multicast: whoever is in the way of a certified transaction is told to abort.
    Open,
    /// Commits without the group, which is not formed yet or no more.
    Local,
    /// Handed to the coordinator, no verdict yet: left to the verdict.
    Multicast,
    /// Passed: it commits at its GID, here or (`Replaced`) by a helper.
    Certified,
    /// Its commit turn has come: nothing may fail any more.
    Committing,
    /// Certified, but a helper commits it in the worker's place.
    Replaced,
}

impl Phase {
    /// How other processes see it ([`crate::imsg::ProcSlot::phase`]).
    #[must_use]
    pub const fn shared(self) -> u32 {
        match self {
            Phase::Open => phase::OPEN,
            Phase::Local => phase::LOCAL,
            Phase::Multicast => phase::SENT,
            Phase::Certified | Phase::Committing | Phase::Replaced => phase::CERTIFIED,
        }
    }

    /// Whether a transaction may go from this phase to that.
    #[must_use]
    pub const fn allows(self, next: Phase) -> bool {
        use Phase::{Certified, Committing, Local, Multicast, Open, Replaced};
        matches!(
            (self, next),
            // An end, by commit or abort, begins the next transaction.
            (_, Open)
                // A helper has its GID from the start.
                | (Open, Local | Multicast | Certified)
                | (Multicast, Certified)
                | (Certified, Committing | Replaced)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 6] = [
        Phase::Open,
        Phase::Local,
        Phase::Multicast,
        Phase::Certified,
        Phase::Committing,
        Phase::Replaced,
    ];

    #[test]
    fn nothing_leaves_the_commit_turn_but_the_end() {
        for next in ALL {
            assert_eq!(Phase::Committing.allows(next), next == Phase::Open);
            assert_eq!(Phase::Replaced.allows(next), next == Phase::Open);
            assert_eq!(Phase::Local.allows(next), next == Phase::Open);
        }
    }

    #[test]
    fn a_transaction_is_a_possible_victim_only_before_its_multicast() {
        for p in ALL {
            assert_eq!(p.shared() == phase::OPEN, p == Phase::Open);
        }
    }

    #[test]
    fn there_is_no_way_back_but_by_the_end() {
        for (i, from) in ALL.iter().enumerate() {
            for to in ALL[..=i].iter().filter(|to| **to != Phase::Open) {
                assert!(!from.allows(*to), "{from:?} to {to:?}");
            }
        }
    }
}
