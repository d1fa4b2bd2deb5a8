//! Segment files: how records lie in them, and how to tell a torn tail from damage.
//!
//! ```text
//! header (64)  magic, version, crc | group, member | segment, first index | first record, size
//! record       crc, length | salt | number | synced, kind | payload, padded to 8
//! ```
//!
//! The salt is a hash of group, member and segment number, so bytes that lay in the file before
//! never parse. Records are numbered through the whole log. `synced` says how much of the segment
//! was durable when the record was written: bytes that don't parse, followed by a record that
//! claims them durable, are damage; followed by nothing that does, they are the torn end of writes
//! that nobody was told about.

use super::log::Record;
use crate::ids::{GroupId, MemberId};
use crate::limits::{CHECKPOINT_BYTES_MAX, LOG_RECORD_BYTES_MAX};
use bytes::Bytes;

/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 32;
const MAGIC: u64 = 0x314c_5047_5250_4745; // "EGPRGPL1"
const VERSION: u32 = 1;
const PAYLOAD_BYTES_MAX: usize = CHECKPOINT_BYTES_MAX + LOG_RECORD_BYTES_MAX;

/// Name of a segment's file.
pub fn file_name(segment: u64) -> String {
    format!("{segment:016x}.seg")
}

/// The segment whose file has this name.
pub fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != 16 || !digits.bytes().all(lower) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// Marks the records of one segment of one member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salt(u64);

impl Salt {
    /// The salt of a segment.
    pub fn new(group: GroupId, member: MemberId, segment: u64) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("postgres-r group log segment salt v1");
        hash.update(&group.0.to_le_bytes());
        hash.update(&member.0.to_le_bytes());
        hash.update(&segment.to_le_bytes());
        Self(u64_at(hash.finalize().as_bytes(), 0))
    }
}

/// The header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Whose log.
    pub group: GroupId,
    /// Whose copy of it.
    pub member: MemberId,
    /// Number of the segment; rises by one.
    pub segment: u64,
    /// No entry in the segment has a lower index.
    pub first_index: u64,
    /// Number of its first record.
    pub first_record: u64,
    /// Bytes of the file.
    pub size: u64,
}

impl Header {
    /// Appends the header's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for v in [
            self.group.0,
            u64::from(self.member.0),
            self.segment,
            self.first_index,
            self.first_record,
            self.size,
        ] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[start + 16..]);
        out[start + 12..start + 16].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header; `None` if the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        if u64_at(bytes, 0) != MAGIC
            || u32_at(bytes, 8) != VERSION
            || u32_at(bytes, 12) != crc32fast::hash(&bytes[16..])
        {
            return None;
        }
        Some(Self {
            group: GroupId(u64_at(bytes, 16)),
            member: MemberId(u16::try_from(u64_at(bytes, 24)).ok()?),
            segment: u64_at(bytes, 32),
            first_index: u64_at(bytes, 40),
            first_record: u64_at(bytes, 48),
            size: u64_at(bytes, 56),
        })
    }
}

/// Bytes that a record with such a payload takes.
pub const fn record_bytes(payload: usize) -> usize {
    RECORD_HEADER_BYTES + payload.next_multiple_of(8)
}

/// Appends a record as it lies in a segment.
pub fn encode_record(record: &Record, salt: Salt, number: u64, synced: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    record.encode(out);
    let payload = out.len() - start - RECORD_HEADER_BYTES;
    assert!(payload <= PAYLOAD_BYTES_MAX, "a record beyond its bound");
    out.resize(start + record_bytes(payload), 0);
    let h = &mut out[start..];
    h[4..8].copy_from_slice(&(payload as u32).to_le_bytes());
    h[8..16].copy_from_slice(&salt.0.to_le_bytes());
    h[16..24].copy_from_slice(&number.to_le_bytes());
    // A segment is smaller than 4 GiB.
    h[24..28].copy_from_slice(&(synced as u32).to_le_bytes());
    h[28] = record.kind();
    let crc = crc32fast::hash(&h[4..]);
    h[..4].copy_from_slice(&crc.to_le_bytes());
}

/// A record as found in a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Byte of the segment where it begins.
    pub offset: u64,
    /// Bytes it takes there.
    pub len: u64,
    /// Its number.
    pub number: u64,
    /// What it says.
    pub record: Record,
}

/// How the records of a segment end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Nothing of this segment's is after this offset.
    Clean(u64),
    /// From this offset on lie remains of writes that were never durable.
    Torn(u64),
    /// What lies at this offset was durable and is no record now.
    Damaged(u64),
}

/// Walks over the records of a segment (its header was checked).
pub struct Scan {
    bytes: Bytes,
    salt: Salt,
    at: usize,
    number: u64,
    synced: u64,
}

impl Scan {
    /// From the first record on.
    pub fn new(header: &Header, bytes: Bytes) -> Self {
        Self {
            bytes,
            salt: Salt::new(header.group, header.member, header.segment),
            at: HEADER_BYTES,
            number: header.first_record,
            synced: 0,
        }
    }

    /// Whether a record of this segment says that its beginning had been durable before.
    pub fn claims_durable(header: &Header, bytes: &Bytes) -> bool {
        let salt = Salt::new(header.group, header.member, header.segment);
        (HEADER_BYTES..bytes.len().saturating_sub(RECORD_HEADER_BYTES - 1))
            .step_by(8)
            .filter(|&i| u64_at(bytes, i + 8) == salt.0)
            .any(|i| frame(bytes, i, salt).is_some_and(|(_, synced)| synced > 0))
    }

    /// Number that the next record has.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Up to here the segment was durable, say the records that were walked over.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// How it ended; to be asked when the iterator gave out.
    pub fn end(&self) -> End {
        let at = self.at as u64;
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let mut torn = rest.iter().take(RECORD_HEADER_BYTES).any(|&b| b != 0);
        // Salts are compared at every place where a record can begin.
        for i in (0..rest.len().saturating_sub(RECORD_HEADER_BYTES - 1)).step_by(8) {
            if u64_at(rest, i + 8) == self.salt.0
                && let Some((_, synced)) = frame(rest, i, self.salt)
            {
                torn = true;
                if u64::from(synced) > at {
                    return End::Damaged(at);
                }
            }
        }
        if torn { End::Torn(at) } else { End::Clean(at) }
    }
}

impl Iterator for Scan {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let (payload, synced) = frame(&self.bytes, self.at, self.salt)?;
        let number = u64_at(&self.bytes, self.at + 16);
        if number != self.number {
            return None;
        }
        let kind = self.bytes[self.at + 28];
        let start = self.at + RECORD_HEADER_BYTES;
        let record = Record::decode(kind, self.bytes.slice(start..start + payload)).ok()?;
        let len = record_bytes(payload);
        let found = Found {
            offset: self.at as u64,
            len: len as u64,
            number,
            record,
        };
        self.at += len;
        self.number += 1;
        self.synced = self.synced.max(u64::from(synced));
        Some(found)
    }
}

/// Payload length and `synced` of a record that begins at `at` and has its salt and CRC right.
fn frame(bytes: &[u8], at: usize, salt: Salt) -> Option<(usize, u32)> {
    let h = bytes.get(at..at.checked_add(RECORD_HEADER_BYTES)?)?;
    if u64_at(h, 8) != salt.0 {
        return None;
    }
    let payload = u32_at(h, 4) as usize;
    if payload > PAYLOAD_BYTES_MAX {
        return None;
    }
    let whole = bytes.get(at..at + record_bytes(payload))?;
    if u32_at(h, 0) != crc32fast::hash(&whole[4..]) {
        return None;
    }
    Some((payload, u32_at(h, 24)))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
