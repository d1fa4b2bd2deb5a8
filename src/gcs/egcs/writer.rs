//! Where records go: which segment, which offset, when a new segment begins, which segments can
//! be removed. Plans writes and does none, so the event loop and the simulation share it.

use super::log::{HardState, Record};
use super::segment::{self, HEADER_BYTES, Salt};
use crate::ids::{GroupId, MemberId};
use crate::limits::LOG_SEGMENT_BYTES;
use std::collections::VecDeque;

/// One operation on a segment's file ([`segment::file_name`]), to be done in the order given; a
/// later step starts only when the earlier ones are done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Make the file with this many zeros, durable with its name, unless that was done ahead
    /// (see [`Writer::upcoming`]).
    Create {
        /// Number of the segment.
        segment: u64,
        /// Size of the file.
        bytes: u64,
    },
    /// Write at an offset.
    Write {
        /// Number of the segment.
        segment: u64,
        /// Byte in the file.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Make what was written to the file durable.
    Sync {
        /// Number of the segment.
        segment: u64,
    },
}

/// What is in a segment, as far as its removal depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contents {
    /// Number of the segment.
    pub segment: u64,
    /// Highest index of an entry, 0 without one.
    pub entry_max: u64,
    /// Highest index of a checkpoint, 0 without one.
    pub checkpoint_max: u64,
}

/// The end of the log.
#[derive(Debug)]
pub struct Writer {
    group: GroupId,
    member: MemberId,
    /// All segments, the current one last.
    segments: VecDeque<Contents>,
    salt: Salt,
    /// Lowest index that an entry of the current segment may have.
    first_index: u64,
    /// Size of the current segment.
    size: u64,
    /// Usual size of the next.
    segment_bytes: u64,
    /// Where the next record goes.
    offset: u64,
    /// Up to here the current segment is durable.
    synced: u64,
    /// Number of the next record.
    number: u64,
    /// Index that the next entry has unless it supersedes one.
    next_index: u64,
    /// Repeated at the beginning of each segment, so that older ones can go.
    hard_state: HardState,
    /// (ticket, segment, end) of appends not yet durable.
    pending: VecDeque<(u64, u64, u64)>,
}

/// Where [`Writer`] goes on.
#[derive(Debug)]
pub struct Position {
    /// All segments, oldest first; empty for a new log.
    pub segments: VecDeque<Contents>,
    /// From the header of the newest.
    pub first_index: u64,
    /// Size of the newest.
    pub size: u64,
    /// End of the last record in the newest.
    pub offset: u64,
    /// Number of the next record.
    pub number: u64,
    /// Index after the last entry.
    pub next_index: u64,
    /// The newest.
    pub hard_state: HardState,
}

impl Writer {
    /// Goes on at a position; all that is there is durable.
    pub fn new(group: GroupId, member: MemberId, at: Position) -> Self {
        let current = at.segments.back().map_or(0, |c| c.segment);
        Self {
            group,
            member,
            salt: Salt::new(group, member, current),
            segments: at.segments,
            first_index: at.first_index,
            size: at.size,
            segment_bytes: LOG_SEGMENT_BYTES as u64,
            offset: at.offset,
            synced: at.offset,
            number: at.number,
            next_index: at.next_index,
            hard_state: at.hard_state,
            pending: VecDeque::new(),
        }
    }

    /// Segments begun from now on have this size instead of [`LOG_SEGMENT_BYTES`].
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes = bytes;
    }

    /// Appends to `steps` what makes these records durable. Appends come in ticket order; several
    /// appends may be planned before the first is done, and then one sync of a segment may stand
    /// for all of them.
    pub fn append(&mut self, ticket: u64, records: &[Record], steps: &mut Vec<Step>) {
        let mut buf = Vec::with_capacity(
            records
                .iter()
                .map(|r| segment::record_bytes(r.size_hint()))
                .sum(),
        );
        let mut start = self.offset;
        for record in records {
            let before = buf.len();
            segment::encode_record(record, self.salt, self.number, self.synced, &mut buf);
            let len = (buf.len() - before) as u64;
            let below = matches!(record, Record::Entry(e) if e.index < self.first_index);
            if below || self.offset + len > self.size {
                buf.truncate(before);
                self.flush(start, std::mem::take(&mut buf), steps);
                self.track_next(record);
                self.begin(len, steps);
                start = self.offset;
                segment::encode_record(record, self.salt, self.number, self.synced, &mut buf);
            }
            self.offset += len;
            self.number += 1;
            self.track(record);
        }
        self.flush(start, buf, steps);
        let segment = self.current();
        self.pending.push_back((ticket, segment, self.offset));
    }

    /// An append, and so all before it, is durable.
    pub fn durable(&mut self, ticket: u64) {
        while let Some(&(t, segment, end)) = self.pending.front() {
            if t > ticket {
                break;
            }
            if segment == self.current() {
                self.synced = end;
            }
            self.pending.pop_front();
        }
    }

    /// The segment that comes next, to be created ahead: number and usual size. A file that was
    /// made ahead and is smaller than [`Step::Create`] asks for later must be made again.
    pub fn upcoming(&self) -> (u64, u64) {
        (self.current() + 1, self.segment_bytes)
    }

    /// Bytes written to the current segment and its size, to see when the next should be made.
    pub fn fill(&self) -> (u64, u64) {
        (self.offset, self.size)
    }

    /// Segments to remove, oldest first, when nothing before `first_index` is needed any more:
    /// neither entries below it nor checkpoints below `first_index - 1`.
    pub fn compact(&mut self, first_index: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.segments.len() > 1 {
            let oldest = self.segments[0];
            if oldest.entry_max >= first_index || oldest.checkpoint_max + 1 >= first_index {
                break;
            }
            gone.push(oldest.segment);
            self.segments.pop_front();
        }
        gone
    }

    fn current(&self) -> u64 {
        self.segments.back().map_or(0, |c| c.segment)
    }

    fn flush(&mut self, start: u64, bytes: Vec<u8>, steps: &mut Vec<Step>) {
        if bytes.is_empty() {
            return;
        }
        let segment = self.current();
        steps.push(Step::Write {
            segment,
            offset: start,
            bytes,
        });
        steps.push(Step::Sync { segment });
    }

    /// Begins a segment with room for a record of `len` bytes. What went to the one before has
    /// been synced by then, so a segment that is not the last is never torn.
    fn begin(&mut self, len: u64, steps: &mut Vec<Step>) {
        if self.offset > self.synced && self.current() != 0 {
            // An earlier append, still under way, wrote to it.
            steps.push(Step::Sync {
                segment: self.current(),
            });
        }
        let segment = self.current() + 1;
        self.salt = Salt::new(self.group, self.member, segment);
        self.segments.push_back(Contents {
            segment,
            entry_max: 0,
            checkpoint_max: 0,
        });
        let state = Record::HardState(self.hard_state);
        let mut bytes = Vec::new();
        let preamble = HEADER_BYTES + segment::record_bytes(state.size_hint());
        self.size = self.segment_bytes.max(preamble as u64 + len);
        self.first_index = self.next_index;
        self.synced = 0;
        steps.push(Step::Create {
            segment,
            bytes: self.size,
        });
        segment::Header {
            group: self.group,
            member: self.member,
            segment,
            first_index: self.first_index,
            first_record: self.number,
            size: self.size,
        }
        .encode(&mut bytes);
        segment::encode_record(&state, self.salt, self.number, 0, &mut bytes);
        self.number += 1;
        self.offset = bytes.len() as u64;
        steps.push(Step::Write {
            segment,
            offset: 0,
            bytes,
        });
    }

    /// A segment that begins for this record may hold entries from here on.
    fn track_next(&mut self, record: &Record) {
        match record {
            Record::Entry(e) => self.next_index = self.next_index.min(e.index),
            Record::Restore(c, _) => self.next_index = c.index + 1,
            Record::HardState(_) | Record::Checkpoint(_) => {}
        }
    }

    fn track(&mut self, record: &Record) {
        let contents = self.segments.back_mut().expect("a segment was begun");
        match record {
            Record::Entry(e) => {
                contents.entry_max = contents.entry_max.max(e.index);
                self.next_index = e.index + 1;
            }
            Record::HardState(h) => self.hard_state = *h,
            Record::Checkpoint(c) => {
                contents.checkpoint_max = contents.checkpoint_max.max(c.index);
            }
            Record::Restore(c, h) => {
                contents.checkpoint_max = contents.checkpoint_max.max(c.index);
                self.hard_state = *h;
                self.next_index = c.index + 1;
            }
        }
    }
}
