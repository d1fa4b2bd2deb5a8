//! The log as Raft sees it: a tail in memory, the rest read back from the segments.

use super::log::{self, Checkpoint, EntryKind, Member};
use super::reader::LogReader;
use super::recover::{Mark, Recovered};
use crate::ids::{Gid, MemberId};
use crate::limits::LOG_CACHE_BYTES_MAX;
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

/// In-memory state of the log. What it holds may not be durable yet; Raft keeps track of that.
pub struct Store {
    reader: Box<dyn LogReader>,
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term before the first entry.
    base: (u64, u64),
    /// (index, term) where the term changes, above the base.
    terms: VecDeque<(u64, u64)>,
    last: u64,
    /// The last entries, without a gap.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// Older entries read back ahead of delivery.
    window: RefCell<VecDeque<Entry>>,
    /// Durable checkpoints, oldest first.
    marks: VecDeque<Mark>,
    /// The members now, for snapshots to them.
    members: BTreeMap<MemberId, Member>,
    /// Every member has the GIDs up to here, as far as is known.
    everywhere: Gid,
}

/// The configuration that a checkpoint's members make.
pub fn conf_state(checkpoint: &Checkpoint) -> ConfState {
    let ids = |voter| {
        let all = checkpoint.members.iter().chain(&checkpoint.guest);
        let of_kind = all.filter(move |m| m.voter == voter);
        of_kind.map(|m| u64::from(m.id.0)).collect::<Vec<u64>>()
    };
    ConfState::from((ids(true), ids(false)))
}

/// Raft's entry from ours. A membership change keeps its meaning in `context`; Raft itself reads
/// `data` only where it was proposed.
pub fn to_raft(e: &log::Entry) -> Entry {
    let mut out = Entry {
        index: e.index,
        term: e.term,
        ..Entry::default()
    };
    match e.kind {
        EntryKind::Batch => out.data = e.data.clone(),
        EntryKind::Change => {
            out.set_entry_type(EntryType::EntryConfChange);
            out.context = e.data.clone();
        }
    }
    out
}

/// Our entry from Raft's.
pub fn from_raft(e: &Entry) -> log::Entry {
    let (kind, data) = match e.get_entry_type() {
        EntryType::EntryNormal => (EntryKind::Batch, &e.data),
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            (EntryKind::Change, &e.context)
        }
    };
    log::Entry {
        index: e.index,
        term: e.term,
        kind,
        data: data.clone(),
    }
}

fn entry_bytes(e: &Entry) -> usize {
    e.data.len() + e.context.len() + 32
}

impl Store {
    /// The log as recovered; `start` is the checkpoint from which this member goes on.
    pub fn new(reader: Box<dyn LogReader>, recovered: Recovered, start: &Checkpoint) -> Self {
        let mut terms: VecDeque<_> = recovered.terms.into();
        let base = terms.pop_front().unwrap_or((0, 0));
        let cache: VecDeque<Entry> = recovered.tail.iter().map(to_raft).collect();
        let mut hard_state = HardState::default();
        hard_state.term = recovered.hard_state.term;
        hard_state.vote = recovered.hard_state.vote;
        hard_state.commit = recovered.hard_state.commit;
        Self {
            reader,
            hard_state,
            conf_state: conf_state(start),
            base,
            terms,
            last: recovered.last_index,
            cache_bytes: cache.iter().map(entry_bytes).sum(),
            cache,
            window: RefCell::default(),
            marks: recovered.marks.into(),
            members: BTreeMap::new(),
            everywhere: Gid::ZERO,
        }
    }

    /// Durable checkpoints, oldest first.
    pub fn marks(&self) -> &VecDeque<Mark> {
        &self.marks
    }

    /// A checkpoint has become durable. It is of no use if the log began anew meanwhile.
    pub fn add_mark(&mut self, mark: Mark) {
        if mark.index >= self.base.0 {
            self.marks.push_back(mark);
        }
    }

    /// Who gets snapshots.
    pub fn set_members(&mut self, members: BTreeMap<MemberId, Member>) {
        self.members = members;
    }

    /// Every member has the GIDs up to here.
    pub fn set_everywhere(&mut self, gid: Gid) {
        self.everywhere = gid;
    }

    /// Appends entries that Raft has accepted; they supersede those from the first one's index on.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|e| e.index) else {
            return;
        };
        assert!(
            first > self.base.0 && first <= self.last + 1,
            "Raft appends without gaps"
        );
        while self.cache.back().is_some_and(|e| e.index >= first) {
            self.cache_bytes -= self.cache.pop_back().map_or(0, |e| entry_bytes(&e));
        }
        while self.terms.back().is_some_and(|t| t.0 >= first) {
            self.terms.pop_back();
        }
        self.window.get_mut().clear();
        for e in entries {
            let term = self.terms.back().map_or(self.base.1, |t| t.1);
            if e.term != term {
                self.terms.push_back((e.index, e.term));
            }
            self.cache_bytes += entry_bytes(e);
            self.cache.push_back(e.clone());
            self.last = e.index;
        }
    }

    /// The log begins anew after a checkpoint of another member.
    pub fn restore(&mut self, checkpoint: &Checkpoint) {
        self.base = (checkpoint.index, checkpoint.term);
        self.last = checkpoint.index;
        self.terms.clear();
        self.cache.clear();
        self.cache_bytes = 0;
        self.window.get_mut().clear();
        self.marks.clear();
    }

    /// Lets go of entries up to `index` (delivered and durable) beyond the bound of the cache.
    pub fn trim(&mut self, index: u64) {
        while self.cache_bytes > LOG_CACHE_BYTES_MAX
            && self.cache.front().is_some_and(|e| e.index <= index)
        {
            self.cache_bytes -= self.cache.pop_front().map_or(0, |e| entry_bytes(&e));
        }
    }

    /// Drops checkpoints below this one and the entries that it contains.
    pub fn compact(&mut self, mark: Mark) {
        while self.marks.front().is_some_and(|m| m.index < mark.index) {
            self.marks.pop_front();
        }
        if mark.index <= self.base.0 {
            return;
        }
        while self.terms.front().is_some_and(|t| t.0 <= mark.index) {
            self.terms.pop_front();
        }
        while self.cache.front().is_some_and(|e| e.index <= mark.index) {
            self.cache_bytes -= self.cache.pop_front().map_or(0, |e| entry_bytes(&e));
        }
        self.base = (mark.index, mark.term);
    }

    /// Whether the entry can be had without reading.
    pub fn in_memory(&self, index: u64) -> bool {
        index > self.last || self.cache.front().is_some_and(|e| e.index <= index)
    }

    /// Makes an older entry ready for Raft, which cannot bear a failed read of what it delivers.
    pub fn preload(&self, index: u64) -> std::io::Result<()> {
        if self.in_memory(index) || self.in_window(index) {
            return Ok(());
        }
        let term = self.term(index).map_err(std::io::Error::other)?;
        let read = self.reader.entries(index, term, self.cache_first())?;
        let right = |e: &log::Entry| self.term(e.index) == Ok(e.term);
        let window = read.iter().take_while(|e| right(e)).map(to_raft).collect();
        self.window.replace(window);
        Ok(())
    }

    fn in_window(&self, index: u64) -> bool {
        let window = self.window.borrow();
        window.front().is_some_and(|e| e.index <= index)
            && window.back().is_some_and(|e| e.index >= index)
    }

    fn cache_first(&self) -> u64 {
        self.cache.front().map_or(self.last + 1, |e| e.index)
    }

    /// The newest checkpoint that a copy with this GID can start from.
    pub fn mark_for(&self, gid: Gid) -> Option<Mark> {
        self.marks.iter().rev().find(|m| m.gid <= gid).copied()
    }

    fn snapshot_for(&self, to: MemberId) -> Option<Checkpoint> {
        let member = self.members.get(&to)?;
        // Its log will begin there, and it may lead one day: so it begins early enough for the
        // member that lags most. A member whose GID is not known gets the oldest checkpoint, and
        // refuses it if that is beyond its data.
        let gid = member.gid.min(self.everywhere);
        let mark = self.mark_for(gid).or(self.marks.front().copied())?;
        let mut checkpoint = self.reader.checkpoint(mark).ok()?;
        // Raft takes a snapshot only from a configuration that has the receiver.
        let there = checkpoint.members.iter().any(|m| m.id == to);
        checkpoint.guest = (!there).then(|| Member {
            voter: false,
            ..member.clone()
        });
        Some(checkpoint)
    }
}

/// A snapshot that carries a checkpoint.
pub fn to_snapshot(checkpoint: &Checkpoint) -> Snapshot {
    let mut data = Vec::new();
    checkpoint.encode(&mut data);
    let mut snapshot = Snapshot {
        data: Bytes::from(data),
        ..Snapshot::default()
    };
    let meta = snapshot.mut_metadata();
    meta.index = checkpoint.index;
    meta.term = checkpoint.term;
    meta.set_conf_state(conf_state(checkpoint));
    snapshot
}

fn take(entries: &VecDeque<Entry>, low: u64, high: u64, max: Option<u64>) -> Vec<Entry> {
    let Some(first) = entries.front().map(|e| e.index) else {
        return Vec::new();
    };
    let from = usize::try_from(low - first).unwrap_or(usize::MAX);
    let mut bytes = 0;
    let mut run = Vec::new();
    for e in entries.iter().skip(from).take_while(|e| e.index < high) {
        bytes += entry_bytes(e) as u64;
        if !run.is_empty() && max.is_some_and(|max| bytes > max) {
            break;
        }
        run.push(e.clone());
    }
    run
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let state = RaftState::new(self.hard_state.clone(), self.conf_state.clone());
        Ok(state)
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last + 1, "Raft asks for what was appended");
        let max = max_size.into();
        if let Err(e) = self.preload(low) {
            return Err(Error::Store(if context.can_async() {
                StorageError::LogTemporarilyUnavailable
            } else {
                StorageError::Other(Box::new(e))
            }));
        }
        if self.in_memory(low) {
            return Ok(take(&self.cache, low, high, max));
        }
        Ok(take(&self.window.borrow(), low, high, max))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let n = self.terms.partition_point(|t| t.0 <= index);
        Ok(if n == 0 {
            self.base.1
        } else {
            self.terms[n - 1].1
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let unavailable = Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        let to = u16::try_from(to).map(MemberId);
        match to.ok().and_then(|to| self.snapshot_for(to)) {
            Some(c) if c.index >= request_index => Ok(to_snapshot(&c)),
            _ => Err(unavailable),
        }
    }
}
