//! One simulated server: the production engine and coordinator, over a simulated log, database,
//! backends and helpers. It keeps the contract of the event loop (`src/coordinator/README.md`).

use crate::check::Told;
use crate::database::Database;
use crate::disk::SimDisk;
use crate::helper::Helper;
use crate::model::GROUP;
use crate::session::{Phase, Session};
use crate::world::{Context, Happening};
use bytes::Bytes;
use postgres_r::coordinator::{self, Coordinator, Event};
use postgres_r::gcs::egcs::members::JoinRequest;
use postgres_r::gcs::egcs::reader::DiskReader;
use postgres_r::gcs::egcs::recover::LogError;
use postgres_r::gcs::egcs::writer::{Step, Writer};
use postgres_r::gcs::egcs::{self, Node, StartError, recover};
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
    pub incarnation: u32,
    /// Was a voter once.
    pub joined: bool,
    pub disk: SimDisk,
    pub db: Database,
    /// Counts starts and crashes, so that what belongs to another life is dropped.
    pub life: u64,
    pub running: Option<Running>,
    pub left: bool,
    /// Until then helpers get nowhere: maintenance has what they need, or the disk.
    pub helpers_stall: u64,
}

pub struct Running {
    pub node: Node,
    pub core: Coordinator,
    pub writer: Writer,
    /// Appends that the disk has not done yet.
    pub steps: VecDeque<(u64, Vec<Step>)>,
    pub sessions: Vec<Session>,
    /// Reads that wait for what was acknowledged when they began, by ticket.
    pub readers: BTreeMap<u64, Gid>,
    pub helpers: Vec<Helper>,
    pub progress: (Gid, Gid, Gid),
    /// Payloads by position, for reads from the log.
    pub log: BTreeMap<u64, Bytes>,
    /// When the last message of each process to the coordinator, and back, arrives.
    pub lanes: BTreeMap<(bool, u32), u64>,
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
            helpers_stall: 0,
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
        ctx.check.starts(me, self.db.committed, self.db.hash());
        let (recovered, mut writer) = match recover::recover(&self.disk, GROUP, me) {
            Ok(found) => found,
            Err(LogError::Io { .. }) => return ctx.log_failed.push(self.site),
            Err(damage) => panic!("{me}: {damage}"),
        };
        writer.set_segment_bytes(ctx.scenario.segment_bytes);
        let incarnation = Incarnation(self.incarnation);
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
            recovered: self.db.committed,
            helpers: ctx.scenario.helpers,
            joining: !self.joined,
            pace: ctx.scenario.pace,
        });
        self.running = Some(Running {
            node,
            core,
            writer,
            steps: VecDeque::new(),
            readers: BTreeMap::new(),
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

    /// kill -9, perhaps with a power failure.
    pub fn crash(&mut self, ctx: &mut Context, power_fails: bool) {
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
            let whole = recover::perform(&self.disk, &steps[..done]).is_ok();
            if done < steps.len() || !whole {
                break;
            }
        }
        if power_fails {
            self.disk.crash(&mut ctx.rng);
        }
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

    pub fn stop_for_good(&mut self, ctx: &mut Context) {
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
}

/// Messages of one lane don't overtake each other.
pub fn lane(lanes: &mut BTreeMap<(bool, u32), u64>, which: (bool, u32), at: u64) -> u64 {
    let last = lanes.entry(which).or_default();
    *last = at.max(*last);
    *last
}
