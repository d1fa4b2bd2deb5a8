//! Messages read back while the log goes on.

use super::*;
use crate::gcs::egcs::log::{Checkpoint, Entry};
use crate::gcs::egcs::recover;
use crate::gcs::egcs::wire::encode_batch;
use crate::gcs::egcs::writer::Writer;
use crate::ids::{Gid, Incarnation};

const GROUP: GroupId = GroupId(7);
const ME: MemberId = MemberId(1);

fn message(number: u64) -> MessageId {
    MessageId {
        member: ME,
        incarnation: Incarnation(1),
        number,
    }
}

/// An entry with one message, whose payload is its number.
fn entry(index: u64, term: u64, number: u64) -> Record {
    let payload = Bytes::from(vec![number as u8]);
    Record::Entry(Entry {
        index,
        term,
        kind: EntryKind::Batch,
        data: encode_batch(&[(message(number), payload)]).into(),
    })
}

struct Log {
    disk: FileDisk,
    writer: Writer,
    ticket: u64,
}

impl Log {
    fn append(&mut self, records: &[Record]) {
        let mut steps = Vec::new();
        self.ticket += 1;
        self.writer.append(self.ticket, records, &mut steps);
        recover::perform(&self.disk, &steps).unwrap();
        self.writer.durable(self.ticket);
    }
}

#[test]
fn entries_superseded_in_the_segment_that_is_remembered_are_read_anew() {
    let dir = std::env::temp_dir().join(format!("pgr-reread-{}", std::process::id()));
    let disk = FileDisk::create_dir(&dir).unwrap();
    let birth = Checkpoint::birth(ME, "127.0.0.1:1", Gid(0), Bytes::new());
    recover::create(&disk, GROUP, ME, birth).unwrap();
    let (_, writer) = recover::recover(&disk, GROUP, ME).unwrap();
    let mut log = Log {
        disk,
        writer,
        ticket: 0,
    };
    log.append(&[entry(2, 1, 1), entry(3, 1, 2), entry(4, 1, 3)]);
    let mut reread = Reread::new(&dir, GROUP, ME);
    assert_eq!(reread.read(2, message(1)).unwrap()[..], [1]);
    // Only entry 2 was committed; the next leader had others.
    log.append(&[entry(3, 2, 4), entry(4, 2, 2), entry(5, 2, 3)]);
    assert_eq!(reread.read(3, message(4)).unwrap()[..], [4]);
    assert_eq!(reread.read(4, message(2)).unwrap()[..], [2]);
    assert_eq!(reread.read(5, message(3)).unwrap()[..], [3]);
    assert!(reread.read(5, message(9)).is_err());
    assert!(reread.read(6, message(3)).is_err());
    std::fs::remove_dir_all(&dir).unwrap();
}
