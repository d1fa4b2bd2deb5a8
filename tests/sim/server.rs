//! One simulated server: the production engine and coordinator, over a simulated log, database,
//! backends and helpers. It keeps the contract of the event loop (`src/coordinator/README.md`).

use crate::check::Told;
use crate::database::{Database, Owner};
use crate::disk::SimDisk;
use crate::helper::Helper;
use crate::model::{self, GROUP, Outgoing};
use crate::scenario::Plant;
use crate::session::{Phase, Session};
use crate::world::{Context, Happening};
use bytes::Bytes;
use postgres_r::coordinator::message::ENVELOPE_BYTES;
use postgres_r::coordinator::{self, Coordinator, Effect, Event, GcsCommand, Outcome};
use postgres_r::gcs::egcs::disk::Disk;
use postgres_r::gcs::egcs::members::{JoinReply, JoinRequest};
use postgres_r::gcs::egcs::reader::DiskReader;
use postgres_r::gcs::egcs::writer::{Step, Writer};
use postgres_r::gcs::egcs::{self, Node, StartError, recover, segment};
use postgres_r::gcs::{self, Gcs, Input, Output};
use postgres_r::group_state::GroupState;
use postgres_r::ids::{Gid, Incarnation, MemberId};
use std::collections::{BTreeMap, VecDeque};

pub const FINGERPRINT: &str = "sim";

pub struct Server {
    pub site: usize,
    /// Its number; none while it has not joined.
    pub member: Option<MemberId>,
    /// Names its attempt to join.
    pub nonce: u128,
    incarnation: u32,
    /// Was a voter once.
    joined: bool,
    pub disk: SimDisk,
    pub db: Database,
    /// Counts starts and crashes, so that what belongs to another life is dropped.
    pub life: u64,
    pub running: Option<Running>,
    pub left: bool,
}

pub struct Running {
    pub node: Node,
    pub core: Coordinator,
    writer: Writer,
    /// Appends that the disk has not done yet.
    steps: VecDeque<(u64, Vec<Step>)>,
    pub sessions: Vec<Session>,
    pub helpers: Vec<Helper>,
    progress: (Gid, Gid, Gid),
    /// Payloads by position, for reads from the log.
    log: BTreeMap<u64, Bytes>,
    /// When the last message of each process to the coordinator, and back, arrives.
    lanes: BTreeMap<(bool, u32), u64>,
}

impl Server {
    pub fn new(site: usize, member: Option<MemberId>, db: Database) -> Server {
        Server {
            site,
            member,
            nonce: 1000 + site as u128,
            incarnation: 0,
            joined: member.is_some(),
            disk: SimDisk::default(),
            db,
            life: 0,
            running: None,
            left: false,
        }
    }

    pub fn address(&self) -> String {
        format!("site{}:1", self.site)
    }

    pub fn me(&self) -> MemberId {
        self.member.unwrap_or(MemberId(0))
    }

    pub fn state(&self) -> GroupState {
        self.running
            .as_ref()
            .map_or(GroupState::Off, |r| r.core.state())
    }

    // ---- life ----

    pub fn start(&mut self, ctx: &mut Context) {
        let Some(me) = self.member else { return };
        if self.running.is_some() || self.left {
            return;
        }
        self.life += 1;
        self.incarnation += 1;
        ctx.trace(|| {
            format!(
                "{me} starts, life {}, GID {}",
                self.incarnation, self.db.committed
            )
        });
        ctx.check.state(me, self.db.committed, self.db.hash());
        let (recovered, writer) =
            recover::recover(&self.disk, GROUP, me).expect("the log is whole");
        let incarnation = Incarnation(self.incarnation);
        let mut gid = self.db.committed;
        if ctx.scenario.plant == Plant::ForgottenCommit && self.incarnation > 1 {
            gid = gid.next();
        }
        let config = egcs::Config {
            group: GROUP,
            me,
            incarnation,
            recovered: self.db.committed,
            fingerprint: FINGERPRINT.into(),
            keep_bytes: ctx.scenario.keep_bytes,
            seed: ctx.rng.next(),
        };
        let reader = DiskReader::new(self.disk.clone(), GROUP, me);
        let node = match Node::new(config, recovered, Box::new(reader)) {
            Ok(node) => node,
            Err(StartError::TooOld { .. }) if ctx.scenario.may_outdate() => {
                return ctx.outdated.push(self.site);
            }
            Err(error) => panic!("{me} can't start: {error}"),
        };
        let core = Coordinator::new(coordinator::Config {
            me,
            incarnation,
            group: GROUP,
            recovered: gid,
            helpers: ctx.scenario.helpers,
            joining: !self.joined,
            pace: ctx.scenario.pace,
        });
        self.running = Some(Running {
            node,
            core,
            writer,
            steps: VecDeque::new(),
            sessions: (0..ctx.scenario.sessions).map(Session::new).collect(),
            helpers: (0..=ctx.scenario.helpers).map(Helper::new).collect(),
            progress: Default::default(),
            log: BTreeMap::new(),
            lanes: BTreeMap::new(),
        });
        for helper in 0..=ctx.scenario.helpers {
            self.tell_coordinator(ctx, 1000 + helper, Event::HelperReady { helper });
        }
        for slot in 0..ctx.scenario.sessions {
            self.wake_session(ctx, slot, 1);
        }
        ctx.later(
            90,
            Happening::Tick {
                site: self.site,
                life: self.life,
            },
        );
        ctx.later(
            20,
            Happening::WalFlush {
                site: self.site,
                life: self.life,
            },
        );
        self.settle(ctx);
    }

    /// kill -9 and power failure in one.
    pub fn crash(&mut self, ctx: &mut Context) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        self.life += 1;
        // Some of what was planned had begun.
        for _ in 0..ctx.rng.below(3) {
            let Some((_, steps)) = running.steps.pop_front() else {
                break;
            };
            let done = ctx.rng.below(steps.len() as u64 + 1) as usize;
            recover::perform(&self.disk, &steps[..done]).expect("a simulated disk");
            if done < steps.len() {
                break;
            }
        }
        self.disk.crash(&mut ctx.rng);
        self.db.crash(&mut ctx.rng);
        for session in &running.sessions {
            if let Some(t) = &session.transaction {
                let told = match session.phase {
                    Phase::Running => Told::Aborted,
                    _ => Told::Unknown,
                };
                ctx.check.told(t.xid, told);
            }
        }
        ctx.trace(|| format!("{} crashed, GID {} survives", self.me(), self.db.committed));
    }

    // ---- engine and coordinator ----

    pub fn input(&mut self, ctx: &mut Context, input: Input) {
        if let Some(running) = &mut self.running {
            running.node.step(input);
            self.settle(ctx);
        }
    }

    /// An event from this server's own processes; a fresh position goes before it.
    pub fn event(&mut self, ctx: &mut Context, event: Event) {
        self.tell_progress(ctx);
        self.step(ctx, event);
        self.settle(ctx);
    }

    fn tell_progress(&mut self, ctx: &mut Context) {
        let Some(running) = &mut self.running else {
            return;
        };
        let committed = self.db.committed;
        let lows = running
            .sessions
            .iter()
            .filter_map(|s| s.transaction.as_ref().map(|t| t.since_low));
        let progress = (
            committed,
            self.db.flushed,
            lows.min().unwrap_or(committed).min(committed),
        );
        if std::mem::replace(&mut running.progress, progress) != progress {
            let (last_committed, flushed, low) = progress;
            self.step(
                ctx,
                Event::Progress {
                    last_committed,
                    flushed,
                    low,
                },
            );
        }
    }

    fn step(&mut self, ctx: &mut Context, event: Event) {
        let Some(running) = &mut self.running else {
            return;
        };
        let mut effects = Vec::new();
        running.core.step(event, &mut effects);
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let Some(running) = &mut self.running else {
                return;
            };
            if let Effect::Gcs(GcsCommand::Multicast { token, payload }) = effect {
                let result = running.node.multicast(payload);
                let mut more = Vec::new();
                running.core.step(Event::Sent { token, result }, &mut more);
                effects.extend(more);
            } else {
                self.carry_out(ctx, effect);
            }
        }
    }

    fn carry_out(&mut self, ctx: &mut Context, effect: Effect) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        match effect {
            Effect::Gcs(GcsCommand::Multicast { .. }) => unreachable!("done by the caller"),
            Effect::Gcs(GcsCommand::Checkpoint { seq, gid, state }) => {
                ctx.check.checkpoint(me, seq, &state);
                running.node.checkpoint(seq, gid, state);
            }
            Effect::Gcs(GcsCommand::Stable { own, all }) => running.node.stable(own, all),
            Effect::Gcs(GcsCommand::Remove(member)) => running.node.remove(member),
            Effect::Gcs(GcsCommand::Read { seq, .. }) => {
                let payload = running
                    .log
                    .get(&seq)
                    .cloned()
                    .ok_or_else(|| "not there".to_string());
                self.tell_coordinator(ctx, 999, Event::LogRead { seq, payload });
            }
            Effect::Verdict {
                worker,
                ticket,
                outcome,
            } => {
                let session = &mut running.sessions[worker as usize];
                if let Outcome::Pass { gid } = outcome
                    && session.ticket == ticket
                {
                    session.published = Some(gid);
                }
                let delay = ctx.rng.between(0, 3);
                let at = lane(&mut running.lanes, (false, worker), ctx.now + delay);
                let (site, life) = (self.site, self.life);
                ctx.at(
                    at,
                    Happening::Verdict {
                        site,
                        life,
                        slot: worker,
                        ticket,
                        outcome,
                    },
                );
            }
            Effect::Apply {
                helper,
                gid,
                depends_on,
                changeset,
                ..
            } => {
                running.helpers[helper as usize].give(gid, depends_on, &changeset);
                self.wake_helper(ctx, helper, 2);
            }
            Effect::SetState(state) => {
                ctx.trace(|| format!("{me} is {state:?}"));
                if state == GroupState::Online {
                    self.joined = true;
                }
                if state == GroupState::Left {
                    self.left = true;
                }
            }
            Effect::SetView(view) => {
                ctx.trace(|| {
                    format!(
                        "{me} has view {:?} at {}",
                        view.members
                            .iter()
                            .map(|m| (m.id.0, m.voter))
                            .collect::<Vec<_>>(),
                        view.seq
                    )
                });
            }
            Effect::Fail(reason) if ctx.scenario.may_outdate() && is_outdated(&reason) => {
                ctx.trace(|| format!("{me} failed: {reason}"));
                ctx.outdated.push(self.site);
            }
            Effect::Fail(reason) => panic!("{me} failed: {reason}"),
        }
    }

    /// Lets engine and coordinator do all that follows.
    fn settle(&mut self, ctx: &mut Context) {
        loop {
            let Some(running) = &mut self.running else {
                return;
            };
            let mut outputs = Vec::new();
            running.node.drain(&mut outputs);
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                self.output(ctx, output);
            }
        }
        if self.left {
            self.stop_for_good(ctx);
        }
    }

    fn output(&mut self, ctx: &mut Context, output: Output) {
        let (site, life) = (self.site, self.life);
        let Some(running) = &mut self.running else {
            return;
        };
        match output {
            Output::Send { to, bytes } => ctx.sends.push((site, to, bytes)),
            Output::Append { ticket, records } => {
                let mut steps = Vec::new();
                running.writer.append(ticket, &records, &mut steps);
                running.steps.push_back((ticket, steps));
                if ctx.scenario.plant == Plant::DeliverBeforeDisk {
                    running.node.step(Input::Durable { ticket });
                }
                if running.steps.len() == 1 {
                    let delay = ctx.rng.between(0, ctx.scenario.disk_delay_max);
                    ctx.later(delay, Happening::Disk { site, life });
                }
            }
            Output::Compact { first_index } => {
                for number in running.writer.compact(first_index) {
                    self.disk
                        .remove(&segment::file_name(number))
                        .expect("a simulated disk");
                    self.disk.sync_dir().expect("a simulated disk");
                }
            }
            Output::JoinReply { connection, bytes } => {
                let reply = JoinReply::decode(bytes).expect("a reply");
                ctx.join_replies.push((connection, reply));
            }
            Output::Event(event) => self.gcs_event(ctx, event),
        }
    }

    fn gcs_event(&mut self, ctx: &mut Context, event: gcs::Event) {
        let me = self.me();
        let gcs::Event::Deliver(delivery) = &event else {
            return self.step(ctx, Event::Gcs(event));
        };
        let delivery = delivery.clone();
        ctx.check.delivered(me, &delivery);
        if let Some(running) = &mut self.running {
            running.log.insert(delivery.seq, delivery.payload.clone());
        }
        self.step_checked(ctx, event, &delivery);
    }

    fn step_checked(&mut self, ctx: &mut Context, event: gcs::Event, delivery: &gcs::Delivery) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let mut effects = Vec::new();
        running.core.step(Event::Gcs(event), &mut effects);
        let (gid, digest) = running.core.digest();
        ctx.check.verdict(me, delivery, gid, digest);
        ctx.trace(|| {
            format!(
                "{me} delivers {} as {}, GID {gid}",
                delivery.id, delivery.seq
            )
        });
        for effect in effects {
            match effect {
                Effect::Gcs(GcsCommand::Multicast { token, payload }) => {
                    let Some(running) = &mut self.running else {
                        return;
                    };
                    let result = running.node.multicast(payload);
                    self.step(ctx, Event::Sent { token, result });
                }
                effect => self.carry_out(ctx, effect),
            }
        }
    }

    /// The disk has done the oldest append.
    pub fn disk_done(&mut self, ctx: &mut Context) {
        let (site, life) = (self.site, self.life);
        let Some(running) = &mut self.running else {
            return;
        };
        let mut ticket = None;
        // One sync may cover several.
        for _ in 0..ctx.rng.between(1, 4) {
            let Some((t, steps)) = running.steps.pop_front() else {
                break;
            };
            recover::perform(&self.disk, &steps).expect("a simulated disk");
            running.writer.durable(t);
            ticket = Some(t);
        }
        if !running.steps.is_empty() {
            let delay = ctx.rng.between(0, ctx.scenario.disk_delay_max);
            ctx.later(delay, Happening::Disk { site, life });
        }
        if let Some(ticket) = ticket
            && ctx.scenario.plant != Plant::DeliverBeforeDisk
        {
            self.input(ctx, Input::Durable { ticket });
        }
    }

    // ---- joining and leaving ----

    /// What this copy asks a member.
    pub fn join_request(&self) -> JoinRequest {
        JoinRequest {
            group: GROUP,
            nonce: self.nonce,
            gid: self.db.committed,
            address: self.address(),
            fingerprint: FINGERPRINT.into(),
        }
    }

    pub fn accepted(&mut self, ctx: &mut Context, member: MemberId) {
        if self.member.is_none() {
            ctx.trace(|| format!("site {} becomes member {member}", self.site));
            recover::create_empty(&self.disk, GROUP, member).expect("a simulated disk");
            self.member = Some(member);
            self.start(ctx);
        }
    }

    fn stop_for_good(&mut self, ctx: &mut Context) {
        let Some(running) = self.running.take() else {
            return;
        };
        self.life += 1;
        for session in &running.sessions {
            if let Some(t) = &session.transaction {
                let told = match session.phase {
                    Phase::Running => Told::Aborted,
                    _ => Told::Unknown,
                };
                ctx.check.told(t.xid, told);
            }
        }
    }

    // ---- imessages ----

    /// A process of this server sends to its coordinator; its messages arrive in order.
    pub fn tell_coordinator(&mut self, ctx: &mut Context, process: u32, event: Event) {
        let delay = ctx.rng.between(0, 3);
        let Some(running) = &mut self.running else {
            return;
        };
        let at = lane(&mut running.lanes, (true, process), ctx.now + delay);
        ctx.at(
            at,
            Happening::ToCoordinator {
                site: self.site,
                life: self.life,
                event,
            },
        );
    }

    pub fn wake_session(&self, ctx: &mut Context, slot: u32, delay_max: u64) {
        let delay = ctx.rng.between(1, delay_max.max(1));
        ctx.later(
            delay,
            Happening::Session {
                site: self.site,
                life: self.life,
                slot,
            },
        );
    }

    pub fn wake_helper(&self, ctx: &mut Context, helper: u32, delay_max: u64) {
        let delay = ctx.rng.between(1, delay_max.max(1));
        ctx.later(
            delay,
            Happening::Helper {
                site: self.site,
                life: self.life,
                helper,
            },
        );
    }

    /// COMMIT: the changeset goes to the coordinator.
    pub fn multicast(&mut self, ctx: &mut Context, slot: u32) {
        let (me, incarnation) = (self.me(), Incarnation(self.incarnation));
        let snapshot = self.db.committed;
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        session.phase = Phase::Multicast;
        let ticket = session.ticket;
        let t = session.transaction.as_mut().expect("a transaction commits");
        if ctx.scenario.plant == Plant::LateSince {
            t.keys.iter_mut().for_each(|k| k.since = snapshot);
        }
        let message = model::encode(
            ENVELOPE_BYTES,
            &Outgoing {
                origin: me,
                incarnation,
                snapshot,
                flags: u16::from(t.local_effects),
                xid: t.xid,
                keys: &t.keys,
                changes: &t.changes,
            },
        );
        let xid = t.xid;
        ctx.trace(|| format!("{me} session {slot} multicasts {xid}, snapshot {snapshot}"));
        if ctx.scenario.plant == Plant::EarlyAnswer {
            ctx.check.promised(xid);
        }
        self.tell_coordinator(
            ctx,
            slot,
            Event::Multicast {
                worker: slot,
                ticket,
                message,
            },
        );
    }

    /// A local transaction is waited for if its GID is lower. Any other gives way: aborted, or if it
    /// was multicast, rolled back, and its outcome learned later.
    pub fn make_way(&mut self, ctx: &mut Context, slot: u32, for_gid: Gid) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        let xid = session.transaction.as_ref().map_or(0, |t| t.xid);
        if session.published.is_some_and(|gid| gid < for_gid) {
            // A row that it only locked: it is not in the changeset, so nothing else depends on it.
            return;
        }
        ctx.trace(|| {
            format!(
                "{me} session {slot}, {:?}, gives way to GID {for_gid}: {xid}",
                session.phase
            )
        });
        match session.phase {
            Phase::Running => {
                session.phase = Phase::Idle;
                session.transaction = None;
                ctx.check.told(xid, Told::Aborted);
                self.wake_session(ctx, slot, ctx.scenario.think_max);
            }
            Phase::Multicast => {
                session.phase = Phase::RolledBack;
                let ticket = session.ticket;
                self.tell_coordinator(
                    ctx,
                    slot,
                    Event::Abandon {
                        worker: slot,
                        ticket,
                        gone: false,
                    },
                );
            }
            Phase::Passed(gid) => panic!(
                "{me}: {xid} passed as GID {gid} and is in the way of GID {for_gid}: certification did not see it"
            ),
            Phase::Idle | Phase::RolledBack => unreachable!("it holds no locks"),
        }
        self.db.unlock(Owner::Session(slot));
    }

    /// The client goes away, or an administrator ends the session.
    pub fn kill_session(&mut self, ctx: &mut Context, slot: u32) {
        let me = self.me();
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        let Some(t) = session.transaction.take() else {
            return;
        };
        let (ticket, phase) = (session.ticket, session.phase);
        ctx.trace(|| format!("{me} session {slot} is killed in {phase:?}: {}", t.xid));
        session.phase = Phase::Idle;
        let told = if phase == Phase::Running {
            Told::Aborted
        } else {
            Told::Unknown
        };
        ctx.check.told(t.xid, told);
        self.db.unlock(Owner::Session(slot));
        if phase != Phase::Running {
            self.tell_coordinator(
                ctx,
                slot,
                Event::Abandon {
                    worker: slot,
                    ticket,
                    gone: true,
                },
            );
        }
        self.wake_session(ctx, slot, 50);
    }

    /// Without a majority some clients cancel a COMMIT that waits. Its outcome stays open for them
    /// (08007), and their locks go.
    pub fn impatient_clients(&mut self, ctx: &mut Context) {
        let (me, state) = (self.me(), self.state());
        for slot in 0..ctx.scenario.sessions {
            let Some(running) = &mut self.running else {
                return;
            };
            let session = &mut running.sessions[slot as usize];
            let waits = matches!(session.phase, Phase::Multicast | Phase::RolledBack);
            if state != GroupState::NoQuorum || !waits || !ctx.rng.per_mille(100) {
                continue;
            }
            let Some(t) = session.transaction.take() else {
                continue;
            };
            ctx.trace(|| format!("{me} session {slot} cancels {}", t.xid));
            session.phase = Phase::Idle;
            let ticket = session.ticket;
            ctx.check.told(t.xid, Told::Unknown);
            self.db.unlock(Owner::Session(slot));
            // What only the session has can't be replayed while it goes on: it ends instead.
            let gone = t.local_effects;
            self.tell_coordinator(
                ctx,
                slot,
                Event::Abandon {
                    worker: slot,
                    ticket,
                    gone,
                },
            );
            self.wake_session(ctx, slot, ctx.scenario.think_max);
        }
    }

    /// What became of a multicast.
    pub fn verdict(&mut self, ctx: &mut Context, slot: u32, ticket: u64, outcome: Outcome) {
        let Some(running) = &mut self.running else {
            return;
        };
        let session = &mut running.sessions[slot as usize];
        let Some(t) = session
            .transaction
            .as_ref()
            .filter(|_| session.ticket == ticket)
        else {
            return;
        };
        let xid = t.xid;
        let told = match (session.phase, outcome) {
            (Phase::Multicast, Outcome::Pass { gid }) => {
                session.phase = Phase::Passed(gid);
                return self.wake_session(ctx, slot, 2);
            }
            // It had rolled back by then; a helper commits it.
            (Phase::RolledBack, Outcome::Pass { .. }) => return,
            (Phase::RolledBack, Outcome::Replayed { gid }) => Told::Committed(gid),
            (
                _,
                Outcome::Conflict { .. }
                | Outcome::BelowFloor
                | Outcome::NotPrimary
                | Outcome::Busy
                | Outcome::Withdrawn,
            ) => Told::Aborted,
            (_, Outcome::Unknown) => Told::Unknown,
            (phase, outcome) => panic!("{outcome:?} for a transaction in {phase:?}"),
        };
        ctx.trace(|| format!("site {} session {slot}: {xid} is {outcome:?}", self.site));
        session.phase = Phase::Idle;
        session.transaction = None;
        self.db.unlock(Owner::Session(slot));
        ctx.check.told(xid, told);
        if matches!(told, Told::Committed(_)) {
            ctx.served.insert(self.site);
        }
        self.wake_session(ctx, slot, ctx.scenario.think_max);
    }
}

/// Messages of one lane don't overtake each other.
fn lane(lanes: &mut BTreeMap<(bool, u32), u64>, which: (bool, u32), at: u64) -> u64 {
    let last = lanes.entry(which).or_default();
    *last = at.max(*last);
    *last
}

/// The data lacks what the others' logs do not have any more.
fn is_outdated(reason: &str) -> bool {
    reason.contains("needs a new copy") || reason.contains("lagged beyond")
}
