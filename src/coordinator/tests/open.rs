//! Which fragments wait for their changesets: a function of what was delivered.

use super::{Bounds, Open};
use crate::changeset::fragment::{Counted, FragmentHead, FragmentsOf};
use crate::gcs::Delivery;
use crate::ids::{Incarnation, MemberId, MessageId};
use bytes::Bytes;

const BOUNDS: Bounds = Bounds {
    admit: 100,
    all: 1000,
    silent: 200,
};

fn of(worker: u32, ticket: u64) -> FragmentsOf {
    FragmentsOf { worker, ticket }
}

fn id(member: u16, life: u32) -> MessageId {
    MessageId {
        member: MemberId(member),
        incarnation: Incarnation(life),
        number: 1,
    }
}

/// Bytes of the entries of each fragment.
const ENTRIES: u32 = 50;

/// Delivers a fragment when so many bytes were delivered since the last checkpoint.
fn fragment(open: &mut Open, id: MessageId, of: FragmentsOf, number: u32, bytes: u64) -> bool {
    let head = FragmentHead {
        of,
        number,
        after: number.checked_sub(1).map(|number| counted(number, ENTRIES)),
        bytes: ENTRIES,
    };
    fragment_after(open, id, head, bytes)
}

fn counted(number: u32, bytes: u32) -> Counted {
    Counted { number, bytes }
}

fn fragment_after(open: &mut Open, id: MessageId, head: FragmentHead, bytes: u64) -> bool {
    open.delivered(id, bytes, &BOUNDS);
    let delivery = Delivery {
        seq: bytes,
        index: bytes,
        id,
        payload: Bytes::new(),
    };
    open.fragment(&delivery, head, bytes, &BOUNDS)
}

#[test]
fn fragments_say_which_of_those_before_them_count() {
    let (mut open, id, of) = (Open::default(), id(1, 1), of(7, 1));
    for number in 0..3 {
        assert!(fragment(&mut open, id, of, number, number.into()));
    }
    let mut next = |number, after, bytes| {
        let head = FragmentHead {
            of,
            number,
            after,
            bytes,
        };
        let kept = fragment_after(&mut open, id, head, number.into());
        kept.then(|| open.fragments(id, of).expect("open").counted.clone())
    };
    let (whole, part) = (counted(0, ENTRIES), counted(1, 20));
    assert_eq!(
        next(3, Some(part), ENTRIES),
        Some(vec![whole, part, counted(3, ENTRIES)])
    );
    // One that is there only to say so.
    assert_eq!(next(4, Some(part), 0), Some(vec![whole, part]));
    assert_eq!(next(5, None, ENTRIES), Some(vec![counted(5, ENTRIES)]));
    // One that follows what does not count any more ends the transaction.
    assert_eq!(next(6, Some(whole), ENTRIES), None);
    assert!(open.is_empty());
}

#[test]
fn a_fragment_that_follows_more_than_there_was_ends_its_transaction() {
    let (mut open, id, of) = (Open::default(), id(1, 1), of(7, 1));
    assert!(fragment(&mut open, id, of, 0, 0));
    let after = Some(counted(0, ENTRIES + 1));
    let head = FragmentHead {
        of,
        number: 1,
        after,
        bytes: ENTRIES,
    };
    assert!(!fragment_after(&mut open, id, head, 1));
    assert!(open.is_empty());
}

#[test]
fn fragments_wait_in_their_order_for_their_changeset() {
    let mut open = Open::default();
    for number in 0..3 {
        let at = u64::from(number);
        assert!(fragment(&mut open, id(1, 1), of(7, 1), number, at));
        assert!(fragment(&mut open, id(2, 1), of(7, 1), number, at));
    }
    assert_eq!(open.end(id(1, 1), of(7, 2)), None);
    let places = open.end(id(1, 1), of(7, 1)).expect("it waits");
    assert_eq!(places.iter().map(|p| p.seq).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(open.end(id(1, 1), of(7, 1)), None);
    assert_eq!(open.stats().len(), 1);
}

#[test]
fn a_gap_ends_a_transaction() {
    let mut open = Open::default();
    assert!(fragment(&mut open, id(1, 1), of(7, 1), 0, 0));
    assert!(!fragment(&mut open, id(1, 1), of(7, 1), 2, 1));
    assert!(!fragment(&mut open, id(1, 1), of(7, 1), 3, 2));
    assert!(open.is_empty());
}

#[test]
fn the_next_of_a_slot_and_the_next_life_end_what_was_before() {
    let mut open = Open::default();
    assert!(fragment(&mut open, id(1, 1), of(7, 1), 0, 0));
    assert!(fragment(&mut open, id(1, 1), of(7, 2), 0, 1));
    assert!(!fragment(&mut open, id(1, 1), of(7, 1), 1, 2));
    assert_eq!(open.stats().len(), 1);
    open.delivered(id(2, 9), 3, &BOUNDS);
    assert_eq!(open.stats().len(), 1);
    open.delivered(id(1, 2), 4, &BOUNDS);
    assert!(open.is_empty());
    assert!(!fragment(&mut open, id(1, 2), of(7, 2), 1, 5));
}

#[test]
fn who_leaves_takes_his_fragments_along() {
    let mut open = Open::default();
    assert!(fragment(&mut open, id(1, 1), of(7, 1), 0, 0));
    assert!(fragment(&mut open, id(2, 1), of(7, 1), 0, 0));
    open.removed(MemberId(1));
    assert_eq!(open.stats().len(), 1);
    assert!(open.end(id(2, 1), of(7, 1)).is_some());
}

#[test]
fn none_begins_while_a_checkpoint_is_overdue_and_others_are_open() {
    let mut open = Open::default();
    assert!(fragment(&mut open, id(1, 1), of(7, 1), 0, BOUNDS.admit + 1));
    assert!(!fragment(
        &mut open,
        id(1, 1),
        of(8, 1),
        0,
        BOUNDS.admit + 2
    ));
    assert!(fragment(&mut open, id(1, 1), of(7, 1), 1, BOUNDS.admit + 3));
    open.end(id(1, 1), of(7, 1));
    assert!(fragment(&mut open, id(1, 1), of(8, 2), 0, BOUNDS.admit + 4));
}

#[test]
fn a_member_that_is_silent_and_a_log_that_grows_end_them() {
    let mut open = Open::default();
    assert!(fragment(&mut open, id(1, 1), of(7, 1), 0, 0));
    assert!(fragment(&mut open, id(2, 1), of(7, 1), 0, 0));
    open.delivered(id(2, 1), BOUNDS.silent, &BOUNDS);
    assert_eq!(open.stats().len(), 2);
    open.delivered(id(2, 1), BOUNDS.silent + 1, &BOUNDS);
    assert_eq!(open.stats().len(), 1);
    for bytes in [300, 500, 700, 900, BOUNDS.all] {
        open.delivered(id(2, 1), bytes, &BOUNDS);
    }
    assert_eq!(open.stats().len(), 1);
    open.delivered(id(2, 1), BOUNDS.all + 1, &BOUNDS);
    assert!(open.is_empty());
}
