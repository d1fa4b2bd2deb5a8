//! A core on a bench: an engine that numbers what it is given and delivers when told, workers and
//! helpers that do as they are told.

use crate::changeset::key::{Key, LockMode};
use crate::coordinator::message::{self, DigestPoint, ENVELOPE_BYTES, Report};
use crate::coordinator::{Bounds, Config, Coordinator, Effect, Event, GcsCommand, Outcome, Pace};
use crate::gcs::{self, Delivery, MemberInfo, Refused, View};
use crate::group_state::GroupState;
use crate::ids::{Gid, GroupId, Incarnation, MemberId, MessageId};
use bytes::Bytes;
use std::collections::VecDeque;

pub const GROUP: GroupId = GroupId(77);
pub const ME: MemberId = MemberId(1);
pub const OTHER: MemberId = MemberId(2);
pub const LIFE: Incarnation = Incarnation(3);

pub const PACE: Pace = Pace {
    checkpoint_messages: 4,
    digest_gids: 2,
    keys_max: 1000,
    quorum_ticks: 5,
    status_ticks: 2,
    queue_bytes: 1 << 20,
    open: Bounds {
        admit: 20_000,
        all: 40_000,
        silent: 10_000,
    },
};

/// A core, and what it said that nobody asked for yet.
pub struct Bench {
    pub core: Coordinator,
    pub effects: Vec<Effect>,
    /// Taken by the engine, not delivered yet.
    pub sent: VecDeque<(MessageId, Bytes)>,
    /// What the engine answers instead of taking a message.
    pub refuse: Option<Refused>,
    pub seq: u64,
    pub index: u64,
    pub position: u64,
    number: u64,
    foreign: u64,
}

pub fn config(recovered: u64) -> Config {
    Config {
        me: ME,
        incarnation: LIFE,
        group: GROUP,
        recovered: Gid(recovered),
        helpers: 2,
        joining: false,
        pace: PACE,
    }
}

/// A changeset that writes one row.
pub fn writes(
    origin: MemberId,
    incarnation: Incarnation,
    snapshot: u64,
    row: u64,
    flags: u16,
) -> Vec<u8> {
    let key = Key {
        hash: row,
        since: Gid(snapshot),
        relation: 16384,
        mode: LockMode::Update,
        flags: 0,
    };
    super::super::testing::changeset(GROUP, origin, incarnation, Gid(snapshot), flags, &[key])
}

pub fn two_voters(seq: u64) -> View {
    let member = |id: MemberId| MemberInfo {
        id,
        address: format!("host{id}:1"),
        voter: true,
    };
    View {
        seq,
        members: vec![member(ME), member(OTHER)],
    }
}

impl Bench {
    pub fn new(config: Config) -> Bench {
        let position = config.recovered.0;
        Bench {
            core: Coordinator::new(config),
            effects: Vec::new(),
            sent: VecDeque::new(),
            refuse: None,
            seq: 0,
            index: 1,
            position,
            number: 0,
            foreign: 0,
        }
    }

    /// Online in a group of two, with both ordinary helpers and number 0 free.
    pub fn online() -> Bench {
        let mut b = Bench::new(config(0));
        b.gcs(gcs::Event::View(two_voters(0)));
        b.gcs(gcs::Event::Primary(true));
        b.gcs(gcs::Event::CaughtUp);
        for helper in 0..3 {
            b.step(Event::HelperReady { helper });
        }
        assert_eq!(b.core.state(), GroupState::Online);
        b.effects.clear();
        b
    }

    pub fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        self.core.step(event, &mut out);
        for effect in out {
            if let Effect::Gcs(GcsCommand::Multicast { token, payload }) = effect {
                let result = match self.refuse {
                    Some(refused) => Err(refused),
                    None => {
                        self.number += 1;
                        let id = MessageId {
                            member: ME,
                            incarnation: LIFE,
                            number: self.number,
                        };
                        self.sent.push_back((id, payload));
                        Ok(id)
                    }
                };
                self.step(Event::Sent { token, result });
            } else {
                self.effects.push(effect);
            }
        }
    }

    pub fn gcs(&mut self, event: gcs::Event) {
        self.step(Event::Gcs(event));
    }

    pub fn ticks(&mut self, n: u32) {
        for _ in 0..n {
            self.step(Event::Tick);
        }
    }

    /// A worker of ours multicasts a write of `row`.
    pub fn write(&mut self, worker: u32, ticket: u64, row: u64) {
        self.write_flagged(worker, ticket, row, 0);
    }

    pub fn write_flagged(&mut self, worker: u32, ticket: u64, row: u64, flags: u16) {
        let mut message = vec![0; ENVELOPE_BYTES];
        message.extend(writes(ME, LIFE, self.position, row, flags));
        self.step(Event::Multicast {
            worker,
            ticket,
            message,
        });
    }

    /// The oldest sent message is ordered, in a log entry of its own.
    pub fn deliver_own(&mut self) {
        let (id, payload) = self.sent.pop_front().expect("something was sent");
        self.deliver(id, payload);
    }

    /// The other member's write of `row` is ordered.
    pub fn deliver_other(&mut self, snapshot: u64, row: u64) {
        let changeset = writes(OTHER, Incarnation(1), snapshot, row, 0);
        self.deliver_changeset(OTHER, Incarnation(1), changeset);
    }

    pub fn deliver_changeset(
        &mut self,
        member: MemberId,
        incarnation: Incarnation,
        changeset: Vec<u8>,
    ) {
        let mut message = vec![0; ENVELOPE_BYTES];
        message.extend(changeset);
        message::seal_changeset(&mut message, Report::default());
        self.foreign += 1;
        self.deliver(
            MessageId {
                member,
                incarnation,
                number: self.foreign,
            },
            Bytes::from(message),
        );
    }

    pub fn deliver_status(&mut self, member: MemberId, report: Report, point: DigestPoint) {
        self.foreign += 1;
        let id = MessageId {
            member,
            incarnation: Incarnation(1),
            number: self.foreign,
        };
        self.deliver(id, message::status(report, point));
    }

    /// This is ordered, in a log entry of its own.
    pub fn deliver(&mut self, id: MessageId, payload: Bytes) {
        self.seq += 1;
        self.index += 1;
        let (seq, index) = (self.seq, self.index);
        self.gcs(gcs::Event::Deliver(Delivery {
            seq,
            index,
            id,
            payload,
        }));
    }

    /// All GIDs up to this one are visible here.
    pub fn committed(&mut self, gid: u64) {
        self.position = gid;
        let gid = Gid(gid);
        self.step(Event::Progress {
            last_committed: gid,
            flushed: gid,
            low: gid,
        });
    }

    /// Takes out what workers were told.
    pub fn verdicts(&mut self) -> Vec<(u32, u64, Outcome)> {
        let mut verdicts = Vec::new();
        self.effects.retain(|e| match e {
            Effect::Verdict {
                worker,
                ticket,
                outcome,
            } => {
                verdicts.push((*worker, *ticket, *outcome));
                false
            }
            _ => true,
        });
        verdicts
    }

    /// Takes out what helpers were given: (helper, GID, depends on).
    pub fn applies(&mut self) -> Vec<(u32, u64, u64)> {
        let mut applies = Vec::new();
        self.effects.retain(|e| match e {
            Effect::Apply {
                helper,
                gid,
                depends_on,
                ..
            } => {
                applies.push((*helper, gid.0, depends_on.0));
                false
            }
            _ => true,
        });
        applies
    }

    pub fn applied(&mut self, helper: u32, gid: u64) {
        self.step(Event::HelperApplied {
            helper,
            gid: Gid(gid),
        });
    }

    /// Takes out the checkpoints.
    pub fn checkpoints(&mut self) -> Vec<(u64, Gid, Bytes)> {
        let mut checkpoints = Vec::new();
        self.effects.retain(|e| match e {
            Effect::Gcs(GcsCommand::Checkpoint { seq, gid, state }) => {
                checkpoints.push((*seq, *gid, state.clone()));
                false
            }
            _ => true,
        });
        checkpoints
    }

    /// Why it failed.
    pub fn failure(&self) -> String {
        let said = self.effects.iter().find_map(|e| match e {
            Effect::Fail(reason) => Some(reason.clone()),
            _ => None,
        });
        assert_eq!(self.core.state(), GroupState::Failed);
        assert_eq!(self.core.stats().failure, said);
        said.expect("it said why")
    }

    pub fn state(&self) -> GroupState {
        self.core.state()
    }
}

/// Bytes of a changeset that writes one row, with nothing committed before.
pub fn changeset_bytes() -> usize {
    writes(OTHER, LIFE, 0, 1, 0).len()
}
