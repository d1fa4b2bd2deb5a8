//! The durable edges of the coordinator: sockets, the group log's files, the wake-up. See
//! `README.md`.

pub mod backend;
mod gather;
pub mod log;
pub mod net;
mod poll;
mod segments;
mod uring;
