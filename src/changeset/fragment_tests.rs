//! What counts of a transaction whose entries went ahead in part, after any nested rollbacks.

use super::decode::{Changeset, DecodeError};
use super::encode::{Builder, Coarse, Mark, Taken};
use super::entry::{Entries, Entry};
use super::fragment::{
    Counted, FRAGMENT_HEADER_BYTES, FragmentsOf, count, fragment_head, fragment_header, open,
};
use super::header::Header;
use super::key::{KEY_BYTES_MAX, KEY_FROM_SINCE, KEY_LOCK_ONLY, KEY_RELATION, Key, LockMode};
use super::sink::Sink;
use super::tests::Small;
use super::tuple::TupleBytes;
use crate::ids::{Gid, GroupId, Incarnation, MemberId, Oid};
use proptest::prelude::*;

const OF: FragmentsOf = FragmentsOf {
    worker: 7,
    ticket: 1 << 40,
};

fn finish(builder: Builder<Vec<u8>>) -> Vec<u8> {
    let (head, keys, entries) = builder.finish(Header {
        flags: 0,
        group: GroupId(1),
        origin: MemberId(1),
        incarnation: Incarnation(1),
        isolation: 1,
        xid: 5,
        snapshot_gid: Gid(0),
        commit_ts: 0,
        database: Oid(5),
    });
    [head.to_vec(), keys, entries].concat()
}

fn insert(builder: &mut Builder<Vec<u8>>, relation: u32, row: u64) {
    builder.relation(Oid(relation), 1, 1).expect("room");
    let data = [row.to_le_bytes(), [0xaa; 8]].concat();
    let tuple = TupleBytes {
        natts: 1,
        bitmap: None,
        data: &data,
    };
    builder.insert(&tuple).expect("room");
}

/// Sends entries ahead, but for what these marks may take back: appends the fragments to those sent before.
fn send_but(
    builder: &mut Builder<Vec<u8>>,
    sent: &mut Vec<Vec<u8>>,
    open: impl IntoIterator<Item = Mark>,
) {
    let taken = builder.take_entries(Vec::new(), open);
    assert_eq!(taken.ends.last().copied().unwrap_or(0), taken.entries.len());
    append(&taken, sent);
}

fn append(taken: &Taken<Vec<u8>>, sent: &mut Vec<Vec<u8>>) {
    assert_eq!(taken.first as usize, sent.len());
    for nth in 0..taken.ends.len() {
        let (head, range) = taken.fragment(nth, OF);
        // Every other one is compressed, if that makes it shorter.
        let part = taken.written(range, head.number % 2 == 1);
        let fragment = [&fragment_header(head, &part)[..], &part].concat();
        assert_eq!(fragment_head(&fragment), Some(head));
        sent.push(fragment);
    }
}

/// Those that count, as the fragments themselves say.
fn said(sent: &[Vec<u8>]) -> Vec<Counted> {
    let mut list = Vec::new();
    for fragment in sent {
        let head = fragment_head(fragment).expect("a fragment");
        assert!(count(&mut list, head));
    }
    list
}

fn send(builder: &mut Builder<Vec<u8>>, sent: &mut Vec<Vec<u8>>) {
    send_but(builder, sent, []);
    assert_eq!(builder.entries_bytes(), 0, "all of it goes");
}

fn rows(entries: Entries<'_>, into: &mut Vec<(u32, u64)>) {
    let mut relation = None;
    for entry in entries {
        match entry.expect("whole") {
            Entry::Relation { oid, .. } => relation = Some(oid.0),
            Entry::Insert(row) => {
                let number = row.data.first_chunk().expect("a row");
                into.push((relation.expect("opened"), u64::from_le_bytes(*number)));
            }
            Entry::Fragments(list) => assert_eq!(list.of, OF),
            other => panic!("{other:?}"),
        }
    }
}

/// What whoever applies it does.
fn applied(changeset: &[u8], sent: &[Vec<u8>]) -> Vec<(u32, u64)> {
    let changeset = Changeset::parse(changeset).expect("a changeset");
    let mut all = Vec::new();
    for counted in changeset.fragments().into_iter().flat_map(|l| l.counted()) {
        let fragment = &sent[counted.number as usize];
        let head = fragment_head(fragment).expect("a fragment");
        assert_eq!((head.of, head.number), (OF, counted.number));
        rows(open(fragment, counted).expect("whole").entries(), &mut all);
    }
    rows(changeset.open().expect("whole").entries(), &mut all);
    all
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u32),
    Send,
    SendBut,
    Savepoint,
    RollBack(usize),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..3u32).prop_map(Step::Insert),
        1 => Just(Step::Send),
        2 => Just(Step::SendBut),
        2 => Just(Step::Savepoint),
        2 => (0..3usize).prop_map(Step::RollBack),
        1 => Just(Step::Release),
    ]
}

proptest! {
    #[test]
    fn what_counts_is_what_was_not_rolled_back(
        steps in prop::collection::vec(step(), 1..120),
        fragment_bytes in prop_oneof![1..200usize, 200..2000usize],
    ) {
        let mut builder = Builder::bounded(Vec::new(), Vec::new(), fragment_bytes, 100);
        let mut sent = Vec::new();
        let mut model: Vec<(u32, u64)> = Vec::new();
        let mut marks: Vec<(Mark, usize)> = Vec::new();
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Insert(relation) => {
                    insert(&mut builder, relation, number);
                    model.push((relation, number));
                }
                Step::Send => send(&mut builder, &mut sent),
                Step::SendBut => {
                    let before = builder.entries_bytes();
                    send_but(&mut builder, &mut sent, marks.iter().map(|m| m.0));
                    prop_assert!(builder.entries_bytes() <= before / 2);
                }
                Step::Savepoint => marks.push((builder.mark(), model.len())),
                Step::RollBack(up) => {
                    marks.truncate(marks.len().saturating_sub(up));
                    if let Some((mark, len)) = marks.pop() {
                        builder.rollback(mark);
                        model.truncate(len);
                    }
                }
                Step::Release => {
                    marks.pop();
                }
            }
            prop_assert_eq!(builder.has_fragments(), !sent.is_empty());
            prop_assert!(model.is_empty() || !builder.has_no_entries());
        }
        if let Some(correction) = builder.take_correction(Vec::new()) {
            append(&correction, &mut sent);
        }
        if builder.has_fragments() {
            builder.fragments(OF).expect("room");
        }
        let changeset = finish(builder);
        prop_assert_eq!(counted(&changeset), said(&sent));
        prop_assert_eq!(applied(&changeset, &sent), model);
        let bytes = |f: &Vec<u8>| fragment_head(f).expect("a fragment").bytes as usize;
        prop_assert!(sent.iter().all(|f| bytes(f) <= fragment_bytes + 15 + 19 + 15));
    }

    #[test]
    fn coarse_keys_say_no_less(
        steps in prop::collection::vec((0..6u8, 1..4u32, 0..30u64, 0..50u64), 1..200),
    ) {
        let mut builder = Builder::bounded(Vec::new(), Vec::new(), 100, 10);
        let mut model: Vec<Key> = Vec::new();
        let mut mark = None;
        for (what, relation, hash, since) in steps {
            match what {
                4 => mark = Some((builder.mark(), model.len())),
                5 => {
                    if let Some((mark, len)) = mark.take() {
                        builder.rollback(mark);
                        model.truncate(len);
                    }
                }
                _ => {
                    let flags = [0, KEY_LOCK_ONLY, KEY_FROM_SINCE, KEY_RELATION][usize::from(what)];
                    let key = Key {
                        hash: hash + 100 * u64::from(relation),
                        since: Gid(since),
                        relation,
                        mode: LockMode::Update,
                        flags,
                    };
                    builder.key(key).expect("room");
                    model.push(key);
                    if builder.has_many_keys() {
                        builder.coarsen(Vec::new()).expect("room");
                    }
                }
            }
        }
        let coarse = builder.coarse();
        let bytes = finish(builder);
        let kept: Vec<Key> = Changeset::parse(&bytes).expect("whole").keys().collect();
        for key in model {
            let same = |k: &Key| (k.relation, k.hash, k.flags) == (key.relation, key.hash, key.flags);
            let exact = kept.iter().any(|k| same(k) && k.since <= key.since);
            prop_assert!(exact || stands_for(&coarse, &key), "{key:?}");
        }
    }
}

fn stands_for(coarse: &[(u32, Coarse)], key: &Key) -> bool {
    let Some((_, coarse)) = coarse.iter().find(|c| c.0 == key.relation) else {
        return false;
    };
    let reaches = |since: Option<Gid>| since.is_some_and(|s| s <= key.since);
    let lock_only = key.flags & KEY_LOCK_ONLY != 0;
    key.flags & KEY_RELATION == 0
        && reaches(if lock_only {
            coarse.locked
        } else {
            coarse.written
        })
        && (key.flags & KEY_FROM_SINCE == 0 || reaches(coarse.from_since))
}

#[test]
fn many_keys_become_few_and_the_others_stay() {
    let mut builder = Builder::bounded(Vec::new(), Vec::new(), 100, 20);
    let key = |relation, hash| Key {
        hash,
        since: Gid(9),
        relation,
        mode: LockMode::Update,
        flags: 0,
    };
    builder.key(key(1, 1)).expect("room");
    for row in 0..10_000 {
        builder.key(key(2, row)).expect("room");
        if builder.has_many_keys() {
            builder.coarsen(Vec::new()).expect("room");
        }
        assert!(builder.keys_bytes() <= 21 * KEY_BYTES_MAX);
    }
    let coarse = builder.coarse();
    assert_eq!(coarse.iter().map(|c| c.0).collect::<Vec<_>>(), [2]);
    assert_eq!(coarse[0].1.written, Some(Gid(9)));
    let bytes = finish(builder);
    let kept: Vec<u32> = Changeset::parse(&bytes)
        .expect("whole")
        .keys()
        .map(|k| k.relation)
        .collect();
    assert_eq!(kept, [1]);
}

#[test]
fn a_fragment_that_was_changed_is_refused() {
    let mut builder = Builder::new(Vec::new(), Vec::new());
    insert(&mut builder, 1, 1);
    let mut sent = Vec::new();
    send(&mut builder, &mut sent);
    let bytes = fragment_head(&sent[0]).expect("a fragment").bytes;
    let counted = |number, bytes| Counted { number, bytes };
    assert!(open(&sent[0], counted(0, bytes)).is_ok());
    for (number, bytes) in [(1, bytes), (0, bytes + 1)] {
        let refused = open(&sent[0], counted(number, bytes)).map(drop);
        assert_eq!(refused.err(), Some(DecodeError::Length));
    }
    for at in 0..sent[0].len() {
        let mut changed = sent[0].clone();
        changed[at] ^= 1;
        let refused = open(&changed, counted(0, bytes)).map(drop);
        // Only the bytes of its entries, which are held against its length first, can have another error.
        let says_length = (FRAGMENT_HEADER_BYTES - 8..FRAGMENT_HEADER_BYTES - 4).contains(&at);
        let error = match fragment_head(&changed) {
            None if says_length => DecodeError::Length,
            _ => DecodeError::Checksum,
        };
        assert_eq!(refused.err(), Some(error), "byte {at}");
    }
    assert_eq!(fragment_head(&sent[0][..FRAGMENT_HEADER_BYTES - 1]), None);
}

#[test]
fn nothing_follows_the_list_of_fragments() {
    let mut builder = Builder::new(Vec::new(), Vec::new());
    insert(&mut builder, 1, 1);
    builder.fragments(OF).expect("room");
    insert(&mut builder, 1, 2);
    let refused = Changeset::parse(&finish(builder)).err();
    assert_eq!(refused, Some(DecodeError::Length));
}

/// Fragments, and their lengths as far as they count.
fn counted(changeset: &[u8]) -> Vec<Counted> {
    let changeset = Changeset::parse(changeset).expect("a changeset");
    let lists = changeset.fragments().into_iter();
    lists.flat_map(|list| list.counted()).collect()
}

#[test]
fn what_a_small_subtransaction_may_take_back_is_not_sent() {
    let mut builder = Builder::bounded(Vec::new(), Vec::new(), 2000, 100);
    let (mut sent, mut kept) = (Vec::new(), Vec::new());
    let mut row = 0;
    // The statement of a loop, in a savepoint of its own, and its exception block.
    let outer = builder.mark();
    for number in 0..100 {
        let inner = builder.mark();
        let before = kept.len();
        for _ in 0..10 {
            if builder.entries_bytes() > 2000 {
                send_but(&mut builder, &mut sent, [outer, inner]);
            }
            row += 1;
            insert(&mut builder, 1 + row as u32 % 2, row);
            kept.push((1 + row as u32 % 2, row));
        }
        if number % 3 == 0 {
            builder.rollback(inner);
            kept.truncate(before);
        }
    }
    assert!(sent.len() > 10);
    builder.fragments(OF).expect("room");
    let changeset = finish(builder);
    let all: Vec<Counted> = (0..)
        .zip(&sent)
        .map(|(number, fragment)| Counted {
            number,
            bytes: fragment_head(fragment).expect("a fragment").bytes,
        })
        .collect();
    assert_eq!(counted(&changeset), all, "nothing of it was taken back");
    assert_eq!(applied(&changeset, &sent), kept);
}

#[test]
fn what_a_large_subtransaction_may_take_back_is_sent() {
    let mut builder = Builder::bounded(Vec::new(), Vec::new(), 1000, 100);
    let mut sent = Vec::new();
    insert(&mut builder, 1, 0);
    let mark = builder.mark();
    for row in 1..100 {
        insert(&mut builder, 1, row);
    }
    send_but(&mut builder, &mut sent, [mark]);
    assert_eq!(builder.entries_bytes(), 0);
    builder.rollback(mark);
    builder.fragments(OF).expect("room");
    assert_eq!(applied(&finish(builder), &sent), [(1, 0)]);
}

#[test]
fn all_is_sent_if_there_is_no_room_for_what_could_stay() {
    for (room, stays) in [(10_000, true), (20, false)] {
        let small = |room| Small(Vec::new(), room);
        let mut builder = Builder::bounded(small(0), small(10_000), 1000, 100);
        let tuple = TupleBytes {
            natts: 1,
            bitmap: None,
            data: &[7; 30],
        };
        let mut mark = builder.mark();
        for row in 0..100 {
            if row == 80 {
                mark = builder.mark();
            }
            builder.relation(Oid(1), 1, 1).expect("room");
            builder.insert(&tuple).expect("room");
        }
        let before = builder.entries_bytes();
        let taken = builder.take_entries(small(room), [mark]);
        assert_eq!(taken.ends.last(), Some(&taken.entries.len()));
        assert_eq!(taken.entries.len() + builder.entries_bytes(), before);
        assert_eq!(builder.entries_bytes() > 0, stays);
        builder.rollback(mark);
        assert!(!builder.has_no_entries());
    }
}

#[test]
fn a_word_that_fragments_do_not_count_is_said_once() {
    let mut builder = Builder::new(Vec::new(), Vec::new());
    let mut sent = Vec::new();
    let correct = |builder: &mut Builder<Vec<u8>>, sent: &mut Vec<Vec<u8>>| {
        let correction = builder.take_correction(Vec::new());
        if let Some(correction) = &correction {
            append(correction, sent);
        }
        correction.is_some()
    };
    assert!(!correct(&mut builder, &mut sent));
    let mark = builder.mark();
    insert(&mut builder, 1, 1);
    send(&mut builder, &mut sent);
    assert!(!correct(&mut builder, &mut sent));
    builder.rollback(mark);
    assert!(correct(&mut builder, &mut sent));
    assert!(!correct(&mut builder, &mut sent));
    assert_eq!(sent[1].len(), FRAGMENT_HEADER_BYTES);
    assert_eq!(said(&sent), []);
    // The next fragment says it as well.
    insert(&mut builder, 1, 2);
    let mark = builder.mark();
    insert(&mut builder, 1, 3);
    send(&mut builder, &mut sent);
    builder.rollback(mark);
    insert(&mut builder, 1, 4);
    send(&mut builder, &mut sent);
    assert!(!correct(&mut builder, &mut sent));
    builder.fragments(OF).expect("room");
    assert_eq!(applied(&finish(builder), &sent), [(1, 2), (1, 4)]);
}
