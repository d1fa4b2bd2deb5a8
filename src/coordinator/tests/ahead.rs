//! Fragments ahead of their changeset: sent in turn, kept, read again for helpers, ended.

use super::bench::*;
use crate::changeset::Key;
use crate::changeset::LockMode;
use crate::changeset::decode::Changeset;
use crate::changeset::encode::{Builder, Taken};
use crate::changeset::fragment::{FragmentsOf, fragment_header};
use crate::changeset::header::Header;
use crate::changeset::tuple::TupleBytes;
use crate::coordinator::message::{self, ENVELOPE_BYTES, Report};
use crate::coordinator::{Effect, Event, GcsCommand, Outcome};
use crate::gcs::Refused;
use crate::group_state::GroupState;
use crate::ids::{Gid, Incarnation, MemberId, MessageId, Oid};
use bytes::Bytes;

pub const OF: FragmentsOf = FragmentsOf {
    worker: 7,
    ticket: 1,
};

/// The message of entries that are one fragment.
pub fn message_of(taken: &Taken<Vec<u8>>, of: FragmentsOf) -> Vec<u8> {
    let (head, _) = taken.fragment(0, of);
    let header = fragment_header(head, &taken.entries);
    [&[0; ENVELOPE_BYTES][..], &header, &taken.entries].concat()
}

/// So many fragments and the changeset that they belong to.
pub fn large(
    member: MemberId,
    life: Incarnation,
    of: FragmentsOf,
    n: u32,
) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut builder = Builder::new(Vec::new(), Vec::new());
    let mut fragments = Vec::new();
    for number in 0..n {
        builder.relation(Oid(16384), 1, 1).expect("room");
        let row = TupleBytes {
            natts: 1,
            bitmap: None,
            data: b"row",
        };
        builder.insert(&row).expect("room");
        let taken = builder.take_entries(Vec::new(), []);
        assert_eq!((taken.first, taken.ends.len()), (number, 1));
        fragments.push(message_of(&taken, of));
    }
    builder.fragments(of).expect("room");
    let key = Key {
        hash: 50,
        since: Gid(0),
        relation: 16384,
        mode: LockMode::Update,
        flags: 0,
    };
    builder.key(key).expect("room");
    let (header, keys, entries) = builder.finish(Header {
        flags: 0,
        group: GROUP,
        origin: member,
        incarnation: life,
        isolation: 1,
        xid: 1000,
        snapshot_gid: Gid(0),
        commit_ts: 0,
        database: Oid(5),
    });
    let changeset = [&[0; ENVELOPE_BYTES][..], &header, &keys, &entries].concat();
    assert!(Changeset::parse(&changeset[ENVELOPE_BYTES..]).is_ok());
    (fragments, changeset)
}

fn send(b: &mut Bench, message: Vec<u8>) {
    b.step(Event::Fragment {
        worker: OF.worker,
        ticket: OF.ticket,
        message,
    });
}

fn commit(b: &mut Bench, message: Vec<u8>) {
    b.step(Event::Multicast {
        worker: OF.worker,
        ticket: OF.ticket,
        message,
    });
}

/// Of the other member.
pub fn deliver_fragment(b: &mut Bench, number: u64, mut message: Vec<u8>) {
    message::seal_fragment(&mut message, Report::default());
    let id = MessageId {
        member: OTHER,
        incarnation: Incarnation(1),
        number,
    };
    b.deliver(id, Bytes::from(message));
}

/// What the log has at these positions is read.
pub fn reads(b: &mut Bench) -> Vec<u64> {
    let mut seqs = Vec::new();
    b.effects.retain(|e| match e {
        Effect::Gcs(GcsCommand::Read { seq, .. }) => {
            seqs.push(*seq);
            false
        }
        _ => true,
    });
    seqs
}

const KEPT: Outcome = Outcome::Fragment { kept: true };
const NOT_KEPT: Outcome = Outcome::Fragment { kept: false };

#[test]
fn a_worker_hears_of_each_fragment_and_commits_with_all() {
    let mut b = Bench::online();
    let (fragments, changeset) = large(ME, LIFE, OF, 3);
    let bytes: usize = fragments.iter().map(Vec::len).sum();
    for fragment in fragments {
        send(&mut b, fragment);
    }
    for _ in 0..3 {
        b.deliver_own();
    }
    assert_eq!(b.verdicts(), [(7, 1, KEPT); 3]);
    let open = b.core.stats().open_transactions;
    assert_eq!((open[0].member, open[0].fragments), (ME, 3));
    assert_eq!(open[0].bytes, bytes as u64);
    assert_eq!(open.len(), 1);
    commit(&mut b, changeset);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, Outcome::Pass { gid: Gid(1) })]);
    assert!(b.core.stats().open_transactions.is_empty());
}

#[test]
fn no_checkpoint_while_fragments_wait() {
    let mut b = Bench::online();
    let (fragments, _) = large(ME, LIFE, OF, 1);
    send(&mut b, fragments[0].clone());
    b.deliver_own();
    for row in 100..110 {
        b.deliver_other(0, row);
    }
    assert!(b.checkpoints().is_empty());
    b.step(Event::DropFragments {
        worker: 7,
        ticket: 1,
    });
    b.deliver_own();
    b.deliver_other(0, 110);
    assert_eq!(b.checkpoints().len(), 1);
}

#[test]
fn a_helper_is_given_the_fragments_that_it_asks_for() {
    let mut b = Bench::online();
    let (fragments, changeset) = large(OTHER, Incarnation(1), OF, 2);
    for (number, fragment) in (100..).zip(&fragments) {
        deliver_fragment(&mut b, number, fragment.clone());
    }
    let first = b.seq - 1;
    let changeset = changeset[ENVELOPE_BYTES..].to_vec();
    b.deliver_changeset(OTHER, Incarnation(1), changeset);
    assert_eq!(b.applies(), [(2, 1, 0)]);
    for nth in 0..2 {
        let gid = Gid(1);
        b.step(Event::FragmentWanted {
            helper: 2,
            gid,
            nth,
        });
        let seq = first + u64::from(nth);
        assert_eq!(reads(&mut b), [seq]);
        let mut payload = fragments[nth as usize].clone();
        message::seal_fragment(&mut payload, Report::default());
        let payload = Ok(Bytes::from(payload));
        b.step(Event::LogRead { seq, payload });
        let given = b.effects.pop();
        let Some(Effect::Fragment {
            helper: 2,
            fragment,
            ..
        }) = given
        else {
            panic!("{given:?}")
        };
        assert_eq!(fragment, fragments[nth as usize][ENVELOPE_BYTES..]);
    }
}

#[test]
fn what_a_helper_wanted_that_is_gone_goes_to_nobody() {
    let mut b = Bench::online();
    let (fragments, changeset) = large(OTHER, Incarnation(1), OF, 1);
    deliver_fragment(&mut b, 100, fragments[0].clone());
    let seq = b.seq;
    let changeset = changeset[ENVELOPE_BYTES..].to_vec();
    b.deliver_changeset(OTHER, Incarnation(1), changeset);
    let (helper, gid, nth) = (2, Gid(1), 0);
    b.step(Event::FragmentWanted { helper, gid, nth });
    b.step(Event::HelperGone { helper });
    b.step(Event::FragmentWanted { helper, gid, nth });
    let mut payload = fragments[0].clone();
    message::seal_fragment(&mut payload, Report::default());
    let payload = Ok(Bytes::from(payload));
    b.step(Event::LogRead { seq, payload });
    assert!(
        !b.effects
            .iter()
            .any(|e| matches!(e, Effect::Fragment { .. }))
    );
}

#[test]
fn a_changeset_without_its_fragments_fails_and_takes_no_gid() {
    let mut b = Bench::online();
    let (mut fragments, changeset) = large(ME, LIFE, OF, 2);
    send(&mut b, fragments.remove(1));
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, NOT_KEPT)]);
    commit(&mut b, changeset);
    b.deliver_own();
    assert_eq!(b.verdicts(), [(7, 1, Outcome::FragmentsLost)]);
    assert_eq!(b.core.digest().0, Gid(0));
}

#[test]
fn the_end_of_a_transaction_outlasts_the_loss_of_the_majority() {
    let mut b = Bench::online();
    let (fragments, _) = large(ME, LIFE, OF, 2);
    send(&mut b, fragments[0].clone());
    b.deliver_own();
    b.refuse = Some(Refused::NotPrimary);
    send(&mut b, fragments[1].clone());
    b.gcs(crate::gcs::Event::Primary(false));
    b.ticks(PACE.quorum_ticks + 1);
    assert_eq!(b.state(), GroupState::NoQuorum);
    assert_eq!(b.verdicts(), [(7, 1, KEPT), (7, 1, NOT_KEPT)]);
    b.step(Event::DropFragments {
        worker: 7,
        ticket: 1,
    });
    b.ticks(3);
    b.refuse = None;
    b.gcs(crate::gcs::Event::Primary(true));
    b.ticks(1);
    while !b.sent.is_empty() {
        b.deliver_own();
    }
    assert!(b.core.stats().open_transactions.is_empty());
}

#[test]
fn a_replay_has_its_fragments() {
    let mut b = Bench::online();
    let (fragments, changeset) = large(ME, LIFE, OF, 1);
    send(&mut b, fragments[0].clone());
    b.deliver_own();
    let seq = b.seq;
    commit(&mut b, changeset);
    b.deliver_own();
    b.step(Event::Abandon {
        worker: 7,
        ticket: 1,
        gone: true,
    });
    assert_eq!(b.applies(), [(1, 1, 0)]);
    b.step(Event::FragmentWanted {
        helper: 1,
        gid: Gid(1),
        nth: 0,
    });
    assert_eq!(reads(&mut b), [seq]);
}
