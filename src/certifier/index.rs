//! The index: the last GID per (key hash, slot).
//!
//! Open addressing with linear probing over cells of 16 bytes. The place of a cell follows from its
//! hash alone, so all slots of one key lie in one run of cells: a key costs one cache miss. Nothing
//! ever iterates over the table, so its order reaches no verdict and no checkpoint.

use crate::changeset::LockMode;
use crate::ids::Gid;
use std::hint::black_box;

/// What an entry is, besides its key: how strong, and whether something was written under it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(u8);

/// Slots a key can have.
const SLOTS: u8 = 8;
const LOCK_ONLY: u8 = 4;

impl Slot {
    pub(super) fn new(mode: LockMode, lock_only: bool) -> Self {
        Self(mode as u8 | if lock_only { LOCK_ONLY } else { 0 })
    }

    /// The slot behind a checkpoint's byte.
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        (byte < SLOTS).then_some(Self(byte))
    }

    pub(super) fn byte(self) -> u8 {
        self.0
    }

    pub(super) fn is_lock_only(self) -> bool {
        self.0 & LOCK_ONLY != 0
    }

    pub(super) fn conflicts(self, mode: LockMode) -> bool {
        CONFLICTS[mode as usize] & (1 << (self.0 & !LOCK_ONLY)) != 0
    }
}

/// Bit `m` of element `n`: whether the modes with the numbers `n` and `m` conflict.
const CONFLICTS: [u8; 4] = {
    let mut table = [0; 4];
    let mut n = 0;
    while n < 4 {
        let mut m = 0;
        while m < 4 {
            if LockMode::ALL[n].conflicts(LockMode::ALL[m]) {
                table[n] |= 1 << m;
            }
            m += 1;
        }
        n += 1;
    }
    table
};

/// Largest GID that the index can hold: three bits of a cell's word name the slot.
pub(super) const GID_MAX: Gid = Gid(u64::MAX >> 3);

#[derive(Clone, Copy, Debug)]
struct Cell {
    hash: u64,
    /// `gid << 3 | slot`; 0 in an empty cell, since no entry has GID 0.
    word: u64,
}

const EMPTY: Cell = Cell { hash: 0, word: 0 };
const CELLS_MIN: usize = 1 << 10;

impl Cell {
    fn new(hash: u64, slot: Slot, gid: Gid) -> Self {
        let word = gid.0 << 3 | u64::from(slot.0);
        Self { hash, word }
    }

    fn gid(self) -> Gid {
        Gid(self.word >> 3)
    }

    fn slot(self) -> Slot {
        Slot(self.word as u8 & (SLOTS - 1))
    }
}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Index {
    /// A power of two; at least three eighths are empty, so that every search ends, and soon.
    cells: Vec<Cell>,
    len: usize,
    /// 64 less the logarithm of the number of cells.
    shift: u32,
}

impl Index {
    /// Room for this many entries before it has to grow.
    pub(super) fn with_capacity(entries: usize) -> Self {
        let cells = (entries * 8 / 5 + 1).next_power_of_two().max(CELLS_MIN);
        Self {
            cells: vec![EMPTY; cells],
            len: 0,
            shift: 64 - cells.trailing_zeros(),
        }
    }

    /// Has the cells of these keys brought into the processor's caches, all at a time: each search would wait for
    /// its own. Nothing follows from it.
    #[inline]
    pub(super) fn touch(&self, hashes: impl Iterator<Item = u64>) {
        black_box(hashes.fold(0, |sum, hash| sum ^ self.cells[self.home(hash)].word));
    }

    /// Calls `visit` with every slot of a key and its last GID, in an order that means nothing.
    #[inline]
    pub(super) fn visit(&self, hash: u64, mut visit: impl FnMut(Slot, Gid)) {
        let mut at = self.home(hash);
        loop {
            let cell = self.cells[at];
            if cell.word == 0 {
                return;
            }
            if cell.hash == hash {
                visit(cell.slot(), cell.gid());
            }
            at = self.after(at);
        }
    }

    /// Enters a GID under a key and slot. False if just this GID stood there already.
    pub(super) fn set(&mut self, hash: u64, slot: Slot, gid: Gid) -> bool {
        assert!(gid > Gid::ZERO && gid <= GID_MAX, "GID {gid} in the index");
        if (self.len + 1) * 8 > self.cells.len() * 5 {
            self.grow();
        }
        let at = self.find(hash, slot);
        let cell = Cell::new(hash, slot, gid);
        let before = std::mem::replace(&mut self.cells[at], cell);
        self.len += usize::from(before.word == 0);
        before.word != cell.word
    }

    /// Removes a key's slot if this GID is the one that stands there; a later one stays.
    pub(super) fn remove(&mut self, hash: u64, slot: Slot, gid: Gid) {
        let at = self.find(hash, slot);
        if self.cells[at].word == Cell::new(hash, slot, gid).word {
            self.empty(at);
        }
    }

    /// The cell of a key's slot, or the empty one where it would go.
    fn find(&self, hash: u64, slot: Slot) -> usize {
        let mut at = self.home(hash);
        loop {
            let cell = self.cells[at];
            if cell.word == 0 || (cell.hash == hash && cell.slot() == slot) {
                return at;
            }
            at = self.after(at);
        }
    }

    /// Empties a cell and closes the gap: later cells of the run move up, none before its home.
    fn empty(&mut self, mut hole: usize) {
        let mask = self.cells.len() - 1;
        let mut at = hole;
        loop {
            at = self.after(at);
            let cell = self.cells[at];
            if cell.word == 0 {
                break;
            }
            let from_home = at.wrapping_sub(self.home(cell.hash)) & mask;
            if from_home >= at.wrapping_sub(hole) & mask {
                self.cells[hole] = cell;
                hole = at;
            }
        }
        self.cells[hole] = EMPTY;
        self.len -= 1;
    }

    fn grow(&mut self) {
        let mut larger = Self::with_capacity(self.cells.len());
        for cell in self.cells.iter().filter(|c| c.word != 0) {
            let at = larger.find(cell.hash, cell.slot());
            larger.cells[at] = *cell;
        }
        larger.len = self.len;
        *self = larger;
    }

    /// Multiplying spreads hashes that differ only in their low bits.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry() -> impl Strategy<Value = (u64, Slot)> {
        // Few hashes, all in neighbouring homes, so that runs meet, wrap round and share cells.
        let inverse = 0x9e37_79b9_7f4a_7c15u64;
        (0u64..40, 0..SLOTS).prop_map(move |(home, slot)| {
            let mut product = inverse;
            for _ in 0..5 {
                // Newton's iteration for the inverse modulo 2^64.
                product = product.wrapping_mul(2u64.wrapping_sub(inverse.wrapping_mul(product)));
            }
            let hash = (home.wrapping_sub(20) << 54).wrapping_mul(product);
            (hash, Slot(slot))
        })
    }

    proptest! {
        #[test]
        fn entry_lost_when_a_neighbour_goes(
            steps in prop::collection::vec((entry(), 1u64..50, any::<bool>()), 1..400),
        ) {
            let mut index = Index::with_capacity(0);
            let mut model: BTreeMap<(u64, u8), u64> = BTreeMap::new();
            for ((hash, slot), gid, set) in steps {
                let key = (hash, slot.0);
                if set {
                    let fresh = index.set(hash, slot, Gid(gid));
                    prop_assert_eq!(model.insert(key, gid) != Some(gid), fresh);
                } else {
                    index.remove(hash, slot, Gid(gid));
                    if model.get(&key) == Some(&gid) {
                        model.remove(&key);
                    }
                }
                prop_assert_eq!(index.len, model.len());
            }
            let mut found = BTreeMap::new();
            let hashes: std::collections::BTreeSet<u64> = model.keys().map(|k| k.0).collect();
            for hash in hashes {
                index.visit(hash, |slot, gid| {
                    assert_eq!(found.insert((hash, slot.0), gid.0), None);
                });
            }
            prop_assert_eq!(found, model);
        }
    }

    #[test]
    fn entry_lost_when_the_table_grows() {
        let mut index = Index::with_capacity(0);
        let slot = Slot::new(LockMode::Update, false);
        for hash in 0..10_000 {
            assert!(index.set(hash, slot, Gid(hash + 1)));
        }
        for hash in 0..10_000 {
            let mut found = Vec::new();
            index.visit(hash, |s, gid| found.push((s, gid)));
            assert_eq!(found, [(slot, Gid(hash + 1))]);
        }
    }

    #[test]
    fn conflict_table_differs_from_the_modes() {
        for a in LockMode::ALL {
            for b in LockMode::ALL {
                for lock_only in [false, true] {
                    assert_eq!(Slot::new(a, lock_only).conflicts(b), a.conflicts(b));
                    assert_eq!(Slot::new(a, lock_only).is_lock_only(), lock_only);
                }
            }
        }
    }
}
