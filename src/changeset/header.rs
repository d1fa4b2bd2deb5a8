//! What stands in front of every changeset: fields that are always there, and their bytes.

use super::varint::{self, VARINT_BYTES_MAX};
use crate::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use std::ops::{Deref, Range};

/// In front of every changeset.
pub const MAGIC: u8 = 0xc5;
/// Of the format.
pub const VERSION: u8 = 4;
/// The transaction has effects that its changeset does not carry (temporary tables, cursors WITH
/// HOLD, LISTEN), so that no helper can stand in for its worker.
pub const FLAG_LOCAL_EFFECTS: u16 = 1;
/// Its session waits until all members show it: each reports as soon as it does.
pub const FLAG_AWAITED: u16 = 2;
/// Its member's reservation was for it, and ends with it.
pub const FLAG_RESERVED: u16 = 4;
/// No transaction commits it: helpers do, on its own member too.
pub const FLAG_DETACHED: u16 = 8;
/// All of them; a header with any other bit is refused.
pub const FLAGS: u16 = FLAG_LOCAL_EFFECTS | FLAG_AWAITED | FLAG_RESERVED | FLAG_DETACHED;
/// Beside them in the bytes of a header: the entries are there as blocks.
pub(super) const FLAG_BLOCKS: u16 = 16;

/// [`Header::isolation`] of a SERIALIZABLE transaction.
pub const ISOLATION_SERIALIZABLE: u8 = 3;

/// Where a changeset's checksum lies.
pub(super) const CHECKSUM: Range<usize> = 2..6;
/// Bytes of a header up to its numbers.
const HEADER_FIXED_BYTES: usize = CHECKSUM.end + 8 + 8;
/// Numbers of a header, and their most bytes: flags and isolation, origin, incarnation, xid, snapshot GID,
/// database, bytes of keys.
const HEADER_NUMBERS: usize = 7;
/// Most bytes of a header.
pub(super) const HEADER_BYTES_MAX: usize =
    HEADER_FIXED_BYTES + 3 + 3 + 5 + 2 * VARINT_BYTES_MAX + 5 + 5;

/// Bits of the isolation level, in front of the flags.
const ISOLATION_BITS: u32 = 2;

/// What stands in front of every changeset.
///
/// Magic u8, version u8, CRC32 u32 of all that follows it, group u64, commit time i64, little endian. Then
/// numbers ([`varint`]): flags and isolation (in the lowest 2 bits), origin, incarnation, xid, snapshot GID,
/// database, and the bytes of the writeset that follows; what is behind that are entries, or, if the flags say so, a
/// number and LZ4 blocks: of how many bytes of entries, nothing but rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// `FLAG_*`.
    pub flags: u16,
    /// Group for which it was made.
    pub group: GroupId,
    /// Member on which the transaction ran.
    pub origin: MemberId,
    /// That member's life.
    pub incarnation: Incarnation,
    /// `XactIsoLevel`.
    pub isolation: u8,
    /// `FullTransactionId` at the origin.
    pub xid: u64,
    /// The origin's last committed GID when the changeset was multicast.
    pub snapshot_gid: Gid,
    /// `TimestampTz`, when the commit began at the origin.
    pub commit_ts: i64,
    /// The replicated database.
    pub database: Oid,
}

impl Header {
    /// Reads what follows the checksum of one: the header, whether the entries are blocks, the bytes of keys, and
    /// what is behind it. `None` if no builder writes such a one.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Header, bool, usize, &[u8])> {
        let (group, rest) = bytes.split_first_chunk()?;
        let (commit_ts, mut rest) = rest.split_first_chunk()?;
        let mut numbers = [0; HEADER_NUMBERS];
        for number in &mut numbers {
            (*number, rest) = varint::read(rest)?;
        }
        let [
            mode,
            origin,
            incarnation,
            xid,
            snapshot,
            database,
            keys_bytes,
        ] = numbers;
        let flags = u16::try_from(mode >> ISOLATION_BITS).ok()?;
        let (flags, are_blocks) = (flags & !FLAG_BLOCKS, flags & FLAG_BLOCKS != 0);
        let header = Header {
            flags,
            group: GroupId(u64::from_le_bytes(*group)),
            origin: MemberId(origin.try_into().ok()?),
            incarnation: Incarnation(incarnation.try_into().ok()?),
            isolation: (mode & ((1 << ISOLATION_BITS) - 1)) as u8,
            xid,
            snapshot_gid: Gid(snapshot),
            commit_ts: i64::from_le_bytes(*commit_ts),
            database: Oid(database.try_into().ok()?),
        };
        let keys_bytes = usize::try_from(keys_bytes).ok()?;
        (flags & !FLAGS == 0).then_some((header, are_blocks, keys_bytes, rest))
    }

    /// As bytes, with checksum 0.
    pub(super) fn encode(&self, are_blocks: bool, keys_bytes: u32) -> HeaderBytes {
        assert_eq!(self.flags & !FLAGS, 0, "flags of a changeset");
        assert!(self.isolation <= ISOLATION_SERIALIZABLE, "XactIsoLevel");
        let mut out = HeaderBytes {
            bytes: [0; HEADER_BYTES_MAX],
            len: 0,
        };
        for bytes in [
            &[MAGIC, VERSION][..],
            &[0; 4],
            &self.group.0.to_le_bytes(),
            &self.commit_ts.to_le_bytes(),
        ] {
            out.bytes[out.len..out.len + bytes.len()].copy_from_slice(bytes);
            out.len += bytes.len();
        }
        assert_eq!(out.len, HEADER_FIXED_BYTES);
        let flags = self.flags | if are_blocks { FLAG_BLOCKS } else { 0 };
        let numbers: [u64; HEADER_NUMBERS] = [
            u64::from(flags) << ISOLATION_BITS | u64::from(self.isolation),
            self.origin.0.into(),
            self.incarnation.0.into(),
            self.xid,
            self.snapshot_gid.0,
            self.database.0.into(),
            keys_bytes.into(),
        ];
        for number in numbers {
            out.len += varint::write(number, &mut out.bytes[out.len..]);
        }
        out
    }
}

/// The bytes of a header.
#[derive(Clone, Copy, Debug)]
pub struct HeaderBytes {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl HeaderBytes {
    /// Enters the checksum of all that follows it.
    pub(super) fn seal(&mut self, crc: u32) {
        self.bytes[CHECKSUM].copy_from_slice(&crc.to_le_bytes());
    }
}

impl Deref for HeaderBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
