//! Verdicts: a pure function of the total order. See `README.md` beside this file.
#![forbid(unsafe_code)]

mod checkpoint;
mod index;
#[cfg(test)]
mod tests;

pub use checkpoint::CheckpointError;

use crate::changeset::Key;
use crate::changeset::key::{KEY_FROM_SINCE, KEY_LOCK_ONLY};
use crate::ids::{Gid, MemberId};
use index::{Class, Index};
use std::collections::{BTreeMap, VecDeque};

/// Bounds; the same on every member.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Keys retained; beyond it the oldest go.
    pub keys_max: usize,
}

/// What becomes of a changeset. All but `depends_on` is the same on every member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It commits.
    Pass {
        /// Its place in the history.
        gid: Gid,
        /// Highest GID whose writes it must find, or replaces: apply begins after it.
        depends_on: Gid,
    },
    /// A transaction that it did not see was ordered before it.
    Conflict {
        /// Relation of the key.
        relation: u32,
        /// The other transaction.
        gid: Gid,
        /// Where that came from.
        origin: MemberId,
    },
    /// Its windows reach below what is retained.
    BelowFloor,
}

/// State of certification after some prefix of the total order.
#[derive(Clone, Debug)]
pub struct Certifier {
    config: Config,
    index: Index,
    /// Of each member: no later changeset of it has a snapshot GID or a `since` below.
    lows: BTreeMap<MemberId, Gid>,
    last: Gid,
    /// Entries up to here may be gone.
    floor: Gid,
    /// The part of the floor that was forced by `keys_max`, beyond what members reported.
    forced: Gid,
    /// Origins of the GIDs above the floor, to name the winner.
    origins: VecDeque<MemberId>,
    digest: u64,
}

impl Certifier {
    /// Before the first transaction.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            index: Index::default(),
            lows: BTreeMap::new(),
            last: Gid::ZERO,
            floor: Gid::ZERO,
            forced: Gid::ZERO,
            origins: VecDeque::new(),
            digest: 0,
        }
    }

    /// Decides on the next changeset of the total order.
    ///
    /// Against entries that were written, a key's window begins at the changeset's snapshot GID;
    /// against entries that were only locked, and against all if the key has [`KEY_FROM_SINCE`], it
    /// begins at the key's `since`. An origin's own transactions are treated like all others: what
    /// they had committed when this one was multicast is at or below its snapshot GID, and two that
    /// are in flight together held their row locks at the same time, so they cannot both have
    /// conflicting ones.
    pub fn certify(
        &mut self,
        origin: MemberId,
        snapshot: Gid,
        keys: impl Iterator<Item = Key> + Clone,
    ) -> Verdict {
        let verdict = self.judge(origin, snapshot, keys);
        self.note(verdict);
        verdict
    }

    fn judge(
        &mut self,
        origin: MemberId,
        snapshot: Gid,
        keys: impl Iterator<Item = Key> + Clone,
    ) -> Verdict {
        if snapshot < self.floor || keys.clone().any(|k| k.since < self.floor) {
            return Verdict::BelowFloor;
        }
        let mut depends_on = self.forced;
        for key in keys.clone() {
            let lock_only = key.flags & KEY_LOCK_ONLY != 0;
            let mut winner = None;
            self.index.each(key.hash, |class, gid| {
                if !class.mode().conflicts(key.mode) {
                    return;
                }
                if !class.lock_only() && !lock_only {
                    depends_on = depends_on.max(gid);
                }
                let from_since = class.lock_only() || key.flags & KEY_FROM_SINCE != 0;
                let bound = if from_since { key.since } else { snapshot };
                if gid > bound {
                    winner = winner.max(Some(gid));
                }
            });
            if let Some(gid) = winner {
                return Verdict::Conflict {
                    relation: key.relation,
                    gid,
                    origin: self.origin_of(gid),
                };
            }
        }
        let gid = self.last.next();
        self.last = gid;
        self.origins.push_back(origin);
        for key in keys {
            self.index.set(
                key.hash,
                Class::new(key.mode, key.flags & KEY_LOCK_ONLY != 0),
                gid,
            );
        }
        if self.index.len() > self.config.keys_max {
            self.forced = self.index.shrink(self.config.keys_max);
            self.raise_floor(self.forced);
        }
        Verdict::Pass { gid, depends_on }
    }

    /// A member's report, in the total order: none of its later changesets has a snapshot GID or a
    /// `since` below.
    pub fn report_low(&mut self, member: MemberId, low: Gid) {
        if let Some(known) = self.lows.get_mut(&member)
            && *known < low
        {
            *known = low;
            self.settle();
        }
    }

    /// A member joined with a copy of this GID.
    pub fn member_added(&mut self, member: MemberId, low: Gid) {
        self.lows.entry(member).or_insert(low);
        self.settle();
    }

    /// A member left: it holds nobody up any more.
    pub fn member_removed(&mut self, member: MemberId) {
        self.lows.remove(&member);
        self.settle();
    }

    /// GID of the last changeset that passed.
    #[must_use]
    pub fn last_gid(&self) -> Gid {
        self.last
    }

    /// Windows that begin below it fail.
    #[must_use]
    pub fn floor(&self) -> Gid {
        self.floor
    }

    /// Of all verdicts so far, in their order. Members whose digests differ at the same place have
    /// different histories.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Keys retained.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.index.len()
    }

    fn settle(&mut self) {
        if let Some(low) = self.lows.values().min() {
            // What is still to come of a member can't reach beyond what is ordered.
            self.raise_floor((*low).min(self.last));
        }
    }

    /// The floor never sinks: what was below it may be gone.
    fn raise_floor(&mut self, floor: Gid) {
        if floor <= self.floor {
            return;
        }
        let gone = (floor.0 - self.floor.0) as usize;
        self.origins.drain(..gone.min(self.origins.len()));
        self.floor = floor;
        self.index.purge(floor);
    }

    fn origin_of(&self, gid: Gid) -> MemberId {
        let place = (gid.0 - self.floor.0) as usize;
        *self
            .origins
            .get(place - 1)
            .expect("a window's entries lie above the floor")
    }

    fn note(&mut self, verdict: Verdict) {
        let (kind, what) = match verdict {
            Verdict::Pass { gid, .. } => (1, gid.0),
            Verdict::Conflict { gid, .. } => (2, gid.0),
            Verdict::BelowFloor => (3, self.floor.0),
        };
        self.digest = mix(self.digest ^ mix(what << 2 | kind));
    }
}

/// The finalizer of SplitMix64: every bit of the input reaches every bit of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
