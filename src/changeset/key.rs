//! A certified key of a writeset.

use crate::ids::Gid;

/// PostgreSQL's tuple lock levels (`LockTupleMode`, nodes/lockoptions.h), weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum LockMode {
    /// FOR KEY SHARE; also the intent of a write on its relation's key.
    KeyShare = 0,
    /// FOR SHARE
    Share = 1,
    /// FOR NO KEY UPDATE; an UPDATE that leaves the key columns alone
    NoKeyUpdate = 2,
    /// FOR UPDATE; INSERT, DELETE, an UPDATE of key columns
    Update = 3,
}

impl LockMode {
    /// All of them, weakest first.
    pub const ALL: [LockMode; 4] = [Self::KeyShare, Self::Share, Self::NoKeyUpdate, Self::Update];

    /// PostgreSQL's conflict table (heapam README.tuplock).
    #[must_use]
    pub const fn conflicts(self, other: LockMode) -> bool {
        use LockMode::{KeyShare, NoKeyUpdate, Share, Update};
        match (self, other) {
            (Update, _) | (_, Update) => true,
            (NoKeyUpdate, NoKeyUpdate) | (NoKeyUpdate, Share) | (Share, NoKeyUpdate) => true,
            (Share, Share) | (KeyShare, _) | (_, KeyShare) => false,
        }
    }
}

/// The key was only locked, nothing was written under it.
pub const KEY_LOCK_ONLY: u8 = 1;
/// Checked from `since` against all entries (deferred unique checks, exclusion constraints), not
/// only against lock-only ones.
pub const KEY_FROM_SINCE: u8 = 2;
/// The key of a relation, not of a row.
pub const KEY_RELATION: u8 = 4;
/// The key of a unique index that is not the row's identity.
pub const KEY_UNIQUE: u8 = 8;
/// Checked against written entries only: of those that bear it some go together that keep the same
/// others out (LOCK TABLE IN SHARE MODE).
pub const KEY_WRITES_ONLY: u8 = 16;
/// The key was read by a SERIALIZABLE transaction: checked from `since` (its snapshot) against what
/// was written, and nobody is checked against it.
pub const KEY_READ: u8 = 32;
/// Written without a look at what was there, so it is checked against nothing: it only comes after
/// those who wrote it before.
pub const KEY_BLIND: u8 = 64;
/// Neither checked nor an entry: what was written under it before is to be applied before (rows without
/// an identity are looked for among all that have come).
pub const KEY_ORDER: u8 = KEY_READ | KEY_BLIND;
/// All of them; a key with any other bit is refused.
pub const KEY_FLAGS: u8 = KEY_LOCK_ONLY
    | KEY_FROM_SINCE
    | KEY_RELATION
    | KEY_UNIQUE
    | KEY_WRITES_ONLY
    | KEY_READ
    | KEY_BLIND;

/// One (key, mode) of a writeset. 24 bytes on the wire, little endian, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Hash of relation, key definition and key values.
    pub hash: u64,
    /// The origin's `last_committed_gid` right after the lock was taken; of a read, a GID that its
    /// snapshot shows.
    pub since: Gid,
    /// Relation, to name it in an error's DETAIL. It has a say in the verdict only where a member has
    /// reserved relations, for keys of relations.
    pub relation: u32,
    /// How strongly.
    pub mode: LockMode,
    /// `KEY_*` bits.
    pub flags: u8,
}

/// Bytes of a [`Key`] on the wire (two bytes at its end are zero).
pub const KEY_BYTES: usize = 24;
