//! The log at start: what it holds, cut at a torn tail, refused when damaged.

use super::disk::Disk;
use super::log::{Checkpoint, Entry, HardState, Record};
use super::segment::{self, End, HEADER_BYTES, Header, Scan};
use super::writer::{Contents, Position, Step, Writer};
use crate::ids::{Gid, GroupId, MemberId};
use crate::limits::LOG_CACHE_BYTES_MAX;
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::io;

/// The log cannot be used. Each names the file and, where there is one, the byte in it.
#[derive(Debug)]
pub enum LogError {
    /// Reading or writing failed.
    Io {
        /// File.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// What was durable is not there any more.
    Damaged {
        /// File.
        file: String,
        /// Byte in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { file, error } => write!(f, "group log file \"{file}\": {error}"),
            Self::Damaged { file, offset, what } => {
                write!(
                    f,
                    "group log file \"{file}\" is damaged at byte {offset}: {what}"
                )
            }
        }
    }
}

impl std::error::Error for LogError {}

/// A checkpoint in the log, without its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Entries up to here are contained.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Its last GID.
    pub gid: Gid,
    /// Bytes of entries before it was written, counted from any fixed point.
    pub log_bytes: u64,
}

/// What a log holds.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Newest hard state.
    pub hard_state: HardState,
    /// Checkpoints, oldest first. Entries after the oldest are all there.
    pub marks: Vec<Mark>,
    /// (index, term) wherever the term changes, from the oldest checkpoint's index on.
    pub terms: Vec<(u64, u64)>,
    /// Index of the last entry (the oldest checkpoint's if there is none, 0 in an empty log).
    pub last_index: u64,
    /// The last entries, without a gap up to `last_index`, as many as fit the cache.
    pub tail: VecDeque<Entry>,
    /// Bytes of records of entries.
    pub log_bytes: u64,
}

/// Begins the log of a group's first member with the checkpoint that the group is born with.
pub fn create(
    disk: &impl Disk,
    group: GroupId,
    member: MemberId,
    birth: Checkpoint,
) -> Result<(), LogError> {
    let mut writer = new_log(group, member);
    let hard_state = HardState {
        term: birth.term,
        vote: 0,
        commit: birth.index,
    };
    let mut steps = Vec::new();
    writer.append(1, &[Record::Restore(birth, hard_state)], &mut steps);
    perform(disk, &steps)
}

/// Begins the log of a member that joins. It must be there before the identity names the number,
/// for an identity whose log is missing must never be used again.
pub fn create_empty(disk: &impl Disk, group: GroupId, member: MemberId) -> Result<(), LogError> {
    let mut steps = Vec::new();
    let nothing = Record::HardState(HardState::default());
    new_log(group, member).append(1, &[nothing], &mut steps);
    perform(disk, &steps)
}

/// Bytes that a disk writes as one, at most.
const BLOCK_BYTES: u64 = 4096;
/// Bytes of a log's first segment, which holds little.
const FIRST_BYTES: u64 = 4 << 10;

fn new_log(group: GroupId, member: MemberId) -> Writer {
    let mut writer = Writer::new(
        group,
        member,
        Position {
            segments: VecDeque::new(),
            first_index: 1,
            size: 0,
            offset: 0,
            number: 1,
            next_index: 1,
            hard_state: HardState::default(),
        },
    );
    writer.set_segment_bytes(FIRST_BYTES);
    writer
}

/// Carries out steps at once.
pub fn perform(disk: &impl Disk, steps: &[Step]) -> Result<(), LogError> {
    for step in steps {
        let (segment, done) = match step {
            Step::Create { segment, bytes } => {
                (segment, disk.create(&segment::file_name(*segment), *bytes))
            }
            Step::Write {
                segment,
                offset,
                bytes,
            } => (
                segment,
                disk.write_at(&segment::file_name(*segment), *offset, bytes),
            ),
            Step::Sync { segment } => (segment, disk.sync(&segment::file_name(*segment))),
        };
        done.map_err(|e| io_error(*segment, e))?;
    }
    Ok(())
}

/// Reads the log of a member, cuts a torn tail off and returns what is there and where to go on.
pub fn recover(
    disk: &impl Disk,
    group: GroupId,
    member: MemberId,
) -> Result<(Recovered, Writer), LogError> {
    let (recovered, segments) = check(disk, group, member, &mut |_, _| ())?;
    let Some(last) = segments.last() else {
        return Err(damaged(1, 0, "the group log is missing"));
    };
    secure(disk, last).map_err(|e| io_error(last.header.segment, e))?;
    let (End::Clean(offset) | End::Torn(offset) | End::Damaged(offset)) = last.end;
    let writer = Writer::new(
        group,
        member,
        Position {
            segments: segments.iter().map(|s| s.contents).collect(),
            first_index: last.header.first_index,
            size: last.header.size,
            offset,
            number: last.number,
            next_index: recovered.last_index + 1,
            hard_state: recovered.hard_state,
        },
    );
    Ok((recovered, writer))
}

/// Reads the whole log and changes nothing; `see` is shown each record.
pub fn check(
    disk: &impl Disk,
    group: GroupId,
    member: MemberId,
    see: &mut dyn FnMut(&Header, &segment::Found),
) -> Result<(Recovered, Vec<Segment>), LogError> {
    let mut fold = Fold::default();
    let segments = walk(disk, group, member, &mut |header, found| {
        see(header, found);
        fold.take(found)
    })?;
    let recovered = fold.finish(&segments)?;
    Ok((recovered, segments))
}

/// A segment that was read.
#[derive(Debug)]
pub struct Segment {
    /// Its header.
    pub header: Header,
    /// What is in it.
    pub contents: Contents,
    /// How it ends.
    pub end: End,
    /// Where the records begin that none vouches for, and their bytes; of the last segment only.
    unproven: (u64, Bytes),
    /// Number of the record after its last.
    pub number: u64,
}

/// Reads all segments in order and shows each record to `see`, which may refuse it with a reason.
/// Fails on anything but a torn tail of the last segment.
fn walk(
    disk: &impl Disk,
    group: GroupId,
    member: MemberId,
    see: &mut dyn FnMut(&Header, &segment::Found) -> Result<(), String>,
) -> Result<Vec<Segment>, LogError> {
    let dir = |error| LogError::Io {
        file: ".".into(),
        error,
    };
    let mut numbers: Vec<u64> = disk
        .list()
        .map_err(dir)?
        .iter()
        .filter_map(|n| segment::parse_name(n))
        .collect();
    numbers.sort_unstable();
    let mut segments: Vec<Segment> = Vec::new();
    for (i, &number) in numbers.iter().enumerate() {
        let bytes = read_segment(disk, number)?;
        let Some(header) = header_of(&bytes, group, member, number)? else {
            // Made ahead, or torn when it was begun; nothing can have been durable in it.
            if i + 1 == numbers.len() {
                break;
            }
            return Err(damaged(
                number,
                0,
                "it has no header, and a later segment exists",
            ));
        };
        if let Some(before) = segments.last() {
            let (End::Clean(at) | End::Torn(at) | End::Damaged(at)) = before.end;
            if header.segment != before.header.segment + 1 {
                let missing = before.header.segment + 1;
                return Err(damaged(missing, 0, "the segment is missing"));
            }
            if header.first_record != before.number {
                let what = "records are missing at the end of the segment";
                return Err(damaged(before.header.segment, at, what));
            }
        }
        if let Some(before) = segments.last_mut() {
            // Nothing of this one was written before all of that was durable.
            before.unproven.1 = Bytes::new();
        }
        let size = usize::try_from(header.size).expect("not beyond the file's");
        segments.push(scan_segment(header, bytes.slice(..size), see)?);
    }
    Ok(segments)
}

fn scan_segment(
    header: Header,
    bytes: Bytes,
    see: &mut dyn FnMut(&Header, &segment::Found) -> Result<(), String>,
) -> Result<Segment, LogError> {
    let mut contents = Contents {
        segment: header.segment,
        entry_max: 0,
        checkpoint_max: 0,
    };
    let mut scan = Scan::new(&header, bytes.clone());
    for found in scan.by_ref() {
        match &found.record {
            Record::Entry(e) if e.index < header.first_index => {
                let what = "an entry has an index below the segment's first";
                return Err(damaged(header.segment, found.offset, what));
            }
            Record::Entry(e) => contents.entry_max = contents.entry_max.max(e.index),
            Record::Checkpoint(c) | Record::Restore(c, _) => {
                contents.checkpoint_max = contents.checkpoint_max.max(c.index);
            }
            Record::HardState(_) => {}
        }
        see(&header, &found).map_err(|what| damaged(header.segment, found.offset, &what))?;
    }
    let end = scan.end();
    if let End::Damaged(at) = end {
        let what = "bytes that were durable are no record, and records follow";
        return Err(damaged(header.segment, at, what));
    }
    let (End::Clean(at) | End::Torn(at) | End::Damaged(at)) = end;
    // A block that was durable in part may be torn where it was written again.
    let from = scan.synced() / BLOCK_BYTES * BLOCK_BYTES;
    let place = |at: u64| usize::try_from(at).expect("a segment fits memory");
    let unproven = (from, bytes.slice(place(from)..place(at)));
    Ok(Segment {
        header,
        contents,
        end,
        unproven,
        number: scan.number(),
    })
}

/// The header of a segment file, `None` for a file whose content never began.
fn header_of(
    bytes: &Bytes,
    group: GroupId,
    member: MemberId,
    number: u64,
) -> Result<Option<Header>, LogError> {
    if let Some(header) = Header::decode(bytes) {
        if header.group != group || header.member != member || header.segment != number {
            let what = format!(
                "it belongs to member {} of group {:016x} as segment {}",
                header.member, header.group.0, header.segment
            );
            return Err(damaged(number, 0, &what));
        }
        if header.size > bytes.len() as u64 {
            return Err(damaged(number, bytes.len() as u64, "the file was cut"));
        }
        return Ok(Some(header));
    }
    // Without its header a segment still knows its records by their salt.
    let blank = Header {
        group,
        member,
        segment: number,
        first_index: 0,
        first_record: 0,
        size: bytes.len() as u64,
    };
    match Scan::claims_durable(&blank, bytes) {
        true => Err(damaged(number, 0, "the header is damaged")),
        false => Ok(None),
    }
}

fn read_segment(disk: &impl Disk, number: u64) -> Result<Bytes, LogError> {
    disk.whole(&segment::file_name(number))
        .map_err(|e| io_error(number, e))
}

/// Makes the end of the log durable as it was read.
///
/// A process that died may have written what the system has not. Where the system tried and failed,
/// its cache counts as written from then on: reads show it, and a sync succeeds and does nothing. So
/// all of the segment that no record vouches for is written once more; with zeros behind the last
/// record, so that no remains of a torn tail can be taken for a later one.
fn secure(disk: &impl Disk, last: &Segment) -> io::Result<()> {
    let name = segment::file_name(last.header.segment);
    let (from, bytes) = &last.unproven;
    let end = from + bytes.len() as u64;
    let rest = usize::try_from(last.header.size - end).expect("a segment fits memory");
    disk.write_at(&name, *from, bytes)?;
    disk.write_at(&name, end, &vec![0; rest])?;
    disk.sync(&name)
}

/// Puts the records together.
#[derive(Default)]
struct Fold {
    out: Recovered,
    /// Lowest index of the entries that are there without a gap, 0 for none.
    first: u64,
    tail_bytes: usize,
}

impl Fold {
    fn take(&mut self, found: &segment::Found) -> Result<(), String> {
        match &found.record {
            Record::Entry(e) => self.entry(e)?,
            Record::HardState(h) => self.out.hard_state = *h,
            Record::Checkpoint(c) => self.checkpoint(c)?,
            Record::Restore(c, h) => {
                let log_bytes = self.out.log_bytes;
                *self = Self::default();
                self.out.log_bytes = log_bytes;
                self.out.hard_state = *h;
                self.out.last_index = c.index;
                self.out.terms.push((c.index, c.term));
                self.first = c.index + 1;
                self.checkpoint(c)?;
            }
        }
        if let Record::Entry(_) = found.record {
            self.out.log_bytes += found.len;
        }
        Ok(())
    }

    fn entry(&mut self, e: &Entry) -> Result<(), String> {
        let last = self.out.last_index;
        if self.first == 0 {
            self.first = e.index;
        } else if e.index > last + 1 {
            return Err(format!("entry {} follows entry {last}", e.index));
        } else if e.index <= last {
            if self.out.marks.iter().any(|m| m.index >= e.index) {
                return Err(format!("entry {} supersedes a committed one", e.index));
            }
            // Where the log was cut, a segment may begin with entries that were never committed,
            // and what supersedes them may begin below it. A checkpoint that was kept for all
            // that follows it lies further on then.
            self.first = self.first.min(e.index);
            while self.out.tail.back().is_some_and(|b| b.index >= e.index) {
                let gone = self.out.tail.pop_back().expect("just seen");
                self.tail_bytes -= gone.data.len();
            }
            while self.out.terms.last().is_some_and(|t| t.0 >= e.index) {
                self.out.terms.pop();
            }
        }
        if self.out.terms.last().is_none_or(|t| t.1 != e.term) {
            if self.out.terms.last().is_some_and(|t| t.1 > e.term) {
                return Err(format!("entry {} has an older term", e.index));
            }
            self.out.terms.push((e.index, e.term));
        }
        self.out.last_index = e.index;
        self.tail_bytes += e.data.len();
        // A copy, so that the tail does not keep whole segments in memory.
        let data = Bytes::copy_from_slice(&e.data);
        self.out.tail.push_back(Entry { data, ..e.clone() });
        while self.tail_bytes > LOG_CACHE_BYTES_MAX && self.out.tail.len() > 1 {
            let gone = self.out.tail.pop_front().expect("more than one");
            self.tail_bytes -= gone.data.len();
        }
        Ok(())
    }

    fn checkpoint(&mut self, c: &Checkpoint) -> Result<(), String> {
        if self.first != 0 && c.index > self.out.last_index {
            return Err(format!("checkpoint {} is ahead of the entries", c.index));
        }
        self.out.marks.push(Mark {
            index: c.index,
            term: c.term,
            gid: c.gid,
            log_bytes: self.out.log_bytes,
        });
        Ok(())
    }

    /// Drops what reaches back beyond the entries that are there.
    fn finish(mut self, segments: &[Segment]) -> Result<Recovered, LogError> {
        let first = self.first;
        let out = &mut self.out;
        out.marks.retain(|m| first == 0 || m.index + 1 >= first);
        let Some(base) = out.marks.first().copied() else {
            return match segments.first() {
                Some(s) if first != 0 => {
                    let what = "no checkpoint reaches the entries; older segments are missing";
                    Err(damaged(s.header.segment, HEADER_BYTES as u64, what))
                }
                _ => Ok(self.out),
            };
        };
        if first == 0 {
            out.last_index = base.index;
        }
        while out.tail.front().is_some_and(|e| e.index <= base.index) {
            out.tail.pop_front();
        }
        out.terms.retain(|t| t.0 > base.index);
        out.terms.insert(0, (base.index, base.term));
        out.terms.dedup_by(|b, a| a.1 == b.1);
        let newest = out.marks.iter().map(|m| m.index).max().unwrap_or(0);
        if newest > out.last_index {
            let segment = segments.last().map_or(0, |s| s.header.segment);
            let what = "a checkpoint is ahead of the entries";
            return Err(damaged(segment, HEADER_BYTES as u64, what));
        }
        out.hard_state.commit = out.hard_state.commit.clamp(newest, out.last_index);
        Ok(self.out)
    }
}

fn io_error(segment: u64, error: io::Error) -> LogError {
    LogError::Io {
        file: segment::file_name(segment),
        error,
    }
}

fn damaged(segment: u64, offset: u64, what: &str) -> LogError {
    LogError::Damaged {
        file: segment::file_name(segment),
        offset,
        what: what.to_owned(),
    }
}
