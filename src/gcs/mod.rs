//! Group communication: one total order of messages for all members. See `README.md`.
//!
//! An engine does no I/O, reads no clock and owns no thread: the coordinator's event loop feeds it
//! [`Input`]s and carries out its [`Output`]s, and so does the simulation.
//!
//! What [`Event::Deliver`] promises to everything above, for every engine: the same messages in
//! the same gap-free order on every member, each on stable storage of a majority of the members
//! and of this member, exactly once per [`MessageId`], and only in the primary component.

use crate::ids::{Gid, MemberId, MessageId};
use bytes::Bytes;

pub mod egcs;
pub mod options;

/// A member as the group's log knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberInfo {
    /// Its number.
    pub id: MemberId,
    /// Where it listens, `host:port`.
    pub address: String,
    /// Counts in majorities; else it is a learner that is still catching up.
    pub voter: bool,
}

/// The ordered membership.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// Position in the total order at which it holds.
    pub seq: u64,
    /// Sorted by number.
    pub members: Vec<MemberInfo>,
}

/// What the engine is told.
#[derive(Debug)]
pub enum Input {
    /// One tick of [`TICK_MS`] has passed.
    Tick,
    /// A peer's connection is up and authenticated (either side opened it).
    PeerUp(MemberId),
    /// A peer's connection is gone; frames that were sent to it may be lost.
    PeerDown(MemberId),
    /// A frame of an authenticated peer, in the order in which it sent them.
    Frame {
        /// From whom.
        from: MemberId,
        /// Unverified content; the engine checks every length.
        bytes: Bytes,
    },
    /// All that [`Output::Append`] up to this ticket asked for is on stable storage.
    Durable {
        /// Ticket of the newest append covered.
        ticket: u64,
    },
    /// A server that is no member yet (it authenticated as member 0) asks to join.
    Join {
        /// The caller's name for the connection, for the answer.
        connection: u64,
        /// Unverified content, an [`egcs::members::JoinRequest`].
        bytes: Bytes,
    },
}

/// Milliseconds of a tick.
pub const TICK_MS: u64 = 100;

/// What the engine wants done, in order.
#[derive(Debug)]
pub enum Output {
    /// Send a frame to a member, best effort and in order; dropped if there is no connection.
    Send {
        /// To whom.
        to: MemberId,
        /// The frame.
        bytes: Bytes,
    },
    /// Write records to the group log and sync; report [`Input::Durable`]. Appends are written in
    /// ticket order and one sync may cover many.
    Append {
        /// Rises by one with each append.
        ticket: u64,
        /// What to write.
        records: Vec<egcs::log::Record>,
    },
    /// Answer to [`Input::Join`], an [`egcs::members::JoinReply`]; the connection can be closed after.
    JoinReply {
        /// Which connection.
        connection: u64,
        /// The answer.
        bytes: Bytes,
    },
    /// The group log may be cut before this index (exclusive); older segments can go.
    Compact {
        /// First index still needed.
        first_index: u64,
    },
    /// For the coordinator.
    Event(Event),
}

/// What the total order tells the coordinator.
#[derive(Clone, Debug)]
pub enum Event {
    /// The next message of the total order.
    Deliver(Delivery),
    /// Membership as of this point of the total order.
    View(View),
    /// Whether this member can have messages ordered now: a leader is known that a majority follows.
    Primary(bool),
    /// Everything that the group had committed when this member (re)joined has been delivered; a
    /// member opens to clients only after it.
    CaughtUp,
    /// A checkpoint of the state above: this member started (the first event then, from its own
    /// log), joined, or lagged beyond the others' logs. Replace the state by it before the next delivery. Refused with
    /// [`Event::Fatal`] by the layer above if its GID is beyond the member's own data.
    Restore {
        /// Position of the checkpoint in the total order.
        seq: u64,
        /// Last GID of the state.
        gid: Gid,
        /// What [`Gcs::checkpoint`] was given.
        state: Bytes,
    },
    /// This member was removed from the group.
    Removed,
    /// The engine can't go on; this member leaves the group.
    Fatal(String),
}

/// One ordered message.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Position in the total order, gap-free, the same on every member.
    pub seq: u64,
    /// Log entry that carries it (several messages share one).
    pub index: u64,
    /// Whose.
    pub id: MessageId,
    /// What was multicast.
    pub payload: Bytes,
}

/// Why a multicast was not taken. Nothing was sent then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Too much in flight; try again after the next delivery.
    Busy,
    /// Larger than [`crate::limits::CHANGESET_BYTES_MAX`] plus envelope.
    TooBig,
    /// No majority follows a leader that this member knows.
    NotPrimary,
}

/// One engine.
pub trait Gcs {
    /// Queues a message for the total order under the next number of this incarnation, which it
    /// returns. Once taken, the engine sends it again until it is delivered, over changes of
    /// leader and connections.
    fn multicast(&mut self, payload: Bytes) -> Result<MessageId, Refused>;
    /// Events in. Effects are picked up with [`Gcs::drain`].
    fn step(&mut self, input: Input);
    /// Effects out.
    fn drain(&mut self, out: &mut Vec<Output>);
    /// The state above, after exactly the deliveries up to `seq`. `gid` is the state's last GID. The engine keeps it durably as the point
    /// from which a restart replays and a new member starts.
    fn checkpoint(&mut self, seq: u64, gid: Gid, state: Bytes);
    /// The member itself, and then every member of the group, has every GID up to this one safely
    /// in its own WAL: the newest checkpoint at or below it is where a restart begins.
    fn stable(&mut self, own: Gid, all: Gid);
    /// Asks the group to drop a member (STOP REPLICATION on it, or by hand).
    fn remove(&mut self, member: MemberId);
    /// The membership now.
    fn view(&self) -> &View;
    /// Whether this member is the one of the primary component that does what one is to do. While
    /// members fail or come back there may be none, or for a moment two.
    fn leads(&self) -> bool;
}
