//! One member: Raft, our queues round it, and what the layer above and the event loop see of it.
//!
//! Inputs only change state; [`Gcs::drain`] then lets Raft and the queues produce what follows
//! from all of them, so that what arrived together goes into one log entry and one write.

use super::Config;
use super::log::{Checkpoint, HardState, Record};
use super::order::Order;
use super::outbox::{Outbox, Proposals};
use super::reader::LogReader;
use super::recover::{Mark, Recovered};
use super::store::Store;
use super::wire::{self, Assembly, Frame};
use crate::gcs::{Event, Gcs, Input, Output, Refused, View};
use crate::ids::{Gid, MemberId, MessageId};
use crate::limits::{
    CHANGESET_BYTES_MAX, ELECTION_TICKS, FRAME_PART_BYTES, HEARTBEAT_TICKS, LOG_RECORD_BYTES_MAX,
};
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// Ticks between tries of what may get lost.
pub(super) const RETRY_TICKS: usize = 5;
/// Bytes of entries in one message of Raft.
const APPEND_BYTES_MAX: u64 = FRAME_PART_BYTES as u64;
/// Messages of Raft on their way to one member.
const APPENDS_MAX: usize = 64;
/// Bytes of entries delivered at once.
const DELIVER_BYTES_MAX: u64 = 4 << 20;

/// A member cannot start.
#[derive(Debug)]
pub enum StartError {
    /// No checkpoint is as old as the data: it has fewer GIDs than the log reaches back.
    TooOld {
        /// GID of the data.
        recovered: Gid,
        /// Of the oldest checkpoint.
        oldest: Gid,
    },
    /// The checkpoint to start from cannot be read.
    Io(std::io::Error),
    /// Raft refuses.
    Raft(raft::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooOld { recovered, oldest } => write!(
                f,
                "the data has GIDs up to {recovered}, the group log begins at GID {oldest}"
            ),
            Self::Io(e) => write!(f, "cannot read a checkpoint: {e}"),
            Self::Raft(e) => write!(f, "cannot start Raft: {e}"),
        }
    }
}

impl std::error::Error for StartError {}

/// How far the engine has come. Only `Running` does anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    Running,
    Removed,
    Failed,
}

/// Raft's wait for one append to be durable.
pub(super) struct Waiting {
    pub ticket: u64,
    /// Number of the `Ready`, 0 for none.
    pub ready: u64,
    /// To be sent then.
    pub messages: Vec<Message>,
    pub then: Then,
}

/// What else follows when an append is durable.
pub(super) enum Then {
    Nothing,
    /// A checkpoint can be used.
    Mark(Mark),
    /// The state above starts anew from another member's checkpoint.
    Restore(Box<Checkpoint>, Mark),
}

/// What is known of a peer.
#[derive(Default)]
pub(super) struct Peer {
    pub up: bool,
    pub assembly: Assembly,
    /// Ticks that a snapshot to it is under way.
    pub snapshot_ticks: usize,
    /// Told of a gap, or of its removal, since the last tick.
    pub told: bool,
    /// Ticks since it was removed.
    pub gone_ticks: usize,
}

/// One member's engine.
pub struct Node {
    pub(super) config: Config,
    pub(super) raft: RawNode<Store>,
    pub(super) life: Life,
    pub(super) out: Vec<Output>,
    pub(super) order: Order,
    pub(super) view: View,
    pub(super) outbox: Outbox,
    pub(super) proposals: Proposals,
    /// Members and who is connected; others are forgotten with the next tick.
    pub(super) peers: BTreeMap<MemberId, Peer>,
    /// Joins that were asked for here, by connection: request and age in ticks.
    pub(super) joins: BTreeMap<u64, (Bytes, usize)>,
    /// Members to be dropped, asked for here or by another member.
    pub(super) removals: BTreeSet<MemberId>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) ticket: u64,
    pub(super) durable: u64,
    /// Raft's newest hard state, and the one in the log.
    pub(super) hard_state: HardState,
    pub(super) hard_state_logged: HardState,
    /// Append that makes term and vote durable.
    pub(super) term_ticket: u64,
    /// What Raft says as the leader of a term that is not durable yet.
    pub(super) held: Vec<Message>,
    /// Bytes of entries in the log; of what it holds, other members need nothing else.
    pub(super) log_bytes: u64,
    /// What the followers have been told is committed, when this member leads.
    pub(super) announced: u64,
    /// (term, leader) that own messages were last sent to.
    pub(super) sent_to: (u64, u64),
    pub(super) frames: u32,
    pub(super) primary: bool,
    pub(super) catching_up: CatchUp,
    /// Ticks since the start.
    pub(super) ticks: usize,
    /// Ticks since the leader was heard.
    pub(super) silence: usize,
    /// Ticks since an own message was delivered.
    pub(super) stalled: usize,
    pub(super) rng: u64,
    /// (term, role) for which the election timeout was drawn.
    pub(super) timeout_for: (u64, StateRole),
    pub(super) timeout: usize,
}

/// The way to [`Event::CaughtUp`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CatchUp {
    /// The group's committed position is not known yet; asked for in this tick.
    Asking(Option<usize>),
    /// Delivered up to here, this member has caught up.
    Until(u64),
    Done,
}

impl Node {
    /// Starts a member from its log. Delivers [`Event::Restore`] and [`Event::View`] first, if the
    /// log has a checkpoint (a member that has just joined gets one from the leader).
    pub fn new(
        config: Config,
        recovered: Recovered,
        reader: Box<dyn LogReader>,
    ) -> Result<Self, StartError> {
        let start = recovered
            .marks
            .iter()
            .rev()
            .find(|m| m.gid <= config.recovered);
        let checkpoint = match (start, recovered.marks.first()) {
            (Some(mark), _) => reader.checkpoint(*mark).map_err(StartError::Io)?,
            (None, Some(oldest)) => {
                return Err(StartError::TooOld {
                    recovered: config.recovered,
                    oldest: oldest.gid,
                });
            }
            (None, None) => Checkpoint {
                next_member: 1,
                ..Checkpoint::default()
            },
        };
        let raft_config = raft::Config {
            id: u64::from(config.me.0),
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: checkpoint.index,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_MAX,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            skip_bcast_commit: true,
            max_committed_size_per_ready: DELIVER_BYTES_MAX,
            ..raft::Config::default()
        };
        let hard_state = recovered.hard_state;
        let log_bytes = recovered.log_bytes;
        let store = Store::new(reader, recovered, &checkpoint);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&raft_config, store, &logger).map_err(StartError::Raft)?;
        let rng = config.seed
            ^ (u64::from(config.me.0) << 32)
            ^ u64::from(config.incarnation.0).rotate_left(48);
        let mut node = Self {
            order: Order::new(&checkpoint),
            view: View::default(),
            raft,
            life: Life::Running,
            out: Vec::new(),
            outbox: Outbox::default(),
            proposals: Proposals::default(),
            peers: BTreeMap::new(),
            joins: BTreeMap::new(),
            removals: BTreeSet::new(),
            waiting: VecDeque::new(),
            ticket: 0,
            durable: 0,
            hard_state,
            hard_state_logged: hard_state,
            term_ticket: 0,
            held: Vec::new(),
            log_bytes,
            announced: 0,
            sent_to: (0, 0),
            frames: 0,
            primary: false,
            catching_up: CatchUp::Asking(None),
            ticks: 0,
            silence: ELECTION_TICKS,
            stalled: 0,
            rng,
            timeout_for: (u64::MAX, StateRole::Follower),
            timeout: ELECTION_TICKS,
            config,
        };
        if checkpoint.index > 0 {
            node.restored(checkpoint);
        }
        // Alone, there is nobody to wait for.
        let r = &node.raft.raft;
        if r.promotable() && r.prs().conf().voters().ids().len() == 1 && node.may_campaign() {
            node.raft.campaign().map_err(StartError::Raft)?;
        }
        Ok(node)
    }

    /// The state above starts from this checkpoint, at which the order is.
    pub(super) fn restored(&mut self, checkpoint: Checkpoint) {
        self.emit(Event::Restore {
            seq: checkpoint.seq,
            gid: checkpoint.gid,
            state: checkpoint.state,
        });
        self.membership_changed();
    }

    pub(super) fn membership_changed(&mut self) {
        self.view = self.order.view();
        let members = self.order.members().clone();
        self.raft.mut_store().set_members(members);
        self.emit(Event::View(self.view.clone()));
    }

    pub(super) fn emit(&mut self, event: Event) {
        self.out.push(Output::Event(event));
    }

    pub(super) fn fail(&mut self, why: impl Into<String>) {
        if self.life == Life::Running {
            self.life = Life::Failed;
            self.emit(Event::Fatal(why.into()));
        }
    }

    pub(super) fn removed(&mut self) {
        if self.life == Life::Running {
            self.life = Life::Removed;
            self.emit(Event::Removed);
        }
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    /// The leader, if one is known and it is not this member.
    pub(super) fn other_leader(&self) -> Option<MemberId> {
        let id = u16::try_from(self.raft.raft.leader_id).ok()?;
        (id != 0 && id != self.config.me.0).then_some(MemberId(id))
    }

    /// See [`Event::Primary`]. A leader counts once an entry of its own term is committed, and
    /// steps down when it has not heard a majority for an election timeout.
    pub(super) fn is_primary(&self) -> bool {
        match self.raft.raft.state {
            _ if self.life != Life::Running => false,
            StateRole::Leader => self.raft.raft.commit_to_current_term(),
            StateRole::Follower => self.raft.raft.leader_id != 0 && self.silence < ELECTION_TICKS,
            StateRole::Candidate | StateRole::PreCandidate => false,
        }
    }

    /// Appends records to the log; returns the ticket.
    pub(super) fn append(&mut self, records: Vec<Record>) -> u64 {
        self.log_bytes += records
            .iter()
            .filter(|r| matches!(r, Record::Entry(_)))
            .map(|r| super::segment::record_bytes(r.size_hint()) as u64)
            .sum::<u64>();
        self.ticket += 1;
        self.out.push(Output::Append {
            ticket: self.ticket,
            records,
        });
        self.ticket
    }

    pub(super) fn send(&mut self, to: MemberId, frame: &Frame) {
        self.frames = self.frames.wrapping_add(1);
        for bytes in wire::pieces(frame, self.frames) {
            self.out.push(Output::Send { to, bytes });
        }
    }

    /// Sends a message of Raft. One that carries more than fits a frame goes as several, which
    /// are as good as one.
    pub(super) fn send_raft(&mut self, mut m: Message) {
        let Ok(to) = u16::try_from(m.to) else { return };
        if !wire::is_sent(&m) {
            return;
        }
        if m.get_msg_type() == MessageType::MsgAppend {
            // Raft leaves this field free; it tells the receiver what it is known to have.
            m.commit_term = self.raft.raft.prs().get(m.to).map_or(0, |p| p.matched);
        }
        while m.entries.len() > 1 {
            let mut bytes = 0;
            let fits = m.entries.iter().take_while(|e| {
                bytes += e.data.len();
                bytes <= LOG_RECORD_BYTES_MAX
            });
            let n = fits.count().max(1);
            if n == m.entries.len() {
                break;
            }
            let mut entries: Vec<_> = m.take_entries().into();
            let rest = entries.split_off(n);
            let (index, log_term) = entries.last().map_or((0, 0), |e| (e.index, e.term));
            let mut head = m.clone();
            head.set_entries(entries.into());
            self.send(MemberId(to), &Frame::Raft(Box::new(head)));
            (m.index, m.log_term) = (index, log_term);
            m.set_entries(rest.into());
        }
        self.send(MemberId(to), &Frame::Raft(Box::new(m)));
    }
}

/// Bytes of one message: a changeset with what the layer above wraps round it.
pub(super) fn message_bytes_max() -> usize {
    CHANGESET_BYTES_MAX + (LOG_RECORD_BYTES_MAX - CHANGESET_BYTES_MAX) / 2
}

impl Gcs for Node {
    fn multicast(&mut self, payload: Bytes) -> Result<MessageId, Refused> {
        if payload.len() > message_bytes_max() {
            return Err(Refused::TooBig);
        }
        if !self.is_primary() || !self.order.members().contains_key(&self.config.me) {
            return Err(Refused::NotPrimary);
        }
        if !self.outbox.has_room(payload.len()) {
            return Err(Refused::Busy);
        }
        if self.outbox.is_empty() {
            self.stalled = 0;
        }
        Ok(MessageId {
            member: self.config.me,
            incarnation: self.config.incarnation,
            number: self.outbox.push(payload),
        })
    }

    fn step(&mut self, input: Input) {
        if self.life != Life::Running {
            return;
        }
        match input {
            Input::Tick => self.tick(),
            Input::PeerUp(id) => self.peer_up(id),
            Input::PeerDown(id) => self.peer_down(id),
            Input::Frame { from, bytes } => self.frame(from, bytes),
            Input::Durable { ticket } => self.made_durable(ticket),
            Input::Join { connection, bytes } => self.join(connection, bytes),
        }
    }

    fn drain(&mut self, out: &mut Vec<Output>) {
        if self.life == Life::Running {
            self.pump();
        }
        let primary = self.is_primary();
        if primary != self.primary {
            self.primary = primary;
            self.emit(Event::Primary(primary));
        }
        out.append(&mut self.out);
    }

    fn checkpoint(&mut self, seq: u64, gid: Gid, state: Bytes) {
        if self.life != Life::Running {
            return;
        }
        let Some(checkpoint) = self.order.checkpoint(seq, gid, state) else {
            return;
        };
        let mark = Mark {
            index: checkpoint.index,
            term: checkpoint.term,
            gid,
            log_bytes: self.log_bytes,
        };
        let ticket = self.append(vec![Record::Checkpoint(checkpoint)]);
        self.waiting.push_back(Waiting {
            ticket,
            ready: 0,
            messages: Vec::new(),
            then: Then::Mark(mark),
        });
    }

    fn stable(&mut self, own: Gid, all: Gid) {
        if self.life == Life::Running {
            self.raft.mut_store().set_everywhere(all);
            self.compact(own, all);
        }
    }

    fn remove(&mut self, member: MemberId) {
        if self.life == Life::Running {
            self.removals.insert(member);
            self.retry_removals();
        }
    }

    fn view(&self) -> &View {
        &self.view
    }

    fn leads(&self) -> bool {
        self.is_leader() && self.is_primary()
    }
}
