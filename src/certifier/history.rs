//! What passed and is retained: per GID its origin and the entries that it made, oldest first.
//!
//! The index follows from the history (the last GID per entry), which is why a checkpoint holds the
//! history alone.

use super::index::Slot;
use crate::ids::{Gid, MemberId};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
struct Commit {
    /// Entries ever pushed, up to the last one of this GID.
    end: u64,
    origin: MemberId,
}

/// See the head of the file. Columns rather than rows: 9 bytes an entry, 16 a GID.
#[derive(Debug)]
pub(super) struct History {
    /// The GID before the first one in `commits`; `commits` is gap-free from there.
    base: Gid,
    /// Entries ever pushed, up to the last one of `base`.
    base_end: u64,
    commits: VecDeque<Commit>,
    /// Entries ever taken from the front: at least `base_end`, since a GID can be half taken.
    taken: u64,
    hashes: VecDeque<u64>,
    slots: VecDeque<Slot>,
}

impl History {
    /// Nothing yet; the first GID will be the one after `base`.
    pub(super) fn new(base: Gid) -> Self {
        Self {
            base,
            base_end: 0,
            commits: VecDeque::new(),
            taken: 0,
            hashes: VecDeque::new(),
            slots: VecDeque::new(),
        }
    }

    /// The newest GID.
    pub(super) fn last(&self) -> Gid {
        Gid(self.base.0 + self.commits.len() as u64)
    }

    /// An entry of the GID that the next [`History::close`] ends.
    pub(super) fn push(&mut self, hash: u64, slot: Slot) {
        self.hashes.push_back(hash);
        self.slots.push_back(slot);
    }

    /// Ends the next GID.
    pub(super) fn close(&mut self, origin: MemberId) {
        let end = self.taken + self.hashes.len() as u64;
        self.commits.push_back(Commit { end, origin });
    }

    /// Whose a retained GID is.
    pub(super) fn origin(&self, gid: Gid) -> MemberId {
        assert!(gid > self.base && gid <= self.last(), "GID {gid} is gone");
        self.commits[(gid.0 - self.base.0 - 1) as usize].origin
    }

    /// How much lies above a GID: its GIDs and their entries.
    pub(super) fn weight_above(&self, gid: Gid) -> u64 {
        let end = self.taken + self.hashes.len() as u64;
        (self.last().0 - gid.0) + (end - self.end_of(gid))
    }

    /// Hashes of the oldest entries whose GIDs are not above `floor`.
    pub(super) fn oldest_hashes(&self, floor: Gid) -> impl Iterator<Item = u64> {
        self.hashes.range(..self.skipped(floor)).copied()
    }

    /// Takes the oldest entry if its GID is not above `floor`.
    pub(super) fn take_oldest(&mut self, floor: Gid) -> Option<(u64, Slot, Gid)> {
        while self.base < floor {
            let commit = self.commits[0];
            let gid = self.base.next();
            if self.taken < commit.end {
                self.taken += 1;
                let hash = self.hashes.pop_front();
                let slot = self.slots.pop_front();
                return Some((hash?, slot?, gid));
            }
            self.commits.pop_front();
            self.base = gid;
            self.base_end = commit.end;
        }
        None
    }

    /// Origin and number of entries of each GID above `floor`, in order.
    pub(super) fn commits_above(&self, floor: Gid) -> impl Iterator<Item = (MemberId, u64)> {
        let mut begin = self.end_of(floor);
        let skip = (floor.0 - self.base.0) as usize;
        self.commits.range(skip..).map(move |commit| {
            let count = commit.end - begin;
            begin = commit.end;
            (commit.origin, count)
        })
    }

    /// Hashes of the entries of all GIDs above `floor`, in order.
    pub(super) fn hashes_above(&self, floor: Gid) -> impl ExactSizeIterator<Item = u64> {
        self.hashes.range(self.skipped(floor)..).copied()
    }

    /// Slots of the same entries.
    pub(super) fn slots_above(&self, floor: Gid) -> impl ExactSizeIterator<Item = Slot> {
        self.slots.range(self.skipped(floor)..).copied()
    }

    fn end_of(&self, gid: Gid) -> u64 {
        assert!(gid >= self.base && gid <= self.last(), "GID {gid} is gone");
        match gid.0 - self.base.0 {
            0 => self.base_end,
            n => self.commits[n as usize - 1].end,
        }
    }

    /// Entries at the front that do not lie above `floor`: no more than that is ever taken.
    fn skipped(&self, floor: Gid) -> usize {
        (self.end_of(floor) - self.taken) as usize
    }
}
