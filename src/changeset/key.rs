//! A certified key of a writeset.

use super::varint::{self, VARINT_BYTES_MAX};
use crate::capture::hash::{KeyHash, What};
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

/// Most bytes of a [`Key`] on the wire.
pub const KEY_BYTES_MAX: usize = 1 + 1 + 5 + VARINT_BYTES_MAX + 8;

/// What the first key of a writeset is compared with.
pub(crate) const BEFORE_FIRST: Key = Key {
    hash: 0,
    since: Gid(0),
    relation: 0,
    mode: LockMode::KeyShare,
    flags: 0,
};

/// A key's first byte has its mode in the lowest two bits, and then in three bits which of these its flags
/// are.
const FLAGS: [u8; 7] = [
    0,
    KEY_RELATION,
    KEY_UNIQUE,
    KEY_LOCK_ONLY,
    KEY_RELATION | KEY_LOCK_ONLY,
    KEY_READ,
    KEY_RELATION | KEY_READ,
];
const FLAGS_SHIFT: u32 = 2;
/// They are others, in a byte of their own.
const OTHER_FLAGS: u8 = 7;
/// The relation, and `since`, are not as in the key before: the differences follow.
const HAS_RELATION: u8 = 1 << 5;
const HAS_SINCE: u8 = 1 << 6;
/// No hash follows, it is that of [`Key::own_hash`].
const OWN_HASH: u8 = 1 << 7;

impl Key {
    /// Its bytes after those of the key `before`, and how many they are.
    pub(super) fn encode(&self, before: &Key) -> ([u8; KEY_BYTES_MAX], usize) {
        let mut out = [0; KEY_BYTES_MAX];
        let mut first = self.mode as u8;
        let mut at = 1;
        match FLAGS.iter().position(|flags| *flags == self.flags) {
            Some(common) => first |= (common as u8) << FLAGS_SHIFT,
            None => {
                first |= OTHER_FLAGS << FLAGS_SHIFT;
                out[at] = self.flags;
                at += 1;
            }
        }
        if self.relation != before.relation {
            first |= HAS_RELATION;
            let difference = i64::from(self.relation) - i64::from(before.relation);
            at += varint::write(varint::fold(difference), &mut out[at..]);
        }
        if self.since != before.since {
            first |= HAS_SINCE;
            let difference = self.since.0.wrapping_sub(before.since.0).cast_signed();
            at += varint::write(varint::fold(difference), &mut out[at..]);
        }
        if self.own_hash() == Some(self.hash) {
            first |= OWN_HASH;
        } else {
            out[at..at + 8].copy_from_slice(&self.hash.to_le_bytes());
            at += 8;
        }
        out[0] = first;
        (out, at)
    }

    /// The key at the start of `bytes`, whether its hash is [`Key::own_hash`] and still to be worked out, and
    /// what follows it. `None` if there is none that [`Key::encode`] can have made.
    #[inline]
    fn decode<'a>(bytes: &'a [u8], before: &Key) -> Option<(Key, bool, &'a [u8])> {
        let (&first, mut rest) = bytes.split_first()?;
        let mut key = Key {
            mode: LockMode::ALL[usize::from(first & 3)],
            ..*before
        };
        let common = usize::from(first >> FLAGS_SHIFT & OTHER_FLAGS);
        if let Some(flags) = FLAGS.get(common) {
            key.flags = *flags;
        } else {
            (key.flags, rest) = rest.split_first().map(|(flags, rest)| (*flags, rest))?;
            if key.flags & !KEY_FLAGS != 0 || FLAGS.contains(&key.flags) {
                return None;
            }
        }
        if first & HAS_RELATION != 0 {
            let (difference, after) = difference(rest)?;
            let relation = i64::from(before.relation).checked_add(difference)?;
            (key.relation, rest) = (relation.try_into().ok()?, after);
        }
        if first & HAS_SINCE != 0 {
            let (difference, after) = difference(rest)?;
            let since = before.since.0.wrapping_add(difference.cast_unsigned());
            (key.since, rest) = (Gid(since), after);
        }
        if first & OWN_HASH != 0 {
            return (key.flags & KEY_RELATION != 0).then_some((key, true, rest));
        }
        let (hash, rest) = rest.split_first_chunk()?;
        key.hash = u64::from_le_bytes(*hash);
        (key.own_hash() != Some(key.hash)).then_some((key, false, rest))
    }

    /// The hash of a relation's key into which nothing else goes: as capture has it for those who write
    /// rows or lock them, so that it need not travel.
    fn own_hash(&self) -> Option<u64> {
        if self.flags & KEY_RELATION == 0 {
            return None;
        }
        let what = if self.flags == KEY_RELATION | KEY_LOCK_ONLY {
            What::Locks
        } else {
            What::Relation
        };
        Some(KeyHash::new(self.relation, what).finish())
    }
}

/// The difference at the start of `bytes`, and what follows it. It is never 0.
fn difference(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (number, rest) = varint::read(bytes)?;
    (number != 0).then_some((varint::unfold(number), rest))
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

    /// How many they are; `None` if there is anything else.
    pub(super) fn check(mut self) -> Option<usize> {
        let mut count = 0;
        while !self.rest.is_empty() {
            (self.before, _, self.rest) = Key::decode(self.rest, &self.before)?;
            count += 1;
        }
        Some(count)
    }
}

impl Iterator for Keys<'_> {
    type Item = Key;

    #[inline]
    fn next(&mut self) -> Option<Key> {
        let (mut key, is_own, rest) = Key::decode(self.rest, &self.before)?;
        if is_own {
            key.hash = key.own_hash()?;
        }
        (self.before, self.rest) = (key, rest);
        Some(key)
    }
}
