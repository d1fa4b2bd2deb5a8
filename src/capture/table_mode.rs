//! From the mode of a lock of a table to the keys that stand for it.
//!
//! Writers emit one key, that of the relation, weak, so that a change of a row costs no more for it:
//! those who also name the entries that come to its indexes, the weakest.
//! A lock that keeps writers out has that key too, strong, checked against writers only. What locks do
//! to each other is said under a key of their own: row lockers weakly, SHARE as a mode that goes
//! together with itself, the others as modes that don't.

use super::hash::{KeyHash, What};
use super::range::ENTRY;
use crate::changeset::LockMode::{KeyShare, NoKeyUpdate, Share, Update};
use crate::changeset::encode::Coarse;
use crate::changeset::key::{KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_RELATION, KEY_WRITES_ONLY};
use crate::changeset::{Key, LockMode};

/// PostgreSQL's number of the mode (storage/lockdefs.h).
pub const ACCESS_SHARE: i32 = 1;
/// See [`ACCESS_SHARE`].
pub const ROW_SHARE: i32 = 2;
/// See [`ACCESS_SHARE`].
pub const ROW_EXCLUSIVE: i32 = 3;
/// See [`ACCESS_SHARE`].
pub const SHARE_UPDATE_EXCLUSIVE: i32 = 4;
/// See [`ACCESS_SHARE`].
pub const SHARE: i32 = 5;
/// See [`ACCESS_SHARE`].
pub const SHARE_ROW_EXCLUSIVE: i32 = 6;
/// See [`ACCESS_SHARE`].
pub const EXCLUSIVE: i32 = 7;
/// See [`ACCESS_SHARE`].
pub const ACCESS_EXCLUSIVE: i32 = 8;

/// Which of the relation's keys, how strongly, with which flags.
pub type TableKey = (What, LockMode, u8);

/// Of who writes rows.
pub const WRITER: TableKey = (What::Relation, KeyShare, KEY_RELATION);
/// Of who writes rows with which entries come to indexes that are not named.
pub const COMER: TableKey = (What::Relation, ENTRY, KEY_RELATION);
/// ... that are named, but not by their ranges.
pub const UNRANGED: TableKey = (What::Unranged, ENTRY, KEY_RELATION);
/// Of who locks rows.
pub const ROW_LOCKER: TableKey = (What::Locks, KeyShare, LOCK);

const LOCK: u8 = KEY_RELATION | KEY_LOCK_ONLY;
/// Apply meets the lock only where the lock is on the relation whose row it is: with ONLY on a
/// partitioned table it is not, so the moment of the lock counts.
const NO_WRITER: TableKey = (
    What::Relation,
    Update,
    LOCK | KEY_WRITES_ONLY | KEY_FROM_SINCE,
);

/// The keys of a lock. ACCESS SHARE has none: a reader has its snapshot, wherever it is.
#[must_use]
pub const fn keys(mode: i32) -> &'static [TableKey] {
    match mode {
        ROW_SHARE => &[ROW_LOCKER],
        ROW_EXCLUSIVE => &[WRITER],
        SHARE_UPDATE_EXCLUSIVE => &[(What::Locks, NoKeyUpdate, LOCK)],
        SHARE => &[(What::Locks, Share, LOCK), NO_WRITER],
        SHARE_ROW_EXCLUSIVE => &[(What::Locks, NoKeyUpdate, LOCK), NO_WRITER],
        EXCLUSIVE | ACCESS_EXCLUSIVE => &[(What::Locks, Update, LOCK), NO_WRITER],
        _ => &[],
    }
}

/// The keys that stand for all keys of rows and index entries of a relation. Others that write it, lock
/// or read rows of it each have one of the relation's keys, so nothing that conflicts is missed; the
/// windows are those of the keys that these stand for, the lowest `since` among them.
#[must_use]
pub fn coarse(relation: u32, what: &Coarse) -> Vec<Key> {
    let key = |what, since, flags| Key {
        hash: KeyHash::new(relation, what).finish(),
        since,
        relation,
        mode: Update,
        flags: KEY_RELATION | flags,
    };
    let mut keys = Vec::new();
    for (since, flags) in [
        (what.written, 0),
        (what.locked, KEY_LOCK_ONLY),
        (what.from_since, KEY_FROM_SINCE),
    ] {
        if let Some(since) = since {
            keys.push(key(What::Relation, since, flags));
            keys.push(key(What::Locks, since, flags));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certifier::{Certifier, Config, Verdict};
    use crate::changeset::key::KEY_READ;
    use crate::ids::{Gid, MemberId};

    /// LockConflicts of storage/lmgr/lock.c, without ACCESS SHARE.
    const CONFLICTS: [(i32, &[i32]); 7] = [
        (ROW_SHARE, &[7, 8]),
        (ROW_EXCLUSIVE, &[5, 6, 7, 8]),
        (SHARE_UPDATE_EXCLUSIVE, &[4, 5, 6, 7, 8]),
        (SHARE, &[3, 4, 6, 7, 8]),
        (SHARE_ROW_EXCLUSIVE, &[3, 4, 5, 6, 7, 8]),
        (EXCLUSIVE, &[2, 3, 4, 5, 6, 7, 8]),
        (ACCESS_EXCLUSIVE, &[2, 3, 4, 5, 6, 7, 8]),
    ];

    #[test]
    fn who_names_no_entries_is_a_writer_to_locks() {
        for (mode, _) in CONFLICTS {
            for (first, second) in [(WRITER, COMER), (COMER, WRITER), (COMER, COMER)] {
                assert!(!first.1.conflicts(second.1));
            }
            let strong = keys(mode).iter().filter(|k| k.0 == What::Relation);
            for lock in strong {
                assert_eq!(lock.1.conflicts(COMER.1), lock.1.conflicts(WRITER.1));
            }
        }
    }

    fn writeset(mode: i32, since: u64) -> impl Iterator<Item = Key> {
        keys(mode).iter().map(move |&(what, mode, flags)| Key {
            hash: KeyHash::new(16384, what).finish(),
            since: Gid(since),
            relation: 16384,
            mode,
            flags,
        })
    }

    /// Certifies a lock of one member, and then of another that was taken at `since`.
    fn second(first: i32, mode: i32, since: u64) -> Verdict {
        let mut certifier = Certifier::new(Config { keys_max: 100 });
        let verdict = certifier.certify(MemberId(1), Gid(0), writeset(first, 0));
        assert!(matches!(verdict, Verdict::Pass { .. }));
        certifier.certify(MemberId(2), Gid(since), writeset(mode, since))
    }

    #[test]
    fn locks_exclude_each_other_across_members_as_they_do_on_one() {
        for (mode, conflicting) in CONFLICTS {
            for (first, _) in CONFLICTS {
                let excluded = matches!(second(first, mode, 0), Verdict::Conflict { .. });
                assert_eq!(
                    excluded,
                    conflicting.contains(&first),
                    "{mode} after {first}"
                );
            }
        }
    }

    #[test]
    fn a_lock_taken_after_the_other_was_given_back_is_no_conflict() {
        for (mode, _) in CONFLICTS {
            for (first, _) in CONFLICTS {
                assert!(matches!(second(first, mode, 1), Verdict::Pass { .. }));
            }
        }
    }

    /// What others of the relation have beside the keys of rows: a writer, a locker of rows, and a
    /// SERIALIZABLE reader of single rows.
    fn others(since: u64) -> [Vec<Key>; 3] {
        let read = Key {
            hash: KeyHash::new(16384, What::Relation).finish(),
            since: Gid(since),
            relation: 16384,
            mode: KeyShare,
            flags: KEY_RELATION | KEY_READ,
        };
        [
            writeset(ROW_EXCLUSIVE, since).collect(),
            writeset(ROW_SHARE, since).collect(),
            vec![read],
        ]
    }

    /// Whether the second of two fails that ran at the same time on different members.
    fn excluded(first: &[Key], second: &[Key]) -> bool {
        let mut certifier = Certifier::new(Config { keys_max: 100 });
        let verdict = certifier.certify(MemberId(1), Gid(0), first.iter().copied());
        assert!(matches!(verdict, Verdict::Pass { .. }));
        let verdict = certifier.certify(MemberId(2), Gid(0), second.iter().copied());
        matches!(verdict, Verdict::Conflict { .. })
    }

    #[test]
    fn keys_that_stand_for_rows_meet_all_who_use_rows() {
        let written = Coarse {
            written: Some(Gid(0)),
            ..Coarse::default()
        };
        let locked = Coarse {
            locked: Some(Gid(0)),
            ..Coarse::default()
        };
        let (written, locked) = (coarse(16384, &written), coarse(16384, &locked));
        let [writer, locker, reader] = others(0);
        for other in [&writer, &locker] {
            assert!(excluded(&written, other) && excluded(other, &written));
            assert!(excluded(&locked, other) && excluded(other, &locked));
        }
        assert!(excluded(&written, &reader));
        assert!(!excluded(&locked, &reader) && !excluded(&reader, &written));
        assert!(excluded(&written, &locked) && excluded(&locked, &written));
    }
}
