//! Reads a changeset, which may come from another member: every length is checked, nothing is
//! copied, no memory is taken for what a length claims.

use super::encode::{
    ENTRY_BATCH, ENTRY_DELETE, ENTRY_FRAGMENTS, ENTRY_INSERT, ENTRY_LARGE_OBJECT, ENTRY_LEAVE,
    ENTRY_NOTIFY, ENTRY_RELATION, ENTRY_SEQUENCE, ENTRY_SOURCE, ENTRY_TRUNCATE, ENTRY_UPDATE, GONE,
    HEADER_BYTES, SEQUENCE_SET, SEQUENCE_TAKE, WITH_ACL, WITHOUT_ACL,
};
use super::fragment::{COUNTED_BYTES, FRAGMENTS_OF_BYTES, FragmentList, FragmentsOf};
use super::key::Keys;
use super::tuple::{Bitmap, TupleBytes, bitmap_bytes};
use crate::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use crate::limits::{CHANGESET_BYTES_MAX, CHANGESET_KEYS_MAX};
use std::ffi::CStr;
use std::fmt;

/// "PGRC", little endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PGRC");
/// Of the format.
pub const VERSION: u16 = 2;
/// The transaction has effects that its changeset does not carry (temporary tables, cursors WITH
/// HOLD, LISTEN), so that no helper can stand in for its worker.
pub const FLAG_LOCAL_EFFECTS: u16 = 1;
/// Its session waits until all members show it: each reports as soon as it does.
pub const FLAG_AWAITED: u16 = 2;
/// Its member's reservation was for it, and ends with it.
pub const FLAG_RESERVED: u16 = 4;
/// No transaction commits it: helpers do, on its own member too.
pub const FLAG_DETACHED: u16 = 8;

/// [`Header::isolation`] of a SERIALIZABLE transaction.
pub const ISOLATION_SERIALIZABLE: u8 = 3;

/// What stands in front of every changeset: 72 bytes, little endian, no padding.
///
/// magic u32, version u16, flags u16, group u64, origin u16, isolation u8, 0 u8, incarnation u32,
/// xid u64, snapshot GID u64, commit time i64, database u32, counts of keys and entries u32, bytes of
/// keys and entries u32, CRC32 u32 over everything with this field 0.
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
    /// Keys in the writeset.
    pub keys_count: u32,
    /// Entries.
    pub entries_count: u32,
    /// Bytes of the writeset.
    pub keys_bytes: u32,
    /// Bytes of the entries.
    pub entries_bytes: u32,
}

impl Header {
    /// Reads one; its checksum, which covers what follows too, is not looked at.
    pub fn decode(b: &[u8; HEADER_BYTES]) -> Result<Header, DecodeError> {
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err(DecodeError::Magic);
        }
        if u16_at(4) != VERSION {
            return Err(DecodeError::Version(u16_at(4)));
        }
        if b[19] != 0 {
            return Err(DecodeError::Reserved);
        }
        Ok(Header {
            flags: u16_at(6),
            group: GroupId(u64_at(8)),
            origin: MemberId(u16_at(16)),
            isolation: b[18],
            incarnation: Incarnation(u32_at(20)),
            xid: u64_at(24),
            snapshot_gid: Gid(u64_at(32)),
            commit_ts: u64_at(40).cast_signed(),
            database: Oid(u32_at(48)),
            keys_count: u32_at(52),
            entries_count: u32_at(56),
            keys_bytes: u32_at(60),
            entries_bytes: u32_at(64),
        })
    }
}

const _: () = assert!(4 + 2 + 2 + 8 + 2 + 1 + 1 + 4 + 8 + 8 + 8 + 4 + 4 * 4 + 4 == HEADER_BYTES);

/// These bytes are no changeset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// Shorter than its own lengths say, or longer.
    Length,
    /// Longer than [`CHANGESET_BYTES_MAX`], or of more keys than [`CHANGESET_KEYS_MAX`].
    TooBig,
    /// Not ours.
    Magic,
    /// Of another version of the format.
    Version(u16),
    /// The checksum does not match.
    Checksum,
    /// Bytes of the header that are kept for later are not 0.
    Reserved,
    /// A key with a mode or flag that there is not.
    Key,
    /// An entry of an unknown kind, at this byte of the entries.
    Kind(u8, usize),
    /// An entry that is cut off or contradicts itself, at this byte of the entries.
    Entry(usize),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => write!(f, "the changeset's length contradicts its header"),
            Self::TooBig => write!(
                f,
                "the changeset is larger than {CHANGESET_BYTES_MAX} bytes or {CHANGESET_KEYS_MAX} keys"
            ),
            Self::Magic => write!(f, "these bytes are no changeset"),
            Self::Version(v) => write!(
                f,
                "the changeset has format version {v}, this server knows {VERSION}"
            ),
            Self::Checksum => write!(f, "the changeset's checksum does not match"),
            Self::Reserved => write!(f, "the changeset has a header with unknown fields"),
            Self::Key => write!(f, "the changeset has a key of an unknown kind"),
            Self::Kind(kind, at) => write!(
                f,
                "the changeset has an entry of unknown kind {kind} at byte {at}"
            ),
            Self::Entry(at) => write!(f, "the changeset has a broken entry at byte {at}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A changeset whose lengths and checksum are right.
#[derive(Clone, Copy, Debug)]
pub struct Changeset<'a> {
    header: Header,
    keys: &'a [u8],
    entries: &'a [u8],
    fragments: Option<FragmentList<'a>>,
    source: Option<Source<'a>>,
    only_rows: bool,
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<'a> {
    /// What follows belongs to this relation.
    Relation {
        /// Its OID, the same on all members.
        oid: Oid,
        /// Of its row layout.
        fingerprint: u64,
        /// Its attributes, dropped ones included.
        natts: u16,
    },
    /// A new row.
    Insert(TupleBytes<'a>),
    /// A changed row.
    Update {
        /// The replica identity of the row before.
        identity: TupleBytes<'a>,
        /// Which columns changed.
        changed: Bitmap<'a>,
        /// Their values; the others are null here.
        new: TupleBytes<'a>,
    },
    /// A row that is gone: its replica identity.
    Delete(TupleBytes<'a>),
    /// Many new rows.
    Batch(Rows<'a>),
    /// A row that has gone to another partition: its replica identity. Who waits for it must not
    /// take it for deleted.
    Leave(TupleBytes<'a>),
    /// Relations that were truncated, all at once.
    Truncate(Oids<'a>),
    /// For those who listen.
    Notify {
        /// Not empty.
        channel: &'a CStr,
        /// What they are told.
        payload: &'a CStr,
    },
    /// A large object that is new, or has another owner or other privileges.
    LargeObject {
        /// Its OID, the same on all members.
        oid: Oid,
        /// Name of its owner.
        owner: &'a CStr,
        /// Items of its ACL as texts, one after the other, each with its NUL.
        acl: Option<&'a [u8]>,
    },
    /// A large object that is gone.
    LargeObjectGone(Oid),
    /// A sequence moves on.
    Sequence {
        /// Its OID, the same on all members.
        oid: Oid,
        /// How.
        change: SequenceChange,
    },
    /// Where the transaction came from.
    Source(Source<'a>),
    /// Entries that went ahead and belong in front of all others; nothing follows it.
    Fragments(FragmentList<'a>),
}

/// Where a transaction came from that another system committed first: a subscription's publisher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source<'a> {
    /// Of the replication origin (`pg_replication_origin`), whose number each server chooses. Not empty.
    pub name: &'a CStr,
    /// How far everything of the source is here once this is committed; 0 says nothing.
    pub lsn: u64,
    /// `TimestampTz` of its commit there.
    pub timestamp: i64,
}

/// What happens to a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SequenceChange {
    /// The origin takes its next values. Which these are follows from where the sequence is when
    /// the change has its turn.
    Take {
        /// How many, at most; not 0.
        want: u32,
        /// The process slot of the session that waits for them, at the origin.
        slot: u32,
        /// Names its wait.
        ticket: u64,
    },
    /// It is set to a value, by setval or by a restart.
    Set {
        /// `last_value`.
        last: i64,
        /// `is_called`.
        called: bool,
    },
}

impl<'a> Changeset<'a> {
    /// Checks the header, all lengths and the checksum, then each key and entry.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > CHANGESET_BYTES_MAX {
            return Err(DecodeError::TooBig);
        }
        let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(DecodeError::Length)?;
        let header = Header::decode(head)?;
        let rest = &bytes[HEADER_BYTES..];
        let keys_bytes = header.keys_bytes as usize;
        if rest.len() as u64 != u64::from(header.keys_bytes) + u64::from(header.entries_bytes) {
            return Err(DecodeError::Length);
        }
        if header.keys_count as usize > CHANGESET_KEYS_MAX {
            return Err(DecodeError::TooBig);
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[..HEADER_BYTES - 4]);
        crc.update(&[0; 4]);
        crc.update(rest);
        if crc.finalize().to_le_bytes() != head[HEADER_BYTES - 4..] {
            return Err(DecodeError::Checksum);
        }
        let (keys, entries) = rest.split_at(keys_bytes);
        let mut changeset = Changeset {
            header,
            keys,
            entries,
            fragments: None,
            source: None,
            only_rows: true,
        };
        let mut all = changeset.keys();
        let count = all.by_ref().count();
        if !all.rest().is_empty() {
            return Err(DecodeError::Key);
        }
        if count != header.keys_count as usize {
            return Err(DecodeError::Length);
        }
        let mut count = 0u32;
        for entry in changeset.entries() {
            if changeset.fragments.is_some() {
                return Err(DecodeError::Length);
            }
            match entry? {
                Entry::Fragments(list) => changeset.fragments = Some(list),
                Entry::Source(_) if changeset.source.is_some() => return Err(DecodeError::Length),
                Entry::Source(source) => changeset.source = Some(source),
                Entry::Relation { .. }
                | Entry::Insert(_)
                | Entry::Batch(_)
                | Entry::Update { .. }
                | Entry::Delete(_)
                | Entry::Leave(_) => {}
                _ => changeset.only_rows = false,
            }
            count += 1;
        }
        if count == header.entries_count {
            Ok(changeset)
        } else {
            Err(DecodeError::Length)
        }
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The writeset.
    #[must_use]
    pub fn keys(&self) -> Keys<'a> {
        Keys::new(self.keys)
    }

    /// The entries, in the order of execution. None is an error in a changeset that was parsed.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries::new(self.entries)
    }

    /// The entries that went ahead, if any did.
    #[must_use]
    pub fn fragments(&self) -> Option<FragmentList<'a>> {
        self.fragments
    }

    /// Whether it is all here, and about rows of relations only.
    #[must_use]
    pub fn has_only_rows(&self) -> bool {
        self.only_rows && self.fragments.is_none()
    }

    /// Where the transaction came from, if not from a client.
    #[must_use]
    pub fn source(&self) -> Option<Source<'a>> {
        self.source
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn tuple(&mut self, natts_max: u16) -> Option<TupleBytes<'a>> {
        let natts = u16::try_from(self.varint()?).ok()?;
        if natts > natts_max {
            return None;
        }
        let length = self.varint()?;
        let bitmap = if length & 1 == 1 {
            Some(self.take(bitmap_bytes(natts))?)
        } else {
            None
        };
        let data = self.take(usize::try_from(length >> 1).ok()?)?;
        Some(TupleBytes {
            natts,
            bitmap,
            data,
        })
    }

    /// `natts_max`: attributes of the current relation, none before the first one.
    fn entry(&mut self, kind: u8, natts_max: Option<u16>) -> Option<Entry<'a>> {
        match kind {
            ENTRY_RELATION => return self.relation(),
            ENTRY_NOTIFY => return self.notify(),
            ENTRY_LARGE_OBJECT => return self.large_object(),
            ENTRY_TRUNCATE => return self.truncate(),
            ENTRY_SEQUENCE => return self.sequence(),
            ENTRY_FRAGMENTS => return self.fragments(),
            ENTRY_SOURCE => return self.source(),
            _ => {}
        }
        let natts_max = natts_max?;
        Some(match kind {
            ENTRY_INSERT => Entry::Insert(self.tuple(natts_max)?),
            ENTRY_UPDATE => {
                let identity = self.tuple(natts_max)?;
                let new = self.tuple(natts_max)?;
                Entry::Update {
                    identity,
                    changed: Bitmap(self.take(bitmap_bytes(new.natts))?),
                    new,
                }
            }
            ENTRY_DELETE => Entry::Delete(self.tuple(natts_max)?),
            ENTRY_BATCH => {
                let count = self.varint()?;
                let start = self.at;
                // Each takes two bytes at least: a false count ends with the bytes.
                for _ in 0..count {
                    self.tuple(natts_max)?;
                }
                Entry::Batch(Rows {
                    cursor: Cursor {
                        bytes: &self.bytes[..self.at],
                        at: start,
                    },
                    left: count,
                })
            }
            ENTRY_LEAVE => Entry::Leave(self.tuple(natts_max)?),
            _ => return None,
        })
    }

    fn truncate(&mut self) -> Option<Entry<'a>> {
        let count = usize::try_from(self.varint()?).ok()?;
        let bytes = self.take(count.checked_mul(4)?)?;
        (count > 0).then_some(Entry::Truncate(Oids(bytes)))
    }

    fn notify(&mut self) -> Option<Entry<'a>> {
        let (channel, payload) = (self.text()?, self.text()?);
        (!channel.is_empty()).then_some(Entry::Notify { channel, payload })
    }

    fn large_object(&mut self) -> Option<Entry<'a>> {
        let oid = Oid(u32::from_le_bytes(self.take(4)?.try_into().ok()?));
        let state = self.take(1)?[0];
        if state == GONE {
            return Some(Entry::LargeObjectGone(oid));
        }
        let owner = self.text()?;
        let acl = match state {
            WITHOUT_ACL => None,
            WITH_ACL => {
                let length = usize::try_from(self.varint()?).ok()?;
                let acl = self.take(length)?;
                if acl.last().is_some_and(|b| *b != 0) {
                    return None;
                }
                Some(acl)
            }
            _ => return None,
        };
        Some(Entry::LargeObject { oid, owner, acl })
    }

    /// Up to a NUL.
    fn text(&mut self) -> Option<&'a CStr> {
        let text = CStr::from_bytes_until_nul(&self.bytes[self.at..]).ok()?;
        self.at += text.count_bytes() + 1;
        Some(text)
    }

    fn sequence(&mut self) -> Option<Entry<'a>> {
        let oid = Oid(u32::from_le_bytes(self.array()?));
        let change = match self.take(1)?[0] {
            SEQUENCE_TAKE => SequenceChange::Take {
                want: u32::from_le_bytes(self.array()?),
                slot: u32::from_le_bytes(self.array()?),
                ticket: u64::from_le_bytes(self.array()?),
            },
            SEQUENCE_SET => SequenceChange::Set {
                last: i64::from_le_bytes(self.array()?),
                called: match self.take(1)?[0] {
                    byte @ 0..=1 => byte == 1,
                    _ => return None,
                },
            },
            _ => return None,
        };
        let valid = !matches!(change, SequenceChange::Take { want: 0, .. });
        valid.then_some(Entry::Sequence { oid, change })
    }

    fn source(&mut self) -> Option<Entry<'a>> {
        let source = Source {
            name: self.text()?,
            lsn: u64::from_le_bytes(self.array()?),
            timestamp: i64::from_le_bytes(self.array()?),
        };
        (!source.name.is_empty()).then_some(Entry::Source(source))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn fragments(&mut self) -> Option<Entry<'a>> {
        let of = FragmentsOf::decode(self.take(FRAGMENTS_OF_BYTES)?.try_into().ok()?);
        let count = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        let counted = self.take((count as usize).checked_mul(COUNTED_BYTES)?)?;
        Some(Entry::Fragments(FragmentList { of, counted }))
    }

    fn relation(&mut self) -> Option<Entry<'a>> {
        let b: [u8; 14] = self.take(14)?.try_into().ok()?;
        let [o0, o1, o2, o3, fingerprint @ .., n0, n1] = b;
        Some(Entry::Relation {
            oid: Oid(u32::from_le_bytes([o0, o1, o2, o3])),
            fingerprint: u64::from_le_bytes(fingerprint),
            natts: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// Iterator over entries; after an error it ends.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    cursor: Cursor<'a>,
    /// Attributes of the relation of the rows that follow.
    natts_max: Option<u16>,
    failed: bool,
}

impl<'a> Entries<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Entries<'a> {
        Entries {
            cursor: Cursor { bytes, at: 0 },
            natts_max: None,
            failed: false,
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.cursor.at;
        if self.failed || at == self.cursor.bytes.len() {
            return None;
        }
        let kind = self.cursor.take(1)?[0];
        let entry = self.cursor.entry(kind, self.natts_max);
        if let Some(Entry::Relation { natts, .. }) = entry {
            self.natts_max = Some(natts);
        }
        self.failed = entry.is_none();
        let error = if matches!(kind, ENTRY_RELATION..=ENTRY_SEQUENCE | ENTRY_NOTIFY..=ENTRY_SOURCE)
        {
            DecodeError::Entry(at)
        } else {
            DecodeError::Kind(kind, at)
        };
        Some(entry.ok_or(error))
    }
}

/// OIDs of relations, four bytes each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Oids<'a>(&'a [u8]);

impl<'a> Oids<'a> {
    /// In their order.
    pub fn iter(self) -> impl Iterator<Item = Oid> + use<'a> {
        let (oids, _) = self.0.as_chunks::<4>();
        oids.iter().map(|oid| Oid(u32::from_le_bytes(*oid)))
    }
}

/// The rows of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rows<'a> {
    cursor: Cursor<'a>,
    left: u64,
}

impl<'a> Iterator for Rows<'a> {
    type Item = TupleBytes<'a>;

    fn next(&mut self) -> Option<TupleBytes<'a>> {
        self.left = self.left.checked_sub(1)?;
        self.cursor.tuple(u16::MAX)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.left as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Rows<'_> {}
