//! Readers that want what was acknowledged anywhere, writers that want to be seen everywhere.

use super::bench::*;
use crate::changeset::header::FLAG_AWAITED;
use crate::coordinator::message::{DigestPoint, Report};
use crate::coordinator::{Event, Outcome};
use crate::gcs::{self, Refused};
use crate::ids::{Gid, Incarnation};

impl Bench {
    fn await_order(&mut self, worker: u32) {
        self.step(Event::AwaitOrder { worker, ticket: 1 });
    }

    fn await_shown(&mut self, worker: u32, gid: u64) {
        let gid = Gid(gid);
        self.step(Event::AwaitShown {
            worker,
            ticket: 1,
            gid,
        });
    }

    fn other_shows(&mut self, committed: u64) {
        let report = Report {
            committed: Gid(committed),
            ..Report::default()
        };
        self.deliver_status(OTHER, report, DigestPoint::default());
    }
}

fn reached(gid: u64) -> Outcome {
    Outcome::Reached { gid: Gid(gid) }
}

#[test]
fn a_reader_waits_for_a_message_that_was_sent_after_it_came() {
    let mut b = Bench::online();
    b.write(7, 1, 100);
    b.await_order(1);
    assert_eq!(b.sent.len(), 2, "a barrier follows the changeset");
    b.await_order(2);
    assert_eq!(b.sent.len(), 2, "one barrier is on its way at a time");
    b.deliver_own();
    b.deliver_other(0, 200);
    assert_eq!(b.verdicts(), [(7, 1, Outcome::Pass { gid: Gid(1) })]);
    b.effects.clear();
    b.deliver_own();
    assert_eq!(b.verdicts(), [(1, 1, reached(2))]);
    b.effects.clear();
    assert_eq!(b.sent.len(), 1, "the next barrier, for who came late");
    b.deliver_other(0, 300);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(2, 1, reached(3))]);
    assert!(b.sent.is_empty());
}

#[test]
fn a_changeset_is_as_good_a_barrier() {
    let mut b = Bench::online();
    b.refuse = Some(Refused::Busy);
    b.await_order(1);
    b.refuse = None;
    b.write(7, 1, 100);
    assert_eq!(b.sent.len(), 1);
    b.deliver_own();
    let pass = (7, 1, Outcome::Pass { gid: Gid(1) });
    assert_eq!(b.verdicts(), [pass, (1, 1, reached(1))]);
}

#[test]
fn readers_are_refused_without_a_majority_and_at_the_end() {
    let mut b = Bench::online();
    b.await_order(1);
    b.gcs(gcs::Event::Primary(false));
    b.ticks(config(0).pace.quorum_ticks);
    b.await_order(2);
    let refused = |worker| (worker, 1, Outcome::NotPrimary);
    assert_eq!(b.verdicts(), [refused(1), refused(2)]);
    b.effects.clear();
    b.gcs(gcs::Event::Primary(true));
    b.await_order(3);
    b.await_shown(4, 1);
    b.gcs(gcs::Event::Fatal("disk gone".into()));
    b.await_order(5);
    assert_eq!(b.verdicts(), [refused(3), refused(4), refused(5)]);
}

#[test]
fn a_writer_waits_until_the_others_show_its_commit() {
    let mut b = Bench::online();
    b.write_flagged(7, 1, 100, FLAG_AWAITED);
    b.deliver_own();
    b.committed(1);
    b.effects.clear();
    b.await_shown(7, 1);
    assert!(
        b.sent.is_empty(),
        "what this member shows is of no interest"
    );
    assert!(b.verdicts().is_empty());
    b.other_shows(1);
    assert_eq!(b.verdicts(), [(7, 1, reached(1))]);
    b.effects.clear();
    b.await_shown(8, 1);
    assert_eq!(b.verdicts(), [(8, 1, reached(1))]);
}

#[test]
fn who_is_awaited_reports_as_soon_as_it_has_committed() {
    let mut b = Bench::online();
    for row in 100..102 {
        let changeset = writes(OTHER, Incarnation(1), 0, row, FLAG_AWAITED);
        b.deliver_changeset(OTHER, Incarnation(1), changeset);
    }
    assert!(b.core.work_waits(), "helpers tell at once");
    assert!(b.sent.is_empty());
    b.committed(1);
    assert_eq!(b.sent.len(), 1, "though more is awaited");
    b.committed(2);
    assert_eq!(b.sent.len(), 1, "one on its way at a time");
    assert!(!b.core.work_waits());
    b.deliver_own();
    assert_eq!(b.sent.len(), 1);
    b.deliver_own();
    assert!(b.sent.is_empty());
}
