//! Decoding.
#![forbid(unsafe_code)]
use super::key::{KEY_BYTES, Key, LockMode};
use crate::ids::{Gid, GroupId, Incarnation, MemberId};

/// Can't be replayed.
pub const FLAG_LOCAL_EFFECTS: u16 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 96;

/// What stands in front.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub flags: u16,
    pub group: GroupId,
    pub origin: MemberId,
    pub incarnation: Incarnation,
    pub snapshot_gid: Gid,
    pub keys_count: u32,
}

/// A whole one.
#[derive(Debug)]
pub struct Changeset<'a> {
    header: Header,
    bytes: &'a [u8],
}

impl<'a> Changeset<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.len() < HEADER_BYTES {
            return Err("short".into());
        }
        let u = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let header = Header {
            flags: u(6) as u16,
            group: GroupId(u(8)),
            origin: MemberId(u(16) as u16),
            incarnation: Incarnation(u(20) as u32),
            snapshot_gid: Gid(u(32)),
            keys_count: u(72) as u32,
        };
        if bytes.len() < HEADER_BYTES + header.keys_count as usize * KEY_BYTES {
            return Err("short".into());
        }
        Ok(Changeset { header, bytes })
    }
    pub fn header(&self) -> &Header {
        &self.header
    }
    pub fn keys(&self) -> impl Iterator<Item = Key> + 'a {
        let n = self.header.keys_count as usize;
        self.bytes[HEADER_BYTES..HEADER_BYTES + n * KEY_BYTES]
            .chunks_exact(KEY_BYTES)
            .map(|c| Key {
                hash: u64::from_le_bytes(c[0..8].try_into().unwrap()),
                since: Gid(u64::from_le_bytes(c[8..16].try_into().unwrap())),
                relation: u32::from_le_bytes(c[16..20].try_into().unwrap()),
                mode: LockMode::ALL[(c[20] & 3) as usize],
                flags: c[21],
            })
    }
}
