//! Entries: what was done, one after the other, and how it is read.

use super::decode::DecodeError;
use super::fragment::{COUNTED_BYTES, FRAGMENTS_OF_BYTES, FragmentList, FragmentsOf};
use super::tuple::{Bitmap, TupleBytes, bitmap_bytes};
use super::varint;
use crate::ids::Oid;
use std::ffi::CStr;

/// Entry kinds. 9 is kept for DDL.
pub const ENTRY_RELATION: u8 = 1;
/// See [`ENTRY_RELATION`].
pub const ENTRY_INSERT: u8 = 2;
/// See [`ENTRY_RELATION`].
pub const ENTRY_UPDATE: u8 = 3;
/// See [`ENTRY_RELATION`].
pub const ENTRY_DELETE: u8 = 4;
/// See [`ENTRY_RELATION`].
pub const ENTRY_BATCH: u8 = 5;
/// See [`ENTRY_RELATION`].
pub const ENTRY_LEAVE: u8 = 6;
/// See [`ENTRY_RELATION`].
pub const ENTRY_TRUNCATE: u8 = 7;
/// See [`ENTRY_RELATION`].
pub const ENTRY_NOTIFY: u8 = 10;
/// See [`ENTRY_RELATION`].
pub const ENTRY_LARGE_OBJECT: u8 = 11;

/// State of a large object in its entry.
pub(super) const GONE: u8 = 0;
/// See [`GONE`].
pub(super) const WITHOUT_ACL: u8 = 1;
/// See [`GONE`].
pub(super) const WITH_ACL: u8 = 2;
/// See [`ENTRY_RELATION`].
pub const ENTRY_SEQUENCE: u8 = 8;

/// What follows the OID in a sequence entry.
pub(super) const SEQUENCE_TAKE: u8 = 1;
/// See [`SEQUENCE_TAKE`].
pub(super) const SEQUENCE_SET: u8 = 2;
/// See [`ENTRY_RELATION`].
pub const ENTRY_FRAGMENTS: u8 = 12;
/// See [`ENTRY_RELATION`].
pub const ENTRY_SOURCE: u8 = 13;

/// Bits of a tuple's length that say how it is written.
pub(super) const TUPLE_SHIFT: u32 = 2;
/// It has a bitmap.
pub(super) const TUPLE_BITMAP: u64 = 1;
/// It has fewer attributes than its relation.
pub(super) const TUPLE_SHORT: u64 = 2;
/// Of an update's new row: its bitmap is that of the changed columns.
pub(super) const TUPLE_CHANGED: u64 = 2;

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
