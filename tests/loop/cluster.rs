//! Several members in one thread, over loopback sockets and temporary directories.

use super::server::{HELPERS, Row, Server, Shared};
use postgres_r::coordinator::io::backend::Choice;
use postgres_r::coordinator::io::join::{JoinError, join};
use postgres_r::coordinator::io::start::{Site, bootstrap, restart};
use postgres_r::coordinator::run::{End, Loop, Parts};
use postgres_r::coordinator::{Pace, Stats};
use postgres_r::gcs::egcs::Node;
use postgres_r::group_state::GroupState;
use postgres_r::ids::{Gid, GroupId, MemberId};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

pub const GROUP: GroupId = GroupId(0xfeed);
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Member {
    pub site: Site,
    pub server: Shared,
    pub run: Option<Loop<Shared, Node>>,
    pub end: Option<End>,
}

pub struct Cluster {
    dir: PathBuf,
    choice: Choice,
    pub members: Vec<Member>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// An address that nobody listens on.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

impl Cluster {
    /// A group of one that is open.
    pub fn new(choice: Choice) -> Cluster {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = format!("pgr-loop-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let mut cluster = Cluster {
            dir,
            choice,
            members: Vec::new(),
        };
        let site = cluster.site();
        bootstrap(&site, GROUP, Gid::ZERO).unwrap();
        cluster.come_to_life(site, Vec::new());
        cluster.until("a group of one is open", |c| {
            c.state(0) == GroupState::Online
        });
        cluster
    }

    /// Of a server that is new.
    pub fn site(&self) -> Site {
        let listen = free_address();
        Site {
            dir: self.dir.join(listen.port().to_string()),
            listen,
            address: listen.to_string(),
            secret: [6; 32],
            fingerprint: "tests".into(),
            log_keep_bytes: 1 << 30,
            helpers: HELPERS,
            backend: self.choice,
            pace: Pace {
                queue_bytes: 20_000,
                checkpoint_messages: 50,
                digest_gids: 16,
                ..Pace::default()
            },
        }
    }

    fn come_to_life(&mut self, site: Site, data: Vec<Row>) {
        let (server, run) = begin(&site, data, |_| {});
        self.members.push(Member {
            site,
            server,
            run: Some(run),
            end: None,
        });
    }

    /// Asks the group to take a server in, while the group runs.
    pub fn ask(
        &mut self,
        site: &Site,
        gid: Gid,
        patience: Duration,
    ) -> Result<MemberId, JoinError> {
        let seeds: Vec<String> = self
            .members
            .iter()
            .map(|m| m.site.address.clone())
            .collect();
        let (site, stop) = (site.clone(), std::sync::Arc::new(AtomicBool::new(false)));
        let (tell, answer) = channel();
        let told = stop.clone();
        let asking = std::thread::spawn(move || {
            let mut go_on = |problem: Option<&str>| {
                if let Some(problem) = problem {
                    eprintln!("joining: {problem}");
                }
                !told.load(Ordering::Relaxed)
            };
            tell.send(join(&site, &seeds, GROUP, gid, &mut go_on))
                .unwrap();
        });
        let start = Instant::now();
        let answer = loop {
            self.turn();
            if let Ok(answer) = answer.try_recv() {
                break answer;
            }
            stop.store(start.elapsed() > patience, Ordering::Relaxed);
        };
        asking.join().unwrap();
        answer
    }

    /// Takes a copy of a member's data and makes it a member, open.
    pub fn grow(&mut self, from: usize) {
        let site = self.site();
        let data = self.members[from].server.0.borrow().data.clone();
        let gid = data.last().map_or(Gid::ZERO, |row| row.gid);
        self.ask(&site, gid, PATIENCE).unwrap();
        self.come_to_life(site, data);
        let new = self.members.len() - 1;
        self.until("the new member is open", |c| {
            c.state(new) == GroupState::Online
        });
    }

    /// Ends a member as kill -9 does.
    pub fn kill(&mut self, i: usize) {
        self.members[i].run = None;
    }

    /// Ends a member in order.
    pub fn stop(&mut self, i: usize) {
        self.members[i].server.0.borrow_mut().stop = true;
        self.until("the member stops", |c| c.members[i].end.is_some());
        assert_eq!(self.members[i].end.take(), Some(End::Stopped));
        self.kill(i);
    }

    /// Starts a member again, without what its crash took: up to half of what was not flushed.
    pub fn revive(&mut self, i: usize) {
        self.revive_with(i, |_| {});
    }

    pub fn revive_with(&mut self, i: usize, change: impl FnOnce(&mut Parts<Node>)) {
        assert!(self.members[i].run.is_none());
        let data = self.server(i, |s| {
            let flushed = s.data.iter().filter(|row| row.gid <= s.flushed()).count();
            s.data[..(flushed + s.data.len()) / 2].to_vec()
        });
        let (server, run) = begin(&self.members[i].site, data, change);
        let member = &mut self.members[i];
        (member.server, member.run, member.end) = (server, Some(run), None);
    }

    pub fn turn(&mut self) {
        for member in &mut self.members {
            if let Some(run) = &mut member.run
                && member.end.is_none()
            {
                member.end = run.turn(Duration::from_millis(1));
            }
        }
    }

    /// Lets all run until something holds.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Cluster) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if Instant::now() > deadline {
                for (i, m) in self.members.iter().enumerate() {
                    let s = m.server.0.borrow();
                    eprintln!(
                        "{i}: {:?} at {} {:?} {:?} {:?}",
                        s.state,
                        s.last_committed(),
                        s.failed,
                        s.view,
                        s.notices
                    );
                    if let Some(run) = &m.run {
                        eprintln!("{:?}", run.core().stats());
                    }
                }
                panic!("never: {what}");
            }
            self.turn();
        }
    }

    pub fn server<T>(&self, i: usize, get: impl FnOnce(&Server) -> T) -> T {
        get(&self.members[i].server.0.borrow())
    }

    pub fn stats(&self, i: usize) -> Stats {
        let run = self.members[i].run.as_ref();
        run.expect("the member runs").core().stats()
    }

    pub fn state(&self, i: usize) -> GroupState {
        self.server(i, |s| s.state)
    }

    /// Until all members that run have these many transactions, all of them the same.
    pub fn agree(&mut self, transactions: usize) {
        let agreed = self.settle();
        assert_eq!(agreed, transactions);
    }

    /// Until everything that was ordered is committed on all members that run, and nobody waits for
    /// a verdict. They must have the same then; returns how many transactions that are.
    pub fn settle(&mut self) -> usize {
        self.until("everything is committed everywhere", |c| {
            let running = || c.members.iter().filter(|m| m.run.is_some());
            let ordered = |m: &Member| m.run.as_ref().map(|r| r.core().stats().last_ordered);
            let most = running().filter_map(ordered).max();
            running().all(|m| {
                let s = m.server.0.borrow();
                s.idle() && Some(s.last_committed()) == most
            })
        });
        let running: Vec<&Member> = self.members.iter().filter(|m| m.run.is_some()).collect();
        let first = &running[0].server.0.borrow().data;
        for member in &running[1..] {
            assert!(*first == member.server.0.borrow().data, "members differ");
        }
        let gids: Vec<u64> = first.iter().map(|row| row.gid.0).collect();
        assert_eq!(gids, (1..=first.len() as u64).collect::<Vec<u64>>());
        first.len()
    }
}

fn begin(
    site: &Site,
    data: Vec<Row>,
    change: impl FnOnce(&mut Parts<Node>),
) -> (Shared, Loop<Shared, Node>) {
    let recovered = data.last().map_or(Gid::ZERO, |row| row.gid);
    let mut started = restart(site, recovered).unwrap();
    change(&mut started.parts);
    let identity = started.identity;
    let server = Shared::new(GROUP, identity.member, identity.incarnation, data);
    let run = Loop::new(server.clone(), started.parts).unwrap();
    (server, run)
}
