//! One copy of the data: committed rows, row locks, and a WAL that is flushed behind the commits.

use crate::model::{Change, Row, initial, row_hash};
use crate::rng::{Rng, mix};
use postgres_r::changeset::LockMode;
use postgres_r::ids::Gid;
use postgres_r::imsg::wanted::Detail;
use std::collections::BTreeMap;

/// Who holds a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    Session(u32),
    Helper(u32),
}

pub struct Database {
    rows: BTreeMap<Row, u64>,
    hash: u64,
    /// Visible up to here.
    pub committed: Gid,
    /// Safe in the WAL up to here.
    pub flushed: Gid,
    /// Rows as of `base_gid`, and what the WAL has after it.
    base: BTreeMap<Row, u64>,
    base_gid: Gid,
    wal: Vec<(Gid, Vec<Change>)>,
    /// The GID that made a row what it is, since the start.
    since: BTreeMap<Row, Gid>,
    locks: BTreeMap<u64, Vec<(Owner, LockMode)>>,
    /// What writers of this member name of children that come.
    pub wanted: Detail,
}

impl Database {
    /// What a group begins with.
    pub fn birth() -> Database {
        Database::at(initial().into_iter().collect(), Gid::ZERO)
    }

    fn at(rows: BTreeMap<Row, u64>, gid: Gid) -> Database {
        Database {
            hash: rows.iter().fold(0, |h, (r, v)| h ^ row_value_hash(*r, *v)),
            base: rows.clone(),
            rows,
            committed: gid,
            flushed: gid,
            base_gid: gid,
            wal: Vec::new(),
            since: BTreeMap::new(),
            locks: BTreeMap::new(),
            wanted: Detail::Some,
        }
    }

    /// A base backup, complete with its WAL.
    pub fn copy(&self) -> Database {
        Database::at(self.rows.clone(), self.committed)
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn get(&self, row: Row) -> Option<u64> {
        self.rows.get(&row).copied()
    }

    pub fn rows(&self) -> impl Iterator<Item = (Row, u64)> + '_ {
        self.rows.iter().map(|(r, v)| (*r, *v))
    }

    /// The GID of the last change of a row, if there was one since the start.
    pub fn since(&self, row: Row) -> Option<Gid> {
        self.since.get(&row).copied()
    }

    /// The next GIDs, from `first` to `last`, become visible at once, with one record in the WAL.
    pub fn commit(&mut self, first: Gid, last: Gid, changes: &[Change]) {
        assert_eq!(first, self.committed.next(), "commits come in GID order");
        self.replay(last, changes);
        self.committed = last;
        self.wal.push((last, changes.to_vec()));
    }

    fn replay(&mut self, gid: Gid, changes: &[Change]) {
        for change in changes {
            self.since.insert(change.row(), gid);
            match *change {
                Change::Put(row, value) => {
                    if let Some(old) = self.rows.insert(row, value) {
                        self.hash ^= row_value_hash(row, old);
                    }
                    self.hash ^= row_value_hash(row, value);
                }
                Change::Delete(row, _) => {
                    if let Some(old) = self.rows.remove(&row) {
                        self.hash ^= row_value_hash(row, old);
                    }
                }
            }
        }
    }

    pub fn flush(&mut self) {
        self.flushed = self.committed;
    }

    /// The server dies: the WAL ends somewhere after what was flushed.
    pub fn crash(&mut self, rng: &mut Rng) {
        let mut wal = std::mem::take(&mut self.wal);
        let flushed = wal.partition_point(|(gid, _)| *gid <= self.flushed);
        wal.truncate(rng.between(flushed as u64, wal.len() as u64) as usize);
        *self = Database::at(std::mem::take(&mut self.base), self.base_gid);
        for (gid, changes) in wal {
            self.commit(self.committed.next(), gid, &changes);
        }
        // Redo ends with a checkpoint.
        self.flush();
    }

    /// Everyone else whose lock is in the way of this one.
    pub fn in_the_way(&self, me: Owner, lock: u64, mode: LockMode) -> Vec<Owner> {
        let Some(holders) = self.locks.get(&lock) else {
            return Vec::new();
        };
        let others = holders
            .iter()
            .filter(|(o, m)| *o != me && m.conflicts(mode));
        others.map(|(o, _)| *o).collect()
    }

    pub fn lock(&mut self, me: Owner, lock: u64, mode: LockMode) {
        let holders = self.locks.entry(lock).or_default();
        if !holders.contains(&(me, mode)) {
            holders.push((me, mode));
        }
    }

    /// A subtransaction's lock goes.
    pub fn unlock_one(&mut self, me: Owner, lock: u64, mode: LockMode) {
        if let Some(holders) = self.locks.get_mut(&lock) {
            holders.retain(|h| *h != (me, mode));
        }
    }

    pub fn unlock(&mut self, me: Owner) {
        self.locks.retain(|_, holders| {
            holders.retain(|(owner, _)| *owner != me);
            !holders.is_empty()
        });
    }
}

/// The hash of a state is the XOR of these over its rows.
pub fn row_value_hash(row: Row, value: u64) -> u64 {
    mix(&[row_hash(row), value])
}
