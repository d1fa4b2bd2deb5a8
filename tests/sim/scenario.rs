//! What a seed decides before the first event: size, pace, faults.

use crate::rng::Rng;
use postgres_r::coordinator::Pace;

/// A bug put in on purpose, to show that the checkers see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    None,
    /// Row locks do not reach the writeset.
    NoLockOnlyKeys,
    /// Keys carry the GID of the multicast instead of that of the lock.
    LateSince,
    /// Unique keys do not reach the writeset.
    NoUniqueKeys,
    /// What was only read does not reach the writeset.
    NoReadKeys,
    /// Children that come are not named, and it is not said that there are any.
    NoEntryKeys,
    /// The log is said to be durable before it is.
    DeliverBeforeDisk,
    /// Helpers start without waiting for what their changeset depends on.
    NoDependencies,
    /// Of what is applied together, only the first waits for what it depends on.
    FirstDependenciesOnly,
    /// What depends on one that is applied together with it waits for nothing else.
    HighestDependencyOnly,
    /// What is applied together is committed before its turn.
    PastGate,
    /// Whoever is in the way of a helper's lock is waited for.
    NobodyGivesWay,
    /// What could not be applied together is reported as applied.
    GivenUpIsDone,
    /// A client is told that it has committed when its changeset was sent.
    EarlyAnswer,
    /// One member reads some of the delivered changesets differently.
    WrongVerdict,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub plant: Plant,
    /// Members that the group is born with.
    pub members: usize,
    pub sessions: u32,
    pub helpers: u32,
    /// Transactions that clients begin while faults happen.
    pub transactions: u64,
    /// Ticks while faults happen.
    pub safety_ticks: u64,
    /// Milliseconds.
    pub net_delay_max: u64,
    pub disk_delay_max: u64,
    /// Writes to the log that take seconds, per mille.
    pub disk_stalls: u64,
    pub think_max: u64,
    /// Frames lost on a connection that stays up, per mille.
    pub loss: u64,
    /// Milliseconds between faults, on average; 0 is never.
    pub fault_every: u64,
    /// Weights of the faults.
    pub faults: Faults,
    /// Transactions that send entries ahead of their commit, per mille.
    pub large: u64,
    /// Helpers that fail, per mille of changesets.
    pub helper_failures: u64,
    /// Milliseconds that a helper of some members takes for a change while faults happen; a bit a site.
    pub apply_max: u64,
    pub slow_sites: u64,
    /// Moves after which what is applied together is given up, per mille.
    pub gives_up: u64,
    /// Helpers and sessions take locks that no key stands for.
    pub unkeyed_locks: bool,
    pub pace: Pace,
    /// Bytes of log kept for members that lag.
    pub keep_bytes: u64,
    pub segment_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub crash: u64,
    pub crash_all: u64,
    pub partition: u64,
    pub cut: u64,
    pub pause: u64,
    pub kill_session: u64,
    pub join: u64,
    pub stop: u64,
    pub fail_sync: u64,
    pub stall_helpers: u64,
}

/// Bytes of log that no seed reaches.
const KEEP_ALL: u64 = 1 << 30;

impl Scenario {
    /// The log may be cut before every member has what it holds.
    pub fn may_outdate(&self) -> bool {
        self.keep_bytes < KEEP_ALL
    }

    pub fn of(rng: &mut Rng, plant: Plant) -> Scenario {
        let calm = rng.per_mille(150);
        let weight = |rng: &mut Rng, max| {
            if rng.per_mille(500) {
                rng.below(max)
            } else {
                0
            }
        };
        let keep_bytes = rng.pick(&[KEEP_ALL, KEEP_ALL, KEEP_ALL, 20_000]);
        let faults = Faults {
            crash: weight(rng, 10),
            crash_all: weight(rng, 3),
            partition: weight(rng, 10),
            cut: weight(rng, 10),
            pause: weight(rng, 10),
            kill_session: weight(rng, 10),
            join: weight(rng, 4),
            // A group whose member left must not need the vote of one that lost its log.
            stop: if keep_bytes == KEEP_ALL {
                weight(rng, 2)
            } else {
                0
            },
            fail_sync: weight(rng, 4),
            stall_helpers: weight(rng, 20),
        };
        Scenario {
            plant,
            members: rng.pick(&[1, 2, 3, 3, 3, 3, 4, 5]),
            sessions: rng.between(1, 4) as u32,
            helpers: rng.between(1, 3) as u32,
            transactions: rng.between(20, 200) * rng.pick(&[1, 1, 1, 4]),
            safety_ticks: rng.between(30, 250),
            net_delay_max: rng.pick(&[2, 5, 20, 80]),
            disk_delay_max: rng.pick(&[1, 5, 20, 150]),
            disk_stalls: if calm { 0 } else { rng.pick(&[0, 0, 5, 50]) },
            think_max: rng.pick(&[5, 30, 100]),
            loss: if calm {
                0
            } else {
                rng.pick(&[0, 0, 0, 10, 100])
            },
            fault_every: if calm {
                0
            } else {
                rng.pick(&[200, 500, 1000, 2000])
            },
            faults,
            large: rng.pick(&[0, 50, 300]),
            helper_failures: rng.pick(&[0, 0, 50, 200]),
            apply_max: rng.pick(&[3, 30, 150, 400]),
            slow_sites: rng.below(32),
            gives_up: rng.pick(&[0, 0, 10, 50]),
            unkeyed_locks: rng.per_mille(300),
            pace: Pace {
                checkpoint_messages: rng.pick(&[3, 10, 40]),
                digest_gids: rng.pick(&[2, 5, 20]),
                keys_max: rng.pick(&[60, 400, 100_000]),
                quorum_ticks: rng.between(20, 30) as u32,
                status_ticks: rng.between(1, 5) as u32,
                queue_bytes: rng.pick(&[400, 2000, 1 << 20, 1 << 20]),
                open: Pace::default().open,
            },
            keep_bytes,
            segment_bytes: rng.pick(&[2 << 10, 8 << 10, 64 << 10]),
        }
    }
}
