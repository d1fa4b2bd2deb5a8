//! The edges of the coordinator: sockets, the group log's files, the wake-up. See `README.md`.

pub mod backend;
mod conn;
mod dial;
mod gather;
pub mod join;
pub mod log;
pub mod net;
pub mod nonce;
pub mod peers;
mod poll;
pub mod reread;
pub mod resolve;
pub mod secret;
mod segments;
pub mod start;
#[expect(
    unsafe_code,
    reason = "memory and descriptors that the kernel works on"
)]
mod uring;
