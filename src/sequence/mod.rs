//! Sequences: one for the whole group. See `README.md`.

pub mod range;

#[cfg(feature = "server")]
pub mod helper;
#[cfg(feature = "server")]
pub mod session;
