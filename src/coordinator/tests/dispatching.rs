//! Which helper gets what.

use super::bench::*;
use crate::coordinator::{Effect, Event, GcsCommand, Pace};
use crate::gcs;
use crate::ids::{Gid, Incarnation};
use crate::limits::HELPER_ATTEMPTS_MAX;

#[test]
fn work_goes_out_in_gid_order_and_helper_0_is_spared() {
    let mut b = Bench::online();
    b.committed(0);
    b.write(7, 1, 50);
    b.deliver_own();
    for row in 100..104 {
        b.deliver_other(0, row);
    }
    // GID 1 is with its worker; 2 and 3 are out; helper 0 waits for what commits next.
    assert_eq!(b.applies(), [(1, 2, 0), (2, 3, 0)]);
    assert_eq!(b.core.stats().apply_queue, 4);
    b.committed(2);
    assert!(b.applies().is_empty(), "GID 4 does not commit next");
    b.applied(1, 2);
    assert_eq!(b.applies(), [(1, 4, 0)]);
}

#[test]
fn helper_0_takes_the_next_to_commit_when_all_others_are_busy() {
    let mut b = Bench::online();
    b.write(7, 1, 50);
    b.deliver_own();
    for row in 100..103 {
        b.deliver_other(0, row);
    }
    assert_eq!(b.applies(), [(1, 2, 0), (2, 3, 0)]);
    // The worker of GID 1 gives up while both helpers wait for it.
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: true,
    });
    assert_eq!(b.applies(), [(0, 1, 0)]);
}

#[test]
fn helper_0_never_waits_behind_a_replay_that_is_not_its_turn() {
    let mut b = Bench::online();
    for (ticket, row) in [(1, 50), (2, 51)] {
        b.write(7, ticket, row);
        b.deliver_own();
    }
    b.deliver_other(0, 100);
    b.deliver_other(0, 101);
    b.applies();
    b.step(Event::Abandon {
        worker: 7,
        ticket: 2,
        gone: true,
    });
    assert!(b.applies().is_empty(), "GID 1 is still with its worker");
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: true,
    });
    assert_eq!(b.applies(), [(0, 1, 0)]);
    b.committed(1);
    b.applied(0, 1);
    assert_eq!(b.applies(), [(0, 2, 0)]);
}

#[test]
fn a_dependency_is_named() {
    let mut b = Bench::online();
    b.deliver_other(0, 100);
    b.deliver_other(1, 100);
    assert_eq!(b.applies(), [(1, 1, 0), (2, 2, 1)]);
}

#[test]
fn an_earlier_life_of_this_member_is_applied_by_helpers() {
    let mut b = Bench::online();
    b.deliver_changeset(ME, Incarnation(2), writes(ME, Incarnation(2), 0, 5, 0));
    assert_eq!(b.applies(), [(1, 1, 0)]);
}

#[test]
fn a_failed_changeset_is_tried_again_elsewhere_and_not_for_ever() {
    let mut b = Bench::online();
    b.deliver_other(0, 100);
    let mut last = 0;
    for attempt in 0..HELPER_ATTEMPTS_MAX {
        let applies = b.applies();
        let [(helper, 1, 0)] = applies[..] else {
            panic!("{attempt}: {applies:?}")
        };
        assert_ne!(helper, last);
        last = helper;
        b.step(Event::HelperFailed {
            helper,
            gid: Gid(1),
            fatal: false,
            reason: "out of memory".into(),
        });
        b.ticks((1 << attempt) - 1);
        assert!(b.applies().is_empty(), "the pause doubles: {attempt}");
        b.ticks(1);
    }
    assert!(b.failure().ends_with("out of memory"));
    let errors = b.core.stats().helper_errors;
    assert_eq!(errors, u64::from(HELPER_ATTEMPTS_MAX));
}

#[test]
fn a_fatal_failure_is_final() {
    let mut b = Bench::online();
    b.deliver_other(0, 100);
    let reason = "row layout differs".into();
    b.step(Event::HelperFailed {
        helper: 1,
        gid: Gid(1),
        fatal: true,
        reason,
    });
    assert!(b.failure().ends_with("row layout differs"));
}

#[test]
fn work_of_a_helper_that_is_gone_goes_to_another_unless_it_was_done() {
    let mut b = Bench::online();
    b.deliver_other(0, 100);
    b.deliver_other(0, 101);
    b.applies();
    b.committed(1);
    b.step(Event::HelperGone { helper: 1 });
    assert!(b.applies().is_empty());
    assert_eq!(b.core.stats().applied, 1);
    b.step(Event::HelperGone { helper: 2 });
    b.ticks(1);
    assert_eq!(b.applies(), [(0, 2, 0)]);
    b.step(Event::HelperReady { helper: 1 });
    b.step(Event::HelperReady { helper: 2 });
}

#[test]
fn what_exceeds_the_memory_bound_is_read_from_the_log_again() {
    let mut config = config(0);
    config.pace = Pace {
        queue_bytes: 2 * changeset_bytes(),
        ..PACE
    };
    let mut b = Bench::new(config);
    b.gcs(gcs::Event::View(two_voters(0)));
    for row in 100..104 {
        b.deliver_other(0, row);
    }
    assert_eq!(b.core.stats().apply_queue_bytes, 2 * changeset_bytes());
    b.step(Event::HelperReady { helper: 1 });
    b.step(Event::HelperReady { helper: 2 });
    assert_eq!(b.applies(), [(1, 1, 0), (1, 2, 0)]);
    let asked: Vec<(u64, u64)> = b.effects.iter().filter_map(asked).collect();
    assert_eq!(
        asked,
        [(3, 4), (4, 5)],
        "position and log entry of GIDs 3 and 4"
    );
    // The answers may come in any order; the work does not.
    for (seq, row) in [(4, 103), (3, 102)] {
        assert!(b.applies().is_empty());
        read(&mut b, seq, row);
    }
    assert_eq!(b.applies(), [(2, 3, 0)]);
}

#[test]
fn small_changesets_of_the_log_are_read_while_helpers_are_busy() {
    let mut config = config(0);
    config.pace = Pace {
        queue_bytes: 4 * changeset_bytes(),
        ..PACE
    };
    let mut b = Bench::new(config);
    b.gcs(gcs::Event::View(two_voters(0)));
    for row in 100..112 {
        b.deliver_other(0, row);
    }
    let none: Vec<(u64, u64)> = b.effects.iter().filter_map(asked).collect();
    assert_eq!(none, [], "there is no room for them");
    b.step(Event::HelperReady { helper: 1 });
    assert_eq!(
        b.applies(),
        (1..5).map(|gid| (1, gid, 0)).collect::<Vec<_>>()
    );
    let read_ahead: Vec<(u64, u64)> = b.effects.iter().filter_map(asked).collect();
    assert_eq!(read_ahead, [(5, 6), (6, 7), (7, 8), (8, 9)]);
    for (seq, row) in (5..9).zip(104..) {
        read(&mut b, seq, row);
    }
    assert!(b.applies().is_empty(), "no helper is free");
    b.step(Event::HelperReady { helper: 2 });
    assert_eq!(
        b.applies(),
        (5..9).map(|gid| (2, gid, 0)).collect::<Vec<_>>()
    );
}

/// The log has been read at this position, where GID `seq` writes the row.
fn read(b: &mut Bench, seq: u64, row: u64) {
    let mut message = vec![0; 32];
    message.extend(writes(OTHER, Incarnation(1), 0, row, 0));
    crate::coordinator::message::seal_changeset(&mut message, Default::default());
    b.step(Event::LogRead {
        seq,
        payload: Ok(message.into()),
    });
}

fn asked(effect: &Effect) -> Option<(u64, u64)> {
    match effect {
        Effect::Gcs(GcsCommand::Read { seq, index, .. }) => Some((*seq, *index)),
        _ => None,
    }
}

/// Five changesets wait when the helpers come.
fn behind() -> Bench {
    let mut b = Bench::new(config(0));
    b.gcs(gcs::Event::View(two_voters(0)));
    for row in 100..105 {
        b.deliver_other(0, row);
    }
    b
}

#[test]
fn who_is_behind_gives_a_helper_several_at_once() {
    let mut b = behind();
    b.step(Event::HelperReady { helper: 1 });
    assert_eq!(b.applies(), [(1, 1, 0), (1, 2, 0), (1, 3, 0)]);
    b.step(Event::HelperReady { helper: 2 });
    assert_eq!(b.applies(), [(2, 4, 0)]);
    // The first two were committed together, the third by itself.
    b.committed(2);
    b.applied(1, 2);
    assert_eq!(b.core.stats().applied, 2);
    assert!(b.applies().is_empty(), "it is at GID 3");
    b.committed(3);
    b.applied(1, 3);
    assert_eq!(b.core.stats().applied, 3);
    assert_eq!(b.applies(), [(1, 5, 0)]);
}

#[test]
fn what_fails_among_several_goes_to_another_and_the_rest_stays() {
    let mut b = behind();
    b.step(Event::HelperReady { helper: 1 });
    b.step(Event::HelperReady { helper: 0 });
    b.applies();
    b.committed(1);
    b.applied(1, 1);
    b.step(Event::HelperFailed {
        helper: 1,
        gid: Gid(2),
        fatal: false,
        reason: "out of memory".into(),
    });
    b.ticks(1);
    assert_eq!(b.applies(), [(0, 2, 0)], "helper 1 has GID 3 to do");
    b.committed(2);
    b.applied(0, 2);
    b.committed(3);
    b.applied(1, 3);
    assert_eq!(b.core.stats().applied, 3);
}

#[test]
fn of_several_a_helper_leaves_what_it_had_not_committed() {
    let mut b = behind();
    b.step(Event::HelperReady { helper: 1 });
    b.applies();
    b.committed(1);
    b.step(Event::HelperGone { helper: 1 });
    assert_eq!(b.core.stats().applied, 1);
    b.step(Event::HelperReady { helper: 2 });
    assert!(b.applies().is_empty(), "it may be the changeset's fault");
    b.ticks(1);
    // Each by itself: any may be to blame.
    assert_eq!(b.applies(), [(2, 2, 0)]);
    b.committed(2);
    b.applied(2, 2);
    assert_eq!(b.applies(), [(2, 3, 0)]);
}
