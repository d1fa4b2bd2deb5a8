//! Each test is named after the failure that it prevents.

use super::*;
use crate::changeset::LockMode::{self, KeyShare, NoKeyUpdate, Share, Update};
use crate::changeset::key::{KEY_BLIND, KEY_ORDER, KEY_READ, KEY_RELATION};
use crate::limits::RESERVATION_ENTRIES;

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
fn a_row_is_looked_for_after_it_has_come() {
    let mut c = group();
    let writes = key(5, KeyShare, KEY_RELATION, 0);
    let order = key(5, Update, KEY_RELATION | KEY_ORDER, 0);
    let locks = key(5, Update, KEY_RELATION | KEY_LOCK_ONLY, 1);
    passes(certify(&mut c, 1, 0, &[writes]), 1, 0);
    // It has not seen the one before, and what it looks for may have come with that.
    passes(
        certify(&mut c, 2, 0, &[order, writes, key(50, Update, 0, 0)]),
        2,
        1,
    );
    passes(certify(&mut c, 3, 0, &[writes]), 3, 0);
    passes(certify(&mut c, 1, 3, &[order]), 4, 3);
    // It left nothing that anybody would meet, nor does it mind locks.
    passes(certify(&mut c, 2, 3, &[locks]), 5, 0);
    passes(certify(&mut c, 3, 3, &[order]), 6, 3);
}

#[test]
fn who_writes_blindly_comes_after_the_others_and_never_loses() {
    let blind = key(5, Update, KEY_BLIND, 0);
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[blind]), 1, 0);
    passes(certify(&mut c, 2, 0, &[blind]), 2, 1);
    passes(certify(&mut c, 1, 0, &[key(6, Update, 0, 0), blind]), 3, 2);
    // Not even by coming from below the floor.
    for m in 1..=3 {
        c.report_low(MemberId(m), Gid(3));
    }
    passes(certify(&mut c, 3, 1, &[blind]), 4, 3);
    assert_eq!(certify(&mut c, 3, 1, &[key(5, Update, 0, 1)]), {
        Verdict::Conflict {
            relation: 105,
            gid: Gid(4),
            origin: MemberId(3),
        }
    });
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
fn what_was_read_is_as_it_was_or_the_reader_loses() {
    let read = |hash, mode, since| key(hash, mode, KEY_READ, since);
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(5, NoKeyUpdate, 0, 0)]), 1, 0);
    // Applied at the reader's origin before it multicast, and yet its snapshot is older.
    let writes = key(6, Update, 0, 1);
    loses(
        certify(&mut c, 2, 1, &[read(5, Share, 0), writes]),
        105,
        1,
        1,
    );
    passes(certify(&mut c, 2, 1, &[read(5, Share, 1), writes]), 2, 0);
    // Its reads are nothing that a later writer would have to know.
    passes(certify(&mut c, 3, 1, &[key(5, NoKeyUpdate, 0, 1)]), 3, 1);
}

#[test]
fn a_reader_does_not_mind_locks() {
    let mut c = group();
    passes(
        certify(&mut c, 1, 0, &[key(5, Update, KEY_LOCK_ONLY, 0)]),
        1,
        0,
    );
    passes(certify(&mut c, 2, 0, &[key(5, Share, KEY_READ, 0)]), 2, 0);
}

#[test]
fn a_reader_whose_snapshot_is_forgotten_loses() {
    let mut c = group();
    for i in 0..5 {
        passes(certify(&mut c, 1, i, &[key(i, Update, 0, i)]), i + 1, 0);
    }
    for m in 1..=3 {
        c.report_low(MemberId(m), Gid(4));
    }
    assert_eq!(
        certify(&mut c, 2, 5, &[key(50, Share, KEY_READ, 3)]),
        Verdict::BelowFloor
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
        (c.floor(), c.retained()),
        (Gid::ZERO, 20),
        "one member has not said anything yet"
    );
    c.member_removed(MemberId(3));
    assert_eq!((c.floor(), c.retained()), (Gid(8), 4));
    assert_eq!(
        certify(&mut c, 1, 7, &[key(50, Update, 0, 8)]),
        Verdict::BelowFloor
    );
    assert_eq!(
        certify(&mut c, 1, 9, &[key(50, Update, 0, 7)]),
        Verdict::BelowFloor
    );
    passes(certify(&mut c, 1, 8, &[key(50, Update, 0, 8)]), 11, 8);
    c.report_low(MemberId(1), Gid(3));
    assert_eq!(c.floor(), Gid(8), "it never sinks");
}

#[test]
fn memory_is_bounded_and_late_windows_pay_for_it() {
    let mut c = Certifier::new(Config { keys_max: 10 });
    c.member_added(MemberId(1), Gid::ZERO);
    for i in 0..10 {
        // A GID and two entries each, one of them shared by all.
        let keys = [key(i, Update, 0, i), key(99, KeyShare, 0, i)];
        certify(&mut c, 1, i, &keys);
        assert!(c.retained() <= 10);
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
fn a_changeset_beyond_the_bound_stops_later_ones_for_ever() {
    let mut c = Certifier::new(Config { keys_max: 10 });
    let keys: Vec<Key> = (0..50).map(|hash| key(hash, Update, 0, 0)).collect();
    passes(certify(&mut c, 1, 0, &keys), 1, 0);
    assert_eq!((c.floor(), c.retained()), (Gid(1), 0));
    assert_eq!(certify(&mut c, 2, 0, &keys[..1]), Verdict::BelowFloor);
    passes(certify(&mut c, 2, 1, &[key(3, Update, 0, 1)]), 2, 1);
}

#[test]
fn a_member_that_restarts_below_the_floor_applies_too_early() {
    // It reported 2 and lost the end of its WAL: now it has only 1, and 3 rewrites what 2 wrote.
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(4, Update, 0, 0)]), 1, 0);
    passes(certify(&mut c, 1, 1, &[key(5, Update, 0, 1)]), 2, 0);
    for m in 1..=3 {
        c.report_low(MemberId(m), Gid(2));
    }
    passes(certify(&mut c, 1, 2, &[key(5, Update, 0, 2)]), 3, 2);
}

#[test]
fn two_transactions_of_one_member_overwrite_each_other() {
    // The first one's worker died after it was multicast: its locks are gone, a helper will redo
    // it, and the second one wrote the row before that.
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(5, NoKeyUpdate, 0, 0)]), 1, 0);
    loses(
        certify(&mut c, 1, 0, &[key(5, NoKeyUpdate, 0, 0)]),
        105,
        1,
        1,
    );
}

#[test]
fn a_window_beyond_the_last_gid_sees_no_conflict() {
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(5, Update, 0, 0)]), 1, 0);
    assert_eq!(
        certify(&mut c, 2, 2, &[key(5, Update, 0, 2)]),
        Verdict::BelowFloor
    );
    // A `since` beyond the snapshot GID counts as that.
    passes(
        certify(&mut c, 1, 1, &[key(6, Share, KEY_LOCK_ONLY, 1)]),
        2,
        0,
    );
    loses(certify(&mut c, 2, 1, &[key(6, Update, 0, 9)]), 106, 2, 1);
}

#[test]
fn the_weaker_of_two_entries_hides_the_stronger() {
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(5, Update, 0, 0)]), 1, 0);
    let weaker = [key(5, KeyShare, 0, 1), key(5, Share, KEY_LOCK_ONLY, 1)];
    passes(certify(&mut c, 1, 1, &weaker), 2, 1);
    // Key-share beside key-share collides with the update at 1 alone.
    loses(certify(&mut c, 2, 0, &[key(5, KeyShare, 0, 0)]), 105, 1, 1);
    passes(certify(&mut c, 2, 1, &[key(5, KeyShare, 0, 1)]), 3, 1);
}

#[test]
fn a_report_of_more_than_there_is_lifts_the_floor_beyond_the_order() {
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(5, Update, 0, 0)]), 1, 0);
    for m in 1..=3 {
        c.report_low(MemberId(m), Gid(u64::MAX));
    }
    c.report_low(MemberId(9), Gid::ZERO);
    assert_eq!(c.floor(), Gid(1));
    passes(certify(&mut c, 2, 1, &[key(5, Update, 0, 1)]), 2, 1);
}

#[test]
fn a_member_that_joins_lowers_the_floor_to_what_is_gone() {
    let mut c = group();
    passes(certify(&mut c, 1, 0, &[key(5, Update, 0, 0)]), 1, 0);
    for m in 1..=3 {
        c.report_low(MemberId(m), Gid(1));
    }
    c.member_added(MemberId(4), Gid::ZERO);
    assert_eq!(c.floor(), Gid(1));
    // It holds the floor until it reports.
    passes(certify(&mut c, 1, 1, &[key(5, Update, 0, 1)]), 2, 1);
    for m in 1..=3 {
        c.report_low(MemberId(m), Gid(2));
    }
    assert_eq!(c.floor(), Gid(1));
    c.report_low(MemberId(4), Gid(2));
    assert_eq!(c.floor(), Gid(2));
}

#[test]
fn a_different_verdict_goes_unnoticed() {
    let (mut a, mut b) = (group(), group());
    for c in [&mut a, &mut b] {
        passes(certify(c, 1, 0, &[key(5, Update, 0, 0)]), 1, 0);
    }
    assert_eq!(a.digest(), b.digest());
    passes(certify(&mut a, 1, 1, &[key(5, Update, 0, 1)]), 2, 1);
    loses(certify(&mut b, 1, 0, &[key(5, Update, 0, 1)]), 105, 1, 1);
    assert_ne!(a.digest(), b.digest());
}

/// A state with members, GIDs of several origins and entries of several kinds.
fn example() -> Certifier {
    let mut c = group();
    c.reserve(MemberId(2), &[102, 101], 7);
    c.reserve(MemberId(3), &[103], 8);
    let keys = [key(1, Update, 0, 0), key(1, Share, KEY_LOCK_ONLY, 0)];
    passes(certify(&mut c, 1, 0, &keys), 1, 0);
    passes(certify(&mut c, 2, 1, &[key(2, NoKeyUpdate, 0, 1)]), 2, 0);
    passes(certify(&mut c, 3, 2, &[]), 3, 0);
    passes(certify(&mut c, 3, 3, &[key(3, Update, 0, 3)]), 4, 0);
    c.report_low(MemberId(1), Gid(1));
    c.release(MemberId(3), 8);
    c
}

fn encoded(c: &Certifier) -> Vec<u8> {
    let mut bytes = Vec::new();
    c.encode(&mut bytes);
    bytes
}

#[test]
fn damaged_checkpoints_are_accepted() {
    let c = example();
    let good = encoded(&c);
    assert!(Certifier::decode(c.config, &good).is_ok());
    for cut in 0..good.len() {
        let cut = Certifier::decode(c.config, &good[..cut]);
        assert_eq!(cut.expect_err("cut off"), DecodeError::Damaged);
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let bad = Certifier::decode(c.config, &bad);
        assert_eq!(bad.expect_err("flipped"), DecodeError::Damaged);
    }
    let other = Certifier::decode(Config { keys_max: 7 }, &good);
    assert_eq!(other.expect_err("other bound"), DecodeError::Bound(1000));
}

#[test]
fn contradictions_under_a_right_checksum_are_accepted() {
    let c = example();
    let refused = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = encoded(&c);
        bytes.truncate(bytes.len() - 4);
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes).to_le_bytes();
        bytes.extend_from_slice(&crc);
        match Certifier::decode(c.config, &bytes) {
            Err(DecodeError::Inconsistent(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    // The head takes 64 bytes, each of the three members 16, each of the two turns 56, each of the four
    // GIDs 8.
    let (members, turns, gids) = (64, 112, 224);
    let slots = encoded(&c).len() - 4 - 4;
    for (change, what) in [
        (
            &(|b: &mut [u8]| b[24] = 5) as &dyn Fn(&mut [u8]),
            "floor and last GID",
        ),
        (&|b| b[49] = 4, "more is retained than the bound allows"),
        (&|b| b[members + 2] = 1, "the number of a member"),
        (&|b| b[members] = 2, "members out of order"),
        (
            &|b| b[members + 8] = 5,
            "a member reported more than there is",
        ),
        (
            &|b| {
                b[members + 16 + 8] = 1;
                b[members + 32 + 8] = 1;
            },
            "the floor is below all reports",
        ),
        (&|b| b[turns + 2] = 1, "a reservation"),
        (&|b| b[turns + 8] = 0, "a reservation"),
        (&|b| b[turns + 20] = 9, "a reservation"),
        (&|b| b[turns + 20] = 1, "a reservation"),
        (&|b| b[turns] = 4, "the reservations"),
        (&|b| b[turns + 18] = 1, "the reservations"),
        (&|b| b[turns + 28] = 0, "the reservations"),
        (&|b| b[turns + 56 + 16] = 0, "the reservations"),
        (&|b| b[gids + 2] = 1, "the number of an origin"),
        (
            &|b| b[gids + 24 + 4] = 2,
            "fewer entries than the GIDs have",
        ),
        (&|b| b[gids + 24 + 4] = 0, "more entries than the GIDs have"),
        (&|b| b[slots] = 8, "a slot"),
        (&|b| b[slots] = b[slots + 1], "an entry twice under one GID"),
    ] {
        assert_eq!(refused(change), what);
    }
}

#[test]
fn contradictions_under_a_right_checksum_panic() {
    let c = example();
    let good = encoded(&c);
    for at in 0..good.len() - 4 {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad.truncate(good.len() - 4);
            bad[at] ^= 1 << bit;
            let crc = crc32fast::hash(&bad).to_le_bytes();
            bad.extend_from_slice(&crc);
            // Some flips make another state that could be; it must then be one that works.
            if let Ok(mut other) = Certifier::decode(c.config, &bad) {
                assert_eq!(encoded(&other), bad);
                let last = other.last_gid().0;
                certify(&mut other, 1, last, &[key(1, Update, 0, last)]);
                other.report_low(MemberId(2), Gid(last));
            }
        }
    }
}

/// The intent of a write of relation `100 + n`.
fn intent(n: u64, since: u64) -> Key {
    key(n, KeyShare, KEY_RELATION, since)
}

fn reserved(relation: u32, member: u16) -> Verdict {
    let member = MemberId(member);
    Verdict::Reserved { relation, member }
}

#[test]
fn a_long_writer_is_overtaken_though_it_has_a_reservation() {
    let mut c = group();
    c.reserve(MemberId(1), &[105, 106], 1);
    assert_eq!(certify(&mut c, 2, 0, &[intent(5, 0)]), reserved(105, 1));
    assert_eq!(certify(&mut c, 3, 0, &[intent(6, 0)]), reserved(106, 1));
    let locker = key(5, KeyShare, KEY_RELATION | KEY_LOCK_ONLY, 0);
    assert_eq!(certify(&mut c, 3, 0, &[locker]), reserved(105, 1));
    // What only reads, what else is there, and what else its own member does.
    let read = key(5, Share, KEY_RELATION | KEY_READ, 0);
    assert!(matches!(
        certify(&mut c, 4, 0, &[read]),
        Verdict::Pass { .. }
    ));
    passes(certify(&mut c, 2, 0, &[intent(7, 0)]), 2, 0);
    passes(certify(&mut c, 1, 0, &[intent(5, 0)]), 3, 0);
    assert_eq!(certify(&mut c, 2, 3, &[intent(5, 3)]), reserved(105, 1));
    // It is judged, and the others go on.
    passes(certify(&mut c, 1, 0, &[intent(5, 0), intent(6, 0)]), 4, 0);
    c.reservation_used(MemberId(1));
    passes(certify(&mut c, 2, 4, &[intent(5, 4)]), 5, 0);
}

#[test]
fn a_member_has_its_reservations_one_after_the_other() {
    let mut c = group();
    let positions = |c: &Certifier| c.reservations().collect::<Vec<_>>();
    c.reserve(MemberId(1), &[105], 1);
    c.reserve(MemberId(1), &[106], 2);
    assert_eq!(positions(&c), [(MemberId(1), 1)]);
    for _ in 0..3 {
        assert_eq!(certify(&mut c, 2, 0, &[intent(5, 0)]), reserved(105, 1));
    }
    c.release(MemberId(1), 2);
    assert_eq!(positions(&c), [(MemberId(1), 1)], "another one");
    c.release(MemberId(1), 1);
    // As many of others must have their turn, and its own don't count.
    for gid in 1..=3 {
        c.reserve(MemberId(1), &[106], 3);
        assert!(positions(&c).is_empty());
        passes(certify(&mut c, 1, 0, &[]), 2 * gid - 1, 0);
        passes(certify(&mut c, 3, 0, &[intent(5, 0)]), 2 * gid, 0);
    }
    c.reserve(MemberId(1), &[106], 4);
    assert_eq!(positions(&c), [(MemberId(1), 4)]);
    // With no other at work it need not rest.
    c.release(MemberId(1), 4);
    c.reserve(MemberId(1), &[106], 5);
    assert_eq!(positions(&c), [(MemberId(1), 5)]);
}

#[test]
fn two_members_reserve_what_both_want_and_neither_goes_on() {
    let mut c = group();
    c.reserve(MemberId(1), &[105], 1);
    c.reserve(MemberId(2), &[106, 105], 2);
    passes(certify(&mut c, 3, 0, &[intent(6, 0)]), 1, 0);
    c.reserve(MemberId(3), &[106], 3);
    assert_eq!(certify(&mut c, 2, 1, &[intent(6, 1)]), reserved(106, 3));
    // Nor does a reservation outlast its member.
    c.member_removed(MemberId(3));
    passes(certify(&mut c, 2, 1, &[intent(6, 1)]), 2, 0);
}

#[test]
fn a_reservation_lasts_for_ever() {
    let mut c = group();
    c.reserve(MemberId(1), &[105], 1);
    let entries = u64::from(RESERVATION_ENTRIES);
    for last in 0..entries - 1 {
        let verdict = certify(&mut c, 2, last, &[]);
        assert!(matches!(verdict, Verdict::Pass { .. }));
    }
    assert_eq!(certify(&mut c, 3, 0, &[intent(5, 0)]), reserved(105, 1));
    let last = c.last_gid().0;
    let verdict = certify(&mut c, 3, last, &[intent(5, last)]);
    assert!(matches!(verdict, Verdict::Pass { .. }));
    assert_eq!(c.reservations().count(), 0);
}
