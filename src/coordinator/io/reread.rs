//! Delivered messages, read back from the group log: changesets that waited for a helper too long
//! to be kept in memory.

use crate::gcs::egcs::disk::{Disk, FileDisk};
use crate::gcs::egcs::log::{EntryKind, Record};
use crate::gcs::egcs::segment::{HEADER_BYTES, Header, Scan, file_name, parse_name};
use crate::gcs::egcs::wire::decode_batch;
use crate::ids::{GroupId, MemberId, MessageId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Reads one segment at a time and remembers the last one: what is asked for lies close together.
pub struct Reread {
    disk: FileDisk,
    group: GroupId,
    member: MemberId,
    /// Batches of the segment that was read last, by index.
    last: BTreeMap<u64, Bytes>,
}

impl Reread {
    /// Over the log's directory.
    pub fn new(dir: &Path, group: GroupId, member: MemberId) -> Reread {
        Reread {
            disk: FileDisk::open(dir),
            group,
            member,
            last: BTreeMap::new(),
        }
    }

    /// The payload of a message that was delivered from this entry. Blocks for the time of a read
    /// of a segment.
    ///
    /// # Errors
    /// It can't be read, or the log does not reach back to it.
    pub fn read(&mut self, index: u64, id: MessageId) -> io::Result<Bytes> {
        // The entry may have been superseded since in the segment that is remembered: then it has
        // another message, or it has the same, which is the same in both.
        if let Some(data) = self.last.get(&index)
            && let Some(payload) = find(data, id)?
        {
            return Ok(payload);
        }
        let data = self.entry(index)?;
        find(&data, id)?.ok_or_else(|| {
            io::Error::other(format!(
                "entry {index} of the group log has no message {id}"
            ))
        })
    }

    fn entry(&mut self, index: u64) -> io::Result<Bytes> {
        let headers = self.headers(index)?;
        // A delivered entry is final, and the newest of its index in the log is the one.
        for header in headers.iter().rev() {
            self.last = self.batches(header)?;
            if let Some(data) = self.last.get(&index) {
                return Ok(data.clone());
            }
        }
        let what = format!("entry {index} is not in the group log");
        Err(io::Error::new(io::ErrorKind::NotFound, what))
    }

    /// Headers of the segments that may have the entry, oldest first.
    fn headers(&self, index: u64) -> io::Result<Vec<Header>> {
        let mut headers = Vec::new();
        for name in self.disk.list()? {
            let Some(number) = parse_name(&name) else {
                continue;
            };
            // One that was made ahead has no header yet.
            if let Some(header) = Header::decode(&self.disk.read(&name, 0, HEADER_BYTES)?)
                && (header.group, header.member, header.segment)
                    == (self.group, self.member, number)
                && header.first_index <= index
            {
                headers.push(header);
            }
        }
        Ok(headers)
    }

    fn batches(&self, header: &Header) -> io::Result<BTreeMap<u64, Bytes>> {
        let len = usize::try_from(header.size).map_err(io::Error::other)?;
        let bytes = self.disk.read(&file_name(header.segment), 0, len)?;
        let mut batches = BTreeMap::new();
        for found in Scan::new(header, bytes.into()) {
            if let Record::Entry(e) = found.record {
                batches.split_off(&e.index);
                if e.kind == EntryKind::Batch {
                    batches.insert(e.index, e.data);
                }
            }
        }
        Ok(batches)
    }
}

fn find(batch: &Bytes, id: MessageId) -> io::Result<Option<Bytes>> {
    let messages = decode_batch(batch.clone()).map_err(|e| io::Error::other(e.to_string()))?;
    let found = messages.into_iter().find(|(other, _)| *other == id);
    // A copy: the slice would keep the whole segment in memory.
    Ok(found.map(|(_, payload)| Bytes::copy_from_slice(&payload)))
}

#[cfg(test)]
#[path = "reread_tests.rs"]
mod tests;
