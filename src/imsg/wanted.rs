//! What of the index entries that come to a relation its writers had better name.
//!
//! SERIALIZABLE transactions of any member search by parts of an index (`capture::read`). A writer
//! that does not name the entries that it makes is in the way of all of them, one that does pays for
//! it with keys. So each member remembers, by what it reads and by the changesets in the order, what
//! such searches are about, for a time. Only a hint: a writer says what it has named, and relations
//! that share a place forget each other.

use super::sync::{AtomicU64, Ordering};
use crate::ids::Gid;

/// Places.
const PLACES: usize = 256;
/// GIDs for which a search is remembered: so many times 1024.
const MEMORY: u32 = 1024;

/// How exactly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Detail {
    /// That there are some.
    #[default]
    Some,
    /// By the values of their leading columns.
    Prefixes,
    /// ... and the ranges that these lie in.
    Ranges,
}

/// See the head of the file. Written and read by anybody, relaxed.
#[derive(Debug)]
#[repr(C)]
pub struct Wanted {
    prefixes: [AtomicU64; PLACES],
    ranges: [AtomicU64; PLACES],
}

impl Wanted {
    pub(super) fn new() -> Wanted {
        Wanted {
            prefixes: std::array::from_fn(|_| AtomicU64::new(0)),
            ranges: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// A relation was searched so; `now` is a GID of about this time.
    pub fn want(&self, relation: u32, detail: Detail, now: Gid) {
        let word = u64::from(relation) << 32 | u64::from(epoch(now));
        for (least, places) in [
            (Detail::Prefixes, &self.prefixes),
            (Detail::Ranges, &self.ranges),
        ] {
            let place = &places[place(relation)];
            // Most searches are of what is known to be searched.
            if detail >= least && place.load(Ordering::Relaxed) != word {
                place.store(word, Ordering::Relaxed);
            }
        }
    }

    /// What a writer of the relation had better name.
    pub fn detail(&self, relation: u32, now: Gid) -> Detail {
        let is_in = |places: &[AtomicU64; PLACES]| {
            let word = places[place(relation)].load(Ordering::Relaxed);
            word >> 32 == u64::from(relation) && epoch(now).wrapping_sub(word as u32) <= MEMORY
        };
        if is_in(&self.ranges) {
            Detail::Ranges
        } else if is_in(&self.prefixes) {
            Detail::Prefixes
        } else {
            Detail::Some
        }
    }
}

fn place(relation: u32) -> usize {
    relation.wrapping_mul(0x9E37_79B1) as usize >> 8 & (PLACES - 1)
}

fn epoch(gid: Gid) -> u32 {
    (gid.0 >> 10) as u32
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_searched_is_wanted_for_a_time() {
        let wanted = Wanted::new();
        let now = Gid(5 << 40);
        assert_eq!(wanted.detail(16384, now), Detail::Some);
        wanted.want(16384, Detail::Prefixes, now);
        assert_eq!(wanted.detail(16384, now), Detail::Prefixes);
        wanted.want(16384, Detail::Ranges, now);
        wanted.want(16384, Detail::Prefixes, Gid(now.0 + (1000 << 10)));
        assert_eq!(
            wanted.detail(16384, Gid(now.0 + (1024 << 10))),
            Detail::Ranges
        );
        assert_eq!(
            wanted.detail(16384, Gid(now.0 + (1025 << 10))),
            Detail::Prefixes
        );
        assert_eq!(
            wanted.detail(16384, Gid(now.0 + (2025 << 10))),
            Detail::Some
        );
        assert_eq!(wanted.detail(16385, now), Detail::Some);
    }

    #[test]
    fn relations_of_one_place_are_told_apart() {
        let wanted = Wanted::new();
        let (a, b) = (
            16384,
            (16385..).find(|r| place(*r) == place(16384)).expect("one"),
        );
        wanted.want(a, Detail::Ranges, Gid(1));
        assert_eq!(wanted.detail(b, Gid(1)), Detail::Some);
        wanted.want(b, Detail::Ranges, Gid(1));
        assert_eq!(wanted.detail(a, Gid(1)), Detail::Some);
    }
}
