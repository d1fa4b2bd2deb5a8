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

/// One (key, mode) of a writeset.
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

/// Least bytes of a [`Key`] on the wire.
pub const KEY_BYTES_MIN: usize = 1 + 8;
/// Most bytes.
pub const KEY_BYTES_MAX: usize = KEY_BYTES_MIN + 1 + 4 + 8;

/// What the first key of a writeset is compared with.
pub(super) const BEFORE_FIRST: Key = Key {
    hash: 0,
    since: Gid(0),
    relation: 0,
    mode: LockMode::KeyShare,
    flags: 0,
};

/// Bits of a key's first byte, beside its mode in the lowest two: what is not as in the key before and
/// therefore follows, in this order, before the hash.
const HAS_FLAGS: u8 = 4;
const HAS_RELATION: u8 = 8;
const HAS_SINCE: u8 = 16;

impl Key {
    /// Its bytes after those of the key `before`, and how many they are.
    pub(super) fn encode(&self, before: &Key) -> ([u8; KEY_BYTES_MAX], usize) {
        let mut out = [0; KEY_BYTES_MAX];
        out[0] = self.mode as u8;
        let mut at = 1;
        let mut put = |bit: u8, bytes: &[u8]| {
            out[0] |= bit;
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        if self.flags != before.flags {
            put(HAS_FLAGS, &[self.flags]);
        }
        if self.relation != before.relation {
            put(HAS_RELATION, &self.relation.to_le_bytes());
        }
        if self.since != before.since {
            put(HAS_SINCE, &self.since.0.to_le_bytes());
        }
        put(0, &self.hash.to_le_bytes());
        (out, at)
    }

    /// The key at the start of `bytes`, and what follows it. `None` if there is none that
    /// [`Key::encode`] can have made.
    fn decode<'a>(bytes: &'a [u8], before: &Key) -> Option<(Key, &'a [u8])> {
        let (&first, mut rest) = bytes.split_first()?;
        let mut key = Key {
            mode: *LockMode::ALL.get(usize::from(first & 3))?,
            ..*before
        };
        if first & HAS_FLAGS != 0 {
            (key.flags, rest) = rest.split_first().map(|(flags, rest)| (*flags, rest))?;
        }
        if first & HAS_RELATION != 0 {
            let (relation, after) = rest.split_first_chunk()?;
            (key.relation, rest) = (u32::from_le_bytes(*relation), after);
        }
        if first & HAS_SINCE != 0 {
            let (since, after) = rest.split_first_chunk()?;
            (key.since, rest) = (Gid(u64::from_le_bytes(*since)), after);
        }
        let (hash, rest) = rest.split_first_chunk()?;
        key.hash = u64::from_le_bytes(*hash);
        let said = |bit: u8, differs: bool| (first & bit != 0) == differs;
        let canonical = first < HAS_SINCE << 1
            && key.flags & !KEY_FLAGS == 0
            && said(HAS_FLAGS, key.flags != before.flags)
            && said(HAS_RELATION, key.relation != before.relation)
            && said(HAS_SINCE, key.since != before.since);
        canonical.then_some((key, rest))
    }
}

/// The keys of a writeset, one after the other. Ends early, with bytes left, at what is no key.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    rest: &'a [u8],
    before: Key,
}

impl<'a> Keys<'a> {
    /// Of a whole writeset.
    pub(super) fn new(bytes: &'a [u8]) -> Keys<'a> {
        Keys {
            rest: bytes,
            before: BEFORE_FIRST,
        }
    }

    /// Bytes that have not been read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl Iterator for Keys<'_> {
    type Item = Key;

    fn next(&mut self) -> Option<Key> {
        (self.before, self.rest) = Key::decode(self.rest, &self.before)?;
        Some(self.before)
    }
}
