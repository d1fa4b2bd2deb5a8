//! Clock, network and faults of one seed.

use crate::check::Checker;
use crate::database::Database;
use crate::link::Link;
use crate::model::GROUP;
use crate::rng::Rng;
use crate::scenario::{Plant, Scenario};
use crate::server::Server;
use bytes::Bytes;
use postgres_r::coordinator::{Event, Outcome};
use postgres_r::gcs::egcs::log::{Checkpoint, Member};
use postgres_r::gcs::egcs::members::JoinReply;
use postgres_r::gcs::egcs::recover;
use postgres_r::gcs::{Input, TICK_MS};
use postgres_r::group_state::GroupState;
use postgres_r::ids::{Gid, MemberId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Ticks in which a healed group must serve again, and then come to rest.
const RECOVERY_TICKS_MAX: u64 = 600;
/// Ticks in which a member that was asked to let a server join has given some answer.
pub const JOIN_ANSWER_TICKS: u64 = 110;

/// What is due at a time. `site` and `life` name a server between a start and its end.
#[derive(Debug)]
pub enum Happening {
    Tick {
        site: usize,
        life: u64,
    },
    WalFlush {
        site: usize,
        life: u64,
    },
    Disk {
        site: usize,
        life: u64,
    },
    ToCoordinator {
        site: usize,
        life: u64,
        event: Event,
    },
    Verdict {
        site: usize,
        life: u64,
        slot: u32,
        ticket: u64,
        outcome: Outcome,
    },
    Session {
        site: usize,
        life: u64,
        slot: u32,
    },
    Helper {
        site: usize,
        life: u64,
        helper: u32,
    },
    /// `way` is from one site to the other, to whom this happens.
    Peer {
        way: (usize, usize),
        life: u64,
        epoch: u64,
        peer: MemberId,
        up: bool,
    },
    Frame {
        way: (usize, usize),
        epoch: u64,
        number: u64,
        from: MemberId,
        bytes: Bytes,
    },
    Connect,
    Start {
        site: usize,
    },
    AskToJoin {
        site: usize,
        life: u64,
    },
    CopyAgain {
        site: usize,
        life: u64,
    },
    GoOn {
        site: usize,
    },
    Heal,
    Fault,
}

impl Happening {
    fn site(&self) -> Option<(usize, Option<u64>)> {
        use Happening::*;
        match *self {
            Tick { site, life } | WalFlush { site, life } | Disk { site, life } => {
                Some((site, Some(life)))
            }
            ToCoordinator { site, life, .. } | Verdict { site, life, .. } => {
                Some((site, Some(life)))
            }
            Session { site, life, .. } | Helper { site, life, .. } => Some((site, Some(life))),
            Peer {
                way: (_, to), life, ..
            } => Some((to, Some(life))),
            Frame { way: (_, to), .. } => Some((to, None)),
            AskToJoin { site, life } | CopyAgain { site, life } => Some((site, Some(life))),
            Connect | Start { .. } | GoOn { .. } | Heal | Fault => None,
        }
    }
}

/// What servers share.
pub struct Context {
    pub now: u64,
    pub rng: Rng,
    pub scenario: Scenario,
    pub check: Checker,
    pub clients_done: bool,
    /// Faults have ended.
    pub healed: bool,
    /// Sites where a client's transaction was committed since the faults ended.
    pub served: BTreeSet<usize>,
    /// Sites whose data is too old to go on from the log that the others keep.
    pub outdated: Vec<usize>,
    /// Sites whose log's disk failed.
    pub log_failed: Vec<usize>,
    pub sends: Vec<(usize, MemberId, Bytes)>,
    pub join_replies: Vec<(u64, JoinReply)>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    number: u64,
    xid: u64,
    pub xids_left: u64,
    failures: BTreeMap<(usize, Gid), u32>,
    tracing: bool,
    /// Of all that happened, in its order.
    hash: u64,
}

impl Context {
    pub fn at(&mut self, time: u64, what: Happening) {
        self.number += 1;
        self.queue.push(Reverse((time.max(self.now), self.number)));
        self.happenings.insert(self.number, what);
    }

    pub fn later(&mut self, delay: u64, what: Happening) {
        self.at(self.now + delay, what);
    }

    pub fn next_xid(&mut self) -> Option<u64> {
        if self.clients_done || self.xids_left == 0 {
            return None;
        }
        self.xids_left -= 1;
        self.xid += 1;
        Some(self.xid)
    }

    /// While faults happen a helper may fail on a changeset a few times; not so often that its member
    /// gives up.
    pub fn may_fail(&mut self, site: usize, gid: Gid) -> bool {
        let n = self.failures.entry((site, gid)).or_default();
        *n += 1;
        *n <= 3 && !self.healed
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>7} {}", self.now, line());
        }
    }

    /// How long a write to the log takes: now and then, longer than the others wait for a leader.
    pub fn disk_delay(&mut self) -> u64 {
        if !self.healed && self.rng.per_mille(self.scenario.disk_stalls) {
            self.rng.between(1000, 8000)
        } else {
            self.rng.between(0, self.scenario.disk_delay_max)
        }
    }

    fn pop(&mut self) -> Happening {
        let Reverse((time, number)) = self.queue.pop().expect("ticks never end");
        self.now = time;
        self.hash = crate::rng::mix(&[self.hash, time, number]);
        self.happenings.remove(&number).expect("queued once")
    }
}

/// A server that stands still: nothing happens to it before this time.
#[derive(Default)]
pub struct Pause {
    pub until: u64,
    pub missed: Vec<Happening>,
}

pub struct World {
    pub ctx: Context,
    pub servers: Vec<Server>,
    pub links: BTreeMap<(usize, usize), Link>,
    /// Ordered pairs between which nothing passes, silently.
    pub blocked: BTreeSet<(usize, usize)>,
    pub paused: BTreeMap<usize, Pause>,
    pub stopped: Option<usize>,
}

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub committed: usize,
    /// Transactions with entries that went ahead of them.
    pub large: usize,
    /// Changesets that were compressed.
    pub compressed: usize,
    /// Fragments that were.
    pub compressed_ahead: usize,
    /// Changesets that a member committed together with others.
    pub together: u64,
    pub gids: u64,
    /// Ticks from healing until every member had served a write.
    pub recovery_ticks: u64,
    pub events: u64,
    /// Of all that happened, in its order.
    pub hash: u64,
}

impl World {
    pub fn new(seed: u64, plant: Plant, tracing: bool) -> World {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::of(&mut rng, plant);
        let xids_left = scenario.transactions;
        let ctx = Context {
            now: 0,
            rng,
            check: Checker::new(scenario.pace.keys_max),
            scenario,
            clients_done: false,
            healed: false,
            served: BTreeSet::new(),
            outdated: Vec::new(),
            log_failed: Vec::new(),
            sends: Vec::new(),
            join_replies: Vec::new(),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            number: 0,
            xid: 0,
            xids_left,
            failures: BTreeMap::new(),
            tracing,
            hash: 0,
        };
        if tracing {
            println!("{:#?}", ctx.scenario);
        }
        let members = ctx.scenario.members;
        let servers = (0..members)
            .map(|site| Server::new(site, Some(MemberId(site as u16 + 1)), Database::birth()))
            .collect();
        let mut world = World {
            ctx,
            servers,
            links: BTreeMap::new(),
            blocked: BTreeSet::new(),
            paused: BTreeMap::new(),
            stopped: None,
        };
        world.give_birth();
        world
    }

    /// All first members have the same first checkpoint in their logs.
    fn give_birth(&mut self) {
        let member = |s: &Server| Member {
            id: s.me(),
            voter: true,
            nonce: 0,
            gid: Gid::ZERO,
            address: s.address(),
        };
        let first = &self.servers[0];
        let mut birth = Checkpoint::birth(first.me(), &first.address(), Gid::ZERO, Bytes::new());
        birth.members = self.servers.iter().map(member).collect();
        birth.next_member = self.servers.len() as u16 + 1;
        for server in &self.servers {
            recover::create(&server.disk, GROUP, server.me(), birth.clone())
                .expect("a simulated disk");
        }
        for site in 0..self.servers.len() {
            self.ctx.at(0, Happening::Start { site });
        }
        self.ctx.later(1, Happening::Connect);
        self.schedule_fault();
    }

    /// Faults without bound, then a healed group that must serve again and come to rest.
    pub fn run(mut self) -> Summary {
        let mut events = 0;
        let safety_end = self.ctx.scenario.safety_ticks * TICK_MS;
        while self.ctx.now < safety_end {
            self.turn();
            events += 1;
        }
        self.heal_for_good();
        let healed = self.ctx.now;
        self.ctx.served.clear();
        self.ctx.xids_left = u64::MAX;
        while !self.all_serve() {
            self.turn();
            events += 1;
            self.in_time(healed, "serves again");
        }
        let recovery_ticks = (self.ctx.now - healed) / TICK_MS;
        self.ctx.trace(|| "clients are done".into());
        self.ctx.clients_done = true;
        let done = self.ctx.now;
        while !self.at_rest() {
            self.turn();
            events += 1;
            self.in_time(done, "comes to rest");
        }
        self.ctx.check.end();
        Summary {
            committed: self.ctx.check.committed(),
            large: self.ctx.check.large,
            compressed: self.ctx.check.compressed,
            compressed_ahead: self.ctx.check.compressed_ahead,
            together: self.ctx.check.together,
            gids: self.ctx.check.last_gid().0,
            recovery_ticks,
            events,
            hash: self.ctx.hash,
        }
    }

    fn in_time(&self, since: u64, what: &str) {
        if self.ctx.now - since > RECOVERY_TICKS_MAX * TICK_MS {
            let states: Vec<_> = self
                .servers
                .iter()
                .map(|s| {
                    let stats = s.running.as_ref().map(|r| r.core.stats());
                    let phases: Vec<_> = s
                        .running
                        .iter()
                        .flat_map(|r| r.sessions.iter().map(|s| s.phase))
                        .collect();
                    (s.me(), s.state(), s.db.committed, phases, stats)
                })
                .collect();
            panic!(
                "the group never {what}: last GID {}, {states:#?}",
                self.ctx.check.last_gid()
            );
        }
    }

    /// Every member is open and has committed something of its own since the faults ended.
    fn all_serve(&self) -> bool {
        let serves =
            |s: &Server| s.state() == GroupState::Online && self.ctx.served.contains(&s.site);
        self.servers.iter().all(|s| s.left || serves(s))
    }

    /// Every member has committed everything, and nothing waits.
    fn at_rest(&self) -> bool {
        let (gid, seq) = (self.ctx.check.last_gid(), self.ctx.check.last_seq());
        seq > 0
            && self.servers.iter().filter(|s| !s.left).all(|s| {
                s.db.committed == gid
                    && s.running.as_ref().is_some_and(|r| {
                        r.sessions.iter().all(|s| s.transaction.is_none())
                            && r.readers.is_empty()
                            && r.helpers.iter().all(|h| h.is_idle())
                            && r.core.digest().0 == gid
                    })
            })
    }

    // ---- one happening ----

    fn turn(&mut self) {
        let what = self.ctx.pop();
        if let Some((site, _)) = what.site()
            && let Some(pause) = self.paused.get_mut(&site)
        {
            // A server that stands still finds everything later, in the order in which it came.
            return pause.missed.push(what);
        }
        self.happen_to_the_living(what);
    }

    pub fn happen_to_the_living(&mut self, what: Happening) {
        if let Some((site, Some(life))) = what.site()
            && self.servers[site].life != life
        {
            return;
        }
        self.happen(what);
        self.route();
        for site in std::mem::take(&mut self.ctx.log_failed) {
            self.log_failed(site);
        }
        for site in std::mem::take(&mut self.ctx.outdated) {
            self.end(site, true);
            let life = self.servers[site].life;
            self.ctx.later(100, Happening::CopyAgain { site, life });
        }
    }

    fn happen(&mut self, what: Happening) {
        let ctx = &mut self.ctx;
        let servers = &mut self.servers;
        match what {
            Happening::Tick { site, life } => {
                servers[site].input(ctx, Input::Tick);
                servers[site].event(ctx, Event::Tick);
                servers[site].impatient_clients(ctx);
                let next = ctx.rng.between(TICK_MS - 10, TICK_MS + 10);
                ctx.later(next, Happening::Tick { site, life });
            }
            Happening::WalFlush { site, life } => {
                servers[site].db.flush();
                let next = ctx.rng.between(20, 300);
                ctx.later(next, Happening::WalFlush { site, life });
            }
            Happening::Disk { site, .. } => servers[site].disk_done(ctx),
            Happening::ToCoordinator { site, event, .. } => servers[site].event(ctx, event),
            Happening::Verdict {
                site,
                slot,
                ticket,
                outcome,
                ..
            } => {
                servers[site].verdict(ctx, slot, ticket, outcome);
            }
            Happening::Session { site, slot, .. } => servers[site].session_turn(ctx, slot),
            Happening::Helper { site, helper, .. } => servers[site].helper_turn(ctx, helper),
            Happening::Peer {
                way,
                epoch,
                peer,
                up,
                ..
            } => self.peer(way, epoch, peer, up),
            Happening::Frame {
                way,
                epoch,
                number,
                from,
                bytes,
            } => self.frame(way, epoch, number, from, bytes),
            Happening::Connect => {
                self.connect_all();
                self.ctx.later(50, Happening::Connect);
            }
            Happening::Start { site } => servers[site].start(ctx),
            Happening::AskToJoin { site, life } => self.ask_to_join(site, life),
            Happening::CopyAgain { site, life } => self.copy_again(site, life),
            Happening::GoOn { site } => self.go_on(site),
            Happening::Heal => self.heal(),
            Happening::Fault => {
                if !self.ctx.healed {
                    self.fault();
                    self.schedule_fault();
                }
            }
        }
    }

    fn heal_for_good(&mut self) {
        self.ctx.trace(|| "all faults end".into());
        self.ctx.healed = true;
        let paused: Vec<usize> = self.paused.keys().copied().collect();
        for site in paused {
            self.paused.entry(site).or_default().until = 0;
            self.go_on(site);
        }
        self.heal();
        for site in 0..self.servers.len() {
            self.servers[site].disk.fail_sync(false);
            self.ctx.at(self.ctx.now, Happening::Start { site });
        }
    }
}
