//! Certification as its rules say it, slow and on its own: everything that ever passed is kept, and every
//! changeset is held against all of it.

use postgres_r::changeset::Key;
use postgres_r::changeset::decode::Changeset;
use postgres_r::changeset::key::{KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_READ, KEY_WRITES_ONLY};
use postgres_r::ids::Gid;
use std::collections::HashMap;

#[derive(Default)]
pub struct Reference {
    /// By hash: who passed with such a key.
    passed: HashMap<u64, Vec<(Gid, Key)>>,
    /// The highest report of any member: no floor that follows from reports lies above it.
    low: Gid,
    /// The index is so small that the floor also rises by itself.
    is_tight: bool,
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

    /// Holds a verdict against the rules: `gid` is that of the changeset if it passed.
    pub fn judge(&mut self, changeset: &[u8], gid: Option<Gid>) {
        let changeset = Changeset::parse(changeset).expect("a changeset");
        let snapshot = changeset.header().snapshot_gid;
        let conflict = changeset.keys().find_map(|key| {
            let theirs = self.passed.get(&key.hash)?;
            let (gid, _) = theirs.iter().find(|t| collide(&key, snapshot, t))?;
            Some((key, *gid))
        });
        let Some(gid) = gid else {
            let lowest = changeset.keys().map(|k| k.since).min();
            let forgotten = lowest.is_some_and(|since| since.min(snapshot) < self.low);
            assert!(
                conflict.is_some() || forgotten || self.is_tight,
                "the reference passes a changeset that failed"
            );
            return;
        };
        assert_eq!(conflict, None, "the reference fails GID {gid}");
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
    use postgres_r::ids::{Incarnation, MemberId};

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
            let changeset = encode(
                0,
                &Outgoing {
                    origin: MemberId(1),
                    incarnation: Incarnation(1),
                    snapshot: Gid(0),
                    flags: 0,
                    xid: 1,
                    keys: &[key],
                    changes: &[],
                },
            );
            reference.judge(&changeset, passed.then_some(Gid(last)));
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
}
