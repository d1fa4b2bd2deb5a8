//! `pg_group.state`: which group a data directory belongs to, and how far its data is.
//!
//! The file travels in base backups. It is written when the group is formed and at every
//! checkpoint, always as a whole: a temporary file, synced, renamed over the old one, and the
//! directory synced. Invariant: its GID is at least that of every commit record before the redo
//! point of the newest completed checkpoint, and no higher than what the flushed WAL holds; so the
//! highest of it and of the commit records that redo meets is exactly the GID of the data.

use crate::ids::{Gid, GroupId, Oid};
use crate::limits::GROUP_NAME_BYTES_MAX;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Name of the file in the data directory.
pub const NAME: &str = "pg_group.state";
const TEMPORARY: &str = "pg_group.state.tmp";

const MAGIC: u32 = u32::from_le_bytes(*b"PgrS");
const VERSION: u16 = 1;
const NAME_AT: usize = 32;
const CRC_AT: usize = NAME_AT + 64;
const BYTES: usize = CRC_AT + 4;

const _: () = assert!(GROUP_NAME_BYTES_MAX < CRC_AT - NAME_AT);

/// Content of the file.
///
/// Bytes, little-endian: magic u32, version u16, length of the name u16, group u64, gid u64,
/// database u32, zero u32, name (64, zero padded), CRC-32 of all before it u32.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The group's random name.
    pub group: GroupId,
    /// How a person calls it.
    pub name: String,
    /// The replicated database.
    pub database: Oid,
    /// GID of the data when the file was written.
    pub gid: Gid,
}

/// Why the file can't be used.
#[derive(Debug)]
pub enum Error {
    /// The operating system's word.
    Io(io::Error),
    /// It is not what was written: length, magic or checksum.
    Damaged,
    /// Written by another version of the software.
    Version(u16),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(e) => e.fmt(f),
            Error::Damaged => f.write_str("the file is damaged"),
            Error::Version(v) => {
                write!(f, "the file has version {v}, this server writes {VERSION}")
            }
        }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Error::Io(e)
    }
}

impl State {
    fn encode(&self) -> [u8; BYTES] {
        assert!(self.name.len() <= GROUP_NAME_BYTES_MAX);
        let mut b = [0; BYTES];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4..6].copy_from_slice(&VERSION.to_le_bytes());
        b[6..8].copy_from_slice(&(self.name.len() as u16).to_le_bytes());
        b[8..16].copy_from_slice(&self.group.0.to_le_bytes());
        b[16..24].copy_from_slice(&self.gid.0.to_le_bytes());
        b[24..28].copy_from_slice(&self.database.0.to_le_bytes());
        b[NAME_AT..NAME_AT + self.name.len()].copy_from_slice(self.name.as_bytes());
        let crc = crc32fast::hash(&b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    fn decode(bytes: &[u8]) -> Result<State, Error> {
        let b: &[u8; BYTES] = bytes.try_into().map_err(|_| Error::Damaged)?;
        let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC || u32_at(CRC_AT) != crc32fast::hash(&b[..CRC_AT]) {
            return Err(Error::Damaged);
        }
        if u16_at(4) != VERSION {
            return Err(Error::Version(u16_at(4)));
        }
        let len = usize::from(u16_at(6));
        let name = b
            .get(NAME_AT..NAME_AT + len)
            .filter(|_| len <= GROUP_NAME_BYTES_MAX);
        let name = name
            .and_then(|n| std::str::from_utf8(n).ok())
            .ok_or(Error::Damaged)?;
        Ok(State {
            group: GroupId(u64_at(8)),
            name: name.to_owned(),
            database: Oid(u32_at(24)),
            gid: Gid(u64_at(16)),
        })
    }

    /// Reads the file of a data directory; `None` if there is none.
    pub fn read(data_dir: &Path) -> Result<Option<State>, Error> {
        match fs::read(data_dir.join(NAME)) {
            Ok(bytes) => State::decode(&bytes).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Replaces the file. Only one process may do that at a time.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        let temporary = data_dir.join(TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, data_dir.join(NAME))?;
        File::open(data_dir)?.sync_all()
    }
}

/// Is there a file in this data directory?
#[must_use]
pub fn exists(data_dir: &Path) -> bool {
    data_dir.join(NAME).exists()
}

/// Removes the file: the data directory belongs to no group any more.
pub fn remove(data_dir: &Path) -> io::Result<()> {
    match fs::remove_file(data_dir.join(NAME)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            group: GroupId(0x1122_3344_5566_7788),
            name: "shop".into(),
            database: Oid(16384),
            gid: Gid(77),
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = state().encode();
        assert_eq!(bytes.len(), 100);
        assert_eq!(&bytes[..8], b"PgrS\x01\0\x04\0");
        assert_eq!(
            &bytes[8..16],
            &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
        );
        assert_eq!(
            &bytes[16..32],
            &[77, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&bytes[32..37], b"shop\0");
        assert_eq!(State::decode(&bytes).unwrap(), state());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = state().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(State::decode(&bad).is_err(), "bit {bit}");
        }
        assert!(State::decode(&good[..99]).is_err());
        assert!(State::decode(&[]).is_err());
    }

    #[test]
    fn write_replaces_and_remove_is_idempotent() {
        let dir = std::env::temp_dir().join(format!("pgr-state-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert!(State::read(&dir).unwrap().is_none());
        state().write(&dir).unwrap();
        State {
            gid: Gid(78),
            ..state()
        }
        .write(&dir)
        .unwrap();
        assert_eq!(State::read(&dir).unwrap().unwrap().gid, Gid(78));
        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!exists(&dir));
        fs::remove_dir_all(&dir).unwrap();
    }
}
