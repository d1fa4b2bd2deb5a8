//! Restart, checkpoints, restore, reports.

use super::bench::*;
use crate::coordinator::message::{self, DigestPoint, ENVELOPE_BYTES, Message, Report};
use crate::coordinator::{Effect, Event, GcsCommand, Outcome};
use crate::gcs;
use crate::group_state::GroupState;
use crate::ids::{Gid, Incarnation, MessageId};
use bytes::Bytes;

#[test]
fn what_the_copy_has_is_certified_and_not_applied() {
    let mut b = Bench::new(config(2));
    b.gcs(gcs::Event::View(two_voters(0)));
    for row in 100..103 {
        b.deliver_other(0, row);
    }
    for helper in [1, 2, 0] {
        b.step(Event::HelperReady { helper });
    }
    assert_eq!(b.applies(), [(1, 3, 0)]);
    b.gcs(gcs::Event::Primary(true));
    b.gcs(gcs::Event::CaughtUp);
    b.committed(3);
    // A window that began before the restart still meets the writes of then.
    b.deliver_changeset(
        OTHER,
        Incarnation(1),
        writes(OTHER, Incarnation(1), 3, 100, 0),
    );
    assert_eq!(b.applies(), [(2, 4, 1)]);
}

#[test]
fn a_copy_that_is_ahead_of_the_order_is_of_another_history() {
    let mut b = Bench::new(config(2));
    b.gcs(gcs::Event::View(two_voters(0)));
    b.deliver_other(0, 100);
    b.gcs(gcs::Event::CaughtUp);
    assert!(b.failure().contains("another history"));
}

#[test]
fn an_own_message_with_other_content_is_fatal() {
    let mut b = Bench::online();
    b.write(1, 7, 100);
    b.write(2, 7, 200);
    let (id, _) = b.sent.pop_front().expect("sent");
    let (_, other) = b.sent.pop_front().expect("sent");
    b.deliver(id, other);
    assert!(b.failure().contains("with other content"));
}

#[test]
fn a_gap_in_the_order_is_fatal() {
    let mut b = Bench::online();
    b.seq += 1;
    b.deliver_other(0, 100);
    assert!(b.failure().contains("gap"));
}

#[test]
fn checkpoints_lie_at_the_ends_of_entries_and_restart_from_them_is_exact() {
    let mut a = Bench::new(config(0));
    a.gcs(gcs::Event::View(two_voters(0)));
    for row in 0..20 {
        a.deliver_other(row.max(3) - 3, row % 5);
    }
    let checkpoints = a.checkpoints();
    let at: Vec<u64> = checkpoints.iter().map(|c| c.0).collect();
    assert_eq!(
        at,
        [4, 8, 13],
        "the third when messages have as many bytes as the second"
    );

    let (seq, gid, state) = checkpoints[1].clone();
    let mut b = Bench::new(config(gid.0));
    b.gcs(gcs::Event::Restore { seq, gid, state });
    (b.seq, b.index) = (seq, seq + 1);
    for row in seq..20 {
        b.deliver_other(row.max(3) - 3, row % 5);
    }
    assert_eq!(b.checkpoints(), checkpoints[2..], "byte for byte");
    assert_eq!(a.core.digest(), b.core.digest());
}

/// Else a large state, written again and again, would be most of the log.
#[test]
fn checkpoints_take_no_more_of_the_log_than_messages() {
    let mut a = Bench::new(config(0));
    a.gcs(gcs::Event::View(two_voters(0)));
    for row in 0..400 {
        a.deliver_other(0, row);
    }
    let checkpoints = a.checkpoints();
    let message = (ENVELOPE_BYTES + changeset_bytes()) as u64;
    for pair in checkpoints.windows(2) {
        let between = (pair[1].0 - pair[0].0) * message;
        assert!(between >= pair[0].2.len() as u64, "after {}", pair[0].0);
    }
    assert!(checkpoints.len() >= 4 && checkpoints[0].0 == 4);

    let (seq, gid, state) = checkpoints[1].clone();
    let mut b = Bench::new(config(gid.0));
    b.gcs(gcs::Event::Restore { seq, gid, state });
    (b.seq, b.index) = (seq, seq + 1);
    for row in seq..400 {
        b.deliver_other(0, row);
    }
    assert_eq!(b.checkpoints(), checkpoints[2..], "at the same positions");
}

#[test]
fn a_batch_is_not_cut_by_a_checkpoint() {
    let mut b = Bench::new(config(0));
    b.gcs(gcs::Event::View(two_voters(0)));
    for row in 0..7 {
        b.deliver_other(0, row);
        b.index -= 1;
    }
    assert!(b.checkpoints().is_empty(), "all in one entry");
    b.index += 1;
    b.deliver_other(0, 7);
    assert_eq!(b.checkpoints()[0].0, 7);
}

#[test]
fn a_checkpoint_beyond_the_copy_is_refused() {
    let mut a = Bench::new(config(0));
    a.gcs(gcs::Event::View(two_voters(0)));
    for row in 0..5 {
        a.deliver_other(0, row);
    }
    let (seq, gid, state) = a.checkpoints().remove(0);
    let mut b = Bench::new(config(3));
    b.gcs(gcs::Event::Restore { seq, gid, state });
    assert!(
        b.failure()
            .contains("checkpoint is at GID 4, but this copy has only GID 3")
    );
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let mut a = Bench::new(config(0));
    a.gcs(gcs::Event::View(two_voters(0)));
    for row in 0..5 {
        a.deliver_other(0, row);
    }
    let (seq, gid, state) = a.checkpoints().remove(0);
    for at in 0..state.len() {
        let mut damaged = state.to_vec();
        damaged[at] ^= 0x10;
        let mut b = Bench::new(config(100));
        b.gcs(gcs::Event::Restore {
            seq,
            gid,
            state: Bytes::from(damaged),
        });
        assert_eq!(b.state(), GroupState::Failed, "byte {at}");
    }
}

#[test]
fn what_another_build_has_ordered_is_not_passed_over() {
    let mut b = Bench::online();
    let mut message = message::status(Report::default(), DigestPoint::default()).to_vec();
    message[1] = message::VERSION - 1;
    let id = MessageId {
        member: OTHER,
        incarnation: Incarnation(1),
        number: 1,
    };
    b.deliver(id, Bytes::from(message));
    assert!(b.failure().contains("written by another build"));
}

#[test]
fn positions_travel_with_changesets_and_alone_when_it_is_quiet() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    let (_, payload) = &b.sent[0];
    assert!(
        matches!(message::parse(payload), Ok(Message::Changeset(r, _)) if r == Report::default())
    );
    b.deliver_own();
    b.committed(1);
    b.ticks(PACE.status_ticks);
    assert_eq!(b.sent.len(), 1);
    let one = Report {
        low: Gid(1),
        committed: Gid(1),
        flushed: Gid(1),
    };
    assert!(matches!(message::parse(&b.sent[0].1), Ok(Message::Status(r, _)) if r == one));
    b.deliver_own();
    b.ticks(10 * PACE.status_ticks);
    assert!(b.sent.is_empty(), "nothing moved");
}

#[test]
fn the_log_is_needed_from_what_the_slowest_member_has_flushed() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.deliver_own();
    b.committed(1);
    let report = Report {
        low: Gid(1),
        committed: Gid(1),
        flushed: Gid(1),
    };
    b.deliver_status(OTHER, report, DigestPoint::default());
    b.effects.clear();
    b.ticks(PACE.status_ticks);
    b.deliver_own();
    b.ticks(1);
    let stable: Vec<(Gid, Gid)> = b.effects.iter().filter_map(stable).collect();
    assert_eq!(stable, [(Gid(1), Gid(0)), (Gid(1), Gid(1))]);
}

fn stable(effect: &Effect) -> Option<(Gid, Gid)> {
    match effect {
        Effect::Gcs(GcsCommand::Stable { own, all }) => Some((*own, *all)),
        _ => None,
    }
}

#[test]
fn a_member_whose_verdicts_differ_leaves() {
    let mut b = Bench::online();
    for row in [100, 101] {
        b.deliver_other(0, row);
    }
    b.committed(2);
    b.ticks(1);
    let (_, payload) = &b.sent[0];
    let Ok(Message::Status(_, mine)) = message::parse(payload) else {
        panic!("a status")
    };
    assert_eq!(mine.gid, Gid(2));
    b.write(7, 1, 300);
    // Of two, the one with the lower number stays.
    let other = DigestPoint {
        digest: mine.digest ^ 1,
        ..mine
    };
    b.deliver_status(OTHER, Report::default(), other);
    b.deliver_own();
    assert_eq!(b.state(), GroupState::Online);

    let mut three = Bench::online();
    let mut view = two_voters(0);
    view.members.push(crate::gcs::MemberInfo {
        id: crate::ids::MemberId(3),
        ..view.members[1].clone()
    });
    three.gcs(gcs::Event::View(view));
    for row in [100, 101] {
        three.deliver_other(0, row);
    }
    three.ticks(1);
    three.write(7, 1, 300);
    three.deliver_own();
    three.deliver_status(OTHER, Report::default(), other);
    assert_eq!(three.state(), GroupState::Online);
    three.deliver_status(crate::ids::MemberId(3), Report::default(), other);
    assert!(three.failure().contains("differ"));
    assert_eq!(three.verdicts(), [(7, 1, Outcome::Unknown)]);
    three.step(Event::Tick);
}
