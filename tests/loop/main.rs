//! The coordinator's loop with everything real but PostgreSQL: members in one process, over real
//! sockets and files, on both backends.

mod cluster;
mod server;

use cluster::{Cluster, GROUP};
use postgres_r::coordinator::Outcome;
use postgres_r::coordinator::io::backend::{
    Backend, Choice, Completion, Op, Outcome as Done, Token, open,
};
use postgres_r::coordinator::io::join::JoinError;
use postgres_r::coordinator::io::start::{StartError, bootstrap, forget, restart};
use postgres_r::coordinator::run::End;
use postgres_r::group_state::GroupState;
use postgres_r::ids::{Gid, MemberId};
use std::io;
use std::time::Duration;

fn each(body: fn(Choice)) {
    body(Choice::Poll);
    match open(Choice::Uring) {
        Ok(_) => body(Choice::Uring),
        Err(e) => eprintln!("io_uring can't be had here ({e}): only poll was tested"),
    }
}

fn three(choice: Choice) -> Cluster {
    let mut cluster = Cluster::new(choice);
    for _ in 0..60 {
        cluster.members[0].server.commit(100);
    }
    cluster.agree(60);
    cluster.grow(0);
    cluster.grow(1);
    cluster.agree(60);
    cluster
}

/// All members commit at once; everything passes, since no two share a key.
fn storm(cluster: &mut Cluster, rounds: usize) {
    for i in 0..rounds {
        for member in cluster.members.iter().filter(|m| m.run.is_some()) {
            member.server.commit(i * 37 % 3000);
        }
        if i % 3 == 0 {
            cluster.turn();
        }
    }
}

#[test]
fn three_members_commit_the_same_in_the_same_order() {
    each(|choice| {
        let mut cluster = three(choice);
        storm(&mut cluster, 300);
        cluster.agree(60 + 900);
        for i in 0..3 {
            cluster.server(i, |s| {
                assert!(s.outcomes.iter().all(|o| matches!(o, Outcome::Pass { .. })));
                assert_eq!(s.view.members.len(), 3);
                assert!(s.view.members.iter().all(|m| m.voter));
            });
        }
    });
}

#[test]
fn of_colliding_transactions_one_passes_and_all_agree_which() {
    each(|choice| {
        let mut cluster = three(choice);
        for round in 0..20 {
            for member in &cluster.members {
                member.server.commit_key(42, 10);
            }
            cluster.until("all verdicts are there", |c| {
                (0..3).all(|i| c.server(i, |s| s.waiting.is_empty()))
            });
            cluster.agree(60 + round + 1);
        }
    });
}

#[test]
fn a_large_changeset_goes_round() {
    each(|choice| {
        let mut cluster = three(choice);
        cluster.members[1].server.commit(30 << 20);
        cluster.members[2].server.commit(3 << 20);
        cluster.agree(62);
    });
}

#[test]
fn changesets_that_wait_too_long_are_read_back_from_the_log() {
    each(|choice| {
        let mut cluster = three(choice);
        cluster.members[2].server.0.borrow_mut().held = true;
        for _ in 0..40 {
            cluster.members[0].server.commit(5000);
            cluster.members[1].server.commit(50);
        }
        cluster.until("all are ordered there", |c| {
            c.stats(2).last_ordered == Gid(60 + 80)
        });
        let waiting = cluster.stats(2);
        assert_eq!(waiting.apply_queue, 80);
        assert!(waiting.apply_queue_bytes < 40_000, "the rest is in the log");
        cluster.members[2].server.0.borrow_mut().held = false;
        cluster.agree(140);
    });
}

#[test]
fn a_killed_member_catches_up_also_what_its_data_lost() {
    each(|choice| {
        let mut cluster = three(choice);
        storm(&mut cluster, 50);
        for _ in 0..5 {
            cluster.turn();
        }
        cluster.kill(2);
        let acknowledged = cluster.server(2, |s| s.data.clone());
        storm(&mut cluster, 100);
        cluster.settle();
        cluster.revive(2);
        cluster.until("it is open again", |c| c.state(2) == GroupState::Online);
        storm(&mut cluster, 10);
        let all = cluster.settle();
        assert!(all >= 60 + 2 * 150 + 30);
        cluster.server(0, |s| {
            assert_eq!(s.data[..acknowledged.len()], acknowledged);
        });
    });
}

#[test]
fn all_members_killed_come_back_in_any_order_with_everything() {
    each(|choice| {
        let mut cluster = three(choice);
        storm(&mut cluster, 40);
        cluster.agree(180);
        for i in 0..3 {
            cluster.kill(i);
        }
        let kept: Vec<_> = cluster.server(0, |s| s.data.clone());
        for i in [2, 0, 1] {
            cluster.revive(i);
            cluster.turn();
        }
        cluster.until("all are open", |c| {
            (0..3).all(|i| c.state(i) == GroupState::Online)
        });
        cluster.agree(180);
        cluster.server(1, |s| assert_eq!(s.data, kept));
        storm(&mut cluster, 10);
        cluster.agree(210);
    });
}

#[test]
fn one_member_leads_and_another_when_it_is_gone() {
    each(|choice| {
        let leaders = |c: &Cluster| -> Vec<usize> {
            let runs = |i: &usize| c.members[*i].run.is_some();
            let open = |i: &usize| c.server(*i, |s| s.leads && s.state == GroupState::Online);
            (0..c.members.len()).filter(runs).filter(open).collect()
        };
        let mut cluster = three(choice);
        cluster.until("one leads", |c| leaders(c).len() == 1);
        let first = leaders(&cluster)[0];
        cluster.kill(first);
        cluster.until("another leads", |c| leaders(c).len() == 1);
        let second = leaders(&cluster)[0];
        assert_ne!(second, first);
        cluster.stop((0..3).find(|i| ![first, second].contains(i)).unwrap());
        cluster.until("nobody leads a minority", |c| leaders(c).is_empty());
        cluster.revive(first);
        cluster.until("one leads again", |c| leaders(c).len() == 1);
    });
}

#[test]
fn without_a_majority_writes_are_refused_until_it_is_back() {
    each(|choice| {
        let mut cluster = three(choice);
        cluster.stop(1);
        cluster.stop(2);
        cluster.until("it sees that it is alone", |c| {
            c.state(0) == GroupState::NoQuorum
        });
        cluster.members[0].server.commit(1);
        cluster.until("it is refused", |c| c.server(0, |s| s.waiting.is_empty()));
        cluster.server(0, |s| {
            assert_eq!(s.outcomes.last(), Some(&Outcome::NotPrimary))
        });
        cluster.revive(1);
        cluster.until("it goes on", |c| {
            (0..2).all(|i| c.state(i) == GroupState::Online)
        });
        cluster.members[0].server.commit(1);
        cluster.agree(61);
    });
}

#[test]
fn a_server_with_another_secret_does_not_get_in() {
    each(|choice| {
        let mut cluster = Cluster::new(choice);
        let mut site = cluster.site();
        site.secret[0] ^= 1;
        let answer = cluster.ask(&site, Gid::ZERO, Duration::from_secs(2));
        assert!(matches!(answer, Err(JoinError::Stopped)), "{answer:?}");
        assert!(matches!(
            restart(&site, Gid::ZERO),
            Err(StartError::Stranger)
        ));
        cluster.server(0, |s| assert_eq!(s.view.members.len(), 1));
        // The same attempt goes on with the right one.
        site.secret[0] ^= 1;
        let again = cluster
            .ask(&site, Gid::ZERO, Duration::from_secs(60))
            .unwrap();
        assert_eq!(again, MemberId(2));
        // Asking twice joins once.
        assert_eq!(
            cluster.ask(&site, Gid::ZERO, Duration::ZERO).unwrap(),
            MemberId(2)
        );
        assert!(matches!(
            bootstrap(&site, GROUP, Gid::ZERO),
            Err(StartError::Io(..))
        ));
        forget(&site).unwrap();
        assert!(matches!(
            restart(&site, Gid::ZERO),
            Err(StartError::Stranger)
        ));
    });
}

#[test]
fn a_copy_of_a_member_does_not_start_at_another_address() {
    each(|choice| {
        let mut cluster = Cluster::new(choice);
        let mut site = cluster.site();
        let member = cluster.ask(&site, Gid::ZERO, Duration::from_secs(60));
        let address = std::mem::replace(&mut site.address, "127.0.0.1:1".into());
        match restart(&site, Gid::ZERO) {
            Err(StartError::Moved(who, known)) => {
                assert_eq!((who, known), (member.unwrap(), address));
            }
            other => panic!("{:?}", other.err()),
        }
    });
}

#[test]
fn another_build_is_refused_for_good() {
    each(|choice| {
        let mut cluster = Cluster::new(choice);
        let mut site = cluster.site();
        site.fingerprint = "others".into();
        let answer = cluster.ask(&site, Gid::ZERO, Duration::from_secs(60));
        let Err(JoinError::Refused(why)) = answer else {
            panic!("{answer:?}")
        };
        assert!(
            why.contains("\"others\"") && why.contains("\"tests\""),
            "{why}"
        );
    });
}

/// A disk that fails one sync of the log.
struct BadDisk {
    inner: Box<dyn Backend>,
    log_writes_left: u32,
}

impl Backend for BadDisk {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn nonblocking_sockets(&self) -> bool {
        self.inner.nonblocking_sockets()
    }
    fn submit(&mut self, token: Token, op: Op) {
        self.inner.submit(token, op);
    }
    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
    fn wait(&mut self, timeout: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        self.inner.wait(timeout, out)?;
        for completion in out.iter_mut().filter(|c| c.token == Token::Log) {
            self.log_writes_left = self.log_writes_left.saturating_sub(1);
            if self.log_writes_left == 0 {
                let error = io::Error::from_raw_os_error(5);
                completion.outcome = Done::Written(Err(error));
            }
        }
        Ok(())
    }
}

#[test]
fn a_member_whose_log_fails_leaves_and_the_others_go_on() {
    each(|choice| {
        let mut cluster = three(choice);
        cluster.stop(2);
        cluster.revive_with(2, |parts| {
            let (inner, _) = open(choice).unwrap();
            let inner = std::mem::replace(&mut parts.backend, inner);
            parts.backend = Box::new(BadDisk {
                inner,
                log_writes_left: 20,
            });
        });
        cluster.until("it is open", |c| c.state(2) == GroupState::Online);
        let mut sent = 60;
        for _ in 0..200 {
            if cluster.members[2].end.is_some() {
                break;
            }
            cluster.members[0].server.commit(10);
            cluster.members[2].server.commit(10);
            sent += 1;
            cluster.until("the first has its verdict", |c| {
                c.server(0, |s| s.waiting.is_empty())
            });
        }
        let Some(End::Failed(why)) = cluster.members[2].end.clone() else {
            panic!("{:?}", cluster.members[2].end)
        };
        assert!(why.starts_with("could not write group log file"), "{why}");
        cluster.server(2, |s| {
            assert_eq!(
                (s.state, s.failed.as_ref()),
                (GroupState::Failed, Some(&why))
            );
            // Everyone got an answer; those under way an honest one.
            assert!(s.waiting.is_empty());
            assert!(
                s.outcomes
                    .iter()
                    .all(|o| matches!(o, Outcome::Pass { .. } | Outcome::Unknown))
            );
        });
        cluster.kill(2);
        cluster.until("the others have all that the first sent", |c| {
            let of_first = |i| {
                c.server(i, |s| {
                    s.data.iter().filter(|r| r.origin == MemberId(1)).count()
                })
            };
            (0..2).all(|i| of_first(i) == sent)
        });
    });
}
