//! The durable edges of the coordinator: sockets, the group log's files, the wake-up. See
//! `README.md`.

pub mod backend;
mod gather;
pub mod net;
mod poll;
mod uring;
