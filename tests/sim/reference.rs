//! Certification as its rules say it, slow and on its own: everything that ever passed is kept, and every
//! changeset is held against all of it.

use postgres_r::changeset::Key;
use postgres_r::changeset::decode::Changeset;
use postgres_r::changeset::header::FLAG_RESERVED;
use postgres_r::changeset::key::{
    KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_READ, KEY_RELATION, KEY_WRITES_ONLY,
};
use postgres_r::coordinator::message::Relations;
use postgres_r::ids::{Gid, MemberId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

#[derive(Default)]
pub struct Reference {
    /// By hash: who passed with such a key.
    passed: HashMap<u64, Vec<(Gid, Key)>>,
    /// The highest report of any member: no floor that follows from reports lies above it.
    low: Gid,
    /// The index is so small that the floor also rises by itself.
    is_tight: bool,
    /// Members that have reserved relations: which, at which position, and how many changesets of
    /// others were judged since.
    held: BTreeMap<MemberId, (BTreeSet<u32>, u64, u32)>,
    /// Members that have to let so many changesets of others pass first.
    resting: BTreeMap<MemberId, u32>,
}

impl Reference {
    /// `keys_max`: as the members have it.
    pub fn new(keys_max: usize) -> Reference {
        Reference {
            is_tight: keys_max < 10_000,
            ..Reference::default()
        }
    }

    /// A member has reported what its windows reach down to.
    pub fn reported(&mut self, low: Gid) {
        self.low = self.low.max(low);
    }

    /// Who else was a member is gone, with its reservation.
    pub fn members(&mut self, is_member: impl Fn(MemberId) -> bool) {
        self.held.retain(|member, _| is_member(*member));
        self.resting.retain(|member, _| is_member(*member));
    }

    /// A member asks for relations.
    pub fn reserve(&mut self, member: MemberId, relations: Relations, position: u64) {
        let wanted: BTreeSet<u32> = relations.into_iter().filter(|r| *r != 0).collect();
        let taken = self.held.values().any(|(r, ..)| !r.is_disjoint(&wanted));
        let waits = self.held.contains_key(&member) || self.resting.contains_key(&member);
        if !taken && !waits {
            self.held.insert(member, (wanted, position, 0));
        }
    }

    /// The member's reservation of this position is over.
    pub fn release(&mut self, member: MemberId, position: u64) {
        if self.held.get(&member).is_some_and(|h| h.1 == position) {
            self.end(member);
        }
    }

    fn end(&mut self, member: MemberId) {
        if let Some((_, _, seen)) = self.held.remove(&member).filter(|h| h.2 > 0) {
            self.resting.insert(member, seen);
        }
    }

    /// Whether a changeset wants what another member has; and it has had its turn.
    fn is_reserved(&mut self, changeset: &Changeset<'_>) -> bool {
        let origin = changeset.header().origin;
        let wants = |relations: &BTreeSet<u32>| {
            let mut relation_keys = changeset
                .keys()
                .filter(|k| k.flags & (KEY_RELATION | KEY_READ) == KEY_RELATION);
            relation_keys.any(|k| relations.contains(&k.relation))
        };
        let others = self.held.iter_mut().filter(|(m, _)| **m != origin);
        let mut reserved = false;
        for (_, (relations, _, seen)) in others {
            reserved |= wants(relations);
            *seen += 1;
        }
        self.resting.retain(|member, left| {
            *left -= u32::from(*member != origin);
            *left > 0
        });
        if changeset.header().flags & FLAG_RESERVED != 0 {
            self.end(origin);
        }
        reserved
    }

    /// Holds a verdict against the rules: `gid` is that of the changeset if it passed.
    pub fn judge(&mut self, changeset: &[u8], gid: Option<Gid>) {
        let changeset = Changeset::parse(changeset).expect("a changeset");
        let snapshot = changeset.header().snapshot_gid;
        let reserved = self.is_reserved(&changeset);
        let conflict = changeset.keys().find_map(|key| {
            let theirs = self.passed.get(&key.hash)?;
            let (gid, _) = theirs.iter().find(|t| collide(&key, snapshot, t))?;
            Some((key, *gid))
        });
        let Some(gid) = gid else {
            let lowest = changeset.keys().map(|k| k.since).min();
            let forgotten = lowest.is_some_and(|since| since.min(snapshot) < self.low);
            assert!(
                conflict.is_some() || forgotten || self.is_tight || reserved,
                "the reference passes a changeset that failed"
            );
            return;
        };
        assert_eq!(conflict, None, "the reference fails GID {gid}");
        assert!(!reserved, "GID {gid} writes what is reserved");
        let keys = changeset.keys().filter(|k| k.flags & KEY_READ == 0);
        for key in keys {
            self.passed.entry(key.hash).or_default().push((gid, key));
        }
    }
}

/// Whether a key of a changeset with this snapshot GID and one that passed before can't both pass.
fn collide(mine: &Key, snapshot: Gid, (gid, theirs): &(Gid, Key)) -> bool {
    let is_lock = theirs.flags & KEY_LOCK_ONLY != 0;
    let minds_locks = mine.flags & (KEY_READ | KEY_WRITES_ONLY) == 0;
    let from_since = is_lock || mine.flags & (KEY_READ | KEY_FROM_SINCE) != 0;
    let window = if from_since {
        mine.since.min(snapshot)
    } else {
        snapshot
    };
    mine.mode.conflicts(theirs.mode) && (minds_locks || !is_lock) && *gid > window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Outgoing, encode};
    use postgres_r::changeset::LockMode::{self, KeyShare, NoKeyUpdate, Share, Update};
    use postgres_r::changeset::encode::Builder;
    use postgres_r::changeset::fragment::FragmentsOf;
    use postgres_r::ids::Incarnation;

    /// A changeset of this member with one key.
    fn of_key(origin: u16, key: Key) -> Vec<u8> {
        let outgoing = Outgoing {
            origin: MemberId(origin),
            incarnation: Incarnation(1),
            snapshot: Gid(0),
            flags: 0,
            isolation: 1,
            xid: 1,
            keys: &[key],
            of: FragmentsOf {
                worker: 0,
                ticket: 0,
            },
        };
        encode(0, Builder::new(Vec::new(), Vec::new()), &outgoing)
    }

    /// What is judged, in this order: the key of a changeset with snapshot GID and `since` 0, whether it
    /// passed.
    fn judge(verdicts: &[(LockMode, u8, bool)]) {
        let mut reference = Reference::new(100_000);
        let mut last = 0;
        for &(mode, flags, passed) in verdicts {
            let key = Key {
                hash: 1,
                since: Gid(0),
                relation: 1,
                mode,
                flags,
            };
            last += u64::from(passed);
            reference.judge(&of_key(1, key), passed.then_some(Gid(last)));
        }
    }

    #[test]
    fn right_verdicts_are_right() {
        judge(&[
            (KeyShare, KEY_LOCK_ONLY, true),
            (NoKeyUpdate, 0, true),
            (Share, KEY_READ, false),
            (KeyShare, KEY_READ, true),
            (Update, KEY_LOCK_ONLY, false),
        ]);
    }

    #[test]
    #[should_panic(expected = "the reference fails GID 2")]
    fn a_lost_update_is_seen() {
        judge(&[(NoKeyUpdate, 0, true), (NoKeyUpdate, 0, true)]);
    }

    #[test]
    #[should_panic(expected = "the reference fails GID 2")]
    fn a_forgotten_lock_is_seen() {
        judge(&[(KeyShare, KEY_LOCK_ONLY, true), (Update, 0, true)]);
    }

    #[test]
    #[should_panic(expected = "the reference passes")]
    fn a_conflict_that_is_none_is_seen() {
        judge(&[(KeyShare, KEY_LOCK_ONLY, true), (NoKeyUpdate, 0, false)]);
    }

    #[test]
    fn a_write_of_what_is_reserved_is_seen() {
        let mut reference = Reference::new(100_000);
        let judge = |reference: &mut Reference, passed: Option<Gid>| {
            let key = Key {
                hash: 1,
                since: Gid(0),
                relation: 5,
                mode: KeyShare,
                flags: KEY_RELATION,
            };
            reference.judge(&of_key(2, key), passed);
        };
        let mut relations = Relations::default();
        relations[0] = 5;
        reference.reserve(MemberId(1), relations, 7);
        judge(&mut reference, None);
        reference.release(MemberId(1), 8);
        judge(&mut reference, None);
        reference.release(MemberId(1), 7);
        judge(&mut reference, Some(Gid(1)));
        // It rests after two; there was one.
        reference.reserve(MemberId(1), relations, 11);
        judge(&mut reference, Some(Gid(2)));
        reference.reserve(MemberId(1), relations, 12);
        let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            judge(&mut reference, Some(Gid(3)));
        }));
        assert!(wrong.is_err(), "member 2 wrote what member 1 has reserved");
    }
}
