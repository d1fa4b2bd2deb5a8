//! A slow certifier to check the fast one against: it keeps everything that ever passed and looks
//! through all of it each time. Written from the rules in `README.md`, not from the code beside it.

use super::{Certifier, Config, Verdict};
use crate::changeset::key::{
    KEY_BLIND, KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_ORDER, KEY_READ, KEY_RELATION, KEY_WRITES_ONLY,
};
use crate::changeset::{Key, LockMode};
use crate::ids::{Gid, MemberId};
use crate::limits::{RESERVATION_ENTRIES, RESERVED_RELATIONS_MAX};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

struct Reference {
    keys_max: u64,
    passed: Vec<(u16, Vec<Key>)>,
    lows: BTreeMap<u16, u64>,
    floor: u64,
    /// Every changeset judged, by origin: what others' changesets are counted in.
    judged: Vec<u16>,
    /// What was ever granted.
    grants: Vec<Grant>,
}

/// A reservation that was granted, between two lengths of `judged`.
struct Grant {
    member: u16,
    relations: BTreeSet<u32>,
    position: u64,
    from: usize,
    to: Option<usize>,
}

impl Reference {
    fn last(&self) -> u64 {
        self.passed.len() as u64
    }

    /// Changesets of others than `member` among those judged from one to another.
    fn others(&self, member: u16, from: usize, to: usize) -> usize {
        self.judged[from..to]
            .iter()
            .filter(|o| **o != member)
            .count()
    }

    /// The reservation that the member has.
    fn held(&self, member: u16) -> Option<usize> {
        (self.grants.iter()).position(|g| g.member == member && g.to.is_none())
    }

    fn reserve(&mut self, member: u16, relations: &[u32], position: u64) {
        let relations: BTreeSet<u32> = relations.iter().copied().collect();
        let now = self.judged.len();
        let taken =
            (self.grants.iter()).any(|g| g.to.is_none() && !g.relations.is_disjoint(&relations));
        let last = self.grants.iter().rev().find(|g| g.member == member);
        let may = last.is_none_or(|g| {
            g.to.is_some_and(|to| self.others(member, to, now) >= self.others(member, g.from, to))
        });
        if may && !taken && (1..=RESERVED_RELATIONS_MAX).contains(&relations.len()) {
            self.grants.push(Grant {
                member,
                relations,
                position,
                from: now,
                to: None,
            });
        }
    }

    fn release(&mut self, member: u16, position: Option<u64>) {
        let now = self.judged.len();
        if let Some(at) = self.held(member)
            && position.is_none_or(|p| p == self.grants[at].position)
        {
            self.grants[at].to = Some(now);
        }
    }

    fn certify(&mut self, origin: u16, snapshot: u64, keys: &[Key]) -> Verdict {
        let verdict = self.judge(origin, snapshot, keys);
        self.judged.push(origin);
        let now = self.judged.len();
        for i in 0..self.grants.len() {
            let Grant {
                member, from, to, ..
            } = self.grants[i];
            if to.is_none() && self.others(member, from, now) >= RESERVATION_ENTRIES as usize {
                self.grants[i].to = Some(now);
            }
        }
        verdict
    }

    fn judge(&mut self, origin: u16, snapshot: u64, keys: &[Key]) -> Verdict {
        if snapshot > self.last() {
            return Verdict::BelowFloor;
        }
        let mut depends_on = self.floor;
        for mine in keys {
            let foreign = |g: &&Grant| {
                g.to.is_none() && g.member != origin && g.relations.contains(&mine.relation)
            };
            if mine.flags & (KEY_RELATION | KEY_READ) == KEY_RELATION
                && let Some(grant) = self.grants.iter().find(foreign)
            {
                return Verdict::Reserved {
                    relation: mine.relation,
                    member: MemberId(grant.member),
                };
            }
            let since = mine.since.0.min(snapshot);
            for gid in (1..=self.last()).rev().filter(|gid| *gid > self.floor) {
                let (winner, theirs) = &self.passed[gid as usize - 1];
                for other in theirs {
                    if other.hash != mine.hash || !other.mode.conflicts(mine.mode) {
                        continue;
                    }
                    let only_locked = other.flags & KEY_LOCK_ONLY != 0;
                    let read = mine.flags & KEY_READ != 0;
                    if other.flags & KEY_READ != 0 {
                        continue;
                    }
                    if mine.flags & KEY_ORDER == KEY_ORDER {
                        if !only_locked {
                            depends_on = depends_on.max(gid);
                        }
                        continue;
                    }
                    if only_locked && (read || mine.flags & KEY_WRITES_ONLY != 0) {
                        continue;
                    }
                    let window = if only_locked || read || mine.flags & KEY_FROM_SINCE != 0 {
                        since
                    } else {
                        snapshot
                    };
                    if gid > window && mine.flags & KEY_BLIND == 0 {
                        return Verdict::Conflict {
                            relation: mine.relation,
                            gid: Gid(gid),
                            origin: MemberId(*winner),
                        };
                    }
                    if !only_locked && mine.flags & KEY_LOCK_ONLY == 0 && !read {
                        depends_on = depends_on.max(gid);
                    }
                }
            }
            if since < self.floor && mine.flags & KEY_BLIND == 0 {
                return Verdict::BelowFloor;
            }
        }
        self.passed.push((origin, keys.to_vec()));
        while self.weight() > self.keys_max {
            self.floor += 1;
        }
        Verdict::Pass {
            gid: Gid(self.last()),
            depends_on: Gid(depends_on),
        }
    }

    fn weight(&self) -> u64 {
        self.passed[self.floor as usize..]
            .iter()
            .map(|(_, keys)| {
                let entries: BTreeSet<_> = keys
                    .iter()
                    .filter(|k| k.flags & KEY_READ == 0)
                    .map(|k| (k.hash, k.mode, k.flags & KEY_LOCK_ONLY))
                    .collect();
                1 + entries.len() as u64
            })
            .sum()
    }

    fn settle(&mut self) {
        if let Some(low) = self.lows.values().min() {
            self.floor = self.floor.max(*low);
        }
    }
}

/// Any of those that a key of a write or a lock can have, those of a read, of an order or of a blind write.
fn flags_of(choice: u8) -> u8 {
    let bits = [KEY_LOCK_ONLY, KEY_FROM_SINCE, KEY_WRITES_ONLY, KEY_RELATION];
    match choice {
        16 => KEY_READ,
        17 => KEY_READ | KEY_RELATION,
        18 => KEY_ORDER | KEY_RELATION,
        19 => KEY_BLIND,
        _ => (0..4).map(|bit| (choice >> bit & 1) * bits[bit]).sum(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A changeset whose snapshot GID is so old, with keys: hash, mode, flags, age of `since`.
    Certify(u16, u64, Vec<(u64, usize, u8, u64)>),
    /// From a broken origin: a snapshot GID so far ahead.
    Ahead(u16, u64),
    Report(u16, u64),
    Join(u16, u64),
    Leave(u16),
    /// Relations from 100 on, a bit each.
    Reserve(u16, u32),
    /// The member's reservation, or an old one of it.
    Release(u16, bool),
    Used(u16),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let member = || 1..5u16;
    let key = (0..6u64, 0..4usize, 0..19u8, 0..5u64);
    let keys = prop::collection::vec(key, 0..5);
    prop_oneof![
        16 => (member(), 0..6u64, keys).prop_map(|(m, age, keys)| Step::Certify(m, age, keys)),
        1 => (member(), 1..3u64).prop_map(|(m, ahead)| Step::Ahead(m, ahead)),
        4 => (member(), 0..8u64).prop_map(|(m, age)| Step::Report(m, age)),
        1 => (member(), 0..20u64).prop_map(|(m, age)| Step::Join(m, age)),
        1 => member().prop_map(Step::Leave),
        2 => (member(), 0..64u32).prop_map(|(m, relations)| Step::Reserve(m, relations)),
        1 => (member(), any::<bool>()).prop_map(|(m, old)| Step::Release(m, old)),
        1 => member().prop_map(Step::Used),
        1 => Just(Step::Restart),
    ]
}

fn encoded(certifier: &Certifier) -> Vec<u8> {
    let mut bytes = Vec::new();
    certifier.encode(&mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Three that see the same order: one that restarts from checkpoints, one that never does, and
    /// the reference.
    #[test]
    fn verdicts_differ_from_the_rules_or_between_members(
        keys_max in prop_oneof![2..30usize, Just(1000)],
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let config = Config { keys_max };
        let mut restarted = Certifier::new(config);
        let mut steady = Certifier::new(config);
        let mut reference = Reference {
            keys_max: keys_max as u64,
            passed: Vec::new(),
            lows: BTreeMap::new(),
            floor: 0,
            judged: Vec::new(),
            grants: Vec::new(),
        };
        for (position, step) in (1..).zip(steps) {
            let last = reference.last();
            let ago = |age: u64| last.saturating_sub(age);
            match step {
                Step::Certify(origin, age, keys) => {
                    let snapshot = ago(age);
                    let keys: Vec<Key> = keys
                        .into_iter()
                        .map(|(hash, mode, flags, age)| Key {
                            hash,
                            since: Gid(snapshot.saturating_sub(age)),
                            relation: 100 + hash as u32,
                            mode: LockMode::ALL[mode],
                            flags: flags_of(flags),
                        })
                        .collect();
                    let expected = reference.certify(origin, snapshot, &keys);
                    for certifier in [&mut restarted, &mut steady] {
                        let keys = keys.iter().copied();
                        let verdict = certifier.certify(MemberId(origin), Gid(snapshot), keys);
                        prop_assert_eq!(verdict, expected);
                    }
                }
                Step::Ahead(origin, ahead) => {
                    let expected = reference.certify(origin, last + ahead, &[]);
                    for certifier in [&mut restarted, &mut steady] {
                        let keys = std::iter::empty();
                        let verdict = certifier.certify(MemberId(origin), Gid(last + ahead), keys);
                        prop_assert_eq!(verdict, expected);
                    }
                }
                Step::Report(member, age) => {
                    restarted.report_low(MemberId(member), Gid(ago(age)));
                    steady.report_low(MemberId(member), Gid(ago(age)));
                    if let Some(low) = reference.lows.get_mut(&member) {
                        *low = (*low).max(ago(age));
                    }
                    reference.settle();
                }
                Step::Join(member, age) => {
                    restarted.member_added(MemberId(member), Gid(ago(age)));
                    steady.member_added(MemberId(member), Gid(ago(age)));
                    reference.lows.entry(member).or_insert(ago(age));
                    reference.settle();
                }
                Step::Leave(member) => {
                    restarted.member_removed(MemberId(member));
                    steady.member_removed(MemberId(member));
                    reference.lows.remove(&member);
                    reference.grants.retain(|g| g.member != member);
                    reference.settle();
                }
                Step::Reserve(member, relations) => {
                    let relations: Vec<u32> = (0..6u32)
                        .filter(|bit| relations >> bit & 1 == 1)
                        .map(|bit| 100 + bit)
                        .collect();
                    reference.reserve(member, &relations, position);
                    restarted.reserve(MemberId(member), &relations, position);
                    steady.reserve(MemberId(member), &relations, position);
                }
                Step::Release(member, old) => {
                    let held = reference.held(member).map(|at| reference.grants[at].position);
                    let position = held.filter(|_| !old).unwrap_or(position + 1);
                    reference.release(member, Some(position));
                    restarted.release(MemberId(member), position);
                    steady.release(MemberId(member), position);
                }
                Step::Used(member) => {
                    reference.release(member, None);
                    restarted.reservation_used(MemberId(member));
                    steady.reservation_used(MemberId(member));
                }
                Step::Restart => {
                    let bytes = encoded(&restarted);
                    prop_assert_eq!(&bytes, &encoded(&steady));
                    restarted = Certifier::decode(config, &bytes).expect("its own checkpoint");
                    prop_assert_eq!(&bytes, &encoded(&restarted));
                }
            }
            for certifier in [&restarted, &steady] {
                prop_assert_eq!(certifier.floor().0, reference.floor);
                prop_assert_eq!(certifier.last_gid().0, reference.last());
                prop_assert_eq!(certifier.retained(), reference.weight());
                for member in 1..5 {
                    let held = reference.held(member).map(|at| reference.grants[at].position);
                    let mine = certifier.reservations().find(|(m, _)| m.0 == member);
                    prop_assert_eq!(mine.map(|(_, at)| at), held);
                }
            }
            prop_assert_eq!(restarted.digest(), steady.digest());
        }
        prop_assert_eq!(encoded(&restarted), encoded(&steady));
    }
}
