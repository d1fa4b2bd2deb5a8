//! A client's transaction from COMMIT to its place in the order. See `README.md`.

pub mod batch;
pub mod phase;
pub mod rule;

#[cfg(feature = "server")]
pub mod channel;
#[cfg(feature = "server")]
pub mod commit;
#[cfg(feature = "server")]
pub mod consistency;
#[cfg(feature = "server")]
pub mod fairness;
#[cfg(feature = "server")]
pub mod fragments;
#[cfg(feature = "server")]
pub mod gate;
#[cfg(feature = "server")]
pub mod retry;
#[cfg(feature = "server")]
pub mod victim;

/// A transaction has ended, at all levels.
#[cfg(feature = "server")]
pub fn ended() {
    victim::ended();
    crate::sequence::session::transaction_ended();
    fairness::ended();
    channel::release();
}
