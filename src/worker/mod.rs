//! A client's transaction from COMMIT to its place in the order. See `README.md`.

pub mod channel;
pub mod commit;
pub mod gate;
pub mod phase;
pub mod victim;

/// A transaction has ended, at all levels.
pub fn ended() {
    victim::ended();
    channel::release();
}
