//! Values of sequences that the group has handed out to this member and that nobody has taken yet.
//!
//! All of it is read and written under one lock of the server's (`pg/sequence.rs`), so relaxed. It is
//! lost with the server's memory: what it held then is a gap.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::ids::Gid;
use crate::sequence::range::Range;

const BUCKETS: usize = 64;
/// Ranges that a bucket holds, of all its sequences. Beyond it the one that was not used for longest
/// goes.
const CELLS: usize = 16;

/// Tickets of waits for values; no transaction has a number this high, and no other wait this low.
const TICKETS: u64 = 1 << 62;

#[repr(C)]
#[derive(Debug)]
struct Cell {
    /// The sequence, 0 for none.
    sequence: AtomicU32,
    /// At which GID it was handed out.
    gid: AtomicU64,
    first: AtomicU64,
    step: AtomicU64,
    /// Values left, not 0.
    count: AtomicU64,
    /// When a value was taken last, or the range came.
    used: AtomicU64,
}

impl Cell {
    fn range(&self) -> Range {
        Range {
            first: load(&self.first).cast_signed(),
            step: load(&self.step).cast_signed(),
            count: load(&self.count),
        }
    }
}

#[repr(C)]
#[derive(Debug)]
struct Bucket {
    /// What was handed out below this GID counts no more, for one of its sequences was set there.
    floor: AtomicU64,
    cells: [Cell; CELLS],
}

/// The table.
#[repr(C)]
#[derive(Debug)]
pub struct Ranges {
    tickets: AtomicU64,
    clock: AtomicU64,
    buckets: [Bucket; BUCKETS],
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
}

impl Default for Ranges {
    fn default() -> Self {
        Self::new()
    }
}

impl Ranges {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        let cell = |_| Cell {
            sequence: AtomicU32::new(0),
            gid: AtomicU64::new(0),
            first: AtomicU64::new(0),
            step: AtomicU64::new(0),
            count: AtomicU64::new(0),
            used: AtomicU64::new(0),
        };
        Self {
            tickets: AtomicU64::new(TICKETS),
            clock: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| Bucket {
                floor: AtomicU64::new(0),
                cells: std::array::from_fn(cell),
            }),
        }
    }

    /// A group begins, with GID 1.
    pub fn clear(&self) {
        for bucket in &self.buckets {
            store(&bucket.floor, 0);
            for cell in &bucket.cells {
                cell.sequence.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Names a wait, unlike any other since the server began.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The next value of a sequence: of what is here the earliest.
    #[must_use]
    pub fn next(&self, sequence: u32) -> Option<i64> {
        let cell = self
            .of(sequence)
            .filter(|c| c.sequence.load(Ordering::Relaxed) == sequence)
            .min_by_key(|c| load(&c.gid))?;
        let range = cell.range();
        match range.rest() {
            Some(rest) => self.fill(cell, rest),
            None => cell.sequence.store(0, Ordering::Relaxed),
        }
        Some(range.first)
    }

    /// Keeps values that were handed out at a GID. Of a sequence that was set since they are
    /// forgotten.
    pub fn keep(&self, sequence: u32, gid: Gid, range: Range) {
        if gid.0 < load(&self.bucket(sequence).floor) {
            return;
        }
        self.put(sequence, gid, range);
    }

    /// Several sessions that asked at once have got ranges in a row: these become one.
    fn put(&self, sequence: u32, gid: Gid, range: Range) {
        let neighbour = self
            .of(sequence)
            .filter(|c| c.sequence.load(Ordering::Relaxed) == sequence)
            .find_map(|c| Some((c, c.range().join(range)?)));
        if let Some((cell, whole)) = neighbour {
            cell.sequence.store(0, Ordering::Relaxed);
            return self.put(sequence, gid.min(Gid(load(&cell.gid))), whole);
        }
        let free_first = |c: &&Cell| (c.sequence.load(Ordering::Relaxed) != 0, load(&c.used));
        let Some(cell) = self.of(sequence).min_by_key(free_first) else {
            return;
        };
        cell.sequence.store(sequence, Ordering::Relaxed);
        store(&cell.gid, gid.0);
        self.fill(cell, range);
    }

    /// A sequence is set at this GID: values that were handed out before count no more.
    pub fn forget(&self, sequence: u32, gid: Gid) {
        let floor = &self.bucket(sequence).floor;
        store(floor, load(floor).max(gid.0));
        for cell in self.of(sequence) {
            if cell.sequence.load(Ordering::Relaxed) == sequence && load(&cell.gid) < gid.0 {
                cell.sequence.store(0, Ordering::Relaxed);
            }
        }
    }

    fn fill(&self, cell: &Cell, range: Range) {
        store(&cell.first, range.first.cast_unsigned());
        store(&cell.step, range.step.cast_unsigned());
        store(&cell.count, range.count);
        store(&cell.used, self.clock.fetch_add(1, Ordering::Relaxed) + 1);
    }

    fn bucket(&self, sequence: u32) -> &Bucket {
        // A serial column's OIDs are some steps apart.
        &self.buckets[(sequence.wrapping_mul(0x9e37_79b9) >> 26) as usize]
    }

    fn of(&self, sequence: u32) -> impl Iterator<Item = &Cell> {
        self.bucket(sequence).cells.iter()
    }
}

const _: () = assert!(BUCKETS == 1 << (32 - 26));

/// What a session gets that waits for values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// These, handed out at this GID.
    Values(Gid, Range),
    /// The sequence has come to its end.
    Ended,
}

/// Where the answer to a session is put, in its slot. Under the same lock.
#[repr(C)]
#[derive(Debug)]
pub struct Grant {
    /// Names the session's wait, 0 while it waits for none.
    ticket: AtomicU64,
    /// 0 for no answer yet, then whether there are values.
    answered: AtomicU32,
    gid: AtomicU64,
    first: AtomicU64,
    step: AtomicU64,
    count: AtomicU64,
}

const VALUES: u32 = 1;
const ENDED: u32 = 2;

impl Default for Grant {
    fn default() -> Self {
        Self::new()
    }
}

impl Grant {
    /// Nobody waits.
    #[must_use]
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            ticket: zero(),
            answered: AtomicU32::new(0),
            gid: zero(),
            first: zero(),
            step: zero(),
            count: zero(),
        }
    }

    /// The session waits.
    pub fn wait(&self, ticket: u64) {
        self.answered.store(0, Ordering::Relaxed);
        store(&self.ticket, ticket);
    }

    /// Gives the session its answer; false if it does not wait for that (any more).
    #[must_use]
    pub fn give(&self, ticket: u64, answer: Answer) -> bool {
        if load(&self.ticket) != ticket || self.is_answered() {
            return false;
        }
        let answered = match answer {
            Answer::Values(gid, range) => {
                store(&self.gid, gid.0);
                store(&self.first, range.first.cast_unsigned());
                store(&self.step, range.step.cast_unsigned());
                store(&self.count, range.count);
                VALUES
            }
            Answer::Ended => ENDED,
        };
        self.answered.store(answered, Ordering::Relaxed);
        true
    }

    /// Whether there is an answer. The one look that needs no lock: who sees it takes it under it.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed) != 0
    }

    /// The session waits no more; the answer, if there is one.
    #[must_use]
    pub fn end(&self) -> Option<Answer> {
        store(&self.ticket, 0);
        match self.answered.swap(0, Ordering::Relaxed) {
            VALUES => {
                let range = Range {
                    first: load(&self.first).cast_signed(),
                    step: load(&self.step).cast_signed(),
                    count: load(&self.count),
                };
                Some(Answer::Values(Gid(load(&self.gid)), range))
            }
            ENDED => Some(Answer::Ended),
            _ => None,
        }
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;

    fn range(first: i64, count: u64) -> Range {
        Range {
            first,
            step: 1,
            count,
        }
    }

    fn all(ranges: &Ranges, sequence: u32) -> Vec<i64> {
        std::iter::from_fn(|| ranges.next(sequence)).collect()
    }

    #[test]
    fn each_value_is_handed_out_once_and_the_earliest_first() {
        let ranges = Ranges::new();
        ranges.keep(7, Gid(9), range(30, 2));
        ranges.keep(7, Gid(5), range(10, 3));
        ranges.keep(8, Gid(6), range(1, 1));
        assert_eq!(all(&ranges, 7), [10, 11, 12, 30, 31]);
        assert_eq!((all(&ranges, 8), ranges.next(7)), (vec![1], None));
    }

    #[test]
    fn what_was_handed_out_before_a_sequence_was_set_is_forgotten_whenever_it_comes() {
        let ranges = Ranges::new();
        ranges.keep(7, Gid(5), range(10, 3));
        ranges.keep(7, Gid(9), range(50, 2));
        ranges.forget(7, Gid(8));
        ranges.keep(7, Gid(6), range(13, 3));
        assert_eq!(all(&ranges, 7), [50, 51]);
        ranges.keep(7, Gid(8), range(1, 1));
        assert_eq!(all(&ranges, 7), [1]);
    }

    #[test]
    fn ranges_in_a_row_are_one_in_whatever_order_they_come() {
        let ranges = Ranges::new();
        let row = |n: i64| range(10 * n, 10);
        for n in [3, 1, 2, 5, 4] {
            ranges.keep(7, Gid(10 + n as u64), row(n));
        }
        let cells = |s| {
            let of = ranges.of(s);
            of.filter(|c| c.sequence.load(Ordering::Relaxed) == s)
                .count()
        };
        assert_eq!(cells(7), 1);
        assert!(all(&ranges, 7).into_iter().eq(10..60));
        // What was handed out last is forgotten with what it joined.
        ranges.keep(7, Gid(21), row(1));
        ranges.keep(7, Gid(23), row(2));
        ranges.forget(7, Gid(22));
        assert_eq!(ranges.next(7), None);
    }

    #[test]
    fn a_new_group_finds_nothing_of_the_one_before() {
        let ranges = Ranges::new();
        ranges.keep(7, Gid(5), range(10, 3));
        ranges.forget(7, Gid(100));
        ranges.keep(7, Gid(101), range(10, 3));
        ranges.clear();
        assert_eq!(ranges.next(7), None);
        ranges.keep(7, Gid(1), range(3, 1));
        assert_eq!(ranges.next(7), Some(3));
    }

    #[test]
    fn of_too_many_the_one_that_was_not_used_for_longest_goes() {
        let ranges = Ranges::new();
        // Sequences of one bucket.
        let bucket = |s: u32| std::ptr::from_ref(ranges.bucket(s));
        let mates: Vec<u32> = (1..u32::MAX)
            .filter(|s| bucket(*s) == bucket(1))
            .take(CELLS + 1)
            .collect();
        let mut gids = (1..).map(Gid);
        let mut keep = |s| ranges.keep(s, gids.next().expect("endless"), range(10, 5));
        mates[..CELLS].iter().for_each(|s| keep(*s));
        assert_eq!(ranges.next(mates[0]), Some(10));
        keep(mates[CELLS]);
        assert_eq!(ranges.next(mates[1]), None);
        assert_eq!(ranges.next(mates[0]), Some(11));
        assert_eq!(ranges.next(mates[CELLS]), Some(10));
        assert_eq!(all(&ranges, mates[2]), [10, 11, 12, 13, 14]);
    }

    #[test]
    fn only_who_waits_gets_an_answer_and_once() {
        let (ranges, grant) = (Ranges::new(), Grant::new());
        let (first, second) = (ranges.ticket(), ranges.ticket());
        assert_ne!(first, second);
        let values = |n| Answer::Values(Gid(3), range(n, 2));
        assert!(!grant.give(first, values(1)));
        grant.wait(first);
        assert!(!grant.give(second, values(2)) && !grant.is_answered());
        assert!(grant.give(first, values(1)) && grant.is_answered());
        assert!(!grant.give(first, values(3)));
        assert_eq!(grant.end(), Some(values(1)));
        assert_eq!(grant.end(), None);
        assert!(!grant.give(first, values(4)));
        grant.wait(second);
        assert!(grant.give(second, Answer::Ended));
        assert_eq!(grant.end(), Some(Answer::Ended));
    }
}
