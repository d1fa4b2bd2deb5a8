//! The log on real files, on both backends.

use super::*;
use crate::coordinator::io::backend::{Choice, Completion, open};
use crate::gcs::egcs::disk::FileDisk;
use crate::gcs::egcs::log::{Checkpoint, Entry, EntryKind};
use crate::gcs::egcs::recover;
use crate::ids::{Gid, GroupId, MemberId};
use crate::limits::LOG_SEGMENT_BYTES;
use std::time::Duration;

const GROUP: GroupId = GroupId(7);
const ME: MemberId = MemberId(1);

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A fresh log of a group of one, on each backend there is.
fn each(name: &str, body: fn(&Dir, LogFiles, &mut Counting)) {
    for choice in [Choice::Poll, Choice::Uring] {
        let Ok((inner, _)) = open(choice) else {
            eprintln!("io_uring can't be had here: only poll was tested");
            continue;
        };
        let dir = format!("pgr-log-{}-{name}-{choice:?}", std::process::id());
        let dir = Dir(std::env::temp_dir().join(dir));
        let disk = FileDisk::create_dir(&dir.0).unwrap();
        let birth = Checkpoint::birth(ME, "127.0.0.1:1", Gid(0), Bytes::new());
        recover::create(&disk, GROUP, ME, birth).unwrap();
        let log = reopen(&dir).1;
        body(
            &dir,
            log,
            &mut Counting {
                inner,
                log_writes: 0,
                fail_log_write: 0,
            },
        );
    }
}

fn reopen(dir: &Dir) -> (recover::Recovered, LogFiles) {
    let (recovered, writer) = recover::recover(&FileDisk::open(&dir.0), GROUP, ME).unwrap();
    (recovered, LogFiles::open(&dir.0, writer).unwrap())
}

/// Counts the log's writes, and fails one of them if asked to.
struct Counting {
    inner: Box<dyn Backend>,
    log_writes: u32,
    fail_log_write: u32,
}

impl Backend for Counting {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn nonblocking_sockets(&self) -> bool {
        self.inner.nonblocking_sockets()
    }
    fn submit(&mut self, token: Token, op: Op) {
        self.log_writes += u32::from(token == Token::Log);
        if let Op::Write { file, flush, .. } = &op
            && file.metadata().unwrap().is_dir()
        {
            assert_eq!(*flush, Flush::Whole, "names are more than content");
        }
        self.inner.submit(token, op);
    }
    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
    fn wait(&mut self, timeout: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        self.inner.wait(timeout, out)?;
        for completion in out {
            if completion.token == Token::Log && self.log_writes == self.fail_log_write {
                let error = io::Error::from_raw_os_error(libc::EIO);
                completion.outcome = Outcome::Written(Err(error));
            }
        }
        Ok(())
    }
}

/// Runs until an append is durable (or, with 0, until nothing is under way any more).
fn settle(log: &mut LogFiles, backend: &mut Counting, ticket: u64) -> Result<Vec<u64>, LogFailure> {
    let mut reports = Vec::new();
    let mut done = Vec::new();
    for _ in 0..10_000 {
        reports.extend(log.drive(backend)?);
        if reports.last().is_some_and(|t| *t >= ticket) {
            return Ok(reports);
        }
        backend.wait(Duration::from_millis(100), &mut done).unwrap();
        for c in done.drain(..) {
            log.completed(c.token, c.outcome)?;
        }
    }
    panic!("append {ticket} never became durable");
}

fn entry(index: u64, bytes: usize) -> Record {
    let data = Bytes::from(vec![(index % 251) as u8; bytes]);
    Record::Entry(Entry {
        index,
        term: 1,
        kind: EntryKind::Batch,
        data,
    })
}

fn names(dir: &Dir) -> Vec<String> {
    use crate::gcs::egcs::disk::Disk;
    FileDisk::open(&dir.0).list().unwrap()
}

#[test]
fn appends_that_wait_share_one_sync() {
    each("group", |dir, mut log, backend| {
        log.append(1, vec![entry(2, 100)]);
        assert_eq!(log.drive(backend).unwrap(), None);
        for i in 0..20 {
            log.append(2 + i, vec![entry(3 + i, 100)]);
            assert_eq!(log.drive(backend).unwrap(), None);
        }
        assert_eq!(backend.log_writes, 1);
        assert_eq!(settle(&mut log, backend, 21).unwrap(), [1, 21]);
        assert_eq!(backend.log_writes, 2);
        assert!(!log.busy());
        assert_eq!(reopen(dir).0.last_index, 22);
    });
}

#[test]
fn an_append_without_records_is_durable_with_those_before_it() {
    each("empty", |_, mut log, backend| {
        log.append(1, vec![entry(2, 10)]);
        log.append(2, vec![]);
        assert_eq!(settle(&mut log, backend, 2).unwrap(), [2]);
        log.append(3, vec![]);
        assert_eq!(settle(&mut log, backend, 3).unwrap(), [3]);
        assert_eq!(backend.log_writes, 1);
    });
}

#[test]
fn segments_are_made_ahead_and_large_records_get_their_own() {
    each("segments", |dir, mut log, backend| {
        let sizes = [
            3 << 20,
            5 << 20,
            5 << 20,
            5 << 20,
            40 << 20,
            9 << 20,
            9 << 20,
            1,
        ];
        for (i, bytes) in sizes.into_iter().enumerate() {
            let i = i as u64;
            log.append(1 + i, vec![entry(2 + i, bytes)]);
            settle(&mut log, backend, 1 + i).unwrap();
        }
        drop(log);
        let (recovered, _) = reopen(dir);
        assert_eq!(recovered.last_index, 9);
        for e in &recovered.tail {
            assert!(
                e.data.iter().all(|b| u64::from(*b) == e.index % 251),
                "entry {} differs",
                e.index
            );
        }
        assert!(names(dir).len() >= 5);
    });
}

#[test]
fn the_next_segment_is_full_of_zeros_before_it_is_needed() {
    each("ahead", |dir, mut log, backend| {
        log.append(1, vec![entry(2, 10)]);
        settle(&mut log, backend, 1).unwrap();
        let next = dir.0.join(file_name(2));
        let mut done = Vec::new();
        for _ in 0..200 {
            log.drive(backend).unwrap();
            backend.wait(Duration::from_millis(20), &mut done).unwrap();
            if done.is_empty() && log.maker.take(2, LOG_SEGMENT_BYTES as u64).is_some() {
                let content = fs::read(&next).unwrap();
                assert_eq!(content.len(), LOG_SEGMENT_BYTES);
                assert!(content.iter().all(|b| *b == 0));
                // A server that stops here starts again.
                assert_eq!(reopen(dir).0.last_index, 2);
                return;
            }
            for c in done.drain(..) {
                log.completed(c.token, c.outcome).unwrap();
            }
        }
        panic!("the next segment was never made");
    });
}

#[test]
fn what_is_not_needed_any_more_goes_oldest_first() {
    each("compact", |dir, mut log, backend| {
        for i in 0..60 {
            log.append(1 + i, vec![entry(2 + i, 1 << 20)]);
            settle(&mut log, backend, 1 + i).unwrap();
        }
        let before = names(dir);
        let checkpoint = Checkpoint {
            index: 60,
            term: 1,
            ..Checkpoint::birth(ME, "127.0.0.1:1", Gid(0), Bytes::new())
        };
        log.append(61, vec![Record::Checkpoint(checkpoint)]);
        settle(&mut log, backend, 61).unwrap();
        log.compact(61);
        let mut ticket = 61;
        while !log.doomed.is_empty() {
            ticket += 1;
            log.append(ticket, vec![]);
            settle(&mut log, backend, ticket).unwrap();
            let mut done = Vec::new();
            backend.wait(Duration::from_millis(10), &mut done).unwrap();
            for c in done {
                log.completed(c.token, c.outcome).unwrap();
            }
        }
        let after = names(dir);
        assert!(after.len() + 2 < before.len(), "{before:?} {after:?}");
        assert!(!after.contains(&file_name(1)));
        let (recovered, _) = reopen(dir);
        assert_eq!((recovered.last_index, recovered.marks[0].index), (61, 60));
    });
}

#[test]
fn a_failed_sync_is_final() {
    each("fail", |_, mut log, backend| {
        log.append(1, vec![entry(2, 10)]);
        settle(&mut log, backend, 1).unwrap();
        backend.fail_log_write = 2;
        log.append(2, vec![entry(3, 10)]);
        let failure = settle(&mut log, backend, 2).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "could not write group log file \"0000000000000001.seg\": Input/output error (os error 5)"
        );
        log.append(3, vec![entry(4, 10)]);
        assert_eq!(log.drive(backend).unwrap(), None, "nothing is durable now");
        assert!(!log.busy());
        assert_eq!(backend.log_writes, 2, "and nothing vouches for it");
    });
}
