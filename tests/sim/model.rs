//! What the simulated databases hold, and how a transaction's changes travel.
//!
//! | table | rows | what must hold in the one history |
//! |---|---|---|
//! | COUNTER | a few, one of them hot | each write is the value before plus one |
//! | UNIQUE | come and go | no two rows with one value |
//! | PARENT, CHILD | come and go | every child's parent is there |
//! | MIRROR | a few | a write is the value that a counter, locked FOR SHARE, has at that point, or how many children there are |

use crate::rng::{Rng, mix};
use postgres_r::capture::hash::{KeyHash, What};
use postgres_r::capture::range::Image;
use postgres_r::changeset::decode::Changeset;
use postgres_r::changeset::encode::Builder;
use postgres_r::changeset::entry::{Entries, Entry};
use postgres_r::changeset::fragment::{self, FragmentsOf};
use postgres_r::changeset::header::Header;
use postgres_r::changeset::tuple::TupleBytes;
use postgres_r::changeset::{Key, LockMode};
use postgres_r::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use postgres_r::imsg::wanted::Detail;

pub const GROUP: GroupId = GroupId(0x513);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Table {
    Counter = 1,
    Unique = 2,
    Parent = 3,
    Child = 4,
    Mirror = 5,
}

impl Table {
    pub const ALL: [Table; 5] = [
        Self::Counter,
        Self::Unique,
        Self::Parent,
        Self::Child,
        Self::Mirror,
    ];

    pub fn oid(self) -> u32 {
        16384 + self as u32
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Row {
    pub table: Table,
    pub id: u32,
}

/// One change, in the order of execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Put(Row, u64),
    Delete(Row, u64),
}

pub const COUNTERS: u32 = 4;
pub const MIRRORS: u32 = 3;
pub const PARENTS: u32 = 3;
pub const UNIQUE_VALUES: u64 = 5;

pub fn row(table: Table, id: u32) -> Row {
    Row { table, id }
}

/// The rows that every copy begins with.
pub fn initial() -> Vec<(Row, u64)> {
    (0..COUNTERS)
        .map(|c| (row(Table::Counter, c), 0))
        .chain((0..MIRRORS).map(|m| (row(Table::Mirror, m), 0)))
        .chain((0..PARENTS).map(|p| (row(Table::Parent, p), 0)))
        .collect()
}

/// A mirror's value names the counter and what was read from it.
pub fn mirrored(counter: u32, value: u64) -> u64 {
    u64::from(counter) << 48 | value
}

/// Children that a census counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    /// Of this parent.
    Of(u32),
    /// With IDs from one [`STRIDE`] to another, both included.
    Between(u32, u32),
}

/// IDs that a census does not tell apart.
pub const STRIDE: u32 = 1 << 26;
const STRIDES: u32 = 64;
const CENSUS: u64 = 1 << 63;
const OF: u64 = 1 << 62;

impl Counted {
    pub fn random(rng: &mut Rng) -> Counted {
        if rng.per_mille(500) {
            return Counted::Of(rng.below(PARENTS.into()) as u32);
        }
        let ends = [0; 2].map(|_| rng.below(STRIDES.into()) as u32);
        Counted::Between(ends[0].min(ends[1]), ends[0].max(ends[1]))
    }

    pub fn has(self, id: u32, parent: u64) -> bool {
        match self {
            Counted::Of(p) => parent == u64::from(p),
            Counted::Between(low, high) => (low..=high).contains(&(id / STRIDE)),
        }
    }

    /// A mirror's value that says what was counted, and how many there were.
    pub fn counted(self, children: u64) -> u64 {
        let what = match self {
            Counted::Of(p) => OF | u64::from(p) << 32,
            Counted::Between(low, high) => u64::from(low * STRIDES + high) << 32,
        };
        CENSUS | what | children
    }

    /// Undoes [`Counted::counted`]; `None` for other values of mirrors.
    pub fn of(value: u64) -> Option<(Counted, u64)> {
        let what = (value >> 32) as u32 & 0x3fff_ffff;
        let counted = match value & OF {
            0 => Counted::Between(what / STRIDES, what % STRIDES),
            _ => Counted::Of(what),
        };
        (value & CENSUS != 0).then_some((counted, value & 0xffff_ffff))
    }

    /// Keys of the search, and what writers have to name.
    pub fn search(self) -> (Vec<u64>, Detail) {
        match self {
            Counted::Of(p) => (vec![children_of(p.into())], Detail::Prefixes),
            Counted::Between(low, high) => {
                let (low, high) = (low * STRIDE, high * STRIDE + (STRIDE - 1));
                let cover = IDS.cover(low.into(), high.into(), 64);
                (
                    cover.into_iter().map(|b| b.key(BUCKETS)).collect(),
                    Detail::Ranges,
                )
            }
        }
    }
}

/// Type of the children's IDs.
const IDS: Image = Image::Unsigned;
const BUCKETS: KeyHash = KeyHash::new(Table::Child as u32, What::Bucket(0));

fn children_of(parent: u64) -> u64 {
    mix(&[88, parent])
}

/// Keys of a child that comes, to this detail.
pub fn child_entries(id: u32, parent: u64, detail: Detail) -> Vec<u64> {
    let buckets = IDS.buckets(id.into()).map(|b| b.key(BUCKETS));
    match detail {
        Detail::Some => Vec::new(),
        Detail::Prefixes => vec![children_of(parent)],
        Detail::Ranges => std::iter::once(children_of(parent))
            .chain(buckets)
            .collect(),
    }
}

/// Says that something came whose ranges are not named.
pub fn unranged_hash() -> u64 {
    KeyHash::new(Table::Child.oid(), What::Unranged).finish()
}

pub fn row_hash(row: Row) -> u64 {
    mix(&[u64::from(row.table as u8), u64::from(row.id)])
}

/// What helpers lock beside it, and sessions now and then, with many rows behind one lock.
pub fn unkeyed_lock(row: Row) -> u64 {
    mix(&[55, u64::from(row.table as u8), u64::from(row.id % 2)])
}

pub fn unique_hash(value: u64) -> u64 {
    mix(&[99, value])
}

pub fn relation_hash(table: Table) -> u64 {
    mix(&[77, u64::from(table as u8)])
}

impl Change {
    pub fn row(self) -> Row {
        match self {
            Change::Put(row, _) | Change::Delete(row, _) => row,
        }
    }

    /// Whoever applies it has to find the row.
    pub fn is_of_a_row_that_is_there(self) -> bool {
        match self {
            Change::Put(row, _) => matches!(row.table, Table::Counter | Table::Mirror),
            Change::Delete(..) => true,
        }
    }

    /// What must be locked to write it, at the origin and where it is applied.
    pub fn locks(self) -> Vec<(u64, LockMode)> {
        let (row, value) = match self {
            Change::Put(row, value) | Change::Delete(row, value) => (row, value),
        };
        match row.table {
            Table::Counter | Table::Mirror => vec![(row_hash(row), LockMode::NoKeyUpdate)],
            Table::Unique => vec![
                (row_hash(row), LockMode::Update),
                (unique_hash(value), LockMode::Update),
            ],
            Table::Parent | Table::Child => vec![(row_hash(row), LockMode::Update)],
        }
    }

    fn encode(self) -> [u8; 16] {
        let (kind, row, value) = match self {
            Change::Put(row, value) => (0, row, value),
            Change::Delete(row, value) => (1, row, value),
        };
        let mut out = [0; 16];
        out[0] = kind;
        out[1] = row.table as u8;
        out[4..8].copy_from_slice(&row.id.to_le_bytes());
        out[8..].copy_from_slice(&value.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Change {
        let table = Table::ALL[bytes[1] as usize - 1];
        let row = row(table, u32::from_le_bytes(bytes[4..8].try_into().unwrap()));
        let value = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        if bytes[0] == 0 {
            Change::Put(row, value)
        } else {
            Change::Delete(row, value)
        }
    }
}

/// Adds changes to a changeset.
pub fn push(builder: &mut Builder<Vec<u8>>, changes: &[Change]) {
    for change in changes {
        builder
            .relation(Oid(change.row().table.oid()), 1, 1)
            .expect("a Vec is never full");
        let data = change.encode();
        builder
            .insert(&TupleBytes {
                natts: 1,
                bitmap: None,
                data: &data,
            })
            .expect("a Vec is never full");
    }
}

/// What a transaction hands to its coordinator, behind `room` free bytes.
pub struct Outgoing<'a> {
    pub origin: MemberId,
    pub incarnation: Incarnation,
    pub snapshot: Gid,
    pub flags: u16,
    pub isolation: u8,
    /// Names the transaction for the checker.
    pub xid: u64,
    pub keys: &'a [Key],
    /// Whose fragments went ahead, if some did.
    pub of: FragmentsOf,
}

/// `builder` has all changes. Every other transaction compresses them.
pub fn encode(room: usize, mut builder: Builder<Vec<u8>>, t: &Outgoing<'_>) -> Vec<u8> {
    if builder.has_fragments() {
        builder.fragments(t.of).expect("a Vec is never full");
    }
    for key in t.keys {
        builder.key(*key).expect("a Vec is never full");
    }
    let header = Header {
        flags: t.flags,
        group: GROUP,
        origin: t.origin,
        incarnation: t.incarnation,
        isolation: t.isolation,
        xid: t.xid,
        snapshot_gid: t.snapshot,
        commit_ts: 0,
        database: Oid(5),
    };
    let (header, keys, entries) = if t.xid.is_multiple_of(2) {
        builder.finish_compressed(header)
    } else {
        builder.finish(header)
    };
    [&vec![0xee; room][..], &header, &keys, &entries].concat()
}

fn changes(entries: Entries<'_>) -> Vec<Change> {
    entries
        .filter_map(|entry| match entry.expect("an entry") {
            Entry::Insert(row) => Some(Change::decode(row.data)),
            _ => None,
        })
        .collect()
}

/// The transaction's name, which fragments count, and its other changes.
pub fn decode(changeset: &[u8]) -> (u64, Vec<fragment::Counted>, Vec<Change>) {
    let changeset = Changeset::parse(changeset).expect("a changeset");
    let fragments = changeset.fragments().map(|list| list.counted().collect());
    let xid = changeset.header().xid;
    (
        xid,
        fragments.unwrap_or_default(),
        changes(changeset.open().expect("its entries").entries()),
    )
}

/// The changes of a fragment, as far as they count.
pub fn decode_fragment(fragment: &[u8], counted: fragment::Counted) -> Vec<Change> {
    let opened = fragment::open(fragment, counted).expect("a fragment");
    changes(opened.entries())
}
