//! What goes into the coordinator's core and what comes out.

use super::message::Relations;
use super::open::{Bounds, OpenStats};
use crate::changeset::fragment::Counted;
use crate::gcs::{self, MemberInfo, Refused, View};
use crate::group_state::GroupState;
use crate::ids::{Gid, GroupId, Incarnation, MemberId, MessageId};
use crate::imsg::wanted::Detail;
use crate::limits;
use bytes::Bytes;

/// How a core is made. Constant over its life.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub me: MemberId,
    /// Which of its lives; durable before anything is sent.
    pub incarnation: Incarnation,
    /// Its group.
    pub group: GroupId,
    /// Exact GID of this copy's data after redo: everything up to it is committed here.
    pub recovered: Gid,
    /// Ordinary helpers, numbered 1..=helpers; number 0 is one more, kept for replays and for the
    /// next GID to commit. At least 1.
    pub helpers: u32,
    /// A copy that has never been a voter (it opens when it is one), not a member that restarts.
    pub joining: bool,
    /// The same on every member of a group.
    pub pace: Pace,
}

/// Distances in the log that all members must agree on, or their checkpoints differ; and bounds
/// that are a member's own. Only tests use other values than [`Pace::default`].
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Delivered messages between two checkpoints, at least.
    pub checkpoint_messages: u64,
    /// GIDs between two comparisons of the verdict digests.
    pub digest_gids: u64,
    /// Keys that the certifier retains.
    pub keys_max: usize,
    /// Ticks without a majority after which writes are refused.
    pub quorum_ticks: u32,
    /// Idle ticks after which a moved position is reported by a message of its own.
    pub status_ticks: u32,
    /// Bytes of changesets that wait for a helper in memory; the rest is read from the log again.
    pub queue_bytes: usize,
    /// Of transactions whose fragments are in the log.
    pub open: Bounds,
}

/// One thing that happened. See [`super::Coordinator::step`].
#[derive(Debug)]
pub enum Event {
    /// From the group communication engine, in its order.
    Gcs(gcs::Event),
    /// Answer to [`GcsCommand::Multicast`]; fed before any other event.
    Sent {
        /// The command's.
        token: u64,
        /// What [`gcs::Gcs::multicast`] said.
        result: Result<MessageId, Refused>,
    },
    /// A worker hands over its changeset, or one that no transaction commits. `message` starts with
    /// [`ENVELOPE_BYTES`](super::message::ENVELOPE_BYTES) bytes of any content, which the core
    /// fills in; the changeset follows, whole.
    Multicast {
        /// The worker's process slot.
        worker: u32,
        /// Names this multicast; a slot never uses one twice.
        ticket: u64,
        /// Room for the envelope, then the changeset.
        message: Vec<u8>,
    },
    /// A worker hands over a fragment, ahead of its changeset: answered with [`Outcome::Fragment`]. As long as the worker has not handed over its changeset.
    Fragment {
        /// The worker's process slot.
        worker: u32,
        /// As in the multicast that follows.
        ticket: u64,
        /// Room for the envelope, then the fragment.
        message: Vec<u8>,
    },
    /// A worker has sent fragments, and no multicast follows.
    DropFragments {
        /// As in the fragments.
        worker: u32,
        /// As in the fragments.
        ticket: u64,
    },
    /// A worker has rolled back, or is gone, between [`Event::Multicast`] and its commit: if the
    /// changeset passes, a helper commits it. Feed a fresh [`Event::Progress`] before it, so that
    /// a commit that was still reached is known.
    Abandon {
        /// As in the multicast.
        worker: u32,
        /// As in the multicast.
        ticket: u64,
        /// The session ends, so effects that a changeset can't carry end with it.
        gone: bool,
    },
    /// A reader wants everything that the group has acknowledged: answered with
    /// [`Outcome::Reached`] or [`Outcome::NotPrimary`].
    AwaitOrder {
        /// Its process slot.
        worker: u32,
        /// Names this wait; different from those of multicasts.
        ticket: u64,
    },
    /// A writer wants all members to show what it committed: answered with [`Outcome::Reached`], or
    /// with [`Outcome::NotPrimary`] when this member fails or leaves.
    AwaitShown {
        /// Its process slot.
        worker: u32,
        /// Names this wait; different from those of multicasts.
        ticket: u64,
        /// What it committed.
        gid: Gid,
    },
    /// A session that lost again and again wants to be the only member's to write these relations:
    /// answered as [`Event::AwaitOrder`] when its wish has its place in the order, granted or not.
    Reserve {
        /// Its process slot.
        worker: u32,
        /// Names this wait; different from those of multicasts.
        ticket: u64,
        /// At least one.
        relations: Relations,
    },
    /// The transaction that it was for is over, and was not multicast.
    Release {
        /// Its process slot.
        worker: u32,
    },
    /// A session was refused this relation, which another member has reserved, and would try again:
    /// answered as [`Event::AwaitOrder`] when that is over.
    AwaitFree {
        /// Its process slot.
        worker: u32,
        /// Names this wait; different from those of multicasts.
        ticket: u64,
        /// Which.
        relation: u32,
    },
    /// A helper is up and free.
    HelperReady {
        /// 0..=[`Config::helpers`].
        helper: u32,
    },
    /// A helper wants a fragment of what it applies: answered with [`Effect::Fragment`].
    FragmentWanted {
        /// Which.
        helper: u32,
        /// As in [`Effect::Apply`].
        gid: Gid,
        /// From 0, among those that count.
        nth: u32,
    },
    /// A helper wants a fragment of what it has begun early: answered with [`Early::Fragment`] when it
    /// is ordered.
    EarlyWanted {
        /// Which.
        helper: u32,
        /// As in [`Effect::Early`].
        first: u64,
        /// From 0, among those that count.
        nth: u32,
    },
    /// A helper can't go on for now with what it has begun early, or not before its turn: nobody is to wait
    /// for it.
    EarlyWaits {
        /// Which.
        helper: u32,
        /// As in [`Effect::Early`].
        first: u64,
    },
    /// A helper has rolled back what it had begun early.
    EarlyEnded {
        /// Which.
        helper: u32,
        /// As in [`Effect::Early`].
        first: u64,
    },
    /// A helper has committed this GID (visible) and is free again.
    HelperApplied {
        /// Which.
        helper: u32,
        /// As in [`Effect::Apply`].
        gid: Gid,
    },
    /// A helper has rolled back and is free again.
    HelperFailed {
        /// Which.
        helper: u32,
        /// As in [`Effect::Apply`].
        gid: Gid,
        /// Another try can't succeed.
        fatal: bool,
        /// For the log and the statistics view.
        reason: String,
    },
    /// A helper process ended. Feed a fresh [`Event::Progress`] before it.
    HelperGone {
        /// Which.
        helper: u32,
    },
    /// This member's positions; each only ever rises.
    Progress {
        /// Every GID up to it is visible here.
        last_committed: Gid,
        /// Every GID up to it is in this member's flushed WAL.
        flushed: Gid,
        /// min(last_committed, lowest active `since` of any transaction), read in that order.
        low: Gid,
    },
    /// [`GcsCommand::Read`] is done: the payload of the delivery, or why it can't be read.
    LogRead {
        /// The delivery's.
        seq: u64,
        /// Its payload as delivered.
        payload: Result<Bytes, String>,
    },
    /// [`gcs::TICK_MS`] has passed.
    Tick,
    /// Leave the group in order: new multicasts are refused, those in flight end first.
    StopGroup,
}

/// One thing to do, in order.
#[derive(Debug)]
pub enum Effect {
    /// For the engine.
    Gcs(GcsCommand),
    /// For a worker.
    Verdict {
        /// Its slot.
        worker: u32,
        /// Its multicast.
        ticket: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// For a free helper: wait until `depends_on` is committed here, apply, commit at `gid`'s turn.
    Apply {
        /// Which.
        helper: u32,
        /// Position to commit at.
        gid: Gid,
        /// Highest lower GID with a conflicting key.
        depends_on: Gid,
        /// Who made it.
        origin: MemberId,
        /// The changeset as [`crate::changeset`] encodes it.
        changeset: Bytes,
    },
    /// A SERIALIZABLE transaction has searched a relation by parts of an index; writers here that name
    /// what they bring to that detail are not in the way of such.
    Searched {
        /// Its OID.
        relation: u32,
        /// See there.
        detail: Detail,
    },
    /// For a helper that has asked.
    Fragment {
        /// Which.
        helper: u32,
        /// As in the question.
        gid: Gid,
        /// As in the question.
        nth: u32,
        /// As [`crate::changeset::fragment`] has it.
        fragment: Bytes,
    },
    /// For a helper, about a transaction that has no place in the order yet.
    Early {
        /// Which.
        helper: u32,
        /// Names the transaction: the position of its first fragment.
        first: u64,
        /// See there.
        what: Early,
    },
    /// The group's state on this server moved.
    SetState(GroupState),
    /// The membership moved.
    SetView(View),
    /// This member can't go on: it serves no writes from here, with the reason for people. The
    /// state is [`GroupState::Failed`] then, and every later event is ignored.
    Fail(String),
}

/// What a helper is told that applies a transaction before its changeset is here. If that passes, an
/// [`Effect::Apply`] follows, for this helper or for another; if not, an [`Early::End`].
#[derive(Clone, Debug)]
pub enum Early {
    /// Begin, and ask for the fragments.
    Begin {
        /// Who made it.
        origin: MemberId,
    },
    /// What it asked for.
    Fragment {
        /// As in the question.
        nth: u32,
        /// Which it is, and how far it counts.
        counted: Counted,
        /// What the origin showed when it was sent: to be visible here before it is applied.
        base: Gid,
        /// As [`crate::changeset::fragment`] has it.
        bytes: Bytes,
    },
    /// Roll back, and say so: it does not commit, or not with all that was given. Then a
    /// [`Early::Begin`] may follow.
    End,
}

/// What the core wants of the engine.
#[derive(Clone, Debug)]
pub enum GcsCommand {
    /// [`gcs::Gcs::multicast`]; answer with [`Event::Sent`] before any other event.
    Multicast {
        /// To be given back.
        token: u64,
        /// The message.
        payload: Bytes,
    },
    /// [`gcs::Gcs::checkpoint`]
    Checkpoint {
        /// Last delivery that the state contains; the last of its log entry.
        seq: u64,
        /// The state's last GID.
        gid: Gid,
        /// The state.
        state: Bytes,
    },
    /// [`gcs::Gcs::stable`]
    Stable {
        /// This member's.
        own: Gid,
        /// Every member's.
        all: Gid,
    },
    /// [`gcs::Gcs::remove`]
    Remove(MemberId),
    /// Read the payload of a delivery from the log again; answer with [`Event::LogRead`].
    Read {
        /// The delivery's position.
        seq: u64,
        /// Its log entry.
        index: u64,
        /// The message in it.
        id: MessageId,
    },
}

/// What became of a multicast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Certified: commit at this turn.
    Pass {
        /// The turn.
        gid: Gid,
    },
    /// 40001: it collided with a transaction that was ordered before it.
    Conflict {
        /// Relation of the key, for the DETAIL.
        relation: u32,
        /// The other's GID.
        gid: Gid,
        /// The other's member.
        origin: MemberId,
    },
    /// 40001: another member has reserved what it writes.
    Reserved {
        /// What, for the DETAIL.
        relation: u32,
        /// Who.
        member: MemberId,
    },
    /// 40001: its window reaches below what certification retains.
    BelowFloor,
    /// Of a fragment, one for each; its changeset may come next or be on its way already.
    Fragment {
        /// It has its place in the order and waits for its changeset. Else it was not sent, or the
        /// group did not take it: if it counts, its changeset will fail.
        kept: bool,
    },
    /// 40001: the group did not keep the fragments.
    FragmentsLost,
    /// Definite, nothing was sent: no majority for longer than the election timeouts, or the
    /// group isn't open here (starting, leaving).
    NotPrimary,
    /// Definite, nothing was sent: too many in flight.
    Busy,
    /// Definite, nothing was sent: larger than the engine takes.
    TooBig,
    /// Definite, nothing was sent: the changeset does not decode, or names another origin.
    Malformed,
    /// Definite, nothing was sent: abandoned before that.
    Withdrawn,
    /// A helper has committed it here in its worker's place.
    Replayed {
        /// At this turn.
        gid: Gid,
    },
    /// What was awaited: every acknowledged transaction is at most this GID, or all members show it;
    /// or, of what no transaction commits, a helper does it at this GID.
    Reached {
        /// See there.
        gid: Gid,
    },
    /// 08007: it was sent, and this member will not learn its verdict (it failed or left).
    Unknown,
}

/// For `pg_stat_replication_group`; [`super::Coordinator::stats`].
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// State of the group here.
    pub state: GroupState,
    /// Why it is [`GroupState::Failed`].
    pub failure: Option<String>,
    /// Last GID that the total order has given out, as delivered here.
    pub last_ordered: Gid,
    /// Changesets that wait for a helper or are in one.
    pub apply_queue: usize,
    /// Bytes of those that wait in memory.
    pub apply_queue_bytes: usize,
    /// Own multicasts without a verdict.
    pub in_flight: usize,
    /// Own changesets certified / failed in certification.
    pub passed: u64,
    /// See `passed`.
    pub certification_failures: u64,
    /// Changesets handed to helpers that committed: of others, and of own workers.
    pub applied: u64,
    /// See `applied`.
    pub replays: u64,
    /// Transactions whose fragments wait for their changesets, of all members.
    pub open_transactions: Vec<OpenStats>,
    /// Helper failures, retried or not.
    pub helper_errors: u64,
    /// One row a member, by number.
    pub members: Vec<MemberStats>,
}

/// For `pg_stat_replication_members`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStats {
    /// Number, address, role.
    pub info: MemberInfo,
    /// As it last reported in the total order.
    pub last_committed: Gid,
    /// As it last reported.
    pub flushed: Gid,
    /// As it last reported: what certification keeps for it.
    pub low: Gid,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            checkpoint_messages: limits::CHECKPOINT_EVERY_MESSAGES,
            digest_gids: limits::DIGEST_EVERY_GIDS,
            keys_max: limits::CERTIFIER_KEYS_MAX,
            quorum_ticks: limits::QUORUM_LOST_TICKS,
            status_ticks: limits::STATUS_IDLE_TICKS,
            queue_bytes: limits::APPLY_QUEUE_BYTES_MAX,
            open: Bounds {
                admit: limits::OPEN_ADMIT_BYTES,
                all: limits::OPEN_BYTES_MAX,
                silent: limits::OPEN_SILENT_BYTES,
            },
        }
    }
}
