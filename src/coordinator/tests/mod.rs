//! One core, fed by hand.

mod ahead;
mod bench;
mod dispatching;
mod early;
mod ending;
mod opening;
mod pace;
mod recovering;
mod reserving;
mod verdicts;
mod waiting;
