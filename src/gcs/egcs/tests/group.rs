//! Groups in good weather: birth, joins, removals, restarts.

use super::checker::state;
use super::cluster::{Cluster, id};
use crate::gcs::egcs::members::JoinReply;
use crate::gcs::{Gcs, Refused};
use crate::ids::{Gid, MemberId};
use bytes::Bytes;

fn payload(n: u64) -> Bytes {
    Bytes::from(n.to_le_bytes().to_vec())
}

#[test]
fn group_of_one_serves_at_once() {
    let mut c = Cluster::new(1);
    assert!(c.servers[&id(1)].app.primary && c.servers[&id(1)].app.caught_up);
    c.multicast(id(1), payload(0)).unwrap();
    c.settle();
    assert_eq!(c.history.len(), 1, "no tick was needed");
}

#[test]
fn group_of_one_restarts_from_its_log() {
    let mut c = Cluster::new(2);
    for n in 0..500 {
        c.multicast(id(1), payload(n)).unwrap();
        c.settle();
    }
    assert_eq!(c.acknowledged, 500);
    for _ in 0..5 {
        c.crash(id(1));
        c.start(id(1));
        c.run_until("level again", Cluster::level);
        c.multicast(id(1), payload(0)).unwrap();
        c.settle();
    }
    assert_eq!(c.history.len(), 505);
}

#[test]
fn three_members_order_alike() {
    let mut c = Cluster::of(3, 3);
    for n in 0..300 {
        c.multicast(id(1 + (n % 3) as u16), payload(n)).unwrap();
        if n % 7 == 0 {
            c.settle();
        }
    }
    c.run_until("level", |c| c.level() && c.history.len() == 300);
}

#[test]
fn messages_larger_than_a_frame_pass() {
    let mut c = Cluster::of(4, 3);
    let large = Bytes::from(vec![7; 9 << 20]);
    c.multicast(id(2), large.clone()).unwrap();
    c.multicast(id(3), large).unwrap();
    c.run_until("level", |c| c.level() && c.history.len() == 2);
}

#[test]
fn what_is_too_large_or_out_of_primary_is_refused() {
    let mut c = Cluster::of(5, 2);
    let node = c.servers.get_mut(&id(2)).unwrap().node.as_mut().unwrap();
    let huge = Bytes::from(vec![0; 66 << 20]);
    assert_eq!(node.multicast(huge), Err(Refused::TooBig));
    c.crash(id(1));
    c.run(25);
    assert!(!c.servers[&id(2)].app.primary);
    let node = c.servers.get_mut(&id(2)).unwrap().node.as_mut().unwrap();
    assert_eq!(node.multicast(payload(0)), Err(Refused::NotPrimary));
    c.start(id(1));
    c.run_until("primary again", |c| c.servers[&id(2)].app.primary);
}

#[test]
fn joins_through_any_member_and_twice_is_once() {
    let mut c = Cluster::of(6, 2);
    let follower = if c.leader() == Some(id(1)) {
        id(2)
    } else {
        id(1)
    };
    assert_eq!(c.join(follower, 77), id(3));
    c.servers.remove(&id(3));
    assert_eq!(
        c.join(follower, 77),
        id(3),
        "the same nonce, the same number"
    );
    c.run_until("votes", |c| {
        c.servers[&id(3)].app.view.members.iter().all(|m| m.voter)
    });
}

#[test]
fn join_is_refused_when_the_log_does_not_reach_back() {
    let mut c = Cluster::new(7);
    c.checkpoint_every = 10;
    c.servers.get_mut(&id(1)).unwrap().node = None;
    c.keep_bytes = 1;
    c.start(id(1));
    c.run(30);
    for n in 0..200 {
        c.multicast(id(1), payload(n)).unwrap();
        c.settle();
    }
    let refused = c.join_with(id(1), 9, Gid(3)).unwrap_err();
    let JoinReply::Refused(why) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("take a new copy"), "{why}");
}

/// It has heard of nobody who leads, and so has nothing to send.
#[test]
fn removed_members_that_are_silent_are_told() {
    let mut c = Cluster::of(24, 3);
    let leader = c.leader().unwrap();
    let gone = c.up().into_iter().find(|m| *m != leader).unwrap();
    let others: Vec<MemberId> = c.up().into_iter().filter(|m| *m != gone).collect();
    c.cut
        .extend(others.iter().flat_map(|o| [(gone, *o), (*o, gone)]));
    let node = c.servers.get_mut(&leader).unwrap().node.as_mut().unwrap();
    node.remove(gone);
    c.run_until("it is removed", |c| {
        let views = others.iter().map(|o| &c.servers[o].app.view);
        views.map(|view| view.members.len()).eq([2, 2])
    });
    c.net.clear();
    assert!(!c.servers[&gone].app.removed);
    c.cut.retain(|(from, _)| *from == gone);
    c.run_until("it knows", |c| c.servers[&gone].app.removed);
}

#[test]
fn removed_members_know() {
    let mut c = Cluster::of(8, 3);
    let leader = c.leader().unwrap();
    let node = c.servers.get_mut(&leader).unwrap().node.as_mut().unwrap();
    node.remove(leader);
    c.run_until("the leader is gone", |c| {
        c.servers[&leader].app.removed
            || c.servers
                .values()
                .filter(|s| s.id != leader)
                .all(|s| s.app.view.members.len() == 2)
    });
    c.run_until("it knows", |c| c.servers[&leader].app.removed);
    let rest: Vec<_> = c.up().into_iter().filter(|m| *m != leader).collect();
    c.crash(leader);
    c.run_until("a new leader", |c| c.leader().is_some());
    c.multicast(rest[0], payload(1)).unwrap();
    c.run_until("ordered", |c| c.servers[&rest[1]].app.seq == 1);
}

#[test]
fn member_dropped_while_down_is_told() {
    let mut c = Cluster::of(9, 3);
    c.crash(id(3));
    let node = c.servers.get_mut(&id(1)).unwrap().node.as_mut().unwrap();
    node.remove(id(3));
    c.run_until("dropped", |c| c.servers[&id(1)].app.view.members.len() == 2);
    c.start(id(3));
    c.run_until("told", |c| c.servers[&id(3)].app.removed);
}

#[test]
fn checkpoint_inside_an_entry_restarts_inside_it() {
    let mut c = Cluster::new(10);
    c.checkpoint_every = 1 << 40;
    let node = c.servers.get_mut(&id(1)).unwrap().node.as_mut().unwrap();
    for n in 0..100 {
        node.multicast(payload(n)).unwrap();
    }
    c.drain(id(1));
    c.settle();
    assert_eq!(c.history.len(), 100);
    let hash = c.history[41].1;
    let node = c.servers.get_mut(&id(1)).unwrap().node.as_mut().unwrap();
    node.checkpoint(42, Gid(42), state(42, hash));
    c.drain(id(1));
    c.settle();
    c.servers.get_mut(&id(1)).unwrap().app.flushed = 60;
    c.crash(id(1));
    c.start(id(1));
    assert_eq!(
        c.servers[&id(1)].app.seq,
        42,
        "it goes on after the checkpoint"
    );
    c.run_until("level", Cluster::level);
    assert_eq!(c.history.len(), 100);
}

#[test]
fn members_come_and_go_and_nobody_turns_deaf() {
    let mut c = Cluster::of(11, 3);
    for n in 0..300 {
        let joined = c.join(id(1), 1000 + n);
        c.crash(joined);
        c.servers.remove(&joined);
        let leader = c.leader().unwrap();
        let node = c.servers.get_mut(&leader).unwrap().node.as_mut().unwrap();
        node.remove(joined);
        c.run_until("dropped", |c| {
            c.servers[&leader].app.view.members.len() == 3
        });
    }
    for n in 1..=3 {
        c.multicast(id(n), payload(n.into())).unwrap();
    }
    c.run_until("level", |c| c.level() && c.history.len() == 3);
}
