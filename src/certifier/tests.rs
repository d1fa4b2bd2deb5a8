//! Each test is named after the failure that it prevents.

use super::*;
use crate::changeset::LockMode::{self, KeyShare, NoKeyUpdate, Share, Update};
use proptest::prelude::*;

fn key(hash: u64, mode: LockMode, flags: u8, since: u64) -> Key {
    Key {
        hash,
        since: Gid(since),
        relation: 100 + hash as u32,
        mode,
        flags,
    }
}

fn group() -> Certifier {
    let mut c = Certifier::new(Config { keys_max: 1000 });
    for m in 1..=3 {
        c.member_added(MemberId(m), Gid::ZERO);
    }
    c
}

fn certify(c: &mut Certifier, origin: u16, snapshot: u64, keys: &[Key]) -> Verdict {
    c.certify(MemberId(origin), Gid(snapshot), keys.iter().copied())
}

#[track_caller]
fn passes(verdict: Verdict, gid: u64, depends_on: u64) {
    assert_eq!(
        verdict,
        Verdict::Pass {
            gid: Gid(gid),
            depends_on: Gid(depends_on)
        }
    );
}

#[track_caller]
fn loses(verdict: Verdict, relation: u32, gid: u64, origin: u16) {
    assert_eq!(
        verdict,
        Verdict::Conflict {
            relation,
            gid: Gid(gid),
            origin: MemberId(origin)
        }
    );
}

#[test]
fn no_update_is_lost() {
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(5, NoKeyUpdate, 0, 0)]), 1, 0);
    loses(
        certify(&mut c, 2, 0, &[key(5, NoKeyUpdate, 0, 0)]),
        105,
        1,
        1,
    );
    passes(certify(&mut c, 2, 1, &[key(5, NoKeyUpdate, 0, 0)]), 2, 1);
    loses(certify(&mut c, 3, 1, &[key(5, Update, 0, 0)]), 105, 2, 2);
}

#[test]
fn one_unique_value_is_taken_once() {
    let mut c = group();
    passes(
        certify(&mut c, 1, 0, &[key(1, Update, 0, 0), key(9, Update, 0, 0)]),
        1,
        0,
    );
    loses(
        certify(&mut c, 2, 0, &[key(2, Update, 0, 0), key(9, Update, 0, 0)]),
        109,
        1,
        1,
    );
}

#[test]
fn a_late_child_is_no_orphan() {
    // The child came first; the parent's delete checked for children before it could see it.
    let mut c = group();
    passes(
        certify(
            &mut c,
            1,
            0,
            &[key(7, KeyShare, KEY_LOCK_ONLY, 0), key(70, Update, 0, 0)],
        ),
        1,
        0,
    );
    loses(certify(&mut c, 2, 1, &[key(7, Update, 0, 0)]), 107, 1, 1);
    // A delete that locked the parent after the child had come has seen it, or fails by itself.
    passes(certify(&mut c, 2, 1, &[key(7, Update, 0, 1)]), 2, 0);
    // The delete came first.
    loses(
        certify(&mut c, 1, 1, &[key(7, KeyShare, KEY_LOCK_ONLY, 1)]),
        107,
        2,
        2,
    );
}

#[test]
fn a_parent_may_change_beside_its_children() {
    let mut c = group();
    passes(
        certify(&mut c, 1, 0, &[key(7, KeyShare, KEY_LOCK_ONLY, 0)]),
        1,
        0,
    );
    passes(certify(&mut c, 2, 0, &[key(7, NoKeyUpdate, 0, 0)]), 2, 0);
    passes(
        certify(&mut c, 3, 0, &[key(7, KeyShare, KEY_LOCK_ONLY, 0)]),
        3,
        0,
    );
}

#[test]
fn share_locks_share_and_updates_wait_for_nobody_that_locked_elsewhere_in_time() {
    let mut c = group();
    passes(
        certify(&mut c, 1, 0, &[key(7, Share, KEY_LOCK_ONLY, 0)]),
        1,
        0,
    );
    passes(
        certify(&mut c, 2, 0, &[key(7, Share, KEY_LOCK_ONLY, 0)]),
        2,
        0,
    );
    loses(
        certify(&mut c, 3, 2, &[key(7, NoKeyUpdate, 0, 1)]),
        107,
        2,
        2,
    );
    passes(certify(&mut c, 3, 2, &[key(7, NoKeyUpdate, 0, 2)]), 3, 0);
}

#[test]
fn a_deferred_check_is_judged_by_when_it_looked() {
    let mut c = group();
    passes(
        certify(&mut c, 1, 0, &[key(4, Update, KEY_FROM_SINCE, 0)]),
        1,
        0,
    );
    loses(
        certify(&mut c, 2, 1, &[key(4, Update, KEY_FROM_SINCE, 0)]),
        104,
        1,
        1,
    );
    passes(
        certify(&mut c, 2, 1, &[key(4, Update, KEY_FROM_SINCE, 1)]),
        2,
        1,
    );
}

#[test]
fn a_loser_leaves_no_trace() {
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(1, Update, 0, 0)]), 1, 0);
    loses(
        certify(&mut c, 2, 0, &[key(2, Update, 0, 0), key(1, Update, 0, 0)]),
        101,
        1,
        1,
    );
    passes(certify(&mut c, 3, 0, &[key(2, Update, 0, 0)]), 2, 0);
}

#[test]
fn what_nobody_can_miss_any_more_is_forgotten() {
    let mut c = group();
    for i in 0..10 {
        passes(certify(&mut c, 1, i, &[key(i, Update, 0, i)]), i + 1, 0);
    }
    for m in [1, 2] {
        c.report_low(MemberId(m), Gid(8));
    }
    assert_eq!(
        (c.floor(), c.keys()),
        (Gid::ZERO, 10),
        "one member has not said anything yet"
    );
    c.member_removed(MemberId(3));
    assert_eq!((c.floor(), c.keys()), (Gid(8), 2));
    assert_eq!(
        certify(&mut c, 1, 7, &[key(50, Update, 0, 8)]),
        Verdict::BelowFloor
    );
    assert_eq!(
        certify(&mut c, 1, 9, &[key(50, Update, 0, 7)]),
        Verdict::BelowFloor
    );
    passes(certify(&mut c, 1, 8, &[key(50, Update, 0, 8)]), 11, 0);
    c.report_low(MemberId(1), Gid(3));
    assert_eq!(c.floor(), Gid(8), "it never sinks");
}

#[test]
fn memory_is_bounded_and_late_windows_pay_for_it() {
    let mut c = Certifier::new(Config { keys_max: 4 });
    c.member_added(MemberId(1), Gid::ZERO);
    for i in 0..10 {
        // Two keys each, one of them shared by all.
        certify(
            &mut c,
            1,
            i,
            &[key(i, Update, 0, i), key(99, KeyShare, 0, i)],
        );
        assert!(c.keys() <= 4);
    }
    assert_eq!(c.floor(), Gid(7));
    assert_eq!(
        certify(&mut c, 1, 6, &[key(77, Update, 0, 6)]),
        Verdict::BelowFloor
    );
    // What depends on a forgotten key waits for all that were forgotten.
    passes(certify(&mut c, 1, 10, &[key(0, Update, 0, 10)]), 11, 7);
}

#[test]
fn damaged_checkpoints_are_refused() {
    let mut c = group();
    certify(
        &mut c,
        1,
        0,
        &[key(1, Update, 0, 0), key(1, Share, KEY_LOCK_ONLY, 0)],
    );
    let mut bytes = Vec::new();
    c.encode(&mut bytes);
    for cut in 0..bytes.len() {
        assert!(Certifier::decode(c.config, &bytes[..cut]).is_err());
    }
    bytes.push(0);
    assert!(Certifier::decode(c.config, &bytes).is_err());
}

/// All that ever passed, looked through one by one.
#[derive(Default)]
struct Reference {
    passed: Vec<(u16, Vec<Key>)>,
    lows: BTreeMap<u16, u64>,
    floor: u64,
}

impl Reference {
    fn certify(&mut self, origin: u16, snapshot: u64, keys: &[Key]) -> Verdict {
        if snapshot < self.floor || keys.iter().any(|k| k.since.0 < self.floor) {
            return Verdict::BelowFloor;
        }
        let mut depends_on = 0;
        for mine in keys {
            let mut winner = None;
            for (i, (by, theirs)) in self.passed.iter().enumerate() {
                let gid = i as u64 + 1;
                for other in theirs
                    .iter()
                    .filter(|o| o.hash == mine.hash && o.mode.conflicts(mine.mode))
                {
                    let locked = other.flags & KEY_LOCK_ONLY != 0;
                    if !locked && mine.flags & KEY_LOCK_ONLY == 0 && gid > self.floor {
                        depends_on = depends_on.max(gid);
                    }
                    let bound = if locked || mine.flags & KEY_FROM_SINCE != 0 {
                        mine.since.0
                    } else {
                        snapshot
                    };
                    if gid > bound {
                        winner = Some((gid, *by));
                    }
                }
            }
            if let Some((gid, by)) = winner {
                return Verdict::Conflict {
                    relation: mine.relation,
                    gid: Gid(gid),
                    origin: MemberId(by),
                };
            }
        }
        self.passed.push((origin, keys.to_vec()));
        Verdict::Pass {
            gid: Gid(self.passed.len() as u64),
            depends_on: Gid(depends_on),
        }
    }

    fn settle(&mut self) {
        let low = self
            .lows
            .values()
            .min()
            .copied()
            .unwrap_or(0)
            .min(self.passed.len() as u64);
        self.floor = self.floor.max(low);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Certify {
        origin: u16,
        age: u64,
        keys: Vec<(u64, u8, u8, u64)>,
    },
    Report {
        member: u16,
        age: u64,
    },
    Leave(u16),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keys = prop::collection::vec((0..6u64, 0..4u8, 0..4u8, 0..4u64), 1..4);
    prop::collection::vec(
        prop_oneof![
            8 => (1..4u16, 0..5u64, keys).prop_map(|(origin, age, keys)| Step::Certify { origin, age, keys }),
            3 => (1..4u16, 0..6u64).prop_map(|(member, age)| Step::Report { member, age }),
            1 => (1..4u16).prop_map(Step::Leave),
            1 => Just(Step::Restart),
        ],
        1..120,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn verdicts_are_those_of_a_slow_reference(steps in steps()) {
        let mut fast = group();
        let mut slow = Reference { lows: (1..4).map(|m| (m, 0)).collect(), ..Reference::default() };
        for step in steps {
            let last = fast.last_gid().0;
            match step {
                Step::Certify { origin, age, keys } => {
                    let snapshot = last.saturating_sub(age);
                    let keys: Vec<Key> = keys.iter()
                        .map(|(h, m, f, since)| key(*h, LockMode::ALL[*m as usize], *f, snapshot.saturating_sub(*since)))
                        .collect();
                    let (a, b) = (certify(&mut fast, origin, snapshot, &keys), slow.certify(origin, snapshot, &keys));
                    // Keys that are kept longer than they need be may make apply wait, never more.
                    match (a, b) {
                        (Verdict::Pass { gid: x, depends_on: d }, Verdict::Pass { gid: y, depends_on: e }) => {
                            prop_assert_eq!(x, y);
                            prop_assert!(d >= e && d < x);
                        }
                        _ => prop_assert_eq!(a, b),
                    }
                }
                Step::Report { member, age } => {
                    fast.report_low(MemberId(member), Gid(last.saturating_sub(age)));
                    if let Some(low) = slow.lows.get_mut(&member) {
                        *low = (*low).max(last.saturating_sub(age));
                    }
                    slow.settle();
                }
                Step::Leave(member) => {
                    if slow.lows.len() > 1 {
                        fast.member_removed(MemberId(member));
                        slow.lows.remove(&member);
                        slow.settle();
                    }
                }
                Step::Restart => {
                    let (mut bytes, mut again) = (Vec::new(), Vec::new());
                    fast.encode(&mut bytes);
                    fast = Certifier::decode(fast.config, &bytes).expect("own checkpoint");
                    fast.encode(&mut again);
                    prop_assert_eq!(bytes, again);
                }
            }
            prop_assert_eq!(fast.floor().0, slow.floor);
        }
    }
}
