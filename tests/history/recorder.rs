//! The history: one JSON line when a transaction is about to begin, one when its end is known.
//!
//! The lines are in the order of real time: an `invoke` is written before anything is sent, and a
//! completion after the last answer has come, both under one lock.

use crate::workload::Step;
use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// How a transaction ended.
#[derive(Debug)]
pub enum Outcome {
    /// With what its steps read; nothing for an append.
    Committed(Vec<Option<Vec<u64>>>),
    /// It certainly has no effects; why.
    Aborted(String),
    /// It may have committed, or may do so yet; why that is not known.
    Unknown(String),
}

/// How many transactions ended how.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub committed: usize,
    pub aborted: usize,
    pub unknown: usize,
}

impl Tally {
    pub fn all(&self) -> usize {
        self.committed + self.aborted + self.unknown
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions, {} committed ({} %), {} aborted, {} unknown",
            self.all(),
            self.committed,
            100 * self.committed / self.all().max(1),
            self.aborted,
            self.unknown
        )
    }
}

pub struct Recorder {
    start: Instant,
    written: Mutex<Written>,
}

struct Written {
    file: std::io::BufWriter<std::fs::File>,
    lines: u64,
    processes: u64,
    tally: Tally,
    acknowledged: BTreeSet<(u64, u64)>,
}

/// A session, by its number in the history, and the member that it is on.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub number: u64,
    pub member: usize,
}

impl Recorder {
    pub fn create(path: &Path) -> Recorder {
        let file = std::fs::File::create(path).expect("file of the history");
        Recorder {
            start: Instant::now(),
            written: Mutex::new(Written {
                file: std::io::BufWriter::new(file),
                lines: 0,
                processes: 0,
                tally: Tally::default(),
                acknowledged: BTreeSet::new(),
            }),
        }
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        self.written.lock().expect("no recorder panics")
    }

    /// A session that begins on a member.
    pub fn process(&self, member: usize) -> Process {
        let mut written = self.written();
        written.processes += 1;
        Process {
            number: written.processes,
            member,
        }
    }

    /// Before a transaction is sent.
    pub fn invoke(&self, process: Process, steps: &[Step]) {
        self.written()
            .line(self.start, process, "invoke", &value(steps, &[]), None);
    }

    /// When its end is known, or is known to stay unknown.
    pub fn complete(&self, process: Process, steps: &[Step], outcome: &Outcome) {
        let mut written = self.written();
        let (kind, reads, error) = match outcome {
            Outcome::Committed(reads) => {
                written.tally.committed += 1;
                let appended = steps.iter().filter_map(|step| match *step {
                    Step::Append { key, element, .. } => Some((key, element)),
                    Step::Read { .. } => None,
                });
                written.acknowledged.extend(appended);
                ("ok", reads.as_slice(), None)
            }
            Outcome::Aborted(error) => {
                written.tally.aborted += 1;
                ("fail", &[][..], Some(error))
            }
            Outcome::Unknown(error) => {
                written.tally.unknown += 1;
                ("info", &[][..], Some(error))
            }
        };
        let value = value(steps, reads);
        written.line(self.start, process, kind, &value, error);
    }

    /// Something that is done to a member; the judge skips it, people want to see it.
    pub fn fault(&self, what: &str, member: usize) {
        let mut written = self.written();
        let (index, time) = (written.lines, self.start.elapsed().as_nanos());
        let line = format!(
            r#"{{"index":{index},"time":{time},"type":"info","process":"faults","f":"{what}","value":{member}}}"#
        );
        written.put(&line);
    }

    pub fn tally(&self) -> Tally {
        self.written().tally.clone()
    }

    /// Every (key, element) whose COMMIT was answered.
    pub fn acknowledged(&self) -> BTreeSet<(u64, u64)> {
        self.written().acknowledged.clone()
    }

    /// The history is whole.
    pub fn finish(&self) -> Tally {
        let mut written = self.written();
        written.file.flush().expect("write the history");
        written.tally.clone()
    }
}

impl Written {
    fn line(
        &mut self,
        start: Instant,
        process: Process,
        kind: &str,
        value: &str,
        error: Option<&String>,
    ) {
        let mut line = format!(
            r#"{{"index":{},"time":{},"type":"{kind}","process":{},"member":{},"f":"txn","value":{value}"#,
            self.lines,
            start.elapsed().as_nanos(),
            process.number,
            process.member,
        );
        if let Some(error) = error {
            let _ = write!(line, r#","error":"{error}""#);
        }
        line.push('}');
        self.put(&line);
    }

    fn put(&mut self, line: &str) {
        writeln!(self.file, "{line}").expect("write the history");
        self.lines += 1;
    }
}

/// `[["append",1,2],["r",3,[4,5]]]`; a read whose result is not known, or does not count, is null.
fn value(steps: &[Step], reads: &[Option<Vec<u64>>]) -> String {
    let mut parts = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        parts.push(match step {
            Step::Append { key, element, .. } => format!(r#"["append",{key},{element}]"#),
            Step::Read { key, .. } => match reads.get(i) {
                Some(Some(list)) => format!(r#"["r",{key},{list:?}]"#),
                _ => format!(r#"["r",{key},null]"#),
            },
        });
    }
    format!("[{}]", parts.join(","))
}
