//! Reads a changeset, which may come from another member: every length is checked, nothing is
//! copied, no memory is taken for what a length claims.

use super::compress::{self, Opened, can_be_blocks};
use super::encode::{
    ENTRY_BATCH, ENTRY_DELETE, ENTRY_FRAGMENTS, ENTRY_INSERT, ENTRY_LARGE_OBJECT, ENTRY_LEAVE,
    ENTRY_NOTIFY, ENTRY_RELATION, ENTRY_SEQUENCE, ENTRY_SOURCE, ENTRY_TRUNCATE, ENTRY_UPDATE, GONE,
    HEADER_NUMBERS, ISOLATION_BITS, SEQUENCE_SET, SEQUENCE_TAKE, TUPLE_BITMAP, TUPLE_CHANGED,
    TUPLE_SHIFT, TUPLE_SHORT, WITH_ACL, WITHOUT_ACL,
};
use super::fragment::{COUNTED_BYTES, FRAGMENTS_OF_BYTES, FragmentList, FragmentsOf};
use super::key::Keys;
use super::tuple::{Bitmap, TupleBytes, bitmap_bytes};
use super::varint;
use crate::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use crate::limits::{CHANGESET_BYTES_MAX, CHANGESET_KEYS_MAX};
use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;

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
    fn decode(bytes: &[u8]) -> Option<(Header, bool, usize, &[u8])> {
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
}

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
    Version(u8),
    /// The checksum does not match.
    Checksum,
    /// The header says what none says, or says it in another way.
    Header,
    /// The same of a key.
    Key,
    /// Compressed entries that are none, or not as many bytes as was said, or not of rows.
    Block,
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
            Self::Header => write!(f, "the changeset has a broken header"),
            Self::Key => write!(f, "the changeset has a broken key"),
            Self::Block => write!(f, "the changeset's compressed entries are broken"),
            Self::Kind(kind, at) => write!(
                f,
                "the changeset has an entry of unknown kind {kind} at byte {at}"
            ),
            Self::Entry(at) => write!(f, "the changeset has a broken entry at byte {at}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A changeset whose lengths and checksum are right. Who judges it needs no more; who applies it opens it.
#[derive(Clone, Copy, Debug)]
pub struct Changeset<'a> {
    header: Header,
    keys: &'a [u8],
    entries: Stored<'a>,
    beside: Beside<'a>,
}

/// Entries as they came.
#[derive(Clone, Copy, Debug)]
enum Stored<'a> {
    Plain(&'a [u8]),
    /// Blocks, and how many bytes they are for.
    Blocks(&'a [u8], usize),
}

/// What there is among entries beside rows.
#[derive(Clone, Copy, Debug, Default)]
struct Beside<'a> {
    fragments: Option<FragmentList<'a>>,
    source: Option<Source<'a>>,
    /// Something else.
    other: bool,
}

impl<'a> Beside<'a> {
    /// Goes through all of them.
    fn look(entries: Entries<'a>) -> Result<Beside<'a>, DecodeError> {
        let mut beside = Beside::default();
        for entry in entries {
            if beside.fragments.is_some() {
                return Err(DecodeError::Length);
            }
            match entry? {
                Entry::Fragments(list) => beside.fragments = Some(list),
                Entry::Source(_) if beside.source.is_some() => return Err(DecodeError::Length),
                Entry::Source(source) => beside.source = Some(source),
                Entry::Relation { .. }
                | Entry::Insert(_)
                | Entry::Batch(_)
                | Entry::Update { .. }
                | Entry::Delete(_)
                | Entry::Leave(_) => {}
                _ => beside.other = true,
            }
        }
        Ok(beside)
    }

    fn is_nothing(&self) -> bool {
        self.fragments.is_none() && self.source.is_none() && !self.other
    }
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
    /// Checks the header, all lengths and the checksum, then each key, and each entry unless they are compressed:
    /// these, whoever opens it does.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > CHANGESET_BYTES_MAX {
            return Err(DecodeError::TooBig);
        }
        let (crc, checked) = match bytes {
            [MAGIC, VERSION, rest @ ..] => rest.split_first_chunk().ok_or(DecodeError::Length)?,
            [MAGIC, version, ..] => return Err(DecodeError::Version(*version)),
            [] | [MAGIC] => return Err(DecodeError::Length),
            _ => return Err(DecodeError::Magic),
        };
        if crc32fast::hash(checked).to_le_bytes() != *crc {
            return Err(DecodeError::Checksum);
        }
        let (header, are_blocks, keys_bytes, rest) =
            Header::decode(checked).ok_or(DecodeError::Header)?;
        if keys_bytes > rest.len() {
            return Err(DecodeError::Length);
        }
        let (keys, entries) = rest.split_at(keys_bytes);
        if Keys::new(keys).check().ok_or(DecodeError::Key)? > CHANGESET_KEYS_MAX {
            return Err(DecodeError::TooBig);
        }
        let (entries, beside) = if are_blocks {
            let blocks = Stored::blocks(entries).ok_or(DecodeError::Block)?;
            (blocks, Beside::default())
        } else {
            let beside = Beside::look(Entries::new(entries))?;
            (Stored::Plain(entries), beside)
        };
        Ok(Changeset {
            header,
            keys,
            entries,
            beside,
        })
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

    /// The entries, in the order of execution. None is an error. Takes memory for those that were compressed.
    pub fn open(&self) -> Result<Opened<'a>, DecodeError> {
        let bytes = match self.entries {
            Stored::Plain(entries) => Cow::Borrowed(entries),
            Stored::Blocks(blocks, bytes) => {
                let entries = compress::decompress(blocks, bytes)?;
                if !Beside::look(Entries::new(&entries))?.is_nothing() {
                    return Err(DecodeError::Block);
                }
                Cow::Owned(entries)
            }
        };
        let all = 0..bytes.len();
        Ok(Opened::new(bytes, all))
    }

    /// The entries that went ahead, if any did.
    #[must_use]
    pub fn fragments(&self) -> Option<FragmentList<'a>> {
        self.beside.fragments
    }

    /// Whether it is all here, and about rows of relations only.
    #[must_use]
    pub fn has_only_rows(&self) -> bool {
        !self.beside.other && self.beside.fragments.is_none()
    }

    /// Where the transaction came from, if not from a client.
    #[must_use]
    pub fn source(&self) -> Option<Source<'a>> {
        self.beside.source
    }
}

impl<'a> Stored<'a> {
    /// The number and the blocks behind the keys.
    fn blocks(bytes: &'a [u8]) -> Option<Stored<'a>> {
        let (entries, blocks) = varint::read(bytes)?;
        let entries = usize::try_from(entries).ok()?;
        can_be_blocks(blocks.len(), entries).then_some(Stored::Blocks(blocks, entries))
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
        let bytes = &self.bytes[self.at..];
        let (value, rest) = varint::read(bytes)?;
        self.at += bytes.len() - rest.len();
        Some(value)
    }

    fn oid(&mut self) -> Option<Oid> {
        self.varint()?.try_into().ok().map(Oid)
    }

    /// A row of a relation with so many attributes.
    fn tuple(&mut self, relation_natts: u16) -> Option<TupleBytes<'a>> {
        let length = self.varint()?;
        let natts = if length & TUPLE_SHORT == 0 {
            relation_natts
        } else {
            let natts = u16::try_from(self.varint()?).ok()?;
            Some(natts).filter(|natts| *natts < relation_natts)?
        };
        let bitmap = if length & TUPLE_BITMAP == 0 {
            None
        } else {
            Some(self.take(bitmap_bytes(natts))?)
        };
        let data = self.take(usize::try_from(length >> TUPLE_SHIFT).ok()?)?;
        Some(TupleBytes {
            natts,
            bitmap,
            data,
        })
    }

    /// The new row of an update.
    fn changed_tuple(&mut self, natts: u16, changed: &'a [u8]) -> Option<TupleBytes<'a>> {
        let length = self.varint()?;
        let bitmap = match length & (TUPLE_BITMAP | TUPLE_CHANGED) {
            0 => None,
            TUPLE_CHANGED => Some(changed),
            TUPLE_BITMAP => Some(self.take(changed.len()).filter(|b| *b != changed)?),
            _ => return None,
        };
        let data = self.take(usize::try_from(length >> TUPLE_SHIFT).ok()?)?;
        Some(TupleBytes {
            natts,
            bitmap,
            data,
        })
    }

    /// `natts`: attributes of the current relation, none before the first one.
    fn entry(&mut self, kind: u8, natts: Option<u16>) -> Option<Entry<'a>> {
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
        let natts = natts?;
        Some(match kind {
            ENTRY_INSERT => Entry::Insert(self.tuple(natts)?),
            ENTRY_UPDATE => {
                let identity = self.tuple(natts)?;
                let changed = self.take(bitmap_bytes(natts))?;
                Entry::Update {
                    identity,
                    changed: Bitmap(changed),
                    new: self.changed_tuple(natts, changed)?,
                }
            }
            ENTRY_DELETE => Entry::Delete(self.tuple(natts)?),
            ENTRY_BATCH => {
                let count = self.varint()?;
                let start = self.at;
                // Each takes a byte at least: a false count ends with the bytes.
                for _ in 0..count {
                    self.tuple(natts)?;
                }
                Entry::Batch(Rows {
                    cursor: Cursor {
                        bytes: &self.bytes[start..self.at],
                        at: 0,
                    },
                    natts,
                    left: count,
                })
            }
            ENTRY_LEAVE => Entry::Leave(self.tuple(natts)?),
            _ => return None,
        })
    }

    fn truncate(&mut self) -> Option<Entry<'a>> {
        let count = self.varint()?;
        let start = self.at;
        for _ in 0..count {
            self.oid()?;
        }
        let cursor = Cursor {
            bytes: &self.bytes[start..self.at],
            at: 0,
        };
        (count > 0).then_some(Entry::Truncate(Oids(cursor)))
    }

    fn notify(&mut self) -> Option<Entry<'a>> {
        let (channel, payload) = (self.text()?, self.text()?);
        (!channel.is_empty()).then_some(Entry::Notify { channel, payload })
    }

    fn large_object(&mut self) -> Option<Entry<'a>> {
        let oid = self.oid()?;
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
        let oid = self.oid()?;
        let change = match self.take(1)?[0] {
            SEQUENCE_TAKE => SequenceChange::Take {
                want: self.varint()?.try_into().ok()?,
                slot: self.varint()?.try_into().ok()?,
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
        Some(Entry::Relation {
            oid: self.oid()?,
            fingerprint: u64::from_le_bytes(self.array()?),
            natts: self.varint()?.try_into().ok()?,
        })
    }
}

/// Iterator over entries; after an error it ends.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    cursor: Cursor<'a>,
    /// Attributes of the relation of the rows that follow.
    natts: Option<u16>,
    failed: bool,
}

impl<'a> Entries<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Entries<'a> {
        Entries {
            cursor: Cursor { bytes, at: 0 },
            natts: None,
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
        let entry = self.cursor.entry(kind, self.natts);
        if let Some(Entry::Relation { natts, .. }) = entry {
            self.natts = Some(natts);
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

/// OIDs of relations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Oids<'a>(Cursor<'a>);

impl Iterator for Oids<'_> {
    type Item = Oid;

    fn next(&mut self) -> Option<Oid> {
        self.0.oid()
    }
}

/// The rows of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rows<'a> {
    cursor: Cursor<'a>,
    natts: u16,
    left: u64,
}

impl<'a> Iterator for Rows<'a> {
    type Item = TupleBytes<'a>;

    fn next(&mut self) -> Option<TupleBytes<'a>> {
        self.left = self.left.checked_sub(1)?;
        self.cursor.tuple(self.natts)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.left as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Rows<'_> {}
