//! The embedded engine: Raft, whose replicated log is the group log. See `README.md`.

pub mod auth;
pub mod codec;
pub mod disk;
mod inbound;
mod inspect;
mod joining;
pub mod log;
pub mod mem_disk;
pub mod members;
pub mod node;
pub mod order;
pub mod outbox;
pub mod reader;
mod ready;
pub mod recover;
pub mod segment;
pub mod store;
mod ticks;
pub mod wire;
pub mod writer;

#[cfg(test)]
mod tests;

pub use node::{Node, StartError};

use crate::ids::{Gid, GroupId, Incarnation, MemberId};

/// What a member's engine starts with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group.
    pub group: GroupId,
    /// This member's number, from its identity.
    pub me: MemberId,
    /// This life, from its identity.
    pub incarnation: Incarnation,
    /// The data here has every GID up to this one: delivery starts at the newest checkpoint at or
    /// below it.
    pub recovered: Gid,
    /// Compared for equality with what a server that joins sends.
    pub fingerprint: String,
    /// Bytes of the log that are kept for members that lag; half of it also for servers to join.
    pub keep_bytes: u64,
    /// Of the randomness in election timeouts.
    pub seed: u64,
}
