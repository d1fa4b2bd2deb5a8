//! Coordinator: certifies, dispatches, opens and closes the group on this server. See `README.md`.

mod digests;
mod dispatch;
mod early;
pub mod event;
pub mod io;
pub mod kind;
mod ledger;
pub mod message;
mod open;
mod opening;
mod ordered;
mod own;
mod pace;
mod replicated;
mod reserving;
pub mod run;
mod step;
mod waiting;

pub use event::{Config, Early, Effect, Event, GcsCommand, MemberStats, Outcome, Pace, Stats};
pub use open::Bounds;
pub use step::Coordinator;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
