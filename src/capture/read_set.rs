//! What a SERIALIZABLE transaction has read, as keys. Pure.
//!
//! A search reads what there is and what there is not, so a key stands for all rows that its search
//! could have found. Rolling back to a savepoint takes nothing back: the client has seen it.

use super::hash::{KeyHash, What};
use super::range::SEARCH;
use crate::changeset::key::{KEY_READ, KEY_RELATION};
use crate::changeset::{Key, LockMode};
use crate::ids::Gid;
use crate::imsg::wanted::Detail;
use crate::limits::READ_KEYS_MAX;
use std::collections::BTreeMap;

/// See the head of the file.
#[derive(Debug)]
pub struct ReadSet {
    since: Gid,
    relations: BTreeMap<u32, Reads>,
    /// Keys of all relations that were not read as a whole.
    count: usize,
}

/// What was read of one relation.
#[derive(Debug)]
struct Reads {
    /// Key of the relation itself.
    own: u64,
    /// Everything; `keys` is empty then.
    whole: bool,
    /// What writers have to name so as not to be in the way.
    detail: Detail,
    keys: BTreeMap<u64, LockMode>,
}

impl ReadSet {
    /// Nothing yet. `since`: a GID that the transaction's snapshot shows.
    #[must_use]
    pub const fn new(since: Gid) -> ReadSet {
        ReadSet {
            since,
            relations: BTreeMap::new(),
            count: 0,
        }
    }

    /// Whether the whole of a relation was read: more need not be said of it.
    #[must_use]
    pub fn has_whole(&self, relation: u32) -> bool {
        self.relations.get(&relation).is_some_and(|r| r.whole)
    }

    /// Whether this key of a relation was read, alone or with the whole relation.
    #[must_use]
    pub fn covers(&self, relation: u32, key: Option<u64>) -> bool {
        let is_in = |r: &Reads| r.whole || key.is_some_and(|k| r.keys.contains_key(&k));
        self.relations.get(&relation).is_some_and(is_in)
    }

    /// The whole relation, whose own key is `own`, was searched.
    pub fn whole(&mut self, relation: u32, own: u64) {
        let reads = self.of(relation, own);
        reads.whole = true;
        let gone = std::mem::take(&mut reads.keys).len();
        self.count -= gone;
    }

    /// A key of a relation was searched for, and whatever conflicts with `mode` would have been
    /// seen.
    pub fn key(&mut self, relation: u32, own: u64, hash: u64, mode: LockMode) {
        let reads = self.of(relation, own);
        if reads.whole {
            return;
        }
        match reads.keys.get_mut(&hash) {
            Some(known) => *known = mode.max(*known),
            None => {
                reads.keys.insert(hash, mode);
                self.count += 1;
                if self.count > READ_KEYS_MAX {
                    self.coarsen();
                }
            }
        }
    }

    /// Entries of an index were searched for: of those that come, writers who name them to this detail
    /// say under which keys. Such keys follow.
    pub fn entries(&mut self, relation: u32, own: u64, detail: Detail) {
        let reads = self.of(relation, own);
        reads.detail = detail.max(reads.detail);
    }

    /// The keys, for a writeset.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        let since = self.since;
        self.relations.iter().flat_map(move |(&relation, reads)| {
            let key = move |hash, mode, flags| Key {
                hash,
                since,
                relation,
                mode,
                flags: KEY_READ | flags,
            };
            // Nothing written goes along with UPDATE; with KEY SHARE everything but a write that
            // names no rows.
            let mode = match reads.detail {
                _ if reads.whole => LockMode::Update,
                Detail::Some => LockMode::KeyShare,
                Detail::Prefixes | Detail::Ranges => SEARCH,
            };
            let own = key(reads.own, mode, KEY_RELATION);
            let ranges = (!reads.whole && reads.detail == Detail::Ranges).then(|| {
                key(
                    KeyHash::new(relation, What::Unranged).finish(),
                    SEARCH,
                    KEY_RELATION,
                )
            });
            let keys = reads.keys.iter();
            (std::iter::once(own).chain(ranges))
                .chain(keys.map(move |(hash, mode)| key(*hash, *mode, 0)))
        })
    }

    fn of(&mut self, relation: u32, own: u64) -> &mut Reads {
        self.relations.entry(relation).or_insert(Reads {
            own,
            whole: false,
            detail: Detail::Some,
            keys: BTreeMap::new(),
        })
    }

    /// The relation with the most keys counts as read as a whole.
    fn coarsen(&mut self) {
        let most = self.relations.iter().max_by_key(|(_, r)| r.keys.len());
        if let Some((&relation, reads)) = most {
            let own = reads.own;
            self.whole(relation, own);
        }
    }
}

/// What a writer of its relation has to name so as not to be in the way of a key's reader, if the key
/// says so of its relation.
#[must_use]
pub fn searched(key: &Key) -> Option<Detail> {
    const FLAGS: u8 = KEY_READ | KEY_RELATION;
    (key.flags & FLAGS == FLAGS && key.mode == SEARCH).then(|| {
        let unranged = KeyHash::new(key.relation, What::Unranged).finish();
        if key.hash == unranged {
            Detail::Ranges
        } else {
            Detail::Prefixes
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockMode::{KeyShare, Share, Update};

    fn keys(set: &ReadSet) -> Vec<(u32, u64, LockMode)> {
        let keys: Vec<_> = set.keys().collect();
        for key in &keys {
            assert_eq!(key.since, Gid(7));
            assert_ne!(key.flags & KEY_READ, 0);
            assert_eq!(key.flags & KEY_RELATION != 0, key.hash >= 1000);
        }
        keys.iter().map(|k| (k.relation, k.hash, k.mode)).collect()
    }

    #[test]
    fn rows_are_read_with_their_relation_and_once() {
        let mut set = ReadSet::new(Gid(7));
        set.key(1, 1001, 5, KeyShare);
        set.key(1, 1001, 5, Share);
        set.key(1, 1001, 5, KeyShare);
        set.key(2, 1002, 5, Share);
        let expected = [
            (1, 1001, KeyShare),
            (1, 5, Share),
            (2, 1002, KeyShare),
            (2, 5, Share),
        ];
        assert_eq!(keys(&set), expected);
        assert!(set.covers(1, Some(5)) && !set.covers(1, Some(6)) && !set.covers(1, None));
        assert_eq!(set.count, 2);
    }

    #[test]
    fn a_relation_read_as_a_whole_needs_no_rows() {
        let mut set = ReadSet::new(Gid(7));
        set.key(1, 1001, 5, Share);
        set.whole(1, 1001);
        set.key(1, 1001, 6, Share);
        assert_eq!(keys(&set), [(1, 1001, Update)]);
        assert!(set.has_whole(1) && !set.has_whole(2));
        assert!(set.covers(1, None) && set.covers(1, Some(6)) && !set.covers(2, Some(6)));
        assert_eq!(set.count, 0);
    }

    #[test]
    fn searches_say_what_writers_have_to_name() {
        let mut set = ReadSet::new(Gid(7));
        set.entries(1, 1001, Detail::Prefixes);
        set.key(1, 1001, 5, SEARCH);
        set.key(1, 1001, 6, KeyShare);
        assert_eq!(
            keys(&set),
            [(1, 1001, SEARCH), (1, 5, SEARCH), (1, 6, KeyShare)]
        );
        let unranged = KeyHash::new(1, What::Unranged).finish();
        set.entries(1, 1001, Detail::Ranges);
        set.entries(1, 1001, Detail::Prefixes);
        assert_eq!(keys(&set)[..2], [(1, 1001, SEARCH), (1, unranged, SEARCH)]);
        let details: Vec<_> = set.keys().filter_map(|k| searched(&k)).collect();
        assert_eq!(details, [Detail::Prefixes, Detail::Ranges]);
        set.whole(1, 1001);
        assert_eq!(keys(&set), [(1, 1001, Update)]);
        assert_eq!(set.keys().filter_map(|k| searched(&k)).count(), 0);
    }

    #[test]
    fn many_rows_become_their_relation_and_others_stay() {
        let mut set = ReadSet::new(Gid(7));
        set.key(1, 1001, 5, Share);
        for row in 0..1000 * READ_KEYS_MAX as u64 / 500 {
            set.key(2, u64::MAX, row, Share);
            assert!(set.count <= READ_KEYS_MAX);
        }
        assert!(set.has_whole(2) && !set.has_whole(1));
        assert_eq!(set.keys().count(), 3);
    }
}
