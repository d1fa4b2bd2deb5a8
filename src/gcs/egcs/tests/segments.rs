//! Damage to segments: what was never durable is cut, what was durable is refused by name.

use crate::gcs::egcs::disk::{Disk, FileDisk};
use crate::gcs::egcs::log::{Checkpoint, Entry, EntryKind, HardState, Record, inspect};
use crate::gcs::egcs::mem_disk::MemDisk;
use crate::gcs::egcs::reader::{DiskReader, LogReader};
use crate::gcs::egcs::recover::{self, LogError, Recovered};
use crate::gcs::egcs::segment::{self, HEADER_BYTES};
use crate::gcs::egcs::writer::{Step, Writer};
use crate::ids::{Gid, GroupId, MemberId};
use bytes::Bytes;

const GROUP: GroupId = GroupId(77);
const ME: MemberId = MemberId(3);

fn entry(index: u64, term: u64, bytes: usize) -> Record {
    Record::Entry(Entry {
        index,
        term,
        kind: EntryKind::Batch,
        data: vec![index as u8; bytes].into(),
    })
}

fn hard_state(term: u64, commit: u64) -> Record {
    Record::HardState(HardState {
        term,
        vote: 3,
        commit,
    })
}

fn mark(index: u64, term: u64) -> Record {
    Record::Checkpoint(Checkpoint {
        index,
        term,
        gid: Gid(index),
        ..Checkpoint::birth(ME, "here:1", Gid(0), Bytes::new())
    })
}

struct Log {
    disk: MemDisk,
    writer: Writer,
    ticket: u64,
}

impl Log {
    fn new() -> Self {
        let disk = MemDisk::new();
        let birth = Checkpoint::birth(ME, "here:1", Gid(0), Bytes::from_static(b"born"));
        recover::create(&disk, GROUP, ME, birth).unwrap();
        Self::open(disk).unwrap().1
    }

    fn open(disk: MemDisk) -> Result<(Recovered, Self), LogError> {
        let (recovered, writer) = recover::recover(&disk, GROUP, ME)?;
        let ticket = 0;
        Ok((
            recovered,
            Self {
                disk,
                writer,
                ticket,
            },
        ))
    }

    fn plan(&mut self, records: &[Record]) -> Vec<Step> {
        let mut steps = Vec::new();
        self.ticket += 1;
        self.writer.append(self.ticket, records, &mut steps);
        steps
    }

    fn append(&mut self, records: &[Record]) {
        let steps = self.plan(records);
        recover::perform(&self.disk, &steps).unwrap();
        self.writer.durable(self.ticket);
    }

    fn reopen(self) -> (Recovered, Self) {
        Self::open(self.disk).unwrap()
    }
}

fn last_segment(disk: &MemDisk) -> String {
    disk.list().unwrap().pop().unwrap()
}

fn damage(disk: &MemDisk) -> (String, u64, String) {
    match recover::recover(disk, GROUP, ME) {
        Err(LogError::Damaged { file, offset, what }) => (file, offset, what),
        other => panic!("not refused: {:?}", other.map(|o| o.0)),
    }
}

#[test]
fn log_comes_back_as_written() {
    let mut log = Log::new();
    log.append(&[hard_state(2, 1), entry(2, 2, 10), entry(3, 2, 0)]);
    log.append(&[entry(4, 2, 1000), mark(3, 2)]);
    // A leader of term 5 had another entry 4.
    log.append(&[hard_state(5, 3), entry(4, 5, 7), entry(5, 5, 8)]);
    let (recovered, mut log) = log.reopen();
    assert_eq!(recovered.last_index, 5);
    assert_eq!(recovered.terms, [(1, 1), (2, 2), (4, 5)]);
    let tail: Vec<_> = recovered.tail.iter().map(|e| (e.index, e.term)).collect();
    assert_eq!(tail, [(2, 2), (3, 2), (4, 5), (5, 5)]);
    let marks: Vec<_> = recovered.marks.iter().map(|m| m.index).collect();
    assert_eq!(marks, [1, 3]);
    assert_eq!(recovered.hard_state.term, 5);
    log.append(&[entry(6, 5, 1)]);
    assert_eq!(log.reopen().0.last_index, 6);
}

#[test]
fn torn_tail_is_cut_at_every_byte() {
    let mut log = Log::new();
    log.append(&[hard_state(2, 1), entry(2, 2, 100)]);
    let steps = log.plan(&[entry(3, 2, 40), hard_state(3, 2), entry(4, 3, 30)]);
    let [Step::Write { offset, bytes, .. }, Step::Sync { .. }] = &steps[..] else {
        panic!("{steps:?}");
    };
    let name = last_segment(&log.disk);
    for cut in 0..=bytes.len() {
        // Its beginning, or its end, reached the disk.
        for (at, part) in [(0, &bytes[..cut]), (cut, &bytes[cut..])] {
            let disk = log.disk.snapshot();
            disk.write_at(&name, offset + at as u64, part).unwrap();
            let (recovered, mut again) = Log::open(disk).unwrap();
            let whole = part.len() == bytes.len();
            let last = recovered.last_index;
            assert!(last == 4 || !whole, "cut {cut}: what is whole is kept");
            assert!((2..=4).contains(&last), "cut {cut}");
            // What comes next never brings remains of the tail back.
            again.append(&[hard_state(9, 2), entry(last + 1, 9, 40)]);
            let (recovered, _) = again.reopen();
            assert_eq!(recovered.last_index, last + 1, "cut {cut}");
            assert_eq!(recovered.tail.back().unwrap().term, 9);
        }
    }
}

#[test]
fn every_flipped_bit_in_durable_bytes_is_refused() {
    let mut log = Log::new();
    for n in 2..6 {
        log.append(&[hard_state(2, n - 1), entry(n, 2, 20)]);
    }
    let (end, _) = log.writer.fill();
    log.append(&[entry(6, 2, 20)]);
    let name = last_segment(&log.disk);
    for at in 0..end {
        let disk = log.disk.snapshot();
        let byte = disk.read(&name, at, 1).unwrap()[0];
        disk.write_at(&name, at, &[byte ^ (1 << (at % 8))]).unwrap();
        let (file, offset, what) = damage(&disk);
        assert_eq!(file, name);
        assert!(offset <= at, "byte {at}: {what} at {offset}");
        assert!(at < HEADER_BYTES as u64 || offset >= HEADER_BYTES as u64);
    }
    // After the last record that vouches for others, loss looks like a torn tail.
    let disk = log.disk.snapshot();
    disk.write_at(&name, end + 40, &[0xff]).unwrap();
    let (recovered, _) = Log::open(disk).unwrap();
    assert_eq!(recovered.last_index, 5);
}

#[test]
fn remains_of_an_earlier_use_of_the_file_never_parse() {
    let mut log = Log::new();
    log.append(&[entry(2, 2, 50)]);
    let first = last_segment(&log.disk);
    let bytes = log.disk.whole(&first).unwrap();
    for n in 3..40 {
        log.append(&[entry(n, 2, 1 << 20)]);
    }
    let last = last_segment(&log.disk);
    assert_ne!(first, last);
    let (end, _) = log.writer.fill();
    let disk = log.disk.snapshot();
    disk.write_at(&last, end, &bytes[HEADER_BYTES..4096])
        .unwrap();
    assert_eq!(Log::open(disk).unwrap().0.last_index, 39);
}

fn many_segments() -> Log {
    let mut log = Log::new();
    for n in 2..60 {
        log.append(&[hard_state(2, n - 1), entry(n, 2, 1 << 20)]);
        if n % 10 == 0 {
            log.append(&[mark(n, 2)]);
        }
    }
    assert!(log.disk.list().unwrap().len() >= 4);
    log
}

#[test]
fn missing_segments_are_named() {
    let log = many_segments();
    let names = log.disk.list().unwrap();
    let disk = log.disk.snapshot();
    disk.remove(&names[1]).unwrap();
    let (file, _, what) = damage(&disk);
    assert_eq!(
        (file, what.as_str()),
        (names[1].clone(), "the segment is missing")
    );
    let disk = MemDisk::new();
    assert_eq!(damage(&disk).2, "the group log is missing");
    let disk = log.disk.snapshot();
    for name in &names[..3] {
        disk.remove(name).unwrap();
    }
    // The checkpoints that the rest goes on from may be there: 40 and 50 are.
    let recovered = Log::open(disk).unwrap().0;
    assert!(recovered.marks[0].index >= 30 && recovered.last_index == 59);
}

#[test]
fn entries_without_a_checkpoint_before_them_are_refused() {
    let mut log = Log::new();
    for n in 2..40 {
        log.append(&[entry(n, 2, 1 << 20)]);
    }
    let first = log.disk.list().unwrap().remove(0);
    log.disk.remove(&first).unwrap();
    assert!(damage(&log.disk).2.contains("no checkpoint"));
}

#[test]
fn torn_segment_that_is_not_the_last_is_refused() {
    let log = many_segments();
    let names = log.disk.list().unwrap();
    let (_, scan) = recover::check(&log.disk, GROUP, ME, &mut |_, _| ()).unwrap();
    let segment::End::Clean(end) = scan[1].end else {
        panic!("{:?}", scan[1]);
    };
    log.disk.write_at(&names[1], end - 50, &[0; 50]).unwrap();
    assert_eq!(damage(&log.disk).0, names[1]);
}

#[test]
fn cut_file_and_foreign_file_are_refused() {
    let log = Log::new();
    let name = last_segment(&log.disk);
    let bytes = log.disk.whole(&name).unwrap();
    let disk = MemDisk::new();
    let half = bytes.len() / 2;
    disk.create(&name, half as u64).unwrap();
    disk.write_at(&name, 0, &bytes[..half]).unwrap();
    assert_eq!(damage(&disk).2, "the file was cut");
    match recover::recover(&log.disk, GroupId(78), ME) {
        Err(LogError::Damaged { what, .. }) => assert!(what.contains("belongs to")),
        other => panic!("{:?}", other.map(|o| o.0)),
    }
}

#[test]
fn segment_that_was_only_prepared_is_no_damage() {
    let log = Log::new();
    let (next, bytes) = log.writer.upcoming();
    log.disk.create(&segment::file_name(next), bytes).unwrap();
    let (recovered, mut log) = log.reopen();
    assert_eq!(recovered.last_index, 1);
    for n in 2..40 {
        log.append(&[entry(n, 2, 1 << 20)]);
    }
    assert_eq!(log.reopen().0.last_index, 39);
}

#[test]
fn compaction_keeps_what_is_needed_and_the_rest_recovers() {
    let mut log = many_segments();
    let before = log.disk.list().unwrap().len();
    for n in log.writer.compact(51) {
        log.disk.remove(&segment::file_name(n)).unwrap();
    }
    assert!(log.disk.list().unwrap().len() < before);
    let (recovered, mut log) = log.reopen();
    assert!(recovered.marks.iter().any(|m| m.index == 50));
    assert_eq!(recovered.last_index, 59);
    log.append(&[entry(60, 2, 10)]);
    let reader = DiskReader::new(log.disk.clone(), GROUP, ME);
    for n in 51..=60 {
        assert_eq!(reader.entries(n, 2, 61).unwrap()[0].index, n);
    }
    assert!(reader.entries(60, 3, 61).is_err(), "of another term");
    let mark = *recovered.marks.iter().find(|m| m.index == 50).unwrap();
    assert_eq!(reader.checkpoint(mark).unwrap().index, 50);
}

#[test]
fn superseding_below_a_segment_is_found_again() {
    let mut log = Log::new();
    for n in 2..40 {
        log.append(&[entry(n, 2, 1 << 20)]);
    }
    log.append(&[hard_state(4, 1), entry(5, 4, 10), entry(6, 4, 10)]);
    let reader = DiskReader::new(log.disk.clone(), GROUP, ME);
    assert_eq!(reader.entries(4, 2, 7).unwrap()[0].term, 2);
    assert_eq!(reader.entries(5, 4, 7).unwrap().len(), 2);
    let (recovered, _) = log.reopen();
    assert_eq!(recovered.last_index, 6);
    assert_eq!(recovered.terms, [(1, 1), (2, 2), (5, 4)]);
}

/// A checkpoint goes ahead of where a segment begins, and a new leader supersedes from below there.
#[test]
fn superseding_below_the_oldest_segment_that_is_kept_is_no_damage() {
    for checkpoint in [99, 100, 120, 149, 150] {
        let mut log = Log::new();
        log.writer.set_segment_bytes(32 << 10);
        for n in 2..100 {
            log.append(&[entry(n, 1, 100)]);
        }
        log.append(&[entry(100, 1, 23 << 10), mark(94, 1)]);
        for n in 101..=150 {
            log.append(&[entry(n, 1, 100)]);
        }
        assert_eq!(log.disk.list().unwrap().len(), 3);
        log.append(&[hard_state(2, 94), entry(95, 2, 100)]);
        for n in 96..=150 {
            log.append(&[entry(n, 2, 100)]);
        }
        assert_eq!(log.disk.list().unwrap().len(), 4);
        log.append(&[mark(checkpoint, 2)]);
        for n in log.writer.compact(checkpoint + 1) {
            log.disk.remove(&segment::file_name(n)).unwrap();
        }
        let (recovered, mut log) = log.reopen();
        assert_eq!(recovered.last_index, 150);
        assert!(recovered.marks.iter().any(|m| m.index == checkpoint));
        let tail: Vec<_> = recovered.tail.iter().map(|e| (e.index, e.term)).collect();
        let base = recovered.marks[0].index;
        assert_eq!(tail, (base + 1..=150).map(|n| (n, 2)).collect::<Vec<_>>());
        log.append(&[entry(151, 2, 10)]);
        assert_eq!(log.reopen().0.last_index, 151);
    }
    // What a checkpoint contains is committed, whatever was removed.
    let mut log = Log::new();
    log.append(&[entry(2, 2, 10), entry(3, 2, 10), mark(3, 2), entry(3, 4, 9)]);
    assert!(damage(&log.disk).2.contains("supersedes a committed one"));
}

#[test]
fn what_a_failed_sync_left_in_memory_only_is_written_again() {
    for bytes in [40, 3000, 20 << 20] {
        let mut log = Log::new();
        log.append(&[hard_state(2, 1), entry(2, 2, 100)]);
        // The largest begins a segment, of which nothing is on the medium.
        let steps = log.plan(&[entry(3, 2, bytes)]);
        log.disk.fail_sync();
        recover::perform(&log.disk, &steps).unwrap_err();
        let (recovered, log) = log.reopen();
        log.disk.crash(&mut || 1);
        let (again, _) = log.reopen();
        assert_eq!(again.last_index, recovered.last_index, "{bytes} bytes");
    }
}

#[test]
fn remains_that_a_failed_sync_left_on_the_medium_only_are_overwritten() {
    let mut log = Log::new();
    log.append(&[hard_state(2, 1), entry(2, 2, 100)]);
    let steps = log.plan(&[entry(3, 2, 40), entry(4, 2, 40)]);
    let [Step::Write { offset, bytes, .. }, Step::Sync { .. }] = &steps[..] else {
        panic!("{steps:?}");
    };
    // Only the second record reached the medium. The first start does not get rid of it.
    let (name, half) = (last_segment(&log.disk), bytes.len() / 2);
    log.disk
        .write_at(&name, offset + half as u64, &bytes[half..])
        .unwrap();
    log.disk.sync(&name).unwrap();
    log.disk.fail_sync();
    recover::recover(&log.disk, GROUP, ME).unwrap_err();
    let (recovered, mut log) = log.reopen();
    assert_eq!(recovered.last_index, 2);
    log.append(&[entry(3, 5, 40)]);
    log.disk.crash(&mut || 1);
    assert_eq!(log.reopen().0.last_index, 3);
}

#[test]
fn record_larger_than_a_segment_gets_its_own() {
    let mut log = Log::new();
    log.append(&[entry(2, 2, 40 << 20), entry(3, 2, 5)]);
    log.append(&[entry(4, 2, 5)]);
    let (recovered, _) = log.reopen();
    assert_eq!(recovered.last_index, 4);
    assert_eq!(recovered.tail[0].data.len(), 40 << 20);
}

#[test]
fn log_is_inspected_offline() {
    let dir = std::env::temp_dir().join(format!("pgr-inspect-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let disk = FileDisk::open(&dir);
    let birth = Checkpoint::birth(ME, "here:1", Gid(0), Bytes::new());
    recover::create(&disk, GROUP, ME, birth).unwrap();
    let (_, mut writer) = recover::recover(&disk, GROUP, ME).unwrap();
    let mut steps = Vec::new();
    writer.append(1, &[hard_state(2, 1), entry(2, 2, 0)], &mut steps);
    recover::perform(&disk, &steps).unwrap();
    let mut text = Vec::new();
    inspect(&dir, true, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for part in [
        "restored checkpoint: entry 1",
        "3=\"here:1\"",
        "entry 2 term 2: 0 messages",
        "group 000000000000004d, member 3: 4 records in 1 segments",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let name = disk.list().unwrap().remove(0);
    disk.write_at(&name, 70, &[1]).unwrap();
    let refused = inspect(&dir, false, &mut Vec::new()).unwrap_err();
    assert!(
        refused.to_string().contains("0000000000000001.seg"),
        "{refused}"
    );
    std::fs::remove_dir_all(&dir).unwrap();
}
