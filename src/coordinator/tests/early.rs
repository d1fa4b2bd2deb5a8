//! Transactions that helpers begin before their changesets come.

use super::ahead::{OF, deliver_fragment, large, message_of, reads};
use super::bench::*;
use crate::changeset::encode::Builder;
use crate::changeset::fragment::fragment_head;
use crate::changeset::tuple::TupleBytes;
use crate::coordinator::message::{self, ENVELOPE_BYTES, Report};
use crate::coordinator::{Early, Effect, Event};
use crate::gcs;
use crate::group_state::GroupState;
use crate::ids::{Gid, Incarnation, MemberId, MessageId, Oid};
use crate::limits::EARLY_KEPT_MAX;
use bytes::Bytes;

const LIFE_OF_OTHER: Incarnation = Incarnation(1);

/// Takes out what helpers were told, as (helper, transaction, what).
fn told(b: &mut Bench) -> Vec<(u32, u64, &'static str)> {
    let mut told = Vec::new();
    b.effects.retain(|e| match e {
        Effect::Early {
            helper,
            first,
            what,
        } => {
            let what = match what {
                Early::Begin { origin } => {
                    assert_eq!(*origin, OTHER);
                    "begin"
                }
                Early::Fragment { .. } => "fragment",
                Early::End => "end",
            };
            told.push((*helper, *first, what));
            false
        }
        _ => true,
    });
    told
}

fn wants(b: &mut Bench, helper: u32, first: u64, nth: u32) {
    b.step(Event::EarlyWanted { helper, first, nth });
}

/// A fragment comes from the log.
fn read(b: &mut Bench, seq: u64, fragment: &[u8]) {
    let mut payload = fragment.to_vec();
    message::seal_fragment(&mut payload, Report::default());
    let payload = Ok(Bytes::from(payload));
    b.step(Event::LogRead { seq, payload });
}

/// Another member's transaction of `n` fragments: delivers the first; the others and the changeset.
fn begun(b: &mut Bench, n: u32) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut fragments, changeset) = large(OTHER, LIFE_OF_OTHER, OF, n);
    deliver_fragment(b, 100, fragments.remove(0));
    (fragments, changeset[ENVELOPE_BYTES..].to_vec())
}

#[test]
fn a_helper_is_given_fragments_as_they_come_and_the_changeset_at_its_turn() {
    let mut b = Bench::online();
    let (fragments, changeset) = begun(&mut b, 2);
    let first = b.seq;
    assert_eq!(told(&mut b), [(2, first, "begin")]);
    wants(&mut b, 2, first, 0);
    assert_eq!(told(&mut b), [(2, first, "fragment")]);
    wants(&mut b, 2, first, 1);
    assert!(told(&mut b).is_empty(), "it is not ordered yet");
    deliver_fragment(&mut b, 101, fragments[0].clone());
    assert_eq!(told(&mut b), [(2, first, "fragment")]);
    wants(&mut b, 2, first, 2);
    // Others are served meanwhile.
    b.deliver_other(0, 100);
    assert_eq!(b.applies(), [(1, 1, 0)]);
    b.deliver_changeset(OTHER, LIFE_OF_OTHER, changeset);
    assert_eq!(b.applies(), [(2, 2, 0)]);
    assert!(told(&mut b).is_empty());
    b.committed(2);
    b.applied(1, 1);
    b.applied(2, 2);
    assert_eq!(b.core.stats().applied, 2);
}

#[test]
fn a_helper_is_given_what_comes_while_the_member_is_without_a_majority() {
    let mut b = Bench::online();
    let (fragments, _) = begun(&mut b, 3);
    let first = b.seq;
    wants(&mut b, 2, first, 0);
    wants(&mut b, 2, first, 1);
    told(&mut b);
    b.gcs(gcs::Event::Primary(false));
    while b.core.state() == GroupState::Online {
        b.step(Event::Tick);
    }
    deliver_fragment(&mut b, 101, fragments[0].clone());
    assert_eq!(told(&mut b), [(2, first, "fragment")]);
    wants(&mut b, 2, first, 2);
    deliver_fragment(&mut b, 102, fragments[1].clone());
    assert_eq!(told(&mut b), [(2, first, "fragment")]);
}

#[test]
fn a_fragment_says_what_its_origin_showed() {
    let mut b = Bench::online();
    let (fragments, _) = large(OTHER, LIFE_OF_OTHER, OF, 1);
    let mut message = fragments[0].clone();
    let report = Report {
        committed: Gid(7),
        ..Report::default()
    };
    message::seal_fragment(&mut message, report);
    let id = MessageId {
        member: OTHER,
        incarnation: LIFE_OF_OTHER,
        number: 100,
    };
    b.deliver(id, Bytes::from(message));
    let first = b.seq;
    wants(&mut b, 2, first, 0);
    let given = b.effects.pop();
    let Some(Effect::Early {
        what:
            Early::Fragment {
                nth: 0,
                counted,
                base,
                bytes,
            },
        ..
    }) = given
    else {
        panic!("{given:?}")
    };
    assert_eq!(base, Gid(7));
    let head = fragment_head(&bytes).expect("a fragment");
    assert_eq!((counted.number, counted.bytes), (0, head.bytes));
    assert_eq!(bytes, fragments[0][ENVELOPE_BYTES..]);
}

#[test]
fn who_does_not_keep_up_is_given_fragments_from_the_log() {
    let mut b = Bench::online();
    let n = EARLY_KEPT_MAX as u32 + 2;
    let (fragments, _) = begun(&mut b, n);
    let first = b.seq;
    for (number, fragment) in (101..).zip(&fragments) {
        deliver_fragment(&mut b, number, fragment.clone());
    }
    told(&mut b);
    wants(&mut b, 2, first, 0);
    wants(&mut b, 2, first, 1);
    assert_eq!(reads(&mut b), [first, first + 1]);
    read(&mut b, first + 1, &fragments[0]);
    assert_eq!(told(&mut b), [(2, first, "fragment")]);
    wants(&mut b, 2, first, 2);
    assert!(reads(&mut b).is_empty(), "it is in memory");
    assert_eq!(told(&mut b), [(2, first, "fragment")]);
}

#[test]
fn a_transaction_that_is_given_up_is_applied_by_any_helper() {
    let mut b = Bench::online();
    let (fragments, changeset) = begun(&mut b, 3);
    let first = b.seq;
    told(&mut b);
    deliver_fragment(&mut b, 101, fragments[0].clone());
    b.step(Event::EarlyEnded { helper: 2, first });
    deliver_fragment(&mut b, 102, fragments[1].clone());
    assert!(told(&mut b).is_empty(), "nobody begins it anew so soon");
    b.deliver_changeset(OTHER, LIFE_OF_OTHER, changeset);
    assert_eq!(b.applies(), [(1, 1, 0)]);
}

#[test]
fn a_transaction_that_was_given_up_is_begun_anew_when_it_is_twice_as_long() {
    let mut b = Bench::online();
    let (fragments, _) = begun(&mut b, 6);
    let first = b.seq;
    told(&mut b);
    let deliver = |b: &mut Bench, n: usize| {
        deliver_fragment(b, 100 + n as u64, fragments[n - 1].clone());
        told(b)
    };
    b.step(Event::EarlyEnded { helper: 2, first });
    assert_eq!(deliver(&mut b, 1), [(2, first, "begin")]);
    wants(&mut b, 2, first, 0);
    assert_eq!(reads(&mut b), [first], "what was before is in the log");
    b.step(Event::EarlyEnded { helper: 2, first });
    assert_eq!(deliver(&mut b, 2), []);
    assert_eq!(deliver(&mut b, 3), [(2, first, "begin")]);
}

#[test]
fn the_origin_waits_for_what_was_begun_anew_only_when_it_is_near() {
    let mut b = Bench::online();
    let near = EARLY_KEPT_MAX as u32;
    let (fragments, _) = begun(&mut b, 2 * near);
    let first = b.seq;
    let mut rest = (101..).zip(fragments);
    let mut deliver = |b: &mut Bench, n: u32| {
        for (number, fragment) in rest.by_ref().take(n as usize) {
            deliver_fragment(b, number, fragment);
        }
        told(b)
    };
    // How often it says how far it is while it wants these.
    let said = |b: &mut Bench, nths: std::ops::RangeInclusive<u32>| {
        let before = b.sent.len();
        nths.for_each(|nth| wants(b, 2, first, nth));
        told(b);
        b.sent.len() - before
    };
    deliver(&mut b, near - 1);
    assert_eq!(said(&mut b, 0..=0), 1, "the first time it does");
    b.step(Event::EarlyEnded { helper: 2, first });
    assert_eq!(deliver(&mut b, near), [(2, first, "begin")]);
    assert_eq!(said(&mut b, 0..=near - 1), 0);
    assert_eq!(said(&mut b, near..=near), 1);
    assert_eq!(said(&mut b, near + 1..=near + 1), 1);
}

#[test]
fn who_gives_up_when_its_turn_comes_is_given_the_changeset_all_the_same() {
    let mut b = Bench::online();
    let (fragments, changeset) = begun(&mut b, 2);
    let first = b.seq;
    deliver_fragment(&mut b, 101, fragments[0].clone());
    b.deliver_changeset(OTHER, LIFE_OF_OTHER, changeset);
    assert_eq!(b.applies(), [(2, 1, 0)]);
    // Said before it saw that.
    b.step(Event::EarlyEnded { helper: 2, first });
    wants(&mut b, 2, first, 0);
    b.committed(1);
    b.applied(2, 1);
}

#[test]
fn what_does_not_commit_is_stopped() {
    let ends: [fn(&mut Bench); 4] = [
        |b| {
            let payload = message::drop_fragments(Report::default(), OF);
            let id = MessageId {
                member: OTHER,
                incarnation: LIFE_OF_OTHER,
                number: 101,
            };
            b.deliver(id, payload);
        },
        // The next life of the member.
        |b| {
            b.deliver_changeset(
                OTHER,
                Incarnation(2),
                writes(OTHER, Incarnation(2), 0, 5, 0),
            )
        },
        // It is no member any more.
        |b| {
            let mut view = two_voters(b.seq);
            view.members.retain(|m| m.id != OTHER);
            b.gcs(gcs::Event::View(view));
        },
        // One that failed in certification.
        |b| {
            b.deliver_other(0, 50);
            let (_, changeset) = large(OTHER, LIFE_OF_OTHER, OF, 1);
            let changeset = changeset[ENVELOPE_BYTES..].to_vec();
            b.deliver_changeset(MemberId(2), LIFE_OF_OTHER, changeset);
        },
    ];
    for end in ends {
        let mut b = Bench::online();
        begun(&mut b, 1);
        let first = b.seq;
        assert_eq!(told(&mut b), [(2, first, "begin")]);
        end(&mut b);
        assert_eq!(told(&mut b), [(2, first, "end")]);
        b.ticks(1);
        assert!(told(&mut b).is_empty(), "it is told once");
        b.step(Event::EarlyEnded { helper: 2, first });
        assert_eq!(b.state(), GroupState::Online);
    }
}

#[test]
fn half_of_the_helpers_are_left_for_other_work() {
    let mut b = Bench::online();
    begun(&mut b, 1);
    let first = b.seq;
    assert_eq!(told(&mut b), [(2, first, "begin")]);
    let mut other = OF;
    other.worker += 1;
    let (fragments, _) = large(OTHER, LIFE_OF_OTHER, other, 2);
    deliver_fragment(&mut b, 101, fragments[0].clone());
    assert!(told(&mut b).is_empty());
    // Its helper is gone; nobody begins that one again so soon, but there is room for the other.
    b.step(Event::HelperGone { helper: 2 });
    b.step(Event::HelperReady { helper: 2 });
    deliver_fragment(&mut b, 102, fragments[1].clone());
    assert_eq!(told(&mut b), [(2, first + 1, "begin")]);
    wants(&mut b, 2, first + 1, 0);
    assert_eq!(told(&mut b), [] as [(u32, u64, &str); 0]);
    assert_eq!(reads(&mut b), [first + 1]);
}

/// What follows from an event: how many fragments this member says it has applied, and what helpers are told.
fn said(b: &mut Bench, event: Event) -> (Vec<u32>, Vec<(u32, u64, &'static str)>) {
    let before = b.sent.len();
    b.step(event);
    let said = b.sent.iter().skip(before);
    let said = said.map(|(_, payload)| match message::parse(payload) {
        Ok(message::Message::Applied(_, _, applied)) => applied,
        other => panic!("{other:?}"),
    });
    (said.collect(), told(b))
}

#[test]
fn the_origin_does_not_wait_for_who_can_t_go_on_until_it_is_near_again() {
    let mut b = Bench::online();
    let near = EARLY_KEPT_MAX as u32;
    let (fragments, _) = begun(&mut b, 2 * near);
    let first = b.seq;
    let helper = 2;
    let wants = |nth| Event::EarlyWanted { helper, first, nth };
    let waits = || Event::EarlyWaits { helper, first };
    told(&mut b);
    assert_eq!(
        said(&mut b, wants(0)),
        (vec![0], vec![(2, first, "fragment")])
    );
    assert_eq!(said(&mut b, waits()), (vec![u32::MAX], vec![]));
    assert_eq!(said(&mut b, waits()), (vec![], vec![]), "it has said so");
    for (number, fragment) in (101..).zip(fragments) {
        deliver_fragment(&mut b, number, fragment);
    }
    assert_eq!(told(&mut b), [], "it has not asked for more");
    for nth in 1..near {
        let heard = said(&mut b, wants(nth));
        assert_eq!(heard, (vec![], vec![]), "it goes on, and is far behind");
        assert_eq!(reads(&mut b), [first + u64::from(nth)]);
    }
    assert_eq!(
        said(&mut b, wants(near)),
        (vec![near], vec![(2, first, "fragment")])
    );
    // Of another, and of one that is not begun.
    assert_eq!(
        said(&mut b, Event::EarlyWaits { helper: 1, first }),
        (vec![], vec![])
    );
    let other = first + 1;
    assert_eq!(
        said(
            &mut b,
            Event::EarlyWaits {
                helper,
                first: other
            }
        ),
        (vec![], vec![])
    );
}

/// A transaction of another member that sends each row in a fragment of its own.
struct Rows {
    builder: Builder<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl Rows {
    fn new() -> Rows {
        Rows {
            builder: Builder::new(Vec::new(), Vec::new()),
            sent: Vec::new(),
        }
    }

    fn row(&mut self) {
        self.builder.relation(Oid(16384), 1, 1).expect("room");
        let row = TupleBytes {
            natts: 1,
            bitmap: None,
            data: b"row",
        };
        self.builder.insert(&row).expect("room");
    }

    /// All that was not sent, or a word that some of it does not count any more.
    fn send(&mut self, b: &mut Bench) {
        let taken = if self.builder.entries_bytes() > 0 {
            self.builder.take_entries(Vec::new(), [])
        } else {
            let correction = self.builder.take_correction(Vec::new());
            correction.expect("something was taken back")
        };
        let message = message_of(&taken, OF);
        deliver_fragment(b, 100 + self.sent.len() as u64, message.clone());
        self.sent.push(message);
    }

    fn send_row(&mut self, b: &mut Bench) {
        self.row();
        self.send(b);
    }
}

#[test]
fn what_the_origin_takes_back_is_begun_anew_and_the_origin_waits_for_that() {
    let (mut b, mut rows) = (Bench::online(), Rows::new());
    let helper = 2;
    rows.send_row(&mut b);
    let first = b.seq;
    let mark = rows.builder.mark();
    rows.send_row(&mut b);
    let wants = |nth| Event::EarlyWanted { helper, first, nth };
    let one = |what| vec![(helper, first, what)];
    assert_eq!(told(&mut b), one("begin"));
    assert_eq!(said(&mut b, wants(0)), (vec![0], one("fragment")));
    assert_eq!(said(&mut b, wants(1)), (vec![1], one("fragment")));
    rows.builder.rollback(mark);
    rows.send_row(&mut b);
    assert_eq!(told(&mut b), one("end"));
    assert_eq!(said(&mut b, wants(2)), (vec![], vec![]), "too late");
    let ended = || Event::EarlyEnded { helper, first };
    assert_eq!(said(&mut b, ended()), (vec![], one("begin")));
    assert_eq!(said(&mut b, wants(0)), (vec![0], vec![]));
    assert_eq!(reads(&mut b), [first]);
    read(&mut b, first, &rows.sent[0]);
    assert_eq!(told(&mut b), one("fragment"));
    // The one between does not count.
    assert_eq!(said(&mut b, wants(1)), (vec![2], vec![]));
    assert_eq!(reads(&mut b), [first + 2]);
    read(&mut b, first + 2, &rows.sent[2]);
    assert_eq!(told(&mut b), one("fragment"));
    assert_eq!(said(&mut b, wants(2)), (vec![3], vec![]), "it has all");
    rows.send_row(&mut b);
    assert_eq!(told(&mut b), one("fragment"));
}

#[test]
fn of_a_fragment_so_much_is_applied_as_counts() {
    let (mut b, mut rows) = (Bench::online(), Rows::new());
    rows.row();
    let (mark, counting) = (rows.builder.mark(), rows.builder.entries_bytes() as u32);
    rows.send_row(&mut b);
    let first = b.seq;
    wants(&mut b, 2, first, 0);
    rows.builder.rollback(mark);
    rows.send(&mut b);
    b.step(Event::EarlyEnded { helper: 2, first });
    let all: Vec<_> = told(&mut b).into_iter().map(|t| t.2).collect();
    assert_eq!(all, ["begin", "fragment", "end", "begin"]);
    wants(&mut b, 2, first, 0);
    assert_eq!(reads(&mut b), [first]);
    read(&mut b, first, &rows.sent[0]);
    let Some(Effect::Early {
        what: Early::Fragment { counted, .. },
        ..
    }) = b.effects.pop()
    else {
        panic!("it gets the fragment")
    };
    assert_eq!((counted.number, counted.bytes), (0, counting));
}

#[test]
fn what_was_not_given_yet_may_be_taken_back() {
    let (mut b, mut rows) = (Bench::online(), Rows::new());
    rows.send_row(&mut b);
    let first = b.seq;
    wants(&mut b, 2, first, 0);
    let mark = rows.builder.mark();
    rows.send_row(&mut b);
    rows.builder.rollback(mark);
    rows.send_row(&mut b);
    wants(&mut b, 2, first, 1);
    let all: Vec<_> = told(&mut b).into_iter().map(|t| t.2).collect();
    assert_eq!(all, ["begin", "fragment", "fragment"]);
}

#[test]
fn a_transaction_that_takes_back_again_and_again_is_begun_anew_when_that_pays() {
    let (mut b, mut rows) = (Bench::online(), Rows::new());
    let helper = 2;
    rows.send_row(&mut b);
    let first = b.seq;
    let mark = rows.builder.mark();
    let wants = |b: &mut Bench, n: u32| {
        (0..n).for_each(|nth| wants(b, helper, first, nth));
        told(b);
    };
    let ended = || Event::EarlyEnded { helper, first };
    let begins = || (vec![], vec![(helper, first, "begin")]);
    rows.send_row(&mut b);
    wants(&mut b, 2);
    // Two were applied in vain when there are three, four when there are four, six when there are five.
    for outcome in [begins(), begins(), (vec![u32::MAX], vec![])] {
        rows.builder.rollback(mark);
        rows.send_row(&mut b);
        assert_eq!(told(&mut b), [(helper, first, "end")]);
        assert_eq!(said(&mut b, ended()), outcome);
        wants(&mut b, 2);
    }
    rows.send_row(&mut b);
    assert_eq!(told(&mut b), [(helper, first, "begin")]);
}
