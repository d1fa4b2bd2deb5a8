//! Groups in bad weather: every run first has faults without bound, then the faults end and the
//! group must come level. What a seed does wrong, it does wrong again.

use super::cluster::{Cluster, Faults, GROUP, id};
use crate::gcs::egcs::log::Entry;
use crate::gcs::egcs::recover;
use crate::gcs::egcs::wire::{Assembly, Frame};
use crate::gcs::{Input, Output};
use crate::ids::{Gid, MemberId};
use bytes::Bytes;
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;

fn payload(n: u64) -> Bytes {
    Bytes::from(n.to_le_bytes().to_vec())
}

fn any(c: &mut Cluster) -> MemberId {
    let all: Vec<MemberId> = c.servers.keys().copied().collect();
    let n = c.random().below(all.len() as u64);
    all[n as usize]
}

/// One run: `steps` random events on a group of three, then peace.
fn storm(seed: u64, steps: u64, crashes: bool, joins: bool) -> Cluster {
    let mut c = Cluster::of(seed, 3);
    c.checkpoint_every = 1 + c.random().below(60);
    c.faults = Faults {
        loss: c.random().below(20),
        doubling: c.random().below(10),
        reorder: c.random().chance(50),
    };
    let mut nonce = 100;
    for n in 0..steps {
        let at = any(&mut c);
        match c.random().below(100) {
            0..30 => {
                c.multicast(at, payload(n));
            }
            30..78 => {
                c.pass_one();
            }
            78..92 => c.flush(at),
            92..97 => c.tick_all(),
            97 if crashes && c.random().chance(25) => {
                if c.servers[&at].node.is_some() {
                    c.crash(at);
                } else {
                    c.start(at);
                }
            }
            98 if c.random().chance(20) => {
                let other = any(&mut c);
                if !c.cut.remove(&(at, other)) {
                    c.cut.insert((at, other));
                    for (a, b) in [(at, other), (other, at)] {
                        c.step(a, Input::PeerDown(b));
                    }
                }
            }
            99 if joins && c.servers.len() < 6 && c.random().chance(10) => {
                nonce += 1;
                ask_to_join(&mut c, at, nonce);
            }
            _ => {}
        }
        admit(&mut c);
    }
    c.faults = Faults::default();
    c.cut.clear();
    come_level(&mut c);
    c
}

/// Everyone runs and is connected again, and the group serves.
fn come_level(c: &mut Cluster) {
    let all: Vec<MemberId> = c.servers.keys().copied().collect();
    for &m in &all {
        if c.servers[&m].node.is_none() {
            c.start(m);
        }
    }
    for &a in &all {
        for &b in all.iter().filter(|&&b| b > a) {
            c.connect(a, b);
        }
    }
    c.run_until("everyone is level", |c| {
        c.level() && c.servers.values().all(|s| s.app.primary)
    });
    // A server that came too late may have been taken out again.
    let all: Vec<MemberId> = c.servers.keys().copied().collect();
    for &m in &all {
        c.multicast(m, payload(m.0.into())).unwrap();
    }
    let before = c.history.len();
    c.run_until("and serves", |c| {
        c.level() && c.history.len() >= before + all.len()
    });
    for s in c.servers.values() {
        assert_eq!(s.app.fatal, None, "member {}", s.id);
    }
}

fn ask_to_join(c: &mut Cluster, at: MemberId, nonce: u64) {
    use crate::gcs::egcs::members::JoinRequest;
    let gid = c.servers[&at].app.seq;
    let bytes = JoinRequest {
        group: super::cluster::GROUP,
        nonce: nonce.into(),
        gid: Gid(gid),
        address: format!("host{nonce}:1"),
        fingerprint: "test".into(),
    }
    .encode();
    let connection = nonce << 32 | gid;
    c.step(at, Input::Join { connection, bytes });
}

/// Servers that were accepted start, with the copy that they asked with.
fn admit(c: &mut Cluster) {
    use crate::gcs::egcs::members::JoinReply;
    while let Some((connection, reply)) = c.replies.pop_first() {
        if let JoinReply::Accepted { member, .. } = reply
            && !c.servers.contains_key(&member)
        {
            c.admit(member, Gid(connection & 0xffff_ffff));
        }
    }
}

#[test]
fn storms_of_a_bad_network() {
    for seed in 0..30 {
        storm(seed, 3_000, false, false);
    }
}

#[test]
fn storms_with_crashes_that_lose_unsynced_writes() {
    let mut ordered = 0;
    for seed in 1000..1060 {
        ordered += storm(seed, 4_000, true, false).history.len();
    }
    assert!(ordered > 5_000, "only {ordered} messages were ordered");
}

#[test]
fn storms_with_crashes_and_joins() {
    let mut largest = 0;
    for seed in 2000..2040 {
        largest = largest.max(storm(seed, 5_000, true, true).servers.len());
    }
    assert!(largest > 3, "nobody joined");
}

#[test]
fn same_seed_same_history() {
    let a = storm(5000, 3_000, true, true);
    let b = storm(5000, 3_000, true, true);
    assert!(!a.history.is_empty() && a.history == b.history);
}

#[test]
fn leader_is_killed_under_load_and_nothing_is_lost() {
    let mut c = Cluster::of(11, 3);
    for round in 0..10 {
        for n in 0..50 {
            for m in c.up() {
                c.multicast(m, payload(n));
            }
            c.pass_one();
        }
        let leader = c.leader().unwrap();
        c.crash(leader);
        let rest = c.up();
        c.run_until("a new leader", |c| c.leader().is_some());
        let before = c.history.len();
        c.multicast(rest[0], payload(round)).unwrap();
        c.run_until("it serves", |c| c.history.len() > before);
        c.start(leader);
        c.run_until("it is back", Cluster::level);
    }
    assert!(c.acknowledged > 300, "{} acknowledged", c.acknowledged);
}

#[test]
fn all_down_and_any_order_of_return() {
    let mut c = Cluster::of(12, 3);
    for round in 0..12u16 {
        for n in 0..40 {
            c.multicast(id(1 + n % 3), payload(n.into()));
            c.pass_one();
            c.flush(id(1 + n % 3));
        }
        for m in [1, 2, 3] {
            c.crash(id(m));
        }
        let first = round % 3;
        c.start(id(1 + first));
        c.run(30);
        assert!(!c.servers[&id(1 + first)].app.primary, "no majority yet");
        c.start(id(1 + (first + 1) % 3));
        c.run_until("two of three serve", |c| c.leader().is_some() && c.level());
        c.start(id(1 + (first + 2) % 3));
        c.run_until("all level", Cluster::level);
    }
}

#[test]
fn member_cut_off_turns_not_primary_and_comes_back() {
    let mut c = Cluster::of(13, 3);
    let leader = c.leader().unwrap();
    let others: Vec<MemberId> = c.up().into_iter().filter(|m| *m != leader).collect();
    for &o in &others {
        c.cut.extend([(leader, o), (o, leader)]);
    }
    let lost = c.multicast(leader, payload(1)).unwrap();
    c.run(25);
    assert!(!c.servers[&leader].app.primary);
    c.run_until("the others go on", |c| {
        c.leader().is_some_and(|l| l != leader)
    });
    c.multicast(others[0], payload(2)).unwrap();
    c.run(5);
    assert_eq!(c.servers[&leader].app.seq, 0);
    c.cut.clear();
    c.run_until("both ordered", |c| c.level() && c.history.len() == 2);
    assert_eq!(c.history[1].0, lost, "what was taken is sent again");
}

/// How far the group was when an earlier life asked says nothing to this one.
#[test]
fn answers_that_were_meant_for_an_earlier_life_are_not_taken() {
    let is_answer = |bytes: &Bytes| match Assembly::default().take(bytes.clone()) {
        Ok(Some(Frame::Raft(m))) => m.msg_type == MessageType::MsgReadIndexResp,
        _ => false,
    };
    let mut c = Cluster::of(23, 3);
    let leader = c.leader().unwrap();
    let other = c.up().into_iter().find(|m| *m != leader).unwrap();
    c.crash(other);
    c.start(other);
    let mut late = None;
    for _ in 0..100_000 {
        let mut net = c.net.iter();
        if let Some(at) = net.position(|(_, to, bytes)| *to == other && is_answer(bytes)) {
            late = c.net.remove(at);
            break;
        }
        if !c.pass_one() {
            (1..=3).for_each(|m| c.flush(id(m)));
            c.tick_all();
        }
    }
    let (_, _, bytes) = late.expect("it asks, and is answered");
    c.crash(other);
    for n in 0..20 {
        c.multicast(leader, payload(n)).unwrap();
        c.settle();
    }
    c.start(other);
    let from = leader;
    c.cut.extend([1, 2, 3].map(|m| (id(m), other)));
    c.step(other, Input::Frame { from, bytes });
    c.run(3);
    assert!(!c.servers[&other].app.caught_up);
    c.cut.clear();
    c.run_until("it is in step", |c| c.level() && c.history.len() == 20);
}

#[test]
fn member_that_lost_its_log_is_found_out() {
    let mut c = Cluster::of(14, 3);
    let follower = c.up().into_iter().find(|m| c.leader() != Some(*m)).unwrap();
    let old = c.servers[&follower].disk.snapshot();
    for n in 0..50 {
        c.multicast(id(1), payload(n)).unwrap();
        c.settle();
    }
    c.crash(follower);
    let s = c.servers.get_mut(&follower).unwrap();
    // An administrator put an old copy of the folder back.
    s.disk = old;
    (s.app.index, s.app.flushed) = (0, 0);
    c.start(follower);
    for n in 0..20 {
        c.multicast(c.leader().unwrap(), payload(n));
        c.run(1);
    }
    let fatal = c.servers[&follower].app.fatal.clone();
    assert!(fatal.is_some_and(|why| why.contains("it lost entries")));
}

#[test]
fn joins_under_load_start_from_a_checkpoint() {
    let mut c = Cluster::of(15, 2);
    c.checkpoint_every = 20;
    let gid = Gid(0);
    for n in 0..200 {
        c.multicast(id(1 + (n % 2) as u16), payload(n)).unwrap();
        c.settle();
    }
    let from = Gid(c.history.len() as u64);
    assert!(from > gid);
    for n in 0..100 {
        c.multicast(id(1), payload(n)).unwrap();
        c.settle();
    }
    let joined = c.join_with(id(2), 5, from).unwrap();
    for n in 0..100 {
        c.multicast(id(1), payload(n)).unwrap();
        c.run(1);
    }
    c.run_until("it votes", |c| {
        let view = &c.servers[&joined].app.view;
        c.level() && view.members.iter().any(|m| m.id == joined && m.voter)
    });
    c.multicast(joined, payload(1)).unwrap();
    c.run_until("it writes", |c| c.level() && c.history.len() == 401);
    c.crash(joined);
    c.start(joined);
    c.run_until("it comes back", Cluster::level);
}

#[test]
fn log_is_cut_and_members_that_lagged_within_it_catch_up() {
    let mut c = Cluster::of(16, 3);
    c.checkpoint_every = 10;
    c.segment_bytes = 1 << 20;
    let big = Bytes::from(vec![1; 20 << 10]);
    for m in [1, 2, 3] {
        c.crash(id(m));
    }
    c.keep_bytes = 3 << 20;
    for m in [1, 2, 3] {
        c.start(id(m));
    }
    c.run_until("up", |c| c.leader().is_some() && c.level());
    c.crash(id(3));
    c.run_until("two serve", |c| c.leader().is_some());
    for _ in 0..120 {
        let at = c.leader().unwrap();
        c.multicast(at, big.clone()).unwrap();
        c.run(1);
    }
    c.start(id(3));
    c.run_until("level", Cluster::level);
    for _ in 0..400 {
        let at = c.leader().unwrap();
        c.multicast(at, big.clone()).unwrap();
        c.settle();
    }
    c.run_until("level", Cluster::level);
    for s in c.servers.values() {
        use crate::gcs::egcs::disk::Disk;
        let files = s.disk.list().unwrap().len();
        assert!(files <= 5, "member {}: {files} segments of 1 MiB", s.id);
    }
    for m in [1, 2, 3] {
        c.crash(id(m));
        c.start(id(m));
        c.run_until("level", Cluster::level);
    }
}

/// What a member that is away will need are entries; checkpoints are the others' own.
#[test]
fn checkpoints_do_not_count_as_what_is_kept_for_members_that_are_away() {
    let mut c = Cluster::of(20, 3);
    (c.checkpoint_every, c.state_bytes) = (10, 200 << 10);
    c.keep_bytes = 1 << 20;
    for m in [1, 2, 3] {
        c.crash(id(m));
        c.start(id(m));
        c.run_until("level", |c| c.leader().is_some() && c.level());
    }
    c.crash(id(3));
    c.run_until("two serve", |c| c.leader().is_some());
    let half = Bytes::from(vec![1; 5 << 10]);
    for _ in 0..100 {
        let at = c.leader().unwrap();
        c.multicast(at, half.clone()).unwrap();
        c.run(1);
    }
    assert_eq!(c.history.len(), 100);
    c.start(id(3));
    c.run_until("level", Cluster::level);
}

#[test]
fn garbage_frames_change_nothing() {
    let mut c = Cluster::of(17, 3);
    for n in 0..2_000u64 {
        let len = c.random().below(200) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| c.random().next() as u8).collect();
        if let Some(first) = bytes.first_mut() {
            *first = 0;
        }
        if let Some(kind) = bytes.get_mut(1) {
            *kind = (n % 8) as u8;
        }
        if bytes.get(..2) == Some(&[0, 7]) {
            continue; // "You are no member", said by a member, is believed.
        }
        let from = id(1 + (n % 3) as u16);
        let to = id(1 + ((n + 1) % 3) as u16);
        let bytes = bytes.into();
        c.step(to, Input::Frame { from, bytes });
    }
    c.run_until("still primary", |c| c.leader().is_some());
    c.multicast(id(2), payload(1));
    c.run_until("ordered", |c| c.level() && !c.history.is_empty());
}

#[test]
fn nothing_is_delivered_before_it_is_durable_here() {
    let mut c = Cluster::new(18);
    c.multicast(id(1), payload(1)).unwrap();
    c.run_without_disk(20);
    assert!(c.history.is_empty());
    let mut out = Vec::new();
    crate::gcs::Gcs::drain(
        c.servers.get_mut(&id(1)).unwrap().node.as_mut().unwrap(),
        &mut out,
    );
    assert!(!out.iter().any(|o| matches!(o, Output::Event(_))));
    c.settle();
    assert_eq!(c.history.len(), 1);
}

/// What it said as the leader of a term that it forgot, it would say differently the next time.
#[test]
fn lone_voter_is_silent_until_its_term_is_durable() {
    let mut c = Cluster::new(19);
    c.multicast(id(1), payload(1)).unwrap();
    c.settle();
    let learner = c.join(id(1), 7);
    while c.servers[&learner].app.seq == 0 {
        // In step at the end of a tick, so a learner until the next.
        c.step(id(1), Input::Tick);
        c.settle();
    }
    // With it goes the commit of the learner's entry.
    c.multicast(id(1), payload(0)).unwrap();
    c.settle();
    c.lose_power(id(1));
    c.start(id(1));
    for _ in 0..20 {
        c.step(id(1), Input::Tick);
    }
    assert!(c.servers[&id(1)].node.as_ref().unwrap().is_leader());
    assert!(c.net.iter().all(|(from, ..)| *from != id(1)));
    c.run_until("both serve", |c| {
        c.level() && c.servers[&learner].app.view.members[1].voter
    });
    c.multicast(learner, payload(2)).unwrap();
    c.run_until("ordered", |c| c.level() && c.history.len() == 3);
}

/// Wherever its write of other entries is torn, a member that led knows of no commit that it lacks.
#[test]
fn torn_log_does_not_take_superseded_entries_for_committed() {
    let mut c = Cluster::of(22, 3);
    let old = c.leader().unwrap();
    for other in [1, 2, 3].map(id).into_iter().filter(|m| *m != old) {
        c.cut.extend([(old, other), (other, old)]);
    }
    c.multicast(old, payload(1)).unwrap();
    c.run_until("another leads", |c| c.leader().is_some_and(|l| l != old));
    let new = c.leader().unwrap();
    for n in 2..6 {
        c.multicast(new, payload(n)).unwrap();
        c.settle();
    }
    let log = |c: &Cluster, id| {
        let disk = c.servers[&id].disk.snapshot();
        recover::recover(&disk, GROUP, id).unwrap().0
    };
    let right: BTreeMap<u64, u64> = log(&c, new)
        .tail
        .iter()
        .map(|e| (e.index, e.term))
        .collect();
    let differs = |e: &Entry| right.get(&e.index).is_some_and(|term| *term != e.term);
    let has_other_entries = |c: &Cluster| log(c, old).tail.iter().any(differs);
    assert!(has_other_entries(&c));
    c.cut.clear();
    for _ in 0..100 {
        c.tick_all();
        while c.pass_one() {}
        for torn in (0..).step_by(8).map_while(|n| c.torn(old, n)) {
            let commit = torn.hard_state.commit;
            let mut committed = torn.tail.iter().filter(|e| e.index <= commit);
            assert!(!committed.any(differs), "committed: {commit}");
        }
        (1..=3).for_each(|m| c.flush(id(m)));
    }
    assert!(!has_other_entries(&c));
}
