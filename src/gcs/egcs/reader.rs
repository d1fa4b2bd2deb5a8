//! Entries and checkpoints that are no longer in memory, read back from the segments.

use super::disk::Disk;
use super::log::{Checkpoint, Entry, Record};
use super::recover::Mark;
use super::segment::{self, HEADER_BYTES, Header, Scan};
use crate::ids::{GroupId, MemberId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

/// Reads what is durable in the log. Blocks for the time of a read of a segment.
pub trait LogReader {
    /// The entry with this index and term, and those after it that lie with it, in order of
    /// index; `high` is the first that is not wanted.
    fn entries(&self, low: u64, term: u64, high: u64) -> io::Result<Vec<Entry>>;
    /// The checkpoint that this mark stands for.
    fn checkpoint(&self, mark: Mark) -> io::Result<Checkpoint>;
}

/// Over a directory.
pub struct DiskReader<D> {
    disk: D,
    group: GroupId,
    member: MemberId,
    /// The segment read last, by index of its entries.
    last: RefCell<BTreeMap<u64, Entry>>,
}

impl<D: Disk> DiskReader<D> {
    /// Reads the log of this member.
    pub fn new(disk: D, group: GroupId, member: MemberId) -> Self {
        Self {
            disk,
            group,
            member,
            last: RefCell::default(),
        }
    }

    /// Headers of all segments, oldest first.
    fn headers(&self) -> io::Result<Vec<Header>> {
        let mut headers = Vec::new();
        for name in self.disk.list()? {
            if let Some(number) = segment::parse_name(&name)
                && let Some(h) = Header::decode(&self.disk.read(&name, 0, HEADER_BYTES)?)
                && (h.group, h.member, h.segment) == (self.group, self.member, number)
            {
                headers.push(h);
            }
        }
        headers.sort_by_key(|h| h.segment);
        Ok(headers)
    }

    fn scan(&self, header: &Header) -> io::Result<Scan> {
        let name = segment::file_name(header.segment);
        Ok(Scan::new(header, self.disk.whole(&name)?))
    }

    fn cached(&self, low: u64, term: u64, high: u64) -> Option<Vec<Entry>> {
        let last = self.last.borrow();
        last.get(&low).filter(|e| e.term == term)?;
        let mut run: Vec<Entry> = Vec::new();
        for (_, e) in last.range(low..high) {
            if run.last().is_some_and(|b| b.index + 1 != e.index) {
                break;
            }
            run.push(e.clone());
        }
        Some(run)
    }
}

impl<D: Disk> LogReader for DiskReader<D> {
    fn entries(&self, low: u64, term: u64, high: u64) -> io::Result<Vec<Entry>> {
        if let Some(run) = self.cached(low, term, high) {
            return Ok(run);
        }
        let headers = self.headers()?;
        for header in headers.iter().rev().filter(|h| h.first_index <= low) {
            let mut entries = BTreeMap::new();
            for found in self.scan(header)? {
                if let Record::Entry(e) = found.record {
                    // It supersedes those after it.
                    entries.split_off(&e.index);
                    entries.insert(e.index, e);
                }
            }
            self.last.replace(entries);
            if let Some(run) = self.cached(low, term, high) {
                return Ok(run);
            }
        }
        let what = format!("entry {low} of term {term} is not in the group log");
        Err(io::Error::new(io::ErrorKind::NotFound, what))
    }

    fn checkpoint(&self, mark: Mark) -> io::Result<Checkpoint> {
        let headers = self.headers()?;
        // It was written after its entry, so in that entry's segment or a later one.
        let at = headers.iter().rposition(|h| h.first_index <= mark.index);
        for header in &headers[at.unwrap_or(0)..] {
            for found in self.scan(header)? {
                if let Record::Checkpoint(c) | Record::Restore(c, _) = found.record
                    && (c.index, c.term, c.gid) == (mark.index, mark.term, mark.gid)
                {
                    return Ok(c);
                }
            }
        }
        let what = format!("checkpoint {} is not in the group log", mark.index);
        Err(io::Error::new(io::ErrorKind::NotFound, what))
    }
}
