//! Sessions that lost too often, and reservations that nobody is there to end.

use super::bench::*;
use crate::changeset::header::FLAG_RESERVED;
use crate::changeset::key::{KEY_RELATION, Key, LockMode};
use crate::coordinator::message::{self, Message, Relations, Report};
use crate::coordinator::{Event, Outcome};
use crate::gcs::{self, Refused};
use crate::group_state::GroupState;
use crate::ids::{Gid, Incarnation, MemberId, MessageId};
use crate::limits::RESERVATION_TICKS;

const TABLE: u32 = 16384;

fn relations(first: u32) -> Relations {
    let mut relations = Relations::default();
    relations[0] = first;
    relations
}

impl Bench {
    fn reserve(&mut self, worker: u32) {
        self.step(Event::Reserve {
            worker,
            ticket: 1,
            relations: relations(TABLE),
        });
    }

    fn await_free(&mut self, worker: u32, relation: u32) {
        self.step(Event::AwaitFree {
            worker,
            ticket: 1,
            relation,
        });
    }

    /// A reservation of the table by whom is not on this bench, in the order.
    fn deliver_reserve(&mut self, member: MemberId, incarnation: u32) {
        let payload = message::reserve(Report::default(), relations(TABLE));
        let id = MessageId {
            member,
            incarnation: Incarnation(incarnation),
            number: 1000,
        };
        self.deliver(id, payload);
    }

    /// Whether the other member may write the table now.
    fn other_may_write(&mut self) -> bool {
        let intent = Key {
            hash: 1,
            since: Gid(self.position),
            relation: TABLE,
            mode: LockMode::KeyShare,
            flags: KEY_RELATION,
        };
        let life = Incarnation(1);
        let snapshot = Gid(self.position);
        let changeset =
            super::super::testing::changeset(GROUP, OTHER, life, snapshot, 0, &[intent]);
        let before = self.core.digest().0;
        self.deliver_changeset(OTHER, life, changeset);
        self.core.digest().0 > before
    }

    /// What the messages are that were sent and not delivered.
    fn on_their_way(&self) -> Vec<Message> {
        let payloads = self.sent.iter().map(|(_, payload)| payload);
        payloads
            .map(|p| message::parse(p).expect("a message"))
            .collect()
    }
}

fn reached(gid: u64) -> Outcome {
    Outcome::Reached { gid: Gid(gid) }
}

#[test]
fn a_reservation_holds_from_its_place_in_the_order_to_that_of_its_changeset() {
    let mut b = Bench::online();
    b.reserve(7);
    assert!(b.other_may_write(), "it has no place yet");
    assert!(b.verdicts().is_empty());
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, reached(1))]);
    assert!(!b.other_may_write());
    b.write_flagged(7, 2, 100, FLAG_RESERVED);
    assert!(!b.other_may_write());
    b.deliver_own();
    assert!(b.other_may_write());
    assert!(b.sent.is_empty(), "the changeset has said it");
}

#[test]
fn what_was_delivered_before_does_not_answer_for_a_reservation() {
    let mut b = Bench::online();
    b.write(8, 1, 100);
    b.reserve(7);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(8, 1, Outcome::Pass { gid: Gid(1) })]);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, reached(1))]);
}

#[test]
fn a_member_asks_for_one_at_a_time() {
    let mut b = Bench::online();
    b.reserve(7);
    b.reserve(8);
    assert_eq!(b.verdicts(), [(8, 1, Outcome::NotPrimary)]);
    b.deliver_own();
    b.reserve(8);
    assert_eq!(
        b.verdicts(),
        [(7, 1, reached(0)), (8, 1, Outcome::NotPrimary)]
    );
    // It ends without a changeset.
    b.step(Event::Release { worker: 8 });
    assert!(b.sent.is_empty(), "another's is not its to end");
    b.step(Event::Release { worker: 7 });
    b.deliver_own();
    assert!(b.other_may_write());
    b.reserve(8);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(8, 1, reached(1))]);
}

#[test]
fn a_wish_that_was_not_sent_is_taken_back() {
    let mut b = Bench::online();
    b.refuse = Some(Refused::Busy);
    b.reserve(7);
    assert!(b.sent.is_empty() && b.verdicts().is_empty());
    b.step(Event::Release { worker: 7 });
    assert_eq!(b.verdicts(), [(7, 1, Outcome::NotPrimary)]);
    b.refuse = None;
    b.ticks(1);
    assert!(b.sent.is_empty());
    // One that waits is sent when there is room, and answered when there is no order any more.
    b.refuse = Some(Refused::Busy);
    b.reserve(8);
    b.refuse = None;
    b.ticks(1);
    assert!(matches!(b.on_their_way()[..], [Message::Reserve(..)]));
    b.gcs(gcs::Event::Primary(false));
    b.ticks(PACE.quorum_ticks);
    assert_eq!(b.state(), GroupState::NoQuorum);
    assert_eq!(b.verdicts(), [(8, 1, Outcome::NotPrimary)]);
}

#[test]
fn one_that_ends_before_it_is_ordered_ends_right_after() {
    let mut b = Bench::online();
    b.reserve(7);
    b.step(Event::Release { worker: 7 });
    b.deliver_own();
    assert!(!b.other_may_write());
    assert!(matches!(b.on_their_way()[..], [Message::Release(_, ME, 1)]));
    b.deliver_own();
    assert!(b.other_may_write());
}

#[test]
fn one_whose_member_is_gone_is_ended_by_another_in_a_while() {
    let mut b = Bench::online();
    b.deliver_reserve(OTHER, 1);
    b.write(7, 1, 100);
    b.ticks(RESERVATION_TICKS - 1);
    b.deliver_own();
    let own = |m: &Message| matches!(m, Message::Release(..));
    assert!(!b.on_their_way().iter().any(own));
    b.ticks(1);
    let ends = |m: &Message| matches!(m, Message::Release(_, OTHER, 1));
    // A message of positions may be before it.
    while !b.on_their_way().iter().any(ends) {
        b.deliver_own();
    }
    b.deliver_own();
    // The table is free for the next.
    b.deliver_reserve(ME, LIFE.0 - 1);
    assert!(!b.other_may_write());
}

#[test]
fn one_of_an_earlier_life_is_ended_by_the_next() {
    let mut b = Bench::online();
    b.deliver_reserve(ME, LIFE.0 - 1);
    assert!(!b.other_may_write());
    b.ticks(1);
    assert!(matches!(b.on_their_way()[..], [Message::Release(_, ME, 1)]));
    b.deliver_own();
    assert!(b.other_may_write());
}

#[test]
fn who_was_refused_goes_on_when_the_reservation_of_another_member_is_over() {
    let mut b = Bench::online();
    b.deliver_reserve(OTHER, 1);
    b.await_free(7, TABLE);
    b.await_free(8, TABLE + 1);
    assert_eq!(b.verdicts(), [(8, 1, reached(0))], "nobody has that one");
    b.write_flagged(9, 2, 100, 0);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(9, 2, Outcome::Pass { gid: Gid(1) })]);
    // It shows what ended the reservation.
    let payload = message::release(Report::default(), OTHER, 1);
    let id = MessageId {
        member: OTHER,
        incarnation: Incarnation(1),
        number: 1001,
    };
    b.deliver(id, payload);
    assert_eq!(b.verdicts(), [(7, 1, reached(1))]);
    // An own one is in nobody's way here.
    b.reserve(7);
    b.deliver_own();
    b.await_free(8, TABLE);
    assert_eq!(b.verdicts(), [(7, 1, reached(1)), (8, 1, reached(1))]);
}

#[test]
fn who_was_refused_is_told_when_there_is_no_order_any_more() {
    let mut b = Bench::online();
    b.deliver_reserve(OTHER, 1);
    b.await_free(7, TABLE);
    b.gcs(gcs::Event::Primary(false));
    b.ticks(PACE.quorum_ticks);
    assert_eq!(b.state(), GroupState::NoQuorum);
    b.await_free(8, TABLE);
    assert_eq!(
        b.verdicts(),
        [(7, 1, Outcome::NotPrimary), (8, 1, Outcome::NotPrimary)]
    );
}
