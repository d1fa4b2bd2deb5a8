//! Builds a changeset while its transaction runs.

use super::decode::{Header, MAGIC, SequenceChange, VERSION};
use super::key::{KEY_BYTES, KEY_FLAGS, Key};
use super::tuple::{Bitmap, TupleBytes, bitmap_bytes};
use crate::ids::Oid;
use crate::limits::CHANGESET_BYTES_MAX;
use std::ffi::CStr;

/// Bytes of [`Header`] on the wire.
pub const HEADER_BYTES: usize = 96;

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

/// There is no room for what was to be appended. What was appended before is whole, and nothing
/// was added to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Where bytes go: a `Vec` in tests, blocks of the imessage pool in the server.
pub trait Sink {
    /// Appends all of it or nothing.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Full>;
    /// Bytes so far.
    fn len(&self) -> usize;
    /// Nothing so far.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Cuts off what lies beyond `len`, which was a length before.
    fn truncate(&mut self, len: usize);
    /// Visits the bytes in order, in pieces.
    fn each(&self, visit: &mut dyn FnMut(&[u8]));
}

impl Sink for Vec<u8> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.extend_from_slice(bytes);
        Ok(())
    }
    fn len(&self) -> usize {
        Vec::len(self)
    }
    fn truncate(&mut self, len: usize) {
        Vec::truncate(self, len);
    }
    fn each(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self);
    }
}

/// What rows belong to: OID, fingerprint of the row layout, attributes.
type Relation = (Oid, u64, u16);

/// A state to which a builder can go back: the start of a subtransaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    keys_bytes: usize,
    entries_bytes: usize,
    keys_count: u32,
    entries_count: u32,
    relation: Option<Relation>,
}

/// How many of the last keys are compared with a new one.
const RECENT_KEYS: usize = 8;

/// A changeset under construction: its writeset and its entries grow side by side.
#[derive(Debug)]
pub struct Builder<S: Sink> {
    keys: S,
    entries: S,
    keys_count: u32,
    entries_count: u32,
    /// The relation that the next row entry belongs to.
    relation: Option<Relation>,
    recent: [Option<Key>; RECENT_KEYS],
    recent_next: usize,
}

impl<S: Sink> Builder<S> {
    /// An empty changeset over two empty sinks.
    pub fn new(keys: S, entries: S) -> Self {
        Self {
            keys,
            entries,
            keys_count: 0,
            entries_count: 0,
            relation: None,
            recent: [None; RECENT_KEYS],
            recent_next: 0,
        }
    }

    /// Whether it holds no entry: then there is nothing to send, whatever was locked.
    #[must_use]
    pub fn has_no_entries(&self) -> bool {
        self.entries_count == 0
    }

    /// Keys and entries so far.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        (self.keys_count, self.entries_count)
    }

    /// Bytes of the finished changeset if it ended here. The caller keeps it within
    /// [`CHANGESET_BYTES_MAX`], since it knows what to tell the user beyond.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        HEADER_BYTES + self.keys.len() + self.entries.len()
    }

    /// Rows that follow belong to this relation. `fingerprint` is that of its row layout, which the
    /// other members compare with theirs. Costs nothing if it is the relation of the last row.
    pub fn relation(&mut self, oid: Oid, fingerprint: u64, natts: u16) -> Result<(), Full> {
        let relation = Some((oid, fingerprint, natts));
        if self.relation == relation {
            return Ok(());
        }
        self.entry(ENTRY_RELATION, |pen| {
            pen.put(&oid.0.to_le_bytes())?;
            pen.put(&fingerprint.to_le_bytes())?;
            pen.put(&natts.to_le_bytes())
        })?;
        self.relation = relation;
        Ok(())
    }

    /// A new row of the current relation.
    pub fn insert(&mut self, row: &TupleBytes<'_>) -> Result<(), Full> {
        self.fits_relation(row);
        self.entry(ENTRY_INSERT, |pen| pen.tuple(row))
    }

    /// A changed row: what named it before, which columns changed, and their new values.
    ///
    /// `new` has all attributes of the relation; the unchanged ones are null in it.
    pub fn update(
        &mut self,
        identity: &TupleBytes<'_>,
        changed: Bitmap<'_>,
        new: &TupleBytes<'_>,
    ) -> Result<(), Full> {
        self.fits_relation(identity);
        self.fits_relation(new);
        assert_eq!(
            changed.0.len(),
            bitmap_bytes(new.natts),
            "a bit for each attribute"
        );
        self.entry(ENTRY_UPDATE, |pen| {
            pen.tuple(identity)?;
            pen.tuple(new)?;
            pen.put(changed.0)
        })
    }

    /// A row that is gone.
    pub fn delete(&mut self, identity: &TupleBytes<'_>) -> Result<(), Full> {
        self.fits_relation(identity);
        self.entry(ENTRY_DELETE, |pen| pen.tuple(identity))
    }

    /// A row that goes to another partition, where it is inserted.
    pub fn leave(&mut self, identity: &TupleBytes<'_>) -> Result<(), Full> {
        self.fits_relation(identity);
        self.entry(ENTRY_LEAVE, |pen| pen.tuple(identity))
    }

    /// Many new rows of the current relation.
    pub fn batch<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = TupleBytes<'a>>,
    ) -> Result<(), Full> {
        let natts_max = self.natts();
        let count = rows.len();
        self.entry(ENTRY_BATCH, |pen| {
            pen.varints([count as u64])?;
            let mut written = 0;
            for row in rows {
                assert!(row.natts <= natts_max, "a row of its relation");
                pen.tuple(&row)?;
                written += 1;
            }
            assert_eq!(written, count, "as many rows as were announced");
            Ok(())
        })
    }

    /// Relations that were truncated, all at once. Rows that follow belong to the relation of those
    /// before.
    pub fn truncate(&mut self, relations: &[u32]) -> Result<(), Full> {
        assert!(!relations.is_empty(), "something was truncated");
        self.entry(ENTRY_TRUNCATE, |pen| {
            pen.varints([relations.len() as u64])?;
            relations
                .iter()
                .try_for_each(|oid| pen.put(&oid.to_le_bytes()))
        })
    }

    /// A notification.
    pub fn notify(&mut self, channel: &CStr, payload: &CStr) -> Result<(), Full> {
        assert!(!channel.is_empty(), "a channel has a name");
        self.entry(ENTRY_NOTIFY, |pen| {
            pen.put(channel.to_bytes_with_nul())?;
            pen.put(payload.to_bytes_with_nul())
        })
    }

    /// A large object beside its pages: its owner's name, and the items of its ACL as texts, one after
    /// the other, each with its NUL; `None` if it has no ACL.
    pub fn large_object(&mut self, oid: Oid, owner: &CStr, acl: Option<&[u8]>) -> Result<(), Full> {
        assert!(
            acl.is_none_or(|a| a.last().is_none_or(|b| *b == 0)),
            "C strings"
        );
        let state = if acl.is_some() { WITH_ACL } else { WITHOUT_ACL };
        self.entry(ENTRY_LARGE_OBJECT, |pen| {
            pen.put(&oid.0.to_le_bytes())?;
            pen.put(&[state])?;
            pen.put(owner.to_bytes_with_nul())?;
            match acl {
                None => Ok(()),
                Some(acl) => {
                    pen.varints([acl.len() as u64])?;
                    pen.put(acl)
                }
            }
        })
    }

    /// A change of a sequence. The current relation stays.
    pub fn sequence(&mut self, oid: Oid, change: SequenceChange) -> Result<(), Full> {
        let wanted = !matches!(change, SequenceChange::Take { want: 0, .. });
        assert!(wanted, "who takes no values does not ask");
        self.entry(ENTRY_SEQUENCE, |pen| {
            pen.put(&oid.0.to_le_bytes())?;
            match change {
                SequenceChange::Take { want, slot, ticket } => {
                    pen.put(&[SEQUENCE_TAKE])?;
                    pen.put(&want.to_le_bytes())?;
                    pen.put(&slot.to_le_bytes())?;
                    pen.put(&ticket.to_le_bytes())
                }
                SequenceChange::Set { last, called } => {
                    pen.put(&[SEQUENCE_SET])?;
                    pen.put(&last.to_le_bytes())?;
                    pen.put(&[called.into()])
                }
            }
        })
    }

    /// A large object is gone; its pages go by themselves.
    pub fn large_object_gone(&mut self, oid: Oid) -> Result<(), Full> {
        self.entry(ENTRY_LARGE_OBJECT, |pen| {
            pen.put(&oid.0.to_le_bytes())?;
            pen.put(&[GONE])
        })
    }

    /// A key of the writeset. One that says nothing beyond one of the last few is left out.
    pub fn key(&mut self, key: Key) -> Result<(), Full> {
        let covered = |old: &Key| {
            old.hash == key.hash
                && old.flags == key.flags
                && old.mode >= key.mode
                && old.since <= key.since
        };
        if self.recent.iter().flatten().any(covered) {
            return Ok(());
        }
        assert_eq!(key.flags & !KEY_FLAGS, 0, "flags of a key");
        self.keys.append(&encode_key(&key))?;
        self.keys_count += 1;
        self.recent[self.recent_next] = Some(key);
        self.recent_next = (self.recent_next + 1) % RECENT_KEYS;
        Ok(())
    }

    /// Where it ends now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            keys_bytes: self.keys.len(),
            entries_bytes: self.entries.len(),
            keys_count: self.keys_count,
            entries_count: self.entries_count,
            relation: self.relation,
        }
    }

    /// Takes back everything since a mark.
    pub fn rollback(&mut self, mark: Mark) {
        assert!(
            mark.keys_bytes <= self.keys.len() && mark.entries_bytes <= self.entries.len(),
            "a mark of the past"
        );
        self.keys.truncate(mark.keys_bytes);
        self.entries.truncate(mark.entries_bytes);
        self.keys_count = mark.keys_count;
        self.entries_count = mark.entries_count;
        self.relation = mark.relation;
        // Some of them may be gone.
        self.recent = [None; RECENT_KEYS];
    }

    /// Ends it: fills in the counts and the checksum of `header`, and gives back the sinks.
    /// The changeset is the header's bytes, then those of the first sink, then of the second.
    pub fn finish(self, mut header: Header) -> ([u8; HEADER_BYTES], S, S) {
        let bytes = self.total_bytes();
        assert!(bytes <= CHANGESET_BYTES_MAX, "a changeset of {bytes} bytes");
        header.keys_count = self.keys_count;
        header.entries_count = self.entries_count;
        header.keys_bytes = self.keys.len() as u32;
        header.entries_bytes = self.entries.len() as u32;
        let mut bytes = encode_header(&header);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes);
        self.keys.each(&mut |b| crc.update(b));
        self.entries.each(&mut |b| crc.update(b));
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.finalize().to_le_bytes());
        (bytes, self.keys, self.entries)
    }

    /// The two sinks of a changeset that is given up.
    pub fn into_sinks(self) -> (S, S) {
        (self.keys, self.entries)
    }

    /// Appends an entry, or nothing.
    fn entry(
        &mut self,
        kind: u8,
        write: impl FnOnce(&mut Pen<'_, S>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let start = self.entries.len();
        let mut pen = Pen {
            sink: &mut self.entries,
        };
        let written = pen.put(&[kind]).and_then(|()| write(&mut pen));
        match written {
            Ok(()) => self.entries_count += 1,
            Err(Full) => self.entries.truncate(start),
        }
        written
    }

    fn natts(&self) -> u16 {
        self.relation.expect("a row entry follows its relation").2
    }

    fn fits_relation(&self, row: &TupleBytes<'_>) {
        assert!(row.natts <= self.natts(), "a row of its relation");
    }
}

/// Writes straight into the sink: nothing of a row is copied on the way, and no memory is held that
/// an error of PostgreSQL could leak.
struct Pen<'a, S: Sink> {
    sink: &'a mut S,
}

impl<S: Sink> Pen<'_, S> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sink.append(bytes)
    }

    /// Seven bits a byte, the lowest first (LEB128).
    fn varints<const N: usize>(&mut self, values: [u64; N]) -> Result<(), Full> {
        let mut bytes = [0; 24];
        let mut at = 0;
        for mut value in values {
            while value >= 0x80 {
                bytes[at] = value as u8 | 0x80;
                at += 1;
                value >>= 7;
            }
            bytes[at] = value as u8;
            at += 1;
        }
        self.put(&bytes[..at])
    }

    /// Attributes; bytes of data, doubled, and one more if there is a bitmap; bitmap; data.
    fn tuple(&mut self, row: &TupleBytes<'_>) -> Result<(), Full> {
        let length = (row.data.len() as u64) << 1 | u64::from(row.bitmap.is_some());
        self.varints([row.natts.into(), length])?;
        if let Some(bitmap) = row.bitmap {
            self.put(&bitmap[..bitmap_bytes(row.natts)])?;
        }
        self.put(row.data)
    }
}

/// The header with checksum 0.
fn encode_header(h: &Header) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&MAGIC.to_le_bytes());
    put(&VERSION.to_le_bytes());
    put(&h.flags.to_le_bytes());
    put(&h.group.0.to_le_bytes());
    put(&h.origin.0.to_le_bytes());
    put(&[h.isolation, 0]);
    put(&h.incarnation.0.to_le_bytes());
    put(&h.xid.to_le_bytes());
    put(&h.snapshot_gid.0.to_le_bytes());
    put(&h.commit_ts.to_le_bytes());
    put(&h.database.0.to_le_bytes());
    put(&[0; 20]);
    put(&h.keys_count.to_le_bytes());
    put(&h.entries_count.to_le_bytes());
    put(&h.keys_bytes.to_le_bytes());
    put(&h.entries_bytes.to_le_bytes());
    put(&[0; 8]);
    assert_eq!(at, HEADER_BYTES);
    out
}

fn encode_key(key: &Key) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    out[..8].copy_from_slice(&key.hash.to_le_bytes());
    out[8..16].copy_from_slice(&key.since.0.to_le_bytes());
    out[16..20].copy_from_slice(&key.relation.to_le_bytes());
    out[20] = key.mode as u8;
    out[21] = key.flags;
    out
}
