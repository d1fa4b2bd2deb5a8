//! Changesets of other members, done to this server's heap. See `README.md`.

pub mod blocked;
pub mod early;
pub mod helper;
pub mod job;
pub mod rows;
mod run;
pub mod tables;
pub mod triggers;
mod truncate;
pub mod updates;
pub mod whole_rows;
