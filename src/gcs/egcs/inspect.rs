//! The group log of a server that is down, printed and checked.

use super::disk::Disk;
use super::log::{Entry, EntryKind, Record};
use super::recover::{self, LogError};
use super::segment::{self, End, HEADER_BYTES, Header};
use super::wire::{self, Change};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Checks the log in a directory, and with `print` shows each record. Changes nothing, so a torn
/// tail stays, and is mentioned. Only for servers that are down: the files are mapped.
pub fn inspect(dir: &Path, print: bool, out: &mut dyn Write) -> Result<(), LogError> {
    let disk = MappedDir {
        disk: super::disk::FileDisk::open(dir),
    };
    let output = |error| LogError::Io {
        file: "(output)".into(),
        error,
    };
    let Some(header) = first_header(&disk)? else {
        return Err(LogError::Damaged {
            file: dir.display().to_string(),
            offset: 0,
            what: "it has no segment of a group log".into(),
        });
    };
    let mut failed = None;
    let (mut records, mut entries, mut newest) = (0u64, None, None);
    let (_, segments) = recover::check(&disk, header.group, header.member, &mut |h, found| {
        records += 1;
        match &found.record {
            Record::Entry(e) => {
                let (first, _) = entries.unwrap_or((e.index, 0));
                entries = Some((first.min(e.index), e.index));
            }
            Record::Checkpoint(c) | Record::Restore(c, _) => newest = Some((c.index, c.gid)),
            Record::HardState(_) => {}
        }
        if print && failed.is_none() {
            failed = line(out, h, found).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(output(error));
    }
    let mut summary = || -> io::Result<()> {
        writeln!(
            out,
            "group {:016x}, member {}: {records} records in {} segments",
            header.group.0,
            header.member,
            segments.len()
        )?;
        if let Some((first, last)) = entries {
            writeln!(out, "entries {first} to {last}")?;
        }
        if let Some((index, gid)) = newest {
            writeln!(out, "newest checkpoint: entry {index}, GID {gid}")?;
        }
        if let Some(s) = segments.last()
            && let End::Torn(at) = s.end
        {
            let file = segment::file_name(s.header.segment);
            writeln!(
                out,
                "torn tail in \"{file}\" from byte {at} on, to be cut at the next start"
            )?;
        }
        Ok(())
    };
    summary().map_err(output)
}

fn first_header(disk: &impl Disk) -> Result<Option<Header>, LogError> {
    let io = |file: &str, error| LogError::Io {
        file: file.to_owned(),
        error,
    };
    for name in disk.list().map_err(|e| io(".", e))? {
        if segment::parse_name(&name).is_none() {
            continue;
        }
        let bytes = disk
            .read(&name, 0, HEADER_BYTES)
            .map_err(|e| io(&name, e))?;
        if let Some(header) = Header::decode(&bytes) {
            return Ok(Some(header));
        }
    }
    Ok(None)
}

fn line(out: &mut dyn Write, header: &Header, found: &segment::Found) -> io::Result<()> {
    write!(
        out,
        "{} {:>8} #{} ",
        segment::file_name(header.segment),
        found.offset,
        found.number
    )?;
    match &found.record {
        Record::Entry(e) => entry(out, e),
        Record::HardState(h) => {
            let vote = h.vote;
            writeln!(
                out,
                "state: term {}, vote {vote}, commit {}",
                h.term, h.commit
            )
        }
        Record::Checkpoint(c) | Record::Restore(c, _) => {
            let how = match found.record {
                Record::Restore(..) => "restored checkpoint",
                _ => "checkpoint",
            };
            write!(
                out,
                "{how}: entry {} term {} skip {}, message {}, GID {}, {} bytes, members",
                c.index,
                c.term,
                c.skip,
                c.seq,
                c.gid,
                c.state.len()
            )?;
            for m in &c.members {
                let kind = if m.voter { "" } else { " (learner)" };
                write!(out, " {}={:?}{kind}", m.id, m.address)?;
            }
            writeln!(out)
        }
    }
}

fn entry(out: &mut dyn Write, e: &Entry) -> io::Result<()> {
    write!(out, "entry {} term {}: ", e.index, e.term)?;
    match e.kind {
        EntryKind::Change => match Change::decode(e.data.clone()) {
            Ok(Change::Add(m)) => writeln!(out, "add member {} at {:?}", m.id, m.address),
            Ok(Change::Promote(id)) => writeln!(out, "member {id} votes"),
            Ok(Change::Remove(id)) => writeln!(out, "remove member {id}"),
            Ok(Change::Demote(id)) => writeln!(out, "member {id} votes no longer"),
            Err(e) => writeln!(out, "a membership change that {e}"),
        },
        EntryKind::Batch => match wire::decode_batch(e.data.clone()) {
            Ok(messages) => {
                write!(out, "{} messages", messages.len())?;
                for (id, payload) in messages {
                    write!(out, " {id}({})", payload.len())?;
                }
                writeln!(out)
            }
            Err(e) => writeln!(out, "a batch that {e}"),
        },
    }
}

/// A directory whose files are read through mappings.
struct MappedDir {
    disk: super::disk::FileDisk,
}

#[expect(unsafe_code, reason = "a mapped file")]
impl Disk for MappedDir {
    fn whole(&self, name: &str) -> io::Result<Bytes> {
        let file = File::open(self.disk.dir().join(name))?;
        // SAFETY: the mapping is private to this process and only read. Its memory changes only if
        // another process writes to or cuts the file, and the caller names a server that is down;
        // the records are checked by their CRCs and copied nowhere as references that outlive
        // `Bytes`, which owns the mapping.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Bytes::from_owner(map))
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.read(name, offset, len)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.disk.size(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, _: &str, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn write_at(&self, _: &str, _: u64, _: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn sync(&self, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Err(read_only())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(read_only())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(read_only())
    }
}

fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}
