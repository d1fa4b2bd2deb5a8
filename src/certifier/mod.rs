//! Certification: which of the ordered changesets commit. See `README.md` beside this file.
//!
//! A pure function of what the total order brought. No clock, thread, randomness, setting, catalog
//! or hash-iteration order reaches it, so that every member comes to the same verdicts.

mod checkpoint;
mod history;
mod index;
#[cfg(test)]
mod reference;
mod reservation;
#[cfg(test)]
mod tests;

pub use checkpoint::DecodeError;

use crate::changeset::Key;
use crate::changeset::key::{
    BEFORE_FIRST, KEY_BLIND, KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_READ, KEY_WRITES_ONLY,
};
use crate::ids::{Gid, MemberId};
use history::History;
use index::{GID_MAX, Index, Slot};
use reservation::Reservations;
use std::collections::BTreeMap;

/// What all members of a group must agree on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Bound on what is retained: the GIDs above the floor and the entries that they made,
    /// counted together.
    pub keys_max: usize,
}

/// What becomes of a changeset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It commits.
    Pass {
        /// Its position in the history.
        gid: Gid,
        /// It may be applied once this GID is committed: the highest one that wrote under a
        /// conflicting key, and never below the floor.
        depends_on: Gid,
    },
    /// It collides with one that passed before it and that it did not see.
    Conflict {
        /// Relation of the loser's key.
        relation: u32,
        /// The winner.
        gid: Gid,
        /// Where the winner ran.
        origin: MemberId,
    },
    /// It writes, or locks rows of, what another member has reserved.
    Reserved {
        /// What is reserved.
        relation: u32,
        /// Who has it.
        member: MemberId,
    },
    /// One of its windows reaches to where nothing is retained any more (or, from a broken origin,
    /// names a GID that nobody has been given).
    BelowFloor,
}

/// The state of certification after a prefix of the total order.
///
/// Every method that takes `&mut self` must be called on all members at the same point of the
/// order with the same arguments.
#[derive(Debug)]
pub struct Certifier {
    config: Config,
    /// Entries at or below it count as gone, whether or not they have been purged yet. Never falls.
    floor: Gid,
    /// What each member reported: nothing of it will ask for a window that reaches lower.
    lows: BTreeMap<MemberId, Gid>,
    digest: u64,
    history: History,
    index: Index,
    reservations: Reservations,
    /// Entries of the changeset being judged; empty in between.
    pending: Vec<(u64, Slot)>,
}

/// Entries purged for each one entered, so that a floor that jumps is worked off bit by bit and yet
/// what is retained in memory shrinks from there on.
const PURGE_FACTOR: usize = 2;
/// Entries purged besides, at each call.
const PURGE_BASE: usize = 32;
/// Keys and entries whose places in the index are asked for before the first of them is looked at.
const AHEAD: usize = 16;
/// Entries for which room is kept from one changeset to the next.
const PENDING_KEPT: usize = 1 << 16;

impl Certifier {
    /// A group's beginning: no GID given, no member.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            floor: Gid::ZERO,
            lows: BTreeMap::new(),
            digest: 0,
            history: History::new(Gid::ZERO),
            index: Index::with_capacity(0),
            reservations: Reservations::default(),
            pending: Vec::new(),
        }
    }

    /// Judges the next changeset of the order. `snapshot` is its origin's last committed GID when
    /// it multicast it; `keys` its writeset. If it is what its member made a reservation for,
    /// [`Certifier::reservation_used`] follows.
    pub fn certify(
        &mut self,
        origin: MemberId,
        snapshot: Gid,
        keys: impl Iterator<Item = Key>,
    ) -> Verdict {
        let verdict = match self.judge(origin, snapshot, keys) {
            Ok(depends_on) => Verdict::Pass {
                gid: self.enter(origin),
                depends_on,
            },
            Err(verdict) => verdict,
        };
        self.pending.clear();
        self.pending.shrink_to(PENDING_KEPT);
        self.reservations.judged(origin);
        self.extend_digest(verdict);
        verdict
    }

    /// A member reported that none of its windows will reach below `low` any more, and that it has
    /// committed everything up to there. Reports of strangers and falling ones change nothing.
    pub fn report_low(&mut self, member: MemberId, low: Gid) {
        let last = self.last_gid();
        if let Some(known) = self.lows.get_mut(&member) {
            *known = low.min(last).max(*known);
            self.raise_floor();
            self.purge(PURGE_BASE);
        }
    }

    /// A member joined; its windows reach down to `low` (not below the floor).
    pub fn member_added(&mut self, member: MemberId, low: Gid) {
        let low = low.min(self.last_gid());
        self.lows.entry(member).or_insert(low);
        self.raise_floor();
    }

    /// A member left: it holds the floor down no longer.
    pub fn member_removed(&mut self, member: MemberId) {
        self.lows.remove(&member);
        self.reservations.forget(member);
        self.raise_floor();
    }

    /// A member asks that no other writes these relations for a while; `position` is that of its
    /// message in the order. See `reservation.rs` for when it is granted.
    pub fn reserve(&mut self, member: MemberId, relations: &[u32], position: u64) {
        self.reservations.reserve(member, relations, position);
    }

    /// The reservation that the member made at this position is over.
    pub fn release(&mut self, member: MemberId, position: u64) {
        self.reservations.release(member, position);
    }

    /// The transaction for which the member made its reservation was judged.
    pub fn reservation_used(&mut self, member: MemberId) {
        self.reservations.end(member);
    }

    /// Members that have reserved something, and the positions at which they did.
    pub fn reservations(&self) -> impl Iterator<Item = (MemberId, u64)> {
        self.reservations.held()
    }

    /// Whether another member has the relation reserved, so that this one's changesets would fail.
    #[must_use]
    pub fn is_kept_out(&self, member: MemberId, relation: u32) -> bool {
        self.reservations.keeps_out(member, relation).is_some()
    }

    /// The last GID given.
    #[must_use]
    pub fn last_gid(&self) -> Gid {
        self.history.last()
    }

    /// Windows that reach below it fail.
    #[must_use]
    pub fn floor(&self) -> Gid {
        self.floor
    }

    /// Running digest of all verdicts in their order. Members that judged alike have the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// GIDs above the floor and entries that they made: what [`Config::keys_max`] bounds.
    #[must_use]
    pub fn retained(&self) -> u64 {
        self.history.weight_above(self.floor)
    }

    /// Checks all keys and gathers their entries in `pending`. The first key that fails decides, so that there
    /// is one verdict and no other. Returns what it depends on.
    fn judge(
        &mut self,
        origin: MemberId,
        snapshot: Gid,
        mut keys: impl Iterator<Item = Key>,
    ) -> Result<Gid, Verdict> {
        if snapshot > self.last_gid() {
            return Err(Verdict::BelowFloor);
        }
        let mut depends_on = self.floor;
        let mut some = [BEFORE_FIRST; AHEAD];
        loop {
            let mut count = 0;
            for (place, key) in some.iter_mut().zip(&mut keys) {
                *place = key;
                count += 1;
            }
            self.index.touch(some[..count].iter().map(|key| key.hash));
            for key in &some[..count] {
                let writer = self.judge_key(origin, snapshot, key)?;
                depends_on = depends_on.max(writer);
            }
            if count < AHEAD {
                return Ok(depends_on);
            }
        }
    }

    /// Checks a key: of what makes it fail the highest GID counts. Returns the highest one that wrote under a
    /// conflicting key, or the floor.
    fn judge_key(&mut self, origin: MemberId, snapshot: Gid, key: &Key) -> Result<Gid, Verdict> {
        if let Some(member) = self.reservations.refuses(origin, key) {
            let relation = key.relation;
            return Err(Verdict::Reserved { relation, member });
        }
        let floor = self.floor;
        let lock_only = key.flags & KEY_LOCK_ONLY != 0;
        let read = key.flags & KEY_READ != 0;
        let blind = key.flags & KEY_BLIND != 0;
        let writes_only = read || key.flags & KEY_WRITES_ONLY != 0;
        let since = key.since.min(snapshot);
        let written_above = if read || key.flags & KEY_FROM_SINCE != 0 {
            since
        } else {
            snapshot
        };
        // Starting from the floor, what is not above it has no say, purged or not.
        let (mut winner, mut writer) = (floor, floor);
        self.index.visit(key.hash, |slot, gid| {
            if !slot.conflicts(key.mode) || writes_only && slot.is_lock_only() {
                return;
            }
            let bound = if slot.is_lock_only() {
                since
            } else {
                written_above
            };
            if gid > bound && !blind {
                winner = winner.max(gid);
            }
            if !slot.is_lock_only() && !lock_only && (!read || blind) {
                writer = writer.max(gid);
            }
        });
        if winner > floor {
            return Err(Verdict::Conflict {
                relation: key.relation,
                gid: winner,
                origin: self.history.origin(winner),
            });
        }
        if since < floor && !blind {
            return Err(Verdict::BelowFloor);
        }
        if !read {
            self.pending
                .push((key.hash, Slot::new(key.mode, lock_only)));
        }
        Ok(writer)
    }

    /// Gives the next GID to the changeset whose entries are pending.
    fn enter(&mut self, origin: MemberId) -> Gid {
        let gid = self.last_gid().next();
        assert!(gid <= GID_MAX, "GIDs have run out");
        for &(hash, slot) in &self.pending {
            if self.index.set(hash, slot, gid) {
                self.history.push(hash, slot);
            }
        }
        self.history.close(origin);
        while self.history.weight_above(self.floor) > self.config.keys_max as u64 {
            self.floor = self.floor.next();
        }
        self.purge(PURGE_BASE + PURGE_FACTOR * self.pending.len());
        gid
    }

    /// To the lowest report of a member. Without members it stays.
    fn raise_floor(&mut self) {
        if let Some(low) = self.lows.values().min() {
            self.floor = self.floor.max(*low);
        }
    }

    /// Drops up to so many of the oldest entries at or below the floor.
    fn purge(&mut self, count: usize) {
        for nth in 0..count {
            if nth % AHEAD == 0 {
                let next = self.history.oldest_hashes(self.floor).take(AHEAD);
                self.index.touch(next);
            }
            let Some((hash, slot, gid)) = self.history.take_oldest(self.floor) else {
                return;
            };
            self.index.remove(hash, slot, gid);
        }
    }

    fn extend_digest(&mut self, verdict: Verdict) {
        let (kind, other) = match verdict {
            Verdict::Pass { .. } => (1, Gid::ZERO),
            Verdict::Conflict { gid, .. } => (2, gid),
            Verdict::BelowFloor => (3, Gid::ZERO),
            Verdict::Reserved { member, .. } => (4, Gid(member.0.into())),
        };
        // Each step is a bijection of the digest: once apart, two members meet again only by
        // chance.
        for word in [kind, self.last_gid().0, other.0] {
            let mixed = (self.digest.rotate_left(23) ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            self.digest = mixed ^ mixed >> 32;
        }
    }
}
