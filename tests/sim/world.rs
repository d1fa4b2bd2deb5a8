//! Clock, network and faults of one seed.

use crate::check::Checker;
use crate::database::Database;
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
const JOIN_ANSWER_TICKS: u64 = 110;
const SERVERS_MAX: usize = 7;

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
    Peer {
        site: usize,
        life: u64,
        peer: MemberId,
        up: bool,
    },
    Frame {
        link: (usize, usize),
        epoch: u64,
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
            Peer { site, life, .. } => Some((site, Some(life))),
            Frame { link: (_, to), .. } => Some((to, None)),
            AskToJoin { site, life } | CopyAgain { site, life } => Some((site, Some(life))),
            Connect | Start { .. } | Heal | Fault => None,
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
    pub sends: Vec<(usize, MemberId, Bytes)>,
    pub join_replies: Vec<(u64, JoinReply)>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    number: u64,
    xid: u64,
    xids_left: u64,
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

    /// A helper may fail on a changeset a few times; not so often that its member gives up.
    pub fn may_fail(&mut self, site: usize, gid: Gid) -> bool {
        let n = self.failures.entry((site, gid)).or_default();
        *n += 1;
        *n <= 3
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>7} {}", self.now, line());
        }
    }

    fn pop(&mut self) -> Happening {
        let Reverse((time, number)) = self.queue.pop().expect("ticks never end");
        self.now = time;
        self.hash = crate::rng::mix(&[self.hash, time, number]);
        self.happenings.remove(&number).expect("queued once")
    }
}

#[derive(Default)]
struct Link {
    up: bool,
    epoch: u64,
    /// When the last frame of each direction arrives: connections keep their order.
    last: [u64; 2],
}

pub struct World {
    pub ctx: Context,
    servers: Vec<Server>,
    links: BTreeMap<(usize, usize), Link>,
    /// Ordered pairs between which nothing passes, silently.
    blocked: BTreeSet<(usize, usize)>,
    paused: BTreeMap<usize, u64>,
    stopped: Option<usize>,
}

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub committed: usize,
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
            scenario,
            check: Checker::new(),
            clients_done: false,
            healed: false,
            served: BTreeSet::new(),
            outdated: Vec::new(),
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
                            && r.helpers.iter().all(|h| h.is_idle())
                            && r.core.digest().0 == gid
                    })
            })
    }

    // ---- one happening ----

    fn turn(&mut self) {
        let what = self.ctx.pop();
        if let Some((site, life)) = what.site() {
            if let Some(&until) = self.paused.get(&site) {
                if until > self.ctx.now {
                    return self.ctx.at(until, what);
                }
                self.paused.remove(&site);
            }
            if life.is_some_and(|life| self.servers[site].life != life) {
                return;
            }
        }
        self.happen(what);
        self.route();
        for site in std::mem::take(&mut self.ctx.outdated) {
            self.end(site);
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
            Happening::Peer { site, peer, up, .. } => {
                servers[site].input(
                    ctx,
                    if up {
                        Input::PeerUp(peer)
                    } else {
                        Input::PeerDown(peer)
                    },
                );
            }
            Happening::Frame {
                link,
                epoch,
                from,
                bytes,
            } => {
                let (a, b) = (link.0.min(link.1), link.0.max(link.1));
                let alive = self
                    .links
                    .get(&(a, b))
                    .is_some_and(|l| l.up && l.epoch == epoch);
                if alive && !self.blocked.contains(&link) {
                    servers[link.1].input(ctx, Input::Frame { from, bytes });
                }
            }
            Happening::Connect => {
                self.connect_all();
                self.ctx.later(50, Happening::Connect);
            }
            Happening::Start { site } => servers[site].start(ctx),
            Happening::AskToJoin { site, life } => self.ask_to_join(site, life),
            Happening::CopyAgain { site, life } => self.copy_again(site, life),
            Happening::Heal => self.heal(),
            Happening::Fault => {
                if !self.ctx.healed {
                    self.fault();
                    self.schedule_fault();
                }
            }
        }
    }

    // ---- network ----

    fn site_of(&self, member: MemberId) -> Option<usize> {
        self.servers.iter().position(|s| s.member == Some(member))
    }

    /// Frames on their way; nothing for whom there is no connection.
    fn route(&mut self) {
        for (from, to, bytes) in std::mem::take(&mut self.ctx.sends) {
            let Some(site) = self.site_of(to) else {
                continue;
            };
            let sender = self.servers[from].me();
            let Some(link) = self.links.get_mut(&(from.min(site), from.max(site))) else {
                continue;
            };
            let ctx = &mut self.ctx;
            if !link.up
                || ctx
                    .rng
                    .per_mille(if !ctx.healed { ctx.scenario.loss } else { 0 })
            {
                continue;
            }
            let last = &mut link.last[usize::from(from > site)];
            *last = (*last).max(ctx.now + ctx.rng.between(0, ctx.scenario.net_delay_max));
            let frame = Happening::Frame {
                link: (from, site),
                epoch: link.epoch,
                from: sender,
                bytes,
            };
            let at = *last;
            ctx.at(at, frame);
        }
        for (connection, reply) in std::mem::take(&mut self.ctx.join_replies) {
            self.join_answer(connection, reply);
        }
    }

    fn connect_all(&mut self) {
        for a in 0..self.servers.len() {
            for b in a + 1..self.servers.len() {
                let (one, other) = (&self.servers[a], &self.servers[b]);
                let possible = one.running.is_some()
                    && other.running.is_some()
                    && !self.blocked.contains(&(a, b))
                    && !self.blocked.contains(&(b, a))
                    && !self.paused.contains_key(&a)
                    && !self.paused.contains_key(&b);
                let up = self.links.entry((a, b)).or_default().up;
                // Now and then a second connection replaces one that is up.
                if possible && (!up || !self.ctx.healed && self.ctx.rng.per_mille(2)) {
                    self.connect(a, b, true);
                }
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize, up: bool) {
        let link = self.links.entry((a.min(b), a.max(b))).or_default();
        if !up && !link.up {
            return;
        }
        link.up = up;
        link.epoch += 1;
        link.last = [self.ctx.now; 2];
        for (site, peer) in [(a, b), (b, a)] {
            let life = self.servers[site].life;
            let peer = self.servers[peer].me();
            self.ctx.at(
                self.ctx.now,
                Happening::Peer {
                    site,
                    life,
                    peer,
                    up,
                },
            );
        }
    }

    fn heal(&mut self) {
        let blocked = std::mem::take(&mut self.blocked);
        // What was lost in between breaks the stream.
        for (a, b) in blocked {
            self.connect(a, b, false);
        }
    }

    fn heal_for_good(&mut self) {
        self.ctx.trace(|| "all faults end".into());
        self.ctx.healed = true;
        self.paused.clear();
        self.heal();
        for site in 0..self.servers.len() {
            self.ctx.at(self.ctx.now, Happening::Start { site });
        }
    }

    // ---- faults ----

    fn schedule_fault(&mut self) {
        let every = self.ctx.scenario.fault_every;
        if every > 0 {
            let delay = self.ctx.rng.between(1, 2 * every);
            self.ctx.later(delay, Happening::Fault);
        }
    }

    fn fault(&mut self) {
        let f = self.ctx.scenario.faults.clone();
        let weights = [
            f.crash,
            f.crash_all,
            f.partition,
            f.cut,
            f.pause,
            f.kill_session,
            f.join,
            f.stop,
        ];
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return;
        }
        let mut at = self.ctx.rng.below(total);
        let kind = weights.iter().position(|w| {
            let here = at < *w;
            at = at.saturating_sub(*w);
            here
        });
        let n = self.servers.len() as u64;
        let site = self.ctx.rng.below(n) as usize;
        match kind {
            Some(0) => self.crash(site),
            Some(1) => (0..self.servers.len()).for_each(|site| self.crash(site)),
            Some(2) => self.partition(),
            Some(3) => {
                let other = self.ctx.rng.below(n) as usize;
                if site != other {
                    self.ctx
                        .trace(|| format!("cut between sites {site} and {other}"));
                    self.connect(site, other, false);
                }
            }
            Some(4) => {
                let until = self.ctx.now + self.ctx.rng.between(50, 4000);
                self.ctx
                    .trace(|| format!("site {site} stands still until {until}"));
                self.paused.insert(site, until);
            }
            Some(5) => {
                let slot = self.ctx.rng.below(self.ctx.scenario.sessions.into()) as u32;
                self.servers[site].kill_session(&mut self.ctx, slot);
            }
            Some(6) => self.copy_and_join(),
            _ => self.stop(site),
        }
    }

    fn crash(&mut self, site: usize) {
        self.end(site);
        let delay = self.ctx.rng.between(10, 5000);
        self.ctx.later(delay, Happening::Start { site });
    }

    fn end(&mut self, site: usize) {
        for other in 0..self.servers.len() {
            if other != site {
                self.connect(site, other, false);
            }
        }
        self.paused.remove(&site);
        self.servers[site].crash(&mut self.ctx);
    }

    /// Some can't reach others, in both directions or in one.
    fn partition(&mut self) {
        self.heal();
        let one_way = self.ctx.rng.per_mille(300);
        let sides: Vec<bool> = self
            .servers
            .iter()
            .map(|_| self.ctx.rng.per_mille(400))
            .collect();
        self.ctx
            .trace(|| format!("partition {sides:?}, one way: {one_way}"));
        for a in 0..sides.len() {
            for b in 0..sides.len() {
                if sides[a] && !sides[b] {
                    self.blocked.insert((a, b));
                    if !one_way {
                        self.blocked.insert((b, a));
                    }
                }
            }
        }
        let delay = self.ctx.rng.between(100, 6000);
        self.ctx.later(delay, Happening::Heal);
    }

    /// A new server with a copy of a member's data.
    fn copy_and_join(&mut self) {
        let from = self.ctx.rng.below(self.servers.len() as u64) as usize;
        if self.servers.len() >= SERVERS_MAX || self.servers[from].state() != GroupState::Online {
            return;
        }
        let site = self.servers.len();
        let copy = Server::new(site, None, self.servers[from].db.copy());
        self.ctx.trace(|| {
            format!(
                "site {site} is a copy of site {from} at GID {}",
                copy.db.committed
            )
        });
        self.servers.push(copy);
        self.ctx.later(10, Happening::AskToJoin { site, life: 0 });
    }

    /// Its log can't be caught up with any more: it is emptied, and joins as a new copy.
    fn copy_again(&mut self, site: usize, life: u64) {
        let online = |s: &&Server| s.state() == GroupState::Online;
        let Some(from) = self.servers.iter().find(online) else {
            return self.ctx.later(300, Happening::CopyAgain { site, life });
        };
        let life = life + 1;
        let mut copy = Server::new(site, None, from.db.copy());
        (copy.life, copy.nonce) = (life, u128::from(self.ctx.rng.next()));
        self.ctx
            .trace(|| format!("site {site} is a new copy, GID {}", copy.db.committed));
        self.servers[site] = copy;
        self.ctx.later(10, Happening::AskToJoin { site, life });
    }

    /// One member at a time; a member answers, or says itself that it could not in time.
    fn ask_to_join(&mut self, site: usize, life: u64) {
        if self.servers[site].member.is_some() {
            return;
        }
        let to = self.ctx.rng.below(self.servers.len() as u64) as usize;
        let bytes = self.servers[site].join_request().encode();
        let connection = life << 8 | site as u64;
        let listens = to != site && self.servers[to].running.is_some();
        let patience = if listens {
            JOIN_ANSWER_TICKS * TICK_MS
        } else {
            100
        };
        if listens {
            self.servers[to].input(&mut self.ctx, Input::Join { connection, bytes });
        }
        self.ctx
            .later(patience, Happening::AskToJoin { site, life });
    }

    fn join_answer(&mut self, connection: u64, reply: JoinReply) {
        let (site, life) = ((connection & 0xff) as usize, connection >> 8);
        let server = &mut self.servers[site];
        if server.life != life || server.member.is_some() {
            return;
        }
        match reply {
            JoinReply::Accepted { member, .. } => server.accepted(&mut self.ctx, member),
            JoinReply::Retry(_) => {}
            JoinReply::Refused(why) if self.ctx.scenario.may_outdate() => {
                self.ctx.trace(|| format!("site {site} is refused: {why}"));
                self.ctx.later(100, Happening::CopyAgain { site, life });
            }
            JoinReply::Refused(why) => panic!("site {site} is refused: {why}"),
        }
    }

    /// STOP REPLICATION on one member, not the last one: the group would end with it.
    fn stop(&mut self, site: usize) {
        let Some(running) = &self.servers[site].running else {
            return;
        };
        let stats = running.core.stats();
        let voters = stats.members.iter().filter(|m| m.info.voter).count();
        if stats.state == GroupState::Online && self.stopped.is_none() && voters > 1 {
            self.ctx.trace(|| format!("site {site} is told to leave"));
            self.stopped = Some(site);
            self.servers[site].event(&mut self.ctx, Event::StopGroup);
        }
    }
}
