//! The live end of the group log: carries out the engine's appends on the segment files.
//!
//! While one write and its sync are under way, the appends that arrive gather into the next batch
//! (group commit). A batch's steps run strictly one after the other, so a segment is whole and
//! durable before the next one begins.
//!
//! An error is final: what a failed sync left on disk is unknown, and a second sync that succeeds
//! would not make it known. Nothing is written after it, for a record could vouch for what is not
//! there. The member leaves, and its next start writes anew what it can read.

use super::backend::{Backend, Flush, Op, Outcome, Token};
use super::segments::SegmentMaker;
use crate::gcs::egcs::log::Record;
use crate::gcs::egcs::segment::file_name;
use crate::gcs::egcs::writer::{Step, Writer};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

/// The group log can't be written any more.
#[derive(Debug)]
pub struct LogFailure {
    /// Name of the file in the log's directory.
    pub file: String,
    /// What was tried.
    pub doing: &'static str,
    /// What the system said.
    pub error: io::Error,
}

impl fmt::Display for LogFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogFailure { file, doing, error } = self;
        write!(f, "could not {doing} group log file \"{file}\": {error}")
    }
}

impl std::error::Error for LogFailure {}

/// The log's files as the loop writes them.
pub struct LogFiles {
    dir: PathBuf,
    /// The directory itself, to make names durable.
    dir_file: Rc<File>,
    writer: Writer,
    maker: SegmentMaker,
    /// The segment that was written last.
    open: Option<(u64, Rc<File>)>,
    /// Appends that wait for the batch under way.
    waiting: Vec<(u64, Vec<Record>)>,
    /// What is left of the batch under way.
    steps: VecDeque<Step>,
    /// Newest append in the batch under way.
    covers: Option<u64>,
    /// An operation of [`Token::Log`] is under way.
    writing: bool,
    /// Segments to remove, oldest first.
    doomed: VecDeque<u64>,
    /// One was removed, its name is perhaps still on disk.
    sweeping: bool,
    /// Nothing is begun, and nothing said to be durable, any more.
    failed: bool,
}

impl LogFiles {
    /// Goes on where the writer stands (it comes from the recovery of the same directory).
    ///
    /// # Errors
    /// The directory can't be opened.
    pub fn open(dir: impl Into<PathBuf>, writer: Writer) -> io::Result<LogFiles> {
        let dir = dir.into();
        let dir_file = Rc::new(File::open(&dir)?);
        Ok(LogFiles {
            maker: SegmentMaker::new(dir.clone(), dir_file.clone()),
            dir,
            dir_file,
            writer,
            open: None,
            waiting: Vec::new(),
            steps: VecDeque::new(),
            covers: None,
            writing: false,
            doomed: VecDeque::new(),
            sweeping: false,
            failed: false,
        })
    }

    /// Takes an append; [`LogFiles::drive`] begins it.
    pub fn append(&mut self, ticket: u64, records: Vec<Record>) {
        self.waiting.push((ticket, records));
    }

    /// Nothing before this index is needed any more.
    pub fn compact(&mut self, first_index: u64) {
        self.doomed.extend(self.writer.compact(first_index));
    }

    /// Whether appends are still on their way to disk.
    #[must_use]
    pub fn busy(&self) -> bool {
        !self.failed && (self.covers.is_some() || !self.waiting.is_empty())
    }

    /// The operation of [`Token::Log`], [`Token::Segment`] or [`Token::Sweep`] has ended.
    /// [`LogFiles::drive`] goes on.
    ///
    /// # Errors
    /// Final.
    pub fn completed(&mut self, token: Token, outcome: Outcome) -> Result<(), LogFailure> {
        let result = self.ended(token, outcome);
        self.failed |= result.is_err();
        result
    }

    fn ended(&mut self, token: Token, outcome: Outcome) -> Result<(), LogFailure> {
        let Outcome::Written(result) = outcome else {
            unreachable!("the log only writes")
        };
        match token {
            Token::Log => {
                self.writing = false;
                let segment = self.open.as_ref().map_or(0, |(number, _)| *number);
                result.map_err(|e| failure(segment, "write", e))
            }
            Token::Segment => self.maker.completed(result),
            Token::Sweep => {
                self.sweeping = false;
                result.map_err(|e| failure(self.doomed[0], "remove", e))?;
                self.doomed.pop_front();
                Ok(())
            }
            other => unreachable!("{other:?} is not the log's"),
        }
    }

    /// Submits what can be begun. Returns the newest append that is durable, if that moved.
    ///
    /// # Errors
    /// Final.
    pub fn drive(&mut self, backend: &mut dyn Backend) -> Result<Option<u64>, LogFailure> {
        if self.failed {
            return Ok(None);
        }
        let result = self.go_on(backend);
        self.failed |= result.is_err();
        result
    }

    fn go_on(&mut self, backend: &mut dyn Backend) -> Result<Option<u64>, LogFailure> {
        let mut durable = None;
        while !self.writing {
            if self.steps.is_empty() {
                if let Some(ticket) = self.covers.take() {
                    self.writer.durable(ticket);
                    durable = Some(ticket);
                    // Only now: were the segment before it not durable, it would look like a gap.
                    let (segment, bytes) = self.writer.upcoming();
                    self.maker.ahead(segment, bytes);
                }
                if self.waiting.is_empty() {
                    break;
                }
                self.plan();
            } else if !self.begin_step(backend)? {
                break;
            }
        }
        self.maker.drive(backend)?;
        self.sweep(backend)?;
        Ok(durable)
    }

    /// Makes a batch of everything that waits.
    fn plan(&mut self) {
        let mut steps = Vec::new();
        for (ticket, records) in self.waiting.drain(..) {
            assert!(
                self.covers.is_none_or(|c| c < ticket),
                "appends come in ticket order"
            );
            self.writer.append(ticket, &records, &mut steps);
            self.covers = Some(ticket);
        }
        self.steps = steps.into();
    }

    /// `false` if the step has to wait for its segment.
    fn begin_step(&mut self, backend: &mut dyn Backend) -> Result<bool, LogFailure> {
        match self.steps.front().expect("there is one") {
            &Step::Create { segment, bytes } => {
                let Some(file) = self.maker.take(segment, bytes) else {
                    return Ok(false);
                };
                self.open = Some((segment, file));
                self.steps.pop_front();
            }
            &Step::Write { segment, .. } | &Step::Sync { segment } => {
                let file = self.segment_file(segment)?;
                let (offset, data, flush) = join(&mut self.steps, segment);
                backend.submit(
                    Token::Log,
                    Op::Write {
                        file,
                        offset,
                        data,
                        flush,
                    },
                );
                self.writing = true;
            }
        }
        Ok(true)
    }

    fn segment_file(&mut self, segment: u64) -> Result<Rc<File>, LogFailure> {
        if let Some((number, file)) = &self.open
            && *number == segment
        {
            return Ok(file.clone());
        }
        let file = OpenOptions::new()
            .write(true)
            .open(self.dir.join(file_name(segment)));
        let file = Rc::new(file.map_err(|e| failure(segment, "open", e))?);
        self.open = Some((segment, file.clone()));
        Ok(file)
    }

    /// Removes segments one at a time, each durably before the next: a hole in their numbers would
    /// be damage at the next start.
    fn sweep(&mut self, backend: &mut dyn Backend) -> Result<(), LogFailure> {
        let Some(&segment) = self.doomed.front() else {
            return Ok(());
        };
        if !self.sweeping {
            let removed = fs::remove_file(self.dir.join(file_name(segment)));
            removed.map_err(|e| failure(segment, "remove", e))?;
            self.sweeping = true;
            let file = self.dir_file.clone();
            backend.submit(
                Token::Sweep,
                Op::Write {
                    file,
                    offset: 0,
                    data: Vec::new(),
                    flush: Flush::Whole,
                },
            );
        }
        Ok(())
    }
}

/// Takes the steps at the front that go on writing where the first one began: one write, and one
/// sync at its end that stands for all between.
fn join(steps: &mut VecDeque<Step>, segment: u64) -> (u64, Vec<Bytes>, Flush) {
    let (mut start, mut end, mut data, mut flush) = (0, None, Vec::new(), Flush::No);
    while let Some(step) = steps.front() {
        match step {
            Step::Write {
                segment: s, offset, ..
            } if *s == segment && end.is_none_or(|end| end == *offset) => {}
            Step::Sync { segment: s } if *s == segment => {}
            _ => break,
        }
        match steps.pop_front().expect("just seen") {
            Step::Write { offset, bytes, .. } => {
                if end.is_none() {
                    start = offset;
                }
                end = Some(offset + bytes.len() as u64);
                data.push(Bytes::from(bytes));
                flush = Flush::No;
            }
            Step::Sync { .. } => flush = Flush::Content,
            Step::Create { .. } => unreachable!("it ends the run"),
        }
    }
    (start, data, flush)
}

fn failure(segment: u64, doing: &'static str, error: io::Error) -> LogFailure {
    LogFailure {
        file: file_name(segment),
        doing,
        error,
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
