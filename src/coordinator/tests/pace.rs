//! Large transactions of this member, and those who apply them early.

use super::ahead::{OF, large};
use super::bench::*;
use crate::coordinator::message::{self, Report};
use crate::coordinator::{Event, Outcome};
use crate::ids::{Incarnation, MemberId, MessageId};
use crate::limits::PACE_TICKS;

/// The other member has applied so many fragments.
fn applied(b: &mut Bench, number: u64, first: u64, fragments: u32) {
    let id = MessageId {
        member: OTHER,
        incarnation: Incarnation(1),
        number,
    };
    b.deliver(id, message::applied(Report::default(), first, fragments));
}

fn send(b: &mut Bench, message: Vec<u8>) {
    b.step(Event::Fragment {
        worker: OF.worker,
        ticket: OF.ticket,
        message,
    });
    b.deliver_own();
}

/// How many fragments the worker has heard of since it was asked last.
fn heard(b: &mut Bench) -> usize {
    let verdicts = b.verdicts();
    let kept = Outcome::Fragment { kept: true };
    assert!(verdicts.iter().all(|v| *v == (7, 1, kept)), "{verdicts:?}");
    verdicts.len()
}

#[test]
fn a_worker_hears_of_fragments_as_the_slowest_has_applied_them() {
    let mut b = Bench::online();
    let (fragments, _) = large(ME, LIFE, OF, 4);
    let mut fragments = fragments.into_iter();
    let mut next = || fragments.next().expect("a fragment");
    send(&mut b, next());
    let first = b.seq;
    assert_eq!(heard(&mut b), 1, "nobody applies it early");
    applied(&mut b, 1, first, 0);
    send(&mut b, next());
    send(&mut b, next());
    assert_eq!(heard(&mut b), 0);
    applied(&mut b, 2, first, 2);
    assert_eq!(heard(&mut b), 1);
    // Of another transaction, and of none.
    applied(&mut b, 3, first + 1, 3);
    assert_eq!(heard(&mut b), 0);
    // It gives up.
    applied(&mut b, 4, first, u32::MAX);
    assert_eq!(heard(&mut b), 1);
    send(&mut b, next());
    assert_eq!(heard(&mut b), 1);
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let mut b = Bench::online();
    let (fragments, _) = large(ME, LIFE, OF, 2);
    send(&mut b, fragments[0].clone());
    let first = b.seq;
    applied(&mut b, 1, first, 0);
    assert_eq!(heard(&mut b), 1);
    send(&mut b, fragments[1].clone());
    b.ticks(PACE_TICKS);
    assert_eq!(heard(&mut b), 0);
    b.ticks(1);
    assert_eq!(heard(&mut b), 1);
}

#[test]
fn a_transaction_that_is_over_waits_for_nobody() {
    let mut b = Bench::online();
    let (fragments, changeset) = large(ME, LIFE, OF, 2);
    send(&mut b, fragments[0].clone());
    let first = b.seq;
    applied(&mut b, 1, first, 0);
    send(&mut b, fragments[1].clone());
    assert_eq!(heard(&mut b), 1);
    b.step(Event::Multicast {
        worker: OF.worker,
        ticket: OF.ticket,
        message: changeset,
    });
    b.deliver_own();
    let verdicts = b.verdicts();
    assert_eq!(verdicts.len(), 2, "{verdicts:?}");
    assert_eq!(verdicts[1], (7, 1, Outcome::Fragment { kept: true }));
}

#[test]
fn a_member_says_how_far_its_helper_is() {
    let mut b = Bench::online();
    let (fragments, _) = large(MemberId(2), Incarnation(1), OF, 1);
    super::ahead::deliver_fragment(&mut b, 100, fragments[0].clone());
    let first = b.seq;
    b.step(Event::EarlyWanted {
        helper: 2,
        first,
        nth: 0,
    });
    b.step(Event::EarlyEnded { helper: 2, first });
    b.step(Event::EarlyEnded { helper: 2, first });
    let said: Vec<_> = (b.sent.iter())
        .map(|(_, payload)| message::parse(payload))
        .collect();
    let report = Report::default();
    assert_eq!(
        said,
        [
            Ok(message::Message::Applied(report, first, 0)),
            Ok(message::Message::Applied(report, first, u32::MAX)),
        ]
    );
}
