//! Codecs: what is written is read back, and garbage is refused without a panic.

use crate::gcs::egcs::codec::Fields;
use crate::gcs::egcs::log::{Checkpoint, Entry, EntryKind, HardState, Member, Record, Seen};
use crate::gcs::egcs::mem_disk::MemDisk;
use crate::gcs::egcs::members::{Identity, JoinReply, JoinRequest};
use crate::gcs::egcs::store;
use crate::gcs::egcs::wire::{self, Assembly, Change, Frame};
use crate::ids::{Gid, GroupId, Incarnation, MemberId, MessageId};
use crate::limits::FRAME_PART_BYTES;
use bytes::Bytes;
use proptest::prelude::*;
use raft::eraftpb::{Message, MessageType};

fn member() -> impl Strategy<Value = Member> {
    (
        1u16..99,
        any::<bool>(),
        any::<u128>(),
        any::<u64>(),
        ".{0,20}",
    )
        .prop_map(|(id, voter, nonce, gid, address)| Member {
            id: MemberId(id),
            voter,
            nonce,
            gid: Gid(gid),
            address,
        })
}

fn data() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let members = prop::collection::btree_map(1u16..60, member(), 0..5);
    let seen = prop::collection::btree_map(1u16..60, (any::<u32>(), any::<u64>()), 0..5);
    let guest = prop::option::of(member());
    (
        any::<[u32; 4]>(),
        any::<u32>(),
        members,
        guest,
        seen,
        data(),
    )
        .prop_map(|(n, skip, members, guest, seen, state)| Checkpoint {
            index: u64::from(n[0]) + 1,
            term: u64::from(n[1]) + 1,
            skip,
            seq: n[2].into(),
            gid: Gid(n[3].into()),
            next_member: 99,
            members: members
                .into_iter()
                .map(|(id, m)| Member {
                    id: MemberId(id),
                    ..m
                })
                .collect(),
            guest,
            seen: seen
                .into_iter()
                .map(|(m, (life, number))| Seen {
                    member: MemberId(m),
                    incarnation: Incarnation(life),
                    number,
                })
                .collect(),
            state,
        })
}

fn record() -> impl Strategy<Value = Record> {
    let entry = (any::<u64>(), any::<u64>(), any::<bool>(), data());
    let hard = any::<[u64; 3]>().prop_map(|n| HardState {
        term: n[0],
        vote: n[1],
        commit: n[2],
    });
    prop_oneof![
        entry.prop_map(|(index, term, change, data)| Record::Entry(Entry {
            index,
            term,
            kind: if change {
                EntryKind::Change
            } else {
                EntryKind::Batch
            },
            data,
        })),
        hard.clone().prop_map(Record::HardState),
        checkpoint().prop_map(Record::Checkpoint),
        (checkpoint(), hard).prop_map(|(c, h)| Record::Restore(c, h)),
    ]
}

fn round(frame: &Frame) -> Frame {
    let mut out = Vec::new();
    frame.encode(&mut out);
    Frame::decode(out.into()).unwrap()
}

proptest! {
    #[test]
    fn records_come_back(r in record()) {
        let mut out = Vec::new();
        r.encode(&mut out);
        prop_assert!(out.len() <= r.size_hint());
        prop_assert_eq!(Record::decode(r.kind(), out.into()), Ok(r));
    }

    #[test]
    fn records_cut_short_are_refused(r in record(), cut in any::<prop::sample::Index>()) {
        let mut out = Vec::new();
        r.encode(&mut out);
        out.truncate(cut.index(out.len()));
        prop_assert!(Record::decode(r.kind(), out.into()).is_err());
    }

    #[test]
    fn garbage_is_refused_without_a_panic(kind in any::<u8>(), mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Record::decode(kind % 5, bytes.clone().into());
        let _ = wire::decode_batch(bytes.clone().into());
        let _ = Change::decode(bytes.clone().into());
        let _ = JoinRequest::decode(bytes.clone().into());
        let _ = JoinReply::decode(bytes.clone().into());
        let _ = Identity::decode(&bytes);
        let _ = Assembly::default().take(bytes.clone().into());
        if let Some(first) = bytes.first_mut() {
            *first = kind % 9;
        }
        let _ = Frame::decode(bytes.into());
    }

    #[test]
    fn changed_frames_never_panic(c in checkpoint(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgSnapshot);
        m.term = c.term;
        m.set_snapshot(store::to_snapshot(&c));
        let mut out = Vec::new();
        Frame::Raft(Box::new(m)).encode(&mut out);
        let at = at.index(out.len());
        out[at] = with;
        let _ = Frame::decode(out.into());
    }

    #[test]
    fn appends_come_back(first in 1u64..1000, term in 1u64..9, payloads in prop::collection::vec(data(), 0..5)) {
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgAppend);
        (m.term, m.index, m.log_term, m.commit) = (term, first, term, first);
        let entries: Vec<_> = (first + 1..).zip(payloads).map(|(index, data)| {
            let kind = EntryKind::Batch;
            store::to_raft(&Entry { index, term, kind, data })
        }).collect();
        m.set_entries(entries.into());
        let frame = Frame::Raft(Box::new(m));
        prop_assert_eq!(round(&frame), frame);
    }

    #[test]
    fn joins_come_back(m in member(), text in ".{0,100}") {
        let request = JoinRequest { group: GroupId(1), nonce: m.nonce, gid: m.gid, address: m.address.clone(), fingerprint: text.clone() };
        prop_assert_eq!(JoinRequest::decode(request.encode()), Ok(request));
        for reply in [
            JoinReply::Accepted { member: m.id, members: vec![m.clone()] },
            JoinReply::Refused(text.clone()),
            JoinReply::Retry(text.clone()),
        ] {
            prop_assert_eq!(JoinReply::decode(reply.encode()), Ok(reply));
        }
        for change in [Change::Add(m.clone()), Change::Promote(m.id), Change::Demote(m.id), Change::Remove(m.id)] {
            prop_assert_eq!(Change::decode(change.encode().into()), Ok(change));
        }
    }

    #[test]
    fn batches_come_back(payloads in prop::collection::vec(data(), 1..20)) {
        let messages: Vec<_> = (1..).zip(payloads).map(|(number, p)| {
            (MessageId { member: MemberId(2), incarnation: Incarnation(3), number }, p)
        }).collect();
        let bytes = wire::encode_batch(&messages);
        prop_assert_eq!(wire::decode_batch(bytes.into()), Ok(messages));
    }
}

#[test]
fn entries_out_of_sequence_are_refused() {
    for (index, term) in [(9, 2), (7, 2), (8, 1), (8, 4)] {
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgAppend);
        (m.term, m.index, m.log_term) = (3, 7, 2);
        let e = Entry {
            index,
            term,
            kind: EntryKind::Batch,
            data: Bytes::new(),
        };
        m.set_entries(vec![store::to_raft(&e)].into());
        let mut out = Vec::new();
        Frame::Raft(Box::new(m)).encode(&mut out);
        assert!(Frame::decode(out.into()).is_err(), "entry {index}, {term}");
    }
}

#[test]
fn large_frames_go_in_parts_and_lost_parts_cost_only_their_frame() {
    let frame = |byte| Frame::Forward {
        incarnation: Incarnation(1),
        first: 1,
        payloads: vec![vec![byte; 3 * FRAME_PART_BYTES].into()],
    };
    let mut assembly = Assembly::default();
    let (a, b) = (wire::pieces(&frame(1), 1), wire::pieces(&frame(2), 2));
    assert!(a.len() == 4 && a.iter().all(|p| p.len() <= FRAME_PART_BYTES + 13));
    for piece in &a[..2] {
        assert_eq!(assembly.take(piece.clone()), Ok(None));
    }
    assert_eq!(assembly.take(a[3].clone()), Ok(None), "one is missing");
    for piece in &b[..3] {
        assert_eq!(assembly.take(piece.clone()), Ok(None));
    }
    assert_eq!(assembly.take(b[3].clone()), Ok(Some(frame(2))));
    assert_eq!(assembly.take(b[3].clone()), Ok(None), "doubled");
}

#[test]
fn identity_survives_a_crash_as_old_or_new() {
    let disk = MemDisk::new();
    assert_eq!(Identity::load(&disk).unwrap(), None);
    let mut identity = Identity {
        group: GroupId(5),
        member: MemberId(2),
        incarnation: Incarnation(0),
        nonce: 9,
        address: "db-1:7001".into(),
    };
    identity.next_life(&disk).unwrap();
    assert_eq!(Identity::load(&disk).unwrap().as_ref(), Some(&identity));
    let mut n = 0;
    disk.crash(&mut || {
        n += 1;
        n
    });
    assert_eq!(Identity::load(&disk).unwrap().as_ref(), Some(&identity));
    let bytes = identity.encode();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        assert_eq!(Identity::decode(&changed), None, "byte {at}");
    }
}

#[test]
fn golden_record() {
    let mut out = Vec::new();
    Record::Entry(Entry {
        index: 2,
        term: 3,
        kind: EntryKind::Batch,
        data: Bytes::from_static(b"ab"),
    })
    .encode(&mut out);
    let expected = b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\x02\0\0\0ab";
    assert_eq!(out, expected);
    let mut f = Fields::new(out.into());
    assert_eq!(Entry::decode(&mut f).unwrap().term, 3);
}
