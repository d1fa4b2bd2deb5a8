//! How often transactions of this server lost against others of the group, by kind and relation.

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Relations that are told apart.
pub const RELATIONS: usize = 256;
/// Number of kinds.
pub const KINDS: usize = 5;

/// What became of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Aborted before it was multicast, for an ordered one needed what it had locked.
    Victim = 0,
    /// Failed in certification.
    Certification = 1,
    /// Failed in certification because the group did not remember all that it had to be held against.
    BelowFloor = 2,
    /// Certified, rolled back here, and applied by a helper.
    Replay = 3,
    /// Lost as one of the first two, and run again instead of telling its client.
    Retry = 4,
}

#[derive(Debug)]
#[repr(C)]
struct Row {
    /// Set once, by whoever counts for it first.
    relation: AtomicU32,
    counts: [AtomicU64; KINDS],
}

impl Row {
    fn new() -> Row {
        Row {
            relation: AtomicU32::new(0),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// The counters. Added to by anybody, relaxed; a relation keeps its row until the server restarts.
#[derive(Debug)]
#[repr(C)]
pub struct Conflicts {
    /// When they began, microseconds since 2000-01-01 UTC. Written by the postmaster, before any fork.
    pub began: AtomicU64,
    /// The first is for conflicts without a relation, and for relations that found no room.
    rows: [Row; 1 + RELATIONS],
}

impl Conflicts {
    pub(super) fn new() -> Conflicts {
        Conflicts {
            began: AtomicU64::new(0),
            rows: std::array::from_fn(|_| Row::new()),
        }
    }

    /// Counts one on a relation, 0 if none is known.
    pub fn count(&self, relation: u32, kind: Kind) {
        self.row(relation).counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn row(&self, relation: u32) -> &Row {
        let (rest, rows) = (&self.rows[0], &self.rows[1..]);
        if relation == 0 {
            return rest;
        }
        let start = relation.wrapping_mul(0x9E37_79B1) as usize >> 8;
        (0..RELATIONS)
            .map(|i| &rows[(start + i) % RELATIONS])
            .find(|row| {
                let claimed = row.relation.compare_exchange(
                    0,
                    relation,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                claimed.is_ok() || claimed == Err(relation)
            })
            .unwrap_or(rest)
    }

    /// Those of a kind, on all relations.
    pub fn total(&self, kind: Kind) -> u64 {
        let of = |row: &Row| row.counts[kind as usize].load(Ordering::Relaxed);
        self.rows.iter().map(of).sum()
    }

    /// Relations with conflicts and their counts by [`Kind`]; relation 0 stands for all others.
    pub fn rows(&self) -> impl Iterator<Item = (u32, [u64; KINDS])> {
        let rows = self.rows.iter().map(|row| {
            let counts = std::array::from_fn(|i| row.counts[i].load(Ordering::Relaxed));
            (row.relation.load(Ordering::Relaxed), counts)
        });
        rows.filter(|(_, counts)| *counts != [0; KINDS])
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn each_kind_is_counted_on_its_relation() {
        let conflicts = Conflicts::new();
        conflicts.count(16384, Kind::Victim);
        conflicts.count(16384, Kind::Retry);
        conflicts.count(16384, Kind::Retry);
        conflicts.count(0, Kind::BelowFloor);
        conflicts.count(16390, Kind::Replay);
        conflicts.count(16390, Kind::Certification);
        let rows: BTreeMap<_, _> = conflicts.rows().collect();
        assert_eq!(
            rows.into_iter().collect::<Vec<_>>(),
            [
                (0, [0, 0, 1, 0, 0]),
                (16384, [1, 0, 0, 0, 2]),
                (16390, [0, 1, 0, 1, 0])
            ]
        );
        conflicts.count(16390, Kind::Victim);
        assert_eq!(conflicts.total(Kind::Victim), 2);
        assert_eq!(conflicts.total(Kind::Retry), 2);
    }

    #[test]
    fn what_finds_no_room_is_counted_together() {
        let conflicts = Conflicts::new();
        let relations = RELATIONS as u32 + 7;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for relation in 1..=relations {
                        conflicts.count(relation, Kind::Victim);
                    }
                });
            }
        });
        let rows: BTreeMap<_, _> = conflicts.rows().collect();
        assert_eq!(rows.len(), 1 + RELATIONS);
        assert_eq!(rows[&0][0], 7 * 4);
        assert_eq!(conflicts.total(Kind::Victim), u64::from(relations) * 4);
        assert!(rows.iter().all(|(r, c)| *r == 0 || c[0] == 4), "{rows:?}");
    }
}
