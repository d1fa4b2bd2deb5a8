//! Makes the group log's segment files: the next one ahead of need, filled with zeros a chunk at a
//! time, so that writes into it later move no metadata; or at once, when the log stands still for
//! it (then only allocated).

use super::backend::{Backend, Flush, Op, Token};
use super::log::LogFailure;
use crate::gcs::egcs::segment::file_name;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;

/// Bytes of zeros written (and synced) at once: small enough not to hold up the log's own sync, nor to
/// make page-cache folios so large that going over their blocks shows at each later small write.
const CHUNK_BYTES: usize = 128 << 10;

/// Makes one segment at a time, with at most one operation ([`Token::Segment`]) under way.
pub struct SegmentMaker {
    dir: PathBuf,
    dir_file: Rc<File>,
    zeros: Bytes,
    state: State,
    /// An operation is under way.
    busy: bool,
    /// Number and size of the segment that the log waits for.
    needed: Option<(u64, u64)>,
}

enum State {
    Idle,
    /// It has its size; zeros are written up to `at`.
    Filling {
        made: Made,
        at: u64,
    },
    /// Its content is durable; its name is becoming so.
    Naming(Made),
    Ready(Made),
    /// Could not be made ahead. Tried again when it is needed, and only then an error.
    Failed {
        segment: u64,
    },
}

struct Made {
    segment: u64,
    bytes: u64,
    file: Rc<File>,
}

impl Made {
    fn is(&self, segment: u64, bytes: u64) -> bool {
        (self.segment, self.bytes) == (segment, bytes)
    }
}

impl SegmentMaker {
    pub fn new(dir: PathBuf, dir_file: Rc<File>) -> SegmentMaker {
        let zeros = Bytes::from(vec![0; CHUNK_BYTES]);
        SegmentMaker {
            dir,
            dir_file,
            zeros,
            state: State::Idle,
            busy: false,
            needed: None,
        }
    }

    /// Begins to make a segment that will be needed, unless that was tried already.
    pub fn ahead(&mut self, segment: u64, bytes: u64) {
        let known = match &self.state {
            State::Idle => false,
            State::Filling { made, .. } | State::Naming(made) | State::Ready(made) => {
                made.segment >= segment
            }
            State::Failed { segment: failed } => *failed >= segment,
        };
        if !known && !self.busy {
            self.state = self
                .begin(segment, bytes)
                .unwrap_or(State::Failed { segment });
        }
    }

    /// The segment, if it is ready. If not it is made now: ask again after a completion.
    pub fn take(&mut self, segment: u64, bytes: u64) -> Option<Rc<File>> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Ready(made) if made.is(segment, bytes) => {
                self.needed = None;
                Some(made.file)
            }
            other => {
                self.state = other;
                self.needed = Some((segment, bytes));
                None
            }
        }
    }

    /// Submits the next operation.
    ///
    /// # Errors
    /// A segment that the log waits for can't be made.
    pub fn drive(&mut self, backend: &mut dyn Backend) -> Result<(), LogFailure> {
        if self.busy {
            return Ok(());
        }
        if let Some((segment, bytes)) = self.needed {
            match &mut self.state {
                // What is not yet written reads as zeros, too; the log waits.
                State::Filling { made, at } if made.is(segment, bytes) => *at = bytes,
                State::Naming(made) | State::Ready(made) if made.is(segment, bytes) => {}
                _ => {
                    let begun = self.begin(segment, bytes);
                    self.state = begun.map_err(|e| failure(segment, e))?;
                    if let State::Filling { at, .. } = &mut self.state {
                        *at = bytes;
                    }
                }
            }
        }
        let op = match &self.state {
            State::Idle | State::Ready(_) | State::Failed { .. } => return Ok(()),
            State::Filling { made, at } => {
                let left = usize::try_from(made.bytes - at).unwrap_or(usize::MAX);
                let data = vec![self.zeros.slice(..left.min(CHUNK_BYTES))];
                Op::Write {
                    file: made.file.clone(),
                    offset: *at,
                    data,
                    flush: Flush::Content,
                }
            }
            State::Naming(_) => Op::Write {
                file: self.dir_file.clone(),
                offset: 0,
                data: Vec::new(),
                flush: Flush::Whole,
            },
        };
        self.busy = true;
        backend.submit(Token::Segment, op);
        Ok(())
    }

    /// The operation has ended.
    ///
    /// # Errors
    /// A segment that the log waits for can't be made.
    pub fn completed(&mut self, result: io::Result<()>) -> Result<(), LogFailure> {
        self.busy = false;
        let state = std::mem::replace(&mut self.state, State::Idle);
        self.state = match (state, result) {
            (State::Filling { made, .. } | State::Naming(made), Err(e)) => {
                let segment = made.segment;
                // What is half made is no use to anyone, and perhaps it fills the disk.
                let _ = fs::remove_file(self.dir.join(file_name(segment)));
                if self.needed.is_some_and(|(needed, _)| needed == segment) {
                    return Err(failure(segment, e));
                }
                State::Failed { segment }
            }
            (State::Filling { made, at }, Ok(())) => match at + CHUNK_BYTES as u64 {
                next if next < made.bytes => State::Filling { made, at: next },
                _ => State::Naming(made),
            },
            (State::Naming(made), Ok(())) => State::Ready(made),
            (state, _) => state,
        };
        Ok(())
    }

    /// A file of the size, reading as zeros, its space reserved where the file system can.
    fn begin(&self, segment: u64, bytes: u64) -> io::Result<State> {
        let path = self.dir.join(file_name(segment));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        let len = i64::try_from(bytes).map_err(|_| Errno::EFBIG)?;
        match fallocate(&file, FallocateFlags::empty(), 0, len) {
            Err(Errno::EOPNOTSUPP) => file.set_len(bytes)?,
            other => other?,
        }
        Ok(State::Filling {
            made: Made {
                segment,
                bytes,
                file: Rc::new(file),
            },
            at: 0,
        })
    }
}

fn failure(segment: u64, error: io::Error) -> LogFailure {
    LogFailure {
        file: file_name(segment),
        doing: "create",
        error,
    }
}
