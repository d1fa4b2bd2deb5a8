//! Where a worker's transaction stands between its first change and its end.
#![forbid(unsafe_code)]

/// The phases, in the order in which a transaction goes through them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Phase {
    /// Not yet multicast: whoever is in the way of a certified transaction is told to abort.
    Open = 0,
    /// Handed to the coordinator, no verdict yet: left to the verdict.
    Multicast = 1,
    /// Passed: it commits at its GID, here or (`Replaced`) by a helper.
    Certified = 2,
    /// Its commit turn has come: nothing may fail any more.
    Committing = 3,
    /// Certified, but a helper commits it in the worker's place.
    Replaced = 4,
}

impl Phase {
    /// From the shared word.
    #[must_use]
    pub const fn from_word(word: u32) -> Option<Phase> {
        Some(match word {
            0 => Phase::Open,
            1 => Phase::Multicast,
            2 => Phase::Certified,
            3 => Phase::Committing,
            4 => Phase::Replaced,
            _ => return None,
        })
    }

    /// Whether a transaction may go from this phase to that.
    #[must_use]
    pub const fn allows(self, next: Phase) -> bool {
        use Phase::{Certified, Committing, Multicast, Open, Replaced};
        matches!(
            (self, next),
            // An end, by commit or abort, begins the next transaction.
            (_, Open)
                | (Open, Multicast)
                | (Multicast, Certified)
                | (Certified, Committing | Replaced)
                // A helper takes its GID at once: it has no verdict to wait for.
                | (Open, Committing)
        )
    }

    /// Whether the transaction can still be told to abort with 40001.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Phase::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 5] = [
        Phase::Open,
        Phase::Multicast,
        Phase::Certified,
        Phase::Committing,
        Phase::Replaced,
    ];

    #[test]
    fn the_word_names_every_phase_and_nothing_else() {
        for phase in ALL {
            assert_eq!(Phase::from_word(phase as u32), Some(phase));
        }
        assert_eq!(Phase::from_word(5), None);
    }

    #[test]
    fn nothing_leaves_the_commit_turn_but_the_end() {
        for next in ALL {
            assert_eq!(Phase::Committing.allows(next), next == Phase::Open);
            assert_eq!(Phase::Replaced.allows(next), next == Phase::Open);
        }
    }

    #[test]
    fn a_transaction_is_a_possible_victim_only_before_its_multicast() {
        for phase in ALL {
            assert_eq!(phase.is_open(), phase == Phase::Open);
        }
    }
}
