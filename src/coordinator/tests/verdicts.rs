//! What becomes of a worker's multicast.

use super::bench::*;
use crate::changeset::header::{FLAG_DETACHED, FLAG_LOCAL_EFFECTS};
use crate::coordinator::{Event, Outcome};
use crate::gcs::Refused;
use crate::group_state::GroupState;
use crate::ids::{Gid, Incarnation};

const PASS_1: Outcome = Outcome::Pass { gid: Gid(1) };

#[test]
fn a_delivered_write_passes_and_leaves_no_trace_once_committed() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    assert_eq!(b.core.stats().in_flight, 1);
    assert!(b.verdicts().is_empty(), "no verdict before the order");
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, PASS_1)]);
    assert!(b.applies().is_empty(), "its worker commits it");
    b.committed(1);
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: true,
    });
    assert!(b.effects.is_empty() && b.core.stats().in_flight == 0);
}

#[test]
fn what_no_transaction_commits_is_done_by_a_helper_whatever_becomes_of_its_sender() {
    let mut b = Bench::online();
    b.write_flagged(7, 1, 100, FLAG_DETACHED);
    b.write_flagged(7, 2, 100, FLAG_DETACHED);
    // The sender may have given up, or be another process by then.
    b.step(Event::Abandon {
        worker: 7,
        ticket: 2,
        gone: true,
    });
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, Outcome::Reached { gid: Gid(1) })]);
    assert_eq!(b.applies(), [(1, 1, 0)]);
    b.committed(1);
    b.applied(1, 1);
    assert!(b.verdicts().is_empty(), "it was told already");
    assert_eq!((b.core.stats().in_flight, b.core.stats().replays), (1, 0));
    b.write_flagged(7, 3, 200, FLAG_DETACHED);
    b.deliver_own();
    b.deliver_own();
    assert_eq!(b.core.stats().in_flight, 0);
    assert_eq!(
        b.verdicts().last(),
        Some(&(7, 3, Outcome::Reached { gid: Gid(2) }))
    );
}

#[test]
fn the_second_writer_of_a_row_hears_who_was_first() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.deliver_other(0, 100);
    b.deliver_own();
    let conflict = Outcome::Conflict {
        relation: 16384,
        gid: Gid(1),
        origin: OTHER,
    };
    assert_eq!(b.verdicts(), [(7, 1, conflict)]);
    assert_eq!(b.core.stats().certification_failures, 1);
}

#[test]
fn what_is_not_a_changeset_of_this_member_is_not_sent() {
    let mut b = Bench::online();
    b.step(Event::Multicast {
        worker: 7,
        ticket: 1,
        message: vec![0; 5],
    });
    let mut foreign = vec![0; 32];
    foreign.extend(writes(OTHER, LIFE, 0, 100, 0));
    b.step(Event::Multicast {
        worker: 7,
        ticket: 2,
        message: foreign,
    });
    let mut earlier_life = vec![0; 32];
    earlier_life.extend(writes(ME, Incarnation(2), 0, 100, 0));
    b.step(Event::Multicast {
        worker: 7,
        ticket: 3,
        message: earlier_life,
    });
    let refused: Vec<_> = (1..=3).map(|t| (7, t, Outcome::Malformed)).collect();
    assert_eq!(b.verdicts(), refused);
    assert!(b.sent.is_empty());
}

#[test]
fn garbage_in_the_order_takes_no_gid() {
    let mut b = Bench::online();
    b.deliver_changeset(OTHER, Incarnation(1), b"garbage".to_vec());
    b.write(7, 1, 100);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, PASS_1)]);
}

#[test]
fn an_engine_that_is_busy_is_asked_again_in_order() {
    let mut b = Bench::online();
    b.refuse = Some(Refused::Busy);
    b.write(7, 1, 100);
    b.write(8, 1, 200);
    b.write(9, 1, 300);
    assert!(b.verdicts().is_empty() && b.sent.is_empty());
    b.refuse = None;
    b.ticks(1);
    for _ in 0..3 {
        b.deliver_own();
    }
    let workers: Vec<u32> = b.verdicts().iter().map(|v| v.0).collect();
    assert_eq!(workers, [7, 8, 9]);
}

#[test]
fn too_big_is_said_at_once() {
    let mut b = Bench::online();
    b.refuse = Some(Refused::TooBig);
    b.write(7, 1, 100);
    assert_eq!(b.verdicts(), [(7, 1, Outcome::TooBig)]);
    assert_eq!(b.core.stats().in_flight, 0);
}

#[test]
fn a_worker_that_gives_up_before_anything_was_sent_is_told_so() {
    let mut b = Bench::online();
    b.refuse = Some(Refused::NotPrimary);
    b.write(7, 1, 100);
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: false,
    });
    assert_eq!(b.verdicts(), [(7, 1, Outcome::Withdrawn)]);
    b.refuse = None;
    b.ticks(1);
    assert!(b.sent.is_empty());
}

#[test]
fn a_changeset_that_passes_after_its_worker_gave_up_is_committed_by_a_helper() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: false,
    });
    assert!(b.verdicts().is_empty(), "it was sent: the order decides");
    b.deliver_own();
    assert_eq!(b.applies(), [(1, 1, 0)]);
    b.committed(1);
    b.applied(1, 1);
    assert_eq!(b.verdicts(), [(7, 1, Outcome::Replayed { gid: Gid(1) })]);
    assert_eq!(b.core.stats().replays, 1);
}

#[test]
fn a_changeset_whose_worker_gave_up_may_still_fail() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.deliver_other(0, 100);
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: false,
    });
    b.applies();
    b.deliver_own();
    assert!(matches!(
        b.verdicts()[..],
        [(7, 1, Outcome::Conflict { .. })]
    ));
    assert!(b.applies().is_empty());
}

#[test]
fn after_the_verdict_a_helper_takes_over() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.deliver_own();
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: false,
    });
    assert_eq!(b.applies(), [(1, 1, 0)]);
}

#[test]
fn effects_that_only_a_session_has_can_not_be_replayed_while_it_goes_on() {
    for give_up_first in [true, false] {
        let mut b = Bench::online();
        b.write_flagged(7, 1, 100, FLAG_LOCAL_EFFECTS);
        if give_up_first {
            b.step(Event::Abandon {
                worker: 7,
                ticket: 1,
                gone: false,
            });
            b.deliver_own();
        } else {
            b.deliver_own();
            b.step(Event::Abandon {
                worker: 7,
                ticket: 1,
                gone: false,
            });
        }
        assert!(b.failure().contains("GID 1 was rolled back here"));
    }
}

#[test]
fn effects_of_a_session_that_ended_ended_with_it() {
    for give_up_first in [true, false] {
        let mut b = Bench::online();
        b.write_flagged(7, 1, 100, FLAG_LOCAL_EFFECTS);
        if give_up_first {
            b.step(Event::Abandon {
                worker: 7,
                ticket: 1,
                gone: true,
            });
            b.deliver_own();
        } else {
            b.deliver_own();
            b.step(Event::Abandon {
                worker: 7,
                ticket: 1,
                gone: true,
            });
        }
        assert_eq!(b.applies(), [(1, 1, 0)]);
        assert_eq!(b.state(), GroupState::Online);
    }
}
