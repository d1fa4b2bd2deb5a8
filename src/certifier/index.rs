//! The last GID of every key, by how it was held.
#![forbid(unsafe_code)]

use crate::changeset::LockMode;
use crate::ids::Gid;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// How a key was held: lock mode, and written or only locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class(u8);

/// How many of them there are.
pub(super) const CLASSES: usize = 8;

impl Class {
    pub(super) const fn new(mode: LockMode, lock_only: bool) -> Class {
        Class(mode as u8 | (lock_only as u8) << 2)
    }

    pub(super) fn from_u8(number: u8) -> Option<Class> {
        ((number as usize) < CLASSES).then_some(Class(number))
    }

    pub(super) const fn number(self) -> u8 {
        self.0
    }

    pub(super) const fn mode(self) -> LockMode {
        LockMode::ALL[self.0 as usize & 3]
    }

    pub(super) const fn lock_only(self) -> bool {
        self.0 & 4 != 0
    }
}

/// Keys are hashes already.
#[derive(Default, Clone, Debug)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys")
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type Map<V> = HashMap<u64, V, BuildHasherDefault<Identity>>;

/// Most keys are held in one way only: a word for each, GID and class; the rest stand aside.
///
/// Nothing depends on the order in which the maps iterate.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// GID shifted by four, class in the lower bits; [`MANY`] there if it stands in `many`.
    one: Map<u64>,
    many: Map<[Gid; CLASSES]>,
    /// Every (GID, key) set, in GID order; what was set again later stands there twice.
    queue: VecDeque<(Gid, u64)>,
}

const MANY: u64 = 15;

fn pack(class: Class, gid: Gid) -> u64 {
    gid.0 << 4 | u64::from(class.0)
}

impl Index {
    /// Keys.
    pub(super) fn len(&self) -> usize {
        self.one.len()
    }

    /// Visits how a key was held, and when last.
    pub(super) fn each(&self, hash: u64, mut visit: impl FnMut(Class, Gid)) {
        let Some(word) = self.one.get(&hash) else {
            return;
        };
        if word & MANY != MANY {
            visit(Class((word & MANY) as u8), Gid(word >> 4));
            return;
        }
        for (class, gid) in self.many[&hash]
            .iter()
            .enumerate()
            .filter(|(_, gid)| **gid != Gid::ZERO)
        {
            visit(Class(class as u8), *gid);
        }
    }

    /// A key was held by a GID, which is not lower than any before.
    pub(super) fn set(&mut self, hash: u64, class: Class, gid: Gid) {
        self.put(hash, class, gid);
        self.queue.push_back((gid, hash));
    }

    fn put(&mut self, hash: u64, class: Class, gid: Gid) {
        let word = self.one.entry(hash).or_insert(pack(class, gid));
        if *word & MANY == MANY {
            self.many.get_mut(&hash).expect("it stands aside")[class.0 as usize] = gid;
        } else if *word & MANY == u64::from(class.0) {
            *word = pack(class, gid);
        } else {
            let mut gids = [Gid::ZERO; CLASSES];
            gids[(*word & MANY) as usize] = Gid(*word >> 4);
            gids[class.0 as usize] = gid;
            *word = MANY;
            self.many.insert(hash, gids);
        }
    }

    fn newest(&self, hash: u64) -> Gid {
        let mut newest = Gid::ZERO;
        self.each(hash, |_, gid| newest = newest.max(gid));
        newest
    }

    /// Drops the keys that nobody held after `floor`.
    pub(super) fn purge(&mut self, floor: Gid) {
        while self.queue.front().is_some_and(|(gid, _)| *gid <= floor) {
            let (_, hash) = self.queue.pop_front().expect("there is one");
            if self.newest(hash) <= floor {
                self.one.remove(&hash);
                self.many.remove(&hash);
            }
        }
    }

    /// The lowest floor at which at most `keys_max` keys are left; purges to it.
    pub(super) fn shrink(&mut self, keys_max: usize) -> Gid {
        let mut floor = Gid::ZERO;
        while self.len() > keys_max
            && let Some((gid, _)) = self.queue.front()
        {
            floor = *gid;
            self.purge(floor);
        }
        floor
    }

    /// All keys in ascending order, each with how it was held.
    pub(super) fn sorted(&self) -> Vec<(u64, Vec<(Class, Gid)>)> {
        let mut keys: Vec<u64> = self.one.keys().copied().collect();
        keys.sort_unstable();
        keys.into_iter()
            .map(|hash| {
                let mut held = Vec::new();
                self.each(hash, |class, gid| held.push((class, gid)));
                (hash, held)
            })
            .collect()
    }

    /// What [`Index::sorted`] gave.
    pub(super) fn restore(keys: Vec<(u64, Vec<(Class, Gid)>)>) -> Index {
        let mut index = Index::default();
        let mut queue = Vec::new();
        for (hash, held) in keys {
            for (class, gid) in held {
                index.put(hash, class, gid);
                queue.push((gid, hash));
            }
        }
        queue.sort_unstable();
        index.queue = queue.into();
        index
    }
}
